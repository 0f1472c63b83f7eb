//! Sessions: browsers of people who signed in with a passkey.
//!
//! In: an assertion over a challenge of this broker; then the session cookie. Out: the signed-in person, for methods that
//! allow their role. Trusts passkeys on record in the journal. A session lets a person read and begin; it is never a vote:
//! each vote is an assertion of its own. Kept in memory of this broker alone: a restart ends all sessions.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::broker::auth::replay_cache::ReplayCache;
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::policy::Role;
use crate::state::{Draft, KeyHolder, Read};
use crate::verify::VerifyError;
use crate::webauthn::{self, Assertion, WebauthnError};

/// WebAuthn options for signing in.
#[derive(Debug)]
pub struct SignInOptions {
    /// The challenge; good for two minutes and one sign-in.
    pub challenge: Vec<u8>,
}

/// A new session.
#[derive(Debug)]
pub struct Session {
    /// The session token, for the cookie alone.
    pub cookie: Secret,
    /// The person who signed in.
    pub person: PersonId,
    /// When it ends at the latest.
    pub until: Timestamp,
}

/// The signed-in person, for a page.
#[derive(Debug, Clone)]
pub struct SignedInUser {
    /// Their id.
    pub id: PersonId,
    /// Their display name.
    pub name: String,
    /// Their roles.
    pub roles: BTreeSet<Role>,
}

/// A session as stored.
#[derive(Debug, Clone)]
pub(in crate::broker) struct StoredSession {
    pub(in crate::broker) person: PersonId,
    /// Thumbprint of the passkey that opened it.
    pub(in crate::broker) key: Thumbprint,
    /// [`crate::state::PersonCredentials::since`] at the sign-in: a session ends when its person leaves or loses a role, also where
    /// they return.
    since: u64,
    until: Timestamp,
    /// When it ends unless the person acts before.
    idle_at: Timestamp,
}

impl StoredSession {
    fn is_active(&self, now: Timestamp) -> bool {
        now < self.until && now < self.idle_at
    }
}

/// Store of open sessions, sign-in challenges and signature counters.
pub(in crate::broker) struct SessionStore {
    /// Keyed by SHA-256 of the cookie, so a memory disclosure does not reveal session cookies.
    open: Mutex<HashMap<Digest, StoredSession>>,
    key: hmac::Key,
    /// Challenges already used.
    used_challenges: ReplayCache,
    /// The highest signature counter seen of each passkey, above the one in the journal.
    sign_counters: Mutex<HashMap<Thumbprint, SeenCounter>>,
}

/// The signature counters seen of a passkey.
#[derive(Debug, Default)]
struct SeenCounter {
    highest: u32,
    /// The assertions whose counter was above all before them, by challenge, with that counter and until when they are kept.
    increased: HashMap<Vec<u8>, (u32, Timestamp)>,
}

impl SeenCounter {
    /// Whether an assertion's counter is above all before it, here and in the journal (WebAuthn L3 §6.1.1). Judged once for each
    /// assertion: the same assertion in a round or call that is repeated is no second copy of the passkey, also when the passkey has
    /// signed another one meanwhile. Authenticators without a counter always report zero.
    fn is_increased(
        &mut self,
        on_record: u32,
        count: u32,
        challenge: &[u8],
        now: Timestamp,
    ) -> bool {
        self.prune(now);
        let before = self.increased.get(challenge);
        if before.is_some_and(|(judged, _)| *judged == count) {
            return true;
        }
        let highest = self.highest.max(on_record);
        let increased = count > highest || (count == 0 && highest == 0);
        self.highest = self.highest.max(count);
        if increased {
            let until = now.plus_millis(CHALLENGE_LIFE_MS);
            self.increased.insert(challenge.to_vec(), (count, until));
        }
        increased
    }

    /// Forgets the assertions whose challenge can no longer be answered.
    fn prune(&mut self, now: Timestamp) {
        self.increased.retain(|_, (_, until)| now < *until);
    }
}

/// A signature that holds, of a passkey whose counter is not yet checked.
#[derive(Debug, Clone, Copy)]
pub(in crate::broker) struct CountedAssertion<'a> {
    pub(in crate::broker) person: &'a PersonId,
    pub(in crate::broker) key: Thumbprint,
    pub(in crate::broker) count: u32,
    /// What it signed: used once.
    pub(in crate::broker) challenge: &'a [u8],
}

