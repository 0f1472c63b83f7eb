//! Votes: the statement of a vote, and the passkey's signature over it. Approvals and denials are both signed.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::error::ConsoleError;
use super::passkeys::{PasskeyAnswer, to_base64url};
use super::response;
use super::session_cookie::ConsoleRequest;
use super::state::Console;
use crate::broker::{VoteInput, VoteProof};
use crate::model::*;
use crate::serve::request_log::record;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BeginVoteBody {
    profile: String,
    /// The policy bundle of the card that the approver read.
    policy: String,
    /// The digest of the facts that the card showed.
    facts: String,
    verdict: VerdictBody,
    max_ttl: Option<i64>,
    max_uses: Option<u32>,
    comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum VerdictBody {
    Approve,
    Deny,
}

#[derive(Serialize)]
struct VoteOptionsBody<'a> {
    statement: &'a str,
    challenge: String,
    credentials: &'a [String],
    rp_id: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CastVoteBody {
    statement: String,
    credential: String,
    authenticator_data: String,
    client_data_json: String,
    signature: String,
    user: Option<String>,
}

#[derive(Serialize)]
struct VoteOutcomeBody {
    status: &'static str,
    /// Whether this denial reached the suspension limit.
    agent_suspended: bool,
}

pub(super) async fn begin(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    request: ConsoleRequest,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ConsoleError> {
    // The session first: without one a request learns nothing of the form of a vote.
    console.broker.signed_in_user(&request.context)?;
    let body: BeginVoteBody = response::parse_json(&headers, &body)?;
    let id = AccessRequestId::parse(&id).at("id")?;
    record("access_request", &id);
    let comment = body.comment.map(|text| Comment::parse(&text)).transpose();
    let vote_request = VoteInput {
        profile: ProfileName::parse(&body.profile).at("profile")?,
        verdict: match body.verdict {
            VerdictBody::Approve => Verdict::Approve,
            VerdictBody::Deny => Verdict::Deny,
        },
        narrowing: Narrowing {
            max_ttl: body.max_ttl,
            max_uses: body.max_uses,
        },
        comment: comment?,
        policy: Some(Digest::parse(&body.policy).at("policy")?),
        facts: Some(Digest::parse(&body.facts).at("facts")?),
    };
    let statement = console
        .broker
        .begin_vote(&request.context, id, vote_request)
        .await?;
    Ok(response::json(&VoteOptionsBody {
        statement: &statement.statement,
        challenge: to_base64url(statement.challenge.as_bytes()),
        credentials: &statement.credentials,
        rp_id: &console.broker.relying_party().id,
    }))
}

pub(super) async fn cast(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    request: ConsoleRequest,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ConsoleError> {
    console.broker.signed_in_user(&request.context)?;
    let body: CastVoteBody = response::parse_json(&headers, &body)?;
    let id = AccessRequestId::parse(&id).at("id")?;
    record("access_request", &id);
    let answer = PasskeyAnswer {
        credential: body.credential,
        authenticator_data: body.authenticator_data,
        client_data_json: body.client_data_json,
        signature: body.signature,
        user: body.user,
    };
    let proof = VoteProof::Passkey(answer.parse()?);
    let outcome = console
        .broker
        .cast_vote(&request.context, id, &body.statement, proof)
        .await?;
    let mut response = response::json(&VoteOutcomeBody {
        status: outcome.view.status.as_str(),
        agent_suspended: outcome.suspended,
    });
    if !outcome.is_new {
        response.extensions_mut().insert(super::security::NoOwnAct);
    }
    Ok(response)
}
