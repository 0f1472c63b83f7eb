//! Outage: a broker that was away does not end tasks whose heartbeat it could not have heard.

use std::sync::Arc;

use crate::broker::{Broker, TASKS_PER_ENTRY_MAX};
use crate::journal::{Append, AppendError, NewEvent};
use crate::model::*;
use crate::state::TaskRecord;

/// Longest outage after which tasks get another heartbeat, in milliseconds.
const OUTAGE_MAX_MS: i64 = 300_000;
/// How far the mark of the last broker may lie ahead of the clock, in milliseconds: it is written two seconds ahead.
const MARK_AHEAD_MAX_MS: i64 = 2_000;

impl Broker {
    /// Gives the tasks whose heartbeat ran out while no broker served one more heartbeat, and those that have less of it left
    /// than the outage took. At a start, before any call is answered.
    ///
    /// INVARIANT (a missed heartbeat that was answered is final): a lease that ended before the mark of the last broker stays
    /// ended, because that broker may have said so. Without a mark, with one that the journal or the clock contradicts, and
    /// after more than five minutes nothing is extended. Deadlines never move.
    ///
    /// A crash before the append leaves the mark, so that the next start decides anew; after it, leases that this start's
    /// successor finds extended.
    pub(in crate::broker) async fn extend_leases_after_outage(&self) -> Result<(), AppendError> {
        let now = self.now();
        let Some(served_until) = self.serving_mark.last() else {
            return Ok(());
        };
        let outage = now.since(served_until);
        // The journal was written later than the mark says that a broker served.
        let is_contradicted = served_until < self.last_entry_before_start;
        if is_contradicted || !(-MARK_AHEAD_MAX_MS..=OUTAGE_MAX_MS).contains(&outage) {
            tracing::info!(%served_until, "missed heartbeats count: the last broker's mark is not usable");
            return Ok(());
        }
        let extended = |task: &TaskRecord| {
            let lease = task.lease.map(|lease| lease.until)?;
            let seconds = task.opened.heartbeat_seconds?;
            let until = now.plus_secs(seconds).min(task.opened.deadline);
            let ran_out_unheard = served_until <= lease && lease <= now.plus_millis(outage);
            (ran_out_unheard && now < task.opened.deadline && lease < until).then_some(until)
        };
        let mut events = Vec::new();
        let tasks: Vec<_> = self
            .state
            .open_tasks()
            .into_iter()
            .filter_map(|task| extended(&task).map(|until| (task, until)))
            .collect();
        for chunk in tasks.chunks(TASKS_PER_ENTRY_MAX) {
            let stream = |(task, _): &(Arc<TaskRecord>, Timestamp)| {
                let version = task.lease.map_or(0, |lease| lease.version);
                (Stream::Lease(task.opened.task), version)
            };
            events.push(NewEvent {
                event: Event::LeasesExtended(LeasesExtended {
                    leases: chunk
                        .iter()
                        .map(|(task, until)| (task.opened.task, *until))
                        .collect(),
                    served_until: Some(served_until),
                }),
                write_set: chunk.iter().map(stream).collect(),
            });
        }
        if events.is_empty() {
            return Ok(());
        }
        let append = Append {
            events,
            ..Append::default()
        };
        self.journal.append(append).await?;
        tracing::info!(tasks = tasks.len(), %served_until, "tasks got another heartbeat: no broker served");
        Ok(())
    }

    /// Writes the first mark: this broker answers calls from now on.
    pub(in crate::broker) fn start_serving(&self) {
        if let Err(error) = self.serving_mark.start(self.now()) {
            warn_unwritten(&error);
        }
    }

    /// Writes the mark ahead of a moment that it does not cover yet.
    #[cold]
    pub(in crate::broker) fn move_serving_mark(&self, now: Timestamp) {
        if let Err(error) = self.serving_mark.ensure_covers(now) {
            warn_unwritten(&error);
        }
    }

    /// Renews the mark, off the threads that answer calls.
    pub(in crate::broker) async fn renew_serving_mark(&self, now: Timestamp) {
        if !self.serving_mark.is_due(now) {
            return;
        }
        let mark = self.serving_mark.clone();
        match tokio::task::spawn_blocking(move || mark.renew(now)).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => warn_unwritten(&error),
        }
    }

    /// Records that this broker answers no more calls: then the heartbeats that run out from now on are not held against their
    /// tasks, if a broker serves again within five minutes.
    pub fn stop_serving(&self) {
        if let Err(error) = self.serving_mark.stop(self.now()) {
            warn_unwritten(&error);
        }
    }
}

fn warn_unwritten(error: &std::io::Error) {
    tracing::warn!(%error, "the time until which this broker serves cannot be written: after a crash, missed heartbeats count");
}
