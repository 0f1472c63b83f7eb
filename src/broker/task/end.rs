use std::sync::Arc;

use crate::broker::governance::pending_revocation::{RevocationTarget, PendingRevocation};
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::state::{AccessRequest, AccessStatus, Grant, Task};

/// A parsed end of a task.
#[derive(Debug, Clone)]
pub struct TaskEndAsk {
    /// Which.
    pub task: TaskId,
    /// How the agent says it went.
    pub outcome: Option<TaskOutcome>,
}

/// What an end ended.
#[derive(Debug, Clone)]
pub struct EndReport {
    /// The task.
    pub task: TaskId,
    /// The first end's cause.
    pub cause: EndCause,
    /// When.
    pub at: Timestamp,
    /// Index of its entry.
    pub index: u64,
    /// Tokens the task ever had, oldest first.
    pub tokens: Vec<TokenId>,
    /// Tokens alive at the end.
    pub revoked: usize,
    /// Access requests waiting at the end.
    pub closed: usize,
}

/// How often an end is tried again when something else moved the task.
const END_ATTEMPTS: usize = 16;

impl Broker {
    /// The agent is done. Possession is enough: ending must work when evidence no longer does.
    pub async fn complete_task(
        &self,
        call: &CallContext,
        ask: TaskEndAsk,
    ) -> Result<EndReport, Refusal> {
        let (task, _held) = self.task_possession(call, &ask.task, None, None, self.now())?;
        self.end_task(
            call.method,
            &task.opened.task,
            EndCause::Completed,
            ask.outcome,
            None,
            Vec::new(),
        )
        .await
    }

    /// An operator ends a task.
    pub async fn end_task_as_operator(
        &self,
        call: &CallContext,
        ask: TaskEndAsk,
    ) -> Result<EndReport, Refusal> {
        let operator = self.authenticate_person(call)?;
        if self.state.task(&ask.task).is_none() {
            return Err(self.refuse(
                call.method,
                Reason::NotFound,
                format!("no task {}", ask.task),
            ));
        }
        let rules = self.require_operator(call, &operator)?;
        let read_set = vec![(Stream::Policy, rules.version)];
        self.end_task(
            call.method,
            &ask.task,
            EndCause::Operator,
            None,
            Some(operator.id),
            read_set,
        )
        .await
    }

    /// The agent takes an access request back.
    pub async fn cancel_access_request(
        &self,
        call: &CallContext,
        task: TaskId,
        id: AccessRequestId,
    ) -> Result<(), Refusal> {
        let (task, _held) = self.task_possession(call, &task, None, None, self.now())?;
        for _ in 0..END_ATTEMPTS {
            let now = self.now();
            let opened = self
                .request_of_task(call, &task.opened.task, &id)?
                .opened
                .clone();
            let read_set = self.request_read_set(&opened);
            let request = self.request_of_task(call, &task.opened.task, &id)?;
            if !request.waits(now) || !self.runs(&task, now) {
                return Err(self.refuse(
                    call.method,
                    Reason::AccessRequestClosed,
                    "the access request no longer waits",
                ));
            }
            // Whoever asks, and takes it back when somebody is about to answer, has had an answer.
            let begun = self.has_pending_statement(&id, now);
            let fact = Event::AccessRequestClosed(AccessRequestClosed {
                access_request: id,
                cause: CloseCause::Cancelled,
                begun,
            });
            let mut moves = vec![(Stream::Access(id), request.version)];
            if begun {
                let asks = self.state.asks(&opened.agent).version;
                moves.push((Stream::Asks(opened.agent.clone()), asks));
            }
            let append = Append {
                read_set,
                ..Append::one(fact, moves)
            };
            match self.journal.append(append).await {
                Ok(_) => return Ok(()),
                Err(AppendError::Conflict(_)) => {}
                Err(error) => return Err(self.refuse_append(call.method, &error)),
            }
        }
        Err(self.refuse(call.method, Reason::Conflict, "cancelling"))
    }

    /// Ends a task by one entry; a task that has ended answers with its first end.
    ///
    /// A crash before the append leaves the task running and the caller without an answer. An append that fails leaves it
    /// pending_revocations: refused here from now on, and written as soon as the journal takes entries again.
    pub(in crate::broker) async fn end_task(
        &self,
        method: &'static str,
        id: &TaskId,
        cause: EndCause,
        outcome: Option<TaskOutcome>,
        by: Option<PersonId>,
        read_set: Vec<(Stream, Version)>,
    ) -> Result<EndReport, Refusal> {
        for _ in 0..END_ATTEMPTS {
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
            // A deadline or heartbeat that has passed is the cause, whoever comes to say so.
            let (cause, outcome, by) = match task.lapsed(now) {
                None => (cause, outcome, by.clone()),
                Some(lapsed) => (lapsed, None, None),
            };
            let fact = Event::TaskEnded(TaskEnded {
                tasks: vec![*id],
                cause,
                outcome,
                by: by.clone(),
            });
            let append = Append {
                read_set: read_set.iter().cloned().chain(task_reads).collect(),
                ..Append::one(fact, vec![(Stream::Task(*id), task.version)])
            };
            match self.journal.append(append).await {
                Ok(_) => {
                    self.clear_pending(&RevocationTarget::Task(*id));
                    let task = self.state.task(id).unwrap_or(task);
                    return Ok(self.end_report(&task, now));
                }
                Err(AppendError::Conflict(_)) => {}
                Err(error) => {
                    let order = PendingRevocation { by, cause, outcome };
                    return Err(self.defer_revocation(method, RevocationTarget::Task(*id), order, &error));
                }
            }
        }
        Err(self.refuse(method, Reason::Conflict, "ending the task"))
    }

    /// Read from the record, so that every asking gets the same report.
    fn end_report(&self, task: &Arc<Task>, now: Timestamp) -> EndReport {
        let id = task.opened.task;
        let (cause, at, index) = task
            .ended
            .map_or((EndCause::Deadline, now, 0), |e| (e.cause, e.at, e.index));
        let grants = self.state.grants_of(&id);
        let alive = |g: &&Arc<Grant>| {
            g.ended.is_none_or(|e| e.index >= index)
                && !self.state.action_frozen_since(g)
                && at.secs() < g.issued.exp
                && !g.spent()
        };
        let waited =
            |r: &&Arc<AccessRequest>| r.status == AccessStatus::Waiting && at < r.opened.expires_at;
        EndReport {
            task: id,
            cause,
            at,
            index,
            revoked: grants.iter().filter(alive).count(),
            closed: self.state.requests_of(&id).iter().filter(waited).count(),
            tokens: grants.iter().map(|g| g.issued.jti).collect(),
        }
    }
}
