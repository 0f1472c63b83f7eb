//! Access token: the claims and `typ` of RFC 9068, bound to a key (RFC 9449 §6), for one approved action (RFC 9396). The
//! issuer signs with [`sign`] and reads back with [`check`], the check that validators use.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::jose::{Alg, HeaderRules, JoseError, KeySet, KidRule, SigningKey, TypRule, jws};
use crate::model::json::INTEGER_MAX;
use crate::model::{
    ActionName, ActionOnRecord, AgentId, ApprovalClaim, Audience, Digest, KeyId, Secret, SpiffeId,
    Target, TaskId, Thumbprint, Timestamp, TokenId,
};

/// Longest lifetime of a token, in seconds; no configuration exceeds it.
pub const TTL_MAX_S: i64 = 3_600;
/// How far `nbf` and `iat` may be ahead of the validator's clock, in seconds. `exp` has no leeway.
pub const LEEWAY_S: i64 = 5;

const TYP: &str = "at+jwt";
const RULES: HeaderRules = HeaderRules {
    // RFC 9068 §4: with and without the prefix.
    typ: TypRule::Required(&[TYP, "application/at+jwt"]),
    kid: KidRule::Required,
    extras: &[],
};

/// Why a token was rejected. Holds nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a compact JWS of this kind; none of its claims was read.
    #[error("malformed: {0}")]
    Malformed(JoseError),
    /// Signed by a key that is not, or no longer, the issuer's.
    #[error("signed by an unknown key")]
    UnknownKey,
    /// Not signed by the key it names.
    #[error("the signature does not verify")]
    Signature,
    /// Signed, but its claims are not those of Dipylon's token.
    #[error("the claims are not those of this token: {0}")]
    Claims(&'static str),
    /// From another issuer.
    #[error("of another issuer")]
    WrongIssuer,
    /// For another resource server.
    #[error("for another audience")]
    WrongAudience,
    /// `exp` has passed.
    #[error("expired")]
    Expired,
    /// `nbf` or `iat` is in the future.
    #[error("not yet valid")]
    NotYet,
}

/// The claims. Integers are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessTokenClaims {
    /// The broker's issuer URL.
    pub iss: String,
    /// The attested workload.
    pub sub: SpiffeId,
    /// The one resource server it is for.
    pub aud: Audience,
    /// Not valid from this second on.
    pub exp: i64,
    /// When it was decided.
    pub iat: i64,
    /// Not valid before.
    pub nbf: i64,
    /// Its own id.
    pub jti: TokenId,
    /// The registered agent.
    pub client_id: AgentId,
    /// The key its holder must prove.
    pub cnf: Confirmation,
    /// The one approved action.
    pub authorization_details: [ActionDetail; 1],
    /// The task it belongs to; the end of the task revokes it.
    pub txn: TaskId,
    /// The epoch (incarnation) of the journal it was decided in.
    pub epoch: u64,
    /// The last journal index that the decision took into account: later events may revoke it.
    pub pos: u64,
    /// How often it may be used, at least 1; absent when its lifetime is the only limit.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub uses: Option<u32>,
    /// The approval of people, if one was needed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub approval: Option<ApprovalClaim>,
}

/// Confirmation: the key that the holder must prove (RFC 7800 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// Thumbprint of the key that signs its proofs (RFC 9449 §6.1).
    pub jkt: Thumbprint,
}

/// The element of `authorization_details`: the action as it stands on record, without its audience, which is `aud`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionDetail {
    /// Always the same.
    #[serde(rename = "type")]
    pub kind: ActionDetailType,
    /// The catalogue's name.
    pub action: ActionName,
    /// What it is done to.
    #[serde(deserialize_with = "target")]
    pub target: Target,
    /// Values, or commitments for sensitive ones.
    pub parameters: Map<String, Value>,
    /// The action digest, or its commitment.
    pub digest: Digest,
}

/// The one type of `authorization_details` this broker speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionDetailType {
    /// Version 1 of an action.
    #[serde(rename = "urn:dipylon:action:v1")]
    ActionV1,
}

impl From<&ActionOnRecord> for ActionDetail {
    fn from(record: &ActionOnRecord) -> Self {
        Self {
            kind: ActionDetailType::ActionV1,
            action: record.action.clone(),
            target: record.target.clone(),
            parameters: record.parameters.clone(),
            digest: record.digest,
        }
    }
}

impl AccessTokenClaims {
    /// The one approved action.
    pub fn detail(&self) -> &ActionDetail {
        let [detail] = &self.authorization_details;
        detail
    }

