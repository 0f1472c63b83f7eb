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
