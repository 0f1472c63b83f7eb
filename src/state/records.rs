//! What the fold keeps of tasks, access requests and grants. Each lies in one `Arc` with the version of its stream.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::model::*;

/// A task as the journal tells it.
#[derive(Debug, Clone)]
pub struct Task {
    /// How it began.
    pub opened: Arc<TaskOpened>,
    /// Why, in the agent's words; absent when retention dropped it.
    pub purpose: Option<Prose>,
    /// Until when its heartbeat keeps it; absent for a task without one.
    pub lease: Option<Lease>,
    /// How it ended, if it did.
    pub ended: Option<Ended>,
    /// Version of its stream.
    pub version: Version,
}

/// How long a task with a heartbeat lives without a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Lease {
    /// Then it is over.
    pub until: Timestamp,
    /// Version of its stream; 0 until it is extended.
    pub version: Version,
}

/// A freeze of one scope, as the journal tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Freeze {
    /// In force: the entry that ordered it, when, and by whom.
    pub in_force: Option<FrozenAt>,
    /// Index of the last entry that froze it, lifted since or not: what was given before is dead for good.
    pub last: Option<u64>,
}

/// When and by whom something was frozen.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FrozenAt {
    /// Which entry.
    pub index: u64,
    /// When.
    pub at: Timestamp,
    /// The operator.
    pub by: PersonId,
    /// Why, in the operator's words.
    pub reason: Option<Prose>,
}

/// An end: one entry, one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Ended {
    /// Why.
    pub cause: EndCause,
    /// Which entry.
    pub index: u64,
    /// When.
    pub at: Timestamp,
    /// What the agent said of it.
    pub outcome: Option<TaskOutcome>,
}

impl Task {
    /// Whether it still runs: a function of the record and the moment. The entry a timer writes later decides nothing.
    pub fn runs(&self, now: Timestamp) -> bool {
        self.ended.is_none() && self.lapsed(now).is_none()
    }

    /// What time alone has brought to an end: the deadline or a missed heartbeat, whichever came first.
    pub fn lapsed(&self, now: Timestamp) -> Option<EndCause> {
        let lease = self.lease.map(|lease| lease.until);
        match lease.filter(|until| *until < self.opened.deadline) {
            Some(until) if now >= until => Some(EndCause::Lease),
            Some(_) => None,
            None => (now >= self.opened.deadline).then_some(EndCause::Deadline),
        }
    }
}

/// What an agent asks of people.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Asks {
    /// Access requests that did not stop waiting by an entry.
    pub waiting: BTreeSet<AccessRequestId>,
    /// When people said no, oldest first: the last [`NOES_KEPT`] since the agent was last resumed.
    pub noes: Vec<Timestamp>,
    /// When access requests were opened, oldest first: the last [`OPENS_KEPT`].
    pub opens: VecDeque<Timestamp>,
}

/// Openings that are remembered of an agent.
pub const OPENS_KEPT: usize = 256;

/// Noes of people that are remembered of an agent.
pub const NOES_KEPT: usize = 32;

impl Asks {
    /// How many were opened after a moment.
    pub fn opens_since(&self, moment: Timestamp) -> usize {
        self.opens
            .iter()
            .rev()
            .take_while(|at| **at > moment)
            .count()
    }

    /// How many noes there were after a moment.
    pub fn noes_since(&self, moment: Timestamp) -> usize {
        self.noes.iter().filter(|at| **at > moment).count()
    }
}

/// A vote that was counted when it was cast.
#[derive(Debug, Clone)]
pub struct Vote {
    /// As entered.
    pub cast: VoteCast,
    /// What was signed, exactly as signed; absent when retention dropped it: then it counts no more.
    pub statement: Option<Arc<str>>,
    /// What a passkey signed beside the statement's digest; absent for a vote by a key, and when retention dropped it.
    pub assertion: Option<Arc<str>>,
    /// When it was entered.
    pub at: Timestamp,
}

/// Where an access request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessStatus {
    /// It waits for votes, or for the agent to come back with enough of them.
    Waiting,
    /// Someone said no.
    Denied,
    /// A grant consumed it.
    Consumed(TokenId),
    /// It was closed.
    Closed(CloseCause),
}

