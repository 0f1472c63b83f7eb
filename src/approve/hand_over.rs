//! Recommendations: the executor's side of one that people approved, beside its votes.
//!
//! In: the access request, the executor's pass of gate 1, the bundle. Out: what the rules still allow the agent that recommends, or why the
//! hand-over fails. The executor is named in the statement that people signed; it must be apart from the agent that recommends, in every
//! respect that the broker can see.

use std::collections::BTreeSet;

use super::votes::VoterContext;
use crate::model::*;
use crate::policy::{AuthzDecision, AuthzRequest, OperateDecision};
pub use crate::state::HandOverFault;
use crate::state::{AccessRequest, Recorded, TaskRecord};
use crate::verify::Verified;

/// Checks that the verified agent may execute a recommendation, apart from its votes and from the rules.
pub fn check(
    request: &Recorded<'_, AccessRequest>,
    action: &Action,
    verified: &Verified<'_>,
    context: VoterContext<'_>,
) -> Result<(), HandOverFault> {
    let task = verified.task().ok_or(HandOverFault::NotExecutor)?;
    let fault = context.read.hand_over_fault(request, task, verified.now());
    fault.map_or(Ok(()), Err)?;
    match request.action.as_deref() == Some(action) {
        true => Ok(()),
        false => Err(HandOverFault::OtherAction),
    }
}

/// What the rules allow the agent that recommends, at this moment and under these approvals: a hand-over rests on it as on what they allow
/// the executor. Its evidence counts as on record.
pub fn recommender_answer(
    request: &Recorded<'_, AccessRequest>,
    action: &Action,
    (ttl_ms, approvals): (i64, &BTreeSet<ProfileName>),
    VoterContext { bundle, read, .. }: VoterContext<'_>,
    now: Timestamp,
) -> Result<AuthzDecision, HandOverFault> {
    let by = request
        .opened
        .by_agent()
        .ok_or(HandOverFault::NotExecutor)?;
    let agent = bundle.agent(&by.agent).ok_or(HandOverFault::NotExecutor)?;
    let task = read.task(&by.task).ok_or(HandOverFault::TaskEnded)?;
    let recorded = request.decision.as_ref().map_or(&by.decision, |d| d);
    let input = &recorded.input;
    let ages = input.evidence_ages();
    let operates = bundle.may_operate(&agent, input.evidence_kind, ages, &input.binding, now);
    if let OperateDecision::Denied { why, rules } = operates {
        return Ok(AuthzDecision::Denied { why, rules });
    }
    Ok(bundle.authorize(&AuthzRequest {
        agent: &agent,
        action,
        ttl_ms,
        approvals,
        evidence_kind: input.evidence_kind,
        evidence_ages: ages,
        binding: &input.binding,
        task_age_ms: now.since(task.opened.opened_at).max(0),
        task_depth: 0,
        now,
        executor: None,
    }))
}

/// The people who never approve a request for an action, also with the role approver: those who own the agent, or owned it, and those who
/// own the executor, or owned it. `executing`: the executor's task, once it asks.
pub fn interested(
    request: &AccessRequest,
    executing: Option<&TaskRecord>,
    VoterContext { bundle, read, .. }: VoterContext<'_>,
) -> BTreeSet<PersonId> {
    let Some(by) = request.opened.by_agent() else {
        return BTreeSet::from([request.opened.owner().clone()]);
    };
    let owner_now = |agent: &AgentId| bundle.agent(agent).map(|agent| agent.owner.clone());
    let mut people = BTreeSet::from([by.owner.clone()]);
    people.extend(owner_now(&by.agent));
    people.extend(read.task(&by.task).map(|task| task.opened.owner.clone()));
    if let Some(executor) = &by.executor {
        people.insert(executor.owner.clone());
        people.extend(owner_now(&executor.agent));
        people.extend(executing.map(|task| task.opened.owner.clone()));
    }
    people
}
