//! What two bundles have in common: for which requests they answer alike, and whether they ask the same about sensitive parameters.

use std::collections::{BTreeMap, BTreeSet};

use super::PolicyBundle;
use super::nearest::reads_sensitive;
use super::policy_index::RequestScope;
use super::schema::OPERATE;
use crate::model::{Action, ActionOnRecord, RegisteredAgent};

impl PolicyBundle {
    /// Whether rules see the same entities in both bundles, approvals are under the same profiles, and tokens for the same audiences.
    pub(super) fn has_the_same_entities(&self, other: &Self) -> bool {
        // Cedar's `==` compares names alone.
        let (own, others) = (self.evaluator.store(), other.evaluator.store());
        own.entities().deep_eq(others.entities())
            && self.people.profiles == other.people.profiles
            && self.people.audiences == other.people.audiences
    }

    /// Whether both bundles answer a request alike, whatever its lifetime, time, evidence and approvals: the agent and the action are
    /// the same, and so is every rule whose scope can match it at either gate. For bundles with the same entities.
    pub(super) fn answers_alike(
        &self,
        other: &Self,
        agent: &RegisteredAgent,
        action: &Action,
    ) -> bool {
        let (name, target) = (&action.name, &action.target);
        let environment = ("Environment", agent.environment.as_str());
        let target = (target.kind.as_str(), target.id.as_str());
        other.agent(&agent.id).is_some_and(|other| *other == *agent)
            && self.action(name) == other.action(name)
            && self.rules_in(agent, name.as_str(), target)
                == other.rules_in(agent, name.as_str(), target)
            && self.rules_in(agent, OPERATE, environment)
                == other.rules_in(agent, OPERATE, environment)
    }

    /// The rules whose scope can match a request, by id; nothing for an invalid request.
    fn rules_in(
        &self,
        agent: &RegisteredAgent,
        action: &str,
        target: (&str, &str),
    ) -> Option<BTreeMap<String, String>> {
        let store = self.evaluator.store();
        let scope = RequestScope::new(store, &agent.id, action, target)?;
        let ids = self.policy_index.ids_for(&scope, store).into_iter();
        let text = |id| self.rules.set.policy(id).map(ToString::to_string);
        ids.map(|id| Some((id.to_string(), text(id)?))).collect()
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
            && (own.is_empty() || self.has_the_same_entities(other))
    }
}
