//! Approval card: the requested action as the broker renders it for all readers, and the vote form for eligible approvers.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Response;

use super::error::ConsoleError;
use super::format::{self, DisplayTime};
use super::page::Page;
use super::response;
use super::session_cookie::ConsoleRequest;
use super::state::Console;
use crate::broker::{AccessRequestStatus, Ineligible, VoteOptions};
use crate::card::{Card, CardRow, CardView, SectionKind};
use crate::model::{AccessRequestId, ParseField as _};
use crate::serve::request_log::record;

#[derive(Template)]
#[template(path = "card.html", config = "src/serve/console/askama.toml")]
struct CardPage {
    page: Page,
    view: CardView,
    /// The target's display name, if the policy bundle has one.
    name: Option<String>,
    status: &'static str,
    status_message: &'static str,
    /// Whether the request waits for approval.
    open: bool,
    risk: &'static str,
    until: DisplayTime,
    not_eligible: Option<&'static str>,
    task: String,
    vote: Option<VoteForm>,
}

/// The vote form.
struct VoteForm {
    profiles: Vec<ProfileOption>,
    max_ttl: i64,
    max_uses: String,
    max_uses_label: String,
    /// The limits that an approval signs unless they are narrowed.
    signs: String,
    /// The policy bundle of the card: a vote names it.
    policy: String,
    dwell_ms: u128,
}

struct ProfileOption {
    name: String,
    label: String,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    let user = console.broker.signed_in_user(&request.context)?;
    let id = AccessRequestId::parse(&id).at("id")?;
    record("access_request", &id);
    let card = console.broker.card(&request.context, &id)?;
    let vote_options = console.broker.vote_options(&request.context, &id)?;
    let now = console.broker.now();
    let mut view = card.show(now);
    let environment = &mut view.headline.environment;
    *environment = environment.take().map(|name| display_environment(&name));
    let facts = view.sections.iter_mut();
    for row in facts
        .filter(|section| section.kind == SectionKind::Target)
        .flat_map(|section| &mut section.rows)
        .filter(|row| row.label == "target environment")
    {
        for line in &mut row.lines {
            *line = display_environment(line);
        }
    }
    let open = card.status == AccessRequestStatus::Waiting;
    let (vote, not_eligible) = match &vote_options.vote {
        _ if !open => (None, None),
        Ok(profiles) => {
            let profiles = profiles
                .iter()
                .map(|name| profile_option(&card, name.as_str()));
            (
                Some(vote_form(&card, profiles.collect(), &vote_options)),
                None,
            )
        }
        Err(why) => (None, Some(not_eligible(why))),
    };
    let title = format!("{} {}", view.headline.verb, view.headline.object);
    Ok(response::html(&CardPage {
        page: Page::new(&console, &request, &user, &title),
        status: card.status.as_str(),
        status_message: status_message(card.status),
        risk: format::risk(card.risk),
        until: DisplayTime::new(card.expires_at, now),
        task: card.task.to_string(),
        open,
        name: target_name(&view),
        view,
        vote,
        not_eligible,
    }))
}

/// The name of an environment, without the entity type that policy rules use.
fn display_environment(environment: &str) -> String {
    let short = environment.strip_prefix("Environment::");
    short.unwrap_or(environment).to_owned()
}

/// The target's display name, from the rows of its attributes.
fn target_name(view: &CardView) -> Option<String> {
    let facts = view
        .sections
        .iter()
        .find(|s| s.kind == SectionKind::Target)?;
    let named = |row: &&CardRow| matches!(row.label.as_str(), "target name" | "target title");
    let name = facts.rows.iter().find(named)?.lines.first()?;
    (*name != view.headline.object).then(|| name.clone())
}

fn vote_form(card: &Card, profiles: Vec<ProfileOption>, vote_options: &VoteOptions) -> VoteForm {
    VoteForm {
        profiles,
        max_ttl: card.max_ttl,
        max_uses: card.uses.map_or_else(String::new, |uses| uses.to_string()),
        max_uses_label: card.uses.map_or_else(
            || "unlimited unless set".to_owned(),
            |uses| format!("at most {uses}"),
        ),
        signs: match card.uses {
            None => format!("{} s, unlimited uses", card.max_ttl),
            Some(1) => format!("{} s, 1 use", card.max_ttl),
            Some(uses) => format!("{} s, {uses} uses", card.max_ttl),
        },
        policy: card.policy.to_string(),
        dwell_ms: vote_options.dwell_remaining.as_millis(),
    }
}

fn profile_option(card: &Card, name: &str) -> ProfileOption {
    let need = card
        .needs
        .iter()
        .find(|need| need.profile.name.as_str() == name);
    let progress = need.map_or_else(String::new, |need| {
        format!(
            ": {} of {} from {}",
            need.approvers.len(),
            need.quorum,
            need.group
        )
    });
    ProfileOption {
        name: name.to_owned(),
        label: format::escape(format!("{name}{progress}")),
    }
}

const fn not_eligible(why: &Ineligible) -> &'static str {
    match why {
        Ineligible::NotApprover => {
            "You do not have the approver role, so you cannot vote on this request."
        }
        Ineligible::Owner => {
            "You own this agent, so you cannot vote on its requests. Other approvers decide."
        }
        Ineligible::NotInGroup => "This request needs approvers of a group that you are not in.",
        Ineligible::ProfileNotNeeded => "This request does not need your vote.",
        Ineligible::ProfileChanged => {
            "The policy on who approves changed after this request was opened. The agent must request again."
        }
        Ineligible::HasVoted => "You have voted on this request. It still needs other approvers.",
        Ineligible::PasskeyRequired | Ineligible::NoPasskey => {
            "This request needs a vote by passkey, and you have none enrolled. Ask an operator for an invitation."
        }
    }
}

const fn status_message(status: AccessRequestStatus) -> &'static str {
    match status {
        AccessRequestStatus::Waiting => "This request is waiting for approval.",
        AccessRequestStatus::Approved => "Approved. The agent can now get its token.",
        AccessRequestStatus::Denied => "Denied by an approver. The request is closed.",
        AccessRequestStatus::Consumed => "Approved, and the agent has its token.",
        AccessRequestStatus::Cancelled => "Cancelled by the agent.",
        AccessRequestStatus::Expired => {
            "Expired without a decision, which counts as denied. A vote has no effect now."
        }
        AccessRequestStatus::ApprovalExpired => {
            "Expired after an approval: the agent did not get its token in time. A vote has no effect now."
        }
        AccessRequestStatus::Ended => {
            "Closed because its task ended or the policy no longer requires it. A vote has no effect now."
        }
    }
}
