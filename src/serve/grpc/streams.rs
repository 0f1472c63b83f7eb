//! Server streams: one access request and one token for their agent, inboxes for approvers and operators, and the loop that every stream
//! of this server runs in.

use std::hash::Hash;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert;
use super::service::GrpcService;
use crate::broker::{AccessRequestCursor, AccessRequestEvent, InboxEvent, TokenEvent};
use crate::model::*;
use crate::proto::convert::{position, position_to_wire};
use crate::proto::{card, v1};
use crate::serve::admission::StreamPermit;
use crate::serve::authorization::{
    GET_TOKEN_RECEIPT, WATCH_ACCESS_REQUEST, WATCH_ACCESS_REQUESTS, WATCH_TOKEN,
};
use crate::serve::request_log::record;
use crate::state::{InboxChange, InboxChangeKind};

/// The messages of a stream, up to its final status.
pub(super) type Messages<T> = ReceiverStream<Result<T, Status>>;

/// A client that reads no message for this long is disconnected; it resumes from its position.
const SLOW_MAX: Duration = Duration::from_secs(10);
/// Messages between a stream and a slow connection: there are thousands of watches.
pub(super) const STREAM_BUFFER: usize = 4;
/// Longest part of a text in one message, in bytes.
const PART_BYTES_MAX: usize = 48 * 1024;
/// Longest time to send a receipt or a policy bundle.
pub(super) const DOCUMENT_LIFE_MS: u64 = 30_000;
/// Ids in one message: 1,000 of 27 bytes are well below the longest message.
const IDS_MAX: usize = 1_000;

/// Sends the messages of one stream.
pub(super) struct StreamSender<T>(mpsc::Sender<Result<T, Status>>);

impl<T> StreamSender<T> {
    /// Sends a message; `None` when the client is gone or has read none for too long.
    pub(super) async fn send(&self, message: T) -> Option<()> {
        match tokio::time::timeout(SLOW_MAX, self.0.send(Ok(message))).await {
            Ok(Ok(())) => Some(()),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Ends the stream with a status.
    pub(super) async fn end(&self, status: Status) {
        let _gone = self.0.send(Err(status)).await;
    }
}

impl GrpcService {
    /// Runs a stream in a task of its own until `produce` ends, the client leaves, the broker stops, or the stream's
    /// lifetime is over. Holds the permit until then.
    pub(super) fn stream<T, K, F>(
        &self,
        buffer: usize,
        life_ms: u64,
        permit: StreamPermit<K>,
        produce: impl FnOnce(StreamSender<T>) -> F,
    ) -> Response<Messages<T>>
    where
        T: Send + 'static,
        K: Hash + Eq + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(buffer);
        let produced = produce(StreamSender(sender.clone()));
        let mut stopped = self.stopped.clone();
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = produced => {}
                () = sender.closed() => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = tokio::time::sleep(Duration::from_millis(life_ms)) => {}
            }
        });
        self.ok(ReceiverStream::new(receiver))
    }

    pub(super) async fn watch_one(
        &self,
        request: Request<v1::WatchAccessRequestRequest>,
    ) -> Result<Response<Messages<v1::WatchAccessRequestResponse>>, Status> {
        let (call, message) = self.begin_call(WATCH_ACCESS_REQUEST, request).await?;
        let (task, id, cursor) = parse_access_watch(&message).map_err(self.malformed(&call))?;
        record("task", &task);
        record("access_request", &id);
        let mut watch = self
            .broker
            .watch_access_request(&call, task, id, cursor)
            .map_err(|refusal| self.status(&refusal))?;
        let permit = self.admission.agent_stream(&watch.agent)?;
        let (broker, life_ms) = (self.broker.clone(), watch.life_ms);
        let produce = |sender: StreamSender<_>| async move {
            while let Some(event) = watch.next(&broker).await {
                if sender.send(access_message(&event)).await.is_none() {
                    return;
                }
            }
        };
        Ok(self.stream(STREAM_BUFFER, life_ms, permit, produce))
    }

    pub(super) async fn watch_one_token(
        &self,
        request: Request<v1::WatchTokenRequest>,
    ) -> Result<Response<Messages<v1::WatchTokenResponse>>, Status> {
        let (call, message) = self.begin_call(WATCH_TOKEN, request).await?;
        let task = TaskId::parse(&message.task_id).map_err(self.malformed(&call))?;
        let jti = TokenId::parse(&message.jti).map_err(self.malformed(&call))?;
        record("task", &task);
        record("token", &jti);
        let mut watch = self
            .broker
            .watch_token(&call, task, jti)
            .map_err(|refusal| self.status(&refusal))?;
        let permit = self.admission.agent_token_stream(&watch.agent)?;
        let (broker, life_ms) = (self.broker.clone(), watch.life_ms);
        let produce = |sender: StreamSender<_>| async move {
            while let Some(event) = watch.next(&broker).await {
                if sender.send(token_message(event)).await.is_none() {
                    return;
                }
            }
        };
        Ok(self.stream(STREAM_BUFFER, life_ms, permit, produce))
    }

    pub(super) async fn watch_inboxes(
        &self,
        request: Request<v1::WatchAccessRequestsRequest>,
    ) -> Result<Response<Messages<v1::WatchAccessRequestsResponse>>, Status> {
        let (call, message) = self.begin_call(WATCH_ACCESS_REQUESTS, request).await?;
        let after = message.after.map(position);
        let mut watch = self
            .broker
            .inbox_changes(&call, after)
            .map_err(|refusal| self.status(&refusal))?;
        let permit = self.admission.person_stream(&watch.caller)?;
        let (broker, life_ms) = (self.broker.clone(), watch.life_ms);
        let produce = |sender: StreamSender<_>| async move {
            while let Some(event) = watch.next(&broker).await {
                for message in inbox_messages(&event) {
                    if sender.send(message).await.is_none() {
                        return;
                    }
                }
            }
        };
        Ok(self.stream(STREAM_BUFFER, life_ms, permit, produce))
    }
}

