//! The one writer: check, write, commit, publish, answer. Many appends share one fsync.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::check::{Batch, Versions};
use super::sqlite::{Checkpointer, Engine, Head, StoredEntry};
use super::{Append, AppendError, Apply, Committed, OpenError, Options, Order, StopAt, Tail};
use crate::audit::{Audit, leaf_hash};
use crate::clock::Clock;
use crate::model::{ENTRY_BYTES_MAX, Entry, Event, Timestamp};

/// Where a test may stop the writer as if the process died there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Checked; nothing written. A crash here leaves nothing.
    Checked,
    /// Written, not committed. A crash here leaves nothing: SQLite rolls back.
    Written,
    /// Committed; nobody knows yet. A crash here leaves entries that replay finds: a grant whose token nobody holds,
    /// which a retry by `request_id` finds again.
    Committed,
    /// Published to state; callers not answered. As above.
    Published,
}

/// Appends that share one commit at most.
const BATCH_MAX: usize = 1_024;
/// How often committed pages move out of the WAL.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Writer {
    engine: Engine,
    versions: Versions,
    head: Head,
    last_at: Timestamp,
    clock: Clock,
    stop_at: Option<StopAt>,
    full: Option<Arc<AtomicBool>>,
    closing: Arc<AtomicBool>,
}

/// An append that passed the check, ready to be written.
struct Accepted {
    order: Order,
    committed: Vec<Committed>,
}

impl Writer {
    /// Opens the engine and replays: every entry is verified before it is applied.
    pub(super) fn open(
        dir: &Path,
        options: &Options,
        apply: &mut Apply,
    ) -> Result<Self, OpenError> {
        let engine = Engine::open(dir, options.faults.pages_max)?;
        let mut audit = Audit::default();
        let mut versions = Versions::default();
        let mut last_at = Timestamp::from_millis(0);
        engine.each(|stored, engine| {
            let entry = audit.entry(&stored.text, stored.leaf)?;
            if let Event::EpochStarted(started) = &entry.fact
                && started.realm != options.realm
            {
                return Err(OpenError::OtherRealm {
                    expected: options.realm.clone(),
                    found: started.realm.clone(),
                });
            }
            for stream in &entry.moves {
                versions.moved(stream, entry.index);
            }
            last_at = entry.at;
            let mut blobs = Vec::new();
            for hash in entry.fact.blobs() {
                blobs.extend(engine.blob(&hash)?);
            }
            apply(&Committed {
                entry: Arc::new(entry),
                blobs,
            });
            Ok(())
        })?;
        let head = engine.head()?.unwrap_or_default();
        audit.finish(head.checkpoint(), head.epoch)?;
        let closing = Arc::new(AtomicBool::new(false));
        if !options.faults.keep_wal {
            checkpoint_until(Checkpointer::open(dir)?, closing.clone())?;
        }
        Ok(Self {
            engine,
            versions,
            head,
            last_at,
            clock: options.clock.clone(),
            stop_at: options.faults.stop_at.clone(),
            full: options.faults.full.clone(),
            closing,
        })
    }

    pub(super) fn is_new(&self) -> bool {
        self.head.tree.size() == 0
    }

    pub(super) fn tail(&self) -> Tail {
        Tail {
            epoch: self.head.epoch,
            head: self.head.checkpoint(),
            failed: false,
        }
    }

    /// Appends before the writer's thread runs.
    pub(super) fn commit_one(
        &mut self,
        append: Append,
        apply: &mut Apply,
    ) -> Result<(), AppendError> {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        let carried_on = self.commit(vec![Order { append, reply }], apply).is_some();
        match answer.try_recv() {
            Ok(result) => result.map(|_| ()),
            Err(_) if carried_on => Ok(()),
            Err(_) => Err(AppendError::Closed),
        }
    }

    /// Takes orders until every handle is gone or an outcome is unknown.
    pub(super) fn run(
        mut self,
        mut inbox: mpsc::Receiver<Order>,
        mut apply: Apply,
        tail: watch::Sender<Tail>,
    ) {
        while let Some(first) = inbox.blocking_recv() {
            let mut orders = vec![first];
            while orders.len() < BATCH_MAX
                && let Ok(order) = inbox.try_recv()
            {
                orders.push(order);
            }
            match self.commit_and_tell(orders, &mut apply, &tail) {
                Some(()) => {}
                None => {
                    // INVARIANT (unknown outcome ends the process): nothing is written after this point; replay decides.
                    tail.send_modify(|t| t.failed = true);
                    break;
                }
            }
        }
        self.closing.store(true, Ordering::Relaxed);
    }

    fn commit_and_tell(
        &mut self,
        orders: Vec<Order>,
        apply: &mut Apply,
        tail: &watch::Sender<Tail>,
    ) -> Option<()> {
        let answers = self.commit(orders, apply)?;
        tail.send_replace(self.tail());
        for (reply, entry) in answers {
            // A caller that went away finds its append by asking again.
            let _gone = reply.send(entry.ok_or(AppendError::Unwritable));
        }
        Some(())
    }

