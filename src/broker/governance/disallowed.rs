//! What rules and trust in force no longer allow: its tasks, tokens and access requests are ended by entries.
//!
//! Each use is refused from the moment of the change, because it evaluates the rules in force. The entries tell feeds and people, and
//! make the end final: another bundle does not bring back what one has ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::approve::needs::{self, Reassessment};
use crate::broker::Broker;
use crate::broker::sweep::Swept;
use crate::journal::AppendError;
use crate::model::*;
use crate::policy::{ActivePolicy, OperateDecision};
use crate::state::{AccessRequest, Draft, KeyNames, Read, Recorded, TaskRecord};

/// Counts of tasks, tokens and access requests ended because rules or trust no longer allow them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RevocationSummary {
    /// Tasks.
    pub tasks: usize,
    /// Tokens, those of these tasks among them.
    pub grants: usize,
    /// Access requests, those of these tasks among them.
    pub requests: usize,
}

/// What a record is judged by: the bundle in force and each fact that ends tokens, by the versions of their streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::broker) struct JudgedBy {
    policy: Version,
    facts: BTreeMap<FactName, Version>,
}

impl Broker {
    /// Whether everything that the bundle and the facts in force disallow has ended.
    pub(in crate::broker) fn is_policy_enforced(&self) -> bool {
        self.preview(|read| self.is_enforced(read))
    }

    fn judged_by(&self, read: &Read) -> JudgedBy {
        JudgedBy {
            policy: read
                .last_entry(&Stream::Policy)
                .map_or(0, |index| index + 1),
            facts: read.ending_fact_versions(),
        }
    }

    /// Records the end of all that rules and trust in force no longer allow, once after each change of the rules or of a fact that ends
    /// tokens; called with the
    /// policy lock, or at a start. Idempotent: a crash in the middle leaves the rest to the next start, a failed append to
    /// maintenance; until then each use evaluates the rules itself.
    pub(in crate::broker) async fn revoke_disallowed(
        &self,
    ) -> Result<RevocationSummary, AppendError> {
        let mut revoked = RevocationSummary::default();
        // A pass with conflicts is repeated; what is left can only become less.
        while !self.is_policy_enforced() {
            let judged_by = self.preview(|read| self.judged_by(read));
            let before = self.open_in_tasks();
            let tasks = self.end_disallowed_tasks().await;
            revoked.tasks += tasks.recorded.len();
            for (grants, requests) in tasks
                .recorded
                .iter()
                .filter_map(|end| before.get(&end.task))
            {
                revoked.grants += grants;
                revoked.requests += requests;
            }
            let grants = self.end_disallowed_grants().await;
            revoked.grants += grants.recorded.len();
            let requests = self.close_disallowed_requests().await;
            let closed =
                |(event, _): &&(Event, Timestamp)| matches!(event, Event::AccessRequestClosed(_));
            revoked.requests += requests.recorded.iter().filter(closed).count();
            // INVARIANT (a change is enforced once all it disallows has ended): a record that could not be ended leaves it open.
            tasks.outcome()?;
            grants.outcome()?;
            requests.outcome()?;
            match tasks.is_complete && grants.is_complete && requests.is_complete {
                true => *self.lock(&self.enforced) = judged_by,
                false => tokio::task::yield_now().await,
            }
        }
        Ok(revoked)
    }

    /// How many living tokens and waiting access requests each open task has: they end with it.
    fn open_in_tasks(&self) -> BTreeMap<TaskId, (usize, usize)> {
        let (show, now) = (self.show(), self.now());
        let mut open: BTreeMap<TaskId, (usize, usize)> = BTreeMap::new();
        for task in show.open_tasks() {
            let id = task.opened.task;
            let grants = show.grants_of_task(&id);
            let living = grants.iter().filter(|g| show.end_cause(g, now).is_none());
            open.insert(id, (living.count(), 0));
        }
        for request in show.pending_requests(now) {
            let task = request.opened.task();
            if let Some((_, requests)) = task.and_then(|task| open.get_mut(&task)) {
                *requests += 1;
            }
        }
        open
    }

    /// Whether everything that the bundle and the facts this round read disallow has ended.
    pub(in crate::broker) fn is_enforced(&self, read: &Read) -> bool {
        let judged_by = self.judged_by(read);
        *self.lock(&self.enforced) == judged_by
    }

