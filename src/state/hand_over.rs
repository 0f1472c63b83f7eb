//! Recommendations: whether a task may execute what an advisory agent recommended in another. One function for the gate, the journal's
//! writer, every start and the audit.

use std::collections::BTreeSet;

use super::State;
use super::records::{AccessRequest, TaskRecord};
use crate::model::*;

/// Why an agent does not execute a recommendation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandOverFault {
    /// It is not for this agent, no recommendation, or the bundle no longer lists this executor.
    #[error("it is no recommendation to this agent")]
    NotExecutor,
    /// It asks for another action.
    #[error("the recommendation is for another action")]
    OtherAction,
    /// The task of the agent that recommended has ended, or the keys of its evidence are no longer trusted.
    #[error("the task of the agent that recommended it has ended")]
    TaskEnded,
    /// Both hold one key.
    #[error("the task's key is one of the agent that recommended it")]
    SameKey,
    /// Both are one workload.
    #[error("the workload is that of the agent that recommended it")]
    SameWorkload,
    /// Both belong to one person.
    #[error("its owner owns the agent that recommended it, too, or did when its task was opened")]
    SameOwner,
    /// An approval is by a person who owned the executor when its task was opened.
    #[error(
        "a person who approved it owned this agent when the task was opened: open a new task, and execute it there"
    )]
    ApprovedByOpener,
}

impl State {
    /// Whether a task may execute a recommendation at a moment, apart from its votes and from the rules.
    ///
    /// INVARIANT (no agent executes its own recommendation): executor and recommender differ in id, workload, key and, unless the bundle
    /// says otherwise, owner: as registered now and when their tasks were opened.
    pub(super) fn hand_over_fault(
        &self,
        request: &AccessRequest,
        executing: &TaskOpened,
        at: Timestamp,
    ) -> Option<HandOverFault> {
        let (Some(by), Some(named), Some(rules)) = (
            request.opened.by_agent(),
            request.opened.executor(),
            self.rules(),
        ) else {
            return Some(HandOverFault::NotExecutor);
        };
        let bundle = &rules.bundle;
        let (Some(recommender), Some(executor)) =
            (bundle.agent(&by.agent), bundle.agent(&executing.agent))
        else {
            return Some(HandOverFault::NotExecutor);
        };
        if named.agent != executor.id || !bundle.may_execute(&recommender, &executor) {
            return Some(HandOverFault::NotExecutor);
        }
        let running = |task: &std::sync::Arc<TaskRecord>| task.is_running(at);
        let recommended = self.tasks.get(&by.task).filter(running);
        let (Some(recommended), true) = (recommended, self.is_trusted(&by.evidence)) else {
            return Some(HandOverFault::TaskEnded);
        };
        let recommended = &recommended.opened;
        if !self.has_own_key(executing, recommended) {
            return Some(HandOverFault::SameKey);
        }
        if executing.evidence.subject == recommended.evidence.subject {
            return Some(HandOverFault::SameWorkload);
        }
        let owners = BTreeSet::from([&recommender.owner, &by.owner, &recommended.owner]);
        let mut owned = [&executor.owner, &executing.owner, &named.owner].into_iter();
        let is_shared = owned.any(|owner| owners.contains(owner));
        (is_shared && !bundle.allows_same_owner_executors()).then_some(HandOverFault::SameOwner)
    }

    /// Whether the key of an executor's task is none that the agent has used which recommends in another.
    fn has_own_key(&self, executor: &TaskOpened, recommender: &TaskOpened) -> bool {
        executor.key_identity != recommender.key_identity
            && !self
                .key_registry
                .has_opened(executor.key_identity, &recommender.agent)
    }

    /// The pending recommendations to the agents of a scope.
    pub(super) fn recommended_to(
        &self,
        is_in_scope: impl Fn(&Executor) -> bool,
    ) -> Vec<AccessRequestId> {
        let to = |id: &AccessRequestId| {
            let request = self.requests.get(id);
            request.is_some_and(|r| r.opened.executor().is_some_and(&is_in_scope))
        };
        self.unclosed_requests().into_iter().filter(to).collect()
    }
}
