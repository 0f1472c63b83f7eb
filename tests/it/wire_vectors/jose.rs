//! Vectors of proofs and access tokens, each bad one with the check that refuses it.

use dipylon_sdk::jose::{Nonces, Usage};
use dipylon_sdk::model::{Digest, KeyId, Timestamp};
use serde_json::{Value, json};

use super::keys::{self, der, encode};
use super::{Former, NONCE_KEY, NOW};

const BROKER: &str = "https://dipylon.soc.example";
const EVIDENCE: &str = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln";
const ISSUER: &str = BROKER;
const AUDIENCE: &str = "https://idp.soc.example";
const RESOURCE: &str = "https://idp.soc.example/accounts/ann/disable";

/// A change to a proof's or token's header and claims before it is signed.
type Change = fn(&mut Value, &mut Value);

fn htu(method: &str) -> String {
    format!("{BROKER}/dipylon.v1.{method}")
}

/// The digest of the documented action.
fn action_digest() -> Digest {
    let canonical = r#"{"action":"account.disable","audience":"https://idp.soc.example","parameters":{"end_sessions":true},"target":{"id":"ann","type":"Account"}}"#;
    Digest::tagged("dipylon/action/v1", canonical.as_bytes())
}

fn nonce(key: u8, at_s: i64) -> String {
    Nonces::new(&[key; 32]).issue(Timestamp::from_secs(at_s))
}

fn proof_header() -> Value {
    json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": keys::fixed("agent").public().to_jwk() })
}

fn named(mut vector: Value, name: &str, why: Option<&str>) -> Value {
    vector["name"] = json!(name);
    vector["expect"] = json!(if why.is_none() { "accept" } else { "refuse" });
    if let Some(why) = why {
        vector["why"] = json!(why);
    }
    vector
}

/// A call to the broker that a proof is for.
#[derive(Clone, Copy)]
enum Call {
    OpenTask,
    RequestToken,
    RequestTokenWithEvidence,
    CompleteTask,
}

impl Call {
    fn method(self) -> &'static str {
        match self {
            Self::OpenTask => "TaskService/OpenTask",
            Self::RequestToken | Self::RequestTokenWithEvidence => "TaskService/RequestToken",
            Self::CompleteTask => "TaskService/CompleteTask",
        }
    }

    /// `adg` and `evh` of its proof.
    fn bound(self) -> (Option<Digest>, Option<Digest>) {
        let evidence = Some(Digest::sha256(EVIDENCE.as_bytes()));
        match self {
            Self::OpenTask => (None, evidence),
            Self::RequestToken => (Some(action_digest()), None),
            Self::RequestTokenWithEvidence => (Some(action_digest()), evidence),
            Self::CompleteTask => (None, None),
        }
    }

    fn claims(self) -> Value {
        let mut claims = json!({
            "jti": encode(&[1; 16]), "htm": "POST", "htu": htu(self.method()), "iat": NOW, "nonce": nonce(NONCE_KEY, NOW),
        });
        let (action, evidence) = self.bound();
        if let Some(digest) = action {
            claims["adg"] = json!(digest);
        }
        if let Some(hash) = evidence {
            claims["evh"] = json!(hash);
        }
        claims
    }

    /// What the proof is checked against.
    fn check(self) -> Value {
        let (action, evidence) = self.bound();
        json!({
            "htm": "POST", "htu": htu(self.method()), "nonce": nonce(NONCE_KEY, NOW),
            "action_digest": action, "evidence": evidence.map(|_| EVIDENCE), "used_jtis": [],
        })
    }
}

fn remove(value: &mut Value, name: &str) {
    value.as_object_mut().expect("object").remove(name);
}

/// Proofs for calls to the broker and for requests to a resource server.
pub fn dpop_proofs(former: &Former) -> Value {
    let token = super::good_token();
    json!({
        "comment": "Proofs by the key `agent` of keys.json. `broker`: for calls to the broker; `check` is what the call is \
            (`evidence` and `action_digest` null: the call carries none). A client must make proofs like the good ones; the broker \
            refuses the bad ones, with USE_DPOP_NONCE where `why` is `nonce` and with NOT_AUTHENTICATED otherwise. \
            `resource_server`: for an HTTP request with the access token `check.token`; a resource server must accept the good ones \
            at the time `check.now` and refuse the bad ones. `why` names the member or the check. `used_jtis` were accepted before.",
        "broker": broker_proofs(former),
        "resource_server": resource_proofs(former, &token),
    })
}

