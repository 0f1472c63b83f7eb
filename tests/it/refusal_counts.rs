//! Refusals before authentication: one count in the journal for each minute and at the stop, by method and reason; and what
//! `explain` says about a refused call.

use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::support::agent_in_task::GOVERNANCE;
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
    let explain = |b: &TestBroker, id: String| {
        let call = b.person_call(&format!("{GOVERNANCE}/Explain"), "olga");
        b.broker.explain(&call, &id)
    };
    let remembered = explain(&b, last.correlation.to_string()).expect("remembered");
    assert!(remembered.headline.contains("MALFORMED"), "{remembered:?}");
    let b = b.restart(FaultInjection::default()).await;
    let counted = counts(&b).await;
    assert_eq!(counted.len(), 2);
    assert!(counted[0].starts_with("1 since "), "{counted:?}");
    let forgotten = explain(&b, last.correlation.to_string()).expect_err("before the start");
    assert_eq!(forgotten.reason, Reason::NotFound);
    let message = &forgotten.message;
    assert!(message.contains("since its start at 20"), "{message}");
    b.check_invariants();
}
