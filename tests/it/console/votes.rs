//! Console votes: a passkey assertion for one statement, dwell time, quorum, and the policy that a card names.

use dipylon_sdk::client::TokenOutcome;
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::*;
use serde_json::json;

use super::{ConsoleUser, decode_base64url, operator_call, pending};
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::software_authenticator::PasskeyBehaviour;
use crate::support::wait::in_time;
use crate::support::{IDP, TestEnvironment, action, disable};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passkey_vote_end_to_end() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let (maria, lee) = (
        ConsoleUser::sign_in(&s, "maria").await,
        ConsoleUser::sign_in(&s, "lee").await,
    );
    let dana = ConsoleUser::sign_in(&s, "dana").await;

    let id = pending(&task, disable("ann"), "r-1").await;
    let inbox = maria.browser.get("/console").await.ok();
    assert!(
        inbox.body.contains(&format!("data-request=\"{id}\"")),
        "{}",
        inbox.body
    );
    let card = maria
        .browser
        .get(&format!("/console/requests/{id}"))
        .await
        .ok();
    let (deny, approve) = (
        card.body.find(" id=\"deny\""),
        card.body.find(" id=\"approve\""),
    );
    assert!(
        deny.expect("deny") < approve.expect("approve"),
        "deny before approve"
    );
    assert!(!card.body.contains("autofocus"));
    let owners = dana
        .browser
        .get(&format!("/console/requests/{id}"))
        .await
        .ok();
    assert!(owners.has("not-eligible") && !owners.has("approve") && !owners.has("deny"));
    let refused = dana
        .begin_vote(
            id,
            json!({ "profile": "one-security", "verdict": "approve" }),
        )
        .await;
    assert_eq!(
        (refused.status, refused.reason().as_str()),
        (403, "NOT_ELIGIBLE")
    );

    let narrowed = json!({ "profile": "one-security", "verdict": "approve", "max_ttl": 60 });
    let cast = maria.vote(id, narrowed).await.ok();
    assert_eq!(cast.json()["status"], "approved");
    let token = match task
        .request_token(&token_request(disable("ann"), "r-1"))
        .await
    {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    };
    let left = token.expires_at().since(Clock::system().now());
    assert!((1..=60_000).contains(&left), "narrowed: {left} ms");
    let late = lee
        .begin_vote(id, json!({ "profile": "one-security", "verdict": "deny" }))
        .await;
    assert_eq!(
        (late.status, late.reason().as_str()),
        (409, "ACCESS_REQUEST_CLOSED")
    );
    let closed_card = lee
        .browser
        .get(&format!("/console/requests/{id}"))
        .await
        .ok();
    assert!(closed_card.body.contains("data-status=\"consumed\"") && !closed_card.has("approve"));

    let id = pending(&task, disable("cara"), "r-2").await;
    let denial = json!({ "profile": "one-security", "verdict": "deny", "comment": "not Cara" });
    assert_eq!(
        lee.vote(id, denial).await.ok().json()["status"],
        json!("denied")
    );
    let bidi = json!({ "profile": "one-security", "verdict": "deny", "comment": "a\u{202e}b" });
    assert_eq!(maria.begin_vote(id, bidi).await.reason(), "MALFORMED");
    let seen = s.broker.show().access_request(&id).expect("known");
    let statement = seen.votes[0].statement.as_deref().expect("kept");
    let statement = VoteStatement::parse(statement).expect("statement");
    assert_eq!(statement.comment.expect("a comment").as_str(), "not Cara");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_in_assertion_is_not_a_vote() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let (maria, lee) = (
        ConsoleUser::sign_in(&s, "maria").await,
        ConsoleUser::sign_in(&s, "lee").await,
    );
    let id = pending(&task, disable("ann"), "r-1").await;
    let origin = &maria.browser.origin;
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    let begin = async || maria.begin_vote(id, ask.clone()).await.ok().json();

    // A valid assertion of another ceremony.
    let begun = begin().await;
    let signed_in = maria.passkey.get(&maria.challenge().await, origin);
    let cast = maria.cast_vote(id, &begun, &signed_in).await;
    assert_eq!(
        (cast.status, cast.reason().as_str()),
        (403, "INVALID_PASSKEY_ASSERTION")
    );
    // The statement is consumed by the attempt.
    let good = maria
        .passkey
        .get(&decode_base64url(&begun["challenge"]), origin);
    let cast = maria.cast_vote(id, &begun, &good).await;
    assert_eq!(
        (cast.status, cast.reason().as_str()),
        (409, "VOTE_STATEMENT_EXPIRED")
    );
    // An assertion over the previous statement.
    let begun = begin().await;
    assert_eq!(
        maria.cast_vote(id, &begun, &good).await.reason(),
        "INVALID_PASSKEY_ASSERTION"
    );
    // Without user verification, from another origin, in a frame, with a colleague's passkey.
    let behaviour = |change: fn(&mut PasskeyBehaviour)| {
        let mut behaviour = PasskeyBehaviour::default();
        change(&mut behaviour);
        behaviour
    };
    for (what, bad) in [
        ("no verification", behaviour(|m| m.verified = false)),
        ("no presence", behaviour(|m| m.present = false)),
        (
            "another origin",
            behaviour(|m| m.origin = Some("http://localhost:1".to_owned())),
        ),
        (
            "another type",
            behaviour(|m| m.kind = Some("webauthn.create")),
        ),
        ("a frame", behaviour(|m| m.cross_origin = Some(json!(true)))),
        (
            "another relying party",
            behaviour(|m| m.rp_id = Some("evil.example".to_owned())),
        ),
    ] {
        let begun = begin().await;
        let answer = maria
            .passkey
            .get_as(&decode_base64url(&begun["challenge"]), origin, &bad);
        let cast = maria.cast_vote(id, &begun, &answer).await;
        assert_eq!(
            (cast.status, cast.reason().as_str()),
            (403, "INVALID_PASSKEY_ASSERTION"),
            "{what}"
        );
    }
    let begun = begin().await;
    let lees = lee
        .passkey
        .get(&decode_base64url(&begun["challenge"]), origin);
    assert_eq!(
        maria.cast_vote(id, &begun, &lees).await.reason(),
        "INVALID_PASSKEY_ASSERTION"
    );
    // A statement is bound to its voter.
    assert_eq!(
        lee.cast_vote(id, &begin().await, &lees).await.reason(),
        "VOTE_STATEMENT_EXPIRED"
    );
    // A click without any assertion.
    let begun = begin().await;
    let path = format!("/console/requests/{id}/vote/cast");
    let cast = maria
        .browser
        .post(&path, &json!({ "statement": begun["statement"] }))
        .await;
    assert_eq!((cast.status, cast.reason().as_str()), (400, "MALFORMED"));
    let seen = s.broker.show().access_request(&id).expect("known");
    assert!(seen.votes.is_empty(), "none of these was a vote");
    assert_eq!(
        maria.vote(id, ask.clone()).await.ok().json()["status"],
        "approved"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn high_risk_card_dwell_time_and_quorum() {
    let mut env = TestEnvironment::with_high_risk();
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace("dwell = \"off\"", "dwell = \"3s\"");
    let s = ServedBroker::start_in(env).await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let lee = ConsoleUser::sign_in(&s, "lee").await;
    let task = s.task("triage").await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let id = pending(&task, isolate.clone(), "r-1").await;
    let (policy, facts) = (lee.policy(id).await, lee.facts(id).await);
    let ask = json!({ "profile": "two-security", "verdict": "approve", "policy": policy, "facts": facts });
    let dwell = |page: &str| -> u64 {
        let (_, rest) = page.split_once("data-dwell=\"").expect("a ballot");
        let (ms, _) = rest.split_once('"').expect("a number");
        ms.parse().expect("a number")
    };
    let unread = maria.begin_vote(id, ask.clone()).await;
    assert_eq!(
        (unread.status, unread.reason().as_str()),
        (409, "DWELL_REQUIRED")
    );
    let path = format!("/console/requests/{id}");
    for user in [&maria, &lee] {
        let page = user.browser.get(&path).await.ok().body;
        assert!(
            page.contains("data-risk=\"high\"") && page.contains("HIGH RISK"),
            "{page}"
        );
        assert!((1..=3_000).contains(&dwell(&page)), "{page}");
    }
    let mut status = String::new();
    for user in [&maria, &lee] {
        let cast = in_time("an approval after the dwell time", async {
            loop {
                let begun = user.begin_vote(id, ask.clone()).await;
                if begun.status == 200 {
                    let begun = begun.json();
                    let challenge = decode_base64url(&begun["challenge"]);
                    let answer = user.passkey.get(&challenge, &user.browser.origin);
                    return user.cast_vote(id, &begun, &answer).await.ok();
                }
                assert_eq!(begun.reason(), "DWELL_REQUIRED");
                assert!(begun.header("retry-after").is_some(), "a retry delay");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        })
        .await;
        status.push_str(cast.json()["status"].as_str().expect("a status"));
        status.push(' ');
    }
    assert_eq!(status, "waiting approved ");
    let page = maria.browser.get(&path).await.ok();
    assert!(page.body.contains("data-status=\"approved\"") && !page.has("approve"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vote_names_the_policy_of_its_card() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let id = pending(&task, disable("ann"), "r-1").await;
    let (policy, facts) = (maria.policy(id).await, maria.facts(id).await);
    let page = maria.browser.get(&format!("/console/requests/{id}")).await;
    assert!(page.body.contains(&format!("data-policy=\"{policy}\"")));
    let path = format!("/console/requests/{id}/vote/begin");
    for ask in [
        json!({ "profile": "one-security", "verdict": "approve" }),
        json!({ "profile": "one-security", "verdict": "approve", "policy": policy }),
        json!({ "profile": "one-security", "verdict": "approve", "policy": policy, "facts": "those" }),
        json!({ "profile": "one-security", "verdict": "approve", "policy": null, "facts": facts }),
        json!({ "profile": "one-security", "verdict": "approve", "policy": "the last one", "facts": facts }),
    ] {
        let begun = maria.browser.post(&path, &ask).await;
        assert_eq!(
            (begun.status, begun.reason().as_str()),
            (400, "MALFORMED"),
            "{ask}"
        );
    }
    let other = Digest::sha256(b"another card").to_string();
    let ask = |facts: &str| json!({ "profile": "one-security", "verdict": "approve", "policy": policy, "facts": facts });
    let begun = maria.begin_vote(id, ask(&other)).await;
    assert_eq!(
        (begun.status, begun.reason().as_str()),
        (409, "APPROVAL_VOID")
    );
    let ask = ask(&facts);
    maria.begin_vote(id, ask.clone()).await.ok();
    let files = s.env.policy_with("schema.cedarschema", |text| {
        text.replace(
            "The account can no longer sign in.",
            "The account and its mailbox are gone.",
        )
    });
    let call = operator_call(&s, "dipylon.v1.GovernanceService/ApplyPolicyBundle");
    let operator = s.broker.authenticate_person(&call).expect("an operator");
    let applied = s
        .broker
        .apply_policy_bundle(&call, operator, files, Default::default(), None)
        .await;
    applied.expect("applied");
    let stale = maria.begin_vote(id, ask).await;
    assert_eq!(
        (stale.status, stale.reason().as_str()),
        (409, "POLICY_CHANGED")
    );
    // The card fetched again names the new policy, and may be voted on.
    assert_ne!(maria.policy(id).await, policy);
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    maria.vote(id, ask).await.ok();
}
