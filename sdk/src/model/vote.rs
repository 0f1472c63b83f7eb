//! Votes: the statement that an approver signs.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::{self, JsonError};
use super::text::is_invisible;
use super::{
    AccessRequestId, AgentId, Digest, ParseError, PersonId, ProfileRef, Realm, TaskId, Thumbprint,
};

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
    /// Version of the form: 1.
    pub v: u32,
    /// The realm in which it counts.
    pub realm: Realm,
    /// The access request it decides.
    pub access_request_id: AccessRequestId,
    /// The requesting agent.
    pub agent: AgentId,
    /// The agent's owner.
    pub owner: PersonId,
    /// The agent's task.
    pub task: TaskId,
    /// Thumbprint of the key the token will be bound to.
    pub task_key: Thumbprint,
    /// The action, without commitments: `{action, audience, parameters, target}`.
    pub action: Value,
    /// Longest lifetime of the token, in seconds, after narrowing.
    pub max_ttl: i64,
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
        if statement.canonical()? == text {
            Ok(statement)
        } else {
            Err(JsonError::Number)
        }
    }
}
