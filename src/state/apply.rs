//! Applying entries to state: what each kind of entry changes. Nothing else writes to state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::key_registry::KeyHolder;
use super::people::{PersonChangeKind, RecoveryRecord, person_changes, person_gains};
use super::records::{AccessEvent, DENIALS_KEPT_MAX, OPENINGS_KEPT_MAX};
use super::{
    AccessRequest, Deadline, Ended, FreezeMarker, FreezeOrder, Grant, IdempotencyOutcome, Lease,
    Selector, State, StoredStatus, TaskRecord, TokenUse, TrustedKeys, VoteRecord,
};
use crate::jose::AuthenticatorKey;
use crate::journal::Committed;
use crate::model::*;
use crate::policy::{ActivePolicy, PolicyBundle, Role};

impl State {
    /// Applies the next entry. The journal calls it in order, after the commit and before it answers the append.
    ///
    /// INVARIANT (a change has a stream): a record that decisions read changes only under a stream that the entry advances. Its
    /// streams are marked while the records change, and get their new version after the last change.
    pub(super) fn apply(&self, committed: &Committed) {
        let entry = committed.entry();
        let version = entry.index + 1;
        // First: statistics compare the entry with the state before it.
        self.stats.record(entry, self);
        self.index_entry(entry);
        let counted = self.counted_event(&entry.event);
        self.versions.begin(&entry.write_set);
        self.apply_event(committed);
        let before = self.rules();
        self.parsed.apply(committed);
        if let Event::PolicyApplied(f) = &entry.event {
            self.apply_people(before.as_deref(), f, entry);
        }
        self.apply_counted(counted.as_ref(), entry);
        self.versions.publish(&entry.write_set, version);
        // Before the position: a reader of the position finds every inbox change up to it.
        self.inbox_changes.apply(entry);
        self.epoch.store(entry.epoch, Ordering::SeqCst);
        self.applied.store(entry.index + 1, Ordering::SeqCst);
    }

