//! Vectors of access tokens, each bad one with the check that refuses it.

use dipylon_sdk::jose::Usage;
use dipylon_sdk::model::{Digest, KeyId};
use serde_json::{Value, json};

use super::keys::{self, encode};
use super::{Change, Former, NOW, action_digest, named, remove};

const ISSUER: &str = "https://dipylon.soc.example";
const AUDIENCE: &str = "https://idp.soc.example";

/// A token whose parameters have a number, a set and a record.
const NUMBERS: &str = "with numbers, a set and a record";

/// Lengthens the parameters until the token has this many bytes.
fn lengthen(claims: &mut Value, bytes: usize) {
    let encoded = |bytes: usize| (bytes * 4).div_ceil(3);
    let signed = encoded(token_header().to_string().len()) + encoded(64) + 2;
    for length in 2_000..4_096 {
        let (text, more) = ("a".repeat(2_000), "b".repeat(length));
        claims["authorization_details"][0]["parameters"] = json!({ "a": text, "b": more });
        if signed + encoded(claims.to_string().len()) >= bytes {
            break;
        }
    }
    let found = signed + encoded(claims.to_string().len());
    assert_eq!(found, bytes, "no such length");
}

fn token_claims() -> Value {
    json!({
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "spiffe://soc.example/agent/triage",
        "client_id": "triage",
        "iat": NOW, "nbf": NOW - 30, "exp": NOW + 300,
        "jti": "tok_BAQEBAQEBAQEBAQEBAQEBA",
        "txn": "task_BQUFBQUFBQUFBQUFBQUFBQ",
        "cnf": { "jkt": keys::fixed("agent").thumbprint() },
        "authorization_details": [{
            "type": "urn:dipylon:action:v1",
            "action": "account.disable",
            "target": { "type": "Account", "id": "ann" },
            "parameters": { "end_sessions": true },
            "digest": action_digest(),
        }],
        "epoch": 1, "pos": 41,
    })
}

