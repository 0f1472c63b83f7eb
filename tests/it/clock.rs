//! Clock jumps: no mint while the time is unreliable, and no token that ended becomes active again.

use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::*;

use crate::support::{DOMAIN, ExpectReply as _, START, TestBroker, disable, read_case, refused};

#[tokio::test]
async fn clock_jump_blocks_mint_not_revocation() {
    for jump in [3_600_000_i64, -3_600_000] {
        let b = TestBroker::start().await;
        let agent = b.agent("triage");
        let task = b.open_task(&agent).await;
        let token = b
            .request_token(&agent, task, &read_case(), 200, "t")
            .await
            .token();
        let other = b
            .try_open_task(&agent, "other", "open-2")
            .await
            .expect("opens")
            .task
            .task;
        b.broker.maintenance_tick().await.expect("upkeep");

        b.manual_clock.step_millis(jump);
        if jump < 0 {
            // Introspection still works, by the latest time observed.
            assert!(b.introspect("cases", &token.token).await, "{jump}");
            let ask = b.request_token(&agent, task, &read_case(), 60, "t-2").await;
            assert_eq!(refused(ask), Reason::ClockUnreliable, "{jump}");
            let again = b.request_token(&agent, task, &read_case(), 200, "t").await;
            assert_eq!(
                refused(again),
                Reason::ClockUnreliable,
                "{jump}: no reissue either"
            );
        } else {
            assert!(
                !b.introspect("cases", &token.token).await,
                "{jump}: the later of two times counts"
            );
        }
        if jump < 0 {
            // Task ends, revocation and freezes do not depend on the clock.
            b.revoke(token.issued.jti).await.expect("revokes");
            assert!(!b.introspect("cases", &token.token).await);
            b.complete_task(&agent, other).await.expect("ends");
            b.freeze("action/account.disable").await.expect("freezes");
            b.unfreeze("action/account.disable").await.expect("lifts");
            // A reverted jump recovers at once.
            b.manual_clock.step_millis(-jump);
            b.request_token(&agent, task, &read_case(), 60, "t-3")
                .await
                .token();
        } else {
            let open = b.try_open_task(&agent, "x", "open-3").await;
            assert_eq!(refused(open), Reason::ClockUnreliable, "{jump}");
            // Steady for a minute: the new time is accepted.
            b.manual_clock.advance_millis(59_000);
            let open = b.try_open_task(&agent, "x", "open-3").await;
            assert_eq!(refused(open), Reason::ClockUnreliable, "{jump}");
            b.manual_clock.advance_millis(1_000);
            b.try_open_task(&agent, "x", "open-3").await.expect("opens");
        }
        b.check_invariants();
    }
}

/// The wall clock jumps ahead, is seen there, and is put right: what has ended by then has ended, also for its entry.
#[tokio::test]
async fn ends_do_not_depend_on_the_clock() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let mut tasks = Vec::new();
    for key in ["maintenance", "agent", "operator"] {
        let opened = b.open_task_with(&agent, "work", key, Some(60)).await;
        tasks.push(opened.expect("opens").task.task);
    }
    let lasting = b.open_task(&agent).await;
    let ask = b
        .request_token(&agent, lasting, &disable("ann"), 120, "ask")
        .await;
    let request = ask.pending().access_request;
    b.manual_clock.step_millis(1_000_000);
    let _seen_there = b.broker.nonce();
    b.manual_clock.step_millis(-1_000_000);
    let report = b.complete_task(&agent, tasks[1]).await.expect("ends");
    assert_eq!(report.cause, EndCause::Lease);
    let report = crate::orders::end_task(&b, tasks[2]).await.expect("ends");
    assert_eq!(report.cause, EndCause::Lease);
    b.broker.maintenance_tick().await.expect("upkeep");
    let ended = b.broker.show().task(&tasks[0]).expect("known").ended;
    assert_eq!(ended.map(|ended| ended.cause), Some(EndCause::Lease));
    let status = b
        .broker
        .show()
        .access_request(&request)
        .expect("known")
        .status;
    assert_eq!(
        status,
        dipylon::state::StoredStatus::Closed(CloseCause::Expired)
    );
    b.check_invariants();
}

#[tokio::test]
async fn clock_jump_blocks_mint_of_approved_request() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    let pending = b
        .request_token(&agent, task, &disable("ann"), 120, "p")
        .await
        .pending();
    b.approve("maria", pending.access_request, "one-security")
        .await;
    b.manual_clock.step_millis(3_000);
    assert_eq!(
        refused(
            b.request_token(&agent, task, &disable("ann"), 120, "p")
                .await
        ),
        Reason::ClockUnreliable
    );
    b.manual_clock.step_millis(-2_500);
    b.request_token(&agent, task, &disable("ann"), 120, "p")
        .await
        .token();
    b.check_invariants();
}

#[tokio::test]
async fn start_with_clock_behind_journal_blocks_mint() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    b.manual_clock.advance_millis(60_000);
    b.try_open_task(&agent, "x", "open-1").await.expect("opens");
    let trust = vec![(
        TrustDomain::parse(DOMAIN).expect("domain"),
        b.env.trust_bundle(),
    )];
    let (clock, manual_clock) = Clock::manual(START.plus_secs(10));
    let mut b = b.restart_with(trust, clock.clone()).await.expect("starts");
    b.clock = clock;
    b.manual_clock = manual_clock;
    let open = b.try_open_task(&agent, "y", "open-2").await;
    assert_eq!(refused(open), Reason::ClockUnreliable);
    b.manual_clock.advance_millis(46_000);
    b.try_open_task(&agent, "y", "open-2").await.expect("opens");
    b.check_invariants();
}

#[tokio::test]
async fn feed_keeps_revocations_across_clock_jump() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    b.request_token(&agent, task, &read_case(), 300, "t")
        .await
        .token();
    b.complete_task(&agent, task).await.expect("ends");
    let ended = b.broker.show().feed_last().expect("an event");
    let tells = |b: &TestBroker| {
        let call = b.person_call("dipylon.v1.TokenService/WatchRevocations", "cases");
        let start = b.broker.watch_revocations(&call, None).expect("watches");
        let (events, ..) = b.broker.feed_after(start.after);
        events.iter().any(|event| event.index == ended)
    };
    b.broker.maintenance_tick().await.expect("upkeep");
    assert!(tells(&b));
    b.manual_clock.step_millis(4_000_000);
    assert!(tells(&b), "while the clock is ahead");
    b.manual_clock.step_millis(-4_000_000);
    assert!(tells(&b), "after it was put right");
    b.manual_clock.advance_millis(4_000_000);
    assert!(!tells(&b), "every token of that time has expired");
}