/// Longest session, in seconds.
const SESSION_LIFE_S: i64 = 8 * 3_600;
/// A session ends this long after the last own act of its person, in seconds.
const SESSION_IDLE_S: i64 = 3_600;
/// Open sessions of one person; the oldest is closed for a new one.
const SESSIONS_PER_PERSON_MAX: usize = 8;
/// Lifetime of a challenge, in milliseconds.
const CHALLENGE_LIFE_MS: i64 = 120_000;
/// Random bytes, expiry and MAC of a challenge.
const RANDOM_BYTES: usize = 16;
const EXPIRY_BYTES: usize = 8;
const MAC_BYTES: usize = 16;

/// The purpose a challenge is bound to: a sign-in challenge cannot enrol a passkey.
#[derive(Debug, Clone, Copy)]
pub(in crate::broker) enum ChallengePurpose {
    SignIn,
    Enrol(InvitationId),
}

impl SessionStore {
    pub(in crate::broker) fn new(boot_key: &[u8; 32]) -> Self {
        Self {
            open: Mutex::default(),
            key: hmac::Key::new(hmac::HMAC_SHA256, boot_key),
            used_challenges: ReplayCache::default(),
            sign_counters: Mutex::default(),
        }
    }

    /// A stateless challenge: random bytes, an expiry, and the MAC of both under a key of this process.
    pub(in crate::broker) fn challenge(
        &self,
        purpose: ChallengePurpose,
        random: [u8; 16],
        now: Timestamp,
    ) -> Vec<u8> {
        let mut challenge = random.to_vec();
        challenge.extend(now.plus_millis(CHALLENGE_LIFE_MS).millis().to_be_bytes());
        let mac = self.mac(purpose, &challenge);
        challenge.extend(mac.as_ref().iter().take(MAC_BYTES));
        challenge
    }

    /// When a challenge for this purpose expires; `None` when it is for another purpose, expired, or of another process.
    pub(in crate::broker) fn check(
        &self,
        purpose: ChallengePurpose,
        challenge: &[u8],
        now: Timestamp,
    ) -> Option<Timestamp> {
        let (payload, mac) = challenge.split_at_checked(RANDOM_BYTES + EXPIRY_BYTES)?;
        let expiry = payload.last_chunk::<EXPIRY_BYTES>()?;
        let full = self.mac(purpose, payload);
        let ours = full.as_ref().get(..MAC_BYTES)?;
        // Constant time: the MAC is the secret that authenticates a challenge.
        let differs = mac.len() != MAC_BYTES
            || mac.iter().zip(ours).fold(0, |diff, (a, b)| diff | (a ^ b)) != 0;
        let until = Timestamp::from_millis(i64::from_be_bytes(*expiry));
        (!differs && now < until).then_some(until)
    }

    fn mac(&self, purpose: ChallengePurpose, payload: &[u8]) -> hmac::Tag {
        let mut mac = hmac::Context::with_key(&self.key);
        match purpose {
            ChallengePurpose::SignIn => mac.update(b"dipylon/sign-in/v1\0"),
            ChallengePurpose::Enrol(id) => {
                mac.update(b"dipylon/enrol/v1\0");
                mac.update(id.to_string().as_bytes());
                mac.update(b"\0");
            }
        }
        mac.update(payload);
        mac.sign()
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<Digest, StoredSession>) -> T) -> T {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(&self, cookie: &Secret, session: StoredSession, now: Timestamp) {
        self.with(|open| {
            open.retain(|_, stored| stored.is_active(now));
            let of_person = open
                .iter()
                .filter(|(_, stored)| stored.person == session.person);
            let oldest = of_person.clone().min_by_key(|(_, stored)| stored.until);
            if of_person.count() >= SESSIONS_PER_PERSON_MAX
                && let Some(oldest) = oldest.map(|(name, _)| *name)
            {
                open.remove(&oldest);
            }
            open.insert(cookie_digest(cookie), session);
        });
    }

    /// Number of active sessions of a person who last came or went at `since`, for an answer.
    pub(in crate::broker) fn of_person(
        &self,
        person: &PersonId,
        since: u64,
        now: Timestamp,
    ) -> usize {
        let of_person = |stored: &&StoredSession| {
            stored.person == *person && stored.since == since && stored.is_active(now)
        };
        self.with(|open| open.values().filter(of_person).count())
    }

    /// Removes expired sessions and challenges.
    pub(in crate::broker) fn prune(&self, now: Timestamp) {
        self.with(|open| open.retain(|_, stored| stored.is_active(now)));
        self.used_challenges.prune(now);
        let counters = self.sign_counters.lock();
        let mut counters = counters.unwrap_or_else(PoisonError::into_inner);
        counters.values_mut().for_each(|counter| counter.prune(now));
    }
}

