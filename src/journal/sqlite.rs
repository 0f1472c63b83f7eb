//! The SQLite engine of the journal: WAL mode with `synchronous=FULL`, so that a commit that returned is durable.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::{Blob, OpenError};
use crate::audit::{Checkpoint, Frontier};
use crate::model::Digest;

/// WAL size, in pages of 4 KiB, above which a checkpoint blocks the writer briefly to restart the WAL.
const WAL_PAGES_MAX: i64 = 4_096;
/// The database's name inside the data directory.
pub(super) const FILE: &str = "journal.db";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS head (
  one      INTEGER PRIMARY KEY CHECK (one = 1),
  epoch    INTEGER NOT NULL,
  size     INTEGER NOT NULL,
  root     BLOB NOT NULL,
  frontier BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS entries (
  idx   INTEGER PRIMARY KEY,
  leaf  BLOB NOT NULL,
  entry TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS blobs (
  sha256  BLOB PRIMARY KEY,
  content TEXT NOT NULL
) WITHOUT ROWID;
";

/// The head row: the tree's size, root and right edge, and the journal's epoch.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    pub(super) epoch: u64,
    pub(super) tree: Frontier,
}

impl Head {
    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            size: self.tree.size(),
            root: self.tree.root(),
        }
    }
}

/// An entry as stored.
#[derive(Debug, Clone)]
pub struct StoredEntry {
    /// Its index.
    pub index: u64,
    /// The stored leaf hash.
    pub leaf: Digest,
    /// The exact canonical bytes.
    pub text: String,
}

/// The writing connection.
pub(super) struct Engine {
    db: Connection,
}

impl Engine {
    pub(super) fn open(dir: &Path, pages_max: Option<u32>) -> Result<Self, OpenError> {
        if rusqlite::version_number() < 3_051_003 {
            return Err(OpenError::OldSqlite(rusqlite::version().to_owned()));
        }
        let db = Connection::open(dir.join(FILE))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        // A second connection checkpoints, so that no commit waits for a checkpoint.
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.busy_timeout(std::time::Duration::from_secs(5))?;
        db.execute_batch(SCHEMA)?;
        if let Some(pages) = pages_max {
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        }
        Ok(Self { db })
    }

    pub(super) fn head(&self) -> Result<Option<Head>, OpenError> {
        read_head(&self.db)
    }

    /// Every stored entry in order.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(StoredEntry, &Self) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        each(&self.db, |stored| visit(stored, self))
    }

    pub(super) fn blob(&self, hash: &Digest) -> Result<Option<Blob>, OpenError> {
        Ok(read_blob(&self.db, hash)?.map(Blob::new))
    }

    /// Writes rows, blobs and the new head, up to but not including the commit.
    pub(super) fn write(
        &mut self,
        rows: &[StoredEntry],
        blobs: &[Blob],
        head: &Head,
    ) -> rusqlite::Result<()> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        {
            let mut insert = self
                .db
                .prepare_cached("INSERT INTO entries (idx, leaf, entry) VALUES (?1, ?2, ?3)")?;
            for row in rows {
                insert.execute(params![
                    sql_int(row.index),
                    row.leaf.as_bytes().as_slice(),
                    row.text
                ])?;
            }
            let mut insert = self.db.prepare_cached(
                "INSERT INTO blobs (sha256, content) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            )?;
            for blob in blobs {
                insert.execute(params![blob.hash().as_bytes().as_slice(), &**blob.text()])?;
            }
            let frontier: Vec<u8> = head
                .tree
                .peaks()
                .iter()
                .flat_map(|d| d.as_bytes().to_vec())
                .collect();
            self.db
                .prepare_cached(
                    "INSERT INTO head (one, epoch, size, root, frontier) VALUES (1, ?1, ?2, ?3, ?4)
                     ON CONFLICT (one) DO UPDATE SET epoch = ?1, size = ?2, root = ?3, frontier = ?4",
                )?
                .execute(params![
                    sql_int(head.epoch),
                    sql_int(head.tree.size()),
                    head.tree.root().as_bytes().as_slice(),
                    frontier
                ])?;
        }
        Ok(())
    }

    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        self.db.execute_batch("COMMIT")
    }

    /// Writes a row as long as a page and deletes it again, up to but not including the commit.
    pub(super) fn write_probe(&mut self) -> rusqlite::Result<()> {
        self.db.execute_batch(
            "BEGIN IMMEDIATE;
             INSERT INTO blobs (sha256, content) VALUES (x'', printf('%.*c', 4096, '-'));
             DELETE FROM blobs WHERE sha256 = x'';",
        )
    }

    /// Rolls back `write`. True when the database is known to be unchanged.
    pub(super) fn undo(&mut self) -> bool {
        self.db.is_autocommit() || self.db.execute_batch("ROLLBACK").is_ok()
    }
}

/// A read-only connection, for explanations and audits, with or without a running broker.
pub struct JournalReader {
    db: Mutex<Connection>,
}

