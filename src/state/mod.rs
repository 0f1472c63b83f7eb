//! In-memory state: the projection of the journal. Many threads read it; only committed entries change it.
//!
//! In: [`crate::journal::Committed`] entries, in order. Out: agents, tasks, access requests, grants, statistics and the revocation feed.
//! Trusts: the journal, that an entry was allowed. Refuses nothing and decides nothing: whether a record has expired is a
//! function of the record and of the reader's `now`. Never reads a clock, never writes an entry.

pub mod action_stats;
pub mod anomaly;
mod apply;
mod concurrent_map;
mod counters;
mod credentials;
mod feed;
mod inbox_changes;
mod intern;
mod records;
pub mod stats;
mod task_entries;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::model::*;

pub use feed::{FeedEvent, Selector};
pub use records::{
    AccessRequest, AccessRequestHistory, Ended, FreezeMarker, FreezeStatus, Grant,
    IdempotencyOutcome, IllegalTransition, Lease, RecordedGrant, StoredStatus, TaskRecord,
    TokenUse, VoteRecord,
};

pub use concurrent_map::ArcMap;
pub use credentials::{CredentialStore, Invitation, Passkey, PersonCredentials};
pub use inbox_changes::{InboxChange, InboxChangeKind};
pub use task_entries::TASK_ENTRIES_MAX;

use concurrent_map::CopyMap;
use feed::Feed;
use inbox_changes::InboxChangeLog;
use intern::Interner;
use stats::DecisionStats;
use task_entries::TaskEntryIndex;

/// A value and the version of the stream it comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// The stream's version.
    pub version: Version,
}

/// The JWT-SVID keys of a trust domain that verify evidence now.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct TrustedKeys {
    /// Blob: the trust bundle; absent before the domain's first bundle.
    pub bundle: Option<Digest>,
    /// The keys in it.
    pub kids: BTreeSet<KeyId>,
}

/// The state of one broker, as of the last entry applied.
#[derive(Debug, Default)]
pub struct State {
    tasks: ArcMap<TaskId, TaskRecord>,
    tasks_by_idempotency_key: ArcMap<(AgentId, Thumbprint, IdempotencyKey), TaskId>,
    agents: ArcMap<AgentId, Versioned<AgentStatus>>,
    freezes: ArcMap<FreezeScope, Versioned<FreezeStatus>>,
    trust: ArcMap<TrustDomain, Versioned<TrustedKeys>>,
    keys: ArcMap<KeyId, Versioned<Value>>,
    requests: ArcMap<AccessRequestId, AccessRequest>,
    grants: ArcMap<TokenId, Grant>,
    idempotency_keys: CopyMap<(TaskId, IdempotencyKey), Versioned<Option<IdempotencyOutcome>>>,
    histories: ArcMap<AgentId, Versioned<AccessRequestHistory>>,
    owner_pending: ArcMap<PersonId, Versioned<BTreeSet<AccessRequestId>>>,
    credentials: CredentialStore,
    task_grants: ArcMap<TaskId, Vec<TokenId>>,
    task_requests: ArcMap<TaskId, Vec<AccessRequestId>>,
    agent_tasks: ArcMap<AgentId, BTreeSet<TaskId>>,
    decisions: CopyMap<DecisionId, u64>,
    feed: Feed,
    stats: DecisionStats,
    task_entries: TaskEntryIndex,
    inbox_changes: InboxChangeLog,
    interner: Interner,
    deadlines: Mutex<BTreeSet<(Timestamp, Deadline)>>,
    // Number of entries applied; the epoch changes only while nothing is served.
    applied: AtomicU64,
    epoch: AtomicU64,
    illegal_transitions: AtomicU64,
}

/// A record that ends by time alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deadline {
    /// A task reaches its deadline.
    Task(TaskId),
    /// A task's heartbeat has been missed.
    Lease(TaskId),
    /// An access request expires.
    AccessRequest(AccessRequestId),
}

