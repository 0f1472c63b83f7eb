//! Untrusted bytes (INV-12, INV-18): the readers of everything that comes from outside, fed with arbitrary input and with
//! valid input that was changed. None panics, none accepts a changed signed input, what is accepted has one form, and what
//! comes out is bounded by what went in.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use dipylon::policy::{BundleFiles, PolicyBundle};
use dipylon::state::{Trust, TrustedDomain};
use dipylon::verify;
use dipylon::webauthn::{self, RelyingParty};
use dipylon_sdk::jose::dpop::{self, ExpectedProof, Freshness, ProofClaims};
use dipylon_sdk::jose::{AuthenticatorKey, HeaderRules, KeySet, KidRule, SigningKey, TypRule, jws};
use dipylon_sdk::model::*;
use dipylon_sdk::proto::convert::{action_to_wire, seconds_to_wire};
use dipylon_sdk::proto::strict;
use dipylon_sdk::proto::v1;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::{Message, Name};
use serde_json::{Value, json};

use crate::support::software_authenticator::SoftwareAuthenticator;
use crate::support::{START, TestEnvironment, URL, disable, soc};

/// One change of some bytes.
#[derive(Debug, Clone)]
enum Change {
    /// One byte becomes another.
    Replace(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    /// A stretch stands there twice.
    Repeat(Index, Index),
}

impl Change {
    /// The changed bytes; never the same as before.
    fn apply(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        match self {
            Self::Replace(at, flip) => out[at.index(bytes.len())] ^= (*flip).max(1),
            Self::Insert(at, byte) => out.insert(at.index(bytes.len() + 1), *byte),
            Self::Remove(at) => {
                out.remove(at.index(bytes.len()));
            }
            Self::Cut(at) => out.truncate(at.index(bytes.len())),
            Self::Repeat(from, length) => {
                let from = from.index(bytes.len());
                let length = 1 + length.index(bytes.len() - from);
                let stretch = bytes[from..from + length].to_vec();
                out.splice(from..from, stretch);
            }
        }
        out
    }

    /// The changed text, with what is no UTF-8 any more replaced.
    fn apply_to_text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.apply(text.as_bytes())).into_owned()
    }
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, flip)| Change::Replace(at, flip)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        1 => at().prop_map(Change::Remove),
        1 => at().prop_map(Change::Cut),
        1 => (at(), at()).prop_map(|(from, length)| Change::Repeat(from, length)),
    ]
}

/// What the strict reader accepts, prost reads the same, and it has one encoding, not longer than what came in.
fn read_strictly<M: Message + Name + Default + PartialEq + std::fmt::Debug>(
    bytes: &[u8],
) -> Result<(), TestCaseError> {
    match strict::read::<M>(bytes) {
        Ok(message) => {
            prop_assert_eq!(&M::decode(bytes)?, &message);
            let again = message.encode_to_vec();
            prop_assert!(again.len() <= bytes.len(), "longer than what was read");
            prop_assert_eq!(&strict::read::<M>(&again)?, &message);
        }
        Err(error) => prop_assert!(error.to_string().len() <= 512, "{error}"),
    }
    Ok(())
}

fn token_request() -> v1::RequestTokenRequest {
    v1::RequestTokenRequest {
        task_id: TaskId::from_random([7; 16]).to_string(),
        action: Some(action_to_wire(&disable("ann"))),
        ttl: Some(seconds_to_wire(60)),
        reason: "INC-8841".to_owned(),
        idempotency_key: "r-1".to_owned(),
        wait: Some(seconds_to_wire(10)),
        evidence: Some(v1::Evidence {
            kind: Some(v1::evidence::Kind::JwtSvid("a.b.c".to_owned())),
        }),
        executor: String::new(),
        recommendation: String::new(),
    }
}

