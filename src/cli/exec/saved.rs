//! What is kept of a command that waits for people while nobody waits with it: enough to ask again from another process.
//! Never a token, never evidence.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::delivery_options::DeliveryOptions;
use crate::cli::error::{CliError, io_error};
use crate::cli::task_store::{self, SavedTask};
use crate::cli::{Common, dev};
use crate::client::{Pending, Task, TokenOrder};
use crate::keys;
use crate::model::{
    AccessRequestId, Action, ActionName, Audience, Malformed, Param, Target, TaskId, json,
};

/// An access request to be taken up again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedExec {
    access_request: AccessRequestId,
    task: TaskId,
    request_id: String,
    action: SavedAction,
    ttl_s: i64,
    reason: String,
    #[serde(default)]
    means: DeliveryOptions,
}

/// An action as its JSON form has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedAction {
    action: String,
    audience: String,
    target: Target,
    parameters: Map<String, Value>,
}

impl SavedExec {
    pub(super) fn new(pending: &Pending, task: &Task, order: &TokenOrder, means: DeliveryOptions) -> Self {
        let action = &order.action;
        Self {
            access_request: pending.access_request_id(),
            task: task.id(),
            request_id: pending.request_id().to_string(),
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
            ttl_s: order.ttl_s,
            reason: order.reason.clone(),
            means,
        }
    }

    /// How its command comes to use the token: as given now, or else as given before, and so it is kept from now on.
    pub(super) fn merge_options(&mut self, given: DeliveryOptions) -> &DeliveryOptions {
        self.means = given.with_defaults_from(std::mem::take(&mut self.means));
        &self.means
    }

    /// Keeps it, beside what is kept of its task. Mode 0600: a parameter may be sensitive.
    pub(super) fn keep(&self) -> Result<(), CliError> {
        keys::make_private_dir(&dir()?)?;
        let text = json::canonical_of(self).map_err(|e| CliError::failed(e.to_string()))?;
        dev::write_private(&file(self.access_request)?, &text)
    }

    /// Finds it by the id of its access request.
    pub(super) fn load(id: AccessRequestId) -> Result<Self, CliError> {
        let path = file(id)?;
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CliError::usage(format!(
                "{id} does not wait here: its command ran, or was asked for elsewhere"
            ))
            .with_hint("'dipylon exec --no-wait …' asks, and says how to go on"),
            _ => io_error(path.display())(error),
        })?;
        json::parse_as(&text).map_err(|e| CliError::failed(format!("{}: {e}", path.display())))
    }

    /// Its task, and what to ask for again, word by word.
    pub(super) fn resume(
        &self,
        common: &Common,
        evidence: &task_store::EvidenceArgs,
    ) -> Result<(Task, TokenOrder), CliError> {
        let task = SavedTask::load(Some(self.task))?.attach(common, evidence)?;
        let order = TokenOrder {
            action: self.action.read()?,
            ttl_s: self.ttl_s,
            reason: self.reason.clone(),
            request_id: Some(self.request_id.clone()),
            wait_s: 0,
        };
        Ok((task, order))
    }

    /// Forgets it and its task's key: the task is over, or about to be.
    pub(super) fn delete(&self) {
        if let Ok(file) = file(self.access_request) {
            let _gone = std::fs::remove_file(file);
        }
        if let Ok(kept) = SavedTask::load(Some(self.task)) {
            kept.delete();
        }
    }
}

impl SavedAction {
    fn read(&self) -> Result<Action, Malformed> {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, value)| Ok((name.clone(), Param::from_json(value)?)))
            .collect::<Result<_, Malformed>>()?;
        Action::new(
            ActionName::parse(&self.action)?,
            Audience::parse(&self.audience)?,
            self.target.clone(),
            parameters,
        )
    }
}

fn dir() -> Result<PathBuf, CliError> {
    Ok(task_store::state_dir()?.join("execs"))
}

fn file(id: AccessRequestId) -> Result<PathBuf, CliError> {
    Ok(dir()?.join(format!("{id}.json")))
}
