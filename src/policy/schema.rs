//! The schema: the bundle's own fragment merged with the built-in one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Schema, SchemaFragment};
use serde_json::{Map, Value, json};

use super::evaluator::DeclaredContext;
use super::files::SCHEMA;
use super::nesting;
use super::problem::{Problems, nearest};
use super::schema_types::{
    BUILT_IN, EXTENSIONS, RecordMember, SchemaType, TypeReader, annotations,
};
use crate::model::{POLICY_NAMESPACE, ProfileName, Reversibility};

/// The bundle's schema merged with the built-in fragment, with the checks that Cedar does not make.
pub(super) struct MergedSchema {
    /// Both fragments together, against which rules, entities and requests are validated.
    pub(super) schema: Schema,
    team: Map<String, Value>,
    built_in: Map<String, Value>,
}

impl MergedSchema {
    /// Reads `schema.cedarschema` and merges it with the fragment every bundle gets.
    pub(super) fn read(
        text: &str,
        profiles: &BTreeSet<ProfileName>,
        declared: &DeclaredContext,
        problems: &mut Problems,
        warnings: &mut Problems,
    ) -> Option<Self> {
        if !nesting::check_schema(text, problems) {
            return None;
        }
        let team = match SchemaFragment::from_cedarschema_str(text) {
            Ok((fragment, schema_warnings)) => {
                schema_warnings.for_each(|w| warnings.add(SCHEMA, None, w.to_string()));
                fragment
            }
            Err(e) => {
                problems.add_cedar(SCHEMA, Some((text, 1)), "", &DetailedError::from(&e));
                return None;
            }
        };
        let zones: Vec<&str> = declared.calendar.zones().collect();
        let fixed = match zones.is_empty() {
            true => LazyLock::force(&BUILT_IN_FRAGMENT).clone(),
            false => built_in_fragment(&zones),
        };
        let built_in = match (fixed, step_up_fragment(profiles)) {
            (Ok(fixed), Ok(step_up)) => [fixed, step_up],
            (Err(message), _) | (_, Err(message)) => {
                problems.add(SCHEMA, None, format!("built-in fragment: {message}"));
                return None;
            }
        };
        let team_json = namespace(team.clone(), problems)?;
        let [fixed, _] = built_in.clone();
        let built_in_json = namespace(fixed, problems)?;
        if !nesting::check_types(&team_json, text, problems)
            || !check_reserved_names(&team_json, text, problems)
        {
            return None;
        }
        // Problems of the team's own text have places; the completed form has none.
        let fragments = built_in.clone().into_iter();
        if let Err(e) = Schema::from_schema_fragments(fragments.chain([team])) {
            problems.add_cedar(SCHEMA, Some((text, 1)), "", &DetailedError::from(&e));
            return None;
        }
        let completed = json!({ "": complete_actions(&team_json, declared) });
        let schema = match SchemaFragment::from_json_value(completed) {
            Ok(team) => Schema::from_schema_fragments(built_in.into_iter().chain([team])),
            Err(e) => Err(e),
        };
        match schema {
            Ok(schema) => Some(Self {
                schema,
                team: team_json,
                built_in: built_in_json,
            }),
            Err(e) => {
                problems.add_cedar(SCHEMA, None, "", &DetailedError::from(&e));
                None
            }
        }
    }

    /// The team's entity types in JSON form.
    pub(super) fn entity_types(&self) -> impl Iterator<Item = (&String, &Value)> {
        part(&self.team, "entityTypes")
    }

    /// The team's common types in JSON form.
    pub(super) fn common_types(&self) -> impl Iterator<Item = (&String, &Value)> {
        part(&self.team, "commonTypes")
    }

    /// The team's actions and action groups in JSON form.
    pub(super) fn actions(&self) -> impl Iterator<Item = (&String, &Value)> {
        part(&self.team, "actions")
    }

