//! Log throttling: one line a few times a second for an event that happens far more often.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::nanos;

/// Lets a line through at most four times a second, and counts the events in between.
#[derive(Debug, Default)]
pub struct LogThrottle {
    /// Nanoseconds since start; 0 = never.
    next: AtomicU64,
    suppressed: AtomicU64,
}

/// Time between two lines.
const INTERVAL: Duration = Duration::from_millis(250);

impl LogThrottle {
    /// Counts an event: the number of events since the last line, this one included; `None` when no line is due.
    pub fn poll(&self, now: Duration) -> Option<u64> {
        let now = nanos(now);
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        let next = self.next.load(Ordering::Relaxed);
        let later = now.saturating_add(nanos(INTERVAL));
        let due = now >= next
            && self
                .next
                .compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        due.then(|| self.suppressed.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn log_throttle() {
        let throttle = LogThrottle::default();
        assert_eq!(throttle.poll(ms(1)), Some(1));
        for _ in 0..99 {
            assert_eq!(throttle.poll(ms(100)), None);
        }
        assert_eq!(throttle.poll(ms(251)), Some(100));
    }
}
