//! Strict JOSE: JWS verification and signing, JWK sets, access tokens (RFC 9068) and DPoP proofs (RFC 9449).
//!
//! In: untrusted text and bytes, keys chosen by the caller, and the time as an argument.
//! Out: values that only a successful check can make ([`Jws`], [`dpop::CheckedProof`], [`access_token::CheckedToken`]),
//! keys, and signatures by keys held here.
//! Trusts: ring for signatures and for points of P-256 and P-384, curve25519-dalek for points of Ed25519; the caller for which keys belong to which issuer.
//! Refuses: input that two parsers could read differently (padding, duplicate members, unknown header members), every
//! algorithm but the one in the key's own record, weak keys and keys whose private half is published, symmetric keys, private members, `crit` and keys embedded in a header,
//! except the proof's own in DPoP.
//! Never: reads a clock, fetches a key, follows a URL, or puts a token, a key or a value from outside into an error.
//!
//! The order of every check: bounds and alphabet, header, key, signature, and only then the payload.

#[cfg(feature = "internals")]
pub mod access_token;
#[cfg(not(feature = "internals"))]
pub(crate) mod access_token;
mod authenticator;
mod claims;
#[cfg(feature = "internals")]
pub mod dpop;
#[cfg(not(feature = "internals"))]
pub(crate) mod dpop;
mod jwk;
#[cfg(feature = "internals")]
pub mod jws;
#[cfg(not(feature = "internals"))]
mod jws;
mod key;
mod key_set;
mod nonce;
mod published;

#[cfg(test)]
mod negative_tests;
#[cfg(test)]
mod vectors;
#[cfg(test)]
mod weak_keys;

pub use access_token::TokenError;
pub use dpop::ProofError;
pub use jws::JoseError;
pub use key::{KeyError, PublicKey, SigningKey};

// Checks without the rest of a validator around them: for the broker, and for this crate.
#[cfg(feature = "internals")]
pub use self::{
    authenticator::AuthenticatorKey,
    claims::{ClaimError, Claims},
    jwk::{Alg, KeySetError, Usage, VerifyingKey},
    jws::{HeaderRules, Jws, KidRule, TypRule},
    key_set::KeySet,
    nonce::Nonces,
};
#[cfg(not(feature = "internals"))]
pub(crate) use self::{
    authenticator::AuthenticatorKey,
    claims::{ClaimError, Claims},
    jwk::{Alg, KeySetError, Usage, VerifyingKey},
    jws::{HeaderRules, Jws, KidRule, TypRule},
    key_set::KeySet,
    nonce::Nonces,
};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Base64url without padding, canonical trailing bits (RFC 7515 §2).
fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads exactly so many bytes, by the rules of [`decode`] and without an allocation.
fn decode_exactly<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let written = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
    (written == N).then_some(bytes)
}

/// Reads what [`encode`] writes and nothing else: no padding, no whitespace, no loose trailing bits.
fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
