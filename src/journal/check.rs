//! The one concurrency check, pure: it serves every engine.

use std::collections::HashMap;

use super::{Append, AppendError};
use crate::model::{Stream, Timestamp, Version};

/// The version of every stream that ever moved.
#[derive(Debug, Default)]
pub(super) struct Versions(HashMap<Stream, Version>);

impl Versions {
    pub(super) fn of(&self, stream: &Stream) -> Version {
        self.0.get(stream).copied().unwrap_or(0)
    }

    pub(super) fn moved(&mut self, stream: &Stream, index: u64) {
        self.0.insert(stream.clone(), index + 1);
    }
}

/// What appends accepted before in the same batch have moved. They become durable together with this one or not at all.
#[derive(Debug, Default)]
pub(super) struct Batch(HashMap<Stream, Version>);

impl Batch {
    /// Checks an append against the journal and against those accepted before it; accepts it and answers the index
    /// after it.
    ///
    /// INVARIANT (read_set hold): an accepted append's streams have, at its first index, exactly the versions it names.
    pub(super) fn accept(
        &mut self,
        versions: &Versions,
        append: &Append,
        next: u64,
        at: Timestamp,
    ) -> Result<u64, AppendError> {
        if append.not_after.is_some_and(|limit| at >= limit) {
            return Err(AppendError::Late);
        }
        let moves = || append.drafts.iter().flat_map(|d| &d.moves);
        let current = |stream: &Stream| {
            self.0
                .get(stream)
                .copied()
                .unwrap_or_else(|| versions.of(stream))
        };
        let stale: Vec<Stream> = append
            .read_set
            .iter()
            .chain(moves())
            .filter(|(stream, seen)| current(stream) != *seen)
            .map(|(s, _)| s.clone())
            .collect();
        if !stale.is_empty() {
            return Err(AppendError::Conflict(stale));
        }
        let mut index = next;
        for draft in &append.drafts {
            for (stream, _) in &draft.moves {
                self.0.insert(stream.clone(), index + 1);
            }
            index += 1;
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AgentId, EpochStarted, Event, Realm};

    fn append(moves: &[(Stream, Version)], read_set: &[(Stream, Version)]) -> Append {
        let fact = Event::EpochStarted(EpochStarted {
            realm: Realm::parse("r").expect("realm"),
        });
        Append {
            read_set: read_set.to_vec(),
            ..Append::one(fact, moves.to_vec())
        }
    }

    #[test]
    fn a_stream_that_moved_refuses_whoever_rests_on_it() {
        let (a, b) = (
            Stream::Agent(AgentId::parse("a").expect("id")),
            Stream::Agent(AgentId::parse("b").expect("id")),
        );
        let mut versions = Versions::default();
        versions.moved(&a, 4);
        let now = Timestamp::from_secs(1);
        let mut batch = Batch::default();
        assert_eq!(
            batch.accept(
                &versions,
                &append(&[(b.clone(), 0)], &[(a.clone(), 5)]),
                7,
                now
            ),
            Ok(8)
        );
        // The second in the batch sees what the first moved, though it is not durable yet.
        assert_eq!(
            batch.accept(&versions, &append(&[(b.clone(), 0)], &[]), 8, now),
            Err(AppendError::Conflict(vec![b.clone()]))
        );
        assert_eq!(
            batch.accept(&versions, &append(&[], &[(b.clone(), 8)]), 8, now),
            Ok(9)
        );
        assert_eq!(
            batch.accept(&versions, &append(&[], &[(a.clone(), 4)]), 9, now),
            Err(AppendError::Conflict(vec![a.clone()]))
        );
        let late = Append {
            not_after: Some(now),
            ..append(&[], &[])
        };
        assert_eq!(
            batch.accept(&versions, &late, 9, now),
            Err(AppendError::Late)
        );
    }
}
