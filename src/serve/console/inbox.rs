//! What waits for people: highest risk first, then the nearest deadline; alike ones together.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::page::Page;
use super::session_cookie::Call;
use super::show::{self, Moment, shown};
use super::{Console, answer};
use crate::broker::{InboxQuery, InboxCursor, InboxPage, InboxRow, Ineligible, Refusal};
use crate::model::{MatchPhrase, Timestamp};

/// Requests on one page.
const ROWS_MAX: usize = 50;

#[derive(Template)]
#[template(path = "inbox.html", config = "src/serve/console/askama.toml")]
struct WholePage {
    page: Page,
    inbox: Inbox,
}

#[derive(Template)]
#[template(path = "inbox_rows.html", config = "src/serve/console/askama.toml")]
struct Rows {
    inbox: Inbox,
}

/// What waits, as the page shows it.
struct Inbox {
    total: usize,
    queued: usize,
    groups: Vec<Group>,
    next: Option<String>,
}

struct Group {
    key: String,
    words: String,
    /// How many are alike, on all pages.
    alike: usize,
    requests: Vec<Row>,
}

struct Row {
    id: String,
    risk: &'static str,
    standing: &'static str,
    title: String,
    target: String,
    kind: String,
    agent: String,
    owner: String,
    until: Moment,
    step: String,
    phrase: String,
    not_yours: Option<&'static str>,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    after: Option<String>,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    Query(asked): Query<Asked>,
    call: Call,
) -> Response {
    let page = || {
        let visitor = console.broker.signed_in_user(&call.presented)?;
        Ok(answer::html(&WholePage {
            inbox: waiting(&console, &call, &asked)?,
            page: Page::new(&console, &call, &visitor, "Inbox"),
        }))
    };
    answer::of(&console, &call, page())
}

/// The rows alone, for the script.
pub(super) async fn fragment(
    State(console): State<Arc<Console>>,
    Query(asked): Query<Asked>,
    call: Call,
) -> Response {
    let inbox = waiting(&console, &call, &asked);
    let rows = inbox.map(|inbox| answer::html(&Rows { inbox }));
    answer::of(&console, &call, rows)
}

fn waiting(console: &Console, call: &Call, asked: &Asked) -> Result<Inbox, Refusal> {
    let after = asked.after.as_deref().map(InboxCursor::parse).transpose();
    let ask = InboxQuery {
        mine: false,
        size: ROWS_MAX,
        after: after.map_err(|error| answer::malformed(console, call, &error))?,
    };
    let page = console.broker.inbox(&call.presented, &ask)?;
    Ok(grouped(&page, console.broker.now()))
}

/// Alike ones stand together already: each run of them is a group.
fn grouped(page: &InboxPage, now: Timestamp) -> Inbox {
    let mut groups: Vec<Group> = Vec::new();
    for row in &page.rows {
        let key = row.group.to_string();
        let shown = shown_row(row, now);
        match groups.last_mut().filter(|group| group.key == key) {
            Some(group) => group.requests.push(shown),
            None => {
                let known = page.groups.iter().find(|group| group.key == row.group);
                groups.push(Group {
                    words: shown.title.clone(),
                    alike: known.map_or(1, |group| group.size),
                    key,
                    requests: vec![shown],
                });
            }
        }
    }
    Inbox {
        total: page.total,
        queued: page.queued,
        groups,
        next: page.next.map(|cursor| format!("/console?after={cursor}")),
    }
}

fn shown_row(row: &InboxRow, now: Timestamp) -> Row {
    let opened = &row.access.request.opened;
    let steps: Vec<String> = row
        .access
        .needs
        .iter()
        .map(|need| format!("{} of {}", need.approvers.len(), need.quorum))
        .collect();
    Row {
        id: opened.access_request.to_string(),
        risk: show::risk(row.access.risk),
        standing: row.access.status.as_str(),
        title: if row.access.title.is_empty() {
            shown(opened.action.action.as_str())
        } else {
            shown(&row.access.title)
        },
        target: shown(&opened.action.target.id),
        kind: shown(&opened.action.target.kind),
        agent: shown(opened.agent.as_str()),
        owner: shown(opened.owner.as_str()),
        until: Moment::new(opened.expires_at, now),
        step: steps.join(", "),
        phrase: MatchPhrase::of(&opened.access_request).to_string(),
        not_yours: row.vote.as_ref().err().map(not_yours),
    }
}

const fn not_yours(why: &Ineligible) -> &'static str {
    match why {
        Ineligible::NotApprover | Ineligible::NotInGroup | Ineligible::ProfileNotNeeded => {
            "others decide"
        }
        Ineligible::Owner => "yours, so others decide",
        Ineligible::ProfileChanged => "the rules changed: to be asked again",
        Ineligible::HasVoted => "you have voted",
        Ineligible::PasskeyRequired | Ineligible::NoPasskey => "you have no passkey",
    }
}
