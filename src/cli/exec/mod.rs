//! `exec`: run a command that may do exactly one approved thing, and nothing after.
//!
//! In: one action, a command, and where evidence comes from. Out: the command's own output and exit code; on stderr, what
//! happened. One task is opened for the command and ended however the command ends.
//! Trusts: the command with the one action, and with nothing else.
//! Refuses: to ask anybody for a command that is not there; to hand over the key of a token.
//! Never: writes to stdout, follows where the command would rather go, or leaves a token alive behind it.

mod deliver;
mod headers;
mod later;
mod origin;
mod peer;
mod present;
mod program;
mod proxy;
mod signer;
mod tell;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use hyper::header::HeaderName;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::failure::{Failure, failed};
use super::net;
use super::parse::{self, NamedParam};
use super::serve::{me, quoted};
use super::store::{self, EvidenceArgs, Kept, KeptEvidence};
use super::{Common, shapes};
use crate::client::{Agent, Error, OpenTask, Outcome, Pending, Task, Token, TokenOrder};
use crate::clock::Clock;
use crate::jose::SigningKey;
use crate::keys;
use crate::model::text::reveal;
use crate::model::{
    AccessRequestId, Action, ActionName, Audience, DeniedReason, Exit, Reason, Target, TaskOutcome,
    show_seconds,
};
use deliver::{Delivered, OURS, Way};
use later::Later;
use origin::{Origin, Where};
use present::Presenter;
use program::{Given, Signals};
use tell::Tell;

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Exec {
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
    means: Means,
    /// A header of the command's that the proxy passes too, beside those that say what is asked
    #[arg(long = "forward-header", value_name = "NAME", value_parser = headers::forwarded)]
    forward_headers: Vec<HeaderName>,
    /// The key that the agent is pinned to, or any other; never given to the command [default: one made for the task]
    #[arg(long, value_name = "FILE")]
    task_key: Option<PathBuf>,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// How the command comes to use the token, and where. With --request, what is not given is as it was given first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Means {
    /// How the command comes to use the token [default: proxy]
    #[arg(long, value_enum)]
    deliver: Option<Way>,
    /// Where the audience is really reached [default: the audience itself]
    #[arg(long, value_name = "URL")]
    audience_url: Option<String>,
    /// Certificate authorities (PEM) that the audience is checked by [default: the system's]
    #[arg(long, value_name = "FILE")]
    audience_ca: Option<PathBuf>,
    /// Accept an audience over plain http that is not on this machine
    #[arg(long)]
    insecure_audience: bool,
}

impl Means {
    fn way(&self) -> Way {
        self.deliver.unwrap_or(Way::Proxy)
    }

    /// These, and for what they leave open the earlier ones. That one place over http was accepted says nothing of another.
    fn or(self, earlier: Self) -> Self {
        let same_place = self.audience_url.is_none() || self.audience_url == earlier.audience_url;
        Self {
            deliver: self.deliver.or(earlier.deliver),
            insecure_audience: self.insecure_audience || (same_place && earlier.insecure_audience),
            audience_url: self.audience_url.or(earlier.audience_url),
            audience_ca: self.audience_ca.or(earlier.audience_ca),
        }
    }

    /// The same from whatever directory it is read.
    fn anywhere(&self) -> Result<Self, Failure> {
        let ca = self.audience_ca.as_ref();
        let whole = |file: &PathBuf| std::path::absolute(file).map_err(failed(file.display()));
        Ok(Self {
            audience_ca: ca.map(whole).transpose()?,
            ..self.clone()
        })
    }

    fn origin(&self, audience: &Audience) -> Result<Origin, Failure> {
        Origin::new(Where {
            url: self.audience_url.as_deref().unwrap_or(audience.as_str()),
            ca: self.audience_ca.as_deref(),
            insecure: self.insecure_audience,
        })
    }
}

