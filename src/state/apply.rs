//! Applying entries to state: what each kind of entry changes. Nothing else writes to state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::records::{AccessEvent, DENIALS_KEPT_MAX, OPENINGS_KEPT_MAX};
use super::{
    AccessRequest, Deadline, Ended, FreezeMarker, FreezeStatus, Grant, IdempotencyOutcome,
    IllegalTransition, Lease, Selector, State, StoredStatus, TaskRecord, TokenUse, TrustedKeys,
    Versioned, VoteRecord,
};
use crate::journal::Committed;
use crate::model::*;

impl State {
    /// Applies the next entry. The journal calls it in order, after the commit and before it answers the append.
    pub fn apply(&self, committed: &Committed) {
        let entry = committed.entry();
        let version = entry.index + 1;
        // First: statistics compare the entry with the state before it.
        self.stats.record(entry, self);
        self.index_entry(entry);
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
                self.trust.insert(
                    f.domain.clone(),
                    Versioned {
                        value: keys,
                        version,
                    },
                );
            }
            Event::KeyPublished(f) => self.keys.insert(
                f.kid.clone(),
                Versioned {
                    value: f.jwk.clone(),
                    version,
                },
            ),
            Event::AgentSuspended(f) => {
                self.agents.insert(
                    f.agent.clone(),
                    Versioned {
                        value: AgentStatus { suspended: true },
                        version,
                    },
                );
                let tasks: Vec<TaskId> = self.open_tasks_of(&f.agent);
                self.end_tasks(&tasks, EndCause::Suspended, None, entry);
                self.feed.push(
                    entry.epoch,
                    entry.index,
                    entry.at,
                    Selector::Agent(f.agent.clone()),
                );
            }
            Event::AgentResumed(f) => {
                self.agents.insert(
                    f.agent.clone(),
                    Versioned {
                        value: AgentStatus { suspended: false },
                        version,
                    },
                );
                // Denials before a suspension do not count towards the next one.
                self.histories
                    .update_or_default(f.agent.clone(), |at| at.value.denials.clear());
            }
            Event::Frozen(f) => self.apply_frozen(f, committed, version),
            Event::Unfrozen(f) => self.freezes.update_or_default(f.scope.clone(), |at| {
                at.value.in_force = None;
                at.version = version;
            }),
            Event::TaskOpened(f) => self.apply_task_opened(f, committed, version),
            Event::LeasesExtended(f) => {
                for (task, until) in &f.leases {
                    self.apply_lease_extended(task, *until, version);
                }
            }
            Event::TaskEnded(f) => {
                self.end_tasks(&f.tasks, f.cause, f.outcome, entry);
                self.feed.push(
                    entry.epoch,
                    entry.index,
                    entry.at,
                    Selector::Tasks(f.tasks.clone()),
                );
            }
            Event::RequestDenied(f) => {
                self.decisions.insert(f.id, entry.index);
                let key = (f.task, f.idempotency_key.clone());
                // The key stays undecided: it may be allowed later.
                let before = self.idempotency_keys.get(&key).unwrap_or_default();
                self.idempotency_keys
                    .insert(key, Versioned { version, ..before });
            }
            Event::AccessRequestOpened(f) => {
                self.apply_access_request_opened(f, committed, version)
            }
            Event::VoteCast(f) => self.apply_vote(f, committed, version),
            Event::AccessRequestClosed(f) => {
                self.apply_access_event(f.access_request, AccessEvent::Closed(f.cause), version);
                if f.voting_started {
                    self.count_denial(&f.access_request, entry.at, version);
                }
                if f.cause == CloseCause::Expired {
                    self.settle_denied(f.access_request);
                }
            }
            Event::ApproverInvited(f) => self.credentials.apply_invited(f, version),
            Event::ApproverEnrolled(f) => self.credentials.apply_enrolled(f, entry.at, version),
            Event::ApproverKeysRevoked(f) => self.credentials.apply_revoked(f, version),
            Event::TokenIssued(f) => self.apply_token_issued(f, committed, version),
            Event::TokenReissued(f) => self.grants.update(&f.jti, |g| {
                let mut kids = g.kids.to_vec();
                if !kids.contains(&f.kid) {
                    kids.push(f.kid.clone());
                }
                Grant {
                    kids: kids.into(),
                    version,
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
                Grant {
                    uses,
                    version,
                    ..g.clone()
                }
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
                        version,
                        ..g.clone()
                    });
                }
                self.feed.push(
                    entry.epoch,
                    entry.index,
                    entry.at,
                    Selector::Tokens(f.jtis.clone()),
                );
            }
        }
        // Before the position: a reader of the position finds every inbox change up to it.
        self.inbox_changes.apply(entry);
        self.epoch.store(entry.epoch, Ordering::SeqCst);
        self.applied.store(entry.index + 1, Ordering::SeqCst);
    }

    /// Adds the entry to the index of each task it is about.
    fn index_entry(&self, entry: &Entry) {
        let of_request = |id: &AccessRequestId| self.requests.get(id).map(|r| r.opened.task);
        let of_grant = |jti: &TokenId| self.grants.get(jti).map(|g| g.issued.task);
        let task = match &entry.event {
            Event::TaskOpened(f) => Some(f.task),
            Event::RequestDenied(f) => Some(f.task),
            Event::AccessRequestOpened(f) => Some(f.task),
            Event::VoteCast(f) => of_request(&f.access_request),
            Event::VoteRefused(f) => of_request(&f.access_request),
            Event::AccessRequestClosed(f) => of_request(&f.access_request),
            Event::TokenIssued(f) => Some(f.task),
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
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
            | Event::ApproverKeysRevoked(_)
            | Event::RefusalsCounted(_) => None,
        };
        if let Some(task) = task {
            self.task_entries.push(task, entry.index);
        }
    }

    fn apply_frozen(&self, f: &Frozen, committed: &Committed, version: Version) {
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
        // First: a reader that sees the end of a task below finds the freeze that ended it.
        self.freezes.insert(
            f.scope.clone(),
            Versioned {
                value: FreezeStatus {
                    in_force: Some(frozen),
                    last: Some(entry.index),
                },
                version,
            },
        );
        let (tasks, selector) = match &f.scope {
            FreezeScope::All => (
                self.open_tasks().iter().map(|t| t.opened.task).collect(),
                Selector::All,
            ),
            FreezeScope::Agent(agent) => {
                (self.open_tasks_of(agent), Selector::Agent(agent.clone()))
            }
            FreezeScope::Owner(_) => (
                f.agents
                    .iter()
                    .flat_map(|agent| self.open_tasks_of(agent))
                    .collect(),
                Selector::Agents(f.agents.clone()),
            ),
            FreezeScope::Action(action) => {
                for id in self.unclosed_requests() {
                    let of_action = |r: &Arc<AccessRequest>| r.opened.action.action == *action;
                    if self.requests.get(&id).as_ref().is_some_and(of_action) {
                        let event = AccessEvent::Closed(CloseCause::Frozen);
                        self.apply_access_event(id, event, version);
                    }
                }
                // Its grants end by the freeze's index, in constant time however many there are.
                (Vec::new(), Selector::Action(action.clone()))
            }
        };
        self.end_tasks(&tasks, EndCause::Frozen, None, entry);
        self.feed.push(entry.epoch, entry.index, entry.at, selector);
    }

    fn apply_lease_extended(&self, id: &TaskId, until: Timestamp, version: Version) {
        // INVARIANT (an end is final): a heartbeat after it changes nothing.
        let open = self.tasks.get(id).filter(|t| t.ended.is_none());
        let Some(before) = open.and_then(|t| t.lease) else {
            return;
        };
        self.tasks.update(id, |t| TaskRecord {
            lease: Some(Lease { until, version }),
            ..t.clone()
        });
        let mut deadlines = self.deadlines();
        deadlines.remove(&(before.until, Deadline::Lease(*id)));
        deadlines.insert((until, Deadline::Lease(*id)));
    }

    fn apply_task_opened(&self, f: &TaskOpened, committed: &Committed, version: Version) {
        let lease = f.heartbeat_seconds.map(|seconds| Lease {
            until: f.opened_at.plus_secs(seconds),
            version: 0,
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
                version,
            },
        );
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
                version: entry.index + 1,
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

    fn apply_access_request_opened(
        &self,
        f: &AccessRequestOpened,
        committed: &Committed,
        version: Version,
    ) {
        let secret = f
            .secret
            .and_then(|hash| committed.blob(&hash))
            .and_then(|text| ActionSecret::from_blob(text));
        let request = AccessRequest {
            opened: Arc::new(f.clone()),
            action: f.action.reopen(secret.as_ref()).ok().map(Arc::new),
            reason: f
                .reason
                .and_then(|hash| committed.blob(&hash))
                .and_then(|text| UntrustedText::from_blob(text)),
            votes: Vec::new(),
            status: StoredStatus::Pending,
            opened_at: committed.entry().at,
            version,
        };
        self.requests.insert(f.access_request, request);
        self.task_requests
            .update_or_default(f.task, |list| list.push(f.access_request));
        self.idempotency_keys.insert(
            (f.task, f.idempotency_key.clone()),
            Versioned {
                value: None,
                version,
            },
        );
        self.decisions
            .insert(f.decision.id, committed.entry().index);
        self.deadlines()
            .insert((f.expires_at, Deadline::AccessRequest(f.access_request)));
        // Last: a reader of these versions finds the access request that advanced them.
        self.owner_pending.update_or_default(f.owner.clone(), |at| {
            at.value.insert(f.access_request);
            at.version = version;
        });
        self.histories.update_or_default(f.agent.clone(), |at| {
            at.value.pending.insert(f.access_request);
            at.value.openings.push_back(committed.entry().at);
            if at.value.openings.len() > OPENINGS_KEPT_MAX {
                at.value.openings.pop_front();
            }
            at.version = version;
        });
    }

    fn apply_vote(&self, f: &VoteCast, committed: &Committed, version: Version) {
        let vote = Arc::new(VoteRecord {
            cast: f.clone(),
            statement: committed.blob(&f.statement).cloned(),
            assertion: f.assertion.and_then(|hash| committed.blob(&hash).cloned()),
            at: committed.entry().at,
        });
        self.credentials.apply_vote(f, committed.entry().at);
        self.requests.update(&f.access_request, |r| {
            let mut votes = r.votes.clone();
            votes.push(vote);
            AccessRequest { votes, ..r.clone() }
        });
        self.apply_access_event(f.access_request, AccessEvent::Voted(f.verdict), version);
        if f.verdict == Verdict::Deny {
            self.settle_denied(f.access_request);
            self.count_denial(&f.access_request, committed.entry().at, version);
        }
    }

    fn count_denial(&self, id: &AccessRequestId, at: Timestamp, version: Version) {
        if let Some(request) = self.requests.get(id) {
            self.histories
                .update_or_default(request.opened.agent.clone(), |history| {
                    history.value.denials.push(at);
                    let over = history.value.denials.len().saturating_sub(DENIALS_KEPT_MAX);
                    history.value.denials.drain(..over);
                    history.version = version;
                });
        }
    }

    fn apply_access_event(&self, id: AccessRequestId, event: AccessEvent, version: Version) {
        self.requests.update(&id, |r| {
            let status = r.status.after(event).unwrap_or_else(|IllegalTransition| {
                self.illegal_transitions.fetch_add(1, Ordering::Relaxed);
                r.status
            });
            AccessRequest {
                status,
                version,
                ..r.clone()
            }
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
        let id = request.opened.access_request;
        let history = self.histories.get(&request.opened.agent);
        if history.is_some_and(|at| at.value.pending.contains(&id)) {
            self.inbox_changes.closed(id);
        }
        self.histories
            .update_or_default(request.opened.agent.clone(), |at| {
                at.value.pending.remove(&id);
            });
        self.owner_pending
            .update_or_default(request.opened.owner.clone(), |at| {
                at.value.remove(&id);
            });
        self.deadlines()
            .remove(&(request.opened.expires_at, Deadline::AccessRequest(id)));
    }

    fn settle_denied(&self, id: AccessRequestId) {
        // INVARIANT (a grant stays the answer): only an undecided idempotency key is settled as denied.
        if let Some(r) = self.requests.get(&id) {
            self.idempotency_keys.update(
                &(r.opened.task, r.opened.idempotency_key.clone()),
                |at| Versioned {
                    value: at.value.or(Some(IdempotencyOutcome::Denied(id))),
                    version: at.version,
                },
            );
        }
    }

    fn apply_token_issued(&self, f: &TokenIssued, committed: &Committed, version: Version) {
        let secret = f
            .secret
            .and_then(|hash| committed.blob(&hash))
            .and_then(|text| ActionSecret::from_blob(text));
        let (mut issued, action) = self.interner.intern_grant(f, secret.as_ref());
        // Shares the id's text with the journal's version map, which holds the stream of the request.
        let stream = |stream: &Stream| match stream {
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
            version: 0,
        };
        self.grants.insert(f.jti, grant);
        self.task_grants
            .update_or_default(f.task, |list| list.push(f.jti));
        self.idempotency_keys.insert(
            (f.task, idempotency_key),
            Versioned {
                value: Some(IdempotencyOutcome::Granted(f.jti)),
                version,
            },
        );
        self.decisions
            .insert(f.decision.id, committed.entry().index);
        if let Some(id) = f.consumed {
            self.apply_access_event(id, AccessEvent::Consumed(f.jti), version);
        }
    }
}
