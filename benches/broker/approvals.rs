//! Approval latency: reading an inbox with many pending requests, and the time from a vote to the waiting agent.

use std::sync::Arc;
use std::time::Instant;

use dipylon::broker::{RequestTokenInput, TokenReply};
use dipylon_sdk::client::vote::ReviewedCard;
use dipylon_sdk::client::{ApproverClient, Endpoint, TaskHandle, TokenOutcome};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;
use tokio::sync::mpsc;

use super::Counts;
use super::closed_loop::{nanos, percentile};
use super::report::{Report, ms};
use super::setup::{
    BenchSetup, REQUEST_TOKEN, TaskHolder, call_context, environment, unique_number,
};
use crate::support::disable;
use crate::support::served_broker::token_request;

/// Agents that the access requests are spread over, half of them of each of two owners.
const AGENTS: usize = 20;
/// Tasks of each.
const TASKS: usize = 5;
/// Streams and waiting calls per connection: below the broker's limit.
const PER_CONNECTION: usize = 50;

pub fn run(counts: &Counts, report: &mut Report) {
    report.part(&format!("{} pending access requests", counts.pending));
    let setup = BenchSetup::start_in(environment(AGENTS, counts.pending.div_ceil(AGENTS * TASKS)));
    let requests = ask(&setup, counts.pending);
    assert_eq!(
        setup.served.broker.show().unclosed_requests().len(),
        counts.pending
    );
    setup.load.block_on(async {
        for (who, what) in [
            ("lee", "inbox of an approver of all of it, one page"),
            ("olga", "inbox of an approver of none of it"),
        ] {
            let person = setup.served.approver(who);
            let took = read(&person, counts.inboxes, counts.pending).await;
            report.line(what, &summary(&took, "p99 below 200 ms"));
        }
        let (watched, waited) = requests.split_at(counts.watches.min(requests.len() / 2));
        let waited = &waited[..counts.watches.min(waited.len())];
        report.part(&format!(
            "From the CastVote reply to the agent's reply, {} agents waiting",
            watched.len()
        ));
        let took = measure_watches(&setup, watched, counts.votes).await;
        report.line("WatchAccessRequest", &summary(&took, "p99 below 50 ms"));
        let took = measure_waits(&setup, waited, counts.votes).await;
        report.line(
            "RequestToken that waits for approval",
            &summary(&took, "p99 below 50 ms"),
        );
    });
}

fn summary(took: &[u64], goal: &str) -> String {
    let [p50, p99] = [50, 99].map(|per_cent| ms(percentile(took, per_cent)));
    format!(
        "p50 {p50:>9}   p99 {p99:>9}   of {}   (goal: {goal})",
        took.len()
    )
}

/// One access request and the task that opened it.
struct PendingRequest {
    agent: String,
    task: TaskId,
    key: Arc<SigningKey>,
    action: Action,
    idempotency_key: String,
    id: AccessRequestId,
}

fn ask(setup: &BenchSetup, count: usize) -> Vec<PendingRequest> {
    let holders: Vec<(String, TaskHolder)> = (0..AGENTS)
        .flat_map(|n| {
            let agent = format!("a-{n}");
            let tasks = setup.tasks(&agent, TASKS);
            tasks.into_iter().map(move |holder| (agent.clone(), holder))
        })
        .collect();
    let broker = setup.broker();
    setup.broker.block_on(async {
        let mut requests = Vec::new();
        for n in 0..count {
            let (agent, holder) = &holders[n % holders.len()];
            let action = disable(&format!("u-{}", n / holders.len()));
            let idempotency_key = format!("r-{}", unique_number());
            let ask = RequestTokenInput {
                task: holder.task,
                action: action.clone(),
                ttl: 300,
                reason: None,
                idempotency_key: IdempotencyKey::parse(&idempotency_key).expect("id"),
                wait_ms: 0,
                evidence: None,
                executor: None,
                recommendation: None,
            };
            let adg = Some(action.digest());
            let proof = setup.proof(REQUEST_TOKEN, &holder.key, adg, &broker.nonce());
            let reply = broker
                .request_token(&call_context(REQUEST_TOKEN, proof), ask)
                .await;
            let Ok(TokenReply::Pending(pending)) = reply else {
                panic!("not pending: {reply:?}")
            };
            requests.push(PendingRequest {
                agent: agent.clone(),
                task: holder.task,
                key: holder.key.clone(),
                action,
                idempotency_key,
                id: pending.access_request,
            });
        }
        requests
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
        let report = person.inbox_page(false, 50, "").await.expect("reads");
        took.push(nanos(began.elapsed()));
        // The number shown to one approver at once is bounded: the others are queued.
        assert_eq!((report.total + report.queued) as usize, pending);
    }
    took
}

/// Every agent watches; the times are from the vote's reply to the watcher's update.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn measure_watches(
    setup: &BenchSetup,
    requests: &[PendingRequest],
    votes: usize,
) -> Vec<u64> {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let (ready, mut readies) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, task) in attached(setup, requests).into_iter().enumerate() {
        let mut watch = task.watch(requests[n].id);
        let (heard, ready) = (heard.clone(), ready.clone());
        tasks.spawn(async move {
            watch.next().await.expect("watches");
            ready.send(()).expect("received");
            if let Ok(Some(_)) = watch.next().await {
                heard.send((n, Instant::now())).expect("received");
            }
        });
    }
    for _ in 0..requests.len() {
        readies.recv().await.expect("all watch");
    }
    let took = vote_and_hear(setup, requests, votes, &mut hears).await;
    tasks.shutdown().await;
    took
}

