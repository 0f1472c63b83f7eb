//! How long an access request counts as having waited: silence answers what people were shown, and nothing else.

use std::collections::BTreeSet;

use super::votes::VoterContext;
use crate::model::*;
use crate::policy::{AuthzDecision, AuthzRequest, PolicyBundle};
use crate::state::{AccessRequest, Recorded};

/// Whether nobody said no to anything that the agent requested since an access request was opened. After a no silence says nothing about the
/// agent's other requests: people have to approve them.
pub fn is_unopposed(request: &AccessRequest, VoterContext { read, .. }: VoterContext<'_>) -> bool {
    let denials = request.opened.agent().map(|agent| read.denials(agent));
    let mut denials = denials.into_iter().flatten();
    !denials.any(|at| at >= request.opened_at)
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
/// INVARIANT (silence is that of the people who were asked): all of it where their yes would do, and nothing else. Older evidence than the
/// one on record, and the counts of an executor, make rules ask other people, whom no card named.
pub fn counted_ms(
    bundle: &PolicyBundle,
    question: &AuthzRequest<'_>,
    recorded: &DecisionRecord,
    waited_ms: i64,
) -> i64 {
    if waited_ms == 0 {
        return 0;
    }
    let asked = recorded.required_profiles.iter().map(|need| &need.name);
    let approvals: BTreeSet<ProfileName> =
        question.approvals.iter().chain(asked).cloned().collect();
    let answered = bundle.authorize(&AuthzRequest {
        approvals: &approvals,
        waited_ms: 0,
        ..*question
    });
    match answered {
        AuthzDecision::Allowed { .. } => waited_ms,
        AuthzDecision::Needs { .. } | AuthzDecision::Denied { .. } => 0,
    }
}