/// Whether the user handle, if present, is this person's (WebAuthn L3 §7.2 step 6).
fn user_handle_matches(assertion: &Assertion, person: &PersonId) -> bool {
    assertion
        .user_handle()
        .is_none_or(|user| user == webauthn::user_handle(person))
}

fn cookie_digest(cookie: &Secret) -> Digest {
    Digest::tagged("dipylon/session/v1", cookie.expose_secret().as_bytes())
}

/// The challenge stated in the client data, for the lookup; `webauthn` compares it again.
pub(in crate::broker) fn stated_challenge(client_data_json: &[u8]) -> Option<Vec<u8>> {
    let client_data: serde_json::Value = serde_json::from_slice(client_data_json).ok()?;
    URL_SAFE_NO_PAD
        .decode(client_data.get("challenge")?.as_str()?)
        .ok()
}

impl Broker {
    /// Options for a sign-in. Stateless: callers without a session use no memory.
    pub fn begin_sign_in(&self) -> SignInOptions {
        let challenge =
            self.sessions
                .challenge(ChallengePurpose::SignIn, self.random_bytes(), self.now());
        SignInOptions { challenge }
    }

    /// Opens a session for the person whose passkey signed the challenge.
    pub async fn finish_sign_in(
        &self,
        method: &'static str,
        assertion: Assertion,
    ) -> Result<Session, Refusal> {
        let now = self.now();
        let wrong = |why: String| self.refuse_gate_1(method, &VerifyError::Passkey(why));
        let challenge = stated_challenge(&assertion.client_data_json).unwrap_or_default();
        let until = self
            .sessions
            .check(ChallengePurpose::SignIn, &challenge, now)
            .ok_or_else(|| {
                wrong("the challenge is not of this broker, or it has expired".to_owned())
            })?;
        let credential = URL_SAFE_NO_PAD.encode(&assertion.credential);
        let person = self
            .show()
            .person_of_credential(&credential)
            .ok_or_else(|| wrong("the credential is not enrolled".to_owned()))?;
        let enrolled = self.show().person(&person);
        let passkey = enrolled
            .credential(&credential)
            .ok_or_else(|| wrong(format!("the credential of {person} was revoked")))?;
        if !user_handle_matches(&assertion, &person) {
            return Err(wrong("the user handle is of another person".to_owned()));
        }
        let record = &passkey.record;
        if !self.may_still_act(&person, record.key) {
            return Err(wrong(format!("the passkey may not act for {person}")));
        }
        let verified = webauthn::verify_assertion(
            self.relying_party(),
            &challenge,
            &record.jwk,
            record.backup_eligible,
            &assertion,
        )
        .map_err(|e| match e {
            // The signature holds, so the person may know what to do about it.
            WebauthnError::BackupEligibility => self.refuse_changed_passkey(method),
            _ => wrong(e.to_string()),
        })?;
        let key = record.key;
        self.sessions
            .used_challenges
            .insert_once(key, &URL_SAFE_NO_PAD.encode(&challenge), until, now)
            .map_err(|e| wrong(e.to_string()))?;
        let assertion = CountedAssertion {
            person: &person,
            key,
            count: verified.sign_count,
            challenge: &challenge,
        };
        self.check_signature_counter(method, assertion).await?;
        // The session asks for the passkey and the registration again at each call.
        let rules = self
            .show()
            .rules()
            .ok_or_else(|| self.refuse_gate_1(method, &VerifyError::NoRules))?;
        if rules.bundle.person(&person).is_none() {
            return Err(self.refuse_gate_1(method, &VerifyError::NotRegistered));
        }
        let mut cookie = [0; 32];
        for half in cookie.chunks_mut(16) {
            half.copy_from_slice(&self.random_bytes());
        }
        let cookie = Secret::new(URL_SAFE_NO_PAD.encode(cookie));
        let until = now.plus_secs(SESSION_LIFE_S);
        let open = StoredSession {
            person: person.clone(),
            key,
            since: enrolled.since,
            until,
            idle_at: now.plus_secs(SESSION_IDLE_S),
        };
        self.sessions.open(&cookie, open, now);
        Ok(Session {
            cookie,
            person,
            until,
        })
    }

