//! A person's process: an approver or an operator with a key of their own.

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

/// What the director may ask of a person.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum PersonOrder {
    /// Lists what waits.
    Inbox,
    /// Looks at the card and says yes to exactly what it says.
    Approve { access_request: String },
    /// Puts a policy bundle in force.
    Apply { dir: PathBuf },
}

pub(in crate::cli) async fn run(args: PersonChild) -> Result<ExitCode, CliError> {
    let endpoint = Endpoint::connect(&args.broker)?;
    let key = Arc::new(keys::read(&args.own_key)?);
    let person = ApproverClient::new(endpoint.clone(), key.clone());
    let operator = OperatorClient::new(endpoint, key);
    let realm = args.realm;
    child::serve(json!({}), tokio::io::stdin(), async |order| match order {
        PersonOrder::Inbox => {
            let waiting = person.access_requests().await?;
            Ok(json!({ "outcome": "listed", "waiting": waiting.iter().map(|r| r.access_request_id.clone()).collect::<Value>() }))
        }
        PersonOrder::Approve { access_request } => {
            let card = person.card(AccessRequestId::parse(&access_request)?).await?;
            let profile = card.needs.first().ok_or_else(|| CliError::failed("the card asks for nothing"))?;
            let profile = profile.profile.name.clone();
            let narrowing = Narrowing::default();
            let seen = ReviewedCard { card: &card, realm: &realm, profile: &profile, verdict: Verdict::Approve, narrowing, comment: None };
            let after = person.vote(&seen).await?;
            Ok(json!({ "outcome": render::status(after.status), "title": card.title, "profile": profile }))
        }
        PersonOrder::Apply { dir } => {
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
