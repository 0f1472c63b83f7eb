//! The facts of a card: everything beside the action that its reader is shown and that a vote rests on, as the bundle in force has it.

use std::collections::BTreeMap;

use crate::card::{
    ActionFacts, AgentFacts, CardFacts, ExecutorFacts, NamedFact, PersonFacts, PersonRef,
    RuleSummary,
};
use crate::model::*;
use crate::policy::{
    CatalogueAction, ParamSpec, ParamType, PolicyBundle, Remedy, RuleEffect, RuleInfo,
};
use crate::state::AccessRequest;

/// The facts of the card of an access request under a bundle.
pub fn card_facts(request: &AccessRequest, bundle: &PolicyBundle) -> CardFacts {
    let opened = &request.opened;
    let catalogue = bundle.action(&opened.action.action);
    let agent = opened.agent().and_then(|agent| bundle.agent(agent));
    // The owner of today: a vote is for an agent of theirs.
    let owner = agent
        .as_ref()
        .map_or_else(|| opened.owner().clone(), |agent| agent.owner.clone());
    CardFacts {
        action: match opened.by_person() {
            Some(by) => proposal_facts(by),
            None => catalogue.map(action_facts).unwrap_or_default(),
        },
        target: match opened.by_person() {
            Some(_) => None,
            None => bundle
                .target_attributes(&opened.action.target)
                .map(|all| fit_attributes(all).into_iter().collect()),
        },
        agent: agent.as_deref().map(agent_facts),
        owner: PersonFacts::from_ref(&person_ref(bundle, owner)),
        executor: opened.executor().map(|executor| {
            let agent = bundle.agent(&executor.agent);
            // As of the agent that asks: the owner of today.
            let owner = agent
                .as_ref()
                .map_or_else(|| executor.owner.clone(), |agent| agent.owner.clone());
            ExecutorFacts {
                id: executor.agent.clone(),
                owner: PersonFacts::from_ref(&person_ref(bundle, owner)),
                agent: agent.as_deref().map(agent_facts),
            }
        }),
        rules: asking_rules(request.rules(), bundle)
            .into_iter()
            .map(|rule| (rule.id, rule.why))
            .collect(),
        changes: request.changes.as_deref().cloned(),
        facts: recorded_facts(request, bundle),
    }
}

/// The named facts that the request's rules read, with their values on record: what is asked anew when one of them changes.
fn recorded_facts(request: &AccessRequest, bundle: &PolicyBundle) -> BTreeMap<String, NamedFact> {
    let recorded = request.decision.iter();
    let recorded = recorded.flat_map(|decision| &decision.input.facts);
    let shown = |(name, value): (&FactName, &bool)| {
        let declared = bundle.fact(name);
        let fact = NamedFact {
            title: declared.map(|fact| fact.title.clone()).unwrap_or_default(),
            value: *value,
        };
        (name.to_string(), fact)
    };
    recorded.map(shown).collect()
}

fn agent_facts(agent: &RegisteredAgent) -> AgentFacts {
    AgentFacts {
        environment: agent.environment.to_string(),
        model: agent.model.clone(),
        autonomy: agent.autonomy.as_str().to_owned(),
    }
}

/// The words of the broker's own actions. Their risk is always high: they change what rules allow.
fn proposal_facts(by: &PersonRequester) -> ActionFacts {
    let titles = |titles: &[(&str, &str)]| -> BTreeMap<String, String> {
        let titles = titles.iter();
        titles
            .map(|(name, title)| ((*name).to_owned(), (*title).to_owned()))
            .collect()
    };
    let (title, effect, undo, parameters) = match &by.proposed {
        Proposed::Bundle { .. } => (
            "Change the policy bundle".to_owned(),
            "The proposed policy bundle comes in force: what it no longer allows ends",
            "Apply the policy bundle in force now again; what has ended stays ended".to_owned(),
            titles(&[
                ("replaces", "The policy bundle in force"),
                ("returning", "People said to be the same as before"),
            ]),
        ),
        Proposed::Fact { fact, .. } => (
            "Set a named fact".to_owned(),
            "Rules that read the fact decide by this value, until its time is over or somebody sets it back",
            format!(
                "Any operator alone sets the safe value, as 'dipylon fact list' shows it for {fact}"
            ),
            titles(&[
                ("under", "The policy bundle in force"),
                ("value", "What rules read"),
                ("seconds", "For so many seconds"),
            ]),
        ),
    };
    ActionFacts {
        title,
        effect: effect.to_owned(),
        reversible: Reversibility::Reversible.as_str().to_owned(),
        undo,
        risk: Risk::High.as_str().to_owned(),
        parameters,
    }
}

fn action_facts(action: &CatalogueAction) -> ActionFacts {
    ActionFacts {
        title: action.title.clone(),
        effect: action.effect.clone().unwrap_or_default(),
        reversible: action.reversibility().as_str().to_owned(),
        undo: action.undo.clone().unwrap_or_default(),
        risk: action.risk.map(Risk::as_str).unwrap_or_default().to_owned(),
        parameters: titles(&action.parameters),
    }
}

/// The risk of an access request's action under a bundle; a change of the bundle has a high one.
pub fn risk(request: &AccessRequest, bundle: &PolicyBundle) -> Option<Risk> {
    match request.opened.by_person() {
        Some(_) => Some(Risk::High),
        None => bundle.action(&request.opened.action.action)?.risk,
    }
}

/// The title of an access request's action under a bundle; empty when the catalogue does not have it.
pub fn title(request: &AccessRequest, bundle: &PolicyBundle) -> String {
    match request.opened.by_person() {
        Some(by) => proposal_facts(by).title,
        None => bundle
            .action(&request.opened.action.action)
            .map(|action| action.title.clone())
            .unwrap_or_default(),
    }
}

