//! `inbox`, `show`: what waits for people.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::error::CliError;
use super::connect::KeyArgs;
use super::output::table;
use super::{Common, Output, card, render};
use crate::card::{Headline, safe};
use crate::clock::Clock;
use crate::model::{AccessRequestId, Action, MatchPhrase, Risk, Timestamp};
use crate::proto::{convert, v1};

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

pub(super) async fn list(common: &Common, output: &Output, args: ListRequestsArgs) -> Result<ExitCode, CliError> {
    let (rows, queued) = args.key.person_client(common)?.inbox_rows().await?;
    let now = Clock::system().now();
    output.print(
        || rows.iter().map(to_json).collect::<Value>(),
        || {
            let later = match queued {
                0 => String::new(),
                n => format!("{n} more wait their turn: people are asked so many times a minute\n"),
            };
            if rows.is_empty() {
                return format!("nothing waits for people\n{later}");
            }
            let head = [
                "RISK",
                "WHAT",
                "WITH",
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
            format!(
                "{}{later}\nlook at one:  dipylon show ACCESS_REQUEST",
                table(&rows)
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// In the order of the broker, with the headline of the card.
fn row(row: &v1::InboxRow, now: Timestamp) -> Vec<String> {
    let request = row.access_request.clone().unwrap_or_default();
    let action = request.action.as_ref().map(convert::action);
    let action = action.and_then(Result::ok);
    let risks = [Risk::Low, Risk::Medium, Risk::High];
    let risk = risks.into_iter().find(|r| r.as_str() == request.risk);
    let head = Headline::new(&request.title, action.as_ref(), None, risk);
    let warning = if head.flags.is_empty() { "" } else { " [!]" };
    let need = |p: &v1::Profile| safe(&format!("{} of {} {}", p.approvals, p.quorum, p.group));
    let needs: Vec<String> = request.needs.iter().map(need).collect();
    let phrase = AccessRequestId::parse(&request.access_request_id)
        .map_or_else(|_| "?".to_owned(), |id| MatchPhrase::of(&id).to_string());
    vec![
        head.risk_word.trim_end_matches(" RISK").to_owned(),
        format!(
            "{}: {}::{}{warning}",
            head.verb, head.object_type, head.object
        ),
        with(action.as_ref(), row.abridged),
        safe(&format!("{} ({})", request.agent_id, row.owner)),
        needs.join(", "),
        render::remaining(request.expires_at.as_ref(), now),
        phrase,
        safe(&request.access_request_id),
    ]
}

/// The parameters, short: two rows that ask for different things must not look alike.
fn with(action: Option<&Action>, abridged: bool) -> String {
    let Some(action) = action else {
        return "?".to_owned();
    };
    let all: Vec<String> = action
        .parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", value.to_json()))
        .collect();
    if abridged {
        "on the card".to_owned()
    } else if all.is_empty() {
        "-".to_owned()
    } else {
        let text = all.join(" ");
        let total = text.chars().count();
        if total <= WITH_CHARS_MAX {
            return safe(&text);
        }
        let head: String = text.chars().take(WITH_CHARS_MAX).collect();
        let digest: String = action
            .digest()
            .to_string()
            .chars()
            .take(DIGEST_CHARS)
            .collect();
        let more = total - WITH_CHARS_MAX;
        format!("{} [{more} more characters, digest {digest}…]", safe(&head))
    }
}

/// Longest column of parameters, in characters; the card has them all.
const WITH_CHARS_MAX: usize = 40;
/// Characters of the action's digest behind what is cut off, which the card has in full.
const DIGEST_CHARS: usize = 6;

fn to_json(row: &v1::InboxRow) -> Value {
    let request = row.access_request.clone().unwrap_or_default();
    let mut value = render::access_request_json(&request);
    let phrase = AccessRequestId::parse(&request.access_request_id).map(|id| MatchPhrase::of(&id));
    if let Some(members) = value.as_object_mut() {
        let phrase = phrase.map_or(Value::Null, |phrase| json!(phrase.to_string()));
        members.insert("match_phrase".to_owned(), phrase);
        members.insert("owner".to_owned(), json!(row.owner));
        members.insert("profiles".to_owned(), json!(row.profiles));
        members.insert("why_not".to_owned(), json!(row.why_not));
    }
    value
}

pub(super) async fn show(common: &Common, output: &Output, args: ShowRequestArgs) -> Result<ExitCode, CliError> {
    let shown = args.key.person_client(common)?.card(args.access_request).await?;
    output.print(
        || card::to_json(&shown),
        || card::text(&shown, Clock::system().now()),
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ActionName, Audience, Param, Target};

    fn asking(note: &str) -> Action {
        Action::new(
            ActionName::parse("case.note").expect("name"),
            Audience::parse("https://cases.soc.example").expect("audience"),
            Target::parse("Case", "INC-1").expect("target"),
            [("note".to_owned(), Param::Str(note.to_owned()))].into(),
        )
        .expect("action")
    }

    #[test]
    fn what_differs_beyond_the_cut_does_not_look_alike() {
        let long = "a".repeat(WITH_CHARS_MAX);
        let [one, other] =
            ["1", "2"].map(|end| with(Some(&asking(&format!("{long}{end}"))), false));
        assert_ne!(one, other);
        let digest = asking(&format!("{long}1")).digest().to_string();
        assert!(one.contains("[8 more characters, digest "), "{one}");
        assert!(one.contains(&digest[..DIGEST_CHARS]), "{one}");
        assert_eq!(with(Some(&asking("short")), false), "note=\"short\"");
    }

    #[test]
    fn parameters_cannot_make_a_column() {
        let faked = with(Some(&asking("x\"  triage (dana)\u{200b}")), false);
        assert!(
            !faked.contains("  ") && !faked.contains('\u{200b}'),
            "{faked}"
        );
        let cut = with(Some(&asking(&"  ".repeat(200))), false);
        assert!(!cut.contains("  "), "{cut}");
    }
}
