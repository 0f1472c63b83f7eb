//! Bounds on the nesting of rules and of the schema, before a parser reads them: what reads, compares, writes and drops an
//! expression or a type calls itself for each level, on whichever stack the caller has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::check::location::words;
use super::files::SCHEMA;
use super::problem::{BundleProblem, Problems, line_and_column};
use super::schema::declaration_line;

/// Whether each rule of a file is within the bounds; each that is not is a problem, with the place that exceeds them.
pub(super) fn check_rules(file: &str, text: &str, problems: &mut Problems) -> bool {
    let mut is_within = true;
    let mut size = RuleSize::default();
    let mut is_told = false;
    for (at, word) in words(text) {
        if word == ";" {
            (size, is_told) = (RuleSize::default(), false);
        } else if let Some(message) = size.exceeded_by(word)
            && !is_told
        {
            (is_within, is_told) = (false, true);
            problems.push(problem_at(file, text, at, message));
        }
    }
    is_within
}

/// Whether the brackets of the schema's text are within the bound.
pub(super) fn check_schema(text: &str, problems: &mut Problems) -> bool {
    let (mut depth, mut colons) = (0_usize, 0_usize);
    for (at, word) in words(text) {
        colons = match word {
            ":" => colons.saturating_add(1),
            name if name.starts_with(|c: char| c.is_alphanumeric() || c == '_') => colons,
            _ => 0,
        };
        if colons > NAME_COLONS_MAX {
            let message = "a name has more than 16 parts; write a shorter one";
            problems.push(problem_at(SCHEMA, text, at, message.to_owned()));
            return false;
        }
        match word {
            "<" | "(" | "[" | "{" => depth = depth.saturating_add(1),
            ">" | ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > BRACKETS_MAX {
            let message = format!(
                "types are nested more than {BRACKETS_MAX} deep; write a flatter type, such as a record of named members"
            );
            problems.push(problem_at(SCHEMA, text, at, message));
            return false;
        }
    }
    true
}

/// Whether the types of a fragment in its JSON form are within the bounds once every common type stands in its place, and the
/// memberships of its entity types and actions are. Cedar puts a copy of a common type at each of its places.
pub(super) fn check_types(team: &Map<String, Value>, text: &str, problems: &mut Problems) -> bool {
    let named = |name: &str| {
        let part = team.get(name).and_then(Value::as_object);
        part.into_iter().flatten()
    };
    let mut is_within = true;
    let mut sizes: BTreeMap<&str, TypeSize> = BTreeMap::new();
    let mut total = 0_usize;
    let common: BTreeMap<&str, &Value> = named("commonTypes").map(|(n, v)| (&n[..], v)).collect();
    let mut refuse = |name: &str, message: String| {
        is_within = false;
        problems.add(SCHEMA, declaration_line(text, name), message);
    };
    // A type is measured once those that it names are.
    let mut waiting: BTreeMap<&str, (&Value, BTreeSet<&str>)> = BTreeMap::new();
    let mut used_by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut ready: Vec<(&str, &Value)> = Vec::new();
    for (name, ty) in &common {
        let mut uses = BTreeSet::new();
        common_types_in(ty, &common, &mut uses);
        uses.iter()
            .for_each(|used| used_by.entry(used).or_default().push(name));
        match uses.is_empty() {
            true => ready.push((name, ty)),
            false => drop(waiting.insert(name, (ty, uses))),
        }
    }
    while let Some((name, ty)) = ready.pop() {
        let size = TypeSize::of(ty, &sizes);
        if let Some(message) = size.exceeds() {
            refuse(name, format!("type {name}: {message}"));
            // Whatever names it exceeds the bounds too.
            return false;
        }
        sizes.insert(name, size);
        for user in used_by.get(name).into_iter().flatten() {
            let Some((ty, uses)) = waiting.get_mut(user) else {
                continue;
            };
            uses.remove(name);
            if uses.is_empty() {
                ready.push((user, *ty));
                waiting.remove(user);
            }
        }
    }
    if let Some(name) = waiting.keys().next() {
        let message = format!("type {name} is made of itself, through the types that it names");
        refuse(name, message);
    }
    for (name, declared) in named("entityTypes").chain(named("actions")) {
        let size = TypeSize::of_declared(declared, &sizes);
        total = total.saturating_add(size.count);
        if let Some(message) = size.exceeds() {
            refuse(name, format!("\"{name}\": {message}"));
        } else if total > TYPES_MAX {
            refuse(
                name,
                format!(
                    "the schema has more than {TYPES_MAX} types, each common type counted wherever it is named; declare fewer members"
                ),
            );
            break;
        }
    }
    let parents = |json: &Value| -> Vec<String> {
        let lists =
            ["memberOfTypes", "memberOf"].map(|name| json.get(name).and_then(Value::as_array));
        let of = |parent: &Value| {
            parent
                .as_str()
                .or_else(|| parent.get("id")?.as_str())
                .map(str::to_owned)
        };
        lists
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(of)
            .collect()
    };
    for part in ["entityTypes", "actions"] {
        let of: BTreeMap<String, Vec<String>> = named(part)
            .map(|(name, json)| (name.clone(), parents(json)))
            .collect();
        if let Some(name) = too_deep(&of) {
            refuse(
                &name,
                format!(
                    "\"{name}\" is the member of a chain of more than {MEMBERSHIPS_MAX} memberships; name its groups directly"
                ),
            );
        }
    }
    is_within
}

/// A member from which a chain of more memberships leads than the bound, or may through a cycle.
pub(super) fn too_deep<T: Ord + Clone>(parents: &BTreeMap<T, Vec<T>>) -> Option<T> {
    let mut left: BTreeSet<&T> = parents.keys().collect();
    // Each pass takes those whose parents are all taken: one level.
    for _ in 0..=MEMBERSHIPS_MAX {
        let is_top = |name: &&&T| {
            let mut of = parents.get(**name).into_iter().flatten();
            !of.any(|parent| parent != **name && left.contains(parent))
        };
        let top: BTreeSet<&T> = left.iter().filter(is_top).copied().collect();
        if top.is_empty() {
            break;
        }
        left.retain(|name| !top.contains(name));
    }
    // From fewer no longer chain leads.
    let name = left.first().filter(|_| left.len() > MEMBERSHIPS_MAX);
    name.map(|name| (*name).clone())
}

fn problem_at(file: &str, text: &str, at: usize, message: String) -> BundleProblem {
    let place = line_and_column(text, at);
    let mut problem = BundleProblem::new(file, place.map(|(line, _)| line), message);
    problem.column = place.map(|(_, column)| column);
    problem
}

/// What of one rule a parser and its readers nest by.
#[derive(Default)]
struct RuleSize {
    operators: usize,
    /// Of each open bracket what closes it, and the accesses before it.
    brackets: Vec<(&'static str, usize)>,
    /// Accesses of the value that stands here, such as 2 in `context.task.age`.
    accesses: usize,
    is_value: bool,
    /// The `!` or `-` that stands here, and what makes it no operator where it follows: `=`, or a digit (as `0`).
    unless_before: Option<&'static str>,
    last: Option<char>,
}

impl RuleSize {
    /// Counts a word; what it exceeds, if anything.
    fn exceeded_by(&mut self, word: &str) -> Option<String> {
        let before = self.last;
        let first = word.chars().next();
        self.last = first;
        let was_value = std::mem::take(&mut self.is_value);
        // `!=` compares, and a sign before digits is part of a number.
        let is_number = first.is_some_and(|c| c.is_ascii_digit());
        match self.unless_before.take() {
            Some("=") if word == "=" => {}
            Some("0") if is_number => {}
            Some(_) => self.operators = self.operators.saturating_add(1),
            None => {}
        }
        match word {
            // Of two characters the second counts.
            "&" | "|" if before != self.last => {}
            "!" => (self.unless_before, self.accesses) = (Some("="), 0),
            "-" if !was_value => (self.unless_before, self.accesses) = (Some("0"), 0),
            "&" | "|" | "-" | "+" | "*" | "if" | "when" | "unless" => {
                self.last = None;
                self.operators = self.operators.saturating_add(1);
                self.accesses = 0;
            }
            "(" | "[" | "{" => {
                let closing = match word {
                    "(" => ")",
                    "[" => "]",
                    _ => "}",
                };
                // A call, or an access by `["name"]`.
                let is_step = was_value && word != "{";
                let accesses = self.accesses.saturating_add(usize::from(is_step));
                self.brackets.push((closing, accesses));
                self.accesses = 0;
            }
            ")" | "]" | "}" => {
                // What closes another bracket closes none.
                if let Some((_, outer)) = self.brackets.pop_if(|(closing, _)| *closing == word) {
                    self.accesses = self.accesses.max(outer);
                }
                self.is_value = true;
            }
            "." => self.accesses = self.accesses.saturating_add(1),
            "in" | "has" | "like" | "is" | "then" | "else" => self.accesses = 0,
            // A name behind a dot goes on with the same value.
            name if name.starts_with(|c: char| c.is_alphanumeric() || c == '_') => {
                if before != Some('.') && before != Some(':') {
                    self.accesses = 0;
                }
                // What follows an annotation's name or an effect is no call.
                let is_head = before == Some('@') || matches!(name, "permit" | "forbid");
                self.is_value = !is_head;
            }
            ":" => {}
            text if text.starts_with('"') => (self.accesses, self.is_value) = (0, true),
            _ => self.accesses = 0,
        }
        if self.operators > OPERATORS_MAX {
            return Some(format!(
                "a rule has more than {OPERATORS_MAX} operators (`&&`, `||`, `!`, `if`, arithmetic, `when` and `unless`); compare with \
                 a set, as [\"a\", \"b\"].contains(…), or write several rules"
            ));
        }
        if self.brackets.len() > BRACKETS_MAX {
            return Some(format!(
                "a rule has brackets nested more than {BRACKETS_MAX} deep; leave out brackets that change nothing, or write several rules"
            ));
        }
        (self.accesses > ACCESSES_MAX).then(|| {
            format!("a rule reads a member more than {ACCESSES_MAX} records deep; give the value a shorter path in schema.cedarschema")
        })
    }
}

/// A type with every common type in its place.
#[derive(Clone, Copy, Default)]
struct TypeSize {
    depth: usize,
    count: usize,
}

impl TypeSize {
    /// Of an entity type (its shape and its tags) or of an action (its context), and of the names that it lists.
    fn of_declared(declared: &Value, sizes: &BTreeMap<&str, Self>) -> Self {
        let applies_to = declared.get("appliesTo");
        let context = applies_to.and_then(|applies| applies.get("context"));
        let types = [declared.get("shape"), declared.get("tags"), context];
        let types = types.into_iter().flatten();
        types.fold(Self { depth: 0, count: 1 }, |size, ty| {
            size.with(Self::of(ty, sizes))
        })
    }

    /// Of a type, which the text's brackets bound; a common type that was not measured counts as one name.
    fn of(ty: &Value, sizes: &BTreeMap<&str, Self>) -> Self {
        let mut size = Self { depth: 0, count: 1 };
        let parts = TypeParts::of(ty);
        if let Some(named) = parts.name.and_then(|name| sizes.get(name)) {
            return size.with(*named);
        }
        for part in parts.inner {
            let part = Self::of(part, sizes);
            size = size.with(Self {
                depth: part.depth.saturating_add(1),
                ..part
            });
        }
        size
    }

    fn with(self, other: Self) -> Self {
        Self {
            depth: self.depth.max(other.depth),
            count: self.count.saturating_add(other.count),
        }
    }

    fn exceeds(self) -> Option<String> {
        if self.depth > BRACKETS_MAX {
            return Some(format!(
                "its types are nested more than {BRACKETS_MAX} deep, the types that they name included; write a flatter type"
            ));
        }
        (self.count > TYPES_MAX).then(|| {
            format!("it has more than {TYPES_MAX} types, the types that they name included; declare fewer members")
        })
    }
}

/// What a type in its JSON form is made of.
#[derive(Default)]
struct TypeParts<'v> {
    /// Types within it.
    inner: Vec<&'v Value>,
    /// What it names, without a namespace: a common type, or an entity type.
    name: Option<&'v str>,
}

impl<'v> TypeParts<'v> {
    fn of(ty: &'v Value) -> Self {
        let member = |name: &str| ty.get(name);
        let text = |name: &str| member(name).and_then(Value::as_str);
        let name = match text("type") {
            Some("Set") => {
                return Self {
                    inner: member("element").into_iter().collect(),
                    name: None,
                };
            }
            Some("Record") => {
                let attributes = member("attributes").and_then(Value::as_object);
                return Self {
                    inner: attributes.into_iter().flat_map(Map::values).collect(),
                    name: None,
                };
            }
            Some("EntityOrCommon") => text("name"),
            Some("Entity" | "Extension") | None => None,
            Some(name) => Some(name),
        };
        Self {
            inner: Vec::new(),
            name: name.and_then(|name| name.rsplit("::").next()),
        }
    }
}

/// The common types that a type names.
fn common_types_in<'v>(
    ty: &'v Value,
    common: &BTreeMap<&'v str, &'v Value>,
    found: &mut BTreeSet<&'v str>,
) {
    let parts = TypeParts::of(ty);
    found.extend(parts.name.filter(|name| common.contains_key(name)));
    for part in parts.inner {
        common_types_in(part, common, found);
    }
}

/// Most operators of one rule: Cedar takes some 48 KiB of stack for each level of an evaluation in a build without optimization, of
/// the 2 MiB that a worker has; with less than 100 KiB left it fails, and the request is denied.
const OPERATORS_MAX: usize = 24;
/// Deepest nesting of brackets in a rule, and of types in the schema.
const BRACKETS_MAX: usize = 16;
/// Most steps from one value to its members.
const ACCESSES_MAX: usize = 8;
/// Most types of a schema, common types in their places.
const TYPES_MAX: usize = 1 << 16;
/// Most colons of a name with its namespaces: two for each part but the first.
const NAME_COLONS_MAX: usize = 32;
/// Longest chain of memberships.
const MEMBERSHIPS_MAX: usize = 32;
