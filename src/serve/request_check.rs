//! Request validation before any handler: one host, bounded headers, and gRPC calls alone on the paths of gRPC methods.
//!
//! In: every request of the public listeners. Out: requests that their handler may read. Trusts nothing.
//! Refuses: contradicting hosts, oversized or repeated headers, unreadable deadlines, and on the path of a method any request
//! that is not a gRPC call over HTTP/2. Such a request never gets a 2xx status: a proxy that asks a method for permission with
//! a plain HTTP request would take it for a yes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;

use super::authorization::method_policy;
use super::errors::{self, has_grpc_content_type, is_grpc_call};
use super::limits::MESSAGE_BYTES_MAX;
use super::timeouts::{GRPC_TIMEOUT, HEALTH_WATCH, grpc_timeout_ms};
use crate::broker::Broker;
use crate::model::Reason;
use crate::proto::{BOOTSTRAP_CODE, PACKAGE};

/// Headers of one request.
const HEADERS_MAX: usize = 64;
/// Names and values of a request's headers together, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// How long the rest of a refused request is read.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Methods outside the package of the broker: health checking and reflection.
const PUBLIC_METHODS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    HEALTH_WATCH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// Headers that say who calls and how: two values could be read as two callers or two calls.
const SINGLE_VALUED: [&str; 7] = [
    "authorization",
    "dpop",
    BOOTSTRAP_CODE,
    GRPC_TIMEOUT,
    "grpc-encoding",
    "content-type",
    "te",
];

/// An error of a request, as an HTTP status and a reason with its detail.
struct InvalidRequest {
    http: StatusCode,
    reason: Reason,
    detail: String,
}

impl InvalidRequest {
    fn new(http: StatusCode, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            http,
            reason,
            detail: detail.into(),
        }
    }

    fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Reason::Malformed, detail)
    }
}

/// INVARIANT (only gRPC reaches a method): passes on requests that are well-formed, and on the path of a method, gRPC.
pub(super) async fn check_request(
    State(broker): State<Arc<Broker>>,
    request: Request,
    next: Next,
) -> Response {
    match validate(&request) {
        Ok(()) => next.run(request).await,
        Err(invalid) => {
            let InvalidRequest {
                http,
                reason,
                detail,
            } = invalid;
            let mut response = errors::refuse(&broker, &request, http, reason, detail);
            if !is_grpc_call(&request) {
                drain(request.into_body()).await;
            }
            if response.status() == StatusCode::METHOD_NOT_ALLOWED {
                let post = HeaderValue::from_static("POST");
                response.headers_mut().insert(header::ALLOW, post);
            }
            response
        }
    }
}

/// Reads what is left of a short body: some HTTP clients take a response that comes before they have sent their request for a
/// broken connection. gRPC clients do not, and may keep their request open until they have the response.
async fn drain(mut body: Body) {
    let read = async {
        let mut left = MESSAGE_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            left = match left.checked_sub(bytes) {
                Some(left) => left,
                None => return,
            };
        }
    };
    let _in_time = tokio::time::timeout(DRAIN_MAX, read).await;
}

fn validate(request: &Request) -> Result<(), InvalidRequest> {
    check_headers(request.headers())?;
    check_host(request)?;
    let path = request.uri().path();
    // The whole request target is the method's name: a query makes it another.
    let is_method = request.uri().query().is_none() && is_method(path);
    if is_method {
        check_grpc(request)?;
    } else if is_service_path(path) {
        return Err(if is_grpc_call(request) {
            let detail = "no method has this name; names are case-sensitive and have no query";
            InvalidRequest::new(StatusCode::NOT_FOUND, Reason::UnknownMethod, detail)
        } else {
            InvalidRequest::new(
                StatusCode::NOT_FOUND,
                Reason::NotFound,
                "no resource has this path",
            )
        });
    }
    check_deadline(request.headers())
}

fn is_method(path: &str) -> bool {
    PUBLIC_METHODS.contains(&path)
        || path
            .strip_prefix('/')
            .is_some_and(|name| method_policy(name).is_some())
}

