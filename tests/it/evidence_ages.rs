//! The two ages of evidence: since its issuer issued it, and since this broker last verified it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use dipylon::audit::{AuditError, DecisionError};
use dipylon::broker::{OpenTaskInput, OpenTaskReply, Refusal, RequestTokenInput};
use dipylon::rate_limit::RateLimitConfig;
use dipylon_sdk::client::{AgentClient, Error, EvidenceSource, OpenTaskRequest, TokenOutcome};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::*;
use serde_json::json;

use crate::audit_votes::journal_copy::JournalCopy;
use crate::exec::setup::{CommandOutput, ExecSetup, READ};
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::wait::until;
use crate::support::*;

const TRIAGE: &str = "spiffe://soc.example/agent/triage";

/// Evidence that was issued that long ago and has as long left that it lives for ten minutes.
fn issued_before(b: &TestBroker, seconds: i64) -> Evidence {
    let iat = b.now().secs() - seconds;
    let claims = json!({ "sub": TRIAGE, "aud": [URL], "iat": iat, "exp": iat + 600 });
    Evidence::JwtSvid(b.env.svid_with(claims))
}

async fn open(
    b: &TestBroker,
    agent: &TestAgent,
    evidence: &Evidence,
) -> Result<OpenTaskReply, Refusal> {
    let evh = dipylon::verify::evidence_hash(evidence);
    let call = b.call(
        "dipylon.v1.TaskService/OpenTask",
        &agent.key,
        None,
        Some(evh),
    );
    let ask = OpenTaskInput {
        evidence: evidence.clone(),
        purpose: UntrustedText::parse("purpose", "x").expect("prose"),
        max_duration: 3_600,
        idempotency_key: IdempotencyKey::parse("open").expect("id"),
        heartbeat: None,
    };
    b.broker.open_task(&call, ask).await
}

async fn read(
    b: &TestBroker,
    agent: &TestAgent,
    task: TaskId,
    evidence: Option<Evidence>,
) -> Result<dipylon::broker::TokenReply, Refusal> {
    b.request_token_with_evidence(agent, task, &read_case(), 60, "r", evidence)
        .await
}

async fn broker_with_rule(rule: &str) -> TestBroker {
    let mut env = TestEnvironment::new();
    let rules = env.policy.get_mut("rules/20-guardrails.cedar");
    rules.expect("rules").push_str(rule);
    TestBroker::start_with(env, dipylon::journal::FaultInjection::default()).await
}

/// The example's rule: attested within the last five minutes.
#[tokio::test]
async fn evidence_issued_too_long_ago_is_stale_at_both_calls() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let entries = b.broker.show().position().1;
    let refusal = open(&b, &triage, &issued_before(&b, 331)).await;
    let refusal = refusal.expect_err("331 s");
    assert_eq!(
        (refusal.reason, refusal.gives_nonce),
        (Reason::EvidenceStale, true)
    );
    let call = b.person_call("dipylon.v1.GovernanceService/Explain", "olga");
    let id = refusal.correlation.to_string();
    let explained = b.broker.explain(&call, &id).await.expect("remembered");
    let why = "331 s since it was issued, 0 s since it was verified";
    assert!(explained.lines[1].1.contains(why), "{explained:?}");
    assert_eq!(b.broker.show().position().1, entries, "nothing is written");

    let old = issued_before(&b, 299);
    let task = open(&b, &triage, &old).await.expect("299 s").task.task;
    let issued = read(&b, &triage, task, None).await.token().issued;
    let input = &issued.decision.input;
    assert_eq!(
        (
            input.evidence_issued_age_ms,
            input.evidence_verified_age_ms,
            issued.evidence.issued_at
        ),
        (299_000, 0, Some(b.now().plus_secs(-299)))
    );
    b.manual_clock.advance_millis(32_000);
    let again = async |evidence| {
        b.request_token_with_evidence(&triage, task, &read_case(), 60, "r-2", evidence)
            .await
    };
    // The evidence is valid and was verified half a minute ago; to show it again makes it no younger.
    assert_eq!(refused(again(None).await), Reason::EvidenceStale);
    assert_eq!(refused(again(Some(old)).await), Reason::EvidenceStale);
    let issued = again(Some(issued_before(&b, 7))).await.token().issued;
    let ages = issued.decision.input.evidence_ages();
    assert_eq!((ages.issued_ms, ages.verified_ms), (7_000, 0));
    assert_eq!(b.broker.show().position().1, entries + 3, "no denial");
    b.check_invariants();
}

