//! Cross-check of WebAuthn against python-fido2: both must accept and reject the same registrations and assertions; where
//! only we reject, the reason is listed here.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::value::Value as Cbor;
use dipylon::webauthn::{self, Assertion, Registration, RelyingParty, WebauthnError};
use serde_json::{Value, json};

use crate::support::requirement::skip_without;
use crate::support::software_authenticator::{
    KeyKind, PasskeyBehaviour, SoftwareAuthenticator, attestation_object, encoded,
};
use crate::webauthn::{ceremonies, example};

/// python-fido2 in a process of its own.
struct Fido2Process {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Fido2Process {
    /// Starts it; prints and returns `None` where it is not installed and not required.
    fn start() -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = root.join("target/venv/bin/python");
        let python = if installed.exists() {
            installed
        } else {
            PathBuf::from("python3")
        };
        let has = Command::new(&python)
            .args(["-c", "import fido2.server"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !has {
            skip_without("python", format_args!("{} has no fido2", python.display()));
            return None;
        }
        let mut child = Command::new(&python)
            .arg(root.join("tests/it/fido2_crosscheck.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Some(Self { child, answers })
    }

    fn ask(&mut self, case: &Value) -> Value {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{case}").expect("asked");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("answered");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?} to {case}"))
    }
}

impl Drop for Fido2Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _status = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn bytes(value: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD
        .decode(value.as_str().expect("text"))
        .expect("base64url")
}

/// A registration or an assertion for both to check.
#[expect(clippy::large_enum_variant, reason = "there is one of them at a time")]
enum Case {
    Made {
        challenge: Vec<u8>,
        made: Registration,
    },
    Signed {
        /// Attested credential data, from the registration.
        credential_data: Vec<u8>,
        credential: webauthn::NewCredential,
        challenge: Vec<u8>,
        assertion: Assertion,
    },
}

/// Why we reject what python-fido2 accepts. Every other difference is a bug in one of the two.
fn known_difference(error: WebauthnError) -> Option<&'static str> {
    match error {
        WebauthnError::CrossOrigin => Some("frames: it does not check"),
        WebauthnError::BackupState | WebauthnError::BackupEligibility => {
            Some("backup flags: it does not check")
        }
        WebauthnError::Algorithm => Some("algorithms: it supports more"),
        WebauthnError::Key(_) => Some("keys: it checks them at first use"),
        WebauthnError::ClientData(_) => Some("client data: it accepts duplicate members"),
        WebauthnError::AttestationObject(_) => Some("attestation objects: it accepts more members"),
        WebauthnError::AuthenticatorData("an assertion with a credential") => {
            Some("credential data in an assertion: it accepts it")
        }
        WebauthnError::AuthenticatorData("extensions are not a map from texts, each once") => {
            Some("extensions: it accepts any CBOR")
        }
        WebauthnError::Length("credential ID") => Some("credential IDs: it accepts all lengths"),
        WebauthnError::Length(_)
        | WebauthnError::Type
        | WebauthnError::Challenge
        | WebauthnError::Origin
        | WebauthnError::AuthenticatorData(_)
        | WebauthnError::RelyingParty
        | WebauthnError::NotPresent
        | WebauthnError::NotVerified
        | WebauthnError::Signature
        | WebauthnError::Record => None,
    }
}

/// Outcomes of the comparison.
#[derive(Default)]
struct Tally {
    accepted: usize,
    rejected: usize,
    stricter: std::collections::BTreeMap<&'static str, usize>,
}

impl Tally {
    fn compare(&mut self, peer: &mut Fido2Process, rp: &RelyingParty, name: &str, case: &Case) {
        let (ours, query) = match case {
            Case::Made { challenge, made } => (
                webauthn::verify_registration(rp, challenge, made).map(|_| ()),
                json!({
                    "ask": "register", "rp": rp.id, "origin": rp.origin, "creation": text(challenge),
                    "made_client_data": text(&made.client_data_json),
                    "attestation_object": text(&made.attestation_object),
                }),
            ),
            Case::Signed {
                credential_data,
                credential,
                challenge,
                assertion,
            } => (
                webauthn::verify_assertion(
                    rp,
                    challenge,
                    &credential.jwk,
                    credential.backup_eligible,
                    assertion,
                )
                .map(|_| ()),
                json!({
                    "ask": "check", "rp": rp.id, "origin": rp.origin, "request": text(challenge),
                    "credential_data": text(credential_data),
                    "client_data": text(&assertion.client_data_json),
                    "authenticator_data": text(&assertion.authenticator_data),
                    "signature": text(&assertion.signature),
                }),
            ),
        };
        let theirs = peer.ask(&query);
        match (ours, theirs["yes"].as_bool().expect("a verdict")) {
            (Ok(()), true) => self.accepted += 1,
            (Err(_), false) => self.rejected += 1,
            (Err(error), true) => {
                let reason = known_difference(error)
                    .unwrap_or_else(|| panic!("{name}: we reject ({error}), they accept: {query}"));
                *self.stricter.entry(reason).or_default() += 1;
            }
            (Ok(()), false) => panic!("{name}: we accept, they reject ({theirs}): {query}"),
        }
    }
}

/// The attested credential data of a registration: behind RP ID digest, flags and counter, up to the extensions.
fn credential_data(made: &Registration) -> Vec<u8> {
    let object: Cbor = ciborium::from_reader(&made.attestation_object[..]).expect("CBOR");
    let members = object.as_map().expect("map");
    let data = members
        .iter()
        .find(|(name, _)| name.as_text() == Some("authData"));
    let data = data.and_then(|(_, d)| d.as_bytes()).expect("authData");
    data[37..].to_vec()
}

#[test]
fn matches_fido2_on_spec_examples() {
    let (Some(mut peer), Some(ceremonies)) = (Fido2Process::start(), ceremonies()) else {
        return;
    };
    let rp = example();
    let mut tally = Tally::default();
    for c in ceremonies {
        let made = Case::Made {
            challenge: c.creation.clone(),
            made: c.registration.clone(),
        };
        tally.compare(&mut peer, &rp, &c.name, &made);
        let Ok(credential) = crate::webauthn::registered_verified(&rp, &c) else {
            continue;
        };
        let signed = Case::Signed {
            credential_data: credential_data(&c.registration),
            credential,
            challenge: c.request,
            assertion: c.assertion,
        };
        tally.compare(&mut peer, &rp, &c.name, &signed);
    }
    eprintln!(
        "fido2 on the ceremonies: {} accepted, {} rejected, rejected by us only: {:?}",
        tally.accepted, tally.rejected, tally.stricter
    );
    let stricter: usize = tally.stricter.values().sum();
    assert_eq!((tally.accepted, tally.rejected, stricter), (8, 15, 4));
}

#[test]
fn matches_fido2_on_its_own_output() {
    let Some(mut peer) = Fido2Process::start() else {
        return;
    };
    let rp = RelyingParty {
        id: "localhost".to_owned(),
        origin: "http://localhost:8080".to_owned(),
    };
    let (creation, request) = ([1; 32], [2; 32]);
    let mut make = |alg: &str, bits: u32| {
        peer.ask(&json!({
            "ask": "make", "alg": alg, "bits": bits, "rp": rp.id, "origin": rp.origin,
            "creation": text(&creation), "request": text(&request),
        }))
    };
    for (alg, bits, accepted) in [
        ("ES256", 0, true),
        ("EdDSA", 0, true),
        ("RS256", 2048, true),
        ("RS256", 4096, true),
        ("RS256", 1024, false),
    ] {
        let answer = make(alg, bits);
        let made = Registration {
            client_data_json: bytes(&answer["made_client_data"]),
            attestation_object: bytes(&answer["attestation_object"]),
        };
        let registered = webauthn::verify_registration(&rp, &creation, &made);
        if !accepted {
            assert!(
                matches!(registered, Err(WebauthnError::Key(_))),
                "{alg} {bits}"
            );
            continue;
        }
        let credential = registered.unwrap_or_else(|e| panic!("{alg} {bits}: {e}"));
        let mut assertion = Assertion {
            credential: bytes(&answer["credential"]),
            authenticator_data: bytes(&answer["authenticator_data"]),
            client_data_json: bytes(&answer["client_data"]),
            signature: bytes(&answer["signature"]),
            user: None,
        };
        assert_eq!(credential.id, assertion.credential);
        let check =
            |a: &Assertion| webauthn::verify_assertion(&rp, &request, &credential.jwk, false, a);
        assert!(check(&assertion).is_ok(), "{alg} {bits}");
        let last = assertion.signature.len() - 1;
        assertion.signature[last] ^= 1;
        assert_eq!(check(&assertion), Err(WebauthnError::Signature));
    }
}

#[test]
fn matches_fido2_on_generated_and_mutated_cases() {
    let Some(mut peer) = Fido2Process::start() else {
        return;
    };
    let rp = example();
    let mut rng = SeededRng(0x0123_4567_89ab_cdef);
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let kind = if rng.below(3) == 0 {
            KeyKind::EdDsa
        } else {
            KeyKind::Es256
        };
        let challenge = rng.bytes(16 + round % 48);
        let (passkey, made) = SoftwareAuthenticator::create_as(
            kind,
            &rp.id,
            &rp.origin,
            &challenge,
            &[1; 16],
            &PasskeyBehaviour::default(),
        );
        let credential = webauthn::verify_registration(&rp, &challenge, &made).expect("good");
        let behaviour = random_behaviour(&mut rng);
        let (_, mannered) = SoftwareAuthenticator::create_as(
            kind, &rp.id, &rp.origin, &challenge, &[1; 16], &behaviour,
        );
        let name = format!("round {round}: {behaviour:?}");
        let case = |made| Case::Made {
            challenge: challenge.clone(),
            made,
        };
        tally.compare(&mut peer, &rp, &name, &case(mannered.clone()));
        tally.compare(
            &mut peer,
            &rp,
            &format!("round {round}, spoiled"),
            &case(spoiled_registration(&mut rng, &mannered)),
        );

        let signed_challenge = if rng.below(16) == 0 {
            rng.bytes(32)
        } else {
            challenge.clone()
        };
        let case = |assertion| Case::Signed {
            credential_data: credential_data(&made),
            credential: credential.clone(),
            challenge: challenge.clone(),
            assertion,
        };
        let assertion = passkey.get_as(&signed_challenge, &rp.origin, &behaviour);
        tally.compare(&mut peer, &rp, &name, &case(assertion.clone()));
        // A byte changed under the old signature, and bytes changed before signing with the right key.
        let mut torn = assertion.clone();
        match rng.below(3) {
            0 => rng.corrupt(&mut torn.client_data_json),
            1 => rng.corrupt(&mut torn.authenticator_data),
            _ => rng.corrupt(&mut torn.signature),
        }
        tally.compare(&mut peer, &rp, &format!("round {round}, torn"), &case(torn));
        let (mut data, mut client_data) =
            (assertion.authenticator_data, assertion.client_data_json);
        if rng.below(2) == 0 {
            rng.corrupt(&mut data);
        } else {
            rng.corrupt(&mut client_data);
        }
        let signed = passkey.sign(data, client_data);
        tally.compare(
            &mut peer,
            &rp,
            &format!("round {round}, signed anew"),
            &case(signed),
        );
    }
    eprintln!(
        "fido2 on generated cases: {} accepted, {} rejected, rejected by us only: {:?}",
        tally.accepted, tally.rejected, tally.stricter
    );
    assert!(
        tally.accepted >= ROUNDS / 2 && tally.rejected >= ROUNDS,
        "both outcomes occurred"
    );
}