fn broker_proofs(former: &Former) -> Vec<Value> {
    use Call::{CompleteTask, OpenTask, RequestToken, RequestTokenWithEvidence};
    let table: &[(&str, Call, Option<&str>, Change)] = &[
        ("OpenTask", OpenTask, None, |_, _| {}),
        ("RequestToken", RequestToken, None, |_, _| {}),
        (
            "RequestToken with evidence",
            RequestTokenWithEvidence,
            None,
            |_, _| {},
        ),
        ("CompleteTask", CompleteTask, None, |_, _| {}),
        ("optional members of jwk", CompleteTask, None, |h, _| {
            h["jwk"]["alg"] = json!("ES256");
            h["jwk"]["use"] = json!("sig");
            h["jwk"]["kid"] = json!("any");
        }),
        (
            "an old iat: the nonce proves freshness",
            CompleteTask,
            None,
            |_, c| c["iat"] = json!(1),
        ),
        ("typ JWT", CompleteTask, Some("typ"), |h, _| {
            h["typ"] = json!("JWT")
        }),
        ("typ in another case", CompleteTask, Some("typ"), |h, _| {
            h["typ"] = json!("DPoP+JWT")
        }),
        ("no typ", CompleteTask, Some("typ"), |h, _| remove(h, "typ")),
        ("alg ES384", CompleteTask, Some("alg"), |h, _| {
            h["alg"] = json!("ES384")
        }),
        ("alg none", CompleteTask, Some("alg"), |h, _| {
            h["alg"] = json!("none")
        }),
        ("kid in the header", CompleteTask, Some("header"), |h, _| {
            h["kid"] = json!("k")
        }),
        (
            "crit in the header",
            CompleteTask,
            Some("header"),
            |h, _| h["crit"] = json!(["exp"]),
        ),
        (
            "an unknown header member",
            CompleteTask,
            Some("header"),
            |h, _| h["x"] = json!(1),
        ),
        ("no jwk", CompleteTask, Some("jwk"), |h, _| remove(h, "jwk")),
        ("a private jwk", CompleteTask, Some("jwk"), |h, _| {
            h["jwk"]["d"] = json!("AA")
        }),
        (
            "a jwk of another curve",
            CompleteTask,
            Some("jwk"),
            |h, _| h["jwk"]["crv"] = json!("P-384"),
        ),
        (
            "the jwk of another key",
            CompleteTask,
            Some("signature"),
            |h, _| {
                h["jwk"] = keys::fixed("voter").public().to_jwk();
            },
        ),
        ("no jti", CompleteTask, Some("jti"), |_, c| remove(c, "jti")),
        ("an empty jti", CompleteTask, Some("jti"), |_, c| {
            c["jti"] = json!("")
        }),
        ("a jti of 129 bytes", CompleteTask, Some("jti"), |_, c| {
            c["jti"] = json!("a".repeat(129))
        }),
        ("no iat", CompleteTask, Some("iat"), |_, c| remove(c, "iat")),
        ("iat as a text", CompleteTask, Some("iat"), |_, c| {
            c["iat"] = json!("1800000000")
        }),
        (
            "an unknown claim",
            CompleteTask,
            Some("unknown claim"),
            |_, c| c["aud"] = json!(BROKER),
        ),
        ("htm GET", CompleteTask, Some("htm"), |_, c| {
            c["htm"] = json!("GET")
        }),
        ("htm in lower case", CompleteTask, Some("htm"), |_, c| {
            c["htm"] = json!("post")
        }),
        (
            "htu of another method",
            CompleteTask,
            Some("htu"),
            |_, c| c["htu"] = json!(htu("TaskService/OpenTask")),
        ),
        ("htu of another host", CompleteTask, Some("htu"), |_, c| {
            c["htu"] = json!("https://127.0.0.1:7700/dipylon.v1.TaskService/CompleteTask");
        }),
        (
            "htu without the package",
            CompleteTask,
            Some("htu"),
            |_, c| {
                c["htu"] = json!("https://dipylon.soc.example/TaskService/CompleteTask");
            },
        ),
        ("no nonce", CompleteTask, Some("nonce"), |_, c| {
            remove(c, "nonce")
        }),
        ("an expired nonce", CompleteTask, Some("nonce"), |_, c| {
            c["nonce"] = json!(nonce(NONCE_KEY, NOW - 60))
        }),
        (
            "a nonce of another broker",
            CompleteTask,
            Some("nonce"),
            |_, c| c["nonce"] = json!(nonce(NONCE_KEY + 1, NOW)),
        ),
        (
            "RequestToken without adg",
            RequestToken,
            Some("adg"),
            |_, c| remove(c, "adg"),
        ),
        (
            "adg of another action",
            RequestToken,
            Some("adg"),
            |_, c| c["adg"] = json!(Digest::sha256(b"x")),
        ),
        (
            "adg outside RequestToken",
            CompleteTask,
            Some("adg"),
            |_, c| c["adg"] = json!(action_digest()),
        ),
        ("adg in hex", RequestToken, Some("adg"), |_, c| {
            c["adg"] = json!("9f".repeat(32))
        }),
        ("OpenTask without evh", OpenTask, Some("evh"), |_, c| {
            remove(c, "evh")
        }),
        ("evh of other evidence", OpenTask, Some("evh"), |_, c| {
            c["evh"] = json!(Digest::sha256(b"x"))
        }),
        ("evh without evidence", RequestToken, Some("evh"), |_, c| {
            c["evh"] = json!(Digest::sha256(EVIDENCE.as_bytes()))
        }),
        (
            "ath in a call to the broker",
            CompleteTask,
            Some("ath"),
            |_, c| c["ath"] = json!(Digest::sha256(b"x")),
        ),
    ];
    let agent = keys::fixed("agent");
    let mut vectors: Vec<Value> = table
        .iter()
        .map(|(name, call, why, change)| {
            let (mut header, mut claims) = (proof_header(), call.claims());
            change(&mut header, &mut claims);
            let kept = former.text("broker", name, "proof");
            let proof = keys::jws(&agent, &header, &claims, kept.as_deref());
            named(json!({ "proof": proof, "check": call.check() }), name, *why)
        })
        .collect();
    let good = vectors[3]["proof"].as_str().expect("proof").to_owned();
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let open_task = vectors[0]["proof"].as_str().expect("proof");
    let (_, other) = open_task.rsplit_once('.').expect("three parts");
    let as_der = encode(&der(&keys::decode(signature)));
    let header = dipylon_sdk::model::json::canonical(&proof_header()).expect("canonical");
    let twice = format!(
        r#"{{"jti":"a","jti":"a",{}"#,
        CompleteTask
            .claims()
            .to_string()
            .get(1..)
            .unwrap_or_default()
    );
    let kept = former.text("broker", "a claim twice", "proof");
    let twice = keys::jws_of_texts(&agent, &header, &twice, kept.as_deref());
    let made = [
        ("a claim twice", "form", twice),
        (
            "the signature of another proof",
            "signature",
            format!("{signed}.{other}"),
        ),
        (
            "a signature in DER",
            "signature",
            format!("{signed}.{as_der}"),
        ),
        ("padding", "form", format!("{good}==")),
        ("four parts", "form", format!("{good}.AA")),
        ("no signature", "form", format!("{signed}.")),
    ];
    for (name, why, proof) in made {
        vectors.push(named(
            json!({ "proof": proof, "check": CompleteTask.check() }),
            name,
            Some(why),
        ));
    }
    let mut replayed = named(
        json!({ "proof": good, "check": CompleteTask.check() }),
        "used before",
        Some("replay"),
    );
    replayed["check"]["used_jtis"] = json!([encode(&[1; 16])]);
    vectors.push(replayed);
    vectors
}

