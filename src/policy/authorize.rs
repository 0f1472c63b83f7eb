//! Authorization: the decision about an agent's action, and the remedies that would lift its forbids.

use std::collections::{BTreeMap, BTreeSet};

use super::PolicyBundle;
use super::evaluator::{EvalOutcome, EvalRequest, EvidenceContext};
use super::people::StepUpProfile;
use super::rule::{Remedy, RuleInfo};
use super::schema::OPERATE;
use crate::model::{
    Action, DeniedReason, EvidenceKind, ProfileName, ProfileRef, RegisteredAgent, RuleRef,
    Timestamp,
};

/// The request of gate 2. Every number comes from the broker; the agent chooses only the requested time to live.
#[derive(Debug, Clone, Copy)]
pub struct AuthzRequest<'a> {
    /// The requesting agent.
    pub agent: &'a RegisteredAgent,
    /// The requested action.
    pub action: &'a Action,
    /// Milliseconds the token would live, every other bound applied; above zero.
    pub ttl_ms: i64,
    /// Profiles under which this action is approved.
    pub approvals: &'a BTreeSet<ProfileName>,
    /// Kind of the evidence.
    pub evidence_kind: EvidenceKind,
    /// Milliseconds since this broker verified it.
    pub evidence_age_ms: i64,
    /// How the task is bound to its key, such as `jkt`.
    pub binding: &'a str,
    /// Milliseconds since the task was opened.
    pub task_age_ms: i64,
    /// Ancestors of the task; 0 for one without a parent.
    pub task_depth: i64,
    /// The time of the request.
    pub now: Timestamp,
}

/// The decision of a bundle's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthzDecision {
    /// The action is allowed now.
    Allowed {
        /// Milliseconds the token may live: the request's, or the least `@max_ttl` that had to be applied.
        ttl_ms: i64,
        /// The permits that allow it and the forbids that shortened it, by id.
        rules: Vec<RuleRef>,
    },
    /// The action is allowed once people approve it under each of these profiles.
    Needs {
        /// The missing profiles, by name; never empty.
        profiles: Vec<ProfileRef>,
        /// Milliseconds the token may live then.
        ttl_ms: i64,
        /// The permits that would allow it and the forbids whose remedies were applied, by id.
        rules: Vec<RuleRef>,
    },
    /// The action is denied.
    Denied {
        /// Why.
        why: DeniedReason,
        /// The rules that deny it; empty when no rule allows it, or the ceiling excludes it.
        rules: Vec<RuleRef>,
    },
}

/// The decision whether an agent may operate at all. There are no remedies for this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperateDecision {
    /// The agent may operate now.
    Allowed {
        /// The permits that allow it, by id.
        rules: Vec<RuleRef>,
    },
    /// The agent may not operate.
    Denied {
        /// Why.
        why: DeniedReason,
        /// The rules that deny it.
        rules: Vec<RuleRef>,
    },
}

