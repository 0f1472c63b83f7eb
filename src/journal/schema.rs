//! The schema of the journal's database: three tables, an application id and a format number, and nothing beside them.
//!
//! INVARIANT (exact schema): a trigger, view or changed table could drop or alter rows that the broker has acknowledged, or show
//! others to a reader. So a database is read and written only while its schema is, byte for byte, the one that [`create`] makes.

use rusqlite::{Connection, OptionalExtension as _};

use crate::model::text::escape_invisible_capped;

/// `PRAGMA application_id` of a journal: "Dipy" in ASCII.
const APPLICATION_ID: i64 = 0x4469_7079;
/// `PRAGMA user_version` of a journal: the number of the stored form. A later form gets another number.
const FORMAT: i64 = 2;

/// Each table and the statement that creates it, as SQLite stores it.
const TABLES: [(&str, &str); 3] = [
    (
        "head",
        "CREATE TABLE head (
  one      INTEGER PRIMARY KEY CHECK (one = 1),
  epoch    INTEGER NOT NULL,
  size     INTEGER NOT NULL,
  root     BLOB NOT NULL,
  frontier BLOB NOT NULL
) STRICT",
    ),
    (
        "entries",
        "CREATE TABLE entries (
  idx   INTEGER PRIMARY KEY,
  leaf  BLOB NOT NULL,
  entry TEXT NOT NULL
) STRICT",
    ),
    (
        "blobs",
        "CREATE TABLE blobs (
  sha256  BLOB PRIMARY KEY,
  content TEXT NOT NULL
) STRICT, WITHOUT ROWID",
    ),
];

/// Why a database is not a journal of this version. Names in it are escaped and at most 64 characters long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// There is no table, id or number: no broker has written to it.
    #[error("the journal's database is empty: the first start of the broker creates its tables")]
    Empty,
    /// There are tables, but neither id nor number.
    #[error(
        "the journal is of format 1, or a copy that lost its format number; this version reads format {FORMAT}: start the \
         version that wrote it, restore a copy made by SQLite's backup, or begin with an empty data directory"
    )]
    NoFormat,
    /// Another format number.
    #[error(
        "the journal is of format {0}; this version reads format {FORMAT}: start the version that wrote it, or begin with an \
         empty data directory"
    )]
    OtherFormat(i64),
    /// Another application id.
    #[error(
        "`journal.db` is another application's database: expected application id {APPLICATION_ID}, got {0}: check `data_dir`"
    )]
    OtherApplication(i64),
    /// A table is not there.
    #[error("the journal has no table `{0}`: restore a copy made by SQLite's backup")]
    MissingTable(&'static str),
    /// A table has other columns, types, keys or checks, or another object has its name.
    #[error(
        "expected the journal's table `{name}` as this version creates it, got {kind} that differs: keep a copy as evidence, and \
         restore a copy made by SQLite's backup"
    )]
    ChangedTable {
        /// The kind of object in its place, with its article.
        kind: &'static str,
        /// The table's name.
        name: &'static str,
    },
    /// An object that the broker did not create.
    #[error(
        "the journal has {kind} `{name}`, which no broker created: keep a copy as evidence, drop it with the broker stopped, \
         and run 'dipylon audit verify'"
    )]
    ExtraObject {
        /// The kind of the object, with its article.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

/// Creates the tables of a database without any object, id or number; leaves every other database as it is.
///
/// One transaction: a crash here leaves an empty database, and the next start creates the tables.
pub(super) fn create(db: &Connection) -> rusqlite::Result<()> {
    let transaction = db.unchecked_transaction()?;
    if find_fault(&transaction)? == Some(SchemaError::Empty) {
        for (_, statement) in TABLES {
            transaction.execute_batch(statement)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
    }
    transaction.commit()
}

/// A number that SQLite changes with every change of the schema.
pub(super) fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("PRAGMA main.schema_version")?
        .query_row([], |row| row.get(0))
}

/// The first difference from the schema that [`create`] makes; `None` if there is none. Call it in a transaction.
pub(super) fn find_fault(db: &Connection) -> rusqlite::Result<Option<SchemaError>> {
    let number = |pragma| db.pragma_query_value(Some("main"), pragma, |row| row.get::<_, i64>(0));
    let (application, format) = (number("application_id")?, number("user_version")?);
    if (application, format) != (APPLICATION_ID, FORMAT) {
        return Ok(Some(match (application, format) {
            (APPLICATION_ID, other) => SchemaError::OtherFormat(other),
            (0, 0) if is_empty(db)? => SchemaError::Empty,
            (0, _) => SchemaError::NoFormat,
            (other, _) => SchemaError::OtherApplication(other),
        }));
    }
    let mut missing = TABLES.to_vec();
    let mut objects = db.prepare("SELECT type, name, tbl_name, sql FROM main.sqlite_schema")?;
    let mut objects = objects.query([])?;
    while let Some(object) = objects.next()? {
        let kind = known_kind(&object.get::<_, String>(0)?);
        let (name, table) = (object.get::<_, String>(1)?, object.get::<_, String>(2)?);
        // Absent for the indexes that a constraint implies; no table here has one.
        let statement = object.get::<_, Option<String>>(3)?;
        let Some(at) = missing.iter().position(|(known, _)| *known == name) else {
            let name = escape_invisible_capped(&name, NAME_CHARS_MAX);
            return Ok(Some(SchemaError::ExtraObject { kind, name }));
        };
        let (name, expected) = missing.swap_remove(at);
        if kind != TABLE || table != name || statement.as_deref() != Some(expected) {
            return Ok(Some(SchemaError::ChangedTable { kind, name }));
        }
    }
    Ok(missing
        .first()
        .map(|(name, _)| SchemaError::MissingTable(name)))
}

fn is_empty(db: &Connection) -> rusqlite::Result<bool> {
    let first = db.query_row("SELECT 1 FROM main.sqlite_schema LIMIT 1", [], |_| Ok(()));
    Ok(first.optional()?.is_none())
}

const TABLE: &str = "a table";

/// The kind of an object with its article, in words that are not the database's own.
fn known_kind(kind: &str) -> &'static str {
    match kind {
        "table" => TABLE,
        "index" => "an index",
        "view" => "a view",
        "trigger" => "a trigger",
        _ => "an object",
    }
}

