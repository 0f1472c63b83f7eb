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
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(250);
/// Tasks that one entry ends or keeps alive: with all it rests on, whatever their agents are called, below the longest
/// entry.
pub(super) const TASKS_PER_ENTRY_MAX: usize = 48;
/// Ends written in one round.
const DUE_PER_TICK_MAX: usize = 512;
/// How often refusals before gate 1 are counted into the journal, in milliseconds.
const REFUSAL_COUNT_INTERVAL_MS: i64 = 60_000;

impl Broker {
    /// Runs until the journal stops.
    pub async fn run_maintenance(self: Arc<Self>) {
        let tail = self.journal.tail();
        loop {
            tokio::time::sleep(MAINTENANCE_INTERVAL).await;
            if tail.borrow().failed {
                self.bells.ring_all();
                return;
            }
            if let Err(error) = self.maintenance_tick().await {
                tracing::warn!(%error, "maintenance tick failed, trying again at the next");
            }
        }
    }

    /// One round: ends that are due, ends that could not be written, caches.
    pub async fn maintenance_tick(&self) -> Result<(), AppendError> {
        let now = self.now();
        // Looked at all the time, so that a jump while nobody calls is seen too.
        let _seen = self.clock_status();
        let mut lapsed: BTreeMap<EndCause, Vec<TaskId>> = BTreeMap::new();
        for due in self.state.due_by(now, DUE_PER_TICK_MAX) {
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
                    let read_set = self.request_premises(&opened);
                    let Some(request) = self.state.access_request(&id).filter(|r| {
                        r.status == AccessStatus::Waiting && now >= r.opened.expires_at
                    }) else {
                        continue;
                    };
                    let event = Event::AccessRequestClosed(AccessRequestClosed {
                        access_request: id,
                        cause: CloseCause::Expired,
                        begun: false,
                    });
                    let append = Append {
                        read_set,
                        ..Append::one(event, vec![(Stream::Access(id), request.version)])
                    };
                    let at = request.opened.expires_at;
                    let decided = self.decided_by(&request, at);
                    if self.append_found(append).await? && !decided {
                        self.count_wait("expired", request.opened_at, at);
                    }
                }
            }
        }
        for (cause, ids) in lapsed {
            for chunk in ids.chunks(TASKS_PER_ENTRY_MAX) {
                // When one that moved meanwhile spoils the entry for the others, each goes alone.
                if !self.end_expired_tasks(cause, chunk, now).await? && chunk.len() > 1 {
                    for id in chunk {
                        self.end_expired_tasks(cause, std::slice::from_ref(id), now)
                            .await?;
                    }
                }
            }
        }
        self.write_doomed().await?;
        if self
            .projections
            .rules()
            .is_some_and(|rules| rules.version != self.swept.load(Ordering::SeqCst))
            && let Ok(_alone) = self.governing.try_lock()
        {
            self.sweep().await?;
        }
        self.journal_refusal_count(now).await?;
        self.prune_caches(now);
        Ok(())
    }

    /// Writes that time has ended these tasks; true when nothing came in between.
    async fn end_expired_tasks(
        &self,
        cause: EndCause,
        ids: &[TaskId],
        now: Timestamp,
    ) -> Result<bool, AppendError> {
        let mut read_set = Vec::new();
        let (mut tasks, mut write_set) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(opened) = self.state.task(id).map(|task| task.opened.clone()) else {
                continue;
            };
            for read in self.task_premises(&opened) {
                if !read_set.contains(&read) {
                    read_set.push(read);
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
            write_set.push((Stream::Task(*id), task.version));
        }
        if tasks.is_empty() {
            return Ok(true);
        }
        let event = Event::TaskEnded(TaskEnded {
            tasks,
            cause,
            outcome: None,
            by: None,
        });
        let append = Append {
            read_set,
            ..Append::one(event, write_set)
        };
        self.append_found(append).await
    }

    async fn journal_refusal_count(&self, now: Timestamp) -> Result<(), AppendError> {
        let taken = {
            let mut uncounted = self.lock(&self.uncounted_refusals);
            match *uncounted {
                (Some(since), count) if now.since(since) >= REFUSAL_COUNT_INTERVAL_MS => {
                    *uncounted = (None, 0);
                    Some((since, count))
                }
                _ => None,
            }
        };
        if let Some((since, count)) = taken {
            self.append_news(
                Event::RefusalsCounted(RefusalsCounted { since, count }),
                Vec::new(),
            )
            .await?;
        }
        Ok(())
    }

    /// Drops what only this process remembers of things that are over.
    fn prune_caches(&self, now: Timestamp) {
        self.replay_cache.prune(now);
        self.open_task_replay_cache.prune(now);
        self.sessions.sweep(now);
        let over = |task: &TaskId| self.state.task(task).is_none_or(|t| !t.runs(now));
        self.attestations.retain(|task| !over(task));
        self.lock(&self.attached).retain(|task, _| !over(task));
        self.last_denials.retain(|(task, _)| !over(task));
    }
}
