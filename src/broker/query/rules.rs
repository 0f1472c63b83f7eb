//! The rules in force, for answers and pages.

use crate::broker::{Broker, CallContext, Refusal};
use crate::card::RuleSummary;
use crate::model::{Reason, RuleRef};
use crate::policy::{ActivePolicy, Remedy, RuleEffect, RuleInfo};
use crate::state::Shown;

/// Most rules of a decision in a reply or on a card.
const RULES_SHOWN_MAX: usize = 16;
/// Most bytes of their texts.
const RULES_SHOWN_BYTES_MAX: usize = 8 * 1024;

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
        let known = |id: &str| in_force.as_ref().and_then(|r| r.bundle.rule(id));
        let mut left = RULES_SHOWN_BYTES_MAX;
        let fits = |rule: &RuleSummary| {
            let bytes = rule.id.len() + rule.file.len() + rule.why.len();
            let rest = left.checked_sub(bytes);
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        rules
            .iter()
            .take(RULES_SHOWN_MAX)
            .map(|r| RuleSummary {
                id: r.id.to_string(),
                file: r.file.to_string(),
                why: known(&r.id).and_then(|r| r.why.clone()).unwrap_or_default(),
                effect: known(&r.id).map(rule_effect).unwrap_or_default().to_owned(),
            })
            .take_while(fits)
            .collect()
    }
}

/// What a rule does to a decision that it determines.
pub(in crate::broker) const fn rule_effect(rule: &RuleInfo) -> &'static str {
    match (rule.effect, &rule.remedy) {
        (RuleEffect::Permit, _) => "permit",
        (RuleEffect::Forbid, Some(Remedy::StepUp(_))) => "step_up",
        (RuleEffect::Forbid, Some(Remedy::MaxTtl(_))) => "max_ttl",
        (RuleEffect::Forbid, None) => "forbid",
    }
}
