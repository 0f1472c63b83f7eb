//! Matrices: every request of some agents, actions and targets, with the lines that say what is expected of which.

use std::collections::BTreeSet;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::reading::{FileReading, Outcome, titled};
use super::request_parts::{RequestParts, profile};
use super::{Expected, REQUESTS_MAX, TestRequest};
use crate::model::{ActionName, AgentId, ParseError, Target, parse_duration};
use crate::policy::problem::{Problems, nearest};
use crate::policy::toml_reader::TableReader;

/// An expectation of a matrix: `None` stands for all.
struct Expectation {
    agent: Option<AgentId>,
    action: Option<ActionName>,
    target: Option<Target>,
    expected: Expected,
    line: Option<usize>,
    is_used: bool,
}

impl<'a> FileReading<'a, '_> {
    pub(super) fn matrix(
        &mut self,
        at: &Spanned<DeValue<'a>>,
        table: &'a DeTable<'a>,
        problems: &mut Problems,
    ) {
        let what = titled("matrix", table);
        let mut fields = TableReader::new(self.source, &what, Some(at), table, problems);
        let name = self.name(&mut fields);
        let agents = self.all_or_listed(
            &mut fields,
            "agents",
            AgentId::parse,
            || self.bundle.agents().map(|agent| agent.id.clone()).collect(),
            |this, id, fields| this.agent("agents", id, fields).is_some(),
        );
        let actions = self.all_or_listed(
            &mut fields,
            "actions",
            ActionName::parse,
            || self.bundle.actions().map(|a| a.name.clone()).collect(),
            |this, name, fields| this.action_name("actions", name.as_str(), fields).is_some(),
        );
        let targets = self.all_or_listed(
            &mut fields,
            "targets",
            Target::parse_pair,
            || {
                self.bundle
                    .evaluator
                    .store()
                    .targets(self.bundle.catalogue.types())
            },
            |this, target, fields| this.is_target(target, &actions, fields),
        );
        let parts = RequestParts::read_shared(self.bundle, &mut fields);
        let mut expectations = self.expectations(&mut fields);
        let (line, file) = (fields.line(), self.source.file.to_owned());
        for action in &actions {
            let Some(known) = self.bundle.action(action) else {
                continue;
            };
            let parts = self.parts_of(action, &parts);
            let fitting = targets
                .iter()
                .filter(|target| known.target_types.contains(&target.kind));
            let fitting: Vec<&Target> = fitting.collect();
            let more = fitting.len().saturating_mul(agents.len());
            if self.tests.requests.len().saturating_add(more) > REQUESTS_MAX {
                fields.problem(format!(
                    "with it the tests have more than {REQUESTS_MAX} requests: narrow the agents, actions or targets of matrices"
                ));
                break;
            }
            for target in fitting {
                let Some(asked) = self.action(action, target, &parts, &mut fields) else {
                    // The same for every other target.
                    break;
                };
                for id in &agents {
                    let Some(agent) = self.bundle.agent(id) else {
                        continue;
                    };
                    let stated = expectations.iter_mut().find(|e| {
                        e.agent.as_ref().is_none_or(|a| a == id)
                            && e.action.as_ref().is_none_or(|a| a == action)
                            && e.target.as_ref().is_none_or(|t| t == target)
                    });
                    let (expected, at) = match stated {
                        Some(stated) => {
                            stated.is_used = true;
                            (stated.expected.clone(), stated.line)
                        }
                        None => (Expected::Denied { rules: None }, line),
                    };
                    let name = name.as_deref().unwrap_or_default().escape_debug();
                    // What an advisory agent recommends, to each of its executors.
                    let executors = agent.executors.iter().cloned().map(Some);
                    let own = agent.executors.is_empty().then_some(None);
                    for executor in executors.chain(own) {
                        let to = executor.as_ref().map(|id| format!(" for {id}"));
                        let to = to.unwrap_or_default();
                        self.tests.requests.push(TestRequest {
                            name: format!("matrix \"{name}\": {id}{to}, {action} on {target}"),
                            file: file.clone(),
                            line: at,
                            agent: Arc::clone(&agent),
                            executor,
                            action: Some(asked.clone()),
                            attributes: None,
                            facts: parts.facts(),
                            expected: expected.clone(),
                        });
                    }
                }
            }
        }
        self.tests.matrices += 1;
        for unused in expectations.iter().filter(|e| !e.is_used) {
            let message = format!(
                "{what}: expect: no request is left for this line: it fits none of the matrix, or earlier lines have them all; correct or remove it"
            );
            fields.problems().add(&file, unused.line, message);
        }
        fields.finish();
    }

    /// `"*"` for all, or a list of some that the bundle has.
    fn all_or_listed<T: Ord>(
        &self,
        fields: &mut TableReader<'a, '_>,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, ParseError>,
        all: impl FnOnce() -> Vec<T>,
        is_known: impl Fn(&Self, &T, &mut TableReader<'a, '_>) -> bool,
    ) -> Vec<T> {
        if fields.is_all(key) {
            return all();
        }
        if fields.get(key).is_none() {
            fields.problem(format!("{key} is missing: a list, or \"*\" for all"));
        }
        let mut listed: Vec<T> = fields.text_set(key, parse).into_iter().collect();
        if listed.is_empty() && fields.get(key).is_some() {
            fields.problem_at(key, "is empty: a matrix without requests tests nothing");
        }
        listed.retain(|item| is_known(self, item, fields));
        listed
    }

    /// Whether an action of a matrix can be done to this target.
    fn is_target(
        &self,
        target: &Target,
        actions: &[ActionName],
        fields: &mut TableReader<'a, '_>,
    ) -> bool {
        let known = actions.iter().filter_map(|name| self.bundle.action(name));
        let fitting: Vec<_> = known
            .filter(|action| action.target_types.contains(&target.kind))
            .collect();
        let why = if fitting.is_empty() {
            format!(
                "no action of the matrix is done to a target of type `{}`",
                target.kind
            )
        } else if fitting.iter().any(|action| action.open_targets)
            || self.bundle.evaluator.store().contains_target(target)
        {
            return true;
        } else {
            let all = self
                .bundle
                .evaluator
                .store()
                .targets(self.bundle.catalogue.types());
            let of_type = all.iter().filter(|other| other.kind == target.kind);
            let near = nearest(&target.id, of_type.map(|other| other.id.as_str()));
            format!("entities.json has no {target}{near}")
        };
        fields.problem_at("targets", why);
        false
    }

    /// The lines of a matrix: agent, action, target, outcome, and the profiles of a pending one.
    fn expectations(&self, fields: &mut TableReader<'a, '_>) -> Vec<Expectation> {
        let mut all = Vec::new();
        for (text, line) in fields.texts("expect") {
            match self.expectation(text) {
                Ok((agent, action, target, expected)) => all.push(Expectation {
                    agent,
                    action,
                    target,
                    expected,
                    line,
                    is_used: false,
                }),
                Err(e) => {
                    let message = format!("{}: expect: {}", fields.what(), e.reason);
                    fields.problems().add(self.source.file, line, message);
                }
            }
        }
        all
    }

    #[allow(clippy::type_complexity)]
    fn expectation(
        &self,
        text: &str,
    ) -> Result<
        (
            Option<AgentId>,
            Option<ActionName>,
            Option<Target>,
            Expected,
        ),
        ParseError,
    > {
        let words = words(text);
        let [agent, action, target, outcome, profiles @ ..] = words.as_slice() else {
            return Err(ParseError::new(
                "expect",
                "must be: agent action target outcome, such as \"triage case.read Case::INC-8841 allowed\"; * stands for all",
            ));
        };
        let wildcard = |word: &str| (word != "*").then(|| word.to_owned());
        let agent = wildcard(agent).map(|a| AgentId::parse(&a)).transpose()?;
        let action = wildcard(action)
            .map(|a| ActionName::parse(&a))
            .transpose()?;
        let target = wildcard(target)
            .map(|t| Target::parse_pair(&t))
            .transpose()?;
        let (profiles, delay_s) = match profiles {
            [profiles @ .., or, delay] if or == "or" => {
                (profiles, Some(parse_duration("delay", delay)?))
            }
            profiles => (profiles, None),
        };
        let profiles = profiles.iter().map(|name| profile(self.bundle, name));
        let profiles = profiles.collect::<Result<BTreeSet<_>, _>>()?;
        let (outcome, is_plain) = (Outcome::parse(outcome)?, profiles.is_empty());
        let expected = match outcome {
            Outcome::Pending if is_plain => {
                return Err(ParseError::new(
                    "expect",
                    "a pending request needs profiles: write them after \"pending\"",
                ));
            }
            Outcome::Pending => Expected::Pending {
                delay_s,
                profiles,
                lifetime_s: None,
            },
            Outcome::Allowed if is_plain => Expected::Allowed { lifetime_s: None },
            Outcome::Denied if is_plain => Expected::Denied { rules: None },
            Outcome::Allowed | Outcome::Denied => {
                return Err(ParseError::new(
                    "expect",
                    "only a pending request has profiles",
                ));
            }
        };
        Ok((agent, action, target, expected))
    }
}

/// Words between blanks; what stands in double quotes is one, without the quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (None::<String>, false);
    for c in text.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
