//! Rules: Cedar policies with an `@id`, their annotations and their places in the files.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    Policy, PolicyId, PolicySet, Schema, ValidationError, ValidationMode, Validator,
};

use super::autonomy::{ADVISORY_RULE, BuiltInRule};
use super::catalogue::TEXT_BYTES_MAX;
use super::check::location;
use super::files::AGENTS;
use super::nearest::waits_alone;
use super::nesting;
use super::problem::{BundleProblem, Problems, line_and_column, nearest};
use super::spellings::Spellings;
use crate::model::{
    Autonomy, DELAYS_S, Digest, ProfileName, RuleRef, check_visible, parse_duration,
};

/// One rule of a policy bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its `@id`, unique in the bundle.
    pub id: String,
    /// Path inside the policy bundle.
    pub file: String,
    /// Line on which it begins, from 1.
    pub line: usize,
    /// Permit or forbid.
    pub effect: RuleEffect,
    /// The remedy that would lift it.
    pub remedy: Option<Remedy>,
    /// Its `@delay`, in seconds: after that time without a no nobody has to approve any more what its remedy asks for.
    pub delay_s: Option<u32>,
    /// Its `@why`, in words for people.
    pub why: Option<String>,
    /// Its source text, annotations included.
    pub text: String,
}

impl RuleInfo {
    /// Whether it is the broker's own, made from `agents.toml`.
    pub fn is_built_in(&self) -> bool {
        self.file == AGENTS
    }

    /// The autonomy of the agents that a rule of the broker's own is about.
    pub(super) fn built_in_for(&self) -> Option<Autonomy> {
        let advisory = self.id == ADVISORY_RULE;
        self.is_built_in().then_some(match advisory {
            true => Autonomy::Advisory,
            false => Autonomy::Supervised,
        })
    }

    /// The id with the file.
    pub fn reference(&self) -> RuleRef {
        RuleRef {
            id: self.id.as_str().into(),
            file: self.file.as_str().into(),
        }
    }
}

/// The effect of a rule that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleEffect {
    /// Allows the action, unless another rule forbids it.
    Permit,
    /// Forbids the action, whichever rules allow it.
    Forbid,
}

/// The remedy a forbid names. Only a hint: Cedar evaluates again with it applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// An approval under each of these profiles, by different people; never empty.
    StepUp(BTreeSet<ProfileName>),
    /// A life of at most this many seconds.
    MaxTtl(u32),
}

impl Remedy {
    /// The profiles that it asks for; none for another remedy.
    pub fn profiles(&self) -> impl Iterator<Item = &ProfileName> {
        let profiles = match self {
            Self::StepUp(profiles) => Some(profiles),
            Self::MaxTtl(_) => None,
        };
        profiles.into_iter().flatten()
    }
}

/// The profiles of `@step_up("PROFILE")` or `@step_up("PROFILE + PROFILE")`.
fn step_up(text: &str, declared: &BTreeSet<ProfileName>) -> Result<BTreeSet<ProfileName>, String> {
    let mut named = BTreeSet::new();
    for name in text.split(" + ") {
        let known = ProfileName::parse(name).ok();
        let Some(profile) = known.filter(|name| declared.contains(name)) else {
            let near = nearest(name, declared.iter().map(ProfileName::as_str));
            let name = name.escape_debug();
            return Err(match text.contains('+') {
                false => format!("@step_up(\"{name}\") is not a profile of people.toml{near}"),
                true => format!(
                    "@step_up: \"{name}\" is not a profile of people.toml{near}; expected profiles with \" + \" between them"
                ),
            });
        };
        if let Some(twice) = named.replace(profile) {
            return Err(format!(
                "@step_up names {twice} twice: one profile asks for more people by its quorum"
            ));
        }
    }
    Ok(named)
}

/// Names of profiles for people: `one-security and two-release`.
pub(super) fn profile_list(profiles: &BTreeSet<ProfileName>) -> String {
    let names: Vec<&str> = profiles.iter().map(ProfileName::as_str).collect();
    names.join(" and ")
}

/// The rules of a policy bundle: Cedar's policy set, whose policy ids are the rules' `@id`s, and the information on each.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    pub(super) set: PolicySet,
    pub(super) infos: BTreeMap<String, RuleInfo>,
    /// The delays of its rules in seconds, each once, the longest last.
    pub(super) delays_s: Vec<u32>,
}

