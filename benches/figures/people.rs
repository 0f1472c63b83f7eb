//! What waits for people: how long an inbox takes to read when much waits, and how long after a vote its agent knows.

use std::sync::Arc;
use std::time::Instant;

use dipylon::broker::{TokenAsk, TokenReply};
use dipylon::client::vote::ReviewedCard;
use dipylon::client::{Endpoint, TokenOutcome, ApproverClient, TaskHandle};
use dipylon::jose::SigningKey;
use dipylon::model::*;
use tokio::sync::mpsc;

use super::Counts;
use super::load::{nanos, percentile};
use super::page::{Page, ms};
use super::stage::{Holder, REQUEST_TOKEN, Stage, fresh, presented};
use crate::harness::{IDP, World, action};
use crate::served::order;

/// Agents that the access requests are spread over, half of them of each of two owners.
const AGENTS: usize = 20;
/// Tasks of each.
const TASKS: usize = 5;
/// Streams and waits of one connection: below what the broker takes.
const PER_CONNECTION: usize = 50;

pub fn run(counts: &Counts, page: &mut Page) {
    page.part(&format!(
        "{} access requests that wait for people",
        counts.pending
    ));
    let stage = Stage::start_in(world(counts.pending));
    let asked = ask(&stage, counts.pending);
    assert_eq!(stage.served.broker.state().asked().len(), counts.pending);
    stage.load.block_on(async {
        for (who, what) in [
            ("lee", "inbox of who may decide all of it, a page"),
            ("olga", "inbox of who may decide none of it"),
        ] {
            let person = stage.served.approver(who);
            let took = read(&person, counts.inboxes, counts.pending).await;
            page.line(what, &shown(&took, "p99 below 200 ms"));
        }
        let (watched, waited) = asked.split_at(counts.watches.min(asked.len() / 2));
        let waited = &waited[..counts.watches.min(waited.len())];
        page.part(&format!(
            "From the answer to CastVote to the agent's, {} of them waiting",
            watched.len()
        ));
        let took = watches(&stage, watched, counts.votes).await;
        page.line("WatchAccessRequest", &shown(&took, "p99 below 50 ms"));
        let took = waits(&stage, waited, counts.votes).await;
        page.line(
            "RequestToken that waits: the token",
            &shown(&took, "p99 below 50 ms"),
        );
    });
}

fn shown(took: &[u64], goal: &str) -> String {
    let [p50, p99] = [50, 99].map(|per_cent| ms(percentile(took, per_cent)));
    format!(
        "p50 {p50:>9}   p99 {p99:>9}   of {}   (goal: {goal})",
        took.len()
    )
}

/// As many accounts as it takes, agents to ask about them, and bounds that nothing here comes near.
fn world(pending: usize) -> World {
    let mut world = World::new();
    let people = world.policy.get_mut("people.toml").expect("people");
    *people = people.replace("wait = \"15m\"", "wait = \"1h\"").replace(
        "asks_per_minute = 100000",
        "asks_per_minute = 100000\npending_per_agent = 10000\npending_per_owner = 100000",
    );
    let agents = world.policy.get_mut("agents.toml").expect("agents");
    for n in 0..AGENTS {
        let owner = ["dana", "maria"][n % 2];
        agents.push_str(&format!(
            "\n[[agent]]\nid = \"a-{n}\"\nspiffe_id = \"spiffe://soc.example/agent/a-{n}\"\nowner = \"{owner}\"\nenvironment = \"prod\"\n\
             model = \"m\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\nactions = [\"account.disable\"]\n"
        ));
    }
    let entities = world.policy.get_mut("entities.json").expect("entities");
    let accounts: String = (0..pending.div_ceil(AGENTS * TASKS))
        .map(|n| format!(
            ", {{ \"uid\": {{ \"type\": \"Account\", \"id\": \"u-{n}\" }}, \"parents\": [], \"attrs\": {{ \"name\": \"U {n}\", \
             \"environment\": {{ \"type\": \"Environment\", \"id\": \"prod\" }}, \"protected\": false }} }}"
        ))
        .collect();
    let end = entities.rfind(']').expect("a list");
    entities.insert_str(end, &accounts);
    world
}

fn disable(n: usize) -> Action {
    let sessions = [("end_sessions", Param::Bool(true))];
    action(
        "account.disable",
        "Account",
        &format!("u-{n}"),
        IDP,
        &sessions,
    )
}

/// One access request, and who asked.
struct Asked {
    agent: String,
    task: TaskId,
    key: Arc<SigningKey>,
    action: Action,
    request_id: String,
    id: AccessRequestId,
}

