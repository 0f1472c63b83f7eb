//! The journal's schema: a trigger, a view, another column, index or table, or another format is refused by the audit, at a
//! start, by the doctor, and by the broker that runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use dipylon::broker::{BrokerOpenError, NotReady};
use dipylon::journal::{FaultInjection, JournalFault};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;
use rusqlite::Connection;

use crate::support::agent_in_task::agent_id;
use crate::support::cli_deployment::CliDeployment;
use crate::support::*;

/// Changes a database from outside the broker.
fn tamper(dir: &Path, sql: &str) {
    let db = Connection::open(dir.join("journal.db")).expect("opens");
    db.execute_batch(sql)
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// The output of `audit verify`: stdout when the journal is whole, else stderr.
fn audit(dir: &Path) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    command.args(["audit", "verify", "--data-dir"]).arg(dir);
    let output = command.output().expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

const BEFORE_ENTRY: &str =
    "CREATE TRIGGER keep_out BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END;";
const BEFORE_HEAD: &str =
    "CREATE TRIGGER keep_head BEFORE UPDATE ON head BEGIN SELECT RAISE(IGNORE); END;";
const AFTER_ENTRY: &str = "CREATE TRIGGER forget AFTER INSERT ON entries
                           BEGIN DELETE FROM entries WHERE idx = new.idx; END;";

/// The table `name` made again with the same rows, and a statement that differs.
fn remade(name: &str, statement: &str) -> String {
    format!(
        "CREATE TEMP TABLE kept AS SELECT * FROM {name}; DROP TABLE {name}; {statement}; INSERT INTO {name} SELECT * FROM kept;"
    )
}

/// The statements of a journal before there were format numbers.
const OLDER_FORM: &str = "
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL,
  frontier BLOB NOT NULL);
