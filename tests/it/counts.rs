//! Counts: what agents did a short while ago limits what they may do now.

use std::sync::Arc;

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::audit_votes::journal_copy::JournalCopy;
use crate::concurrency::at_once;
use crate::support::rounds::Rounds;
use crate::support::*;

const REQUEST_TOKEN: &str = "dipylon.v1.TaskService/RequestToken";

/// `reads` limits reading of cases by agent, `searches` those of all agents together; `trouble` is what an owner's agents were denied
/// within a quarter of an hour, and takes people into account; `spent` are uses.
const COUNTS: &str = r#"
[count.reads]
title = "Cases that one agent read within an hour"
of = "tokens"
per = ["agent"]
actions = ["case.read"]
within = "1h"

[count.searches]
title = "Searches of everybody within a minute"
of = "requests"
per = ["action"]
within = "1m"

[count.trouble]
title = "Denials of one owner's agents within a quarter of an hour"
of = "denials"
per = ["owner"]
within = "15m"

[count.spent]
title = "Accounts that one agent disabled within a minute"
of = "uses"
per = ["agent"]
actions = ["account.disable"]
within = "1m"
"#;

const RULES: &str = r#"
@id("few-reads")
@why("An agent reads one case an hour.")
forbid (principal, action == Action::"case.read", resource)
unless { context.counts.reads < 1 };

@id("few-searches")
forbid (principal, action == Action::"logs.search", resource)
unless { context.counts.searches < 2 };

@id("trouble-needs-two")
@step_up("two-security")
forbid (principal, action == Action::"session.end", resource)
unless { context.counts.trouble < 2 || context.approvals.contains(StepUp::"two-security") };

@id("few-accounts")
forbid (principal, action == Action::"account.disable", resource)
unless { context.counts.spent < 1 };
"#;

fn environment() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let files = &mut env.policy;
    files.insert("counts.toml".to_owned(), COUNTS.to_owned());
    files.insert("rules/90-counts.cedar".to_owned(), RULES.to_owned());
    files.remove("tests.toml");
    env
}

/// With one more count and one more rule.
fn with(count: &str, rule: &str) -> TestEnvironment {
    let mut env = environment();
    for (file, more) in [("counts.toml", count), ("rules/90-counts.cedar", rule)] {
        env.policy.get_mut(file).expect("a file").push_str(more);
    }
    env
}

async fn start() -> TestBroker {
    TestBroker::start_with(environment(), FaultInjection::default()).await
}

fn minutes(b: &TestBroker, minutes: u32) {
    b.manual_clock.advance_millis(minutes * 60_000);
}

fn end_session() -> Action {
    action("session.end", "Account", "ann", IDP, &[])
}

/// Denied by a rule that reads no count.
fn collect_elsewhere() -> Action {
    let memory = ("memory", Param::Bool(false));
    action("host.collect", "Host", "web-1", CASES, &[memory])
}

fn search() -> Action {
    let query = ("query", Param::Str("x".to_owned()));
    let logs = "https://logs.soc.example";
    action("logs.search", "LogSource", "sign-ins", logs, &[query])
}

fn counts(decision: &DecisionRecord) -> Vec<String> {
    let counts = decision.input.counts.iter();
    counts
        .map(|(name, value)| format!("{name} {value}"))
        .collect()
}

fn denied_by(reply: Result<TokenReply, Refusal>) -> String {
    let denied = reply.denied();
    assert_eq!(denied.why, DeniedReason::ForbiddenByRule);
    denied.rules[0].id.clone()
}

