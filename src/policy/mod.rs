//! Policy: a bundle of Cedar policies, schema, entities, agents and people, checked as a whole, and its decisions.
//!
//! In: the files of a policy bundle as text; then requests of one agent for one action. Out: a [`PolicyBundle`] that passed
//! every check and its own self-test, or a [`BundleError`] with every problem; then an [`AuthzDecision`].
//! Trusts the meaning of the files and nothing else in them; time, ages and approvals are arguments of the gates.
//! Refuses what Cedar accepts: unknown annotations, contexts that differ, rules without an id, unknown keys.
//! Cedar alone decides; a remedy is a hint, applied and evaluated again. A rule that fails to evaluate denies.
//! Never reads a file, a clock or the network, and never mints, records or caches a decision.

mod active_policy;
mod agents;
mod alike;
mod approvals;
mod authorize;
mod autonomy;
mod calendar;
mod cases;
mod catalogue;
mod changes;
mod check;
mod counts;
pub mod diff;
mod entities;
mod evaluator;
mod files;
mod key_votes;
mod named_facts;
mod nearest;
mod nesting;
mod people;
mod policy_index;
mod problem;
pub mod replay;
mod rule;
mod rule_reads;
mod schema;
mod schema_types;
mod seats;
mod selftest;
pub mod sentences;
mod spellings;
mod target_people;
#[cfg(test)]
mod tests;
mod toml_reader;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use cedar_policy::EntityUid;

pub use crate::model::{Risk, VoteMethod};
pub use active_policy::{ActivePolicy, RegisteredCaller};
pub use alike::AlikeRequests;
pub use approvals::ApprovalLimits;
pub use authorize::{AuthzDecision, AuthzRequest, OperateDecision};
pub use cases::TestReport;
pub use catalogue::{CatalogueAction, ParamSpec, ParamType};
pub use changes::{ANOTHER_OPERATOR, ChangeAgreement, ChangeRule};
pub use entities::EntityFacts;
pub use files::{BYTES_MAX, BundleFiles, FILES_MAX};
pub use nearest::{NearestPermit, PermitMiss, PermitPart, ReadValue, RuleFailure};
pub use people::{Person, QUORUM_MAX, RegisteredService, Role, ServiceKind, StepUpProfile};
pub use problem::{BundleError, BundleProblem};
pub use rule::{Remedy, RuleEffect, RuleInfo};
pub use seats::can_be_filled;

use crate::model::text::nearest_word;
use crate::model::{
    Action, ActionName, AgentId, Audience, CountName, Digest, FactName, POLICY_NAMESPACE, PersonId,
    ProfileName, RegisteredAgent, ServiceId, SpiffeId, Target, Timestamp,
};
use calendar::Calendar;
use catalogue::Catalogue;
use counts::DeclaredCounts;
pub use counts::{CountPer, DeclaredCount};
use entities::EntityStore;
use evaluator::DeclaredContext;
use evaluator::Evaluator;
pub use named_facts::DeclaredFact;
use named_facts::DeclaredFacts;
use people::People;
use policy_index::PolicyIndex;
use problem::Problems;
use rule::RuleSet;
use rule_reads::RuleReads;
use schema::MergedSchema;

/// People and profiles, each by name.
pub type PeopleAndProfiles = (
    BTreeMap<PersonId, Person>,
    BTreeMap<ProfileName, StepUpProfile>,
);

/// One version of the security team's policy bundle, complete and checked.
pub struct PolicyBundle {
    version: Digest,
    catalogue: Catalogue,
    people: People,
    agents: BTreeMap<AgentId, Arc<RegisteredAgent>>,
    by_spiffe_id: BTreeMap<SpiffeId, Vec<Arc<RegisteredAgent>>>,
    rules: RuleSet,
    policy_index: PolicyIndex,
    /// The named facts that each rule reads.
    rule_facts: RuleReads<FactName>,
    /// The counts that each rule reads.
    rule_counts: RuleReads<CountName>,
    evaluator: Evaluator,
    warnings: Vec<BundleProblem>,
    another_operator: Option<StepUpProfile>,
    asking: OnceLock<BTreeMap<ProfileName, BTreeSet<AgentId>>>,
    silenced_quorums: BTreeMap<String, String>,
    same_owner_executors: bool,
}

