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
use crate::card::{Card, CardRow, CardSection, CardView, FoldLimits, SectionKind, Tone, decide_by};
use crate::model::{AccessRequestId, ParseField as _, ProfileName, format_seconds};
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
    /// How much room the parameters take: a word of the style sheet.
    crowd: &'static str,
    /// How many facts are unusual.
    unusual: usize,
    until: DisplayTime,
    not_eligible: Option<&'static str>,
    task: String,
    vote: Option<VoteForm>,
}

/// The vote form.
struct VoteForm {
    /// Whether an approval would count; else the form is for a denial alone.
    approves: bool,
    profiles: Vec<ProfileOption>,
    /// Longest life of the token, in seconds; absent when no token is asked for.
    max_ttl: Option<i64>,
    max_uses: String,
    max_uses_label: String,
    /// The limits that an approval signs unless they are narrowed.
    signs: String,
    /// The policy bundle of the card: a vote names it.
    policy: String,
    /// The digest of the facts of the card: a vote names it.
    facts: String,
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
    let form = |profiles: &[ProfileName]| {
        let profiles = profiles
            .iter()
            .map(|name| profile_option(&card, name.as_str()));
        vote_form(&card, profiles.collect(), &vote_options)
    };
    let (vote, not_eligible) = match &vote_options.vote {
        _ if !open => (None, None),
        Ok(profiles) => (Some(form(profiles)), None),
        Err(why) => {
            let denial = &vote_options.denial;
            let deny = (!denial.is_empty()).then(|| form(denial));
            (deny, Some(not_eligible(why)))
        }
    };
    let title = format!(
        "{}: {}::{}",
        view.headline.verb, view.headline.object_type, view.headline.object
    );
    Ok(response::html(&CardPage {
        page: Page::new(&console, &request, &user, &title),
        status: card.status.as_str(),
        status_message: match card.requester.agent() {
            Some(_) => status_message(card.status),
            None => proposal_message(card.status),
        },
        risk: format::risk(card.risk),
        until: DisplayTime::new(decide_by(card.delay.as_ref(), card.expires_at, now), now),
        task: card
            .requester
            .agent()
            .map(|agent| agent.task.to_string())
            .unwrap_or_default(),
        open,
        name: target_name(&view),
        crowd: crowd(&view),
        unusual: card.anomalies.len(),
        view,
        vote,
        not_eligible,
    }))
}

/// More parameter rows than this stand in two columns, and long values show less of themselves.
const ROWS_ALONE_MAX: usize = 4;
/// More lines of parameters than this do not fit above the buttons of a phone, which then come after them.
const PHONE_LINES_MAX: usize = 22;
/// More lines than this do not fit beside the buttons of a wide window.
const DESK_LINES_MAX: usize = 44;
/// Characters on a line of a narrow column.
const COLUMN_CHARS: usize = 22;

impl CardPage {
    /// How much of a row is shown before it is opened.
    fn limits(&self, row: &CardRow) -> FoldLimits {
        if row.tone != Tone::Quoted && self.crowd.starts_with("many") {
            FoldLimits::ONE_OF_MANY
        } else {
            row.fold_limits()
        }
    }

    /// The first digits of a digest; the whole one is below the value.
    fn first_digits<'a>(&self, digest: &'a str) -> &'a str {
        digest.get(..DIGITS).unwrap_or(digest)
    }
}

/// Digits of a digest beside the beginning of a value.
const DIGITS: usize = 32;

