//! The doors: gRPC, HTTP and the console on one port. They parse, guard and translate; they decide nothing.
//!
//! In: calls. Out: the broker's answers in wire words, refusals by one table. Trusts nothing a call says of itself.
//! Refuses methods without a row in the guard table. Never sees evidence, a vote or a token but to pass it on.

mod admit;
mod call;
mod connection;
pub mod console;
mod deadline;
mod grpc;
pub mod guard;
mod http;
pub mod listener;
mod operator;
pub mod peer;
mod status;
pub mod tls;
pub mod unix;
mod validity;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::broker::Broker;
use crate::config::Connections;
use crate::proto::v1::approval_service_server::ApprovalServiceServer;
use crate::proto::v1::governance_service_server::GovernanceServiceServer;
use crate::proto::v1::task_service_server::TaskServiceServer;
use crate::proto::v1::token_service_server::TokenServiceServer;
use crate::proto::{DESCRIPTOR, PACKAGE};
use listener::{Counts, Listener, Shared};
use tls::{Tls, TlsError};
use unix::{GuardedUnixListener, SocketError};

pub use operator::{OperatorListener, operate};

/// Longest message either way, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
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
    /// The Unix socket.
    #[error("unix_socket: {0}")]
    Socket(#[from] SocketError),
    /// The certificate or its key.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    /// What reflection would serve.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A door's loop ended, which nothing but a defect makes it do.
    #[error("a listener ended by itself")]
    Listener,
    /// A commit's outcome is unknown; only a restart can tell.
    #[error("the journal stopped: the outcome of a commit is unknown; start again to replay")]
    Journal,
}

/// Where calls come in, and within which bounds.
pub struct ServerConfig {
    /// The address, bound.
    pub tcp: TcpListener,
    /// TLS on it; without, it speaks plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// A Unix socket beside it, always plain.
    pub unix: Option<GuardedUnixListener>,
    /// Bounds on connections, for each of the two by itself.
    pub limits: Connections,
    /// Routes beside the broker's own, within the same bounds.
    pub extra: Router,
    /// What the listeners count.
    pub counts: Arc<Counts>,
}

impl From<TcpListener> for ServerConfig {
    fn from(tcp: TcpListener) -> Self {
        Self {
            tcp,
            tls: None,
            unix: None,
            limits: Connections::default(),
            extra: Router::new(),
            counts: Arc::default(),
        }
    }
}

/// Binds the address.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })
}

/// Serves until `stop` resolves; then takes no more, tells whoever waits, and lets calls in flight finish for a bounded
/// time.
pub async fn serve(
    broker: Arc<Broker>,
    doors: impl Into<ServerConfig>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let doors: ServerConfig = doors.into();
    let (stopping, stopped) = watch::channel(false);
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let admission = Arc::new(admit::AdmissionControl::new(broker.clone()));
    let door = grpc::GrpcService::new(broker.clone(), admission.clone(), stopped.clone());
    macro_rules! bounded {
        ($service:expr) => {
            $service
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
    }
    let routes = Routes::new(bounded!(health))
        .add_service(bounded!(reflection))
        .add_service(bounded!(TaskServiceServer::new(door.clone())))
        .add_service(bounded!(TokenServiceServer::new(door.clone())))
        .add_service(bounded!(ApprovalServiceServer::new(door.clone())))
        .add_service(bounded!(GovernanceServiceServer::new(door)));
    let console = console::routes(broker.clone(), admission.clone(), stopped.clone());
    let router = routes
        .into_axum_router()
        .merge(http::routes(broker.clone()))
        .merge(console)
        .merge(doors.extra)
        .fallback(http::fallback)
        .layer(middleware::from_fn(only_methods_with_a_row))
        .layer(middleware::from_fn(deadline::bounded))
        .layer(middleware::from_fn_with_state(
            admission,
            admit::within_its_rate,
        ))
        .layer(middleware::from_fn_with_state(
            broker.clone(),
            call::followed,
        ))
        .layer(middleware::from_fn(console::dressed))
        .layer(DefaultBodyLimit::max(MESSAGE_BYTES_MAX));
    let upkeep = tokio::spawn(broker.clone().upkeep());
    let renewal = doors.tls.clone().map(|tls| tokio::spawn(tls.watch()));
    let shared = || {
        let metrics = broker.metrics().clone();
        Shared::new(doors.limits, router.clone(), doors.counts.clone(), metrics)
    };
    let tcp = Listener::Tcp {
        listener: doors.tcp,
        tls: doors.tls,
    };
    let mut loops = tokio::task::JoinSet::new();
    loops.spawn(listener::accept(tcp, shared(), stopped.clone()));
    if let Some(unix) = doors.unix {
        // Room of its own: however full the network's door is, the host's processes get in.
        loops.spawn(listener::accept(Listener::Unix(unix), shared(), stopped));
    }
    let mut tail = broker.journal().head();
    let journal_stopped = async move {
        let _failed_or_gone = tail.wait_for(|tail| tail.failed).await.is_ok();
    };
    tokio::pin!(stop, journal_stopped);
    let outcome = tokio::select! {
        _ended = loops.join_next() => Err(ServeError::Listener),
        () = &mut stop => {
            health_reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            stopping.send_replace(true);
            broker.stop_waiting();
            // Acknowledged entries are durable already; a call cut here learns so by asking again.
            let drained = tokio::time::timeout(DRAIN, async {
                while let Some(left) = loops.join_next().await {
                    if let Ok(mut open) = left {
                        while open.join_next().await.is_some() {}
                    }
                }
            });
            if drained.await.is_err() {
                tracing::warn!("connections were cut: they did not end within {} s", DRAIN.as_secs());
            }
            Ok(())
        }
        () = &mut journal_stopped => Err(ServeError::Journal),
    };
    upkeep.abort();
    if let Some(renewal) = renewal {
        renewal.abort();
    }
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
