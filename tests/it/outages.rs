//! Outages: a broker that was stopped does not end tasks whose heartbeat it could not have heard, and one that has said that a
//! heartbeat was missed never takes it back: a crash leaves no mark, whatever the disk did before.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dipylon::broker::BrokerOpenError;
use dipylon::journal::{AppendError, CrashPoint, FaultInjection};
use dipylon_sdk::client::{AgentClient, OpenTaskRequest, TokenOutcome};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::broker_deployment::BrokerDeployment;
use crate::support::served_broker::token_request;
use crate::support::wait::in_time;
use crate::support::*;

/// Name of the file with the time until which the last broker served.
const MARK: &str = "served-until";

fn extensions(b: &TestBroker) -> Vec<LeasesExtended> {
    let (_, head) = b.broker.show().position();
    (0..=head)
        .filter_map(|index| b.broker.journal().entry(index).expect("reads"))
        .map(|stored| Entry::parse(&stored.text).expect("parses"))
        .filter_map(|entry| match entry.event {
            Event::LeasesExtended(extended) if extended.served_until.is_some() => Some(extended),
            _ => None,
        })
        .collect()
}

fn mark(dir: &Path) -> Option<i64> {
    let text = std::fs::read_to_string(dir.join(MARK)).ok()?;
    Some(text.trim_end().parse().expect("milliseconds"))
}

async fn open(b: &TestBroker, agent: &TestAgent, key: &str, heartbeat: i64) -> TaskId {
    let opened = b.open_task_with(agent, "work", key, Some(heartbeat)).await;
    opened.expect("opens").task.task
}

async fn restart(b: TestBroker) -> TestBroker {
    b.restart(FaultInjection::default()).await
}

