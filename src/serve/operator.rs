//! The operators' door: figures and probes, in plain HTTP, for this machine alone.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::http;
use crate::broker::Hall;

/// Connections at once.
const CONNECTIONS_MAX: usize = 32;
/// Readings at once: each walks over what is live.
const READINGS_MAX: usize = 2;

/// Where operators listen: loopback or a Unix socket.
#[derive(Debug)]
pub enum OperatorListener {
    /// A loopback address.
    Tcp(TcpListener),
    /// A socket that only this broker's user may open.
    Unix(UnixListener, PathBuf),
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
        let left = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
        if left && std::os::unix::net::UnixStream::connect(path).is_err() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// Where it is, as a person would type it.
    pub fn place(&self) -> String {
        match self {
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|e| e.to_string(), |address| format!("http://{address}")),
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }
}

/// Answers operators until the task is dropped.
pub async fn operate(hall: Arc<Hall>, listener: OperatorListener) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .with_state((hall.clone(), Arc::new(Semaphore::new(READINGS_MAX))))
        .merge(http::probes(hall));
    match listener {
        OperatorListener::Tcp(listener) => axum::serve(Bounded::new(listener), router).await,
        OperatorListener::Unix(listener, path) => {
            let _left = Left(path);
            axum::serve(Bounded::new(listener), router).await
        }
    }
}

/// Takes a socket's file away when nobody answers there any more.
struct Left(PathBuf);

impl Drop for Left {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

async fn metrics(State((hall, readings)): State<(Arc<Hall>, Arc<Semaphore>)>) -> Response {
    let Ok(reading) = readings.try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "being read\n").into_response();
    };
    let read = tokio::task::spawn_blocking(move || {
        let text = hall.read_metrics();
        drop(reading);
        text
    });
    match read.await {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "not read\n").into_response(),
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
        (Open { io, _one: one }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// An open connection; its end lets the next in.
struct Open<I> {
    io: I,
    _one: Option<OwnedSemaphorePermit>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Open<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Open<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
