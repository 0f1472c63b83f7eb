//! The journal: one append-only log of entries, from which state, audit and the revocation feed are derived.
//!
//! In: an [`Append`]: events, the streams they advance (write set), the streams the decision read (read set), the counts they
//! add to (claims). Out: committed entries, in one total order, durable before the append is answered. Trusts: its directory's
//! lock and SQLite's `synchronous=FULL`. Refuses: an append with a stale version, a count at its ceiling, past its deadline, too
//! large, or of an entry that is not legal in the state before it. Never decides anything else.

mod append;
mod fold;
mod health;
mod occ;
mod replay;
mod schema;
mod sqlite;
mod stop_mark;
mod writer;

use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::audit::{AuditError, BlockRoots, Checkpoint, InclusionPaths};
use crate::clock::Clock;
use crate::model::json::JsonError;
use crate::model::{Claim, Digest, Entry, Event, Realm, Stream};

pub(crate) use append::NewEvent;
pub use append::{Append, ReadSet};
pub use fold::{Fold, IllegalEntry};
use health::Health;
pub use health::JournalFault;
pub use replay::replay;
pub use schema::SchemaError;
pub use sqlite::{JournalReader, StoredEntry};
pub use stop_mark::StopMark;
pub use writer::CrashPoint;

/// Content stored beside the entries under its SHA-256.
#[derive(Clone)]
pub struct Blob {
    hash: Digest,
    text: Arc<str>,
}

impl Blob {
    /// Names the content by its hash.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        Self {
            hash: Digest::sha256(text.as_bytes()),
            text,
        }
    }

    /// SHA-256 of the content.
    pub const fn hash(&self) -> Digest {
        self.hash
    }

    /// The content.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }
}

/// Content may be sensitive: only the hash is printed.
impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({})", self.hash)
    }
}

/// An entry that is durably in the journal, with its blobs. Only the journal constructs it.
#[derive(Debug, Clone)]
pub struct Committed {
    entry: Arc<Entry>,
    blobs: Vec<Blob>,
}

impl Committed {
    /// An entry read from elsewhere, for the fold of an audit: unchecked.
    pub fn unchecked(entry: Entry, blobs: Vec<Blob>) -> Self {
        Self {
            entry: Arc::new(entry),
            blobs,
        }
    }

    /// The entry.
    pub const fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// The content of a blob that the entry names; absent when retention dropped it.
    pub fn blob(&self, hash: &Digest) -> Option<&Arc<str>> {
        self.blobs.iter().find(|b| b.hash == *hash).map(Blob::text)
    }
}

/// Why an append was not answered with its entry. After [`AppendError::OutcomeUnknown`] it may be durable all the same; after
/// every other error nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// These streams advanced since the decision: decide again.
    #[error("version conflict on streams {0:?}")]
    Conflict(Vec<Stream>),
    /// A count has reached the ceiling that the append claims to stay below.
    #[error("{} is at its ceiling of {}", .0.counter, .0.ceiling)]
    Ceiling(Claim),
    /// The entry is not legal in the state before it, or its append does not rest on what its kind must have read: a fault of
    /// this program.
    #[error("the entry is not legal: {0}")]
    Illegal(IllegalEntry),
    /// The append's deadline has passed.
    #[error("the append's deadline has passed")]
    TooLate,
    /// An entry would be longer than [`crate::model::ENTRY_BYTES_MAX`].
    #[error("the entry is too long")]
    TooLarge,
    /// A number or text has no canonical form.
    #[error("the event has no canonical form")]
    NotCanonical,
    /// No space is left; nothing of the batch was written.
    #[error("no space left on the journal's disk")]
    DiskFull,
    /// Earlier calls took the time of this one.
    #[error("earlier calls wait for the journal")]
    Busy,
    /// The writer's queue is full (4,096 appends).
    #[error("the journal's queue is full")]
    QueueFull,
    /// The database refused the write, and is unchanged.
    #[error("the journal could not be written")]
    WriteFailed,
    /// The commit may or may not become durable: the writer has stopped, and the replay at the next start decides; or the disk
    /// has not answered for [`APPEND_TIME_MAX`], and the entry counts when it does.
    #[error("the outcome of the commit is unknown")]
    OutcomeUnknown,
    /// The writer had stopped before it began with the append.
    #[error("the journal is closed")]
    Closed,
}

