//! What time brings about. Expiry has taken effect long before: these entries are news for feeds and people, and decide
//! nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Hall;
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::state::Due;

/// How often the timer looks.
const EVERY: Duration = Duration::from_millis(250);
/// Ends written in one round.
const ROUND_MAX: usize = 512;
/// How often refusals before gate 1 are counted into the journal, in milliseconds.
const COUNT_EVERY_MS: i64 = 60_000;

impl Hall {
    /// Runs until the journal stops.
    pub async fn upkeep(self: Arc<Self>) {
        let tail = self.journal.tail();
        loop {
            tokio::time::sleep(EVERY).await;
            if tail.borrow().failed {
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
        let _seen = self
            .lock(&self.clock_watch)
            .sure(self.clock.now(), self.clock.uptime());
        for due in self.state.due_by(now, ROUND_MAX) {
            match due {
                Due::Task(id) | Due::Lease(id) => {
                    if let Some(task) = self.state.task(&id).filter(|t| t.ended.is_none())
                        && let Some(cause) = task.lapsed(now)
                    {
                        let fact = Fact::TaskEnded(TaskEnded {
                            tasks: vec![id],
                            cause,
                            outcome: None,
                            by: None,
                        });
                        // A sign of life that came in time, however late it is seen here, keeps the task.
                        let premises = task.lease.map(|l| (Stream::Lease(id), l.version));
                        let append = Append {
                            premises: premises.into_iter().collect(),
                            ..Append::one(fact, vec![(Stream::Task(id), task.version)])
                        };
                        self.append_found(append).await?;
                    }
                }
                Due::AccessRequest(id) => {
                    if let Some(request) = self.state.access_request(&id) {
                        let fact = Fact::AccessRequestClosed(AccessRequestClosed {
                            access_request: id,
                            cause: CloseCause::Expired,
                        });
                        let expired = self
                            .append_news(fact, vec![(Stream::Access(id), request.version)])
                            .await?;
                        if expired {
                            let at = request.opened.expires_at;
                            self.count_wait("expired", request.opened_at, at);
                        }
                    }
                }
            }
        }
        self.write_doomed().await?;
        if self
            .views
            .rules()
            .is_some_and(|rules| rules.version != self.swept.load(Ordering::SeqCst))
            && let Ok(_alone) = self.governing.try_lock()
        {
            self.sweep().await?;
        }
        self.count_refusals(now).await?;
        self.forget(now);
        Ok(())
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
            self.append_news(
                Fact::RefusalsCounted(RefusalsCounted { since, count }),
                Vec::new(),
            )
            .await?;
        }
        Ok(())
    }

    /// Drops what only this process remembers of things that are over.
    fn forget(&self, now: Timestamp) {
        self.once.sweep(now);
        let over = |task: &TaskId| self.state.task(task).is_none_or(|t| !t.runs(now));
        self.seen.retain(|task| !over(task));
        self.lock(&self.joined).retain(|task, _| !over(task));
        self.denials.retain(|(task, _)| !over(task));
    }
}
