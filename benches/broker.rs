//! Benchmarks (`cargo bench`): each measurement beside its ceiling, both taken in the same run.
//!
//! `cargo bench -- --quick` is the same at small counts. Everything listens on loopback and writes to a temporary directory
//! (`TMPDIR`: put it on the disk whose fsync counts).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot run fails"
)]

#[path = "broker/mod.rs"]
mod benchmarks;
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
#[path = "../tests/it/support/mod.rs"]
mod support;

use benchmarks::{Counts, PARTS, ReplayMemory};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // cargo adds `--bench`.
    let args: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|arg| *arg != "--bench")
        .collect();
    // A child of the run below: measures a replay in a process that holds nothing else.
    if let ["--replay", dir] = args.as_slice() {
        return println!("{}", benchmarks::scale::replay(dir.as_ref()));
    }
    let (counts, rest) = match args.as_slice() {
        ["--quick", rest @ ..] => (Counts::quick(), rest),
        rest => (Counts::full(), rest),
    };
    let only: Vec<&str> = match rest {
        [] => Vec::new(),
        ["--only", names] => names.split(',').collect(),
        _ => usage(rest),
    };
    if only.iter().any(|name| !PARTS.contains(name)) {
        usage(&only);
    }
    benchmarks::run(&counts, ReplayMemory::ChildProcess, &only);
}

fn usage(got: &[&str]) -> ! {
    let parts = PARTS.join(",");
    eprintln!("expected cargo bench [-- [--quick] [--only {parts}]], got {got:?}");
    std::process::exit(2);
}
