//! Audit (INV-10): the tree detects any change of an old entry; an external checkpoint detects a consistent rewrite.

use std::path::Path;
use std::process::Command;

use dipylon::audit::{Checkpoint, Frontier, JournalVerifier, leaf_hash};
use dipylon::journal::JournalReader;
use rusqlite::Connection;

use crate::support::*;

/// The output of `audit verify` on a journal.
fn verdict(dir: &Path, against: Option<&str>) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    command.args(["audit", "verify", "--data-dir"]).arg(dir);
    if let Some(noted) = against {
        command.args(["--against", noted]);
    }
    let output = command.output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// A closed journal with some history, and two checkpoints taken on the way.
async fn history() -> (TestBroker, Vec<Checkpoint>) {
    let b = TestBroker::start().await;
    let mut noted = vec![b.broker.journal().head().borrow().checkpoint];
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    b.request_token(&triage, task, &read_case(), 300, "r-1")
        .await
        .token();
    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "r-2")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    noted.push(b.broker.journal().head().borrow().checkpoint);
    b.request_token(&triage, task, &disable("ann"), 300, "r-2")
        .await
        .token();
    b.complete_task(&triage, task).await.expect("ends");
    (b, noted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tampering_is_detected() {
    let (b, noted) = history().await;
    for root in &noted {
        let whole = verdict(&b.dir, Some(&root.to_string())).expect("whole");
        assert!(whole.contains("verified: "), "{whole}");
    }
    let size = b.broker.show().position().1 + 1;
    let source = b.dir.clone();
    // The WAL is emptied, so that a copy of one file is the journal.
    Connection::open(source.join("journal.db"))
        .and_then(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
        .expect("checkpoint");
    let temp = tempfile::tempdir().expect("dir");
    let mut n = 0;
    let mut tampered = |why: &str, sql: &str| {
        n += 1;
        let dir = temp.path().join(n.to_string());
        std::fs::create_dir(&dir).expect("dir");
        std::fs::copy(source.join("journal.db"), dir.join("journal.db")).expect("copy");
        Connection::open(dir.join("journal.db"))
            .and_then(|db| db.execute_batch(sql))
            .expect(why);
        let found = verdict(&dir, None).expect_err(why);
        assert!(
            found.contains("verification failed") || found.contains("head"),
            "{why}: {found}"
        );
    };
    for index in 0..size {
        tampered(
            "a changed byte",
            &format!(
                "UPDATE entries SET entry = replace(entry, '\"v\":2', '\"v\":3') WHERE idx = {index}"
            ),
        );
        tampered(
            "a changed time",
            &format!(
                "UPDATE entries SET entry = replace(entry, '\"at\":18', '\"at\":17') WHERE idx = {index}"
            ),
        );
        tampered(
            "a changed leaf",
            &format!("UPDATE entries SET leaf = zeroblob(32) WHERE idx = {index}"),
        );
    }
    tampered(
        "the last entry deleted",
        &format!("DELETE FROM entries WHERE idx = {}", size - 1),
    );
    tampered(
        "an entry deleted from the middle",
        "DELETE FROM entries WHERE idx = 3",
    );
    tampered(
        "two entries swapped",
        "UPDATE entries SET idx = 999 WHERE idx = 4; UPDATE entries SET idx = 4 WHERE idx = 5; UPDATE entries SET idx = 5 WHERE idx = 999;",
    );
    tampered(
        "an entry added",
        "INSERT INTO entries SELECT idx + 1, leaf, entry FROM entries ORDER BY idx DESC LIMIT 1",
    );
    tampered("a shorter head", "UPDATE head SET size = size - 1");
    tampered("another root", "UPDATE head SET root = zeroblob(32)");
    tampered("another epoch", "UPDATE head SET epoch = 7");
    tampered(
        "a changed blob",
        "UPDATE blobs SET content = content || ' '",
    );
    tampered(
        "a blob deleted",
        "DELETE FROM blobs WHERE sha256 = (SELECT sha256 FROM blobs LIMIT 1)",
    );
}

/// An attacker with full access rewrites everything consistently: only an external checkpoint detects it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rewrite_is_detected_with_external_checkpoint() {
    let (b, noted) = history().await;
    let journal = JournalReader::open(&b.dir).expect("journal");
    let mut entries = Vec::new();
    journal
        .read_all(|stored| {
            entries.push(stored.text);
            Ok(())
        })
        .expect("readable");
    // A vote that was never cast, in canonical form.
    let forged: Vec<String> = entries
        .iter()
        .map(|text| text.replace("\"voter\":\"maria\"", "\"voter\":\"lee\""))
        .collect();
    assert_ne!(entries, forged);
    let walk = |texts: &[String], noted: Option<Checkpoint>| {
        let mut audit = JournalVerifier::with_checkpoint(noted);
        let mut tree = Frontier::default();
        for text in texts {
            tree.push(leaf_hash(text.as_bytes()));
            audit
                .entry(text, leaf_hash(text.as_bytes()))
                .map_err(|e| e.to_string())?;
        }
        let head = Checkpoint {
            size: tree.size(),
            root: tree.root(),
        };
        audit.finish(head, 0).map_err(|e| e.to_string())
    };
    walk(&forged, None).expect("consistent");
    walk(&forged, Some(noted[0])).expect("the part before the forgery is unchanged");
    assert!(
        walk(&forged, Some(noted[1]))
            .expect_err("the checkpoint after it does not match")
            .contains("rewritten")
    );
    assert!(
        walk(&entries[..4], Some(noted[1]))
            .expect_err("truncated")
            .contains("only 4 entries")
    );
    walk(&entries, Some(noted[1])).expect("the original matches");
    // Law 7 from the entries alone: a read set with a version that never existed is detected.
    let issued = entries
        .iter()
        .position(|e| e.contains("\"kind\":\"TokenIssued\""))
        .expect("a mint");
    let mut forged_read_set = entries.clone();
    forged_read_set[issued] =
        forged_read_set[issued].replace("[\"agent:triage\",0]", "[\"agent:triage\",1]");
    assert_ne!(forged_read_set, entries);
    assert!(
        walk(&forged_read_set, None)
            .expect_err("a false read set")
            .contains("agent:triage")
    );
}
