use std::time::Duration;

use crate::broker::{Broker, CallContext, Ineligible, Refusal};
use crate::model::*;

/// What a person may vote on in one access request: for the page that offers it. Whether a vote counts is asked again when
/// it is begun, when it is cast, and when a token is given.
#[derive(Debug)]
pub struct VoteOptions {
    /// Profiles under which a yes of theirs would count now, or why none would.
    pub vote: Result<Vec<ProfileName>, Ineligible>,
    /// How much longer the card must be before their eyes before a yes is taken.
    pub dwell_remaining: Duration,
}

impl Broker {
    /// What the caller may vote on, of an access request whose card they were shown.
    pub fn vote_options(&self, call: &CallContext, id: &AccessRequestId) -> Result<VoteOptions, Refusal> {
        let now = self.now();
        let person = self.authenticate_person(call)?;
        let rules = self.rules(call)?;
        let request = self.find_request(call, id)?;
        let dwell = self.dwell_time(&request, &rules);
        let shown = self.card_viewed_at(&person.id, id, &rules);
        Ok(VoteOptions {
            vote: self.may_vote(&person.id, &request, &rules, now),
            dwell_remaining: shown.map_or(dwell, |shown| dwell.saturating_sub(now.after(shown))),
        })
    }
}
