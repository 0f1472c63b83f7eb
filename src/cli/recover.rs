//! `recover`: what only the owner of the broker's host can bring back, while the broker is stopped.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::approver::{PasskeyName, no_such_passkey};
use super::error::CliError;
use super::shell::shell_quote;
use super::{Common, Output, config_checks, dev, policy_dir, serve};
use crate::broker::{
    Broker, BrokerOpenError, HostConfirmationOptions, OperatorsRecovered, RecoveryError,
    RecoveryOptions, confirm_passkey_on_host, recover_operators,
};
use crate::clock::Clock;
use crate::config::{Config, ConfigOverrides};
use crate::journal::{AppendError, FaultInjection, JournalReader, OpenError};
use crate::model::text::escape_invisible;
use crate::model::{HostUser, OperatorRecovery, PersonId, RecoveryReason};
use crate::state::ConfirmationRefusal;

#[derive(Debug, Subcommand)]
pub(super) enum RecoverCommand {
    /// Put a policy bundle in force where no operator can act any more: everyone sees the entry, the reason and the user of this host
    Operators(OperatorsArgs),
}

#[derive(Debug, Args)]
pub(super) struct OperatorsArgs {
    /// The broker's configuration [default: the development broker's]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The policy directory: it registers an operator with a key that lives
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
    /// Why, in one line that everyone reads
    #[arg(long, value_name = "TEXT", value_parser = RecoveryReason::parse)]
    reason: RecoveryReason,
    /// A person whom the directory registers again, or gives a role back, and who is the same as before: their passkeys and keys
    /// count again. Without it the id is another person's
    #[arg(long, value_name = "PERSON", value_parser = PersonId::parse)]
    returning: Vec<PersonId>,
    /// The keys of operators who could still act are lost or in wrong hands: all keys and passkeys of the operators in force that the
    /// directory does not register die with the recovery
    #[arg(long)]
    operators_lost: bool,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: RecoverCommand,
) -> Result<ExitCode, CliError> {
    let RecoverCommand::Operators(args) = command;
    let file = match args.config {
        Some(file) => file,
        None => dev::DevConfig::load(common)?.dir().join(dev::CONFIG_FILE),
    };
    let config = read_config(&file)?;
    let (files, bundle) = policy_dir::load_trusted(&args.policy)?;
    bundle.check_has_operator().map_err(|why| {
        CliError::failed(format!("policy bundle {}: {why}", args.policy.display()))
    })?;
    end_disallowed(&config).await?;
    let version = bundle.version();
    let (rules, agents) = (bundle.rules().count(), bundle.agents().count());
    let warnings: Vec<String> = bundle.warnings().iter().map(ToString::to_string).collect();
    let host_user = host_user();
    let options = RecoveryOptions {
        data_dir: config.data_dir.clone(),
        realm: config.settings.realm.clone(),
        files,
        returning: args.returning.into_iter().collect(),
        recovery: OperatorRecovery {
            reason: args.reason,
            host_user: host_user.clone(),
            operators_lost: args.operators_lost,
        },
        clock: Clock::system(),
        faults: FaultInjection::default(),
    };
    let done = recover_operators(options, bundle).await;
    let mut done = done.map_err(|error| explain(&error, &config))?;
    done.warnings.splice(0..0, warnings);
    output.print(
        || {
            let lost: Value = done
                .lost_keys
                .iter()
                .map(|(person, key)| json!({ "person": person, "key": key }))
                .collect();
            json!({
                "version": version, "rules": rules, "agents": agents, "operators": done.operators, "keys_lost": lost,
                "people": done.people, "warnings": done.warnings, "host_user": host_user, "position": done.index,
                "checkpoint": done.head.checkpoint.to_string(),
            })
        },
        || {
            format!(
                "{}recovered by entry {}: {rules} rules, {agents} agents, version {version}\ncheckpoint {}\n\
                 start the broker: it ends what the bundle no longer allows; the log of each start, the console and 'dipylon doctor' show this recovery for seven days",
                lines(&done),
                done.index,
                done.head.checkpoint
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// Confirms a passkey by the word of the host's owner, where no other person has a key to confirm it with.
pub(super) async fn confirm_passkey(
    common: &Common,
    output: &Output,
    config: Option<PathBuf>,
    person: PersonId,
    passkey: PasskeyName,
) -> Result<ExitCode, CliError> {
    let file = match config {
        Some(file) => file,
        None => dev::DevConfig::load(common)?.dir().join(dev::CONFIG_FILE),
    };
    let config = read_config(&file)?;
    let user = host_user();
    let options = HostConfirmationOptions {
        data_dir: config.data_dir.clone(),
        realm: config.settings.realm.clone(),
        person: person.clone(),
        user: user.clone(),
        clock: Clock::system(),
        faults: FaultInjection::default(),
    };
    let is_named = |key| passkey.is_of(key);
    let done = confirm_passkey_on_host(options, is_named).await;
    let done = done.map_err(|error| match error {
        RecoveryError::NoSuchPasskey(_) => no_such_passkey(&person),
        error => explain(&error, &config),
    })?;
    output.print(
        || {
            json!({
                "person": person, "key": done.key, "host_user": user, "position": done.index,
                "checkpoint": done.head.checkpoint.to_string(),
            })
        },
        || {
            format!(
                "the passkey {} of {person} is confirmed by entry {}: it counts for actions of every risk\ncheckpoint {}\n\
                 the journal and the Approvers page say that the host confirmed it",
                done.key, done.index, done.head.checkpoint
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

/// Ends what the bundle in force disallows, as a start of the broker does, before another one comes in force: what it had ended stays
/// ended. A crash leaves what a start leaves.
async fn end_disallowed(config: &Config) -> Result<(), CliError> {
    // Opening to write would create a journal.
    if JournalReader::open(&config.data_dir).is_err() {
        return Ok(());
    }
    let opened = Broker::open(serve::broker_options(config, None)?).await;
    let broker = opened.map_err(|error| match error {
        BrokerOpenError::Open(error) => explain(&RecoveryError::Open(error), config),
        other => CliError::failed(other.to_string()),
    })?;
    broker.stop_serving().await;
    // The journal's writer ends with its last handle, and unlocks the directory before its head ends.
    let mut head = broker.journal().head();
    drop(broker);
    while head.changed().await.is_ok() {}
    Ok(())
}

/// The configuration, with files that only the broker's user could have changed.
fn read_config(file: &std::path::Path) -> Result<Config, CliError> {
    let (finding, config) = config_checks::check_configuration(file, &ConfigOverrides::default());
    let mut failures = finding.start_failures();
    if let Some(config) = &config {
        failures.extend(config_checks::check_files(config).start_failures());
    }
    match config {
        Some(config) if failures.is_empty() => Ok(config),
        Some(_) | None => Err(
            CliError::failed(failures.join("\n")).with_next_step(format!(
                "'dipylon config check {}' repeats these checks",
                shell_quote(&file.to_string_lossy())
            )),
        ),
    }
}

fn explain(error: &RecoveryError, config: &Config) -> CliError {
    let failed = |message: String| CliError::failed(message);
    match error {
        RecoveryError::Open(OpenError::Locked(_)) => failed(format!(
            "the broker of {} is running, as {}",
            config.data_dir.display(),
            config.settings.external_url
        ))
        .with_next_step("stop it first: the recovery is an entry of its journal, which one process writes"),
        RecoveryError::NoPolicy(_) => failed(error.to_string()).with_next_step(
            "start the broker, and run 'dipylon policy apply DIR --key KEY.pem --code' with the one-time code that it prints; or start it with --policy DIR",
        ),
        RecoveryError::Governed(_) => failed(error.to_string()).with_next_step(
            "ask one of them to run 'dipylon policy apply DIR'; if their keys are lost or in wrong hands, add --operators-lost: those that DIR does not register die",
        ),
        RecoveryError::NothingLost(_) => failed(error.to_string()).with_next_step(
            "remove the keys that are lost from people.toml, and register new ones ('dipylon key new --of PERSON --out FILE')",
        ),
        RecoveryError::InForce(_) => failed(error.to_string()).with_next_step(
            "register a new key of an operator in people.toml ('dipylon key new --of PERSON --out FILE' prints it)",
        ),
        RecoveryError::ClockBehind(_) => failed(error.to_string())
            .with_next_step("correct this host's clock, and run the command again"),
        RecoveryError::Append(AppendError::OutcomeUnknown) => failed(error.to_string()).with_next_step(
            "'dipylon audit verify' shows whether the last entry is the recovery: if not, run the command again",
        ),
        RecoveryError::Open(OpenError::Damaged(_)) => failed(error.to_string())
            .with_next_step("keep an unchanged copy of this journal and compare it with a backup"),
        RecoveryError::Confirmation(ConfirmationRefusal::PeopleCan(_)) => failed(error.to_string())
            .with_next_step(
                "start the broker, and ask one of them to run 'dipylon approver confirm PERSON CODE', or to open the console's Approvers page",
            ),
        RecoveryError::NoSuchPasskey(_)
        | RecoveryError::Confirmation(_)
        | RecoveryError::Open(_)
        | RecoveryError::Unusable(_)
        | RecoveryError::Registration(_)
        | RecoveryError::Append(_) => failed(error.to_string()),
    }
}

/// Warnings, then what changed for people, keys and operators, each on a line.
fn lines(done: &OperatorsRecovered) -> String {
    let warnings = done
        .warnings
        .iter()
        .map(|text| format!("warning   {}\n", escape_invisible(text)));
    let people = done
        .people
        .iter()
        .map(|text| format!("person    {}\n", escape_invisible(text)));
    let lost = done
        .lost_keys
        .iter()
        .map(|(person, key)| format!("dead      the key {key} of {person}\n"));
    let operators = done
        .operators
        .iter()
        .map(|person| format!("operator  {person} can act\n"));
    warnings
        .chain(people)
        .chain(lost)
        .chain(operators)
        .collect()
}

/// The user of this process, with the name that its environment has for it; after `sudo`, with the user who called it.
fn host_user() -> HostUser {
    let name = |variable: &str| std::env::var(variable).ok().filter(|name| !name.is_empty());
    let user = name("USER").or_else(|| name("LOGNAME"));
    let uid = rustix::process::getuid().as_raw();
    HostUser::claimed(uid, user.as_deref(), name("SUDO_USER").as_deref())
}
