//! Access tokens: signing and checking.

use super::*;
use crate::jose::encode;
use crate::model::{AccessRequestId, Action, Param, ProfileName};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const ISS: &str = "https://broker.example";

fn kid() -> KeyId {
    KeyId::parse("key-1").expect("kid")
}

fn claims() -> AccessTokenClaims {
    let action = Action::new(
        ActionName::parse("account.disable").expect("name"),
        Audience::parse("https://idp.example").expect("audience"),
        Target::parse("Account", "ann").expect("target"),
        [("end_sessions".to_owned(), Param::Bool(true))].into(),
    )
    .expect("action");
    let (record, _) = action.on_record(&Default::default(), &mut || [0; 16]);
    AccessTokenClaims {
        iss: ISS.to_owned(),
        sub: SpiffeId::parse("spiffe://example.org/agent").expect("id"),
        aud: record.audience.clone(),
        exp: NOW.secs() + 300,
        iat: NOW.secs(),
        nbf: NOW.secs(),
        jti: TokenId::from_random([1; 16]),
        client_id: AgentId::parse("ci").expect("agent"),
        cnf: Confirmation {
            jkt: Thumbprint(Digest::sha256(b"key")),
        },
        authorization_details: [ActionDetail::from(&record)],
        txn: TaskId::from_random([2; 16]),
        epoch: 1,
        pos: 42,
        uses: Some(1),
        approval: Some(ApprovalClaim {
            access_request: AccessRequestId::from_random([3; 16]),
            profiles: vec![ProfileName::parse("two-security").expect("profile")],
            at: NOW.secs() - 10,
        }),
    }
}

struct Fixture {
    key: SigningKey,
    keys: KeySet,
}

impl Fixture {
    fn new() -> Self {
        let (key, _) = SigningKey::generate().expect("key");
        let keys = KeySet::from_keys([(kid(), key.public())]).expect("set");
        Self { key, keys }
    }

    /// Signs any header and payload.
    fn forge(&self, header: &Value, payload: &str) -> String {
        let text = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(payload.as_bytes())
        );
        let signature = self.key.sign(text.as_bytes()).expect("signature");
        format!("{text}.{}", encode(&signature))
    }

    fn with(&self, change: impl FnOnce(&mut Value)) -> Result<CheckedToken, TokenError> {
        let mut payload = serde_json::to_value(claims()).expect("json");
        change(&mut payload);
        let header = json!({ "alg": "ES256", "kid": kid(), "typ": TYP });
        self.check(&self.forge(&header, &payload.to_string()), NOW)
    }

    fn check(&self, token: &str, now: Timestamp) -> Result<CheckedToken, TokenError> {
        check(
            token,
            &self.keys,
            &ExpectedToken {
                iss: ISS,
                aud: Some(&claims().aud),
                now,
            },
        )
    }
}

