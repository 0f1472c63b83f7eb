//! The SQLite engine of the journal: WAL mode with `synchronous=FULL`, so that a commit that returned is durable.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::schema::{self, SchemaError};
use super::{Blob, OpenError};
use crate::audit::{Checkpoint, Frontier};
use crate::model::Digest;

/// WAL size, in pages of 4 KiB, above which a checkpoint blocks the writer briefly to restart the WAL.
const WAL_PAGES_MAX: i64 = 4_096;
/// The database's name inside the data directory.
pub(super) const FILE: &str = "journal.db";
/// Longest wait for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(
        "expected one changed row in the journal's table `{table}`, got {changed}: another process has changed the journal: \
         stop the broker, and run 'dipylon audit verify'"
    )]
    Rows { table: &'static str, changed: usize },
    #[error("the blob {0} is stored with other content: restore a copy made by SQLite's backup")]
    Blob(Digest),
}

impl WriteError {
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Database(error)
            if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }

    /// Checks that one statement changed one row.
    const fn one_row(table: &'static str, changed: usize) -> Result<(), Self> {
        match changed {
            1 => Ok(()),
            _ => Err(Self::Rows { table, changed }),
        }
    }
}

/// The writing connection.
pub(super) struct Engine {
    db: Connection,
    /// The number of the schema that was checked last.
    schema_version: i64,
}

