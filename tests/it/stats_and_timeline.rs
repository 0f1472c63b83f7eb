//! Statistics, anomalies, live tokens, timelines and journal search.

use std::collections::{BTreeMap, BTreeSet};

use dipylon::broker::{
    LiveToken, RuleStatsRow, SEARCH_SCAN_MAX, SearchPage, TaskTimeline, TimelineEvent,
};
use dipylon::journal::{Append, FaultInjection, Journal, JournalReader};
use dipylon::state::State;
use dipylon::state::action_stats::{KnownTargets, TARGETS_MAX};
use dipylon::state::anomaly::Anomaly;
use dipylon_sdk::client::Error;
use dipylon_sdk::model::*;

use crate::support::served_broker::ServedBroker;
use crate::support::*;

const GOVERNANCE: &str = "dipylon.v1.GovernanceService";

fn rows(b: &TestBroker, who: &str) -> BTreeMap<String, RuleStatsRow> {
    let call = b.person_call(&format!("{GOVERNANCE}/ListRules"), who);
    let rows = b.broker.list_rules(&call).expect("may read");
    rows.into_iter().map(|row| (row.id.clone(), row)).collect()
}

async fn timeline(b: &TestBroker, who: &str, task: TaskId) -> Result<TaskTimeline, Reason> {
    let call = b.person_call(&format!("{GOVERNANCE}/GetTimeline"), who);
    let read = b.broker.timeline(&call, task).await;
    read.map_err(|refusal| refusal.reason)
}

async fn search(b: &TestBroker, query: &str, below: Option<u64>) -> SearchPage {
    let call = b.person_call(&format!("{GOVERNANCE}/SearchJournal"), "audit");
    let found = b.broker.search(&call, query, below).await;
    found.expect("may search")
}

async fn live(b: &TestBroker, after: Option<TokenId>, max: usize) -> Vec<LiveToken> {
    let call = b.person_call(&format!("{GOVERNANCE}/ListTokens"), "olga");
    let page = b.broker.live_tokens(&call, after, max).await;
    page.expect("may read")
}

fn name(text: &str) -> ActionName {
    ActionName::parse(text).expect("name")
}

fn agent_id(text: &str) -> AgentId {
    AgentId::parse(text).expect("id")
}

fn person_id(text: &str) -> PersonId {
    PersonId::parse(text).expect("id")
}

struct AgentInTask {
    agent: TestAgent,
    task: TaskId,
    asked: usize,
}

impl AgentInTask {
    async fn new(b: &TestBroker, id: &str) -> Self {
        let agent = b.agent(id);
        let task = b.open_task(&agent).await;
        Self {
            agent,
            task,
            asked: 0,
        }
    }

    async fn pending(&mut self, b: &TestBroker, action: &Action) -> AccessRequestId {
        self.asked += 1;
        let request = format!("h-{}", self.asked);
        let evidence = Some(b.svid(&self.agent));
        let asked =
            b.request_token_with_evidence(&self.agent, self.task, action, 60, &request, evidence);
        asked.await.pending().access_request
    }

    async fn token(&self, b: &TestBroker, action: &Action) -> TokenId {
        let request = format!("h-{}", self.asked);
        let evidence = Some(b.svid(&self.agent));
        let asked =
            b.request_token_with_evidence(&self.agent, self.task, action, 60, &request, evidence);
        asked.await.token().issued.jti
    }

    /// Requested, approved by maria after `seconds`, and minted.
    async fn approved(&mut self, b: &TestBroker, action: &Action, seconds: u32) -> TokenId {
        let id = self.pending(b, action).await;
        b.manual_clock.advance_millis(seconds * 1_000);
        b.approve("maria", id, "one-security").await;
        self.token(b, action).await
    }
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
    agent_in_task.asked += 1;
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

