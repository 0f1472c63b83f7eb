//! Access request watch: streams the status of one access request until it is final. A watch issues no token: after approval
//! the agent requests its token, and both gates run.

use std::time::Duration;

use crate::broker::approval::access_request::AccessView;
use crate::broker::approval::inbox::HEARTBEAT;
use crate::broker::approval::notifier::Subscription;
use crate::broker::auth::authentication::WATCH_MAX_MS;
use crate::broker::{Broker, CallContext, Refusal};
use crate::card::AccessRequestStatus;
use crate::model::*;

/// Resume cursor of a watch: the status last sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessRequestCursor {
    /// Version of its stream.
    pub version: Version,
    /// The status: time, the end of its task and a rule change alter it without a new version.
    pub status: AccessRequestStatus,
}

/// A watch of one access request.
#[derive(Debug)]
pub struct AccessRequestWatch {
    /// The agent that requested access.
    pub agent: AgentId,
    /// Longest life of the watch, in milliseconds; then the caller proves its key again.
    pub life_ms: u64,
    id: AccessRequestId,
    subscription: Subscription,
    last_seen: Option<AccessRequestCursor>,
    ended: bool,
}

/// An event of an access request watch.
#[derive(Debug)]
pub enum AccessRequestEvent {
    /// The status, at the start and after each change.
    StatusChanged {
        /// The view for its agent.
        view: Box<AccessView>,
        /// Where a later watch resumes.
        cursor: AccessRequestCursor,
        /// The status is final: no event follows.
        last: bool,
    },
    /// The status is unchanged.
    Heartbeat(AccessRequestCursor),
}

impl Broker {
    /// Starts a watch of one of the task's access requests; another task's request and an unknown id get the same answer.
    /// Possession of the task key is enough, as for reading it once.
    pub fn watch_access_request(
        &self,
        call: &CallContext,
        task: TaskId,
        id: AccessRequestId,
        last_seen: Option<AccessRequestCursor>,
    ) -> Result<AccessRequestWatch, Refusal> {
        let now = self.now();
        let (shown, _held) = self.task_possession(call, &task, None, None, now)?;
        self.preview(|read| self.request_of_task(read, call, &task, &id).map(drop))?;
        Ok(AccessRequestWatch {
            agent: shown.opened.agent.clone(),
            life_ms: WATCH_MAX_MS,
            id,
            subscription: self.notifier.subscribe(id),
            last_seen,
            ended: false,
        })
    }
}

impl AccessRequestWatch {
    /// The next event; `None` after the final one, and when the broker stops.
    pub async fn next(&mut self, broker: &Broker) -> Option<AccessRequestEvent> {
        if self.ended {
            return None;
        }
        let quiet = tokio::time::sleep(HEARTBEAT);
        let mut stopping = broker.stopping.subscribe();
        tokio::pin!(quiet);
        loop {
            // Before the state is read: later changes wake this watch again.
            self.subscription.mark_seen();
            if broker.journal.head().borrow().failed {
                return None;
            }
            let now = broker.now();
            let looked = broker.answer(|read| {
                let rules = read.rules()?;
                let request = read.access_request(&self.id)?;
                let view = broker.view(read, &request, &rules, now);
                let due = broker.next_change_by_time(read, &request, now);
                Some((view, due, read.read_set()))
            });
            let (view, due, reads) = looked.await?;
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
            self.subscription.rest_on(&reads);
            // What moved before the registration woke nothing.
            if !broker.state.holds(&reads) {
                continue;
            }
            tokio::select! {
                () = &mut quiet => return Some(AccessRequestEvent::Heartbeat(cursor)),
                () = tokio::time::sleep(due.after(now).max(MIN_TIMER)) => {}
                () = self.subscription.changed() => {}
                _ = stopping.wait_for(|stopping| *stopping) => return None,
            }
        }
    }
}

/// Shortest timer: clocks and timers round.
const MIN_TIMER: Duration = Duration::from_millis(1);
