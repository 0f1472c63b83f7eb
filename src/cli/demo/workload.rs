//! The agent's process: holds its evidence, its task key and its tokens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{child, http};
use crate::cli::error::CliError;
use crate::cli::{parse, render};
use crate::client::{
    AccessToken, AgentClient, Endpoint, Error, EvidenceSource, OpenTaskRequest, TaskHandle,
    TokenOutcome, TokenRequest,
};
use crate::clock::Clock;
use crate::jose::SigningKey;
use crate::model::{AccessRequestId, Action, ActionName, Audience, TaskOutcome};

#[derive(Debug, Args)]
pub(in crate::cli) struct AgentChild {
    /// The file in which the SPIFFE agent keeps a current SVID
    #[arg(long)]
    evidence: PathBuf,
    #[arg(long)]
    broker: String,
}

/// An instruction to an agent's process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum AgentInstruction {
    /// Opens a task.
    Open { purpose: String },
    /// Requests a token and keeps it under a name.
    RequestToken {
        name: String,
        action: String,
        target: String,
        params: Vec<String>,
        audience: String,
        reason: String,
        wait_s: u32,
        idempotency_key: String,
        /// The recommendation that it executes.
        recommendation: Option<AccessRequestId>,
    },
    /// Uses a kept token.
    Use {
        token: String,
        method: String,
        url: String,
        body: Option<Value>,
    },
    /// Uses a kept token repeatedly until it is rejected or the time is over.
    UseUntilRejected {
        token: String,
        method: String,
        url: String,
        within_ms: u32,
    },
    /// Completes the task.
    Complete,
}

pub(in crate::cli) async fn run(args: AgentChild) -> Result<ExitCode, CliError> {
    let endpoint = Endpoint::connect(&args.broker)?;
    let evidence = EvidenceSource::File(args.evidence);
    let key = Arc::new(SigningKey::generate().map_err(Error::Key)?.0);
    let agent = AgentClient::new(endpoint.clone(), evidence.clone(), Some(key.clone()));
    let mut task: Option<TaskHandle> = None;
    let mut tokens: BTreeMap<String, AccessToken> = BTreeMap::new();
    child::serve(json!({}), tokio::io::stdin(), async |instruction| match instruction {
        AgentInstruction::Open { purpose } => {
            let opened = agent.open_task(&OpenTaskRequest { purpose, max_duration_s: 600, idempotency_key: None, heartbeat_s: None }).await?;
            let subject = opened.verification().map(|v| v.subject.clone());
            let reply = json!({ "outcome": "verified", "task": opened.id(), "agent": opened.agent_id(), "subject": subject });
            task = Some(opened);
            Ok(reply)
        }
        AgentInstruction::RequestToken { name, action, target, params, audience, reason, wait_s, idempotency_key, recommendation } => {
            let params = params.iter().map(|p| parse::param(p)).collect::<Result<_, _>>()?;
            let action = Action::new(
                ActionName::parse(&action)?,
                Audience::parse(&audience)?,
                parse::target(&target)?,
                parse::params(params)?,
            )?;
            let request = TokenRequest { reason, idempotency_key: Some(idempotency_key), recommendation, ..TokenRequest::new(action, 300) };
            let task = open(task.as_ref())?;
            let outcome = if wait_s == 0 {
                task.request_token(&request).await?
            } else {
                task.wait_for_token(&request, Clock::system().now().plus_secs(i64::from(wait_s))).await?
            };
            let reply = outcome_json(&outcome);
            if let TokenOutcome::Token(token) = outcome {
                tokens.insert(name, token);
            }
            Ok(reply)
        }
        AgentInstruction::Use { token, method, url, body } => present(kept(&tokens, &token)?, &method, &url, body.as_ref()).await,
        AgentInstruction::UseUntilRejected { token, method, url, within_ms } => {
            let token = kept(&tokens, &token)?;
            let clock = Clock::system();
            let started_at = clock.now();
            loop {
                let mut reply = present(token, &method, &url, None).await?;
                let elapsed = clock.now().since(started_at);
                let rejected = reply.get("status").and_then(Value::as_u64).is_some_and(|status| status != 200);
                if rejected || elapsed >= i64::from(within_ms) {
                    if let Some(members) = reply.as_object_mut() {
                        members.insert("after_ms".to_owned(), json!(elapsed));
                    }
                    return Ok(reply);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        AgentInstruction::Complete => {
            // As a second process does it: this one's tokens would no longer be presented, and the demonstration shows that
            // the resource server rejects them.
            let id = open(task.as_ref())?.id();
            let task = TaskHandle::attach(endpoint.clone(), evidence.clone(), id, key.clone());
            let report = task.complete(TaskOutcome::Succeeded).await?;
            let mut reply = render::end_report_json(&report);
            if let Some(members) = reply.as_object_mut() {
                members.insert("outcome".to_owned(), json!(report.cause));
            }
            Ok(reply)
        }
    })
    .await
}

fn open(task: Option<&TaskHandle>) -> Result<&TaskHandle, CliError> {
    task.ok_or_else(|| CliError::failed("no task is open"))
}

fn kept<'a>(
    tokens: &'a BTreeMap<String, AccessToken>,
    name: &str,
) -> Result<&'a AccessToken, CliError> {
    tokens
        .get(name)
        .ok_or_else(|| CliError::failed("no token is kept under this name"))
}

/// The outcome of a token request, without the token.
fn outcome_json(outcome: &TokenOutcome) -> Value {
    let ids = |rules: &[crate::client::MatchedRule]| {
        rules
            .iter()
            .map(|r| r.id.clone())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match outcome {
        TokenOutcome::Token(token) => json!({
            "outcome": "token", "jti": token.jti(), "uses": token.uses(), "ttl": render::ttl_line(token.ttl()),
            "rules": ids(token.rules()),
        }),
        TokenOutcome::Pending(pending) => json!({
            "outcome": "pending", "access_request": pending.access_request_id(), "rules": ids(pending.rules()),
            "needs": render::profile_lines(pending.needs()), "idempotency_key": pending.idempotency_key(),
        }),
        TokenOutcome::Recommended(recommended) => json!({
            "outcome": "recommended", "access_request": recommended.access_request_id(), "executor": recommended.executor(),
        }),
        TokenOutcome::Denied(denied) => {
            json!({ "outcome": "denied", "reason": denied.reason_str(), "rules": ids(denied.rules()) })
        }
    }
}

/// Sends one request with the token and a proof made for it.
async fn present(
    token: &AccessToken,
    method: &str,
    url: &str,
    body: Option<&Value>,
) -> Result<Value, CliError> {
    let headers = token.headers(method, url)?;
    let secrets = [
        ("authorization", &headers.authorization),
        ("dpop", &headers.dpop),
    ];
    let response = http::call(method, url, &secrets, body).await?;
    Ok(json!({ "status": response.status, "body": response.body, "challenge": response.challenge }))
}
