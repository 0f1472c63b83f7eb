//! The upstream of `exec`: the audience's base URL and how it is reached.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::cli::error::CliError;
use crate::client::{ConnectOptions, Protocol, Transport};
use crate::model::text::escape_invisible;

/// A base URL (scheme, host, port, path) and the route to its host.
#[derive(Clone)]
pub(super) struct Upstream {
    scheme: &'static str,
    authority: String,
    /// Without a trailing slash.
    base: String,
    /// Plain http to another host.
    insecure: bool,
    route: Transport,
}

/// Where the audience is, as the caller gave it.
#[derive(Debug, Clone, Copy)]
pub(super) struct UpstreamArgs<'a> {
    /// The audience, or the URL at which it is reached.
    pub(super) url: &'a str,
    /// Trusted authorities (PEM); the system's without it.
    pub(super) ca: Option<&'a Path>,
    /// Allow http to another host.
    pub(super) insecure: bool,
}

/// Why no connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error("the audience cannot be reached")]
    Refused,
    #[error("the audience's certificate is not valid")]
    Untrusted,
    #[error("the audience did not answer in time")]
    Late,
}

impl Upstream {
    /// Parses the URL and reads the authorities; does not connect.
    pub(super) fn new(at: UpstreamArgs<'_>) -> Result<Self, CliError> {
        let wrong = |rule: &str| {
            CliError::usage(format!("audience URL {}: {rule}", escape_invisible(at.url)))
                .with_next_step("give the URL at which the audience is reached with --audience-url")
        };
        let uri: Uri = at.url.parse().map_err(|_| wrong("is not a URL"))?;
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        if at.url.contains(['?', '#', '@']) {
            return Err(wrong("must consist of scheme, host, port and path only"));
        }
        let base = uri.path().trim_end_matches('/').to_owned();
        if has_dot_segments(&base) {
            return Err(wrong(
                "must not have . or .. in its path, nor an encoded form of them",
            ));
        }
        // Uri keeps an IPv6 address in its brackets.
        let host = authority.host();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let (scheme, insecure) = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => ("https", false),
            Some(scheme) if *scheme == Scheme::HTTP => ("http", !here),
            Some(_) | None => return Err(wrong("must begin with https:// or http://")),
        };
        if insecure && !at.insecure {
            return Err(CliError::usage(format!(
                "audience URL {}: over plain http anyone on the network path can read and change requests",
                escape_invisible(at.url)
            ))
            .with_next_step("use https, or allow it with --insecure-audience"));
        }
        let reach = ConnectOptions {
            ca: at.ca.map(Path::to_owned),
            socket: None,
            // Refused above unless it is wanted.
            allow_plain_http: true,
        };
        let route = Transport::new(&format!("{scheme}://{authority}"), &reach)
            .map_err(|error| wrong(&error.to_string()))?;
        Ok(Self {
            scheme,
            authority: authority.as_str().to_owned(),
            base,
            insecure,
            route,
        })
    }

    /// Whether requests cross the network over plain http.
    pub(super) const fn is_insecure(&self) -> bool {
        self.insecure
    }

    /// The `host` header.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// The path at the host, for a path below the base.
    pub(super) fn path(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The URL that a proof names (RFC 9449 §4.2: no query), for a path below the base.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}://{}{}{path}", self.scheme, self.authority, self.base)
    }

    /// The base URL, without a slash at its end.
    pub(super) fn base_url(&self) -> String {
        self.url("")
    }

    /// The path below the base, if the URL is below it and cannot escape from it.
    pub(super) fn path_below_base<'a>(&self, url: &'a str) -> Option<&'a str> {
        let path = url.strip_prefix(&self.base_url())?;
        let inside = path.is_empty() || path.starts_with('/');
        (inside && !has_dot_segments(path) && path.bytes().all(|b| b.is_ascii_graphic()))
            .then_some(path)
    }

    /// A new connection.
    pub(super) async fn connect(
        &self,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, UpstreamError> {
        let bound = Duration::from_secs(CONNECT_TIMEOUT_S);
        tokio::time::timeout(bound, self.route.connect(Protocol::Http1))
            .await
            .map_err(|_| UpstreamError::Late)?
            .map_err(|error| match error.kind() {
                // rustls' error kind for an invalid certificate.
                ErrorKind::InvalidData => UpstreamError::Untrusted,
                _ => UpstreamError::Refused,
            })
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({})", self.base_url())
    }
}

/// Whether a path has a dot segment, backslash or control character in any encoding: it could escape the base, and the proof
/// would name another URL than the one served. Servers percent-decode once or repeatedly (RFC 3986 §2.4), and some strip
/// path parameters first (`/..;x/`): the check covers all of them.
pub(super) fn has_dot_segments(path: &str) -> bool {
    let mut plain = path.as_bytes().to_vec();
    // Ends: a round that changes the path shortens it.
    loop {
        if escapes_base(&plain) {
            return true;
        }
        let decoded = decoded(&plain);
        if decoded == plain {
            return false;
        }
        plain = decoded;
    }
}

