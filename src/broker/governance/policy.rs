//! Policy bundles: applying one, and ending the tasks, tokens and access requests that it no longer allows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::Instrument as _;

use crate::approve;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal, TASKS_PER_ENTRY_MAX};
use crate::journal::{Append, AppendError, Blob};
use crate::model::*;
use crate::policy::{ActivePolicy, BundleFiles, OperateDecision, PolicyBundle};
use crate::rate_limit::ConcurrencyPermit;
use crate::state::Grant;

/// Summary of applying a policy bundle.
#[derive(Debug, Clone, Default)]
pub struct BundleApplied {
    /// Its version.
    pub version: String,
    /// False: it was in force before.
    pub changed: bool,
    /// Rules in it.
    pub rules: usize,
    /// Agents in it.
    pub agents: usize,
    /// Warnings about valid but unusual content.
    pub warnings: Vec<String>,
    /// Counts of what it no longer allows and therefore ended.
    pub revoked: RevocationSummary,
}

/// Counts of tasks, tokens and access requests ended because rules or trust no longer allow them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RevocationSummary {
    /// Tasks.
    pub tasks: usize,
    /// Tokens.
    pub grants: usize,
    /// Access requests.
    pub requests: usize,
}

impl Broker {
    /// Puts a policy bundle in force, whole, or refuses it whole. A crash before the append leaves the last one in force;
    /// after it, the new one, and the next start ends what this one did not.
    ///
    /// Runs in its own task, so that a client that disconnects does not cancel it: what a bundle no longer allows is always
    /// ended before the next bundle.
    pub async fn apply_policy_bundle(
        self: &Arc<Self>,
        call: &CallContext,
        operator: PersonCaller,
        files: BTreeMap<String, String>,
    ) -> Result<BundleApplied, Refusal> {
        let broker = Arc::clone(self);
        let call = CallContext {
            method: call.method,
            allowed_roles: call.allowed_roles,
            proof: None,
            bearer: None,
            session: None,
            permit: ConcurrencyPermit::unlimited(call.permit.class()),
        };
        let method = call.method;
        let uncancellable =
            async move { broker.apply_uncancellable(&call, &operator, files).await };
        let applying = tokio::spawn(uncancellable.instrument(tracing::Span::current()));
        // Cut by the end of the process, before or after an append.
        applying
            .await
            .unwrap_or_else(|e| Err(self.refuse(method, Reason::OutcomeUnknown, e.to_string())))
    }

    async fn apply_uncancellable(
        &self,
        call: &CallContext,
        operator: &PersonCaller,
        files: BTreeMap<String, String>,
    ) -> Result<BundleApplied, Refusal> {
        let (files, bundle, mut applied) = self.load_bundle(call.method, files).await?;
        let version = bundle.version();
        let _alone = self.policy_lock.lock().await;
        // INVARIANT (what a bundle ended stays ended): all it disallows is ended before another comes in force.
        self.revoke_disallowed()
            .await
            .map_err(|e| self.refuse_append(call.method, &e))?;
        let in_force = self.require_operator(call, operator)?;
        if in_force.bundle.version() == version {
            return Ok(BundleApplied {
                changed: false,
                ..applied
            });
        }
        let by = Some(operator.id.clone());
        self.record_bundle(bundle, &files, in_force.version, by)
            .await
            .map_err(|e| self.refuse_append(call.method, &e))?;
        self.revoke_after_change(&mut applied).await;
        Ok(applied)
    }

    /// Ends what the bundle just put in force no longer allows. A failure is a warning: the bundle is in force, and refuses
    /// what it does not allow at each use; maintenance records the ends when the journal takes entries again.
    pub(in crate::broker) async fn revoke_after_change(&self, applied: &mut BundleApplied) {
        match self.revoke_disallowed().await {
            Ok(revoked) => applied.revoked = revoked,
            Err(error) => applied.warnings.insert(
                0,
                format!(
                    "the bundle is in force and what it no longer allows is refused, but its end is not recorded yet: {error}"
                ),
            ),
        }
    }

