//! The keys of the realm: whose each one is, and what it may do now.
//!
//! A key has one holder: the one that its first entry names keeps it, in every later policy bundle and for every purpose. A key
//! that died is dead for everyone, for ever. Keys are compared by [`KeyIdentity`], so a key and its negative are one. One function,
//! [`KeyRegistry::check`], answers for applies, enrolments, callers, openings of tasks, votes, tallies, and the audit.
//!
//! Only the key of a task becomes known without the entry being compared with the bundle or enrolment that comes in the same moment:
//! such a key is the task's and the person's both, and [`KeyRegistry::check`] refuses it for either from then on.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{ArcMap, sorted};
use crate::jose::{AuthenticatorKey, PublicKey};
use crate::model::{AgentId, KeyIdentity, PersonId, ServiceId, Thumbprint};
use crate::policy::PolicyBundle;

/// Whose a key is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyHolder {
    /// A person, by a key of `people.toml` or a passkey.
    Person(PersonId),
    /// A validator or auditor.
    Service(ServiceId),
    /// An agent: pinned to it, or the key of one of its tasks.
    Agent(AgentId),
}

impl std::fmt::Display for KeyHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Person(id) => write!(f, "{id}"),
            Self::Service(id) => write!(f, "the service {id}"),
            Self::Agent(id) => write!(f, "the agent {id}"),
        }
    }
}

/// Whether a key of a person or service counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStanding {
    /// It counts wherever its holder is registered with it.
    Living,
    /// A policy bundle dropped its person, or took the role that the passkey was enrolled for. It counts again only where an operator
    /// says that the same person returns.
    Left,
    /// Revoked, or of a person whose id was given to another: dead for everyone, for ever.
    Dead,
}

/// A key of a person or service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeyRecord {
    /// Whose it is, for ever.
    pub holder: KeyHolder,
    /// Its thumbprint, as it was first named.
    pub thumbprint: Thumbprint,
    /// Whether it was enrolled as a passkey, and so is none of `people.toml`.
    pub is_passkey: bool,
    /// Whether it counts.
    pub standing: KeyStanding,
    /// Whether somebody else may have had it: revoked as compromised, a copied passkey, or lost before a recovery of the operators.
    pub is_stolen: bool,
}

/// The names of a key: what its holder can sign as, and the thumbprints it is known under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyNames {
    /// The same for a key and its negative.
    pub identity: KeyIdentity,
    /// Its thumbprint first, then that of its negative where the public key is at hand.
    pub thumbprints: Vec<Thumbprint>,
}

impl From<&PublicKey> for KeyNames {
    fn from(key: &PublicKey) -> Self {
        Self {
            identity: key.identity(),
            thumbprints: key.thumbprints().to_vec(),
        }
    }
}

impl From<&AuthenticatorKey> for KeyNames {
    fn from(key: &AuthenticatorKey) -> Self {
        Self {
            identity: key.identity(),
            thumbprints: key.thumbprints(),
        }
    }
}

/// What a key is to do.
#[derive(Debug, Clone, Copy)]
pub enum KeyUse<'a> {
    /// Act for its holder: a call, an order, a vote, the count of a vote.
    Act(&'a KeyHolder),
    /// Open a task of an agent, or act in it.
    Task(&'a AgentId),
    /// Be registered in a policy bundle; `returning`: an operator says that the person is the one who left.
    Register {
        /// For whom.
        holder: &'a KeyHolder,
        /// Whether what left comes back.
        returning: bool,
    },
    /// Be enrolled as a passkey.
    Enrol,
}

/// Why a key may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// It has no holder.
    #[error("no person or service is registered with it")]
    Unknown,
    /// It has another holder.
    #[error("it is a key of {0}")]
    Held(KeyHolder),
    /// It is a passkey, and is to be a key of `people.toml`.
    #[error("it is enrolled as a passkey of {0}")]
    Passkey(KeyHolder),
    /// It is the negative of a key that is registered: one key, by another name.
    #[error("it is the negative of a key of {0}: who has one has both")]
    Negative(KeyHolder),
    /// It was revoked, or its person's id was given to another.
    #[error("it is dead: it was revoked, or its person left for good")]
    Dead,
    /// Its person left, or lost the role that it was enrolled for.
    #[error("its person left, or lost a role, and has not returned")]
    Left,
    /// An agent opened a task with it.
    #[error("the agent {0} has opened a task with it")]
    Task(AgentId),
    /// An agent is pinned to it.
    #[error("the agent {0} is pinned to it")]
    Pinned(AgentId),
}

/// Every key that an entry has named.
#[derive(Debug, Default)]
pub(super) struct KeyRegistry {
    keys: ArcMap<KeyIdentity, KeyRecord>,
    /// Each thumbprint of those keys, of their negatives too.
    identities: ArcMap<Thumbprint, KeyIdentity>,
    /// The keys of a person, of both kinds.
    of_person: ArcMap<PersonId, Vec<KeyIdentity>>,
    /// Each key that a bundle has pinned an agent to.
    pins: ArcMap<Thumbprint, AgentId>,
    /// Each key that opened a task, with the agents that did; the first one first.
    task_keys: ArcMap<KeyIdentity, Vec<AgentId>>,
}

