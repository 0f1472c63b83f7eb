//! Random realms and random changes of the policy bundle: what a plan says would end is what the apply ends, and a bundle that an apply
//! refuses has no plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dipylon::broker::{FactOrder, PlanState};
use dipylon_sdk::model::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::*;

const AGENTS: [&str; 3] = ["triage", "reporter", "responder"];
const VOTERS: [&str; 3] = ["dana", "maria", "lee"];
const PROFILES: [&str; 2] = ["one-security", "two-security"];
const GUARDS: &str = "rules/20-guardrails.cedar";

type Files = BTreeMap<String, String>;

#[derive(Debug, Clone)]
enum Op {
    Open(usize),
    Request {
        task: usize,
        action: usize,
        minutes: i64,
    },
    Vote {
        request: usize,
        voter: usize,
        profile: usize,
    },
    Complete(usize),
    Advance(u32),
    /// Sets the fact, for some minutes, or back.
    Fact(bool),
    Change(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..3_usize).prop_map(Op::Open),
        8 => (0..8_usize, 0..5_usize, 1..15_i64).prop_map(|(task, action, minutes)| Op::Request { task, action, minutes }),
        6 => (0..4_usize, 0..3_usize, 0..2_usize).prop_map(|(request, voter, profile)| Op::Vote { request, voter, profile }),
        1 => (0..8_usize).prop_map(Op::Complete),
        2 => (0..240_000_u32).prop_map(Op::Advance),
        3 => any::<bool>().prop_map(Op::Fact),
        4 => (0..CHANGES).prop_map(Op::Change),
    ]
}

fn actions() -> [Action; 5] {
    let host = action("host.isolate", "Host", "lab-7", IDP, &[]);
    let note = [("text", Param::Str("seen".to_owned()))];
    let note = action("case.note", "Case", "INC-8841", CASES, &note);
    [read_case(), note, disable("ann"), disable("bob"), host]
}

const CHANGES: usize = 12;

/// The bundle in force with one more change, or one less.
fn changed(files: &Files, change: usize) -> Files {
    let mut files = files.clone();
    let mut swap = |path: &str, from: &str, to: &str| {
        let text = files.get_mut(path).expect("a file");
        *text = match text.contains(from) {
            true => text.replacen(from, to, 1),
            false => text.replacen(to, from, 1),
        };
    };
    match change {
        0 => swap(GUARDS, "\n// end", READING_ASKS),
        1 => swap(GUARDS, "\n// of cases", CASES_CLOSED),
        2 => swap(GUARDS, "\n// of work", NOT_LATE),
        // Another owner: another person may approve.
        3 => swap("agents.toml", "owner = \"dana\"", "owner = \"maria\""),
        4 => swap("people.toml", "quorum = 1", "quorum = 2"),
        5 => swap(
            "schema.cedarschema",
            "The account can no longer sign in.",
            "The account is gone.",
        ),
        6 => swap(
            "agents.toml",
            "autonomy = \"supervised\"",
            "autonomy = \"autonomous\"",
        ),
        7 => swap(
            "people.toml",
            "name = \"Maria Moreau\"\ngroups = [\"security\"]",
            "name = \"Maria Moreau\"\ngroups = []",
        ),
        8 => swap("agents.toml", "\"account.disable\"", "\"case.note\""),
        // The fact is declared otherwise: a value that is not safe is taken back. Or it ends no tokens.
        9 => swap(FACTS, "A watch is kept", "Somebody watches"),
        10 => swap(FACTS, "ends = true", "ends = false"),
        _ => swap(
            "agents.toml",
            "id = \"triage\"\n",
            &format!("id = \"triage\"\njkt = \"{}\"\n", Digest::sha256(b"key")),
        ),
    }
    files
}

const FACTS: &str = "facts.toml";
const WATCH: &str =
    "[fact.watch]\ntitle = \"A watch is kept\"\nsafe = false\nmax = \"1h\"\nends = true\n";
/// Notes live shortly while nobody watches, and cases are read by the reporter only then.
const WATCHED: &str = "@id(\"notes-are-short\") @max_ttl(\"2m\") forbid (principal, action == Action::\"case.note\", resource) \
    unless { context.facts.watch || context.ttl <= duration(\"2m\") };\n\
    @id(\"reads-are-watched\") forbid (principal == Agent::\"reporter\", action == Action::\"case.read\", resource) \
    unless { context.facts.watch };\n";

