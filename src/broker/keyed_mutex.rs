//! Keyed mutex: calls about one object take turns, calls about different objects do not wait for each other.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// One mutex for each key that a call holds or waits for, so at most one for each call in flight: the limits on concurrent
/// calls bound it. Waiting calls get their turn in the order in which they came.
///
/// It saves work and decides nothing: what a call may append, the versions of the journal's streams decide.
#[derive(Debug)]
pub(super) struct KeyedMutex<K: Eq + Hash + Clone>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

/// The turn of one call. Dropping it, also with the future of a call whose client is gone, passes the turn on.
#[derive(Debug)]
pub(super) struct KeyedMutexGuard<'a, K: Eq + Hash + Clone> {
    // Dropped before the place in the map, which counts it.
    _turn: OwnedMutexGuard<()>,
    _place: Place<'a, K>,
}

/// A call's place in the map, from before it waits: a call that is dropped while it waits leaves nothing behind.
#[derive(Debug)]
struct Place<'a, K: Eq + Hash + Clone> {
    mutexes: &'a KeyedMutex<K>,
    key: K,
    mutex: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl<K: Eq + Hash + Clone> Default for KeyedMutex<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> KeyedMutex<K> {
    /// Waits for the turn of this call with the key.
    pub(super) async fn lock(&self, key: K) -> KeyedMutexGuard<'_, K> {
        let mutex = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(key.clone()).or_default().clone()
        };
        let place = Place {
            mutexes: self,
            key,
            mutex: Some(mutex.clone()),
        };
        KeyedMutexGuard {
            _turn: mutex.lock_owned().await,
            _place: place,
        }
    }

    /// Number of keys that are held or waited for.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl<K: Eq + Hash + Clone> Drop for Place<'_, K> {
    fn drop(&mut self) {
        let mut all = self
            .mutexes
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // New places are taken under the same lock: with only the map's own reference left, no call holds or waits.
        drop(self.mutex.take());
        if all
            .get(&self.key)
            .is_some_and(|mutex| Arc::strong_count(mutex) == 1)
        {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// The output if the future has it now.
    fn poll_once<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn calls_with_one_key_take_turns_and_others_do_not_wait() {
        let mutexes = KeyedMutex::default();
        let (mut first, mut second, mut third, mut other) = (
            Box::pin(mutexes.lock("a")),
            Box::pin(mutexes.lock("a")),
            Box::pin(mutexes.lock("a")),
            Box::pin(mutexes.lock("b")),
        );
        let first_turn = poll_once(&mut first).expect("free");
        assert!(poll_once(&mut second).is_none(), "waits for the first");
        assert!(poll_once(&mut third).is_none(), "waits for the first");
        let other_turn = poll_once(&mut other).expect("another key is free");
        assert_eq!(mutexes.len(), 2);
        drop((first_turn, other_turn));
        assert!(poll_once(&mut third).is_none(), "the second came before");
        drop(poll_once(&mut second).expect("its turn"));
        drop(poll_once(&mut third).expect("its turn"));
        assert_eq!(mutexes.len(), 0, "nothing is left behind");
    }

    #[test]
    fn dropped_calls_pass_their_turn_on() {
        let mutexes = KeyedMutex::default();
        let (mut first, mut gone, mut waiting) = (
            Box::pin(mutexes.lock("a")),
            Box::pin(mutexes.lock("a")),
            Box::pin(mutexes.lock("a")),
        );
        let turn = poll_once(&mut first).expect("free");
        assert!(poll_once(&mut gone).is_none() && poll_once(&mut waiting).is_none());
        drop(gone);
        drop(turn);
        let turn = poll_once(&mut waiting).expect("the dropped call is passed over");
        assert_eq!(mutexes.len(), 1);
        drop(turn);
        assert_eq!(mutexes.len(), 0, "nothing is left behind");

        // A call that is dropped while it waits, and one that was never polled.
        let (mut holder, mut gone) = (Box::pin(mutexes.lock("a")), Box::pin(mutexes.lock("a")));
        let unpolled = mutexes.lock("a");
        let turn = poll_once(&mut holder).expect("free");
        assert!(poll_once(&mut gone).is_none());
        drop(turn);
        drop((gone, unpolled));
        assert_eq!(mutexes.len(), 0, "nothing is left behind");
    }
}
