//! `task`: the bounded piece of work that tokens belong to.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::failure::Failure;
use super::net::{self, KeyArgs};
use super::say::{Rows, table};
use super::store::{self, EvidenceArgs, Kept};
use super::{Common, Say, parse, shapes};
use crate::client::{self, OpenTaskRequest};
use crate::clock::Clock;
use crate::model::text::{escape_invisible, escape_invisible_capped};
use crate::model::{AccessRequestId, AgentId, TaskId, TaskOutcome};

#[derive(Debug, Subcommand)]
pub(super) enum Task {
    /// Open a task: gate 1
    Open(Open),
    /// Show the tasks opened from here, or one of their access requests
    Show(Show),
    /// Extend the lease of a task opened with a heartbeat
    KeepAlive(KeepAlive),
    /// Take an access request back
    Cancel(Cancel),
    /// Say that the work is done: the task's tokens end
    Complete(Complete),
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
    /// Show what happened in a task, from its verification to its end (operators, and approvers it asked)
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
pub(super) struct Open {
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

/// Which of one's own tasks.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The task [default: the one opened last]
    #[arg(long, value_name = "TASK", value_parser = TaskId::parse)]
    task: Option<TaskId>,
    /// Its key, where it was kept elsewhere
    #[arg(long, value_name = "FILE", requires = "task")]
    key: Option<PathBuf>,
}

impl Which {
    pub(super) fn attach(
        &self,
        common: &Common,
        evidence: &EvidenceArgs,
    ) -> Result<client::TaskHandle, Failure> {
        match (&self.key, self.task) {
            (Some(key), Some(task)) => store::attach_by_key(common, task, key, evidence),
            (None | Some(_), task) => Kept::find(task)?.attach(common, evidence),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Show how this access request of the task stands
    #[arg(long, value_name = "ID", value_parser = AccessRequestId::parse)]
    access_request: Option<AccessRequestId>,
}

#[derive(Debug, Args)]
pub(super) struct KeepAlive {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// The access request
    #[arg(value_name = "ACCESS_REQUEST", value_parser = AccessRequestId::parse)]
    access_request: AccessRequestId,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

#[derive(Debug, Args)]
pub(super) struct Complete {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// How it went
    #[arg(long, value_enum, default_value = "succeeded")]
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Outcome {
    Succeeded,
    Failed,
    Abandoned,
}

pub(super) async fn run(common: &Common, say: &Say, verb: Task) -> Result<ExitCode, Failure> {
    match verb {
        Task::Open(open) => self::open(common, say, open).await?,
        Task::Show(show) => self::show(common, say, show).await?,
        Task::KeepAlive(verb) => {
            let task = verb.which.attach(common, &verb.evidence)?;
            let until = task.keep_alive().await?;
            say.either(
                || json!({ "task": task.id(), "lease_until": until.to_string() }),
                || {
                    format!(
                        "{} lives until {until} unless it is kept alive again",
                        task.id()
                    )
                },
            );
        }
        Task::Cancel(cancel) => {
            let task = cancel.which.attach(common, &cancel.evidence)?;
            let after = task.cancel(cancel.access_request).await?;
            say.either(
                || shapes::access_request(&after),
                || {
                    format!(
                        "{} is {}",
                        cancel.access_request,
                        shapes::status(after.status)
                    )
                },
            );
        }
        Task::Complete(complete) => {
            let task = complete.which.attach(common, &complete.evidence)?;
            let outcome = match complete.outcome {
                Outcome::Succeeded => TaskOutcome::Succeeded,
                Outcome::Failed => TaskOutcome::Failed,
                Outcome::Abandoned => TaskOutcome::Abandoned,
            };
            let report = task.complete(outcome).await?;
            if complete.which.key.is_none() {
                // The task is over for good: its key opens nothing any more.
                Kept::find(Some(task.id())).iter().for_each(Kept::forget);
            }
            say.either(|| shapes::end_report(&report), || shapes::end_line(&report));
        }
        Task::List {
            agent,
            ended,
            max,
            key,
        } => {
            let tasks = key
                .operator(common)?
                .tasks(agent.as_ref(), ended, max)
                .await?;
            list(say, &tasks);
        }
        Task::Timeline { task, key } => {
            timeline(say, &key.operator(common)?.timeline(task).await?);
        }
        Task::End { task, key } => {
            let report = key.operator(common)?.end_task(task).await?;
            say.either(|| shapes::end_report(&report), || shapes::end_line(&report));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn timeline(say: &Say, told: &client::TaskTimeline) {
    say.either(
        || {
            let to_json = |m: &client::TimelineEntry| {
                json!({
                    "entry": m.index, "at": shapes::moment(m.at.as_ref()), "kind": (!m.kind.is_empty()).then_some(&m.kind),
                    "what": m.what, "who": m.who, "detail": m.detail, "ids": m.ids,
                })
            };
            json!({
                "task": told.task_id, "agent": told.agent_id, "owner": told.owner,
                "ended": (!told.ended.is_empty()).then_some(&told.ended), "left_out": told.left_out,
                "moments": told.entries.iter().map(to_json).collect::<Value>(),
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
            let row = |m: &client::TimelineEntry| {
                vec![
                    shapes::instant(m.at.as_ref()),
                    m.index.map(|index| index.to_string()).unwrap_or_default(),
                    escape_invisible(&m.what),
                    escape_invisible(&m.who),
                    escape_invisible(&m.detail),
                ]
            };
            let head = ["WHEN", "ENTRY", "WHAT", "WHO", ""].map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(head).chain(told.entries.iter().map(row)).collect();
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

fn list(say: &Say, tasks: &[client::TaskInfo]) {
    let now = Clock::system().now();
    say.either(
        || {
            let to_json = |t: &client::TaskInfo| {
                json!({
                    "task": t.task_id, "agent": t.agent_id, "owner": t.owner, "opened_at": shapes::moment(t.opened_at.as_ref()),
                    "deadline": shapes::moment(t.deadline.as_ref()), "lease_until": shapes::moment(t.lease_until.as_ref()),
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
            let row = |t: &client::TaskInfo| {
                let left = match t.ended.as_str() {
                    "" => shapes::left(t.lease_until.as_ref().or(t.deadline.as_ref()), now),
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

async fn open(common: &Common, say: &Say, verb: Open) -> Result<(), Failure> {
    let endpoint = net::endpoint(common)?;
    let url = endpoint.url().to_owned();
    let (source, kept) = verb.evidence.source(common)?;
    let (key, key_file) = store::new_key(verb.key.as_deref())?;
    let agent = client::AgentClient::new(endpoint, source, Some(key));
    let order = OpenTaskRequest {
        purpose: verb.purpose.clone(),
        max_duration_s: i64::from(verb.max_duration),
        idempotency_key: None,
        heartbeat_s: verb.heartbeat,
    };
    let task = match agent.open_task(&order).await {
        Ok(task) => task,
        Err(error) => {
            store::drop_key(verb.key.as_deref(), &key_file);
            return Err(error.into());
        }
    };
    let kept = Kept::new(&task, &url, key_file, &verb.purpose, kept)?.keep(verb.key.is_some())?;
    let now = Clock::system().now();
    let verification = task.verification().cloned().unwrap_or_default();
    say.either(
        || {
            json!({
                "task": kept.task, "agent": kept.agent, "deadline": kept.deadline.to_string(), "key": kept.key,
                "verification": {
                    "evidence_kind": verification.evidence_kind, "subject": verification.subject,
                    "verified_at": shapes::moment(verification.verified_at.as_ref()),
                    "expires_at": shapes::moment(verification.expires_at.as_ref()),
                },
            })
        },
        || {
            let mut rows = Rows::default();
            rows.own("task", kept.task.to_string())
                .own("agent", kept.agent.to_string())
                .own("verified", format!("{} by {}", escape_invisible(&verification.subject), escape_invisible(&verification.evidence_kind)))
                .own("ends", format!("{}, {}", kept.deadline, shapes::distance(kept.deadline, now)))
                .own("key", kept.key.display().to_string());
            rows.lines()
        },
    );
    Ok(())
}

async fn show(common: &Common, say: &Say, verb: Show) -> Result<(), Failure> {
    let now = Clock::system().now();
    if let Some(id) = verb.access_request {
        let request = verb
            .which
            .attach(common, &verb.evidence)?
            .access_request(id)
            .await?;
        say.either(
            || shapes::access_request(&request),
            || {
                let mut rows = Rows::default();
                rows.own(
                    "access request",
                    escape_invisible(&request.access_request_id),
                )
                .own("status", shapes::status(request.status))
                .theirs("what", &request.title)
                .own(
                    "target",
                    shapes::target(request.action.as_ref().map(|a| &a.target)),
                )
                .own("needs", shapes::profile_lines(&request.needs))
                .own("until", shapes::when(request.expires_at.as_ref(), now));
                rows.lines()
            },
        );
        return Ok(());
    }
    let tasks = match verb.which.task {
        Some(task) => vec![Kept::find(Some(task))?],
        None => Kept::all()?,
    };
    let runs = |kept: &Kept| {
        if now < kept.deadline {
            shapes::distance(kept.deadline, now)
        } else {
            "over".to_owned()
        }
    };
    say.either(
        || {
            let one = |kept: &Kept| {
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
            let row = |kept: &Kept| {
                vec![kept.task.to_string(), kept.agent.to_string(), runs(kept), escape_invisible(&kept.url), escape_invisible(&kept.purpose)]
            };
            table(&std::iter::once(head).chain(tasks.iter().map(row)).collect::<Vec<_>>())
        },
    );
    Ok(())
}
