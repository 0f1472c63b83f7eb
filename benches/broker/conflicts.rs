//! Optimistic concurrency: how often an append conflicts and its call is decided anew, while tokens are issued, tasks opened
//! and access requests opened at the same time; and the size of the entries that carry streams and versions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dipylon::journal::JournalReader;
use dipylon_sdk::client::TokenOutcome;
use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use dipylon_sdk::proto::v1::request_token_response::Outcome;
use dipylon_sdk::proto::v1::task_service_client::TaskServiceClient;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use super::approvals::approve;
use super::closed_loop::{Tally, closed};
use super::report::Report;
use super::setup::{BenchSetup, TaskHolder, environment, wire, wire_token_request};
use super::{Counts, fsync_probe};
use crate::support::disable;
use crate::support::served_broker::token_request;

/// Calls at a time that issue tokens.
const IN_FLIGHT: [usize; 3] = [1, 16, 64];
/// Calls that open tasks or access requests at once; also the tasks, and the agents, that tokens are spread over.
const BURST: usize = 16;
/// Tokens that use an approval, for their size.
const APPROVED: usize = 8;

pub fn run(counts: &Counts, report: &mut Report) {
    let setup = BenchSetup::start_in(environment(2 + BURST, BURST));
    fsync_probe::probe(&setup, counts, report);
    report.part("Version conflicts: appends that conflicted (each call is decided anew), and calls refused with CONFLICT after the last attempt");
    tokens(&setup, counts, report);
    bursts(&setup, counts, report);
    sizes(&setup, report);
}

/// Calls, and what conflicts did to them.
#[derive(Default)]
struct Measured {
    calls: usize,
    tally: Tally,
    /// Appends that conflicted.
    conflicts: u64,
    /// Calls that were refused with `CONFLICT`.
    refused: usize,
}

