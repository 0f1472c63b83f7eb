//! Approvers: people, their passkeys, and statistics of their votes.

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::error::ConsoleError;
use super::format::{DisplayTime, ago, escape, percent, seconds};
use super::page::Page;
use super::response;
use super::session_cookie::ConsoleRequest;
use super::state::Console;
use crate::broker::{ApproverStatsRow, ApproverView, PasskeyView};
use crate::model::{PersonId, Timestamp};

#[derive(Template)]
#[template(path = "approvers.html", config = "src/serve/console/askama.toml")]
struct ApproversPage {
    page: Page,
    people: Vec<PersonRow>,
}

struct PersonRow {
    id: String,
    name: String,
    groups: String,
    passkeys: Vec<PasskeyRow>,
    keys: usize,
    invited: Option<DisplayTime>,
    votes: String,
    approved: String,
    median: String,
    last: String,
    rubber_stamp: bool,
}

struct PasskeyRow {
    label: String,
    detail: String,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let people = console.broker.list_approvers(&request.context)?;
    let stats = console.broker.approver_stats(&request.context)?;
    let stats: HashMap<PersonId, ApproverStatsRow> =
        stats.into_iter().map(|row| (row.id.clone(), row)).collect();
    let now = console.broker.now();
    Ok(response::html(&ApproversPage {
        page: Page::new(&console, &request, &user, "Approvers"),
        people: people
            .iter()
            .map(|person| person_row(person, stats.get(&person.id), now))
            .collect(),
    }))
}

fn person_row(
    person: &ApproverView,
    stats: Option<&ApproverStatsRow>,
    now: Timestamp,
) -> PersonRow {
    let groups: Vec<&str> = person
        .roles
        .iter()
        .map(|role| role.as_str())
        .chain(person.groups.iter().map(|group| group.as_str()))
        .collect();
    let votes = stats.map_or(0, |row| row.approvals.saturating_add(row.denials));
    PersonRow {
        id: escape(person.id.as_str()),
        name: if person.name.is_empty() {
            "no longer in the policy bundle".to_owned()
        } else {
            escape(&person.name)
        },
        groups: escape(groups.join(" · ")),
        passkeys: person
            .passkeys
            .iter()
            .map(|key| passkey_row(key, now))
            .collect(),
        keys: person.keys.len(),
        invited: person
            .invited_until
            .map(|until| DisplayTime::new(until, now)),
        votes: votes.to_string(),
        approved: percent(stats.and_then(|row| row.approved_percent)),
        median: seconds(stats.and_then(|row| row.median_s)),
        last: stats
            .and_then(|row| row.last_at)
            .map_or_else(|| "never".to_owned(), |at| ago(at, now)),
        rubber_stamp: stats.is_some_and(|row| row.rubber_stamp),
    }
}

fn passkey_row(key: &PasskeyView, now: Timestamp) -> PasskeyRow {
    let storage = if key.backup_eligible {
        "may be synced"
    } else {
        "on one device"
    };
    PasskeyRow {
        label: escape(&key.label),
        detail: format!("{storage}, enrolled {}", ago(key.added_at, now)),
    }
}
