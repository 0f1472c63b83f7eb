//! One connection, from its handshake to its end.
//!
//! In: a socket. Out: requests for the router. Closed when: no request comes soon; an answer is not taken; nothing is asked
//! for a while; its age is reached; the broker stops; others wait for room and nobody has proved anything on it. The last
//! four gracefully (GOAWAY), so that no call that was taken is lost: a client that retries by its contract sees no failure.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Sleep};
use tower::Service as _;

use super::console;
use super::deadline::{self, Closing};
use super::listener::{Counts, Shared, Socket};
use super::peer::Peer;
use crate::config::ConnectionLimits;
use crate::proto::PACKAGE;

/// The time a connection has from the moment it was accepted to its first request, TLS handshake included.
pub(super) struct Opening {
    accepted: Instant,
    over: Pin<Box<Sleep>>,
}

impl Opening {
    pub(super) fn new(limits: &ConnectionLimits) -> Self {
        let accepted = Instant::now();
        Self {
            accepted,
            over: Box::pin(tokio::time::sleep_until(accepted + limits.first_request_timeout)),
        }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(
    socket: Socket,
    peer: Peer,
    shared: &Shared,
    mut opening: Opening,
    mut stopped: watch::Receiver<bool>,
) {
    match socket {
        Socket::Tcp(stream, None) => drive(stream, peer, shared, opening, stopped).await,
        Socket::Unix(stream) => drive(stream, peer, shared, opening, stopped).await,
        Socket::Tcp(stream, Some(tls)) => {
            let shaken = tokio::select! {
                shaken = tls.accept(stream) => shaken,
                () = &mut opening.over => {
                    Counts::one(&shared.counts.silent);
                    return;
                }
                () = pressed(shared, opening.accepted) => {
                    Counts::one(&shared.counts.unproved);
                    return;
                }
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            match shaken {
                Ok(stream) => drive(stream, peer, shared, opening, stopped).await,
                Err(error) => {
                    Counts::one(&shared.counts.handshakes_failed);
                    tracing::debug!(%error, source = ?peer.source, "no TLS handshake");
                }
            }
        }
    }
}

/// How a connection is to end.
enum Close {
    Cut,
    /// After what is open has finished, for which there is this long.
    Gently(Duration),
}

async fn drive<I>(
    socket: I,
    peer: Peer,
    shared: &Shared,
    opening: Opening,
    stopped: watch::Receiver<bool>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let (closing, closed) = watch::channel(false);
    let service = {
        let (router, activity) = (shared.router.clone(), activity.clone());
        hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let call = Activity::begin(&activity);
            let mut router = router.clone();
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(Closing(closed.clone()));
            let stream = deadline::is_stream(request.uri().path());
            let ours = is_ours(request.uri().path())
                || console::rows::knows_its_caller(request.uri().path());
            async move {
                let response = router.call(request.map(Body::new)).await?;
                if ours && is_proof(&response) {
                    call.0.proved.store(true, Ordering::Relaxed);
                }
                let answering = (!stream).then(|| Activity::answer(&call.0));
                Ok::<_, Infallible>(response.map(|body| Answer {
                    body,
                    _call: call,
                    _answering: answering,
                }))
            }
        })
    };
    let (io, given_back) = Lent::new(socket);
    {
        let builder = builder(&shared.limits);
        let connection = builder.serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let close = tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, source = ?peer.source, "a connection broke");
                    return;
                }
                None
            }
            close = due(&activity, shared, opening, stopped) => Some(close),
        };
        match close {
            Some(Close::Cut) => return,
            Some(Close::Gently(grace)) => {
                connection.as_mut().graceful_shutdown();
                // Streams end here; calls finish by themselves.
                closing.send_replace(true);
                tokio::select! {
                    _ended = &mut connection => {}
                    () = stuck(&activity) => {
                        Counts::one(&shared.counts.stuck);
                        return;
                    }
                    () = tokio::time::sleep(grace) => return,
                }
            }
            None => {}
        }
    }
    if let Ok(io) = given_back.await {
        linger(io).await;
    }
}

