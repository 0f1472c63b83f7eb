use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::{self, JsonError};
use super::text::is_invisible;
use super::{
    AccessRequestId, AgentId, Digest, Malformed, PersonId, ProfileRef, Realm, TaskId, Thumbprint,
};

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The action may happen, as stated.
    Approve,
    /// The action must not happen; one is enough.
    Deny,
}

impl Verdict {
    /// The word in statements and explanations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Deny => "deny",
        }
    }
}

/// What an approver may make smaller. Nothing can be made larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Narrowing {
    /// A shorter life for the token, in seconds.
    pub max_ttl: Option<i64>,
    /// Fewer uses of the token.
    pub max_uses: Option<u32>,
}

/// What an approver tells the agent: one line of plain text, for people and models alike to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Comment(std::sync::Arc<str>);

/// Longest comment, in characters.
pub const COMMENT_CHARS_MAX: usize = 200;

impl Comment {
    /// At most [`COMMENT_CHARS_MAX`] characters, none of them invisible, not blank.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.trim().is_empty() {
            return Err(Malformed::new("comment", "must not be blank"));
        }
        if text.chars().count() > COMMENT_CHARS_MAX {
            return Err(Malformed::new(
                "comment",
                "must have at most 200 characters",
            ));
        }
        if text.chars().any(is_invisible) {
            return Err(Malformed::new(
                "comment",
                "must be one line without invisible characters",
            ));
        }
        Ok(Self(text.into()))
    }

    /// The words.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Comment {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// What one approver signs: everything the token will allow, and nothing the approver did not see.
/// What is signed is the 32 bytes of [`VoteStatement::digest`]: by a key with ES256, by a passkey as the challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteStatement {
    /// Version of this form: 1.
    pub v: u32,
    /// The realm it counts in.
    pub realm: Realm,
    /// The access request it decides.
    pub access_request_id: AccessRequestId,
    /// Who asks.
    pub agent: AgentId,
    /// Who answers for the agent.
    pub owner: PersonId,
    /// The task it asks in.
    pub task: TaskId,
    /// Thumbprint of the key the token will be bound to.
    pub task_key: Thumbprint,
    /// The action, in plain: `{action, audience, parameters, target}`.
    pub action: Value,
    /// Longest life of the token, in seconds, after narrowing.
    pub max_ttl: i64,
    /// How often the token may be used, after narrowing; absent when its life is the only limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// What the voter tells the agent: one line of at most [`COMMENT_CHARS_MAX`] characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
    /// The policy bundle the card was rendered under; recorded, not compared.
    pub policy: Digest,
    /// The profile it counts for; compared at mint.
    pub profile: ProfileRef,
    /// Yes or no.
    pub verdict: Verdict,
    /// Unix seconds after which the yes no longer counts.
    pub not_after: i64,
    /// 128 random bits of the broker, base64url.
    pub nonce: String,
}

impl VoteStatement {
    /// The RFC 8785 form.
    pub fn canonical(&self) -> Result<String, JsonError> {
        json::canonical_of(self)
    }

    /// SHA-256("dipylon/vote/v1" ‖ 0x00 ‖ RFC 8785 form): what is signed.
    pub fn digest(&self) -> Result<Digest, JsonError> {
        Ok(Digest::tagged(
            "dipylon/vote/v1",
            self.canonical()?.as_bytes(),
        ))
    }

    /// Reads the canonical form; refuses unknown members and any other spelling of the same values.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let statement: Self = json::parse_as(text.as_bytes())?;
        if statement.canonical()? == text {
            Ok(statement)
        } else {
            Err(JsonError::Number)
        }
    }
}
