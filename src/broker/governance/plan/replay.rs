//! The decisions on record of some days, decided again by the bundle in force and by another one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{NICENESS, PlanFailure, PlanInput, PlanJob};
use crate::journal::{Journal, JournalReader, OpenError};
use crate::model::*;
use crate::policy::replay::{DecisionEntry, RecordedDecision, Replay};

/// The entries of a journal up to a moment, for the threads of one plan. Each has a connection of its own.
pub(super) struct JournalScan {
    readers: Vec<JournalReader>,
    /// The index of the first entry that is left out.
    head: u64,
}

impl JournalScan {
    pub(super) fn new(journal: &Journal, head: u64) -> Result<Self, OpenError> {
        let readers: Result<Vec<_>, _> = (0..THREADS).map(|_| journal.new_reader()).collect();
        Ok(Self {
            readers: readers?,
            head,
        })
    }

    /// Decides the decisions again, in several threads: each takes some of the batches, the newest first.
    pub(super) fn replay(
        self,
        job: &Arc<PlanJob>,
        input: &PlanInput,
    ) -> Result<ReplaySummary, PlanFailure> {
        let shares: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .zip(&self.readers)
                .map(|(rest, reader)| {
                    let builder = std::thread::Builder::new().name("plan".to_owned());
                    let run = move || {
                        let _lowered = rustix::process::setpriority_process(None, NICENESS);
                        replay_share(reader, self.head, job, input, rest)
                    };
                    (rest, reader, builder.spawn_scoped(scope, run))
                })
                .collect();
            let joined = threads.into_iter().map(|(rest, reader, thread)| {
                // What no thread was given for, this one does.
                let share = thread.ok().and_then(|thread| thread.join().ok());
                share.unwrap_or_else(|| replay_share(reader, self.head, job, input, rest))
            });
            joined.collect()
        });
        let mut replay = Replay::new(Arc::clone(&input.base), Arc::clone(&input.candidate));
        for share in shares {
            replay.merge(share?);
        }
        let mut summary = replay.finish();
        summary.is_cut |= job.decisions.load(Ordering::Relaxed) >= DECISIONS_MAX;
        Ok(summary)
    }
}

/// The share of one thread: every batch of entries whose number leaves this rest.
fn replay_share(
    reader: &JournalReader,
    head: u64,
    job: &PlanJob,
    input: &PlanInput,
    rest: u64,
) -> Result<Replay, PlanFailure> {
    let mut replay = Replay::new(Arc::clone(&input.base), Arc::clone(&input.candidate));
    let batch = u64::from(READ_AT_ONCE);
    let mut below = head.saturating_sub(batch.saturating_mul(rest));
    while below > 0 && job.decisions.load(Ordering::Relaxed) < DECISIONS_MAX {
        if job.is_given_up() {
            return Err(PlanFailure::Cancelled);
        }
        for stored in reader.entries_below(below, READ_AT_ONCE)? {
            let entry = DecisionEntry::parse(&stored.text);
            let Some(entry) = entry.map_err(|e| PlanFailure::Input(e.to_string()))? else {
                continue;
            };
            if entry.at < job.since {
                return Ok(replay);
            }
            if let Some(decision) = RecordedDecision::of(&entry) {
                let secret = secret_of(reader, &decision)?;
                replay.add(&decision, secret.as_ref());
                job.decisions.fetch_add(1, Ordering::Relaxed);
            }
        }
        below = below.saturating_sub(batch.saturating_mul(THREADS));
    }
    Ok(replay)
}

/// The secret part of an action, where it has one that is still on record.
fn secret_of(
    reader: &JournalReader,
    decision: &RecordedDecision<'_>,
) -> Result<Option<ActionSecret>, OpenError> {
    let Some(hash) = &decision.secret else {
        return Ok(None);
    };
    let text = reader.blob(hash)?;
    Ok(text.and_then(|text| ActionSecret::from_blob(&text)))
}

/// Threads of one plan.
const THREADS: u64 = 2;
/// Entries read at once.
const READ_AT_ONCE: u32 = 512;
/// Most decisions of one plan: beyond them, older ones are left out.
const DECISIONS_MAX: u64 = 10_000_000;
