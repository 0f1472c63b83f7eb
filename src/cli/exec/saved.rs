//! State saved by `exec --no-wait` so that `exec --resume ID` can repeat the request from another process.
//! Never: a token or evidence.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::delivery_options::DeliveryOptions;
use crate::cli::error::{CliError, io_error};
use crate::cli::task_store::{self, SavedEvidence, SavedTask};
use crate::cli::{Common, files};
use crate::client::{Error, PendingApproval, TaskHandle, TokenRequest};
use crate::jose::SigningKey;
use crate::keys;
use crate::model::{
    AccessRequestId, Action, ActionName, Audience, Param, ParseError, Target, TaskId, json,
};

/// A pending access request and how to repeat its token request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct SavedExec {
    access_request: AccessRequestId,
    task: TaskId,
    idempotency_key: String,
    action: SavedAction,
    ttl_s: i64,
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recommendation: Option<AccessRequestId>,
    #[serde(default)]
    delivery: DeliveryOptions,
}

/// An action in its JSON form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedAction {
    action: String,
    audience: String,
    target: Target,
    parameters: Map<String, Value>,
}

/// What is needed to save a new task for a later process; held in memory until it must be saved.
pub(super) struct ResumeData {
    pub(super) key: TaskKeySource,
    pub(super) url: String,
    pub(super) purpose: String,
    pub(super) evidence: SavedEvidence,
}

/// The task's key, as it is saved.
pub(super) enum TaskKeySource {
    /// A key generated for this task: saved itself (PKCS #8).
    Generated(Zeroizing<Vec<u8>>),
    /// The caller's own key: its path is saved.
    File(PathBuf),
}

impl TaskKeySource {
    /// Reads the caller's key or generates one. If another process must resume, the file must have a stable path.
    pub(super) fn read(
        given: Option<&Path>,
        must_last: bool,
    ) -> Result<(SigningKey, Self), CliError> {
        let Some(path) = given else {
            let (key, pkcs8) = SigningKey::generate().map_err(Error::Key)?;
            return Ok((key, Self::Generated(pkcs8)));
        };
        let file = if must_last {
            path.canonicalize().map_err(io_error(path.display()))?
        } else {
            path.to_owned()
        };
        Ok((keys::read(path)?, Self::File(file)))
    }
}

impl SavedExec {
    pub(super) fn new(
        pending: &PendingApproval,
        task: &TaskHandle,
        token_request: &TokenRequest,
        delivery: DeliveryOptions,
    ) -> Self {
        let action = &token_request.action;
        Self {
            access_request: pending.access_request_id(),
            task: task.id(),
            idempotency_key: pending.idempotency_key().to_string(),
            action: SavedAction {
                action: action.name.to_string(),
                audience: action.audience.to_string(),
                target: action.target.clone(),
                parameters: action
                    .parameters
                    .iter()
                    .map(|(name, value)| (name.clone(), value.to_json()))
                    .collect(),
            },
            ttl_s: token_request.ttl_s,
            reason: token_request.reason.clone(),
            recommendation: token_request.recommendation,
            delivery,
        }
    }

    /// The delivery options given now, with missing ones taken from the saved ones; saved from now on.
    pub(super) fn merge_options(&mut self, given: DeliveryOptions) -> &DeliveryOptions {
        self.delivery = given.with_defaults_from(std::mem::take(&mut self.delivery));
        &self.delivery
    }

    /// Saves the state next to the task. Mode 0600: a parameter may be sensitive.
    pub(super) fn save(&self) -> Result<(), CliError> {
        keys::make_private_dir(&dir()?)?;
        let text = json::canonical_of(self).map_err(|e| CliError::failed(e.to_string()))?;
        files::write_private(&file(self.access_request)?, &text)
    }

    /// Loads the state by the id of its access request.
    pub(super) fn load(id: AccessRequestId) -> Result<Self, CliError> {
        let path = file(id)?;
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CliError::usage(format!(
                "access request {id} is not saved on this machine: its command ran already, or another user or machine made it"
            ))
            .with_next_step("run 'dipylon exec --no-wait …' to make a request; it prints the command that resumes it"),
            _ => io_error(path.display())(error),
        })?;
        json::parse_as(&text).map_err(|e| CliError::failed(format!("{}: {e}", path.display())))
    }

    /// The task and the identical token request.
    pub(super) fn resume(
        &self,
        common: &Common,
        evidence: &task_store::EvidenceArgs,
    ) -> Result<(TaskHandle, TokenRequest), CliError> {
        let task = SavedTask::load(self.task)?.attach(common, evidence)?;
        let token_request = TokenRequest {
            action: self.action.to_action()?,
            ttl_s: self.ttl_s,
            reason: self.reason.clone(),
            idempotency_key: Some(self.idempotency_key.clone()),
            wait_s: 0,
            executor: None,
            recommendation: self.recommendation,
        };
        Ok((task, token_request))
    }

    /// Deletes the state and the task's key, unless that is the caller's own: no other process will resume the request.
    pub(in crate::cli) fn delete(&self) -> Result<(), CliError> {
        files::remove(&file(self.access_request)?)?;
        task_store::delete(self.task)
    }

    /// Refuses when a state could not be saved.
    pub(super) fn require_writable() -> Result<(), CliError> {
        files::require_writable(&dir()?)
    }

    /// The task of the access request.
    pub(in crate::cli) const fn task(&self) -> TaskId {
        self.task
    }

    /// All saved states that can be read.
    pub(in crate::cli) fn load_all() -> Vec<Self> {
        let found = dir().ok().and_then(|dir| std::fs::read_dir(dir).ok());
        let names = found.into_iter().flatten().flatten();
        names
            .filter_map(|entry| {
                let name = entry.file_name();
                let id = name.to_str()?.strip_suffix(".json")?;
                Self::load(AccessRequestId::parse(id).ok()?).ok()
            })
            .collect()
    }
}

impl SavedAction {
    fn to_action(&self) -> Result<Action, ParseError> {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, value)| Ok((name.clone(), Param::from_json(value)?)))
            .collect::<Result<_, ParseError>>()?;
        Action::new(
            ActionName::parse(&self.action)?,
            Audience::parse(&self.audience)?,
            self.target.clone(),
            parameters,
        )
    }
}

/// The directory of the saved states.
fn dir() -> Result<PathBuf, CliError> {
    Ok(task_store::state_dir()?.join(EXECS))
}

/// Name of the directory below the state directory.
pub(in crate::cli) const EXECS: &str = "execs";

fn file(id: AccessRequestId) -> Result<PathBuf, CliError> {
    Ok(dir()?.join(format!("{id}.json")))
}