    /// Checks that need no clock and no caller.
    fn check_form(&self) -> Result<(), TokenError> {
        for seconds in [self.exp, self.iat, self.nbf] {
            if !(0..=INTEGER_MAX).contains(&seconds) {
                return Err(TokenError::Claims(
                    "exp, iat and nbf must be from 0 to 2^53-1",
                ));
            }
        }
        if !(1..=TTL_MAX_S).contains(&(self.exp - self.iat)) {
            return Err(TokenError::Claims(
                "exp must be 1 to 3600 seconds after iat",
            ));
        }
        if self.nbf >= self.exp {
            return Err(TokenError::Claims("nbf must be before exp"));
        }
        if self.epoch.max(self.pos) > INTEGER_MAX.unsigned_abs() {
            return Err(TokenError::Claims("epoch and pos must be at most 2^53-1"));
        }
        if self.uses == Some(0) {
            return Err(TokenError::Claims("uses must be at least 1"));
        }
        Ok(())
    }
}

/// The issuer, audience and time that a token is checked against.
#[derive(Debug, Clone, Copy)]
pub struct ExpectedToken<'a> {
    /// The broker's issuer URL, compared byte by byte.
    pub iss: &'a str,
    /// The validator's own audience. `None` only where the broker checks its own tokens and compares the audience itself; a
    /// validator always names its own.
    pub aud: Option<&'a Audience>,
    /// The time of the check.
    pub now: Timestamp,
}

/// A verified token: signed by a key of the set, from the issuer, for the audience, within its lifetime. Says nothing about
/// revocation, consumed uses, or whether the bearer holds the key.
#[derive(Debug)]
pub struct CheckedToken {
    kid: KeyId,
    claims: AccessTokenClaims,
}

impl CheckedToken {
    /// The key that signed it: a feed may end everything it signed.
    pub fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// The claims.
    pub fn claims(&self) -> &AccessTokenClaims {
        &self.claims
    }

    /// The claims, by value.
    pub fn into_claims(self) -> AccessTokenClaims {
        self.claims
    }
}

/// Signs the claims. The header is exactly `{"alg":"ES256","kid":…,"typ":"at+jwt"}`, the payload canonical JSON: the same
/// claims are the same bytes.
pub fn sign(
    claims: &AccessTokenClaims,
    kid: &KeyId,
    key: &SigningKey,
) -> Result<Secret, TokenError> {
    claims.check_form()?;
    let header = json!({ "alg": Alg::Es256.as_str(), "kid": kid, "typ": TYP });
    let claims =
        serde_json::to_value(claims).map_err(|_| TokenError::Malformed(JoseError::Unsignable))?;
    jws::sign(&header, &claims, key)
        .map(Secret::new)
        .map_err(TokenError::Malformed)
}

/// Checks a token: signature, form, issuer, audience, life, in that order.
pub fn check(
    token: &str,
    keys: &KeySet,
    expect: &ExpectedToken<'_>,
) -> Result<CheckedToken, TokenError> {
    let jws = jws::verify(token, keys, &RULES).map_err(|error| match error {
        JoseError::UnknownKey => TokenError::UnknownKey,
        JoseError::Signature => TokenError::Signature,
        JoseError::TooLong
        | JoseError::Compact(_)
        | JoseError::HeaderJson
        | JoseError::HeaderMember(_)
        | JoseError::Typ
        | JoseError::Kid
        | JoseError::Alg
        | JoseError::PayloadJson
        | JoseError::Claim(_)
        | JoseError::Key(_)
        | JoseError::Unsignable => TokenError::Malformed(error),
    })?;
    let kid = jws.kid().clone();
    let payload = Value::Object(jws.into_claims().into_map());
    if !has_objects(&payload) {
        return Err(WRONG_FORM);
    }
    // The deserialiser's own words may repeat a value, so they end here.
    let claims: AccessTokenClaims = serde_json::from_value(payload).map_err(|_| WRONG_FORM)?;
    claims.check_form()?;
    if claims.iss != expect.iss {
        return Err(TokenError::WrongIssuer);
    }
    if expect.aud.is_some_and(|aud| *aud != claims.aud) {
        return Err(TokenError::WrongAudience);
    }
    if expect.now >= Timestamp::from_secs(claims.exp) {
        return Err(TokenError::Expired);
    }
    let ahead = expect.now.plus_secs(LEEWAY_S);
    if ahead < Timestamp::from_secs(claims.nbf) || ahead < Timestamp::from_secs(claims.iat) {
        return Err(TokenError::NotYet);
    }
    Ok(CheckedToken { kid, claims })
}

const WRONG_FORM: TokenError = TokenError::Claims("one is missing, unknown or of the wrong type");

/// serde would read an array as a struct, member by member: a second form for the same claims.
fn has_objects(payload: &Value) -> bool {
    [
        "/cnf",
        "/approval",
        "/authorization_details/0",
        "/authorization_details/0/target",
    ]
    .iter()
    .all(|path| payload.pointer(path).is_none_or(Value::is_object))
}

/// A claim that may be absent; `null` is not absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// A target with exactly its two members, each in form.
fn target<'de, D: Deserializer<'de>>(d: D) -> Result<Target, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Members {
        #[serde(rename = "type")]
        kind: String,
        id: String,
    }
    let members = Members::deserialize(d)?;
    Target::parse(&members.kind, &members.id).map_err(serde::de::Error::custom)
}
