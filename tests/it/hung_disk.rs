//! A disk that hangs: ordered ends hold from before their entry, also for callers that are gone; a repeated call leaves one
//! entry; and however many calls wait for one object, each is answered in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use dipylon::broker::{TokenEndCause, TokenEvent};
use dipylon::journal::{CrashPoint, FaultInjection};
use dipylon_sdk::model::*;

use crate::concurrency::at_once;
use crate::support::agent_in_task::{AgentInTask, agent_id};
use crate::support::wait::{in_time, until};
use crate::support::*;

/// A disk that hangs from the append after [`HungDisk::hang`] until it is dropped.
pub struct HungDisk {
    is_armed: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
    _release: mpsc::Sender<()>,
}

impl HungDisk {
    pub fn new(append_time_max: Option<Duration>) -> (Self, FaultInjection) {
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let (is_armed, hangs) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (fires, hung) = (is_armed.clone(), hangs.clone());
        let faults = FaultInjection {
            append_time_max,
            crash_hook: Some(Arc::new(move |at| {
                if at == CrashPoint::Written && fires.swap(false, Ordering::SeqCst) {
                    hung.store(true, Ordering::SeqCst);
                    // Until the test drops the other end.
                    let _dropped = released.lock().expect("one writer").recv().is_ok();
                }
                false
            })),
            ..FaultInjection::default()
        };
        let disk = Self {
            is_armed,
            hangs,
            _release: release,
        };
        (disk, faults)
    }

    pub fn hang(&self) {
        self.is_armed.store(true, Ordering::SeqCst);
    }

    async fn hung(&self) {
        until("the disk hangs", || self.hangs.load(Ordering::SeqCst)).await;
    }
}

fn entries_of(b: &TestBroker, kind: &str) -> usize {
    let (_, head) = b.broker.show().position();
    (0..=head)
        .filter_map(|index| b.broker.journal().entry(index).expect("reads"))
        .filter(|stored| stored.text.contains(&format!("\"kind\":\"{kind}\"")))
        .count()
}

/// What ends the token of a test.
#[derive(Clone, Copy, Debug)]
enum Order {
    Freeze,
    Suspend,
    Revoke,
    Complete,
}