impl JournalReader {
    /// Whether a data directory has a journal.
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// Opens the journal of a data directory read-only. Does not verify it.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let db = Connection::open_with_flags(
            dir.join(FILE),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        db.busy_timeout(std::time::Duration::from_secs(5))?;
        Ok(Self { db: Mutex::new(db) })
    }

    /// One stored entry; `None` beyond the end.
    pub fn entry(&self, index: u64) -> Result<Option<StoredEntry>, OpenError> {
        let db = self.lock();
        let found = db
            .query_row(
                "SELECT idx, leaf, entry FROM entries WHERE idx = ?1",
                [sql_int(index)],
                stored,
            )
            .optional()?;
        Ok(found)
    }

    /// At most `max` stored entries with an index below `below`, the newest first.
    pub fn entries_below(&self, below: u64, max: u32) -> Result<Vec<StoredEntry>, OpenError> {
        let db = self.lock();
        let mut statement = db.prepare_cached(
            "SELECT idx, leaf, entry FROM entries WHERE idx < ?1 ORDER BY idx DESC LIMIT ?2",
        )?;
        let rows = statement.query_map(params![sql_int(below), max], stored)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One blob; `None` when it is missing or its content does not match its hash.
    pub fn blob(&self, hash: &Digest) -> Result<Option<Arc<str>>, OpenError> {
        Ok(read_blob(&self.lock(), hash)?.map(Into::into))
    }

    /// Visits every entry in order and returns the head and its epoch, all from one snapshot.
    pub fn read_all(
        &self,
        mut visit: impl FnMut(StoredEntry) -> Result<(), OpenError>,
    ) -> Result<(Checkpoint, u64), OpenError> {
        let db = self.lock();
        let snapshot = db.unchecked_transaction()?;
        let head = read_head(&snapshot)?.ok_or(OpenError::HeadUnreadable)?;
        each(&snapshot, &mut visit)?;
        Ok((head.checkpoint(), head.epoch))
    }

    /// Visits every stored blob with its hash, in no particular order and unverified.
    pub fn blobs(
        &self,
        mut visit: impl FnMut(Digest, &str) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let db = self.lock();
        let mut statement = db.prepare("SELECT sha256, content FROM blobs")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name = digest(&row.get::<_, Vec<u8>>(0)?).ok_or(OpenError::HeadUnreadable)?;
            visit(name, &row.get::<_, String>(1)?)?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves committed pages from the WAL into the database file, on its own connection.
pub(super) struct Checkpointer {
    db: Connection,
}

impl Checkpointer {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let db = Connection::open(dir.join(FILE))?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.busy_timeout(std::time::Duration::from_millis(100))?;
        Ok(Self { db })
    }

    pub(super) fn run(&self) -> rusqlite::Result<()> {
        let pages = |mode: &str| {
            let sql = format!("PRAGMA wal_checkpoint({mode})");
            self.db.query_row(&sql, [], |row| row.get::<_, i64>(1))
        };
        // PASSIVE never blocks the writer, but under steady load never restarts the WAL either.
        if pages("PASSIVE")? > WAL_PAGES_MAX {
            pages("TRUNCATE")?;
        }
        Ok(())
    }
}

fn read_head(db: &Connection) -> Result<Option<Head>, OpenError> {
    let row = db
        .query_row("SELECT epoch, size, root, frontier FROM head", [], |r| {
            Ok((
                r.get::<_, i64>(0)?,
                r.get::<_, i64>(1)?,
                r.get::<_, Vec<u8>>(2)?,
                r.get::<_, Vec<u8>>(3)?,
            ))
        })
        .optional()?;
    let Some((epoch, size, root, frontier)) = row else {
        return Ok(None);
    };
    let peaks = frontier
        .chunks(32)
        .map(digest)
        .collect::<Option<Vec<_>>>()
        .ok_or(OpenError::HeadUnreadable)?;
    let size = u64::try_from(size).map_err(|_| OpenError::HeadUnreadable)?;
    let tree = Frontier::from_parts(size, peaks).ok_or(OpenError::HeadUnreadable)?;
    if digest(&root) != Some(tree.root()) {
        return Err(OpenError::HeadUnreadable);
    }
    Ok(Some(Head {
        epoch: u64::try_from(epoch).map_err(|_| OpenError::HeadUnreadable)?,
        tree,
    }))
}

fn each(
    db: &Connection,
    mut visit: impl FnMut(StoredEntry) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let mut statement = db.prepare("SELECT idx, leaf, entry FROM entries ORDER BY idx")?;
    let rows = statement.query_map([], stored)?;
    for row in rows {
        visit(row?)?;
    }
    Ok(())
}

fn stored(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredEntry> {
    let index = row.get::<_, i64>(0)?;
    let leaf = row.get::<_, Vec<u8>>(1)?;
    let bad = |column| rusqlite::Error::IntegralValueOutOfRange(column, index);
    Ok(StoredEntry {
        index: u64::try_from(index).map_err(|_| bad(0))?,
        leaf: digest(&leaf).ok_or_else(|| bad(1))?,
        text: row.get(2)?,
    })
}

fn read_blob(db: &Connection, hash: &Digest) -> Result<Option<String>, OpenError> {
    let found = db
        .prepare_cached("SELECT content FROM blobs WHERE sha256 = ?1")?
        .query_row([hash.as_bytes().as_slice()], |r| r.get::<_, String>(0))
        .optional()?;
    // A blob whose content does not match its hash counts as missing.
    Ok(found.filter(|text| Digest::sha256(text.as_bytes()) == *hash))
}

fn digest(bytes: &[u8]) -> Option<Digest> {
    <[u8; 32]>::try_from(bytes).ok().map(Digest::from_bytes)
}

/// SQLite integers are signed; indexes and sizes stay far below 2^63.
fn sql_int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
