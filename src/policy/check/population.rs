//! The agents and targets of the samples: of those in the scope of a rule one of each that the rule can tell apart, and what they
//! could become by the values that the bundle declares.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::str::FromStr as _;

use cedar_policy::{
    Entities, Entity, EntityId, EntityUid, EvalResult, Policy, RestrictedExpression,
};

use super::reading::Reading;
use crate::policy::PolicyBundle;
use crate::policy::policy_index::{ScopeKey, agent_key, met_by, target_key};

/// What a rule reads of entities: rules that read the same have the same samples.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Distinctions {
    /// What its scope requires.
    agents: ScopeKey,
    targets: ScopeKey,
    /// Types of the targets of its actions.
    kinds: BTreeSet<String>,
    attributes: BTreeSet<String>,
    groups: bool,
    identity: bool,
    /// Entities that its conditions name.
    named: BTreeSet<EntityUid>,
}

impl Distinctions {
    pub(super) fn of(
        policy: &Policy,
        reading: &Reading,
        kinds: BTreeSet<String>,
        named: BTreeSet<EntityUid>,
    ) -> Self {
        Self {
            agents: agent_key(policy),
            targets: target_key(policy),
            kinds,
            attributes: reading.attributes.clone(),
            groups: reading.reads_groups,
            identity: reading.reads_identity,
            named,
        }
    }
}

/// Agents and targets that a rule may tell apart.
#[derive(Default)]
pub(super) struct Population {
    pub(super) agents: Vec<EntityUid>,
    /// By type.
    pub(super) targets: BTreeMap<String, Vec<EntityUid>>,
    /// Types of which the scope leaves out some.
    pub(super) narrowed: BTreeSet<String>,
    /// Whether the samples are all that the rule may tell apart.
    pub(super) is_whole: bool,
}

/// The entities of a bundle, and what they could become.
pub(super) struct BundleEntities<'b> {
    bundle: &'b PolicyBundle,
    /// By type, each in the order of its name.
    kinds: BTreeMap<String, Vec<KnownEntity>>,
    /// Places in `kinds` by what they meet of a scope and by type.
    meeting: HashMap<ScopeKey, BTreeMap<String, Vec<usize>>>,
    environments: Vec<EvalResult>,
    variants: Vec<Entity>,
    by_changes: HashMap<(EntityUid, Vec<String>), EntityUid>,
    names: BTreeMap<EntityUid, String>,
}

/// An entity of the bundle.
pub(super) struct KnownEntity {
    pub(super) uid: EntityUid,
    pub(super) attributes: BTreeMap<String, EvalResult>,
    groups: Vec<String>,
}

impl<'b> BundleEntities<'b> {
    pub(super) fn of(bundle: &'b PolicyBundle) -> Self {
        let store = bundle.evaluator.store();
        let mut kinds: BTreeMap<String, Vec<KnownEntity>> = BTreeMap::new();
        for entity in store.entities().iter() {
            let uid = entity.uid();
            let attributes = entity.attrs();
            let attributes =
                attributes.filter_map(|(name, value)| Some((name.to_owned(), value.ok()?)));
            let groups = store.entities().ancestors(&uid).into_iter().flatten();
            let mut groups: Vec<String> = groups.map(ToString::to_string).collect();
            groups.sort();
            let known = KnownEntity {
                attributes: attributes.collect(),
                groups,
                uid,
            };
            let kind = known.uid.type_name().to_string();
            kinds.entry(kind).or_default().push(known);
        }
        let mut meeting: HashMap<ScopeKey, BTreeMap<String, Vec<usize>>> = HashMap::new();
        for (kind, entities) in &mut kinds {
            entities.sort_by_cached_key(|known| known.uid.to_string());
            for (at, known) in entities.iter().enumerate() {
                for key in met_by(&known.uid, store) {
                    let places = meeting.entry(key).or_default();
                    places.entry(kind.clone()).or_default().push(at);
                }
            }
        }
        let environments = kinds.get("Environment").into_iter().flatten();
        let environments = environments.map(|known| EvalResult::EntityUid(known.uid.clone()));
        Self {
            bundle,
            environments: environments.collect(),
            kinds,
            meeting,
            variants: Vec::new(),
            by_changes: HashMap::new(),
            names: BTreeMap::new(),
        }
    }