#[tokio::test]
async fn a_count_limits_and_is_over_with_its_window() {
    let b = start().await;
    let (triage, reporter) = (b.agent("triage"), b.agent("reporter"));
    let (task, other) = (b.open_task(&triage).await, b.open_task(&reporter).await);
    let read = async |b: &TestBroker, key: &str| {
        b.request_token(&triage, task, &read_case(), 300, key).await
    };
    let first = read(&b, "1").await.token();
    assert_eq!(counts(&first.issued.decision), ["reads 0"]);
    assert_eq!(denied_by(read(&b, "2").await), "few-reads");
    // A repetition of the first is the same token, and another agent has its own count.
    assert!(read(&b, "1").await.token().reissued);
    b.request_token(&reporter, other, &read_case(), 300, "1")
        .await
        .token();
    // A limit ends nothing that was issued below it.
    b.broker.maintenance_tick().await.expect("tick");
    assert!(b.introspect("cases", &first.token).await);

    // An hour and the rest of the minute, through a restart.
    minutes(&b, 60);
    let b = b.restart(FaultInjection::default()).await;
    let task = b
        .try_open_task(&triage, "more", "open-2")
        .await
        .expect("opens")
        .task
        .task;
    let read = async |key: &str| b.request_token(&triage, task, &read_case(), 300, key).await;
    assert_eq!(denied_by(read("3").await), "few-reads");
    minutes(&b, 1);
    let third = read("4").await.token();
    assert_eq!(counts(&third.issued.decision), ["reads 0"]);
    b.check_invariants();
}

/// The limit stands however many ask at once, and all others hear what the rules say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_at_once_get_one() {
    let b = Arc::new(start().await);
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    // A task is refused no more than sixty times a minute.
    let more = b.try_open_task(&triage, "more", "open-2").await;
    let tasks = [task, more.expect("opens").task.task];
    let ask = |n: usize| {
        let (b, triage, task) = (Arc::clone(&b), triage.clone(), tasks[n % 2]);
        async move {
            let key = format!("k-{n}");
            b.request_token(&triage, task, &read_case(), 300, &key)
                .await
        }
    };
    let replies = at_once((0..100).map(ask).collect()).await;
    let (mut tokens, mut denials) = (0, 0);
    for reply in replies {
        match reply {
            Ok(TokenReply::Token(_)) => tokens += 1,
            denied => {
                assert_eq!(denied_by(denied), "few-reads");
                denials += 1;
            }
        }
    }
    assert_eq!((tokens, denials), (1, 99));
    b.check_invariants();
}

/// What a decision read is what its entry rests on: another whose rules read the count makes it decide anew, and one that is only
/// counted does not.
#[tokio::test]
async fn only_who_reads_a_count_moves_it() {
    let rounds = Rounds::default();
    let b = Arc::new(TestBroker::start_with(environment(), rounds.faults()).await);
    let (triage, responder) = (b.agent("triage"), b.agent("responder"));
    let (task, theirs) = (b.open_task(&triage).await, b.open_task(&responder).await);
    // Another agent's token comes between the last read and the append of a denial that `trouble` counts.
    let (other, agent) = (Arc::clone(&b), responder.clone());
    rounds.interpose(REQUEST_TOKEN, async move {
        let read = read_case();
        other
            .request_token(&agent, theirs, &read, 300, "a")
            .await
            .token();
    });
    b.request_token(&triage, task, &collect_elsewhere(), 300, "a")
        .await
        .denied();
    // One round of each.
    assert_eq!(rounds.made(REQUEST_TOKEN), 4 - 2);

    // `trouble` rises while a decision rests on it, by rules that do not read it: the decision came first.
    let (other, agent) = (Arc::clone(&b), triage.clone());
    rounds.interpose(REQUEST_TOKEN, async move {
        for key in ["d-1", "d-2"] {
            let elsewhere = collect_elsewhere();
            let denied = other.request_token(&agent, task, &elsewhere, 300, key);
            denied.await.denied();
        }
    });
    let made = rounds.made(REQUEST_TOKEN);
    let end = end_session();
    let first = b.request_token(&triage, task, &end, 300, "s").await.token();
    assert_eq!(counts(&first.issued.decision), ["trouble 1"]);
    assert_eq!(rounds.made(REQUEST_TOKEN) - made, 3);
    b.request_token(&triage, task, &end_session(), 300, "t")
        .await
        .pending();
    b.check_invariants();
}