const HELP: &str = "\
The command gets one way to do the one action at the one audience:
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
SPIFFE_ENDPOINT_SOCKET and DIPYLON_KEY are taken out of its environment hides the way and
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
  11  waiting (--no-wait)     15  something changed: ask anew   127  not found
  12  nobody decided in time  16  too many at once

  dipylon exec --agent triage --action case.read --target Case::INC-8841 \\
               --audience https://cases.soc.example --audience-url http://127.0.0.1:8080 \\
               -- sh -c 'curl \"$DIPYLON_PROXY_URL/cases/INC-8841\"'";

/// Longest that the end of a task is tried, in milliseconds.
const END_MS: i64 = 15_000;
const END_PAUSE_MS: u64 = 500;
/// Signs of life in the length of a heartbeat.
const BEATS: u64 = 3;

/// Runs it from the first question to the last word.
pub(super) async fn run(common: &Common, mut verb: Exec) -> Result<ExitCode, Failure> {
    let tell = Tell::new(common.json);
    if verb.means.way() == Way::Env {
        return Err(deliver::not_bearer());
    }
    if !program::shield() {
        let text =
            "other processes of this user can read this one's memory, and the token's key in it";
        tell.event("warning", text, json!({ "warning": "NOT_SHIELDED" }));
    }
    let program = verb.program();
    if let Err(not) = program::find(
        verb.command
            .first()
            .map_or(OsStr::new(""), OsString::as_os_str),
    ) {
        tell.not_run(&program, not);
        return Ok(ExitCode::from(not.code()));
    }
    let mut signals = Signals::listen()?;
    let wait = (!verb.no_wait).then_some(verb.wait);
    verb.means = verb.means.anywhere()?;
    let begun = match verb.request {
        Some(id) => Begun::again(common, &mut verb, id)?,
        None => Begun::anew(common, &verb)?,
    };
    let origin = verb.means.origin(&begun.order().action.audience)?;
    if origin.is_open() {
        let text = format!(
            "{} is spoken to over plain http: everyone on the way reads what is sent, and changes it",
            reveal(&origin.base_url())
        );
        tell.event("warning", &text, json!({ "warning": "INSECURE_AUDIENCE" }));
    }
    let opening = async {
        if matches!(begun, Begun::Again { .. }) {
            // People may have said yes, and the token that is made of it is for now: asking again comes before wasting it.
            reached(&origin).await?;
        }
        begun.open(tell).await
    };
    let job = tokio::select! {
        job = opening => job?,
        signal = signals.next() => return Ok(ExitCode::from(program::signal_code(signal.as_raw()))),
    };
    let alive = job.keep_alive();
    let (outcome, code) = match job.ask(wait, &origin, &program, &mut signals).await {
        Ok(Asked::Token(token)) => job.run(&verb, *token, origin, &alive, &mut signals).await,
        Ok(Asked::Pending(pending)) => return job.later(common, &verb, &pending).await,
        Ok(Asked::No(code)) => (TaskOutcome::Abandoned, code),
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

impl Exec {
    /// The command's name, as it is shown.
    fn program(&self) -> String {
        let name = self.command.first();
        name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The command that goes on with an access request.
    fn resume(&self, common: &Common, id: AccessRequestId) -> String {
        let mut words = vec![
            me(),
            "exec".to_owned(),
            "--request".to_owned(),
            id.to_string(),
        ];
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.extend([name.to_owned(), quoted(&value)]);
            }
        };
        option(
            "--ca",
            common.ca.as_ref().map(|file| file.display().to_string()),
        );
        let socket = common.socket.as_ref();
        option("--socket", socket.map(|path| path.display().to_string()));
        let way = match self.means.way() {
            Way::Proxy | Way::Env => None,
            Way::Socket => Some("socket"),
            Way::Fd => Some("fd"),
            Way::File => Some("file"),
        };
        option("--deliver", way.map(str::to_owned));
        option("--audience-url", self.means.audience_url.clone());
        let ca = self.means.audience_ca.as_ref();
        option("--audience-ca", ca.map(|file| file.display().to_string()));
        if self.means.insecure_audience {
            words.push("--insecure-audience".to_owned());
        }
        for name in &self.forward_headers {
            words.extend(["--forward-header".to_owned(), quoted(name.as_str())]);
        }
        words.push("--".to_owned());
        words.extend(
            self.command
                .iter()
                .map(|word| quoted(&word.to_string_lossy())),
        );
        words.join(" ")
    }
}

/// What will be asked, and of which task.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, and it lives until the task is open"
)]
enum Begun {
    /// A task to open.
    Anew {
        agent: Agent,
        opening: OpenTask,
        order: TokenOrder,
        keep: Keep,
    },
    /// A task that is open, and waited for people.
    Again {
        task: Box<Task>,
        order: TokenOrder,
        later: Later,
    },
}

