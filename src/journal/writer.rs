//! The journal's writer thread: group commit. Check, write, commit, apply, answer; many appends share one fsync.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::occ::Batch;
use super::sqlite::{Checkpointer, Engine, Head, StoredEntry, WriteError};
use super::{
    Append, AppendError, AppendRequest, Committed, CrashHook, Fold, Health, IllegalEntry,
    JournalHead, JournalOptions, OpenError, WriterRequest, replay,
};
use crate::audit::{BlockRoots, JournalVerifier, leaf_hash};
use crate::clock::Clock;
use crate::model::{ENTRY_BYTES_MAX, ENTRY_FORM, Entry, Event, Stream, Timestamp};

/// A point where a crash test stops the writer, as if the process died there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// Appends checked, nothing written. A crash here leaves nothing.
    Checked,
    /// Rows written, not committed. A crash here leaves nothing: SQLite rolls back.
    Written,
    /// Committed, not applied. A crash here leaves entries that replay finds: a grant whose token no client received, which
    /// a retry with the same idempotency key returns.
    Committed,
    /// Applied to state, appends not answered. As above.
    Published,
}

/// Most appends that share one commit.
const BATCH_MAX: usize = 1_024;
/// Pause between checkpoints of the WAL.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Writer {
    engine: Engine,
    head: Head,
    /// For inclusion proofs: of every entry that is durable.
    blocks: Arc<Mutex<BlockRoots>>,
    last_at: Timestamp,
    clock: Clock,
    latest_seen: Arc<AtomicI64>,
    crash_hook: Option<CrashHook>,
    disk_full: Option<Arc<AtomicBool>>,
    closing: Arc<AtomicBool>,
    health: Arc<Health>,
}

/// An append that passed the check, with its entries.
struct Accepted {
    request: AppendRequest,
    committed: Vec<Committed>,
}

impl Writer {
    /// Opens the engine and replays: every entry is verified before it is applied.
    pub(super) fn open(
        dir: &Path,
        options: &JournalOptions,
        fold: &mut dyn Fold,
    ) -> Result<Self, OpenError> {
        let engine = Engine::open(dir, options.faults.pages_max)?;
        let mut verifier = JournalVerifier::default();
        let mut last_at = Timestamp::from_millis(0);
        let mut blocks = BlockRoots::default();
        engine.each(|stored, engine| {
            let checked = replay::check(&stored, &mut verifier, fold, |hash| engine.blob(hash))?;
            if let Event::EpochStarted(started) = &checked.entry.event
                && started.realm != options.realm
            {
                return Err(OpenError::RealmMismatch {
                    expected: options.realm.clone(),
                    found: started.realm.clone(),
                });
            }
            last_at = checked.entry.at;
            blocks.push(stored.leaf);
            fold.apply(&checked);
            Ok(())
        })?;
        let head = engine.head()?.unwrap_or_default();
        verifier.finish(head.checkpoint(), head.epoch)?;
        let closing = Arc::new(AtomicBool::new(false));
        if !options.faults.keep_wal {
            checkpoint_until(Checkpointer::open(dir)?, closing.clone())?;
        }
        Ok(Self {
            engine,
            head,
            blocks: Arc::new(Mutex::new(blocks)),
            last_at,
            clock: options.clock.clone(),
            latest_seen: options.latest_seen.clone(),
            crash_hook: options.faults.crash_hook.clone(),
            disk_full: options.faults.disk_full.clone(),
            closing,
            health: Arc::default(),
        })
    }

    pub(super) fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    pub(super) fn blocks(&self) -> Arc<Mutex<BlockRoots>> {
        self.blocks.clone()
    }

    pub(super) fn is_new(&self) -> bool {
        self.head.tree.size() == 0
    }

    pub(super) fn head(&self) -> JournalHead {
        JournalHead {
            epoch: self.head.epoch,
            checkpoint: self.head.checkpoint(),
            failed: false,
        }
    }

    /// Commits one append before the writer's thread runs.
    pub(super) fn commit_one(
        &mut self,
        append: Append,
        fold: &mut dyn Fold,
    ) -> Result<(), AppendError> {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        let running = self
            .commit(vec![AppendRequest { append, reply }], fold)
            .is_some();
        match answer.try_recv() {
            Ok(result) => result.map(|_| ()),
            Err(_) if running => Ok(()),
            Err(_) => Err(AppendError::OutcomeUnknown),
        }
    }

