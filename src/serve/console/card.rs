//! One card: what would happen, as the broker renders it for everybody, and the ballot for who may vote on it.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Response;

use super::page::Page;
use super::session_cookie::Call;
use super::show::{self, Moment};
use super::{Console, answer};
use crate::broker::{AccessRequestStatus, Ballot, Ineligible, Refusal};
use crate::card::{Card, CardRow, SectionKind, CardView};
use crate::model::AccessRequestId;
use crate::serve::call::note;

#[derive(Template)]
#[template(path = "card.html", config = "src/serve/console/askama.toml")]
struct CardPage {
    page: Page,
    shown: CardView,
    /// What people call the target, where the policy bundle says.
    name: Option<String>,
    standing: &'static str,
    standing_words: &'static str,
    /// Whether it waits for people.
    open: bool,
    risk: &'static str,
    until: Moment,
    not_eligible: Option<&'static str>,
    task: String,
    vote: Option<Vote>,
}

/// What a visitor may vote on.
struct Vote {
    profiles: Vec<Profile>,
    max_ttl: i64,
    max_uses: String,
    max_uses_words: String,
    /// What a yes is good for if nothing is narrowed.
    signs: String,
    /// The policy bundle the card is rendered under: a vote names it.
    policy: String,
    dwell_ms: u128,
}

struct Profile {
    name: String,
    words: String,
}

pub(super) async fn page(
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
    call: Call,
) -> Response {
    let page = shown(&console, &call, &id);
    answer::of(&console, &call, page)
}

fn shown(console: &Console, call: &Call, id: &str) -> Result<Response, Refusal> {
    let visitor = console.broker.visitor(&call.presented)?;
    let id =
        AccessRequestId::parse(id).map_err(|error| answer::malformed(console, call, &error))?;
    note("access_request", &id);
    let card = console.broker.card(&call.presented, &id)?;
    let ballot = console.broker.ballot(&call.presented, &id)?;
    let now = console.broker.now();
    let mut shown = card.show(now);
    let environment = &mut shown.headline.environment;
    *environment = environment.take().map(|of| plain(&of));
    let facts = shown.sections.iter_mut();
    for row in facts
        .filter(|section| section.kind == SectionKind::Target)
        .flat_map(|section| &mut section.rows)
        .filter(|row| row.label == "target environment")
    {
        for line in &mut row.lines {
            *line = plain(line);
        }
    }
    let open = card.status == AccessRequestStatus::Waiting;
    let (vote, not_eligible) = match &ballot.vote {
        _ if !open => (None, None),
        Ok(profiles) => {
            let profiles = profiles.iter().map(|name| profile(&card, name.as_str()));
            (Some(vote(&card, profiles.collect(), &ballot)), None)
        }
        Err(why) => (None, Some(not_eligible(why))),
    };
    let title = format!("{} {}", shown.headline.verb, shown.headline.object);
    Ok(answer::html(&CardPage {
        page: Page::new(console, call, &visitor, &title),
        standing: card.status.as_str(),
        standing_words: standing(card.status),
        risk: show::risk(card.risk),
        until: Moment::new(card.expires_at, now),
        task: card.task.to_string(),
        open,
        name: name(&shown),
        shown,
        vote,
        not_eligible,
    }))
}

/// An environment as people say it, without the type that rules need.
fn plain(environment: &str) -> String {
    let short = environment.strip_prefix("Environment::");
    short.unwrap_or(environment).to_owned()
}

/// The target's own name, from the rows that show what is known of it.
fn name(shown: &CardView) -> Option<String> {
    let facts = shown
        .sections
        .iter()
        .find(|s| s.kind == SectionKind::Target)?;
    let named = |row: &&CardRow| matches!(row.label.as_str(), "target name" | "target title");
    let name = facts.rows.iter().find(named)?.lines.first()?;
    (*name != shown.headline.object).then(|| name.clone())
}

fn vote(card: &Card, profiles: Vec<Profile>, ballot: &Ballot) -> Vote {
    Vote {
        profiles,
        max_ttl: card.max_ttl,
        max_uses: card.uses.map_or_else(String::new, |uses| uses.to_string()),
        max_uses_words: card.uses.map_or_else(
            || "now without limit".to_owned(),
            |uses| format!("at most {uses}"),
        ),
        signs: match card.uses {
            None => format!("{} s, uses without limit", card.max_ttl),
            Some(1) => format!("{} s, 1 use", card.max_ttl),
            Some(uses) => format!("{} s, {uses} uses", card.max_ttl),
        },
        policy: card.policy.to_string(),
        dwell_ms: ballot.read_longer.as_millis(),
    }
}

fn profile(card: &Card, name: &str) -> Profile {
    let need = card
        .needs
        .iter()
        .find(|need| need.profile.name.as_str() == name);
    let so_far = need.map_or_else(String::new, |need| {
        format!(
            ": {} of {} from {}",
            need.approvers.len(),
            need.quorum,
            need.group
        )
    });
    Profile {
        name: name.to_owned(),
        words: show::shown(format!("{name}{so_far}")),
    }
}

const fn not_eligible(why: &Ineligible) -> &'static str {
    match why {
        Ineligible::NotApprover => "You are no approver, so others decide.",
        Ineligible::Owner => "You answer for this agent, so others decide.",
        Ineligible::NotInGroup => "It asks a group you are not in, so others decide.",
        Ineligible::ProfileNotNeeded => "It does not ask for a vote of yours.",
        Ineligible::ProfileChanged => {
            "The rules about who decides changed since it was asked. The agent has to ask again."
        }
        Ineligible::HasVoted => "You have voted on this. It needs others, too.",
        Ineligible::NotByPasskey | Ineligible::NoPasskey => {
            "It takes a vote by passkey, and you have none enrolled."
        }
    }
}

const fn standing(standing: AccessRequestStatus) -> &'static str {
    match standing {
        AccessRequestStatus::Waiting => "It waits for people.",
        AccessRequestStatus::Approved => "Enough people said yes. The agent may have its token.",
        AccessRequestStatus::Denied => "A person said no. That ends it.",
        AccessRequestStatus::Consumed => "It was approved, and the agent has its token.",
        AccessRequestStatus::Cancelled => "The agent took it back.",
        AccessRequestStatus::Expired => {
            "Nobody decided in time, and that is a no. A vote has no effect any more."
        }
        AccessRequestStatus::Ended => {
            "Its task is over, or the rules no longer ask for it. A vote has no effect any more."
        }
    }
}
