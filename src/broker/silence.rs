//! Silence: the time for which nobody said no to an access request counts only while this broker could have heard a no.

use super::Broker;
use crate::journal::AppendError;
use crate::model::*;
use crate::state::{Draft, Read};

/// Longest time between two moments at which the broker was ready, in milliseconds, for it to have heard people in between.
const GAP_MAX_MS: i64 = 30_000;

/// Until when people could be heard.
#[derive(Debug)]
pub(super) struct HeardUntil {
    /// The last moment at which the broker was ready, without a gap before it.
    at: Timestamp,
    /// Whether requests with a delay have to begin their wait anew.
    has_gap: bool,
}

impl HeardUntil {
    /// Of a broker that starts: nobody could be heard before.
    pub(super) const fn start(now: Timestamp) -> Self {
        Self {
            at: now,
            has_gap: true,
        }
    }

    fn is_without_gap(&self, now: Timestamp) -> bool {
        !self.has_gap && (0..=GAP_MAX_MS).contains(&now.since(self.at))
    }
}

impl Broker {
    /// Whether people could be heard up to this moment, since what waits was put to them.
    pub(super) fn counts_silence(&self, now: Timestamp) -> bool {
        self.lock(&self.heard_until).is_without_gap(now)
    }

    /// Lets access requests with a delay wait anew after a gap: a start, a stop of this process, a clock that jumped, or a journal that
    /// took no entries. Until all of them do, none counts as having waited.
    ///
    /// INVARIANT (silence is that of people who could be heard): the entry says since when they could, for the writer, the audit and
    /// receipts. A crash before it leaves the wait as it was, and the next start has a gap.
    pub(super) async fn restart_delays(&self, now: Timestamp) -> Result<(), AppendError> {
        let is_ready = self.readiness().is_ok();
        {
            let mut heard = self.lock(&self.heard_until);
            if is_ready && heard.is_without_gap(now) {
                heard.at = now;
                return Ok(());
            }
            heard.has_gap = true;
        }
        if !is_ready {
            return Ok(());
        }
        let mut ids = self.show().unclosed_requests();
        ids.retain(|id| self.preview(|read| self.restart_of(read, id, now).is_some()));
        let judge = |read: &Read, id: &AccessRequestId| self.restart_of(read, id, now);
        let draft = |all: Vec<AccessRequestReassessed>| {
            let events = all.into_iter().map(Event::AccessRequestReassessed);
            Draft::all(events.collect())
        };
        let swept = self.sweep(&ids, judge, draft).await;
        swept.outcome()?;
        if swept.is_complete {
            let mut heard = self.lock(&self.heard_until);
            heard.at = now;
            heard.has_gap = false;
        }
        Ok(())
    }

    /// What a waiting access request with a delay requires, said anew: what it did.
    fn restart_of(
        &self,
        read: &Read,
        id: &AccessRequestId,
        now: Timestamp,
    ) -> Option<AccessRequestReassessed> {
        let request = read.access_request(id)?;
        let decision = request.decision.as_ref()?;
        let is_of_now = read
            .rules()
            .is_some_and(|rules| rules.bundle.version() == decision.policy);
        let waits = decision.delay.is_some() && request.required_since < now;
        // Under another bundle the time begins anew by itself.
        let waits = waits && is_of_now && self.is_open_for_votes(read, &request, self.now());
        waits.then(|| AccessRequestReassessed {
            access_request: *id,
            decision: DecisionRecord {
                id: DecisionId::from_random(self.random_bytes()),
                ..(**decision).clone()
            },
        })
    }
}