    fn apply_event(&self, committed: &Committed) {
        let entry = committed.entry();
        match &entry.event {
            Event::EpochStarted(_)
            | Event::PolicyApplied(_)
            | Event::VoteRefused(_)
            | Event::RefusalsCounted(_) => {}
            Event::TrustBundleChanged(f) => {
                let keys = TrustedKeys {
                    bundle: Some(f.bundle),
                    kids: f.kids.iter().cloned().collect(),
                };
                self.trust.insert(f.domain.clone(), keys);
            }
            Event::KeyPublished(f) => self.keys.insert(f.kid.clone(), f.jwk.clone()),
            Event::AgentSuspended(f) => {
                self.agents
                    .insert(f.agent.clone(), AgentStatus { suspended: true });
                let tasks: Vec<TaskId> = self.open_tasks_of(&f.agent);
                self.end_tasks(&tasks, EndCause::Suspended, None, entry);
                self.close_recommendations(entry, |executor| executor.agent == f.agent);
                self.push_feed(entry, Selector::Agent(f.agent.clone()));
            }
            Event::AgentResumed(f) => {
                self.agents
                    .insert(f.agent.clone(), AgentStatus { suspended: false });
                // Denials before a suspension do not count towards the next one.
                self.histories
                    .update_or_default(f.agent.clone(), |history| history.denials.clear());
            }
            Event::Frozen(f) => self.apply_frozen(f, committed),
            Event::Unfrozen(f) => self
                .freezes
                .update_or_default(f.scope.clone(), |status| status.in_force = None),
            Event::TaskOpened(f) => self.apply_task_opened(f, committed),
            Event::LeasesExtended(f) => {
                for (task, until) in &f.leases {
                    self.apply_lease_extended(task, *until);
                }
            }
            Event::TaskEnded(f) => {
                self.end_tasks(&f.tasks, f.cause, f.outcome, entry);
                self.push_feed(entry, Selector::Tasks(f.tasks.clone()));
            }
            // The idempotency key stays undecided: it may be allowed later.
            Event::RequestDenied(f) => self.decisions.insert(f.id, entry.index),
            Event::AccessRequestOpened(f) => self.apply_access_request_opened(f, committed),
            Event::AccessRequestReassessed(f) => {
                self.decisions.insert(f.decision.id, entry.index);
                self.requests
                    .update(&f.access_request, |request| AccessRequest {
                        decision: Some(Arc::new(f.decision.clone())),
                        required_since: entry.at,
                        version: entry.index + 1,
                        ..request.clone()
                    });
            }
            Event::VoteCast(f) => self.apply_vote(f, committed),
            Event::AccessRequestClosed(f) => {
                self.apply_access_event(f.access_request, AccessEvent::Closed(f.cause), entry);
                if f.voting_started {
                    self.count_denial(&f.access_request, entry.at);
                }
            }
            Event::ApproverInvited(f) => self.credentials.apply_invited(f, entry.index),
            Event::ApproverEnrolled(f) => {
                // No entry with a key that cannot be read gets here.
                if let Ok(key) = AuthenticatorKey::from_jwk(&f.passkey.jwk) {
                    let holder = KeyHolder::Person(f.person.clone());
                    self.key_registry.add(&(&key).into(), holder, true);
                }
                self.credentials.apply_enrolled(f, entry.index, entry.at);
                if let Some(rules) = self.rules() {
                    self.note_operators(&rules.bundle);
                }
            }
            Event::PasskeyConfirmed(f) => self.credentials.apply_confirmed(f, entry),
            Event::ApproverKeysRevoked(f) => {
                let falls = self.falls_of(f);
                if f.cause != RevokeCause::Operator {
                    let records = self.key_registry.records_of(&f.person).into_iter();
                    let others = records.filter(|_| f.all).map(|known| known.thumbprint);
                    let stolen = f.keys.iter().copied().chain(others);
                    self.key_registry.mark_stolen(&stolen.collect::<Vec<_>>());
                }
                let fallen = falls.dead.iter().map(|(_, key)| key);
                for key in f.keys.iter().chain(fallen) {
                    self.key_registry.revoke(*key);
                }
                if f.all {
                    self.key_registry.revoke_all(&f.person);
                }
                self.credentials.apply_revoked(f, &falls);
                self.close_proposals(entry, |by| {
                    by.person == f.person && !self.living_keys(&f.person).contains(&by.key)
                });
            }
            Event::FactSet(f) => self.apply_fact_set(f, committed),
            Event::TokenIssued(f) => self.apply_token_issued(f, committed),
            Event::TokenReissued(f) => self.grants.update(&f.jti, |g| {
                let mut kids = g.kids.to_vec();
                if !kids.contains(&f.kid) {
                    kids.push(f.kid.clone());
                }
                Grant {
                    kids: kids.into(),
                    ..g.clone()
                }
            }),
            Event::TokenConsumed(f) => self.grants.update(&f.jti, |g| {
                let mut uses = g.uses.clone();
                uses.push(TokenUse {
                    validator: f.validator.clone(),
                    use_id: f.use_id.clone(),
                    index: entry.index,
                });
                Grant { uses, ..g.clone() }
            }),
            Event::GrantsEnded(f) => {
                let ended = Ended {
                    cause: f.cause,
                    index: entry.index,
                    at: entry.at,
                    outcome: None,
                };
                for jti in &f.jtis {
                    self.grants.update(jti, |g| Grant {
                        ended: g.ended.or(Some(ended)),
                        ..g.clone()
                    });
                }
                self.push_feed(entry, Selector::Tokens(f.jtis.clone()));
            }
        }
    }

    /// What the bundle in force changes for people, and the keys it registers.
    fn apply_people(&self, before: Option<&ActivePolicy>, f: &PolicyApplied, entry: &Entry) {
        let Some(rules) = self.rules() else {
            return;
        };
        let bundle = &rules.bundle;
        let before = before.map(|rules| &*rules.bundle);
        if let Some(recovery) = &f.recovery {
            // First: what leaves with an operator may return, and a lost key may not.
            let lost = before
                .filter(|_| recovery.operators_lost)
                .map(|before| self.lost_operator_keys(before, bundle))
                .unwrap_or_default();
            let stolen: Vec<Thumbprint> = lost.iter().map(|(_, key)| *key).collect();
            self.credentials
                .apply_unconfirmed(&self.falls_with(&stolen).unconfirmed);
            self.key_registry.mark_stolen(&stolen);
            for (person, key) in lost {
                self.key_registry.revoke(key);
                self.credentials.apply_lost(&person, key);
            }
            self.recovery.store(Some(Arc::new(RecoveryRecord {
                index: entry.index,
                at: entry.at,
                recovery: recovery.clone(),
            })));
        }
        for change in person_changes(before, bundle, &f.returning) {
            let person = &change.person;
            match change.kind {
                PersonChangeKind::Left => self.key_registry.set_left(person, false),
                PersonChangeKind::LostRoles(_) => self.key_registry.set_left(person, true),
                PersonChangeKind::Narrowed { .. } => {}
                PersonChangeKind::Came => self.key_registry.end_left(person),
                PersonChangeKind::Returned => self.key_registry.restore(person),
            }
            self.credentials
                .apply_change(&change, entry.index, entry.at);
        }
        // After the changes: another person with the id has nothing of the former one's.
        for gain in person_gains(before, bundle) {
            self.credentials.apply_gain(&gain, entry.index);
        }
        self.key_registry.register(bundle);
        if let Some(id) = f.proposal {
            self.apply_access_event(id, AccessEvent::Applied, entry);
        }
        self.apply_declared_facts(bundle, entry);
        self.apply_declared_counts(before, bundle, entry.at);
        // A proposal is for the bundle that it would replace.
        self.close_proposals(entry, |_| true);
        if f.recovery.is_some() {
            // The owner of the host says who governs: a second hand is asked for once there are two again.
            self.operators_ever().clear();
        }
        self.note_operators(bundle);
    }

