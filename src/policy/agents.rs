use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::autonomy::AutonomyRules;
use super::catalogue::Catalogue;
use super::files::AGENTS;
use super::people::{People, line};
use super::problem::{Problems, nearest};
use super::spellings::{NameClash, RegisteredNames};
use super::toml_reader::{TableReader, TomlSource};
use crate::model::{
    ActionName, AgentId, Autonomy, Digest, EnvironmentName, GroupId, PersonId, RegisteredAgent,
    SpiffeId, Thumbprint,
};

/// The content of `agents.toml`.
#[derive(Debug, Default)]
pub(super) struct Agents {
    pub(super) registered: BTreeMap<AgentId, Arc<RegisteredAgent>>,
    /// The environments of agents and targets.
    pub(super) environments: BTreeSet<EnvironmentName>,
    /// What the broker asks of people for them.
    pub(super) autonomy: AutonomyRules,
}

/// Reads `agents.toml`: registered workloads, each with an owner among `people` and a ceiling within the catalogue.
/// Without a catalogue, which is then a problem of its own, ceilings stay unchecked. Nothing for a file that is no TOML.
pub(super) fn read(
    text: &str,
    people: &People,
    catalogue: Option<&Catalogue>,
    problems: &mut Problems,
) -> Option<Agents> {
    let mut agents = BTreeMap::new();
    let source = TomlSource { file: AGENTS, text };
    let root = source.read(problems)?;
    let mut top = TableReader::new(source, "agents", None, root.get_ref(), problems);
    let declared = top.text_set("environments", EnvironmentName::parse);
    let autonomy_rules = AutonomyRules::read(&mut top, source, people, catalogue);
    let mut lines = BTreeMap::new();
    let tables = top.tables("agent");
    if declared.is_empty() && !tables.is_empty() {
        top.problem("environments is missing: list those of agents and targets at the top, such as environments = [\"prod\", \"staging\"]");
    }
    let mut spiffe_ids = BTreeSet::new();
    let mut pins: BTreeMap<Thumbprint, AgentId> = BTreeMap::new();
    let (mut ids, mut group_names) = (RegisteredNames::default(), RegisteredNames::default());
    let mut environments = RegisteredNames::default();
    for environment in &declared {
        if let Err(message) = environments.add_use(environment.as_str(), None) {
            top.problem(format!("environment {message}"));
        }
    }
    for (at, table) in tables {
        let mut fields = TableReader::new(source, "agent", Some(at), table, top.problems());
        let id = fields.required("id", AgentId::parse);
        let spiffe_id = fields.required("spiffe_id", SpiffeId::parse);
        let owner = fields.required("owner", PersonId::parse);
        let environment = fields.required("environment", EnvironmentName::parse);
        let model = fields.required("model", |text| line("model", text));
        let autonomy = fields.required("autonomy", Autonomy::parse);
        let jkt = fields.optional("jkt", |text| Digest::parse(text).map(Thumbprint));
        let groups = fields.text_set("groups", GroupId::parse);
        let ceiling = fields.text_set("actions", ActionName::parse);
        let executors = fields.text_set("executors", AgentId::parse);
        let line = fields.line();
        for group in &groups {
            if let Err(message) = group_names.add_use(group.as_str(), line) {
                fields.problem(format!("group {message}"));
            }
        }
        if let Some(environment) = environment
            .as_ref()
            .filter(|e| !declared.contains(e) && !declared.is_empty())
        {
            let names: Vec<&str> = declared.iter().map(EnvironmentName::as_str).collect();
            let near = nearest(environment.as_str(), names.iter().copied());
            fields.problem(format!(
                "environment \"{environment}\" is not among `environments` at the top of this file{near}: they are {}",
                names.join(", ")
            ));
        }
        let clash = id.as_ref().and_then(|id| ids.add(id.as_str(), line).err());
        let is_taken = matches!(clash, Some(NameClash::Same(_)));
        match (&id, clash) {
            (Some(id), Some(NameClash::Same(place))) => {
                fields.problem(format!("id \"{id}\" is taken by the agent{place}"));
            }
            (_, Some(NameClash::LetterCase(message))) => fields.problem(format!("id {message}")),
            (None, Some(NameClash::Same(_))) | (_, None) => {}
        }
        if let Some(owner) = owner
            .as_ref()
            .filter(|owner| !people.persons.contains_key(owner))
        {
            let near = nearest(owner.as_str(), people.persons.keys().map(PersonId::as_str));
            fields.problem(format!(
                "owner \"{owner}\" is not a person of people.toml{near}"
            ));
        }
        for name in catalogue
            .into_iter()
            .flat_map(|c| ceiling.iter().filter(|name| c.action(name).is_none()))
        {
            let near = nearest(
                name.as_str(),
                catalogue.into_iter().flat_map(Catalogue::names),
            );
            fields.problem(format!("action \"{name}\" is not in the catalogue{near}"));
        }
        let never = |name: &&ActionName| {
            let action = catalogue.and_then(|catalogue| catalogue.action(name));
            action.is_some_and(|action| action.never)
        };
        for name in ceiling.iter().filter(never) {
            fields.problem_at("actions", format!("\"{name}\" is marked @never in the catalogue: no agent may have it; take it out"));
        }
        if let (
            Some(id),
            Some(spiffe_id),
            Some(owner),
            Some(environment),
            Some(model),
            Some(autonomy),
        ) = (id, spiffe_id, owner, environment, model, autonomy)
        {
            if people.service_spiffe_ids.contains(&spiffe_id) {
                fields.problem("a validator or auditor of people.toml has this spiffe_id: a workload that asks for tokens does not check them");
            }
            if let Some(jkt) = jkt {
                match (people.key_holders.get(&jkt), pins.get(&jkt)) {
                    (Some(holder), _) => fields.problem(format!(
                        "jkt is a key of \"{holder}\" in people.toml: an agent has a key of its own"
                    )),
                    (None, Some(other)) => fields.problem(format!(
                        "the agent \"{other}\" is pinned to this jkt: each agent has a key of its own"
                    )),
                    (None, None) => drop(pins.insert(jkt, id.clone())),
                }
            }
            if !spiffe_ids.insert(spiffe_id.clone()) {
                fields.problem("another agent has this spiffe_id; exactly one agent must match");
            }
            if !is_taken {
                lines.insert(id.clone(), line);
                agents.insert(
                    id.clone(),
                    Arc::new(RegisteredAgent {
                        id,
                        spiffe_id,
                        owner,
                        environment,
                        model,
                        autonomy,
                        groups,
                        jkt,
                        ceiling,
                        executors,
                    }),
                );
            }
        }
        fields.finish();
    }
    autonomy_rules.check(&agents, &lines, catalogue, top.problems());
    top.finish();
    Some(Agents {
        registered: agents,
        environments: declared,
        autonomy: autonomy_rules,
    })
}
