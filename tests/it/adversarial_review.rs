//! Adversarial review: attacks found by reading the code, each with the outcome that must hold.

use dipylon::broker::BrokerOpenError;
use dipylon::journal::FaultInjection;
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::{SigningKey, Usage};
use dipylon_sdk::model::*;
use serde_json::json;

use crate::support::*;

fn policy_forbidding_reads(b: &TestBroker) -> std::collections::BTreeMap<String, String> {
    b.env.policy_with("rules/20-guardrails.cedar", |text| {
        format!("{text}\n@id(\"no-reading\") forbid (principal, action == Action::\"case.read\", resource) when {{ context.evidence.verified_age < duration(\"365d\") }};\n")
    })
}

#[tokio::test]
async fn apply_survives_client_disconnect() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let read = b
        .request_token(&triage, task, &read_case(), 300, "r-0")
        .await
        .token();
    {
        let mut tail = b.broker.journal().head();
        tail.borrow_and_update();
        let apply = b.apply_policy(policy_forbidding_reads(&b));
        tokio::pin!(apply);
        tokio::select! {
            biased;
            _ = tail.changed() => {}
            _ = &mut apply => panic!("whole"),
        }
    }
    assert!(
        !b.introspect("cases", &read.token).await,
        "the new policy is in force"
    );
    b.apply_policy(b.env.policy.clone())
        .await
        .expect("applied, after the previous sweep");
    assert!(
        b.broker.show().feed_last().is_some(),
        "validators were notified"
    );
    assert!(
        !b.introspect("cases", &read.token).await,
        "and the task stays ended"
    );
    b.check_invariants();
}

#[tokio::test]
async fn approval_of_one_use_bounds_uses() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    let wide = b.env.policy_with("schema.cedarschema", |t| {
        t.replace(
            "@single_use\naction \"account.disable\"",
            "action \"account.disable\"",
        )
    });
    assert!(b.apply_policy(wide).await.expect("applied").changed);
    let reply = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
    assert_eq!(reply.issued.uses, Some(1), "maria approved one use");
    b.check_invariants();
}

#[tokio::test]
async fn operator_removed_during_upload_applies_nothing() {
    let b = TestBroker::start().await;
    let call = b.person_call("dipylon.v1.GovernanceService/ApplyPolicyBundle", "olga");
    // The upload stream is open; olga has sent nothing yet.
    let olga = b.broker.authenticate_person(&call).expect("an operator");
    let mut gone = b.env.policy.clone();
    let people = gone.get_mut("people.toml").expect("people");
    *people = people
        .replace(
            "name = \"Lee Lindqvist\"\ngroups = [\"security\"]\nroles = [\"approver\"]",
            "name = \"Lee Lindqvist\"\ngroups = [\"security\"]\nroles = [\"approver\", \"operator\"]",
        )
        .replace("name = \"Olga Okafor\"\nroles = [\"operator\"]", "name = \"Olga Okafor\"\nroles = []");
    b.apply_policy(gone).await.expect("olga is removed");
    assert_eq!(refused(b.suspend("triage").await), Reason::NotPermitted);
    b.manual_clock.advance_millis(3_600_000);
    let late = b
        .broker
        .apply_policy_bundle(&call, olga, b.env.policy.clone(), Default::default(), None)
        .await;
    assert_eq!(refused(late), Reason::NotPermitted);
}

#[tokio::test]
async fn removed_trust_domain_is_distrusted() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let read = b
        .request_token(&triage, task, &read_case(), 300, "r-0")
        .await
        .token();
    let clock = b.clock.clone();
    let b = b.restart_with(vec![], clock).await.expect("starts");
    assert_eq!(
        refused(b.try_open_task(&triage, "x", "open-2").await),
        Reason::NotAuthenticated
    );
    assert!(
        !b.introspect("cases", &read.token).await,
        "grants that depend on it have ended"
    );
    b.check_invariants();
}

