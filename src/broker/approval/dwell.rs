//! Dwell time: how long the card of a high-risk action must have been shown to a person before an approval.

use std::time::Duration;

use crate::approve::facts;
use crate::broker::{Broker, CallContext, Refusal};
use crate::card::CardFacts;
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
        facts: &CardFacts,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Some(rules) = self.show().rules() else {
            return Ok(());
        };
        let dwell = self.dwell_time(request, &rules);
        if dwell.is_zero() {
            return Ok(());
        }
        let viewed = self.card_viewed_at(voter, &request.opened.access_request, facts);
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
        match facts::risk(request, &rules.bundle) {
            Some(Risk::Low | Risk::Medium) => Duration::ZERO,
            Some(Risk::High) | None => {
                Duration::from_secs(rules.bundle.approval_limits().dwell_s.into())
            }
        }
    }

    /// Records that a card was shown to a person; the first view with these facts counts.
    pub(in crate::broker) fn record_card_view(
        &self,
        person: &PersonId,
        request: &AccessRequest,
        facts: &CardFacts,
        now: Timestamp,
    ) {
        let Ok(facts) = facts.digest() else {
            return;
        };
        let mut views = self.lock(&self.card_views);
        if views.len() >= CARD_VIEWS_MAX {
            views.retain(|(_, id), _| {
                self.show()
                    .access_request(id)
                    .is_some_and(|request| request.is_pending(now))
            });
        }
        if views.len() < CARD_VIEWS_MAX && request.is_pending(now) {
            let first = views
                .entry((person.clone(), request.opened.access_request))
                .or_insert((facts, now));
            if first.0 != facts {
                *first = (facts, now);
            }
        }
    }

    /// When a card was first shown to a person with the facts of now; other facts make another card.
    pub(in crate::broker) fn card_viewed_at(
        &self,
        person: &PersonId,
        id: &AccessRequestId,
        facts: &CardFacts,
    ) -> Option<Timestamp> {
        let facts = facts.digest().ok()?;
        let view = self
            .lock(&self.card_views)
            .get(&(person.clone(), *id))
            .copied();
        view.filter(|(shown, _)| *shown == facts).map(|(_, at)| at)
    }
}
