//! HTTP requests of the command line: probes of a broker, and the demo's calls to its resource server.

use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{DATE, HOST, HeaderMap, HeaderValue};

use crate::client::{Protocol, Transport, http};

/// A response with its body.
pub(super) struct HttpResponse {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl HttpResponse {
    /// The `Date` header (RFC 9110 §6.6.1) in seconds since 1970.
    pub(super) fn date(&self) -> Option<i64> {
        seconds_of(self.headers.get(DATE)?.to_str().ok()?)
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
        let response = http::send(stream.map_err(|e| e.to_string())?, request)
            .await
            .map_err(|e| e.to_string())?;
        let (head, body) = response.into_parts();
        let body = http::read_body(body, BODY_BYTES_MAX).await;
        Ok(HttpResponse {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.map_err(|e| e.to_string())?,
        })
    };
    tokio::time::timeout(timeout, exchange)
        .await
        .map_err(|_| format!("no response within {} s", timeout.as_secs()))?
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
