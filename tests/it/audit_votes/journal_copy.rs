//! Forged journals: a copy of the entries and blobs, changed, and what the vote verifier finds.

use std::collections::HashMap;
use std::sync::Arc;

use dipylon::audit::{AuditError, VoteError, VoteReport, VoteVerifier};
use dipylon::journal::JournalReader;
use dipylon_sdk::model::*;
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

    pub fn votes(&self) -> Result<VoteReport, AuditError> {
        let mut votes = VoteVerifier::default();
        for entry in &self.entries {
            let blob = |name: &Digest| Ok::<_, AuditError>(self.blobs.get(name).cloned());
            votes.entry(entry, blob)?;
        }
        Ok(votes.report().clone())
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
