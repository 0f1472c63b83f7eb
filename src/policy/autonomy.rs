//! Autonomy: what the broker asks of people for advisory and supervised agents, in addition to the team's rules.
//!
//! In: `[autonomy]` of `agents.toml` and the registered agents. Out: rules of the broker's own, which Cedar evaluates beside the team's:
//! forbids with a profile as their remedy, lifted by approvals under it, or under another one of as many people whose votes are signed at
//! least as strongly. So they are explained, tested, planned and asked again like every other rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::catalogue::Catalogue;
use super::files::AGENTS;
use super::people::{People, StepUpProfile};
use super::problem::{Problems, nearest};
use super::toml_reader::{TableReader, TomlSource};
use crate::model::{ActionName, AgentId, Autonomy, Digest, ProfileName, RegisteredAgent};

/// The id of the rule about advisory agents.
pub(super) const ADVISORY_RULE: &str = "autonomy-advisory";

/// `[autonomy]` of `agents.toml`.
#[derive(Debug, Default)]
pub(super) struct AutonomyRules {
    /// The people who decide on recommendations, where no rule asks for others; with its line.
    advisory: Option<(ProfileName, Option<usize>)>,
    /// For each marked action or group of actions the people whom a supervised agent needs, where no rule asks for others.
    supervised: BTreeMap<String, (ProfileName, Option<usize>)>,
    /// Whether the file has marks, right or wrong, and a profile for recommendations.
    has_marks: bool,
    has_advisory: bool,
    /// Whether an agent's owner may own the executor of its recommendations, too.
    same_owner_executors: bool,
}

/// A rule of the broker's own.
#[derive(Debug)]
pub(super) struct BuiltInRule {
    /// Line of `agents.toml` that asks for it.
    pub(super) line: usize,
    /// Cedar's text.
    pub(super) text: String,
}

impl AutonomyRules {
    /// Reads `[autonomy]`; absent, it marks nothing.
    pub(super) fn read(
        top: &mut TableReader<'_, '_>,
        source: TomlSource<'_>,
        people: &People,
        catalogue: Option<&Catalogue>,
    ) -> Self {
        let Some((at, table)) = top.table("autonomy") else {
            return Self::default();
        };
        let mut fields = TableReader::new(source, "autonomy", Some(at), table, top.problems());
        let profile = |text: &str| {
            let declared = &people.declared_profiles;
            let name = ProfileName::parse(text).ok();
            name.filter(|name| declared.contains(name)).ok_or_else(|| {
                let near = nearest(text, declared.iter().map(ProfileName::as_str));
                format!(
                    "\"{}\" is not a profile of people.toml{near}",
                    text.escape_debug()
                )
            })
        };
        let mut read = Self {
            has_advisory: fields.get("advisory").is_some(),
            ..Self::default()
        };
        if let Some(at) = fields.get("advisory")
            && let Some(text) = fields.text("advisory")
        {
            match profile(text) {
                Ok(name) => read.advisory = Some((name, source.line(at))),
                Err(message) => fields.invalid("advisory", at, &message),
            }
        }
        if let Some(at) = fields.get("same_owner_executors") {
            match at.get_ref().as_bool() {
                Some(may) => read.same_owner_executors = may,
                None => fields.invalid("same_owner_executors", at, "must be true or false"),
            }
        }
        if let Some((_, marks)) = fields.table("supervised") {
            read.has_marks = !marks.is_empty();
            for (key, at) in marks {
                let group = key.get_ref().as_ref();
                // A name that the catalogue does not have reaches no rule; of an unreadable schema every name is one.
                let Some(known) = catalogue.map(Catalogue::group_names) else {
                    continue;
                };
                if !known.contains(group) {
                    let near = nearest(group, known);
                    let group = group.escape_debug();
                    let message =
                        format!("\"{group}\" is no action or group of the catalogue{near}");
                    fields.invalid("supervised", at, &message);
                    continue;
                }
                match at.get_ref().as_str().map(profile) {
                    Some(Ok(name)) => {
                        let mark = (name, source.line(at));
                        read.supervised.insert(group.to_owned(), mark);
                    }
                    Some(Err(message)) => fields.invalid("supervised", at, &message),
                    None => {
                        let message = "must be an action or group with the name of a profile, such as destructive = \"two-people\"";
                        fields.invalid("supervised", at, message);
                    }
                }
            }
        }
        fields.finish();
        read
    }

