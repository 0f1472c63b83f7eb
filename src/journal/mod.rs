//! The journal: one append-only log; state, audit and revocation feed are its readers.
//!
//! In: an [`Append`]: facts, the streams they move, the streams they rest on. Out: committed entries, in one total
//! order, durable before anyone is told. Trusts its directory's lock and SQLite's `synchronous=FULL`. Refuses an append
//! whose streams moved, that is late or too large. Never decides anything else.

mod check;
mod sqlite;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::audit::{AuditError, Checkpoint};
use crate::clock::Clock;
use crate::model::json::JsonError;
use crate::model::{Digest, Entry, Event, Realm, Stream, Timestamp, Version};

pub use sqlite::{ReadOnly, StoredEntry};
pub use writer::Step;

/// One fact and the streams it advances, each with the version it expects.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// What happened.
    pub fact: Event,
    /// `(stream, expected version)`; 0 = the stream must be new.
    pub moves: Vec<(Stream, Version)>,
}

/// All or nothing: facts that become entries together.
#[derive(Debug, Clone, Default)]
pub struct Append {
    /// In order.
    pub drafts: Vec<NewEvent>,
    /// Streams that must not have moved, with the versions they had when it was decided.
    pub read_set: Vec<(Stream, Version)>,
    /// The writer's clock must not have reached this.
    pub not_after: Option<Timestamp>,
    /// Content the facts name by its SHA-256.
    pub blobs: Vec<Blob>,
}

impl Append {
    /// An append of one fact.
    pub fn one(fact: Event, moves: Vec<(Stream, Version)>) -> Self {
        Self {
            drafts: vec![NewEvent { fact, moves }],
            ..Self::default()
        }
    }
}

/// Content beside the entries, found by its SHA-256.
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
            hash: Digest::of(text.as_bytes()),
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

/// Contents may be sensitive: only the name is printed.
impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({})", self.hash)
    }
}

/// An entry that is durably in the journal, with the blobs it names. Only the journal makes one.
#[derive(Debug, Clone)]
pub struct Committed {
    entry: Arc<Entry>,
    blobs: Vec<Blob>,
}

impl Committed {
    /// The entry.
    pub const fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// The content of a blob that the entry names; absent when retention dropped it.
    pub fn blob(&self, hash: &Digest) -> Option<&Arc<str>> {
        self.blobs.iter().find(|b| b.hash == *hash).map(Blob::text)
    }
}

/// Why nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// These streams moved since the order was decided: decide again.
    #[error("streams moved: {0:?}")]
    Conflict(Vec<Stream>),
    /// The order's not-after has passed.
    #[error("the order came too late")]
    Late,
    /// An entry would be longer than the limit.
    #[error("the entry would be too long")]
    TooLarge,
    /// A number or text has no canonical form.
    #[error("the fact has no canonical form")]
    Unwritable,
    /// No space is left; nothing of the batch was written.
    #[error("no space left")]
    Full,
    /// The queue before the writer is full.
    #[error("too many appends wait")]
    Busy,
    /// The outcome is not known: the process must end, replay decides.
    #[error("the outcome of the commit is unknown")]
    Unknown,
    /// The writer has stopped.
    #[error("the journal is closed")]
    Closed,
}

