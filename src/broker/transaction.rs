//! Transactions: one round of reading, one decision, one append that rests on all that was read; decided anew when something moved.
//!
//! A decision is a synchronous function of a [`Read`]: nothing that it read is held across a wait or a lock. What it read is recorded by
//! the reader and becomes the append's read set here, so no use case names a stream. An answer that appends nothing is given only if
//! its read set still holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::governance::pending_revocation::{PendingRevocation, RevocationHold};
use super::keyed_mutex::KeyedMutexGuard;
use super::order_queue::OrderTurn;
use super::{Broker, PersonCaller, Refusal};
use crate::journal::{Append, AppendError, ReadSet};
use crate::model::*;
use crate::state::{Draft, DraftError, Read};

/// What a round decided.
#[derive(Debug)]
pub(super) enum Step<T> {
    /// An answer that appends nothing.
    Answer(T),
    /// An append, and the answer once it is durable.
    Append(Draft, T),
    /// The same for an end that is enforced here from before its append: see [`Transaction::holding`].
    Revoke(Draft, PendingRevocation, T),
}

/// The answer of a transaction.
#[derive(Debug)]
pub(super) struct Done<T> {
    /// What the last round decided.
    pub(super) value: T,
    /// The first entry of its append; absent when it appended nothing.
    pub(super) entry: Option<Arc<Entry>>,
    /// What the answer rests on: once a stream in it has moved, another round may answer otherwise.
    pub(super) reads: ReadSet,
}

/// A call's transaction: made by [`Broker::transaction`].
pub(super) struct Transaction<'b> {
    broker: &'b Broker,
    method: &'static str,
    /// The latest answer of the journal to all its rounds.
    deadline: Instant,
    hold: Option<&'b RevocationHold<'b>>,
    order: Order,
}

/// How a transaction gets through beside others that move the same streams.
#[derive(Debug)]
enum Order {
    /// It is asked again until its deadline.
    None,
    /// An order of this person: after two conflicts it queues with the applies of policy bundles.
    Person(PersonId),
    /// An apply: it always queues.
    Apply,
}

/// What maintenance made of one round.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tried {
    /// There was nothing to append, by a round whose read set holds.
    Nothing,
    /// Something moved: the next tick decides anew.
    Conflict,
    /// The entry.
    Appended,
}

/// Conflicts of an order before it queues.
const CONFLICTS_BEFORE_QUEUE: usize = 2;
/// Pause after a round that met a stream in motion: the writer is folding an entry in.
const TORN_PAUSE: Duration = Duration::from_millis(1);

/// A round after its reader was dropped.
enum Round<T> {
    Torn,
    Answer(Result<T, Refusal>, ReadSet),
    Append(Box<Append>, ReadSet, Option<PendingRevocation>, T),
    Illegal(AppendError),
}

impl Broker {
    /// A transaction of a call that begins now.
    pub(super) fn transaction(&self, method: &'static str) -> Transaction<'_> {
        self.transaction_until(self.journal.append_deadline(), method)
    }

    /// The same for a call that began earlier: the journal answers all its rounds before the deadline.
    pub(super) const fn transaction_until(
        &self,
        deadline: Instant,
        method: &'static str,
    ) -> Transaction<'_> {
        Transaction {
            broker: self,
            method,
            deadline,
            hold: None,
            order: Order::None,
        }
    }

