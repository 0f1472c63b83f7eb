//! Index of entries by task, so that a timeline is read without scanning the journal.

use super::concurrent_map::ArcMap;
use crate::model::*;

/// Indexes of the entries about each task.
#[derive(Debug, Default)]
pub(super) struct TaskEntryIndex(ArcMap<TaskId, TaskEntries>);

/// Indexes of the first and the last entries about one task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TaskEntries {
    /// The first half of [`TASK_ENTRIES_MAX`] in order, then the last half as a ring.
    kept: Vec<u64>,
    total: u64,
}

/// Most entries listed for a task; of more, the first and the last half of this many.
pub const TASK_ENTRIES_MAX: usize = 512;

impl TaskEntryIndex {
    pub(super) fn push(&self, task: TaskId, index: u64) {
        self.0
            .update_or_default(task, |entries| entries.push(index));
    }

    /// Indexes in order, and how many between the first and the last half are omitted.
    pub(super) fn get(&self, task: &TaskId) -> (Vec<u64>, u64) {
        let Some(entries) = self.0.get(task) else {
            return (Vec::new(), 0);
        };
        let mut kept = entries.kept.clone();
        kept.sort_unstable();
        let listed = u64::try_from(kept.len()).unwrap_or(u64::MAX);
        (kept, entries.total.saturating_sub(listed))
    }

    pub(super) fn canonical_snapshot(&self) -> Vec<serde_json::Value> {
        super::sorted(self.0.all())
            .into_iter()
            .map(|(task, entries)| serde_json::json!([task, entries.kept, entries.total]))
            .collect()
    }
}

impl TaskEntries {
    fn push(&mut self, index: u64) {
        const HALF: u64 = (TASK_ENTRIES_MAX / 2) as u64;
        if self.kept.len() < TASK_ENTRIES_MAX {
            self.kept.push(index);
        } else {
            let place = HALF + self.total.saturating_sub(HALF) % HALF;
            let slot = usize::try_from(place).ok();
            if let Some(slot) = slot.and_then(|place| self.kept.get_mut(place)) {
                *slot = index;
            }
        }
        self.total = self.total.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_keeps_first_and_last_entries() {
        let entries = TaskEntryIndex::default();
        let task = TaskId::from_random([1; 16]);
        let total = 2 * TASK_ENTRIES_MAX as u64 + 7;
        for index in 0..total {
            entries.push(task, index);
        }
        let half = TASK_ENTRIES_MAX as u64 / 2;
        let expected: Vec<u64> = (0..half).chain(total - half..total).collect();
        assert_eq!(
            entries.get(&task),
            (expected, total - TASK_ENTRIES_MAX as u64)
        );
        assert_eq!(entries.get(&TaskId::from_random([2; 16])), (Vec::new(), 0));
    }
}