    /// Reports agents whose autonomy the bundle does not enforce, and executors that could not act. `lines`: of each agent's table.
    pub(super) fn check(
        &self,
        agents: &BTreeMap<AgentId, Arc<RegisteredAgent>>,
        lines: &BTreeMap<AgentId, Option<usize>>,
        catalogue: Option<&Catalogue>,
        problems: &mut Problems,
    ) {
        let supervised = || {
            let all = agents.values();
            all.filter(|agent| agent.autonomy == Autonomy::Supervised)
        };
        for (group, (_, line)) in &self.supervised {
            let is_in_group = |action: &ActionName| {
                let known = catalogue.and_then(|catalogue| catalogue.action(action));
                action.as_str() == group
                    || known.is_some_and(|action| action.groups.contains(group))
            };
            let is_met = supervised().any(|agent| agent.ceiling.iter().any(is_in_group));
            if catalogue.is_some() && supervised().next().is_some() && !is_met {
                problems.add(AGENTS, *line, format!(
                    "autonomy: supervised: no supervised agent may request \"{group}\": the mark does nothing; correct or remove it"
                ));
            }
        }
        for agent in agents.values() {
            let line = lines.get(&agent.id).copied().flatten();
            let mut problem =
                |message: String| problems.add(AGENTS, line, format!("agent: {message}"));
            match agent.autonomy {
                Autonomy::Advisory if !self.has_advisory => problem(format!(
                    "\"{}\" is advisory, and nothing says who decides on its recommendations: write [autonomy] with advisory = \"PROFILE\"",
                    agent.id
                )),
                Autonomy::Supervised if !self.has_marks => problem(format!(
                    "\"{}\" is supervised, and nothing says for which actions it needs people: write [autonomy] with supervised = {{ GROUP = \"PROFILE\" }}, or make the agent autonomous",
                    agent.id
                )),
                Autonomy::Advisory | Autonomy::Supervised | Autonomy::Autonomous => {}
            }
            match (agent.autonomy, agent.executors.is_empty()) {
                (Autonomy::Advisory, true) => problem(format!(
                    "\"{}\" is advisory, and no agent may execute what it recommends: list them in executors = [\"AGENT\"]",
                    agent.id
                )),
                (Autonomy::Supervised | Autonomy::Autonomous, false) => problem(format!(
                    "\"{}\" has executors, and only an advisory agent has any: take them out, or make it advisory",
                    agent.id
                )),
                _ => {}
            }
            let executable = |action: &&ActionName| {
                let mut executors = agent.executors.iter().filter_map(|id| agents.get(id));
                executors.any(|executor| executor.ceiling.contains(*action))
            };
            let is_known = |id: &AgentId| agents.contains_key(id);
            if !agent.executors.is_empty() && agent.executors.iter().all(is_known) {
                for action in agent.ceiling.iter().filter(|action| !executable(action)) {
                    problem(format!(
                        "actions: no executor of \"{}\" may request \"{action}\": add it to the `actions` of one, or take it out here",
                        agent.id
                    ));
                }
            }
            for id in &agent.executors {
                if let Some(message) = self.executor_fault(agent, id, agents) {
                    problem(format!("executors: {message}"));
                }
            }
        }
    }