    /// Commits batches until every handle is dropped or a commit's outcome is unknown.
    pub(super) fn run(
        mut self,
        mut queue: mpsc::Receiver<WriterRequest>,
        mut fold: Box<dyn Fold>,
        head: watch::Sender<JournalHead>,
    ) {
        while let Some(first) = queue.blocking_recv() {
            let (mut appends, mut probes) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    WriterRequest::Append(append) => appends.push(append),
                    WriterRequest::Probe(reply) => probes.push(reply),
                }
                next = (appends.len() < BATCH_MAX)
                    .then(|| queue.try_recv().ok())
                    .flatten();
            }
            self.health.begin_batch(self.clock.uptime());
            let mut running = self.commit_and_notify(appends, &mut *fold, &head);
            if running.is_some() && !probes.is_empty() {
                running = self.probe();
            }
            self.health.end_batch();
            if running.is_none() {
                // INVARIANT (unknown outcome ends the process): nothing is written after this point; replay decides.
                head.send_modify(|h| h.failed = true);
                break;
            }
            for probe in probes {
                let _gone = probe.send(());
            }
        }
        // Requests that the writer has not begun leave nothing, and are told so.
        queue.close();
        while let Ok(request) = queue.try_recv() {
            if let WriterRequest::Append(AppendRequest { reply, .. }) = request {
                let _gone = reply.send(Err(AppendError::Closed));
            }
        }
        self.closing.store(true, Ordering::Relaxed);
    }

    fn commit_and_notify(
        &mut self,
        requests: Vec<AppendRequest>,
        fold: &mut dyn Fold,
        head: &watch::Sender<JournalHead>,
    ) -> Option<()> {
        let answers = self.commit(requests, fold)?;
        head.send_replace(self.head());
        for (reply, entry) in answers {
            // A caller that disconnected finds its append by a retry with the same idempotency key.
            let _gone = reply.send(entry.ok_or(AppendError::NotCanonical));
        }
        Some(())
    }

    /// Commits one batch. `None`: the writer must stop, by an injected crash or an unknown outcome.
    #[expect(
        clippy::type_complexity,
        reason = "the pairs are answered at once by the one caller"
    )]
    fn commit(
        &mut self,
        requests: Vec<AppendRequest>,
        fold: &mut dyn Fold,
    ) -> Option<
        Vec<(
            tokio::sync::oneshot::Sender<Result<Arc<Entry>, AppendError>>,
            Option<Arc<Entry>>,
        )>,
    > {
        let at = self.now();
        let mut batch = Batch::default();
        let mut head = self.head.clone();
        let mut rows = Vec::new();
        let mut blobs = Vec::new();
        let mut accepted: Vec<Accepted> = Vec::new();
        for request in requests {
            match self.prepare(&request.append, fold, &mut batch, &head, at) {
                Err(error) => {
                    let _gone = request.reply.send(Err(error));
                }
                Ok(entries) => {
                    let mut committed = Vec::with_capacity(entries.len());
                    for (entry, text) in entries {
                        let leaf = leaf_hash(text.as_bytes());
                        head.tree.push(leaf);
                        rows.push(StoredEntry {
                            index: entry.index,
                            leaf,
                            text,
                        });
                        committed.push(Committed {
                            entry: Arc::new(entry),
                            blobs: request.append.blobs.clone(),
                        });
                    }
                    blobs.extend(request.append.blobs.iter().cloned());
                    accepted.push(Accepted { request, committed });
                }
            }
        }
        if accepted.is_empty() {
            return Some(Vec::new());
        }
        self.crash_point(CrashPoint::Checked)?;
        if let Err(error) = self.engine.write(&rows, &blobs, &self.head, &head) {
            return self.fail_all(&error, accepted, false);
        }
        self.crash_point(CrashPoint::Written)?;
        if let Err(error) = self.engine.commit() {
            return self.fail_all(&error, accepted, true);
        }
        self.health.succeeded(self.clock.uptime());
        self.crash_point(CrashPoint::Committed)?;
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().for_each(|row| blocks.push(row.leaf));
        drop(blocks);
        self.head = head;
        self.last_at = at;
        let mut answers = Vec::with_capacity(accepted.len());
        for Accepted { request, committed } in accepted {
            for one in &committed {
                fold.apply(one);
            }
            answers.push((request.reply, committed.first().map(|c| c.entry.clone())));
        }
        self.crash_point(CrashPoint::Published)?;
        Some(answers)
    }

    /// The time of the next entries: never before an entry, nor before a time that a decision was made at.
    fn now(&self) -> Timestamp {
        let now = self.clock.now().max(self.last_at).millis();
        let before = self.latest_seen.fetch_max(now, Ordering::SeqCst);
        Timestamp::from_millis(before.max(now))
    }

    /// Checks one append and serializes its entries.
    fn prepare(
        &self,
        append: &Append,
        fold: &dyn Fold,
        batch: &mut Batch,
        head: &Head,
        at: Timestamp,
    ) -> Result<Vec<(Entry, String)>, AppendError> {
        if self.is_disk_full_injected() {
            self.health.disk_full();
            return Err(AppendError::DiskFull);
        }
        let next = head.tree.size();
        let mut entries = Vec::with_capacity(append.events.len());
        for (place, (index, new)) in (next..).zip(&append.events).enumerate() {
            // What the entries so far advance is in their write sets, at the version that was read.
            let so_far = append.events.iter().take(place + 1);
            let advanced: HashSet<&Stream> = so_far
                .flat_map(|event| event.write_set.iter().map(|(stream, _)| stream))
                .collect();
            let read = append.read_set.iter();
            let entry = Entry {
                v: ENTRY_FORM,
                epoch: head.epoch,
                index,
                at,
                write_set: new.write_set.clone(),
                read_set: read
                    .filter(|(stream, _)| !advanced.contains(stream))
                    .cloned()
                    .collect(),
                claims: new.claims.clone(),
                event: new.event.clone(),
            };
            let text = entry.canonical().map_err(|_| AppendError::NotCanonical)?;
            if text.len() > ENTRY_BYTES_MAX {
                return Err(AppendError::TooLarge);
            }
            entries.push((entry, text));
        }
        // After the forms, because acceptance changes the batch: an append that cannot be serialized must not. Before the check
        // of the entries: what they rest on is then as it was read, also where an append before them in the batch is not applied.
        batch.accept(fold, append, next, at)?;
        for (entry, _) in &entries {
            fold.check(entry)
                .map_err(|illegal| report(illegal, entry))?;
        }
        Ok(entries)
    }

    /// Fails every append of a batch that could not be written. The writer goes on only if the database is surely unchanged.
    fn fail_all<T>(
        &mut self,
        error: &WriteError,
        accepted: Vec<Accepted>,
        at_commit: bool,
    ) -> Option<Vec<T>> {
        let answer = self.undo_failed(error, at_commit);
        for Accepted { request, .. } in accepted {
            let _gone = request.reply.send(Err(answer.clone()));
        }
        (answer != AppendError::OutcomeUnknown).then(Vec::new)
    }

    /// Rolls back a transaction that failed, and says what is known of it.
    fn undo_failed(&mut self, error: &WriteError, at_commit: bool) -> AppendError {
        let full = error.is_disk_full();
        let known = self.engine.undo() && (full || !at_commit);
        tracing::error!(%error, at_commit, known, "journal commit failed");
        if full {
            self.health.disk_full();
        } else {
            self.health.write_failed();
        }
        match (known, full) {
            (true, true) => AppendError::DiskFull,
            (true, false) => AppendError::WriteFailed,
            (false, _) => AppendError::OutcomeUnknown,
        }
    }

    /// Commits a transaction that leaves nothing. `None`: the writer must stop, as after any commit that failed otherwise than
    /// for want of space.
    fn probe(&mut self) -> Option<()> {
        if self.is_disk_full_injected() {
            self.health.disk_full();
            return Some(());
        }
        let failed = match self.engine.write_probe() {
            Err(error) => Some((error, false)),
            Ok(()) => self.engine.commit().err().map(|error| (error, true)),
        };
        match failed {
            None => {
                self.health.succeeded(self.clock.uptime());
                Some(())
            }
            Some((error, at_commit)) => {
                let answer = self.undo_failed(&error, at_commit);
                (answer != AppendError::OutcomeUnknown).then_some(())
            }
        }
    }

    fn is_disk_full_injected(&self) -> bool {
        self.disk_full
            .as_ref()
            .is_some_and(|full| full.load(Ordering::SeqCst))
    }

    fn crash_point(&self, point: CrashPoint) -> Option<()> {
        match &self.crash_hook {
            Some(stop) if stop(point) => None,
            _ => Some(()),
        }
    }
}

/// A decision that its entry's kind does not permit is a fault of this program: it is logged, and the gate stays closed.
fn report(illegal: IllegalEntry, entry: &Entry) -> AppendError {
    tracing::error!(%illegal, read_set = ?entry.read_set, write_set = ?entry.write_set, "refused to write an illegal entry");
    AppendError::Illegal(illegal)
}

/// Moves committed pages out of the WAL, on its own thread, until `stop` is set.
fn checkpoint_until(checkpointer: Checkpointer, stop: Arc<AtomicBool>) -> Result<(), OpenError> {
    let run = move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(CHECKPOINT_EVERY);
            // A failed checkpoint is retried; until then the WAL holds the pages.
            if let Err(error) = checkpointer.run() {
                tracing::warn!(%error, "WAL checkpoint failed; will retry");
            }
        }
    };
    match std::thread::Builder::new()
        .name("checkpoint".to_owned())
        .spawn(run)
    {
        Ok(_) => Ok(()),
        Err(source) => Err(OpenError::Io {
            what: "start the checkpoint thread".to_owned(),
            source,
        }),
    }
}
