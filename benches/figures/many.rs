//! Many live grants: what one takes in memory and in the journal, how long a start from them takes, and what ending them all
//! does to others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dipylon::clock::Clock;
use dipylon::journal::{Committed, Faults, Journal, Options, ReadOnly};
use dipylon::model::{AgentId, EndCause, Entry, Event};
use dipylon::state::State;

use super::calls::{in_process, mint};
use super::load::{closed, nanos, percentile};
use super::page::{Page, ms};
use super::stage::{Stage, wire, wire_ask};
use super::{Counts, Measured};
use crate::harness::settings;

/// Callers that mint while an agent is ended.
const IN_FLIGHT: usize = 8;
/// Mints between two rounds of preparing.
const CHUNK: usize = 4_000;
const TASKS: usize = 64;

pub fn run(counts: &Counts, measured: Measured, page: &mut Page) {
    page.part(&format!("{} live grants of one agent", counts.grants));
    let stage = Stage::start();
    let holders = stage.tasks("reporter", counts.tasks);
    let without = copy(&stage, "none");
    let mut left = counts.grants;
    while left > 0 {
        let count = left.min(CHUNK);
        in_process(&stage, &holders, count, 64);
        left -= count;
    }
    let copy = copy(&stage, "many");
    let mut bytes = 0;
    ReadOnly::open(&copy)
        .expect("opens")
        .all(|stored| {
            bytes += stored.text.len();
            Ok(())
        })
        .expect("reads");
    let each = |total: u64| total / counts.grants as u64;
    // What a start takes with no grant at all is not theirs.
    let (none, versions, state) = match measured {
        Measured::InAChild => (
            child(&without, "state"),
            child(&copy, "versions"),
            child(&copy, "state"),
        ),
        // One is enough: its writer lets go of the directory when it likes.
        Measured::Here => ([0, 0], [0, 0], read(&replay(&copy, true))),
    };
    page.line(
        "memory of one, state and versions",
        &format!(
            "{} bytes   (goal: at most 600)",
            each(state[0].saturating_sub(none[0]))
        ),
    );
    page.line(
        "  of which the writer's stream versions",
        &format!("{} bytes", each(versions[0].saturating_sub(none[0]))),
    );
    page.line(
        "canonical bytes of one in the journal",
        &format!("{}", each(bytes as u64)),
    );
    let file = std::fs::metadata(copy.join("journal.db")).map_or(0, |m| m.len());
    page.line("bytes of the database for one", &format!("{}", each(file)));
    page.line(
        "start: every entry verified and folded",
        &format!(
            "{:.1} s, {} µs each",
            state[1] as f64 / 1e3,
            state[1] * 1_000 / counts.grants as u64
        ),
    );
    end_them_all(&stage, counts, page);
}

/// Opens the journal and says `bytes milliseconds`: what the replay took of resident memory and time.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
pub fn replay(dir: &Path, with_state: bool) -> String {
    let state = Arc::new(State::default());
    let fold = state.clone();
    let options = Options {
        realm: settings().realm,
        clock: Clock::system(),
        faults: Faults {
            keep_wal: true,
            ..Faults::default()
        },
        observe: None,
    };
    let before = resident_bytes();
    let start = Instant::now();
    let apply = Box::new(move |committed: &Committed| {
        if with_state {
            fold.apply(committed);
        }
    });
    let journal = Journal::open(dir, options, apply).expect("replays");
    let took = start.elapsed();
    let after = resident_bytes();
    drop(journal);
    drop(state);
    format!("{} {}", after.saturating_sub(before), took.as_millis())
}

/// A copy of the journal as of now, when nothing is being written.
fn copy(stage: &Stage, name: &str) -> PathBuf {
    let copy = stage.served.dir.with_file_name(name);
    std::fs::create_dir_all(&copy).expect("dir");
    // After this the checkpointer has moved all there was to move. The WAL is copied first: what may still move from it into the
    // database then stands in the copy twice, never not at all.
    std::thread::sleep(Duration::from_secs(1));
    for file in ["journal.db-wal", "journal.db"] {
        std::fs::copy(stage.served.dir.join(file), copy.join(file)).expect("copied");
    }
    copy
}

fn read(line: &str) -> [u64; 2] {
    let numbers: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
    numbers.try_into().expect("two numbers")
}

fn child(dir: &Path, what: &str) -> [u64; 2] {
    let exe = std::env::current_exe().expect("this program");
    let out = Command::new(exe)
        .arg("--replay")
        .arg(dir)
        .arg(what)
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
fn resident_bytes() -> u64 {
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
fn end_them_all(stage: &Stage, counts: &Counts, page: &mut Page) {
    let holders = stage.tasks("triage", TASKS);
    let requests: Vec<_> = stage
        .asks(&holders, counts.meanwhile)
        .iter()
        .map(|(ask, proof)| wire(wire_ask(ask), proof))
        .collect();
    let (clients, done) = (stage.clients.clone(), Arc::new(AtomicUsize::new(0)));
    let (half, counted) = (counts.meanwhile / 2, done.clone());
    let operator = {
        let _within = stage.load.enter();
        stage.served.operator("olga")
    };
    let agent = AgentId::parse("reporter").expect("id");
    let (slice, (asked, acknowledged, index)) = stage.load.block_on(async {
        let ending = tokio::spawn(async move {
            while done.load(Ordering::Relaxed) < half {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let asked = Instant::now();
            let ended = operator
                .suspend(&agent, "a drill")
                .await
                .expect("suspended");
            (asked, Instant::now(), ended.position)
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
    let from = nanos(asked.saturating_duration_since(slice.began));
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
    let took = nanos(acknowledged.saturating_duration_since(asked));
    page.line("ending them: one entry, acknowledged after", &ms(took));
    assert_one_entry(stage, index);
    // A window holds about a hundred calls, so its p99 is nearly its worst: compared with windows as long as it.
    let mut windows: Vec<u64> = before.values().map(|calls| percentile(calls, 99)).collect();
    windows.sort_unstable();
    let (calm, busy) = (percentile(&windows, 50), percentile(&meanwhile, 99));
    page.line(
        "mint p99 in a window before",
        &format!(
            "median {}, worst {}   of {} windows",
            ms(calm),
            ms(percentile(&windows, 100)),
            windows.len()
        ),
    );
    page.line(
        "mint p99 in the window of the end",
        &format!("{}   of {} mints", ms(busy), meanwhile.len()),
    );
    page.ratio(
        "meanwhile / before",
        busy as f64 / calm.max(1) as f64,
        "below 2",
    );
}

/// That the end is one entry, and that no other entry ended anything.
fn assert_one_entry(stage: &Stage, index: u64) {
    let mut ends = Vec::new();
    ReadOnly::open(&stage.served.dir)
        .expect("opens")
        .all(|stored| {
            match Entry::parse(&stored.text).expect("an entry").fact {
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

/// Least time that counts as meanwhile.
const WINDOW_NS: u64 = 100_000_000;
