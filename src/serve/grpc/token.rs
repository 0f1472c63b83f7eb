//! TokenService, for validators and operators: introspection, use, revocation and the revocation stream.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::convert;
use super::service::GrpcService;
use super::streams::{Messages, StreamSender};
use crate::broker::{Broker, FeedStart};
use crate::model::{
    ParseField as _, Secret, Stream, Timestamp, TokenId, UseId, UseOutcome, Version,
};
use crate::proto::convert::{position, position_to_wire, timestamp_to_wire};
use crate::proto::v1;
use crate::proto::v1::watch_revocations_response::Message;
use crate::serve::authorization::{CONSUME_TOKEN, INTROSPECT, REVOKE_TOKEN, WATCH_REVOCATIONS};
use crate::serve::request_log::record;
use crate::serve::services::token_service_server::TokenService;
use crate::serve::status::status;

/// How often a stream without events sends a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Messages between the stream and a slow connection.
const BUFFER: usize = 64;

#[tonic::async_trait]
impl TokenService for GrpcService {
    async fn introspect(
        &self,
        request: Request<v1::IntrospectRequest>,
    ) -> Result<Response<v1::IntrospectResponse>, Status> {
        let (call, message) = self.begin_call(INTROSPECT, request).await?;
        let token = Secret::new(message.token);
        let found = self.broker.introspect(&call, &token).await;
        self.respond(found.map(|found| {
            found.map_or_else(v1::IntrospectResponse::default, |live| {
                let issued = &live.grant.issued;
                record("token", &issued.jti);
                v1::IntrospectResponse {
                    active: true,
                    jti: issued.jti.to_string(),
                    task_id: issued.task.to_string(),
                    agent_id: issued.agent.to_string(),
                    subject: issued.subject.to_string(),
                    audience: issued.action.audience.to_string(),
                    expires_at: Some(timestamp_to_wire(Timestamp::from_secs(issued.exp))),
                    jkt: issued.cnf.jkt().to_string(),
                    action: issued.action.action.to_string(),
                    target: Some(crate::proto::convert::target_to_wire(&issued.action.target)),
                    action_digest: issued.action.digest.to_string(),
                    uses: issued.uses,
                    uses_left: live.uses_left,
                }
            })
        }))
    }

    async fn consume_token(
        &self,
        request: Request<v1::ConsumeTokenRequest>,
    ) -> Result<Response<v1::ConsumeTokenResponse>, Status> {
        let (call, message) = self.begin_call(CONSUME_TOKEN, request).await?;
        let use_id = UseId::parse(&message.use_id)
            .at("use_id")
            .map_err(self.malformed(&call))?;
        let consumed = self
            .broker
            .consume_token(&call, &Secret::new(message.token), &use_id)
            .await;
        self.respond(consumed.map(|c| {
            record("token", &c.jti);
            v1::ConsumeTokenResponse {
                jti: c.jti.to_string(),
                uses_left: c.uses_left,
                position: c.index,
                outcome: match c.outcome {
                    UseOutcome::Spent => v1::ConsumeOutcome::Spent,
                    UseOutcome::Repeated => v1::ConsumeOutcome::Repeated,
                    UseOutcome::NoLimit => v1::ConsumeOutcome::NoLimit,
                }
                .into(),
            }
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let (call, message) = self.begin_call(REVOKE_TOKEN, request).await?;
        let jti = TokenId::parse(&message.jti)
            .at("jti")
            .map_err(self.malformed(&call))?;
        let revoked = self.broker.revoke_token(&call, jti).await;
        self.respond(revoked.map(|revoked| v1::RevokeTokenResponse {
            changed: revoked.changed,
            cause: revoked.cause.as_str().to_owned(),
            position: revoked.index,
        }))
    }

    type WatchRevocationsStream = Messages<v1::WatchRevocationsResponse>;

    async fn watch_revocations(
        &self,
        request: Request<v1::WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let (call, message) = self.begin_call(WATCH_REVOCATIONS, request).await?;
        let after = message.after.map(position);
        let start = self
            .broker
            .watch_revocations(&call, after)
            .map_err(|refusal| self.status(&refusal))?;
        let permit = self.admission.service_stream(start.caller())?;
        let (broker, life_ms) = (self.broker.clone(), start.life_ms);
        Ok(self.stream(BUFFER, life_ms, permit, |sender| {
            watch(broker, start, sender)
        }))
    }
}

/// Sends every event in order, and heartbeats in between, until the validator goes away, is too slow, or is dropped from the
/// policy bundle.
async fn watch(
    broker: Arc<Broker>,
    start: FeedStart,
    sender: StreamSender<v1::WatchRevocationsResponse>,
) {
    // Older events are not new here: their delay says nothing about this broker.
    let newest_at_start = broker.show().position().1;
    let mut tail = broker.journal().head();
    let mut after = start.after;
    if let Some(from) = start.resync {
        let resync = v1::RevocationResync {
            from: Some(position_to_wire(from)),
        };
        if send(&sender, Message::Resync(resync)).await.is_none() {
            return;
        }
    }
    loop {
        tail.borrow_and_update();
        let rules = broker.show().version(&Stream::Policy);
        if let Err(refusal) = broker.require_registered(WATCH_REVOCATIONS.name, &start) {
            return sender.end(status(&refusal, &broker)).await;
        }
        let (events, read_through, last_event) = broker.feed_after(after);
        let has_more = !events.is_empty();
        for event in events {
            if send(&sender, Message::Event(convert::feed_event(&event)))
                .await
                .is_none()
            {
                return;
            }
            if event.index > newest_at_start {
                broker
                    .metrics()
                    .revocation_delivered(broker.since(event.at));
            }
            after = Some(event.index);
        }
        if has_more {
            continue;
        }
        let heartbeat = v1::RevocationHeartbeat {
            position: Some(position_to_wire(read_through)),
            last_event,
        };
        if send(&sender, Message::Heartbeat(heartbeat)).await.is_none() {
            return;
        }
        if !wait_for_event(&broker, after, rules, &mut tail).await {
            return;
        }
    }
}

/// Waits until there is an event, a heartbeat is due, or other rules are in force than at the last check of the caller. False when
/// the journal has stopped.
async fn wait_for_event(
    broker: &Broker,
    after: Option<u64>,
    rules: Version,
    tail: &mut tokio::sync::watch::Receiver<crate::broker::JournalHead>,
) -> bool {
    let due = tokio::time::sleep(HEARTBEAT);
    tokio::pin!(due);
    loop {
        tokio::select! {
            () = &mut due => return true,
            changed = tail.changed() => {
                if changed.is_err() {
                    return false;
                }
                let changed = broker.show().version(&Stream::Policy) != rules;
                if changed || !broker.feed_after(after).0.is_empty() {
                    return true;
                }
            }
        }
    }
}

async fn send(sender: &StreamSender<v1::WatchRevocationsResponse>, message: Message) -> Option<()> {
    let message = Some(message);
    sender.send(v1::WatchRevocationsResponse { message }).await
}
