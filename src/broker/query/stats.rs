//! Decision statistics for approvers and operators. No gate depends on them.

use std::collections::BTreeSet;

use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::policy::{Remedy, Role, RuleEffect, RuleInfo};
use crate::state::action_stats::ActionStats;
use crate::state::stats::{self, ApproverStats, RuleStats};

/// A rule of the policy bundle in force, with its statistics.
#[derive(Debug, Clone)]
pub struct RuleStatsRow {
    /// Its `@id`.
    pub id: String,
    /// Path inside the policy bundle.
    pub file: String,
    /// Line on which it begins, from 1.
    pub line: usize,
    /// Its `@why`; empty without one.
    pub why: String,
    /// `permit` or `forbid`.
    pub kind: &'static str,
    /// Its remedy: `step_up PROFILE`, `max_ttl SECONDS`s; empty without one.
    pub remedy: String,
    /// Decisions of gate 2 that it determined.
    pub hits: u64,
    /// Access requests it caused; 0 for a rule without step-up.
    pub step_ups: u64,
    /// Access requests approved, with a token issued.
    pub approved: u64,
    /// Of these, those with a vote to approve by a registered key.
    pub approved_by_key: u64,
    /// Access requests denied.
    pub denied: u64,
    /// Access requests expired.
    pub expired: u64,
    /// Share of approvals among decided requests, in percent, rounded down; `None` without one.
    pub approved_percent: Option<u32>,
    /// Median of recent decision times, in seconds.
    pub median_s: Option<u32>,
    /// When it last determined a decision.
    pub last_at: Option<Timestamp>,
    /// Approved so fast and so often that the cards seem unread.
    pub rubber_stamp: bool,
}

/// An approver, with their statistics.
#[derive(Debug, Clone)]
pub struct ApproverStatsRow {
    /// Their opaque id.
    pub id: PersonId,
    /// Their display name; empty when they are not in the policy bundle in force.
    pub name: String,
    /// Approving votes.
    pub approvals: u64,
    /// Of these, votes by a registered key; the others are by passkey.
    pub approvals_by_key: u64,
    /// Denying votes.
    pub denials: u64,
    /// Share of approvals, in percent, rounded down; `None` without a vote.
    pub approved_percent: Option<u32>,
    /// Median of recent decision times, in seconds.
    pub median_s: Option<u32>,
    /// When they last voted.
    pub last_at: Option<Timestamp>,
    /// Approves so fast and so often that the cards seem unread.
    pub rubber_stamp: bool,
}

/// An agent's use of one action.
#[derive(Debug, Clone)]
pub struct ActionUse {
    /// The action.
    pub action: ActionName,
    /// Whether its ceiling has it today.
    pub in_ceiling: bool,
    /// Its statistics; empty for an action it never requested.
    pub stats: ActionStats,
}

impl Broker {
    /// The rules in force with their statistics, by id.
    pub fn list_rules(&self, call: &CallContext) -> Result<Vec<RuleStatsRow>, Refusal> {
        self.authenticate_reader(call, self.now())?;
        let rules = self.show().rules();
        let rules = rules.iter().flat_map(|in_force| in_force.bundle.rules());
        let row = |rule: &RuleInfo| rule_row(rule, self.show().stats().rule(&rule.id));
        Ok(rules.map(row).collect())
    }

    /// Approvers with their statistics, by id: those in the policy bundle, and those who ever voted.
    pub fn approver_stats(&self, call: &CallContext) -> Result<Vec<ApproverStatsRow>, Refusal> {
        self.authenticate_reader(call, self.now())?;
        let rules = self.show().rules();
        let person = |id: &PersonId| rules.as_ref()?.bundle.person(id);
        let voters = self.show().stats().approvers();
        let mut ids: BTreeSet<PersonId> = voters.into_iter().map(|(id, _)| id).collect();
        let people = rules.iter().flat_map(|in_force| in_force.bundle.people());
        let approvers = people.filter(|p| p.roles.contains(&Role::Approver));
        ids.extend(approvers.map(|p| p.id.clone()));
        let row = |id: PersonId| {
            let stats = self.show().stats().approver(&id);
            let name = person(&id).map(|p| p.name.clone()).unwrap_or_default();
            approver_row(id, name, &stats)
        };
        Ok(ids.into_iter().map(row).collect())
    }

    /// An agent's use of each action of its ceiling and of those it used under an earlier ceiling, most requested first.
    pub(in crate::broker) fn activity(
        &self,
        id: &AgentId,
        registered: Option<&RegisteredAgent>,
    ) -> Vec<ActionUse> {
        let mut used = self.show().stats().actions_of_agent(id);
        let unused = registered
            .iter()
            .flat_map(|agent| &agent.ceiling)
            .filter(|name| used.iter().all(|(action, _)| action != *name))
            .map(|name| (name.clone(), ActionStats::default()))
            .collect::<Vec<_>>();
        used.extend(unused);
        used.sort_by(|a, b| {
            b.1.requested
                .cmp(&a.1.requested)
                .then_with(|| a.0.cmp(&b.0))
        });
        let in_ceiling = |name: &ActionName| registered.is_some_and(|a| a.ceiling.contains(name));
        used.into_iter()
            .map(|(action, stats)| ActionUse {
                in_ceiling: in_ceiling(&action),
                action,
                stats,
            })
            .collect()
    }
}

fn rule_row(rule: &RuleInfo, stats: RuleStats) -> RuleStatsRow {
    let (remedy, is_step_up) = match &rule.remedy {
        Some(Remedy::StepUp(profiles)) => {
            let names: Vec<&str> = profiles.iter().map(ProfileName::as_str).collect();
            (format!("step_up {}", names.join(" + ")), true)
        }
        Some(Remedy::MaxTtl(seconds)) => (format!("max_ttl {seconds}s"), false),
        None => (String::new(), false),
    };
    // Permits and TTL limits determine pending decisions too, but do not cause the access request.
    let stats = match is_step_up {
        true => stats,
        false => RuleStats {
            hits: stats.hits,
            last_at: stats.last_at,
            ..RuleStats::default()
        },
    };
    let median_s = stats.decide_times.median();
    RuleStatsRow {
        id: rule.id.clone(),
        file: rule.file.clone(),
        line: rule.line,
        why: rule.why.clone().unwrap_or_default(),
        kind: match rule.effect {
            RuleEffect::Permit => "permit",
            RuleEffect::Forbid => "forbid",
        },
        remedy,
        hits: stats.hits,
        step_ups: stats.requested,
        approved: stats.approved,
        approved_by_key: stats.approved_by_key,
        denied: stats.denied,
        expired: stats.expired,
        approved_percent: percent(stats.approved, stats.denied),
        median_s,
        last_at: stats.last_at,
        rubber_stamp: stats::is_rubber_stamp(stats.approved, stats.denied, median_s),
    }
}

fn approver_row(id: PersonId, name: String, stats: &ApproverStats) -> ApproverStatsRow {
    let median_s = stats.decide_times.median();
    ApproverStatsRow {
        id,
        name,
        approvals: stats.approvals,
        approvals_by_key: stats.approvals_by_key,
        denials: stats.denials,
        approved_percent: percent(stats.approvals, stats.denials),
        median_s,
        last_at: stats.last_at,
        rubber_stamp: stats::is_rubber_stamp(stats.approvals, stats.denials, median_s),
    }
}

fn percent(yes: u64, no: u64) -> Option<u32> {
    let share = yes
        .saturating_mul(100)
        .checked_div(yes.saturating_add(no))?;
    u32::try_from(share).ok()
}