/// What JSON is accepted has one canonical form, which is read as the same value and is its own canonical form.
fn read_json(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(value) = json::parse(bytes) else {
        return Ok(());
    };
    if let Ok(text) = json::canonical(&value) {
        prop_assert!(text.len() <= 6 * bytes.len(), "bounded");
        let again = json::parse(text.as_bytes()).expect("the canonical form is JSON");
        prop_assert_eq!(&json::canonical(&again).expect("has a form"), &text);
        prop_assert_eq!(again, value);
    }
    Ok(())
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

const RULES: HeaderRules = HeaderRules {
    typ: TypRule::Optional(&["JWT"]),
    kid: KidRule::Required,
    extras: &[],
};

/// A signer with its key set, two tokens of it, and a proof.
struct Signed {
    keys: KeySet,
    tokens: [String; 2],
    proofs: [Secret; 2],
}

static SIGNED: LazyLock<Signed> = LazyLock::new(|| {
    let key = SigningKey::generate().expect("key").0;
    let kid = KeyId::from_thumbprint(key.thumbprint());
    let header = json!({ "alg": "ES256", "kid": kid, "typ": "JWT" });
    let token = |sub: &str| jws::sign(&header, &json!({ "sub": sub }), &key).expect("signed");
    let proof = |jti: &str| {
        let claims = ProofClaims {
            htm: "POST",
            htu: URL,
            iat: START,
            jti,
            nonce: Some("nonce"),
            ath: Some(dpop::ath("token")),
            action_digest: Some(disable("ann").digest()),
            evidence_hash: None,
        };
        dpop::create(&key, &claims).expect("signed")
    };
    Signed {
        tokens: [token("a"), token("b")],
        proofs: [proof("one"), proof("two")],
        keys: KeySet::from_keys([(kid, key.public())]).expect("keys"),
    }
});

fn check_proof(proof: &str) -> bool {
    let expected = ExpectedProof {
        htm: "POST",
        htu: URL,
        freshness: Freshness::Nonce,
    };
    dpop::check(proof, &expected).is_ok()
}

/// The parts of one compact token with some of another's in their places; `None` where nothing differs.
fn splice(of: &str, with: &str, which: u8) -> Option<String> {
    let part = |text: &str, n: usize| text.split('.').nth(n).expect("three parts").to_owned();
    let parts = (0..3).map(|n| part(if which & (1 << n) != 0 { with } else { of }, n));
    let spliced = parts.collect::<Vec<_>>().join(".");
    (spliced != of && spliced != with).then_some(spliced)
}

/// Evidence, and the trust snapshot that accepts it.
struct Evidenced {
    svid: Secret,
    trust: Trust,
}

static EVIDENCED: LazyLock<Evidenced> = LazyLock::new(|| {
    let env = TestEnvironment::new();
    let kid = KeyId::from_thumbprint(env.signer.thumbprint());
    let jwt_svid = KeySet::from_keys([(kid, env.signer.public())]).expect("keys");
    let domain = TrustDomain::parse("soc.example").expect("domain");
    Evidenced {
        svid: env.svid_for(URL, "spiffe://soc.example/agent/triage", START, 300),
        trust: Trust::default().with(domain, TrustedDomain { jwt_svid }),
    }
});

fn attest(svid: String) -> bool {
    let evidence = Evidence::JwtSvid(Secret::new(svid));
    verify::attest(&evidence, &EVIDENCED.trust, URL, START).is_ok()
}

fn read_spiffe_id(text: &str) -> Result<(), TestCaseError> {
    if let Ok(id) = SpiffeId::parse(text) {
        prop_assert_eq!(id.as_str(), text, "a parsed ID prints as the same bytes");
        prop_assert!(text.len() <= 2_048 && text.is_ascii());
        let domain = id.trust_domain();
        prop_assert!(TrustDomain::parse(domain.as_str()).is_ok());
        let prefix = format!("spiffe://{}/", domain.as_str());
        prop_assert!(text.starts_with(&prefix));
    }
    Ok(())
}

/// What a policy bundle is: refused with bounded problems that name their file, or whole, with one canonical form.
fn load_bundle(files: BTreeMap<String, String>) -> Result<(), TestCaseError> {
    let bounded = |error: &dipylon::policy::BundleError| {
        !error.problems().is_empty()
            && error
                .problems()
                .iter()
                .all(|problem| !problem.file.is_empty())
            && error.to_string().len() <= 1 << 20
    };
    let read = match BundleFiles::new(files) {
        Ok(read) => read,
        Err(error) => {
            prop_assert!(bounded(&error), "{error}");
            return Ok(());
        }
    };
    let again = BundleFiles::parse(read.canonical()).expect("the canonical form is read");
    prop_assert_eq!(&again, &read);
    match PolicyBundle::load(&read) {
        Ok(bundle) => prop_assert_eq!(bundle.version(), read.version()),
        Err(error) => prop_assert!(bounded(&error), "{error}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn strict_reader_is_total(noise in any::<Vec<u8>>(), change in change()) {
        let changed = change.apply(&token_request().encode_to_vec());
        for bytes in [&noise, &changed] {
            read_strictly::<v1::RequestTokenRequest>(bytes)?;
            read_strictly::<v1::OpenTaskRequest>(bytes)?;
            read_strictly::<v1::CastVoteRequest>(bytes)?;
            read_strictly::<v1::ApplyPolicyBundleRequest>(bytes)?;
        }
    }

    /// Field numbers that no message has, of each wire type: refused, not dropped.
    #[test]
    fn unknown_fields_are_refused(number in 1_000..500_000_u32, value in any::<u32>()) {
        for wire_type in [0, 1, 2, 5_u32] {
            let mut bytes = token_request().encode_to_vec();
            prost::encoding::encode_varint(u64::from(number << 3 | wire_type), &mut bytes);
            match wire_type {
                0 => prost::encoding::encode_varint(value.into(), &mut bytes),
                1 => bytes.extend(u64::from(value).to_le_bytes()),
                2 => bytes.push(0),
                _ => bytes.extend(value.to_le_bytes()),
            }
            prop_assert!(strict::read::<v1::RequestTokenRequest>(&bytes).is_err());
        }
    }

    #[test]
    fn canonical_json_is_idempotent(noise in any::<Vec<u8>>(), value in json_value(), change in change()) {
        let text = value.to_string().into_bytes();
        read_json(&noise)?;
        read_json(&text)?;
        read_json(&change.apply(&text))?;
    }

    #[test]
    fn changed_jws_is_refused(noise in any::<String>(), change in change(), which in 1..7_u8) {
        let [token, other] = &SIGNED.tokens;
        prop_assert!(jws::verify(token, &SIGNED.keys, &RULES).is_ok());
        let changed = [Some(noise), Some(change.apply_to_text(token)), splice(token, other, which)];
        for text in changed.into_iter().flatten() {
            prop_assert!(jws::verify(&text, &SIGNED.keys, &RULES).is_err(), "{text}");
            prop_assert!(jws::unverified_string(&text, "sub").is_err() || text.len() <= jws::TOKEN_BYTES_MAX);
        }
    }

    #[test]
    fn changed_proof_is_refused(noise in any::<String>(), change in change(), which in 1..7_u8) {
        let [proof, other] = SIGNED.proofs.each_ref().map(Secret::expose_secret);
        prop_assert!(check_proof(proof));
        prop_assert!(!check_proof(&noise));
        prop_assert!(!check_proof(&change.apply_to_text(proof)));
        prop_assert!(!splice(proof, other, which).is_some_and(|text| check_proof(&text)));
    }

    #[test]
    fn changed_evidence_is_refused(noise in any::<String>(), change in change()) {
        let svid = EVIDENCED.svid.expose_secret();
        prop_assert!(attest(svid.to_owned()));
        prop_assert!(!attest(noise));
        prop_assert!(!attest(change.apply_to_text(svid)));
    }

    #[test]
    fn spiffe_ids_print_as_they_were_read(noise in any::<String>(), near in "spiffe://[a-z.:@%A]{0,12}(/[a-zA-Z0-9._%/-]{0,12}){0,3}", change in change()) {
        read_spiffe_id(&noise)?;
        read_spiffe_id(&near)?;
        read_spiffe_id(&change.apply_to_text("spiffe://soc.example/agent/triage"))?;
    }

    /// An attestation is not signed: what is accepted of a changed one is still a whole credential within its bounds.
    #[test]
    fn changed_attestation_is_bounded(change in change()) {
        let rp = RelyingParty { id: "example.org".to_owned(), origin: "https://example.org".to_owned() };
        let (_, mut made) = SoftwareAuthenticator::create(&rp.id, &rp.origin, &[7; 32], b"user");
        made.attestation_object = change.apply(&made.attestation_object);
        if let Ok(credential) = webauthn::verify_registration(&rp, &[7; 32], &made) {
            prop_assert!(webauthn::CREDENTIAL_ID_BYTES.contains(&credential.id.len()));
            prop_assert!(AuthenticatorKey::from_jwk(&credential.jwk).is_ok(), "{}", credential.jwk);
        }
    }
}

proptest! {
    // A bundle is parsed, validated and tested against itself: some milliseconds each.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn bundle_without_a_byte_is_refused_or_whole(file in any::<Index>(), changes in prop::collection::vec(change(), 1..4), noise in any::<String>()) {
        let mut files = soc();
        let path = file.get(&files.keys().cloned().collect::<Vec<_>>()).clone();
        let mut text = files[&path].clone();
        for change in &changes {
            if !text.is_empty() {
                text = change.apply_to_text(&text);
            }
        }
        files.insert(path.clone(), text);
        load_bundle(files.clone())?;
        files.insert(path, noise);
        load_bundle(files)?;
    }
}
