//! Passkey enrolment: an operator invites, the holder of the code enrols, an operator revokes.
//!
//! An invitation is a code that is shown once, good for ten minutes and one passkey. A revoked key never counts again, under
//! any policy bundle.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::approve::vote_proof;
use crate::broker::auth::one_time_code;
use crate::broker::auth::session::{ChallengePurpose, stated_challenge};
use crate::broker::transaction::UNTIL_DONE;
use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::AuthenticatorKey;
use crate::journal::Append;
use crate::model::*;
use crate::policy::Role;
use crate::state::{Invitation, PersonCredentials, Versioned};
use crate::webauthn::{self, Registration};

/// An issued invitation, for the invited person.
#[derive(Debug)]
pub struct IssuedInvitation {
    /// The code; shown once, kept as its hash.
    pub code: Secret,
    /// The URL to open. The code is in the fragment, which no browser sends.
    pub url: Secret,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// WebAuthn options for creating a passkey.
#[derive(Debug)]
pub struct EnrolmentOptions {
    /// The person who enrols.
    pub person: PersonId,
    /// Their display name.
    pub name: String,
    /// The challenge; good for two minutes.
    pub challenge: Vec<u8>,
    /// The person's user handle at authenticators: 16 opaque bytes.
    pub user: Vec<u8>,
    /// Their existing credentials, in base64url: an authenticator holds one of them at most.
    pub exclude: Vec<String>,
}

/// A person and their keys.
#[derive(Debug)]
pub struct ApproverView {
    /// Their id.
    pub id: PersonId,
    /// Their display name; empty for a person who left the policy bundle.
    pub name: String,
    /// Their groups.
    pub groups: Vec<GroupId>,
    /// Their roles.
    pub roles: Vec<Role>,
    /// Keys of `people.toml` that are not revoked.
    pub keys: Vec<Thumbprint>,
    /// Their passkeys.
    pub passkeys: Vec<PasskeyView>,
    /// When an open invitation expires.
    pub invited_until: Option<Timestamp>,
    /// Revoked keys.
    pub revoked: Vec<Thumbprint>,
}

/// A passkey, for lists.
#[derive(Debug)]
pub struct PasskeyView {
    /// Its name in votes and for `approver revoke`.
    pub key: Thumbprint,
    /// Its label.
    pub label: String,
    /// When it was enrolled.
    pub added_at: Timestamp,
    /// When its last vote was entered.
    pub last_vote_at: Option<Timestamp>,
    /// Whether it may be synchronised to other devices of its owner.
    pub backup_eligible: bool,
}

/// Seconds an invitation is good.
const INVITATION_LIFE_S: i64 = 600;
/// Passkeys of one person.
const PASSKEYS_MAX: usize = 10;
/// Longest label, in bytes.
const LABEL_BYTES_MAX: usize = 64;

impl Broker {
    /// Invites a registered person to enrol one passkey. An earlier invitation is void. A crash before the append leaves no
    /// invitation; after it, one whose code was never shown.
    pub async fn invite_approver(
        &self,
        call: &CallContext,
        person: PersonId,
    ) -> Result<IssuedInvitation, Refusal> {
        let operator = self.authenticate_person(call)?;
        let mut random = [0; 32];
        for half in random.chunks_mut(16) {
            half.copy_from_slice(&self.random_bytes());
        }
        let code = one_time_code::format(&random);
        let (person, operator, code) = (&person, &operator, &code);
        self.transaction(
            call.method,
            UNTIL_DONE,
            "the person keeps changing while they are invited",
            |attempt| async move {
                let now = self.now();
                let rules = self.require_operator(call, operator)?;
                if rules.bundle.person(person).is_none() {
                    let message = format!("no person {person} is registered");
                    return Err(self.refuse(call.method, Reason::NotFound, message).into());
                }
                let enrolled = self.state.credentials().get(person);
                if enrolled.value.passkeys.len() >= PASSKEYS_MAX {
                    let message = format!("{person} has {PASSKEYS_MAX} passkeys; revoke one first");
                    return Err(self.refuse(call.method, Reason::Malformed, message).into());
                }
                let expires_at = now.plus_secs(INVITATION_LIFE_S);
                let event = Event::ApproverInvited(ApproverInvited {
                    invitation: InvitationId::from_random(self.random_bytes()),
                    person: person.clone(),
                    code: hash(code),
                    expires_at,
                    by: operator.id.clone(),
                });
                let append = Append {
                    read_set: vec![(Stream::Policy, rules.version)],
                    ..Append::one(
                        event,
                        vec![(Stream::Person(person.clone()), enrolled.version)],
                    )
                };
                attempt.append(append).await?;
                let url = format!(
                    "{}/console/enrol#{}",
                    self.relying_party().origin,
                    code.expose_secret()
                );
                Ok(IssuedInvitation {
                    url: Secret::new(url),
                    code: code.clone(),
                    expires_at,
                })
            },
        )
        .await
    }

