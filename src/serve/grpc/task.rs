//! TaskService, for agents: tasks, tokens and access requests.

use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::convert;
use super::page::{PAGE_BYTES_MAX, fit_items};
use super::service::GrpcService;
use super::streams::Messages;
use crate::broker::{AccessView, EndTaskInput, OpenTaskInput, RequestTokenInput, TokenReply};
use crate::model::*;
use crate::proto::convert::{self as proto_convert, required};
use crate::proto::v1;
use crate::serve::authorization::{
    CANCEL_ACCESS_REQUEST, COMPLETE_TASK, GET_ACCESS_REQUEST, GET_TASK, KEEP_ALIVE,
    LIST_RECOMMENDATIONS, OPEN_TASK, REQUEST_TOKEN,
};
use crate::serve::request_log::record;
use crate::serve::services::task_service_server::TaskService;
use crate::serve::timeouts::grpc_timeout_ms;

#[tonic::async_trait]
impl TaskService for GrpcService {
    async fn open_task(
        &self,
        request: Request<v1::OpenTaskRequest>,
    ) -> Result<Response<v1::OpenTaskResponse>, Status> {
        let (call, message) = self.begin_call(OPEN_TASK, request).await?;
        let open_request = parse_open_task(&message).map_err(self.malformed(&call))?;
        record("request", &open_request.idempotency_key);
        self.respond(
            self.broker
                .open_task(&call, open_request)
                .await
                .map(|opened| {
                    record("task", &opened.task.task);
                    v1::OpenTaskResponse {
                        task_id: opened.task.task.to_string(),
                        agent_id: opened.task.agent.to_string(),
                        deadline: Some(proto_convert::timestamp_to_wire(opened.task.deadline)),
                        verification: Some(convert::verification(&opened.facts)),
                        lease_until: opened.lease_until.map(proto_convert::timestamp_to_wire),
                    }
                }),
        )
    }

    async fn request_token(
        &self,
        request: Request<v1::RequestTokenRequest>,
    ) -> Result<Response<v1::RequestTokenResponse>, Status> {
        let deadline = client_timeout_ms(request.metadata());
        let (call, message) = self.begin_call(REQUEST_TOKEN, request).await?;
        let mut token_request = parse_token_request(&message).map_err(self.malformed(&call))?;
        record("task", &token_request.task);
        record("request", &token_request.idempotency_key);
        // A wait ends a second before the client's deadline, so that the client receives the response.
        token_request.wait_ms = token_request
            .wait_ms
            .min(deadline.map_or(u64::MAX, |ms| ms.saturating_sub(1_000)));
        self.respond(
            self.broker
                .request_token(&call, token_request)
                .await
                .inspect(record_reply)
                .map(convert::token_reply),
        )
    }

    async fn get_task(
        &self,
        request: Request<v1::GetTaskRequest>,
    ) -> Result<Response<v1::GetTaskResponse>, Status> {
        let (call, message) = self.begin_call(GET_TASK, request).await?;
        let task = TaskId::parse(&message.task_id).map_err(self.malformed(&call))?;
        record("task", &task);
        let found = self.broker.get_task(&call, task);
        self.respond(found.map(|view| v1::GetTaskResponse {
            task_id: task.to_string(),
            agent_id: view.agent.to_string(),
            deadline: Some(proto_convert::timestamp_to_wire(view.deadline)),
            lease_until: view.lease_until.map(proto_convert::timestamp_to_wire),
            end_cause: view.end_cause.map_or("", EndCause::as_str).to_owned(),
            ended_at: view.ended_at.map(proto_convert::timestamp_to_wire),
        }))
    }

