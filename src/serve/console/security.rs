//! Console security: response headers (CSP), host check, CSRF protection and Fetch Metadata, before any handler.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

use super::error::ConsoleError;
use super::response;
use super::session_cookie;
use super::state::Console;
use crate::model::HttpOrigin;
use crate::serve::errors::ErrorForm;
use crate::serve::routes::{self, ProofOfAct, Route, RouteKind};

/// On every response under `/console`, refusals of any layer included: the browser loads, frames and runs only content of
/// this broker, and caches none (CSP Level 3, HTML §7.1.3).
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    // Not "no-referrer": with it a browser sends `Origin: null` on a form's POST, which is refused.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "publickey-credentials-get=(self), publickey-credentials-create=(self)",
    ),
];

/// Adds the console's security headers to every response under `/console`.
pub(crate) async fn add_security_headers(request: Request, next: Next) -> Response {
    let is_console = routes::is_console_path(request.uri().path());
    let mut response = next.run(request).await;
    if is_console {
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

/// INVARIANT (deny by default): no handler sees a path without a route, a method the route does not take, another host, a
/// change that no page of this console requested, a page load that no person would see, or an incomplete body. Renders the
/// errors of handlers. Prolongs the session after an act of the person's own that succeeded, and after nothing else.
pub(super) async fn guard(
    State(console): State<Arc<Console>>,
    mut request: Request,
    next: Next,
) -> Response {
    let form = ErrorForm::of(&request);
    let route = routes::route(request.uri().path());
    // HEAD too: the time to read a card runs from its request, and a response without the page would start it unseen.
    let allowed = route.map_or(Method::GET, Route::method);
    if request.method() != allowed && (route.is_some() || request.method() == Method::HEAD) {
        return method_not_allowed(&allowed);
    }
    let Some(route) = route else {
        return match form {
            ErrorForm::Page => response::not_found(&console, request.uri().path()),
            ErrorForm::Problem | ErrorForm::Grpc => StatusCode::NOT_FOUND.into_response(),
        };
    };
    if !host_matches(&console.origin, &request) {
        // A foreign name may resolve to this address (DNS rebinding).
        return response::misdirected(&console, route, form);
    }
    if route.is_mutation() && !is_same_origin(&console.origin, request.headers()) {
        let why = "cross-site request: a page of another site sent it";
        return response::cross_site(&console, route, &console.refuse_cross_site(why, route));
    }
    if !route.is_mutation()
        && route.kind != RouteKind::Asset
        && !is_user_navigation(request.headers())
    {
        let why = "cross-site request: no person would see the page";
        return response::cross_site(&console, route, &console.refuse_cross_site(why, route));
    }
    if route.is_mutation() {
        request = match buffer_body(request).await {
            Ok(request) => request,
            Err(response) => return response,
        };
    }
    let path = request.uri().path().to_owned();
    let acting = is_own_act(route, request.headers())
        .then(|| session_cookie::cookie(console.origin.is_https(), request.headers()))
        .flatten();
    request.extensions_mut().insert(route);
    let mut response = next.run(request).await;
    let status = response.status();
    // A repeated vote is answered like the first, without a look at its assertion: a script can send it.
    let is_act = response.extensions_mut().remove::<NoOwnAct>().is_none()
        && (status.is_success() || status.is_redirection());
    if let Some(session) = acting.filter(|_| is_act) {
        console.broker.record_own_act(&session);
    }
    match response.extensions_mut().remove::<ConsoleError>() {
        Some(error) => response::render_error(&console, route, &path, error),
        None => response,
    }
}

/// Marks the answer of a request that was no act of the person, though its kind is.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoOwnAct;

fn method_not_allowed(allowed: &Method) -> Response {
    let allow = [(header::ALLOW, allowed.as_str())];
    (StatusCode::METHOD_NOT_ALLOWED, allow).into_response()
}

/// The request with its body read: a call takes its permit when all of it has arrived, so that a slow sender holds none.
/// The body's size and time are limited as for every call.
async fn buffer_body(request: Request) -> Result<Request, Response> {
    let (parts, body) = request.into_parts();
    match Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await {
        Ok(body) => Ok(Request::from_parts(parts, Body::from(body))),
        Err(error) => Err(error.status().into_response()),
    }
}

/// Whether a request names the console's own host, in its target and in `Host` (RFC 9110 §7.2).
fn host_matches(origin: &HttpOrigin, request: &Request) -> bool {
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
    named.peek().is_some() && named.all(|name| origin.is_named_by(name))
}

/// Whether a page of this console sent the request: `Origin` says so (RFC 6454 §7), and `Sec-Fetch-Site` (Fetch Metadata)
/// does not contradict it.
fn is_same_origin(origin: &HttpOrigin, headers: &HeaderMap) -> bool {
    let single = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        let first = values.next();
        (first, values.next().is_some())
    };
    let (from, twice) = single(&header::ORIGIN);
    let site = HeaderName::from_static("sec-fetch-site");
    let (site, site_twice) = single(&site);
    !twice
        && !site_twice
        && from.is_some_and(|from| from.as_bytes() == origin.as_str().as_bytes())
        && site.is_none_or(|site| site.as_bytes() == b"same-origin")
}

/// Whether a person would see the response (Fetch Metadata): in a window, or on the console page that fetches it. The time
/// to read a card runs from its request; another site that fetches it as an image, in a frame or ahead of time would let
/// that time pass unseen.
fn is_user_navigation(headers: &HeaderMap) -> bool {
    let all = |name: &'static str| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let prefetch = all("sec-purpose").next().is_some();
    let same_site = all("sec-fetch-site").all(|site| matches!(site, b"same-origin" | b"none"));
    !prefetch
        && all("sec-fetch-dest").count() <= 1
        && match all("sec-fetch-dest").next() {
            Some(b"document") => true,
            Some(b"empty") | None => same_site,
            Some(_) => false,
        }
}

/// Whether the person made the request, and not a page of theirs that is open. A browser without Fetch Metadata does not say so,
/// and counts as a page: its session ends an hour after the sign-in or the last vote.
fn is_own_act(route: &Route, headers: &HeaderMap) -> bool {
    let is = |name: &'static str, wanted: &str| {
        let mut values = headers.get_all(name).iter();
        values
            .next()
            .is_some_and(|value| value.as_bytes() == wanted.as_bytes())
            && values.next().is_none()
    };
    match route.kind.proof_of_act() {
        ProofOfAct::None => false,
        ProofOfAct::UserNavigation => {
            is("sec-fetch-mode", "navigate") && is("sec-fetch-user", "?1")
        }
        ProofOfAct::Assertion => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "http://localhost:7700";

    fn origin() -> HttpOrigin {
        HttpOrigin::parse("url", OURS).expect("an origin")
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().expect("a value"));
        }
        map
    }

    #[test]
    fn cross_origin_posts_are_rejected() {
        let same_origin =
            |pairs: &[(&'static str, &str)]| is_same_origin(&origin(), &headers(pairs));
        assert!(same_origin(&[("origin", OURS)]));
        assert!(same_origin(&[
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
            assert!(!same_origin(foreign), "{foreign:?}");
        }
    }

    #[test]
    fn non_navigation_fetches_are_rejected() {
        let navigation = |pairs: &[(&'static str, &str)]| is_user_navigation(&headers(pairs));
        for shown in [
            &[][..],
            &[("sec-fetch-dest", "document"), ("sec-fetch-site", "none")],
            // A link in a chat opens a window that shows the card.
            &[
                ("sec-fetch-dest", "document"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[
                ("sec-fetch-dest", "empty"),
                ("sec-fetch-site", "same-origin"),
            ],
        ] {
            assert!(navigation(shown), "{shown:?}");
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
            assert!(!navigation(unseen), "{unseen:?}");
        }
    }

    #[test]
    fn foreign_host_header_is_rejected() {
        let matches = |uri: &str, hosts: &[&str]| {
            let mut request = Request::new(axum::body::Body::empty());
            *request.uri_mut() = uri.parse().expect("uri");
            for host in hosts {
                request
                    .headers_mut()
                    .append(header::HOST, host.parse().expect("a value"));
            }
            host_matches(&origin(), &request)
        };
        assert!(matches("/console", &["localhost:7700"]));
        assert!(matches("http://localhost:7700/console", &[]));
        for (uri, hosts) in [
            ("/console", &[][..]),
            ("/console", &["127.0.0.1:7700"]),
            ("/console", &["localhost"]),
            ("/console", &["evil.example:7700"]),
            ("/console", &["localhost:7700", "evil.example"]),
            ("http://evil.example/console", &["localhost:7700"]),
        ] {
            assert!(!matches(uri, hosts), "{uri} {hosts:?}");
        }
    }
}
