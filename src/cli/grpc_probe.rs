//! Probes of the way to a broker: calls of the gRPC health service over HTTP/2, written by hand to see what a proxy changes.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{Instant, timeout, timeout_at};

use crate::client::{Protocol, Transport};

/// Makes one unary call. The error is one line of text that names what did not come through.
pub(super) async fn check(route: &Transport) -> Result<(), String> {
    let call = async {
        let mut body = open(route, "/grpc.health.v1.Health/Check").await?;
        let (mut messages, mut status) = (0_usize, None);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| format!("the response broke off: {error}"))?;
            messages += usize::from(frame.is_data());
            if let Some(trailers) = frame.trailers_ref() {
                status = trailers.get(GRPC_STATUS).cloned();
            }
        }
        match status {
            Some(status) if status == "0" && messages > 0 => Ok(()),
            Some(status) => Err(format!(
                "gRPC status {}",
                String::from_utf8_lossy(status.as_bytes())
            )),
            None => Err("the trailers with the gRPC status are lost".to_owned()),
        }
    };
    timeout(CALL_TIMEOUT, call)
        .await
        .map_err(|_| format!("no response within {} s", CALL_TIMEOUT.as_secs()))?
}

/// Opens a stream and keeps it for `hold`. An error says after how long it ended.
pub(super) async fn hold_stream(route: &Transport, hold: Duration) -> Result<(), String> {
    let started = Instant::now();
    let opening = timeout(CALL_TIMEOUT, open(route, "/grpc.health.v1.Health/Watch")).await;
    let mut body = opening.map_err(|_| "no response".to_owned())??;
    loop {
        match timeout_at(started + hold, body.frame()).await {
            Err(_still_open) => return Ok(()),
            Ok(Some(Ok(frame))) if frame.is_data() => {}
            Ok(Some(_) | None) => {
                let lasted = started.elapsed().as_millis();
                return Err(format!("it ended after {lasted} ms"));
            }
        }
    }
}

/// Sends a call without members in its message, and returns the body of a gRPC response.
async fn open(route: &Transport, path: &str) -> Result<Incoming, String> {
    let stream = route.connect(Protocol::Http2).await;
    let stream = stream.map_err(|error| format!("cannot connect: {error}"))?;
    let no_http2 = |error: hyper::Error| format!("the server does not speak HTTP/2: {error}");
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(no_http2)?;
    // Ends with the sender and the body.
    tokio::spawn(connection);
    let uri = route.uri();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let scheme = uri.scheme_str().unwrap_or("http");
    let request = Request::post(format!("{scheme}://{authority}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        // A frame that is not compressed, of a message of no bytes.
        .body(Full::new(Bytes::from_static(&[0; 5])))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(no_http2)?;
    let (head, body) = response.into_parts();
    let grpc = head
        .headers
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    // A response of trailers alone has its status in the header.
    let failed = head
        .headers
        .get(GRPC_STATUS)
        .filter(|status| *status != "0");
    match (head.status.as_u16(), grpc, failed) {
        (200, true, None) => Ok(body),
        (200, true, Some(status)) => {
            let message = head.headers.get("grpc-message");
            let message = message.map_or(String::new(), |text| {
                format!(" ({})", String::from_utf8_lossy(text.as_bytes()))
            });
            let status = String::from_utf8_lossy(status.as_bytes());
            Err(format!("gRPC status {status}{message}"))
        }
        (200, false, _) => Err("the response is not gRPC".to_owned()),
        (status, _, _) => Err(format!("HTTP status {status} in place of a gRPC response")),
    }
}

const GRPC_STATUS: &str = "grpc-status";
/// Longest wait for a response.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