/// Reads on until the other end closes too. A socket that is closed with something unread in it is reset, and a reset takes
/// with it what the other end has not read yet: the last answers.
async fn linger<I: AsyncRead + AsyncWrite + Unpin>(mut io: I) {
    let to_the_end = async {
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
    let _in_time = tokio::time::timeout(LINGER, to_the_end).await;
}

/// A socket that comes back when whoever serves it lets go.
struct Lent<I> {
    io: Option<I>,
    owner: Option<oneshot::Sender<I>>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Lent<I> {
    fn new(io: I) -> (Self, oneshot::Receiver<I>) {
        let (owner, given_back) = oneshot::channel();
        let lent = Self {
            io: Some(io),
            owner: Some(owner),
        };
        (lent, given_back)
    }

    fn with<T>(
        self: Pin<&mut Self>,
        act: impl FnOnce(Pin<&mut I>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.get_mut().io {
            Some(io) => act(Pin::new(io)),
            // Only a drop takes it away.
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<I> Drop for Lent<I> {
    fn drop(&mut self) {
        if let (Some(io), Some(owner)) = (self.io.take(), self.owner.take()) {
            // Who does not want it back has it closed.
            let _unwanted = owner.send(io);
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Lent<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|io| io.poll_read(cx, buffer))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lent<I> {
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
        // Runs between requests too. The first header is bounded by `silent`, and a later one by `idle` as well.
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
        .max_send_buf_size(super::MESSAGE_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// Resolves when the connection must end.
async fn due(
    activity: &Arc<Activity>,
    shared: &Shared,
    opening: Opening,
    mut stopped: watch::Receiver<bool>,
) -> Close {
    let limits = &shared.limits;
    let accepted = opening.accepted;
    let close = tokio::select! {
        () = silent(activity, opening) => (Close::Cut, &shared.counts.silent),
        () = stuck(activity) => (Close::Cut, &shared.counts.stuck),
        () = idle(activity, shared) => (Close::Gently(IDLE_GRACE), &shared.counts.idle),
        () = unproved(activity, shared, accepted) => (Close::Gently(UNPROVED_GRACE), &shared.counts.unproved),
        () = tokio::time::sleep(jittered(limits.max_age)) => (Close::Gently(AGE_GRACE), &shared.counts.aged),
        // How long that may take is for the stop to say.
        _ = stopped.wait_for(|stopped| *stopped) => return Close::Gently(AGE_GRACE),
    };
    Counts::one(close.1);
    close.0
}

/// Resolves if no request comes before the opening is over.
async fn silent(activity: &Activity, opening: Opening) {
    let mut open = activity.open.subscribe();
    let asked = async {
        let _asked_or_gone = open.wait_for(|open| open.begun > 0).await.is_ok();
    };
    tokio::select! {
        () = asked => {}
        () = opening.over => return,
    }
    std::future::pending().await
}

/// Resolves when nothing has been open for long enough; much sooner while others wait for room.
async fn idle(activity: &Activity, shared: &Shared) {
    let mut open = activity.open.subscribe();
    loop {
        let Ok(begun) = open
            .wait_for(|open| open.now == 0 && open.begun > 0)
            .await
            .map(|open| open.begun)
        else {
            return;
        };
        let mut left = shared.limits.idle_timeout;
        loop {
            let step = left.min(PRESSED_IDLE);
            let asked = async {
                let _asked_or_gone = open.wait_for(|open| open.begun != begun).await.is_ok();
            };
            tokio::select! {
                () = asked => break,
                () = tokio::time::sleep(step) => {}
            }
            left = left.saturating_sub(step);
            if left.is_zero() || shared.is_full() {
                return;
            }
        }
    }
}

/// Resolves when others wait for room and nobody has proved anything here, whatever is open: places that cost nothing to hold
/// are not held against those who may ask.
async fn unproved(activity: &Activity, shared: &Shared, accepted: Instant) {
    pressed(shared, accepted).await;
    if activity.proved.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

/// Resolves when others wait for room and this connection has had its time to prove something.
async fn pressed(shared: &Shared, accepted: Instant) {
    tokio::time::sleep_until(accepted + UNPROVED_AGE).await;
    while !shared.is_full() {
        tokio::time::sleep(PRESSED_LOOK).await;
    }
}

/// Whether a path is one of our methods': each verifies its caller before it answers OK.
fn is_ours(path: &str) -> bool {
    let method = path.strip_prefix('/').unwrap_or_default();
    method
        .strip_prefix(PACKAGE)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Whether an answer of one of our methods shows that the caller proved who it is. A refusal has its status in the head: an
/// OK has none there, and says it after the message.
fn is_proof<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::OK && !response.headers().contains_key("grpc-status")
}

/// Resolves when an answer has not been taken for one to two times [`TAKE_MAX`].
async fn stuck(activity: &Activity) {
    loop {
        tokio::time::sleep(TAKE_MAX).await;
        if activity.turn() {
            return;
        }
    }
}

/// The age at which a connection goes: a fifth more or less than configured, so that those made together part.
fn jittered(age: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without randomness it is the age as configured: connections then part together, and no worse.
    let chance = match rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut byte)
    {
        Ok(()) => u32::from(byte[0]),
        Err(_) => 128,
    };
    age.mul_f64(0.8 + 0.4 * f64::from(chance) / 255.0)
}

/// What is going on on a connection.
#[derive(Default)]
struct Activity {
    open: watch::Sender<Open>,
    /// Which of the two counts of answers takes new ones.
    turn: AtomicUsize,
    answers: [AtomicUsize; 2],
    /// Whether a caller has been answered here who proved who it is.
    proved: AtomicBool,
}

#[derive(Default)]
struct Open {
    /// Requests whose answer is not wholly sent.
    now: usize,
    /// Requests since the start.
    begun: u64,
}

/// A request in the works; over when dropped.
struct Call(Arc<Activity>);

/// An answer being sent; over when dropped.
struct Answering {
    activity: Arc<Activity>,
    turn: usize,
}

impl Activity {
    fn begin(activity: &Arc<Self>) -> Call {
        activity.open.send_modify(|open| {
            open.now += 1;
            open.begun += 1;
        });
        Call(activity.clone())
    }

    fn answer(activity: &Arc<Self>) -> Answering {
        let turn = activity.turn.load(Ordering::SeqCst) % 2;
        if let Some(count) = activity.answers.get(turn) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        Answering {
            activity: activity.clone(),
            turn,
        }
    }

    /// Begins a new count of answers in place of the older one; true if the older one is not empty.
    fn turn(&self) -> bool {
        let next = self.turn.load(Ordering::SeqCst).wrapping_add(1);
        let waits = self
            .answers
            .get(next % 2)
            .is_some_and(|count| count.load(Ordering::SeqCst) > 0);
        self.turn.store(next, Ordering::SeqCst);
        waits
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| open.now -= 1);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(count) = self.activity.answers.get(self.turn) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A response's body, which keeps its call open until it is sent or given up.
struct Answer {
    body: Body,
    _call: Call,
    _answering: Option<Answering>,
}

impl HttpBody for Answer {
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
/// Longest header block, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Headers of a request over HTTP/1.1.
const HEADERS_MAX: usize = 64;
/// Streams that the other end has reset and this one has not yet looked at (CVE-2023-44487, "rapid reset").
const RESETS_PENDING_MAX: usize = 20;
/// Streams reset here because of the other end's errors, before the connection is given up.
const RESETS_OURS_MAX: usize = 256;
/// What the other end may send of one message without a word from here, in bytes.
const WINDOW_BYTES: u32 = 64 * 1024;
/// The same for all messages of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Over HTTP/2: how often the other end is asked whether it is there, and how long it may take to say so.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an answer, other than a stream, may take to be sent: once to twice this.
const TAKE_MAX: Duration = Duration::from_secs(15);
/// A connection with nothing open gives way after this long while others wait for room.
const PRESSED_IDLE: Duration = Duration::from_secs(5);
/// A connection on which nobody has proved anything gives way from this age on while others wait for room.
const UNPROVED_AGE: Duration = Duration::from_secs(3);
/// How often such a connection looks whether others wait.
const PRESSED_LOOK: Duration = Duration::from_secs(1);
/// For what is open on it to end.
const UNPROVED_GRACE: Duration = Duration::from_secs(2);
/// For the other end to see that an idle connection closes.
const IDLE_GRACE: Duration = Duration::from_secs(5);
/// How long, and how much, is read of a connection that has ended here and not yet there, in bytes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// For calls on an aged connection: the longest of them is `deadline::CALL_MAX`.
const AGE_GRACE: Duration = Duration::from_secs(90);
