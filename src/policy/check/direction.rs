//! Rules by which an approval more, or a shorter lifetime, turns a yes into a no, and rules by which the safe value of a fact allows more.
//! Remedies go one way, and people who approve expect that it helps: a forbid may stop to apply as approvals are added and the lifetime
//! is shortened, and a permit may begin to. One operator alone sets the safe value of a fact: a forbid may only begin to apply by it.
//!
//! Decided by the form of a condition alone: whether it can only become true, or only become false, that way.

use serde_json::Value;

use super::location;
use super::reading::{ValueSource, single, value_source};
use super::report::{Check, Report};
use super::samples::RuleCase;
use crate::model::{CountName, FactName};
use crate::policy::evaluator::DeclaredContext;
use crate::policy::rule::RuleEffect;
use crate::policy::schema::{COUNTS_MEMBER, FACTS_MEMBER};
use crate::policy::{DeclaredCount, DeclaredFact};

/// How the answer of an expression can change as approvals are added, or as the lifetime is shortened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Change {
    /// From false to true.
    rises: bool,
    /// From true to false.
    falls: bool,
}

impl Change {
    const NONE: Self = Self {
        rises: false,
        falls: false,
    };
    const RISES: Self = Self {
        rises: true,
        falls: false,
    };
    const FALLS: Self = Self {
        rises: false,
        falls: true,
    };
    const BOTH: Self = Self {
        rises: true,
        falls: true,
    };

    fn and(self, other: Self) -> Self {
        Self {
            rises: self.rises || other.rises,
            falls: self.falls || other.falls,
        }
    }

    fn opposite(self) -> Self {
        Self {
            rises: self.falls,
            falls: self.rises,
        }
    }
}

/// What grows or shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable<'a> {
    Approvals,
    Lifetime,
    /// A fact, from false to true.
    Fact(&'a str),
    /// A count, as it grows.
    Count(&'a str),
}

impl Variable<'_> {
    fn path(&self) -> Vec<&str> {
        match self {
            Self::Approvals => vec!["approvals"],
            Self::Lifetime => vec!["ttl"],
            Self::Fact(name) => vec![FACTS_MEMBER, name],
            Self::Count(name) => vec![COUNTS_MEMBER, name],
        }
    }

    /// Whether an expression is this variable.
    fn is(self, expression: &Value) -> bool {
        matches!(value_source(expression), Some(ValueSource::Context(path)) if path == self.path())
    }

    /// The record of which it is a declared member.
    const fn declared_in(self) -> Option<&'static str> {
        match self {
            Self::Approvals | Self::Lifetime => None,
            Self::Fact(_) => Some(FACTS_MEMBER),
            Self::Count(_) => Some(COUNTS_MEMBER),
        }
    }

    /// Whether an expression reads it as part of a whole: all facts or counts, or the whole context.
    fn is_in_whole(self, expression: &Value) -> bool {
        let Some(record) = self.declared_in() else {
            return false;
        };
        match value_source(expression) {
            Some(ValueSource::Context(path)) => path == [record],
            Some(_) => false,
            None => single(expression).is_some_and(|(operator, operands)| {
                operator == "Var" && operands.as_str() == Some("context")
            }),
        }
    }

    /// Whether an expression reads it.
    fn is_in(self, expression: &Value) -> bool {
        if self.is(expression) || self.is_in_whole(expression) {
            return true;
        }
        // What is another variable, or asks only whether there is one, does not.
        let asks_presence = single(expression).is_some_and(|(operator, operands)| {
            let of = operands.get("left").unwrap_or(&Value::Null);
            operator == "has" && (value_source(of).is_some() || self.is_in_whole(of))
        });
        let is_other = value_source(expression).is_some() || asks_presence;
        !(is_other && self.declared_in().is_some())
            && match expression {
                Value::Array(items) => items.iter().any(|item| self.is_in(item)),
                Value::Object(members) => members.values().any(|part| self.is_in(part)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
            }
    }
}

/// How a condition can change in the wrong way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Direction {
    approvals: Change,
    lifetime: Change,
    /// As each fact that it reads gets its safe value.
    facts: Vec<(FactName, Change)>,
    /// As each count that it reads grows.
    counts: Vec<(CountName, Change)>,
}

