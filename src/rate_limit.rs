//! Rates: how many calls one source or one caller may make, and how many are worked on at once.
//!
//! In: who asks, the class of the method, the time since start (which nobody can set). Out: yes, or how long to wait.
//! Trusts nobody with another's share: each key has a bucket of its own in each class, and the two classes have places of
//! their own, so that ending and validating go on while opening and asking are shed.
//! Refuses at once what does not fit; every table and queue here has a bound. Never reads the wall clock, a message or a name.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The two kinds of work a broker keeps apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Opening, asking, voting, governing, reading.
    General,
    /// Ending and validating: goes on while the other is shed.
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

/// How much of everything: the configuration's `[rates]`. No number may be zero, and none means "without limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// General calls a second from one source address, before anything is verified.
    pub source_per_second: NonZeroU32,
    /// Reserved calls a second from one source address.
    pub source_reserved_per_second: NonZeroU32,
    /// General calls a second of one agent, person or service, once it is known.
    pub caller_per_second: NonZeroU32,
    /// Reserved calls a second of one agent, person or service.
    pub caller_reserved_per_second: NonZeroU32,
    /// General calls worked on at once.
    pub calls_at_once: NonZeroU32,
    /// Reserved calls worked on at once, beside the others.
    pub reserved_at_once: NonZeroU32,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            source_per_second: nonzero(2_000),
            source_reserved_per_second: nonzero(8_000),
            caller_per_second: nonzero(500),
            caller_reserved_per_second: nonzero(4_000),
            calls_at_once: nonzero(256),
            reserved_at_once: nonzero(64),
        }
    }
}

/// Largest number in `[rates]`: above it a limit would be one in name only.
pub const RATE_MAX: u32 = 1_000_000;
/// A bucket holds this many seconds of its rate.
const BURST_S: u64 = 2;
/// Parts of a table, each with a lock of its own.
const SHARDS: usize = 16;
/// Keys in one part: 65,536 in all.
const PER_SHARD_MAX: usize = 4_096;
/// How often a part forgets keys that have been quiet.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// How often it tries to when it is full.
const FORGET_FULL_EVERY: Duration = Duration::from_millis(100);
/// Calls that may wait for a place, for each place.
const QUEUE_PER_PLACE: u32 = 4;
/// Longest wait for a place.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Token buckets by the generic cell rate algorithm (ITU-T I.371), one for each key.
///
/// INVARIANT (no clock opens the gate): time that stands still or steps back refills nothing, and a leap forward refills at
/// most one bucket.
#[derive(Debug)]
struct Buckets<K> {
    /// Nanoseconds for one call.
    interval: u64,
    /// Nanoseconds a key may run ahead.
    burst: u64,
    shards: Vec<Mutex<Shard<K>>>,
    hasher: RandomState,
}