/// What happens to an access request.
#[derive(Debug, Clone, Copy)]
pub(super) enum AccessEvent {
    Voted(Verdict),
    Consumed(TokenId),
    Closed(CloseCause),
}

/// Something the table of states does not have. A committed entry never does this; if one did, the dead stay dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Illegal;

impl AccessStatus {
    /// INVARIANT (one approval, one grant): nothing leaves `Denied`, `Consumed` or `Closed`.
    pub(super) fn on(self, event: AccessEvent) -> Result<Self, Illegal> {
        match (self, event) {
            (Self::Waiting, AccessEvent::Voted(Verdict::Approve)) => Ok(Self::Waiting),
            (Self::Waiting, AccessEvent::Voted(Verdict::Deny)) => Ok(Self::Denied),
            (Self::Waiting, AccessEvent::Consumed(jti)) => Ok(Self::Consumed(jti)),
            (Self::Waiting, AccessEvent::Closed(cause)) => Ok(Self::Closed(cause)),
            (Self::Denied | Self::Consumed(_) | Self::Closed(_), _) => Err(Illegal),
        }
    }
}

/// An action waiting for gate 2.
#[derive(Debug, Clone)]
pub struct AccessRequest {
    /// How it began.
    pub opened: Arc<AccessRequestOpened>,
    /// The action in plain; absent when retention dropped its sensitive part.
    pub action: Option<Arc<Action>>,
    /// The agent's words.
    pub reason: Option<Prose>,
    /// Counted votes, oldest first.
    pub votes: Vec<Arc<Vote>>,
    /// Where it stands.
    pub status: AccessStatus,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// Version of its stream.
    pub version: Version,
}

impl AccessRequest {
    /// What the person who said no tells the agent.
    pub fn comment(&self) -> Option<Comment> {
        let no = self
            .votes
            .iter()
            .find(|v| v.cast.verdict == Verdict::Deny)?;
        VoteStatement::parse(no.statement.as_ref()?).ok()?.comment
    }

    /// Whether people may still decide it, as far as the request alone tells.
    pub fn waits(&self, now: Timestamp) -> bool {
        self.status == AccessStatus::Waiting && now < self.opened.expires_at
    }
}

/// One spending of a use.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Use {
    /// By which validator.
    pub validator: ServiceId,
    /// Its idempotency key.
    pub use_id: UseId,
    /// Which entry.
    pub index: u64,
}

/// The durable record of one minted token.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The entry that is the grant.
    pub issued: Arc<TokenIssued>,
    /// Epoch of that entry.
    pub epoch: u64,
    /// Index of that entry.
    pub index: u64,
    /// The action in plain; absent when retention dropped its sensitive part.
    pub action: Option<Arc<Action>>,
    /// The agent's reason.
    pub reason: Option<Prose>,
    /// Spent uses.
    pub uses: Vec<Use>,
    /// Keys it was signed with; the taint of any ends it.
    pub kids: Arc<[KeyId]>,
    /// Its own end, apart from its task's.
    pub ended: Option<Ended>,
    /// Version of its token's stream; 0 until it is used, reissued or ended.
    pub version: Version,
}

impl Grant {
    /// Whether every use is spent.
    pub fn spent(&self) -> bool {
        self.issued
            .uses
            .is_some_and(|uses| self.uses.len() >= usize::try_from(uses).unwrap_or(usize::MAX))
    }
}

/// What an idempotency key was settled to: the answer every retry gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IdempotencyOutcome {
    /// This grant.
    Granted(TokenId),
    /// A person's no, or expiry, of this access request.
    Refused(AccessRequestId),
}

/// Proof that a grant stands in the journal: made by state, and only from a committed entry.
#[derive(Debug)]
pub struct Recorded {
    grant: Arc<Grant>,
}

impl Recorded {
    pub(super) const fn new(grant: Arc<Grant>) -> Self {
        Self { grant }
    }

    /// The grant as of the last entry folded.
    pub const fn grant(&self) -> &Arc<Grant> {
        &self.grant
    }
}