/// Whether a path belongs to a gRPC service, known or not: its first segment is the dotted name of a service.
fn is_service_path(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next();
    let first = first.unwrap_or_default();
    first.starts_with(PACKAGE) || first.starts_with("grpc.")
}

/// What a request to a method must be. The order goes from the least like gRPC to the most.
fn check_grpc(request: &Request) -> Result<(), InvalidRequest> {
    let refuse = |http, detail: &str| Err(InvalidRequest::new(http, Reason::NotGrpc, detail));
    if request.method() != Method::POST {
        return refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "a gRPC method takes POST alone; call it with a gRPC client",
        );
    }
    if !has_grpc_content_type(request.headers()) {
        return refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "`content-type`: expected `application/grpc` or `application/grpc+proto`; call the method with a gRPC client",
        );
    }
    if request.version() != Version::HTTP_2 {
        return refuse(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "gRPC needs HTTP/2 to the broker, because the outcome of a call is in trailers: in nginx use `grpc_pass`, in Envoy \
             set `http2_protocol_options` for the upstream cluster",
        );
    }
    if !errors::accepts_trailers(request.headers()) {
        return refuse(
            StatusCode::BAD_REQUEST,
            "`te`: expected `trailers`, because the outcome of a call is in trailers; a proxy on the way may have dropped it",
        );
    }
    Ok(())
}

fn check_headers(headers: &HeaderMap) -> Result<(), InvalidRequest> {
    let too_large = |detail: String| {
        InvalidRequest::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Reason::RequestTooLarge,
            detail,
        )
    };
    if headers.len() > HEADERS_MAX {
        let count = headers.len();
        return Err(too_large(format!(
            "headers: expected at most {HEADERS_MAX}, got {count}; send fewer"
        )));
    }
    let size = |value: &HeaderValue| value.len();
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + size(value))
        .sum();
    if bytes > HEADER_BYTES_MAX {
        let longest = headers.iter().max_by_key(|(_, value)| size(value));
        let name = longest.map_or("headers", |(name, _)| name.as_str());
        return Err(too_large(format!(
            "`{name}`: expected at most {HEADER_BYTES_MAX} bytes in all headers, got {bytes}; send less"
        )));
    }
    for name in SINGLE_VALUED {
        let count = headers.get_all(name).iter().count();
        if count > 1 {
            return Err(InvalidRequest::malformed(format!(
                "`{name}`: expected one value, got {count}"
            )));
        }
    }
    Ok(())
}

/// The host of a request stands in its target, in `Host`, or in both alike (RFC 9110 §7.2, RFC 9113 §8.3.1).
fn check_host(request: &Request) -> Result<(), InvalidRequest> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(InvalidRequest::malformed(
            "`host`: expected one value, got two or more",
        ));
    }
    let Some(host) = host else {
        // RFC 9112 §3.2.
        return match request.version() {
            Version::HTTP_11 => Err(InvalidRequest::malformed(
                "`host`: expected one value, got none",
            )),
            _ => Ok(()),
        };
    };
    let Ok(named) = Authority::try_from(host.as_bytes()) else {
        return Err(InvalidRequest::malformed(
            "`host`: expected a host name or address, with its port if it has one",
        ));
    };
    match request.uri().authority() {
        Some(target) if !is_same_host(target, &named) => Err(InvalidRequest::malformed(
            "`host`: expected the host of the request's target, got another one",
        )),
        Some(_) | None => Ok(()),
    }
}

fn is_same_host(one: &Authority, other: &Authority) -> bool {
    one.as_str().eq_ignore_ascii_case(other.as_str())
}

