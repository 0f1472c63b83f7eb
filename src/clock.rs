//! The one reader of time. Everything below the doors takes `now` as an argument.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::model::Timestamp;

/// A source of the present moment.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Hand(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's wall clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that moves only when told: for tests and replays.
    pub fn by_hand(start: Timestamp) -> (Self, Hand) {
        let cell = Arc::new(AtomicI64::new(start.millis()));
        (Self(Source::Hand(cell.clone())), Hand(cell))
    }

    /// The present moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::Hand(cell) => Timestamp::from_millis(cell.load(Ordering::SeqCst)),
            Source::System => {
                let since = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }
}

impl Clock {
    /// Time since this process first asked for it. Nobody sets it and it never steps back: for rates and for how long
    /// something took, never for what expires. A clock by hand shows its own time.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    pub fn uptime(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        match &self.0 {
            Source::Hand(cell) => {
                Duration::from_millis(u64::try_from(cell.load(Ordering::SeqCst)).unwrap_or(0))
            }
            Source::System => START.get_or_init(Instant::now).elapsed(),
        }
    }
}

/// Moves a clock made by [`Clock::by_hand`].
#[derive(Clone)]
pub struct Hand(Arc<AtomicI64>);

impl Hand {
    /// Moves the clock on by this many milliseconds; never back.
    pub fn advance_millis(&self, ms: u32) {
        self.0.fetch_add(i64::from(ms), Ordering::SeqCst);
    }
}