fn resource_proofs(former: &Former, token: &str) -> Vec<Value> {
    let table: &[(&str, Option<&str>, Change)] = &[
        ("a request", None, |_, _| {}),
        ("a minute old", None, |_, c| c["iat"] = json!(NOW - 60)),
        ("a minute ahead", None, |_, c| c["iat"] = json!(NOW + 60)),
        ("a nonce that nobody asked for", None, |_, c| {
            c["nonce"] = json!("n")
        }),
        ("too old", Some("iat"), |_, c| c["iat"] = json!(NOW - 61)),
        ("too far ahead", Some("iat"), |_, c| {
            c["iat"] = json!(NOW + 61)
        }),
        ("no ath", Some("ath"), |_, c| remove(c, "ath")),
        ("ath of another token", Some("ath"), |_, c| {
            c["ath"] = json!(Digest::sha256(b"x"))
        }),
        ("another method", Some("htm"), |_, c| {
            c["htm"] = json!("GET")
        }),
        ("another path", Some("htu"), |_, c| {
            c["htu"] = json!("https://idp.soc.example/accounts/bob/disable")
        }),
        ("another host", Some("htu"), |_, c| {
            c["htu"] = json!("https://evil.example/accounts/ann/disable")
        }),
        ("without TLS", Some("htu"), |_, c| {
            c["htu"] = json!("http://idp.soc.example/accounts/ann/disable")
        }),
        ("typ JWT", Some("typ"), |h, _| h["typ"] = json!("JWT")),
        ("no jti", Some("jti"), |_, c| remove(c, "jti")),
    ];
    let agent = keys::fixed("agent");
    let claims = json!({
        "jti": encode(&[2; 16]), "htm": "POST", "htu": RESOURCE, "iat": NOW, "ath": Digest::sha256(token.as_bytes()),
    });
    let check = json!({
        "token": token, "method": "POST", "url": format!("{RESOURCE}?dry_run=false"), "now": NOW, "used_jtis": [],
    });
    let mut vectors: Vec<Value> = table
        .iter()
        .map(|(name, why, change)| {
            let (mut header, mut claims) = (proof_header(), claims.clone());
            change(&mut header, &mut claims);
            let kept = former.text("resource_server", name, "proof");
            let proof = keys::jws(&agent, &header, &claims, kept.as_deref());
            named(json!({ "proof": proof, "check": check }), name, *why)
        })
        .collect();
    let voter = keys::fixed("voter");
    let mut header = proof_header();
    header["jwk"] = voter.public().to_jwk();
    let kept = former.text("resource_server", "another key", "proof");
    let proof = keys::jws(&voter, &header, &claims, kept.as_deref());
    vectors.push(named(
        json!({ "proof": proof, "check": check }),
        "another key",
        Some("cnf.jkt"),
    ));
    let mut replayed = named(vectors[0].clone(), "used before", Some("replay"));
    replayed["check"]["used_jtis"] = json!([encode(&[2; 16])]);
    vectors.push(replayed);
    vectors
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
