//! The figures. In: how much to do. Out: a report on standard output. Load is closed: each caller makes its next call when it
//! has the answer to the last. Slices of the thing and of its ceiling alternate, so that what else the machine does falls
//! on both; a ratio is the median over the pairs.

mod calls;
mod fsync_probe;
mod revocation_latency;
mod closed_loop;
pub mod scale;
mod offline_validation;
mod report;
mod approvals;
mod setup;

use report::Report;

/// How much is done. Every count is a bound: nothing runs until a clock says so.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Pairs of slices.
    pub rounds: usize,
    /// Calls of one slice with one in flight.
    pub alone: usize,
    /// Calls of one slice with several in flight.
    pub crowd: usize,
    /// Ends that are timed.
    pub ends: usize,
    /// Live grants.
    pub grants: usize,
    /// Tasks they are spread over, at most 1,000.
    pub tasks: usize,
    /// Mints while an agent is ended.
    pub meanwhile: usize,
    /// Access requests that wait.
    pub pending: usize,
    /// Times that an inbox is read.
    pub inboxes: usize,
    /// Agents that watch, and again that wait, at most half of those.
    pub watches: usize,
    /// Votes on what they wait for.
    pub votes: usize,
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
        }
    }

    /// Seconds: whether it runs, not what the figures are.
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
        }
    }

    /// As few as there can be.
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
        }
    }
}

/// Where the memory of a replay is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayMemory {
    /// In a process that holds nothing else.
    #[allow(dead_code, reason = "the bench's way")]
    ChildProcess,
    /// In this process, whatever else it holds: the figure means nothing.
    #[allow(dead_code, reason = "the test's way")]
    ThisProcess,
}

/// Takes the figures of these parts, or all when none is named, and prints them.
pub fn run(counts: &Counts, measured: ReplayMemory, only: &[&str]) {
    let wanted = |part| only.is_empty() || only.contains(&part);
    let mut report = Report::begin();
    if wanted("calls") || wanted("offline") || wanted("ends") {
        let setup = setup::BenchSetup::start();
        fsync_probe::probe(&setup, counts, &mut report);
        if wanted("calls") {
            calls::run(&setup, counts, &mut report);
        }
        if wanted("offline") {
            offline_validation::run(&setup, counts, &mut report);
        }
        if wanted("ends") {
            revocation_latency::run(&setup, counts, &mut report);
        }
    }
    if wanted("many") {
        scale::run(counts, measured, &mut report);
    }
    if wanted("people") {
        approvals::run(counts, &mut report);
    }
    report.end();
}

/// The bench cannot rot: all of it runs with the tests, too little for any figure. What it asserts on the way (tokens, live
/// answers, one entry for an end) holds here as there.
#[test]
fn all_benchmarks_run() {
    run(&Counts::tiny(), ReplayMemory::ThisProcess, &[]);
}
