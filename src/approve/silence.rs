//! How long an access request counts as having waited: silence answers what people were shown, and nothing else.

use std::collections::BTreeSet;

use super::needs;
use super::votes::{VoteTally, VoterContext};
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
/// before its delay is over, and where too few people are left who could approve it, and so could deny it.
pub fn waited_ms(
    request: &Recorded<'_, AccessRequest>,
    tally: &VoteTally,
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
    let has_people = || needs::can_be_met(request, &decision.required_profiles, tally, context);
    match is_heard && is_shown && is_unopposed(request, context) && has_people() {
        true => waited_ms,
        false => 0,
    }
}

/// The part of a wait that the rules of a question may count.
///
/// INVARIANT (silence is that of the people who were asked): all of it where those whom the card asks after the delay have approved, and
/// where the approvals of all who were asked would be enough; otherwise nothing. Older evidence than the one on record, and the counts of
/// an executor, make rules ask other people, whom no card named; a shorter lifetime makes them ask fewer than the card promised to ask.
pub fn counted_ms(
    bundle: &PolicyBundle,
    question: &AuthzRequest<'_>,
    recorded: &DecisionRecord,
    waited_ms: i64,
) -> i64 {
    let mut after_delay = recorded.required_after(waited_ms).iter();
    let is_approved = after_delay.all(|need| question.approvals.contains(&need.name));
    if waited_ms == 0 || !is_approved {
        return 0;
    }
    match is_enough(bundle, question, &recorded.required_profiles) {
        true => waited_ms,
        false => 0,
    }
}

/// Whether the rules allow what is asked at once, if people approve it under these profiles, too.
pub fn is_enough(
    bundle: &PolicyBundle,
    question: &AuthzRequest<'_>,
    profiles: &[ProfileRef],
) -> bool {
    let names = profiles.iter().map(|need| &need.name);
    let approvals: BTreeSet<ProfileName> =
        question.approvals.iter().chain(names).cloned().collect();
    let answered = bundle.authorize(&AuthzRequest {
        approvals: &approvals,
        waited_ms: 0,
        ..*question
    });
    matches!(answered, AuthzDecision::Allowed { .. })
}
