//! Cedar entities of a bundle: targets, agents, people, groups and the schema's actions.
// INVARIANT (action entities present): without the schema's action entities no `forbid (…, action in …)` applies.
// Nothing else in the crate constructs `Entities`, and the self-test evaluates with these.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    Entities, Entity, EntityId, EntityTypeName, EntityUid, EvalResult, RestrictedExpression, Schema,
};
use serde_json::Value;

use super::agents::Agents;
use super::files::ENTITIES;
use super::nesting;
use super::people::People;
use super::problem::{Problems, nearest};
use super::sentences::{Texts, Things};
use super::spellings::Spellings;
use crate::model::{Target, json};

/// An agent or a target as rules see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntityFacts {
    /// Attributes with their values in Cedar's notation, by name.
    pub attributes: Vec<(String, String)>,
    /// Groups that it is in, at any depth, in Cedar's notation.
    pub groups: Vec<String>,
}

/// The entities of a bundle, as policies see them.
pub(super) struct EntityStore {
    entities: Entities,
    types: BTreeMap<String, EntityTypeName>,
}

impl EntityStore {
    /// Builds all entities of a policy bundle: targets from `entities.json`, the rest from the registry, the actions from
    /// the schema. `types` are the entity types the team declares; `entities.json` may hold no others.
    pub(super) fn build(
        schema: &Schema,
        types: &BTreeSet<String>,
        targets: &str,
        agents: &Agents,
        people: &People,
        problems: &mut Problems,
    ) -> Option<Self> {
        let mut names = BTreeMap::new();
        for name in types.iter().map(String::as_str).chain(BUILT_IN_TYPES) {
            match EntityTypeName::from_str(name) {
                Ok(parsed) => {
                    names.insert(name.to_owned(), parsed);
                }
                Err(e) => problems.add(ENTITIES, None, format!("type {name}: {e}")),
            }
        }
        let mut all = read_targets(schema, types, targets, problems)?;
        let registry = Registry { names: &names };
        match registry.entities(agents, people) {
            Ok(entities) => all.extend(entities),
            Err(message) => problems.add(ENTITIES, None, message),
        }
        match Entities::from_entities(all, Some(schema)) {
            Ok(entities) => Some(Self {
                entities,
                types: names,
            }),
            Err(e) => {
                problems.add_cedar(ENTITIES, None, "", &DetailedError::from(&e));
                None
            }
        }
    }

    /// The uid of an entity of a type of this bundle; the entity need not exist.
    pub(super) fn uid(&self, kind: &str, id: &str) -> Option<EntityUid> {
        Some(EntityUid::from_type_name_and_id(
            self.types.get(kind)?.clone(),
            EntityId::new(id),
        ))
    }

    pub(super) fn contains(&self, uid: &EntityUid) -> bool {
        self.entities.get(uid).is_some()
    }

    /// Whether `group` holds `member`, at any depth. For actions this needs the schema's action entities.
    pub(super) fn is_ancestor(&self, group: &EntityUid, member: &EntityUid) -> bool {
        self.entities.is_ancestor_of(group, member)
    }

    pub(super) fn contains_target(&self, target: &Target) -> bool {
        self.uid(&target.kind, &target.id)
            .is_some_and(|uid| self.contains(&uid))
    }

    /// Every target of these types, in the order of types and ids.
    pub(super) fn targets(&self, types: &BTreeSet<String>) -> Vec<Target> {
        let target = |entity: &Entity| {
            let (kind, id) = (entity.uid().type_name().to_string(), entity.uid());
            let target = Target::parse(&kind, id.id().unescaped()).ok()?;
            types.contains(&kind).then_some(target)
        };
        let mut targets: Vec<Target> = self.entities.iter().filter_map(target).collect();
        targets.sort();
        targets
    }

    /// The entities that are targets of these types.
    pub(super) fn declared_targets(
        &self,
        types: &BTreeSet<String>,
    ) -> impl Iterator<Item = (Target, &Entity)> {
        self.entities.iter().filter_map(|entity| {
            let uid = entity.uid();
            let kind = uid.type_name().to_string();
            let target = Target::parse(&kind, uid.id().unescaped()).ok()?;
            types.contains(&kind).then_some((target, entity))
        })
    }

    pub(super) fn entities(&self) -> &Entities {
        &self.entities
    }

    /// The groups above an entity, at any depth, in Cedar's notation.
    pub(super) fn groups(&self, uid: &EntityUid) -> Vec<String> {
        let groups = self.entities.ancestors(uid).into_iter().flatten();
        let groups: BTreeSet<String> = groups.map(ToString::to_string).collect();
        groups.into_iter().collect()
    }

