//! Credentials of people: enrolled passkeys, open invitations and revoked keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{ArcMap, Versioned, sorted};
use crate::model::*;

/// A passkey of a person, as of the last entry applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passkey {
    /// As enrolled.
    pub record: PasskeyOnRecord,
    /// The highest signature counter among its enrolment and its votes (WebAuthn L3 §6.1.1).
    pub sign_count: u32,
    /// When it was enrolled.
    pub added_at: Timestamp,
    /// Time of the entry of its last vote.
    pub last_vote_at: Option<Timestamp>,
}

/// An invitation that was not used yet; it may have expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Its id.
    pub id: InvitationId,
    /// Tagged SHA-256 of its one-time code.
    pub code: Digest,
    /// The first instant at which it can no longer be used.
    pub expires_at: Timestamp,
}

/// The credentials of one person.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PersonCredentials {
    /// Their passkeys, oldest first; never a revoked one.
    pub passkeys: Vec<Passkey>,
    /// The invitation they may still use.
    pub invitation: Option<Invitation>,
    /// Revoked keys: never valid again.
    pub revoked: BTreeSet<Thumbprint>,
}

impl PersonCredentials {
    /// The passkey with this thumbprint.
    pub fn passkey(&self, key: Thumbprint) -> Option<&Passkey> {
        self.passkeys.iter().find(|p| p.record.key == key)
    }

    /// The passkey with this credential id, in base64url.
    pub fn credential(&self, id: &str) -> Option<&Passkey> {
        self.passkeys.iter().find(|p| p.record.credential == id)
    }
}

/// The credentials of every person that the journal names.
#[derive(Debug, Default)]
pub struct CredentialStore {
    people: ArcMap<PersonId, Versioned<PersonCredentials>>,
    /// Person by credential id in base64url, revoked ones included: a credential is enrolled once.
    credentials: ArcMap<String, PersonId>,
    /// Every key ever enrolled as a passkey, revoked ones included.
    keys: ArcMap<Thumbprint, ()>,
    /// Person by the digest of their latest invitation's code.
    codes: ArcMap<Digest, PersonId>,
}

impl CredentialStore {
    /// The credentials of a person; empty at version 0 for a person that the journal does not name.
    pub fn get(&self, person: &PersonId) -> Arc<Versioned<PersonCredentials>> {
        self.people.get(person).unwrap_or_default()
    }

    /// The person who enrolled this credential, revoked or not.
    pub fn person_of_credential(&self, credential: &str) -> Option<PersonId> {
        self.credentials
            .get(&credential.to_owned())
            .map(|person| (*person).clone())
    }

    /// Whether a key was ever enrolled as a passkey.
    pub fn was_enrolled(&self, key: Thumbprint) -> bool {
        self.keys.get(&key).is_some()
    }

    /// Every person that the journal names, in no order.
    pub fn people(&self) -> Vec<PersonId> {
        self.people.all().into_iter().map(|(id, _)| id).collect()
    }

    /// The person invited with this code, whether it can still be used or not.
    pub fn person_of_code(&self, code: &Digest) -> Option<PersonId> {
        self.codes.get(code).map(|person| (*person).clone())
    }

    pub(super) fn apply_invited(&self, f: &ApproverInvited, version: Version) {
        let before = self.get(&f.person).value.invitation.clone();
        if let Some(before) = before {
            self.codes.retain(|code| *code != before.code);
        }
        self.codes.insert(f.code, f.person.clone());
        self.people.update_or_default(f.person.clone(), |at| {
            at.value.invitation = Some(Invitation {
                id: f.invitation,
                code: f.code,
                expires_at: f.expires_at,
            });
            at.version = version;
        });
    }

    pub(super) fn apply_enrolled(&self, f: &ApproverEnrolled, at: Timestamp, version: Version) {
        self.credentials
            .insert(f.passkey.credential.clone(), f.person.clone());
        self.keys.insert(f.passkey.key, ());
        self.people.update_or_default(f.person.clone(), |person| {
            person.value.invitation = None;
            person.value.passkeys.push(Passkey {
                sign_count: f.passkey.sign_count,
                record: f.passkey.clone(),
                added_at: at,
                last_vote_at: None,
            });
            person.version = version;
        });
    }

    pub(super) fn apply_revoked(&self, f: &ApproverKeysRevoked, version: Version) {
        self.people.update_or_default(f.person.clone(), |person| {
            let PersonCredentials {
                passkeys,
                invitation,
                revoked,
            } = &mut person.value;
            revoked.extend(f.keys.iter().copied());
            passkeys.retain(|p| !f.keys.contains(&p.record.key));
            if f.cause == RevokeCause::Operator {
                *invitation = None;
            }
            person.version = version;
        });
    }

    /// Does not advance the person's stream: the counter only grows.
    pub(super) fn apply_vote(&self, f: &VoteCast, at: Timestamp) {
        self.people.update(&f.voter, |person| {
            let mut next = person.clone();
            for passkey in &mut next.value.passkeys {
                if passkey.record.key == f.key {
                    let count = f.sign_count.unwrap_or(0);
                    passkey.sign_count = passkey.sign_count.max(count);
                    passkey.last_vote_at = Some(at);
                }
            }
            next
        });
    }

    pub(super) fn canonical_snapshot(&self) -> Value {
        let person = |(id, at): (PersonId, Arc<Versioned<PersonCredentials>>)| {
            let passkeys: Vec<Value> = at
                .value
                .passkeys
                .iter()
                .map(|p| json!([p.record, p.sign_count, p.added_at, p.last_vote_at]))
                .collect();
            let invitation = at.value.invitation.as_ref();
            json!([
                id,
                at.version,
                passkeys,
                invitation.map(|i| json!([i.id, i.code, i.expires_at])),
                at.value.revoked
            ])
        };
        sorted(self.people.all()).into_iter().map(person).collect()
    }
}
