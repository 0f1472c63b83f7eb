//! `request`: access requests, for approvers (list, show, watch, approve, deny) and for the task that made one (watch, cancel).

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::KeyArgs;
use super::console_vote::{exit_code, wait_until_decided};
use super::error::CliError;
use super::inbox::{self, ListRequestsArgs, ShowRequestArgs};
use super::task::TaskSelector;
use super::task_store::EvidenceArgs;
use super::vote::{self, VoteArgs};
use super::{Common, Output, render};
use crate::client::{Person, Task};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, Verdict};
use crate::proto::v1::watch_access_requests_response::Message;
use crate::proto::{card, v1};

#[derive(Debug, Subcommand)]
pub(super) enum RequestCommand {
    /// List the access requests that wait for approvers (short form: inbox)
    List(ListRequestsArgs),
    /// Show one access request as approvers see it (short form: show)
    Show(ShowRequestArgs),
    /// Follow one access request until it is decided, or the whole inbox
    Watch(WatchRequestsArgs),
    /// Approve an access request (short form: approve)
    Approve(VoteArgs),
    /// Deny an access request (short form: deny)
    Deny(VoteArgs),
    /// Cancel an access request of your own task (agents)
    Cancel(CancelRequestArgs),
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
            let after = task.cancel(args.access_request).await?;
            print_status(output, &after);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Watches as the task if one is named or no key is given, as the approver otherwise.
async fn watch(common: &Common, output: &Output, args: WatchRequestsArgs) -> Result<ExitCode, CliError> {
    let Some(id) = args.access_request else {
        return watch_inbox(output, &args.key.person_client(common)?).await;
    };
    if args.task.is_given() || !args.key.is_given() {
        let task = args.task.attach(common, &args.evidence)?;
        return watch_as_task(output, &task, id).await;
    }
    let client = args.key.person_client(common)?;
    let card = client.card(id).await?;
    wait_until_decided(output, &client, card, Verdict::Approve).await
}

/// Prints each status of an access request until it is decided; the exit code is that of the decision.
async fn watch_as_task(output: &Output, task: &Task, id: AccessRequestId) -> Result<ExitCode, CliError> {
    let mut watch = task.watch(id);
    while let Some(request) = watch.next().await? {
        print_status(output, &request);
        if request.status() != v1::AccessRequestStatus::Waiting {
            let status = card::standing(request.status).map_err(CliError::from)?;
            return Ok(ExitCode::from(exit_code(status, Verdict::Approve).number()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_status(output: &Output, request: &v1::AccessRequest) {
    output.print(
        || render::access_request_json(request),
        || {
            let status = render::status(request.status);
            let progress = match (status, request.needs.as_slice()) {
                ("waiting", [_, ..]) => format!(": {}", render::profile_lines(&request.needs).replace('\n', "; ")),
                _ => String::new(),
            };
            format!("{} is {status}{progress}", escape_invisible(&request.access_request_id))
        },
    );
}

/// Prints the inbox and then each change, until interrupted. A broken stream resumes from its last position.
async fn watch_inbox(output: &Output, client: &Person) -> Result<ExitCode, CliError> {
    let mut after = None;
    loop {
        let mut stream = match client.watch_inbox(after).await {
            Ok(stream) => stream,
            Err(error) if after.is_some() && error.retryable() => {
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // The stream ends when the broker wants a new proof or stops; a silent one is given up.
        while let Ok(Ok(Some(message))) = tokio::time::timeout(SILENCE_MAX, stream.message()).await {
            match message.message {
                Some(Message::Snapshot(snapshot)) => {
                    print_inbox(output, client, "inbox", None).await?;
                    after = snapshot.as_of;
                }
                Some(Message::Change(change)) => {
                    print_change(output, client, &change).await?;
                    after = change.position;
                }
                Some(Message::Turn(_)) => print_inbox(output, client, "inbox", None).await?,
                Some(Message::Heartbeat(heartbeat)) => after = heartbeat.read_through,
                None => {}
            }
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn print_change(output: &Output, client: &Person, change: &v1::InboxChange) -> Result<(), CliError> {
    let ids = &change.access_request_ids;
    match change.kind() {
        v1::InboxChangeKind::Opened => print_inbox(output, client, "opened", Some(ids)).await,
        v1::InboxChangeKind::Voted => print_inbox(output, client, "voted", Some(ids)).await,
        v1::InboxChangeKind::Rules => print_inbox(output, client, "policy changed", None).await,
        v1::InboxChangeKind::Closed | v1::InboxChangeKind::Unspecified => {
            output.print(
                || json!({ "event": "closed", "access_requests": ids }),
                || format!("closed  {}", escape_invisible(&ids.join(" "))),
            );
            Ok(())
        }
    }
}

/// Prints the rows of the inbox, or those of the access requests named.
async fn print_inbox(output: &Output, client: &Person, event: &str, only: Option<&[String]>) -> Result<(), CliError> {
    let (mut rows, _) = client.inbox_rows().await?;
    if let Some(ids) = only {
        rows.retain(|row| {
            let request = row.access_request.as_ref();
            request.is_some_and(|request| ids.contains(&request.access_request_id))
        });
    }
    output.print(
        || json!({ "event": event, "access_requests": rows.iter().map(inbox::to_json).collect::<Value>() }),
        || match rows.as_slice() {
            [] => format!("{event}  no access request for you"),
            rows => format!("{event}\n{}", inbox::rows_table(rows, Clock::system().now())),
        },
    );
    Ok(())
}

/// Between two attempts to reopen the stream.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// A stream without a message for this long is reopened: the broker sends a heartbeat every five seconds.
const SILENCE_MAX: Duration = Duration::from_secs(20);
