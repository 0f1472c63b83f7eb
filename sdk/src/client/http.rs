//! HTTP/1.1 client for single requests: one request on a connection of its own, with bounded headers and a bounded body.
//!
//! Written on hyper's connection API: a pooling client would reuse connections, and its connectors cannot take [`Transport`]'s.
//!
//! [`Transport`]: super::Transport

use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Sends one request; the connection closes when the response body is read or dropped.
///
/// # Errors
/// hyper's, when the connection or the head of the response fails.
pub async fn send<S, B>(stream: S, request: Request<B>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// Reads a whole response body of at most `bytes_max` bytes.
///
/// # Errors
/// The connection failed, or the body is longer.
pub async fn read_body(body: Incoming, bytes_max: usize) -> Result<Bytes, BoxError> {
    Ok(Limited::new(body, bytes_max).collect().await?.to_bytes())
}

/// Headers of one message.
pub const HEADERS_MAX: usize = 100;
/// Start line and headers of one message, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
