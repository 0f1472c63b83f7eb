//! The run of an `exec`: keeps the task alive, requests the token, runs the command, ends the task.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::ExecArgs;
use super::delivery::{Delivery, RESERVED_ENV};
use super::delivery_options::DeliveryOptions;
use super::events::EventPrinter;
use super::exit_code;
use super::lease::TaskLease;
use super::monitor::TaskMonitor;
use super::program::{self, Signals, Spawn};
use super::saved::{ResumeData, SavedExec, TaskKeySource};
use super::token_holder::TokenHolder;
use super::upstream::Upstream;
use crate::cli::error::CliError;
use crate::cli::task_store::{self, SavedTask};
use crate::cli::{Common, approval_wait, render};
use crate::client::{AccessToken, Error, PendingApproval, TaskHandle, TokenOutcome, TokenRequest};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, DeniedReason, Exit, TaskOutcome, Timestamp, format_seconds};

/// How long ending the task is retried, in milliseconds.
const END_MS: i64 = 15_000;
const END_PAUSE_MS: u64 = 500;
/// How long a broker is waited for that cannot be reached when the request is made, in seconds, unless --wait says otherwise.
const UNREACHABLE_S: i64 = 900;

/// An open task and its command.
pub(super) struct ExecRun {
    pub(super) events: EventPrinter,
    pub(super) clock: Clock,
    pub(super) task: TaskHandle,
    pub(super) token_request: TokenRequest,
    pub(super) resume_data: Option<ResumeData>,
    /// The lease of a task with a heartbeat; `None`: the task ends at its deadline.
    pub(super) lease: Option<TaskLease>,
    /// The state that another process can resume: saved by an earlier process, or by this one while approvers are awaited.
    pub(super) saved: Option<SavedExec>,
}

/// Result of the token request.
pub(super) enum TokenResult {
    Token(Box<AccessToken>),
    /// The request is pending, and the caller does not wait any longer.
    Pending(Box<PendingApproval>),
    /// The command will not run; the exit code.
    NotRun(u8),
}

/// The end of a run, for its last line.
#[derive(Debug, Default)]
pub(super) struct RunEnd {
    /// The exit code; `None` when an error follows.
    pub(super) exit: Option<u8>,
    /// The command's own exit code, if it ran.
    pub(super) command_exit: Option<u8>,
    /// Why the token ended before the command did.
    pub(super) end_cause: Option<String>,
}

impl ExecRun {
    /// Requests the token and waits for approvers: as long as the arguments say, or until the access request expires.
    pub(super) async fn request_token(
        &mut self,
        args: &ExecArgs,
        signals: &mut Signals,
    ) -> Result<TokenResult, Error> {
        let (wait_s, program) = (args.wait_s(), args.program());
        let started_at = self.clock.now();
        let give_up = wait_s.map(|wait_s| started_at.plus_secs(i64::from(wait_s)));
        let first = tokio::select! {
            outcome = self.first_answer(give_up.unwrap_or(started_at.plus_secs(UNREACHABLE_S))) => outcome?,
            signal = signals.next() => return Ok(self.stopped(signal, None).await),
        };
        let pending = match first {
            TokenOutcome::Pending(pending) => pending,
            decided => return Ok(self.decided(decided, self.saved.is_some(), &program)),
        };
        if let Some(executor) = pending.executor() {
            // The end of this task would end the recommendation before its executor could act.
            self.cancel_request(pending.access_request_id()).await;
            self.events.advisory(executor);
            return Ok(TokenResult::NotRun(exit_code::of_outcome(Exit::Denied)));
        }
        self.events.step_up(&pending);
        // Before the wait: a process that is killed leaves a request that can be resumed or cancelled.
        if args.may_be_resumed()
            && let Some(data) = self.resume_data.take()
        {
            match self.save(data, &pending, &args.delivery) {
                Ok(saved) => self.saved = Some(saved),
                Err(error) => {
                    // The task ends: its key is of no use.
                    let _ignored = task_store::delete(self.task.id());
                    let code = exit_code::of_error(&error);
                    self.events.error(&error, code);
                    return Ok(TokenResult::NotRun(code));
                }
            }
        }
        let now = self.clock.now();
        if give_up.is_some_and(|give_up| give_up <= now) {
            return Ok(TokenResult::Pending(Box::new(pending)));
        }
        let expires_at = pending.expires_at();
        let until = give_up.map_or(expires_at, |give_up| give_up.min(expires_at));
        let text = format!(
            "until {until} ({})",
            format_seconds(until.since(now).max(0) / 1_000)
        );
        self.events
            .event("waiting", &text, json!({ "until": until.to_string() }));
        let waiting = async {
            match give_up {
                Some(give_up) => self.task.wait_for_token(&self.token_request, give_up).await,
                None => {
                    let (task, request) = (&self.task, &self.token_request);
                    approval_wait::until_decided(task, request, &pending, &self.clock).await
                }
            }
        };
        let outcome = tokio::select! {
            outcome = waiting => outcome,
            signal = signals.next() => {
                return Ok(self.stopped(signal, Some(pending.access_request_id())).await);
            }
        };
        match outcome {
            // The broker is away: the access request may be decided meanwhile.
            Err(error) if give_up.is_some() && error.is_retryable() => {
                Ok(TokenResult::Pending(Box::new(pending)))
            }
            outcome => Ok(self.decided(outcome?, true, &program)),
        }
    }

