//! Passkeys of people: invited by an operator, enrolled by whoever holds the code, revoked for good.
//!
//! An invitation is a code that is shown once, good for ten minutes and one passkey. What is revoked never counts again,
//! whatever a policy bundle says.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::approve::votes;
use crate::broker::auth::one_time_code as code;
use crate::broker::auth::session::{Purpose, challenge_in};
use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::AuthenticatorKey;
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::policy::Role;
use crate::state::{Enrolled, Invitation, Versioned};
use crate::webauthn::{self, Registration};

/// An invitation, for the one person it is for.
#[derive(Debug)]
pub struct Invited {
    /// The code; shown once, kept as its hash.
    pub code: Secret,
    /// Where it is used. The code stands behind the `#`, which no browser sends.
    pub url: Secret,
    /// Until when.
    pub expires_at: Timestamp,
}

/// What a browser needs to make a passkey.
#[derive(Debug)]
pub struct EnrolmentBegun {
    /// Whose it will be.
    pub person: PersonId,
    /// What colleagues call them.
    pub name: String,
    /// To be signed; good for two minutes.
    pub challenge: Vec<u8>,
    /// The person's handle at authenticators: 16 bytes that say nothing.
    pub user: Vec<u8>,
    /// Credentials they have, in base64url: an authenticator holds one of them.
    pub exclude: Vec<String>,
}

/// A person and their keys.
#[derive(Debug)]
pub struct ApproverView {
    /// Their id.
    pub id: PersonId,
    /// What colleagues call them; empty for one who left the policy bundle.
    pub name: String,
    /// Groups they are in.
    pub groups: Vec<GroupId>,
    /// What they may do.
    pub roles: Vec<Role>,
    /// Keys of `people.toml` that count.
    pub keys: Vec<Thumbprint>,
    /// Their passkeys.
    pub passkeys: Vec<PasskeyView>,
    /// Until when an open invitation may be used.
    pub invited_until: Option<Timestamp>,
    /// Keys that count no more.
    pub revoked: Vec<Thumbprint>,
}

/// A passkey, for lists.
#[derive(Debug)]
pub struct PasskeyView {
    /// Its name in votes and for `approver revoke`.
    pub key: Thumbprint,
    /// What the person calls it.
    pub label: String,
    /// When it was enrolled.
    pub added_at: Timestamp,
    /// When its last vote was entered.
    pub last_vote_at: Option<Timestamp>,
    /// Whether it may be copied to other devices of its owner.
    pub backup_eligible: bool,
}

/// Seconds an invitation is good.
const INVITATION_LIFE_S: i64 = 600;
/// Passkeys of one person.
const PASSKEYS_MAX: usize = 10;
/// Longest label, in bytes.
const LABEL_BYTES_MAX: usize = 64;

impl Broker {
    /// Invites a registered person to enrol one passkey. An earlier invitation of theirs is void. A crash before the append
    /// leaves none; after it, one whose code nobody saw.
    pub async fn invite_approver(
        &self,
        call: &CallContext,
        person: PersonId,
    ) -> Result<Invited, Refusal> {
        let operator = self.person(call)?;
        let mut random = [0; 32];
        for half in random.chunks_mut(16) {
            half.copy_from_slice(&self.draw());
        }
        let shown = code::spell(&random);
        loop {
            let now = self.now();
            let rules = self.still_operator(call, &operator)?;
            if rules.bundle.person(&person).is_none() {
                let told = format!("no person {person} is registered");
                return Err(self.refuse(call.method, Reason::NotFound, told));
            }
            let enrolled = self.state.roster().of(&person);
            if enrolled.value.passkeys.len() >= PASSKEYS_MAX {
                let told = format!("{person} has {PASSKEYS_MAX} passkeys; revoke one first");
                return Err(self.refuse(call.method, Reason::Malformed, told));
            }
            let expires_at = now.plus_secs(INVITATION_LIFE_S);
            let fact = Event::ApproverInvited(ApproverInvited {
                invitation: InvitationId::from_random(self.draw()),
                person: person.clone(),
                code: hash(&shown),
                expires_at,
                by: operator.id.clone(),
            });
            let append = Append {
                read_set: vec![(Stream::Policy, rules.version)],
                ..Append::one(
                    fact,
                    vec![(Stream::Person(person.clone()), enrolled.version)],
                )
            };
            match self.journal.append(append).await {
                Ok(_) => {
                    let url = format!(
                        "{}/console/enrol#{}",
                        self.relying_party().origin,
                        shown.expose_secret()
                    );
                    return Ok(Invited {
                        url: Secret::new(url),
                        code: shown,
                        expires_at,
                    });
                }
                Err(AppendError::Conflict(_)) => {}
                Err(error) => return Err(self.refuse_append(call.method, &error)),
            }
        }
    }

