//! Reads the tests of a bundle: each request is resolved against the bundle, so that a test of something it does not have is a problem.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    CHANGED_MAX, ChangedAttributes, Expected, Facts, REQUESTS_MAX, RULES_ASKED_MAX, TestRequest,
    Tests,
};
use crate::model::{
    Action, ActionName, AgentId, Audience, EvidenceAges, Param, ParseError, ProfileName,
    RegisteredAgent, Target, Timestamp, check_visible, parse_duration,
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
struct FileReading<'a, 'b> {
    source: TomlSource<'a>,
    bundle: &'b PolicyBundle,
    tests: &'b mut Tests,
    /// Every name of a case or matrix, with its place.
    names: &'b mut BTreeMap<String, String>,
    defaults: RequestParts,
    /// What requests for an action are, where they do not say otherwise.
    actions: BTreeMap<ActionName, RequestParts>,
}

/// The parts of a request that cases, matrices, `[defaults]` and `[action.NAME]` may have.
#[derive(Debug, Clone, Default)]
struct RequestParts {
    audience: Option<Audience>,
    parameters: Option<BTreeMap<String, Param>>,
    attributes: BTreeMap<String, String>,
    approvals: Option<BTreeSet<ProfileName>>,
    ttl_s: Option<u32>,
    issued_age_s: Option<u32>,
    verified_age_s: Option<u32>,
    task_age_s: Option<u32>,
    at: Option<Timestamp>,
}

impl RequestParts {
    /// These parts, and those of another where these have none.
    fn or(self, other: &Self) -> Self {
        Self {
            audience: self.audience.or_else(|| other.audience.clone()),
            parameters: self.parameters.or_else(|| other.parameters.clone()),
            attributes: match self.attributes.is_empty() {
                true => other.attributes.clone(),
                false => self.attributes,
            },
            approvals: self.approvals.or_else(|| other.approvals.clone()),
            ttl_s: self.ttl_s.or(other.ttl_s),
            issued_age_s: self.issued_age_s.or(other.issued_age_s),
            verified_age_s: self.verified_age_s.or(other.verified_age_s),
            task_age_s: self.task_age_s.or(other.task_age_s),
            at: self.at.or(other.at),
        }
    }

    fn facts(&self) -> Facts {
        let ms = |seconds: Option<u32>, default: u32| {
            i64::from(seconds.unwrap_or(default)).saturating_mul(1000)
        };
        Facts {
            ttl_ms: ms(self.ttl_s, TTL_S),
            approvals: self.approvals.clone().unwrap_or_default(),
            ages: EvidenceAges {
                issued_ms: ms(self.issued_age_s, ISSUED_AGE_S),
                verified_ms: ms(self.verified_age_s, 0),
            },
            task_age_ms: ms(self.task_age_s, 0),
            at: self.at.unwrap_or(Timestamp::from_secs(AT_S)),
        }
    }
}

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
    fn read(&mut self, root: &'a DeTable<'a>, problems: &mut Problems) {
        let mut top = TableReader::new(self.source, "tests", None, root, problems);
        if let Some((at, table)) = top.table("defaults") {
            let mut fields =
                TableReader::new(self.source, "defaults", Some(at), table, top.problems());
            self.defaults = self.parts(&mut fields);
            fields.finish();
        }
        for (name, at, table) in top.named_tables("action") {
            let what = format!("action.\"{name}\"");
            let mut fields = TableReader::new(self.source, what, Some(at), table, top.problems());
            let parts = self.parts(&mut fields);
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
        let action = fields.required("action", |text| Ok(text.to_owned()));
        let target = fields.optional("target", Target::parse_pair);
        let parts = self.parts(&mut fields);
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
            let attributes = changed_attributes(action.as_ref(), &parts);
            if attributes.is_none() && !parts.attributes.is_empty() {
                fields.problem_at("target_attributes", "`operate` has no target");
            }
            self.tests.requests.push(TestRequest {
                name: format!("case \"{}\"", name.escape_debug()),
                file: self.source.file.to_owned(),
                line,
                agent,
                action,
                attributes,
                facts: parts.facts(),
                expected,
            });
        }
        fields.finish();
    }

    fn matrix(
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
        let parts = self.parts(&mut fields);
        if !parts.attributes.is_empty() {
            fields.problem_at("target_attributes", "is for a single target: write cases");
        }
        let mut expectations = self.expectations(&mut fields);
        let (line, file) = (fields.line(), self.source.file.to_owned());
        let mut count = 0_usize;
        for action in &actions {
            let Some(known) = self.bundle.action(action) else {
                continue;
            };
            let parts = self.parts_of(action, &parts);
            let fitting = targets
                .iter()
                .filter(|target| known.target_types.contains(&target.kind));
            let fitting: Vec<&Target> = fitting.collect();
            count = count.saturating_add(fitting.len().saturating_mul(agents.len()));
            if count > REQUESTS_MAX {
                fields.problem(format!(
                    "has more than {REQUESTS_MAX} requests: narrow its agents, actions or targets"
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
                    let name = name.as_deref().unwrap_or_default();
                    self.tests.requests.push(TestRequest {
                        name: format!(
                            "matrix \"{}\": {id}, {action} on {target}",
                            name.escape_debug()
                        ),
                        file: file.clone(),
                        line: at,
                        agent,
                        action: Some(asked.clone()),
                        attributes: None,
                        facts: parts.facts(),
                        expected,
                    });
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

    /// The parts that are not said, of `[action.NAME]` and `[defaults]`.
    fn parts_of(&self, action: &ActionName, parts: &RequestParts) -> RequestParts {
        let of_action = self.actions.get(action).cloned().unwrap_or_default();
        parts.clone().or(&of_action.or(&self.defaults))
    }

    fn name(&mut self, fields: &mut TableReader<'a, '_>) -> Option<String> {
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

    fn agent(
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

    fn action_name(
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
    fn action(
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

    fn parts(&self, fields: &mut TableReader<'a, '_>) -> RequestParts {
        let approvals = fields.get("approvals").is_some().then(|| {
            let names = fields.text_set("approvals", |text| self.profile(text));
            names.into_iter().collect()
        });
        RequestParts {
            audience: fields.optional("audience", Audience::parse),
            parameters: self.parameters(fields),
            attributes: attributes(fields),
            approvals,
            ttl_s: fields.optional("ttl", |text| parse_duration("ttl", text)),
            issued_age_s: fields.optional("issued_age", age),
            verified_age_s: fields.optional("verified_age", age),
            task_age_s: fields.optional("task_age", age),
            at: moment(fields),
        }
    }

    fn profile(&self, text: &str) -> Result<ProfileName, ParseError> {
        let name = ProfileName::parse(text)?;
        if self.bundle.profile(&name).is_none() {
            let near = nearest(text, self.bundle.profiles().map(|p| p.name.as_str()));
            let reason = format!("\"{name}\" is not a profile of people.toml{near}");
            return Err(ParseError::new("profile", reason));
        }
        Ok(name)
    }

    fn parameters(&self, fields: &mut TableReader<'a, '_>) -> Option<BTreeMap<String, Param>> {
        let (at, table) = fields.table("parameters")?;
        let read = |(name, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'a>>)| {
            let value = Param::from_json(&json_value(value.get_ref())?)?;
            Ok((name.get_ref().to_string(), sorted(value)?))
        };
        match table.iter().map(read).collect::<Result<_, ParseError>>() {
            Ok(parameters) => Some(parameters),
            Err(e) => {
                fields.invalid("parameters", at, &e.reason);
                None
            }
        }
    }

    /// The decision that a case expects; a case that does not say expects a denial.
    fn expected(&self, fields: &mut TableReader<'a, '_>) -> Option<Expected> {
        let outcome = fields.optional("expect", Outcome::parse);
        let outcome = match fields.get("expect") {
            None => Outcome::Denied,
            Some(_) => outcome?,
        };
        let lifetime_s = fields.optional("lifetime", |text| parse_duration("lifetime", text));
        let profiles = fields.text_set("profiles", |text| self.profile(text));
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
                    lifetime_s,
                }
            }
            Outcome::Denied => Expected::Denied {
                rules: has_rules.then_some(rules),
            },
        })
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
        let profiles = profiles.iter().map(|name| self.profile(name));
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

/// A case or matrix with its name.
fn titled(kind: &str, table: &DeTable<'_>) -> String {
    let name = table.get("name").and_then(|name| name.get_ref().as_str());
    name.map_or_else(
        || kind.to_owned(),
        |name| format!("{kind} \"{}\"", name.escape_debug()),
    )
}

/// The outcome that a test names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Allowed,
    Pending,
    Denied,
}

impl Outcome {
    fn parse(text: &str) -> Result<Self, ParseError> {
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

/// A duration that may be zero.
fn age(text: &str) -> Result<u32, ParseError> {
    match text {
        "0s" => Ok(0),
        _ => parse_duration("age", text),
    }
}

/// The time of a request: a date and time with its offset from UTC, as TOML has it or as text.
fn moment(fields: &mut TableReader<'_, '_>) -> Option<Timestamp> {
    let value = fields.get("at")?;
    let date_time = match value.get_ref() {
        DeValue::Datetime(at) => Some(*at),
        DeValue::String(text) => text.parse().ok(),
        _ => None,
    };
    let at = date_time.and_then(timestamp);
    if at.is_none() {
        fields.invalid(
            "at",
            value,
            "must be a date and time with its offset, such as 2026-01-05T12:00:00Z",
        );
    }
    at
}

fn timestamp(at: toml::value::Datetime) -> Option<Timestamp> {
    let (date, time, offset) = (at.date?, at.time?, at.offset?);
    let minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let month = time::Month::try_from(date.month).ok()?;
    let date = time::Date::from_calendar_date(i32::from(date.year), month, date.day).ok()?;
    let time = time::Time::from_hms(time.hour, time.minute, time.second.unwrap_or(0)).ok()?;
    let local = time::PrimitiveDateTime::new(date, time).assume_utc();
    let seconds = local
        .unix_timestamp()
        .checked_sub(minutes.checked_mul(60)?)?;
    Some(Timestamp::from_secs(seconds))
}

fn attributes(fields: &mut TableReader<'_, '_>) -> BTreeMap<String, String> {
    let Some((at, table)) = fields.table("target_attributes") else {
        return BTreeMap::new();
    };
    let mut attributes = BTreeMap::new();
    for (name, value) in table.iter() {
        match json_value(value.get_ref()) {
            Ok(value) => drop(attributes.insert(name.get_ref().to_string(), value.to_string())),
            Err(e) => fields.invalid("target_attributes", at, &e.reason),
        }
    }
    attributes
}

fn changed_attributes(
    action: Option<&Action>,
    parts: &RequestParts,
) -> Option<Arc<ChangedAttributes>> {
    let target = action.filter(|_| !parts.attributes.is_empty())?;
    Some(Arc::new(ChangedAttributes {
        target: target.target.clone(),
        values: parts.attributes.clone(),
    }))
}

/// A value of TOML as the JSON that agents send.
fn json_value(value: &DeValue<'_>) -> Result<Value, ParseError> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Value::from(n),
            Err(_) => return Err(ParseError::new("value", "numbers must be integers")),
        },
        DeValue::Array(items) => {
            let items = items.iter().map(|item| json_value(item.get_ref()));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let members = table.iter().map(|(name, value)| {
                Ok((name.get_ref().to_string(), json_value(value.get_ref())?))
            });
            Value::Object(members.collect::<Result<Map<_, _>, ParseError>>()?)
        }
        DeValue::Float(_) | DeValue::Datetime(_) => {
            return Err(ParseError::new(
                "value",
                "must be text, true or false, a whole number, a list or a table",
            ));
        }
    })
}

/// A parameter with every set in the order that requests have.
fn sorted(param: Param) -> Result<Param, ParseError> {
    Ok(match param {
        Param::Set(items) => Param::set(items.into_iter().map(sorted).collect::<Result<_, _>>()?)?,
        Param::Record(members) => {
            let members = members.into_iter().map(|(name, p)| Ok((name, sorted(p)?)));
            Param::Record(members.collect::<Result<_, ParseError>>()?)
        }
        param => param,
    })
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

/// Longest name of a case or matrix, in bytes.
const NAME_BYTES_MAX: usize = 200;
/// The lifetime that a request asks for, in seconds, where a test does not say: the broker's own default.
const TTL_S: u32 = 300;
/// Age of the evidence since it was issued, in seconds, where a test does not say.
const ISSUED_AGE_S: u32 = 10;
/// The time of a request where a test does not say: Monday 2026-01-05, noon UTC.
const AT_S: i64 = 1_767_614_400;
