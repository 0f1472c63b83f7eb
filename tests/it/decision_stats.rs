//! Decision statistics: counts, medians, rubber-stamp flags and anomalies, on the card and over gRPC.

use std::collections::BTreeMap;

use dipylon::broker::RuleStatsRow;
use dipylon::journal::FaultInjection;
use dipylon::state::action_stats::KnownTargets;
use dipylon::state::anomaly::Anomaly;
use dipylon_sdk::client::Error;
use dipylon_sdk::model::*;

use crate::support::agent_in_task::{AgentInTask, GOVERNANCE, agent_id, name, person_id};
use crate::support::served_broker::ServedBroker;
use crate::support::stats_recount::recount;
use crate::support::*;

fn rows(b: &TestBroker, who: &str) -> BTreeMap<String, RuleStatsRow> {
    let call = b.person_call(&format!("{GOVERNANCE}/ListRules"), who);
    let rows = b.broker.list_rules(&call).expect("may read");
    rows.into_iter().map(|row| (row.id.clone(), row)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_are_counted_once() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    agent_in_task.approved(&b, &disable("ann"), 7).await;
    let id = agent_in_task.pending(&b, &disable("ann")).await;
    // Repeated requests count once.
    for _ in 0..3 {
        let again = agent_in_task.pending(&b, &disable("ann")).await;
        assert_eq!(again, id);
    }
    b.manual_clock.advance_millis(21_000);
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("counts");
    // Until then the agent is in back-off.
    b.manual_clock.advance_millis(61_000);
    let lapsed = agent_in_task.pending(&b, &disable("cara")).await;
    b.manual_clock.advance_millis(901_000);
    let _written = b.broker.maintenance_tick().await;
    let wrong = action(
        "account.disable",
        "Account",
        "ann",
        CASES,
        &[("end_sessions", Param::Bool(true))],
    );
    agent_in_task.requests += 1;
    let evidence = Some(b.svid(&agent_in_task.agent));
    let denied = b.request_token_with_evidence(
        &agent_in_task.agent,
        agent_in_task.task,
        &wrong,
        60,
        "wrong",
        evidence,
    );
    denied.await.denied();

    let stats = b.broker.show().stats();
    let (triage, disabling) = (agent_id("triage"), name("account.disable"));
    let action_stats = stats
        .action_stats(&triage, &disabling)
        .expect("action stats");
    assert_eq!(
        (
            action_stats.requested,
            action_stats.granted,
            action_stats.denied_by_rules
        ),
        (4, 1, 1),
        "{action_stats:?}"
    );
    assert_eq!(
        (
            action_stats.approved,
            action_stats.denied,
            action_stats.expired
        ),
        (1, 1, 1),
        "{action_stats:?}"
    );
    let decided = |after_s: i64, who: &str| Some((START.plus_secs(after_s), person_id(who)));
    assert_eq!(action_stats.last_approved, decided(7, "maria"));
    assert_eq!(action_stats.last_denied, decided(28, "lee"));
    assert_eq!(action_stats.hours[8], 2, "issued and denied");
    assert_eq!(stats.agent(&triage).requested, 4);
    assert_eq!(stats.action_stats(&triage, &name("case.read")), None);
    let votes_by = |who: &str| {
        let votes = stats.approver_action(&person_id(who), &triage, &disabling);
        (votes.approvals, votes.denials)
    };
    assert_eq!(
        [votes_by("maria"), votes_by("lee"), votes_by("dana")],
        [(1, 0), (0, 1), (0, 0)]
    );
    let rows = rows(&b, "maria");
    let asks = &rows["destructive-needs-approval"];
    assert_eq!(
        (asks.step_ups, asks.approved, asks.denied, asks.expired),
        (3, 1, 1, 1)
    );
    assert_eq!((asks.hits, asks.approved_percent), (3, Some(50)));
    assert_eq!(asks.median_s, Some(7), "the lower of 7 and 21");
    assert_eq!(
        (asks.kind, asks.remedy.as_str()),
        ("forbid", "step_up one-security")
    );
    assert!(asks.line > 1 && asks.file == "rules/20-guardrails.cedar");
    let permit = &rows["soc-acts-at-home"];
    assert_eq!(
        (permit.kind, permit.hits, permit.step_ups, permit.median_s),
        ("permit", 4, 0, None),
        "a permit needs no approval"
    );
    let denying = &rows["accounts-belong-to-the-identity-provider"];
    assert_eq!((denying.hits, denying.step_ups), (1, 0));

    // A vote on a closed request is not counted.
    let late = b.begin_vote("maria", lapsed, "one-security", Verdict::Approve);
    late.await.expect_err("too late");
    let before = b.broker.show().canonical_snapshot();
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(b.broker.show().canonical_snapshot(), before, "INV-9");
    recount(&b.dir, b.broker.show());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubber_stamp_is_flagged() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    let approvers = |b: &TestBroker| {
        let call = b.person_call(&format!("{GOVERNANCE}/ListApproverStats"), "audit");
        let all = b.broker.approver_stats(&call).expect("may read");
        let all: BTreeMap<_, _> = all.into_iter().map(|a| (a.id.to_string(), a)).collect();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["dana", "lee", "maria"]);
        all
    };
    for n in 0..20 {
        let stamped = rows(&b, "olga")["destructive-needs-approval"].rubber_stamp;
        assert!(!stamped && !approvers(&b)["maria"].rubber_stamp, "{n}");
        // Time passes between votes; each vote comes within two seconds.
        agent_in_task.approved(&b, &disable("ann"), 2).await;
        b.manual_clock.advance_millis(60_000);
    }
    assert!(rows(&b, "olga")["destructive-needs-approval"].rubber_stamp);
    let maria = approvers(&b)["maria"].clone();
    assert!(maria.rubber_stamp);
    assert_eq!(
        (
            maria.approvals,
            maria.denials,
            maria.median_s,
            maria.approved_percent
        ),
        (20, 0, Some(2), Some(100))
    );
    assert_eq!(maria.name, "Maria Moreau");
    let lee = &approvers(&b)["lee"];
    assert_eq!((lee.approvals, lee.approved_percent), (0, None));
    assert!(!lee.rubber_stamp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anomalies_are_fixed_at_request_time() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    let first = agent_in_task.pending(&b, &disable("ann")).await;
    let anomalies_of = |id| {
        let anomalies = b.broker.show().stats().anomalies(&id);
        anomalies.expect("remembered").to_vec()
    };
    assert_eq!(anomalies_of(first), [Anomaly::NoHistory]);
    b.approve("maria", first, "one-security").await;
    agent_in_task.token(&b, &disable("ann")).await;
    for _ in 0..4 {
        agent_in_task.approved(&b, &disable("ann"), 1).await;
    }
    let usual = agent_in_task.pending(&b, &disable("ann")).await;
    assert_eq!(anomalies_of(usual), []);
    let target = agent_in_task.pending(&b, &disable("cara")).await;
    assert_eq!(anomalies_of(target), [Anomaly::NewTarget]);
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let other = agent_in_task.pending(&b, &isolate).await;
    assert_eq!(anomalies_of(other), [Anomaly::FirstRequest]);
    assert_eq!(
        anomalies_of(first),
        [Anomaly::NoHistory],
        "later requests change nothing"
    );
    let b = b.restart(FaultInjection::default()).await;
    let kept = b.broker.show().stats().anomalies(&target);
    assert_eq!(kept.as_deref(), Some(&[Anomaly::NewTarget][..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undecided_requests_are_not_history() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    let anomalies_of = |id| {
        let anomalies = b.broker.show().stats().anomalies(&id);
        anomalies.expect("remembered").to_vec()
    };
    // Cancelled requests and requests denied by rules: never decided by a person.
    for n in 0..8 {
        let id = agent_in_task.pending(&b, &disable("ann")).await;
        assert_eq!(anomalies_of(id), [Anomaly::NoHistory], "{n}");
        let method = "dipylon.v1.TaskService/CancelAccessRequest";
        let call = b.call(method, &agent_in_task.agent.key, None, None);
        let cancelled = b
            .broker
            .cancel_access_request(&call, agent_in_task.task, id)
            .await;
        cancelled.expect("cancelled");
        let wrong = action(
            "account.disable",
            "Account",
            "cara",
            CASES,
            &[("end_sessions", Param::Bool(true))],
        );
        let (evidence, request) = (Some(b.svid(&agent_in_task.agent)), format!("wrong-{n}"));
        let denied = b.request_token_with_evidence(
            &agent_in_task.agent,
            agent_in_task.task,
            &wrong,
            60,
            &request,
            evidence,
        );
        denied.await.denied();
        // Time passes: cancelling leads to back-off.
        b.manual_clock.advance_millis(61_000);
    }
    let (triage, disabling) = (agent_id("triage"), name("account.disable"));
    let stats = b.broker.show().stats();
    let action_stats = stats
        .action_stats(&triage, &disabling)
        .expect("action stats");
    assert_eq!(
        (
            action_stats.requested,
            action_stats.denied_by_rules,
            action_stats.decided()
        ),
        (16, 8, 0)
    );
    assert_eq!(
        action_stats.requests_on(b.now()),
        16,
        "requests of a day are counted"
    );
    assert_eq!(
        (action_stats.hours, action_stats.targets),
        ([0; 24], KnownTargets::default())
    );
    let id = agent_in_task.pending(&b, &disable("ann")).await;
    let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "maria");
    let card = b.broker.card(&call, &id).expect("may see");
    assert_eq!(card.anomalies, ["no history yet"]);
    let history = card.history.expect("kept");
    assert!(
        history.first && history.requested_today == 17,
        "{history:?}"
    );
    // A denial by a person is a decision.
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("counts");
    b.manual_clock.advance_millis(61_000);
    let id = agent_in_task.pending(&b, &disable("ann")).await;
    assert_eq!(anomalies_of(id), [Anomaly::LittleHistory { decided: 1 }]);
    recount(&b.dir, b.broker.show());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn card_shows_history() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    let card = |b: &TestBroker, who: &str, id| {
        let call = b.person_call("dipylon.v1.ApprovalService/GetCard", who);
        b.broker.card(&call, &id).expect("may see")
    };
    let id = agent_in_task.pending(&b, &disable("ann")).await;
    let first = card(&b, "maria", id);
    assert_eq!(first.anomalies, ["no history yet"]);
    let history = first.history.expect("kept");
    assert!(history.first);
    assert_eq!(
        (history.approved, history.denied, history.requested_today),
        (0, 0, 1)
    );
    b.approve("maria", id, "one-security").await;
    agent_in_task.token(&b, &disable("ann")).await;
    for _ in 0..4 {
        agent_in_task.approved(&b, &disable("ann"), 1).await;
    }
    let id = agent_in_task.pending(&b, &disable("ann")).await;
    assert_eq!(card(&b, "maria", id).anomalies, [""; 0]);
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("counts");
    b.manual_clock.advance_millis(180_000);
    let another = |text: &str| text.replacen("example-large-2", "example-large-3", 1);
    b.apply_policy(b.env.policy_with("agents.toml", another))
        .await
        .expect("in force");
    let id = agent_in_task.pending(&b, &disable("cara")).await;
    b.manual_clock.advance_millis(60_000);
    let seen = card(&b, "maria", id);
    assert_eq!(
        seen.anomalies,
        [
            "no earlier decision on this target",
            "the last one was denied by lee 4 min ago",
            "the agent's registration changed 60 s ago",
        ]
    );
    let history = seen.history.expect("kept");
    assert!(!history.first);
    assert_eq!(
        (history.approved, history.denied, history.requested_today),
        (5, 1, 7)
    );
    assert_eq!(
        (history.approved_by_caller, history.denied_by_caller),
        (5, 0)
    );
    let by = history.last_denied_by.expect("known");
    assert_eq!(
        (by.id.as_str(), by.name.as_deref()),
        ("lee", Some("Lee Lindqvist"))
    );
    let of_lee = card(&b, "lee", id).history.expect("kept");
    assert_eq!((of_lee.approved_by_caller, of_lee.denied_by_caller), (0, 1));
    // After a restart the same is known.
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(card(&b, "maria", id).anomalies, seen.anomalies);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_over_grpc() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let disable = crate::support::served_broker::token_request(disable("ann"), "r-1");
    let Ok(dipylon_sdk::client::TokenOutcome::Pending(_)) = task.request_token(&disable).await
    else {
        panic!("pending")
    };
    let read = crate::support::served_broker::token_request(read_case(), "r-2");
    let Ok(dipylon_sdk::client::TokenOutcome::Token(token)) = task.request_token(&read).await
    else {
        panic!("a token")
    };
    let (olga, maria, audit) = (s.operator("olga"), s.operator("maria"), s.operator("audit"));
    for reader in [&olga, &maria, &audit] {
        let rules = reader.rules().await.expect("may read");
        let asks = rules
            .iter()
            .find(|r| r.rule_id == "destructive-needs-approval");
        let asks = asks.expect("listed");
        assert_eq!(
            (asks.matches, asks.step_ups, asks.median_seconds),
            (1, 1, None)
        );
        assert!(asks.why.starts_with("Security approves"));
        let timeline = reader.timeline(task.id()).await.expect("may read");
        let kinds: Vec<_> = timeline.entries.iter().map(|m| m.kind.as_str()).collect();
        assert_eq!(
            kinds,
            ["", "TaskOpened", "AccessRequestOpened", "TokenIssued"]
        );
        assert_eq!(
            (timeline.agent_id.as_str(), timeline.left_out),
            ("triage", 0)
        );
    }
    let closed = |error: Error| error.reason();
    let not_permitted = Some(Reason::NotPermitted);
    assert_eq!(
        closed(maria.search("", None).await.expect_err("no")),
        not_permitted
    );
    assert_eq!(
        closed(maria.active_tokens(9).await.expect_err("no")),
        not_permitted
    );
    assert_eq!(
        closed(maria.approver_statistics().await.expect_err("no")),
        not_permitted
    );
    let tokens = audit.active_tokens(9).await.expect("may read");
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].jti, token.jti().to_string());
    let approvers = olga.approver_statistics().await.expect("may read");
    assert_eq!(approvers.len(), 3);
    let found = audit.search("triage", None).await.expect("may search");
    assert_eq!(
        found.entries.len(),
        3,
        "opened, requested, issued: {found:?}"
    );
    let agent = olga.agent(&agent_id("triage")).await.expect("may read");
    assert_eq!(agent.activity.len(), 7);
    assert!(agent.attested_at.is_some());
}
