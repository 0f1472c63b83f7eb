//! Policy index: the rules whose scope can match an agent, an action and a target.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use cedar_policy::{
    ActionConstraint, EntityTypeName, EntityUid, Policy, PolicyId, PolicySet, PrincipalConstraint,
    ResourceConstraint,
};

use super::entities::EntityStore;
use crate::model::AgentId;

/// The rules of a bundle by their scopes. Cedar walks every rule it is given, so rules about other agents, actions and targets
/// would slow each evaluation down. It grows with the number of rules alone, and is never written once it is built.
// INVARIANT (the index is equivalent to the full set): a rule is left out of a request only if a part of its scope names entities
// or a type, and the request's agent, action or target is none of them, in none of them and not of the type. Its scope is then
// false, and Cedar never evaluates its conditions, so it could neither determine the decision nor fail. What is kept may be too
// much: Cedar evaluates its scope again. A property test compares both. An index never leaves the bundle it was built from.
#[derive(Default)]
pub(super) struct PolicyIndex(Level<Level<Level<Vec<PolicyId>>>>);

/// What one part of a scope requires, with the rules that require it.
type Level<T> = HashMap<ScopeKey, T>;

/// What one part of the scope of a rule requires of the agent, the action or the target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ScopeKey {
    Anything,
    /// To be this entity or in it. A scope of a group and a type (`is … in`) counts as one of the group.
    Entity(EntityUid),
    Type(EntityTypeName),
}

/// An agent, an action and a target.
#[derive(Debug, Clone)]
pub(super) struct RequestScope {
    pub(super) agent: EntityUid,
    pub(super) action: EntityUid,
    pub(super) target: EntityUid,
}

impl RequestScope {
    /// The scope of a request, by ids. Nothing when the target's type is not declared.
    pub(super) fn new(
        store: &EntityStore,
        agent: &AgentId,
        action: &str,
        (kind, id): (&str, &str),
    ) -> Option<Self> {
        Some(Self {
            agent: store.uid("Agent", agent.as_str())?,
            action: store.uid("Action", action)?,
            target: store.uid(kind, id)?,
        })
    }
}

impl PolicyIndex {
    /// Sorts these rules by their scopes.
    pub(super) fn build(rules: &PolicySet) -> Self {
        let mut index = Self::default();
        for rule in rules.policies() {
            for action in action_keys(rule) {
                let by_action = index.0.entry(agent_key(rule)).or_default();
                let by_target = by_action.entry(action).or_default();
                let ids = by_target.entry(target_key(rule)).or_default();
                ids.push(rule.id().clone());
            }
        }
        index
    }

    /// The rules whose scope can match a request. `store` gives the groups of its agent, action and target.
    pub(super) fn ids_for(&self, scope: &RequestScope, store: &EntityStore) -> BTreeSet<&PolicyId> {
        let agents = met_by(&scope.agent, store);
        let actions = met_by(&scope.action, store);
        let targets = met_by(&scope.target, store);
        let by_action = agents.iter().filter_map(|key| self.0.get(key));
        let by_target = by_action.flat_map(|level| actions.iter().filter_map(|key| level.get(key)));
        let ids = by_target.flat_map(|level| targets.iter().filter_map(|key| level.get(key)));
        ids.flatten().collect()
    }

    /// The rules of `all` to evaluate for a request. All of them where fewer would hardly cost less, since a set of its own is built.
    pub(super) fn policies_for<'s>(
        &self,
        scope: &RequestScope,
        all: &'s PolicySet,
        store: &EntityStore,
    ) -> Cow<'s, PolicySet> {
        let ids = self.ids_for(scope, store);
        if ids.len().saturating_mul(WORTHWHILE) > all.num_of_policies() {
            return Cow::Borrowed(all);
        }
        let kept: Option<Vec<Policy>> = ids.iter().map(|id| all.policy(id).cloned()).collect();
        // Without a complete set every rule is evaluated.
        match kept.map(PolicySet::from_policies) {
            Some(Ok(set)) => Cow::Owned(set),
            Some(Err(_)) | None => Cow::Borrowed(all),
        }
    }
}

/// Every requirement that an entity meets.
pub(super) fn met_by(uid: &EntityUid, store: &EntityStore) -> Vec<ScopeKey> {
    let groups = store.entities().ancestors(uid).into_iter().flatten();
    let entities = std::iter::once(uid).chain(groups).cloned();
    let fixed = [ScopeKey::Anything, ScopeKey::Type(uid.type_name().clone())];
    fixed
        .into_iter()
        .chain(entities.map(ScopeKey::Entity))
        .collect()
}

/// What the scope of a rule requires of the agent.
pub(super) fn agent_key(rule: &Policy) -> ScopeKey {
    match rule.principal_constraint() {
        PrincipalConstraint::Any => ScopeKey::Anything,
        PrincipalConstraint::Eq(uid)
        | PrincipalConstraint::In(uid)
        | PrincipalConstraint::IsIn(_, uid) => ScopeKey::Entity(uid),
        PrincipalConstraint::Is(kind) => ScopeKey::Type(kind),
    }
}

/// What it requires of the target.
pub(super) fn target_key(rule: &Policy) -> ScopeKey {
    match rule.resource_constraint() {
        ResourceConstraint::Any => ScopeKey::Anything,
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid) => ScopeKey::Entity(uid),
        ResourceConstraint::Is(kind) => ScopeKey::Type(kind),
    }
}

/// What it requires of the action; one of these is enough.
pub(super) fn action_keys(rule: &Policy) -> Vec<ScopeKey> {
    match rule.action_constraint() {
        ActionConstraint::Any => vec![ScopeKey::Anything],
        ActionConstraint::In(named) => named.into_iter().map(ScopeKey::Entity).collect(),
        ActionConstraint::Eq(named) => vec![ScopeKey::Entity(named)],
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

/// A set is built where it has at most one in this many rules: evaluating a rule costs about as much as adding one to a set.
const WORTHWHILE: usize = 2;
