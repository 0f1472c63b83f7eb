//! `exec`: run a command that may do exactly one approved thing, and nothing after.
//!
//! In: one action, a command, and where evidence comes from. Out: the command's own output and exit code; on stderr, what
//! happened. One task is opened for the command and ended however the command ends.
//! Trusts: the command with the one action, and with nothing else.
//! Refuses: to ask anybody for a command that is not there; to hand over the key of a token.
//! Never: writes to stdout, follows where the command would rather go, or leaves a token alive behind it.

mod plan;
mod delivery;
mod headers;
mod run;
mod saved;
mod delivery_options;
mod upstream;
mod peer;
mod token_holder;
mod program;
mod proxy;
mod signer;
mod events;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Common;
use super::error::CliError;
use super::parse::{self, NamedParam};
use super::shell;
use super::task_store::EvidenceArgs;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, ActionName, Audience, Target, TaskOutcome};
use plan::ExecPlan;
use delivery::DeliveryMode;
use run::{AskResult, check_reachable};
use delivery_options::DeliveryOptions;
use program::Signals;
use events::EventPrinter;

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct ExecArgs {
    /// What to do, as the catalogue calls it
    #[arg(long, value_parser = ActionName::parse, required_unless_present = "request")]
    action: Option<ActionName>,
    /// What it is done to
    #[arg(long, value_name = "TYPE::ID", value_parser = parse::target, required_unless_present = "request")]
    target: Option<Target>,
    /// With what: name=value, or name:=JSON for sets and records
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse::param)]
    params: Vec<NamedParam>,
    /// The resource server that will do it
    #[arg(long, value_name = "URI", value_parser = Audience::parse, required_unless_present = "request")]
    audience: Option<Audience>,
    /// How long the token should live
    #[arg(long, default_value = "5m", value_parser = parse::seconds)]
    ttl: u32,
    /// Why, in your words; people see it as unverified, rules not at all
    #[arg(long, default_value = "")]
    reason: String,
    /// What the task is for, in your words [default: the reason, or else the command's name]
    #[arg(long)]
    purpose: Option<String>,
    /// How long the task may run; the broker clamps it
    #[arg(long, default_value = "1h", value_parser = parse::seconds)]
    max_duration: u32,
    /// End the task when this long passes without a sign of life of this program; not with --no-wait
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse::seconds)]
    heartbeat: u32,
    /// How long to wait if people must decide
    #[arg(long, default_value = "15m", value_parser = parse::seconds)]
    wait: u32,
    /// If people must decide, do not wait: exit with 11 and say how to go on
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// Go on with what an earlier --no-wait asked for
    #[arg(
        long, value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse,
        conflicts_with_all = ["action", "target", "params", "audience", "ttl", "reason", "purpose", "max_duration", "heartbeat", "task_key"]
    )]
    request: Option<AccessRequestId>,
    #[command(flatten)]
    means: DeliveryOptions,
    /// The key that the agent is pinned to, or any other; never given to the command [default: one made for the task]
    #[arg(long, value_name = "FILE")]
    task_key: Option<PathBuf>,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

