//! Policy index: the policies that can apply to each action.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy::{ActionConstraint, EntityUid, Policy, PolicySet};

use super::entities::EntityStore;

/// For each action the rules that can apply to it. Cedar walks every rule it is given, so rules about other actions would
/// slow each evaluation down.
// INVARIANT (the index is equivalent to the full set): a rule is left out for an action only if its scope names actions, and
// none of them is this one or above it. Its scope is then false, and Cedar never evaluates its conditions, so it could neither
// determine the decision nor fail. A property test compares both. An index never leaves the bundle it was built from.
#[derive(Default)]
pub(super) struct PolicyIndex(BTreeMap<String, Arc<PolicySet>>);

impl PolicyIndex {
    /// Selects the rules for each of these actions. `store` must hold the action entities, which give the groups above an
    /// action; an unknown action is not indexed, and is evaluated with every rule.
    pub(super) fn build<'a>(
        rules: &PolicySet,
        store: &EntityStore,
        actions: impl Iterator<Item = &'a str>,
    ) -> Self {
        // Actions with the same rules share one set.
        let mut sets: BTreeMap<BTreeSet<String>, Arc<PolicySet>> = BTreeMap::new();
        let mut index = BTreeMap::new();
        for action in actions {
            let Some(uid) = store
                .uid("Action", action)
                .filter(|uid| store.contains(uid))
            else {
                continue;
            };
            let kept: Vec<_> = rules
                .policies()
                .filter(|rule| scope_has_action(rule, &uid, store))
                .collect();
            let ids: BTreeSet<String> = kept.iter().map(|rule| rule.id().to_string()).collect();
            let set = match sets.get(&ids) {
                Some(set) => set.clone(),
                None => {
                    // Without a complete set the action is not indexed.
                    let Ok(set) = PolicySet::from_policies(kept.into_iter().cloned()) else {
                        continue;
                    };
                    let set = Arc::new(set);
                    sets.insert(ids, set.clone());
                    set
                }
            };
            index.insert(action.to_owned(), set);
        }
        Self(index)
    }

    /// The rules to evaluate for an action; all of them for an action that is not indexed.
    pub(super) fn policies_for<'s>(&'s self, action: &str, all: &'s PolicySet) -> &'s PolicySet {
        self.0.get(action).map_or(all, |set| set)
    }
}

/// Whether the scope of a rule has this action: it names no action, or this one, or a group that holds it at any depth.
pub(super) fn scope_has_action(rule: &Policy, action: &EntityUid, store: &EntityStore) -> bool {
    let above = |named: &EntityUid| named == action || store.is_ancestor(named, action);
    match rule.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::In(named) => named.iter().any(above),
        ActionConstraint::Eq(named) => named == *action,
    }
}
