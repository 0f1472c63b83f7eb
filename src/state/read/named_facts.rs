//! Named facts as a round reads them, each under its stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Read;
use crate::model::*;
use crate::policy::{DeclaredFact, PolicyBundle};
use crate::state::FactSetting;

/// Named facts as a round has read them.
#[derive(Debug, Default)]
pub struct NamedFacts {
    /// Their values.
    pub values: FactValues,
    /// When the first of them that is not is its normal value again.
    pub until: Option<Timestamp>,
    /// The same of those that end tokens.
    pub ends_at: Option<Timestamp>,
}

impl Read {
    /// The named facts that rules of a bundle read whose scope can match an action on a target by one of these agents, with their values
    /// at a moment.
    pub fn named_facts<'a>(
        &self,
        bundle: &PolicyBundle,
        agents: impl IntoIterator<Item = &'a AgentId>,
        (action, target): (&ActionName, &Target),
        now: Timestamp,
    ) -> NamedFacts {
        let mut named = NamedFacts::default();
        for name in bundle.facts_in_scope(agents, action, target) {
            self.note(Stream::Fact(name.clone()));
            if let Some(declared) = bundle.fact(name) {
                let (value, until) = self.state.fact_value(declared, now);
                named.values.insert(name.clone(), value);
                named.until = [named.until, until].into_iter().flatten().min();
                if declared.ends {
                    named.ends_at = [named.ends_at, until].into_iter().flatten().min();
                }
            }
        }
        named
    }

    /// The facts that end tokens, as a bundle declares them, and that an entry since the one at this index gave another value than a token
    /// was issued under: each with that value. A later value brings back no token that an entry disallowed.
    pub fn changed_facts(
        &self,
        bundle: &PolicyBundle,
        recorded: &FactValues,
        issued_at: u64,
    ) -> FactValues {
        let mut changed = FactValues::new();
        for declared in bundle.facts().filter(|fact| fact.ends) {
            self.note(Stream::Fact(declared.name.clone()));
            let value = recorded.get(&declared.name).copied();
            let other = !value.unwrap_or(declared.normal);
            let history = self.state.fact_histories.get(&declared.name);
            // A bundle that declares it otherwise takes a value back, or has another normal one.
            let setting = self.state.facts.get(&declared.name);
            let is_kept = setting.is_some_and(|setting| setting.is_of(declared));
            let becomes_normal = !is_kept && declared.normal == other;
            if becomes_normal || history.is_some_and(|history| history.had(other, issued_at)) {
                changed.insert(declared.name.clone(), other);
            }
        }
        changed
    }

    /// The value of a fact at a moment, as a bundle declares it.
    pub fn fact_value(&self, declared: &DeclaredFact, now: Timestamp) -> bool {
        self.note(Stream::Policy);
        self.note(Stream::Fact(declared.name.clone()));
        self.state.fact_value(declared, now).0
    }

    /// The setting of a fact on record.
    pub fn fact_setting(&self, name: &FactName) -> Option<Arc<FactSetting>> {
        self.note(Stream::Policy);
        self.note(Stream::Fact(name.clone()));
        self.state.facts.get(name)
    }

    /// The versions of all facts that end tokens, as the bundle in force declares them.
    pub fn ending_fact_versions(&self) -> BTreeMap<FactName, Version> {
        let Some(rules) = self.rules() else {
            return BTreeMap::new();
        };
        let ending = rules.bundle.facts().filter(|fact| fact.ends);
        ending
            .map(|fact| {
                let version = self.note(Stream::Fact(fact.name.clone()));
                (fact.name.clone(), version)
            })
            .collect()
    }
}