const HELP: &str = "\
The command gets one mode to do the one action at the one audience:
  proxy   DIPYLON_PROXY_URL is a secret URL on loopback, served to this user's processes
          only (Linux; elsewhere whoever knows the URL: keep it off command lines, which
          all users can read). Requests below it go to the audience with the token and a
          proof (RFC 9449) of their own, and nowhere else.
          Headers that say what is asked pass (Accept, Content-Type, If-Match, Range, …),
          others with --forward-header; Authorization, DPoP, cookies, Referer and other
          identities never do. Redirects are passed through. The token never reaches the
          command.
  socket  DIPYLON_SIGNER_SOCKET takes lines {\"htm\":\"POST\",\"htu\":\"URL\",\"nonce\":\"…\"}
          (nonce if there is one) and answers {\"authorization\":\"DPoP …\",\"dpop\":\"…\"}, for
          URLs of the audience only.
  file    DIPYLON_TOKEN_FILE, and fd: DIPYLON_TOKEN_FD, hold JSON {token, token_type, jti,
          jkt, expires_at, uses, action, audience_url, openings, signer_socket}. The token
          is worth nothing without its key: proofs come from the signer.
  env     refused: only a bearer token is worth anything in an environment, and every token
          is bound to a key.
DIPYLON_TASK is the task; DIPYLON_OPENINGS_FILE holds the salts of sensitive parameters.

A command that can itself get the agent's evidence is the agent, and may ask for all that the
agent may: from a file that it may read, or from a SPIFFE agent that answers it. That
SPIFFE_ENDPOINT_SOCKET and DIPYLON_KEY are taken out of its environment hides the mode and
closes nothing. What does: evidence that another user fetches and hands over on stdin
(--evidence -), a SPIFFE agent that attests this program and not only its user, or a pinned
key (jkt in agents.toml) that the command cannot read: --task-key may be a pipe, such as
<(sudo -u keeper cat key.pem).

When the command ends, however it ends, the task is completed and its token is dead. If this
program is killed, the task ends when its heartbeat is missed: the command may live on, its
token does not. With --no-wait there is no heartbeat: the deadline ends what nobody resumes.

The command runs in a process group of its own and is told INT, TERM, HUP, QUIT, USR1, USR2,
WINCH, TSTP and CONT as this program is; in the foreground of a terminal it stays in the
terminal's group, so that it can read the terminal. Ctrl-C while people decide takes the
access request back and ends the task.

Exit codes: the command's own, or 128 + the signal that ended it; for what never ran:
   2  not understood          13  too few people could say yes   20  gate 1 refused
  10  denied                  14  broker or audience is away    126  cannot be run
  11  waiting (--no-wait)     15  something changed: ask new   127  not found
  12  nobody decided in time  16  too many at once

  dipylon exec --agent triage --action case.read --target Case::INC-8841 \\
               --audience https://cases.soc.example --audience-url http://127.0.0.1:8080 \\
               -- sh -c 'curl \"$DIPYLON_PROXY_URL/cases/INC-8841\"'";

/// Runs it from the first question to the last word.
pub(super) async fn run(common: &Common, mut args: ExecArgs) -> Result<ExitCode, CliError> {
    let events = EventPrinter::new(common.json);
    if args.means.mode() == DeliveryMode::Env {
        return Err(delivery::not_bearer());
    }
    if !program::forbid_memory_access() {
        let text =
            "other processes of this user can read this one's memory, and the token's key in it";
        events.event("warning", text, json!({ "warning": "NOT_SHIELDED" }));
    }
    let program = args.program();
    if let Err(not) = program::find(
        args.command
            .first()
            .map_or(OsStr::new(""), OsString::as_os_str),
    ) {
        events.not_run(&program, not);
        return Ok(ExitCode::from(not.code()));
    }
    let mut signals = Signals::listen()?;
    let wait = (!args.no_wait).then_some(args.wait);
    args.means = args.means.absolute_paths()?;
    let begun = match args.request {
        Some(id) => ExecPlan::resume(common, &mut args, id)?,
        None => ExecPlan::new(common, &args)?,
    };
    // Before anybody is asked: what was kept may have been changed since.
    args.means.forwarded()?;
    let upstream = args.means.upstream(&begun.order().action.audience)?;
    if upstream.is_open() {
        let text = format!(
            "{} is spoken to over plain http: everyone on the mode reads what is sent, and changes it",
            escape_invisible(&upstream.base_url())
        );
        events.event("warning", &text, json!({ "warning": "INSECURE_AUDIENCE" }));
    }
    let opening = async {
        if matches!(begun, ExecPlan::Resume { .. }) {
            // People may have said yes, and the token that is made of it is for now: asking again comes before wasting it.
            check_reachable(&upstream).await?;
        }
        begun.open(events).await
    };
    let job = tokio::select! {
        job = opening => job?,
        signal = signals.next() => return Ok(ExitCode::from(program::signal_code(signal.as_raw()))),
    };
    let alive = job.keep_alive();
    let (outcome, code) = match job.ask(wait, &upstream, &program, &mut signals).await {
        Ok(AskResult::Token(token)) => job.run(&args, *token, upstream, &alive, &mut signals).await,
        Ok(AskResult::Pending(pending)) => return job.later(common, &args, &pending).await,
        Ok(AskResult::No(code)) => (TaskOutcome::Abandoned, code),
        // Who comes back to ask may come back once more.
        Err(error) if job.later.is_some() && error.retryable() => return Err(error.into()),
        Err(error) => {
            job.end(TaskOutcome::Abandoned, None).await;
            return Err(error.into());
        }
    };
    drop(alive);
    job.end(outcome, Some(code)).await;
    Ok(ExitCode::from(code))
}

impl ExecArgs {
    /// The command's name, as it is shown.
    fn program(&self) -> String {
        let name = self.command.first();
        name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The command that goes on with an access request.
    fn resume(&self, common: &Common, id: AccessRequestId) -> String {
        let mut words = vec![
            shell::program_name(),
            "exec".to_owned(),
            "--request".to_owned(),
            id.to_string(),
        ];
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.extend([name.to_owned(), shell::shell_quote(&value)]);
            }
        };
        option(
            "--ca",
            common.ca.as_ref().map(|file| file.display().to_string()),
        );
        let socket = common.socket.as_ref();
        option("--socket", socket.map(|path| path.display().to_string()));
        let mode = match self.means.mode() {
            DeliveryMode::Proxy | DeliveryMode::Env => None,
            DeliveryMode::Socket => Some("socket"),
            DeliveryMode::Fd => Some("fd"),
            DeliveryMode::File => Some("file"),
        };
        option("--deliver", mode.map(str::to_owned));
        option("--audience-url", self.means.audience_url.clone());
        let ca = self.means.audience_ca.as_ref();
        option("--audience-ca", ca.map(|file| file.display().to_string()));
        if self.means.insecure_audience {
            words.push("--insecure-audience".to_owned());
        }
        for name in &self.means.forward_headers {
            words.extend(["--forward-header".to_owned(), shell::shell_quote(name)]);
        }
        words.push("--".to_owned());
        words.extend(
            self.command
                .iter()
                .map(|word| shell::shell_quote(&word.to_string_lossy())),
        );
        words.join(" ")
    }
}