/// How the broker went away, and what is left of its mark.
#[derive(Clone, Copy, Debug)]
enum Away {
    /// It crashed: there is no mark.
    Crash,
    /// It stopped.
    Stop,
    /// It stopped, and its mark was lost, or holds this.
    Mark(Option<&'static str>),
}

/// A task with a heartbeat of `heartbeat_s` whose broker goes away at once for `away_ms`.
#[tokio::test]
async fn heartbeats_that_no_broker_could_hear_do_not_count() {
    use Away::{Crash, Mark, Stop};
    let mark_of = |text| Mark(Some(text));
    for (away, heartbeat_s, away_ms, runs, why) in [
        (Crash, 30, 31_000, false, "a crash"),
        (Crash, 2, 2_000, false, "a short crash"),
        (Stop, 2, 2_000, true, "a short stop"),
        (Stop, 30, 31_000, true, "it ran out while stopped"),
        (Stop, 2, 300_001, true, "five minutes after the mark"),
        (Stop, 2, 300_002, false, "longer than five minutes"),
        (Mark(None), 30, 31_000, false, "no mark"),
        (mark_of(""), 30, 31_000, false, "an empty mark"),
        (mark_of("soon\n"), 30, 31_000, false, "no number"),
        (mark_of("1800000000000"), 30, 31_000, false, "half a mark"),
        (
            mark_of("1800000000000\n"),
            30,
            31_000,
            true,
            "at the last entry",
        ),
        (
            mark_of("1799999999999\n"),
            30,
            31_000,
            false,
            "before the last entry",
        ),
        (
            mark_of("1800000029000\n"),
            30,
            31_000,
            true,
            "it ran out after the mark",
        ),
        (
            mark_of("1800000030001\n"),
            30,
            31_000,
            false,
            "it ran out before the mark",
        ),
        (
            mark_of("1800000031001\n"),
            30,
            31_000,
            false,
            "a mark in the future",
        ),
    ] {
        let b = TestBroker::start().await;
        let agent = b.agent("triage");
        let task = open(&b, &agent, "open", heartbeat_s).await;
        assert_eq!(mark(&b.dir), None, "none while a broker serves");
        if !matches!(away, Crash) {
            b.broker.stop_serving().await;
            assert_eq!(mark(&b.dir), Some(START.millis() + 1));
        }
        match away {
            Crash | Stop => {}
            Mark(None) => std::fs::remove_file(b.dir.join(MARK)).expect("removed"),
            Mark(Some(text)) => std::fs::write(b.dir.join(MARK), text).expect("written"),
        }
        let lapse = b
            .broker
            .show()
            .task(&task)
            .and_then(|t| t.lease)
            .expect("a lease")
            .until;
        b.manual_clock.advance_millis(away_ms);
        let b = restart(b).await;
        assert!(
            !b.dir.join(MARK).exists(),
            "{why}: none while a broker serves"
        );
        b.broker.maintenance_tick().await.expect("upkeep");
        let record = b.broker.show().task(&task).expect("known");
        assert_eq!(record.is_running(b.now()), runs, "{why}");
        if runs {
            assert_eq!(
                record.lease.expect("a lease").until,
                b.now().plus_secs(heartbeat_s),
                "{why}"
            );
            b.keep_alive(&agent, task).await.expect(why);
            let again = [LeasesExtended {
                leases: vec![(task, b.now().plus_secs(heartbeat_s))],
                served_until: extensions(&b)[0].served_until,
            }];
            assert_eq!(extensions(&b), again, "{why}");
            // It is one heartbeat: missed while a broker serves, it ends the task.
            b.manual_clock
                .advance_millis(u32::try_from(heartbeat_s * 1_000).expect("small"));
            assert_eq!(refused(b.keep_alive(&agent, task).await), Reason::TaskEnded);
        } else {
            let refusal = b.keep_alive(&agent, task).await.expect_err(why);
            assert_eq!(
                refusal.message,
                format!("the task ended at {lapse}: a heartbeat was missed")
            );
            assert_eq!(
                record.ended.expect("its entry").cause,
                EndCause::Lease,
                "{why}"
            );
            assert!(extensions(&b).is_empty(), "{why}");
        }
        b.check_invariants();
    }
}

/// A broker says that a heartbeat was missed, before an entry says it, and goes away with or without a stop.
#[tokio::test]
async fn a_broker_that_said_missed_does_not_take_it_back() {
    for stops in [true, false] {
        let b = TestBroker::start().await;
        // A mark of this stop would revive what is said below.
        b.broker.stop_serving().await;
        let b = restart(b).await;
        let agent = b.agent("triage");
        let (answered, unheard) = (
            open(&b, &agent, "a", 30).await,
            open(&b, &agent, "b", 60).await,
        );
        let token = b
            .request_token(&agent, answered, &read_case(), 600, "r")
            .await
            .token()
            .token;
        b.manual_clock.advance_millis(30_000);
        // Said to a validator and to the agent.
        assert!(!b.introspect("cases", &token).await);
        assert_eq!(
            refused(b.keep_alive(&agent, answered).await),
            Reason::TaskEnded
        );
        let record = b.broker.show().task(&answered).expect("known");
        assert!(record.ended.is_none(), "no entry says it");
        if stops {
            b.broker.stop_serving().await;
        }
        b.manual_clock.advance_millis(60_000);
        let b = restart(b).await;
        assert!(
            !b.introspect("cases", &token).await,
            "a broker that has said inactive never says active again"
        );
        assert_eq!(
            refused(b.keep_alive(&agent, answered).await),
            Reason::TaskEnded
        );
        // No broker could hear its heartbeat, but only a stop tells so.
        assert_eq!(b.keep_alive(&agent, unheard).await.is_ok(), stops);
        assert_eq!(
            extensions(&b).len(),
            usize::from(stops),
            "at most one entry"
        );
        b.check_invariants();
    }
}

/// The disk hangs at the mark: a broker that serves does not touch it, and one that stops does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_serves_and_stops_while_the_disk_of_the_mark_hangs() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = open(&b, &agent, "open", 30).await;
    let token = b
        .request_token(&agent, task, &read_case(), 600, "r")
        .await
        .token()
        .token;
    block_writes_of_the_mark(&b.dir);
    b.manual_clock.advance_millis(29_000);
    b.broker.maintenance_tick().await.expect("upkeep");
    assert!(b.introspect("cases", &token).await);
    b.manual_clock.advance_millis(1_000);
    assert!(
        !b.introspect("cases", &token).await,
        "its heartbeat was missed"
    );
    b.freeze("all").await.expect("the brake works");
    assert_eq!(b.broker.readiness(), Ok(()));
    in_time("the stop", b.broker.stop_serving()).await;
    assert_eq!(mark(&b.dir), None);
}

