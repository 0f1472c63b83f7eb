//! Reading for pages, lists and tests: what an answer shows, under no stream. No gate accepts what it returns.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value;

use super::anomaly::AgentRegistrationChange;
use super::entry_rules::{self, Needed};
use super::stats::DecisionStats;
use super::{
    AccessRequest, DecisionInput, Ended, FactSetting, FeedEvent, FreezeMarker, Grant, InboxChange,
    Invitation, Passkey, PersonCredentials, RecoveryRecord, State, TaskRecord, Trust, TrustedKeys,
};
use crate::jose::KeySet;
use crate::journal::IllegalEntry;
use crate::model::*;
use crate::policy::ActivePolicy;

/// State, to show it. Decides nothing: what it returns may change at once, and nothing records that it was read.
#[derive(Debug, Clone, Copy)]
pub struct Show<'a>(&'a State);

/// What one entry advances, rests on and claims, to show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRuleView {
    /// The streams it advances.
    pub advances: Vec<Stream>,
    /// The streams its decision has read, at least.
    pub reads: Vec<Stream>,
    /// The counts it adds to, with their ceilings.
    pub claims: Vec<Claim>,
}

/// A value to show. Gates take a [`super::Recorded`].
#[derive(Debug)]
pub struct Shown<T>(Arc<T>);

impl<T> Clone for Shown<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shown<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> From<&super::Recorded<'_, T>> for Shown<T> {
    fn from(recorded: &super::Recorded<'_, T>) -> Self {
        Self(Arc::clone(recorded.to_answer()))
    }
}

fn all<T>(values: Vec<Arc<T>>) -> Vec<Shown<T>> {
    values.into_iter().map(Shown).collect()
}

impl<'a> Show<'a> {
    pub(super) const fn new(state: &'a State) -> Self {
        Self(state)
    }

    /// The policy bundle in force.
    pub fn rules(self) -> Option<Shown<ActivePolicy>> {
        self.0.rules().map(Shown)
    }

    /// The keys that evidence is verified with. Gate 1 checks in its round that the key is still trusted.
    pub fn trust(self) -> Arc<Trust> {
        self.0.parsed.trust()
    }

    /// The keys that tokens issued here verify under.
    pub fn own_keys(self) -> Option<Arc<KeySet>> {
        self.0.parsed.own_keys()
    }

    /// When a policy bundle last registered or changed an agent; `None` for agents unchanged since the first bundle.
    pub fn registration(self, agent: &AgentId) -> Option<AgentRegistrationChange> {
        self.0.parsed.registration(agent)
    }

    /// The version of a stream; 0 for one that no entry has advanced.
    pub fn version(self, stream: &Stream) -> Version {
        self.0.versions.get(stream)
    }

    /// A task, running or ended.
    pub fn task(self, id: &TaskId) -> Option<Shown<TaskRecord>> {
        self.0.tasks.get(id).map(Shown)
    }

    /// Every task, ended or not, in no order.
    pub fn tasks(self) -> Vec<Shown<TaskRecord>> {
        let tasks = self.0.tasks.all();
        tasks.into_iter().map(|(_, task)| Shown(task)).collect()
    }

    /// Every task that no entry has ended, sorted by id.
    pub fn open_tasks(self) -> Vec<Shown<TaskRecord>> {
        all(self.0.open_tasks())
    }

    /// Tasks of an agent that no entry has ended.
    pub fn open_tasks_of(self, agent: &AgentId) -> Vec<TaskId> {
        self.0.open_tasks_of(agent)
    }

    /// Every agent with a task that no entry has ended, in no order.
    pub fn agents_with_open_tasks(self) -> Vec<AgentId> {
        let busy =
            |(agent, tasks): (AgentId, Arc<BTreeSet<TaskId>>)| (!tasks.is_empty()).then_some(agent);
        let all = self.0.agent_tasks.all();
        all.into_iter().filter_map(busy).collect()
    }

    /// Every agent that was ever suspended, in no order.
    pub fn agents_with_status(self) -> Vec<AgentId> {
        let all = self.0.agents.all();
        all.into_iter().map(|(id, _)| id).collect()
    }

    /// Whether an agent is suspended.
    pub fn is_suspended(self, agent: &AgentId) -> bool {
        self.0.is_suspended(agent)
    }

    /// The freeze of a scope that is in force.
    pub fn freeze(self, scope: &FreezeScope) -> Option<FreezeMarker> {
        self.0.freezes.get(scope)?.in_force.clone()
    }

    /// Whether a scope was ever frozen.
    pub fn was_frozen(self, scope: &FreezeScope) -> bool {
        self.0.freezes.get(scope).is_some()
    }