#[tokio::test]
async fn trust_key_replaced_under_same_kid_is_rejected() {
    let b = TestBroker::start().await;
    let kid = KeyId::from_thumbprint(b.env.signer.thumbprint());
    let fresh = SigningKey::generate().expect("key").0;
    let bundle = json!({ "keys": [fresh.public().to_jwk_named(&kid, Usage::JwtSvid)], "spiffe_sequence": 2 }).to_string();
    let clock = b.clock.clone();
    let started = b
        .restart_with(
            vec![(TrustDomain::parse(DOMAIN).expect("domain"), bundle)],
            clock,
        )
        .await;
    assert!(matches!(
        started.err(),
        Some(BrokerOpenError::KeyChanged { .. })
    ));
}

#[tokio::test]
async fn clock_stepping_back_revives_no_token() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let read = b
        .request_token(&triage, task, &read_case(), 60, "r-0")
        .await
        .token();
    b.manual_clock.advance_millis(61_000);
    assert!(!b.introspect("cases", &read.token).await, "expired");
    // Entries later than the time that follows.
    b.try_open_task(&triage, "x", "open-2")
        .await
        .expect("opens");
    let trust = vec![(
        TrustDomain::parse(DOMAIN).expect("domain"),
        b.env.trust_bundle(),
    )];
    let b = b
        .restart_with(trust, Clock::manual(START.plus_secs(10)).0)
        .await
        .expect("starts");
    assert!(
        !b.introspect("cases", &read.token).await,
        "active again, though the journal's last entry is after its `exp`"
    );
}

#[tokio::test]
async fn idempotency_key_is_bound_to_its_action() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    b.request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending();
    b.request_token(&triage, task, &disable("ann"), 300, "r-2")
        .await
        .pending();
    assert_eq!(
        refused(
            b.request_token(&triage, task, &read_case(), 300, "r-2")
                .await
        ),
        Reason::ApprovalOutOfScope
    );
    // Approved for one account, requested for another: nothing is minted, and the first keeps its approval.
    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    assert_eq!(
        refused(
            b.request_token(&triage, task, &disable("cara"), 300, "r-1")
                .await
        ),
        Reason::ApprovalOutOfScope
    );
    b.request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
}

