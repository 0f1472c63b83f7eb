//! Streams and their versions: the units of optimistic concurrency control.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    AccessRequestId, ActionName, AgentId, CountKey, Digest, FactName, FreezeScope, IdempotencyKey,
    KeyId, KeyIdentity, ParseError, PersonId, Target, TaskId, Thumbprint, TokenId, TrustDomain,
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
    /// The openings of access requests in a task for one action on one target: one is open at a time for the same parameters. The
    /// digest is of the names alone, see [`Stream::task_action`].
    TaskAction(Box<(TaskId, Digest)>),
    /// The proposals of policy bundles by a person.
    Proposals(PersonId),
    /// Denials of an agent's access requests by people, which its back-off and its automatic suspension count.
    Denials(AgentId),
    /// A token: issued, consumed, reissued, ended.
    Token(TokenId),
    /// An agent: suspended, resumed.
    Agent(AgentId),
    /// The keys of a person: enrolled, revoked.
    Person(PersonId),
    /// The invitation of a person: given, used. A revocation of the person's keys withdraws it by the person's own stream, so that no
    /// number of invitations keeps it from its end.
    Invitation(PersonId),
    /// The keys of all people: every enrolment and every revocation moves it, beside the person's own stream.
    Credentials,
    /// The enrolment of a public key as a passkey: once, with every key that its holder has by it.
    EnrolledKey(KeyIdentity),
    /// The enrolment of a WebAuthn credential, by its id in base64url: once.
    Credential(Box<str>),
    /// The active policy bundle.
    Policy,
    /// The keys of a trust domain.
    Trust(TrustDomain),
    /// A signing key.
    Key(KeyId),
    /// A freeze of everything, an agent, an owner or an action.
    Freeze(FreezeScope),
    /// A named fact of the policy bundle: set.
    Fact(FactName),
    /// A count of the policy bundle: every entry that it counts moves it. Boxed, to keep [`Stream`] small.
    Count(Box<CountKey>),
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
            Self::TaskAction(action) => {
                let (task, names) = &**action;
                write!(f, "task-action:{task}/{names}")
            }
            Self::Proposals(person) => write!(f, "proposals:{person}"),
            Self::Denials(agent) => write!(f, "denials:{agent}"),
            Self::Token(id) => write!(f, "token:{id}"),
            Self::Agent(id) => write!(f, "agent:{id}"),
            Self::Person(id) => write!(f, "person:{id}"),
            Self::Invitation(id) => write!(f, "invitation:{id}"),
            Self::Credentials => f.write_str("credentials"),
            Self::EnrolledKey(key) => write!(f, "enrolled-key:{key}"),
            Self::Credential(id) => write!(f, "credential:{id}"),
            Self::Policy => f.write_str("policy"),
            Self::Trust(domain) => write!(f, "trust:{domain}"),
            Self::Key(kid) => write!(f, "key:{kid}"),
            Self::Freeze(scope) => write!(f, "freeze:{scope}"),
            Self::Fact(name) => write!(f, "fact:{name}"),
            Self::Count(key) => write!(f, "count:{key}"),
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

    /// The stream of the access requests in a task for one action and target. Parameters are no part of the name: a digest of
    /// sensitive ones could be guessed.
    pub fn task_action(task: TaskId, action: &ActionName, target: &Target) -> Self {
        let names = format!("{action}\0{target}");
        Self::TaskAction(Box::new((
            task,
            Digest::tagged("dipylon/task-action/v1", names.as_bytes()),
        )))
    }

    /// The kind of stream: the part of the written form before the id.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Task(_) => "task",
            Self::Lease(_) => "lease",
            Self::OpenTask(_) => "open-task",
            Self::TokenRequest(..) => "token-request",
            Self::AccessRequest(_) => "access-request",
            Self::RefusedVote(_) => "refused-vote",
            Self::TaskAction(_) => "task-action",
            Self::Proposals(_) => "proposals",
            Self::Denials(_) => "denials",
            Self::Token(_) => "token",
            Self::Agent(_) => "agent",
            Self::Person(_) => "person",
            Self::Invitation(_) => "invitation",
            Self::Credentials => "credentials",
            Self::EnrolledKey(_) => "enrolled-key",
            Self::Credential(_) => "credential",
            Self::Policy => "policy",
            Self::Trust(_) => "trust",
            Self::Key(_) => "key",
            Self::Freeze(_) => "freeze",
            Self::Fact(_) => "fact",
            Self::Count(_) => "count",
        }
    }

    /// Parses the written form.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let unknown = || ParseError::new("stream", "must be a known stream");
        match text {
            "policy" => return Ok(Self::Policy),
            "credentials" => return Ok(Self::Credentials),
            _ => {}
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
            "task-action" => {
                let (task, names) = pair()?;
                Self::TaskAction(Box::new((TaskId::parse(task)?, Digest::parse(names)?)))
            }
            "proposals" => Self::Proposals(PersonId::parse(rest)?),
            "denials" => Self::Denials(AgentId::parse(rest)?),
            "token" => Self::Token(TokenId::parse(rest)?),
            "agent" => Self::Agent(AgentId::parse(rest)?),
            "person" => Self::Person(PersonId::parse(rest)?),
            "invitation" => Self::Invitation(PersonId::parse(rest)?),
            "enrolled-key" => Self::EnrolledKey(KeyIdentity(Digest::parse(rest)?)),
            // Base64url without padding, at most the 1,023 bytes of a credential id (WebAuthn L3 §5.1).
            "credential" if is_base64url(rest) => Self::Credential(rest.into()),
            "trust" => Self::Trust(TrustDomain::parse(rest)?),
            "key" => Self::Key(KeyId::parse(rest)?),
            "freeze" => Self::Freeze(FreezeScope::parse(rest)?),
            "fact" => Self::Fact(FactName::parse(rest)?),
            "count" => Self::Count(Box::new(CountKey::parse(rest)?)),
            _ => return Err(unknown()),
        })
    }
}

fn is_base64url(text: &str) -> bool {
    (1..=1_364).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
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
