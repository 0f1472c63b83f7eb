//! Console routes: one table with each route's path, kind, access and rate class. Handlers, admission, timeouts, the request
//! log and the connection limits read it. A path without an entry is refused.

use axum::http::Method;

use crate::broker::CallerRole::{self, Approver, Auditor, Operator};
use crate::rate_limit::Class::{self, General, Reserved};

/// How a route is requested and what it answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// GET: a page. Without a session the browser is sent to the sign-in page.
    Page,
    /// GET: a part of a page, for the script.
    Fragment,
    /// GET: a stream of events, for the script.
    Stream,
    /// GET: a stylesheet, a script or a picture; the same for all.
    Asset,
    /// POST from a form: a redirect or a page.
    Form,
    /// POST of JSON: JSON.
    Json,
    /// POST of JSON with an assertion of the person's passkey: JSON.
    SignedJson,
}

/// What shows that a request of a route is an act of the person's own, and not of a page that is open. An act that succeeds
/// prolongs the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofOfAct {
    /// Nothing: a script may send it at any time.
    None,
    /// Fetch Metadata: the browser navigates because of a click, a key or its address bar.
    UserNavigation,
    /// The assertion in the body: the passkey requires the person.
    Assertion,
}

impl RouteKind {
    /// What shows that a request of this kind is an act of the person's own.
    pub const fn proof_of_act(self) -> ProofOfAct {
        match self {
            Self::Page | Self::Form => ProofOfAct::UserNavigation,
            Self::SignedJson => ProofOfAct::Assertion,
            Self::Fragment | Self::Stream | Self::Asset | Self::Json => ProofOfAct::None,
        }
    }
}

/// The people who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No session is needed: sign-in, enrolment, sign-out and assets.
    Anonymous,
    /// Signed-in people with one of these roles.
    Roles(&'static [CallerRole]),
}

/// One route.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// Its identity: the console registers a handler for each.
    pub id: RouteId,
    /// Its name in metrics and logs.
    pub name: &'static str,
    /// The path; `{…}` is one segment.
    pub path: &'static str,
    /// Its kind.
    pub kind: RouteKind,
    /// The people who may use it.
    pub access: Access,
    /// The class of its rate limits.
    pub class: Class,
}

impl Route {
    /// The roles that may use it; none for a route without sign-in.
    pub const fn allowed_roles(&self) -> &'static [CallerRole] {
        match self.access {
            Access::Anonymous => &[],
            Access::Roles(roles) => roles,
        }
    }

    /// Whether it changes something.
    pub const fn is_mutation(&self) -> bool {
        match self.kind {
            RouteKind::Page | RouteKind::Fragment | RouteKind::Stream | RouteKind::Asset => false,
            RouteKind::Form | RouteKind::Json | RouteKind::SignedJson => true,
        }
    }

    /// The one HTTP method that it takes.
    pub(super) const fn method(&self) -> Method {
        if self.is_mutation() {
            Method::POST
        } else {
            Method::GET
        }
    }
}

const INBOX_READERS: Access = Access::Roles(&[Approver, Operator]);
const OPERATORS: Access = Access::Roles(&[Operator]);
const READERS: Access = Access::Roles(&[Operator, Auditor]);
const ALL_PEOPLE: Access = Access::Roles(&[Approver, Operator, Auditor]);

macro_rules! routes {
    ($($id:ident = $name:literal, $path:expr, $kind:ident, $access:expr, $class:expr;)*) => {
        /// Every route of the console, by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum RouteId {
            $(#[doc = concat!("`", $name, "`")] $id,)*
        }

        /// The table.
        pub const ROUTES: &[Route] = &[
            $(Route {
                id: RouteId::$id,
                name: $name,
                path: $path,
                kind: RouteKind::$kind,
                access: $access,
                class: $class,
            },)*
        ];
    };
}