/// Default behaviour half of the time, one deviation otherwise.
fn random_behaviour(rng: &mut SeededRng) -> PasskeyBehaviour {
    let mut behaviour = PasskeyBehaviour::default();
    match rng.below(24) {
        0 => behaviour.verified = false,
        1 => behaviour.present = false,
        2 => behaviour.backup_eligible = false,
        3 => (behaviour.backup_eligible, behaviour.backed_up) = (false, false),
        4 => behaviour.backed_up = false,
        5 => behaviour.kind = Some("webauthn.create"),
        6 => behaviour.kind = Some("webauthn.get"),
        7 => behaviour.origin = Some("https://evil-example.org".to_owned()),
        8 => behaviour.origin = Some("https://a.example.org".to_owned()),
        9 => behaviour.cross_origin = Some(json!(true)),
        10 => behaviour.top_origin = Some("https://example.com".to_owned()),
        11 => behaviour.rp_id = Some("example.com".to_owned()),
        12 => behaviour.extensions = Some(Cbor::Map(vec![("credProps".into(), true.into())])),
        13 => behaviour.extensions = Some(Cbor::Array(Vec::new())),
        14 => behaviour.cross_origin = None,
        15 => behaviour.attested_again = true,
        _ => {}
    }
    behaviour
}

/// A mutated registration: it is not signed, so both libraries must parse it alike.
fn spoiled_registration(rng: &mut SeededRng, made: &Registration) -> Registration {
    let mut spoiled = made.clone();
    let Cbor::Map(mut members) = ciborium::from_reader(&made.attestation_object[..]).expect("CBOR")
    else {
        panic!("no map");
    };
    let data = members
        .iter()
        .find(|(name, _)| name.as_text() == Some("authData"))
        .and_then(|(_, data)| data.as_bytes())
        .expect("authData")
        .clone();
    match rng.below(7) {
        0 => rng.corrupt(&mut spoiled.client_data_json),
        1 => {
            let end = rng.below(data.len());
            spoiled.attestation_object = attestation_object(&data[..end]);
        }
        2 => {
            let longer = [&data[..], &rng.bytes(1)].concat();
            spoiled.attestation_object = attestation_object(&longer);
        }
        3 => {
            let mut data = data;
            data[32] ^= 1 << rng.below(8);
            spoiled.attestation_object = attestation_object(&data);
        }
        4 => {
            members.remove(rng.below(3));
            spoiled.attestation_object = encoded(&Cbor::Map(members));
        }
        5 => spoiled.attestation_object.push(0),
        _ => rng.corrupt(&mut spoiled.attestation_object[..40]),
    }
    spoiled
}

/// A seeded generator (xorshift64*): a failing round repeats, except for its keys.
struct SeededRng(u64);

impl SeededRng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % n
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next().to_be_bytes()[0]).collect()
    }

    fn corrupt(&mut self, bytes: &mut [u8]) {
        let at = self.below(bytes.len());
        bytes[at] ^= 1 << self.below(8);
    }
}

/// Rounds of five cases each.
const ROUNDS: usize = 160;
