//! `policy check`, `policy apply`: a directory, whole or not at all. `policy rules`: what is in force, with its figures.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::table;
use super::{Common, Output, config_checks, files, policy_dir, render};
use crate::client;
use crate::model::text::escape_invisible;
use crate::model::{Secret, format_seconds};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Say all that is wrong with a directory, without a broker
    Check {
        /// The policy bundle
        dir: PathBuf,
    },
    /// Put a directory in force; what it no longer allows ends
    Apply {
        /// The policy bundle
        dir: PathBuf,
        #[command(flatten)]
        key: KeyArgs,
        /// The one-time code that a broker without a policy bundle printed; without a value it is asked for
        #[arg(long, value_name = "CODE", num_args = 0..=1, default_missing_value = "")]
        code: Option<String>,
        /// Read the one-time code from a file ("-": stdin)
        #[arg(long, value_name = "FILE", conflicts_with = "code")]
        code_file: Option<PathBuf>,
    },
    /// List the rules in force: how often each mattered, and how people decide what it asks them
    Rules {
        #[command(flatten)]
        key: KeyArgs,
    },
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: PolicyCommand,
) -> Result<ExitCode, CliError> {
    match command {
        PolicyCommand::Check { dir } => {
            let (_, bundle) = policy_dir::load(&dir)?;
            let mut warnings: Vec<String> =
                bundle.warnings().iter().map(ToString::to_string).collect();
            warnings.extend(config_checks::unreachable_quorums(&bundle));
            warnings.extend(bundle.check_has_operator().err().map(|why| {
                format!("{why}: until then no broker takes it (a development broker adds keys: start from its policy directory)")
            }));
            let (rules, agents) = (bundle.rules().count(), bundle.agents().count());
            output.print(
                || json!({ "version": bundle.version(), "rules": rules, "agents": agents, "warnings": warnings }),
                || format!("{}sound: {rules} rules, {agents} agents, version {}", lines(&warnings), bundle.version()),
            );
        }
        PolicyCommand::Apply {
            dir,
            key,
            code,
            code_file,
        } => {
            // Everything that is wrong is said here, with files and lines, before the broker is asked.
            policy_dir::load(&dir)?;
            let (person, files) = (key.operator_client(common)?, policy_dir::read(&dir)?);
            let applied = match one_time_code(output, code, code_file).await? {
                Some(code) => person.apply_first_policy_bundle(&files, &code).await?,
                None => person.apply_policy_bundle(&files).await?,
            };
            output.print(
                || {
                    json!({
                        "version": applied.version, "changed": applied.changed, "rules": applied.rules,
                        "agents": applied.agents, "warnings": applied.warnings, "tasks_ended": applied.tasks_ended,
                        "tokens_ended": applied.tokens_ended, "access_requests_closed": applied.access_requests_closed,
                    })
                },
                || {
                    let warnings: Vec<String> = applied.warnings.iter().map(|w| escape_invisible(w)).collect();
                    let state = if applied.changed { "in force" } else { "was in force already" };
                    format!(
                        "{}{state}: {} rules, {} agents, version {}\nended by it: {} tasks, {} tokens, {} access requests",
                        lines(&warnings),
                        applied.rules,
                        applied.agents,
                        escape_invisible(&applied.version),
                        applied.tasks_ended,
                        applied.tokens_ended,
                        applied.access_requests_closed
                    )
                },
            );
        }
        PolicyCommand::Rules { key } => {
            let rules = key.operator_client(common)?.rules().await?;
            output.print(
                || rules.iter().map(rule_json).collect::<Value>(),
                || rule_table(&rules),
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rule_table(rules: &[client::RuleStatistics]) -> String {
    let head = ["RULE", "REMEDY", "HITS", "ASKED", "APPROVED", "MEDIAN", ""];
    let row = |rule: &client::RuleStatistics| {
        let share = rule.approved_percent.map(|share| {
            let decided = rule.approved.saturating_add(rule.denied);
            format!("{share} % of {decided}")
        });
        let median = rule.median_seconds.map(|s| format_seconds(i64::from(s)));
        let flag = match rule.rubber_stamp {
            true => "rubber stamp: nearly always yes, in less than 3 s",
            false => "",
        };
        vec![
            escape_invisible(&rule.rule_id),
            match rule.remedy.as_str() {
                "" => escape_invisible(&rule.kind),
                remedy => escape_invisible(remedy),
            },
            rule.matches.to_string(),
            rule.step_ups.to_string(),
            share.unwrap_or_else(|| "-".to_owned()),
            median.unwrap_or_else(|| "-".to_owned()),
            flag.to_owned(),
        ]
    };
    let head = head.map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(head).chain(rules.iter().map(row)).collect();
    table(&rows)
}

fn rule_json(rule: &client::RuleStatistics) -> Value {
    json!({
        "rule": rule.rule_id, "file": rule.file, "line": rule.line, "why": rule.why, "kind": rule.kind,
        "remedy": (!rule.remedy.is_empty()).then_some(&rule.remedy), "matches": rule.matches, "step_ups": rule.step_ups,
        "approved": rule.approved, "denied": rule.denied, "expired": rule.expired,
        "approved_percent": rule.approved_percent, "median_seconds": rule.median_seconds,
        "last_at": render::timestamp_json(rule.last_at.as_ref()), "rubber_stamp": rule.rubber_stamp,
    })
}

async fn one_time_code(
    output: &Output,
    given: Option<String>,
    file: Option<PathBuf>,
) -> Result<Option<Secret>, CliError> {
    let text = match (given, file) {
        (_, Some(file)) => files::read_text(&file)?,
        (Some(code), None) if !code.is_empty() => code,
        (Some(_), None) => {
            if !output.can_prompt() {
                return Err(CliError::usage("there is no terminal to ask at")
                    .with_hint("--code-file FILE reads the one-time code"));
            }
            output.prompt("one-time code: ").await?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(Secret::new(text.trim().to_owned())))
}

fn lines(warnings: &[String]) -> String {
    warnings
        .iter()
        .map(|warning| format!("warning  {warning}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_table_row() {
        let asks = client::RuleStatistics {
            rule_id: "destructive\u{202E}".to_owned(),
            kind: "forbid".to_owned(),
            remedy: "step_up one-security".to_owned(),
            matches: 23,
            step_ups: 23,
            approved: 20,
            denied: 1,
            approved_percent: Some(95),
            median_seconds: Some(62),
            rubber_stamp: true,
            ..client::RuleStatistics::default()
        };
        let permit = client::RuleStatistics {
            rule_id: "reads".to_owned(),
            kind: "permit".to_owned(),
            ..client::RuleStatistics::default()
        };
        let text = rule_table(&[asks, permit]);
        let cells = |line: &str| {
            line.split("  ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let lines: Vec<_> = text.lines().map(cells).collect();
        assert_eq!(
            lines,
            [
                vec!["RULE", "REMEDY", "HITS", "ASKED", "APPROVED", "MEDIAN"],
                vec![
                    "destructive<U+202E>",
                    "step_up one-security",
                    "23",
                    "23",
                    "95 % of 21",
                    "1m 2s",
                    "rubber stamp: nearly always yes, in less than 3 s",
                ],
                vec!["reads", "permit", "0", "0", "-", "-"],
            ]
        );
    }
}
