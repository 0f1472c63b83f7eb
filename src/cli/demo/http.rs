//! One HTTP request to a resource server on loopback.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::cli::error::CliError;
use crate::model::Secret;

/// An answer.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) challenge: String,
}

const ANSWER_S: u64 = 10;
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Sends a request and reads its JSON answer.
pub(super) async fn call(
    method: &str,
    url: &str,
    secrets: &[(&'static str, &Secret)],
    body: Option<&Value>,
) -> Result<Answered, CliError> {
    let wrong = |e: &dyn std::fmt::Display| CliError::failed(format!("{url}: {e}"));
    let exchange = async {
        let uri: Uri = url
            .parse()
            .map_err(|e: hyper::http::uri::InvalidUri| wrong(&e))?;
        let authority = uri
            .authority()
            .ok_or_else(|| wrong(&"has no host"))?
            .to_string();
        let stream = TcpStream::connect(&authority)
            .await
            .map_err(|e| wrong(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| wrong(&e))?;
        let connection = tokio::spawn(connection);
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).map_err(|e| wrong(&e))?)
            .uri(path)
            .header(HOST, &authority)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(
                body.map(Value::to_string).unwrap_or_default(),
            )))
            .map_err(|e| wrong(&e))?;
        for (name, secret) in secrets {
            let mut value = HeaderValue::from_str(secret.expose_secret()).map_err(|e| wrong(&e))?;
            value.set_sensitive(true);
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
        let answer = sender.send_request(request).await.map_err(|e| wrong(&e))?;
        let status = answer.status().as_u16();
        let challenge = answer
            .headers()
            .get(WWW_AUTHENTICATE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| wrong(&e))?
            .to_bytes();
        connection.abort();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Answered {
            status,
            body,
            challenge,
        })
    };
    tokio::time::timeout(Duration::from_secs(ANSWER_S), exchange)
        .await
        .map_err(|_| wrong(&"no answer"))?
}
