//! Passkeys that others than their holder can use: refused at enrolment, with the reason, and the invitation stays.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ciborium::cbor;
use ciborium::value::Value as Cbor;
use serde_json::json;

use super::{ConsoleUser, HttpBrowser, assertion_json, decode_base64url, invite, journal_size};
use crate::support::served_broker::ServedBroker;
use crate::support::software_authenticator::{PasskeyBehaviour, SoftwareAuthenticator};
use crate::support::weak_keys::{self, WeakKey};

fn cose_key(key: &WeakKey) -> Cbor {
    let part = |name: &str| Cbor::Bytes(decode_base64url(&key.jwk[name]));
    match key.jwk["kty"].as_str() {
        Some("OKP") => cbor!({ 1 => 1, 3 => -8, -1 => 6, -2 => part("x") }),
        Some("EC") => cbor!({ 1 => 2, 3 => -7, -1 => 1, -2 => part("x"), -3 => part("y") }),
        _ => cbor!({ 1 => 3, 3 => -257, -1 => part("n"), -2 => part("e") }),
    }
    .expect("a map")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weak_passkeys_are_refused_at_enrolment() {
    let s = ServedBroker::start().await;
    let browser = HttpBrowser::new(&s);
    let code = invite(&s, "maria").await;
    // Under a key of small order: R = the identity, S = 0.
    let constant = [&[1][..], &[0; 63]].concat();
    let before = journal_size(&s);
    for key in weak_keys::all() {
        let begun = browser
            .post("/console/enrol/begin", &json!({ "code": code }))
            .await
            .ok()
            .json();
        let passkey = SoftwareAuthenticator::forged(
            cose_key(&key),
            constant.clone(),
            begun["rp_id"].as_str().expect("rp id"),
            &decode_base64url(&begun["user"]),
        );
        let made = passkey.register_as(
            &decode_base64url(&begun["challenge"]),
            &browser.origin,
            &PasskeyBehaviour::default(),
        );
        let finish = json!({
            "code": code,
            "label": "a weak passkey",
            "client_data_json": URL_SAFE_NO_PAD.encode(&made.client_data_json),
            "attestation_object": URL_SAFE_NO_PAD.encode(&made.attestation_object),
        });
        let refused = browser.post("/console/enrol/finish", &finish).await;
        assert_eq!(
            refused.reason(),
            "INVALID_PASSKEY_ASSERTION",
            "{}: {}",
            key.name,
            refused.body
        );
        assert!(
            refused.body.contains(key.why),
            "{}: {}",
            key.name,
            refused.body
        );
        // Nothing of it signs in.
        let begun = browser
            .post("/console/sign-in/begin", &json!({}))
            .await
            .ok()
            .json();
        let assertion = passkey.get(&decode_base64url(&begun["challenge"]), &browser.origin);
        let entered = browser
            .post("/console/sign-in/finish", &assertion_json(&assertion))
            .await;
        assert!(entered.status >= 400, "{}: {}", key.name, entered.body);
    }
    assert_eq!(journal_size(&s), before, "nothing is half done");
    // The invitation is not used up.
    ConsoleUser::enrol_with(&s, &code, "maria").await;
}
