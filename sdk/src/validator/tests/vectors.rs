//! The project's vectors for resource servers: access tokens, proofs and revocation feeds in `tests/vectors`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::check::{self, Authorized, PresentedToken, RequiredAction, ValidationError};
use super::super::replay::ProofReplayCache;
use super::super::revocation_set::RevocationSet;
use crate::jose::access_token::{self, AccessTokenClaims, CheckedToken, ExpectedToken, TokenError};
use crate::jose::{JoseError, KeySet, ProofError, Usage};
use crate::model::{
    ActionName, AgentId, Audience, Param, Secret, Target, TaskId, Timestamp, TokenId,
};
use crate::proto::v1::{self, revocation_event::Selector, watch_revocations_response::Message};

fn load(file: &str) -> Value {
    let path = format!("{}/../tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let list = value[name].as_array().map(Vec::as_slice);
    list.unwrap_or_else(|| panic!("no list {name} in {value}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no text {name} in {value}"))
}

/// The verdict of a vector: accepted, or the word of the check that refuses it.
fn expected(vector: &Value) -> Result<(), &str> {
    match text(vector, "expect") {
        "accept" => Ok(()),
        "refuse" => Err(text(vector, "why")),
        other => panic!("expect is {other}"),
    }
}

/// A resource server of the vectors.
struct Server {
    keys: KeySet,
    issuer: String,
    audience: Audience,
    now: Timestamp,
}

impl Server {
    fn of(file: &Value) -> Self {
        let jwks = file["jwks"].to_string();
        Self {
            keys: KeySet::parse_vector(jwks.as_bytes(), Usage::Signature).expect("key set"),
            issuer: text(file, "issuer").to_owned(),
            audience: Audience::parse(text(file, "audience")).expect("audience"),
            now: Timestamp::from_secs(file["now"].as_i64().expect("now")),
        }
    }

    fn check(&self, token: &str) -> Result<CheckedToken, TokenError> {
        let expect = ExpectedToken {
            iss: &self.issuer,
            aud: Some(&self.audience),
            now: self.now,
        };
        access_token::check(token, &self.keys, &expect)
    }
}

fn token_word(error: TokenError) -> &'static str {
    match error {
        TokenError::Malformed(JoseError::Typ) => "typ",
        TokenError::Malformed(JoseError::Alg) => "alg",
        TokenError::Malformed(JoseError::Kid) | TokenError::UnknownKey => "kid",
        TokenError::Malformed(JoseError::HeaderMember(_)) => "header",
        TokenError::Malformed(_) => "form",
        TokenError::Signature => "signature",
        TokenError::Claims(_) => "claims",
        TokenError::WrongIssuer => "iss",
        TokenError::WrongAudience => "aud",
        TokenError::Expired => "exp",
        TokenError::NotYet => "nbf",
    }
}

#[test]
fn access_tokens() {
    let file = load("access_tokens.json");
    let server = Server::of(&file);
    for vector in list(&file, "vectors") {
        let found = server.check(text(vector, "token"));
        let found = found.map(drop).map_err(token_word);
        assert_eq!(found, expected(vector), "{vector}");
    }
}

fn parameters(value: &Value) -> BTreeMap<String, Param> {
    let members = value.as_object().expect("parameters").iter();
    members
        .map(|(name, value)| (name.clone(), Param::from_json(value).expect("value")))
        .collect()
}

#[test]
fn actions_of_access_tokens() {
    let file = load("access_tokens.json");
    let server = Server::of(&file);
    for vector in list(&file, "actions") {
        let tokens = list(&file, "vectors").iter();
        let token = tokens
            .clone()
            .find(|token| token["name"] == vector["token"]);
        let token = text(token.expect("a token of this name"), "token");
        let checked = server.check(token).expect("a good token");
        let required = &vector["required"];
        let target = &required["target"];
        let require = RequiredAction {
            action: ActionName::parse(text(required, "action")).expect("action"),
            target: Target::parse(text(target, "type"), text(target, "id")).expect("target"),
            parameters: Some(parameters(&required["parameters"])),
        };
        let openings = serde_json::from_value(vector["openings"].clone()).expect("openings");
        let presented = PresentedToken {
            token,
            dpop: None,
            method: "POST",
            url: "https://idp.soc.example/",
            openings: &openings,
        };
        let found = check::action(&presented, checked.claims(), &require);
        let found = found.map_err(|error| match error {
            ValidationError::ActionMismatch => "action",
            ValidationError::TargetMismatch => "target",
            ValidationError::ParametersMismatch => "parameters",
            other => panic!("{other}: {vector}"),
        });
        assert_eq!(found, expected(vector), "{vector}");
    }
}

fn proof_word(error: ValidationError) -> &'static str {
    match error {
        ValidationError::ProofOfOtherToken => "ath",
        ValidationError::ProofOfOtherKey => "cnf.jkt",
        ValidationError::ProofReplayed => "replay",
        ValidationError::Proof(error) => match error {
            ProofError::Malformed(JoseError::Typ) => "typ",
            ProofError::Malformed(JoseError::Alg) => "alg",
            ProofError::Malformed(JoseError::HeaderMember(_)) => "header",
            ProofError::Malformed(_) => "form",
            ProofError::Key(_) => "jwk",
            ProofError::Signature => "signature",
            ProofError::Claim(claim) => claim.name,
            ProofError::UnknownClaim => "unknown claim",
            ProofError::WrongMethod => "htm",
            ProofError::WrongUrl => "htu",
            ProofError::Stale => "iat",
            ProofError::NonceMissing => "nonce",
        },
        other => panic!("{other}"),
    }
}

