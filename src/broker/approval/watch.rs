//! Waiting for people without asking again and again: one access request is watched until its end. A watch mints nothing:
//! at a yes the agent asks for its token, and both gates run.

use std::time::Duration;

use crate::broker::approval::inbox::HEARTBEAT;
use crate::broker::approval::notifier::Subscription;
use crate::broker::approval::vote::AccessView;
use crate::broker::query::revocation_feed::WATCH_MAX_MS;
use crate::broker::{Broker, CallContext, Refusal};
use crate::card::AccessRequestStatus;
use crate::model::*;

/// How an access request stood when its watcher last heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessRequestCursor {
    /// Version of its stream.
    pub version: Version,
    /// Where it stood: time, an end of its task and a change of the rules move it without a version of its own.
    pub status: AccessRequestStatus,
}

/// A watch of one access request.
#[derive(Debug)]
pub struct AccessRequestWatch {
    /// Whose it is.
    pub agent: AgentId,
    /// Longest life of the watch, in milliseconds: the caller proves its key again.
    pub life_ms: u64,
    id: AccessRequestId,
    subscription: Subscription,
    last_seen: Option<AccessRequestCursor>,
    ended: bool,
}

/// What a watcher hears.
#[derive(Debug)]
pub enum AccessRequestEvent {
    /// How it stands, the first time and whenever that has changed.
    StatusChanged {
        /// As its agent sees it.
        view: Box<AccessView>,
        /// To go on from.
        cursor: AccessRequestCursor,
        /// Nothing follows: it is decided for good.
        last: bool,
    },
    /// It stands as it did.
    Heartbeat(AccessRequestCursor),
}

impl AccessRequestStatus {
    /// Whether it stands so for good.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Waiting | Self::Approved => false,
            Self::Denied | Self::Consumed | Self::Cancelled | Self::Expired | Self::Ended => true,
        }
    }
}

impl Broker {
    /// Begins a watch of an own access request; another's and none get the same answer. Possession is enough, as for
    /// looking at it once.
    pub fn watch_access_request(
        &self,
        call: &CallContext,
        task: TaskId,
        id: AccessRequestId,
        last_seen: Option<AccessRequestCursor>,
    ) -> Result<AccessRequestWatch, Refusal> {
        let now = self.now();
        let (task, _held) = self.task_possession(call, &task, None, None, now)?;
        let request = self.request_of_task(call, &task.opened.task, &id)?;
        Ok(AccessRequestWatch {
            agent: request.opened.agent.clone(),
            life_ms: WATCH_MAX_MS,
            id,
            subscription: self.notifier.subscribe(id),
            last_seen,
            ended: false,
        })
    }
}

impl AccessRequestWatch {
    /// The next news; `None` after the last, and when the broker stops.
    pub async fn next(&mut self, broker: &Broker) -> Option<AccessRequestEvent> {
        if self.ended {
            return None;
        }
        let quiet = tokio::time::sleep(HEARTBEAT);
        let mut stopping = broker.stopping.subscribe();
        tokio::pin!(quiet);
        loop {
            // Before the state is read: what changes from here on rings again.
            self.subscription.mark_seen();
            if broker.journal.tail().borrow().failed {
                return None;
            }
            let now = broker.now();
            let rules = broker.views.rules()?;
            let request = broker.state.access_request(&self.id)?;
            let expires_at = request.opened.expires_at;
            let view = broker.view(request, &rules, now);
            let cursor = AccessRequestCursor {
                version: view.request.version,
                status: view.status,
            };
            let last = view.status.is_final();
            self.ended = last;
            if self.last_seen != Some(cursor) {
                self.last_seen = Some(cursor);
                let view = Box::new(view);
                return Some(AccessRequestEvent::StatusChanged { view, cursor, last });
            }
            if last {
                return None;
            }
            tokio::select! {
                () = &mut quiet => return Some(AccessRequestEvent::Heartbeat(cursor)),
                () = tokio::time::sleep(expires_at.after(now).max(MIN_TIMER)) => {}
                () = self.subscription.changed() => {}
                _ = stopping.wait_for(|stopping| *stopping) => return None,
            }
        }
    }
}

/// Shortest wait for a moment that is due: clocks and timers round.
const MIN_TIMER: Duration = Duration::from_millis(1);
