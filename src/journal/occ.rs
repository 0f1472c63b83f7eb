//! Optimistic concurrency control: compares the stream versions of an append with the journal's. Pure, for every engine.

use std::collections::HashMap;

use super::{Append, AppendError};
use crate::model::{Stream, Timestamp, Version};

/// The current version of every stream that was ever advanced.
#[derive(Debug, Default)]
pub(super) struct Versions(HashMap<Stream, Version>);

impl Versions {
    pub(super) fn get(&self, stream: &Stream) -> Version {
        self.0.get(stream).copied().unwrap_or(0)
    }

    pub(super) fn advance(&mut self, stream: &Stream, index: u64) {
        self.0.insert(stream.clone(), index + 1);
    }
}

/// Streams advanced by the appends accepted so far in the current batch, which commit together or not at all.
#[derive(Debug, Default)]
pub(super) struct BatchVersions(HashMap<Stream, Version>);

impl BatchVersions {
    /// Checks an append against the journal and the appends accepted before it. Accepts it and returns the index after its
    /// last entry.
    ///
    /// INVARIANT (the read set holds): at the first index of an accepted append, every stream it names has that version.
    pub(super) fn accept(
        &mut self,
        versions: &Versions,
        append: &Append,
        next: u64,
        at: Timestamp,
    ) -> Result<u64, AppendError> {
        if append.not_after.is_some_and(|limit| at >= limit) {
            return Err(AppendError::TooLate);
        }
        let write_set = || append.events.iter().flat_map(|event| &event.write_set);
        let current = |stream: &Stream| {
            self.0
                .get(stream)
                .copied()
                .unwrap_or_else(|| versions.get(stream))
        };
        let stale: Vec<Stream> = append
            .read_set
            .iter()
            .chain(write_set())
            .filter(|(stream, seen)| current(stream) != *seen)
            .map(|(s, _)| s.clone())
            .collect();
        if !stale.is_empty() {
            return Err(AppendError::Conflict(stale));
        }
        let mut index = next;
        for event in &append.events {
            for (stream, _) in &event.write_set {
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

    fn append(write_set: &[(Stream, Version)], read_set: &[(Stream, Version)]) -> Append {
        let event = Event::EpochStarted(EpochStarted {
            realm: Realm::parse("r").expect("realm"),
        });
        Append {
            read_set: read_set.to_vec(),
            ..Append::one(event, write_set.to_vec())
        }
    }

    #[test]
    fn stale_read_set_conflicts() {
        let (a, b) = (
            Stream::Agent(AgentId::parse("a").expect("id")),
            Stream::Agent(AgentId::parse("b").expect("id")),
        );
        let mut versions = Versions::default();
        versions.advance(&a, 4);
        let now = Timestamp::from_secs(1);
        let mut batch = BatchVersions::default();
        assert_eq!(
            batch.accept(
                &versions,
                &append(&[(b.clone(), 0)], &[(a.clone(), 5)]),
                7,
                now
            ),
            Ok(8)
        );
        // The second in the batch sees the streams that the first advanced, though it is not durable yet.
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
            Err(AppendError::TooLate)
        );
    }
}
