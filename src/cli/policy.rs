//! `policy`: check a policy directory, apply it as a whole, or list the active rules with statistics.

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
use crate::model::{AccessRequestId, Exit, PersonId, Secret, format_seconds};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Report every problem of a policy directory, without a broker
    Check {
        /// The policy directory
        dir: PathBuf,
    },
    /// Apply a policy directory; tasks, tokens and access requests it no longer allows end
    ///
    /// Where the bundle in force asks others to agree to a change ([changes] in people.toml), it is proposed to them, and comes in force
    /// when they have agreed. Exit codes: 0 in force, 11 waiting for others.
    Apply {
        /// The policy directory
        dir: PathBuf,
        #[command(flatten)]
        key: KeyArgs,
        /// The one-time code that a broker without a policy bundle printed; without a value, prompt for it
        #[arg(long, value_name = "CODE", num_args = 0..=1, default_missing_value = "")]
        code: Option<String>,
        /// Read the one-time code from a file; - reads it from stdin
        #[arg(long, value_name = "FILE", conflicts_with = "code")]
        code_file: Option<PathBuf>,
        /// A person whom the directory registers again, or gives a role back, and who is the same as before: their passkeys and keys
        /// count again. Without it the id is another person's
        #[arg(long, value_name = "PERSON", value_parser = PersonId::parse, conflicts_with_all = ["code", "code_file"])]
        returning: Vec<PersonId>,
    },
    /// Withdraw a proposal of your own
    Withdraw {
        /// The access request that 'policy apply' named
        #[arg(value_parser = AccessRequestId::parse)]
        access_request: AccessRequestId,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// List the active rules: how often each matched, and how approvers decided the access requests it caused
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
                format!("{why}: a broker refuses this bundle (a development broker adds keys: start from its policy directory)")
            }));
            let (rules, agents) = (bundle.rules().count(), bundle.agents().count());
            output.print(
                || json!({ "version": bundle.version(), "rules": rules, "agents": agents, "warnings": warnings }),
                || format!("{}valid: {rules} rules, {agents} agents, version {}", lines(&warnings), bundle.version()),
            );
        }
        PolicyCommand::Apply {
            dir,
            key,
            code,
            code_file,
            returning,
        } => {
            // All problems are reported here, with files and lines, before the broker is called.
            policy_dir::load(&dir)?;
            let (operator, files) = (key.operator_client(common)?, policy_dir::read(&dir)?);
            let applied = match one_time_code(output, code, code_file).await? {
                Some(code) => operator.apply_first_policy_bundle(&files, &code).await?,
                None => {
                    operator
                        .apply_policy_bundle_returning(&files, &returning)
                        .await?
                }
            };
            output.print(
                || {
                    json!({
                        "version": applied.version, "changed": applied.changed, "rules": applied.rules,
                        "agents": applied.agents, "warnings": applied.warnings, "tasks_ended": applied.tasks_ended,
                        "tokens_ended": applied.tokens_ended, "access_requests_closed": applied.access_requests_closed,
                        "people": applied.people,
                        "access_request": (!applied.access_request_id.is_empty()).then_some(&applied.access_request_id),
                        "expires_at": render::timestamp_json(applied.expires_at.as_ref()),
                    })
                },
                || {
                    let warnings: Vec<String> = applied.warnings.iter().map(|w| escape_invisible(w)).collect();
                    let people: String = applied
                        .people
                        .iter()
                        .map(|line| format!("person  {}\n", escape_invisible(line)))
                        .collect();
                    let state = if applied.changed { "in force" } else { "already in force" };
                    if !applied.access_request_id.is_empty() {
                        return format!(
                            "{}{people}waiting: {} rules, {} agents, version {}\nothers have to agree to it before {}: dipylon approve {}\nit comes in force when they have; take it back with: dipylon policy withdraw {}",
                            lines(&warnings),
                            applied.rules,
                            applied.agents,
                            escape_invisible(&applied.version),
                            applied.expires_at.map_or_else(|| "it expires".to_owned(), |at| at.to_string()),
                            escape_invisible(&applied.access_request_id),
                            escape_invisible(&applied.access_request_id),
                        );
                    }
                    format!(
                        "{}{people}{state}: {} rules, {} agents, version {}\nended: {} tasks, {} tokens, {} access requests",
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
            if !applied.access_request_id.is_empty() {
                return Ok(ExitCode::from(Exit::Pending.number()));
            }
        }
        PolicyCommand::Withdraw {
            access_request,
            key,
        } => {
            let operator = key.operator_client(common)?;
            operator.withdraw_policy_proposal(access_request).await?;
            output.print(
                || json!({ "access_request": access_request, "status": "cancelled" }),
                || format!("withdrawn: {access_request}"),
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
    let head = [
        "RULE", "REMEDY", "MATCHES", "STEP-UPS", "APPROVED", "BY KEY", "MEDIAN", "",
    ];
    let row = |rule: &client::RuleStatistics| {
        let share = rule.approved_percent.map(|share| {
            let decided = rule.approved.saturating_add(rule.denied);
            format!("{share} % of {decided}")
        });
        let median = rule.median_seconds.map(|s| format_seconds(i64::from(s)));
        let flag = match rule.rubber_stamp {
            true => "rubber stamp: nearly always approved, in less than 3 s",
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
            match rule.approved {
                0 => "-".to_owned(),
                _ => rule.approved_by_key.to_string(),
            },
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
        "approved_by_key": rule.approved_by_key, "approved_percent": rule.approved_percent, "median_seconds": rule.median_seconds,
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
                return Err(CliError::usage(
                    "cannot prompt for the one-time code: stdin or stderr is not a terminal",
                )
                .with_next_step("use --code-file FILE to read it from a file"));
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
        let step_up = client::RuleStatistics {
            rule_id: "destructive\u{202E}".to_owned(),
            kind: "forbid".to_owned(),
            remedy: "step_up one-security".to_owned(),
            matches: 23,
            step_ups: 23,
            approved: 20,
            approved_by_key: 4,
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
        let text = rule_table(&[step_up, permit]);
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
                vec![
                    "RULE", "REMEDY", "MATCHES", "STEP-UPS", "APPROVED", "BY KEY", "MEDIAN"
                ],
                vec![
                    "destructive<U+202E>",
                    "step_up one-security",
                    "23",
                    "23",
                    "95 % of 21",
                    "4",
                    "1m 2s",
                    "rubber stamp: nearly always approved, in less than 3 s",
                ],
                vec!["reads", "permit", "0", "0", "-", "-", "-"],
            ]
        );
    }
}
