//! Ending a task, and cancelling an access request.

use std::sync::Arc;

use crate::broker::governance::pending_revocation::{PendingRevocation, RevocationTarget};
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::Append;
use crate::model::*;
use crate::state::{AccessRequest, Grant, StoredStatus, TaskRecord};

/// Input of `CompleteTask` and `EndTask`.
#[derive(Debug, Clone)]
pub struct EndTaskInput {
    /// The task.
    pub task: TaskId,
    /// The outcome as the agent reports it.
    pub outcome: Option<TaskOutcome>,
}

/// What the end of a task revoked.
#[derive(Debug, Clone)]
pub struct EndReport {
    /// The task.
    pub task: TaskId,
    /// The cause of its first end.
    pub cause: EndCause,
    /// When it ended.
    pub at: Timestamp,
    /// Index of its entry.
    pub index: u64,
    /// All tokens ever issued to the task, oldest first.
    pub tokens: Vec<TokenId>,
    /// Tokens active at the end.
    pub revoked: usize,
    /// Access requests waiting at the end.
    pub closed: usize,
}

/// Attempts to end a task or to cancel an access request.
const END_ATTEMPTS: usize = 16;

impl Broker {
    /// Ends a task for its agent. Possession is enough: ending must work when evidence no longer does.
    pub async fn complete_task(
        &self,
        call: &CallContext,
        input: EndTaskInput,
    ) -> Result<EndReport, Refusal> {
        let (task, _held) = self.task_possession(call, &input.task, None, None, self.now())?;
        self.end_task(
            call.method,
            &task.opened.task,
            EndCause::Completed,
            input.outcome,
            None,
            Vec::new(),
        )
        .await
    }

    /// Ends a task for an operator.
    pub async fn end_task_as_operator(
        &self,
        call: &CallContext,
        input: EndTaskInput,
    ) -> Result<EndReport, Refusal> {
        let operator = self.authenticate_person(call)?;
        if self.state.task(&input.task).is_none() {
            return Err(self.refuse(
                call.method,
                Reason::NotFound,
                format!("no task {}", input.task),
            ));
        }
        let rules = self.require_operator(call, &operator)?;
        let read_set = vec![(Stream::Policy, rules.version)];
        self.end_task(
            call.method,
            &input.task,
            EndCause::Operator,
            None,
            Some(operator.id),
            read_set,
        )
        .await
    }

    /// Cancels an access request for its agent. A crash before the append leaves it pending; after it, cancelled.
    pub async fn cancel_access_request(
        &self,
        call: &CallContext,
        task: TaskId,
        id: AccessRequestId,
    ) -> Result<(), Refusal> {
        let (task, _held) = self.task_possession(call, &task, None, None, self.now())?;
        let task = &task;
        self.transaction(
            call.method,
            END_ATTEMPTS,
            "the access request keeps changing while it is cancelled",
            |attempt| async move {
                let now = self.now();
                let opened = self
                    .request_of_task(call, &task.opened.task, &id)?
                    .opened
                    .clone();
                let read_set = self.request_read_set(&opened);
                let request = self.request_of_task(call, &task.opened.task, &id)?;
                if !request.is_pending(now) || !self.is_running(task, now) {
                    return Err(self
                        .refuse(
                            call.method,
                            Reason::AccessRequestClosed,
                            "the access request is no longer pending",
                        )
                        .into());
                }
                // An agent that cancels while an approver is about to vote is counted as having had an answer.
                let begun = self.has_pending_statement(&id, now);
                let event = Event::AccessRequestClosed(AccessRequestClosed {
                    access_request: id,
                    cause: CloseCause::Cancelled,
                    voting_started: begun,
                });
                let mut write_set = vec![(Stream::AccessRequest(id), request.version)];
                if begun {
                    let history_version = self.state.access_request_history(&opened.agent).version;
                    write_set.push((Stream::AgentRequests(opened.agent.clone()), history_version));
                }
                let append = Append {
                    read_set,
                    ..Append::one(event, write_set)
                };
                attempt.append(append).await?;
                Ok(())
            },
        )
        .await
    }

