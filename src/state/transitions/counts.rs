//! Counts in entries: whether those that a decision recorded are the ones of the journal before it.

use std::sync::Arc;

use super::{Legal, require};
use crate::model::*;
use crate::state::{AccessRequest, State};

/// The counts of a decision are those of the journal before it, at the moment when it was decided: without the request itself, where it
/// waits, and without what was counted since by decisions whose rules do not read them. Which counts the rules read is not asked again: it
/// is the gate that finds them.
pub(super) fn counts_of_then(
    state: &State,
    of: (&AgentId, &ActionName),
    own: Option<&AccessRequest>,
    (decision, at): (&DecisionRecord, Timestamp),
) -> Legal {
    are_counts(state, of, own, (&decision.input.counts, decision), at)
}

/// The same of a token, and of the agent that recommended it at the hand-over.
pub(super) fn counts_of_token(state: &State, f: &TokenIssued, at: Timestamp) -> Legal {
    let consumed = f.consumed.and_then(|id| state.requests.get(&id));
    let is_own = |request: &Arc<AccessRequest>| request.opened.task() == Some(f.task);
    let own = consumed.as_ref().filter(|request| is_own(request));
    let (action, decision) = (&f.action.action, &f.decision);
    let own = own.map(|own| &**own);
    counts_of_then(state, (&f.agent, action), own, (decision, at))?;
    let of_recommender = &decision.input.recommender_counts;
    if of_recommender.is_empty() {
        return Ok(());
    }
    let recommended = consumed.filter(|request| !is_own(request));
    let recommended = recommended.ok_or_else(|| format!("{} executes no recommendation", f.jti))?;
    let agent = recommended.opened.agent();
    let agent = agent.ok_or_else(|| format!("no agent recommended {}", f.jti))?;
    let read = (of_recommender, decision);
    are_counts(state, (agent, action), Some(&recommended), read, at)
}

/// Of what is no token the counts of another agent are on no record.
pub(super) fn is_no_hand_over(decision: &DecisionRecord) -> Legal {
    require(decision.input.recommender_counts.is_empty(), || {
        format!("{} hands nothing over", decision.id)
    })
}

fn are_counts(
    state: &State,
    (agent, action): (&AgentId, &ActionName),
    own: Option<&AccessRequest>,
    (counts, decision): (&CountValues, &DecisionRecord),
    at: Timestamp,
) -> Legal {
    let now = decision.input.now;
    require(counts.is_empty() || now <= at, || {
        format!("{} was decided after its entry", decision.id)
    })?;
    for (name, value) in counts {
        let declared = state.count_key(name, agent, action);
        let (declared, key) = declared.ok_or_else(|| format!("no count {name} is declared"))?;
        let bounds = state.count_bounds(&declared, &key, own, now);
        require(bounds.contains(value), || {
            let (least, most) = (bounds.start(), bounds.end());
            format!(
                "{} says that {key} was {value}; it was {least} to {most}",
                decision.id
            )
        })?;
    }
    Ok(())
}