fn escapes_base(path: &[u8]) -> bool {
    path.iter().any(|b| *b == b'\\' || b.is_ascii_control())
        || path.split(|b| *b == b'/').any(|segment| {
            let name = segment.split(|b| *b == b';').next();
            matches!(name, Some(b"." | b".."))
        })
}

/// One round of percent-decoding; invalid encodings stay as they are.
fn decoded(path: &[u8]) -> Vec<u8> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, behind)) = rest.split_first() {
        let encoded = match (first, behind) {
            (b'%', [high, low, after @ ..]) => digit(*high)
                .zip(digit(*low))
                .map(|(high, low)| (high << 4 | low, after)),
            _ => None,
        };
        let (byte, after) = encoded.unwrap_or((*first, behind));
        plain.push(byte);
        rest = after;
    }
    plain
}

/// For the TCP and TLS handshakes.
const CONNECT_TIMEOUT_S: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(url: &str) -> Result<Upstream, CliError> {
        Upstream::new(UpstreamArgs {
            url,
            ca: None,
            insecure: false,
        })
    }

    #[test]
    fn plain_http_requires_loopback() {
        for good in [
            "http://127.0.0.1:8080",
            "http://127.0.0.1:8080/",
            "http://localhost/v1/",
            "http://[::1]:80",
        ] {
            assert!(!upstream(good).expect(good).is_insecure());
        }
        for bad in [
            "http://idp.example",
            "http://10.0.0.1",
            "http://127.0.0.1.example",
            "http://localhost.example",
            "urn:idp",
            "idp",
            "ftp://127.0.0.1",
            "http://user@127.0.0.1",
            "http://127.0.0.1/?x=1",
            "http://127.0.0.1/#x",
            "http://127.0.0.1/a/../b",
            "http://127.0.0.1/a/%2e%2E/b",
        ] {
            assert!(upstream(bad).is_err(), "{bad}");
        }
        let open = Upstream::new(UpstreamArgs {
            url: "http://idp.example",
            ca: None,
            insecure: true,
        });
        assert!(open.expect("allowed").is_insecure());
    }

    #[test]
    fn paths_cannot_escape_the_base_url() {
        let at = upstream("http://127.0.0.1:8080/v1/").expect("upstream");
        assert_eq!(at.url("/x"), "http://127.0.0.1:8080/v1/x");
        assert_eq!(at.path("/x?q=1"), "/v1/x?q=1");
        assert_eq!(at.path_below_base("http://127.0.0.1:8080/v1/x"), Some("/x"));
        assert_eq!(at.path_below_base("http://127.0.0.1:8080/v1"), Some(""));
        for out in [
            "http://127.0.0.1:8080/v2",
            "http://127.0.0.1:8080/v11",
            "http://127.0.0.1:80800/v1/x",
            "http://127.0.0.1:8080@evil/v1",
            "https://127.0.0.1:8080/v1/x",
            "http://127.0.0.1:8080/v1/../x",
            "http://127.0.0.1:8080/v1/%2E%2e/x",
            "http://127.0.0.1:8080/v1/..%2fx",
            "http://127.0.0.1:8080/v1/a b",
        ] {
            assert_eq!(at.path_below_base(out), None, "{out}");
        }
        let root = upstream("http://127.0.0.1:8080").expect("upstream");
        assert_eq!(root.path_below_base("http://127.0.0.1:8080.evil/x"), None);
        assert_eq!(root.path_below_base("http://127.0.0.1:80801/x"), None);
    }

    #[test]
    fn encoded_dot_segments_are_rejected() {
        for bad in [
            "/..",
            "/a/..",
            "/./a",
            "/%2e%2e/a",
            "/a/%2E./b",
            "/a%2f..%2fb",
            "/a\\..\\b",
            "/a%5c..",
            "/a\\b",
            "/..;/a",
            "/a/..;v=1/b",
            "/.;/a",
            "/..%3b/a",
            "/%2e%2e%3Bx/a",
            "/%252e%252e/a",
            "/a/%25252e./b",
            "/a%252f..%252fb",
            "/%25%32%65./a",
            "/%2%35%32e./a",
            "/a%00",
            "/a%2500.json",
            "/a%0d%0ab",
            "/a%7f",
            "/a%255cb",
        ] {
            assert!(has_dot_segments(bad), "{bad}");
        }
        for good in [
            "",
            "/",
            "/a.b/..c/d..",
            "/a/...",
            "/%2541",
            "/a;v=1/b",
            "/a;..",
            "/a;v=..;w/b",
            "/100%/b",
            "/a%2",
            "/a%zz",
            "/a%2Fb",
            "/a%20b",
            "/%C3%A4%E2%82%AC",
            "/~user/.well-known/x",
            "//a",
            "/a%25",
        ] {
            assert!(!has_dot_segments(good), "{good}");
        }
    }
}
