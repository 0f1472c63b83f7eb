//! Nearest misses: of a request that no rule allows, the permit that came closest to allowing it, with the parts that exclude the
//! request and the values they rested on. For operators; Cedar itself answers for each part.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use cedar_policy::{
    ActionConstraint, EntityUid, Policy, PolicyId, PrincipalConstraint, Request, ResourceConstraint,
};
use serde_json::{Value, json};

use super::authorize::eval_request;
use super::check::reading::single;
use super::evaluator::Evaluator;
use super::rule::{RuleEffect, RuleInfo};
use super::schema::{OPERATE, WAITED};
use super::{AuthzRequest, PolicyBundle, on_large_stack};
use crate::model::{RuleRef, parse_duration};

/// The permit that came closest to allowing a request: the one whose scope excludes the least, of equals one for the action, then the
/// one with the most terms of its conditions met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearestPermit {
    /// The rule.
    pub rule: RuleRef,
    /// Line of its file on which it begins, from 1.
    pub line: usize,
    /// The parts that exclude the request, and those of which that is not said, in the rule's order; never empty.
    pub misses: Vec<PermitMiss>,
}

/// A part of a permit that excludes a request, or one of which that is not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermitMiss {
    /// Which part.
    pub part: PermitPart,
    /// What the part asks for, in Cedar's words: the constraint of the scope, or one of the terms that a condition joins. Of a term that
    /// reads a sensitive parameter it says that alone.
    pub clause: String,
    /// Whether the part reads a sensitive parameter. It is named whether it excludes the request or not: neither is said.
    pub is_withheld: bool,
    /// Why it could not be evaluated; `None` where it is not met.
    pub error: Option<String>,
    /// What it read of the request, with the values.
    pub values: Vec<ReadValue>,
}

/// The part of a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PermitPart {
    /// The scope's principal.
    Principal,
    /// The scope's action.
    Action,
    /// The scope's resource.
    Resource,
    /// A term of a `when`.
    When,
    /// A term of an `unless`.
    Unless,
}

/// A value that a rule read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadValue {
    /// The variable or attribute, as in `principal.environment`.
    pub path: String,
    /// The value in Cedar's notation; of an agent, an action or a target with the groups it is in.
    pub value: String,
}

/// A rule that could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFailure {
    /// The rule; `None` when the request itself was invalid.
    pub rule: Option<(RuleRef, usize)>,
    /// Cedar's error; its kind alone where the rule reads a sensitive parameter.
    pub error: String,
}

impl RuleFailure {
    /// Whether it is of this rule.
    pub fn is_of(&self, rule: &RuleRef) -> bool {
        self.rule.as_ref().is_some_and(|(failed, _)| failed == rule)
    }
}

impl PermitPart {
    /// The keyword, as in the rule.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Action => "action",
            Self::Resource => "resource",
            Self::When => "when",
            Self::Unless => "unless",
        }
    }
}

impl NearestPermit {
    /// One sentence for each part that excludes the request.
    pub fn sentences(&self) -> Vec<String> {
        let rule = format!(
            "rule \"{}\" ({}:{})",
            self.rule.id, self.rule.file, self.line
        );
        self.misses
            .iter()
            .map(|miss| format!("{rule}{}", miss.sentence()))
            .collect()
    }
}

impl PermitMiss {
    fn sentence(&self) -> String {
        let clause = &self.clause;
        let met = match (self.part, &self.error) {
            _ if self.is_withheld => format!(": {clause}"),
            (PermitPart::Principal | PermitPart::Action | PermitPart::Resource, _) => {
                format!(" is for {clause}")
            }
            (PermitPart::When | PermitPart::Unless, Some(error)) => {
                format!(": {} {{ {clause} }} fails: {error}", self.part.as_str())
            }
            (PermitPart::When, None) => format!(": when {{ {clause} }} is false"),
            (PermitPart::Unless, None) => format!(": unless {{ {clause} }} is true"),
        };
        let values: Vec<String> = self
            .values
            .iter()
            .map(|read| format!("{} is {}", read.path, read.value))
            .collect();
        match values.is_empty() {
            true => met,
            false => format!("{met}: {}", values.join(", ")),
        }
    }
}

