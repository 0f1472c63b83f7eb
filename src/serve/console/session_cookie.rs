//! The session cookie, and the call context of a console request. Only the broker knows whether the session is valid.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use serde::de::DeserializeOwned;

use super::error::ConsoleError;
use super::state::Console;
use crate::broker::CallContext;
use crate::model::{HttpOrigin, ParseError, Secret};
use crate::serve::routes::Route;

/// The cookie over plain HTTP, which only loopback has.
const COOKIE: &str = "dipylon-session";
/// Over HTTPS: no other host and no other path can set it (RFC 6265bis §4.1.3.2).
const COOKIE_HTTPS: &str = "__Host-dipylon-session";
/// Longest cookie value that is read, in bytes.
const COOKIE_BYTES_MAX: usize = 256;

/// A console request with its concurrency permit: its route, its path, and the credentials the browser sent.
pub(super) struct ConsoleRequest {
    pub(super) route: &'static Route,
    pub(super) path: String,
    pub(super) context: CallContext,
}

impl FromRequestParts<Arc<Console>> for ConsoleRequest {
    type Rejection = ConsoleError;

    async fn from_request_parts(
        parts: &mut Parts,
        console: &Arc<Console>,
    ) -> Result<Self, ConsoleError> {
        let route = parts.extensions.get::<&'static Route>().copied();
        let route = route.ok_or(ConsoleError::NotFound)?;
        let permit = console
            .admission
            .acquire_console(route.class)
            .await
            .map_err(|retry_after| ConsoleError::Overloaded { retry_after })?;
        Ok(Self {
            route,
            path: parts.uri.path().to_owned(),
            context: CallContext {
                method: route.name,
                allowed_roles: route.allowed_roles(),
                proof: None,
                bearer: None,
                session: cookie(console.origin.is_https(), &parts.headers),
                permit,
            },
        })
    }
}

/// The query of a page; one that cannot be read is malformed.
pub(super) struct QueryString<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Console>> for QueryString<T> {
    type Rejection = ConsoleError;

    async fn from_request_parts(
        parts: &mut Parts,
        _console: &Arc<Console>,
    ) -> Result<Self, ConsoleError> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(_) => Err(ParseError::new(
                "query",
                "expected the parameters of this page, each at most once",
            )
            .into()),
        }
    }
}

const fn name(https: bool) -> &'static str {
    if https { COOKIE_HTTPS } else { COOKIE }
}

/// The value of the session cookie. A cookie that appears twice or is too long counts as unreadable: a credential that can
/// never verify. Parsed here because the `cookie` crate is not a dependency and would hide a duplicate.
pub(super) fn cookie(https: bool, headers: &HeaderMap) -> Option<Secret> {
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b';'))
        .filter_map(|pair| std::str::from_utf8(pair).ok()?.trim_ascii().split_once('='))
        .filter(|(key, _)| *key == name(https))
        .map(|(_, value)| value);
    let first = found.next()?;
    let is_readable = found.next().is_none() && first.len() <= COOKIE_BYTES_MAX;
    Some(Secret::new(if is_readable {
        first.to_owned()
    } else {
        String::new()
    }))
}

/// The header that sets the cookie. It ends when the browser closes, and earlier when the session ends.
pub(super) fn set_cookie(origin: &HttpOrigin, session: &Secret) -> Option<HeaderValue> {
    cookie_header(origin, session.expose_secret(), "")
}

/// The header that removes the cookie.
pub(super) fn clear_cookie(origin: &HttpOrigin) -> Option<HeaderValue> {
    cookie_header(origin, "", "; Max-Age=0")
}

fn cookie_header(origin: &HttpOrigin, value: &str, more: &str) -> Option<HeaderValue> {
    let https = origin.is_https();
    let secure = if https { "; Secure" } else { "" };
    let text = format!(
        "{}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{more}",
        name(https)
    );
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> HttpOrigin {
        HttpOrigin::parse("url", url).expect("an origin")
    }

    #[test]
    fn duplicate_cookie_is_rejected() {
        let read = |https: bool, values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::COOKIE, value.parse().expect("a value"));
            }
            cookie(https, &headers).map(|secret| secret.expose_secret().to_owned())
        };
        assert_eq!(
            read(false, &["a=b; dipylon-session=x"]).as_deref(),
            Some("x")
        );
        assert_eq!(
            read(false, &["a=b", "dipylon-session=x"]).as_deref(),
            Some("x")
        );
        assert_eq!(read(false, &["a=b; other-dipylon-session=x"]), None);
        let twice = ["dipylon-session=x; dipylon-session=y"];
        assert_eq!(read(false, &twice).as_deref(), Some(""));
        let long = format!("dipylon-session={}", "x".repeat(COOKIE_BYTES_MAX + 1));
        assert_eq!(read(false, &[&long]).as_deref(), Some(""));
        assert_eq!(read(true, &["dipylon-session=x"]), None);
        assert_eq!(
            read(true, &["__Host-dipylon-session=x"]).as_deref(),
            Some("x")
        );
    }

    #[test]
    fn cookie_attributes() {
        let session = Secret::new("v".to_owned());
        assert_eq!(
            set_cookie(&origin("http://localhost:1"), &session).expect("a value"),
            "dipylon-session=v; Path=/; HttpOnly; SameSite=Strict"
        );
        assert_eq!(
            set_cookie(&origin("https://broker.example"), &session).expect("a value"),
            "__Host-dipylon-session=v; Path=/; HttpOnly; SameSite=Strict; Secure"
        );
        assert!(
            clear_cookie(&origin("https://broker.example"))
                .expect("a value")
                .to_str()
                .expect("text")
                .contains("; Max-Age=0")
        );
    }
}