    /// The first answer of the broker. While the broker cannot be reached it is awaited, as approvers are; a refusal is final.
    async fn first_answer(&self, until: Timestamp) -> Result<TokenOutcome, Error> {
        let mut told = false;
        loop {
            let error = match self.task.request_token(&self.token_request).await {
                Err(error) if is_unavailable(&error) && self.clock.now() < until => error,
                answer => return answer,
            };
            if !std::mem::replace(&mut told, true) {
                let text = format!("for the broker until {until}: {error}");
                let members = json!({ "until": until.to_string(), "message": error.to_string() });
                self.events.event("waiting", &text, members);
            }
            tokio::time::sleep(Duration::from_millis(error.retry_after_ms().into())).await;
        }
    }

    fn decided(&self, outcome: TokenOutcome, by_people: bool, program: &str) -> TokenResult {
        match outcome {
            TokenOutcome::Token(token) => {
                self.events.token_issued(&token, by_people, program);
                TokenResult::Token(Box::new(token))
            }
            TokenOutcome::Denied(denied) => {
                self.events.denied(&denied);
                let exit = denied.reason().map_or(Exit::Denied, DeniedReason::exit);
                TokenResult::NotRun(exit_code::of_outcome(exit))
            }
            TokenOutcome::Pending(pending) => TokenResult::Pending(Box::new(pending)),
            TokenOutcome::Recommended(recommended) => {
                self.events.advisory(recommended.executor());
                TokenResult::NotRun(exit_code::of_outcome(Exit::Denied))
            }
        }
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

    async fn cancel_request(&self, waiting: AccessRequestId) {
        let bound = Duration::from_millis(END_MS.unsigned_abs());
        let _ignored = tokio::time::timeout(bound, self.task.cancel(waiting)).await;
    }

    /// Runs the command with the token; gives the task's outcome and how the run ended.
    pub(super) async fn run(
        &mut self,
        args: &ExecArgs,
        token: AccessToken,
        upstream: Upstream,
        monitor: &TaskMonitor,
        signals: &mut Signals,
    ) -> (TaskOutcome, RunEnd) {
        // The command runs as the same user: it must find no key of its task. This process has it in memory.
        if let Some(saved) = self.saved.take()
            && let Err(error) = saved.delete()
        {
            let code = exit_code::of_error(&error);
            self.events.error(&error, code);
            return (TaskOutcome::Abandoned, RunEnd::of(code));
        }
        let token_ended = monitor.token_ended(&token);
        let holder = TokenHolder::new(token, upstream, self.clock.clone(), self.lease.clone());
        let holder = Arc::new(holder);
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
                let code = exit_code::of_error(&error);
                self.events.error(&error, code);
                return (TaskOutcome::Abandoned, RunEnd::of(code));
            }
        };
        let mut end_cause = None;
        let stop = async {
            let cause = token_ended.await;
            // Before the event is printed: a reader may rely on it.
            holder.end(&cause);
            let signal = args.end_signal.signal();
            let number = signal.map(Signal::as_raw);
            self.events.token_ended(self.task.id(), &cause, number);
            end_cause = Some(cause);
            signal
        };
        let pipe = delivery.pipe();
        let spawn = Spawn {
            command: &args.command,
            environment: delivery.environment(),
            without: &RESERVED_ENV,
        };
        let ran = program::run(&spawn, signals, || drop(pipe), stop).await;
        // Before the broker is called: processes the command left running get no more tokens.
        holder.end("its command has ended");
        drop(delivery);
        let code = match ran {
            Ok(code) => code,
            Err(error) => {
                self.events.not_run(&args.program(), error);
                return (TaskOutcome::Failed, RunEnd::of(error.code()));
            }
        };
        let exit = match &end_cause {
            Some(_) => exit_code::ENDED,
            None => exit_code::of_command(code),
        };
        if end_cause.is_none() && exit != code {
            self.events.reserved_code(code);
        }
        let outcome = match exit {
            0 => TaskOutcome::Succeeded,
            _ => TaskOutcome::Failed,
        };
        let end = RunEnd {
            exit: Some(exit),
            command_exit: Some(code),
            end_cause,
        };
        (outcome, end)
    }

    /// Ends the task, and with it the token; retried for a while, since the broker may be restarting. Prints the last line and
    /// gives the exit code, which is another one if the task turns out to have been ended before the command.
    pub(super) async fn end(&self, outcome: TaskOutcome, end: RunEnd) -> Option<u8> {
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
        let report = match ended {
            Ok(report) => report,
            Err(error) => {
                let text = format!(
                    "could not end {id}; it ends at its deadline or missed heartbeat: {error}"
                );
                let members = json!({
                    "warning": "NOT_ENDED", "task": id, "exit": end.exit, "command_exit": end.command_exit,
                });
                self.events.event("warning", &text, members);
                return end.exit;
            }
        };
        if let Some(saved) = &self.saved
            && let Err(error) = saved.delete()
        {
            self.events.error(&error, exit_code::of_error(&error));
        }
        let end_cause = match report.cause.as_str() {
            COMPLETED => end.end_cause,
            task_cause => Some(task_cause.to_owned()),
        };
        let exit = match (&end_cause, end.command_exit) {
            (Some(_), Some(_)) => Some(exit_code::ENDED),
            _ => end.exit,
        };
        let tokens = match report.tokens_revoked {
            1 => "1 token revoked".to_owned(),
            n => format!("{n} tokens revoked"),
        };
        let exit_text = exit.map_or_else(String::new, |exit| format!("exit {exit}, "));
        let command = match end.command_exit {
            Some(code) if exit != Some(code) => format!("the command's was {code}, "),
            Some(_) | None => String::new(),
        };
        let before = end_cause.as_ref().map_or_else(String::new, |cause| {
            format!(" (ended before: {})", escape_invisible(cause))
        });
        let mut members = render::end_report_json(&report);
        if let Some(members) = members.as_object_mut() {
            members.insert("exit".to_owned(), json!(exit));
            members.insert("command_exit".to_owned(), json!(end.command_exit));
            members.insert("ended_before".to_owned(), json!(end_cause));
        }
        let event = if exit.is_some() { "done" } else { "ended" };
        let text = format!("{exit_text}{command}{tokens}, {id}{before}");
        self.events.event(event, &text, members);
        exit
    }

    /// Leaves the task open for another process and prints the command that resumes it.
    pub(super) async fn save_for_resume(
        self,
        common: &Common,
        args: &ExecArgs,
        pending: &PendingApproval,
    ) -> Result<u8, CliError> {
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
        Ok(exit_code::of_outcome(Exit::Pending))
    }

    fn save(
        &self,
        data: ResumeData,
        pending: &PendingApproval,
        delivery: &DeliveryOptions,
    ) -> Result<SavedExec, CliError> {
        let key = match data.key {
            TaskKeySource::Generated(pkcs8) => task_store::save_key(self.task.id(), &pkcs8)?,
            TaskKeySource::File(path) => path,
        };
        SavedTask::new(&self.task, &data.url, key, &data.purpose, data.evidence)?
            .save_without_current()?;
        let saved = SavedExec::new(pending, &self.task, &self.token_request, delivery.clone());
        saved.save()?;
        Ok(saved)
    }
}