    /// A reader of the types of this schema.
    pub(super) fn types(&self) -> TypeReader<'_> {
        let common = [&self.team, &self.built_in]
            .into_iter()
            .filter_map(|n| n.get("commonTypes").and_then(Value::as_object));
        TypeReader {
            common: common.collect(),
        }
    }
}

fn part<'a>(
    namespace: &'a Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    namespace
        .get(name)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

/// The one namespace of a fragment: the empty one.
fn namespace(fragment: SchemaFragment, problems: &mut Problems) -> Option<Map<String, Value>> {
    let json = match fragment.to_json_value() {
        Ok(Value::Object(json)) => json,
        Ok(_) => Map::new(),
        Err(e) => {
            problems.add_cedar(SCHEMA, None, "", &DetailedError::from(&e));
            return None;
        }
    };
    let mut only = Map::new();
    for (name, definitions) in json {
        match definitions {
            Value::Object(definitions) if name.is_empty() => only = definitions,
            _ => problems.add(
                SCHEMA,
                None,
                format!("namespace \"{name}\": declare everything without a namespace"),
            ),
        }
    }
    Some(only)
}

/// Refuses built-in names and Cedar's, and external declarations.
fn check_reserved_names(team: &Map<String, Value>, text: &str, problems: &mut Problems) -> bool {
    let mut free = true;
    for (name, json) in part(team, "entityTypes").chain(part(team, "commonTypes")) {
        if RESERVED_NAMES.contains(&name.as_str())
            || BUILT_IN.contains(&name.as_str())
            || EXTENSIONS.contains(&name.as_str())
        {
            problems.add(
                SCHEMA,
                declaration_line(text, name),
                format!("\"{name}\" is already declared for every bundle; choose another name"),
            );
            free = false;
        }
        if json.get("external").is_some() {
            problems.add(
                SCHEMA,
                declaration_line(text, name),
                format!("\"{name}\" must be defined here, not declared external"),
            );
            free = false;
        }
    }
    for (name, json) in part(team, "actions") {
        let is_group = Reversibility::parse(name).is_ok();
        if name == OPERATE || is_group {
            problems.add(
                SCHEMA,
                declaration_line(text, name),
                format!("\"{name}\" is already declared for every bundle; choose another name"),
            );
            free = false;
        }
        if name.starts_with(POLICY_NAMESPACE) {
            problems.add(
                SCHEMA,
                declaration_line(text, name),
                format!("\"{name}\": actions that begin with \"{POLICY_NAMESPACE}\" are the broker's own; choose another name"),
            );
            free = false;
        }
        if json
            .get("external")
            .is_some_and(|e| e != &Value::Bool(false))
        {
            problems.add(
                SCHEMA,
                declaration_line(text, name),
                format!("\"{name}\" must be defined here, not declared external"),
            );
            free = false;
        }
    }
    free
}

/// The line that seems to declare `name`, for messages only.
pub(super) fn declaration_line(text: &str, name: &str) -> Option<usize> {
    let declares = |line: &str| {
        let line = line.trim_start();
        ["action", "entity", "type"]
            .iter()
            .any(|word| line.starts_with(word))
            && line
                .split(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '_' | '-')))
                .any(|word| word == name)
    };
    text.lines().position(declares).map(|at| at + 1)
}

/// Reports every annotation whose key is not among `known`.
pub(super) fn check_annotations(
    json: &Value,
    what: &str,
    known: &[&str],
    line: Option<usize>,
    problems: &mut Problems,
) {
    for key in annotations(json)
        .keys()
        .filter(|key| !known.contains(&key.as_str()))
    {
        let near = nearest(key, known.iter().copied());
        problems.add(
            SCHEMA,
            line,
            format!("{what}: unknown annotation @{key}{near}"),
        );
    }
}