/// What it takes to keep a task for another process: in memory, until it must be.
struct Keep {
    key: KeyKept,
    url: String,
    purpose: String,
    evidence: KeptEvidence,
}

/// What is kept of a task's key.
enum KeyKept {
    /// All of it: it was made for this task.
    Made(Zeroizing<Vec<u8>>),
    /// Where it is: it is the caller's own.
    At(PathBuf),
}

impl KeyKept {
    /// The caller's key, or a new one. What another process shall go on with must be a file that stays.
    fn read(given: Option<&Path>, stays: bool) -> Result<(SigningKey, Self), Failure> {
        let Some(path) = given else {
            let (key, pkcs8) = SigningKey::generate().map_err(Error::Key)?;
            return Ok((key, Self::Made(pkcs8)));
        };
        let at = if stays {
            path.canonicalize().map_err(failed(path.display()))?
        } else {
            path.to_owned()
        };
        Ok((keys::read(path)?, Self::At(at)))
    }
}

impl Begun {
    fn anew(common: &Common, verb: &Exec) -> Result<Self, Failure> {
        let (Some(action), Some(target), Some(audience)) =
            (&verb.action, &verb.target, &verb.audience)
        else {
            return Err(Failure::usage(
                "name one action: --action, --target and --audience",
            ));
        };
        let action = Action::new(
            action.clone(),
            audience.clone(),
            target.clone(),
            parse::params(verb.params.clone())?,
        )?;
        let purpose = match &verb.purpose {
            Some(purpose) => purpose.clone(),
            None if verb.reason.is_empty() => format!("run {}", verb.program()),
            None => verb.reason.clone(),
        };
        let endpoint = net::endpoint(common)?;
        let (source, evidence) = verb.evidence.source(common)?;
        let (key, kept) = KeyKept::read(verb.task_key.as_deref(), verb.no_wait)?;
        let keep = Keep {
            key: kept,
            url: endpoint.url().to_owned(),
            purpose: purpose.clone(),
            evidence,
        };
        Ok(Self::Anew {
            agent: Agent::new(endpoint, source, Some(Arc::new(key))),
            opening: OpenTask {
                purpose,
                max_duration_s: i64::from(verb.max_duration),
                request_id: None,
                // Nobody keeps a task alive that waits while no program runs.
                heartbeat_s: (!verb.no_wait).then_some(verb.heartbeat),
            },
            order: TokenOrder {
                action,
                ttl_s: i64::from(verb.ttl),
                reason: verb.reason.clone(),
                request_id: Some(format!("exec-{}", crate::client::random_name()?)),
                wait_s: 0,
            },
            keep,
        })
    }

    fn again(common: &Common, verb: &mut Exec, id: AccessRequestId) -> Result<Self, Failure> {
        let mut later = Later::find(id)?;
        verb.means = later.go_on_with(verb.means.clone()).clone();
        let (task, order) = later.resume(common, &verb.evidence)?;
        let task = if verb.evidence.given() {
            task.showing_evidence()
        } else {
            task
        };
        Ok(Self::Again {
            task: Box::new(task),
            order,
            later,
        })
    }

    fn order(&self) -> &TokenOrder {
        match self {
            Self::Anew { order, .. } | Self::Again { order, .. } => order,
        }
    }

