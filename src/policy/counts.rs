//! Counts: how many requests, denials, tokens or uses there were a short while ago, for rules that read `context.counts.NAME`.
//!
//! In: `counts.toml`. Out: what the bundle declares of each count, and which counts the rules in scope of a request read. The value
//! that a count has now is the journal's.

use std::collections::{BTreeMap, BTreeSet};

use super::PolicyBundle;
use super::catalogue::{Catalogue, CatalogueAction};
use super::files::COUNTS;
use super::problem::{Problems, nearest};
use super::sentences::Things;
use super::toml_reader::{TableReader, TomlSource, title};
use crate::model::text::quote;
use crate::model::{
    ActionName, AgentId, COUNT_WINDOW_MAX_S, CountKey, CountKind, CountName, CountSubject,
    CountValues, ParseError, PersonId, Target, format_seconds, parse_duration,
};

/// What a bundle declares of a count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredCount {
    /// Its name in rules.
    pub name: CountName,
    /// What is counted, for people.
    pub title: String,
    /// What is counted.
    pub of: CountKind,
    /// Whose events are counted together.
    pub per: CountPer,
    /// Whether each action is counted by itself.
    pub per_action: bool,
    /// The actions that are counted.
    pub actions: BTreeSet<ActionName>,
    /// Whether these are all that the catalogue has.
    pub counts_every_action: bool,
    /// How far back, in seconds.
    pub within_s: u32,
}

/// Whose events are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountPer {
    /// Those of all agents.
    Everyone,
    /// Those of one agent.
    Agent,
    /// Those of the agents of one owner.
    Owner,
}

impl DeclaredCount {
    /// The count of a request for an action by an agent of this owner.
    pub fn key(&self, agent: &AgentId, owner: &PersonId, action: &ActionName) -> CountKey {
        CountKey {
            name: self.name.clone(),
            subject: match self.per {
                CountPer::Everyone => CountSubject::Everyone,
                CountPer::Agent => CountSubject::Agent(agent.clone()),
                CountPer::Owner => CountSubject::Owner(owner.clone()),
            },
            action: self.per_action.then(|| action.clone()),
        }
    }

    /// What is counted per, as in `counts.toml`.
    fn per_text(&self) -> String {
        let subject = match self.per {
            CountPer::Everyone => None,
            CountPer::Agent => Some(AGENT),
            CountPer::Owner => Some(OWNER),
        };
        let action = self.per_action.then_some(ACTION);
        let parts: Vec<&str> = subject.into_iter().chain(action).collect();
        match parts.is_empty() {
            true => "everyone together".to_owned(),
            false => parts.join(", "),
        }
    }
}

/// The counts that a bundle declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DeclaredCounts {
    all: BTreeMap<CountName, DeclaredCount>,
    /// The actions and groups that each names, with their lines, until they are resolved.
    named: BTreeMap<CountName, Vec<(String, Option<usize>)>>,
}

/// Most counts of a bundle: a decision rests on each that the rules in scope read.
const COUNTS_MAX: usize = 8;
/// The shortest window, in seconds.
const WITHIN_MIN_S: u32 = 60;
const AGENT: &str = "agent";
const OWNER: &str = "owner";
const ACTION: &str = "action";

impl DeclaredCounts {
    /// Reads `counts.toml`; without it there are none. The actions are resolved by [`Self::resolve`].
    pub(super) fn read(text: Option<&str>, problems: &mut Problems) -> Self {
        let mut counts = Self::default();
        let Some(text) = text else {
            return counts;
        };
        let source = TomlSource { file: COUNTS, text };
        let Some(root) = source.read(problems) else {
            return counts;
        };
        let mut top = TableReader::new(source, "counts", None, root.get_ref(), problems);
        for (name, at, table) in top.named_tables("count") {
            let what = format!("count.{name}");
            let mut fields = TableReader::new(source, what, Some(at), table, top.problems());
            let name = CountName::parse(name)
                .map_err(|error| {
                    let rule = error.reason;
                    fields.problem(format!("the name {rule}: rules read context.counts.NAME"));
                })
                .ok();
            let title = fields.required("title", title);
            let of = fields.required("of", kind);
            let (per, per_action) = per(&mut fields);
            let named = fields.get("actions").map(|at| {
                let named = fields.texts("actions");
                if at.get_ref().as_array().is_some_and(|list| list.is_empty()) {
                    fields.invalid(
                        "actions",
                        at,
                        "must name an action or a group, or be absent for every action",
                    );
                }
                named
            });
            let within_s = fields.required("within", within);
            fields.finish();
            // With another mistake in it the rules that read it are not wrong, too.
            if let Some(name) = name {
                let count = DeclaredCount {
                    name: name.clone(),
                    title: title.unwrap_or_default(),
                    of: of.unwrap_or(CountKind::Requests),
                    per,
                    per_action,
                    actions: BTreeSet::new(),
                    counts_every_action: named.is_none(),
                    within_s: within_s.unwrap_or(WITHIN_MIN_S),
                };
                counts.all.insert(name.clone(), count);
                if let Some(named) = named {
                    let named = named.into_iter();
                    let named = named.map(|(text, line)| (text.to_owned(), line));
                    counts.named.insert(name, named.collect());
                }
            }
        }
        if counts.all.len() > COUNTS_MAX {
            top.problem(format!("must have at most {COUNTS_MAX} counts"));
        }
        top.finish();
        counts
    }

