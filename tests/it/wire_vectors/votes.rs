//! Vectors of vote statements with their challenge, signed by a key and by a passkey.

use dipylon_sdk::model::Digest;
use serde_json::{Value, json};

use super::keys::{self, der, encode, from_der};
use super::{Former, named};

/// The facts that the card of these statements showed.
const FACTS: &str = r#"{"action":{"effect":"The account can no longer sign in.","parameters":{"end_sessions":"Also end open sessions"},"reversible":"reversible","risk":"medium","title":"Disable an account","undo":"Enable the account."},"agent":{"autonomy":"supervised","environment":"prod","model":"example-large-2"},"owner":{"id":"dana","name":"Dana Diaz"},"rules":{"destructive-needs-approval":"Security approves every action that stops something from working."},"target":{"environment":"prod","name":"Ann Archer","protected":"false"}}"#;

const STATEMENT: &str = r#"{"access_request_id":"areq_CQkJCQkJCQkJCQkJCQkJCQ","action":{"action":"account.disable","audience":"https://idp.soc.example","digest":"nz2mNwPSsX03rF7iHCBzIbnrpWci0g5SXyz-vpAAsnM","parameters":{"end_sessions":true},"target":{"id":"ann","type":"Account"}},"facts":"xE3FpATxsILpGHyK94c6rv_G3heM-gRaVnOzeAIJpfA","max_ttl":300,"nonce":"AAAAAAAAAAAAAAAAAAAAAA","not_after":1800000600,"policy":"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM","profile":{"digest":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI","name":"two-security"},"realm":"soc","requester":{"agent":{"id":"triage","owner":"dana","task":"task_BQUFBQUFBQUFBQUFBQUFBQ","task_key":"cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"}},"uses":1,"v":2,"verdict":"approve"}"#;

/// The relying party of the assertions: the console's host and origin.
const RP_ID: &str = "console.soc.example";
const ORIGIN: &str = "https://console.soc.example";

