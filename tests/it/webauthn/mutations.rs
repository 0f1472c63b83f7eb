//! WebAuthn mutations: each changed part of a ceremony is rejected with its own error.

use ciborium::cbor;
use ciborium::value::Value as Cbor;
use dipylon::webauthn::{self, WebauthnError};
use serde_json::{Value, json};

use super::{CHALLENGE, OTHER, USER, check, enrolled, example};
use crate::support::software_authenticator::{KeyKind, PasskeyBehaviour, SoftwareAuthenticator};

/// Each deviation, at registration and at assertion, and the check that detects it.
fn mutations() -> Vec<(&'static str, PasskeyBehaviour, WebauthnError)> {
    let good = PasskeyBehaviour::default;
    let origin = |origin: &str| PasskeyBehaviour {
        origin: Some(origin.to_owned()),
        ..good()
    };
    let crossed = |value: Value| PasskeyBehaviour {
        cross_origin: Some(value),
        ..good()
    };
    vec![
        (
            "type",
            PasskeyBehaviour {
                kind: Some("webauthn.other"),
                ..good()
            },
            WebauthnError::Type,
        ),
        (
            "payment",
            PasskeyBehaviour {
                kind: Some("payment.get"),
                ..good()
            },
            WebauthnError::Type,
        ),
        (
            "suffix",
            origin("https://evil-example.org"),
            WebauthnError::Origin,
        ),
        (
            "subdomain",
            origin("https://a.example.org"),
            WebauthnError::Origin,
        ),
        (
            "scheme",
            origin("http://example.org"),
            WebauthnError::Origin,
        ),
        (
            "port",
            origin("https://example.org:443"),
            WebauthnError::Origin,
        ),
        (
            "slash",
            origin("https://example.org/"),
            WebauthnError::Origin,
        ),
        ("case", origin("https://EXAMPLE.org"), WebauthnError::Origin),
        ("null", origin("null"), WebauthnError::Origin),
        ("frame", crossed(json!(true)), WebauthnError::CrossOrigin),
        (
            "frame as text",
            crossed(json!("false")),
            WebauthnError::ClientData("crossOrigin must be a boolean"),
        ),
        (
            "frame as null",
            crossed(Value::Null),
            WebauthnError::ClientData("crossOrigin must be a boolean"),
        ),
        (
            "top origin",
            PasskeyBehaviour {
                top_origin: Some("https://example.org".to_owned()),
                ..good()
            },
            WebauthnError::CrossOrigin,
        ),
        (
            "rp id",
            PasskeyBehaviour {
                rp_id: Some("example.com".to_owned()),
                ..good()
            },
            WebauthnError::RelyingParty,
        ),
        (
            "rp id above",
            PasskeyBehaviour {
                rp_id: Some("org".to_owned()),
                ..good()
            },
            WebauthnError::RelyingParty,
        ),
        (
            "user not present",
            PasskeyBehaviour {
                present: false,
                ..good()
            },
            WebauthnError::NotPresent,
        ),
        (
            "not verified",
            PasskeyBehaviour {
                verified: false,
                ..good()
            },
            WebauthnError::NotVerified,
        ),
        (
            "backed up, not eligible",
            PasskeyBehaviour {
                backup_eligible: false,
                ..good()
            },
            WebauthnError::BackupState,
        ),
        (
            "extensions no map",
            PasskeyBehaviour {
                extensions: Some(Cbor::Integer(1.into())),
                ..good()
            },
            WebauthnError::AuthenticatorData("extensions are not a map from texts, each once"),
        ),
        (
            "an extension twice",
            PasskeyBehaviour {
                extensions: Some(Cbor::Map(vec![
                    ("a".into(), true.into()),
                    ("a".into(), false.into()),
                ])),
                ..good()
            },
            WebauthnError::AuthenticatorData("extensions are not a map from texts, each once"),
        ),
    ]
}

#[test]
fn webauthn_mutations() {
    let rp = example();
    for kind in [KeyKind::Es256, KeyKind::EdDsa] {
        let (passkey, credential) = enrolled(kind);
        for (name, behaviour, expected) in mutations() {
            let (_, made) = SoftwareAuthenticator::create_as(
                kind, &rp.id, &rp.origin, &CHALLENGE, &USER, &behaviour,
            );
            assert_eq!(
                webauthn::verify_registration(&rp, &CHALLENGE, &made),
                Err(expected),
                "registered: {name}"
            );
            let assertion = passkey.get_as(&CHALLENGE, &rp.origin, &behaviour);
            assert_eq!(check(&credential, &assertion), Err(expected), "{name}");
        }
        let unasked = passkey.get(&OTHER, &rp.origin);
        assert_eq!(check(&credential, &unasked), Err(WebauthnError::Challenge));
        let device_bound = PasskeyBehaviour {
            backup_eligible: false,
            backed_up: false,
            ..PasskeyBehaviour::default()
        };
        let device_bound = passkey.get_as(&CHALLENGE, &rp.origin, &device_bound);
        assert_eq!(
            check(&credential, &device_bound),
            Err(WebauthnError::BackupEligibility)
        );
        let again = PasskeyBehaviour {
            attested_again: true,
            ..PasskeyBehaviour::default()
        };
        let again = passkey.get_as(&CHALLENGE, &rp.origin, &again);
        assert_eq!(
            check(&credential, &again),
            Err(WebauthnError::AuthenticatorData(
                "an assertion with a credential"
            ))
        );
        let (other, _) = enrolled(kind);
        let of_another = other.get(&CHALLENGE, &rp.origin);
        assert_eq!(
            check(&credential, &of_another),
            Err(WebauthnError::Signature)
        );
        let extended = PasskeyBehaviour {
            extensions: Some(cbor!({ "credProps" => true }).expect("map")),
            cross_origin: None,
            ..PasskeyBehaviour::default()
        };
        let extended = passkey.get_as(&CHALLENGE, &rp.origin, &extended);
        assert_eq!(check(&credential, &extended), Ok(()));
    }
}
