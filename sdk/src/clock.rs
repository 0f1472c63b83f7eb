//! Clock: the only module that reads the system time. Everything below the entry points takes `now` as an argument.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::model::Timestamp;

/// A source of the present moment.
#[derive(Clone)]
pub struct Clock(ClockSource);

#[derive(Clone)]
enum ClockSource {
    System,
    Manual(ManualClock),
}

impl Clock {
    /// The machine's wall clock.
    pub fn system() -> Self {
        Self(ClockSource::System)
    }

    /// A clock that the test moves: for tests and replays.
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let manual = ManualClock {
            wall: Arc::new(AtomicI64::new(start.millis())),
            uptime: Arc::new(AtomicI64::new(start.millis())),
        };
        (Self(ClockSource::Manual(manual.clone())), manual)
    }

    /// The present moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            ClockSource::Manual(manual) => {
                Timestamp::from_millis(manual.wall.load(Ordering::SeqCst))
            }
            ClockSource::System => {
                let since = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }

    /// Time since the first call in this process. Monotonic: for rates and durations, never for expiry. A manual clock has an
    /// uptime of its own.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    pub fn uptime(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        match &self.0 {
            ClockSource::Manual(manual) => {
                let ms = manual.uptime.load(Ordering::SeqCst);
                Duration::from_millis(u64::try_from(ms).unwrap_or(0))
            }
            ClockSource::System => START.get_or_init(Instant::now).elapsed(),
        }
    }
}

/// Moves a clock made by [`Clock::manual`].
#[derive(Clone)]
pub struct ManualClock {
    wall: Arc<AtomicI64>,
    uptime: Arc<AtomicI64>,
}

impl ManualClock {
    /// Advances wall clock and uptime by this many milliseconds.
    pub fn advance_millis(&self, ms: u32) {
        self.wall.fetch_add(i64::from(ms), Ordering::SeqCst);
        self.uptime.fetch_add(i64::from(ms), Ordering::SeqCst);
    }

    /// Steps the wall clock forward or back, as an administrator does: no time passes.
    pub fn step_millis(&self, ms: i64) {
        self.wall.fetch_add(ms, Ordering::SeqCst);
    }
}

/// Detects jumps of the wall clock by comparing it with the monotonic uptime. Pure: reads no clock itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClockMonitor {
    /// Both clocks when they last agreed.
    agreed: Option<(Timestamp, Duration)>,
    /// Both clocks after the wall clock jumped: steady from there on for long enough, it is reliable again.
    jumped: Option<(Timestamp, Duration)>,
}

/// Largest difference between wall clock and uptime, in milliseconds, between two agreements.
const DRIFT_MAX_MS: u64 = 2_000;
/// How long a wall clock that jumped must be steady before it is reliable again.
const STEADY_AGAIN: Duration = Duration::from_secs(60);

impl ClockMonitor {
    /// Compares both clocks; `false` while the wall clock is not reliable.
    pub fn is_reliable(&mut self, wall: Timestamp, uptime: Duration) -> bool {
        let steady = |(then, since): (Timestamp, Duration)| {
            let passed = uptime.saturating_sub(since).as_millis();
            let passed = i64::try_from(passed).unwrap_or(i64::MAX);
            wall.since(then).abs_diff(passed) <= DRIFT_MAX_MS
        };
        match (self.agreed, self.jumped) {
            (None, _) => {
                self.agreed = Some((wall, uptime));
                true
            }
            // Back to the time before the jump: the jump is corrected.
            (Some(agreed), _) if steady(agreed) => {
                self.jumped = None;
                // Small drift is normal; it must not accumulate.
                if uptime.saturating_sub(agreed.1) >= STEADY_AGAIN {
                    self.agreed = Some((wall, uptime));
                }
                true
            }
            (Some(_), Some(jumped)) if steady(jumped) => {
                let settled = uptime.saturating_sub(jumped.1) >= STEADY_AGAIN;
                if settled {
                    self.agreed = Some((wall, uptime));
                    self.jumped = None;
                }
                settled
            }
            (Some(_), _) => {
                self.jumped = Some((wall, uptime));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ms: i64, uptime_ms: u64) -> (Timestamp, Duration) {
        let start = Timestamp::from_secs(1_800_000_000);
        (start.plus_millis(wall_ms), Duration::from_millis(uptime_ms))
    }

    fn compare(monitor: &mut ClockMonitor, moments: &[(i64, u64, bool)]) {
        for (wall, uptime, expected) in moments {
            let (wall_at, uptime_at) = at(*wall, *uptime);
            assert_eq!(
                monitor.is_reliable(wall_at, uptime_at),
                *expected,
                "{wall} {uptime}"
            );
        }
    }

    #[test]
    fn clock_jump_is_detected_and_recovers() {
        for jump in [3_600_000, -3_600_000, 2_001, -2_001] {
            let mut monitor = ClockMonitor::default();
            compare(&mut monitor, &[(0, 0, true), (10_000, 10_000, true)]);
            compare(
                &mut monitor,
                &[
                    (jump + 20_000, 20_000, false),
                    (jump + 79_000, 79_000, false),
                ],
            );
            // Steady for a minute: reliable again.
            compare(
                &mut monitor,
                &[(jump + 80_000, 80_000, true), (jump + 90_000, 90_000, true)],
            );
        }
    }

    #[test]
    fn reverted_jump_recovers_immediately() {
        let mut monitor = ClockMonitor::default();
        compare(
            &mut monitor,
            &[(0, 0, true), (60_000, 1_000, false), (2_000, 2_000, true)],
        );
        let mut wall = 0;
        for minute in 1..10 {
            wall += 120_000;
            compare(&mut monitor, &[(wall, 2_000 + minute * 60_000, false)]);
        }
    }

    #[test]
    fn small_drift_does_not_accumulate() {
        let mut monitor = ClockMonitor::default();
        for minute in 0..1_000 {
            let drift = i64::try_from(minute).expect("small") * 500;
            let uptime = minute * 60_000;
            compare(
                &mut monitor,
                &[(i64::try_from(uptime).expect("small") + drift, uptime, true)],
            );
        }
    }
}
