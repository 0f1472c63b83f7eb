//! Streams of what waits for people: one access request for its agent, inboxes for approvers and operators.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::super::status::put_nonce;
use super::{GrpcService, note, shapes};
use crate::broker::{AccessMark, AccessNews, InboxNews, Position};
use crate::model::*;
use crate::proto::{card, v1};
use crate::state::{Stir, Stirred};

pub(super) type AccessStream = ReceiverStream<Result<v1::WatchAccessRequestResponse, Status>>;
pub(super) type InboxStream = ReceiverStream<Result<v1::WatchAccessRequestsResponse, Status>>;

/// Whoever takes no message for this long is cut, and takes the watch up again.
const SLOW_MAX: Duration = Duration::from_secs(10);
/// Messages between a watch of one access request and a slow connection: there are thousands of watches.
const BUFFER: usize = 4;
/// Ids in one message: 1,000 of 27 bytes are well below the longest message.
const IDS_MAX: usize = 1_000;

impl GrpcService {
    pub(super) async fn follow_one(
        &self,
        request: Request<v1::WatchAccessRequestRequest>,
    ) -> Result<Response<AccessStream>, Status> {
        let (call, message) = self
            .open("dipylon.v1.TaskService/WatchAccessRequest", request)
            .await?;
        let (task, id, seen) = access_watch_ask(&message).map_err(self.malformed(&call))?;
        note("task", &task);
        note("access_request", &id);
        let mut watch = self
            .broker
            .watch_access_request(&call, task, id, seen)
            .map_err(|refusal| super::status(&refusal, &self.broker))?;
        let counted = self.admission.agent_watch(&watch.agent)?;
        let life = Duration::from_millis(watch.life_ms);
        let (sender, receiver) = mpsc::channel(BUFFER);
        let (broker, mut stopped) = (self.broker.clone(), self.stopped.clone());
        tokio::spawn(async move {
            let _counted = counted;
            let told = async {
                while let Some(news) = watch.next(&broker).await {
                    if send(&sender, access_message(&news)).await.is_none() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = told => {}
                () = sender.closed() => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = tokio::time::sleep(life) => {}
            }
        });
        let mut response = Response::new(ReceiverStream::new(receiver));
        put_nonce(response.metadata_mut(), &self.broker);
        Ok(response)
    }

    pub(super) async fn follow_inboxes(
        &self,
        request: Request<v1::WatchAccessRequestsRequest>,
    ) -> Result<Response<InboxStream>, Status> {
        let (call, message) = self
            .open("dipylon.v1.ApprovalService/WatchAccessRequests", request)
            .await?;
        let after = message.after.map(|p| Position {
            epoch: p.epoch,
            index: p.index,
        });
        let mut watch = self
            .broker
            .inbox_changes(&call, after)
            .map_err(|refusal| super::status(&refusal, &self.broker))?;
        let counted = self.admission.person_watch(&watch.caller)?;
        let life = Duration::from_millis(watch.life_ms);
        let (sender, receiver) = mpsc::channel(BUFFER);
        let (broker, mut stopped) = (self.broker.clone(), self.stopped.clone());
        tokio::spawn(async move {
            let _counted = counted;
            let told = async {
                while let Some(news) = watch.next(&broker).await {
                    for message in inbox_messages(&news) {
                        if send(&sender, message).await.is_none() {
                            return;
                        }
                    }
                }
            };
            tokio::select! {
                () = told => {}
                () = sender.closed() => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = tokio::time::sleep(life) => {}
            }
        });
        let mut response = Response::new(ReceiverStream::new(receiver));
        put_nonce(response.metadata_mut(), &self.broker);
        Ok(response)
    }
}

fn access_watch_ask(
    message: &v1::WatchAccessRequestRequest,
) -> Result<(TaskId, AccessRequestId, Option<AccessMark>), Malformed> {
    let seen = match &message.seen {
        Some(mark) => Some(AccessMark {
            version: mark.version,
            standing: card::status(mark.status)?,
        }),
        None => None,
    };
    Ok((
        TaskId::parse(&message.task_id)?,
        AccessRequestId::parse(&message.access_request_id)?,
        seen,
    ))
}

fn mark(mark: AccessMark) -> v1::AccessRequestMark {
    v1::AccessRequestMark {
        version: mark.version,
        status: card::status_to_wire(mark.standing).into(),
    }
}

fn access_message(news: &AccessNews) -> v1::WatchAccessRequestResponse {
    use v1::watch_access_request_response::Message;
    let message = match news {
        AccessNews::Stands {
            view,
            mark: at,
            last,
        } => Message::Stands(v1::AccessRequestStands {
            // The agent learns how many said yes, not who.
            access_request: Some(shapes::access_request(view, false)),
            mark: Some(mark(*at)),
            last: *last,
        }),
        AccessNews::Heartbeat(at) => Message::Heartbeat(v1::AccessRequestHeartbeat {
            mark: Some(mark(*at)),
        }),
    };
    v1::WatchAccessRequestResponse {
        message: Some(message),
    }
}

fn inbox_messages(news: &InboxNews) -> Vec<v1::WatchAccessRequestsResponse> {
    use v1::watch_access_requests_response::Message;
    let messages = match news {
        InboxNews::Snapshot(at) => vec![Message::Snapshot(v1::InboxSnapshot {
            as_of: Some(shapes::position(*at)),
        })],
        InboxNews::Changed(stir) => changes(stir).into_iter().map(Message::Change).collect(),
        InboxNews::Turn => vec![Message::Turn(v1::InboxTurn {})],
        InboxNews::Heartbeat(at) => vec![Message::Heartbeat(v1::InboxHeartbeat {
            read_through: Some(shapes::position(*at)),
        })],
    };
    messages
        .into_iter()
        .map(|message| v1::WatchAccessRequestsResponse {
            message: Some(message),
        })
        .collect()
}

fn changes(stir: &Stir) -> Vec<v1::InboxChange> {
    let kind = match stir.what {
        Stirred::Opened => v1::InboxChangeKind::Opened,
        Stirred::Voted => v1::InboxChangeKind::Voted,
        Stirred::Closed => v1::InboxChangeKind::Closed,
        Stirred::Rules => v1::InboxChangeKind::Rules,
    };
    let change = |ids: &[AccessRequestId]| v1::InboxChange {
        position: Some(v1::Position {
            epoch: stir.epoch,
            index: stir.index,
        }),
        kind: kind.into(),
        access_request_ids: ids.iter().map(ToString::to_string).collect(),
    };
    if stir.ids.is_empty() {
        return vec![change(&[])];
    }
    stir.ids.chunks(IDS_MAX).map(change).collect()
}

async fn send<T>(sender: &mpsc::Sender<Result<T, Status>>, message: T) -> Option<()> {
    match tokio::time::timeout(SLOW_MAX, sender.send(Ok(message))).await {
        Ok(Ok(())) => Some(()),
        Ok(Err(_)) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;

    use super::*;
    use crate::serve::MESSAGE_BYTES_MAX;

    #[test]
    fn what_one_entry_closes_fits_whatever_it_is() {
        let id = |n: u16| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            AccessRequestId::from_random(bytes)
        };
        let stir = Stir {
            epoch: 1,
            index: 9,
            what: Stirred::Closed,
            ids: (0..10_000).map(id).collect(),
        };
        let messages = inbox_messages(&InboxNews::Changed(Arc::new(stir)));
        assert_eq!(messages.len(), 10);
        for message in messages {
            assert!(message.encoded_len() < MESSAGE_BYTES_MAX / 2);
        }
    }
}
