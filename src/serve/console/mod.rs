//! The console: pages for approvers and operators, rendered here, readable without a script.
//!
//! In: requests of browsers. Out: pages, the few answers the one script needs, refusals in the same words as at every door.
//! Trusts the session's cookie no further than the broker does, `Origin` for where a change comes from, and nothing else a
//! browser says. Refuses paths without a row, other hosts, changes asked for by other pages.
//! A session lets people look; what they decide they sign, each decision by itself. No GET changes anything. Templates escape
//! whatever they are given; nothing of others is ever markup.

mod agents;
mod answer;
mod approvers;
mod assets;
mod card;
mod events;
mod gate;
mod inbox;
mod journal;
mod moments;
mod page;
mod passkeys;
pub mod rows;
mod rules;
mod session_cookie;
mod show;
mod tasks;
mod tokens;
mod vote;

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::routing::{any, get, post};
use tokio::sync::watch;

use super::admit::AdmissionControl;
use crate::broker::Broker;
use crate::model::PersonId;
use crate::rate_limit::PerKeyLimit;
use rows::Row;

pub(super) use gate::dressed;

/// What every page needs.
pub(super) struct Console {
    broker: Arc<Broker>,
    admission: Arc<AdmissionControl>,
    /// The one origin the console has.
    origin: String,
    /// Streams of each person.
    streams: Arc<PerKeyLimit<PersonId>>,
    stopped: watch::Receiver<bool>,
}

/// Streams of events of one person at once: a window each.
const STREAMS_PER_PERSON_MAX: usize = 16;

impl Console {
    /// Counts and logs a request that was refused before anybody looked at it.
    fn refused(&self, by: &'static str, row: &'static Row) {
        self.broker.metrics().refused(CSRF);
        tracing::info!(method = row.name, by, "asked for from elsewhere");
    }
}

/// The word in figures for what another page asked for.
const CSRF: &str = "CONSOLE_FOREIGN_ORIGIN";

/// The console's routes, every one behind its gate.
pub(super) fn routes(
    broker: Arc<Broker>,
    admission: Arc<AdmissionControl>,
    stopped: watch::Receiver<bool>,
) -> Router {
    let console = Arc::new(Console {
        origin: broker.relying_party().origin.clone(),
        streams: Arc::new(PerKeyLimit::new(STREAMS_PER_PERSON_MAX)),
        broker,
        admission,
        stopped,
    });
    Router::new()
        .route("/console", get(inbox::page))
        .route("/console/fragment/inbox", get(inbox::fragment))
        .route(rows::EVENTS, get(events::stream))
        .route("/console/sign-in", get(passkeys::sign_in))
        .route("/console/sign-in/begin", post(passkeys::begin_sign_in))
        .route("/console/sign-in/finish", post(passkeys::finish_sign_in))
        .route("/console/sign-out", post(passkeys::sign_out))
        .route("/console/enrol", get(passkeys::enrol))
        .route("/console/enrol/begin", post(passkeys::begin_enrolment))
        .route("/console/enrol/finish", post(passkeys::finish_enrolment))
        .route("/console/requests/{id}", get(card::page))
        .route("/console/requests/{id}/vote/begin", post(vote::begin))
        .route("/console/requests/{id}/vote/cast", post(vote::cast))
        .route("/console/tokens", get(tokens::page))
        .route("/console/tokens/{jti}/revoke", post(tokens::revoke))
        .route("/console/tasks", get(tasks::list))
        .route("/console/tasks/{id}", get(tasks::page))
        .route("/console/agents", get(agents::list))
        .route("/console/agents/{id}", get(agents::page))
        .route("/console/rules", get(rules::page))
        .route("/console/approvers", get(approvers::page))
        .route("/console/journal", get(journal::page))
        .route("/console/assets/{hash}/{name}", get(assets::asset))
        // Paths of ours that nobody serves meet the same gate, and get no further.
        .route("/console/", any(async || ()))
        .route("/console/{*rest}", any(async || ()))
        .layer(middleware::from_fn_with_state(console.clone(), gate::kept))
        .with_state(console)
}
