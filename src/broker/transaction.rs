//! Optimistic transactions: read, decide, append, and decide anew when another append came first.

use std::sync::Arc;

use tokio::time::Instant;

use super::keyed_mutex::KeyedMutexGuard;
use super::{Broker, Refusal};
use crate::journal::{Append, AppendError};
use crate::model::*;

/// Attempts of a transaction that is retried until it succeeds: each conflict means that another append succeeded.
pub(super) const UNTIL_DONE: usize = usize::MAX;

/// One attempt of a transaction: made by [`Broker::transaction`], spent by its append.
pub(super) struct Transaction<'a> {
    broker: &'a Broker,
    method: &'static str,
    number: usize,
    /// The latest answer of the journal.
    deadline: Instant,
}

/// Why an attempt ended without an answer.
pub(super) enum TransactionError {
    /// A stream moved after it was read, or the decision came too late: nothing was appended, decide anew.
    Retry,
    /// The answer is a refusal.
    Refused(Refusal),
}

impl From<Refusal> for TransactionError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Broker {
    /// Runs [`Broker::transaction`] when no other call is in one for this stream: a repetition of a call waits for the first
    /// one and finds what it made, instead of racing it to a conflict.
    ///
    /// The wait for the turn counts into the time that the journal has to answer: however many calls wait for one stream while
    /// the disk hangs, each is answered within [`crate::journal::APPEND_TIME_MAX`].
    ///
    /// A call whose client is gone passes its turn on. Its append may still be under way: then the next call conflicts with
    /// it once or twice, and finds what it made.
    pub(super) async fn transaction_on<'a, T, Answer>(
        &'a self,
        stream: Stream,
        method: &'static str,
        attempts: usize,
        conflict: &'static str,
        decide: impl FnMut(Transaction<'a>) -> Answer,
    ) -> Result<T, Refusal>
    where
        Answer: Future<Output = Result<T, TransactionError>>,
    {
        let deadline = self.journal.append_deadline();
        let _turn = self.take_turn(stream, method, deadline).await?;
        self.transaction_until(deadline, method, attempts, conflict, decide)
            .await
    }

    /// Waits for the turn of a call for a stream; after the deadline the call is refused, and nothing was done.
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

    /// Runs `decide` until it answers, at most `attempts` times; then refuses with [`Reason::Conflict`] and `conflict`.
    ///
    /// A conflict leaves nothing: the journal takes an append whole or not at all, and the next attempt reads everything
    /// anew. A crash before the append leaves nothing either; a crash after it leaves the entry and a caller without an
    /// answer, and the same call again finds what the entry made.
    pub(super) async fn transaction<'a, T, Answer>(
        &'a self,
        method: &'static str,
        attempts: usize,
        conflict: &'static str,
        decide: impl FnMut(Transaction<'a>) -> Answer,
    ) -> Result<T, Refusal>
    where
        Answer: Future<Output = Result<T, TransactionError>>,
    {
        let deadline = self.journal.append_deadline();
        self.transaction_until(deadline, method, attempts, conflict, decide)
            .await
    }

    /// The same for a call that began earlier: the journal answers all its attempts before the deadline.
    pub(super) async fn transaction_until<'a, T, Answer>(
        &'a self,
        deadline: Instant,
        method: &'static str,
        attempts: usize,
        conflict: &'static str,
        mut decide: impl FnMut(Transaction<'a>) -> Answer,
    ) -> Result<T, Refusal>
    where
        Answer: Future<Output = Result<T, TransactionError>>,
    {
        for number in 0..attempts {
            let attempt = Transaction {
                broker: self,
                method,
                number,
                deadline,
            };
            match decide(attempt).await {
                Ok(answer) => return Ok(answer),
                Err(TransactionError::Retry) => {}
                Err(TransactionError::Refused(refusal)) => return Err(refusal),
            }
        }
        Err(self.refuse(method, Reason::Conflict, conflict))
    }
}

impl Transaction<'_> {
    /// Whether no attempt was made before this one.
    pub(super) const fn is_first(&self) -> bool {
        self.number == 0
    }

    /// Appends what the attempt decided. An append that the journal cannot take refuses the call.
    pub(super) async fn append(self, append: Append) -> Result<Arc<Entry>, TransactionError> {
        let (broker, method) = (self.broker, self.method);
        self.append_or(append, |error| broker.refuse_append(method, error))
            .await
    }

    /// Appends what the attempt decided; `refuse` makes the refusal when the journal cannot take the append.
    pub(super) async fn append_or(
        self,
        append: Append,
        refuse: impl FnOnce(&AppendError) -> Refusal,
    ) -> Result<Arc<Entry>, TransactionError> {
        let journal = &self.broker.journal;
        match journal.append_until(append, self.deadline).await {
            Ok(entry) => Ok(entry),
            Err(AppendError::Conflict(_) | AppendError::TooLate) => Err(TransactionError::Retry),
            Err(error) => Err(refuse(&error).into()),
        }
    }
}
