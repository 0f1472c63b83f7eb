//! `request`: access requests, for approvers (list, show, watch, approve, deny) and for the task that opened one (watch, cancel).

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::console_vote::{exit_code, wait_until_decided};
use super::error::CliError;
use super::inbox::{self, ListRequestsArgs, ShowRequestArgs};
use super::output::table;
use super::task::TaskSelector;
use super::task_store::EvidenceArgs;
use super::vote::{self, VoteArgs};
use super::{Common, Output, render};
use crate::card::AccessRequestStatus;
use crate::client::{AccessRequestInfo, ApproverClient, InboxUpdate, InboxUpdateKind, TaskHandle};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, Timestamp, Verdict};

#[derive(Debug, Subcommand)]
pub(super) enum RequestCommand {
    /// List the access requests that wait for approvers (short form: inbox)
    List(ListRequestsArgs),
    /// Show one access request as approvers see it (short form: show)
    Show(ShowRequestArgs),
    /// Follow one access request until it is decided, or the whole inbox; with --json one value a line
    Watch(WatchRequestsArgs),
    /// Approve an access request (short form: approve)
    Approve(VoteArgs),
    /// Deny an access request (short form: deny)
    Deny(VoteArgs),
    /// Cancel an access request of your own task (agents)
    Cancel(CancelRequestArgs),
    /// List the approved recommendations of advisory agents that the task's agent may execute (agents)
    Recommended(RecommendedArgs),
}

