//! Domain types: ids, actions, requests, entries and reasons. Plain values, parsed once at an entry point.
//!
//! In: text, bytes and numbers from outside. Out: typed values, or [`ParseError`].
//! Never: a clock, a random number, I/O.

mod action;
mod agent;
mod cause;
mod claim;
mod confirmation_code;
mod count;
mod decision;
mod digest;
mod entry;
mod event;
mod freeze;
mod id;
pub mod json;
mod phrase;
mod policy_changes;
mod policy_plan;
mod position;
mod refusal;
mod risk;
mod secret;
mod status;
mod stream;
pub mod text;
mod time;
mod url;
mod use_outcome;
mod vote;
mod workload;

pub use action::{
    Action, ActionOnRecord, ActionSecret, Opening, PARAM_DEPTH_MAX, PARAMETERS_MAX, Param, Target,
};
pub use agent::{AgentStatus, Autonomy, RegisteredAgent};
pub use cause::*;
pub use claim::{Claim, Counter, OPENINGS_WINDOW_S};
pub use confirmation_code::ConfirmationCode;
pub use count::{
    COUNT_STEP_MS, COUNT_WINDOW_MAX_S, CountKey, CountKind, CountSubject, CountValues, first_minute,
};
pub use decision::{
    DELAYS_S, DecisionRecord, Delay, FactValues, PolicyInput, ProfileRef, RuleRef, TtlBreakdown,
    TtlLimit,
};
pub use digest::{Digest, DigestPrefix, KeyIdentity, Thumbprint};
pub use entry::*;
pub use event::*;
pub use freeze::FreezeScope;
pub use id::*;
pub use phrase::MatchPhrase;
pub use policy_changes::{
    FileChange, POLICY_APPLY, POLICY_NAMESPACE, POLICY_SET_FACT, PolicyChanges, proposal_action,
};
pub use policy_plan::{
    AskedOfPeople, PlannedEnds, PlannedItem, PlannedList, PolicyPlan, ReplayClass, ReplayExample,
    ReplayOutcome, ReplaySummary,
};
pub use position::JournalPosition;
pub use refusal::{DeniedReason, Reason};
pub use risk::{Reversibility, Risk};
pub use secret::Secret;
pub use status::{Code, DetailVisibility, Exit, RetryHint};
pub use stream::{Stream, Version};
pub use time::{Timestamp, format_seconds, parse_duration};
pub use url::{HttpOrigin, is_same_request_uri};
pub use use_outcome::UseOutcome;
pub use vote::{
    COMMENT_CHARS_MAX, Comment, Narrowing, StatementRequester, VOTE_STATEMENT_FORM, Verdict,
    VoteMethod, VoteStatement,
};
pub use workload::{Evidence, EvidenceAges, EvidenceFacts, EvidenceKind, SpiffeId, TrustDomain};

/// Input that a type refuses. Names the field and the rule, never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ParseError {
    /// The field, as its caller knows it.
    pub field: &'static str,
    /// The broken rule, such as `must be 1 to 64 letters`.
    pub reason: String,
}

impl ParseError {
    /// `field` breaks the rule `reason`.
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self {
            field,
            reason: reason.into(),
        }
    }
}

/// Names the field that a value was read from, in place of the name of its type.
pub trait ParseField {
    /// The same with an error that names `field`, as its sender knows it.
    fn at(self, field: &'static str) -> Self;
}

impl<T> ParseField for Result<T, ParseError> {
    fn at(self, field: &'static str) -> Self {
        self.map_err(|error| ParseError { field, ..error })
    }
}
