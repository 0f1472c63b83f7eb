//! A second opinion on passkeys: another library, in another language, must say yes and no to the same registrations and
//! assertions; where it says yes and we say no, the reason is one of those listed here.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::value::Value as Cbor;
use dipylon::webauthn::{self, Assertion, Registration, RelyingParty, WebauthnError};
use serde_json::{Value, json};

use crate::passkey::{Kind, Manners, SoftPasskey, attestation_object, encoded};
use crate::webauthn::{ceremonies, example};

/// The other library as a process of its own.
struct Peer {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it; `None`, loudly, where it is not installed and nobody requires it.
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
            let required = std::env::var("DIPYLON_REQUIRE").unwrap_or_default();
            assert!(
                !required.split(',').any(|what| what == "python"),
                "{} has no fido2, and it is required here",
                python.display()
            );
            // Not through the macros, whose output a passing test keeps to itself.
            writeln!(
                std::io::stderr(),
                "SKIPPED: passkeys are not compared with a second library: {} has no fido2",
                python.display()
            )
            .expect("stderr");
            return None;
        }
        let mut child = Command::new(&python)
            .arg(root.join("tests/it/second_opinion.py"))
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

impl Drop for Peer {
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

/// A registration or an assertion, to be judged by both.
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

/// Why we may say no where the other library says yes. Every other difference is a fault of one of the two.
fn on_purpose(no: WebauthnError) -> Option<&'static str> {
    match no {
        WebauthnError::CrossOrigin => Some("frames: it does not look"),
        WebauthnError::BackupState | WebauthnError::BackupEligibility => {
            Some("backup flags: it does not look")
        }
        WebauthnError::Algorithm => Some("algorithms: it has more"),
        WebauthnError::Key(_) => Some("keys: it looks when they are first used"),
        WebauthnError::ClientData(_) => Some("client data: it takes the last of two members"),
        WebauthnError::AttestationObject(_) => Some("attestation objects: it takes more members"),
        WebauthnError::AuthenticatorData("an assertion with a credential") => {
            Some("credential data in an assertion: it does not mind")
        }
        WebauthnError::AuthenticatorData("extensions are not a map from texts, each once") => {
            Some("extensions: it takes whatever is CBOR")
        }
        WebauthnError::Length("credential ID") => Some("credential IDs: it takes all lengths"),
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

/// How two opinions came out.
#[derive(Default)]
struct Tally {
    yes: usize,
    no: usize,
    stricter: std::collections::BTreeMap<&'static str, usize>,
}

impl Tally {
    fn judge(&mut self, peer: &mut Peer, rp: &RelyingParty, name: &str, case: &Case) {
        let (ours, asked) = match case {
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
        let theirs = peer.ask(&asked);
        match (ours, theirs["yes"].as_bool().expect("an opinion")) {
            (Ok(()), true) => self.yes += 1,
            (Err(_), false) => self.no += 1,
            (Err(no), true) => {
                let reason = on_purpose(no)
                    .unwrap_or_else(|| panic!("{name}: we say {no}, they say yes: {asked}"));
                *self.stricter.entry(reason).or_default() += 1;
            }
            (Ok(()), false) => panic!("{name}: we say yes, they say {theirs}: {asked}"),
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
fn on_the_ceremonies_of_the_specification() {
    let (Some(mut peer), Some(ceremonies)) = (Peer::start(), ceremonies()) else {
        return;
    };
    let rp = example();
    let mut tally = Tally::default();
    for c in ceremonies {
        let made = Case::Made {
            challenge: c.creation.clone(),
            made: c.registration.clone(),
        };
        tally.judge(&mut peer, &rp, &c.name, &made);
        let Ok(credential) = crate::webauthn::registered_verified(&rp, &c) else {
            continue;
        };
        let signed = Case::Signed {
            credential_data: credential_data(&c.registration),
            credential,
            challenge: c.request,
            assertion: c.assertion,
        };
        tally.judge(&mut peer, &rp, &c.name, &signed);
    }
    eprintln!(
        "fido2 on the ceremonies: {} yes, {} no, we alone say no: {:?}",
        tally.yes, tally.no, tally.stricter
    );
    let stricter: usize = tally.stricter.values().sum();
    assert_eq!((tally.yes, tally.no, stricter), (8, 15, 4));
}

#[test]
fn on_what_it_makes_itself() {
    let Some(mut peer) = Peer::start() else {
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
        let check = |a: &Assertion| webauthn::verify_assertion(&rp, &request, &credential.jwk, false, a);
        assert!(check(&assertion).is_ok(), "{alg} {bits}");
        let last = assertion.signature.len() - 1;
        assertion.signature[last] ^= 1;
        assert_eq!(check(&assertion), Err(WebauthnError::Signature));
    }
}

#[test]
fn on_hundreds_of_good_and_spoiled_ones() {
    let Some(mut peer) = Peer::start() else {
        return;
    };
    let rp = example();
    let mut dice = Dice(0x0123_4567_89ab_cdef);
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let kind = if dice.below(3) == 0 {
            Kind::EdDsa
        } else {
            Kind::Es256
        };
        let challenge = dice.bytes(16 + round % 48);
        let (passkey, made) = SoftPasskey::create_as(
            kind,
            &rp.id,
            &rp.origin,
            &challenge,
            &[1; 16],
            &Manners::default(),
        );
        let credential = webauthn::verify_registration(&rp, &challenge, &made).expect("good");
        let manners = some_manners(&mut dice);
        let (_, mannered) =
            SoftPasskey::create_as(kind, &rp.id, &rp.origin, &challenge, &[1; 16], &manners);
        let name = format!("round {round}: {manners:?}");
        let case = |made| Case::Made {
            challenge: challenge.clone(),
            made,
        };
        tally.judge(&mut peer, &rp, &name, &case(mannered.clone()));
        tally.judge(
            &mut peer,
            &rp,
            &format!("round {round}, spoiled"),
            &case(spoiled_registration(&mut dice, &mannered)),
        );

        let asked = if dice.below(16) == 0 {
            dice.bytes(32)
        } else {
            challenge.clone()
        };
        let case = |assertion| Case::Signed {
            credential_data: credential_data(&made),
            credential: credential.clone(),
            challenge: challenge.clone(),
            assertion,
        };
        let assertion = passkey.get_as(&asked, &rp.origin, &manners);
        tally.judge(&mut peer, &rp, &name, &case(assertion.clone()));
        // A byte changed under the old signature, and bytes changed before the right key signs.
        let mut torn = assertion.clone();
        match dice.below(3) {
            0 => dice.spoil(&mut torn.client_data_json),
            1 => dice.spoil(&mut torn.authenticator_data),
            _ => dice.spoil(&mut torn.signature),
        }
        tally.judge(&mut peer, &rp, &format!("round {round}, torn"), &case(torn));
        let (mut data, mut said) = (assertion.authenticator_data, assertion.client_data_json);
        if dice.below(2) == 0 {
            dice.spoil(&mut data);
        } else {
            dice.spoil(&mut said);
        }
        let signed = passkey.sign(data, said);
        tally.judge(
            &mut peer,
            &rp,
            &format!("round {round}, signed anew"),
            &case(signed),
        );
    }
    eprintln!(
        "fido2 on generated ones: {} yes, {} no, we alone say no: {:?}",
        tally.yes, tally.no, tally.stricter
    );
    assert!(
        tally.yes >= ROUNDS / 2 && tally.no >= ROUNDS,
        "both opinions were asked for"
    );
}

/// Good manners half of the time, and one bad habit otherwise.
fn some_manners(dice: &mut Dice) -> Manners {
    let mut manners = Manners::default();
    match dice.below(24) {
        0 => manners.verified = false,
        1 => manners.present = false,
        2 => manners.backup_eligible = false,
        3 => (manners.backup_eligible, manners.backed_up) = (false, false),
        4 => manners.backed_up = false,
        5 => manners.kind = Some("webauthn.create"),
        6 => manners.kind = Some("webauthn.get"),
        7 => manners.origin = Some("https://evil-example.org".to_owned()),
        8 => manners.origin = Some("https://a.example.org".to_owned()),
        9 => manners.cross_origin = Some(json!(true)),
        10 => manners.top_origin = Some("https://example.com".to_owned()),
        11 => manners.rp_id = Some("example.com".to_owned()),
        12 => manners.extensions = Some(Cbor::Map(vec![("credProps".into(), true.into())])),
        13 => manners.extensions = Some(Cbor::Array(Vec::new())),
        14 => manners.cross_origin = None,
        15 => manners.attested_again = true,
        _ => {}
    }
    manners
}

/// A registration with something in it changed: nothing signs it, so both must read it alike.
fn spoiled_registration(dice: &mut Dice, made: &Registration) -> Registration {
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
    match dice.below(7) {
        0 => dice.spoil(&mut spoiled.client_data_json),
        1 => {
            let end = dice.below(data.len());
            spoiled.attestation_object = attestation_object(&data[..end]);
        }
        2 => {
            let longer = [&data[..], &dice.bytes(1)].concat();
            spoiled.attestation_object = attestation_object(&longer);
        }
        3 => {
            let mut data = data;
            data[32] ^= 1 << dice.below(8);
            spoiled.attestation_object = attestation_object(&data);
        }
        4 => {
            members.remove(dice.below(3));
            spoiled.attestation_object = encoded(&Cbor::Map(members));
        }
        5 => spoiled.attestation_object.push(0),
        _ => dice.spoil(&mut spoiled.attestation_object[..40]),
    }
    spoiled
}

/// A seeded generator (xorshift64*): a round that fails is the same round next time, but for its keys.
struct Dice(u64);

impl Dice {
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

    fn spoil(&mut self, bytes: &mut [u8]) {
        let at = self.below(bytes.len());
        bytes[at] ^= 1 << self.below(8);
    }
}

/// Rounds of five questions each.
const ROUNDS: usize = 160;