#[test]
fn sign_check_roundtrip() {
    let fixture = Fixture::new();
    let token = sign(&claims(), &kid(), &fixture.key).expect("token");
    let checked = fixture.check(token.expose_secret(), NOW).expect("checked");
    assert_eq!((checked.kid(), checked.claims()), (&kid(), &claims()));
    assert_eq!(checked.into_claims().detail(), claims().detail());
    let least = AccessTokenClaims {
        uses: None,
        approval: None,
        ..claims()
    };
    let token = sign(&least, &kid(), &fixture.key).expect("token");
    assert_eq!(
        fixture
            .check(token.expose_secret(), NOW)
            .expect("checked")
            .into_claims(),
        least
    );
    let header = crate::jose::decode(token.expose_secret().split('.').next().expect("header"))
        .expect("base64");
    assert_eq!(header, br#"{"alg":"ES256","kid":"key-1","typ":"at+jwt"}"#);
}

#[test]
fn claims_encoding_is_fixed() {
    let payload = serde_json::to_value(claims()).expect("json");
    let digest = claims().detail().digest.to_string();
    let jkt = claims().cnf.jkt.to_string();
    assert_eq!(
        payload,
        json!({
            "iss": ISS,
            "sub": "spiffe://example.org/agent",
            "aud": "https://idp.example",
            "exp": 1_800_000_300, "iat": 1_800_000_000, "nbf": 1_800_000_000,
            "jti": "tok_AQEBAQEBAQEBAQEBAQEBAQ",
            "client_id": "ci",
            "cnf": { "jkt": jkt },
            "authorization_details": [{
                "type": "urn:dipylon:action:v1",
                "action": "account.disable",
                "target": { "type": "Account", "id": "ann" },
                "parameters": { "end_sessions": true },
                "digest": digest,
            }],
            "txn": "task_AgICAgICAgICAgICAgICAg",
            "epoch": 1, "pos": 42, "uses": 1,
            "approval": {
                "access_request": "areq_AwMDAwMDAwMDAwMDAwMDAw",
                "profiles": ["two-security"],
                "at": 1_799_999_990,
            },
        })
    );
}

#[test]
fn exp_iat_nbf_bounds() {
    let fixture = Fixture::new();
    let token = sign(&claims(), &kid(), &fixture.key).expect("token");
    let at = |ms| {
        fixture
            .check(token.expose_secret(), NOW.plus_millis(ms))
            .map(drop)
    };
    assert_eq!(at(299_999), Ok(()));
    assert_eq!(at(300_000), Err(TokenError::Expired));
    assert_eq!(at(-5_000), Ok(()));
    assert_eq!(at(-5_001), Err(TokenError::NotYet));
    // The broker's tokens have an earlier `nbf`: then `iat` alone is the bound, with the same leeway and no more.
    let early = AccessTokenClaims {
        nbf: NOW.secs() - 30,
        ..claims()
    };
    let early = sign(&early, &kid(), &fixture.key).expect("token");
    let at = |ms| {
        fixture
            .check(early.expose_secret(), NOW.plus_millis(ms))
            .map(drop)
    };
    assert_eq!(at(-5_000), Ok(()));
    assert_eq!(at(-5_001), Err(TokenError::NotYet));
    let later = fixture.with(|c| c["nbf"] = json!(NOW.secs() + 6));
    assert_eq!(later.map(drop), Err(TokenError::NotYet));
    for (exp, ok) in [(3_600, true), (3_601, false), (0, false), (-1, false)] {
        assert_eq!(
            fixture.with(|c| c["exp"] = json!(NOW.secs() + exp)).is_ok(),
            ok,
            "{exp}"
        );
    }
}

#[test]
fn issuer_audience_key_and_signature_errors_differ() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let token = sign(&claims(), &kid(), &fixture.key).expect("token");
    let expect = ExpectedToken {
        iss: ISS,
        aud: None,
        now: NOW,
    };
    let aud = Audience::parse("https://idp.example/").expect("audience");
    let keys = &fixture.keys;
    assert!(check(token.expose_secret(), keys, &expect).is_ok());
    let wrong = |expect: ExpectedToken<'_>| check(token.expose_secret(), keys, &expect).map(drop);
    assert_eq!(
        wrong(ExpectedToken {
            iss: "https://broker.example/",
            ..expect
        }),
        Err(TokenError::WrongIssuer)
    );
    assert_eq!(
        wrong(ExpectedToken {
            aud: Some(&aud),
            ..expect
        }),
        Err(TokenError::WrongAudience)
    );
    assert_eq!(
        other.check(token.expose_secret(), NOW).map(drop),
        Err(TokenError::Signature)
    );
    let unknown = sign(
        &claims(),
        &KeyId::parse("key-2").expect("kid"),
        &fixture.key,
    )
    .expect("token");
    assert_eq!(
        fixture.check(unknown.expose_secret(), NOW).map(drop),
        Err(TokenError::UnknownKey)
    );
}

