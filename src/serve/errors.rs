//! Error responses: every error leaves in the form of its request, with a reason of the table and a correlation id.
//!
//! In: responses of every layer, of axum and of tonic. Out: gRPC statuses with `ErrorInfo`, problem details (RFC 9457), or a
//! short page for a browser. Refuses: an error without a reason or a correlation id; it gets both here.

use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::limits::MESSAGE_BYTES_MAX;
use super::request_log::route_label;
use super::routes;
use super::status::{self, UnloggedRefusal, status};
use crate::broker::{Broker, Refusal};
use crate::model::Reason;
use crate::model::text::escape_invisible_capped;

/// The form of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorForm {
    /// A gRPC status.
    Grpc,
    /// A short page, for a browser under `/console`.
    Page,
    /// Problem details.
    Problem,
}

impl ErrorForm {
    /// The form of a request's errors. A path whose protocol has an error form of its own, as OAuth has (RFC 6749 §5.2), gets
    /// its case here.
    pub(super) fn of(request: &Request) -> Self {
        if is_grpc_call(request) {
            Self::Grpc
        } else if routes::is_console_path(request.uri().path()) && accepts_html(request.headers()) {
            Self::Page
        } else {
            Self::Problem
        }
    }
}

/// Whether a request is a gRPC call: POST over HTTP/2, of protobuf messages, by a client that reads trailers (gRPC over
/// HTTP2, "Requests"). Only then may an error be a gRPC status, whose HTTP status is 200.
pub(super) fn is_grpc_call(request: &Request) -> bool {
    request.method() == Method::POST
        && request.version() == Version::HTTP_2
        && has_grpc_content_type(request.headers())
        && accepts_trailers(request.headers())
}

/// Whether the one content type is gRPC with protobuf messages. A type is case-insensitive (RFC 9110 §8.3.1).
pub(super) fn has_grpc_content_type(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let grpc = types.next().is_some_and(|value| {
        [&b"application/grpc"[..], b"application/grpc+proto"]
            .iter()
            .any(|grpc| value.as_bytes().eq_ignore_ascii_case(grpc))
    });
    grpc && types.next().is_none()
}

/// Whether the client reads trailers, which carry the outcome of a call.
pub(super) fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers
        .get(header::TE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"))
}

