//! Forged and malformed tokens against the JWS checker: every one must be refused, and for its own reason.

use ring::hmac;
use serde_json::{Map, Value, json};

use super::jws::{TOKEN_BYTES_MAX, sign, verify};
use super::*;
use crate::model::KeyId;

const RULES: HeaderRules = HeaderRules {
    typ: TypRule::Optional(&["JWT", "JOSE"]),
    kid: KidRule::Required,
    extras: &[],
};

struct Issuer {
    key: SigningKey,
    keys: KeySet,
}

impl Issuer {
    fn new() -> Self {
        let (key, _) = SigningKey::generate().expect("key");
        let keys = KeySet::from_keys([(kid("a"), key.public())]).expect("set");
        Self { key, keys }
    }

    /// A truly signed token with any header text and payload text.
    fn raw(&self, header: &str, payload: &str) -> String {
        let text = format!(
            "{}.{}",
            encode(header.as_bytes()),
            encode(payload.as_bytes())
        );
        let signature = self.key.sign(text.as_bytes()).expect("signature");
        format!("{text}.{}", encode(&signature))
    }

    fn check(&self, token: &str) -> Result<Jws, JoseError> {
        verify(token, &self.keys, &RULES)
    }

    fn header(&self, header: &Value) -> Option<JoseError> {
        self.check(&self.raw(&header.to_string(), "{}")).err()
    }
}

fn kid(text: &str) -> KeyId {
    KeyId::parse(text).expect("kid")
}