/// Most characters of a name in an error.
const NAME_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Connection {
        let db = Connection::open_in_memory().expect("opens");
        create(&db).expect("created");
        db
    }

    fn fault_after(sql: &str) -> Option<SchemaError> {
        let db = journal();
        db.execute_batch(sql).expect(sql);
        find_fault(&db).expect("read")
    }

    #[test]
    fn a_created_journal_has_the_schema_and_keeps_it() {
        let db = journal();
        assert_eq!(find_fault(&db).expect("read"), None);
        create(&db).expect("nothing to create");
        for kept in ["VACUUM", "REINDEX"] {
            assert_eq!(fault_after(kept), None, "{kept}");
        }
        // Another connection's temporary objects are its own.
        assert_eq!(fault_after("CREATE TEMP TABLE extra (a)"), None);
    }

    #[test]
    fn another_database_is_left_as_it_is() {
        for (made, expected) in [
            ("CREATE TABLE t (a)", SchemaError::NoFormat),
            ("PRAGMA user_version = 2", SchemaError::NoFormat),
            (
                "PRAGMA application_id = 7",
                SchemaError::OtherApplication(7),
            ),
        ] {
            let db = Connection::open_in_memory().expect("opens");
            db.execute_batch(made).expect(made);
            let before = version(&db).expect("read");
            create(&db).expect("nothing to create");
            assert_eq!(version(&db).expect("read"), before, "{made}");
            assert_eq!(find_fault(&db).expect("read"), Some(expected), "{made}");
        }
    }

    #[test]
    fn each_difference_is_named() {
        let extra = |kind, name: &str| SchemaError::ExtraObject {
            kind,
            name: name.to_owned(),
        };
        let changed = |kind, name| SchemaError::ChangedTable { kind, name };
        for (sql, expected) in [
            ("CREATE TABLE more (a)", extra("a table", "more")),
            (
                "CREATE INDEX by_leaf ON entries (leaf)",
                extra("an index", "by_leaf"),
            ),
            (
                "CREATE VIEW all_of_it AS SELECT * FROM entries",
                extra("a view", "all_of_it"),
            ),
            (
                "CREATE TRIGGER \"a\u{1b}[2J\" DELETE ON head BEGIN SELECT 1; END",
                extra("a trigger", "a<U+001B>[2J"),
            ),
            (
                "CREATE TABLE s (a INTEGER PRIMARY KEY AUTOINCREMENT); DROP TABLE s",
                extra("a table", "sqlite_sequence"),
            ),
            (
                "INSERT INTO blobs VALUES (x'01', ''); ANALYZE",
                extra("a table", "sqlite_stat1"),
            ),
            (
                "ALTER TABLE entries ADD COLUMN note TEXT",
                changed("a table", "entries"),
            ),
            (
                "ALTER TABLE blobs ADD COLUMN size INTEGER AS (length(content))",
                changed("a table", "blobs"),
            ),
            (
                "ALTER TABLE head RENAME COLUMN root TO top",
                changed("a table", "head"),
            ),
            (
                "DROP TABLE head; CREATE VIEW head AS SELECT 1",
                changed("a view", "head"),
            ),
            ("DROP TABLE blobs", SchemaError::MissingTable("blobs")),
            ("PRAGMA user_version = 1", SchemaError::OtherFormat(1)),
            ("PRAGMA user_version = 3", SchemaError::OtherFormat(3)),
            ("PRAGMA application_id = 0", SchemaError::NoFormat),
        ] {
            assert_eq!(fault_after(sql), Some(expected), "{sql}");
        }
        // A table with one clause of its statement left out.
        for (name, statement) in TABLES {
            for clause in [
                "STRICT",
                " NOT NULL",
                " CHECK (one = 1)",
                " PRIMARY KEY",
                ", WITHOUT ROWID",
            ] {
                let other = statement.replacen(clause, "", 1);
                let sql = format!("DROP TABLE {name}; {other}");
                let db = journal();
                if other != statement && db.execute_batch(&sql).is_ok() {
                    let found = find_fault(&db).expect("read");
                    assert_eq!(found, Some(changed("a table", name)), "{sql}");
                }
            }
        }
    }
}
