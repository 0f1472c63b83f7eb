//! Authorization: the decision about an agent's action, and the remedies that would lift its forbids.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{PolicyId, PolicySet};

use super::PolicyBundle;
use super::evaluator::{EvalError, EvalOutcome, EvalRequest, EvidenceContext};
use super::nearest::{RuleFailure, reads_sensitive};
use super::policy_index::RequestScope;
use super::rule::{Remedy, RuleInfo};
use super::schema::OPERATE;
use crate::model::{
    Action, AgentId, Autonomy, CountValues, Delay, DeniedReason, EvidenceAges, EvidenceKind,
    FactValues, PersonId, PolicyInput, ProfileName, ProfileRef, RegisteredAgent, RuleRef,
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
    /// Its ages.
    pub evidence_ages: EvidenceAges,
    /// How the task is bound to its key, such as `jkt`.
    pub binding: &'a str,
    /// Milliseconds since the task was opened.
    pub task_age_ms: i64,
    /// Ancestors of the task; 0 for one without a parent.
    pub task_depth: i64,
    /// Milliseconds for which the access request has waited under what it requires; 0 without one that a delay lets through.
    pub waited_ms: i64,
    /// The time of the request.
    pub now: Timestamp,
    /// The agent that would execute the action, when an advisory agent recommends it: rules are asked about both.
    pub executor: Option<&'a AgentId>,
    /// Values of named facts; of any other rules see the normal value.
    pub facts: &'a FactValues,
    /// Values of counts; any other is 0.
    pub counts: &'a CountValues,
}

static NO_COUNTS: CountValues = CountValues::new();

impl<'a> AuthzRequest<'a> {
    /// The request with the input of a decision on record, under these approvals.
    pub fn recorded(
        input: &'a PolicyInput,
        agent: &'a RegisteredAgent,
        action: &'a Action,
        approvals: &'a BTreeSet<ProfileName>,
    ) -> Self {
        Self {
            agent,
            action,
            ttl_ms: input.ttl_ms,
            approvals,
            evidence_kind: input.evidence_kind,
            evidence_ages: input.evidence_ages(),
            binding: &input.binding,
            task_age_ms: input.task_age_ms,
            task_depth: 0,
            waited_ms: input.waited_ms,
            now: input.now,
            executor: input.executor.as_ref(),
            facts: &input.facts,
            counts: &input.counts,
        }
    }
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
        /// What time alone changes in that, unless somebody says no.
        delay: Option<Delay>,
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

impl AuthzDecision {
    /// The rules that decided.
    pub fn into_rules(self) -> Vec<RuleRef> {
        match self {
            Self::Allowed { rules, .. }
            | Self::Needs { rules, .. }
            | Self::Denied { rules, .. } => rules,
        }
    }

    /// What it asks of people, the lifetime and the rules; the denial as it is.
    fn into_asked(self) -> Result<(Vec<ProfileRef>, i64, Vec<RuleRef>), Self> {
        match self {
            Self::Denied { .. } => Err(self),
            Self::Allowed { ttl_ms, rules } => Ok((Vec::new(), ttl_ms, rules)),
            Self::Needs {
                profiles,
                ttl_ms,
                rules,
                ..
            } => Ok((profiles, ttl_ms, rules)),
        }
    }
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
        match self.answer(q) {
            AuthzDecision::Needs {
                profiles,
                ttl_ms,
                rules,
                ..
            } => AuthzDecision::Needs {
                delay: self.delay(q, (&profiles, ttl_ms)),
                profiles,
                ttl_ms,
                rules,
            },
            decision => decision,
        }
    }

    /// What time alone changes in what is asked of people, for good: Cedar answers it, with each delay of the bundle assumed, and the
    /// shortest one after which the answer stays the same counts. Nothing where other people would be asked then, or as many.
    fn delay(
        &self,
        q: &AuthzRequest<'_>,
        (profiles, ttl_ms): (&[ProfileRef], i64),
    ) -> Option<Delay> {
        let after = |seconds: u32| {
            let waited_ms = i64::from(seconds).saturating_mul(1000);
            match self.answer(&AuthzRequest { waited_ms, ..*q }) {
                AuthzDecision::Allowed { ttl_ms: then, .. } if then == ttl_ms => Some(Vec::new()),
                AuthzDecision::Needs {
                    profiles: left,
                    ttl_ms: then,
                    ..
                } if then == ttl_ms => Some(left),
                AuthzDecision::Allowed { .. }
                | AuthzDecision::Needs { .. }
                | AuthzDecision::Denied { .. } => None,
            }
        };
        let (longest, shorter) = self.rules.delays_s.split_last()?;
        let needs = after(*longest)?;
        let is_less = needs.len() < profiles.len() && needs.iter().all(|p| profiles.contains(p));
        let is_last = |seconds: &&u32| after(**seconds).as_ref() == Some(&needs);
        let same = shorter.iter().rev().take_while(is_last).last();
        let seconds = *same.unwrap_or(longest);
        let is_ahead = i64::from(seconds).saturating_mul(1000) > q.waited_ms;
        (is_less && is_ahead).then_some(Delay { seconds, needs })
    }

