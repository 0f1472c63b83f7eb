//! What an audit finds in votes and in the approvals of grants.

use std::collections::BTreeSet;

use crate::model::{ProfileName, Timestamp};
use crate::webauthn::{AssertionEvidenceError, WebauthnError};

/// Why a journalled vote cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
    /// The voter was not registered in the policy bundle active at the vote.
    #[error("its voter was not registered then")]
    VoterUnknown,
    /// The policy bundle active at the vote had no such profile, or another definition of it.
    #[error("its profile was not active then")]
    ProfileMismatch,
    /// The vote is by a key of `people.toml`, but its profile requires a passkey.
    #[error("its profile requires a passkey, and it was signed with a plain key")]
    PasskeyRequired,
    /// The vote is by a key of `people.toml`, but the action's risk requires a passkey.
    #[error("its action's risk requires a passkey, and it was signed with a plain key")]
    RiskRequiresPasskey,
    /// The access request was not pending at the vote.
    #[error("its access request was not pending then")]
    RequestNotPending,
    /// The signed statement cannot be read.
    #[error("its statement cannot be read")]
    Statement,
    /// The signed statement differs from the entry.
    #[error("its statement has another {0} than the entry")]
    EntryMismatch(&'static str),
    /// The signed statement differs from the access request.
    #[error("its statement has another {0} than the access request")]
    RequestMismatch(&'static str),
    /// The key was not the voter's at the vote, or was dead.
    #[error("its key was not an active key of the voter then")]
    KeyNotActive,
    /// The vote would not have counted: the voter's role or group, the owner of the agent or the task, another vote of theirs.
    #[error("it would not have counted then: {0}")]
    Ineligible(String),
    /// A key's signature does not verify.
    #[error("its signature does not verify")]
    Signature,
    /// A signature counter without a passkey's evidence.
    #[error("it has a signature counter but no passkey evidence")]
    NoEvidence,
    /// The evidence cannot be read.
    #[error("its evidence: {0}")]
    Evidence(#[from] AssertionEvidenceError),
    /// A WebAuthn check fails.
    #[error("its passkey: {0}")]
    Passkey(#[from] WebauthnError),
}

/// Why the approval that a grant names cannot be verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The votes do not satisfy the profiles that the grant says they did.
    #[error(
        "it says that its votes satisfied {says:?}, and those that counted then satisfied {counted:?}"
    )]
    Quorum {
        /// As the grant says.
        says: Vec<ProfileName>,
        /// As the votes say.
        counted: Vec<ProfileName>,
    },
    /// It allows more than the votes that counted.
    #[error("it has a longer life, a later end or more uses than its votes allowed")]
    Wider,
}

/// Why a decision on record cannot be one about its agent's evidence at its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecisionError {
    /// An age is not that of the evidence in the entry.
    #[error("has {field} {says}, and its evidence was {found} ms old at `input.now`")]
    Age {
        /// The member of `decision.input`.
        field: &'static str,
        /// As the decision says, in milliseconds.
        says: i64,
        /// By the evidence, in milliseconds.
        found: i64,
    },
    /// A reassessment says an age greater than the one that was on record.
    #[error("has {field} {says}, and {recorded} was on record before it, which never grows")]
    OlderThanRecorded {
        /// The member of `decision.input`.
        field: &'static str,
        /// As the decision says, in milliseconds.
        says: i64,
        /// As the decision before it says, in milliseconds.
        recorded: i64,
    },
    /// Its moment is not within the life of a decision before the entry.
    #[error(
        "has `input.now` {now}, and was entered at {at}: a decision is entered within 10 s after it"
    )]
    Moment {
        /// As the decision says.
        now: Timestamp,
        /// The time of the entry.
        at: Timestamp,
    },
}

/// Why the agreement to a change of the policy bundle cannot be verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgreementError {
    /// The bundle before it asks others to agree, and the entry names no proposal.
    #[error(
        "the bundle before it asks others than its operator to agree, and it names no proposal"
    )]
    NoProposal,
    /// The changes that people were shown are not those between the two bundles.
    #[error("the changes that it shows are not those between the two bundles")]
    Changes,
    /// The votes that counted are fewer than the bundle before it asks for.
    #[error("{counted} people agreed to it then, and the bundle before it asks for {quorum}")]
    Quorum {
        /// People whose votes counted.
        counted: usize,
        /// People whom the bundle asks for.
        quorum: u32,
    },
}

/// Counts of verified votes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VoteReport {
    /// Votes by keys of `people.toml`.
    pub by_key: u64,
    /// Votes by passkeys.
    pub by_passkey: u64,
    /// The web origins on which passkeys signed.
    pub origins: BTreeSet<String>,
    /// Tokens whose approval was verified: a quorum of distinct people with distinct living keys, for each profile.
    pub approved_tokens: u64,
    /// Policy bundles to which others than their proposer agreed, as the bundle before asked.
    pub agreed_changes: u64,
}