    /// Closes pending proposals: the policy bundle or the key that they rest on is not what it was.
    pub(super) fn close_proposals(
        &self,
        entry: &Entry,
        is_void: impl Fn(&PersonRequester) -> bool,
    ) {
        let pending: Vec<AccessRequestId> = self
            .owner_pending
            .all()
            .iter()
            .flat_map(|(_, of)| of.iter().map(|(_, id)| *id).collect::<Vec<_>>())
            .collect();
        for id in pending {
            let request = self.requests.get(&id);
            let by = request.as_ref().and_then(|r| r.opened.by_person());
            if by.is_some_and(&is_void) {
                self.apply_access_event(id, AccessEvent::Closed(CloseCause::Policy), entry);
            }
        }
    }

    /// Remembers the operators who hold a living key: once there were two, the default rule of changes asks for another operator.
    fn note_operators(&self, bundle: &PolicyBundle) {
        let operators = bundle
            .people()
            .filter(|person| person.roles.contains(&Role::Operator))
            .filter(|person| !self.living_keys(&person.id).is_empty());
        let operators: Vec<PersonId> = operators.map(|person| person.id.clone()).collect();
        self.operators_ever().extend(operators);
    }

    fn push_feed(&self, entry: &Entry, selector: Selector) {
        self.feed.push(entry.epoch, entry.index, entry.at, selector);
    }

    /// Adds the entry to the index of each task it is about.
    fn index_entry(&self, entry: &Entry) {
        let of_request = |id: &AccessRequestId| self.requests.get(id)?.opened.task();
        let of_grant = |jti: &TokenId| self.grants.get(jti).map(|g| g.issued.task);
        let task = match &entry.event {
            Event::TaskOpened(f) => Some(f.task),
            Event::RequestDenied(f) => Some(f.task),
            Event::AccessRequestOpened(f) => f.task(),
            Event::AccessRequestReassessed(f) => of_request(&f.access_request),
            Event::VoteCast(f) => of_request(&f.access_request),
            Event::VoteRefused(f) => of_request(&f.access_request),
            Event::AccessRequestClosed(f) => of_request(&f.access_request),
            Event::TokenIssued(f) => {
                // What executes a recommendation is about the task that it was made in, too.
                let recommended = f.consumed.as_ref().and_then(of_request);
                if let Some(other) = recommended.filter(|task| *task != f.task) {
                    self.task_entries.push(other, entry.index);
                }
                Some(f.task)
            }
            Event::TokenReissued(f) => of_grant(&f.jti),
            Event::TokenConsumed(f) => of_grant(&f.jti),
            Event::TaskEnded(f) => {
                for task in &f.tasks {
                    self.task_entries.push(*task, entry.index);
                }
                None
            }
            Event::GrantsEnded(f) => {
                let tasks: BTreeSet<TaskId> = f.jtis.iter().filter_map(of_grant).collect();
                for task in tasks {
                    self.task_entries.push(task, entry.index);
                }
                None
            }
            // Entries that end many tasks at once are found by the end of each task; heartbeats are not listed.
            Event::AgentSuspended(_)
            | Event::Frozen(_)
            | Event::LeasesExtended(_)
            | Event::EpochStarted(_)
            | Event::TrustBundleChanged(_)
            | Event::KeyPublished(_)
            | Event::PolicyApplied(_)
            | Event::AgentResumed(_)
            | Event::Unfrozen(_)
            | Event::FactSet(_)
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
            | Event::PasskeyConfirmed(_)
            | Event::ApproverKeysRevoked(_)
            | Event::RefusalsCounted(_) => None,
        };
        if let Some(task) = task {
            self.task_entries.push(task, entry.index);
        }
    }