/// The rules that require an approval, without those that allow the action or limit its lifetime; rules that are no longer
/// in force are kept, because it is unknown what they did.
pub fn asking_rules(rules: &[RuleRef], bundle: &PolicyBundle) -> Vec<RuleSummary> {
    let asks = |rule: &&RuleRef| {
        let effect = bundle.rule(&rule.id).map(rule_effect);
        !matches!(effect, Some("permit" | "max_ttl"))
    };
    let asking: Vec<RuleRef> = rules.iter().filter(asks).cloned().collect();
    let mut shown = summaries(&asking, bundle);
    let left_out = asking.get(shown.len()..).unwrap_or_default();
    if !left_out.is_empty() {
        let why = |rule: &RuleRef| bundle.rule(&rule.id).and_then(|rule| rule.why.clone());
        let texts = left_out.iter().map(|rule| (rule.id.to_string(), why(rule)));
        shown.push(RuleSummary {
            id: MORE.to_owned(),
            file: String::new(),
            why: left_out_text(left_out.len(), "rules", &texts.collect::<Vec<_>>()),
            effect: String::new(),
        });
    }
    shown
}

/// The name of the item that stands for those which a card has no room for.
const MORE: &str = "…";

/// What a card says of items that it has no room for. Their digest makes them facts that a vote rests on, too.
fn left_out_text<T: serde::Serialize>(count: usize, what: &str, items: &[T]) -> String {
    let digest = json::canonical_of(&items).map(|text| Digest::sha256(text.as_bytes()));
    let digest = digest.map_or_else(|e| e.to_string(), |digest| digest.to_string());
    format!("{count} more {what}, too long for a card: SHA-256 {digest}")
}

/// Most rules of a decision in a reply or on a card.
const RULES_SHOWN_MAX: usize = 16;
/// Most bytes of their texts.
const RULES_SHOWN_BYTES_MAX: usize = 8 * 1024;

/// The first rules of a decision with their `@why`: as many as leave room for the rest of a reply.
pub fn summaries(rules: &[RuleRef], bundle: &PolicyBundle) -> Vec<RuleSummary> {
    let mut left = RULES_SHOWN_BYTES_MAX;
    let fits = |rule: &RuleSummary| {
        let bytes = rule.id.len() + rule.file.len() + rule.why.len();
        let rest = left.checked_sub(bytes);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let known = |id: &str| bundle.rule(id);
    rules
        .iter()
        .take(RULES_SHOWN_MAX)
        .map(|r| RuleSummary {
            id: r.id.to_string(),
            file: r.file.to_string(),
            why: known(&r.id).and_then(|r| r.why.clone()).unwrap_or_default(),
            effect: known(&r.id).map(rule_effect).unwrap_or_default().to_owned(),
        })
        .take_while(fits)
        .collect()
}

/// What a rule does to a decision that it determines.
pub const fn rule_effect(rule: &RuleInfo) -> &'static str {
    match (rule.effect, &rule.remedy) {
        (RuleEffect::Permit, _) => "permit",
        (RuleEffect::Forbid, Some(Remedy::StepUp(_))) => "step_up",
        (RuleEffect::Forbid, Some(Remedy::MaxTtl(_))) => "max_ttl",
        (RuleEffect::Forbid, None) => "forbid",
    }
}

/// A person by id, with the name in the policy bundle.
pub fn person_ref(bundle: &PolicyBundle, id: PersonId) -> PersonRef {
    PersonRef {
        name: bundle.person(&id).map(|person| person.name.clone()),
        id,
    }
}

/// Most bytes of a target's attributes on a card, and of the titles of its parameters: with the longest action, a card fits
/// into a message.
const ATTRIBUTES_BYTES_MAX: usize = 6 * 1024;
const TITLES_BYTES_MAX: usize = 6 * 1024;
/// Framing of one attribute or title in a message, in bytes.
const FRAME_BYTES: usize = 8;

/// The first attributes, and a last one that counts the others.
fn fit_attributes(mut all: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut left = ATTRIBUTES_BYTES_MAX;
    let fits = |(name, value): &&(String, String)| {
        let rest = left.checked_sub(name.len() + value.len() + FRAME_BYTES);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let kept = all.iter().take_while(fits).count();
    let left_out = all.split_off(kept);
    if !left_out.is_empty() {
        let text = left_out_text(left_out.len(), "attributes", &left_out);
        all.push((MORE.to_owned(), text));
    }
    all
}

/// Catalogue titles of the parameters, by the paths of [`ActionFacts::parameters`].
fn titles(parameters: &BTreeMap<String, ParamSpec>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (name, spec) in parameters {
        title_of(name.clone(), spec, &mut found);
    }
    // A parameter without its title is shown by its name.
    let mut left = TITLES_BYTES_MAX;
    found.retain(|path, title| {
        let rest = left.checked_sub(path.len() + title.len() + FRAME_BYTES);
        left = rest.unwrap_or(left);
        rest.is_some()
    });
    found
}

fn title_of(path: String, spec: &ParamSpec, found: &mut BTreeMap<String, String>) {
    let mut inside = path.clone();
    let mut ty = &spec.ty;
    while let ParamType::Set(of) = ty {
        inside.push_str("[]");
        ty = of;
    }
    if let ParamType::Record(members) = ty {
        for (name, member) in members {
            title_of(format!("{inside}.{name}"), member, found);
        }
    }
    if let Some(title) = &spec.title {
        found.insert(path, title.clone());
    }
}
