//! Heartbeats: extending the lease of a task.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::broker::TASKS_PER_ENTRY_MAX;
use crate::broker::transaction::TransactionError;
use crate::broker::{ATTEMPTS, Broker, CallContext, Refusal};
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::state::TaskRecord;

/// How long heartbeats are gathered before one entry records them.
const LEASE_BATCH_WINDOW: Duration = Duration::from_millis(20);

/// A heartbeat that waits to be journalled, and the channel that reports the result.
#[derive(Debug)]
pub(in crate::broker) struct PendingHeartbeat {
    task: TaskId,
    reply: oneshot::Sender<Result<(), AppendError>>,
}

impl Broker {
    /// Extends the lease of a task opened with a heartbeat, by an entry only when less than half of it is left. Answers
    /// when the task ends without another heartbeat.
    ///
    /// A crash before the entry leaves the lease as it was; after it, extended, though the agent got no answer.
    pub async fn keep_alive(
        self: &Arc<Self>,
        call: &CallContext,
        id: TaskId,
    ) -> Result<Timestamp, Refusal> {
        let (task, _held) = self.task_possession(call, &id, None, None, self.now())?;
        let Some(seconds) = task.opened.heartbeat_seconds else {
            let message = "the task was opened without a heartbeat";
            return Err(self.refuse(call.method, Reason::Malformed, message));
        };
        self.transaction(
            call.method,
            ATTEMPTS,
            "the lease keeps changing while it is extended",
            |_| async move {
                let now = self.now();
                let task = self.running_task(call, &id, now)?;
                let until = lease_of(&task);
                let is_fresh = until.since(now).saturating_mul(2) >= seconds.saturating_mul(1000);
                if is_fresh || until >= task.opened.deadline {
                    return Ok(until);
                }
                let (reply, reply_receiver) = oneshot::channel();
                let first = {
                    let mut pending = self.lock(&self.pending_heartbeats);
                    pending.push(PendingHeartbeat { task: id, reply });
                    pending.len() == 1
                };
                if first {
                    // Spawned: the other heartbeats of the batch must not depend on the first caller's connection.
                    tokio::spawn(Arc::clone(self).extend_batch());
                }
                match reply_receiver.await {
                    // The next attempt reads the result from the record: extended, ended, or changed by another append.
                    Ok(Ok(()) | Err(AppendError::Conflict(_) | AppendError::TooLate)) => {
                        Err(TransactionError::Retry)
                    }
                    Ok(Err(error)) => Err(self.refuse_append(call.method, &error).into()),
                    // The batch was cut, before or after its append.
                    Err(_gone) => {
                        let error = AppendError::OutcomeUnknown;
                        Err(self.refuse_append(call.method, &error).into())
                    }
                }
            },
        )
        .await
    }

    async fn extend_batch(self: Arc<Self>) {
        tokio::time::sleep(LEASE_BATCH_WINDOW).await;
        let pending = std::mem::take(&mut *self.lock(&self.pending_heartbeats));
        let mut pending = pending.into_iter().peekable();
        while pending.peek().is_some() {
            let chunk: Vec<PendingHeartbeat> = pending.by_ref().take(TASKS_PER_ENTRY_MAX).collect();
            let result = self.extend(&chunk).await;
            // A task that moved meanwhile makes the whole entry conflict: then each lease is extended by its own.
            if matches!(result, Err(AppendError::Conflict(_) | AppendError::TooLate))
                && chunk.len() > 1
            {
                for one in chunk {
                    let result = self.extend(std::slice::from_ref(&one)).await;
                    let _caller_gone = one.reply.send(result);
                }
            } else {
                for one in chunk {
                    let _caller_gone = one.reply.send(result.clone());
                }
            }
        }
    }

    async fn extend(&self, chunk: &[PendingHeartbeat]) -> Result<(), AppendError> {
        let now = self.now();
        let mut leases = Vec::new();
        let (mut write_set, mut read_set) = (Vec::new(), Vec::new());
        let mut not_after: Option<Timestamp> = None;
        for heartbeat in chunk {
            let id = heartbeat.task;
            let Some(opened) = self.state.task(&id).map(|task| task.opened.clone()) else {
                continue;
            };
            let task_reads = self.task_read_set(&opened);
            let Some(task) = self
                .state
                .task(&id)
                .filter(|task| self.is_running(task, now))
            else {
                continue;
            };
            let (Some(lease), Some(seconds)) = (task.lease, task.opened.heartbeat_seconds) else {
                continue;
            };
            let until = now.plus_secs(seconds).min(task.opened.deadline);
            if until <= lease.until || leases.iter().any(|(task, _)| *task == id) {
                continue;
            }
            leases.push((id, until));
            write_set.push((Stream::Lease(id), lease.version));
            read_set.push((Stream::Task(id), task.version));
            for read in task_reads {
                if !read_set.contains(&read) {
                    read_set.push(read);
                }
            }
            // INVARIANT (a missed heartbeat is final): an extension is durable before the lease it extends has ended.
            not_after = Some(not_after.map_or(lease.until, |t| t.min(lease.until)));
        }
        if leases.is_empty() {
            return Ok(());
        }
        let append = Append {
            read_set,
            not_after,
            ..Append::one(
                Event::LeasesExtended(LeasesExtended {
                    leases,
                    served_until: None,
                }),
                write_set,
            )
        };
        self.journal.append(append).await.map(|_| ())
    }
}

/// When the task ends without another heartbeat.
fn lease_of(task: &TaskRecord) -> Timestamp {
    let deadline = task.opened.deadline;
    task.lease.map_or(deadline, |l| l.until.min(deadline))
}
