use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters,
    EllipticCurveKeyType, Jwk, KeyAlgorithm, PublicKeyUse,
};
use ring::agreement::{self, ECDH_P256, EphemeralPrivateKey};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{Usage, decode_exactly, encode, published};
use crate::model::{Digest, KeyId, KeyIdentity, Thumbprint};

/// Why a key could not be read, generated or used. Holds no part of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The JWK is not a public ES256 key in the form that [`PublicKey::from_jwk`] reads.
    #[error("JWK: {0}")]
    Jwk(&'static str),
    /// A member of a private or symmetric key in a public key.
    #[error("JWK: has a member of a private or symmetric key")]
    Private,
    /// The point is not on P-256.
    #[error("JWK: the point is not on the curve")]
    OffCurve,
    /// The private key stands in a specification, or is a small number.
    #[error("JWK: its private key is published, so anyone can sign with it; make a new key")]
    Published,
    /// The text is not one PEM block `PRIVATE KEY`.
    #[error("PEM: {0}")]
    Pem(&'static str),
    /// The bytes are not a P-256 private key in PKCS#8 with its public key (RFC 5208, RFC 5915).
    #[error("PKCS#8: not a P-256 private key with its public key")]
    Pkcs8,
    /// The operating system gave no randomness, or the signature failed.
    #[error("the signing operation failed")]
    Failed,
}

/// Members that only private or symmetric keys have (RFC 7518 §6.2.2, §6.3.2, §6.4.1; RFC 8037 §2).
pub(super) const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// A public ES256 key (RFC 7518 §3.4): a point of P-256.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// 0x04 ‖ x ‖ y (SEC 1 §2.3.3).
    point: [u8; 65],
    thumbprint: Thumbprint,
}

impl PublicKey {
    /// Reads a JWK: `kty` EC, `crv` P-256, `x` and `y` of exactly 32 bytes; `alg`, `use`, `key_ops`, `kid` and `ext`, if
    /// there, must fit a key that verifies ES256. Refuses every other member, private ones by name, a point that
    /// is not on the curve, and a key whose private half is published.
    pub fn from_jwk(jwk: &Value) -> Result<Self, KeyError> {
        let key = Self::on_curve(jwk)?;
        if key.is_published() {
            return Err(KeyError::Published);
        }
        Ok(key)
    }

    /// Like [`PublicKey::from_jwk`], for test vectors: their keys are published.
    #[cfg(any(test, feature = "test-support"))]
    pub fn from_vector(jwk: &Value) -> Result<Self, KeyError> {
        Self::on_curve(jwk)
    }

    fn on_curve(jwk: &Value) -> Result<Self, KeyError> {
        let key = Self::from_jwk_before_use(jwk)?;
        if is_on_curve(&ECDH_P256, &key.point) {
            Ok(key)
        } else {
            Err(KeyError::OffCurve)
        }
    }

    /// Reads the form alone. The curve is left to the verification that follows at once: ring verifies nothing under a point that
    /// is not on it. Whether the private key is published is asked where the key is first accepted.
    pub(super) fn from_jwk_before_use(jwk: &Value) -> Result<Self, KeyError> {
        let jwk = jwk.as_object().ok_or(KeyError::Jwk("must be an object"))?;
        for name in jwk.keys() {
            match name.as_str() {
                "kty" | "crv" | "x" | "y" | "alg" | "use" | "key_ops" | "kid" | "ext" => {}
                private if PRIVATE_MEMBERS.contains(&private) => return Err(KeyError::Private),
                _ => return Err(KeyError::Jwk("has an unknown member")),
            }
        }
        exactly(jwk, "kty", "EC", KeyError::Jwk("kty must be EC"))?;
        exactly(jwk, "crv", "P-256", KeyError::Jwk("crv must be P-256"))?;
        if jwk.contains_key("alg") {
            exactly(jwk, "alg", "ES256", KeyError::Jwk("alg must be ES256"))?;
        }
        if jwk.contains_key("use") {
            exactly(jwk, "use", "sig", KeyError::Jwk("use must be sig"))?;
        }
        if jwk
            .get("key_ops")
            .is_some_and(|ops| !ops_verify(ops).unwrap_or(false))
        {
            return Err(KeyError::Jwk("key_ops must contain verify"));
        }
        if jwk.get("kid").is_some_and(|kid| !kid.is_string())
            || jwk.get("ext").is_some_and(|ext| !ext.is_boolean())
        {
            return Err(KeyError::Jwk("kid must be a string and ext a boolean"));
        }
        let (x, y) = (coordinate(jwk, "x"), coordinate(jwk, "y"));
        let (Some(x), Some(y)) = (x, y) else {
            return Err(KeyError::Jwk(
                "x and y must be 32 bytes each, as base64url without padding",
            ));
        };
        Ok(Self::from_coordinates(&x, &y))
    }

