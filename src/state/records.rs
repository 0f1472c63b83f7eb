//! The records of state: tasks, access requests, votes and grants. Each is one `Arc`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::model::*;

/// A task, as of the last entry applied.
#[derive(Debug, Clone)]
pub struct TaskRecord {
    /// The entry's body that opened it.
    pub opened: Arc<TaskOpened>,
    /// Its purpose in the agent's words, unverified; absent when retention dropped it.
    pub purpose: Option<UntrustedText>,
    /// Its lease; absent for a task without a heartbeat.
    pub lease: Option<Lease>,
    /// Its end by an entry; absent while none ended it. Time may have ended it already: see [`TaskRecord::is_running`].
    pub ended: Option<Ended>,
}

/// The lease of a task with a heartbeat: the task ends unless it is extended in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Lease {
    /// When the lease ends.
    pub until: Timestamp,
}

/// The freezes of one scope, as of the last entry applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct FreezeStatus {
    /// The freeze in force; absent when it was lifted or never ordered.
    pub in_force: Option<FreezeMarker>,
    /// Every entry that froze it, oldest first, lifted since or not: grants issued before one stay ended.
    pub orders: Vec<FreezeOrder>,
}

/// An entry that froze a scope: its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct FreezeOrder {
    /// Index of the entry.
    pub index: u64,
    /// The entry's time.
    pub at: Timestamp,
}

/// The entry that ordered a freeze.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FreezeMarker {
    /// Index of the entry.
    pub index: u64,
    /// The entry's time.
    pub at: Timestamp,
    /// The operator.
    pub by: PersonId,
    /// The operator's reason, unverified text; absent when none was given or retention dropped it.
    pub reason: Option<UntrustedText>,
}

/// The end of a task or grant by an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Ended {
    /// The cause.
    pub cause: EndCause,
    /// Index of the entry.
    pub index: u64,
    /// The entry's time.
    pub at: Timestamp,
    /// The outcome that the agent reported; tasks only.
    pub outcome: Option<TaskOutcome>,
}

impl TaskRecord {
    /// Whether it runs at `now`, by record and time alone: expiry takes effect before its entry is written.
    pub fn is_running(&self, now: Timestamp) -> bool {
        self.ended.is_none() && self.expired_cause(now).is_none()
    }

    /// When time ends it: the deadline or the lease, whichever is earlier.
    pub fn expires_at(&self) -> Timestamp {
        let deadline = self.opened.deadline;
        self.lease
            .map_or(deadline, |lease| lease.until.min(deadline))
    }

    /// The cause if time alone has ended it: the deadline or the lease, whichever is earlier.
    pub fn expired_cause(&self, now: Timestamp) -> Option<EndCause> {
        let lease = self.lease.map(|lease| lease.until);
        match lease.filter(|until| *until < self.opened.deadline) {
            Some(until) if now >= until => Some(EndCause::Lease),
            Some(_) => None,
            None => (now >= self.opened.deadline).then_some(EndCause::Deadline),
        }
    }
}

/// The access requests of one agent, for limits and back-off.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct AccessRequestHistory {
    /// Access requests that no entry has closed, each behind the time at which it expires.
    pub pending: BTreeSet<(Timestamp, AccessRequestId)>,
    /// Times of denials by people, oldest first: the last 32 since the agent was last resumed.
    pub denials: Vec<Timestamp>,
    /// Times at which access requests were opened, oldest first: the last 256.
    pub openings: VecDeque<Timestamp>,
}

/// Most openings of access requests kept for an agent.
pub const OPENINGS_KEPT_MAX: usize = 256;

/// Most denials kept for an agent.
pub const DENIALS_KEPT_MAX: usize = 32;

impl AccessRequestHistory {
    /// Number of kept openings after a point in time.
    pub fn openings_since(&self, moment: Timestamp) -> usize {
        self.openings
            .iter()
            .rev()
            .take_while(|at| **at > moment)
            .count()
    }
}

