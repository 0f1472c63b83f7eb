//! Vectors of access tokens, each bad one with the check that refuses it.

use dipylon_sdk::jose::Usage;
use dipylon_sdk::model::{Digest, KeyId};
use serde_json::{Value, json};

use super::keys::{self, der, encode};
use super::{Change, Former, NOW, action_digest, named, remove};

const ISSUER: &str = "https://dipylon.soc.example";
const AUDIENCE: &str = "https://idp.soc.example";

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
        ("exp as a text", Some("claims"), |_, c| {
            c["exp"] = json!("1800000300")
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
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let uses = tokens[2]["token"].as_str().expect("token");
    let (_, other) = uses.rsplit_once('.').expect("three parts");
    let kept = former.text("vectors", "signed by another key", "token");
    let forged = keys::jws(
        &keys::fixed("voter"),
        &token_header(),
        &token_claims(),
        kept.as_deref(),
    );
    let as_der = encode(&der(&keys::decode(signature)));
    for (name, why, token) in [
        ("signed by another key", "signature", forged),
        (
            "the signature of another token",
            "signature",
            format!("{signed}.{other}"),
        ),
        (
            "a signature in DER",
            "signature",
            format!("{signed}.{as_der}"),
        ),
        ("no signature", "form", format!("{signed}.")),
        ("padding", "form", format!("{good}==")),
        ("four parts", "form", format!("{good}.AA")),
    ] {
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
    let salts = json!({ "text": encode(&[1; 16]) });
    let with = |base: &Value, pointer: &str, value: Value| {
        let mut changed = base.clone();
        *changed.pointer_mut(pointer).expect("member") = value;
        changed
    };
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
