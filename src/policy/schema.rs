//! The schema: the bundle's own fragment merged with the built-in one.

use std::collections::BTreeMap;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Schema, SchemaFragment};
use serde_json::{Map, Value};

use super::files::SCHEMA;
use super::people::StepUpProfile;
use super::problem::{Problems, nearest};
use super::schema_types::{
    BUILT_IN, EXTENSIONS, RecordMember, SchemaType, TypeReader, annotations,
};
use crate::model::POLICY_NAMESPACE;
use crate::model::ProfileName;

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
        profiles: &BTreeMap<ProfileName, StepUpProfile>,
        problems: &mut Problems,
        warnings: &mut Problems,
    ) -> Option<Self> {
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
        let built_in = match SchemaFragment::from_cedarschema_str(&built_in_fragment(profiles)) {
            Ok((fragment, _)) => fragment,
            Err(e) => {
                problems.add_cedar(
                    SCHEMA,
                    None,
                    "built-in fragment: ",
                    &DetailedError::from(&e),
                );
                return None;
            }
        };
        let team_json = namespace(team.clone(), problems)?;
        let built_in_json = namespace(built_in.clone(), problems)?;
        if !check_reserved_names(&team_json, text, problems) {
            return None;
        }
        match Schema::from_schema_fragments([built_in, team]) {
            Ok(schema) => Some(Self {
                schema,
                team: team_json,
                built_in: built_in_json,
            }),
            Err(e) => {
                problems.add_cedar(SCHEMA, Some((text, 1)), "", &DetailedError::from(&e));
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
        if name == OPERATE {
            problems.add(
                SCHEMA,
                declaration_line(text, name),
                "\"operate\" is already declared for every bundle; choose another name",
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

/// Checks that an action declares the common context, and returns its `parameters`; the error lists every difference.
pub(super) fn parameters(context: &SchemaType) -> Result<&BTreeMap<String, RecordMember>, String> {
    let SchemaType::Record(members) = context else {
        return Err("context must be a record".to_owned());
    };
    let SchemaType::Record(expected) = expected_context() else {
        return Err("context must be a record".to_owned());
    };
    let mut differs = Vec::new();
    for (name, member) in &expected {
        match members.get(name) {
            None => differs.push(format!("{name}: {} is missing", member.ty)),
            Some(found) if !found.required => differs.push(format!("{name} must not be optional")),
            Some(found) if !found.annotations.is_empty() => {
                differs.push(format!("{name} takes no annotations"))
            }
            Some(found) if name == PARAMETERS => {
                if !matches!(found.ty, SchemaType::Record(_)) {
                    differs.push(format!("parameters must be a record, not {}", found.ty));
                }
            }
            Some(found) if !found.ty.is_same(&member.ty) => {
                differs.push(format!("{name} must be {}, not {}", member.ty, found.ty));
            }
            Some(_) => {}
        }
    }
    let unknown = members.keys().filter(|name| !expected.contains_key(*name));
    differs.extend(unknown.map(|name| {
        format!(
            "{name} is not known{}",
            nearest(name, expected.keys().map(String::as_str))
        )
    }));
    match members.get(PARAMETERS).map(|m| &m.ty) {
        Some(SchemaType::Record(parameters)) if differs.is_empty() => Ok(parameters),
        Some(_) | None => Err(format!(
            "context differs ({}); write {CONTEXT}",
            differs.join(", ")
        )),
    }
}

fn expected_context() -> SchemaType {
    let duration = || SchemaType::Extension("duration".to_owned());
    SchemaType::record([
        ("ttl", duration()),
        (
            "approvals",
            SchemaType::Set(Box::new(SchemaType::Entity("StepUp".to_owned()))),
        ),
        (
            "evidence",
            SchemaType::record([("kind", SchemaType::String), ("age", duration())]),
        ),
        ("binding", SchemaType::String),
        (
            "task",
            SchemaType::record([("age", duration()), ("depth", SchemaType::Long)]),
        ),
        ("now", SchemaType::Extension("datetime".to_owned())),
        ("target_known", SchemaType::Bool),
        ("audience", SchemaType::String),
        (PARAMETERS, SchemaType::record([])),
    ])
}

/// The built-in fragment: agents, people, environments, step-up profiles, and the action `operate`.
fn built_in_fragment(profiles: &BTreeMap<ProfileName, StepUpProfile>) -> String {
    let names = profiles
        .keys()
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ");
    let step_up = if names.is_empty() {
        "entity StepUp;".to_owned()
    } else {
        format!("entity StepUp enum [{names}];")
    };
    format!(
        "{step_up}
entity Environment;
entity AgentGroup;
entity PersonGroup;
entity Person in [PersonGroup];
entity Agent in [AgentGroup] = {{ owner: Person, environment: Environment, model: String, autonomy: String }};
type Evidence = {{ kind: String, age: duration }};
type TaskContext = {{ age: duration, depth: Long }};
action \"{OPERATE}\" appliesTo {{
  principal: [Agent],
  resource: [Environment],
  context: {{ evidence: Evidence, binding: String, now: datetime }}
}};"
    )
}

/// The built-in action of gate 1.
pub(super) const OPERATE: &str = "operate";
const PARAMETERS: &str = "parameters";
const CONTEXT: &str = "context: { ttl: duration, approvals: Set<StepUp>, evidence: Evidence, binding: String, \
     task: TaskContext, now: datetime, target_known: Bool, audience: String, parameters: { … } }";
const RESERVED_NAMES: [&str; 9] = [
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
