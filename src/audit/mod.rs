//! Audit: offline verification of a journal and its votes, without the broker.
//!
//! In: entries and blobs as stored, the head, a checkpoint noted outside. Out: a report, or the first error.
//! Trusts: SHA-256 and the signatures of people's own keys, nothing else. Never reads a file, never writes.

mod journal_verifier;
mod tree;
mod vote_verifier;

pub use journal_verifier::{AuditError, AuditReport, Checkpoint, JournalVerifier};
pub use tree::{Frontier, Inclusion, leaf_hash, verify_inclusion};
pub use vote_verifier::{VoteError, VoteReport, VoteVerifier};
