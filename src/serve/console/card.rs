//! One card: what would happen, as the broker renders it for everybody, and the ballot for who may vote on it.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Response;

use super::page::{self, Page};
use super::show::{self, Moment};
use super::stand_in::{Shown, shown_of};
use super::visit::Call;
use super::{Console, answer};
use crate::broker::{AccessStanding, CardView, Visitor};
use crate::model::AccessRequestId;
use crate::rules::Role;
use crate::serve::call::note;

#[derive(Template)]
#[template(path = "card.html", config = "src/serve/console/askama.toml")]
struct CardPage {
    page: Page,
    shown: Shown,
    standing: &'static str,
    standing_words: &'static str,
    /// Whether it waits for people.
    open: bool,
    risk: &'static str,
    until: Moment,
    not_eligible: Option<String>,
    task: String,
    vote: Option<Ballot>,
}

/// What a visitor may vote on.
struct Ballot {
    profiles: Vec<Profile>,
    max_ttl: i64,
    max_uses: String,
    max_uses_words: String,
    dwell_ms: u64,
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
    let visitor = match page::visitor(&console, &call) {
        Ok(visitor) => visitor,
        Err(response) => return response,
    };
    let card = match AccessRequestId::parse(&id) {
        Ok(id) => {
            note("access_request", &id);
            console.hall.card(&call.presented, &id)
        }
        Err(error) => Err(console.hall.malformed(call.row.name, &error)),
    };
    match card {
        Ok(card) => {
            let now = console.hall.now();
            let shown = shown_of(&card, now);
            let open = card.access.standing == AccessStanding::Waiting;
            let (vote, not_eligible) = match ballot(&card, &visitor) {
                _ if !open => (None, None),
                Ok(ballot) => (Some(ballot), None),
                Err(why) => (None, Some(why.to_owned())),
            };
            let title = format!("{} {}", shown.headline.verb, shown.headline.object);
            answer::html(&CardPage {
                page: Page::new(&console, &call, &visitor, title),
                standing: card.access.standing.as_str(),
                standing_words: standing(card.access.standing),
                risk: show::risk(card.access.risk),
                until: Moment::new(card.access.request.opened.expires_at, now),
                task: card.access.request.opened.task.to_string(),
                open,
                shown,
                vote,
                not_eligible,
            })
        }
        Err(refusal) => answer::refused(&console, &call, &refusal),
    }
}

/// What is left to vote on, or why nothing is. A hint for the page: whether a vote counts is asked again when it is begun,
/// when it is cast, and when a token is given.
fn ballot(card: &CardView, visitor: &Visitor) -> Result<Ballot, &'static str> {
    let opened = &card.access.request.opened;
    if !visitor.roles.contains(&Role::Approver) {
        return Err("You are no approver: others decide.");
    }
    if opened.owner == visitor.id {
        return Err("You answer for this agent, so others decide.");
    }
    if card
        .access
        .needs
        .iter()
        .any(|need| need.approvers.contains(&visitor.id))
    {
        return Err("You said yes. It needs others, too.");
    }
    let profiles = card.access.needs.iter().map(|need| Profile {
        name: need.profile.name.to_string(),
        words: format!(
            "{}: {} of {} from {}",
            need.profile.name,
            need.approvers.len(),
            need.quorum,
            need.group
        ),
    });
    Ok(Ballot {
        profiles: profiles.collect(),
        max_ttl: opened.max_ttl,
        max_uses: opened
            .uses
            .map_or_else(String::new, |uses| uses.to_string()),
        max_uses_words: opened.uses.map_or_else(
            || "now without limit".to_owned(),
            |uses| format!("at most {uses}"),
        ),
        dwell_ms: 0,
    })
}

const fn standing(standing: AccessStanding) -> &'static str {
    match standing {
        AccessStanding::Waiting => "It waits for people.",
        AccessStanding::Approved => "Enough people said yes. The agent may have its token.",
        AccessStanding::Denied => "A person said no. That ends it.",
        AccessStanding::Consumed => "It was approved, and the agent has its token.",
        AccessStanding::Cancelled => "The agent took it back.",
        AccessStanding::Expired => {
            "Nobody decided in time, and that is a no. A vote has no effect any more."
        }
        AccessStanding::Ended => {
            "Its task is over, or the rules no longer ask for it. A vote has no effect any more."
        }
    }
}
