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

use benchmarks::{Counts, ReplayMemory};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        // A child of the run below: measures a replay in a process that holds nothing else.
        ["--replay", dir, what] => {
            println!(
                "{}",
                benchmarks::scale::replay(dir.as_ref(), *what == "state")
            )
        }
        // cargo adds `--bench`.
        ["--bench"] | [] => benchmarks::run(&Counts::full(), ReplayMemory::ChildProcess, &[]),
        ["--quick", "--bench"] | ["--quick"] => {
            benchmarks::run(&Counts::quick(), ReplayMemory::ChildProcess, &[])
        }
        ["--only", names, "--bench"] | ["--only", names] => {
            benchmarks::run(
                &Counts::full(),
                ReplayMemory::ChildProcess,
                &names.split(',').collect::<Vec<_>>(),
            );
        }
        other => {
            eprintln!(
                "cargo bench [-- --quick | -- --only calls,offline,revocations,scale,approvals]; not {other:?}"
            );
            std::process::exit(2);
        }
    }
}
