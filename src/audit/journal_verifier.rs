//! Journal verification: one pass over every stored entry and blob that recomputes every hash and version.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::tree::{Frontier, leaf_hash};
use super::vote_error::{AgreementError, DecisionError, GrantError, VoteError};
use crate::model::json::JsonError;
use crate::model::{Digest, Entry, ParseError, Stream, Timestamp, Version};

/// A Merkle tree head, written `SIZE:ROOT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of entries.
    pub size: u64,
    /// Root over them.
    pub root: Digest,
}

impl Checkpoint {
    /// Reads `SIZE:ROOT`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let wrong = || {
            ParseError::new(
                "checkpoint",
                "must be SIZE:ROOT, as 'audit verify' prints it",
            )
        };
        let (size, root) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self {
            size: size.parse().map_err(|_| wrong())?,
            root: Digest::parse(root).map_err(|_| wrong())?,
        })
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.size, self.root)
    }
}

/// The first error found in a journal.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// An entry is not the canonical form of a known entry.
    #[error("entry {index} cannot be read: {source}")]
    Unreadable {
        /// Index of the entry.
        index: u64,
        /// The cause.
        source: JsonError,
    },
    /// The entry's own index is not its place.
    #[error("entry {index} has index {says}: an entry was removed, added or moved")]
    OutOfPlace {
        /// Its place.
        index: u64,
        /// Its own index.
        says: u64,
    },
    /// The stored leaf hash is not the hash of the stored entry.
    #[error("entry {0} was changed: its bytes do not have the stored leaf hash")]
    LeafHashMismatch(u64),
    /// Its time or epoch is before that of the entry before it.
    #[error("entry {0} is earlier than the entry before it")]
    Backwards(u64),
    /// The entry's read set or write set does not match the versions at its index (INV-7).
    #[error(
        "entry {index} rests on {stream} at version {says}, but the stream was at version {was}"
    )]
    StaleRead {
        /// Index of the entry.
        index: u64,
        /// The stream.
        stream: Stream,
        /// The version in the entry.
        says: Version,
        /// The version the stream had.
        was: Version,
    },
    /// The entry is not legal in the state before it: what its kind must have read, may advance, or the transition it makes.
    #[error("entry {index} is not legal: {why}")]
    Illegal {
        /// Index of the entry.
        index: u64,
        /// The rule that it breaks.
        why: String,
    },
    /// The stored head is not that of the entries.
    #[error("the stored head is {head}, but the entries give {found}")]
    Head {
        /// As stored.
        head: Checkpoint,
        /// As computed.
        found: Checkpoint,
    },
    /// The head's epoch is not the last entry's.
    #[error("the stored head is of epoch {head}, but the last entry is of epoch {last}")]
    Epoch {
        /// As stored.
        head: u64,
        /// Of the last entry.
        last: u64,
    },
    /// The agreement to a change of the policy bundle cannot be verified.
    #[error("the policy bundle of entry {index}: {why}")]
    Agreement {
        /// Index of the entry.
        index: u64,
        /// The cause.
        why: AgreementError,
    },
    /// A blob's content does not have its hash.
    #[error("the blob {0} was changed: its content has another hash")]
    BlobChanged(Digest),
    /// Blobs that entries name are missing.
    #[error("{count} blobs that entries name are missing, {first} among them")]
    BlobMissing {
        /// Number of missing blobs.
        count: usize,
        /// One of them.
        first: Digest,
    },
    /// A vote cannot be verified.
    #[error("the vote in entry {index} cannot be verified: {why}")]
    Vote {
        /// Index of the entry.
        index: u64,
        /// The cause.
        why: VoteError,
    },
    /// The approval of a grant cannot be verified.
    #[error("the token of entry {index} was not approved as it says: {why}")]
    Grant {
        /// Index of the entry.
        index: u64,
        /// The cause.
        why: GrantError,
    },
    /// A decision does not fit the evidence or the time of its entry.
    #[error("the decision of entry {index} {why}")]
    Decision {
        /// Index of the entry.
        index: u64,
        /// The cause.
        why: DecisionError,
    },
    /// The policy bundle in force from an entry on registers what the journal does not permit.
    #[error("the policy bundle of entry {index} could not be in force: {why}")]
    Registration {
        /// Index of the entry.
        index: u64,
        /// The cause.
        why: String,
    },
    /// The checkpoint noted outside is not one of this journal.
    #[error("the noted checkpoint {noted} does not match: {why}")]
    CheckpointMismatch {
        /// As noted.
        noted: Checkpoint,
        /// The difference.
        why: String,
    },
}

