//! Reads the tests of a bundle: each request is resolved against the bundle, so that a test of something it does not have is a problem.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::request_parts::{RequestParts, attributes, profile};
use super::{
    CHANGED_MAX, ChangedAttributes, Expected, REQUESTS_MAX, RULES_ASKED_MAX, TestRequest, Tests,
};
use crate::model::{
    Action, ActionName, AgentId, ParseError, RegisteredAgent, Target, check_visible, parse_duration,
};
use crate::policy::PolicyBundle;
use crate::policy::files::BundleFiles;
use crate::policy::problem::{Problems, nearest};
use crate::policy::schema::OPERATE;
use crate::policy::toml_reader::{TableReader, TomlSource};

/// Reads every file of tests. What cannot be read is a problem, and left out.
pub(in crate::policy) fn read(
    files: &BundleFiles,
    bundle: &PolicyBundle,
    problems: &mut Problems,
) -> Tests {
    let mut tests = Tests::default();
    let mut names = BTreeMap::new();
    for (file, text) in files.tests() {
        let source = TomlSource { file, text };
        let Some(root) = source.read(problems) else {
            continue;
        };
        let mut reading = FileReading {
            source,
            bundle,
            tests: &mut tests,
            names: &mut names,
            defaults: RequestParts::default(),
            actions: BTreeMap::new(),
        };
        reading.read(root.get_ref(), problems);
    }
    bound(&mut tests, bundle, problems);
    tests
}

/// Refuses tests that would take too long.
fn bound(tests: &mut Tests, bundle: &PolicyBundle, problems: &mut Problems) {
    let changed: BTreeSet<_> = tests
        .requests
        .iter()
        .filter_map(|t| t.attributes.clone())
        .collect();
    if changed.len() > CHANGED_MAX {
        let message = format!(
            "{} cases give a target other attributes; at most {CHANGED_MAX}: each loads the bundle again",
            changed.len()
        );
        problems.add("tests", None, message);
        tests.requests.clear();
    }
    let count = tests.requests.len();
    let asked = count.saturating_mul(bundle.rules().count());
    if count > REQUESTS_MAX || asked > RULES_ASKED_MAX {
        let message = format!(
            "the tests have {count} requests; at most {REQUESTS_MAX}, and {RULES_ASKED_MAX} divided by the number of rules: narrow the matrices"
        );
        problems.add("tests", None, message);
        tests.requests.clear();
    }
}

/// One file of tests while it is read.
pub(super) struct FileReading<'a, 'b> {
    pub(super) source: TomlSource<'a>,
    pub(super) bundle: &'b PolicyBundle,
    pub(super) tests: &'b mut Tests,
    /// Every name of a case or matrix, with its place.
    names: &'b mut BTreeMap<String, String>,
    defaults: RequestParts,
    /// What requests for an action are, where they do not say otherwise.
    actions: BTreeMap<ActionName, RequestParts>,
}

