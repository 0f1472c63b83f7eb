//! Ending a task, and cancelling an access request.

use crate::broker::governance::pending_revocation::{PendingRevocation, RevocationTarget};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::model::*;
use crate::state::{
    AccessRequest, Draft, Ended, Grant, Read, Recorded, Shown, StoredStatus, TaskRecord,
};
use crate::verify::Possession;

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

/// The caller whose order ends a task, and what it proved.
enum EndOrder {
    /// The agent, by its task's key.
    Agent(Possession, Option<TaskOutcome>),
    /// An operator.
    Operator(PersonCaller),
}

impl Broker {
    /// Ends a task for its agent. Possession is enough: ending must work when evidence no longer does.
    pub async fn complete_task(
        &self,
        call: &CallContext,
        input: EndTaskInput,
    ) -> Result<EndReport, Refusal> {
        let (_task, possession) =
            self.task_possession(call, &input.task, None, None, self.now())?;
        let order = EndOrder::Agent(possession, input.outcome);
        self.end_task(call, input.task, &order).await
    }

    /// Ends a task for an operator.
    pub async fn end_task_as_operator(
        &self,
        call: &CallContext,
        input: EndTaskInput,
    ) -> Result<EndReport, Refusal> {
        let operator = self.authenticate_person(call)?;
        self.end_task(call, input.task, &EndOrder::Operator(operator))
            .await
    }

    /// Cancels an access request for its agent. A crash before the append leaves it pending; after it, cancelled.
    pub async fn cancel_access_request(
        &self,
        call: &CallContext,
        task: TaskId,
        id: AccessRequestId,
    ) -> Result<(), Refusal> {
        let (_task, possession) = self.task_possession(call, &task, None, None, self.now())?;
        let done = self.transaction(call.method).run(|read| {
            let now = self.now();
            let task = self.held_task(read, call, &task, &possession)?;
            let request = read
                .access_request(&id)
                .filter(|request| request.opened.task() == Some(task.opened.task))
                .ok_or_else(|| {
                    let message = format!("no access request {id} in this task");
                    self.refuse(call.method, Reason::NotFound, message)
                })?;
            if !request.is_pending(now) || !self.is_running(&task, now) {
                let message = "the access request is no longer pending";
                return Err(self.refuse(call.method, Reason::AccessRequestClosed, message));
            }
            let event = Event::AccessRequestClosed(AccessRequestClosed {
                access_request: id,
                cause: CloseCause::Cancelled,
                // An agent that cancels while an approver is about to vote is counted as having had an answer.
                voting_started: self.has_pending_statement(&id, now),
            });
            let draft = Draft::one(event).not_after(request.opened.expires_at);
            Ok(Step::Append(draft, ()))
        });
        done.await.map(|_| ())
    }

    /// The cancellations of the task's access requests that a person has begun to vote on: an agent that ends its task then is counted as
    /// having had an answer, as one that cancels.
    fn begun_denials(&self, read: &Read, task: &TaskRecord, now: Timestamp) -> Vec<Event> {
        let requests = self.show().requests_of_task(&task.opened.task);
        let ids = requests.iter().map(|request| request.opened.access_request);
        ids.filter(|id| self.has_pending_statement(id, now))
            .filter_map(|id| read.access_request(&id).filter(|r| r.is_pending(now)))
            .map(|request| {
                Event::AccessRequestClosed(AccessRequestClosed {
                    access_request: request.opened.access_request,
                    cause: CloseCause::Cancelled,
                    voting_started: true,
                })
            })
            .collect()
    }

    /// Ends a task by one append; a task that has ended answers with its first end.
    ///
    /// A crash before the append leaves the task running and the caller without an answer. The end is enforced here from before
    /// the append; one that fails is journalled as soon as the journal takes entries again.
    async fn end_task(
        &self,
        call: &CallContext,
        id: TaskId,
        order: &EndOrder,
    ) -> Result<EndReport, Refusal> {
        let hold = self.hold_revocation(RevocationTarget::Task(id));
        let transaction = self.transaction(call.method).holding(&hold);
        let transaction = match order {
            EndOrder::Agent(..) => transaction,
            EndOrder::Operator(operator) => transaction.ordered_by(operator),
        };
        transaction
            .run(|read| {
                let (task, revocation) = match order {
                    EndOrder::Agent(possession, outcome) => {
                        let task = self.held_task(read, call, &id, possession)?;
                        let revocation = PendingRevocation {
                            by: None,
                            cause: EndCause::Completed,
                            outcome: *outcome,
                            reason: None,
                        };
                        (task, revocation)
                    }
                    EndOrder::Operator(operator) => {
                        self.require_operator(read, call, operator)?;
                        let task = read.task(&id).ok_or_else(|| {
                            self.refuse(call.method, Reason::NotFound, format!("no task {id}"))
                        })?;
                        (task, PendingRevocation::new(operator, EndCause::Operator))
                    }
                };
                if task.ended.is_some() {
                    return Ok(Step::Answer(()));
                }
                let now = self.now();
                let denied = match order {
                    EndOrder::Agent(..) => self.begun_denials(read, &task, now),
                    EndOrder::Operator(_) => Vec::new(),
                };
                let draft = revocation.end_of(&task, now).after(denied);
                Ok(Step::Revoke(draft, revocation, ()))
            })
            .await?;
        self.end_report(call.method, id)
    }

    /// The task of a caller that has proved a key, in a round. Another key's task and an unknown id get the same answer.
    pub(in crate::broker) fn held_task<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        id: &TaskId,
        possession: &Possession,
    ) -> Result<Recorded<'r, TaskRecord>, Refusal> {
        read.task(id)
            .filter(|task| possession.matches(&task.opened.binding).is_ok())
            .ok_or_else(|| {
                let message = format!("no task {id} bound to this key");
                self.refuse(call.method, Reason::NotFound, message)
            })
    }

    /// A task that runs, for a caller that has proved its key.
    pub(in crate::broker) fn running_task<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        id: &TaskId,
        now: Timestamp,
    ) -> Result<Recorded<'r, TaskRecord>, Refusal> {
        match read.task(id) {
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
        cause.map(|cause| (cause, at))
    }

    /// What the recorded end of a task revoked. Computed from the records, so that a repeated call gets the same report.
    fn end_report(&self, method: &'static str, task: TaskId) -> Result<EndReport, Refusal> {
        let show = self.show();
        let Some(ended) = show.task(&task).and_then(|task| task.ended) else {
            let message = "the end of the task is not on record";
            return Err(self.refuse(method, Reason::DecisionUnavailable, message));
        };
        let Ended {
            cause, at, index, ..
        } = ended;
        let grants = show.grants_of_task(&task);
        let was_active = |grant: &&Shown<Grant>| {
            // As of the task's end: what came after it changes nothing.
            show.first_end(grant).is_none_or(|end| end.index >= index)
                && at.secs() < grant.issued.exp
                && !grant.is_spent()
        };
        let was_pending = |r: &&Shown<AccessRequest>| {
            r.status == StoredStatus::Pending && at < r.opened.expires_at
        };
        Ok(EndReport {
            task,
            cause,
            at,
            index,
            revoked: grants.iter().filter(was_active).count(),
            closed: show
                .requests_of_task(&task)
                .iter()
                .filter(was_pending)
                .count(),
            tokens: grants.iter().map(|grant| grant.issued.jti).collect(),
        })
    }
}