/// Gives the order; false when it was refused.
async fn give(order: Order, b: Arc<TestBroker>, triage: Arc<AgentInTask>, jti: TokenId) -> bool {
    match order {
        Order::Freeze => b.freeze("action/case.read").await.is_ok(),
        Order::Suspend => b.suspend("triage").await.is_ok(),
        Order::Revoke => b.revoke(jti).await.is_ok(),
        Order::Complete => b.complete_task(&triage.agent, triage.task).await.is_ok(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_end_holds_before_its_entry_and_without_its_caller() {
    for (order, cause) in [
        (Order::Freeze, EndCause::Frozen),
        (Order::Suspend, EndCause::Suspended),
        (Order::Revoke, EndCause::Operator),
        (Order::Complete, EndCause::Completed),
    ] {
        for is_dropped in [false, true] {
            let (disk, faults) = HungDisk::new(None);
            let b = Arc::new(TestBroker::start_with(TestEnvironment::new(), faults).await);
            let triage = Arc::new(AgentInTask::new(&b, "triage").await);
            let issued = b
                .request_token(&triage.agent, triage.task, &read_case(), 300, "r")
                .await
                .token();
            let (token, jti) = (issued.token, issued.issued.jti);
            let call = b.call(
                "dipylon.v1.TaskService/WatchToken",
                &triage.agent.key,
                None,
                None,
            );
            let watch = b.broker.watch_token(&call, triage.task, jti);
            let mut watch = watch.expect("its own token");
            assert_eq!(watch.next(&b.broker).await, Some(TokenEvent::Active));

            disk.hang();
            let call = tokio::spawn(give(order, b.clone(), triage.clone(), jti));
            let ended = TokenEvent::Ended(TokenEndCause::Revoked(cause));
            let heard = in_time("the watch's end", watch.next(&b.broker)).await;
            assert_eq!(heard, Some(ended), "{order:?}");
            disk.hung().await;
            assert!(!b.introspect("cases", &token).await, "{order:?}");
            assert_eq!(b.broker.pending_revocations(), 1, "{order:?}");
            if is_dropped {
                call.abort();
                assert!(call.await.expect_err("aborted").is_cancelled());
                assert!(!b.introspect("cases", &token).await, "{order:?}");
                drop(disk);
                let grant = || b.broker.show().grant(&jti).expect("known");
                let is_recorded = || b.broker.show().end_cause(&grant(), b.now()).is_some();
                until("it is recorded", is_recorded).await;
                b.broker.maintenance_tick().await.expect("upkeep");
            } else {
                drop(disk);
                assert!(
                    in_time("the answer", call).await.expect("joined"),
                    "{order:?}"
                );
            }
            assert_eq!(b.broker.pending_revocations(), 0, "{order:?}");
            assert!(!b.introspect("cases", &token).await, "{order:?}");
            let grant = b.broker.show().grant(&jti).expect("known");
            let recorded = b.broker.show().end_cause(&grant, b.now());
            assert_eq!(recorded, Some(cause), "{order:?}");
            b.check_invariants();
        }
    }
}

/// An order that is refused with nothing appended is not enforced.
#[tokio::test]
async fn a_refused_order_holds_nothing() {
    let b = TestBroker::start().await;
    let triage = AgentInTask::new(&b, "triage").await;
    b.suspend("triage").await.expect("suspends");
    assert_eq!(b.suspend("triage").await.expect("again").0, 0);
    refused(b.freeze("agent/nobody").await);
    b.revoke(TokenId::from_random([7; 16]))
        .await
        .expect_err("unknown");
    b.complete_task(&triage.agent, triage.task)
        .await
        .expect("had ended");
    assert_eq!(b.broker.pending_revocations(), 0);
    b.resume("triage").await.expect("resumes");
    assert!(!b.broker.show().is_suspended(&agent_id("triage")));
}

/// The same call again and again, while the entry of the first is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_denial_leaves_one_entry() {
    let b = TestBroker::start().await;
    let triage = AgentInTask::new(&b, "triage").await;
    let (disk, faults) = HungDisk::new(Some(Duration::from_millis(50)));
    let b = b.restart(faults).await;
    let unknown = action("case.burn", "Case", "INC-8841", CASES, &[]);
    let ask = async || {
        let evidence = Some(b.svid(&triage.agent));
        let asked = b
            .request_token_with_evidence(&triage.agent, triage.task, &unknown, 60, "r-1", evidence)
            .await;
        refused(asked)
    };
    disk.hang();
    for _ in 0..3 {
        assert_eq!(ask().await, Reason::OutcomeUnknown);
    }
    drop(disk);
    until("an entry", || entries_of(&b, "RequestDenied") > 0).await;
    assert_eq!(ask().await, Reason::UnknownAction);
    // What is still under way is in the journal of the next start.
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(entries_of(&b, "RequestDenied"), 1);
    // The key is still undecided: it may be granted.
    let evidence = Some(b.svid(&triage.agent));
    b.request_token_with_evidence(
        &triage.agent,
        triage.task,
        &read_case(),
        60,
        "r-1",
        evidence,
    )
    .await
    .token();
    b.check_invariants();
}

/// The same for a vote that does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_refused_vote_leaves_one_entry() {
    let b = TestBroker::start().await;
    let mut triage = AgentInTask::new(&b, "triage").await;
    let id = triage.pending(&b, &disable("ann")).await;
    let (disk, faults) = HungDisk::new(Some(Duration::from_millis(50)));
    let b = b.restart(faults).await;
    // The owner of the agent.
    let vote = async || {
        let begun = b.begin_vote("dana", id, "one-security", Verdict::Approve);
        refused(begun.await)
    };
    disk.hang();
    for _ in 0..3 {
        assert_eq!(vote().await, Reason::OutcomeUnknown);
    }
    drop(disk);
    until("an entry", || entries_of(&b, "VoteRefused") > 0).await;
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(entries_of(&b, "VoteRefused"), 1);
    let begun = b
        .begin_vote("dana", id, "one-security", Verdict::Approve)
        .await;
    assert_eq!(refused(begun), Reason::NotEligible);
    assert_eq!(entries_of(&b, "VoteRefused"), 1);
    b.check_invariants();
}

/// One after the other, these calls would take longer than the test may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_a_turn_counts_into_the_time_of_a_call() {
    let b = TestBroker::start().await;
    let triage = Arc::new(AgentInTask::new(&b, "triage").await);
    let (disk, faults) = HungDisk::new(Some(Duration::from_millis(400)));
    let b = Arc::new(b.restart(faults).await);
    disk.hang();
    let ask = |b: Arc<TestBroker>, triage: Arc<AgentInTask>| async move {
        let evidence = Some(b.svid(&triage.agent));
        let asked = b
            .request_token_with_evidence(
                &triage.agent,
                triage.task,
                &read_case(),
                60,
                "r",
                evidence,
            )
            .await;
        refused(asked)
    };
    let calls = (0..200).map(|_| ask(b.clone(), triage.clone())).collect();
    for reason in in_time("all answers", at_once(calls)).await {
        assert!(
            matches!(reason, Reason::OutcomeUnknown | Reason::Overloaded),
            "{reason}"
        );
    }
    drop(disk);
    until("the journal is ready", || b.broker.readiness().is_ok()).await;
}