impl<'a> FileReading<'a, '_> {
    fn read(&mut self, root: &'a DeTable<'a>, problems: &mut Problems) {
        let mut top = TableReader::new(self.source, "tests", None, root, problems);
        if let Some((at, table)) = top.table("defaults") {
            let mut fields =
                TableReader::new(self.source, "defaults", Some(at), table, top.problems());
            self.defaults = RequestParts::read_shared(self.bundle, &mut fields);
            fields.finish();
        }
        for (name, at, table) in top.named_tables("action") {
            let what = format!("action.\"{name}\"");
            let mut fields = TableReader::new(self.source, what, Some(at), table, top.problems());
            let parts = RequestParts::read_shared(self.bundle, &mut fields);
            match ActionName::parse(name) {
                Ok(name) if self.bundle.action(&name).is_some() => {
                    self.actions.insert(name, parts);
                }
                _ => fields.problem(self.unknown_action(name)),
            }
            fields.finish();
        }
        for (at, table) in top.tables("case") {
            self.case(at, table, top.problems());
        }
        for (at, table) in top.tables("matrix") {
            self.matrix(at, table, top.problems());
        }
        top.finish();
    }

    fn case(&mut self, at: &Spanned<DeValue<'a>>, table: &'a DeTable<'a>, problems: &mut Problems) {
        let what = titled("case", table);
        let mut fields = TableReader::new(self.source, what, Some(at), table, problems);
        let name = self.name(&mut fields);
        let agent = fields.required("agent", AgentId::parse);
        let agent = agent.and_then(|id| self.agent("agent", &id, &mut fields));
        let named = fields.optional("executor", AgentId::parse);
        let executor = agent
            .as_ref()
            .and_then(|agent| executor(agent, named, &mut fields));
        let action = fields.required("action", |text| Ok(text.to_owned()));
        let target = fields.optional("target", Target::parse_pair);
        let parts = RequestParts::read(self.bundle, &mut fields);
        let values = attributes(&mut fields);
        let expected = self.expected(&mut fields);
        let line = fields.line();
        let request = action
            .zip(expected)
            .and_then(|(action, expected)| match action.as_str() {
                OPERATE => {
                    if target.is_some() || parts.audience.is_some() || parts.parameters.is_some() {
                        fields.problem_at("action", "`operate` asks whether the agent may work at all: it has no target, audience or parameters");
                    }
                    if matches!(expected, Expected::Pending { .. }) {
                        fields.problem_at("expect", "`operate` is never pending: people cannot approve it");
                    }
                    Some((None, expected, parts.or(&self.defaults)))
                }
                action => {
                    let action = self.action_name("action", action, &mut fields)?;
                    let Some(target) = &target else {
                        fields.problem("target is missing");
                        return None;
                    };
                    let parts = self.parts_of(&action, &parts);
                    let action = self.action(&action, target, &parts, &mut fields)?;
                    Some((Some(action), expected, parts))
                }
            });
        if let (Some(name), Some(agent), Some((action, expected, parts))) = (name, agent, request) {
            self.tests.cases += 1;
            if action.is_none() && !values.is_empty() {
                fields.problem_at("target_attributes", "`operate` has no target");
            }
            let changed = action.as_ref().filter(|_| !values.is_empty());
            let attributes = changed.map(|action| {
                let target = action.target.clone();
                Arc::new(ChangedAttributes { target, values })
            });
            self.tests.requests.push(TestRequest {
                name: format!("case \"{}\"", name.escape_debug()),
                file: self.source.file.to_owned(),
                line,
                agent,
                executor,
                action,
                attributes,
                facts: parts.facts(),
                expected,
            });
        }
        fields.finish();
    }

    /// The parts that are not said, of `[action.NAME]` and `[defaults]`.
    pub(super) fn parts_of(&self, action: &ActionName, parts: &RequestParts) -> RequestParts {
        let of_action = self.actions.get(action).cloned().unwrap_or_default();
        parts.clone().or(&of_action.or(&self.defaults))
    }

    pub(super) fn name(&mut self, fields: &mut TableReader<'a, '_>) -> Option<String> {
        let name = fields.required("name", |text| {
            check_visible("name", text, NAME_BYTES_MAX)?;
            Ok(text.to_owned())
        })?;
        let line = fields.line().unwrap_or_default();
        let place = format!("{}:{line}", self.source.file);
        if let Some(first) = self.names.get(&name) {
            fields.problem(format!(
                "name \"{name}\" is taken by the one at {first}: each has a name of its own"
            ));
        }
        self.names.entry(name.clone()).or_insert(place);
        Some(name)
    }

    pub(super) fn agent(
        &self,
        key: &'static str,
        id: &AgentId,
        fields: &mut TableReader<'a, '_>,
    ) -> Option<Arc<RegisteredAgent>> {
        let agent = self.bundle.agent(id);
        if agent.is_none() {
            let near = nearest(id.as_str(), self.bundle.agents().map(|a| a.id.as_str()));
            fields.problem_at(
                key,
                format!("\"{id}\" is not an agent of agents.toml{near}"),
            );
        }
        agent
    }

    fn unknown_action(&self, name: &str) -> String {
        let near = nearest(name, self.bundle.actions().map(|a| a.name.as_str()));
        format!(
            "the catalogue has no action \"{}\"{near}",
            name.escape_debug()
        )
    }

    pub(super) fn action_name(
        &self,
        key: &'static str,
        name: &str,
        fields: &mut TableReader<'a, '_>,
    ) -> Option<ActionName> {
        let known = ActionName::parse(name).ok();
        let known = known.filter(|name| self.bundle.action(name).is_some());
        if known.is_none() {
            fields.problem_at(key, self.unknown_action(name));
        }
        known
    }

    /// The request for an action, checked as the broker checks one.
    pub(super) fn action(
        &self,
        name: &ActionName,
        target: &Target,
        parts: &RequestParts,
        fields: &mut TableReader<'a, '_>,
    ) -> Option<Action> {
        let Some(audience) = parts.audience.clone() else {
            fields.problem(format!(
                "the audience of \"{name}\" is missing: add audience here, or to [action.\"{name}\"]"
            ));
            return None;
        };
        let parameters = parts.parameters.clone().unwrap_or_default();
        let action = Action::new(name.clone(), audience, target.clone(), parameters);
        let action = action.map_err(|e| e.reason.to_string()).and_then(|action| {
            let checked = self.bundle.check_action(&action).map(|_| ());
            checked.map(|()| action).map_err(|e| e.to_string())
        });
        action
            .map_err(|why| {
                fields.problem(format!(
                    "the request for \"{name}\" on {target} is invalid: {why}"
                ))
            })
            .ok()
    }

    /// The decision that a case expects; a case that does not say expects a denial.
    fn expected(&self, fields: &mut TableReader<'a, '_>) -> Option<Expected> {
        let outcome = fields.optional("expect", Outcome::parse);
        let outcome = match fields.get("expect") {
            None => Outcome::Denied,
            Some(_) => outcome?,
        };
        let lifetime_s = fields.optional("lifetime", |text| parse_duration("lifetime", text));
        let profiles = fields.text_set("profiles", |text| profile(self.bundle, text));
        let delay_s = fields.optional("delay", |text| parse_duration("delay", text));
        if delay_s.is_some() && outcome != Outcome::Pending {
            fields.problem_at("delay", "only a pending request has a delay; write expect = \"pending\", or waited for the time that it has waited");
        }
        let has_rules = fields.get("rules").is_some();
        let rules = fields.text_set("rules", |text| Ok(text.to_owned()));
        for id in rules.iter().filter(|id| self.bundle.rule(id).is_none()) {
            let near = nearest(id, self.bundle.rules().map(|rule| rule.id.as_str()));
            fields.problem_at("rules", format!("no rule has the @id \"{id}\"{near}"));
        }
        if lifetime_s.is_some() && outcome == Outcome::Denied {
            fields.problem_at("lifetime", "a denied request has no token");
        }
        if !profiles.is_empty() && outcome != Outcome::Pending {
            fields.problem_at("profiles", "only a pending request needs approvals; write expect = \"pending\", or approvals for those that are there");
        }
        if has_rules && outcome != Outcome::Denied {
            fields.problem_at(
                "rules",
                "says which rules deny a request; this one is not denied",
            );
        }
        Some(match outcome {
            Outcome::Allowed => Expected::Allowed { lifetime_s },
            Outcome::Pending => {
                if profiles.is_empty() {
                    fields
                        .problem("profiles is missing: the approvals that a pending request needs");
                }
                Expected::Pending {
                    profiles,
                    delay_s,
                    lifetime_s,
                }
            }
            Outcome::Denied => Expected::Denied {
                rules: has_rules.then_some(rules),
            },
        })
    }
}