/// Why a journal does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the directory's lock.
    #[error("{0} is in use by another process")]
    Locked(String),
    /// The directory, the lock file or a thread.
    #[error("{what}: {source}")]
    Io {
        /// The operation and its path.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// SQLite.
    #[error("journal database: {0}")]
    Database(#[from] rusqlite::Error),
    /// The database is not a journal of this version, or has objects that no broker created.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// SQLite before 3.51.3 can corrupt a database that a second connection checkpoints.
    #[error("expected SQLite 3.51.3 or later, got {0}")]
    OldSqlite(String),
    /// Verification of the stored entries failed.
    #[error("the journal is damaged: {0}")]
    Damaged(#[from] AuditError),
    /// The head cannot be read.
    #[error("the journal's head cannot be read")]
    HeadUnreadable,
    /// The journal belongs to another realm.
    #[error("expected a journal of realm `{expected}`, got realm `{found}`")]
    RealmMismatch {
        /// As configured.
        expected: Realm,
        /// As found.
        found: Realm,
    },
    /// An entry has no canonical form.
    #[error("entry: {0}")]
    Entry(#[from] JsonError),
    /// The first entry could not be appended.
    #[error("first entry: {0}")]
    FirstEntry(AppendError),
}

/// A crash test's hook: returns true to stop the writer at a point, as if the process died there.
pub type CrashHook = Arc<dyn Fn(CrashPoint) -> bool + Send + Sync>;

/// Callback with the time from each append's call to its answer.
pub type AppendObserver = Arc<dyn Fn(Duration) + Send + Sync>;

/// How to open a journal.
pub struct JournalOptions {
    /// The realm; written into the first entry and compared at every later open.
    pub realm: Realm,
    /// The writer's clock.
    pub clock: Clock,
    /// The latest time that a decision was made at, in milliseconds, shared with those who decide: no entry is dated before it, and
    /// the writer advances it. A deadline that a decision took as passed has passed for the check of its entry too, also when the clock steps
    /// back.
    pub latest_seen: Arc<AtomicI64>,
    /// Faults injected by tests.
    pub faults: FaultInjection,
    /// Records the latency of appends.
    pub observe: Option<AppendObserver>,
}

/// Faults that a crash test injects into the writer; none by default.
#[derive(Clone, Default)]
pub struct FaultInjection {
    /// Stops the writer at a point, as if the process died there.
    pub crash_hook: Option<CrashHook>,
    /// Disables checkpoints, so that everything stays in the WAL for a test to truncate.
    pub keep_wal: bool,
    /// Size limit of the database, in pages of 4 KiB.
    pub pages_max: Option<u32>,
    /// Longest wait for the answer to an append, if not [`APPEND_TIME_MAX`].
    pub append_time_max: Option<Duration>,
    /// While true, every append fails with [`AppendError::DiskFull`].
    pub disk_full: Option<Arc<std::sync::atomic::AtomicBool>>,
    /// Called between the last read of a round and its append or the check of its answer.
    pub before_append: Option<BeforeAppend>,
}

/// A test's hook before an append, with the method of the call.
pub type BeforeAppend =
    Arc<dyn Fn(&'static str) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A handle to the one writer of a data directory.
#[derive(Clone)]
pub struct Journal {
    requests: mpsc::Sender<WriterRequest>,
    health: Arc<Health>,
    head: watch::Receiver<JournalHead>,
    reader: Arc<JournalReader>,
    blocks: Arc<Mutex<BlockRoots>>,
    dir: Arc<Path>,
    clock: Clock,
    append_time_max: Duration,
    observe: Option<AppendObserver>,
}

/// What the writer is asked for.
enum WriterRequest {
    Append(AppendRequest),
    /// A write that leaves nothing, to learn whether the disk takes entries.
    Probe(oneshot::Sender<()>),
}

struct AppendRequest {
    append: Append,
    reply: oneshot::Sender<Result<Arc<Entry>, AppendError>>,
}

/// The end of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHead {
    /// The incarnation of the journal: positions of different epochs do not compare.
    pub epoch: u64,
    /// The Merkle tree head over all entries.
    pub checkpoint: Checkpoint,
    /// The writer stopped because a commit's outcome is unknown: the process must end.
    pub failed: bool,
}

/// Longest wait for the answer to an append: after it, the caller learns that the outcome is unknown.
pub const APPEND_TIME_MAX: Duration = Duration::from_secs(8);
/// Most appends that wait for the writer.
const QUEUE_MAX: usize = 4_096;

impl Journal {
    /// Opens or creates the directory, verifies every entry, checks it against the state before it and folds it in, and starts
    /// the writer. A new journal gets its first entry. Blocks; call it before serving.
    pub fn open(
        dir: &Path,
        options: JournalOptions,
        mut fold: Box<dyn Fold>,
    ) -> Result<Self, OpenError> {
        let io = |what: &str| {
            let what = format!("{what} {}", dir.display());
            move |source| OpenError::Io { what, source }
        };
        std::fs::create_dir_all(dir).map_err(io("create"))?;
        let lock = std::fs::File::create(dir.join("lock")).map_err(io("lock"))?;
        lock.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => OpenError::Locked(dir.display().to_string()),
            std::fs::TryLockError::Error(source) => io("lock")(source),
        })?;
        let mut writer = writer::Writer::open(dir, &options, &mut *fold)?;
        if writer.is_new() {
            let first = Append::unread(Event::EpochStarted(crate::model::EpochStarted {
                realm: options.realm.clone(),
            }));
            writer
                .commit_one(first, &mut *fold)
                .map_err(OpenError::FirstEntry)?;
        }
        let (requests, inbox) = mpsc::channel(QUEUE_MAX);
        let (head_sender, head) = watch::channel(writer.head());
        let reader = Arc::new(JournalReader::open(dir)?);
        let (health, blocks) = (writer.health(), writer.blocks());
        // The thread owns the lock: the directory is unlocked after the last commit, once no handle is left.
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                // A reader that waits for the end of the head finds the directory unlocked.
                let last = head_sender.clone();
                writer.run(inbox, fold, head_sender);
                drop(lock);
                drop(last);
            })
            .map_err(io("start the writer of"))?;
        Ok(Self {
            requests,
            health,
            head,
            reader,
            blocks,
            dir: dir.into(),
            clock: options.clock,
            append_time_max: options.faults.append_time_max.unwrap_or(APPEND_TIME_MAX),
            observe: options.observe,
        })
    }

    /// Appends durably and returns the first entry, after all of them were folded into state.
    ///
    /// Not cancel-safe: after the future is dropped the append may still be committed.
    pub async fn append(&self, append: Append) -> Result<Arc<Entry>, AppendError> {
        self.append_until(append, self.append_deadline()).await
    }

    /// The latest answer to an append of a call that begins now.
    pub fn append_deadline(&self) -> Instant {
        Instant::now() + self.append_time_max
    }

    /// The same within the time that is left to a call; when none is left, nothing is appended.
    pub async fn append_until(
        &self,
        append: Append,
        deadline: Instant,
    ) -> Result<Arc<Entry>, AppendError> {
        if Instant::now() >= deadline {
            return Err(AppendError::Busy);
        }
        let began = self.clock.uptime();
        let answer = self.enqueue(append, deadline).await;
        if let Some(observe) = &self.observe {
            observe(self.clock.uptime().saturating_sub(began));
        }
        answer
    }

    async fn enqueue(&self, append: Append, deadline: Instant) -> Result<Arc<Entry>, AppendError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .try_send(WriterRequest::Append(AppendRequest { append, reply }))
            .map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => AppendError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => AppendError::Closed,
            })?;
        // The writer answers every request it has not begun. Without an answer it died on this one, before or after the commit,
        // or its disk hangs.
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(AppendError::OutcomeUnknown),
        }
    }

    /// Whether the journal takes entries now, by its last commit or probe.
    pub fn health(&self) -> Result<(), JournalFault> {
        if self.requests.is_closed() || self.head.borrow().failed {
            return Err(JournalFault::Stopped);
        }
        self.health.check(self.clock.uptime())
    }

    /// Uptime of the last commit or probe that succeeded; `None` before the first.
    pub fn last_commit(&self) -> Option<Duration> {
        self.health.last_commit()
    }

    /// Writes to the disk without leaving anything; [`Journal::health`] has the outcome. Waits as long as an append at most.
    pub async fn probe(&self) {
        let (reply, answer) = oneshot::channel();
        // A full queue means that appends tell soon; a closed one is a fault already.
        if self.requests.try_send(WriterRequest::Probe(reply)).is_ok() {
            let answer = tokio::time::timeout(self.append_time_max, answer);
            let _written_or_stopped_or_hung = answer.await.is_ok();
        }
    }

    /// Size of the journal's files in bytes, WAL included.
    pub fn size_bytes(&self) -> u64 {
        let size = |name: &str| std::fs::metadata(self.dir.join(name)).map_or(0, |m| m.len());
        size(sqlite::FILE).saturating_add(size(&format!("{}-wal", sqlite::FILE)))
    }

    /// The journal's head; changes after the entries were applied to state.
    pub fn head(&self) -> watch::Receiver<JournalHead> {
        self.head.clone()
    }

    /// A reader with a connection of its own: what it reads for long keeps no other reader waiting. Blocks.
    pub fn new_reader(&self) -> Result<JournalReader, OpenError> {
        JournalReader::open(&self.dir)
    }

    /// Reads one stored entry; `None` beyond the end. Blocks.
    pub fn entry(&self, index: u64) -> Result<Option<StoredEntry>, OpenError> {
        self.reader.entry(index)
    }

    /// Reads at most `max` stored entries with an index below `below`, the newest first. Blocks.
    pub fn entries_below(&self, below: u64, max: u32) -> Result<Vec<StoredEntry>, OpenError> {
        self.reader.entries_below(below, max)
    }

    /// The audit path of each of these entries in the tree of the first `size` entries (RFC 6962 §2.1.1). Reads a few hundred leaf
    /// hashes for each. Blocks.
    pub fn inclusion_paths(
        &self,
        indexes: &[u64],
        size: u64,
    ) -> Result<Vec<Vec<Digest>>, OpenError> {
        // A copy: the writer adds to it after each commit and must not wait. 128 KB for a million entries.
        let blocks = self
            .blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut paths = InclusionPaths::new(size, &blocks, |range| self.reader.leaves(range));
        indexes.iter().map(|index| paths.path(*index)).collect()
    }

    /// Reads a blob; `None` when it is missing or its content does not match its hash. Blocks.
    pub fn blob(&self, hash: &Digest) -> Result<Option<Arc<str>>, OpenError> {
        self.reader.blob(hash)
    }
}
