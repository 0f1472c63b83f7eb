//! What rules read of the context: which members of a record, such as which named facts, each rule reads, and which the rules in scope
//! of a request read.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cedar_policy::{PolicyId, PolicySet};

use super::PolicyBundle;
use super::nearest::context_members;
use super::policy_index::RequestScope;
use crate::model::{ActionName, AgentId, Target};

/// The members of `context.MEMBER` that each rule reads, by the rule's id; rules that read none are absent.
#[derive(Debug)]
pub(super) struct RuleReads<N>(HashMap<PolicyId, BTreeSet<N>>);

impl<N: Ord + Clone> RuleReads<N> {
    /// Of these declared members: every one of a rule that reads the record as a whole.
    pub(super) fn of<'n>(
        rules: &PolicySet,
        member: &str,
        declared: impl Iterator<Item = (&'n str, N)>,
    ) -> Self {
        let declared: BTreeMap<&str, N> = declared.collect();
        if declared.is_empty() {
            return Self(HashMap::new());
        }
        let of_rule = |rule: &cedar_policy::Policy| {
            let read: BTreeSet<N> = match context_members(rule, member) {
                Some(members) => {
                    let members = members.iter();
                    members
                        .filter_map(|name| declared.get(name.as_str()).cloned())
                        .collect()
                }
                None => declared.values().cloned().collect(),
            };
            (!read.is_empty()).then(|| (rule.id().clone(), read))
        };
        Self(rules.policies().filter_map(of_rule).collect())
    }

    /// The rules that read a member, by id.
    pub(super) fn rules_reading(&self, name: &N) -> Vec<String> {
        let reading = self.0.iter().filter(|(_, names)| names.contains(name));
        let ids: BTreeSet<String> = reading.map(|(id, _)| id.to_string()).collect();
        ids.into_iter().collect()
    }

    /// The members that rules in scope of a request read: those whose scope can match the action on the target by one of these agents.
    pub(super) fn in_scope<'a, 's>(
        &'s self,
        bundle: &PolicyBundle,
        agents: impl IntoIterator<Item = &'a AgentId>,
        action: &ActionName,
        target: &Target,
    ) -> BTreeSet<&'s N> {
        let mut names = BTreeSet::new();
        if self.0.is_empty() {
            return names;
        }
        let store = bundle.evaluator.store();
        let target = (target.kind.as_str(), target.id.as_str());
        for agent in agents {
            // An invalid request is denied, and reads nothing.
            let scope = RequestScope::new(store, agent, action.as_str(), target);
            let ids = scope.map(|scope| bundle.policy_index.ids_for(&scope, store));
            let ids = ids.iter().flatten();
            names.extend(ids.filter_map(|id| self.0.get(*id)).flatten());
        }
        names
    }
}
