//! In-memory state: the projection of the journal. Many threads read it; only committed entries change it.
//!
//! In: [`crate::journal::Committed`] entries, in order. Out: what decisions read, through [`Read`], which records it; what pages and
//! lists show, through [`Show`], which no gate accepts. Each entry is checked against the state before it, by one table: what its
//! kind must have read and may advance, and the transition it makes. Trusts: the journal, that an entry was allowed. Whether a record
//! has expired is a function of the record and of the reader's `now`. Never reads a clock, never writes an entry.

pub mod action_stats;
pub mod anomaly;
mod apply;
mod concurrent_map;
mod confirmation;
mod counters;
mod credentials;
mod entry_rules;
mod event_counts;
mod feed;
mod hand_over;
mod inbox_changes;
mod intern;
mod key_registry;
mod named_facts;
mod parsed;
mod people;
mod read;
mod record_streams;
mod records;
mod show;
pub mod stats;
mod task_entries;
mod transitions;
mod trust;
mod versions;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use serde_json::{Value, json};

use crate::jose::PublicKey;
use crate::journal::{Committed, Fold, IllegalEntry};
use crate::model::*;
use crate::policy::{
    ActivePolicy, Person, PolicyBundle, RegisteredCaller, Role, StepUpProfile, VoteMethod,
};

pub use feed::{FeedEvent, Selector};
pub use record_streams::DecisionInput;
pub use records::{
    AccessRequest, AccessRequestHistory, Ended, FreezeMarker, FreezeOrder, FreezeStatus, Grant,
    Lease, StoredStatus, TaskRecord, TokenUse, VoteRecord,
};

pub use concurrent_map::ArcMap;
pub use confirmation::{ConfirmationRefusal, Falls, PersonKey};
pub use credentials::{Additions, Invitation, Passkey, PasskeyConfirmation, PersonCredentials};
pub use entry_rules::OPEN_TASKS_MAX;
use event_counts::EventCounts;
pub use hand_over::HandOverFault;
pub use inbox_changes::{InboxChange, InboxChangeKind};
pub use key_registry::{KeyHolder, KeyNames, KeyRecord, KeyRefusal, KeyStanding, KeyUse};
pub use named_facts::{FactHistory, FactSetting};
use people::person_changes;
pub use people::{
    PeopleRegistration, PersonChange, PersonChangeKind, PersonGain, RecoveryRecord,
    RegistrationError, people_sentences,
};
pub use read::{Draft, DraftError, KeyOutcome, NamedFacts, PeopleCredentials, Read, Recorded};
pub use show::{EntryRuleView, Show, Shown};
pub use task_entries::TASK_ENTRIES_MAX;
pub use trust::{Trust, TrustedDomain};

use concurrent_map::CopyMap;
use credentials::CredentialStore;
use feed::Feed;
use inbox_changes::InboxChangeLog;
use intern::Interner;
use key_registry::KeyRegistry;
pub use parsed::BundleCache;
use parsed::Parsed;
use records::IdempotencyOutcome;
use stats::DecisionStats;
use task_entries::TaskEntryIndex;
use versions::Versions;

/// The JWT-SVID keys of a trust domain that verify evidence now.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct TrustedKeys {
    /// Blob: the trust bundle; absent before the domain's first bundle.
    pub bundle: Option<Digest>,
    /// The keys in it.
    pub kids: BTreeSet<KeyId>,
}

/// The state of one broker, as of the last entry applied. It has no public reader: see [`Read`] and [`Show`].
#[derive(Debug, Default)]
pub struct State {
    versions: Versions,
    parsed: Parsed,
    tasks: ArcMap<TaskId, TaskRecord>,
    tasks_by_idempotency_key: ArcMap<(AgentId, Thumbprint, IdempotencyKey), TaskId>,
    agents: ArcMap<AgentId, AgentStatus>,
    freezes: ArcMap<FreezeScope, FreezeStatus>,
    facts: ArcMap<FactName, FactSetting>,
    fact_histories: ArcMap<FactName, FactHistory>,
    event_counts: EventCounts,
    trust: ArcMap<TrustDomain, TrustedKeys>,
    keys: ArcMap<KeyId, Value>,
    requests: ArcMap<AccessRequestId, AccessRequest>,
    grants: ArcMap<TokenId, Grant>,
    idempotency_keys: CopyMap<(TaskId, IdempotencyKey), IdempotencyOutcome>,
    histories: ArcMap<AgentId, AccessRequestHistory>,
    owner_pending: ArcMap<PersonId, BTreeSet<(Timestamp, AccessRequestId)>>,
    credentials: CredentialStore,
    key_registry: KeyRegistry,
    /// For pages and logs: no decision reads it.
    recovery: ArcSwapOption<RecoveryRecord>,
    /// The operators who have ever held a living key.
    operators_ever: Mutex<BTreeSet<PersonId>>,
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
    /// An empty state that shares parsed policy bundles with others.
    pub fn with_bundles(bundles: Arc<BundleCache>) -> Self {
        Self {
            parsed: Parsed::with_bundles(bundles),
            ..Self::default()
        }
    }

