//! `task`: the bounded piece of work that tokens belong to.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::error::CliError;
use super::connect::{self, KeyArgs};
use super::output::{FieldList, table};
use super::task_store::{self, EvidenceArgs, SavedTask};
use super::{Common, Output, parse, render};
use crate::client::{self, OpenTask};
use crate::clock::Clock;
use crate::model::text::{escape_invisible, escape_invisible_capped};
use crate::model::{AccessRequestId, AgentId, TaskId, TaskOutcome};
use crate::proto::v1;

#[derive(Debug, Subcommand)]
pub(super) enum TaskCommand {
    /// OpenTaskArgs a task: gate 1
    OpenTaskArgs(OpenTaskArgs),
    /// ShowTasksArgs the tasks opened from here, or one of their access requests
    ShowTasksArgs(ShowTasksArgs),
    /// Extend the lease of a task opened with a heartbeat
    KeepAliveArgs(KeepAliveArgs),
    /// Take an access request back
    CancelRequestArgs(CancelRequestArgs),
    /// Output that the work is done: the task's tokens end
    CompleteArgs(CompleteArgs),
    /// List everybody's tasks, the newest first (operators)
    List {
        /// Of this agent only
        #[arg(long, value_name = "AGENT", value_parser = AgentId::parse)]
        agent: Option<AgentId>,
        /// Those that are over too
        #[arg(long)]
        ended: bool,
        /// Most rows
        #[arg(long, default_value = "100")]
        max: usize,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// ShowTasksArgs what happened in a task, from its verification to its end (operators, and approvers it asked)
    Timeline {
        /// The task
        #[arg(value_parser = TaskId::parse)]
        task: TaskId,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// End anybody's task (operators)
    End {
        /// The task
        #[arg(value_parser = TaskId::parse)]
        task: TaskId,
        #[command(flatten)]
        key: KeyArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct OpenTaskArgs {
    /// Why, in your words; people see it as unverified
    #[arg(long)]
    purpose: String,
    /// How long it may run; the broker clamps it
    #[arg(long, default_value = "10m", value_parser = parse::seconds)]
    max_duration: u32,
    /// End the task when this long passes without a sign of life ('task keep-alive'), such as 30s
    #[arg(long, value_name = "DURATION", value_parser = parse::seconds)]
    heartbeat: Option<u32>,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Keep the task's key here [default: made, and found again by the task's id]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// TaskSelector of one's own tasks.
#[derive(Debug, Args)]
pub(super) struct TaskSelector {
    /// The task [default: the one opened last]
    #[arg(long, value_name = "TASK", value_parser = TaskId::parse)]
    task: Option<TaskId>,
    /// Its key, where it was kept elsewhere
    #[arg(long, value_name = "FILE", requires = "task")]
    key: Option<PathBuf>,
}

impl TaskSelector {
    pub(super) fn attach(
        &self,
        common: &Common,
        evidence: &EvidenceArgs,
    ) -> Result<client::Task, CliError> {
        match (&self.key, self.task) {
            (Some(key), Some(task)) => task_store::attach_with_key(common, task, key, evidence),
            (None | Some(_), task) => SavedTask::load(task)?.attach(common, evidence),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ShowTasksArgs {
    #[command(flatten)]
    which: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// ShowTasksArgs how this access request of the task stands
    #[arg(long, value_name = "ID", value_parser = AccessRequestId::parse)]
    access_request: Option<AccessRequestId>,
}

#[derive(Debug, Args)]
pub(super) struct KeepAliveArgs {
    #[command(flatten)]
    which: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

#[derive(Debug, Args)]
pub(super) struct CancelRequestArgs {
    /// The access request
    #[arg(value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    access_request: AccessRequestId,
    #[command(flatten)]
    which: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

#[derive(Debug, Args)]
pub(super) struct CompleteArgs {
    #[command(flatten)]
    which: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// How it went
    #[arg(long, value_enum, default_value = "succeeded")]
    outcome: OutcomeArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OutcomeArg {
    Succeeded,
    Failed,
    Abandoned,
}

pub(super) async fn run(common: &Common, output: &Output, command: TaskCommand) -> Result<ExitCode, CliError> {
    match command {
        TaskCommand::OpenTaskArgs(open) => self::open(common, output, open).await?,
        TaskCommand::ShowTasksArgs(show) => self::show(common, output, show).await?,
        TaskCommand::KeepAliveArgs(args) => {
            let task = args.which.attach(common, &args.evidence)?;
            let until = task.keep_alive().await?;
            output.print(
                || json!({ "task": task.id(), "lease_until": until.to_string() }),
                || {
                    format!(
                        "{} lives until {until} unless it is kept alive again",
                        task.id()
                    )
                },
            );
        }
        TaskCommand::CancelRequestArgs(cancel) => {
            let task = cancel.which.attach(common, &cancel.evidence)?;
            let after = task.cancel(cancel.access_request).await?;
            output.print(
                || render::access_request_json(&after),
                || {
                    format!(
                        "{} is {}",
                        cancel.access_request,
                        render::status(after.status)
                    )
                },
            );
        }
        TaskCommand::CompleteArgs(complete) => {
            let task = complete.which.attach(common, &complete.evidence)?;
            let outcome = match complete.outcome {
                OutcomeArg::Succeeded => TaskOutcome::Succeeded,
                OutcomeArg::Failed => TaskOutcome::Failed,
                OutcomeArg::Abandoned => TaskOutcome::Abandoned,
            };
            let report = task.complete(outcome).await?;
            if complete.which.key.is_none() {
                // The task is over for good: its key opens nothing any more.
                SavedTask::load(Some(task.id())).iter().for_each(SavedTask::delete);
            }
            output.print(|| render::end_report_json(&report), || render::end_line(&report));
        }
        TaskCommand::List {
            agent,
            ended,
            max,
            key,
        } => {
            let tasks = key
                .person_client(common)?
                .tasks(agent.as_ref(), ended, max)
                .await?;
            list(output, &tasks);
        }
        TaskCommand::Timeline { task, key } => {
            timeline(output, &key.person_client(common)?.timeline(task).await?);
        }
        TaskCommand::End { task, key } => {
            let report = key.person_client(common)?.end_task(task).await?;
            output.print(|| render::end_report_json(&report), || render::end_line(&report));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn timeline(output: &Output, told: &v1::GetTimelineResponse) {
    output.print(
        || {
            let to_json = |m: &v1::Moment| {
                json!({
                    "entry": m.index, "at": render::timestamp_json(m.at.as_ref()), "kind": (!m.kind.is_empty()).then_some(&m.kind),
                    "what": m.what, "who": m.who, "detail": m.detail, "ids": m.ids,
                })
            };
            json!({
                "task": told.task_id, "agent": told.agent_id, "owner": told.owner,
                "ended": (!told.ended.is_empty()).then_some(&told.ended), "left_out": told.left_out,
                "moments": told.moments.iter().map(to_json).collect::<Value>(),
            })
        },
        || {
            let state = match told.ended.as_str() {
                "" => "runs".to_owned(),
                cause => format!("over: {}", escape_invisible(cause)),
            };
            let left_out = match told.left_out {
                0 => String::new(),
                n => format!(", {n} entries in its midst left out"),
            };
            let row = |m: &v1::Moment| {
                vec![
                    render::timestamp(m.at.as_ref()),
                    m.index.map(|index| index.to_string()).unwrap_or_default(),
                    escape_invisible(&m.what),
                    escape_invisible(&m.who),
                    escape_invisible(&m.detail),
                ]
            };
            let head = ["WHEN", "ENTRY", "WHAT", "WHO", ""].map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(head).chain(told.moments.iter().map(row)).collect();
            format!(
                "{} of {} (owner {}), {state}{left_out}\n{}",
                escape_invisible(&told.task_id),
                escape_invisible(&told.agent_id),
                escape_invisible(&told.owner),
                table(&rows)
            )
        },
    );
}

fn list(output: &Output, tasks: &[v1::TaskRow]) {
    let now = Clock::system().now();
    output.print(
        || {
            let to_json = |t: &v1::TaskRow| {
                json!({
                    "task": t.task_id, "agent": t.agent_id, "owner": t.owner, "opened_at": render::timestamp_json(t.opened_at.as_ref()),
                    "deadline": render::timestamp_json(t.deadline.as_ref()), "lease_until": render::timestamp_json(t.lease_until.as_ref()),
                    "ended": (!t.ended.is_empty()).then_some(&t.ended), "tokens_live": t.tokens_live,
                    "access_requests_waiting": t.access_requests_waiting, "purpose": t.purpose,
                })
            };
            tasks.iter().map(to_json).collect::<Value>()
        },
        || {
            if tasks.is_empty() {
                return "no task".to_owned();
            }
            let head = ["TASK", "AGENT", "OWNER", "LEFT", "TOKENS", "WAITING", "AGENT SAYS (UNVERIFIED)"];
            let row = |t: &v1::TaskRow| {
                let left = match t.ended.as_str() {
                    "" => render::remaining(t.lease_until.as_ref().or(t.deadline.as_ref()), now),
                    cause => format!("over: {}", escape_invisible(cause)),
                };
                vec![
                    escape_invisible(&t.task_id),
                    escape_invisible(&t.agent_id),
                    escape_invisible(&t.owner),
                    left,
                    t.tokens_live.to_string(),
                    t.access_requests_waiting.to_string(),
                    escape_invisible_capped(&t.purpose, 60),
                ]
            };
            let head = head.map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(head).chain(tasks.iter().map(row)).collect();
            table(&rows)
        },
    );
}

async fn open(common: &Common, output: &Output, args: OpenTaskArgs) -> Result<(), CliError> {
    let endpoint = connect::endpoint(common)?;
    let url = endpoint.url().to_owned();
    let (source, kept) = args.evidence.source(common)?;
    let (key, key_file) = task_store::new_key(args.key.as_deref())?;
    let agent = client::Agent::new(endpoint, source, Some(key));
    let order = OpenTask {
        purpose: args.purpose.clone(),
        max_duration_s: i64::from(args.max_duration),
        request_id: None,
        heartbeat_s: args.heartbeat,
    };
    let task = match agent.open_task(&order).await {
        Ok(task) => task,
        Err(error) => {
            task_store::delete_unused_key(args.key.as_deref(), &key_file);
            return Err(error.into());
        }
    };
    let kept = SavedTask::new(&task, &url, key_file, &args.purpose, kept)?.save(args.key.is_some())?;
    let now = Clock::system().now();
    let verification = task.verification().cloned().unwrap_or_default();
    output.print(
        || {
            json!({
                "task": kept.task, "agent": kept.agent, "deadline": kept.deadline.to_string(), "key": kept.key,
                "verification": {
                    "evidence_kind": verification.evidence_kind, "subject": verification.subject,
                    "verified_at": render::timestamp_json(verification.verified_at.as_ref()),
                    "expires_at": render::timestamp_json(verification.expires_at.as_ref()),
                },
            })
        },
        || {
            let mut fields = FieldList::default();
            fields.row("task", kept.task.to_string())
                .row("agent", kept.agent.to_string())
                .row("verified", format!("{} by {}", escape_invisible(&verification.subject), escape_invisible(&verification.evidence_kind)))
                .row("ends", format!("{}, {}", kept.deadline, render::relative_time(kept.deadline, now)))
                .row("key", kept.key.display().to_string());
            fields.to_text()
        },
    );
    Ok(())
}

async fn show(common: &Common, output: &Output, args: ShowTasksArgs) -> Result<(), CliError> {
    let now = Clock::system().now();
    if let Some(id) = args.access_request {
        let request = args
            .which
            .attach(common, &args.evidence)?
            .access_request(id)
            .await?;
        output.print(
            || render::access_request_json(&request),
            || {
                let mut fields = FieldList::default();
                fields.row(
                    "access request",
                    escape_invisible(&request.access_request_id),
                )
                .row("status", render::status(request.status))
                .untrusted_row("what", &request.title)
                .row(
                    "target",
                    render::target(request.action.as_ref().and_then(|a| a.target.as_ref())),
                )
                .row("needs", render::profile_lines(&request.needs))
                .row("until", render::timestamp_with_distance(request.expires_at.as_ref(), now));
                fields.to_text()
            },
        );
        return Ok(());
    }
    let tasks = match args.which.task {
        Some(task) => vec![SavedTask::load(Some(task))?],
        None => SavedTask::load_all()?,
    };
    let runs = |kept: &SavedTask| {
        if now < kept.deadline {
            render::relative_time(kept.deadline, now)
        } else {
            "over".to_owned()
        }
    };
    output.print(
        || {
            let one = |kept: &SavedTask| {
                json!({
                    "task": kept.task, "agent": kept.agent, "url": kept.url, "key": kept.key, "purpose": kept.purpose,
                    "deadline": kept.deadline.to_string(),
                })
            };
            tasks.iter().map(one).collect::<Value>()
        },
        || {
            if tasks.is_empty() {
                return "no task was opened from here; 'dipylon task open' opens one".to_owned();
            }
            let head = ["TASK", "AGENT", "ENDS", "BROKER", "PURPOSE"].map(str::to_owned).to_vec();
            let row = |kept: &SavedTask| {
                vec![kept.task.to_string(), kept.agent.to_string(), runs(kept), escape_invisible(&kept.url), escape_invisible(&kept.purpose)]
            };
            table(&std::iter::once(head).chain(tasks.iter().map(row)).collect::<Vec<_>>())
        },
    );
    Ok(())
}
