//! The inbox at a terminal: `request list` and `request show`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::table;
use super::{Common, Output, card, render};
use crate::card::{Headline, decide_by, escape_untrusted};
use crate::client;
use crate::clock::Clock;
use crate::model::text::{escape_invisible, escape_rendered};
use crate::model::{AccessRequestId, MatchPhrase, Risk, Timestamp};

#[derive(Debug, Args)]
pub(super) struct ListRequestsArgs {
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub(super) struct ShowRequestArgs {
    /// The access request
    #[arg(value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    access_request: AccessRequestId,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    full: card::FullArg,
}

pub(super) async fn list(
    common: &Common,
    output: &Output,
    args: ListRequestsArgs,
) -> Result<ExitCode, CliError> {
    let listing = args.key.approver_client(common)?.inbox().await?;
    let (rows, queued) = (listing.rows, listing.queued);
    for notice in &listing.notices {
        output.warn(&format!("warning: {}", escape_invisible(notice)));
    }
    let now = Clock::system().now();
    output.print(
        || rows.iter().map(to_json).collect::<Value>(),
        || {
            let queued_note = match queued {
                0 => String::new(),
                n => format!(
                    "{n} more are queued: `asks_per_minute` limits how many an approver sees\n"
                ),
            };
            if rows.is_empty() {
                return format!("no access request is waiting for you\n{queued_note}");
            }
            format!(
                "{}{queued_note}\nto show one:  dipylon request show ACCESS_REQUEST",
                rows_table(&rows, now)
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// The rows in the broker's order, each with the headline of its card.
pub(super) fn rows_table(rows: &[client::InboxEntry], now: Timestamp) -> String {
    let head = [
        "RISK",
        "ACTION",
        "PARAMETERS",
        "AGENT (OWNER)",
        "NEEDS",
        "LEFT",
        "PHRASE",
        "ACCESS REQUEST",
    ];
    let head = head.map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(head)
        .chain(rows.iter().map(|request| row(request, now)))
        .collect();
    table(&rows)
}

fn row(row: &client::InboxEntry, now: Timestamp) -> Vec<String> {
    let request = &row.access_request;
    let action = &request.action;
    let risk = Risk::parse(&request.risk).ok();
    let head = Headline::new(
        &request.title,
        action.as_ref(),
        row.target_known,
        None,
        risk,
    );
    let warning = if head.flags.is_empty() { "" } else { " [!]" };
    let need = |p: &client::RequiredProfile| {
        escape_untrusted(&format!("{} of {} {}", p.approvals, p.quorum, p.group))
    };
    let mut needs: Vec<String> = request.needs.iter().map(need).collect();
    needs.extend(
        request
            .delay
            .iter()
            .map(|delay| format!("or {}", delay.text(now))),
    );
    let expires_at = request.expires_at;
    let decide_by = expires_at.map(|at| decide_by(request.delay.as_ref(), at, now));
    let phrase = AccessRequestId::parse(&request.access_request_id).map_or_else(
        |_| "?".to_owned(),
        |id| MatchPhrase::from_request(&id).to_string(),
    );
    vec![
        head.risk_word.trim_end_matches(" RISK").to_owned(),
        format!(
            "{}: {}::{}{warning}",
            head.verb, head.object_type, head.object
        ),
        parameters_cell(action.is_some(), &row.parameters),
        match request.agent_id.as_str() {
            "" => escape_untrusted(&format!("proposed by {}", row.owner)),
            agent if request.executor.is_empty() => {
                escape_untrusted(&format!("{agent} ({})", row.owner))
            }
            agent => escape_untrusted(&format!("{agent} ({}) for {}", row.owner, request.executor)),
        },
        needs.join(", "),
        render::remaining(decide_by.as_ref(), now),
        phrase,
        escape_untrusted(&request.access_request_id),
    ]
}

/// The parameters as the broker shortened them: rows with different parameters never look the same.
fn parameters_cell(is_on_record: bool, parameters: &[client::CompactParameterText]) -> String {
    if !is_on_record {
        return "?".to_owned();
    }
    if parameters.is_empty() {
        return "-".to_owned();
    }
    let shown: Vec<String> = parameters
        .iter()
        .map(|shown| match shown.name.as_str() {
            "" => shown.value.clone(),
            name => format!("{name}={}", shown.value),
        })
        .collect();
    escape_rendered(&shown.join(" "))
}

pub(super) fn to_json(row: &client::InboxEntry) -> Value {
    let request = &row.access_request;
    let mut value = render::access_request_json(request);
    let phrase =
        AccessRequestId::parse(&request.access_request_id).map(|id| MatchPhrase::from_request(&id));
    if let Some(members) = value.as_object_mut() {
        let phrase = phrase.map_or(Value::Null, |phrase| json!(phrase.to_string()));
        members.insert("match_phrase".to_owned(), phrase);
        members.insert("owner".to_owned(), json!(row.owner));
        members.insert("target_known".to_owned(), json!(row.target_known));
        members.insert(
            "parameters_omitted".to_owned(),
            json!(row.parameters_omitted),
        );
        members.insert("profiles".to_owned(), json!(row.profiles));
        members.insert("ineligible_reason".to_owned(), json!(row.ineligible_reason));
    }
    value
}

pub(super) async fn show(
    common: &Common,
    output: &Output,
    args: ShowRequestArgs,
) -> Result<ExitCode, CliError> {
    let card = args
        .key
        .approver_client(common)?
        .card(args.access_request)
        .await?;
    output.print(
        || card::to_json(&card),
        || args.full.text(&card, Clock::system().now()),
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::compact_parameters;
    use crate::card::sample::action_with;
    use crate::model::Param;

    fn cell(note: &str) -> String {
        let action = action_with(&[("note", Param::Str(note.to_owned()))]);
        let compact = compact_parameters(&action).into_iter();
        let compact: Vec<_> = compact
            .map(|(name, value)| client::CompactParameterText { name, value })
            .collect();
        parameters_cell(true, &compact)
    }

    #[test]
    fn parameters_cannot_break_table_layout() {
        assert_eq!(cell("short"), "note=\"short\"");
        for note in ["x\"  triage (dana)\u{200b}".to_owned(), "  ".repeat(200)] {
            let cell = cell(&note);
            assert!(!cell.contains("  ") && !cell.contains('\u{200b}'), "{cell}");
        }
        assert_ne!(cell("\u{200b}"), cell("<U+200B>"));
        assert_eq!(parameters_cell(true, &[]), "-");
        assert_eq!(parameters_cell(false, &[]), "?");
    }
}
