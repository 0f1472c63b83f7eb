//! Benchmarks of the broker. In: counts. Out: a report on standard output. The load is a closed loop: each caller makes its
//! next call after the reply to the last. Slices of the subject and of its ceiling alternate, so that other load on the machine
//! affects both; a ratio is the median over the pairs.

mod approvals;
mod calls;
mod closed_loop;
mod conflicts;
mod fsync_probe;
mod offline_validation;
mod plans;
mod report;
mod revocation_latency;
mod rules;
pub mod scale;
mod setup;

use report::Report;

/// Amount of work. Every part ends after a count of operations, never by a clock.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Pairs of slices.
    pub rounds: usize,
    /// Calls of one slice with one in flight.
    pub alone: usize,
    /// Calls of one slice with several in flight.
    pub crowd: usize,
    /// Revocations that are timed.
    pub ends: usize,
    /// Live grants.
    pub grants: usize,
    /// Tasks that hold the grants, at most 1,000.
    pub tasks: usize,
    /// Mints while another agent is suspended.
    pub meanwhile: usize,
    /// Pending access requests.
    pub pending: usize,
    /// Reads of an inbox.
    pub inboxes: usize,
    /// Agents that watch, and as many that wait; together at most `pending`.
    pub watches: usize,
    /// Votes on the requests they wait for.
    pub votes: usize,
    /// Times that sixteen tasks are opened at once, and sixteen access requests in them; at most 900.
    pub bursts: usize,
    /// Rules of the large bundle, three quarters of it with conditions; from 268 on, so that every action is granted.
    pub rules: usize,
    /// Decisions with one bundle.
    pub decisions: usize,
    /// Decisions on record that a plan decides again.
    pub on_record: usize,
}

impl Counts {
    /// A few minutes.
    #[allow(dead_code, reason = "for the bench")]
    pub const fn full() -> Self {
        Self {
            rounds: 9,
            alone: 300,
            crowd: 1_500,
            ends: 200,
            grants: 100_000,
            tasks: 400,
            meanwhile: 16_000,
            pending: 10_000,
            inboxes: 300,
            watches: 1_000,
            votes: 300,
            bursts: 96,
            rules: 10_000,
            decisions: 20_000,
            on_record: 60_000,
        }
    }

    /// Seconds: a smoke run; the numbers mean little.
    #[allow(dead_code, reason = "for the bench")]
    pub const fn quick() -> Self {
        Self {
            rounds: 3,
            alone: 40,
            crowd: 200,
            ends: 10,
            grants: 2_000,
            tasks: 20,
            meanwhile: 600,
            pending: 500,
            inboxes: 30,
            watches: 50,
            votes: 20,
            bursts: 8,
            rules: 1_000,
            decisions: 1_000,
            on_record: 2_000,
        }
    }

    /// The smallest counts that run.
    #[allow(dead_code, reason = "for the test that runs all of this")]
    pub const fn tiny() -> Self {
        Self {
            rounds: 2,
            alone: 4,
            crowd: 12,
            ends: 2,
            grants: 40,
            tasks: 4,
            meanwhile: 40,
            pending: 12,
            inboxes: 2,
            watches: 4,
            votes: 2,
            bursts: 2,
            rules: 280,
            decisions: 20,
            on_record: 20,
        }
    }
}

/// The process in which a replay's memory is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayMemory {
    /// A process that holds nothing else.
    #[allow(dead_code, reason = "used by the bench")]
    ChildProcess,
    /// This process: the number is meaningless, the code runs.
    #[allow(dead_code, reason = "used by the test")]
    ThisProcess,
}

/// The names of the parts.
#[allow(dead_code, reason = "for the bench")]
pub const PARTS: [&str; 8] = [
    "calls",
    "offline",
    "revocations",
    "conflicts",
    "scale",
    "approvals",
    "rules",
    "plans",
];

/// Runs the named benchmarks, or all when none is named, and prints the report.
pub fn run(counts: &Counts, measured: ReplayMemory, only: &[&str]) {
    let wanted = |part| only.is_empty() || only.contains(&part);
    let mut report = Report::begin();
    if wanted("calls") || wanted("offline") || wanted("revocations") {
        let setup = setup::BenchSetup::start();
        fsync_probe::probe(&setup, counts, &mut report);
        if wanted("calls") {
            calls::run(&setup, counts, &mut report);
        }
        if wanted("offline") {
            offline_validation::run(&setup, counts, &mut report);
        }
        if wanted("revocations") {
            revocation_latency::run(&setup, counts, &mut report);
        }
    }
    if wanted("conflicts") {
        conflicts::run(counts, &mut report);
    }
    if wanted("scale") {
        scale::run(counts, measured, &mut report);
    }
    if wanted("approvals") {
        approvals::run(counts, &mut report);
    }
    if wanted("rules") {
        rules::run(counts, &mut report);
    }
    if wanted("plans") {
        plans::run(counts, &mut report);
    }
    report.end();
}

/// Runs every benchmark with the tests at tiny counts, so that none can rot. The assertions on the way (tokens, active
/// introspections, one entry per revocation) hold here too.
#[test]
fn all_benchmarks_run() {
    run(&Counts::tiny(), ReplayMemory::ThisProcess, &[]);
}
