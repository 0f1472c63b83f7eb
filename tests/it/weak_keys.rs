//! Keys that others than their holder can sign with, at each door where a key enters: refused whole, with the reason. Passkeys:
//! in `console`; a validator's broker keys: in the SDK.

use std::sync::Arc;

use dipylon_sdk::client::{AgentClient, OpenTaskRequest};
use dipylon_sdk::model::*;
use serde_json::json;

use crate::support::cli_deployment::CliDeployment;
use crate::support::served_broker::ServedBroker;
use crate::support::weak_keys;
use crate::wire_vectors::keys;

#[test]
fn weak_keys_of_people_are_refused() {
    let site = CliDeployment::new();
    let people = &site.env.policy["people.toml"];
    for key in weak_keys::p256() {
        let entry = format!(
            "\n[[key]]\nof = \"maria\"\njwk = {{ kty = \"EC\", crv = \"P-256\", x = {}, y = {} }}\n",
            key.jwk["x"], key.jwk["y"]
        );
        site.write("policy/people.toml", &(people.clone() + &entry));
        let (code, error, _) = site.run(&["policy", "check", "policy"]);
        assert_eq!(code, 1, "{}: {error}", key.name);
        assert!(
            error.contains("people.toml") && error.contains(key.why),
            "{}: {error}",
            key.name
        );
    }
    site.write("policy/people.toml", people);
    let (code, error, _) = site.run(&["policy", "check", "policy"]);
    assert_eq!(code, 0, "{error}");
}

/// At the first start nothing is written; at a later one the bundle in force stays.
#[test]
fn weak_keys_of_trust_bundles_are_refused() {
    let site = CliDeployment::new();
    let good = site.env.trust_bundle();
    let start = || site.run(&["serve", "--config", "dipylon.toml", "--stop-with-stdin"]);
    for later in [false, true] {
        for key in weak_keys::p256().into_iter().chain([weak_keys::rsa()]) {
            let mut set: serde_json::Value = serde_json::from_str(&good).expect("JSON");
            let mut entry = key.jwk;
            entry["kid"] = json!("weak");
            entry["use"] = json!("jwt-svid");
            set["keys"].as_array_mut().expect("an array").push(entry);
            site.write("trust.json", &set.to_string());
            let (checked, out, _) = site.run(&["config", "check", "dipylon.toml"]);
            let (started, _, error) = start();
            assert_eq!((checked, started), (1, 1), "{}: {out}{error}", key.name);
            assert!(
                out.contains(key.why) && error.contains(key.why),
                "{} (later: {later}): {out}{error}",
                key.name
            );
        }
        site.write("trust.json", &good);
        let (started, _, error) = start();
        assert_eq!(started, 0, "{error}");
        let (checked, out, _) = site.run(&["config", "check", "dipylon.toml"]);
        assert!(
            checked == 0 && out.contains("belongs to this configuration"),
            "{out}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_key_opens_no_task() {
    let s = ServedBroker::start().await;
    let opening = OpenTaskRequest {
        purpose: "contain".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    for fixed in keys::all() {
        let agent = AgentClient::new(
            s.endpoint(),
            s.evidence("triage"),
            Some(Arc::new(fixed.key)),
        );
        let refused = agent.open_task(&opening).await.expect_err(fixed.source);
        assert_eq!(
            refused.reason(),
            Some(Reason::NotAuthenticated),
            "{}: {refused}",
            fixed.source
        );
    }
    let agent = AgentClient::new(s.endpoint(), s.evidence("triage"), None);
    agent.open_task(&opening).await.expect("opens");
}