    /// The answer without what time alone would change.
    fn answer(&self, q: &AuthzRequest<'_>) -> AuthzDecision {
        let own = self.decide(q, &mut DecisionTrace::default());
        match (q.executor, own) {
            (None, own) | (Some(_), own @ AuthzDecision::Denied { .. }) => own,
            (Some(executor), _) => self.authorize_for(executor, q),
        }
    }

    /// Decides a recommendation that the rules do not deny to the agent itself: they must not deny the action to its executor either, and
    /// what they ask of people for both is asked together.
    fn authorize_for(&self, executor: &AgentId, q: &AuthzRequest<'_>) -> AuthzDecision {
        let registered = self.agent(executor);
        let Some(executor) = registered.filter(|other| self.may_execute(q.agent, other)) else {
            return self.denied(DeniedReason::ExecutorNotAllowed, &BTreeSet::new());
        };
        let executed = AuthzRequest {
            agent: &executor,
            executor: None,
            // Its own are asked when it asks: they change until then, and a low count allows no less than a high one.
            counts: &NO_COUNTS,
            ..*q
        };
        let (mut profiles, ttl_ms, mut rules) = match self.answer(&executed).into_asked() {
            Ok(asked) => asked,
            Err(denied) => return denied,
        };
        // The people that the executor needs agree to the recommendation, too: no person is asked twice.
        let agreed = profiles.iter().map(|profile| profile.name.clone());
        let approvals: BTreeSet<ProfileName> = q.approvals.iter().cloned().chain(agreed).collect();
        let own = AuthzRequest {
            approvals: &approvals,
            ttl_ms,
            executor: None,
            ..*q
        };
        let (asked, ttl_ms, own_rules) = match self.answer(&own).into_asked() {
            Ok(asked) => asked,
            Err(denied) => return denied,
        };
        profiles.extend(asked);
        profiles.sort_by(|a, b| a.name.cmp(&b.name));
        profiles.dedup();
        rules.extend(own_rules);
        rules.sort_by(|a, b| (&a.id, &a.file).cmp(&(&b.id, &b.file)));
        rules.dedup();
        // What one of them needs may lift what the other does.
        let questions = [&executed, &own];
        let is_enough = |profiles: &[ProfileRef]| {
            let assumed = profiles.iter().map(|profile| profile.name.clone());
            let approvals: BTreeSet<ProfileName> =
                q.approvals.iter().cloned().chain(assumed).collect();
            questions.iter().all(|question| {
                let approvals = &approvals;
                let question = AuthzRequest {
                    approvals,
                    ttl_ms,
                    ..**question
                };
                matches!(self.answer(&question), AuthzDecision::Allowed { ttl_ms: left, .. } if left == ttl_ms)
            })
        };
        let mut at = 0;
        while profiles.len() > 1 && at < profiles.len() {
            let profile = profiles.remove(at);
            if !is_enough(&profiles) {
                profiles.insert(at, profile);
                at += 1;
            }
        }
        match profiles.is_empty() {
            true => AuthzDecision::Allowed { ttl_ms, rules },
            false => AuthzDecision::Needs {
                profiles,
                delay: None,
                ttl_ms,
                rules,
            },
        }
    }

    /// Whether an agent may execute what an advisory agent recommends, as the bundle registers both.
    pub fn may_execute(&self, recommender: &RegisteredAgent, executor: &RegisteredAgent) -> bool {
        recommender.autonomy == Autonomy::Advisory
            && executor.autonomy != Autonomy::Advisory
            && recommender.executors.contains(&executor.id)
            && recommender.id != executor.id
            && recommender.spiffe_id != executor.spiffe_id
            && (recommender.owner != executor.owner || self.same_owner_executors)
    }

    /// The owners who never approve a request of an agent: its own; of an advisory agent with the executor's, for each executor.
    pub fn owners_of(&self, agent: &RegisteredAgent) -> Vec<BTreeSet<PersonId>> {
        let with = |executor: &AgentId| {
            let executor = self.agent(executor).map(|executor| executor.owner.clone());
            executor.into_iter().chain([agent.owner.clone()]).collect()
        };
        match agent.executors.is_empty() {
            true => vec![BTreeSet::from([agent.owner.clone()])],
            false => agent.executors.iter().map(with).collect(),
        }
    }

    /// Whether the owner of an advisory agent may own its executor, too.
    pub const fn allows_same_owner_executors(&self) -> bool {
        self.same_owner_executors
    }

