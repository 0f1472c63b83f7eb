//! Pending revocations: ends that are ordered and not yet recorded, enforced in memory from before their append, and written
//! by maintenance when the journal could not take it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::broker::governance::restriction::Restriction;
use crate::broker::sweep::SWEEP_READS_MAX;
use crate::broker::transaction::Tried;
use crate::broker::{Broker, PersonCaller, Refusal};
use crate::journal::{AppendError, Blob};
use crate::model::*;
use crate::state::{Draft, Grant, Read, TaskRecord};

/// The message for a revocation that could not be recorded.
const PENDING_MESSAGE: &str = "the journal is unavailable; the revocation is enforced on this broker now and will be recorded when the journal recovers: \
     repeat the call until it succeeds, because a restart before then loses it";

/// The target of a revocation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::broker) enum RevocationTarget {
    Task(TaskId),
    Agent(AgentId),
    Token(TokenId),
    Freeze(FreezeScope),
}

/// One order of a revocation, and what its entry records.
#[derive(Debug, Clone)]
pub(in crate::broker) struct PendingRevocation {
    /// The operator who ordered it, and the key of the order: it is recorded only while the key lives. `None`: a task's agent.
    pub(in crate::broker) by: Option<PersonCaller>,
    pub(in crate::broker) cause: EndCause,
    pub(in crate::broker) outcome: Option<TaskOutcome>,
    /// The operator's reason.
    pub(in crate::broker) reason: Option<Blob>,
}

impl PendingRevocation {
    pub(in crate::broker) fn new(operator: &PersonCaller, cause: EndCause) -> Self {
        Self {
            by: Some(operator.clone()),
            cause,
            outcome: None,
            reason: None,
        }
    }

    /// The entry of an ordered end of a task. A deadline or heartbeat that has passed is the cause, before any caller's: also one that
    /// passes before the entry is written.
    pub(in crate::broker) fn end_of(&self, task: &TaskRecord, now: Timestamp) -> Draft {
        let end = |cause, outcome, by| {
            Draft::one(Event::TaskEnded(TaskEnded {
                tasks: vec![task.opened.task],
                cause,
                outcome,
                by,
            }))
        };
        match task.expired_cause(now) {
            Some(expired) => end(expired, None, None),
            None => {
                let by = self.by.as_ref().map(|by| by.id.clone());
                end(self.cause, self.outcome, by).not_after(task.expires_at())
            }
        }
    }

    /// The entry of an ordered end of an active token: refused when time has ended it first.
    pub(in crate::broker) fn end_of_token(&self, read: &Read, grant: &Grant) -> Draft {
        let expires_at = Timestamp::from_secs(grant.issued.exp);
        let of_task = read.task(&grant.issued.task).map(|task| task.expires_at());
        Draft::one(Event::GrantsEnded(GrantsEnded {
            jtis: vec![grant.issued.jti],
            cause: self.cause,
            by: self.by.as_ref().map(|by| by.id.clone()),
        }))
        .not_after(of_task.map_or(expires_at, |at| at.min(expires_at)))
    }

    fn is_same_author(&self, other: &Self) -> bool {
        let author = |order: &Self| order.by.as_ref().map(|by| (by.id.clone(), by.key));
        author(self) == author(other)
    }
}

/// The revocations that are enforced here and not yet recorded: for each target every order of it, oldest first.
#[derive(Debug, Default)]
pub(in crate::broker) struct PendingRevocations {
    by_target: Mutex<BTreeMap<RevocationTarget, Vec<HeldOrder>>>,
    /// Changes when one is added.
    added: watch::Sender<()>,
}

/// An order that is enforced here.
#[derive(Debug, Clone)]
struct HeldOrder {
    id: OrderId,
    revocation: PendingRevocation,
    /// Maintenance records it: its call could not, or was dropped. Otherwise its call still does.
    is_deferred: bool,
}

