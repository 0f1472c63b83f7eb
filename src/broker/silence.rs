//! Silence: the time for which nobody said no to an access request counts only while this broker could have heard a no.

use super::Broker;
use crate::journal::AppendError;
use crate::model::*;
use crate::state::Read;

/// Longest time between two moments at which the broker was ready, in milliseconds, for it to have heard people in between.
const GAP_MAX_MS: i64 = 30_000;

/// Between which moments people could be heard without a gap.
#[derive(Debug)]
pub(super) struct HeardTime {
    since: Timestamp,
    until: Timestamp,
    /// Whether the broker was not ready since then.
    has_gap: bool,
}

impl HeardTime {
    /// Of a broker that starts: nobody could be heard before.
    pub(super) const fn start(now: Timestamp) -> Self {
        Self {
            since: now,
            until: now,
            has_gap: false,
        }
    }

    /// Since when people could be heard, up to this moment.
    fn since(&self, now: Timestamp) -> Option<Timestamp> {
        let is_without_gap = !self.has_gap && (0..=GAP_MAX_MS).contains(&now.since(self.until));
        is_without_gap.then_some(self.since)
    }

    /// Notes whether the broker is ready at a moment. A gap ends with the first moment at which it is.
    fn note(&mut self, now: Timestamp, is_ready: bool) {
        let since = self.since(now);
        self.has_gap = !is_ready;
        if is_ready {
            self.since = since.unwrap_or(now);
            self.until = now;
        }
    }
}

impl Broker {
    /// Since when people could be heard without a gap, up to this moment; nothing in a gap. An access request counts as having waited only
    /// where it requires what it requires since then or later.
    pub(super) fn heard_since(&self, now: Timestamp) -> Option<Timestamp> {
        self.lock(&self.heard).since(now)
    }

    /// Lets access requests with a delay wait anew after a gap: a start, a stop of this process, a clock that jumped, or a journal that
    /// took no entries.
    ///
    /// INVARIANT (silence is that of people who could be heard): none counts as having waited before its entry is written, which says since
    /// when people could be heard, for the writer, the audit and receipts. A crash before it leaves the wait as it was, and the next start
    /// has a gap.
    pub(super) async fn restart_delays(&self, now: Timestamp) -> Result<(), AppendError> {
        let is_ready = self.readiness().is_ok();
        let heard = {
            let mut heard = self.lock(&self.heard);
            heard.note(now, is_ready);
            heard.since(now)
        };
        let Some(since) = heard else {
            return Ok(());
        };
        let show = self.show();
        let mut ids = show.unclosed_requests();
        ids.retain(|id| {
            let request = show.access_request(id);
            request.is_some_and(|request| {
                request.delayed_until().is_some() && request.required_since < since
            })
        });
        let judge = |read: &Read, id: &AccessRequestId| self.restart_of(read, id, since);
        let swept = self.sweep(&ids, judge, Self::reassessments).await;
        swept.outcome()
    }

    /// What a waiting access request with a delay requires, said anew: what it did, if the rules in force still say so.
    fn restart_of(
        &self,
        read: &Read,
        id: &AccessRequestId,
        since: Timestamp,
    ) -> Option<(Event, Timestamp)> {
        if let Some(changed) = self.reassessment_of(read, id) {
            return Some(changed);
        }
        let request = read.access_request(id)?;
        let decision = request.decision.as_ref()?;
        let waits = request.delayed_until().is_some() && request.required_since < since;
        if !waits || !self.is_open_for_votes(read, &request, self.now()) {
            return None;
        }
        let event = Event::AccessRequestReassessed(AccessRequestReassessed {
            access_request: *id,
            decision: DecisionRecord {
                id: DecisionId::from_random(self.random_bytes()),
                ..(**decision).clone()
            },
        });
        Some((event, request.opened.expires_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(1_000 + seconds)
    }

    #[test]
    fn a_gap_begins_anew() {
        let mut heard = HeardTime::start(at(0));
        heard.note(at(30), true);
        assert_eq!(heard.since(at(60)), Some(at(0)));
        // Longer than a gap may be, and a clock that went back.
        assert_eq!(heard.since(at(61)), None);
        assert_eq!(heard.since(at(29)), None);
        heard.note(at(61), true);
        assert_eq!(heard.since(at(61)), Some(at(61)));
        // A moment that was not ready is a gap until one that is.
        heard.note(at(62), false);
        assert_eq!(heard.since(at(62)), None);
        heard.note(at(63), true);
        assert_eq!(heard.since(at(64)), Some(at(63)));
    }
}
