//! A reverse proxy on loopback for one command and one audience.
//!
//! In: HTTP/1.1 requests of our own user's processes, below a path that only the command was told. Out: the same requests to the audience, and
//! nowhere else, each with the token and a proof of its own; the audience's answers, streamed.
//! Trusts: the audience for what it answers.
//! Refuses: other users' processes, where the system names them; whoever does not know the path; other forms of target than a path; CONNECT, TRACE and upgrades; paths that
//! climb; everything once the token or the task is over.
//! Never: follows a redirect, passes on an identity that the command brought or a cookie that the audience set, or shows
//! the token to the command.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version, client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::headers::{self, DPOP_NONCE, lists};
use super::upstream::{ConnectError, has_dot_segments};
use super::peer;
use super::token_holder::TokenHolder;
use crate::jose::dpop::NONCE_BYTES_MAX;
use crate::model::{Digest, Secret};

type Body = BoxBody<Bytes, hyper::Error>;

/// The secret part of the proxy's path, and who is behind it.
pub(super) struct Proxy {
    /// Compared by hash, so that the time it takes says nothing of the secret.
    capability: Digest,
    holder: Arc<TokenHolder>,
    /// Headers that the caller lets pass, beside those that always do.
    forward: Vec<HeaderName>,
}

impl Proxy {
    /// `capability` is what the first segment of every path must be.
    pub(super) fn new(
        capability: &Secret,
        holder: Arc<TokenHolder>,
        forward: &[HeaderName],
    ) -> Self {
        Self {
            forward: forward.to_vec(),
            capability: Digest::of(capability.expose_secret().as_bytes()),
            holder,
        }
    }

    /// Serves until dropped; its connections go with it.
    pub(super) async fn serve(self, listener: TcpListener) {
        let proxy = Arc::new(self);
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let stream = match listener.accept().await {
                Ok((stream, peer)) if same_user(&stream, peer) => stream,
                // Closed, and the slot is for the next one.
                Ok(_) => continue,
                // Such as too many open files: it may pass.
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
                // A command that goes away in the middle is its own affair.
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
            if problem.status == StatusCode::UNAUTHORIZED {
                headers.insert(
                    WWW_AUTHENTICATE,
                    HeaderValue::from_static("DPoP error=\"invalid_token\""),
                );
            }
            response
        })
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, ProxyProblem> {
        let (head, body) = request.into_parts();
        let target = head
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        let target = self.admitted(target).ok_or_else(|| {
            ProxyProblem::new(
                StatusCode::NOT_FOUND,
                "NOT_FOUND",
                "nothing is here: use DIPYLON_PROXY_URL as it was given",
            )
        })?;
        if head.uri.scheme().is_some() || head.uri.authority().is_some() {
            return Err(ProxyProblem::new(
                StatusCode::BAD_REQUEST,
                "TARGET_FORM",
                "this proxy speaks to one audience: send a path, not a URL",
            ));
        }
        if head.method == Method::CONNECT || head.method == Method::TRACE {
            return Err(ProxyProblem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD",
                "neither tunnels nor echoes",
            ));
        }
        let path = target.split('?').next().unwrap_or_default();
        if has_dot_segments(path) {
            return Err(ProxyProblem::new(
                StatusCode::BAD_REQUEST,
                "PATH",
                "a path with . or .. in it, a backslash or a control character, however encoded, could leave the audience's own",
            ));
        }
        if lists(&head.headers, "upgrade") {
            return Err(ProxyProblem::new(
                StatusCode::NOT_IMPLEMENTED,
                "UPGRADE",
                "an upgraded connection would outlive its one request",
            ));
        }
        self.holder.alive().map_err(|dead| {
            ProxyProblem::new(StatusCode::UNAUTHORIZED, dead.reason(), &dead.to_string())
        })?;
        let outgoing = Outgoing {
            method: head.method,
            path: path.to_owned(),
            target: self.holder.upstream.path(&target),
            headers: headers::passed_on(&head.headers, &self.forward),
        };
        match Sent::of(body).await? {
            Sent::Again(bytes) => {
                let response = self.send(&outgoing, full(bytes.clone()), None).await?;
                match wanted_nonce(&response) {
                    // RFC 9449 §9: once more, and no more than once.
                    Some(nonce) => {
                        let again = self.send(&outgoing, full(bytes), Some(&nonce)).await?;
                        Ok(received(again))
                    }
                    None => Ok(received(response)),
                }
            }
            // What flows by is sent once; the nonce is there for the next request.
            Sent::Once(body) => Ok(received(self.send(&outgoing, body, None).await?)),
        }
    }

    /// The target behind the capability, beginning with a slash.
    fn admitted(&self, target: &str) -> Option<String> {
        let rest = target.strip_prefix('/')?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (shown, behind) = rest.split_at_checked(end)?;
        if Digest::of(shown.as_bytes()) != self.capability {
            return None;
        }
        Some(if behind.starts_with('/') {
            behind.to_owned()
        } else {
            format!("/{behind}")
        })
    }

    async fn send(
        &self,
        outgoing: &Outgoing,
        body: Body,
        nonce: Option<&str>,
    ) -> Result<Response<Incoming>, ProxyProblem> {
        let ours = |_| {
            ProxyProblem::new(
                StatusCode::BAD_GATEWAY,
                "PROOF",
                "the proof could not be made",
            )
        };
        let method = outgoing.method.as_str();
        let shown = match nonce {
            Some(nonce) => self
                .holder
                .headers_with(method, &outgoing.path, Some(nonce)),
            None => self.holder.headers(method, &outgoing.path),
        }
        .map_err(ours)?;
        let mut request = Request::new(body);
        *request.method_mut() = outgoing.method.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = outgoing
            .target
            .parse()
            .map_err(|_| ProxyProblem::new(StatusCode::BAD_REQUEST, "PATH", "the path is not one"))?;
        *request.headers_mut() = outgoing.headers.clone();
        let secret = |text: &Secret| {
            let mut value = HeaderValue::from_str(text.expose_secret())
                .map_err(|_| ProxyProblem::new(StatusCode::BAD_GATEWAY, "PROOF", "not a header"))?;
            value.set_sensitive(true);
            Ok::<_, ProxyProblem>(value)
        };
        let host = HeaderValue::from_str(self.holder.upstream.authority())
            .map_err(|_| ProxyProblem::new(StatusCode::BAD_GATEWAY, "AUDIENCE", "not a host"))?;
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        headers.insert("authorization", secret(&shown.authorization)?);
        headers.insert("dpop", secret(&shown.dpop)?);
        let exchange = async {
            let stream = self.holder.upstream.connect().await?;
            let (mut sender, connection) = client::conn::http1::Builder::new()
                .max_headers(HEADERS_MAX)
                .max_buf_size(HEAD_BYTES_MAX)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|_| ConnectError::Refused)?;
            // Ends when the answer has been read to its end, or when nobody reads it any more.
            tokio::spawn(connection);
            sender
                .send_request(request)
                .await
                .map_err(|_| ConnectError::Refused)
        };
        let answer = tokio::time::timeout(Duration::from_secs(ANSWER_S), exchange)
            .await
            .unwrap_or(Err(ConnectError::Late))
            .map_err(|why| {
                let status = match why {
                    ConnectError::Refused | ConnectError::Untrusted => StatusCode::BAD_GATEWAY,
                    ConnectError::Late => StatusCode::GATEWAY_TIMEOUT,
                };
                ProxyProblem::new(status, "AUDIENCE_UNREACHABLE", &why.to_string())
            })?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProxyProblem::new(
                StatusCode::BAD_GATEWAY,
                "UPGRADE",
                "the audience wants to speak another protocol",
            ));
        }
        if let Some(nonce) = nonce_of(answer.headers()) {
            self.holder.remember(&nonce);
        }
        Ok(answer)
    }
}

