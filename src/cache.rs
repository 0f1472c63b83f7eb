//! Two-generation cache: a map of bounded size whose eviction drops the older half at once.

use std::collections::HashMap;
use std::hash::Hash;

/// A cache of two generations. Entries go to the recent one; when it is full it becomes the previous one, and the entries of
/// the previous one are dropped.
#[derive(Debug)]
pub(crate) struct GenerationalCache<K, V> {
    recent: HashMap<K, V>,
    recent_cost: usize,
    previous: HashMap<K, V>,
    generation_cost_max: usize,
}

impl<K: Eq + Hash, V> GenerationalCache<K, V> {
    /// An empty cache whose generations are full at this cost, in the unit of [`GenerationalCache::insert`].
    pub(crate) fn new(generation_cost_max: usize) -> Self {
        Self {
            recent: HashMap::new(),
            recent_cost: 0,
            previous: HashMap::new(),
            generation_cost_max,
        }
    }

    /// The value of a key; a read does not prolong its stay.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.recent.get(key).or_else(|| self.previous.get(key))
    }

    /// The value of a key, which moves to the recent generation, so that entries in use are not dropped.
    pub(crate) fn get_and_keep(&mut self, key: &K, cost: usize) -> Option<V>
    where
        K: Clone,
        V: Clone,
    {
        if let Some(value) = self.recent.get(key) {
            return Some(value.clone());
        }
        let value = self.previous.remove(key)?;
        self.insert(key.clone(), value.clone(), cost);
        Some(value)
    }

    /// Adds an entry; a key that the recent generation has already costs nothing.
    pub(crate) fn insert(&mut self, key: K, value: V, cost: usize) {
        if self.recent_cost >= self.generation_cost_max {
            self.previous = std::mem::take(&mut self.recent);
            self.recent_cost = 0;
        }
        if self.recent.insert(key, value).is_none() {
            self.recent_cost = self.recent_cost.saturating_add(cost);
        }
    }

    /// Entries of the recent and of the previous generation.
    #[cfg(test)]
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.recent.len(), self.previous.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_entries_are_dropped_and_those_in_use_are_kept() {
        let mut cache = GenerationalCache::new(10);
        for n in 0..4 {
            cache.insert(n, n, 10);
        }
        assert!(cache.get(&1).is_none() && cache.get(&2).is_some());
        assert_eq!(cache.len(), (1, 1));
        for n in 4..100 {
            cache.insert(n, n, 10);
            assert_eq!(cache.get_and_keep(&3, 1), Some(3), "{n}");
        }
        assert_eq!(cache.get_and_keep(&4, 1), None);
    }
}
