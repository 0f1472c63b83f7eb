//! A reverse proxy on loopback for one command and one audience.
//!
//! In: HTTP/1.1 requests of our own user's processes, below a secret path given to the command. Out: the same requests to
//! the audience only, each with the token and its own proof; the audience's responses, streamed.
//! Trusts: the audience for its responses.
//! Refuses: other users' processes, where the system identifies them; requests without the secret path; targets other than a
//! path; CONNECT, TRACE and upgrades; paths with dot segments; all requests once the token expired or ended, or while the task
//! may have ended unheard; requests in flight when it is ended.
//! Never: follows a redirect, passes on an identity header of the command or a cookie of the audience, or shows the token to
//! the command.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::cancellable_body::{BoxError, CancellableBody};
use super::headers::{self, DPOP_NONCE, connection_lists};
use super::peer;
use super::token_holder::{TokenHolder, TokenUnavailable};
use super::upstream::{UpstreamError, has_dot_segments};
use crate::client::http::{self, HEAD_BYTES_MAX, HEADERS_MAX};
use crate::jose::dpop::NONCE_BYTES_MAX;
use crate::model::{Digest, Secret};

type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A proxy for one command: its secret path and the token it uses.
pub(super) struct Proxy {
    /// The digest of the secret: comparing digests leaks no timing.
    capability: Digest,
    holder: Arc<TokenHolder>,
    /// Additional headers to pass.
    forward: Vec<HeaderName>,
}

impl Proxy {
    /// `capability` is the required first segment of every path.
    pub(super) fn new(
        capability: &Secret,
        holder: Arc<TokenHolder>,
        forward: &[HeaderName],
    ) -> Self {
        Self {
            forward: forward.to_vec(),
            capability: Digest::sha256(capability.expose_secret().as_bytes()),
            holder,
        }
    }