/// The result of a verification without errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditReport {
    /// Its tree head.
    pub head: Checkpoint,
    /// Its epoch.
    pub epoch: u64,
    /// The noted checkpoint, which was found in it; absent when none was given.
    pub noted: Option<Checkpoint>,
}

/// Verifies a journal: give it every stored entry in order, every blob, then call [`JournalVerifier::finish`].
#[derive(Debug, Default)]
pub struct JournalVerifier {
    tree: Frontier,
    versions: HashMap<Stream, Version>,
    last: Option<(u64, Timestamp)>,
    named: HashSet<Digest>,
    noted: Option<Checkpoint>,
    noted_found: bool,
}

impl JournalVerifier {
    /// A verifier that also looks for a checkpoint noted earlier.
    pub fn with_checkpoint(noted: Option<Checkpoint>) -> Self {
        let mut verifier = Self {
            noted,
            ..Self::default()
        };
        verifier.check_checkpoint();
        verifier
    }

    /// Checks the next entry: its bytes, index, time, leaf hash, read set and write set.
    pub fn entry(&mut self, text: &str, stored_leaf: Digest) -> Result<Entry, AuditError> {
        let index = self.tree.size();
        let leaf = leaf_hash(text.as_bytes());
        if leaf != stored_leaf {
            return Err(AuditError::LeafHashMismatch(index));
        }
        let entry =
            Entry::parse(text).map_err(|source| AuditError::Unreadable { index, source })?;
        if entry.index != index {
            return Err(AuditError::OutOfPlace {
                index,
                says: entry.index,
            });
        }
        if self
            .last
            .is_some_and(|(epoch, at)| entry.epoch < epoch || entry.at < at)
        {
            return Err(AuditError::Backwards(index));
        }
        for (stream, says) in entry.read_set.iter().chain(&entry.write_set) {
            let was = self.versions.get(stream).copied().unwrap_or(0);
            if was != *says {
                return Err(AuditError::StaleRead {
                    index,
                    stream: stream.clone(),
                    says: *says,
                    was,
                });
            }
        }
        for (stream, _) in &entry.write_set {
            self.versions.insert(stream.clone(), index + 1);
        }
        self.named.extend(entry.event.blobs());
        self.last = Some((entry.epoch, entry.at));
        self.tree.push(leaf);
        self.check_checkpoint();
        Ok(entry)
    }

    /// Checks one stored blob.
    pub fn blob(&mut self, name: Digest, content: &str) -> Result<(), AuditError> {
        if Digest::sha256(content.as_bytes()) != name {
            return Err(AuditError::BlobChanged(name));
        }
        self.named.remove(&name);
        Ok(())
    }

    /// After the last blob: checks that every blob named by an entry was seen.
    pub fn finish_blobs(&self) -> Result<(), AuditError> {
        match self.named.iter().min() {
            None => Ok(()),
            Some(first) => Err(AuditError::BlobMissing {
                count: self.named.len(),
                first: *first,
            }),
        }
    }

    /// Compares the entries with the stored head and the noted checkpoint.
    pub fn finish(self, head: Checkpoint, epoch: u64) -> Result<AuditReport, AuditError> {
        let found = self.checkpoint();
        if found != head {
            return Err(AuditError::Head { head, found });
        }
        let last = self.last.map_or(0, |(epoch, _)| epoch);
        if last != epoch {
            return Err(AuditError::Epoch { head: epoch, last });
        }
        if let Some(noted) = self.noted.filter(|_| !self.noted_found) {
            let why = if noted.size > found.size {
                format!("the journal has only {} entries", found.size)
            } else {
                "the journal has another root at that size: entries before it were rewritten"
                    .to_owned()
            };
            return Err(AuditError::CheckpointMismatch { noted, why });
        }
        Ok(AuditReport {
            head,
            epoch,
            noted: self.noted,
        })
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            size: self.tree.size(),
            root: self.tree.root(),
        }
    }

    fn check_checkpoint(&mut self) {
        self.noted_found |= self.noted == Some(self.checkpoint());
    }
}
