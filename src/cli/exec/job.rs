//! While the task is open: it is kept alive, asks, runs the command, and is ended.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Exec;
use super::begun::{Keep, KeyKept};
use super::deliver::{Delivered, OURS};
use super::later::Later;
use super::means::Means;
use super::origin::Origin;
use super::present::Presenter;
use super::program::{self, Given, Signals};
use super::tell::Tell;
use crate::cli::failure::Failure;
use crate::cli::store::{self, Kept};
use crate::cli::{Common, shapes};
use crate::client::{Error, TokenOutcome, PendingApproval, TaskHandle, AccessToken, TokenRequest};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, DeniedReason, Exit, Reason, TaskOutcome, format_seconds};

/// Longest that the end of a task is tried, in milliseconds.
const END_MS: i64 = 15_000;
const END_PAUSE_MS: u64 = 500;
/// Signs of life in the length of a heartbeat.
const BEATS: u64 = 3;

/// A task for one command.
pub(super) struct Job {
    pub(super) tell: Tell,
    pub(super) clock: Clock,
    pub(super) task: TaskHandle,
    pub(super) order: TokenRequest,
    pub(super) keep: Option<Keep>,
    /// How long the task lives without a sign of life, in seconds; `None`: to its deadline.
    pub(super) heartbeat_s: Option<u32>,
    /// What an earlier process kept of it.
    pub(super) later: Option<Later>,
}

/// The signs of life of a task, until dropped; and why it ended, once it did.
pub(super) struct Alive {
    over: watch::Receiver<Option<String>>,
    beating: JoinHandle<()>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// What came of asking.
pub(super) enum Asked {
    Token(Box<AccessToken>),
    /// People have not decided, and nobody waits.
    Pending(Box<PendingApproval>),
    /// It will not run, and this is the code.
    No(u8),
}

impl Job {
    /// Keeps the task alive, where it has a lease: three times in a heartbeat, so that one may be lost. A broker that is
    /// away is asked again; one that says that the task is over is believed.
    pub(super) fn keep_alive(&self) -> Alive {
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
    pub(super) async fn ask(
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
            Ok(TokenOutcome::Pending(pending)) => {
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
                    format_seconds(until.since(began) / 1_000)
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
            TokenOutcome::Token(token) => {
                let by_people = waiting.is_some() || self.later.is_some();
                self.tell.given(&token, by_people, program);
                Asked::Token(Box::new(token))
            }
            TokenOutcome::Denied(no) => {
                self.tell.denied(&no);
                let exit = no.reason().map_or(Exit::Denied, DeniedReason::exit);
                Asked::No(exit.number())
            }
            TokenOutcome::Pending(pending) => {
                let id = pending.access_request_id();
                self.tell.event(
                    "expired",
                    &format!("nobody decided {id} in time; nothing was issued"),
                    json!({ "access_request": id }),
                );
                Asked::No(Exit::ApprovalTimeout.number())
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
    pub(super) async fn run(
        &self,
        verb: &Exec,
        token: AccessToken,
        origin: Origin,
        alive: &Alive,
        signals: &mut Signals,
    ) -> (TaskOutcome, u8) {
        let presenter = Arc::new(Presenter::new(token, origin, self.clock.clone()));
        let ready = match verb.means.forwarded() {
            Ok(forward) => {
                let task = self.task.id().to_string();
                Delivered::ready(verb.means.way(), &presenter, &task, &forward).await
            }
            Err(failure) => Err(failure),
        };
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
    pub(super) async fn end(&self, outcome: TaskOutcome, code: Option<u8>) {
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
                    other => format!(" (had ended: {})", escape_invisible(other)),
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
    pub(super) async fn later(
        mut self,
        common: &Common,
        verb: &Exec,
        pending: &PendingApproval,
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
            &format!("until {}; go on with:  {}", pending.expires_at(), escape_invisible(&resume)),
            json!({ "access_request": id, "until": pending.expires_at().to_string(), "resume": resume, "task": self.task.id() }),
        );
        Ok(ExitCode::from(Exit::Pending.number()))
    }

    fn keep(&self, keep: Keep, pending: &PendingApproval, means: &Means) -> Result<(), Failure> {
        let key = match keep.key {
            KeyKept::Made(pkcs8) => store::keep_key(self.task.id(), &pkcs8)?,
            KeyKept::Versioned(path) => path,
        };
        Kept::new(&self.task, &keep.url, key, &keep.purpose, keep.evidence)?.keep_aside()?;
        Later::new(pending, &self.task, &self.order, means.clone()).keep()
    }
}

/// Whether the audience is there, and is who its certificate says: no request is made.
pub(super) async fn reached(origin: &Origin) -> Result<(), Failure> {
    let connection = origin.connect().await.map_err(|why| {
        let message = format!("{why} at {}", escape_invisible(&origin.base_url()));
        Failure::new(Exit::Unavailable, message)
            .next("no approval was used: start the audience, or name its place with --audience-url and --audience-ca")
    })?;
    drop(connection);
    Ok(())
}

fn is_away(error: &Error) -> bool {
    Failure::from(error.clone()).exit == Exit::Unavailable
}
