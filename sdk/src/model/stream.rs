//! Streams and their versions: the units of optimistic concurrency control.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    AccessRequestId, AgentId, Digest, FreezeScope, IdempotencyKey, KeyId, ParseError, PersonId,
    TaskId, Thumbprint, TokenId, TrustDomain,
};

/// Version of a stream: 1 + the index of the last entry that advanced it; 0 before the first.
pub type Version = u64;

/// A stream: entries advance it (write set) and depend on its version (read set).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// A task: opened, ended.
    Task(TaskId),
    /// The lease of a task with a heartbeat: extended.
    Lease(TaskId),
    /// Idempotency of opening a task: one task for an agent, key and idempotency key. Boxed, to keep [`Stream`] small: the
    /// journal holds the version of one stream per grant.
    OpenTask(Box<(AgentId, Thumbprint, IdempotencyKey)>),
    /// Idempotency of requesting a token: a task and idempotency key open access requests for one action and get one grant.
    TokenRequest(TaskId, IdempotencyKey),
    /// An access request: opened, voted on, consumed, closed.
    AccessRequest(AccessRequestId),
    /// A refused vote: one entry for an access request, a voter and the digest of the reason.
    RefusedVote(Box<(AccessRequestId, PersonId, Digest)>),
    /// All openings of access requests by an agent, which its limits count and which attach to an open one.
    AgentRequests(AgentId),
    /// All openings of access requests by the agents of an owner, which the owner's limits count.
    OwnerRequests(PersonId),
    /// A token: consumed, reissued, ended.
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
            Self::OpenTask(open) => {
                let (agent, key, request) = &**open;
                write!(f, "open-task:{agent}/{key}/{request}")
            }
            Self::TokenRequest(task, request) => write!(f, "token-request:{task}/{request}"),
            Self::AccessRequest(id) => write!(f, "access-request:{id}"),
            Self::RefusedVote(vote) => {
                let (request, voter, reason) = &**vote;
                write!(f, "refused-vote:{request}/{voter}/{reason}")
            }
            Self::AgentRequests(agent) => write!(f, "agent-requests:{agent}"),
            Self::OwnerRequests(owner) => write!(f, "owner-requests:{owner}"),
            Self::Token(id) => write!(f, "token:{id}"),
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
    /// The stream of opening a task.
    pub fn open_task(agent: AgentId, key: Thumbprint, request: IdempotencyKey) -> Self {
        Self::OpenTask(Box::new((agent, key, request)))
    }

    /// The stream of a refused vote.
    pub fn refused_vote(request: AccessRequestId, voter: PersonId, reason: &str) -> Self {
        Self::RefusedVote(Box::new((
            request,
            voter,
            Digest::sha256(reason.as_bytes()),
        )))
    }

    /// Parses the written form.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let unknown = || ParseError::new("stream", "must be a known stream");
        if text == "policy" {
            return Ok(Self::Policy);
        }
        let (kind, rest) = text.split_once(':').ok_or_else(unknown)?;
        let pair = || rest.split_once('/').ok_or_else(unknown);
        Ok(match kind {
            "task" => Self::Task(TaskId::parse(rest)?),
            "lease" => Self::Lease(TaskId::parse(rest)?),
            "open-task" => {
                let (agent, rest) = pair()?;
                let (key, request) = rest.split_once('/').ok_or_else(unknown)?;
                Self::open_task(
                    AgentId::parse(agent)?,
                    Thumbprint(Digest::parse(key)?),
                    IdempotencyKey::parse(request)?,
                )
            }
            "token-request" => {
                let (task, request) = pair()?;
                Self::TokenRequest(TaskId::parse(task)?, IdempotencyKey::parse(request)?)
            }
            "access-request" => Self::AccessRequest(AccessRequestId::parse(rest)?),
            "refused-vote" => {
                let (request, rest) = pair()?;
                let (voter, reason) = rest.split_once('/').ok_or_else(unknown)?;
                Self::RefusedVote(Box::new((
                    AccessRequestId::parse(request)?,
                    PersonId::parse(voter)?,
                    Digest::parse(reason)?,
                )))
            }
            "agent-requests" => Self::AgentRequests(AgentId::parse(rest)?),
            "owner-requests" => Self::OwnerRequests(PersonId::parse(rest)?),
            "token" => Self::Token(TokenId::parse(rest)?),
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
    fn stream_size_is_bounded() {
        // A task's id, a text and the tag.
        assert!(size_of::<Stream>() <= 40, "{}", size_of::<Stream>());
    }
}
