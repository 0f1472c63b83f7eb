//! The broker's answers as JSON and as words.

use serde_json::{Value, json};

use crate::card::{AccessRequestStatus, escape_untrusted};
use crate::model::text::escape_invisible;
use crate::model::{Action, Target, Timestamp, format_seconds};
use crate::client;

/// RFC 3339, or null.
pub(super) fn moment(wire: Option<&Timestamp>) -> Value {
    read(wire).map_or(Value::Null, |at| Value::String(at.to_string()))
}

/// Whole seconds, or null.
pub(super) fn seconds(wire: Option<&i64>) -> Value {
    wire.map_or(Value::Null, |seconds| Value::from(*seconds))
}

fn read(wire: Option<&Timestamp>) -> Option<Timestamp> {
    wire.copied()
}

/// `2026-11-22T10:00:00Z, in 4m 59s`.
pub(super) fn when(wire: Option<&Timestamp>, now: Timestamp) -> String {
    read(wire).map_or_else(
        || "unknown".to_owned(),
        |at| format!("{at}, {}", distance(at, now)),
    )
}

/// `2026-11-22T10:00:00Z`.
pub(super) fn instant(wire: Option<&Timestamp>) -> String {
    read(wire).map_or_else(|| "unknown".to_owned(), |at| at.to_string())
}

/// `in 5m` or `5m ago`.
pub(super) fn distance(at: Timestamp, now: Timestamp) -> String {
    let ms = at.since(now);
    if ms >= 0 {
        format!("in {}", format_seconds(ms / 1_000))
    } else {
        format!("{} ago", format_seconds(-(ms / 1_000)))
    }
}

/// How long from now, or 0s.
pub(super) fn left(wire: Option<&Timestamp>, now: Timestamp) -> String {
    format_seconds(read(wire).map_or(0, |at| at.since(now).max(0) / 1_000))
}

pub(super) fn status(status: Option<AccessRequestStatus>) -> &'static str {
    status.map_or("unknown", AccessRequestStatus::as_str)
}

pub(super) fn rules(rules: &[client::MatchedRule]) -> Value {
    rules
        .iter()
        .map(|r| json!({ "id": r.id, "file": r.file, "why": r.why }))
        .collect()
}

/// One rule a line: its name, where it stands, and why.
pub(super) fn rule_lines(rules: &[client::MatchedRule]) -> String {
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
    rules.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) fn profiles(needs: &[client::RequiredProfile]) -> Value {
    let one = |p: &client::RequiredProfile| {
        json!({
            "profile": p.name, "group": p.group, "quorum": p.quorum, "approvals": p.approvals, "approvers": p.approvers,
            "digest": p.digest,
        })
    };
    needs.iter().map(one).collect()
}

/// One profile a line: `one-security: 0 of 1 from security`.
pub(super) fn profile_lines(needs: &[client::RequiredProfile]) -> String {
    let line = |p: &client::RequiredProfile| {
        let who = if p.approvers.is_empty() {
            String::new()
        } else {
            format!(" (yes: {})", escape_invisible(&p.approvers.join(", ")))
        };
        format!(
            "{}: {} of {} from {}{who}",
            escape_invisible(&p.name),
            p.approvals,
            p.quorum,
            escape_invisible(&p.group)
        )
    };
    needs.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) fn ttl(sum: Option<&client::GrantedTtl>) -> Value {
    let Some(sum) = sum else { return Value::Null };
    let bounds: Vec<Value> = sum
        .limits
        .iter()
        .map(|b| json!({ "by": b.by, "ttl": seconds(b.ttl.as_ref()) }))
        .collect();
    json!({ "asked": seconds(sum.requested.as_ref()), "bounds": bounds, "granted": seconds(sum.granted.as_ref()) })
}

