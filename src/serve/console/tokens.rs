//! Active tokens, and their revocation.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;

use super::error::ConsoleError;
use super::format::{DisplayTime, escape};
use super::page::Page;
use super::response;
use super::session_cookie::{ConsoleRequest, QueryString};
use super::state::Console;
use crate::broker::LiveToken;
use crate::model::{ParseField as _, Timestamp, TokenId};
use crate::serve::request_log::record;

/// The list that the page tokens of this page belong to.
const LIST: &str = "console tokens";
/// Tokens on one page.
const ROWS_MAX: usize = 100;

#[derive(Template)]
#[template(path = "tokens.html", config = "src/serve/console/askama.toml")]
struct TokensPage {
    page: Page,
    tokens: Vec<TokenRow>,
    outcome: Option<String>,
    next: Option<String>,
}

struct TokenRow {
    jti: String,
    action: String,
    target: String,
    agent: String,
    owner: String,
    task: String,
    audience: String,
    profiles: String,
    uses: String,
    until: DisplayTime,
}

#[derive(Deserialize)]
pub(super) struct TokensQuery {
    after: Option<String>,
    revoked: Option<String>,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    QueryString(query): QueryString<TokensQuery>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let page_tokens = console.broker.page_tokens();
    let after = page_tokens.read(LIST, "", query.after.as_deref().unwrap_or_default())?;
    let revoked = query
        .revoked
        .as_deref()
        .map(TokenId::parse)
        .transpose()
        .at("revoked")?;
    let tokens = console
        .broker
        .live_tokens(&request.context, after, ROWS_MAX)
        .await?;
    let now = console.broker.now();
    let last = tokens.last().filter(|_| tokens.len() >= ROWS_MAX);
    Ok(response::html(&TokensPage {
        page: Page::new(&console, &request, &user, "Live tokens"),
        next: last.map(|token| page_tokens.issue(LIST, "", &token.cursor())),
        tokens: tokens.iter().map(|token| token_row(token, now)).collect(),
        outcome: revoked.map(|jti| format!("Token {jti} is revoked: validators reject it now.")),
    }))
}

fn token_row(token: &LiveToken, now: Timestamp) -> TokenRow {
    let profiles: Vec<&str> = token.profiles.iter().map(|name| name.as_str()).collect();
    TokenRow {
        jti: token.jti.to_string(),
        action: escape(token.action.as_str()),
        target: escape(token.target.in_sentence()),
        agent: escape(token.agent.as_str()),
        owner: escape(token.owner.as_str()),
        task: token.task.to_string(),
        audience: escape(token.audience.as_str()),
        profiles: if profiles.is_empty() {
            "policy alone".to_owned()
        } else {
            escape(profiles.join(", "))
        },
        uses: token
            .uses_left
            .map_or_else(|| "unlimited".to_owned(), |uses| uses.to_string()),
        until: DisplayTime::new(token.expires_at, now),
    }
}

/// Revokes a token. A token that is no longer valid gets the same response.
pub(super) async fn revoke(
    State(console): State<Arc<Console>>,
    Path(jti): Path<String>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let jti = TokenId::parse(&jti).at("jti")?;
    record("token", &jti);
    console.broker.revoke_token(&request.context, jti).await?;
    Ok(Redirect::to(&format!("/console/tokens?revoked={jti}")).into_response())
}