impl State {
    /// A task, running or ended.
    pub fn task(&self, id: &TaskId) -> Option<Arc<TaskRecord>> {
        self.tasks.get(id)
    }

    /// The task that an agent opened with this key under this idempotency key.
    pub fn task_by_idempotency_key(
        &self,
        agent: &AgentId,
        key: Thumbprint,
        request: &IdempotencyKey,
    ) -> Option<Arc<TaskRecord>> {
        self.tasks_by_idempotency_key
            .get(&(agent.clone(), key, request.clone()))
            .and_then(|id| self.tasks.get(&id))
    }

    /// The suspension status of an agent; not suspended, at version 0, when the journal has no entry about it.
    pub fn agent_status(&self, agent: &AgentId) -> Versioned<AgentStatus> {
        self.agents.get(agent).map(|at| *at).unwrap_or_default()
    }

    /// The freeze of one scope; the default at version 0 when it was never frozen.
    pub fn freeze(&self, scope: &FreezeScope) -> Versioned<FreezeStatus> {
        self.freezes
            .get(scope)
            .map(|at| (*at).clone())
            .unwrap_or_default()
    }

    /// Every freeze in force.
    pub fn freezes(&self) -> Vec<(FreezeScope, FreezeMarker)> {
        let in_force = |(scope, at): (FreezeScope, Arc<Versioned<FreezeStatus>>)| {
            at.value.in_force.clone().map(|frozen| (scope, frozen))
        };
        sorted(self.freezes.all())
            .into_iter()
            .filter_map(in_force)
            .collect()
    }

    /// Whether the action of a grant was frozen after the grant was issued. (Wider freezes end the task.)
    pub fn is_action_frozen(&self, grant: &Grant) -> bool {
        self.action_frozen_at(grant).is_some()
    }

    /// Index of the last entry that froze the action of a grant after the grant was issued.
    pub fn action_frozen_at(&self, grant: &Grant) -> Option<u64> {
        let scope = FreezeScope::Action(grant.issued.action.action.clone());
        let last = self.freezes.get(&scope).and_then(|at| at.value.last);
        last.filter(|frozen| grant.index < *frozen)
    }

    /// The keys of a trust domain; `None` for a domain without a trust bundle.
    pub fn trusted_keys(&self, domain: &TrustDomain) -> Option<Arc<Versioned<TrustedKeys>>> {
        self.trust.get(domain)
    }

    /// Every trust domain that ever had a trust bundle, sorted.
    pub fn trust_domains(&self) -> Vec<TrustDomain> {
        sorted(self.trust.all())
            .into_iter()
            .map(|(domain, _)| domain)
            .collect()
    }

    /// Whether the key that verified this evidence is still trusted.
    pub fn is_trusted(&self, evidence: &EvidenceFacts) -> bool {
        self.trust
            .get(&evidence.subject.trust_domain())
            .is_some_and(|keys| keys.value.kids.contains(&evidence.kid))
    }

    /// A published signing key.
    pub fn key(&self, kid: &KeyId) -> Option<Arc<Versioned<Value>>> {
        self.keys.get(kid)
    }

    /// Every published signing key, sorted by `kid`.
    pub fn keys(&self) -> Vec<(KeyId, Arc<Versioned<Value>>)> {
        let mut keys = self.keys.all();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        keys
    }

    /// An access request, pending or closed.
    pub fn access_request(&self, id: &AccessRequestId) -> Option<Arc<AccessRequest>> {
        self.requests.get(id)
    }

    /// The pending access request for this action digest in this task, under any idempotency key.
    pub fn pending_request_for(
        &self,
        task: &TaskId,
        action: Digest,
        now: Timestamp,
    ) -> Option<Arc<AccessRequest>> {
        self.requests_of_task(task)
            .into_iter()
            .find(|r| r.is_pending(now) && r.action.as_ref().is_some_and(|a| a.digest() == action))
    }