/// `5m = least of asked 15m, cap 15m, rules 10m`.
pub(super) fn ttl_line(sum: Option<&client::GrantedTtl>) -> String {
    let Some(sum) = sum else {
        return "unknown".to_owned();
    };
    let show = |d: Option<&i64>| {
        d.map_or_else(|| "?".to_owned(), |d| format_seconds(*d))
    };
    let mut terms = vec![format!("asked {}", show(sum.requested.as_ref()))];
    terms.extend(
        sum.limits
            .iter()
            .map(|b| format!("{} {}", escape_invisible(&b.by), show(b.ttl.as_ref()))),
    );
    format!(
        "{} = least of {}",
        show(sum.granted.as_ref()),
        terms.join(", ")
    )
}

/// The parameters, as they are in the action.
pub(super) fn parameters(action: &Action) -> Value {
    action
        .parameters
        .iter()
        .map(|(name, value)| (name.clone(), value.to_json()))
        .collect()
}

pub(super) fn action(action: Option<&Action>) -> Value {
    let Some(action) = action else {
        return Value::Null;
    };
    json!({
        "action": action.name,
        "target": target(Some(&action.target)),
        "parameters": parameters(action),
        "audience": action.audience,
    })
}

/// `Type::id`, safe to print in a row: no run of blanks in it looks like the next column.
pub(super) fn target(target: Option<&Target>) -> String {
    target.map_or_else(
        || "?".to_owned(),
        |t| escape_untrusted(&format!("{}::{}", t.kind, t.id)),
    )
}

pub(super) fn access_request(request: &client::AccessRequestInfo) -> Value {
    json!({
        "access_request": request.access_request_id,
        "task": request.task_id,
        "agent": request.agent_id,
        "status": status(request.status),
        "title": request.title,
        "risk": request.risk,
        "action": action(request.action.as_ref()),
        "needs": profiles(&request.needs),
        "opened_at": moment(request.opened_at.as_ref()),
        "expires_at": moment(request.expires_at.as_ref()),
    })
}

pub(super) fn end_report(report: &client::TaskEndReport) -> Value {
    json!({
        "task": report.task_id,
        "cause": report.cause,
        "ended_at": moment(report.ended_at.as_ref()),
        "position": report.position,
        "tokens": report.tokens,
        "tokens_total": report.tokens_total,
        "tokens_revoked": report.tokens_revoked,
        "access_requests_closed": report.access_requests_closed,
    })
}

/// What an end ended, in one line.
pub(super) fn end_line(report: &client::TaskEndReport) -> String {
    format!(
        "{} ended ({}) by entry {}: {} of {} tokens were alive and are revoked, {} access requests closed",
        escape_invisible(&report.task_id),
        escape_invisible(&report.cause),
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
    fn the_arithmetic_reads_as_a_sum() {
        let s = Some::<i64>;
        let bounds = vec![
            client::TtlLimitInfo {
                by: "cap".into(),
                ttl: s(900),
            },
            client::TtlLimitInfo {
                by: "rules".into(),
                ttl: s(600),
            },
        ];
        let sum = client::GrantedTtl {
            requested: s(900),
            limits: bounds,
            granted: s(600),
        };
        assert_eq!(
            ttl_line(Some(&sum)),
            "10m = least of asked 15m, cap 15m, rules 10m"
        );
    }

    #[test]
    fn a_target_cannot_make_a_column() {
        let wild = Target {
            kind: "Account".into(),
            id: "ann  APPROVED\u{202e} ".into(),
        };
        assert_eq!(
            target(Some(&wild)),
            "Account::ann <U+0020>APPROVED<U+202E><U+0020>"
        );
    }

    #[test]
    fn an_end_counts_every_token() {
        let report = client::TaskEndReport {
            tokens: vec!["tok_1".into()],
            tokens_revoked: 7,
            tokens_total: 5_000,
            ..client::TaskEndReport::default()
        };
        let line = end_line(&report);
        assert!(line.contains("7 of 5000 tokens were alive"), "{line}");
        assert_eq!(end_report(&report)["tokens_total"], 5_000);
    }

    #[test]
    fn time_has_a_direction() {
        let now = Timestamp::from_secs(1_000);
        assert_eq!(distance(now.plus_secs(61), now), "in 1m 1s");
        assert_eq!(distance(now.plus_secs(-61), now), "1m 1s ago");
    }
}
