//! Appends of maintenance: a conflict is an answer, not an error.

use crate::broker::Broker;
use crate::journal::{Append, AppendError};
use crate::model::*;

impl Broker {
    /// Appends one event; false on a conflict: the next round evaluates again.
    pub(in crate::broker) async fn try_append_event(
        &self,
        event: Event,
        moves: Vec<(Stream, Version)>,
    ) -> Result<bool, AppendError> {
        self.try_append(Append::one(event, moves)).await
    }

    /// The same for an append with a read set.
    pub(in crate::broker) async fn try_append(&self, append: Append) -> Result<bool, AppendError> {
        match self.journal.append(append).await {
            Ok(_) => Ok(true),
            Err(AppendError::Conflict(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
