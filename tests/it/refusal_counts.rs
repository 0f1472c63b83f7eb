//! Refusals before authentication: one count in the journal for each minute and at the stop, by method and reason; and what
//! `explain` says about a refused call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dipylon::journal::{AppendError, FaultInjection};
use dipylon_sdk::model::*;

use crate::support::agent_in_task::GOVERNANCE;
use crate::support::raw_http::Http2;
use crate::support::served_broker::ServedBroker;
use crate::support::*;
use crate::timeline_and_search::search;

async fn counts(b: &TestBroker) -> Vec<String> {
    let page = search(b, "RefusalsCounted", None).await;
    page.events.into_iter().map(|event| event.detail).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_before_authentication_are_counted() {
    let b = TestBroker::start().await;
    let malformed = || {
        let error = ParseError::new("task_id", "is required");
        b.broker
            .malformed("dipylon.v1.TaskService/KeepAlive", &error)
    };
    let minute = 60_000;
    b.manual_clock.advance_millis(minute);
    b.broker.maintenance_tick().await.expect("ticks");
    assert!(counts(&b).await.is_empty(), "nothing when zero");
    for _ in 0..3 {
        malformed();
    }
    let no_proof = dipylon::broker::CallContext {
        proof: None,
        ..b.person_call("dipylon.v1.ApprovalService/ListAccessRequests", "maria")
    };
    let refused_before = b.broker.inbox(&no_proof, &first_inbox_page());
    let refused_before = refused_before.expect_err("no proof");
    assert_eq!(refused_before.reason, Reason::NotAuthenticated);
    b.broker.maintenance_tick().await.expect("ticks");
    assert!(counts(&b).await.is_empty(), "once a minute");
    b.manual_clock.advance_millis(minute);
    b.broker.maintenance_tick().await.expect("ticks");
    let counted = counts(&b).await;
    assert_eq!(counted.len(), 1);
    for part in [
        "4 since ",
        "3 MALFORMED by dipylon.v1.TaskService/KeepAlive",
        "1 NOT_AUTHENTICATED by dipylon.v1.ApprovalService/ListAccessRequests",
    ] {
        assert!(counted[0].contains(part), "{part}: {}", counted[0]);
    }
    b.manual_clock.advance_millis(minute);
    b.broker.maintenance_tick().await.expect("ticks");
    assert_eq!(counts(&b).await.len(), 1, "nothing when zero");

    // What is left is counted at the stop.
    let last = malformed();
    b.broker.record_final_counts().await;
    let explain = async |b: &TestBroker, id: String| {
        let call = b.person_call(&format!("{GOVERNANCE}/Explain"), "olga");
        b.broker.explain(&call, &id).await
    };
    let remembered = explain(&b, last.correlation.to_string()).await;
    let remembered = remembered.expect("remembered");
    assert!(remembered.headline.contains("MALFORMED"), "{remembered:?}");
    let b = b.restart(FaultInjection::default()).await;
    let counted = counts(&b).await;
    assert_eq!(counted.len(), 2);
    assert!(counted[0].starts_with("1 since "), "{counted:?}");
    let forgotten = explain(&b, last.correlation.to_string()).await;
    let forgotten = forgotten.expect_err("before the start");
    assert_eq!(forgotten.reason, Reason::NotFound);
    let message = &forgotten.message;
    assert!(message.contains("since its start at 20"), "{message}");
    b.check_invariants();
}

/// A key that the caller made itself, or a code that it guessed, authenticates no caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_flood_pushes_out_no_refusal_of_an_operator() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let explain = async |id: String| {
        let call = b.person_call(&format!("{GOVERNANCE}/Explain"), "olga");
        b.broker.explain(&call, &id).await
    };
    let refused_call = explain(DecisionId::from_random([7; 16]).to_string()).await;
    let refused_call = refused_call.expect_err("no such decision");

    let thief = TestAgent {
        key: b.agent("triage").key,
        ..triage.clone()
    };
    let other = TaskId::from_random([7; 16]);
    for id in [task, other, task] {
        let refusal = b.keep_alive(&thief, id).await.expect_err("not its task");
        assert_eq!(
            (refusal.reason, refusal.gives_nonce),
            (Reason::NotFound, true)
        );
    }
    let guess = Secret::new("0".repeat(20));
    let flood = 5_001;
    for _ in 0..flood {
        let begun = b.broker.begin_enrolment("console/enrol/begin", &guess);
        assert_eq!(refused(begun), Reason::InvalidInvitation);
    }
    let remembered = explain(refused_call.correlation.to_string()).await;
    assert!(remembered.is_ok(), "{remembered:?}");
    b.broker.record_final_counts().await;
    let counted = counts(&b).await.concat();
    for part in [
        "3 NOT_FOUND by dipylon.v1.TaskService/KeepAlive".to_owned(),
        format!("{flood} INVALID_INVITATION by console/enrol/begin"),
    ] {
        assert!(counted.contains(&part), "{part}: {counted}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_is_counted_once() {
    let b = TestBroker::start().await;
    let malformed = || {
        let error = ParseError::new("task_id", "is required");
        b.broker
            .malformed("dipylon.v1.TaskService/KeepAlive", &error)
    };
    malformed();
    // Maintenance is aborted while its entry is written.
    tokio::select! {
        biased;
        () = b.broker.record_final_counts() => {}
        () = std::future::ready(()) => {}
    }
    malformed();
    b.broker.record_final_counts().await;
    let counted = counts(&b).await;
    assert_eq!(counted.len(), 2, "{counted:?}");
    for count in counted {
        assert!(count.starts_with("1 since "), "{count}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_that_a_full_disk_refused_is_not_tried_at_every_tick() {
    let full = Arc::new(AtomicBool::new(true));
    let faults = FaultInjection {
        disk_full: Some(full.clone()),
        ..FaultInjection::default()
    };
    full.store(false, Ordering::SeqCst);
    let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
    let error = ParseError::new("task_id", "is required");
    b.broker
        .malformed("dipylon.v1.TaskService/KeepAlive", &error);
    full.store(true, Ordering::SeqCst);
    let minute = 60_000;
    b.manual_clock.advance_millis(minute);
    let tick = async || b.broker.maintenance_tick().await;
    assert!(matches!(tick().await, Err(AppendError::DiskFull)));
    assert!(tick().await.is_ok(), "tried again at once");
    full.store(false, Ordering::SeqCst);
    b.manual_clock.advance_millis(minute);
    tick().await.expect("ticks");
    let counted = counts(&b).await;
    assert_eq!(counted.len(), 1);
    assert!(counted[0].starts_with("1 since "), "{counted:?}");
}

/// A call that ran out of time may be an authenticated one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_are_explained_and_not_counted() {
    let s = ServedBroker::start().await;
    let mut http2 = Http2::connect(&s.url).await;
    let headers = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-timeout", "0n"),
    ];
    let path = format!("/{GOVERNANCE}/ListFreezes");
    let body = Bytes::from_static(&[0; 5]);
    let status = http2.send("POST", &path, &headers, body).await;
    let status = status.grpc_status();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    let details = tonic_types::StatusExt::get_details_error_info(&status);
    let correlation = details.expect("details").metadata["correlation"].clone();
    let olga = s.operator("olga");
    let explained = olga.explain(&correlation).await.expect("remembered");
    assert!(explained.headline.contains("DEADLINE_EXCEEDED"));
    s.broker.record_final_counts().await;
    let counted = olga.search("RefusalsCounted", None).await.expect("read");
    assert!(counted.entries.is_empty(), "{counted:?}");
}