impl RuleSet {
    /// Reads every file of `rules/`, and adds the broker's own rules. Without a schema, which is then a problem of its own, rules stay
    /// unvalidated.
    pub(super) fn read<'a>(
        files: impl Iterator<Item = (&'a str, &'a str)>,
        built_in: &[BuiltInRule],
        profiles: &BTreeSet<ProfileName>,
        schema: Option<&Schema>,
        problems: &mut Problems,
        warnings: &mut Problems,
    ) -> Self {
        let mut rules = Self::default();
        let mut texts = BTreeMap::new();
        for (file, text) in files {
            if !nesting::check_rules(file, text, problems) {
                continue;
            }
            let parsed = match text.parse::<PolicySet>() {
                Ok(parsed) => parsed,
                Err(e) => {
                    problems.add_cedar(file, Some((text, 1)), "", &DetailedError::from(&e));
                    continue;
                }
            };
            if parsed.num_of_templates() > 0 {
                problems.add(
                    file,
                    None,
                    "has a template (?principal or ?resource); write rules without slots",
                );
                continue;
            }
            let pieces = split_policies(text);
            if pieces.len() != parsed.num_of_policies() {
                problems.add(
                    file,
                    None,
                    "its rules could not be split into single policies",
                );
                continue;
            }
            for (n, (line, piece)) in pieces.into_iter().enumerate() {
                // Cedar numbers the policies of a text in their order, and keeps the text of each.
                let policy = parsed.policy(&PolicyId::new(format!("policy{n}")));
                match policy.filter(|policy| policy.to_cedar().as_deref() == Some(piece)) {
                    Some(policy) => rules.add(file, line, piece, policy, profiles, problems),
                    None => problems.add(
                        file,
                        Some(line),
                        "its rules could not be split into single policies",
                    ),
                }
            }
            texts.insert(file, text);
        }
        for BuiltInRule { line, text } in built_in {
            let policy = Policy::parse(None, text);
            match policy {
                Ok(policy) => rules.add(AGENTS, *line, text, &policy, profiles, problems),
                Err(e) => problems.add(AGENTS, Some(*line), format!("the broker's rule: {e}")),
            }
        }
        if let Some(schema) = schema {
            rules.validate(schema, &texts, problems, warnings);
        }
        let delays: BTreeSet<u32> = rules
            .infos
            .values()
            .filter_map(|rule| rule.delay_s)
            .collect();
        rules.delays_s = delays.into_iter().collect();
        rules
    }

    fn add(
        &mut self,
        file: &str,
        line: usize,
        text: &str,
        policy: &Policy,
        profiles: &BTreeSet<ProfileName>,
        problems: &mut Problems,
    ) {
        // Rule ids have the alphabet of profile names.
        // Cedar parses a key that is asked for by name.
        let annotations: BTreeMap<&str, &str> = policy.annotations().collect();
        let id = match annotations.get("id").copied().map(ProfileName::parse) {
            Some(Ok(id)) => id.as_str().to_owned(),
            Some(Err(e)) => {
                return problems.add(file, Some(line), format!("the rule's @id {}", e.reason));
            }
            None => return problems.add(file, Some(line), "the rule needs an @id(\"…\")"),
        };
        let mut problem_at = |annotation: Option<&str>, message: String| {
            let mut problem =
                BundleProblem::new(file, Some(line), format!("rule \"{id}\": {message}"));
            let at = annotation.and_then(|name| location::annotation(text, name));
            if let Some((lines, column)) = at.and_then(|at| line_and_column(text, at)) {
                problem.line = Some(line + lines - 1);
                // A rule may begin behind another one on the same line.
                problem.column = (lines > 1).then_some(column);
            }
            problems.push(problem);
        };
        for key in annotations.keys().filter(|key| !ANNOTATIONS.contains(key)) {
            problem_at(
                Some(key),
                format!("unknown annotation @{key}{}", nearest(key, ANNOTATIONS)),
            );
        }
        let why = annotations.get("why").map(|text| (*text).to_owned());
        if let Some(Err(e)) = why
            .as_deref()
            .map(|text| check_visible("why", text, TEXT_BYTES_MAX))
        {
            problem_at(Some("why"), format!("@why {}", e.reason));
        }
        let effect = match policy.effect() {
            cedar_policy::Effect::Permit => RuleEffect::Permit,
            cedar_policy::Effect::Forbid => RuleEffect::Forbid,
        };
        let remedy = match (annotations.get("step_up"), annotations.get("max_ttl")) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                problem_at(
                    Some("step_up"),
                    "a forbid has at most one remedy, @step_up or @max_ttl: write one rule for each".to_owned(),
                );
                None
            }
            (Some(text), None) => match step_up(text, profiles) {
                Ok(named) => Some(Remedy::StepUp(named)),
                Err(message) => {
                    problem_at(Some("step_up"), message);
                    None
                }
            },
            (None, Some(text)) => match parse_duration("max_ttl", text) {
                Ok(seconds) => Some(Remedy::MaxTtl(seconds)),
                Err(e) => {
                    problem_at(Some("max_ttl"), format!("@max_ttl {}", e.reason));
                    None
                }
            },
        };
        let delay_s = annotations.get("delay").and_then(|text| {
            let read = parse_duration("delay", text).map_err(|e| e.reason.to_string());
            let read = read.and_then(|seconds| match DELAYS_S.contains(&seconds) {
                true => Ok(seconds),
                false => Err("must be 1m to 24h".to_owned()),
            });
            let asks = matches!(remedy, Some(Remedy::StepUp(_)));
            match read {
                Ok(seconds) if asks => Some(seconds),
                Ok(_) => {
                    problem_at(
                        Some("delay"),
                        "@delay stands beside @step_up, which says who may say no meanwhile"
                            .to_owned(),
                    );
                    None
                }
                Err(reason) => {
                    problem_at(Some("delay"), format!("@delay {reason}"));
                    None
                }
            }
        });
        // INVARIANT (a delay lifts only its own forbid): a rule compares how long a request has waited with its own delay, and no other
        // rule knows it.
        // Of a delay that cannot be read the problem above is enough.
        let is_read = delay_s.is_some() || !annotations.contains_key("delay");
        if is_read && !waits_alone(policy, delay_s) {
            let message = match annotations.get("delay") {
                Some(delay) => format!(
                    "context.waited is compared with the rule's own delay alone: write context.waited >= duration(\"{delay}\")"
                ),
                None => "context.waited is read by forbids with @delay alone: add @step_up(\"PROFILE\") and @delay(\"30m\"), or take it out"
                    .to_owned(),
            };
            problem_at(None, message);
        }
        if remedy.is_some() && effect == RuleEffect::Permit {
            problem_at(
                None,
                "only a forbid may carry a remedy; nothing lifts a permit".to_owned(),
            );
        }
        if let Some(first) = self.infos.get(&id) {
            problem_at(
                Some("id"),
                format!(
                    "this @id is taken by the rule at {}:{}",
                    first.file, first.line
                ),
            );
            return;
        }
        if let Err(e) = self.set.add(policy.new_id(PolicyId::new(&id))) {
            problem_at(None, e.to_string());
            return;
        }
        let info = RuleInfo {
            id: id.clone(),
            file: file.to_owned(),
            line,
            effect,
            remedy,
            delay_s,
            why,
            text: text.to_owned(),
        };
        self.infos.insert(id, info);
    }

    /// The digest of a rule's scope and conditions, whatever its layout, its comments and its annotations are.
    pub(super) fn conditions(&self, id: &str) -> String {
        let policy = self.set.policy(&PolicyId::new(id));
        let form = policy.and_then(|policy| policy.to_json().ok());
        let form = form.map(|mut form| {
            if let Some(members) = form.as_object_mut() {
                members.remove("annotations");
            }
            Digest::sha256(form.to_string().as_bytes()).to_string()
        });
        form.unwrap_or_default()
    }

    /// Refuses a rule that names an entity by an id that the bundle has in another Unicode normalization form.
    pub(super) fn check_spellings(&self, spellings: &mut Spellings, problems: &mut Problems) {
        for policy in self.set.policies() {
            let id: &str = policy.id().as_ref();
            let Some(rule) = self.infos.get(id) else {
                continue;
            };
            for uid in policy.entity_literals() {
                let kind = uid.type_name().to_string();
                if let Err(message) = spellings.add(&kind, uid.id().unescaped()) {
                    problems.add(
                        &rule.file,
                        Some(rule.line),
                        format!("rule \"{id}\": {message}"),
                    );
                }
            }
        }
    }

    /// `texts`: each file, in which Cedar places what it finds.
    fn validate(
        &self,
        schema: &Schema,
        texts: &BTreeMap<&str, &str>,
        problems: &mut Problems,
        warnings: &mut Problems,
    ) {
        let result = Validator::new(schema.clone()).validate(&self.set, ValidationMode::Strict);
        let errors: Vec<&ValidationError> = result.validation_errors().collect();
        let is_unknown = |error: &ValidationError| {
            matches!(
                error,
                ValidationError::UnrecognizedActionId(_)
                    | ValidationError::UnrecognizedEntityType(_)
            )
        };
        for error in &errors {
            // The types of a rule that names something unknown are wrong for that reason.
            let follows = !is_unknown(error)
                && errors
                    .iter()
                    .any(|e| is_unknown(e) && e.policy_id() == error.policy_id());
            if !follows {
                let id: &str = error.policy_id().as_ref();
                self.add_diagnostic(id, texts, &DetailedError::from(*error), problems);
            }
        }
        for warning in result.validation_warnings() {
            let id: &str = warning.policy_id().as_ref();
            self.add_diagnostic(id, texts, &DetailedError::from(warning), warnings);
        }
    }

    fn add_diagnostic(
        &self,
        id: &str,
        texts: &BTreeMap<&str, &str>,
        diagnostic: &DetailedError,
        to: &mut Problems,
    ) {
        match self.infos.get(id) {
            Some(rule) => to.add_cedar(
                &rule.file,
                texts.get(rule.file.as_str()).map(|text| (*text, 1)),
                &format!("rule \"{id}\": "),
                &without_policy(diagnostic, id),
            ),
            None => to.add_cedar("rules/", None, "", diagnostic),
        }
    }
}

