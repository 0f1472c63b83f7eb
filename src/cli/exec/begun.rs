//! Before the task is open: what will be asked, anew or again, and what is kept of it for another process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use zeroize::Zeroizing;

use super::Exec;
use super::job::Job;
use super::later::Later;
use super::tell::Tell;
use crate::cli::Common;
use crate::cli::failure::{Failure, failed};
use crate::cli::net;
use crate::cli::parse;
use crate::cli::store::KeptEvidence;
use crate::client::{AgentClient, Error, OpenTaskRequest, TaskHandle, TokenRequest};
use crate::clock::Clock;
use crate::jose::SigningKey;
use crate::keys;
use crate::model::text::escape_invisible;
use crate::model::{AccessRequestId, Action};

/// What will be asked, and of which task.
pub(super) enum Begun {
    /// A task to open.
    Anew {
        agent: AgentClient,
        opening: OpenTaskRequest,
        order: TokenRequest,
        keep: Keep,
    },
    /// A task that is open, and waited for people.
    Again {
        task: Box<TaskHandle>,
        order: TokenRequest,
        later: Later,
    },
}

/// What it takes to keep a task for another process: in memory, until it must be.
pub(super) struct Keep {
    pub(super) key: KeyKept,
    pub(super) url: String,
    pub(super) purpose: String,
    pub(super) evidence: KeptEvidence,
}

/// What is kept of a task's key.
pub(super) enum KeyKept {
    /// All of it: it was made for this task.
    Made(Zeroizing<Vec<u8>>),
    /// Where it is: it is the caller's own.
    Versioned(PathBuf),
}

impl KeyKept {
    /// The caller's key, or a new one. What another process shall go on with must be a file that stays.
    fn read(given: Option<&Path>, stays: bool) -> Result<(SigningKey, Self), Failure> {
        let Some(path) = given else {
            let (key, pkcs8) = SigningKey::generate().map_err(Error::Key)?;
            return Ok((key, Self::Made(pkcs8)));
        };
        let at = if stays {
            path.canonicalize().map_err(failed(path.display()))?
        } else {
            path.to_owned()
        };
        Ok((keys::read(path)?, Self::Versioned(at)))
    }
}

impl Begun {
    pub(super) fn anew(common: &Common, verb: &Exec) -> Result<Self, Failure> {
        let (Some(action), Some(target), Some(audience)) =
            (&verb.action, &verb.target, &verb.audience)
        else {
            return Err(Failure::usage(
                "name one action: --action, --target and --audience",
            ));
        };
        let action = Action::new(
            action.clone(),
            audience.clone(),
            target.clone(),
            parse::params(verb.params.clone())?,
        )?;
        let purpose = match &verb.purpose {
            Some(purpose) => purpose.clone(),
            None if verb.reason.is_empty() => format!("run {}", verb.program()),
            None => verb.reason.clone(),
        };
        let endpoint = net::endpoint(common)?;
        let (source, evidence) = verb.evidence.source(common)?;
        let (key, kept) = KeyKept::read(verb.task_key.as_deref(), verb.no_wait)?;
        let keep = Keep {
            key: kept,
            url: endpoint.url().to_owned(),
            purpose: purpose.clone(),
            evidence,
        };
        Ok(Self::Anew {
            agent: AgentClient::new(endpoint, source, Some(Arc::new(key))),
            opening: OpenTaskRequest {
                purpose,
                max_duration_s: i64::from(verb.max_duration),
                idempotency_key: None,
                // Nobody keeps a task alive that waits while no program runs.
                heartbeat_s: (!verb.no_wait).then_some(verb.heartbeat),
            },
            order: TokenRequest {
                action,
                ttl_s: i64::from(verb.ttl),
                reason: verb.reason.clone(),
                idempotency_key: Some(format!("exec-{}", crate::client::random_name()?)),
                wait_s: 0,
            },
            keep,
        })
    }

    pub(super) fn again(
        common: &Common,
        verb: &mut Exec,
        id: AccessRequestId,
    ) -> Result<Self, Failure> {
        let mut later = Later::find(id)?;
        verb.means = later.go_on_with(verb.means.clone()).clone();
        let (task, order) = later.resume(common, &verb.evidence)?;
        let task = if verb.evidence.given() {
            task.always_send_evidence()
        } else {
            task
        };
        Ok(Self::Again {
            task: Box::new(task),
            order,
            later,
        })
    }

    pub(super) fn order(&self) -> &TokenRequest {
        match self {
            Self::Anew { order, .. } | Self::Again { order, .. } => order,
        }
    }

    pub(super) async fn open(self, tell: Tell) -> Result<Job, Failure> {
        let clock = Clock::system();
        match self {
            Self::Anew {
                agent,
                opening,
                order,
                keep,
            } => {
                let task = agent.open_task(&opening).await?;
                let seen = task.verification().cloned().unwrap_or_default();
                tell.event(
                    "verified",
                    &format!(
                        "{} by {}, {}",
                        escape_invisible(&seen.subject),
                        escape_invisible(&seen.evidence_kind),
                        task.id()
                    ),
                    json!({ "subject": seen.subject, "evidence_kind": seen.evidence_kind, "task": task.id() }),
                );
                Ok(Job {
                    tell,
                    clock,
                    task,
                    order,
                    keep: Some(keep),
                    heartbeat_s: opening.heartbeat_s,
                    later: None,
                })
            }
            Self::Again { task, order, later } => Ok(Job {
                tell,
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