    async fn open(self, tell: Tell) -> Result<Job, Failure> {
        let clock = Clock::system();
        match self {
            Self::Anew {
                agent,
                opening,
                order,
                keep,
            } => {
                let task = agent.open_task(&opening).await?;
                let seen = task.verification().cloned().unwrap_or_default();
                tell.event(
                    "verified",
                    &format!(
                        "{} by {}, {}",
                        reveal(&seen.subject),
                        reveal(&seen.evidence_kind),
                        task.id()
                    ),
                    json!({ "subject": seen.subject, "evidence_kind": seen.evidence_kind, "task": task.id() }),
                );
                Ok(Job {
                    tell,
                    clock,
                    task,
                    order,
                    keep: Some(keep),
                    heartbeat_s: opening.heartbeat_s,
                    later: None,
                })
            }
            Self::Again { task, order, later } => Ok(Job {
                tell,
                clock,
                task: *task,
                order,
                keep: None,
                heartbeat_s: None,
                later: Some(later),
            }),
        }
    }
}

/// A task for one command.
struct Job {
    tell: Tell,
    clock: Clock,
    task: Task,
    order: TokenOrder,
    keep: Option<Keep>,
    /// How long the task lives without a sign of life, in seconds; `None`: to its deadline.
    heartbeat_s: Option<u32>,
    /// What an earlier process kept of it.
    later: Option<Later>,
}

/// The signs of life of a task, until dropped; and why it ended, once it did.
struct Alive {
    over: watch::Receiver<Option<String>>,
    beating: JoinHandle<()>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// What came of asking.
enum Asked {
    Token(Box<Token>),
    /// People have not decided, and nobody waits.
    Pending(Box<Pending>),
    /// It will not run, and this is the code.
    No(u8),
}

impl Job {
    /// Keeps the task alive, where it has a lease: three times in a heartbeat, so that one may be lost. A broker that is
    /// away is asked again; one that says that the task is over is believed.
    fn keep_alive(&self) -> Alive {
        let (says, over) = watch::channel(None);
        let task = self.task.clone();
        let pause = self.heartbeat_s.map(|heartbeat_s| {
            Duration::from_millis(u64::from(heartbeat_s).saturating_mul(1_000) / BEATS)
        });
        let beating = tokio::spawn(async move {
            let Some(pause) = pause else { return };
            loop {
                tokio::time::sleep(pause).await;
                match task.keep_alive().await {
                    Ok(_) => {}
                    Err(error) if error.reason() == Some(Reason::TaskEnded) => {
                        says.send_replace(Some(error.to_string()));
                        return;
                    }
                    // The lease says how long this may go on.
                    Err(_) => {}
                }
            }
        });
        Alive { over, beating }
    }

    /// Asks, and waits for people as long as it was said.
    async fn ask(
        &self,
        wait_s: Option<u32>,
        origin: &Origin,
        program: &str,
        signals: &mut Signals,
    ) -> Result<Asked, Error> {
        let began = self.clock.now();
        let until = began.plus_secs(i64::from(wait_s.unwrap_or(0)));
        let mut waiting = None;
        let first = tokio::select! {
            outcome = self.task.request_token(&self.order) => outcome,
            signal = signals.next() => return Ok(self.stopped(signal, None).await),
        };
        let outcome = match first {
            Ok(Outcome::Pending(pending)) => {
                self.tell.step_up(&pending);
                if wait_s.is_none() {
                    return Ok(Asked::Pending(Box::new(pending)));
                }
                let id = pending.access_request_id();
                let reaching = tokio::select! {
                    reaching = reached(origin) => reaching,
                    signal = signals.next() => return Ok(self.stopped(signal, Some(id)).await),
                };
                if let Err(failure) = reaching {
                    return Ok(self.unreached(&failure, id).await);
                }
                waiting = Some(id);
                None
            }
            // A broker that is away is waited for like people are; one that says no is not.
            Err(error) if wait_s.is_some() && is_away(&error) => None,
            outcome => Some(outcome?),
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => {
                let text = format!(
                    "until {until} ({})",
                    show_seconds(until.since(began) / 1_000)
                );
                self.tell
                    .event("waiting", &text, json!({ "until": until.to_string() }));
                tokio::select! {
                    outcome = self.task.wait_for_token(&self.order, until) => outcome?,
                    signal = signals.next() => return Ok(self.stopped(signal, waiting).await),
                }
            }
        };
        Ok(match outcome {
            Outcome::Token(token) => {
                let by_people = waiting.is_some() || self.later.is_some();
                self.tell.given(&token, by_people, program);
                Asked::Token(Box::new(token))
            }
            Outcome::Denied(no) => {
                self.tell.denied(&no);
                let exit = no.known_reason().map_or(Exit::Denied, DeniedReason::exit);
                Asked::No(exit.number())
            }
            Outcome::Pending(pending) => {
                let id = pending.access_request_id();
                self.tell.event(
                    "expired",
                    &format!("nobody decided {id} in time; nothing was issued"),
                    json!({ "access_request": id }),
                );
                Asked::No(Exit::NobodyDecided.number())
            }
        })
    }

