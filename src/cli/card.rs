//! The access-request card at a terminal and as JSON.

use std::io::IsTerminal as _;

use serde_json::{Map, Value, json};

use crate::card::{self, COLUMNS_MIN, Card, PersonRef, ProfileProgress};
use crate::model::{Action, Param, Timestamp};

/// Widest card in columns: longer lines are hard to read.
const COLUMNS_MAX: usize = 120;

/// The card as text, as wide as the terminal.
pub(super) fn text(card: &Card, now: Timestamp) -> String {
    card::render_terminal(card, now, columns())
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
    let agent = &card.agent;
    let claims = agent.registered.as_ref();
    let verified = &card.verified;
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
        "agent": {
            "id": agent.id, "owner": agent.owner.id, "owner_name": agent.owner.name,
            "environment": claims.map(|c| &c.environment), "model": claims.map(|c| &c.model),
            "autonomy": claims.map(|c| &c.autonomy),
        },
        "verification": {
            "evidence_kind": verified.kind, "subject": verified.subject,
            "verified_at": verified.verified_at.to_string(), "expires_at": verified.expires_at.to_string(),
        },
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
        "task": card.task,
        "task_key": card.task_key,
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
    let ids = |person: &PersonRef| person.id.to_string();
    json!({
        "profile": need.profile.name, "digest": need.profile.digest, "group": need.group, "quorum": need.quorum,
        "approvals": need.approvers.len(), "approvers": need.approvers.iter().map(ids).collect::<Value>(),
        "method": if need.passkey { "passkey" } else { "key" },
    })
}
