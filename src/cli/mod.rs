//! Command line of the `dipylon` program: one module for each command.
//!
//! In: arguments, the environment, files given by path. Out: short text or one JSON value on stdout, errors on stderr, an
//! exit code for each kind of result. Trusts: the user who runs it, with their own keys.
//! Refuses: to sign a vote statement that differs from the card it printed; a development broker beyond loopback.
//! Never: prints a private key, evidence it did not create, or a token unless asked to. Untrusted text is printed with its
//! invisible characters escaped.

mod agent;
mod approval_wait;
mod approver;
mod audit;
mod card;
mod config;
mod config_checks;
mod connect;
mod console_vote;
#[cfg(feature = "demo")]
mod demo;
mod dev;
mod doctor;
mod error;
mod exec;
mod explain;
mod fact;
mod files;
mod finding;
mod freeze;
mod grpc_probe;
mod http_client;
mod inbox;
mod key;
mod output;
mod parse;
mod policy;
mod policy_dir;
mod policy_plan;
mod policy_versions;
mod receipt;
mod recover;
mod render;
mod request;
mod sd_notify;
mod serve;
mod shell;
mod state_sweep;
mod task;
mod task_store;
mod token;
mod token_use;
mod unused_options;
mod vote;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{FalseyValueParser, Resettable};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::model::Exit;
use error::CliError;
use output::{ErrorStream, Output};

/// Just-in-time credentials for AI agents and other workloads: one short-lived token for one approved action.
#[derive(Debug, Parser)]
#[command(name = "dipylon", version, after_help = after_help(), max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Parses the arguments of the program, its own name first. Refuses an option that would have no effect.
    fn from_arguments(arguments: &[OsString]) -> Result<Self, clap::Error> {
        let mut command = without_empty_env(Self::command());
        let mut matches = command.try_get_matches_from_mut(arguments)?;
        unused_options::refuse(&mut command, &matches)?;
        Self::from_arg_matches_mut(&mut matches)
    }
}

/// The end of the help text: exit codes and the first commands to try.
fn after_help() -> String {
    let mut text = "Exit codes:\n".to_owned();
    for exit in Exit::ALL {
        text.push_str(&format!("  {:>2}  {}\n", exit.number(), exit.text()));
    }
    if cfg!(feature = "demo") {
        text.push_str("\nTry it:          dipylon demo");
    }
    text.push_str("\nStart a broker:  dipylon serve --dev\n\n");
    text.push_str(JSON_HELP);
    text
}

const JSON_HELP: &str = "\
With --json a command prints exactly one JSON value to stdout, one a line for those that follow
something (request watch, demo). An error is {\"error\":{reason,message,next_step,correlation_id,exit}},
null where there is none. Only exec leaves stdout to its command: its events and errors go to
stderr, one JSON value a line. An empty environment variable is an unset one.";

/// Options of every command.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Print one JSON value to stdout instead of text, also for an error; commands that follow something print one a line
    #[arg(long, global = true)]
    json: bool,
    /// The broker's external URL [default: the development broker's]
    #[arg(long, global = true, env = "DIPYLON_URL", value_name = "URL")]
    url: Option<String>,
    /// Directory of the development broker [default: ~/.dipylon/dev]
    #[arg(long, global = true, env = "DIPYLON_DEV", value_name = "DIR")]
    dev_dir: Option<PathBuf>,
    /// Certificate authorities (PEM) trusted for the broker [default: the system's]
    #[arg(long, global = true, env = "DIPYLON_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Connect to the broker's Unix socket instead; proofs still name the URL
    #[arg(long, global = true, env = "DIPYLON_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Allow http:// to another host: evidence, tokens and codes then cross the network unencrypted
    #[arg(long, global = true, env = "DIPYLON_ALLOW_PLAIN_HTTP", value_parser = FalseyValueParser::new())]
    allow_plain_http: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker
    Serve(serve::ServeArgs),
    /// Run a demonstration: a broker, an agent, approvers and a resource server on this machine
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    /// Open, keep alive and complete tasks (agents); list and end them (operators)
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Request and present tokens (agents), introspect and consume them (validators), list and revoke them (operators)
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Run a command with a token for one approved action, revoked when the command ends (agents)
    Exec(Box<exec::ExecArgs>),
    /// List, show, watch, approve, deny (approvers) and cancel (agents) access requests
    #[command(subcommand)]
    Request(request::RequestCommand),
    /// Short form of 'request list'
    Inbox(inbox::ListRequestsArgs),
    /// Short form of 'request show'
    Show(inbox::ShowRequestArgs),
    /// Short form of 'request approve'
    Approve(vote::VoteArgs),
    /// Short form of 'request deny'
    Deny(vote::VoteArgs),
    /// Check, apply, compare, export and roll back policy bundles, list their rules (operators); auditors read them
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// List, show, suspend and resume agents (operators)
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// Invite people to enrol passkeys, list and revoke their keys (operators)
    #[command(subcommand)]
    Approver(approver::ApproverCommand),
    /// Emergency stop for everything, an agent, an owner's agents or an action; without a scope, list the freezes (operators)
    Freeze(freeze::FreezeArgs),
    /// Lift a freeze; ended tasks and tokens stay ended (operators)
    Unfreeze(freeze::UnfreezeArgs),
    /// List, set and clear the named facts that rules read, such as a change freeze (operators); auditors list them
    #[command(subcommand)]
    Fact(fact::FactCommand),
    /// Explain a decision, access request, task, token or refused call by its id (operators, auditors)
    Explain(explain::ExplainArgs),
    /// Get the signed receipt of a token (operators, auditors), and verify one without the broker
    Receipt(receipt::ReceiptArgs),
    /// Check a configuration file, or show the effective settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Check the configuration, keys, journal, policy and running broker, with advice for each problem
    Doctor(doctor::DoctorArgs),
    /// Verify a journal without its broker
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Bring back, on the broker's host, what no call can bring back; the broker must be stopped
    #[command(subcommand)]
    Recover(recover::RecoverCommand),
    /// Create and show keys of people and services
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Development helpers: test SVIDs and test trust domains
    #[command(subcommand)]
    Dev(dev::DevCommand),
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoAgent(demo::AgentChild),
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoApprover(demo::PersonChild),
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoOperator(demo::PersonChild),
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoResource(demo::ResourceChild),
}