fn ask(stage: &Stage, count: usize) -> Vec<Asked> {
    let holders: Vec<(String, Holder)> = (0..AGENTS)
        .flat_map(|n| {
            let agent = format!("a-{n}");
            let tasks = stage.tasks(&agent, TASKS);
            tasks.into_iter().map(move |holder| (agent.clone(), holder))
        })
        .collect();
    let broker = stage.broker();
    stage.broker.block_on(async {
        let mut asked = Vec::new();
        for n in 0..count {
            let (agent, holder) = &holders[n % holders.len()];
            let action = disable(n / holders.len());
            let request_id = format!("r-{}", fresh());
            let ask = TokenAsk {
                task: holder.task,
                action: action.clone(),
                ttl: 300,
                reason: None,
                request_id: RequestId::parse(&request_id).expect("id"),
                wait_ms: 0,
                evidence: None,
            };
            let adg = Some(action.digest());
            let proof = stage.proof(REQUEST_TOKEN, &holder.key, adg, &broker.nonce());
            let reply = broker
                .request_token(&presented(REQUEST_TOKEN, proof), ask)
                .await;
            let Ok(TokenReply::Pending(pending)) = reply else {
                panic!("not pending: {reply:?}")
            };
            asked.push(Asked {
                agent: agent.clone(),
                task: holder.task,
                key: holder.key.clone(),
                action,
                request_id,
                id: pending.access_request,
            });
        }
        asked
    })
}

/// First pages of an inbox, one after another.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn read(person: &ApproverClient, times: usize, pending: usize) -> Vec<u64> {
    let mut took = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let page = person.inbox_page(false, 50, "").await.expect("reads");
        took.push(nanos(began.elapsed()));
        // What one person has before them at once has a bound of its own: the others wait their turn.
        assert_eq!((page.total + page.queued) as usize, pending);
    }
    took
}

/// Every agent watches; the times are from a vote's answer to what its watcher hears of it.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn watches(stage: &Stage, asked: &[Asked], votes: usize) -> Vec<u64> {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let (ready, mut readies) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, task) in attached(stage, asked).into_iter().enumerate() {
        let mut watch = task.watch(asked[n].id);
        let (heard, ready) = (heard.clone(), ready.clone());
        tasks.spawn(async move {
            watch.next().await.expect("watches");
            ready.send(()).expect("told");
            if let Ok(Some(_)) = watch.next().await {
                heard.send((n, Instant::now())).expect("told");
            }
        });
    }
    for _ in 0..asked.len() {
        readies.recv().await.expect("all watch");
    }
    let took = vote_and_hear(stage, asked, votes, &mut hears).await;
    tasks.shutdown().await;
    took
}

/// Every agent waits in RequestToken; the times are from a vote's answer to its token.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn waits(stage: &Stage, asked: &[Asked], votes: usize) -> Vec<u64> {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, task) in attached(stage, asked).into_iter().enumerate() {
        let mut order = order(asked[n].action.clone(), &asked[n].request_id);
        // As it was asked first: an idempotency key stands for one question.
        order.reason = String::new();
        order.wait_s = 60;
        let heard = heard.clone();
        tasks.spawn(async move {
            loop {
                match task.request_token(&order).await {
                    Ok(TokenOutcome::Token(_)) => break heard.send((n, Instant::now())).expect("told"),
                    Ok(TokenOutcome::Pending(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    // Nobody can be asked whether it waits by now: the time it takes to begin is bounded generously.
    tokio::time::sleep(std::time::Duration::from_millis(
        500 + asked.len() as u64 * 4,
    ))
    .await;
    let took = vote_and_hear(stage, asked, votes, &mut hears).await;
    tasks.shutdown().await;
    took
}

#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn vote_and_hear(
    stage: &Stage,
    asked: &[Asked],
    votes: usize,
    hears: &mut mpsc::UnboundedReceiver<(usize, Instant)>,
) -> Vec<u64> {
    let lee = stage.served.approver("lee");
    let mut took = Vec::new();
    // From all over, not only those who began first.
    let step = (asked.len() / votes.max(1)).max(1);
    for n in (0..asked.len()).step_by(step).take(votes) {
        let card = lee.card(asked[n].id).await.expect("card");
        let profile = ProfileName::parse("one-security").expect("profile");
        let seen = ReviewedCard {
            card: &card,
            realm: &Realm::parse("test").expect("realm"),
            profile: &profile,
            verdict: Verdict::Approve,
            narrowing: Narrowing::default(),
            comment: None,
        };
        lee.vote(&seen).await.expect("the vote counts");
        let answered = Instant::now();
        let (heard, at) = hears.recv().await.expect("heard");
        assert_eq!(heard, n, "the one it concerns, and nobody else");
        took.push(nanos(at.saturating_duration_since(answered)));
    }
    took
}

/// The tasks, each on one of so many connections.
fn attached(stage: &Stage, asked: &[Asked]) -> Vec<TaskHandle> {
    let endpoints: Vec<Endpoint> = (0..asked.len().div_ceil(PER_CONNECTION))
        .map(|_| stage.served.endpoint())
        .collect();
    asked
        .iter()
        .enumerate()
        .map(|(n, one)| {
            let evidence = stage.served.evidence(&one.agent);
            let endpoint = endpoints[n / PER_CONNECTION].clone();
            TaskHandle::attach(endpoint, evidence, one.task, one.key.clone())
        })
        .collect()
}
