//! Claims: limits that many calls reach at once are kept to the last one, and calls below them are not decided anew.

use std::sync::Arc;

use dipylon::broker::{Refusal, TokenReply};
use dipylon::state::OPEN_TASKS_MAX;
use dipylon_sdk::model::*;

use crate::concurrency::at_once;
use crate::support::agent_in_task::agent_id;
use crate::support::passkey_votes::with_approvals;
use crate::support::rounds::Rounds;
use crate::support::*;

const OPEN_TASK: &str = "dipylon.v1.TaskService/OpenTask";
const REQUEST_TOKEN: &str = "dipylon.v1.TaskService/RequestToken";
/// Calls at once.
const AT_ONCE: usize = 64;

async fn start(env: TestEnvironment) -> (Arc<TestBroker>, Rounds) {
    let rounds = Rounds::default();
    let b = TestBroker::start_with(env, rounds.faults()).await;
    (Arc::new(b), rounds)
}

/// Opens tasks of an agent at once: the tasks, and the reasons of the refusals.
async fn open_tasks(
    b: &Arc<TestBroker>,
    agent: &TestAgent,
    keys: std::ops::Range<usize>,
) -> (Vec<TaskId>, Vec<Reason>) {
    let jobs = keys.map(|n| {
        let (b, agent) = (Arc::clone(b), agent.clone());
        async move {
            let opened = b.try_open_task(&agent, "work", &format!("open-{n}")).await;
            opened.map(|opened| opened.task.task)
        }
    });
    split(at_once(jobs.collect()).await)
}

/// Requests a token for one account in each task, at once: the access requests, and the reasons of the refusals.
async fn ask(
    b: &Arc<TestBroker>,
    asks: Vec<(TestAgent, TaskId)>,
) -> (Vec<AccessRequestId>, Vec<Reason>) {
    let jobs = asks.into_iter().map(|(agent, task)| {
        let b = Arc::clone(b);
        async move {
            let action = disable("ann");
            let asked = b.request_token(&agent, task, &action, 300, "ask");
            asked.await.map(|reply| match reply {
                TokenReply::Pending(pending) => pending.access_request,
                other => panic!("not pending: {other:?}"),
            })
        }
    });
    split(at_once(jobs.collect()).await)
}

fn split<T>(answers: Vec<Result<T, Refusal>>) -> (Vec<T>, Vec<Reason>) {
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(value) => done.push(value),
            Err(refusal) => refused.push(refusal.reason),
        }
    }
    (done, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_opens_no_more_tasks_than_it_may() {
    let (b, rounds) = start(TestEnvironment::new()).await;
    let triage = b.agent("triage");
    let most = usize::try_from(OPEN_TASKS_MAX).expect("small");
    let before = most - 10;
    let mut tasks = Vec::new();
    for first in (0..before).step_by(AT_ONCE) {
        let keys = first..before.min(first + AT_ONCE);
        let (mut opened, refused) = open_tasks(&b, &triage, keys).await;
        assert_eq!(refused, []);
        tasks.append(&mut opened);
    }
    // Beyond the rate at which an agent may call.
    b.manual_clock.advance_millis(60_000);
    let (opened, refused) = open_tasks(&b, &triage, before..before + AT_ONCE).await;
    assert_eq!(opened.len(), 10);
    assert_eq!(refused, [Reason::TooManyTasks; AT_ONCE - 10]);
    let open = b.broker.show().open_tasks_of(&agent_id("triage"));
    assert_eq!(open.len(), most);
    assert_eq!(
        rounds.made(OPEN_TASK),
        before + AT_ONCE,
        "each is decided once"
    );
    // Another agent's are its own, and an end makes room for one.
    let reporter = b.agent("reporter");
    let (of_reporter, _) = open_tasks(&b, &reporter, 0..1).await;
    assert_eq!(of_reporter.len(), 1);
    b.complete_task(&triage, tasks[0]).await.expect("ended");
    let (opened, refused) = open_tasks(&b, &triage, 2 * most..2 * most + 2).await;
    assert_eq!((opened.len(), refused), (1, vec![Reason::TooManyTasks]));
}

/// One agent, each request in a task of its own, below every limit: no one of them is decided anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_requests_of_one_agent_do_not_conflict() {
    let (b, rounds) = start(with_approvals(
        "pending_per_agent = 16\npending_per_owner = 16\nopens_per_minute = 16",
    ))
    .await;
    let triage = b.agent("triage");
    let (tasks, _) = open_tasks(&b, &triage, 0..16).await;
    let asks = tasks.iter().map(|task| (triage.clone(), *task));
    let (pending, refused) = ask(&b, asks.collect()).await;
    assert_eq!((pending.len(), refused), (16, Vec::new()));
    assert_eq!(rounds.made(REQUEST_TOKEN), 16, "each is decided once");
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_access_requests_wait_than_may() {
    const LIMIT: usize = 5;
    for (limits, reason, of_two_agents) in [
        (
            "pending_per_agent = 5\npending_per_owner = 1000\nopens_per_minute = 0",
            Reason::TooManyPending,
            false,
        ),
        (
            "pending_per_agent = 1000\npending_per_owner = 5\nopens_per_minute = 0",
            Reason::TooManyPending,
            true,
        ),
        (
            "pending_per_agent = 1000\npending_per_owner = 1000\nopens_per_minute = 5",
            Reason::DenialBackoff,
            false,
        ),
    ] {
        let mut env = with_approvals(limits);
        let agents = env.policy.get_mut("agents.toml").expect("agents");
        let triage = agents.split("[[agent]]").nth(1).expect("triage");
        let second = triage.replace("triage", "second");
        agents.push_str(&format!("\n[[agent]]{second}"));
        let (b, rounds) = start(env).await;
        let mut asks = Vec::new();
        let names = if of_two_agents {
            &["triage", "second"][..]
        } else {
            &["triage"]
        };
        for name in names {
            let agent = b.agent(name);
            let (tasks, _) = open_tasks(&b, &agent, 0..AT_ONCE / names.len()).await;
            asks.extend(tasks.into_iter().map(|task| (agent.clone(), task)));
        }
        let (pending, refused) = ask(&b, asks).await;
        assert_eq!(pending.len(), LIMIT, "{limits}");
        assert_eq!(refused, vec![reason; AT_ONCE - LIMIT], "{limits}");
        assert_eq!(
            b.broker.show().pending_requests(b.now()).len(),
            LIMIT,
            "{limits}"
        );
        assert_eq!(
            rounds.made(REQUEST_TOKEN),
            AT_ONCE,
            "{limits}: each is decided once"
        );
        b.check_invariants();
    }
}