/// The `parameters` of an action's context, which declares nothing else: the rest of the context is the same for every action.
pub(super) fn parameters(context: SchemaType) -> Result<BTreeMap<String, RecordMember>, String> {
    let SchemaType::Record(mut members) = context else {
        return Err(format!("context must be a record; write {CONTEXT}"));
    };
    let declared = members.remove(PARAMETERS);
    if let Some(name) = members.keys().next() {
        let hint = match COMMON_MEMBERS.contains(&name.as_str()) {
            true => "every action has it".to_owned(),
            false => format!(
                "parameters belong into `parameters`{}",
                nearest(name, [PARAMETERS])
            ),
        };
        return Err(format!("context declares {name}: {hint}; write {CONTEXT}"));
    }
    match declared {
        None => Ok(BTreeMap::new()),
        Some(member) if !member.required => Err("parameters must not be optional".to_owned()),
        Some(member) if !member.annotations.is_empty() => {
            Err("parameters takes no annotations: put them on each parameter".to_owned())
        }
        Some(member) => match member.ty {
            SchemaType::Record(parameters) => Ok(parameters),
            other => Err(format!("parameters must be a record, not {other}")),
        },
    }
}

/// Gives each action of a fragment the common context and the built-in group of its `@reversible`.
fn complete_actions(team: &Map<String, Value>, declared: &DeclaredContext) -> Map<String, Value> {
    let mut team = team.clone();
    let actions = team.get_mut("actions").and_then(Value::as_object_mut);
    for action in actions.into_iter().flatten().map(|(_, action)| action) {
        let degree = annotations(action).get("reversible").cloned().flatten();
        let degree = degree.and_then(|text| Reversibility::parse(&text).ok());
        let degree = degree.unwrap_or(Reversibility::Irreversible);
        let Some(members) = action.as_object_mut() else {
            continue;
        };
        let applies_to = members.get_mut("appliesTo").and_then(Value::as_object_mut);
        // A group applies to nothing, and has no degree of its own: what is in it has.
        let Some(applies_to) = applies_to.filter(|applies_to| {
            let targets = applies_to.get("resourceTypes").and_then(Value::as_array);
            targets.is_some_and(|targets| !targets.is_empty())
        }) else {
            continue;
        };
        let none = json!({ "type": "Record", "attributes": {} });
        let parameters = applies_to
            .get("context")
            .and_then(|context| context.pointer("/attributes/parameters").cloned());
        let mut context = common_context(declared);
        let attributes = context.get_mut("attributes").and_then(Value::as_object_mut);
        if let Some(attributes) = attributes {
            attributes.insert(PARAMETERS.to_owned(), parameters.unwrap_or(none));
        }
        applies_to.insert("context".to_owned(), context);
        let groups = members.entry("memberOf").or_insert_with(|| json!([]));
        if groups.is_null() {
            *groups = json!([]);
        }
        if let Some(groups) = groups.as_array_mut() {
            groups.push(json!({ "id": degree.as_str() }));
        }
    }
    team
}

/// The context of every action, in JSON form, without `parameters`.
fn common_context(declared: &DeclaredContext) -> Value {
    let named = |name: &str| json!({ "type": "EntityOrCommon", "name": name });
    let mut context = json!({
        "type": "Record",
        "attributes": {
            "ttl": named("duration"),
            "approvals": { "type": "Set", "element": named("StepUp") },
            "evidence": named("Evidence"),
            "binding": named("String"),
            "task": named("TaskContext"),
            "now": named("datetime"),
            "target_known": named("Bool"),
            "audience": named("String"),
            "waited": named("duration"),
        },
    });
    let zones = declared.calendar.zones();
    let zones = zones.map(|zone| (zone.to_owned(), named("LocalTime")));
    let facts = declared.facts.iter();
    let facts = facts.map(|fact| (fact.name.to_string(), named("Bool")));
    let counts = declared.counts.iter();
    let counts = counts.map(|count| (count.name.to_string(), named("Long")));
    let records: [(&str, Map<String, Value>); 3] = [
        (LOCAL, zones.collect()),
        (FACTS_MEMBER, facts.collect()),
        (COUNTS_MEMBER, counts.collect()),
    ];
    let mut attributes = context.get_mut("attributes").and_then(Value::as_object_mut);
    for (name, members) in records {
        if let (Some(attributes), false) = (&mut attributes, members.is_empty()) {
            let record = json!({ "type": "Record", "attributes": members });
            attributes.insert(name.to_owned(), record);
        }
    }
    context
}

