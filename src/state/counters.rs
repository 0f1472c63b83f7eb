//! Bounded counters: the map and the duration window that decision statistics are made of.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use serde::Serialize;
use serde_json::{Value, json};

/// Most durations in a [`DurationWindow`]: odd, so that the median of a full one is a member.
pub const DURATIONS_MAX: usize = 101;

/// The last [`DURATIONS_MAX`] durations, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct DurationWindow(VecDeque<u32>);

impl DurationWindow {
    /// The median in seconds, the lower of two middle ones; `None` when empty.
    pub fn median(&self) -> Option<u32> {
        median_of(&mut self.0.iter().copied().collect::<Vec<_>>())
    }

    pub(super) fn push(&mut self, seconds: u32) {
        if self.0.len() >= DURATIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(seconds);
    }
}

/// A map of at most `MAX` keys. A new key in a full map evicts the least recently updated eighth, by the index of the entry
/// that updated each last, so that every node evicts the same keys.
#[derive(Debug)]
pub(super) struct BoundedMap<K, V, const MAX: usize>(HashMap<K, (u64, V)>);

impl<K, V, const MAX: usize> Default for BoundedMap<K, V, MAX> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V: Default, const MAX: usize> BoundedMap<K, V, MAX> {
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.get(key).map(|(_, value)| value)
    }

    pub(super) fn entry(&mut self, key: &K, index: u64) -> &mut V {
        if self.0.len() >= MAX && !self.0.contains_key(key) {
            self.evict_oldest();
        }
        let (last, value) = self.0.entry(key.clone()).or_default();
        *last = index;
        value
    }

    fn evict_oldest(&mut self) {
        let mut updated: Vec<u64> = self.0.values().map(|(last, _)| *last).collect();
        let place = (updated.len() / 8).min(updated.len().saturating_sub(1));
        // By value, not by count: keys that one entry updated are evicted together, in any map order.
        let (_, oldest, _) = updated.select_nth_unstable(place);
        let oldest = *oldest;
        self.0.retain(|_, (last, _)| *last > oldest);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, (_, value))| (key, value))
    }

    pub(super) fn canonical_snapshot(&self) -> Vec<Value>
    where
        K: Ord + Serialize,
        V: Serialize,
    {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by(|a, b| a.0.cmp(b.0));
        all.into_iter()
            .map(|(key, (last, value))| json!([key, last, value]))
            .collect()
    }
}

pub(super) fn add(count: &mut u64) {
    *count = count.saturating_add(1);
}

/// The median, the lower of two middle ones; reorders the numbers.
pub(super) fn median_of(numbers: &mut [u32]) -> Option<u32> {
    let place = numbers.len().checked_sub(1)? / 2;
    Some(*numbers.select_nth_unstable(place).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lru_eviction() {
        let mut map: BoundedMap<u64, u64, 16> = BoundedMap::default();
        for n in 0..16 {
            add(map.entry(&n, n));
        }
        // Updated again, the first is no longer among the oldest; three keys of one entry stay together.
        add(map.entry(&0, 100));
        for n in [1, 2, 3] {
            map.entry(&n, 50);
        }
        add(map.entry(&16, 101));
        assert_eq!(map.get(&0), Some(&2));
        let gone: Vec<u64> = (0..17).filter(|n| map.get(n).is_none()).collect();
        assert_eq!(gone, [4, 5, 6]);
        // Updating a known key evicts nothing.
        for n in 17..19 {
            map.entry(&n, n + 100);
        }
        let before = map.0.len();
        assert_eq!(before, 16);
        map.entry(&0, 200);
        assert_eq!(map.0.len(), before);
    }

    #[test]
    fn map_size_is_bounded() {
        let mut map: BoundedMap<u64, u64, 64> = BoundedMap::default();
        for n in 0..10_000 {
            map.entry(&n, n / 3);
            assert!(map.0.len() <= 64);
        }
        assert!(map.get(&9_999).is_some());
    }

    #[test]
    fn median_is_over_the_last_durations() {
        let mut times = DurationWindow::default();
        assert_eq!(times.median(), None);
        times.push(9);
        times.push(1);
        assert_eq!(times.median(), Some(1), "the lower of two");
        times.push(4);
        assert_eq!(times.median(), Some(4));
        for _ in 0..51 {
            times.push(2);
        }
        assert_eq!(times.median(), Some(2));
        for _ in 0..51 {
            times.push(8);
        }
        assert_eq!(times.0.len(), DURATIONS_MAX);
        assert_eq!(times.median(), Some(8), "old ones are dropped");
    }
}
