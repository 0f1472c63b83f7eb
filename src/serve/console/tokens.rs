//! Tokens that are good now, and their end.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;

use super::page::Page;
use super::session_cookie::Call;
use super::show::{Moment, shown};
use super::{Console, answer};
use crate::broker::{LiveToken, Refusal};
use crate::model::{Timestamp, TokenId};
use crate::serve::call::note;

/// Tokens on one page.
const ROWS_MAX: usize = 100;

#[derive(Template)]
#[template(path = "tokens.html", config = "src/serve/console/askama.toml")]
struct TokensPage {
    page: Page,
    tokens: Vec<Row>,
    done: Option<String>,
    next: Option<String>,
}

struct Row {
    jti: String,
    action: String,
    target: String,
    agent: String,
    owner: String,
    task: String,
    audience: String,
    profiles: String,
    uses: String,
    until: Moment,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    after: Option<String>,
    revoked: Option<String>,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    Query(asked): Query<Asked>,
    call: Call,
) -> Response {
    let page = live(&console, &call, &asked).await;
    answer::of(&console, &call, page)
}

async fn live(console: &Console, call: &Call, asked: &Asked) -> Result<Response, Refusal> {
    let visitor = console.broker.signed_in_user(&call.presented)?;
    let read = |text: &String| {
        TokenId::parse(text).map_err(|error| answer::malformed(console, call, &error))
    };
    let after = asked.after.as_ref().map(read).transpose()?;
    let revoked = asked.revoked.as_ref().map(read).transpose()?;
    let tokens = console
        .broker
        .live_tokens(&call.presented, after, ROWS_MAX)
        .await?;
    let now = console.broker.now();
    let last = tokens.last().filter(|_| tokens.len() >= ROWS_MAX);
    Ok(answer::html(&TokensPage {
        page: Page::new(console, call, &visitor, "Live tokens"),
        next: last.map(|token| token.jti.to_string()),
        tokens: tokens.iter().map(|token| row(token, now)).collect(),
        done: revoked.map(|jti| format!("{jti} is revoked: no validator takes it any more.")),
    }))
}

fn row(token: &LiveToken, now: Timestamp) -> Row {
    let profiles: Vec<&str> = token.profiles.iter().map(|name| name.as_str()).collect();
    Row {
        jti: token.jti.to_string(),
        action: shown(token.action.as_str()),
        target: shown(token.target.to_string()),
        agent: shown(token.agent.as_str()),
        owner: shown(token.owner.as_str()),
        task: token.task.to_string(),
        audience: shown(token.audience.as_str()),
        profiles: if profiles.is_empty() {
            "rules alone".to_owned()
        } else {
            shown(profiles.join(", "))
        },
        uses: token
            .uses_left
            .map_or_else(|| "any".to_owned(), |uses| uses.to_string()),
        until: Moment::new(token.expires_at, now),
    }
}

/// Ends a token. One that is dead already is dead: the answer is the same.
pub(super) async fn revoke(
    State(console): State<Arc<Console>>,
    Path(jti): Path<String>,
    call: Call,
) -> Response {
    let revoked = revoked(&console, &call, &jti).await;
    answer::of(&console, &call, revoked)
}

async fn revoked(console: &Console, call: &Call, jti: &str) -> Result<Response, Refusal> {
    let jti = TokenId::parse(jti).map_err(|error| answer::malformed(console, call, &error))?;
    note("token", &jti);
    console.broker.revoke_token(&call.presented, jti).await?;
    Ok(Redirect::to(&format!("/console/tokens?revoked={jti}")).into_response())
}
