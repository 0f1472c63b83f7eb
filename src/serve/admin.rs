//! Admin listener: metrics and probes in plain HTTP, on loopback or a Unix socket only.
//!
//! In: a loopback address or a Unix socket. Out: one response for each connection, within a bounded time. Refuses a request
//! with another `Host`: a page in a browser of this machine can point its own name to this address (DNS rebinding).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::http;
use super::unix::GuardedUnixListener;
use crate::broker::{Broker, NO_OPERATOR};

/// Open connections at once.
const CONNECTIONS_MAX: usize = 32;
/// Maximum age of a connection.
const MAX_AGE: Duration = Duration::from_secs(15);
/// Pause between two tries when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Only the owner may connect to the Unix socket.
const MODE: u32 = 0o600;
/// Metric scrapes at once: each walks over all live tasks and tokens.
const SCRAPES_MAX: usize = 2;

/// A bound admin listener: loopback or a Unix socket.
#[derive(Debug)]
pub enum AdminListener {
    /// A loopback address.
    Tcp(TcpListener),
    /// A socket that only this broker's user may connect to.
    Unix(GuardedUnixListener),
}

impl AdminListener {
    /// Listens on a loopback address; refuses any other.
    pub async fn tcp(address: SocketAddr) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            let message = format!(
                "expected a loopback address, got {address}: metrics are served without authentication"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        TcpListener::bind(address).await.map(Self::Tcp)
    }

    /// Listens on a Unix socket; a stale one is replaced.
    pub fn unix(path: &Path) -> io::Result<Self> {
        GuardedUnixListener::bind_with(path, MODE)
            .map(Self::Unix)
            .map_err(io::Error::other)
    }

    /// The address, as a person types it.
    pub fn display_address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|e| e.to_string(), |address| format!("http://{address}")),
            Self::Unix(listener) => format!("unix:{}", listener.path().display()),
        }
    }
}

/// Serves metrics and probes until the future is dropped.
pub async fn serve_admin(broker: Arc<Broker>, listener: AdminListener) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .with_state((broker.clone(), Arc::new(Semaphore::new(SCRAPES_MAX))))
        .merge(
            Router::new()
                .route("/livez", get(http::livez))
                .route("/readyz", get(readyz))
                .with_state(broker),
        );
    let close = middleware::map_response(close_after_response);
    match listener {
        AdminListener::Tcp(listener) => {
            let router = router
                .layer(middleware::from_fn(require_loopback_host))
                .layer(close);
            axum::serve(LimitedListener::new(listener), router).await
        }
        AdminListener::Unix(listener) => {
            axum::serve(
                LimitedListener::new(RetryingUnixListener(listener)),
                router.layer(close),
            )
            .await
        }
    }
}

/// One response for each connection, so that its maximum age cuts no later one.
async fn close_after_response(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// Refuses requests for another host.
async fn require_loopback_host(request: Request, next: Next) -> Response {
    let target = request.uri().authority().map(Authority::as_str);
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let loopback = target.is_none_or(|name| is_loopback_host(name.as_bytes()))
        && hosts.all(|name| is_loopback_host(name.as_bytes()));
    if loopback {
        next.run(request).await
    } else {
        (
            StatusCode::MISDIRECTED_REQUEST,
            "this listener answers only to `localhost` or a loopback address as the host\n",
        )
            .into_response()
    }
}

/// Whether the host of an authority (RFC 9110 §7.2), with its port or without, is `localhost` or a loopback address.
fn is_loopback_host(authority: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(authority) else {
        return false;
    };
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Readiness, and what the people of this host must do though the broker is ready: strangers who ask the public listener learn nothing
/// of it.
async fn readyz(State(broker): State<Arc<Broker>>) -> Response {
    match broker.readiness() {
        Ok(()) if broker.is_ungoverned() => {
            http::no_store(format!("ready; {NO_OPERATOR}\n")).into_response()
        }
        Ok(()) | Err(_) => http::readyz(State(broker)).await,
    }
}

async fn metrics(State((broker, scrapes)): State<(Arc<Broker>, Arc<Semaphore>)>) -> Response {
    let Ok(permit) = scrapes.try_acquire_owned() else {
        let message = "too many scrapes at once; try again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, message).into_response();
    };
    let read = tokio::task::spawn_blocking(move || {
        let text = broker.read_metrics();
        drop(permit);
        text
    });
    match read.await {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics could not be read; see the broker's log\n",
        )
            .into_response(),
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The Unix socket as a listener that retries failed accepts.
struct RetryingUnixListener(GuardedUnixListener);

impl Listener for RetryingUnixListener {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            match self.0.accept().await {
                Ok((stream, _uid)) => return (stream, ()),
                Err(error) => {
                    tracing::debug!(%error, "accept failed on the admin listener; retrying");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A listener with a limit on its open connections; the next waits in the kernel's queue.
struct LimitedListener<L> {
    listener: L,
    permits: Arc<Semaphore>,
}

impl<L> LimitedListener<L> {
    fn new(listener: L) -> Self {
        Self {
            listener,
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }
}

impl<L: Listener<Io: Unpin>> Listener for LimitedListener<L> {
    type Io = LimitedConnection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let permit = self.permits.clone().acquire_owned().await.ok();
        let (io, address) = self.listener.accept().await;
        let connection = LimitedConnection {
            io,
            expired: Box::pin(tokio::time::sleep(MAX_AGE)),
            _permit: permit,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// An open connection; it ends at its maximum age, and its permit goes to the next.
struct LimitedConnection<I> {
    io: I,
    expired: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<I: Unpin> LimitedConnection<I> {
    /// Acts on the connection before its maximum age. One task drives both directions, and is woken at that age.
    fn while_open<T>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.expired.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        act(Pin::new(&mut self.io), context)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for LimitedConnection<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.while_open(context, |io, context| io.poll_read(context, buffer))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for LimitedConnection<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.while_open(context, |io, context| io.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.while_open(context, |io, context| io.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.while_open(context, |io, context| io.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_host_header_check() {
        for here in [
            "localhost",
            "LocalHost:9100",
            "127.0.0.1:9100",
            "127.8.8.8",
            "[::1]:9100",
        ] {
            assert!(is_loopback_host(here.as_bytes()), "{here}");
        }
        for elsewhere in [
            "",
            "rebound.example",
            "localhost.rebound.example:9100",
            "127.0.0.1.rebound.example",
            "192.0.2.1",
            "[2001:db8::1]:9100",
            "local host",
        ] {
            assert!(!is_loopback_host(elsewhere.as_bytes()), "{elsewhere}");
        }
    }
}
