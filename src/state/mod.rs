//! State: a fold over the journal. Many threads read it; only committed entries change it.
//!
//! In: [`Committed`] entries, in order. Out: live agents, tasks, access requests, grants, and the revocation feed.
//! Trusts the journal that an entry was allowed. Refuses nothing and decides nothing: what has expired is a question of
//! the record and the moment, asked by whoever reads. Never reads a clock, never writes an entry.

mod feed;
pub mod figures;
mod fold;
mod records;
mod roster;
mod shared;
mod stirs;
mod table;
mod traces;
pub mod unusual;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::model::*;

pub use feed::{FeedEvent, Selector};
pub use records::{
    AccessRequest, AccessStatus, Asks, Ended, IdempotencyOutcome, Freeze, FrozenAt, Grant, Illegal, Lease,
    Recorded, Task, Use, Vote,
};

pub use roster::{Enrolled, Invitation, Passkey, Roster};
pub use stirs::{Stir, Stirred};

use feed::Feed;
use figures::Figures;
use shared::Shared;
use stirs::Stirs;
use table::Notes;
pub use table::Table;
pub use traces::TRACE_MAX;
use traces::Traces;

/// A value and the version of the stream it comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// The stream's version.
    pub version: Version,
}

/// Which keys of a trust domain count.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct TrustedKeys {
    /// Blob: the trust bundle.
    pub bundle: Option<Digest>,
    /// The keys in it.
    pub kids: BTreeSet<KeyId>,
}

/// Everything the journal says, ready to be read.
#[derive(Debug, Default)]
pub struct State {
    tasks: Table<TaskId, Task>,
    opens: Table<(AgentId, Thumbprint, IdempotencyKey), TaskId>,
    agents: Table<AgentId, Versioned<AgentStanding>>,
    freezes: Table<FreezeScope, Versioned<Freeze>>,
    trust: Table<TrustDomain, Versioned<TrustedKeys>>,
    keys: Table<KeyId, Versioned<Value>>,
    requests: Table<AccessRequestId, AccessRequest>,
    grants: Table<TokenId, Grant>,
    idempotency_keys: Notes<(TaskId, IdempotencyKey), Versioned<Option<IdempotencyOutcome>>>,
    asks: Table<AgentId, Versioned<Asks>>,
    owner_asks: Table<PersonId, Versioned<BTreeSet<AccessRequestId>>>,
    roster: Roster,
    task_grants: Table<TaskId, Vec<TokenId>>,
    task_requests: Table<TaskId, Vec<AccessRequestId>>,
    agent_tasks: Table<AgentId, BTreeSet<TaskId>>,
    decisions: Notes<DecisionId, u64>,
    feed: Feed,
    figures: Figures,
    traces: Traces,
    stirs: Stirs,
    shared: Shared,
    due: Mutex<BTreeSet<(Timestamp, Due)>>,
    // Count of entries folded; the epoch changes only while nothing is served.
    folded: AtomicU64,
    epoch: AtomicU64,
    illegal: AtomicU64,
}

/// Something whose time comes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// A task reaches its deadline.
    Task(TaskId),
    /// A task's heartbeat has been missed.
    Lease(TaskId),
    /// An access request expires.
    AccessRequest(AccessRequestId),
}

impl State {
    /// A task, live or not.
    pub fn task(&self, id: &TaskId) -> Option<Arc<Task>> {
        self.tasks.get(id)
    }

    /// The task an agent opened with this key under this request id.
    pub fn opened_under(
        &self,
        agent: &AgentId,
        key: Thumbprint,
        request: &IdempotencyKey,
    ) -> Option<Arc<Task>> {
        self.opens
            .get(&(agent.clone(), key, request.clone()))
            .and_then(|id| self.tasks.get(&id))
    }

    /// What the journal alone says of an agent; unknown to it = in good standing at version 0.
    pub fn standing(&self, agent: &AgentId) -> Versioned<AgentStanding> {
        self.agents.get(agent).map(|at| *at).unwrap_or_default()
    }