impl PolicyBundle {
    /// The permit that came closest to allowing a request of gate 2; `None` when the bundle has no permit for an action, or when the
    /// request is invalid. Values of sensitive parameters are left out.
    pub fn nearest_permit(&self, q: &AuthzRequest<'_>) -> Option<NearestPermit> {
        on_large_stack(|| self.nearest_permit_here(q))
    }

    fn nearest_permit_here(&self, q: &AuthzRequest<'_>) -> Option<NearestPermit> {
        // As the last evaluation asked: a forbid's remedy may have shortened the lifetime or assumed an approval before it.
        let (ttl_ms, approvals) = self.asked_last(q);
        let request = eval_request(q, ttl_ms, &approvals);
        let request = self.evaluator.cedar_request(&request)?;
        let sensitive = self.action(&q.action.name).map(|a| a.sensitive());
        let asked = Asked {
            evaluator: &self.evaluator,
            request: &request,
            sensitive: sensitive.unwrap_or_default(),
        };
        let permits = self
            .rules()
            .filter(|rule| rule.effect == RuleEffect::Permit);
        let mut nearest: Option<(Rank<'_>, NearestPermit)> = None;
        for info in permits {
            let policy = self.rules.set.policy(&PolicyId::new(&info.id));
            let Some((rank, permit)) = policy.and_then(|policy| asked.misses_of(info, policy))
            else {
                continue;
            };
            if nearest.as_ref().is_none_or(|(best, _)| rank > *best) {
                nearest = Some((rank, permit));
            }
        }
        nearest.map(|(_, permit)| permit)
    }
}

/// How close a permit came: parts of the scope that have the request, whether the action's has, terms that are met, terms that are not,
/// its place.
type Rank<'r> = (
    usize,
    bool,
    usize,
    Reverse<usize>,
    Reverse<(&'r str, usize)>,
);

struct Asked<'a> {
    evaluator: &'a Evaluator,
    request: &'a Request,
    sensitive: BTreeSet<String>,
}