/// Vote statements with their challenge, signed by a key and by a passkey.
pub fn vote_statements(former: &Former) -> Value {
    let (voter, agent) = (keys::fixed("voter"), keys::fixed("agent"));
    let challenge = |statement: &str| Digest::tagged("dipylon/vote/v1", statement.as_bytes());
    let commented = STATEMENT.replace(r#","facts""#, r#","comment":"ok, été","facts""#);
    let denial = STATEMENT
        .replace("approve", "deny")
        .replace(r#""uses":1,"#, "");
    let recommendation = STATEMENT
        .replace(r#""requester":{"agent":{"id""#, r#""requester":{"recommendation":{"executor":"responder","executor_owner":"maria","id""#)
        .replace(r#""id":"triage","owner":"dana""#, r#""id":"assistant","owner":"olga""#);
    let shorter = STATEMENT.replace(r#""max_ttl":300"#, r#""max_ttl":600"#);
    let spaced = STATEMENT.replace(r#""v":2"#, r#""v": 2"#);
    let first_form = STATEMENT.replace(r#""v":2"#, r#""v":1"#);
    let extra = STATEMENT.replace(r#","verdict""#, r#","urgent":true,"verdict""#);
    let by_key = |name: &str, statement: &str, signed: &[u8], key, why: Option<&str>| {
        let kept = former.text("vectors", name, "signature");
        let vector = json!({
            "statement": statement,
            "challenge": challenge(statement),
            "signature": keys::signature(key, signed, kept.as_deref()),
        });
        named(vector, name, why)
    };
    let digest = challenge(STATEMENT);
    let good = |name: &str, statement: &str| {
        by_key(
            name,
            statement,
            challenge(statement).as_bytes(),
            &voter,
            None,
        )
    };
    let mut vectors = vec![
        good("an approval", STATEMENT),
        good("an approval with a comment", &commented),
        good("a denial without a limit of uses", &denial),
        good("an approval of a recommendation", &recommendation),
        by_key(
            "signed over the statement instead of the challenge",
            STATEMENT,
            STATEMENT.as_bytes(),
            &voter,
            Some("signature"),
        ),
        by_key(
            "signed by another key",
            STATEMENT,
            digest.as_bytes(),
            &agent,
            Some("signature"),
        ),
        by_key(
            "signed over another statement",
            &shorter,
            digest.as_bytes(),
            &voter,
            Some("signature"),
        ),
        by_key(
            "not canonical",
            &spaced,
            challenge(&spaced).as_bytes(),
            &voter,
            Some("statement"),
        ),
        by_key(
            "of another form",
            &first_form,
            challenge(&first_form).as_bytes(),
            &voter,
            Some("statement"),
        ),
        by_key(
            "an unknown member",
            &extra,
            challenge(&extra).as_bytes(),
            &voter,
            Some("statement"),
        ),
    ];
    let signature = keys::decode(vectors[0]["signature"].as_str().unwrap_or_default());
    let wrong = [
        ("a signature in DER", der(&signature)),
        ("a signature of 63 bytes", signature[..63].to_vec()),
        ("a signature of zeros", vec![0; 64]),
    ];
    for (name, bytes) in wrong {
        let mut vector = vectors[0].clone();
        vector["signature"] = json!(encode(&bytes));
        vectors.push(named(vector, name, Some("signature")));
    }
    json!({
        "comment": "`challenge` = b64u(SHA-256(\"dipylon/vote/v1\" 0x00 statement)). `vectors`: `signature` is ES256 (r, s) by the \
            key `voter` over the 32 bytes of the challenge; a voter's program must compute the challenge and make signatures of this \
            form, the broker refuses the bad ones. `facts` in a statement is b64u(SHA-256) of the text `facts` here: what the card \
            showed. `passkeys`: assertions (binary members as b64u) by a passkey of the key `voter`, \
            for this `rp_id` and `origin`.",
        "rp_id": RP_ID,
        "origin": ORIGIN,
        "facts": FACTS,
        "vectors": vectors,
        "passkeys": passkeys(former, digest),
    })
}

fn passkeys(former: &Former, challenge: Digest) -> Vec<Value> {
    let voter = keys::fixed("voter");
    let client_data = |challenge: Digest, origin: &str, kind: &str| {
        format!(
            r#"{{"type":"{kind}","challenge":"{challenge}","origin":"{origin}","crossOrigin":false}}"#
        )
    };
    let data = |rp_id: &str, flags: u8| {
        [
            Digest::sha256(rp_id.as_bytes()).as_bytes(),
            &[flags, 0, 0, 0, 1][..],
        ]
        .concat()
    };
    const PRESENT: u8 = 1;
    const VERIFIED: u8 = 4;
    let both = PRESENT | VERIFIED;
    let get = "webauthn.get";
    let table = [
        (
            "an approval",
            client_data(challenge, ORIGIN, get),
            data(RP_ID, both),
            None,
        ),
        (
            "another challenge",
            client_data(Digest::sha256(b"x"), ORIGIN, get),
            data(RP_ID, both),
            Some("challenge"),
        ),
        (
            "another origin",
            client_data(challenge, "https://soc.example", get),
            data(RP_ID, both),
            Some("origin"),
        ),
        (
            "another relying party",
            client_data(challenge, ORIGIN, get),
            data("soc.example", both),
            Some("rp_id"),
        ),
        (
            "a registration",
            client_data(challenge, ORIGIN, "webauthn.create"),
            data(RP_ID, both),
            Some("type"),
        ),
        (
            "no user verification",
            client_data(challenge, ORIGIN, get),
            data(RP_ID, PRESENT),
            Some("user verification"),
        ),
        (
            "no user presence",
            client_data(challenge, ORIGIN, get),
            data(RP_ID, VERIFIED),
            Some("user presence"),
        ),
    ];
    let made = table.map(|(name, client_data, data, why)| {
        let signed = [&data[..], Digest::sha256(client_data.as_bytes()).as_bytes()].concat();
        let kept = former.text("passkeys", name, "signature");
        let kept = kept
            .and_then(|text| from_der(&keys::decode(&text)))
            .map(|raw| encode(&raw));
        let raw = keys::signature(&voter, &signed, kept.as_deref());
        let vector = json!({
            "statement": STATEMENT,
            "credential_id": encode(&[7; 16]),
            "authenticator_data": encode(&data),
            "client_data_json": encode(client_data.as_bytes()),
            "signature": encode(&der(&keys::decode(&raw))),
        });
        named(vector, name, why)
    });
    made.to_vec()
}
