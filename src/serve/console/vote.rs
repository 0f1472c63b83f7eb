//! A vote: its statement, and the passkey's answer to it. Yes and no alike are signed.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::passkeys::{Answered, bytes};
use super::session_cookie::Call;
use super::{Console, answer};
use crate::broker::{Refusal, VoteInput, VoteProof};
use crate::model::*;
use crate::serve::call::note;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    profile: String,
    /// The policy bundle of the card that was read.
    policy: String,
    verdict: Said,
    max_ttl: Option<i64>,
    max_uses: Option<u32>,
    comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Approve,
    Deny,
}

#[derive(Serialize)]
struct Begun<'a> {
    statement: &'a str,
    challenge: String,
    credentials: &'a [String],
    rp_id: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cast {
    statement: String,
    credential: String,
    authenticator_data: String,
    client_data_json: String,
    signature: String,
    user: Option<String>,
}

#[derive(Serialize)]
struct Done {
    status: &'static str,
    /// The no was one too many.
    agent_suspended: bool,
}

pub(super) async fn begin(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    call: Call,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let begun = begun(&console, &call, &id, &headers, &body).await;
    answer::of(&console, &call, begun)
}

async fn begun(
    console: &Console,
    call: &Call,
    id: &str,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response, Refusal> {
    // Strangers learn nothing, not even what a vote looks like.
    console.broker.signed_in_user(&call.presented)?;
    let ask: Ask = answer::read(console, call, headers, body)?;
    let malformed = |error: Malformed| answer::malformed(console, call, &error);
    let id = AccessRequestId::parse(id).map_err(malformed)?;
    note("access_request", &id);
    let comment = ask.comment.map(|text| Comment::parse(&text)).transpose();
    let ask = VoteInput {
        profile: ProfileName::parse(&ask.profile).map_err(malformed)?,
        verdict: match ask.verdict {
            Said::Approve => Verdict::Approve,
            Said::Deny => Verdict::Deny,
        },
        narrowing: Narrowing {
            max_ttl: ask.max_ttl,
            max_uses: ask.max_uses,
        },
        comment: comment.map_err(malformed)?,
        policy: Some(Digest::parse(&ask.policy).map_err(malformed)?),
    };
    let begun = console.broker.begin_vote(&call.presented, id, ask).await?;
    Ok(answer::json(&Begun {
        statement: &begun.statement,
        challenge: bytes(begun.challenge.as_bytes()),
        credentials: &begun.credentials,
        rp_id: &console.broker.relying_party().id,
    }))
}

pub(super) async fn cast(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    call: Call,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let cast = counted(&console, &call, &id, &headers, &body).await;
    answer::of(&console, &call, cast)
}

async fn counted(
    console: &Console,
    call: &Call,
    id: &str,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response, Refusal> {
    console.broker.signed_in_user(&call.presented)?;
    let vote: Cast = answer::read(console, call, headers, body)?;
    let malformed = |error: Malformed| answer::malformed(console, call, &error);
    let id = AccessRequestId::parse(id).map_err(malformed)?;
    note("access_request", &id);
    let answered = Answered {
        credential: vote.credential,
        authenticator_data: vote.authenticator_data,
        client_data_json: vote.client_data_json,
        signature: vote.signature,
        user: vote.user,
    };
    let proof = VoteProof::Passkey(answered.parse().map_err(malformed)?);
    let done = console
        .broker
        .cast_vote(&call.presented, id, &vote.statement, proof)
        .await?;
    Ok(answer::json(&Done {
        status: done.view.status.as_str(),
        agent_suspended: done.suspended,
    }))
}
