//! JSON requests to the demo's resource server and the broker's console on loopback.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, SET_COOKIE, WWW_AUTHENTICATE};
use hyper::{Request, Uri};
use serde_json::Value;

use crate::cli::error::CliError;
use crate::cli::http_client;
use crate::client::{ConnectOptions, Transport};
use crate::model::Secret;

/// A response.
pub(super) struct JsonResponse {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) challenge: String,
    /// The cookie that it sets, without its attributes.
    pub(super) cookie: Option<Secret>,
}

const TIMEOUT_S: u64 = 10;

/// Sends a JSON request and reads the JSON response; `secrets` become headers that hyper does not log.
pub(super) async fn call(
    method: &str,
    url: &str,
    secrets: &[(&'static str, &Secret)],
    body: Option<&Value>,
) -> Result<JsonResponse, CliError> {
    let failed = |e: &dyn std::fmt::Display| CliError::failed(format!("{url}: {e}"));
    let uri: Uri = url
        .parse()
        .map_err(|e: hyper::http::uri::InvalidUri| failed(&e))?;
    let authority = uri.authority().ok_or_else(|| failed(&"has no host"))?;
    let route = Transport::new(&format!("http://{authority}"), &ConnectOptions::default())?;
    let mut request = Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(
            body.map(Value::to_string).unwrap_or_default(),
        )))
        .map_err(|e| failed(&e))?;
    for (name, secret) in secrets {
        let mut value = HeaderValue::from_str(secret.expose_secret()).map_err(|e| failed(&e))?;
        value.set_sensitive(true);
        request
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    let response = http_client::send(&route, request, Duration::from_secs(TIMEOUT_S))
        .await
        .map_err(|e| failed(&e))?;
    let challenge = response.headers.get(WWW_AUTHENTICATE);
    let cookie = response.headers.get(SET_COOKIE);
    let cookie = cookie
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split(';').next());
    Ok(JsonResponse {
        status: response.status,
        body: serde_json::from_slice(&response.body).unwrap_or(Value::Null),
        challenge: challenge
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        cookie: cookie.map(|pair| Secret::new(pair.to_owned())),
    })
}
