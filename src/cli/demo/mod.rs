//! `demo`: an incident from the first look to the last refusal, told by processes that talk over sockets.
//!
//! The parent plays the director and the machine's SPIFFE agent: it starts broker, resource server, agents and people as
//! children of this same program, hands each its own key file, and signs the workloads' SVIDs, so that no workload ever
//! holds the trust domain's key. Tokens never leave the agent's process but in its requests. Only the broker opens the data
//! directory. Children end when their stdin does: whatever happens to the parent, nobody is left behind.

mod child;
mod http;
mod people;
mod resource;
mod story;
mod timeline;
mod workload;

use std::cell::Cell;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::Say;
use super::failure::{Failure, failed};

pub(super) use people::{PersonChild, run as person};
pub(super) use resource::{ResourceChild, run as resource};
pub(super) use workload::{AgentChild, run as agent};

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Leave the broker running at the end, and say how to go on
    #[arg(long)]
    keep: bool,
}

pub(super) async fn run(say: &Say, verb: Demo) -> Result<ExitCode, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("SIGINT"))?;
    let scratch = Scratch::new()?;
    let told_whole = Cell::new(false);
    let stopped = || {
        if told_whole.get() {
            Ok(true)
        } else {
            Err(Failure::failed("stopped before the end"))
        }
    };
    // Dropping the story kills its children.
    let told = tokio::select! {
        told = story::tell(say, &scratch.0, verb.keep, &told_whole) => told,
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
    fn new() -> Result<Self, Failure> {
        let name = crate::client::random_name()?;
        let path = std::env::temp_dir().join(format!("dipylon-demo-{name}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed(path.display()))?;
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