impl Asked<'_> {
    fn misses_of<'r>(
        &self,
        info: &'r RuleInfo,
        policy: &Policy,
    ) -> Option<(Rank<'r>, NearestPermit)> {
        if is_of_gate_1(&policy.action_constraint()) {
            return None;
        }
        let form = policy.to_json().ok()?;
        let mut misses = Vec::new();
        let scope = [
            (PermitPart::Principal, principal_clause(policy)),
            (PermitPart::Action, action_clause(policy)),
            (PermitPart::Resource, resource_clause(policy)),
        ];
        for (part, clause) in scope {
            let part_alone = only(part.as_str(), form.get(part.as_str())?.clone());
            if self.evaluator.is_met(&part_alone, self.request) != Ok(true) {
                misses.push(PermitMiss {
                    part,
                    clause,
                    is_withheld: false,
                    error: None,
                    values: vec![self.read(part.as_str(), &[part.as_str().to_owned()])],
                });
            }
        }
        let in_scope = SCOPE_PARTS - misses.len();
        let has_action = misses.iter().all(|miss| miss.part != PermitPart::Action);
        let is_in_scope = misses.is_empty();
        let mut is_excluded = !is_in_scope;
        let (mut met, mut unmet) = (0, 0);
        let conditions = form.get("conditions").and_then(Value::as_array);
        for condition in conditions.into_iter().flatten() {
            let body = condition.get("body")?;
            let (part, join) = match condition.get("kind").and_then(Value::as_str) {
                Some("unless") => (PermitPart::Unless, "||"),
                _ => (PermitPart::When, "&&"),
            };
            let mut terms = Vec::new();
            flatten(body, join, &mut terms);
            for term in terms {
                let term_alone = json!([{ "kind": part.as_str(), "body": term }]);
                let is_met = self
                    .evaluator
                    .is_met(&only("conditions", term_alone), self.request);
                is_excluded |= is_met != Ok(true);
                let secrets = sensitive_paths(term, &self.sensitive);
                if !secrets.is_empty() {
                    // Nor does it count for the rank, from which its truth would follow.
                    if is_in_scope {
                        misses.push(self.withheld(part, &secrets));
                    }
                    continue;
                }
                let error = match is_met {
                    Ok(true) => {
                        met += 1;
                        continue;
                    }
                    Ok(false) => None,
                    Err(error) => Some(error),
                };
                unmet += 1;
                // Where an earlier term is not met, Cedar does not evaluate this one: its error is none of the rule.
                if is_in_scope && (error.is_none() || misses.is_empty()) {
                    misses.push(PermitMiss {
                        part,
                        clause: text_of(part, term),
                        is_withheld: false,
                        error,
                        values: self.read_by(term),
                    });
                }
            }
        }
        // A permit without a miss would have allowed the request.
        if !is_excluded {
            return None;
        }
        let place = Reverse((info.file.as_str(), info.line));
        let permit = NearestPermit {
            rule: info.reference(),
            line: info.line,
            misses,
        };
        Some(((in_scope, has_action, met, Reverse(unmet), place), permit))
    }

    /// A term that reads these paths of sensitive parameters. Constants beside them and the term's truth together would tell values.
    fn withheld(&self, part: PermitPart, secrets: &[Vec<String>]) -> PermitMiss {
        let mut values: Vec<ReadValue> = Vec::new();
        for path in secrets {
            let text = path_text(path);
            if values.iter().all(|read| read.path != text) {
                values.push(self.read(&text, path));
            }
        }
        let clause = format!(
            "a term of the {} reads a sensitive parameter: neither the term nor whether it is met is shown",
            part.as_str()
        );
        PermitMiss {
            part,
            clause,
            is_withheld: true,
            error: None,
            values,
        }
    }

    /// The variables and attributes that an expression reads, with their values, each once.
    fn read_by(&self, expression: &Value) -> Vec<ReadValue> {
        let mut paths = Vec::new();
        collect_paths(expression, &mut paths);
        let mut values: Vec<ReadValue> = Vec::new();
        for path in paths {
            let text = path_text(&path);
            if values.iter().all(|read| read.path != text) {
                values.push(self.read(&text, &path));
            }
        }
        values
    }

    fn read(&self, text: &str, path: &[String]) -> ReadValue {
        let members: Vec<&str> = path.iter().map(String::as_str).collect();
        let value = match members.as_slice() {
            ["context", "parameters", name, ..] if self.sensitive.contains(*name) => {
                "a sensitive parameter".to_owned()
            }
            ["context"] | ["context", "parameters"] => "a record".to_owned(),
            _ => self.evaluator.value_text(text, self.request),
        };
        ReadValue {
            path: text.to_owned(),
            value,
        }
    }
}

/// Whether a rule reads one of these parameters, or all parameters as a whole.
pub(super) fn reads_sensitive(policy: &Policy, sensitive: &BTreeSet<String>) -> bool {
    let reads = |form: &Value| !sensitive_paths(form, sensitive).is_empty();
    // A rule without a form is taken for one that does.
    policy.to_json().map_or(!sensitive.is_empty(), |form| {
        form.get("conditions").is_some_and(reads)
    })
}

/// The paths in an expression that lead to one of these parameters, or to all parameters as a whole.
fn sensitive_paths(expression: &Value, sensitive: &BTreeSet<String>) -> Vec<Vec<String>> {
    if sensitive.is_empty() {
        return Vec::new();
    }
    let mut paths = Vec::new();
    collect_paths(expression, &mut paths);
    paths.retain(|path| match path.as_slice() {
        [context] => context == "context",
        [context, parameters] => context == "context" && parameters == "parameters",
        [context, parameters, name, ..] => {
            context == "context" && parameters == "parameters" && sensitive.contains(name)
        }
        [] => false,
    });
    paths
}

/// The members of `context.MEMBER` whose values a rule reads; `None` where it may read all of them.
pub(super) fn context_members(policy: &Policy, member: &str) -> Option<BTreeSet<String>> {
    let form = policy.to_json().ok()?;
    let mut members = BTreeSet::new();
    let reads_all = collect_members(form.get("conditions")?, member, &mut members);
    (!reads_all).then_some(members)
}