#[tokio::test]
async fn a_clock_ahead_gives_age_zero() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = open(&b, &triage, &issued_before(&b, -4)).await;
    let task = task.expect("within the leeway").task.task;
    let issued = read(&b, &triage, task, None).await.token().issued;
    assert_eq!(issued.decision.input.evidence_ages(), EvidenceAges::ZERO);
    b.check_invariants();
}

/// A rule about an action refuses older evidence for it; the agent may show newer evidence, which is no denial on its record.
#[tokio::test]
async fn an_action_may_ask_for_newer_evidence() {
    let b = broker_with_rule(
        "\n@id(\"fresh\") forbid (principal, action == Action::\"case.read\", resource) when { context.evidence.issued_age > duration(\"1m\") };\n",
    )
    .await;
    let triage = b.agent("triage");
    let task = open(&b, &triage, &issued_before(&b, 61)).await;
    let task = task.expect("opens").task.task;
    let entries = b.broker.show().position().1;
    assert_eq!(
        refused(read(&b, &triage, task, None).await),
        Reason::EvidenceStale
    );
    assert_eq!(b.broker.show().position().1, entries, "no denial");
    read(&b, &triage, task, Some(issued_before(&b, 60)))
        .await
        .token();
    // What no evidence would change is denied, however old the evidence is.
    let other = b
        .request_token(&triage, task, &disable("break-glass"), 60, "r-3")
        .await;
    assert_eq!(other.denied().why, DeniedReason::ForbiddenByRule);
    b.check_invariants();
}

#[tokio::test]
async fn verified_age_is_since_this_broker_saw_it() {
    let b = broker_with_rule(
        "\n@id(\"shown\") forbid (principal, action == Action::\"case.read\", resource) unless { context.evidence.verified_age <= duration(\"10s\") };\n",
    )
    .await;
    let triage = b.agent("triage");
    let old = issued_before(&b, 200);
    let task = open(&b, &triage, &old).await.expect("opens").task.task;
    b.manual_clock.advance_millis(10_000);
    read(&b, &triage, task, None).await.token();
    b.manual_clock.advance_millis(1);
    let again = async |evidence| {
        b.request_token_with_evidence(&triage, task, &read_case(), 60, "r-2", evidence)
            .await
    };
    assert_eq!(refused(again(None).await), Reason::EvidenceStale);
    // The same evidence again: this broker sees it now.
    let issued = again(Some(old)).await.token().issued;
    let ages = issued.decision.input.evidence_ages();
    assert_eq!((ages.issued_ms, ages.verified_ms), (210_001, 0));
    b.check_invariants();
}

#[tokio::test]
async fn evidence_without_an_issue_time_counts_as_issued_in_1970() {
    let claims = |b: &TestBroker| {
        let exp = b.now().secs() + 300;
        Evidence::JwtSvid(
            b.env
                .svid_with(json!({ "sub": TRIAGE, "aud": [URL], "exp": exp })),
        )
    };
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let refusal = open(&b, &triage, &claims(&b)).await;
    let refusal = refusal.expect_err("no issue time");
    assert_eq!(refusal.reason, Reason::EvidenceStale);
    let why = "it does not say when it was issued, 0 s since it was verified";
    assert!(refusal.message.contains(why), "{}", refusal.message);
    let mut env = TestEnvironment::new();
    let rules = env.policy.get_mut("rules/10-agents.cedar").expect("rules");
    *rules = rules.replace("evidence.issued_age", "evidence.verified_age");
    let b = TestBroker::start_with(env, dipylon::journal::FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = open(&b, &triage, &claims(&b)).await.expect("opens");
    let issued = read(&b, &triage, task.task.task, None).await.token().issued;
    assert_eq!(issued.evidence.issued_at, None);
    assert_eq!(
        issued.decision.input.evidence_issued_age_ms,
        b.now().millis()
    );
    b.check_invariants();
}

/// A bundle is asked about a token with the ages on record, not with those of today.
#[tokio::test]
async fn bundles_are_asked_with_the_recorded_ages() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = open(&b, &triage, &issued_before(&b, 200)).await;
    let task = task.expect("opens").task.task;
    let issued = b
        .request_token(&triage, task, &read_case(), 900, "r")
        .await
        .token();
    b.manual_clock.advance_millis(150_000);
    let within = |seconds: i64| {
        b.env.policy_with("rules/20-guardrails.cedar", |text| {
            format!("{text}\n@id(\"within\") forbid (principal, action == Action::\"case.read\", resource) when {{ context.evidence.issued_age > duration(\"{seconds}s\") }};\n")
        })
    };
    let applied = b.apply_policy(within(200)).await.expect("applied");
    assert_eq!(applied.revoked.grants, 0, "200 s old when it was issued");
    assert!(b.introspect("cases", &issued.token).await);
    let applied = b.apply_policy(within(199)).await.expect("applied");
    assert_eq!(applied.revoked.grants, 1);
    b.check_invariants();
}

