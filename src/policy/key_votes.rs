//! Key votes: step-up rules that would ask for votes by registered keys for actions that take votes by passkey alone.

use std::fmt::Write as _;

use cedar_policy::{Policy, ResourceConstraint};

use super::catalogue::{Catalogue, CatalogueAction};
use super::entities::EntityStore;
use super::people::People;
use super::policy_index::scope_has_action;
use super::problem::Problems;
use super::rule::{Remedy, RuleInfo, RuleSet};
use crate::model::{Risk, VoteMethod};

/// Most actions that one problem names.
const NAMED_MAX: usize = 5;

/// Refuses each rule that may ask a profile with `method = "key"` for an action whose risk is not below `key_votes_below`: its votes
/// by key would not count there, against what the profile says.
pub(super) fn check(
    rules: &RuleSet,
    people: &People,
    catalogue: &Catalogue,
    store: &EntityStore,
    problems: &mut Problems,
) {
    let below = people.approvals.key_votes_below;
    for policy in rules.set.policies() {
        let id: &str = policy.id().as_ref();
        let Some(rule) = rules.infos.get(id) else {
            continue;
        };
        let asked = rule.remedy.iter().flat_map(Remedy::profiles);
        let profiles = asked.filter_map(|name| people.profiles.get(name));
        let mut of_keys = profiles.filter(|profile| profile.method == VoteMethod::Key);
        let Some(profile) = of_keys.next() else {
            continue;
        };
        let risky: Vec<&CatalogueAction> = catalogue
            .actions()
            .filter(|action| action.risk_or_high() >= below && may_ask_for(policy, action, store))
            .collect();
        if !risky.is_empty() {
            let message = message(rule, profile.name.as_str(), &risky, below);
            problems.add(&rule.file, Some(rule.line), message);
        }
    }
}

/// Whether the scope of a rule has this action on a target of its types. Conditions are not looked at: they depend on the request.
fn may_ask_for(rule: &Policy, action: &CatalogueAction, store: &EntityStore) -> bool {
    // An action without an entity is never evaluated; were it, the rule might ask for it.
    let in_scope = store
        .uid("Action", action.name.as_str())
        .is_none_or(|uid| scope_has_action(rule, &uid, store));
    let kind = match rule.resource_constraint() {
        // A group of targets may hold entities of other types.
        ResourceConstraint::Any | ResourceConstraint::In(_) => None,
        ResourceConstraint::Eq(uid) => Some(uid.type_name().clone()),
        ResourceConstraint::Is(kind) | ResourceConstraint::IsIn(kind, _) => Some(kind),
    };
    in_scope && kind.is_none_or(|kind| action.target_types.contains(&kind.to_string()))
}

fn message(rule: &RuleInfo, profile: &str, risky: &[&CatalogueAction], below: Risk) -> String {
    let named = risky.iter().take(NAMED_MAX).map(|action| {
        let risk = match action.risk {
            Some(risk) => format!("{} risk", risk.as_str()),
            None => "no @risk, which counts as high".to_owned(),
        };
        format!("\"{}\" ({risk})", action.name)
    });
    let mut actions = named.collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = risky.len().checked_sub(NAMED_MAX) {
        // Writing to a string does not fail.
        let _ = write!(actions, " and {more} more");
    }
    let below = below.as_str();
    format!(
        "rule \"{}\" may ask profile {profile}, which takes votes by key, for {actions}; a vote by key counts only below {below} risk \
         (`key_votes_below`): write method = \"passkey\" in [profile.{profile}] of people.toml, name a profile of passkeys in @step_up, or \
         narrow the rule's scope to actions of lower @risk",
        rule.id
    )
}