    /// Options for enrolling a passkey, for the code of an open invitation. Stateless.
    pub fn begin_enrolment(
        &self,
        method: &'static str,
        code: &Secret,
    ) -> Result<EnrolmentOptions, Refusal> {
        let now = self.now();
        let (person, enrolled, invitation) = self.open_invitation(method, code, now)?;
        let name = self
            .projections
            .rules()
            .and_then(|rules| rules.bundle.person(&person).map(|p| p.name.clone()));
        let name = name
            .ok_or_else(|| self.unknown_invitation(method, "its person is no longer registered"))?;
        Ok(EnrolmentOptions {
            challenge: self.sessions.challenge(
                ChallengePurpose::Enrol(invitation.id),
                self.random_bytes(),
                now,
            ),
            user: webauthn::user_handle(&person),
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
        code: &Secret,
        registration: &Registration,
        label: &str,
    ) -> Result<PersonId, Refusal> {
        let label = label.trim();
        if let Err(e) = check_visible("label", label, LABEL_BYTES_MAX) {
            return Err(self.malformed(method, &e));
        }
        self.transaction(
            method,
            UNTIL_DONE,
            "the person keeps changing while the passkey is enrolled",
            |attempt| async move {
                let now = self.now();
                let wrong = |why: &dyn std::fmt::Display| {
                    self.refuse(method, Reason::InvalidPasskeyAssertion, why.to_string())
                };
                let roster = self.state.credentials();
                let (person, enrolled, invitation) = self.open_invitation(method, code, now)?;
                let challenge =
                    stated_challenge(&registration.client_data_json).unwrap_or_default();
                self.sessions
                    .check(ChallengePurpose::Enrol(invitation.id), &challenge, now)
                    .ok_or_else(|| {
                        wrong(&"the challenge is not of this enrolment, or it has expired")
                    })?;
                let credential =
                    webauthn::verify_registration(self.relying_party(), &challenge, registration)
                        .map_err(|e| wrong(&e))?;
                let key = AuthenticatorKey::from_jwk(&credential.jwk).map_err(|e| wrong(&e))?;
                let key = key.thumbprint();
                let id = URL_SAFE_NO_PAD.encode(&credential.id);
                let rules = self
                    .projections
                    .rules()
                    .filter(|rules| rules.bundle.person(&person).is_some())
                    .ok_or_else(|| {
                        self.unknown_invitation(method, "its person is no longer registered")
                    })?;
                // A key can be enrolled once: reject keys registered to anyone and revoked keys.
                if roster.person_of_credential(&id).is_some()
                    || roster.was_enrolled(key)
                    || rules.by_key(key).is_some()
                {
                    return Err(
                        wrong(&"this key was enrolled before: use another authenticator").into(),
                    );
                }
                if enrolled.value.passkeys.len() >= PASSKEYS_MAX {
                    return Err(wrong(&format!(
                        "{person} has {PASSKEYS_MAX} passkeys; revoke one first"
                    ))
                    .into());
                }
                let event = Event::ApproverEnrolled(ApproverEnrolled {
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
                        event,
                        vec![(Stream::Person(person.clone()), enrolled.version)],
                    )
                };
                attempt.append(append).await?;
                Ok(person)
            },
        )
        .await
    }

    /// All people with their keys: those registered, and those who left and have enrolled or revoked keys.
    pub fn list_approvers(&self, call: &CallContext) -> Result<Vec<ApproverView>, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        let rules = self.rules(call)?;
        let mut ids: Vec<PersonId> = rules
            .bundle
            .people()
            .map(|p| p.id.clone())
            .chain(self.state.credentials().people())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let view = |id: PersonId| {
            let registered = rules.bundle.person(&id);
            let enrolled = self.state.credentials().get(&id);
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
                        vote_proof::active_keys(p, enrolled)
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

    /// Revokes one key of a person, or all: passkeys, keys of `people.toml`, and an open invitation. Their votes that no grant
    /// has consumed are void with it. Returns the number of keys.
    pub async fn revoke_approver_keys(
        &self,
        call: &CallContext,
        person: PersonId,
        only: Option<Thumbprint>,
    ) -> Result<usize, Refusal> {
        let operator = self.authenticate_person(call)?;
        let (person, operator) = (&person, &operator);
        self.transaction(
            call.method,
            UNTIL_DONE,
            "the person keeps changing while keys are revoked",
            |attempt| async move {
                let rules = self.require_operator(call, operator)?;
                let enrolled = self.state.credentials().get(person);
                let registered = rules.bundle.person(person);
                let mut keys: Vec<Thumbprint> = enrolled
                    .value
                    .passkeys
                    .iter()
                    .map(|p| p.record.key)
                    .chain(
                        registered
                            .into_iter()
                            .flat_map(|p| vote_proof::active_keys(p, &enrolled.value))
                            .map(|k| k.thumbprint()),
                    )
                    .collect();
                if registered.is_none() && enrolled.version == 0 {
                    let message = format!("no person {person} is registered");
                    return Err(self.refuse(call.method, Reason::NotFound, message).into());
                }
                if let Some(only) = only {
                    if enrolled.value.revoked.contains(&only) {
                        return Ok(0);
                    }
                    keys.retain(|key| *key == only);
                    if keys.is_empty() {
                        let message = format!("{person} has no key {only}");
                        return Err(self.refuse(call.method, Reason::NotFound, message).into());
                    }
                }
                if keys.is_empty() && enrolled.value.invitation.is_none() {
                    return Ok(0);
                }
                let count = keys.len();
                let event = Event::ApproverKeysRevoked(ApproverKeysRevoked {
                    person: person.clone(),
                    keys,
                    cause: RevokeCause::Operator,
                    by: Some(operator.id.clone()),
                });
                let append = Append {
                    read_set: vec![(Stream::Policy, rules.version)],
                    ..Append::one(
                        event,
                        vec![(Stream::Person(person.clone()), enrolled.version)],
                    )
                };
                attempt.append(append).await?;
                Ok(count)
            },
        )
        .await
    }

    fn open_invitation(
        &self,
        method: &'static str,
        code: &Secret,
        now: Timestamp,
    ) -> Result<(PersonId, Arc<Versioned<PersonCredentials>>, Invitation), Refusal> {
        let code = hash(code);
        let roster = self.state.credentials();
        let person = roster
            .person_of_code(&code)
            .ok_or_else(|| self.unknown_invitation(method, "no invitation has this code"))?;
        let enrolled = roster.get(&person);
        let open = enrolled
            .value
            .invitation
            .clone()
            .filter(|i| i.code == code && now < i.expires_at);
        let open = open.ok_or_else(|| {
            self.unknown_invitation(method, "the invitation was used or has expired")
        })?;
        Ok((person, enrolled, open))
    }

    fn unknown_invitation(&self, method: &'static str, why: &str) -> Refusal {
        self.refuse_unauthenticated(method, Reason::InvalidInvitation, why)
    }
}

/// The stored form of a code: 100 random bits cannot be found from their hash.
fn hash(code: &Secret) -> Digest {
    Digest::tagged(
        "dipylon/invitation/v1",
        one_time_code::normalize(code).expose_secret().as_bytes(),
    )
}
