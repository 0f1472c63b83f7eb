//! The agent's process: it has evidence from the machine's SPIFFE agent, makes its own task key, and keeps its tokens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{child, http};
use crate::cli::error::CliError;
use crate::cli::{parse, render};
use crate::client::{
    AccessToken, AgentClient, Endpoint, EvidenceSource, OpenTaskRequest, TaskHandle, TokenOutcome,
    TokenRequest,
};
use crate::clock::Clock;
use crate::model::{Action, ActionName, Audience, TaskOutcome};

#[derive(Debug, Args)]
pub(in crate::cli) struct AgentChild {
    /// The broker is found by --url; this is where its SVID is kept fresh
    #[arg(long)]
    evidence: PathBuf,
    #[arg(long)]
    broker: String,
}

/// What the director may ask of an agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum AgentOrder {
    /// Opens a task.
    Open { purpose: String },
    /// Asks for a token and keeps it under a name.
    Ask {
        keep: String,
        action: String,
        target: String,
        params: Vec<String>,
        audience: String,
        reason: String,
        wait_s: u32,
        idempotency_key: String,
    },
    /// Uses a kept token.
    Use {
        token: String,
        method: String,
        url: String,
        body: Option<Value>,
    },
    /// Uses a kept token again and again until it is refused, or the time is over.
    UseUntilRefused {
        token: String,
        method: String,
        url: String,
        within_ms: u32,
    },
    /// Says that the work is done.
    Complete,
}

pub(in crate::cli) async fn run(args: AgentChild) -> Result<ExitCode, CliError> {
    let endpoint = Endpoint::connect(&args.broker)?;
    let agent = AgentClient::new(endpoint, EvidenceSource::File(args.evidence), None);
    let mut task: Option<TaskHandle> = None;
    let mut tokens: BTreeMap<String, AccessToken> = BTreeMap::new();
    child::serve(json!({}), tokio::io::stdin(), async |order| match order {
        AgentOrder::Open { purpose } => {
            let opened = agent.open_task(&OpenTaskRequest { purpose, max_duration_s: 600, idempotency_key: None, heartbeat_s: None }).await?;
            let subject = opened.verification().map(|v| v.subject.clone());
            let answer = json!({ "outcome": "verified", "task": opened.id(), "agent": opened.agent_id(), "subject": subject });
            task = Some(opened);
            Ok(answer)
        }
        AgentOrder::Ask { keep, action, target, params, audience, reason, wait_s, idempotency_key } => {
            let params = params.iter().map(|p| parse::param(p)).collect::<Result<_, _>>()?;
            let action = Action::new(
                ActionName::parse(&action)?,
                Audience::parse(&audience)?,
                parse::target(&target)?,
                parse::params(params)?,
            )?;
            let order = TokenRequest { action, ttl_s: 300, reason, idempotency_key: Some(idempotency_key), wait_s: 0 };
            let task = open(task.as_ref())?;
            let outcome = if wait_s == 0 {
                task.request_token(&order).await?
            } else {
                task.wait_for_token(&order, Clock::system().now().plus_secs(i64::from(wait_s))).await?
            };
            let answer = told(&outcome);
            if let TokenOutcome::Token(token) = outcome {
                tokens.insert(keep, token);
            }
            Ok(answer)
        }
        AgentOrder::Use { token, method, url, body } => present(kept(&tokens, &token)?, &method, &url, body.as_ref()).await,
        AgentOrder::UseUntilRefused { token, method, url, within_ms } => {
            let token = kept(&tokens, &token)?;
            let clock = Clock::system();
            let began = clock.now();
            loop {
                let mut answer = present(token, &method, &url, None).await?;
                let spent = clock.now().since(began);
                let refused = answer.get("status").and_then(Value::as_u64).is_some_and(|status| status != 200);
                if refused || spent >= i64::from(within_ms) {
                    if let Some(members) = answer.as_object_mut() {
                        members.insert("after_ms".to_owned(), json!(spent));
                    }
                    return Ok(answer);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        AgentOrder::Complete => {
            let report = open(task.as_ref())?.complete(TaskOutcome::Succeeded).await?;
            let mut answer = render::end_report_json(&report);
            if let Some(members) = answer.as_object_mut() {
                members.insert("outcome".to_owned(), json!(report.cause));
            }
            Ok(answer)
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
        .ok_or_else(|| CliError::failed("no such token is kept"))
}

/// The answer, without the token.
fn told(outcome: &TokenOutcome) -> Value {
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
        TokenOutcome::Denied(denied) => {
            json!({ "outcome": "denied", "reason": denied.reason_str(), "rules": ids(denied.rules()) })
        }
    }
}

/// One request with the token and a proof made for it.
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
    let answered = http::call(method, url, &secrets, body).await?;
    Ok(json!({ "status": answered.status, "body": answered.body, "challenge": answered.challenge }))
}
