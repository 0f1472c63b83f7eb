//! The action catalogue: what a schema declares about each action.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::files::SCHEMA;
use super::problem::{Problems, nearest};
use super::schema::{
    BUILT_IN_MEMBERS, COMMON_MEMBERS, MergedSchema, check_annotations, declaration_line, parameters,
};
use super::schema_types::{RecordMember, SchemaType, annotations};
use super::spellings::RegisteredNames;
use crate::model::{ActionName, Param, ParseError, Reversibility, Risk, check_visible};

/// One action of the catalogue: its texts for people and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueAction {
    /// The name that agents request and rules match.
    pub name: ActionName,
    /// Its title for people.
    pub title: String,
    /// Its effect, in words for people.
    pub effect: Option<String>,
    /// How far it can be undone, if the catalogue says.
    pub reversible: Option<Reversibility>,
    /// How to undo it.
    pub undo: Option<String>,
    /// Whether a token for it is spent by its first use.
    pub single_use: bool,
    /// Whether targets outside the policy bundle are allowed.
    pub open_targets: bool,
    /// Whether no agent may ever do it.
    pub never: bool,
    /// How much harm it can do, if the catalogue says.
    pub risk: Option<Risk>,
    /// Every group it is in, directly or through other groups.
    pub groups: BTreeSet<String>,
    /// Entity types of its targets.
    pub target_types: BTreeSet<String>,
    /// Its parameters.
    pub parameters: BTreeMap<String, ParamSpec>,
}

/// One parameter of an action, or one member of a record inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Its type.
    pub ty: ParamType,
    /// Whether it must be present.
    pub required: bool,
    /// Whether entries and tokens hold a commitment in its place. Never set on members of records.
    pub sensitive: bool,
    /// Its title for people.
    pub title: Option<String>,
}

/// The type of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParamType {
    /// Text.
    String,
    /// True or false.
    Bool,
    /// An integer within ±(2^53 − 1).
    Long,
    /// Distinct values of one type.
    Set(Box<ParamType>),
    /// Named members.
    Record(BTreeMap<String, ParamSpec>),
}

impl CatalogueAction {
    /// Names of the parameters that entries and tokens only commit to.
    pub fn sensitive(&self) -> BTreeSet<String> {
        self.parameters
            .iter()
            .filter(|(_, spec)| spec.sensitive)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The declared risk; an action whose risk the catalogue does not say counts as high.
    pub fn risk_or_high(&self) -> Risk {
        self.risk.unwrap_or(Risk::High)
    }

    /// How far it can be undone; an action of which the catalogue does not say it counts as irreversible.
    pub fn reversibility(&self) -> Reversibility {
        self.reversible.unwrap_or(Reversibility::Irreversible)
    }

    /// Checks `given` against the catalogue; the error names the parameter, never its value.
    pub(super) fn check_parameters(&self, given: &BTreeMap<String, Param>) -> Result<(), String> {
        check_members("", &self.parameters, given)
    }

    /// Valid sample parameters, for the self-test.
    pub(super) fn sample_parameters(&self) -> BTreeMap<String, Param> {
        sample_members(&self.parameters)
    }
}

fn check_members(
    path: &str,
    specs: &BTreeMap<String, ParamSpec>,
    given: &BTreeMap<String, Param>,
) -> Result<(), String> {
    if let Some(unknown) = given.keys().find(|name| !specs.contains_key(*name)) {
        let near = nearest(unknown, specs.keys().map(String::as_str));
        return Err(format!(
            "`{path}{unknown}` is not a parameter of this action{near}"
        ));
    }
    for (name, spec) in specs {
        match given.get(name) {
            Some(param) => check_value(&format!("{path}{name}"), &spec.ty, param)?,
            None if spec.required => {
                let expected = spec.ty.text();
                return Err(format!("`{path}{name}` is missing: expected {expected}"));
            }
            None => {}
        }
    }
    Ok(())
}

fn check_value(path: &str, ty: &ParamType, param: &Param) -> Result<(), String> {
    match (ty, param) {
        (ParamType::String, Param::Str(_))
        | (ParamType::Bool, Param::Bool(_))
        | (ParamType::Long, Param::Int(_)) => Ok(()),
        (ParamType::Set(of), Param::Set(items)) => items
            .iter()
            .try_for_each(|item| check_value(path, of, item)),
        (ParamType::Record(specs), Param::Record(members)) => {
            check_members(&format!("{path}."), specs, members)
        }
        (
            ParamType::String
            | ParamType::Bool
            | ParamType::Long
            | ParamType::Set(_)
            | ParamType::Record(_),
            _,
        ) => {
            let got = match param {
                Param::Str(_) => "text",
                Param::Bool(_) => "true or false",
                Param::Int(_) => "an integer",
                Param::Set(_) => "a set",
                Param::Record(_) => "a record",
            };
            Err(format!("`{path}`: expected {}, got {got}", ty.text()))
        }
    }
}

impl ParamType {
    /// The type in words.
    const fn text(&self) -> &'static str {
        match self {
            Self::String => "text",
            Self::Bool => "true or false",
            Self::Long => "an integer",
            Self::Set(_) => "a set",
            Self::Record(_) => "a record",
        }
    }
}

