//! What time brings about. Expiry has taken effect long before: these entries are news for feeds and people, and decide
//! nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Broker;
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::state::{AccessStatus, Due};

/// How often the timer looks.
const EVERY: Duration = Duration::from_millis(250);
/// Tasks that one entry ends or keeps alive: with all it rests on, whatever their agents are called, below the longest
/// entry.
pub(super) const TOGETHER_MAX: usize = 48;
/// Ends written in one round.
const ROUND_MAX: usize = 512;
/// How often refusals before gate 1 are counted into the journal, in milliseconds.
const COUNT_EVERY_MS: i64 = 60_000;

impl Broker {
    /// Runs until the journal stops.
    pub async fn upkeep(self: Arc<Self>) {
        let tail = self.journal.tail();
        loop {
            tokio::time::sleep(EVERY).await;
            if tail.borrow().failed {
                self.notifier.notify_all();
                return;
            }
            if let Err(error) = self.upkeep_once().await {
                tracing::warn!(%error, "upkeep put off");
            }
        }
    }

    /// One round: ends that are due, ends that could not be written, caches.
    pub async fn upkeep_once(&self) -> Result<(), AppendError> {
        let now = self.now();
        // Looked at all the time, so that a jump while nobody calls is seen too.
        let _seen = self.clocks();
        let mut lapsed: BTreeMap<EndCause, Vec<TaskId>> = BTreeMap::new();
        for due in self.state.due_by(now, ROUND_MAX) {
            match due {
                Due::Task(id) | Due::Lease(id) => {
                    let task = self.state.task(&id).filter(|t| t.ended.is_none());
                    if let Some(cause) = task.and_then(|task| task.lapsed(now)) {
                        let ids = lapsed.entry(cause).or_default();
                        if !ids.contains(&id) {
                            ids.push(id);
                        }
                    }
                }
                Due::AccessRequest(id) => {
                    let Some(opened) = self.state.access_request(&id).map(|r| r.opened.clone())
                    else {
                        continue;
                    };
                    let read_set = self.request_read_set(&opened);
                    let Some(request) = self.state.access_request(&id).filter(|r| {
                        r.status == AccessStatus::Waiting && now >= r.opened.expires_at
                    }) else {
                        continue;
                    };
                    let fact = Event::AccessRequestClosed(AccessRequestClosed {
                        access_request: id,
                        cause: CloseCause::Expired,
                        begun: false,
                    });
                    let append = Append {
                        read_set,
                        ..Append::one(fact, vec![(Stream::Access(id), request.version)])
                    };
                    let at = request.opened.expires_at;
                    let decided = self.was_decided_before(&request, at);
                    if self.try_append(append).await? && !decided {
                        self.count_wait("expired", request.opened_at, at);
                    }
                }
            }
        }
        for (cause, ids) in lapsed {
            for chunk in ids.chunks(TOGETHER_MAX) {
                // When one that moved meanwhile spoils the entry for the others, each goes alone.
                if !self.end_lapsed(cause, chunk, now).await? && chunk.len() > 1 {
                    for id in chunk {
                        self.end_lapsed(cause, std::slice::from_ref(id), now)
                            .await?;
                    }
                }
            }
        }
        self.flush_pending_revocations().await?;
        if self
            .views
            .rules()
            .is_some_and(|rules| rules.version != self.enforced_policy_version.load(Ordering::SeqCst))
            && let Ok(_alone) = self.policy_lock.try_lock()
        {
            self.revoke_disallowed().await?;
        }
        self.count_refusals(now).await?;
        self.forget(now);
        Ok(())
    }

    /// Writes that time has ended these tasks; true when nothing came in between.
    async fn end_lapsed(
        &self,
        cause: EndCause,
        ids: &[TaskId],
        now: Timestamp,
    ) -> Result<bool, AppendError> {
        let mut read_set = Vec::new();
        let (mut tasks, mut moves) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(opened) = self.state.task(id).map(|task| task.opened.clone()) else {
                continue;
            };
            for premise in self.task_read_set(&opened) {
                if !read_set.contains(&premise) {
                    read_set.push(premise);
                }
            }
            let Some(task) = self.state.task(id).filter(|t| t.ended.is_none()) else {
                continue;
            };
            if task.lapsed(now) != Some(cause) {
                continue;
            }
            // A sign of life that came in time, however late it is seen here, keeps the task.
            read_set.extend(task.lease.map(|l| (Stream::Lease(*id), l.version)));
            tasks.push(*id);
            moves.push((Stream::Task(*id), task.version));
        }
        if tasks.is_empty() {
            return Ok(true);
        }
        let fact = Event::TaskEnded(TaskEnded {
            tasks,
            cause,
            outcome: None,
            by: None,
        });
        let append = Append {
            read_set,
            ..Append::one(fact, moves)
        };
        self.try_append(append).await
    }

    async fn count_refusals(&self, now: Timestamp) -> Result<(), AppendError> {
        let taken = {
            let mut uncounted = self.lock(&self.uncounted);
            match *uncounted {
                (Some(since), count) if now.since(since) >= COUNT_EVERY_MS => {
                    *uncounted = (None, 0);
                    Some((since, count))
                }
                _ => None,
            }
        };
        if let Some((since, count)) = taken {
            self.try_append_event(
                Event::RefusalsCounted(RefusalsCounted { since, count }),
                Vec::new(),
            )
            .await?;
        }
        Ok(())
    }

    /// Drops what only this process remembers of things that are over.
    fn forget(&self, now: Timestamp) {
        self.once.sweep(now);
        self.openings.sweep(now);
        self.sessions.prune(now);
        let over = |task: &TaskId| self.state.task(task).is_none_or(|t| !t.runs(now));
        self.seen.retain(|task| !over(task));
        self.lock(&self.joined).retain(|task, _| !over(task));
        self.denials.retain(|(task, _)| !over(task));
    }
}
