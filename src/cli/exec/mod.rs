//! `exec`: run a command with one approved action, and end its task and token when the command ends.
//!
//! In: one action, a command, and the source of evidence. Out: the command's own output and exit code; events on stderr.
//! One task is opened for the command, and it ends when the command ends, for any reason.
//! Trusts: the command with the approved action only.
//! Refuses: to request approval for a command that does not exist; to hand over the key of a token.
//! Never: writes to stdout, lets the command reach another origin through the proxy, or leaves a valid token behind.

mod args;
mod cancellable_body;
mod delivery;
mod delivery_options;
mod events;
mod exit_code;
mod headers;
mod lease;
mod monitor;
mod peer;
mod plan;
mod program;
mod proxy;
mod run;
mod saved;
mod signer;
mod token_holder;
mod upstream;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use serde_json::json;

use super::error::CliError;
use super::{Common, state_sweep, task_store};
use crate::clock::Clock;
use crate::model::TaskOutcome;
use crate::model::text::escape_invisible;
pub(super) use args::ExecArgs;
use delivery::DeliveryMode;
use events::EventPrinter;
use monitor::TaskMonitor;
use plan::ExecPlan;
use program::Signals;
use run::{RunEnd, TokenResult, check_reachable};
pub(super) use saved::{EXECS, SavedExec};

/// Opens or resumes the task, requests the token, runs the command, ends the task. Exits with the command's code, or one of
/// `exec` itself.
pub(super) async fn run(common: &Common, args: ExecArgs) -> Result<ExitCode, CliError> {
    let events = EventPrinter::new(common.json);
    let code = run_command(common, events, args)
        .await
        .unwrap_or_else(|error| {
            let code = exit_code::of_error(&error);
            events.error(&error, code);
            code
        });
    Ok(ExitCode::from(code))
}

async fn run_command(
    common: &Common,
    events: EventPrinter,
    mut args: ExecArgs,
) -> Result<u8, CliError> {
    if let Some(id) = args.cancel {
        return run::cancel(events, common, &args, id).await;
    }
    if args.delivery.mode() == DeliveryMode::Env {
        return Err(delivery::not_bearer());
    }
    if !program::forbid_memory_access() {
        let text = "other processes of this user can read this process's memory, and the token's key in it";
        events.event("warning", text, json!({ "warning": "NOT_SHIELDED" }));
    }
    let program = args.program();
    if let Err(error) = program::find(
        args.command
            .first()
            .map_or(OsStr::new(""), OsString::as_os_str),
    ) {
        events.not_run(&program, error);
        return Ok(error.code());
    }
    let mut signals = Signals::listen()?;
    args.delivery = args.delivery.absolute_paths()?;
    let plan = match args.resume {
        Some(id) => ExecPlan::resume(common, &mut args, id)?,
        None => ExecPlan::new(common, &args)?,
    };
    // Before approval is requested: the saved options may have been edited.
    args.delivery.forwarded()?;
    let upstream = args
        .delivery
        .upstream(&plan.token_request().action.audience)?;
    if upstream.is_insecure() {
        let text = format!(
            "requests to {} use plain http: anyone on the network path can read and change them",
            escape_invisible(&upstream.base_url())
        );
        events.event("warning", &text, json!({ "warning": "INSECURE_AUDIENCE" }));
    }
    let opening = async {
        // Any request may issue the token, or ask people: its audience must be reachable first.
        check_reachable(&upstream).await?;
        if args.may_be_resumed() {
            // Before people are asked for a request that could not be saved.
            task_store::require_writable_state()?;
            SavedExec::require_writable()?;
        }
        state_sweep::run(common, &Clock::system()).await;
        plan.open(events).await
    };
    let mut run = tokio::select! {
        run = opening => run?,
        signal = signals.next() => return Ok(program::signal_code(signal.as_raw())),
    };
    let monitor = TaskMonitor::start(run.task.clone(), run.lease.clone());
    let requested = run.request_token(&args, &mut signals).await;
    let (outcome, end) = match requested {
        Ok(TokenResult::Token(token)) => {
            run.run(&args, *token, upstream, &monitor, &mut signals)
                .await
        }
        Ok(TokenResult::Pending(pending)) => {
            return run.save_for_resume(common, &args, &pending).await;
        }
        Ok(TokenResult::NotRun(code)) => (TaskOutcome::Abandoned, RunEnd::of(code)),
        // A resumed request stays saved: the caller may resume it again.
        Err(error) if run.saved.is_some() && error.is_retryable() => return Err(error.into()),
        Err(error) => {
            run.end(TaskOutcome::Abandoned, RunEnd::default()).await;
            return Err(error.into());
        }
    };
    drop(monitor);
    Ok(run.end(outcome, end).await.unwrap_or_default())
}