/// Why a request for an action is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// The catalogue does not have this action; with the nearest that it has.
    #[error("the catalogue has no action `{name}`{}", near.as_ref().map_or_else(String::new, |near| format!(": did you mean `{near}`?")))]
    UnknownAction {
        /// As requested.
        name: ActionName,
        /// The nearest known name, when one is near.
        near: Option<String>,
    },
    /// The bundle does not have this target.
    #[error("the policy bundle has no target `{0}`")]
    UnknownTarget(Target),
    /// The action is not for targets of this type.
    #[error("the action is not for targets of type `{found}`: expected {}", expected.join(" or "))]
    WrongTargetType {
        /// As requested.
        found: String,
        /// The types of the catalogue.
        expected: Vec<String>,
    },
    /// A parameter is missing, unknown or of another type; names it, never its value.
    #[error("invalid parameters: {0}")]
    InvalidParameters(String),
    /// No registered validator has this audience.
    #[error("no registered validator has the audience `{0}`")]
    UnknownAudience(Audience),
}

impl PolicyBundle {
    /// Who agrees to a change of the policy bundle.
    pub const fn change_rule(&self) -> &ChangeRule {
        &self.people.changes
    }

    /// The profile of the people who agree to a change; `None` when the bundle lets one operator alone change it.
    pub fn change_profile(&self) -> Option<StepUpProfile> {
        self.people.changes.profile(&self.people.profiles)
    }

    /// Reads every file, then verifies by a self-test that forbids apply: a bundle that can decide. All problems are found in one
    /// pass, as far as one does not hide another.
    pub fn load(files: &BundleFiles) -> Result<Self, BundleError> {
        on_large_stack(|| {
            let mut problems = Problems::default();
            let mut warnings = Problems::default();
            let bundle = Self::read(files, &mut problems, &mut warnings);
            Self::or_problems(bundle, files, problems, warnings)
        })
    }

    /// The same for a bundle that is to be put in force: also refuses what its authors cannot have meant, such as a name that nothing
    /// declares, a rule that never matches, a remedy that lifts nothing, and a bundle whose own tests fail.
    pub fn load_checked(files: &BundleFiles) -> Result<Self, BundleError> {
        let (bundle, report) = Self::load_and_test(files)?;
        match report.failures.is_empty() {
            true => Ok(bundle),
            false => Err(BundleError::of_tests(report.failures)),
        }
    }

    /// The same, with the result of its tests, which may have failed.
    pub fn load_and_test(files: &BundleFiles) -> Result<(Self, TestReport), BundleError> {
        on_large_stack(|| Self::load_and_test_here(files))
    }

    fn load_and_test_here(files: &BundleFiles) -> Result<(Self, TestReport), BundleError> {
        let mut problems = Problems::default();
        let mut warnings = Problems::default();
        let mut bundle = Self::read(files, &mut problems, &mut warnings);
        let mut report = TestReport::default();
        if let Some(bundle) = &mut bundle {
            let is_sound = problems.is_empty();
            let samples_max = check::SAMPLES_MAX;
            let checked = check::check(
                bundle,
                files,
                is_sound,
                samples_max,
                &mut problems,
                &mut warnings,
            );
            bundle.asking = checked.asking.map(OnceLock::from).unwrap_or_default();
            bundle.silenced_quorums = checked.silenced_quorums;
            let tests = cases::read(files, bundle, &mut problems);
            if problems.is_empty() {
                report = cases::run(&tests, bundle, files);
            }
        }
        let bundle = Self::or_problems(bundle, files, problems, warnings)?;
        Ok((bundle, report))
    }

    fn or_problems(
        bundle: Option<Self>,
        files: &BundleFiles,
        mut problems: Problems,
        mut warnings: Problems,
    ) -> Result<Self, BundleError> {
        problems.attach_sources(files);
        warnings.attach_sources(files);
        match bundle {
            Some(bundle) => problems.or_value(Self {
                warnings: warnings.into_sorted(),
                ..bundle
            }),
            None => Err(problems.into_error()),
        }
    }