    /// Told to stop before anything ran: what waits is taken back. The end of the task would close it too; this says why.
    async fn stopped(&self, signal: Signal, waiting: Option<AccessRequestId>) -> Asked {
        if let Some(id) = waiting {
            self.take_back(id).await;
        }
        let what = waiting.map_or_else(String::new, |id| format!(", {id} is taken back"));
        let number = signal.as_raw();
        self.tell.event(
            "stopped",
            &format!("by signal {number}{what}"),
            json!({ "signal": number, "access_request": waiting }),
        );
        Asked::No(program::signal_code(number))
    }

    /// The audience is not there: nobody is asked for what could not be used.
    async fn unreached(&self, failure: &Failure, waiting: AccessRequestId) -> Asked {
        self.take_back(waiting).await;
        let next = failure.next.as_deref().unwrap_or_default();
        let text = format!("{}; {waiting} is taken back; {next}", failure.message);
        self.tell.event("failed", &text, failure.to_json());
        Asked::No(failure.exit.number())
    }

    async fn take_back(&self, waiting: AccessRequestId) {
        let bound = Duration::from_millis(END_MS.unsigned_abs());
        let _tried = tokio::time::timeout(bound, self.task.cancel(waiting)).await;
    }

    /// Runs the command with the token, and says how the task ends for it.
    async fn run(
        &self,
        verb: &Exec,
        token: Token,
        origin: Origin,
        alive: &Alive,
        signals: &mut Signals,
    ) -> (TaskOutcome, u8) {
        let presenter = Arc::new(Presenter::new(token, origin, self.clock.clone()));
        let ready = Delivered::ready(
            verb.means.way(),
            &presenter,
            &self.task.id().to_string(),
            &verb.forward_headers,
        )
        .await;
        let mut delivered = match ready {
            Ok(delivered) => delivered,
            Err(failure) => {
                self.tell
                    .event("failed", &failure.message, failure.to_json());
                return (TaskOutcome::Abandoned, failure.exit.number());
            }
        };
        let watching = tokio::spawn({
            let (presenter, mut over) = (presenter.clone(), alive.over.clone());
            let (tell, task) = (self.tell, self.task.id());
            async move {
                if let Ok(why) = over.wait_for(Option::is_some).await {
                    let why = why.as_deref().unwrap_or_default();
                    // Who reads that it ended may rely on it.
                    presenter.end(why);
                    tell.event("ended", why, json!({ "task": task, "message": why }));
                }
            }
        });
        let pipe = delivered.pipe();
        let given = Given {
            command: &verb.command,
            environment: delivered.environment(),
            without: &OURS,
        };
        let ran = program::run(&given, signals, || drop(pipe)).await;
        // Before the broker hears of it: what the command left running gets nothing more from here.
        watching.abort();
        presenter.end("its command has ended");
        drop(delivered);
        match ran {
            Ok(0) => (TaskOutcome::Succeeded, 0),
            Ok(code) => (TaskOutcome::Failed, code),
            Err(not) => {
                self.tell.not_run(&verb.program(), not);
                (TaskOutcome::Failed, not.code())
            }
        }
    }

