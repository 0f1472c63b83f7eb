//! Tasks, and what happened in each: from verification to revocation.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::moments::Moment;
use super::page::{self, Page};
use super::rows;
use super::session_cookie::Call;
use super::show::{self, shown};
use super::{Console, answer};
use crate::broker::{Refusal, TaskFilter, TaskView};
use crate::model::{TaskId, Timestamp};
use crate::serve::call::note;

/// Tasks on one page.
const ROWS_MAX: usize = 100;

#[derive(Template)]
#[template(path = "tasks.html", config = "src/serve/console/askama.toml")]
struct TasksPage {
    page: Page,
    tasks: Vec<Row>,
    ended: bool,
    next: Option<String>,
}

struct Row {
    id: String,
    agent: String,
    owner: String,
    opened: show::Moment,
    until: show::Moment,
    over: Option<&'static str>,
    tokens: usize,
    waiting: usize,
}

#[derive(Template)]
#[template(path = "task.html", config = "src/serve/console/askama.toml")]
struct TaskPage {
    page: Page,
    id: String,
    agent: String,
    owner: String,
    over: Option<&'static str>,
    moments: Vec<Moment>,
    left_out: u64,
    /// Whether the visitor may see the list of tasks.
    tasks: bool,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    after: Option<String>,
    ended: Option<String>,
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
    let after = asked.after.as_deref().map(TaskId::parse).transpose();
    let filter = TaskFilter {
        agent: None,
        ended: asked.ended.is_some(),
        after: after.map_err(|error| answer::malformed(console, call, &error))?,
        max: ROWS_MAX,
    };
    let tasks = console.broker.list_tasks(&call.presented, &filter)?;
    let now = console.broker.now();
    let too = if filter.ended { "&ended=yes" } else { "" };
    let last = tasks.last().filter(|_| tasks.len() >= ROWS_MAX);
    Ok(answer::html(&TasksPage {
        page: Page::new(console, call, &visitor, "Tasks"),
        next: last.map(|view| format!("/console/tasks?after={}{too}", view.task.opened.task)),
        tasks: tasks.iter().map(|view| row(view, now)).collect(),
        ended: filter.ended,
    }))
}

fn row(view: &TaskView, now: Timestamp) -> Row {
    let opened = &view.task.opened;
    Row {
        id: opened.task.to_string(),
        agent: shown(opened.agent.as_str()),
        owner: shown(opened.owner.as_str()),
        opened: show::Moment::new(opened.opened_at, now),
        until: show::Moment::new(opened.deadline, now),
        over: view.ended.map(|cause| cause.as_str()),
        tokens: view.tokens_live,
        waiting: view.access_requests_waiting,
    }
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    call: Call,
) -> Response {
    let page = told(&console, &call, &id).await;
    answer::of(&console, &call, page)
}

async fn told(console: &Console, call: &Call, id: &str) -> Result<Response, Refusal> {
    let visitor = console.broker.signed_in_user(&call.presented)?;
    let id = TaskId::parse(id).map_err(|error| answer::malformed(console, call, &error))?;
    note("task", &id);
    let told = console.broker.timeline(&call.presented, id).await?;
    let now = console.broker.now();
    let title = format!("{} at work", told.agent);
    Ok(answer::html(&TaskPage {
        page: Page::new(console, call, &visitor, &title),
        id: told.task.to_string(),
        agent: shown(told.agent.as_str()),
        owner: shown(told.owner.as_str()),
        over: told.ended.map(|cause| cause.as_str()),
        moments: told.events.iter().map(|m| Moment::new(m, now)).collect(),
        left_out: told.left_out,
        tasks: rows::of("/console/tasks").is_some_and(|row| page::may(&visitor, row)),
    }))
}
