//! Credentials of people: enrolled passkeys, open invitations and revoked keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::confirmation::Falls;
use super::people::{PersonChange, PersonChangeKind, PersonGain};
use super::{ArcMap, sorted};
use crate::model::*;
use crate::policy::{Role, StepUpProfile};

/// A passkey of a person, as of the last entry applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passkey {
    /// As enrolled.
    pub record: PasskeyOnRecord,
    /// The highest signature counter among its enrolment and its votes (WebAuthn L3 §6.1.1).
    pub sign_count: u32,
    /// The operator on whose invitation it was enrolled.
    pub invited_by: PersonId,
    /// The key that the operator gave the invitation with.
    pub invited_with: Thumbprint,
    /// When it was enrolled.
    pub added_at: Timestamp,
    /// Index of the entry that enrolled it: it counts for access requests opened after it.
    pub index: u64,
    /// Its confirmation; `None` while it may be its inviter's own.
    pub confirmation: Option<PasskeyConfirmation>,
    /// Time of the entry of its last vote.
    pub last_vote_at: Option<Timestamp>,
}

/// A confirmation of a passkey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasskeyConfirmation {
    /// Who confirmed it.
    pub by: Confirmer,
    /// When.
    pub at: Timestamp,
    /// Index of the entry.
    pub index: u64,
}

/// What policy bundles after the first gave a person, each with the index of the last entry that did: it counts for access requests
/// opened after it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Additions {
    /// The person, who came or returned; 0 for one of the first bundle.
    pub person: u64,
    /// Roles.
    pub roles: BTreeMap<Role, u64>,
    /// Groups.
    pub groups: BTreeMap<GroupId, u64>,
    /// Keys of `people.toml`.
    pub keys: BTreeMap<Thumbprint, u64>,
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
    /// The operator who gave it.
    pub by: PersonId,
    /// The operator's key: the invitation is good while the key lives and is an operator's.
    pub by_key: Thumbprint,
    /// Index of its entry: it is not good for an operator who lost the role and got it back.
    pub index: u64,
}

/// The keys of one person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonCredentials {
    /// Their passkeys, oldest first; never one that left or is dead.
    pub passkeys: Vec<Passkey>,
    /// Passkeys that a policy bundle ended with the person's registration or a role: they count again only where the same person
    /// returns by an operator's word.
    pub left: Vec<Passkey>,
    /// Dead keys: never valid again, for anyone.
    pub revoked: BTreeSet<Thumbprint>,
    /// Whether keys of theirs were revoked since they came or returned.
    pub lost_keys: bool,
    /// Index of the last entry by which the person left, lost a role, came or returned; 0 for none. Their sessions and the invitations
    /// they gave before it do not count.
    pub since: u64,
    /// The same, or of a later one by which they lost a group or a registered key: their votes from before it do not count.
    pub votes_since: u64,
    /// When another person came to the id: records of the former one are older.
    pub since_at: Timestamp,
    /// What bundles after the first gave them.
    pub additions: Additions,
}

impl Default for PersonCredentials {
    fn default() -> Self {
        Self {
            passkeys: Vec::new(),
            left: Vec::new(),
            revoked: BTreeSet::new(),
            lost_keys: false,
            since: 0,
            votes_since: 0,
            since_at: Timestamp::from_millis(0),
            additions: Additions::default(),
        }
    }
}

impl PersonCredentials {
    /// The passkey with this thumbprint.
    pub fn passkey(&self, key: Thumbprint) -> Option<&Passkey> {
        self.passkeys.iter().find(|p| p.record.key == key)
    }

    /// Index of the last entry that made the person a voter under a profile, by role and group; 0 when the first bundle did.
    pub fn voter_since(&self, profile: &StepUpProfile) -> u64 {
        let added = &self.additions;
        let role = added.roles.get(&profile.role).copied();
        let group = match profile.role {
            Role::Approver => added.groups.get(&profile.group).copied(),
            Role::Operator => None,
        };
        [Some(added.person), role, group]
            .into_iter()
            .flatten()
            .max()
            .unwrap_or(0)
    }

    /// Index of the entry that added a key, of either kind; 0 when the first bundle did.
    pub fn key_since(&self, key: Thumbprint) -> u64 {
        let registered = self.additions.keys.get(&key).copied().unwrap_or(0);
        self.passkey(key)
            .map_or(registered, |passkey| passkey.index)
    }

    /// The passkey with this credential id, in base64url.
    pub fn credential(&self, id: &str) -> Option<&Passkey> {
        self.passkeys.iter().find(|p| p.record.credential == id)
    }
}

