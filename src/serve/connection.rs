//! Connections: one connection from its TLS handshake to its end.
//!
//! In: a socket. Out: requests for the router. Closed when: no first request comes in time; the client does not read a
//! response; the connection is idle; its maximum age is reached; the broker stops; under connection pressure (the listener is
//! full) if no call on it was ever authenticated. The last four close gracefully (GOAWAY), so that no call in flight is
//! lost: a client that retries by its contract sees no failure.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Sleep};
use tower::Service as _;

use super::connection_limits::{ConnectionStats, ListenerState, Socket};
use super::limits::MESSAGE_BYTES_MAX;
use super::peer::Peer;
use super::routes;
use super::timeouts::{self, ConnectionClosing};
use crate::config::ConnectionLimits;
use crate::proto::PACKAGE;

/// The deadline of a connection's first request, TLS handshake included.
pub(super) struct FirstRequestDeadline {
    accepted: Instant,
    expired: Pin<Box<Sleep>>,
}

impl FirstRequestDeadline {
    pub(super) fn new(limits: &ConnectionLimits) -> Self {
        let accepted = Instant::now();
        Self {
            accepted,
            expired: Box::pin(tokio::time::sleep_until(
                accepted + limits.first_request_timeout,
            )),
        }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(
    socket: Socket,
    peer: Peer,
    state: &ListenerState,
    mut deadline: FirstRequestDeadline,
    mut stopped: watch::Receiver<bool>,
) {
    match socket {
        Socket::Tcp(stream, None) => serve_http(stream, peer, state, deadline, stopped).await,
        Socket::Unix(stream) => serve_http(stream, peer, state, deadline, stopped).await,
        Socket::Tcp(stream, Some(tls)) => {
            let handshake = tokio::select! {
                handshake = tls.accept(stream) => handshake,
                () = &mut deadline.expired => {
                    ConnectionStats::increment(&state.stats.no_request);
                    return;
                }
                () = under_pressure(state, deadline.accepted) => {
                    ConnectionStats::increment(&state.stats.unauthenticated);
                    return;
                }
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            match handshake {
                Ok(stream) => serve_http(stream, peer, state, deadline, stopped).await,
                Err(error) => {
                    ConnectionStats::increment(&state.stats.handshakes_failed);
                    tracing::debug!(%error, source = ?peer.source, "TLS handshake failed");
                }
            }
        }
    }
}

/// How a connection is to end.
enum Close {
    Now,
    /// Once open calls have finished, within this time.
    Gracefully(Duration),
}

async fn serve_http<I>(
    socket: I,
    peer: Peer,
    state: &ListenerState,
    deadline: FirstRequestDeadline,
    stopped: watch::Receiver<bool>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let (closing, closed) = watch::channel(false);
    let service = {
        let (router, activity) = (state.router.clone(), activity.clone());
        hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let call = Activity::begin(&activity);
            let mut router = router.clone();
            request.extensions_mut().insert(peer);
            request
                .extensions_mut()
                .insert(ConnectionClosing(closed.clone()));
            let stream = timeouts::is_stream(request.uri().path());
            let reused = request.version() < Version::HTTP_2;
            let whole = Arc::new(AtomicBool::new(request.body().is_end_stream()));
            let request = request.map(|body| {
                Body::new(RequestBody {
                    body,
                    whole: whole.clone(),
                })
            });
            let authenticates = is_method_path(request.uri().path())
                || routes::requires_session(request.uri().path());
            async move {
                let mut response = router.call(request).await?;
                if reused && !whole.load(Ordering::Relaxed) {
                    // hyper closes a connection whose request it has not read whole; the client must not send another on it.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                if authenticates && is_ok(&response) {
                    call.0.authenticated.store(true, Ordering::Relaxed);
                }
                let sending = (!stream).then(|| Activity::begin_response(&call.0));
                Ok::<_, Infallible>(response.map(|body| TrackedBody {
                    body,
                    _call: call,
                    _sending: sending,
                }))
            }
        })
    };
    let (io, reclaimed) = ReclaimableIo::new(socket);
    {
        let builder = builder(&state.limits);
        let connection = builder.serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let close = tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, source = ?peer.source, "connection error");
                    return;
                }
                None
            }
            close = close_reason(&activity, state, deadline, stopped) => Some(close),
        };
        match close {
            Some(Close::Now) => return,
            Some(Close::Gracefully(grace)) => {
                connection.as_mut().graceful_shutdown();
                // Streams end by this signal; other calls finish by themselves.
                closing.send_replace(true);
                tokio::select! {
                    _ended = &mut connection => {}
                    () = write_stalled(&activity) => {
                        ConnectionStats::increment(&state.stats.write_stalled);
                        return;
                    }
                    () = tokio::time::sleep(grace) => return,
                }
            }
            None => {}
        }
    }
    if let Ok(io) = reclaimed.await {
        linger(io).await;
    }
}