    /// A round of reading for a decision, which records every stream that it looks at.
    pub(crate) fn read(self: &Arc<Self>) -> Read {
        Read::new(Arc::clone(self))
    }

    /// What pages and lists show.
    pub const fn show(&self) -> Show<'_> {
        Show::new(self)
    }

    /// Whether every stream still has the version that was read.
    pub(crate) fn holds(&self, read: &crate::journal::ReadSet) -> bool {
        read.iter()
            .all(|(stream, version)| self.versions.get(stream) == *version)
    }

    /// Keeps a parsed bundle for the entry that will put it in force, so that it is not parsed twice.
    pub(crate) fn stage_bundle(&self, bundle: Arc<PolicyBundle>) {
        self.parsed.stage(bundle);
    }

    /// Drops a parsed bundle whose entry was not appended.
    pub(crate) fn unstage_bundle(&self, version: &Digest) {
        self.parsed.unstage(version);
    }

    /// The first entry whose content could not be parsed; the broker does not open with one.
    pub fn failure(&self) -> Option<String> {
        self.parsed.failure()
    }

    fn rules(&self) -> Option<Arc<ActivePolicy>> {
        self.parsed.rules()
    }

    /// Whether a key may act for its holder now: it is the holder's on record, lives, and the holder is registered with it.
    fn may_act(&self, holder: &KeyHolder, key: Thumbprint) -> Result<(), KeyRefusal> {
        let names = self.key_registry.names(key).ok_or(KeyRefusal::Unknown)?;
        self.key_registry.check(&names, KeyUse::Act(holder))?;
        let registered = self.rules().and_then(|rules| rules.by_key(key));
        let is_registered = match (holder, registered) {
            (KeyHolder::Person(person), Some(RegisteredCaller::Person(of))) => *person == of,
            (KeyHolder::Service(service), Some(RegisteredCaller::Service(of))) => *service == of,
            (KeyHolder::Person(person), None) => {
                self.credentials.get(person).passkey(key).is_some()
            }
            (_, _) => false,
        };
        match is_registered {
            true => Ok(()),
            false => Err(KeyRefusal::Unknown),
        }
    }

    /// The keys that may act for a person now: those of `people.toml`, then passkeys.
    fn living_keys(&self, person: &PersonId) -> Vec<Thumbprint> {
        let holder = KeyHolder::Person(person.clone());
        let rules = self.rules();
        let registered = rules.as_ref().and_then(|rules| rules.bundle.person(person));
        let registered = registered.into_iter().flat_map(|p| p.keys.iter());
        let enrolled = self.credentials.get(person);
        let passkeys = enrolled.passkeys.iter().map(|p| p.record.key);
        registered
            .map(PublicKey::thumbprint)
            .chain(passkeys)
            .filter(|key| self.may_act(&holder, *key).is_ok())
            .collect()
    }

    /// The operators of a bundle who could act under it with a key of `people.toml`: nobody else can freeze, revoke and apply.
    /// Without `dead`, which are to be revoked. `task_keys_count`: a key that opened a task in the same moment counts, for an audit.
    fn governors(
        &self,
        bundle: &PolicyBundle,
        returning: &BTreeSet<PersonId>,
        dead: &[Thumbprint],
        task_keys_count: bool,
    ) -> Vec<PersonId> {
        let dead: Vec<KeyIdentity> = dead
            .iter()
            .filter_map(|key| self.key_registry.identity(*key))
            .collect();
        let can_act = |person: &&Person| {
            let holder = KeyHolder::Person(person.id.clone());
            let wanted = KeyUse::Register {
                holder: &holder,
                returning: returning.contains(&person.id),
            };
            let lives = |key: &PublicKey| {
                !dead.contains(&key.identity())
                    && match self.key_registry.check(&key.into(), wanted) {
                        Ok(()) => true,
                        Err(KeyRefusal::Task(_)) => task_keys_count,
                        Err(_) => false,
                    }
            };
            person.roles.contains(&Role::Operator) && person.keys.iter().any(lives)
        };
        let people = bundle.people().filter(can_act);
        people.map(|person| person.id.clone()).collect()
    }

    fn operators_ever(&self) -> MutexGuard<'_, BTreeSet<PersonId>> {
        self.operators_ever
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The profile of the people who agree to a change of the policy bundle in force; `None` when its operator alone may change it.
    fn change_profile(&self) -> Option<StepUpProfile> {
        let profile = self.rules()?.bundle.change_profile()?;
        // The default asks for another operator once there ever were two.
        let is_first = profile.role == Role::Operator && self.operators_ever().len() < 2;
        (!is_first).then_some(profile)
    }

    /// Whether some operator of a bundle could change it, under its own rule of changes: alone, or with enough others who could agree.
    fn change_is_possible(&self, bundle: &PolicyBundle, returning: &BTreeSet<PersonId>) -> bool {
        let governors = self.governors(bundle, returning, &[], false);
        let Some(profile) = bundle.change_profile() else {
            return !governors.is_empty();
        };
        let ever: BTreeSet<PersonId> = self
            .operators_ever()
            .iter()
            .chain(&governors)
            .cloned()
            .collect();
        if profile.role == Role::Operator && ever.len() < 2 {
            return !governors.is_empty();
        }
        let rules = self.rules();
        let changes = person_changes(
            rules.as_ref().map(|rules| &*rules.bundle),
            bundle,
            returning,
        );
        let able = |person: &&Person| {
            let registered = person.keys.iter().any(|key| {
                let holder = KeyHolder::Person(person.id.clone());
                let wanted = KeyUse::Register {
                    holder: &holder,
                    returning: returning.contains(&person.id),
                };
                self.key_registry.check(&key.into(), wanted).is_ok()
            });
            // One that nobody confirmed agrees to no change.
            let enrolled = self.credentials.get(&person.id);
            let change = changes.iter().find(|change| change.person == person.id);
            let none = Vec::new();
            let (passkeys, back) = match change.map(|change| &change.kind) {
                Some(PersonChangeKind::Returned) => (&enrolled.passkeys, &enrolled.left),
                Some(PersonChangeKind::Narrowed { .. }) | None => (&enrolled.passkeys, &none),
                Some(
                    PersonChangeKind::Left
                    | PersonChangeKind::LostRoles(_)
                    | PersonChangeKind::Came,
                ) => (&none, &none),
            };
            let mut counting = passkeys.iter().chain(back);
            let has_passkey = counting.any(|p| p.confirmation.is_some());
            let by_key = profile.method == VoteMethod::Key && registered;
            profile.takes(person) && (by_key || has_passkey)
        };
        let voters: Vec<&PersonId> = bundle.people().filter(able).map(|p| &p.id).collect();
        let quorum = usize::try_from(profile.quorum).unwrap_or(usize::MAX);
        governors
            .iter()
            .any(|proposer| voters.iter().filter(|voter| **voter != proposer).count() >= quorum)
    }

    /// The owner of an agent under the policy bundle in force.
    fn owner_now(&self, agent: &AgentId) -> Option<PersonId> {
        let registered = self.rules()?.bundle.agent(agent)?;
        Some(registered.owner.clone())
    }

    fn is_suspended(&self, agent: &AgentId) -> bool {
        self.agents
            .get(agent)
            .is_some_and(|status| status.suspended)
    }

    fn is_frozen(&self, scope: &FreezeScope) -> bool {
        let status = self.freezes.get(scope);
        status.is_some_and(|status| status.in_force.is_some())
    }

    /// The first entry that froze the action of a grant after the grant was issued. (Wider freezes end the task.)
    fn action_frozen_at(&self, grant: &Grant) -> Option<FreezeOrder> {
        let scope = FreezeScope::Action(grant.issued.action.action.clone());
        let status = self.freezes.get(&scope)?;
        let later = status.orders.partition_point(|o| o.index <= grant.index);
        status.orders.get(later).copied()
    }

    /// The first entry that ended a grant, before it expired: its own end, a freeze of its action, or the end of its task.
    fn first_end(&self, grant: &Grant) -> Option<Ended> {
        let frozen = self.action_frozen_at(grant).map(|order| Ended {
            cause: EndCause::Frozen,
            index: order.index,
            at: order.at,
            outcome: None,
        });
        let task = self.tasks.get(&grant.issued.task);
        [grant.ended, frozen, task.and_then(|task| task.ended)]
            .into_iter()
            .flatten()
            .min_by_key(|ended| ended.index)
            .filter(|ended| ended.at.secs() < grant.issued.exp)
    }

    /// Whether the key that verified this evidence is still trusted.
    fn is_trusted(&self, evidence: &EvidenceFacts) -> bool {
        self.trust
            .get(&evidence.subject.trust_domain())
            .is_some_and(|keys| keys.kids.contains(&evidence.kid))
    }

    fn requests_of_task(&self, task: &TaskId) -> Vec<Arc<AccessRequest>> {
        self.task_requests
            .get(task)
            .map(|ids| ids.iter().filter_map(|id| self.requests.get(id)).collect())
            .unwrap_or_default()
    }

    fn open_tasks_of(&self, agent: &AgentId) -> Vec<TaskId> {
        self.agent_tasks
            .get(agent)
            .map(|set| set.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Every task that no entry has ended, sorted by id.
    fn open_tasks(&self) -> Vec<Arc<TaskRecord>> {
        let mut ids: Vec<TaskId> = self
            .agent_tasks
            .all()
            .into_iter()
            .flat_map(|(_, set)| set.iter().copied().collect::<Vec<_>>())
            .collect();
        ids.sort_unstable();
        ids.iter().filter_map(|id| self.tasks.get(id)).collect()
    }

    /// Every access request that no entry has closed, sorted by id; expired ones included.
    fn unclosed_requests(&self) -> Vec<AccessRequestId> {
        let mut all: Vec<_> = self
            .owner_pending
            .all()
            .into_iter()
            .flat_map(|(_, of)| of.iter().map(|(_, id)| *id).collect::<Vec<_>>())
            .collect();
        all.sort_unstable();
        all
    }

    /// Why a grant is no longer valid by journal and time; `None` while it is. Does not evaluate the rules in force.
    fn end_cause(&self, grant: &Grant, now: Timestamp) -> Option<EndCause> {
        if let Some(ended) = grant.ended {
            return Some(ended.cause);
        }
        if now.secs() >= grant.issued.exp {
            return Some(EndCause::Deadline);
        }
        if self.action_frozen_at(grant).is_some() {
            return Some(EndCause::Frozen);
        }
        // Fail closed: a grant whose task is missing is not valid.
        let Some(task) = self.tasks.get(&grant.issued.task) else {
            return Some(EndCause::Deadline);
        };
        let agent = &grant.issued.agent;
        let is_owner_frozen = || {
            let owner = self.owner_now(agent);
            owner.is_some_and(|owner| self.is_frozen(&FreezeScope::Owner(owner)))
        };
        match task
            .ended
            .map(|ended| ended.cause)
            .or(task.expired_cause(now))
        {
            Some(cause) => Some(cause),
            None if self.is_suspended(agent) => Some(EndCause::Suspended),
            None if !self.is_trusted(&grant.issued.evidence) => Some(EndCause::Trust),
            None if is_owner_frozen() => Some(EndCause::Frozen),
            None => None,
        }
    }

    /// (epoch, index of the last entry applied).
    fn position(&self) -> (u64, u64) {
        (
            self.epoch.load(Ordering::SeqCst),
            self.applied.load(Ordering::SeqCst).saturating_sub(1),
        )
    }

    fn deadlines(&self) -> std::sync::MutexGuard<'_, BTreeSet<(Timestamp, Deadline)>> {
        self.deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// State as the journal folds entries into it.
#[derive(Debug)]
pub struct StateFold<F> {
    state: Arc<State>,
    /// Called after each entry was folded in.
    after: F,
}

impl<F: FnMut(&Committed) + Send> StateFold<F> {
    /// A fold into a state.
    pub const fn new(state: Arc<State>, after: F) -> Self {
        Self { state, after }
    }
}

impl<F: FnMut(&Committed) + Send> Fold for StateFold<F> {
    fn version(&self, stream: &Stream) -> Version {
        self.state.versions.get(stream)
    }

    fn check(&self, entry: &Entry) -> Result<(), IllegalEntry> {
        entry_rules::check(entry, &self.state)
    }

    fn count(&self, counter: &Counter, at: Timestamp) -> u64 {
        self.state.count(counter, at)
    }

    fn apply(&mut self, committed: &Committed) {
        self.state.apply(committed);
        (self.after)(committed);
    }
}

impl State {
    /// A count that claims bound.
    fn count(&self, counter: &Counter, at: Timestamp) -> u64 {
        let pending = |waiting: &BTreeSet<(Timestamp, AccessRequestId)>| {
            let expired = waiting
                .iter()
                .take_while(|(expires_at, _)| *expires_at <= at);
            waiting.len() - expired.count()
        };
        let count = match counter {
            Counter::OpenTasks(agent) => self.agent_tasks.get(agent).map_or(0, |set| set.len()),
            Counter::PendingRequests(agent) => self
                .histories
                .get(agent)
                .map_or(0, |of| pending(&of.pending)),
            Counter::OwnerPendingRequests(owner) => {
                self.owner_pending.get(owner).map_or(0, |of| pending(&of))
            }
            Counter::Openings(agent) => self
                .histories
                .get(agent)
                .map_or(0, |of| of.openings_since(at.plus_secs(-OPENINGS_WINDOW_S))),
        };
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// The whole state as one JSON value, for tests: equal wherever the same entries were applied (INV-9).
    fn canonical_snapshot(&self) -> Value {
        let tasks: Vec<Value> = sorted(self.tasks.all())
            .into_iter()
            .map(|(id, t)| json!([id, t.ended, t.lease]))
            .collect();
        let requests: Vec<Value> = sorted(self.requests.all())
            .into_iter()
            .map(|(id, r)| {
                json!([
                    id,
                    r.status,
                    r.version,
                    r.votes.len(),
                    r.action.is_some(),
                    r.decision.as_deref()
                ])
            })
            .collect();
        let grants: Vec<Value> = sorted(self.grants.all())
            .into_iter()
            .map(|(id, g)| json!([id, g.ended, g.uses, g.kids, g.action.is_some()]))
            .collect();
        let idempotency_keys: Vec<Value> = sorted(self.idempotency_keys.all())
            .into_iter()
            .map(|(k, at)| json!([k, at]))
            .collect();
        let opened: Vec<Value> = sorted(self.tasks_by_idempotency_key.all())
            .into_iter()
            .map(|(k, t)| json!([k, *t]))
            .collect();
        let agents: Vec<Value> = sorted(self.agents.all())
            .into_iter()
            .map(|(id, a)| json!([id, a.suspended]))
            .collect();
        let freezes: Vec<Value> = sorted(self.freezes.all())
            .into_iter()
            .map(|(scope, at)| json!([scope, at.in_force.is_some(), at.orders]))
            .collect();
        let facts: Vec<Value> = sorted(self.facts.all())
            .into_iter()
            .map(|(name, setting)| json!([name, *setting]))
            .collect();
        let fact_histories: Vec<Value> = sorted(self.fact_histories.all())
            .into_iter()
            .map(|(name, history)| json!([name, *history]))
            .collect();
        let trust: Vec<Value> = sorted(self.trust.all())
            .into_iter()
            .map(|(d, t)| json!([d, *t]))
            .collect();
        let keys: Vec<Value> = sorted(self.keys.all())
            .into_iter()
            .map(|(k, v)| json!([k, *v]))
            .collect();
        let histories: Vec<Value> = sorted(self.histories.all())
            .into_iter()
            .map(|(k, v)| json!([k, *v]))
            .collect();
        let owner_pending: Vec<Value> = sorted(self.owner_pending.all())
            .into_iter()
            .map(|(k, v)| json!([k, *v]))
            .collect();
        let feed: Vec<Value> = self
            .feed
            .after(None, usize::MAX)
            .0
            .iter()
            .map(|e| json!(**e))
            .collect();
        let deadlines: Vec<Value> = self
            .deadlines()
            .iter()
            .map(|(at, deadline)| json!([at, format!("{deadline:?}")]))
            .collect();
        json!({ "position": self.position(), "versions": self.versions.canonical_snapshot(), "tasks": tasks, "requests": requests, "grants": grants, "idempotency_keys": idempotency_keys, "opened": opened,
            "agents": agents, "freezes": freezes, "facts": facts, "fact_histories": fact_histories, "event_counts": self.event_counts.canonical_snapshot(), "trust": trust, "keys": keys, "histories": histories, "owner_pending": owner_pending, "credentials": self.credentials.canonical_snapshot(), "key_registry": self.key_registry.canonical_snapshot(), "recovery": self.recovery.load().as_deref(), "operators_ever": *self.operators_ever(), "feed": feed, "deadlines": deadlines,
            "stats": self.stats.canonical_snapshot(), "task_entries": self.task_entries.canonical_snapshot() })
    }
}

fn sorted<K: Ord, V>(mut all: Vec<(K, V)>) -> Vec<(K, V)> {
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}