    /// The freeze of one scope; never frozen = at version 0.
    pub fn freeze(&self, scope: &FreezeScope) -> Versioned<Freeze> {
        self.freezes
            .get(scope)
            .map(|at| (*at).clone())
            .unwrap_or_default()
    }

    /// Every freeze in force.
    pub fn freezes(&self) -> Vec<(FreezeScope, FrozenAt)> {
        let in_force = |(scope, at): (FreezeScope, Arc<Versioned<Freeze>>)| {
            at.value.in_force.clone().map(|frozen| (scope, frozen))
        };
        sorted(self.freezes.all())
            .into_iter()
            .filter_map(in_force)
            .collect()
    }

    /// Whether the action of a grant was frozen after it was given. (Wider freezes end the task.)
    pub fn action_frozen_since(&self, grant: &Grant) -> bool {
        self.action_frozen_at(grant).is_some()
    }

    /// The last entry that froze the action of a grant after it was given.
    pub fn action_frozen_at(&self, grant: &Grant) -> Option<u64> {
        let scope = FreezeScope::Action(grant.issued.action.action.clone());
        let last = self.freezes.get(&scope).and_then(|at| at.value.last);
        last.filter(|frozen| grant.index < *frozen)
    }

    /// The keys of a trust domain; none for a domain never entered.
    pub fn trusted(&self, domain: &TrustDomain) -> Option<Arc<Versioned<TrustedKeys>>> {
        self.trust.get(domain)
    }

    /// Every trust domain that was ever entered.
    pub fn trust_domains(&self) -> Vec<TrustDomain> {
        sorted(self.trust.all())
            .into_iter()
            .map(|(domain, _)| domain)
            .collect()
    }

    /// Whether the key that verified this evidence still counts.
    pub fn still_trusts(&self, evidence: &EvidenceFacts) -> bool {
        self.trust
            .get(&evidence.subject.trust_domain())
            .is_some_and(|keys| keys.value.kids.contains(&evidence.kid))
    }

    /// A published signing key.
    pub fn key(&self, kid: &KeyId) -> Option<Arc<Versioned<Value>>> {
        self.keys.get(kid)
    }

    /// Every published key, by kid.
    pub fn keys(&self) -> Vec<(KeyId, Arc<Versioned<Value>>)> {
        let mut keys = self.keys.all();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        keys
    }

    /// An access request, waiting or not.
    pub fn access_request(&self, id: &AccessRequestId) -> Option<Arc<AccessRequest>> {
        self.requests.get(id)
    }

    /// The access request that waits for this very action in this task, whoever asked first.
    pub fn waiting_for(
        &self,
        task: &TaskId,
        action: Digest,
        now: Timestamp,
    ) -> Option<Arc<AccessRequest>> {
        self.requests_of(task)
            .into_iter()
            .find(|r| r.waits(now) && r.action.as_ref().is_some_and(|a| a.digest() == action))
    }

    /// What an agent asks of people, and the version of that stream.
    pub fn asks(&self, agent: &AgentId) -> Arc<Versioned<Asks>> {
        self.asks.get(agent).unwrap_or_default()
    }

    /// Access requests of all agents of an owner that did not stop waiting by an entry, and the version of their stream.
    pub fn owner_asks(&self, owner: &PersonId) -> Arc<Versioned<BTreeSet<AccessRequestId>>> {
        self.owner_asks.get(owner).unwrap_or_default()
    }

    /// How many of these access requests wait.
    pub fn count_waiting(&self, ids: &BTreeSet<AccessRequestId>, now: Timestamp) -> usize {
        ids.iter()
            .filter_map(|id| self.requests.get(id))
            .filter(|r| r.waits(now))
            .count()
    }

    /// What the journal says of people and their keys.
    pub const fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Every access request that waits, oldest first.
    pub fn waiting(&self, now: Timestamp) -> Vec<Arc<AccessRequest>> {
        let mut all: Vec<_> = self
            .asked()
            .iter()
            .filter_map(|id| self.requests.get(id))
            .filter(|r| r.waits(now) && self.tasks.get(&r.opened.task).is_some_and(|t| t.runs(now)))
            .collect();
        all.sort_by_key(|r| (r.opened_at, r.opened.access_request));
        all
    }