fn accepts_html(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

/// The reason of an error response: an extension of it, for the request log.
#[derive(Debug, Clone, Copy)]
pub(super) struct ErrorReason(pub(super) Reason);

/// Refuses a request before any method sees it. `http` is its status in the forms other than gRPC.
pub(super) fn refuse(
    broker: &Broker,
    request: &Request,
    http: StatusCode,
    reason: Reason,
    detail: impl Into<String>,
) -> Response {
    let method = route_label(request.uri().path());
    let refusal = broker.refuse_unauthenticated(method, reason, detail);
    respond(broker, ErrorForm::of(request), http, &refusal)
}

/// A refusal in a form.
pub(super) fn respond(
    broker: &Broker,
    form: ErrorForm,
    http: StatusCode,
    refusal: &Refusal,
) -> Response {
    match form {
        ErrorForm::Grpc => status(refusal, broker).into_http::<Body>(),
        ErrorForm::Page => page(http, refusal),
        ErrorForm::Problem => problem(http, refusal),
    }
}

/// The HTTP status of a reason.
pub(super) fn http_status(reason: Reason) -> StatusCode {
    StatusCode::from_u16(reason.code().http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Problem details with the members of RFC 9457 §3.1, `reason` and `correlation_id`. `type` names the reason: a URN, because it
/// identifies and leads nowhere.
pub(super) fn problem(http: StatusCode, refusal: &Refusal) -> Response {
    let body = json!({
        "type": format!("urn:dipylon:reason:{}", refusal.reason),
        "title": http.canonical_reason().unwrap_or("Error"),
        "status": http.as_u16(),
        "detail": escape_invisible_capped(&refusal.message, DETAIL_CHARS_MAX),
        "reason": refusal.reason.as_str(),
        "correlation_id": refusal.correlation.to_string(),
    });
    let kind = HeaderValue::from_static(PROBLEM);
    let response = (http, [(header::CONTENT_TYPE, kind)], body.to_string()).into_response();
    with_error_headers(response, refusal)
}

fn page(http: StatusCode, refusal: &Refusal) -> Response {
    let title = http.canonical_reason().unwrap_or("Error");
    let detail = escape_invisible_capped(&refusal.message, DETAIL_CHARS_MAX)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1><p>{detail}</p>\
         <p>{} · {}</p><p><a href=\"/console\">Back to the inbox</a></p>",
        refusal.reason, refusal.correlation
    );
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let response = (http, [(header::CONTENT_TYPE, kind)], text).into_response();
    with_error_headers(response, refusal)
}

pub(super) fn with_error_headers(mut response: Response, refusal: &Refusal) -> Response {
    let retry_delay = match response.status() {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            status::retry_delay(refusal)
        }
        _ => refusal.retry_after,
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(after) = retry_delay {
        // Whole seconds, upward: not too early (RFC 9110 §10.2.3).
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
        .extensions_mut()
        .insert(ErrorReason(refusal.reason));
    mark_unlogged(response, refusal)
}

/// Tells the request log of a refusal without a log line.
pub(super) fn mark_unlogged(mut response: Response, refusal: &Refusal) -> Response {
    if !refusal.is_logged {
        response.extensions_mut().insert(UnloggedRefusal);
    }
    response
}

/// INVARIANT (no error without a reason): the errors of axum, tonic and hyper's bodies get a reason and a correlation id.
pub(super) async fn complete_errors(
    State(broker): State<Arc<Broker>>,
    request: Request,
    next: Next,
) -> Response {
    let form = ErrorForm::of(&request);
    let method = route_label(request.uri().path());
    let is_head = request.method() == Method::HEAD;
    let response = complete(&broker, form, method, next.run(request).await);
    if is_head {
        return without_content(response);
    }
    response
}

/// The response to HEAD: with the length of the content that GET would get (RFC 9110 §8.6), and without that content, which
/// over HTTP/2 would be a protocol error (RFC 9110 §9.3.2, RFC 9113 §8.1.1).
fn without_content(response: Response) -> Response {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| Body::empty());
    if let Some(length) = length.filter(|_| has_content_length(response.status())) {
        response
            .headers_mut()
            .entry(header::CONTENT_LENGTH)
            .or_insert(HeaderValue::from(length));
    }
    response
}

/// Whether the length of an empty body is the length of the content: a 204 has none, a 304 has that of the 200.
fn has_content_length(http: StatusCode) -> bool {
    !matches!(http, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn complete(
    broker: &Broker,
    form: ErrorForm,
    method: &'static str,
    response: Response,
) -> Response {
    let failed = response.status().is_client_error() || response.status().is_server_error();
    if form == ErrorForm::Grpc {
        match response.extensions().get::<Status>() {
            Some(found) => complete_status(broker, method, found).unwrap_or(response),
            None if failed => {
                let (reason, detail) = reason_of_http(response.status(), form);
                let refusal = broker.refuse_unauthenticated(method, reason, detail);
                respond(broker, form, response.status(), &refusal)
            }
            None => response,
        }
    } else if failed && response.extensions().get::<ErrorReason>().is_none() {
        let (reason, detail) = reason_of_http(response.status(), form);
        let refusal = broker.refuse_unauthenticated(method, reason, detail);
        let mut completed = respond(broker, form, response.status(), &refusal);
        for name in KEPT_HEADERS {
            if let Some(value) = response.headers().get(&name) {
                completed.headers_mut().insert(name, value.clone());
            }
        }
        completed
    } else {
        response
    }
}

/// The status with a reason and a correlation id, if it lacks one of them.
fn complete_status(broker: &Broker, method: &'static str, found: &Status) -> Option<Response> {
    let info = found.get_details_error_info();
    let complete = info.as_ref().is_some_and(|info| {
        Reason::parse(&info.reason).is_some() && info.metadata.contains_key(status::CORRELATION)
    });
    if complete || found.code() == Code::Ok {
        return None;
    }
    let (reason, detail) = match info.and_then(|info| Reason::parse(&info.reason)) {
        Some(reason) => (reason, found.message().to_owned()),
        None => reason_of_status(found),
    };
    let refusal = broker.refuse_unauthenticated(method, reason, detail);
    Some(status(&refusal, broker).into_http::<Body>())
}

/// The reason of a status that tonic made, with the code it has: about the frame of a message, before the message is decoded,
/// or by health checking and reflection.
fn reason_of_status(found: &Status) -> (Reason, String) {
    let text = found.message();
    match found.code() {
        Code::OutOfRange | Code::ResourceExhausted => (
            Reason::RequestTooLarge,
            format!("message: expected at most {MESSAGE_BYTES_MAX} bytes; send less"),
        ),
        Code::Unimplemented => unsupported_encoding(),
        Code::Internal if text.contains("compress") => unsupported_encoding(),
        Code::DeadlineExceeded => (Reason::DeadlineExceeded, text.to_owned()),
        Code::Internal | Code::Unknown | Code::Cancelled => (
            Reason::Malformed,
            "message: expected one whole gRPC message (a zero byte, four bytes of length, the message); it is missing or cut \
             short"
                .to_owned(),
        ),
        Code::Unavailable => (Reason::ConnectionClosing, text.to_owned()),
        Code::NotFound => (Reason::NotFound, text.to_owned()),
        Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists => {
            (Reason::Malformed, text.to_owned())
        }
        Code::PermissionDenied => (Reason::NotPermitted, text.to_owned()),
        Code::Unauthenticated => (Reason::NotAuthenticated, text.to_owned()),
        Code::Aborted => (Reason::Conflict, text.to_owned()),
        Code::Ok | Code::DataLoss => (Reason::InternalError, text.to_owned()),
    }
}

fn unsupported_encoding() -> (Reason, String) {
    (
        Reason::UnsupportedEncoding,
        "`grpc-encoding`: expected `identity`; send messages without compression".to_owned(),
    )
}

/// The reason of an HTTP error that a layer below made without one.
fn reason_of_http(http: StatusCode, form: ErrorForm) -> (Reason, &'static str) {
    match http {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if form == ErrorForm::Grpc => {
            (Reason::UnknownMethod, "no method has this path")
        }
        StatusCode::NOT_FOUND => (Reason::NotFound, "no resource has this path"),
        StatusCode::METHOD_NOT_ALLOWED => (
            Reason::Malformed,
            "this path does not take this HTTP method; `Allow` lists those it takes",
        ),
        StatusCode::PAYLOAD_TOO_LARGE => (
            Reason::RequestTooLarge,
            "the request body is larger than 65536 bytes; send less",
        ),
        StatusCode::UNAUTHORIZED => (Reason::NotAuthenticated, Reason::NotAuthenticated.text()),
        StatusCode::FORBIDDEN => (Reason::NotPermitted, Reason::NotPermitted.text()),
        StatusCode::TOO_MANY_REQUESTS => (Reason::RateLimited, Reason::RateLimited.text()),
        StatusCode::SERVICE_UNAVAILABLE => (Reason::Overloaded, Reason::Overloaded.text()),
        other if other.is_server_error() => {
            (Reason::InternalError, "the response could not be made")
        }
        _ => (
            Reason::Malformed,
            "the request cannot be read: check its path, query, headers and body",
        ),
    }
}

/// Problem details (RFC 9457 §6.1).
const PROBLEM: &str = "application/problem+json";
/// Longest detail of an error over HTTP, in characters.
const DETAIL_CHARS_MAX: usize = 2_000;
/// Headers of an error that its completed form keeps.
const KEPT_HEADERS: [HeaderName; 3] = [header::ALLOW, header::RETRY_AFTER, header::CONNECTION];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_calls_are_recognized() {
        let request = |method: &str, version: Version, headers: &[(&'static str, &str)]| {
            let mut request = Request::new(Body::empty());
            *request.method_mut() = method.parse().expect("a method");
            *request.version_mut() = version;
            for (name, value) in headers {
                let value = value.parse().expect("a value");
                request.headers_mut().append(*name, value);
            }
            is_grpc_call(&request)
        };
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        assert!(request("POST", Version::HTTP_2, &grpc));
        for kind in ["application/grpc+proto", "Application/GRPC"] {
            let headers = [("content-type", kind), ("te", "trailers")];
            assert!(request("POST", Version::HTTP_2, &headers), "{kind}");
        }
        assert!(!request("GET", Version::HTTP_2, &grpc));
        assert!(!request("POST", Version::HTTP_11, &grpc));
        assert!(!request("POST", Version::HTTP_2, &grpc[..1]));
        assert!(!request("POST", Version::HTTP_2, &grpc[1..]));
        for kind in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc+json",
            "application/grpc; charset=utf-8",
            "application/grpcx",
            "application/json",
            "",
        ] {
            let headers = [("content-type", kind), ("te", "trailers")];
            assert!(!request("POST", Version::HTTP_2, &headers), "{kind}");
        }
        let twice = [grpc[0], grpc[0], grpc[1]];
        assert!(!request("POST", Version::HTTP_2, &twice));
    }
}
