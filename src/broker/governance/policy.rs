use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::broker::governance::freeze::LiftOrder;
use crate::broker::governance::pending_revocation::{RevocationTarget, PendingRevocation};
use crate::broker::maintenance::TOGETHER_MAX;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use tracing::Instrument as _;

use crate::approve;
use crate::journal::{Append, AppendError, Blob};
use crate::model::*;
use crate::policy::{BundleFiles, InForce, OperateAnswer, PolicyBundle};
use crate::rate_limit::ConcurrencyPermit;
use crate::state::Grant;

/// What putting a policy bundle in force did.
#[derive(Debug, Clone, Default)]
pub struct BundleApplied {
    /// Its version.
    pub version: String,
    /// False: it was in force already.
    pub changed: bool,
    /// Rules in it.
    pub rules: usize,
    /// Agents in it.
    pub agents: usize,
    /// What is odd but not wrong.
    pub warnings: Vec<String>,
    /// What it no longer allows, ended.
    pub revoked: RevocationSummary,
}

/// What a sweep ended.
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
    /// after it, the new one, and the next start sweeps what this one did not.
    ///
    /// Goes on in a task of its own when the caller goes away: what is in force is always revoked to the end, and the next
    /// bundle waits for that.
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
        let to_the_end = async move { broker.apply_uncancellable(&call, &operator, files).await };
        let applying = tokio::spawn(to_the_end.instrument(tracing::Span::current()));
        applying
            .await
            .unwrap_or_else(|e| Err(self.refuse(method, Reason::Undecided, e.to_string())))
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
        // INVARIANT (what a bundle ended stays ended): no other comes in force before the sweep of this one is done.
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
        applied.revoked = self
            .revoke_disallowed()
            .await
            .map_err(|e| self.refuse_append(call.method, &e))?;
        Ok(applied)
    }

    /// Files as a bundle that a broker takes, and what applying it will say.
    pub(in crate::broker) async fn load_bundle(
        &self,
        method: &'static str,
        files: BTreeMap<String, String>,
    ) -> Result<(BundleFiles, PolicyBundle, BundleApplied), Refusal> {
        let refuse = |e: &dyn std::fmt::Display| {
            self.refuse(method, Reason::InvalidPolicyBundle, e.to_string())
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
        bundle.governable().map_err(|e| refuse(&e))?;
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
        self.views.shelve(bundle);
        let event = Event::PolicyApplied(PolicyApplied { version, by });
        let append = Append {
            blobs: vec![Blob::new(files.canonical())],
            ..Append::one(event, vec![(Stream::Policy, expected)])
        };
        let result = self.journal.append(append).await.map(|_| ());
        if result.is_err() {
            self.views.unshelve(&version);
        }
        result
    }

    /// Takes an agent out of service: one entry ends all it has.
    pub async fn suspend_agent(
        &self,
        call: &CallContext,
        agent: AgentId,
        reason: Option<Prose>,
    ) -> Result<(usize, u64), Refusal> {
        let operator = self.authenticate_person(call)?;
        self.require_known_agent(call, &agent)?;
        loop {
            let rules = self.require_operator(call, &operator)?;
            let standing = self.state.standing(&agent);
            if standing.value.suspended {
                return Ok((0, standing.version.saturating_sub(1)));
            }
            let tasks = self.state.open_tasks_of(&agent).len();
            let blob = reason
                .as_ref()
                .map(|prose| Blob::new(prose.blob(self.draw())));
            let event = Event::AgentSuspended(AgentSuspended {
                agent: agent.clone(),
                by: operator.id.clone(),
                reason: blob.as_ref().map(Blob::hash),
                denials: None,
            });
            let append = Append {
                read_set: vec![(Stream::Policy, rules.version)],
                blobs: blob.into_iter().collect(),
                ..Append::one(event, vec![(Stream::Agent(agent.clone()), standing.version)])
            };
            match self.journal.append(append).await {
                Ok(entry) => {
                    self.clear_pending(&RevocationTarget::Agent(agent));
                    return Ok((tasks, entry.index));
                }
                Err(AppendError::Conflict(_)) => {}
                Err(error) => {
                    // Refused here from now on; written as soon as the journal takes entries again.
                    let order = PendingRevocation::new(operator.id, EndCause::Suspended);
                    return Err(self.defer_revocation(call.method, RevocationTarget::Agent(agent), order, &error));
                }
            }
        }
    }

    /// Lets an agent operate again; nothing that ended comes back.
    pub async fn resume_agent(&self, call: &CallContext, agent: AgentId) -> Result<u64, Refusal> {
        let operator = self.authenticate_person(call)?;
        self.require_known_agent(call, &agent)?;
        let lift = LiftOrder {
            what: RevocationTarget::Agent(agent.clone()),
            waits: "the suspension itself waits to be written",
            stream: Stream::Agent(agent.clone()),
            event: Event::AgentResumed(AgentResumed {
                agent: agent.clone(),
                by: operator.id.clone(),
            }),
        };
        self.lift_order(call, &operator, lift, || {
            let standing = self.state.standing(&agent);
            (standing.value.suspended, standing.version)
        })
        .await
    }

    pub(in crate::broker) fn require_known_agent(
        &self,
        call: &CallContext,
        agent: &AgentId,
    ) -> Result<(), Refusal> {
        // An agent that was taken out of the bundle may still be suspended or resumed: its standing outlives bundles.
        let registered = self
            .views
            .rules()
            .is_some_and(|rules| rules.bundle.agent(agent).is_some());
        if registered || self.state.standing(agent).version > 0 {
            Ok(())
        } else {
            Err(self.refuse(
                call.method,
                Reason::NotFound,
                format!("no agent {agent} is registered"),
            ))
        }
    }

    /// Ends by entries what today's rules and trust no longer allow, until nothing is left. Idempotent: a crash in the middle
    /// leaves the rest to the next start, an append that fails to the timer, and until then every reader asks for itself.
    pub(in crate::broker) async fn revoke_disallowed(&self) -> Result<RevocationSummary, AppendError> {
        let mut revoked = RevocationSummary::default();
        let Some(rules) = self.views.rules() else {
            return Ok(revoked);
        };
        if self.enforced_policy_version.load(Ordering::SeqCst) == rules.version {
            return Ok(revoked);
        }
        // What somebody else moved meanwhile is looked at again; everything that is left can only become less.
        while !self.end_disallowed_tasks(&rules, &mut revoked).await?
            || !self.end_disallowed_in_tasks(&rules, &mut revoked).await?
        {}
        self.enforced_policy_version.store(rules.version, Ordering::SeqCst);
        Ok(revoked)
    }

    /// One pass over running tasks; true when nothing came in between.
    async fn end_disallowed_tasks(&self, rules: &InForce, revoked: &mut RevocationSummary) -> Result<bool, AppendError> {
        let now = self.now();
        type Ending = (TaskId, Version, Vec<(Stream, Version)>);
        let mut ending: BTreeMap<EndCause, Vec<Ending>> = BTreeMap::new();
        for task in self.state.open_tasks() {
            let read_set = self.task_read_set(&task.opened);
            let task = self.state.task(&task.opened.task).unwrap_or(task);
            if !task.runs(now) {
                continue;
            }
            let cause = if !self.state.still_trusts(&task.opened.evidence) {
                EndCause::Trust
            } else if self.is_owner_frozen(&task.opened.agent) {
                // Handed over to somebody whose agents are frozen.
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
        let mut undisturbed = true;
        for (cause, tasks) in ending {
            for chunk in tasks.chunks(TOGETHER_MAX) {
                let tasks = chunk.iter().map(|(id, _, _)| *id).collect();
                let event = Event::TaskEnded(TaskEnded {
                    tasks,
                    cause,
                    outcome: None,
                    by: None,
                });
                let moves = chunk
                    .iter()
                    .map(|(id, version, _)| (Stream::Task(*id), *version))
                    .collect();
                let mut read_set: Vec<(Stream, Version)> = Vec::new();
                for premise in chunk.iter().flat_map(|(_, _, read_set)| read_set) {
                    if !read_set.contains(premise) {
                        read_set.push(premise.clone());
                    }
                }
                let append = Append {
                    read_set,
                    ..Append::one(event, moves)
                };
                match self.try_append(append).await? {
                    true => revoked.tasks += chunk.len(),
                    false => undisturbed = false,
                }
            }
        }
        Ok(undisturbed)
    }

    /// One pass over the grants and access requests of tasks that go on; true when nothing came in between.
    async fn end_disallowed_in_tasks(
        &self,
        rules: &InForce,
        revoked: &mut RevocationSummary,
    ) -> Result<bool, AppendError> {
        let now = self.now();
        let mut undisturbed = true;
        for task in self
            .state
            .open_tasks()
            .into_iter()
            .filter(|task| task.runs(now))
        {
            let id = task.opened.task;
            let dead = |g: &Arc<Grant>| {
                g.ended.is_none() && now.secs() < g.issued.exp && self.dead(g, now).is_some()
            };
            let dead: Vec<_> = self.state.grants_of(&id).into_iter().filter(dead).collect();
            for chunk in dead.chunks(SELECTOR_MAX) {
                let trusted = chunk
                    .iter()
                    .all(|g| self.state.still_trusts(&g.issued.evidence));
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
                let moves = chunk
                    .iter()
                    .map(|g| (Stream::Token(g.issued.jti), g.version))
                    .collect();
                match self.try_append_event(event, moves).await? {
                    true => revoked.grants += chunk.len(),
                    false => undisturbed = false,
                }
            }
            for request in self
                .state
                .requests_of(&id)
                .into_iter()
                .filter(|request| request.waits(now))
            {
                let agent = rules.bundle.agent(&request.opened.agent);
                if agent.is_some_and(|agent| approve::still_needs_approval(&request, &agent, &rules.bundle))
                {
                    continue;
                }
                let id = request.opened.access_request;
                let read_set = self.request_read_set(&request.opened);
                let Some(request) = self.state.access_request(&id).filter(|r| r.waits(now)) else {
                    continue;
                };
                let event = Event::AccessRequestClosed(AccessRequestClosed {
                    access_request: id,
                    cause: CloseCause::Policy,
                    begun: false,
                });
                let append = Append {
                    read_set,
                    ..Append::one(event, vec![(Stream::Access(id), request.version)])
                };
                match self.try_append(append).await? {
                    true => revoked.requests += 1,
                    false => undisturbed = false,
                }
            }
        }
        Ok(undisturbed)
    }

    /// Appends what a sweep or a timer found. A conflict means somebody moved it first: the next round looks again.
    pub(in crate::broker) async fn try_append_event(
        &self,
        event: Event,
        moves: Vec<(Stream, Version)>,
    ) -> Result<bool, AppendError> {
        self.try_append(Append::one(event, moves)).await
    }

    /// The same, with read_set.
    pub(in crate::broker) async fn try_append(
        &self,
        append: Append,
    ) -> Result<bool, AppendError> {
        match self.journal.append(append).await {
            Ok(_) => Ok(true),
            Err(AppendError::Conflict(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether the agent of a task may still operate, asked as when it was opened.
fn may_still_operate(opened: &TaskOpened, rules: &InForce) -> bool {
    let agent: Option<Arc<Agent>> = rules
        .bundle
        .agent(&opened.agent)
        .filter(|a| a.spiffe_id == opened.evidence.subject)
        .filter(|a| a.jkt.is_none_or(|pinned| pinned == opened.binding.jkt()));
    agent.is_some_and(|agent| {
        let age = opened.opened_at.since(opened.evidence.verified_at).max(0);
        let answer = rules.bundle.operate(
            &agent,
            opened.evidence.kind,
            age,
            opened.binding.as_str(),
            opened.opened_at,
        );
        matches!(answer, OperateAnswer::Allowed { .. })
    })
}
