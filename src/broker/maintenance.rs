//! Background maintenance: journals expirations that are already enforced, retries unwritten revocations, prunes caches.
//!
//! Expiry takes effect by the clock; its entries inform feeds and people, and decide nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Broker, TASKS_PER_ENTRY_MAX};
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::state::{Deadline, StoredStatus};

/// Time between two maintenance ticks.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(250);
/// Deadlines handled in one tick.
const DUE_PER_TICK_MAX: usize = 512;

impl Broker {
    /// Runs until the journal stops.
    pub async fn run_maintenance(self: Arc<Self>) {
        let tail = self.journal.head();
        let mut is_failing = false;
        loop {
            tokio::time::sleep(MAINTENANCE_INTERVAL).await;
            if tail.borrow().failed {
                self.notifier.notify_all();
                return;
            }
            // One line for an outage, not one for each tick of it.
            let outcome = self.maintenance_tick().await;
            let was_failing = std::mem::replace(&mut is_failing, outcome.is_err());
            match outcome {
                Err(error) if !was_failing => {
                    tracing::warn!(%error, "maintenance failed; will retry at each tick");
                }
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, "maintenance failed"),
            }
        }
    }

    /// One tick: caches, due expirations, pending revocations, the policy in force, the count of refusals. A step that fails
    /// keeps none of the others from running; the error is the first one's.
    pub async fn maintenance_tick(&self) -> Result<(), AppendError> {
        let now = self.now();
        self.prune_caches(now);
        // Checked at each tick, so that a clock jump is noticed while no calls come.
        let _status = self.clock_status();
        self.probe_journal().await;
        let expired = self.expire_due(now).await;
        let flushed = self.flush_pending_revocations().await;
        let enforced = self.enforce_changed_policy().await;
        let counted = self.journal_refusal_count(now).await;
        expired.and(flushed).and(enforced).and(counted)
    }

    /// Revokes what the policy in force no longer allows, once after each change of it.
    async fn enforce_changed_policy(&self) -> Result<(), AppendError> {
        if self.projections.rules().is_some_and(|rules| {
            rules.version != self.enforced_policy_version.load(Ordering::SeqCst)
        }) && let Ok(_alone) = self.policy_lock.try_lock()
        {
            self.revoke_disallowed().await?;
        }
        Ok(())
    }

    /// Journals the expirations that are due.
    async fn expire_due(&self, now: Timestamp) -> Result<(), AppendError> {
        let mut expired: BTreeMap<EndCause, Vec<TaskId>> = BTreeMap::new();
        for due in self.state.deadlines_by(now, DUE_PER_TICK_MAX) {
            match due {
                Deadline::Task(id) | Deadline::Lease(id) => {
                    let task = self.state.task(&id).filter(|t| t.ended.is_none());
                    if let Some(cause) = task.and_then(|task| task.expired_cause(now)) {
                        let ids = expired.entry(cause).or_default();
                        if !ids.contains(&id) {
                            ids.push(id);
                        }
                    }
                }
                Deadline::AccessRequest(id) => {
                    let Some(opened) = self.state.access_request(&id).map(|r| r.opened.clone())
                    else {
                        continue;
                    };
                    let read_set = self.request_read_set(&opened);
                    let Some(request) = self.state.access_request(&id).filter(|r| {
                        r.status == StoredStatus::Pending && now >= r.opened.expires_at
                    }) else {
                        continue;
                    };
                    let event = Event::AccessRequestClosed(AccessRequestClosed {
                        access_request: id,
                        cause: CloseCause::Expired,
                        voting_started: false,
                    });
                    let append = Append {
                        read_set,
                        ..Append::one(event, vec![(Stream::AccessRequest(id), request.version)])
                    };
                    let at = request.opened.expires_at;
                    let decided = self.was_decided_before(&request, at);
                    if self.try_append(append).await? && !decided {
                        self.count_wait("expired", request.opened_at, at);
                    }
                }
            }
        }
        for (cause, ids) in expired {
            for chunk in ids.chunks(TASKS_PER_ENTRY_MAX) {
                // A task that moved meanwhile makes the whole entry conflict: then each task is ended by its own.
                if !self.end_expired_tasks(cause, chunk, now).await? && chunk.len() > 1 {
                    for id in chunk {
                        self.end_expired_tasks(cause, std::slice::from_ref(id), now)
                            .await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Journals that these tasks have expired; false on a conflict.
    async fn end_expired_tasks(
        &self,
        cause: EndCause,
        ids: &[TaskId],
        now: Timestamp,
    ) -> Result<bool, AppendError> {
        let mut read_set = Vec::new();
        let (mut tasks, mut write_set) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(opened) = self.state.task(id).map(|task| task.opened.clone()) else {
                continue;
            };
            for read in self.task_read_set(&opened) {
                if !read_set.contains(&read) {
                    read_set.push(read);
                }
            }
            let Some(task) = self.state.task(id).filter(|t| t.ended.is_none()) else {
                continue;
            };
            if task.expired_cause(now) != Some(cause) {
                continue;
            }
            // A heartbeat that was journalled in time, however late it is read here, keeps the task.
            read_set.extend(task.lease.map(|l| (Stream::Lease(*id), l.version)));
            tasks.push(*id);
            write_set.push((Stream::Task(*id), task.version));
        }
        if tasks.is_empty() {
            return Ok(true);
        }
        let event = Event::TaskEnded(TaskEnded {
            tasks,
            cause,
            outcome: None,
            by: None,
        });
        let append = Append {
            read_set,
            ..Append::one(event, write_set)
        };
        self.try_append(append).await
    }

    /// Prunes the caches: expired proofs and sessions, and cached state of tasks that ended.
    fn prune_caches(&self, now: Timestamp) {
        self.replay_cache.prune(now);
        self.open_task_replay_cache.prune(now);
        self.sessions.prune(now);
        let ended = |task: &TaskId| self.state.task(task).is_none_or(|t| !t.is_running(now));
        self.attestations.retain(|task| !ended(task));
        self.lock(&self.attached).retain(|task, _| !ended(task));
        self.last_denials.retain(|(task, _)| !ended(task));
    }
}