/// A diagnostic of Cedar's whose text does not name the rule again. Evidence has two ages: which one an author means by one alone is
/// not to be guessed.
fn without_policy(diagnostic: &DetailedError, id: &str) -> DetailedError {
    let mut diagnostic = diagnostic.clone();
    for end in [", ", ": "] {
        let prefix = format!("for policy `{id}`{end}");
        if let Some(rest) = diagnostic.message.strip_prefix(&prefix) {
            diagnostic.message = rest.to_owned();
        }
    }
    if diagnostic.message.contains(EVIDENCE_AGE) {
        diagnostic.help = Some(EVIDENCE_AGES.to_owned());
    }
    let names = |text: &str| diagnostic.message.contains(text);
    let is_declared =
        names("`facts`") || names("`facts.") || names("`counts`") || names("`counts.");
    if names("Action::\"operate\"") && is_declared {
        diagnostic.help = Some(OPERATE_READS.to_owned());
    }
    if diagnostic.message.contains(LOCAL_TIME) {
        diagnostic.help = Some(ZONES.to_owned());
    }
    diagnostic
}

const OPERATE_READS: &str =
    "`operate` has no facts and no counts: name actions in the rule's scope, or a type of targets";
const LOCAL_TIME: &str = "attribute `local";
const ZONES: &str = "declare the zone in calendar.toml, as [zone.NAME] with tz = \"Europe/Berlin\": rules read `context.local.NAME`";
const EVIDENCE_AGE: &str = "`evidence.age`";
const EVIDENCE_AGES: &str = "evidence has two ages: `context.evidence.issued_age`, since its issuer issued it, and \
    `context.evidence.verified_age`, since this broker last verified it";