    pub(super) fn from_coordinates(x: &[u8; 32], y: &[u8; 32]) -> Self {
        let mut point = [4; 65];
        for (to, from) in point.iter_mut().skip(1).zip(x.iter().chain(y)) {
            *to = *from;
        }
        // RFC 7638 §3.2: the required members only, in lexicographic order, without whitespace.
        let digest = Digest::sha256_parts(&[
            br#"{"crv":"P-256","kty":"EC","x":""#,
            encode(x).as_bytes(),
            br#"","y":""#,
            encode(y).as_bytes(),
            br#""}"#,
        ]);
        Self {
            point,
            thumbprint: Thumbprint(digest),
        }
    }

    fn coordinates(&self) -> (&[u8], &[u8]) {
        let rest = self.point.get(1..).unwrap_or_default();
        rest.split_at_checked(32).unwrap_or_default()
    }

    /// The JWK with its required members only: `{crv, kty, x, y}`.
    pub fn to_jwk(&self) -> Value {
        let (x, y) = self.coordinates();
        json!({ "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y) })
    }

    /// The JWK as an entry of a key set: named, and saying what it is for. A trust bundle of SPIFFE has no `alg`. Written
    /// through the types of a library that many validators read key sets with.
    pub fn to_jwk_named(&self, kid: &KeyId, usage: Usage) -> Value {
        let (x, y) = self.coordinates();
        let (public_key_use, key_algorithm) = match usage {
            Usage::JwtSvid => (PublicKeyUse::Other("jwt-svid".to_owned()), None),
            Usage::Signature => (PublicKeyUse::Signature, Some(KeyAlgorithm::ES256)),
        };
        let jwk = Jwk {
            common: CommonParameters {
                public_key_use: Some(public_key_use),
                key_algorithm,
                key_id: Some(kid.to_string()),
                ..CommonParameters::default()
            },
            algorithm: AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
                key_type: EllipticCurveKeyType::EC,
                curve: EllipticCurve::P256,
                x: encode(x),
                y: encode(y),
            }),
        };
        // A struct of texts always has a JSON form; an empty key set entry would be refused by every reader.
        serde_json::to_value(jwk).unwrap_or_default()
    }

    /// The JWK thumbprint (RFC 7638, SHA-256): the key's name.
    pub fn thumbprint(&self) -> Thumbprint {
        self.thumbprint
    }

    /// What its holder can sign as: SHA-256("dipylon/key-identity/v1" ‖ 0x00 ‖ "P-256" ‖ 0x00 ‖ x).
    pub fn identity(&self) -> KeyIdentity {
        let (x, _) = self.coordinates();
        key_identity("P-256", x)
    }

    /// Whether the private key stands in a specification, or is a small number: then anyone can sign with it.
    pub fn is_published(&self) -> bool {
        published::contains(&self.identity())
    }

    /// The thumbprints of the two keys that its holder has: this one, and that of the negated point.
    pub fn thumbprints(&self) -> [Thumbprint; 2] {
        [self.thumbprint, self.negated().thumbprint]
    }

