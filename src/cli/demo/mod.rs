//! `demo`: an incident from the first request to the last rejection, run by separate processes that talk over sockets.
//!
//! The parent runs the scenario and acts as the machine's SPIFFE agent: it starts broker, resource server, agents and people
//! as children of this same program, gives each its own key file, and signs the workloads' SVIDs, so that no workload holds
//! the trust domain's key. Tokens leave the agent's process only in its requests. Only the broker opens the data directory.
//! A child ends when its stdin does, so that no process outlives the parent.

mod child;
mod http;
mod passkey;
mod person;
mod resource;
mod scenario;
mod step_log;
mod workload;

use std::cell::Cell;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::Output;
use super::error::{CliError, io_error};

pub(super) use person::{PersonChild, run as person};
pub(super) use resource::{ResourceChild, run as resource};
pub(super) use workload::{AgentChild, run as agent};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Keep the broker running at the end, and print commands to try
    #[arg(long)]
    keep: bool,
}

pub(super) async fn run(output: &Output, args: DemoArgs) -> Result<ExitCode, CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("SIGINT"))?;
    let scratch = Scratch::new()?;
    let all_passed = Cell::new(false);
    let stopped = || {
        if all_passed.get() {
            Ok(true)
        } else {
            Err(CliError::failed("the demo was stopped before its end"))
        }
    };
    // Dropping the scenario kills its children.
    let passed = tokio::select! {
        passed = scenario::run(output, &scratch.0, args.keep, &all_passed) => passed,
        _ = terminate.recv() => stopped(),
        _ = interrupt.recv() => stopped(),
    };
    drop(scratch);
    Ok(if passed? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The demo's temporary directory, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, CliError> {
        let name = crate::client::random_name()?;
        let path = std::env::temp_dir().join(format!("dipylon-demo-{name}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(io_error(path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), "temporary directory not removed: {error}");
    }
}
