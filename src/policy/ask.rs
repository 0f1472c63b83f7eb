use std::collections::{BTreeMap, BTreeSet};

use super::PolicyBundle;
use super::judge::{Asked, Shown, Verdict};
use super::people::Profile;
use super::rule::{Remedy, RuleInfo};
use super::schema::OPERATE;
use crate::model::{
    Action, RegisteredAgent, DeniedReason, EvidenceKind, ProfileName, ProfileRef, RuleRef, Timestamp,
};

/// What gate 2 asks the rules. Every number comes from the broker, none from the agent but the time to live it asks for.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who asks.
    pub agent: &'a RegisteredAgent,
    /// For what.
    pub action: &'a Action,
    /// Milliseconds the token would live, every other bound applied; above zero.
    pub ttl_ms: i64,
    /// Profiles whose approval this action has.
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
    /// The moment of asking.
    pub now: Timestamp,
}

/// What the rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may happen now.
    Allowed {
        /// Milliseconds the token may live: what was asked, or the least `@max_ttl` that had to be applied.
        ttl_ms: i64,
        /// The permits that allow it and the forbids that shortened it, by id.
        rules: Vec<RuleRef>,
    },
    /// It may happen once people approve under each of these profiles.
    Needs {
        /// What is still missing, by name; never empty.
        profiles: Vec<ProfileRef>,
        /// Milliseconds the token may live then.
        ttl_ms: i64,
        /// The permits that would allow it and the forbids whose remedies were applied, by id.
        rules: Vec<RuleRef>,
    },
    /// It may not happen.
    Denied {
        /// Why.
        why: DeniedReason,
        /// The rules that say so; empty when it is the absence of one, or the ceiling.
        rules: Vec<RuleRef>,
    },
}

/// What the rules say about an agent operating at all. There are no remedies for this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperateAnswer {
    /// It may operate now.
    Allowed {
        /// The permits that allow it, by id.
        rules: Vec<RuleRef>,
    },
    /// It may not.
    Denied {
        /// Why.
        why: DeniedReason,
        /// The rules that say so.
        rules: Vec<RuleRef>,
    },
}

