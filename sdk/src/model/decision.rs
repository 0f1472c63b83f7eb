use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DecisionId, Digest, EvidenceKind, ProfileName, Timestamp};

/// A rule, by its `@id` and the file of the policy bundle it stands in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleRef {
    /// The rule's `@id`.
    pub id: Arc<str>,
    /// Path inside the policy bundle.
    pub file: Arc<str>,
}

/// A step-up profile with the digest of its definition: a yes counts only while that is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProfileRef {
    /// The profile's name.
    pub name: ProfileName,
    /// Digest of its definition.
    pub digest: Digest,
}

/// One bound on a token's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// What sets it: `cap`, `task`, `evidence`, `rules`, `narrowing`, `approval`.
    pub by: Arc<str>,
    /// Seconds.
    pub seconds: i64,
}

/// How a token's life was computed: the least of what was asked and every bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtlSum {
    /// Seconds the agent asked for.
    pub asked: i64,
    /// Every bound that was looked at.
    pub bounds: Vec<Bound>,
    /// The result, in seconds.
    pub granted: i64,
}

/// What the rules were asked, kept so that later rules can be asked the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedInput {
    /// Milliseconds of life the decision allowed.
    pub ttl_ms: i64,
    /// Profiles that were satisfied by votes.
    pub approvals: Vec<ProfileName>,
    /// Kind of the evidence.
    pub evidence_kind: EvidenceKind,
    /// Milliseconds since this broker had verified it.
    pub evidence_age_ms: i64,
    /// `jkt`, later also `mtls` and `bearer`.
    pub binding: Arc<str>,
    /// Milliseconds since the task was opened.
    pub task_age_ms: i64,
    /// The moment of the decision.
    pub now: Timestamp,
}

/// One answer of gate 2, complete enough to be explained and asked again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The answer's own id.
    pub id: DecisionId,
    /// The policy bundle that decided.
    pub policy: Digest,
    /// The rules that determined it.
    pub rules: Arc<[RuleRef]>,
    /// Profiles still needed; empty when approved.
    pub needs: Vec<ProfileRef>,
    /// The life of the token.
    pub ttl: TtlSum,
    /// What the rules saw.
    pub input: AskedInput,
}
