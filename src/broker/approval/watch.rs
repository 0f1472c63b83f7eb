//! Waiting for people without asking again and again: one access request is watched until its end. A watch mints nothing:
//! at a yes the agent asks for its token, and both gates run.

use std::time::Duration;

use crate::broker::approval::inbox::HEARTBEAT;
use crate::broker::approval::notifier::Bell;
use crate::broker::approval::vote::AccessView;
use crate::broker::query::revocation_feed::WATCH_MAX_MS;
use crate::broker::{Broker, CallContext, Refusal};
use crate::card::AccessRequestStatus;
use crate::model::*;

/// How an access request stood when its watcher last heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessMark {
    /// Version of its stream.
    pub version: Version,
    /// Where it stood: time, an end of its task and a change of the rules move it without a version of its own.
    pub standing: AccessRequestStatus,
}

/// A watch of one access request.
#[derive(Debug)]
pub struct AccessWatch {
    /// Whose it is.
    pub agent: AgentId,
    /// Longest life of the watch, in milliseconds: the caller proves its key again.
    pub life_ms: u64,
    id: AccessRequestId,
    bell: Bell,
    seen: Option<AccessMark>,
    over: bool,
}

/// What a watcher hears.
#[derive(Debug)]
pub enum AccessNews {
    /// How it stands, the first time and whenever that has changed.
    Stands {
        /// As its agent sees it.
        view: Box<AccessView>,
        /// To go on from.
        mark: AccessMark,
        /// Nothing follows: it is decided for good.
        last: bool,
    },
    /// It stands as it did.
    Heartbeat(AccessMark),
}

impl Broker {
    /// Begins a watch of an own access request; another's and none get the same answer. Possession is enough, as for
    /// looking at it once.
    pub fn watch_access_request(
        &self,
        call: &CallContext,
        task: TaskId,
        id: AccessRequestId,
        seen: Option<AccessMark>,
    ) -> Result<AccessWatch, Refusal> {
        let now = self.now();
        let (task, _held) = self.task_possession(call, &task, None, None, now)?;
        let request = self.own_request(call, &task.opened.task, &id)?;
        Ok(AccessWatch {
            agent: request.opened.agent.clone(),
            life_ms: WATCH_MAX_MS,
            id,
            bell: self.bells.listen(id),
            seen,
            over: false,
        })
    }
}

impl AccessWatch {
    /// The next news; `None` after the last, and when the broker stops.
    pub async fn next(&mut self, broker: &Broker) -> Option<AccessNews> {
        if self.over {
            return None;
        }
        let quiet = tokio::time::sleep(HEARTBEAT);
        let mut stopping = broker.stopping.subscribe();
        tokio::pin!(quiet);
        loop {
            // Before the state is read: what changes from here on rings again.
            self.bell.heard();
            if broker.journal.head().borrow().failed {
                return None;
            }
            let now = broker.now();
            let rules = broker.projections.rules()?;
            let request = broker.state.access_request(&self.id)?;
            let expires_at = request.opened.expires_at;
            let view = broker.view(request, &rules, now);
            let mark = AccessMark {
                version: view.request.version,
                standing: view.standing,
            };
            let last = view.standing.is_last();
            self.over = last;
            if self.seen != Some(mark) {
                self.seen = Some(mark);
                let view = Box::new(view);
                return Some(AccessNews::Stands { view, mark, last });
            }
            if last {
                return None;
            }
            tokio::select! {
                () = &mut quiet => return Some(AccessNews::Heartbeat(mark)),
                () = tokio::time::sleep(expires_at.after(now).max(SOON)) => {}
                () = self.bell.rings() => {}
                _ = stopping.wait_for(|stopping| *stopping) => return None,
            }
        }
    }
}

/// Shortest wait for a moment that is due: clocks and timers round.
const SOON: Duration = Duration::from_millis(1);