impl GrpcService {
    /// A receipt in parts: it may be longer than a message.
    pub(super) async fn read_receipt(
        &self,
        request: Request<v1::GetTokenReceiptRequest>,
    ) -> Result<Response<Messages<v1::GetTokenReceiptResponse>>, Status> {
        let (call, message) = self.begin_call(GET_TOKEN_RECEIPT, request).await?;
        let jti = TokenId::parse(&message.jti).at("jti");
        let jti = jti.map_err(self.malformed(&call))?;
        record("token", &jti);
        let receipt = self.broker.token_receipt(&call, jti).await;
        let receipt = receipt.map_err(|refusal| self.status(&refusal))?;
        let permit = self.admission.receipt_stream(&receipt.caller)?;
        let produce = |sender: StreamSender<_>| async move {
            let mut parts = text_parts(&receipt.text).into_iter().peekable();
            while let Some(part) = parts.next() {
                let message = v1::GetTokenReceiptResponse {
                    part: part.to_owned(),
                    is_last: parts.peek().is_none(),
                };
                if sender.send(message).await.is_none() {
                    return;
                }
            }
        };
        Ok(self.stream(STREAM_BUFFER, DOCUMENT_LIFE_MS, permit, produce))
    }
}

/// The text in parts that each fit into a message.
pub(super) fn text_parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.floor_char_boundary(PART_BYTES_MAX));
        parts.push(part);
        rest = after;
    }
    parts
}

fn parse_access_watch(
    message: &v1::WatchAccessRequestRequest,
) -> Result<(TaskId, AccessRequestId, Option<AccessRequestCursor>), ParseError> {
    let cursor = match &message.after {
        Some(mark) => Some(AccessRequestCursor {
            version: mark.version,
            status: card::status(mark.status)?,
        }),
        None => None,
    };
    Ok((
        TaskId::parse(&message.task_id).at("task_id")?,
        AccessRequestId::parse(&message.access_request_id).at("access_request_id")?,
        cursor,
    ))
}

