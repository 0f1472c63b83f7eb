//! The words everyone speaks. Plain values: parsed once at a door, then trusted as what they say they are.
//!
//! In: text, bytes and numbers from outside. Out: typed words, or [`Malformed`].
//! Nothing here reads a clock, draws a random number, or touches the world.

mod action;
mod agent;
mod decision;
mod digest;
mod entry;
mod freeze;
mod id;
pub mod json;
mod phrase;
mod refusal;
mod risk;
mod secret;
mod status;
mod stream;
pub mod text;
mod time;
mod vote;
mod workload;

pub use action::{
    Action, ActionOnRecord, ActionSecret, Opening, PARAM_DEPTH_MAX, PARAMETERS_MAX, Param, Target,
};
pub use agent::{Agent, AgentStanding};
pub use decision::{AskedInput, Bound, Decision, ProfileRef, RuleRef, TtlSum};
pub use digest::{Digest, Thumbprint};
pub use entry::*;
pub use freeze::FreezeScope;
pub use id::*;
pub use phrase::MatchPhrase;
pub use refusal::{DeniedReason, Reason};
pub use risk::Risk;
pub use secret::Secret;
pub use status::{Code, Detail, Exit, Retry};
pub use stream::{Stream, Version};
pub use time::{Timestamp, parse_duration, show_seconds};
pub use vote::{COMMENT_CHARS_MAX, Comment, Narrowing, Verdict, VoteStatement};
pub use workload::{Evidence, EvidenceFacts, EvidenceKind, SpiffeId, TrustDomain};

/// Input that is not in the form a word requires. Names the word and the rule it broke, never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {rule}")]
pub struct Malformed {
    /// The word or field, as its door calls it.
    pub what: &'static str,
    /// The rule that was broken.
    pub rule: String,
}

impl Malformed {
    /// `what` broke `rule`.
    pub fn new(what: &'static str, rule: impl Into<String>) -> Self {
        Self {
            what,
            rule: rule.into(),
        }
    }
}