/// Access tokens with the key set, and the actions they are for.
pub fn access_tokens(former: &Former) -> Value {
    let table: &[(&str, Option<&str>, Change)] = &[
        ("a token", None, |_, _| {}),
        ("typ with its prefix", None, |h, _| {
            h["typ"] = json!("application/at+jwt")
        }),
        ("with uses and an approval", None, |_, c| {
            c["uses"] = json!(1);
            c["approval"] = json!({ "access_request": "areq_CQkJCQkJCQkJCQkJCQkJCQ", "profiles": ["two-security"], "at": NOW });
        }),
        ("with a sensitive parameter", None, |_, c| {
            let detail = &mut c["authorization_details"][0];
            detail["action"] = json!("case.note");
            detail["target"] = json!({ "type": "Case", "id": "INC-8841" });
            detail["parameters"] =
                json!({ "text": { "$commitment": "sRqubovtDPcadA3lHflZC7ldaPPBmEDSIDFbPe1vlLM" } });
            detail["digest"] = json!(Digest::sha256(b"a commitment"));
        }),
        (NUMBERS, None, |_, c| {
            let detail = &mut c["authorization_details"][0];
            detail["parameters"] =
                json!({ "count": 1, "levels": [1, 2], "options": { "retries": 1 } });
            detail["digest"] = json!(Digest::sha256(b"an action with numbers"));
        }),
        ("8,192 bytes long", None, |_, c| lengthen(c, 8_192)),
        ("longer than 8,192 bytes", Some("form"), |_, c| {
            lengthen(c, 8_193)
        }),
        ("a second before it expires", None, |_, c| {
            c["exp"] = json!(NOW + 1)
        }),
        ("iat five seconds ahead", None, |_, c| {
            c["iat"] = json!(NOW + 5);
            c["nbf"] = json!(NOW + 5);
        }),
        ("expired", Some("exp"), |_, c| {
            c["iat"] = json!(NOW - 60);
            c["exp"] = json!(NOW);
        }),
        ("nbf six seconds ahead", Some("nbf"), |_, c| {
            c["nbf"] = json!(NOW + 6)
        }),
        ("iat six seconds ahead", Some("nbf"), |_, c| {
            c["iat"] = json!(NOW + 6)
        }),
        ("of another issuer", Some("iss"), |_, c| {
            c["iss"] = json!("https://evil.example")
        }),
        ("of the issuer with a slash", Some("iss"), |_, c| {
            c["iss"] = json!("https://dipylon.soc.example/")
        }),
        ("for another audience", Some("aud"), |_, c| {
            c["aud"] = json!("https://cases.soc.example")
        }),
        ("typ JWT", Some("typ"), |h, _| h["typ"] = json!("JWT")),
        ("no typ", Some("typ"), |h, _| remove(h, "typ")),
        ("no kid", Some("kid"), |h, _| remove(h, "kid")),
        ("an unknown kid", Some("kid"), |h, _| {
            h["kid"] = json!(keys::fixed("voter").thumbprint())
        }),
        ("alg none", Some("alg"), |h, _| h["alg"] = json!("none")),
        ("alg HS256", Some("alg"), |h, _| h["alg"] = json!("HS256")),
        ("alg RS256", Some("alg"), |h, _| h["alg"] = json!("RS256")),
        ("crit", Some("header"), |h, _| h["crit"] = json!(["exp"])),
        ("a key in the header", Some("header"), |h, _| {
            h["jwk"] = keys::fixed("voter").public().to_jwk()
        }),
        ("no cnf", Some("claims"), |_, c| remove(c, "cnf")),
        ("no exp", Some("claims"), |_, c| remove(c, "exp")),
        ("no authorization_details", Some("claims"), |_, c| {
            c["authorization_details"] = json!([])
        }),
        ("two authorization_details", Some("claims"), |_, c| {
            let one = c["authorization_details"][0].clone();
            c["authorization_details"] = json!([one, one]);
        }),
        (
            "authorization_details of another type",
            Some("claims"),
            |_, c| {
                c["authorization_details"][0]["type"] = json!("urn:dipylon:action:v2");
            },
        ),
        ("uses of zero", Some("claims"), |_, c| c["uses"] = json!(0)),
        ("valid for more than an hour", Some("claims"), |_, c| {
            c["exp"] = json!(NOW + 3_601)
        }),
        ("exp at iat", Some("claims"), |_, c| {
            c["iat"] = json!(NOW + 5);
            c["exp"] = json!(NOW + 5);
        }),
        ("nbf at exp", Some("claims"), |_, c| {
            c["nbf"] = json!(NOW + 5);
            c["exp"] = json!(NOW + 5);
        }),
        ("exp as a text", Some("claims"), |_, c| {
            c["exp"] = json!("1800000300")
        }),
        ("exp with a fraction", Some("claims"), |_, c| {
            c["exp"] = json!(1_800_000_300.5)
        }),
        ("exp with a fraction of zero", Some("claims"), |_, c| {
            c["exp"] = json!(1_800_000_300.0)
        }),
        ("iat with a fraction", Some("claims"), |_, c| {
            c["iat"] = json!(1_799_999_999.5)
        }),
        ("uses with a fraction", Some("claims"), |_, c| {
            c["uses"] = json!(1.5)
        }),
        ("uses with a fraction of zero", Some("claims"), |_, c| {
            c["uses"] = json!(1.0)
        }),
        ("uses as a text", Some("claims"), |_, c| {
            c["uses"] = json!("1")
        }),
        ("uses of true", Some("claims"), |_, c| {
            c["uses"] = json!(true)
        }),
        ("uses below zero", Some("claims"), |_, c| {
            c["uses"] = json!(-1)
        }),
        ("uses of null", Some("claims"), |_, c| {
            c["uses"] = json!(null)
        }),
        ("no epoch", Some("claims"), |_, c| remove(c, "epoch")),
        ("pos as a text", Some("claims"), |_, c| {
            c["pos"] = json!("41")
        }),
        ("no jti", Some("claims"), |_, c| remove(c, "jti")),
        ("a txn that is no task id", Some("claims"), |_, c| {
            c["txn"] = json!("task_x")
        }),
        ("a jkt of 31 bytes", Some("claims"), |_, c| {
            c["cnf"]["jkt"] = json!(encode(&[1; 31]))
        }),
        ("aud as an array", Some("claims"), |_, c| {
            c["aud"] = json!([AUDIENCE])
        }),
        ("an unknown claim", Some("claims"), |_, c| c["x"] = json!(1)),
        ("an unknown member of cnf", Some("claims"), |_, c| {
            c["cnf"]["x"] = json!(1)
        }),
    ];
    let broker = keys::fixed("broker");
    let mut tokens: Vec<Value> = table
        .iter()
        .map(|(name, why, change)| {
            let (mut header, mut claims) = (token_header(), token_claims());
            change(&mut header, &mut claims);
            let kept = former.text("vectors", name, "token");
            let token = keys::jws(&broker, &header, &claims, kept.as_deref());
            named(json!({ "token": token }), name, *why)
        })
        .collect();
    let good = tokens[0]["token"].as_str().expect("token").to_owned();
    let other = tokens[2]["token"].as_str().expect("token").to_owned();
    let kept = former.text("vectors", "signed by another key", "token");
    let forged = keys::jws(
        &keys::fixed("voter"),
        &token_header(),
        &token_claims(),
        kept.as_deref(),
    );
    let texts = |name: &str, header: &str, claims: &str| {
        let kept = former.text("vectors", name, "token");
        keys::jws_of_texts(&broker, header, claims, kept.as_deref())
    };
    let (header, claims) = (token_header().to_string(), token_claims().to_string());
    let claim_twice = keys::with_member_twice(&token_claims(), r#""exp":1"#);
    let member_twice = keys::with_member_twice(&token_header(), r#""alg":"none""#);
    let made = [
        ("signed by another key", "signature", forged),
        (
            "a claim twice",
            "form",
            texts("a claim twice", &header, &claim_twice),
        ),
        (
            "a header member twice",
            "form",
            texts("a header member twice", &member_twice, &claims),
        ),
    ];
    let broken = keys::broken_forms(&good, &other);
    for (name, why, token) in made.into_iter().chain(broken) {
        tokens.push(named(json!({ "token": token }), name, Some(why)));
    }
    let kid = KeyId::from_thumbprint(broker.thumbprint());
    json!({
        "comment": "A resource server with this issuer, audience and key set must accept the good tokens at the time `now` (Unix \
            seconds) and refuse the bad ones; `why` names the check of docs/wire.md section 6.2. Revocation, proof and uses are \
            other checks. `actions`: whether a good token (by its name in `vectors`) allows what the server is about to do; \
            `openings` are the salts that the agent sent.",
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "now": NOW,
        "jwks": { "keys": [broker.public().to_jwk_named(&kid, Usage::Signature)] },
        "vectors": tokens,
        "actions": actions(),
    })
}

fn token_header() -> Value {
    json!({ "typ": "at+jwt", "alg": "ES256", "kid": keys::fixed("broker").thumbprint() })
}

fn actions() -> Vec<Value> {
    let disable = json!({ "action": "account.disable", "target": { "type": "Account", "id": "ann" },
        "parameters": { "end_sessions": true } });
    let note = json!({ "action": "case.note", "target": { "type": "Case", "id": "INC-8841" },
        "parameters": { "text": "call her back" } });
    let with = |base: &Value, pointer: &str, value: Value| {
        let mut changed = base.clone();
        *changed.pointer_mut(pointer).expect("member") = value;
        changed
    };
    let numbers = with(
        &disable,
        "/parameters",
        json!({ "count": 1, "levels": [1, 2], "options": { "retries": 1 } }),
    );
    let salts = json!({ "text": encode(&[1; 16]) });
    let (plain, sensitive) = ("a token", "with a sensitive parameter");
    let table = [
        ("the same action", plain, disable.clone(), json!({}), None),
        (
            "another action",
            plain,
            with(&disable, "/action", json!("account.enable")),
            json!({}),
            Some("action"),
        ),
        (
            "another target",
            plain,
            with(&disable, "/target/id", json!("bob")),
            json!({}),
            Some("target"),
        ),
        (
            "a target of another type",
            plain,
            with(&disable, "/target/type", json!("Host")),
            json!({}),
            Some("target"),
        ),
        (
            "another value",
            plain,
            with(&disable, "/parameters/end_sessions", json!(false)),
            json!({}),
            Some("parameters"),
        ),
        (
            "a value of another type",
            plain,
            with(&disable, "/parameters/end_sessions", json!("true")),
            json!({}),
            Some("parameters"),
        ),
        (
            "1 for true",
            plain,
            with(&disable, "/parameters/end_sessions", json!(1)),
            json!({}),
            Some("parameters"),
        ),
        (
            "the same numbers",
            NUMBERS,
            numbers.clone(),
            json!({}),
            None,
        ),
        (
            "true for 1",
            NUMBERS,
            with(&numbers, "/parameters/count", json!(true)),
            json!({}),
            Some("parameters"),
        ),
        (
            "a text for 1",
            NUMBERS,
            with(&numbers, "/parameters/count", json!("1")),
            json!({}),
            Some("parameters"),
        ),
        (
            "true for 1 in a set",
            NUMBERS,
            with(&numbers, "/parameters/levels/0", json!(true)),
            json!({}),
            Some("parameters"),
        ),
        (
            "true for 1 in a record",
            NUMBERS,
            with(&numbers, "/parameters/options/retries", json!(true)),
            json!({}),
            Some("parameters"),
        ),
        (
            "a set with one element more",
            NUMBERS,
            with(&numbers, "/parameters/levels", json!([1, 2, 3])),
            json!({}),
            Some("parameters"),
        ),
        (
            "a target in another case",
            plain,
            with(&disable, "/target/id", json!("Ann")),
            json!({}),
            Some("target"),
        ),
        (
            "one parameter fewer",
            plain,
            with(&disable, "/parameters", json!({})),
            json!({}),
            Some("parameters"),
        ),
        (
            "one parameter more",
            plain,
            with(
                &disable,
                "/parameters",
                json!({ "end_sessions": true, "force": true }),
            ),
            json!({}),
            Some("parameters"),
        ),
        (
            "the value and salt of a commitment",
            sensitive,
            note.clone(),
            salts.clone(),
            None,
        ),
        (
            "another value than the commitment's",
            sensitive,
            with(&note, "/parameters/text", json!("call him back")),
            salts,
            Some("parameters"),
        ),
        (
            "no salt",
            sensitive,
            note.clone(),
            json!({}),
            Some("parameters"),
        ),
        (
            "another salt",
            sensitive,
            note,
            json!({ "text": encode(&[2; 16]) }),
            Some("parameters"),
        ),
    ];
    let rows = table.map(|(name, token, required, openings, why)| {
        named(
            json!({ "token": token, "required": required, "openings": openings }),
            name,
            why,
        )
    });
    rows.to_vec()
}
