//! Rate limiting: how many calls a source address or a caller may make a second, and how many calls run at once.
//!
//! In: a key, the class of the method, the time since start, which no clock can set. Out: permission, or the time to wait.
//! Trusts no key with another key's share: each has a bucket of its own in each class, and the two classes have permits of
//! their own, so that revoking and validating go on while opening tasks and requesting tokens is shed.
//! Refuses at once what does not fit: every table and queue here has a bound. Never reads the wall clock or a message.

mod concurrency;
mod gcra;
mod log_throttle;

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use concurrency::{
    ConcurrencyLimiter, ConcurrencyPermit, Overloaded, PerKeyLimit, PerKeyPermit,
};
pub use gcra::KeyedRateLimiter;
pub use log_throttle::LogThrottle;

/// The class of a method: each class has rates and slots of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Opening tasks, requesting tokens, voting, governing, reading.
    General,
    /// Revoking and validating: goes on while general calls are shed.
    Reserved,
}

impl Class {
    /// The word in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::Reserved => "reserved",
        }
    }
}

/// The configuration's `[rate_limits]`. No number may be zero, and none means "without limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitConfig {
    /// General calls a second from one source address, before anything is verified.
    pub source_per_second: NonZeroU32,
    /// Reserved calls a second from one source address.
    pub source_reserved_per_second: NonZeroU32,
    /// General calls a second of one authenticated agent, person or service.
    pub caller_per_second: NonZeroU32,
    /// Reserved calls a second of one agent, person or service.
    pub caller_reserved_per_second: NonZeroU32,
    /// General calls that run at once.
    pub max_concurrent_calls: NonZeroU32,
    /// Reserved calls that run at once, beside the general ones.
    pub max_concurrent_reserved: NonZeroU32,
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self {
            source_per_second: nonzero(2_000),
            source_reserved_per_second: nonzero(8_000),
            caller_per_second: nonzero(500),
            caller_reserved_per_second: nonzero(4_000),
            max_concurrent_calls: nonzero(256),
            max_concurrent_reserved: nonzero(64),
        }
    }
}

/// Largest number in `[rate_limits]`: a larger one would limit nothing.
pub const RATE_MAX: u32 = 1_000_000;
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn nonzero(n: u32) -> NonZeroU32 {
    match NonZeroU32::new(n) {
        Some(n) => n,
        None => NonZeroU32::MIN,
    }
}