CREATE TABLE entries (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL, entry TEXT NOT NULL);
CREATE TABLE blobs (sha256 BLOB PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_schema_is_refused_by_audit_and_start() {
    let b = TestBroker::start().await;
    b.suspend("reporter").await.expect("suspended");
    tamper(&b.dir, "PRAGMA wal_checkpoint(TRUNCATE)");
    let temp = tempfile::tempdir().expect("dir");
    let mut copies = 0;
    let mut copy = || -> PathBuf {
        copies += 1;
        let dir = temp.path().join(copies.to_string());
        std::fs::create_dir(&dir).expect("dir");
        std::fs::copy(b.dir.join("journal.db"), dir.join("journal.db")).expect("copied");
        dir
    };
    let key = SigningKey::generate().expect("key").1;
    let start = async |dir: &Path| {
        let faults = FaultInjection::default();
        open_as(settings(), &b.env, dir, &b.clock, &key, faults).await
    };
    let no_check = remade(
        "head",
        "CREATE TABLE head (one INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL,
         frontier BLOB NOT NULL) STRICT",
    );
    let unique = remade(
        "entries",
        "CREATE TABLE entries (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL UNIQUE, entry TEXT NOT NULL) STRICT",
    );
    let older = format!(
        "DROP TABLE head; DROP TABLE entries; DROP TABLE blobs; PRAGMA application_id = 0; PRAGMA user_version = 0; {OLDER_FORM}"
    );
    for (sql, expected) in [
        (BEFORE_ENTRY, "a trigger `keep_out`"),
        (BEFORE_HEAD, "a trigger `keep_head`"),
        (AFTER_ENTRY, "a trigger `forget`"),
        (
            "ALTER TABLE entries RENAME TO stored; CREATE VIEW entries AS SELECT * FROM stored",
            "`stored`",
        ),
        (
            "DROP TABLE blobs; CREATE VIEW blobs AS SELECT x'' AS sha256, '' AS content",
            "table `blobs` as this version creates it, got a view that differs",
        ),
        (
            "CREATE VIEW latest AS SELECT * FROM entries",
            "a view `latest`",
        ),
        (
            "ALTER TABLE entries ADD COLUMN note TEXT",
            "table `entries`",
        ),
        (
            "ALTER TABLE entries ADD COLUMN length INTEGER AS (length(entry))",
            "table `entries`",
        ),
        (
            "CREATE INDEX by_leaf ON entries (leaf)",
            "an index `by_leaf`",
        ),
        ("CREATE TABLE notes (text TEXT)", "a table `notes`"),
        ("ANALYZE", "a table `sqlite_stat1`"),
        (&no_check, "table `head`"),
        (&unique, "`entries`"),
        ("DROP TABLE head", "no table `head`"),
        (&older, "is of format 1"),
        (
            "PRAGMA user_version = 1",
            "is of format 1; this version reads format 2",
        ),
        (
            "PRAGMA user_version = 3",
            "is of format 3; this version reads format 2",
        ),
        (
            "PRAGMA application_id = 7",
            "another application's database",
        ),
        (
            "PRAGMA ignore_check_constraints = 1; INSERT INTO head SELECT 2, epoch, size, root, frontier FROM head",
            "the journal's head cannot be read",
        ),
    ] {
        let dir = copy();
        tamper(&dir, sql);
        tamper(&dir, "PRAGMA wal_checkpoint(TRUNCATE)");
        let bytes = || std::fs::read(dir.join("journal.db")).expect("read");
        let before = bytes();
        let found = audit(&dir).expect_err(sql);
        assert!(found.contains(expected), "{sql}: {found}");
        let found = start(&dir).await.map(|_| ()).expect_err(sql);
        assert!(matches!(found, BrokerOpenError::Open(_)), "{sql}: {found}");
        assert!(found.to_string().contains(expected), "{sql}: {found}");
        assert!(bytes() == before, "{sql}: a refused start changes nothing");
    }
    // Another application's file, in another journal mode.
    let dir = temp.path().join("other");
    std::fs::create_dir(&dir).expect("dir");
    tamper(&dir, "CREATE TABLE t (a)");
    let bytes = || std::fs::read(dir.join("journal.db")).expect("read");
    let before = bytes();
    let found = audit(&dir).expect_err("not a journal");
    assert!(
        found.contains("a copy that lost its format number"),
        "{found}"
    );
    start(&dir).await.map(|_| ()).expect_err("not a journal");
    assert!(bytes() == before, "left as it was");
    // An empty file becomes a journal.
    let dir = temp.path().join("empty");
    std::fs::create_dir(&dir).expect("dir");
    std::fs::write(dir.join("journal.db"), "").expect("file");
    let found = audit(&dir).expect_err("no journal");
    assert!(found.contains("the journal's database is empty"), "{found}");
    start(&dir).await.map(|_| ()).expect("starts");
    audit(&dir).expect("whole");
    // What an operator may do, and a copy by SQLite itself.
    let dir = copy();
    tamper(&dir, "VACUUM");
    let copied = temp.path().join("copied");
    std::fs::create_dir(&copied).expect("dir");
    tamper(
        &dir,
        &format!("VACUUM INTO '{}/journal.db'", copied.display()),
    );
    for dir in [dir, copied] {
        assert!(audit(&dir).expect("whole").contains("verified: "));
        let started = start(&dir).await.expect("starts");
        assert!(started.show().is_suspended(&agent_id("reporter")));
    }
}