    /// The attributes and groups of an entity; `None` for one that the bundle does not have.
    pub(super) fn facts(&self, kind: &str, id: &str) -> Option<EntityFacts> {
        let uid = self.uid(kind, id)?;
        let entity = self.entities.get(&uid)?;
        let mut attributes = Vec::new();
        for (name, value) in entity.attrs() {
            let text = value.map_or_else(|_| "unreadable".to_owned(), |v| inner_text(&v));
            attributes.push((name.to_owned(), text));
        }
        attributes.sort();
        Some(EntityFacts {
            attributes,
            groups: self.groups(&uid),
        })
    }

    /// The attributes of a target as text, in the order of their names.
    pub(super) fn attributes(&self, target: &Target) -> Option<Vec<(String, String)>> {
        let entity = self.entities.get(&self.uid(&target.kind, &target.id)?)?;
        let mut attributes = Vec::new();
        for (name, value) in entity.attrs() {
            attributes.push((
                name.to_owned(),
                value.map_or_else(|_| "unreadable".to_owned(), |value| value_text(&value)),
            ));
        }
        attributes.sort();
        Some(attributes)
    }

    /// The attributes and ancestors of every entity of one of these types.
    pub(super) fn things(&self, types: &BTreeSet<String>) -> Things {
        let declared = self
            .entities
            .iter()
            .map(|entity| (entity, entity.uid()))
            .filter(|(_, uid)| types.contains(&uid.type_name().to_string()));
        let texts = |(entity, uid): (&Entity, EntityUid)| {
            let mut texts: Texts = entity
                .attrs()
                .map(|(name, value)| {
                    let text = value.map_or_else(|_| "unreadable".to_owned(), |v| inner_text(&v));
                    (format!("attribute {}", quote(name)), text)
                })
                .collect();
            let groups = self.groups(&uid).join(", ");
            texts.insert("groups".to_owned(), format!("[{groups}]"));
            (uid.to_string(), texts)
        };
        declared.map(texts).collect()
    }

    /// The store without action entities, as if built without the schema: the self-test must fail.
    #[cfg(test)]
    pub(super) fn remove_actions(&mut self) {
        let actions = self
            .entities
            .iter()
            .filter(|e| e.uid().type_name().basename() == "Action")
            .map(Entity::uid);
        let actions: Vec<_> = actions.collect();
        self.entities = self
            .entities
            .clone()
            .remove_entities(actions)
            .expect("removed");
    }
}

/// Refuses an id of `entities.json` that another one equals but for its Unicode normalization form.
pub(super) fn check_spellings(targets: &str, spellings: &mut Spellings, problems: &mut Problems) {
    // Invalid JSON was refused when the store was built.
    let targets = json::parse(targets.as_bytes()).unwrap_or_default();
    for target in targets.as_array().into_iter().flatten() {
        if let Err(message) = spellings.add_json(target) {
            problems.add(ENTITIES, None, message);
        }
    }
}

fn read_targets(
    schema: &Schema,
    types: &BTreeSet<String>,
    text: &str,
    problems: &mut Problems,
) -> Option<Vec<Entity>> {
    let value = match json::parse(text.as_bytes()) {
        Ok(value) => value,
        Err(e) => {
            problems.add(ENTITIES, None, e.to_string());
            return None;
        }
    };
    let Some(items) = value.as_array() else {
        problems.add(ENTITIES, None, "must be a list of entities");
        return None;
    };
    let mut seen = BTreeMap::new();
    let mut valid = true;
    for (n, item) in items.iter().enumerate() {
        let Some((kind, id)) = item.get("uid").and_then(uid_of) else {
            problems.add(
                ENTITIES,
                None,
                format!("entity {}: needs a uid with type and id", n + 1),
            );
            valid = false;
            continue;
        };
        let problem = match Target::parse(kind, id) {
            Err(e) => Some(format!("entity {}: {e}", n + 1)),
            Ok(target) if !types.contains(kind) => Some(format!(
                "{target}: holds only entities of types that schema.cedarschema declares{}; agents, people and environments \
                 come from agents.toml and people.toml",
                nearest(kind, types.iter().map(String::as_str))
            )),
            Ok(target) => {
                let parents = item.get("parents").and_then(Value::as_array);
                let parents = parents.into_iter().flatten().filter_map(uid_of);
                let parents = parents.filter_map(|(kind, id)| Target::parse(kind, id).ok());
                let before = seen.insert(target.clone(), parents.collect());
                before.map(|_: Vec<Target>| format!("{target}: is listed twice"))
            }
        };
        if let Some(message) = problem {
            problems.add(ENTITIES, None, message);
            valid = false;
        }
    }
    if let Some(target) = nesting::too_deep(&seen) {
        let message = format!(
            "{target}: is the member of a chain of too many targets; name its groups directly"
        );
        problems.add(ENTITIES, None, message);
        valid = false;
    }
    if !valid {
        return None;
    }
    match Entities::from_json_value(value, Some(schema)) {
        Ok(parsed) => Some(
            parsed
                .into_iter()
                .filter(|e| types.contains(&e.uid().type_name().to_string()))
                .collect(),
        ),
        Err(e) => {
            problems.add_cedar(ENTITIES, None, "", &DetailedError::from(&e));
            None
        }
    }
}

