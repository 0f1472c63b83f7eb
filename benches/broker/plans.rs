//! Plans of policy bundles: how fast decisions on record are decided again, and what a plan costs the calls beside it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dipylon_sdk::client::OperatorClient;
use tokio::task::JoinHandle;

use super::Counts;
use super::calls::{in_process, over_the_wire};
use super::closed_loop::{Tally, percentile};
use super::report::Report;
use super::setup::BenchSetup;

/// Calls in flight while a plan is made.
const IN_FLIGHT: usize = 8;
const TASKS: usize = 64;
/// Decisions that are put on record between two rounds of preparing.
const CHUNK: usize = 4_000;

type Files = BTreeMap<String, String>;

pub fn run(counts: &Counts, report: &mut Report) {
    report.part(&format!("a plan over {} decisions", counts.on_record));
    let setup = BenchSetup::start();
    let holders = setup.tasks("triage", TASKS);
    let mut left = counts.on_record;
    while left > 0 {
        let count = left.min(CHUNK);
        in_process(&setup, &holders, count, 64);
        left -= count;
    }
    // Without living tokens: they are asked about, too, and are no decisions on record.
    let operator = operator(&setup);
    for holder in &holders {
        let ended = operator.end_task(holder.task);
        setup.load.block_on(ended).expect("ended");
    }
    let holders = setup.tasks("triage", TASKS);
    let seed = setup.served.env.policy.clone();
    let edited = |path: &str, edit: &dyn Fn(&mut String)| {
        let mut files = seed.clone();
        edit(files.get_mut(path).expect("a file"));
        files
    };
    let one_rule = edited("rules/20-guardrails.cedar", &|rules| {
        rules.push_str(OTHER_RULE);
    });
    let every_entity = edited("agents.toml", &|agents| {
        *agents = agents.replace("model = \"", "model = \"new-");
    });
    for (what, files) in [
        ("a rule of another action is new", &one_rule),
        ("every agent has another model", &every_entity),
    ] {
        let (decisions, took) = plan(&setup, files);
        report.line(
            what,
            &format!(
                "{decisions} decided again in {:.2} s, 1,000,000 at this rate in {:.0} s   (goal: at most 60 s)",
                took.as_secs_f64(),
                took.as_secs_f64() * 1e6 / decisions as f64
            ),
        );
    }
    beside_calls(&setup, &holders, &every_entity, counts, report);
}

const OTHER_RULE: &str = "\n@id(\"no-long-notes\")\n@max_ttl(\"5m\")\nforbid (principal, action == Action::\"case.note\", resource)\n\
    when { context.ttl > duration(\"5m\") };\n";

fn operator(setup: &BenchSetup) -> OperatorClient {
    setup.load.block_on(async { setup.served.operator("olga") })
}

/// The decisions that were decided again, and the time.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
fn plan(setup: &BenchSetup, files: &Files) -> (u64, Duration) {
    let operator = operator(setup);
    let began = Instant::now();
    let planned = operator.plan_policy_bundle(files, &[], 7, |_| {});
    let plan = setup.load.block_on(planned).expect("a plan");
    assert!(!plan.replay.is_cut);
    (plan.replay.decisions.max(1), began.elapsed())
}

/// Plans one after the other until told to stop.
fn keep_planning(
    setup: &BenchSetup,
    operator: OperatorClient,
    files: &Files,
    stop: &Arc<AtomicBool>,
) -> JoinHandle<usize> {
    let (files, stop) = (files.clone(), stop.clone());
    setup.load.spawn(async move {
        let mut plans = 0;
        while !stop.load(Ordering::Relaxed) {
            let planned = operator.plan_policy_bundle(&files, &[], 7, |_| {});
            planned.await.expect("a plan");
            plans += 1;
        }
        plans
    })
}

/// Tokens over gRPC, in slices with and without a plan beside them.
fn beside_calls(
    setup: &BenchSetup,
    holders: &[super::setup::TaskHolder],
    files: &Files,
    counts: &Counts,
    report: &mut Report,
) {
    let mint = || {
        let asks = setup.token_requests(holders, counts.crowd);
        over_the_wire(setup, asks, IN_FLIGHT)
    };
    let (mut alone, mut beside) = (Tally::default(), Tally::default());
    let mut ratios = Vec::new();
    let p99 = |tally: &Tally| tally.percentile(99) as f64;
    for _ in 0..counts.rounds {
        let (mut without, mut with) = (Tally::default(), Tally::default());
        let slice = mint();
        without.add(slice);
        let stop = Arc::new(AtomicBool::new(false));
        let planning = keep_planning(setup, operator(setup), files, &stop);
        let slice = mint();
        with.add(slice);
        stop.store(true, Ordering::Relaxed);
        let plans = setup.load.block_on(planning).expect("plans");
        assert!(plans > 0);
        ratios.push((p99(&with) / p99(&without) * 100.0) as u64);
        alone.merge(without);
        beside.merge(with);
    }
    report.line("tokens over gRPC, 8 in flight", &alone.summary());
    report.line("... beside plans", &beside.summary());
    let median = percentile(&ratios, 50) as f64 / 100.0;
    report.ratio("... p99 beside that without", median, "below 2");
}