#[test]
fn valid_token_is_accepted() {
    let issuer = Issuer::new();
    let header = json!({ "alg": "ES256", "kid": "a", "typ": "JWT" });
    let token = sign(&header, &json!({ "sub": "x", "exp": 1 }), &issuer.key).expect("token");
    let jws = issuer.check(&token).expect("verified");
    assert_eq!(
        (jws.kid(), jws.alg(), jws.typ()),
        (&kid("a"), Alg::Es256, Some("JWT"))
    );
    assert_eq!(
        (jws.claims().string("sub"), jws.claims().seconds("exp")),
        (Ok("x"), Ok(1))
    );
    assert!(
        issuer
            .check(&issuer.raw(r#"{ "alg":"ES256", "kid":"a" }"#, "{}"))
            .is_ok()
    );
}

// INV-18
#[test]
fn header_cannot_choose_the_algorithm() {
    let issuer = Issuer::new();
    for alg in [
        "none", "None", "NONE", "nOnE", "noNE", "", "es256", "Es256", "ES256 ", "ES256K", "ES384",
        "ES512", "RS256", "PS256", "EdDSA", "Ed25519", "HS256", "HS384", "HS512", "A256KW",
    ] {
        assert_eq!(
            issuer.header(&json!({ "alg": alg, "kid": "a" })),
            Some(JoseError::Alg),
            "{alg}"
        );
    }
    for alg in [
        Value::Null,
        json!(true),
        json!(["ES256"]),
        json!({}),
        json!(256),
    ] {
        assert_eq!(
            issuer.header(&json!({ "alg": alg, "kid": "a" })),
            Some(JoseError::Alg),
            "{alg}"
        );
    }
    assert_eq!(issuer.header(&json!({ "kid": "a" })), Some(JoseError::Alg));

    let unsigned = format!(
        "{}.{}.",
        encode(br#"{"alg":"none","kid":"a"}"#),
        encode(b"{}")
    );
    assert_eq!(
        issuer.check(&unsigned).err(),
        Some(JoseError::Compact("no part may be empty"))
    );
    assert_eq!(
        issuer.check(&format!("{unsigned}AA")).err(),
        Some(JoseError::Alg)
    );
}

// INV-18: the public key, in every form an attacker can write it, as the secret of an HMAC.
#[test]
fn hs256_signed_with_public_key_is_rejected() {
    let issuer = Issuer::new();
    let jwk = issuer.key.public().to_jwk();
    let x = decode(jwk["x"].as_str().expect("x")).expect("base64");
    let y = decode(jwk["y"].as_str().expect("y")).expect("base64");
    for secret in [
        jwk.to_string().into_bytes(),
        [&[4][..], &x, &y].concat(),
        x,
        Vec::new(),
    ] {
        let text = format!(
            "{}.{}",
            encode(br#"{"alg":"HS256","kid":"a"}"#),
            encode(b"{}")
        );
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), text.as_bytes());
        assert_eq!(
            issuer
                .check(&format!("{text}.{}", encode(tag.as_ref())))
                .err(),
            Some(JoseError::Alg)
        );
    }
}

// INV-18
#[test]
fn kid_lookup_is_exact() {
    let issuer = Issuer::new();
    for hostile in ["A", "a.", "b", "../a", "a'--", "https://evil.example/a"] {
        let error = issuer.header(&json!({ "alg": "ES256", "kid": hostile }));
        assert_eq!(error, Some(JoseError::UnknownKey), "{hostile}");
    }
    for malformed in [
        json!(""),
        json!("a b"),
        json!("a\u{0}"),
        json!("á"),
        json!("a".repeat(129)),
        Value::Null,
        json!(1),
        json!(["a"]),
    ] {
        assert_eq!(
            issuer.header(&json!({ "alg": "ES256", "kid": malformed })),
            Some(JoseError::Kid),
            "{malformed}"
        );
    }
    assert_eq!(
        issuer.header(&json!({ "alg": "ES256" })),
        Some(JoseError::Kid)
    );

    let other = Issuer::new();
    let token = other.raw(r#"{"alg":"ES256","kid":"a"}"#, "{}");
    assert_eq!(
        issuer.check(&token).err(),
        Some(JoseError::Signature),
        "another issuer's key of the same name"
    );
}

#[test]
fn missing_kid_allowed_for_single_key() {
    let (one, two) = (Issuer::new(), Issuer::new());
    let rules = HeaderRules {
        kid: KidRule::OnlyKey,
        ..RULES
    };
    let token = one.raw(r#"{"alg":"ES256"}"#, "{}");
    assert_eq!(
        verify(&token, &one.keys, &rules).expect("verified").kid(),
        &kid("a")
    );
    let both = KeySet::from_keys([(kid("a"), one.key.public()), (kid("b"), two.key.public())])
        .expect("set");
    assert_eq!(verify(&token, &both, &rules).err(), Some(JoseError::Kid));
    let none = KeySet::from_keys([]).expect("set");
    assert_eq!(verify(&token, &none, &rules).err(), Some(JoseError::Kid));
    let null = one.raw(r#"{"alg":"ES256","kid":null}"#, "{}");
    assert_eq!(verify(&null, &one.keys, &rules).err(), Some(JoseError::Kid));
}

// INV-18
#[test]
fn embedded_keys_and_crit_are_rejected() {
    let issuer = Issuer::new();
    let jwk = issuer.key.public().to_jwk();
    for (name, value) in [
        ("jku", json!("https://evil.example")),
        ("jwk", jwk),
        ("x5u", json!("https://evil.example")),
        ("x5c", json!(["AA"])),
        ("x5t", json!("AA")),
        ("x5t#S256", json!("AA")),
        ("crit", json!([])),
        ("crit", json!(["exp"])),
        ("crit", json!(["b64"])),
        ("b64", json!(true)),
        ("zip", json!("DEF")),
        ("enc", json!("A256GCM")),
        ("cty", json!("JWT")),
    ] {
        let header = json!({ "alg": "ES256", "kid": "a", name: value });
        assert_eq!(issuer.header(&header), Some(JoseError::HeaderMember(name)));
    }
    for name in ["iss", "Alg", "KID", "", "x"] {
        let header = json!({ "alg": "ES256", "kid": "a", name: 1 });
        assert_eq!(
            issuer.header(&header),
            Some(JoseError::HeaderMember("unknown")),
            "{name}"
        );
    }
    let lax = HeaderRules {
        extras: &["crit", "jku"],
        ..RULES
    };
    let with = |name: &str| {
        verify(
            &issuer.raw(
                &json!({ "alg": "ES256", "kid": "a", name: [] }).to_string(),
                "{}",
            ),
            &issuer.keys,
            &lax,
        )
    };
    assert!(with("jku").is_ok());
    assert_eq!(
        with("crit").err(),
        Some(JoseError::HeaderMember("crit")),
        "no rules lift it"
    );
}

#[test]
fn typ_is_exact() {
    let issuer = Issuer::new();
    for typ in [
        json!("jwt"),
        json!("at+jwt"),
        json!("JWT "),
        json!(""),
        Value::Null,
        json!(["JWT"]),
        json!(1),
    ] {
        assert_eq!(
            issuer.header(&json!({ "alg": "ES256", "kid": "a", "typ": typ })),
            Some(JoseError::Typ),
            "{typ}"
        );
    }
    let required = HeaderRules {
        typ: TypRule::Required(&["JWT"]),
        ..RULES
    };
    let token = issuer.raw(r#"{"alg":"ES256","kid":"a"}"#, "{}");
    assert_eq!(
        verify(&token, &issuer.keys, &required).err(),
        Some(JoseError::Typ)
    );
}

// INV-18
#[test]
fn duplicate_members_are_rejected() {
    let issuer = Issuer::new();
    for header in [
        r#"{"alg":"ES256","alg":"ES256","kid":"a"}"#,
        r#"{"alg":"none","alg":"ES256","kid":"a"}"#,
        r#"{"alg":"ES256","kid":"a","\u006bid":"a"}"#,
        r#"["alg"]"#,
        r#""ES256""#,
        r#"{"alg":"ES256","kid":"a"}x"#,
        "\u{feff}{\"alg\":\"ES256\",\"kid\":\"a\"}",
        "{'alg':'ES256','kid':'a'}",
        "null",
    ] {
        assert_eq!(
            issuer.check(&issuer.raw(header, "{}")).err(),
            Some(JoseError::HeaderJson),
            "{header}"
        );
    }
    let deep = format!(
        "{}{}",
        "{\"a\":".repeat(200),
        "1".to_owned() + &"}".repeat(200)
    );
    for payload in [
        r#"{"exp":1,"exp":2}"#,
        r#"{"a":{"b":1,"b":2}}"#,
        r#"{"exp":1e400}"#,
        r#"{"sub":"\ud800"}"#,
        "[]",
        "1",
        "null",
        "{} {}",
        "foo",
        &deep,
    ] {
        let token = issuer.raw(r#"{"alg":"ES256","kid":"a"}"#, payload);
        assert_eq!(
            issuer.check(&token).err(),
            Some(JoseError::PayloadJson),
            "{payload}"
        );
    }
}

#[test]
fn only_three_parts_of_base64url_are_a_token() {
    let issuer = Issuer::new();
    let token = issuer.raw(r#"{"alg":"ES256","kid":"a"}"#, r#"{"sub":"x"}"#);
    let parts: Vec<&str> = token.split('.').collect();
    let [h, p, s] = parts[..] else {
        panic!("three parts")
    };
    let bad = [
        String::new(),
        ".".into(),
        "..".into(),
        h.to_owned(),
        format!("{h}.{p}"),
        format!("{h}.{p}."),
        format!("{h}..{s}"),
        format!(".{p}.{s}"),
        format!("{token}."),
        format!("{token}.{s}"),
        format!("{h}.{p}.{s}.{s}.{s}"),
        format!("{h}.{p}.{s}=="),
        format!("{h}.{p}.{s}\n"),
        format!(" {token}"),
        format!("{h}.{p} .{s}"),
        format!("{h}.{p}.{}", s.replace(['-', '_'], "+")) + "+",
        format!("{h}.{p}.{}", &s[..s.len() - 1]),
        format!("{{\"payload\":\"{p}\",\"protected\":\"{h}\",\"signature\":\"{s}\"}}"),
        format!("{h}.{p}.{s}\u{0}"),
        ".".repeat(TOKEN_BYTES_MAX),
    ];
    for text in bad {
        assert!(
            matches!(issuer.check(&text), Err(JoseError::Compact(_))),
            "{text}"
        );
    }
    for flood in [
        ".".repeat(1 << 20),
        "A".repeat(1 << 20),
        format!("{h}.{}.{s}", "A".repeat(TOKEN_BYTES_MAX)),
    ] {
        assert_eq!(issuer.check(&flood).err(), Some(JoseError::TooLong));
    }
    assert!(issuer.check(&token).is_ok());
}

/// CVE-2026-27840: no prefix, no suffix and no change of a single bit leaves a token valid.
#[test]
fn only_one_base64url_encoding() {
    let issuer = Issuer::new();
    let token = issuer.raw(r#"{"alg":"ES256","kid":"a"}"#, r#"{"a":1}"#);
    for at in 0..token.len() {
        assert!(issuer.check(&token[..at]).is_err(), "prefix of {at}");
        assert!(
            issuer.check(&token[at..]).is_err() || at == 0,
            "suffix from {at}"
        );
        for bit in 0..8 {
            let mut bytes = token.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(issuer.check(&text).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}

#[test]
fn signature_length_and_zeros_are_rejected() {
    let issuer = Issuer::new();
    let token = issuer.raw(r#"{"alg":"ES256","kid":"a"}"#, "{}");
    let (signed, signature) = token.rsplit_once('.').expect("signature");
    let signature = decode(signature).expect("base64");
    let mut longer = signature.clone();
    longer.push(0);
    for bad in [
        vec![0; 64],
        vec![0xff; 64],
        signature[..63].to_vec(),
        longer,
        [&signature[32..], &signature[..32]].concat(),
    ] {
        assert_eq!(
            issuer.check(&format!("{signed}.{}", encode(&bad))).err(),
            Some(JoseError::Signature)
        );
    }
}

#[test]
fn key_verifies_only_its_algorithm() {
    let issuer = Issuer::new();
    let key = issuer.keys.get(&kid("a")).expect("key");
    let signature = issuer.key.sign(b"message").expect("signature");
    for alg in [
        Alg::Es256,
        Alg::Es384,
        Alg::Rs256,
        Alg::Ps256,
        Alg::EdDsa,
        Alg::Ed25519,
    ] {
        assert_eq!(
            key.verify(alg, b"message", &signature),
            alg == Alg::Es256,
            "{alg:?}"
        );
    }
}

#[test]
fn errors_contain_no_token_text() {
    let issuer = Issuer::new();
    for header in [
        json!({ "alg": "canary", "kid": "a" }),
        json!({ "alg": "ES256", "kid": "canary" }),
        json!({ "canary": "canary" }),
    ] {
        let error = issuer.header(&header).expect("refused");
        assert!(
            !format!("{error} {error:?}").contains("canary"),
            "{error:?}"
        );
    }
    let jws = issuer
        .check(&issuer.raw(r#"{"alg":"ES256","kid":"a"}"#, r#"{"sub":"canary"}"#))
        .expect("verified");
    assert!(!format!("{jws:?}").contains("canary"));
}

#[test]
fn signing_says_es256_and_stays_within_bounds() {
    let issuer = Issuer::new();
    let with = |header: Value, claims: Value| sign(&header, &claims, &issuer.key).err();
    assert_eq!(
        with(json!({ "alg": "none" }), json!({})),
        Some(JoseError::Alg)
    );
    assert_eq!(with(json!({}), json!({})), Some(JoseError::Alg));
    assert_eq!(
        with(json!({ "alg": "ES256" }), json!({ "a": 1.5 })),
        Some(JoseError::Unsignable)
    );
    assert_eq!(
        with(
            json!({ "alg": "ES256" }),
            json!({ "a": "a".repeat(TOKEN_BYTES_MAX) })
        ),
        Some(JoseError::TooLong)
    );
    assert_eq!(
        with(json!({ "alg": "ES256" }), Value::Object(Map::new())),
        None
    );
}
