//! Scale: memory and journal bytes of one live grant, start time with many, and the effect of ending them all on other
//! callers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dipylon::journal::{FaultInjection, Journal, JournalOptions, JournalReader};
use dipylon::state::{State, StateFold};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::{AgentId, EndCause, Entry, Event};

use super::calls::{in_process, mint};
use super::closed_loop::{closed, nanos, percentile};
use super::report::{Report, ms};
use super::setup::{BenchSetup, wire, wire_token_request};
use super::{Counts, ReplayMemory};
use crate::support::settings;

/// Callers that mint while an agent is suspended.
const IN_FLIGHT: usize = 8;
/// Mints between two rounds of preparing.
const CHUNK: usize = 4_000;
const TASKS: usize = 64;

pub fn run(counts: &Counts, measured: ReplayMemory, report: &mut Report) {
    report.part(&format!("{} live grants of one agent", counts.grants));
    let setup = BenchSetup::start();
    let holders = setup.tasks("reporter", counts.tasks);
    let without = copy(&setup, "none");
    let mut left = counts.grants;
    while left > 0 {
        let count = left.min(CHUNK);
        in_process(&setup, &holders, count, 64);
        left -= count;
    }
    let copy = copy(&setup, "many");
    let mut bytes = 0;
    JournalReader::open(&copy)
        .expect("opens")
        .read_all(|stored| {
            bytes += stored.text.len();
            Ok(())
        })
        .expect("reads");
    let each = |total: u64| total / counts.grants as u64;
    // Memory of a start without any grant is subtracted.
    let (none, state) = match measured {
        ReplayMemory::ChildProcess => (child(&without), child(&copy)),
        // Once is enough: its writer releases the directory at an unknown time.
        ReplayMemory::ThisProcess => ([0, 0], read(&replay(&copy))),
    };
    report.line(
        "memory of one grant, state and versions",
        &format!(
            "{} bytes   (goal: at most 600)",
            each(state[0].saturating_sub(none[0]))
        ),
    );
    report.line(
        "canonical bytes of one grant in the journal",
        &format!("{}", each(bytes as u64)),
    );
    let file = std::fs::metadata(copy.join("journal.db")).map_or(0, |m| m.len());
    report.line("database bytes for one grant", &format!("{}", each(file)));
    report.line(
        "start: every entry verified and folded",
        &format!(
            "{:.1} s, {} µs each",
            state[1] as f64 / 1e3,
            state[1] * 1_000 / counts.grants as u64
        ),
    );
    end_them_all(&setup, counts, report);
}

/// Opens the journal and returns `bytes milliseconds`: resident memory and time of the replay.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
pub fn replay(dir: &Path) -> String {
    let state = Arc::new(State::default());
    let fold = StateFold::new(Arc::clone(&state), |_| {});
    let options = JournalOptions {
        realm: settings().realm,
        clock: Clock::system(),
        latest_seen: Arc::default(),
        faults: FaultInjection {
            keep_wal: true,
            ..FaultInjection::default()
        },
        observe: None,
    };
    let before = resident_bytes();
    let start = Instant::now();
    let journal = Journal::open(dir, options, Box::new(fold)).expect("replays");
    let took = start.elapsed();
    let after = resident_bytes();
    drop(journal);
    drop(state);
    format!("{} {}", after.saturating_sub(before), took.as_millis())
}

/// A copy of the journal while nothing is being written.
fn copy(setup: &BenchSetup, name: &str) -> PathBuf {
    let copy = setup.served.dir.with_file_name(name);
    std::fs::create_dir_all(&copy).expect("dir");
    // After this the checkpointer has moved all there was to move. The WAL is copied first: pages that still move from it into the
    // database are then in the copy twice, never missing.
    std::thread::sleep(Duration::from_secs(1));
    for file in ["journal.db-wal", "journal.db"] {
        std::fs::copy(setup.served.dir.join(file), copy.join(file)).expect("copied");
    }
    copy
}

fn read(line: &str) -> [u64; 2] {
    let numbers: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
    numbers.try_into().expect("two numbers")
}

