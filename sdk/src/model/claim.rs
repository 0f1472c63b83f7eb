//! Claims: counts that limits bound, and the ceilings that an append must stay below.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{AgentId, ParseError, PersonId};

/// A count that a limit bounds. The entries of an append add one to it; no decision reads it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counter {
    /// Tasks of an agent that no entry has ended.
    OpenTasks(AgentId),
    /// Access requests of an agent that wait.
    PendingRequests(AgentId),
    /// Access requests of all agents of an owner that wait.
    OwnerPendingRequests(PersonId),
    /// Access requests that an agent opened within [`OPENINGS_WINDOW_S`] seconds.
    Openings(AgentId),
}

/// The window of [`Counter::Openings`], in seconds.
pub const OPENINGS_WINDOW_S: i64 = 60;

/// The ceiling of a count: the append that makes the claim is refused when the count has reached it. Written
/// `["open-tasks:AGENT", 1000]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Counter, u64)", into = "(Counter, u64)")]
pub struct Claim {
    /// The count.
    pub counter: Counter,
    /// The most it may reach.
    pub ceiling: u64,
}

impl From<(Counter, u64)> for Claim {
    fn from((counter, ceiling): (Counter, u64)) -> Self {
        Self { counter, ceiling }
    }
}

impl From<Claim> for (Counter, u64) {
    fn from(claim: Claim) -> Self {
        (claim.counter, claim.ceiling)
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenTasks(agent) => write!(f, "open-tasks:{agent}"),
            Self::PendingRequests(agent) => write!(f, "pending-requests:{agent}"),
            Self::OwnerPendingRequests(owner) => write!(f, "owner-pending-requests:{owner}"),
            Self::Openings(agent) => write!(f, "openings:{agent}"),
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Counter {
    /// The kind of count: the part of the written form before the id.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::OpenTasks(_) => "open-tasks",
            Self::PendingRequests(_) => "pending-requests",
            Self::OwnerPendingRequests(_) => "owner-pending-requests",
            Self::Openings(_) => "openings",
        }
    }

    /// Parses the written form.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let unknown = || ParseError::new("counter", "must be a known counter");
        let (kind, id) = text.split_once(':').ok_or_else(unknown)?;
        Ok(match kind {
            "open-tasks" => Self::OpenTasks(AgentId::parse(id)?),
            "pending-requests" => Self::PendingRequests(AgentId::parse(id)?),
            "owner-pending-requests" => Self::OwnerPendingRequests(PersonId::parse(id)?),
            "openings" => Self::Openings(AgentId::parse(id)?),
            _ => return Err(unknown()),
        })
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Counter {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}