    /// Loads and checks the files as a policy bundle, with the summary of applying it.
    pub(in crate::broker) async fn load_bundle(
        &self,
        method: &'static str,
        files: BTreeMap<String, String>,
    ) -> Result<(BundleFiles, PolicyBundle, BundleApplied), Refusal> {
        let refuse = |e: &dyn std::fmt::Display| {
            let problems = shortened(&e.to_string());
            self.refuse(method, Reason::InvalidPolicyBundle, problems)
        };
        let files = BundleFiles::new(files).map_err(|e| refuse(&e))?;
        // Loading parses, validates and self-tests: long enough to keep off the threads that answer calls.
        let loading = tokio::task::spawn_blocking(move || {
            PolicyBundle::load(&files).map(|bundle| (files, bundle))
        });
        let (files, bundle) = loading
            .await
            .map_err(|e| refuse(&e))?
            .map_err(|e| refuse(&e))?;
        bundle.check_has_operator().map_err(|e| refuse(&e))?;
        let applied = BundleApplied {
            version: bundle.version().to_string(),
            changed: true,
            rules: bundle.rules().count(),
            agents: bundle.agents().count(),
            warnings: bundle.warnings().iter().map(ToString::to_string).collect(),
            revoked: RevocationSummary::default(),
        };
        Ok((files, bundle, applied))
    }

    pub(in crate::broker) async fn record_bundle(
        &self,
        bundle: PolicyBundle,
        files: &BundleFiles,
        expected: Version,
        by: Option<PersonId>,
    ) -> Result<(), AppendError> {
        let version = bundle.version();
        self.projections.stage(bundle);
        let event = Event::PolicyApplied(PolicyApplied { version, by });
        let append = Append {
            blobs: vec![Blob::new(files.canonical())],
            ..Append::one(event, vec![(Stream::Policy, expected)])
        };
        let result = self.journal.append(append).await.map(|_| ());
        if result.is_err() {
            self.projections.unstage(&version);
        }
        result
    }

    /// Records the end of all that rules and trust in force no longer allow. Idempotent: a crash in the middle leaves the rest
    /// to the next start, a failed append to maintenance; until then each use evaluates the rules itself.
    pub(in crate::broker) async fn revoke_disallowed(
        &self,
    ) -> Result<RevocationSummary, AppendError> {
        let mut revoked = RevocationSummary::default();
        let Some(rules) = self.projections.rules() else {
            return Ok(revoked);
        };
        if self.enforced_policy_version.load(Ordering::SeqCst) == rules.version {
            return Ok(revoked);
        }
        // A pass with conflicts is repeated; what is left can only become less.
        while !self.end_disallowed_tasks(&rules, &mut revoked).await?
            || !self.end_disallowed_in_tasks(&rules, &mut revoked).await?
        {}
        self.enforced_policy_version
            .store(rules.version, Ordering::SeqCst);
        Ok(revoked)
    }

    /// One pass over running tasks; true when no append conflicted.
    async fn end_disallowed_tasks(
        &self,
        rules: &ActivePolicy,
        revoked: &mut RevocationSummary,
    ) -> Result<bool, AppendError> {
        let now = self.now();
        type Ending = (TaskId, Version, Vec<(Stream, Version)>);
        let mut ending: BTreeMap<EndCause, Vec<Ending>> = BTreeMap::new();
        for task in self.state.open_tasks() {
            let read_set = self.task_read_set(&task.opened);
            let task = self.state.task(&task.opened.task).unwrap_or(task);
            if !task.is_running(now) {
                continue;
            }
            let cause = if !self.state.is_trusted(&task.opened.evidence) {
                EndCause::Trust
            } else if self.is_owner_frozen(&task.opened.agent) {
                // The agent changed to an owner who is frozen.
                EndCause::Frozen
            } else if !may_still_operate(&task.opened, rules) {
                EndCause::Policy
            } else {
                continue;
            };
            ending
                .entry(cause)
                .or_default()
                .push((task.opened.task, task.version, read_set));
        }
        let mut complete = true;
        for (cause, tasks) in ending {
            for chunk in tasks.chunks(TASKS_PER_ENTRY_MAX) {
                let tasks = chunk.iter().map(|(id, _, _)| *id).collect();
                let event = Event::TaskEnded(TaskEnded {
                    tasks,
                    cause,
                    outcome: None,
                    by: None,
                });
                let write_set = chunk
                    .iter()
                    .map(|(id, version, _)| (Stream::Task(*id), *version))
                    .collect();
                let mut read_set: Vec<(Stream, Version)> = Vec::new();
                for read in chunk.iter().flat_map(|(_, _, read_set)| read_set) {
                    if !read_set.contains(read) {
                        read_set.push(read.clone());
                    }
                }
                let append = Append {
                    read_set,
                    ..Append::one(event, write_set)
                };
                match self.try_append(append).await? {
                    true => revoked.tasks += chunk.len(),
                    false => complete = false,
                }
            }
        }
        Ok(complete)
    }