/// A deadline that the broker cannot read is one that it would not keep.
fn check_deadline(headers: &HeaderMap) -> Result<(), InvalidRequest> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else {
        return Ok(());
    };
    match value.to_str().ok().and_then(grpc_timeout_ms) {
        Some(_) => Ok(()),
        None => Err(InvalidRequest::malformed(
            "`grpc-timeout`: expected one to eight digits and a unit (H, M, S, m, u or n), such as `250m`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    fn request(method: &str, path: &str, headers: &[(&'static str, &str)]) -> Request {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method.parse().expect("a method");
        *request.uri_mut() = path.parse().expect("a path");
        *request.version_mut() = Version::HTTP_2;
        for (name, value) in headers {
            let value = value.parse().expect("a value");
            request.headers_mut().append(*name, value);
        }
        request
    }

    const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

    fn refused(request: &Request) -> Option<(u16, Reason)> {
        let invalid = validate(request).err()?;
        Some((invalid.http.as_u16(), invalid.reason))
    }

    #[test]
    fn every_method_takes_grpc_alone() {
        let methods = proto::methods().iter().map(|name| format!("/{name}"));
        for path in methods.chain(PUBLIC_METHODS.map(str::to_owned)) {
            assert_eq!(refused(&request("POST", &path, &GRPC)), None, "{path}");
            let get = request("GET", &path, &GRPC);
            assert_eq!(refused(&get), Some((405, Reason::NotGrpc)), "{path}");
            let plain = request("POST", &path, &[]);
            assert_eq!(refused(&plain), Some((415, Reason::NotGrpc)), "{path}");
            let no_trailers = request("POST", &path, &GRPC[..1]);
            assert_eq!(refused(&no_trailers), Some((400, Reason::NotGrpc)));
            let mut old = request(
                "POST",
                &path,
                &[&GRPC[..], &[("host", "a.example")]].concat(),
            );
            *old.version_mut() = Version::HTTP_11;
            assert_eq!(refused(&old), Some((505, Reason::NotGrpc)), "{path}");
            for other in [
                format!("{path}/"),
                format!("/{path}"),
                format!("{path}?x=1"),
                path.replace("/grpc.health.v1.Health/", "/grpc.health.v1.health/")
                    .to_uppercase()
                    .replace("DIPYLON.V1", "dipylon.v1")
                    .replace("GRPC.", "grpc."),
            ] {
                let call = request("POST", &other, &GRPC);
                assert_eq!(
                    refused(&call),
                    Some((404, Reason::UnknownMethod)),
                    "{other}"
                );
                let plain = request("GET", &other, &[]);
                assert_eq!(refused(&plain), Some((404, Reason::NotFound)), "{other}");
            }
        }
    }

    #[test]
    fn headers_are_bounded_and_single() {
        let path = "/dipylon.v1.TaskService/OpenTask";
        let with = |more: &[(&'static str, &str)]| {
            refused(&request("POST", path, &[&GRPC[..], more].concat()))
        };
        let large = Some((431, Reason::RequestTooLarge));
        assert_eq!(with(&[("dpop", &"x".repeat(12_000))]), None);
        assert_eq!(with(&[("dpop", &"x".repeat(20_000))]), large);
        assert_eq!(with(&[("x", "1"); HEADERS_MAX - 2]), None);
        assert_eq!(with(&[("x", "1"); HEADERS_MAX - 1]), large);
        let malformed = Some((400, Reason::Malformed));
        for name in SINGLE_VALUED {
            assert_eq!(with(&[(name, "1S"), (name, "1S")]), malformed, "{name}");
        }
        assert_eq!(with(&[("grpc-timeout", "0n")]), None);
        for timeout in ["", "1", "S", "1s", "123456789S", "-1S"] {
            assert_eq!(with(&[("grpc-timeout", timeout)]), malformed, "{timeout}");
        }
    }

    #[test]
    fn contradicting_hosts_are_refused() {
        let refused_with = |target: &str, hosts: &[&str]| {
            let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            refused(&request("GET", target, &hosts))
        };
        assert_eq!(refused_with("/livez", &["a.example:1"]), None);
        assert_eq!(refused_with("/livez", &[]), None);
        assert_eq!(refused_with("http://A.example/livez", &["a.example"]), None);
        let malformed = Some((400, Reason::Malformed));
        for (target, hosts) in [
            ("/livez", &["a.example", "a.example"][..]),
            ("/livez", &["a.example, b.example"]),
            ("http://a.example/livez", &["b.example"]),
            ("http://a.example/livez", &["a.example:80"]),
        ] {
            assert_eq!(refused_with(target, hosts), malformed, "{target} {hosts:?}");
        }
    }
}
