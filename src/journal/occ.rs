//! Optimistic concurrency control: compares the stream versions and the claims of an append with the state. Pure, for every engine.

use std::collections::HashMap;

use super::{Append, AppendError, Fold};
use crate::model::{Counter, Stream, Timestamp, Version};

/// Streams advanced and counts added to by the appends accepted so far in the current batch, which commit together or not at all.
#[derive(Debug, Default)]
pub(super) struct Batch {
    versions: HashMap<Stream, Version>,
    counts: HashMap<Counter, u64>,
}

impl Batch {
    /// Checks an append against the state and the appends accepted before it. Accepts it and returns the index after its last
    /// entry.
    ///
    /// INVARIANT (the read set holds): at the first index of an accepted append, every stream it names has that version.
    /// INVARIANT (a ceiling holds): counted in the order of the entries, no count passes the ceiling of a claim. An end in the same
    /// batch does not lower a count yet: such a claim is refused once too often, never too seldom.
    pub(super) fn accept(
        &mut self,
        fold: &dyn Fold,
        append: &Append,
        next: u64,
        at: Timestamp,
    ) -> Result<u64, AppendError> {
        if append.not_after.is_some_and(|limit| at >= limit) {
            return Err(AppendError::TooLate);
        }
        let write_set = || append.events.iter().flat_map(|event| &event.write_set);
        let claims = || append.events.iter().flat_map(|event| &event.claims);
        let current = |stream: &Stream| {
            let in_batch = self.versions.get(stream).copied();
            in_batch.unwrap_or_else(|| fold.version(stream))
        };
        let stale: Vec<Stream> = append
            .read_set
            .iter()
            .chain(write_set())
            .filter(|(stream, seen)| current(stream) != *seen)
            .map(|(stream, _)| stream.clone())
            .collect();
        if !stale.is_empty() {
            return Err(AppendError::Conflict(stale));
        }
        let count = |counter: &Counter| {
            let in_batch = self.counts.get(counter).copied().unwrap_or(0);
            fold.count(counter, at).saturating_add(in_batch)
        };
        if let Some(over) = claims().find(|claim| count(&claim.counter) >= claim.ceiling) {
            return Err(AppendError::Ceiling(over.clone()));
        }
        for claim in claims() {
            *self.counts.entry(claim.counter.clone()).or_default() += 1;
        }
        let mut index = next;
        for event in &append.events {
            for (stream, _) in &event.write_set {
                self.versions.insert(stream.clone(), index + 1);
            }
            index += 1;
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Committed, IllegalEntry, NewEvent, ReadSet};
    use crate::model::{AgentId, Claim, Entry, EpochStarted, Event, Realm};

    /// State with one stream at version 5, and one count at 1.
    struct Known(Stream);

    impl Fold for Known {
        fn version(&self, stream: &Stream) -> Version {
            if *stream == self.0 { 5 } else { 0 }
        }

        fn check(&self, _: &Entry) -> Result<(), IllegalEntry> {
            Ok(())
        }

        fn count(&self, _: &Counter, _: Timestamp) -> u64 {
            1
        }

        fn apply(&mut self, _: &Committed) {}
    }

    fn append(write_set: &[(Stream, Version)], read_set: &[(Stream, Version)]) -> Append {
        let event = Event::EpochStarted(EpochStarted {
            realm: Realm::parse("r").expect("realm"),
        });
        let event = NewEvent {
            event,
            write_set: write_set.to_vec(),
            claims: Vec::new(),
        };
        Append::new(
            vec![event],
            ReadSet::new(read_set.to_vec()),
            None,
            Vec::new(),
        )
    }

    fn agent(name: &str) -> AgentId {
        AgentId::parse(name).expect("id")
    }

    #[test]
    fn stale_read_set_conflicts() {
        let (a, b) = (Stream::Agent(agent("a")), Stream::Agent(agent("b")));
        let state = Known(a.clone());
        let now = Timestamp::from_secs(1);
        let mut batch = Batch::default();
        assert_eq!(
            batch.accept(
                &state,
                &append(&[(b.clone(), 0)], &[(a.clone(), 5)]),
                7,
                now
            ),
            Ok(8)
        );
        // The second in the batch sees the streams that the first advanced, though it is not durable yet.
        assert_eq!(
            batch.accept(&state, &append(&[(b.clone(), 0)], &[]), 8, now),
            Err(AppendError::Conflict(vec![b.clone()]))
        );
        assert_eq!(
            batch.accept(&state, &append(&[], &[(b.clone(), 8)]), 8, now),
            Ok(9)
        );
        assert_eq!(
            batch.accept(&state, &append(&[], &[(a.clone(), 4)]), 9, now),
            Err(AppendError::Conflict(vec![a.clone()]))
        );
        let mut late = append(&[], &[]);
        late.not_after = Some(now);
        assert_eq!(
            batch.accept(&state, &late, 9, now),
            Err(AppendError::TooLate)
        );
    }

    #[test]
    fn claims_count_within_a_batch() {
        let state = Known(Stream::Policy);
        let now = Timestamp::from_secs(1);
        let claim = |ceiling| Claim {
            counter: Counter::OpenTasks(agent("a")),
            ceiling,
        };
        let claiming = |ceiling| {
            let mut append = append(&[], &[]);
            for event in &mut append.events {
                event.claims.push(claim(ceiling));
            }
            append
        };
        let mut batch = Batch::default();
        assert_eq!(batch.accept(&state, &claiming(3), 1, now), Ok(2));
        assert_eq!(batch.accept(&state, &claiming(3), 2, now), Ok(3));
        assert_eq!(
            batch.accept(&state, &claiming(3), 3, now),
            Err(AppendError::Ceiling(claim(3)))
        );
        // A refused claim counts nothing.
        assert_eq!(batch.accept(&state, &claiming(4), 3, now), Ok(4));
    }
}
