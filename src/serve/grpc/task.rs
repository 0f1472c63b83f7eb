use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::super::deadline::grpc_timeout_ms;
use super::{GrpcService, note, shapes};
use crate::broker::{OpenAsk, TaskEndAsk, TokenAsk, TokenReply};
use crate::model::*;
use crate::proto::convert::{self, required};
use crate::proto::v1;
use crate::proto::v1::task_service_server::TaskService;

#[tonic::async_trait]
impl TaskService for GrpcService {
    async fn open_task(
        &self,
        request: Request<v1::OpenTaskRequest>,
    ) -> Result<Response<v1::OpenTaskResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TaskService/OpenTask", request)
            .await?;
        let ask = open_ask(&message).map_err(self.malformed(&call))?;
        note("request", &ask.request_id);
        self.answer(self.broker.open_task(&call, ask).await.map(|opened| {
            note("task", &opened.task.task);
            v1::OpenTaskResponse {
                task_id: opened.task.task.to_string(),
                agent_id: opened.task.agent.to_string(),
                deadline: Some(convert::timestamp_to_wire(opened.task.deadline)),
                verification: Some(shapes::verification(&opened.facts)),
                lease_until: opened.lease_until.map(convert::timestamp_to_wire),
            }
        }))
    }

    async fn request_token(
        &self,
        request: Request<v1::RequestTokenRequest>,
    ) -> Result<Response<v1::RequestTokenResponse>, Status> {
        let deadline = call_timeout_ms(request.metadata());
        let (call, message) = self
            .open("dipylon.v1.TaskService/RequestToken", request)
            .await?;
        let mut ask = token_ask(&message).map_err(self.malformed(&call))?;
        note("task", &ask.task);
        note("request", &ask.request_id);
        // A wait ends a second before the caller stops listening, so that its answer is heard.
        ask.wait_ms = ask
            .wait_ms
            .min(deadline.map_or(u64::MAX, |ms| ms.saturating_sub(1_000)));
        self.answer(
            self.broker
                .request_token(&call, ask)
                .await
                .inspect(told)
                .map(shapes::token_reply),
        )
    }

    async fn get_access_request(
        &self,
        request: Request<v1::GetAccessRequestRequest>,
    ) -> Result<Response<v1::GetAccessRequestResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TaskService/GetAccessRequest", request)
            .await?;
        let (task, id) =
            both(&message.task_id, &message.access_request_id).map_err(self.malformed(&call))?;
        note("task", &task);
        note("access_request", &id);
        let found = self.broker.get_access_request(&call, task, id);
        // The agent learns how many said yes, not who.
        self.answer(found.map(|view| v1::GetAccessRequestResponse {
            access_request: Some(shapes::access_request(&view, false)),
        }))
    }

    type WatchAccessRequestStream = super::follow::AccessStream;

    async fn watch_access_request(
        &self,
        request: Request<v1::WatchAccessRequestRequest>,
    ) -> Result<Response<Self::WatchAccessRequestStream>, Status> {
        self.follow_one(request).await
    }

    async fn cancel_access_request(
        &self,
        request: Request<v1::CancelAccessRequestRequest>,
    ) -> Result<Response<v1::CancelAccessRequestResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TaskService/CancelAccessRequest", request)
            .await?;
        let (task, id) =
            both(&message.task_id, &message.access_request_id).map_err(self.malformed(&call))?;
        note("task", &task);
        note("access_request", &id);
        let cancelled = self.broker.cancel_access_request(&call, task, id).await;
        let view = cancelled.and_then(|()| self.broker.view_of(&call, &id));
        self.answer(view.map(|view| v1::CancelAccessRequestResponse {
            access_request: Some(shapes::access_request(&view, false)),
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<v1::KeepAliveRequest>,
    ) -> Result<Response<v1::KeepAliveResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TaskService/KeepAlive", request)
            .await?;
        let task = TaskId::parse(&message.task_id).map_err(self.malformed(&call))?;
        let until = self.broker.keep_alive(&call, task).await;
        self.answer(until.map(|until| v1::KeepAliveResponse {
            lease_until: Some(convert::timestamp_to_wire(until)),
        }))
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TaskService/CompleteTask", request)
            .await?;
        let ask = end_ask(&message).map_err(self.malformed(&call))?;
        note("task", &ask.task);
        let ended = self.broker.complete_task(&call, ask).await;
        self.answer(ended.map(|report| v1::CompleteTaskResponse {
            report: Some(shapes::end_report(&report)),
        }))
    }
}

/// What gate 2 answered, for the log.
fn told(reply: &TokenReply) {
    match reply {
        TokenReply::Token(given) => {
            note("outcome", &"token");
            note("token", &given.issued.jti);
            note("decision", &given.issued.decision.id);
        }
        TokenReply::Pending(pending) => {
            note("outcome", &"pending");
            note("access_request", &pending.access_request);
            note("decision", &pending.decision);
        }
        TokenReply::Denied(denied) => {
            note("outcome", &denied.why.as_str());
            if let Some(decision) = &denied.decision {
                note("decision", decision);
            }
        }
    }
}

/// The caller's own deadline, if it has one.
fn call_timeout_ms(metadata: &MetadataMap) -> Option<u64> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    grpc_timeout_ms(text)
}

fn open_ask(message: &v1::OpenTaskRequest) -> Result<OpenAsk, ParseError> {
    Ok(OpenAsk {
        evidence: convert::evidence(required("evidence", message.evidence.as_ref())?)?,
        purpose: match message.purpose.trim() {
            "" => return Err(ParseError::new("purpose", "is required")),
            _ => UntrustedText::parse("purpose", &message.purpose)?,
        },
        max_duration: convert::seconds(
            "max_duration",
            required("max_duration", message.max_duration.as_ref())?,
        )?,
        request_id: RequestId::parse(&message.request_id)?,
        heartbeat: message
            .heartbeat
            .as_ref()
            .map(|heartbeat| convert::seconds("heartbeat", heartbeat))
            .transpose()?,
    })
}

fn token_ask(message: &v1::RequestTokenRequest) -> Result<TokenAsk, ParseError> {
    let wait = message
        .wait
        .as_ref()
        .map(|wait| convert::seconds("wait", wait))
        .transpose()?
        .unwrap_or(0);
    Ok(TokenAsk {
        task: TaskId::parse(&message.task_id)?,
        action: convert::action(required("action", message.action.as_ref())?)?,
        ttl: convert::seconds("ttl", required("ttl", message.ttl.as_ref())?)?,
        reason: if message.reason.is_empty() {
            None
        } else {
            Some(UntrustedText::parse("reason", &message.reason)?)
        },
        request_id: RequestId::parse(&message.request_id)?,
        wait_ms: u64::try_from(wait)
            .map_err(|_| ParseError::new("wait", "must not be negative"))?
            .saturating_mul(1000),
        evidence: message
            .evidence
            .as_ref()
            .map(convert::evidence)
            .transpose()?,
    })
}

fn both(task: &str, access_request: &str) -> Result<(TaskId, AccessRequestId), ParseError> {
    Ok((
        TaskId::parse(task)?,
        AccessRequestId::parse(access_request)?,
    ))
}

fn end_ask(message: &v1::CompleteTaskRequest) -> Result<TaskEndAsk, ParseError> {
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
    Ok(TaskEndAsk {
        task: TaskId::parse(&message.task_id)?,
        outcome: Some(outcome),
    })
}
