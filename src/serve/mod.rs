//! The doors: gRPC and HTTP on one port. They parse, guard and translate; they decide nothing.
//!
//! In: calls. Out: the hall's answers in wire words, refusals by one table. Trusts nothing a call says of itself.
//! Refuses methods without a row in the guard table. Never sees evidence, a vote or a token but to pass it on.

mod admit;
mod call;
mod grpc;
pub mod guard;
mod http;
mod operator;
pub mod peer;
pub mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::broker::Hall;
use crate::proto::PACKAGE;
use crate::proto::v1::approval_service_server::ApprovalServiceServer;
use crate::proto::v1::governance_service_server::GovernanceServiceServer;
use crate::proto::v1::task_service_server::TaskServiceServer;
use crate::proto::v1::token_service_server::TokenServiceServer;

pub use operator::{OperatorListener, operate};

/// Longest message either way, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Calls at once on one connection.
const STREAMS_MAX: u32 = 64;
/// Longest header block, in bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// How long calls in flight may take to finish once the broker is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Why serving ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The transport.
    #[error("transport: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A commit's outcome is unknown; only a restart can tell.
    #[error("the journal stopped: the outcome of a commit is unknown; start again to replay")]
    Journal,
}

/// Binds the address.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })
}

/// Serves until `stop` resolves; then lets calls in flight finish for a bounded time.
pub async fn serve(
    hall: Arc<Hall>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (stopping, stopped) = watch::channel(false);
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let porch = Arc::new(admit::Porch::new(hall.clone()));
    let door = grpc::Door::new(hall.clone(), porch.clone(), stopped.clone());
    let routes = Routes::new(health)
        .add_service(
            TaskServiceServer::new(door.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            TokenServiceServer::new(door.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            ApprovalServiceServer::new(door.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            GovernanceServiceServer::new(door).max_decoding_message_size(MESSAGE_BYTES_MAX),
        );
    let router = routes
        .into_axum_router()
        .merge(http::routes(hall.clone()))
        .fallback(http::fallback)
        .layer(middleware::from_fn(only_methods_with_a_row))
        .layer(middleware::from_fn_with_state(
            porch,
            admit::within_its_rate,
        ))
        .layer(middleware::from_fn_with_state(hall.clone(), call::followed));
    let upkeep = tokio::spawn(hall.clone().upkeep());
    let mut ended = stopped.clone();
    let server = Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_routes(Routes::from(router))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            async move {
                let _closed = ended.wait_for(|stopped| *stopped).await;
            },
        );
    let mut tail = hall.journal().tail();
    let journal_stopped = async move {
        let _failed_or_gone = tail.wait_for(|tail| tail.failed).await.is_ok();
    };
    tokio::pin!(server, stop, journal_stopped);
    let outcome = tokio::select! {
        served = &mut server => served.map_err(ServeError::from),
        () = &mut stop => {
            health_reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            stopping.send_replace(true);
            // Acknowledged entries are durable already; a call cut here learns so by asking again.
            let _cut = tokio::time::timeout(DRAIN, &mut server).await;
            Ok(())
        }
        () = &mut journal_stopped => Err(ServeError::Journal),
    };
    upkeep.abort();
    outcome
}

/// INVARIANT (closed by default): a path of ours without a row in the guard table reaches no handler.
async fn only_methods_with_a_row(request: Request, next: Next) -> Response {
    let path = request.uri().path().trim_start_matches('/');
    if path.starts_with(PACKAGE) && guard::row(path).is_none() {
        return tonic::Status::permission_denied("no such method for anyone")
            .into_http::<axum::body::Body>();
    }
    next.run(request).await
}
