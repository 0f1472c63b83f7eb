//! Confirmation of passkeys: who may say that a person enrolled a passkey themselves, and what falls with a stolen key.
//!
//! A passkey is enrolled on an invitation, and the operator who gave it saw its code: until another person confirms the passkey it may
//! be the inviter's own. One function, [`State::may_confirm`], answers for calls, for the owner of the broker's host, and for the check of
//! entries.

use std::collections::BTreeSet;

use super::key_registry::KeyHolder;
use super::{Passkey, State};
use crate::model::*;
use crate::policy::Role;

/// Why a passkey is not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmationRefusal {
    /// No passkey of the person has this key.
    #[error("{0} has no passkey {1}")]
    Unknown(PersonId, Thumbprint),
    /// It was revoked, or its person left or lost a role.
    #[error("the passkey {0} is revoked, or its person left or lost a role")]
    NotLiving(Thumbprint),
    /// It is confirmed.
    #[error("the passkey {key} was confirmed at {at} by {by}")]
    Confirmed {
        /// The passkey.
        key: Thumbprint,
        /// Who confirmed it.
        by: Confirmer,
        /// When.
        at: Timestamp,
    },
    /// By its person.
    #[error("the passkey is {0}'s own: expected another person than {0}")]
    Owner(PersonId),
    /// By the person who invited its person.
    #[error("the passkey was enrolled on an invitation of {0}: expected another person than {0}")]
    Inviter(PersonId),
    /// By a person without a role.
    #[error("{0} is no operator or approver")]
    NoRole(PersonId),
    /// By a key that does not act for the person.
    #[error("the key is none that acts for {0} now")]
    KeyNotActive(PersonId),
    /// By a passkey that awaits confirmation itself.
    #[error("the passkey of {0} is not confirmed itself, and confirms no other")]
    KeyNotConfirmed(PersonId),
    /// By the host, where people can.
    #[error("people can confirm it: {}", names(.0))]
    PeopleCan(Vec<PersonId>),
}

fn names(people: &[PersonId]) -> String {
    let names: Vec<&str> = people.iter().map(PersonId::as_str).collect();
    names.join(", ")
}

/// A passkey and its person.
pub type PersonKey = (PersonId, Thumbprint);

/// What falls with stolen keys, without those that are among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Falls {
    /// Passkeys that die: enrolled on invitations given with stolen keys, and confirmed by no key that stands.
    pub dead: Vec<PersonKey>,
    /// Passkeys that await confirmation again: confirmed by a key that falls, on invitations of others.
    pub unconfirmed: Vec<PersonKey>,
}

impl Falls {
    /// How many die, and how many await confirmation again.
    pub fn counts(&self) -> (u32, u32) {
        let count = |all: &[PersonKey]| u32::try_from(all.len()).unwrap_or(u32::MAX);
        (count(&self.dead), count(&self.unconfirmed))
    }
}

impl State {
    /// Whether a passkey may be confirmed by a person with a key, or by the owner of the broker's host.
    pub(super) fn may_confirm(
        &self,
        person: &PersonId,
        key: Thumbprint,
        by: &Confirmer,
    ) -> Result<(), ConfirmationRefusal> {
        let enrolled = self.credentials.get(person);
        let Some(passkey) = enrolled.passkey(key) else {
            let was_theirs = enrolled.revoked.contains(&key)
                || enrolled.left.iter().any(|left| left.record.key == key);
            return Err(match was_theirs {
                true => ConfirmationRefusal::NotLiving(key),
                false => ConfirmationRefusal::Unknown(person.clone(), key),
            });
        };
        let holder = KeyHolder::Person(person.clone());
        if self.may_act(&holder, key).is_err() {
            return Err(ConfirmationRefusal::NotLiving(key));
        }
        if let Some(known) = &passkey.confirmation {
            let (by, at) = (known.by.clone(), known.at);
            return Err(ConfirmationRefusal::Confirmed { key, by, at });
        }
        match by {
            Confirmer::Person { id, .. } if id == person => {
                Err(ConfirmationRefusal::Owner(id.clone()))
            }
            Confirmer::Person { id, .. } if *id == passkey.invited_by => {
                Err(ConfirmationRefusal::Inviter(id.clone()))
            }
            Confirmer::Person { id, .. } if !self.has_role(id) => {
                Err(ConfirmationRefusal::NoRole(id.clone()))
            }
            Confirmer::Person { id, key } => {
                let holder = KeyHolder::Person(id.clone());
                if self.may_act(&holder, *key).is_err() {
                    return Err(ConfirmationRefusal::KeyNotActive(id.clone()));
                }
                match self.is_confirmed(id, *key) {
                    true => Ok(()),
                    false => Err(ConfirmationRefusal::KeyNotConfirmed(id.clone())),
                }
            }
            Confirmer::Host { .. } => match self.confirmers(person, passkey) {
                people if people.is_empty() => Ok(()),
                people => Err(ConfirmationRefusal::PeopleCan(people)),
            },
        }
    }

