//! Every vector through the checks of the broker. Proofs for resource servers, access tokens and the feed: in the SDK.

use std::cell::RefCell;
use std::collections::BTreeSet;

use dipylon::verify::{DpopInput, Possession, VerifyError};
use dipylon::webauthn::{self, Assertion, RelyingParty, WebauthnError};
use dipylon_sdk::card::CardFacts;
use dipylon_sdk::jose::{AuthenticatorKey, JoseError, Nonces, ProofError, PublicKey};
use dipylon_sdk::model::json::canonical;
use dipylon_sdk::model::*;
use dipylon_sdk::proto::{convert, v1};
use serde_json::{Value, json};

use super::keys::{self, decode};
use super::{NONCE_KEY, NOW, is_good, list, load, text};

/// A number of ProtoJSON, which may be a text.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// An action as ProtoJSON, with the fields that are there.
fn action_from_json(value: &Value) -> v1::Action {
    let member = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    v1::Action {
        name: member(value, "name"),
        target: value.get("target").map(|target| v1::Target {
            r#type: member(target, "type"),
            id: member(target, "id"),
        }),
        parameters: parameters_from_json(&value["parameters"]),
        audience: member(value, "audience"),
    }
}

fn parameters_from_json(value: &Value) -> Vec<v1::Parameter> {
    let parameters = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let read = parameters.iter().map(|parameter| v1::Parameter {
        name: text(parameter, "name").to_owned(),
        value: parameter.get("value").map(value_from_json),
    });
    read.collect()
}

fn value_from_json(value: &Value) -> v1::Value {
    use v1::value::Kind;
    let members = value.as_object().expect("a value");
    let kind = members
        .iter()
        .next()
        .map(|(kind, value)| match kind.as_str() {
            "string_value" => Kind::StringValue(value.as_str().expect("text").to_owned()),
            "bool_value" => Kind::BoolValue(value.as_bool().expect("bool")),
            "int_value" => Kind::IntValue(number(value).expect("int64")),
            "set_value" => Kind::SetValue(v1::ValueSet {
                elements: list(value, "elements")
                    .iter()
                    .map(value_from_json)
                    .collect(),
            }),
            "record_value" => Kind::RecordValue(v1::ValueRecord {
                members: parameters_from_json(&value["members"]),
            }),
            other => panic!("an unknown kind of value, {other}"),
        });
    v1::Value { kind }
}

#[test]
fn action_digests() {
    let file = load("action_digests.json");
    for vector in list(&file, "vectors") {
        let read = convert::action(&action_from_json(&vector["action"]));
        assert_eq!(read.is_ok(), is_good(vector), "{vector}");
        if let Ok(action) = read {
            assert_eq!(
                canonical(&action.to_json()).expect("JSON"),
                text(vector, "canonical"),
                "{vector}"
            );
            assert_eq!(
                action.digest().to_string(),
                text(vector, "digest"),
                "{vector}"
            );
        }
    }
}

#[test]
fn commitments() {
    let file = load("commitments.json");
    for vector in list(&file, "vectors") {
        assert_eq!(
            canonical(&vector["value"]).expect("JSON"),
            text(vector, "canonical")
        );
        let opening = Opening {
            salt: text(vector, "salt").to_owned(),
            value: vector["value"].clone(),
        };
        assert_eq!(
            opening.commitment().to_string(),
            text(vector, "commitment"),
            "{vector}"
        );
    }
    // The record of an action with a sensitive parameter carries the commitment of its digest.
    let action = Action::new(
        ActionName::parse("case.note").expect("name"),
        Audience::parse("https://cases.soc.example").expect("audience"),
        Target::parse("Case", "INC-8841").expect("target"),
        [("text".to_owned(), Param::Str("call her back".to_owned()))].into(),
    )
    .expect("action");
    let mut salts = [[1; 16], [2; 16]].into_iter();
    let sensitive = BTreeSet::from(["text".to_owned()]);
    let (record, secret) = action.on_record(&sensitive, &mut || salts.next().expect("two salts"));
    let first = text(&list(&file, "vectors")[0], "commitment");
    assert_eq!(record.parameters["text"], json!({ "$commitment": first }));
    let secret = secret.expect("a sensitive parameter");
    for vector in list(&file, "digests") {
        let committed = ActionSecret {
            salt: text(vector, "salt").to_owned(),
            digest: Digest::parse(text(vector, "digest")).expect("digest"),
            parameters: secret.parameters.clone(),
        };
        assert_eq!(committed.salt, secret.salt);
        let parts = [
            b"dipylon/digest-commitment/v1\0",
            committed.salt.as_bytes(),
            &[0],
        ]
        .concat();
        let commit = |digest: &Digest| Digest::sha256(&[&parts[..], digest.as_bytes()].concat());
        assert_eq!(
            commit(&committed.digest).to_string(),
            text(vector, "commitment")
        );
        assert_eq!(record.digest, commit(&action.digest()));
    }
}