const READING_ASKS: &str = "\n@id(\"reading-asks\")\n@step_up(\"one-security\")\n\
    forbid (principal, action == Action::\"case.read\", resource)\n\
    unless { context.approvals.containsAny([StepUp::\"one-security\", StepUp::\"two-security\"]) };\n";
const CASES_CLOSED: &str = "\n@id(\"cases-closed\")\nforbid (principal == Agent::\"reporter\", action == Action::\"case.note\", resource)\n\
    when { context.target_known };\n";
const NOT_LATE: &str = "\n@id(\"not-late\")\nforbid (principal == Agent::\"triage\", action == Action::\"operate\", resource)\n\
    when { context.evidence.verified_age >= duration(\"2m\") };\n";

/// Changes that were applied, and the ends among them, of all histories.
static APPLIED: AtomicUsize = AtomicUsize::new(0);
static ENDS: AtomicUsize = AtomicUsize::new(0);

/// What is open: tasks, tokens, and access requests with the decision that asks.
type Open = (
    BTreeSet<String>,
    BTreeSet<String>,
    BTreeMap<String, Option<DecisionId>>,
);

fn open(b: &TestBroker) -> Open {
    let (show, now) = (b.broker.show(), b.now());
    let tasks = show.open_tasks();
    let grants = tasks
        .iter()
        .flat_map(|task| show.grants_of_task(&task.opened.task));
    let living = grants.filter(|grant| show.end_cause(grant, now).is_none());
    let living = living.map(|grant| grant.issued.jti.to_string()).collect();
    let pending = show.pending_requests(now).into_iter().map(|request| {
        let decision = request.decision.as_ref().map(|decision| decision.id);
        (request.opened.access_request.to_string(), decision)
    });
    let tasks = tasks.iter().map(|t| t.opened.task.to_string()).collect();
    (tasks, living, pending.collect())
}

async fn plan(b: &TestBroker, files: &Files) -> Option<PolicyPlan> {
    let call = b.person_call("dipylon.v1.GovernanceService/PlanPolicyBundle", "olga");
    let operator = b.broker.authenticate_person(&call).expect("an operator");
    let planned =
        b.broker
            .plan_policy_bundle(&call, operator, files.clone(), BTreeSet::new(), Some(1));
    let id = planned.await.ok()?;
    loop {
        let call = b.person_call("dipylon.v1.GovernanceService/GetPolicyPlan", "olga");
        let pause = match b.broker.policy_plan(&call, &id).map(|plan| plan.state) {
            Ok(PlanState::Ready(text)) => {
                return Some(serde_json::from_str(&text).expect("a plan"));
            }
            Ok(PlanState::Running { .. }) => Duration::from_millis(5),
            // A slow plan is asked for more often than a person may ask.
            Err(refusal) => refusal.retry_after.expect("asked too often"),
        };
        tokio::time::sleep(pause).await;
    }
}

fn named(list: &PlannedList) -> BTreeSet<String> {
    assert_eq!(list.count as usize, list.named.len(), "few enough to name");
    list.named.iter().map(|item| item.id.clone()).collect()
}

async fn change(b: &TestBroker, files: Files) -> Option<Files> {
    let planned = plan(b, &files).await;
    let before = open(b);
    let applied = b.apply_policy(files.clone()).await;
    let Some(plan) = planned else {
        applied.expect_err("a bundle without a plan");
        return None;
    };
    let applied = applied.expect("a bundle with a plan");
    assert!(applied.proposal.is_none());
    b.broker.maintenance_tick().await.expect("upkeep");
    let after = open(b);
    let gone = |before: &BTreeSet<String>, after: &BTreeSet<String>| before - after;
    let ends = &plan.ends;
    assert_eq!(gone(&before.0, &after.0), named(&ends.tasks), "{plan:?}");
    assert_eq!(gone(&before.1, &after.1), named(&ends.tokens), "{plan:?}");
    let (closed, perhaps) = (named(&ends.access_requests), named(&ends.uncertain));
    let reassessed = named(&ends.reassessed);
    for (id, decision) in &before.2 {
        match after.2.get(id) {
            None => assert!(
                closed.contains(id) || perhaps.contains(id),
                "{id}: {plan:?}"
            ),
            Some(now) => {
                assert!(!closed.contains(id), "{id} goes on: {plan:?}");
                let is_told = reassessed.contains(id) || perhaps.contains(id);
                assert!(now == decision || is_told, "{id} needs others: {plan:?}");
            }
        }
    }
    APPLIED.fetch_add(1, Ordering::Relaxed);
    let ended = ends.tasks.count + ends.tokens.count + ends.access_requests.count;
    ENDS.fetch_add(ended as usize, Ordering::Relaxed);
    Some(files)
}