    /// The key at the negative of the point: its private key is the negative of this one's.
    pub(super) fn negated(&self) -> Self {
        let (x, y) = self.coordinates();
        match (x.try_into(), y.try_into()) {
            (Ok(x), Ok(y)) => Self::from_coordinates(x, &negate(y)),
            (_, _) => self.clone(),
        }
    }

    /// Whether `signature`, r ‖ s in 64 bytes (RFC 7518 §3.4), is this key's over the message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point)
            .verify(message, signature)
            .is_ok()
    }

    /// Whether `signature`, an `Ecdsa-Sig-Value` in DER (RFC 3279 §2.2.3), is this key's over the message.
    pub(super) fn verify_der(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(message, signature)
            .is_ok()
    }
}

/// The identity of the key with this part that a key and its negative share.
pub(super) fn key_identity(family: &str, shared: &[u8]) -> KeyIdentity {
    let form = [family.as_bytes(), b"\0", shared].concat();
    KeyIdentity(Digest::tagged("dipylon/key-identity/v1", &form))
}

/// p − y of P-256 (SEC 2 §2.4.2), for 0 < y < p.
fn negate(y: &[u8; 32]) -> [u8; 32] {
    let mut out = P256_PRIME;
    let mut borrow = false;
    for (to, from) in out.iter_mut().zip(y).rev() {
        let (once, under) = to.overflowing_sub(*from);
        let (twice, again) = once.overflowing_sub(u8::from(borrow));
        (*to, borrow) = (twice, under || again);
    }
    out
}

/// 2^256 − 2^224 + 2^192 + 2^96 − 1.
const P256_PRIME: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
];

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.thumbprint)
    }
}

/// Whether the uncompressed point is a valid public key of the curve (SEC 1 §3.2.2.1). ring has no such check by itself, but
/// makes it before it agrees on a secret; the secret is dropped. Without randomness from the system, `false`.
pub(super) fn is_on_curve(curve: &'static agreement::Algorithm, point: &[u8]) -> bool {
    let peer = agreement::UnparsedPublicKey::new(curve, point);
    EphemeralPrivateKey::generate(curve, &SystemRandom::new())
        .and_then(|ephemeral| agreement::agree_ephemeral(ephemeral, &peer, |_secret| ()))
        .is_ok()
}

fn exactly(
    jwk: &Map<String, Value>,
    name: &str,
    value: &str,
    otherwise: KeyError,
) -> Result<(), KeyError> {
    if jwk.get(name).and_then(Value::as_str) == Some(value) {
        Ok(())
    } else {
        Err(otherwise)
    }
}

fn coordinate(jwk: &Map<String, Value>, name: &str) -> Option<[u8; 32]> {
    decode_exactly(jwk.get(name)?.as_str()?)
}

/// Whether `key_ops` (RFC 7517 §4.3) allows verifying; `None` when it is not an array of different strings.
pub(super) fn ops_verify(ops: &Value) -> Option<bool> {
    let ops = ops
        .as_array()?
        .iter()
        .map(Value::as_str)
        .collect::<Option<Vec<_>>>()?;
    let distinct = ops
        .iter()
        .enumerate()
        .all(|(i, op)| !ops.iter().take(i).any(|earlier| earlier == op));
    distinct.then(|| ops.contains(&"verify"))
}

/// A private ES256 key. Held parsed, never copied, never printed.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
    random: SystemRandom,
}