/// Rules that ask `one-security` for evidence verified within the last minute, and `lead` for older evidence.
const BY_AGE: &str = r#"
@id("shown-now") @step_up("one-security")
forbid (principal, action == Action::"case.read", resource)
when { context.evidence.verified_age <= duration("1m") }
unless { context.approvals.contains(StepUp::"one-security") };
@id("shown-before") @step_up("lead")
forbid (principal, action == Action::"case.read", resource)
when { context.evidence.verified_age > duration("1m") }
unless { context.approvals.contains(StepUp::"lead") };
"#;

async fn broker_with_lead(rules: &str) -> TestBroker {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[profile.lead]\ngroup = \"security\"\nquorum = 1\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"key\"\n");
    let text = env.policy.get_mut("rules/20-guardrails.cedar");
    text.expect("rules").push_str(rules);
    TestBroker::start_with(env, dipylon::journal::FaultInjection::default()).await
}

/// What a waiting access request asks for follows newer evidence, and never older evidence.
#[tokio::test]
async fn newer_evidence_is_asked_what_the_rules_ask_of_it() {
    let b = broker_with_lead(BY_AGE).await;
    let triage = b.agent("triage");
    let old = issued_before(&b, 10);
    let task = open(&b, &triage, &old).await.expect("opens").task.task;
    b.manual_clock.advance_millis(60_001);
    let first = read(&b, &triage, task, None).await.pending();
    assert_eq!(first.needs[0].profile.name.as_str(), "lead");
    let id = first.access_request;
    b.approve("maria", id, "lead").await;
    // The same evidence again: verified now, issued no later.
    let entries = b.broker.show().position().1;
    let now = read(&b, &triage, task, Some(old)).await.pending();
    assert_eq!(now.access_request, id);
    assert_eq!(now.needs.len(), 1);
    assert_eq!(now.needs[0].profile.name.as_str(), "one-security");
    assert_eq!(b.broker.show().position().1, entries + 1);
    let request = b.broker.show().access_request(&id).expect("there");
    let recorded = request.decision.as_ref().expect("decided");
    let ages = recorded.input.evidence_ages();
    assert_eq!((ages.issued_ms, ages.verified_ms), (70_001, 0));

    let explain = async |id: String| {
        let call = b.person_call("dipylon.v1.GovernanceService/Explain", "olga");
        let explained = b.broker.explain(&call, &id).await.expect("there");
        let lines = explained.lines.iter();
        let lines = lines.map(|(label, text)| format!("{label}: {text}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (opening, in_force) = (first.decision, recorded.id);
    let superseded = format!(
        "superseded: {opening}, by {in_force}, in force since {}",
        b.now()
    );
    let text = explain(id.to_string()).await;
    assert!(text.contains(&superseded), "{text}");
    assert!(text.contains(&format!("decision: {in_force}")), "{text}");
    assert!(
        text.contains("needs: an approval under one-security"),
        "{text}"
    );
    assert!(text.contains("verified 0s before"), "{text}");
    assert!(!text.contains("needs: an approval under lead"), "{text}");
    let text = explain(opening.to_string()).await;
    assert!(text.contains(&superseded), "{text}");
    assert!(text.contains("needs: an approval under lead"), "{text}");
    let text = explain(in_force.to_string()).await;
    assert!(!text.contains("superseded"), "{text}");

    b.approve("lee", id, "one-security").await;
    b.manual_clock.advance_millis(60_001);
    let entries = b.broker.show().position().1;
    let older = read(&b, &triage, task, None).await;
    // Maria's approval is for what was asked before, and asked again it would count no more.
    assert_eq!(refused(older), Reason::EvidenceStale);
    assert_eq!(b.broker.show().position().1, entries);
    let fresh = Some(issued_before(&b, 0));
    let issued = read(&b, &triage, task, fresh).await.token().issued;
    assert_eq!(issued.consumed, Some(id));
    b.check_invariants();
}

/// Of two rules that ask for one profile newer evidence takes one away: the approvals that were given count on.
#[tokio::test]
async fn newer_evidence_voids_no_approval_for_more() {
    let rules = BY_AGE.replace("StepUp::\"lead\"", "StepUp::\"one-security\"");
    let rules = rules.replace("@step_up(\"lead\")", "@step_up(\"one-security\")");
    let always = "when { context.evidence.verified_age <= duration(\"1m\") }\n";
    assert!(rules.contains(always));
    let rules = rules.replace(always, "");
    let b = broker_with_lead(&rules).await;
    let triage = b.agent("triage");
    let old = issued_before(&b, 10);
    let task = open(&b, &triage, &old).await.expect("opens").task.task;
    b.manual_clock.advance_millis(60_001);
    let id = read(&b, &triage, task, None).await.pending().access_request;
    let asked = |b: &TestBroker| {
        let request = b.broker.show().access_request(&id).expect("there");
        let decision = request.decision.as_ref().expect("decided");
        (decision.id, decision.rules.len())
    };
    let before = asked(&b);
    b.approve("maria", id, "one-security").await;
    let issued = read(&b, &triage, task, Some(issued_before(&b, 0))).await;
    let issued = issued.token().issued;
    assert_eq!(issued.consumed, Some(id));
    assert!(issued.approval.is_some());
    assert_eq!(asked(&b), before, "nothing was replaced");
    b.check_invariants();
}

#[tokio::test]
async fn newer_evidence_that_needs_no_approval_is_allowed() {
    let rule = BY_AGE.split("@id").nth(2).expect("two rules");
    let b = broker_with_lead(&format!("\n@id{rule}")).await;
    let triage = b.agent("triage");
    let task = open(&b, &triage, &issued_before(&b, 10)).await;
    let task = task.expect("opens").task.task;
    b.manual_clock.advance_millis(60_001);
    let id = read(&b, &triage, task, None).await.pending().access_request;
    let fresh = Some(issued_before(&b, 0));
    let issued = read(&b, &triage, task, fresh).await.token().issued;
    assert_eq!((issued.consumed, issued.approval.clone()), (Some(id), None));
    b.check_invariants();
}

/// A token is signed again on the evidence of the retry, and the rules bound its age too.
#[tokio::test]
async fn a_retry_needs_evidence_within_the_bound() {
    let b = broker_with_rule(
        "\n@id(\"shown\") forbid (principal, action == Action::\"case.read\", resource) when { context.evidence.verified_age > duration(\"10s\") };\n",
    )
    .await;
    let triage = b.agent("triage");
    let evidence = issued_before(&b, 20);
    let task = open(&b, &triage, &evidence).await.expect("opens").task.task;
    let first = read(&b, &triage, task, None).await.token();
    b.manual_clock.advance_millis(10_000);
    assert!(read(&b, &triage, task, None).await.token().reissued);
    b.manual_clock.advance_millis(1);
    let entries = b.broker.show().position().1;
    let refusal = read(&b, &triage, task, None).await.expect_err("10.001 s");
    assert_eq!(
        (refusal.reason, refusal.gives_nonce),
        (Reason::EvidenceStale, true)
    );
    assert_eq!(b.broker.show().position().1, entries);
    let again = read(&b, &triage, task, Some(evidence)).await.token();
    assert_eq!((again.issued.jti, again.reissued), (first.issued.jti, true));
    b.check_invariants();
}

/// Old evidence asks a profile that no person can satisfy; fresh evidence needs no approval.
#[tokio::test]
async fn an_unreachable_profile_for_old_evidence_is_no_denial() {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[profile.three]\ngroup = \"security\"\nquorum = 3\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"key\"\n");
    let rules = env.policy.get_mut("rules/20-guardrails.cedar");
    rules.expect("rules").push_str("\n@id(\"old\") @step_up(\"three\") forbid (principal, action == Action::\"case.read\", resource) when { context.evidence.issued_age > duration(\"1m\") } unless { context.approvals.contains(StepUp::\"three\") };\n");
    silence(&mut env.policy, "quorum-unreachable", "three");
    let b = TestBroker::start_with(env, dipylon::journal::FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = open(&b, &triage, &issued_before(&b, 61)).await;
    let task = task.expect("opens").task.task;
    let entries = b.broker.show().position().1;
    let old = read(&b, &triage, task, None).await;
    assert_eq!(refused(old), Reason::EvidenceStale);
    assert_eq!(b.broker.show().position().1, entries, "no denial");
    let fresh = Some(issued_before(&b, 60));
    read(&b, &triage, task, fresh).await.token();
    b.check_invariants();
}

/// A call that waits does not bring back the evidence that it showed at its start.
#[tokio::test]
async fn the_evidence_shown_last_is_kept() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = open(&b, &triage, &issued_before(&b, 100)).await;
    let task = task.expect("opens").task.task;
    let shown = issued_before(&b, 90);
    let evh = dipylon::verify::evidence_hash(&shown);
    let action = disable("ann");
    let call = b.call(
        "dipylon.v1.TaskService/RequestToken",
        &triage.key,
        Some(action.digest()),
        Some(evh),
    );
    let ask = RequestTokenInput {
        task,
        action,
        ttl: 60,
        reason: None,
        idempotency_key: IdempotencyKey::parse("waits").expect("id"),
        wait_ms: 60_000,
        evidence: Some(shown),
        executor: None,
        recommendation: None,
    };
    let meanwhile = async {
        let opened = || !b.broker.show().requests_of_task(&task).is_empty();
        until("the request is opened", opened).await;
        let id = b.broker.show().requests_of_task(&task)[0]
            .opened
            .access_request;
        b.manual_clock.advance_millis(5_000);
        let newer = Some(issued_before(&b, 1));
        read(&b, &triage, task, newer).await.token();
        b.approve("maria", id, "one-security").await;
    };
    let (waited, ()) = tokio::join!(b.broker.request_token(&call, ask), meanwhile);
    assert_eq!(waited.token().facts.verified_at, b.now().plus_secs(-5));
    let next = b
        .request_token(&triage, task, &read_case(), 60, "next")
        .await
        .token();
    assert_eq!(next.facts.verified_at, b.now());
    b.check_invariants();
}

/// A decision on record whose ages or moment are not those of its evidence and its entry.
#[tokio::test]
async fn audit_compares_ages_with_the_evidence_on_record() {
    let b = broker_with_lead(BY_AGE).await;
    let triage = b.agent("triage");
    let old = issued_before(&b, 11);
    let task = open(&b, &triage, &old).await.expect("opens").task.task;
    let denied = b
        .request_token(&triage, task, &disable("break-glass"), 60, "denied")
        .await;
    assert_eq!(denied.denied().why, DeniedReason::ForbiddenByRule);
    b.manual_clock.advance_millis(60_001);
    let id = read(&b, &triage, task, None).await.pending().access_request;
    read(&b, &triage, task, Some(old)).await.pending();
    b.approve("lee", id, "one-security").await;
    read(&b, &triage, task, None).await.token();
    let whole = JournalCopy::read(&b);
    whole.votes().expect("whole");
    type Change = fn(&mut PolicyInput);
    let changes: [(&str, Change); 4] = [
        ("evidence_issued_age_ms", |i| i.evidence_issued_age_ms += 1),
        ("evidence_verified_age_ms", |i| {
            i.evidence_verified_age_ms += 1;
        }),
        ("input.now", |i| i.now = i.now.plus_millis(1)),
        ("input.now", |i| {
            i.now = i.now.plus_millis(-10_001);
            i.evidence_issued_age_ms = (i.evidence_issued_age_ms - 10_001).max(0);
            i.evidence_verified_age_ms = (i.evidence_verified_age_ms - 10_001).max(0);
        }),
    ];
    let mut decisions = 0;
    for at in 0..whole.entries.len() {
        for (n, (field, change)) in changes.iter().enumerate() {
            let mut copy = whole.clone();
            let is_reassessed = match &mut copy.entries[at].event {
                Event::TokenIssued(f) => {
                    change(&mut f.decision.input);
                    false
                }
                Event::RequestDenied(f) => {
                    change(&mut f.decision.as_mut().expect("decided").input);
                    false
                }
                Event::AccessRequestOpened(f) => {
                    let AccessRequester::Agent(by) = &mut f.requester else {
                        continue;
                    };
                    change(&mut by.decision.input);
                    false
                }
                Event::AccessRequestReassessed(f) => {
                    // Less than was on record is legal, and so is a moment long before: it is recorded by a sweep as well.
                    match n {
                        0 | 1 => f.decision.input.evidence_verified_age_ms = 60_002,
                        2 => change(&mut f.decision.input),
                        _ => continue,
                    }
                    true
                }
                _ => continue,
            };
            decisions += 1;
            let field = match (is_reassessed, n) {
                (true, 0 | 1) => "evidence_verified_age_ms",
                _ => field,
            };
            match copy.votes() {
                Err(AuditError::Decision { index, why }) => {
                    let why: DecisionError = why;
                    assert_eq!(usize::try_from(index), Ok(at), "{why}");
                    assert!(why.to_string().contains(field), "{field}: {why}");
                }
                // A grant is compared with its votes first.
                other => panic!("{at} {field}: {other:?}"),
            }
        }
    }
    assert_eq!(decisions, 4 + 4 + 4 + 3);

    let mut copy = whole.clone();
    let at = copy.find(|event| matches!(event, Event::RequestDenied(_)));
    let Event::RequestDenied(f) = &mut copy.entries[at].event else {
        panic!("a denial")
    };
    f.decision
        .as_mut()
        .expect("decided")
        .input
        .evidence_issued_age_ms = 1;
    let temp = tempfile::tempdir().expect("dir");
    let dir = temp.path().join("edited");
    copy.store(&b, &dir);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
        .args(["audit", "verify", "--data-dir"])
        .arg(&dir)
        .output()
        .expect("runs");
    let error = String::from_utf8(output.stderr).expect("text");
    let says = format!("the decision of entry {at} has evidence_issued_age_ms 1,");
    assert!(!output.status.success() && error.contains(&says), "{error}");
}

/// The agent's client fetches evidence again when it is refused as too old, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_renew_evidence_once() {
    let (clock, manual) = Clock::manual(START);
    let s = ServedBroker::start_with_clock(
        TestEnvironment::new(),
        RateLimitConfig::default(),
        clock.clone(),
    )
    .await;
    let fetched = Arc::new(AtomicUsize::new(0));
    let issued_at = Arc::new(AtomicI64::new(START.secs() - 331));
    let source = {
        let (env, url) = (s.env.clone(), s.url.clone());
        let (fetched, issued_at) = (fetched.clone(), issued_at.clone());
        EvidenceSource::Fn(Arc::new(move || {
            fetched.fetch_add(1, Ordering::SeqCst);
            let iat = issued_at.load(Ordering::SeqCst);
            let claims = json!({ "sub": TRIAGE, "aud": [url], "iat": iat, "exp": iat + 3_600 });
            Ok(env.svid_with(claims))
        }))
    };
    let client = AgentClient::new(s.endpoint().with_clock(clock), source, None);
    let order = OpenTaskRequest {
        purpose: "x".into(),
        max_duration_s: 3_000,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let is_final = |error: &Error| {
        assert!(matches!(error, Error::NoNewerEvidence(_)), "{error:?}");
        assert_eq!(error.reason(), Some(Reason::EvidenceStale));
        assert!(error.to_string().contains("renew it at its issuer"));
    };
    let error = client.open_task(&order).await;
    is_final(&error.expect_err("331 s old"));
    issued_at.store(START.secs() - 200, Ordering::SeqCst);
    let task = client.open_task(&order).await.expect("opens");
    let token = async |key: &str| {
        let before = fetched.load(Ordering::SeqCst);
        let outcome = task.request_token(&token_request(read_case(), key)).await;
        (outcome, fetched.load(Ordering::SeqCst) - before)
    };
    assert!(matches!(
        token("r-1").await,
        (Ok(TokenOutcome::Token(_)), 0)
    ));
    manual.advance_millis(101_000);
    let (outcome, count) = token("r-2").await;
    is_final(&outcome.expect_err("the source gives the same"));
    assert_eq!(count, 1);
    let until = START.plus_secs(2_000);
    let waited = task
        .wait_for_token(&token_request(read_case(), "r-3"), until)
        .await;
    is_final(&waited.expect_err("no loop"));
    issued_at.store(START.secs() + 100, Ordering::SeqCst);
    let (outcome, count) = token("r-4").await;
    assert!(matches!(outcome, Ok(TokenOutcome::Token(_))), "{outcome:?}");
    assert_eq!(count, 1);
}

/// The program says what to do about evidence that its file holds for too long already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_ends_with_evidence_that_is_too_old() {
    let setup = ExecSetup::start().await;
    let iat = Clock::system().now().secs() - 331;
    let claims =
        json!({ "sub": TRIAGE, "aud": [setup.served.url], "iat": iat, "exp": iat + 3_600 });
    let svid = setup.served.env.svid_with(claims);
    std::fs::write(setup.svid(), svid.expose_secret()).expect("written");
    let run = setup.exec(&READ, &["true"]).output().await.expect("runs");
    CommandOutput::new(run)
        .stderr_contains("EVIDENCE_STALE: the evidence is too old for this call")
        .stderr_contains("renew it at its issuer")
        .stderr_contains("get newer evidence from its issuer");
}