fn sample_members(specs: &BTreeMap<String, ParamSpec>) -> BTreeMap<String, Param> {
    specs
        .iter()
        .filter(|(_, spec)| spec.required)
        .map(|(name, spec)| (name.clone(), sample(&spec.ty)))
        .collect()
}

fn sample(ty: &ParamType) -> Param {
    match ty {
        ParamType::String => Param::Str(String::new()),
        ParamType::Bool => Param::Bool(false),
        ParamType::Long => Param::Int(0),
        ParamType::Set(_) => Param::Set(Vec::new()),
        ParamType::Record(specs) => Param::Record(sample_members(specs)),
    }
}

/// Every action and action group of a policy bundle.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    actions: BTreeMap<ActionName, CatalogueAction>,
    /// Names of actions without targets, which only group others.
    groups: BTreeSet<String>,
    /// The entity types the team declares.
    types: BTreeSet<String>,
    /// The attributes of these types, with the members of records in them.
    attributes: BTreeSet<String>,
}

impl Catalogue {
    /// Every name that a part of a request can have beside parameters: of the team's entities, and of what every bundle gets.
    pub(super) fn members(&self) -> BTreeSet<&str> {
        let built_in = BUILT_IN_MEMBERS.iter().chain(&COMMON_MEMBERS).copied();
        let attributes = self.attributes.iter().map(String::as_str);
        attributes.chain(built_in).collect()
    }

