//! Public keys of others in JWK form (RFC 7517, RFC 7518 §6): which algorithms each may verify, and the verification.

use std::fmt;

use curve25519_dalek::edwards::CompressedEdwardsY;
use ring::agreement::{ECDH_P256, ECDH_P384};
use ring::signature::{
    ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde_json::{Map, Value};

use super::key::{is_on_curve, key_identity, ops_verify};
use super::{PublicKey, decode, published};
use crate::model::{KeyId, KeyIdentity};

/// Bounds of an RSA modulus, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Bounds of an RSA exponent; ring holds 33 bits.
const RSA_EXPONENT: std::ops::RangeInclusive<u64> = 65_537..=0x1_ffff_ffff;

/// The purpose of a foreign key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// JWT-SVIDs: a SPIFFE trust bundle, of which only the entries with `use: jwt-svid` count. No EdDSA (JWT-SVID §2.1).
    JwtSvid,
    /// Signatures of other issuers: a JWK set (RFC 7517 §5), of which the entries with `use: sig` or without `use` count.
    Signature,
}

/// A signature algorithm that some key may verify (RFC 7518 §3.1, RFC 8037 §3.1, RFC 9864 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Alg {
    Es256,
    Es384,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    /// The older name of Ed25519, as most signers still write it.
    EdDsa,
    Ed25519,
}

impl Alg {
    const ALL: [Self; 10] = [
        Self::Es256,
        Self::Es384,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::EdDsa,
        Self::Ed25519,
    ];

    /// The registered name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::EdDsa => "EdDSA",
            Self::Ed25519 => "Ed25519",
        }
    }

    /// Reads the exact name; nothing is folded (RFC 7515 §4.1.1).
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.as_str() == name)
    }
}

/// What an RSA key may verify when its entry names no algorithm. A signature under one of these is none under another,
/// so the family leaves a forger nothing; SPIFFE bundles name none, and JWT-SVID §2.1 permits all six.
const RSA_FAMILY: &[Alg] = &[
    Alg::Rs256,
    Alg::Rs384,
    Alg::Rs512,
    Alg::Ps256,
    Alg::Ps384,
    Alg::Ps512,
];

const ED25519_NAMES: &[Alg] = &[Alg::EdDsa, Alg::Ed25519];

