use std::hash::Hash;
use std::sync::Arc;

use dashmap::DashMap;

/// A map that many threads read while one writes. No guard ever leaves it: values go in and out as `Arc`s.
#[derive(Debug)]
pub struct Table<K: Eq + Hash, V>(DashMap<K, Arc<V>>);

impl<K: Eq + Hash, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V> Table<K, V> {
    /// The value under the key.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.0.get(key).map(|guard| guard.value().clone())
    }

    /// Puts a value under the key, in place of any other.
    pub fn put(&self, key: K, value: V) {
        self.0.insert(key, Arc::new(value));
    }

    /// Replaces the value under the key by what `change` makes of it; nothing happens when there is none.
    pub fn change(&self, key: &K, change: impl FnOnce(&V) -> V) {
        if let Some(mut guard) = self.0.get_mut(key) {
            let next = Arc::new(change(guard.value()));
            *guard = next;
        }
    }

    /// Changes the value under the key, or a first one, in place: readers that hold the value keep what they have, and only
    /// then is it copied. For what grows by one at a time.
    pub fn amend(&self, key: K, change: impl FnOnce(&mut V))
    where
        V: Clone + Default,
    {
        change(Arc::make_mut(&mut self.0.entry(key).or_default()));
    }

    /// Puts a shared value under the key, in place of any other.
    pub fn put_shared(&self, key: K, value: Arc<V>) {
        self.0.insert(key, value);
    }

    /// Keeps only the keys for which `keep` says so. `keep` must not touch this table.
    pub fn retain(&self, mut keep: impl FnMut(&K) -> bool) {
        self.0.retain(|key, _| keep(key));
    }

    /// Every key and value, in no order, as of no single moment.
    pub fn all(&self) -> Vec<(K, Arc<V>)> {
        self.0
            .iter()
            .map(|guard| (guard.key().clone(), guard.value().clone()))
            .collect()
    }
}

/// A map like [`Table`] for values of a few bytes: they lie in the map itself, without an `Arc` each.
#[derive(Debug)]
pub struct Notes<K: Eq + Hash, V: Copy>(DashMap<K, V>);

impl<K: Eq + Hash, V: Copy> Default for Notes<K, V> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V: Copy> Notes<K, V> {
    /// The value under the key.
    pub fn get(&self, key: &K) -> Option<V> {
        self.0.get(key).map(|guard| *guard)
    }

    /// Puts a value under the key, in place of any other.
    pub fn put(&self, key: K, value: V) {
        self.0.insert(key, value);
    }

    /// Replaces the value under the key by what `change` makes of it; nothing happens when there is none.
    pub fn change(&self, key: &K, change: impl FnOnce(V) -> V) {
        if let Some(mut guard) = self.0.get_mut(key) {
            *guard = change(*guard);
        }
    }

    /// Every key and value, in no order, as of no single moment.
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
    fn who_holds_a_list_keeps_it_as_it_was() {
        let table: Table<u8, Vec<u8>> = Table::default();
        table.amend(1, |list| list.push(1));
        let held = table.get(&1).expect("a list");
        table.amend(1, |list| list.push(2));
        assert_eq!(
            (held.as_slice(), table.get(&1).as_deref()),
            (&[1][..], Some(&vec![1, 2]))
        );
        drop(held);
        let before = Arc::as_ptr(&table.get(&1).expect("a list"));
        table.amend(1, |list| list.push(3));
        let after = table.get(&1).expect("a list");
        assert_eq!(
            (after.as_slice(), Arc::as_ptr(&after)),
            (&[1, 2, 3][..], before),
            "in place"
        );
    }

    #[test]
    fn a_note_changes_only_where_there_is_one() {
        let notes: Notes<u8, u64> = Notes::default();
        notes.change(&1, |n| n + 1);
        assert_eq!(notes.get(&1), None);
        notes.put(1, 7);
        notes.change(&1, |n| n + 1);
        assert_eq!((notes.get(&1), notes.all()), (Some(8), vec![(1, 8)]));
    }
}