    /// What a browser needs to enrol a passkey, for whoever shows the code of an open invitation. Nothing is kept of it.
    pub fn begin_enrolment(
        &self,
        method: &'static str,
        shown: &Secret,
    ) -> Result<EnrolmentBegun, Refusal> {
        let now = self.now();
        let (person, enrolled, invitation) = self.open_invitation(method, shown, now)?;
        let name = self
            .views
            .rules()
            .and_then(|rules| rules.bundle.person(&person).map(|p| p.name.clone()));
        let name = name.ok_or_else(|| self.unknown_invitation(method, "its person left"))?;
        Ok(EnrolmentBegun {
            challenge: self
                .sessions
                .challenge(Purpose::Enrol(invitation.id), self.draw(), now),
            user: user_handle(&person),
            exclude: enrolled
                .value
                .passkeys
                .iter()
                .map(|p| p.record.credential.clone())
                .collect(),
            person,
            name,
        })
    }

    /// Enrols a passkey and spends the invitation. INVARIANT (one invitation, one passkey): the entry moves the person's
    /// stream from the version at which the invitation was open. A crash before the append leaves the invitation open;
    /// after it, the passkey.
    pub async fn finish_enrolment(
        &self,
        method: &'static str,
        shown: &Secret,
        made: &Registration,
        label: &str,
    ) -> Result<PersonId, Refusal> {
        let label = label.trim();
        if let Err(e) = visible("label", label, LABEL_BYTES_MAX) {
            return Err(self.refuse(method, Reason::Malformed, e.to_string()));
        }
        loop {
            let now = self.now();
            let wrong = |why: &dyn std::fmt::Display| {
                self.refuse(method, Reason::PasskeyWrong, why.to_string())
            };
            let roster = self.state.roster();
            let (person, enrolled, invitation) = self.open_invitation(method, shown, now)?;
            let challenge = challenge_in(&made.client_data_json).unwrap_or_default();
            self.sessions
                .check(Purpose::Enrol(invitation.id), &challenge, now)
                .ok_or_else(|| wrong(&"the challenge is not of this enrolment, or too old"))?;
            let credential = webauthn::verify_registration(self.relying_party(), &challenge, made)
                .map_err(|e| wrong(&e))?;
            let key = AuthenticatorKey::from_jwk(&credential.jwk).map_err(|e| wrong(&e))?;
            let key = key.thumbprint();
            let id = URL_SAFE_NO_PAD.encode(&credential.id);
            let rules = self
                .views
                .rules()
                .filter(|rules| rules.bundle.person(&person).is_some())
                .ok_or_else(|| self.unknown_invitation(method, "its person left"))?;
            // One hand is one human: a key that speaks for anybody already is nobody else's, and a revoked one is nobody's.
            if roster.holder(&id).is_some() || roster.known(key) || rules.by_key(key).is_some() {
                return Err(wrong(&"this key was enrolled before"));
            }
            if enrolled.value.passkeys.len() >= PASSKEYS_MAX {
                return Err(wrong(&format!("{PASSKEYS_MAX} passkeys are enough")));
            }
            let fact = Event::ApproverEnrolled(ApproverEnrolled {
                person: person.clone(),
                invitation: invitation.id,
                passkey: PasskeyOnRecord {
                    credential: id,
                    key,
                    jwk: credential.jwk,
                    sign_count: credential.sign_count,
                    backup_eligible: credential.backup_eligible,
                    backed_up: credential.backed_up,
                    aaguid: URL_SAFE_NO_PAD.encode(credential.aaguid),
                    label: label.to_owned(),
                },
            });
            let append = Append {
                read_set: vec![(Stream::Policy, rules.version)],
                not_after: Some(invitation.expires_at),
                ..Append::one(
                    fact,
                    vec![(Stream::Person(person.clone()), enrolled.version)],
                )
            };
            match self.journal.append(append).await {
                Ok(_) => return Ok(person),
                // Looked at again: whoever used the invitation meanwhile has closed it.
                Err(AppendError::Conflict(_) | AppendError::Late) => {}
                Err(error) => return Err(self.refuse_append(method, &error)),
            }
        }
    }