/// Why a key set was rejected as a whole. Names the rule, never a key or a name from the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// More than 256 KiB or 64 entries.
    #[error("key set: too large")]
    TooLarge,
    /// Not JSON, or a member twice.
    #[error("key set: not acceptable JSON")]
    Json,
    /// Not of the form RFC 7517 §5 gives it.
    #[error("key set: {0}")]
    Form(&'static str),
    /// A symmetric key, or a private member: this is no set of public keys.
    #[error("key set: has a symmetric key or a member of a private key")]
    Private,
    /// Two entries of one name.
    #[error("key set: duplicate `kid`")]
    DuplicateKid,
    /// A key that counts has no name, so a token could not say which it means.
    #[error("key set: a key has no kid")]
    MissingKid,
    /// A key that counts is not what it says.
    #[error("key set: a key is not acceptable: {0}")]
    Key(&'static str),
}

/// A public key with the algorithms its record allows. A header may name one of these and never adds to them.
#[derive(Clone)]
pub struct VerifyingKey {
    kid: KeyId,
    algs: &'static [Alg],
    material: Material,
}

#[derive(Clone)]
pub(super) enum Material {
    P256(PublicKey),
    /// 0x04 ‖ x ‖ y.
    P384(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    Ed25519([u8; 32]),
}

impl VerifyingKey {
    /// A P-256 key that verifies ES256.
    pub(super) fn es256(kid: KeyId, key: PublicKey) -> Self {
        Self {
            kid,
            algs: &[Alg::Es256],
            material: Material::P256(key),
        }
    }

    /// Reads an entry; `None` when it is for something else.
    pub(super) fn read(
        jwk: &Map<String, Value>,
        usage: Usage,
    ) -> Result<Option<Self>, KeySetError> {
        let (kty, key_use) = (text(jwk, "kty")?, text(jwk, "use")?);
        let ops = match jwk.get("key_ops") {
            None => None,
            Some(ops) => Some(ops_verify(ops).ok_or(KeySetError::Form(
                "key_ops must be an array of different strings",
            ))?),
        };
        let counts = match usage {
            Usage::JwtSvid => key_use == Some("jwt-svid"),
            Usage::Signature => key_use == Some("sig") || (key_use.is_none() && ops != Some(false)),
        };
        if !counts {
            return Ok(None);
        }
        if ops == Some(false) {
            return Err(KeySetError::Key("use and key_ops contradict each other"));
        }
        let alg = match text(jwk, "alg")? {
            None => None,
            Some(name) => match Alg::parse(name) {
                None => return Ok(None),
                known => known,
            },
        };
        let Some((material, family)) = Material::read(jwk, kty, usage)? else {
            return Ok(None);
        };
        let algs = match alg {
            None => family,
            Some(alg) => match material.family().iter().position(|a| *a == alg) {
                Some(at) => material.family().get(at..=at).unwrap_or_default(),
                None => return Err(KeySetError::Key("alg does not fit the key")),
            },
        };
        let kid = text(jwk, "kid")?.ok_or(KeySetError::MissingKid)?;
        let kid = KeyId::parse(kid)
            .map_err(|_| KeySetError::Key("kid must be 1 to 128 visible ASCII characters"))?;
        Ok(Some(Self {
            kid,
            algs,
            material,
        }))
    }

    /// The key's name.
    pub fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// The algorithms its record allows.
    pub fn algs(&self) -> &'static [Alg] {
        self.algs
    }

    /// Whether the private key stands in a specification, or is a small number.
    pub(super) fn is_published(&self) -> bool {
        published::contains(&self.material.identity())
    }

    /// Whether `signature` over the message is this key's under `alg`; never for an algorithm outside its record.
    pub fn verify(&self, alg: Alg, message: &[u8], signature: &[u8]) -> bool {
        self.algs.contains(&alg) && self.material.verify(alg, message, signature)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({}, {:?})", self.kid, self.algs)
    }
}

fn rsa_parameters(alg: Alg) -> Option<&'static RsaParameters> {
    match alg {
        Alg::Rs256 => Some(&RSA_PKCS1_2048_8192_SHA256),
        Alg::Rs384 => Some(&RSA_PKCS1_2048_8192_SHA384),
        Alg::Rs512 => Some(&RSA_PKCS1_2048_8192_SHA512),
        Alg::Ps256 => Some(&RSA_PSS_2048_8192_SHA256),
        Alg::Ps384 => Some(&RSA_PSS_2048_8192_SHA384),
        Alg::Ps512 => Some(&RSA_PSS_2048_8192_SHA512),
        Alg::Es256 | Alg::Es384 | Alg::EdDsa | Alg::Ed25519 => None,
    }
}

