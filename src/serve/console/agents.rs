//! Agents: who they are, what they may ask for, what became of it.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::page::Page;
use super::session_cookie::Call;
use super::show::{ago, shown};
use super::{Console, answer};
use crate::broker::{ActionUse, AgentView, Refusal};
use crate::model::{AgentId, Timestamp};

/// Agents on one page.
const ROWS_MAX: usize = 100;

#[derive(Template)]
#[template(path = "agents.html", config = "src/serve/console/askama.toml")]
struct AgentsPage {
    page: Page,
    agents: Vec<Row>,
    next: Option<String>,
}

#[derive(Template)]
#[template(path = "agent.html", config = "src/serve/console/askama.toml")]
struct AgentPage {
    page: Page,
    agent: Row,
    facts: Vec<(&'static str, String)>,
    actions: Vec<Use>,
}

struct Row {
    id: String,
    owner: String,
    environment: String,
    model: String,
    verified: String,
    tasks: usize,
    tokens: usize,
    alarm: Option<&'static str>,
}

struct Use {
    name: String,
    in_ceiling: bool,
    asked: u64,
    granted: u64,
    yes: u64,
    no: u64,
    last: String,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    after: Option<String>,
}

pub(super) async fn list(
    State(console): State<Arc<Console>>,
    Query(asked): Query<Asked>,
    call: Call,
) -> Response {
    let page = listed(&console, &call, &asked);
    answer::of(&console, &call, page)
}

fn listed(console: &Console, call: &Call, asked: &Asked) -> Result<Response, Refusal> {
    let visitor = console.broker.signed_in_user(&call.presented)?;
    let after = asked.after.as_deref().map(AgentId::parse).transpose();
    let after = after.map_err(|error| answer::malformed(console, call, &error))?;
    let agents = console
        .broker
        .list_agents(&call.presented, after.as_ref(), ROWS_MAX)?;
    let now = console.broker.now();
    let last = agents.last().filter(|_| agents.len() >= ROWS_MAX);
    Ok(answer::html(&AgentsPage {
        page: Page::new(console, call, &visitor, "Agents"),
        next: last.map(|agent| agent.id.to_string()),
        agents: agents.iter().map(|agent| row(agent, now)).collect(),
    }))
}

fn row(view: &AgentView, now: Timestamp) -> Row {
    let registered = view.registered.as_deref();
    let words = |pick: fn(&crate::model::Agent) -> String| {
        registered.map_or_else(|| "not registered".to_owned(), |agent| shown(pick(agent)))
    };
    Row {
        id: shown(view.id.as_str()),
        owner: words(|agent| agent.owner.to_string()),
        environment: words(|agent| agent.environment.to_string()),
        model: words(|agent| agent.model.to_string()),
        verified: view
            .attested_at
            .or(view.verified_at)
            .map_or_else(|| "not lately".to_owned(), |at| ago(at, now)),
        tasks: view.tasks_running,
        tokens: view.tokens_live,
        alarm: if view.suspended {
            Some("SUSPENDED")
        } else if !view.frozen.is_empty() {
            Some("FROZEN")
        } else {
            None
        },
    }
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    call: Call,
) -> Response {
    let page = one(&console, &call, &id);
    answer::of(&console, &call, page)
}

fn one(console: &Console, call: &Call, id: &str) -> Result<Response, Refusal> {
    let visitor = console.broker.signed_in_user(&call.presented)?;
    let id = AgentId::parse(id).map_err(|error| answer::malformed(console, call, &error))?;
    let view = console.broker.get_agent(&call.presented, &id)?;
    let now = console.broker.now();
    let agent = row(&view, now);
    Ok(answer::html(&AgentPage {
        page: Page::new(console, call, &visitor, &agent.id),
        facts: facts(&view, &agent),
        actions: view.activity.iter().map(|used| action(used, now)).collect(),
        agent,
    }))
}

fn facts(view: &AgentView, row: &Row) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Owner", row.owner.clone()),
        ("Works in", row.environment.clone()),
        ("Model", row.model.clone()),
    ];
    if let Some(agent) = &view.registered {
        facts.push(("Autonomy", shown(&agent.autonomy)));
        facts.push(("Identity", shown(agent.spiffe_id.to_string())));
    }
    facts.push(("Last verified", row.verified.clone()));
    facts.push((
        "Now",
        format!("{} tasks run, {} tokens live", row.tasks, row.tokens),
    ));
    for scope in &view.frozen {
        facts.push(("Frozen", shown(scope.to_string())));
    }
    facts
}

fn action(used: &ActionUse, now: Timestamp) -> Use {
    let habit = &used.habit;
    Use {
        name: shown(used.action.as_str()),
        in_ceiling: used.in_ceiling,
        asked: habit.asked,
        granted: habit.granted,
        yes: habit.approved,
        no: habit.denied,
        last: habit
            .last_at
            .filter(|_| habit.asked > 0)
            .map_or_else(|| "never".to_owned(), |at| ago(at, now)),
    }
}
