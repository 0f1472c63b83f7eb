//! Arguments of `exec`, their help, and the command that resumes a saved access request.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rustix::process::Signal;

use super::delivery::DeliveryMode;
use super::delivery_options::DeliveryOptions;
use crate::cli::parse::{self, NamedParam};
use crate::cli::task_store::EvidenceArgs;
use crate::cli::{Common, shell};
use crate::model::{AccessRequestId, ActionName, Audience, IdempotencyKey, Target};

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(in crate::cli) struct ExecArgs {
    /// The action, by its name in the policy's schema
    #[arg(long, value_parser = ActionName::parse, required_unless_present_any = ["resume", "cancel"])]
    pub(super) action: Option<ActionName>,
    /// The resource the action applies to
    #[arg(long, value_name = "TYPE::ID", value_parser = parse::target, required_unless_present_any = ["resume", "cancel"])]
    pub(super) target: Option<Target>,
    /// A parameter: name=value, or name:=JSON for sets and records. The command line is visible to all users of this machine:
    /// pass a sensitive value as name=@FILE, name=@- (stdin) or name=@env:VARIABLE
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse::param)]
    pub(super) params: Vec<NamedParam>,
    /// The resource server that performs the action
    #[arg(long, value_name = "URI", value_parser = Audience::parse, required_unless_present_any = ["resume", "cancel"])]
    pub(super) audience: Option<Audience>,
    /// Requested lifetime of the token
    #[arg(long, default_value = "5m", value_parser = parse::seconds)]
    pub(super) ttl: u32,
    /// Reason shown to approvers as unverified; policy rules never see it
    #[arg(long, default_value = "")]
    pub(super) reason: String,
    /// Purpose of the task [default: the reason, or else the command's name]
    #[arg(long)]
    pub(super) purpose: Option<String>,
    /// Longest duration of the task; the broker may shorten it
    #[arg(long, default_value = "1h", value_parser = parse::seconds)]
    pub(super) max_duration: u32,
    /// End the task when this program sends no heartbeat for this long; not with --wait or --no-wait, whose task another
    /// process may resume [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse::seconds, conflicts_with_all = ["wait", "no_wait"])]
    pub(super) heartbeat: Option<u32>,
    /// Wait this long for approvers, then exit with 111 and print the command that resumes; the access request goes on waiting
    /// [default: until the access request expires]
    #[arg(long, value_parser = parse::seconds)]
    pub(super) wait: Option<u32>,
    /// If approval is needed, do not wait: exit with 111 and print the command that resumes
    #[arg(long, conflicts_with = "wait")]
    pub(super) no_wait: bool,
    /// Resume the access request of an earlier --wait or --no-wait
    #[arg(
        long, value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse,
        conflicts_with_all = ["action", "target", "params", "audience", "ttl", "reason", "purpose", "max_duration", "heartbeat", "task_key", "idempotency_key"]
    )]
    pub(super) resume: Option<AccessRequestId>,
    /// Cancel the access request of an earlier --wait or --no-wait and end its task; no command runs
    #[arg(
        long, value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse,
        conflicts_with_all = ["resume", "action", "target", "params", "audience", "ttl", "reason", "purpose", "max_duration", "heartbeat", "wait", "no_wait", "task_key", "idempotency_key", "command", "end_signal", "deliver", "audience_url", "audience_ca", "insecure_audience", "forward_headers"]
    )]
    pub(super) cancel: Option<AccessRequestId>,
    /// Execute what an advisory agent recommended to this agent and people approved: the access request, which is for exactly this
    /// action ('dipylon request recommended' lists them)
    #[arg(long, value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse, conflicts_with_all = ["resume", "cancel"])]
    pub(super) recommendation: Option<AccessRequestId>,
    /// Idempotency key of the token; with --task-key also of the task, so that a repeated command gets the same task and token
    /// [default: a random one]
    #[arg(long, value_name = "KEY", value_parser = IdempotencyKey::parse)]
    pub(super) idempotency_key: Option<IdempotencyKey>,
    /// The signal for the command when its task or token is ended early
    #[arg(long, value_enum, default_value_t)]
    pub(super) end_signal: EndSignal,
    #[command(flatten)]
    pub(super) delivery: DeliveryOptions,
    /// The task's private key, such as the one the agent is pinned to; never given to the command [default: a new key]
    #[arg(long, value_name = "FILE")]
    pub(super) task_key: Option<PathBuf>,
    #[command(flatten)]
    pub(super) evidence: EvidenceArgs,
    /// The command and its arguments
    #[arg(last = true, required_unless_present = "cancel", value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

/// The signal that tells the command that its token has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum EndSignal {
    #[default]
    Term,
    Int,
    Hup,
    Kill,
    /// No signal: the command learns it from the proxy's 403 alone
    None,
}

impl EndSignal {
    pub(super) const fn signal(self) -> Option<Signal> {
        match self {
            Self::Term => Some(Signal::TERM),
            Self::Int => Some(Signal::INT),
            Self::Hup => Some(Signal::HUP),
            Self::Kill => Some(Signal::KILL),
            Self::None => None,
        }
    }
}

