//! `policy`: check and test a policy directory, apply it as a whole, or list the active rules with statistics. The versions of bundles
//! are in [`super::policy_versions`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::table;
use super::policy_versions::{self, PolicyVersionsCommand};
use super::{Common, Output, files, policy_dir, policy_plan, render};
use crate::client;
use crate::model::text::{counted, escape_invisible};
use crate::model::{AccessRequestId, Exit, PersonId, Secret, format_seconds};
use crate::policy::{BundleProblem, PolicyBundle, VoteMethod};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Report every problem of a policy directory, without a broker. Exit codes: 0 valid, 1 refused
    Check {
        /// The policy directory
        dir: PathBuf,
    },
    /// Run the tests of a policy directory (tests.toml, tests/*.toml), without a broker
    ///
    /// A broker refuses a bundle whose tests fail. A rule is covered when a passing test rests on it. Exit codes: 0 passed, 1 failed
    Test {
        /// The policy directory
        dir: PathBuf,
        /// Fail when less than this percentage of the rules is covered
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
        fail_under: Option<u8>,
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
        /// A plan of this directory that 'policy plan --json' wrote: apply only while the version that it was planned on is in force
        #[arg(long, value_name = "FILE", conflicts_with_all = ["code", "code_file"])]
        plan: Option<PathBuf>,
    },
    /// Show what a policy directory would change: what differs, what would end, and how the decisions of the last days would come out
    ///
    /// Nothing is applied. The broker makes one plan at a time, and cancels it within half a minute after this command ends. With --json it is a document
    /// for 'policy apply --plan'.
    Plan {
        /// The policy directory
        dir: PathBuf,
        /// Decide the decisions of so many days again
        #[arg(long, value_name = "N", default_value = "7", value_parser = clap::value_parser!(u32).range(1..=366))]
        days: u32,
        /// A person whom the directory registers again, as for 'policy apply'
        #[arg(long, value_name = "PERSON", value_parser = PersonId::parse)]
        returning: Vec<PersonId>,
        #[command(flatten)]
        key: KeyArgs,
    },
    #[command(flatten)]
    Versions(PolicyVersionsCommand),
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
        PolicyCommand::Check { dir } => return check(output, &dir),
        PolicyCommand::Test { dir, fail_under } => return test(output, &dir, fail_under),
        PolicyCommand::Apply {
            dir,
            key,
            code,
            code_file,
            returning,
            plan,
        } => {
            // All problems are reported here, with files and lines, before the broker is called.
            let (checked, _) = policy_dir::load(&dir)?;
            let base = plan.map(|plan| policy_plan::base_of(&plan, &checked.version(), &returning));
            let base = base.transpose()?;
            let (operator, files) = (key.operator_client(common)?, policy_dir::read(&dir)?);
            let applied = match one_time_code(output, code, code_file).await? {
                Some(code) => operator.apply_first_policy_bundle(&files, &code).await?,
                None => {
                    operator
                        .apply_policy_bundle_returning(&files, &returning, base.as_ref())
                        .await?
                }
            };
            return Ok(print_applied(output, &applied));
        }
        PolicyCommand::Versions(command) => {
            return policy_versions::run(common, output, command).await;
        }
        PolicyCommand::Plan {
            dir,
            days,
            returning,
            key,
        } => {
            policy_dir::load(&dir)?;
            let operator = key.operator_client(common)?;
            policy_plan::run(
                output,
                &operator,
                &policy_dir::read(&dir)?,
                &returning,
                days,
            )
            .await?;
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

/// Prints what an apply came to. Exit codes: 0 in force, 11 waiting for others.
pub(super) fn print_applied(output: &Output, applied: &client::AppliedBundle) -> ExitCode {
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
                "{}{people}{state}: {} rules, {} agents, version {}\nended: {}, {}, {}",
                lines(&warnings),
                applied.rules,
                applied.agents,
                escape_invisible(&applied.version),
                counted(applied.tasks_ended, "task"),
                counted(applied.tokens_ended, "token"),
                counted(applied.access_requests_closed, "access request")
            )
        },
    );
    match applied.access_request_id.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Exit::Pending.number()),
    }
}

/// What a check offline cannot say of a bundle, if there is any.
fn not_known_here(bundle: &PolicyBundle) -> Option<String> {
    let asked = bundle.asking_agents().keys();
    let asked = asked.filter_map(|name| bundle.profile(name));
    let by_passkey = asked.filter(|profile| profile.method == VoteMethod::Passkey);
    let names: Vec<&str> = by_passkey.map(|profile| profile.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "not known here: who has a passkey for {}; the broker asks at an apply",
            names.join(" and ")
        )
    })
}