async fn history(ops: Vec<Op>) {
    let mut env = TestEnvironment::new();
    let guards = env.policy.get_mut(GUARDS).expect("rules");
    guards.push_str("\n// end\n// of cases\n// of work\n");
    env.policy.insert(FACTS.to_owned(), WATCH.to_owned());
    env.policy
        .insert("rules/90-facts.cedar".to_owned(), WATCHED.to_owned());
    env.policy.remove("tests.toml");
    let b = TestBroker::start_with(env, dipylon::journal::FaultInjection::default()).await;
    let mut in_force = b.env.policy.clone();
    let mut tasks = Vec::new();
    // Something to end, and at the end two changes that end it.
    let read = Op::Request {
        task: 0,
        action: 0,
        minutes: 10,
    };
    let first = [
        Op::Open(0),
        read.clone(),
        // A token under a value that a change takes back.
        Op::Open(1),
        Op::Fact(true),
        read.clone(),
        Op::Change(9),
    ];
    let last = [Op::Open(0), read, Op::Change(0), Op::Change(11)];
    for (n, op) in first.into_iter().chain(ops).chain(last).enumerate() {
        let key = format!("op-{n}");
        match op {
            Op::Open(agent) => {
                let agent = b.agent(AGENTS[agent]);
                if let Ok(opened) = b.try_open_task(&agent, "contain INC-8841", &key).await {
                    tasks.push((agent, opened.task.task));
                }
            }
            Op::Request {
                task,
                action,
                minutes,
            } => {
                if let Some((agent, task)) = tasks.iter().rev().nth(task) {
                    let action = &actions()[action];
                    let _answer = b
                        .request_token(agent, *task, action, minutes * 60, &key)
                        .await;
                }
            }
            Op::Vote {
                request,
                voter,
                profile,
            } => {
                let pending = b.broker.show().pending_requests(b.now());
                if let Some(request) = pending.get(request) {
                    let id = request.opened.access_request;
                    let (voter, profile) = (VOTERS[voter], PROFILES[profile]);
                    let _refused = b.vote(voter, id, profile, Verdict::Approve).await;
                }
            }
            Op::Complete(task) => {
                if let Some((agent, task)) = tasks.iter().rev().nth(task) {
                    let _ended = b.complete_task(agent, *task).await;
                }
            }
            Op::Advance(ms) => {
                b.manual_clock.advance_millis(ms);
                b.broker.maintenance_tick().await.expect("upkeep");
            }
            Op::Fact(value) => {
                let order = FactOrder {
                    fact: FactName::parse("watch").expect("fact"),
                    value,
                    seconds: value.then_some(1_200),
                    reason: None,
                };
                let call = b.person_call("dipylon.v1.GovernanceService/SetFact", "olga");
                b.broker.set_fact(&call, &order).await.expect("set");
            }
            Op::Change(of) => {
                if let Some(files) = change(&b, changed(&in_force, of)).await {
                    in_force = files;
                }
            }
        }
    }
    b.check_invariants();
}

#[test]
fn what_a_plan_says_would_end_is_what_an_apply_ends() {
    let config = ProptestConfig {
        // Each change is checked twice: by the plan, and by the apply.
        cases: super::cases().div_ceil(4),
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    let run = TestRunner::new(config).run(&prop::collection::vec(op(), 10..30), |ops| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(history(ops));
        Ok(())
    });
    run.expect("holds");
    let done = (
        APPLIED.load(Ordering::Relaxed),
        ENDS.load(Ordering::Relaxed),
    );
    assert!(
        done.0 > 0 && done.1 > 0,
        "nothing was changed, or ended: {done:?}"
    );
}
