use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy::{ActionConstraint, EntityUid, PolicySet};

use super::entities::Store;

/// For each action the rules that can say anything about it. Cedar walks every rule it is given, so that rules about other
/// actions cost each question their part.
// INVARIANT (a slice decides as the whole): a rule is left out of an action's slice only if its scope names actions, and none
// of them is this one or above it. Its scope is then false, and Cedar never looks at its conditions, so it could neither
// determine nor fail. A property test asks both. Slices live in the bundle they were cut from and nowhere else.
#[derive(Default)]
pub(super) struct Slices(BTreeMap<String, Arc<PolicySet>>);

impl Slices {
    /// Cuts the rules for each of these actions. `store` must hold the action entities: with them it says what is above an
    /// action; an action it does not know gets no slice, and is asked with every rule.
    pub(super) fn cut<'a>(
        rules: &PolicySet,
        store: &Store,
        actions: impl Iterator<Item = &'a str>,
    ) -> Self {
        // Actions of the same groups, with no rule of their own, share one.
        let mut cut: BTreeMap<BTreeSet<String>, Arc<PolicySet>> = BTreeMap::new();
        let mut slices = BTreeMap::new();
        for action in actions {
            let Some(uid) = store.uid("Action", action).filter(|uid| store.knows(uid)) else {
                continue;
            };
            let above = |named: &EntityUid| *named == uid || store.is_above(named, &uid);
            let kept: Vec<_> = rules
                .policies()
                .filter(|rule| match rule.action_constraint() {
                    ActionConstraint::Any => true,
                    ActionConstraint::In(named) => named.iter().any(above),
                    ActionConstraint::Eq(named) => named == uid,
                })
                .collect();
            let ids: BTreeSet<String> = kept.iter().map(|rule| rule.id().to_string()).collect();
            let slice = match cut.get(&ids) {
                Some(slice) => slice.clone(),
                None => {
                    // A slice that cannot be made whole is none.
                    let Ok(set) = PolicySet::from_policies(kept.into_iter().cloned()) else {
                        continue;
                    };
                    let set = Arc::new(set);
                    cut.insert(ids, set.clone());
                    set
                }
            };
            slices.insert(action.to_owned(), slice);
        }
        Self(slices)
    }

    /// The rules to ask about an action; all of them for one that has no slice.
    pub(super) fn of<'s>(&'s self, action: &str, all: &'s PolicySet) -> &'s PolicySet {
        self.0.get(action).map_or(all, |slice| slice)
    }
}
