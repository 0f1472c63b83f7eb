//! The fold: what the journal asks of state before it writes an entry, and tells it afterwards.

use super::Committed;
use crate::model::{Counter, Entry, Stream, Timestamp, Version};

/// State as the journal's writer, a start and an audit use it: every entry is checked against the state before it, then folded in.
pub trait Fold: Send {
    /// The version of a stream; 0 for one that no entry has advanced.
    fn version(&self, stream: &Stream) -> Version;

    /// Whether an entry is legal in the state before it: what its kind must have read, may advance and must claim, and the
    /// transition it makes.
    fn check(&self, entry: &Entry) -> Result<(), IllegalEntry>;

    /// A count that claims bound, at a point in time.
    fn count(&self, counter: &Counter, at: Timestamp) -> u64;

    /// Folds a durable entry in. Called in order, before the append is answered.
    fn apply(&mut self, committed: &Committed);
}

/// Why an entry is not legal in the state before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {why}")]
pub struct IllegalEntry {
    /// The kind of entry.
    pub kind: &'static str,
    /// The rule that it breaks.
    pub why: String,
}