/// Prints every finding about a directory. Exit codes: 0 valid, 1 refused.
fn check(output: &Output, dir: &Path) -> Result<ExitCode, CliError> {
    let (bundle, errors) = match policy_dir::examine(dir)? {
        Ok((_, bundle)) => (Some(bundle), Vec::new()),
        Err(refused) => (None, refused.problems().to_vec()),
    };
    let bundle = bundle.as_ref();
    let warnings: Vec<&BundleProblem> = bundle.iter().flat_map(|b| b.warnings()).collect();
    let ungoverned = bundle.and_then(|bundle| bundle.check_has_operator().err());
    let ungoverned = ungoverned.map(|why| {
        format!("{why}: a broker refuses this bundle (a development broker adds keys: start from its policy directory)")
    });
    let summary = bundle.map(|b| (b.rules().count(), b.agents().count(), b.version()));
    let not_known = bundle.and_then(not_known_here);
    output.print(
        || {
            let findings = errors
                .iter()
                .map(|error| finding_json("error", error))
                .chain(
                    warnings
                        .iter()
                        .map(|warning| finding_json("warning", warning)),
                )
                .chain(
                    ungoverned
                        .iter()
                        .map(|why| json!({ "severity": "warning", "message": why })),
                )
                .chain(
                    not_known
                        .iter()
                        .map(|what| json!({ "severity": "note", "message": what })),
                );
            json!({
                "valid": summary.is_some(),
                "version": summary.map(|(_, _, version)| version),
                "rules": summary.map(|(rules, _, _)| rules),
                "agents": summary.map(|(_, agents, _)| agents),
                "findings": findings.collect::<Vec<_>>(),
            })
        },
        || {
            let errors = errors
                .iter()
                .map(|error| format!("error    {}", error.with_source()));
            let warnings = warnings
                .iter()
                .map(|warning| format!("warning  {}", warning.with_source()));
            let mut lines: Vec<String> = errors.chain(warnings).collect();
            lines.extend(ungoverned.iter().map(|why| format!("warning  {why}")));
            lines.extend(not_known.iter().map(|what| format!("note     {what}")));
            lines.push(match summary {
                Some((rules, agents, version)) => {
                    format!("valid: {rules} rules, {agents} agents, version {version}")
                }
                None => format!("refused: {}", dir.display()),
            });
            lines.join("\n")
        },
    );
    Ok(match summary {
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::from(Exit::Failed.number()),
    })
}

/// Runs the tests of a directory. Exit codes: 0 passed, 1 failed.
fn test(output: &Output, dir: &Path, fail_under: Option<u8>) -> Result<ExitCode, CliError> {
    let (bundle, report) = policy_dir::run_tests(dir)?;
    let rules = bundle.rules().count();
    let (uncovered, coverage) = (report.uncovered(&bundle), report.coverage(&bundle));
    let is_covered = fail_under.is_none_or(|percent| coverage >= usize::from(percent));
    let passes = report.failures.is_empty() && is_covered;
    output.print(
        || {
            let failures = report.failures.iter();
            let uncovered = uncovered.iter();
            json!({
                "passed": passes,
                "version": bundle.version(),
                "cases": report.cases,
                "matrices": report.matrices,
                "requests": report.requests,
                "failures": failures.map(|failure| finding_json("error", failure)).collect::<Vec<_>>(),
                "rules": rules,
                "covered_percent": coverage,
                "uncovered": uncovered
                    .map(|rule| json!({ "rule": rule.id, "file": rule.file, "line": rule.line }))
                    .collect::<Vec<_>>(),
            })
        },
        || {
            let failures = report.failures.iter();
            let mut lines: Vec<String> = failures
                .map(|failure| format!("failed   {}", failure.with_source()))
                .collect();
            lines.extend(uncovered.iter().map(|rule| {
                format!(
                    "uncovered  {}:{}: rule \"{}\": no passing test rests on it",
                    rule.file, rule.line, rule.id
                )
            }));
            let word = match (report.failures.is_empty(), is_covered) {
                (false, _) => "failed",
                (true, false) => "not covered",
                (true, true) => "passed",
            };
            let failed = match report.failures.len() {
                0 => String::new(),
                failed => format!("{failed} of "),
            };
            lines.push(format!(
                "{word}: {failed}{} of {} and {}; {} of {rules} rules covered ({coverage} %)",
                counted(report.requests, "request"),
                counted(report.cases, "case"),
                match report.matrices {
                    1 => "1 matrix".to_owned(),
                    matrices => format!("{matrices} matrices"),
                },
                report.covered.len()
            ));
            if report.requests == 0 {
                lines.push("the bundle has no tests: write tests.toml, as docs/policy.md shows".to_owned());
            }
            lines.join("\n")
        },
    );
    Ok(match passes {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Exit::Failed.number()),
    })
}

/// One finding of the check.
pub(super) fn finding_json(severity: &str, problem: &BundleProblem) -> Value {
    json!({
        "severity": severity, "file": problem.file, "line": problem.line, "column": problem.column,
        "check": problem.check, "message": problem.message, "source": problem.source,
    })
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