    /// Everyone with their keys: those registered, and those who left and have keys or revoked ones.
    pub fn list_approvers(&self, call: &CallContext) -> Result<Vec<ApproverView>, Refusal> {
        let now = self.now();
        self.reader(call, now)?;
        let rules = self.rules(call)?;
        let mut ids: Vec<PersonId> = rules
            .bundle
            .people()
            .map(|p| p.id.clone())
            .chain(self.state.roster().everyone())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let view = |id: PersonId| {
            let registered = rules.bundle.person(&id);
            let enrolled = self.state.roster().of(&id);
            let enrolled = &enrolled.value;
            ApproverView {
                name: registered.map(|p| p.name.clone()).unwrap_or_default(),
                groups: registered
                    .map(|p| p.groups.iter().cloned().collect())
                    .unwrap_or_default(),
                roles: registered
                    .map(|p| p.roles.iter().copied().collect())
                    .unwrap_or_default(),
                keys: registered
                    .map(|p| {
                        votes::live_keys(p, enrolled)
                            .map(|k| k.thumbprint())
                            .collect()
                    })
                    .unwrap_or_default(),
                passkeys: enrolled
                    .passkeys
                    .iter()
                    .map(|p| PasskeyView {
                        key: p.record.key,
                        label: p.record.label.clone(),
                        added_at: p.added_at,
                        last_vote_at: p.last_vote_at,
                        backup_eligible: p.record.backup_eligible,
                    })
                    .collect(),
                invited_until: enrolled
                    .invitation
                    .as_ref()
                    .map(|i| i.expires_at)
                    .filter(|until| now < *until),
                revoked: enrolled.revoked.iter().copied().collect(),
                id,
            }
        };
        Ok(ids.into_iter().map(view).collect())
    }

    /// Makes one key of a person, or all of them, count no more: passkeys, keys of `people.toml`, and an open invitation.
    /// Their votes that no grant has consumed are void with it. How many keys that was.
    pub async fn revoke_approver_keys(
        &self,
        call: &CallContext,
        person: PersonId,
        only: Option<Thumbprint>,
    ) -> Result<usize, Refusal> {
        let operator = self.person(call)?;
        loop {
            let rules = self.still_operator(call, &operator)?;
            let enrolled = self.state.roster().of(&person);
            let registered = rules.bundle.person(&person);
            let mut keys: Vec<Thumbprint> = enrolled
                .value
                .passkeys
                .iter()
                .map(|p| p.record.key)
                .chain(
                    registered
                        .into_iter()
                        .flat_map(|p| votes::live_keys(p, &enrolled.value))
                        .map(|k| k.thumbprint()),
                )
                .collect();
            if registered.is_none() && enrolled.version == 0 {
                let told = format!("no person {person} is registered");
                return Err(self.refuse(call.method, Reason::NotFound, told));
            }
            if let Some(only) = only {
                if enrolled.value.revoked.contains(&only) {
                    return Ok(0);
                }
                keys.retain(|key| *key == only);
                if keys.is_empty() {
                    let told = format!("{person} has no key {only}");
                    return Err(self.refuse(call.method, Reason::NotFound, told));
                }
            }
            if keys.is_empty() && enrolled.value.invitation.is_none() {
                return Ok(0);
            }
            let count = keys.len();
            let fact = Event::ApproverKeysRevoked(ApproverKeysRevoked {
                person: person.clone(),
                keys,
                cause: RevokeCause::Operator,
                by: Some(operator.id.clone()),
            });
            let append = Append {
                read_set: vec![(Stream::Policy, rules.version)],
                ..Append::one(
                    fact,
                    vec![(Stream::Person(person.clone()), enrolled.version)],
                )
            };
            match self.journal.append(append).await {
                Ok(_) => return Ok(count),
                Err(AppendError::Conflict(_)) => {}
                Err(error) => return Err(self.refuse_append(call.method, &error)),
            }
        }
    }

    fn open_invitation(
        &self,
        method: &'static str,
        shown: &Secret,
        now: Timestamp,
    ) -> Result<(PersonId, Arc<Versioned<Enrolled>>, Invitation), Refusal> {
        let code = hash(shown);
        let roster = self.state.roster();
        let person = roster
            .invited(&code)
            .ok_or_else(|| self.unknown_invitation(method, "no invitation has this code"))?;
        let enrolled = roster.of(&person);
        let open = enrolled
            .value
            .invitation
            .clone()
            .filter(|i| i.code == code && now < i.expires_at);
        let open = open.ok_or_else(|| {
            self.unknown_invitation(method, "the invitation was used, or is too old")
        })?;
        Ok((person, enrolled, open))
    }

    fn unknown_invitation(&self, method: &'static str, why: &str) -> Refusal {
        Refusal {
            known: false,
            ..self.refuse(method, Reason::InvitationUnknown, why)
        }
    }
}

/// A person's handle at authenticators: nothing that says who it is, the same for all their passkeys (WebAuthn L3 §14.6.1).
pub(in crate::broker) fn user_handle(person: &PersonId) -> Vec<u8> {
    let digest = Digest::tagged("dipylon/user/v1", person.as_str().as_bytes());
    digest.as_bytes().iter().take(16).copied().collect()
}

/// What is kept of a code: at 100 random bits nobody finds the code from it.
fn hash(shown: &Secret) -> Digest {
    Digest::tagged(
        "dipylon/invitation/v1",
        code::plain(shown).expose_secret().as_bytes(),
    )
}