impl SigningKey {
    /// Makes a new key from the system's randomness; the second value is its PKCS#8 form, for keeping.
    pub fn generate() -> Result<(Self, Zeroizing<Vec<u8>>), KeyError> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| KeyError::Failed)?;
        let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
        Ok((Self::from_pkcs8(&pkcs8)?, pkcs8))
    }

    /// Reads PKCS#8 that holds the public key too, and checks that both halves belong together.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|_| KeyError::Pkcs8)?;
        let halves = pair
            .public_key()
            .as_ref()
            .split_first()
            .and_then(|(_, rest)| rest.split_at_checked(32));
        let (x, y) = halves.ok_or(KeyError::Pkcs8)?;
        let (Ok(x), Ok(y)) = (x.try_into(), y.try_into()) else {
            return Err(KeyError::Pkcs8);
        };
        Ok(Self {
            public: PublicKey::from_coordinates(x, y),
            pair,
            random,
        })
    }

    /// Reads one PEM block `PRIVATE KEY` (RFC 7468 §10): nothing before or after it, canonical base64, lines of at most 64.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.len() > PEM_BYTES_MAX {
            return Err(KeyError::Pem("too long"));
        }
        let mut lines = pem.lines();
        if lines.next() != Some(PEM_BEGIN) {
            return Err(KeyError::Pem("must begin with BEGIN PRIVATE KEY"));
        }
        let mut body = Zeroizing::new(String::with_capacity(pem.len()));
        loop {
            match lines.next() {
                Some(PEM_END) => break,
                Some(line) if (1..=PEM_LINE).contains(&line.len()) => body.push_str(line),
                Some(_) => return Err(KeyError::Pem("a line is empty or longer than 64")),
                None => return Err(KeyError::Pem("must end with END PRIVATE KEY")),
            }
        }
        if lines.next().is_some() {
            return Err(KeyError::Pem("something follows the block"));
        }
        let pkcs8 = Zeroizing::new(
            STANDARD
                .decode(body.as_bytes())
                .map_err(|_| KeyError::Pem("must be base64"))?,
        );
        Self::from_pkcs8(&pkcs8)
    }

    /// The PEM form of a key's PKCS#8 bytes, as [`SigningKey::generate`] gave them.
    pub fn to_pem(pkcs8: &[u8]) -> Zeroizing<String> {
        let body = Zeroizing::new(STANDARD.encode(pkcs8));
        let mut pem = Zeroizing::new(String::with_capacity(
            body.len() + body.len() / PEM_LINE + 64,
        ));
        pem.push_str(PEM_BEGIN);
        for (i, c) in body.chars().enumerate() {
            if i % PEM_LINE == 0 {
                pem.push('\n');
            }
            pem.push(c);
        }
        pem.push('\n');
        pem.push_str(PEM_END);
        pem.push('\n');
        pem
    }

    /// The half that may be shown.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The key's name.
    pub fn thumbprint(&self) -> Thumbprint {
        self.public.thumbprint
    }

    /// Signs with ECDSA P-256 and SHA-256: r ‖ s, 64 bytes (RFC 7518 §3.4).
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], KeyError> {
        let signature = self
            .pair
            .sign(&self.random, message)
            .map_err(|_| KeyError::Failed)?;
        signature.as_ref().try_into().map_err(|_| KeyError::Failed)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, redacted)", self.public.thumbprint)
    }
}

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";
/// Characters in a line (RFC 7468 §3).
const PEM_LINE: usize = 64;
/// Longest PEM text, in bytes: a P-256 key takes about 250.
const PEM_BYTES_MAX: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use ring::agreement::ECDH_P384;
    use ring::signature::ECDSA_P384_SHA384_FIXED_SIGNING;

    use super::*;

    #[test]
    fn on_curve_check() {
        let rng = SystemRandom::new();
        for (alg, half, curve) in [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, 32, &ECDH_P256),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, 48, &ECDH_P384),
        ] {
            for _ in 0..8 {
                let pkcs8 = EcdsaKeyPair::generate_pkcs8(alg, &rng).unwrap();
                let pair = EcdsaKeyPair::from_pkcs8(alg, pkcs8.as_ref(), &rng).unwrap();
                let mut point = pair.public_key().as_ref().to_vec();
                assert!(is_on_curve(curve, &point));
                point[1 + half] ^= 1;
                assert!(!is_on_curve(curve, &point));
            }
        }
        let p256 = |x: &[u8], y: &[u8]| is_on_curve(&ECDH_P256, &[&[4][..], x, y].concat());
        assert!(!p256(&[0; 32], &[0; 32]));
        assert!(!p256(&[0xff; 32], &[0xff; 32]), "not reduced");
        assert!(!p256(&[0; 31], &[0; 32]));
    }

    #[test]
    fn pem_roundtrip() {
        let (key, pkcs8) = SigningKey::generate().expect("key");
        let pem = SigningKey::to_pem(&pkcs8);
        let back = SigningKey::from_pem(&pem).expect("pem");
        assert_eq!(back.public(), key.public());
        let signature = back.sign(b"message").expect("signature");
        assert!(key.public().verify(b"message", &signature));
        assert!(!key.public().verify(b"messagf", &signature));
        assert!(!key.public().verify(b"message", &signature[..63]));
        assert!(!format!("{key:?}").contains(pem.lines().nth(1).expect("line")));
        assert!(pem.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn malformed_pem_is_rejected() {
        let (_, pkcs8) = SigningKey::generate().expect("key");
        let pem = SigningKey::to_pem(&pkcs8).to_string();
        let bad = [
            String::new(),
            pem.replace("PRIVATE", "EC PRIVATE"),
            format!("\n{pem}"),
            format!("{pem}{pem}"),
            format!("{pem}x"),
            pem.replace(PEM_END, ""),
            pem.replacen('\n', "\n\n", 1),
            pem.replacen('\n', "\n ", 1),
            pem.replacen("\n-----END", "A\n-----END", 1),
            format!("{PEM_BEGIN}\n{PEM_END}\n"),
            format!("{PEM_BEGIN}\nAAAA\n{PEM_END}\n"),
        ];
        for text in bad {
            assert!(SigningKey::from_pem(&text).is_err(), "{text}");
        }
        let mut cut = pkcs8.to_vec();
        cut.pop();
        assert_eq!(SigningKey::from_pkcs8(&cut).err(), Some(KeyError::Pkcs8));
    }

    #[test]
    fn jwk_parsing_is_strict() {
        let (key, _) = SigningKey::generate().expect("key");
        let good = key.public().to_jwk();
        assert_eq!(PublicKey::from_jwk(&good).as_ref(), Ok(key.public()));
        let with = |name: &str, value: Value| {
            let mut jwk = good.clone();
            jwk[name] = value;
            PublicKey::from_jwk(&jwk)
        };
        for (name, value) in [
            ("alg", json!("ES256")),
            ("use", json!("sig")),
            ("key_ops", json!(["verify"])),
            ("kid", json!("k")),
            ("ext", json!(true)),
        ] {
            assert!(with(name, value).is_ok(), "{name}");
        }
        for private in PRIVATE_MEMBERS {
            assert_eq!(
                with(private, json!("AA")),
                Err(KeyError::Private),
                "{private}"
            );
        }
        let x = good["x"].as_str().expect("x").to_owned();
        for (name, value) in [
            ("kty", json!("ec")),
            ("kty", json!("OKP")),
            ("crv", json!("P-384")),
            ("crv", json!("p-256")),
            ("alg", json!("es256")),
            ("alg", json!("ES384")),
            ("alg", Value::Null),
            ("use", json!("enc")),
            ("use", json!("jwt-svid")),
            ("key_ops", json!(["sign"])),
            ("key_ops", json!("verify")),
            ("key_ops", json!(["verify", "verify"])),
            ("kid", json!(1)),
            ("x5c", json!([])),
            ("x", json!(format!("{x}="))),
            ("x", json!(format!("{x}A"))),
            ("x", json!(format!(" {x}"))),
            ("x", json!(encode(&[1; 31]))),
            ("x", json!(encode(&[0; 33]))),
            ("x", json!([1])),
            ("y", Value::Null),
            ("y", json!(x)),
        ] {
            assert!(with(name, value.clone()).is_err(), "{name} {value}");
        }
        assert!(PublicKey::from_jwk(&json!([])).is_err());
    }
}
