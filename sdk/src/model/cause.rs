//! Causes and outcomes in journal entries: why a task, grant, access request or key ended, and what a token is bound to.

use serde::{Deserialize, Serialize};

use super::*;

/// Why a task or grant ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// The agent completed the task.
    Completed,
    /// The task's deadline passed.
    Deadline,
    /// A heartbeat was missed: the lease ended.
    Lease,
    /// An operator ended it.
    Operator,
    /// The agent was suspended.
    Suspended,
    /// The agent, its owner, the action or everything was frozen.
    Frozen,
    /// The policy bundle no longer allows it.
    Policy,
    /// The key that verified its evidence is no longer trusted.
    Trust,
}

impl EndCause {
    /// The name in entries, replies and explanations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Deadline => "deadline",
            Self::Lease => "lease",
            Self::Operator => "operator",
            Self::Suspended => "suspended",
            Self::Frozen => "frozen",
            Self::Policy => "policy",
            Self::Trust => "trust",
        }
    }

    /// Why a task ended, as a clause for its agent.
    pub const fn of_task(self) -> &'static str {
        match self {
            Self::Completed => "its agent completed it",
            Self::Deadline => "its deadline passed",
            Self::Lease => "a heartbeat was missed",
            Self::Operator => "an operator ended it",
            Self::Suspended => "its agent was suspended",
            Self::Frozen => "an operator froze its agent, its owner or everything",
            Self::Policy => "the policy no longer allows it",
            Self::Trust => "the key that verified its evidence is no longer trusted",
        }
    }
}

/// The outcome of a task, as its agent reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskOutcome {
    /// The purpose was achieved.
    Succeeded,
    /// The purpose was not achieved.
    Failed,
    /// The task was abandoned.
    Abandoned,
}

/// Why an access request was closed without a grant or a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseCause {
    /// The agent cancelled it.
    Cancelled,
    /// It expired undecided.
    Expired,
    /// The active policy bundle no longer requires this approval.
    Policy,
    /// The action was frozen.
    Frozen,
    /// Too few people were left who could approve it.
    NoEligibleApprover,
}

/// The key that a token's holder must prove (RFC 7800).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// DPoP proofs by the key with this thumbprint (RFC 9449).
    Jkt(Thumbprint),
}

impl Binding {
    /// The name that rules see of a binding to a key.
    pub const JKT: &'static str = "jkt";

    /// The name that rules see.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Jkt(_) => Self::JKT,
        }
    }

    /// The key's thumbprint.
    pub const fn jkt(&self) -> Thumbprint {
        match self {
            Self::Jkt(t) => *t,
        }
    }
}

/// The `approval` claim: the access request, its profiles and its time. Names no person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalClaim {
    /// The consumed access request.
    pub access_request: AccessRequestId,
    /// The satisfied profiles.
    pub profiles: Vec<ProfileName>,
    /// Unix seconds of the last counted vote.
    pub at: i64,
}

/// Why a key was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokeCause {
    /// An operator revoked it. The person's open invitation is void too.
    Operator,
    /// An operator revoked it because another person may have it: also the last living key of the operators. The person's open
    /// invitation is void too.
    Compromised,
    /// Its signature counter decreased: the authenticator may have been cloned (WebAuthn L3 §6.1.1).
    Counter,
}
