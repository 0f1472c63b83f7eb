//! What a hostile reader of this code tried, and how it must end.

use dipylon::broker::StartError;
use dipylon::clock::Clock;
use dipylon::jose::{SigningKey, Usage};
use dipylon::journal::Faults;
use dipylon::model::*;
use serde_json::json;

use super::harness::*;

fn no_reading(b: &TestBroker) -> std::collections::BTreeMap<String, String> {
    b.world.policy_with("rules/20-guardrails.cedar", |text| {
        format!("{text}\n@id(\"no-reading\") forbid (principal, action == Action::\"case.read\", resource);\n")
    })
}

#[tokio::test]
async fn rules_whose_operator_goes_away_are_swept_all_the_same() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let read = b.ask(&triage, task, &read_case(), 300, "r-0").await.token();
    {
        let mut tail = b.broker.journal().tail();
        tail.borrow_and_update();
        let apply = b.apply(no_reading(&b));
        tokio::pin!(apply);
        tokio::select! {
            biased;
            _ = tail.changed() => {}
            _ = &mut apply => panic!("whole"),
        }
    }
    assert!(
        !b.introspect("cases", &read.token),
        "the new rules are in force"
    );
    b.apply(b.world.policy.clone())
        .await
        .expect("applied, after the sweep of the one before");
    assert!(
        b.broker.state().feed_last().is_some(),
        "validators were told"
    );
    assert!(
        !b.introspect("cases", &read.token),
        "and what ended stays ended"
    );
    b.check();
}

#[tokio::test]
async fn a_yes_for_one_use_mints_one_use() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let id = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.yes("maria", id, "one-security").await;
    let wide = b.world.policy_with("schema.cedarschema", |t| {
        t.replace(
            "@single_use\naction \"account.disable\"",
            "action \"account.disable\"",
        )
    });
    assert!(b.apply(wide).await.expect("applied").changed);
    let given = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
    assert_eq!(given.issued.uses, Some(1), "maria signed one use");
    b.check();
}

#[tokio::test]
async fn an_operator_who_is_removed_while_sending_applies_nothing() {
    let b = TestBroker::start().await;
    let call = b.person_call("dipylon.v1.GovernanceService/ApplyPolicyBundle", "olga");
    // The stream is opened; olga sends nothing yet.
    let olga = b.broker.person(&call).expect("an operator");
    let mut gone = b.world.policy.clone();
    let people = gone.get_mut("people.toml").expect("people");
    *people = people
        .replace(
            "name = \"Lee Lindqvist\"\ngroups = [\"security\"]\nroles = [\"approver\"]",
            "name = \"Lee Lindqvist\"\ngroups = [\"security\"]\nroles = [\"approver\", \"operator\"]",
        )
        .replace("name = \"Olga Okafor\"\nroles = [\"operator\"]", "name = \"Olga Okafor\"\nroles = []");
    b.apply(gone).await.expect("olga is out");
    assert_eq!(refused(b.suspend("triage").await), Reason::NotPermitted);
    b.hand.advance_millis(3_600_000);
    let late = b
        .broker
        .apply_policy_bundle(&call, olga, b.world.policy.clone())
        .await;
    assert_eq!(refused(late), Reason::NotPermitted);
}

#[tokio::test]
async fn a_trust_domain_taken_out_of_the_configuration_is_trusted_no_longer() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let read = b.ask(&triage, task, &read_case(), 300, "r-0").await.token();
    let clock = b.clock.clone();
    let b = b.restart_with(vec![], clock).await.expect("starts");
    assert_eq!(
        refused(b.try_open(&triage, "x", "open-2").await),
        Reason::NotAuthenticated
    );
    assert!(
        !b.introspect("cases", &read.token),
        "what rested on it is over"
    );
    b.check();
}

#[tokio::test]
async fn a_key_replaced_under_its_name_is_not_taken() {
    let b = TestBroker::start().await;
    let kid = KeyId::of(b.world.signer.thumbprint());
    let fresh = SigningKey::generate().expect("key").0;
    let bundle = json!({ "keys": [fresh.public().to_jwk_named(&kid, Usage::JwtSvid)], "spiffe_sequence": 2 }).to_string();
    let clock = b.clock.clone();
    let started = b
        .restart_with(
            vec![(TrustDomain::parse(DOMAIN).expect("domain"), bundle)],
            clock,
        )
        .await;
    assert!(matches!(started.err(), Some(StartError::KeyChanged { .. })));
}

#[tokio::test]
async fn a_clock_that_steps_back_revives_nothing() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let read = b.ask(&triage, task, &read_case(), 60, "r-0").await.token();
    b.hand.advance_millis(61_000);
    assert!(!b.introspect("cases", &read.token), "expired");
    // Entries later than the moment to come.
    b.try_open(&triage, "x", "open-2").await.expect("opens");
    let trust = vec![(
        TrustDomain::parse(DOMAIN).expect("domain"),
        b.world.trust_bundle(),
    )];
    let b = b
        .restart_with(trust, Clock::manual(START.plus_secs(10)).0)
        .await
        .expect("starts");
    assert!(
        !b.introspect("cases", &read.token),
        "active again, though the journal's last entry is after its exp"
    );
}

#[tokio::test]
async fn a_request_id_that_joined_one_question_asks_no_other() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    b.ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending();
    b.ask(&triage, task, &disable("ann"), 300, "r-2")
        .await
        .pending();
    assert_eq!(
        refused(b.ask(&triage, task, &read_case(), 300, "r-2").await),
        Reason::ApprovalOutOfScope
    );
    // Approved for one account, asked for another: nothing is minted, and the first keeps its yes.
    let id = b
        .ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.yes("maria", id, "one-security").await;
    assert_eq!(
        refused(b.ask(&triage, task, &disable("cara"), 300, "r-1").await),
        Reason::ApprovalOutOfScope
    );
    b.ask(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .token();
}