/// Every agent waits in RequestToken; the times are from the vote's reply to the token.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn measure_waits(setup: &BenchSetup, requests: &[PendingRequest], votes: usize) -> Vec<u64> {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, task) in attached(setup, requests).into_iter().enumerate() {
        let mut request = token_request(requests[n].action.clone(), &requests[n].idempotency_key);
        // As in the first call: an idempotency key is bound to one request.
        request.reason = String::new();
        request.wait_s = 60;
        let heard = heard.clone();
        tasks.spawn(async move {
            loop {
                match task.request_token(&request).await {
                    Ok(TokenOutcome::Token(_)) => {
                        break heard.send((n, Instant::now())).expect("received");
                    }
                    Ok(TokenOutcome::Pending(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    // There is no way to see that a call waits: it gets generous time to begin.
    tokio::time::sleep(std::time::Duration::from_millis(
        500 + requests.len() as u64 * 4,
    ))
    .await;
    let took = vote_and_hear(setup, requests, votes, &mut hears).await;
    tasks.shutdown().await;
    took
}

#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn vote_and_hear(
    setup: &BenchSetup,
    requests: &[PendingRequest],
    votes: usize,
    hears: &mut mpsc::UnboundedReceiver<(usize, Instant)>,
) -> Vec<u64> {
    let lee = setup.served.approver("lee");
    let mut took = Vec::new();
    // Spread over all, not only the first.
    let step = (requests.len() / votes.max(1)).max(1);
    for n in (0..requests.len()).step_by(step).take(votes) {
        approve(&lee, requests[n].id).await;
        let answered = Instant::now();
        let (heard, at) = hears.recv().await.expect("heard");
        assert_eq!(heard, n, "only the watcher of this request is woken");
        took.push(nanos(at.saturating_duration_since(answered)));
    }
    took
}

/// Reads the card and approves the request.
pub async fn approve(approver: &ApproverClient, id: AccessRequestId) {
    let card = approver.card(id).await.expect("card");
    let profile = ProfileName::parse("one-security").expect("profile");
    let seen = ReviewedCard {
        card: &card,
        realm: &Realm::parse("test").expect("realm"),
        profile: &profile,
        verdict: Verdict::Approve,
        narrowing: Narrowing::default(),
        comment: None,
    };
    approver.vote(&seen).await.expect("the vote counts");
}

/// The tasks, spread over connections of [`PER_CONNECTION`] each.
fn attached(setup: &BenchSetup, requests: &[PendingRequest]) -> Vec<TaskHandle> {
    let endpoints: Vec<Endpoint> = (0..requests.len().div_ceil(PER_CONNECTION))
        .map(|_| setup.served.endpoint())
        .collect();
    requests
        .iter()
        .enumerate()
        .map(|(n, request)| {
            let evidence = setup.served.evidence(&request.agent);
            let endpoint = endpoints[n / PER_CONNECTION].clone();
            TaskHandle::attach(endpoint, evidence, request.task, request.key.clone())
        })
        .collect()
}