/// Whether a rule reads how long a request has waited nowhere but in `context.waited >= duration("DELAY")`, with its own delay in seconds.
pub(super) fn waits_alone(policy: &Policy, delay_s: Option<u32>) -> bool {
    let form = policy.to_json().unwrap_or_default();
    let conditions = form.get("conditions");
    conditions.is_some_and(|conditions| compares_alone(conditions, delay_s))
}

fn compares_alone(expression: &Value, delay_s: Option<u32>) -> bool {
    if let Some(path) = path_of(expression) {
        return match path.as_slice() {
            [context] => context != "context",
            [context, of, ..] => context != "context" || of != WAITED,
            [] => true,
        };
    }
    // To ask whether there is one reads no value.
    if let Some(of) = asked_of(expression) {
        return path_of(of).is_some() || compares_alone(of, delay_s);
    }
    match single(expression) {
        Some((">=", operands)) if is_own_delay(operands, delay_s) => true,
        _ => parts_of(expression).all(|part| compares_alone(part, delay_s)),
    }
}

/// `context.waited >= duration("DELAY")`.
fn is_own_delay(operands: &Value, delay_s: Option<u32>) -> bool {
    let left = operands.get("left").and_then(path_of);
    let is_waited = left.is_some_and(|path| path == ["context", WAITED]);
    let right = operands
        .get("right")
        .and_then(|right| right.get("duration"));
    let text = right.and_then(|arguments| arguments.get(0)?.get("Value")?.as_str());
    let seconds = text.and_then(|text| parse_duration("delay", text).ok());
    is_waited && seconds.is_some() && seconds == delay_s
}

/// Of what a `has` asks whether it has a member. A record with a member of that name is none.
fn asked_of(expression: &Value) -> Option<&Value> {
    match single(expression)? {
        ("has", operands) => operands.get("left"),
        _ => None,
    }
}

/// The expressions that an expression consists of.
fn parts_of(expression: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match expression {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(parts) => Box::new(parts.values()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Box::new(std::iter::empty())
        }
    }
}

/// Adds the members that an expression reads. Whether it may read all of them. To ask whether there is one (`has`) reads no value.
fn collect_members(expression: &Value, member: &str, members: &mut BTreeSet<String>) -> bool {
    if let Some(path) = path_of(expression) {
        return match path.as_slice() {
            [context] => context == "context",
            [context, of] => context == "context" && of == member,
            [context, of, name, ..] => {
                if context == "context" && of == member {
                    members.insert(name.clone());
                }
                false
            }
            [] => false,
        };
    }
    if let Some(of) = asked_of(expression) {
        return path_of(of).is_none() && collect_members(of, member, members);
    }
    parts_of(expression).any(|part| collect_members(part, member, members))
}

/// Whether a rule is about `operate` alone, which is no action of gate 2.
fn is_of_gate_1(action: &ActionConstraint) -> bool {
    let is_operate = |uid: &EntityUid| uid.id().unescaped() == OPERATE;
    match action {
        ActionConstraint::Any => false,
        ActionConstraint::Eq(uid) => is_operate(uid),
        ActionConstraint::In(uids) => uids.iter().all(is_operate),
    }
}

/// A permit in JSON form with this part alone.
fn only(part: &str, value: Value) -> Value {
    let mut form = json!({
        "effect": "permit",
        "principal": { "op": "All" },
        "action": { "op": "All" },
        "resource": { "op": "All" },
        "conditions": [],
    });
    if let Some(members) = form.as_object_mut() {
        members.insert(part.to_owned(), value);
    }
    form
}

/// The terms that an operator joins at the top of an expression.
fn flatten<'e>(expression: &'e Value, join: &str, terms: &mut Vec<&'e Value>) {
    match single(expression) {
        Some((operator, operands)) if operator == join => {
            for side in ["left", "right"] {
                if let Some(operand) = operands.get(side) {
                    flatten(operand, join, terms);
                }
            }
        }
        _ => terms.push(expression),
    }
}

