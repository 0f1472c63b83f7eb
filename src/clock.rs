//! The one reader of time. Everything below the doors takes `now` as an argument.

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

    /// A clock that moves only when told: for tests and replays.
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
            ClockSource::Manual(manual) => Timestamp::from_millis(manual.wall.load(Ordering::SeqCst)),
            ClockSource::System => {
                let since = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }

    /// Time since this process first asked for it. Nobody sets it and it never steps back: for rates and for how long
    /// something took, never for what expires. A clock by manual shows its own time.
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
    /// Lets this many milliseconds pass.
    pub fn advance_millis(&self, ms: u32) {
        self.wall.fetch_add(i64::from(ms), Ordering::SeqCst);
        self.uptime.fetch_add(i64::from(ms), Ordering::SeqCst);
    }

    /// Sets the wall clock forward or back, as somebody who may set clocks does: no time passes.
    pub fn step_millis(&self, ms: i64) {
        self.wall.fetch_add(ms, Ordering::SeqCst);
    }
}

/// Whether a wall clock can be relied on: it must go on as steadily as the time since start, which nobody sets.
///
/// A value in, a value out: it reads no clock itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClockMonitor {
    /// Where both clocks stood when they last agreed.
    agreed: Option<(Timestamp, Duration)>,
    /// Where both stood after the wall clock jumped: steady from there on for long enough, it counts again.
    jumped: Option<(Timestamp, Duration)>,
}

/// How far the wall clock may run off the time since start, in milliseconds, between two moments of agreement.
const DRIFT_MAX_MS: u64 = 2_000;
/// How long a wall clock that jumped must be steady before it counts again.
const STEADY_AGAIN: Duration = Duration::from_secs(60);

impl ClockMonitor {
    /// Looks at both clocks; false while the wall clock cannot be relied on.
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
            // Back where it was before the jump: the jump was the fault, and it is over.
            (Some(agreed), _) if steady(agreed) => {
                self.jumped = None;
                // A little drift is honest; it must not add up.
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

    fn looks(monitor: &mut ClockMonitor, moments: &[(i64, u64, bool)]) {
        for (wall, uptime, expected) in moments {
            let (wall_at, uptime_at) = at(*wall, *uptime);
            assert_eq!(monitor.is_reliable(wall_at, uptime_at), *expected, "{wall} {uptime}");
        }
    }

    #[test]
    fn a_jump_either_way_is_seen_and_outlived() {
        for jump in [3_600_000, -3_600_000, 2_001, -2_001] {
            let mut monitor = ClockMonitor::default();
            looks(&mut monitor, &[(0, 0, true), (10_000, 10_000, true)]);
            looks(
                &mut monitor,
                &[
                    (jump + 20_000, 20_000, false),
                    (jump + 79_000, 79_000, false),
                ],
            );
            // Steady for a minute: that is the time now.
            looks(
                &mut monitor,
                &[(jump + 80_000, 80_000, true), (jump + 90_000, 90_000, true)],
            );
        }
    }

    #[test]
    fn a_jump_that_is_taken_back_is_over_at_once_and_one_that_goes_on_never_is() {
        let mut monitor = ClockMonitor::default();
        looks(
            &mut monitor,
            &[(0, 0, true), (60_000, 1_000, false), (2_000, 2_000, true)],
        );
        let mut wall = 0;
        for minute in 1..10 {
            wall += 120_000;
            looks(&mut monitor, &[(wall, 2_000 + minute * 60_000, false)]);
        }
    }

    #[test]
    fn honest_drift_does_not_add_up() {
        let mut monitor = ClockMonitor::default();
        for minute in 0..1_000 {
            let drift = i64::try_from(minute).expect("small") * 500;
            let uptime = minute * 60_000;
            looks(
                &mut monitor,
                &[(i64::try_from(uptime).expect("small") + drift, uptime, true)],
            );
        }
    }
}
