//! Reading for decisions: one round that records every stream it looks at.
//!
//! In: a state that may change meanwhile. Out: records, each under the streams that can change it; and the [`Append`] of what the round
//! decided, which rests on all of them. A value never leaves its round: [`Recorded`] borrows it. Nobody names a stream by hand, so none
//! can be forgotten. Refuses nothing: a round that met a stream in motion is torn, and its caller decides anew.

mod counts;
mod named_facts;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use super::confirmation::{ConfirmationRefusal, Falls, PersonKey};
use super::key_registry::{KeyHolder, KeyNames, KeyRecord, KeyRefusal, KeyUse};
use super::people::{PeopleRegistration, RegistrationError};
use super::versions::MOVING;
use super::{
    AccessRequest, Deadline, Ended, FreezeStatus, Grant, HandOverFault, IdempotencyOutcome,
    Invitation, PersonCredentials, State, StoredStatus, TaskRecord, TrustedKeys, entry_rules,
};
use crate::journal::{Append, Blob, NewEvent, ReadSet};
use crate::model::*;
use crate::policy::{ActivePolicy, PolicyBundle, RegisteredCaller, Role, StepUpProfile};

pub use named_facts::NamedFacts;

/// One round of reading. Lives within one synchronous decision: it cannot be held across a wait.
#[derive(Debug)]
pub struct Read {
    state: Arc<State>,
    position: (u64, u64),
    streams: RefCell<Vec<(Stream, Version)>>,
    torn: Cell<bool>,
}

/// A value that a round has read and recorded. Made by [`Read`] alone; what a page shows is a [`super::Shown`], which no gate accepts.
#[derive(Debug)]
pub struct Recorded<'r, T> {
    value: Arc<T>,
    round: PhantomData<&'r Read>,
}

impl<T> Clone for Recorded<'_, T> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.value))
    }
}

impl<T> Deref for Recorded<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Recorded<'_, T> {
    const fn new(value: Arc<T>) -> Self {
        Self {
            value,
            round: PhantomData,
        }
    }

    /// The value for an answer, which may outlive the round: no gate accepts it any more.
    pub const fn to_answer(&self) -> &Arc<T> {
        &self.value
    }
}

