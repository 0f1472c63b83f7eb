//! Facts of a card: what a vote rests on beside the action itself. A vote signs their digest, and counts while they are the same.
//!
//! Never times, counts or figures: they change by themselves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AgentRegistration, Card, PersonRef, Requester};
use crate::model::{AgentId, Digest, PersonId, PolicyChanges, Risk, json};

/// The facts that a card shows about an access request, as the policy bundle in force has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardFacts {
    /// The catalogue's texts for the action.
    pub action: ActionFacts,
    /// The target's attributes; absent when the bundle does not have the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<BTreeMap<String, String>>,
    /// The requesting agent as registered; absent for a proposal by a person, and for an agent that is no longer registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentFacts>,
    /// The agent's owner, or the proposer.
    pub owner: PersonFacts,
    /// The agent that would execute the action that an advisory agent recommends, as registered; absent for any other request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<ExecutorFacts>,
    /// The rules that require approval: their `@why`, by `@id`.
    pub rules: BTreeMap<String, String>,
    /// What a proposed policy bundle changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<PolicyChanges>,
    /// The named facts of the bundle that the rules in scope read, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, NamedFact>,
}

/// A named fact, as rules read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedFact {
    /// What it says when it is true; empty when the bundle no longer declares it.
    pub title: String,
    /// Whether it is true.
    pub value: bool,
}

/// The catalogue's texts for an action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionFacts {
    /// Its title.
    pub title: String,
    /// Its effect.
    pub effect: String,
    /// Whether it can be undone.
    pub reversible: String,
    /// How it is undone.
    pub undo: String,
    /// `low`, `medium` or `high`; empty when the catalogue states none.
    pub risk: String,
    /// Titles of its parameters, by path.
    pub parameters: BTreeMap<String, String>,
}

/// An agent as registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFacts {
    /// Where it runs.
    pub environment: String,
    /// The model behind it.
    pub model: String,
    /// How far it acts alone.
    pub autonomy: String,
}

/// The executor of a recommendation, as registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorFacts {
    /// The agent's id.
    pub id: AgentId,
    /// Its owner.
    pub owner: PersonFacts,
    /// Its registration; absent for an agent that is no longer registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentFacts>,
}

/// A person as registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonFacts {
    /// The id.
    pub id: PersonId,
    /// The display name; empty when the bundle no longer lists the person.
    pub name: String,
}

impl CardFacts {
    /// The RFC 8785 form: what a vote's entry keeps.
    pub fn canonical(&self) -> Result<String, json::JsonError> {
        json::canonical_of(self)
    }

    /// SHA-256 of the RFC 8785 form: the member `facts` of a vote statement.
    pub fn digest(&self) -> Result<Digest, json::JsonError> {
        Ok(Digest::sha256(self.canonical()?.as_bytes()))
    }

    /// The names of the facts that differ, in the words of an explanation.
    pub fn changed(&self, now: &Self) -> Vec<String> {
        let ActionFacts {
            title,
            effect,
            reversible,
            undo,
            risk,
            parameters,
        } = &self.action;
        let mut changed: Vec<String> = [
            ("title", *title == now.action.title),
            ("effect", *effect == now.action.effect),
            ("reversible", *reversible == now.action.reversible),
            ("undo", *undo == now.action.undo),
            ("risk", *risk == now.action.risk),
            ("titles of parameters", *parameters == now.action.parameters),
            ("owner", self.owner == now.owner),
            ("executor", self.executor == now.executor),
            ("rules that ask", self.rules == now.rules),
            ("changes of the policy bundle", self.changes == now.changes),
        ]
        .into_iter()
        .filter(|(_, same)| !same)
        .map(|(name, _)| name.to_owned())
        .collect();
        match (&self.agent, &now.agent) {
            (Some(then), Some(now)) => changed.extend(
                [
                    ("agent's environment", then.environment == now.environment),
                    ("agent's model", then.model == now.model),
                    ("agent's autonomy", then.autonomy == now.autonomy),
                ]
                .into_iter()
                .filter(|(_, same)| !same)
                .map(|(name, _)| name.to_owned()),
            ),
            (then, now) if then == now => {}
            _ => changed.push("agent's registration".to_owned()),
        }
        let facts = self.facts.keys().chain(now.facts.keys());
        let facts: std::collections::BTreeSet<&String> = facts.collect();
        let differing = facts
            .into_iter()
            .filter(|name| self.facts.get(*name) != now.facts.get(*name));
        changed.extend(differing.map(|name| format!("fact {name}")));
        let (then, now) = (self.target.as_ref(), now.target.as_ref());
        if then.is_some() == now.is_some() {
            let attribute = |facts: Option<&BTreeMap<String, String>>, name: &String| {
                facts.and_then(|facts| facts.get(name)).cloned()
            };
            let names = then.into_iter().chain(now).flat_map(BTreeMap::keys);
            let names: std::collections::BTreeSet<&String> = names.collect();
            let differs = |name: &&&String| attribute(then, name) != attribute(now, name);
            let differing = names.iter().filter(differs);
            changed.extend(differing.map(|name| format!("target's {name}")));
        } else {
            changed.push("target's registration".to_owned());
        }
        changed
    }
}

impl PersonFacts {
    /// From a reference with its display name.
    pub fn from_ref(person: &PersonRef) -> Self {
        Self {
            id: person.id.clone(),
            name: person.name.clone().unwrap_or_default(),
        }
    }
}

impl Card {
    /// The facts that this card shows. A vote is signed where the broker's statement has their digest.
    pub fn facts(&self) -> CardFacts {
        let rules = self.rules.iter();
        let registered = |claims: &AgentRegistration| AgentFacts {
            environment: claims.environment.clone(),
            model: claims.model.clone(),
            autonomy: claims.autonomy.clone(),
        };
        let (agent, owner) = match &self.requester {
            Requester::Agent(agent) => (agent.registered.as_ref().map(registered), &agent.owner),
            Requester::Person(person) => (None, person),
        };
        let executor = self.requester.agent().and_then(|by| by.executor.as_ref());
        CardFacts {
            action: ActionFacts {
                title: self.title.clone(),
                effect: self.effect.clone(),
                reversible: self.reversible.clone(),
                undo: self.undo.clone(),
                risk: self.risk.map(Risk::as_str).unwrap_or_default().to_owned(),
                parameters: self.parameter_titles.clone(),
            },
            target: self
                .target_attributes
                .as_ref()
                .map(|facts| facts.iter().cloned().collect()),
            agent,
            owner: PersonFacts::from_ref(owner),
            executor: executor.map(|executor| ExecutorFacts {
                id: executor.id.clone(),
                owner: PersonFacts::from_ref(&executor.owner),
                agent: executor.registered.as_ref().map(registered),
            }),
            rules: rules
                .map(|rule| (rule.id.clone(), rule.why.clone()))
                .collect(),
            changes: self.changes.clone(),
            facts: self.named_facts.clone(),
        }
    }
}
