//! People whom targets name: the voters of a profile with `target_attribute`.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{Entity, EvalResult};

use super::catalogue::Catalogue;
use super::entities::EntityStore;
use super::files::{ENTITIES, PEOPLE};
use super::people::People;
use super::problem::Problems;
use crate::model::{GroupId, PersonId, Target};

/// Most targets that a warning names.
const NAMED_MAX: usize = 5;

/// Gives the people whom targets name the groups of these targets, for each attribute that a profile reads. A profile whose attribute no
/// target has is a problem; a target for which too few approvers are named is a warning: what needs the profile is denied there.
pub(super) fn assign(
    people: &mut People,
    store: &EntityStore,
    catalogue: &Catalogue,
    problems: &mut Problems,
    warnings: &mut Problems,
) {
    let mut types = BTreeSet::new();
    for action in catalogue.actions() {
        types.extend(action.target_types.iter().cloned());
    }
    let asked: BTreeMap<String, (String, u32)> = people
        .profiles
        .values()
        .filter_map(|profile| {
            let attribute = profile.target_attribute.clone()?;
            Some((profile.name.to_string(), (attribute, profile.quorum)))
        })
        .collect();
    for (name, (attribute, quorum)) in asked {
        let declared: Vec<_> = store
            .declared_targets(&types)
            .map(|(target, entity)| (target, named_people(entity, &attribute)))
            .collect();
        let with = declared.iter().filter(|(_, named)| named.is_some());
        let with: BTreeSet<String> = with.map(|(target, _)| target.kind.clone()).collect();
        let mut short = Vec::new();
        for (target, named) in declared {
            let groups = [
                GroupId::of_target(&attribute, &target),
                GroupId::of_targets(&attribute),
            ];
            let mut approvers = 0;
            for person in named.into_iter().flatten() {
                let registered = PersonId::parse(&person).ok();
                let registered = registered.and_then(|id| people.persons.get_mut(&id));
                if let Some(person) = registered {
                    person.target_groups.extend(groups.iter().cloned());
                    approvers += u32::from(person.roles.contains(&super::Role::Approver));
                }
            }
            if approvers < quorum && with.contains(&target.kind) {
                short.push(target);
            }
        }
        if with.is_empty() {
            let message = format!(
                "profile {name}: no target of entities.json has the attribute \"{attribute}\" as a text or a set of texts; its values are ids of people"
            );
            problems.add(PEOPLE, None, message);
        } else if !short.is_empty() {
            let first: Vec<String> = short
                .iter()
                .take(NAMED_MAX)
                .map(Target::to_string)
                .collect();
            let more = match short.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let message = format!(
                "profile {name}: the attribute \"{attribute}\" of {}{more} names fewer approvers of people.toml than its quorum {quorum}: what needs the profile is denied there",
                first.join(", ")
            );
            warnings.add(ENTITIES, None, message);
        }
    }
}

/// The people whom an attribute of a target names; nothing where the target has no such attribute of a fitting type.
fn named_people(entity: &Entity, attribute: &str) -> Option<Vec<String>> {
    match entity.attr(attribute)?.ok()? {
        EvalResult::String(person) => Some(vec![person]),
        EvalResult::Set(people) => people
            .iter()
            .map(|person| match person {
                EvalResult::String(person) => Some(person.clone()),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}