impl PolicyBundle {
    /// Gate 2's question. Whatever cannot be asked or evaluated is denied.
    ///
    /// A forbid's remedy is a hint: each `@max_ttl` is applied before any profile is assumed, and Cedar is asked again
    /// after each step. What is allowed without an assumed profile costs one evaluation, or one more for a shorter life.
    pub fn ask(&self, q: &Question<'_>) -> Answer {
        if !q.agent.ceiling.contains(&q.action.name) {
            return self.denied(DeniedReason::OutsideCeiling, &BTreeSet::new());
        }
        if q.ttl_ms <= 0 || self.check_action(q.action).is_err() {
            return self.denied(DeniedReason::RuleFailed, &BTreeSet::new());
        }
        // A yes under a profile that no longer exists satisfies nothing.
        let held = q
            .approvals
            .iter()
            .filter(|name| self.profile(name).is_some())
            .cloned()
            .collect();
        let mut trial = Trial {
            held,
            assumed: BTreeMap::new(),
            ttl_ms: q.ttl_ms,
            shortened_by: BTreeSet::new(),
        };
        let mut forbids = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            forbids = match self.judge(q, &trial) {
                Verdict::Failed(rules) => return self.denied(DeniedReason::RuleFailed, &rules),
                Verdict::Allow(permits) => return self.allowed(q, trial, permits),
                Verdict::Deny(forbids) if forbids.is_empty() => {
                    return self.denied(DeniedReason::NoRuleAllows, &forbids);
                }
                Verdict::Deny(forbids) => forbids,
            };
            let Some(remedies) = self.remedies(&forbids) else {
                break;
            };
            if !trial.shorten(&remedies) && !trial.assume(&remedies) {
                break;
            }
        }
        // Those that nothing would lift are the answer; the others only when there are none of these.
        let final_ones = |id: &&String| {
            self.rules
                .infos
                .get(*id)
                .is_none_or(|rule| rule.remedy.is_none())
        };
        let last: BTreeSet<String> = forbids.iter().filter(final_ones).cloned().collect();
        self.denied(
            DeniedReason::ForbiddenByRule,
            if last.is_empty() { &forbids } else { &last },
        )
    }

    /// Cedar says yes to the trial. Profiles that turn out not to matter are let go, the smallest quorum first: where two
    /// forbids ask for one yes and for two, and two lift both, nobody is asked for three.
    fn allowed(&self, q: &Question<'_>, mut trial: Trial, mut permits: BTreeSet<String>) -> Answer {
        let mut profiles: Vec<_> = trial
            .assumed
            .keys()
            .filter_map(|name| self.profile(name))
            .collect();
        profiles.sort_by_key(|profile| (profile.quorum, &profile.name));
        if profiles.len() > 1 {
            for profile in profiles {
                let Some(rules) = trial.assumed.remove(&profile.name) else {
                    continue;
                };
                match self.judge(q, &trial) {
                    Verdict::Allow(still) => permits = still,
                    Verdict::Deny(_) => {
                        trial.assumed.insert(profile.name.clone(), rules);
                    }
                    Verdict::Failed(rules) => return self.denied(DeniedReason::RuleFailed, &rules),
                }
            }
        }
        let lifted = trial
            .assumed
            .values()
            .flatten()
            .chain(&trial.shortened_by)
            .cloned()
            .collect();
        let rules = self.references(&(&permits | &lifted));
        let ttl_ms = trial.ttl_ms;
        if trial.assumed.is_empty() {
            return Answer::Allowed { ttl_ms, rules };
        }
        let profiles = trial
            .assumed
            .keys()
            .filter_map(|name| self.profile(name))
            .map(Profile::reference)
            .collect();
        Answer::Needs {
            profiles,
            ttl_ms,
            rules,
        }
    }

    fn judge(&self, q: &Question<'_>, trial: &Trial) -> Verdict {
        let approvals = trial
            .held
            .iter()
            .chain(trial.assumed.keys())
            .cloned()
            .collect();
        let asked = Asked {
            agent: &q.agent.id,
            action: &q.action.name,
            target: &q.action.target,
            audience: &q.action.audience,
            parameters: &q.action.parameters,
            ttl_ms: trial.ttl_ms,
            approvals: &approvals,
            shown: Shown {
                kind: q.evidence_kind,
                age_ms: q.evidence_age_ms,
                binding: q.binding,
                now: q.now,
            },
            task_age_ms: q.task_age_ms,
            task_depth: q.task_depth,
        };
        self.judge.judge(
            self.slices.of(asked.action.as_str(), &self.rules.set),
            &asked,
        )
    }

    fn denied(&self, why: DeniedReason, rules: &BTreeSet<String>) -> Answer {
        Answer::Denied {
            why,
            rules: self.references(rules),
        }
    }

    /// Gate 1's question of policy: may this agent operate in its environment now?
    pub fn operate(
        &self,
        agent: &RegisteredAgent,
        evidence_kind: EvidenceKind,
        evidence_age_ms: i64,
        binding: &str,
        now: Timestamp,
    ) -> OperateAnswer {
        let shown = Shown {
            kind: evidence_kind,
            age_ms: evidence_age_ms,
            binding,
            now,
        };
        let denied = |why, rules: &BTreeSet<String>| OperateAnswer::Denied {
            why,
            rules: self.references(rules),
        };
        match self.judge.judge_operate(
            self.slices.of(OPERATE, &self.rules.set),
            &agent.id,
            &agent.environment,
            shown,
        ) {
            Verdict::Allow(permits) => OperateAnswer::Allowed {
                rules: self.references(&permits),
            },
            Verdict::Deny(forbids) if forbids.is_empty() => {
                denied(DeniedReason::NoRuleAllows, &forbids)
            }
            Verdict::Deny(forbids) => denied(DeniedReason::ForbiddenByRule, &forbids),
            Verdict::Failed(rules) => denied(DeniedReason::RuleFailed, &rules),
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

/// What is tried on the way to an answer.
struct Trial {
    held: BTreeSet<ProfileName>,
    /// Profiles assumed, each with the forbids that ask for it.
    assumed: BTreeMap<ProfileName, BTreeSet<String>>,
    ttl_ms: i64,
    shortened_by: BTreeSet<String>,
}

impl Trial {
    /// Applies every `@max_ttl` that is below the present life; false when none is.
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

    /// Assumes every profile that is asked for and not there yet; false when there is none.
    fn assume(&mut self, remedies: &[(&str, &Remedy)]) -> bool {
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

/// Most evaluations on the way to a first yes; letting go of profiles costs at most one more for each.
const ROUNDS_MAX: usize = 8;