    /// Every access request that has not stopped waiting by an entry.
    pub fn asked(&self) -> Vec<AccessRequestId> {
        let mut all: Vec<_> = self
            .asks
            .all()
            .into_iter()
            .flat_map(|(_, at)| at.value.waiting.iter().copied().collect::<Vec<_>>())
            .collect();
        all.sort_unstable();
        all
    }

    /// At most `max` changes among what waits, above an index; `None` when some of them are no longer kept.
    pub fn stirs_after(&self, index: u64, max: usize) -> Option<Vec<Arc<Stir>>> {
        self.stirs.after(index, max)
    }

    /// What the last entry changed among what waits, if it is this one and changed anything there.
    pub fn stir_of(&self, index: u64) -> Option<Arc<Stir>> {
        self.stirs.of(index)
    }

    /// Access requests of a task, oldest first.
    pub fn requests_of(&self, task: &TaskId) -> Vec<Arc<AccessRequest>> {
        self.task_requests
            .get(task)
            .map(|ids| ids.iter().filter_map(|id| self.requests.get(id)).collect())
            .unwrap_or_default()
    }

    /// What a request id stands for, `None` while that is open; with the version of its stream.
    pub fn idempotency_outcome(&self, task: &TaskId, request: &IdempotencyKey) -> Versioned<Option<IdempotencyOutcome>> {
        self.idempotency_keys
            .get(&(*task, request.clone()))
            .unwrap_or_default()
    }

    /// A grant, live or not.
    pub fn grant(&self, jti: &TokenId) -> Option<Arc<Grant>> {
        self.grants.get(jti)
    }

    /// Proof that the grant is in the journal, for its reissue.
    pub fn recorded(&self, jti: &TokenId) -> Option<Recorded> {
        self.grants.get(jti).map(Recorded::new)
    }

    /// Grants of a task, oldest first.
    pub fn grants_of(&self, task: &TaskId) -> Vec<Arc<Grant>> {
        self.task_grants
            .get(task)
            .map(|ids| ids.iter().filter_map(|id| self.grants.get(id)).collect())
            .unwrap_or_default()
    }

    /// Why a grant is dead, as far as the journal tells; `None` while it lives. Rules are asked elsewhere.
    pub fn dead(&self, grant: &Grant, now: Timestamp) -> Option<EndCause> {
        if let Some(ended) = grant.ended {
            return Some(ended.cause);
        }
        if now.secs() >= grant.issued.exp {
            return Some(EndCause::Deadline);
        }
        if self.action_frozen_since(grant) {
            return Some(EndCause::Frozen);
        }
        // A missing task reads as dead.
        match self.tasks.get(&grant.issued.task) {
            None => Some(EndCause::Deadline),
            Some(task) => match task.ended {
                Some(ended) => Some(ended.cause),
                None if task.lapsed(now).is_some() => task.lapsed(now),
                None if self.standing(&grant.issued.agent).value.suspended => {
                    Some(EndCause::Suspended)
                }
                None if !self.still_trusts(&grant.issued.evidence) => Some(EndCause::Trust),
                None => None,
            },
        }
    }