fn mark(mark: AccessRequestCursor) -> v1::AccessRequestCursor {
    v1::AccessRequestCursor {
        version: mark.version,
        status: card::status_to_wire(mark.status).into(),
    }
}

fn access_message(event: &AccessRequestEvent) -> v1::WatchAccessRequestResponse {
    use v1::watch_access_request_response::Message;
    let message = match event {
        AccessRequestEvent::StatusChanged {
            view,
            cursor: at,
            last,
        } => Message::State(v1::AccessRequestState {
            // The agent learns how many approved, not their names.
            access_request: Some(convert::access_request(view, false)),
            cursor: Some(mark(*at)),
            is_final: *last,
        }),
        AccessRequestEvent::Heartbeat(at) => Message::Heartbeat(v1::AccessRequestHeartbeat {
            cursor: Some(mark(*at)),
        }),
    };
    v1::WatchAccessRequestResponse {
        message: Some(message),
    }
}

fn token_message(event: TokenEvent) -> v1::WatchTokenResponse {
    use v1::watch_token_response::Message;
    let message = match event {
        TokenEvent::Active => Message::Heartbeat(v1::TokenHeartbeat {}),
        TokenEvent::Ended(cause) => Message::End(v1::TokenEnd {
            cause: cause.as_str().to_owned(),
        }),
    };
    v1::WatchTokenResponse {
        message: Some(message),
    }
}

fn inbox_messages(event: &InboxEvent) -> Vec<v1::WatchAccessRequestsResponse> {
    use v1::watch_access_requests_response::Message;
    let messages = match event {
        InboxEvent::Snapshot(at) => vec![Message::Snapshot(v1::InboxSnapshot {
            as_of: Some(position_to_wire(*at)),
        })],
        InboxEvent::Changed(change) => changes(change).into_iter().map(Message::Change).collect(),
        InboxEvent::BudgetChanged => vec![Message::BudgetChanged(v1::InboxBudgetChanged {})],
        InboxEvent::Heartbeat(at) => vec![Message::Heartbeat(v1::InboxHeartbeat {
            position: Some(position_to_wire(*at)),
        })],
    };
    messages
        .into_iter()
        .map(|message| v1::WatchAccessRequestsResponse {
            message: Some(message),
        })
        .collect()
}

fn changes(change: &InboxChange) -> Vec<v1::InboxChange> {
    let kind = match change.kind {
        InboxChangeKind::Opened => v1::InboxChangeKind::Opened,
        InboxChangeKind::Voted => v1::InboxChangeKind::Voted,
        InboxChangeKind::Closed => v1::InboxChangeKind::Closed,
        InboxChangeKind::Rules => v1::InboxChangeKind::Rules,
    };
    let part = |ids: &[AccessRequestId]| v1::InboxChange {
        position: Some(v1::Position {
            epoch: change.epoch,
            index: change.index,
        }),
        kind: kind.into(),
        access_request_ids: ids.iter().map(ToString::to_string).collect(),
    };
    if change.ids.is_empty() {
        return vec![part(&[])];
    }
    change.ids.chunks(IDS_MAX).map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;

    use super::*;
    use crate::serve::MESSAGE_BYTES_MAX;

    #[test]
    fn closing_many_requests_fits_into_messages() {
        let id = |n: u16| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            AccessRequestId::from_random(bytes)
        };
        let change = InboxChange {
            epoch: 1,
            index: 9,
            kind: InboxChangeKind::Closed,
            ids: (0..10_000).map(id).collect(),
        };
        let messages = inbox_messages(&InboxEvent::Changed(Arc::new(change)));
        assert_eq!(messages.len(), 10);
        for message in messages {
            assert!(message.encoded_len() < MESSAGE_BYTES_MAX / 2);
        }
    }
}