/// Reads on until the client closes too. Closing a socket with unread input resets it, and a reset discards what the client
/// has not read yet: the last responses.
async fn linger<I: AsyncRead + AsyncWrite + Unpin>(mut io: I) {
    let drained = async {
        let _closed_or_broken = io.shutdown().await;
        let mut unread = [0; 4 * 1024];
        let mut left = LINGER_BYTES_MAX;
        while let Ok(n @ 1..) = io.read(&mut unread).await {
            left = left.saturating_sub(n);
            if left == 0 {
                return;
            }
        }
    };
    let _in_time = tokio::time::timeout(LINGER, drained).await;
}

/// A socket that returns to its owner when the HTTP connection drops it.
struct ReclaimableIo<I> {
    io: Option<I>,
    owner: Option<oneshot::Sender<I>>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> ReclaimableIo<I> {
    fn new(io: I) -> (Self, oneshot::Receiver<I>) {
        let (owner, reclaimed) = oneshot::channel();
        let io = Self {
            io: Some(io),
            owner: Some(owner),
        };
        (io, reclaimed)
    }

    fn with<T>(
        self: Pin<&mut Self>,
        act: impl FnOnce(Pin<&mut I>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.get_mut().io {
            Some(io) => act(Pin::new(io)),
            // Only `drop` takes it.
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<I> Drop for ReclaimableIo<I> {
    fn drop(&mut self) {
        if let (Some(io), Some(owner)) = (self.io.take(), self.owner.take()) {
            // An owner that is gone does not reclaim it: it is closed.
            let _unclaimed = owner.send(io);
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for ReclaimableIo<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_read(cx, buffer))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ReclaimableIo<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|io| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|io| io.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_shutdown(cx))
    }
}

fn builder(limits: &ConnectionLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Runs between requests too. `no_request` limits the first header, `idle` the later ones.
        .header_read_timeout(limits.first_request_timeout.max(limits.idle_timeout))
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(RESETS_OURS_MAX)
        .max_send_buf_size(MESSAGE_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// Resolves when the connection must end.
async fn close_reason(
    activity: &Arc<Activity>,
    state: &ListenerState,
    deadline: FirstRequestDeadline,
    mut stopped: watch::Receiver<bool>,
) -> Close {
    let (limits, stats) = (&state.limits, &state.stats);
    let accepted = deadline.accepted;
    let (close, counter) = tokio::select! {
        () = no_request(activity, deadline) => (Close::Now, &stats.no_request),
        () = write_stalled(activity) => (Close::Now, &stats.write_stalled),
        () = idle(activity, state) => (Close::Gracefully(IDLE_GRACE), &stats.idle),
        () = unauthenticated(activity, state, accepted) => (Close::Gracefully(UNAUTHENTICATED_GRACE), &stats.unauthenticated),
        () = tokio::time::sleep(jittered(limits.max_age)) => (Close::Gracefully(AGE_GRACE), &stats.max_age),
        // The drain timeout of the stop limits this one.
        _ = stopped.wait_for(|stopped| *stopped) => return Close::Gracefully(AGE_GRACE),
    };
    ConnectionStats::increment(counter);
    close
}

/// Resolves if no request comes before the deadline.
async fn no_request(activity: &Activity, deadline: FirstRequestDeadline) {
    let mut requests = activity.requests.subscribe();
    let requested = async {
        let _requested_or_gone = requests
            .wait_for(|requests| requests.begun > 0)
            .await
            .is_ok();
    };
    tokio::select! {
        () = requested => {}
        () = deadline.expired => return,
    }
    std::future::pending().await
}

/// Resolves when no request has been open for long enough; much sooner while the listener is full.
async fn idle(activity: &Activity, state: &ListenerState) {
    let mut requests = activity.requests.subscribe();
    loop {
        let Ok(begun) = requests
            .wait_for(|requests| requests.open == 0 && requests.begun > 0)
            .await
            .map(|requests| requests.begun)
        else {
            return;
        };
        let mut left = state.limits.idle_timeout;
        loop {
            let step = left.min(IDLE_UNDER_PRESSURE);
            let requested = async {
                let _requested_or_gone = requests
                    .wait_for(|requests| requests.begun != begun)
                    .await
                    .is_ok();
            };
            tokio::select! {
                () = requested => break,
                () = tokio::time::sleep(step) => {}
            }
            left = left.saturating_sub(step);
            if left.is_zero() || state.is_full() {
                return;
            }
        }
    }
}

/// Resolves under connection pressure if no call on this connection was ever authenticated, even with requests open: a
/// connection that costs nothing to hold does not keep authenticated clients out.
async fn unauthenticated(activity: &Activity, state: &ListenerState, accepted: Instant) {
    under_pressure(state, accepted).await;
    if activity.authenticated.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

/// Resolves when the listener is full and this connection has had its time to authenticate a call.
async fn under_pressure(state: &ListenerState, accepted: Instant) {
    tokio::time::sleep_until(accepted + UNAUTHENTICATED_AGE).await;
    while !state.is_full() {
        tokio::time::sleep(PRESSURE_CHECK_INTERVAL).await;
    }
}

/// Whether a path is a method of the broker's services: each authenticates its caller before it answers OK.
fn is_method_path(path: &str) -> bool {
    let method = path.strip_prefix('/').unwrap_or_default();
    method
        .strip_prefix(PACKAGE)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Whether a response is OK, by its head: gRPC sends a refusal's status in the head, and an OK only after the message.
fn is_ok<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::OK && !response.headers().contains_key("grpc-status")
}

/// Resolves when the client has not read a response for one to two times [`SEND_MAX`].
async fn write_stalled(activity: &Activity) {
    loop {
        tokio::time::sleep(SEND_MAX).await;
        if activity.tick() {
            return;
        }
    }
}

/// The age at which a connection closes: a fifth more or less than configured, so that connections made together close apart.
fn jittered(age: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without randomness it is the age as configured: connections then close together, and no worse.
    let random = match rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut byte)
    {
        Ok(()) => u32::from(byte[0]),
        Err(_) => 128,
    };
    age.mul_f64(0.8 + 0.4 * f64::from(random) / 255.0)
}

/// The requests and responses of a connection.
#[derive(Default)]
struct Activity {
    requests: watch::Sender<RequestCounts>,
    /// The generation that counts new responses: one of two.
    generation: AtomicUsize,
    responses: [AtomicUsize; 2],
    /// Whether a call on this connection was authenticated.
    authenticated: AtomicBool,
}

#[derive(Default)]
struct RequestCounts {
    /// Requests whose response is not wholly sent.
    open: usize,
    /// Requests since the start.
    begun: u64,
}

/// An open request; over when dropped.
struct OpenRequest(Arc<Activity>);

/// A response being sent; over when dropped.
struct Sending {
    activity: Arc<Activity>,
    generation: usize,
}

impl Activity {
    fn begin(activity: &Arc<Self>) -> OpenRequest {
        activity.requests.send_modify(|requests| {
            requests.open += 1;
            requests.begun += 1;
        });
        OpenRequest(activity.clone())
    }

    fn begin_response(activity: &Arc<Self>) -> Sending {
        let generation = activity.generation.load(Ordering::SeqCst) % 2;
        if let Some(count) = activity.responses.get(generation) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        Sending {
            activity: activity.clone(),
            generation,
        }
    }

    /// Begins a new generation of responses in place of the older one; true if the older one is not all sent.
    fn tick(&self) -> bool {
        let next = self.generation.load(Ordering::SeqCst).wrapping_add(1);
        let unsent = self
            .responses
            .get(next % 2)
            .is_some_and(|count| count.load(Ordering::SeqCst) > 0);
        self.generation.store(next, Ordering::SeqCst);
        unsent
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.requests.send_modify(|requests| requests.open -= 1);
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(count) = self.activity.responses.get(self.generation) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A request's body. Trailers are dropped: no gRPC client sends any, and tonic would take them for metadata, which was
/// checked before they came.
struct RequestBody {
    body: Incoming,
    /// Whether all of it was read.
    whole: Arc<AtomicBool>,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let trailers = matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
        if frame.is_none() || trailers || self.body.is_end_stream() {
            self.whole.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame.filter(|_| !trailers))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body, which keeps its request open until it is sent or given up.
struct TrackedBody {
    body: Body,
    _call: OpenRequest,
    _sending: Option<Sending>,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Calls at once on one connection.
const STREAMS_MAX: u32 = 64;
/// Longest header block that is read at all, in bytes. `request_check` refuses a quarter of it with a reason; what is longer
/// than this gets HTTP status 431 alone, which a gRPC client reports as UNKNOWN.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Headers of a request over HTTP/1.1 that are read at all, by the same rule.
const HEADERS_MAX: usize = 256;
/// Streams that the client has reset and the broker has not handled yet (CVE-2023-44487, "rapid reset").
const RESETS_PENDING_MAX: usize = 20;
/// Streams that the broker resets because of the client's errors, before it closes the connection.
const RESETS_OURS_MAX: usize = 256;
/// HTTP/2 flow control window of one stream, in bytes.
const WINDOW_BYTES: u32 = 64 * 1024;
/// The same for a whole connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// HTTP/2 keep-alive: how often the client is pinged, and how long it may take to respond.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a response, other than a stream, may take to be sent: once to twice this.
const SEND_MAX: Duration = Duration::from_secs(15);
/// A connection without an open request closes after this long while the listener is full.
const IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(5);
/// A connection without an authenticated call closes from this age on while the listener is full.
const UNAUTHENTICATED_AGE: Duration = Duration::from_secs(3);
/// How often such a connection checks whether the listener is full.
const PRESSURE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time for its open requests to end.
const UNAUTHENTICATED_GRACE: Duration = Duration::from_secs(2);
/// Time for the client to see that an idle connection closes.
const IDLE_GRACE: Duration = Duration::from_secs(5);
/// How long, and how many bytes, are read of a connection that the client has not closed yet.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// Time for calls on a connection at its maximum age: the longest takes `timeouts::CALL_MAX`.
const AGE_GRACE: Duration = Duration::from_secs(90);
