//! What waits for people: highest risk first, then the nearest deadline; alike ones together.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::page::{self, Page};
use super::show::{self, Moment, shown};
use super::visit::Call;
use super::{Console, answer};
use crate::broker::{AccessStanding, AccessView, Visitor};
use crate::model::Timestamp;
use crate::rules::Risk;

/// Requests on one page.
const ROWS_MAX: usize = 200;

#[derive(Template)]
#[template(path = "inbox.html", config = "src/serve/console/askama.toml")]
struct InboxPage {
    page: Page,
    inbox: Inbox,
}

#[derive(Template)]
#[template(path = "inbox_rows.html", config = "src/serve/console/askama.toml")]
struct InboxRows {
    inbox: Inbox,
}

/// What waits, as the page shows it.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    total: usize,
    queued: usize,
    groups: Vec<Group>,
    next: Option<String>,
}

#[derive(Debug)]
struct Group {
    key: String,
    words: String,
    requests: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    id: String,
    risk: &'static str,
    standing: &'static str,
    title: String,
    target: String,
    agent: String,
    owner: String,
    until: Moment,
    step: String,
    phrase: String,
    not_yours: Option<&'static str>,
}

pub(super) async fn page(State(console): State<Arc<Console>>, call: Call) -> Response {
    let visitor = match page::visitor(&console, &call) {
        Ok(visitor) => visitor,
        Err(response) => return response,
    };
    match waiting(&console, &call, &visitor) {
        Ok(inbox) => answer::html(&InboxPage {
            page: Page::new(&console, &call, &visitor, "Inbox".to_owned()),
            inbox,
        }),
        Err(response) => response,
    }
}

/// The rows alone, for the script.
pub(super) async fn fragment(State(console): State<Arc<Console>>, call: Call) -> Response {
    let inbox =
        page::visitor(&console, &call).and_then(|visitor| waiting(&console, &call, &visitor));
    match inbox {
        Ok(inbox) => answer::html(&InboxRows { inbox }),
        Err(response) => response,
    }
}

fn waiting(console: &Console, call: &Call, visitor: &Visitor) -> Result<Inbox, Response> {
    let views = console
        .hall
        .list_access_requests(&call.presented)
        .map_err(|refusal| answer::refused(console, call, &refusal))?;
    let now = console.hall.now();
    let mut views: Vec<AccessView> = views
        .into_iter()
        .filter(|view| view.standing == AccessStanding::Waiting)
        .collect();
    views.sort_by_key(|view| (rank(view.risk), view.request.opened.expires_at));
    let total = views.len();
    let mut inbox = Inbox {
        total,
        ..Inbox::default()
    };
    for view in views.into_iter().take(ROWS_MAX) {
        let action = &view.request.opened.action;
        let key = format!("{}/{}", action.action, action.target);
        let row = row(&view, visitor, now);
        match inbox.groups.iter_mut().find(|group| group.key == key) {
            Some(group) => group.requests.push(row),
            None => inbox.groups.push(Group {
                words: format!("{} for {}", row.title, row.target),
                key,
                requests: vec![row],
            }),
        }
    }
    Ok(inbox)
}

fn row(view: &AccessView, visitor: &Visitor, now: Timestamp) -> Row {
    let opened = &view.request.opened;
    let steps: Vec<String> = view
        .needs
        .iter()
        .map(|need| format!("{} of {}", need.approvers.len(), need.quorum))
        .collect();
    let voted = view
        .needs
        .iter()
        .any(|need| need.approvers.contains(&visitor.id));
    Row {
        id: opened.access_request.to_string(),
        risk: show::risk(view.risk),
        standing: view.standing.as_str(),
        title: shown(&view.title),
        target: shown(opened.action.target.to_string()),
        agent: shown(opened.agent.as_str()),
        owner: shown(opened.owner.as_str()),
        until: Moment::new(opened.expires_at, now),
        step: steps.join(", "),
        phrase: String::new(),
        not_yours: if opened.owner == visitor.id {
            Some("yours: others decide")
        } else if voted {
            Some("you said yes")
        } else {
            None
        },
    }
}

/// Highest first; a risk nobody stated counts as high.
const fn rank(risk: Option<Risk>) -> u8 {
    match risk {
        None | Some(Risk::High) => 0,
        Some(Risk::Medium) => 1,
        Some(Risk::Low) => 2,
    }
}
