//! Who may open which page, as data. A path without a row is refused.

use axum::http::Method;

use crate::broker::CallerRole::{self, Approver, Auditor, Operator};
use crate::rate_limit::Class::{self, General, Reserved};

/// How a route is asked and what it answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// GET: a page. Who has no session is sent to the sign-in.
    Page,
    /// GET: a part of a page, for the script.
    Fragment,
    /// GET: a stream of events, for the script.
    Stream,
    /// GET: a stylesheet, a script or a picture; the same for everybody.
    Asset,
    /// POST from a form: a redirect or a page.
    Form,
    /// POST of JSON: JSON.
    Json,
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Strangers too: what leads to a session, and what every page is made of.
    Anybody,
    /// People of these roles, in a session.
    Visitors(&'static [CallerRole]),
}

/// One route.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// What it goes by in figures and logs.
    pub name: &'static str,
    /// The path; `{…}` stands for one segment.
    pub path: &'static str,
    /// Its form.
    pub shape: Shape,
    /// Who may use it.
    pub who: Who,
    /// The class of its rates.
    pub class: Class,
}

impl Row {
    /// The kinds of callers it admits.
    pub const fn admits(&self) -> &'static [CallerRole] {
        match self.who {
            Who::Anybody => &[],
            Who::Visitors(kinds) => kinds,
        }
    }

    /// Whether it changes something.
    pub const fn changes(&self) -> bool {
        match self.shape {
            Shape::Page | Shape::Fragment | Shape::Stream | Shape::Asset => false,
            Shape::Form | Shape::Json => true,
        }
    }

    /// Whether it may be asked with this HTTP method.
    pub(super) fn takes(&self, method: &Method) -> bool {
        if self.changes() {
            method == Method::POST
        } else {
            method == Method::GET
        }
    }
}

const fn row(name: &'static str, path: &'static str, shape: Shape, who: Who, class: Class) -> Row {
    Row {
        name,
        path,
        shape,
        who,
        class,
    }
}

const VOTERS: Who = Who::Visitors(&[Approver]);
const ASKED: Who = Who::Visitors(&[Approver, Operator]);
const OPERATORS: Who = Who::Visitors(&[Operator]);
const READERS: Who = Who::Visitors(&[Operator, Auditor]);
const EVERYONE: Who = Who::Visitors(&[Approver, Operator, Auditor]);

/// Every route of the console.
pub const TABLE: &[Row] = &[
    row("console/inbox", "/console", Shape::Page, ASKED, General),
    row(
        "console/inbox-rows",
        "/console/fragment/inbox",
        Shape::Fragment,
        ASKED,
        General,
    ),
    row("console/events", EVENTS, Shape::Stream, ASKED, General),
    row(
        "console/sign-in",
        "/console/sign-in",
        Shape::Page,
        Who::Anybody,
        General,
    ),
    row(
        "console/sign-in-begin",
        "/console/sign-in/begin",
        Shape::Json,
        Who::Anybody,
        General,
    ),
    row(
        "console/sign-in-finish",
        "/console/sign-in/finish",
        Shape::Json,
        Who::Anybody,
        General,
    ),
    row(
        "console/enrol",
        "/console/enrol",
        Shape::Page,
        Who::Anybody,
        General,
    ),
    row(
        "console/enrol-begin",
        "/console/enrol/begin",
        Shape::Json,
        Who::Anybody,
        General,
    ),
    row(
        "console/enrol-finish",
        "/console/enrol/finish",
        Shape::Json,
        Who::Anybody,
        General,
    ),
    row(
        "console/card",
        "/console/requests/{id}",
        Shape::Page,
        ASKED,
        General,
    ),
    row(
        "console/vote-begin",
        "/console/requests/{id}/vote/begin",
        Shape::Json,
        VOTERS,
        General,
    ),
    row(
        "console/vote-cast",
        "/console/requests/{id}/vote/cast",
        Shape::Json,
        VOTERS,
        General,
    ),
    row(
        "console/tokens",
        "/console/tokens",
        Shape::Page,
        OPERATORS,
        General,
    ),
    // Ending goes on while the rest is shed.
    row(
        "console/revoke",
        "/console/tokens/{jti}/revoke",
        Shape::Form,
        OPERATORS,
        Reserved,
    ),
    row(
        "console/tasks",
        "/console/tasks",
        Shape::Page,
        READERS,
        General,
    ),
    row(
        "console/task",
        "/console/tasks/{id}",
        Shape::Page,
        EVERYONE,
        General,
    ),
    row(
        "console/agents",
        "/console/agents",
        Shape::Page,
        READERS,
        General,
    ),
    row(
        "console/agent",
        "/console/agents/{id}",
        Shape::Page,
        READERS,
        General,
    ),
    row(
        "console/rules",
        "/console/rules",
        Shape::Page,
        EVERYONE,
        General,
    ),
    row(
        "console/approvers",
        "/console/approvers",
        Shape::Page,
        EVERYONE,
        General,
    ),
    row(
        "console/journal",
        "/console/journal",
        Shape::Page,
        READERS,
        General,
    ),
    row(
        "console/sign-out",
        "/console/sign-out",
        Shape::Form,
        Who::Anybody,
        Reserved,
    ),
    row(
        "console/asset",
        "/console/assets/{hash}/{name}",
        Shape::Asset,
        Who::Anybody,
        General,
    ),
];

/// The stream of what moves in the inbox.
pub const EVENTS: &str = "/console/events";

/// Whether a path is the console's, with a row or without.
pub fn is_ours(path: &str) -> bool {
    path.strip_prefix("/console")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The row of a path.
pub fn of(path: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| matches(row.path, path))
}

/// The class of rates of a path of ours.
pub fn class(path: &str) -> Class {
    of(path).map_or(General, |row| row.class)
}

/// Whether a path answers OK to people who showed who they are, and to nobody else.
pub fn knows_its_caller(path: &str) -> bool {
    of(path).is_some_and(|row| row.who != Who::Anybody)
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut given = path.split('/');
    let same = pattern.split('/').all(|wanted| {
        given
            .next()
            .is_some_and(|part| part == wanted || (wanted.starts_with('{') && !part.is_empty()))
    });
    same && given.next().is_none()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_path_has_one_row_or_none() {
        let names: BTreeSet<&str> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for row in TABLE {
            let example = row.path.replace("{id}", "x").replace("{jti}", "x");
            let fits: Vec<_> = TABLE.iter().filter(|r| matches(r.path, &example)).collect();
            assert_eq!(fits, [row], "{example}");
            assert!(is_ours(row.path));
        }
        for foreign in [
            "/console/",
            "/console/requests",
            "/console/requests/",
            "/console/requests/a/b",
            "/console/requests/a/vote/begin/",
            "/consoles",
            "/",
            "",
        ] {
            assert_eq!(of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn strangers_reach_nothing_but_the_way_in() {
        let open: Vec<&str> = TABLE
            .iter()
            .filter(|row| row.who == Who::Anybody)
            .map(|row| row.name)
            .collect();
        assert_eq!(
            open,
            [
                "console/sign-in",
                "console/sign-in-begin",
                "console/sign-in-finish",
                "console/enrol",
                "console/enrol-begin",
                "console/enrol-finish",
                "console/sign-out",
                "console/asset",
            ]
        );
        for row in TABLE {
            let kinds = row.admits();
            let people = [Approver, Operator, Auditor];
            assert!(
                kinds.iter().all(|kind| people.contains(kind)),
                "{}",
                row.name
            );
            assert_eq!(kinds.is_empty(), row.who == Who::Anybody, "{}", row.name);
        }
    }
}
