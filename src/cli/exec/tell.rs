use std::io::Write as _;

use serde_json::{Value, json};

use super::program::NotRun;
use crate::cli::shapes;
use crate::client::{self, Denial, PendingApproval, AccessToken};
use crate::model::format_seconds;
use crate::model::text::escape_invisible;

/// What happens, one line each, on stderr: stdout belongs to the command alone. Every text of others has been revealed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tell {
    json: bool,
}

impl Tell {
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// One event: a word, a text for people, and members for machines.
    pub(super) fn event(self, word: &str, text: &str, mut members: Value) {
        let line = if self.json {
            if let Some(members) = members.as_object_mut() {
                members.insert("event".to_owned(), json!(word));
            }
            members.to_string()
        } else {
            format!("dipylon: {word:<8}  {text}")
        };
        // Nobody may read it, and the command runs all the same.
        let _gone = writeln!(std::io::stderr().lock(), "{line}");
    }

    pub(super) fn step_up(self, pending: &PendingApproval) {
        let id = pending.access_request_id();
        let needs = |p: &client::RequiredProfile| {
            format!(
                "{} of group {}",
                p.quorum.saturating_sub(p.approvals),
                escape_invisible(&p.group)
            )
        };
        let needs: Vec<String> = pending.needs().iter().map(needs).collect();
        self.event(
            "step-up",
            &format!(
                "needs {} because of {}  {}  {id}",
                needs.join(" and "),
                rules(pending.rules()),
                pending.match_phrase()
            ),
            json!({
                "access_request": id, "match_phrase": pending.match_phrase().to_string(),
                "rules": shapes::rules(pending.rules()), "needs": shapes::profiles(pending.needs()),
                "expires_at": pending.expires_at().to_string(),
            }),
        );
    }

    /// Names the program alone: its arguments may be anything.
    pub(super) fn given(self, token: &AccessToken, by_people: bool, program: &str) {
        let ttl = token.ttl().and_then(|sum| sum.granted.as_ref());
        let ttl = ttl.map_or_else(|| "?".to_owned(), |ttl| format_seconds(*ttl));
        let uses = token
            .uses()
            .map_or_else(String::new, |uses| format!(", uses {uses}"));
        let action = escape_invisible(&format!(
            "{} on {}",
            token.action().name,
            token.action().target
        ));
        self.event(
            if by_people { "approved" } else { "allowed" },
            &format!("{action} by {}, ttl {ttl}{uses}  -> running {}", rules(token.rules()), escape_invisible(program)),
            json!({
                "jti": token.jti(), "decision": token.decision_id(), "expires_at": token.expires_at().to_string(),
                "uses": token.uses(), "ttl": shapes::ttl(token.ttl()), "rules": shapes::rules(token.rules()),
            }),
        );
    }

    pub(super) fn denied(self, no: &Denial) {
        let by = if no.rules().is_empty() {
            String::new()
        } else {
            format!(" by {}", rules(no.rules()))
        };
        let comment = match no.comment() {
            None => String::new(),
            Some(text) => format!(": \"{}\"", escape_invisible(text)),
        };
        let next = no
            .reason()
            .map_or_else(String::new, |reason| format!("{}; ", reason.next_step()));
        self.event(
            "denied",
            &format!(
                "{}{by}{comment}; {next}an operator sees more: dipylon explain {}",
                escape_invisible(no.reason_str()),
                no.decision_id()
            ),
            json!({
                "reason": no.reason_str(), "comment": no.comment(), "rules": shapes::rules(no.rules()), "access_request": no.access_request_id(),
                "decision": no.decision_id(), "next": no.reason().map(crate::model::DeniedReason::next_step),
            }),
        );
    }

    pub(super) fn not_run(self, program: &str, not: NotRun) {
        self.event(
            "failed",
            &format!("{}: {not}", escape_invisible(program)),
            json!({ "program": program, "exit": not.code(), "message": not.to_string() }),
        );
    }
}

/// `rule "a" and rule "b"`.
fn rules(rules: &[client::MatchedRule]) -> String {
    let names: Vec<String> = rules
        .iter()
        .map(|rule| format!("rule \"{}\"", escape_invisible(&rule.id)))
        .collect();
    names.join(" and ")
}
