//! Sample requests: a rule's answer to every agent, target and value that it can tell apart. Cedar itself answers.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{ControlFlow, RangeInclusive};
use std::rc::Rc;

use cedar_policy::{
    Authorizer, Context, Entities, EntityUid, EvalResult, Policy, PolicyId, PolicySet, Request,
    eval_expression,
};
use serde_json::{Value, json};

use super::decisions::SampleRequest;
use super::direction::Direction;
use super::population::{BundleEntities, Distinctions, Population, UNKNOWN};
use super::reading::{Compared, Path, Reading, named};
use super::values::{Assignment, Sample, Situation, TTL_MAX_MS};
use crate::model::{ActionName, Audience, Autonomy, ProfileName, RegisteredAgent, Target};
use crate::policy::PolicyBundle;
use crate::policy::catalogue::CatalogueAction;
use crate::policy::policy_index::{ScopeKey, action_keys, agent_key, met_by};
use crate::policy::rule::{Remedy, RuleInfo};
use crate::policy::schema::OPERATE;

/// The sample requests of one bundle.
pub(super) struct Samples<'b> {
    pub(super) bundle: &'b PolicyBundle,
    pub(super) known_entities: BundleEntities<'b>,
    /// Those of the bundle and of every case.
    entities: Entities,
    audiences: BTreeSet<Audience>,
    /// Profiles that some remedy asks for, by action and by the autonomy of the agent: the broker's own rules are for one.
    asked: BTreeMap<(ActionName, Autonomy), BTreeSet<ProfileName>>,
    no_profiles: BTreeSet<ProfileName>,
    authorizer: Authorizer,
    /// How many samples may still be asked about.
    left: Cell<usize>,
}

/// Primes above every number of values that a variable has.
const STRIDES: [usize; 3] = [7_919, 104_729, 1_299_709];

/// A rule with what is needed to ask it about samples.
pub(super) struct RuleCase<'b> {
    pub(super) info: &'b RuleInfo,
    /// The entities that it names.
    pub(super) literals: Vec<EntityUid>,
    pub(super) reading: Reading,
    /// The actions that its scope has; `None` stands for `operate`.
    pub(super) actions: Vec<Option<&'b CatalogueAction>>,
    /// What its scope requires of the agent.
    pub(super) agents: ScopeKey,
    /// Its scope, then each condition alone.
    parts: Vec<PolicySet>,
    /// Whether each condition is an `unless`.
    pub(super) exceptions: Vec<bool>,
    pub(super) directions: Vec<Direction>,
    /// How many of the first conditions read nothing of the context.
    fixed: usize,
    pub(super) population: Rc<Population>,
}

impl RuleCase<'_> {
    /// Whether its scope has an action.
    pub(super) fn has_action(&self, name: &ActionName) -> bool {
        self.actions
            .iter()
            .flatten()
            .any(|action| action.name == *name)
    }

    /// Whether it names an agent, or an entity of one of these types.
    pub(super) fn names_any_of(&self, kinds: &BTreeSet<String>) -> bool {
        self.literals.iter().any(|uid| {
            let kind = uid.type_name().to_string();
            kind == "Agent" || kinds.contains(&kind)
        })
    }
}

/// An agent, an action and a target.
pub(super) struct Scene<'c> {
    pub(super) agent: EntityUid,
    /// `None` for `operate`.
    pub(super) action: Option<&'c CatalogueAction>,
    action_uid: EntityUid,
    pub(super) target: EntityUid,
    target_known: bool,
}

/// The answer of a rule to one sample: the first condition that is not met, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Matches,
    /// The scope excludes the request.
    OutOfScope,
    /// This condition is not met, counted from 0.
    Unmet(usize),
    /// The rule cannot be evaluated.
    Fails,
}

/// What the cases of a bundle share while they are made.
struct Cases<'b> {
    bundle: &'b PolicyBundle,
    known_entities: BundleEntities<'b>,
    actions: Vec<Option<&'b CatalogueAction>>,
    /// Places in `actions` by what they meet of a scope.
    actions_meeting: HashMap<ScopeKey, Vec<usize>>,
    populations: BTreeMap<Distinctions, Rc<Population>>,
}