    /// Why an agent cannot execute what another recommends.
    fn executor_fault(
        &self,
        agent: &RegisteredAgent,
        id: &AgentId,
        agents: &BTreeMap<AgentId, Arc<RegisteredAgent>>,
    ) -> Option<String> {
        let Some(executor) = agents.get(id) else {
            let near = nearest(id.as_str(), agents.keys().map(AgentId::as_str));
            return Some(format!("\"{id}\" is no agent of this file{near}"));
        };
        if executor.id == agent.id {
            return Some("an agent does not execute its own recommendations".to_owned());
        }
        if executor.autonomy == Autonomy::Advisory {
            return Some(format!("\"{id}\" is advisory itself, and gets no token"));
        }
        if executor.owner == agent.owner && !self.same_owner_executors {
            return Some(format!(
                "\"{id}\" has the same owner, \"{}\": name an agent of another person, or write same_owner_executors = true in [autonomy]",
                agent.owner
            ));
        }
        if executor.ceiling.is_disjoint(&agent.ceiling) {
            return Some(format!(
                "\"{id}\" may request none of the actions that \"{}\" may recommend",
                agent.id
            ));
        }
        None
    }

    /// The broker's rules for the agents that there are. Each is lifted by its profile, and by every other one of at least as many people
    /// whose votes are signed at least as strongly.
    pub(super) fn rules(
        &self,
        agents: &BTreeMap<AgentId, Arc<RegisteredAgent>>,
        profiles: &BTreeMap<ProfileName, StepUpProfile>,
    ) -> Vec<BuiltInRule> {
        let any = |autonomy| agents.values().any(|agent| agent.autonomy == autonomy);
        let approvals = |asked: &ProfileName| {
            let asked = profiles.get(asked);
            let enough = profiles.values().filter(|profile| {
                asked.is_some_and(|asked| {
                    profile.quorum >= asked.quorum && asked.method.accepts(profile.method)
                })
            });
            let names: Vec<String> = enough
                .map(|profile| format!("StepUp::\"{}\"", profile.name))
                .collect();
            names.join(", ")
        };
        let rule = |id: String,
                    why: &str,
                    actions: String,
                    autonomy: Autonomy,
                    profile: &ProfileName| {
            format!(
                "@id(\"{id}\") @step_up(\"{profile}\") @why(\"{why}\") forbid (principal, action in {actions}, resource) \
                 when {{ principal.autonomy == \"{}\" }} unless {{ context.approvals.containsAny([{}]) }};",
                autonomy.as_str(),
                approvals(profile)
            )
        };
        let mut rules = Vec::new();
        if let (Some((profile, line)), true) = (&self.advisory, any(Autonomy::Advisory)) {
            let advisory = agents
                .values()
                .filter(|agent| agent.autonomy == Autonomy::Advisory);
            let all: BTreeSet<&ActionName> = advisory.flat_map(|agent| &agent.ceiling).collect();
            let all: Vec<String> = all
                .into_iter()
                .map(|name| format!("Action::\"{name}\""))
                .collect();
            let why = "People decide on what an advisory agent recommends";
            let actions = format!("[{}]", all.join(", "));
            let id = ADVISORY_RULE.to_owned();
            rules.push(BuiltInRule {
                line: line.unwrap_or(1),
                text: rule(id, why, actions, Autonomy::Advisory, profile),
            });
        }
        for (group, (profile, line)) in &self.supervised {
            if !any(Autonomy::Supervised) {
                break;
            }
            let why = format!(
                "A supervised agent needs people for {}",
                group.escape_debug()
            );
            let id = rule_id(group);
            let actions = format!("Action::\"{}\"", group.escape_debug());
            rules.push(BuiltInRule {
                line: line.unwrap_or(1),
                text: rule(id, &why, actions, Autonomy::Supervised, profile),
            });
        }
        rules
    }

    /// Whether the owner of an agent may own the executor of its recommendations, too.
    pub(super) const fn allows_same_owner(&self) -> bool {
        self.same_owner_executors
    }
}

/// The id of the rule of a mark: with the name of its action or group, or with a digest where that is too long or has other characters.
fn rule_id(name: &str) -> String {
    let id = format!("autonomy-supervised-{name}");
    match ProfileName::parse(&id) {
        Ok(_) => id,
        Err(_) => {
            let digest = Digest::sha256(name.as_bytes()).to_string();
            format!("autonomy-supervised-{}", digest.get(..11).unwrap_or("…"))
        }
    }
}
