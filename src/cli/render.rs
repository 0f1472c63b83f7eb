//! Rendering of broker responses as JSON and text.

use serde_json::{Value, json};

use crate::card::{AccessRequestStatus, CardDelay, escape_untrusted};
use crate::client;
use crate::model::text::escape_invisible;
use crate::model::{Action, Target, Timestamp, VoteMethod, format_seconds};

/// RFC 3339, or null.
pub(super) fn timestamp_json(wire: Option<&Timestamp>) -> Value {
    parse_timestamp(wire).map_or(Value::Null, |at| Value::String(at.to_string()))
}

/// Whole seconds, or null.
pub(super) fn duration_json(wire: Option<&i64>) -> Value {
    wire.map_or(Value::Null, |seconds| Value::from(*seconds))
}

fn parse_timestamp(wire: Option<&Timestamp>) -> Option<Timestamp> {
    wire.copied()
}

/// `2026-11-22T10:00:00Z, in 4m 59s`.
pub(super) fn timestamp_with_distance(wire: Option<&Timestamp>, now: Timestamp) -> String {
    parse_timestamp(wire).map_or_else(
        || "unknown".to_owned(),
        |at| format!("{at}, {}", relative_time(at, now)),
    )
}

/// `2026-11-22T10:00:00Z`.
pub(super) fn timestamp(wire: Option<&Timestamp>) -> String {
    parse_timestamp(wire).map_or_else(|| "unknown".to_owned(), |at| at.to_string())
}

/// `in 5m` or `5m ago`.
pub(super) fn relative_time(at: Timestamp, now: Timestamp) -> String {
    let ms = at.since(now);
    if ms >= 0 {
        format!("in {}", format_seconds(ms / 1_000))
    } else {
        format!("{} ago", format_seconds(-(ms / 1_000)))
    }
}

/// The time left, or 0s.
pub(super) fn remaining(wire: Option<&Timestamp>, now: Timestamp) -> String {
    format_seconds(parse_timestamp(wire).map_or(0, |at| at.since(now).max(0) / 1_000))
}

pub(super) fn status(status: Option<AccessRequestStatus>) -> &'static str {
    status.map_or("unknown", AccessRequestStatus::as_str)
}

pub(super) fn rules_json(rules: &[client::MatchedRule]) -> Value {
    rules
        .iter()
        .map(|r| json!({ "id": r.id, "file": r.file, "why": r.why, "effect": r.effect }))
        .collect()
}

/// The rules because of which an approval is needed, and the rules that allow the action with it.
pub(super) fn rules_apart(
    rules: &[client::MatchedRule],
) -> (Vec<&client::MatchedRule>, Vec<&client::MatchedRule>) {
    let is_asking =
        |rule: &&client::MatchedRule| rule.effect != "permit" && rule.effect != "max_ttl";
    let allowing = rules.iter().filter(|rule| rule.effect == "permit");
    (rules.iter().filter(is_asking).collect(), allowing.collect())
}

/// One rule per line: its id, file and explanation.
pub(super) fn rule_lines<'a>(rules: impl IntoIterator<Item = &'a client::MatchedRule>) -> String {
    let line = |r: &client::MatchedRule| {
        let why = if r.why.is_empty() {
            String::new()
        } else {
            format!("  {}", escape_invisible(&r.why))
        };
        format!(
            "{} ({}){why}",
            escape_invisible(&r.id),
            escape_invisible(&r.file)
        )
    };
    rules.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) fn delay_json(delay: Option<&CardDelay>) -> Value {
    delay.map_or(
        Value::Null,
        |delay| json!({ "at": delay.at.to_string(), "needs": delay.needs }),
    )
}

pub(super) fn profiles_json(needs: &[client::RequiredProfile]) -> Value {
    let approval =
        |a: &client::ProfileApproval| json!({ "person": a.person_id, "method": a.method });
    let profile = |p: &client::RequiredProfile| {
        json!({
            "profile": p.name, "group": p.group, "quorum": p.quorum, "approvals": p.approvals, "digest": p.digest,
            "approvers": p.approvers.iter().map(approval).collect::<Value>(),
        })
    };
    needs.iter().map(profile).collect()
}

/// `lee by passkey`, or `lee by a registered key`.
fn approval_text(approval: &client::ProfileApproval) -> String {
    let method = VoteMethod::parse(&approval.method);
    let how = method.map_or("by an unknown method", VoteMethod::signed_by);
    format!("{} {how}", escape_invisible(&approval.person_id))
}