impl PolicyBundle {
    /// Decides a request of gate 2. An invalid request, or one that cannot be evaluated, is denied.
    ///
    /// A forbid's remedy is a hint: each `@max_ttl` is applied before any profile is assumed, and Cedar evaluates again after
    /// each step. An action allowed without an assumed profile costs one evaluation, or one more for a shorter life.
    pub fn authorize(&self, q: &AuthzRequest<'_>) -> AuthzDecision {
        if !q.agent.ceiling.contains(&q.action.name) {
            return self.denied(DeniedReason::OutsideCeiling, &BTreeSet::new());
        }
        if q.ttl_ms <= 0 || self.check_action(q.action).is_err() {
            return self.denied(DeniedReason::RuleEvaluationFailed, &BTreeSet::new());
        }
        // An approval under a profile that no longer exists counts for nothing.
        let held = q
            .approvals
            .iter()
            .filter(|name| self.profile(name).is_some())
            .cloned()
            .collect();
        let mut search = RemedySearch {
            held,
            assumed: BTreeMap::new(),
            ttl_ms: q.ttl_ms,
            shortened_by: BTreeSet::new(),
        };
        let mut forbids = BTreeSet::new();
        for _ in 0..EVALUATIONS_MAX {
            forbids = match self.evaluate(q, &search) {
                EvalOutcome::Failed(rules) => {
                    return self.denied(DeniedReason::RuleEvaluationFailed, &rules);
                }
                EvalOutcome::Allow(permits) => return self.allowed(q, search, permits),
                EvalOutcome::Deny(forbids) if forbids.is_empty() => {
                    return self.denied(DeniedReason::NoRuleAllows, &forbids);
                }
                EvalOutcome::Deny(forbids) => forbids,
            };
            let Some(remedies) = self.remedies(&forbids) else {
                break;
            };
            if !search.shorten(&remedies) && !search.assume_approval(&remedies) {
                break;
            }
        }
        // Forbids without a remedy are reported alone, if there are any.
        let has_no_remedy = |id: &&String| {
            self.rules
                .infos
                .get(*id)
                .is_none_or(|rule| rule.remedy.is_none())
        };
        let unliftable: BTreeSet<String> = forbids.iter().filter(has_no_remedy).cloned().collect();
        self.denied(
            DeniedReason::ForbiddenByRule,
            if unliftable.is_empty() {
                &forbids
            } else {
                &unliftable
            },
        )
    }

    /// Cedar allows the action under the assumptions of this search. Unneeded profiles are dropped, the smallest quorum first:
    /// where one forbid requires one approval and another two, and the second profile lifts both, only that one is required.
    fn allowed(
        &self,
        q: &AuthzRequest<'_>,
        mut search: RemedySearch,
        mut permits: BTreeSet<String>,
    ) -> AuthzDecision {
        let mut profiles: Vec<_> = search
            .assumed
            .keys()
            .filter_map(|name| self.profile(name))
            .collect();
        profiles.sort_by_key(|profile| (profile.quorum, &profile.name));
        if profiles.len() > 1 {
            for profile in profiles {
                let Some(rules) = search.assumed.remove(&profile.name) else {
                    continue;
                };
                match self.evaluate(q, &search) {
                    EvalOutcome::Allow(still) => permits = still,
                    EvalOutcome::Deny(_) => {
                        search.assumed.insert(profile.name.clone(), rules);
                    }
                    EvalOutcome::Failed(rules) => {
                        return self.denied(DeniedReason::RuleEvaluationFailed, &rules);
                    }
                }
            }
        }
        let lifted = search
            .assumed
            .values()
            .flatten()
            .chain(&search.shortened_by)
            .cloned()
            .collect();
        let rules = self.references(&(&permits | &lifted));
        let ttl_ms = search.ttl_ms;
        if search.assumed.is_empty() {
            return AuthzDecision::Allowed { ttl_ms, rules };
        }
        let profiles = search
            .assumed
            .keys()
            .filter_map(|name| self.profile(name))
            .map(StepUpProfile::reference)
            .collect();
        AuthzDecision::Needs {
            profiles,
            ttl_ms,
            rules,
        }
    }

    fn evaluate(&self, q: &AuthzRequest<'_>, search: &RemedySearch) -> EvalOutcome {
        let approvals = search
            .held
            .iter()
            .chain(search.assumed.keys())
            .cloned()
            .collect();
        let request = EvalRequest {
            agent: &q.agent.id,
            action: &q.action.name,
            target: &q.action.target,
            audience: &q.action.audience,
            parameters: &q.action.parameters,
            ttl_ms: search.ttl_ms,
            approvals: &approvals,
            evidence: EvidenceContext {
                kind: q.evidence_kind,
                age_ms: q.evidence_age_ms,
                binding: q.binding,
                now: q.now,
            },
            task_age_ms: q.task_age_ms,
            task_depth: q.task_depth,
        };
        self.evaluator.evaluate(
            self.policy_index
                .policies_for(request.action.as_str(), &self.rules.set),
            &request,
        )
    }