    /// Ends a session. Idempotent.
    pub fn sign_out(&self, cookie: &Secret) {
        self.sessions
            .with(|open| open.remove(&cookie_digest(cookie)));
    }

    /// Records an act of the signed-in person's own: the session is idle from now on. Nothing else prolongs a session, so that a page
    /// left open does not: its script reads on without the person. A session that has ended stays ended.
    pub fn record_own_act(&self, cookie: &Secret) {
        let now = self.now();
        self.sessions.with(|open| {
            let session = open.get_mut(&cookie_digest(cookie));
            if let Some(session) = session.filter(|stored| stored.is_active(now)) {
                session.idle_at = now.plus_secs(SESSION_IDLE_S);
            }
        });
    }

    /// Whether a session is active, and its person is there as they signed in. Does not prolong it.
    pub fn is_session_active(&self, cookie: &Secret) -> bool {
        self.session(cookie, self.now()).is_ok()
    }

    /// The signed-in person, in a role the method allows.
    pub fn signed_in_user(&self, call: &CallContext) -> Result<SignedInUser, Refusal> {
        let person = self.authenticate_person(call)?;
        let rules = self.rules(call)?;
        let registered = rules
            .bundle
            .person(&person.id)
            .ok_or_else(|| self.refuse_gate_1(call.method, &VerifyError::NotRegistered))?;
        Ok(SignedInUser {
            id: person.id,
            name: registered.name.clone(),
            roles: registered.roles.clone(),
        })
    }

    /// The session with this cookie, while it is active, its passkey enrolled and its person registered. Does not prolong it.
    pub(in crate::broker) fn session(
        &self,
        cookie: &Secret,
        now: Timestamp,
    ) -> Result<StoredSession, VerifyError> {
        let session = self.sessions.with(|open| {
            let session = open.get(&cookie_digest(cookie));
            session.filter(|stored| stored.is_active(now)).cloned()
        });
        let session = session.ok_or(VerifyError::Session("no such session, or it has ended"))?;
        let enrolled = self.show().person(&session.person);
        if enrolled.since != session.since || !self.may_still_act(&session.person, session.key) {
            return Err(VerifyError::Session(
                "its passkey was revoked, or its person left or lost a role",
            ));
        }
        let rules = self.show().rules().ok_or(VerifyError::NoRules)?;
        if rules.bundle.person(&session.person).is_none() {
            return Err(VerifyError::NotRegistered);
        }
        Ok(session)
    }

    /// The thumbprint of the person's passkey named by an assertion.
    pub(in crate::broker) fn passkey_for(
        &self,
        read: &Read,
        call: &CallContext,
        person: &PersonId,
        assertion: &Assertion,
    ) -> Result<Thumbprint, Refusal> {
        let credential = URL_SAFE_NO_PAD.encode(&assertion.credential);
        let enrolled = read.person(person);
        let holder = KeyHolder::Person(person.clone());
        let passkey = enrolled
            .credential(&credential)
            .filter(|_| user_handle_matches(assertion, person))
            .filter(|passkey| read.may_act(&holder, passkey.record.key).is_ok());
        passkey.map(|p| p.record.key).ok_or_else(|| {
            let message = "the passkey is not, or no longer, one of yours";
            self.refuse(call.method, Reason::InvalidPasskeyAssertion, message)
        })
    }

    /// Refuses a passkey whose backup eligibility changed (WebAuthn L3 §7.2 step 17): only a new enrolment helps.
    pub(in crate::broker) fn refuse_changed_passkey(&self, method: &'static str) -> Refusal {
        self.refuse(
            method,
            Reason::PasskeyChanged,
            Reason::PasskeyChanged.text(),
        )
    }

    /// Revokes a passkey whose signature counter does not increase: there may be a second copy of it (WebAuthn L3 §6.1.1,
    /// §7.2 step 22).
    async fn check_signature_counter(
        &self,
        method: &'static str,
        assertion: CountedAssertion<'_>,
    ) -> Result<(), Refusal> {
        let checked = self.transaction(method).run(|read| {
            Ok(match self.revocation_for_counter(read, assertion) {
                None => Step::Answer(true),
                Some(event) => Step::Append(Draft::one(event), false),
            })
        });
        match checked.await?.value {
            true => Ok(()),
            false => Err(self.refuse_copied_passkey(method)),
        }
    }

