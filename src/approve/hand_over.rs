//! Recommendations: the executor's side of one that people approved, beside its votes.
//!
//! In: the access request, the executor's pass of gate 1, the bundle. Out: what the rules still allow the agent that recommends, or why the
//! hand-over fails. The executor is named in the statement that people signed; it must be apart from the agent that recommends, in every
//! respect that the broker can see.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::needs::{self, Assessment};
use super::silence;
use super::votes::{self, VoterContext};
use crate::model::*;
use crate::policy::{AuthzDecision, AuthzRequest, OperateDecision};
pub use crate::state::HandOverFault;
use crate::state::{AccessRequest, Recorded, TaskRecord};
use crate::verify::Verified;

/// Checks that the verified agent may execute a recommendation, apart from the rules and from whether enough people approved. The time at
/// which the task of the recommendation ends, and the recommendation with it. `context`: with the executor's task.
pub fn check(
    request: &Recorded<'_, AccessRequest>,
    action: &Action,
    verified: &Verified<'_>,
    context: VoterContext<'_>,
) -> Result<Timestamp, HandOverFault> {
    let task = verified.task().ok_or(HandOverFault::NotExecutor)?;
    let now = verified.now();
    let fault = context.read.hand_over_fault(request, task, now);
    fault.map_or(Ok(()), Err)?;
    if request.action.as_deref() != Some(action) {
        return Err(HandOverFault::OtherAction);
    }
    let of_anyone = VoterContext {
        executing: None,
        ..context
    };
    let counted = |context| votes::tally(request, context, now).satisfied;
    if counted(of_anyone) != counted(context) {
        return Err(HandOverFault::ApprovedByOpener);
    }
    Ok(recommended_in(request, context)?.expires_at())
}

/// What the rules ask of people now for the agent that recommends, compared with what is on record.
pub fn assess(
    request: &Recorded<'_, AccessRequest>,
    context: VoterContext<'_>,
    now: Timestamp,
) -> Result<Assessment, HandOverFault> {
    let agent = recommender(request, context)?;
    let opened_at = recommended_in(request, context)?.opened.opened_at;
    let bundle = context.bundle;
    let facts = needs::facts_of(request, context, now).values;
    let counts = needs::counts_of(request, &agent, context, now);
    Ok(needs::assess_now(
        request,
        &agent,
        bundle,
        opened_at,
        None,
        needs::Moment {
            facts: &facts,
            counts: &counts,
            now,
        },
    ))
}

fn recommender(
    request: &AccessRequest,
    VoterContext { bundle, .. }: VoterContext<'_>,
) -> Result<Arc<RegisteredAgent>, HandOverFault> {
    let agent = request.opened.agent().and_then(|by| bundle.agent(by));
    agent.ok_or(HandOverFault::NotExecutor)
}

/// The task in which a recommendation was made.
fn recommended_in<'r>(
    request: &AccessRequest,
    VoterContext { read, .. }: VoterContext<'r>,
) -> Result<Recorded<'r, TaskRecord>, HandOverFault> {
    let task = request.opened.task().and_then(|task| read.task(&task));
    task.ok_or(HandOverFault::TaskEnded)
}

/// What the executor's token would be, asked of the rules about the agent that recommends.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Milliseconds that it would live.
    pub ttl_ms: i64,
    /// The profiles that people approved it under.
    pub approvals: &'a BTreeSet<ProfileName>,
    /// Milliseconds for which the recommendation counts as having waited.
    pub waited_ms: i64,
}

/// What the rules allow the agent that recommends, at this moment and under these approvals, the counts of it that they read, and the
/// milliseconds of the wait that they may count: a
/// hand-over rests on it as on what they allow the executor. Its evidence counts as on record.
pub fn recommender_answer(
    request: &Recorded<'_, AccessRequest>,
    action: &Action,
    asked: Asked<'_>,
    context: VoterContext<'_>,
    now: Timestamp,
) -> Result<(AuthzDecision, CountValues, i64), HandOverFault> {
    let by = request
        .opened
        .by_agent()
        .ok_or(HandOverFault::NotExecutor)?;
    let bundle = context.bundle;
    let agent = recommender(request, context)?;
    let task = recommended_in(request, context)?;
    let recorded = request.decision.as_ref().map_or(&by.decision, |d| d);
    let input = &recorded.input;
    let facts = needs::facts_of(request, context, now).values;
    let counts = needs::counts_of(request, &agent, context, now);
    let ages = input.evidence_ages();
    let operates = bundle.may_operate(&agent, input.evidence_kind, ages, &input.binding, now);
    if let OperateDecision::Denied { why, rules } = operates {
        return Ok((AuthzDecision::Denied { why, rules }, counts, 0));
    }
    let mut question = AuthzRequest {
        agent: &agent,
        action,
        ttl_ms: asked.ttl_ms,
        approvals: asked.approvals,
        evidence_kind: input.evidence_kind,
        evidence_ages: ages,
        binding: &input.binding,
        task_age_ms: now.since(task.opened.opened_at).max(0),
        task_depth: 0,
        waited_ms: 0,
        now,
        executor: None,
        facts: &facts,
        counts: &counts,
    };
    question.waited_ms = silence::counted_ms(bundle, &question, recorded, asked.waited_ms);
    let (answer, waited_ms) = (bundle.authorize(&question), question.waited_ms);
    Ok((answer, counts, waited_ms))
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
