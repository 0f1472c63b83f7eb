//! Before any page: the headers of every answer, the console's one address, where a change comes from, who would see a page.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest as _, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

use super::answer;
use super::rows::Shape;
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

/// INVARIANT (closed by default): no handler sees a path without a row, a method the row does not have, another host, a
/// change that was not asked for by a page of this console, a page that nobody would see, or half a body.
pub(super) async fn kept(
    State(console): State<Arc<Console>>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.method() == Method::HEAD {
        // A card is read from when it is asked for: an answer without its page shows nobody anything.
        return (StatusCode::METHOD_NOT_ALLOWED, "not this method\n").into_response();
    }
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
    if !row.changes() && row.shape != Shape::Asset && !is_seen(request.headers()) {
        console.refused("unseen", row);
        return answer::foreign(&console, row);
    }
    if row.changes() {
        request = match whole(request).await {
            Ok(request) => request,
            Err(response) => return response,
        };
    }
    request.extensions_mut().insert(row);
    next.run(request).await
}

/// The request with its body read: a call takes its place with all it has to say, so that nobody holds one by sending
/// slowly. How much, and how long it may take, is bounded as at every door.
async fn whole(request: Request) -> Result<Request, Response> {
    let (parts, body) = request.into_parts();
    match Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await {
        Ok(body) => Ok(Request::from_parts(parts, Body::from(body))),
        Err(cut) => Err((cut.status(), "the body did not come whole\n").into_response()),
    }
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

/// Whether somebody would see what is asked for (Fetch Metadata): in a window, or on the page of ours that asks. Time to
/// read a card runs from when it is asked for; a page elsewhere that has it fetched as a picture, in a frame or ahead of
/// time would let that time pass unseen.
fn is_seen(headers: &HeaderMap) -> bool {
    let all = |name: &'static str| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let ahead = all("sec-purpose").next().is_some();
    let ours = all("sec-fetch-site").all(|site| matches!(site, b"same-origin" | b"none"));
    !ahead
        && all("sec-fetch-dest").count() <= 1
        && match all("sec-fetch-dest").next() {
            Some(b"document") => true,
            Some(b"empty") | None => ours,
            Some(_) => false,
        }
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
    fn only_what_somebody_would_see_is_shown() {
        let seen = |pairs: &[(&'static str, &str)]| is_seen(&headers(pairs));
        for shown in [
            &[][..],
            &[("sec-fetch-dest", "document"), ("sec-fetch-site", "none")],
            // A link in a chat leads to a window that shows the card.
            &[
                ("sec-fetch-dest", "document"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[
                ("sec-fetch-dest", "empty"),
                ("sec-fetch-site", "same-origin"),
            ],
        ] {
            assert!(seen(shown), "{shown:?}");
        }
        for unseen in [
            &[
                ("sec-fetch-dest", "image"),
                ("sec-fetch-site", "same-origin"),
            ][..],
            &[("sec-fetch-dest", "iframe")],
            &[("sec-fetch-dest", "script")],
            &[("sec-fetch-dest", "")],
            &[("sec-fetch-dest", "empty"), ("sec-fetch-site", "same-site")],
            &[
                ("sec-fetch-dest", "empty"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[("sec-fetch-site", "cross-site")],
            &[
                ("sec-fetch-dest", "document"),
                ("sec-fetch-dest", "document"),
            ],
            &[
                ("sec-fetch-dest", "document"),
                ("sec-purpose", "prefetch;prerender"),
            ],
        ] {
            assert!(!seen(unseen), "{unseen:?}");
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
