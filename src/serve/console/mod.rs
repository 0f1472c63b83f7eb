//! Web console: pages for approvers, operators and auditors, rendered on the server and readable without a script.
//!
//! In: requests of browsers. Out: pages, the few JSON replies the one script needs, refusals with the same reasons as gRPC.
//! Trusts: the session cookie only as far as the broker does; `Origin` and Fetch Metadata for the page that sent a request;
//! no other claim of a browser.
//! Refuses: paths without a route, other hosts, cross-site requests ([`security`]).
//! A session lets people read; each decision is signed by itself with a passkey. No GET changes anything. Templates escape
//! all text; text of agents and people is never markup.

mod agents;
mod approvers;
mod assets;
mod card;
mod error;
mod events;
mod format;
mod inbox;
mod journal;
mod page;
mod passkeys;
mod response;
mod rules;
mod security;
mod session_cookie;
mod state;
mod tasks;
mod timeline_rows;
mod tokens;
mod vote;

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::routing::{MethodFilter, MethodRouter, any, on};
use tokio::sync::watch;

use super::admission::AdmissionControl;
use super::routes::{ROUTES, RouteId};
use crate::broker::Broker;
use state::Console;

pub(super) use security::add_security_headers;

/// The console's router: a handler for each route of the table, behind [`security::guard`].
pub(super) fn router(
    broker: Arc<Broker>,
    admission: Arc<AdmissionControl>,
    stopped: watch::Receiver<bool>,
) -> Router {
    let console = Arc::new(Console::new(broker, admission, stopped));
    let mut router = Router::new();
    for route in ROUTES {
        let method = if route.is_mutation() {
            MethodFilter::POST
        } else {
            MethodFilter::GET
        };
        router = router.route(route.path, handler(route.id, method));
    }
    router
        // Console paths without a route reach the same guard, which answers them.
        .route("/console/", any(async || ()))
        .route("/console/{*rest}", any(async || ()))
        .layer(middleware::from_fn_with_state(
            console.clone(),
            security::guard,
        ))
        .with_state(console)
}

fn handler(route: RouteId, method: MethodFilter) -> MethodRouter<Arc<Console>> {
    match route {
        RouteId::Inbox => on(method, inbox::page),
        RouteId::InboxRows => on(method, inbox::rows),
        RouteId::Events => on(method, events::stream),
        RouteId::SignIn => on(method, passkeys::sign_in),
        RouteId::SignInBegin => on(method, passkeys::begin_sign_in),
        RouteId::SignInFinish => on(method, passkeys::finish_sign_in),
        RouteId::SignOut => on(method, passkeys::sign_out),
        RouteId::Enrol => on(method, passkeys::enrol),
        RouteId::EnrolBegin => on(method, passkeys::begin_enrolment),
        RouteId::EnrolFinish => on(method, passkeys::finish_enrolment),
        RouteId::Card => on(method, card::page),
        RouteId::VoteBegin => on(method, vote::begin),
        RouteId::VoteCast => on(method, vote::cast),
        RouteId::Tokens => on(method, tokens::page),
        RouteId::Revoke => on(method, tokens::revoke),
        RouteId::Tasks => on(method, tasks::list),
        RouteId::Task => on(method, tasks::page),
        RouteId::Agents => on(method, agents::list),
        RouteId::Agent => on(method, agents::page),
        RouteId::Rules => on(method, rules::page),
        RouteId::Approvers => on(method, approvers::page),
        RouteId::ConfirmPasskey => on(method, passkeys::confirm),
        RouteId::Journal => on(method, journal::page),
        RouteId::Asset => on(method, assets::asset),
    }
}
