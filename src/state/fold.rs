//! The fold itself: what each kind of entry changes. Nothing else writes to state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::records::{AccessEvent, NOES_KEPT, OPENS_KEPT};
use super::{
    AccessRequest, AccessStatus, Due, Ended, IdempotencyOutcome, Freeze, FrozenAt, Grant, Illegal, Lease,
    Selector, State, Task, TrustedKeys, Use, Versioned, Vote,
};
use crate::journal::Committed;
use crate::model::*;

impl State {
    /// Folds the next entry in. The journal calls it in order, after the commit and before anyone is answered.
    pub fn apply(&self, committed: &Committed) {
        let entry = committed.entry();
        let version = entry.index + 1;
        // Before anything is folded: counts tell of what was there when it happened.
        self.figures.on(entry, self);
        self.trace(entry);
        match &entry.fact {
            Event::EpochStarted(_)
            | Event::PolicyApplied(_)
            | Event::VoteRefused(_)
            | Event::RefusalsCounted(_) => {}
            Event::TrustBundleChanged(f) => {
                let keys = TrustedKeys {
                    bundle: Some(f.bundle),
                    kids: f.kids.iter().cloned().collect(),
                };
                self.trust.put(
                    f.domain.clone(),
                    Versioned {
                        value: keys,
                        version,
                    },
                );
            }
            Event::KeyPublished(f) => self.keys.put(
                f.kid.clone(),
                Versioned {
                    value: f.jwk.clone(),
                    version,
                },
            ),
            Event::AgentSuspended(f) => {
                self.agents.put(
                    f.agent.clone(),
                    Versioned {
                        value: AgentStanding { suspended: true },
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
                self.agents.put(
                    f.agent.clone(),
                    Versioned {
                        value: AgentStanding { suspended: false },
                        version,
                    },
                );
                // A quarantine is served once.
                self.asks.amend(f.agent.clone(), |at| at.value.noes.clear());
            }
            Event::Frozen(f) => self.on_frozen(f, committed, version),
            Event::Unfrozen(f) => self.freezes.amend(f.scope.clone(), |at| {
                at.value.in_force = None;
                at.version = version;
            }),
            Event::TaskOpened(f) => self.on_task_opened(f, committed, version),
            Event::LeasesExtended(f) => {
                for (task, until) in &f.leases {
                    self.on_lease_extended(task, *until, version);
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
            Event::RequestDenied(f) => self.decisions.put(f.id, entry.index),
            Event::AccessRequestOpened(f) => self.on_access_request_opened(f, committed, version),
            Event::VoteCast(f) => self.on_vote(f, committed, version),
            Event::AccessRequestClosed(f) => {
                self.on_access_event(f.access_request, AccessEvent::Closed(f.cause), version);
                if f.begun {
                    self.count_no(&f.access_request, entry.at, version);
                }
                if f.cause == CloseCause::Expired {
                    self.fix_refused(f.access_request);
                }
            }
            Event::ApproverInvited(f) => self.roster.on_invited(f, version),
            Event::ApproverEnrolled(f) => self.roster.on_enrolled(f, entry.at, version),
            Event::ApproverKeysRevoked(f) => self.roster.on_revoked(f, version),
            Event::TokenIssued(f) => self.on_token_issued(f, committed, version),
            Event::TokenReissued(f) => self.grants.change(&f.jti, |g| {
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
            Event::TokenConsumed(f) => self.grants.change(&f.jti, |g| {
                let mut uses = g.uses.clone();
                uses.push(Use {
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
                    self.grants.change(jti, |g| Grant {
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
        // Before the position: whoever reads that far finds what changed by then.
        self.stirs.fold(entry);
        self.epoch.store(entry.epoch, Ordering::SeqCst);
        self.folded.store(entry.index + 1, Ordering::SeqCst);
    }

    /// Notes which task the entry tells of.
    fn trace(&self, entry: &Entry) {
        let of_request = |id: &AccessRequestId| self.requests.get(id).map(|r| r.opened.task);
        let of_grant = |jti: &TokenId| self.grants.get(jti).map(|g| g.issued.task);
        let task = match &entry.fact {
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
                    self.traces.note(*task, entry.index);
                }
                None
            }
            Event::GrantsEnded(f) => {
                let tasks: BTreeSet<TaskId> = f.jtis.iter().filter_map(of_grant).collect();
                for task in tasks {
                    self.traces.note(task, entry.index);
                }
                None
            }
            // Ends of many at once are found by the end of the task; signs of life tell nothing.
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
            self.traces.note(task, entry.index);
        }
    }

    fn on_frozen(&self, f: &Frozen, committed: &Committed, version: Version) {
        let entry = committed.entry();
        let reason = f
            .reason
            .and_then(|hash| committed.blob(&hash))
            .and_then(|text| Prose::from_blob(text));
        let frozen = FrozenAt {
            index: entry.index,
            at: entry.at,
            by: f.by.clone(),
            reason,
        };
        // First: whoever reads the end of a task below finds the freeze that ended it.
        self.freezes.put(
            f.scope.clone(),
            Versioned {
                value: Freeze {
                    in_force: Some(frozen),
                    last: Some(entry.index),
                },
                version,
            },
        );
        let (tasks, selector) = match &f.scope {
            FreezeScope::All => (
                self.open_tasks().iter().map(|t| t.opened.task).collect(),
                Selector::Everything,
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
                for id in self.asked() {
                    let of_action = |r: &Arc<AccessRequest>| r.opened.action.action == *action;
                    if self.requests.get(&id).as_ref().is_some_and(of_action) {
                        let event = AccessEvent::Closed(CloseCause::Frozen);
                        self.on_access_event(id, event, version);
                    }
                }
                // Its grants are dead by the freeze's index: a million of them cost no more than one.
                (Vec::new(), Selector::Action(action.clone()))
            }
        };
        self.end_tasks(&tasks, EndCause::Frozen, None, entry);
        self.feed.push(entry.epoch, entry.index, entry.at, selector);
    }

    fn on_lease_extended(&self, id: &TaskId, until: Timestamp, version: Version) {
        // INVARIANT (an end is final): a sign of life that came after it changes nothing.
        let alive = self.tasks.get(id).filter(|t| t.ended.is_none());
        let Some(before) = alive.and_then(|t| t.lease) else {
            return;
        };
        self.tasks.change(id, |t| Task {
            lease: Some(Lease { until, version }),
            ..t.clone()
        });
        let mut due = self.due();
        due.remove(&(before.until, Due::Lease(*id)));
        due.insert((until, Due::Lease(*id)));
    }

    fn on_task_opened(&self, f: &TaskOpened, committed: &Committed, version: Version) {
        let lease = f.heartbeat_seconds.map(|seconds| Lease {
            until: f.opened_at.plus_secs(seconds),
            version: 0,
        });
        let purpose = committed
            .blob(&f.purpose)
            .and_then(|text| Prose::from_blob(text));
        self.tasks.put(
            f.task,
            Task {
                opened: Arc::new(f.clone()),
                purpose,
                lease,
                ended: None,
                version,
            },
        );
        self.opens.put(
            (f.agent.clone(), f.binding.jkt(), f.idempotency_key.clone()),
            f.task,
        );
        self.agent_tasks.amend(f.agent.clone(), |set| {
            set.insert(f.task);
        });
        let mut due = self.due();
        due.insert((f.deadline, Due::Task(f.task)));
        due.extend(lease.map(|lease| (lease.until, Due::Lease(f.task))));
    }

    /// INVARIANT (an end is final): a task that ended keeps its first end, and nothing takes it away.
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
            self.tasks.change(id, |t| Task {
                ended: t.ended.or(Some(ended)),
                version: entry.index + 1,
                ..t.clone()
            });
            if let Some(task) = self.tasks.get(id) {
                self.agent_tasks.amend(task.opened.agent.clone(), |set| {
                    set.remove(id);
                });
                let mut due = self.due();
                due.remove(&(task.opened.deadline, Due::Task(*id)));
                if let Some(lease) = task.lease {
                    due.remove(&(lease.until, Due::Lease(*id)));
                }
            }
            for request in self.requests_of(id) {
                self.stop_waiting(&request);
            }
        }
    }

    fn on_access_request_opened(
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
                .and_then(|text| Prose::from_blob(text)),
            votes: Vec::new(),
            status: AccessStatus::Waiting,
            opened_at: committed.entry().at,
            version,
        };
        self.requests.put(f.access_request, request);
        self.task_requests
            .amend(f.task, |list| list.push(f.access_request));
        self.idempotency_keys.put(
            (f.task, f.idempotency_key.clone()),
            Versioned {
                value: None,
                version,
            },
        );
        self.decisions.put(f.decision.id, committed.entry().index);
        self.due()
            .insert((f.expires_at, Due::AccessRequest(f.access_request)));
        // Last: whoever reads these versions finds the access request they stand for.
        self.owner_asks.amend(f.owner.clone(), |at| {
            at.value.insert(f.access_request);
            at.version = version;
        });
        self.asks.amend(f.agent.clone(), |at| {
            at.value.waiting.insert(f.access_request);
            at.value.opens.push_back(committed.entry().at);
            if at.value.opens.len() > OPENS_KEPT {
                at.value.opens.pop_front();
            }
            at.version = version;
        });
    }

    fn on_vote(&self, f: &VoteCast, committed: &Committed, version: Version) {
        let vote = Arc::new(Vote {
            cast: f.clone(),
            statement: committed.blob(&f.statement).cloned(),
            assertion: f.assertion.and_then(|hash| committed.blob(&hash).cloned()),
            at: committed.entry().at,
        });
        self.roster.on_vote(f, committed.entry().at);
        self.requests.change(&f.access_request, |r| {
            let mut votes = r.votes.clone();
            votes.push(vote);
            AccessRequest { votes, ..r.clone() }
        });
        self.on_access_event(f.access_request, AccessEvent::Voted(f.verdict), version);
        if f.verdict == Verdict::Deny {
            self.fix_refused(f.access_request);
            self.count_no(&f.access_request, committed.entry().at, version);
        }
    }

    fn count_no(&self, id: &AccessRequestId, at: Timestamp, version: Version) {
        if let Some(request) = self.requests.get(id) {
            self.asks.amend(request.opened.agent.clone(), |asks| {
                asks.value.noes.push(at);
                let over = asks.value.noes.len().saturating_sub(NOES_KEPT);
                asks.value.noes.drain(..over);
                asks.version = version;
            });
        }
    }

    fn on_access_event(&self, id: AccessRequestId, event: AccessEvent, version: Version) {
        self.requests.change(&id, |r| {
            let status = r.status.on(event).unwrap_or_else(|Illegal| {
                self.illegal.fetch_add(1, Ordering::Relaxed);
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
            .filter(|r| r.status != AccessStatus::Waiting)
        {
            self.stop_waiting(&request);
        }
    }

    fn stop_waiting(&self, request: &AccessRequest) {
        let id = request.opened.access_request;
        let asks = self.asks.get(&request.opened.agent);
        if asks.is_some_and(|at| at.value.waiting.contains(&id)) {
            self.stirs.leaves(id);
        }
        self.asks.amend(request.opened.agent.clone(), |at| {
            at.value.waiting.remove(&id);
        });
        self.owner_asks.amend(request.opened.owner.clone(), |at| {
            at.value.remove(&id);
        });
        self.due()
            .remove(&(request.opened.expires_at, Due::AccessRequest(id)));
    }

    fn fix_refused(&self, id: AccessRequestId) {
        // INVARIANT (a grant stays the answer): only an id that stands for nothing yet comes to stand for a no.
        if let Some(r) = self.requests.get(&id) {
            self.idempotency_keys
                .change(&(r.opened.task, r.opened.idempotency_key.clone()), |at| {
                    Versioned {
                        value: at.value.or(Some(IdempotencyOutcome::Refused(id))),
                        version: at.version,
                    }
                });
        }
    }

    fn on_token_issued(&self, f: &TokenIssued, committed: &Committed, version: Version) {
        let secret = f
            .secret
            .and_then(|hash| committed.blob(&hash))
            .and_then(|text| ActionSecret::from_blob(text));
        let (mut issued, action) = self.shared.grant(f, secret.as_ref());
        // The journal keeps the stream of the request: its text need not lie in memory twice.
        let stream = |moved: &Stream| match moved {
            Stream::Request(_, id) if *id == f.idempotency_key => Some(id.clone()),
            _ => None,
        };
        if let Some(id) = committed.entry().moves.iter().find_map(stream) {
            issued.idempotency_key = id;
        }
        let idempotency_key = issued.idempotency_key.clone();
        let grant = Grant {
            kids: self.shared.kids(&issued.kid),
            issued: Arc::new(issued),
            epoch: committed.entry().epoch,
            index: committed.entry().index,
            action,
            reason: f
                .reason
                .and_then(|hash| committed.blob(&hash))
                .and_then(|text| Prose::from_blob(text)),
            uses: Vec::new(),
            ended: None,
            version: 0,
        };
        self.grants.put(f.jti, grant);
        self.task_grants.amend(f.task, |list| list.push(f.jti));
        self.idempotency_keys.put(
            (f.task, idempotency_key),
            Versioned {
                value: Some(IdempotencyOutcome::Granted(f.jti)),
                version,
            },
        );
        self.decisions.put(f.decision.id, committed.entry().index);
        if let Some(id) = f.consumed {
            self.on_access_event(id, AccessEvent::Consumed(f.jti), version);
        }
    }
}
