//! Appends whose outcome the broker does not know: the caller is told so, and the replay decides. After every other failure
//! of the journal nothing was done, and the caller is told that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dipylon::broker::NotReady;
use dipylon::journal::{CrashPoint, FaultInjection, JournalFault};
use dipylon_sdk::model::*;

use crate::support::agent_in_task::{AgentInTask, agent_id};
use crate::support::wait::until;
use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_outcome_is_said_and_replay_decides() {
    for (point, is_durable) in [
        (CrashPoint::Checked, false),
        (CrashPoint::Written, false),
        (CrashPoint::Committed, true),
        (CrashPoint::Published, true),
    ] {
        let armed = Arc::new(AtomicBool::new(false));
        let fires = armed.clone();
        let faults = FaultInjection {
            crash_hook: Some(Arc::new(move |at| {
                at == point && fires.load(Ordering::SeqCst)
            })),
            ..FaultInjection::default()
        };
        let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
        armed.store(true, Ordering::SeqCst);
        let refusal = b.freeze("all").await.expect_err("no answer");
        assert_eq!(refusal.reason, Reason::OutcomeUnknown, "{point:?}");
        assert!(
            refusal.message.contains("the outcome is unknown"),
            "{}",
            refusal.message
        );
        assert!(
            !refusal.message.contains("nothing was done"),
            "{}",
            refusal.message
        );
        // The writer has stopped: a later append never reaches it, and leaves nothing.
        let later = b.suspend("reporter").await.expect_err("stopped");
        assert_eq!(later.reason, Reason::JournalUnavailable, "{point:?}");
        assert_eq!(
            b.broker.readiness(),
            Err(NotReady::Journal(JournalFault::Stopped))
        );
        let b = b.restart(FaultInjection::default()).await;
        assert_eq!(
            b.broker.show().freezes().len(),
            usize::from(is_durable),
            "{point:?}"
        );
        let suspended = b.broker.show().is_suspended(&agent_id("reporter"));
        assert!(!suspended, "{point:?}");
        // The same call again is safe in both cases.
        let again = b.freeze("all").await.expect("frozen");
        assert_eq!(again.changed, !is_durable, "{point:?}");
    }
}

/// While the disk hangs, an append is answered in bounded time and a freeze holds on this broker at once; when the disk answers,
/// the entry counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_disk_is_an_unknown_outcome() {
    let (hangs, answers) = std::sync::mpsc::channel::<()>();
    let (answers, armed) = (Mutex::new(answers), Arc::new(AtomicBool::new(false)));
    let fires = armed.clone();
    let faults = FaultInjection {
        append_time_max: Some(Duration::from_millis(50)),
        crash_hook: Some(Arc::new(move |at| {
            if at == CrashPoint::Written && fires.swap(false, Ordering::SeqCst) {
                // Until the test drops the other end.
                let _dropped = answers.lock().expect("one writer").recv().is_ok();
            }
            false
        })),
        ..FaultInjection::default()
    };
    let b = TestBroker::start().await;
    let triage = AgentInTask::new(&b, "triage").await;
    // From here on only the append that hangs has so little time.
    let b = b.restart(faults).await;
    armed.store(true, Ordering::SeqCst);
    let refusal = b.freeze("agent/triage").await.expect_err("no answer");
    assert_eq!(refusal.reason, Reason::OutcomeUnknown);
    assert_eq!(b.broker.show().freezes().len(), 0);
    let evidence = Some(b.svid(&triage.agent));
    let token = b
        .request_token_with_evidence(
            &triage.agent,
            triage.task,
            &read_case(),
            60,
            "r-1",
            evidence,
        )
        .await;
    let reason = refused(token);
    assert_ne!(reason, Reason::OutcomeUnknown, "refused before the journal");
    b.manual_clock.advance_millis(5_001);
    assert_eq!(
        b.broker.readiness(),
        Err(NotReady::Journal(JournalFault::Hung))
    );
    drop(hangs);
    until("the entry counts", || b.broker.show().freezes().len() == 1).await;
    until("the journal is ready", || b.broker.readiness().is_ok()).await;
    b.check_invariants();
}