fn child(dir: &Path) -> [u64; 2] {
    let exe = std::env::current_exe().expect("this program");
    let out = Command::new(exe)
        .arg("--replay")
        .arg(dir)
        .output()
        .expect("runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    read(String::from_utf8(out.stdout).expect("text").trim())
}

/// proc(5): `VmRSS`, in KiB.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("a number") * 1_024
}

/// Suspends the agent in the middle of another agent's mints.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
fn end_them_all(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    let holders = setup.tasks("triage", TASKS);
    let requests: Vec<_> = setup
        .token_requests(&holders, counts.meanwhile)
        .iter()
        .map(|(ask, proof)| wire(wire_token_request(ask), proof))
        .collect();
    let (clients, done) = (setup.clients.clone(), Arc::new(AtomicUsize::new(0)));
    let (half, counted) = (counts.meanwhile / 2, done.clone());
    let operator = {
        let _within = setup.load.enter();
        setup.served.operator("olga")
    };
    let agent = AgentId::parse("reporter").expect("id");
    let (slice, (requested_at, acknowledged, index)) = setup.load.block_on(async {
        let ending = tokio::spawn(async move {
            while done.load(Ordering::Relaxed) < half {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let requested_at = Instant::now();
            let ended = operator
                .suspend(&agent, "a drill")
                .await
                .expect("suspended");
            (requested_at, Instant::now(), ended.position)
        });
        let slice = closed(requests, IN_FLIGHT, move |caller, request| {
            let client = clients[caller % clients.len()].clone();
            let counted = counted.clone();
            async move {
                mint(client, request).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        })
        .await;
        (slice, ending.await.expect("ended"))
    });
    let from = nanos(requested_at.saturating_duration_since(slice.began));
    let to = nanos(acknowledged.saturating_duration_since(slice.began)).max(from + WINDOW_NS);
    let (mut before, mut meanwhile): (BTreeMap<u64, Vec<u64>>, _) = (BTreeMap::new(), Vec::new());
    for (start, took) in slice.calls {
        if start + took < from {
            before
                .entry((from - start) / (to - from))
                .or_default()
                .push(took);
        } else if start < to {
            meanwhile.push(took);
        }
    }
    let took = nanos(acknowledged.saturating_duration_since(requested_at));
    report.line(
        "suspending the agent: one entry, acknowledged after",
        &ms(took),
    );
    assert_one_entry(setup, index);
    // A window holds about a hundred calls, so its p99 is nearly its worst: compared with windows of the same length.
    let mut windows: Vec<u64> = before.values().map(|calls| percentile(calls, 99)).collect();
    windows.sort_unstable();
    let (calm, busy) = (percentile(&windows, 50), percentile(&meanwhile, 99));
    report.line(
        "mint p99 in a window before",
        &format!(
            "median {}, worst {}   of {} windows",
            ms(calm),
            ms(percentile(&windows, 100)),
            windows.len()
        ),
    );
    report.line(
        "mint p99 in the window of the suspension",
        &format!("{}   of {} mints", ms(busy), meanwhile.len()),
    );
    report.ratio(
        "during / before",
        busy as f64 / calm.max(1) as f64,
        "below 2",
    );
}

/// Asserts that the suspension is one entry and that no other entry ended a grant.
fn assert_one_entry(setup: &BenchSetup, index: u64) {
    let mut ends = Vec::new();
    JournalReader::open(&setup.served.dir)
        .expect("opens")
        .read_all(|stored| {
            match Entry::parse(&stored.text).expect("an entry").event {
                Event::AgentSuspended(_) => ends.push(stored.index),
                Event::TaskEnded(f) => assert_ne!(f.cause, EndCause::Suspended),
                Event::GrantsEnded(_) => panic!("an end of grants"),
                _ => {}
            }
            Ok(())
        })
        .expect("reads");
    assert_eq!(ends, [index], "one entry ended them all");
}

/// Shortest window compared.
const WINDOW_NS: u64 = 100_000_000;