    /// One batch. `None` = the writer must stop: a test's crash, or an unknown outcome.
    #[expect(
        clippy::type_complexity,
        reason = "the pairs are answered at once by the one caller"
    )]
    fn commit(
        &mut self,
        orders: Vec<Order>,
        apply: &mut Apply,
    ) -> Option<
        Vec<(
            tokio::sync::oneshot::Sender<Result<Arc<Entry>, AppendError>>,
            Option<Arc<Entry>>,
        )>,
    > {
        let at = self.clock.now().max(self.last_at);
        let mut batch = Batch::default();
        let mut head = self.head.clone();
        let mut rows = Vec::new();
        let mut blobs = Vec::new();
        let mut accepted: Vec<Accepted> = Vec::new();
        for order in orders {
            match self.prepare(&order.append, &mut batch, &head, at) {
                Err(error) => {
                    let _gone = order.reply.send(Err(error));
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
                            blobs: order.append.blobs.clone(),
                        });
                    }
                    blobs.extend(order.append.blobs.iter().cloned());
                    accepted.push(Accepted { order, committed });
                }
            }
        }
        if accepted.is_empty() {
            return Some(Vec::new());
        }
        self.pass(Step::Checked)?;
        if let Err(error) = self.engine.write(&rows, &blobs, &head) {
            return self.give_up(&error, accepted, false);
        }
        self.pass(Step::Written)?;
        if let Err(error) = self.engine.commit() {
            return self.give_up(&error, accepted, true);
        }
        self.pass(Step::Committed)?;
        self.head = head;
        self.last_at = at;
        let mut answers = Vec::with_capacity(accepted.len());
        for Accepted { order, committed } in accepted {
            for one in &committed {
                for stream in &one.entry.moves {
                    self.versions.moved(stream, one.entry.index);
                }
                apply(one);
            }
            answers.push((order.reply, committed.first().map(|c| c.entry.clone())));
        }
        self.pass(Step::Published)?;
        Some(answers)
    }

    /// Checks one append and spells its entries.
    fn prepare(
        &self,
        append: &Append,
        batch: &mut Batch,
        head: &Head,
        at: Timestamp,
    ) -> Result<Vec<(Entry, String)>, AppendError> {
        if self
            .full
            .as_ref()
            .is_some_and(|full| full.load(Ordering::SeqCst))
        {
            return Err(AppendError::Full);
        }
        let next = head.tree.size();
        let mut entries = Vec::with_capacity(append.drafts.len());
        for (index, draft) in (next..).zip(&append.drafts) {
            let entry = Entry {
                v: 1,
                epoch: head.epoch,
                index,
                at,
                moves: draft
                    .moves
                    .iter()
                    .map(|(stream, _)| stream.clone())
                    .collect(),
                read_set: append.read_set.clone(),
                fact: draft.fact.clone(),
            };
            let text = entry.canonical().map_err(|_| AppendError::Unwritable)?;
            if text.len() > ENTRY_BYTES_MAX {
                return Err(AppendError::TooLarge);
            }
            entries.push((entry, text));
        }
        // Last, because acceptance marks the batch: an append that cannot be spelled must leave no trace there.
        batch.accept(&self.versions, append, next, at)?;
        Ok(entries)
    }

    /// A batch that could not be written: refused whole when the database is surely as before, else the writer stops.
    fn give_up<T>(
        &mut self,
        error: &rusqlite::Error,
        accepted: Vec<Accepted>,
        at_commit: bool,
    ) -> Option<Vec<T>> {
        let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        let known = self.engine.undo() && (full || !at_commit);
        tracing::error!(%error, at_commit, known, "the journal could not commit");
        let answer = if known && full {
            AppendError::Full
        } else if known {
            AppendError::Closed
        } else {
            AppendError::Unknown
        };
        for Accepted { order, .. } in accepted {
            let _gone = order.reply.send(Err(answer.clone()));
        }
        known.then(Vec::new)
    }

    fn pass(&self, step: Step) -> Option<()> {
        match &self.stop_at {
            Some(stop) if stop(step) => None,
            _ => Some(()),
        }
    }
}

/// Moves committed pages out of the WAL, on a thread of its own, until told to stop.
fn checkpoint_until(checkpointer: Checkpointer, stop: Arc<AtomicBool>) -> Result<(), OpenError> {
    let run = move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(CHECKPOINT_EVERY);
            // A checkpoint that fails is tried again; the WAL holds everything meanwhile.
            if let Err(error) = checkpointer.run() {
                tracing::warn!(%error, "checkpoint put off");
            }
        }
    };
    match std::thread::Builder::new()
        .name("checkpoint".to_owned())
        .spawn(run)
    {
        Ok(_) => Ok(()),
        Err(source) => Err(OpenError::Io {
            what: "start the checkpointer".to_owned(),
            source,
        }),
    }
}