    async fn list_recommendations(
        &self,
        request: Request<v1::ListRecommendationsRequest>,
    ) -> Result<Response<v1::ListRecommendationsResponse>, Status> {
        let (call, message) = self.begin_call(LIST_RECOMMENDATIONS, request).await?;
        let task = TaskId::parse(&message.task_id)
            .at("task_id")
            .map_err(self.malformed(&call))?;
        record("task", &task);
        let found = self.broker.list_recommendations(&call, task);
        let wire = |(view, until): &(AccessView, Timestamp)| v1::AccessRequest {
            expires_at: Some(proto_convert::timestamp_to_wire(*until)),
            ..convert::access_request(view, false)
        };
        self.respond(found.map(|found| v1::ListRecommendationsResponse {
            recommendations: fit_items(
                found.iter().map(wire),
                PAGE_BYTES_MAX,
                v1::AccessRequest::encoded_len,
            ),
        }))
    }

    async fn get_access_request(
        &self,
        request: Request<v1::GetAccessRequestRequest>,
    ) -> Result<Response<v1::GetAccessRequestResponse>, Status> {
        let (call, message) = self.begin_call(GET_ACCESS_REQUEST, request).await?;
        let (task, id) = parse_ids(&message.task_id, &message.access_request_id)
            .map_err(self.malformed(&call))?;
        record("task", &task);
        record("access_request", &id);
        let found = self.broker.get_access_request(&call, task, id);
        // The agent learns how many approved, not their names.
        self.respond(found.map(|view| v1::GetAccessRequestResponse {
            access_request: Some(convert::access_request(&view, false)),
        }))
    }

    type WatchAccessRequestStream = Messages<v1::WatchAccessRequestResponse>;

    async fn watch_access_request(
        &self,
        request: Request<v1::WatchAccessRequestRequest>,
    ) -> Result<Response<Self::WatchAccessRequestStream>, Status> {
        self.watch_one(request).await
    }

