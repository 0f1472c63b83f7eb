use std::collections::BTreeMap;
use std::time::Duration;

use tonic::{Request, Response, Status, Streaming};

use super::{Door, note, shapes};
use crate::broker::TaskEndAsk;
use crate::model::*;
use crate::proto::v1;
use crate::proto::v1::governance_service_server::GovernanceService;
use crate::rules;

/// How long the pieces of a policy bundle may take to come.
const RECEIVE_MAX: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl GovernanceService for Door {
    async fn apply_policy_bundle(
        &self,
        request: Request<Streaming<v1::ApplyPolicyBundleRequest>>,
    ) -> Result<Response<v1::ApplyPolicyBundleResponse>, Status> {
        let (metadata, _, mut pieces) = request.into_parts();
        let call = self
            .seated("dipylon.v1.GovernanceService/ApplyPolicyBundle", &metadata)
            .await?;
        // Known before a byte of the bundle is read.
        let operator = self
            .hall
            .person(&call)
            .map_err(|refusal| super::status(&refusal, &self.hall))?;
        // The pieces come as slowly as the operator's line: that takes nobody's place.
        call.seat.leave();
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        let mut size = 0_usize;
        let until = tokio::time::Instant::now() + RECEIVE_MAX;
        let late = |_| {
            Status::deadline_exceeded(
                "the policy bundle did not come whole in time; nothing was done",
            )
        };
        while let Some(piece) = tokio::time::timeout_at(until, pieces.message())
            .await
            .map_err(late)??
        {
            let too_large =
                |rule: String| self.malformed(&call)(Malformed::new("policy bundle", rule));
            size = size
                .saturating_add(piece.content.len())
                .saturating_add(piece.path.len());
            if size > rules::BYTES_MAX.saturating_mul(2) {
                return Err(too_large(format!(
                    "must be at most {} bytes",
                    rules::BYTES_MAX
                )));
            }
            files
                .entry(piece.path)
                .or_default()
                .push_str(&piece.content);
            if files.len() > rules::FILES_MAX {
                return Err(too_large(format!(
                    "must have at most {} files",
                    rules::FILES_MAX
                )));
            }
        }
        call.seat.retake().await;
        let applied = self.hall.apply_policy_bundle(&call, operator, files).await;
        self.answer(applied.map(|a| v1::ApplyPolicyBundleResponse {
            version: a.version,
            changed: a.changed,
            rules: shapes::count(a.rules),
            agents: shapes::count(a.agents),
            warnings: a.warnings,
            tasks_ended: shapes::count(a.swept.tasks),
            tokens_ended: shapes::count(a.swept.grants),
            access_requests_closed: shapes::count(a.swept.requests),
        }))
    }

    async fn suspend_agent(
        &self,
        request: Request<v1::SuspendAgentRequest>,
    ) -> Result<Response<v1::SuspendAgentResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/SuspendAgent", request)
            .await?;
        let parsed = AgentId::parse(&message.agent_id).and_then(|agent| {
            let reason = if message.reason.is_empty() {
                None
            } else {
                Some(Prose::parse("reason", &message.reason)?)
            };
            Ok((agent, reason))
        });
        let (agent, reason) = parsed.map_err(self.malformed(&call))?;
        let suspended = self.hall.suspend_agent(&call, agent, reason).await;
        self.answer(suspended.map(|(tasks, position)| v1::SuspendAgentResponse {
            tasks_ended: shapes::count(tasks),
            position,
        }))
    }

    async fn resume_agent(
        &self,
        request: Request<v1::ResumeAgentRequest>,
    ) -> Result<Response<v1::ResumeAgentResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/ResumeAgent", request)
            .await?;
        let agent = AgentId::parse(&message.agent_id).map_err(self.malformed(&call))?;
        self.answer(
            self.hall
                .resume_agent(&call, agent)
                .await
                .map(|position| v1::ResumeAgentResponse { position }),
        )
    }

    async fn end_task(
        &self,
        request: Request<v1::EndTaskRequest>,
    ) -> Result<Response<v1::EndTaskResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/EndTask", request)
            .await?;
        let task = TaskId::parse(&message.task_id).map_err(self.malformed(&call))?;
        note("task", &task);
        let ended = self
            .hall
            .end_task_as_operator(
                &call,
                TaskEndAsk {
                    task,
                    outcome: None,
                },
            )
            .await;
        self.answer(ended.map(|report| v1::EndTaskResponse {
            report: Some(shapes::end_report(&report)),
        }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.GovernanceService/Explain", request)
            .await?;
        self.answer(self.hall.explain(&call, &message.id).map(|e| {
            v1::ExplainResponse {
                headline: e.headline,
                lines: e
                    .lines
                    .into_iter()
                    .map(|(label, text)| v1::ExplainLine { label, text })
                    .collect(),
                entries: e.entries,
            }
        }))
    }
}
