//! Pages of a timeline: where the next one begins.

use serde::{Deserialize, Serialize};

use super::timeline::{TaskTimeline, TimelineEvent};
use crate::model::Timestamp;

/// The last event of a page of a timeline: by its place in the order, not its number, because the timeline of a running task
/// gets new events, and of a very long one loses events in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineCursor {
    at: Timestamp,
    index: Option<u64>,
    /// How many events at this place the pages up to here had: expirations have no entry and may be simultaneous.
    count: usize,
}

impl TaskTimeline {
    /// The events after a page; all for `None`.
    pub fn events_after(&self, last: Option<TimelineCursor>) -> &[TimelineEvent] {
        let first = last.map_or(0, |last| {
            let place = (last.at, last.index);
            let before = self.events.partition_point(|event| event.place() < place);
            let same = self.events.iter().skip(before);
            before
                + same
                    .take(last.count)
                    .take_while(|event| event.place() == place)
                    .count()
        });
        self.events.get(first..).unwrap_or_default()
    }

    /// The cursor of a page whose last event is before `rest`, which the page leaves; `None` if it leaves none.
    pub fn cursor_before(&self, rest: &[TimelineEvent]) -> Option<TimelineCursor> {
        let sent = self.events.len().checked_sub(rest.len())?;
        let sent = self.events.get(..sent).filter(|_| !rest.is_empty())?;
        let place = sent.last()?.place();
        Some(TimelineCursor {
            at: place.0,
            index: place.1,
            count: sent
                .iter()
                .rev()
                .take_while(|event| event.place() == place)
                .count(),
        })
    }
}

impl TimelineEvent {
    /// The order of a timeline: by time, then by entry.
    pub(super) const fn place(&self) -> (Timestamp, Option<u64>) {
        (self.at, self.index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{AgentId, PersonId, TaskId};

    fn timeline(places: &[(i64, Option<u64>)]) -> TaskTimeline {
        let event = |(n, (at, index)): (usize, &(i64, Option<u64>))| TimelineEvent {
            index: *index,
            at: Timestamp::from_secs(*at),
            kind: "",
            what: "token expired",
            is_denial: false,
            who: String::new(),
            detail: n.to_string(),
            ids: Vec::new(),
        };
        TaskTimeline {
            task: TaskId::from_random([1; 16]),
            agent: AgentId::parse("triage").expect("an id"),
            owner: PersonId::parse("dana").expect("an id"),
            ended: None,
            events: places.iter().enumerate().map(event).collect(),
            left_out: 0,
        }
    }

    proptest! {
        #[test]
        fn pages_have_each_event_once(
            mut places in prop::collection::vec((0_i64..6, prop::option::of(0_u64..1_000)), 0..40),
            rows in 1_usize..9,
        ) {
            places.sort_unstable();
            let whole = timeline(&places);
            let (mut read, mut after) = (Vec::new(), None);
            loop {
                let page = whole.events_after(after);
                let (sent, rest) = page.split_at(rows.min(page.len()));
                read.extend(sent.iter().cloned());
                after = whole.cursor_before(rest);
                if after.is_none() {
                    break;
                }
            }
            prop_assert_eq!(read, whole.events);
        }
    }

    #[test]
    fn the_next_page_follows_the_last_event_and_not_its_number() {
        let before = timeline(&[
            (1, Some(1)),
            (2, Some(2)),
            (3, Some(3)),
            (4, Some(4)),
            (5, Some(5)),
        ]);
        let cursor = before.cursor_before(&before.events[3..]);
        // Two events in the middle were left out meanwhile, the last one of the page too, and one came.
        let now = timeline(&[(1, Some(1)), (4, Some(4)), (5, Some(5)), (6, Some(6))]);
        let next: Vec<_> = now.events_after(cursor).iter().map(|e| e.index).collect();
        assert_eq!(next, [Some(4), Some(5), Some(6)]);
    }
}