    /// Ends a task by one entry; a task that has ended answers with its first end.
    ///
    /// A crash before the append leaves the task running and the caller without an answer. The end is enforced here from before
    /// the append; one that fails is journalled as soon as the journal takes entries again.
    pub(in crate::broker) async fn end_task(
        &self,
        method: &'static str,
        id: &TaskId,
        cause: EndCause,
        outcome: Option<TaskOutcome>,
        by: Option<PersonId>,
        read_set: Vec<(Stream, Version)>,
    ) -> Result<EndReport, Refusal> {
        let hold = self.hold_revocation(method, RevocationTarget::Task(*id));
        let (outcome, by, read_set, hold) = (&outcome, &by, &read_set, &hold);
        self.transaction(
            method,
            END_ATTEMPTS,
            "the task keeps changing while it is ended",
            |attempt| async move {
                let now = self.now();
                let task = self
                    .state
                    .task(id)
                    .ok_or_else(|| self.refuse(method, Reason::NotFound, "no such task"))?;
                let task_reads = self.task_read_set(&task.opened);
                let task = self.state.task(id).unwrap_or(task);
                if task.ended.is_some() {
                    return Ok(self.end_report(&task, now));
                }
                // A deadline or heartbeat that has passed is the cause, before any caller's.
                let (cause, outcome, by) = match task.expired_cause(now) {
                    None => (cause, *outcome, by.clone()),
                    Some(expired) => (expired, None, None),
                };
                let event = Event::TaskEnded(TaskEnded {
                    tasks: vec![*id],
                    cause,
                    outcome,
                    by: by.clone(),
                });
                let append = Append {
                    read_set: read_set.iter().cloned().chain(task_reads).collect(),
                    ..Append::one(event, vec![(Stream::Task(*id), task.version)])
                };
                let revocation = PendingRevocation { by, cause, outcome };
                hold.append(attempt, append, revocation).await?;
                let task = self.state.task(id).unwrap_or(task);
                Ok(self.end_report(&task, now))
            },
        )
        .await
    }

    /// A task that runs, for a caller that has proved its key.
    pub(in crate::broker) fn running_task(
        &self,
        call: &CallContext,
        id: &TaskId,
        now: Timestamp,
    ) -> Result<Arc<TaskRecord>, Refusal> {
        match self.state.task(id) {
            Some(task) if self.is_running(&task, now) => Ok(task),
            Some(task) => Err(self.refuse_ended(call.method, &task, now)),
            None => Err(self.refuse(call.method, Reason::TaskEnded, "the task has ended")),
        }
    }

    /// Refuses a call for a task that does not run, and says why the task ended and when. For callers that have proved the
    /// task's key.
    pub(in crate::broker) fn refuse_ended(
        &self,
        method: &'static str,
        task: &TaskRecord,
        now: Timestamp,
    ) -> Refusal {
        let message = match self.task_end(task, now) {
            Some((cause, Some(at))) => format!("the task ended at {at}: {}", cause.of_task()),
            Some((cause, None)) => format!("the task has ended: {}", cause.of_task()),
            None => "the task has ended".to_owned(),
        };
        self.refuse(method, Reason::TaskEnded, message)
    }

    /// Why a task ended, and when; the same before and after the entry of an end by time. Without a time where no entry says
    /// it yet.
    pub(in crate::broker) fn task_end(
        &self,
        task: &TaskRecord,
        now: Timestamp,
    ) -> Option<(EndCause, Option<Timestamp>)> {
        let cause = task
            .ended
            .map(|ended| ended.cause)
            .or_else(|| task.expired_cause(now))
            .or_else(|| self.pending_task_end(task));
        let at = match cause {
            Some(EndCause::Deadline) => Some(task.opened.deadline),
            Some(EndCause::Lease) => task.lease.map(|lease| lease.until),
            Some(_) => task.ended.map(|ended| ended.at),
            None => None,
        };
        let suspended = self.state.agent_status(&task.opened.agent).value.suspended;
        cause
            .or(suspended.then_some(EndCause::Suspended))
            .map(|cause| (cause, at))
    }

    /// Computed from the record, so that a repeated call gets the same report.
    fn end_report(&self, task: &Arc<TaskRecord>, now: Timestamp) -> EndReport {
        let id = task.opened.task;
        let (cause, at, index) = task
            .ended
            .map_or((EndCause::Deadline, now, 0), |e| (e.cause, e.at, e.index));
        let grants = self.state.grants_of_task(&id);
        let active = |g: &&Arc<Grant>| {
            g.ended.is_none_or(|e| e.index >= index)
                && !self.state.is_action_frozen(g)
                && at.secs() < g.issued.exp
                && !g.is_spent()
        };
        let pending =
            |r: &&Arc<AccessRequest>| r.status == StoredStatus::Pending && at < r.opened.expires_at;
        EndReport {
            task: id,
            cause,
            at,
            index,
            revoked: grants.iter().filter(active).count(),
            closed: self
                .state
                .requests_of_task(&id)
                .iter()
                .filter(pending)
                .count(),
            tokens: grants.iter().map(|g| g.issued.jti).collect(),
        }
    }
}