    /// Reads the catalogue out of a schema that Cedar accepted. `text` serves only to find lines.
    pub(super) fn read(merged: &MergedSchema, text: &str, problems: &mut Problems) -> Self {
        let mut catalogue = Self {
            types: merged
                .entity_types()
                .map(|(name, _)| name.clone())
                .collect(),
            ..Self::default()
        };
        let types = merged.types();
        for (name, json) in merged.entity_types() {
            let line = declaration_line(text, name);
            check_annotations(json, &format!("entity {name}"), &["title"], line, problems);
            let shape = json.get("shape").map(|shape| types.read(shape));
            if let Some(Ok(shape)) = shape {
                shape.member_names(&mut catalogue.attributes);
            }
            for part in ["shape", "tags"].iter().filter_map(|part| json.get(part)) {
                check_member_annotations(
                    part,
                    &format!("entity {name}: "),
                    &["title"],
                    line,
                    problems,
                );
            }
        }
        for (name, json) in merged.common_types() {
            let line = declaration_line(text, name);
            check_annotations(json, &format!("type {name}"), &["title"], line, problems);
            check_member_annotations(
                json,
                &format!("type {name}: "),
                &PARAMETER_ANNOTATIONS,
                line,
                problems,
            );
        }
        let parents: BTreeMap<&str, Vec<&str>> = merged
            .actions()
            .map(|(name, json)| (name.as_str(), parents(json).collect()))
            .collect();
        let mut action_names = RegisteredNames::default();
        for (name, json) in merged.actions() {
            let line = declaration_line(text, name);
            let mut problem = |message: String| {
                problems.add(SCHEMA, line, format!("action \"{name}\": {message}"))
            };
            if let Err(clash) = action_names.add_use(name, line) {
                problem(format!("the name {clash}"));
            }
            let parsed = match ActionName::parse(name) {
                Ok(parsed) => parsed,
                Err(e) => {
                    problem(format!("its name {}", e.reason));
                    continue;
                }
            };
            let names = |list: &str| {
                let list = json
                    .pointer(&format!("/appliesTo/{list}"))
                    .and_then(Value::as_array);
                list.into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect::<BTreeSet<_>>()
            };
            let (principals, target_types) = (names("principalTypes"), names("resourceTypes"));
            if principals.is_empty() && target_types.is_empty() {
                check_annotations(
                    json,
                    &format!("action group \"{name}\""),
                    &["title"],
                    line,
                    problems,
                );
                catalogue.groups.insert(name.clone());
                continue;
            }
            if principals != BTreeSet::from(["Agent".to_owned()]) {
                problem("must have principal: [Agent]".to_owned());
            }
            for other in target_types
                .iter()
                .filter(|t| !catalogue.types.contains(*t))
            {
                problem(format!(
                    "its resource {other} must be an entity type that this schema declares"
                ));
            }
            if target_types.is_empty() {
                problem("must have a resource: the entity types it is done to".to_owned());
            }
            let context = json.pointer("/appliesTo/context");
            let context = context.map_or(Ok(SchemaType::record([])), |context| types.read(context));
            let mut specs = BTreeMap::new();
            match context.and_then(parameters) {
                Ok(members) => {
                    for (member, spec) in members {
                        match param_spec(&spec, true) {
                            Ok(spec) => {
                                specs.insert(member, spec);
                            }
                            Err(message) => problem(format!("parameter {member}: {message}")),
                        }
                    }
                }
                Err(message) => problem(message),
            }
            check_annotations(
                json,
                &format!("action \"{name}\""),
                &ACTION_ANNOTATIONS,
                line,
                problems,
            );
            if let Some(context) = json.pointer("/appliesTo/context") {
                check_member_annotations(
                    context,
                    &format!("action \"{name}\": "),
                    &PARAMETER_ANNOTATIONS,
                    line,
                    problems,
                );
            }
            let mut texts = AnnotationReader {
                found: annotations(json),
                what: format!("action \"{name}\""),
                line,
                problems,
            };
            let action = CatalogueAction {
                name: parsed.clone(),
                title: texts.text("title").unwrap_or_else(|| {
                    texts.problem("@title is missing: say what it is in words for people");
                    name.clone()
                }),
                effect: texts.text("effect"),
                reversible: texts.word("reversible", Reversibility::parse),
                undo: texts.text("undo"),
                single_use: texts.flag("single_use"),
                open_targets: texts.flag("open_targets"),
                never: texts.flag("never"),
                risk: texts.word("risk", Risk::parse),
                groups: BTreeSet::new(),
                target_types,
                parameters: specs,
            };
            let mut groups = ancestors(name, &parents);
            groups.insert(action.reversibility().as_str().to_owned());
            catalogue
                .actions
                .insert(parsed, CatalogueAction { groups, ..action });
        }
        catalogue.check_degrees(text, problems);
        catalogue
    }

    /// Refuses an action inside of another one that can be undone otherwise: it would be in the built-in groups of both.
    fn check_degrees(&self, text: &str, problems: &mut Problems) {
        for action in self.actions.values() {
            let above = action.groups.iter().filter_map(|group| {
                let group = ActionName::parse(group).ok()?;
                self.action(&group)
            });
            for above in above.filter(|a| a.reversibility() != action.reversibility()) {
                let line = declaration_line(text, action.name.as_str());
                let message = format!(
                    "action \"{}\" is in \"{}\", whose @reversible is \"{}\", and its own is \"{}\": make the group an action that applies to nothing",
                    action.name,
                    above.name,
                    above.reversibility().as_str(),
                    action.reversibility().as_str()
                );
                problems.add(SCHEMA, line, message);
            }
        }
    }

    pub(super) fn action(&self, name: &ActionName) -> Option<&CatalogueAction> {
        self.actions.get(name)
    }

    pub(super) fn actions(&self) -> impl Iterator<Item = &CatalogueAction> {
        self.actions.values()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.actions.keys().map(ActionName::as_str)
    }

    pub(super) fn types(&self) -> &BTreeSet<String> {
        &self.types
    }

    /// Every name that is valid on the right of `action in`: groups, and actions that are groups to others.
    pub(super) fn group_names(&self) -> BTreeSet<&str> {
        // With the built-in groups.
        let of_actions = self.actions.values().flat_map(|a| a.groups.iter());
        self.groups
            .iter()
            .chain(of_actions)
            .map(String::as_str)
            .chain(self.names())
            .collect()
    }
}

/// Reports unknown annotations on members of records, at any depth. `path` is the prefix of their names in messages.
fn check_member_annotations(
    json: &Value,
    path: &str,
    known: &[&str],
    line: Option<usize>,
    problems: &mut Problems,
) {
    for (name, member) in json
        .get("attributes")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        check_annotations(member, &format!("{path}{name}"), known, line, problems);
        check_member_annotations(member, &format!("{path}{name}."), known, line, problems);
    }
    if let Some(element) = json.get("element") {
        check_member_annotations(element, path, known, line, problems);
    }
}