    fn apply_frozen(&self, f: &Frozen, committed: &Committed) {
        let entry = committed.entry();
        let reason = f
            .reason
            .and_then(|hash| committed.blob(&hash))
            .and_then(|text| UntrustedText::from_blob(text));
        let frozen = FreezeMarker {
            index: entry.index,
            at: entry.at,
            by: f.by.clone(),
            reason,
        };
        // First: a page that sees the end of a task below finds the freeze that ended it.
        self.freezes.update_or_default(f.scope.clone(), |status| {
            status.in_force = Some(frozen);
            status.orders.push(FreezeOrder {
                index: entry.index,
                at: entry.at,
            });
        });
        let (tasks, selector) = match &f.scope {
            FreezeScope::All => (
                self.open_tasks().iter().map(|t| t.opened.task).collect(),
                Selector::All,
            ),
            FreezeScope::Agent(agent) => {
                (self.open_tasks_of(agent), Selector::Agent(agent.clone()))
            }
            FreezeScope::Owner(owner) => self.tasks_of_owner(owner),
            FreezeScope::Action(action) => {
                for id in self.unclosed_requests() {
                    let of_action = |r: &Arc<AccessRequest>| r.opened.action.action == *action;
                    if self.requests.get(&id).as_ref().is_some_and(of_action) {
                        let event = AccessEvent::Closed(CloseCause::Frozen);
                        self.apply_access_event(id, event, entry);
                    }
                }
                // Its grants end by the freeze's index, in constant time however many there are.
                (Vec::new(), Selector::Action(action.clone()))
            }
        };
        self.end_tasks(&tasks, EndCause::Frozen, None, entry);
        self.close_recommendations(entry, |executor| match &f.scope {
            FreezeScope::All => true,
            FreezeScope::Agent(agent) => executor.agent == *agent,
            FreezeScope::Owner(owner) => {
                executor.owner == *owner || self.owner_now(&executor.agent).as_ref() == Some(owner)
            }
            FreezeScope::Action(_) => false,
        });
        self.push_feed(entry, selector);
    }

    /// Closes the pending recommendations to executors that are suspended or frozen: what was approved before counts no more after it.
    fn close_recommendations(&self, entry: &Entry, is_in_scope: impl Fn(&Executor) -> bool) {
        for id in self.recommended_to(is_in_scope) {
            let request = self.requests.get(&id);
            // One whose task has ended is closed by that.
            let task = request.and_then(|r| self.tasks.get(&r.opened.task()?));
            if task.is_some_and(|task| task.ended.is_none()) {
                self.apply_access_event(id, AccessEvent::Closed(CloseCause::Frozen), entry);
            }
        }
    }

    /// The running tasks that an owner answers for: those of agents registered as the owner's now, and those opened under that owner
    /// by agents that have another one now. The selector fits into one message: where the tasks are too many it names their agents,
    /// and where those are too many, everything. So a validator that is offline may refuse more than was ended, never less.
    fn tasks_of_owner(&self, owner: &PersonId) -> (Vec<TaskId>, Selector) {
        let mut agents: BTreeSet<AgentId> = self
            .rules()
            .map(|rules| {
                let agents = rules.bundle.agents();
                let owned = agents.filter(|agent| agent.owner == *owner);
                owned.map(|agent| agent.id.clone()).collect()
            })
            .unwrap_or_default();
        let owned = agents.clone();
        let mut tasks = Vec::new();
        for task in self.open_tasks() {
            let agent = &task.opened.agent;
            if owned.contains(agent) || task.opened.owner == *owner {
                tasks.push(task.opened.task);
                agents.insert(agent.clone());
            }
        }
        let changed_hands = agents.len() > owned.len();
        let selector = if changed_hands && tasks.len() <= SELECTOR_MAX {
            Selector::Tasks(tasks.clone())
        } else if agents.len() <= SELECTOR_MAX {
            Selector::Agents(agents.into_iter().collect())
        } else {
            Selector::All
        };
        (tasks, selector)
    }