impl KeyRegistry {
    /// Whether a key may do something now. Does not ask whether the holder is registered in the bundle in force, nor in which role.
    pub(super) fn check(&self, key: &KeyNames, wanted: KeyUse<'_>) -> Result<(), KeyRefusal> {
        let known = self.known(key);
        if let KeyUse::Task(agent) = wanted {
            // Dead or alive, a key of a person or service opens no task.
            return match (known, self.pinned(key, Some(agent))) {
                (Some(known), _) => Err(KeyRefusal::Held(known.holder.clone())),
                (None, Some(other)) => Err(KeyRefusal::Pinned((*other).clone())),
                (None, None) => Ok(()),
            };
        }
        if let Some(agent) = self.pinned(key, None) {
            return Err(KeyRefusal::Pinned((*agent).clone()));
        }
        match (known, wanted) {
            (None, KeyUse::Act(_)) => Err(KeyRefusal::Unknown),
            (None, KeyUse::Register { .. } | KeyUse::Enrol | KeyUse::Task(_)) => Ok(()),
            (Some(known), KeyUse::Enrol | KeyUse::Task(_)) => {
                Err(KeyRefusal::Held(known.holder.clone()))
            }
            (Some(known), KeyUse::Act(holder) | KeyUse::Register { holder, .. })
                if known.holder != *holder =>
            {
                Err(KeyRefusal::Held(known.holder.clone()))
            }
            (Some(known), KeyUse::Register { holder, .. }) if known.is_passkey => {
                Err(KeyRefusal::Passkey(holder.clone()))
            }
            (Some(known), KeyUse::Register { holder, .. })
                if key.thumbprints.first() != Some(&known.thumbprint) =>
            {
                Err(KeyRefusal::Negative(holder.clone()))
            }
            (Some(known), wanted) => match (known.standing, wanted) {
                (KeyStanding::Living, _)
                | (
                    KeyStanding::Left,
                    KeyUse::Register {
                        returning: true, ..
                    },
                ) => Ok(()),
                (KeyStanding::Left, _) => Err(KeyRefusal::Left),
                (KeyStanding::Dead, _) => Err(KeyRefusal::Dead),
            },
        }?;
        // Last: it is the one refusal that an honest history may not have seen.
        let agents = self.task_keys.get(&key.identity);
        match agents.as_ref().and_then(|agents| agents.first()) {
            Some(agent) => Err(KeyRefusal::Task(agent.clone())),
            None => Ok(()),
        }
    }

    /// The record of a key of a person or service, by its identity or any thumbprint.
    fn known(&self, key: &KeyNames) -> Option<Arc<KeyRecord>> {
        let by_name = || {
            let mut names = key.thumbprints.iter();
            let identity = names.find_map(|name| self.identities.get(name))?;
            self.keys.get(&identity)
        };
        self.keys.get(&key.identity).or_else(by_name)
    }

    /// The agent, other than this one, that is pinned to a key.
    fn pinned(&self, key: &KeyNames, apart: Option<&AgentId>) -> Option<Arc<AgentId>> {
        let pins = key
            .thumbprints
            .iter()
            .filter_map(|name| self.pins.get(name));
        let mut others = pins.filter(|agent| apart != Some(&**agent));
        others.next()
    }

    /// The names of a key of a person or service by its thumbprint.
    pub(super) fn names(&self, key: Thumbprint) -> Option<KeyNames> {
        let identity = self.identities.get(&key)?;
        Some(KeyNames {
            identity: *identity,
            thumbprints: vec![key],
        })
    }

    /// Whether an agent may be pinned to a key.
    pub(super) fn check_pin(&self, key: Thumbprint, agent: &AgentId) -> Result<(), KeyRefusal> {
        let held = self.identities.get(&key).and_then(|id| self.keys.get(&id));
        if let Some(known) = held {
            return Err(KeyRefusal::Held(known.holder.clone()));
        }
        match self.pins.get(&key) {
            Some(other) if *other != *agent => Err(KeyRefusal::Pinned((*other).clone())),
            Some(_) | None => Ok(()),
        }
    }

    /// Every key of a person or service, in no order.
    pub(super) fn all(&self) -> Vec<(KeyIdentity, Arc<KeyRecord>)> {
        self.keys.all()
    }

    /// Registers the keys of a bundle that no entry has named.
    pub(super) fn register(&self, bundle: &PolicyBundle) {
        for person in bundle.people() {
            for key in &person.keys {
                self.add(&key.into(), KeyHolder::Person(person.id.clone()), false);
            }
        }
        for service in bundle.services() {
            for key in &service.keys {
                self.add(&key.into(), KeyHolder::Service(service.id.clone()), false);
            }
        }
        for agent in bundle.agents() {
            if let Some(key) = agent.jkt
                && self.pins.get(&key).is_none()
            {
                self.pins.insert(key, agent.id.clone());
            }
        }
    }

