//! `demo`: an incident from the first look to the last refusal, told by processes that talk over sockets.
//!
//! The parent plays the director and the machine's SPIFFE agent: it starts broker, resource server, agents and people as
//! children of this same program, hands each its own key file, and signs the workloads' SVIDs, so that no workload ever
//! holds the trust domain's key. Tokens never shut_down the agent's process but in its requests. Only the broker opens the data
//! directory. Children end when their stdin does: whatever happens to the parent, nobody is left behind.

mod child;
mod http;
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
    /// Leave the broker running at the end, and say how to go on
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
            Err(CliError::failed("stopped before the end"))
        }
    };
    // Dropping the story kills its children.
    let told = tokio::select! {
        told = scenario::run(output, &scratch.0, args.keep, &all_passed) => told,
        _ = terminate.recv() => stopped(),
        _ = interrupt.recv() => stopped(),
    };
    drop(scratch);
    Ok(if told? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A directory of our own that goes with the demo.
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
        tracing::warn!(path = %path.display(), "not removed: {error}");
    }
}
