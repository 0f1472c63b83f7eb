//! Strict JOSE: JWS verification and signing, JWK sets, access tokens (RFC 9068) and DPoP proofs (RFC 9449).
//!
//! In: untrusted text and bytes, keys chosen by the caller, and the time as an argument.
//! Out: values that only a successful check can make ([`Jws`], [`dpop::CheckedProof`], [`access_token::CheckedToken`]),
//! keys, and signatures by keys held here.
//! Trusts: ring for signatures and for the validity of points; the caller for which keys belong to which issuer.
//! Refuses: input that two parsers could read differently (padding, duplicate members, unknown header members), every
//! algorithm but the one in the key's own record, symmetric keys, private members, `crit` and keys embedded in a header,
//! except the proof's own in DPoP.
//! Never: reads a clock, fetches a key, follows a URL, or puts a token, a key or a value from outside into an error.
//!
//! The order of every check: bounds and alphabet, header, key, signature, and only then the payload.

pub mod access_token;
mod authenticator;
mod claims;
pub mod dpop;
mod jwk;
pub mod jws;
mod key;
mod key_set;
mod nonce;

#[cfg(test)]
mod negative_tests;
#[cfg(test)]
mod vectors;

pub use authenticator::AuthenticatorKey;
pub use claims::{ClaimError, Claims};
pub use jwk::{Alg, KeySetError, Usage, VerifyingKey};
pub use jws::{HeaderRules, JoseError, Jws, KidRule, TypRule};
pub use key::{KeyError, PublicKey, SigningKey};
pub use key_set::KeySet;
pub use nonce::Nonces;

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