    /// Waits for the turn of a call for a stream; after the deadline the call is refused, and nothing was done.
    ///
    /// A repetition of a call waits for the first one and finds what it made, instead of racing it to a conflict. The wait counts into
    /// the time that the journal has to answer: however many calls wait for one stream while the disk hangs, each is answered within
    /// [`crate::journal::APPEND_TIME_MAX`]. A call whose client is gone passes its turn on.
    pub(super) async fn take_turn(
        &self,
        stream: Stream,
        method: &'static str,
        deadline: Instant,
    ) -> Result<KeyedMutexGuard<'_, Stream>, Refusal> {
        let turn = tokio::time::timeout_at(deadline, self.turns.lock(stream));
        turn.await
            .map_err(|_elapsed| self.refuse_append(method, &AppendError::Busy))
    }

    /// An answer that appends nothing, from a round whose read set still holds.
    pub(super) async fn answer<T>(&self, mut decide: impl FnMut(&Read) -> T) -> T {
        loop {
            let round = {
                let read = self.state.read();
                let answer = decide(&read);
                read.holds().then_some(answer)
            };
            match round {
                Some(answer) => return answer,
                None => tokio::time::sleep(TORN_PAUSE).await,
            }
        }
    }

    /// What gate 2 would say, for a page: a round that appends nothing and is not checked again.
    pub(super) fn preview<T>(&self, look: impl FnOnce(&Read) -> T) -> T {
        look(&self.state.read())
    }

    /// One round of maintenance or of a start: appends what it drafts. A conflict is an answer.
    pub(super) async fn try_append(
        &self,
        decide: impl FnOnce(&Read) -> Option<Draft>,
    ) -> Result<Tried, AppendError> {
        self.try_append_until(self.journal.append_deadline(), decide)
            .await
    }

    /// The same within the time that is left to it.
    pub(super) async fn try_append_until(
        &self,
        deadline: Instant,
        decide: impl FnOnce(&Read) -> Option<Draft>,
    ) -> Result<Tried, AppendError> {
        let append = {
            let read = self.state.read();
            match decide(&read).map(|draft| read.append(draft)) {
                None if read.holds() => return Ok(Tried::Nothing),
                None => return Ok(Tried::Conflict),
                Some(Err(DraftError::Torn)) => return Ok(Tried::Conflict),
                Some(Err(DraftError::Illegal(illegal))) => {
                    return Err(AppendError::Illegal(illegal));
                }
                Some(Ok(append)) => append,
            }
        };
        self.before_append("maintenance").await;
        match self.journal.append_until(append, deadline).await {
            Ok(_) => Ok(Tried::Appended),
            Err(AppendError::Conflict(_)) => {
                self.metrics.append_conflicted();
                Ok(Tried::Conflict)
            }
            Err(AppendError::TooLate) => Ok(Tried::Conflict),
            Err(error) => Err(error),
        }
    }

    /// The place where a test lets another call come first: after the last read, before the append or the check of an answer.
    async fn before_append(&self, method: &'static str) {
        if let Some(hook) = &self.before_append {
            hook(method).await;
        }
    }
}

impl<'b> Transaction<'b> {
    /// An order of a person: it gets through beside a loop of applies, and of another person's orders.
    pub(super) fn ordered_by(mut self, by: &PersonCaller) -> Self {
        self.order = Order::Person(by.id.clone());
        self
    }

    /// An apply of a policy bundle.
    pub(super) fn applying(mut self) -> Self {
        self.order = Order::Apply;
        self
    }

    /// Enforces what [`Step::Revoke`] orders on this broker from before its append.
    pub(super) const fn holding(mut self, hold: &'b RevocationHold<'b>) -> Self {
        self.hold = Some(hold);
        self
    }

