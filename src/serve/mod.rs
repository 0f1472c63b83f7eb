//! Server: gRPC, HTTP and the web console on one port. It parses, authorizes by method and translates; the broker decides.
//!
//! In: calls. Out: the broker's replies as wire messages, refusals by one table. Trusts no claim of a call about itself.
//! Refuses methods without an entry in [`authorization`]. Never sees evidence, a vote or a token but to pass it on.

mod admin;
mod admission;
pub mod authorization;
mod certificate_expiry;
mod connection;
pub mod connection_limits;
mod console;
mod errors;
mod grpc;
mod http;
mod limits;
mod listener;
pub mod peer;
mod readiness;
mod request_check;
mod request_log;
pub mod routes;
mod services;
mod status;
mod timeouts;
pub mod tls;
pub mod unix;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::broker::Broker;
use crate::config::ConnectionLimits;
use crate::proto::DESCRIPTOR;
use connection_limits::{ConnectionStats, ListenerState};
use listener::Listener;
use services::approval_service_server::ApprovalServiceServer;
use services::governance_service_server::GovernanceServiceServer;
use services::task_service_server::TaskServiceServer;
use services::token_service_server::TokenServiceServer;
use tls::{Tls, TlsError};
use unix::{GuardedUnixListener, SocketError};

pub use admin::{AdminListener, serve_admin};
pub use limits::MESSAGE_BYTES_MAX;

/// How long calls in flight may take to finish once the broker stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the server ended without a stop signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The Unix socket.
    #[error("unix_socket: {0}")]
    Socket(#[from] SocketError),
    /// The certificate or its key.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    /// The reflection service.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A listener's loop ended, which only a defect can cause.
    #[error("a listener ended unexpectedly; report this as a bug")]
    Listener,
    /// A commit's outcome is unknown; only a restart can tell.
    #[error(
        "the journal stopped because the outcome of a commit is unknown; restart the broker to replay it"
    )]
    Journal,
}

/// Configuration of the server: its listeners and their limits.
pub struct ServerConfig {
    /// The bound address.
    pub tcp: TcpListener,
    /// TLS for it; plain HTTP without.
    pub tls: Option<Arc<Tls>>,
    /// A Unix socket beside it, always plain HTTP.
    pub unix: Option<GuardedUnixListener>,
    /// Connection limits, for each listener by itself.
    pub limits: ConnectionLimits,
    /// Routes beside the broker's own, within the same limits.
    pub extra: Router,
    /// Counters of the listeners.
    pub stats: Arc<ConnectionStats>,
}

impl From<TcpListener> for ServerConfig {
    fn from(tcp: TcpListener) -> Self {
        Self {
            tcp,
            tls: None,
            unix: None,
            limits: ConnectionLimits::default(),
            extra: Router::new(),
            stats: Arc::default(),
        }
    }
}

/// Binds the address.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })
}

/// Serves until `stop` resolves; then accepts no more, answers waiting calls, and lets calls in flight finish for a bounded
/// time.
pub async fn serve(
    broker: Arc<Broker>,
    config: impl Into<ServerConfig>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let config: ServerConfig = config.into();
    let (stopping, stopped) = watch::channel(false);
    let (health_reporter, health) = tonic_health::server::health_reporter();
    readiness::report(&broker, &health_reporter).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let admission = Arc::new(admission::AdmissionControl::new(broker.clone()));
    let service = grpc::GrpcService::new(broker.clone(), admission.clone(), stopped.clone());
    macro_rules! bounded {
        ($service:expr) => {
            $service
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
    }
    let routes = Routes::new(bounded!(health))
        .add_service(bounded!(reflection().build_v1()?))
        // What older clients ask for.
        .add_service(bounded!(reflection().build_v1alpha()?))
        .add_service(bounded!(TaskServiceServer::new(service.clone())))
        .add_service(bounded!(TokenServiceServer::new(service.clone())))
        .add_service(bounded!(ApprovalServiceServer::new(service.clone())))
        .add_service(bounded!(GovernanceServiceServer::new(service)));
    let console = console::router(broker.clone(), admission.clone(), stopped.clone());
    let router = routes
        .into_axum_router()
        .merge(http::routes(broker.clone()))
        .merge(console)
        .merge(config.extra)
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(middleware::from_fn_with_state(
            broker.clone(),
            timeouts::enforce_timeouts,
        ))
        .layer(middleware::from_fn_with_state(
            broker.clone(),
            request_check::check_request,
        ))
        .layer(middleware::from_fn_with_state(
            admission,
            admission::check_source_rate,
        ))
        .layer(middleware::from_fn_with_state(
            broker.clone(),
            errors::complete_errors,
        ))
        .layer(middleware::from_fn_with_state(
            broker.clone(),
            request_log::log_request,
        ))
        .layer(middleware::from_fn(console::add_security_headers))
        .layer(DefaultBodyLimit::max(MESSAGE_BYTES_MAX));
    let upkeep = tokio::spawn(broker.clone().run_maintenance());
    let readiness = tokio::spawn(readiness::watch(broker.clone(), health_reporter.clone()));
    let certificate_reload = config.tls.clone().map(|tls| tokio::spawn(tls.watch()));
    let listener_state = || {
        let metrics = broker.metrics().clone();
        ListenerState::new(config.limits, router.clone(), config.stats.clone(), metrics)
    };
    let tcp = Listener::Tcp {
        listener: config.tcp,
        tls: config.tls,
    };
    let mut loops = tokio::task::JoinSet::new();
    loops.spawn(listener::accept(tcp, listener_state(), stopped.clone()));
    if let Some(unix) = config.unix {
        // Connection limits of its own: processes of this host can connect however full the TCP listener is.
        loops.spawn(listener::accept(
            Listener::Unix(unix),
            listener_state(),
            stopped,
        ));
    }
    let mut tail = broker.journal().head();
    let journal_stopped = async move {
        let _failed_or_gone = tail.wait_for(|tail| tail.failed).await.is_ok();
    };
    tokio::pin!(stop, journal_stopped);
    // False while a call may still be answered.
    let mut all_answered = false;
    let outcome = tokio::select! {
        _ended = loops.join_next() => Err(ServeError::Listener),
        () = &mut stop => {
            readiness.abort();
            readiness::report_not_serving(&health_reporter).await;
            stopping.send_replace(true);
            broker.stop_waiting();
            // Acknowledged entries are durable already; a client whose call is cut learns the outcome by a retry.
            let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
                while let Some(left) = loops.join_next().await {
                    if let Ok(mut open) = left {
                        while open.join_next().await.is_some() {}
                    }
                }
            });
            all_answered = drained.await.is_ok();
            if !all_answered {
                tracing::warn!(seconds = DRAIN_TIMEOUT.as_secs(), "connections closed after drain timeout");
            }
            Ok(())
        }
        () = &mut journal_stopped => Err(ServeError::Journal),
    };
    upkeep.abort();
    readiness.abort();
    broker.record_final_counts().await;
    if all_answered {
        broker.stop_serving().await;
    }
    if let Some(certificate_reload) = certificate_reload {
        certificate_reload.abort();
    }
    outcome
}