impl<'b> Cases<'b> {
    fn new(bundle: &'b PolicyBundle) -> Self {
        let store = bundle.evaluator.store();
        let actions = std::iter::once(None).chain(bundle.catalogue.actions().map(Some));
        let actions: Vec<Option<&CatalogueAction>> = actions.collect();
        let mut actions_meeting: HashMap<ScopeKey, Vec<usize>> = HashMap::new();
        for (at, action) in actions.iter().enumerate() {
            let keys = store.uid("Action", action_name(*action));
            for key in keys.into_iter().flat_map(|uid| met_by(&uid, store)) {
                actions_meeting.entry(key).or_default().push(at);
            }
        }
        Self {
            bundle,
            known_entities: BundleEntities::of(bundle),
            actions,
            actions_meeting,
            populations: BTreeMap::new(),
        }
    }

    /// A rule taken apart; nothing for one that Cedar cannot take apart.
    fn case(&mut self, info: &'b RuleInfo) -> Option<RuleCase<'b>> {
        let policy = self.bundle.rules.set.policy(&PolicyId::new(&info.id))?;
        // The JSON form is made from the text, which costs more than all the rest; a rule without conditions is its scope.
        let mut form = match policy.has_non_scope_constraint() {
            true => policy.to_json().ok()?,
            false => Value::Null,
        };
        let conditions = form.get_mut("conditions").map(Value::take);
        let conditions = conditions.as_ref().and_then(Value::as_array);
        let conditions = conditions.map_or(&[][..], Vec::as_slice);
        let parts = match conditions {
            [] => vec![PolicySet::from_policies([policy.clone()]).ok()?],
            _ => parts(form, conditions)?,
        };
        let places = action_keys(policy).into_iter();
        let places = places.filter_map(|key| self.actions_meeting.get(&key));
        let places: BTreeSet<usize> = places.flatten().copied().collect();
        let actions = places
            .iter()
            .filter_map(|at| self.actions.get(*at).copied());
        let actions: Vec<Option<&CatalogueAction>> = actions.collect();
        let kinds = actions
            .iter()
            .flatten()
            .flat_map(|action| &action.target_types);
        let kinds = kinds.cloned().collect();
        let literals: BTreeSet<EntityUid> = policy.entity_literals().into_iter().collect();
        let mut in_conditions = BTreeSet::new();
        conditions.iter().for_each(|c| named(c, &mut in_conditions));
        let is_in_conditions = |uid: &&EntityUid| {
            let kind = uid.type_name().to_string();
            in_conditions.contains(&(kind.as_str(), uid.id().unescaped()))
        };
        let in_conditions = literals.iter().filter(is_in_conditions).cloned().collect();
        let reading = Reading::of(conditions);
        let is_exception = |c: &Value| c.get("kind").and_then(Value::as_str) == Some("unless");
        let reads_context = |c: &&Value| c.to_string().contains("\"context\"");
        let distinctions = Distinctions::of(policy, &reading, kinds, in_conditions);
        Some(RuleCase {
            info,
            literals: literals.into_iter().collect(),
            actions,
            agents: agent_key(policy),
            parts,
            exceptions: conditions.iter().map(is_exception).collect(),
            directions: conditions
                .iter()
                .map(|c| Direction::of(c, self.bundle.evaluator.declared()))
                .collect(),
            fixed: conditions.iter().take_while(|c| !reads_context(c)).count(),
            population: self.population(distinctions),
            reading,
        })
    }

    fn population(&mut self, distinctions: Distinctions) -> Rc<Population> {
        if let Some(population) = self.populations.get(&distinctions) {
            return Rc::clone(population);
        }
        let built = Rc::new(self.known_entities.population(&distinctions));
        self.populations.insert(distinctions, Rc::clone(&built));
        built
    }
}

/// The scope of a rule, then each of its conditions, as permits of their own. `form` is the rule in its JSON form without conditions.
fn parts(mut form: Value, conditions: &[Value]) -> Option<Vec<PolicySet>> {
    let members = form.as_object_mut()?;
    members.insert("effect".to_owned(), json!("permit"));
    members.insert("conditions".to_owned(), json!([]));
    members.remove("annotations");
    let anything = json!({
        "effect": "permit",
        "principal": { "op": "All" },
        "action": { "op": "All" },
        "resource": { "op": "All" },
    });
    let of_condition = |condition: &Value| {
        let mut form = anything.clone();
        let members = form.as_object_mut()?;
        members.insert("conditions".to_owned(), json!([condition]));
        Some(form)
    };
    let forms = conditions.iter().map(of_condition);
    let mut parts = Vec::new();
    for form in std::iter::once(Some(form)).chain(forms) {
        let policy = Policy::from_json(None, form?).ok()?;
        parts.push(PolicySet::from_policies([policy]).ok()?);
    }
    Some(parts)
}

fn action_name(action: Option<&CatalogueAction>) -> &str {
    action.map_or(OPERATE, |action| action.name.as_str())
}

/// The profiles that the remedy of a rule asks for.
pub(super) fn profiles_of<'c>(case: &'c RuleCase<'_>) -> impl Iterator<Item = &'c ProfileName> {
    case.info.remedy.iter().flat_map(Remedy::profiles)
}

impl<'b> Samples<'b> {
    /// At most so many samples of a bundle, and each of its rules, in the order of their ids. Nothing if the samples are no entities to
    /// Cedar.
    pub(super) fn of(bundle: &'b PolicyBundle, most: usize) -> Option<(Self, Vec<RuleCase<'b>>)> {
        let mut making = Cases::new(bundle);
        let rules = bundle.rules.infos.values();
        let cases: Vec<RuleCase<'b>> = rules.filter_map(|info| making.case(info)).collect();
        let mut asked: BTreeMap<(ActionName, Autonomy), BTreeSet<ProfileName>> = BTreeMap::new();
        for case in &cases {
            let named: BTreeSet<&ProfileName> = profiles_of(case).collect();
            for action in case.actions.iter().flatten() {
                for autonomy in Autonomy::ALL {
                    if case.info.built_in_for().is_none_or(|of| of == autonomy) {
                        let profiles = asked.entry((action.name.clone(), autonomy)).or_default();
                        profiles.extend(named.iter().copied().cloned());
                    }
                }
            }
        }
        let samples = Self {
            bundle,
            entities: making.known_entities.entities()?,
            known_entities: making.known_entities,
            audiences: bundle.people.audiences.clone(),
            asked,
            no_profiles: BTreeSet::new(),
            authorizer: Authorizer::new(),
            left: Cell::new(most),
        };
        Some((samples, cases))
    }