#[test]
fn every_claim_is_required_and_typed() {
    let fixture = Fixture::new();
    assert!(fixture.with(|_| {}).is_ok());
    let all = serde_json::to_value(claims()).expect("json");
    for name in all.as_object().expect("object").keys() {
        let without = fixture.with(|c| drop(c.as_object_mut().map(|c| c.remove(name))));
        assert_eq!(
            without.is_ok(),
            matches!(name.as_str(), "uses" | "approval"),
            "without {name}"
        );
        for wrong in [
            Value::Null,
            json!(true),
            json!(1.5),
            json!(-1),
            json!([]),
            json!({}),
            json!([all[name], all[name]]),
        ] {
            let result = fixture.with(|c| c[name] = wrong.clone());
            assert!(
                matches!(result, Err(TokenError::Claims(_))),
                "{name} = {wrong}: {result:?}"
            );
        }
    }
    for (path, value) in [
        (
            "/authorization_details",
            json!([
                all["authorization_details"][0],
                all["authorization_details"][0]
            ]),
        ),
        (
            "/authorization_details/0/type",
            json!("urn:dipylon:action:v2"),
        ),
        (
            "/authorization_details/0/target",
            json!({ "type": "Account", "id": "ann", "more": 1 }),
        ),
        ("/authorization_details/0/target/type", json!("not a type")),
        ("/authorization_details/0/target/id", json!("an\u{202e}n")),
        ("/authorization_details/0/parameters", json!([])),
        ("/authorization_details/0/digest", json!("AA")),
        (
            "/cnf",
            json!({ "jkt": claims().cnf.jkt.to_string(), "x5t#S256": "AA" }),
        ),
        ("/cnf/jkt", json!("AA")),
        ("/cnf", json!([claims().cnf.jkt.to_string()])),
        ("/authorization_details/0/target", json!(["Account", "ann"])),
        (
            "/approval",
            json!([all["approval"]["access_request"], ["two-security"], 1]),
        ),
        ("/pos", json!(INTEGER_MAX + 1)),
        ("/uses", json!(4_294_967_296u64)),
        ("/uses", json!(0)),
        ("/exp", json!("1800000300")),
        ("/aud", json!(["https://idp.example"])),
        ("/sub", json!("spiffe://EXAMPLE.org/agent")),
        ("/iat", json!(u64::MAX)),
    ] {
        let result = fixture.with(|c| *c.pointer_mut(path).expect("path") = value.clone());
        assert!(
            matches!(result, Err(TokenError::Claims(_))),
            "{path} = {value}: {result:?}"
        );
    }
    assert!(
        fixture.with(|c| c["scope"] = json!("all")).is_err(),
        "unknown claims are refused"
    );
}

#[test]
fn typ_must_be_at_jwt() {
    let fixture = Fixture::new();
    let payload = serde_json::to_string(&claims()).expect("json");
    let with = |typ: Value| {
        fixture.check(
            &fixture.forge(
                &json!({ "alg": "ES256", "kid": kid(), "typ": typ }),
                &payload,
            ),
            NOW,
        )
    };
    assert!(with(json!("at+jwt")).is_ok() && with(json!("application/at+jwt")).is_ok());
    for typ in [
        json!("JWT"),
        json!("AT+JWT"),
        json!("at+jwt "),
        json!("dpop+jwt"),
        Value::Null,
        json!(["at+jwt"]),
    ] {
        assert_eq!(
            with(typ.clone()).map(drop),
            Err(TokenError::Malformed(JoseError::Typ)),
            "{typ}"
        );
    }
    let header = json!({ "alg": "ES256", "kid": kid() });
    assert_eq!(
        fixture
            .check(&fixture.forge(&header, &payload), NOW)
            .map(drop),
        Err(TokenError::Malformed(JoseError::Typ))
    );
}

#[test]
fn sign_rejects_invalid_claims() {
    let fixture = Fixture::new();
    for claims in [
        AccessTokenClaims {
            exp: NOW.secs(),
            ..claims()
        },
        AccessTokenClaims {
            exp: NOW.secs() + 3_601,
            ..claims()
        },
        AccessTokenClaims {
            uses: Some(0),
            ..claims()
        },
        AccessTokenClaims {
            pos: u64::MAX,
            ..claims()
        },
    ] {
        assert!(sign(&claims, &kid(), &fixture.key).is_err());
    }
}