    /// Serves until dropped, which also closes its connections.
    pub(super) async fn serve(self, listener: TcpListener) {
        let proxy = Arc::new(self);
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let stream = match listener.accept().await {
                Ok((stream, peer)) if same_user(&stream, peer) => stream,
                // Another user: close it and take the next connection.
                Ok(_) => continue,
                // Such as too many open files, which may be temporary.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                    continue;
                }
            };
            let proxy = proxy.clone();
            connections.spawn(async move {
                let _slot = slot;
                let answering = service_fn(move |request| {
                    let proxy = proxy.clone();
                    async move { Ok::<_, Infallible>(proxy.answer(request).await) }
                });
                let serving = server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(HEAD_READ_S))
                    .max_headers(HEADERS_MAX)
                    .max_buf_size(HEAD_BYTES_MAX)
                    .serve_connection(TokioIo::new(stream), answering);
                // The command may close the connection at any time.
                let _ended = serving.await;
            });
            while connections.try_join_next().is_some() {}
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.forward(request).await.unwrap_or_else(|problem| {
            let mut response = Response::new(full(problem.body.to_string().into()));
            *response.status_mut() = problem.status;
            let headers = response.headers_mut();
            headers.insert(
                CONTENT_TYPE,
                HeaderValue::from_static("application/problem+json"),
            );
            response
        })
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, ProxyProblem> {
        let (head, body) = request.into_parts();
        let target = head
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        let target = self.strip_capability(target).ok_or_else(|| {
            ProxyProblem::new(
                StatusCode::NOT_FOUND,
                "NOT_FOUND",
                "not found: use DIPYLON_PROXY_URL as it was given",
            )
        })?;
        if head.uri.scheme().is_some() || head.uri.authority().is_some() {
            return Err(ProxyProblem::new(
                StatusCode::BAD_REQUEST,
                "TARGET_FORM",
                "this proxy forwards to one audience: send a path, not a URL",
            ));
        }
        if head.method == Method::CONNECT || head.method == Method::TRACE {
            return Err(ProxyProblem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD",
                "CONNECT and TRACE are not allowed",
            ));
        }
        let path = target.split('?').next().unwrap_or_default();
        if has_dot_segments(path) {
            return Err(ProxyProblem::new(
                StatusCode::BAD_REQUEST,
                "PATH",
                "the path must not contain . or .. segments, backslashes or control characters in any encoding",
            ));
        }
        if connection_lists(&head.headers, "upgrade") {
            return Err(ProxyProblem::new(
                StatusCode::NOT_IMPLEMENTED,
                "UPGRADE",
                "upgrades are not supported: the connection would outlive its request",
            ));
        }
        self.check_available()?;
        let outgoing = Outgoing {
            method: head.method,
            path: path.to_owned(),
            target: self.holder.upstream.path(&target),
            headers: headers::passed_on(&head.headers, &self.forward),
        };
        let ended = self.holder.ended();
        tokio::select! {
            biased;
            error = ended => Err(ProxyProblem::unavailable(&error)),
            response = self.exchange(&outgoing, body) => response.map_err(|problem| {
                // The end also breaks the transfer off, in a task of its own, which looks like an unreachable audience.
                let end = self.holder.end_on_record();
                end.map_or(problem, |end| ProxyProblem::unavailable(&end))
            }),
        }
    }

    fn check_available(&self) -> Result<(), ProxyProblem> {
        let available = self.holder.check_available();
        available.map_err(|error| ProxyProblem::unavailable(&error))
    }

    /// Sends the request and begins the response.
    async fn exchange(
        &self,
        outgoing: &Outgoing,
        body: Incoming,
    ) -> Result<Response<Body>, ProxyProblem> {
        let response = match self.read_body(body).await? {
            RequestBody::Buffered(bytes) => {
                let response = self.send(outgoing, full(bytes.clone()), None).await?;
                match wanted_nonce(&response) {
                    // RFC 9449 §9: retry once with the nonce.
                    Some(nonce) => self.send(outgoing, full(bytes), Some(&nonce)).await?,
                    None => response,
                }
            }
            // A streamed body is sent once; the next request uses the nonce.
            RequestBody::Streamed(body) => self.send(outgoing, body, None).await?,
        };
        // The audience's response for the command.
        let (mut head, body) = response.into_parts();
        head.headers = headers::received(&head.headers);
        let body = CancellableBody::new(body, self.holder.ended());
        Ok(Response::from_parts(head, body.boxed_unsync()))
    }

    /// The target after the secret segment, beginning with a slash.
    fn strip_capability(&self, target: &str) -> Option<String> {
        let rest = target.strip_prefix('/')?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (presented, path) = rest.split_at_checked(end)?;
        if Digest::sha256(presented.as_bytes()) != self.capability {
            return None;
        }
        Some(if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        })
    }

    async fn send(
        &self,
        outgoing: &Outgoing,
        body: Body,
        nonce: Option<&str>,
    ) -> Result<Response<Incoming>, ProxyProblem> {
        let proof_error = |_| {
            ProxyProblem::new(
                StatusCode::BAD_GATEWAY,
                "PROOF",
                "could not create the proof",
            )
        };
        let method = outgoing.method.as_str();
        let token_headers = match nonce {
            Some(nonce) => self
                .holder
                .headers_with(method, &outgoing.path, Some(nonce)),
            None => self.holder.headers(method, &outgoing.path),
        }
        .map_err(proof_error)?;
        let mut request = Request::new(body);
        *request.method_mut() = outgoing.method.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = outgoing.target.parse().map_err(|_| {
            ProxyProblem::new(StatusCode::BAD_REQUEST, "PATH", "the path is not valid")
        })?;
        *request.headers_mut() = outgoing.headers.clone();
        let secret = |text: &Secret| {
            let mut value = HeaderValue::from_str(text.expose_secret()).map_err(|_| {
                ProxyProblem::new(
                    StatusCode::BAD_GATEWAY,
                    "PROOF",
                    "the token is not a valid header value",
                )
            })?;
            value.set_sensitive(true);
            Ok::<_, ProxyProblem>(value)
        };
        let host = HeaderValue::from_str(self.holder.upstream.authority()).map_err(|_| {
            ProxyProblem::new(
                StatusCode::BAD_GATEWAY,
                "AUDIENCE",
                "the audience is not a valid host",
            )
        })?;
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        headers.insert("authorization", secret(&token_headers.authorization)?);
        headers.insert("dpop", secret(&token_headers.dpop)?);
        let exchange = async {
            let stream = self.holder.upstream.connect().await?;
            http::send(stream, request)
                .await
                .map_err(|_| UpstreamError::Refused)
        };
        let answer = tokio::time::timeout(Duration::from_secs(ANSWER_S), exchange)
            .await
            .unwrap_or(Err(UpstreamError::Late))
            .map_err(|why| {
                let status = match why {
                    UpstreamError::Refused | UpstreamError::Untrusted => StatusCode::BAD_GATEWAY,
                    UpstreamError::Late => StatusCode::GATEWAY_TIMEOUT,
                };
                ProxyProblem::new(status, "AUDIENCE_UNREACHABLE", &why.to_string())
            })?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProxyProblem::new(
                StatusCode::BAD_GATEWAY,
                "UPGRADE",
                "the audience requested a protocol switch",
            ));
        }
        if let Some(nonce) = nonce_of(answer.headers()) {
            self.holder.set_nonce(&nonce);
        }
        Ok(answer)
    }
}

