//! People between two policy bundles: who leaves, loses a role, comes and returns.
//!
//! A bundle that drops a person, or takes a role, ends their passkeys, their invitation and their sessions. The same id in a later
//! bundle is another person, unless the operator who applies it says that the same one returns.

use std::collections::BTreeSet;

use super::State;
use super::confirmation::PersonKey;
use super::key_registry::{KeyHolder, KeyNames, KeyRefusal, KeyStanding, KeyUse};
use crate::jose::PublicKey;
use crate::model::{AgentId, GroupId, OperatorRecovery, PersonId, Thumbprint, Timestamp};
use crate::policy::{Person, PolicyBundle, Role};

/// What a policy bundle changes for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonChange {
    /// The person.
    pub person: PersonId,
    /// The change.
    pub kind: PersonChangeKind,
}

/// A kind of change for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PersonChangeKind {
    /// The bundle drops them.
    Left,
    /// The bundle takes these roles from them.
    LostRoles(Vec<Role>),
    /// The bundle takes groups or registered keys from them: their votes from before it do not count again.
    Narrowed {
        /// The groups.
        groups: Vec<GroupId>,
        /// The number of keys.
        keys: usize,
    },
    /// The bundle registers an id that the one before it had not: another person than any before with this id.
    Came,
    /// The operator says that they are the person who left, or who lost the role that the bundle gives back.
    Returned,
}

impl PersonChange {
    /// Whether passkeys, invitation and sessions end with it.
    pub const fn ends_credentials(&self) -> bool {
        match self.kind {
            PersonChangeKind::Left | PersonChangeKind::LostRoles(_) => true,
            PersonChangeKind::Narrowed { .. }
            | PersonChangeKind::Came
            | PersonChangeKind::Returned => false,
        }
    }

    /// The change in one sentence, without figures.
    pub fn sentence(&self) -> String {
        let person = &self.person;
        match &self.kind {
            PersonChangeKind::Left => format!("{person} leaves"),
            PersonChangeKind::LostRoles(roles) => {
                let roles: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
                format!("{person} loses the role {}", roles.join(", "))
            }
            PersonChangeKind::Narrowed { .. } => {
                format!("{person} loses groups or registered keys")
            }
            PersonChangeKind::Came => format!("{person} comes"),
            PersonChangeKind::Returned => format!("{person} returns"),
        }
    }
}

/// What a bundle changes for people against another, in sentences: what they lose, then what they get. A person who comes counts as
/// another than one of this id who left.
pub fn people_sentences(before: &PolicyBundle, after: &PolicyBundle) -> Vec<String> {
    let changes = person_changes(Some(before), after, &BTreeSet::new());
    let gains = person_gains(Some(before), after);
    changes
        .iter()
        .map(PersonChange::sentence)
        .chain(gains.iter().filter_map(PersonGain::sentence))
        .collect()
}

/// The changes between two bundles, by person. A person changes in one way: who loses a role and gains another has lost one.
pub(super) fn person_changes(
    before: Option<&PolicyBundle>,
    after: &PolicyBundle,
    returning: &BTreeSet<PersonId>,
) -> Vec<PersonChange> {
    let Some(before) = before else {
        return Vec::new();
    };
    let left = before
        .people()
        .filter(|person| after.person(&person.id).is_none())
        .map(|person| (person.id.clone(), PersonChangeKind::Left));
    let stayed = after.people().filter_map(|person| {
        let kind = match before.person(&person.id) {
            None if returning.contains(&person.id) => PersonChangeKind::Returned,
            None => PersonChangeKind::Came,
            Some(was) => {
                let lost: Vec<Role> = was.roles.difference(&person.roles).copied().collect();
                let gained = person.roles.difference(&was.roles).next().is_some();
                // Votes for a target that names them no more do not count by themselves; those for others do.
                let groups: Vec<GroupId> = was.groups.difference(&person.groups).cloned().collect();
                let dropped = |key: &&PublicKey| person.key(key.thumbprint()).is_none();
                let keys = was.keys.iter().filter(dropped).count();
                if !lost.is_empty() {
                    PersonChangeKind::LostRoles(lost)
                } else if gained && returning.contains(&person.id) {
                    PersonChangeKind::Returned
                } else if !groups.is_empty() || keys > 0 {
                    PersonChangeKind::Narrowed { groups, keys }
                } else {
                    return None;
                }
            }
        };
        Some((person.id.clone(), kind))
    });
    let mut changes: Vec<PersonChange> = left
        .chain(stayed)
        .map(|(person, kind)| PersonChange { person, kind })
        .collect();
    changes.sort_by(|a, b| a.person.cmp(&b.person));
    changes
}

/// The first person who is said to return, and does not with these changes.
fn not_returning<'a>(
    changes: &[PersonChange],
    returning: &'a BTreeSet<PersonId>,
) -> Option<&'a PersonId> {
    let returns = |person: &PersonId| {
        let is_return = |change: &PersonChange| {
            change.person == *person && change.kind == PersonChangeKind::Returned
        };
        changes.iter().any(is_return)
    };
    returning.iter().find(|person| !returns(person))
}

