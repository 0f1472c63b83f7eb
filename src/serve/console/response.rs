//! Console responses: pages, JSON, and errors in the form of their route. Error texts come from the one table of reasons;
//! without a session a request learns only that it needs one.

use std::time::Duration;

use askama::Template;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::error::ConsoleError;
use super::page::{self, Page};
use super::state::Console;
use crate::broker::Refusal;
use crate::model::text::escape_invisible_capped;
use crate::model::{Code, ParseError, Reason};
use crate::serve::routes::{Route, RouteKind};

/// Longest message shown of a refusal, in characters.
const MESSAGE_CHARS_MAX: usize = 500;

#[derive(Template)]
#[template(path = "error.html", config = "src/serve/console/askama.toml")]
struct ErrorPage {
    page: Page,
    title: &'static str,
    message: String,
    advice: &'static str,
    correlation: Option<String>,
    link: (&'static str, &'static str),
}

/// A page.
pub(super) fn html(page: &impl Template) -> Response {
    with_status(StatusCode::OK, page)
}

fn with_status(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => {
            let kind = HeaderValue::from_static("text/html; charset=utf-8");
            (status, [(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "page rendering failed");
            let message = "the page could not be rendered; see the broker's log\n";
            (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        }
    }
}

/// JSON for the script.
pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => {
            let kind = HeaderValue::from_static("application/json");
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "response serialization failed");
            let message = "the response could not be serialized; see the broker's log\n";
            (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        }
    }
}

/// Parses a JSON body of the script: with JSON as its content type, and without unknown members.
pub(super) fn parse_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<T, ParseError> {
    let kind = headers.get(header::CONTENT_TYPE);
    // A form of another site cannot send this type without a preflight (Fetch, "CORS-safelisted").
    if kind.is_none_or(|kind| kind.as_bytes() != b"application/json") {
        return Err(ParseError::new("body", "must be application/json"));
    }
    serde_json::from_slice(body)
        .map_err(|_| ParseError::new("body", "must be JSON with the members of this call"))
}

/// Renders the error of a handler in the form of its route.
pub(super) fn render_error(
    console: &Console,
    route: &Route,
    path: &str,
    error: ConsoleError,
) -> Response {
    match error {
        ConsoleError::Refused(refusal) => render_refusal(console, route, path, &refusal),
        ConsoleError::ParseError(error) => render_refusal(
            console,
            route,
            path,
            &console.broker.malformed(route.name, &error),
        ),
        ConsoleError::Overloaded { retry_after } => {
            let reason = Reason::RateLimited;
            let message = reason.text().to_owned();
            error_response(console, route, reason, message, None, Some(retry_after))
        }
        ConsoleError::NotFound => not_found(console),
    }
}

fn render_refusal(console: &Console, route: &Route, path: &str, refusal: &Refusal) -> Response {
    if refusal.reason.code() == Code::Unauthenticated && route.kind == RouteKind::Page {
        // Without a session, or after its end: to the sign-in page, and back here after it.
        return Redirect::to(&page::sign_in_url(path)).into_response();
    }
    let message = escape_invisible_capped(&refusal.message, MESSAGE_CHARS_MAX);
    let correlation = Some(refusal.correlation.to_string());
    let retry = refusal.retry_after;
    error_response(console, route, refusal.reason, message, correlation, retry)
}

fn error_response(
    console: &Console,
    route: &Route,
    reason: Reason,
    message: String,
    correlation: Option<String>,
    retry: Option<Duration>,
) -> Response {
    let status =
        StatusCode::from_u16(reason.code().http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match route.kind {
        RouteKind::Page | RouteKind::Form => {
            let (title, advice) = title_and_advice(reason.code());
            let page = ErrorPage {
                page: Page::signed_out(console, title),
                title,
                message,
                advice,
                correlation,
                link: match reason.code() {
                    Code::Unauthenticated => ("/console/sign-in", "Sign in"),
                    _ => TO_INBOX,
                },
            };
            with_status(status, &page)
        }
        // RFC 9457.
        RouteKind::Json | RouteKind::Fragment | RouteKind::Stream | RouteKind::Asset => {
            let body = json!({
                "reason": reason.as_str(), "detail": message, "correlation": correlation,
            });
            let kind = HeaderValue::from_static("application/problem+json");
            (status, [(header::CONTENT_TYPE, kind)], body.to_string()).into_response()
        }
    };
    if let Some(after) = retry {
        let seconds = HeaderValue::from(after.as_secs().saturating_add(1));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

const TO_INBOX: (&str, &str) = ("/console", "Back to the inbox");

/// The title of an error page, and what to do.
const fn title_and_advice(code: Code) -> (&'static str, &'static str) {
    match code {
        Code::Unauthenticated => ("Sign-in required", "Sign in with your passkey."),
        Code::PermissionDenied => (
            "Not permitted",
            "If you need this, ask an operator to change your roles in the policy bundle.",
        ),
        Code::NotFound => ("Not found", "Check the address, or start from the inbox."),
        Code::ResourceExhausted => ("Too many requests", "Wait a moment and try again."),
        Code::Unavailable | Code::Aborted => {
            ("Temporarily unavailable", "Wait a moment and try again.")
        }
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange => ("Request failed", "Go back, reload the page and try again."),
    }
}

/// The response to a path without a route.
pub(super) fn not_found(console: &Console) -> Response {
    let (title, advice) = title_and_advice(Code::NotFound);
    let page = ErrorPage {
        page: Page::signed_out(console, title),
        title,
        message: "The console has no such page.".to_owned(),
        advice,
        correlation: None,
        link: TO_INBOX,
    };
    with_status(StatusCode::NOT_FOUND, &page)
}

/// The response to a request for another host.
pub(super) fn misdirected(console: &Console) -> Response {
    let message = format!(
        "this host name is not the console's: open {}/console\n",
        console.origin
    );
    (StatusCode::MISDIRECTED_REQUEST, message).into_response()
}

/// The response to a change that another site requested, or to a page that it would not show.
pub(super) fn cross_site(console: &Console, route: &Route) -> Response {
    let message = "The request did not come from a page of this console. Nothing was done.";
    error_response(
        console,
        route,
        Reason::NotPermitted,
        message.to_owned(),
        None,
        None,
    )
}