/// The policies of one file with the line on which each begins. A policy ends at a `;` outside of text and comments; each
/// is compared with what Cedar took for it, so a wrong split can only refuse.
fn split_policies(text: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let mut begin: Option<(usize, usize)> = None;
    let mut line = 1;
    let (mut quoted, mut escaped, mut comment) = (false, false, false);
    for (at, c) in text.char_indices() {
        if c == '\n' {
            line += 1;
        }
        if comment {
            comment = !matches!(c, '\n' | '\r');
        } else if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c == '/' && text.get(at..).is_some_and(|rest| rest.starts_with("//")) {
            comment = true;
        } else if !c.is_whitespace() {
            let (from, first_line) = *begin.get_or_insert((at, line));
            quoted = c == '"';
            if c == ';' {
                pieces.extend(text.get(from..=at).map(|piece| (first_line, piece)));
                begin = None;
            }
        }
    }
    pieces
}

const ANNOTATIONS: [&str; 5] = ["id", "step_up", "max_ttl", "delay", "why"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_text_is_split_with_line_numbers() {
        let text = "// a; b\n@id(\"x;\\\";\")\npermit(principal, action, resource); // c;\n\n forbid(principal,\n action, resource);\n";
        let pieces = split_policies(text);
        assert_eq!(
            pieces.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            [2, 5]
        );
        assert!(pieces[0].1.starts_with("@id(\"x;") && pieces[0].1.ends_with("resource);"));
        assert_eq!(
            text.parse::<PolicySet>().expect("parses").num_of_policies(),
            2
        );
    }
}
