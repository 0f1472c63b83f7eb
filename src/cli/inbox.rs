//! The inbox at a terminal: `request list` and `request show`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::table;
use super::{Common, Output, card, render};
use crate::card::{Headline, escape_untrusted};
use crate::client;
use crate::clock::Clock;
use crate::model::{AccessRequestId, Action, MatchPhrase, Risk, Timestamp};

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
}

pub(super) async fn list(
    common: &Common,
    output: &Output,
    args: ListRequestsArgs,
) -> Result<ExitCode, CliError> {
    let (rows, queued) = args.key.approver_client(common)?.inbox().await?;
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
    let risks = [Risk::Low, Risk::Medium, Risk::High];
    let risk = risks.into_iter().find(|r| r.as_str() == request.risk);
    let head = Headline::new(&request.title, action.as_ref(), None, risk);
    let warning = if head.flags.is_empty() { "" } else { " [!]" };
    let need = |p: &client::RequiredProfile| {
        escape_untrusted(&format!("{} of {} {}", p.approvals, p.quorum, p.group))
    };
    let needs: Vec<String> = request.needs.iter().map(need).collect();
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
        parameters_cell(action.as_ref(), row.parameters_omitted),
        escape_untrusted(&format!("{} ({})", request.agent_id, row.owner)),
        needs.join(", "),
        render::remaining(request.expires_at.as_ref(), now),
        phrase,
        escape_untrusted(&request.access_request_id),
    ]
}

/// The parameters, shortened: rows with different parameters never look the same.
fn parameters_cell(action: Option<&Action>, parameters_omitted: bool) -> String {
    let Some(action) = action else {
        return "?".to_owned();
    };
    let parameters: Vec<String> = action
        .parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", value.to_json()))
        .collect();
    if parameters_omitted {
        "on the card".to_owned()
    } else if parameters.is_empty() {
        "-".to_owned()
    } else {
        let text = parameters.join(" ");
        let total = text.chars().count();
        if total <= PARAMETERS_CHARS_MAX {
            return escape_untrusted(&text);
        }
        let head: String = text.chars().take(PARAMETERS_CHARS_MAX).collect();
        let digest: String = action
            .digest()
            .to_string()
            .chars()
            .take(DIGEST_CHARS)
            .collect();
        let more = total - PARAMETERS_CHARS_MAX;
        format!(
            "{} [{more} more characters, digest {digest}…]",
            escape_untrusted(&head)
        )
    }
}

/// Longest parameters cell, in characters; the card shows all of them.
const PARAMETERS_CHARS_MAX: usize = 40;
/// Characters of the action's digest after a shortened cell; the card shows it in full.
const DIGEST_CHARS: usize = 6;

pub(super) fn to_json(row: &client::InboxEntry) -> Value {
    let request = &row.access_request;
    let mut value = render::access_request_json(request);
    let phrase =
        AccessRequestId::parse(&request.access_request_id).map(|id| MatchPhrase::from_request(&id));
    if let Some(members) = value.as_object_mut() {
        let phrase = phrase.map_or(Value::Null, |phrase| json!(phrase.to_string()));
        members.insert("match_phrase".to_owned(), phrase);
        members.insert("owner".to_owned(), json!(row.owner));
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
        || card::text(&card, Clock::system().now()),
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ActionName, Audience, Param, Target};

    fn note_action(note: &str) -> Action {
        Action::new(
            ActionName::parse("case.note").expect("name"),
            Audience::parse("https://cases.soc.example").expect("audience"),
            Target::parse("Case", "INC-1").expect("target"),
            [("note".to_owned(), Param::Str(note.to_owned()))].into(),
        )
        .expect("action")
    }

    #[test]
    fn truncated_parameters_keep_a_digest() {
        let long = "a".repeat(PARAMETERS_CHARS_MAX);
        let [first, second] = ["1", "2"]
            .map(|end| parameters_cell(Some(&note_action(&format!("{long}{end}"))), false));
        assert_ne!(first, second);
        let digest = note_action(&format!("{long}1")).digest().to_string();
        assert!(first.contains("[8 more characters, digest "), "{first}");
        assert!(first.contains(&digest[..DIGEST_CHARS]), "{first}");
        assert_eq!(
            parameters_cell(Some(&note_action("short")), false),
            "note=\"short\""
        );
    }

    #[test]
    fn parameters_cannot_break_table_layout() {
        let cell = parameters_cell(Some(&note_action("x\"  triage (dana)\u{200b}")), false);
        assert!(!cell.contains("  ") && !cell.contains('\u{200b}'), "{cell}");
        let long_cell = parameters_cell(Some(&note_action(&"  ".repeat(200))), false);
        assert!(!long_cell.contains("  "), "{long_cell}");
    }
}