#[tokio::test]
async fn a_task_that_ends_meanwhile_saves_no_other_from_the_sweep() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let mut tasks = Vec::new();
    for n in 0..300 {
        tasks.push(
            b.try_open(&triage, "x", &format!("open-{n}"))
                .await
                .expect("opens")
                .task
                .task,
        );
    }
    tasks.sort_unstable();
    let last = *tasks.last().expect("one");
    let shut = b.world.policy_with("rules/20-guardrails.cedar", |text| {
        format!(
            "{text}\n@id(\"nobody\") forbid (principal, action == Action::\"operate\", resource);\n"
        )
    });
    let mut tail = b.broker.journal().tail();
    tail.borrow_and_update();
    let (applied, ended) = tokio::join!(b.apply(shut), async {
        tail.changed().await.expect("changes");
        b.complete(&triage, last).await
    });
    applied.expect("applied");
    ended.expect("ended");
    assert_eq!(
        b.broker.state().open_tasks().len(),
        0,
        "nothing is left when the reply is here"
    );
    b.apply(b.world.policy.clone()).await.expect("back");
    assert_eq!(
        refused(b.ask(&triage, tasks[260], &read_case(), 60, "r").await),
        Reason::TaskEnded
    );
    b.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_request_id_is_one_thing() {
    let b = std::sync::Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let (ann, read) = (disable("ann"), read_case());
    for n in 0..60 {
        let task = b
            .try_open(&triage, "x", &format!("open-{n}"))
            .await
            .expect("opens")
            .task
            .task;
        let gate = std::sync::Arc::new(tokio::sync::Barrier::new(2));
        let job = |action: Action| {
            let (b, triage, gate) = (b.clone(), triage.clone(), gate.clone());
            tokio::spawn(async move {
                gate.wait().await;
                b.ask(&triage, task, &action, 300, "r").await
            })
        };
        let (one, two) = (job(ann.clone()), job(read.clone()));
        let (one, two) = (one.await.expect("joins"), two.await.expect("joins"));
        use dipylon::broker::TokenReply::{Pending, Token};
        assert!(
            !matches!((&one, &two), (Ok(Pending(_)), Ok(Token(_)))),
            "round {n}: a grant and another question"
        );
        b.complete(&triage, task).await.expect("ends");
    }
    b.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_heartbeat_names_no_event_that_was_not_sent() {
    let b = std::sync::Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let mut tasks = Vec::new();
    for n in 0..200 {
        tasks.push(
            b.try_open(&triage, "x", &format!("open-{n}"))
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
        b.complete(&triage, task).await.expect("ends");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(
        reader.join().expect("reader"),
        0,
        "heartbeats that every validator takes for a gap"
    );
}

/// No space is left: everything is refused whole, what was acknowledged stays, an end that cannot be written holds here all the
/// same, and with space again the broker goes on.
#[tokio::test]
async fn a_full_disk_closes_the_gates_and_loses_nothing() {
    let no_space = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let full = Faults {
        pages_max: Some(150),
        full: Some(no_space.clone()),
        ..Faults::default()
    };
    let b = TestBroker::start_with(World::new(), full).await;
    let triage = b.agent("triage");
    let mut tasks = Vec::new();
    for n in 0..40 {
        let opened = b
            .try_open(&triage, "x", &format!("open-{n}"))
            .await
            .expect("opens");
        let task = opened.task.task;
        let token = b.ask(&triage, task, &read_case(), 600, "r").await.token();
        tasks.push((task, token));
    }
    let (first, _) = tasks[0];
    let mut n = 0;
    let refusal = loop {
        n += 1;
        assert!(n < 1_000, "the disk never fills");
        if let Err(refusal) = b
            .ask(&triage, first, &read_case(), 600, &format!("more-{n}"))
            .await
        {
            break refusal;
        }
    };
    assert_eq!(refusal.reason, Reason::JournalUnavailable);
    assert!(
        !b.broker.journal().tail().borrow().failed,
        "the process stays up"
    );
    // Ends are small: some still fit. The first that does not is answered so, and holds here at once.
    let mut doomed = None;
    for (task, token) in &tasks {
        assert!(b.introspect("cases", &token.token));
        let ended = b.complete(&triage, *task).await;
        assert!(
            !b.introspect("cases", &token.token),
            "written or not, it is over here"
        );
        if let Err(refusal) = ended {
            assert_eq!(refusal.reason, Reason::JournalUnavailable);
            doomed = Some((*task, token));
            break;
        }
    }
    let (task, token) = doomed.expect("an end was refused");
    // From here on not even the smallest fits.
    no_space.store(true, std::sync::atomic::Ordering::SeqCst);
    let late = b.ask(&triage, task, &read_case(), 600, "late").await;
    assert_eq!(refused(late), Reason::TaskEnded);
    assert_eq!(
        refused(b.suspend("reporter").await),
        Reason::JournalUnavailable
    );
    let reporter = b.agent("reporter");
    let opened = b.try_open(&reporter, "x", "open-9").await;
    assert_eq!(
        refused(opened),
        Reason::NotAuthenticated,
        "suspended here all the same"
    );
    let before = b.broker.state().picture();
    b.check();
    // Space again.
    let b = b.restart(Faults::default()).await;
    assert_eq!(
        b.broker.state().picture(),
        before,
        "what was acknowledged is there, and nothing else"
    );
    b.complete(&triage, task).await.expect("ends now");
    assert!(!b.introspect("cases", &token.token));
    b.check();
}
