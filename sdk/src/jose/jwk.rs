use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use ring::agreement::{ECDH_P256, ECDH_P384};
use ring::signature::{
    ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde_json::{Map, Value};

use super::key::{PRIVATE_MEMBERS, is_on_curve, ops_verify};
use super::{PublicKey, decode};
use crate::model::KeyId;
use crate::model::json::{self, INTEGER_MAX};

/// Longest key set, in bytes.
pub const KEY_SET_BYTES_MAX: usize = 256 * 1024;
/// Most entries of a key set, those not for us included.
pub const KEYS_MAX: usize = 64;
/// Bounds of an RSA modulus, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;
/// Bounds of an RSA exponent; ring holds 33 bits.
const RSA_EXPONENT: std::ops::RangeInclusive<u64> = 65_537..=0x1_ffff_ffff;

/// What a foreign key set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// JWT-SVIDs: a SPIFFE trust bundle, of which only the entries with `use: jwt-svid` count. No EdDSA (JWT-SVID §2.1).
    JwtSvid,
    /// Signatures by anyone else: a JWK set (RFC 7517 §5), of which the entries with `use: sig` or without `use` count.
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
    /// More than [`KEY_SET_BYTES_MAX`] bytes or [`KEYS_MAX`] entries.
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

/// The public keys of one issuer or trust domain, by `kid`. Immutable; the caller knows whose they are.
#[derive(Clone)]
pub struct KeySet {
    keys: BTreeMap<KeyId, VerifyingKey>,
    ignored: usize,
    sequence: Option<i64>,
    refresh_hint: Option<i64>,
}

impl KeySet {
    /// Reads a JWK set or a SPIFFE trust bundle. Entries that are for something else (another `use`, an unknown `kty`,
    /// curve or `alg`) are passed over; anything wrong with a key that counts, or dangerous anywhere, refuses the set whole.
    pub fn parse(bytes: &[u8], usage: Usage) -> Result<Self, KeySetError> {
        if bytes.len() > KEY_SET_BYTES_MAX {
            return Err(KeySetError::TooLarge);
        }
        let Value::Object(set) = json::parse(bytes).map_err(|_| KeySetError::Json)? else {
            return Err(KeySetError::Form("must be an object"));
        };
        let entries = set
            .get("keys")
            .and_then(Value::as_array)
            .ok_or(KeySetError::Form("keys must be an array"))?;
        if entries.len() > KEYS_MAX {
            return Err(KeySetError::TooLarge);
        }
        let mut out = Self {
            keys: BTreeMap::new(),
            ignored: 0,
            sequence: count(
                &set,
                "spiffe_sequence",
                "spiffe_sequence must be an integer and not negative",
            )?,
            refresh_hint: count(
                &set,
                "spiffe_refresh_hint",
                "spiffe_refresh_hint must be an integer and not negative",
            )?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let jwk = entry
                .as_object()
                .ok_or(KeySetError::Form("an entry is not an object"))?;
            if text(jwk, "kty")? == Some("oct")
                || PRIVATE_MEMBERS.iter().any(|m| jwk.contains_key(*m))
            {
                return Err(KeySetError::Private);
            }
            if let Some(kid) = text(jwk, "kid")? {
                if names.contains(&kid) {
                    return Err(KeySetError::DuplicateKid);
                }
                names.push(kid);
            }
            match VerifyingKey::read(jwk, usage)? {
                Some(key) => out.insert(key)?,
                None => out.ignored += 1,
            }
        }
        Ok(out)
    }

    /// The set of ES256 keys held here by name, such as this broker's own. Refuses a name twice.
    pub fn from_keys<'a>(
        keys: impl IntoIterator<Item = (KeyId, &'a PublicKey)>,
    ) -> Result<Self, KeySetError> {
        let mut out = Self {
            keys: BTreeMap::new(),
            ignored: 0,
            sequence: None,
            refresh_hint: None,
        };
        for (kid, key) in keys {
            out.insert(VerifyingKey {
                kid,
                algs: &[Alg::Es256],
                material: Material::P256(key.clone()),
            })?;
        }
        Ok(out)
    }

    fn insert(&mut self, key: VerifyingKey) -> Result<(), KeySetError> {
        match self.keys.entry(key.kid.clone()) {
            Entry::Vacant(place) => {
                place.insert(key);
                Ok(())
            }
            Entry::Occupied(_) => Err(KeySetError::DuplicateKid),
        }
    }

    /// The names of the keys that count, sorted.
    pub fn kids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.keys()
    }

    /// The key of that name.
    pub fn get(&self, kid: &KeyId) -> Option<&VerifyingKey> {
        self.keys.get(kid)
    }

    /// The only key, when there is exactly one.
    pub fn only(&self) -> Option<&VerifyingKey> {
        let mut keys = self.keys.values();
        keys.next().filter(|_| keys.next().is_none())
    }

    /// How many keys count.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key counts: valid, and nothing verifies under it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many entries were passed over as not for this usage.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// `spiffe_sequence`: grows with each change of the trust bundle (SPIFFE trust domain and bundle §4.1.1).
    pub fn sequence(&self) -> Option<i64> {
        self.sequence
    }

    /// `spiffe_refresh_hint`: how often to look again, in seconds (§4.1.2).
    pub fn refresh_hint(&self) -> Option<i64> {
        self.refresh_hint
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
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
    /// Reads an entry; `None` when it is for something else.
    fn read(jwk: &Map<String, Value>, usage: Usage) -> Result<Option<Self>, KeySetError> {
        let (kty, named) = (text(jwk, "kty")?, text(jwk, "use")?);
        let ops = match jwk.get("key_ops") {
            None => None,
            Some(ops) => Some(ops_verify(ops).ok_or(KeySetError::Form(
                "key_ops must be an array of different strings",
            ))?),
        };
        let ours = match usage {
            Usage::JwtSvid => named == Some("jwt-svid"),
            Usage::Signature => named == Some("sig") || (named.is_none() && ops != Some(false)),
        };
        if !ours {
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
                Usage::Signature => Self::Ed25519(fixed::<32>(jwk, "x")?),
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
fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, KeySetError> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(_) => Err(KeySetError::Form(
            "kty, use, alg, crv and kid must be strings",
        )),
    }
}

fn count(
    set: &Map<String, Value>,
    name: &str,
    rule: &'static str,
) -> Result<Option<i64>, KeySetError> {
    match set.get(name) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(n) if (0..=INTEGER_MAX).contains(&n) => Ok(Some(n)),
            _ => Err(KeySetError::Form(rule)),
        },
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
    if n.last().is_none_or(|b| b % 2 == 0) || is_roca(n) {
        return Err(KeySetError::Key("the RSA modulus can be factored"));
    }
    Ok(())
}

/// The fingerprint of CVE-2017-15361: modulo every small odd prime the modulus is a power of 65537. A sound modulus is so
/// modulo all of them about once in 2^27.
fn is_roca(n: &[u8]) -> bool {
    let primes = (3..=167u64)
        .step_by(2)
        .filter(|p| (3..*p).step_by(2).all(|d| p % d != 0));
    primes.into_iter().all(|p| {
        let residue = n.iter().fold(0, |r, b| (r * 256 + u64::from(*b)) % p);
        let mut power = 1;
        (0..p).any(|_| {
            let hit = power == residue;
            power = power * 65_537 % p;
            hit
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jose::{SigningKey, encode};

    fn jwk(kid: &str) -> Value {
        let (key, _) = SigningKey::generate().expect("key");
        key.public()
            .to_jwk_named(&KeyId::parse(kid).expect("kid"), Usage::Signature)
    }

    fn parse(set: &Value, usage: Usage) -> Result<KeySet, KeySetError> {
        KeySet::parse(set.to_string().as_bytes(), usage)
    }

    fn one(name: &str, value: Value) -> Result<KeySet, KeySetError> {
        let mut entry = jwk("a");
        entry[name] = value;
        parse(&json!({ "keys": [entry] }), Usage::Signature)
    }

    #[test]
    fn keys_are_found_by_kid() {
        let set = parse(&json!({ "keys": [jwk("a"), jwk("b")] }), Usage::Signature).expect("set");
        assert_eq!(
            set.kids().map(KeyId::as_str).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(
            set.get(&KeyId::parse("a").expect("kid"))
                .map(VerifyingKey::algs),
            Some(&[Alg::Es256][..])
        );
        assert!(set.only().is_none());
        let none = parse(
            &json!({ "keys": [], "spiffe_sequence": 7, "spiffe_refresh_hint": 60 }),
            Usage::JwtSvid,
        )
        .expect("none");
        assert!(none.is_empty());
        assert_eq!((none.sequence(), none.refresh_hint()), (Some(7), Some(60)));
    }

    #[test]
    fn private_or_symmetric_keys_reject_the_set() {
        let (a, b) = (jwk("a"), jwk("b"));
        assert_eq!(
            parse(&json!({ "keys": [a, a] }), Usage::Signature).err(),
            Some(KeySetError::DuplicateKid)
        );
        let mut passed_over = a.clone();
        passed_over["use"] = json!("enc");
        assert_eq!(
            parse(&json!({ "keys": [a, passed_over] }), Usage::Signature).err(),
            Some(KeySetError::DuplicateKid)
        );
        let oct = json!({ "kty": "oct", "kid": "s", "k": encode(&[1; 32]) });
        assert_eq!(
            parse(&json!({ "keys": [a, oct] }), Usage::Signature).err(),
            Some(KeySetError::Private)
        );
        assert_eq!(
            parse(&json!({ "keys": [oct] }), Usage::JwtSvid).err(),
            Some(KeySetError::Private)
        );
        for member in PRIVATE_MEMBERS {
            let mut other = b.clone();
            other["use"] = json!("enc");
            other[member] = json!("AA");
            let set = json!({ "keys": [a, other] });
            assert_eq!(
                parse(&set, Usage::Signature).err(),
                Some(KeySetError::Private),
                "{member}, even where it is passed over"
            );
        }
        let many: Vec<Value> = (0..=KEYS_MAX)
            .map(|i| json!({ "kty": "x", "kid": i.to_string() }))
            .collect();
        assert_eq!(
            parse(&json!({ "keys": many }), Usage::Signature).err(),
            Some(KeySetError::TooLarge)
        );
        let long = json!({ "keys": [], "x": " ".repeat(KEY_SET_BYTES_MAX) });
        assert_eq!(
            parse(&long, Usage::Signature).err(),
            Some(KeySetError::TooLarge)
        );
        assert_eq!(
            KeySet::parse(br#"{"keys":[],"keys":[]}"#, Usage::Signature).err(),
            Some(KeySetError::Json)
        );
        for form in [
            json!([]),
            json!({}),
            json!({ "keys": {} }),
            json!({ "keys": [1] }),
            json!({ "keys": [{}] }),
        ] {
            assert!(
                matches!(parse(&form, Usage::Signature), Err(KeySetError::Form(_))),
                "{form}"
            );
        }
        for bad in [json!(-1), json!(1.5), json!("1"), Value::Null] {
            assert!(
                parse(
                    &json!({ "keys": [], "spiffe_sequence": bad }),
                    Usage::JwtSvid
                )
                .is_err()
            );
        }
    }

    #[test]
    fn malformed_key_rejects_the_set() {
        assert!(one("use", json!("sig")).is_ok());
        for (name, value) in [
            ("alg", json!("RS256")),
            ("alg", json!("ES384")),
            ("alg", json!(1)),
            ("kty", json!("RSA")),
            ("crv", json!("P-384")),
            ("x", json!(encode(&[1; 32]))),
            ("x", json!(encode(&[1; 31]))),
            ("kid", json!("")),
            ("kid", json!("k".repeat(129))),
            ("kid", json!("a b")),
            ("kid", json!(1)),
            ("key_ops", json!(["sign"])),
            ("key_ops", json!("verify")),
        ] {
            assert!(one(name, value.clone()).is_err(), "{name} {value}");
        }
        let mut unnamed = jwk("a");
        unnamed.as_object_mut().expect("object").remove("kid");
        assert_eq!(
            parse(&json!({ "keys": [unnamed] }), Usage::Signature).err(),
            Some(KeySetError::MissingKid)
        );
        for (name, value) in [
            ("alg", json!("HS256")),
            ("alg", json!("es256")),
            ("use", json!("enc")),
            ("kty", json!("new")),
            ("crv", json!("P-521")),
        ] {
            let set = one(name, value.clone()).expect("passed over");
            assert_eq!((set.len(), set.ignored()), (0, 1), "{name} {value}");
        }
    }

    #[test]
    fn a_trust_bundle_counts_jwt_svid_keys_only() {
        let (mut svid, mut bare) = (jwk("a"), jwk("b"));
        svid["use"] = json!("jwt-svid");
        bare.as_object_mut().expect("object").remove("use");
        let x509 = json!({ "kty": "EC", "crv": "P-521", "use": "x509-svid", "x": "AA", "y": "AA" });
        let set = parse(
            &json!({ "keys": [svid, bare, jwk("c"), x509] }),
            Usage::JwtSvid,
        )
        .expect("set");
        assert_eq!((set.len(), set.ignored()), (1, 3));
        let ed = json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(&[1; 32]), "kid": "e", "use": "jwt-svid" });
        assert!(parse(&json!({ "keys": [ed] }), Usage::JwtSvid).is_err());
    }

    #[test]
    fn rsa_bounds() {
        let rsa = |n: &[u8], e: &[u8]| {
            let entry = json!({ "kty": "RSA", "kid": "r", "n": encode(n), "e": encode(e) });
            parse(&json!({ "keys": [entry] }), Usage::Signature)
        };
        let (mut n, e) = (vec![0xd7; 256], [1, 0, 1]);
        let set = rsa(&n, &e).expect("2048 bits");
        assert_eq!(set.only().map(VerifyingKey::algs), Some(&[Alg::Rs256][..]));
        assert!(rsa(&[0xd7; 512], &e).is_ok());
        assert!(rsa(&[0xd7; 513], &e).is_err());
        assert!(rsa(&[0xd7; 255], &e).is_err());
        for bad in [
            &[1][..],
            &[3],
            &[1, 0, 0],
            &[0xff, 0xff],
            &[0, 1, 0, 1],
            &[],
            &[2, 0, 0, 0, 1],
            &[0xff; 9],
        ] {
            assert!(rsa(&n, bad).is_err(), "{bad:?}");
        }
        n[255] = 0xd6;
        assert!(rsa(&n, &e).is_err(), "even");
        n[0] = 0x7f;
        n[255] = 0xd7;
        assert!(rsa(&n, &e).is_err(), "2047 bits");
    }
}
