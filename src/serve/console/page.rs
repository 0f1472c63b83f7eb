//! Page frame: title, navigation and the signed-in person of every console page.

use super::assets::{ASSETS, AssetPaths};
use super::format::escape;
use super::session_cookie::ConsoleRequest;
use super::state::Console;
use crate::broker::{CallerRole, NO_OPERATOR, SignedInUser};
use crate::model::Timestamp;
use crate::model::text::escape_rendered;
use crate::policy::Role;
use crate::serve::routes::{self, Route, RouteKind};

/// The frame of a page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) assets: &'static AssetPaths,
    pub(super) now: Timestamp,
    pub(super) realm: String,
    /// The name of the signed-in person; `None` on the sign-in, enrolment and error pages.
    pub(super) user: Option<String>,
    pub(super) links: Vec<NavLink>,
    /// A page of one narrow column.
    pub(super) narrow: bool,
    /// Warnings that every page of a signed-in person begins with.
    pub(super) warnings: Vec<String>,
}

/// A link of the navigation.
#[derive(Debug)]
pub(super) struct NavLink {
    pub(super) path: &'static str,
    pub(super) label: &'static str,
    pub(super) current: bool,
}

/// The pages in the navigation.
const NAVIGATION: &[(&str, &str)] = &[
    ("/console", "Inbox"),
    ("/console/tasks", "Tasks"),
    ("/console/tokens", "Tokens"),
    ("/console/agents", "Agents"),
    ("/console/rules", "Rules"),
    ("/console/approvers", "Approvers"),
    ("/console/journal", "Journal"),
];

impl Page {
    /// A page of a signed-in person.
    pub(super) fn new(
        console: &Console,
        request: &ConsoleRequest,
        user: &SignedInUser,
        title: &str,
    ) -> Self {
        let links = NAVIGATION
            .iter()
            .filter(|(path, _)| routes::route(path).is_some_and(|route| may_open(user, route)))
            .map(|(path, label)| NavLink {
                path,
                label,
                current: is_below(&request.path, path),
            })
            .collect();
        Self {
            user: Some(escape(&user.name)),
            links,
            narrow: false,
            warnings: warnings(console),
            title: escape_rendered(title),
            ..Self::signed_out(console, "")
        }
    }

    /// A page without a session.
    pub(super) fn signed_out(console: &Console, title: &'static str) -> Self {
        Self {
            title: title.to_owned(),
            assets: &ASSETS,
            now: console.broker.now(),
            realm: console.broker.settings().realm.to_string(),
            user: None,
            links: Vec::new(),
            narrow: true,
            warnings: Vec::new(),
        }
    }
}

/// What everyone must know: that no operator can act, that the operators were recovered on the host, that a fact has another value than normally, and that too
/// few people can satisfy a profile.
fn warnings(console: &Console) -> Vec<String> {
    let broker = &console.broker;
    let mut warnings = Vec::new();
    if broker.is_ungoverned() {
        warnings.push(NO_OPERATOR.to_owned());
    }
    if let Some(known) = broker.recent_recovery() {
        let recovery = &known.recovery;
        warnings.push(format!(
            "the operators were recovered on the broker's host at {}, by {} (unverified): {} (entry {})",
            known.at, recovery.host_user, recovery.reason, known.index
        ));
    }
    warnings.extend(broker.notices());
    warnings.iter().map(String::as_str).map(escape).collect()
}

/// Whether a page is below another in the navigation: a card is below the inbox.
fn is_below(path: &str, parent: &str) -> bool {
    if parent == "/console" {
        return path == parent || path.starts_with("/console/requests/");
    }
    path == parent
        || path
            .strip_prefix(parent)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// Whether to show a person the link to a route. Only for display: the broker authorizes the request itself.
pub(super) fn may_open(user: &SignedInUser, route: &Route) -> bool {
    route.allowed_roles().iter().any(|role| match role {
        CallerRole::Approver => user.roles.contains(&Role::Approver),
        CallerRole::Operator => user.roles.contains(&Role::Operator),
        CallerRole::Agent | CallerRole::Validator | CallerRole::Auditor => false,
    })
}

/// Whether a path is one of the console's pages, in its one written form: sign-in redirects to no other path.
pub(super) fn is_page(path: &str) -> bool {
    let is_plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b':');
    path.bytes().all(is_plain)
        && routes::route(path).is_some_and(|route| route.kind == RouteKind::Page)
        && path != "/console/sign-in"
}

/// The sign-in page that redirects back to a page.
pub(super) fn sign_in_url(path: &str) -> String {
    if is_page(path) && path != "/console" {
        format!("/console/sign-in?to={path}")
    } else {
        "/console/sign-in".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_open_redirect() {
        for ours in [
            "/console",
            "/console/requests/areq_AbC-_9",
            "/console/rules",
        ] {
            assert!(is_page(ours), "{ours}");
        }
        for foreign in [
            "//evil.example",
            "https://evil.example/console/rules",
            "/console/../evil",
            "/console/rules?x",
            "/console/rules#x",
            "/console\\evil",
            "/console/sign-in",
            "/console/sign-out",
            "/console/events",
            "/console/nothing",
            "javascript:alert(1)",
            "",
        ] {
            assert!(!is_page(foreign), "{foreign}");
            assert_eq!(sign_in_url(foreign), "/console/sign-in", "{foreign}");
        }
        assert_eq!(
            sign_in_url("/console/requests/areq_x"),
            "/console/sign-in?to=/console/requests/areq_x"
        );
    }
}