/// Writing the mark opens this pipe, which waits for a reader that never comes.
fn block_writes_of_the_mark(dir: &Path) {
    let pipe = dir.join(format!("{MARK}.new"));
    let made = std::process::Command::new("mkfifo").arg(pipe).status();
    assert!(made.expect("mkfifo").success());
}

/// An extension that may become durable after this broker has said that a heartbeat was missed would take it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_of_unknown_outcome_fails_the_start() {
    let (hangs, answers) = std::sync::mpsc::channel::<()>();
    let answers = Mutex::new(answers);
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    open(&b, &agent, "open", 30).await;
    b.broker.stop_serving().await;
    b.manual_clock.advance_millis(31_000);
    let faults = FaultInjection {
        append_time_max: Some(Duration::from_millis(50)),
        crash_hook: Some(Arc::new(move |at| {
            if at == CrashPoint::Written {
                // Until the test drops the other end.
                let _dropped = answers.lock().expect("one writer").recv().is_ok();
            }
            false
        })),
        ..FaultInjection::default()
    };
    let error = b.try_restart(faults).await.err().expect("must not serve");
    assert!(
        matches!(error, BrokerOpenError::Append(AppendError::OutcomeUnknown)),
        "{error}"
    );
    drop(hangs);
}

/// A mark that stays would revive, at a later start, what this broker reports ended.
#[tokio::test]
async fn a_mark_that_cannot_be_removed_fails_the_start() {
    let b = TestBroker::start().await;
    std::fs::create_dir(b.dir.join(MARK)).expect("a directory in its place");
    let started = b.try_restart(FaultInjection::default()).await;
    let error = started.err().expect("must not serve").to_string();
    assert!(
        error.starts_with("the file `served-until` cannot be removed"),
        "{error}"
    );
}

#[tokio::test]
async fn an_outage_leaves_everything_else_as_it_was() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let mut tasks = Vec::new();
    for n in 0..60 {
        tasks.push(open(&b, &agent, &format!("t-{n}"), 30).await);
    }
    let (task, ended, long) = (tasks[0], tasks[1], open(&b, &agent, "long", 600).await);
    let token = b
        .request_token(&agent, task, &read_case(), 600, "read")
        .await
        .token()
        .token;
    let pending = b
        .request_token(&agent, task, &disable("ann"), 300, "ask")
        .await
        .pending();
    b.complete_task(&agent, ended).await.expect("ends");
    let without_heartbeat = b.open_task(&agent).await;
    let (feed, last) = b.broker.show().feed_after(None, usize::MAX);
    b.broker.stop_serving().await;
    b.manual_clock.advance_millis(45_000);
    let b = restart(b).await;

    let lease = |b: &TestBroker, task: &TaskId| b.broker.show().task(task).and_then(|t| t.lease);
    let extended: usize = extensions(&b).iter().map(|e| e.leases.len()).sum();
    assert_eq!(
        extended, 59,
        "every running task whose heartbeat ran out, and no other"
    );
    assert_eq!(
        lease(&b, &long).expect("a lease").until,
        START.plus_secs(600)
    );
    assert_eq!(lease(&b, &without_heartbeat), None);
    let record = b.broker.show().task(&task).expect("known");
    assert_eq!(
        record.opened.deadline,
        START.plus_secs(3_600),
        "deadlines do not move"
    );
    assert!(b.broker.show().task(&ended).expect("known").ended.is_some());
    assert!(b.introspect("cases", &token).await, "its token is active");
    let after = b.broker.show().feed_after(None, usize::MAX);
    assert_eq!(
        (after.0.len(), after.1),
        (feed.len(), last),
        "the feed tells of no end"
    );

    // The pending access request survives, and its approval counts.
    let request = b
        .broker
        .show()
        .access_request(&pending.access_request)
        .expect("known");
    assert_eq!(request.opened.expires_at, pending.expires_at);
    b.approve("maria", pending.access_request, "one-security")
        .await;
    let evidence = Some(b.svid(&agent));
    b.request_token_with_evidence(&agent, task, &disable("ann"), 300, "ask", evidence)
        .await
        .token();

    // Replay gives the same state, and another start at the same moment extends nothing.
    let (snapshot, position) = (
        b.broker.show().canonical_snapshot(),
        b.broker.show().position(),
    );
    let b = restart(b).await;
    assert_eq!(b.broker.show().position(), position);
    assert_eq!(b.broker.show().canonical_snapshot(), snapshot);
    b.check_invariants();
}

