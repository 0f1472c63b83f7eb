//! The lease of a task with a heartbeat, as this process knows it without its wall clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// How long the task runs for certain: a heartbeat's length after the broker was last asked to extend it and did. Clones share
/// it. A broker that was away may extend the task later; until it answers, the task may have ended.
#[derive(Clone)]
pub(super) struct TaskLease {
    clock: Clock,
    length: Duration,
    /// In milliseconds of uptime.
    until_ms: Arc<AtomicU64>,
}

impl TaskLease {
    /// A lease that the broker granted to a call sent at `sent_at`, in uptime.
    pub(super) fn new(clock: Clock, heartbeat_s: u32, sent_at: Duration) -> Self {
        let lease = Self {
            clock,
            length: Duration::from_secs(u64::from(heartbeat_s)),
            until_ms: Arc::default(),
        };
        lease.extend(sent_at);
        lease
    }

    /// The length of a heartbeat.
    pub(super) const fn length(&self) -> Duration {
        self.length
    }

    /// The moment to note before a heartbeat is sent, in uptime: the broker extends the lease from a later one.
    pub(super) fn now(&self) -> Duration {
        self.clock.uptime()
    }

    /// Notes that the broker answered a heartbeat that was sent at `sent_at`.
    pub(super) fn extend(&self, sent_at: Duration) {
        let until = sent_at.saturating_add(self.length).as_millis();
        let until = u64::try_from(until).unwrap_or(u64::MAX);
        self.until_ms.fetch_max(until, Ordering::Relaxed);
    }

    /// Whether the task runs for certain, as far as its heartbeat is concerned.
    pub(super) fn is_current(&self) -> bool {
        self.clock.uptime().as_millis() < u128::from(self.until_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn a_lease_lapses_a_heartbeat_after_the_call_that_extended_it() {
        let (clock, manual) = Clock::manual(Timestamp::from_secs(1));
        let lease = TaskLease::new(clock.clone(), 2, clock.uptime());
        manual.advance_millis(1_999);
        assert!(lease.is_current());
        let sent_at = lease.now();
        manual.advance_millis(1);
        assert!(!lease.is_current(), "exactly a heartbeat");
        // The answer counts from when the heartbeat was sent.
        lease.extend(sent_at);
        manual.advance_millis(1_998);
        assert!(lease.is_current());
        manual.advance_millis(1);
        assert!(!lease.is_current());
        // A late answer to an earlier heartbeat takes nothing back.
        lease.extend(lease.now());
        lease.extend(sent_at);
        assert!(lease.is_current());
    }
}