/// The credentials of every person that the journal names.
#[derive(Debug, Default)]
pub(super) struct CredentialStore {
    people: ArcMap<PersonId, PersonCredentials>,
    /// The invitation each person may still use.
    invitations: ArcMap<PersonId, Invitation>,
    /// Person by credential id in base64url, revoked ones included: a credential is enrolled once.
    credentials: ArcMap<String, PersonId>,
    /// Person by the digest of their latest invitation's code.
    codes: ArcMap<Digest, PersonId>,
}

impl CredentialStore {
    /// The keys of a person; none for a person that the journal does not name.
    pub(super) fn get(&self, person: &PersonId) -> Arc<PersonCredentials> {
        self.people.get(person).unwrap_or_default()
    }

    /// The invitation that a person may still use.
    pub(super) fn invitation(&self, person: &PersonId) -> Option<Arc<Invitation>> {
        self.invitations.get(person)
    }

    /// The person who enrolled this credential, revoked or not.
    pub(super) fn person_of_credential(&self, credential: &str) -> Option<PersonId> {
        self.credentials
            .get(&credential.to_owned())
            .map(|person| (*person).clone())
    }

    /// Every person that the journal names, in no order.
    pub(super) fn people(&self) -> Vec<PersonId> {
        let mut all: Vec<PersonId> = self.people.all().into_iter().map(|(id, _)| id).collect();
        all.extend(self.invitations.all().into_iter().map(|(id, _)| id));
        all
    }

    /// Every credential that was ever enrolled, with its person, in no order.
    pub(super) fn ever_enrolled(&self) -> Vec<(String, Arc<PersonId>)> {
        self.credentials.all()
    }

    /// The person invited with this code, whether it can still be used or not.
    pub(super) fn person_of_code(&self, code: &Digest) -> Option<PersonId> {
        self.codes.get(code).map(|person| (*person).clone())
    }

    pub(super) fn apply_invited(&self, f: &ApproverInvited, index: u64) {
        self.withdraw_invitation(&f.person);
        self.codes.insert(f.code, f.person.clone());
        let invitation = Invitation {
            id: f.invitation,
            code: f.code,
            expires_at: f.expires_at,
            by: f.by.clone(),
            by_key: f.by_key,
            index,
        };
        self.invitations.insert(f.person.clone(), invitation);
    }

    fn withdraw_invitation(&self, person: &PersonId) {
        if let Some(before) = self.invitations.get(person) {
            self.codes.remove(&before.code);
            self.invitations.remove(person);
        }
    }

    pub(super) fn apply_enrolled(&self, f: &ApproverEnrolled, index: u64, at: Timestamp) {
        self.credentials
            .insert(f.passkey.credential.clone(), f.person.clone());
        // No enrolment without its invitation gets here.
        let Some(invitation) = self.invitations.get(&f.person) else {
            return;
        };
        self.invitations.remove(&f.person);
        self.people.update_or_default(f.person.clone(), |person| {
            person.passkeys.push(Passkey {
                sign_count: f.passkey.sign_count,
                record: f.passkey.clone(),
                invited_by: invitation.by.clone(),
                invited_with: invitation.by_key,
                added_at: at,
                index,
                confirmation: None,
                last_vote_at: None,
            });
        });
    }

    pub(super) fn apply_confirmed(&self, f: &PasskeyConfirmed, entry: &Entry) {
        let confirmation = PasskeyConfirmation {
            by: f.by.clone(),
            at: entry.at,
            index: entry.index,
        };
        self.set_confirmation(&f.person, f.key, Some(confirmation));
    }

    /// The keys that confirmed these passkeys were stolen.
    pub(super) fn apply_unconfirmed(&self, passkeys: &[(PersonId, Thumbprint)]) {
        for (person, key) in passkeys {
            self.set_confirmation(person, *key, None);
        }
    }

    fn set_confirmation(
        &self,
        person: &PersonId,
        key: Thumbprint,
        to: Option<PasskeyConfirmation>,
    ) {
        self.people.update_or_default(person.clone(), |person| {
            let all = person.passkeys.iter_mut().chain(&mut person.left);
            for passkey in all.filter(|passkey| passkey.record.key == key) {
                passkey.confirmation.clone_from(&to);
            }
        });
    }