impl Material {
    /// The key and what it may verify when its entry names no algorithm; `None` for a type or curve not known here.
    pub(super) fn read(
        jwk: &Map<String, Value>,
        kty: Option<&str>,
        usage: Usage,
    ) -> Result<Option<(Self, &'static [Alg])>, KeySetError> {
        let crv = text(jwk, "crv")?;
        let material = match (kty, crv) {
            (Some("EC"), Some("P-256")) => {
                let (x, y) = (fixed::<32>(jwk, "x")?, fixed::<32>(jwk, "y")?);
                if !is_on_curve(&ECDH_P256, &[&[4][..], &x, &y].concat()) {
                    return Err(KeySetError::Key("the point is not on the curve"));
                }
                Self::P256(PublicKey::from_coordinates(&x, &y))
            }
            (Some("EC"), Some("P-384")) => {
                let (x, y) = (fixed::<48>(jwk, "x")?, fixed::<48>(jwk, "y")?);
                let point = [&[4][..], &x, &y].concat();
                if !is_on_curve(&ECDH_P384, &point) {
                    return Err(KeySetError::Key("the point is not on the curve"));
                }
                Self::P384(point)
            }
            (Some("RSA"), _) => {
                let (n, e) = (integer(jwk, "n")?, integer(jwk, "e")?);
                rsa_is_sound(&n, &e)?;
                Self::Rsa { n, e }
            }
            (Some("OKP"), Some("Ed25519")) => match usage {
                Usage::Signature => {
                    let point = fixed::<32>(jwk, "x")?;
                    ed25519_is_sound(&point)?;
                    Self::Ed25519(point)
                }
                Usage::JwtSvid => {
                    return Err(KeySetError::Key("JWT-SVIDs are not signed with EdDSA"));
                }
            },
            (Some("EC" | "OKP"), None) => return Err(KeySetError::Key("crv is missing")),
            (None, _) => return Err(KeySetError::Form("an entry has no kty")),
            _ => return Ok(None),
        };
        let family = match (&material, usage) {
            // One key, one algorithm (RFC 8725 §3.1): an RSA key that names none has OpenID Connect's default.
            (Self::Rsa { .. }, Usage::Signature) => &[Alg::Rs256],
            _ => material.family(),
        };
        Ok(Some((material, family)))
    }

    /// Whether the signature, in the form RFC 7518 §3 gives it, is this key's under `alg`.
    pub(super) fn verify(&self, alg: Alg, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(key) => key.verify(message, signature),
            Self::P384(point) => UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
                .verify(message, signature)
                .is_ok(),
            Self::Rsa { n, e } => match rsa_parameters(alg) {
                Some(parameters) => RsaPublicKeyComponents { n, e }
                    .verify(parameters, message, signature)
                    .is_ok(),
                None => false,
            },
            Self::Ed25519(x) => UnparsedPublicKey::new(&ED25519, x)
                .verify(message, signature)
                .is_ok(),
        }
    }

    /// What the key's holder can sign as.
    pub(super) fn identity(&self) -> KeyIdentity {
        match self {
            Self::P256(key) => key.identity(),
            Self::P384(point) => {
                let x = point.get(1..49).unwrap_or_default();
                key_identity("P-384", x)
            }
            Self::Rsa { n, .. } => key_identity("RSA", n),
            Self::Ed25519(point) => {
                // The top bit of the last byte is the sign of x (RFC 8032 §5.1.2).
                let mut y = *point;
                if let Some(last) = y.last_mut() {
                    *last &= 0x7f;
                }
                key_identity("Ed25519", &y)
            }
        }
    }

    /// Every algorithm a key of this type can have.
    fn family(&self) -> &'static [Alg] {
        match self {
            Self::P256(_) => &[Alg::Es256],
            Self::P384(_) => &[Alg::Es384],
            Self::Rsa { .. } => RSA_FAMILY,
            Self::Ed25519(_) => ED25519_NAMES,
        }
    }
}

/// A member that must be a string where it stands.
pub(super) fn text<'a>(
    jwk: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, KeySetError> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(_) => Err(KeySetError::Form(
            "kty, use, alg, crv and kid must be strings",
        )),
    }
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, KeySetError> {
    let encoded = jwk
        .get(name)
        .and_then(Value::as_str)
        .ok_or(KeySetError::Key("a member of the key is missing"))?;
    decode(encoded).ok_or(KeySetError::Key(
        "a member is not base64url without padding",
    ))
}

fn fixed<const N: usize>(jwk: &Map<String, Value>, name: &str) -> Result<[u8; N], KeySetError> {
    bytes(jwk, name)?
        .try_into()
        .map_err(|_| KeySetError::Key("a coordinate is not of the curve's length"))
}