    /// The rules for which a request is denied because they cannot be evaluated, with Cedar's errors; empty for another decision. Of a
    /// rule that reads a sensitive parameter the error is named by its kind alone: Cedar's words carry values.
    pub fn rule_failures(&self, q: &AuthzRequest<'_>) -> Vec<RuleFailure> {
        let mut trace = DecisionTrace::default();
        let why = match self.decide(q, &mut trace) {
            AuthzDecision::Denied { why, .. } => why,
            AuthzDecision::Allowed { .. } | AuthzDecision::Needs { .. } => return Vec::new(),
        };
        let failures = trace.failures;
        if why == DeniedReason::RuleEvaluationFailed && failures.is_empty() {
            let error = match self.check_action(q.action) {
                Err(error) => error.to_string(),
                Ok(_) => "a value of the request is out of Cedar's range".to_owned(),
            };
            return vec![RuleFailure { rule: None, error }];
        }
        let sensitive = self.action(&q.action.name).map(|a| a.sensitive());
        let sensitive = sensitive.unwrap_or_default();
        let failure = |(id, error): (String, EvalError)| {
            let policy = self.rules.set.policy(&PolicyId::new(&id));
            let is_withheld = policy.is_none_or(|policy| reads_sensitive(policy, &sensitive));
            RuleFailure {
                rule: self.rule(&id).map(|info| (info.reference(), info.line)),
                error: match is_withheld {
                    true => format!(
                        "{}; the rule reads a sensitive parameter, so no value is shown",
                        error.kind
                    ),
                    false => error.text,
                },
            }
        };
        failures.into_iter().map(failure).collect()
    }

    /// The profiles of a request that the bundle has: an approval under one that no longer exists counts for nothing.
    pub(super) fn held_approvals(&self, q: &AuthzRequest<'_>) -> BTreeSet<ProfileName> {
        let approvals = q.approvals.iter();
        let held = approvals.filter(|name| self.profile(name).is_some());
        held.cloned().collect()
    }

    /// What the last evaluation asked of a request that no rule allows: the lifetime that was left, and the profiles held or assumed.
    /// Where a rule that reads a sensitive parameter shortened or assumed, what was asked at first: the rest would tell its value.
    pub(super) fn asked_last(&self, q: &AuthzRequest<'_>) -> (i64, BTreeSet<ProfileName>) {
        let mut trace = DecisionTrace::default();
        self.decide(q, &mut trace);
        let sensitive = self.action(&q.action.name).map(|a| a.sensitive());
        let sensitive = sensitive.unwrap_or_default();
        let tells = |id: &String| {
            let policy = self.rules.set.policy(&PolicyId::new(id));
            policy.is_none_or(|policy| reads_sensitive(policy, &sensitive))
        };
        let last = trace.unallowed.filter(|search| {
            let assumed = search.assumed.values().flatten();
            !search.shortened_by.iter().chain(assumed).any(tells)
        });
        let last = last.map(|search| {
            let approvals = search.approvals().cloned().collect();
            (search.ttl_ms, approvals)
        });
        last.unwrap_or_else(|| (q.ttl_ms, self.held_approvals(q)))
    }

