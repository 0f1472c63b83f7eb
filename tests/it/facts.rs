//! Named facts: an operator sets one for a while, rules read it, and what rests on it is asked again.

use std::collections::BTreeMap;

use dipylon::audit::{AgreementError, AuditError};
use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::card::{self, AccessRequestStatus};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;

use crate::audit_votes::journal_copy::JournalCopy;
use crate::support::*;

const SET: &str = "dipylon.v1.GovernanceService/SetFact";
const LIST: &str = "dipylon.v1.GovernanceService/ListFacts";
const CARD: &str = "dipylon.v1.ApprovalService/GetCard";
const WITHDRAW: &str = "dipylon.v1.GovernanceService/WithdrawPolicyProposal";
const OPERATORS: &str = "another-operator";

/// `lockdown` forbids disabling accounts and ends the tokens for it; `incident` is what ending sessions takes, or two people; `shift`
/// is what reading cases takes, and tokens end with it.
const FACTS: &str = r#"
[fact.lockdown]
title = "Nobody's account is touched"
safe = true
normal = false
max = "2h"
ends = true

[fact.incident]
title = "An incident is being handled"
safe = false
max = "4h"

[fact.shift]
title = "The shift is on"
safe = false
max = "8h"
ends = true
"#;

const RULES: &str = r#"
@id("lockdown")
@why("Nobody touches accounts in a lockdown.")
forbid (principal, action == Action::"account.disable", resource) when { context.facts.lockdown };

@id("sessions-in-an-incident")
@step_up("two-security")
forbid (principal, action == Action::"session.end", resource)
unless { context.facts.incident || context.approvals.contains(StepUp::"two-security") };

@id("reads-in-the-shift")
forbid (principal == Agent::"reporter", action == Action::"case.read", resource)
unless { context.facts.shift };
"#;

fn environment() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let files = &mut env.policy;
    files.insert("facts.toml".to_owned(), FACTS.to_owned());
    files.insert("rules/90-facts.cedar".to_owned(), RULES.to_owned());
    files.remove("tests.toml");
    env
}

/// olga and otto are operators: one of them alone changes no rule.
fn two_operators() -> TestEnvironment {
    let mut env = environment();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n");
    env.add_key("otto");
    env
}

async fn start(env: TestEnvironment) -> TestBroker {
    TestBroker::start_with(env, FaultInjection::default()).await
}

async fn set_as(
    b: &TestBroker,
    name: &str,
    fact: &str,
    value: bool,
    seconds: Option<u32>,
) -> Result<FactOutcome, Refusal> {
    let order = FactOrder {
        fact: FactName::parse(fact).expect("fact"),
        value,
        seconds,
        reason: Some(UntrustedText::parse("reason", "for a test").expect("text")),
    };
    b.broker.set_fact(&b.person_call(SET, name), &order).await
}

async fn set(b: &TestBroker, fact: &str, value: bool, seconds: Option<u32>) {
    let outcome = set_as(b, "olga", fact, value, seconds).await.expect("set");
    let expected = seconds.map(|seconds| b.now().plus_secs(seconds.into()));
    let is_set =
        matches!(outcome, FactOutcome::InForce { until, changed: true } if until == expected);
    assert!(is_set, "{outcome:?}");
}

async fn propose(b: &TestBroker, fact: &str, value: bool, seconds: Option<u32>) -> AccessRequestId {
    match set_as(b, "olga", fact, value, seconds)
        .await
        .expect("proposed")
    {
        FactOutcome::Waits(reply) => reply.access_request,
        FactOutcome::InForce { .. } => panic!("nobody agreed to it"),
    }
}

fn facts(b: &TestBroker) -> BTreeMap<String, bool> {
    let facts = b.broker.facts(&b.person_call(LIST, "olga")).expect("facts");
    let facts = facts.into_iter();
    facts
        .map(|fact| (fact.declared.name.to_string(), fact.value))
        .collect()
}

fn value(b: &TestBroker, fact: &str) -> bool {
    facts(b)[fact]
}

fn status(b: &TestBroker, id: AccessRequestId) -> AccessRequestStatus {
    let call = b.person_call(CARD, "olga");
    b.broker.card(&call, &id).expect("a card").status
}

