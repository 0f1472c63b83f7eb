//! The rules room: what the security team wrote, checked as a whole, and the answers it gives.
//!
//! In: the files of a policy bundle as text; then questions about one agent and one action. Out: a [`PolicyBundle`] that
//! passed every check and its own self-test, or a [`BundleError`] with everything that is wrong; then an [`Answer`].
//! It trusts nothing in the files but their meaning, and takes time, ages and approvals as arguments from the gates.
//! It refuses what Cedar would let pass: unknown annotations, contexts that differ, rules without an id, unknown keys.
//! Cedar is the only judge; a remedy is a hint, tried and judged again. A rule that fails denies.
//! It never reads a file, a clock or the network, and never mints, records or remembers a decision.

mod agents;
mod approvals;
mod ask;
mod catalogue;
mod entities;
mod files;
mod in_force;
mod judge;
mod people;
mod problem;
mod rule;
mod schema;
mod selftest;
mod shape;
mod slices;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use crate::model::Risk;
pub use approvals::Approvals;
pub use ask::{Answer, OperateAnswer, Question};
pub use catalogue::{CatalogueAction, ParamSpec, ParamType};
pub use files::{BYTES_MAX, BundleFiles, FILES_MAX};
pub use in_force::{InForce, Registered};
pub use people::{Method, Person, PersonKey, Profile, QUORUM_MAX, Role, Service, ServiceKind};
pub use problem::{BundleError, Problem};
pub use rule::{Remedy, RuleEffect, RuleInfo};

use crate::model::{
    Action, ActionName, RegisteredAgent, AgentId, Audience, Digest, PersonId, ProfileName, ServiceId,
    SpiffeId, Target,
};
use catalogue::Catalogue;
use entities::Store;
use judge::Judge;
use people::People;
use problem::Problems;
use rule::Rules;
use schema::{Merged, OPERATE};
use slices::Slices;

/// People and profiles, each by name.
pub type PeopleAndProfiles = (BTreeMap<PersonId, Person>, BTreeMap<ProfileName, Profile>);

/// One version of the security team's directory, whole and checked.
pub struct PolicyBundle {
    version: Digest,
    catalogue: Catalogue,
    people: People,
    agents: BTreeMap<AgentId, Arc<RegisteredAgent>>,
    by_spiffe_id: BTreeMap<SpiffeId, Vec<Arc<RegisteredAgent>>>,
    rules: Rules,
    slices: Slices,
    judge: Judge,
    warnings: Vec<Problem>,
}

/// Why an action cannot be asked about at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionProblem {
    /// The catalogue has no such action.
    #[error("the catalogue has no such action")]
    UnknownAction,
    /// The bundle has no such target, or the action is not for targets of its type.
    #[error("no such target for this action")]
    UnknownTarget,
    /// A parameter is missing, unknown or of another type; names it, never its value.
    #[error("wrong parameters: {0}")]
    WrongParameters(String),
    /// No registered validator has this audience.
    #[error("no registered validator has this audience")]
    UnknownAudience,
}

impl PolicyBundle {
    /// Reads and checks everything, then proves that known forbids fire. All problems are found in one pass, as far as
    /// one does not hide another.
    pub fn load(files: &BundleFiles) -> Result<Self, BundleError> {
        let mut problems = Problems::default();
        let mut warnings = Problems::default();
        let text = |path| files.text(path).unwrap_or_default();

        let people = People::read(text(files::PEOPLE), &mut problems, &mut warnings);
        let schema_text = text(files::SCHEMA);
        let merged = Merged::read(schema_text, &people.profiles, &mut problems, &mut warnings);
        let catalogue = merged
            .as_ref()
            .map(|merged| Catalogue::read(merged, schema_text, &mut problems));
        let agents = agents::read(
            text(files::AGENTS),
            &people,
            catalogue.as_ref(),
            &mut problems,
        );
        let schema = merged.as_ref().map(|merged| &merged.schema);
        let rules = Rules::read(
            files.rules(),
            &people.profiles,
            schema,
            &mut problems,
            &mut warnings,
        );
        let (Some(merged), Some(catalogue)) = (merged, catalogue) else {
            return Err(problems.refuse());
        };
        let targets = text(files::ENTITIES);
        let Some(store) = Store::build(
            &merged.schema,
            catalogue.types(),
            targets,
            &agents,
            &people,
            &mut problems,
        ) else {
            return Err(problems.refuse());
        };
        rules.warn_of_strangers(&store, &mut warnings);
        let actions = catalogue.names().chain([OPERATE]);
        let slices = Slices::cut(&rules.set, &store, actions);
        let judge = Judge::new(merged.schema, store);
        if problems.is_empty()
            && let Err(broken) = selftest::prove(&judge, &catalogue)
        {
            broken
                .into_iter()
                .for_each(|message| problems.add("bundle", None, format!("self-test: {message}")));
        }
        let mut by_spiffe_id: BTreeMap<SpiffeId, Vec<Arc<RegisteredAgent>>> = BTreeMap::new();
        for agent in agents.values() {
            by_spiffe_id
                .entry(agent.spiffe_id.clone())
                .or_default()
                .push(Arc::clone(agent));
        }
        let version = files.version();
        let warnings = warnings.into_sorted();
        problems.or(Self {
            version,
            catalogue,
            people,
            agents,
            by_spiffe_id,
            rules,
            slices,
            judge,
            warnings,
        })
    }

