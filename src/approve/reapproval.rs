//! Grants on record: whether gate 2 would allow them again under the rules in force.
//!
//! In: a grant with its recorded input, the access request that it consumed, a bundle. Out: [`Reapproved`] for a retry, or whether the
//! grant goes on. Votes that were consumed stay counted; the rules are today's.

use std::collections::BTreeSet;

use super::ApproveError;
use crate::model::*;
use crate::policy::{AuthzDecision, AuthzRequest, OperateDecision, PolicyBundle, StepUpProfile};
use crate::state::{AccessRequest, Grant, Read, Recorded};
use crate::verify::Verified;

/// A recorded grant that both gates allow again: made only by [`reapprove`], from a committed entry. It cannot leave its round.
#[derive(Debug)]
pub struct Reapproved<'r> {
    verified: Verified<'r>,
    grant: Recorded<'r, Grant>,
}

impl<'r> Reapproved<'r> {
    /// The pass of gate 1.
    pub const fn verified(&self) -> &Verified<'r> {
        &self.verified
    }

    /// The grant.
    pub const fn grant(&self) -> &Recorded<'r, Grant> {
        &self.grant
    }
}

/// Evaluates the recorded input again under today's rules, with the votes that the grant consumed. `is_held`: this process enforces a
/// freeze of the action that is not in the journal yet.
pub fn reapprove<'r>(
    verified: Verified<'r>,
    grant: Recorded<'r, Grant>,
    is_held: bool,
) -> Result<Reapproved<'r>, ApproveError> {
    let same = verified
        .task()
        .is_some_and(|t| t.opened.task == grant.issued.task)
        && verified.agent().id == grant.issued.agent
        && verified.binding() == grant.issued.cnf
        && verified.action_digest() == grant.action.as_ref().map(|a| a.digest());
    if !same {
        return Err(ApproveError::OtherAction);
    }
    let read = verified.read();
    let scope = FreezeScope::Action(grant.issued.action.action.clone());
    if read.is_frozen(&scope) || is_held || !is_still_allowed(read, &grant) {
        return Err(ApproveError::NotAllowed);
    }
    // INVARIANT (a retry is no way around a bound on ages): the token is signed now, on the evidence of this call.
    let ages = verified.evidence_ages();
    let greatest = grant.issued.decision.input.evidence_ages().greatest(ages);
    let bundle = &verified.rules().bundle;
    let answer = ask_again(read, &grant, bundle, greatest);
    if !allows(&grant, answer.as_ref()) {
        let rules = answer.map_or_else(Vec::new, AuthzDecision::into_rules);
        return Err(ApproveError::StaleEvidence { ages, rules });
    }
    Ok(Reapproved { verified, grant })
}

/// Whether the rules in force still allow a grant.
pub fn is_still_allowed(read: &Read, grant: &Recorded<'_, Grant>) -> bool {
    read.rules()
        .is_some_and(|rules| is_allowed_by(read, grant, &rules.bundle))
}

/// Whether a bundle allows a grant, evaluated with its recorded input, and with the values that facts which end tokens have had since. A
/// shorter lifetime than it has is a denial.
pub fn is_allowed_by(read: &Read, grant: &Recorded<'_, Grant>, bundle: &PolicyBundle) -> bool {
    let ages = grant.issued.decision.input.evidence_ages();
    allows(grant, ask_again(read, grant, bundle, ages).as_ref())
}

/// Whether a fact that ends tokens has had another value since a grant was issued under the bundle in force.
pub fn has_changed_fact(read: &Read, grant: &Grant, bundle: &PolicyBundle) -> bool {
    let recorded = &grant.issued.decision.input.facts;
    !recorded.is_empty() && {
        let changed = read.changed_facts(bundle, recorded, grant.index);
        changed.keys().any(|name| recorded.contains_key(name))
    }
}

/// Whether an answer allows a grant for as long as it was given.
fn allows(grant: &Grant, answer: Option<&AuthzDecision>) -> bool {
    let granted_ms = grant.issued.decision.input.ttl_ms;
    matches!(answer, Some(AuthzDecision::Allowed { ttl_ms, .. }) if *ttl_ms >= granted_ms)
}

