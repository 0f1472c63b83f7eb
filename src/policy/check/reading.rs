//! What the conditions of a rule read: the variables of the request with the constants that they are compared with, and the
//! attributes of entities. From it follow the sample requests that decide whether a condition is ever true, and ever false.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::constants::{Constant, constant};
use super::values::OTHER_TEXT;
use crate::policy::schema::{COUNTS_MEMBER, FACTS_MEMBER};

/// The members that lead to a variable of the context, such as `evidence`, `verified_age`.
pub(super) type Path = Vec<String>;

/// What the conditions of one rule read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Each variable of the context, with the constants that it is compared with.
    pub(super) variables: BTreeMap<Path, Compared>,
    /// Names of attributes that are read of entities, of whichever entity.
    pub(super) attributes: BTreeSet<String>,
    /// Texts that an attribute of the agent or the target is compared with.
    pub(super) texts: Vec<ComparedText>,
    /// Whether the rule asks which groups an agent or a target is in.
    pub(super) reads_groups: bool,
    /// Whether the answer may differ for any two entities.
    pub(super) reads_identity: bool,
    /// Whether a part relates values in a way for which sample requests prove nothing.
    pub(super) is_undecided: bool,
    /// Names that `has` asks for, each with the first condition that does.
    /// With the record of declared members that it is asked of.
    pub(super) presences: BTreeMap<(Option<&'static str>, String), usize>,
    /// The condition that is being read, counted from 0.
    condition: usize,
}

/// The constants that one variable is compared with.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Integers, and milliseconds of durations and instants.
    pub(super) numbers: BTreeSet<i64>,
    /// Milliseconds since midnight.
    pub(super) times_of_day: BTreeSet<i64>,
    /// Each with the first condition that has it.
    pub(super) texts: BTreeMap<String, usize>,
    /// Texts that a pattern matches.
    pub(super) matching: BTreeSet<String>,
    /// Ids of step-up profiles.
    pub(super) profiles: BTreeSet<String>,
    /// Whether it is compared with an attribute of the agent or the target.
    pub(super) with_entities: bool,
    /// The attributes of agents and targets that it is compared with.
    pub(super) attributes: BTreeSet<String>,
    /// Whether it is compared as a whole, not asked for single members.
    pub(super) as_a_whole: bool,
}

/// An attribute and a text that it is compared with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ComparedText {
    pub(super) root: &'static str,
    pub(super) attribute: String,
    pub(super) text: String,
    pub(super) condition: usize,
}

impl Reading {
    /// Reads the conditions of a policy in its JSON form.
    pub(super) fn of(conditions: &[Value]) -> Self {
        let mut reading = Self::default();
        for (at, condition) in conditions.iter().enumerate() {
            reading.condition = at;
            if let Some(body) = condition.get("body") {
                reading.expression(body);
            }
        }
        reading
    }

    /// Whether it reads the context alone, and nothing of the agent or the target.
    pub(super) fn is_of_context(&self) -> bool {
        let has_entities = |compared: &Compared| compared.with_entities;
        self.attributes.is_empty()
            && !self.reads_groups
            && !self.reads_identity
            && !self.variables.values().any(has_entities)
    }

    /// The constants of one variable, which is read from now on.
    fn variable(&mut self, path: Path) -> &mut Compared {
        self.variables.entry(path).or_default()
    }