/// The longest paths of members that begin with a variable, in reading order.
fn collect_paths(expression: &Value, paths: &mut Vec<Vec<String>>) {
    if let Some(path) = path_of(expression) {
        return paths.push(path);
    }
    if let Some(("has", operands)) = single(expression)
        && let (Some(mut path), Some(attributes)) =
            (operands.get("left").and_then(path_of), operands.get("attr"))
    {
        match attributes {
            Value::Array(members) => {
                path.extend(members.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            other => path.extend(other.as_str().map(str::to_owned)),
        }
        return paths.push(path);
    }
    match expression {
        Value::Array(items) => items.iter().for_each(|item| collect_paths(item, paths)),
        // Cedar writes the parts of an expression as members in an order of its own.
        Value::Object(members) => {
            let (first, rest): (Vec<_>, Vec<_>) = members
                .iter()
                .partition(|(name, _)| matches!(name.as_str(), "left" | "if"));
            let parts = first.into_iter().chain(rest);
            parts.for_each(|(_, part)| collect_paths(part, paths));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The variable and the members of an expression that is nothing else.
fn path_of(expression: &Value) -> Option<Vec<String>> {
    let (operator, operands) = single(expression)?;
    match operator {
        "Var" => Some(vec![operands.as_str()?.to_owned()]),
        "." => {
            let mut path = path_of(operands.get("left")?)?;
            path.push(operands.get("attr")?.as_str()?.to_owned());
            Some(path)
        }
        _ => None,
    }
}

fn path_text(path: &[String]) -> String {
    let mut text = String::new();
    for (n, member) in path.iter().enumerate() {
        let is_identifier = member
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !member.starts_with(|c: char| c.is_ascii_digit());
        match (n, is_identifier) {
            (0, _) => text.push_str(member),
            (_, true) => text.push_str(&format!(".{member}")),
            (_, false) => text.push_str(&format!("[\"{}\"]", member.escape_debug())),
        }
    }
    text
}

/// A term in Cedar's notation, in one line.
fn text_of(part: PermitPart, term: &Value) -> String {
    let condition = json!([{ "kind": "when", "body": term }]);
    let policy = Policy::from_json(None, only("conditions", condition)).ok();
    let text = policy.and_then(|policy| policy.to_cedar());
    let text = text.and_then(|text| {
        let (_, rest) = text.split_once("when {")?;
        let (body, _) = rest.rsplit_once('}')?;
        Some(in_one_line(body))
    });
    text.unwrap_or_else(|| format!("a term of the {}", part.as_str()))
}

/// A text of Cedar with one space for each run of white space outside of strings: two different strings stay different.
fn in_one_line(text: &str) -> String {
    let mut line = String::new();
    let (mut is_in_string, mut is_escaped, mut is_spaced) = (false, false, false);
    for c in text.trim().chars() {
        if !is_in_string && c.is_whitespace() {
            is_spaced = true;
            continue;
        }
        if std::mem::take(&mut is_spaced) {
            line.push(' ');
        }
        line.push(c);
        match c {
            '"' if !is_escaped => is_in_string = !is_in_string,
            _ => {}
        }
        is_escaped = is_in_string && c == '\\' && !is_escaped;
    }
    line
}

fn principal_clause(policy: &Policy) -> String {
    match policy.principal_constraint() {
        PrincipalConstraint::Any => "every agent".to_owned(),
        PrincipalConstraint::In(uid) | PrincipalConstraint::Eq(uid) => uid.to_string(),
        PrincipalConstraint::Is(kind) => format!("every {kind}"),
        PrincipalConstraint::IsIn(kind, uid) => format!("every {kind} in {uid}"),
    }
}

fn action_clause(policy: &Policy) -> String {
    match policy.action_constraint() {
        ActionConstraint::Any => "every action".to_owned(),
        ActionConstraint::Eq(uid) => uid.to_string(),
        ActionConstraint::In(uids) => {
            let names: Vec<String> = uids.iter().map(ToString::to_string).collect();
            names.join(" or ")
        }
    }
}

fn resource_clause(policy: &Policy) -> String {
    match policy.resource_constraint() {
        ResourceConstraint::Any => "every target".to_owned(),
        ResourceConstraint::In(uid) | ResourceConstraint::Eq(uid) => uid.to_string(),
        ResourceConstraint::Is(kind) => format!("every {kind}"),
        ResourceConstraint::IsIn(kind, uid) => format!("every {kind} in {uid}"),
    }
}

/// Parts of a rule's scope: principal, action and resource.
const SCOPE_PARTS: usize = 3;