/// What a policy bundle gives a person who was registered before, or comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonGain {
    /// The person.
    pub person: PersonId,
    /// Roles.
    pub roles: Vec<Role>,
    /// Groups.
    pub groups: Vec<GroupId>,
    /// The groups of targets that name the person. The bundle's targets say it too, and the sentence does not repeat it.
    pub target_groups: Vec<GroupId>,
    /// Keys, by their thumbprints.
    pub keys: Vec<Thumbprint>,
}

impl PersonGain {
    /// What `people.toml` gives the person, in one sentence; nothing where targets alone name them.
    pub fn sentence(&self) -> Option<String> {
        let roles = self
            .roles
            .iter()
            .map(|role| format!("the role {}", role.as_str()));
        let groups = self.groups.iter().map(|group| format!("the group {group}"));
        let keys = match self.keys.len() {
            0 => None,
            1 => Some("1 registered key".to_owned()),
            n => Some(format!("{n} registered keys")),
        };
        let all: Vec<String> = roles.chain(groups).chain(keys).collect();
        (!all.is_empty()).then(|| format!("{} gets {}", self.person, all.join(", ")))
    }
}

/// What the bundle after another gives people, by person. The first bundle of a realm gives nothing that is news.
pub(super) fn person_gains(before: Option<&PolicyBundle>, after: &PolicyBundle) -> Vec<PersonGain> {
    let Some(before) = before else {
        return Vec::new();
    };
    let gain = |person: &Person| {
        let was = before.person(&person.id);
        let had_role = |role: &Role| was.is_some_and(|was| was.roles.contains(role));
        let had_group = |group: &GroupId| was.is_some_and(|was| was.is_in(group));
        let had_key = |key: &PublicKey| was.is_some_and(|was| was.key(key.thumbprint()).is_some());
        let roles: Vec<Role> = person
            .roles
            .iter()
            .copied()
            .filter(|r| !had_role(r))
            .collect();
        let new = |groups: &BTreeSet<GroupId>| -> Vec<GroupId> {
            let new = groups.iter().filter(|group| !had_group(group));
            new.cloned().collect()
        };
        let (groups, target_groups) = (new(&person.groups), new(&person.target_groups));
        let new_keys = person.keys.iter().filter(|key| !had_key(key));
        let keys: Vec<Thumbprint> = new_keys.map(PublicKey::thumbprint).collect();
        let has_groups = !groups.is_empty() || !target_groups.is_empty();
        let is_news = !roles.is_empty() || has_groups || !keys.is_empty();
        is_news.then(|| PersonGain {
            person: person.id.clone(),
            roles,
            groups,
            target_groups,
            keys,
        })
    };
    after.people().filter_map(gain).collect()
}

/// What a bundle would do to people and keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeopleRegistration {
    /// What changes for people.
    pub changes: Vec<PersonChange>,
    /// What people get: roles, groups and keys of `people.toml`.
    pub gains: Vec<PersonGain>,
    /// Dead keys that the bundle still registers for their holder: they do nothing.
    pub dead: Vec<(PersonId, Thumbprint)>,
}

impl PeopleRegistration {
    /// The people who return with it.
    pub fn returning(&self) -> BTreeSet<PersonId> {
        let returns = self.changes.iter();
        returns
            .filter(|change| change.kind == PersonChangeKind::Returned)
            .map(|change| change.person.clone())
            .collect()
    }
}

/// Why a bundle cannot come in force as journal and bundle stand together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// It registers a key that is not the holder's to have.
    #[error("`people.toml`: the key {key} of {holder}: {why}; register another key")]
    Key {
        /// The key.
        key: Thumbprint,
        /// The holder in the bundle.
        holder: KeyHolder,
        /// What stands against it.
        why: KeyRefusal,
    },
    /// It registers a key of a person who left under the same id.
    #[error(
        "`people.toml`: the key {key} is of the {person} who left or lost a role before: apply with `--returning {person}` if it is the same person, or register a new key"
    )]
    OfFormer {
        /// The key.
        key: Thumbprint,
        /// The id.
        person: PersonId,
    },
    /// It pins an agent to a key of another holder.
    #[error("`agents.toml`: the key {key} of {agent}: {why}; pin another key")]
    Pin {
        /// The key.
        key: Thumbprint,
        /// The agent.
        agent: AgentId,
        /// What stands against it.
        why: KeyRefusal,
    },
    /// The operator says of a person that they return who does not.
    #[error(
        "{0} does not return with this bundle: it neither registers the id anew nor gives a role back; leave out `--returning {0}`"
    )]
    NotReturning(PersonId),
    /// No operator could act.
    #[error(
        "`people.toml`: no operator would have a living key to freeze, revoke or apply a bundle with: register a new key for an operator"
    )]
    Ungoverned,
}

/// A recovery of the operators, as of the last one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RecoveryRecord {
    /// Its entry.
    pub index: u64,
    /// When.
    pub at: Timestamp,
    /// What the entry says.
    pub recovery: OperatorRecovery,
}

impl RecoveryRecord {
    /// Whether everyone is shown it: for seven days from its entry.
    pub fn is_shown(&self, now: Timestamp) -> bool {
        now < self.at.plus_secs(RECOVERY_SHOWN_S)
    }
}

