//! JWS compact serialisation (RFC 7515 §3.1), strict.

use serde_json::{Map, Value};

use super::{Alg, ClaimError, Claims, KeyError, KeySet, SigningKey, VerifyingKey, decode, encode};
use crate::model::KeyId;
use crate::model::json;

/// Longest token, in bytes of its compact form.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Why a token was rejected: the rule it broke. Holds nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoseError {
    /// More than [`TOKEN_BYTES_MAX`] bytes.
    #[error("the token is too long")]
    TooLong,
    /// Not three parts of base64url, none empty.
    #[error("the token is not a compact JWS: {0}")]
    Compact(&'static str),
    /// The header is not a JSON object without duplicates.
    #[error("the header is not a JSON object without duplicates")]
    HeaderJson,
    /// A header member that this kind of token may not have. Known ones are named.
    #[error("the header has a member it may not have: {0}")]
    HeaderMember(&'static str),
    /// `typ` is missing, or is not this kind of token.
    #[error("typ is not that of this kind of token")]
    Typ,
    /// `kid` is missing, or is not 1 to 128 visible ASCII characters.
    #[error("kid is missing or malformed")]
    Kid,
    /// `alg` is missing, unknown, or not one the key's record allows.
    #[error("alg is not one the key may be used with")]
    Alg,
    /// The set has no key of this `kid`.
    #[error("no such key")]
    UnknownKey,
    /// The signature is not the key's over these bytes.
    #[error("the signature does not verify")]
    Signature,
    /// Signed, but the payload is not a JSON object without duplicates.
    #[error("the payload is not a JSON object without duplicates")]
    PayloadJson,
    /// Signed, but a claim is missing or of the wrong type.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The signing key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The header or the claims have no canonical JSON form (RFC 8785).
    #[error("header or claims have no canonical JSON form")]
    Unsignable,
}

/// Rules for the header of one kind of token.
#[derive(Debug, Clone, Copy)]
pub struct HeaderRules {
    /// Accepted types.
    pub typ: TypRule,
    /// Whether the key must be named.
    pub kid: KidRule,
    /// Header members allowed beside `alg`, `kid` and `typ`. Never lifts the ban on those that change how a JWS is read.
    pub extras: &'static [&'static str],
}

/// Accepted values of `typ`, compared byte by byte (RFC 8725 §3.11).
#[derive(Debug, Clone, Copy)]
pub enum TypRule {
    /// One of these is required.
    Required(&'static [&'static str]),
    /// One of these, or no `typ` at all.
    Optional(&'static [&'static str]),
}

/// How a missing `kid` is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KidRule {
    /// Refused.
    Required,
    /// Means the only key of the set; rejected when the set has more. Keys are never tried one by one.
    OnlyKey,
}

/// A token whose signature verified under a key of the given set. Of its claims only the form is checked: a JSON object
/// without duplicates.
#[derive(Debug)]
pub struct Jws {
    header: Header,
    claims: Claims,
}

/// The header of a verified token.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kid: KeyId,
    pub(super) alg: Alg,
    pub(super) typ: Option<String>,
}

impl Jws {
    /// The name of the key that verified it.
    pub fn kid(&self) -> &KeyId {
        &self.header.kid
    }

    /// The algorithm it was verified with.
    pub fn alg(&self) -> Alg {
        self.header.alg
    }

    /// Its type, one of those the rules accept.
    pub fn typ(&self) -> Option<&str> {
        self.header.typ.as_deref()
    }

    /// Its claims.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Its claims by value.
    pub fn into_claims(self) -> Claims {
        self.claims
    }
}

/// Verifies a token under a key set. The key is the one the header names; the algorithm is the key's.
pub fn verify(compact: &str, keys: &KeySet, rules: &HeaderRules) -> Result<Jws, JoseError> {
    let (header, payload) = verify_bytes(compact, keys, rules)?;
    Ok(Jws {
        header,
        claims: object(&payload)
            .map(Claims::new)
            .ok_or(JoseError::PayloadJson)?,
    })
}

/// A string claim of an unverified token: a hint at which issuer's keys to use, nothing more.
pub fn unverified_string(compact: &str, name: &'static str) -> Result<String, JoseError> {
    let claims = object(&Compact::split(compact)?.payload)
        .map(Claims::new)
        .ok_or(JoseError::PayloadJson)?;
    Ok(claims.string(name)?.to_owned())
}

/// Like [`verify`], but the payload may be any bytes.
pub(super) fn verify_bytes(
    compact: &str,
    keys: &KeySet,
    rules: &HeaderRules,
) -> Result<(Header, Vec<u8>), JoseError> {
    let jws = Compact::split(compact)?;
    jws.check_header(rules.typ, rules.extras)?;
    let key = jws.key(keys, rules.kid)?;
    let alg = jws.alg()?;
    if !key.algs().contains(&alg) {
        return Err(JoseError::Alg);
    }
    if !key.verify(alg, jws.signed.as_bytes(), &jws.signature) {
        return Err(JoseError::Signature);
    }
    let typ = jws.member("typ").and_then(Value::as_str).map(str::to_owned);
    Ok((
        Header {
            kid: key.kid().clone(),
            alg,
            typ,
        },
        jws.payload,
    ))
}