/// One profile per line: `one-security: 0 of 1 from security`.
pub(super) fn profile_lines(needs: &[client::RequiredProfile]) -> String {
    let line = |p: &client::RequiredProfile| {
        let approved_by = if p.approvers.is_empty() {
            String::new()
        } else {
            let approvals: Vec<String> = p.approvers.iter().map(approval_text).collect();
            format!(" (approved: {})", approvals.join(", "))
        };
        format!(
            "{}: {} of {} from {}{approved_by}",
            escape_invisible(&p.name),
            p.approvals,
            p.quorum,
            escape_invisible(&p.group)
        )
    };
    needs.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One void approval per line: `APPROVAL VOID: what it was given for has changed: risk`.
pub(super) fn void_lines(void: &[client::VoidApproval]) -> String {
    let line = |vote: &client::VoidApproval| {
        let of = match vote.voter.is_empty() {
            true => String::new(),
            false => format!(" of {}", escape_invisible(&vote.voter)),
        };
        let changed = escape_invisible(&vote.changed.join(", "));
        format!("APPROVAL VOID{of}: what it was given for has changed: {changed}")
    };
    void.iter().map(line).collect::<Vec<_>>().join(
        "
",
    )
}

pub(super) fn void_json(void: &[client::VoidApproval]) -> Vec<Value> {
    let vote =
        |vote: &client::VoidApproval| json!({ "voter": vote.voter, "changed": vote.changed });
    void.iter().map(vote).collect()
}

pub(super) fn ttl_json(ttl: Option<&client::GrantedTtl>) -> Value {
    let Some(ttl) = ttl else { return Value::Null };
    let limits: Vec<Value> = ttl
        .limits
        .iter()
        .map(|b| json!({ "by": b.by, "ttl": duration_json(b.ttl.as_ref()) }))
        .collect();
    json!({ "requested": duration_json(ttl.requested.as_ref()), "limits": limits, "granted": duration_json(ttl.granted.as_ref()) })
}

/// `5m = minimum of requested 15m, cap 15m, rules 10m`.
pub(super) fn ttl_line(ttl: Option<&client::GrantedTtl>) -> String {
    let Some(ttl) = ttl else {
        return "unknown".to_owned();
    };
    let text = |d: Option<&i64>| d.map_or_else(|| "?".to_owned(), |d| format_seconds(*d));
    let mut terms = vec![format!("requested {}", text(ttl.requested.as_ref()))];
    terms.extend(
        ttl.limits
            .iter()
            .map(|b| format!("{} {}", escape_invisible(&b.by), text(b.ttl.as_ref()))),
    );
    format!(
        "{} = minimum of {}",
        text(ttl.granted.as_ref()),
        terms.join(", ")
    )
}

/// The parameters, as they are in the action.
pub(super) fn parameters_json(action: &Action) -> Value {
    action
        .parameters
        .iter()
        .map(|(name, value)| (name.clone(), value.to_json()))
        .collect()
}

pub(super) fn action_json(action: Option<&Action>) -> Value {
    let Some(action) = action else {
        return Value::Null;
    };
    json!({
        "action": action.name,
        "target": action.target.to_string(),
        "parameters": parameters_json(action),
        "audience": action.audience,
    })
}

/// `Type::id`, escaped so that a run of spaces in it cannot look like the next column, and quoted unless it is a plain name.
pub(super) fn target(target: Option<&Target>) -> String {
    target.map_or_else(
        || "?".to_owned(),
        |target| escape_untrusted(&target.in_sentence()),
    )
}

/// `Type::id` as it is, or null.
pub(super) fn target_json(target: Option<&Target>) -> Value {
    target.map_or(Value::Null, |target| Value::String(target.to_string()))
}

pub(super) fn access_request_json(request: &client::AccessRequestInfo) -> Value {
    json!({
        "access_request": request.access_request_id,
        "task": request.task_id,
        "agent": request.agent_id,
        "status": status(request.status),
        "title": request.title,
        "risk": request.risk,
        "action": action_json(request.action.as_ref()),
        "needs": profiles_json(&request.needs),
        "void_votes": void_json(&request.void_votes),
        "delay": delay_json(request.delay.as_ref()),
        "proposer": request.proposer,
        "executor": request.executor,
        "opened_at": timestamp_json(request.opened_at.as_ref()),
        "expires_at": timestamp_json(request.expires_at.as_ref()),
    })
}

pub(super) fn end_report_json(report: &client::TaskEndReport) -> Value {
    json!({
        "task": report.task_id,
        "cause": report.cause,
        "ended_at": timestamp_json(report.ended_at.as_ref()),
        "position": report.position,
        "tokens": report.tokens,
        "tokens_total": report.tokens_total,
        "tokens_revoked": report.tokens_revoked,
        "access_requests_closed": report.access_requests_closed,
    })
}

/// The report of an ended task, in one line.
pub(super) fn end_line(report: &client::TaskEndReport) -> String {
    format!(
        "{} ended ({}) at {} by entry {}: {} of {} tokens were active and are revoked, {} access requests closed",
        escape_invisible(&report.task_id),
        escape_invisible(&report.cause),
        timestamp(report.ended_at.as_ref()),
        report.position,
        report.tokens_revoked,
        report.tokens_total,
        report.access_requests_closed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttl_breakdown_text() {
        let s = Some::<i64>;
        let limits = vec![
            client::TtlLimitInfo {
                by: "cap".into(),
                ttl: s(900),
            },
            client::TtlLimitInfo {
                by: "rules".into(),
                ttl: s(600),
            },
        ];
        let ttl = client::GrantedTtl {
            requested: s(900),
            limits,
            granted: s(600),
        };
        assert_eq!(
            ttl_line(Some(&ttl)),
            "10m = minimum of requested 15m, cap 15m, rules 10m"
        );
    }

    #[test]
    fn target_cannot_break_table_layout() {
        let hostile = Target {
            kind: "Account".into(),
            id: "ann  APPROVED\u{202e} ".into(),
        };
        assert_eq!(
            target(Some(&hostile)),
            r#"Account::"ann <U+0020>APPROVED<U+202E> ""#
        );
    }

    #[test]
    fn end_report_counts_every_token() {
        let report = client::TaskEndReport {
            tokens: vec!["tok_1".into()],
            tokens_revoked: 7,
            tokens_total: 5_000,
            ..client::TaskEndReport::default()
        };
        let line = end_line(&report);
        assert!(line.contains("7 of 5000 tokens were active"), "{line}");
        assert_eq!(end_report_json(&report)["tokens_total"], 5_000);
    }

    #[test]
    fn relative_time_past_and_future() {
        let now = Timestamp::from_secs(1_000);
        assert_eq!(relative_time(now.plus_secs(61), now), "in 1m 1s");
        assert_eq!(relative_time(now.plus_secs(-61), now), "1m 1s ago");
    }
}
