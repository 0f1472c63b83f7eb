//! SessionStore: browsers of people who signed in with a passkey.
//!
//! In: an assertion over a challenge of ours; then the cookie of a session. Out: who is there, for the methods that admit
//! them. Trusts passkeys the journal says are theirs. A session lets a person look and begin; it is never a vote: each vote
//! is an assertion of its own. Kept in memory of this broker alone: a restart ends all.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::broker::auth::enrolment::user_handle;
use crate::broker::auth::replay_cache::Once;
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::policy::{InForce, Role};
use crate::verify::VerifyError;
use crate::webauthn::{self, Assertion};

/// A challenge for signing in.
#[derive(Debug)]
pub struct SignInBegun {
    /// To be signed; good for two minutes and one signing in.
    pub challenge: Vec<u8>,
}

/// A browser that signed in.
#[derive(Debug)]
pub struct Session {
    /// What names it: for its cookie alone.
    pub cookie: Secret,
    /// Who signed in.
    pub person: PersonId,
    /// Until when at most.
    pub until: Timestamp,
}

/// Who is there, for a page.
#[derive(Debug, Clone)]
pub struct SignedInUser {
    /// Their id.
    pub id: PersonId,
    /// What colleagues call them.
    pub name: String,
    /// What they may do.
    pub roles: BTreeSet<Role>,
}

/// What is kept of a session.
#[derive(Debug, Clone)]
pub(in crate::broker) struct Open {
    pub(in crate::broker) person: PersonId,
    /// Thumbprint of the passkey it was opened with.
    pub(in crate::broker) key: Thumbprint,
    until: Timestamp,
    idle_at: Timestamp,
}

/// Every session, and what it takes to open one.
pub(in crate::broker) struct SessionStore {
    /// By SHA-256 of the cookie: who reads this memory cannot session.
    open: Mutex<HashMap<Digest, Open>>,
    key: hmac::Key,
    /// Challenges that were used.
    used: Once,
    /// The highest signature counter this broker saw of a passkey, above what the journal knows.
    counters: Mutex<HashMap<Thumbprint, u32>>,
}

/// Longest session.
const LIFE_S: i64 = 8 * 3_600;
/// A session in which nothing is asked ends after this long.
const IDLE_S: i64 = 3_600;
/// SessionStore of one person at once; the oldest gives way.
const PER_PERSON_MAX: usize = 8;
/// How long a challenge may be answered.
const CHALLENGE_LIFE_MS: i64 = 120_000;
/// Random bytes, expiry and MAC of a challenge.
const RANDOM_BYTES: usize = 16;
const EXPIRY_BYTES: usize = 8;
const MAC_BYTES: usize = 16;

/// What a challenge was made for: one made for signing in enrols nobody.
#[derive(Debug, Clone, Copy)]
pub(in crate::broker) enum Purpose {
    SignIn,
    Enrol(InvitationId),
}

impl SessionStore {
    pub(in crate::broker) fn new(boot_key: &[u8; 32]) -> Self {
        Self {
            open: Mutex::default(),
            key: hmac::Key::new(hmac::HMAC_SHA256, boot_key),
            used: Once::default(),
            counters: Mutex::default(),
        }
    }

    /// A challenge without memory: random bytes, an expiry, and the MAC of both under a key of this boot.
    pub(in crate::broker) fn challenge(
        &self,
        purpose: Purpose,
        random: [u8; 16],
        now: Timestamp,
    ) -> Vec<u8> {
        let mut challenge = random.to_vec();
        challenge.extend(now.plus_millis(CHALLENGE_LIFE_MS).millis().to_be_bytes());
        let mac = self.mac(purpose, &challenge);
        challenge.extend(mac.as_ref().iter().take(MAC_BYTES));
        challenge
    }

    /// Until when a challenge of ours for this purpose is good; `None` when it is another, old, or of another boot.
    pub(in crate::broker) fn check(
        &self,
        purpose: Purpose,
        challenge: &[u8],
        now: Timestamp,
    ) -> Option<Timestamp> {
        let (said, mac) = challenge.split_at_checked(RANDOM_BYTES + EXPIRY_BYTES)?;
        let expiry = said.last_chunk::<EXPIRY_BYTES>()?;
        let full = self.mac(purpose, said);
        let ours = full.as_ref().get(..MAC_BYTES)?;
        // Constant time: the MAC is the secret that makes a challenge ours.
        let differs = mac.len() != MAC_BYTES
            || mac.iter().zip(ours).fold(0, |diff, (a, b)| diff | (a ^ b)) != 0;
        let until = Timestamp::from_millis(i64::from_be_bytes(*expiry));
        (!differs && now < until).then_some(until)
    }

