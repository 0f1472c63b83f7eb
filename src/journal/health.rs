//! Health of the journal: whether its writer takes entries now, by the outcome of the last commit or probe.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Why the journal takes no entries now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JournalFault {
    /// The writer stopped; only a restart helps.
    #[error("the journal has stopped; restart the broker")]
    Stopped,
    /// No space is left.
    #[error("no space is left on the journal's disk")]
    DiskFull,
    /// The last write failed.
    #[error("the journal's last write failed")]
    WriteFailed,
    /// The writer has been busy with one batch for too long.
    #[error("the journal's disk does not answer")]
    Hung,
}

/// Shared by the writer, which sets it, and the handles, which read it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// 0, or the fault that the last commit or probe met.
    fault: AtomicU8,
    /// Uptime at which the current batch began, in milliseconds plus one; 0 while the writer waits.
    busy_since: AtomicU64,
    /// Uptime of the last commit that succeeded, in milliseconds plus one; 0 before the first.
    last_commit: AtomicU64,
}

const DISK_FULL: u8 = 1;
const WRITE_FAILED: u8 = 2;
/// Longest time of one batch before the journal counts as hung.
const BATCH_TIME_MAX: Duration = Duration::from_secs(5);

impl Health {
    pub(super) fn begin_batch(&self, now: Duration) {
        self.busy_since.store(mark(now), Ordering::Relaxed);
    }

    pub(super) fn end_batch(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    pub(super) fn succeeded(&self, now: Duration) {
        self.fault.store(0, Ordering::Relaxed);
        self.last_commit.store(mark(now), Ordering::Relaxed);
    }

    pub(super) fn disk_full(&self) {
        self.fault.store(DISK_FULL, Ordering::Relaxed);
    }

    pub(super) fn write_failed(&self) {
        self.fault.store(WRITE_FAILED, Ordering::Relaxed);
    }

    /// Uptime of the last commit that succeeded.
    pub(super) fn last_commit(&self) -> Option<Duration> {
        unmark(self.last_commit.load(Ordering::Relaxed))
    }

    pub(super) fn check(&self, now: Duration) -> Result<(), JournalFault> {
        if let Some(since) = unmark(self.busy_since.load(Ordering::Relaxed))
            && now.saturating_sub(since) > BATCH_TIME_MAX
        {
            return Err(JournalFault::Hung);
        }
        match self.fault.load(Ordering::Relaxed) {
            0 => Ok(()),
            DISK_FULL => Err(JournalFault::DiskFull),
            _ => Err(JournalFault::WriteFailed),
        }
    }
}

/// Milliseconds plus one, so that 0 can stand for "none".
fn mark(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_millis())
        .unwrap_or(u64::MAX)
        .saturating_add(1)
}

fn unmark(mark: u64) -> Option<Duration> {
    mark.checked_sub(1).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_the_last_outcome() {
        let health = Health::default();
        let at = Duration::from_secs;
        assert_eq!((health.check(at(0)), health.last_commit()), (Ok(()), None));
        health.begin_batch(at(1));
        assert_eq!(health.check(at(6)), Ok(()));
        assert_eq!(health.check(at(7)), Err(JournalFault::Hung));
        health.end_batch();
        health.disk_full();
        assert_eq!(health.check(at(7)), Err(JournalFault::DiskFull));
        health.write_failed();
        assert_eq!(health.check(at(7)), Err(JournalFault::WriteFailed));
        health.succeeded(at(8));
        assert_eq!(
            (health.check(at(8)), health.last_commit()),
            (Ok(()), Some(at(8)))
        );
    }
}
