//! History on a card: what is unusual about a request, and how similar ones were decided. No gate depends on it.

use crate::approve::facts::person_ref;
use crate::broker::Broker;
use crate::card::History;
use crate::model::*;
use crate::policy::PolicyBundle;
use crate::state::AccessRequest;
use crate::state::anomaly::{self, Anomaly};

impl Broker {
    /// The anomalies of a request, one sentence each, and how similar requests were decided, with the reader's own votes apart;
    /// `None` where the history was evicted.
    pub(in crate::broker) fn anomalies_and_history(
        &self,
        request: &AccessRequest,
        reader: &PersonId,
        bundle: &PolicyBundle,
        now: Timestamp,
    ) -> (Vec<String>, Option<History>) {
        let opened = &request.opened;
        // Nothing is counted of proposals by people.
        let Some(by) = opened.by_agent() else {
            return (Vec::new(), Some(History::default()));
        };
        let (agent, action) = (&by.agent, &opened.action.action);
        let stats = self.show().stats();
        let action_stats = stats.action_stats(agent, action);
        let at_opening = match stats.anomalies(&opened.access_request) {
            Some(anomalies) => anomalies.to_vec(),
            None => vec![Anomaly::Evicted],
        };
        let at_showing = anomaly::at_view(
            by.evidence.verified_at,
            request.opened_at,
            action_stats.as_ref(),
            self.show().registration(agent),
            now,
        );
        let unusual = at_opening.iter().chain(&at_showing).map(Anomaly::sentence);
        let reader_votes = stats.approver_action(reader, agent, action);
        let history = action_stats.map(|action_stats| History {
            approved: to_u32(action_stats.approved),
            denied: to_u32(action_stats.denied),
            approved_by_caller: to_u32(reader_votes.approvals),
            denied_by_caller: to_u32(reader_votes.denials),
            last_approved_at: action_stats.last_approved.as_ref().map(|(at, _)| *at),
            last_denied_at: action_stats.last_denied.as_ref().map(|(at, _)| *at),
            requested_today: action_stats.requests_on(now),
            first: action_stats.decided() == 0,
            last_denied_by: action_stats
                .last_denied
                .map(|(_, id)| person_ref(bundle, id)),
        });
        (unusual.collect(), history)
    }
}

fn to_u32(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