    /// One pass over the open tasks.
    async fn end_disallowed_tasks(&self) -> Swept<EndOfTask> {
        let open = self.show().open_tasks().into_iter();
        let ids: Vec<TaskId> = open
            .map(|task| task.opened.task)
            .filter(|id| self.is_candidate(|read| self.disallowed_task(read, id).is_some()))
            .collect();
        // The cause is the one of the round: another than at the listing ends the task all the same.
        self.sweep(&ids, |read, id| self.disallowed_task(read, id), end_all)
            .await
    }

    /// The same for the tokens of running tasks.
    async fn end_disallowed_grants(&self) -> Swept<(EndCause, TokenId)> {
        let now = self.now();
        let mut jtis = Vec::new();
        for task in self.show().open_tasks() {
            for grant in self.show().grants_of_task(&task.opened.task) {
                let jti = grant.issued.jti;
                let is_over = grant.ended.is_some() || now.secs() >= grant.issued.exp;
                if !is_over && self.is_candidate(|read| self.disallowed_grant(read, &jti).is_some())
                {
                    jtis.push(jti);
                }
            }
        }
        let judge = |read: &Read, jti: &TokenId| Some((self.disallowed_grant(read, jti)?, *jti));
        let draft = |ends: Vec<(EndCause, TokenId)>| {
            let end = |(cause, jtis)| {
                let by = None;
                Event::GrantsEnded(GrantsEnded { jtis, cause, by })
            };
            Draft::all(by_cause(ends).into_iter().map(end).collect())
        };
        self.sweep(&jtis, judge, draft).await
    }

    /// The pending access requests: those that can no longer be approved end, and what the others require is put on record anew.
    async fn close_disallowed_requests(&self) -> Swept<(Event, Timestamp)> {
        self.reassess_requests(self.show().unclosed_requests())
            .await
    }

    /// The same for these access requests.
    pub(in crate::broker) async fn reassess_requests(
        &self,
        mut ids: Vec<AccessRequestId>,
    ) -> Swept<(Event, Timestamp)> {
        ids.retain(|id| self.is_candidate(|read| self.reassessment_of(read, id).is_some()));
        let judge = |read: &Read, id: &AccessRequestId| {
            let (event, expires_at) = self.reassessment_of(read, id)?;
            Some((event, expires_at))
        };
        self.sweep(&ids, judge, Self::reassessments).await
    }

    /// The entries about access requests, each with the moment at which the request expires: refused where one of them expires first.
    pub(in crate::broker) fn reassessments(all: Vec<(Event, Timestamp)>) -> Draft {
        let first = all.iter().map(|(_, expires_at)| *expires_at).min();
        let draft = Draft::all(all.into_iter().map(|(event, _)| event).collect());
        match first {
            Some(first) => draft.not_after(first),
            None => draft,
        }
    }

    /// The entry about a pending access request that is not what is on record any more.
    pub(in crate::broker) fn reassessment_of(
        &self,
        read: &Read,
        id: &AccessRequestId,
    ) -> Option<(Event, Timestamp)> {
        let now = self.now();
        let request = read.access_request(id).filter(|r| r.is_pending(now))?;
        let rules = read.rules()?;
        self.is_open_for_votes(read, &request, now).then_some(())?;
        let event = self.reassessed(read, &request, &rules, now)?;
        Some((event, request.opened.expires_at))
    }

    /// The same for one access request, in a round that looks at it.
    pub(in crate::broker) fn reassessed(
        &self,
        read: &Read,
        request: &Recorded<'_, AccessRequest>,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> Option<Event> {
        let access_request = request.opened.access_request;
        match needs::reassess(request, self.voter_context(read, rules), now) {
            Reassessment::Same => None,
            Reassessment::Changed(mut decision) => {
                decision.id = DecisionId::from_random(self.random_bytes());
                Some(Event::AccessRequestReassessed(AccessRequestReassessed {
                    access_request,
                    decision: *decision,
                }))
            }
            Reassessment::Ends(cause) => Some(Event::AccessRequestClosed(AccessRequestClosed {
                access_request,
                cause,
                voting_started: false,
            })),
        }
    }

    /// Whether a record is to be judged by the sweep: one that moved while it was looked at is, too.
    fn is_candidate(&self, is_disallowed: impl FnOnce(&Read) -> bool) -> bool {
        self.preview(|read| is_disallowed(read) || !read.holds())
    }

