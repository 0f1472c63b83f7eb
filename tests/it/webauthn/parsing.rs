//! WebAuthn parsing: client data, attestation objects and stored keys, strictly.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::value::Value as Cbor;
use dipylon::webauthn::{self, Assertion, Registration, RelyingParty, WebauthnError};
use proptest::prelude::*;
use serde_json::json;

use super::{CHALLENGE, USER, check, enrolled, example};
use crate::support::software_authenticator::{
    KeyKind, SoftwareAuthenticator, attestation_object, encoded,
};

/// Members of a CBOR map, in order.
type Members = Vec<(Cbor, Cbor)>;

/// Signed client data that two parsers could read differently.
#[test]
fn client_data_is_strict() {
    let rp = example();
    let (passkey, credential) = enrolled(KeyKind::Es256);
    let data = passkey.get(&CHALLENGE, &rp.origin).authenticator_data;
    let challenge = URL_SAFE_NO_PAD.encode(CHALLENGE);
    let good = format!(
        r#""type":"webauthn.get","challenge":"{challenge}","origin":"https://example.org""#
    );
    let signed = |text: String| passkey.sign(data.clone(), text.into_bytes());
    for tolerated in [
        format!("{{{good}}}"),
        format!(r#"{{{good},"tokenBinding":{{"status":"present","id":"x"}}}}"#),
        format!(r#"{{{good},"new":[1.5,{{"type":"x"}}],"crossOrigin":false}}"#),
        format!(r#" {{ {good} }} "#),
    ] {
        assert_eq!(
            check(&credential, &signed(tolerated.clone())),
            Ok(()),
            "{tolerated}"
        );
    }
    let json = WebauthnError::ClientData("not one JSON text with each member once");
    let texts = WebauthnError::ClientData("type, challenge and origin must be strings");
    for (text, expected) in [
        (
            format!(r#"{{{good},"origin":"https://example.org"}}"#),
            json,
        ),
        (format!(r#"{{{good},"x":{{"a":1,"a":2}}}}"#), json),
        (format!(r#"{{{good}}}{{}}"#), json),
        (format!("{{{good}}}\u{0}"), json),
        (format!("\u{feff}{{{good}}}"), json),
        (
            format!(r#"[{{{good}}}]"#),
            WebauthnError::ClientData("not an object"),
        ),
        (
            format!(r#"{{{}}}"#, good.replace("\"type\"", "\"Type\"")),
            texts,
        ),
        (
            format!(
                r#"{{{}}}"#,
                good.replace("\"https://example.org\"", "[\"https://example.org\"]")
            ),
            texts,
        ),
        (
            format!(
                r#"{{{}}}"#,
                good.replace(&challenge, &format!("{challenge}="))
            ),
            WebauthnError::Challenge,
        ),
        (
            format!(
                r#"{{{},"x":"{}"}}"#,
                good,
                "a".repeat(webauthn::CLIENT_DATA_BYTES_MAX)
            ),
            WebauthnError::Length("client data"),
        ),
        (String::new(), WebauthnError::Length("client data")),
    ] {
        assert_eq!(
            check(&credential, &signed(text.clone())),
            Err(expected),
            "{text:.200}"
        );
    }
}

/// Registrations with malformed bytes.
#[test]
fn registration_parsing_is_strict() {
    let rp = example();
    let (passkey, made) = SoftwareAuthenticator::create(&rp.id, &rp.origin, &CHALLENGE, &USER);
    let object = made.attestation_object.clone();
    let register = |attestation_object: Vec<u8>| {
        let made = Registration {
            attestation_object,
            ..made.clone()
        };
        webauthn::verify_registration(&rp, &CHALLENGE, &made)
    };
    assert!(register(object.clone()).is_ok());

    // The attestation object.
    assert_eq!(
        register([&object[..], &[0]].concat()),
        Err(WebauthnError::AttestationObject("bytes after the end"))
    );
    assert!(register(object[..object.len() - 1].to_vec()).is_err());
    assert_eq!(
        register(Vec::new()),
        Err(WebauthnError::Length("attestation object"))
    );
    assert_eq!(
        register(vec![0xa0; webauthn::ATTESTATION_BYTES_MAX + 1]),
        Err(WebauthnError::Length("attestation object"))
    );
    let Cbor::Map(members) = ciborium::from_reader(&object[..]).expect("CBOR") else {
        panic!("no map");
    };
    let with = |change: &dyn Fn(&mut Members)| {
        let mut members = members.clone();
        change(&mut members);
        register(encoded(&Cbor::Map(members)))
    };
    for (what, spoiled) in [
        ("twice", with(&|m| m.push(m[2].clone()))),
        ("more", with(&|m| m.push(("x".into(), 1.into())))),
        ("a number as name", with(&|m| m.push((1.into(), 1.into())))),
        ("without fmt", with(&|m| drop(m.remove(0)))),
        ("without attStmt", with(&|m| drop(m.remove(1)))),
        ("without authData", with(&|m| drop(m.remove(2)))),
        ("statement no map", with(&|m| m[1].1 = 1.into())),
        ("data no bytes", with(&|m| m[2].1 = "x".into())),
    ] {
        assert!(
            matches!(spoiled, Err(WebauthnError::AttestationObject(_))),
            "{what}: {spoiled:?}"
        );
    }
    let mut deep = Cbor::Null;
    for _ in 0..64 {
        deep = Cbor::Array(vec![deep]);
    }
    assert!(with(&|m| m[1].1 = Cbor::Map(vec![("x".into(), deep.clone())])).is_err());

    // The authenticator data.
    let data = members[2].1.as_bytes().expect("bytes").clone();
    let inside = |data: &[u8]| register(attestation_object(data));
    assert!(inside(&data).is_ok());
    assert_eq!(
        inside(&[&data[..], &[0]].concat()),
        Err(WebauthnError::AuthenticatorData("bytes after the end"))
    );
    for end in 0..data.len() {
        assert!(inside(&data[..end]).is_err(), "cut at {end}");
    }
    let mut bare = data[..37].to_vec();
    bare[32] &= !0x40;
    assert_eq!(
        inside(&bare),
        Err(WebauthnError::AuthenticatorData(
            "a registration without a credential"
        ))
    );
    let mut promised = data.clone();
    promised[32] |= 0x80;
    assert!(
        inside(&promised).is_err(),
        "the extensions flag without extensions"
    );

    // The credential and its key.
    let of = |credential: &[u8], key: &[u8]| {
        let length = u16::try_from(credential.len())
            .expect("short")
            .to_be_bytes();
        inside(&[&data[..53], &length, credential, key].concat())
    };
    let key = encoded(&passkey.cose_key());
    assert!(of(&[1; 16], &key).is_ok() && of(&[1; 1023], &key).is_ok());
    for length in [0, 15, 1024] {
        assert_eq!(
            of(&vec![1; length], &key),
            Err(WebauthnError::Length("credential ID"))
        );
    }
    let Cbor::Map(parameters) = passkey.cose_key() else {
        panic!("no map");
    };
    let keyed = |change: &dyn Fn(&mut Members)| {
        let mut parameters = parameters.clone();
        change(&mut parameters);
        of(&[1; 32], &encoded(&Cbor::Map(parameters)))
    };
    assert!(keyed(&|k| k.reverse()).is_ok());
    for (what, refused) in [
        ("kty twice", keyed(&|k| k.push(k[0].clone()))),
        ("x twice", keyed(&|k| k.push(k[3].clone()))),
        (
            "a private key",
            keyed(&|k| k.push(((-4).into(), Cbor::Bytes(vec![1; 32])))),
        ),
        (
            "a key id",
            keyed(&|k| k.push((2.into(), Cbor::Bytes(vec![1])))),
        ),
        (
            "key operations",
            keyed(&|k| k.push((4.into(), Cbor::Array(vec![2.into()])))),
        ),
        ("without kty", keyed(&|k| drop(k.remove(0)))),
        ("without curve", keyed(&|k| drop(k.remove(2)))),
        ("without y", keyed(&|k| drop(k.remove(4)))),
        ("kty OKP", keyed(&|k| k[0].1 = 1.into())),
        ("P-384", keyed(&|k| k[2].1 = 2.into())),
        ("compressed", keyed(&|k| k[4].1 = true.into())),
        ("short x", keyed(&|k| k[3].1 = Cbor::Bytes(vec![1; 31]))),
        ("long x", keyed(&|k| k[3].1 = Cbor::Bytes(vec![0; 33]))),
        (
            "off the curve",
            keyed(&|k| k[3].1 = Cbor::Bytes(vec![1; 32])),
        ),
    ] {
        assert!(
            matches!(refused, Err(WebauthnError::Key(_))),
            "{what}: {refused:?}"
        );
    }
    for (what, refused) in [
        ("without alg", keyed(&|k| drop(k.remove(1)))),
        ("ES384", keyed(&|k| k[1].1 = (-35).into())),
        ("ES256K", keyed(&|k| k[1].1 = (-47).into())),
        ("HMAC", keyed(&|k| k[1].1 = 5.into())),
        ("a name", keyed(&|k| k[1].1 = "ES256".into())),
    ] {
        assert_eq!(refused, Err(WebauthnError::Algorithm), "{what}");
    }
    // EdDSA with a P-256 key, and the reverse.
    assert!(keyed(&|k| k[1].1 = (-8).into()).is_err());
    assert!(keyed(&|k| k[1].1 = (-257).into()).is_err());
}

/// The stored key must be a canonical public key.
#[test]
fn stored_key_is_validated() {
    let (passkey, credential) = enrolled(KeyKind::Es256);
    let assertion = passkey.get(&CHALLENGE, &example().origin);
    let (_, another) = enrolled(KeyKind::EdDsa);
    let mut more = credential.jwk.clone();
    more["alg"] = json!("ES256");
    for (jwk, expected) in [
        (json!(null), WebauthnError::Record),
        (json!({}), WebauthnError::Record),
        (more, WebauthnError::Record),
        (another.jwk, WebauthnError::Signature),
    ] {
        assert_eq!(
            webauthn::verify_assertion(&example(), &CHALLENGE, &jwk, true, &assertion),
            Err(expected)
        );
    }
    for (spoil, what) in [
        (
            Assertion {
                credential: Vec::new(),
                ..assertion.clone()
            },
            "credential ID",
        ),
        (
            Assertion {
                signature: Vec::new(),
                ..assertion.clone()
            },
            "signature",
        ),
        (
            Assertion {
                user: Some(vec![1; 65]),
                ..assertion.clone()
            },
            "user handle",
        ),
        (
            Assertion {
                authenticator_data: vec![0; webauthn::AUTHENTICATOR_DATA_BYTES_MAX + 1],
                ..assertion
            },
            "authenticator data",
        ),
    ] {
        assert_eq!(check(&credential, &spoil), Err(WebauthnError::Length(what)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// One changed byte in the signed data, the signature or the stored key fails verification.
    #[test]
    fn assertion_bit_flips_fail(part in 0..4_usize, at in any::<prop::sample::Index>(), flip in 1..=255_u8, ed in any::<bool>()) {
        let kind = if ed { KeyKind::EdDsa } else { KeyKind::Es256 };
        let (passkey, mut credential) = enrolled(kind);
        let mut assertion = passkey.get(&CHALLENGE, &example().origin);
        prop_assert_eq!(check(&credential, &assertion), Ok(()));
        let spoil = |bytes: &mut Vec<u8>| { let i = at.index(bytes.len()); bytes[i] ^= flip; };
        match part {
            0 => spoil(&mut assertion.client_data_json),
            1 => spoil(&mut assertion.authenticator_data),
            2 => spoil(&mut assertion.signature),
            _ => {
                let member = if at.index(2) == 0 || ed { "x" } else { "y" };
                let mut bytes = URL_SAFE_NO_PAD.decode(credential.jwk[member].as_str().expect("text")).expect("base64url");
                spoil(&mut bytes);
                credential.jwk[member] = json!(URL_SAFE_NO_PAD.encode(bytes));
            }
        }
        prop_assert!(check(&credential, &assertion).is_err());
    }

    /// Any flags and counter, signed with the right key: only permitted combinations are accepted.
    #[test]
    fn signed_flag_combinations(flags in any::<u8>(), count in any::<u32>()) {
        let (passkey, credential) = enrolled(KeyKind::Es256);
        let good = passkey.get(&CHALLENGE, &example().origin);
        let mut data = good.authenticator_data.clone();
        data[32] = flags;
        data[33..37].copy_from_slice(&count.to_be_bytes());
        let assertion = passkey.sign(data, good.client_data_json);
        let seen = webauthn::verify_assertion(&example(), &CHALLENGE, &credential.jwk, true, &assertion);
        let may = flags & 0b1100_1101 == 0b0000_1101;
        prop_assert_eq!(seen.is_ok(), may, "{:08b}: {:?}", flags, seen);
        if let Ok(seen) = seen {
            prop_assert_eq!((seen.sign_count, seen.backed_up), (count, flags & 0b1_0000 != 0));
        }
    }

    /// Any other challenge, origin or relying party is rejected.
    #[test]
    fn challenge_origin_and_rp_id_are_bound(challenge in prop::collection::vec(any::<u8>(), 0..64), origin in "https?://[a-z.]{1,20}(:[0-9]{1,5})?", id in "[a-z.]{1,20}") {
        let (passkey, credential) = enrolled(KeyKind::Es256);
        let rp = example();
        let assertion = passkey.get(&CHALLENGE, &rp.origin);
        let under = |rp: &RelyingParty, challenge: &[u8]| {
            webauthn::verify_assertion(rp, challenge, &credential.jwk, true, &assertion).map(|_| ())
        };
        prop_assert_eq!(under(&rp, &challenge) == Ok(()), challenge == CHALLENGE);
        let elsewhere = RelyingParty { origin: origin.clone(), ..rp.clone() };
        prop_assert_eq!(under(&elsewhere, &CHALLENGE) == Ok(()), origin == rp.origin);
        let other = RelyingParty { id: id.clone(), ..rp.clone() };
        prop_assert_eq!(under(&other, &CHALLENGE) == Ok(()), id == rp.id);
    }

    /// Random bytes are rejected without a panic.
    #[test]
    fn random_bytes_never_panic(object in prop::collection::vec(any::<u8>(), 0..300), data in prop::collection::vec(any::<u8>(), 0..120), client_data in prop::collection::vec(any::<u8>(), 0..200)) {
        let (passkey, credential) = enrolled(KeyKind::Es256);
        let rp = example();
        let (_, made) = SoftwareAuthenticator::create(&rp.id, &rp.origin, &CHALLENGE, &USER);
        let object = Registration { attestation_object: object, ..made.clone() };
        prop_assert!(webauthn::verify_registration(&rp, &CHALLENGE, &object).is_err());
        let inside = Registration { attestation_object: attestation_object(&data), ..made };
        prop_assert!(webauthn::verify_registration(&rp, &CHALLENGE, &inside).is_err());
        let good = passkey.get(&CHALLENGE, &rp.origin);
        let signed = passkey.sign(data, good.client_data_json);
        prop_assert!(check(&credential, &signed).is_err());
        let signed = passkey.sign(good.authenticator_data, client_data);
        prop_assert!(check(&credential, &signed).is_err());
    }
}
