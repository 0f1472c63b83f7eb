use std::collections::BTreeMap;

use serde_json::Value;

use crate::client::Error;
use crate::jose::access_token::{AccessTokenClaims, CheckedToken, TokenError};
use crate::jose::dpop::{self, CheckedProof, ExpectedProof, Freshness, ProofError};
use crate::model::{
    ActionName, AgentId, ApprovalClaim, Digest, Opening, Param, Secret, SpiffeId, Target, TaskId,
    Timestamp, TokenId, UseId,
};

/// The token, proof and target of an HTTP request.
#[derive(Clone, Copy)]
pub struct PresentedToken<'a> {
    /// The token: `authorization: DPoP …` without the scheme (RFC 9449 §7.1).
    pub token: &'a str,
    /// The `dpop` header; the request must have exactly one (RFC 9449 §4.3).
    pub dpop: Option<&'a str>,
    /// The HTTP method, as sent.
    pub method: &'a str,
    /// The server's own external URL of this request, never one taken from `Host`. Query and fragment are left out.
    pub url: &'a str,
    /// Salts of sensitive parameters, by name, as the agent received them with the token.
    pub openings: &'a BTreeMap<String, String>,
}

/// The action that the server is about to do.
#[derive(Debug, Clone)]
pub struct RequiredAction {
    /// The action's name in the catalogue.
    pub action: ActionName,
    /// Its target.
    pub target: Target,
    /// Its exact parameters. `None` only where the server takes them from [`Authorized::parameters`] and nowhere else.
    pub parameters: Option<BTreeMap<String, Param>>,
}

/// An authorized request: its token is valid and not revoked, and its sender holds the key. Only
/// [`super::Validator::check`] makes one; [`super::Validator::consume`] takes it by value.
#[derive(Debug)]
pub struct Authorized {
    token: CheckedToken,
    text: Secret,
    use_id: UseId,
}

/// An authorized request whose use, where its token has a limit, is recorded.
#[derive(Debug)]
pub struct ConsumedUse {
    authorized: Authorized,
    uses_left: Option<u32>,
    position: Option<u64>,
}

/// Why a request was rejected. Holds nothing of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// Revocations may have been missed: the feed is silent or not complete, or the broker's keys cannot be fetched. Not the
    /// caller's fault.
    #[error("revocation feed is stale; rejecting all tokens")]
    Stale,
    /// Too many proofs at once. Not the caller's fault.
    #[error("too many proofs at once")]
    Busy,
    /// The token is not valid.
    #[error("token: {0}")]
    Token(TokenError),
    /// The token, its task or its agent was revoked.
    #[error("token: revoked")]
    Revoked,
    /// The request has no proof.
    #[error("proof: missing")]
    ProofMissing,
    /// The proof is not valid.
    #[error("{0}")]
    Proof(ProofError),
    /// The proof is for another token.
    #[error("proof: `ath` is of another token")]
    ProofOfOtherToken,
    /// The proof is by another key than the token's.
    #[error("proof: signed by another key than the token's `cnf.jkt`")]
    ProofOfOtherKey,
    /// The proof was used before.
    #[error("proof: used before")]
    ProofReplayed,
    /// The token is for another action.
    #[error("the token is for another action")]
    ActionMismatch,
    /// The token is for another target.
    #[error("the token is for another target")]
    TargetMismatch,
    /// The token is for other parameters, or the salt of a sensitive one is missing.
    #[error("the token is for other parameters")]
    ParametersMismatch,
    /// Every use is consumed.
    #[error("token: its uses are spent")]
    UsesExhausted,
    /// An earlier call with this `use_id` spent the use: it may have acted, so this one must not.
    #[error("token: this use was spent before, by entry {position}")]
    UseRepeated {
        /// Index of the journal entry of the use.
        position: u64,
    },
    /// The use could not be recorded. Not the caller's fault.
    #[error("the use could not be recorded: {0}")]
    Broker(Error),
}