    /// Whether as many samples were asked about as one bundle may take.
    pub(super) fn is_spent(&self) -> bool {
        self.left.get() == 0
    }

    /// Counts samples that are asked about; false when there are too many.
    pub(super) fn spend(&self, count: usize) -> bool {
        let left = self.left.get().saturating_sub(count);
        self.left.set(left);
        left > 0
    }

    /// Every scene of one action that the rule can tell apart.
    pub(super) fn scenes<'s>(
        &'s self,
        case: &'s RuleCase<'b>,
        action: Option<&'b CatalogueAction>,
    ) -> impl Iterator<Item = Scene<'b>> + use<'s, 'b> {
        let agents = case.population.agents.iter();
        agents.flat_map(move |agent| self.scenes_of(case, agent, action))
    }

    /// The scenes of one agent and one action.
    pub(super) fn scenes_of(
        &self,
        case: &RuleCase<'b>,
        agent: &EntityUid,
        action: Option<&'b CatalogueAction>,
    ) -> Vec<Scene<'b>> {
        let store = self.bundle.evaluator.store();
        let Some(action_uid) = store.uid("Action", action_name(action)) else {
            return Vec::new();
        };
        let scene = |target: EntityUid, target_known| Scene {
            agent: agent.clone(),
            action,
            action_uid: action_uid.clone(),
            target,
            target_known,
        };
        let Some(action) = action else {
            // Gate 1 asks about the agent's own environment.
            let entity = self.entities.get(agent);
            let environment = entity.and_then(|e| e.attr("environment")?.ok());
            return match environment {
                Some(EvalResult::EntityUid(environment)) => vec![scene(environment, true)],
                _ => Vec::new(),
            };
        };
        let mut scenes = Vec::new();
        for kind in &action.target_types {
            let targets = case.population.targets.get(kind).into_iter().flatten();
            scenes.extend(targets.map(|target| scene(target.clone(), true)));
            if let (true, Some(unknown)) = (action.open_targets, store.uid(kind, UNKNOWN)) {
                scenes.push(scene(unknown.clone(), false));
                // A target that a rule names need not be in the bundle.
                let is_absent = |uid: &&EntityUid| {
                    uid.type_name() == unknown.type_name() && !store.contains(uid)
                };
                let absent = case.literals.iter().filter(is_absent);
                scenes.extend(absent.map(|uid| scene(uid.clone(), false)));
            }
        }
        scenes
    }

    /// Asks the rule about every sample of a scene; `visit` may end it. Whether all samples were asked that can differ.
    pub(super) fn ask(
        &self,
        case: &RuleCase<'b>,
        scene: &Scene<'b>,
        extra: &[(Path, i64)],
        mut visit: impl FnMut(&Assignment, Answer) -> ControlFlow<()>,
    ) -> bool {
        let attributes = self.attributes_of(scene, &case.reading.variables);
        let situation = self.situation(scene, &attributes);
        let (variables, values_whole) = variables(&situation, &case.reading.variables, extra);
        let Some(request) = Self::request(scene, Context::empty()) else {
            return false;
        };
        // The scope and conditions that read nothing of the context have one answer for every sample.
        let is_whole = self.spend(1) && case.population.is_whole;
        let fixed = self.answer(case, &request, 0..=case.fixed);
        if fixed != Answer::Matches {
            let _ended = visit(&Vec::new(), fixed);
            return is_whole;
        }
        if case.fixed == case.exceptions.len() {
            let flow = visit(&Vec::new(), fixed);
            return flow.is_break() || (is_whole && !case.reading.is_undecided);
        }
        let base = situation.base(&case.reading);
        let (assignments, are_all) = assignments(&variables);
        for assignment in assignments {
            if !self.spend(1) {
                return false;
            }
            let context = Situation::context(&base, &assignment);
            let answer = match context.and_then(|context| Self::request(scene, context)) {
                Some(request) => self.answer(case, &request, case.fixed + 1..=usize::MAX),
                None => Answer::Fails,
            };
            if visit(&assignment, answer).is_break() {
                return true;
            }
        }
        is_whole && are_all && values_whole && !case.reading.is_undecided
    }

    /// The samples of a scene that differ in these variables, and whether those are all that can differ.
    pub(super) fn assignments(
        &self,
        scene: &Scene<'b>,
        compared: &BTreeMap<Path, Compared>,
    ) -> (Vec<Assignment>, bool) {
        let attributes = self.attributes_of(scene, compared);
        let situation = self.situation(scene, &attributes);
        let (variables, values_whole) = variables(&situation, compared, &[]);
        let (assignments, are_all) = assignments(&variables);
        (assignments, are_all && values_whole)
    }

    /// At most so many requests of an agent for an action on a target, that differ in these variables.
    pub(super) fn requests(
        &self,
        agent: &RegisteredAgent,
        action: &'b CatalogueAction,
        target: &Target,
        compared: &BTreeMap<Path, Compared>,
        most: usize,
    ) -> Vec<SampleRequest> {
        let store = self.bundle.evaluator.store();
        let uids = (
            store.uid("Agent", agent.id.as_str()),
            store.uid("Action", action.name.as_str()),
            store.uid(&target.kind, &target.id),
        );
        let (Some(agent), Some(action_uid), Some(target_uid)) = uids else {
            return Vec::new();
        };
        let scene = Scene {
            agent,
            action: Some(action),
            action_uid,
            target: target_uid,
            target_known: store.contains_target(target),
        };
        let (assignments, _) = self.assignments(&scene, compared);
        // Of too many some from everywhere, by a stride that shares no factor with their number, so that each variable has several of its
        // values.
        let all = assignments.len();
        let stride = match all <= most {
            true => 1,
            false => STRIDES.into_iter().find(|by| all % by != 0).unwrap_or(1),
        };
        let taken = (0..all.min(most)).map(|n| (n * stride) % all);
        taken
            .filter_map(|at| assignments.get(at).cloned())
            .map(|assignment| SampleRequest::of(action, assignment))
            .collect()
    }

    /// One of the bundle's targets of an action's types for each class that these rules can tell apart: by the attributes that they read,
    /// the groups that a target is in, and by name where they name it.
    pub(super) fn classes_of_targets(
        &self,
        action: &CatalogueAction,
        in_scope: &[&RuleCase<'b>],
    ) -> Vec<Target> {
        let mut by_identity = false;
        let (mut read, mut named) = (BTreeSet::new(), BTreeSet::new());
        for case in in_scope {
            by_identity |= case.reading.is_undecided || case.reading.reads_identity;
            read.extend(&case.reading.attributes);
            named.extend(&case.literals);
        }
        let store = self.bundle.evaluator.store();
        let mut classes: BTreeMap<Vec<String>, Target> = BTreeMap::new();
        for kind in &action.target_types {
            let of_kind = self.known_entities.kinds().filter(|(of, _)| *of == kind);
            for known in of_kind.flat_map(|(_, known)| known) {
                let Ok(target) = Target::parse(kind, known.uid.id().unescaped()) else {
                    continue;
                };
                let mut class = vec![kind.clone()];
                if by_identity || named.contains(&known.uid) {
                    class.push(known.uid.to_string());
                }
                let values = known.attributes.iter();
                let values = values.filter(|(name, _)| read.contains(*name));
                class.extend(values.map(|(name, value)| format!("{name} {value}")));
                class.extend(store.groups(&known.uid));
                classes.entry(class).or_insert(target);
            }
            if action.open_targets
                && let Ok(unknown) = Target::parse(kind, "unknown")
            {
                classes.insert(vec![kind.clone(), String::new()], unknown);
            }
        }
        classes.into_values().collect()
    }

    /// The text that an entity of the samples has in an attribute.
    pub(super) fn text_of(&self, uid: &EntityUid, attribute: &str) -> Option<String> {
        match self.entities.get(uid)?.attr(attribute)?.ok()? {
            EvalResult::String(text) => Some(text),
            _ => None,
        }
    }

    fn situation<'s>(
        &'s self,
        scene: &'s Scene<'b>,
        attributes: &'s BTreeSet<Sample>,
    ) -> Situation<'s> {
        Situation {
            action: scene.action,
            target_known: scene.target_known,
            audiences: &self.audiences,
            asked: self.asked_in(scene).unwrap_or(&self.no_profiles),
            attributes,
            bundle: self.bundle,
        }
    }

    /// The profiles that some remedy asks for in a scene.
    fn asked_in(&self, scene: &Scene<'b>) -> Option<&BTreeSet<ProfileName>> {
        let autonomy = match self.entities.get(&scene.agent)?.attr("autonomy")?.ok()? {
            EvalResult::String(name) => Autonomy::parse(&name).ok()?,
            _ => return None,
        };
        self.asked.get(&(scene.action?.name.clone(), autonomy))
    }

    /// The attributes of a scene that a variable is compared with, if one is.
    fn attributes_of(
        &self,
        scene: &Scene<'b>,
        variables: &BTreeMap<Path, Compared>,
    ) -> BTreeSet<Sample> {
        match variables.values().any(|compared| compared.with_entities) {
            true => self.attributes(scene),
            false => BTreeSet::new(),
        }
    }

    /// The answer to one sample with other values.
    pub(super) fn ask_once(
        &self,
        case: &RuleCase<'b>,
        scene: &Scene<'b>,
        assignment: &Assignment,
    ) -> Answer {
        let attributes = BTreeSet::new();
        let situation = self.situation(scene, &attributes);
        let _is_in_budget = self.spend(1);
        let context = Situation::context(&situation.base(&case.reading), assignment);
        match context.and_then(|context| Self::request(scene, context)) {
            Some(request) => self.answer(case, &request, 0..=usize::MAX),
            None => Answer::Fails,
        }
    }

    fn request(scene: &Scene<'b>, context: Context) -> Option<Request> {
        let (agent, action) = (scene.agent.clone(), scene.action_uid.clone());
        Request::new(agent, action, scene.target.clone(), context, None).ok()
    }

    /// The answer by these parts; the parts before them are met.
    fn answer(
        &self,
        case: &RuleCase<'b>,
        request: &Request,
        parts: RangeInclusive<usize>,
    ) -> Answer {
        for (at, part) in case.parts.iter().enumerate() {
            if !parts.contains(&at) {
                continue;
            }
            let response = self.authorizer.is_authorized(request, part, &self.entities);
            if response.diagnostics().errors().next().is_some() {
                return Answer::Fails;
            }
            // A forbid without conditions is a part as it is.
            if response.diagnostics().reason().next().is_none() {
                return match at.checked_sub(1) {
                    None => Answer::OutOfScope,
                    Some(condition) => Answer::Unmet(condition),
                };
            }
        }
        Answer::Matches
    }

    fn attributes(&self, scene: &Scene<'b>) -> BTreeSet<Sample> {
        let entities = [&scene.agent, &scene.target];
        let entities = entities
            .into_iter()
            .filter_map(|uid| self.entities.get(uid));
        let values = entities.flat_map(|entity| entity.attrs().filter_map(|(_, value)| value.ok()));
        let Some(request) = Self::request(scene, Context::empty()) else {
            return BTreeSet::new();
        };
        let number = |expression: String| {
            let expression = expression.parse().ok()?;
            match eval_expression(&request, &self.entities, &expression) {
                Ok(EvalResult::Long(number)) => Some(number),
                _ => None,
            }
        };
        values.flat_map(|value| plain(value, &number)).collect()
    }

    /// A scene in words.
    pub(super) fn describe(&self, scene: &Scene<'_>) -> String {
        format!(
            "{}, {} on {}",
            self.known_entities.name(&scene.agent),
            action_name(scene.action),
            self.known_entities.name(&scene.target)
        )
    }

    /// Every audience, as values of `context.audience`.
    pub(super) fn audiences(&self) -> impl Iterator<Item = Sample> {
        self.audiences
            .iter()
            .map(|a| Sample::Text(a.as_str().to_owned()))
    }
}

