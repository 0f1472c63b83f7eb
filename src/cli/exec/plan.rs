//! The plan of an `exec`: which task and token to request, new or resumed.

use std::sync::Arc;

use serde_json::json;

use super::ExecArgs;
use super::events::EventPrinter;
use super::lease::TaskLease;
use super::run::ExecRun;
use super::saved::{ResumeData, SavedExec, TaskKeySource};
use crate::cli::Common;
use crate::cli::connect;
use crate::cli::error::CliError;
use crate::cli::parse;
use crate::client::{AgentClient, OpenTaskRequest, TaskHandle, TokenRequest};
use crate::clock::Clock;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, Action};

/// The token request to make, and its task.
pub(super) enum ExecPlan {
    /// Open a new task.
    New {
        agent: AgentClient,
        opening: OpenTaskRequest,
        token_request: TokenRequest,
        resume_data: ResumeData,
    },
    /// An open task whose access request was pending.
    Resume {
        task: Box<TaskHandle>,
        token_request: TokenRequest,
        saved: SavedExec,
    },
}

/// Default heartbeat of a task, in seconds.
const HEARTBEAT_S: u32 = 30;

impl ExecPlan {
    pub(super) fn new(common: &Common, args: &ExecArgs) -> Result<Self, CliError> {
        let (Some(action), Some(target), Some(audience)) =
            (&args.action, &args.target, &args.audience)
        else {
            return Err(CliError::usage("no action given")
                .with_next_step("give one with --action, --target and --audience"));
        };
        let action = Action::new(
            action.clone(),
            audience.clone(),
            target.clone(),
            parse::params(args.params.clone())?,
        )?;
        let purpose = match &args.purpose {
            Some(purpose) => purpose.clone(),
            None if args.reason.is_empty() => format!("run {}", args.program()),
            None => args.reason.clone(),
        };
        let endpoint = connect::endpoint(common)?;
        let (source, evidence) = args.evidence.source(common)?;
        let (key, key_source) =
            TaskKeySource::read(args.task_key.as_deref(), args.may_be_resumed())?;
        let resume_data = ResumeData {
            key: key_source,
            url: endpoint.url().to_owned(),
            purpose: purpose.clone(),
            evidence,
        };
        Ok(Self::New {
            agent: AgentClient::new(endpoint, source, Some(Arc::new(key))),
            opening: OpenTaskRequest {
                purpose,
                max_duration_s: i64::from(args.max_duration),
                // With another key the broker would refuse a repetition: it is another caller.
                idempotency_key: args
                    .idempotency_key
                    .as_ref()
                    .filter(|_| args.task_key.is_some())
                    .map(ToString::to_string),
                // No process sends heartbeats until the request is resumed.
                heartbeat_s: match args.may_be_resumed() {
                    true => None,
                    false => Some(args.heartbeat.unwrap_or(HEARTBEAT_S)),
                },
            },
            token_request: TokenRequest {
                action,
                ttl_s: i64::from(args.ttl),
                reason: args.reason.clone(),
                idempotency_key: Some(match &args.idempotency_key {
                    Some(key) => key.to_string(),
                    None => format!("exec-{}", crate::client::random_name()?),
                }),
                wait_s: 0,
                executor: None,
                recommendation: args.recommendation,
            },
            resume_data,
        })
    }

    pub(super) fn resume(
        common: &Common,
        args: &mut ExecArgs,
        id: AccessRequestId,
    ) -> Result<Self, CliError> {
        let mut saved = SavedExec::load(id)?;
        args.delivery = saved.merge_options(args.delivery.clone()).clone();
        let (task, token_request) = saved.resume(common, &args.evidence)?;
        let task = if args.evidence.is_given() {
            task.always_send_evidence()
        } else {
            task
        };
        Ok(Self::Resume {
            task: Box::new(task),
            token_request,
            saved,
        })
    }

    pub(super) fn token_request(&self) -> &TokenRequest {
        match self {
            Self::New { token_request, .. } | Self::Resume { token_request, .. } => token_request,
        }
    }

    pub(super) async fn open(self, events: EventPrinter) -> Result<ExecRun, CliError> {
        let clock = Clock::system();
        match self {
            Self::New {
                agent,
                opening,
                token_request,
                resume_data,
            } => {
                let sent_at = clock.uptime();
                let task = agent.open_task(&opening).await?;
                let lease = |heartbeat_s| TaskLease::new(clock.clone(), heartbeat_s, sent_at);
                let verification = task.verification().cloned().unwrap_or_default();
                events.event(
                    "verified",
                    &format!(
                        "{} by {}, {}",
                        escape_invisible(&verification.subject),
                        escape_invisible(&verification.evidence_kind),
                        task.id()
                    ),
                    json!({ "subject": verification.subject, "evidence_kind": verification.evidence_kind, "task": task.id() }),
                );
                Ok(ExecRun {
                    events,
                    lease: opening.heartbeat_s.map(lease),
                    clock,
                    task,
                    token_request,
                    resume_data: Some(resume_data),
                    saved: None,
                })
            }
            Self::Resume {
                task,
                token_request,
                saved,
            } => Ok(ExecRun {
                events,
                clock,
                task: *task,
                token_request,
                resume_data: None,
                lease: None,
                saved: Some(saved),
            }),
        }
    }
}
