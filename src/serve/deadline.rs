//! How long a call may take: its own deadline, and ours.
//!
//! In: a request. Out: its response, or DEADLINE_EXCEEDED from here. (A caller whose library keeps the deadline too may see
//! that library's own word first: tonic's client says CANCELLED, "Timeout expired".) A handler whose time is over is
//! dropped; what it handed to the journal's writer happens all the same, and a retry by `request_id` finds it or nothing.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Bytes, Frame};
use tokio::sync::watch;
use tokio::time::Sleep;
use tonic::Status;

/// Says that a request's connection is closing: a request's extension.
#[derive(Clone)]
pub(super) struct Closing(pub(super) watch::Receiver<bool>);

/// Methods whose answers go on, as they stand in the path of a call.
const STREAMS: &[&str] = &[
    "/dipylon.v1.TokenService/WatchRevocations",
    "/dipylon.v1.TaskService/WatchAccessRequest",
    "/dipylon.v1.ApprovalService/WatchAccessRequests",
    "/grpc.health.v1.Health/Watch",
];
/// Methods that take many messages, and may take longer to say them. Reflection is not among them: it is there for anybody,
/// and whoever asks it is done in a moment.
const UPLOADS: &[&str] = &["/dipylon.v1.GovernanceService/ApplyPolicyBundle"];

/// Whether a method's answers go on.
pub(super) fn is_stream(path: &str) -> bool {
    STREAMS.contains(&path) || path == super::console::rows::EVENTS
}

/// Bounds a call: its message must arrive whole, its answer must begin, and its stream must end, in time.
pub(super) async fn bounded(request: Request, next: Next) -> Response {
    let grpc = is_grpc(request.headers());
    let asked = request
        .headers()
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
        .and_then(grpc_timeout_ms)
        .map(Duration::from_millis);
    let path = request.uri().path();
    let stream = is_stream(path);
    let to_arrive = if UPLOADS.contains(&path) {
        UPLOAD_MAX
    } else {
        MESSAGE_MAX
    };
    let closing = request.extensions().get::<Closing>().cloned();
    let request = request.map(|body| {
        Body::new(Arriving {
            body,
            until: Box::pin(tokio::time::sleep(to_arrive)),
        })
    });
    let until = tokio::time::sleep(asked.map_or(CALL_MAX, |asked| asked.min(CALL_MAX)));
    let response = tokio::select! {
        response = next.run(request) => response,
        () = until => return late(grpc),
    };
    if !(grpc && stream) {
        return response;
    }
    let ending: Pin<Box<dyn Future<Output = Status> + Send>> = Box::pin(async move {
        let over = async {
            match asked {
                Some(asked) => tokio::time::sleep(asked).await,
                None => std::future::pending().await,
            }
        };
        let closes = async {
            match closing {
                Some(Closing(mut closing)) => {
                    let _closes_or_gone = closing.wait_for(|closing| *closing).await.is_ok();
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => Status::deadline_exceeded(LATE),
            () = closes => Status::unavailable("this connection is closing"),
        }
    });
    response.map(|body| {
        Body::new(Streaming {
            body,
            ending: Some(ending),
        })
    })
}

fn late(grpc: bool) -> Response {
    if grpc {
        Status::deadline_exceeded(LATE).into_http::<Body>()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not in time\n").into_response()
    }
}

/// Whether a request or its answer is of a gRPC call.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// The caller's own deadline as it stands in `grpc-timeout`: at most eight digits and a unit. `None` for anything else.
pub(super) fn grpc_timeout_ms(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let digits = text
        .strip_suffix(unit)
        .filter(|digits| digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_digit()))?;
    let n: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(n.saturating_mul(3_600_000)),
        'M' => Some(n.saturating_mul(60_000)),
        'S' => Some(n.saturating_mul(1_000)),
        'm' => Some(n),
        'u' => Some(n / 1_000),
        'n' => Some(n / 1_000_000),
        _ => None,
    }
}

/// A request's body, which must arrive whole in time.
struct Arriving {
    body: Body,
    until: Pin<Box<Sleep>>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // The time first: a caller who always has one byte more must not go on for ever.
        if self.until.as_mut().poll(cx).is_ready() {
            let late = Status::deadline_exceeded("the message did not arrive in time");
            return Poll::Ready(Some(Err(late.into())));
        }
        Pin::new(&mut self.body)
            .poll_frame(cx)
            .map_err(|error| error.into_inner())
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// A stream of answers, which ends with a status of ours when its time or its connection does.
struct Streaming {
    body: Body,
    ending: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

impl HttpBody for Streaming {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(ending) = &mut self.ending else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(status) = ending.as_mut().poll(cx) {
            self.ending = None;
            let mut trailers = HeaderMap::new();
            return match status.add_header(&mut trailers) {
                Ok(()) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Err(_) => Poll::Ready(None),
            };
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ending.is_none() || self.body.is_end_stream()
    }
}

/// Until a call's answer begins, whatever it asked for: the longest wait is 60 s.
const CALL_MAX: Duration = Duration::from_secs(75);
/// Until a call's message has arrived whole.
const MESSAGE_MAX: Duration = Duration::from_secs(10);
/// The same where the messages are many: a policy bundle.
const UPLOAD_MAX: Duration = Duration::from_secs(60);
const LATE: &str = "the call's deadline has passed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_as_callers_write_them() {
        for (text, ms) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3_000)),
            ("250m", Some(250)),
            ("1999u", Some(1)),
            ("5n", Some(0)),
            ("", None),
            ("S", None),
            ("1", None),
            ("+1S", None),
            ("1.5S", None),
            ("123456789S", None),
            ("1s", None),
        ] {
            assert_eq!(grpc_timeout_ms(text), ms, "{text}");
        }
    }

    #[test]
    fn streams_and_uploads_are_those_of_the_proto() {
        use prost::Message as _;
        let set = prost_types::FileDescriptorSet::decode(crate::proto::DESCRIPTOR).expect("set");
        let mut streams = vec!["/grpc.health.v1.Health/Watch".to_owned()];
        let mut uploads = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    if method.server_streaming() {
                        streams.push(path.clone());
                    }
                    if method.client_streaming() {
                        uploads.push(path);
                    }
                }
            }
        }
        streams.sort();
        let mut ours = STREAMS.to_vec();
        ours.sort_unstable();
        assert_eq!(streams, ours);
        assert_eq!(uploads, UPLOADS);
    }
}
