use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::super::status::put_nonce;
use super::{GrpcService, note, shapes};
use crate::broker::{Broker, FeedStart, JournalPosition};
use crate::model::{Secret, Timestamp, TokenId, UseId};
use crate::proto::convert::timestamp_to_wire;
use crate::proto::v1;
use crate::proto::v1::token_service_server::TokenService;
use crate::proto::v1::watch_revocations_response::Message;

/// How often a quiet feed says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A validator that takes no message for this long is cut; it resumes from its position.
const SLOW_MAX: Duration = Duration::from_secs(10);
/// Messages between the feed and a slow connection.
const BUFFER: usize = 64;

#[tonic::async_trait]
impl TokenService for GrpcService {
    async fn introspect(
        &self,
        request: Request<v1::IntrospectRequest>,
    ) -> Result<Response<v1::IntrospectResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TokenService/Introspect", request)
            .await?;
        let found = self.broker.introspect(&call, &Secret::new(message.token));
        self.answer(found.map(|found| {
            found.map_or_else(v1::IntrospectResponse::default, |live| {
                let issued = &live.grant.issued;
                note("token", &issued.jti);
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
        let (call, message) = self
            .open("dipylon.v1.TokenService/ConsumeToken", request)
            .await?;
        let use_id = UseId::parse(&message.use_id).map_err(self.malformed(&call))?;
        let consumed = self
            .broker
            .consume_token(&call, &Secret::new(message.token), &use_id)
            .await;
        self.answer(consumed.map(|c| {
            note("token", &c.jti);
            v1::ConsumeTokenResponse {
                jti: c.jti.to_string(),
                uses_left: c.uses_left,
                position: c.index,
            }
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TokenService/RevokeToken", request)
            .await?;
        let jti = TokenId::parse(&message.jti).map_err(self.malformed(&call))?;
        let revoked = self.broker.revoke_token(&call, jti).await;
        self.answer(revoked.map(|revoked| v1::RevokeTokenResponse {
            changed: revoked.changed,
            cause: revoked.cause.as_str().to_owned(),
            position: revoked.index,
        }))
    }

    type WatchRevocationsStream = ReceiverStream<Result<v1::WatchRevocationsResponse, Status>>;

    async fn watch_revocations(
        &self,
        request: Request<v1::WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TokenService/WatchRevocations", request)
            .await?;
        let after = message.after.map(|p| JournalPosition {
            epoch: p.epoch,
            index: p.index,
        });
        let start = self
            .broker
            .watch_revocations(&call, after)
            .map_err(|refusal| super::status(&refusal, &self.broker))?;
        let counted = self.admission.watch(&start.caller)?;
        let life = Duration::from_millis(start.life_ms);
        let (sender, receiver) = mpsc::channel(BUFFER);
        let (broker, mut stopped) = (self.broker.clone(), self.stopped.clone());
        tokio::spawn(async move {
            let _counted = counted;
            tokio::select! {
                () = watch(broker, start, &sender) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = tokio::time::sleep(life) => {}
            }
        });
        let mut response = Response::new(ReceiverStream::new(receiver));
        put_nonce(response.metadata_mut(), &self.broker);
        Ok(response)
    }
}

/// Sends every event in order, and heartbeats in between, until the validator goes away, is too slow, or is dropped from the
/// policy bundle.
async fn watch(
    broker: Arc<Broker>,
    start: FeedStart,
    sender: &mpsc::Sender<Result<v1::WatchRevocationsResponse, Status>>,
) {
    // Older ends are no news: how long they took says nothing of this broker.
    let news = broker.state().position().1;
    let mut tail = broker.journal().tail();
    let mut after = start.after;
    if let Some(from) = start.resync {
        let resync = v1::RevocationResync {
            from: Some(shapes::position(from)),
        };
        if send(sender, Message::Resync(resync)).await.is_none() {
            return;
        }
    }
    loop {
        tail.borrow_and_update();
        if !broker.is_registered(&start.caller) {
            let _gone = sender
                .send(Err(Status::permission_denied(
                    "no longer a registered validator",
                )))
                .await;
            return;
        }
        let (events, read_through, last_event) = broker.feed_after(after);
        let more = !events.is_empty();
        for event in events {
            if send(sender, Message::Event(shapes::feed_event(&event)))
                .await
                .is_none()
            {
                return;
            }
            if event.index > news {
                broker.metrics().fed(broker.since(event.at));
            }
            after = Some(event.index);
        }
        if more {
            continue;
        }
        let heartbeat = v1::RevocationHeartbeat {
            read_through: Some(shapes::position(read_through)),
            last_event,
        };
        if send(sender, Message::Heartbeat(heartbeat)).await.is_none() {
            return;
        }
        if !quiet(&broker, after, &mut tail).await {
            return;
        }
    }
}

/// Waits until there is an event or a heartbeat is due. False when the journal has stopped.
async fn quiet(
    broker: &Broker,
    after: Option<u64>,
    tail: &mut tokio::sync::watch::Receiver<crate::broker::Tail>,
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
                if !broker.feed_after(after).0.is_empty() {
                    return true;
                }
            }
        }
    }
}

async fn send(
    sender: &mpsc::Sender<Result<v1::WatchRevocationsResponse, Status>>,
    message: Message,
) -> Option<()> {
    let response = v1::WatchRevocationsResponse {
        message: Some(message),
    };
    match tokio::time::timeout(SLOW_MAX, sender.send(Ok(response))).await {
        Ok(Ok(())) => Some(()),
        Ok(Err(_)) | Err(_) => None,
    }
}
