//! Plain HTTP endpoints: the key set (JWKS) for validators, liveness and readiness probes for operators.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::errors;
use crate::broker::{Broker, Refusal};
use crate::model::Digest;

/// Seconds a validator may keep the key set.
const JWKS_MAX_AGE_S: u32 = 300;
/// Methods that the key set takes.
const JWKS_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

pub(super) fn routes(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/.well-known/jwks.json", get(jwks).options(jwks_options))
        // Here too, because only the public listener tells a load balancer whether calls get through.
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(broker)
}

/// The key set, for any origin: it is public. A client that has it already gets 304 (RFC 9110 §13.1.2).
async fn jwks(State(broker): State<Arc<Broker>>, request_headers: HeaderMap) -> Response {
    let body = broker.jwks().to_string();
    let etag = format!("\"{}\"", Digest::sha256(body.as_bytes()));
    let known = has_etag(&request_headers, &etag);
    let headers = [
        (header::ETAG, etag),
        (
            header::CACHE_CONTROL,
            format!("public, max-age={JWKS_MAX_AGE_S}"),
        ),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*".to_owned()),
    ];
    if known {
        // The length that 200 would have, not that of no content (RFC 9110 §8.6).
        let length = [(header::CONTENT_LENGTH, body.len().to_string())];
        return (StatusCode::NOT_MODIFIED, headers, length).into_response();
    }
    let kind = [(header::CONTENT_TYPE, "application/jwk-set+json")];
    (headers, kind, body).into_response()
}

/// The preflight of a browser (Fetch, "CORS-preflight request").
async fn jwks_options() -> Response {
    let headers = [
        (header::ALLOW, JWKS_METHODS),
        (header::ACCESS_CONTROL_ALLOW_METHODS, JWKS_METHODS),
        (
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        ),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("*"),
        ),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// Whether `If-None-Match` names the tag, by weak comparison (RFC 9110 §8.8.3.2).
fn has_etag(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The process answers, whatever else fails: a restart would not help a full disk.
pub(super) async fn livez() -> Response {
    no_store("alive\n").into_response()
}

pub(super) async fn readyz(State(broker): State<Arc<Broker>>) -> Response {
    match broker.readiness() {
        Ok(()) => no_store("ready\n").into_response(),
        Err(why) => {
            let refusal = Refusal {
                message: format!("not ready: {why}"),
                ..broker.refuse_unrecorded(why.reason(), None)
            };
            errors::problem(StatusCode::SERVICE_UNAVAILABLE, &refusal)
        }
    }
}

pub(super) fn no_store(
    text: impl axum::response::IntoResponse,
) -> impl axum::response::IntoResponse {
    ([(header::CACHE_CONTROL, "no-store")], text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_compare_weakly() {
        let known = |lists: &[&str]| {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append(header::IF_NONE_MATCH, list.parse().expect("a value"));
            }
            has_etag(&headers, "\"a\"")
        };
        for lists in [
            &["\"a\""][..],
            &["W/\"a\""],
            &["\"b\", \"a\""],
            &["\"b\"", "\"a\""],
            &["*"],
        ] {
            assert!(known(lists), "{lists:?}");
        }
        for lists in [&[][..], &["\"b\""], &["a"], &["\"a"], &["\"A\""]] {
            assert!(!known(lists), "{lists:?}");
        }
    }
}
