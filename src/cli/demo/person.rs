//! A person's process: an approver or an operator with their own key.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::child;
use crate::cli::error::CliError;
use crate::cli::{policy_dir, render};
use crate::client::vote::ReviewedCard;
use crate::client::{ApproverClient, Endpoint, OperatorClient};
use crate::keys;
use crate::model::{AccessRequestId, Narrowing, Realm, Verdict};

#[derive(Debug, Args)]
pub(in crate::cli) struct PersonChild {
    #[arg(long)]
    own_key: PathBuf,
    #[arg(long)]
    broker: String,
    #[arg(long, value_parser = Realm::parse)]
    realm: Realm,
}

/// An instruction to a person's process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum PersonInstruction {
    /// Lists the waiting access requests.
    Inbox,
    /// Reads the card of an access request and approves it.
    Approve { access_request: String },
    /// Applies a policy bundle.
    Apply { dir: PathBuf },
}

pub(in crate::cli) async fn run(args: PersonChild) -> Result<ExitCode, CliError> {
    let endpoint = Endpoint::connect(&args.broker)?;
    let key = Arc::new(keys::read(&args.own_key)?);
    let approver = ApproverClient::new(endpoint.clone(), key.clone());
    let operator = OperatorClient::new(endpoint, key);
    let realm = args.realm;
    child::serve(json!({}), tokio::io::stdin(), async |instruction| match instruction {
        PersonInstruction::Inbox => {
            let waiting = approver.access_requests().await?;
            Ok(json!({ "outcome": "listed", "waiting": waiting.iter().map(|r| r.access_request_id.clone()).collect::<Value>() }))
        }
        PersonInstruction::Approve { access_request } => {
            let card = approver.card(AccessRequestId::parse(&access_request)?).await?;
            let profile = card.needs.first().ok_or_else(|| CliError::failed("the card needs no approval"))?;
            let profile = profile.profile.name.clone();
            let narrowing = Narrowing::default();
            let reviewed = ReviewedCard { card: &card, realm: &realm, profile: &profile, verdict: Verdict::Approve, narrowing, comment: None };
            let request = approver.vote(&reviewed).await?;
            Ok(json!({ "outcome": render::status(request.status), "title": card.title, "profile": profile }))
        }
        PersonInstruction::Apply { dir } => {
            let applied = operator.apply_policy_bundle(&policy_dir::read(&dir)?).await?;
            let outcome = if applied.changed { "in force" } else { "unchanged" };
            Ok(json!({
                "outcome": outcome, "version": applied.version, "tasks_ended": applied.tasks_ended,
                "tokens_ended": applied.tokens_ended, "access_requests_closed": applied.access_requests_closed,
            }))
        }
    })
    .await
}