/// A Base64urlUInt: big-endian, no leading zero (RFC 7518 §2).
fn integer(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, KeySetError> {
    let bytes = bytes(jwk, name)?;
    match bytes.first() {
        None | Some(0) => Err(KeySetError::Key(
            "an integer is empty or begins with a zero",
        )),
        Some(_) => Ok(bytes),
    }
}

/// Whether the point generates the group of prime order, in its one encoding (RFC 8032 §5.1.3). ring refuses only what is not on
/// the curve. Under a point of small order a constant is a signature of many messages; a point with a part of small order shares
/// signatures with others.
fn ed25519_is_sound(encoded: &[u8; 32]) -> Result<(), KeySetError> {
    let compressed = CompressedEdwardsY(*encoded);
    let point = compressed
        .decompress()
        .ok_or(KeySetError::Key("the point is not on the curve"))?;
    // The library reduces y and takes −0 for 0.
    if point.compress() != compressed {
        return Err(KeySetError::Key("the point is not encoded canonically"));
    }
    // The identity is of small order, and free of torsion.
    if point.is_small_order() || !point.is_torsion_free() {
        return Err(KeySetError::Key("the point is not of the prime order"));
    }
    Ok(())
}

/// What is certain and cheap to say of a modulus: its size, small factors, the square of a prime, and one known bad generator.
fn rsa_is_sound(n: &[u8], e: &[u8]) -> Result<(), KeySetError> {
    let leading = n.first().map_or(8, |b| b.leading_zeros());
    let bits = (n.len() * 8).saturating_sub(usize::try_from(leading).unwrap_or(8));
    if !RSA_BITS.contains(&bits) {
        return Err(KeySetError::Key("the RSA modulus is not 2048 to 4096 bits"));
    }
    let exponent = e.iter().try_fold(0u64, |sum, b| {
        sum.checked_mul(256)?.checked_add(u64::from(*b))
    });
    if !exponent.is_some_and(|e| RSA_EXPONENT.contains(&e) && e % 2 == 1) {
        return Err(KeySetError::Key(
            "the RSA exponent is even, below 65537 or above 33 bits",
        ));
    }
    let residues: Vec<(u64, u64)> = small_primes().map(|p| (p, modulo(n, p))).collect();
    if residues.iter().any(|(_, residue)| *residue == 0)
        || is_square(&residues)
        || is_roca(&residues)
    {
        return Err(KeySetError::Key("the RSA modulus can be factored"));
    }
    Ok(())
}

/// The primes below [`SMALL_PRIMES_END`], ascending.
fn small_primes() -> impl Iterator<Item = u64> {
    (2..SMALL_PRIMES_END).filter(|p| {
        let mut divisors = (2..).take_while(|d| d * d <= *p);
        divisors.all(|d| p % d != 0)
    })
}

fn modulo(n: &[u8], p: u64) -> u64 {
    n.iter().fold(0, |r, b| (r * 256 + u64::from(*b)) % p)
}

/// A square is a square modulo every prime. Another number is one modulo all the odd primes here about once in 2^167.
fn is_square(residues: &[(u64, u64)]) -> bool {
    let mut odd = residues.iter().filter(|(p, _)| *p != 2);
    odd.all(|(p, residue)| power(*residue, (p - 1) / 2, *p) == 1)
}

/// `base`^`exponent` modulo a small prime.
fn power(base: u64, exponent: u64, p: u64) -> u64 {
    (0..exponent).fold(1, |product, _| product * base % p)
}

/// The fingerprint of CVE-2017-15361: modulo every odd prime to 167 the modulus is a power of 65537. A sound modulus is so
/// modulo all of them about once in 2^27.
fn is_roca(residues: &[(u64, u64)]) -> bool {
    let mut odd = residues.iter().filter(|(p, _)| (3..=167).contains(p));
    odd.all(|(p, residue)| {
        let mut power = 1;
        (0..*p).any(|_| {
            let hit = power == *residue;
            power = power * 65_537 % p;
            hit
        })
    })
}

/// How far trial division goes: a few tenths of a millisecond for the largest modulus.
const SMALL_PRIMES_END: u64 = 1000;