/// A request as it goes out, but for its body and what shows the token.
struct Outgoing {
    method: Method,
    /// Below the audience's base, for the proof.
    path: String,
    /// Path and query, as the audience's host sees them.
    target: String,
    headers: HeaderMap,
}

/// A body that can be sent again, or one that flows by.
enum Sent {
    Again(Bytes),
    Once(Body),
}

impl Sent {
    /// A body of known and small size is read whole first: a resource server that wants a nonce says so only then.
    async fn of(body: Incoming) -> Result<Self, ProxyProblem> {
        let small = body
            .size_hint()
            .exact()
            .is_some_and(|bytes| bytes <= REPLAY_BYTES_MAX);
        if !small {
            return Ok(Self::Once(body.boxed()));
        }
        let limit = usize::try_from(REPLAY_BYTES_MAX).unwrap_or(usize::MAX);
        let reading = Limited::new(body, limit).collect();
        let read = tokio::time::timeout(Duration::from_secs(BODY_READ_S), reading)
            .await
            .map_err(|_| {
                ProxyProblem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "BODY",
                    "the body did not come in time",
                )
            })?;
        let read =
            read.map_err(|_| ProxyProblem::new(StatusCode::BAD_REQUEST, "BODY", "the body broke off"))?;
        Ok(Self::Again(read.to_bytes()))
    }
}

/// The proxy's own answer (RFC 9457).
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
}

/// The path shows on a command line, which every user of the machine may read: it is not enough.
fn same_user(stream: &TcpStream, peer: SocketAddr) -> bool {
    stream
        .local_addr()
        .is_ok_and(|here| peer::is_same_user(peer, here))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// The audience's answer for the command.
fn received(response: Response<Incoming>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    head.headers = headers::received(&head.headers);
    Response::from_parts(head, body.boxed())
}

/// The nonce of an answer that asks for one (RFC 9449 §9).
fn wanted_nonce(response: &Response<Incoming>) -> Option<String> {
    let asks = response.status() == StatusCode::UNAUTHORIZED
        && response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.contains("use_dpop_nonce"));
    if asks {
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

/// Connections of the command at once.
const CONNECTIONS_MAX: usize = 64;
const HEADERS_MAX: usize = 100;
/// Request line and headers, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Largest body that is kept to be sent again, in bytes.
const REPLAY_BYTES_MAX: u64 = 64 * 1024;
/// For the command to send a head.
const HEAD_READ_S: u64 = 30;
/// For the command to send a small body.
const BODY_READ_S: u64 = 30;
/// For the audience to begin its answer. Bodies may flow as long as the command runs.
const ANSWER_S: u64 = 120;
const ACCEPT_PAUSE_MS: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_taken_only_in_its_form() {
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