impl Direction {
    /// Of a condition in its JSON form, with the facts and counts of its bundle.
    pub(super) fn of(condition: &Value, declared: &DeclaredContext) -> Self {
        let body = condition.get("body").unwrap_or(&Value::Null);
        let is_exception = condition.get("kind").and_then(Value::as_str) == Some("unless");
        let change = |variable: Variable<'_>| match is_exception {
            false => of(variable, body),
            true => of(variable, body).opposite(),
        };
        let to_safe = |fact: &DeclaredFact| {
            let to_true = change(Variable::Fact(fact.name.as_str()));
            let to_safe = match fact.safe {
                true => to_true,
                false => to_true.opposite(),
            };
            (fact.name.clone(), to_safe)
        };
        let grows = |count: &DeclaredCount| {
            let change = change(Variable::Count(count.name.as_str()));
            (count.name.clone(), change)
        };
        Self {
            approvals: change(Variable::Approvals),
            lifetime: change(Variable::Lifetime),
            facts: declared.facts.iter().map(to_safe).collect(),
            counts: declared.counts.iter().map(grows).collect(),
        }
    }
}

/// Refuses the conditions of a rule by which it refuses more as people approve, or as the token lives shorter; and those by which it allows
/// more as a fact gets its safe value.
pub(super) fn check(case: &RuleCase<'_>, report: &mut Report<'_>) {
    let rule = case.info;
    let places = location::conditions(&rule.text);
    for (at, direction) in case.directions.iter().enumerate() {
        for check in direction.wrong(rule.effect) {
            let (what, form) = match check {
                Check::ApprovalForbids => ("an approval more", "context.approvals.contains(…)"),
                _ => ("a shorter lifetime", "context.ttl <= duration(…)"),
            };
            let advice = match rule.effect {
                RuleEffect::Forbid => {
                    format!("a forbid may only end by it, as with unless {{ {form} }}")
                }
                RuleEffect::Permit => {
                    format!("a permit may only begin by it, as with when {{ {form} }}")
                }
            };
            let message = format!("{what} can turn a yes into a no by this condition: {advice}");
            report.rule(check, rule, places.get(at).copied(), message);
        }
        let allows_more = |change: &Change| match rule.effect {
            RuleEffect::Forbid => change.falls,
            RuleEffect::Permit => change.rises,
        };
        for (count, change) in &direction.counts {
            if allows_more(change) {
                let holds = format!("context.counts.{count} < 3");
                let form = match rule.effect {
                    RuleEffect::Forbid => format!(
                        "write unless {{ {holds} }}, or when {{ context.counts.{count} >= 3 }}"
                    ),
                    RuleEffect::Permit => format!("write when {{ {holds} }}"),
                };
                let seen = match *change == Change::BOTH {
                    true => "may turn a no into a yes by this condition, as far as its form shows",
                    false => "turns a no into a yes by this condition",
                };
                let message = format!(
                    "a higher count {count} {seen}, and agents raise counts by asking: {form}"
                );
                let at = places.get(at).copied();
                report.rule(Check::CountAllows, rule, at, message);
            }
        }
        for (fact, change) in &direction.facts {
            if allows_more(change) {
                let message = format!(
                    "the safe value of the fact {fact}, which one operator alone sets, can turn a no into a yes by this condition: turn the \
                     condition round, or `safe` of fact.{fact} in facts.toml"
                );
                let at = places.get(at).copied();
                report.rule(Check::SafeAllows, rule, at, message);
            }
        }
    }
}

impl Direction {
    /// What is found about a condition of a rule with this effect.
    fn wrong(&self, effect: RuleEffect) -> Vec<Check> {
        let is_wrong = |change: Change| match effect {
            RuleEffect::Forbid => change.rises,
            RuleEffect::Permit => change.falls,
        };
        let found = [
            (self.approvals, Check::ApprovalForbids),
            (self.lifetime, Check::ShorterForbids),
        ];
        found
            .into_iter()
            .filter(|(change, _)| is_wrong(*change))
            .map(|(_, check)| check)
            .collect()
    }
}

/// What is found about the direction of one rule, by name.
#[cfg(test)]
pub(in crate::policy) fn findings(rule: &str) -> Vec<&'static str> {
    let policy = cedar_policy::Policy::parse(None, rule).expect("a rule");
    let effect = match policy.effect() {
        cedar_policy::Effect::Permit => RuleEffect::Permit,
        cedar_policy::Effect::Forbid => RuleEffect::Forbid,
    };
    let form = policy.to_json().expect("JSON");
    let conditions = form["conditions"].as_array().expect("conditions");
    let directions = conditions
        .iter()
        .map(|condition| Direction::of(condition, &DeclaredContext::default()));
    directions
        .flat_map(|direction| direction.wrong(effect))
        .map(Check::name)
        .collect()
}

