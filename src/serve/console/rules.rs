//! Rules: the policy rules in force, with matches and outcomes per rule.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::error::ConsoleError;
use super::format::{escape, percent, seconds};
use super::page::Page;
use super::response;
use super::session_cookie::ConsoleRequest;
use super::state::Console;
use crate::broker::RuleStatsRow;

#[derive(Template)]
#[template(path = "rules.html", config = "src/serve/console/askama.toml")]
struct RulesPage {
    page: Page,
    rules: Vec<RuleTableRow>,
}

struct RuleTableRow {
    id: String,
    kind: &'static str,
    why: String,
    source: String,
    remedy: String,
    matches: u64,
    requested: u64,
    approved: String,
    /// Access requests approved with a vote by a registered key.
    by_key: u64,
    median: String,
    rubber_stamp: bool,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let rules = console.broker.list_rules(&request.context)?;
    Ok(response::html(&RulesPage {
        page: Page::new(&console, &request, &user, "Rules"),
        rules: rules.iter().map(rule_row).collect(),
    }))
}

fn rule_row(rule: &RuleStatsRow) -> RuleTableRow {
    RuleTableRow {
        id: escape(&rule.id),
        kind: rule.kind,
        why: escape(&rule.why),
        source: escape(format!("{}:{}", rule.file, rule.line)),
        remedy: if rule.remedy.is_empty() {
            "—".to_owned()
        } else {
            escape(&rule.remedy)
        },
        matches: rule.hits,
        requested: rule.step_ups,
        approved: percent(rule.approved_percent),
        by_key: rule.approved_by_key,
        median: seconds(rule.median_s),
        rubber_stamp: rule.rubber_stamp,
    }
}
