//! State: a fold over the journal. Many threads read it; only committed entries change it.
//!
//! In: [`Committed`] entries, in order. Out: live agents, tasks, access requests, grants, and the revocation feed.
//! Trusts the journal that an entry was allowed. Refuses nothing and decides nothing: what has expired is a question of
//! the record and the moment, asked by whoever reads. Never reads a clock, never writes an entry.

mod feed;
mod records;
mod table;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::journal::Committed;
use crate::model::*;

pub use feed::{FeedEvent, Selector};
pub use records::{
    AccessRequest, AccessStatus, Ended, Fixed, Grant, Illegal, Recorded, Task, Use, Vote,
};

use feed::Feed;
use records::AccessEvent;
pub use table::Table;

/// A value and the version of the stream it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct At<T> {
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
    opens: Table<(AgentId, Thumbprint, RequestId), TaskId>,
    agents: Table<AgentId, At<AgentStanding>>,
    trust: Table<TrustDomain, At<TrustedKeys>>,
    keys: Table<KeyId, At<Value>>,
    requests: Table<AccessRequestId, AccessRequest>,
    grants: Table<TokenId, Grant>,
    request_ids: Table<(TaskId, RequestId), At<Option<Fixed>>>,
    asks: Table<AgentId, At<BTreeSet<AccessRequestId>>>,
    task_grants: Table<TaskId, Vec<TokenId>>,
    task_requests: Table<TaskId, Vec<AccessRequestId>>,
    agent_tasks: Table<AgentId, BTreeSet<TaskId>>,
    decisions: Table<DecisionId, u64>,
    feed: Feed,
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
    /// An access request expires.
    AccessRequest(AccessRequestId),
}

