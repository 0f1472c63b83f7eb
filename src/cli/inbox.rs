//! `inbox`, `show`: what waits for people.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::failure::Failure;
use super::net::KeyArgs;
use super::say::table;
use super::{Common, Say, card, shapes};
use crate::clock::Clock;
use crate::model::AccessRequestId;
use crate::model::text::{reveal, reveal_capped};
use crate::proto::v1;

#[derive(Debug, Args)]
pub(super) struct Inbox {
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The access request
    #[arg(value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    access_request: AccessRequestId,
    #[command(flatten)]
    key: KeyArgs,
}

pub(super) async fn list(common: &Common, say: &Say, verb: Inbox) -> Result<ExitCode, Failure> {
    // In the broker's order: highest risk first, then the nearest deadline.
    let (waiting, queued) = verb.key.person(common)?.waiting().await?;
    let now = Clock::system().now();
    say.either(
        || {
            waiting
                .iter()
                .map(shapes::access_request)
                .collect::<Value>()
        },
        || {
            let more = match queued {
                0 => String::new(),
                n => format!("{n} more wait their turn\n"),
            };
            if waiting.is_empty() {
                return format!("{more}nothing waits for people");
            }
            let head = [
                "RISK",
                "WHAT",
                "TARGET",
                "WITH",
                "AGENT",
                "NEEDS",
                "LEFT",
                "ACCESS REQUEST",
            ]
            .map(str::to_owned)
            .to_vec();
            let rows: Vec<_> = std::iter::once(head)
                .chain(waiting.iter().map(|request| row(request, now)))
                .collect();
            format!(
                "{}\n{more}look at one:  dipylon show ACCESS_REQUEST",
                table(&rows)
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

fn row(request: &v1::AccessRequest, now: crate::model::Timestamp) -> Vec<String> {
    let need = |p: &v1::Profile| format!("{} of {} {}", p.approvals, p.quorum, p.group);
    let needs: Vec<String> = request.needs.iter().map(need).collect();
    vec![
        reveal(&request.risk).to_uppercase(),
        reveal(&request.title),
        shapes::target(request.action.as_ref().and_then(|a| a.target.as_ref())),
        with(request.action.as_ref()),
        reveal(&request.agent_id),
        reveal(&needs.join(", ")),
        shapes::left(request.expires_at.as_ref(), now),
        reveal(&request.access_request_id),
    ]
}

/// The parameters, short: two rows that ask for different things must not look alike.
fn with(action: Option<&v1::Action>) -> String {
    let Some(Value::Object(parameters)) = action.map(shapes::parameters) else {
        return "?".to_owned();
    };
    let all: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if all.is_empty() {
        "-".to_owned()
    } else {
        reveal_capped(&all.join(" "), 40)
    }
}

pub(super) async fn show(common: &Common, say: &Say, verb: Show) -> Result<ExitCode, Failure> {
    let shown = verb.key.person(common)?.card(verb.access_request).await?;
    say.either(
        || card::to_json(&shown),
        || card::text(&shown, Clock::system().now()),
    );
    Ok(ExitCode::SUCCESS)
}
