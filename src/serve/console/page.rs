//! What every page has: its head, the ways to the other pages, who is there.

use super::Console;
use super::assets::{ASSETS, Assets};
use super::rows::{self, Row};
use super::session_cookie::Call;
use super::show::shown;
use crate::broker::{CallerRole, SignedInUser};
use crate::model::Timestamp;
use crate::policy::Role;

/// The frame of a page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) assets: &'static Assets,
    pub(super) now: Timestamp,
    pub(super) realm: String,
    /// The name of who is there; nobody on the way in.
    pub(super) visitor: Option<String>,
    pub(super) links: Vec<Link>,
    /// A page of one narrow column.
    pub(super) narrow: bool,
}

/// A way to another page.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) path: &'static str,
    pub(super) words: &'static str,
    pub(super) here: bool,
}

/// The pages one can go to from everywhere.
const PLACES: &[(&str, &str)] = &[
    ("/console", "Inbox"),
    ("/console/tasks", "Tasks"),
    ("/console/tokens", "Tokens"),
    ("/console/agents", "Agents"),
    ("/console/rules", "Rules"),
    ("/console/approvers", "Approvers"),
    ("/console/journal", "Journal"),
];

impl Page {
    /// A page of a session.
    pub(super) fn new(console: &Console, call: &Call, visitor: &SignedInUser, title: &str) -> Self {
        let links = PLACES
            .iter()
            .filter(|(path, _)| rows::of(path).is_some_and(|row| may(visitor, row)))
            .map(|(path, words)| Link {
                path,
                words,
                here: is_under(&call.path, path),
            })
            .collect();
        Self {
            visitor: Some(shown(&visitor.name)),
            links,
            narrow: false,
            title: shown(title),
            ..Self::stranger(console, "")
        }
    }

    /// A page for nobody in particular.
    pub(super) fn stranger(console: &Console, title: &'static str) -> Self {
        Self {
            title: title.to_owned(),
            assets: &ASSETS,
            now: console.broker.now(),
            realm: console.broker.settings().realm.to_string(),
            visitor: None,
            links: Vec::new(),
            narrow: true,
        }
    }
}

/// Whether a page lies under a place: a card lies under the inbox.
fn is_under(path: &str, place: &str) -> bool {
    if place == "/console" {
        return path == place || path.starts_with("/console/requests/");
    }
    path == place
        || path
            .strip_prefix(place)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// Whether a visitor may use a route: for what is shown, never for what is done.
pub(super) fn may(visitor: &SignedInUser, row: &Row) -> bool {
    row.admits().iter().any(|kind| match kind {
        CallerRole::Approver => visitor.roles.contains(&Role::Approver),
        CallerRole::Operator => visitor.roles.contains(&Role::Operator),
        CallerRole::Agent | CallerRole::Validator | CallerRole::Auditor => false,
    })
}

/// Whether a path is one of our pages, written as we write them: nothing else is ever gone to after signing in.
pub(super) fn is_page(path: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b':');
    path.bytes().all(plain)
        && rows::of(path).is_some_and(|row| row.shape == rows::Shape::Page)
        && path != "/console/sign-in"
}

/// The sign-in that leads back to a page.
pub(super) fn sign_in_for(path: &str) -> String {
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
    fn nobody_is_led_elsewhere() {
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
            assert_eq!(sign_in_for(foreign), "/console/sign-in", "{foreign}");
        }
        assert_eq!(
            sign_in_for("/console/requests/areq_x"),
            "/console/sign-in?to=/console/requests/areq_x"
        );
    }
}
