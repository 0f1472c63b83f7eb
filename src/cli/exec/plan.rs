//! Before the task is open: what will be asked, new or again, and what is kept of it for another process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use zeroize::Zeroizing;

use super::ExecArgs;
use super::run::ExecRun;
use super::saved::SavedExec;
use super::events::EventPrinter;
use crate::cli::Common;
use crate::cli::error::{CliError, io_error};
use crate::cli::connect;
use crate::cli::parse;
use crate::cli::task_store::SavedEvidence;
use crate::client::{Agent, Error, OpenTask, Task, TokenOrder};
use crate::clock::Clock;
use crate::jose::SigningKey;
use crate::keys;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, Action};

/// What will be asked, and of which task.
pub(super) enum ExecPlan {
    /// A task to open.
    New {
        agent: Agent,
        opening: OpenTask,
        order: TokenOrder,
        keep: ResumeData,
    },
    /// A task that is open, and waited for people.
    Resume {
        task: Box<Task>,
        order: TokenOrder,
        later: SavedExec,
    },
}

/// What it takes to keep a task for another process: in memory, until it must be.
pub(super) struct ResumeData {
    pub(super) key: TaskKeySource,
    pub(super) url: String,
    pub(super) purpose: String,
    pub(super) evidence: SavedEvidence,
}

/// What is kept of a task's key.
pub(super) enum TaskKeySource {
    /// All of it: it was made for this task.
    Generated(Zeroizing<Vec<u8>>),
    /// UpstreamArgs it is: it is the caller's own.
    File(PathBuf),
}

impl TaskKeySource {
    /// The caller's key, or a new one. What another process shall go on with must be a file that stays.
    fn read(given: Option<&Path>, stays: bool) -> Result<(SigningKey, Self), CliError> {
        let Some(path) = given else {
            let (key, pkcs8) = SigningKey::generate().map_err(Error::Key)?;
            return Ok((key, Self::Generated(pkcs8)));
        };
        let at = if stays {
            path.canonicalize().map_err(io_error(path.display()))?
        } else {
            path.to_owned()
        };
        Ok((keys::read(path)?, Self::File(at)))
    }
}

impl ExecPlan {
    pub(super) fn new(common: &Common, args: &ExecArgs) -> Result<Self, CliError> {
        let (Some(action), Some(target), Some(audience)) =
            (&args.action, &args.target, &args.audience)
        else {
            return Err(CliError::usage(
                "name one action: --action, --target and --audience",
            ));
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
        let (key, kept) = TaskKeySource::read(args.task_key.as_deref(), args.no_wait)?;
        let keep = ResumeData {
            key: kept,
            url: endpoint.url().to_owned(),
            purpose: purpose.clone(),
            evidence,
        };
        Ok(Self::New {
            agent: Agent::new(endpoint, source, Some(Arc::new(key))),
            opening: OpenTask {
                purpose,
                max_duration_s: i64::from(args.max_duration),
                request_id: None,
                // Nobody keeps a task alive that waits while no program runs.
                heartbeat_s: (!args.no_wait).then_some(args.heartbeat),
            },
            order: TokenOrder {
                action,
                ttl_s: i64::from(args.ttl),
                reason: args.reason.clone(),
                request_id: Some(format!("exec-{}", crate::client::random_name()?)),
                wait_s: 0,
            },
            keep,
        })
    }

    pub(super) fn resume(
        common: &Common,
        args: &mut ExecArgs,
        id: AccessRequestId,
    ) -> Result<Self, CliError> {
        let mut later = SavedExec::load(id)?;
        args.means = later.merge_options(args.means.clone()).clone();
        let (task, order) = later.resume(common, &args.evidence)?;
        let task = if args.evidence.is_given() {
            task.showing_evidence()
        } else {
            task
        };
        Ok(Self::Resume {
            task: Box::new(task),
            order,
            later,
        })
    }

    pub(super) fn order(&self) -> &TokenOrder {
        match self {
            Self::New { order, .. } | Self::Resume { order, .. } => order,
        }
    }

    pub(super) async fn open(self, events: EventPrinter) -> Result<ExecRun, CliError> {
        let clock = Clock::system();
        match self {
            Self::New {
                agent,
                opening,
                order,
                keep,
            } => {
                let task = agent.open_task(&opening).await?;
                let seen = task.verification().cloned().unwrap_or_default();
                events.event(
                    "verified",
                    &format!(
                        "{} by {}, {}",
                        escape_invisible(&seen.subject),
                        escape_invisible(&seen.evidence_kind),
                        task.id()
                    ),
                    json!({ "subject": seen.subject, "evidence_kind": seen.evidence_kind, "task": task.id() }),
                );
                Ok(ExecRun {
                    events,
                    clock,
                    task,
                    order,
                    keep: Some(keep),
                    heartbeat_s: opening.heartbeat_s,
                    later: None,
                })
            }
            Self::Resume { task, order, later } => Ok(ExecRun {
                events,
                clock,
                task: *task,
                order,
                keep: None,
                heartbeat_s: None,
                later: Some(later),
            }),
        }
    }
}
