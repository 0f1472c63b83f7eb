use std::collections::BTreeMap;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Schema, SchemaFragment};
use serde_json::{Map, Value};

use super::files::SCHEMA;
use super::people::Profile;
use super::problem::{Problems, nearest};
use super::shape::{BUILT_IN, EXTENSIONS, Member, Shape, Types, annotations};
use crate::model::ProfileName;

/// The team's schema, merged with ours and read for what Cedar itself does not check.
pub(super) struct Merged {
    /// Both fragments together: what rules, entities and requests are checked against.
    pub(super) schema: Schema,
    team: Map<String, Value>,
    ours: Map<String, Value>,
}

impl Merged {
    /// Reads `schema.cedarschema` and merges it with the fragment every bundle gets.
    pub(super) fn read(
        text: &str,
        profiles: &BTreeMap<ProfileName, Profile>,
        problems: &mut Problems,
        warnings: &mut Problems,
    ) -> Option<Self> {
        let team = match SchemaFragment::from_cedarschema_str(text) {
            Ok((fragment, said)) => {
                said.for_each(|w| warnings.add(SCHEMA, None, w.to_string()));
                fragment
            }
            Err(e) => {
                problems.add_cedar(SCHEMA, Some((text, 1)), "", &DetailedError::from(&e));
                return None;
            }
        };
        let ours = match SchemaFragment::from_cedarschema_str(&fragment(profiles)) {
            Ok((fragment, _)) => fragment,
            Err(e) => {
                problems.add_cedar(SCHEMA, None, "our own part: ", &DetailedError::from(&e));
                return None;
            }
        };
        let team_json = namespace(team.clone(), problems)?;
        let ours_json = namespace(ours.clone(), problems)?;
        if !names_are_free(&team_json, text, problems) {
            return None;
        }
        match Schema::from_schema_fragments([ours, team]) {
            Ok(schema) => Some(Self {
                schema,
                team: team_json,
                ours: ours_json,
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

    /// What reads the types of this schema.
    pub(super) fn types(&self) -> Types<'_> {
        let common = [&self.team, &self.ours]
            .into_iter()
            .filter_map(|n| n.get("commonTypes").and_then(Value::as_object));
        Types {
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

/// Refuses names that are ours or Cedar's, and declarations that leave a definition to others.
fn names_are_free(team: &Map<String, Value>, text: &str, problems: &mut Problems) -> bool {
    let mut free = true;
    for (name, json) in part(team, "entityTypes").chain(part(team, "commonTypes")) {
        if OURS.contains(&name.as_str())
            || BUILT_IN.contains(&name.as_str())
            || EXTENSIONS.contains(&name.as_str())
        {
            problems.add(
                SCHEMA,
                declared_at(text, name),
                format!("\"{name}\" is already declared for every bundle; choose another name"),
            );
            free = false;
        }
        if json.get("external").is_some() {
            problems.add(
                SCHEMA,
                declared_at(text, name),
                format!("\"{name}\" must be defined here, not declared external"),
            );
            free = false;
        }
    }
    for (name, json) in part(team, "actions") {
        if name == OPERATE {
            problems.add(
                SCHEMA,
                declared_at(text, name),
                "\"operate\" is already declared for every bundle; choose another name",
            );
            free = false;
        }
        if json
            .get("external")
            .is_some_and(|e| e != &Value::Bool(false))
        {
            problems.add(
                SCHEMA,
                declared_at(text, name),
                format!("\"{name}\" must be defined here, not declared external"),
            );
            free = false;
        }
    }
    free
}

/// The line that seems to declare `name`; only a help for the reader of a message.
pub(super) fn declared_at(text: &str, name: &str) -> Option<usize> {
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

/// Notes every annotation whose key is not among `known`.
pub(super) fn known_annotations(
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

/// The context that every action declares, with its own `parameters`. Says what differs, or gives the parameters.
pub(super) fn parameters(context: &Shape) -> Result<&BTreeMap<String, Member>, String> {
    let Shape::Record(members) = context else {
        return Err("context must be a record".to_owned());
    };
    let Shape::Record(expected) = expected_context() else {
        return Err("context must be a record".to_owned());
    };
    let mut differs = Vec::new();
    for (name, member) in &expected {
        match members.get(name) {
            None => differs.push(format!("{name}: {} is missing", member.shape)),
            Some(found) if !found.required => differs.push(format!("{name} must not be optional")),
            Some(found) if !found.annotations.is_empty() => {
                differs.push(format!("{name} takes no annotations"))
            }
            Some(found) if name == PARAMETERS => {
                if !matches!(found.shape, Shape::Record(_)) {
                    differs.push(format!("parameters must be a record, not {}", found.shape));
                }
            }
            Some(found) if !found.shape.same(&member.shape) => {
                differs.push(format!(
                    "{name} must be {}, not {}",
                    member.shape, found.shape
                ));
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
    match members.get(PARAMETERS).map(|m| &m.shape) {
        Some(Shape::Record(parameters)) if differs.is_empty() => Ok(parameters),
        Some(_) | None => Err(format!(
            "context differs ({}); write {CONTEXT}",
            differs.join(", ")
        )),
    }
}

fn expected_context() -> Shape {
    let duration = || Shape::Extension("duration".to_owned());
    Shape::record([
        ("ttl", duration()),
        (
            "approvals",
            Shape::Set(Box::new(Shape::Entity("StepUp".to_owned()))),
        ),
        (
            "evidence",
            Shape::record([("kind", Shape::String), ("age", duration())]),
        ),
        ("binding", Shape::String),
        (
            "task",
            Shape::record([("age", duration()), ("depth", Shape::Long)]),
        ),
        ("now", Shape::Extension("datetime".to_owned())),
        ("target_known", Shape::Bool),
        ("audience", Shape::String),
        (PARAMETERS, Shape::record([])),
    ])
}

/// Our fragment: who asks, where, with which approvals, and the question whether an agent may operate at all.
fn fragment(profiles: &BTreeMap<ProfileName, Profile>) -> String {
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
const OURS: [&str; 9] = [
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
