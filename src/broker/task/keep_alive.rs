use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::broker::maintenance::TOGETHER_MAX;
use crate::broker::{ATTEMPTS, Broker, CallContext, Refusal};
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::state::Task;

/// How long signs of life are gathered before they are entered together.
const GATHER: Duration = Duration::from_millis(20);

/// A task whose lease wants extending, and where to say that it was looked at.
#[derive(Debug)]
pub(in crate::broker) struct Waiting {
    task: TaskId,
    done: oneshot::Sender<Result<(), AppendError>>,
}

impl Broker {
    /// A sign of life: extends the lease of a task opened with a heartbeat, by an entry only when less than half of it is
    /// left. Answers when the task ends unless it is kept alive again.
    ///
    /// A crash before the entry leaves the lease as it was; after it, extended, whoever hears of it.
    pub async fn keep_alive(
        self: &Arc<Self>,
        call: &CallContext,
        id: TaskId,
    ) -> Result<Timestamp, Refusal> {
        let (task, _held) = self.task_possession(call, &id, None, None, self.now())?;
        let Some(seconds) = task.opened.heartbeat_seconds else {
            let told = "the task was opened without a heartbeat";
            return Err(self.refuse(call.method, Reason::Malformed, told));
        };
        for _ in 0..ATTEMPTS {
            let now = self.now();
            let task = self
                .state
                .task(&id)
                .filter(|task| self.runs(task, now))
                .ok_or_else(|| self.refuse(call.method, Reason::TaskEnded, "the task is over"))?;
            let until = lease_of(&task);
            let enough = until.since(now).saturating_mul(2) >= seconds.saturating_mul(1000);
            if enough || until >= task.opened.deadline {
                return Ok(until);
            }
            let (done, answer) = oneshot::channel();
            let first = {
                let mut waiting = self.lock(&self.leases);
                waiting.push(Waiting { task: id, done });
                waiting.len() == 1
            };
            if first {
                // A task of its own: the others must not wait on whether the first caller stays.
                tokio::spawn(Arc::clone(self).extend_gathered());
            }
            match answer.await {
                // What happened is read from the record: extended, ended, or moved by somebody else.
                Ok(Ok(()) | Err(AppendError::Conflict(_) | AppendError::Late)) => {}
                Ok(Err(error)) => return Err(self.refuse_append(call.method, &error)),
                Err(_gone) => return Err(self.refuse_append(call.method, &AppendError::Closed)),
            }
        }
        Err(self.refuse(call.method, Reason::Conflict, "extending the lease"))
    }

    async fn extend_gathered(self: Arc<Self>) {
        tokio::time::sleep(GATHER).await;
        let waiting = std::mem::take(&mut *self.lock(&self.leases));
        let mut waiting = waiting.into_iter().peekable();
        while waiting.peek().is_some() {
            let chunk: Vec<Waiting> = waiting.by_ref().take(TOGETHER_MAX).collect();
            let result = self.extend(&chunk).await;
            // When one task's end spoils the entry for the others of its chunk, each goes alone.
            if matches!(result, Err(AppendError::Conflict(_) | AppendError::Late))
                && chunk.len() > 1
            {
                for one in chunk {
                    let result = self.extend(std::slice::from_ref(&one)).await;
                    let _caller_gone = one.done.send(result);
                }
            } else {
                for one in chunk {
                    let _caller_gone = one.done.send(result.clone());
                }
            }
        }
    }

    async fn extend(&self, chunk: &[Waiting]) -> Result<(), AppendError> {
        let now = self.now();
        let mut leases = Vec::new();
        let (mut moves, mut read_set) = (Vec::new(), Vec::new());
        let mut not_after: Option<Timestamp> = None;
        for waiting in chunk {
            let id = waiting.task;
            let Some(opened) = self.state.task(&id).map(|task| task.opened.clone()) else {
                continue;
            };
            let task_reads = self.task_read_set(&opened);
            let Some(task) = self.state.task(&id).filter(|task| self.runs(task, now)) else {
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
            moves.push((Stream::Lease(id), lease.version));
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
            ..Append::one(Event::LeasesExtended(LeasesExtended { leases }), moves)
        };
        self.journal.append(append).await.map(|_| ())
    }
}

/// When the task ends unless it is kept alive.
fn lease_of(task: &Task) -> Timestamp {
    let deadline = task.opened.deadline;
    task.lease.map_or(deadline, |l| l.until.min(deadline))
}
