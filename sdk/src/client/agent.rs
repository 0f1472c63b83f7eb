//! Agent client: opens tasks.

use std::sync::Arc;

use super::task_handle::{TaskHandle, idempotency_key};
use super::{CallOptions, Endpoint, Error, EvidenceSource, Identity, methods};
use crate::jose::SigningKey;
use crate::model::{Digest, Evidence, Reason, Secret, UntrustedText};
use crate::proto::{convert, v1};

/// A client for agents: opens tasks with the workload's evidence (gate 1).
#[derive(Debug, Clone)]
pub struct AgentClient {
    endpoint: Endpoint,
    evidence: EvidenceSource,
    task_key: Option<Arc<SigningKey>>,
}

/// The request for a new task.
#[derive(Debug, Clone)]
pub struct OpenTaskRequest {
    /// The task's purpose in the agent's words, at most 2,000 bytes. Approvers read it, rules do not.
    pub purpose: String,
    /// Longest duration of the task, in seconds; the broker limits it further.
    pub max_duration_s: i64,
    /// Idempotency key: the same key opens the same task. Random when absent.
    pub idempotency_key: Option<String>,
    /// End the task when this many seconds pass without [`TaskHandle::keep_alive`]: 2 to 3,600. Absent: the deadline alone.
    pub heartbeat_s: Option<u32>,
}

impl AgentClient {
    /// A client of this broker. Each task gets a new key, unless `task_key` is given: the caller can keep that one, so that
    /// another process continues the task with [`TaskHandle::attach`].
    pub fn new(
        endpoint: Endpoint,
        evidence: EvidenceSource,
        task_key: Option<Arc<SigningKey>>,
    ) -> Self {
        Self {
            endpoint,
            evidence,
            task_key,
        }
    }

    /// Opens a task. Fails with [`Error::Refused`] when gate 1 does not accept the evidence, and with
    /// [`Error::NoNewerEvidence`] when it is too old and the source has no other.
    pub async fn open_task(&self, request: &OpenTaskRequest) -> Result<TaskHandle, Error> {
        let key = match &self.task_key {
            Some(key) => key.clone(),
            None => Arc::new(SigningKey::generate()?.0),
        };
        let identity = Identity::Key(key.clone());
        let message = v1::OpenTaskRequest {
            evidence: None,
            purpose: UntrustedText::parse("purpose", &request.purpose)?
                .as_str()
                .to_owned(),
            max_duration: Some(convert::seconds_to_wire(request.max_duration_s)),
            idempotency_key: idempotency_key(request.idempotency_key.as_deref())?.to_string(),
            heartbeat: request
                .heartbeat_s
                .map(|seconds| convert::seconds_to_wire(i64::from(seconds))),
        };
        let evidence = self.evidence.fetch().await?;
        let answer = match self.open_with(&identity, &message, &evidence).await {
            // A source that keeps evidence may have renewed it just now; once, so that no source makes a loop.
            Err(error) if error.reason() == Some(Reason::EvidenceStale) => {
                let newer = self.evidence.fetch().await?;
                match newer.expose_secret() == evidence.expose_secret() {
                    true => Err(error),
                    false => self.open_with(&identity, &message, &newer).await,
                }
            }
            answer => answer,
        };
        let answer = answer.map_err(Error::of_fresh_evidence)?;
        let endpoint = self.endpoint.clone();
        let endpoint = match request.heartbeat_s {
            Some(heartbeat_s) => endpoint.for_heartbeat(heartbeat_s),
            None => endpoint,
        };
        TaskHandle::from_opened(endpoint, self.evidence.clone(), key, answer).map_err(Error::Answer)
    }

    async fn open_with(
        &self,
        identity: &Identity,
        message: &v1::OpenTaskRequest,
        evidence: &Secret,
    ) -> Result<v1::OpenTaskResponse, Error> {
        let options = CallOptions {
            evidence_hash: Some(Digest::sha256(evidence.expose_secret().as_bytes())),
            ..CallOptions::by(identity)
        };
        let evidence = Evidence::JwtSvid(evidence.clone());
        let message = v1::OpenTaskRequest {
            evidence: Some(convert::evidence_to_wire(&evidence)),
            ..message.clone()
        };
        self.endpoint
            .call::<methods::OpenTask>(options, &[message])
            .await
    }
}