    fn expression(&mut self, expression: &Value) {
        let Some((operator, operands)) = single(expression) else {
            self.is_undecided = true;
            return;
        };
        let operand = |name| operands.get(name).unwrap_or(&Value::Null);
        match operator {
            "Value" => {}
            // The request itself: compared with an entity.
            "Var" => self.reads_identity |= operands != "action" && operands != "context",
            "&&" | "||" => {
                self.expression(operand("left"));
                self.expression(operand("right"));
            }
            "!" => self.expression(operand("arg")),
            "if-then-else" => ["if", "then", "else"]
                .iter()
                .for_each(|part| self.expression(operand(part))),
            "==" | "!=" | "<" | "<=" | ">" | ">=" => {
                self.comparison(operand("left"), operand("right"));
                self.whole(operand("left"));
                self.whole(operand("right"));
            }
            "contains" | "containsAll" | "containsAny" => {
                self.comparison(operand("left"), operand("right"));
                self.whole(operand("right"));
            }
            "isEmpty" => {
                self.operand(operand("arg"));
                self.whole(operand("arg"));
            }
            "in" => self.membership(operand("left"), operand("right")),
            "is" => {
                self.operand(operand("left"));
                if let Some(group) = operands.get("in") {
                    self.membership(operand("left"), group);
                }
            }
            "like" => self.pattern(operand("left"), operand("pattern")),
            "has" => self.presence(operand("left"), operands),
            // A member of what is no variable, such as of a choice between two.
            "." if value_source(expression).is_none() => {
                self.is_undecided = true;
                self.operand(operand("left"));
            }
            "." => self.operand(expression),
            _ => {
                self.is_undecided = true;
                self.parts(operands);
            }
        }
    }

    /// A value of which also members matter that the rule does not name, if it is a set.
    fn whole(&mut self, expression: &Value) {
        if let Some(ValueSource::Context(path)) = value_source(expression) {
            self.variable(path).as_a_whole = true;
        }
    }