fn end_session() -> Action {
    action("session.end", "Account", "ann", IDP, &[])
}

fn seconds(b: &TestBroker, seconds: u32) {
    b.manual_clock.advance_millis(seconds * 1000);
}

#[tokio::test]
async fn a_fact_lifts_for_a_while_what_a_rule_asks() {
    let b = start(environment()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ask = async |key: &str| {
        b.request_token(&triage, task, &end_session(), 300, key)
            .await
    };
    let id = ask("before").await.pending().access_request;
    set(&b, "incident", true, Some(120)).await;
    // What waited needs nobody any more.
    let issued = ask("before").await.token();
    let recorded = b.broker.show().grant(&issued.issued.jti).expect("granted");
    let recorded = &recorded.issued.decision.input.facts;
    assert_eq!(
        *recorded,
        FactValues::from([(FactName::parse("incident").expect("fact"), true)])
    );
    assert_eq!(status(&b, id), AccessRequestStatus::Consumed);

    // Its time is over: people again, and the token goes on.
    seconds(&b, 120);
    assert!(!value(&b, "incident"));
    ask("after").await.pending();
    b.broker.maintenance_tick().await.expect("tick");
    assert!(b.introspect("idp", &issued.token).await);
    // Set back before its time.
    set(&b, "incident", true, Some(600)).await;
    ask("again").await.token();
    set(&b, "incident", false, None).await;
    assert!(!value(&b, "incident"));
    assert!(b.introspect("idp", &issued.token).await);
    b.check_invariants();
    let b = b.restart(FaultInjection::default()).await;
    assert!(!value(&b, "incident"));
}

#[tokio::test]
async fn a_fact_that_ends_tokens_ends_them_for_good() {
    let b = start(environment()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ask = async |key: &str| {
        b.request_token(&triage, task, &disable("ann"), 900, key)
            .await
    };
    let id = ask("t").await.pending().access_request;
    b.approve("lee", id, "one-security").await;
    let issued = ask("t").await.token();
    // Another action is not read by the rule.
    let reading = read_case();
    let read = b.request_token(&triage, task, &reading, 900, "read");
    let read = read.await.token();

    set(&b, "lockdown", true, Some(60)).await;
    assert!(!b.introspect("idp", &issued.token).await);
    assert!(b.introspect("cases", &read.token).await);
    let grant = b.broker.show().grant(&issued.issued.jti).expect("a grant");
    assert_eq!(grant.ended.map(|ended| ended.cause), Some(EndCause::Policy));
    assert_eq!(ask("u").await.denied().rules[0].id, "lockdown");
    assert_eq!(
        refused(b.consume("idp", &issued.token, "u-1").await),
        Reason::TokenInactive
    );

    // Over: what has ended stays ended, and what is asked now is decided anew.
    seconds(&b, 60);
    assert!(!b.introspect("idp", &issued.token).await);
    ask("v").await.pending();
    b.check_invariants();
    let b = b.restart(FaultInjection::default()).await;
    assert!(!b.introspect("idp", &issued.token).await);
    assert!(b.introspect("cases", &read.token).await);
}

/// A token lives no longer than the value that it was issued under, of a fact that ends tokens.
#[tokio::test]
async fn tokens_end_with_the_time_of_a_fact() {
    let b = start(environment()).await;
    let reporter = b.agent("reporter");
    let task = b.open_task(&reporter).await;
    let ask = async |key: &str| {
        b.request_token(&reporter, task, &read_case(), 900, key)
            .await
    };
    ask("early").await.denied();
    set(&b, "shift", true, Some(100)).await;
    let first = ask("first").await.token();
    assert_eq!(first.issued.exp, b.now().plus_secs(100).secs());
    let limits = &first.issued.decision.ttl.limits;
    assert!(
        limits
            .iter()
            .any(|limit| &*limit.source == "fact" && limit.seconds == 100)
    );
    seconds(&b, 99);
    assert!(b.introspect("cases", &first.token).await);
    // Prolonged: what was issued before ends all the same, and more is to be had.
    set(&b, "shift", true, Some(100)).await;
    let second = ask("second").await.token();
    seconds(&b, 1);
    assert!(!b.introspect("cases", &first.token).await);
    assert!(b.introspect("cases", &second.token).await);
    // A shorter time, by the operator who may set it: what was issued for the longer one meets its end now.
    set(&b, "shift", true, Some(50)).await;
    assert!(!b.introspect("cases", &second.token).await);
    seconds(&b, 50);
    ask("late").await.denied();
    b.check_invariants();
}

/// A crash between a fact and the ends that it brings: they are made up for, also when the value is over by then, or another one.
#[tokio::test]
async fn what_a_fact_ended_stays_ended_through_a_crash() {
    let mut b = start(environment()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ask = async |b: &TestBroker| {
        b.request_token(&triage, task, &disable("ann"), 900, "t")
            .await
    };
    let id = ask(&b).await.pending().access_request;
    b.approve("lee", id, "one-security").await;
    let issued = ask(&b).await.token();
    set(&b, "lockdown", true, Some(10)).await;
    let mut cut = JournalCopy::read(&b);
    let at = cut.find(|event| matches!(event, Event::FactSet(_)));
    // In place of the ends entries that say nothing.
    for later in &mut cut.entries[at + 1..] {
        later.event = Event::RefusalsCounted(RefusalsCounted {
            since: later.at,
            count: 1,
            rows: Vec::new(),
        });
        (later.read_set, later.write_set) = (Default::default(), Default::default());
    }
    let temp = tempfile::tempdir().expect("dir");
    let dir = temp.path().join("cut");
    cut.store(&b, &dir);
    seconds(&b, 10);
    let key = SigningKey::generate().expect("key").1;
    let faults = FaultInjection::default();
    let opened = open_as(settings(), &b.env, &dir, &b.clock, &key, faults).await;
    let whole = std::mem::replace(&mut b.broker, opened.expect("starts"));
    assert!(!value(&b, "lockdown"));
    assert!(!b.introspect("idp", &issued.token).await);
    b.broker.maintenance_tick().await.expect("tick");
    let grant = b.broker.show().grant(&issued.issued.jti).expect("a grant");
    assert_eq!(grant.ended.map(|ended| ended.cause), Some(EndCause::Policy));
    drop(whole);
}

/// What the rules deny the agent that recommends, or ask more people for, ends the executor's token, too.
#[tokio::test]
async fn a_fact_about_the_recommender_ends_what_was_executed() {
    let scope = "forbid (principal == Agent::\"assistant\", action == Action::\"account.disable\", resource) when { context.facts.lockdown }";
    let denied = format!("@id(\"lockdown\") {scope};");
    let asked = format!(
        "@id(\"lockdown\") @step_up(\"two-security\") {scope} unless {{ context.approvals.contains(StepUp::\"two-security\") }};"
    );
    for rule in [denied, asked] {
        executed_until_a_fact(&rule).await;
    }
}

async fn executed_until_a_fact(rule: &str) {
    let mut env = environment();
    let rules = RULES.split_once("@id(\"sessions").expect("rules").1;
    let rules = format!("{rule}\n@id(\"sessions{rules}");
    env.policy.insert("rules/90-facts.cedar".to_owned(), rules);
    silence(&mut env.policy, "quorum-unreachable", "two-security");
    let b = start(env).await;
    let (assistant, responder) = (b.agent("assistant"), b.agent("responder"));
    let (advises, executes) = (b.open_task(&assistant).await, b.open_task(&responder).await);
    let id = b
        .request_token(&assistant, advises, &disable("ann"), 300, "r")
        .await;
    let id = id.pending().access_request;
    b.approve("dana", id, "one-security").await;
    let input = RequestTokenInput {
        task: executes,
        action: disable("ann"),
        ttl: 300,
        reason: None,
        idempotency_key: IdempotencyKey::parse("e").expect("key"),
        wait_ms: 0,
        evidence: None,
        executor: None,
        recommendation: Some(id),
    };
    let issued = b.request_with(&responder, input).await.token();
    assert!(b.introspect("idp", &issued.token).await);
    set(&b, "lockdown", true, Some(60)).await;
    assert!(!b.introspect("idp", &issued.token).await);
    b.check_invariants();
}

/// A yes rests on the facts that the rules in scope read: it is shown them, and void under others.
#[tokio::test]
async fn an_approval_is_void_under_other_facts() {
    let mut env = environment();
    let files = &mut env.policy;
    files.insert(
        "rules/91-facts.cedar".to_owned(),
        "@id(\"incident-is-short\") @max_ttl(\"2m\") forbid (principal == Agent::\"triage\", action == Action::\"account.disable\", resource) \
         unless { context.facts.incident || context.ttl <= duration(\"2m\") };"
            .to_owned(),
    );
    let b = start(env).await;
    let (triage, responder) = (b.agent("triage"), b.agent("responder"));
    let (task, other) = (b.open_task(&triage).await, b.open_task(&responder).await);
    let ask = async || {
        b.request_token(&triage, task, &disable("ann"), 100, "t")
            .await
    };
    let ask_other = async || {
        b.request_token(&responder, other, &disable("ann"), 100, "o")
            .await
    };
    let id = ask().await.pending().access_request;
    let other_id = ask_other().await.pending().access_request;
    let shown = |id| {
        let card = b.broker.card(&b.person_call(CARD, "lee"), &id);
        let card = card.expect("a card");
        let text = card::render_terminal(&card, b.now(), 100, card::LongValues::Full);
        let facts = card.named_facts.into_iter();
        (
            text,
            facts
                .map(|(name, fact)| (name, fact.value))
                .collect::<Vec<_>>(),
        )
    };
    let both = |incident| {
        vec![
            ("incident".to_owned(), incident),
            ("lockdown".to_owned(), false),
        ]
    };
    let (text, facts) = shown(id);
    assert_eq!(facts, both(false));
    assert!(
        text.contains("An incident is being handled") && text.contains("not true"),
        "{text}"
    );
    assert_eq!(shown(other_id).1, vec![("lockdown".to_owned(), false)]);
    b.approve("lee", id, "one-security").await;
    b.approve("lee", other_id, "one-security").await;

    set(&b, "incident", true, Some(600)).await;
    let asked = ask().await.pending();
    assert_eq!(asked.access_request, id);
    assert!(asked.needs[0].approvers.is_empty());
    assert_eq!(asked.void[0].changed, ["fact incident"]);
    assert_eq!(shown(id).1, both(true));
    // No rule about the other agent reads it.
    ask_other().await.token();
    b.approve("lee", id, "one-security").await;
    ask().await.token();
    b.check_invariants();
}

#[tokio::test]
async fn one_operator_sets_the_safe_value_and_two_the_other() {
    let b = start(two_operators()).await;
    // The safe value, alone; its early end takes the other one.
    set(&b, "lockdown", true, Some(3600)).await;
    let clear = propose(&b, "lockdown", false, None).await;
    assert_eq!(propose(&b, "lockdown", false, None).await, clear);
    assert!(value(&b, "lockdown"));
    // Whoever proposes never counts, nor does an approver who is no operator.
    for name in ["olga", "dana"] {
        let vote = b.vote(name, clear, OPERATORS, Verdict::Approve).await;
        assert_eq!(refused(vote), Reason::NotEligible, "{name}");
    }
    let card = b.broker.card(&b.person_call(CARD, "otto"), &clear);
    let card = card.expect("a card");
    let text = card::render_terminal(&card, b.now(), 100, card::LongValues::Full);
    for part in [
        "SET A NAMED FACT: Fact::\"lockdown\"",
        "Nobody's account is touched",
        "the rule lockdown reads it",
        "for a test",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    b.approve("otto", clear, OPERATORS).await;
    assert!(!value(&b, "lockdown"));
    assert_eq!(status(&b, clear), AccessRequestStatus::Consumed);

    // Set again it does not end earlier.
    set(&b, "lockdown", true, Some(3600)).await;
    let shorter = set_as(&b, "otto", "lockdown", true, Some(1)).await;
    let until = Some(b.now().plus_secs(3600));
    let kept = FactOutcome::InForce {
        until,
        changed: false,
    };
    assert_eq!(shorter.expect("answered"), kept);
    seconds(&b, 2);
    assert!(value(&b, "lockdown"));
    set(&b, "lockdown", true, Some(7200)).await;

    // The time counts from the last approval on.
    let open = propose(&b, "incident", true, Some(600)).await;
    seconds(&b, 300);
    assert!(!value(&b, "incident"));
    b.approve("otto", open, OPERATORS).await;
    seconds(&b, 599);
    assert!(value(&b, "incident"));
    // Back to the safe value: alone.
    set(&b, "incident", false, None).await;
    assert!(!value(&b, "incident"));

    // One no ends it; its proposer withdraws one.
    let denied = propose(&b, "incident", true, Some(60)).await;
    b.vote("otto", denied, OPERATORS, Verdict::Deny)
        .await
        .expect("denied");
    let withdrawn = propose(&b, "incident", true, Some(60)).await;
    assert_ne!(withdrawn, denied);
    let call = b.person_call(WITHDRAW, "olga");
    b.broker
        .withdraw_proposal(&call, withdrawn)
        .await
        .expect("withdrawn");
    assert_eq!(status(&b, withdrawn), AccessRequestStatus::Cancelled);
    // A restart keeps what waits and what stands.
    let waits = propose(&b, "incident", true, Some(60)).await;
    let b = b.restart(FaultInjection::default()).await;
    assert!(value(&b, "lockdown"));
    b.approve("otto", waits, OPERATORS).await;
    assert!(value(&b, "incident"));
    b.check_invariants();
    JournalCopy::read(&b).votes().expect("the audit agrees");
}

#[tokio::test]
async fn a_bundle_that_declares_otherwise_takes_back_what_is_not_safe() {
    let b = start(two_operators()).await;
    set(&b, "lockdown", true, Some(3600)).await;
    let open = propose(&b, "incident", true, Some(3600)).await;
    b.approve("otto", open, OPERATORS).await;
    let waits = propose(&b, "shift", true, Some(60)).await;
    let reworded = b.env.policy_with("facts.toml", |text| {
        text.replace("is being handled", "is handled")
            .replace("touched", "changed")
    });
    let applied = b.apply_policy(reworded).await.expect("proposed");
    let id = applied.proposal.expect("waits").access_request;
    let card = b.broker.card(&b.person_call(CARD, "otto"), &id);
    let summary = card.expect("a card").changes.expect("changes").summary;
    assert!(
        summary
            .iter()
            .any(|s| s.starts_with("the fact incident changes: title")),
        "{summary:?}"
    );
    b.approve("otto", id, OPERATORS).await;
    assert_eq!(
        facts(&b),
        BTreeMap::from([
            ("incident".to_owned(), false),
            ("lockdown".to_owned(), true),
            ("shift".to_owned(), false)
        ])
    );
    assert_eq!(status(&b, waits), AccessRequestStatus::Ended);
    b.check_invariants();
}

#[tokio::test]
async fn orders_that_say_nothing_or_too_much_are_refused() {
    let b = start(environment()).await;
    for (fact, value, time, reason) in [
        ("unknown", true, Some(60), Reason::NotFound),
        ("incident", true, None, Reason::Malformed),
        ("incident", true, Some(0), Reason::Malformed),
        ("incident", true, Some(4 * 3600 + 1), Reason::Malformed),
        ("incident", false, Some(60), Reason::Malformed),
        ("lockdown", false, Some(60), Reason::Malformed),
    ] {
        let outcome = set_as(&b, "olga", fact, value, time).await;
        assert_eq!(refused(outcome), reason, "{fact} {value} {time:?}");
    }
    // What is normal already needs no entry.
    let outcome = set_as(&b, "olga", "incident", false, None).await;
    let unchanged = FactOutcome::InForce {
        until: None,
        changed: false,
    };
    assert_eq!(outcome.expect("answered"), unchanged);
    // An approver is no operator.
    let outcome = set_as(&b, "dana", "incident", true, Some(60)).await;
    assert_eq!(refused(outcome), Reason::NotPermitted);
    assert!(facts(&b).values().all(|value| !value));
}

/// What people agree to is for the fact as it was: another setting, and the end of its time, end the proposal.
#[tokio::test]
async fn an_agreement_is_for_the_setting_that_it_was_asked_for() {
    let b = start(two_operators()).await;
    set(&b, "lockdown", true, Some(600)).await;
    let clear = propose(&b, "lockdown", false, None).await;
    // Longer now, for another reason.
    set(&b, "lockdown", true, Some(3600)).await;
    assert_eq!(status(&b, clear), AccessRequestStatus::Ended);
    let late = b.vote("otto", clear, OPERATORS, Verdict::Approve).await;
    assert_eq!(refused(late), Reason::AccessRequestClosed);
    assert!(value(&b, "lockdown"));
    // Over by itself: nothing is left to set back, and the next lockdown is another.
    let clear = propose(&b, "lockdown", false, None).await;
    seconds(&b, 3600);
    let late = b.vote("otto", clear, OPERATORS, Verdict::Approve).await;
    assert_eq!(refused(late), Reason::AccessRequestClosed);
    assert_eq!(status(&b, clear), AccessRequestStatus::Ended);
    // The safe value ends what waits for the other one.
    let open = propose(&b, "incident", true, Some(60)).await;
    let other = propose(&b, "shift", true, Some(60)).await;
    b.approve("otto", open, OPERATORS).await;
    let again = propose(&b, "incident", true, Some(600)).await;
    set(&b, "incident", false, None).await;
    assert_eq!(status(&b, again), AccessRequestStatus::Ended);
    // Also where it has the safe value already.
    let open = propose(&b, "incident", true, Some(60)).await;
    let unchanged = FactOutcome::InForce {
        until: None,
        changed: false,
    };
    assert_eq!(
        set_as(&b, "otto", "incident", false, None)
            .await
            .expect("answered"),
        unchanged
    );
    assert_eq!(status(&b, open), AccessRequestStatus::Ended);
    assert_eq!(status(&b, other), AccessRequestStatus::Waiting);
    b.check_invariants();
}

/// No later bundle, and no rollback, brings back what a bundle took back.
#[tokio::test]
async fn a_rollback_brings_no_value_back() {
    let b = start(environment()).await;
    set(&b, "incident", true, Some(3600)).await;
    set(&b, "lockdown", true, Some(3600)).await;
    let reworded = b.env.policy_with("facts.toml", |text| {
        text.replace("is being handled", "is handled")
            .replace("touched", "changed")
    });
    b.apply_policy(reworded).await.expect("applied");
    b.apply_policy(b.env.policy.clone()).await.expect("back");
    let expected = [("incident", false), ("lockdown", true), ("shift", false)];
    let expected = expected
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    assert_eq!(facts(&b), expected);
    b.check_invariants();
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(facts(&b), expected);
}

/// Nobody is asked for what the rules deny under the new value, and its agent hears it.
#[tokio::test]
async fn a_request_that_a_fact_denies_ends() {
    let b = start(environment()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ask = async || {
        b.request_token(&triage, task, &disable("ann"), 300, "t")
            .await
    };
    let id = ask().await.pending().access_request;
    set(&b, "lockdown", true, Some(60)).await;
    assert_eq!(status(&b, id), AccessRequestStatus::Ended);
    let vote = b.vote("lee", id, "one-security", Verdict::Approve).await;
    assert_eq!(refused(vote), Reason::AccessRequestClosed);
    assert_eq!(ask().await.denied().rules[0].id, "lockdown");
    let listed = b.broker.facts(&b.person_call(LIST, "olga")).expect("facts");
    let setting = listed
        .iter()
        .find_map(|fact| fact.setting.clone())
        .expect("set");
    let reason = setting.reason.as_ref().map(UntrustedText::as_str);
    assert_eq!(reason, Some("for a test"));
    seconds(&b, 60);
    assert_ne!(ask().await.pending().access_request, id);
    b.check_invariants();
}

/// A yes under one value does not count for less under another, and the limit of a fact's time is the token's, not the question's.
#[tokio::test]
async fn a_shorter_request_gets_no_yes_of_before() {
    let mut env = environment();
    let short = "@id(\"short-out-of-incidents\") forbid (principal == Agent::\"triage\", action == Action::\"account.disable\", resource) \
         unless { context.facts.incident || context.ttl <= duration(\"90s\") };\n\
         @id(\"in-the-shift\") forbid (principal == Agent::\"triage\", action == Action::\"session.end\", resource) unless { context.facts.shift };";
    env.policy
        .insert("rules/91-facts.cedar".to_owned(), short.to_owned());
    let b = start(env).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    set(&b, "incident", true, Some(60)).await;
    let ask = async |ttl| {
        b.request_token(&triage, task, &disable("ann"), ttl, "t")
            .await
    };
    let id = ask(240).await.pending().access_request;
    b.approve("lee", id, "one-security").await;
    // The incident is over before the agent comes back, for less: people agreed to something else.
    seconds(&b, 60);
    ask(60).await.pending();
    let issued = b.broker.show().grants_of_task(&task);
    assert!(issued.is_empty());
    b.broker.maintenance_tick().await.expect("tick");
    seconds(&b, 2);
    b.broker.maintenance_tick().await.expect("tick");
    assert_eq!(status(&b, id), AccessRequestStatus::Ended);

    // A token ends with its fact's time; the question to people does not.
    set(&b, "shift", true, Some(30)).await;
    let end = async || {
        b.request_token(&triage, task, &end_session(), 240, "e")
            .await
    };
    let id = end().await.pending().access_request;
    let card = b.broker.card(&b.person_call(CARD, "lee"), &id);
    assert_eq!(card.expect("a card").max_ttl, Some(240));
    set(&b, "shift", true, Some(600)).await;
    b.approve("lee", id, "two-security").await;
    b.approve("maria", id, "two-security").await;
    let token = end().await.token();
    assert_eq!(token.issued.exp, b.now().plus_secs(240).secs());
    b.check_invariants();
}

/// Many calls beside an operator who flips the fact: each token was decided under the value that its entry stands on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_rests_on_the_facts_of_its_entry() {
    let b = start(environment()).await;
    let reporter = b.agent("reporter");
    let task = b.open_task(&reporter).await;
    let flips = async {
        for _ in 0..20 {
            set(&b, "shift", true, Some(600)).await;
            set(&b, "shift", false, None).await;
        }
    };
    let asks = async {
        let mut issued = 0;
        for n in 0..60 {
            let key = format!("k-{n}");
            match b
                .request_token(&reporter, task, &read_case(), 60, &key)
                .await
            {
                Ok(TokenReply::Token(_)) => issued += 1,
                Ok(TokenReply::Denied(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        issued
    };
    let ((), _issued) = tokio::join!(flips, asks);
    // Every mint stands after the setting that it names: checked for each entry, here and at every start.
    b.check_invariants();
    let b = b.restart(FaultInjection::default()).await;
    let living = b.broker.show().grants_of_task(&task);
    let living = living.iter().filter(|grant| grant.ended.is_none()).count();
    assert_eq!(living, 0);
}

/// What was shown of a proposal is what the bundle says of the fact, and enough people agreed: the audit asks again.
#[tokio::test]
async fn the_audit_asks_again_who_agreed_to_a_fact() {
    let b = start(two_operators()).await;
    set(&b, "lockdown", true, Some(3600)).await;
    let clear = propose(&b, "lockdown", false, None).await;
    b.approve("otto", clear, OPERATORS).await;
    let copy = || JournalCopy::read(&b);
    copy().votes().expect("whole");
    let set = copy().find(|e| matches!(e, Event::FactSet(f) if f.proposal.is_some()));
    let mut alone = copy();
    if let Event::FactSet(f) = &mut alone.entries[set].event {
        f.proposal = None;
    }
    let found = alone.votes().expect_err("found");
    let expected = AgreementError::NoProposal;
    assert!(
        matches!(&found, AuditError::Agreement { why, .. } if *why == expected),
        "{found:?}"
    );

    let opened =
        copy().find(|e| matches!(e, Event::AccessRequestOpened(f) if f.by_person().is_some()));
    let mut hidden = copy();
    let less = hidden.put_blob(&json::canonical_of(&PolicyChanges::default()).expect("canonical"));
    if let Event::AccessRequestOpened(f) = &mut hidden.entries[opened].event
        && let AccessRequester::Person(by) = &mut f.requester
    {
        by.changes = less;
    }
    // The votes are for what was shown.
    hidden.votes().expect_err("found");
}
