//! Agents: the registered agents, what they may request, and the history of their requests.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;

use super::error::ConsoleError;
use super::format::{ago, escape};
use super::page::Page;
use super::response;
use super::session_cookie::{ConsoleRequest, QueryString};
use super::state::Console;
use crate::broker::{ActionUse, AgentView};
use crate::model::{AgentId, ParseField as _, Timestamp};

/// The list that the page tokens of this page belong to.
const LIST: &str = "console agents";
/// Agents on one page.
const ROWS_MAX: usize = 100;

#[derive(Template)]
#[template(path = "agents.html", config = "src/serve/console/askama.toml")]
struct AgentsPage {
    page: Page,
    agents: Vec<AgentRow>,
    next: Option<String>,
}

#[derive(Template)]
#[template(path = "agent.html", config = "src/serve/console/askama.toml")]
struct AgentPage {
    page: Page,
    agent: AgentRow,
    facts: Vec<(&'static str, String)>,
    actions: Vec<ActionRow>,
}

struct AgentRow {
    id: String,
    owner: String,
    environment: String,
    model: String,
    verified: String,
    tasks: usize,
    tokens: usize,
    alarm: Option<&'static str>,
}

struct ActionRow {
    name: String,
    in_ceiling: bool,
    requested: u64,
    granted: u64,
    approved: u64,
    denied: u64,
    last: String,
}

#[derive(Deserialize)]
pub(super) struct AgentsQuery {
    after: Option<String>,
}

pub(super) async fn list(
    State(console): State<Arc<Console>>,
    QueryString(query): QueryString<AgentsQuery>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let tokens = console.broker.page_tokens();
    let after: Option<AgentId> =
        tokens.read(LIST, "", query.after.as_deref().unwrap_or_default())?;
    let agents = console
        .broker
        .list_agents(&request.context, after.as_ref(), ROWS_MAX)?;
    let now = console.broker.now();
    let last = agents.last().filter(|_| agents.len() >= ROWS_MAX);
    Ok(response::html(&AgentsPage {
        page: Page::new(&console, &request, &user, "Agents"),
        next: last.map(|agent| tokens.issue(LIST, "", &agent.id)),
        agents: agents.iter().map(|agent| agent_row(agent, now)).collect(),
    }))
}

fn agent_row(view: &AgentView, now: Timestamp) -> AgentRow {
    let registered = view.registered.as_deref();
    let field = |pick: fn(&crate::model::RegisteredAgent) -> String| {
        registered.map_or_else(|| "not registered".to_owned(), |agent| escape(pick(agent)))
    };
    AgentRow {
        id: escape(view.id.as_str()),
        owner: field(|agent| agent.owner.to_string()),
        environment: field(|agent| agent.environment.to_string()),
        model: field(|agent| agent.model.to_string()),
        verified: view
            .attested_at
            .or(view.verified_at)
            .map_or_else(|| "not recently".to_owned(), |at| ago(at, now)),
        tasks: view.tasks_running,
        tokens: view.tokens_active,
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
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let id = AgentId::parse(&id).at("id")?;
    let view = console.broker.get_agent(&request.context, &id)?;
    let now = console.broker.now();
    let agent = agent_row(&view, now);
    Ok(response::html(&AgentPage {
        page: Page::new(&console, &request, &user, &agent.id),
        facts: facts(&view, &agent),
        actions: view
            .activity
            .iter()
            .map(|used| action_row(used, now))
            .collect(),
        agent,
    }))
}

fn facts(view: &AgentView, row: &AgentRow) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Owner", row.owner.clone()),
        ("Environment", row.environment.clone()),
        ("Model", row.model.clone()),
    ];
    if let Some(agent) = &view.registered {
        facts.push(("Autonomy", agent.autonomy.as_str().to_owned()));
        facts.push(("Identity", escape(agent.spiffe_id.to_string())));
    }
    facts.push(("Last verified", row.verified.clone()));
    facts.push((
        "Now",
        format!("{} running tasks, {} live tokens", row.tasks, row.tokens),
    ));
    for scope in &view.frozen {
        facts.push(("Frozen", escape(scope.to_string())));
    }
    facts
}

fn action_row(used: &ActionUse, now: Timestamp) -> ActionRow {
    let stats = &used.stats;
    ActionRow {
        name: escape(used.action.as_str()),
        in_ceiling: used.in_ceiling,
        requested: stats.requested,
        granted: stats.granted,
        approved: stats.approved,
        denied: stats.denied,
        last: stats
            .last_at
            .filter(|_| stats.requested > 0)
            .map_or_else(|| "never".to_owned(), |at| ago(at, now)),
    }
}