    /// The event that revokes the passkey of an assertion whose counter does not increase; `None` when it does, and when the passkey is
    /// no longer enrolled.
    pub(in crate::broker) fn revocation_for_counter(
        &self,
        read: &Read,
        assertion: CountedAssertion<'_>,
    ) -> Option<Event> {
        let CountedAssertion {
            person,
            key,
            count,
            challenge,
        } = assertion;
        let on_record = read.person(person).passkey(key)?.sign_count;
        let mut seen = self.lock(&self.sessions.sign_counters);
        let increased =
            seen.entry(key)
                .or_default()
                .is_increased(on_record, count, challenge, self.now());
        (!increased).then(|| {
            let (invited, unconfirmed) = read.falls_with(&[key]).counts();
            Event::ApproverKeysRevoked(ApproverKeysRevoked {
                person: person.clone(),
                keys: vec![key],
                all: false,
                cause: RevokeCause::Counter,
                by: None,
                invited,
                unconfirmed,
            })
        })
    }

    /// Refuses an assertion of a passkey that was revoked because of its counter.
    pub(in crate::broker) fn refuse_copied_passkey(&self, method: &'static str) -> Refusal {
        let message = "the signature counter of the passkey went back: there may be a copy of it, so it was revoked";
        self.refuse(method, Reason::InvalidPasskeyAssertion, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_is_judged_once_for_each_assertion() {
        // (on record, count, challenge, increased), one after another for one passkey.
        let rows: [(u32, u32, &[u8], bool); 11] = [
            (0, 0, b"a", true),
            (0, 0, b"b", true),
            (0, 5, b"c", true),
            (0, 5, b"c", true),
            (0, 5, b"d", false),
            (0, 6, b"e", true),
            (6, 5, b"c", true),
            (6, 6, b"c", false),
            (6, 0, b"f", false),
            (9, 7, b"g", false),
            (9, 7, b"g", false),
        ];
        let now = Timestamp::from_secs(1_800_000_000);
        let mut seen = SeenCounter::default();
        for (n, (on_record, count, challenge, increased)) in rows.into_iter().enumerate() {
            let found = seen.is_increased(on_record, count, challenge, now);
            assert_eq!(found, increased, "row {n}");
        }
        let later = now.plus_millis(CHALLENGE_LIFE_MS);
        assert!(!seen.is_increased(6, 5, b"c", later), "forgotten");
        assert!(seen.increased.is_empty());
    }

    #[test]
    fn challenge_is_bound_to_purpose_lifetime_and_process() {
        let (ours, other) = (SessionStore::new(&[1; 32]), SessionStore::new(&[2; 32]));
        let now = Timestamp::from_secs(1_800_000_000);
        let invitation = ChallengePurpose::Enrol(InvitationId::from_random([7; 16]));
        let challenge = ours.challenge(ChallengePurpose::SignIn, [9; 16], now);
        let last = now.plus_millis(CHALLENGE_LIFE_MS - 1);
        assert!(
            ours.check(ChallengePurpose::SignIn, &challenge, last)
                .is_some()
        );
        assert_eq!(
            ours.check(ChallengePurpose::SignIn, &challenge, last.plus_millis(1)),
            None
        );
        assert_eq!(other.check(ChallengePurpose::SignIn, &challenge, now), None);
        assert_eq!(ours.check(invitation, &challenge, now), None);
        let enrol = ours.challenge(invitation, [9; 16], now);
        assert!(ours.check(invitation, &enrol, now).is_some());
        let another = ChallengePurpose::Enrol(InvitationId::from_random([8; 16]));
        assert_eq!(ours.check(another, &enrol, now), None);
        for place in 0..challenge.len() {
            let mut bent = challenge.clone();
            bent[place] ^= 1;
            assert_eq!(
                ours.check(ChallengePurpose::SignIn, &bent, now),
                None,
                "place {place}"
            );
        }
        assert_eq!(
            ours.check(ChallengePurpose::SignIn, &challenge[..39], now),
            None
        );
        assert_eq!(ours.check(ChallengePurpose::SignIn, b"", now), None);
    }
}
