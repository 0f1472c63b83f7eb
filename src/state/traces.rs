//! Which entries tell of a task: so that its timeline is read without walking the journal.

use super::table::Table;
use crate::model::*;

/// The entries of each task, by index. One writer folds.
#[derive(Debug, Default)]
pub(super) struct Traces(Table<TaskId, Trace>);

/// The first and the last entries of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Trace {
    /// The first half of [`TRACE_MAX`] in order, then the last half as a ring.
    kept: Vec<u64>,
    total: u64,
}

/// Most entries of a task that are found by it; of more, the first and the last half.
pub const TRACE_MAX: usize = 512;

impl Traces {
    pub(super) fn note(&self, task: TaskId, index: u64) {
        self.0.amend(task, |trace| trace.note(index));
    }

    /// Indexes in order, and how many lie between the first and the last of them without being listed.
    pub(super) fn of(&self, task: &TaskId) -> (Vec<u64>, u64) {
        let Some(trace) = self.0.get(task) else {
            return (Vec::new(), 0);
        };
        let mut kept = trace.kept.clone();
        kept.sort_unstable();
        let listed = u64::try_from(kept.len()).unwrap_or(u64::MAX);
        (kept, trace.total.saturating_sub(listed))
    }

    pub(super) fn picture(&self) -> Vec<serde_json::Value> {
        super::sorted(self.0.all())
            .into_iter()
            .map(|(task, trace)| serde_json::json!([task, trace.kept, trace.total]))
            .collect()
    }
}

impl Trace {
    fn note(&mut self, index: u64) {
        const HALF: u64 = (TRACE_MAX / 2) as u64;
        if self.kept.len() < TRACE_MAX {
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
    fn a_long_task_keeps_its_beginning_and_its_end() {
        let traces = Traces::default();
        let task = TaskId::from_random([1; 16]);
        let total = 2 * TRACE_MAX as u64 + 7;
        for index in 0..total {
            traces.note(task, index);
        }
        let half = TRACE_MAX as u64 / 2;
        let expected: Vec<u64> = (0..half).chain(total - half..total).collect();
        assert_eq!(traces.of(&task), (expected, total - TRACE_MAX as u64));
        assert_eq!(traces.of(&TaskId::from_random([2; 16])), (Vec::new(), 0));
    }
}