#[tokio::test]
async fn policy_sweep_survives_concurrent_task_ends() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let mut tasks = Vec::new();
    for n in 0..300 {
        tasks.push(
            b.try_open_task(&triage, "x", &format!("open-{n}"))
                .await
                .expect("opens")
                .task
                .task,
        );
    }
    tasks.sort_unstable();
    let last = *tasks.last().expect("one");
    let mut shut = b.env.policy_with("rules/20-guardrails.cedar", |text| {
        format!(
            "{text}\n@id(\"nobody\") forbid (principal, action == Action::\"operate\", resource) when {{ context.evidence.verified_age < duration(\"365d\") }};\n"
        )
    });
    for agent in ["triage", "reporter", "responder", "assistant"] {
        silence(&mut shut, "cannot-operate", agent);
    }
    let mut tail = b.broker.journal().head();
    tail.borrow_and_update();
    // A refused apply changes nothing to wait for.
    let both = tokio::try_join!(b.apply_policy(shut), async {
        tail.changed().await.expect("changes");
        b.complete_task(&triage, last).await
    });
    both.expect("applied and ended");
    assert_eq!(
        b.broker.show().open_tasks().len(),
        0,
        "all are ended when the reply arrives"
    );
    b.apply_policy(b.env.policy.clone()).await.expect("back");
    assert_eq!(
        refused(
            b.request_token(&triage, tasks[260], &read_case(), 60, "r")
                .await
        ),
        Reason::TaskEnded
    );
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn idempotency_key_under_concurrent_requests() {
    let b = std::sync::Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let (ann, read) = (disable("ann"), read_case());
    for n in 0..60 {
        let task = b
            .try_open_task(&triage, "x", &format!("open-{n}"))
            .await
            .expect("opens")
            .task
            .task;
        let gate = std::sync::Arc::new(tokio::sync::Barrier::new(2));
        let job = |action: Action| {
            let (b, triage, gate) = (b.clone(), triage.clone(), gate.clone());
            tokio::spawn(async move {
                gate.wait().await;
                b.request_token(&triage, task, &action, 300, "r").await
            })
        };
        let (disabling, reading) = (job(ann.clone()), job(read.clone()));
        let (disabling, reading) = (
            disabling.await.expect("joins"),
            reading.await.expect("joins"),
        );
        use dipylon::broker::TokenReply::{Pending, Token};
        assert!(
            !matches!((&disabling, &reading), (Ok(Pending(_)), Ok(Token(_)))),
            "round {n}: a grant and another request"
        );
        b.complete_task(&triage, task).await.expect("ends");
    }
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn feed_heartbeats_name_only_sent_events() {
    let b = std::sync::Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let mut tasks = Vec::new();
    for n in 0..200 {
        tasks.push(
            b.try_open_task(&triage, "x", &format!("open-{n}"))
                .await
                .expect("opens")
                .task
                .task,
        );
    }
    let broker = b.broker.clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = stop.clone();
    let reader = std::thread::spawn(move || {
        let (mut after, mut gaps) = (None, 0_u64);
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            let (events, _, last) = broker.feed_after(after);
            if events.is_empty() && last != after {
                gaps += 1;
            }
            after = events.last().map(|e| e.index).or(after);
        }
        gaps
    });
    for task in tasks {
        b.complete_task(&triage, task).await.expect("ends");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(
        reader.join().expect("reader"),
        0,
        "heartbeats that every validator would take for a gap"
    );
}

/// A full disk: every write is refused whole, acknowledged work stays, a revocation that cannot be journaled is enforced in
/// memory, and with space again the broker goes on.
#[tokio::test]
async fn full_disk_fails_closed_and_recovers() {
    let no_space = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let full = FaultInjection {
        pages_max: Some(150),
        disk_full: Some(no_space.clone()),
        ..FaultInjection::default()
    };
    let b = TestBroker::start_with(TestEnvironment::new(), full).await;
    let triage = b.agent("triage");
    let mut tasks = Vec::new();
    for n in 0..40 {
        let opened = b
            .try_open_task(&triage, "x", &format!("open-{n}"))
            .await
            .expect("opens");
        let task = opened.task.task;
        let token = b
            .request_token(&triage, task, &read_case(), 600, "r")
            .await
            .token();
        tasks.push((task, token));
    }
    let (first, _) = tasks[0];
    let mut n = 0;
    let refusal = loop {
        n += 1;
        assert!(n < 1_000, "the disk never fills");
        if let Err(refusal) = b
            .request_token(&triage, first, &read_case(), 600, &format!("more-{n}"))
            .await
        {
            break refusal;
        }
    };
    assert_eq!(refusal.reason, Reason::JournalUnavailable);
    assert!(
        !b.broker.journal().head().borrow().failed,
        "the process stays up"
    );
    // Revocations are small: some still fit. The first that does not is refused, and enforced in memory at once.
    let mut unwritten = None;
    for (task, token) in &tasks {
        assert!(b.introspect("cases", &token.token).await);
        let ended = b.complete_task(&triage, *task).await;
        assert!(
            !b.introspect("cases", &token.token).await,
            "journaled or not, it is enforced here"
        );
        if let Err(refusal) = ended {
            assert_eq!(refusal.reason, Reason::JournalUnavailable);
            unwritten = Some((*task, token));
            break;
        }
    }
    let (task, token) = unwritten.expect("a revocation was refused");
    // From here on not even the smallest entry fits.
    no_space.store(true, std::sync::atomic::Ordering::SeqCst);
    let late = b
        .request_token(&triage, task, &read_case(), 600, "late")
        .await;
    assert_eq!(refused(late), Reason::TaskEnded);
    assert_eq!(
        refused(b.suspend("reporter").await),
        Reason::JournalUnavailable
    );
    let reporter = b.agent("reporter");
    let opened = b.try_open_task(&reporter, "x", "open-9").await;
    assert_eq!(
        refused(opened),
        Reason::NotAuthenticated,
        "the suspension is enforced in memory"
    );
    let before = b.broker.show().canonical_snapshot();
    b.check_invariants();
    // Free space again.
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(
        b.broker.show().canonical_snapshot(),
        before,
        "the acknowledged entries are there, and nothing else"
    );
    b.complete_task(&triage, task).await.expect("ends now");
    assert!(!b.introspect("cases", &token.token).await);
    b.check_invariants();
}
