//! Heartbeats (KeepAlive): a task with a missed heartbeat ends, and lease extensions are throttled and batched.

use std::sync::Arc;

use dipylon_sdk::model::*;

use crate::support::invariants;
use crate::support::{ExpectReply as _, IDP, TestBroker, disable, read_case, refused};

fn entries(b: &TestBroker) -> u64 {
    b.broker.show().position().1
}

#[tokio::test]
async fn missed_heartbeat_ends_task_and_tokens() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let opened = b
        .open_task_with(&agent, "work", "r", Some(30))
        .await
        .expect("opens");
    let task = opened.task.task;
    let first = opened.lease_until.expect("a lease");
    assert_eq!(first, b.now().plus_secs(30));
    let token = b
        .request_token(&agent, task, &read_case(), 300, "t")
        .await
        .token();

    b.manual_clock.advance_millis(29_000);
    assert!(b.introspect("cases", &token.token).await, "active");
    b.manual_clock.advance_millis(1_000);
    // Derived from the lease, before any timer writes an entry.
    assert!(
        !b.introspect("cases", &token.token).await,
        "a missed heartbeat ends it"
    );
    let ask = b.request_token(&agent, task, &read_case(), 300, "t2").await;
    assert_eq!(refused(ask), Reason::TaskEnded);
    assert_eq!(
        refused(b.keep_alive(&agent, task).await),
        Reason::TaskEnded,
        "final"
    );

    b.broker.maintenance_tick().await.expect("written");
    let ended = b
        .broker
        .show()
        .task(&task)
        .expect("known")
        .ended
        .expect("ended");
    assert_eq!(ended.cause, EndCause::Lease);
    b.check_invariants();
}

#[tokio::test]
async fn lease_extensions_are_throttled() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b
        .open_task_with(&agent, "work", "r", Some(60))
        .await
        .expect("opens")
        .task
        .task;
    let first = b.keep_alive(&agent, task).await.expect("alive");
    let before = entries(&b);
    b.manual_clock.advance_millis(30_000);
    assert_eq!(
        b.keep_alive(&agent, task).await.expect("alive"),
        first,
        "half of the lease is left"
    );
    assert_eq!(entries(&b), before, "no entry was written");
    b.manual_clock.advance_millis(1_000);
    let next = b.keep_alive(&agent, task).await.expect("alive");
    assert_eq!(next, b.now().plus_secs(60));
    assert_eq!(entries(&b), before + 1);
    b.manual_clock.advance_millis(59_000);
    b.broker.maintenance_tick().await.expect("upkeep");
    assert!(
        b.broker.show().task(&task).expect("known").ended.is_none(),
        "it was kept alive"
    );
    b.check_invariants();
}

#[tokio::test]
async fn lease_extensions_are_batched() {
    let b = Arc::new(TestBroker::start().await);
    let agent = Arc::new(b.agent("triage"));
    let mut tasks = Vec::new();
    for i in 0..20 {
        let opened = b
            .open_task_with(&agent, "work", &format!("r{i}"), Some(60))
            .await;
        tasks.push(opened.expect("opens").task.task);
    }
    b.manual_clock.advance_millis(31_000);
    // One of them ends meanwhile: the others are unaffected.
    b.complete_task(&agent, tasks[7]).await.expect("ends");
    let before = entries(&b);
    let calls: Vec<_> = tasks
        .iter()
        .map(|task| {
            let (b, agent, task) = (b.clone(), agent.clone(), *task);
            tokio::spawn(async move { b.keep_alive(&agent, task).await })
        })
        .collect();
    let mut alive = 0;
    for (call, task) in calls.into_iter().zip(&tasks) {
        match call.await.expect("no panic") {
            Ok(until) => {
                alive += 1;
                assert_eq!(until, b.now().plus_secs(60));
            }
            Err(refusal) => {
                assert_eq!((refusal.reason, *task), (Reason::TaskEnded, tasks[7]));
            }
        }
    }
    assert_eq!(alive, 19);
    // The calls may form a few batches, never one each.
    assert!(
        entries(&b) - before < 10,
        "{} entries",
        entries(&b) - before
    );
    b.check_invariants();
}

#[tokio::test]
async fn lease_survives_restart_and_is_capped_by_deadline() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let opened = b
        .open_task_with(&agent, "work", "r", Some(3_000))
        .await
        .expect("opens");
    let task = opened.task.task;
    b.manual_clock.advance_millis(1_600_000);
    let until = b.keep_alive(&agent, task).await.expect("alive");
    assert_eq!(until, opened.task.deadline, "never beyond the deadline");
    let b = b.restart(dipylon::journal::FaultInjection::default()).await;
    let lease = b
        .broker
        .show()
        .task(&task)
        .expect("known")
        .lease
        .expect("a lease");
    assert_eq!(lease.until, until);
    b.check_invariants();
}

#[tokio::test]
async fn invalid_heartbeats_are_rejected() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    for seconds in [i64::MIN, -1, 0, 1, 3_601, i64::MAX] {
        let opened = b.open_task_with(&agent, "work", "r", Some(seconds)).await;
        assert_eq!(refused(opened), Reason::InvalidTtl, "{seconds}");
    }
    let task = b.open_task(&agent).await;
    assert_eq!(
        refused(b.keep_alive(&agent, task).await),
        Reason::Malformed,
        "it has no lease"
    );
    // Another agent's task is answered like an unknown task.
    let other = b.agent("triage");
    assert_eq!(refused(b.keep_alive(&other, task).await), Reason::NotFound);
    // The same idempotency key with another heartbeat is another request.
    let again = b
        .open_task_with(&agent, "contain INC-8841", "open-1", Some(30))
        .await;
    assert_eq!(refused(again), Reason::IdempotencyKeyReused);
}

#[tokio::test]
async fn step_up_after_missed_heartbeat_is_not_granted() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b
        .open_task_with(&agent, "work", "r", Some(10))
        .await
        .expect("opens")
        .task
        .task;
    let pending = b
        .request_token(&agent, task, &disable("ann"), 120, "t")
        .await
        .pending();
    b.approve("maria", pending.access_request, "one-security")
        .await;
    b.manual_clock.advance_millis(10_000);
    let ask = b
        .request_token(&agent, task, &disable("ann"), 120, "t")
        .await;
    assert_eq!(refused(ask), Reason::TaskEnded);
    assert_eq!(IDP, disable("ann").audience.as_str());
    b.check_invariants();
    let found = invariants::check(&b.dir);
    assert!(found.tokens.is_empty());
}

#[tokio::test]
async fn a_task_ended_when_its_refusals_say_it_did() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let opened = b.open_task_with(&agent, "work", "r", Some(10)).await;
    let task = opened.expect("opens").task.task;
    let lapse = b.now().plus_secs(10);
    b.manual_clock.advance_millis(12_000);
    // Before the entry of the end, and after it.
    for _ in 0..2 {
        let call = b.call("dipylon.v1.TaskService/GetTask", &agent.key, None, None);
        let view = b.broker.get_task(&call, task).expect("its own task");
        assert_eq!(
            (view.end_cause, view.ended_at),
            (Some(EndCause::Lease), Some(lapse))
        );
        let refusal = b.keep_alive(&agent, task).await.expect_err("ended");
        assert_eq!(
            refusal.message,
            format!("the task ended at {lapse}: a heartbeat was missed")
        );
        b.broker.maintenance_tick().await.expect("upkeep");
    }
    assert!(b.broker.show().task(&task).expect("known").ended.is_some());
}
