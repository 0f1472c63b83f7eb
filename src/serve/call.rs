//! One call as operators see it: a span for whatever is said about it, and at its end one line and one count, whatever
//! becomes of it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use axum::middleware::Next;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span};

use super::console;
use super::deadline::is_grpc;
use super::guard;
use crate::broker::Broker;
use crate::model::Reason;
use crate::proto::code_name;
use crate::telemetry::InFlightGuard;
use crate::telemetry::logs::TraceParent;

/// Longest `traceparent` looked at, in bytes: version 00 has 55.
const TRACEPARENT_BYTES_MAX: usize = 256;

/// Follows a call from its arrival to its answer.
pub(super) async fn followed(
    State(broker): State<Arc<Broker>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let method = label(request.uri().path());
    let span = tracing::info_span!(
        "call",
        method,
        trace_id = Empty,
        caller = Empty,
        who = Empty,
        task = Empty,
        request = Empty,
        access_request = Empty,
        token = Empty,
        decision = Empty,
        outcome = Empty,
        correlation = Empty,
    );
    let traceparent = request.headers().get("traceparent");
    let traceparent = traceparent.filter(|value| value.len() <= TRACEPARENT_BYTES_MAX);
    if let Some(trace) = traceparent
        .and_then(|value| value.to_str().ok())
        .and_then(TraceParent::parse)
    {
        trace.record_on(&span);
    }
    let mut call = Call {
        method,
        began: broker.uptime(),
        answer: None,
        span: span.clone(),
        _working: broker.metrics().call_started(),
        broker,
    };
    let response = next.run(request).instrument(span).await;
    call.answer = Some(Answer::of(&response));
    response
}

/// Adds what is known by now to what is said of the call.
pub(super) fn note(field: &'static str, value: &dyn std::fmt::Display) {
    Span::current().record(field, display(value));
}

/// The name a path goes by in figures: a row's, or one of three.
pub(super) fn label(path: &str) -> &'static str {
    match path {
        "/livez" | "/readyz" | "/.well-known/jwks.json" => "http",
        path if path.starts_with("/grpc.health.v1.Health/") => "health",
        path if console::rows::is_ours(path) => {
            console::rows::of(path).map_or("other", |row| row.name)
        }
        path => guard::row(path.trim_start_matches('/')).map_or("other", |(name, _)| name),
    }
}

struct Call {
    broker: Arc<Broker>,
    method: &'static str,
    began: Duration,
    /// None: the caller went away first.
    answer: Option<Answer>,
    span: Span,
    _working: InFlightGuard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    code: &'static str,
    reason: Option<Reason>,
}

impl Answer {
    fn of(response: &Response<Body>) -> Self {
        if let Some(status) = response.extensions().get::<Status>() {
            let info = status.get_details_error_info();
            return Self {
                code: code_name(status.code()),
                reason: info.and_then(|info| Reason::parse(&info.reason)),
            };
        }
        let headers = response.headers();
        let code = if is_grpc(headers) {
            let status = headers.get(Status::GRPC_STATUS);
            code_name(status.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes())))
        } else if response.status().is_success() {
            "OK"
        } else if response.status() < StatusCode::INTERNAL_SERVER_ERROR {
            "HTTP_4XX"
        } else {
            "HTTP_5XX"
        };
        Self { code, reason: None }
    }
}

/// Said on every way out, a caller that went away included.
impl Drop for Call {
    fn drop(&mut self) {
        let took = self.broker.uptime().saturating_sub(self.began);
        let Answer { code, reason } = self.answer.unwrap_or(Answer {
            code: code_name(Code::Cancelled),
            reason: None,
        });
        self.broker.metrics().call_completed(self.method, code, took);
        if let Some(reason) = reason {
            self.broker.metrics().refused(reason.as_str());
        }
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let reason_word = reason.map_or("", Reason::as_str);
        // Probes and what was shed come too often for a line each.
        let often = !self.method.contains('/') || reason == Some(Reason::RateLimited);
        self.span.in_scope(|| {
            let ended = if self.answer.is_some() {
                "answered"
            } else {
                "the caller went away"
            };
            if often {
                tracing::debug!(code, reason = reason_word, ms, "{ended}");
            } else {
                tracing::info!(code, reason = reason_word, ms, "{ended}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::*;

    #[test]
    fn a_path_has_one_of_few_names() {
        assert_eq!(
            label("/dipylon.v1.TaskService/OpenTask"),
            "dipylon.v1.TaskService/OpenTask"
        );
        assert_eq!(label("/livez"), "http");
        assert_eq!(label("/grpc.health.v1.Health/Check"), "health");
        for hostile in [
            "/",
            "/dipylon.v1.TaskService/Forged",
            "/\"} 1\n",
            "//livez",
            "",
        ] {
            assert_eq!(label(hostile), "other", "{hostile}");
        }
    }

    #[test]
    fn an_answer_is_read_from_what_goes_out() {
        let shed = super::super::status::rate_limited(Duration::from_secs(1));
        let answer = Answer::of(&shed.into_http());
        assert_eq!(
            (answer.code, answer.reason),
            ("RESOURCE_EXHAUSTED", Some(Reason::RateLimited))
        );
        let plain = |status: u16| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            Answer::of(&response).code
        };
        assert_eq!(
            (plain(200), plain(404), plain(503)),
            ("OK", "HTTP_4XX", "HTTP_5XX")
        );
        let mut ok = Response::new(Body::empty());
        let grpc = "application/grpc".parse().expect("a value");
        ok.headers_mut().insert(header::CONTENT_TYPE, grpc);
        assert_eq!(Answer::of(&ok).code, "OK");
    }
}
