//! What two bundles have in common: for which requests they answer alike, and whether they ask the same about sensitive parameters.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::PolicyBundle;
use super::nearest::reads_sensitive;
use super::policy_index::RequestScope;
use super::schema::OPERATE;
use crate::model::{ActionName, ActionOnRecord, AgentId, RegisteredAgent, Target};

/// For which requests two bundles answer alike.
pub struct AlikeRequests {
    /// The rules that differ; nothing where the entities do, so that every request may be answered otherwise.
    differing: Option<BTreeSet<String>>,
    known: HashMap<(AgentId, ActionName, Target), bool>,
}

impl AlikeRequests {
    /// Compares what two bundles have.
    pub fn of(base: &PolicyBundle, candidate: &PolicyBundle) -> Self {
        let is_same = base.has_the_same_entities(candidate);
        Self {
            differing: is_same.then(|| base.differing_rules(candidate)),
            known: HashMap::new(),
        }
    }

    /// Whether the two bundles answer a request alike, for all parameters, lifetimes, times, evidence and approvals.
    pub fn has(
        &mut self,
        [base, candidate]: [&PolicyBundle; 2],
        agent: &RegisteredAgent,
        action: &ActionName,
        target: &Target,
    ) -> bool {
        let Some(differing) = &self.differing else {
            return false;
        };
        let key = (agent.id.clone(), action.clone(), target.clone());
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        // What cannot be kept would be found out again and again.
        if self.known.len() >= KNOWN_MAX {
            return false;
        }
        let is_alike = base.answers_alike(candidate, differing, agent, action, target);
        self.known.insert(key, is_alike);
        is_alike
    }
}

/// Most requests of which it is kept whether two bundles answer them alike.
const KNOWN_MAX: usize = 100_000;

impl PolicyBundle {
    /// Whether rules see the same entities in both bundles, approvals are under the same profiles, and tokens for the same audiences.
    pub(super) fn has_the_same_entities(&self, other: &Self) -> bool {
        // Cedar's `==` compares names alone.
        let (own, others) = (self.evaluator.store(), other.evaluator.store());
        own.entities().deep_eq(others.entities())
            && self.evaluator.declared() == other.evaluator.declared()
            && self.people.profiles == other.people.profiles
            && self.people.audiences == other.people.audiences
    }

    /// The ids of the rules that both bundles do not have alike, with their annotations.
    pub(super) fn differing_rules(&self, other: &Self) -> BTreeSet<String> {
        let texts = |bundle: &Self| -> BTreeMap<String, String> {
            let rules = bundle.rules.set.policies();
            rules
                .map(|rule| (rule.id().to_string(), rule.to_string()))
                .collect()
        };
        let (own, others) = (texts(self), texts(other));
        let ids = own.keys().chain(others.keys());
        ids.filter(|id| own.get(*id) != others.get(*id))
            .cloned()
            .collect()
    }

    /// Whether both bundles answer a request alike, for all lifetimes, times, evidence and approvals: the agent and the action are
    /// the same, and so is every rule whose scope can match it at either gate. For bundles with the same entities; `differing`: the rules
    /// that differ.
    pub(super) fn answers_alike(
        &self,
        other: &Self,
        differing: &BTreeSet<String>,
        agent: &RegisteredAgent,
        name: &ActionName,
        target: &Target,
    ) -> bool {
        let environment = ("Environment", agent.environment.as_str());
        let target = (target.kind.as_str(), target.id.as_str());
        other.agent(&agent.id).is_some_and(|other| *other == *agent)
            && self.action(name) == other.action(name)
            && [self, other].into_iter().all(|bundle| {
                bundle.has_none_in_scope(differing, agent, name.as_str(), target)
                    && bundle.has_none_in_scope(differing, agent, OPERATE, environment)
            })
    }

    /// Whether no rule whose scope can match a request is one of these; false for an invalid request.
    fn has_none_in_scope(
        &self,
        rules: &BTreeSet<String>,
        agent: &RegisteredAgent,
        action: &str,
        target: (&str, &str),
    ) -> bool {
        let store = self.evaluator.store();
        let scope = RequestScope::new(store, &agent.id, action, target);
        scope.is_some_and(|scope| {
            let ids = self.policy_index.ids_for(&scope, store);
            !ids.into_iter().any(|id| rules.contains::<str>(id.as_ref()))
        })
    }

    /// Whether no rule of either bundle reads a sensitive parameter of an action, or the same rules of both do, over the same agents,
    /// targets and parameters: then what the two answer tells nothing about its value. Sensitive are those that either bundle says, and
    /// those that the record has as commitments.
    pub fn asks_the_same_of_secrets(&self, other: &Self, record: &ActionOnRecord) -> bool {
        let action = &record.action;
        let parameters = |bundle: &Self| bundle.action(action).map(|a| a.parameters.clone());
        let sensitive = |bundle: &Self| bundle.action(action).map(|a| a.sensitive());
        let sensitive: BTreeSet<String> = [sensitive(self), sensitive(other)]
            .into_iter()
            .flatten()
            .flatten()
            .chain(record.sensitive().cloned())
            .collect();
        let readers = |bundle: &Self| -> BTreeSet<String> {
            let rules = bundle.rules.set.policies();
            let reading = rules.filter(|rule| reads_sensitive(rule, &sensitive));
            reading.map(ToString::to_string).collect()
        };
        let (own, others) = (readers(self), readers(other));
        parameters(self) == parameters(other)
            && own == others
            && (own.is_empty()
                || (self.has_the_same_entities(other) && self.agents == other.agents))
    }
}
