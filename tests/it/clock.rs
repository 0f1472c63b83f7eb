//! Clocks that jump: nothing is minted by a time nobody can rely on, and nothing that ended comes back.

use dipylon::clock::Clock;
use dipylon::model::*;

use crate::harness::{DOMAIN, Expect as _, START, TestBroker, disable, read_case, refused};

#[tokio::test]
async fn a_jump_stops_the_mint_but_never_an_end() {
    for jump in [3_600_000_i64, -3_600_000] {
        let b = TestBroker::start().await;
        let agent = b.agent("triage");
        let task = b.open(&agent).await;
        let token = b.ask(&agent, task, &read_case(), 200, "t").await.token();
        let other = b
            .try_open(&agent, "other", "open-2")
            .await
            .expect("opens")
            .task
            .task;
        b.broker.upkeep_once().await.expect("looks at the clocks");

        b.hand.step_millis(jump);
        if jump < 0 {
            // Introspection goes on, by the latest moment anybody has acted on.
            assert!(b.introspect("cases", &token.token), "{jump}");
            let ask = b.ask(&agent, task, &read_case(), 60, "t-2").await;
            assert_eq!(refused(ask), Reason::ClockUnsure, "{jump}");
            let again = b.ask(&agent, task, &read_case(), 200, "t").await;
            assert_eq!(
                refused(again),
                Reason::ClockUnsure,
                "{jump}: nor signed anew"
            );
        } else {
            assert!(
                !b.introspect("cases", &token.token),
                "{jump}: the later of two moments counts"
            );
        }
        if jump < 0 {
            // Ends, revocation and the brake do not wait for a clock.
            b.revoke(token.issued.jti).await.expect("revokes");
            assert!(!b.introspect("cases", &token.token));
            b.complete(&agent, other).await.expect("ends");
            b.freeze("action/account.disable").await.expect("freezes");
            b.unfreeze("action/account.disable").await.expect("lifts");
            // Put right again: no need to wait.
            b.hand.step_millis(-jump);
            b.ask(&agent, task, &read_case(), 60, "t-3").await.token();
        } else {
            let open = b.try_open(&agent, "x", "open-3").await;
            assert_eq!(refused(open), Reason::ClockUnsure, "{jump}");
            // Steady for a minute: that is the time now.
            b.hand.advance_millis(59_000);
            let open = b.try_open(&agent, "x", "open-3").await;
            assert_eq!(refused(open), Reason::ClockUnsure, "{jump}");
            b.hand.advance_millis(1_000);
            b.try_open(&agent, "x", "open-3").await.expect("opens");
        }
        b.check();
    }
}

#[tokio::test]
async fn a_wait_for_people_across_a_jump_mints_nothing() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open(&agent).await;
    let pending = b
        .ask(&agent, task, &disable("ann"), 120, "p")
        .await
        .pending();
    b.yes("maria", pending.access_request, "one-security").await;
    b.hand.step_millis(3_000);
    assert_eq!(
        refused(b.ask(&agent, task, &disable("ann"), 120, "p").await),
        Reason::ClockUnsure
    );
    b.hand.step_millis(-2_500);
    b.ask(&agent, task, &disable("ann"), 120, "p").await.token();
    b.check();
}

#[tokio::test]
async fn a_start_behind_the_journal_mints_nothing_until_the_clock_has_come_up() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    b.hand.advance_millis(60_000);
    b.try_open(&agent, "x", "open-1").await.expect("opens");
    let trust = vec![(
        TrustDomain::parse(DOMAIN).expect("domain"),
        b.world.trust_bundle(),
    )];
    let (clock, hand) = Clock::manual(START.plus_secs(10));
    let mut b = b.restart_with(trust, clock.clone()).await.expect("starts");
    b.clock = clock;
    b.hand = hand;
    let open = b.try_open(&agent, "y", "open-2").await;
    assert_eq!(refused(open), Reason::ClockUnsure);
    b.hand.advance_millis(46_000);
    b.try_open(&agent, "y", "open-2").await.expect("opens");
    b.check();
}

#[tokio::test]
async fn a_new_validator_misses_no_end_because_the_clock_jumped() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open(&agent).await;
    b.ask(&agent, task, &read_case(), 300, "t").await.token();
    b.complete(&agent, task).await.expect("ends");
    let ended = b.broker.state().feed_last().expect("an event");
    let tells = |b: &TestBroker| {
        let call = b.person_call("dipylon.v1.TokenService/WatchRevocations", "cases");
        let start = b.broker.watch_revocations(&call, None).expect("watches");
        let (events, ..) = b.broker.feed_after(start.after);
        events.iter().any(|event| event.index == ended)
    };
    b.broker.upkeep_once().await.expect("looks at the clocks");
    assert!(tells(&b));
    b.hand.step_millis(4_000_000);
    assert!(tells(&b), "while the clock is ahead");
    b.hand.step_millis(-4_000_000);
    assert!(tells(&b), "after it was put right");
    b.hand.advance_millis(4_000_000);
    assert!(!tells(&b), "no token of that time can live any more");
}