/// What is changed while the broker runs is found before the next entry counts, and only that stops the broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_broker_refuses_a_changed_schema() {
    let b = TestBroker::start().await;
    b.suspend("reporter").await.expect("suspended");
    let drop_trigger = |name: &str| format!("DROP TRIGGER {name}");
    for (sql, undo) in [
        (BEFORE_ENTRY, drop_trigger("keep_out")),
        (BEFORE_HEAD, drop_trigger("keep_head")),
        (AFTER_ENTRY, drop_trigger("forget")),
        (
            "CREATE INDEX by_leaf ON entries (leaf)",
            "DROP INDEX by_leaf".to_owned(),
        ),
        (
            "CREATE TABLE notes (text TEXT)",
            "DROP TABLE notes".to_owned(),
        ),
        (
            "ANALYZE",
            "DROP TABLE sqlite_stat1; DROP TABLE sqlite_stat4".to_owned(),
        ),
    ] {
        let size = b.broker.show().position().1;
        tamper(&b.dir, sql);
        for _ in 0..2 {
            let refusal = b.freeze("all").await.expect_err(sql);
            assert_eq!(refusal.reason, Reason::JournalUnavailable, "{sql}");
        }
        b.broker.retry_failing_journal().await;
        assert_eq!(
            b.broker.readiness(),
            Err(NotReady::Journal(JournalFault::WriteFailed)),
            "{sql}: the probe is refused too"
        );
        assert_eq!(b.broker.show().position().1, size, "{sql}");
        audit(&b.dir).expect_err(sql);
        tamper(&b.dir, &undo);
        b.broker.retry_failing_journal().await;
        assert_eq!(b.broker.readiness(), Ok(()), "{sql}");
        audit(&b.dir).expect("nothing acknowledged is lost");
        assert!(b.freeze("all").await.expect("frozen").changed, "{sql}");
        b.unfreeze("all").await.expect("unfrozen");
        assert_eq!(b.broker.show().position().1, size + 2, "{sql}");
    }
    // The schema's number moves, and the schema does not.
    tamper(&b.dir, "VACUUM");
    assert!(b.freeze("all").await.expect("frozen").changed);
    audit(&b.dir).expect("whole");
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(b.broker.show().freezes().len(), 1);
    b.check_invariants();
}

/// A head that another process changed, though the schema is unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_broker_refuses_another_head() {
    let b = TestBroker::start().await;
    b.suspend("reporter").await.expect("suspended");
    for (sql, undo) in [
        (
            "UPDATE head SET size = size + 1",
            "UPDATE head SET size = size - 1",
        ),
        (
            "UPDATE head SET epoch = 7",
            "UPDATE head SET epoch = epoch - 7",
        ),
    ] {
        tamper(&b.dir, sql);
        let refusal = b.freeze("all").await.expect_err(sql);
        assert_eq!(refusal.reason, Reason::JournalUnavailable, "{sql}");
        tamper(&b.dir, undo);
        audit(&b.dir).expect("nothing was written");
    }
    assert!(b.freeze("all").await.expect("frozen").changed);
}

#[test]
fn log_doctor_and_start_name_the_object() {
    let site = CliDeployment::new();
    site.write(
        "dipylon.toml",
        &format!("policy = \"policy\"\n{}", site.config()),
    );
    let order = |verb: &str| {
        let common = ["--url", &site.url, "--key", "olga.pem"];
        let reason = ["--reason", "an incident"];
        let more: &[&str] = if verb == "freeze" { &reason } else { &[] };
        site.run(&[&[verb, "all"], more, &common].concat())
    };
    let data = site.path("data");
    let named = "the journal has a trigger `keep_out`, which no broker created";

    let running = site.serve();
    let (code, _, stderr) = order("freeze");
    assert_eq!(code, 0, "{stderr}");
    tamper(&data, BEFORE_ENTRY);
    let (code, _, stderr) = order("unfreeze");
    assert_ne!(code, 0);
    assert!(
        stderr.contains("nothing was done") && stderr.contains("dipylon doctor"),
        "{stderr}"
    );
    assert!(running.stderr().contains(named), "{}", running.stderr());
    let doctor = || site.run(&["doctor", "--config", "dipylon.toml"]);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains(named) && out.contains("not ready: the journal's last write failed"),
        "{out}"
    );
    drop(running);

    for command in [
        &["serve", "--config", "dipylon.toml"][..],
        &["config", "check", "dipylon.toml"],
        &["audit", "verify", "--config", "dipylon.toml"],
    ] {
        let (code, out, stderr) = site.run(command);
        assert_eq!(code, 1, "{command:?}: {out}{stderr}");
        assert!(
            format!("{out}{stderr}").contains(named),
            "{command:?}: {out}{stderr}"
        );
    }
    tamper(&data, "DROP TRIGGER keep_out");
    let _running = site.serve();
    let (code, out, stderr) = order("unfreeze");
    assert_eq!(
        code, 0,
        "the freeze that was acknowledged holds: {out}{stderr}"
    );
}