/// Why a journal does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{0} is in use by another process")]
    Locked(String),
    /// The directory or the lock file.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database.
    #[error("journal database: {0}")]
    Database(#[from] rusqlite::Error),
    /// SQLite is older than the fix of a corruption that second-connection checkpoints could meet (3.51.3).
    #[error("SQLite {0} is older than 3.51.3")]
    OldSqlite(String),
    /// The entries do not hold together.
    #[error("the journal is damaged: {0}")]
    Damaged(#[from] AuditError),
    /// The head cannot be read.
    #[error("the journal's head cannot be read")]
    Head,
    /// The journal belongs to another realm.
    #[error("the journal is of realm {found}, not {expected}")]
    OtherRealm {
        /// As configured.
        expected: Realm,
        /// As found.
        found: Realm,
    },
    /// An entry cannot be written.
    #[error("entry: {0}")]
    Entry(#[from] JsonError),
    /// The first entry could not be appended.
    #[error("first entry: {0}")]
    First(AppendError),
}

/// The writer's callback: applies what is durable before anyone is answered.
pub type Apply = Box<dyn FnMut(&Committed) + Send>;

/// A place where a test stops the writer as if the process died there.
pub type StopAt = Arc<dyn Fn(Step) -> bool + Send + Sync>;

/// Told how long each append took until it was answered.
pub type Observe = Arc<dyn Fn(Duration) + Send + Sync>;

/// How to open a journal.
pub struct Options {
    /// Whose journal it is; written into the first entry, compared ever after.
    pub realm: Realm,
    /// The writer's clock.
    pub clock: Clock,
    /// How it may fail in a test.
    pub faults: Faults,
    /// Who counts appends.
    pub observe: Option<Observe>,
}

/// How a crash test makes the writer fail; nothing of it by default.
#[derive(Clone, Default)]
pub struct Faults {
    /// Where the writer stops as if the process died there.
    pub stop_at: Option<StopAt>,
    /// Whether everything stays in the WAL, so that a test can cut it.
    pub keep_wal: bool,
    /// Pages of 4 KiB after which the database is full.
    pub pages_max: Option<u32>,
    /// While set, no space is left.
    pub full: Option<Arc<std::sync::atomic::AtomicBool>>,
}

/// A handle on the one writer of a data directory.
#[derive(Clone)]
pub struct Journal {
    orders: mpsc::Sender<Order>,
    tail: watch::Receiver<Tail>,
    reader: Arc<ReadOnly>,
    dir: Arc<Path>,
    clock: Clock,
    observe: Option<Observe>,
}

struct Order {
    append: Append,
    reply: oneshot::Sender<Result<Arc<Entry>, AppendError>>,
}

/// How far the journal has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The life of the journal.
    pub epoch: u64,
    /// The tree head.
    pub head: Checkpoint,
    /// The writer stopped because a commit's outcome is unknown: end the process.
    pub failed: bool,
}

/// Appends that may wait for the writer.
const QUEUE_MAX: usize = 4_096;

impl Journal {
    /// Opens the directory, replays every entry through `apply`, verifies the tree, and starts the writer.
    /// A new directory gets its first entry. Blocks; call it before serving.
    pub fn open(dir: &Path, options: Options, mut apply: Apply) -> Result<Self, OpenError> {
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
        let mut writer = writer::Writer::open(dir, &options, &mut apply)?;
        if writer.is_new() {
            let first = Append::one(
                Event::EpochStarted(crate::model::EpochStarted {
                    realm: options.realm.clone(),
                }),
                Vec::new(),
            );
            writer
                .commit_one(first, &mut apply)
                .map_err(OpenError::First)?;
        }
        let (orders, inbox) = mpsc::channel(QUEUE_MAX);
        let (tail_sender, tail) = watch::channel(writer.tail());
        let reader = Arc::new(ReadOnly::open(dir)?);
        // The thread owns the lock: the directory is free once the last commit is done and no handle is left.
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                writer.run(inbox, apply, tail_sender);
                drop(lock);
            })
            .map_err(io("start the writer of"))?;
        Ok(Self {
            orders,
            tail,
            reader,
            dir: dir.into(),
            clock: options.clock,
            observe: options.observe,
        })
    }

    /// Appends durably and answers with the first entry, after every reader of state can see it.
    ///
    /// Dropping the future after this is called does not take the append back: it may still be committed.
    pub async fn append(&self, append: Append) -> Result<Arc<Entry>, AppendError> {
        let began = self.clock.uptime();
        let answer = self.hand_over(append).await;
        if let Some(observe) = &self.observe {
            observe(self.clock.uptime().saturating_sub(began));
        }
        answer
    }

    async fn hand_over(&self, append: Append) -> Result<Arc<Entry>, AppendError> {
        let (reply, answer) = oneshot::channel();
        self.orders
            .try_send(Order { append, reply })
            .map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => AppendError::Busy,
                mpsc::error::TrySendError::Closed(_) => AppendError::Closed,
            })?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Bytes of the journal's files.
    pub fn bytes(&self) -> u64 {
        let size = |name: &str| std::fs::metadata(self.dir.join(name)).map_or(0, |m| m.len());
        size(sqlite::FILE).saturating_add(size(&format!("{}-wal", sqlite::FILE)))
    }

    /// How far the journal has come; changes after state has been applied.
    pub fn tail(&self) -> watch::Receiver<Tail> {
        self.tail.clone()
    }

    /// Reads one stored entry.
    pub fn entry(&self, index: u64) -> Result<Option<StoredEntry>, OpenError> {
        self.reader.entry(index)
    }

    /// Reads at most `max` stored entries with an index below `below`, the newest first. Blocks.
    pub fn below(&self, below: u64, max: u32) -> Result<Vec<StoredEntry>, OpenError> {
        self.reader.below(below, max)
    }

    /// Reads a blob.
    pub fn blob(&self, hash: &Digest) -> Result<Option<Arc<str>>, OpenError> {
        self.reader.blob(hash)
    }
}