    fn mac(&self, purpose: Purpose, said: &[u8]) -> hmac::Tag {
        let mut mac = hmac::Context::with_key(&self.key);
        match purpose {
            Purpose::SignIn => mac.update(b"dipylon/sign-in/v1\0"),
            Purpose::Enrol(id) => {
                mac.update(b"dipylon/enrol/v1\0");
                mac.update(id.to_string().as_bytes());
                mac.update(b"\0");
            }
        }
        mac.update(said);
        mac.sign()
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<Digest, Open>) -> T) -> T {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(&self, cookie: &Secret, session: Open, now: Timestamp) {
        self.with(|open| {
            open.retain(|_, v| now < v.until && now < v.idle_at);
            let theirs = open.iter().filter(|(_, v)| v.person == session.person);
            let oldest = theirs.clone().min_by_key(|(_, v)| v.until);
            if theirs.count() >= PER_PERSON_MAX
                && let Some(oldest) = oldest.map(|(name, _)| *name)
            {
                open.remove(&oldest);
            }
            open.insert(name(cookie), session);
        });
    }

    /// Forgets sessions and challenges whose time is over.
    pub(in crate::broker) fn sweep(&self, now: Timestamp) {
        self.with(|open| open.retain(|_, v| now < v.until && now < v.idle_at));
        self.used.sweep(now);
    }
}

/// Whether the user handle, where there is one, is this person's (WebAuthn L3 §7.2 step 6).
fn is_theirs(assertion: &Assertion, person: &PersonId) -> bool {
    assertion
        .user
        .as_ref()
        .is_none_or(|user| *user == user_handle(person))
}

fn name(cookie: &Secret) -> Digest {
    Digest::tagged("dipylon/session/v1", cookie.expose_secret().as_bytes())
}

/// The challenge an authenticator's client says it signed, to be looked up; `webauthn` compares it again.
pub(in crate::broker) fn challenge_in(client_data_json: &[u8]) -> Option<Vec<u8>> {
    let said: serde_json::Value = serde_json::from_slice(client_data_json).ok()?;
    URL_SAFE_NO_PAD
        .decode(said.get("challenge")?.as_str()?)
        .ok()
}

impl Broker {
    /// A challenge for whoever wants to sign in. Nothing is kept of it: strangers fill no memory.
    pub fn begin_sign_in(&self) -> SignInBegun {
        let challenge = self
            .sessions
            .challenge(Purpose::SignIn, self.draw(), self.now());
        SignInBegun { challenge }
    }

    /// Opens a session for the person whose passkey signed the challenge.
    pub async fn finish_sign_in(
        &self,
        method: &'static str,
        assertion: Assertion,
    ) -> Result<Session, Refusal> {
        let now = self.now();
        let wrong = |why: String| self.refuse_gate_1(method, &VerifyError::Passkey(why));
        let challenge = challenge_in(&assertion.client_data_json).unwrap_or_default();
        let until = self
            .sessions
            .check(Purpose::SignIn, &challenge, now)
            .ok_or_else(|| wrong("the challenge is none of ours, or too old".to_owned()))?;
        let credential = URL_SAFE_NO_PAD.encode(&assertion.credential);
        let roster = self.state.roster();
        let person = roster
            .holder(&credential)
            .ok_or_else(|| wrong("nobody enrolled it".to_owned()))?;
        let enrolled = roster.of(&person);
        let passkey = enrolled
            .value
            .credential(&credential)
            .ok_or_else(|| wrong(format!("it was revoked for {person}")))?;
        if !is_theirs(&assertion, &person) {
            return Err(wrong("the user handle is another's".to_owned()));
        }
        let record = &passkey.record;
        let seen = webauthn::verify_assertion(
            self.relying_party(),
            &challenge,
            &record.jwk,
            record.backup_eligible,
            &assertion,
        )
        .map_err(|e| wrong(e.to_string()))?;
        let key = record.key;
        self.sessions
            .used
            .mark(key, &URL_SAFE_NO_PAD.encode(&challenge), until, now)
            .map_err(|e| wrong(e.to_string()))?;
        self.counter_goes_up(method, &person, key, seen.sign_count)
            .await?;
        let rules = self
            .views
            .rules()
            .ok_or_else(|| self.refuse_gate_1(method, &VerifyError::NoRules))?;
        if rules.bundle.person(&person).is_none() {
            return Err(self.refuse_gate_1(method, &VerifyError::NotRegistered));
        }
        let mut cookie = [0; 32];
        for half in cookie.chunks_mut(16) {
            half.copy_from_slice(&self.draw());
        }
        let cookie = Secret::new(URL_SAFE_NO_PAD.encode(cookie));
        let until = now.plus_secs(LIFE_S);
        let open = Open {
            person: person.clone(),
            key,
            until,
            idle_at: now.plus_secs(IDLE_S),
        };
        self.sessions.open(&cookie, open, now);
        Ok(Session {
            cookie,
            person,
            until,
        })
    }

    /// Ends a session; one that is over already is over.
    pub fn sign_out(&self, cookie: &Secret) {
        self.sessions.with(|open| open.remove(&name(cookie)));
    }