    /// The people who could confirm a passkey of a person now: each has a key that counts by itself.
    pub(super) fn confirmers(&self, person: &PersonId, passkey: &Passkey) -> Vec<PersonId> {
        let mut people = self.people_who_confirm();
        people.retain(|id| id != person && *id != passkey.invited_by);
        people
    }

    /// The people who could confirm a passkey of somebody whom they did not invite.
    pub(super) fn people_who_confirm(&self) -> Vec<PersonId> {
        let Some(rules) = self.rules() else {
            return Vec::new();
        };
        let can = |id: &PersonId| {
            let counts = |key: &Thumbprint| self.is_confirmed(id, *key);
            self.has_role(id) && self.living_keys(id).iter().any(counts)
        };
        let people = rules.bundle.people().map(|known| known.id.clone());
        people.filter(can).collect()
    }

    fn has_role(&self, person: &PersonId) -> bool {
        let rules = self.rules();
        let registered = rules.as_ref().and_then(|rules| rules.bundle.person(person));
        registered.is_some_and(|person| {
            person.roles.contains(&Role::Operator) || person.roles.contains(&Role::Approver)
        })
    }

    /// Whether a key of a person is no passkey, or a confirmed one.
    fn is_confirmed(&self, person: &PersonId, key: Thumbprint) -> bool {
        let enrolled = self.credentials.get(person);
        let passkey = enrolled.passkey(key);
        passkey.is_none_or(|passkey| passkey.confirmation.is_some())
    }

    /// What falls with a revocation of keys: nothing with keys that are only retired.
    pub(super) fn falls_of(&self, f: &ApproverKeysRevoked) -> Falls {
        match f.cause {
            RevokeCause::Compromised | RevokeCause::Counter => {
                let records = self.key_registry.records_of(&f.person).into_iter();
                let others = records.filter(|_| f.all).map(|known| known.thumbprint);
                self.falls_with(&f.keys.iter().copied().chain(others).collect::<Vec<_>>())
            }
            RevokeCause::Operator => Falls::default(),
        }
    }

    /// What rests on stolen keys, however many steps away. A confirmation is void where its key is stolen or falls itself; a passkey
    /// without one dies where its invitation was given with a stolen key, also one that was found stolen before.
    pub(super) fn falls_with(&self, stolen: &[Thumbprint]) -> Falls {
        let identities = stolen
            .iter()
            .filter_map(|key| self.key_registry.identity(*key));
        let stolen: BTreeSet<KeyIdentity> = identities.collect();
        let identity = |key: Thumbprint| self.key_registry.identity(key);
        let is_in = |all: &BTreeSet<KeyIdentity>, key: Thumbprint| {
            identity(key).is_some_and(|identity| all.contains(&identity))
        };
        let is_stolen = |key| is_in(&stolen, key) || self.key_registry.is_stolen(key);
        let mut fallen = stolen.clone();
        let mut falls = Falls::default();
        loop {
            let is_void = |passkey: &Passkey| match passkey.confirmation.as_ref().map(|c| &c.by) {
                None => true,
                Some(Confirmer::Person { key, .. }) => is_in(&fallen, *key),
                Some(Confirmer::Host { .. }) => false,
            };
            let stands = |passkey: &Passkey| !is_in(&fallen, passkey.record.key);
            let dies = |passkey: &&Passkey| {
                stands(passkey) && is_void(passkey) && is_stolen(passkey.invited_with)
            };
            let loses = |passkey: &&Passkey| {
                stands(passkey)
                    && passkey.confirmation.is_some()
                    && is_void(passkey)
                    && !is_stolen(passkey.invited_with)
            };
            let (dead, unconfirmed) = (self.passkeys_where(dies), self.passkeys_where(loses));
            let more = dead.iter().chain(&unconfirmed);
            let more: Vec<KeyIdentity> = more.filter_map(|(_, key)| identity(*key)).collect();
            if more.is_empty() {
                falls.dead.sort_unstable();
                falls.unconfirmed.sort_unstable();
                return falls;
            }
            fallen.extend(more);
            falls.dead.extend(dead);
            falls.unconfirmed.extend(unconfirmed);
        }
    }

    /// Passkeys of everyone, living or left, by person and key.
    fn passkeys_where(&self, wanted: impl Fn(&&Passkey) -> bool) -> Vec<PersonKey> {
        let mut people = self.credentials.people();
        people.sort_unstable();
        people.dedup();
        let of = |person: PersonId| {
            let enrolled = self.credentials.get(&person);
            let all = enrolled.passkeys.iter().chain(&enrolled.left);
            let found: Vec<PersonKey> = all
                .filter(&wanted)
                .map(|passkey| (person.clone(), passkey.record.key))
                .collect();
            found
        };
        people.into_iter().flat_map(of).collect()
    }
}
