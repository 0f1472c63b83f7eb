//! The search of the journal.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::moments::Moment;
use super::page::{self, Page};
use super::visit::Call;
use super::{Console, answer};

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
    let visitor = match page::visitor(&console, &call) {
        Ok(visitor) => visitor,
        Err(response) => return response,
    };
    let query = asked.q.unwrap_or_default();
    let query = query.trim();
    match console
        .hall
        .search(&call.presented, query, asked.below)
        .await
    {
        Ok(found) => {
            let now = console.hall.now();
            answer::html(&JournalPage {
                page: Page::new(&console, &call, &visitor, "Journal".to_owned()),
                moments: found.moments.iter().map(|m| Moment::new(m, now)).collect(),
                next: found
                    .next
                    .map(|below| format!("/console/journal?q={}&below={below}", encoded(query))),
                query: query.to_owned(),
            })
        }
        Err(refusal) => answer::refused(&console, &call, &refusal),
    }
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