    /// The access requests of an agent, and the version of [`Stream::AgentRequests`].
    pub fn access_request_history(&self, agent: &AgentId) -> Arc<Versioned<AccessRequestHistory>> {
        self.histories.get(agent).unwrap_or_default()
    }

    /// Access requests of all agents of an owner that no entry has closed, and the version of [`Stream::OwnerRequests`].
    pub fn owner_pending(&self, owner: &PersonId) -> Arc<Versioned<BTreeSet<AccessRequestId>>> {
        self.owner_pending.get(owner).unwrap_or_default()
    }

    /// Number of these access requests that are pending.
    pub fn count_pending(&self, ids: &BTreeSet<AccessRequestId>, now: Timestamp) -> usize {
        ids.iter()
            .filter_map(|id| self.requests.get(id))
            .filter(|r| r.is_pending(now))
            .count()
    }

    /// Passkeys, invitations and revoked keys of people.
    pub const fn credentials(&self) -> &CredentialStore {
        &self.credentials
    }

    /// Every pending access request of a running task, oldest first.
    pub fn pending_requests(&self, now: Timestamp) -> Vec<Arc<AccessRequest>> {
        let mut all: Vec<_> = self
            .unclosed_requests()
            .iter()
            .filter_map(|id| self.requests.get(id))
            .filter(|r| {
                r.is_pending(now)
                    && self
                        .tasks
                        .get(&r.opened.task)
                        .is_some_and(|t| t.is_running(now))
            })
            .collect();
        all.sort_by_key(|r| (r.opened_at, r.opened.access_request));
        all
    }

    /// Every access request that no entry has closed, sorted by id; expired ones included.
    pub fn unclosed_requests(&self) -> Vec<AccessRequestId> {
        let mut all: Vec<_> = self
            .histories
            .all()
            .into_iter()
            .flat_map(|(_, at)| at.value.pending.iter().copied().collect::<Vec<_>>())
            .collect();
        all.sort_unstable();
        all
    }

    /// At most `max` inbox changes above an index, oldest first; `None` when some of them are no longer kept.
    pub fn inbox_changes_after(&self, index: u64, max: usize) -> Option<Vec<Arc<InboxChange>>> {
        self.inbox_changes.after(index, max)
    }

    /// The inbox change made by the entry at this index, if that is the latest change.
    pub fn inbox_change_at(&self, index: u64) -> Option<Arc<InboxChange>> {
        self.inbox_changes.at(index)
    }

    /// Access requests of a task, oldest first.
    pub fn requests_of_task(&self, task: &TaskId) -> Vec<Arc<AccessRequest>> {
        self.task_requests
            .get(task)
            .map(|ids| ids.iter().filter_map(|id| self.requests.get(id)).collect())
            .unwrap_or_default()
    }

    /// The outcome of an idempotency key, `None` while it is undecided; with the version of [`Stream::TokenRequest`].
    pub fn idempotency_outcome(
        &self,
        task: &TaskId,
        request: &IdempotencyKey,
    ) -> Versioned<Option<IdempotencyOutcome>> {
        self.idempotency_keys
            .get(&(*task, request.clone()))
            .unwrap_or_default()
    }

    /// A grant, active or ended.
    pub fn grant(&self, jti: &TokenId) -> Option<Arc<Grant>> {
        self.grants.get(jti)
    }

    /// Proof that the grant is in the journal, for its reissue.
    pub fn recorded_grant(&self, jti: &TokenId) -> Option<RecordedGrant> {
        self.grants.get(jti).map(RecordedGrant::new)
    }

    /// Grants of a task, oldest first.
    pub fn grants_of_task(&self, task: &TaskId) -> Vec<Arc<Grant>> {
        self.task_grants
            .get(task)
            .map(|ids| ids.iter().filter_map(|id| self.grants.get(id)).collect())
            .unwrap_or_default()
    }