    let figures = b.broker.state().stats();
    let (triage, disabling) = (agent_id("triage"), name("account.disable"));
    let habit = figures.action_stats(&triage, &disabling).expect("a habit");
    assert_eq!(
        (habit.requested, habit.granted, habit.denied_by_rules),
        (4, 1, 1),
        "{habit:?}"
    );
    assert_eq!(
        (habit.approved, habit.denied, habit.expired),
        (1, 1, 1),
        "{habit:?}"
    );
    let decided = |after_s: i64, who: &str| Some((START.plus_secs(after_s), person_id(who)));
    assert_eq!(habit.last_approved, decided(7, "maria"));
    assert_eq!(habit.last_denied, decided(28, "lee"));
    assert_eq!(habit.hours[8], 2, "issued and denied");
    assert_eq!(figures.agent(&triage).requested, 4);
    assert_eq!(figures.action_stats(&triage, &name("case.read")), None);
    let opinion = |who: &str| {
        let opinion = figures.approver_action(&person_id(who), &triage, &disabling);
        (opinion.approvals, opinion.denials)
    };
    assert_eq!(
        [opinion("maria"), opinion("lee"), opinion("dana")],
        [(1, 0), (0, 1), (0, 0)]
    );
    let rows = rows(&b, "maria");
    let asks = &rows["destructive-needs-a-yes"];
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
    let no = &rows["accounts-belong-to-the-identity-provider"];
    assert_eq!((no.hits, no.step_ups), (1, 0));