    /// Every freeze in force, sorted by scope.
    pub fn freezes(self) -> Vec<(FreezeScope, FreezeMarker)> {
        super::sorted(self.0.freezes.all())
            .into_iter()
            .filter_map(|(scope, status)| Some((scope, status.in_force.clone()?)))
            .collect()
    }

    /// The last setting of a named fact.
    pub fn fact_setting(self, name: &FactName) -> Option<Arc<FactSetting>> {
        self.0.facts.get(name)
    }

    /// The first entry that ended a grant, before it expired.
    pub fn first_end(self, grant: &Grant) -> Option<Ended> {
        self.0.first_end(grant)
    }

    /// The keys of a trust domain; `None` for a domain without a trust bundle.
    pub fn trusted_keys(self, domain: &TrustDomain) -> Option<Shown<TrustedKeys>> {
        self.0.trust.get(domain).map(Shown)
    }

    /// Every trust domain that ever had a trust bundle, sorted.
    pub fn trust_domains(self) -> Vec<TrustDomain> {
        let all = super::sorted(self.0.trust.all());
        all.into_iter().map(|(domain, _)| domain).collect()
    }

    /// Every published signing key, sorted by `kid`.
    pub fn keys(self) -> Vec<(KeyId, Shown<Value>)> {
        let mut keys = self.0.keys.all();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        keys.into_iter()
            .map(|(kid, key)| (kid, Shown(key)))
            .collect()
    }

    /// An access request, pending or closed.
    pub fn access_request(self, id: &AccessRequestId) -> Option<Shown<AccessRequest>> {
        self.0.requests.get(id).map(Shown)
    }

    /// Access requests of a task, oldest first.
    pub fn requests_of_task(self, task: &TaskId) -> Vec<Shown<AccessRequest>> {
        all(self.0.requests_of_task(task))
    }

    /// Every access request that no entry has closed, sorted by id; expired ones included.
    pub fn unclosed_requests(self) -> Vec<AccessRequestId> {
        self.0.unclosed_requests()
    }

    /// Every pending access request of a running task, oldest first.
    pub fn pending_requests(self, now: Timestamp) -> Vec<Shown<AccessRequest>> {
        let runs = |r: &Shown<AccessRequest>| {
            let task = r.opened.task().map(|task| self.task(&task));
            let runs = task.is_none_or(|task| task.is_some_and(|t| t.is_running(now)));
            r.is_pending(now) && runs
        };
        let mut all: Vec<_> = self
            .unclosed_requests()
            .iter()
            .filter_map(|id| self.access_request(id))
            .filter(runs)
            .collect();
        all.sort_by_key(|r| (r.opened_at, r.opened.access_request));
        all
    }

    /// A grant, active or ended.
    pub fn grant(self, jti: &TokenId) -> Option<Shown<Grant>> {
        self.0.grants.get(jti).map(Shown)
    }

    /// Grants of a task, oldest first.
    pub fn grants_of_task(self, task: &TaskId) -> Vec<Shown<Grant>> {
        let ids = self.0.task_grants.get(task);
        ids.map(|ids| ids.iter().filter_map(|id| self.grant(id)).collect())
            .unwrap_or_default()
    }

    /// Why a grant is no longer valid by journal and time; `None` while it is. Does not evaluate the rules in force.
    pub fn end_cause(self, grant: &Shown<Grant>, now: Timestamp) -> Option<EndCause> {
        self.0.end_cause(grant, now)
    }

    /// The keys of a person; none for a person that the journal does not name.
    pub fn person(self, person: &PersonId) -> Shown<PersonCredentials> {
        Shown(self.0.credentials.get(person))
    }

    /// What the holder of a key of a person or service can sign as.
    pub fn key_identity(self, key: Thumbprint) -> Option<KeyIdentity> {
        self.0.key_registry.identity(key)
    }

    /// Whether the journal names a key of a person, dead ones too.
    pub fn has_keys(self, person: &PersonId) -> bool {
        !self.0.key_registry.records_of(person).is_empty()
    }

    /// The keys that may act for a person now.
    pub fn living_keys(self, person: &PersonId) -> Vec<Thumbprint> {
        self.0.living_keys(person)
    }

    /// The people who could confirm a passkey of somebody whom they did not invite, in the order of their ids.
    pub fn people_who_confirm(self) -> BTreeSet<PersonId> {
        self.0.people_who_confirm().into_iter().collect()
    }

    /// The people who could confirm a passkey of a person now.
    pub fn confirmers(self, person: &PersonId, key: Thumbprint) -> Vec<PersonId> {
        let enrolled = self.0.credentials.get(person);
        let passkey = enrolled.passkey(key);
        passkey.map_or_else(Vec::new, |passkey| self.0.confirmers(person, passkey))
    }

