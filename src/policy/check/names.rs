//! Names and values in rules that nothing in the bundle declares.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{EntityUid, EvalResult};

use super::grants::table_line;
use super::location;
use super::reading::ComparedText;
use super::report::{Check, Report};
use super::samples::{RuleCase, Samples};
use super::values::BINDINGS;
use crate::model::text::quote;
use crate::model::{Audience, Autonomy, EvidenceKind};
use crate::policy::calendar::WEEKDAYS;
use crate::policy::catalogue::{ParamSpec, ParamType};
use crate::policy::files::{BundleFiles, ENTITIES, PEOPLE};
use crate::policy::problem::nearest;
use crate::policy::rule::RuleInfo;
use crate::policy::schema::FACTS_MEMBER;

/// Refuses every entity and audience that the bundle does not declare, and every text that none of its entities has.
pub(super) fn check<'b>(
    samples: &Samples<'b>,
    cases: &[RuleCase<'b>],
    files: &BundleFiles,
    report: &mut Report<'_>,
) {
    let names = Names::of(samples);
    names.targets(samples, files, report);
    names.groups(samples, files, report);
    for case in cases {
        names.rule(samples, case, report);
    }
}

struct Names {
    /// Ids by type.
    entities: BTreeMap<String, Vec<String>>,
    /// Texts by type and attribute.
    texts: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Names {
    fn of(samples: &Samples<'_>) -> Self {
        let mut names = Self {
            entities: BTreeMap::new(),
            texts: BTreeMap::new(),
        };
        for (kind, entities) in samples.known_entities.kinds() {
            for known in entities {
                let ids = names.entities.entry(kind.clone()).or_default();
                ids.push(known.uid.id().unescaped().to_owned());
                for (name, value) in &known.attributes {
                    let key = (kind.clone(), name.to_owned());
                    texts(value, names.texts.entry(key).or_default());
                }
            }
        }
        names
    }

    fn rule(&self, samples: &Samples<'_>, case: &RuleCase<'_>, report: &mut Report<'_>) {
        let rule = case.info;
        let store = samples.bundle.evaluator.store();
        // Cedar itself refuses undeclared step-up profiles and actions.
        let is_undeclared = |uid: &&EntityUid| {
            let is_checked = matches!(uid.type_name().basename(), "StepUp" | "Action");
            !is_checked && !store.contains(uid) && !self.may_be_absent(case, uid)
        };
        let undeclared = case.literals.iter().filter(is_undeclared);
        for uid in undeclared.take(FINDINGS_MAX) {
            self.undeclared(rule, uid, report);
        }
        let variable = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
            let compared = case.reading.variables.get(&path);
            compared
                .into_iter()
                .flat_map(|compared| compared.texts.iter().map(|(text, at)| (text, *at)))
        };
        let audiences = &samples.bundle.people.audiences;
        let mut left = FINDINGS_MAX;
        for (text, condition) in variable(&["audience"]) {
            if left > 0 && !audiences.iter().any(|known| known.as_str() == text) {
                left -= 1;
                let near = nearest(text, audiences.iter().map(Audience::as_str));
                let message = format!(
                    "no validator of people.toml has the audience {}{near}",
                    quote(text)
                );
                let at = location::literal(&rule.text, text, condition);
                report.rule(Check::UndeclaredName, rule, at, message);
            }
        }
        let fixed: [(&[&str], &str, &[&str]); 2] = [
            (
                &["evidence", "kind"],
                "context.evidence.kind",
                &[EvidenceKind::JwtSvid.as_str()],
            ),
            (&["binding"], "context.binding", &BINDINGS),
        ];
        let zones = samples.bundle.evaluator.declared().calendar.zones();
        for zone in zones {
            let what = format!("context.local.{zone}.weekday");
            let days = variable(&["local", zone, "weekday"]);
            for (text, condition) in days.filter(|(text, _)| !WEEKDAYS.contains(&text.as_str())) {
                let known = WEEKDAYS.into_iter();
                self.unknown_text(rule, &what, (text, condition), known, report);
            }
        }
        for (path, what, known) in fixed {
            let texts = variable(path).filter(|(text, _)| !known.contains(&text.as_str()));
            for (text, condition) in texts {
                self.unknown_text(rule, what, (text, condition), known.iter().copied(), report);
            }
        }
        self.presences(samples, case, report);
        self.audiences_of_targets(samples, case, report);
        let mut left = FINDINGS_MAX;
        for compared in BTreeSet::from_iter(&case.reading.texts) {
            if left > 0 && self.text(case, compared, report) {
                left -= 1;
            }
        }
    }