/// The integers, texts, durations and instants in a value. `number`: the integer that an expression of Cedar is.
fn plain(value: EvalResult, number: &impl Fn(String) -> Option<i64>) -> Vec<Sample> {
    match value {
        EvalResult::ExtensionValue(text) => {
            let since_1970 = "durationSince(datetime(\"1970-01-01\")).toMilliseconds()";
            let duration = number(format!("{text}.toMilliseconds()")).map(Sample::Duration);
            let instant = || number(format!("{text}.{since_1970}")).map(Sample::Instant);
            duration.or_else(instant).into_iter().collect()
        }
        EvalResult::Long(n) => vec![Sample::Long(n)],
        EvalResult::String(text) => vec![Sample::Text(text)],
        EvalResult::Set(items) => {
            let items = items.iter().cloned();
            items.flat_map(|item| plain(item, number)).collect()
        }
        _ => Vec::new(),
    }
}

/// A variable with its values; `None` for one that is absent.
type Variable = (Path, Vec<Option<Sample>>);

/// Each variable with its values, and whether no others can change an answer.
fn variables(
    situation: &Situation<'_>,
    compared: &BTreeMap<Path, Compared>,
    extra: &[(Path, i64)],
) -> (Vec<Variable>, bool) {
    let mut variables = Vec::new();
    let mut is_whole = true;
    for (path, constants) in compared {
        let known = situation.values(path, constants);
        is_whole &= known.is_whole;
        let mut values = known.samples;
        // Of a variable that the context does not have there are none.
        let extra = extra
            .iter()
            .filter(|(of, _)| of == path && !values.is_empty());
        let extra: Vec<i64> = extra
            .flat_map(|(_, ms)| [*ms, ms.saturating_add(1)])
            .collect();
        for ms in extra.into_iter().filter(|ms| *ms <= TTL_MAX_MS) {
            let value = Some(Sample::Duration(ms));
            if !values.contains(&value) {
                values.push(value);
            }
        }
        if !values.is_empty() {
            variables.push((path.clone(), values));
        }
    }
    (variables, is_whole)
}

