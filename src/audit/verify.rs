//! One walk over the whole journal that believes nothing it is told.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::tree::{Frontier, leaf_hash};
use super::votes::WrongVote;
use crate::model::json::JsonError;
use crate::model::{Digest, Entry, Malformed, Stream, Timestamp, Version};

/// A tree head that someone noted: `SIZE:ROOT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of entries.
    pub size: u64,
    /// Root over them.
    pub root: Digest,
}

impl Checkpoint {
    /// Reads `SIZE:ROOT`.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let wrong = || {
            Malformed::new(
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

/// The first thing that is wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// An entry is not the canonical form of anything we know.
    #[error("entry {index} cannot be read: {source}")]
    Unreadable {
        /// Where.
        index: u64,
        /// Why.
        source: JsonError,
    },
    /// The entry's own index is not its place.
    #[error("entry {index} says it is entry {says}: one was removed, added or moved")]
    OutOfPlace {
        /// Where it stands.
        index: u64,
        /// Where it says it stands.
        says: u64,
    },
    /// The stored leaf hash is not the hash of the stored entry.
    #[error("entry {0} was changed: its bytes do not have the stored leaf hash")]
    Changed(u64),
    /// Time or epoch run backwards.
    #[error("entry {0} is earlier than the one before it")]
    Backwards(u64),
    /// The entry rested on something that was not so (DESIGN law 7).
    #[error("entry {index} rests on {stream} at version {says}, but it was at {was}")]
    FalsePremise {
        /// Where.
        index: u64,
        /// The stream.
        stream: Stream,
        /// The version it claims.
        says: Version,
        /// The version the stream had.
        was: Version,
    },
    /// The head does not belong to these entries.
    #[error("the head says {head}, the entries give {found}")]
    Head {
        /// As stored.
        head: Checkpoint,
        /// As computed.
        found: Checkpoint,
    },
    /// The head is of another life than the last entry.
    #[error("the head is of epoch {head}, the last entry of epoch {last}")]
    Epoch {
        /// As stored.
        head: u64,
        /// As walked.
        last: u64,
    },
    /// A blob is not what its name says.
    #[error("the blob {0} was changed: its content has another hash")]
    BlobChanged(Digest),
    /// Blobs that entries name are not there.
    #[error("{count} blobs that entries name are missing, {first} among them")]
    BlobMissing {
        /// How many.
        count: usize,
        /// One of them.
        first: Digest,
    },
    /// A vote proves nothing.
    #[error("the vote in entry {index} proves nothing: {why}")]
    Vote {
        /// Where.
        index: u64,
        /// Why.
        why: WrongVote,
    },
    /// The checkpoint noted outside is not of this journal.
    #[error("the noted checkpoint {noted} does not match: {why}")]
    Against {
        /// As noted.
        noted: Checkpoint,
        /// What was found instead.
        why: String,
    },
}

/// What a whole journal looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditReport {
    /// Its tree head.
    pub head: Checkpoint,
    /// Its current life.
    pub epoch: u64,
    /// Whether a noted checkpoint was found inside it.
    pub against: Option<Checkpoint>,
}

/// The walk: feed it every stored entry in order, then [`Audit::finish`].
#[derive(Debug, Default)]
pub struct Audit {
    tree: Frontier,
    versions: HashMap<Stream, Version>,
    last: Option<(u64, Timestamp)>,
    named: HashSet<Digest>,
    noted: Option<Checkpoint>,
    met: bool,
}

impl Audit {
    /// A walk that also looks for a checkpoint noted earlier.
    pub fn against(noted: Option<Checkpoint>) -> Self {
        let mut audit = Self {
            noted,
            ..Self::default()
        };
        audit.meet();
        audit
    }

    /// Checks the next entry: its bytes, place, time, leaf hash, and that it rests on what was so.
    pub fn entry(&mut self, text: &str, stored_leaf: Digest) -> Result<Entry, AuditError> {
        let index = self.tree.size();
        let leaf = leaf_hash(text.as_bytes());
        if leaf != stored_leaf {
            return Err(AuditError::Changed(index));
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
        for (stream, says) in &entry.read_set {
            let was = self.versions.get(stream).copied().unwrap_or(0);
            if was != *says {
                return Err(AuditError::FalsePremise {
                    index,
                    stream: stream.clone(),
                    says: *says,
                    was,
                });
            }
        }
        for stream in &entry.moves {
            self.versions.insert(stream.clone(), index + 1);
        }
        self.named.extend(entry.fact.blobs());
        self.last = Some((entry.epoch, entry.at));
        self.tree.push(leaf);
        self.meet();
        Ok(entry)
    }

    /// Checks one stored blob.
    pub fn blob(&mut self, name: Digest, content: &str) -> Result<(), AuditError> {
        if Digest::of(content.as_bytes()) != name {
            return Err(AuditError::BlobChanged(name));
        }
        self.named.remove(&name);
        Ok(())
    }

    /// After the last blob: everything that entries name must have been there.
    pub fn blobs_end(&self) -> Result<(), AuditError> {
        match self.named.iter().min() {
            None => Ok(()),
            Some(first) => Err(AuditError::BlobMissing {
                count: self.named.len(),
                first: *first,
            }),
        }
    }

    /// Compares what was walked with the stored head and the noted checkpoint.
    pub fn finish(self, head: Checkpoint, epoch: u64) -> Result<AuditReport, AuditError> {
        let found = self.checkpoint();
        if found != head {
            return Err(AuditError::Head { head, found });
        }
        let last = self.last.map_or(0, |(epoch, _)| epoch);
        if last != epoch {
            return Err(AuditError::Epoch { head: epoch, last });
        }
        if let Some(noted) = self.noted.filter(|_| !self.met) {
            let why = if noted.size > found.size {
                format!("the journal has only {} entries", found.size)
            } else {
                "the root at that size is another: entries before it were rewritten".to_owned()
            };
            return Err(AuditError::Against { noted, why });
        }
        Ok(AuditReport {
            head,
            epoch,
            against: self.noted,
        })
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            size: self.tree.size(),
            root: self.tree.root(),
        }
    }

    fn meet(&mut self) {
        self.met |= self.noted == Some(self.checkpoint());
    }
}
