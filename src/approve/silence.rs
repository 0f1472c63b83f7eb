//! How long an access request counts as having waited: silence answers what people were shown, and nothing else.

use std::collections::BTreeSet;

use super::needs::asking;
use super::votes::VoterContext;
use crate::model::*;
use crate::policy::{AuthzDecision, AuthzRequest, PolicyBundle};
use crate::state::{AccessRequest, Recorded};

/// Whether nobody said no to anything that the agent requested since an access request requires what it requires. After a no silence says
/// nothing about the agent's other requests: people have to approve them.
pub fn is_unopposed(request: &AccessRequest, VoterContext { read, .. }: VoterContext<'_>) -> bool {
    let denials = request.opened.agent().map(|agent| read.denials(agent));
    let mut denials = denials.into_iter().flatten();
    !denials.any(|at| at >= request.required_since)
}

/// Milliseconds for which an access request waited since people could be heard, under the bundle and the facts that its card showed; 0
/// before its delay is over.
pub fn waited_ms(
    request: &Recorded<'_, AccessRequest>,
    facts: &FactValues,
    heard_since: Option<Timestamp>,
    context: VoterContext<'_>,
    now: Timestamp,
) -> i64 {
    let waited_ms = request.waited_ms(now);
    let Some(decision) = request.decision.as_ref().filter(|_| waited_ms > 0) else {
        return 0;
    };
    let is_heard = heard_since.is_some_and(|since| since <= request.required_since);
    let is_shown = decision.policy == context.bundle.version() && decision.input.facts == *facts;
    match is_heard && is_shown && is_unopposed(request, context) {
        true => waited_ms,
        false => 0,
    }
}

/// The part of a wait that the rules of a question may count.
///
/// INVARIANT (silence answers what was shown): nothing, where the rules would ask for more people, by other rules, or after a longer time
/// than people were shown: older evidence than the one on record, and the counts of an executor, make rules ask that no card named.
pub fn counted_ms(
    bundle: &PolicyBundle,
    question: &AuthzRequest<'_>,
    recorded: &DecisionRecord,
    waited_ms: i64,
) -> i64 {
    if waited_ms == 0 {
        return 0;
    }
    let at_once = AuthzRequest {
        waited_ms: 0,
        ..*question
    };
    let AuthzDecision::Needs {
        profiles,
        delay: Some(delay),
        rules,
        ..
    } = bundle.authorize(&at_once)
    else {
        return 0;
    };
    let shown: BTreeSet<&str> = asking(bundle, &recorded.rules);
    let is_shown = profiles
        .iter()
        .all(|need| recorded.required_profiles.contains(need))
        && asking(bundle, &rules).is_subset(&shown)
        && delay.millis() <= waited_ms;
    match is_shown {
        true => waited_ms,
        false => 0,
    }
}