    fn apply_lease_extended(&self, id: &TaskId, until: Timestamp) {
        // INVARIANT (an end is final): a heartbeat after it changes nothing.
        let open = self.tasks.get(id).filter(|t| t.ended.is_none());
        let Some(before) = open.and_then(|t| t.lease) else {
            return;
        };
        self.tasks.update(id, |t| TaskRecord {
            lease: Some(Lease { until }),
            ..t.clone()
        });
        let mut deadlines = self.deadlines();
        deadlines.remove(&(before.until, Deadline::Lease(*id)));
        deadlines.insert((until, Deadline::Lease(*id)));
    }

    fn apply_task_opened(&self, f: &TaskOpened, committed: &Committed) {
        let lease = f.heartbeat_seconds.map(|seconds| Lease {
            until: f.opened_at.plus_secs(seconds),
        });
        let purpose = committed
            .blob(&f.purpose)
            .and_then(|text| UntrustedText::from_blob(text));
        self.tasks.insert(
            f.task,
            TaskRecord {
                opened: Arc::new(f.clone()),
                purpose,
                lease,
                ended: None,
            },
        );
        self.key_registry.add_task_key(f.key_identity, &f.agent);
        self.tasks_by_idempotency_key.insert(
            (f.agent.clone(), f.binding.jkt(), f.idempotency_key.clone()),
            f.task,
        );
        self.agent_tasks.update_or_default(f.agent.clone(), |set| {
            set.insert(f.task);
        });
        let mut deadlines = self.deadlines();
        deadlines.insert((f.deadline, Deadline::Task(f.task)));
        deadlines.extend(lease.map(|lease| (lease.until, Deadline::Lease(f.task))));
    }

    /// INVARIANT (an end is final): a task that ended keeps its first end.
    fn end_tasks(
        &self,
        tasks: &[TaskId],
        cause: EndCause,
        outcome: Option<TaskOutcome>,
        entry: &Entry,
    ) {
        let ended = Ended {
            cause,
            index: entry.index,
            at: entry.at,
            outcome,
        };
        for id in tasks {
            self.tasks.update(id, |t| TaskRecord {
                ended: t.ended.or(Some(ended)),
                ..t.clone()
            });
            if let Some(task) = self.tasks.get(id) {
                self.agent_tasks
                    .update_or_default(task.opened.agent.clone(), |set| {
                        set.remove(id);
                    });
                let mut deadlines = self.deadlines();
                deadlines.remove(&(task.opened.deadline, Deadline::Task(*id)));
                if let Some(lease) = task.lease {
                    deadlines.remove(&(lease.until, Deadline::Lease(*id)));
                }
            }
            for request in self.requests_of_task(id) {
                self.close_request(&request);
            }
        }
    }

    fn apply_access_request_opened(&self, f: &AccessRequestOpened, committed: &Committed) {
        let secret = f
            .secret
            .and_then(|hash| committed.blob(&hash))
            .and_then(|text| ActionSecret::from_blob(text));
        let changes = f
            .by_person()
            .and_then(|by| committed.blob(&by.changes))
            .and_then(|text| json::parse_as(text.as_bytes()).ok());
        let request = AccessRequest {
            opened: Arc::new(f.clone()),
            decision: f.by_agent().map(|by| Arc::new(by.decision.clone())),
            action: f.action.reopen(secret.as_ref()).ok().map(Arc::new),
            secret: secret.map(Arc::new),
            changes: changes.map(Arc::new),
            reason: f
                .reason
                .and_then(|hash| committed.blob(&hash))
                .and_then(|text| UntrustedText::from_blob(text)),
            votes: Vec::new(),
            status: StoredStatus::Pending,
            opened_at: committed.entry().at,
            required_since: committed.entry().at,
            index: committed.entry().index,
            version: committed.entry().index + 1,
        };
        self.requests.insert(f.access_request, request);
        self.deadlines()
            .insert((f.expires_at, Deadline::AccessRequest(f.access_request)));
        let waiting = (f.expires_at, f.access_request);
        self.owner_pending
            .update_or_default(f.owner().clone(), |of| {
                of.insert(waiting);
            });
        let Some(by) = f.by_agent() else {
            return;
        };
        self.task_requests
            .update_or_default(by.task, |list| list.push(f.access_request));
        self.idempotency_keys.insert(
            (by.task, by.idempotency_key.clone()),
            IdempotencyOutcome::Requested(f.access_request),
        );
        self.decisions
            .insert(by.decision.id, committed.entry().index);
        self.histories.update_or_default(by.agent.clone(), |of| {
            of.pending.insert(waiting);
            of.openings.push_back(committed.entry().at);
            if of.openings.len() > OPENINGS_KEPT_MAX {
                of.openings.pop_front();
            }
        });
    }

