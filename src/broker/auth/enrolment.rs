//! Passkey enrolment: an operator invites, the holder of the code enrols, another person confirms, an operator revokes.
//!
//! An invitation is a code that is shown once, good for ten minutes and one passkey. The operator saw it: until another person confirms the
//! passkey it may be the operator's own. A revoked key never counts again, under any policy bundle.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::broker::auth::one_time_code;
use crate::broker::auth::session::{ChallengePurpose, stated_challenge};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::jose::{AuthenticatorKey, PublicKey};
use crate::model::*;
use crate::policy::Role;
use crate::state::{
    ConfirmationRefusal, Draft, Falls, Invitation, KeyRecord, KeyStanding, PasskeyConfirmation,
    PersonKey, Read, Recorded,
};
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

/// An enrolled passkey, for its person.
#[derive(Debug)]
pub struct EnrolledPasskey {
    /// The person.
    pub person: PersonId,
    /// What the person reads out to the one who confirms it.
    pub code: ConfirmationCode,
    /// The first people who could confirm it, at most [`CONFIRMERS_SHOWN_MAX`]; empty where the owner of the broker's host has to.
    pub confirmers: Vec<PersonId>,
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
    /// The operator on whose invitation it was enrolled.
    pub invited_by: PersonId,
    /// Who confirmed it, and when; `None` while it awaits confirmation.
    pub confirmation: Option<PasskeyConfirmation>,
    /// The first people who could confirm it now, at most [`CONFIRMERS_SHOWN_MAX`]; none for a confirmed one.
    pub confirmers: Vec<PersonId>,
    /// Whether the reader could.
    pub may_confirm: bool,
}

/// What a revocation of keys ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRevocationSummary {
    /// How many keys of the person counted until now.
    pub keys: usize,
    /// Other passkeys that were enrolled on invitations given with compromised keys, and that no other key confirmed: revoked too.
    pub invited: Vec<PersonKey>,
    /// Other passkeys that were confirmed with compromised keys: they await confirmation again.
    pub unconfirmed: Vec<PersonKey>,
}

/// Which keys an operator revokes.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyRevocation {
    /// This one alone; all of the person's, and an open invitation, when absent.
    pub only: Option<Thumbprint>,
    /// Another person may have the key: it goes even where no operator can act after it.
    pub compromised: bool,
}

