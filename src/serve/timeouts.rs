//! Timeouts: the client's deadline (`grpc-timeout`) and the broker's own limits on body, response and stream.
//!
//! In: a request. Out: its response, or DEADLINE_EXCEEDED, at once for a deadline of zero. (A client library that enforces the deadline too may report it
//! first: tonic's client says CANCELLED, "Timeout expired".) A handler whose time is over is dropped; an entry it handed to
//! the journal's writer is appended all the same, and a retry with the same idempotency key finds the entry or nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Bytes, Frame};
use tokio::sync::watch;
use tokio::time::Sleep;
use tonic::Status;

use super::admission::HealthStreamPermit;
use super::authorization::{MethodPolicy, StreamingSide, method_policy};
use super::errors::{self, ErrorForm};
use super::request_log::route_label;
use super::routes;
use super::status::status;
use crate::broker::Broker;
use crate::model::Reason;

/// Signals that the connection of a request is closing: an extension of the request.
#[derive(Clone)]
pub(super) struct ConnectionClosing(pub(super) watch::Receiver<bool>);

/// gRPC health watch: the one stream outside the services of the broker.
pub(super) const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Whether a path answers with a stream.
pub(super) fn is_stream(path: &str) -> bool {
    policy(path).is_some_and(|method| method.streaming == StreamingSide::Server)
        || path == HEALTH_WATCH
        || routes::is_stream(path)
}

/// Whether a path takes many messages, and so more time for them. Reflection takes many too, but needs no caller's
/// credentials, and its clients are done in a moment.
fn is_upload(path: &str) -> bool {
    policy(path).is_some_and(|method| method.streaming == StreamingSide::Client)
}

fn policy(path: &str) -> Option<&'static MethodPolicy> {
    method_policy(path.strip_prefix('/')?)
}

/// The client's deadline in metadata.
pub(super) const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Limits the time of a call: its message must arrive whole, its response must begin, and its stream must end, in time.
pub(super) async fn enforce_timeouts(
    State(broker): State<Arc<Broker>>,
    request: Request,
    next: Next,
) -> Response {
    let form = ErrorForm::of(&request);
    let method = route_label(request.uri().path());
    let client_timeout = request
        .headers()
        .get(GRPC_TIMEOUT)
        .and_then(|value| value.to_str().ok())
        .and_then(grpc_timeout_ms)
        .map(Duration::from_millis);
    let path = request.uri().path();
    let stream = is_stream(path);
    let body_timeout = if is_upload(path) {
        UPLOAD_MAX
    } else {
        MESSAGE_MAX
    };
    if client_timeout.is_some_and(|timeout| timeout.is_zero()) {
        return timeout_response(&broker, form, method);
    }
    let closing = request.extensions().get::<ConnectionClosing>().cloned();
    let health_permit = request.extensions().get::<HealthStreamPermit>().cloned();
    let life = (path == HEALTH_WATCH).then_some(HEALTH_WATCH_MAX);
    let request = request.map(|body| {
        Body::new(BodyTimeout {
            body,
            until: Box::pin(tokio::time::sleep(body_timeout)),
        })
    });
    let until =
        tokio::time::sleep(client_timeout.map_or(CALL_MAX, |timeout| timeout.min(CALL_MAX)));
    let response = tokio::select! {
        response = next.run(request) => response,
        () = until => return timeout_response(&broker, form, method),
    };
    if !(form == ErrorForm::Grpc && stream) {
        return response;
    }
    let ending: Pin<Box<dyn Future<Output = Status> + Send>> = Box::pin(async move {
        let _until_the_stream_ends = health_permit;
        match stream_end(client_timeout, life, closing).await {
            Some(reason) => status(&broker.refuse_unrecorded(reason, None), &broker),
            None => Status::ok(""),
        }
    });
    response.map(|body| {
        Body::new(StreamTimeout {
            body,
            ending: Some(ending),
        })
    })
}

/// Waits until a stream has to end: the reason, or `None` at the end of its life, when the client calls again.
async fn stream_end(
    client_timeout: Option<Duration>,
    life: Option<Duration>,
    closing: Option<ConnectionClosing>,
) -> Option<Reason> {
    let after = async |time: Option<Duration>| match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    };
    let closes = async {
        match closing {
            Some(ConnectionClosing(mut closing)) => {
                let _closes_or_gone = closing.wait_for(|closing| *closing).await.is_ok();
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = after(client_timeout) => Some(Reason::DeadlineExceeded),
        () = closes => Some(Reason::ConnectionClosing),
        () = after(life) => None,
    }
}

fn timeout_response(broker: &Broker, form: ErrorForm, method: &'static str) -> Response {
    let reason = Reason::DeadlineExceeded;
    let refusal = broker.refuse_interrupted(method, reason);
    errors::respond(broker, form, errors::http_status(reason), &refusal)
}

/// Whether the headers of a response are of a gRPC call.
pub(super) fn is_grpc_response(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// The client's deadline from `grpc-timeout`: at most eight digits and a unit, `None` for anything else. Written here because
/// tonic keeps its own parser private.
pub(super) fn grpc_timeout_ms(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit).filter(|digits| {
        (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
    })?;
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
struct BodyTimeout {
    body: Body,
    until: Pin<Box<Sleep>>,
}

impl HttpBody for BodyTimeout {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // The timeout first: a client that always sends one byte more must not go on for ever.
        if self.until.as_mut().poll(cx).is_ready() {
            let timed_out =
                Status::deadline_exceeded("the message did not arrive in time; send it again");
            return Poll::Ready(Some(Err(timed_out.into())));
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

/// A stream of messages, which ends with a status when its deadline passes or its connection closes.
struct StreamTimeout {
    body: Body,
    ending: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

impl HttpBody for StreamTimeout {
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

/// Until a call's response begins: the longest wait for approval is 60 s.
const CALL_MAX: Duration = Duration::from_secs(75);
/// Longest life of a health watch, as of every other stream, which the broker ends by itself.
const HEALTH_WATCH_MAX: Duration = Duration::from_secs(300);
/// Until a call's message has arrived whole.
const MESSAGE_MAX: Duration = Duration::from_secs(10);
/// The same for an upload of many messages: a policy bundle.
const UPLOAD_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeout_parses() {
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

    #[tokio::test(start_paused = true)]
    async fn streams_end_at_the_first_of_deadline_life_and_closing() {
        let seconds = Duration::from_secs;
        let began = tokio::time::Instant::now();
        assert_eq!(stream_end(None, Some(HEALTH_WATCH_MAX), None).await, None);
        assert_eq!(began.elapsed(), seconds(300));
        let (life, early) = (Some(HEALTH_WATCH_MAX), Some(seconds(2)));
        let deadline = Some(Reason::DeadlineExceeded);
        assert_eq!(stream_end(early, life, None).await, deadline);
        assert_eq!(began.elapsed(), seconds(302));
        let (close, closing) = watch::channel(false);
        close.send_replace(true);
        let closing = Some(ConnectionClosing(closing));
        let closed = Some(Reason::ConnectionClosing);
        assert_eq!(stream_end(None, None, closing).await, closed);
        assert_eq!(began.elapsed(), seconds(302));
    }

    #[test]
    fn streaming_matches_the_proto() {
        use prost::Message as _;
        let set = prost_types::FileDescriptorSet::decode(crate::proto::DESCRIPTOR).expect("set");
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    assert_eq!(is_stream(&path), method.server_streaming(), "{path}");
                    assert_eq!(is_upload(&path), method.client_streaming(), "{path}");
                }
            }
        }
        assert!(is_stream(HEALTH_WATCH));
    }
}