/// A bundle that is in force is reported so, though the ends it causes cannot be recorded yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundle_in_force_is_no_failure() {
    let (armed, full) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (fires, fills) = (armed.clone(), full.clone());
    let faults = FaultInjection {
        // The disk is full after the bundle's own entry.
        crash_hook: Some(Arc::new(move |at| {
            if at == CrashPoint::Published && fires.load(Ordering::SeqCst) {
                fills.store(true, Ordering::SeqCst);
            }
            false
        })),
        disk_full: Some(full.clone()),
        ..FaultInjection::default()
    };
    let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
    let triage = AgentInTask::new(&b, "triage").await;
    let without_operate = |text: &str| text.replace("!= \"bearer\"", "== \"bearer\"");
    armed.store(true, Ordering::SeqCst);
    let mut bundle = b.env.policy_with("rules/10-agents.cedar", without_operate);
    silence(
        &mut bundle,
        "never-matches",
        "agents-operate-with-fresh-evidence",
    );
    for agent in ["triage", "reporter", "responder", "assistant"] {
        silence(&mut bundle, "cannot-operate", agent);
    }
    let applied = b.apply_policy(bundle).await.expect("in force");
    assert!(applied.changed);
    let warning = applied.warnings.first().expect("a warning");
    assert!(
        warning.contains("in force") && warning.contains("no space left"),
        "{warning}"
    );
    armed.store(false, Ordering::SeqCst);
    full.store(false, Ordering::SeqCst);
    b.broker.maintenance_tick().await.expect("recorded");
    let task = b.broker.show().task(&triage.task).expect("there");
    assert_eq!(task.ended.map(|ended| ended.cause), Some(EndCause::Policy));
}

/// A full disk, and its end, are noticed while no calls come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_disk_without_calls() {
    let full = Arc::new(AtomicBool::new(false));
    let faults = FaultInjection {
        disk_full: Some(full.clone()),
        ..FaultInjection::default()
    };
    let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
    assert_eq!(b.broker.readiness(), Ok(()));
    let head = b.broker.journal().head().borrow().checkpoint;
    for (is_full, expected) in [
        (true, Err(NotReady::Journal(JournalFault::DiskFull))),
        (false, Ok(())),
    ] {
        full.store(is_full, Ordering::SeqCst);
        b.manual_clock.advance_millis(5_000);
        b.broker.maintenance_tick().await.expect("ticks");
        assert_eq!(b.broker.readiness(), expected);
    }
    // A probe leaves no entry.
    assert_eq!(b.broker.journal().head().borrow().checkpoint, head);
    b.manual_clock.step_millis(-3_600_000);
    assert_eq!(b.broker.readiness(), Err(NotReady::ClockUnreliable));
    b.manual_clock.step_millis(3_600_000);
    assert_eq!(b.broker.readiness(), Ok(()));
    b.check_invariants();
}

/// A database that may grow no further is full as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probe_notices_a_database_at_its_size_limit() {
    let b = TestBroker::start().await;
    b.broker.maintenance_tick().await.expect("ticks");
    let faults = FaultInjection {
        pages_max: Some(1),
        ..FaultInjection::default()
    };
    // The limit is never below the present size: from here on the database cannot grow.
    let b = b.restart(faults).await;
    let noticed = async {
        for _ in 0..64 {
            b.manual_clock.advance_millis(5_000);
            b.broker.maintenance_tick().await.expect("ticks");
            if b.broker.readiness().is_err() {
                return;
            }
            // Uses up the free pages.
            let _frozen_or_full = b.freeze("all").await.is_ok() && b.unfreeze("all").await.is_ok();
        }
    };
    noticed.await;
    assert_eq!(
        b.broker.readiness(),
        Err(NotReady::Journal(JournalFault::DiskFull))
    );
}
