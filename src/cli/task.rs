//! `task`: open, show, keep alive and complete tasks; list and end them as an operator.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::connect::{self, KeyArgs};
use super::error::CliError;
use super::output::{FieldList, table};
use super::task_store::{self, EvidenceArgs, SavedTask};
use super::{Common, Output, parse, render, state_sweep};
use crate::client::{self, OpenTaskRequest};
use crate::clock::Clock;
use crate::model::text::{cut, escape_invisible, escape_rendered, quote};
use crate::model::{
    AccessRequestId, AgentId, EndCause, Exit, Reason, TaskId, TaskOutcome, Timestamp,
};

#[derive(Debug, Subcommand)]
pub(super) enum TaskCommand {
    /// Open a task: authenticates the workload (gate 1)
    Open(OpenTaskArgs),
    /// List the tasks opened from this machine, as their brokers know them, or show one of their access requests
    Show(ShowTasksArgs),
    /// Extend the lease of a task opened with --heartbeat
    KeepAlive(KeepAliveArgs),
    /// Complete a task and revoke its tokens; may be repeated, and says how a task ended that had ended before
    Complete(CompleteArgs),
    /// List the tasks of all agents, the newest first (operators)
    List {
        /// Only tasks of this agent
        #[arg(long, value_name = "AGENT", value_parser = AgentId::parse)]
        agent: Option<AgentId>,
        /// Include tasks that have ended
        #[arg(long)]
        ended: bool,
        /// Maximum number of rows
        #[arg(long, default_value = "100")]
        max: usize,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Show the events of a task, from its verification to its end (operators, and its approvers)
    Timeline {
        /// The task
        #[arg(value_parser = TaskId::parse)]
        task: TaskId,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// End a task of any agent (operators)
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
    /// Purpose of the task, shown to approvers as unverified
    #[arg(long)]
    purpose: String,
    /// Longest duration of the task; the broker may shorten it
    #[arg(long, default_value = "1h", value_parser = parse::seconds)]
    max_duration: u32,
    /// End the task when no 'task keep-alive' arrives for this long, such as 30s
    #[arg(long, value_name = "DURATION", value_parser = parse::seconds)]
    heartbeat: Option<u32>,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// The task's private key; created if the file does not exist [default: a new key, saved under the task's id]
    #[arg(long, value_name = "FILE")]
    task_key: Option<PathBuf>,
}

/// A task opened from this machine, or one with its key file.
#[derive(Debug, Args)]
pub(super) struct TaskSelector {
    /// The task [default: the one its agent opened last in this directory; refused if several agents did]
    #[arg(long, value_name = "TASK", env = task_store::TASK_SELECTOR, value_parser = TaskId::parse)]
    task: Option<TaskId>,
    /// The task's private key, if it is not saved on this machine
    #[arg(long, value_name = "FILE", requires = "task")]
    task_key: Option<PathBuf>,
}

impl TaskSelector {
    /// Whether a task was given.
    pub(super) const fn is_given(&self) -> bool {
        self.task.is_some()
    }

    pub(super) fn attach(
        &self,
        common: &Common,
        evidence: &EvidenceArgs,
    ) -> Result<client::TaskHandle, CliError> {
        match (&self.task_key, self.task) {
            (Some(key), Some(task)) => task_store::attach_with_key(common, task, key, evidence),
            (None | Some(_), _) => self.saved(common, evidence)?.attach(common, evidence),
        }
    }

    /// The saved task that was given, or the current one.
    fn saved(&self, common: &Common, evidence: &EvidenceArgs) -> Result<SavedTask, CliError> {
        match self.task {
            Some(task) => SavedTask::load(task),
            None => SavedTask::current(common, evidence.agent()),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ShowTasksArgs {
    #[command(flatten)]
    selector: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Show the status of this access request of the task
    #[arg(long, value_name = "ID", value_parser = AccessRequestId::parse)]
    access_request: Option<AccessRequestId>,
}

#[derive(Debug, Args)]
pub(super) struct KeepAliveArgs {
    #[command(flatten)]
    selector: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

#[derive(Debug, Args)]
pub(super) struct CompleteArgs {
    #[command(flatten)]
    selector: TaskSelector,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Outcome of the work
    #[arg(long, value_enum, default_value = "succeeded")]
    outcome: OutcomeArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OutcomeArg {
    Succeeded,
    Failed,
    Abandoned,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    command: TaskCommand,
) -> Result<ExitCode, CliError> {
    match command {
        TaskCommand::Open(open) => self::open(common, output, open).await?,
        TaskCommand::Show(show) => self::show(common, output, show).await?,
        TaskCommand::KeepAlive(args) => {
            let task = args.selector.attach(common, &args.evidence)?;
            let until = task.keep_alive().await?;
            output.print(
                || json!({ "task": task.id(), "lease_until": until.to_string() }),
                || {
                    format!(
                        "{} ends at {until} unless another keep-alive arrives",
                        task.id()
                    )
                },
            );
        }
        TaskCommand::Complete(args) => return complete(common, output, args).await,
        TaskCommand::List {
            agent,
            ended,
            max,
            key,
        } => {
            let tasks = key
                .operator_client(common)?
                .tasks(agent.as_ref(), ended, max)
                .await?;
            list(output, &tasks);
        }
        TaskCommand::Timeline { task, key } => {
            timeline(output, &key.operator_client(common)?.timeline(task).await?);
        }
        TaskCommand::End { task, key } => {
            let report = key.operator_client(common)?.end_task(task).await?;
            output.print(
                || render::end_report_json(&report),
                || render::end_line(&report),
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn timeline(output: &Output, timeline: &client::TaskTimeline) {
    output.print(
        || {
            let to_json = |m: &client::TimelineEntry| {
                json!({
                    "entry": m.index, "at": render::timestamp_json(m.at.as_ref()), "kind": (!m.kind.is_empty()).then_some(&m.kind),
                    "what": m.what, "who": m.who, "detail": m.detail, "ids": m.ids,
                })
            };
            json!({
                "task": timeline.task_id, "agent": timeline.agent_id, "owner": timeline.owner,
                "ended": (!timeline.ended.is_empty()).then_some(&timeline.ended), "omitted": timeline.left_out,
                "entries": timeline.entries.iter().map(to_json).collect::<Value>(),
            })
        },
        || {
            let state = match timeline.ended.as_str() {
                "" => "running".to_owned(),
                cause => format!("ended: {}", escape_invisible(cause)),
            };
            let omitted = match timeline.left_out {
                0 => String::new(),
                n => format!(", {n} entries in the middle omitted"),
            };
            let row = |m: &client::TimelineEntry| {
                vec![
                    render::timestamp(m.at.as_ref()),
                    m.index.map(|index| index.to_string()).unwrap_or_default(),
                    escape_rendered(&m.what),
                    escape_rendered(&m.who),
                    escape_rendered(&m.detail),
                ]
            };
            let head = ["TIME", "ENTRY", "EVENT", "BY", "DETAIL"].map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(head).chain(timeline.entries.iter().map(row)).collect();
            format!(
                "{} of {} (owner {}), {state}{omitted}\n{}",
                escape_invisible(&timeline.task_id),
                escape_invisible(&timeline.agent_id),
                escape_invisible(&timeline.owner),
                table(&rows)
            )
        },
    );
}

/// The agent's words, in quotes: at most so many characters, and how many more there are.
fn quoted_purpose(purpose: &str) -> String {
    let (head, more) = cut(purpose, PURPOSE_CHARS_MAX);
    let head = escape_invisible(&quote(head));
    match more {
        0 => head,
        more => format!("{head}<+{more} characters>"),
    }
}

/// Longest purpose in a list, in characters.
const PURPOSE_CHARS_MAX: usize = 60;

fn list(output: &Output, tasks: &[client::TaskInfo]) {
    let now = Clock::system().now();
    output.print(
        || {
            let to_json = |t: &client::TaskInfo| {
                json!({
                    "task": t.task_id, "agent": t.agent_id, "owner": t.owner, "opened_at": render::timestamp_json(t.opened_at.as_ref()),
                    "deadline": render::timestamp_json(t.deadline.as_ref()), "lease_until": render::timestamp_json(t.lease_until.as_ref()),
                    "ended": (!t.ended.is_empty()).then_some(&t.ended), "tokens_active": t.tokens_active,
                    "access_requests_waiting": t.access_requests_waiting, "purpose": t.purpose,
                })
            };
            tasks.iter().map(to_json).collect::<Value>()
        },
        || {
            if tasks.is_empty() {
                return "no tasks".to_owned();
            }
            let head = ["TASK", "AGENT", "OWNER", "LEFT", "TOKENS", "WAITING", "AGENT SAYS (UNVERIFIED)"];
            let row = |t: &client::TaskInfo| {
                let left = match t.ended.as_str() {
                    "" => render::remaining(t.lease_until.as_ref().or(t.deadline.as_ref()), now),
                    cause => format!("ended: {}", escape_invisible(cause)),
                };
                vec![
                    escape_invisible(&t.task_id),
                    escape_invisible(&t.agent_id),
                    escape_invisible(&t.owner),
                    left,
                    t.tokens_active.to_string(),
                    t.access_requests_waiting.to_string(),
                    quoted_purpose(&t.purpose),
                ]
            };
            let head = head.map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(head).chain(tasks.iter().map(row)).collect();
            table(&rows)
        },
    );
}

async fn open(common: &Common, output: &Output, args: OpenTaskArgs) -> Result<(), CliError> {
    // All that can fail comes before the task is opened: a task whose id is lost runs until its deadline.
    let directory = task_store::current_dir()?;
    task_store::require_writable_state()?;
    state_sweep::run(common, &Clock::system()).await;
    let endpoint = connect::endpoint(common)?;
    let url = endpoint.url().to_owned();
    let (source, saved) = args.evidence.source(common)?;
    let (key, key_file) = task_store::new_key(args.task_key.as_deref())?;
    let agent = client::AgentClient::new(endpoint, source, Some(key));
    let order = OpenTaskRequest {
        purpose: args.purpose.clone(),
        max_duration_s: i64::from(args.max_duration),
        idempotency_key: None,
        heartbeat_s: args.heartbeat,
    };
    let task = match agent.open_task(&order).await {
        Ok(task) => task,
        Err(error) => {
            task_store::delete_unused_key(args.task_key.as_deref(), &key_file);
            return Err(error.into());
        }
    };
    let mut saved = SavedTask::new(&task, &url, key_file, &args.purpose, saved)?;
    if let Err(mut error) = saved.save(args.task_key.is_some(), directory) {
        let (id, key) = (task.id(), saved.key.display());
        error.message = format!("{id} was opened, but could not be saved: {}", error.message);
        return Err(error.with_next_step(format!(
            "use it, or end it, with --task {id} --task-key {key}"
        )));
    }
    let now = Clock::system().now();
    let verification = task.verification().cloned().unwrap_or_default();
    output.print(
        || {
            json!({
                "task": saved.task, "agent": saved.agent, "deadline": saved.deadline.to_string(), "key": saved.key,
                "verification": {
                    "evidence_kind": verification.evidence_kind, "subject": verification.subject,
                    "verified_at": render::timestamp_json(verification.verified_at.as_ref()),
                    "expires_at": render::timestamp_json(verification.expires_at.as_ref()),
                },
            })
        },
        || {
            let mut fields = FieldList::default();
            fields.row("task", saved.task.to_string())
                .row("agent", saved.agent.to_string())
                .row("verified", format!("{} by {}", escape_invisible(&verification.subject), escape_invisible(&verification.evidence_kind)))
                .row("ends", format!("{}, {}", saved.deadline, render::relative_time(saved.deadline, now)))
                .row("key", saved.key.display().to_string());
            fields.to_text()
        },
    );
    Ok(())
}

async fn show(common: &Common, output: &Output, args: ShowTasksArgs) -> Result<(), CliError> {
    let now = Clock::system().now();
    if let Some(id) = args.access_request {
        let request = args
            .selector
            .attach(common, &args.evidence)?
            .access_request(id)
            .await?;
        output.print(
            || render::access_request_json(&request),
            || {
                let mut fields = FieldList::default();
                fields
                    .row(
                        "access request",
                        escape_invisible(&request.access_request_id),
                    )
                    .row("status", render::status(request.status))
                    .untrusted_row("title", &request.title)
                    .row(
                        "target",
                        render::target(request.action.as_ref().map(|a| &a.target)),
                    )
                    .row("needs", render::profile_lines(&request.needs))
                    .row(
                        "until",
                        render::timestamp_with_distance(request.expires_at.as_ref(), now),
                    );
                fields.to_text()
            },
        );
        return Ok(());
    }
    let tasks = match args.selector.task {
        Some(task) => vec![SavedTask::load(task)?],
        None => SavedTask::load_all()?,
    };
    let tasks = with_states(common, tasks).await;
    output.print(
        || {
            let to_json = |(saved, state): &(SavedTask, TaskState)| {
                let (state, end_cause, ended_at) = match state {
                    TaskState::Running => ("running", None, None),
                    TaskState::Ended { cause, at } => ("ended", Some(cause), *at),
                    TaskState::Unknown(_) => ("unknown", None, None),
                };
                json!({
                    "task": saved.task, "agent": saved.agent, "url": saved.url, "key": saved.key, "purpose": saved.purpose,
                    "deadline": saved.deadline.to_string(), "directory": saved.directory(), "state": state,
                    "end_cause": end_cause, "ended_at": render::timestamp_json(ended_at.as_ref()),
                })
            };
            tasks.iter().map(to_json).collect::<Value>()
        },
        || {
            if tasks.is_empty() {
                return "no task was opened from this machine; open one with 'dipylon task open'".to_owned();
            }
            let head = ["TASK", "AGENT", "STATE", "DIRECTORY", "BROKER", "PURPOSE"].map(str::to_owned).to_vec();
            let row = |(saved, state): &(SavedTask, TaskState)| {
                let state = match state {
                    TaskState::Running => format!("ends {}", render::relative_time(saved.deadline, now)),
                    TaskState::Ended { cause, at: Some(at) } => {
                        format!("ended ({}) {}", escape_invisible(cause), render::relative_time(*at, now))
                    }
                    TaskState::Ended { cause, at: None } => format!("ended ({})", escape_invisible(cause)),
                    TaskState::Unknown(why) => format!("unknown: {why}"),
                };
                let directory = saved.directory().map_or_else(|| "-".to_owned(), |dir| escape_invisible(&dir.display().to_string()));
                vec![saved.task.to_string(), saved.agent.to_string(), state, directory, escape_invisible(&saved.url), quoted_purpose(&saved.purpose)]
            };
            table(&std::iter::once(head).chain(tasks.iter().map(row)).collect::<Vec<_>>())
        },
    );
    Ok(())
}

/// The state of a saved task, as its broker knows it.
enum TaskState {
    Running,
    Ended {
        cause: String,
        at: Option<Timestamp>,
    },
    /// The broker could not be asked, or does not know the task; the reason.
    Unknown(String),
}

/// Asks the brokers about all tasks at once.
async fn with_states(common: &Common, tasks: Vec<SavedTask>) -> Vec<(SavedTask, TaskState)> {
    let calls: Vec<_> = tasks
        .into_iter()
        .map(|saved| {
            let common = common.clone();
            tokio::spawn(async move {
                let mut saved = saved;
                let state = state(&common, &saved).await;
                if let TaskState::Ended { at, .. } = &state {
                    // Not known next time, then: the broker is asked again.
                    let _ignored = saved.mark_ended(at.unwrap_or_else(|| Clock::system().now()));
                }
                (saved, state)
            })
        })
        .collect();
    let mut out = Vec::with_capacity(calls.len());
    for call in calls {
        // A call is neither cancelled nor panics.
        out.extend(call.await);
    }
    out
}

async fn state(common: &Common, saved: &SavedTask) -> TaskState {
    match saved.status(common).await {
        Ok(status) if status.end_cause.is_empty() => TaskState::Running,
        Ok(status) => TaskState::Ended {
            cause: status.end_cause,
            at: status.ended_at,
        },
        Err(error) if error.reason == Some(Reason::NotFound) => {
            TaskState::Unknown("the broker does not have it".to_owned())
        }
        Err(error) => TaskState::Unknown(error.message),
    }
}

/// Completes the task. One that had ended for another cause is not completed: its report says so, and so does the exit code.
async fn complete(
    common: &Common,
    output: &Output,
    args: CompleteArgs,
) -> Result<ExitCode, CliError> {
    let (task, saved) = match args.selector.task_key {
        Some(_) => (args.selector.attach(common, &args.evidence)?, None),
        None => {
            let saved = args.selector.saved(common, &args.evidence)?;
            (saved.attach(common, &args.evidence)?, Some(saved))
        }
    };
    let outcome = match args.outcome {
        OutcomeArg::Succeeded => TaskOutcome::Succeeded,
        OutcomeArg::Failed => TaskOutcome::Failed,
        OutcomeArg::Abandoned => TaskOutcome::Abandoned,
    };
    let report = task.complete(outcome).await?;
    if let Some(mut saved) = saved {
        saved.mark_ended(report.ended_at.unwrap_or_else(|| Clock::system().now()))?;
    }
    let is_completed = report.cause == EndCause::Completed.as_str();
    output.print(
        || render::end_report_json(&report),
        || match is_completed {
            true => render::end_line(&report),
            false => format!("not completed: {}", render::end_line(&report)),
        },
    );
    Ok(match is_completed {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Exit::Conflict.number()),
    })
}
