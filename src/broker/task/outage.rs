//! Outage: a broker that was stopped does not end tasks whose heartbeat it could not have heard.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Broker, TASKS_PER_ENTRY_MAX};
use crate::journal::{Append, AppendError, NewEvent};
use crate::model::*;
use crate::state::TaskRecord;

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
    /// A crash before the append leaves the mark, so that the next start decides anew; after it, leases that this start's
    /// successor finds extended. An append whose outcome is unknown fails the start.
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
