//! Background maintenance: journals expirations that are already enforced, retries unwritten revocations, prunes caches.
//!
//! Expiry takes effect by the clock; its entries inform feeds and people, and decide nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Broker;
use super::governance::disallowed::{EndOfTask, close_all, end_all};
use crate::journal::AppendError;
use crate::model::*;
use crate::state::{Deadline, Read, StoredStatus};

/// Time between two maintenance ticks.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two looks for agreed policy bundles that are not in force: the vote that completes the agreement does it at once.
const AGREED_INTERVAL: Duration = Duration::from_secs(5);

/// Ends a task with the one that started it.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Time between two looks at what waiting access requests require, in milliseconds.
const REASSESS_INTERVAL_MS: i64 = 2_000;
/// Access requests looked at in one interval.
const REASSESSED_MAX: usize = 512;

/// How far the looks at waiting access requests have come.
#[derive(Debug)]
pub(super) struct ReassessProgress {
    at: Timestamp,
    /// The last one looked at; absent before the first.
    last: Option<AccessRequestId>,
}

impl Default for ReassessProgress {
    fn default() -> Self {
        Self {
            at: Timestamp::from_millis(0),
            last: None,
        }
    }
}

/// Deadlines handled in one tick.
const DUE_PER_TICK_MAX: usize = 512;

impl Broker {
    /// Puts agreed policy bundles in force until the journal stops: beside the maintenance that no apply may hold up.
    async fn run_agreed(self: Arc<Self>) {
        let tail = self.journal.head();
        while !tail.borrow().failed {
            tokio::time::sleep(AGREED_INTERVAL).await;
            self.apply_all_agreed().await;
        }
    }

    /// Runs until the journal stops.
    pub async fn run_maintenance(self: Arc<Self>) {
        let tail = self.journal.head();
        let agreed = tokio::spawn(Arc::clone(&self).run_agreed());
        let _stops_with_this = AbortOnDrop(agreed.abort_handle());
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
        let reassessed = self.reassess_waiting(now).await;
        let restarted = self.restart_delays(now).await;
        expired
            .and(flushed)
            .and(enforced)
            .and(counted)
            .and(reassessed)
            .and(restarted)
    }

    /// Puts on record what waiting access requests require now, where time has changed it, some of them at each interval.
    async fn reassess_waiting(&self, now: Timestamp) -> Result<(), AppendError> {
        let ids = {
            let mut progress = self.lock(&self.reassessed);
            if now.since(progress.at).abs() < REASSESS_INTERVAL_MS {
                return Ok(());
            }
            progress.at = now;
            let all = self.show().unclosed_requests();
            let first = progress
                .last
                .map_or(0, |last| all.partition_point(|id| *id <= last));
            let some: Vec<AccessRequestId> = all
                .get(first..)
                .unwrap_or_default()
                .iter()
                .take(REASSESSED_MAX)
                .copied()
                .collect();
            // From the start again after the last one.
            progress.last = some
                .last()
                .copied()
                .filter(|_| some.len() == REASSESSED_MAX);
            some
        };
        self.reassess_requests(ids).await.outcome()
    }

    /// Revokes what the policy in force no longer allows, once after each change of it.
    async fn enforce_changed_policy(&self) -> Result<(), AppendError> {
        if !self.is_policy_enforced()
            && let Ok(_alone) = self.policy_lock.try_lock()
        {
            self.revoke_disallowed().await?;
        }
        Ok(())
    }

    /// Journals the expirations that are due. One that fails keeps none of the others from it; the error is the first one's.
    async fn expire_due(&self, now: Timestamp) -> Result<(), AppendError> {
        let mut tasks = BTreeSet::new();
        let mut requests = Vec::new();
        for due in self.preview(|read| read.candidates_due(now, DUE_PER_TICK_MAX)) {
            match due {
                Deadline::Task(id) | Deadline::Lease(id) => {
                    tasks.insert(id);
                }
                Deadline::AccessRequest(id) => requests.push(id),
            }
        }
        let closed = self.expire_requests(&requests, now).await;
        let tasks: Vec<TaskId> = tasks.into_iter().collect();
        let judge = |read: &Read, id: &TaskId| {
            // A heartbeat that was journalled in time, however late it is read here, keeps the task.
            let task = read.task(id).filter(|task| task.ended.is_none())?;
            Some(EndOfTask::by(task.expired_cause(now)?, &task))
        };
        let ended = self.sweep(&tasks, judge, end_all).await;
        closed.and(ended.outcome())
    }

    /// Journals that these access requests have expired.
    async fn expire_requests(
        &self,
        ids: &[AccessRequestId],
        now: Timestamp,
    ) -> Result<(), AppendError> {
        // Counted as expired: those that no quorum had decided by then.
        let undecided: BTreeMap<AccessRequestId, (Timestamp, Timestamp)> = ids
            .iter()
            .filter_map(|id| {
                self.preview(|read| {
                    let request = read.access_request(id)?;
                    let at = request.opened.expires_at;
                    let decided = self.was_decided_before(read, &request, at);
                    (!decided).then_some((*id, (request.opened_at, at)))
                })
            })
            .collect();
        let judge = |read: &Read, id: &AccessRequestId| {
            let request = read.access_request(id)?;
            // The end of a task closes its requests: they need no entry of their own.
            let task = request.opened.task().map(|task| read.task(&task));
            let has_expired = request.status == StoredStatus::Pending
                && now >= request.opened.expires_at
                && task.is_none_or(|task| task.is_some_and(|task| task.ended.is_none()));
            has_expired.then_some(*id)
        };
        let swept = self
            .sweep(ids, judge, |ids| close_all(ids, CloseCause::Expired))
            .await;
        for id in &swept.recorded {
            if let Some((opened_at, at)) = undecided.get(id) {
                self.count_wait("expired", *opened_at, *at);
            }
        }
        swept.outcome()
    }

    /// Prunes the caches: expired proofs and sessions, and cached state of tasks that ended.
    fn prune_caches(&self, now: Timestamp) {
        self.replay_cache.prune(now);
        self.open_task_replay_cache.prune(now);
        self.sessions.prune(now);
        let ended = |task: &TaskId| self.show().task(task).is_none_or(|t| !t.is_running(now));
        self.attestations.retain(|task| !ended(task));
        self.lock(&self.attached).retain(|task, _| !ended(task));
        self.last_denials.retain(|(task, _)| !ended(task));
    }
}