/// Parses the arguments, of which the first is the program's name, and runs the command to its end.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let Cli { common, command } = match Cli::from_arguments(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let output = output_for_unparsed(&args);
            let code = output.print_clap(&error);
            return output.finish(code);
        }
    };
    let errors_to = match &command {
        Command::Exec(_) => ErrorStream::Stderr,
        _ => ErrorStream::Stdout,
    };
    let output = Output::new(common.json, errors_to);
    let result = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let result = runtime.block_on(call(&common, &output, command));
            // A thread that still waits for a terminal must not keep the program from exiting.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(CliError::failed(format!(
            "cannot start the async runtime: {error}"
        ))),
    };
    let code = result.unwrap_or_else(|error| output.print_error(&error));
    output.finish(code)
}

/// An empty environment variable is an unset one, for every option.
fn without_empty_env(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(Resettable::Reset),
            false => arg,
        })
        .mut_subcommands(without_empty_env)
}

/// The output for arguments that clap refused: --json counts wherever it stands before `--`.
fn output_for_unparsed(args: &[OsString]) -> Output {
    let own: Vec<&OsString> = args.iter().skip(1).take_while(|arg| *arg != "--").collect();
    let json = own.iter().any(|arg| *arg == "--json");
    let command = Cli::command();
    let takes_value = |option: &str| {
        let mut options = command.get_arguments();
        options.any(|arg| {
            arg.get_action().takes_values() && arg.get_long() == option.strip_prefix("--")
        })
    };
    let mut words = own.iter().filter_map(|arg| arg.to_str());
    let mut verb = None;
    while let Some(word) = words.next() {
        if takes_value(word) {
            words.next();
        } else if !word.starts_with('-') {
            verb = Some(word);
            break;
        }
    }
    let errors_to = match verb {
        Some("exec") => ErrorStream::Stderr,
        Some(_) | None => ErrorStream::Stdout,
    };
    Output::new(json, errors_to)
}

async fn call(common: &Common, output: &Output, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Serve(command) => serve::run(common, output, command).await,
        #[cfg(feature = "demo")]
        Command::Demo(command) => demo::run(output, command).await,
        Command::Task(command) => task::run(common, output, command).await,
        Command::Token(command) => token::run(common, output, command).await,
        Command::Exec(command) => exec::run(common, *command).await,
        Command::Request(command) => request::run(common, output, command).await,
        Command::Inbox(command) => inbox::list(common, output, command).await,
        Command::Show(command) => inbox::show(common, output, command).await,
        Command::Approve(command) => {
            vote::run(common, output, command, crate::model::Verdict::Approve).await
        }
        Command::Deny(command) => {
            vote::run(common, output, command, crate::model::Verdict::Deny).await
        }
        Command::Policy(command) => policy::run(common, output, command).await,
        Command::Agent(command) => agent::run(common, output, command).await,
        Command::Approver(command) => approver::run(common, output, command).await,
        Command::Freeze(command) => freeze::freeze(common, output, command).await,
        Command::Unfreeze(command) => freeze::unfreeze(common, output, command).await,
        Command::Fact(command) => fact::run(common, output, command).await,
        Command::Explain(command) => explain::run(common, output, command).await,
        Command::Receipt(command) => receipt::run(common, output, command).await,
        Command::Audit(command) => audit::run(common, output, command),
        Command::Recover(command) => recover::run(common, output, command).await,
        Command::Config(command) => config::run(common, output, command),
        Command::Doctor(command) => doctor::run(common, output, command).await,
        Command::Key(command) => key::run(output, command),
        Command::Dev(command) => dev::run(common, output, command),
        #[cfg(feature = "demo")]
        Command::DemoAgent(child) => demo::agent(child).await,
        #[cfg(feature = "demo")]
        Command::DemoApprover(child) => demo::person(child).await,
        #[cfg(feature = "demo")]
        Command::DemoOperator(child) => demo::person(child).await,
        #[cfg(feature = "demo")]
        Command::DemoResource(child) => demo::resource(child).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_debug_assert() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        for exit in Exit::ALL {
            let line = format!("{:>2}  {}", exit.number(), exit.text());
            assert!(help.contains(&line), "{line}");
        }
        assert!(
            !help.contains("demo-agent"),
            "internal commands of the demo are hidden"
        );
    }

    /// Random ids in base64url begin with `-` once in sixty-four.
    #[test]
    fn random_ids_are_values_and_not_options() {
        let request = [
            "token",
            "request",
            "--action=case.read",
            "--target=Case::INC-8841",
            "--audience=https://cases.soc.example",
            "--idempotency-key",
            "-xq2",
        ];
        let thumbprint = format!("-{}", "A".repeat(42));
        let revoke = ["approver", "revoke", "maria", "--only", thumbprint.as_str()];
        for args in [request.as_slice(), revoke.as_slice()] {
            let args = std::iter::once("dipylon").chain(args.iter().copied());
            if let Err(error) = Cli::try_parse_from(args) {
                panic!("{error}");
            }
        }
    }
}