const HELP: &str = "\
How the command uses the token (--deliver):
  proxy   DIPYLON_PROXY_URL is a secret URL on loopback, served to this user's processes
          only (Linux; on other systems any process that knows the URL: keep it off command
          lines, which all users can read). Requests below it go to the audience with the
          token and a DPoP proof (RFC 9449) each, and to no other server.
          Headers that describe the request pass (Accept, Content-Type, If-Match, Range, …),
          others with --forward-header; Authorization, DPoP, cookies, Referer and other
          identity headers never pass. Redirects are passed through. The token never
          reaches the command. NO_PROXY and no_proxy gain this host, so that a proxy of the
          environment does not get these requests.
  socket  DIPYLON_SIGNER_SOCKET takes lines {\"htm\":\"POST\",\"htu\":\"URL\",\"nonce\":\"…\"}
          (nonce is optional) and answers {\"authorization\":\"DPoP …\",\"dpop\":\"…\"}, for
          URLs of the audience only.
  file    DIPYLON_TOKEN_FILE, and fd: DIPYLON_TOKEN_FD, hold JSON {token, token_type, jti,
          jkt, expires_at, uses, action, audience_url, openings, signer_socket}. The token
          cannot be used without its key: the signer makes the proofs.
  env     refused: only a bearer token could be used from an environment variable, and every
          token is bound to a key.
DIPYLON_EXEC_TASK is the task's id; DIPYLON_OPENINGS_FILE holds the salts of sensitive parameters.

A command that can get the agent's evidence itself can act as the agent and request every
action the agent may. Removing SPIFFE_ENDPOINT_SOCKET, DIPYLON_KEY and DIPYLON_TASK from its
environment does not prevent that. These do: evidence that another user fetches and passes on stdin (--evidence -),
a SPIFFE agent that attests this program and not only its user, or a pinned key (jkt in
agents.toml) that the command cannot read: --task-key may be a pipe, such as
<(sudo -u keeper cat key.pem).

When the command ends, for any reason, the task is completed and its token is revoked. If this
program is killed, the task ends when its heartbeat is missed: the command may go on, its token
does not. With --wait and --no-wait there is no heartbeat: a request that is not resumed ends at
its deadline. A broker that restarts does not end the command.

When the task or its token is ended while the command runs (by an operator, a freeze, a change
of the rules, the task's deadline), requests in flight are broken off, new ones get 403 with the
reason TOKEN_ENDED, the command gets --end-signal, and the exit code is 117. A token that only
expires ends nothing early: new requests get 403 TOKEN_EXPIRED, and the command goes on. While
the broker has not answered for the length of the heartbeat, the task may have ended unheard: new
requests get 503 TASK_UNCONFIRMED until it answers.

The command runs in its own process group and receives INT, TERM, HUP, QUIT, USR1, USR2, WINCH,
TSTP and CONT when this program does; in the foreground of a terminal it stays in the terminal's
group, so that it can read the terminal. Ctrl-C while waiting for approvers cancels the access
request and ends the task.

Exit codes: the command's own, or 128 + the signal that ended it. 110 to 120 are reserved: a
command that exits with one of them is reported as 1, with a line on stderr. If the command
never ran, or (117) its token was ended before it ended:
    2  usage error              113  quorum cannot be reached         117  ended early
  110  denied                   114  broker or audience unreachable   118  another failure
  111  waiting, can be resumed  115  conflict: request again          120  not authenticated
  112  approval timed out       116  rate limited or over quota
  126  not executable           127  not found

  dipylon exec --agent triage --action case.read --target Case::INC-8841 \\
               --audience https://cases.soc.example --audience-url http://127.0.0.1:8080 \\
               -- sh -c 'curl \"$DIPYLON_PROXY_URL/cases/INC-8841\"'";

impl ExecArgs {
    /// The command's name, for messages.
    pub(super) fn program(&self) -> String {
        let name = self.command.first();
        name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// Whether another process may resume the request: its task must outlive this one.
    pub(super) const fn may_be_resumed(&self) -> bool {
        self.no_wait || self.wait.is_some()
    }

    /// How long to wait for approvers, in seconds; `None`: until the access request expires.
    pub(super) const fn wait_s(&self) -> Option<u32> {
        match self.no_wait {
            true => Some(0),
            false => self.wait,
        }
    }

    /// The shell command that resumes an access request.
    pub(super) fn resume_command(&self, common: &Common, id: AccessRequestId) -> String {
        let mut words = vec![
            shell::program_name(),
            "exec".to_owned(),
            "--resume".to_owned(),
            id.to_string(),
        ];
        if common.allow_plain_http {
            words.push("--allow-plain-http".to_owned());
        }
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
        let mode = match self.delivery.mode() {
            DeliveryMode::Proxy | DeliveryMode::Env => None,
            DeliveryMode::Socket => Some("socket"),
            DeliveryMode::Fd => Some("fd"),
            DeliveryMode::File => Some("file"),
        };
        option("--deliver", mode.map(str::to_owned));
        option("--audience-url", self.delivery.audience_url.clone());
        let ca = self.delivery.audience_ca.as_ref();
        option("--audience-ca", ca.map(|file| file.display().to_string()));
        if self.end_signal != EndSignal::default() {
            let name = self.end_signal.to_possible_value();
            let name = name.map(|value| value.get_name().to_owned());
            option("--end-signal", name);
        }
        if self.delivery.insecure_audience {
            words.push("--insecure-audience".to_owned());
        }
        for name in &self.delivery.forward_headers {
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
