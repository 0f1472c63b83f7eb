//! Freezes: stop everything, one agent, one owner's agents or one action, and lift the freeze again.

use crate::broker::governance::restriction::Restriction;
use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::state::{FreezeMarker, TaskRecord};

/// Summary of a freeze: the counts of what it ended, as of just before its entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FreezeSummary {
    /// False: it was frozen before, and nothing was recorded.
    pub changed: bool,
    /// Index of the freeze's entry.
    pub index: u64,
    /// Running tasks that ended.
    pub tasks: usize,
    /// Live tokens that ended.
    pub tokens: usize,
    /// Waiting access requests that ended.
    pub access_requests: usize,
}

impl Broker {
    /// Freezes everything, an agent, an owner's agents or an action: one entry ends all their tasks, tokens and requests, and
    /// no token decided before it is issued after it. A crash before the entry leaves no freeze.
    pub async fn freeze(
        &self,
        call: &CallContext,
        scope: FreezeScope,
        reason: Option<UntrustedText>,
    ) -> Result<FreezeSummary, Refusal> {
        let operator = self.authenticate_person(call)?;
        let covered = self.covered_by(&scope);
        let freeze = Restriction::Freeze(scope);
        let imposed = self.impose(call, &operator, &freeze, reason).await?;
        let index = imposed.index;
        Ok(match imposed.changed {
            true => FreezeSummary { index, ..covered },
            false => FreezeSummary {
                index,
                ..FreezeSummary::default()
            },
        })
    }

    /// Lifts a freeze; nothing that ended comes back. Returns the index of the lifting entry.
    pub async fn unfreeze(&self, call: &CallContext, scope: FreezeScope) -> Result<u64, Refusal> {
        self.lift(call, &Restriction::Freeze(scope)).await
    }

    /// The freezes in force.
    pub fn freezes(&self, call: &CallContext) -> Result<Vec<(FreezeScope, FreezeMarker)>, Refusal> {
        self.authenticate_reader(call, self.now())?;
        Ok(self.show().freezes())
    }

    /// Counts what a freeze would end now, for its answer.
    fn covered_by(&self, scope: &FreezeScope) -> FreezeSummary {
        let (now, show) = (self.now(), self.show());
        let rules = show.rules();
        let is_owned = |task: &TaskRecord, owner: &PersonId| {
            let registered = rules
                .as_ref()
                .and_then(|r| r.bundle.agent(&task.opened.agent));
            task.opened.owner == *owner || registered.is_some_and(|agent| agent.owner == *owner)
        };
        let covers_task = |task: &TaskRecord| match scope {
            FreezeScope::All => true,
            FreezeScope::Agent(agent) => task.opened.agent == *agent,
            FreezeScope::Owner(owner) => is_owned(task, owner),
            FreezeScope::Action(_) => false,
        };
        let mut summary = FreezeSummary {
            changed: true,
            ..FreezeSummary::default()
        };
        let open = show.open_tasks().into_iter();
        for task in open.filter(|task| task.is_running(now)) {
            let is_covered = covers_task(&task);
            let covers = |action: &ActionName| {
                is_covered || matches!(scope, FreezeScope::Action(frozen) if frozen == action)
            };
            let id = task.opened.task;
            summary.tasks += usize::from(is_covered);
            summary.tokens += show
                .grants_of_task(&id)
                .iter()
                .filter(|grant| covers(&grant.issued.action.action))
                .filter(|grant| show.end_cause(grant, now).is_none() && !grant.is_spent())
                .count();
            summary.access_requests += show
                .requests_of_task(&id)
                .iter()
                .filter(|r| covers(&r.opened.action.action) && r.is_pending(now))
                .count();
        }
        summary
    }
}
