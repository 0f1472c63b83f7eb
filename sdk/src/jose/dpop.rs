//! DPoP proofs of possession (RFC 9449 §4), with two private claims: `adg`, the action digest, and `evh`, the SHA-256 of the
//! evidence in the same call.

use serde_json::{Map, Value, json};

use super::jws::{self, Compact};
use super::{Alg, ClaimError, Claims, JoseError, KeyError, PublicKey, SigningKey, TypRule};
use crate::model::{Digest, Secret, Thumbprint, Timestamp, is_same_request_uri};

/// Longest `jti`, in bytes.
pub const JTI_BYTES_MAX: usize = 128;
/// Longest `nonce`, in bytes.
pub const NONCE_BYTES_MAX: usize = 256;

const TYP: &str = "dpop+jwt";
const CLAIMS: [&str; 8] = ["jti", "htm", "htu", "iat", "nonce", "ath", "adg", "evh"];

/// Why a proof was rejected. Holds nothing of the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not a compact JWS with exactly `typ`, `alg` ES256 and `jwk` in its header.
    #[error("proof: {0}")]
    Malformed(JoseError),
    /// The header's key is not a public ES256 key, or has a private member.
    #[error("proof: {0}")]
    Key(KeyError),
    /// Not signed by the key it shows.
    #[error("proof: the signature does not verify")]
    Signature,
    /// Signed, but a claim is missing, unknown or of the wrong form.
    #[error("proof: {0}")]
    Claim(ClaimError),
    /// Signed, but with a claim other than `jti`, `htm`, `htu`, `iat`, `nonce`, `ath`, `adg` and `evh`.
    #[error("proof: has an unknown claim")]
    UnknownClaim,
    /// For another method.
    #[error("proof: htm is not the method of this call")]
    WrongMethod,
    /// For another URL.
    #[error("proof: htu is not the URL of this call")]
    WrongUrl,
    /// Created too long ago, or in the future.
    #[error("proof: iat is too far from now")]
    Stale,
    /// Valid except for a missing nonce: the server sends one and the client repeats the call (RFC 9449 §8).
    #[error("proof: a nonce is required")]
    NonceMissing,
}

/// The claims of a new proof.
#[derive(Debug, Clone)]
pub struct ProofClaims<'a> {
    /// The HTTP method; POST for gRPC.
    pub htm: &'a str,
    /// The URL of the call, without query and fragment.
    pub htu: &'a str,
    /// When it is created.
    pub iat: Timestamp,
    /// Fresh and random, 1 to [`JTI_BYTES_MAX`] visible ASCII characters.
    pub jti: &'a str,
    /// The server's newest nonce.
    pub nonce: Option<&'a str>,
    /// SHA-256 of the access token in the same request ([`ath`]).
    pub ath: Option<Digest>,
    /// `adg`: the digest of the requested action.
    pub action_digest: Option<Digest>,
    /// `evh`: SHA-256 of the evidence in the call.
    pub evidence_hash: Option<Digest>,
}

/// The method, URL and freshness that a proof is checked against.
#[derive(Debug, Clone, Copy)]
pub struct ExpectedProof<'a> {
    /// The HTTP method, compared byte by byte.
    pub htm: &'a str,
    /// The configured external URL of the method called, never one taken from the call; compared after normalization, without
    /// query and fragment (RFC 9449 §4.3).
    pub htu: &'a str,
    /// How the proof must show its freshness.
    pub freshness: Freshness,
}

/// How a proof shows its freshness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// By a nonce, which is required and which the caller then checks; `iat` is not compared (RFC 9449 §8).
    Nonce,
    /// By `iat`, at most `window_s` seconds from `now` on either side (§11.1).
    Iat {
        /// The time of the call.
        now: Timestamp,
        /// Seconds.
        window_s: u32,
    },
}

/// A verified proof: signed by the key in its header, for this method and URL. The caller checks its nonce, the replay of its
/// `jti`, and whether the key is the expected one.
#[derive(Debug)]
pub struct CheckedProof {
    key: PublicKey,
    jti: String,
    iat: Timestamp,
    nonce: Option<String>,
    ath: Option<Digest>,
    action_digest: Option<Digest>,
    evidence_hash: Option<Digest>,
}

impl CheckedProof {
    /// The key whose possession is proved.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Its thumbprint: tasks and tokens are bound to it (RFC 9449 §6.1).
    pub fn jkt(&self) -> Thumbprint {
        self.key.thumbprint()
    }

    /// The proof's id; unique for its key.
    pub fn jti(&self) -> &str {
        &self.jti
    }

    /// When the holder says it was created.
    pub fn iat(&self) -> Timestamp {
        self.iat
    }

