//! The run of an `exec`: keeps the task alive, requests the token, runs the command, ends the task.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ExecArgs;
use super::delivery::{Delivery, RESERVED_ENV};
use super::delivery_options::DeliveryOptions;
use super::events::EventPrinter;
use super::program::{self, Signals, Spawn};
use super::saved::{ResumeData, SavedExec, TaskKeySource};
use super::token_holder::TokenHolder;
use super::upstream::Upstream;
use crate::cli::error::CliError;
use crate::cli::task_store::{self, SavedTask};
use crate::cli::{Common, render};
use crate::client::{AccessToken, Error, PendingApproval, TaskHandle, TokenOutcome, TokenRequest};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, DeniedReason, Exit, Reason, TaskOutcome, format_seconds};

/// How long ending the task is retried, in milliseconds.
const END_MS: i64 = 15_000;
const END_PAUSE_MS: u64 = 500;
/// Keep-alive calls per heartbeat interval, so that one may be lost.
const KEEP_ALIVES_PER_LEASE: u64 = 3;

/// An open task and its command.
pub(super) struct ExecRun {
    pub(super) events: EventPrinter,
    pub(super) clock: Clock,
    pub(super) task: TaskHandle,
    pub(super) token_request: TokenRequest,
    pub(super) resume_data: Option<ResumeData>,
    /// The task ends after this long without a keep-alive, in seconds; `None`: at its deadline.
    pub(super) heartbeat_s: Option<u32>,
    /// The state an earlier process saved.
    pub(super) saved: Option<SavedExec>,
}

/// Sends keep-alives until dropped; knows why the task ended, once it has.
pub(super) struct KeepAliveTask {
    end_cause: watch::Receiver<Option<String>>,
    sender: JoinHandle<()>,
}

impl Drop for KeepAliveTask {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

/// Result of the token request.
pub(super) enum TokenResult {
    Token(Box<AccessToken>),
    /// The request is pending, and the caller does not wait.
    Pending(Box<PendingApproval>),
    /// The command will not run; the exit code.
    NotRun(u8),
}

impl ExecRun {
    /// Starts sending keep-alives if the task has a heartbeat. An unreachable broker is retried; an ended task stops it.
    pub(super) fn keep_alive(&self) -> KeepAliveTask {
        let (ended, end_cause) = watch::channel(None);
        let task = self.task.clone();
        let pause = self.heartbeat_s.map(|heartbeat_s| {
            Duration::from_millis(
                u64::from(heartbeat_s).saturating_mul(1_000) / KEEP_ALIVES_PER_LEASE,
            )
        });
        let sender = tokio::spawn(async move {
            let Some(pause) = pause else { return };
            loop {
                tokio::time::sleep(pause).await;
                match task.keep_alive().await {
                    Ok(_) => {}
                    Err(error) if error.reason() == Some(Reason::TaskEnded) => {
                        ended.send_replace(Some(error.to_string()));
                        return;
                    }
                    // Retried until the lease expires.
                    Err(_) => {}
                }
            }
        });
        KeepAliveTask { end_cause, sender }
    }

