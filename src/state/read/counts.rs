//! Counts as a round reads them, each under its stream.

use super::Read;
use crate::model::*;
use crate::policy::{DeclaredCount, PolicyBundle};
use crate::state::AccessRequest;

impl Read {
    /// The counts that rules of a bundle read whose scope can match an action on a target by an agent, with their values at a moment,
    /// without the access request that is decided. Their streams move with the decisions whose rules read them, and with no other event.
    pub fn counts(
        &self,
        bundle: &PolicyBundle,
        agent: &RegisteredAgent,
        (action, target): (&ActionName, &Target),
        own: Option<&AccessRequest>,
        now: Timestamp,
    ) -> CountValues {
        let names = bundle.counts_in_scope(&agent.id, action, target);
        let declared = names.into_iter().filter_map(|name| bundle.count(name));
        let value = |declared: &DeclaredCount| {
            let key = declared.key(&agent.id, &agent.owner, action);
            self.note(Stream::Count(Box::new(key.clone())));
            let value = self.state.count_value(declared, &key, own, now);
            (declared.name.clone(), value)
        };
        declared.map(value).collect()
    }
}