/// Identity of one call's order.
#[derive(Debug, Clone, Default)]
struct OrderId(Arc<()>);

impl PartialEq for OrderId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl PendingRevocations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RevocationTarget, Vec<HeldOrder>>> {
        self.by_target
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when a revocation is enforced.
    pub(in crate::broker) fn subscribe(&self) -> watch::Receiver<()> {
        self.added.subscribe()
    }

    /// Keeps the orders of a target for which this holds; without any, the target is no longer held.
    fn retain(&self, target: &RevocationTarget, keep: impl FnMut(&HeldOrder) -> bool) {
        let mut pending = self.lock();
        if let Some(orders) = pending.get_mut(target) {
            orders.retain(keep);
            if orders.is_empty() {
                pending.remove(target);
            }
        }
    }
}

/// One call's order of a revocation, from [`Broker::hold_revocation`]. It is enforced here from before its first append, and until
/// an entry says it or the call is refused for good. A call that is dropped, or has no time left to try again, leaves it to
/// maintenance.
pub(in crate::broker) struct RevocationHold<'a> {
    broker: &'a Broker,
    target: RevocationTarget,
    id: OrderId,
}

impl RevocationHold<'_> {
    fn pending(&self) -> &PendingRevocations {
        &self.broker.pending_revocations
    }

    /// Enforces the revocation here, from before its append.
    pub(in crate::broker) fn begin(&self, revocation: PendingRevocation) {
        let mut pending = self.pending().lock();
        let orders = pending.entry(self.target.clone()).or_default();
        match orders.iter_mut().find(|order| order.id == self.id) {
            Some(own) => own.revocation = revocation,
            None => orders.push(HeldOrder {
                id: self.id.clone(),
                revocation,
                is_deferred: false,
            }),
        }
        drop(pending);
        self.pending().added.send_replace(());
    }

    /// Whether the order is enforced here.
    pub(in crate::broker) fn is_begun(&self) -> bool {
        let pending = self.pending().lock();
        let mut orders = pending.get(&self.target).into_iter().flatten();
        orders.any(|order| order.id == self.id)
    }

    /// Takes back the order of a call that is answered without an append, or refused for good: it may not give it, or the target
    /// is unknown or has ended.
    pub(in crate::broker) fn withdraw(&self) {
        self.pending()
            .retain(&self.target, |order| order.id != self.id);
    }

    /// The entry of the order is applied: it says what the orders that wait for maintenance say. Those of other calls stay until
    /// these have seen it.
    pub(in crate::broker) fn recorded(&self) {
        self.pending().retain(&self.target, |order| {
            order.id != self.id && !order.is_deferred
        });
    }

    /// Takes the error of an append: nothing was appended and the call is refused for good, or the order stays enforced.
    pub(in crate::broker) fn refused(&self, refusal: Refusal, error: &AppendError) -> Refusal {
        match error {
            AppendError::Ceiling(_)
            | AppendError::Illegal(_)
            | AppendError::TooLarge
            | AppendError::NotCanonical => {
                self.withdraw();
                refusal
            }
            AppendError::Conflict(_)
            | AppendError::TooLate
            | AppendError::DiskFull
            | AppendError::Busy
            | AppendError::QueueFull
            | AppendError::WriteFailed
            | AppendError::Closed
                if self.is_begun() =>
            {
                Refusal {
                    message: PENDING_MESSAGE.to_owned(),
                    ..refusal
                }
            }
            // Enforced here as well, but whether it is in the journal only the disk or the next start can tell.
            AppendError::OutcomeUnknown
            // Nothing was ordered yet.
            | AppendError::Conflict(_)
            | AppendError::TooLate
            | AppendError::DiskFull
            | AppendError::Busy
            | AppendError::QueueFull
            | AppendError::WriteFailed
            | AppendError::Closed => refusal,
        }
    }
}

