//! What was counted and what happened, in wire words.

use super::shapes::count;
use crate::broker::{ActionUse, ApproverStatsRow, LiveToken, TimelineEvent, RuleStatsRow};
use crate::proto::convert::{target_to_wire, timestamp_to_wire};
use crate::proto::v1;

/// Most actions of an agent's activity: what a message holds beside the rest of it.
const ACTIVITY_MAX: usize = 200;

pub(super) fn rule(row: &RuleStatsRow) -> v1::RuleFigures {
    v1::RuleFigures {
        rule_id: row.id.clone(),
        file: row.file.clone(),
        line: count(row.line),
        why: row.why.clone(),
        kind: row.kind.to_owned(),
        remedy: row.remedy.clone(),
        hits: row.hits,
        asked: row.asked,
        approved: row.approved,
        denied: row.denied,
        expired: row.expired,
        approved_percent: row.approved_percent,
        median_seconds: row.median_s,
        last_at: row.last_at.map(timestamp_to_wire),
        rubber_stamp: row.rubber_stamp,
    }
}

pub(super) fn approver(row: &ApproverStatsRow) -> v1::ApproverFigures {
    v1::ApproverFigures {
        person_id: row.id.to_string(),
        name: row.name.clone(),
        approved: row.approvals,
        denied: row.denials,
        approved_percent: row.approved_percent,
        median_seconds: row.median_s,
        last_at: row.last_at.map(timestamp_to_wire),
        rubber_stamp: row.rubber_stamp,
    }
}

pub(super) fn live_token(token: &LiveToken) -> v1::LiveToken {
    v1::LiveToken {
        jti: token.jti.to_string(),
        agent_id: token.agent.to_string(),
        owner: token.owner.to_string(),
        task_id: token.task.to_string(),
        action: token.action.to_string(),
        target: Some(target_to_wire(&token.target)),
        audience: token.audience.to_string(),
        issued_at: Some(timestamp_to_wire(token.issued_at)),
        expires_at: Some(timestamp_to_wire(token.expires_at)),
        uses_left: token.uses_left,
        profiles: token.profiles.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn moment(moment: &TimelineEvent) -> v1::Moment {
    v1::Moment {
        index: moment.index,
        at: Some(timestamp_to_wire(moment.at)),
        kind: moment.kind.to_owned(),
        what: moment.what.to_owned(),
        who: moment.who.clone(),
        detail: moment.detail.clone(),
        ids: moment.ids.clone(),
    }
}

pub(super) fn activity(activity: &[ActionUse]) -> Vec<v1::ActionUse> {
    let one = |used: &ActionUse| {
        let habit = &used.habit;
        let denied = habit.last_denied.as_ref();
        v1::ActionUse {
            action: used.action.to_string(),
            in_ceiling: used.in_ceiling,
            asked: habit.asked,
            granted: habit.granted,
            refused: habit.refused,
            approved: habit.approved,
            denied: habit.denied,
            expired: habit.expired,
            last_at: habit.last_at.map(timestamp_to_wire),
            last_denied_at: denied.map(|(at, _)| timestamp_to_wire(*at)),
            last_denied_by: denied.map(|(_, by)| by.to_string()).unwrap_or_default(),
        }
    };
    activity.iter().take(ACTIVITY_MAX).map(one).collect()
}