#[derive(Debug, Args)]
pub(super) struct RecommendedArgs {
    #[command(flatten)]
    task: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

#[derive(Debug, Args)]
pub(super) struct WatchRequestsArgs {
    /// The access request; without it, the inbox
    #[arg(value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    access_request: Option<AccessRequestId>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    task: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

#[derive(Debug, Args)]
pub(super) struct CancelRequestArgs {
    /// The access request
    #[arg(value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    access_request: AccessRequestId,
    #[command(flatten)]
    task: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: RequestCommand,
) -> Result<ExitCode, CliError> {
    match command {
        RequestCommand::List(args) => inbox::list(common, output, args).await,
        RequestCommand::Show(args) => inbox::show(common, output, args).await,
        RequestCommand::Watch(args) => watch(common, output, args).await,
        RequestCommand::Approve(args) => vote::run(common, output, args, Verdict::Approve).await,
        RequestCommand::Deny(args) => vote::run(common, output, args, Verdict::Deny).await,
        RequestCommand::Cancel(args) => {
            let task = args.task.attach(common, &args.evidence)?;
            let request = task.cancel(args.access_request).await?;
            print_status(output, &request, Clock::system().now());
            Ok(ExitCode::SUCCESS)
        }
        RequestCommand::Recommended(args) => {
            let task = args.task.attach(common, &args.evidence)?;
            print_recommended(output, &task.recommendations().await?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print_recommended(output: &Output, requests: &[AccessRequestInfo]) {
    let now = Clock::system().now();
    output.print(
        || {
            requests
                .iter()
                .map(render::access_request_json)
                .collect::<Value>()
        },
        || {
            if requests.is_empty() {
                return "no approved recommendation is for this agent".to_owned();
            }
            let head = ["ACCESS REQUEST", "RECOMMENDED BY", "ACTION", "LEFT"].map(str::to_owned);
            let row = |request: &AccessRequestInfo| {
                let action = request.action.as_ref();
                let action = action.map(|a| format!("{} on {}", a.name, a.target.in_sentence()));
                vec![
                    escape_invisible(&request.access_request_id),
                    escape_invisible(&request.agent_id),
                    escape_invisible(&action.unwrap_or_default()),
                    render::remaining(request.expires_at.as_ref(), now),
                ]
            };
            let rows = std::iter::once(head.to_vec()).chain(requests.iter().map(row));
            table(&rows.collect::<Vec<_>>())
        },
    );
}

/// Watches as the task if one is given or no key is, as the approver otherwise.
async fn watch(
    common: &Common,
    output: &Output,
    args: WatchRequestsArgs,
) -> Result<ExitCode, CliError> {
    let Some(id) = args.access_request else {
        return watch_inbox(output, &args.key.approver_client(common)?).await;
    };
    if args.task.is_given() || !args.key.is_given() {
        let task = args.task.attach(common, &args.evidence)?;
        return watch_as_task(output, &task, id).await;
    }
    let client = args.key.approver_client(common)?;
    let card = client.card(id).await?;
    wait_until_decided(output, &client, card, Verdict::Approve).await
}

/// Prints each status of an access request until it is decided; the exit code is that of the decision.
async fn watch_as_task(
    output: &Output,
    task: &TaskHandle,
    id: AccessRequestId,
) -> Result<ExitCode, CliError> {
    let mut watch = task.watch(id);
    while let Some(request) = watch.next().await? {
        print_status(output, &request, Clock::system().now());
        if output.is_closed() {
            break;
        }
        if let Some(status) = request.status
            && status != AccessRequestStatus::Waiting
        {
            return Ok(ExitCode::from(exit_code(status, Verdict::Approve).number()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_status(output: &Output, request: &AccessRequestInfo, now: Timestamp) {
    output.print(
        || render::access_request_json(request),
        || {
            let status = render::status(request.status);
            let progress = match (status, request.needs.as_slice()) {
                ("waiting", [_, ..]) => {
                    let needs = render::profile_lines(&request.needs).replace('\n', "; ");
                    let delay = request.delay.as_ref();
                    let delay = delay.map(|delay| format!("; or {}", delay.text(now)));
                    format!(": {needs}{}", delay.unwrap_or_default())
                }
                _ => String::new(),
            };
            let void = match request.void_votes.as_slice() {
                [] => String::new(),
                void => format!(
                    "
{}",
                    render::void_lines(void)
                ),
            };
            format!(
                "{} is {status}{progress}{void}",
                escape_invisible(&request.access_request_id)
            )
        },
    );
}

/// Prints the inbox and then each change, until interrupted. A broken stream resumes from its last position.
async fn watch_inbox(output: &Output, client: &ApproverClient) -> Result<ExitCode, CliError> {
    let mut after = None;
    loop {
        let mut stream = match client.watch_inbox(after).await {
            Ok(stream) => stream,
            Err(error) if after.is_some() && error.is_retryable() => {
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // The stream ends when the broker requires a new proof or stops; a silent stream is reopened.
        while let Ok(Ok(Some(update))) = tokio::time::timeout(SILENCE_MAX, stream.next()).await {
            match update {
                InboxUpdate::Snapshot(position) => {
                    print_inbox(output, client, "inbox", None).await?;
                    after = Some(position);
                }
                InboxUpdate::Changed {
                    position,
                    kind,
                    access_request_ids,
                } => {
                    print_change(output, client, kind, &access_request_ids).await?;
                    after = Some(position);
                }
                InboxUpdate::QueueAdvanced => print_inbox(output, client, "inbox", None).await?,
                InboxUpdate::Heartbeat(position) => after = Some(position),
            }
            if output.is_closed() {
                return Ok(ExitCode::SUCCESS);
            }
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn print_change(
    output: &Output,
    client: &ApproverClient,
    kind: InboxUpdateKind,
    ids: &[String],
) -> Result<(), CliError> {
    match kind {
        InboxUpdateKind::Opened => print_inbox(output, client, "opened", Some(ids)).await,
        InboxUpdateKind::Voted => print_inbox(output, client, "voted", Some(ids)).await,
        InboxUpdateKind::PolicyChanged => print_inbox(output, client, "policy changed", None).await,
        InboxUpdateKind::Unknown => print_inbox(output, client, "inbox", None).await,
        InboxUpdateKind::Closed => {
            output.print(
                || json!({ "event": "closed", "access_requests": ids }),
                || format!("closed  {}", escape_invisible(&ids.join(" "))),
            );
            Ok(())
        }
    }
}

/// Prints the rows of the inbox, or those of the given access requests.
async fn print_inbox(
    output: &Output,
    client: &ApproverClient,
    event: &str,
    only: Option<&[String]>,
) -> Result<(), CliError> {
    let mut rows = client.inbox().await?.rows;
    if let Some(ids) = only {
        rows.retain(|row| ids.contains(&row.access_request.access_request_id));
    }
    output.print(
        || json!({ "event": event, "access_requests": rows.iter().map(inbox::to_json).collect::<Value>() }),
        || match rows.as_slice() {
            [] if only.is_some() => format!("{event}  {}", escape_invisible(&only.unwrap_or_default().join(" "))),
            [] => format!("{event}  no access request is waiting for you"),
            rows => format!("{event}\n{}", inbox::rows_table(rows, Clock::system().now())),
        },
    );
    Ok(())
}

/// Pause between two attempts to reopen the stream.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// A stream without a message for this long is reopened: the broker sends a heartbeat every five seconds.
const SILENCE_MAX: Duration = Duration::from_secs(20);
