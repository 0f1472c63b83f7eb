//! Revocation feed: events for validators, and the position a watch starts from.

use std::sync::Arc;

use crate::broker::auth::authentication::{ServiceCaller, WATCH_MAX_MS};
use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::access_token::{LEEWAY_S, TTL_MAX_S};
use crate::model::*;
use crate::policy::ServiceKind;
use crate::state::FeedEvent;

/// The start of a revocation watch.
#[derive(Debug)]
pub struct FeedStart {
    /// The watching service, with the credential it called with.
    caller: ServiceCaller,
    /// Longest life of the watch, in milliseconds; then the caller authenticates again.
    pub life_ms: u64,
    /// The validator starts over: the events after this position are complete.
    pub resync: Option<JournalPosition>,
    /// Events above this index follow; `None`: all events.
    pub after: Option<u64>,
}

impl FeedStart {
    /// The watching service.
    pub const fn caller(&self) -> &ServiceId {
        &self.caller.id
    }
}

/// Events read at once.
const FEED_BATCH: usize = 256;

impl Broker {
    /// Starts a watch of the revocation feed.
    pub fn watch_revocations(
        &self,
        call: &CallContext,
        after: Option<JournalPosition>,
    ) -> Result<FeedStart, Refusal> {
        let now = self.now();
        let caller = self.authenticate_service(call, now)?;
        let left = caller.expires_at().map_or(WATCH_MAX_MS, |until| {
            u64::try_from(until.since(now)).unwrap_or(0)
        });
        let life_ms = left.min(WATCH_MAX_MS);
        let (epoch, head) = self.show().position();
        // Events older than the longest possible token end no active token. The limit is the protocol's, not this broker's cap:
        // an earlier configuration may have allowed longer lives. Measured by the wall clock, which validators share; while it
        // is unreliable, from the first event.
        let (steady, _) = self.clock_status();
        let window = self
            .clock
            .now()
            .min(now)
            .plus_secs(-(TTL_MAX_S + 2 * LEEWAY_S));
        let start = match (steady, self.show().feed_since(window)) {
            (true, Some(first)) => first.checked_sub(1),
            (true, None) => self.show().feed_last(),
            (false, _) => None,
        };
        match after {
            Some(position) if position.epoch != epoch => Err(self.refuse(
                call.method,
                Reason::EpochMismatch,
                format!("the journal is in epoch {epoch}: watch again without a position"),
            )),
            Some(position) if position.index > head => Err(self.refuse(
                call.method,
                Reason::PositionAhead,
                format!("the journal is at index {head}: watch again without a position"),
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
                resync: Some(JournalPosition {
                    epoch,
                    index: start.unwrap_or(0),
                }),
                after: start,
            }),
        }
    }

    /// The next events, and the journal position they include.
    pub fn feed_after(
        &self,
        after: Option<u64>,
    ) -> (Vec<Arc<FeedEvent>>, JournalPosition, Option<u64>) {
        // The position first: everything up to it is in state when the events are read.
        let (epoch, index) = self.show().position();
        let (events, last) = self.show().feed_after(after, FEED_BATCH);
        let read_through = if events.len() < FEED_BATCH {
            index
        } else {
            events.last().map_or(index, |e| e.index)
        };
        (
            events,
            JournalPosition {
                epoch,
                index: read_through,
            },
            last,
        )
    }

    /// Requires that a validator is still registered with the credential that its watch began with.
    pub fn require_registered(
        &self,
        method: &'static str,
        watch: &FeedStart,
    ) -> Result<(), Refusal> {
        self.preview(|read| {
            self.require_service(read, method, &watch.caller, ServiceKind::Validator)
                .map(drop)
        })
    }
}
