//! Console responses: pages, JSON, and errors in the form of their route. Error texts come from the one table of reasons;
//! without a session a request learns only that it needs one.

use askama::Template;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::ConsoleError;
use super::page::{self, Page};
use super::state::Console;
use crate::broker::Refusal;
use crate::model::text::{self, escape_invisible_capped};
use crate::model::{Code, ParseError, Reason};
use crate::serve::errors::{self, ErrorForm};
use crate::serve::request_log::route_label;
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
    correlation: String,
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
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
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
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Parses a JSON body of the script: with JSON as its content type, and without unknown members.
pub(super) fn parse_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<T, ConsoleError> {
    let kind = headers.get(header::CONTENT_TYPE);
    // A form of another site cannot send this type without a preflight (Fetch, "CORS-safelisted").
    if kind.is_none_or(|kind| kind.as_bytes() != b"application/json") {
        return Err(ConsoleError::MediaType);
    }
    serde_json::from_slice(body).map_err(|error| ParseError::new("body", json_rule(&error)).into())
}

/// What is wrong with a body: the name of a member that is missing or unknown, or the place of what is wrong. Never a value.
fn json_rule(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let member = ["missing field `", "unknown field `", "duplicate field `"]
        .iter()
        .any(|start| text.starts_with(start));
    if member {
        let sentence = text.split(", expected").next().unwrap_or_default();
        let sentence = sentence.split(" at line").next().unwrap_or_default();
        return text::cut(sentence, MESSAGE_CHARS_MAX).0.to_owned();
    }
    format!(
        "expected JSON with the members of this call, got something else at line {} column {}",
        error.line(),
        error.column()
    )
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
        ConsoleError::ParseError(error) => {
            let refusal = console.broker.malformed(route.name, &error);
            render_refusal(console, route, path, &refusal)
        }
        ConsoleError::MediaType => {
            let error = ParseError::new("content-type", "expected `application/json`");
            let refusal = console.broker.malformed(route.name, &error);
            error_response(console, route, StatusCode::UNSUPPORTED_MEDIA_TYPE, &refusal)
        }
        ConsoleError::Overloaded { retry_after } => {
            let refusal = console.admission.shed(retry_after);
            render_refusal(console, route, path, &refusal)
        }
        ConsoleError::NotFound => StatusCode::NOT_FOUND.into_response(),
    }
}

fn render_refusal(console: &Console, route: &Route, path: &str, refusal: &Refusal) -> Response {
    if refusal.reason.code() == Code::Unauthenticated && route.kind == RouteKind::Page {
        // Without a session, or after its end: to the sign-in page, and back here after it.
        let redirect = Redirect::to(&page::sign_in_url(path)).into_response();
        return errors::mark_unlogged(redirect, refusal);
    }
    error_response(console, route, errors::http_status(refusal.reason), refusal)
}

fn error_response(
    console: &Console,
    route: &Route,
    status: StatusCode,
    refusal: &Refusal,
) -> Response {
    match route.kind {
        RouteKind::Page | RouteKind::Form => error_page(console, status, refusal),
        RouteKind::Json
        | RouteKind::SignedJson
        | RouteKind::Fragment
        | RouteKind::Stream
        | RouteKind::Asset => errors::problem(status, refusal),
    }
}

fn error_page(console: &Console, status: StatusCode, refusal: &Refusal) -> Response {
    let code = refusal.reason.code();
    let (title, advice) = title_and_advice(code);
    let page = ErrorPage {
        page: Page::signed_out(console, title),
        title,
        message: escape_invisible_capped(&refusal.message, MESSAGE_CHARS_MAX),
        advice,
        correlation: refusal.correlation.to_string(),
        link: match code {
            Code::Unauthenticated => ("/console/sign-in", "Sign in"),
            _ => TO_INBOX,
        },
    };
    errors::with_error_headers(with_status(status, &page), refusal)
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
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DeadlineExceeded
        | Code::Internal => ("Request failed", "Go back, reload the page and try again."),
    }
}

/// The page for a path without a route.
pub(super) fn not_found(console: &Console, path: &str) -> Response {
    let refusal = Refusal {
        message: "The console has no such page.".to_owned(),
        ..console.broker.refuse_unauthenticated(
            route_label(path),
            Reason::NotFound,
            "the console has no page with this path",
        )
    };
    error_page(console, StatusCode::NOT_FOUND, &refusal)
}

/// The response to a request for another host.
pub(super) fn misdirected(console: &Console, route: &Route, form: ErrorForm) -> Response {
    let refusal = Refusal {
        message: format!(
            "this host name is not the console's: open {}/console",
            console.origin
        ),
        ..console.broker.refuse_unauthenticated(
            route.name,
            Reason::NotPermitted,
            "the host of the request is not the console's",
        )
    };
    errors::respond(
        &console.broker,
        form,
        StatusCode::MISDIRECTED_REQUEST,
        &refusal,
    )
}

/// The response to a change that another site requested, or to a page that it would not show.
pub(super) fn cross_site(console: &Console, route: &Route, refusal: &Refusal) -> Response {
    error_response(console, route, StatusCode::FORBIDDEN, refusal)
}
