//! Forged journals: a copy of the entries and blobs, changed, and what the vote verifier finds.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use dipylon::approve::audit::ApprovalVerifier;
use dipylon::audit::{AuditError, Frontier, VoteError, VoteReport, leaf_hash};
use dipylon::journal::{Blob, Committed, Fold as _, JournalReader};
use dipylon::state::{State, StateFold};
use dipylon_sdk::model::*;
use rusqlite::Connection;
use serde_json::Value;

use crate::support::*;

/// Entries and blobs of a journal, to be changed.
#[derive(Clone)]
pub struct JournalCopy {
    pub entries: Vec<Entry>,
    pub blobs: HashMap<Digest, Arc<str>>,
}

impl JournalCopy {
    pub fn read(b: &TestBroker) -> Self {
        let journal = JournalReader::open(&b.dir).expect("journal");
        let (mut entries, mut blobs) = (Vec::new(), HashMap::new());
        let all = journal.read_all(|stored| {
            entries.push(Entry::parse(&stored.text).expect("entry"));
            Ok(())
        });
        all.expect("readable");
        let read = journal.blobs(|name, content| {
            blobs.insert(name, content.into());
            Ok(())
        });
        read.expect("readable");
        Self { entries, blobs }
    }

    /// A data directory with what this copy says: a consistent journal, with the leaves, root and head that it takes.
    pub fn store(&self, b: &TestBroker, dir: &Path) {
        std::fs::create_dir(dir).expect("dir");
        let from = Connection::open(b.dir.join("journal.db")).expect("opens");
        let to = dir.join("journal.db");
        from.execute("VACUUM INTO ?1", [to.to_str().expect("a path")])
            .expect("copied");
        let mut db = Connection::open(to).expect("opens");
        let db = db.transaction().expect("begins");
        let mut tree = Frontier::default();
        for (index, entry) in self.entries.iter().enumerate() {
            let text = entry.canonical().expect("canonical");
            let leaf = leaf_hash(text.as_bytes());
            tree.push(leaf);
            db.execute(
                "INSERT OR REPLACE INTO entries (idx, leaf, entry) VALUES (?1, ?2, ?3)",
                (
                    i64::try_from(index).expect("small"),
                    &leaf.as_bytes()[..],
                    &text,
                ),
            )
            .expect("forged");
        }
        for (name, content) in &self.blobs {
            db.execute(
                "INSERT OR IGNORE INTO blobs (sha256, content) VALUES (?1, ?2)",
                (&name.as_bytes()[..], &**content),
            )
            .expect("stored");
        }
        let frontier: Vec<u8> = tree.peaks().iter().flat_map(|p| *p.as_bytes()).collect();
        let size = i64::try_from(tree.size()).expect("small");
        db.execute(
            "UPDATE head SET size = ?1, root = ?2, frontier = ?3",
            (size, &tree.root().as_bytes()[..], &frontier),
        )
        .expect("forged");
        db.commit().expect("stored");
    }

    pub fn votes(&self) -> Result<VoteReport, AuditError> {
        let mut votes = ApprovalVerifier::default();
        let state = Arc::new(State::default());
        let mut fold = StateFold::new(Arc::clone(&state), |_| {});
        for entry in &self.entries {
            let blob = |name: &Digest| Ok::<_, AuditError>(self.blobs.get(name).cloned());
            votes.entry(entry, &state, blob)?;
            let blobs = entry.event.blobs();
            let blobs = blobs.iter().filter_map(|name| self.blobs.get(name));
            let blobs = blobs.map(|text| Blob::new(text.as_ref())).collect();
            fold.apply(&Committed::unchecked(entry.clone(), blobs));
        }
        votes.finish(&state)
    }

    /// The index of the only event that matches.
    pub fn find(&self, is: impl Fn(&Event) -> bool) -> usize {
        let mut found = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, e)| is(&e.event));
        let (at, _) = found.next().expect("there");
        assert!(found.next().is_none(), "once");
        at
    }

    pub fn vote(&mut self, at: usize) -> &mut VoteCast {
        match &mut self.entries[at].event {
            Event::VoteCast(f) => f,
            other => panic!("no vote: {other:?}"),
        }
    }

    pub fn put_blob(&mut self, text: &str) -> Digest {
        let name = Digest::sha256(text.as_bytes());
        self.blobs.insert(name, text.into());
        name
    }

    /// Replaces the statement of a vote, and its digest in the entry.
    pub fn rewrite_statement(&mut self, at: usize, change: impl FnOnce(&mut VoteStatement)) {
        let name = self.vote(at).statement;
        let mut statement = VoteStatement::parse(&self.blobs[&name]).expect("statement");
        change(&mut statement);
        let text = statement.canonical().expect("canonical");
        self.vote(at).statement = self.put_blob(&text);
    }

    /// Replaces the assertion of a passkey vote, and its digest in the entry.
    pub fn rewrite_assertion(&mut self, at: usize, change: impl FnOnce(&mut Value)) {
        let name = self.vote(at).assertion.expect("by passkey");
        let mut evidence: Value = serde_json::from_str(&self.blobs[&name]).expect("JSON");
        change(&mut evidence);
        let text = dipylon_sdk::model::json::canonical(&evidence).expect("canonical");
        self.vote(at).assertion = Some(self.put_blob(&text));
    }
}

/// A journal to be changed, and the entry of the vote that must be named.
pub struct Forgery<'a> {
    pub whole: &'a JournalCopy,
    pub at: usize,
}

impl Forgery<'_> {
    /// The audit's finding after the change.
    pub fn rejected(&self, change: impl FnOnce(&mut JournalCopy, usize)) -> VoteError {
        let mut record = self.whole.clone();
        change(&mut record, self.at);
        match record.votes() {
            Err(AuditError::Vote { why, .. }) => why,
            other => panic!("not detected, or not as a wrong vote: {other:?}"),
        }
    }

    /// The same, attributed to the vote's own entry.
    pub fn rejected_at_vote(&self, change: impl FnOnce(&mut JournalCopy, usize)) -> VoteError {
        let mut record = self.whole.clone();
        change(&mut record, self.at);
        match record.votes() {
            Err(AuditError::Vote { index, why }) => {
                assert_eq!(index, record.entries[self.at].index);
                why
            }
            other => panic!("not detected, or not as a wrong vote: {other:?}"),
        }
    }
}
