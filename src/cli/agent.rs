//! `agent`: what is registered, how it stands, and taking it out of service.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::failure::Failure;
use super::net::KeyArgs;
use super::say::{Rows, table};
use super::{Common, Say, shapes};
use crate::clock::Clock;
use crate::model::AgentId;
use crate::model::text::escape_invisible;
use crate::client;

#[derive(Debug, Subcommand)]
pub(super) enum Agent {
    /// List agents and how they stand
    List {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Show one agent: what it is registered as, and how it stands
    Show {
        /// The agent
        #[arg(value_parser = AgentId::parse)]
        id: AgentId,
        #[command(flatten)]
        key: KeyArgs,
    },
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
        Agent::List { key } => {
            let agents = key.operator(common)?.agents().await?;
            say.either(
                || agents.iter().map(to_json).collect::<Value>(),
                || {
                    let head = ["AGENT", "OWNER", "ENVIRONMENT", "STANDS", "TASKS", "TOKENS"];
                    let row = |a: &client::AgentInfo| {
                        vec![
                            escape_invisible(&a.agent_id),
                            escape_invisible(&a.owner),
                            escape_invisible(&a.environment),
                            stands(a),
                            a.tasks_running.to_string(),
                            a.tokens_live.to_string(),
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
        Agent::Show { id, key } => {
            let agent = key.operator(common)?.agent(&id).await?;
            let now = Clock::system().now();
            say.either(
                || to_json(&agent),
                || {
                    let mut rows = Rows::default();
                    rows.theirs("agent", &agent.agent_id).own("stands", stands(&agent));
                    if agent.registered {
                        rows.theirs("workload", &agent.spiffe_id)
                            .theirs("owner", &agent.owner)
                            .theirs("environment", &agent.environment)
                            .theirs("model", &agent.model)
                            .theirs("autonomy", &agent.autonomy)
                            .theirs("groups", &agent.groups.join(", "))
                            .theirs("may ask for", &agent.actions.join(", "));
                        let pinned = match agent.jkt.as_str() {
                            "" => "any: whoever steals its evidence can open a task with a key of their own",
                            jkt => jkt,
                        };
                        rows.theirs("key", pinned);
                    }
                    rows.own("tasks running", agent.tasks_running.to_string())
                        .own("tokens live", agent.tokens_live.to_string());
                    if agent.verified_at.is_some() {
                        rows.own("verified", shapes::when(agent.verified_at.as_ref(), now));
                    }
                    if agent.attested_at.is_some() {
                        rows.own("last attested", shapes::when(agent.attested_at.as_ref(), now));
                    }
                    activity(&mut rows, &agent.activity);
                    rows.lines()
                },
            );
        }
        Agent::Suspend { id, reason, key } => {
            let done = key.operator(common)?.suspend(&id, &reason).await?;
            say.either(
                || json!({ "agent": id, "suspended": true, "tasks_ended": done.tasks_ended, "position": done.position }),
                || format!("{id} is suspended by entry {}: {} tasks ended with their tokens", done.position, done.tasks_ended),
            );
        }
        Agent::Resume { id, key } => {
            let done = key.operator(common)?.resume(&id).await?;
            say.either(
                || json!({ "agent": id, "suspended": false, "position": done }),
                || {
                    format!(
                        "{id} may operate again since entry {}; nothing that ended came back",
                        done
                    )
                },
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What it did with its actions, and which of its ceiling it never asked for.
fn activity(rows: &mut Rows, activity: &[client::AgentActionStats]) {
    for used in activity.iter().filter(|used| used.asked > 0) {
        let counts = [
            ("asked", used.asked),
            ("granted", used.granted),
            ("refused by rules", used.refused),
            ("approved", used.approved),
            ("denied", used.denied),
            ("expired", used.expired),
        ];
        let counts = counts.iter().filter(|(_, n)| *n > 0);
        let counts: Vec<_> = counts.map(|(what, n)| format!("{what} {n}")).collect();
        let gone = match used.in_ceiling {
            true => "",
            false => " (no longer in its ceiling)",
        };
        rows.own(
            "used",
            format!(
                "{}{gone}: {}",
                escape_invisible(&used.action),
                counts.join(", ")
            ),
        );
    }
    let never = activity.iter().filter(|used| used.asked == 0);
    let never: Vec<&str> = never.map(|used| used.action.as_str()).collect();
    if !never.is_empty() {
        rows.theirs("never used", &never.join(", "));
    }
}

/// How an agent stands, in a word or two.
fn stands(agent: &client::AgentInfo) -> String {
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
        "frozen": agent.frozen, "tasks_running": agent.tasks_running, "tokens_live": agent.tokens_live,
        "verified_at": shapes::moment(agent.verified_at.as_ref()),
        "attested_at": shapes::moment(agent.attested_at.as_ref()),
        "activity": agent.activity.iter().map(use_json).collect::<Value>(),
    })
}

fn use_json(used: &client::AgentActionStats) -> Value {
    json!({
        "action": used.action, "in_ceiling": used.in_ceiling, "asked": used.asked, "granted": used.granted,
        "refused": used.refused, "approved": used.approved, "denied": used.denied, "expired": used.expired,
        "last_at": shapes::moment(used.last_at.as_ref()), "last_denied_at": shapes::moment(used.last_denied_at.as_ref()),
        "last_denied_by": (!used.last_denied_by.is_empty()).then_some(&used.last_denied_by),
    })
}
