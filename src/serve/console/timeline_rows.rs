//! Timeline events as rows of pages.

use super::format::{DisplayTime, escape};
use crate::broker::TimelineEvent;
use crate::model::{AccessRequestId, TaskId, Timestamp};
use crate::serve::routes;

/// An event as a row.
#[derive(Debug)]
pub(super) struct TimelineRow {
    /// The CSS class of its mark in a timeline.
    pub(super) class: &'static str,
    pub(super) kind: &'static str,
    pub(super) at: DisplayTime,
    pub(super) index: Option<u64>,
    pub(super) what: &'static str,
    pub(super) who: String,
    pub(super) detail: String,
    pub(super) ids: Vec<IdLink>,
}

/// An id, and the path of the page about it.
#[derive(Debug)]
pub(super) struct IdLink {
    pub(super) id: String,
    pub(super) path: Option<String>,
}

impl IdLink {
    fn new(id: &str) -> Self {
        let path = if AccessRequestId::parse(id).is_ok() {
            Some(format!("/console/requests/{id}"))
        } else if TaskId::parse(id).is_ok() {
            Some(format!("/console/tasks/{id}"))
        } else {
            None
        };
        Self {
            id: escape(id),
            path: path.filter(|path| routes::route(path).is_some()),
        }
    }
}

impl TimelineRow {
    pub(super) fn new(moment: &TimelineEvent, now: Timestamp) -> Self {
        Self {
            class: class(moment),
            kind: moment.kind,
            at: DisplayTime::new(moment.at, now),
            index: moment.index,
            what: moment.what,
            who: moment.who.clone(),
            detail: moment.detail.clone(),
            ids: moment.ids.iter().map(|id| IdLink::new(id)).collect(),
        }
    }
}

/// The mark of an event: a denial, a gate, a token, an end, or none. For display only.
fn class(event: &TimelineEvent) -> &'static str {
    match event.kind {
        _ if event.is_denial => "no",
        "TaskOpened" => "gate",
        "TokenIssued" => "mint",
        "TaskEnded" | "GrantsEnded" => "end",
        _ => "",
    }
}
