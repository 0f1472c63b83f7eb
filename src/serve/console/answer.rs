//! What goes out: a page, JSON, or a refusal in the form its route answers with. Refusals take their words from the one
//! table of reasons; strangers learn nothing but that they are strangers.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Console;
use super::page::{self, Page};
use super::rows::{Row, Shape};
use super::session_cookie::Call;
use crate::broker::Refusal;
use crate::model::text::escape_invisible_capped;
use crate::model::{Code, ParseError, Reason};

/// Most characters of a refusal's words that are shown.
const TOLD_CHARS_MAX: usize = 500;

#[derive(Template)]
#[template(path = "problem.html", config = "src/serve/console/askama.toml")]
struct ProblemPage {
    page: Page,
    title: &'static str,
    words: String,
    correlation: Option<String>,
    back: &'static str,
    back_words: &'static str,
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
            tracing::error!(%error, "a page was not rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, "no page\n").into_response()
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
            tracing::error!(%error, "an answer was not written");
            (StatusCode::INTERNAL_SERVER_ERROR, "no answer\n").into_response()
        }
    }
}

/// The answer to a call, or its refusal in the form of its route.
pub(super) fn of(console: &Console, call: &Call, answer: Result<Response, Refusal>) -> Response {
    answer.unwrap_or_else(|refusal| refused(console, call, &refusal))
}

/// Reads what the script sent: JSON that says it is JSON, with no member we do not know.
pub(super) fn read<T: DeserializeOwned>(
    console: &Console,
    call: &Call,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<T, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE);
    // A form of another site cannot send this type without asking first (Fetch, "CORS-safelisted").
    let said = kind.is_some_and(|kind| kind.as_bytes() == b"application/json");
    let parsed = if said {
        serde_json::from_slice(body).map_err(|_| "must be JSON of this call's form")
    } else {
        Err("must be application/json")
    };
    parsed.map_err(|why| malformed(console, call, &ParseError::new("body", why)))
}

/// A refusal of what is not of its form.
pub(super) fn malformed(console: &Console, call: &Call, error: &ParseError) -> Refusal {
    console.broker.malformed(call.row.name, error)
}

/// A refusal, in the form of its route.
fn refused(console: &Console, call: &Call, refusal: &Refusal) -> Response {
    if refusal.reason.code() == Code::Unauthenticated && call.row.shape == Shape::Page {
        // Nobody in particular, or no more: the way in, and back here after it.
        return Redirect::to(&page::sign_in_for(&call.path)).into_response();
    }
    let told = escape_invisible_capped(&refusal.told, TOLD_CHARS_MAX);
    let correlation = Some(refusal.correlation.to_string());
    let retry = refusal.retry_after;
    problem(console, call.row, refusal.reason, told, correlation, retry)
}

fn problem(
    console: &Console,
    row: &Row,
    reason: Reason,
    words: String,
    correlation: Option<String>,
    retry: Option<Duration>,
) -> Response {
    let status =
        StatusCode::from_u16(reason.code().http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match row.shape {
        Shape::Page | Shape::Form => {
            let (title, back, back_words) = match reason.code() {
                Code::Unauthenticated => ("Not signed in", "/console/sign-in", "Sign in"),
                Code::PermissionDenied => ("Not yours to do", "/console", "Back to the inbox"),
                Code::NotFound => ("Nothing here", "/console", "Back to the inbox"),
                Code::ResourceExhausted => ("Too much at once", "/console", "Back to the inbox"),
                Code::Unavailable | Code::Aborted => ("Not now", "/console", "Back to the inbox"),
                Code::InvalidArgument
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::OutOfRange => ("That did not work", "/console", "Back to the inbox"),
            };
            let page = ProblemPage {
                page: Page::stranger(console, title),
                title,
                words,
                correlation,
                back,
                back_words,
            };
            with_status(status, &page)
        }
        // RFC 9457.
        Shape::Json | Shape::Fragment | Shape::Stream | Shape::Asset => {
            let body = json!({
                "reason": reason.as_str(), "detail": words, "correlation": correlation,
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

/// No place for a call now.
pub(super) fn too_many(console: &Console, row: &Row, after: Duration) -> Response {
    let reason = Reason::RateLimited;
    problem(
        console,
        row,
        reason,
        reason.text().to_owned(),
        None,
        Some(after),
    )
}

/// A path nobody serves.
pub(super) fn lost(console: &Arc<Console>) -> Response {
    let title = "Nothing here";
    let page = ProblemPage {
        page: Page::stranger(console, title),
        title,
        words: "The console has no such page.".to_owned(),
        correlation: None,
        back: "/console",
        back_words: "To the inbox",
    };
    with_status(StatusCode::NOT_FOUND, &page)
}

/// A request for another host.
pub(super) fn elsewhere(console: &Console) -> Response {
    let told = format!("the console's address is {}/console\n", console.origin);
    (StatusCode::MISDIRECTED_REQUEST, told).into_response()
}

/// A change that another page asked for, or a page that it would not show.
pub(super) fn foreign(console: &Console, row: &Row) -> Response {
    let reason = Reason::NotPermitted;
    let words = "This did not come from a page of this console. Nothing was done.".to_owned();
    problem(console, row, reason, words, None, None)
}