    /// Requests the token and waits up to `wait_s` for approvers.
    pub(super) async fn request_token(
        &self,
        wait_s: Option<u32>,
        upstream: &Upstream,
        program: &str,
        signals: &mut Signals,
    ) -> Result<TokenResult, Error> {
        let started_at = self.clock.now();
        let until = started_at.plus_secs(i64::from(wait_s.unwrap_or(0)));
        let mut waiting = None;
        let first = tokio::select! {
            outcome = self.task.request_token(&self.token_request) => outcome,
            signal = signals.next() => return Ok(self.stopped(signal, None).await),
        };
        let outcome = match first {
            Ok(TokenOutcome::Pending(pending)) => {
                self.events.step_up(&pending);
                if wait_s.is_none() {
                    return Ok(TokenResult::Pending(Box::new(pending)));
                }
                let id = pending.access_request_id();
                let reachable = tokio::select! {
                    reachable = check_reachable(upstream) => reachable,
                    signal = signals.next() => return Ok(self.stopped(signal, Some(id)).await),
                };
                if let Err(error) = reachable {
                    return Ok(self.audience_unreachable(&error, id).await);
                }
                waiting = Some(id);
                None
            }
            // An unreachable broker is waited for, as approvers are; a refusal is final.
            Err(error) if wait_s.is_some() && is_unavailable(&error) => None,
            outcome => Some(outcome?),
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => {
                let text = format!(
                    "until {until} ({})",
                    format_seconds(until.since(started_at) / 1_000)
                );
                self.events
                    .event("waiting", &text, json!({ "until": until.to_string() }));
                tokio::select! {
                    outcome = self.task.wait_for_token(&self.token_request, until) => outcome?,
                    signal = signals.next() => return Ok(self.stopped(signal, waiting).await),
                }
            }
        };
        Ok(match outcome {
            TokenOutcome::Token(token) => {
                let by_people = waiting.is_some() || self.saved.is_some();
                self.events.token_issued(&token, by_people, program);
                TokenResult::Token(Box::new(token))
            }
            TokenOutcome::Denied(denied) => {
                self.events.denied(&denied);
                let exit = denied.reason().map_or(Exit::Denied, DeniedReason::exit);
                TokenResult::NotRun(exit.number())
            }
            TokenOutcome::Pending(pending) => {
                let id = pending.access_request_id();
                self.events.event(
                    "expired",
                    &format!("approval of {id} timed out; no token was issued"),
                    json!({ "access_request": id }),
                );
                TokenResult::NotRun(Exit::ApprovalTimeout.number())
            }
        })
    }

    /// Stopped by a signal before the command ran: cancels the access request, which ending the task would close anyway.
    async fn stopped(&self, signal: Signal, waiting: Option<AccessRequestId>) -> TokenResult {
        if let Some(id) = waiting {
            self.cancel_request(id).await;
        }
        let cancelled = waiting.map_or_else(String::new, |id| format!(", {id} was cancelled"));
        let number = signal.as_raw();
        self.events.event(
            "stopped",
            &format!("by signal {number}{cancelled}"),
            json!({ "signal": number, "access_request": waiting }),
        );
        TokenResult::NotRun(program::signal_code(number))
    }

    /// The audience is unreachable: cancels the access request, since its token could not be used.
    async fn audience_unreachable(
        &self,
        error: &CliError,
        waiting: AccessRequestId,
    ) -> TokenResult {
        self.cancel_request(waiting).await;
        let hint = error.next_step.as_deref().unwrap_or_default();
        let text = format!("{}; {waiting} was cancelled; {hint}", error.message);
        self.events.event("failed", &text, error.to_json());
        TokenResult::NotRun(error.exit.number())
    }

    async fn cancel_request(&self, waiting: AccessRequestId) {
        let bound = Duration::from_millis(END_MS.unsigned_abs());
        let _ignored = tokio::time::timeout(bound, self.task.cancel(waiting)).await;
    }

    /// Runs the command with the token; gives the task's outcome and the exit code.
    pub(super) async fn run(
        &self,
        args: &ExecArgs,
        token: AccessToken,
        upstream: Upstream,
        keep_alive: &KeepAliveTask,
        signals: &mut Signals,
    ) -> (TaskOutcome, u8) {
        let holder = Arc::new(TokenHolder::new(token, upstream, self.clock.clone()));
        let ready = match args.delivery.forwarded() {
            Ok(forward) => {
                let task = self.task.id().to_string();
                Delivery::start(args.delivery.mode(), &holder, &task, &forward).await
            }
            Err(error) => Err(error),
        };
        let mut delivery = match ready {
            Ok(delivery) => delivery,
            Err(error) => {
                self.events.event("failed", &error.message, error.to_json());
                return (TaskOutcome::Abandoned, error.exit.number());
            }
        };
        let watching = tokio::spawn({
            let (holder, mut end_cause) = (holder.clone(), keep_alive.end_cause.clone());
            let (events, task) = (self.events, self.task.id());
            async move {
                if let Ok(why) = end_cause.wait_for(Option::is_some).await {
                    let why = why.as_deref().unwrap_or_default();
                    // Before the event is printed: a reader may rely on it.
                    holder.end(why);
                    events.event("ended", why, json!({ "task": task, "message": why }));
                }
            }
        });
        let pipe = delivery.pipe();
        let spawn = Spawn {
            command: &args.command,
            environment: delivery.environment(),
            without: &RESERVED_ENV,
        };
        let ran = program::run(&spawn, signals, || drop(pipe)).await;
        // Before the broker is called: processes the command left running get no more tokens.
        watching.abort();
        holder.end("its command has ended");
        drop(delivery);
        match ran {
            Ok(0) => (TaskOutcome::Succeeded, 0),
            Ok(code) => (TaskOutcome::Failed, code),
            Err(error) => {
                self.events.not_run(&args.program(), error);
                (TaskOutcome::Failed, error.code())
            }
        }
    }