/// What has less left than the outage took was as little heard as what ran out.
#[tokio::test]
async fn a_heartbeat_that_is_about_to_run_out_is_extended_too() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let soon = open(&b, &agent, "soon", 60).await;
    let later = open(&b, &agent, "later", 120).await;
    b.broker.stop_serving().await;
    b.manual_clock.advance_millis(50_000);
    let b = restart(b).await;
    let until = |task| {
        b.broker
            .show()
            .task(&task)
            .and_then(|t| t.lease)
            .expect("a lease")
            .until
    };
    assert_eq!(until(soon), b.now().plus_secs(60));
    assert_eq!(until(later), START.plus_secs(120));
    b.check_invariants();
}

#[tokio::test]
async fn a_deadline_that_passed_meanwhile_ends_the_task() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = open(&b, &agent, "open", 3_500).await;
    b.manual_clock.advance_millis(3_400_000);
    b.keep_alive(&agent, task).await.expect("alive");
    b.broker.stop_serving().await;
    b.manual_clock.advance_millis(250_000);
    let b = restart(b).await;
    let refusal = b
        .keep_alive(&agent, task)
        .await
        .expect_err("its deadline passed");
    assert!(
        refusal.message.ends_with("its deadline passed"),
        "{refusal}"
    );
    assert!(extensions(&b).is_empty());
    b.check_invariants();
}

/// The real process stops; the next broker of its directory starts two minutes later by a manual clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_survive_a_stop_and_a_start_two_minutes_later() {
    let temp = tempfile::tempdir().expect("dir");
    let d = BrokerDeployment::new(temp.path());
    let mut process = d.broker().await;
    let agent = AgentClient::new(d.endpoint(), d.evidence(), None);
    let opening = OpenTaskRequest {
        purpose: "contain INC-8841".into(),
        max_duration_s: 3_600,
        idempotency_key: None,
        heartbeat_s: Some(120),
    };
    let task = agent.open_task(&opening).await.expect("opens");
    let outcome = task
        .request_token(&token_request(disable("ann"), "r"))
        .await;
    let Ok(TokenOutcome::Pending(pending)) = outcome else {
        panic!("not pending: {outcome:?}");
    };
    process.kill().await.expect("killed");
    let data = d.root.join("data");
    assert_eq!(mark(&data), None, "a crash leaves none");

    let mut process = d.broker().await;
    terminate(&process);
    assert!(process.wait().await.expect("stopped").success());
    let stopped = Clock::system().now();
    assert!(mark(&data).expect("a mark") <= stopped.millis() + 1);

    let key = SigningKey::generate().expect("key").1;
    let at = |s: i64| Clock::manual(stopped.plus_secs(s)).0;
    for (start_after_s, runs) in [(130, true), (500, false)] {
        let copy = d.root.join(format!("copy-{start_after_s}"));
        std::fs::create_dir(&copy).expect("dir");
        for file in std::fs::read_dir(&data).expect("dir") {
            let file = file.expect("file");
            std::fs::copy(file.path(), copy.join(file.file_name())).expect("copied");
        }
        let settings = settings();
        let clock = at(start_after_s);
        let broker = open_as(
            settings,
            &d.env,
            &copy,
            &clock,
            &key,
            FaultInjection::default(),
        )
        .await
        .expect("starts");
        let record = broker.show().task(&task.id()).expect("known");
        assert_eq!(
            record.is_running(clock.now()),
            runs,
            "after {start_after_s} s"
        );
        let request = broker.show().access_request(&pending.access_request_id());
        assert!(request.expect("known").is_pending(clock.now()));
    }

    // A disk that hangs does not keep the process from ending, and leaves no mark.
    let mut process = d.broker().await;
    assert_eq!(mark(&data), None, "none while a broker serves");
    block_writes_of_the_mark(&data);
    terminate(&process);
    let status = in_time("the exit", process.wait()).await;
    assert!(status.expect("stopped").success());
    assert_eq!(mark(&data), None);
}

pub fn terminate(process: &tokio::process::Child) {
    let id = process.id().expect("it runs");
    let pid = Pid::from_raw(i32::try_from(id).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::TERM).expect("SIGTERM");
}