    /// Why a running task may not go on.
    fn disallowed_task(&self, read: &Read, id: &TaskId) -> Option<EndOfTask> {
        let now = self.now();
        let task = read.task(id).filter(|task| task.is_running(now))?;
        let rules = read.rules()?;
        let opened = &task.opened;
        let owner = rules
            .bundle
            .agent(&opened.agent)
            .map(|agent| agent.owner.clone());
        let cause = if !read.is_trusted(&opened.evidence) {
            Some(EndCause::Trust)
        } else if owner.is_some_and(|owner| read.is_frozen(&FreezeScope::Owner(owner))) {
            // The agent changed to an owner who is frozen.
            Some(EndCause::Frozen)
        } else if !may_still_operate(opened, &rules) || !is_agents_own_key(read, opened) {
            Some(EndCause::Policy)
        } else {
            None
        };
        Some(EndOfTask::by(cause?, &task))
    }

    /// Why an active token of a running task has no ground any more. Other ends are not this sweep's to record: of its task, by a
    /// freeze, by time, and those that wait for the journal.
    fn disallowed_grant(&self, read: &Read, jti: &TokenId) -> Option<EndCause> {
        let now = self.now();
        let grant = read.grant(jti).filter(|grant| grant.ended.is_none())?;
        let _running = read
            .task(&grant.issued.task)
            .filter(|task| task.is_running(now))?;
        match self.end_cause(read, &grant, now)? {
            cause @ (EndCause::Policy | EndCause::Trust) => Some(cause),
            EndCause::Completed
            | EndCause::Operator
            | EndCause::Deadline
            | EndCause::Lease
            | EndCause::Suspended
            | EndCause::Frozen => None,
        }
    }
}

/// The end of a task that no person and no agent orders.
#[derive(Debug, Clone)]
pub(in crate::broker) struct EndOfTask {
    task: TaskId,
    cause: EndCause,
    /// When time ends the task; `None` for an end by time.
    not_after: Option<Timestamp>,
}

impl EndOfTask {
    pub(in crate::broker) fn by(cause: EndCause, task: &TaskRecord) -> Self {
        let not_after = match cause {
            EndCause::Deadline | EndCause::Lease => None,
            EndCause::Completed
            | EndCause::Operator
            | EndCause::Suspended
            | EndCause::Policy
            | EndCause::Trust
            | EndCause::Frozen => Some(task.expires_at()),
        };
        Self {
            task: task.opened.task,
            cause,
            not_after,
        }
    }
}

/// The entries that end tasks, one for each cause. Refused when time has ended one of them first.
pub(in crate::broker) fn end_all(ends: Vec<EndOfTask>) -> Draft {
    let not_after = ends.iter().filter_map(|end| end.not_after).min();
    let ends = ends.into_iter().map(|end| (end.cause, end.task)).collect();
    let end = |(cause, tasks)| {
        Event::TaskEnded(TaskEnded {
            tasks,
            cause,
            outcome: None,
            by: None,
        })
    };
    let draft = Draft::all(by_cause(ends).into_iter().map(end).collect());
    match not_after {
        Some(limit) => draft.not_after(limit),
        None => draft,
    }
}

fn by_cause<T>(ends: Vec<(EndCause, T)>) -> BTreeMap<EndCause, Vec<T>> {
    let mut all: BTreeMap<EndCause, Vec<T>> = BTreeMap::new();
    for (cause, one) in ends {
        all.entry(cause).or_default().push(one);
    }
    all
}

/// The entries that close access requests, one for each.
pub(in crate::broker) fn close_all(ids: Vec<AccessRequestId>, cause: CloseCause) -> Draft {
    let close = |access_request| {
        Event::AccessRequestClosed(AccessRequestClosed {
            access_request,
            cause,
            voting_started: false,
        })
    };
    Draft::all(ids.into_iter().map(close).collect())
}

/// Whether the key of a task is its agent's: a bundle may have given it to another agent, a person or a service.
fn is_agents_own_key(read: &Read, opened: &TaskOpened) -> bool {
    let key = KeyNames {
        identity: opened.key_identity,
        thumbprints: vec![opened.binding.jkt()],
    };
    read.may_hold_task(&key, &opened.agent).is_ok()
}

/// Whether the agent of a task may still operate, evaluated with the input at the task's opening.
pub(super) fn may_still_operate(opened: &TaskOpened, rules: &ActivePolicy) -> bool {
    let agent: Option<Arc<RegisteredAgent>> = rules
        .bundle
        .agent(&opened.agent)
        .filter(|a| a.spiffe_id == opened.evidence.subject)
        .filter(|a| a.jkt.is_none_or(|pinned| pinned == opened.binding.jkt()));
    agent.is_some_and(|agent| {
        let answer = rules.bundle.may_operate(
            &agent,
            opened.evidence.kind,
            opened.evidence.ages(opened.opened_at),
            opened.binding.as_str(),
            opened.opened_at,
        );
        matches!(answer, OperateDecision::Allowed { .. })
    })
}