    /// The passkeys that await confirmation, by person.
    pub fn unconfirmed_passkeys(self) -> Vec<(PersonId, Passkey)> {
        let mut people = self.people();
        people.sort_unstable();
        people.dedup();
        let of = |person: PersonId| {
            let enrolled = self.0.credentials.get(&person);
            let passkeys = enrolled.passkeys.iter();
            let awaiting = passkeys.filter(|passkey| passkey.confirmation.is_none());
            let found: Vec<_> = awaiting.map(|p| (person.clone(), p.clone())).collect();
            found
        };
        people.into_iter().flat_map(of).collect()
    }

    /// The operators who can govern now: those of the bundle in force with a living key of `people.toml`.
    pub fn governors(self) -> Vec<PersonId> {
        let rules = self.0.rules();
        rules.map_or_else(Vec::new, |rules| {
            self.0
                .governors(&rules.bundle, &BTreeSet::new(), &[], false)
        })
    }

    /// Whether some operator could change the bundle in force, alone or with the people who must agree; true without a bundle.
    pub fn change_is_possible(self) -> bool {
        let rules = self.0.rules();
        rules.is_none_or(|rules| self.0.change_is_possible(&rules.bundle, &BTreeSet::new()))
    }

    /// The last recovery of the operators by the owner of the broker's host.
    pub fn recovery(self) -> Option<Arc<RecoveryRecord>> {
        self.0.recovery.load_full()
    }

    /// The invitation that a person may still use.
    pub fn invitation(self, person: &PersonId) -> Option<Shown<Invitation>> {
        self.0.credentials.invitation(person).map(Shown)
    }

    /// Every person that the journal names, in no order; some twice.
    pub fn people(self) -> Vec<PersonId> {
        self.0.credentials.people()
    }

    /// The person who enrolled a credential, by its id in base64url, revoked or not.
    pub fn person_of_credential(self, credential: &str) -> Option<PersonId> {
        self.0.credentials.person_of_credential(credential)
    }

    /// At most `max` inbox changes above an index, oldest first; `None` when some of them are no longer kept.
    pub fn inbox_changes_after(self, index: u64, max: usize) -> Option<Vec<Arc<InboxChange>>> {
        self.0.inbox_changes.after(index, max)
    }

    /// The inbox change made by the entry at this index, if that is the latest change.
    pub fn inbox_change_at(self, index: u64) -> Option<Arc<InboxChange>> {
        self.0.inbox_changes.at(index)
    }

    /// Index of the entry that holds a decision of gate 2.
    pub fn decision_index(self, id: &DecisionId) -> Option<u64> {
        self.0.decisions.get(id)
    }

    /// Statistics about requests and decisions.
    pub const fn stats(self) -> &'a DecisionStats {
        &self.0.stats
    }

    /// Indexes of at most [`super::TASK_ENTRIES_MAX`] entries about a task, in order, and how many in the middle are omitted.
    pub fn task_entries(self, task: &TaskId) -> (Vec<u64>, u64) {
        self.0.task_entries.get(task)
    }

    /// (epoch, index of the last entry applied).
    pub fn position(self) -> (u64, u64) {
        self.0.position()
    }

    /// At most `max` events of the revocation feed above an index, or from the start; and the index of the last event
    /// of the feed, as of the same moment.
    pub fn feed_after(self, after: Option<u64>, max: usize) -> (Vec<Arc<FeedEvent>>, Option<u64>) {
        self.0.feed.after(after, max)
    }

    /// Index of the first feed event at or after a point in time.
    pub fn feed_since(self, moment: Timestamp) -> Option<u64> {
        self.0.feed.since(moment)
    }

    /// Index of the last feed event.
    pub fn feed_last(self) -> Option<u64> {
        self.0.feed.last()
    }

    /// What an entry of this event would advance, rest on at least, and claim, for the table in `docs/invariants.md`.
    pub fn entry_rule(self, event: &Event) -> Result<EntryRuleView, IllegalEntry> {
        let rule = entry_rules::rule(event, self.0)?;
        let stream = |needed| match needed {
            Needed::Stream(stream) => stream,
            Needed::Keys(person) => Stream::Person(person),
        };
        Ok(EntryRuleView {
            advances: rule.advances,
            reads: rule.reads.into_iter().map(stream).collect(),
            claims: rule.claims,
        })
    }

    /// Every record that decisions read, with the streams it lies under, for tests (INV-9).
    pub fn decision_inputs(self) -> Vec<DecisionInput> {
        self.0.decision_inputs()
    }

    /// The whole state as one JSON value, for tests: equal wherever the same entries were applied (INV-9).
    pub fn canonical_snapshot(self) -> Value {
        self.0.canonical_snapshot()
    }
}
