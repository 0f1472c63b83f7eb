//! `agent`: list, show, suspend and resume registered agents.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::{FieldList, table};
use super::{Common, Output, render};
use crate::client;
use crate::clock::Clock;
use crate::model::AgentId;
use crate::model::text::escape_invisible;

#[derive(Debug, Subcommand)]
pub(super) enum AgentCommand {
    /// List agents with their status, running tasks and active tokens
    List {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Show one agent: registration, status and use of its actions
    Show {
        /// The agent
        #[arg(value_parser = AgentId::parse)]
        id: AgentId,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Suspend an agent: its tasks end and its tokens are revoked at once
    Suspend {
        /// The agent
        #[arg(value_parser = AgentId::parse)]
        id: AgentId,
        /// The reason, recorded in the journal
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Resume a suspended agent; ended tasks and revoked tokens stay ended
    Resume {
        /// The agent
        #[arg(value_parser = AgentId::parse)]
        id: AgentId,
        #[command(flatten)]
        key: KeyArgs,
    },
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: AgentCommand,
) -> Result<ExitCode, CliError> {
    match command {
        AgentCommand::List { key } => {
            let agents = key.operator_client(common)?.agents().await?;
            output.print(
                || agents.iter().map(to_json).collect::<Value>(),
                || {
                    let head = ["AGENT", "OWNER", "ENVIRONMENT", "STATUS", "TASKS", "TOKENS"];
                    let row = |a: &client::AgentInfo| {
                        vec![
                            escape_invisible(&a.agent_id),
                            escape_invisible(&a.owner),
                            escape_invisible(&a.environment),
                            status_text(a),
                            a.tasks_running.to_string(),
                            a.tokens_active.to_string(),
                        ]
                    };
                    let head = head.map(str::to_owned).to_vec();
                    let rows: Vec<_> = std::iter::once(head)
                        .chain(agents.iter().map(row))
                        .collect();
                    table(&rows)
                },
            );
        }
        AgentCommand::Show { id, key } => {
            let agent = key.operator_client(common)?.agent(&id).await?;
            let now = Clock::system().now();
            output.print(
                || to_json(&agent),
                || {
                    let mut fields = FieldList::default();
                    fields
                        .untrusted_row("agent", &agent.agent_id)
                        .row("status", status_text(&agent));
                    if agent.registered {
                        fields
                            .untrusted_row("workload", &agent.spiffe_id)
                            .untrusted_row("owner", &agent.owner)
                            .untrusted_row("environment", &agent.environment)
                            .untrusted_row("model", &agent.model)
                            .untrusted_row("autonomy", &agent.autonomy)
                            .untrusted_row("groups", &agent.groups.join(", "))
                            .untrusted_row("allowed actions", &agent.actions.join(", "));
                        let pinned = match agent.jkt.as_str() {
                            "" => {
                                "any (not pinned): stolen evidence can open a task with another key"
                            }
                            jkt => jkt,
                        };
                        fields.untrusted_row("task key", pinned);
                    }
                    fields
                        .row("tasks running", agent.tasks_running.to_string())
                        .row("tokens active", agent.tokens_active.to_string());
                    if agent.verified_at.is_some() {
                        fields.row(
                            "verified",
                            render::timestamp_with_distance(agent.verified_at.as_ref(), now),
                        );
                    }
                    if agent.attested_at.is_some() {
                        fields.row(
                            "last attested",
                            render::timestamp_with_distance(agent.attested_at.as_ref(), now),
                        );
                    }
                    activity(&mut fields, &agent.activity);
                    if agent.left_out > 0 {
                        fields.row(
                            "left out",
                            format!("{} more groups and actions", agent.left_out),
                        );
                    }
                    fields.to_text()
                },
            );
        }
        AgentCommand::Suspend { id, reason, key } => {
            let report = key.operator_client(common)?.suspend(&id, &reason).await?;
            output.print(
                || json!({ "agent": id, "suspended": true, "tasks_ended": report.tasks_ended, "position": report.position }),
                || format!("{id} is suspended by entry {}: {} tasks ended and their tokens are revoked", report.position, report.tasks_ended),
            );
        }
        AgentCommand::Resume { id, key } => {
            let position = key.operator_client(common)?.resume(&id).await?;
            output.print(
                || json!({ "agent": id, "suspended": false, "position": position }),
                || {
                    format!(
                        "{id} is resumed by entry {}; ended tasks and revoked tokens stay ended",
                        position
                    )
                },
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The requests per action, and the allowed actions never requested.
fn activity(fields: &mut FieldList, activity: &[client::AgentActionStats]) {
    for used in activity.iter().filter(|used| used.requested > 0) {
        let counts = [
            ("requested", used.requested),
            ("granted", used.granted),
            ("refused by rules", used.refused),
            ("approved", used.approved),
            ("denied", used.denied),
            ("expired", used.expired),
        ];
        let counts = counts.iter().filter(|(_, n)| *n > 0);
        let counts: Vec<_> = counts.map(|(label, n)| format!("{label} {n}")).collect();
        let note = match used.in_ceiling {
            true => "",
            false => " (no longer allowed)",
        };
        fields.row(
            "used",
            format!(
                "{}{note}: {}",
                escape_invisible(&used.action),
                counts.join(", ")
            ),
        );
    }
    let never = activity.iter().filter(|used| used.requested == 0);
    let never: Vec<&str> = never.map(|used| used.action.as_str()).collect();
    if !never.is_empty() {
        fields.untrusted_row("never requested", &never.join(", "));
    }
}

/// The agent's status: in service, suspended, frozen or not registered.
fn status_text(agent: &client::AgentInfo) -> String {
    let mut words = Vec::new();
    if !agent.registered {
        words.push("not registered".to_owned());
    }
    if agent.suspended {
        words.push("suspended".to_owned());
    }
    if !agent.frozen.is_empty() {
        words.push(format!(
            "frozen ({})",
            escape_invisible(&agent.frozen.join(", "))
        ));
    }
    if words.is_empty() {
        "in service".to_owned()
    } else {
        words.join(", ")
    }
}

fn to_json(agent: &client::AgentInfo) -> Value {
    json!({
        "agent": agent.agent_id, "registered": agent.registered, "spiffe_id": agent.spiffe_id, "owner": agent.owner,
        "environment": agent.environment, "model": agent.model, "autonomy": agent.autonomy, "groups": agent.groups,
        "jkt": (!agent.jkt.is_empty()).then_some(&agent.jkt), "actions": agent.actions, "suspended": agent.suspended,
        "frozen": agent.frozen, "tasks_running": agent.tasks_running, "tokens_active": agent.tokens_active,
        "verified_at": render::timestamp_json(agent.verified_at.as_ref()),
        "attested_at": render::timestamp_json(agent.attested_at.as_ref()),
        "activity": agent.activity.iter().map(use_json).collect::<Value>(), "left_out": agent.left_out,
    })
}

fn use_json(used: &client::AgentActionStats) -> Value {
    json!({
        "action": used.action, "in_ceiling": used.in_ceiling, "requested": used.requested, "granted": used.granted,
        "refused": used.refused, "approved": used.approved, "denied": used.denied, "expired": used.expired,
        "last_at": render::timestamp_json(used.last_at.as_ref()), "last_denied_at": render::timestamp_json(used.last_denied_at.as_ref()),
        "last_denied_by": (!used.last_denied_by.is_empty()).then_some(&used.last_denied_by),
    })
}