    /// Its nonce, not yet checked; always present under [`Freshness::Nonce`].
    pub fn nonce(&self) -> Option<&str> {
        self.nonce.as_deref()
    }

    /// SHA-256 of the access token it belongs to.
    pub fn ath(&self) -> Option<Digest> {
        self.ath
    }

    /// `adg`: the digest of the requested action.
    pub fn action_digest(&self) -> Option<Digest> {
        self.action_digest
    }

    /// `evh`: SHA-256 of the evidence it belongs to.
    pub fn evidence_hash(&self) -> Option<Digest> {
        self.evidence_hash
    }
}

/// The `ath` of an access token: SHA-256 of its ASCII form (RFC 9449 §4.2).
pub fn ath(token: &str) -> Digest {
    Digest::sha256(token.as_bytes())
}

/// Creates a proof. Refuses to sign claims whose form [`check`] would reject.
pub fn create(key: &SigningKey, claims: &ProofClaims<'_>) -> Result<Secret, ProofError> {
    let mut out = Map::new();
    out.insert("jti".to_owned(), claims.jti.into());
    out.insert("htm".to_owned(), claims.htm.into());
    out.insert("htu".to_owned(), claims.htu.into());
    out.insert("iat".to_owned(), claims.iat.secs().into());
    out.extend(claims.nonce.map(|nonce| ("nonce".to_owned(), nonce.into())));
    for (name, digest) in [
        ("ath", claims.ath),
        ("adg", claims.action_digest),
        ("evh", claims.evidence_hash),
    ] {
        out.extend(digest.map(|digest| (name.to_owned(), digest.to_string().into())));
    }
    let claims = Claims::new(out);
    // RFC 9449 §4.2: without query and fragment.
    if ProofForm::read(&claims)?.htu.contains(['?', '#']) {
        return Err(ProofError::Claim(ClaimError {
            name: "htu",
            rule: "must have no query and no fragment",
        }));
    }
    let header = json!({ "typ": TYP, "alg": Alg::Es256.as_str(), "jwk": key.public().to_jwk() });
    jws::sign(&header, &Value::Object(claims.into_map()), key)
        .map(Secret::new)
        .map_err(ProofError::Malformed)
}

/// Checks a proof (RFC 9449 §4.3). The signature comes before every claim, so an answer about a claim is an answer to the
/// holder of the key.
pub fn check(proof: &str, expect: &ExpectedProof<'_>) -> Result<CheckedProof, ProofError> {
    let jws = Compact::split(proof).map_err(ProofError::Malformed)?;
    jws.check_header(TypRule::Required(&[TYP]), &["jwk"])
        .map_err(ProofError::Malformed)?;
    if jws.member("kid").is_some() {
        return Err(ProofError::Malformed(JoseError::HeaderMember("kid")));
    }
    if jws.alg().map_err(ProofError::Malformed)? != Alg::Es256 {
        return Err(ProofError::Malformed(JoseError::Alg));
    }
    let jwk = jws
        .member("jwk")
        .ok_or(ProofError::Key(KeyError::Jwk("is missing")))?;
    let key = PublicKey::from_jwk_before_use(jwk).map_err(ProofError::Key)?;
    if !key.verify(jws.signed.as_bytes(), &jws.signature) {
        return Err(ProofError::Signature);
    }
    let claims = jws.claims().map_err(ProofError::Malformed)?;
    let form = ProofForm::read(&claims)?;
    if form.htm != expect.htm {
        return Err(ProofError::WrongMethod);
    }
    if !is_same_request_uri(form.htu, expect.htu) {
        return Err(ProofError::WrongUrl);
    }
    let iat = Timestamp::from_secs(form.iat);
    match expect.freshness {
        Freshness::Nonce if form.nonce.is_none() => return Err(ProofError::NonceMissing),
        Freshness::Nonce => {}
        Freshness::Iat { now, window_s } => {
            if now.secs().abs_diff(form.iat) > u64::from(window_s) {
                return Err(ProofError::Stale);
            }
        }
    }
    let (jti, nonce) = (form.jti.to_owned(), form.nonce.map(str::to_owned));
    Ok(CheckedProof {
        key,
        jti,
        iat,
        nonce,
        ath: form.ath,
        action_digest: form.action_digest,
        evidence_hash: form.evidence_hash,
    })
}

/// The claims of a proof, well-formed but not compared.
struct ProofForm<'a> {
    jti: &'a str,
    htm: &'a str,
    htu: &'a str,
    iat: i64,
    nonce: Option<&'a str>,
    ath: Option<Digest>,
    action_digest: Option<Digest>,
    evidence_hash: Option<Digest>,
}

