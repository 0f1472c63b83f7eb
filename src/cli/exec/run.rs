//! While the task is open: it is kept alive, asks, runs the command, and is ended.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ExecArgs;
use super::plan::{ResumeData, TaskKeySource};
use super::delivery::{Delivery, RESERVED_ENV};
use super::saved::SavedExec;
use super::delivery_options::DeliveryOptions;
use super::upstream::Upstream;
use super::token_holder::TokenHolder;
use super::program::{self, Spawn, Signals};
use super::events::EventPrinter;
use crate::cli::error::CliError;
use crate::cli::task_store::{self, SavedTask};
use crate::cli::{Common, render};
use crate::client::{Error, Outcome, Pending, Task, Token, TokenOrder};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, DeniedReason, Exit, Reason, TaskOutcome, show_seconds};

/// Longest that the end of a task is tried, in milliseconds.
const END_MS: i64 = 15_000;
const END_PAUSE_MS: u64 = 500;
/// Signs of life in the length of a heartbeat.
const KEEP_ALIVES_PER_LEASE: u64 = 3;

/// A task for one command.
pub(super) struct ExecRun {
    pub(super) events: EventPrinter,
    pub(super) clock: Clock,
    pub(super) task: Task,
    pub(super) order: TokenOrder,
    pub(super) keep: Option<ResumeData>,
    /// How long the task lives without a sign of life, in seconds; `None`: to its deadline.
    pub(super) heartbeat_s: Option<u32>,
    /// What an earlier process kept of it.
    pub(super) later: Option<SavedExec>,
}

/// The signs of life of a task, until dropped; and why it ended, once it did.
pub(super) struct KeepAliveTask {
    over: watch::Receiver<Option<String>>,
    beating: JoinHandle<()>,
}

