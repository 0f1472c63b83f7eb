use std::time::Duration;

use crate::broker::{Broker, CallContext, Ineligible, Refusal};
use crate::model::*;

/// What a person may vote on in one access request: for the page that offers it. Whether a vote counts is asked again when
/// it is begun, when it is cast, and when a token is given.
#[derive(Debug)]
pub struct Ballot {
    /// Profiles under which a yes of theirs would count now, or why none would.
    pub vote: Result<Vec<ProfileName>, Ineligible>,
    /// How much longer the card must be before their eyes before a yes is taken.
    pub read_longer: Duration,
}

impl Broker {
    /// What the caller may vote on, of an access request whose card they were shown.
    pub fn ballot(&self, call: &CallContext, id: &AccessRequestId) -> Result<Ballot, Refusal> {
        let now = self.now();
        let person = self.person(call)?;
        let rules = self.rules(call)?;
        let request = self.known_request(call, id)?;
        let dwell = self.dwell(&request, &rules);
        let shown = self.shown_at(&person.id, id, &rules);
        Ok(Ballot {
            vote: self.may_vote(&person.id, &request, &rules, now),
            read_longer: shown.map_or(dwell, |shown| dwell.saturating_sub(now.after(shown))),
        })
    }
}