    /// The first holder keeps a key.
    pub(super) fn add(&self, key: &KeyNames, holder: KeyHolder, is_passkey: bool) {
        let (None, Some(thumbprint)) = (self.keys.get(&key.identity), key.thumbprints.first())
        else {
            return;
        };
        if let KeyHolder::Person(person) = &holder {
            self.of_person
                .update_or_default(person.clone(), |keys| keys.push(key.identity));
        }
        for thumbprint in &key.thumbprints {
            self.identities.insert(*thumbprint, key.identity);
        }
        let record = KeyRecord {
            holder,
            thumbprint: *thumbprint,
            is_passkey,
            standing: KeyStanding::Living,
            is_stolen: false,
        };
        self.keys.insert(key.identity, record);
    }

    /// A task was opened with a key.
    pub(super) fn add_task_key(&self, key: KeyIdentity, agent: &AgentId) {
        if !self.has_opened(key, agent) {
            self.task_keys
                .update_or_default(key, |agents| agents.push(agent.clone()));
        }
    }

    /// Whether an agent has opened a task with a key.
    pub(super) fn has_opened(&self, key: KeyIdentity, agent: &AgentId) -> bool {
        self.task_keys
            .get(&key)
            .is_some_and(|agents| agents.contains(agent))
    }

    /// INVARIANT (a dead key is dead for everyone, for ever): nothing leaves [`KeyStanding::Dead`].
    fn turn(&self, key: &KeyIdentity, from: &[KeyStanding], to: KeyStanding) {
        self.keys
            .update(key, |known| match from.contains(&known.standing) {
                true => KeyRecord {
                    standing: to,
                    ..known.clone()
                },
                false => known.clone(),
            });
    }

    /// The identity of a key of a person or service.
    pub(super) fn identity(&self, key: Thumbprint) -> Option<KeyIdentity> {
        self.identities.get(&key).map(|identity| *identity)
    }

    /// Every pin, in no order.
    pub(super) fn pins(&self) -> Vec<(Thumbprint, Arc<AgentId>)> {
        self.pins.all()
    }

    /// Every key of a person is dead, those that no bundle registers any more too.
    pub(super) fn revoke_all(&self, person: &PersonId) {
        for key in self.of(person) {
            let living = [KeyStanding::Living, KeyStanding::Left];
            self.turn(&key, &living, KeyStanding::Dead);
        }
    }

    /// Notes that keys are stolen: what is found to rest on them later falls, too.
    pub(super) fn mark_stolen(&self, keys: &[Thumbprint]) {
        for key in keys {
            if let Some(identity) = self.identities.get(key) {
                self.keys.update(&identity, |known| KeyRecord {
                    is_stolen: true,
                    ..known.clone()
                });
            }
        }
    }

    /// Whether a key is known to be stolen.
    pub(super) fn is_stolen(&self, key: Thumbprint) -> bool {
        let known = self.identities.get(&key).and_then(|id| self.keys.get(&id));
        known.is_some_and(|known| known.is_stolen)
    }

    pub(super) fn revoke(&self, key: Thumbprint) {
        if let Some(identity) = self.identities.get(&key) {
            let living = [KeyStanding::Living, KeyStanding::Left];
            self.turn(&identity, &living, KeyStanding::Dead);
        }
    }

    /// The person's keys leave with them; of a person who lost a role, the passkeys alone.
    pub(super) fn set_left(&self, person: &PersonId, passkeys_alone: bool) {
        for key in self.of(person) {
            let is_passkey = self.keys.get(&key).is_some_and(|known| known.is_passkey);
            if is_passkey || !passkeys_alone {
                self.turn(&key, &[KeyStanding::Living], KeyStanding::Left);
            }
        }
    }

    /// The same person returns: what left with them counts again.
    pub(super) fn restore(&self, person: &PersonId) {
        for key in self.of(person) {
            self.turn(&key, &[KeyStanding::Left], KeyStanding::Living);
        }
    }

    /// Another person has the id: what left is dead.
    pub(super) fn end_left(&self, person: &PersonId) {
        for key in self.of(person) {
            self.turn(&key, &[KeyStanding::Left], KeyStanding::Dead);
        }
    }

    /// The records of a person's keys, oldest first.
    pub(super) fn records_of(&self, person: &PersonId) -> Vec<Arc<KeyRecord>> {
        let keys = self.of(person);
        keys.iter().filter_map(|key| self.keys.get(key)).collect()
    }

    fn of(&self, person: &PersonId) -> Vec<KeyIdentity> {
        self.of_person
            .get(person)
            .map(|keys| keys.to_vec())
            .unwrap_or_default()
    }

    pub(super) fn canonical_snapshot(&self) -> Value {
        let keys: Vec<Value> = sorted(self.keys.all())
            .into_iter()
            .map(|(key, record)| json!([key, *record]))
            .collect();
        let pins: Vec<Value> = sorted(self.pins.all())
            .into_iter()
            .map(|(key, agent)| json!([key, *agent]))
            .collect();
        let task_keys: Vec<Value> = sorted(self.task_keys.all())
            .into_iter()
            .map(|(key, agent)| json!([key, *agent]))
            .collect();
        json!([keys, pins, task_keys])
    }
}