/// The groups an action is declared in.
fn parents(json: &Value) -> impl Iterator<Item = &str> {
    json.get("memberOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|p| p.get("id").and_then(Value::as_str))
}

fn ancestors(name: &str, parents: &BTreeMap<&str, Vec<&str>>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![name];
    while let Some(next) = open.pop() {
        for parent in parents.get(next).into_iter().flatten() {
            if found.insert((*parent).to_owned()) {
                open.push(parent);
            }
        }
    }
    found
}

/// A parameter of the catalogue. Only a whole parameter, not a member of a record, may be `@sensitive`: a commitment replaces
/// the whole parameter.
fn param_spec(member: &RecordMember, outermost: bool) -> Result<ParamSpec, String> {
    for (key, value) in &member.annotations {
        match (key.as_str(), value) {
            ("title", Some(text)) => check_visible("title", text, TEXT_BYTES_MAX)
                .map_err(|e| format!("@title {}", e.reason))?,
            ("title", None) => return Err("@title needs a text".to_owned()),
            ("sensitive", None) if outermost => {}
            ("sensitive", None) => {
                return Err(
                    "@sensitive belongs on the whole parameter, not on a part of it".to_owned(),
                );
            }
            ("sensitive", Some(_)) => return Err("@sensitive takes no text".to_owned()),
            // Unknown annotations are refused by `check_member_annotations`.
            _ => {}
        }
    }
    Ok(ParamSpec {
        ty: param_type(&member.ty)?,
        required: member.required,
        sensitive: member.annotations.contains_key("sensitive"),
        title: member.annotations.get("title").cloned().flatten(),
    })
}

fn param_type(ty: &SchemaType) -> Result<ParamType, String> {
    Ok(match ty {
        SchemaType::String => ParamType::String,
        SchemaType::Bool => ParamType::Bool,
        SchemaType::Long => ParamType::Long,
        SchemaType::Set(of) => ParamType::Set(Box::new(param_type(of)?)),
        SchemaType::Record(members) => {
            let spec = |(name, member): (&String, &RecordMember)| {
                Ok((
                    name.clone(),
                    param_spec(member, false).map_err(|e| format!("{name}: {e}"))?,
                ))
            };
            ParamType::Record(members.iter().map(spec).collect::<Result<_, String>>()?)
        }
        SchemaType::Extension(name) | SchemaType::Entity(name) => {
            return Err(format!(
                "must be String, Bool, Long, a Set or a record of these, not {name}"
            ));
        }
    })
}

/// Reads the annotations of one action.
struct AnnotationReader<'p> {
    found: BTreeMap<String, Option<String>>,
    what: String,
    line: Option<usize>,
    problems: &'p mut Problems,
}

impl AnnotationReader<'_> {
    fn problem(&mut self, message: &str) {
        self.problems
            .add(SCHEMA, self.line, format!("{}: {message}", self.what));
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let value = self.found.get(key)?.clone();
        match value
            .as_deref()
            .map(|text| check_visible("annotation", text, TEXT_BYTES_MAX))
        {
            Some(Ok(())) => return value,
            Some(Err(e)) => self.problem(&format!("@{key} {}", e.reason)),
            None => self.problem(&format!("@{key} needs a text")),
        }
        None
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.found.get(key) {
            Some(Some(_)) => {
                self.problem(&format!("@{key} takes no text"));
                true
            }
            Some(None) => true,
            None => false,
        }
    }

    fn word<T>(&mut self, key: &str, parse: fn(&str) -> Result<T, ParseError>) -> Option<T> {
        let text = self.text(key)?;
        match parse(&text) {
            Ok(word) => Some(word),
            Err(e) => {
                self.problem(&format!(
                    "@{key} {}, not \"{}\"",
                    e.reason,
                    text.escape_debug()
                ));
                None
            }
        }
    }
}

const PARAMETER_ANNOTATIONS: [&str; 2] = ["title", "sensitive"];
const ACTION_ANNOTATIONS: [&str; 8] = [
    "title",
    "effect",
    "reversible",
    "undo",
    "single_use",
    "open_targets",
    "never",
    "risk",
];
/// Longest text of an annotation, in bytes, so that it fits on a card.
pub(super) const TEXT_BYTES_MAX: usize = 512;