    // A vote on a closed request is not counted.
    let late = b.begin_vote("maria", lapsed, "one-security", Verdict::Approve);
    late.await.expect_err("too late");
    let before = b.broker.state().canonical_snapshot();
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(b.broker.state().canonical_snapshot(), before, "law 9");
    recount(&b.dir, b.broker.state());
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
        let stamped = rows(&b, "olga")["destructive-needs-a-yes"].rubber_stamp;
        assert!(!stamped && !approvers(&b)["maria"].rubber_stamp, "{n}");
        // Time passes between votes; each vote comes within two seconds.
        agent_in_task.approved(&b, &disable("ann"), 2).await;
        b.manual_clock.advance_millis(60_000);
    }
    assert!(rows(&b, "olga")["destructive-needs-a-yes"].rubber_stamp);
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
    let odd = |id| {
        let odd = b.broker.state().stats().anomalies(&id);
        odd.expect("remembered").to_vec()
    };
    assert_eq!(odd(first), [Anomaly::NoHistory]);
    b.approve("maria", first, "one-security").await;
    agent_in_task.token(&b, &disable("ann")).await;
    for _ in 0..4 {
        agent_in_task.approved(&b, &disable("ann"), 1).await;
    }
    let usual = agent_in_task.pending(&b, &disable("ann")).await;
    assert_eq!(odd(usual), []);
    let target = agent_in_task.pending(&b, &disable("cara")).await;
    assert_eq!(odd(target), [Anomaly::NewTarget]);
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let other = agent_in_task.pending(&b, &isolate).await;
    assert_eq!(odd(other), [Anomaly::FirstRequest]);
    assert_eq!(
        odd(first),
        [Anomaly::NoHistory],
        "later requests change nothing"
    );
    let b = b.restart(FaultInjection::default()).await;
    let kept = b.broker.state().stats().anomalies(&target);
    assert_eq!(kept.as_deref(), Some(&[Anomaly::NewTarget][..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undecided_requests_are_not_history() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    let odd = |id| {
        let odd = b.broker.state().stats().anomalies(&id);
        odd.expect("remembered").to_vec()
    };
    // Cancelled requests and requests denied by rules: never decided by a person.
    for n in 0..8 {
        let id = agent_in_task.pending(&b, &disable("ann")).await;
        assert_eq!(odd(id), [Anomaly::NoHistory], "{n}");
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
    let figures = b.broker.state().stats();
    let habit = figures.action_stats(&triage, &disabling).expect("a habit");
    assert_eq!(
        (habit.requested, habit.denied_by_rules, habit.decided()),
        (16, 8, 0)
    );
    assert_eq!(
        habit.requests_on(b.now()),
        16,
        "requests of a day are counted"
    );
    assert_eq!(
        (habit.hours, habit.targets),
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
    assert_eq!(odd(id), [Anomaly::LittleHistory { decided: 1 }]);
    recount(&b.dir, b.broker.state());
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
            "nothing was decided on this target before",
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
async fn agent_ceiling_usage() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    b.manual_clock.advance_millis(5_000);
    agent_in_task.asked = 1;
    agent_in_task.token(&b, &read_case()).await;
    agent_in_task.approved(&b, &disable("ann"), 1).await;
    let show = |id: &str| {
        let call = b.person_call(&format!("{GOVERNANCE}/GetAgent"), "audit");
        b.broker.get_agent(&call, &agent_id(id)).expect("may read")
    };
    let triage = show("triage");
    assert_eq!(triage.attested_at, Some(START.plus_secs(6)));
    let used: Vec<_> = triage
        .activity
        .iter()
        .map(|used| (used.action.as_str(), used.stats.requested, used.in_ceiling))
        .collect();
    assert_eq!(
        used,
        [
            ("account.disable", 1, true),
            ("case.read", 1, true),
            ("case.note", 0, true),
            ("host.isolate", 0, true),
        ]
    );
    let reporter = show("reporter");
    assert_eq!(reporter.attested_at, None);
    assert_eq!(reporter.activity.len(), 1);
    // Actions used before the ceiling was lowered stay listed.
    let lower = |text: &str| text.replacen("\"account.disable\", ", "", 1);
    b.apply_policy(b.env.policy_with("agents.toml", lower))
        .await
        .expect("in force");
    let triage = show("triage").activity;
    let gone = triage.iter().find(|used| !used.in_ceiling).expect("one");
    assert_eq!(
        (gone.action.as_str(), gone.stats.approved),
        ("account.disable", 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_tokens_are_listed_by_expiry() {
    let b = TestBroker::start().await;
    let mut triage = AgentInTask::new(&b, "triage").await;
    let reporter = AgentInTask::new(&b, "reporter").await;
    let disabling = triage.approved(&b, &disable("ann"), 0).await;
    let mut jtis = vec![disabling];
    for (n, ttl) in [300, 120, 500].into_iter().enumerate() {
        let evidence = Some(b.svid(&reporter.agent));
        let request = format!("r-{n}");
        let case = read_case();
        let asked = b.request_token_with_evidence(
            &reporter.agent,
            reporter.task,
            &case,
            ttl,
            &request,
            evidence,
        );
        jtis.push(asked.await.token().issued.jti);
    }
    let order: Vec<_> = live(&b, None, 100).await.iter().map(|t| t.jti).collect();
    assert_eq!(order, [jtis[0], jtis[2], jtis[1], jtis[3]]);
    let page = live(&b, None, 2).await;
    assert_eq!(page.len(), 2);
    let rest = live(&b, Some(page[1].jti), 2).await;
    let rest: Vec<_> = rest.iter().map(|t| t.jti).collect();
    assert_eq!(rest, order[2..]);
    let first = &page[0];
    assert_eq!(first.uses_left, Some(1));
    assert_eq!(
        first.profiles,
        [ProfileName::parse("one-security").expect("name")]
    );
    assert_eq!(
        (
            first.agent.as_str(),
            first.owner.as_str(),
            first.target.id.as_str()
        ),
        ("triage", "dana", "ann")
    );
    assert_eq!(page[1].uses_left, None);
    // Revoked, used up or expired tokens are not listed.
    b.revoke(jtis[3]).await.expect("revoked");
    assert_eq!(live(&b, None, 100).await.len(), 3);
    b.manual_clock.advance_millis(121_000);
    let left: Vec<_> = live(&b, None, 100).await.iter().map(|t| t.jti).collect();
    assert_eq!(left, [jtis[1]]);
    b.suspend("reporter").await.expect("suspended");
    assert!(live(&b, None, 100).await.is_empty());
}

/// One task with every event: requested, denied, approved, used, revoked, expired, ended.
async fn full_life(b: &TestBroker) -> AgentInTask {
    let mut agent_in_task = AgentInTask::new(b, "triage").await;
    let id = agent_in_task.pending(b, &disable("ann")).await;
    b.vote("dana", id, "one-security", Verdict::Approve)
        .await
        .expect_err("the owner cannot vote");
    b.manual_clock.advance_millis(4_000);
    b.approve("maria", id, "one-security").await;
    let (evidence, ann) = (Some(b.svid(&agent_in_task.agent)), disable("ann"));
    let asked = b.request_token_with_evidence(
        &agent_in_task.agent,
        agent_in_task.task,
        &ann,
        60,
        "h-1",
        evidence,
    );
    let token = asked.await.token();
    b.consume("idp", &token.token, "use-1").await.expect("used");
    let note = action(
        "case.note",
        "Case",
        "INC-8841",
        CASES,
        &[("text", Param::Str("CANARY words".to_owned()))],
    );
    agent_in_task.asked += 1;
    let noted = agent_in_task.token(b, &note).await;
    b.revoke(noted).await.expect("revoked");
    agent_in_task.asked += 1;
    agent_in_task.token(b, &read_case()).await;
    b.manual_clock.advance_millis(90_000);
    b.complete_task(&agent_in_task.agent, agent_in_task.task)
        .await
        .expect("ends");
    agent_in_task
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeline_covers_the_whole_task() {
    let b = TestBroker::start().await;
    let agent_in_task = full_life(&b).await;
    let read = timeline(&b, "olga", agent_in_task.task)
        .await
        .expect("may read");
    let told: Vec<_> = read
        .events
        .iter()
        .map(|m| (m.what, m.who.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("evidence verified", "spiffe://soc.example/agent/triage"),
            ("task opened", "triage"),
            ("approval requested", "triage"),
            ("vote rejected", "dana"),
            ("vote: approve", "maria"),
            ("token issued", "triage"),
            ("token used", "idp"),
            ("token issued", "triage"),
            ("token revoked", "olga"),
            ("token issued", "triage"),
            ("token expired", "broker"),
            ("token expired", "broker"),
            ("task ended", "broker"),
        ]
    );
    assert_eq!((read.ended, read.left_out), (Some(EndCause::Completed), 0));
    assert_eq!(
        (read.agent.as_str(), read.owner.as_str()),
        ("triage", "dana")
    );
    let given = read.events.iter().find(|m| m.what == "token issued");
    let given = given.expect("one");
    assert_eq!(
        given.detail,
        "account.disable on Account::ann for 1m, approved under one-security"
    );
    assert!(given.ids[0].starts_with("tok_") && given.ids[2].starts_with("areq_"));
    for moment in &read.events {
        let stored = moment.index.map(|index| b.broker.journal().entry(index));
        let stored = stored.map(|read| read.expect("readable").expect("there"));
        assert!(stored.is_none_or(|s| s.text.contains(&format!("\"kind\":\"{}\"", moment.kind))));
    }
    // After a restart it reads the same.
    let b = b.restart(FaultInjection::default()).await;
    let again = timeline(&b, "audit", agent_in_task.task)
        .await
        .expect("may read");
    assert_eq!(again.events, read.events);
    // A freeze ends it with its own entry.
    let frozen = AgentInTask::new(&b, "reporter").await;
    b.freeze("owner/maria").await.expect("frozen");
    let read = timeline(&b, "olga", frozen.task).await.expect("may read");
    assert_eq!(read.events.last().map(|m| m.what), Some("frozen"));
    assert_eq!(read.ended, Some(EndCause::Frozen));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeline_is_visible_to_asked_approvers_only() {
    let b = TestBroker::start().await;
    let mut agent_in_task = AgentInTask::new(&b, "triage").await;
    let nobody = TaskId::from_random([7; 16]);
    assert_eq!(
        timeline(&b, "maria", nobody).await.err(),
        Some(Reason::NotFound)
    );
    assert_eq!(
        timeline(&b, "maria", agent_in_task.task).await.err(),
        Some(Reason::NotFound),
        "no approver was asked yet"
    );
    timeline(&b, "olga", agent_in_task.task)
        .await
        .expect("operators see all");
    agent_in_task.pending(&b, &disable("ann")).await;
    timeline(&b, "maria", agent_in_task.task)
        .await
        .expect("asked");
    let elsewhere = |text: &str| {
        text.replacen(
            "name = \"Maria Moreau\"\ngroups = [\"security\"]",
            "name = \"Maria Moreau\"\ngroups = []",
            1,
        )
    };
    b.apply_policy(b.env.policy_with("people.toml", elsewhere))
        .await
        .expect("in force");
    assert_eq!(
        timeline(&b, "maria", agent_in_task.task).await.err(),
        Some(Reason::NotFound),
        "other approvers were asked"
    );
    timeline(&b, "lee", agent_in_task.task)
        .await
        .expect("asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_matches_whole_words() {
    let b = TestBroker::start().await;
    let agent_in_task = full_life(&b).await;
    let kinds = |found: &SearchPage| found.events.iter().map(|m| m.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&search(&b, "maria", None).await), ["VoteCast"]);
    assert_eq!(kinds(&search(&b, "votecast", None).await), ["VoteCast"]);
    assert_eq!(
        kinds(&search(&b, "Account::ann", None).await),
        ["TokenIssued", "AccessRequestOpened"]
    );
    assert_eq!(
        kinds(&search(&b, "account.disable", None).await),
        ["TokenIssued", "AccessRequestOpened"]
    );
    let of_task = search(&b, &agent_in_task.task.to_string(), None).await;
    assert_eq!(of_task.events.first().map(|m| m.kind), Some("TaskEnded"));
    assert_eq!(of_task.events.last().map(|m| m.kind), Some("TaskOpened"));
    assert_eq!(of_task.next, None);
    for nothing in [
        "accoun",
        "mari",
        "task_",
        "INC-8841 ",
        "kind",
        "CANARY words",
        "phish confirmed",
    ] {
        assert!(
            search(&b, nothing, None).await.events.is_empty(),
            "{nothing}"
        );
    }
    let all = search(&b, "", None).await;
    let indexes: Vec<u64> = all.events.iter().filter_map(|m| m.index).collect();
    let last = b.broker.state().position().1;
    assert_eq!(indexes, (0..=last).rev().collect::<Vec<_>>());
    // The next page continues below.
    let below = search(&b, "TokenIssued", indexes.get(3).copied()).await;
    let whole = search(&b, "TokenIssued", None).await;
    let expected = whole.events.iter().filter(|m| m.index < Some(indexes[3]));
    assert_eq!(below.events, expected.cloned().collect::<Vec<_>>());
    let call = b.person_call(&format!("{GOVERNANCE}/SearchJournal"), "olga");
    let long = b.broker.search(&call, &"x".repeat(257), None).await;
    assert_eq!(refused(long), Reason::Malformed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_is_bounded_and_resumable() {
    let b = TestBroker::start().await;
    let many = SEARCH_SCAN_MAX + 100;
    fill(b.broker.journal(), many).await;
    let first = search(&b, "EpochStarted", None).await;
    assert!(first.events.is_empty());
    let next = first.next.expect("more below");
    assert_eq!(b.broker.state().position().1 + 1 - next, SEARCH_SCAN_MAX);
    let second = search(&b, "EpochStarted", Some(next)).await;
    assert_eq!(second.events.len(), 1);
    assert_eq!(second.next, None);
    let page = search(&b, "RefusalsCounted", None).await;
    assert_eq!(page.events.len(), dipylon::broker::SEARCH_PAGE_MAX);
    assert_eq!(page.next, page.events.last().and_then(|m| m.index));
}

async fn fill(journal: &Journal, many: u64) {
    let fact = |count| {
        Event::RefusalsCounted(RefusalsCounted {
            since: START,
            count,
        })
    };
    for chunk in 0..many.div_ceil(1_000) {
        let left = (many - chunk * 1_000).min(1_000);
        let appends: Vec<_> = (0..left)
            .map(|n| {
                let journal = journal.clone();
                let append = Append::one(fact(n), Vec::new());
                tokio::spawn(async move { journal.append(append).await })
            })
            .collect();
        for append in appends {
            append.await.expect("runs").expect("appended");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_leaks_no_text_or_secrets() {
    let b = TestBroker::start().await;
    let agent_in_task = full_life(&b).await;
    b.suspend("triage").await.expect("suspended");
    b.freeze("all").await.expect("frozen");
    let mut told: Vec<TimelineEvent> = timeline(&b, "olga", agent_in_task.task)
        .await
        .expect("may")
        .events;
    told.extend(search(&b, "", None).await.events);
    let told = format!("{told:?}");
    for shown in ["case.note on Case::INC-8841", "frozen", "agent suspended"] {
        assert!(told.contains(shown), "{shown}: {told}");
    }
    for secret in [
        "CANARY",
        "phish confirmed",
        "contain INC-8841",
        "an incident",
        "commitment",
        "not_after",
        "end_sessions",
    ] {
        assert!(!told.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_over_grpc() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let disable = crate::support::served_broker::order(disable("ann"), "r-1");
    let Ok(dipylon_sdk::client::TokenOutcome::Pending(_)) = task.request_token(&disable).await
    else {
        panic!("pending")
    };
    let read = crate::support::served_broker::order(read_case(), "r-2");
    let Ok(dipylon_sdk::client::TokenOutcome::Token(token)) = task.request_token(&read).await
    else {
        panic!("a token")
    };
    let (olga, maria, audit) = (s.operator("olga"), s.operator("maria"), s.operator("audit"));
    for reader in [&olga, &maria, &audit] {
        let rules = reader.rules().await.expect("may read");
        let asks = rules
            .iter()
            .find(|r| r.rule_id == "destructive-needs-a-yes");
        let asks = asks.expect("listed");
        assert_eq!(
            (asks.matches, asks.step_ups, asks.median_seconds),
            (1, 1, None)
        );
        assert!(asks.why.starts_with("Somebody from security"));
        let told = reader.timeline(task.id()).await.expect("may read");
        let kinds: Vec<_> = told.entries.iter().map(|m| m.kind.as_str()).collect();
        assert_eq!(
            kinds,
            ["", "TaskOpened", "AccessRequestOpened", "TokenIssued"]
        );
        assert_eq!((told.agent_id.as_str(), told.left_out), ("triage", 0));
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
    assert_eq!(agent.activity.len(), 4);
    assert!(agent.attested_at.is_some());
}

/// Recomputes the statistics from the stored entries in a naive way, and compares.
pub fn recount(dir: &std::path::Path, state: &State) {
    #[derive(Default)]
    struct RecountedHabit {
        asked: u64,
        granted: u64,
        refused: u64,
        denied: u64,
        expired: u64,
        approved: u64,
        hours: [u32; 24],
        targets: BTreeSet<Target>,
    }
    impl RecountedHabit {
        /// Counts a decided request opened at this time.
        fn learn(&mut self, asked_at: Timestamp, target: &Target) {
            let text = asked_at.to_string();
            let hour: usize = text[11..13].parse().expect("RFC 3339");
            self.hours[hour] += 1;
            self.targets.insert(target.clone());
        }
    }
    let mut habits: BTreeMap<(AgentId, ActionName), RecountedHabit> = BTreeMap::new();
    let mut hits: BTreeMap<String, u64> = BTreeMap::new();
    let mut votes: BTreeMap<PersonId, (u64, u64)> = BTreeMap::new();
    let mut agents: BTreeMap<TaskId, AgentId> = BTreeMap::new();
    let mut decided: BTreeMap<AgentId, u64> = BTreeMap::new();
    let mut requests: BTreeMap<AccessRequestId, (AgentId, ActionName)> = BTreeMap::new();
    let mut asks: BTreeMap<AccessRequestId, (Timestamp, Target)> = BTreeMap::new();
    let journal = JournalReader::open(dir).expect("readable");
    let walked = journal.read_all(|stored| {
        let mut hit = |decision: &DecisionRecord| {
            for rule in decision.rules.iter() {
                *hits.entry(rule.id.to_string()).or_default() += 1;
            }
        };
        let entry = Entry::parse(&stored.text).expect("an entry");
        match entry.event {
            Event::TaskOpened(f) => {
                agents.insert(f.task, f.agent);
            }
            Event::RequestDenied(f) => {
                if let Some(decision) = &f.decision {
                    hit(decision);
                    let key = (agents[&f.task].clone(), f.action.action.clone());
                    let habit = habits.entry(key).or_default();
                    habit.asked += 1;
                    habit.refused += 1;
                }
            }
            Event::AccessRequestOpened(f) => {
                hit(&f.decision);
                let key = (f.agent, f.action.action);
                habits.entry(key.clone()).or_default().asked += 1;
                asks.insert(f.access_request, (entry.at, f.action.target));
                requests.insert(f.access_request, key);
            }
            Event::VoteCast(f) => {
                let (yes, no) = votes.entry(f.voter).or_default();
                match f.verdict {
                    Verdict::Approve => *yes += 1,
                    Verdict::Deny => {
                        *no += 1;
                        let key = requests[&f.access_request].clone();
                        *decided.entry(key.0.clone()).or_default() += 1;
                        let habit = habits.entry(key).or_default();
                        habit.denied += 1;
                        let (at, target) = &asks[&f.access_request];
                        habit.learn(*at, target);
                    }
                }
            }
            Event::AccessRequestClosed(f) if f.cause == CloseCause::Expired => {
                let key = requests[&f.access_request].clone();
                habits.entry(key).or_default().expired += 1;
            }
            Event::TokenIssued(f) => {
                hit(&f.decision);
                *decided.entry(f.agent.clone()).or_default() += 1;
                let key = (f.agent, f.action.action.clone());
                let habit = habits.entry(key).or_default();
                let at = f.consumed.map_or(entry.at, |id| asks[&id].0);
                habit.learn(at, &f.action.target);
                habit.asked += u64::from(f.consumed.is_none());
                habit.granted += 1;
                habit.approved += u64::from(f.approval.is_some());
            }
            _ => {}
        }
        Ok(())
    });
    walked.expect("walked");
    let figures = state.stats();
    for ((agent, action), plain) in &habits {
        let habit = figures.action_stats(agent, action).expect("counted");
        assert_eq!(
            (habit.requested, habit.granted, habit.denied_by_rules),
            (plain.asked, plain.granted, plain.refused),
            "{agent} {action}"
        );
        assert_eq!(
            (habit.approved, habit.denied, habit.expired),
            (plain.approved, plain.denied, plain.expired),
            "{agent} {action}"
        );
        let of_days: u32 = habit.days.iter().map(|(_, asks)| asks).sum();
        assert_eq!(u64::from(of_days), plain.asked);
        assert_eq!(habit.hours, plain.hours, "{agent} {action}");
        match habit.targets {
            KnownTargets::All(targets) => {
                let targets: BTreeSet<Target> = targets.into_iter().collect();
                assert_eq!(targets, plain.targets, "{agent} {action}");
            }
            KnownTargets::Many => assert!(plain.targets.len() > TARGETS_MAX),
        }
    }
    for (agent, count) in &decided {
        assert_eq!(figures.agent(agent).decided, *count, "{agent}");
    }
    for (rule, count) in &hits {
        assert_eq!(figures.rule(rule).hits, *count, "{rule}");
    }
    for (person, counts) in &votes {
        let approver = figures.approver(person);
        assert_eq!((approver.approvals, approver.denials), *counts, "{person}");
    }
}
