//! Events of `exec` on stderr: one line each, as text or JSON.

use std::io::Write as _;

use serde_json::{Value, json};

use super::program::SpawnError;
use crate::cli::error::CliError;
use crate::cli::render;
use crate::client::{self, AccessToken, Denial, PendingApproval};
use crate::clock::Clock;
use crate::model::text::{escape_invisible, quote};
use crate::model::{AgentId, TaskId, format_seconds};

/// Prints events to stderr, since stdout belongs to the command. Callers escape untrusted text.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventPrinter {
    json: bool,
}

impl EventPrinter {
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints one event: its name with a text, or with members for JSON.
    pub(super) fn event(self, name: &str, text: &str, mut members: Value) {
        let line = if self.json {
            if let Some(members) = members.as_object_mut() {
                members.insert("event".to_owned(), json!(name));
            }
            members.to_string()
        } else {
            format!("dipylon: {name:<8}  {text}")
        };
        // A closed stderr does not stop the command.
        let _ignored = writeln!(std::io::stderr().lock(), "{line}");
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
        let (asking, allowing) = render::rules_apart(pending.rules());
        let delay = pending.delay();
        let delay = delay.map(|delay| format!(", or {},", delay.text(Clock::system().now())));
        self.event(
            "step-up",
            &format!(
                "needs {}{} because of {}{}  {}  {id}",
                needs.join(" and "),
                delay.unwrap_or_default(),
                rules(&asking),
                if allowing.is_empty() {
                    String::new()
                } else {
                    format!("; allowed by {}", rules(&allowing))
                },
                pending.match_phrase()
            ),
            json!({
                "access_request": id, "match_phrase": pending.match_phrase().to_string(),
                "rules": render::rules_json(pending.rules()), "needs": render::profiles_json(pending.needs()),
                "expires_at": pending.expires_at().to_string(), "delay": render::delay_json(pending.delay()),
            }),
        );
    }

    /// Names the program only: its arguments may be secret.
    pub(super) fn token_issued(self, token: &AccessToken, by_people: bool, program: &str) {
        let ttl = token.ttl().and_then(|sum| sum.granted.as_ref());
        let ttl = ttl.map_or_else(|| "?".to_owned(), |ttl| format_seconds(*ttl));
        let uses = token
            .uses()
            .map_or_else(String::new, |uses| format!(", uses {uses}"));
        let action = escape_invisible(&format!(
            "{} on {}",
            token.action().name,
            token.action().target.in_sentence()
        ));
        self.event(
            if by_people { "approved" } else { "allowed" },
            &format!("{action} by {}, ttl {ttl}{uses}  -> running {}", rules(token.rules()), escape_invisible(program)),
            json!({
                "jti": token.jti(), "decision": token.decision_id(), "expires_at": token.expires_at().to_string(),
                "uses": token.uses(), "ttl": render::ttl_json(token.ttl()), "rules": render::rules_json(token.rules()),
            }),
        );
    }

    /// The agent is advisory: it runs nothing.
    pub(super) fn advisory(self, executor: &AgentId) {
        self.event(
            "advisory",
            &format!(
                "this agent recommends actions to {executor} and gets no token; the request was cancelled: recommend with 'dipylon task open' and 'dipylon token request', and keep the task open until {executor} has executed it"
            ),
            json!({ "executor": executor }),
        );
    }

    pub(super) fn denied(self, denied: &Denial) {
        let by = if denied.rules().is_empty() {
            String::new()
        } else {
            format!(" by {}", rules(denied.rules()))
        };
        let comment = match denied.comment() {
            None => String::new(),
            Some(text) => format!(": {}", escape_invisible(&quote(text))),
        };
        let next = denied
            .reason()
            .map_or_else(String::new, |reason| format!("{}; ", reason.next_step()));
        self.event(
            "denied",
            &format!(
                "{}{by}{comment}; {next}an operator can see the details: dipylon explain {}",
                escape_invisible(denied.reason_str()),
                denied.decision_id()
            ),
            json!({
                "reason": denied.reason_str(), "comment": denied.comment(), "rules": render::rules_json(denied.rules()), "access_request": denied.access_request_id(),
                "decision": denied.decision_id(), "next": denied.reason().map(crate::model::DeniedReason::next_step),
            }),
        );
    }

    /// An error that kept the command from running.
    pub(super) fn error(self, error: &CliError, exit: u8) {
        if self.json {
            let mut members = error.to_json();
            for object in ["", "/error"] {
                if let Some(members) = members.pointer_mut(object).and_then(|m| m.as_object_mut()) {
                    members.insert("exit".to_owned(), json!(exit));
                }
            }
            self.event("failed", "", members);
        } else {
            let next_step = error.next_step.as_ref();
            let next_step = next_step.map_or_else(String::new, |step| format!("\n         {step}"));
            let line = format!("dipylon: {}{next_step}", error.message);
            let _ignored = writeln!(std::io::stderr().lock(), "{line}");
        }
    }

    /// The token ended while the command runs.
    pub(super) fn token_ended(self, task: TaskId, cause: &str, signal: Option<i32>) {
        let told = signal.map_or_else(String::new, |signal| {
            format!("; the command gets signal {signal}")
        });
        self.event(
            "ended",
            &format!(
                "{}: requests with the token are refused{told}",
                escape_invisible(cause)
            ),
            json!({ "task": task, "cause": cause, "signal": signal }),
        );
    }

    /// The command's exit code is one that only `exec` itself uses.
    pub(super) fn reserved_code(self, code: u8) {
        self.event(
            "warning",
            &format!(
                "the command exited with {code}, which is reserved for dipylon exec: reported as 1"
            ),
            json!({ "warning": "RESERVED_EXIT_CODE", "command_exit": code }),
        );
    }

    pub(super) fn not_run(self, program: &str, error: SpawnError) {
        self.event(
            "failed",
            &format!("{}: {error}", escape_invisible(program)),
            json!({ "program": program, "exit": error.code(), "message": error.to_string() }),
        );
    }
}

/// `rule "a" and rule "b"`.
fn rules<R: std::borrow::Borrow<client::MatchedRule>>(rules: &[R]) -> String {
    let names: Vec<String> = rules
        .iter()
        .map(|rule| format!("rule {}", escape_invisible(&quote(&rule.borrow().id))))
        .collect();
    names.join(" and ")
}