impl RunEnd {
    /// The command did not run.
    pub(super) fn of(exit: u8) -> Self {
        Self {
            exit: Some(exit),
            ..Self::default()
        }
    }
}

/// Cancels the access request that an earlier process saved, and ends its task.
pub(super) async fn cancel(
    events: EventPrinter,
    common: &Common,
    args: &ExecArgs,
    id: AccessRequestId,
) -> Result<u8, CliError> {
    let saved = SavedExec::load(id)?;
    let (task, _) = saved.resume(common, &args.evidence)?;
    match task.cancel(id).await {
        // Decided, expired or ended already: there is nothing left to cancel, but its task may be open.
        Err(error) if error.reason().is_some() && !error.is_retryable() => {}
        cancelled => drop(cancelled?),
    }
    let report = task.complete(TaskOutcome::Abandoned).await?;
    saved.delete()?;
    let text = format!("{id}, {} has ended", task.id());
    let mut members = render::end_report_json(&report);
    if let Some(members) = members.as_object_mut() {
        members.insert("access_request".to_owned(), json!(id));
    }
    events.event("cancelled", &text, members);
    Ok(0)
}

/// Checks that the audience accepts connections and its certificate is valid; sends no request.
pub(super) async fn check_reachable(upstream: &Upstream) -> Result<(), CliError> {
    let connection = upstream.connect().await.map_err(|why| {
        let message = format!("{why} at {}", escape_invisible(&upstream.base_url()));
        CliError::new(Exit::Unavailable, message)
            .with_next_step("no token was requested and no approval was used; start the audience, or give its address with --audience-url and --audience-ca")
    })?;
    drop(connection);
    Ok(())
}

/// The cause of a task that its own agent ended.
const COMPLETED: &str = "completed";

fn is_unavailable(error: &Error) -> bool {
    CliError::from(error.clone()).exit == Exit::Unavailable
}