/// The agent that would execute what an advisory agent recommends in a case: the one that it names, or the only one.
fn executor(
    agent: &RegisteredAgent,
    named: Option<AgentId>,
    fields: &mut TableReader<'_, '_>,
) -> Option<AgentId> {
    let known: Vec<&AgentId> = agent.executors.iter().collect();
    match (named, known.as_slice()) {
        (Some(named), known) if known.contains(&&named) => Some(named),
        (Some(named), _) => {
            let message = format!("\"{named}\" is not among the executors of \"{}\"", agent.id);
            fields.problem_at("executor", message);
            None
        }
        (None, []) => None,
        (None, [only]) => Some((*only).clone()),
        (None, several) => {
            let names: Vec<&str> = several.iter().map(|id| id.as_str()).collect();
            let message = format!(
                "executor is missing: \"{}\" recommends to {}",
                agent.id,
                names.join(" or ")
            );
            fields.problem(message);
            None
        }
    }
}

/// A case or matrix with its name.
pub(super) fn titled(kind: &str, table: &DeTable<'_>) -> String {
    let name = table.get("name").and_then(|name| name.get_ref().as_str());
    name.map_or_else(
        || kind.to_owned(),
        |name| format!("{kind} \"{}\"", name.escape_debug()),
    )
}

/// The outcome that a test names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Allowed,
    Pending,
    Denied,
}

impl Outcome {
    pub(super) fn parse(text: &str) -> Result<Self, ParseError> {
        match text {
            "allowed" => Ok(Self::Allowed),
            "pending" => Ok(Self::Pending),
            "denied" => Ok(Self::Denied),
            _ => {
                let near = nearest(text, ["allowed", "pending", "denied"]);
                let reason = format!("must be \"allowed\", \"pending\" or \"denied\"{near}");
                Err(ParseError::new("expect", reason))
            }
        }
    }
}

/// Longest name of a case or matrix, in bytes.
const NAME_BYTES_MAX: usize = 200;
