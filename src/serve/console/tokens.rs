//! Tokens that are good now, and their end.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;

use super::page::{self, Page};
use super::show::{Moment, shown};
use super::visit::Call;
use super::{Console, answer};
use crate::broker::LiveToken;
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
    let visitor = match page::visitor(&console, &call) {
        Ok(visitor) => visitor,
        Err(response) => return response,
    };
    let after = asked.after.as_deref().map(TokenId::parse).transpose();
    let listed = match after {
        Ok(after) => {
            console
                .hall
                .live_tokens(&call.presented, after, ROWS_MAX)
                .await
        }
        Err(error) => Err(console.hall.malformed(call.row.name, &error)),
    };
    match listed {
        Ok(tokens) => {
            let now = console.hall.now();
            let done = asked.revoked.filter(|jti| TokenId::parse(jti).is_ok());
            answer::html(&TokensPage {
                page: Page::new(&console, &call, &visitor, "Live tokens".to_owned()),
                next: (tokens.len() >= ROWS_MAX)
                    .then(|| tokens.last().map(|token| token.jti.to_string()))
                    .flatten(),
                tokens: tokens.iter().map(|token| row(token, now)).collect(),
                done: done.map(|jti| format!("{jti} is revoked: no validator takes it any more.")),
            })
        }
        Err(refusal) => answer::refused(&console, &call, &refusal),
    }
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
    let revoked = match TokenId::parse(&jti) {
        Ok(jti) => {
            note("token", &jti);
            console
                .hall
                .revoke_token(&call.presented, jti)
                .await
                .map(|_| jti)
        }
        Err(error) => Err(console.hall.malformed(call.row.name, &error)),
    };
    match revoked {
        Ok(jti) => Redirect::to(&format!("/console/tokens?revoked={jti}")).into_response(),
        Err(refusal) => answer::refused(&console, &call, &refusal),
    }
}