impl Engine {
    pub(super) fn open(dir: &Path, pages_max: Option<u32>) -> Result<Self, OpenError> {
        if rusqlite::version_number() < 3_051_003 {
            return Err(OpenError::OldSqlite(rusqlite::version().to_owned()));
        }
        let db = Connection::open(dir.join(FILE))?;
        distrust_schema(&db)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        // Before anything is written: another application's database stays as it is.
        schema::create(&db)?;
        let schema_version = checked_schema(&db)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        // A second connection checkpoints, so that no commit waits for a checkpoint.
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        if let Some(pages) = pages_max {
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        }
        Ok(Self { db, schema_version })
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

    /// Writes rows, blobs and the head that follows `from`, up to but not including the commit.
    ///
    /// INVARIANT (every write is counted): each statement changed one row, and the head was still `from`. With an unchanged schema
    /// no trigger can alter the rows afterwards, so what the commit keeps is what was written.
    pub(super) fn write(
        &mut self,
        rows: &[StoredEntry],
        blobs: &[Blob],
        from: &Head,
        head: &Head,
    ) -> Result<(), WriteError> {
        self.begin()?;
        let mut insert = self
            .db
            .prepare_cached("INSERT INTO entries (idx, leaf, entry) VALUES (?1, ?2, ?3)")?;
        for row in rows {
            let changed = insert.execute(params![
                sql_int(row.index),
                row.leaf.as_bytes().as_slice(),
                row.text
            ])?;
            WriteError::one_row("entries", changed)?;
        }
        let mut insert = self.db.prepare_cached(
            "INSERT INTO blobs (sha256, content) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?;
        for blob in blobs {
            let hash = blob.hash();
            let changed = insert.execute(params![hash.as_bytes().as_slice(), &**blob.text()])?;
            // An earlier entry names the same content.
            if changed == 0 {
                if read_blob(&self.db, &hash)?.is_none() {
                    return Err(WriteError::Blob(hash));
                }
            } else {
                WriteError::one_row("blobs", changed)?;
            }
        }
        WriteError::one_row("head", self.write_head(from, head)?)
    }

    /// Replaces the head, if it is still `from`: the number of changed rows.
    fn write_head(&self, from: &Head, head: &Head) -> rusqlite::Result<usize> {
        let frontier: Vec<u8> = head
            .tree
            .peaks()
            .iter()
            .flat_map(|d| d.as_bytes().to_vec())
            .collect();
        let (epoch, size, root) = (
            sql_int(head.epoch),
            sql_int(head.tree.size()),
            head.tree.root(),
        );
        let root = root.as_bytes().as_slice();
        if from.tree.size() == 0 {
            return self
                .db
                .prepare_cached(
                    "INSERT INTO head (one, epoch, size, root, frontier) VALUES (1, ?1, ?2, ?3, ?4)",
                )?
                .execute(params![epoch, size, root, frontier]);
        }
        self.db
            .prepare_cached(
                "UPDATE head SET epoch = ?1, size = ?2, root = ?3, frontier = ?4
                 WHERE one = 1 AND epoch = ?5 AND size = ?6 AND root = ?7",
            )?
            .execute(params![
                epoch,
                size,
                root,
                frontier,
                sql_int(from.epoch),
                sql_int(from.tree.size()),
                from.tree.root().as_bytes().as_slice()
            ])
    }

    pub(super) fn commit(&mut self) -> Result<(), WriteError> {
        Ok(self.db.execute_batch("COMMIT")?)
    }

    /// Writes a row as long as a page and deletes it again, up to but not including the commit.
    pub(super) fn write_probe(&mut self) -> Result<(), WriteError> {
        self.begin()?;
        for statement in [
            "INSERT INTO blobs (sha256, content) VALUES (x'', printf('%.*c', 4096, '-'))",
            "DELETE FROM blobs WHERE sha256 = x''",
        ] {
            WriteError::one_row("blobs", self.db.execute(statement, [])?)?;
        }
        Ok(())
    }

    /// Begins a transaction on a checked schema. From here to the commit no other connection can change it.
    fn begin(&mut self) -> Result<(), WriteError> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        // An operator's VACUUM changes the number too, and not the schema. A number that was set back to this one hides a new
        // trigger from SQLite as well: the trigger does not run, and the next reader finds it.
        let version = schema::version(&self.db)?;
        if version != self.schema_version {
            if let Some(fault) = schema::find_fault(&self.db)? {
                return Err(fault.into());
            }
            self.schema_version = version;
        }
        Ok(())
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

    /// Opens the journal of a data directory read-only, and checks its schema. Does not verify its entries.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let db = Connection::open_with_flags(
            dir.join(FILE),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        distrust_schema(&db)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        checked_schema(&db)?;
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

    /// The stored leaf hashes of a range of entries, in order.
    pub fn leaves(&self, range: Range<u64>) -> Result<Vec<Digest>, OpenError> {
        let db = self.lock();
        let mut statement = db
            .prepare_cached("SELECT leaf FROM entries WHERE idx >= ?1 AND idx < ?2 ORDER BY idx")?;
        let mut rows = statement.query([sql_int(range.start), sql_int(range.end)])?;
        let mut leaves = Vec::new();
        while let Some(row) = rows.next()? {
            let leaf = digest(&row.get::<_, Vec<u8>>(0)?).ok_or(OpenError::HeadUnreadable)?;
            leaves.push(leaf);
        }
        Ok(leaves)
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
        distrust_schema(&db)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.busy_timeout(Duration::from_millis(100))?;
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

/// Makes SQLite treat the stored schema as hostile: no trigger runs, no view is read, no statement changes the schema table.
fn distrust_schema(db: &Connection) -> rusqlite::Result<()> {
    for (option, value) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
    ] {
        db.set_db_config(option, value)?;
    }
    Ok(())
}

/// The number of the schema, once it is known to be this version's.
fn checked_schema(db: &Connection) -> Result<i64, OpenError> {
    let snapshot = db.unchecked_transaction()?;
    match schema::find_fault(&snapshot)? {
        Some(fault) => Err(fault.into()),
        None => Ok(schema::version(&snapshot)?),
    }
}

fn read_head(db: &Connection) -> Result<Option<Head>, OpenError> {
    let mut statement = db.prepare("SELECT one, epoch, size, root, frontier FROM head")?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let (one, epoch, size): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let (root, frontier): (Vec<u8>, Vec<u8>) = (row.get(3)?, row.get(4)?);
    // A connection that ignores checks can write more rows than one.
    if one != 1 || rows.next()?.is_some() {
        return Err(OpenError::HeadUnreadable);
    }
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

fn read_blob(db: &Connection, hash: &Digest) -> rusqlite::Result<Option<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A stored head of one entry, and the next batch: an entry, a blob and a head.
    fn one_entry(dir: &Path) -> (Engine, Head, [StoredEntry; 1], [Blob; 1], Head) {
        let mut engine = Engine::open(dir, None).expect("opens");
        let row = |index| StoredEntry {
            index,
            leaf: Digest::sha256(b"leaf"),
            text: "{}".to_owned(),
        };
        let mut head = Head::default();
        head.tree.push(row(0).leaf);
        engine
            .write(&[row(0)], &[], &Head::default(), &head)
            .expect("written");
        engine.commit().expect("committed");
        let mut next = head.clone();
        next.tree.push(row(1).leaf);
        (engine, head, [row(1)], [Blob::new("content")], next)
    }

    /// With the schema's number taken as checked, a trigger does not run; if it did, the count would find it.
    #[test]
    fn every_write_is_counted() {
        for (table, on) in [
            ("entries", "INSERT ON entries"),
            ("head", "UPDATE ON head"),
            ("blobs", "INSERT ON blobs"),
        ] {
            let dir = tempfile::tempdir().expect("dir");
            let (mut engine, head, rows, blobs, next) = one_entry(dir.path());
            let trigger = format!("CREATE TRIGGER t BEFORE {on} BEGIN SELECT RAISE(IGNORE); END");
            engine.db.execute_batch(&trigger).expect("created");
            engine.schema_version = schema::version(&engine.db).expect("read");
            engine.write(&rows, &blobs, &head, &next).expect(table);
            assert!(engine.undo());
            let enable = DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER;
            engine.db.set_db_config(enable, true).expect("enabled");
            let error = engine.write(&rows, &blobs, &head, &next);
            let error = error.expect_err("an ignored write");
            let named = match (table, &error) {
                ("blobs", WriteError::Blob(hash)) => *hash == blobs[0].hash(),
                (table, WriteError::Rows { table: named, .. }) => *named == table,
                _ => false,
            };
            assert!(named, "{table}: {error}");
        }
    }

    #[test]
    fn a_blob_is_stored_once_and_with_its_content() {
        let dir = tempfile::tempdir().expect("dir");
        let (mut engine, head, rows, [blob], next) = one_entry(dir.path());
        let twice = [blob.clone(), blob];
        engine.write(&rows, &twice, &head, &next).expect("written");
        engine.commit().expect("committed");
        let mut after = next.clone();
        after.tree.push(rows[0].leaf);
        let row = [StoredEntry {
            index: 2,
            ..rows[0].clone()
        }];
        let changed = engine.db.execute("UPDATE blobs SET content = 'other'", []);
        assert_eq!(changed.expect("changed"), 1);
        let error = engine.write(&row, &twice, &next, &after);
        let error = error.expect_err("other content");
        assert!(matches!(error, WriteError::Blob(_)), "{error}");
        assert!(engine.undo());
        engine.write(&row, &[], &next, &after).expect("written");
    }

    #[test]
    fn a_head_is_replaced_only_by_its_successor() {
        let dir = tempfile::tempdir().expect("dir");
        let (mut engine, head, rows, blobs, next) = one_entry(dir.path());
        let mut other = head.clone();
        other.epoch = 1;
        for from in [other, next.clone()] {
            let error = engine.write(&rows, &blobs, &from, &next);
            let error = error.expect_err("not the stored head");
            assert!(
                matches!(
                    error,
                    WriteError::Rows {
                        table: "head",
                        changed: 0
                    }
                ),
                "{error}"
            );
            assert!(engine.undo());
        }
        engine.write(&rows, &blobs, &head, &next).expect("written");
    }
}