/// A request counts from when it is put to people, however it ends, and never against itself.
#[tokio::test]
async fn ending_a_task_takes_no_request_back() {
    let count = "\n[count.asked]\ntitle = \"Requests for an account\"\nof = \"requests\"\nper = [\"agent\"]\nactions = [\"destructive\"]\nwithin = \"1h\"\n";
    let rule = "\n@id(\"few-asked\") forbid (principal, action in Action::\"destructive\", resource) unless { context.counts.asked < 2 };";
    let b = TestBroker::start_with(with(count, rule), FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    b.request_token(&triage, task, &disable("ann"), 300, "1")
        .await
        .pending();
    b.complete_task(&triage, task).await.expect("ended");
    let task = b.try_open_task(&triage, "again", "open-2").await;
    let task = task.expect("opens").task.task;
    let ask = async |account: &str, key: &str| {
        b.request_token(&triage, task, &disable(account), 300, key)
            .await
    };
    let id = ask("ann", "2").await.pending().access_request;
    assert_eq!(denied_by(ask("cara", "3").await), "few-asked");
    // The second is decided without itself: beside it there were the one of the first task, and the denial.
    b.approve("lee", id, "one-security").await;
    assert_eq!(denied_by(ask("ann", "2").await), "few-asked");
    let copy = JournalCopy::read(&b);
    let denied = copy.entries.iter().rev().find_map(|e| match &e.event {
        Event::RequestDenied(f) => Some(f.clone()),
        _ => None,
    });
    let denied = denied.expect("on record");
    assert_eq!(denied.waiting, Some(id));
    let read = counts(&denied.decision.expect("decided"));
    assert!(read.contains(&"asked 2".to_owned()), "{read:?}");
    // The same answer is another one once nothing waits: it counts.
    let method = "dipylon.v1.TaskService/CancelAccessRequest";
    let call = b.call(method, &triage.key, None, None);
    b.broker
        .cancel_access_request(&call, task, id)
        .await
        .expect("cancelled");
    let denials = || {
        let copy = JournalCopy::read(&b);
        let denials = copy.entries.iter().filter(|e| match &e.event {
            Event::RequestDenied(f) => f.idempotency_key.as_str() == "2" && f.waiting.is_none(),
            _ => false,
        });
        denials.count()
    };
    assert_eq!(denials(), 0);
    assert_eq!(denied_by(ask("ann", "2").await), "few-asked");
    assert_eq!(denials(), 1);
    b.check_invariants();
}

/// A bundle that gives a name to another count begins it anew, with what has happened of that.
#[tokio::test]
async fn a_name_may_be_of_another_count() {
    let b = start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    b.request_token(&triage, task, &read_case(), 300, "1")
        .await
        .token();
    let mut files = b.env.policy.clone();
    let counts_toml = files.get_mut("counts.toml").expect("counts");
    let of_tokens = "of = \"tokens\"\nper = [\"agent\"]\nactions = [\"case.read\"]";
    assert!(counts_toml.contains(of_tokens));
    *counts_toml = counts_toml.replace(of_tokens, &of_tokens.replace("tokens", "denials"));
    b.apply_policy(files).await.expect("in force");
    let second = b.request_token(&triage, task, &read_case(), 300, "2").await;
    assert_eq!(counts(&second.token().issued.decision), ["reads 0"]);
    b.check_invariants();
}

/// Another rule that denies is another answer, and on record.
#[tokio::test]
async fn a_denial_by_another_rule_is_on_record() {
    let rule = "\n@id(\"quiet\") forbid (principal, action == Action::\"logs.search\", resource) unless { context.counts.trouble < 3 };";
    let b = TestBroker::start_with(with("", rule), FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let search = search();
    for key in ["1", "2"] {
        b.request_token(&triage, task, &search, 300, key)
            .await
            .token();
    }
    let again = async || b.request_token(&triage, task, &search, 300, "k").await;
    assert_eq!(denied_by(again().await), "few-searches");
    for key in ["d-1", "d-2"] {
        b.request_token(&triage, task, &collect_elsewhere(), 300, key)
            .await
            .denied();
    }
    minutes(&b, 2);
    assert_eq!(denied_by(again().await), "quiet");
    // And the same one is the same answer.
    assert_eq!(denied_by(again().await), "quiet");
    let copy = JournalCopy::read(&b);
    let by = copy.entries.iter().filter_map(|entry| match &entry.event {
        Event::RequestDenied(f) if f.idempotency_key.as_str() == "k" => f.decision.as_ref(),
        _ => None,
    });
    let by: Vec<String> = by
        .map(|decision| decision.rules[0].id.to_string())
        .collect();
    assert_eq!(by, ["few-searches", "quiet"]);
    b.check_invariants();
}

/// What is frozen was not answered by rules.
#[tokio::test]
async fn a_freeze_is_no_denial() {
    let b = start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    b.freeze("action/case.read").await.expect("frozen");
    for key in ["1", "2", "3"] {
        let denied = b.request_token(&triage, task, &read_case(), 300, key).await;
        assert_eq!(denied.denied().why, DeniedReason::Frozen);
    }
    let end = end_session();
    let asked = b.request_token(&triage, task, &end, 300, "s").await.token();
    assert_eq!(counts(&asked.issued.decision), ["trouble 0"]);
    b.check_invariants();
}

/// Two hand-overs at once against a count of everybody that only the recommender's rules read: one token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_overs_at_once_keep_the_recommenders_limit() {
    let count = "\n[count.contained]\ntitle = \"Accounts disabled by anybody\"\nof = \"tokens\"\nper = []\nactions = [\"account.disable\"]\nwithin = \"1h\"\n";
    let rule = "\n@id(\"one-contained\") forbid (principal == Agent::\"assistant\", action == Action::\"account.disable\", resource) \
        unless { context.counts.contained < 1 };";
    let rounds = Rounds::default();
    let b = Arc::new(TestBroker::start_with(with(count, rule), rounds.faults()).await);
    let (assistant, responder) = (b.agent("assistant"), b.agent("responder"));
    let advises = b.open_task(&assistant).await;
    let mut executions = Vec::new();
    for (n, account) in ["ann", "cara"].into_iter().enumerate() {
        let advised = disable(account);
        let id = b.request_token(&assistant, advises, &advised, 300, account);
        let id = id.await.pending().access_request;
        b.approve("dana", id, "one-security").await;
        let task = b
            .try_open_task(&responder, "act", &format!("open-{n}"))
            .await;
        executions.push((task.expect("opens").task.task, advised, id));
    }
    let execute = |(task, action, id): (TaskId, Action, AccessRequestId)| {
        let (b, responder) = (Arc::clone(&b), responder.clone());
        async move {
            let input = RequestTokenInput {
                task,
                action,
                ttl: 300,
                reason: None,
                idempotency_key: IdempotencyKey::parse("act").expect("key"),
                wait_ms: 0,
                evidence: None,
                executor: None,
                recommendation: Some(id),
            };
            b.request_with(&responder, input).await
        }
    };
    let replies = at_once(executions.into_iter().map(execute).collect()).await;
    let is_token = |reply: &&Result<TokenReply, Refusal>| matches!(reply, Ok(TokenReply::Token(_)));
    assert_eq!(replies.iter().filter(is_token).count(), 1, "{replies:?}");
    let denied = replies.into_iter().find(|reply| !is_token(&reply));
    let why = denied.expect("the other").denied().why;
    assert_eq!(why, DeniedReason::RecommenderNotAllowed);
    // The journal's own check knows it, too.
    let copy = JournalCopy::read(&b);
    let moved = copy.entries.iter().filter(|entry| {
        let mut streams = entry.write_set.iter();
        streams.any(
            |(stream, _)| matches!(stream, Stream::Count(key) if key.name.as_str() == "contained"),
        )
    });
    assert_eq!(moved.count(), 1);
    b.check_invariants();
}

/// The counts of the agent that recommends are those of the hand-over: recorded, and asked again with the token.
#[tokio::test]
async fn a_recommenders_counts_stand_with_the_token() {
    let count = "\n[count.advice]\ntitle = \"Recommendations of one agent\"\nof = \"requests\"\nper = [\"agent\"]\nwithin = \"1h\"\n";
    let rule = "\n@id(\"little-advice\") forbid (principal == Agent::\"assistant\", action == Action::\"account.disable\", resource) \
        unless { context.counts.advice < 2 };";
    let b = TestBroker::start_with(with(count, rule), FaultInjection::default()).await;
    let (assistant, responder) = (b.agent("assistant"), b.agent("responder"));
    let (advises, executes) = (b.open_task(&assistant).await, b.open_task(&responder).await);
    let advise = async |account: &str| {
        let advised = disable(account);
        let id = b.request_token(&assistant, advises, &advised, 300, account);
        let id = id.await.pending().access_request;
        b.approve("dana", id, "one-security").await;
        id
    };
    let execute = async |account: &str, id| {
        let input = RequestTokenInput {
            task: executes,
            action: disable(account),
            ttl: 300,
            reason: None,
            idempotency_key: IdempotencyKey::parse(account).expect("key"),
            wait_ms: 0,
            evidence: None,
            executor: None,
            recommendation: Some(id),
        };
        b.request_with(&responder, input).await
    };
    let (first, second) = (advise("ann").await, advise("cara").await);
    // Each without itself, and with the other.
    for (account, id) in [("ann", first), ("cara", second)] {
        let issued = execute(account, id).await.token().issued;
        let recorded = &issued.decision.input.recommender_counts;
        let advice = CountName::parse("advice").expect("count");
        assert_eq!(recorded.get(&advice), Some(&1));
    }
    let again = disable("ann");
    let third = b.request_token(&assistant, advises, &again, 300, "more");
    assert_eq!(denied_by(third.await), "little-advice");
    b.broker.maintenance_tick().await.expect("tick");
    let live = b.broker.show().grants_of_task(&executes);
    assert!(live.iter().all(|grant| grant.ended.is_none()));
    // A bundle that asks for less than they were issued under ends them, also the one that was recommended first of all.
    let mut files = b.env.policy.clone();
    let rules = files.get_mut("rules/90-counts.cedar").expect("rules");
    *rules = rules.replace("context.counts.advice < 2", "context.counts.advice < 1");
    b.apply_policy(files).await.expect("in force");
    b.broker.maintenance_tick().await.expect("tick");
    let ended = b.broker.show().grants_of_task(&executes);
    assert_eq!(ended.len(), 2);
    assert!(ended.iter().all(|grant| grant.ended.is_some()));
    b.check_invariants();
}

/// Everybody's requests, whether they were allowed or denied.
#[tokio::test]
async fn requests_of_everybody_are_counted_together() {
    let b = start().await;
    let (triage, responder) = (b.agent("triage"), b.agent("responder"));
    let (one, other) = (b.open_task(&triage).await, b.open_task(&responder).await);
    let search = search();
    b.request_token(&triage, one, &search, 300, "1")
        .await
        .token();
    b.request_token(&responder, other, &search, 300, "1")
        .await
        .token();
    let third = b.request_token(&responder, other, &search, 300, "2").await;
    assert_eq!(denied_by(third), "few-searches");
    // The denial was a request, too.
    minutes(&b, 1);
    let fourth = b.request_token(&triage, one, &search, 300, "3").await;
    assert_eq!(denied_by(fourth), "few-searches");
    minutes(&b, 2);
    b.request_token(&triage, one, &search, 300, "4")
        .await
        .token();
    b.check_invariants();
}

/// Denials of one owner's agents, by rules and by a person, take more people into account for a while.
#[tokio::test]
async fn denials_of_an_owners_agents_take_more_people() {
    let b = start().await;
    let (triage, responder, reporter) =
        (b.agent("triage"), b.agent("responder"), b.agent("reporter"));
    let task = b.open_task(&responder).await;
    let other = b.open_task(&reporter).await;
    let own = b.open_task(&triage).await;
    b.request_token(&responder, task, &end_session(), 300, "1")
        .await
        .token();
    // maria's other agent is denied by a rule, and then this one by a person.
    let elsewhere = action("case.read", "Case", "INC-8841", IDP, &[]);
    b.request_token(&reporter, other, &elsewhere, 300, "1")
        .await
        .denied();
    let id = b
        .request_token(&responder, task, &disable("ann"), 300, "2")
        .await;
    b.vote(
        "lee",
        id.pending().access_request,
        "one-security",
        Verdict::Deny,
    )
    .await
    .expect("denied");
    let asked = b
        .request_token(&responder, task, &end_session(), 300, "3")
        .await;
    let id = asked.pending().access_request;
    // An agent of another owner has not been denied anything.
    b.request_token(&triage, own, &end_session(), 300, "1")
        .await
        .token();

    // Its window is over: what waits needs nobody.
    let again = async |b: &TestBroker| {
        let evidence = Some(b.svid(&responder));
        let end = end_session();
        b.request_token_with_evidence(&responder, task, &end, 300, "3", evidence)
            .await
    };
    minutes(&b, 14);
    assert_eq!(again(&b).await.pending().access_request, id);
    minutes(&b, 2);
    b.broker.maintenance_tick().await.expect("tick");
    let end = end_session();
    let late =
        b.request_token_with_evidence(&responder, task, &end, 300, "4", Some(b.svid(&responder)));
    late.await.token();
    b.check_invariants();
}

/// Votes stay while a count is too high, and are for the action once it is not.
#[tokio::test]
async fn an_approved_request_waits_for_a_count() {
    let b = start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ask = async |account: &str| {
        b.request_token(&triage, task, &disable(account), 300, account)
            .await
    };
    for account in ["ann", "cara"] {
        let id = ask(account).await.pending().access_request;
        b.approve("lee", id, "one-security").await;
    }
    let first = ask("ann").await.token();
    b.consume("idp", &first.token, "u-1").await.expect("used");
    assert_eq!(denied_by(ask("cara").await), "few-accounts");
    b.broker.maintenance_tick().await.expect("tick");
    minutes(&b, 2);
    let second = ask("cara").await.token();
    assert_eq!(counts(&second.issued.decision), ["spent 0"]);
    b.check_invariants();
}

/// A bundle that brings a count finds what has happened already, and ends nothing.
#[tokio::test]
async fn a_new_count_begins_with_what_has_happened() {
    let mut env = environment();
    let counted = env.policy.clone();
    env.policy.remove("counts.toml");
    env.policy.remove("rules/90-counts.cedar");
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let first = b
        .request_token(&triage, task, &read_case(), 300, "1")
        .await
        .token();
    assert!(first.issued.decision.input.counts.is_empty());
    b.apply_policy(counted).await.expect("applied");
    b.broker.maintenance_tick().await.expect("tick");
    assert!(b.introspect("cases", &first.token).await);
    let second = b.request_token(&triage, task, &read_case(), 300, "2").await;
    let id = second.denied().decision.expect("decided");
    let call = b.person_call("dipylon.v1.GovernanceService/Explain", "olga");
    let explained = b
        .broker
        .explain(&call, &id.to_string())
        .await
        .expect("explained");
    let lines = format!("{:?}", explained.lines);
    assert!(lines.contains("reads: 1"), "{lines}");
    assert!(lines.contains("few-reads"), "{lines}");
    b.check_invariants();
}