/// What became of an idempotency key of `RequestToken`.
#[derive(Debug)]
pub enum KeyOutcome<'r> {
    /// Nothing final: it is new, was denied by rules alone, or its access request was closed without an answer.
    Undecided,
    /// It waits for approvers.
    Waiting(Recorded<'r, AccessRequest>),
    /// It got this grant.
    Granted(Recorded<'r, Grant>),
    /// A person denied its access request, or the request expired.
    Denied(Recorded<'r, AccessRequest>),
    /// It recommended an action, and the executor got a token for it.
    Executed(Recorded<'r, AccessRequest>),
}

/// The keys of several people, read together.
#[derive(Debug)]
pub struct PeopleCredentials<'r> {
    read: &'r Read,
    /// `None`: everyone, under the one stream of all credentials.
    named: Option<BTreeSet<PersonId>>,
}

impl PeopleCredentials<'_> {
    /// The keys of one of them; none for a person who was not named.
    pub fn get(&self, person: &PersonId) -> Arc<PersonCredentials> {
        match &self.named {
            Some(named) if !named.contains(person) => Arc::default(),
            Some(_) | None => self.read.state.credentials.get(person),
        }
    }

    /// Whether a key of one of them may act for them now.
    pub fn may_act(&self, person: &PersonId, key: Thumbprint) -> Result<(), KeyRefusal> {
        match &self.named {
            Some(named) if !named.contains(person) => Err(KeyRefusal::Unknown),
            Some(_) | None => {
                let holder = KeyHolder::Person(person.clone());
                self.read.state.may_act(&holder, key)
            }
        }
    }

    /// The keys that may act for one of them now.
    pub fn living_keys(&self, person: &PersonId) -> Vec<Thumbprint> {
        match &self.named {
            Some(named) if !named.contains(person) => Vec::new(),
            Some(_) | None => self.read.state.living_keys(person),
        }
    }
}

/// What a round decided to append. The streams it advances and the counts it claims follow from the events.
#[derive(Debug, Default)]
pub struct Draft {
    events: Vec<Event>,
    not_after: Option<Timestamp>,
    blobs: Vec<Blob>,
}

impl Draft {
    /// An append of one event.
    pub fn one(event: Event) -> Self {
        Self::all(vec![event])
    }

    /// An append of several events, which become entries together or not at all.
    pub const fn all(events: Vec<Event>) -> Self {
        Self {
            events,
            not_after: None,
            blobs: Vec::new(),
        }
    }

    /// Refused when the writer's clock has reached this.
    #[must_use]
    pub const fn not_after(mut self, limit: Timestamp) -> Self {
        self.not_after = Some(limit);
        self
    }

    /// With events before the others, in the same append.
    #[must_use]
    pub fn after(mut self, first: Vec<Event>) -> Self {
        self.events.splice(0..0, first);
        self
    }

    /// With blobs that the events name by their hash.
    #[must_use]
    pub fn with_blobs(mut self, blobs: impl IntoIterator<Item = Blob>) -> Self {
        self.blobs.extend(blobs);
        self
    }

    /// The events.
    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

/// Why a round has no append.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// A stream moved while the round read: decide anew.
    #[error("a stream moved while the round read")]
    Torn,
    /// The events have no place in this state: a fault of this program.
    #[error(transparent)]
    Illegal(#[from] crate::journal::IllegalEntry),
}

/// Most people whose keys are read each under their own stream; more are read under the one stream of all credentials.
const PEOPLE_EACH_MAX: usize = 16;

impl Read {
    pub(super) fn new(state: Arc<State>) -> Self {
        // Taken before anything is read: the round sees at least the entries up to here.
        let position = state.position();
        Self {
            state,
            position,
            streams: RefCell::default(),
            torn: Cell::new(false),
        }
    }

    /// (epoch, index of the last entry applied) before the round read anything.
    pub const fn position(&self) -> (u64, u64) {
        self.position
    }

    /// The policy bundle in force.
    pub fn rules(&self) -> Option<Recorded<'_, ActivePolicy>> {
        self.note(Stream::Policy);
        self.state.rules().map(Recorded::new)
    }

    /// The keys of a trust domain; `None` for a domain without a trust bundle.
    pub fn trusted_keys(&self, domain: &TrustDomain) -> Option<Recorded<'_, TrustedKeys>> {
        self.note(Stream::Trust(domain.clone()));
        self.state.trust.get(domain).map(Recorded::new)
    }

    /// Whether the key that verified this evidence is still trusted.
    pub fn is_trusted(&self, evidence: &EvidenceFacts) -> bool {
        self.note(Stream::Trust(evidence.subject.trust_domain()));
        self.state.is_trusted(evidence)
    }

    /// A published signing key.
    pub fn signing_key(&self, kid: &KeyId) -> Option<Recorded<'_, serde_json::Value>> {
        self.note(Stream::Key(kid.clone()));
        self.state.keys.get(kid).map(Recorded::new)
    }

    /// Whether an agent is suspended.
    pub fn is_suspended(&self, agent: &AgentId) -> bool {
        self.note(Stream::Agent(agent.clone()));
        self.state.is_suspended(agent)
    }

    /// The freezes of a scope.
    pub fn freeze(&self, scope: &FreezeScope) -> Recorded<'_, FreezeStatus> {
        self.note(Stream::Freeze(scope.clone()));
        Recorded::new(self.state.freezes.get(scope).unwrap_or_default())
    }

    /// Whether a scope is frozen.
    pub fn is_frozen(&self, scope: &FreezeScope) -> bool {
        self.freeze(scope).in_force.is_some()
    }

    /// Index of the last entry that advanced a stream.
    pub fn last_entry(&self, stream: &Stream) -> Option<u64> {
        self.note(stream.clone()).checked_sub(1)
    }

    /// A task, running or ended, under every stream that can end it.
    pub fn task(&self, id: &TaskId) -> Option<Recorded<'_, TaskRecord>> {
        self.note(Stream::Task(*id));
        // What a record rests on follows from the part of it that never changes; the rest is read after its grounds.
        let opened = self.state.tasks.get(id)?.opened.clone();
        self.note_grounds(|state| entry_rules::task_grounds(state, &opened));
        self.state.tasks.get(id).map(Recorded::new)
    }

    fn note_grounds(&self, grounds: impl FnOnce(&State) -> Vec<Stream>) {
        // Before the owner of today, which the rules name.
        self.note(Stream::Policy);
        for stream in grounds(&self.state) {
            self.note(stream);
        }
    }

    /// The task that an agent opened with this key under this idempotency key.
    pub fn task_by_idempotency_key(
        &self,
        agent: &AgentId,
        key: Thumbprint,
        request: &IdempotencyKey,
    ) -> Option<Recorded<'_, TaskRecord>> {
        self.note(Stream::open_task(agent.clone(), key, request.clone()));
        let opened = &self.state.tasks_by_idempotency_key;
        let id = opened.get(&(agent.clone(), key, request.clone()))?;
        self.task(&id)
    }

    /// An access request, pending or closed, under every stream that can close it.
    pub fn access_request(&self, id: &AccessRequestId) -> Option<Recorded<'_, AccessRequest>> {
        self.note(Stream::AccessRequest(*id));
        let opened = self.state.requests.get(id)?.opened.clone();
        self.note_grounds(|state| entry_rules::request_grounds(state, &opened));
        self.state.requests.get(id).map(Recorded::new)
    }

    /// Why a task may not execute a recommendation, if it may not. Which agent has used a key only grows, and the journal's writer asks
    /// again.
    pub fn hand_over_fault(
        &self,
        request: &Recorded<'_, AccessRequest>,
        executing: &Recorded<'_, TaskRecord>,
        now: Timestamp,
    ) -> Option<HandOverFault> {
        // The rules and what ends the task of the recommendation were read with the request.
        if let Some(by) = request.opened.by_agent() {
            self.note(Stream::Trust(by.evidence.subject.trust_domain()));
        }
        self.state.hand_over_fault(request, &executing.opened, now)
    }

    /// The pending access request for this action in this task, under any idempotency key.
    pub fn pending_request_for(
        &self,
        task: &TaskId,
        action: &Action,
        now: Timestamp,
    ) -> Option<Recorded<'_, AccessRequest>> {
        self.note(Stream::task_action(*task, &action.name, &action.target));
        let digest = action.digest();
        let same = |r: &Arc<AccessRequest>| {
            r.is_pending(now) && r.action.as_ref().is_some_and(|a| a.digest() == digest)
        };
        // An expired one may lie before it until its entry is written.
        let found = self.state.requests_of_task(task).into_iter().find(same)?;
        self.access_request(&found.opened.access_request)
            .filter(|request| request.is_pending(now))
    }

    /// The profile of the people who agree to a change of the policy bundle in force; `None` when one operator alone may change it.
    pub fn change_profile(&self) -> Option<StepUpProfile> {
        self.note(Stream::Policy);
        self.note(Stream::Credentials);
        self.state.change_profile()
    }

    /// Whether some operator of a bundle could change it, under its own rule of changes.
    pub fn change_is_possible(
        &self,
        bundle: &PolicyBundle,
        returning: &BTreeSet<PersonId>,
    ) -> bool {
        self.note(Stream::Policy);
        self.note(Stream::Credentials);
        self.state.change_is_possible(bundle, returning)
    }

    /// The pending proposals of a person. They rest on the rules and on the person's keys, and each opening moves the person's stream
    /// of proposals.
    pub fn proposals_of(
        &self,
        person: &PersonId,
        now: Timestamp,
    ) -> Vec<Recorded<'_, AccessRequest>> {
        self.note(Stream::Proposals(person.clone()));
        let of = self.state.owner_pending.get(person).unwrap_or_default();
        of.iter()
            .filter_map(|(_, id)| self.state.requests.get(id))
            .filter(|request| request.opened.by_person().is_some())
            .filter_map(|request| self.access_request(&request.opened.access_request))
            .filter(|request| request.is_pending(now))
            .collect()
    }

    /// What became of an idempotency key.
    pub fn key_outcome(
        &self,
        task: &TaskId,
        key: &IdempotencyKey,
        now: Timestamp,
    ) -> KeyOutcome<'_> {
        self.note(Stream::TokenRequest(*task, key.clone()));
        match self.state.idempotency_keys.get(&(*task, key.clone())) {
            None => KeyOutcome::Undecided,
            Some(IdempotencyOutcome::Granted(jti)) => self
                .grant(&jti)
                .map_or(KeyOutcome::Undecided, KeyOutcome::Granted),
            Some(IdempotencyOutcome::Requested(id)) => self.request_outcome(&id, now),
        }
    }

    /// What became of an access request, for a key that joined it.
    pub fn request_outcome(&self, id: &AccessRequestId, now: Timestamp) -> KeyOutcome<'_> {
        let Some(request) = self.access_request(id) else {
            return KeyOutcome::Undecided;
        };
        match request.status {
            StoredStatus::Pending if request.is_pending(now) => KeyOutcome::Waiting(request),
            StoredStatus::Pending
            | StoredStatus::Denied
            | StoredStatus::Closed(CloseCause::Expired | CloseCause::NoEligibleApprover) => {
                KeyOutcome::Denied(request)
            }
            StoredStatus::Consumed(_) if request.opened.executor().is_some() => {
                KeyOutcome::Executed(request)
            }
            StoredStatus::Consumed(_)
            | StoredStatus::Applied
            | StoredStatus::Closed(
                CloseCause::Cancelled | CloseCause::Policy | CloseCause::Frozen,
            ) => KeyOutcome::Undecided,
        }
    }

    /// A grant, active or ended, under every stream that can end it.
    pub fn grant(&self, jti: &TokenId) -> Option<Recorded<'_, Grant>> {
        self.note(Stream::Token(*jti));
        let issued = self.state.grants.get(jti)?.issued.clone();
        self.note_grounds(|state| entry_rules::grant_grounds(state, &issued));
        self.state.grants.get(jti).map(Recorded::new)
    }

    /// Why a grant is no longer valid by journal and time; `None` while it is. Does not evaluate the rules in force.
    pub fn end_cause(&self, grant: &Recorded<'_, Grant>, now: Timestamp) -> Option<EndCause> {
        self.state.end_cause(grant, now)
    }

    /// The first entry that ended a grant, before it expired.
    pub fn first_end(&self, grant: &Recorded<'_, Grant>) -> Option<Ended> {
        self.state.first_end(grant)
    }

    /// The keys of one person.
    pub fn person(&self, person: &PersonId) -> Recorded<'_, PersonCredentials> {
        self.note(Stream::Person(person.clone()));
        // A bundle that drops a person, or takes a role, ends their passkeys.
        self.note(Stream::Policy);
        Recorded::new(self.state.credentials.get(person))
    }

    /// The keys of these people: each under their own stream, or, when they are many, all under one.
    pub fn people(&self, named: BTreeSet<PersonId>) -> PeopleCredentials<'_> {
        if named.len() > PEOPLE_EACH_MAX {
            return self.everyone();
        }
        self.note(Stream::Policy);
        for person in &named {
            self.note(Stream::Person(person.clone()));
        }
        PeopleCredentials {
            read: self,
            named: Some(named),
        }
    }

    /// The keys of all people, under the one stream that every enrolment and revocation advances.
    pub fn everyone(&self) -> PeopleCredentials<'_> {
        self.note(Stream::Policy);
        self.note(Stream::Credentials);
        PeopleCredentials {
            read: self,
            named: None,
        }
    }

    /// The invitation that a person may still use.
    pub fn invitation(&self, person: &PersonId) -> Option<Recorded<'_, Invitation>> {
        for stream in entry_rules::invitation_streams(person) {
            self.note(stream);
        }
        let invitation = self.state.credentials.invitation(person);
        invitation.map(Recorded::new)
    }

    /// Whether an invitation can still be used: in time, while the key that gave it is a living one of an operator who has been one since.
    pub fn is_open_invitation(&self, invitation: &Invitation, now: Timestamp) -> bool {
        let giver = KeyHolder::Person(invitation.by.clone());
        let rules = self.rules();
        let is_operator = rules.is_some_and(|rules| {
            let person = rules.bundle.person(&invitation.by);
            person.is_some_and(|person| person.roles.contains(&Role::Operator))
        });
        now < invitation.expires_at
            && is_operator
            && self.may_act(&giver, invitation.by_key).is_ok()
            && self.person(&invitation.by).since <= invitation.index
    }

    /// The person invited with this code, and the invitation, while the code is the one of their latest invitation. The index of codes
    /// only finds whom to read.
    pub fn invitation_by_code(
        &self,
        code: &Digest,
    ) -> Option<(PersonId, Recorded<'_, Invitation>)> {
        let person = self.state.credentials.person_of_code(code)?;
        let invitation = self.invitation(&person)?;
        (invitation.code == *code).then_some((person, invitation))
    }

    /// Whether a key may act for its holder now: it is the holder's on record, lives, and the holder is registered with it.
    pub fn may_act(&self, holder: &KeyHolder, key: Thumbprint) -> Result<(), KeyRefusal> {
        if let KeyHolder::Person(person) = holder {
            self.note(Stream::Person(person.clone()));
        }
        self.note(Stream::Policy);
        self.state.may_act(holder, key)
    }

    /// The person or service that may act with a key now, or why none may.
    pub fn holder_of(&self, key: Thumbprint) -> Result<RegisteredCaller, KeyRefusal> {
        let rules = self.rules();
        let found = rules.and_then(|rules| rules.by_key(key));
        let found = found.ok_or(KeyRefusal::Unknown)?;
        let holder = match &found {
            RegisteredCaller::Person(person) => KeyHolder::Person(person.clone()),
            RegisteredCaller::Service(service) => KeyHolder::Service(service.clone()),
        };
        self.may_act(&holder, key).map(|()| found)
    }

    /// Whether a key may open a task of an agent and act in it: it is no person's and no service's, dead or alive, and no other agent's.
    pub fn may_hold_task(&self, key: &KeyNames, agent: &AgentId) -> Result<(), KeyRefusal> {
        self.note(Stream::Policy);
        self.note(Stream::EnrolledKey(key.identity));
        self.state.key_registry.check(key, KeyUse::Task(agent))
    }

    /// Whether a key may be enrolled as a passkey: it has no holder yet.
    pub fn may_enrol(&self, key: &KeyNames) -> Result<(), KeyRefusal> {
        self.note(Stream::Policy);
        self.note(Stream::EnrolledKey(key.identity));
        self.state.key_registry.check(key, KeyUse::Enrol)
    }

    /// What stands against putting a bundle in force: a key of another holder, and that no operator could act under it.
    pub fn may_register(
        &self,
        bundle: &PolicyBundle,
        returning: &BTreeSet<PersonId>,
    ) -> Result<PeopleRegistration, RegistrationError> {
        self.note(Stream::Policy);
        self.note(Stream::Credentials);
        self.state.may_register(bundle, returning)
    }

    /// The operators who could still govern with a key of `people.toml` when these keys are revoked.
    pub fn governors_without(&self, dead: &[Thumbprint]) -> Vec<PersonId> {
        self.note(Stream::Policy);
        self.note(Stream::Credentials);
        let rules = self.state.rules();
        rules.map_or_else(Vec::new, |rules| {
            let returning = BTreeSet::new();
            self.state.governors(&rules.bundle, &returning, dead, false)
        })
    }

    /// Whether a passkey may be confirmed now.
    pub fn may_confirm(
        &self,
        person: &PersonId,
        key: Thumbprint,
        by: &Confirmer,
    ) -> Result<(), ConfirmationRefusal> {
        self.note(Stream::Policy);
        self.note(Stream::Person(person.clone()));
        match by {
            Confirmer::Person { id, .. } => self.note(Stream::Person(id.clone())),
            Confirmer::Host { .. } => self.note(Stream::Credentials),
        };
        self.state.may_confirm(person, key, by)
    }

    /// What falls with stolen keys: the passkeys of other people that were enrolled on invitations given with them and that no other
    /// person confirmed, and those that they confirmed.
    pub fn falls_with(&self, stolen: &[Thumbprint]) -> Falls {
        self.note(Stream::Policy);
        self.note(Stream::Credentials);
        self.state.falls_with(stolen)
    }

    /// The record of a key of a person by any of its names: its own thumbprint or that of its negative.
    pub fn key_record(&self, person: &PersonId, key: Thumbprint) -> Option<Arc<KeyRecord>> {
        let identity = self.state.key_registry.identity(key)?;
        let mut records = self.key_records(person).into_iter();
        records.find(|record| self.state.key_registry.identity(record.thumbprint) == Some(identity))
    }

    /// The keys that die with a recovery of lost operators by this bundle.
    pub fn lost_operator_keys(&self, bundle: &PolicyBundle) -> Vec<PersonKey> {
        self.note(Stream::Policy);
        self.note(Stream::Credentials);
        let rules = self.state.rules();
        rules.map_or_else(Vec::new, |rules| {
            self.state.lost_operator_keys(&rules.bundle, bundle)
        })
    }

    /// The records of a person's keys, of both kinds, dead ones too.
    pub fn key_records(&self, person: &PersonId) -> Vec<Arc<KeyRecord>> {
        self.note(Stream::Policy);
        self.note(Stream::Person(person.clone()));
        self.state.key_registry.records_of(person)
    }

    /// The person who enrolled a credential, by its id in base64url, revoked or not.
    pub fn person_of_credential(&self, credential: &str) -> Option<PersonId> {
        self.note(Stream::Credential(credential.into()));
        self.state.credentials.person_of_credential(credential)
    }

    /// Times of denials of an agent's access requests, oldest first, since the agent was last resumed.
    pub fn denials(&self, agent: &AgentId) -> Vec<Timestamp> {
        self.note(Stream::Denials(agent.clone()));
        self.note(Stream::Agent(agent.clone()));
        let history = self.state.histories.get(agent);
        history.map_or_else(Vec::new, |history| history.denials.clone())
    }

    /// Whether a refused vote is on record.
    pub fn is_vote_refused(
        &self,
        request: AccessRequestId,
        voter: &PersonId,
        reason: &str,
    ) -> bool {
        self.note(Stream::refused_vote(request, voter.clone(), reason)) > 0
    }

    /// Records whose deadline has passed, at most `max`: where to look, not what is true. Each is read by itself.
    pub fn candidates_due(&self, now: Timestamp, max: usize) -> Vec<Deadline> {
        self.state
            .deadlines()
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(max)
            .map(|(_, deadline)| *deadline)
            .collect()
    }

    /// Whether everything was read while nothing moved, and nothing has moved since: then an answer that appends nothing may be given.
    pub fn holds(&self) -> bool {
        !self.torn.get()
            && self
                .streams
                .borrow()
                .iter()
                .all(|(stream, version)| self.state.versions.get(stream) == *version)
    }

    /// Number of streams read so far.
    pub fn len(&self) -> usize {
        self.streams.borrow().len()
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.streams.borrow().is_empty()
    }

    /// What was read so far.
    pub fn read_set(&self) -> ReadSet {
        ReadSet::new(self.streams.borrow().clone())
    }

    /// The append of a draft, resting on everything the round has read. What the events advance and claim follows from
    /// the rules of entries.
    pub fn append(&self, draft: Draft) -> Result<Append, DraftError> {
        let mut events = Vec::with_capacity(draft.events.len());
        let mut advanced = BTreeMap::new();
        for event in draft.events {
            let rule = entry_rules::rule(&event, &self.state)?;
            let mut write_set = Vec::with_capacity(rule.advances.len());
            for stream in rule.advances {
                let version = self.note(stream.clone());
                if advanced.insert(stream.clone(), ()).is_some() {
                    let why = format!("{stream} is advanced twice by one append");
                    return Err(entry_rules::illegal(&event, why).into());
                }
                write_set.push((stream, version));
            }
            events.push(NewEvent {
                event,
                write_set,
                claims: rule.claims,
            });
        }
        if self.torn.get() {
            return Err(DraftError::Torn);
        }
        Ok(Append::new(
            events,
            self.read_set(),
            draft.not_after,
            draft.blobs,
        ))
    }

    /// Records a stream, before anything under it is read. A stream in motion, or one that was read at another version, tears the
    /// round.
    fn note(&self, stream: Stream) -> Version {
        let version = self.state.versions.get(&stream);
        let mut streams = self.streams.borrow_mut();
        match streams.iter().find(|(read, _)| *read == stream) {
            Some((_, before)) if *before == version => {}
            Some((_, before)) => {
                self.torn.set(true);
                return *before;
            }
            None => streams.push((stream, version)),
        }
        if version == MOVING {
            self.torn.set(true);
        }
        version
    }
}
