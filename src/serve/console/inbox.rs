//! Inbox: the access requests that wait for approval, highest risk first, then nearest deadline; those for equal actions grouped.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::error::ConsoleError;
use super::format::{self, DisplayTime, escape};
use super::page::Page;
use super::response;
use super::session_cookie::{ConsoleRequest, QueryString};
use super::state::Console;
use crate::broker::{InboxPage, InboxQuery, InboxRow, Ineligible};
use crate::card::{Headline, compact_parameters};
use crate::model::{MatchPhrase, Timestamp};

/// The list that the page tokens of the inbox belong to.
const LIST: &str = "console inbox";
/// Requests on one page.
const ROWS_MAX: usize = 50;

#[derive(Template)]
#[template(path = "inbox.html", config = "src/serve/console/askama.toml")]
struct InboxHtml {
    page: Page,
    inbox: InboxView,
}

#[derive(Template)]
#[template(path = "inbox_rows.html", config = "src/serve/console/askama.toml")]
struct InboxRowsHtml {
    inbox: InboxView,
}

/// The inbox as pages show it.
struct InboxView {
    total: usize,
    queued: usize,
    groups: Vec<RequestGroup>,
    next: Option<String>,
}

struct RequestGroup {
    key: String,
    title: String,
    /// Requests for equal actions, on all pages.
    size: usize,
    requests: Vec<RequestRow>,
}

struct RequestRow {
    id: String,
    risk: &'static str,
    status: &'static str,
    title: String,
    /// `Type::id`.
    target: String,
    /// Names and values; the last name is empty where there are too many.
    parameters: Vec<(String, String)>,
    agent: String,
    owner: String,
    is_proposal: bool,
    until: DisplayTime,
    delay: Option<String>,
    progress: String,
    phrase: String,
    not_eligible: Option<&'static str>,
    /// Warnings about how verb or target are written.
    flags: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct InboxPageQuery {
    after: Option<String>,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    QueryString(query): QueryString<InboxPageQuery>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    Ok(response::html(&InboxHtml {
        inbox: inbox(&console, &request, &query)?,
        page: Page::new(&console, &request, &user, "Inbox"),
    }))
}

/// The rows alone, for the script.
pub(super) async fn rows(
    State(console): State<Arc<Console>>,
    QueryString(query): QueryString<InboxPageQuery>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let inbox = inbox(&console, &request, &query)?;
    Ok(response::html(&InboxRowsHtml { inbox }))
}

fn inbox(
    console: &Console,
    request: &ConsoleRequest,
    query: &InboxPageQuery,
) -> Result<InboxView, ConsoleError> {
    let tokens = console.broker.page_tokens();
    let inbox_request = InboxQuery {
        mine: false,
        size: ROWS_MAX,
        after: tokens.read(LIST, "", query.after.as_deref().unwrap_or_default())?,
    };
    let page = console.broker.inbox(&request.context, &inbox_request)?;
    let next = page.next.map(|cursor| tokens.issue(LIST, "", &cursor));
    Ok(InboxView {
        next: next.map(|token| format!("/console?after={token}")),
        ..inbox_view(&page, console.broker.now())
    })
}

/// The broker sorts requests for equal actions together: each run of them is a group.
fn inbox_view(page: &InboxPage, now: Timestamp) -> InboxView {
    let mut groups: Vec<RequestGroup> = Vec::new();
    for row in &page.rows {
        let key = row.group.to_string();
        let request = request_row(row, now);
        match groups.last_mut().filter(|group| group.key == key) {
            Some(group) => group.requests.push(request),
            None => {
                let known = page.groups.iter().find(|group| group.key == row.group);
                groups.push(RequestGroup {
                    title: request.title.clone(),
                    size: known.map_or(1, |group| group.size),
                    key,
                    requests: vec![request],
                });
            }
        }
    }
    InboxView {
        total: page.total,
        queued: page.queued,
        groups,
        next: None,
    }
}

fn request_row(row: &InboxRow, now: Timestamp) -> RequestRow {
    let opened = &row.access.request.opened;
    let progress: Vec<String> = row
        .access
        .needs
        .iter()
        .map(|need| format!("{} of {}", need.approvers.len(), need.quorum))
        .collect();
    let action = row.access.request.action.as_deref();
    let head = Headline::new(
        &row.access.title,
        action,
        row.is_target_known,
        None,
        row.access.risk,
    );
    RequestRow {
        id: opened.access_request.to_string(),
        risk: format::risk(row.access.risk),
        status: row.access.status.as_str(),
        title: head.verb,
        target: format!("{}::{}", head.object_type, head.object),
        parameters: row
            .access
            .request
            .action
            .iter()
            .flat_map(|action| compact_parameters(action))
            .collect(),
        flags: head.flags,
        agent: opened.agent().map_or_else(
            || "a proposal".to_owned(),
            |agent| match opened.executor() {
                None => escape(agent.as_str()),
                Some(executor) => escape(format!("{agent} for {}", executor.agent)),
            },
        ),
        owner: escape(opened.owner().as_str()),
        is_proposal: opened.by_person().is_some(),
        until: DisplayTime::new(opened.expires_at, now),
        delay: row.access.delay.as_ref().map(|delay| delay.text(now)),
        progress: progress.join(", "),
        phrase: MatchPhrase::from_request(&opened.access_request).to_string(),
        not_eligible: row.vote.as_ref().err().map(not_eligible),
    }
}

const fn not_eligible(why: &Ineligible) -> &'static str {
    match why {
        Ineligible::NotApprover | Ineligible::NotInGroup | Ineligible::ProfileNotNeeded => {
            "other approvers decide"
        }
        Ineligible::Proposer => "your proposal, so others decide",
        Ineligible::NeededElsewhere => "needed for another profile",
        Ineligible::ProfileMet => "your profile has its approvals",
        Ineligible::Owner => "your agent, so others decide",
        Ineligible::ProfileChanged => "the policy changed: the agent must request again",
        Ineligible::HasVoted => "you have voted",
        Ineligible::PasskeyRequired | Ineligible::RiskRequiresPasskey | Ineligible::NoPasskey => {
            "you have no passkey"
        }
        Ineligible::ApproverAddedLater => "opened before you were an approver of this group",
        Ineligible::KeyAddedLater => "opened before your passkey was added",
        Ineligible::NotConfirmed => "your passkey is not confirmed",
        Ineligible::InviterMayNotVote | Ineligible::InviterHasVoted => {
            "your passkey is not confirmed, and counts as its inviter's"
        }
    }
}