    /// Runs rounds of `decide` until one is durable, or is an answer whose read set holds. A call that has no answer by its deadline is
    /// refused, and nothing was done; an order that was begun stays enforced here, and maintenance records it.
    ///
    /// A conflict leaves nothing: the journal takes an append whole or not at all, and the next round reads everything anew. A crash
    /// before the append leaves nothing either; a crash after it leaves the entry and a caller without an answer, and the same call
    /// again finds what the entry made.
    pub(super) async fn run<T>(
        self,
        mut decide: impl FnMut(&Read) -> Result<Step<T>, Refusal>,
    ) -> Result<Done<T>, Refusal> {
        let (broker, method, deadline) = (self.broker, self.method, self.deadline);
        let mut conflicts = 0;
        loop {
            let queues = match self.order {
                Order::None => false,
                Order::Person(_) => conflicts >= CONFLICTS_BEFORE_QUEUE,
                Order::Apply => true,
            };
            // Held around one round alone. The queue is fair: an order waits for those before it, never for those after it.
            let _queued = match queues {
                true => Some(self.queue().await?),
                false => None,
            };
            let mut torn = false;
            match self.round(&mut decide) {
                Round::Torn => torn = true,
                Round::Illegal(error) => return Err(self.refuse(&error)),
                Round::Answer(answer, reads) => {
                    broker.before_append(method).await;
                    if broker.state.holds(&reads) {
                        let entry = None;
                        if let Some(hold) = self.hold {
                            hold.withdraw();
                        }
                        return answer.map(|value| Done {
                            value,
                            entry,
                            reads,
                        });
                    }
                    // A refusal says no more than that nothing was done, and an order that is enforced here is more.
                    let is_held = self.hold.is_some_and(RevocationHold::is_begun);
                    if answer.is_err() && !is_held && Instant::now() >= deadline {
                        return answer.map(|value| Done {
                            value,
                            entry: None,
                            reads,
                        });
                    }
                }
                Round::Append(append, reads, revocation, value) => {
                    if let (Some(hold), Some(revocation)) = (self.hold, revocation) {
                        hold.begin(revocation);
                    }
                    broker.before_append(method).await;
                    let outcome = broker.journal.append_until(*append, deadline).await;
                    match outcome {
                        Ok(entry) => {
                            if let Some(hold) = self.hold {
                                hold.recorded();
                            }
                            return Ok(Done {
                                value,
                                entry: Some(entry),
                                reads,
                            });
                        }
                        Err(AppendError::Conflict(_)) => broker.metrics.append_conflicted(),
                        Err(AppendError::TooLate) => {}
                        Err(error) => return Err(self.refuse(&error)),
                    }
                }
            }
            conflicts += 1;
            if Instant::now() >= deadline {
                return Err(self.refuse(&AppendError::Busy));
            }
            if torn {
                tokio::time::sleep(TORN_PAUSE).await;
            }
        }
    }

    /// One round: its reader lives no longer than the decision.
    fn round<T>(&self, decide: &mut impl FnMut(&Read) -> Result<Step<T>, Refusal>) -> Round<T> {
        let read = self.broker.state.read();
        let (draft, revocation, value) = match decide(&read) {
            Ok(Step::Append(draft, value)) => (draft, None, value),
            Ok(Step::Revoke(draft, revocation, value)) => (draft, Some(revocation), value),
            Ok(Step::Answer(value)) => return answer(&read, Ok(value)),
            Err(refusal) => return answer(&read, Err(refusal)),
        };
        match read.append(draft) {
            Ok(append) => Round::Append(Box::new(append), read.read_set(), revocation, value),
            Err(DraftError::Torn) => Round::Torn,
            Err(DraftError::Illegal(illegal)) => Round::Illegal(AppendError::Illegal(illegal)),
        }
    }

    /// The refusal of a call whose append failed. An order that is enforced here stays so, and says so.
    fn refuse(&self, error: &AppendError) -> Refusal {
        let refusal = self.broker.refuse_append(self.method, error);
        match self.hold {
            Some(hold) => hold.refused(refusal, error),
            None => refusal,
        }
    }

    async fn queue(&self) -> Result<OrderTurn<'b>, Refusal> {
        let of = match &self.order {
            Order::Person(person) => Some(person),
            Order::None | Order::Apply => None,
        };
        tokio::time::timeout_at(self.deadline, self.broker.order_queue.turn(of))
            .await
            .map_err(|_elapsed| self.refuse(&AppendError::Busy))
    }
}

fn answer<T>(read: &Read, answer: Result<T, Refusal>) -> Round<T> {
    match read.holds() {
        true => Round::Answer(answer, read.read_set()),
        false => Round::Torn,
    }
}