impl State {
    /// Folds the next entry in. The journal calls it in order, after the commit and before anyone is answered.
    pub fn apply(&self, committed: &Committed) {
        let entry = committed.entry();
        let version = entry.index + 1;
        match &entry.fact {
            Fact::EpochStarted(_)
            | Fact::PolicyApplied(_)
            | Fact::VoteRefused(_)
            | Fact::RefusalsCounted(_) => {}
            Fact::TrustBundleChanged(f) => {
                let keys = TrustedKeys {
                    bundle: Some(f.bundle),
                    kids: f.kids.iter().cloned().collect(),
                };
                self.trust.put(
                    f.domain.clone(),
                    At {
                        value: keys,
                        version,
                    },
                );
            }
            Fact::KeyPublished(f) => self.keys.put(
                f.kid.clone(),
                At {
                    value: f.jwk.clone(),
                    version,
                },
            ),
            Fact::AgentSuspended(f) => {
                self.agents.put(
                    f.agent.clone(),
                    At {
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
            Fact::AgentResumed(f) => self.agents.put(
                f.agent.clone(),
                At {
                    value: AgentStanding { suspended: false },
                    version,
                },
            ),
            Fact::TaskOpened(f) => self.on_task_opened(f, committed, version),
            Fact::TaskEnded(f) => {
                self.end_tasks(&f.tasks, f.cause, f.outcome, entry);
                self.feed.push(
                    entry.epoch,
                    entry.index,
                    entry.at,
                    Selector::Tasks(f.tasks.clone()),
                );
            }
            Fact::RequestDenied(f) => self.decisions.put(f.id, entry.index),
            Fact::AccessRequestOpened(f) => self.on_access_request_opened(f, committed, version),
            Fact::VoteCast(f) => self.on_vote(f, committed, version),
            Fact::AccessRequestClosed(f) => {
                self.on_access_event(f.access_request, AccessEvent::Closed(f.cause), version);
                if f.cause == CloseCause::Expired {
                    self.fix_refused(f.access_request);
                }
            }
            Fact::TokenIssued(f) => self.on_token_issued(f, committed, version),
            Fact::TokenReissued(f) => self.grants.change(&f.jti, |g| {
                let mut kids = g.kids.clone();
                if !kids.contains(&f.kid) {
                    kids.push(f.kid.clone());
                }
                Grant {
                    kids,
                    version,
                    ..g.clone()
                }
            }),
            Fact::TokenConsumed(f) => self.grants.change(&f.jti, |g| {
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
            Fact::GrantsEnded(f) => {
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
        self.epoch.store(entry.epoch, Ordering::SeqCst);
        self.folded.store(entry.index + 1, Ordering::SeqCst);
    }

    fn on_task_opened(&self, f: &TaskOpened, committed: &Committed, version: Version) {
        let purpose = committed
            .blob(&f.purpose)
            .and_then(|text| Prose::from_blob(text));
        self.tasks.put(
            f.task,
            Task {
                opened: Arc::new(f.clone()),
                purpose,
                ended: None,
                version,
            },
        );
        self.opens.put(
            (f.agent.clone(), f.binding.jkt(), f.request_id.clone()),
            f.task,
        );
        self.agent_tasks
            .upsert(f.agent.clone(), |set| with(set, f.task));
        self.due().insert((f.deadline, Due::Task(f.task)));
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
                self.agent_tasks.change(&task.opened.agent, |set| {
                    set.iter().copied().filter(|t| t != id).collect()
                });
                self.due().remove(&(task.opened.deadline, Due::Task(*id)));
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
            .upsert(f.task, |list| pushed(list, f.access_request));
        self.request_ids.put(
            (f.task, f.request_id.clone()),
            At {
                value: None,
                version,
            },
        );
        self.decisions.put(f.decision.id, committed.entry().index);
        self.due()
            .insert((f.expires_at, Due::AccessRequest(f.access_request)));
        // Last: whoever reads this version finds the access request it stands for.
        self.asks.upsert(f.agent.clone(), |at| At {
            value: with(at.map(|a| &a.value), f.access_request),
            version,
        });
    }

    fn on_vote(&self, f: &VoteCast, committed: &Committed, version: Version) {
        let vote = Arc::new(Vote {
            cast: f.clone(),
            statement: committed.blob(&f.statement).cloned(),
            at: committed.entry().at,
        });
        self.requests.change(&f.access_request, |r| {
            let mut votes = r.votes.clone();
            votes.push(vote);
            AccessRequest { votes, ..r.clone() }
        });
        self.on_access_event(f.access_request, AccessEvent::Voted(f.verdict), version);
        if f.verdict == Verdict::Deny {
            self.fix_refused(f.access_request);
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
        self.asks.change(&request.opened.agent, |at| At {
            value: at.value.iter().copied().filter(|r| *r != id).collect(),
            version: at.version,
        });
        self.due()
            .remove(&(request.opened.expires_at, Due::AccessRequest(id)));
    }

    fn fix_refused(&self, id: AccessRequestId) {
        // INVARIANT (a grant stays the answer): only an id that stands for nothing yet comes to stand for a no.
        if let Some(r) = self.requests.get(&id) {
            self.request_ids
                .change(&(r.opened.task, r.opened.request_id.clone()), |at| At {
                    value: at.value.or(Some(Fixed::Refused(id))),
                    version: at.version,
                });
        }
    }

    fn on_token_issued(&self, f: &TokenIssued, committed: &Committed, version: Version) {
        let secret = f
            .secret
            .and_then(|hash| committed.blob(&hash))
            .and_then(|text| ActionSecret::from_blob(text));
        let grant = Grant {
            issued: Arc::new(f.clone()),
            epoch: committed.entry().epoch,
            index: committed.entry().index,
            action: f.action.reopen(secret.as_ref()).ok().map(Arc::new),
            reason: f
                .reason
                .and_then(|hash| committed.blob(&hash))
                .and_then(|text| Prose::from_blob(text)),
            uses: Vec::new(),
            kids: vec![f.kid.clone()],
            ended: None,
            version: 0,
        };
        self.grants.put(f.jti, grant);
        self.task_grants.upsert(f.task, |list| pushed(list, f.jti));
        self.request_ids.put(
            (f.task, f.request_id.clone()),
            At {
                value: Some(Fixed::Granted(f.jti)),
                version,
            },
        );
        self.decisions.put(f.decision.id, committed.entry().index);
        if let Some(id) = f.consumed {
            self.on_access_event(id, AccessEvent::Consumed(f.jti), version);
        }
    }

    /// A task, live or not.
    pub fn task(&self, id: &TaskId) -> Option<Arc<Task>> {
        self.tasks.get(id)
    }

    /// The task an agent opened with this key under this request id.
    pub fn opened_under(
        &self,
        agent: &AgentId,
        key: Thumbprint,
        request: &RequestId,
    ) -> Option<Arc<Task>> {
        self.opens
            .get(&(agent.clone(), key, request.clone()))
            .and_then(|id| self.tasks.get(&id))
    }

    /// What the journal alone says of an agent; unknown to it = in good standing at version 0.
    pub fn standing(&self, agent: &AgentId) -> At<AgentStanding> {
        self.agents
            .get(agent)
            .map(|at| (*at).clone())
            .unwrap_or_default()
    }

    /// The keys of a trust domain; none for a domain never entered.
    pub fn trusted(&self, domain: &TrustDomain) -> Option<Arc<At<TrustedKeys>>> {
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
    pub fn key(&self, kid: &KeyId) -> Option<Arc<At<Value>>> {
        self.keys.get(kid)
    }

    /// Every published key, by kid.
    pub fn keys(&self) -> Vec<(KeyId, Arc<At<Value>>)> {
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

    /// Waiting access requests of an agent, and the version of their stream.
    pub fn asks(&self, agent: &AgentId, now: Timestamp) -> At<usize> {
        let Some(at) = self.asks.get(agent) else {
            return At::default();
        };
        let waiting = at
            .value
            .iter()
            .filter_map(|id| self.requests.get(id))
            .filter(|r| r.waits(now))
            .count();
        At {
            value: waiting,
            version: at.version,
        }
    }

    /// Every access request that waits, oldest first.
    pub fn waiting(&self, now: Timestamp) -> Vec<Arc<AccessRequest>> {
        let mut all: Vec<_> = self
            .requests
            .all()
            .into_iter()
            .map(|(_, r)| r)
            .filter(|r| r.waits(now) && self.tasks.get(&r.opened.task).is_some_and(|t| t.runs(now)))
            .collect();
        all.sort_by_key(|r| (r.opened_at, r.opened.access_request));
        all
    }

    /// Access requests of a task, oldest first.
    pub fn requests_of(&self, task: &TaskId) -> Vec<Arc<AccessRequest>> {
        self.task_requests
            .get(task)
            .map(|ids| ids.iter().filter_map(|id| self.requests.get(id)).collect())
            .unwrap_or_default()
    }

    /// What a request id stands for, `None` while that is open; with the version of its stream.
    pub fn request_id(&self, task: &TaskId, request: &RequestId) -> At<Option<Fixed>> {
        self.request_ids
            .get(&(*task, request.clone()))
            .map(|at| (*at).clone())
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
        // A missing task reads as dead.
        match self.tasks.get(&grant.issued.task) {
            None => Some(EndCause::Deadline),
            Some(task) => match task.ended {
                Some(ended) => Some(ended.cause),
                None if !task.runs(now) => Some(EndCause::Deadline),
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
        self.decisions.get(id).map(|i| *i)
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
            .map(|(id, t)| json!([id, t.ended, t.version]))
            .collect();
        let requests: Vec<Value> = sorted(self.requests.all())
            .into_iter()
            .map(|(id, r)| json!([id, r.status, r.version, r.votes.len(), r.action.is_some()]))
            .collect();
        let grants: Vec<Value> = sorted(self.grants.all())
            .into_iter()
            .map(|(id, g)| json!([id, g.ended, g.version, g.uses, g.kids, g.action.is_some()]))
            .collect();
        let request_ids: Vec<Value> = sorted(self.request_ids.all())
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
        json!({ "position": self.position(), "tasks": tasks, "requests": requests, "grants": grants, "request_ids": request_ids, "opens": opens,
            "agents": agents, "trust": trust, "keys": keys, "asks": asks, "feed": feed, "due": due, "illegal": self.illegal() })
    }

    fn due(&self) -> std::sync::MutexGuard<'_, BTreeSet<(Timestamp, Due)>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sorted<K: Ord, V>(mut all: Vec<(K, Arc<V>)>) -> Vec<(K, Arc<V>)> {
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn with<T: Ord + Clone>(set: Option<&BTreeSet<T>>, item: T) -> BTreeSet<T> {
    let mut set = set.cloned().unwrap_or_default();
    set.insert(item);
    set
}

fn pushed<T: Clone>(list: Option<&Vec<T>>, item: T) -> Vec<T> {
    let mut list = list.cloned().unwrap_or_default();
    list.push(item);
    list
}
