//! The access-request card at a terminal and as JSON.

use std::io::IsTerminal as _;

use serde_json::{Map, Value, json};

use super::render;
use crate::card::{
    self, COLUMNS_MIN, Card, CountedApproval, LongValues, ProfileProgress, Requester,
    RequestingAgent,
};
use crate::model::{Action, Param, Timestamp};

/// Widest card in columns: longer lines are hard to read.
const COLUMNS_MAX: usize = 120;

/// The option for long values.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct FullArg {
    /// Show long values in full: without it their beginning, length and SHA-256
    #[arg(long)]
    full: bool,
}

impl FullArg {
    /// The card as text, as wide as the terminal.
    pub(super) fn text(self, card: &Card, now: Timestamp) -> String {
        let values = match self.full {
            true => LongValues::Full,
            false => LongValues::Folded,
        };
        let text = card::render_terminal(card, now, columns(), values);
        let view = card.show(now);
        let mut rows = view.sections.iter().flat_map(|section| &section.rows);
        if !self.full && rows.any(|row| row.fold(row.fold_limits()).is_some()) {
            return format!("{text}  long values are folded (~): --full shows all of them\n");
        }
        text
    }
}

fn columns() -> usize {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return COLUMNS_MIN;
    }
    rustix::termios::tcgetwinsize(&stdout).map_or(COLUMNS_MIN, |size| {
        usize::from(size.ws_col).clamp(COLUMNS_MIN, COLUMNS_MAX)
    })
}

/// The card as JSON: every field, unescaped.
pub(super) fn to_json(card: &Card) -> Value {
    let agent = card.requester.agent();
    let claims = agent.and_then(|agent| agent.registered.as_ref());
    let proposer = match &card.requester {
        Requester::Agent(_) => None,
        Requester::Person(person) => Some(&person.id),
    };
    let timestamp = |at: Option<Timestamp>| at.map(|at| at.to_string());
    json!({
        "access_request": card.access_request,
        "match_phrase": card.phrase().to_string(),
        "realm": card.realm,
        "status": card.status.as_str(),
        "title": card.title, "effect": card.effect, "reversible": card.reversible, "undo": card.undo,
        "risk": card.risk.map(|risk| risk.as_str()),
        "action": card.action.as_deref().map(action),
        "action_digest": card.action.as_ref().map(|action| action.digest()),
        "parameter_titles": card.parameter_titles,
        "target_known": card.target_attributes.is_some(),
        "target_attributes": card.target_attributes.iter().flatten()
            .map(|(name, value)| json!({ "name": name, "value": value })).collect::<Value>(),
        "proposer": proposer,
        "agent": agent.map(|agent| json!({
            "id": agent.id, "owner": agent.owner.id, "owner_name": agent.owner.name,
            "environment": claims.map(|c| &c.environment), "model": claims.map(|c| &c.model),
            "autonomy": claims.map(|c| &c.autonomy),
        })),
        "executor": agent.and_then(|agent| agent.executor.as_ref()).map(|executor| json!({
            "id": executor.id, "owner": executor.owner.id, "owner_name": executor.owner.name,
            "environment": executor.registered.as_ref().map(|c| &c.environment),
            "model": executor.registered.as_ref().map(|c| &c.model),
            "autonomy": executor.registered.as_ref().map(|c| &c.autonomy),
        })),
        "verification": agent.map(|RequestingAgent { verified, .. }| json!({
            "evidence_kind": verified.kind, "subject": verified.subject,
            "verified_at": verified.verified_at.to_string(), "expires_at": verified.expires_at.to_string(),
        })),
        "facts": card.facts().digest().ok(),
        "named_facts": card.named_facts, "delay": render::delay_json(card.delay.as_ref()),
        "changes": card.changes.as_ref().map(|c| json!(c)),
        "void_votes": card.void_votes.iter()
            .map(|v| json!({ "voter": v.voter.id, "changed": v.changed })).collect::<Value>(),
        "rules": card.rules.iter()
            .map(|r| json!({ "id": r.id, "file": r.file, "why": r.why })).collect::<Value>(),
        "needs": card.needs.iter().map(need).collect::<Value>(),
        "unusual": card.history.as_ref().map(|_| &card.anomalies),
        "history": card.history.as_ref().map(|h| json!({
            "approved": h.approved, "denied": h.denied, "approved_by_caller": h.approved_by_caller,
            "denied_by_caller": h.denied_by_caller, "last_approved_at": timestamp(h.last_approved_at),
            "last_denied_at": timestamp(h.last_denied_at), "last_denied_by": h.last_denied_by.as_ref().map(|person| &person.id),
            "requested_today": h.requested_today, "first": h.first,
        })),
        "task": agent.map(|agent| agent.task),
        "task_key": agent.map(|agent| agent.task_key),
        "max_ttl": card.max_ttl,
        "uses": card.uses,
        "policy_version": card.policy,
        "opened_at": card.opened_at.to_string(),
        "expires_at": card.expires_at.to_string(),
        "dwell": card.dwell_s,
        "console_url": card.console_url,
        "agent_says_unverified": {
            "purpose": card.purpose.as_ref().map(|p| p.as_str()), "reason": card.reason.as_ref().map(|p| p.as_str()),
        },
    })
}

fn action(action: &Action) -> Value {
    let parameters: Map<String, Value> = action
        .parameters
        .iter()
        .map(|(name, param): (&String, &Param)| (name.clone(), param.to_json()))
        .collect();
    json!({
        "action": action.name, "target": action.target.to_string(), "parameters": parameters,
        "audience": action.audience,
    })
}

fn need(need: &ProfileProgress) -> Value {
    let approval = |approval: &CountedApproval| json!({ "person": approval.person.id, "method": approval.method.as_str() });
    json!({
        "profile": need.profile.name, "digest": need.profile.digest, "group": need.group, "quorum": need.quorum,
        "approvals": need.approvers.len(), "approvers": need.approvers.iter().map(approval).collect::<Value>(),
        "method": if need.passkey { "passkey" } else { "key" },
    })
}