    /// Audiences that targets have in an attribute, where a rule compares `context.audience` with attributes, and that no validator has.
    fn audiences_of_targets(
        &self,
        samples: &Samples<'_>,
        case: &RuleCase<'_>,
        report: &mut Report<'_>,
    ) {
        let compared = case.reading.variables.get(&["audience".to_owned()][..]);
        let Some(compared) = compared.filter(|compared| compared.with_entities) else {
            return;
        };
        let known = &samples.bundle.people.audiences;
        let kinds = case.actions.iter().flatten().flat_map(|a| &a.target_types);
        let kinds: BTreeSet<&String> = kinds.collect();
        let targets = kinds
            .iter()
            .filter_map(|kind| case.population.targets.get(*kind));
        let mut told = BTreeSet::new();
        for target in targets.flatten() {
            for attribute in &compared.attributes {
                let Some(text) = samples.text_of(target, attribute) else {
                    continue;
                };
                let is_known = known.iter().any(|known| known.as_str() == text);
                if is_known || told.len() >= FINDINGS_MAX || !told.insert(text.clone()) {
                    continue;
                }
                let near = nearest(&text, known.iter().map(Audience::as_str));
                let message = format!(
                    "compares the audience with `{attribute}`, which is {} for {}, and no validator of people.toml has it{near}",
                    quote(&text),
                    samples.known_entities.name(target)
                );
                let at = location::member(&case.info.text, attribute, 0);
                report.rule(Check::UndeclaredName, case.info, at, message);
            }
        }
    }

    /// Names that `has` asks for, and that nothing in a request of the rule can have.
    fn presences(&self, samples: &Samples<'_>, case: &RuleCase<'_>, report: &mut Report<'_>) {
        if case.reading.presences.is_empty() {
            return;
        }
        let mut known: BTreeSet<&str> = samples.bundle.catalogue.members();
        known.extend(samples.bundle.evaluator.declared().calendar.zones());
        for action in case.actions.iter().flatten() {
            parameter_names(&action.parameters, &mut known);
        }
        let facts: BTreeSet<&str> = samples.bundle.facts().map(|f| f.name.as_str()).collect();
        let counts: BTreeSet<&str> = samples.bundle.counts().map(|c| c.name.as_str()).collect();
        for ((record, name), condition) in &case.reading.presences {
            let (known, nowhere) = match *record {
                Some(FACTS_MEMBER) => (&facts, "facts.toml has no such fact"),
                Some(_) => (&counts, "counts.toml has no such count"),
                None => (
                    &known,
                    "no entity, no parameter of its actions and no part of the context has this name",
                ),
            };
            if known.contains(name.as_str()) {
                continue;
            }
            let near = nearest(name, known.iter().copied());
            let message = format!("`has {name}` is never true: {nowhere}{near}");
            let places = location::conditions(&case.info.text);
            let from = places.get(*condition).copied();
            let at = from
                .and_then(|from| location::member(&case.info.text, name, from))
                .or(from);
            report.rule(Check::UndeclaredName, case.info, at, message);
        }
    }