    /// The parts of an expression that sample requests prove nothing about.
    fn parts(&mut self, operands: &Value) {
        match operands {
            Value::Array(items) => items.iter().for_each(|item| self.operand(item)),
            Value::Object(members) => members.values().for_each(|part| self.operand(part)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// A value that is read: a variable, an attribute, a constant, or an expression of these.
    fn operand(&mut self, expression: &Value) {
        match value_source(expression) {
            Some(ValueSource::Context(path)) => drop(self.variable(path)),
            Some(ValueSource::Entity { attributes, .. }) => self.entity(attributes),
            Some(ValueSource::Action) => {}
            None if constant(expression).is_some() => {}
            None => self.expression(expression),
        }
    }

    fn entity(&mut self, attributes: Vec<String>) {
        self.reads_identity |= attributes.is_empty();
        self.attributes.extend(attributes);
    }

    /// A comparison, or a membership of a set.
    fn comparison(&mut self, left: &Value, right: &Value) {
        for (one, other) in [(left, right), (right, left)] {
            if let (Some(time), Some(constant)) = (time_of_day(one), constant(other)) {
                if let (Some(path), Constant::Number(ms)) = (time, constant) {
                    self.variable(path).times_of_day.insert(ms);
                } else {
                    self.is_undecided = true;
                }
                return;
            }
        }
        match (value_source(left), value_source(right)) {
            (Some(ValueSource::Context(one)), Some(ValueSource::Context(other))) => {
                self.is_undecided = true;
                // So that each is the greater once.
                self.variable(one).numbers.insert(1_000);
                self.variable(other).numbers.insert(1_000);
            }
            (Some(ValueSource::Context(path)), Some(ValueSource::Entity { attributes, .. }))
            | (Some(ValueSource::Entity { attributes, .. }), Some(ValueSource::Context(path))) => {
                // The values of direct attributes are samples.
                self.is_undecided |= attributes.len() != 1;
                let compared = self.variable(path);
                compared.with_entities = true;
                compared.attributes.extend(attributes.iter().cloned());
                self.entity(attributes);
            }
            (Some(ValueSource::Context(path)), _) => self.compared(path, right),
            (_, Some(ValueSource::Context(path))) => self.compared(path, left),
            (Some(ValueSource::Entity { root, attributes }), _) => {
                self.attribute(root, attributes, right)
            }
            (_, Some(ValueSource::Entity { root, attributes })) => {
                self.attribute(root, attributes, left)
            }
            (Some(ValueSource::Action) | None, Some(ValueSource::Action) | None) => {
                // An entity in a set of entities, such as `[…].contains(principal)`.
                self.operand(left);
                self.operand(right);
            }
        }
    }

    /// A variable beside a constant, or beside an expression.
    fn compared(&mut self, path: Path, with: &Value) {
        match constant(with) {
            Some(constant) => {
                let condition = self.condition;
                self.variable(path).add(constant, condition);
            }
            None => {
                self.variable(path);
                self.is_undecided = true;
                self.operand(with);
            }
        }
    }

    /// An attribute of an entity beside a constant, or beside an expression.
    fn attribute(&mut self, root: &'static str, attributes: Vec<String>, with: &Value) {
        // Only direct attributes have values that the bundle declares for their type.
        if let (Some(constant), [attribute]) = (constant(with), attributes.as_slice()) {
            let condition = self.condition;
            let texts = constant.texts().into_iter().map(|text| ComparedText {
                root,
                attribute: attribute.clone(),
                text,
                condition,
            });
            self.texts.extend(texts);
        }
        // An entity that a rule names is among the samples as itself.
        let is_named = attributes.is_empty() && constant(with).is_some();
        if !is_named {
            self.entity(attributes);
        }
        self.operand(with);
    }

    fn membership(&mut self, member: &Value, group: &Value) {
        match value_source(member) {
            Some(ValueSource::Action) => {}
            Some(ValueSource::Context(path)) => {
                self.is_undecided = true;
                self.variable(path);
            }
            Some(ValueSource::Entity { attributes, .. }) => {
                self.reads_groups = true;
                self.attributes.extend(attributes);
            }
            None => {
                self.is_undecided |= constant(member).is_none();
                self.operand(member);
            }
        }
        self.operand(group);
    }

    fn pattern(&mut self, left: &Value, pattern: &Value) {
        // Two texts that match: with nothing and with something for each wildcard.
        let text = |wildcard: &str| -> String {
            let parts = pattern.as_array().into_iter().flatten();
            parts
                .map(|part| {
                    part.get("Literal")
                        .and_then(Value::as_str)
                        .unwrap_or(wildcard)
                })
                .collect()
        };
        let matching = [text(""), text(OTHER_TEXT)];
        match value_source(left) {
            Some(ValueSource::Context(path)) => self.variable(path).matching.extend(matching),
            Some(ValueSource::Entity { attributes, .. }) => self.entity(attributes),
            Some(ValueSource::Action) | None => {
                self.is_undecided = true;
                self.operand(left);
            }
        }
    }

    /// `x has a`, or `x has a.b`.
    fn presence(&mut self, of: &Value, operands: &Value) {
        let attribute = operands.get("attr");
        let members: Vec<String> = match attribute {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(several)) => several
                .iter()
                .filter_map(|member| member.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        };
        // Of facts and counts the members are declared: a name is known there, or nowhere. `context has counts.x` asks for a path.
        let mut record = match value_source(of) {
            Some(ValueSource::Context(path)) => declared_record(path.first()),
            _ => None,
        };
        let is_context = single(of).is_some_and(|(op, var)| op == "Var" && var == "context");
        for (at, member) in members.iter().enumerate() {
            let (key, condition) = ((record, member.clone()), self.condition);
            self.presences.entry(key).or_insert(condition);
            if is_context && at == 0 {
                record = declared_record(Some(member));
            }
        }
        let base = match value_source(of) {
            // `context has x`: the context itself.
            None if single(of).is_some_and(|(op, var)| op == "Var" && var == "context") => {
                Some(ValueSource::Context(Vec::new()))
            }
            other => other,
        };
        match base {
            Some(ValueSource::Context(mut path)) => {
                for member in members {
                    path.push(member);
                    self.variable(path.clone());
                }
            }
            Some(ValueSource::Entity { attributes, .. }) => {
                self.attributes.extend(attributes);
                self.attributes.extend(members);
            }
            Some(ValueSource::Action) | None => {
                self.is_undecided = true;
                self.operand(of);
            }
        }
    }
}

/// The record of the context whose members a bundle declares by name.
fn declared_record(name: Option<&String>) -> Option<&'static str> {
    [FACTS_MEMBER, COUNTS_MEMBER]
        .into_iter()
        .find(|record| name.is_some_and(|name| name == record))
}

impl Compared {
    /// Adds what another rule compares it with.
    pub(super) fn merge(&mut self, other: &Self) {
        self.numbers.extend(&other.numbers);
        self.times_of_day.extend(&other.times_of_day);
        for (text, condition) in &other.texts {
            self.texts.entry(text.clone()).or_insert(*condition);
        }
        self.matching.extend(other.matching.iter().cloned());
        self.profiles.extend(other.profiles.iter().cloned());
        self.with_entities |= other.with_entities;
        self.attributes.extend(other.attributes.iter().cloned());
        self.as_a_whole |= other.as_a_whole;
    }

    fn add(&mut self, constant: Constant, condition: usize) {
        match constant {
            Constant::Number(number) => drop(self.numbers.insert(number)),
            Constant::Text(text) => drop(self.texts.entry(text).or_insert(condition)),
            Constant::Entity { kind, id } if kind == "StepUp" => drop(self.profiles.insert(id)),
            Constant::Set(items) => items.into_iter().for_each(|item| self.add(item, condition)),
            Constant::Entity { .. } | Constant::Bool => {}
        }
    }
}

/// What a value belongs to.
pub(super) enum ValueSource {
    /// A member of the context.
    Context(Path),
    /// The agent or the target, or an attribute of it.
    Entity {
        root: &'static str,
        attributes: Vec<String>,
    },
    Action,
}

/// The member of the context, or the attribute, that an expression is.
pub(super) fn value_source(expression: &Value) -> Option<ValueSource> {
    let mut members = Vec::new();
    let mut base = expression;
    loop {
        let (operator, operands) = single(base)?;
        match operator {
            "." => {
                members.push(operands.get("attr")?.as_str()?.to_owned());
                base = operands.get("left")?;
            }
            "Var" => {
                members.reverse();
                return match operands.as_str()? {
                    "context" if members.is_empty() => None,
                    "context" => Some(ValueSource::Context(members)),
                    "principal" => Some(ValueSource::Entity {
                        root: "principal",
                        attributes: members,
                    }),
                    "resource" => Some(ValueSource::Entity {
                        root: "resource",
                        attributes: members,
                    }),
                    _ if members.is_empty() => Some(ValueSource::Action),
                    _ => None,
                };
            }
            _ => return None,
        }
    }
}

/// `X.toTime()`: `X` where it is a variable, nothing where it is an expression.
fn time_of_day(expression: &Value) -> Option<Option<Path>> {
    let (operator, operands) = single(expression)?;
    if operator != "toTime" {
        return None;
    }
    let receiver = operands.as_array()?.first()?;
    Some(match value_source(receiver) {
        Some(ValueSource::Context(path)) => Some(path),
        Some(ValueSource::Entity { .. } | ValueSource::Action) | None => None,
    })
}

/// The operator of an expression with its operands.
pub(in crate::policy) fn single(expression: &Value) -> Option<(&str, &Value)> {
    let members = expression.as_object()?;
    let mut members = members.iter();
    match (members.next(), members.next()) {
        (Some((operator, operands)), None) => Some((operator, operands)),
        _ => None,
    }
}

/// Every entity that an expression names, by type and id.
pub(super) fn named<'v>(expression: &'v Value, found: &mut BTreeSet<(&'v str, &'v str)>) {
    match expression {
        Value::Object(members) => {
            let text = |name| members.get(name).and_then(Value::as_str);
            match (text("type"), text("id")) {
                (Some(kind), Some(id)) if members.len() == 2 => drop(found.insert((kind, id))),
                _ => members.values().for_each(|part| named(part, found)),
            }
        }
        Value::Array(items) => items.iter().for_each(|item| named(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