#[test]
fn proofs_for_resource_servers() {
    let server = Server::of(&load("access_tokens.json"));
    let file = load("dpop_proofs.json");
    let first = text(&list(&file, "resource_server")[0], "proof");
    for vector in list(&file, "resource_server") {
        let asked = &vector["check"];
        let token = text(asked, "token");
        let checked = server.check(token).expect("a good token");
        let now = Timestamp::from_secs(asked["now"].as_i64().expect("now"));
        let openings = BTreeMap::new();
        let possession = |proof| {
            let presented = PresentedToken {
                token,
                dpop: Some(proof),
                method: text(asked, "method"),
                url: text(asked, "url"),
                openings: &openings,
            };
            check::possession(&presented, checked.claims(), now)
        };
        let mut seen = ProofReplayCache::default();
        for jti in list(asked, "used_jtis") {
            // The first proof has the `jti` that is used up.
            let proof = possession(first).expect("a good proof");
            assert_eq!(proof.jti(), jti.as_str().expect("text"));
            seen.insert_once(&proof, now).expect("new");
        }
        let found = possession(text(vector, "proof"));
        let found = found.and_then(|proof| {
            seen.insert_once(&proof, now)?;
            Ok(proof)
        });
        let use_id = found.as_ref().ok().map(|proof| {
            let token = server.check(token).expect("a good token");
            let authorized = Authorized::new(token, Secret::new(String::new()), proof);
            authorized.use_id().to_string()
        });
        assert_eq!(use_id.as_deref(), vector["use_id"].as_str(), "{vector}");
        let found = found.map(drop).map_err(proof_word);
        assert_eq!(found, expected(vector), "{vector}");
    }
}

/// A number of ProtoJSON: 64-bit integers are texts, and zero may be left out.
fn number(value: &Value) -> u64 {
    value.as_str().map_or_else(
        || {
            assert!(value.is_null(), "{value}: expected a number as text");
            0
        },
        |text| text.parse().expect("a number"),
    )
}

fn texts(value: &Value, name: &str) -> Vec<String> {
    let texts = list(value, name).iter();
    texts
        .map(|text| text.as_str().expect("text").to_owned())
        .collect()
}

fn position(value: &Value) -> v1::Position {
    v1::Position {
        epoch: number(&value["epoch"]),
        index: number(&value["index"]),
    }
}

fn message(value: &Value) -> v1::WatchRevocationsResponse {
    let members = value.as_object().expect("a message");
    let message = members
        .iter()
        .next()
        .map(|(kind, body)| match kind.as_str() {
            "event" => Message::Event(v1::RevocationEvent {
                epoch: number(&body["epoch"]),
                index: number(&body["index"]),
                previous: body.get("previous").map(number),
                selector: selector(body),
            }),
            "heartbeat" => Message::Heartbeat(v1::RevocationHeartbeat {
                position: body.get("position").map(position),
                last_event: body.get("last_event").map(number),
            }),
            "resync" => Message::Resync(v1::RevocationResync {
                from: Some(position(&body["from"])),
            }),
            other => panic!("an unknown message, {other}"),
        });
    v1::WatchRevocationsResponse { message }
}

fn selector(event: &Value) -> Option<Selector> {
    let members = event.as_object()?.iter();
    let mut selectors = members.filter_map(|(name, value)| {
        Some(match name.as_str() {
            "tasks" => Selector::Tasks(v1::TaskList {
                task_ids: texts(value, "task_ids"),
            }),
            "tokens" => Selector::Tokens(v1::TokenList {
                jtis: texts(value, "jtis"),
            }),
            "agent_id" => Selector::AgentId(value.as_str()?.to_owned()),
            "agents" => Selector::Agents(v1::AgentList {
                agent_ids: texts(value, "agent_ids"),
            }),
            "action" => Selector::Action(value.as_str()?.to_owned()),
            "all" => Selector::All(v1::AllTokens {}),
            _ => return None,
        })
    });
    selectors.next()
}

/// The claims of a good token, with those that the feed looks at.
fn claims_of(vector: &Value) -> AccessTokenClaims {
    let file = load("access_tokens.json");
    let token = Server::of(&file).check(text(&list(&file, "vectors")[0], "token"));
    let mut claims = token.expect("a good token").into_claims();
    claims.txn = TaskId::parse(text(vector, "txn")).expect("txn");
    claims.jti = TokenId::parse(text(vector, "jti")).expect("jti");
    claims.client_id = AgentId::parse(text(vector, "client_id")).expect("agent");
    let [detail] = &mut claims.authorization_details;
    detail.action = ActionName::parse(text(vector, "action")).expect("action");
    claims.epoch = vector["epoch"].as_u64().expect("epoch");
    claims.pos = vector["pos"].as_u64().expect("pos");
    claims
}

#[test]
fn revocation_feeds() {
    const SILENCE_MS: u32 = 5_000;
    let file = load("revocation_feed.json");
    let start = Timestamp::from_secs(1_800_000_000);
    for vector in list(&file, "vectors") {
        let mut revoked = RevocationSet::default();
        for one in list(vector, "messages") {
            // After a gap the set is incomplete, and the next message is of a new watch.
            let _gap = revoked.apply(message(one), start);
        }
        let silence = vector["silence_ms"].as_i64().expect("silence_ms");
        for token in list(vector, "tokens") {
            let found = revoked.check(&claims_of(token), start.plus_millis(silence), SILENCE_MS);
            let found = match found {
                Ok(()) => "accepted",
                Err(ValidationError::Revoked) => "revoked",
                Err(ValidationError::Stale) => "unknown",
                Err(other) => panic!("{other}: {vector}"),
            };
            assert_eq!(found, text(token, "expect"), "{}: {token}", vector["name"]);
        }
    }
}
