//! Journal search: the page that finds entries by the ids and words they name.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::error::ConsoleError;
use super::format::escape;
use super::page::Page;
use super::response;
use super::session_cookie::{ConsoleRequest, QueryString};
use super::state::Console;
use super::timeline_rows::TimelineRow;

#[derive(Template)]
#[template(path = "journal.html", config = "src/serve/console/askama.toml")]
struct JournalPage {
    page: Page,
    query: String,
    events: Vec<TimelineRow>,
    next: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct JournalQuery {
    q: Option<String>,
    below: Option<u64>,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    QueryString(query): QueryString<JournalQuery>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let text = query.q.as_deref().unwrap_or_default().trim();
    let found = console
        .broker
        .search(&request.context, text, query.below)
        .await?;
    let now = console.broker.now();
    let older = |below| format!("/console/journal?q={}&below={below}", encode(text));
    Ok(response::html(&JournalPage {
        page: Page::new(&console, &request, &user, "Journal"),
        events: found
            .events
            .iter()
            .map(|event| TimelineRow::new(event, now))
            .collect(),
        next: found.next.map(older),
        query: escape(text),
    }))
}

/// All but the unreserved characters (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The value of a query parameter.
fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn query_is_percent_encoded() {
        assert_eq!(encode("Account::ann"), "Account%3A%3Aann");
        assert_eq!(encode("a&b=c#d é\""), "a%26b%3Dc%23d%20%C3%A9%22");
        assert_eq!(encode("areq_A-b_9"), "areq_A-b_9");
    }
}
