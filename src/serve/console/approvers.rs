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
use super::session_cookie::{ConsoleRequest, QueryString};
use super::state::Console;
use crate::broker::{ApproverStatsRow, ApproverView, PasskeyView};
use crate::model::{ParseField as _, PersonId, Timestamp};

#[derive(Template)]
#[template(path = "approvers.html", config = "src/serve/console/askama.toml")]
struct ApproversPage {
    page: Page,
    people: Vec<PersonRow>,
    awaiting: Vec<AwaitingRow>,
    outcome: Option<String>,
}

/// A passkey that awaits confirmation.
struct AwaitingRow {
    person: String,
    name: String,
    label: String,
    detail: String,
    /// Who could confirm it.
    confirmers: String,
    /// Whether the reader could.
    may_confirm: bool,
}

/// The page after a confirmation.
#[derive(serde::Deserialize)]
pub(super) struct ApproversQuery {
    confirmed: Option<String>,
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
    /// Approvals by passkey and by registered key; absent without any.
    signed: Option<String>,
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
    QueryString(query): QueryString<ApproversQuery>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let confirmed = query.confirmed.as_deref().map(PersonId::parse).transpose();
    let confirmed = confirmed.at("confirmed")?;
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
        awaiting: people
            .iter()
            .flat_map(|person| {
                let passkeys = person.passkeys.iter();
                let awaiting = passkeys.filter(|key| key.confirmation.is_none());
                awaiting.map(|key| awaiting_row(person, key, now))
            })
            .collect(),
        outcome: confirmed.map(|person| {
            format!("The passkey of {person} is confirmed: it counts for actions of every risk.")
        }),
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
        signed: stats
            .filter(|row| row.approvals > 0)
            .map(|row| signed(row.approvals, row.approvals_by_key)),
        median: seconds(stats.and_then(|row| row.median_s)),
        last: stats
            .and_then(|row| row.last_at)
            .map_or_else(|| "never".to_owned(), |at| ago(at, now)),
        rubber_stamp: stats.is_some_and(|row| row.rubber_stamp),
    }
}

/// Approvals by how they were signed.
fn signed(approvals: u64, by_key: u64) -> String {
    let by_passkey = approvals.saturating_sub(by_key);
    match (by_passkey, by_key) {
        (_, 0) => format!("{by_passkey} by passkey"),
        (0, _) => format!("{by_key} by key"),
        (_, _) => format!("{by_passkey} by passkey, {by_key} by key"),
    }
}

fn awaiting_row(person: &ApproverView, key: &PasskeyView, now: Timestamp) -> AwaitingRow {
    let names: Vec<&str> = key.confirmers.iter().map(PersonId::as_str).collect();
    AwaitingRow {
        person: person.id.to_string(),
        name: escape(&person.name),
        label: escape(&key.label),
        detail: format!(
            "enrolled {} on an invitation of {}",
            ago(key.added_at, now),
            escape(key.invited_by.as_str())
        ),
        may_confirm: key.may_confirm,
        confirmers: match names.is_empty() {
            true => {
                "the owner of the broker's host, with 'dipylon approver confirm-on-host'".to_owned()
            }
            false => escape(names.join(", ")),
        },
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
        detail: format!(
            "{storage}, enrolled {} on an invitation of {}, {}",
            ago(key.added_at, now),
            escape(key.invited_by.as_str()),
            match &key.confirmation {
                Some(known) => escape(format!("confirmed by {}", known.by)),
                None => "NOT CONFIRMED".to_owned(),
            }
        ),
    }
}