/// Signs claims with ES256. `header` must say so itself; both parts are written as canonical JSON (RFC 8785).
pub fn sign(header: &Value, claims: &Value, key: &SigningKey) -> Result<String, JoseError> {
    if header.get("alg").and_then(Value::as_str) != Some(Alg::Es256.as_str()) {
        return Err(JoseError::Alg);
    }
    let part = |value: &Value| {
        json::canonical(value)
            .map(|text| encode(text.as_bytes()))
            .map_err(|_| JoseError::Unsignable)
    };
    let mut token = part(header)?;
    token.push('.');
    token.push_str(&part(claims)?);
    let signature = key.sign(token.as_bytes())?;
    token.push('.');
    token.push_str(&encode(&signature));
    if token.len() > TOKEN_BYTES_MAX {
        Err(JoseError::TooLong)
    } else {
        Ok(token)
    }
}

/// A compact JWS, split and not yet verified.
pub(super) struct Compact<'a> {
    header: Map<String, Value>,
    /// The exact bytes the signature is over.
    pub(super) signed: &'a str,
    pub(super) payload: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

impl<'a> Compact<'a> {
    /// Bounds and alphabet first, before anything is decoded or allocated.
    pub(super) fn split(compact: &'a str) -> Result<Self, JoseError> {
        if compact.len() > TOKEN_BYTES_MAX {
            return Err(JoseError::TooLong);
        }
        // RFC 8725 §3.10: nothing outside the alphabet, so a JSON serialisation ends here.
        // Without leaving early: the whole text is looked at in a few wide steps.
        let within = |b: u8| b.is_ascii_alphanumeric() | (b == b'.') | (b == b'_') | (b == b'-');
        if !compact.bytes().fold(true, |all, b| all & within(b)) {
            return Err(JoseError::Compact(
                "has a character outside base64url and '.'",
            ));
        }
        let mut parts = compact.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoseError::Compact("must have three parts"));
        };
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(JoseError::Compact("no part may be empty"));
        }
        let (signed, _) = compact
            .rsplit_once('.')
            .ok_or(JoseError::Compact("must have three parts"))?;
        let part =
            |text| decode(text).ok_or(JoseError::Compact("a part is not canonical base64url"));
        let (header, payload, signature) = (part(header)?, part(payload)?, part(signature)?);
        let header = object(&header).ok_or(JoseError::HeaderJson)?;
        Ok(Self {
            header,
            signed,
            payload,
            signature,
        })
    }

    /// Whether every member is one this kind of token may have, and `typ` one of its own.
    pub(super) fn check_header(&self, typ: TypRule, extras: &[&str]) -> Result<(), JoseError> {
        for name in self.header.keys() {
            if let Some(known) = UNSUPPORTED_HEADERS.iter().find(|known| *known == name) {
                return Err(JoseError::HeaderMember(known));
            }
            if !matches!(name.as_str(), "alg" | "kid" | "typ") && !extras.contains(&name.as_str()) {
                let known = EMBEDDED_KEY_HEADERS.iter().find(|known| *known == name);
                return Err(JoseError::HeaderMember(known.copied().unwrap_or("unknown")));
            }
        }
        let (accepted, may_lack) = match typ {
            TypRule::Required(accepted) => (accepted, false),
            TypRule::Optional(accepted) => (accepted, true),
        };
        match self.header.get("typ") {
            None if may_lack => Ok(()),
            Some(Value::String(typ)) if accepted.contains(&typ.as_str()) => Ok(()),
            _ => Err(JoseError::Typ),
        }
    }

    pub(super) fn member(&self, name: &str) -> Option<&Value> {
        self.header.get(name)
    }

    pub(super) fn alg(&self) -> Result<Alg, JoseError> {
        self.member("alg")
            .and_then(Value::as_str)
            .and_then(Alg::parse)
            .ok_or(JoseError::Alg)
    }

    fn key<'k>(&self, keys: &'k KeySet, rule: KidRule) -> Result<&'k VerifyingKey, JoseError> {
        match (self.member("kid"), rule) {
            (Some(Value::String(kid)), _) => keys
                .get(&KeyId::parse(kid).map_err(|_| JoseError::Kid)?)
                .ok_or(JoseError::UnknownKey),
            (None, KidRule::OnlyKey) => keys.only().ok_or(JoseError::Kid),
            (Some(_), _) | (None, KidRule::Required) => Err(JoseError::Kid),
        }
    }

    /// The payload as claims, once the signature has verified.
    pub(super) fn claims(&self) -> Result<Claims, JoseError> {
        object(&self.payload)
            .map(Claims::new)
            .ok_or(JoseError::PayloadJson)
    }
}

/// Members that change how a JWS is read (RFC 7515 §4.1.11, RFC 7797 §3, RFC 7516 §4.1.3): no rules allow them.
const UNSUPPORTED_HEADERS: [&str; 5] = ["crit", "b64", "zip", "enc", "cty"];
/// Members that bring a key or point at one (RFC 7515 §4.1.2 to §4.1.8): allowed only where rules name them, never followed.
const EMBEDDED_KEY_HEADERS: [&str; 6] = ["jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256"];

fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match json::parse(bytes) {
        Ok(Value::Object(members)) => Some(members),
        Ok(_) | Err(_) => None,
    }
}
