//! The revocation feed: every end so far, in journal order, for validators.

use std::sync::{Arc, PoisonError, RwLock};

use crate::model::{ActionName, AgentId, TaskId, Timestamp, TokenId};

/// The tokens that a revocation event ends, named only by claims that the tokens carry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// Every token of these tasks (`txn`).
    Tasks(Vec<TaskId>),
    /// These tokens (`jti`).
    Tokens(Vec<TokenId>),
    /// Every token of this agent (`client_id`) decided before the event: its (epoch, `pos`) is below the event's.
    Agent(AgentId),
    /// The same, for each of these agents.
    Agents(Vec<AgentId>),
    /// Every token for this action decided before the event.
    Action(ActionName),
    /// Every token decided before the event.
    All,
}

/// One event of the revocation feed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FeedEvent {
    /// Epoch of the journal.
    pub epoch: u64,
    /// Index of the entry.
    pub index: u64,
    /// Index of the event before this one, so that a validator detects a gap; absent for the first.
    pub prev: Option<u64>,
    /// The entry's time.
    pub at: Timestamp,
    /// The tokens it ends.
    pub selector: Selector,
}

/// Every event so far, in order of index.
#[derive(Debug, Default)]
pub(super) struct Feed(RwLock<Vec<Arc<FeedEvent>>>);

impl Feed {
    pub(super) fn push(&self, epoch: u64, index: u64, at: Timestamp, selector: Selector) {
        let mut events = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let prev = events.last().map(|e| e.index);
        events.push(Arc::new(FeedEvent {
            epoch,
            index,
            prev,
            at,
            selector,
        }));
    }

    /// At most `max` events with an index above `after`, or from the start, and the index of the last event.
    pub(super) fn after(
        &self,
        after: Option<u64>,
        max: usize,
    ) -> (Vec<Arc<FeedEvent>>, Option<u64>) {
        let events = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let from = after.map_or(0, |index| events.partition_point(|e| e.index <= index));
        (
            events.iter().skip(from).take(max).cloned().collect(),
            events.last().map(|e| e.index),
        )
    }

    /// Index of the first event at or after a point in time.
    pub(super) fn since(&self, moment: Timestamp) -> Option<u64> {
        let events = self.0.read().unwrap_or_else(PoisonError::into_inner);
        events
            .get(events.partition_point(|e| e.at < moment))
            .map(|e| e.index)
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .last()
            .map(|e| e.index)
    }
}