/// A vote that counted when it was cast.
#[derive(Debug, Clone)]
pub struct VoteRecord {
    /// The entry's body.
    pub cast: VoteCast,
    /// The signed statement, byte by byte; absent when retention dropped it: then the vote no longer counts.
    pub statement: Option<Arc<str>>,
    /// The facts that the voter's card showed, in canonical JSON; absent when retention dropped them.
    pub facts: Option<Arc<str>>,
    /// The WebAuthn evidence of a passkey's vote; absent for a vote by a plain key, and when retention dropped it.
    pub assertion: Option<Arc<str>>,
    /// The entry's time.
    pub at: Timestamp,
    /// Its index.
    pub index: u64,
}

/// The status of an access request as stored: before expiry by time and before the state of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredStatus {
    /// Waiting for votes, or for the agent to repeat its request after enough of them.
    Pending,
    /// A person denied it.
    Denied,
    /// A grant consumed it.
    Consumed(TokenId),
    /// A proposal: the policy bundle is in force.
    Applied,
    /// Closed without a grant or a denial.
    Closed(CloseCause),
}

/// A transition of an access request.
#[derive(Debug, Clone, Copy)]
pub(super) enum AccessEvent {
    Voted(Verdict),
    Consumed(TokenId),
    Applied,
    Closed(CloseCause),
}

/// A transition that [`StoredStatus`] does not have. No entry that makes one is written, and no journal that holds one is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IllegalTransition;

impl StoredStatus {
    /// INVARIANT (one approval, one use): nothing leaves `Denied`, `Consumed`, `Applied` or `Closed`.
    pub(super) fn after(self, event: AccessEvent) -> Result<Self, IllegalTransition> {
        match (self, event) {
            (Self::Pending, AccessEvent::Voted(Verdict::Approve)) => Ok(Self::Pending),
            (Self::Pending, AccessEvent::Voted(Verdict::Deny)) => Ok(Self::Denied),
            (Self::Pending, AccessEvent::Consumed(jti)) => Ok(Self::Consumed(jti)),
            (Self::Pending, AccessEvent::Applied) => Ok(Self::Applied),
            (Self::Pending, AccessEvent::Closed(cause)) => Ok(Self::Closed(cause)),
            (Self::Denied | Self::Consumed(_) | Self::Applied | Self::Closed(_), _) => {
                Err(IllegalTransition)
            }
        }
    }
}

/// An action that people approve or deny: pending, or closed and kept.
#[derive(Debug, Clone)]
pub struct AccessRequest {
    /// The entry's body that opened it.
    pub opened: Arc<AccessRequestOpened>,
    /// The decision with the profiles that it requires now; absent for a proposal by a person.
    pub decision: Option<Arc<DecisionRecord>>,
    /// The action with its sensitive parameters; absent when retention dropped them.
    pub action: Option<Arc<Action>>,
    /// Openings of the commitments in the action on record; absent without sensitive parameters, and when retention dropped them.
    pub secret: Option<Arc<ActionSecret>>,
    /// What a proposed policy bundle changes; absent for the request of an agent.
    pub changes: Option<Arc<PolicyChanges>>,
    /// The agent's reason, unverified text; absent when none was given or retention dropped it.
    pub reason: Option<UntrustedText>,
    /// Counted votes, oldest first.
    pub votes: Vec<Arc<VoteRecord>>,
    /// Its stored status.
    pub status: StoredStatus,
    /// The opening entry's time.
    pub opened_at: Timestamp,
    /// Since when it requires what it requires now: the time of the entry that said so.
    pub required_since: Timestamp,
    /// The opening entry's index: people and keys that a later entry added do not count for it.
    pub index: u64,
    /// 1 + the index of the last entry about it: where a watch of it resumes.
    pub version: Version,
}

impl AccessRequest {
    /// The profiles that it requires now.
    pub fn required_profiles(&self) -> &[ProfileRef] {
        match &self.decision {
            Some(decision) => &decision.required_profiles,
            None => self.opened.required_profiles(),
        }
    }