    fn apply_vote(&self, f: &VoteCast, committed: &Committed) {
        let entry = committed.entry();
        let vote = Arc::new(VoteRecord {
            cast: f.clone(),
            statement: committed.blob(&f.statement).cloned(),
            facts: committed.blob(&f.facts).cloned(),
            assertion: f.assertion.and_then(|hash| committed.blob(&hash).cloned()),
            at: entry.at,
            index: entry.index,
        });
        self.credentials.apply_vote(f, entry.at);
        self.requests.update(&f.access_request, |r| {
            let mut votes = r.votes.clone();
            votes.push(vote);
            AccessRequest { votes, ..r.clone() }
        });
        self.apply_access_event(f.access_request, AccessEvent::Voted(f.verdict), entry);
        if f.verdict == Verdict::Deny {
            self.count_denial(&f.access_request, entry.at);
        }
    }

    fn count_denial(&self, id: &AccessRequestId, at: Timestamp) {
        let request = self.requests.get(id);
        if let Some(agent) = request.as_ref().and_then(|request| request.opened.agent()) {
            self.histories.update_or_default(agent.clone(), |history| {
                history.denials.push(at);
                let over = history.denials.len().saturating_sub(DENIALS_KEPT_MAX);
                history.denials.drain(..over);
            });
        }
    }

    pub(super) fn apply_access_event(
        &self,
        id: AccessRequestId,
        event: AccessEvent,
        entry: &Entry,
    ) {
        self.requests.update(&id, |r| AccessRequest {
            // No entry that makes an illegal transition gets here.
            status: r.status.after(event).unwrap_or(r.status),
            version: entry.index + 1,
            ..r.clone()
        });
        if let Some(request) = self
            .requests
            .get(&id)
            .filter(|r| r.status != StoredStatus::Pending)
        {
            self.close_request(&request);
        }
    }

    fn close_request(&self, request: &AccessRequest) {
        let opened = &request.opened;
        let id = opened.access_request;
        let waiting = (opened.expires_at, id);
        let waits = self.owner_pending.get(opened.owner());
        if waits.is_some_and(|of| of.contains(&waiting)) {
            self.inbox_changes.closed(id);
        }
        if let Some(agent) = opened.agent() {
            self.histories.update_or_default(agent.clone(), |of| {
                of.pending.remove(&waiting);
            });
        }
        self.owner_pending
            .update_or_default(opened.owner().clone(), |of| {
                of.remove(&waiting);
            });
        self.deadlines()
            .remove(&(opened.expires_at, Deadline::AccessRequest(id)));
    }

    fn apply_token_issued(&self, f: &TokenIssued, committed: &Committed) {
        let secret = f
            .secret
            .and_then(|hash| committed.blob(&hash))
            .and_then(|text| ActionSecret::from_blob(text));
        let (mut issued, action) = self.interner.intern_grant(f, secret.as_ref());
        // Shares the id's text with the versions, which hold the stream of the request.
        let stream = |(stream, _): &(Stream, Version)| match stream {
            Stream::TokenRequest(_, id) if *id == f.idempotency_key => Some(id.clone()),
            _ => None,
        };
        if let Some(id) = committed.entry().write_set.iter().find_map(stream) {
            issued.idempotency_key = id;
        }
        let idempotency_key = issued.idempotency_key.clone();
        let grant = Grant {
            kids: self.interner.intern_kids(&issued.kid),
            issued: Arc::new(issued),
            epoch: committed.entry().epoch,
            index: committed.entry().index,
            action,
            reason: f
                .reason
                .and_then(|hash| committed.blob(&hash))
                .and_then(|text| UntrustedText::from_blob(text)),
            uses: Vec::new(),
            ended: None,
        };
        self.grants.insert(f.jti, grant);
        self.task_grants
            .update_or_default(f.task, |list| list.push(f.jti));
        self.idempotency_keys.insert(
            (f.task, idempotency_key),
            IdempotencyOutcome::Granted(f.jti),
        );
        self.decisions
            .insert(f.decision.id, committed.entry().index);
        if let Some(id) = f.consumed {
            self.apply_access_event(id, AccessEvent::Consumed(f.jti), committed.entry());
        }
    }
}
