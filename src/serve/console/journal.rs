//! The search of the journal.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::moments::Moment;
use super::page::Page;
use super::session_cookie::Call;
use super::show::shown;
use super::{Console, answer};
use crate::broker::Refusal;

#[derive(Template)]
#[template(path = "journal.html", config = "src/serve/console/askama.toml")]
struct JournalPage {
    page: Page,
    query: String,
    moments: Vec<Moment>,
    next: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    q: Option<String>,
    below: Option<u64>,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    Query(asked): Query<Asked>,
    call: Call,
) -> Response {
    let page = found(&console, &call, &asked).await;
    answer::of(&console, &call, page)
}

async fn found(console: &Console, call: &Call, asked: &Asked) -> Result<Response, Refusal> {
    let visitor = console.broker.signed_in_user(&call.presented)?;
    let query = asked.q.as_deref().unwrap_or_default().trim();
    let found = console
        .broker
        .search(&call.presented, query, asked.below)
        .await?;
    let now = console.broker.now();
    let older = |below| format!("/console/journal?q={}&below={below}", encoded(query));
    Ok(answer::html(&JournalPage {
        page: Page::new(console, call, &visitor, "Journal"),
        moments: found.events.iter().map(|m| Moment::new(m, now)).collect(),
        next: found.next.map(older),
        query: shown(query),
    }))
}

/// A query's value, percent-encoded (RFC 3986 §2.1).
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn nothing_leaves_its_place_in_a_link() {
        assert_eq!(encoded("Account::ann"), "Account%3A%3Aann");
        assert_eq!(encoded("a&b=c#d é\""), "a%26b%3Dc%23d%20%C3%A9%22");
        assert_eq!(encoded("areq_A-b_9"), "areq_A-b_9");
    }
}
