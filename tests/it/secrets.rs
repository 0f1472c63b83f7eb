//! Law 11: no secret is in a log, an error, a figure or an entry. The real process, logging everything it can in either
//! form, while secrets of every kind pass through it.

use std::collections::BTreeMap;

use dipylon::client::{AgentClient, EvidenceSource, OpenTaskRequest, TokenOutcome};
use dipylon::clock::Clock;
use dipylon::model::*;

use super::harness::{CASES, DOMAIN, action};
use super::kill::Realm;
use super::served::order;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_told() {
    told("text").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_told_to_machines() {
    told("json").await;
}

async fn told(form: &str) {
    let temp = tempfile::tempdir().expect("dir");
    let operators = temp.path().join("operators.sock");
    let more = format!("log = \"{form}\"\noperator_listen = \"unix:operators.sock\"\n");
    let realm = Realm::with(temp.path(), &more);
    let log = temp.path().join("broker.log");
    let file = std::fs::File::create(&log).expect("file");
    let mut broker = realm.broker_telling(file.into(), "trace").await;
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let svid = realm
        .world
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
    let mut ask = order(note, "r-1");
    ask.reason = "CANARY-reason".into();
    let Ok(TokenOutcome::Token(token)) = task.request_token(&ask).await else {
        panic!("a token")
    };
    let proof = token
        .headers("POST", "https://cases.soc.example/x")
        .expect("headers")
        .dpop;
    let validator =
        dipylon::validator::Validator::connect(dipylon::validator::ValidatorConfig::new(
            &realm.url,
            &realm.url,
            Audience::parse(CASES).expect("audience"),
            dipylon::client::Identity::Key(std::sync::Arc::new(realm.world.key_of("cases"))),
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
    // Refused calls carry secrets too: evidence that does not hold, a parameter that is not known.
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
        .request_token(&order(unknown, "r-2"))
        .await
        .expect_err("refused")
        .to_string();
    task.complete(TaskOutcome::Succeeded)
        .await
        .expect("completes");
    let figures = figures(&operators).await;
    assert!(figures.contains("dipylon_calls_total"), "{figures}");
    broker.kill().await.expect("stopped");

    let log = std::fs::read_to_string(&log).expect("log");
    assert!(log.contains("refused"), "the log tells something: {log}");
    if form == "json" {
        for line in log.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("one object a line");
        }
    }
    let mut entries = String::new();
    dipylon::journal::ReadOnly::open(&temp.path().join("data"))
        .and_then(|journal| {
            journal.all(|stored| {
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
        ("figures", &figures),
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

async fn figures(socket: &std::path::Path) -> String {
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