    /// The bundle as far as it can be read; nothing without a schema or entities.
    fn read(files: &BundleFiles, problems: &mut Problems, warnings: &mut Problems) -> Option<Self> {
        let text = |path| files.text(path).unwrap_or_default();

        let mut people = People::read(text(files::PEOPLE), problems, warnings);
        if !people.is_read {
            // What the other files name would all seem to be missing.
            return None;
        }
        let schema_text = text(files::SCHEMA);
        let mut declared = DeclaredContext {
            calendar: Calendar::read(files.text(files::CALENDAR), problems),
            facts: DeclaredFacts::read(files.text(files::FACTS), problems),
            counts: DeclaredCounts::read(files.text(files::COUNTS), problems),
        };
        let merged = MergedSchema::read(
            schema_text,
            &people.declared_profiles,
            &declared,
            problems,
            warnings,
        );
        let catalogue = merged
            .as_ref()
            .map(|merged| Catalogue::read(merged, schema_text, problems));
        if let Some(catalogue) = &catalogue {
            declared.counts.resolve(catalogue, problems);
        }
        let agents = agents::read(text(files::AGENTS), &people, catalogue.as_ref(), problems);
        let schema = merged.as_ref().map(|merged| &merged.schema);
        let built_in = agents.as_ref().map_or_else(Vec::new, |agents| {
            let autonomy = &agents.autonomy;
            autonomy.rules(&agents.registered, &people.profiles)
        });
        let rules = RuleSet::read(
            files.rules(),
            &built_in,
            &people.declared_profiles,
            schema,
            problems,
            warnings,
        );
        let (Some(merged), Some(catalogue), Some(agents)) = (merged, catalogue, agents) else {
            return None;
        };
        let targets = text(files::ENTITIES);
        let store = EntityStore::build(
            &merged.schema,
            catalogue.types(),
            targets,
            &agents,
            &people,
            problems,
        )?;
        target_people::assign(&mut people, &store, &catalogue, problems, warnings);
        let mut spellings = spellings::Spellings::default();
        entities::check_spellings(targets, &mut spellings, problems);
        rules.check_spellings(&mut spellings, problems);
        key_votes::check(&rules, &people, &catalogue, &store, problems);
        let policy_index = PolicyIndex::build(&rules.set);
        let facts = declared.facts.iter();
        let facts = facts.map(|fact| (fact.name.as_str(), fact.name.clone()));
        let rule_facts = RuleReads::of(&rules.set, schema::FACTS_MEMBER, facts);
        let counts = declared.counts.iter();
        let counts = counts.map(|count| (count.name.as_str(), count.name.clone()));
        let rule_counts = RuleReads::of(&rules.set, schema::COUNTS_MEMBER, counts);
        let evaluator = Evaluator::new(merged.schema, store, declared);
        if problems.is_empty()
            && let Err(failures) = selftest::verify(&evaluator, &catalogue)
        {
            failures
                .into_iter()
                .for_each(|message| problems.add("bundle", None, format!("self-test: {message}")));
        }
        let mut by_spiffe_id: BTreeMap<SpiffeId, Vec<Arc<RegisteredAgent>>> = BTreeMap::new();
        for agent in agents.registered.values() {
            by_spiffe_id
                .entry(agent.spiffe_id.clone())
                .or_default()
                .push(Arc::clone(agent));
        }
        let version = files.version();
        let another_operator = people.changes.another_operator();
        Some(Self {
            version,
            catalogue,
            people,
            agents: agents.registered,
            by_spiffe_id,
            rules,
            policy_index,
            rule_facts,
            rule_counts,
            evaluator,
            warnings: Vec::new(),
            another_operator,
            asking: OnceLock::new(),
            silenced_quorums: BTreeMap::new(),
            same_owner_executors: agents.autonomy.allows_same_owner(),
        })
    }

    /// The people and profiles of a bundle, without a check of its other files: a receipt reads bundles of older versions.
    pub fn people_in(files: &BundleFiles) -> Result<PeopleAndProfiles, BundleError> {
        let (mut problems, mut warnings) = (Problems::default(), Problems::default());
        let text = files.text(files::PEOPLE).unwrap_or_default();
        let people = People::read(text, &mut problems, &mut warnings);
        problems.or_value((people.persons, people.profiles))
    }

