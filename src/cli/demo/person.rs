//! A person's process: an approver or an operator with their own key and, once enrolled, a passkey.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::child;
use super::passkey::ConsolePasskey;
use crate::card::Card;
use crate::cli::console_vote::wait_for_dwell;
use crate::cli::error::CliError;
use crate::cli::{policy_dir, render};
use crate::client::vote::ReviewedCard;
use crate::client::{ApproverClient, Endpoint, OperatorClient};
use crate::clock::Clock;
use crate::keys;
use crate::model::{AccessRequestId, Narrowing, PersonId, ProfileName, Realm, Thumbprint, Verdict};

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
    /// Reads the card of an access request.
    Read { access_request: String },
    /// Reads the card of an access request for the time that it requires, and approves it by key.
    Approve { access_request: String },
    /// The same by passkey, at the console.
    ApproveByPasskey { access_request: String },
    /// Invites a person to enrol a passkey.
    Invite { person: PersonId },
    /// Enrols a passkey at the console.
    Enrol { console: String, code: String },
    /// Confirms that a person enrolled a passkey themselves.
    Confirm { person: PersonId, key: Thumbprint },
    /// Says who approved an access request, and how.
    Explain { access_request: String },
    /// Applies a policy bundle.
    Apply { dir: PathBuf },
}

pub(in crate::cli) async fn run(args: PersonChild) -> Result<ExitCode, CliError> {
    let endpoint = Endpoint::connect(&args.broker)?;
    let key = Arc::new(keys::read(&args.own_key)?);
    let approver = ApproverClient::new(endpoint.clone(), key.clone());
    let operator = OperatorClient::new(endpoint, key);
    let realm = args.realm;
    let mut reader = CardReader {
        approver: approver.clone(),
        clock: Clock::system(),
        viewed: BTreeMap::new(),
    };
    let mut passkey = None;
    child::serve(json!({}), tokio::io::stdin(), async |instruction| match instruction {
        PersonInstruction::Inbox => {
            let waiting = approver.access_requests().await?;
            Ok(json!({ "outcome": "listed", "waiting": waiting.iter().map(|r| r.access_request_id.clone()).collect::<Value>() }))
        }
        PersonInstruction::Read { access_request } => {
            let card = reader.read(&access_request).await?;
            Ok(json!({ "outcome": "read", "title": card.title }))
        }
        PersonInstruction::Approve { access_request } => {
            let (card, profile) = reader.review(&access_request).await?;
            let narrowing = Narrowing::default();
            let reviewed = ReviewedCard { card: &card, realm: &realm, profile: &profile, verdict: Verdict::Approve, narrowing, comment: None };
            let request = approver.vote(&reviewed).await?;
            Ok(json!({ "outcome": render::status(request.status), "title": card.title, "profile": profile }))
        }
        PersonInstruction::ApproveByPasskey { access_request } => {
            let (card, profile) = reader.review(&access_request).await?;
            let passkey: &mut ConsolePasskey = passkey
                .as_mut()
                .ok_or_else(|| CliError::failed("this person has no passkey"))?;
            let status = passkey.approve(&card, &profile).await?;
            Ok(json!({ "outcome": status, "title": card.title, "profile": profile }))
        }
        PersonInstruction::Invite { person } => {
            let invitation = operator.invite(&person).await?;
            Ok(json!({ "outcome": "invited", "code": invitation.code.expose_secret() }))
        }
        PersonInstruction::Enrol { console, code } => {
            let enrolled = ConsolePasskey::enrol(&console, &code).await?;
            let key = enrolled.thumbprint();
            passkey = Some(enrolled);
            Ok(json!({ "outcome": "enrolled", "key": key }))
        }
        PersonInstruction::Confirm { person, key } => {
            operator.confirm_passkey(&person, key).await?;
            Ok(json!({ "outcome": "confirmed" }))
        }
        PersonInstruction::Explain { access_request } => {
            let found = operator.explain(&access_request).await?;
            let votes = found.lines.iter().filter(|line| line.label == "vote");
            Ok(json!({ "outcome": votes.map(|line| line.text.clone()).collect::<Vec<_>>().join("; ") }))
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

/// Reads cards, each for the time that the broker requires before an approval.
struct CardReader {
    approver: ApproverClient,
    clock: Clock,
    /// Uptime at which each card was shown first.
    viewed: BTreeMap<String, Duration>,
}

impl CardReader {
    async fn read(&mut self, id: &str) -> Result<Card, CliError> {
        let card = self.approver.card(AccessRequestId::parse(id)?).await?;
        let now = self.clock.uptime();
        self.viewed.entry(id.to_owned()).or_insert(now);
        Ok(card)
    }

    /// The card and the profile to vote under, once the card has been shown long enough.
    async fn review(&mut self, id: &str) -> Result<(Card, ProfileName), CliError> {
        let card = self.read(id).await?;
        if let Some(viewed_at) = self.viewed.get(id) {
            wait_for_dwell(&card, &self.clock, *viewed_at).await;
        }
        let need = card.needs.first();
        let need = need.ok_or_else(|| CliError::failed("the card needs no approval"))?;
        let profile = need.profile.name.clone();
        Ok((card, profile))
    }
}
