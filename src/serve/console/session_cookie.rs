//! A signed-in browser, as its cookie says it: nothing but the broker knows whether it is one.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

use super::rows::Row;
use super::{Console, answer};
use crate::broker::CallContext;
use crate::model::Secret;

/// The cookie over plain HTTP, which only loopback has.
const COOKIE: &str = "dipylon-session";
/// Over HTTPS: no other host and no other path can set it (RFC 6265bis §4.1.3.2).
const COOKIE_HTTPS: &str = "__Host-dipylon-session";
/// Longest cookie value looked at, in bytes.
const COOKIE_BYTES_MAX: usize = 256;

/// A call of the console that has its place: which route, and what the browser shows.
pub(super) struct Call {
    pub(super) row: &'static Row,
    pub(super) path: String,
    pub(super) presented: CallContext,
}

impl FromRequestParts<Arc<Console>> for Call {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        console: &Arc<Console>,
    ) -> Result<Self, Response> {
        let Some(row) = parts.extensions.get::<&'static Row>().copied() else {
            return Err(answer::lost(console));
        };
        let permit = console
            .admission
            .permit(row.class)
            .await
            .map_err(|after| answer::too_many(console, row, after))?;
        Ok(Self {
            row,
            path: parts.uri.path().to_owned(),
            presented: CallContext {
                method: row.name,
                allowed_roles: row.admits(),
                proof: None,
                bearer: None,
                session: cookie(is_https(&console.origin), &parts.headers),
                permit,
            },
        })
    }
}

fn is_https(origin: &str) -> bool {
    origin.starts_with("https://")
}

const fn name(https: bool) -> &'static str {
    if https { COOKIE_HTTPS } else { COOKIE }
}

/// The session's cookie. One that stands twice or is too long counts as unreadable: it is then a credential that can never
/// hold.
fn cookie(https: bool, headers: &HeaderMap) -> Option<Secret> {
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b';'))
        .filter_map(|pair| std::str::from_utf8(pair).ok()?.trim_ascii().split_once('='))
        .filter(|(key, _)| *key == name(https))
        .map(|(_, value)| value);
    let first = found.next()?;
    let holds = found.next().is_none() && first.len() <= COOKIE_BYTES_MAX;
    Some(Secret::new(if holds {
        first.to_owned()
    } else {
        String::new()
    }))
}

/// Gives the browser its cookie. It goes when the browser closes, and earlier when the session is over.
pub(super) fn given(origin: &str, session: &Secret) -> Option<HeaderValue> {
    set(origin, session.expose_secret(), "")
}

/// Takes the cookie away.
pub(super) fn taken(origin: &str) -> Option<HeaderValue> {
    set(origin, "", "; Max-Age=0")
}

fn set(origin: &str, value: &str, more: &str) -> Option<HeaderValue> {
    let https = is_https(origin);
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

    #[test]
    fn a_cookie_that_stands_twice_is_none_that_holds() {
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
    fn the_cookie_stays_with_its_site() {
        let session = Secret::new("v".to_owned());
        assert_eq!(
            given("http://localhost:1", &session).expect("a value"),
            "dipylon-session=v; Path=/; HttpOnly; SameSite=Strict"
        );
        assert_eq!(
            given("https://broker.example", &session).expect("a value"),
            "__Host-dipylon-session=v; Path=/; HttpOnly; SameSite=Strict; Secure"
        );
        assert!(
            taken("https://broker.example")
                .expect("a value")
                .to_str()
                .expect("text")
                .contains("; Max-Age=0")
        );
    }
}
