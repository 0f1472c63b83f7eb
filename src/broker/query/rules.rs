//! The rules in force, for answers and pages.

use crate::approve::facts;
use crate::broker::{Broker, CallContext, Refusal};
use crate::card::RuleSummary;
use crate::model::{Reason, RuleRef};
use crate::policy::ActivePolicy;
use crate::state::Shown;

impl Broker {
    /// The policy bundle in force, to show it; refuses the call when there is none. A decision reads it in its round.
    pub(in crate::broker) fn rules(
        &self,
        call: &CallContext,
    ) -> Result<Shown<ActivePolicy>, Refusal> {
        self.show().rules().ok_or_else(|| {
            self.refuse(
                call.method,
                Reason::DecisionUnavailable,
                "no policy bundle is in force",
            )
        })
    }

    /// The first rules of a decision with their `@why` in the bundle in force: as many as leave room for the rest of a reply.
    /// `Explain` names the others.
    pub(in crate::broker) fn rules_shown(&self, rules: &[RuleRef]) -> Vec<RuleSummary> {
        let in_force = self.show().rules();
        in_force.map_or_else(Vec::new, |in_force| {
            facts::summaries(rules, &in_force.bundle)
        })
    }
}