/// How much room the parameters take: none of them may be hidden behind the buttons.
fn crowd(view: &CardView) -> &'static str {
    let of_parameters = |section: &&CardSection| section.kind == SectionKind::Parameters;
    let rows = view.sections.iter().find(of_parameters);
    let rows = rows.map_or(&[][..], |section| &section.rows);
    let limits = match rows.len() > ROWS_ALONE_MAX {
        true => FoldLimits::ONE_OF_MANY,
        false => FoldLimits::VALUE,
    };
    let lines = |row: &CardRow| {
        let folded = row.fold(limits);
        let head = folded.as_ref().map_or(&row.lines, |(head, _)| head);
        let wrapped = |line: &String| line.chars().count().div_ceil(COLUMN_CHARS);
        let value: usize = head.iter().map(wrapped).sum();
        let label = 1 + usize::from(row.caption.is_some());
        (value + usize::from(folded.is_some()) + row.flags.len() * 2).max(label)
    };
    match (rows.len(), rows.iter().map(lines).sum::<usize>()) {
        (..=ROWS_ALONE_MAX, PHONE_LINES_MAX..) => "tall",
        (..=ROWS_ALONE_MAX, _) => "",
        (_, DESK_LINES_MAX..) => "many tall taller",
        (_, PHONE_LINES_MAX..) => "many tall",
        (_, _) => "many",
    }
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
    let life = card.max_ttl.map(format_seconds);
    VoteForm {
        approves: vote_options.vote.is_ok(),
        profiles,
        max_ttl: card.max_ttl,
        max_uses: card.uses.map_or_else(String::new, |uses| uses.to_string()),
        max_uses_label: card.uses.map_or_else(
            || "unlimited unless set".to_owned(),
            |uses| format!("at most {uses}"),
        ),
        signs: match (life, card.uses) {
            (None, _) => "no token".to_owned(),
            (Some(life), None) => format!("{life}, unlimited uses"),
            (Some(life), Some(1)) => format!("{life}, 1 use"),
            (Some(life), Some(uses)) => format!("{life}, {uses} uses"),
        },
        policy: card.policy.to_string(),
        // Without a digest no vote begins.
        facts: card
            .facts()
            .digest()
            .map(|facts| facts.to_string())
            .unwrap_or_default(),
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
            "You own an agent of this request, so you cannot vote on it. Other approvers decide."
        }
        Ineligible::Proposer => {
            "You proposed this, so you cannot agree to it. Another person decides."
        }
        Ineligible::NeededElsewhere => {
            "Too few people would be left for another profile of this request. Vote under that one."
        }
        Ineligible::ProfileMet => {
            "This request has the approvals of your profile. It needs other people."
        }
        Ineligible::NotInGroup => "This request needs approvers of a group that you are not in.",
        Ineligible::ProfileNotNeeded => "This request does not need your vote.",
        Ineligible::ProfileChanged => {
            "The policy on who approves changed after this request was opened. The agent must request again."
        }
        Ineligible::HasVoted => "You have voted on this request. It still waits.",
        Ineligible::PasskeyRequired | Ineligible::RiskRequiresPasskey | Ineligible::NoPasskey => {
            "This request needs a vote by passkey, and you have none enrolled. Ask an operator for an invitation."
        }
        Ineligible::ApproverAddedLater => {
            "You became an approver of this group after this request was opened. You can vote on later requests."
        }
        Ineligible::KeyAddedLater => {
            "Your passkey was added after this request was opened. It counts for later requests."
        }
        Ineligible::NotConfirmed => {
            "Your passkey is not confirmed. Read its code out to an operator or approver other than the one who invited you: they confirm it on the Approvers page."
        }
        Ineligible::InviterMayNotVote => {
            "Your passkey is not confirmed, so it counts as that of the person who invited you, who may not vote on this request. Another operator or approver can confirm it on the Approvers page."
        }
        Ineligible::InviterHasVoted => {
            "Your passkey is not confirmed, so it counts as that of the person who invited you, who has voted on this request. Another operator or approver can confirm it on the Approvers page."
        }
    }
}

const fn proposal_message(status: AccessRequestStatus) -> &'static str {
    match status {
        AccessRequestStatus::Waiting => "This proposal waits for people who agree to it.",
        AccessRequestStatus::Approved => "Agreed to. It comes in force in a moment.",
        AccessRequestStatus::Denied => "Denied. What was proposed does not come in force.",
        AccessRequestStatus::Consumed => "Agreed to, and in force.",
        AccessRequestStatus::Cancelled => "Withdrawn by its proposer.",
        AccessRequestStatus::Expired | AccessRequestStatus::ApprovalExpired => {
            "Expired before enough people agreed. A vote has no effect now."
        }
        AccessRequestStatus::Ended => {
            "Closed because another policy bundle came in force, its fact was set or is normal again, or its proposer's key was revoked. A vote has no effect now."
        }
    }
}

const fn status_message(status: AccessRequestStatus) -> &'static str {
    match status {
        AccessRequestStatus::Waiting => "This request is waiting for approval.",
        AccessRequestStatus::Approved => "Approved. Its token can be requested now.",
        AccessRequestStatus::Denied => "Denied by an approver. The request is closed.",
        AccessRequestStatus::Consumed => "Its token was issued.",
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
