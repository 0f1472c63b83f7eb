//! Agents: suspending and resuming them.

use crate::broker::governance::restriction::Restriction;
use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;

impl Broker {
    /// Suspends an agent: one entry ends all its tasks, tokens and access requests. Returns the number of open tasks that it found,
    /// and the index of the entry.
    pub async fn suspend_agent(
        &self,
        call: &CallContext,
        agent: AgentId,
        reason: Option<UntrustedText>,
    ) -> Result<(usize, u64), Refusal> {
        let operator = self.authenticate_person(call)?;
        let tasks = self.show().open_tasks_of(&agent).len();
        let suspension = Restriction::Suspension(agent);
        let imposed = self.impose(call, &operator, &suspension, reason).await?;
        Ok((if imposed.changed { tasks } else { 0 }, imposed.index))
    }

    /// Resumes an agent; nothing that ended comes back. Returns the index of the entry.
    pub async fn resume_agent(&self, call: &CallContext, agent: AgentId) -> Result<u64, Refusal> {
        self.lift(call, &Restriction::Suspension(agent)).await
    }

    /// Refuses to show an agent that is neither registered nor at work, and was never suspended.
    pub(in crate::broker) fn require_known_agent(
        &self,
        call: &CallContext,
        agent: &AgentId,
    ) -> Result<(), Refusal> {
        let suspension = Restriction::Suspension(agent.clone());
        self.preview(|read| match read.rules() {
            Some(rules) => self.require_known(read, call, &rules.bundle, &suspension),
            None => Err(self.refuse(
                call.method,
                Reason::NotFound,
                "no policy bundle is in force",
            )),
        })
    }
}