impl Measured {
    /// Makes the calls over gRPC; each is answered, or refused with `CONFLICT`.
    fn add<T, F, Fut>(&mut self, setup: &BenchSetup, work: Vec<T>, in_flight: usize, call: F)
    where
        T: Send + 'static,
        F: Fn(TaskServiceClient<Channel>, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
    {
        self.calls += work.len();
        let refused = Arc::new(AtomicUsize::new(0));
        let (clients, counted) = (setup.clients.clone(), refused.clone());
        let before = append_conflicts(setup);
        let slice = setup
            .load
            .block_on(closed(work, in_flight, move |caller, item| {
                let client = clients[caller % clients.len()].clone();
                let answer = call(TaskServiceClient::new(client), item);
                let counted = counted.clone();
                async move {
                    if let Err(status) = answer.await {
                        assert!(is_conflict(&status), "{status:?}");
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        self.conflicts += append_conflicts(setup) - before;
        self.refused += refused.load(Ordering::Relaxed);
        self.tally.add(slice);
    }

    fn report(&self, what: &str, report: &mut Report) {
        let shown = format!(
            "{}   conflicts {:>5}, {:.3} a call   CONFLICT {:>4} of {}",
            self.tally.summary(),
            self.conflicts,
            self.conflicts as f64 / self.calls.max(1) as f64,
            self.refused,
            self.calls
        );
        report.line(what, &shown);
    }
}

/// `dipylon_append_conflicts_total` of the broker.
fn append_conflicts(setup: &BenchSetup) -> u64 {
    let text = setup.served.broker.read_metrics();
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("dipylon_append_conflicts_total "));
    value.and_then(|n| n.parse().ok()).expect("a counter")
}

fn is_conflict(status: &Status) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == Reason::Conflict.as_str())
}

/// Tokens of one agent with one task, of one agent with many, and of many agents: the slices alternate.
fn tokens(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    for in_flight in IN_FLIGHT {
        let mut shapes = ["one agent, one task", "one agent, 16 tasks", "16 agents"]
            .map(|shape| (shape, Measured::default()));
        let count = match in_flight {
            1 => counts.alone,
            _ => counts.crowd,
        };
        // Half of the rounds: what is compared here are counts and three shapes of the same work, not a ratio.
        for _ in 0..counts.rounds.div_ceil(2) {
            // New tasks for each slice: what a task has issued before does not count.
            let [one, many, agents] = &mut shapes;
            issue(setup, &setup.tasks("a-0", 1), count, in_flight, &mut one.1);
            let tasks = setup.tasks("a-1", BURST);
            issue(setup, &tasks, count, in_flight, &mut many.1);
            let tasks = (0..BURST).flat_map(|n| setup.tasks(&agent(n), 1));
            let tasks: Vec<_> = tasks.collect();
            issue(setup, &tasks, count, in_flight, &mut agents.1);
        }
        for (shape, measured) in &shapes {
            measured.report(
                &format!("a token, {in_flight:>2} in flight: {shape}"),
                report,
            );
        }
    }
}

/// The agents other than the first two.
fn agent(n: usize) -> String {
    format!("a-{}", 2 + n % BURST)
}

fn issue(
    setup: &BenchSetup,
    tasks: &[TaskHolder],
    count: usize,
    in_flight: usize,
    measured: &mut Measured,
) {
    let asks = setup.token_requests(tasks, count);
    let requests = asks
        .iter()
        .map(|(ask, proof)| wire(wire_token_request(ask), proof));
    let requests: Vec<_> = requests.collect();
    measured.add(
        setup,
        requests,
        in_flight,
        |mut client, request| async move {
            let outcome = outcome_of(client.request_token(request).await?);
            assert!(matches!(outcome, Some(Outcome::Token(_))), "a token");
            Ok(())
        },
    );
}

fn outcome_of(answer: tonic::Response<v1::RequestTokenResponse>) -> Option<Outcome> {
    answer.into_inner().outcome
}

/// Sixteen tasks of one agent opened at once, then one access request in each of them at once; again and again, by one agent
/// after the other.
fn bursts(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    let (mut opened, mut stepped_up) = (Measured::default(), Measured::default());
    for n in 0..counts.bursts {
        let tasks = Arc::new(Mutex::new(Vec::new()));
        let holders = tasks.clone();
        let requests = setup.open_task_requests(&agent(n), BURST);
        opened.add(setup, requests, BURST, move |mut client, (key, request)| {
            let holders = holders.clone();
            async move {
                let answer = client.open_task(request).await?.into_inner();
                let task = TaskId::parse(&answer.task_id).expect("an id");
                holders
                    .lock()
                    .expect("tasks")
                    .push(TaskHolder { task, key });
                Ok(())
            }
        });
        let tasks = std::mem::take(&mut *tasks.lock().expect("tasks"));
        let asks = tasks.iter().enumerate().flat_map(|(n, task)| {
            let action = disable(&format!("u-{n}"));
            setup.token_requests_for(&action, std::slice::from_ref(task), 1)
        });
        let requests = asks.map(|(ask, proof)| wire(wire_token_request(&ask), &proof));
        let requests: Vec<_> = requests.collect();
        stepped_up.add(setup, requests, BURST, |mut client, request| async move {
            let outcome = outcome_of(client.request_token(request).await?);
            assert!(matches!(outcome, Some(Outcome::Pending(_))), "pending");
            Ok(())
        });
    }
    opened.report("OpenTask, 16 at once of one agent", report);
    stepped_up.report("an access request in each of 16 tasks of it", report);
}

/// The size of entries as stored, and the part of it that is not the event: position, time, streams and versions.
fn sizes(setup: &BenchSetup, report: &mut Report) {
    setup.load.block_on(issue_approved(setup));
    let mut sizes: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    JournalReader::open(&setup.served.dir)
        .expect("opens")
        .read_all(|stored| {
            let entry = Entry::parse(&stored.text).expect("an entry");
            let kind = match &entry.event {
                Event::TokenIssued(issued) if issued.consumed.is_some() => {
                    "TokenIssued, using an approval"
                }
                Event::TokenIssued(_) => "TokenIssued, without an approval",
                Event::TaskOpened(_) => "TaskOpened",
                Event::AccessRequestOpened(_) => "AccessRequestOpened",
                _ => return Ok(()),
            };
            let event = json::canonical_of(&entry.event).expect("canonical").len();
            let total = stored.text.len();
            sizes.entry(kind).or_default().push((total, total - event));
            Ok(())
        })
        .expect("reads");
    assert_eq!(sizes.len(), 4, "{:?}", sizes.keys());
    for (kind, mut entries) in sizes {
        entries.sort_unstable();
        let (total, envelope) = entries[entries.len() / 2];
        let shown = format!(
            "median {total} bytes, {envelope} of them outside the event; {} to {}, {} entries",
            entries[0].0,
            entries[entries.len() - 1].0,
            entries.len()
        );
        report.line(kind, &shown);
    }
}

/// Tokens that each use an approval.
async fn issue_approved(setup: &BenchSetup) {
    let lee = setup.served.approver("lee");
    for n in 0..APPROVED {
        let task = setup.served.task("triage").await;
        let request = token_request(disable(&format!("u-{n}")), "r");
        let Ok(TokenOutcome::Pending(pending)) = task.request_token(&request).await else {
            panic!("not pending")
        };
        approve(&lee, pending.access_request_id()).await;
        let answer = task.request_token(&request).await;
        assert!(matches!(answer, Ok(TokenOutcome::Token(_))), "{answer:?}");
    }
}
