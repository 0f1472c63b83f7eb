//! What is kept of a command that waits for people while nobody waits with it: enough to ask again from another process.
//! Never a token, never evidence.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::means::Means;
use crate::cli::failure::{Failure, failed};
use crate::cli::store::{self, Kept};
use crate::cli::{Common, dev};
use crate::client::{PendingApproval, TaskHandle, TokenRequest};
use crate::keys;
use crate::model::{
    AccessRequestId, Action, ActionName, Audience, ParseError, Param, Target, TaskId, json,
};

/// An access request to be taken up again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Later {
    access_request: AccessRequestId,
    task: TaskId,
    idempotency_key: String,
    action: Kind,
    ttl_s: i64,
    reason: String,
    #[serde(default)]
    means: Means,
}

/// An action as its JSON form has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    action: String,
    audience: String,
    target: Target,
    parameters: Map<String, Value>,
}

impl Later {
    pub(super) fn new(pending: &PendingApproval, task: &TaskHandle, order: &TokenRequest, means: Means) -> Self {
        let action = &order.action;
        Self {
            access_request: pending.access_request_id(),
            task: task.id(),
            idempotency_key: pending.idempotency_key().to_string(),
            action: Kind {
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
    pub(super) fn go_on_with(&mut self, given: Means) -> &Means {
        self.means = given.or(std::mem::take(&mut self.means));
        &self.means
    }

    /// Keeps it, beside what is kept of its task. Mode 0600: a parameter may be sensitive.
    pub(super) fn keep(&self) -> Result<(), Failure> {
        keys::make_private_dir(&dir()?)?;
        let text = json::canonical_of(self).map_err(|e| Failure::failed(e.to_string()))?;
        dev::write_private(&file(self.access_request)?, &text)
    }

    /// Finds it by the id of its access request.
    pub(super) fn find(id: AccessRequestId) -> Result<Self, Failure> {
        let path = file(id)?;
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::usage(format!(
                "{id} does not wait here: its command ran, or was asked for elsewhere"
            ))
            .next("'dipylon exec --no-wait …' asks, and says how to go on"),
            _ => failed(path.display())(error),
        })?;
        json::parse_as(&text).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
    }

    /// Its task, and what to ask for again, word by word.
    pub(super) fn resume(
        &self,
        common: &Common,
        evidence: &store::EvidenceArgs,
    ) -> Result<(TaskHandle, TokenRequest), Failure> {
        let task = Kept::find(Some(self.task))?.attach(common, evidence)?;
        let order = TokenRequest {
            action: self.action.read()?,
            ttl_s: self.ttl_s,
            reason: self.reason.clone(),
            idempotency_key: Some(self.idempotency_key.clone()),
            wait_s: 0,
        };
        Ok((task, order))
    }

    /// Forgets it and its task's key: the task is over, or about to be.
    pub(super) fn forget(&self) {
        if let Ok(file) = file(self.access_request) {
            let _gone = std::fs::remove_file(file);
        }
        if let Ok(kept) = Kept::find(Some(self.task)) {
            kept.forget();
        }
    }
}

impl Kind {
    fn read(&self) -> Result<Action, ParseError> {
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

fn dir() -> Result<PathBuf, Failure> {
    Ok(store::state_dir()?.join("execs"))
}

fn file(id: AccessRequestId) -> Result<PathBuf, Failure> {
    Ok(dir()?.join(format!("{id}.json")))
}
