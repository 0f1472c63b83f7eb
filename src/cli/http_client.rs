//! HTTP requests of the command line: probes of a broker, and the demo's calls to its resource server.

use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{DATE, HOST, HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::client::{Protocol, Transport, http};
use crate::clock::Clock;
use crate::model::Timestamp;

/// A response with its body.
pub(super) struct HttpResponse {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// From the request to the whole response, without the time to connect.
    round_trip: Duration,
    /// When the response was there.
    received_at: Timestamp,
}

impl HttpResponse {
    /// How far the server's clock is ahead of this host's, in milliseconds, by the `Date` header (RFC 9110 §6.6.1): the server
    /// read its clock about half a round trip before the response was here. What the whole second of `Date` and the round trip
    /// leave open counts as agreement.
    pub(super) fn clock_difference_ms(&self) -> Option<i64> {
        let date_ms = seconds_of(self.headers.get(DATE)?.to_str().ok()?)?.saturating_mul(1_000);
        let half = i64::try_from(self.round_trip.as_millis() / 2).ok()?;
        Some(difference_ms(
            date_ms,
            self.received_at.millis() - half,
            half,
        ))
    }

    /// The body as trimmed text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// Sends a GET request for a path. The error is one line of text.
pub(super) async fn get(route: &Transport, path: &str) -> Result<HttpResponse, String> {
    let request = Request::get(path).body(Full::default());
    let request = request.map_err(|e| e.to_string())?;
    send(route, request, Duration::from_secs(GET_TIMEOUT_S)).await
}

/// Sends a request and reads its response, both within `timeout`. The error is one line of text.
pub(super) async fn send(
    route: &Transport,
    mut request: Request<Full<Bytes>>,
    timeout: Duration,
) -> Result<HttpResponse, String> {
    let authority = route
        .uri()
        .authority()
        .map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(authority).map_err(|e| e.to_string())?;
    request.headers_mut().insert(HOST, host);
    let exchange = async {
        let stream = route.connect(Protocol::Http1).await;
        let stream = stream.map_err(|e| e.to_string())?;
        let sent = Instant::now();
        let response = http::send(stream, request)
            .await
            .map_err(|e| e.to_string())?;
        let (head, body) = response.into_parts();
        let body = http::read_body(body, BODY_BYTES_MAX).await;
        Ok(HttpResponse {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.map_err(|e| e.to_string())?,
            round_trip: sent.elapsed(),
            received_at: Clock::system().now(),
        })
    };
    tokio::time::timeout(timeout, exchange)
        .await
        .map_err(|_| format!("no response within {} s", timeout.as_secs()))?
}

/// The difference between a clock that showed `date_ms`, cut to the second, and one that showed `local_ms`, less the
/// uncertainty of both.
fn difference_ms(date_ms: i64, local_ms: i64, uncertainty_ms: i64) -> i64 {
    let earliest = date_ms - local_ms - uncertainty_ms;
    let latest = date_ms + 1_000 - local_ms + uncertainty_ms;
    if earliest > 0 {
        earliest
    } else {
        latest.min(0)
    }
}

fn seconds_of(date: &str) -> Option<i64> {
    let date = httpdate::parse_http_date(date).ok()?;
    let elapsed = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(elapsed.as_secs()).ok()
}

const GET_TIMEOUT_S: u64 = 5;
const BODY_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_within_the_uncertainty_agree() {
        for (date, local, half, expected) in [
            (10_000, 10_500, 0, 0),
            (10_000, 10_000, 0, 0),
            (10_000, 11_000, 0, 0),
            (10_000, 12_000, 0, -1_000),
            (10_000, 9_000, 0, 1_000),
            (10_000, 9_000, 400, 600),
            (10_000, 12_000, 400, -600),
            (10_000, 13_000, 3_000, 0),
        ] {
            assert_eq!(
                difference_ms(date, local, half),
                expected,
                "{date} {local} {half}"
            );
        }
    }

    #[test]
    fn parses_http_date() {
        for (date, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(seconds_of(date), seconds, "{date}");
        }
    }
}
