//! Concurrent maps for one writer and many readers.

use std::hash::Hash;
use std::sync::Arc;

use dashmap::{DashMap, Entry};

/// A concurrent map of `Arc` values. No lock guard leaves it, so that no reader can block the writer or deadlock.
#[derive(Debug)]
pub struct ArcMap<K: Eq + Hash, V>(DashMap<K, Arc<V>>);

impl<K: Eq + Hash, V> Default for ArcMap<K, V> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V> ArcMap<K, V> {
    /// The value under the key.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.0.get(key).map(|guard| guard.value().clone())
    }

    /// Inserts a value, replacing any other.
    pub fn insert(&self, key: K, value: V) {
        self.0.insert(key, Arc::new(value));
    }

    /// Replaces the value under the key by `update(value)`; does nothing for an absent key.
    pub fn update(&self, key: &K, update: impl FnOnce(&V) -> V) {
        if let Some(mut guard) = self.0.get_mut(key) {
            let next = Arc::new(update(guard.value()));
            *guard = next;
        }
    }

    /// Updates the value under the key, or a default one, in place: it is copied only while a reader holds it, and that
    /// reader keeps the old value. For collections that grow by one at a time.
    pub fn update_or_default(&self, key: K, update: impl FnOnce(&mut V))
    where
        V: Clone + Default,
    {
        update(Arc::make_mut(&mut self.0.entry(key).or_default()));
    }

    /// Removes the value under the key.
    pub fn remove(&self, key: &K) {
        self.0.remove(key);
    }

    /// Inserts a shared value unless the one there is preferred. `is_kept` must not use this map: it would deadlock.
    pub fn insert_arc_unless(&self, key: K, value: Arc<V>, is_kept: impl FnOnce(&V) -> bool) {
        match self.0.entry(key) {
            Entry::Occupied(mut there) => {
                if !is_kept(there.get()) {
                    there.insert(value);
                }
            }
            Entry::Vacant(free) => {
                free.insert(value);
            }
        }
    }

    /// Keeps only the keys for which `keep` is true. `keep` must not use this map: it would deadlock.
    pub fn retain(&self, mut keep: impl FnMut(&K) -> bool) {
        self.0.retain(|key, _| keep(key));
    }

    /// Every key and value, in no order; not a consistent snapshot while the writer runs.
    pub fn all(&self) -> Vec<(K, Arc<V>)> {
        self.0
            .iter()
            .map(|guard| (guard.key().clone(), guard.value().clone()))
            .collect()
    }
}

/// A concurrent map like [`ArcMap`] for small `Copy` values, stored in the map without an `Arc` each.
#[derive(Debug)]
pub struct CopyMap<K: Eq + Hash, V: Copy>(DashMap<K, V>);

impl<K: Eq + Hash, V: Copy> Default for CopyMap<K, V> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V: Copy> CopyMap<K, V> {
    /// The value under the key.
    pub fn get(&self, key: &K) -> Option<V> {
        self.0.get(key).map(|guard| *guard)
    }

    /// Inserts a value, replacing any other.
    pub fn insert(&self, key: K, value: V) {
        self.0.insert(key, value);
    }

    /// Replaces the value under the key by `update(value)`; does nothing for an absent key.
    pub fn update(&self, key: &K, update: impl FnOnce(V) -> V) {
        if let Some(mut guard) = self.0.get_mut(key) {
            *guard = update(*guard);
        }
    }

    /// Every key and value, in no order; not a consistent snapshot while the writer runs.
    pub fn all(&self) -> Vec<(K, V)> {
        self.0
            .iter()
            .map(|guard| (guard.key().clone(), *guard.value()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_is_copy_on_write() {
        let map: ArcMap<u8, Vec<u8>> = ArcMap::default();
        map.update_or_default(1, |list| list.push(1));
        let held = map.get(&1).expect("a list");
        map.update_or_default(1, |list| list.push(2));
        assert_eq!(
            (held.as_slice(), map.get(&1).as_deref()),
            (&[1][..], Some(&vec![1, 2]))
        );
        drop(held);
        let before = Arc::as_ptr(&map.get(&1).expect("a list"));
        map.update_or_default(1, |list| list.push(3));
        let after = map.get(&1).expect("a list");
        assert_eq!(
            (after.as_slice(), Arc::as_ptr(&after)),
            (&[1, 2, 3][..], before),
            "in place"
        );
    }

    #[test]
    fn update_ignores_missing_keys() {
        let map: CopyMap<u8, u64> = CopyMap::default();
        map.update(&1, |n| n + 1);
        assert_eq!(map.get(&1), None);
        map.insert(1, 7);
        map.update(&1, |n| n + 1);
        assert_eq!((map.get(&1), map.all()), (Some(8), vec![(1, 8)]));
    }
}