/// Seconds an invitation is good.
const INVITATION_LIFE_S: i64 = 600;
/// Passkeys of one person.
const PASSKEYS_MAX: usize = 10;
/// Most people whom an answer names as those who could confirm a passkey.
pub const CONFIRMERS_SHOWN_MAX: usize = 5;
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
        let done = self
            .transaction(call.method)
            .ordered_by(&operator)
            .run(|read| {
                let now = self.now();
                let rules = self.require_operator(read, call, &operator)?;
                if rules.bundle.person(&person).is_none() {
                    let message = format!("no person {person} is registered");
                    return Err(self.refuse(call.method, Reason::NotFound, message));
                }
                if read.person(&person).passkeys.len() >= PASSKEYS_MAX {
                    let message = format!("{person} has {PASSKEYS_MAX} passkeys; revoke one first");
                    return Err(self.refuse(call.method, Reason::Malformed, message));
                }
                let expires_at = now.plus_secs(INVITATION_LIFE_S);
                let event = Event::ApproverInvited(ApproverInvited {
                    invitation: InvitationId::from_random(self.random_bytes()),
                    person: person.clone(),
                    code: hash(&code),
                    expires_at,
                    by: operator.id.clone(),
                    by_key: operator.key,
                });
                Ok(Step::Append(Draft::one(event), expires_at))
            })
            .await?;
        let url = format!(
            "{}/console/enrol#{}",
            self.relying_party().origin,
            code.expose_secret()
        );
        Ok(IssuedInvitation {
            url: Secret::new(url),
            code,
            expires_at: done.value,
        })
    }

    /// Options for enrolling a passkey, for the code of an open invitation. Stateless.
    pub fn begin_enrolment(
        &self,
        method: &'static str,
        code: &Secret,
    ) -> Result<EnrolmentOptions, Refusal> {
        let now = self.now();
        self.preview(|read| {
            let (person, invitation) = self.open_invitation(read, method, code, now)?;
            let name = read
                .rules()
                .and_then(|rules| rules.bundle.person(&person).map(|p| p.name.clone()))
                .ok_or_else(|| self.refuse_invitation(method, UNREGISTERED))?;
            let passkeys = read.person(&person);
            let credentials = passkeys.passkeys.iter();
            let challenge = self.sessions.challenge(
                ChallengePurpose::Enrol(invitation.id),
                self.random_bytes(),
                now,
            );
            Ok(EnrolmentOptions {
                challenge,
                user: webauthn::user_handle(&person),
                exclude: credentials.map(|p| p.record.credential.clone()).collect(),
                person,
                name,
            })
        })
    }

    /// Enrols a passkey and spends the invitation. INVARIANT (one invitation, one passkey): the entry advances the invitation's
    /// stream from the version at which it was open. INVARIANT (every order rests on the living key that gave it): an invitation is good
    /// while the operator who gave it is one with that key. INVARIANT (a key is enrolled once): it advances the streams of the key
    /// and of the credential. A crash before the append leaves the invitation open; after it, the passkey.
    pub async fn finish_enrolment(
        &self,
        method: &'static str,
        code: &Secret,
        registration: &Registration,
        label: &str,
    ) -> Result<EnrolledPasskey, Refusal> {
        let label = label.trim();
        if let Err(e) = check_visible("label", label, LABEL_BYTES_MAX) {
            return Err(self.malformed(method, &e));
        }
        let done = self
            .transaction(method)
            .run(|read| self.decide_enrolment(read, method, code, registration, label))
            .await?;
        let (person, key) = done.value;
        let mut confirmers = self.show().confirmers(&person, key);
        confirmers.truncate(CONFIRMERS_SHOWN_MAX);
        Ok(EnrolledPasskey {
            code: ConfirmationCode::of(key),
            confirmers,
            person,
        })
    }

    fn decide_enrolment(
        &self,
        read: &Read,
        method: &'static str,
        code: &Secret,
        registration: &Registration,
        label: &str,
    ) -> Result<Step<PersonKey>, Refusal> {
        let now = self.now();
        let wrong = |why: &dyn std::fmt::Display| {
            self.refuse(method, Reason::InvalidPasskeyAssertion, why.to_string())
        };
        let (person, invitation) = self.open_invitation(read, method, code, now)?;
        let challenge = stated_challenge(&registration.client_data_json).unwrap_or_default();
        self.sessions
            .check(ChallengePurpose::Enrol(invitation.id), &challenge, now)
            .ok_or_else(|| wrong(&"the challenge is not of this enrolment, or it has expired"))?;
        let credential =
            webauthn::verify_registration(self.relying_party(), &challenge, registration)
                .map_err(|e| wrong(&e))?;
        let public = AuthenticatorKey::from_jwk(&credential.jwk).map_err(|e| wrong(&e))?;
        let key = public.thumbprint();
        let id = URL_SAFE_NO_PAD.encode(&credential.id);
        read.rules()
            .filter(|rules| rules.bundle.person(&person).is_some())
            .ok_or_else(|| self.refuse_invitation(method, UNREGISTERED))?;
        // The holder is not named: the caller may be a stranger with a code.
        if read.person_of_credential(&id).is_some() || read.may_enrol(&(&public).into()).is_err() {
            return Err(wrong(
                &"this key has or had a holder already: use another authenticator",
            ));
        }
        if read.person(&person).passkeys.len() >= PASSKEYS_MAX {
            return Err(wrong(&format!(
                "{person} has {PASSKEYS_MAX} passkeys; revoke one first"
            )));
        }
        let event = Event::ApproverEnrolled(ApproverEnrolled {
            person: person.clone(),
            invitation: invitation.id,
            passkey: PasskeyOnRecord {
                credential: id,
                key,
                key_identity: public.identity(),
                jwk: credential.jwk,
                sign_count: credential.sign_count,
                backup_eligible: credential.backup_eligible,
                backed_up: credential.backed_up,
                aaguid: URL_SAFE_NO_PAD.encode(credential.aaguid),
                label: label.to_owned(),
            },
        });
        let draft = Draft::one(event).not_after(invitation.expires_at);
        Ok(Step::Append(draft, (person, key)))
    }

    /// Confirms that a person enrolled a passkey themselves. A crash before the append leaves it unconfirmed; after it, confirmed.
    /// Returns the index of the entry. INVARIANT (no single hand): by a person who neither holds nor invited it, with a key that counts
    /// by itself.
    pub async fn confirm_passkey(
        &self,
        call: &CallContext,
        person: PersonId,
        key: Thumbprint,
    ) -> Result<u64, Refusal> {
        let caller = self.authenticate_person(call)?;
        let by = Confirmer::Person {
            id: caller.id.clone(),
            key: caller.key,
        };
        let done = self
            .transaction(call.method)
            .ordered_by(&caller)
            .run(|read| {
                let rules = self.require_person(read, call, &caller)?;
                if rules.bundle.person(&person).is_none() {
                    let message = format!("no person {person} is registered");
                    return Err(self.refuse(call.method, Reason::NotFound, message));
                }
                let checked = read.may_confirm(&person, key, &by);
                checked.map_err(|why| self.refuse_confirmation(call.method, &why))?;
                let event = Event::PasskeyConfirmed(PasskeyConfirmed {
                    person: person.clone(),
                    key,
                    by: by.clone(),
                });
                Ok(Step::Append(Draft::one(event), ()))
            })
            .await?;
        Ok(done.entry.map_or(0, |entry| entry.index))
    }

    /// The same for the passkey of the person whose code was entered.
    pub async fn confirm_passkey_by_code(
        &self,
        call: &CallContext,
        person: PersonId,
        code: ConfirmationCode,
    ) -> Result<u64, Refusal> {
        self.authenticate_person(call)?;
        let enrolled = self.show().person(&person);
        let mut keys = enrolled.passkeys.iter().map(|passkey| passkey.record.key);
        let Some(key) = keys.find(|key| ConfirmationCode::of(*key) == code) else {
            let message = format!(
                "{person} has no passkey with this code: ask {person} to read it out again; a passkey that {person} did not enrol has to be revoked"
            );
            return Err(self.refuse(call.method, Reason::NotFound, message));
        };
        self.confirm_passkey(call, person, key).await
    }

    fn refuse_confirmation(&self, method: &'static str, why: &ConfirmationRefusal) -> Refusal {
        let reason = match why {
            ConfirmationRefusal::Unknown(..) => Reason::NotFound,
            ConfirmationRefusal::NotLiving(_) | ConfirmationRefusal::Confirmed { .. } => {
                Reason::NotConfirmable
            }
            ConfirmationRefusal::Owner(_)
            | ConfirmationRefusal::Inviter(_)
            | ConfirmationRefusal::NoRole(_)
            | ConfirmationRefusal::KeyNotActive(_)
            | ConfirmationRefusal::KeyNotConfirmed(_)
            | ConfirmationRefusal::PeopleCan(_) => Reason::NotAnotherHand,
        };
        self.refuse(method, reason, why.to_string())
    }

    /// All people with their keys: those registered, and those who left and have enrolled or revoked keys.
    pub fn list_approvers(&self, call: &CallContext) -> Result<Vec<ApproverView>, Refusal> {
        let now = self.now();
        let reader = self.authenticate_reader_person(call, now)?;
        let rules = self.rules(call)?;
        let confirmers = self.show().people_who_confirm();
        let mut ids: Vec<PersonId> = rules
            .bundle
            .people()
            .map(|p| p.id.clone())
            .chain(self.show().people())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let view = |id: PersonId| {
            let registered = rules.bundle.person(&id);
            let enrolled = self.show().person(&id);
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
                        let living = self.show().living_keys(&id);
                        let of_bundle = |key: &Thumbprint| p.key(*key).is_some();
                        living.into_iter().filter(of_bundle).collect()
                    })
                    .unwrap_or_default(),
                passkeys: enrolled
                    .passkeys
                    .iter()
                    .map(|p| {
                        let could = |by: &&PersonId| {
                            p.confirmation.is_none() && **by != id && **by != p.invited_by
                        };
                        let may_confirm = reader
                            .as_ref()
                            .is_some_and(|by| could(&&by.id) && confirmers.contains(&by.id));
                        let confirmers = confirmers.iter().filter(could);
                        PasskeyView {
                            key: p.record.key,
                            label: p.record.label.clone(),
                            added_at: p.added_at,
                            last_vote_at: p.last_vote_at,
                            backup_eligible: p.record.backup_eligible,
                            invited_by: p.invited_by.clone(),
                            confirmation: p.confirmation.clone(),
                            confirmers: confirmers.take(CONFIRMERS_SHOWN_MAX).cloned().collect(),
                            may_confirm,
                        }
                    })
                    .collect(),
                invited_until: self
                    .show()
                    .invitation(&id)
                    .map(|i| i.expires_at)
                    .filter(|until| now < *until),
                revoked: enrolled.revoked.iter().copied().collect(),
                id,
            }
        };
        Ok(ids.into_iter().map(view).collect())
    }

    /// Revokes one key of a person, or all: passkeys, keys of `people.toml`, and an open invitation. They are dead for everyone, for
    /// ever, and their votes that no grant has consumed are void. Refuses to revoke the last living key of the operators, unless it is
    /// compromised. With compromised keys fall the passkeys that rest on their invitations alone, and the confirmations they gave.
    pub async fn revoke_approver_keys(
        &self,
        call: &CallContext,
        person: PersonId,
        revocation: KeyRevocation,
    ) -> Result<KeyRevocationSummary, Refusal> {
        let operator = self.authenticate_person(call)?;
        let done = self
            .transaction(call.method)
            .ordered_by(&operator)
            .run(|read| self.decide_key_revocation(read, call, &operator, &person, revocation))
            .await?;
        Ok(done.value)
    }

    fn decide_key_revocation(
        &self,
        read: &Read,
        call: &CallContext,
        operator: &PersonCaller,
        person: &PersonId,
        revocation: KeyRevocation,
    ) -> Result<Step<KeyRevocationSummary>, Refusal> {
        let rules = self.require_operator(read, call, operator)?;
        let registered = rules.bundle.person(person);
        let records = read.key_records(person);
        // Read only where it decides: an invitation delays no revocation.
        let has_invitation = || read.invitation(person).is_some();
        if registered.is_none() && records.is_empty() && !has_invitation() {
            let message = format!("no person {person} is registered");
            return Err(self.refuse(call.method, Reason::NotFound, message));
        }
        let not_dead = |record: &KeyRecord| record.standing != KeyStanding::Dead;
        // A key that died before may be found stolen now.
        let is_news =
            |record: &KeyRecord| not_dead(record) || revocation.compromised && !record.is_stolen;
        let keys: Vec<Thumbprint> = match revocation.only {
            Some(only) => match read.key_record(person, only) {
                None => {
                    let message = format!("{person} has no key {only}");
                    return Err(self.refuse(call.method, Reason::NotFound, message));
                }
                Some(record) if is_news(&record) => vec![record.thumbprint],
                Some(_) => return Ok(Step::Answer(KeyRevocationSummary::default())),
            },
            // The entry names those that can act, and passkeys that left. All others die with it: no later bundle brings them back.
            None => {
                let enrolled = read.person(person);
                let left = enrolled.left.iter().map(|p| p.record.key);
                let in_bundle = registered.into_iter().flat_map(|p| p.keys.iter());
                let in_bundle = in_bundle.map(PublicKey::thumbprint);
                let passkeys = enrolled.passkeys.iter().map(|p| p.record.key);
                let named = passkeys.chain(in_bundle).chain(left);
                let alive = |key: &Thumbprint| {
                    let record = records.iter().find(|record| record.thumbprint == *key);
                    record.is_some_and(|record| not_dead(record))
                };
                named.filter(alive).collect()
            }
        };
        let all = revocation.only.is_none();
        let others = all && records.iter().any(|record| is_news(record));
        let falls = match revocation.compromised {
            true => {
                let others = records.iter().map(|record| record.thumbprint);
                let stolen = keys.iter().copied().chain(others.filter(|_| all));
                read.falls_with(&stolen.collect::<Vec<_>>())
            }
            false => Falls::default(),
        };
        if keys.is_empty() && !others && !has_invitation() {
            return Ok(Step::Answer(KeyRevocationSummary::default()));
        }
        let died = |key: &&Thumbprint| {
            let record = records.iter().find(|record| record.thumbprint == **key);
            record.is_some_and(|record| not_dead(record))
        };
        let governed = |dead: &[Thumbprint]| !read.governors_without(dead).is_empty();
        if !revocation.compromised && governed(&[]) && !governed(&keys) {
            let message = format!(
                "after it no operator has a living key to freeze, revoke or apply a bundle with: apply a bundle with another operator's key first; if another person may have the key of {person}, revoke it as compromised, and recover the operators on the broker's host"
            );
            return Err(self.refuse(call.method, Reason::LastOperatorKey, message));
        }
        let (invited, unconfirmed) = falls.counts();
        let revoked = KeyRevocationSummary {
            keys: keys.iter().filter(died).count(),
            invited: falls.dead,
            unconfirmed: falls.unconfirmed,
        };
        let event = Event::ApproverKeysRevoked(ApproverKeysRevoked {
            person: person.clone(),
            keys,
            all,
            cause: match revocation.compromised {
                true => RevokeCause::Compromised,
                false => RevokeCause::Operator,
            },
            by: Some(operator.id.clone()),
            invited,
            unconfirmed,
        });
        Ok(Step::Append(Draft::one(event), revoked))
    }

    fn open_invitation<'r>(
        &self,
        read: &'r Read,
        method: &'static str,
        code: &Secret,
        now: Timestamp,
    ) -> Result<(PersonId, Recorded<'r, Invitation>), Refusal> {
        let found = read.invitation_by_code(&hash(code));
        let (person, invitation) = found
            .ok_or_else(|| self.refuse_invitation(method, "no open invitation has this code"))?;
        if now >= invitation.expires_at {
            return Err(self.refuse_invitation(method, "the invitation has expired"));
        }
        if !read.is_open_invitation(&invitation, now) {
            let why = "the operator who gave the invitation is no longer one with that key";
            return Err(self.refuse_invitation(method, why));
        }
        Ok((person, invitation))
    }

    fn refuse_invitation(&self, method: &'static str, why: &str) -> Refusal {
        self.refuse_unauthenticated(method, Reason::InvalidInvitation, why)
    }
}

/// Why an invitation of a person who left the policy bundle is refused.
const UNREGISTERED: &str = "its person is no longer registered";

/// The stored form of a code: 100 random bits cannot be found from their hash.
fn hash(code: &Secret) -> Digest {
    Digest::tagged(
        "dipylon/invitation/v1",
        one_time_code::normalize(code).expose_secret().as_bytes(),
    )
}
