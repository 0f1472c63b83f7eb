//! Vectors of DPoP proofs, each bad one with the check that refuses it.

use dipylon_sdk::jose::Nonces;
use dipylon_sdk::model::{Digest, Timestamp, UseId};
use serde_json::{Value, json};

use super::keys::{self, encode};
use super::{Change, Former, NONCE_KEY, NOW, action_digest, named, remove};

const BROKER: &str = "https://dipylon.soc.example";
const EVIDENCE: &str = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln";
const RESOURCE: &str = "https://idp.soc.example/accounts/ann/disable";

fn htu(method: &str) -> String {
    format!("{BROKER}/dipylon.v1.{method}")
}

fn nonce(key: u8, at_s: i64) -> String {
    Nonces::new(&[key; 32]).issue(Timestamp::from_secs(at_s))
}

fn proof_header() -> Value {
    json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": keys::fixed("agent").public().to_jwk() })
}

/// One change of a proof, and the check that then refuses it.
type Row = (&'static str, Option<&'static str>, Change);

/// What every receiver of a proof judges alike.
const FORMS: [Row; 28] = [
    ("optional members of jwk", None, |h, _| {
        h["jwk"]["alg"] = json!("ES256");
        h["jwk"]["use"] = json!("sig");
        h["jwk"]["kid"] = json!("any");
    }),
    ("an iat with a fraction", None, |_, c| {
        c["iat"] = json!(1_800_000_000.5)
    }),
    ("a jti of 128 bytes", None, |_, c| {
        c["jti"] = json!("a".repeat(128))
    }),
    ("typ JWT", Some("typ"), |h, _| h["typ"] = json!("JWT")),
    ("typ in another case", Some("typ"), |h, _| {
        h["typ"] = json!("DPoP+JWT")
    }),
    ("no typ", Some("typ"), |h, _| remove(h, "typ")),
    ("alg ES384", Some("alg"), |h, _| h["alg"] = json!("ES384")),
    ("alg none", Some("alg"), |h, _| h["alg"] = json!("none")),
    ("kid in the header", Some("header"), |h, _| {
        h["kid"] = json!("k")
    }),
    ("crit in the header", Some("header"), |h, _| {
        h["crit"] = json!(["exp"])
    }),
    ("an unknown header member", Some("header"), |h, _| {
        h["x"] = json!(1)
    }),
    ("no jwk", Some("jwk"), |h, _| remove(h, "jwk")),
    ("a private jwk", Some("jwk"), |h, _| {
        h["jwk"]["d"] = json!("AA")
    }),
    ("a jwk of another curve", Some("jwk"), |h, _| {
        h["jwk"]["crv"] = json!("P-384")
    }),
    ("the jwk of another key", Some("signature"), |h, _| {
        h["jwk"] = keys::fixed("voter").public().to_jwk();
    }),
    ("no jti", Some("jti"), |_, c| remove(c, "jti")),
    ("an empty jti", Some("jti"), |_, c| c["jti"] = json!("")),
    ("a jti of 129 bytes", Some("jti"), |_, c| {
        c["jti"] = json!("a".repeat(129))
    }),
    ("a jti with a space", Some("jti"), |_, c| {
        c["jti"] = json!("a b")
    }),
    ("no iat", Some("iat"), |_, c| remove(c, "iat")),
    ("iat as a text", Some("iat"), |_, c| {
        c["iat"] = json!("1800000000")
    }),
    ("a negative iat", Some("iat"), |_, c| c["iat"] = json!(-1)),
    ("an unknown claim", Some("unknown claim"), |_, c| {
        c["aud"] = json!(BROKER)
    }),
    ("htm GET", Some("htm"), |_, c| c["htm"] = json!("GET")),
    ("htm in lower case", Some("htm"), |_, c| {
        c["htm"] = json!("post")
    }),
    ("no htm", Some("htm"), |_, c| remove(c, "htm")),
    ("no htu", Some("htu"), |_, c| remove(c, "htu")),
    ("longer than 8,192 bytes", Some("form"), |_, c| {
        let htu = c["htu"].as_str().expect("htu");
        c["htu"] = json!(format!("{htu}?{}", "a".repeat(6_144)));
    }),
];

/// Spellings of the URL that the broker takes for its own.
const SPELLINGS: [Row; 2] = [
    ("htu in another spelling", None, |_, c| {
        c["htu"] = json!("HTTPS://Dipylon.SOC.example:443/dipylon.v1.TaskService/CompleteTask");
    }),
    ("htu with a query, which is left out", None, |_, c| {
        c["htu"] = json!(format!("{}?x=1#y", htu("TaskService/CompleteTask")));
    }),
];

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