    /// The entities of each type.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (&String, &Vec<KnownEntity>)> {
        self.kinds.iter()
    }

    /// The samples of a rule. The entities that it adds are those of [`BundleEntities::entities`].
    pub(super) fn population(&mut self, distinctions: &Distinctions) -> Population {
        let mut population = Population {
            is_whole: true,
            ..Population::default()
        };
        population.agents =
            self.samples("Agent", &distinctions.agents, distinctions, &mut population);
        for kind in &distinctions.kinds {
            let samples = self.samples(kind, &distinctions.targets, distinctions, &mut population);
            population.targets.insert(kind.clone(), samples);
        }
        population
    }

    fn samples(
        &mut self,
        kind: &str,
        scope: &ScopeKey,
        distinctions: &Distinctions,
        population: &mut Population,
    ) -> Vec<EntityUid> {
        let all = self.kinds.get(kind).map_or(&[][..], Vec::as_slice);
        let places = self.meeting.get(scope).and_then(|places| places.get(kind));
        let places = places.map_or(&[][..], Vec::as_slice);
        if places.len() < all.len() {
            population.narrowed.insert(kind.to_owned());
        }
        let mut seen: BTreeSet<Vec<String>> = BTreeSet::new();
        let mut found = Vec::new();
        let mut samples = Vec::new();
        for known in places.iter().filter_map(|at| all.get(*at)) {
            let mut groups = match distinctions.groups {
                true => known.groups.clone(),
                false => Vec::new(),
            };
            if distinctions.identity || distinctions.named.contains(&known.uid) {
                groups.push(known.uid.to_string());
            }
            if !seen.insert(distinctions.key(&known.attributes, &groups)) {
                continue;
            }
            if samples.len() >= SAMPLES_MAX {
                population.is_whole = false;
                break;
            }
            samples.push(known.uid.clone());
            let choices = distinctions.choices(kind, &known.attributes, &self.environments);
            if !choices.is_empty() {
                found.push((known.uid.clone(), known.attributes.clone(), groups, choices));
            }
        }
        for (uid, attributes, groups, choices) in found {
            for changes in combinations(&choices) {
                let mut changed = attributes.clone();
                changed.extend(changes.clone());
                if !seen.insert(distinctions.key(&changed, &groups)) {
                    continue;
                }
                if samples.len() >= SAMPLES_MAX {
                    population.is_whole = false;
                    return samples;
                }
                match self.variant(&uid, &changed, &changes) {
                    Some(other) => samples.push(other),
                    None => population.is_whole = false,
                }
            }
        }
        samples
    }

    /// An entity with these attributes in the groups of another.
    fn variant(
        &mut self,
        uid: &EntityUid,
        attributes: &BTreeMap<String, EvalResult>,
        changes: &BTreeMap<String, EvalResult>,
    ) -> Option<EntityUid> {
        let changes: Vec<String> = changes
            .iter()
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        let key = (uid.clone(), changes);
        if let Some(known) = self.by_changes.get(&key) {
            return Some(known.clone());
        }
        if self.variants.len() >= VARIANTS_MAX {
            return None;
        }
        let id = EntityId::new(format!("\u{1}{}", self.variants.len()));
        let other = EntityUid::from_type_name_and_id(uid.type_name().clone(), id);
        let attributes = attributes
            .iter()
            .map(|(name, value)| Some((name.clone(), expression(value)?)));
        let attributes: HashMap<_, _> = attributes.collect::<Option<_>>()?;
        let all = self.bundle.evaluator.store().entities();
        let groups: HashSet<EntityUid> =
            all.ancestors(uid).into_iter().flatten().cloned().collect();
        let entity = Entity::new(other.clone(), attributes, groups).ok()?;
        self.variants.push(entity);
        let name = format!("{uid} with {}", key.1.join(", "));
        self.names.insert(other.clone(), name);
        self.by_changes.insert(key, other.clone());
        Some(other)
    }

    /// The entities of the bundle, and those of every population so far.
    pub(super) fn entities(&self) -> Option<Entities> {
        let all = self.bundle.evaluator.store().entities().clone();
        match self.variants.is_empty() {
            true => Some(all),
            false => all.add_entities(self.variants.clone(), None).ok(),
        }
    }

    /// What an entity of the samples is.
    pub(super) fn name(&self, uid: &EntityUid) -> String {
        match self.names.get(uid) {
            Some(name) => name.clone(),
            None if uid.id().unescaped() == UNKNOWN => {
                format!("a {} that the bundle does not have", uid.type_name())
            }
            None => uid.to_string(),
        }
    }
}

