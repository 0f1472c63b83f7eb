//! Plain HTTP endpoints: the key set (JWKS) for validators, liveness and readiness probes for operators.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use crate::broker::Broker;

/// Seconds a validator may keep the key set.
const JWKS_MAX_AGE_S: u32 = 300;

pub(super) fn routes(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/.well-known/jwks.json", get(jwks))
        .with_state(broker.clone())
        .merge(probes(broker))
}

/// The probes: of the public listener and of the admin listener.
pub(super) fn probes(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .with_state(broker)
}

async fn jwks(State(broker): State<Arc<Broker>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/jwk-set+json".to_owned()),
        (
            header::CACHE_CONTROL,
            format!("public, max-age={JWKS_MAX_AGE_S}"),
        ),
    ];
    (headers, broker.jwks().to_string()).into_response()
}

async fn readyz(State(broker): State<Arc<Broker>>) -> Response {
    match broker.readiness() {
        Ok(()) => (StatusCode::OK, "ready\n").into_response(),
        Err(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {why}\n"),
        )
            .into_response(),
    }
}

/// The response to a path without a handler: UNIMPLEMENTED for gRPC, 404 for plain HTTP.
pub(super) async fn fallback(headers: HeaderMap) -> Response {
    if super::timeouts::is_grpc(&headers) {
        tonic::Status::unimplemented("no such method").into_http::<axum::body::Body>()
    } else {
        (StatusCode::NOT_FOUND, "not found\n").into_response()
    }
}
