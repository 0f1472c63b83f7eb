//! `policy status`, `history`, `export`, `diff` and `rollback`: the policy bundles that are or were in force.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::error::CliError;
use super::output::{FieldList, table};
use super::policy::{finding_json, print_applied};
use super::{Common, Output, policy_dir, render};
use crate::client::{
    Error, OperatorClient, PolicyBundleContent, PolicyBundleInfo, PolicyProposalInfo, PolicyStatus,
};
use crate::clock::Clock;
use crate::model::text::{escape_invisible, escape_invisible_capped};
use crate::model::{
    Digest, DigestPrefix, Exit, ParseError, ParseField as _, PersonId, PolicyChanges, Reason,
};
use crate::policy::{BundleFiles, BundleProblem, PolicyBundle, diff, sentences};
use crate::state::people_sentences;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVersionsCommand {
    /// Show the policy bundle in force: since when, by whom, its size, what the check says of it, and the proposals that wait (operators,
    /// auditors)
    Status {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// List the policy bundles that came in force, the newest first (operators, auditors)
    History {
        /// Maximum number of rows
        #[arg(long, value_name = "N", default_value = "100")]
        limit: usize,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Write the files of the policy bundle in force, or of an earlier one, into a new or empty directory (operators, auditors)
    Export {
        /// The directory
        dir: PathBuf,
        /// A version that is or was in force, or its first characters, at least 8 [default: the one in force]
        #[arg(long, value_name = "PREFIX", value_parser = version_prefix, allow_hyphen_values = true)]
        version: Option<DigestPrefix>,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Show what a policy directory changes in the bundle in force, or what differs between two versions (operators, auditors)
    ///
    /// First what it means, in sentences, then every line that differs, as the people who agree to a change are shown it. Exit codes:
    /// 0 nothing differs, 1 something differs, 2 the two cannot be compared.
    Diff {
        /// The policy directory, compared with the bundle in force
        #[arg(required_unless_present = "from", conflicts_with = "from")]
        dir: Option<PathBuf>,
        /// The older version that is or was in force, or its first characters, at least 8
        #[arg(long, value_name = "PREFIX", requires = "to", value_parser = version_prefix, allow_hyphen_values = true)]
        from: Option<DigestPrefix>,
        /// The newer version, or its first characters
        #[arg(long, value_name = "PREFIX", requires = "from", value_parser = version_prefix, allow_hyphen_values = true)]
        to: Option<DigestPrefix>,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Apply a policy bundle that was in force before, as 'policy apply' applies a directory
    ///
    /// It is checked as today's check checks it, ends what it does not allow, and waits where others have to agree to a change. What has
    /// ended stays ended. Exit codes: 0 in force, 11 waiting for others.
    Rollback {
        /// A version that was in force, or its first characters, at least 8 [default: the one before the one in force]
        #[arg(value_name = "VERSION", value_parser = version_argument, allow_hyphen_values = true)]
        version: Option<DigestPrefix>,
        /// A person whom the bundle registers again, or gives a role back, and who is the same as before: their passkeys and keys count
        /// again. Without it the id is another person's
        #[arg(long, value_name = "PERSON", value_parser = PersonId::parse)]
        returning: Vec<PersonId>,
        #[command(flatten)]
        key: KeyArgs,
    },
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: PolicyVersionsCommand,
) -> Result<ExitCode, CliError> {
    match command {
        PolicyVersionsCommand::Status { key } => {
            status(output, &key.operator_client(common)?).await?;
        }
        PolicyVersionsCommand::History { limit, key } => {
            let bundles = key.operator_client(common)?.policy_bundles(limit).await?;
            print_history(output, &bundles);
        }
        PolicyVersionsCommand::Export { dir, version, key } => {
            let operator = key.operator_client(common)?;
            export(output, &operator, &dir, version.as_ref()).await?;
        }
        PolicyVersionsCommand::Diff { dir, from, to, key } => {
            let compared = async {
                let operator = key.operator_client(common)?;
                let before = fetch(&operator, from.as_ref()).await?;
                let (name, after) = match &dir {
                    Some(dir) => (dir.display().to_string(), policy_dir::read(dir)?),
                    None => {
                        let after = fetch(&operator, to.as_ref()).await?;
                        (after.version.to_string(), after.files)
                    }
                };
                compare((&before.version.to_string(), before.files), (&name, after))
            };
            // One of diff's own codes says that something differs: a failure has another.
            let difference = compared.await.map_err(|error| match error.exit {
                Exit::Failed => CliError {
                    exit: Exit::UsageError,
                    ..error
                },
                _ => error,
            })?;
            return Ok(print_difference(output, &difference));
        }
        PolicyVersionsCommand::Rollback {
            version,
            returning,
            key,
        } => {
            let operator = key.operator_client(common)?;
            // Without a version it is the one before that of now: another bundle that comes in force meanwhile is not rolled back.
            let (version, base) = match version {
                Some(version) => (version, None),
                None => {
                    let (before, base) = version_before(&operator).await?;
                    (before, Some(base))
                }
            };
            let bundle = fetch(&operator, Some(&version)).await?;
            // All problems are reported here, with files and lines, before the broker is called.
            policy_dir::load_files(bundle.version, bundle.files.clone())?;
            let applied = operator
                .apply_policy_bundle_returning(&bundle.files, &returning, base.as_ref())
                .await?;
            return Ok(print_applied(output, &applied));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A version or its first characters.
fn version_prefix(text: &str) -> Result<DigestPrefix, ParseError> {
    DigestPrefix::parse(text).at("version")
}

/// The same in a place where a mistyped option could stand: a version that begins with two hyphens must be whole, which no option is.
fn version_argument(text: &str) -> Result<DigestPrefix, ParseError> {
    let version = version_prefix(text)?;
    if text.starts_with("--") && Digest::parse(text).is_err() {
        let rule = "there is no such option; a version that begins with `--` must be whole";
        return Err(ParseError::new("version", rule));
    }
    Ok(version)
}

/// A bundle that is or was in force; without a version the one in force.
async fn fetch(
    operator: &OperatorClient,
    version: Option<&DigestPrefix>,
) -> Result<PolicyBundleContent, CliError> {
    let fetched = operator.policy_bundle(version).await;
    fetched.map_err(|error: Error| match (error.reason(), version) {
        (Some(Reason::NotFound), Some(version)) => CliError {
            message: format!("no policy bundle of version {version} was ever in force"),
            ..CliError::from(error)
        }
        .with_next_step("'dipylon policy history' lists the versions"),
        (Some(Reason::NotFound), None) => CliError {
            message: NONE_IN_FORCE.to_owned(),
            ..CliError::from(error)
        },
        (_, _) => error.into(),
    })
}

const NONE_IN_FORCE: &str = "no policy bundle is in force";

/// The version that was in force before the one in force, and that one.
async fn version_before(operator: &OperatorClient) -> Result<(DigestPrefix, Digest), CliError> {
    let bundles = operator.policy_bundles(2).await?;
    let before = bundles.get(1).ok_or_else(|| {
        CliError::failed("no policy bundle was in force before the one in force")
            .with_next_step("'dipylon policy history' lists the versions")
    })?;
    let in_force = bundles.first().map_or("", |bundle| &bundle.version);
    Ok((
        DigestPrefix::parse(&before.version)?,
        Digest::parse(in_force)?,
    ))
}

/// What the check of this program says of a bundle, and how large it is.
struct Examined {
    /// Rules, agents, people; absent when the bundle cannot be loaded.
    size: Option<[usize; 3]>,
    errors: Vec<BundleProblem>,
    warnings: Vec<BundleProblem>,
}

fn examine(files: BTreeMap<String, String>) -> Examined {
    let size = |bundle: &PolicyBundle| {
        let (rules, agents) = (bundle.rules().count(), bundle.agents().count());
        [rules, agents, bundle.people().count()]
    };
    let refused = |size: Option<[usize; 3]>, problems: &[BundleProblem]| Examined {
        size,
        errors: problems.to_vec(),
        warnings: Vec::new(),
    };
    let files = match BundleFiles::new(files) {
        Ok(files) => files,
        Err(error) => return refused(None, error.problems()),
    };
    match PolicyBundle::load_checked(&files) {
        Ok(bundle) => Examined {
            size: Some(size(&bundle)),
            errors: Vec::new(),
            warnings: bundle.warnings().to_vec(),
        },
        // A bundle in force stays in force when the check becomes stricter.
        Err(error) => {
            let loaded = PolicyBundle::load(&files).ok();
            refused(loaded.as_ref().map(size), error.problems())
        }
    }
}

async fn status(output: &Output, operator: &OperatorClient) -> Result<(), CliError> {
    let PolicyStatus {
        in_force,
        proposals,
        proposals_left_out,
    } = operator.policy_status().await?;
    let bundle = in_force
        .first()
        .ok_or_else(|| CliError::failed(NONE_IN_FORCE))?;
    let version = DigestPrefix::parse(&bundle.version)?;
    let examined = examine(fetch(operator, Some(&version)).await?.files);
    let [rules, agents, people] = examined.size.map_or([None; 3], |size| size.map(Some));
    output.print(
        || {
            let errors = examined.errors.iter().map(|p| finding_json("error", p));
            let warnings = examined.warnings.iter().map(|p| finding_json("warning", p));
            let more = [
                ("rules", json!(rules)),
                ("agents", json!(agents)),
                ("people", json!(people)),
                ("findings", errors.chain(warnings).collect()),
                ("proposals", proposals.iter().map(proposal_json).collect()),
                ("proposals_left_out", json!(proposals_left_out)),
            ];
            bundle_members(bundle).into_iter().chain(more).collect()
        },
        || {
            let now = Clock::system().now();
            let mut rows = FieldList::default();
            rows.untrusted_row("in force", &bundle.version);
            rows.row(
                "since",
                render::timestamp_with_distance(bundle.since.as_ref(), now),
            );
            rows.row("by", origin(bundle));
            if let [Some(rules), Some(agents), Some(people)] = [rules, agents, people] {
                let size = format!("{rules} rules, {agents} agents, {people} people");
                rows.row("size", size);
            }
            if !examined.errors.is_empty() {
                rows.row(
                    "check",
                    "an apply of this bundle would be refused today; it stays in force",
                );
            }
            for problem in &examined.errors {
                rows.row("error", escape_invisible(&problem.to_string()));
            }
            for problem in &examined.warnings {
                rows.row("warning", escape_invisible(&problem.to_string()));
            }
            for proposal in &proposals {
                rows.row(
                    "waiting",
                    format!(
                        "{} by {}: version {}, expires {}",
                        escape_invisible(&proposal.access_request_id),
                        escape_invisible(&proposal.by),
                        escape_invisible(&proposal.version),
                        render::timestamp_with_distance(proposal.expires_at.as_ref(), now),
                    ),
                );
            }
            if proposals_left_out > 0 {
                rows.row(
                    "waiting",
                    format!("and {proposals_left_out} more proposals"),
                );
            }
            rows.to_text()
        },
    );
    Ok(())
}

/// How a bundle came in force, in words.
fn origin(bundle: &PolicyBundleInfo) -> String {
    let by = escape_invisible(&bundle.by);
    match bundle.how.as_str() {
        "seed" => "the configuration, as the seed of an empty journal".to_owned(),
        "alone" => format!("{by}, alone"),
        "agreed" => format!(
            "{by}, and others agreed: {}",
            escape_invisible(&bundle.access_request_id)
        ),
        "recovery" => format!(
            "{} (unverified) on the broker's host, as a recovery: {}",
            escape_invisible(&bundle.recovery_host_user),
            escape_invisible_capped(&bundle.recovery_reason, REASON_CHARS_MAX)
        ),
        other => format!("{by}, {}", escape_invisible(other)),
    }
}

/// Longest reason of a recovery that is shown, in characters.
const REASON_CHARS_MAX: usize = 200;

/// What a bundle's row says, by name.
fn bundle_members(bundle: &PolicyBundleInfo) -> [(&'static str, Value); 7] {
    let text = |text: &str| json!((!text.is_empty()).then_some(text));
    let recovery = (bundle.how == "recovery").then(
        || json!({ "reason": bundle.recovery_reason, "host_user": bundle.recovery_host_user }),
    );
    [
        ("version", json!(bundle.version)),
        ("since", render::timestamp_json(bundle.since.as_ref())),
        ("how", json!(bundle.how)),
        ("by", text(&bundle.by)),
        ("access_request", text(&bundle.access_request_id)),
        ("recovery", json!(recovery)),
        ("position", json!(bundle.position)),
    ]
}

fn proposal_json(proposal: &PolicyProposalInfo) -> Value {
    json!({
        "access_request": proposal.access_request_id, "version": proposal.version, "by": proposal.by,
        "opened_at": render::timestamp_json(proposal.opened_at.as_ref()),
        "expires_at": render::timestamp_json(proposal.expires_at.as_ref()),
    })
}

fn print_history(output: &Output, bundles: &[PolicyBundleInfo]) {
    output.print(
        || {
            let rows = bundles.iter().map(bundle_members);
            rows.map(|row| row.into_iter().collect::<Value>()).collect()
        },
        || {
            if bundles.is_empty() {
                return "no policy bundle came in force".to_owned();
            }
            let head = ["VERSION", "SINCE", "ENTRY", "BY"]
                .map(str::to_owned)
                .to_vec();
            let row = |bundle: &PolicyBundleInfo| {
                vec![
                    escape_invisible(&bundle.version),
                    render::timestamp(bundle.since.as_ref()),
                    bundle.position.to_string(),
                    origin(bundle),
                ]
            };
            let rows: Vec<_> = std::iter::once(head)
                .chain(bundles.iter().map(row))
                .collect();
            table(&rows)
        },
    );
}

async fn export(
    output: &Output,
    operator: &OperatorClient,
    dir: &Path,
    version: Option<&DigestPrefix>,
) -> Result<(), CliError> {
    let bundle = fetch(operator, version).await?;
    let files = BundleFiles::new(bundle.files);
    let files = files.map_err(|error| policy_dir::refused(bundle.version, &error))?;
    policy_dir::export(dir, &files)?;
    let count = files.iter().count();
    output.print(
        || json!({ "version": bundle.version, "directory": dir, "files": count }),
        || {
            let dir = escape_invisible(&dir.display().to_string());
            format!(
                "exported: {count} files of version {} to {dir}",
                bundle.version
            )
        },
    );
    Ok(())
}

/// What differs between two bundles.
struct Difference {
    from: String,
    to: String,
    changes: PolicyChanges,
}

/// A name, and the files of a bundle.
type NamedFiles<'a> = (&'a str, BTreeMap<String, String>);

/// Compares two bundles as the card of a proposal does.
fn compare(before: NamedFiles<'_>, after: NamedFiles<'_>) -> Result<Difference, CliError> {
    let load = |(name, files): NamedFiles<'_>| {
        let refused = |error| policy_dir::refused(name, &error);
        let files = BundleFiles::new(files).map_err(refused)?;
        // What the check refuses can be compared all the same, if it can be read.
        let (bundle, problems) = match PolicyBundle::load_checked(&files) {
            Ok(bundle) => (bundle, 0),
            Err(error) => {
                let bundle = PolicyBundle::load(&files).map_err(refused)?;
                (bundle, error.problems().len())
            }
        };
        Ok::<_, CliError>((files, bundle, problems))
    };
    let (before_files, before, was_refused) = load(before)?;
    let (after_files, after, is_refused) = load(after)?;
    let (from, to) = (before_files.version(), after_files.version());
    if from == to {
        return Ok(Difference {
            from: from.to_string(),
            to: to.to_string(),
            changes: PolicyChanges::default(),
        });
    }
    let files = diff::file_changes(&before_files, &after_files).map_err(CliError::failed)?;
    // Of a bundle that the check refuses no warnings are known.
    let warned = match was_refused {
        0 => sentences::warnings(&before),
        _ => BTreeSet::new(),
    };
    let people = people_sentences(&before, &after);
    let mut summary = Vec::new();
    if is_refused > 0 {
        summary.push(format!(
            "THE CHECK REFUSES THIS BUNDLE: it has {is_refused} problems, which 'dipylon policy check' lists"
        ));
    }
    summary.extend(sentences::summary(&before, &after, people, &warned));
    Ok(Difference {
        from: from.to_string(),
        to: to.to_string(),
        changes: PolicyChanges { summary, files },
    })
}

/// Prints what differs. Exit codes as those of diff(1): 0 nothing, 1 something.
fn print_difference(output: &Output, difference: &Difference) -> ExitCode {
    let Difference { from, to, changes } = difference;
    let differs = from != to;
    output.print(
        || {
            json!({
                "from": from, "to": to, "differs": differs, "summary": changes.summary, "files": changes.files,
            })
        },
        || {
            if !differs {
                return format!("nothing differs: version {from}");
            }
            let mut lines = vec![format!("from {from}"), format!("to   {to}")];
            if changes.summary.is_empty() {
                lines.push("nothing that decides differs".to_owned());
            }
            lines.extend(changes.summary.iter().map(|text| escape_invisible(text)));
            for file in &changes.files {
                lines.push(format!("\nfile {}", escape_invisible(&file.path)));
                lines.extend(file.lines.iter().map(|line| escape_invisible(line)));
            }
            lines.join("\n")
        },
    );
    match differs {
        false => ExitCode::SUCCESS,
        true => ExitCode::from(Exit::Failed.number()),
    }
}
