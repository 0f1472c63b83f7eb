//! Waiting for approvers: few calls, evidence when it is required, and one exit code for a wait that ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dipylon_sdk::client::{AgentClient, EvidenceSource, OpenTaskRequest, TokenOutcome};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::Verdict;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::setup::{CliSetup, DISABLE, text};
use crate::exec::setup::decide;
use crate::support::disable;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::wait::until;

/// Whether the broker has an open stream of an access request.
fn is_watched(served: &ServedBroker) -> bool {
    let metrics = served.broker.read_metrics();
    metrics.contains("dipylon_open_streams{kind=\"access_request\"} 1\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_fetches_evidence_once() {
    let served = ServedBroker::start().await;
    let fetched = Arc::new(AtomicUsize::new(0));
    let evidence = {
        let (fetched, svid) = (fetched.clone(), served.evidence("triage"));
        let EvidenceSource::Fn(svid) = svid else {
            panic!("evidence of a function")
        };
        EvidenceSource::Fn(Arc::new(move || {
            fetched.fetch_add(1, Ordering::Relaxed);
            svid()
        }))
    };
    let opening = OpenTaskRequest {
        purpose: "contain".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let agent = AgentClient::new(served.endpoint(), evidence, None);
    let task = agent.open_task(&opening).await.expect("opens");
    let task = task.always_send_evidence();
    fetched.store(0, Ordering::Relaxed);
    let waiting = tokio::spawn(async move {
        let until = Clock::system().now().plus_secs(120);
        task.wait_for_token(&token_request(disable("ann"), "r-1"), until)
            .await
    });
    // It follows the access request instead of asking again and again.
    until("a stream", || is_watched(&served)).await;
    assert_eq!(fetched.load(Ordering::Relaxed), 1);
    decide(&served.approver("maria"), Verdict::Approve).await;
    let outcome = waiting.await.expect("joins");
    assert!(matches!(outcome, Ok(TokenOutcome::Token(_))), "{outcome:?}");
    assert_eq!(
        fetched.load(Ordering::Relaxed),
        1,
        "the broker required no more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_without_a_duration_ends_with_the_access_request() {
    let setup = CliSetup::start().await;
    let task = setup.open_task("triage").await;
    let request = [&["token", "request"], &DISABLE[..]].concat();
    let pending = setup.json(&request, 11).await;
    let id = text(&pending["access_request"]);
    let wait = [&request[..], &["--evidence", "triage", "--wait"]].concat();
    let mut program = setup.program(&wait);
    program
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = program.spawn().expect("runs");
    let mut stderr = BufReader::new(child.stderr.take().expect("stderr")).lines();
    let note = stderr.next_line().await.expect("text").expect("a line");
    let expires = text(&pending["expires_at"]);
    // The profile's fifteen minutes, not the ten of a default.
    let minutes = expires.rsplit_once(':').expect("a time").0;
    assert!(
        note.contains(&format!("waiting until {minutes}")),
        "{note}: {expires}"
    );
    until("a stream", || is_watched(&setup.served)).await;
    let approve = [
        "approve",
        &id,
        "--yes",
        "--realm",
        "test",
        "--key",
        "maria.pem",
    ];
    setup.run(&approve).await.code(0);
    let ended = child.wait_with_output().await.expect("ends");
    assert!(ended.status.success());
    let timeline = ["task", "timeline", &task, "--key", "olga.pem"];
    let timeline = setup.json(&timeline, 0).await.to_string();
    assert!(timeline.contains(&id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_ends_has_its_own_exit_code() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    let request = [&["token", "request"], &DISABLE[..]].concat();
    setup.json(&request, 11).await;
    let waited = setup
        .json(&[&request[..], &["--wait", "1s"]].concat(), 12)
        .await;
    assert_eq!(waited["outcome"], "pending");
}