    /// One pass over the grants and access requests of running tasks; true when no append conflicted.
    async fn end_disallowed_in_tasks(
        &self,
        rules: &ActivePolicy,
        revoked: &mut RevocationSummary,
    ) -> Result<bool, AppendError> {
        let now = self.now();
        let mut complete = true;
        for task in self
            .state
            .open_tasks()
            .into_iter()
            .filter(|task| task.is_running(now))
        {
            let id = task.opened.task;
            let disallowed = |g: &Arc<Grant>| {
                g.ended.is_none() && now.secs() < g.issued.exp && self.end_cause(g, now).is_some()
            };
            let disallowed: Vec<_> = self
                .state
                .grants_of_task(&id)
                .into_iter()
                .filter(disallowed)
                .collect();
            for chunk in disallowed.chunks(SELECTOR_MAX) {
                let trusted = chunk
                    .iter()
                    .all(|g| self.state.is_trusted(&g.issued.evidence));
                let cause = if trusted {
                    EndCause::Policy
                } else {
                    EndCause::Trust
                };
                let event = Event::GrantsEnded(GrantsEnded {
                    jtis: chunk.iter().map(|g| g.issued.jti).collect(),
                    cause,
                    by: None,
                });
                let write_set = chunk
                    .iter()
                    .map(|g| (Stream::Token(g.issued.jti), g.version))
                    .collect();
                match self.try_append_event(event, write_set).await? {
                    true => revoked.grants += chunk.len(),
                    false => complete = false,
                }
            }
            for request in self
                .state
                .requests_of_task(&id)
                .into_iter()
                .filter(|request| request.is_pending(now))
            {
                let agent = rules.bundle.agent(&request.opened.agent);
                if agent.is_some_and(|agent| {
                    approve::still_needs_approval(&request, &agent, &rules.bundle)
                }) {
                    continue;
                }
                let id = request.opened.access_request;
                let read_set = self.request_read_set(&request.opened);
                let Some(request) = self.state.access_request(&id).filter(|r| r.is_pending(now))
                else {
                    continue;
                };
                let event = Event::AccessRequestClosed(AccessRequestClosed {
                    access_request: id,
                    cause: CloseCause::Policy,
                    voting_started: false,
                });
                let append = Append {
                    read_set,
                    ..Append::one(event, vec![(Stream::AccessRequest(id), request.version)])
                };
                match self.try_append(append).await? {
                    true => revoked.requests += 1,
                    false => complete = false,
                }
            }
        }
        Ok(complete)
    }
}

/// Most bytes of the problems in a refusal.
const PROBLEMS_BYTES_MAX: usize = 1_600;

/// The first problems, one on a line, and the number of the others.
fn shortened(problems: &str) -> String {
    if problems.len() <= PROBLEMS_BYTES_MAX {
        return problems.to_owned();
    }
    let mut left = PROBLEMS_BYTES_MAX;
    let fits = |line: &&str| {
        let rest = left.checked_sub(line.len() + 1);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let mut kept: Vec<&str> = problems.lines().take_while(fits).collect();
    let more = problems.lines().count() - kept.len();
    let rest = format!("and {more} more; 'dipylon policy check DIR' lists every problem");
    kept.push(&rest);
    kept.join("\n")
}

/// Whether the agent of a task may still operate, evaluated with the input at the task's opening.
fn may_still_operate(opened: &TaskOpened, rules: &ActivePolicy) -> bool {
    let agent: Option<Arc<RegisteredAgent>> = rules
        .bundle
        .agent(&opened.agent)
        .filter(|a| a.spiffe_id == opened.evidence.subject)
        .filter(|a| a.jkt.is_none_or(|pinned| pinned == opened.binding.jkt()));
    agent.is_some_and(|agent| {
        let age = opened.opened_at.since(opened.evidence.verified_at).max(0);
        let answer = rules.bundle.may_operate(
            &agent,
            opened.evidence.kind,
            age,
            opened.binding.as_str(),
            opened.opened_at,
        );
        matches!(answer, OperateDecision::Allowed { .. })
    })
}
