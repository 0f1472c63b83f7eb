//! The audit: what anyone holding the entries can prove without us.
//!
//! In: entries and blobs as stored, the head, a root noted outside. Out: a report, or the first thing that is wrong.
//! Trusts nothing but SHA-256 and the signatures of people's own keys. Reads no file itself, writes nothing.

mod tree;
mod verify;
mod votes;

pub use tree::{Frontier, Inclusion, leaf_hash, verify_inclusion};
pub use verify::{Audit, AuditError, AuditReport, Checkpoint};
pub use votes::{Votes, VotesChecked, WrongVote};