/// Every combination of these values; of very many, all that differ from the first one in two variables. Whether those are all.
fn assignments(variables: &[(Path, Vec<Option<Sample>>)]) -> (Vec<Assignment>, bool) {
    let count = variables
        .iter()
        .fold(1_usize, |n, (_, values)| n.saturating_mul(values.len()));
    if count <= ASSIGNMENTS_MAX {
        let mut all: Vec<Assignment> = vec![Vec::new()];
        for (path, values) in variables {
            let with = |one: &Assignment| {
                let with = values.iter().map(|value| {
                    let mut one = one.clone();
                    one.push((path.clone(), value.clone()));
                    one
                });
                with.collect::<Vec<_>>()
            };
            all = all.iter().flat_map(with).collect();
        }
        return (all, true);
    }
    let first: Assignment = variables
        .iter()
        .map(|(path, values)| (path.clone(), values.first().cloned().flatten()))
        .collect();
    let mut all = vec![first.clone()];
    let set = |assignment: &mut Assignment, at: usize, value: &Option<Sample>| {
        if let Some((_, old)) = assignment.get_mut(at) {
            old.clone_from(value);
        }
    };
    for (i, (_, ones)) in variables.iter().enumerate() {
        for (j, (_, others)) in variables.iter().enumerate().skip(i + 1) {
            for one in ones {
                for other in others {
                    let mut next = first.clone();
                    set(&mut next, i, one);
                    set(&mut next, j, other);
                    all.push(next);
                    if all.len() >= ASSIGNMENTS_MAX {
                        return (all, false);
                    }
                }
            }
        }
    }
    (all, false)
}

/// Most samples of one scene.
const ASSIGNMENTS_MAX: usize = 2_048;
