//! What the journal says of people: their passkeys, their open invitation, and which keys count no more.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Table, Versioned, sorted};
use crate::model::*;

/// A passkey of a person, as of the last entry folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passkey {
    /// As enrolled.
    pub record: PasskeyOnRecord,
    /// The highest signature counter of a vote by it, or the one at enrolment.
    pub sign_count: u32,
    /// When it was enrolled.
    pub added_at: Timestamp,
    /// When its last vote was entered.
    pub last_vote_at: Option<Timestamp>,
}

/// An invitation that was not used yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Its id.
    pub id: InvitationId,
    /// SHA-256 of its code.
    pub code: Digest,
    /// Until when it may be used.
    pub expires_at: Timestamp,
}

/// A person, as far as the journal tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enrolled {
    /// Their passkeys, oldest first; never a revoked one.
    pub passkeys: Vec<Passkey>,
    /// The invitation they may still use.
    pub invitation: Option<Invitation>,
    /// Keys of theirs that count no more, ever.
    pub revoked: BTreeSet<Thumbprint>,
}

impl Enrolled {
    /// The passkey with this thumbprint.
    pub fn passkey(&self, key: Thumbprint) -> Option<&Passkey> {
        self.passkeys.iter().find(|p| p.record.key == key)
    }

    /// The passkey with this credential id, in base64url.
    pub fn credential(&self, id: &str) -> Option<&Passkey> {
        self.passkeys.iter().find(|p| p.record.credential == id)
    }
}

/// Everyone the journal says something of.
#[derive(Debug, Default)]
pub struct Roster {
    people: Table<PersonId, Versioned<Enrolled>>,
    /// Whose credential it is, by its id in base64url; revoked ones included: a credential is enrolled once.
    credentials: Table<String, PersonId>,
    /// Every key that was ever enrolled as a passkey.
    keys: Table<Thumbprint, ()>,
    /// Whose open invitation has this code.
    codes: Table<Digest, PersonId>,
}

impl Roster {
    /// A person; one the journal says nothing of is at version 0.
    pub fn of(&self, person: &PersonId) -> Arc<Versioned<Enrolled>> {
        self.people.get(person).unwrap_or_default()
    }

    /// Whose credential this is, or was.
    pub fn holder(&self, credential: &str) -> Option<PersonId> {
        self.credentials
            .get(&credential.to_owned())
            .map(|person| (*person).clone())
    }

    /// Whether a key was ever enrolled as a passkey.
    pub fn known(&self, key: Thumbprint) -> bool {
        self.keys.get(&key).is_some()
    }

    /// Everyone the journal says something of, in no order.
    pub fn everyone(&self) -> Vec<PersonId> {
        self.people.all().into_iter().map(|(id, _)| id).collect()
    }

    /// Who was invited with this code, whether it may still be used or not.
    pub fn invited(&self, code: &Digest) -> Option<PersonId> {
        self.codes.get(code).map(|person| (*person).clone())
    }

    pub(super) fn on_invited(&self, f: &ApproverInvited, version: Version) {
        let before = self.of(&f.person).value.invitation.clone();
        if let Some(before) = before {
            self.codes.retain(|code| *code != before.code);
        }
        self.codes.put(f.code, f.person.clone());
        self.people.amend(f.person.clone(), |at| {
            at.value.invitation = Some(Invitation {
                id: f.invitation,
                code: f.code,
                expires_at: f.expires_at,
            });
            at.version = version;
        });
    }

    pub(super) fn on_enrolled(&self, f: &ApproverEnrolled, at: Timestamp, version: Version) {
        self.credentials
            .put(f.passkey.credential.clone(), f.person.clone());
        self.keys.put(f.passkey.key, ());
        self.people.amend(f.person.clone(), |person| {
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

    pub(super) fn on_revoked(&self, f: &ApproverKeysRevoked, version: Version) {
        self.people.amend(f.person.clone(), |person| {
            let Enrolled {
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

    /// The stream does not move: the counter is news of the authenticator, and only ever goes up.
    pub(super) fn on_vote(&self, f: &VoteCast, at: Timestamp) {
        self.people.change(&f.voter, |person| {
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

    pub(super) fn picture(&self) -> Value {
        let person = |(id, at): (PersonId, Arc<Versioned<Enrolled>>)| {
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
