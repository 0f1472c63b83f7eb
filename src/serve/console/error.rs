//! Errors of console handlers.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::broker::Refusal;
use crate::model::ParseError;

/// Why a handler has no response. `security::guard` renders it, as a page or as JSON by the kind of the route.
#[derive(Debug, Clone)]
pub(super) enum ConsoleError {
    /// The broker refused the call.
    Refused(Refusal),
    /// The request is malformed.
    ParseError(ParseError),
    /// The body is of another type than the route takes.
    MediaType,
    /// No permit is free.
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The console has no such page.
    NotFound,
}

impl From<Refusal> for ConsoleError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ParseError> for ConsoleError {
    fn from(error: ParseError) -> Self {
        Self::ParseError(error)
    }
}

/// Carries the error to the guard; without the guard it is a bare 500.
impl IntoResponse for ConsoleError {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
