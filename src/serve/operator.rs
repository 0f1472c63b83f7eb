//! The operators' door: figures and probes, in plain HTTP, for this machine alone.
//!
//! In: a loopback address or a Unix socket. Out: one answer for each connection, within a bounded time. Refuses a request
//! for another host: a page in a browser of this machine can give its own name this address (DNS rebinding).

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
use crate::broker::Broker;

/// Connections at once.
const CONNECTIONS_MAX: usize = 32;
/// Life of a connection, whatever it says or does not say: its place then comes back.
const LIFE: Duration = Duration::from_secs(15);
/// Between two tries when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The Unix socket is its owner's alone.
const MODE: u32 = 0o600;
/// Readings at once: each walks over what is live.
const READINGS_MAX: usize = 2;

/// Where operators listen: loopback or a Unix socket.
#[derive(Debug)]
pub enum OperatorListener {
    /// A loopback address.
    Tcp(TcpListener),
    /// A socket that only this broker's user may open.
    Unix(GuardedUnixListener),
}

impl OperatorListener {
    /// Listens on a loopback address, and on no other.
    pub async fn tcp(address: SocketAddr) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            let told = format!("{address} is not loopback");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, told));
        }
        TcpListener::bind(address).await.map(Self::Tcp)
    }

    /// Listens on a Unix socket; one that a dead broker left is taken away first.
    pub fn unix(path: &Path) -> io::Result<Self> {
        GuardedUnixListener::bind_with(path, MODE)
            .map(Self::Unix)
            .map_err(io::Error::other)
    }

    /// Where it is, as a person would type it.
    pub fn place(&self) -> String {
        match self {
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|e| e.to_string(), |address| format!("http://{address}")),
            Self::Unix(door) => format!("unix:{}", door.path().display()),
        }
    }
}

/// Answers operators until the task is dropped.
pub async fn operate(broker: Arc<Broker>, listener: OperatorListener) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .with_state((broker.clone(), Arc::new(Semaphore::new(READINGS_MAX))))
        .merge(http::probes(broker));
    let last = middleware::map_response(last);
    match listener {
        OperatorListener::Tcp(listener) => {
            let router = router.layer(middleware::from_fn(for_this_host)).layer(last);
            axum::serve(Bounded::new(listener), router).await
        }
        OperatorListener::Unix(door) => {
            axum::serve(Bounded::new(Local(door)), router.layer(last)).await
        }
    }
}

/// One answer for each connection: none is cut, by its connection's age, while it is read.
async fn last(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// Refuses what was meant for another host.
async fn for_this_host(request: Request, next: Next) -> Response {
    let asked = request.uri().authority().map(Authority::as_str);
    let named = request.headers().get_all(header::HOST).iter();
    let all_here = asked.into_iter().all(|name| is_this_host(name.as_bytes()))
        && named.into_iter().all(|name| is_this_host(name.as_bytes()));
    if all_here {
        next.run(request).await
    } else {
        (StatusCode::MISDIRECTED_REQUEST, "not this host\n").into_response()
    }
}

/// Whether the host of an authority (RFC 9110 §7.2), with its port or without, is `localhost` or a loopback address.
fn is_this_host(authority: &[u8]) -> bool {
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

async fn metrics(State((broker, readings)): State<(Arc<Broker>, Arc<Semaphore>)>) -> Response {
    let Ok(reading) = readings.try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "being read\n").into_response();
    };
    let read = tokio::task::spawn_blocking(move || {
        let text = broker.read_metrics();
        drop(reading);
        text
    });
    match read.await {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "not read\n").into_response(),
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The Unix socket, as a listener that tries on.
struct Local(GuardedUnixListener);

impl Listener for Local {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            match self.0.accept().await {
                Ok((stream, _uid)) => return (stream, ()),
                Err(error) => {
                    tracing::debug!(%error, "no operator's connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A listener with a bound on its open connections; the next waits in the kernel's queue.
struct Bounded<L> {
    listener: L,
    open: Arc<Semaphore>,
}

impl<L> Bounded<L> {
    fn new(listener: L) -> Self {
        Self {
            listener,
            open: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }
}

impl<L: Listener<Io: Unpin>> Listener for Bounded<L> {
    type Io = Open<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let one = self.open.clone().acquire_owned().await.ok();
        let (io, address) = self.listener.accept().await;
        let open = Open {
            io,
            over: Box::pin(tokio::time::sleep(LIFE)),
            _one: one,
        };
        (open, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// An open connection; its end lets the next in, and comes in any case.
struct Open<I> {
    io: I,
    over: Pin<Box<Sleep>>,
    _one: Option<OwnedSemaphorePermit>,
}

impl<I: Unpin> Open<I> {
    /// Acts on the connection while its time lasts. One task drives both directions, and is woken when it is over.
    fn while_open<T>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        act(Pin::new(&mut self.io), context)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Open<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.while_open(context, |io, context| io.poll_read(context, buffer))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Open<I> {
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
    fn this_host_goes_by_loopback_names_alone() {
        for here in [
            "localhost",
            "LocalHost:9100",
            "127.0.0.1:9100",
            "127.8.8.8",
            "[::1]:9100",
        ] {
            assert!(is_this_host(here.as_bytes()), "{here}");
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
            assert!(!is_this_host(elsewhere.as_bytes()), "{elsewhere}");
        }
    }
}