    /// Open tasks of an agent.
    pub fn open_tasks_of(&self, agent: &AgentId) -> Vec<TaskId> {
        self.agent_tasks
            .get(agent)
            .map(|set| set.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Every agent that has an open task, in no order.
    pub fn agents_at_work(&self) -> Vec<AgentId> {
        let busy =
            |(agent, tasks): (AgentId, Arc<BTreeSet<TaskId>>)| (!tasks.is_empty()).then_some(agent);
        self.agent_tasks
            .all()
            .into_iter()
            .filter_map(busy)
            .collect()
    }

    /// Every agent that was ever suspended, in no order.
    pub fn agents_with_a_standing(&self) -> Vec<AgentId> {
        self.agents.all().into_iter().map(|(id, _)| id).collect()
    }

    /// Every task, ended or not, in no order.
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        self.tasks.all().into_iter().map(|(_, task)| task).collect()
    }

    /// Every task that has not ended by an entry.
    pub fn open_tasks(&self) -> Vec<Arc<Task>> {
        let mut ids: Vec<TaskId> = self
            .agent_tasks
            .all()
            .into_iter()
            .flat_map(|(_, set)| set.iter().copied().collect::<Vec<_>>())
            .collect();
        ids.sort_unstable();
        ids.iter().filter_map(|id| self.tasks.get(id)).collect()
    }

    /// What is due at the moment: news for the timer to write, decided long since by reading.
    pub fn due_by(&self, now: Timestamp, max: usize) -> Vec<Due> {
        self.due()
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(max)
            .map(|(_, due)| *due)
            .collect()
    }

    /// The entry that holds an answer of gate 2.
    pub fn decision_index(&self, id: &DecisionId) -> Option<u64> {
        self.decisions.get(id)
    }

    /// What was asked and decided before, counted.
    pub const fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Indexes of the entries of a task, in order, and how many in their midst are not listed: at most
    /// [`TRACE_MAX`] are.
    pub fn entries_of(&self, task: &TaskId) -> (Vec<u64>, u64) {
        self.traces.of(task)
    }

    /// (epoch, index of the last entry folded).
    pub fn position(&self) -> (u64, u64) {
        (
            self.epoch.load(Ordering::SeqCst),
            self.folded.load(Ordering::SeqCst).saturating_sub(1),
        )
    }

    /// At most `max` events of the revocation feed above an index, or from the start; and the index of the last event
    /// there is, as of the same moment.
    pub fn feed_after(&self, after: Option<u64>, max: usize) -> (Vec<Arc<FeedEvent>>, Option<u64>) {
        self.feed.after(after, max)
    }

    /// Index of the first feed event at or after a moment.
    pub fn feed_since(&self, moment: Timestamp) -> Option<u64> {
        self.feed.since(moment)
    }

    /// Index of the last feed event.
    pub fn feed_last(&self) -> Option<u64> {
        self.feed.last()
    }

    /// Entries that did what no table of states has. Anything but 0 is a fault of ours.
    pub fn illegal(&self) -> u64 {
        self.illegal.load(Ordering::Relaxed)
    }

    /// The whole state as one JSON value, the same for the same entries wherever they were folded (law 9).
    pub fn picture(&self) -> Value {
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
        let opens: Vec<Value> = sorted(self.opens.all())
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
        let asks: Vec<Value> = sorted(self.asks.all())
            .into_iter()
            .map(|(k, v)| json!([k, v.value, v.version]))
            .collect();
        let owner_asks: Vec<Value> = sorted(self.owner_asks.all())
            .into_iter()
            .map(|(k, v)| json!([k, v.value, v.version]))
            .collect();
        let feed: Vec<Value> = self
            .feed_after(None, usize::MAX)
            .0
            .iter()
            .map(|e| json!(**e))
            .collect();
        let due: Vec<Value> = self
            .due()
            .iter()
            .map(|(at, due)| json!([at, format!("{due:?}")]))
            .collect();
        json!({ "position": self.position(), "tasks": tasks, "requests": requests, "grants": grants, "request_ids": idempotency_keys, "opens": opens,
            "agents": agents, "freezes": freezes, "trust": trust, "keys": keys, "asks": asks, "owner_asks": owner_asks, "roster": self.roster.picture(), "feed": feed, "due": due, "illegal": self.illegal(),
            "figures": self.figures.picture(), "traces": self.traces.picture() })
    }

    fn due(&self) -> std::sync::MutexGuard<'_, BTreeSet<(Timestamp, Due)>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sorted<K: Ord, V>(mut all: Vec<(K, V)>) -> Vec<(K, V)> {
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}
