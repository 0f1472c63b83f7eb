//! Before any page: the headers of every answer, the console's one address, and where a change comes from.

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

use super::answer;
use super::{Console, rows};

/// On every answer under `/console`, refusals of any layer included. Nothing is fetched, framed or run but what this broker
/// itself serves; nothing is kept (CSP Level 3, HTML §7.1.3).
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    // Not "no-referrer": with that a browser says `Origin: null` on a form's POST, and ours would be refused.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "publickey-credentials-get=(self), publickey-credentials-create=(self)",
    ),
];

/// Puts the console's headers on whatever answers a path of its own.
pub(crate) async fn dressed(request: Request, next: Next) -> Response {
    let ours = rows::is_ours(request.uri().path());
    let mut response = next.run(request).await;
    if ours {
        let headers = response.headers_mut();
        for (name, value) in HEADERS {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
    }
    response
}

/// INVARIANT (closed by default): no handler sees a path without a row, a method the row does not have, another host, or a
/// change that was not asked for by a page of this console.
pub(super) async fn kept(
    State(console): State<Arc<Console>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(row) = rows::of(request.uri().path()) else {
        return answer::lost(&console);
    };
    if !row.takes(request.method()) {
        return (StatusCode::METHOD_NOT_ALLOWED, "not this method\n").into_response();
    }
    if !is_addressed(&console.origin, &request) {
        // A name of somebody else's may lead here (DNS rebinding): it gets nothing.
        return answer::elsewhere(&console);
    }
    if row.changes() && !is_from_here(&console.origin, request.headers()) {
        console.refused("origin", row);
        return answer::foreign(&console, row);
    }
    request.extensions_mut().insert(row);
    next.run(request).await
}

/// Whether a request names the console's own host, in its target and in `Host` (RFC 9110 §7.2).
fn is_addressed(origin: &str, request: &Request) -> bool {
    let wanted = origin.split_once("://").map_or(origin, |(_, host)| host);
    let mut named = request
        .uri()
        .authority()
        .map(|authority| authority.as_str().as_bytes())
        .into_iter()
        .chain(
            request
                .headers()
                .get_all(header::HOST)
                .iter()
                .map(HeaderValue::as_bytes),
        )
        .peekable();
    named.peek().is_some()
        && named.all(|name| {
            Authority::try_from(name).is_ok_and(|name| name.as_str().eq_ignore_ascii_case(wanted))
        })
}

/// Whether a change is asked for by a page of this console: `Origin` says so (RFC 6454 §7), and `Sec-Fetch-Site` (Fetch
/// Metadata) does not say otherwise.
fn is_from_here(origin: &str, headers: &HeaderMap) -> bool {
    let one = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        let first = values.next();
        (first, values.next().is_some())
    };
    let (from, twice) = one(&header::ORIGIN);
    let site = HeaderName::from_static("sec-fetch-site");
    let (site, site_twice) = one(&site);
    !twice
        && !site_twice
        && from.is_some_and(|from| from.as_bytes() == origin.as_bytes())
        && site.is_none_or(|site| site.as_bytes() == b"same-origin")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "http://localhost:7700";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().expect("a value"));
        }
        map
    }

    #[test]
    fn only_our_own_pages_change_anything() {
        let from_here = |pairs: &[(&'static str, &str)]| is_from_here(OURS, &headers(pairs));
        assert!(from_here(&[("origin", OURS)]));
        assert!(from_here(&[
            ("origin", OURS),
            ("sec-fetch-site", "same-origin")
        ]));
        for foreign in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "http://localhost:7701")],
            &[("origin", "http://localhost")],
            &[("origin", "https://localhost:7700")],
            &[("origin", "http://localhost:7700.evil.example")],
            &[("origin", "http://localhost:7700/")],
            &[("origin", "http://LOCALHOST:7700")],
            &[("origin", OURS), ("origin", OURS)],
            &[("origin", OURS), ("sec-fetch-site", "cross-site")],
            &[("origin", OURS), ("sec-fetch-site", "same-site")],
            &[("origin", OURS), ("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin")],
            &[("referer", "http://localhost:7700/console")],
        ] {
            assert!(!from_here(foreign), "{foreign:?}");
        }
    }

    #[test]
    fn only_our_own_name_is_answered() {
        let addressed = |uri: &str, hosts: &[&str]| {
            let mut request = Request::new(axum::body::Body::empty());
            *request.uri_mut() = uri.parse().expect("uri");
            for host in hosts {
                request
                    .headers_mut()
                    .append(header::HOST, host.parse().expect("a value"));
            }
            is_addressed(OURS, &request)
        };
        assert!(addressed("/console", &["localhost:7700"]));
        assert!(addressed("http://localhost:7700/console", &[]));
        for (uri, hosts) in [
            ("/console", &[][..]),
            ("/console", &["127.0.0.1:7700"]),
            ("/console", &["localhost"]),
            ("/console", &["evil.example:7700"]),
            ("/console", &["localhost:7700", "evil.example"]),
            ("http://evil.example/console", &["localhost:7700"]),
        ] {
            assert!(!addressed(uri, hosts), "{uri} {hosts:?}");
        }
    }
}