    fn denied(&self, why: DeniedReason, rules: &BTreeSet<String>) -> AuthzDecision {
        AuthzDecision::Denied {
            why,
            rules: self.references(rules),
        }
    }

    /// Decides for gate 1 whether this agent may operate in its environment now.
    pub fn may_operate(
        &self,
        agent: &RegisteredAgent,
        evidence_kind: EvidenceKind,
        evidence_age_ms: i64,
        binding: &str,
        now: Timestamp,
    ) -> OperateDecision {
        let evidence = EvidenceContext {
            kind: evidence_kind,
            age_ms: evidence_age_ms,
            binding,
            now,
        };
        let denied = |why, rules: &BTreeSet<String>| OperateDecision::Denied {
            why,
            rules: self.references(rules),
        };
        match self.evaluator.evaluate_operate(
            self.policy_index.policies_for(OPERATE, &self.rules.set),
            &agent.id,
            &agent.environment,
            evidence,
        ) {
            EvalOutcome::Allow(permits) => OperateDecision::Allowed {
                rules: self.references(&permits),
            },
            EvalOutcome::Deny(forbids) if forbids.is_empty() => {
                denied(DeniedReason::NoRuleAllows, &forbids)
            }
            EvalOutcome::Deny(forbids) => denied(DeniedReason::ForbiddenByRule, &forbids),
            EvalOutcome::Failed(rules) => denied(DeniedReason::RuleEvaluationFailed, &rules),
        }
    }

    /// The remedy of each of these forbids, or nothing when one has none.
    fn remedies<'a>(&'a self, forbids: &BTreeSet<String>) -> Option<Vec<(&'a str, &'a Remedy)>> {
        let remedy = |id: &String| {
            self.rules
                .infos
                .get(id)
                .and_then(|rule| Some((rule.id.as_str(), rule.remedy.as_ref()?)))
        };
        forbids.iter().map(remedy).collect()
    }

    fn references(&self, ids: &BTreeSet<String>) -> Vec<RuleRef> {
        ids.iter()
            .filter_map(|id| self.rules.infos.get(id))
            .map(RuleInfo::reference)
            .collect()
    }
}

/// The search for remedies: approvals and time to live as assumed so far.
struct RemedySearch {
    held: BTreeSet<ProfileName>,
    /// Profiles assumed, each with the forbids that ask for it.
    assumed: BTreeMap<ProfileName, BTreeSet<String>>,
    ttl_ms: i64,
    shortened_by: BTreeSet<String>,
}

impl RemedySearch {
    /// Applies every `@max_ttl` below the current time to live; false when there is none.
    fn shorten(&mut self, remedies: &[(&str, &Remedy)]) -> bool {
        let before = self.ttl_ms;
        for (id, remedy) in remedies {
            match remedy {
                Remedy::MaxTtl(seconds) => {
                    let max_ms = i64::from(*seconds).saturating_mul(1000);
                    if max_ms < before {
                        self.ttl_ms = self.ttl_ms.min(max_ms);
                        self.shortened_by.insert((*id).to_owned());
                    }
                }
                Remedy::StepUp(_) => {}
            }
        }
        self.ttl_ms < before
    }

    /// Assumes every required profile that is neither held nor assumed; false when there is none.
    fn assume_approval(&mut self, remedies: &[(&str, &Remedy)]) -> bool {
        let before = self.assumed.len();
        for (id, remedy) in remedies {
            match remedy {
                Remedy::StepUp(name) if !self.held.contains(name) => {
                    self.assumed
                        .entry(name.clone())
                        .or_default()
                        .insert((*id).to_owned());
                }
                Remedy::StepUp(_) | Remedy::MaxTtl(_) => {}
            }
        }
        self.assumed.len() > before
    }
}

/// Most evaluations until Cedar allows the action; dropping unneeded profiles costs at most one more for each.
const EVALUATIONS_MAX: usize = 8;
