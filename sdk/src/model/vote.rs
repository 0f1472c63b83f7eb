//! Votes: the statement that an approver signs.

use super::json::{self, JsonError};
use super::text::is_invisible;
use super::{
    AccessRequestId, ActionOnRecord, AgentId, Digest, ParseError, PersonId, ProfileRef, Realm,
    TaskId, Thumbprint,
};
use serde::{Deserialize, Serialize};

/// A vote's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The action may happen, as stated.
    Approve,
    /// The action must not happen; one denial is enough.
    Deny,
}

impl Verdict {
    /// The name in statements and explanations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Deny => "deny",
        }
    }
}

/// How a vote is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VoteMethod {
    /// With a registered key of `people.toml`, which a script can hold. As the method of a profile: with a passkey too.
    Key,
    /// With a passkey: by a person, present and verified by their device, at the broker's own console.
    Passkey,
}

impl VoteMethod {
    /// The name in `people.toml`, in receipts and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Passkey => "passkey",
        }
    }

    /// How a vote was signed, in words for people.
    pub const fn signed_by(self) -> &'static str {
        match self {
            Self::Key => "by a registered key",
            Self::Passkey => "by passkey",
        }
    }

    /// Whether a vote that is signed so counts where this method is asked for: a passkey counts in place of a key.
    pub const fn accepts(self, signed: Self) -> bool {
        matches!((self, signed), (Self::Key, _) | (_, Self::Passkey))
    }

    /// Parses the name.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        match text {
            "key" => Ok(Self::Key),
            "passkey" => Ok(Self::Passkey),
            _ => Err(ParseError::new("method", "must be \"passkey\" or \"key\"")),
        }
    }
}

/// Limits that an approver reduces; they can never be raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Narrowing {
    /// A shorter lifetime of the token, in seconds.
    pub max_ttl: Option<i64>,
    /// Fewer uses of the token.
    pub max_uses: Option<u32>,
}

/// An approver's comment to the agent: one line of plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Comment(std::sync::Arc<str>);

/// Longest comment, in characters.
pub const COMMENT_CHARS_MAX: usize = 200;

impl Comment {
    /// At most [`COMMENT_CHARS_MAX`] characters, none of them invisible, not blank.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.trim().is_empty() {
            return Err(ParseError::new("comment", "must not be blank"));
        }
        if text.chars().count() > COMMENT_CHARS_MAX {
            return Err(ParseError::new(
                "comment",
                "must have at most 200 characters",
            ));
        }
        if text.chars().any(is_invisible) {
            return Err(ParseError::new(
                "comment",
                "must be one line without invisible characters",
            ));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Comment {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// The statement that one approver signs: everything the token will allow, all of it shown to the approver.
/// The signature is over the 32 bytes of [`VoteStatement::digest`]: by a plain key with ES256, by a passkey as the challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteStatement {
    /// Version of the form: 2.
    pub v: u32,
    /// The realm in which it counts.
    pub realm: Realm,
    /// The access request it decides.
    pub access_request_id: AccessRequestId,
    /// The requester.
    pub requester: StatementRequester,
    /// The action as entries hold it: commitments in place of sensitive parameters, which the signer opens.
    pub action: ActionOnRecord,
    /// The digest of the facts that the card showed; compared when the vote is cast and when it is used.
    pub facts: Digest,
    /// Longest lifetime of the token, in seconds, after narrowing; absent where no token is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<i64>,
    /// Number of uses of the token, after narrowing; absent when its lifetime is the only limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// The voter's comment to the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
    /// The policy bundle the card was rendered under; recorded, not compared.
    pub policy: Digest,
    /// The profile it counts for; compared when the token is issued.
    pub profile: ProfileRef,
    /// A vote's verdict.
    pub verdict: Verdict,
    /// Unix seconds from which an approval no longer counts.
    pub not_after: i64,
    /// 128 random bits from the broker, base64url.
    pub nonce: String,
}

/// The requester in a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StatementRequester {
    /// An agent, in a task.
    Agent {
        /// The agent.
        id: AgentId,
        /// The agent's owner when the vote was cast.
        owner: PersonId,
        /// The agent's task.
        task: TaskId,
        /// Thumbprint of the key the token will be bound to.
        task_key: Thumbprint,
    },
    /// An advisory agent, in a task: it recommends the action, and another agent would execute it, with the task and key of its own.
    Recommendation {
        /// The agent that recommends.
        id: AgentId,
        /// Its owner when the vote was cast.
        owner: PersonId,
        /// Its task.
        task: TaskId,
        /// The key of that task; no token is bound to it.
        task_key: Thumbprint,
        /// The agent that would execute the action.
        executor: AgentId,
        /// Its owner when the vote was cast.
        executor_owner: PersonId,
    },
    /// A person, who proposes a policy bundle.
    Person {
        /// The proposer.
        id: PersonId,
    },
}

/// Version of the form of [`VoteStatement`].
pub const VOTE_STATEMENT_FORM: u32 = 2;

impl VoteStatement {
    /// The RFC 8785 form.
    pub fn canonical(&self) -> Result<String, JsonError> {
        json::canonical_of(self)
    }

    /// SHA-256("dipylon/vote/v1" ‖ 0x00 ‖ RFC 8785 form): the signed bytes.
    pub fn digest(&self) -> Result<Digest, JsonError> {
        Ok(Digest::tagged(
            "dipylon/vote/v1",
            self.canonical()?.as_bytes(),
        ))
    }

    /// Parses the canonical form; refuses unknown members and any other encoding of the same values.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let statement: Self = json::parse_as(text.as_bytes())?;
        if statement.v == VOTE_STATEMENT_FORM && statement.canonical()? == text {
            Ok(statement)
        } else {
            Err(JsonError::Number)
        }
    }
}