impl ValidationError {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Stale | Self::Busy | Self::Broker(_) => 503,
            Self::ActionMismatch | Self::TargetMismatch | Self::ParametersMismatch => 403,
            Self::Token(_)
            | Self::Revoked
            | Self::ProofMissing
            | Self::Proof(_)
            | Self::ProofOfOtherToken
            | Self::ProofOfOtherKey
            | Self::ProofReplayed
            | Self::UsesExhausted
            | Self::UseRepeated { .. } => 401,
        }
    }

    /// The `www-authenticate` header (RFC 6750 §3, RFC 9449 §7.1); `None` when the failure is not the caller's.
    pub fn www_authenticate(&self) -> Option<String> {
        let (error, description) = match self {
            Self::Stale | Self::Busy | Self::Broker(_) => return None,
            Self::Token(TokenError::Expired) => ("invalid_token", "expired"),
            Self::Token(TokenError::NotYet) => ("invalid_token", "not yet valid"),
            Self::Token(TokenError::WrongAudience) => ("invalid_token", "for another audience"),
            Self::Token(TokenError::WrongIssuer) => ("invalid_token", "of another issuer"),
            Self::Token(
                TokenError::Malformed(_)
                | TokenError::UnknownKey
                | TokenError::Signature
                | TokenError::Claims(_),
            ) => ("invalid_token", "not a token of this issuer"),
            Self::Revoked => ("invalid_token", "revoked"),
            Self::UsesExhausted => ("invalid_token", "its uses are spent"),
            Self::UseRepeated { .. } => ("invalid_token", "this use was spent before"),
            Self::ProofMissing => ("invalid_dpop_proof", "a proof is required"),
            Self::Proof(_) => ("invalid_dpop_proof", "the proof does not hold"),
            Self::ProofOfOtherToken => ("invalid_dpop_proof", "ath is not of this token"),
            Self::ProofOfOtherKey => ("invalid_token", "bound to another key"),
            Self::ProofReplayed => ("invalid_dpop_proof", "used before"),
            Self::ActionMismatch => ("insufficient_scope", "for another action"),
            Self::TargetMismatch => ("insufficient_scope", "for another target"),
            Self::ParametersMismatch => ("insufficient_scope", "for other parameters"),
        };
        Some(format!(
            r#"DPoP error="{error}", error_description="{description}", algs="ES256""#
        ))
    }
}

/// Checks the proof of possession for this request and this token (RFC 9449 §4.3, §7.1).
pub(super) fn possession(
    presented: &PresentedToken<'_>,
    claims: &AccessTokenClaims,
    now: Timestamp,
) -> Result<CheckedProof, ValidationError> {
    let proof = presented.dpop.ok_or(ValidationError::ProofMissing)?;
    let htu = presented.url.split(['?', '#']).next().unwrap_or_default();
    let expect = ExpectedProof {
        htm: presented.method,
        htu,
        freshness: Freshness::Iat {
            now,
            window_s: PROOF_WINDOW_S,
        },
    };
    let proof = dpop::check(proof, &expect).map_err(ValidationError::Proof)?;
    if proof.jkt() != claims.cnf.jkt {
        return Err(ValidationError::ProofOfOtherKey);
    }
    if proof.ath() != Some(dpop::ath(presented.token)) {
        return Err(ValidationError::ProofOfOtherToken);
    }
    Ok(proof)
}

/// Checks that the token's action is the required one, member by member.
pub(super) fn action(
    presented: &PresentedToken<'_>,
    claims: &AccessTokenClaims,
    require: &RequiredAction,
) -> Result<(), ValidationError> {
    let detail = claims.detail();
    if detail.action != require.action {
        return Err(ValidationError::ActionMismatch);
    }
    if detail.target != require.target {
        return Err(ValidationError::TargetMismatch);
    }
    let Some(parameters) = &require.parameters else {
        return Ok(());
    };
    let same = detail.parameters.len() == parameters.len()
        && parameters.iter().all(|(name, param)| {
            detail
                .parameters
                .get(name)
                .is_some_and(|claimed| matches(claimed, param, presented.openings.get(name)))
        });
    if same {
        Ok(())
    } else {
        Err(ValidationError::ParametersMismatch)
    }
}

