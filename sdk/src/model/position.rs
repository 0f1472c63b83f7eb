/// A position in the journal: ordered by epoch, then by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalPosition {
    /// The incarnation of the journal: restoring a backup begins another.
    pub epoch: u64,
    /// Index of an entry: everything up to and including it is covered.
    pub index: u64,
}