#[test]
fn keys_and_thumbprints() {
    let file = load("keys.json");
    for fixed in keys::all() {
        let entry = &file["keys"][fixed.name];
        assert_eq!(entry["private_jwk"], fixed.private_jwk);
        assert_eq!(
            text(entry, "thumbprint"),
            fixed.key.thumbprint().to_string()
        );
    }
    for vector in list(&file, "vectors") {
        let read = PublicKey::from_vector(&vector["jwk"]);
        assert_eq!(read.is_ok(), is_good(vector), "{vector}");
        if let Ok(key) = read {
            assert_eq!(
                key.thumbprint().to_string(),
                text(vector, "thumbprint"),
                "{vector}"
            );
        }
    }
}

#[test]
fn ids() {
    fn accepted<T>(result: Result<T, ParseError>) -> bool {
        result.is_ok()
    }
    let file = load("ids.json");
    for vector in list(&file, "vectors") {
        let of = |parse: &dyn Fn(&str) -> bool| parse(text(vector, "text"));
        let found = match text(vector, "kind") {
            "task_id" => of(&|t| accepted(TaskId::parse(t))),
            "access_request_id" => of(&|t| accepted(AccessRequestId::parse(t))),
            "jti" => of(&|t| accepted(TokenId::parse(t))),
            "idempotency_key" => of(&|t| accepted(IdempotencyKey::parse(t))),
            "use_id" => of(&|t| accepted(UseId::parse(t))),
            "action" => of(&|t| accepted(ActionName::parse(t))),
            "target_type" => of(&|t| accepted(Target::parse(t, "id"))),
            "target_id" => of(&|t| accepted(Target::parse("Type", t))),
            "parameter_name" => of(&|t| {
                let wire = json!({ "name": "a", "audience": "b", "target": { "type": "T", "id": "t" },
                    "parameters": [{ "name": t, "value": { "bool_value": true } }] });
                accepted(convert::action(&action_from_json(&wire)))
            }),
            "audience" => of(&|t| accepted(Audience::parse(t))),
            "spiffe_id" => of(&|t| accepted(SpiffeId::parse(t))),
            "digest" => of(&|t| accepted(Digest::parse(t))),
            "duration" => {
                let wire = &vector["duration"];
                let nanos = number(&wire["nanos"]).and_then(|nanos| i32::try_from(nanos).ok());
                accepted(convert::seconds(
                    "ttl",
                    &prost_types::Duration {
                        seconds: number(&wire["seconds"]).expect("seconds"),
                        nanos: nanos.expect("nanos"),
                    },
                ))
            }
            other => panic!("an unknown kind, {other}"),
        };
        assert_eq!(found, is_good(vector), "{vector}");
    }
}

/// The word of a refusal in `dpop_proofs.json`.
fn proof_word(error: &VerifyError) -> &'static str {
    match error {
        VerifyError::InvalidNonce => "nonce",
        VerifyError::Replayed => "replay",
        VerifyError::ProofClaim { claim, .. } => claim,
        VerifyError::Proof(error) => match error {
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
        other => panic!("not a refusal of a proof: {other}"),
    }
}

#[test]
fn proofs_for_the_broker() {
    let file = load("dpop_proofs.json");
    let nonces = Nonces::new(&[NONCE_KEY; 32]);
    let agent = keys::fixed("agent").thumbprint();
    for vector in list(&file, "broker") {
        let check = &vector["check"];
        assert_eq!(text(check, "htm"), "POST");
        let action = check["action_digest"].as_str();
        let evidence = check["evidence"].as_str();
        let used = list(check, "used_jtis")
            .iter()
            .map(|jti| jti.as_str().expect("text").to_owned());
        let used = RefCell::new(used.collect::<BTreeSet<_>>());
        let insert_once = |_: Thumbprint, jti: &str, _: Timestamp| {
            let new = used.borrow_mut().insert(jti.to_owned());
            if new {
                Ok(())
            } else {
                Err(VerifyError::Replayed)
            }
        };
        let proof = Secret::new(text(vector, "proof").to_owned());
        let input = DpopInput {
            proof: Some(&proof),
            htu: text(check, "htu"),
            action: action.map(|digest| Digest::parse(digest).expect("digest")),
            evidence: evidence.map(|evidence| Digest::sha256(evidence.as_bytes())),
            nonces: &nonces,
            insert_once: &insert_once,
        };
        match Possession::check(&input, Timestamp::from_secs(NOW)) {
            Ok(possession) => {
                assert!(is_good(vector), "accepted: {vector}");
                assert_eq!(possession.jkt(), agent);
            }
            Err(error) => {
                assert!(!is_good(vector), "refused for {error}: {vector}");
                assert_eq!(proof_word(&error), text(vector, "why"), "{error}: {vector}");
            }
        }
    }
}