    async fn cancel_access_request(
        &self,
        request: Request<v1::CancelAccessRequestRequest>,
    ) -> Result<Response<v1::CancelAccessRequestResponse>, Status> {
        let (call, message) = self.begin_call(CANCEL_ACCESS_REQUEST, request).await?;
        let (task, id) = parse_ids(&message.task_id, &message.access_request_id)
            .map_err(self.malformed(&call))?;
        record("task", &task);
        record("access_request", &id);
        let cancelled = self.broker.cancel_access_request(&call, task, id).await;
        let view = cancelled.and_then(|()| self.broker.view_of(&call, &id));
        self.respond(view.map(|view| v1::CancelAccessRequestResponse {
            access_request: Some(convert::access_request(&view, false)),
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<v1::KeepAliveRequest>,
    ) -> Result<Response<v1::KeepAliveResponse>, Status> {
        let (call, message) = self.begin_call(KEEP_ALIVE, request).await?;
        let task = TaskId::parse(&message.task_id)
            .at("task_id")
            .map_err(self.malformed(&call))?;
        let until = self.broker.keep_alive(&call, task).await;
        self.respond(until.map(|until| v1::KeepAliveResponse {
            lease_until: Some(proto_convert::timestamp_to_wire(until)),
        }))
    }

    type WatchTokenStream = Messages<v1::WatchTokenResponse>;

    async fn watch_token(
        &self,
        request: Request<v1::WatchTokenRequest>,
    ) -> Result<Response<Self::WatchTokenStream>, Status> {
        self.watch_one_token(request).await
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        let (call, message) = self.begin_call(COMPLETE_TASK, request).await?;
        let end_request = parse_complete_task(&message).map_err(self.malformed(&call))?;
        record("task", &end_request.task);
        let ended = self.broker.complete_task(&call, end_request).await;
        self.respond(ended.map(|report| v1::CompleteTaskResponse {
            report: Some(convert::end_report(&report)),
        }))
    }
}

/// Records the outcome of gate 2 in the log.
fn record_reply(reply: &TokenReply) {
    match reply {
        TokenReply::Token(given) => {
            record("outcome", &"token");
            record("token", &given.issued.jti);
            record("decision", &given.issued.decision.id);
        }
        TokenReply::Pending(pending) => {
            record("outcome", &"pending");
            record("access_request", &pending.access_request);
            record("decision", &pending.decision);
        }
        TokenReply::Recommended(recommended) => {
            record("outcome", &"recommended");
            record("access_request", &recommended.access_request);
        }
        TokenReply::Denied(denied) => {
            record("outcome", &denied.why.as_str());
            if let Some(decision) = &denied.decision {
                record("decision", decision);
            }
        }
    }
}

/// The client's deadline, if it set one.
fn client_timeout_ms(metadata: &MetadataMap) -> Option<u64> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    grpc_timeout_ms(text)
}

fn parse_open_task(message: &v1::OpenTaskRequest) -> Result<OpenTaskInput, ParseError> {
    Ok(OpenTaskInput {
        evidence: proto_convert::evidence(required("evidence", message.evidence.as_ref())?)?,
        purpose: match message.purpose.trim() {
            "" => return Err(ParseError::new("purpose", "is required")),
            _ => UntrustedText::parse("purpose", &message.purpose)?,
        },
        max_duration: proto_convert::seconds(
            "max_duration",
            required("max_duration", message.max_duration.as_ref())?,
        )?,
        idempotency_key: IdempotencyKey::parse(&message.idempotency_key).at("idempotency_key")?,
        heartbeat: message
            .heartbeat
            .as_ref()
            .map(|heartbeat| proto_convert::seconds("heartbeat", heartbeat))
            .transpose()?,
    })
}

fn parse_token_request(message: &v1::RequestTokenRequest) -> Result<RequestTokenInput, ParseError> {
    let wait = message
        .wait
        .as_ref()
        .map(|wait| proto_convert::seconds("wait", wait))
        .transpose()?
        .unwrap_or(0);
    Ok(RequestTokenInput {
        task: TaskId::parse(&message.task_id).at("task_id")?,
        action: proto_convert::action(required("action", message.action.as_ref())?)?,
        ttl: proto_convert::seconds("ttl", required("ttl", message.ttl.as_ref())?)?,
        reason: if message.reason.is_empty() {
            None
        } else {
            Some(UntrustedText::parse("reason", &message.reason)?)
        },
        idempotency_key: IdempotencyKey::parse(&message.idempotency_key).at("idempotency_key")?,
        wait_ms: u64::try_from(wait)
            .map_err(|_| ParseError::new("wait", "must not be negative"))?
            .saturating_mul(1000),
        evidence: message
            .evidence
            .as_ref()
            .map(proto_convert::evidence)
            .transpose()?,
        executor: match message.executor.as_str() {
            "" => None,
            id => Some(AgentId::parse(id).at("executor")?),
        },
        recommendation: match message.recommendation.as_str() {
            "" => None,
            id => Some(AccessRequestId::parse(id).at("recommendation")?),
        },
    })
}

fn parse_ids(task: &str, access_request: &str) -> Result<(TaskId, AccessRequestId), ParseError> {
    Ok((
        TaskId::parse(task).at("task_id")?,
        AccessRequestId::parse(access_request).at("access_request_id")?,
    ))
}

fn parse_complete_task(message: &v1::CompleteTaskRequest) -> Result<EndTaskInput, ParseError> {
    let outcome = match v1::TaskOutcome::try_from(message.outcome) {
        Ok(v1::TaskOutcome::Succeeded) => TaskOutcome::Succeeded,
        Ok(v1::TaskOutcome::Failed) => TaskOutcome::Failed,
        Ok(v1::TaskOutcome::Abandoned) => TaskOutcome::Abandoned,
        Ok(v1::TaskOutcome::Unspecified) | Err(_) => {
            return Err(ParseError::new(
                "outcome",
                "must be succeeded, failed or abandoned",
            ));
        }
    };
    Ok(EndTaskInput {
        task: TaskId::parse(&message.task_id).at("task_id")?,
        outcome: Some(outcome),
    })
}
