//! Streams and their versions: what entries move and rest on.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    AccessRequestId, AgentId, Digest, FreezeScope, KeyId, Malformed, PersonId, IdempotencyKey, TaskId,
    Thumbprint, TokenId, TrustDomain,
};

/// 1 + the index of the last entry that moved a stream; 0 = never moved.
pub type Version = u64;

/// What entries move and rest on: the one concurrency control.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// A task: opened, ended.
    Task(TaskId),
    /// The lease of a task with a heartbeat: extended.
    Lease(TaskId),
    /// The idempotency of opening: one task for an agent, key and request id. Apart, because it is the largest and the
    /// versions of as many streams as there are grants are kept.
    Open(Box<(AgentId, Thumbprint, IdempotencyKey)>),
    /// The idempotency of asking: a task and request id open access requests for one action and get one grant.
    Request(TaskId, IdempotencyKey),
    /// An access request: opened, each vote, consumed, closed.
    Access(AccessRequestId),
    /// All openings of access requests by an agent: they count each other, and join what is already open.
    Asks(AgentId),
    /// All openings of access requests by the agents of an owner: they count each other.
    OwnerAsks(PersonId),
    /// A token: used, reissued, ended.
    Token(TokenId),
    /// An agent: suspended, resumed.
    Agent(AgentId),
    /// A person: invited, enrolled, keys revoked.
    Person(PersonId),
    /// The active policy bundle.
    Policy,
    /// The keys of a trust domain.
    Trust(TrustDomain),
    /// A signing key.
    Key(KeyId),
    /// A freeze of everything, an agent, an owner or an action.
    Freeze(FreezeScope),
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(id) => write!(f, "task:{id}"),
            Self::Lease(id) => write!(f, "lease:{id}"),
            Self::Open(open) => {
                let (agent, key, request) = &**open;
                write!(f, "open:{agent}/{key}/{request}")
            }
            Self::Request(task, request) => write!(f, "req:{task}/{request}"),
            Self::Access(id) => write!(f, "access:{id}"),
            Self::Asks(agent) => write!(f, "asks:{agent}"),
            Self::OwnerAsks(owner) => write!(f, "owner-asks:{owner}"),
            Self::Token(id) => write!(f, "jti:{id}"),
            Self::Agent(id) => write!(f, "agent:{id}"),
            Self::Person(id) => write!(f, "person:{id}"),
            Self::Policy => f.write_str("policy"),
            Self::Trust(domain) => write!(f, "trust:{domain}"),
            Self::Key(kid) => write!(f, "key:{kid}"),
            Self::Freeze(scope) => write!(f, "freeze:{scope}"),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Stream {
    /// The stream of an opening.
    pub fn open(agent: AgentId, key: Thumbprint, request: IdempotencyKey) -> Self {
        Self::Open(Box::new((agent, key, request)))
    }

    /// Reads the written form.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let unknown = || Malformed::new("stream", "unknown");
        if text == "policy" {
            return Ok(Self::Policy);
        }
        let (kind, rest) = text.split_once(':').ok_or_else(unknown)?;
        let pair = || rest.split_once('/').ok_or_else(unknown);
        Ok(match kind {
            "task" => Self::Task(TaskId::parse(rest)?),
            "lease" => Self::Lease(TaskId::parse(rest)?),
            "open" => {
                let (agent, rest) = pair()?;
                let (key, request) = rest.split_once('/').ok_or_else(unknown)?;
                Self::open(
                    AgentId::parse(agent)?,
                    Thumbprint(Digest::parse(key)?),
                    IdempotencyKey::parse(request)?,
                )
            }
            "req" => {
                let (task, request) = pair()?;
                Self::Request(TaskId::parse(task)?, IdempotencyKey::parse(request)?)
            }
            "access" => Self::Access(AccessRequestId::parse(rest)?),
            "asks" => Self::Asks(AgentId::parse(rest)?),
            "owner-asks" => Self::OwnerAsks(PersonId::parse(rest)?),
            "jti" => Self::Token(TokenId::parse(rest)?),
            "agent" => Self::Agent(AgentId::parse(rest)?),
            "person" => Self::Person(PersonId::parse(rest)?),
            "trust" => Self::Trust(TrustDomain::parse(rest)?),
            "key" => Self::Key(KeyId::parse(rest)?),
            "freeze" => Self::Freeze(FreezeScope::parse(rest)?),
            _ => return Err(unknown()),
        })
    }
}

impl Serialize for Stream {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stream {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_small() {
        // Versions are kept of one for each grant: a task's id, a text and which kind it is.
        assert!(size_of::<Stream>() <= 40, "{}", size_of::<Stream>());
    }
}