    /// The people and profiles of a bundle, whatever else is in it: an audit reads bundles that were taken long ago.
    pub fn people_in(files: &BundleFiles) -> Result<PeopleAndProfiles, BundleError> {
        let (mut problems, mut warnings) = (Problems::default(), Problems::default());
        let text = files.text(files::PEOPLE).unwrap_or_default();
        let people = People::read(text, &mut problems, &mut warnings);
        problems.or((people.persons, people.profiles))
    }

    /// SHA-256 of the canonical form of its files.
    pub fn version(&self) -> Digest {
        self.version
    }

    /// Whether anybody could ever put another bundle in force: a broker takes no other. An example to start from need not be
    /// so yet.
    pub fn governable(&self) -> Result<(), &'static str> {
        let operates = |p: &Person| p.roles.contains(&Role::Operator) && !p.keys.is_empty();
        match self.people().any(operates) {
            true => Ok(()),
            false => Err("people.toml: no operator has a key; add a [[key]] of one"),
        }
    }

    /// How many people could satisfy a profile for an agent of this owner, as far as the bundle tells: approvers of its
    /// group, without the owner, with a key where the profile takes one. Whether they have passkeys the journal says.
    pub fn eligible(&self, profile: &Profile, owner: &PersonId) -> usize {
        let able = |p: &&Person| {
            p.id != *owner
                && p.roles.contains(&Role::Approver)
                && p.groups.contains(&profile.group)
                && (profile.method == Method::Passkey || !p.keys.is_empty())
        };
        self.people().filter(able).count()
    }

    /// How much people are asked, and what follows from their noes.
    pub fn approvals(&self) -> &Approvals {
        &self.people.approvals
    }

    /// What is odd but not wrong.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// The agent with this id.
    pub fn agent(&self, id: &AgentId) -> Option<Arc<RegisteredAgent>> {
        self.agents.get(id).map(Arc::clone)
    }

    /// Every agent, by id.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<RegisteredAgent>> {
        self.agents.values()
    }

    /// The agents an attested identity may operate as; gate 1 wants exactly one.
    pub fn agents_matching(&self, spiffe_id: &SpiffeId) -> Vec<&Arc<RegisteredAgent>> {
        self.by_spiffe_id
            .get(spiffe_id)
            .into_iter()
            .flatten()
            .collect()
    }

    /// The person with this id.
    pub fn person(&self, id: &PersonId) -> Option<&Person> {
        self.people.persons.get(id)
    }

    /// Every person, by id.
    pub fn people(&self) -> impl Iterator<Item = &Person> {
        self.people.persons.values()
    }

    /// The validator or auditor with this id.
    pub fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.people.services.get(id)
    }

    /// Every validator and auditor, by id.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.people.services.values()
    }

    /// The step-up profile with this name.
    pub fn profile(&self, name: &ProfileName) -> Option<&Profile> {
        self.people.profiles.get(name)
    }

    /// Every step-up profile, by name.
    pub fn profiles(&self) -> impl Iterator<Item = &Profile> {
        self.people.profiles.values()
    }

    /// Whether a registered validator has this audience, byte by byte.
    pub fn audience_known(&self, audience: &Audience) -> bool {
        self.people.audiences.contains(audience)
    }

    /// The action with this name.
    pub fn action(&self, name: &ActionName) -> Option<&CatalogueAction> {
        self.catalogue.action(name)
    }

    /// Every action of the catalogue, by name.
    pub fn actions(&self) -> impl Iterator<Item = &CatalogueAction> {
        self.catalogue.actions()
    }

    /// The rule with this `@id`.
    pub fn rule(&self, id: &str) -> Option<&RuleInfo> {
        self.rules.infos.get(id)
    }

    /// Every rule, by id.
    pub fn rules(&self) -> impl Iterator<Item = &RuleInfo> {
        self.rules.infos.values()
    }

    /// What the bundle says about a target, in plain text by attribute; nothing when it does not know the target.
    pub fn target_facts(&self, target: &Target) -> Option<Vec<(String, String)>> {
        self.judge.store().facts(target)
    }

    /// Whether the action can be asked about: known, for a target and an audience that exist, with the parameters the
    /// catalogue says. An action with `open_targets` may name targets that do not exist, of the types it is for.
    pub fn check_action(&self, action: &Action) -> Result<&CatalogueAction, ActionProblem> {
        let known = self
            .catalogue
            .action(&action.name)
            .ok_or(ActionProblem::UnknownAction)?;
        let exists = known.open_targets || self.judge.store().knows_target(&action.target);
        if !known.target_types.contains(&action.target.kind) || !exists {
            return Err(ActionProblem::UnknownTarget);
        }
        if !self.audience_known(&action.audience) {
            return Err(ActionProblem::UnknownAudience);
        }
        known
            .check_parameters(&action.parameters)
            .map_err(ActionProblem::WrongParameters)?;
        Ok(known)
    }
}

/// Names the version only: a bundle is long.
impl std::fmt::Debug for PolicyBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PolicyBundle({})", self.version)
    }
}
