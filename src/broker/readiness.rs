//! Readiness: whether the broker can take entries and decide now, for probes and load balancers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Broker, CLOCK_BEHIND_MAX_MS};
use crate::journal::JournalFault;
use crate::model::Reason;

/// Why the broker issues no token now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The journal takes no entries.
    #[error(transparent)]
    Journal(#[from] JournalFault),
    /// The wall clock jumped, or is behind the journal.
    #[error("the wall clock is unreliable")]
    ClockUnreliable,
    /// No policy bundle is in force.
    #[error("no policy bundle is in force")]
    NoPolicy,
}

impl NotReady {
    /// The reason that a call would be refused for.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Journal(_) => Reason::JournalUnavailable,
            Self::ClockUnreliable => Reason::ClockUnreliable,
            Self::NoPolicy => Reason::DecisionUnavailable,
        }
    }
}

/// Time without a commit after which maintenance writes a probe, so that a full disk is noticed, and its end too, while no
/// calls come.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

impl Broker {
    /// Whether tokens can be issued now: the journal takes entries, the clock is reliable and a policy bundle is in force.
    /// Never blocks. It reflects the last append or probe, which maintenance repeats every five seconds.
    pub fn readiness(&self) -> Result<(), NotReady> {
        self.journal.health()?;
        let (steady, behind_ms) = self.clock_status();
        if !steady || behind_ms > CLOCK_BEHIND_MAX_MS {
            return Err(NotReady::ClockUnreliable);
        }
        match self.show().rules() {
            Some(_) => Ok(()),
            None => Err(NotReady::NoPolicy),
        }
    }

    /// Tries the journal's disk again when the last write failed, so that a broker without calls notices that it works again.
    pub async fn retry_failing_journal(&self) {
        match self.journal.health() {
            Err(JournalFault::DiskFull | JournalFault::WriteFailed) => self.journal.probe().await,
            Ok(()) | Err(JournalFault::Stopped | JournalFault::Hung) => {}
        }
    }

    /// Writes a probe to the journal when it has committed nothing for a while.
    pub(in crate::broker) async fn probe_journal(&self) {
        let now = self.uptime();
        let last = Duration::from_millis(self.last_probe_ms.load(Ordering::Relaxed));
        let last = last.max(self.journal.last_commit().unwrap_or_default());
        if now.saturating_sub(last) >= PROBE_INTERVAL {
            let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            self.last_probe_ms.store(now_ms, Ordering::Relaxed);
            self.journal.probe().await;
        }
    }
}
