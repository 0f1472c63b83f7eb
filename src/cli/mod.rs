//! The command line: one file for each noun.
//!
//! In: arguments, the environment, files that the caller names. Out: short text or one JSON value on stdout, errors on
//! stderr, an exit code for each kind of answer. Trusts whoever runs it with their own keys.
//! Refuses: to sign a vote that says anything else than what it printed; a development broker beyond loopback.
//! Never: prints a private key or evidence it did not make, or a token unless asked to. What others wrote is printed with
//! its invisible characters made visible.

mod agent;
mod approver;
mod at_console;
mod audit;
mod bundle;
mod card;
mod checkup;
mod config;
mod demo;
mod dev;
mod doctor;
mod exec;
mod explain;
mod failure;
mod freeze;
mod inbox;
mod key;
mod net;
mod notify;
mod parse;
mod policy;
mod probe;
mod say;
mod serve;
mod shapes;
mod store;
mod task;
mod token;
mod vote;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::model::Exit;
use failure::Failure;
use say::Say;

/// Just-in-time credentials for AI agents and other workloads: one action, one short-lived token, two gates.
#[derive(Debug, Parser)]
#[command(name = "dipylon", version, after_help = after_help(), max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// What stands below the help: how a verb ends, and what to begin with.
fn after_help() -> String {
    let mut text = "Exit codes:\n".to_owned();
    for exit in Exit::ALL {
        text.push_str(&format!("  {:>2}  {}\n", exit.number(), exit.text()));
    }
    text.push_str("\nTry it:          dipylon demo\nLook around:     dipylon serve --dev");
    text
}

/// What every verb takes.
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
enum Verb {
    /// Run a broker
    Serve(serve::Serve),
    /// See it all work: a broker, an agent, approvers and a resource server, talking over sockets
    Demo(demo::Demo),
    /// Open, show and complete tasks (agents); end one (operators)
    #[command(subcommand)]
    Task(task::Task),
    /// Ask for a token (agents), look one up (validators)
    #[command(subcommand)]
    Token(token::Token),
    /// Run a command that may do exactly one approved thing, and nothing after (agents)
    Exec(Box<exec::Exec>),
    /// List what waits for people
    Inbox(inbox::Inbox),
    /// Show one access request: who asks for what, and why
    Show(inbox::Show),
    /// Say yes to an access request
    Approve(vote::Vote),
    /// Say no to an access request
    Deny(vote::Vote),
    /// Put rules, agents and people in force (operators)
    #[command(subcommand)]
    Policy(policy::Policy),
    /// List agents and how they stand; take one out of service, or back into it (operators)
    #[command(subcommand)]
    Agent(agent::Agent),
    /// Invite people to passkeys, list their keys, make keys count no more (operators)
    #[command(subcommand)]
    Approver(approver::Approver),
    /// Stop everything, an agent, an owner's agents or an action; without a scope, list what is frozen (operators)
    Freeze(freeze::Freeze),
    /// Lift a freeze; nothing that ended comes back (operators)
    Unfreeze(freeze::Unfreeze),
    /// Say why: a decision, an access request, a task, a token or a refused call, by its id (operators, auditors)
    Explain(explain::Explain),
    /// Check a configuration, or show what is in effect
    #[command(subcommand)]
    Config(config::Config),
    /// Look at everything an operator would look at, and say what to do
    Doctor(doctor::Doctor),
    /// Verify a journal without its broker
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Make a key for a person or a service
    #[command(subcommand)]
    Key(key::Key),
    /// Help for development: evidence without a SPIFFE agent
    #[command(subcommand)]
    Dev(dev::Dev),
    #[command(hide = true)]
    DemoAgent(demo::AgentChild),
    #[command(hide = true)]
    DemoApprover(demo::PersonChild),
    #[command(hide = true)]
    DemoOperator(demo::PersonChild),
    #[command(hide = true)]
    DemoResource(demo::ResourceChild),
}

/// Runs a verb to its end.
pub fn run(cli: Cli) -> ExitCode {
    let Cli { common, verb } = cli;
    let say = Say::new(common.json);
    let done = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let done = runtime.block_on(call(&common, &say, verb));
            // Nothing that still runs, such as a thread waiting for a terminal, keeps the program from ending.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(Failure::failed(format!("no runtime: {error}"))),
    };
    match done {
        Ok(code) => code,
        Err(failure) => say.failure(&failure),
    }
}

async fn call(common: &Common, say: &Say, verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Serve(verb) => serve::run(common, say, verb).await,
        Verb::Demo(verb) => demo::run(say, verb).await,
        Verb::Task(verb) => task::run(common, say, verb).await,
        Verb::Token(verb) => token::run(common, say, verb).await,
        Verb::Exec(verb) => exec::run(common, *verb).await,
        Verb::Inbox(verb) => inbox::list(common, say, verb).await,
        Verb::Show(verb) => inbox::show(common, say, verb).await,
        Verb::Approve(verb) => vote::run(common, say, verb, crate::model::Verdict::Approve).await,
        Verb::Deny(verb) => vote::run(common, say, verb, crate::model::Verdict::Deny).await,
        Verb::Policy(verb) => policy::run(common, say, verb).await,
        Verb::Agent(verb) => agent::run(common, say, verb).await,
        Verb::Approver(verb) => approver::run(common, say, verb).await,
        Verb::Freeze(verb) => freeze::freeze(common, say, verb).await,
        Verb::Unfreeze(verb) => freeze::unfreeze(common, say, verb).await,
        Verb::Explain(verb) => explain::run(common, say, verb).await,
        Verb::Audit(verb) => audit::run(say, verb),
        Verb::Config(verb) => config::run(common, say, verb),
        Verb::Doctor(verb) => doctor::run(common, say, verb).await,
        Verb::Key(verb) => key::run(say, verb),
        Verb::Dev(verb) => dev::run(common, say, verb),
        Verb::DemoAgent(child) => demo::agent(child).await,
        Verb::DemoApprover(child) => demo::person(child).await,
        Verb::DemoOperator(child) => demo::person(child).await,
        Verb::DemoResource(child) => demo::resource(child).await,
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
