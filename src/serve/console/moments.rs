//! Entries of the journal as pages show them.

use super::rows;
use super::show::{self, shown};
use crate::broker;
use crate::model::{AccessRequestId, TaskId, Timestamp};

/// One thing that happened.
#[derive(Debug)]
pub(super) struct Moment {
    /// Which mark it has in a timeline.
    pub(super) class: &'static str,
    pub(super) kind: &'static str,
    pub(super) at: show::Moment,
    pub(super) index: Option<u64>,
    pub(super) what: &'static str,
    pub(super) who: String,
    pub(super) detail: String,
    pub(super) ids: Vec<Name>,
}

/// An id, and the page about it.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) words: String,
    pub(super) path: Option<String>,
}

impl Name {
    pub(super) fn new(id: &str) -> Self {
        let path = if AccessRequestId::parse(id).is_ok() {
            Some(format!("/console/requests/{id}"))
        } else if TaskId::parse(id).is_ok() {
            Some(format!("/console/tasks/{id}"))
        } else {
            None
        };
        Self {
            words: shown(id),
            path: path.filter(|path| rows::of(path).is_some()),
        }
    }
}

impl Moment {
    pub(super) fn new(moment: &broker::TimelineEvent, now: Timestamp) -> Self {
        Self {
            class: class(moment.kind, moment.what),
            kind: moment.kind,
            at: show::Moment::new(moment.at, now),
            index: moment.index,
            what: moment.what,
            who: shown(&moment.who),
            detail: shown(&moment.detail),
            ids: moment.ids.iter().map(|id| Name::new(id)).collect(),
        }
    }
}

/// The mark of a moment: a gate, a token, a no, an end, or nothing special. It decides nothing but looks.
fn class(kind: &str, what: &str) -> &'static str {
    match kind {
        "TaskOpened" => "gate",
        "TokenIssued" => "mint",
        "RequestDenied" | "VoteRefused" => "no",
        "VoteCast" if what == "no" => "no",
        "TaskEnded" | "GrantsEnded" => "end",
        _ => "",
    }
}
