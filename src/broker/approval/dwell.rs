//! Dwell time: how long the card of a high-risk action must have been shown to a person before an approval.

use std::time::Duration;

use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::policy::{ActivePolicy, Risk};
use crate::state::AccessRequest;

/// Recorded card views: one for each person and waiting access request.
const CARD_VIEWS_MAX: usize = 100_000;

impl Broker {
    /// Refuses an approval before the card was shown for the dwell time.
    pub(super) fn check_dwell(
        &self,
        call: &CallContext,
        voter: &PersonId,
        request: &AccessRequest,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let dwell = self.dwell_time(request, rules);
        if dwell.is_zero() {
            return Ok(());
        }
        let viewed = self.card_viewed_at(voter, &request.opened.access_request, rules);
        let left = match viewed {
            Some(viewed) => dwell.saturating_sub(now.after(viewed)),
            None => dwell,
        };
        if left.is_zero() {
            return Ok(());
        }
        let message = match viewed {
            Some(_) => format!(
                "the card must be shown {} ms longer before an approval",
                left.as_millis()
            ),
            None => "the card must be shown before an approval: open it first".to_owned(),
        };
        Err(Refusal {
            retry_after: Some(left),
            ..self.refuse(call.method, Reason::DwellRequired, message)
        })
    }

    /// How long the card must be shown before an approval: for high risk, or a risk that is not stated.
    pub(in crate::broker) fn dwell_time(
        &self,
        request: &AccessRequest,
        rules: &ActivePolicy,
    ) -> Duration {
        let action = rules.bundle.action(&request.opened.action.action);
        match action.and_then(|a| a.risk) {
            Some(Risk::Low | Risk::Medium) => Duration::ZERO,
            Some(Risk::High) | None => {
                Duration::from_secs(rules.bundle.approval_limits().dwell_s.into())
            }
        }
    }

    /// Records that a card was shown to a person; the first view under these rules counts.
    pub(in crate::broker) fn record_card_view(
        &self,
        person: &PersonId,
        request: &AccessRequest,
        rules: &ActivePolicy,
        now: Timestamp,
    ) {
        let mut views = self.lock(&self.card_views);
        if views.len() >= CARD_VIEWS_MAX {
            views.retain(|(_, id), _| {
                self.show()
                    .access_request(id)
                    .is_some_and(|request| request.is_pending(now))
            });
        }
        if views.len() < CARD_VIEWS_MAX && request.is_pending(now) {
            let policy = rules.bundle.version();
            let first = views
                .entry((person.clone(), request.opened.access_request))
                .or_insert((policy, now));
            if first.0 != policy {
                *first = (policy, now);
            }
        }
    }

    /// When a card was first shown to a person under the rules in force; other rules make another card.
    pub(in crate::broker) fn card_viewed_at(
        &self,
        person: &PersonId,
        id: &AccessRequestId,
        rules: &ActivePolicy,
    ) -> Option<Timestamp> {
        let view = self
            .lock(&self.card_views)
            .get(&(person.clone(), *id))
            .copied();
        view.filter(|(policy, _)| *policy == rules.bundle.version())
            .map(|(_, at)| at)
    }
}