    pub(super) fn apply_revoked(&self, f: &ApproverKeysRevoked, falls: &Falls) {
        self.revoke(&f.person, &f.keys);
        if f.by.is_some() {
            self.withdraw_invitation(&f.person);
        }
        for (person, key) in &falls.dead {
            self.revoke(person, &[*key]);
        }
        self.apply_unconfirmed(&falls.unconfirmed);
    }

    /// A recovery found a key lost: an operator's, or one that an operator's lost key had invited.
    pub(super) fn apply_lost(&self, person: &PersonId, key: Thumbprint) {
        self.revoke(person, &[key]);
        self.withdraw_invitation(person);
    }

    fn revoke(&self, person: &PersonId, keys: &[Thumbprint]) {
        self.people.update_or_default(person.clone(), |person| {
            person.revoked.extend(keys.iter().copied());
            person.lost_keys = true;
            person.passkeys.retain(|p| !keys.contains(&p.record.key));
            person.left.retain(|p| !keys.contains(&p.record.key));
        });
    }

    /// A policy bundle changed what a person is: see [`PersonChange`].
    pub(super) fn apply_change(&self, change: &PersonChange, index: u64, at: Timestamp) {
        if change.ends_credentials() {
            self.withdraw_invitation(&change.person);
        }
        self.people
            .update_or_default(change.person.clone(), |person| {
                person.votes_since = index;
                if !matches!(change.kind, PersonChangeKind::Narrowed { .. }) {
                    person.since = index;
                }
                match &change.kind {
                    PersonChangeKind::Left | PersonChangeKind::LostRoles(_) => {
                        person.left.append(&mut person.passkeys);
                    }
                    PersonChangeKind::Returned => {
                        person.additions.person = index;
                        person.lost_keys = false;
                        person.passkeys.append(&mut person.left);
                    }
                    PersonChangeKind::Narrowed { .. } => {}
                    PersonChangeKind::Came => {
                        person.since_at = at;
                        person.lost_keys = false;
                        person.additions = Additions {
                            person: index,
                            ..Additions::default()
                        };
                        let ended = person.left.drain(..);
                        person.revoked.extend(ended.map(|p| p.record.key));
                    }
                }
            });
    }

    /// A policy bundle gave a person roles, groups or keys.
    pub(super) fn apply_gain(&self, gain: &PersonGain, index: u64) {
        self.people
            .update_or_default(gain.person.clone(), |person| {
                let added = &mut person.additions;
                added.roles.extend(gain.roles.iter().map(|r| (*r, index)));
                let groups = gain.groups.iter().chain(&gain.target_groups).cloned();
                added.groups.extend(groups.map(|group| (group, index)));
                added.keys.extend(gain.keys.iter().map(|k| (*k, index)));
            });
    }

    /// Does not advance the person's stream: the counter is a maximum, and the time of the last vote is for people to read.
    pub(super) fn apply_vote(&self, f: &VoteCast, at: Timestamp) {
        self.people.update(&f.voter, |person| {
            let mut next = person.clone();
            for passkey in &mut next.passkeys {
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
        let person = |(id, person): (PersonId, Arc<PersonCredentials>)| {
            let passkeys: Vec<Value> = person
                .passkeys
                .iter()
                .map(|p| {
                    let confirmed = p
                        .confirmation
                        .as_ref()
                        .map(|known| json!([known.by, known.at]));
                    json!([
                        p.record,
                        p.sign_count,
                        p.invited_by,
                        p.invited_with,
                        p.added_at,
                        p.index,
                        confirmed,
                        p.last_vote_at
                    ])
                })
                .collect();
            let left: Vec<Thumbprint> = person.left.iter().map(|p| p.record.key).collect();
            let added = &person.additions;
            let roles: BTreeMap<&str, u64> = added
                .roles
                .iter()
                .map(|(role, at)| (role.as_str(), *at))
                .collect();
            let keys: Vec<_> = added.keys.iter().collect();
            json!([
                id,
                passkeys,
                left,
                person.revoked,
                person.lost_keys,
                person.since,
                person.votes_since,
                [
                    json!(added.person),
                    json!(roles),
                    json!(added.groups),
                    json!(keys)
                ]
            ])
        };
        let invitation = |(id, i): (PersonId, Arc<Invitation>)| {
            json!([id, i.id, i.code, i.expires_at, i.by, i.by_key, i.index])
        };
        let people: Vec<Value> = sorted(self.people.all()).into_iter().map(person).collect();
        let invitations: Vec<Value> = sorted(self.invitations.all())
            .into_iter()
            .map(invitation)
            .collect();
        json!([people, invitations])
    }
}