/// An outgoing request without its body and the token headers.
struct Outgoing {
    method: Method,
    /// Path below the audience's base, for the proof.
    path: String,
    /// Path and query at the audience's host.
    target: String,
    headers: HeaderMap,
}

/// A request body that was buffered, so that it can be sent again, or one that is streamed.
enum RequestBody {
    Buffered(Bytes),
    Streamed(Body),
}

impl Proxy {
    /// Buffers a body of known, small size: a resource server that requires a nonce says so only in its response.
    async fn read_body(&self, body: Incoming) -> Result<RequestBody, ProxyProblem> {
        let small = body
            .size_hint()
            .exact()
            .is_some_and(|bytes| bytes <= REPLAY_BYTES_MAX);
        if !small {
            let body = CancellableBody::new(body, self.holder.ended());
            return Ok(RequestBody::Streamed(body.boxed_unsync()));
        }
        let limit = usize::try_from(REPLAY_BYTES_MAX).unwrap_or(usize::MAX);
        let reading = Limited::new(body, limit).collect();
        let read = tokio::time::timeout(Duration::from_secs(BODY_READ_S), reading)
            .await
            .map_err(|_| {
                ProxyProblem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "BODY",
                    "the body did not arrive in time",
                )
            })?;
        let read = read.map_err(|_| {
            ProxyProblem::new(StatusCode::BAD_REQUEST, "BODY", "the body ended early")
        })?;
        Ok(RequestBody::Buffered(read.to_bytes()))
    }
}

/// An error response of the proxy itself (RFC 9457).
#[derive(Debug)]
struct ProxyProblem {
    status: StatusCode,
    body: serde_json::Value,
}

impl ProxyProblem {
    fn new(status: StatusCode, reason: &str, detail: &str) -> Self {
        Self {
            status,
            body: json!({
                "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(),
                "reason": reason, "detail": format!("dipylon: {detail}"),
            }),
        }
    }

    /// The token is not presented. 403: a new attempt with this proxy cannot succeed; 503: it may.
    fn unavailable(error: &TokenUnavailable) -> Self {
        let status = match error {
            TokenUnavailable::Expired(_) | TokenUnavailable::Ended(_) => StatusCode::FORBIDDEN,
            TokenUnavailable::Unconfirmed => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.reason(), &error.to_string())
    }
}

/// The secret path alone is not enough: a command line that shows it can be read by every user of the machine.
fn same_user(stream: &TcpStream, peer: SocketAddr) -> bool {
    stream
        .local_addr()
        .is_ok_and(|here| peer::is_same_user(peer, here))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The nonce of a response that requires one (RFC 9449 §9).
fn wanted_nonce(response: &Response<Incoming>) -> Option<String> {
    let requires_nonce = response.status() == StatusCode::UNAUTHORIZED
        && response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.contains("use_dpop_nonce"));
    if requires_nonce {
        nonce_of(response.headers())
    } else {
        None
    }
}

fn nonce_of(headers: &HeaderMap) -> Option<String> {
    let nonce = headers.get(DPOP_NONCE)?.to_str().ok()?;
    let fit =
        (1..=NONCE_BYTES_MAX).contains(&nonce.len()) && nonce.bytes().all(|b| b.is_ascii_graphic());
    fit.then(|| nonce.to_owned())
}

/// Concurrent connections of the command.
const CONNECTIONS_MAX: usize = 64;
/// Largest body that is buffered to be sent again, in bytes.
const REPLAY_BYTES_MAX: u64 = 64 * 1024;
/// For the command to send its headers.
const HEAD_READ_S: u64 = 30;
/// For the command to send a small body.
const BODY_READ_S: u64 = 30;
/// For the audience to begin its response. Bodies may be streamed as long as the command runs.
const ANSWER_S: u64 = 120;
const ACCEPT_PAUSE_MS: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_nonce_is_ignored() {
        let of = |value| {
            let name = HeaderName::from_static(DPOP_NONCE);
            nonce_of(&HeaderMap::from_iter([(
                name,
                HeaderValue::from_static(value),
            )]))
        };
        for bad in ["", "a b"] {
            assert_eq!(of(bad), None);
        }
        assert_eq!(of("n-1"), Some("n-1".to_owned()));
    }
}