/// Proofs for calls to the broker and for requests to a resource server.
pub fn dpop_proofs(former: &Former) -> Value {
    let token = super::good_token();
    json!({
        "comment": "Proofs by the key `agent` of keys.json. `broker`: for calls to the broker; `check` is what the call is \
            (`evidence` and `action_digest` null: the call carries none). The broker accepts the good ones (a \
            client makes proofs like the first four) and refuses the bad ones, with USE_DPOP_NONCE where `why` is `nonce` and with NOT_AUTHENTICATED otherwise. \
            `resource_server`: for an HTTP request with the access token `check.token`; a resource server must accept the good ones \
            at the time `check.now` and refuse the bad ones; `use_id` names the use that the request consumes. `why` names the member or the check. `used_jtis` were accepted before.",
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
        (
            "an old iat: the nonce proves freshness",
            CompleteTask,
            None,
            |_, c| c["iat"] = json!(1),
        ),
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
    let common = FORMS.iter().chain(&SPELLINGS);
    let common = common.map(|(name, why, change)| (*name, CompleteTask, *why, *change));
    let rows = table.iter().copied().chain(common);
    let mut vectors: Vec<Value> = rows
        .map(|(name, call, why, change)| {
            let (mut header, mut claims) = (proof_header(), call.claims());
            change(&mut header, &mut claims);
            let kept = former.text("broker", name, "proof");
            let proof = keys::jws(&agent, &header, &claims, kept.as_deref());
            named(json!({ "proof": proof, "check": call.check() }), name, why)
        })
        .collect();
    let good = vectors[3]["proof"].as_str().expect("proof").to_owned();
    let other = vectors[0]["proof"].as_str().expect("proof").to_owned();
    let kept = former.text("broker", "a claim twice", "proof");
    let twice = claim_twice(&CompleteTask.claims(), kept.as_deref());
    for (name, why, proof) in keys::broken_forms(&good, &other).into_iter().chain([twice]) {
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

fn claim_twice(claims: &Value, former: Option<&str>) -> (&'static str, &'static str, String) {
    let header = dipylon_sdk::model::json::canonical(&proof_header()).expect("canonical");
    let twice = keys::with_member_twice(claims, r#""jti":"a""#);
    let proof = keys::jws_of_texts(&keys::fixed("agent"), &header, &twice, former);
    ("a claim twice", "form", proof)
}

fn resource_proofs(former: &Former, token: &str) -> Vec<Value> {
    let table: &[(&str, Option<&str>, Change)] = &[
        ("a request", None, |_, _| {}),
        ("a minute old", None, |_, c| c["iat"] = json!(NOW - 60)),
        ("a minute ahead", None, |_, c| c["iat"] = json!(NOW + 60)),
        ("a nonce that nobody asked for", None, |_, c| {
            c["nonce"] = json!("n")
        }),
        ("a jti with characters of no use id", None, |_, c| {
            c["jti"] = json!("a/b")
        }),
        ("too old", Some("iat"), |_, c| c["iat"] = json!(NOW - 61)),
        ("too far ahead", Some("iat"), |_, c| {
            c["iat"] = json!(NOW + 61)
        }),
        ("no ath", Some("ath"), |_, c| remove(c, "ath")),
        ("ath of another token", Some("ath"), |_, c| {
            c["ath"] = json!(Digest::sha256(b"x"))
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
        ("htu with another query, which is left out", None, |_, c| {
            c["htu"] = json!(format!("{RESOURCE}?dry_run=true"))
        }),
        ("an ath in hex", Some("ath"), |_, c| {
            c["ath"] = json!("9f".repeat(32))
        }),
    ];
    let agent = keys::fixed("agent");
    let claims = json!({
        "jti": encode(&[2; 16]), "htm": "POST", "htu": RESOURCE, "iat": NOW, "ath": Digest::sha256(token.as_bytes()),
    });
    let check = json!({
        "token": token, "method": "POST", "url": format!("{RESOURCE}?dry_run=false"), "now": NOW, "used_jtis": [],
    });
    let rows = table.iter().chain(&FORMS);
    let mut vectors: Vec<Value> = rows
        .map(|(name, why, change)| {
            let (mut header, mut claims) = (proof_header(), claims.clone());
            change(&mut header, &mut claims);
            let kept = former.text("resource_server", name, "proof");
            let proof = keys::jws(&agent, &header, &claims, kept.as_deref());
            let mut vector = named(json!({ "proof": proof, "check": check }), name, *why);
            if why.is_none() {
                vector["use_id"] = json!(use_id(&claims));
            }
            vector
        })
        .collect();
    let good = vectors[0]["proof"].as_str().expect("proof").to_owned();
    let other = vectors[1]["proof"].as_str().expect("proof").to_owned();
    let kept = former.text("resource_server", "a claim twice", "proof");
    let twice = claim_twice(&claims, kept.as_deref());
    for (name, why, proof) in keys::broken_forms(&good, &other).into_iter().chain([twice]) {
        let vector = json!({ "proof": proof, "check": check });
        vectors.push(named(vector, name, Some(why)));
    }
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
    let mut replayed = named(
        json!({ "proof": good, "check": check }),
        "used before",
        Some("replay"),
    );
    replayed["check"]["used_jtis"] = json!([encode(&[2; 16])]);
    vectors.push(replayed);
    vectors
}

/// The id of a use that a request with this proof consumes.
fn use_id(claims: &Value) -> String {
    let jti = claims["jti"].as_str().expect("jti");
    UseId::parse(jti).map_or_else(
        |_| Digest::sha256(jti.as_bytes()).to_string(),
        |id| id.to_string(),
    )
}
