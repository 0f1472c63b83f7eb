//! Concurrency limits: permits for calls that run, and a count for each key of what it holds open.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Class, RateLimitConfig, lock};

/// A limit on calls that run at once, with a short queue before it; each class has its own.
#[derive(Debug)]
pub struct ConcurrencyLimiter {
    general: SlotPool,
    reserved: SlotPool,
}

#[derive(Debug)]
struct SlotPool {
    semaphore: Arc<Semaphore>,
    queue: Semaphore,
}

/// No slot came free in time.
#[derive(Debug, PartialEq, Eq)]
pub struct Overloaded;

impl ConcurrencyLimiter {
    /// The limits of `[rate_limits]`.
    pub fn new(limits: &RateLimitConfig) -> Self {
        Self {
            general: SlotPool::new(limits.max_concurrent_calls),
            reserved: SlotPool::new(limits.max_concurrent_reserved),
        }
    }

    /// Takes a slot: at once, after a short wait in a bounded queue, or not at all.
    pub async fn acquire(&self, class: Class) -> Result<ConcurrencyPermit, Overloaded> {
        let pool = match class {
            Class::General => &self.general,
            Class::Reserved => &self.reserved,
        };
        let permit = pool.acquire().await?;
        Ok(ConcurrencyPermit {
            class,
            slot: Some(Slot {
                semaphore: pool.semaphore.clone(),
                permit: Mutex::new(Some(permit)),
            }),
        })
    }
}

impl SlotPool {
    fn new(max_concurrent: NonZeroU32) -> Self {
        let permits = |n: u32| {
            usize::try_from(n)
                .unwrap_or(usize::MAX)
                .min(Semaphore::MAX_PERMITS)
        };
        Self {
            semaphore: Arc::new(Semaphore::new(permits(max_concurrent.get()))),
            queue: Semaphore::new(permits(max_concurrent.get().saturating_mul(QUEUE_PER_SLOT))),
        }
    }

    async fn acquire(&self) -> Result<OwnedSemaphorePermit, Overloaded> {
        if let Ok(permit) = self.semaphore.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = self.queue.try_acquire().map_err(|_| Overloaded)?;
        match tokio::time::timeout(QUEUE_WAIT_MAX, self.semaphore.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Overloaded),
        }
    }
}

/// A call's permit to run: its slot is given back when the permit is dropped.
#[derive(Debug)]
pub struct ConcurrencyPermit {
    class: Class,
    slot: Option<Slot>,
}

#[derive(Debug)]
struct Slot {
    semaphore: Arc<Semaphore>,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl ConcurrencyPermit {
    /// A permit without a slot, for the broker's own work.
    pub const fn unlimited(class: Class) -> Self {
        Self { class, slot: None }
    }

    /// The class of the call.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Gives the slot back while the call only waits.
    pub fn release(&self) {
        if let Some(slot) = &self.slot {
            drop(lock(&slot.permit).take());
        }
    }

    /// Takes a slot again, without the bound on the queue: the call was admitted before, and waits for its turn.
    pub async fn reacquire(&self) {
        if let Some(slot) = &self.slot {
            let again = slot.semaphore.clone().acquire_owned().await.ok();
            *lock(&slot.permit) = again;
        }
    }
}

/// A limit on what each key holds at once, such as open streams.
#[derive(Debug)]
pub struct PerKeyLimit<K> {
    max: usize,
    held: Mutex<HashMap<K, usize>>,
}

/// One unit of a key's limit, given back when dropped.
#[derive(Debug)]
pub struct PerKeyPermit<K: Hash + Eq> {
    limit: Arc<PerKeyLimit<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> PerKeyLimit<K> {
    /// At most this many for each key.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            held: Mutex::default(),
        }
    }

    /// Counts one more for the key, unless the key is at its limit.
    pub fn acquire(self: &Arc<Self>, key: &K) -> Option<PerKeyPermit<K>> {
        let mut held = lock(&self.held);
        let count = held.entry(key.clone()).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(PerKeyPermit {
            limit: self.clone(),
            key: key.clone(),
        })
    }
}

impl<K: Hash + Eq> Drop for PerKeyPermit<K> {
    fn drop(&mut self) {
        let mut held = lock(&self.limit.held);
        let left = held.get_mut(&self.key).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == 0 {
            held.remove(&self.key);
        }
    }
}

/// Calls that may wait, for each slot.
const QUEUE_PER_SLOT: u32 = 4;
/// Longest wait for a slot.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::super::nonzero;
    use super::*;

    #[tokio::test]
    async fn concurrency_classes_are_isolated() {
        let limits = RateLimitConfig {
            max_concurrent_calls: nonzero(2),
            max_concurrent_reserved: nonzero(1),
            ..RateLimitConfig::default()
        };
        let limiter = Arc::new(ConcurrencyLimiter::new(&limits));
        let first = limiter.acquire(Class::General).await.expect("free");
        let _second = limiter.acquire(Class::General).await.expect("free");
        let _reserved = limiter.acquire(Class::Reserved).await.expect("its own");
        let waiting: Vec<_> = (0..2 * QUEUE_PER_SLOT)
            .map(|_| {
                let limiter = limiter.clone();
                tokio::spawn(async move { limiter.acquire(Class::General).await.map(drop) })
            })
            .collect();
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(limiter.general.queue.available_permits(), 0);
        assert_eq!(
            limiter.acquire(Class::General).await.map(drop),
            Err(Overloaded),
            "beyond the queue"
        );
        first.release();
        for one in waiting {
            one.await.expect("ran").expect("one after another");
        }
        first.reacquire().await;
        assert_eq!(
            limiter.acquire(Class::General).await.map(drop),
            Err(Overloaded),
            "no slot is given back in time"
        );
    }

    #[test]
    fn per_key_limit() {
        let limit = Arc::new(PerKeyLimit::new(2));
        let one = limit.acquire(&"a").expect("the first");
        let two = limit.acquire(&"a").expect("the second");
        assert!(limit.acquire(&"a").is_none(), "no third");
        drop(limit.acquire(&"b").expect("another key"));
        drop(one);
        let again = limit.acquire(&"a").expect("one was given back");
        drop((two, again));
        assert!(
            lock(&limit.held).is_empty(),
            "keys that hold nothing are forgotten"
        );
    }
}