/// Time for which a recovery is shown on every page of the console, in the log of each start and by `doctor`, in seconds.
const RECOVERY_SHOWN_S: i64 = 7 * 86_400;

impl State {
    /// The keys that die with a recovery of lost operators: those of the operators of the bundle before it, passkeys too, which the
    /// bundle after it does not register; and the passkeys of other people that were enrolled on invitations given with them, and that no
    /// other person confirmed.
    pub(super) fn lost_operator_keys(
        &self,
        before: &PolicyBundle,
        after: &PolicyBundle,
    ) -> Vec<PersonKey> {
        let operators = before
            .people()
            .filter(|p| p.roles.contains(&Role::Operator));
        let lost = |person: &PersonId| {
            let kept: Vec<Thumbprint> = after
                .person(person)
                .map(|person| {
                    person
                        .keys
                        .iter()
                        .flat_map(PublicKey::thumbprints)
                        .collect()
                })
                .unwrap_or_default();
            let records = self.key_registry.records_of(person).into_iter();
            records
                .filter(|known| {
                    known.standing != KeyStanding::Dead && !kept.contains(&known.thumbprint)
                })
                .map(|known| (person.clone(), known.thumbprint))
                .collect::<Vec<_>>()
        };
        let mut all: Vec<PersonKey> = operators.flat_map(|person| lost(&person.id)).collect();
        let stolen: Vec<Thumbprint> = all.iter().map(|(_, key)| *key).collect();
        all.extend(self.falls_with(&stolen).dead);
        all
    }

    /// What the bundle in force registers and the journal does not permit, for an audit: no broker makes such an entry. A key with which
    /// a task was opened in the same moment is no fault: it acts for neither.
    /// `before` is the bundle before it, `returning` the people whom its entry says to return.
    pub(crate) fn registration_fault(
        &self,
        before: Option<&PolicyBundle>,
        returning: &BTreeSet<PersonId>,
    ) -> Option<RegistrationError> {
        let rules = self.rules()?;
        let changes = person_changes(before, &rules.bundle, returning);
        if let Some(not) = not_returning(&changes, returning) {
            return Some(RegistrationError::NotReturning(not.clone()));
        }
        self.check_registration(&rules.bundle, &BTreeSet::new(), true)
            .err()
    }

    /// What stands against putting a bundle in force as the journal is.
    pub(super) fn may_register(
        &self,
        bundle: &PolicyBundle,
        returning: &BTreeSet<PersonId>,
    ) -> Result<PeopleRegistration, RegistrationError> {
        self.check_registration(bundle, returning, false)
    }

    /// `task_keys_count`: a key with which a task was opened is no fault, for an audit.
    fn check_registration(
        &self,
        bundle: &PolicyBundle,
        returning: &BTreeSet<PersonId>,
        task_keys_count: bool,
    ) -> Result<PeopleRegistration, RegistrationError> {
        let before = self.rules();
        let before = before.as_ref().map(|rules| &*rules.bundle);
        let changes = person_changes(before, bundle, returning);
        if let Some(not) = not_returning(&changes, returning) {
            return Err(RegistrationError::NotReturning(not.clone()));
        }
        let mut dead = Vec::new();
        for person in bundle.people() {
            let holder = KeyHolder::Person(person.id.clone());
            let wanted = KeyUse::Register {
                holder: &holder,
                returning: returning.contains(&person.id),
            };
            for key in &person.keys {
                let names = KeyNames::from(key);
                let key = key.thumbprint();
                match self.key_registry.check(&names, wanted) {
                    Ok(()) => {}
                    Err(KeyRefusal::Task(_)) if task_keys_count => {}
                    Err(KeyRefusal::Dead) => dead.push((person.id.clone(), key)),
                    Err(KeyRefusal::Left) => {
                        let person = person.id.clone();
                        return Err(RegistrationError::OfFormer { key, person });
                    }
                    Err(why) => return Err(RegistrationError::Key { key, holder, why }),
                }
            }
        }
        for service in bundle.services() {
            let holder = KeyHolder::Service(service.id.clone());
            for key in &service.keys {
                let wanted = KeyUse::Register {
                    holder: &holder,
                    returning: false,
                };
                match self.key_registry.check(&key.into(), wanted) {
                    Ok(()) => {}
                    Err(KeyRefusal::Task(_)) if task_keys_count => {}
                    Err(why) => {
                        let key = key.thumbprint();
                        return Err(RegistrationError::Key { key, holder, why });
                    }
                }
            }
        }
        for agent in bundle.agents() {
            if let Some(key) = agent.jkt
                && let Err(why) = self.key_registry.check_pin(key, &agent.id)
            {
                let agent = agent.id.clone();
                return Err(RegistrationError::Pin { key, agent, why });
            }
        }
        let governors = self.governors(bundle, returning, &[], task_keys_count);
        if governors.is_empty() {
            return Err(RegistrationError::Ungoverned);
        }
        Ok(PeopleRegistration {
            changes,
            gains: person_gains(before, bundle),
            dead,
        })
    }
}