/// Leaves an order that is still enforced to maintenance. One of the same author waits there at most once: a call that is repeated
/// during an outage adds nothing.
impl Drop for RevocationHold<'_> {
    fn drop(&mut self) {
        let mut pending = self.pending().lock();
        let Some(orders) = pending.get_mut(&self.target) else {
            return;
        };
        let Some(place) = orders.iter().position(|order| order.id == self.id) else {
            return;
        };
        let own = orders.remove(place);
        let mut waiting = orders.iter().filter(|order| order.is_deferred);
        if !waiting.any(|order| order.revocation.is_same_author(&own.revocation)) {
            let is_deferred = true;
            orders.insert(place, HeldOrder { is_deferred, ..own });
        }
    }
}

impl Broker {
    /// Prepares the recording of a revocation; nothing is enforced before its first append.
    pub(in crate::broker) fn hold_revocation(
        &self,
        target: RevocationTarget,
    ) -> RevocationHold<'_> {
        RevocationHold {
            broker: self,
            target,
            id: OrderId::default(),
        }
    }

    pub(in crate::broker) fn is_revocation_pending(&self, target: &RevocationTarget) -> bool {
        self.pending_revocations.lock().contains_key(target)
    }

    /// Number of revocations not yet recorded.
    pub fn pending_revocations(&self) -> usize {
        self.pending_revocations.lock().len()
    }

    /// The cause of a task's pending end, if one is not yet recorded.
    pub(in crate::broker) fn pending_task_end(&self, task: &TaskRecord) -> Option<EndCause> {
        let pending_revocations = self.pending_revocations.lock();
        // Nearly always empty.
        if pending_revocations.is_empty() {
            return None;
        }
        let opened = &task.opened;
        let registered = |id: &AgentId| self.show().rules().and_then(|r| r.bundle.agent(id));
        let owner_now = registered(&opened.agent).map(|agent| agent.owner.clone());
        let freezes = [Some(&opened.owner), owner_now.as_ref()]
            .into_iter()
            .flatten()
            .map(|owner| FreezeScope::Owner(owner.clone()))
            .chain([FreezeScope::All, FreezeScope::Agent(opened.agent.clone())])
            .map(RevocationTarget::Freeze);
        [
            RevocationTarget::Task(opened.task),
            RevocationTarget::Agent(opened.agent.clone()),
        ]
        .into_iter()
        .chain(freezes)
        .find_map(|target| first_cause(&pending_revocations, &target))
    }

    /// The cause of a grant's pending end, if one is not yet recorded.
    pub(in crate::broker) fn pending_grant_end(&self, grant: &Grant) -> Option<EndCause> {
        if self.pending_revocations.lock().is_empty() {
            return None;
        }
        let action = FreezeScope::Action(grant.issued.action.action.clone());
        let targets = [
            RevocationTarget::Token(grant.issued.jti),
            RevocationTarget::Freeze(action),
        ];
        let own_end = {
            let pending_revocations = self.pending_revocations.lock();
            let mut targets = targets.iter();
            targets.find_map(|target| first_cause(&pending_revocations, target))
        };
        own_end.or_else(|| {
            let task = self.show().task(&grant.issued.task)?;
            self.pending_task_end(&task)
        })
    }

    /// Records the pending revocations that the journal takes by now, and that no call records any more.
    pub(in crate::broker) async fn flush_pending_revocations(&self) -> Result<(), AppendError> {
        let mut waiting: Vec<(RevocationTarget, Vec<HeldOrder>)> = Vec::new();
        for (target, orders) in self.pending_revocations.lock().iter() {
            let deferred = orders.iter().filter(|order| order.is_deferred);
            let deferred: Vec<HeldOrder> = deferred.cloned().collect();
            if !deferred.is_empty() {
                waiting.push((target.clone(), deferred));
            }
        }
        // One that the journal refuses keeps none of the others from being recorded; the error is the first one's.
        let mut outcome = Ok(());
        for (target, orders) in waiting {
            let mut settled = Settled::All;
            let tried = self
                .try_append(|read| {
                    let (draft, of) = self.draft_of(read, &target, &orders);
                    settled = of;
                    draft
                })
                .await;
            match tried {
                Ok(Tried::Nothing | Tried::Appended) => {
                    self.settle_orders(&target, &orders, settled);
                }
                Ok(Tried::Conflict) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Removes the orders that a round has settled, and no other: one that was given meanwhile is judged by the next tick.
    fn settle_orders(&self, target: &RevocationTarget, orders: &[HeldOrder], settled: Settled) {
        let settled = match settled {
            Settled::All => orders,
            Settled::Unauthorized(first) => {
                let dropped = orders.get(..first).unwrap_or(orders);
                for by in dropped
                    .iter()
                    .filter_map(|order| order.revocation.by.as_ref())
                {
                    tracing::warn!(?target, by = %by.id, "dropped an order that was not recorded: its author is no longer an operator with that key");
                }
                dropped
            }
        };
        self.pending_revocations.retain(target, |held| {
            !settled.iter().any(|order| order.id == held.id)
        });
    }

    /// The draft of the oldest order whose author may still give it, and the orders that are settled when it is durable, or, without
    /// one, when what the round read holds.
    fn draft_of(
        &self,
        read: &Read,
        target: &RevocationTarget,
        orders: &[HeldOrder],
    ) -> (Option<Draft>, Settled) {
        if self.is_recorded(read, target) {
            return (None, Settled::All);
        }
        for (n, order) in orders.iter().enumerate() {
            let revocation = &order.revocation;
            let by = revocation.by.as_ref();
            if by.is_none_or(|caller| self.is_operator(read, caller)) {
                return (self.entry_of(read, target, revocation), Settled::All);
            }
            if read.len() > SWEEP_READS_MAX {
                return (None, Settled::Unauthorized(n + 1));
            }
        }
        (None, Settled::Unauthorized(orders.len()))
    }

    /// Whether an entry or time has ended the target.
    fn is_recorded(&self, read: &Read, target: &RevocationTarget) -> bool {
        match target {
            RevocationTarget::Task(id) => read.task(id).is_none_or(|task| task.ended.is_some()),
            RevocationTarget::Agent(agent) => read.is_suspended(agent),
            RevocationTarget::Token(jti) => read
                .grant(jti)
                .is_none_or(|grant| read.end_cause(&grant, self.now()).is_some()),
            RevocationTarget::Freeze(scope) => read.is_frozen(scope),
        }
    }

    /// The entry of an order whose target has not ended.
    fn entry_of(
        &self,
        read: &Read,
        target: &RevocationTarget,
        order: &PendingRevocation,
    ) -> Option<Draft> {
        let ordered = |restriction: &Restriction| {
            let by = order.by.as_ref()?.id.clone();
            Some(restriction.ordered(by, order.reason.clone()))
        };
        match target {
            RevocationTarget::Task(id) => Some(order.end_of(&*read.task(id)?, self.now())),
            RevocationTarget::Token(jti) => Some(order.end_of_token(read, &*read.grant(jti)?)),
            RevocationTarget::Agent(agent) => ordered(&Restriction::Suspension(agent.clone())),
            RevocationTarget::Freeze(scope) => ordered(&Restriction::Freeze(scope.clone())),
        }
    }
}

/// The orders of a target that a round of maintenance has settled.
#[derive(Debug, Clone, Copy)]
enum Settled {
    /// All of them: the target has ended.
    All,
    /// As many, from the oldest on, whose authors may no longer give them.
    Unauthorized(usize),
}

/// The cause of the oldest order of a target.
fn first_cause(
    pending: &BTreeMap<RevocationTarget, Vec<HeldOrder>>,
    target: &RevocationTarget,
) -> Option<EndCause> {
    let order = pending.get(target)?.first()?;
    Some(order.revocation.cause)
}