    /// Ends the task, and with it the token; retried for a while, since the broker may be restarting.
    pub(super) async fn end(&self, outcome: TaskOutcome, code: Option<u8>) {
        let until = self.clock.now().plus_millis(END_MS);
        let ended = loop {
            match self.task.complete(outcome).await {
                Err(error) if error.is_retryable() && self.clock.now() < until => {
                    tokio::time::sleep(Duration::from_millis(END_PAUSE_MS)).await;
                }
                ended => break ended,
            }
        };
        let id = self.task.id();
        match ended {
            Ok(report) => {
                if let Some(saved) = &self.saved {
                    saved.delete();
                }
                let tokens = match report.tokens_revoked {
                    1 => "1 token revoked".to_owned(),
                    n => format!("{n} tokens revoked"),
                };
                let exit = code.map_or_else(String::new, |code| format!("exit {code}, "));
                let cause = match report.cause.as_str() {
                    "completed" => String::new(),
                    other => format!(" (ended before: {})", escape_invisible(other)),
                };
                let mut members = render::end_report_json(&report);
                if let Some(members) = members.as_object_mut() {
                    members.insert("exit".to_owned(), json!(code));
                }
                let event = if code.is_some() { "done" } else { "ended" };
                self.events
                    .event(event, &format!("{exit}{tokens}, {id}{cause}"), members);
            }
            Err(error) => {
                let text = format!(
                    "could not end {id}; it ends at its deadline or missed heartbeat: {error}"
                );
                self.events.event(
                    "warning",
                    &text,
                    json!({ "warning": "NOT_ENDED", "task": id, "exit": code }),
                );
            }
        }
    }

    /// Leaves the task open for another process and prints the command that resumes it.
    pub(super) async fn save_for_resume(
        mut self,
        common: &Common,
        args: &ExecArgs,
        pending: &PendingApproval,
    ) -> Result<ExitCode, CliError> {
        if let Some(data) = self.resume_data.take()
            && let Err(error) = self.save(data, pending, &args.delivery)
        {
            self.end(TaskOutcome::Abandoned, None).await;
            return Err(error);
        }
        if let Some(saved) = &self.saved {
            saved.save()?;
        }
        let id = pending.access_request_id();
        let resume = args.resume_command(common, id);
        self.events.event(
            "waiting",
            &format!("until {}; resume with:  {}", pending.expires_at(), escape_invisible(&resume)),
            json!({ "access_request": id, "until": pending.expires_at().to_string(), "resume": resume, "task": self.task.id() }),
        );
        Ok(ExitCode::from(Exit::Pending.number()))
    }

    fn save(
        &self,
        data: ResumeData,
        pending: &PendingApproval,
        delivery: &DeliveryOptions,
    ) -> Result<(), CliError> {
        let key = match data.key {
            TaskKeySource::Generated(pkcs8) => task_store::save_key(self.task.id(), &pkcs8)?,
            TaskKeySource::File(path) => path,
        };
        SavedTask::new(&self.task, &data.url, key, &data.purpose, data.evidence)?
            .save_without_current()?;
        SavedExec::new(pending, &self.task, &self.token_request, delivery.clone()).save()
    }
}

/// Checks that the audience accepts connections and its certificate is valid; sends no request.
pub(super) async fn check_reachable(upstream: &Upstream) -> Result<(), CliError> {
    let connection = upstream.connect().await.map_err(|why| {
        let message = format!("{why} at {}", escape_invisible(&upstream.base_url()));
        CliError::new(Exit::Unavailable, message)
            .with_next_step("no approval was used; start the audience, or give its address with --audience-url and --audience-ca")
    })?;
    drop(connection);
    Ok(())
}

fn is_unavailable(error: &Error) -> bool {
    CliError::from(error.clone()).exit == Exit::Unavailable
}
