//! Tasks, and the timeline of each: from verification to revocation.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;

use super::error::ConsoleError;
use super::format::{DisplayTime, escape};
use super::page::{self, Page};
use super::response;
use super::session_cookie::{ConsoleRequest, QueryString};
use super::state::Console;
use super::timeline_rows::TimelineRow;
use crate::broker::{TaskFilter, TaskView};
use crate::model::{ParseField as _, TaskId, Timestamp};
use crate::serve::request_log::record;
use crate::serve::routes;

/// The list that the page tokens of this page belong to.
const LIST: &str = "console tasks";
/// Tasks on one page.
const ROWS_MAX: usize = 100;

#[derive(Template)]
#[template(path = "tasks.html", config = "src/serve/console/askama.toml")]
struct TasksPage {
    page: Page,
    tasks: Vec<TaskRow>,
    with_ended: bool,
    next: Option<String>,
}

struct TaskRow {
    id: String,
    agent: String,
    owner: String,
    opened: DisplayTime,
    until: DisplayTime,
    ended: Option<&'static str>,
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
    ended: Option<&'static str>,
    events: Vec<TimelineRow>,
    left_out: u64,
    /// Whether the person may open the list of tasks.
    may_list_tasks: bool,
}

#[derive(Deserialize)]
pub(super) struct TasksQuery {
    after: Option<String>,
    ended: Option<String>,
}

pub(super) async fn list(
    State(console): State<Arc<Console>>,
    QueryString(query): QueryString<TasksQuery>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let tokens = console.broker.page_tokens();
    let ended = if query.ended.is_some() {
        "&ended=yes"
    } else {
        ""
    };
    let filter = TaskFilter {
        agent: None,
        ended: query.ended.is_some(),
        after: tokens.read(LIST, ended, query.after.as_deref().unwrap_or_default())?,
        max: ROWS_MAX,
    };
    let tasks = console.broker.list_tasks(&request.context, &filter)?;
    let now = console.broker.now();
    let last = tasks.last().filter(|_| tasks.len() >= ROWS_MAX);
    Ok(response::html(&TasksPage {
        page: Page::new(&console, &request, &user, "Tasks"),
        next: last
            .map(|view| tokens.issue(LIST, ended, &view.cursor()))
            .map(|token| format!("/console/tasks?after={token}{ended}")),
        tasks: tasks.iter().map(|view| task_row(view, now)).collect(),
        with_ended: filter.ended,
    }))
}

fn task_row(view: &TaskView, now: Timestamp) -> TaskRow {
    let opened = &view.task.opened;
    TaskRow {
        id: opened.task.to_string(),
        agent: escape(opened.agent.as_str()),
        owner: escape(opened.owner.as_str()),
        opened: DisplayTime::new(opened.opened_at, now),
        until: DisplayTime::new(opened.deadline, now),
        ended: view.ended.map(|cause| cause.as_str()),
        tokens: view.tokens_active,
        waiting: view.access_requests_waiting,
    }
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let id = TaskId::parse(&id).at("id")?;
    record("task", &id);
    let timeline = console.broker.timeline(&request.context, id).await?;
    let now = console.broker.now();
    let title = format!("Task of {}", timeline.agent);
    let tasks = routes::route("/console/tasks");
    Ok(response::html(&TaskPage {
        page: Page::new(&console, &request, &user, &title),
        id: timeline.task.to_string(),
        agent: escape(timeline.agent.as_str()),
        owner: escape(timeline.owner.as_str()),
        ended: timeline.ended.map(|cause| cause.as_str()),
        events: timeline
            .events
            .iter()
            .map(|event| TimelineRow::new(event, now))
            .collect(),
        left_out: timeline.left_out,
        may_list_tasks: tasks.is_some_and(|route| page::may_open(&user, route)),
    }))
}
