//! Task monitor: sends the heartbeats of the task, and hears when the task or its token has ended.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::lease::TaskLease;
use crate::client::{AccessToken, TaskHandle};
use crate::model::Reason;

/// Sends heartbeats until dropped; knows why the task ended, once it has.
pub(super) struct TaskMonitor {
    end_cause: watch::Receiver<Option<String>>,
    sender: JoinHandle<()>,
}

impl Drop for TaskMonitor {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

impl TaskMonitor {
    /// Starts sending heartbeats, if the task has them. A broker that is away is retried until it answers: only its answer
    /// ends the task.
    pub(super) fn start(task: TaskHandle, lease: Option<TaskLease>) -> Self {
        let (ended, end_cause) = watch::channel(None);
        let sender = tokio::spawn(async move {
            // Kept, so that a task without heartbeats does not look ended.
            let ended = ended;
            let Some(lease) = lease else {
                return std::future::pending().await;
            };
            let interval = lease.length() / HEARTBEATS_PER_LEASE;
            loop {
                tokio::time::sleep(interval).await;
                let mut pause = RETRY_MIN;
                loop {
                    let sent_at = lease.now();
                    let Err(error) = task.keep_alive().await else {
                        lease.extend(sent_at);
                        break;
                    };
                    if let Some(Reason::TaskEnded | Reason::NotFound) = error.reason() {
                        ended.send_replace(Some(error.to_string()));
                        return;
                    }
                    tokio::time::sleep(pause.min(interval)).await;
                    pause = pause.saturating_mul(2);
                }
            }
        });
        Self { end_cause, sender }
    }

    /// Waits until the task or the token was ended before the token's expiry, and gives the cause. A refused watch counts as
    /// an end: the token may not be active.
    pub(super) fn token_ended(&self, token: &AccessToken) -> impl Future<Output = String> + use<> {
        let mut heartbeats = self.end_cause.clone();
        let token = token.clone();
        async move {
            let by_heartbeat = async {
                match heartbeats.wait_for(Option::is_some).await {
                    Ok(cause) => cause.clone().unwrap_or_default(),
                    Err(_) => std::future::pending().await,
                }
            };
            let by_watch = async {
                let mut watcher = token.watch();
                loop {
                    match watcher.ended().await {
                        Ok(cause) if cause == EXPIRED => std::future::pending::<()>().await,
                        Ok(cause) => return cause,
                        Err(error) if error.reason().is_some() => return error.to_string(),
                        // Such as the answer of a load balancer: the broker has not decided.
                        Err(_) => tokio::time::sleep(Duration::from_millis(WATCH_RETRY_MS)).await,
                    }
                }
            };
            tokio::select! {
                cause = by_watch => cause,
                cause = by_heartbeat => cause,
            }
        }
    }
}

/// The cause of a token that lived its lifetime: announced when it was issued, no end by anybody.
const EXPIRED: &str = "expired";
/// Heartbeats in a lease, so that one may be lost.
const HEARTBEATS_PER_LEASE: u32 = 3;
/// First pause before a heartbeat is repeated; it doubles up to the interval.
const RETRY_MIN: Duration = Duration::from_millis(250);
const WATCH_RETRY_MS: u64 = 1_000;
