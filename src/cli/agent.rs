//! `agent suspend`, `agent resume`.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::failure::Failure;
use super::net::KeyArgs;
use super::{Common, Say};
use crate::model::AgentId;

#[derive(Debug, Subcommand)]
pub(super) enum Agent {
    /// Take an agent out of service: its tasks and tokens end at once
    Suspend {
        /// The agent
        #[arg(value_parser = AgentId::parse)]
        id: AgentId,
        /// Why, for the journal
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Let an agent operate again; nothing that ended comes back
    Resume {
        /// The agent
        #[arg(value_parser = AgentId::parse)]
        id: AgentId,
        #[command(flatten)]
        key: KeyArgs,
    },
}

pub(super) async fn run(common: &Common, say: &Say, verb: Agent) -> Result<ExitCode, Failure> {
    match verb {
        Agent::Suspend { id, reason, key } => {
            let done = key.person(common)?.suspend(&id, &reason).await?;
            say.either(
                || json!({ "agent": id, "suspended": true, "tasks_ended": done.tasks_ended, "position": done.position }),
                || format!("{id} is suspended by entry {}: {} tasks ended with their tokens", done.position, done.tasks_ended),
            );
        }
        Agent::Resume { id, key } => {
            let done = key.person(common)?.resume(&id).await?;
            say.either(
                || json!({ "agent": id, "suspended": false, "position": done.position }),
                || {
                    format!(
                        "{id} may operate again since entry {}; nothing that ended came back",
                        done.position
                    )
                },
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
