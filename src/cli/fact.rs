//! `fact`: named facts of the policy bundle, which an operator sets for a while.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::table;
use super::{Common, Output, parse, render};
use crate::client;
use crate::clock::Clock;
use crate::model::text::{escape_invisible, escape_invisible_capped};
use crate::model::{Exit, FactName, Timestamp, format_seconds};

#[derive(Debug, Subcommand)]
pub(super) enum FactCommand {
    /// List the facts that the policy bundle in force declares, with their values and the rules that read them (operators, auditors)
    List {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Set a fact for a while; where the value is not the safe one and others must agree to changes of the rules, propose it
    ///
    /// The safe value takes one operator. When the time is over, the fact has its normal value again. Exit codes: 0 set, 11 waiting for others.
    Set {
        /// The fact
        #[arg(value_parser = FactName::parse)]
        fact: FactName,
        /// true or false
        #[arg(value_name = "VALUE", action = clap::ArgAction::Set)]
        value: bool,
        /// How long it stands, such as 2h; required for a value that is not the normal one
        #[arg(long = "for", value_name = "TIME", value_parser = parse::seconds)]
        time: Option<u32>,
        /// Why, for the record and for those who must agree
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Set a fact back to its normal value before its time is over; where that is not the safe value and others must agree, propose it
    Clear {
        /// The fact
        #[arg(value_parser = FactName::parse)]
        fact: FactName,
        /// Why, for the record and for those who must agree
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        key: KeyArgs,
    },
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: FactCommand,
) -> Result<ExitCode, CliError> {
    match command {
        FactCommand::List { key } => {
            list(output, &key.operator_client(common)?.facts().await?);
            Ok(ExitCode::SUCCESS)
        }
        FactCommand::Set {
            fact,
            value,
            time,
            reason,
            key,
        } => {
            let operator = key.operator_client(common)?;
            let report = operator.set_fact(&fact, value, time, &reason).await?;
            Ok(print_report(output, &fact, value, &report))
        }
        FactCommand::Clear { fact, reason, key } => {
            let operator = key.operator_client(common)?;
            let facts = operator.facts().await?;
            let declared = facts.iter().find(|known| known.name == fact.as_str());
            // Of a fact that is not declared the broker says so.
            let normal = declared.is_some_and(|known| known.normal);
            let report = operator.set_fact(&fact, normal, None, &reason).await?;
            Ok(print_report(output, &fact, normal, &report))
        }
    }
}

fn print_report(
    output: &Output,
    fact: &FactName,
    value: bool,
    report: &client::FactReport,
) -> ExitCode {
    let waits = !report.access_request_id.is_empty();
    output.print(
        || {
            json!({
                "fact": fact, "value": value, "changed": report.changed,
                "until": render::timestamp_json(report.until.as_ref()),
                "access_request": waits.then_some(&report.access_request_id),
                "expires_at": render::timestamp_json(report.expires_at.as_ref()),
            })
        },
        || {
            let now = Clock::system().now();
            let at = |time| render::timestamp_with_distance(time, now);
            let id = escape_invisible(&report.access_request_id);
            match (waits, &report.until) {
                (true, _) => format!(
                    "{fact} is not set yet: others have to agree to it before {}: dipylon approve {id}\nto withdraw it:  dipylon policy withdraw {id}",
                    at(report.expires_at.as_ref())
                ),
                (false, Some(until)) => format!(
                    "{fact} is {value} until {}\nto set it back:  dipylon fact clear {fact}",
                    at(Some(until))
                ),
                (false, None) if report.changed => format!("{fact} is {value}, its normal value"),
                (false, None) => format!("{fact} was {value}, its normal value, before"),
            }
        },
    );
    match waits {
        true => ExitCode::from(Exit::Pending.number()),
        false => ExitCode::SUCCESS,
    }
}

fn list(output: &Output, facts: &[client::FactInfo]) {
    output.print(
        || {
            let to_json = |fact: &client::FactInfo| {
                json!({
                    "name": fact.name, "title": fact.title, "value": fact.value, "safe": fact.safe, "normal": fact.normal,
                    "max_seconds": fact.max, "ends": fact.ends, "rules": fact.rules,
                    "since": render::timestamp_json(fact.since.as_ref()),
                    "until": render::timestamp_json(fact.until.as_ref()),
                    "by": (!fact.by.is_empty()).then_some(&fact.by),
                    "reason": (!fact.reason.is_empty()).then_some(&fact.reason),
                    "approved_by": (!fact.approved_by.is_empty()).then_some(&fact.approved_by),
                    "proposals": fact.proposals,
                })
            };
            facts.iter().map(to_json).collect::<Value>()
        },
        || {
            if facts.is_empty() {
                return "the policy bundle in force declares no facts; facts.toml is for them"
                    .to_owned();
            }
            let now = Clock::system().now();
            let head = [
                "FACT", "VALUE", "SINCE", "UNTIL", "BY", "NORMAL", "SAFE", "LONGEST", "ENDS TOKENS", "TITLE",
            ];
            let head = head.map(str::to_owned).to_vec();
            let row = |fact: &client::FactInfo| {
                let at = |time: Option<&Timestamp>| match time {
                    Some(time) => render::timestamp_with_distance(Some(time), now),
                    None => "-".to_owned(),
                };
                vec![
                    escape_invisible(&fact.name),
                    fact.value.to_string(),
                    at(fact.since.as_ref()),
                    at(fact.until.as_ref()),
                    match fact.by.is_empty() {
                        true => "-".to_owned(),
                        false => escape_invisible(&fact.by),
                    },
                    fact.normal.to_string(),
                    fact.safe.to_string(),
                    fact.max.map_or_else(|| "-".to_owned(), format_seconds),
                    if fact.ends { "yes" } else { "no" }.to_owned(),
                    escape_invisible_capped(&fact.title, 80),
                ]
            };
            let rows: Vec<_> = std::iter::once(head).chain(facts.iter().map(row)).collect();
            let reading = facts.iter().map(|fact| {
                let rules: Vec<String> = fact.rules.iter().map(|id| escape_invisible(id)).collect();
                format!("\n{} is read by {}", escape_invisible(&fact.name), rules.join(", "))
            });
            let waiting = facts.iter().flat_map(|fact| {
                let fact_name = escape_invisible(&fact.name);
                let ids = fact.proposals.iter();
                ids.map(move |id| format!("\na proposal to set {fact_name} waits: {}", escape_invisible(id)))
            });
            table(&rows) + &reading.collect::<String>() + &waiting.collect::<String>()
        },
    );
}