/// For each key the moment its bucket is full again, in nanoseconds since start. A key whose moment has passed is as good
/// as one never seen, and may be forgotten.
#[derive(Debug)]
struct Shard<K> {
    full_at: HashMap<K, u64>,
    /// What all keys share for which there is no place.
    rest: u64,
    forgot_at: u64,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// Buckets that fill at this rate and hold two seconds of it.
    fn new(per_second: NonZeroU32) -> Self {
        let interval = (1_000_000_000 / u64::from(per_second.get())).max(1);
        let shard = || {
            Mutex::new(Shard {
                full_at: HashMap::new(),
                rest: 0,
                forgot_at: 0,
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

    /// Takes one call out of a key's bucket, or says how long until there is one.
    fn take(&self, key: &K, now: Duration) -> Result<(), Duration> {
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

    /// Keys that are remembered now.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|s| lock(s).full_at.len()).sum()
    }
}

impl<K: Hash + Eq + Clone> Shard<K> {
    fn slot(&mut self, key: &K, now: u64) -> &mut u64 {
        let full = self.full_at.len() >= PER_SHARD_MAX && !self.full_at.contains_key(key);
        let every = if full {
            FORGET_FULL_EVERY
        } else {
            FORGET_EVERY
        };
        if now.saturating_sub(self.forgot_at) >= nanos(every) {
            self.forgot_at = now;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        // INVARIANT (bounded): a table full of busy keys has one bucket for all the others together.
        if full && self.full_at.len() >= PER_SHARD_MAX {
            return &mut self.rest;
        }
        self.full_at.entry(key.clone()).or_insert(0)
    }
}

/// Buckets for both classes.
#[derive(Debug)]
pub struct Limits<K> {
    general: Buckets<K>,
    reserved: Buckets<K>,
}

impl<K: Hash + Eq + Clone> Limits<K> {
    /// With these rates.
    pub fn new(general: NonZeroU32, reserved: NonZeroU32) -> Self {
        Self {
            general: Buckets::new(general),
            reserved: Buckets::new(reserved),
        }
    }

    /// Takes one call of a class.
    pub fn take(&self, class: Class, key: &K, now: Duration) -> Result<(), Duration> {
        match class {
            Class::General => self.general.take(key, now),
            Class::Reserved => self.reserved.take(key, now),
        }
    }
}

/// Places for calls that are worked on, and a short queue before them; for each class its own.
#[derive(Debug)]
pub struct Places {
    general: Pool,
    reserved: Pool,
}

#[derive(Debug)]
struct Pool {
    places: Arc<Semaphore>,
    queue: Semaphore,
}

/// No place came free in time.
#[derive(Debug, PartialEq, Eq)]
pub struct Shed;

impl Places {
    /// As many as configured.
    pub fn new(rates: &Rates) -> Self {
        Self {
            general: Pool::new(rates.calls_at_once),
            reserved: Pool::new(rates.reserved_at_once),
        }
    }

    /// Takes a place: at once, after a short wait in a bounded queue, or not at all.
    pub async fn enter(&self, class: Class) -> Result<ConcurrencyPermit, Shed> {
        let pool = match class {
            Class::General => &self.general,
            Class::Reserved => &self.reserved,
        };
        let held = pool.enter().await?;
        Ok(ConcurrencyPermit {
            class,
            place: Some(Place {
                places: pool.places.clone(),
                held: Mutex::new(Some(held)),
            }),
        })
    }
}

impl Pool {
    fn new(at_once: NonZeroU32) -> Self {
        let places = |n: u32| {
            usize::try_from(n)
                .unwrap_or(usize::MAX)
                .min(Semaphore::MAX_PERMITS)
        };
        Self {
            places: Arc::new(Semaphore::new(places(at_once.get()))),
            queue: Semaphore::new(places(at_once.get().saturating_mul(QUEUE_PER_PLACE))),
        }
    }

    async fn enter(&self) -> Result<OwnedSemaphorePermit, Shed> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let _waiting = self.queue.try_acquire().map_err(|_| Shed)?;
        match tokio::time::timeout(QUEUE_WAIT_MAX, self.places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(Shed),
        }
    }
}

/// A call's place among those that are worked on. Given back when dropped.
#[derive(Debug)]
pub struct ConcurrencyPermit {
    class: Class,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    places: Arc<Semaphore>,
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl ConcurrencyPermit {
    /// Work that takes nobody's place: the broker's own.
    pub const fn unlimited(class: Class) -> Self {
        Self { class, place: None }
    }

    /// The class of the call.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Gives the place to others while the call only waits.
    pub fn release(&self) {
        if let Some(place) = &self.place {
            drop(lock(&place.held).take());
        }
    }

    /// Takes a place again. However many waited: they were let in before, and come in turn.
    pub async fn reacquire(&self) {
        if let Some(place) = &self.place {
            let again = place.places.clone().acquire_owned().await.ok();
            *lock(&place.held) = again;
        }
    }
}

/// How many of something each key has at once.
#[derive(Debug)]
pub struct Tally<K> {
    most: usize,
    now: Mutex<HashMap<K, usize>>,
}

/// One of a key's, until it is dropped.
#[derive(Debug)]
pub struct Tallied<K: Hash + Eq> {
    tally: Arc<Tally<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Tally<K> {
    /// At most this many for each key.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            now: Mutex::default(),
        }
    }

    /// One more for the key, unless it has as many as it may.
    pub fn enter(self: &Arc<Self>, key: &K) -> Option<Tallied<K>> {
        let mut now = lock(&self.now);
        let count = now.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Tallied {
            tally: self.clone(),
            key: key.clone(),
        })
    }
}

impl<K: Hash + Eq> Drop for Tallied<K> {
    fn drop(&mut self) {
        let mut now = lock(&self.tally.now);
        let left = now.get_mut(&self.key).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == 0 {
            now.remove(&self.key);
        }
    }
}

/// Says something at most a few times a second, however often it happens.
#[derive(Debug, Default)]
pub struct Seldom {
    /// Nanoseconds since start; 0 = never.
    next: AtomicU64,
    unsaid: AtomicU64,
}

/// Between two lines about the same thing.
const SELDOM: Duration = Duration::from_millis(250);

impl Seldom {
    /// How often it happened since it was last said, this time included; `None` = not to be said now.
    pub fn due(&self, now: Duration) -> Option<u64> {
        let now = nanos(now);
        self.unsaid.fetch_add(1, Ordering::Relaxed);
        let next = self.next.load(Ordering::Relaxed);
        let later = now.saturating_add(nanos(SELDOM));
        let mine = now >= next
            && self
                .next
                .compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        mine.then(|| self.unsaid.swap(0, Ordering::Relaxed))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn taken(buckets: &Buckets<u32>, key: u32, now: Duration) -> usize {
        (0..100_000)
            .take_while(|_| buckets.take(&key, now).is_ok())
            .count()
    }

    #[test]
    fn a_bucket_holds_two_seconds_and_fills_at_its_rate() {
        let buckets = Buckets::new(nonzero(10));
        assert_eq!(taken(&buckets, 1, ms(5)), 20);
        let wait = buckets.take(&1, ms(5)).expect_err("empty");
        assert_eq!(wait, ms(100), "the next call's time");
        buckets
            .take(&1, ms(5) + wait - ms(1))
            .expect_err("not before");
        buckets.take(&1, ms(5) + wait).expect("then");
        assert_eq!(taken(&buckets, 1, ms(5) + wait), 0);
        assert_eq!(taken(&buckets, 2, ms(5)), 20, "another key has its own");
        assert_eq!(taken(&buckets, 1, ms(5) + wait + ms(500)), 5);
    }

    #[test]
    fn no_clock_opens_the_gate() {
        let buckets = Buckets::new(nonzero(10));
        let start = ms(1_000_000);
        assert_eq!(taken(&buckets, 1, start), 20);
        assert_eq!(taken(&buckets, 1, start), 0, "a clock that stands still");
        assert_eq!(taken(&buckets, 1, ms(0)), 0, "a clock that steps back");
        assert_eq!(
            taken(&buckets, 1, ms(1_000_000_000)),
            20,
            "a leap forward is one bucket"
        );
        assert_eq!(
            taken(&buckets, 1, Duration::MAX),
            0,
            "the end of time opens nothing"
        );
    }

    #[test]
    fn tables_are_bounded_and_forget() {
        let buckets = Buckets::new(nonzero(10));
        let strangers = u32::try_from(SHARDS * PER_SHARD_MAX * 2).expect("small");
        let mut let_in = 0_u32;
        for key in 0..strangers {
            let_in += u32::from(buckets.take(&key, ms(1)).is_ok());
        }
        assert!(buckets.len() <= SHARDS * PER_SHARD_MAX);
        let places = u32::try_from(buckets.len()).expect("small");
        let shared = u32::try_from(SHARDS * 20).expect("small");
        assert!(
            let_in <= places + shared,
            "strangers without a place share one bucket: {let_in} of {strangers}"
        );
        buckets
            .take(&1, ms(60_000))
            .expect("a quiet key is as good as new");
        for key in strangers..strangers + 1_000 {
            buckets
                .take(&key, ms(60_001))
                .expect("there is room for newcomers again");
        }
        assert!(buckets.len() <= 1_001, "the quiet are forgotten");
    }

    #[tokio::test]
    async fn places_are_kept_apart_and_the_queue_is_bounded() {
        let rates = Rates {
            calls_at_once: nonzero(2),
            reserved_at_once: nonzero(1),
            ..Rates::default()
        };
        let places = Arc::new(Places::new(&rates));
        let first = places.enter(Class::General).await.expect("free");
        let _second = places.enter(Class::General).await.expect("free");
        let _ending = places.enter(Class::Reserved).await.expect("its own");
        let waiting: Vec<_> = (0..2 * QUEUE_PER_PLACE)
            .map(|_| {
                let places = places.clone();
                tokio::spawn(async move { places.enter(Class::General).await.map(drop) })
            })
            .collect();
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(places.general.queue.available_permits(), 0);
        assert_eq!(
            places.enter(Class::General).await.map(drop),
            Err(Shed),
            "beyond the queue"
        );
        first.release();
        for one in waiting {
            one.await.expect("ran").expect("one after another");
        }
        first.reacquire().await;
        assert_eq!(
            places.enter(Class::General).await.map(drop),
            Err(Shed),
            "nobody leaves in time"
        );
    }

    #[test]
    fn each_key_has_so_many_at_once() {
        let tally = Arc::new(Tally::new(2));
        let one = tally.enter(&"a").expect("the first");
        let two = tally.enter(&"a").expect("the second");
        assert!(tally.enter(&"a").is_none(), "no third");
        drop(tally.enter(&"b").expect("another's"));
        drop(one);
        let again = tally.enter(&"a").expect("one has gone");
        drop((two, again));
        assert!(lock(&tally.now).is_empty(), "and nothing is remembered");
    }

    #[test]
    fn said_seldom() {
        let seldom = Seldom::default();
        assert_eq!(seldom.due(ms(1)), Some(1));
        for _ in 0..99 {
            assert_eq!(seldom.due(ms(100)), None);
        }
        assert_eq!(seldom.due(ms(251)), Some(100));
    }
}