/// Type and id.
fn uid_of(json: &Value) -> Option<(&str, &str)> {
    let uid = json.get("__entity").unwrap_or(json);
    Some((uid.get("type")?.as_str()?, uid.get("id")?.as_str()?))
}

/// Agents, people, their groups and environments as entities.
struct Registry<'a> {
    names: &'a BTreeMap<String, EntityTypeName>,
}

impl Registry<'_> {
    fn uid(&self, kind: &str, id: &str) -> Result<EntityUid, String> {
        let name = self
            .names
            .get(kind)
            .ok_or_else(|| format!("type {kind} is missing"))?;
        Ok(EntityUid::from_type_name_and_id(
            name.clone(),
            EntityId::new(id),
        ))
    }

    fn entities(&self, agents: &Agents, people: &People) -> Result<Vec<Entity>, String> {
        let mut plain = BTreeSet::new();
        let mut entities = Vec::new();
        for person in people.persons.values() {
            let mut parents = HashSet::new();
            for group in &person.groups {
                plain.insert(("PersonGroup", group.as_str()));
                parents.insert(self.uid("PersonGroup", group.as_str())?);
            }
            entities.push(Entity::new_no_attrs(
                self.uid("Person", person.id.as_str())?,
                parents,
            ));
        }
        for environment in &agents.environments {
            plain.insert(("Environment", environment.as_str()));
        }
        for agent in agents.registered.values() {
            let mut parents = HashSet::new();
            for group in &agent.groups {
                plain.insert(("AgentGroup", group.as_str()));
                parents.insert(self.uid("AgentGroup", group.as_str())?);
            }
            plain.insert(("Environment", agent.environment.as_str()));
            let reference = |kind, id| {
                Ok::<_, String>(RestrictedExpression::new_entity_uid(self.uid(kind, id)?))
            };
            let attributes = HashMap::from([
                (
                    "owner".to_owned(),
                    reference("Person", agent.owner.as_str())?,
                ),
                (
                    "environment".to_owned(),
                    reference("Environment", agent.environment.as_str())?,
                ),
                (
                    "model".to_owned(),
                    RestrictedExpression::new_string(agent.model.clone()),
                ),
                (
                    "autonomy".to_owned(),
                    RestrictedExpression::new_string(agent.autonomy.as_str().to_owned()),
                ),
            ]);
            let uid = self.uid("Agent", agent.id.as_str())?;
            entities.push(Entity::new(uid, attributes, parents).map_err(|e| e.to_string())?);
        }
        for (kind, id) in plain {
            entities.push(Entity::new_no_attrs(self.uid(kind, id)?, HashSet::new()));
        }
        Ok(entities)
    }
}

/// An attribute value as text for a card.
fn value_text(value: &EvalResult) -> String {
    match value {
        EvalResult::Bool(b) => b.to_string(),
        EvalResult::Long(n) => n.to_string(),
        EvalResult::String(s) if reads_as_another_type(s) => quote(s),
        EvalResult::String(s) => s.clone(),
        EvalResult::EntityUid(uid) => format!("{}::{}", uid.type_name(), uid.id().unescaped()),
        EvalResult::Set(items) => format!(
            "[{}]",
            items.iter().map(inner_text).collect::<Vec<_>>().join(", ")
        ),
        EvalResult::Record(members) => {
            format!(
                "{{{}}}",
                members
                    .iter()
                    .map(|(name, v)| format!("{}: {}", quote(name), inner_text(v)))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        EvalResult::ExtensionValue(text) => text.clone(),
    }
}

/// Whether a text would read as a value of another type, or as a quoted text.
fn reads_as_another_type(text: &str) -> bool {
    matches!(text, "true" | "false")
        || text.parse::<i64>().is_ok()
        || text.contains("::")
        || text.starts_with(['[', '{', '"', '+', '-'])
        || text.contains('(')
}

/// A value inside another: texts are quoted, so that none looks like two.
pub(super) fn inner_text(value: &EvalResult) -> String {
    match value {
        EvalResult::String(text) => quote(text),
        EvalResult::EntityUid(uid) => {
            format!("{}::{}", uid.type_name(), quote(uid.id().unescaped()))
        }
        other => value_text(other),
    }
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Entity types every bundle has.
const BUILT_IN_TYPES: [&str; 7] = [
    "StepUp",
    "Environment",
    "AgentGroup",
    "PersonGroup",
    "Person",
    "Agent",
    "Action",
];