    /// The profiles that are still required once it has waited so many milliseconds without a no.
    pub fn required_after(&self, waited_ms: i64) -> &[ProfileRef] {
        match &self.decision {
            Some(decision) => decision.required_after(waited_ms),
            None => self.opened.required_profiles(),
        }
    }

    /// Milliseconds for which it has waited under what it requires now; 0 until the delay that people were shown is over, whatever less a
    /// rule may ask for.
    pub fn waited_ms(&self, now: Timestamp) -> i64 {
        let waited_ms = now.since(self.required_since);
        match self.delay() {
            Some(delay) if waited_ms >= delay.millis() => waited_ms,
            Some(_) | None => 0,
        }
    }

    /// Whether a decision before this moment may say that it waited so long.
    pub fn may_have_waited(&self, waited_ms: i64, at: Timestamp) -> bool {
        let decision = self.decision.as_ref();
        let waited = |decision: &Arc<DecisionRecord>| {
            decision.may_have_waited(waited_ms, at.since(self.required_since))
        };
        decision.map_or(waited_ms == 0, waited)
    }

    /// When time alone changes what it requires, unless somebody says no; absent where it expires before.
    pub fn delayed_until(&self) -> Option<Timestamp> {
        let at = self.required_since.plus_millis(self.delay()?.millis());
        (at < self.opened.expires_at).then_some(at)
    }

    /// The delay of what it requires now.
    pub fn delay(&self) -> Option<&Delay> {
        self.decision.as_ref()?.delay.as_ref()
    }

    /// The rules that determined what it requires now; none for a proposal by a person.
    pub fn rules(&self) -> &[RuleRef] {
        self.decision
            .as_ref()
            .map_or(&[], |decision| &decision.rules)
    }

    /// The comment to the agent by the person who denied it.
    pub fn comment(&self) -> Option<Comment> {
        let no = self
            .votes
            .iter()
            .find(|v| v.cast.verdict == Verdict::Deny)?;
        VoteStatement::parse(no.statement.as_ref()?).ok()?.comment
    }

    /// Whether an approver approved it. Only entries say so: registrations that changed since do not alter the answer.
    pub fn has_approval(&self) -> bool {
        let approves = |v: &Arc<VoteRecord>| v.cast.verdict == Verdict::Approve;
        self.votes.iter().any(approves)
    }

    /// Whether it is open and not expired at `now`. Does not look at its task.
    pub fn is_pending(&self, now: Timestamp) -> bool {
        self.status == StoredStatus::Pending && now < self.opened.expires_at
    }
}

/// One consumed use of a token.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TokenUse {
    /// The validator that consumed it.
    pub validator: ServiceId,
    /// Its idempotency key.
    pub use_id: UseId,
    /// Index of the entry.
    pub index: u64,
}

/// The durable record of one minted token.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The body of the issuing entry.
    pub issued: Arc<TokenIssued>,
    /// Epoch of that entry.
    pub epoch: u64,
    /// Index of that entry.
    pub index: u64,
    /// The action with its sensitive parameters; absent when retention dropped them.
    pub action: Option<Arc<Action>>,
    /// The agent's reason, unverified text; absent when none was given or retention dropped it.
    pub reason: Option<UntrustedText>,
    /// Consumed uses, oldest first.
    pub uses: Vec<TokenUse>,
    /// Signing keys of every issue and reissue.
    pub kids: Arc<[KeyId]>,
    /// Its own end by an entry, apart from its task's.
    pub ended: Option<Ended>,
}

impl Grant {
    /// Whether every allowed use was consumed; never for a grant without a limit.
    pub fn is_spent(&self) -> bool {
        self.issued
            .uses
            .is_some_and(|uses| self.uses.len() >= usize::try_from(uses).unwrap_or(usize::MAX))
    }
}

/// What became of an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum IdempotencyOutcome {
    /// It opened this access request, which may be closed.
    Requested(AccessRequestId),
    /// It got the grant of this token.
    Granted(TokenId),
}
