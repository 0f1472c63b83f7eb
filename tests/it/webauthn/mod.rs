//! WebAuthn verification: the specification's test vectors, every single changed byte, and every false claim of an
//! authenticator or browser.

mod mutations;
mod parsing;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::value::Value as Cbor;
use dipylon::webauthn::{
    self, Assertion, NewCredential, Registration, RelyingParty, WebauthnError,
};
use dipylon_sdk::jose::AuthenticatorKey;
use dipylon_sdk::model::Digest;
use serde_json::{Value, json};

use crate::support::software_authenticator::{
    KeyKind, PasskeyBehaviour, SoftwareAuthenticator, encoded,
};
use crate::vectors::vectors;

/// One ceremony of the specification's section "Test Vectors".
pub struct Ceremony {
    pub name: String,
    pub creation: Vec<u8>,
    pub registration: Registration,
    pub request: Vec<u8>,
    pub assertion: Assertion,
}

/// The relying party of the specification's ceremonies.
pub fn example() -> RelyingParty {
    RelyingParty {
        id: "example.org".to_owned(),
        origin: "https://example.org".to_owned(),
    }
}

/// The specification's ceremonies; prints that the test is skipped where they are missing.
pub fn ceremonies() -> Option<Vec<Ceremony>> {
    let file = vectors("webauthn")?.join("webauthn_l3_test_vectors.json");
    let all: Value = serde_json::from_slice(&std::fs::read(file).expect("read")).expect("JSON");
    let all = all.as_array().expect("an array").iter();
    let ceremonies = all
        // The first is the attestation root; attestations are not verified here.
        .filter(|c| c["registration"]["clientDataJSON"].is_string())
        .map(|c| {
            let (made, got) = (&c["registration"], &c["authentication"]);
            Ceremony {
                name: c["name"].as_str().expect("name").to_owned(),
                creation: hex(&made["challenge"]),
                registration: Registration {
                    client_data_json: hex(&made["clientDataJSON"]),
                    attestation_object: hex(&made["attestationObject"]),
                },
                request: hex(&got["challenge"]),
                assertion: Assertion {
                    credential: hex(&made["credential_id"]),
                    authenticator_data: hex(&got["authenticatorData"]),
                    client_data_json: hex(&got["clientDataJSON"]),
                    signature: hex(&got["signature"]),
                    user: None,
                },
            }
        })
        .collect();
    Some(ceremonies)
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().expect("hex");
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("hex"))
        .collect()
}

/// The flags of the authenticator data inside an attestation object of the specification: after the RP ID's digest.
fn flags_made(registration: &Registration) -> u8 {
    let object: Cbor = ciborium::from_reader(&registration.attestation_object[..]).expect("CBOR");
    let data = object
        .as_map()
        .expect("map")
        .iter()
        .find(|(name, _)| name.as_text() == Some("authData"))
        .and_then(|(_, data)| data.as_bytes())
        .expect("authData");
    data[32]
}

#[test]
fn spec_examples() {
    let Some(ceremonies) = ceremonies() else {
        return;
    };
    let rp = example();
    let (mut made, mut asserted, mut signed, mut refused) = (0, 0, 0, Vec::new());
    for c in &ceremonies {
        // Each is accepted, or rejected for a known reason: frames, missing user verification, unsupported algorithms.
        let framed = c.name.contains("crossOrigin") || c.name.contains("topOrigin");
        let foreign = ["ES384", "ES512", "Ed448"]
            .iter()
            .any(|alg| c.name.contains(alg));
        let expected = |flags: u8| match flags & 4 {
            _ if framed => Err(WebauthnError::CrossOrigin),
            0 => Err(WebauthnError::NotVerified),
            _ if foreign => Err(WebauthnError::Algorithm),
            _ => Ok(()),
        };
        let registered = webauthn::verify_registration(&rp, &c.creation, &c.registration);
        if let Ok(credential) = &registered {
            assert_eq!(credential.id, c.assertion.credential, "{}", c.name);
            made += 1;
        }
        let registered = registered.map(|_| ());
        let wanted = expected(flags_made(&c.registration));
        assert_eq!(registered, wanted, "{}", c.name);
        refused.extend(registered.err().map(|e| format!("{}: {e}", c.name)));

        // A user not verified at registration may be verified at assertion: only the key is needed for that.
        let credential = registered_verified(&rp, c);
        if foreign {
            assert_eq!(credential, Err(WebauthnError::Algorithm), "{}", c.name);
            continue;
        }
        let credential = credential.unwrap_or_else(|e| panic!("{}: {e}", c.name));
        // Every signature of a supported algorithm, with or without user verification.
        let key = AuthenticatorKey::from_jwk(&credential.jwk).expect("key");
        let client = Digest::sha256(&c.assertion.client_data_json);
        let message = [&c.assertion.authenticator_data[..], client.as_bytes()].concat();
        assert!(key.verify(&message, &c.assertion.signature), "{}", c.name);
        signed += 1;
        let checked = webauthn::verify_assertion(
            &rp,
            &c.request,
            &credential.jwk,
            credential.backup_eligible,
            &c.assertion,
        )
        .map(|_| ());
        let wanted = expected(c.assertion.authenticator_data[32]);
        assert_eq!(checked, wanted, "{}", c.name);
        match checked {
            Ok(()) => asserted += 1,
            Err(e) => refused.push(format!("{}, assertion: {e}", c.name)),
        }
    }
    eprintln!(
        "webauthn: {} ceremonies, {signed} signatures verified; accepted: {made} registrations, {asserted} assertions; rejected:\n  {}",
        ceremonies.len(),
        refused.join("\n  ")
    );
    assert_eq!(
        (ceremonies.len(), signed, made, asserted),
        (15, 12, 5, 3),
        "the rest is cross-origin, without user verification or of another algorithm"
    );
}

