use std::sync::Arc;

use crate::broker::auth::authentication::ServiceCaller;
use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::access_token::{LEEWAY_S, TTL_MAX_S};
use crate::model::*;
use crate::policy::{Service, ServiceKind};
use crate::state::FeedEvent;

/// A place in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The life of the journal.
    pub epoch: u64,
    /// Index of the last entry read.
    pub index: u64,
}

/// How a watch begins.
#[derive(Debug)]
pub struct FeedStart {
    /// Who watches.
    pub caller: ServiceId,
    /// Longest life of the watch, in milliseconds: the caller proves itself again.
    pub life_ms: u64,
    /// Tell the validator that what follows is a complete start.
    pub resync: Option<Position>,
    /// Events above this index follow; `None` = from the first event on.
    pub after: Option<u64>,
}

/// Longest life of a watch, in milliseconds.
pub(in crate::broker) const WATCH_MAX_MS: u64 = 300_000;
/// Events read at once.
const FEED_BATCH: usize = 256;

impl Broker {
    /// Begins a watch of the revocation feed.
    pub fn watch_revocations(
        &self,
        call: &CallContext,
        after: Option<Position>,
    ) -> Result<FeedStart, Refusal> {
        let now = self.now();
        let ServiceCaller {
            id: caller, until, ..
        } = self.authenticate_service(call, now)?;
        let left = until.map_or(WATCH_MAX_MS, |until| {
            u64::try_from(until.since(now)).unwrap_or(0)
        });
        let life_ms = left.min(WATCH_MAX_MS);
        let (epoch, head) = self.state.position();
        // Events older than any token that can still live end nothing. Not this broker's own cap: the one before it may have
        // given longer lives.
        // By the clock validators have too, not by the latest moment acted on; while it cannot be relied on, from the first.
        let (steady, _) = self.clocks();
        let window = self
            .clock
            .now()
            .min(now)
            .plus_secs(-(TTL_MAX_S + 2 * LEEWAY_S));
        let start = match (steady, self.state.feed_since(window)) {
            (true, Some(first)) => first.checked_sub(1),
            (true, None) => self.state.feed_last(),
            (false, _) => None,
        };
        match after {
            Some(position) if position.epoch != epoch => Err(self.refuse(
                call.method,
                Reason::OtherEpoch,
                format!("the journal is in epoch {epoch}; watch anew without a position"),
            )),
            Some(position) if position.index > head => Err(self.refuse(
                call.method,
                Reason::PositionAhead,
                format!("the journal has come to {head}; watch anew without a position"),
            )),
            Some(position) if start.is_none_or(|start| start <= position.index) => Ok(FeedStart {
                caller,
                life_ms,
                resync: None,
                after: Some(position.index),
            }),
            Some(_) | None => Ok(FeedStart {
                caller,
                life_ms,
                resync: Some(Position {
                    epoch,
                    index: start.unwrap_or(0),
                }),
                after: start,
            }),
        }
    }

    /// The next events, and how far they have read the journal.
    pub fn feed_after(&self, after: Option<u64>) -> (Vec<Arc<FeedEvent>>, Position, Option<u64>) {
        // The position first: everything up to it is in state when the events are read.
        let (epoch, index) = self.state.position();
        let (events, last) = self.state.feed_after(after, FEED_BATCH);
        let read_through = if events.len() < FEED_BATCH {
            index
        } else {
            events.last().map_or(index, |e| e.index)
        };
        (
            events,
            Position {
                epoch,
                index: read_through,
            },
            last,
        )
    }

    /// Whether a service of this id is still registered: a watch ends when the policy bundle drops its caller.
    pub fn is_registered(&self, id: &ServiceId) -> bool {
        let validator = |service: &Service| service.kind == ServiceKind::Validator;
        self.views
            .rules()
            .is_some_and(|rules| rules.bundle.service(id).is_some_and(validator))
    }
}