#[test]
fn vote_statements() {
    let file = load("vote_statements.json");
    let voter = keys::fixed("voter");
    let shown: CardFacts =
        dipylon_sdk::model::json::parse_as(text(&file, "facts").as_bytes()).expect("facts");
    assert_eq!(shown.canonical().expect("canonical"), text(&file, "facts"));
    for vector in list(&file, "vectors") {
        let statement = text(vector, "statement");
        let challenge = Digest::tagged("dipylon/vote/v1", statement.as_bytes());
        assert_eq!(challenge.to_string(), text(vector, "challenge"), "{vector}");
        let found = match VoteStatement::parse(statement) {
            Err(_) => Err("statement"),
            Ok(stated) => {
                assert_eq!(stated.digest().expect("digest"), challenge);
                assert_eq!(stated.facts, shown.digest().expect("digest"));
                let signature = decode(text(vector, "signature"));
                let holds = voter.public().verify(challenge.as_bytes(), &signature);
                holds.then_some(()).ok_or("signature")
            }
        };
        let expected = if is_good(vector) {
            Ok(())
        } else {
            Err(text(vector, "why"))
        };
        assert_eq!(found, expected, "{vector}");
    }
}

#[test]
fn passkey_assertions() {
    let file = load("vote_statements.json");
    let party = RelyingParty {
        id: text(&file, "rp_id").to_owned(),
        origin: text(&file, "origin").to_owned(),
    };
    let key = AuthenticatorKey::from_vector(&keys::fixed("voter").public().to_jwk()).expect("key");
    for vector in list(&file, "passkeys") {
        let statement = VoteStatement::parse(text(vector, "statement")).expect("statement");
        let assertion = Assertion {
            credential: decode(text(vector, "credential_id")),
            authenticator_data: decode(text(vector, "authenticator_data")),
            client_data_json: decode(text(vector, "client_data_json")),
            signature: decode(text(vector, "signature")),
            user: None,
        };
        let challenge = statement.digest().expect("digest");
        let found =
            webauthn::verify_assertion_by(&party, challenge.as_bytes(), &key, false, &assertion);
        let found = found.map(drop).map_err(|error| match error {
            WebauthnError::Challenge => "challenge",
            WebauthnError::Origin => "origin",
            WebauthnError::RelyingParty => "rp_id",
            WebauthnError::Type => "type",
            WebauthnError::NotVerified => "user verification",
            WebauthnError::NotPresent => "user presence",
            other => panic!("{other}: {vector}"),
        });
        let expected = if is_good(vector) {
            Ok(())
        } else {
            Err(text(vector, "why"))
        };
        assert_eq!(found, expected, "{vector}");
    }
}

/// The worked examples in `docs/wire.md` are vectors.
#[test]
fn documented_examples() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/wire.md");
    let wire = std::fs::read_to_string(path).expect("docs/wire.md");
    let actions = load("action_digests.json");
    let commitments = load("commitments.json");
    let proofs = load("dpop_proofs.json");
    let (action, commitment) = (
        &list(&actions, "vectors")[0],
        &list(&commitments, "vectors")[0],
    );
    let evidence = text(&list(&proofs, "broker")[0]["check"], "evidence");
    let agent = keys::fixed("agent");
    for example in [
        text(action, "canonical"),
        text(action, "digest"),
        text(commitment, "salt"),
        text(commitment, "canonical"),
        text(commitment, "commitment"),
        evidence,
        &Digest::sha256(evidence.as_bytes()).to_string(),
        &canonical(&agent.public().to_jwk()).expect("JSON"),
        &agent.thumbprint().to_string(),
        &TaskId::from_random([5; 16]).to_string(),
    ] {
        assert!(wire.contains(example), "docs/wire.md has no {example}");
    }
}
