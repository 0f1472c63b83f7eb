//! Heartbeats: extending the lease of a task.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::broker::sweep::is_of_one_candidate;
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::AppendError;
use crate::model::*;
use crate::state::{Draft, Read};

/// How long heartbeats are gathered before one entry records them.
const LEASE_BATCH_WINDOW: Duration = Duration::from_millis(20);
/// Heartbeats that are handled one after the other, and so share the time of one append.
const LEASES_PER_ENTRY_MAX: usize = 12;
/// Streams that a round reads, beside the leases it extends, before it looks at no further task: with the eight of one more task they
/// are no more than an entry may rest on.
const LEASE_READS_MAX: usize = 56;

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
        let (task, possession) = self.task_possession(call, &id, None, None, self.now())?;
        let Some(seconds) = task.opened.heartbeat_seconds else {
            let message = "the task was opened without a heartbeat";
            return Err(self.refuse(call.method, Reason::Malformed, message));
        };
        let deadline = self.journal.append_deadline();
        loop {
            let answer = self
                .transaction_until(deadline, call.method)
                .run(|read| {
                    let now = self.now();
                    let task = self.held_task(read, call, &id, &possession)?;
                    if !self.is_running(&task, now) {
                        return Err(self.refuse_ended(call.method, &task, now));
                    }
                    let until = task.expires_at();
                    let left = until.since(now);
                    let is_fresh = left.saturating_mul(2) >= seconds.saturating_mul(1000);
                    let is_enough = is_fresh || until >= task.opened.deadline;
                    Ok(Step::Answer(is_enough.then_some(until)))
                })
                .await?;
            if let Some(until) = answer.value {
                return Ok(until);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(self.refuse_append(call.method, &AppendError::Busy));
            }
            let extended = tokio::time::timeout_at(deadline, self.heartbeat(id));
            match extended
                .await
                .unwrap_or(Ok(Err(AppendError::OutcomeUnknown)))
            {
                // The next round reads the result from the record: extended, ended, or changed by another append.
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.refuse_append(call.method, &error)),
                // The batch was cut, before or after its append.
                Err(_gone) => {
                    let error = AppendError::OutcomeUnknown;
                    return Err(self.refuse_append(call.method, &error));
                }
            }
        }
    }

    /// Hands a heartbeat to the next batch.
    fn heartbeat(self: &Arc<Self>, task: TaskId) -> oneshot::Receiver<Result<(), AppendError>> {
        let (reply, receiver) = oneshot::channel();
        let mut pending = self.lock(&self.pending_heartbeats);
        pending.push(PendingHeartbeat { task, reply });
        if pending.len() == 1 {
            // Spawned: the other heartbeats of the batch must not depend on the first caller's connection.
            tokio::spawn(Arc::clone(self).extend_batch());
        }
        receiver
    }

    /// Extends the leases of the heartbeats gathered so far: entries that share one commit.
    async fn extend_batch(self: Arc<Self>) {
        tokio::time::sleep(LEASE_BATCH_WINDOW).await;
        let mut pending = std::mem::take(&mut *self.lock(&self.pending_heartbeats));
        while !pending.is_empty() {
            let rest = pending.split_off(pending.len().min(LEASES_PER_ENTRY_MAX));
            let chunk = std::mem::replace(&mut pending, rest);
            tokio::spawn(Arc::clone(&self).extend_chunk(chunk));
        }
    }

    /// Extends the leases of a chunk, by one entry where that rests on no more than an entry may, and within the time of one append. A
    /// task that moves meanwhile makes the whole entry conflict: then each lease of it is extended by its own.
    async fn extend_chunk(self: Arc<Self>, mut chunk: Vec<PendingHeartbeat>) {
        let deadline = self.journal.append_deadline();
        // How many of the next leases are extended alone.
        let mut alone = 0_usize;
        while !chunk.is_empty() {
            let most = if alone > 0 { 1 } else { chunk.len() };
            let next = chunk.iter().take(most).map(|heartbeat| heartbeat.task);
            let tasks: Vec<TaskId> = next.collect();
            let mut looked_at = 1;
            let tried = self
                .try_append_until(deadline, |read| {
                    let extension = self.extension(read, &tasks);
                    looked_at = extension.looked_at.max(1);
                    extension.draft
                })
                .await;
            if most > 1 && looked_at > 1 && is_of_one_candidate(&tried) {
                alone = looked_at;
                continue;
            }
            alone = alone.saturating_sub(looked_at);
            let outcome = tried.map(|_| ());
            for heartbeat in chunk.drain(..looked_at.min(chunk.len())) {
                let _caller_gone = heartbeat.reply.send(outcome.clone());
            }
        }
    }

    /// The entry that extends the leases of those of the first of these tasks that run and have less left than a heartbeat gives.
    fn extension(&self, read: &Read, tasks: &[TaskId]) -> Extension {
        let now = self.now();
        let mut leases: Vec<(TaskId, Timestamp)> = Vec::new();
        let mut not_after: Option<Timestamp> = None;
        let mut looked_at = 0;
        for id in tasks {
            // A task that is left out counts as much as one that is extended.
            if read.len() > LEASE_READS_MAX + leases.len() {
                break;
            }
            looked_at += 1;
            let task = read.task(id).filter(|task| self.is_running(task, now));
            let lease = task.and_then(|task| {
                let until = now.plus_secs(task.opened.heartbeat_seconds?);
                Some((task.lease?.until, until.min(task.opened.deadline)))
            });
            let Some((ends, until)) = lease.filter(|(ends, until)| ends < until) else {
                continue;
            };
            if leases.iter().any(|(task, _)| task == id) {
                continue;
            }
            leases.push((*id, until));
            // INVARIANT (a missed heartbeat is final): an extension is durable before the lease it extends has ended.
            not_after = Some(not_after.map_or(ends, |t| t.min(ends)));
        }
        let draft = not_after.map(|not_after| {
            let event = Event::LeasesExtended(LeasesExtended {
                leases,
                served_until: None,
            });
            Draft::one(event).not_after(not_after)
        });
        Extension { draft, looked_at }
    }
}

/// What a round makes of the first of some heartbeats.
struct Extension {
    draft: Option<Draft>,
    /// Number of heartbeats it looked at.
    looked_at: usize,
}
