//! Named facts: what people say for a while without a new bundle, such as that changes are frozen; rules read `context.facts.NAME`.
//!
//! In: `facts.toml`. Out: what the bundle declares of each fact, and which facts the rules in scope of a request read. The value that
//! a fact has now is the journal's.

use std::collections::{BTreeMap, BTreeSet};

use super::PolicyBundle;
use super::files::FACTS;
use super::problem::Problems;
use super::sentences::Things;
use super::toml_reader::{TableReader, TomlSource, title};
use crate::model::text::quote;
use crate::model::{
    ActionName, AgentId, Digest, FactName, FactValues, ParseError, Target, format_seconds,
    parse_duration,
};

/// What a bundle declares of a named fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredFact {
    /// Its name in rules.
    pub name: FactName,
    /// What it says when it is true, for people.
    pub title: String,
    /// The value that one operator alone may set; the other one takes what a change of the bundle takes.
    pub safe: bool,
    /// Its value while no other one is set.
    pub normal: bool,
    /// The longest time that another value than the normal one may stand, in seconds.
    pub max_s: u32,
    /// Whether tokens end that the rules would not allow with its present value. Without it a token goes on with the value that it was
    /// issued under.
    pub ends: bool,
}

impl DeclaredFact {
    /// Digest of all that is declared: what people agree to, and what a setting rests on.
    pub fn digest(&self) -> Digest {
        let Self {
            name,
            title,
            safe,
            normal,
            max_s,
            ends,
        } = self;
        let text = format!("{name}\0{safe}\0{normal}\0{max_s}\0{ends}\0{title}");
        Digest::tagged("dipylon/fact/v1", text.as_bytes())
    }
}

/// The facts that a bundle declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DeclaredFacts(BTreeMap<FactName, DeclaredFact>);

/// Most facts of a bundle: a decision rests on each that the rules in scope read.
const FACTS_MAX: usize = 8;
/// Longest time that a value may stand, in seconds.
const MAX_S: u32 = 31 * 86_400;
/// Shortest such time, in seconds.
const MIN_S: u32 = 60;

impl DeclaredFacts {
    /// Reads `facts.toml`; without it there are none.
    pub(super) fn read(text: Option<&str>, problems: &mut Problems) -> Self {
        let mut facts = Self::default();
        let Some(text) = text else {
            return facts;
        };
        let source = TomlSource { file: FACTS, text };
        let Some(root) = source.read(problems) else {
            return facts;
        };
        let mut top = TableReader::new(source, "facts", None, root.get_ref(), problems);
        for (name, at, table) in top.named_tables("fact") {
            let what = format!("fact.{name}");
            let mut fields = TableReader::new(source, what, Some(at), table, top.problems());
            let name = FactName::parse(name)
                .map_err(|error| {
                    let rule = error.reason;
                    fields.problem(format!("the name {rule}: rules read context.facts.NAME"));
                })
                .ok();
            let title = fields.required("title", title);
            let safe = flag(&mut fields, "safe");
            if safe.is_none() && fields.get("safe").is_none() {
                fields.problem(
                    "`safe` is required: true or false, the value that one operator alone may set",
                );
            }
            let normal = flag(&mut fields, "normal").or(safe);
            let max_s = fields.required("max", longest);
            let ends = flag(&mut fields, "ends").unwrap_or(false);
            fields.finish();
            // With another mistake in it the rules that read it are not wrong, too.
            if let Some(name) = name {
                let fact = DeclaredFact {
                    name: name.clone(),
                    title: title.unwrap_or_default(),
                    safe: safe.unwrap_or_default(),
                    normal: normal.unwrap_or_default(),
                    max_s: max_s.unwrap_or(MIN_S),
                    ends,
                };
                facts.0.insert(name, fact);
            }
        }
        if facts.0.len() > FACTS_MAX {
            top.problem(format!("must have at most {FACTS_MAX} facts"));
        }
        top.finish();
        facts
    }

    /// The declarations, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &DeclaredFact> {
        self.0.values()
    }

    /// The values that Cedar is given: those of a request, and the normal ones of the others.
    pub(super) fn values(&self, of_request: &FactValues) -> FactValues {
        let value = |fact: &DeclaredFact| {
            let value = of_request.get(&fact.name).copied();
            (fact.name.clone(), value.unwrap_or(fact.normal))
        };
        self.iter().map(value).collect()
    }

    /// The declaration of each fact, as texts for the sentences about a changed bundle.
    pub(super) fn things(&self) -> Things {
        let texts = |fact: &DeclaredFact| {
            let texts = BTreeMap::from([
                ("title".to_owned(), quote(&fact.title)),
                ("safe".to_owned(), fact.safe.to_string()),
                ("normal".to_owned(), fact.normal.to_string()),
                ("max".to_owned(), format_seconds(fact.max_s.into())),
                ("ends".to_owned(), fact.ends.to_string()),
            ]);
            (fact.name.to_string(), texts)
        };
        self.iter().map(texts).collect()
    }
}

/// A Boolean value; nothing when it is absent, and a problem when it is something else.
fn flag(fields: &mut TableReader<'_, '_>, key: &'static str) -> Option<bool> {
    let at = fields.get(key)?;
    let value = at.get_ref().as_bool();
    if value.is_none() {
        fields.invalid(key, at, "must be true or false");
    }
    value
}

fn longest(text: &str) -> Result<u32, ParseError> {
    let seconds = parse_duration("max", text)?;
    match (MIN_S..=MAX_S).contains(&seconds) {
        true => Ok(seconds),
        false => Err(ParseError::new("max", "must be 1m to 31d")),
    }
}

impl PolicyBundle {
    /// The declared facts, by name.
    pub fn facts(&self) -> impl Iterator<Item = &DeclaredFact> {
        self.evaluator.declared().facts.iter()
    }

    /// What the bundle declares of a fact.
    pub fn fact(&self, name: &FactName) -> Option<&DeclaredFact> {
        self.evaluator.declared().facts.0.get(name)
    }

    /// The rules that read a fact, by id.
    pub fn rules_reading(&self, name: &FactName) -> Vec<String> {
        self.rule_facts.rules_reading(name)
    }

    /// The facts that rules in scope of a request read: those whose scope can match the action on the target by one of these agents.
    pub fn facts_in_scope<'a>(
        &self,
        agents: impl IntoIterator<Item = &'a AgentId>,
        action: &ActionName,
        target: &Target,
    ) -> BTreeSet<&FactName> {
        self.rule_facts.in_scope(self, agents, action, target)
    }
}
