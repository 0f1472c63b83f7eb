//! Request logging: one tracing span per call and, when it ends for any reason, one log line and one metric.

use std::error::Error as _;
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

use super::authorization;
use super::errors::ErrorReason;
use super::routes;
use super::status::UnloggedRefusal;
use super::timeouts::is_grpc_response;
use crate::broker::Broker;
use crate::model::Reason;
use crate::proto::code_name;
use crate::telemetry::InFlightGuard;
use crate::telemetry::logs::TraceParent;

/// Longest `traceparent` looked at, in bytes: version 00 has 55.
const TRACEPARENT_BYTES_MAX: usize = 256;

/// Logs and counts a call from its arrival to its response.
pub(super) async fn log_request(
    State(broker): State<Arc<Broker>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let method = route_label(request.uri().path());
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
    let mut log = RequestLog {
        method,
        began: broker.uptime(),
        outcome: None,
        span: span.clone(),
        _in_flight: broker.metrics().call_started(),
        broker,
    };
    let response = next.run(request).instrument(span).await;
    log.outcome = Some(ResponseOutcome::from_response(&response));
    response
}

/// Adds a field to the span of the current call.
pub(super) fn record(field: &'static str, value: &dyn std::fmt::Display) {
    Span::current().record(field, display(value));
}

/// The name of a path in logs and metrics: a method's or route's from its table, or one of three.
pub(super) fn route_label(path: &str) -> &'static str {
    match path {
        "/livez" | "/readyz" | "/.well-known/jwks.json" => "http",
        path if path.starts_with("/grpc.health.v1.Health/") => "health",
        path if routes::is_console_path(path) => {
            routes::route(path).map_or("other", |route| route.name)
        }
        path => path
            .strip_prefix('/')
            .and_then(authorization::method_policy)
            .map_or("other", |policy| policy.name),
    }
}

struct RequestLog {
    broker: Arc<Broker>,
    method: &'static str,
    began: Duration,
    /// None: the client disconnected first.
    outcome: Option<ResponseOutcome>,
    span: Span,
    _in_flight: InFlightGuard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ResponseOutcome {
    code: &'static str,
    reason: Option<Reason>,
    /// Whether it is a refusal that has no line in the log, so that the call has none either: one throttle for both.
    is_unlogged: bool,
}

impl ResponseOutcome {
    fn from_response(response: &Response<Body>) -> Self {
        if let Some(status) = response.extensions().get::<Status>() {
            let info = status.get_details_error_info();
            return Self {
                code: code_name(status.code()),
                reason: info.and_then(|info| Reason::parse(&info.reason)),
                is_unlogged: status
                    .source()
                    .is_some_and(|source| source.is::<UnloggedRefusal>()),
            };
        }
        let headers = response.headers();
        let reason = response.extensions().get::<ErrorReason>();
        let reason = reason.map(|reason| reason.0);
        let code = if is_grpc_response(headers) {
            let status = headers.get(Status::GRPC_STATUS);
            code_name(status.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes())))
        } else if response.status().is_success() {
            "OK"
        } else if response.status() < StatusCode::INTERNAL_SERVER_ERROR {
            "HTTP_4XX"
        } else {
            "HTTP_5XX"
        };
        Self {
            code,
            reason,
            is_unlogged: response.extensions().get::<UnloggedRefusal>().is_some(),
        }
    }
}

/// Runs however the call ends, also when the client disconnects.
impl Drop for RequestLog {
    fn drop(&mut self) {
        let took = self.broker.uptime().saturating_sub(self.began);
        let ResponseOutcome {
            code,
            reason,
            is_unlogged,
        } = self.outcome.unwrap_or(ResponseOutcome {
            code: code_name(Code::Cancelled),
            reason: None,
            is_unlogged: false,
        });
        self.broker
            .metrics()
            .call_completed(self.method, code, took);
        if let Some(reason) = reason {
            self.broker.metrics().refused(reason.as_str());
        }
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let reason_word = reason.map_or("", Reason::as_str);
        // Probes, shed calls and refusals before authentication are too frequent for a line each.
        let is_frequent =
            !self.method.contains('/') || reason == Some(Reason::RateLimited) || is_unlogged;
        self.span.in_scope(|| {
            let ended = if self.outcome.is_some() {
                "request completed"
            } else {
                "client disconnected"
            };
            if is_frequent {
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
    fn route_labels_are_bounded() {
        let name = authorization::OPEN_TASK.name;
        assert_eq!(route_label(&format!("/{name}")), name);
        assert_eq!(route_label("/livez"), "http");
        assert_eq!(route_label("/grpc.health.v1.Health/Check"), "health");
        for hostile in [
            "/",
            "/dipylon.v1.TaskService/Forged",
            "/\"} 1\n",
            "//livez",
            "",
        ] {
            assert_eq!(route_label(hostile), "other", "{hostile}");
        }
    }

    #[test]
    fn outcome_is_read_from_the_response() {
        let details = tonic_types::ErrorDetails::with_error_info(
            Reason::RateLimited.as_str(),
            crate::proto::ERROR_DOMAIN,
            std::collections::HashMap::new(),
        );
        let shed = Status::with_error_details(Code::ResourceExhausted, "", details);
        let outcome = ResponseOutcome::from_response(&shed.into_http());
        assert_eq!(
            (outcome.code, outcome.reason),
            ("RESOURCE_EXHAUSTED", Some(Reason::RateLimited))
        );
        let plain = |status: u16| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            ResponseOutcome::from_response(&response).code
        };
        assert_eq!(
            (plain(200), plain(404), plain(503)),
            ("OK", "HTTP_4XX", "HTTP_5XX")
        );
        let mut ok = Response::new(Body::empty());
        let grpc = "application/grpc".parse().expect("a value");
        ok.headers_mut().insert(header::CONTENT_TYPE, grpc);
        assert_eq!(ResponseOutcome::from_response(&ok).code, "OK");
    }
}