    /// Ends the task, and with it the token. Tried for a while: the broker may be starting again.
    async fn end(&self, outcome: TaskOutcome, code: Option<u8>) {
        let until = self.clock.now().plus_millis(END_MS);
        let ended = loop {
            match self.task.complete(outcome).await {
                Err(error) if error.retryable() && self.clock.now() < until => {
                    tokio::time::sleep(Duration::from_millis(END_PAUSE_MS)).await;
                }
                ended => break ended,
            }
        };
        let id = self.task.id();
        match ended {
            Ok(report) => {
                if let Some(later) = &self.later {
                    later.forget();
                }
                let tokens = match report.tokens_revoked {
                    1 => "1 token revoked".to_owned(),
                    n => format!("{n} tokens revoked"),
                };
                let exit = code.map_or_else(String::new, |code| format!("exit {code}, "));
                let cause = match report.cause.as_str() {
                    "completed" => String::new(),
                    other => format!(" (had ended: {})", reveal(other)),
                };
                let mut members = shapes::end_report(&report);
                if let Some(members) = members.as_object_mut() {
                    members.insert("exit".to_owned(), json!(code));
                }
                let word = if code.is_some() { "done" } else { "ended" };
                self.tell
                    .event(word, &format!("{exit}{tokens}, {id}{cause}"), members);
            }
            Err(error) => {
                let text = format!("{id} could not be ended and ends by itself: {error}");
                self.tell.event(
                    "warning",
                    &text,
                    json!({ "warning": "NOT_ENDED", "task": id, "exit": code }),
                );
            }
        }
    }

    /// Leaves the task open for another process, and says how to go on.
    async fn later(
        mut self,
        common: &Common,
        verb: &Exec,
        pending: &Pending,
    ) -> Result<ExitCode, Failure> {
        if let Some(keep) = self.keep.take()
            && let Err(failure) = self.keep(keep, pending, &verb.means)
        {
            self.end(TaskOutcome::Abandoned, None).await;
            return Err(failure);
        }
        if let Some(later) = &self.later {
            later.keep()?;
        }
        let id = pending.access_request_id();
        let resume = verb.resume(common, id);
        self.tell.event(
            "waiting",
            &format!("until {}; go on with:  {}", pending.expires_at(), reveal(&resume)),
            json!({ "access_request": id, "until": pending.expires_at().to_string(), "resume": resume, "task": self.task.id() }),
        );
        Ok(ExitCode::from(Exit::Waiting.number()))
    }

    fn keep(&self, keep: Keep, pending: &Pending, means: &Means) -> Result<(), Failure> {
        let key = match keep.key {
            KeyKept::Made(pkcs8) => store::keep_key(self.task.id(), &pkcs8)?,
            KeyKept::At(path) => path,
        };
        Kept::new(&self.task, &keep.url, key, &keep.purpose, keep.evidence)?.keep_aside()?;
        Later::new(pending, &self.task, &self.order, means.clone()).keep()
    }
}

/// Whether the audience is there, and is who its certificate says: no request is made.
async fn reached(origin: &Origin) -> Result<(), Failure> {
    let connection = origin.connect().await.map_err(|why| {
        let message = format!("{why} at {}", reveal(&origin.base_url()));
        Failure::new(Exit::Unavailable, message)
            .next("no approval was used: start the audience, or name its place with --audience-url and --audience-ca")
    })?;
    drop(connection);
    Ok(())
}

fn is_away(error: &Error) -> bool {
    Failure::from(error.clone()).exit == Exit::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_again_wins_and_an_accepted_place_is_one_place() {
        let earlier = || Means {
            deliver: Some(Way::Fd),
            audience_url: Some("http://idp.example".to_owned()),
            audience_ca: Some("/ca.pem".into()),
            insecure_audience: true,
        };
        assert_eq!(Means::default().or(earlier()), earlier());
        let given = Means {
            deliver: Some(Way::Proxy),
            audience_url: Some("http://idp2.example".to_owned()),
            ..Means::default()
        };
        let both = given.or(earlier());
        assert_eq!(both.way(), Way::Proxy);
        assert_eq!(both.audience_url.as_deref(), Some("http://idp2.example"));
        assert_eq!(both.audience_ca, earlier().audience_ca);
        assert!(!both.insecure_audience, "accepted for another place");
        assert_eq!(Means::default().way(), Way::Proxy);
    }
}