    /// Entities that targets name in attributes and groups.
    fn targets(&self, samples: &Samples<'_>, files: &BundleFiles, report: &mut Report<'_>) {
        let store = samples.bundle.evaluator.store();
        let text = files.text(ENTITIES).unwrap_or_default();
        let mut left = FINDINGS_MAX;
        for entity in store.entities().iter() {
            let uid = entity.uid();
            if !samples
                .bundle
                .catalogue
                .types()
                .contains(&uid.type_name().to_string())
            {
                continue;
            }
            let mut named: BTreeSet<EntityUid> = BTreeSet::new();
            for (_, value) in entity.attrs() {
                references(&value.unwrap_or(EvalResult::Bool(false)), &mut named);
            }
            named.extend(
                store
                    .entities()
                    .ancestors(&uid)
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
            // Cedar itself refuses undeclared step-up profiles.
            let is_declared = |other: &&EntityUid| {
                store.contains(other) || other.type_name().basename() == "StepUp"
            };
            for other in named.iter().filter(|other| !is_declared(other)) {
                if left == 0 {
                    return;
                }
                left -= 1;
                let kind = other.type_name().to_string();
                let id = other.id().unescaped();
                let known = self.entities.get(&kind).into_iter().flatten();
                let near = nearest(id, known.map(String::as_str));
                let message =
                    format!("{uid} names {other}, which nothing in this bundle declares{near}");
                let own = format!("\"{}\"", uid.id().unescaped());
                let line = text
                    .lines()
                    .position(|line| line.contains(&own))
                    .map(|at| at + 1);
                report.thing(
                    Check::UndeclaredName,
                    &uid.to_string(),
                    (ENTITIES, line),
                    message,
                );
            }
        }
    }

    /// Groups that profiles name.
    fn groups(&self, samples: &Samples<'_>, files: &BundleFiles, report: &mut Report<'_>) {
        let text = files.text(PEOPLE).unwrap_or_default();
        let known: Vec<&str> = self
            .entities
            .get("PersonGroup")
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        for profile in samples.bundle.people.profiles.values() {
            // A target's attribute is looked at with the targets.
            if profile.target_attribute.is_some() || known.contains(&profile.group.as_str()) {
                continue;
            }
            let near = nearest(profile.group.as_str(), known.iter().copied());
            let message = format!(
                "profile {}: no person is in the group \"{}\"{near}",
                profile.name, profile.group
            );
            let line = table_line(text, &format!("profile.{}", profile.name));
            report.thing(
                Check::UndeclaredName,
                profile.name.as_str(),
                (PEOPLE, line),
                message,
            );
        }
    }

    /// Whether an action of the rule is for targets that the bundle need not have.
    fn may_be_absent(&self, case: &RuleCase<'_>, uid: &EntityUid) -> bool {
        let kind = uid.type_name().to_string();
        let mut actions = case.actions.iter().flatten();
        actions.any(|action| action.open_targets && action.target_types.contains(&kind))
    }

    fn undeclared(&self, rule: &RuleInfo, uid: &EntityUid, report: &mut Report<'_>) {
        let kind = uid.type_name().to_string();
        let id = uid.id().unescaped();
        let known = self.entities.get(&kind).into_iter().flatten();
        let near = nearest(id, known.map(String::as_str));
        let declare = match kind.as_str() {
            "AgentGroup" => "no agent of agents.toml is in this group",
            "PersonGroup" => "no person of people.toml is in this group",
            "Environment" => "`environments` of agents.toml does not have it",
            "Agent" => "agents.toml does not have it",
            "Person" => "people.toml does not have it",
            _ => "entities.json does not have it",
        };
        let ids = self.entities.get(&kind).map_or(&[][..], Vec::as_slice);
        let there = match ids {
            // The nearest is named, or there are too many.
            _ if !near.is_empty() || ids.is_empty() || ids.len() > NAMED_MAX => String::new(),
            ids => {
                let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
                let ids: Vec<String> = ids.into_iter().map(quote).collect();
                format!("; declared: {}", ids.join(", "))
            }
        };
        let message = format!("nothing in this bundle is {uid}{near}: {declare}{there}");
        let at = location::entity(&rule.text, &kind, id);
        report.rule(Check::UndeclaredName, rule, at, message);
    }

    /// A text that an attribute is compared with; whether it is a finding.
    fn text(&self, case: &RuleCase<'_>, compared: &ComparedText, report: &mut Report<'_>) -> bool {
        let types: BTreeSet<String> = match compared.root {
            "principal" => BTreeSet::from(["Agent".to_owned()]),
            _ => {
                let actions = case.actions.iter().flatten();
                actions
                    .flat_map(|action| action.target_types.iter().cloned())
                    .collect()
            }
        };
        let mut known: BTreeSet<&str> = BTreeSet::new();
        for kind in &types {
            let key = (kind.clone(), compared.attribute.clone());
            known.extend(
                self.texts
                    .get(&key)
                    .into_iter()
                    .flatten()
                    .map(String::as_str),
            );
        }
        if (compared.root, compared.attribute.as_str()) == ("principal", "autonomy") {
            known.extend(Autonomy::ALL.map(Autonomy::as_str));
        }
        // Without any entity the rule never matches, which is said elsewhere.
        if known.is_empty() || known.contains(compared.text.as_str()) {
            return false;
        }
        let what = format!("{}.{}", compared.root, compared.attribute);
        self.unknown_text(
            case.info,
            &what,
            (&compared.text, compared.condition),
            known.iter().copied(),
            report,
        );
        true
    }

    fn unknown_text<'n>(
        &self,
        rule: &RuleInfo,
        what: &str,
        (text, condition): (&str, usize),
        known: impl Iterator<Item = &'n str> + Clone,
        report: &mut Report<'_>,
    ) {
        let near = nearest(text, known.clone());
        let named: Vec<String> = known.clone().take(NAMED_MAX).map(quote).collect();
        let more = known.count().saturating_sub(named.len());
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let message = format!(
            "{what} is never {}{near}: it is {}{more}",
            quote(text),
            named.join(", ")
        );
        let at = location::literal(&rule.text, text, condition);
        report.rule(Check::UndeclaredValue, rule, at, message);
    }
}

/// The names of these parameters, and of the members of records in them.
fn parameter_names<'a>(specs: &'a BTreeMap<String, ParamSpec>, found: &mut BTreeSet<&'a str>) {
    for (name, spec) in specs {
        found.insert(name);
        let mut ty = &spec.ty;
        while let ParamType::Set(of) = ty {
            ty = of;
        }
        if let ParamType::Record(members) = ty {
            parameter_names(members, found);
        }
    }
}

/// The entities in a value.
pub(in crate::policy) fn references(value: &EvalResult, found: &mut BTreeSet<EntityUid>) {
    match value {
        EvalResult::EntityUid(uid) => drop(found.insert(uid.clone())),
        EvalResult::Set(items) => items.iter().for_each(|item| references(item, found)),
        EvalResult::Record(members) => members
            .iter()
            .for_each(|(_, value)| references(value, found)),
        _ => {}
    }
}

/// Adds the texts in a value.
fn texts(value: &EvalResult, found: &mut BTreeSet<String>) {
    match value {
        EvalResult::String(text) => drop(found.insert(text.clone())),
        EvalResult::Set(items) => items.iter().for_each(|item| texts(item, found)),
        _ => {}
    }
}

/// Most findings of one kind about one rule, and about references of targets: each reads the rule's text again.
const FINDINGS_MAX: usize = 256;
/// Most known texts that a message names.
const NAMED_MAX: usize = 5;