    fn decide(&self, q: &AuthzRequest<'_>, trace: &mut DecisionTrace) -> AuthzDecision {
        if !q.agent.ceiling.contains(&q.action.name) {
            return self.denied(DeniedReason::OutsideCeiling, &BTreeSet::new());
        }
        if q.ttl_ms <= 0 || self.check_action(q.action).is_err() {
            return self.denied(DeniedReason::RuleEvaluationFailed, &BTreeSet::new());
        }
        let mut search = RemedySearch {
            held: self.held_approvals(q),
            assumed: BTreeMap::new(),
            ttl_ms: q.ttl_ms,
            shortened_by: BTreeSet::new(),
        };
        let target = &q.action.target;
        let target = (target.kind.as_str(), target.id.as_str());
        let rules = self.rules_for(&q.agent.id, q.action.name.as_str(), target);
        let mut forbids = BTreeSet::new();
        for _ in 0..EVALUATIONS_MAX {
            forbids = match self.evaluate(q, &rules, &search) {
                EvalOutcome::Failed(errors) => return self.failed(errors, trace),
                EvalOutcome::Allow(permits) => {
                    return self.allowed(q, &rules, search, permits, trace);
                }
                EvalOutcome::Deny(forbids) if forbids.is_empty() => {
                    trace.unallowed = Some(search);
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
        rules: &PolicySet,
        mut search: RemedySearch,
        mut permits: BTreeSet<String>,
        trace: &mut DecisionTrace,
    ) -> AuthzDecision {
        let mut profiles: Vec<_> = search
            .assumed
            .keys()
            .filter_map(|name| self.profile(name))
            .collect();
        profiles.sort_by_key(|profile| (profile.quorum, &profile.name));
        if profiles.len() > 1 {
            for profile in profiles {
                let Some(asking) = search.assumed.remove(&profile.name) else {
                    continue;
                };
                match self.evaluate(q, rules, &search) {
                    EvalOutcome::Allow(still) => permits = still,
                    EvalOutcome::Deny(_) => {
                        search.assumed.insert(profile.name.clone(), asking);
                    }
                    EvalOutcome::Failed(errors) => return self.failed(errors, trace),
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
            .filter_map(|name| self.profile_about(name, &q.action.target))
            .map(|profile| profile.reference())
            .collect();
        AuthzDecision::Needs {
            profiles,
            delay: None,
            ttl_ms,
            rules,
        }
    }

    fn evaluate(
        &self,
        q: &AuthzRequest<'_>,
        rules: &PolicySet,
        search: &RemedySearch,
    ) -> EvalOutcome {
        let approvals = search.approvals().cloned().collect();
        let request = eval_request(q, search.ttl_ms, &approvals);
        self.evaluator.evaluate(rules, &request)
    }

    /// The rules that Cedar evaluates for a request: those whose scope can match it.
    fn rules_for(&self, agent: &AgentId, action: &str, target: (&str, &str)) -> Cow<'_, PolicySet> {
        let (all, store) = (&self.rules.set, self.evaluator.store());
        match RequestScope::new(store, agent, action, target) {
            Some(scope) => self.policy_index.policies_for(&scope, all, store),
            // Such a request is invalid, and fails with any rules.
            None => Cow::Borrowed(all),
        }
    }

    fn failed(
        &self,
        errors: BTreeMap<String, EvalError>,
        trace: &mut DecisionTrace,
    ) -> AuthzDecision {
        let rules = errors.keys().cloned().collect();
        trace.failures = errors;
        self.denied(DeniedReason::RuleEvaluationFailed, &rules)
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
        evidence_ages: EvidenceAges,
        binding: &str,
        now: Timestamp,
    ) -> OperateDecision {
        let evidence = EvidenceContext {
            kind: evidence_kind,
            ages: evidence_ages,
            binding,
            now,
        };
        let denied = |why, rules: &BTreeSet<String>| OperateDecision::Denied {
            why,
            rules: self.references(rules),
        };
        let environment = ("Environment", agent.environment.as_str());
        let rules = self.rules_for(&agent.id, OPERATE, environment);
        match self
            .evaluator
            .evaluate_operate(&rules, &agent.id, &agent.environment, evidence)
        {
            EvalOutcome::Allow(permits) => OperateDecision::Allowed {
                rules: self.references(&permits),
            },
            EvalOutcome::Deny(forbids) if forbids.is_empty() => {
                denied(DeniedReason::NoRuleAllows, &forbids)
            }
            EvalOutcome::Deny(forbids) => denied(DeniedReason::ForbiddenByRule, &forbids),
            EvalOutcome::Failed(errors) => {
                let rules = errors.into_keys().collect();
                denied(DeniedReason::RuleEvaluationFailed, &rules)
            }
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

/// A request of gate 2 with this lifetime and these approvals.
pub(super) fn eval_request<'a>(
    q: &AuthzRequest<'a>,
    ttl_ms: i64,
    approvals: &'a BTreeSet<ProfileName>,
) -> EvalRequest<'a> {
    EvalRequest {
        agent: &q.agent.id,
        action: &q.action.name,
        target: &q.action.target,
        audience: &q.action.audience,
        parameters: &q.action.parameters,
        ttl_ms,
        approvals,
        evidence: EvidenceContext {
            kind: q.evidence_kind,
            ages: q.evidence_ages,
            binding: q.binding,
            now: q.now,
        },
        task_age_ms: q.task_age_ms,
        task_depth: q.task_depth,
        waited_ms: q.waited_ms,
        facts: q.facts,
        counts: q.counts,
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

/// What a decision came upon, for explanations.
#[derive(Default)]
struct DecisionTrace {
    /// Rules that could not be evaluated, by id.
    failures: BTreeMap<String, EvalError>,
    /// The search as it was when no rule allowed the request.
    unallowed: Option<RemedySearch>,
}

impl RemedySearch {
    /// Profiles held or assumed.
    fn approvals(&self) -> impl Iterator<Item = &ProfileName> {
        self.held.iter().chain(self.assumed.keys())
    }

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
                Remedy::StepUp(names) => {
                    for name in names.difference(&self.held) {
                        self.assumed
                            .entry(name.clone())
                            .or_default()
                            .insert((*id).to_owned());
                    }
                }
                Remedy::MaxTtl(_) => {}
            }
        }
        self.assumed.len() > before
    }
}

/// Most evaluations until Cedar allows the action; dropping unneeded profiles costs at most one more for each.
const EVALUATIONS_MAX: usize = 8;