/// A value is compared as it is, a commitment with the hash of salt and value.
fn matches(claimed: &Value, param: &Param, salt: Option<&String>) -> bool {
    match commitment(claimed) {
        None => *claimed == param.to_json(),
        Some(commitment) => salt.is_some_and(|salt| {
            let opening = Opening {
                salt: salt.clone(),
                value: param.to_json(),
            };
            Digest::parse(commitment).is_ok_and(|commitment| commitment == opening.commitment())
        }),
    }
}

/// A parameter's name cannot contain `$`, so no plain value looks like a commitment.
fn commitment(claimed: &Value) -> Option<&str> {
    claimed.as_object()?.get("$commitment")?.as_str()
}

impl Authorized {
    pub(super) fn new(token: CheckedToken, text: Secret, proof: &CheckedProof) -> Self {
        // A `jti` may be longer than a use id and have other characters.
        let use_id = UseId::parse(proof.jti())
            .unwrap_or_else(|_| UseId::from_digest(Digest::sha256(proof.jti().as_bytes())));
        Self {
            token,
            text,
            use_id,
        }
    }

    pub(super) fn token(&self) -> &Secret {
        &self.text
    }

    /// A use id for this request, derived from the `jti` of its proof: every server of this validator that gets the request
    /// names its use alike, so that only one of them spends it.
    pub fn use_id(&self) -> &UseId {
        &self.use_id
    }

    /// The token's id: for logs.
    pub fn token_id(&self) -> TokenId {
        self.token.claims().jti
    }

    /// The task it belongs to.
    pub fn task_id(&self) -> TaskId {
        self.token.claims().txn
    }

    /// The registered agent.
    pub fn agent_id(&self) -> &AgentId {
        &self.token.claims().client_id
    }

    /// The attested workload.
    pub fn subject(&self) -> &SpiffeId {
        &self.token.claims().sub
    }

    /// The authorized action.
    pub fn action(&self) -> &ActionName {
        &self.token.claims().detail().action
    }

    /// Its target.
    pub fn target(&self) -> &Target {
        &self.token.claims().detail().target
    }

    /// Its parameters: values, or commitments for sensitive ones.
    pub fn parameters(&self) -> &serde_json::Map<String, Value> {
        &self.token.claims().detail().parameters
    }

    /// Uses in all; `None` when its lifetime is the only limit.
    pub fn uses(&self) -> Option<u32> {
        self.token.claims().uses
    }

    /// When the token expires.
    pub fn expires_at(&self) -> Timestamp {
        Timestamp::from_secs(self.token.claims().exp)
    }

    /// The approval of people, if one was needed.
    pub fn approval(&self) -> Option<&ApprovalClaim> {
        self.token.claims().approval.as_ref()
    }
}

impl ConsumedUse {
    pub(super) fn new(
        authorized: Authorized,
        uses_left: Option<u32>,
        position: Option<u64>,
    ) -> Self {
        Self {
            authorized,
            uses_left,
            position,
        }
    }

    /// The authorized request.
    pub fn authorized(&self) -> &Authorized {
        &self.authorized
    }

    /// Uses left after this one; `None` when the token has no limit.
    pub fn uses_left(&self) -> Option<u32> {
        self.uses_left
    }

    /// Index of the journal entry of this use; `None` for a token without a limit.
    pub fn position(&self) -> Option<u64> {
        self.position
    }
}

/// How far a proof's `iat` may lie from now, in seconds.
const PROOF_WINDOW_S: u32 = 60;