/// The credential of a ceremony, as if its registration had user verification and no frame: flags and client
/// data are not signed without an attestation.
pub fn registered_verified(
    rp: &RelyingParty,
    c: &Ceremony,
) -> Result<NewCredential, WebauthnError> {
    let mut object: Cbor =
        ciborium::from_reader(&c.registration.attestation_object[..]).expect("CBOR");
    for (name, value) in object.as_map_mut().expect("map") {
        if name.as_text() == Some("authData") {
            value.as_bytes_mut().expect("bytes")[32] |= 4;
        }
    }
    let client_data = json!({
        "type": "webauthn.create",
        "challenge": URL_SAFE_NO_PAD.encode(&c.creation),
        "origin": rp.origin,
    });
    let made = Registration {
        client_data_json: client_data.to_string().into_bytes(),
        attestation_object: encoded(&object),
    };
    webauthn::verify_registration(rp, &c.creation, &made)
}

const CHALLENGE: [u8; 32] = [7; 32];

const OTHER: [u8; 32] = [8; 32];

const USER: [u8; 16] = [9; 16];

fn enrolled(kind: KeyKind) -> (SoftwareAuthenticator, NewCredential) {
    let rp = example();
    let (passkey, made) = SoftwareAuthenticator::create_as(
        kind,
        &rp.id,
        &rp.origin,
        &CHALLENGE,
        &USER,
        &PasskeyBehaviour::default(),
    );
    let credential = webauthn::verify_registration(&rp, &CHALLENGE, &made).expect("registered");
    (passkey, credential)
}

fn check(credential: &NewCredential, assertion: &Assertion) -> Result<(), WebauthnError> {
    webauthn::verify_assertion(
        &example(),
        &CHALLENGE,
        &credential.jwk,
        credential.backup_eligible,
        assertion,
    )
    .map(|_| ())
}

#[test]
fn registration_and_assertion() {
    for kind in [KeyKind::Es256, KeyKind::EdDsa] {
        let (passkey, credential) = enrolled(kind);
        assert_eq!(credential.id, passkey.credential());
        assert_eq!(credential.sign_count, 1);
        assert!(credential.backup_eligible && credential.backed_up);
        let assertion = passkey.get(&CHALLENGE, &example().origin);
        let seen =
            webauthn::verify_assertion(&example(), &CHALLENGE, &credential.jwk, true, &assertion)
                .expect("checked");
        assert_eq!((seen.sign_count, seen.backed_up), (2, true));
        let kept = assertion.evidence().expect("evidence");
        let back = Assertion::from_evidence(&kept, assertion.signature.clone()).expect("evidence");
        assert_eq!(check(&credential, &back), Ok(()));
        assert!(Assertion::from_evidence(&format!("{kept} "), Vec::new()).is_err());
        assert!(
            Assertion::from_evidence(&kept.replacen('{', r#"{"x":1,"#, 1), Vec::new()).is_err()
        );
    }
}

/// A registration is not an assertion, nor the reverse.
#[test]
fn registration_is_not_assertion() {
    let rp = example();
    let (passkey, credential) = enrolled(KeyKind::Es256);
    let created = PasskeyBehaviour {
        kind: Some("webauthn.create"),
        ..PasskeyBehaviour::default()
    };
    let assertion = passkey.get_as(&CHALLENGE, &rp.origin, &created);
    assert_eq!(check(&credential, &assertion), Err(WebauthnError::Type));
    let got = PasskeyBehaviour {
        kind: Some("webauthn.get"),
        ..PasskeyBehaviour::default()
    };
    let (_, made) = SoftwareAuthenticator::create_as(
        KeyKind::Es256,
        &rp.id,
        &rp.origin,
        &CHALLENGE,
        &USER,
        &got,
    );
    assert_eq!(
        webauthn::verify_registration(&rp, &CHALLENGE, &made),
        Err(WebauthnError::Type)
    );
}

/// A challenge that is too short is rejected, even with a matching answer.
#[test]
fn short_challenge_is_rejected() {
    let rp = example();
    let (passkey, credential) = enrolled(KeyKind::Es256);
    for challenge in [&[][..], &[1], &[1; 15]] {
        let assertion = passkey.get(challenge, &rp.origin);
        assert_eq!(
            webauthn::verify_assertion(&rp, challenge, &credential.jwk, true, &assertion),
            Err(WebauthnError::Challenge)
        );
    }
}
