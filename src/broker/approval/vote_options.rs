//! Voting options: the profiles a viewer may vote under, and the remaining dwell time.

use std::time::Duration;

use crate::approve::facts;
use crate::broker::{Broker, CallContext, Ineligible, Refusal};
use crate::model::*;

/// Voting options of one person on one access request, for the card's page. Whether a vote counts is checked again when it is
/// begun, when it is cast, and when a token is issued.
#[derive(Debug)]
pub struct VoteOptions {
    /// Profiles under which an approval would count now, or why none would.
    pub vote: Result<Vec<ProfileName>, Ineligible>,
    /// Profiles under which a denial would count now: also by somebody who has approved, or who came later.
    pub denial: Vec<ProfileName>,
    /// Remaining dwell time: how much longer the card must be shown before an approval is accepted.
    pub dwell_remaining: Duration,
}

impl Broker {
    /// The caller's voting options on an access request whose card was shown to them.
    pub fn vote_options(
        &self,
        call: &CallContext,
        id: &AccessRequestId,
    ) -> Result<VoteOptions, Refusal> {
        let now = self.now();
        let person = self.authenticate_person(call)?;
        self.preview(|read| {
            let rules = self.rules_in_force(read, call)?;
            let request = self.find_readable_request(read, call, &person.id, id)?;
            let dwell = self.dwell_time(&request, &rules);
            let facts = facts::card_facts(&request, &rules.bundle);
            let viewed = self.card_viewed_at(&person.id, id, &facts);
            let dwell_remaining =
                viewed.map_or(dwell, |viewed| dwell.saturating_sub(now.after(viewed)));
            let may_vote =
                |verdict| self.may_vote(read, (&person.id, verdict), &request, &rules, now);
            Ok(VoteOptions {
                vote: may_vote(Verdict::Approve),
                denial: may_vote(Verdict::Deny).unwrap_or_default(),
                dwell_remaining,
            })
        })
    }
}