/// The answer of a bundle about a grant with its recorded input, but for the ages of the evidence; `None` where its agent may not operate.
fn ask_again(
    read: &Read,
    grant: &Recorded<'_, Grant>,
    bundle: &PolicyBundle,
    ages: EvidenceAges,
) -> Option<AuthzDecision> {
    let input = &grant.issued.decision.input;
    let (agent, action) = (agent_of(&grant.issued, bundle)?, grant.action.as_ref()?);
    if agent.autonomy == Autonomy::Advisory {
        return None;
    }
    // INVARIANT (a consumed vote stays counted): the revocation of a voter's key, or the voter's leaving, ends no grant by itself.
    // A profile counts while its definition is the one that people voted under, and the action's risk accepts how they voted.
    let request = grant
        .issued
        .consumed
        .and_then(|id| read.access_request(&id));
    let recommended_by = request
        .as_ref()
        .filter(|request| request.opened.executor().is_some())
        .and_then(|request| request.opened.agent());
    let recommender = match recommended_by {
        None => None,
        Some(id) => {
            let recommender = bundle.agent(id)?;
            bundle.may_execute(&recommender, &agent).then_some(())?;
            Some(recommender)
        }
    };
    let approvals: BTreeSet<ProfileName> = match (&grant.issued.approval, &request) {
        (Some(approval), Some(request)) => approval
            .profiles
            .iter()
            .filter(|name| {
                bundle
                    .profile_about(name, &request.opened.action.target)
                    .is_some_and(|profile| is_still_satisfied(&profile, request, bundle))
            })
            .cloned()
            .collect(),
        (Some(_) | None, _) => BTreeSet::new(),
    };
    let operates = bundle.may_operate(&agent, input.evidence_kind, ages, &input.binding, input.now);
    match operates {
        OperateDecision::Allowed { .. } => {}
        OperateDecision::Denied { .. } => return None,
    }
    let mut answer = None;
    for facts in values_since(read, grant, bundle) {
        // INVARIANT (a hand-over rests on both agents): what the rules deny the agent that recommends ends the executor's token.
        if let (Some(recommender), Some(request)) = (&recommender, &request) {
            is_allowed_to_recommender(
                recommender,
                request,
                (action, input),
                &approvals,
                &facts,
                bundle,
            )
            .then_some(())?;
        }
        let again = bundle.authorize(&AuthzRequest {
            evidence_ages: ages,
            facts: &facts,
            ..AuthzRequest::recorded(input, &agent, action, &approvals)
        });
        if !allows(grant, Some(&again)) {
            return Some(again);
        }
        answer = Some(again);
    }
    answer
}

/// The values of facts that a grant is asked again under: those on record, and each combination with the values that facts which end
/// tokens have had since.
fn values_since(read: &Read, grant: &Grant, bundle: &PolicyBundle) -> Vec<FactValues> {
    let recorded = &grant.issued.decision.input.facts;
    let mut all = vec![recorded.clone()];
    let mut changed = read.changed_facts(bundle, recorded, grant.index);
    if bundle.version() == grant.issued.decision.policy {
        // Others are read by no rule in scope.
        changed.retain(|name, _| recorded.contains_key(name));
    }
    for (name, value) in changed {
        let changed = all.clone().into_iter().map(|mut facts| {
            facts.insert(name.clone(), value);
            facts
        });
        all.extend(changed.collect::<Vec<_>>());
    }
    all
}

/// Whether the rules allow an executed action to the agent that recommended it, too, for as long as the token was issued.
fn is_allowed_to_recommender(
    recommender: &RegisteredAgent,
    request: &AccessRequest,
    (action, executed): (&Action, &PolicyInput),
    approvals: &BTreeSet<ProfileName>,
    facts: &FactValues,
    bundle: &PolicyBundle,
) -> bool {
    let Some(recorded) = &request.decision else {
        return false;
    };
    let input = &recorded.input;
    let ages = input.evidence_ages();
    let kind = input.evidence_kind;
    // As at the hand-over, when the executor's token was issued.
    let now = executed.now;
    let operates = bundle.may_operate(recommender, kind, ages, &input.binding, now);
    let answer = bundle.authorize(&AuthzRequest {
        ttl_ms: executed.ttl_ms,
        task_age_ms: input.task_age_ms.saturating_add(now.since(input.now)),
        waited_ms: executed.waited_ms,
        now,
        facts,
        counts: &executed.recommender_counts,
        executor: None,
        ..AuthzRequest::recorded(input, recommender, action, approvals)
    });
    let is_allowed =
        matches!(answer, AuthzDecision::Allowed { ttl_ms, .. } if ttl_ms >= executed.ttl_ms);
    matches!(operates, OperateDecision::Allowed { .. }) && is_allowed
}

/// Whether enough people approved under this very definition of a profile, each as the action's risk accepts it today.
fn is_still_satisfied(
    profile: &StepUpProfile,
    request: &AccessRequest,
    bundle: &PolicyBundle,
) -> bool {
    let (reference, method) = (
        profile.reference(),
        bundle.vote_method(profile, &request.opened.action.action),
    );
    let voters: BTreeSet<&PersonId> = request
        .votes
        .iter()
        .filter(|vote| vote.cast.verdict == Verdict::Approve && vote.cast.profile == reference)
        .filter(|vote| method.accepts(vote.cast.method()))
        .map(|vote| &vote.cast.voter)
        .collect();
    voters.len() >= usize::try_from(profile.quorum).unwrap_or(usize::MAX)
}

/// The agent of a grant as registered now: the same id for the same workload and key.
fn agent_of(
    issued: &TokenIssued,
    bundle: &PolicyBundle,
) -> Option<std::sync::Arc<RegisteredAgent>> {
    bundle
        .agent(&issued.agent)
        .filter(|a| a.spiffe_id == issued.subject)
        .filter(|a| a.jkt.is_none_or(|pinned| pinned == issued.cnf.jkt()))
}