    /// Why a grant is no longer valid by journal and time; `None` while it is. Does not evaluate the policy.
    pub fn end_cause(&self, grant: &Grant, now: Timestamp) -> Option<EndCause> {
        if let Some(ended) = grant.ended {
            return Some(ended.cause);
        }
        if now.secs() >= grant.issued.exp {
            return Some(EndCause::Deadline);
        }
        if self.is_action_frozen(grant) {
            return Some(EndCause::Frozen);
        }
        // Fail closed: a grant whose task is missing is not valid.
        match self.tasks.get(&grant.issued.task) {
            None => Some(EndCause::Deadline),
            Some(task) => match task.ended {
                Some(ended) => Some(ended.cause),
                None if task.expired_cause(now).is_some() => task.expired_cause(now),
                None if self.agent_status(&grant.issued.agent).value.suspended => {
                    Some(EndCause::Suspended)
                }
                None if !self.is_trusted(&grant.issued.evidence) => Some(EndCause::Trust),
                None => None,
            },
        }
    }

    /// Tasks of an agent that no entry has ended.
    pub fn open_tasks_of(&self, agent: &AgentId) -> Vec<TaskId> {
        self.agent_tasks
            .get(agent)
            .map(|set| set.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Every agent with a task that no entry has ended, in no order.
    pub fn agents_with_open_tasks(&self) -> Vec<AgentId> {
        let busy =
            |(agent, tasks): (AgentId, Arc<BTreeSet<TaskId>>)| (!tasks.is_empty()).then_some(agent);
        self.agent_tasks
            .all()
            .into_iter()
            .filter_map(busy)
            .collect()
    }

    /// Every agent that was ever suspended, in no order.
    pub fn agents_with_status(&self) -> Vec<AgentId> {
        self.agents.all().into_iter().map(|(id, _)| id).collect()
    }

    /// Every task, ended or not, in no order.
    pub fn tasks(&self) -> Vec<Arc<TaskRecord>> {
        self.tasks.all().into_iter().map(|(_, task)| task).collect()
    }

    /// Every task that no entry has ended, sorted by id.
    pub fn open_tasks(&self) -> Vec<Arc<TaskRecord>> {
        let mut ids: Vec<TaskId> = self
            .agent_tasks
            .all()
            .into_iter()
            .flat_map(|(_, set)| set.iter().copied().collect::<Vec<_>>())
            .collect();
        ids.sort_unstable();
        ids.iter().filter_map(|id| self.tasks.get(id)).collect()
    }

    /// At most `max` records whose deadline has passed and is not journalled yet; readers already treat them as ended.
    pub fn deadlines_by(&self, now: Timestamp, max: usize) -> Vec<Deadline> {
        self.deadlines()
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(max)
            .map(|(_, deadline)| *deadline)
            .collect()
    }

    /// Index of the entry that holds a decision of gate 2.
    pub fn decision_index(&self, id: &DecisionId) -> Option<u64> {
        self.decisions.get(id)
    }

    /// Statistics about requests and decisions.
    pub const fn stats(&self) -> &DecisionStats {
        &self.stats
    }

    /// Indexes of at most [`TASK_ENTRIES_MAX`] entries about a task, in order, and how many in the middle are omitted.
    pub fn task_entries(&self, task: &TaskId) -> (Vec<u64>, u64) {
        self.task_entries.get(task)
    }

    /// (epoch, index of the last entry applied).
    pub fn position(&self) -> (u64, u64) {
        (
            self.epoch.load(Ordering::SeqCst),
            self.applied.load(Ordering::SeqCst).saturating_sub(1),
        )
    }

    /// At most `max` events of the revocation feed above an index, or from the start; and the index of the last event
    /// of the feed, as of the same moment.
    pub fn feed_after(&self, after: Option<u64>, max: usize) -> (Vec<Arc<FeedEvent>>, Option<u64>) {
        self.feed.after(after, max)
    }

    /// Index of the first feed event at or after a point in time.
    pub fn feed_since(&self, moment: Timestamp) -> Option<u64> {
        self.feed.since(moment)
    }

    /// Index of the last feed event.
    pub fn feed_last(&self) -> Option<u64> {
        self.feed.last()
    }

    /// Number of entries that made an illegal transition. Above 0 means a bug in the broker.
    pub fn illegal_transitions(&self) -> u64 {
        self.illegal_transitions.load(Ordering::Relaxed)
    }

    /// The whole state as one JSON value, for tests: equal wherever the same entries were applied (INV-9).
    pub fn canonical_snapshot(&self) -> Value {
        let tasks: Vec<Value> = sorted(self.tasks.all())
            .into_iter()
            .map(|(id, t)| json!([id, t.ended, t.lease, t.version]))
            .collect();
        let requests: Vec<Value> = sorted(self.requests.all())
            .into_iter()
            .map(|(id, r)| json!([id, r.status, r.version, r.votes.len(), r.action.is_some()]))
            .collect();
        let grants: Vec<Value> = sorted(self.grants.all())
            .into_iter()
            .map(|(id, g)| json!([id, g.ended, g.version, g.uses, g.kids, g.action.is_some()]))
            .collect();
        let idempotency_keys: Vec<Value> = sorted(self.idempotency_keys.all())
            .into_iter()
            .map(|(k, at)| json!([k, at.value, at.version]))
            .collect();
        let opened: Vec<Value> = sorted(self.tasks_by_idempotency_key.all())
            .into_iter()
            .map(|(k, t)| json!([k, *t]))
            .collect();
        let agents: Vec<Value> = sorted(self.agents.all())
            .into_iter()
            .map(|(id, a)| json!([id, a.value.suspended, a.version]))
            .collect();
        let freezes: Vec<Value> = sorted(self.freezes.all())
            .into_iter()
            .map(|(scope, at)| {
                json!([
                    scope,
                    at.value.in_force.is_some(),
                    at.value.last,
                    at.version
                ])
            })
            .collect();
        let trust: Vec<Value> = sorted(self.trust.all())
            .into_iter()
            .map(|(d, t)| json!([d, t.value, t.version]))
            .collect();
        let keys: Vec<Value> = sorted(self.keys.all())
            .into_iter()
            .map(|(k, v)| json!([k, v.value, v.version]))
            .collect();
        let histories: Vec<Value> = sorted(self.histories.all())
            .into_iter()
            .map(|(k, v)| json!([k, v.value, v.version]))
            .collect();
        let owner_pending: Vec<Value> = sorted(self.owner_pending.all())
            .into_iter()
            .map(|(k, v)| json!([k, v.value, v.version]))
            .collect();
        let feed: Vec<Value> = self
            .feed_after(None, usize::MAX)
            .0
            .iter()
            .map(|e| json!(**e))
            .collect();
        let deadlines: Vec<Value> = self
            .deadlines()
            .iter()
            .map(|(at, deadline)| json!([at, format!("{deadline:?}")]))
            .collect();
        json!({ "position": self.position(), "tasks": tasks, "requests": requests, "grants": grants, "idempotency_keys": idempotency_keys, "opened": opened,
            "agents": agents, "freezes": freezes, "trust": trust, "keys": keys, "histories": histories, "owner_pending": owner_pending, "credentials": self.credentials.canonical_snapshot(), "feed": feed, "deadlines": deadlines, "illegal_transitions": self.illegal_transitions(),
            "stats": self.stats.canonical_snapshot(), "task_entries": self.task_entries.canonical_snapshot() })
    }

    fn deadlines(&self) -> std::sync::MutexGuard<'_, BTreeSet<(Timestamp, Deadline)>> {
        self.deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn sorted<K: Ord, V>(mut all: Vec<(K, V)>) -> Vec<(K, V)> {
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}