/// How a condition changes.
fn of(variable: Variable<'_>, expression: &Value) -> Change {
    if !variable.is_in(expression) {
        return Change::NONE;
    }
    if matches!(variable, Variable::Fact(_)) && variable.is(expression) {
        return Change::RISES;
    }
    let Some((operator, operands)) = single(expression) else {
        return Change::BOTH;
    };
    let operand = |name| operands.get(name).unwrap_or(&Value::Null);
    let (left, right) = (operand("left"), operand("right"));
    match operator {
        "!" => of(variable, operand("arg")).opposite(),
        "&&" | "||" => of(variable, left).and(of(variable, right)),
        "==" | "!=" if truth(left).is_some() || truth(right).is_some() => {
            let change = of(variable, left).and(of(variable, right));
            let is_same = truth(left).or(truth(right)) == Some(operator == "==");
            match is_same {
                true => change,
                false => change.opposite(),
            }
        }
        "if-then-else" => alternative(variable, operand("if"), operand("then"), operand("else")),
        _ => match variable {
            Variable::Approvals => of_set(operator, operands),
            // As it is shortened.
            Variable::Lifetime => of_order(variable, operator, left, right).opposite(),
            Variable::Count(_) => of_order(variable, operator, left, right),
            Variable::Fact(_) => Change::BOTH,
        },
    }
}

/// The value of `true` and `false`.
fn truth(expression: &Value) -> Option<bool> {
    expression.get("Value").and_then(Value::as_bool)
}

/// `if C then A else B`: `C && A || !C && B`.
fn alternative(variable: Variable<'_>, of_which: &Value, then: &Value, other: &Value) -> Change {
    let (condition, parts) = (
        of(variable, of_which),
        of(variable, then).and(of(variable, other)),
    );
    if condition == Change::NONE {
        return parts;
    }
    match (truth(then), truth(other)) {
        (Some(true), _) | (_, Some(false)) => condition.and(parts),
        (Some(false), _) | (_, Some(true)) => condition.opposite().and(parts),
        _ => Change::BOTH,
    }
}

/// How a question about a set changes as approvals are added.
fn of_set(operator: &str, operands: &Value) -> Change {
    let operand = |name| operands.get(name).unwrap_or(&Value::Null);
    let is_set = |name| Variable::Approvals.is(operand(name));
    let is_other = |name| !Variable::Approvals.is_in(operand(name));
    match operator {
        "isEmpty" if is_set("arg") => Change::FALLS,
        "contains" | "containsAll" | "containsAny" if is_set("left") && is_other("right") => {
            Change::RISES
        }
        "containsAny" if is_other("left") && is_set("right") => Change::RISES,
        "containsAll" if is_other("left") && is_set("right") => Change::FALLS,
        _ => Change::BOTH,
    }
}

/// How a comparison changes as a number grows.
fn of_order(variable: Variable<'_>, operator: &str, left: &Value, right: &Value) -> Change {
    let (Some(left), Some(right)) = (slope(variable, left), slope(variable, right)) else {
        return Change::BOTH;
    };
    let Some(difference) = sum(left, -right) else {
        return Change::BOTH;
    };
    let grows = match difference {
        1.. => Change::RISES,
        0 => Change::NONE,
        _ => Change::FALLS,
    };
    match operator {
        ">" | ">=" => grows,
        "<" | "<=" => grows.opposite(),
        _ => Change::BOTH,
    }
}

/// Whether a value grows with a number (1), shrinks (-1) or neither (0); nothing where that is not known.
fn slope(variable: Variable<'_>, expression: &Value) -> Option<i8> {
    if !variable.is_in(expression) {
        return Some(0);
    }
    if variable.is(expression) {
        return Some(1);
    }
    let (operator, operands) = single(expression)?;
    let argument = |at: usize| operands.as_array().and_then(|operands| operands.get(at));
    let of = |expression| slope(variable, expression);
    match operator {
        "toMilliseconds" | "toSeconds" | "toMinutes" | "toHours" | "toDays" => of(argument(0)?),
        "offset" => sum(of(argument(0)?)?, of(argument(1)?)?),
        "durationSince" => sum(of(argument(0)?)?, -of(argument(1)?)?),
        "neg" => of(operands.get("arg")?).map(|slope| -slope),
        "+" => sum(of(operands.get("left")?)?, of(operands.get("right")?)?),
        "-" => sum(of(operands.get("left")?)?, -of(operands.get("right")?)?),
        _ => None,
    }
}

/// The slope of a sum of two values.
fn sum(one: i8, other: i8) -> Option<i8> {
    match (one, other) {
        (0, slope) | (slope, 0) => Some(slope),
        (one, other) => (one == other).then_some(one),
    }
}