impl<'a> ProofForm<'a> {
    fn read(claims: &'a Claims) -> Result<Self, ProofError> {
        if !claims.only(&CLAIMS) {
            return Err(ProofError::UnknownClaim);
        }
        let required = |name| claims.string(name).map_err(ProofError::Claim);
        let digest = |name| claims.optional_digest(name).map_err(ProofError::Claim);
        Ok(Self {
            jti: visible("jti", required("jti")?, JTI_BYTES_MAX)?,
            htm: required("htm")?,
            htu: required("htu")?,
            iat: claims.seconds("iat").map_err(ProofError::Claim)?,
            nonce: match claims.optional_string("nonce").map_err(ProofError::Claim)? {
                Some(nonce) => Some(visible("nonce", nonce, NONCE_BYTES_MAX)?),
                None => None,
            },
            ath: digest("ath")?,
            action_digest: digest("adg")?,
            evidence_hash: digest("evh")?,
        })
    }
}

fn visible<'a>(name: &'static str, text: &'a str, bytes_max: usize) -> Result<&'a str, ProofError> {
    if text.len() <= bytes_max && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(ProofError::Claim(ClaimError {
            name,
            rule: "must be visible ASCII, and not too long",
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTU: &str = "https://broker.example/dipylon.v1.TokenService/RequestToken";
    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn claims() -> ProofClaims<'static> {
        let (ath, action_digest, evidence_hash) = (
            Some(Digest::sha256(b"token")),
            Some(Digest::sha256(b"action")),
            Some(Digest::sha256(b"evidence")),
        );
        ProofClaims {
            htm: "POST",
            htu: HTU,
            iat: NOW,
            jti: "one",
            nonce: Some("n-1"),
            ath,
            action_digest,
            evidence_hash,
        }
    }

    fn by_iat(now: Timestamp) -> ExpectedProof<'static> {
        ExpectedProof {
            htm: "POST",
            htu: HTU,
            freshness: Freshness::Iat { now, window_s: 60 },
        }
    }

    fn key() -> SigningKey {
        SigningKey::generate().expect("key").0
    }

    fn signed(key: &SigningKey, change: impl FnOnce(&mut Value, &mut Value)) -> String {
        let mut header = json!({ "typ": TYP, "alg": "ES256", "jwk": key.public().to_jwk() });
        let mut claims = json!({ "jti": "one", "htm": "POST", "htu": HTU, "iat": NOW.secs() });
        change(&mut header, &mut claims);
        let part = |v: &Value| crate::jose::encode(v.to_string().as_bytes());
        let text = format!("{}.{}", part(&header), part(&claims));
        let signature = key.sign(text.as_bytes()).expect("signature");
        format!("{text}.{}", crate::jose::encode(&signature))
    }

    #[test]
    fn dpop_roundtrip() {
        let key = key();
        let proof = create(&key, &claims()).expect("proof");
        let checked = check(
            proof.expose_secret(),
            &ExpectedProof {
                freshness: Freshness::Nonce,
                ..by_iat(NOW)
            },
        )
        .expect("checked");
        assert_eq!(
            (checked.key(), checked.jkt()),
            (key.public(), key.thumbprint())
        );
        assert_eq!(
            (checked.jti(), checked.nonce(), checked.iat()),
            ("one", Some("n-1"), NOW)
        );
        assert_eq!(
            (
                checked.ath(),
                checked.action_digest(),
                checked.evidence_hash()
            ),
            (claims().ath, claims().action_digest, claims().evidence_hash)
        );
        assert_eq!(checked.ath(), Some(ath("token")));
    }

    #[test]
    fn iat_is_ignored_when_a_nonce_is_required() {
        let key = key();
        let proof = create(
            &key,
            &ProofClaims {
                nonce: None,
                ..claims()
            },
        )
        .expect("proof");
        let at = |s| check(proof.expose_secret(), &by_iat(NOW.plus_secs(s))).map(drop);
        assert_eq!((at(60), at(-60)), (Ok(()), Ok(())));
        assert_eq!(
            (at(61), at(-61)),
            (Err(ProofError::Stale), Err(ProofError::Stale))
        );
        let nonce = ExpectedProof {
            freshness: Freshness::Nonce,
            ..by_iat(NOW)
        };
        assert_eq!(
            check(proof.expose_secret(), &nonce).map(drop),
            Err(ProofError::NonceMissing)
        );
        let old = create(
            &key,
            &ProofClaims {
                iat: Timestamp::from_secs(1),
                ..claims()
            },
        )
        .expect("proof");
        assert!(check(old.expose_secret(), &nonce).is_ok());
    }

    #[test]
    fn method_is_exact_and_url_is_normalized() {
        let proof = create(&key(), &claims()).expect("proof");
        let with = |htm, htu| {
            check(
                proof.expose_secret(),
                &ExpectedProof {
                    htm,
                    htu,
                    ..by_iat(NOW)
                },
            )
            .map(drop)
        };
        assert_eq!(with("POST", HTU), Ok(()));
        assert_eq!(with("post", HTU), Err(ProofError::WrongMethod));
        for htu in [
            &HTU[..HTU.len() - 1],
            &HTU.to_uppercase(),
            &format!("{HTU}/"),
            &HTU.replace("https", "http"),
            "",
        ] {
            assert_eq!(with("POST", htu), Err(ProofError::WrongUrl), "{htu}");
        }
        for htu in [format!("{HTU}?a=1"), format!("{HTU}#a")] {
            assert!(
                create(
                    &key(),
                    &ProofClaims {
                        htu: &htu,
                        ..claims()
                    }
                )
                .is_err()
            );
            let proof = signed(&key(), |_, c| c["htu"] = json!(htu));
            // RFC 9449 §4.3: both sides are compared without query and fragment.
            assert!(check(&proof, &by_iat(NOW)).is_ok(), "{htu}");
        }
        for htu in [
            HTU.replace("broker", "BROKER"),
            HTU.replace(".example/", ".example:443/"),
        ] {
            let proof = signed(&key(), |_, c| c["htu"] = json!(htu));
            assert!(check(&proof, &by_iat(NOW)).is_ok(), "{htu}");
        }
    }

    #[test]
    fn header_members_are_exact() {
        let key = key();
        assert!(check(&signed(&key, |_, _| {}), &by_iat(NOW)).is_ok());
        for (name, value) in [
            ("typ", json!("JWT")),
            ("typ", json!("DPoP+jwt")),
            ("typ", json!("application/dpop+jwt")),
            ("typ", Value::Null),
            ("alg", json!("none")),
            ("alg", json!("es256")),
            ("alg", json!("ES384")),
            ("alg", json!("HS256")),
            ("kid", json!("k")),
            ("crit", json!(["jwk"])),
            ("jku", json!("https://evil.example")),
            ("x5c", json!([])),
            ("b64", json!(false)),
            ("other", json!(1)),
            ("jwk", Value::Null),
            ("jwk", json!({})),
            (
                "jwk",
                SigningKey::generate().expect("key").0.public().to_jwk(),
            ),
        ] {
            let proof = signed(&key, |h, _| h[name] = value.clone());
            assert!(check(&proof, &by_iat(NOW)).is_err(), "{name} {value}");
        }
        for name in ["typ", "alg", "jwk"] {
            let proof = signed(&key, |h, _| drop(h.as_object_mut().map(|h| h.remove(name))));
            assert!(check(&proof, &by_iat(NOW)).is_err(), "without {name}");
        }
        for member in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
            let proof = signed(&key, |h, _| h["jwk"][member] = json!("AA"));
            assert_eq!(
                check(&proof, &by_iat(NOW)).map(drop),
                Err(ProofError::Key(KeyError::Private)),
                "{member}"
            );
        }
    }

    #[test]
    fn claims_are_typed_and_known() {
        let key = key();
        for (name, value) in [
            ("jti", json!("")),
            ("jti", json!("a b")),
            ("jti", json!("a".repeat(129))),
            ("jti", json!(1)),
            ("htm", json!(["POST"])),
            ("htu", Value::Null),
            ("iat", json!(NOW.secs().to_string())),
            ("iat", json!(-0.5)),
            ("iat", json!(1e300)),
            ("iat", json!(-1)),
            ("iat", Value::Null),
            ("nonce", json!("")),
            ("nonce", json!(7)),
            ("ath", json!("AA")),
            ("adg", json!(true)),
            ("evh", Value::Null),
            ("aud", json!("x")),
        ] {
            let proof = signed(&key, |_, c| c[name] = value.clone());
            let error = check(&proof, &by_iat(NOW)).err();
            assert!(
                matches!(error, Some(ProofError::Claim(_) | ProofError::UnknownClaim)),
                "{name} {value} {error:?}"
            );
        }
        // RFC 7519 §2: a date may have a fraction; it is rounded down.
        let proof = signed(&key, |_, c| c["iat"] = json!(1_800_000_000.75));
        let checked = check(&proof, &by_iat(NOW)).expect("a date with a fraction");
        assert_eq!(checked.iat(), NOW);
        for name in ["jti", "htm", "htu", "iat"] {
            let proof = signed(&key, |_, c| drop(c.as_object_mut().map(|c| c.remove(name))));
            assert!(
                matches!(check(&proof, &by_iat(NOW)), Err(ProofError::Claim(_))),
                "without {name}"
            );
        }
    }
}