    /// SHA-256 of the canonical form of its files.
    pub fn version(&self) -> Digest {
        self.version
    }

    /// Checks that an operator has a key: without one, no further bundle could be applied. An example bundle need not pass.
    pub fn check_has_operator(&self) -> Result<(), &'static str> {
        let is_operator_with_key =
            |p: &Person| p.roles.contains(&Role::Operator) && !p.keys.is_empty();
        match self.people().any(is_operator_with_key) {
            true => Ok(()),
            false => Err("people.toml: no operator has a key; add a [[key]] of one"),
        }
    }

    /// The people who could satisfy a profile, as far as the bundle tells: approvers of its group, with a key where the profile
    /// takes one; an agent's owner is not eligible for that agent. Passkeys are known to the journal only.
    pub fn eligible_approvers(&self, profile: &StepUpProfile) -> BTreeSet<&PersonId> {
        let able = |p: &&Person| {
            profile.takes(p) && (profile.method == VoteMethod::Passkey || !p.keys.is_empty())
        };
        self.people().filter(able).map(|p| &p.id).collect()
    }

    /// For each profile of a remedy the agents whose requests may ask for it, by sample requests; none for a profile that no request
    /// of any agent asks for. Of a bundle that was not checked the first call takes as long as a check.
    pub fn asking_agents(&self) -> &BTreeMap<ProfileName, BTreeSet<AgentId>> {
        self.asking
            .get_or_init(|| on_large_stack(|| check::askers(self)))
    }

    /// The same where it is known already.
    pub fn known_asking_agents(&self) -> Option<&BTreeMap<ProfileName, BTreeSet<AgentId>>> {
        self.asking.get()
    }

    /// Why the bundle is meant to come in force though too few people could satisfy a profile, if its `checks.toml` says so.
    pub fn silenced_quorum(&self, profile: &ProfileName) -> Option<&str> {
        self.silenced_quorums
            .get(profile.as_str())
            .map(String::as_str)
    }

    /// Limits on access requests, and the consequences of denials.
    pub fn approval_limits(&self) -> &ApprovalLimits {
        &self.people.approvals
    }

    /// How a vote under a profile on an action is signed: by passkey alone where the profile says so, and where the action's risk is
    /// not below `key_votes_below`, since a script can hold a registered key. An action that the catalogue does not have, or
    /// without a risk, counts as high.
    /// Of an agreement to a change of the bundle, or to a fact, its profile alone says it.
    pub fn vote_method(&self, profile: &StepUpProfile, action: &ActionName) -> VoteMethod {
        if action.as_str().starts_with(POLICY_NAMESPACE) {
            return profile.method;
        }
        let risk = self
            .action(action)
            .map_or(Risk::High, CatalogueAction::risk_or_high);
        match profile.method {
            VoteMethod::Key if risk < self.approval_limits().key_votes_below => VoteMethod::Key,
            VoteMethod::Key | VoteMethod::Passkey => VoteMethod::Passkey,
        }
    }

    /// Findings that do not make the bundle invalid.
    pub fn warnings(&self) -> &[BundleProblem] {
        &self.warnings
    }

    /// The agent with this id.
    pub fn agent(&self, id: &AgentId) -> Option<Arc<RegisteredAgent>> {
        self.agents.get(id).map(Arc::clone)
    }

    /// The time in each zone of the calendar, as rules see it, in words.
    pub fn local_times(&self, moment: Timestamp) -> Vec<String> {
        let zones = self
            .evaluator
            .declared()
            .calendar
            .at(moment)
            .unwrap_or_default();
        zones.iter().map(ToString::to_string).collect()
    }

    /// Every agent, by id.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<RegisteredAgent>> {
        self.agents.values()
    }

    /// The agents an attested identity may operate as; gate 1 requires exactly one.
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
    pub fn service(&self, id: &ServiceId) -> Option<&RegisteredService> {
        self.people.services.get(id)
    }

    /// Every validator and auditor, by id.
    pub fn services(&self) -> impl Iterator<Item = &RegisteredService> {
        self.people.services.values()
    }

    /// A profile as it is for a request about a target.
    pub fn profile_about(
        &self,
        name: &ProfileName,
        target: &Target,
    ) -> Option<Cow<'_, StepUpProfile>> {
        self.profile(name).map(|profile| profile.about(target))
    }

    /// The step-up profile with this name.
    pub fn profile(&self, name: &ProfileName) -> Option<&StepUpProfile> {
        if let Some(operators) = self.another_operator.as_ref().filter(|p| p.name == *name) {
            return Some(operators);
        }
        self.people.profiles.get(name)
    }

    /// Every step-up profile, by name.
    pub fn profiles(&self) -> impl Iterator<Item = &StepUpProfile> {
        self.people.profiles.values()
    }

    /// Whether a registered validator has this audience, byte by byte.
    pub fn is_known_audience(&self, audience: &Audience) -> bool {
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

    /// The attributes of a target as text, by name; `None` for a target the bundle does not know.
    pub fn target_attributes(&self, target: &Target) -> Option<Vec<(String, String)>> {
        self.evaluator.store().attributes(target)
    }

    /// An agent as rules see it; `None` for one that the bundle does not register.
    pub fn agent_facts(&self, id: &AgentId) -> Option<EntityFacts> {
        self.evaluator.store().facts("Agent", id.as_str())
    }

    /// A target as rules see it; `None` for one that the bundle does not have.
    pub fn target_facts(&self, target: &Target) -> Option<EntityFacts> {
        self.evaluator.store().facts(&target.kind, &target.id)
    }

    /// An entity that a target names and the bundle does not declare.
    fn undeclared_entity(&self, target: &Target) -> Option<EntityUid> {
        let store = self.evaluator.store();
        let uid = store.uid(&target.kind, &target.id)?;
        let mut named = BTreeSet::new();
        for (_, value) in store.entities().get(&uid)?.attrs() {
            check::names::references(&value.ok()?, &mut named);
        }
        let is_declared =
            |other: &EntityUid| store.contains(other) || other.type_name().basename() == "StepUp";
        named.into_iter().find(|other| !is_declared(other))
    }

    /// What each target of the bundle is, by its name.
    fn target_texts(&self) -> sentences::Things {
        self.evaluator.store().things(self.catalogue.types())
    }

    fn unknown_action(&self, name: &ActionName) -> ActionError {
        let known = self.catalogue.actions().map(|action| action.name.as_str());
        ActionError::UnknownAction {
            name: name.clone(),
            near: nearest_word(name.as_str(), known).map(str::to_owned),
        }
    }

    /// Checks that the action is in the catalogue, for a known target and audience, with the parameters of the catalogue. An
    /// action with `open_targets` may name unknown targets of its types.
    pub fn check_action(&self, action: &Action) -> Result<&CatalogueAction, ActionError> {
        let known = self
            .catalogue
            .action(&action.name)
            .ok_or_else(|| self.unknown_action(&action.name))?;
        if !known.target_types.contains(&action.target.kind) {
            return Err(ActionError::WrongTargetType {
                found: action.target.kind.clone(),
                expected: known.target_types.iter().cloned().collect(),
            });
        }
        if !known.open_targets && !self.evaluator.store().contains_target(&action.target) {
            return Err(ActionError::UnknownTarget(action.target.clone()));
        }
        if !self.is_known_audience(&action.audience) {
            return Err(ActionError::UnknownAudience(action.audience.clone()));
        }
        known
            .check_parameters(&action.parameters)
            .map_err(ActionError::InvalidParameters)?;
        Ok(known)
    }
}

/// Runs on a stack of its own what takes rules apart and puts them together: Cedar calls itself for each level of an expression, and
/// the bounds on nesting are to hold with room to spare.
fn on_large_stack<T>(run: impl FnOnce() -> T) -> T {
    stacker::grow(STACK_BYTES, run)
}

/// The stack of what reads a bundle; only what is used of it takes memory.
const STACK_BYTES: usize = 64 << 20;

/// The version only: a bundle is long.
impl std::fmt::Debug for PolicyBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PolicyBundle({})", self.version)
    }
}
