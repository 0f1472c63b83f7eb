//! Outage: a broker that was stopped does not end tasks whose heartbeat it could not have heard.

use std::time::Duration;

use crate::broker::Broker;
use crate::journal::AppendError;
use crate::model::*;
use crate::state::{Draft, Read};

/// Longest outage after which tasks get another heartbeat, in milliseconds.
const OUTAGE_MAX_MS: i64 = 300_000;
/// Longest wait for the disk when the broker stops.
const STOP_MARK_TIMEOUT: Duration = Duration::from_secs(1);

impl Broker {
    /// Gives the tasks whose heartbeat ran out while no broker served one more heartbeat, and those that have less of it left
    /// than the outage took. At a start, before any call is answered.
    ///
    /// INVARIANT (a missed heartbeat that was answered is final): only a clean stop leaves a mark, made after the last answer,
    /// and a lease that ended before it stays ended. Without a mark, as after a crash, with one that the journal or the clock
    /// contradicts, and after more than five minutes nothing is extended. Deadlines never move.
    ///
    /// A crash before the first append leaves the mark, so that the next start decides anew. After it, that start finds leases
    /// extended, and a journal that contradicts the mark: heartbeats that no entry has extended by then count as missed. An append
    /// whose outcome is unknown fails the start.
    pub(in crate::broker) async fn extend_leases_after_outage(&self) -> Result<(), AppendError> {
        let now = self.now();
        let Some(served_until) = self.stop_mark.read() else {
            return Ok(());
        };
        let outage = now.since(served_until);
        // The journal was written later than the mark says that a broker served.
        let is_contradicted = served_until < self.last_entry_before_start;
        if is_contradicted || !(0..=OUTAGE_MAX_MS).contains(&outage) {
            tracing::info!(%served_until, "missed heartbeats count: the last broker's mark is not usable");
            return Ok(());
        }
        let extended = |read: &Read, id: &TaskId| {
            let task = read.task(id).filter(|task| task.ended.is_none())?;
            let lease = task.lease.map(|lease| lease.until)?;
            let seconds = task.opened.heartbeat_seconds?;
            let until = now.plus_secs(seconds).min(task.opened.deadline);
            let ran_out_unheard = served_until <= lease && lease <= now.plus_millis(outage);
            (ran_out_unheard && now < task.opened.deadline && lease < until).then_some((*id, until))
        };
        let open = self.show().open_tasks().into_iter();
        let candidates: Vec<TaskId> = open
            .map(|task| task.opened.task)
            .filter(|id| self.preview(|read| extended(read, id)).is_some())
            .collect();
        let draft = |leases| {
            Draft::one(Event::LeasesExtended(LeasesExtended {
                leases,
                served_until: Some(served_until),
            }))
        };
        let swept = self.sweep(&candidates, extended, draft).await;
        swept.outcome()?;
        if !swept.is_complete {
            // Nothing else appends before the broker serves.
            return Err(AppendError::Busy);
        }
        if !candidates.is_empty() {
            tracing::info!(tasks = swept.recorded.len(), %served_until, "tasks got another heartbeat: no broker served");
        }
        Ok(())
    }

    /// Removes the mark of the last stop: this broker answers calls from now on.
    pub(in crate::broker) fn start_serving(&self) -> std::io::Result<()> {
        self.stop_mark.remove()
    }

    /// Records that this broker has answered its last call: then the heartbeats that run out from now on are not held against
    /// their tasks, if a broker serves again within five minutes. A disk that does not answer within a second is not waited
    /// for.
    pub async fn stop_serving(&self) {
        let (mark, until) = (self.stop_mark.clone(), self.now().plus_millis(1));
        let (written, outcome) = tokio::sync::oneshot::channel();
        // A thread of its own: the runtime would wait for a blocking task when the process ends.
        let writer = std::thread::Builder::new().name("stop mark".to_owned());
        let outcome = match writer.spawn(move || written.send(mark.write(until))) {
            Err(error) => Err(error),
            Ok(_detached) => match tokio::time::timeout(STOP_MARK_TIMEOUT, outcome).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            },
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "the time of this stop cannot be written: heartbeats missed from now on count");
        }
    }
}
