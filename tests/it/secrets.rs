//! Law 11: no secret is in a log, an error, a metric or an entry. The real process logs at its highest level in both
//! formats, while secrets of every kind pass through it.

use std::collections::BTreeMap;

use dipylon_sdk::client::{AgentClient, EvidenceSource, OpenTaskRequest, TokenOutcome};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::*;

use crate::support::broker_deployment::BrokerDeployment;
use crate::support::served_broker::token_request;
use crate::support::{CASES, DOMAIN, action};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secrets_in_text_logs() {
    assert_no_secret_is_logged("text").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secrets_in_json_logs() {
    assert_no_secret_is_logged("json").await;
}

async fn assert_no_secret_is_logged(form: &str) {
    let temp = tempfile::tempdir().expect("dir");
    let operators = temp.path().join("operators.sock");
    let more = format!("log = \"{form}\"\nadmin_listen = \"unix:operators.sock\"\n");
    let realm = BrokerDeployment::with_config(temp.path(), &more);
    let log = temp.path().join("broker.log");
    let file = std::fs::File::create(&log).expect("file");
    let mut broker = realm.broker_with_log(file.into(), "trace").await;
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let svid = realm
        .env
        .svid_for(&realm.url, &id, Clock::system().now(), 3_600);
    let agent = AgentClient::new(realm.endpoint(), EvidenceSource::Fixed(svid.clone()), None);
    let opening = OpenTaskRequest {
        purpose: "CANARY-purpose".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let task = agent
        .open_task(&opening)
        .await
        .expect("opens")
        .always_send_evidence();
    let words = BTreeMap::from([("text", Param::Str("CANARY-parameter".into()))]);
    let words: Vec<(&str, Param)> = words.into_iter().collect();
    let note = action("case.note", "Case", "INC-8841", CASES, &words);
    let mut ask = token_request(note, "r-1");
    ask.reason = "CANARY-reason".into();
    let Ok(TokenOutcome::Token(token)) = task.request_token(&ask).await else {
        panic!("a token")
    };
    let proof = token
        .headers("POST", "https://cases.soc.example/x")
        .expect("headers")
        .dpop;
    let validator =
        dipylon_sdk::validator::Validator::connect(dipylon_sdk::validator::ValidatorConfig::new(
            &realm.url,
            &realm.url,
            Audience::parse(CASES).expect("audience"),
            dipylon_sdk::client::Identity::Key(std::sync::Arc::new(realm.env.key_of("cases"))),
        ))
        .await
        .expect("connects");
    assert!(
        validator
            .introspect(token.jwt().expose_secret())
            .await
            .expect("may ask")
            .active
    );
    // Refused calls carry secrets too: invalid evidence, an unknown parameter.
    let bent = Secret::new(format!("{}x", svid.expose_secret()));
    let liar = AgentClient::new(realm.endpoint(), EvidenceSource::Fixed(bent), None);
    let refused = liar
        .open_task(&opening)
        .await
        .expect_err("refused")
        .to_string();
    let unknown = action(
        "case.note",
        "Case",
        "INC-8841",
        CASES,
        &[("CANARYname", Param::Str("CANARY-unknown".into()))],
    );
    let wrong = task
        .request_token(&token_request(unknown, "r-2"))
        .await
        .expect_err("refused")
        .to_string();
    task.complete(TaskOutcome::Succeeded)
        .await
        .expect("completes");
    let metrics = metrics(&operators).await;
    assert!(metrics.contains("dipylon_rpc_requests_total"), "{metrics}");
    broker.kill().await.expect("stopped");

    let log = std::fs::read_to_string(&log).expect("log");
    assert!(log.contains("refused"), "the log is not empty: {log}");
    if form == "json" {
        for line in log.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("one object a line");
        }
    }
    let mut entries = String::new();
    dipylon::journal::JournalReader::open(&temp.path().join("data"))
        .and_then(|journal| {
            journal.read_all(|stored| {
                entries.push_str(&stored.text);
                Ok(())
            })
        })
        .expect("readable");
    let key = std::fs::read_to_string(temp.path().join("keys/token-signing.pem")).expect("key");
    let body: String = key
        .lines()
        .filter(|l| !l.starts_with('-'))
        .take(1)
        .collect();
    let part = |jwt: &str, n: usize| jwt.split('.').nth(n).expect("a part").to_owned();
    let secrets = [
        part(svid.expose_secret(), 1),
        part(svid.expose_secret(), 2),
        part(token.jwt().expose_secret(), 1),
        part(token.jwt().expose_secret(), 2),
        part(proof.expose_secret(), 2),
        body,
        "CANARY-parameter".into(),
        "CANARY-unknown".into(),
        "CANARY-purpose".into(),
        "CANARY-reason".into(),
    ];
    for (place, text) in [
        ("log", &log),
        ("metrics", &metrics),
        ("entries", &entries),
        ("error", &refused),
        ("error", &wrong),
    ] {
        for secret in &secrets {
            assert!(
                !text.contains(secret.as_str()),
                "{secret} is in the {place}"
            );
        }
    }
}

async fn metrics(socket: &std::path::Path) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::UnixStream::connect(socket)
        .await
        .expect("connects");
    let ask = b"GET /metrics HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n";
    stream.write_all(ask).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}
