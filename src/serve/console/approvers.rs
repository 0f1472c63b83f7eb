//! People: their passkeys, and how they decide.

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::page::Page;
use super::rules::{seconds, share};
use super::session_cookie::Call;
use super::show::{Moment, ago, shown};
use super::{Console, answer};
use crate::broker::{ApproverStatsRow, ApproverView, PasskeyView};
use crate::model::{PersonId, Timestamp};

#[derive(Template)]
#[template(path = "approvers.html", config = "src/serve/console/askama.toml")]
struct ApproversPage {
    page: Page,
    people: Vec<Row>,
}

struct Row {
    id: String,
    name: String,
    groups: String,
    passkeys: Vec<Key>,
    keys: usize,
    invited: Option<Moment>,
    votes: String,
    yes: String,
    median: String,
    last: String,
    rubber_stamp: bool,
}

struct Key {
    label: String,
    words: String,
}

pub(super) async fn page(State(console): State<Arc<Console>>, call: Call) -> Response {
    let page = || {
        let visitor = console.broker.signed_in_user(&call.presented)?;
        let people = console.broker.list_approvers(&call.presented)?;
        let figures = console.broker.approver_stats(&call.presented)?;
        let figures: HashMap<PersonId, ApproverStatsRow> = figures
            .into_iter()
            .map(|row| (row.id.clone(), row))
            .collect();
        let now = console.broker.now();
        Ok(answer::html(&ApproversPage {
            page: Page::new(&console, &call, &visitor, "Approvers"),
            people: people
                .iter()
                .map(|person| row(person, figures.get(&person.id), now))
                .collect(),
        }))
    };
    answer::of(&console, &call, page())
}

fn row(person: &ApproverView, figures: Option<&ApproverStatsRow>, now: Timestamp) -> Row {
    let words: Vec<&str> = person
        .roles
        .iter()
        .map(|role| role.as_str())
        .chain(person.groups.iter().map(|group| group.as_str()))
        .collect();
    let votes = figures.map_or(0, |row| row.approvals.saturating_add(row.denials));
    Row {
        id: shown(person.id.as_str()),
        name: if person.name.is_empty() {
            "left the policy bundle".to_owned()
        } else {
            shown(&person.name)
        },
        groups: shown(words.join(" · ")),
        passkeys: person
            .passkeys
            .iter()
            .map(|key| passkey(key, now))
            .collect(),
        keys: person.keys.len(),
        invited: person.invited_until.map(|until| Moment::new(until, now)),
        votes: votes.to_string(),
        yes: share(figures.and_then(|row| row.approved_percent)),
        median: seconds(figures.and_then(|row| row.median_s)),
        last: figures
            .and_then(|row| row.last_at)
            .map_or_else(|| "never".to_owned(), |at| ago(at, now)),
        rubber_stamp: figures.is_some_and(|row| row.rubber_stamp),
    }
}

fn passkey(key: &PasskeyView, now: Timestamp) -> Key {
    let kept = if key.backup_eligible {
        "can be synchronised"
    } else {
        "on one device"
    };
    Key {
        label: shown(&key.label),
        words: format!("{kept}, enrolled {}", ago(key.added_at, now)),
    }
}
