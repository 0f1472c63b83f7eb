//! The command line: one file for each noun.
//!
//! In: arguments, the environment, files that the caller names. Out: short text or one JSON value on stdout, errors on
//! stderr, an exit code for each kind of answer. Trusts whoever runs it with their own keys.
//! Refuses: to sign a vote that says anything else than what it printed; a development broker beyond loopback.
//! Never: prints a private key or evidence it did not make, or a token unless asked to. What others wrote is printed with
//! its invisible characters made visible.

mod agent;
mod approver;
mod console_vote;
mod audit;
mod policy_dir;
mod card;
mod config_checks;
mod config;
#[cfg(feature = "demo")]
mod demo;
mod dev;
mod doctor;
mod exec;
mod explain;
mod error;
mod files;
mod freeze;
mod inbox;
mod key;
mod connect;
mod sd_notify;
mod parse;
mod policy;
mod http_client;
mod output;
mod serve;
mod shell;
mod render;
mod task_store;
mod task;
mod token;
mod vote;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::model::Exit;
use error::CliError;
use output::Output;

/// Just-in-time credentials for AI agents and other workloads: one action, one short-lived token, two gates.
#[derive(Debug, Parser)]
#[command(name = "dipylon", version, after_help = after_help(), max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What stands below the help: how a command ends, and what to begin with.
fn after_help() -> String {
    let mut text = "Exit codes:\n".to_owned();
    for exit in Exit::ALL {
        text.push_str(&format!("  {:>2}  {}\n", exit.number(), exit.text()));
    }
    text.push_str("\nTry it:          dipylon demo\nLook around:     dipylon serve --dev");
    text
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    json: bool,
    /// The broker's external URL; without it, the development broker's
    #[arg(long, global = true, env = "DIPYLON_URL", value_name = "URL")]
    url: Option<String>,
    /// Where the development broker keeps its configuration and keys
    #[arg(long, global = true, env = "DIPYLON_DEV", value_name = "DIR")]
    dev_dir: Option<PathBuf>,
    /// Know an https broker by the authorities in this PEM file, instead of the operating system's
    #[arg(long, global = true, env = "DIPYLON_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Reach the broker through its Unix socket; proofs name the URL all the same
    #[arg(long, global = true, env = "DIPYLON_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker
    Serve(serve::ServeArgs),
    /// See it all work: a broker, an agent, approvers and a resource server, talking over sockets
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    /// Open, show and complete tasks (agents); end one (operators)
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Ask for a token (agents), look one up (validators)
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Run a command that may do exactly one approved thing, and nothing after (agents)
    Exec(Box<exec::ExecArgs>),
    /// List what waits for people
    Inbox(inbox::ListRequestsArgs),
    /// Show one access request: who asks for what, and why
    Show(inbox::ShowRequestArgs),
    /// Output yes to an access request
    Approve(vote::VoteArgs),
    /// Output no to an access request
    Deny(vote::VoteArgs),
    /// Put rules, agents and people in force (operators)
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// List agents and how they stand; take one out of service, or back into it (operators)
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// Invite people to passkeys, list their keys, make keys count no more (operators)
    #[command(subcommand)]
    Approver(approver::ApproverCommand),
    /// Stop everything, an agent, an owner's agents or an action; without a scope, list what is frozen (operators)
    Freeze(freeze::FreezeArgs),
    /// Lift a freeze; nothing that ended comes back (operators)
    Unfreeze(freeze::UnfreezeArgs),
    /// Output why: a decision, an access request, a task, a token or a refused call, by its id (operators, auditors)
    Explain(explain::ExplainArgs),
    /// Check a configuration, or show what is in effect
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look at everything an operator would look at, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Verify a journal without its broker
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Make a key for a person or a service
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Help for development: evidence without a SPIFFE agent
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

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let Cli { common, command } = cli;
    let output = Output::new(common.json);
    let done = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let done = runtime.block_on(call(&common, &output, command));
            // Nothing that still runs, such as a thread waiting for a terminal, keeps the program from ending.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(CliError::failed(format!("no runtime: {error}"))),
    };
    match done {
        Ok(code) => code,
        Err(error) => output.print_error(&error),
    }
}

async fn call(common: &Common, output: &Output, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Serve(command) => serve::run(common, output, command).await,
        #[cfg(feature = "demo")]
        Command::Demo(command) => demo::run(output, command).await,
        Command::Task(command) => task::run(common, output, command).await,
        Command::Token(command) => token::run(common, output, command).await,
        Command::Exec(command) => exec::run(common, *command).await,
        Command::Inbox(command) => inbox::list(common, output, command).await,
        Command::Show(command) => inbox::show(common, output, command).await,
        Command::Approve(command) => vote::run(common, output, command, crate::model::Verdict::Approve).await,
        Command::Deny(command) => vote::run(common, output, command, crate::model::Verdict::Deny).await,
        Command::Policy(command) => policy::run(common, output, command).await,
        Command::Agent(command) => agent::run(common, output, command).await,
        Command::Approver(command) => approver::run(common, output, command).await,
        Command::Freeze(command) => freeze::freeze(common, output, command).await,
        Command::Unfreeze(command) => freeze::unfreeze(common, output, command).await,
        Command::Explain(command) => explain::run(common, output, command).await,
        Command::Audit(command) => audit::run(output, command),
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
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        for exit in Exit::ALL {
            let line = format!("{:>2}  {}", exit.number(), exit.text());
            assert!(help.contains(&line), "{line}");
        }
        assert!(
            !help.contains("demo-agent"),
            "children of the demo are not for people"
        );
    }
}