    /// Finds the actions that counts name, one by one or by a group.
    pub(super) fn resolve(&mut self, catalogue: &Catalogue, problems: &mut Problems) {
        for count in self.all.values_mut() {
            if count.counts_every_action {
                count.actions = catalogue.actions().map(|a| a.name.clone()).collect();
            }
        }
        for (name, named) in std::mem::take(&mut self.named) {
            let mut actions = BTreeSet::new();
            for (text, line) in named {
                let is_of = |action: &&CatalogueAction| {
                    action.name.as_str() == text || action.groups.contains(&text)
                };
                let of_name: BTreeSet<ActionName> = catalogue
                    .actions()
                    .filter(is_of)
                    .map(|action| action.name.clone())
                    .collect();
                if !catalogue.group_names().contains(text.as_str()) {
                    let near = nearest(&text, catalogue.group_names());
                    let text = text.escape_debug();
                    let message = format!(
                        "count.{name}: actions: \"{text}\" is no action and no group of actions of schema.cedarschema{near}; expected a bare \
                         name, such as \"service.deploy\""
                    );
                    problems.add(COUNTS, line, message);
                } else if of_name.is_empty() {
                    let text = text.escape_debug();
                    let message =
                        format!("count.{name}: actions: the group \"{text}\" has no actions");
                    problems.add(COUNTS, line, message);
                }
                actions.extend(of_name);
            }
            if let Some(count) = self.all.get_mut(&name) {
                count.actions = actions;
            }
        }
    }

    /// The declarations, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &DeclaredCount> {
        self.all.values()
    }

    /// The values that Cedar is given: those of a request, and 0 for the others.
    pub(super) fn values(&self, of_request: &CountValues) -> CountValues {
        let names = self.all.keys();
        names
            .map(|name| (name.clone(), of_request.get(name).copied().unwrap_or(0)))
            .collect()
    }

    /// The declaration of each count, as texts for the sentences about a changed bundle.
    pub(super) fn things(&self) -> Things {
        let texts = |count: &DeclaredCount| {
            let actions: Vec<&str> = count.actions.iter().map(ActionName::as_str).collect();
            let actions = match count.counts_every_action {
                true => "every action".to_owned(),
                false => actions.join(", "),
            };
            let texts = BTreeMap::from([
                ("title".to_owned(), quote(&count.title)),
                ("of".to_owned(), count.of.as_str().to_owned()),
                ("per".to_owned(), count.per_text()),
                ("actions".to_owned(), actions),
                ("within".to_owned(), format_seconds(count.within_s.into())),
            ]);
            (count.name.to_string(), texts)
        };
        self.iter().map(texts).collect()
    }
}

fn kind(text: &str) -> Result<CountKind, ParseError> {
    CountKind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| {
            ParseError::new(
                "of",
                "must be \"requests\", \"denials\", \"tokens\" or \"uses\"",
            )
        })
}

fn within(text: &str) -> Result<u32, ParseError> {
    let seconds = parse_duration("within", text)?;
    match (WITHIN_MIN_S..=COUNT_WINDOW_MAX_S).contains(&seconds) {
        true => Ok(seconds),
        false => Err(ParseError::new("within", "must be 1m to 24h")),
    }
}

/// Whose events are counted together, and whether each action is counted by itself.
fn per(fields: &mut TableReader<'_, '_>) -> (CountPer, bool) {
    const FORM: &str =
        "must be a list of \"agent\" or \"owner\", and \"action\"; [] counts everyone's together";
    let Some(at) = fields.get("per") else {
        fields.problem(format!("per is missing: it {FORM}"));
        return (CountPer::Everyone, false);
    };
    let texts = fields.texts("per");
    let parts: BTreeSet<&str> = texts.iter().map(|(text, _)| *text).collect();
    let subject = match (parts.contains(AGENT), parts.contains(OWNER)) {
        (true, false) => CountPer::Agent,
        (false, true) => CountPer::Owner,
        (false, false) | (true, true) => CountPer::Everyone,
    };
    let is_known = parts
        .iter()
        .all(|part| [AGENT, OWNER, ACTION].contains(part));
    let names_both = parts.contains(AGENT) && parts.contains(OWNER);
    if !is_known || names_both || parts.len() != texts.len() {
        fields.invalid("per", at, FORM);
    }
    (subject, parts.contains(ACTION))
}

impl PolicyBundle {
    /// The declared counts, by name.
    pub fn counts(&self) -> impl Iterator<Item = &DeclaredCount> {
        self.evaluator.declared().counts.iter()
    }

    /// What the bundle declares of a count.
    pub fn count(&self, name: &CountName) -> Option<&DeclaredCount> {
        self.evaluator.declared().counts.all.get(name)
    }

    /// The rules that read a count, by id.
    pub fn rules_reading_count(&self, name: &CountName) -> Vec<String> {
        self.rule_counts.rules_reading(name)
    }

    /// The counts that rules in scope of a request read: those whose scope can match the action on the target by this agent.
    pub fn counts_in_scope(
        &self,
        agent: &AgentId,
        action: &ActionName,
        target: &Target,
    ) -> BTreeSet<&CountName> {
        self.rule_counts.in_scope(self, [agent], action, target)
    }
}