impl Drop for KeepAliveTask {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// What came of asking.
pub(super) enum AskResult {
    Token(Box<Token>),
    /// People have not decided, and nobody waits.
    Pending(Box<Pending>),
    /// It will not run, and this is the code.
    No(u8),
}

impl ExecRun {
    /// Keeps the task alive, where it has a lease: three times in a heartbeat, so that one may be lost. A broker that is
    /// away is asked again; one that says that the task is over is believed.
    pub(super) fn keep_alive(&self) -> KeepAliveTask {
        let (says, over) = watch::channel(None);
        let task = self.task.clone();
        let pause = self.heartbeat_s.map(|heartbeat_s| {
            Duration::from_millis(u64::from(heartbeat_s).saturating_mul(1_000) / KEEP_ALIVES_PER_LEASE)
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
        KeepAliveTask { over, beating }
    }

    /// Asks, and waits for people as long as it was said.
    pub(super) async fn ask(
        &self,
        wait_s: Option<u32>,
        upstream: &Upstream,
        program: &str,
        signals: &mut Signals,
    ) -> Result<AskResult, Error> {
        let began = self.clock.now();
        let until = began.plus_secs(i64::from(wait_s.unwrap_or(0)));
        let mut waiting = None;
        let first = tokio::select! {
            outcome = self.task.request_token(&self.order) => outcome,
            signal = signals.next() => return Ok(self.stopped(signal, None).await),
        };
        let outcome = match first {
            Ok(Outcome::Pending(pending)) => {
                self.events.step_up(&pending);
                if wait_s.is_none() {
                    return Ok(AskResult::Pending(Box::new(pending)));
                }
                let id = pending.access_request_id();
                let reaching = tokio::select! {
                    reaching = check_reachable(upstream) => reaching,
                    signal = signals.next() => return Ok(self.stopped(signal, Some(id)).await),
                };
                if let Err(error) = reaching {
                    return Ok(self.audience_unreachable(&error, id).await);
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
                self.events
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
                self.events.given(&token, by_people, program);
                AskResult::Token(Box::new(token))
            }
            Outcome::Denied(no) => {
                self.events.denied(&no);
                let exit = no.known_reason().map_or(Exit::Denied, DeniedReason::exit);
                AskResult::No(exit.number())
            }
            Outcome::Pending(pending) => {
                let id = pending.access_request_id();
                self.events.event(
                    "expired",
                    &format!("nobody decided {id} in time; nothing was issued"),
                    json!({ "access_request": id }),
                );
                AskResult::No(Exit::NobodyDecided.number())
            }
        })
    }

    /// Told to stop before anything ran: what waits is taken back. The end of the task would close it too; this says why.
    async fn stopped(&self, signal: Signal, waiting: Option<AccessRequestId>) -> AskResult {
        if let Some(id) = waiting {
            self.cancel_request(id).await;
        }
        let what = waiting.map_or_else(String::new, |id| format!(", {id} is taken back"));
        let number = signal.as_raw();
        self.events.event(
            "stopped",
            &format!("by signal {number}{what}"),
            json!({ "signal": number, "access_request": waiting }),
        );
        AskResult::No(program::signal_code(number))
    }

    /// The audience is not there: nobody is asked for what could not be used.
    async fn audience_unreachable(&self, error: &CliError, waiting: AccessRequestId) -> AskResult {
        self.cancel_request(waiting).await;
        let next = error.hint.as_deref().unwrap_or_default();
        let text = format!("{}; {waiting} is taken back; {next}", error.message);
        self.events.event("failed", &text, error.to_json());
        AskResult::No(error.exit.number())
    }

    async fn cancel_request(&self, waiting: AccessRequestId) {
        let bound = Duration::from_millis(END_MS.unsigned_abs());
        let _tried = tokio::time::timeout(bound, self.task.cancel(waiting)).await;
    }

    /// Runs the command with the token, and says how the task ends for it.
    pub(super) async fn run(
        &self,
        args: &ExecArgs,
        token: Token,
        upstream: Upstream,
        alive: &KeepAliveTask,
        signals: &mut Signals,
    ) -> (TaskOutcome, u8) {
        let holder = Arc::new(TokenHolder::new(token, upstream, self.clock.clone()));
        let ready = match args.means.forwarded() {
            Ok(forward) => {
                let task = self.task.id().to_string();
                Delivery::start(args.means.mode(), &holder, &task, &forward).await
            }
            Err(error) => Err(error),
        };
        let mut delivered = match ready {
            Ok(delivered) => delivered,
            Err(error) => {
                self.events
                    .event("failed", &error.message, error.to_json());
                return (TaskOutcome::Abandoned, error.exit.number());
            }
        };
        let watching = tokio::spawn({
            let (holder, mut over) = (holder.clone(), alive.over.clone());
            let (events, task) = (self.events, self.task.id());
            async move {
                if let Ok(why) = over.wait_for(Option::is_some).await {
                    let why = why.as_deref().unwrap_or_default();
                    // Who reads that it ended may rely on it.
                    holder.end(why);
                    events.event("ended", why, json!({ "task": task, "message": why }));
                }
            }
        });
        let pipe = delivered.pipe();
        let given = Spawn {
            command: &args.command,
            environment: delivered.environment(),
            without: &RESERVED_ENV,
        };
        let ran = program::run(&given, signals, || drop(pipe)).await;
        // Before the broker hears of it: what the command left running gets nothing more from here.
        watching.abort();
        holder.end("its command has ended");
        drop(delivered);
        match ran {
            Ok(0) => (TaskOutcome::Succeeded, 0),
            Ok(code) => (TaskOutcome::Failed, code),
            Err(not) => {
                self.events.not_run(&args.program(), not);
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
                    later.delete();
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
                let mut members = render::end_report_json(&report);
                if let Some(members) = members.as_object_mut() {
                    members.insert("exit".to_owned(), json!(code));
                }
                let word = if code.is_some() { "done" } else { "ended" };
                self.events
                    .event(word, &format!("{exit}{tokens}, {id}{cause}"), members);
            }
            Err(error) => {
                let text = format!("{id} could not be ended and ends by itself: {error}");
                self.events.event(
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
        args: &ExecArgs,
        pending: &Pending,
    ) -> Result<ExitCode, CliError> {
        if let Some(keep) = self.keep.take()
            && let Err(error) = self.keep(keep, pending, &args.means)
        {
            self.end(TaskOutcome::Abandoned, None).await;
            return Err(error);
        }
        if let Some(later) = &self.later {
            later.keep()?;
        }
        let id = pending.access_request_id();
        let resume = args.resume(common, id);
        self.events.event(
            "waiting",
            &format!("until {}; go on with:  {}", pending.expires_at(), escape_invisible(&resume)),
            json!({ "access_request": id, "until": pending.expires_at().to_string(), "resume": resume, "task": self.task.id() }),
        );
        Ok(ExitCode::from(Exit::Waiting.number()))
    }

    fn keep(&self, keep: ResumeData, pending: &Pending, means: &DeliveryOptions) -> Result<(), CliError> {
        let key = match keep.key {
            TaskKeySource::Generated(pkcs8) => task_store::save_key(self.task.id(), &pkcs8)?,
            TaskKeySource::File(path) => path,
        };
        SavedTask::new(&self.task, &keep.url, key, &keep.purpose, keep.evidence)?.save_without_current()?;
        SavedExec::new(pending, &self.task, &self.order, means.clone()).keep()
    }
}

/// Whether the audience is there, and is who its certificate says: no request is made.
pub(super) async fn check_reachable(upstream: &Upstream) -> Result<(), CliError> {
    let connection = upstream.connect().await.map_err(|why| {
        let message = format!("{why} at {}", escape_invisible(&upstream.base_url()));
        CliError::new(Exit::Unavailable, message)
            .with_hint("no approval was used: start the audience, or name its place with --audience-url and --audience-ca")
    })?;
    drop(connection);
    Ok(())
}

fn is_away(error: &Error) -> bool {
    CliError::from(error.clone()).exit == Exit::Unavailable
}
