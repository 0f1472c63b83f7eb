//! Audit: offline verification of a journal, and of the receipt of one token, without the broker. Votes and approvals of a journal are
//! verified by [`crate::approve::audit`].
//!
//! In: entries and blobs as stored, the head, a checkpoint noted outside; or a receipt and published keys. Out: a report, or the
//! first error. Trusts: SHA-256; for a receipt, also the broker's published key and the signatures of people's own keys. Never reads a
//! file, never writes.

mod inclusion;
mod journal_verifier;
mod receipt;
mod receipt_entries;
mod receipt_verifier;
mod receipt_votes;
mod tree;
mod vote_error;

pub use inclusion::{BLOCK_LEAVES, BlockRoots, InclusionPaths};
pub use journal_verifier::{AuditError, AuditReport, Checkpoint, JournalVerifier};
pub use receipt::{
    PATH_MAX, ProfileDefinition, RECEIPT_BYTES_MAX, RECEIPT_ENTRIES_MAX, RECEIPT_FORM,
    ReceiptEntry, ReceiptError, ReceiptPart, SignedCheckpoint, TokenReceipt, VoteEvidence,
};
pub use receipt_entries::RecordedToken;
pub use receipt_verifier::{ExpectedReceipt, VerifiedReceipt, verify_receipt};
pub use receipt_votes::VerifiedVote;
pub use tree::{Frontier, Inclusion, leaf_hash, verify_inclusion};
pub use vote_error::{AgreementError, DecisionError, GrantError, VoteError, VoteReport};
