//! Rate limiters: token buckets by the generic cell rate algorithm, one for each key.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::Duration;

use super::{Class, lock, nanos};

/// A rate limit for each key, with a bucket for each of the two classes.
#[derive(Debug)]
pub struct KeyedRateLimiter<K> {
    general: GcraTable<K>,
    reserved: GcraTable<K>,
}

impl<K: Hash + Eq + Clone> KeyedRateLimiter<K> {
    /// A limiter with these calls a second for each key.
    pub fn new(general: NonZeroU32, reserved: NonZeroU32) -> Self {
        Self {
            general: GcraTable::new(general),
            reserved: GcraTable::new(reserved),
        }
    }

    /// Takes one call of a class out of the key's bucket, or gives the time until there is one.
    pub fn check(&self, class: Class, key: &K, now: Duration) -> Result<(), Duration> {
        match class {
            Class::General => self.general.check(key, now),
            Class::Reserved => self.reserved.check(key, now),
        }
    }
}

/// The buckets of one class, by the generic cell rate algorithm (ITU-T I.371).
///
/// INVARIANT (clock jumps do not refill): time that stands still or steps back refills nothing, and a jump forward refills
/// at most one bucket.
#[derive(Debug)]
struct GcraTable<K> {
    /// Nanoseconds for one call.
    interval: u64,
    /// Nanoseconds a key may run ahead.
    burst: u64,
    shards: Vec<Mutex<Shard<K>>>,
    hasher: RandomState,
}

/// For each key the time at which its bucket is full again, in nanoseconds since start. A key past that time is equal to a
/// new one, and may be forgotten.
#[derive(Debug)]
struct Shard<K> {
    full_at: HashMap<K, u64>,
    /// The bucket shared by all keys that do not fit in.
    overflow: u64,
    pruned_at: u64,
}

impl<K: Hash + Eq + Clone> GcraTable<K> {
    /// A table whose buckets fill at this rate and hold two seconds of it.
    fn new(per_second: NonZeroU32) -> Self {
        let interval = (1_000_000_000 / u64::from(per_second.get())).max(1);
        let shard = || {
            Mutex::new(Shard {
                full_at: HashMap::new(),
                overflow: 0,
                pruned_at: 0,
            })
        };
        Self {
            interval,
            burst: interval
                .saturating_mul(u64::from(per_second.get()))
                .saturating_mul(BURST_S),
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Takes one call out of a key's bucket, or gives the time until there is one.
    fn check(&self, key: &K, now: Duration) -> Result<(), Duration> {
        let now = nanos(now);
        let part = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let Some(shard) = self.shards.get(part) else {
            return Err(Duration::from_nanos(self.interval));
        };
        let mut shard = lock(shard);
        let slot = shard.slot(key, now);
        let next = (*slot).max(now).checked_add(self.interval);
        let (Some(full_at), Some(bound)) = (next, now.checked_add(self.burst)) else {
            // The end of time, 584 years from the start.
            return Err(Duration::from_nanos(self.interval));
        };
        if full_at > bound {
            return Err(Duration::from_nanos(full_at - bound));
        }
        *slot = full_at;
        Ok(())
    }

    /// Keys in the table.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|s| lock(s).full_at.len()).sum()
    }
}

impl<K: Hash + Eq + Clone> Shard<K> {
    fn slot(&mut self, key: &K, now: u64) -> &mut u64 {
        let full = self.full_at.len() >= PER_SHARD_MAX && !self.full_at.contains_key(key);
        let every = if full {
            PRUNE_FULL_INTERVAL
        } else {
            PRUNE_INTERVAL
        };
        if now.saturating_sub(self.pruned_at) >= nanos(every) {
            self.pruned_at = now;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        // INVARIANT (bounded): a table full of busy keys has one bucket for all the others together.
        if full && self.full_at.len() >= PER_SHARD_MAX {
            return &mut self.overflow;
        }
        self.full_at.entry(key.clone()).or_insert(0)
    }
}

/// A bucket holds this many seconds of its rate.
const BURST_S: u64 = 2;
/// Shards of a table, each with a lock of its own.
const SHARDS: usize = 16;
/// Keys in one shard: 65,536 in all.
const PER_SHARD_MAX: usize = 4_096;
/// How often a shard drops keys whose buckets are full.
const PRUNE_INTERVAL: Duration = Duration::from_secs(10);
/// The same while the shard is full.
const PRUNE_FULL_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::super::nonzero;
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn taken(table: &GcraTable<u32>, key: u32, now: Duration) -> usize {
        (0..100_000)
            .take_while(|_| table.check(&key, now).is_ok())
            .count()
    }

    #[test]
    fn bucket_capacity_and_refill_rate() {
        let table = GcraTable::new(nonzero(10));
        assert_eq!(taken(&table, 1, ms(5)), 20);
        let wait = table.check(&1, ms(5)).expect_err("empty");
        assert_eq!(wait, ms(100), "the next call's time");
        table
            .check(&1, ms(5) + wait - ms(1))
            .expect_err("not before");
        table.check(&1, ms(5) + wait).expect("then");
        assert_eq!(taken(&table, 1, ms(5) + wait), 0);
        assert_eq!(taken(&table, 2, ms(5)), 20, "another key has its own");
        assert_eq!(taken(&table, 1, ms(5) + wait + ms(500)), 5);
    }

    #[test]
    fn clock_jumps_do_not_refill_buckets() {
        let table = GcraTable::new(nonzero(10));
        let start = ms(1_000_000);
        assert_eq!(taken(&table, 1, start), 20);
        assert_eq!(taken(&table, 1, start), 0, "a clock that stands still");
        assert_eq!(taken(&table, 1, ms(0)), 0, "a clock that steps back");
        assert_eq!(
            taken(&table, 1, ms(1_000_000_000)),
            20,
            "a leap forward is one bucket"
        );
        assert_eq!(
            taken(&table, 1, Duration::MAX),
            0,
            "the largest time refills nothing"
        );
    }

    #[test]
    fn limiter_memory_is_bounded() {
        let table = GcraTable::new(nonzero(10));
        let new_keys = u32::try_from(SHARDS * PER_SHARD_MAX * 2).expect("small");
        let mut admitted = 0_u32;
        for key in 0..new_keys {
            admitted += u32::from(table.check(&key, ms(1)).is_ok());
        }
        assert!(table.len() <= SHARDS * PER_SHARD_MAX);
        let tracked = u32::try_from(table.len()).expect("small");
        let shared = u32::try_from(SHARDS * 20).expect("small");
        assert!(
            admitted <= tracked + shared,
            "keys that do not fit share one bucket: {admitted} of {new_keys}"
        );
        table
            .check(&1, ms(60_000))
            .expect("an idle key is equal to a new one");
        for key in new_keys..new_keys + 1_000 {
            table.check(&key, ms(60_001)).expect("new keys fit again");
        }
        assert!(table.len() <= 1_001, "idle keys are dropped");
    }
}