    /// Whether a session goes on. To ask is no sign of life: a window that is left open keeps no session from ending.
    pub fn goes_on(&self, cookie: &Secret) -> bool {
        let now = self.now();
        self.sessions.with(|open| {
            let session = open.get(&name(cookie));
            session.is_some_and(|v| now < v.until && now < v.idle_at)
        })
    }

    /// The person who sessions, in a role the method admits.
    pub fn visitor(&self, call: &CallContext) -> Result<SignedInUser, Refusal> {
        let person = self.person(call)?;
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

    /// The session with this cookie, while it goes on and its passkey and its person are what they were.
    pub(in crate::broker) fn session(
        &self,
        cookie: &Secret,
        rules: &InForce,
        now: Timestamp,
    ) -> Result<Open, VerifyError> {
        let session = self.sessions.with(|open| {
            let session = open
                .get_mut(&name(cookie))
                .filter(|v| now < v.until && now < v.idle_at)?;
            session.idle_at = now.plus_secs(IDLE_S);
            Some(session.clone())
        });
        let session = session.ok_or(VerifyError::Session("there is none, or it is over"))?;
        if self
            .state
            .roster()
            .of(&session.person)
            .value
            .passkey(session.key)
            .is_none()
        {
            return Err(VerifyError::Session("its passkey was revoked"));
        }
        if rules.bundle.person(&session.person).is_none() {
            return Err(VerifyError::NotRegistered);
        }
        Ok(session)
    }

    /// The thumbprint of the person's passkey that an assertion names.
    pub(in crate::broker) fn passkey_named(
        &self,
        call: &CallContext,
        person: &PersonId,
        assertion: &Assertion,
    ) -> Result<Thumbprint, Refusal> {
        let credential = URL_SAFE_NO_PAD.encode(&assertion.credential);
        let enrolled = self.state.roster().of(person);
        let passkey = enrolled
            .value
            .credential(&credential)
            .filter(|_| is_theirs(assertion, person));
        passkey.map(|p| p.record.key).ok_or_else(|| {
            let told = "the passkey is not, or no longer, one of yours";
            self.refuse(call.method, Reason::PasskeyWrong, told)
        })
    }

    /// A counter that does not go up shows a second copy of the passkey: it counts no more from here on (WebAuthn L3
    /// §6.1.1, §7.2 step 22). Authenticators that do not count say zero always.
    pub(in crate::broker) async fn counter_goes_up(
        &self,
        method: &'static str,
        person: &PersonId,
        key: Thumbprint,
        count: u32,
    ) -> Result<(), Refusal> {
        loop {
            let enrolled = self.state.roster().of(person);
            let known = enrolled.value.passkey(key).map_or(0, |p| p.sign_count);
            let up = {
                let mut counters = self.lock(&self.sessions.counters);
                let seen = counters.entry(key).or_default();
                let highest = known.max(*seen);
                let up = count > highest || (count == 0 && highest == 0);
                *seen = highest.max(count);
                up
            };
            if up {
                return Ok(());
            }
            let fact = Event::ApproverKeysRevoked(ApproverKeysRevoked {
                person: person.clone(),
                keys: vec![key],
                cause: RevokeCause::Counter,
                by: None,
            });
            let moves = vec![(Stream::Person(person.clone()), enrolled.version)];
            match self.journal.append(Append::one(fact, moves)).await {
                Ok(_) => {
                    let told = "its signature counter went back: there may be a copy of it, so it counts no more";
                    return Err(self.refuse(method, Reason::PasskeyWrong, told));
                }
                Err(AppendError::Conflict(_)) => {}
                Err(error) => return Err(self.refuse_append(method, &error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_good_for_its_purpose_and_two_minutes_of_one_boot() {
        let (ours, other) = (SessionStore::new(&[1; 32]), SessionStore::new(&[2; 32]));
        let now = Timestamp::from_secs(1_800_000_000);
        let invitation = Purpose::Enrol(InvitationId::from_random([7; 16]));
        let challenge = ours.challenge(Purpose::SignIn, [9; 16], now);
        let last = now.plus_millis(CHALLENGE_LIFE_MS - 1);
        assert!(ours.check(Purpose::SignIn, &challenge, last).is_some());
        assert_eq!(
            ours.check(Purpose::SignIn, &challenge, last.plus_millis(1)),
            None
        );
        assert_eq!(other.check(Purpose::SignIn, &challenge, now), None);
        assert_eq!(ours.check(invitation, &challenge, now), None);
        let enrol = ours.challenge(invitation, [9; 16], now);
        assert!(ours.check(invitation, &enrol, now).is_some());
        let another = Purpose::Enrol(InvitationId::from_random([8; 16]));
        assert_eq!(ours.check(another, &enrol, now), None);
        for place in 0..challenge.len() {
            let mut bent = challenge.clone();
            bent[place] ^= 1;
            assert_eq!(
                ours.check(Purpose::SignIn, &bent, now),
                None,
                "place {place}"
            );
        }
        assert_eq!(ours.check(Purpose::SignIn, &challenge[..39], now), None);
        assert_eq!(ours.check(Purpose::SignIn, b"", now), None);
    }
}