impl Distinctions {
    fn reads(&self, attribute: &str) -> bool {
        self.identity || self.attributes.contains(attribute)
    }

    fn key(&self, attributes: &BTreeMap<String, EvalResult>, groups: &[String]) -> Vec<String> {
        let read = attributes.iter().filter(|(name, _)| self.reads(name));
        let mut key: Vec<String> = read
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        key.extend(groups.iter().cloned());
        key
    }

    /// The attributes that could have other values, with those.
    fn choices(
        &self,
        kind: &str,
        attributes: &BTreeMap<String, EvalResult>,
        environments: &[EvalResult],
    ) -> Vec<(String, Vec<EvalResult>)> {
        let read = attributes
            .iter()
            .filter(|(name, _)| self.attributes.contains(*name));
        let values = |(name, value): (&String, &EvalResult)| {
            let values = match value {
                EvalResult::Bool(_) => vec![EvalResult::Bool(false), EvalResult::Bool(true)],
                EvalResult::EntityUid(uid) if uid.type_name().basename() == "Environment" => {
                    environments.to_vec()
                }
                EvalResult::String(_) if (kind, name.as_str()) == ("Agent", "autonomy") => {
                    let names = crate::model::Autonomy::ALL.map(crate::model::Autonomy::as_str);
                    names.map(|n| EvalResult::String(n.to_owned())).to_vec()
                }
                _ => return None,
            };
            Some((name.clone(), values))
        };
        read.filter_map(values).collect()
    }
}

/// Every combination of these values; of very many, those that differ in one attribute.
fn combinations(choices: &[(String, Vec<EvalResult>)]) -> Vec<BTreeMap<String, EvalResult>> {
    let count = choices
        .iter()
        .fold(1_usize, |n, (_, values)| n.saturating_mul(values.len()));
    if count > COMBINATIONS_MAX {
        let single = |(name, values): &(String, Vec<EvalResult>)| {
            let single = values
                .iter()
                .map(|value| BTreeMap::from([(name.clone(), value.clone())]));
            single.collect::<Vec<_>>()
        };
        return choices.iter().flat_map(single).collect();
    }
    let mut all = vec![BTreeMap::new()];
    for (name, values) in choices {
        let with = |one: &BTreeMap<String, EvalResult>| {
            let with = values.iter().map(|value| {
                let mut one = one.clone();
                one.insert(name.clone(), value.clone());
                one
            });
            with.collect::<Vec<_>>()
        };
        all = all.iter().flat_map(with).collect();
    }
    all
}

fn expression(value: &EvalResult) -> Option<RestrictedExpression> {
    Some(match value {
        EvalResult::Bool(value) => RestrictedExpression::new_bool(*value),
        EvalResult::Long(value) => RestrictedExpression::new_long(*value),
        EvalResult::String(text) => RestrictedExpression::new_string(text.clone()),
        EvalResult::EntityUid(uid) => RestrictedExpression::new_entity_uid(uid.clone()),
        EvalResult::Set(items) => {
            let items = items.iter().map(expression);
            RestrictedExpression::new_set(items.collect::<Option<Vec<_>>>()?)
        }
        EvalResult::Record(members) => {
            let members = members
                .iter()
                .map(|(name, value)| Some((name.clone(), expression(value)?)));
            RestrictedExpression::new_record(members.collect::<Option<Vec<_>>>()?).ok()?
        }
        EvalResult::ExtensionValue(text) => RestrictedExpression::from_str(text).ok()?,
    })
}

/// The id of a target that the bundle does not have.
pub(super) const UNKNOWN: &str = "\u{1}unknown";
/// Most entities of one type that are samples.
const SAMPLES_MAX: usize = 256;
/// Most combinations of changed attributes of one entity.
const COMBINATIONS_MAX: usize = 32;
/// Most entities that the samples of all rules add.
const VARIANTS_MAX: usize = 16_384;
