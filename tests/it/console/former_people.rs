//! Pages of a person who is dropped, or loses a role: every request of an open session is refused and its event stream ends, also where
//! the person returns at once. A key that is or was somebody's is enrolled by no page.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::{
    ConsoleUser, HttpBrowser, decode_base64url, invite, journal_size, open_event_stream, pending,
};
use crate::support::disable;
use crate::support::own_key::OwnKey;
use crate::support::served_broker::ServedBroker;
use crate::support::software_authenticator::PasskeyBehaviour;
use crate::support::wait::in_time;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_former_person_end() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let id = pending(&task, disable("ann"), "r-1").await;
    let operator = s.operator("olga");
    let without = |is_dropped: bool| match is_dropped {
        true => s.env.without_person("lee"),
        false => s.env.without_role("lee"),
    };
    let lee = [dipylon_sdk::model::PersonId::parse("lee").expect("id")];
    let mut user = ConsoleUser::sign_in(&s, "lee").await;
    for is_dropped in [true, false] {
        let old = user.browser.clone();
        let mut stream = open_event_stream(&old).await;
        let gone = operator.apply_policy_bundle(&without(is_dropped)).await;
        let words = gone.expect("in force").people.concat();
        assert!(words.contains("1 passkey, 1 session end"), "{words}");
        // At once: what the stream rests on is the session, not the passkey that lives again.
        let back = operator.apply_policy_bundle_returning(&s.env.policy, &lee, None);
        let words = back.await.expect("in force").people.concat();
        assert!(
            words.starts_with("lee returns: 1 passkey and registered keys count again"),
            "{words}"
        );
        let mut rest = Vec::new();
        in_time("the end of the stream", stream.read_to_end(&mut rest))
            .await
            .expect("ended");
        for path in ["/console/events", "/console/fragment/inbox"] {
            let answer = old.get(path).await;
            assert_eq!(
                (answer.status, answer.reason().as_str()),
                (401, "NOT_AUTHENTICATED"),
                "{path}"
            );
        }
        assert_eq!(old.get("/console").await.status, 303);
        let ask = json!({ "profile": "one-security", "verdict": "approve", "policy": "sha256:none", "facts": "sha256:none" });
        let vote = old
            .post(&format!("/console/requests/{id}/vote/begin"), &ask)
            .await;
        assert_eq!(vote.status, 401, "{}", vote.body);
        // The passkey returned, and signs in anew.
        user.browser.cookie = None;
        let cookie = user.new_session().await;
        user.browser.cookie = Some(cookie);
        assert_eq!(user.browser.get("/console").await.status, 200);
    }
    operator
        .apply_policy_bundle(&without(true))
        .await
        .expect("in force");
    user.browser.cookie = None;
    let assertion = user
        .passkey
        .get(&user.challenge().await, &user.browser.origin);
    let refused = user
        .browser
        .post(
            "/console/sign-in/finish",
            &super::assertion_json(&assertion),
        )
        .await;
    assert_eq!(refused.status, 401, "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_of_another_holder_is_not_enrolled() {
    let s = ServedBroker::start().await;
    let browser = HttpBrowser::new(&s);
    let code = invite(&s, "maria").await;
    let before = journal_size(&s);
    // Also the person's own key of the bundle: it would be a passkey without an authenticator.
    for of in ["lee", "idp", "audit", "maria"] {
        let key = s.env.own_key(of);
        let negated = key.negated();
        for key in [&key, &negated] {
            let refused = enrol(&browser, &code, key).await;
            assert_eq!(refused.reason(), "INVALID_PASSKEY_ASSERTION", "{of}");
            assert!(
                refused.body.contains("had a holder already"),
                "{}",
                refused.body
            );
        }
    }
    assert_eq!(journal_size(&s), before, "nothing is half done");
    enrol(&browser, &code, &OwnKey::generate()).await.ok();
}

async fn enrol(browser: &HttpBrowser, code: &str, key: &OwnKey) -> super::HttpResponse {
    let begun = browser
        .post("/console/enrol/begin", &json!({ "code": code }))
        .await
        .ok()
        .json();
    let rp_id = begun["rp_id"].as_str().expect("rp id");
    let passkey = key.passkey(rp_id, &decode_base64url(&begun["user"]));
    let challenge = decode_base64url(&begun["challenge"]);
    let made = passkey.register_as(&challenge, &browser.origin, &PasskeyBehaviour::default());
    let finish = json!({
        "code": code,
        "label": "a passkey",
        "client_data_json": URL_SAFE_NO_PAD.encode(&made.client_data_json),
        "attestation_object": URL_SAFE_NO_PAD.encode(&made.attestation_object),
    });
    browser.post("/console/enrol/finish", &finish).await
}