/// The part of the built-in fragment that is the same for every bundle: agents, people, environments, and the action `operate`.
/// It is parsed once: a broker reads many bundles.
static BUILT_IN_FRAGMENT: LazyLock<Result<SchemaFragment, String>> =
    LazyLock::new(|| built_in_fragment(&[]));

/// The same with the time zones of a calendar.
fn built_in_fragment(zones: &[&str]) -> Result<SchemaFragment, String> {
    let local: Vec<String> = zones
        .iter()
        .map(|zone| format!("{zone}: LocalTime"))
        .collect();
    let local = match local.is_empty() {
        true => String::new(),
        false => format!(", {LOCAL}: {{ {} }}", local.join(", ")),
    };
    let groups = Reversibility::ALL.map(|degree| format!("action \"{}\";", degree.as_str()));
    let groups = groups.join("\n");
    fragment(&format!(
        "entity Environment;
entity AgentGroup;
entity PersonGroup;
entity Person in [PersonGroup];
entity Agent in [AgentGroup] = {{ owner: Person, environment: Environment, model: String, autonomy: String }};
type Evidence = {{ kind: String, issued_age: duration, verified_age: duration }};
type TaskContext = {{ age: duration, depth: Long }};
type LocalTime = {{ weekday: String, time: duration, holiday: Bool }};
{groups}
action \"{OPERATE}\" appliesTo {{
  principal: [Agent],
  resource: [Environment],
  context: {{ evidence: Evidence, binding: String, now: datetime{local} }}
}};"
    ))
}

/// The step-up profiles of a bundle.
fn step_up_fragment(profiles: &BTreeSet<ProfileName>) -> Result<SchemaFragment, String> {
    let names = profiles
        .iter()
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ");
    match names.is_empty() {
        true => fragment("entity StepUp;"),
        false => fragment(&format!("entity StepUp enum [{names}];")),
    }
}

fn fragment(text: &str) -> Result<SchemaFragment, String> {
    let parsed = SchemaFragment::from_cedarschema_str(text);
    parsed
        .map(|(fragment, _)| fragment)
        .map_err(|e| e.to_string())
}

/// The built-in action of gate 1.
pub(super) const OPERATE: &str = "operate";
const PARAMETERS: &str = "parameters";
/// The time in the zones of the calendar.
const LOCAL: &str = "local";
/// The named facts.
pub(super) const FACTS_MEMBER: &str = "facts";
/// How long the access request has waited.
pub(super) const WAITED: &str = "waited";
/// The counts.
pub(super) const COUNTS_MEMBER: &str = "counts";
const CONTEXT: &str = "context: { parameters: { … } }";
/// Members of the context that the broker declares for every action.
pub(super) const COMMON_MEMBERS: [&str; 12] = [
    LOCAL,
    WAITED,
    FACTS_MEMBER,
    COUNTS_MEMBER,
    "ttl",
    "approvals",
    "evidence",
    "binding",
    "task",
    "now",
    "target_known",
    "audience",
];
/// Attributes of the built-in types, members of records in the context, and the context's own part of each action.
pub(super) const BUILT_IN_MEMBERS: [&str; 13] = [
    PARAMETERS,
    "weekday",
    "time",
    "holiday",
    "owner",
    "environment",
    "model",
    "autonomy",
    "kind",
    "issued_age",
    "verified_age",
    "age",
    "depth",
];
const RESERVED_NAMES: [&str; 10] = [
    "LocalTime",
    "StepUp",
    "Environment",
    "AgentGroup",
    "PersonGroup",
    "Person",
    "Agent",
    "Evidence",
    "TaskContext",
    "Action",
];
