//! The rules in force, and how often each mattered.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::page::Page;
use super::session_cookie::Call;
use super::show::shown;
use super::{Console, answer};
use crate::broker::RuleStatsRow;
use crate::model::show_seconds;

#[derive(Template)]
#[template(path = "rules.html", config = "src/serve/console/askama.toml")]
struct RulesPage {
    page: Page,
    rules: Vec<Row>,
}

struct Row {
    id: String,
    kind: &'static str,
    why: String,
    place: String,
    remedy: String,
    hits: u64,
    asked: u64,
    approved: String,
    median: String,
    rubber_stamp: bool,
}

pub(super) async fn page(State(console): State<Arc<Console>>, call: Call) -> Response {
    let page = || {
        let visitor = console.broker.signed_in_user(&call.presented)?;
        let rules = console.broker.list_rules(&call.presented)?;
        Ok(answer::html(&RulesPage {
            page: Page::new(&console, &call, &visitor, "Rules"),
            rules: rules.iter().map(row).collect(),
        }))
    };
    answer::of(&console, &call, page())
}

fn row(rule: &RuleStatsRow) -> Row {
    Row {
        id: shown(&rule.id),
        kind: rule.kind,
        why: shown(&rule.why),
        place: shown(format!("{}:{}", rule.file, rule.line)),
        remedy: if rule.remedy.is_empty() {
            "—".to_owned()
        } else {
            shown(&rule.remedy)
        },
        hits: rule.hits,
        asked: rule.asked,
        approved: share(rule.approved_percent),
        median: seconds(rule.median_s),
        rubber_stamp: rule.rubber_stamp,
    }
}

/// A share, or that there is none.
pub(super) fn share(percent: Option<u32>) -> String {
    percent.map_or_else(|| "—".to_owned(), |percent| format!("{percent} %"))
}

/// A median, or that there is none.
pub(super) fn seconds(median: Option<u32>) -> String {
    median.map_or_else(|| "—".to_owned(), |s| show_seconds(i64::from(s)))
}