routes! {
    Inbox = "console/inbox", "/console", Page, INBOX_READERS, General;
    InboxRows = "console/inbox-rows", "/console/fragment/inbox", Fragment, INBOX_READERS, General;
    Events = "console/events", "/console/events", Stream, INBOX_READERS, General;
    SignIn = "console/sign-in", "/console/sign-in", Page, Access::Anonymous, General;
    SignInBegin = "console/sign-in-begin", "/console/sign-in/begin", Json, Access::Anonymous, General;
    SignInFinish = "console/sign-in-finish", "/console/sign-in/finish", SignedJson, Access::Anonymous, General;
    Enrol = "console/enrol", "/console/enrol", Page, Access::Anonymous, General;
    EnrolBegin = "console/enrol-begin", "/console/enrol/begin", Json, Access::Anonymous, General;
    EnrolFinish = "console/enrol-finish", "/console/enrol/finish", Json, Access::Anonymous, General;
    Card = "console/card", "/console/requests/{id}", Page, INBOX_READERS, General;
    VoteBegin = "console/vote-begin", "/console/requests/{id}/vote/begin", Json, INBOX_READERS, General;
    VoteCast = "console/vote-cast", "/console/requests/{id}/vote/cast", SignedJson, INBOX_READERS, General;
    Tokens = "console/tokens", "/console/tokens", Page, OPERATORS, General;
    // Reserved: revocation goes on while other calls are shed.
    Revoke = "console/revoke", "/console/tokens/{jti}/revoke", Form, OPERATORS, Reserved;
    Tasks = "console/tasks", "/console/tasks", Page, READERS, General;
    Task = "console/task", "/console/tasks/{id}", Page, ALL_PEOPLE, General;
    Agents = "console/agents", "/console/agents", Page, READERS, General;
    Agent = "console/agent", "/console/agents/{id}", Page, READERS, General;
    Rules = "console/rules", "/console/rules", Page, ALL_PEOPLE, General;
    Approvers = "console/approvers", "/console/approvers", Page, ALL_PEOPLE, General;
    ConfirmPasskey = "console/confirm-passkey", "/console/approvers/{id}/confirm", Form, INBOX_READERS, General;
    Journal = "console/journal", "/console/journal", Page, READERS, General;
    SignOut = "console/sign-out", "/console/sign-out", Form, Access::Anonymous, Reserved;
    Asset = "console/asset", "/console/assets/{hash}/{name}", Asset, Access::Anonymous, General;
}

/// Whether a path belongs to the console, with a route or without.
pub fn is_console_path(path: &str) -> bool {
    path.strip_prefix("/console")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The route of a path.
pub fn route(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| matches(route.path, path))
}

/// The rate class of a console path.
pub fn rate_class(path: &str) -> Class {
    route(path).map_or(General, |route| route.class)
}

/// Whether a path answers OK only to a signed-in person.
pub fn requires_session(path: &str) -> bool {
    route(path).is_some_and(|route| route.access != Access::Anonymous)
}

/// Whether a path answers with a stream.
pub fn is_stream(path: &str) -> bool {
    route(path).is_some_and(|route| route.kind == RouteKind::Stream)
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    let same = pattern.split('/').all(|segment| {
        segments
            .next()
            .is_some_and(|part| part == segment || (segment.starts_with('{') && !part.is_empty()))
    });
    same && segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_path_matches_one_route_or_none() {
        let names: BTreeSet<&str> = ROUTES.iter().map(|route| route.name).collect();
        assert_eq!(names.len(), ROUTES.len());
        for one in ROUTES {
            let example = one.path.replace("{id}", "x").replace("{jti}", "x");
            let fits: Vec<_> = ROUTES
                .iter()
                .filter(|r| matches(r.path, &example))
                .collect();
            assert_eq!(fits, [one], "{example}");
            assert!(is_console_path(one.path));
        }
        for foreign in [
            "/console/",
            "/console/requests",
            "/console/requests/",
            "/console/requests/a/b",
            "/console/requests/a/vote/begin/",
            "/consoles",
            "/",
            "",
        ] {
            assert_eq!(route(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn routes_that_a_passkey_signs() {
        let signed = ROUTES
            .iter()
            .filter(|route| route.kind.proof_of_act() == ProofOfAct::Assertion);
        let names: Vec<&str> = signed.map(|route| route.name).collect();
        assert_eq!(names, ["console/sign-in-finish", "console/vote-cast"]);
    }

    #[test]
    fn anonymous_routes() {
        let open: Vec<&str> = ROUTES
            .iter()
            .filter(|route| route.access == Access::Anonymous)
            .map(|route| route.name)
            .collect();
        assert_eq!(
            open,
            [
                "console/sign-in",
                "console/sign-in-begin",
                "console/sign-in-finish",
                "console/enrol",
                "console/enrol-begin",
                "console/enrol-finish",
                "console/sign-out",
                "console/asset",
            ]
        );
        for route in ROUTES {
            let roles = route.allowed_roles();
            let people = [Approver, Operator, Auditor];
            assert!(
                roles.iter().all(|role| people.contains(role)),
                "{}",
                route.name
            );
            assert_eq!(
                roles.is_empty(),
                route.access == Access::Anonymous,
                "{}",
                route.name
            );
        }
    }
}
