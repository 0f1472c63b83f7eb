//! Decisions of gate 2, as journalled.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    AgentId, CountValues, DecisionId, Digest, EvidenceAges, EvidenceKind, FactName, ProfileName,
    Timestamp, format_seconds,
};

/// Values of named facts.
pub type FactValues = BTreeMap<FactName, bool>;

/// A rule, by its `@id` and its file in the policy bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleRef {
    /// The rule's `@id`.
    pub id: Arc<str>,
    /// Path inside the policy bundle.
    pub file: Arc<str>,
}

/// A step-up profile with the digest of its definition: an approval counts only while the definition is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProfileRef {
    /// The profile's name.
    pub name: ProfileName,
    /// Digest of its definition.
    pub digest: Digest,
}

/// The shortest and the longest delay of a rule, in seconds.
pub const DELAYS_S: RangeInclusive<u32> = 60..=86_400;

/// What time alone changes in what is asked of people: after so many seconds without a no only these profiles are left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delay {
    /// Seconds from when it was put to people.
    pub seconds: u32,
    /// The profiles that are still required then, by name; empty: nobody.
    pub needs: Vec<ProfileRef>,
}

/// One limit on a token's lifetime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtlLimit {
    /// The source of the limit: `cap`, `task`, `evidence`, `rules`, `fact`, `recommendation`, `narrowing` or `approval`.
    pub source: Arc<str>,
    /// Seconds.
    pub seconds: i64,
}

/// How a token's lifetime was computed: the minimum of the requested one and every limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtlBreakdown {
    /// Seconds that the agent requested.
    pub requested: i64,
    /// Every limit that applied.
    pub limits: Vec<TtlLimit>,
    /// The result, in seconds.
    pub granted: i64,
}

/// The input that the policy was evaluated on, kept so that a later policy can be evaluated on the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInput {
    /// Token lifetime that was evaluated, in milliseconds.
    pub ttl_ms: i64,
    /// Profiles that were satisfied by votes.
    pub approvals: Vec<ProfileName>,
    /// The kind of the evidence.
    pub evidence_kind: EvidenceKind,
    /// Milliseconds since the issuer issued the evidence; since 1970 where the evidence does not say when.
    pub evidence_issued_age_ms: i64,
    /// Milliseconds since this broker last verified the evidence.
    pub evidence_verified_age_ms: i64,
    /// How the token is bound to its holder: `jkt`.
    pub binding: Arc<str>,
    /// Milliseconds since the task was opened.
    pub task_age_ms: i64,
    /// The time of the decision.
    pub now: Timestamp,
    /// The agent that would execute the action, which an advisory agent recommends: rules were asked about both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<AgentId>,
    /// The named facts that rules in scope read, with their values at that time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: FactValues,
    /// The counts that rules in scope read, as they were before this decision.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: CountValues,
    /// Milliseconds for which the access request had waited under what it requires; 0 where no delay lets it through.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waited_ms: i64,
    /// The counts of the agent that recommended the action, at the hand-over.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recommender_counts: CountValues,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl PolicyInput {
    /// The ages of the evidence.
    pub const fn evidence_ages(&self) -> EvidenceAges {
        EvidenceAges {
            issued_ms: self.evidence_issued_age_ms,
            verified_ms: self.evidence_verified_age_ms,
        }
    }
}

/// One decision of gate 2, complete enough to be explained and evaluated again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// The decision's id.
    pub id: DecisionId,
    /// Version of the policy bundle that decided.
    pub policy: Digest,
    /// The rules that determined it.
    pub rules: Arc<[RuleRef]>,
    /// Step-up profiles still required; empty when approved.
    pub required_profiles: Vec<ProfileRef>,
    /// What time alone changes in that, unless somebody says no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// The lifetime of the token.
    pub ttl: TtlBreakdown,
    /// The input of the policy.
    pub input: PolicyInput,
}

impl DecisionRecord {
    /// Whether an access request may be said to have waited so many milliseconds, which has required this for so many: not before the delay
    /// is over.
    pub fn may_have_waited(&self, waited_ms: i64, required_ms: i64) -> bool {
        let delay_ms = self.delay.as_ref().map(Delay::millis);
        waited_ms == 0
            || delay_ms.is_some_and(|delay_ms| (delay_ms..=required_ms).contains(&waited_ms))
    }

    /// Whether its delay is one that a broker records of what it asks people: a time within the bounds of rules, and fewer of the required
    /// profiles after it; and nothing has waited yet.
    pub fn has_sound_delay(&self) -> bool {
        let is_sound = |delay: &Delay| {
            let mut needs = delay.needs.iter();
            DELAYS_S.contains(&delay.seconds)
                && delay.needs.len() < self.required_profiles.len()
                && needs.all(|need| self.required_profiles.contains(need))
        };
        self.input.waited_ms == 0 && self.delay.as_ref().is_none_or(is_sound)
    }

    /// The profiles that are still required once the access request has waited so many milliseconds without a no.
    pub fn required_after(&self, waited_ms: i64) -> &[ProfileRef] {
        match &self.delay {
            Some(delay) if waited_ms >= delay.millis() => &delay.needs,
            Some(_) | None => &self.required_profiles,
        }
    }
}

impl Delay {
    /// It in words: what then, and after how long.
    pub fn text(&self) -> String {
        let names: Vec<&str> = self.needs.iter().map(|need| need.name.as_str()).collect();
        let then = match names.is_empty() {
            true => "allowed".to_owned(),
            false => format!("only {}", names.join(" and ")),
        };
        let time = format_seconds(i64::from(self.seconds));
        format!("{then} after {time} without a no")
    }

    /// The time in milliseconds.
    pub fn millis(&self) -> i64 {
        i64::from(self.seconds) * 1_000
    }
}
