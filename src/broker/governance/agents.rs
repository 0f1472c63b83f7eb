//! Agents: suspending and resuming them.

use crate::broker::governance::freeze::LiftOrder;
use crate::broker::governance::pending_revocation::{PendingRevocation, RevocationTarget};
use crate::broker::transaction::UNTIL_DONE;
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::{Append, Blob};
use crate::model::*;

impl Broker {
    /// Suspends an agent: one entry ends all its tasks, tokens and access requests. Returns the number of tasks and the index
    /// of the entry.
    pub async fn suspend_agent(
        &self,
        call: &CallContext,
        agent: AgentId,
        reason: Option<UntrustedText>,
    ) -> Result<(usize, u64), Refusal> {
        let operator = self.authenticate_person(call)?;
        self.require_known_agent(call, &agent)?;
        let hold = self.hold_revocation(call.method, RevocationTarget::Agent(agent.clone()));
        let (operator, agent, reason, hold) = (&operator, &agent, &reason, &hold);
        self.transaction(
            call.method,
            UNTIL_DONE,
            "the agent keeps changing while it is suspended",
            |attempt| async move {
                let rules = self.require_operator(call, operator)?;
                let status = self.state.agent_status(agent);
                if status.value.suspended {
                    return Ok((0, status.version.saturating_sub(1)));
                }
                let tasks = self.state.open_tasks_of(agent).len();
                let blob = reason
                    .as_ref()
                    .map(|text| Blob::new(text.blob(self.random_bytes())));
                let event = Event::AgentSuspended(AgentSuspended {
                    agent: agent.clone(),
                    by: operator.id.clone(),
                    reason: blob.as_ref().map(Blob::hash),
                    denials: None,
                });
                let append = Append {
                    read_set: vec![(Stream::Policy, rules.version)],
                    blobs: blob.into_iter().collect(),
                    ..Append::one(event, vec![(Stream::Agent(agent.clone()), status.version)])
                };
                let revocation = PendingRevocation::new(operator.id.clone(), EndCause::Suspended);
                let entry = hold.append(attempt, append, revocation).await?;
                Ok((tasks, entry.index))
            },
        )
        .await
    }

    /// Resumes an agent; nothing that ended comes back. Returns the index of the entry.
    pub async fn resume_agent(&self, call: &CallContext, agent: AgentId) -> Result<u64, Refusal> {
        let operator = self.authenticate_person(call)?;
        self.require_known_agent(call, &agent)?;
        let lift = LiftOrder {
            target: RevocationTarget::Agent(agent.clone()),
            unwritten: "the suspension is not yet in the journal: try again when it is",
            stream: Stream::Agent(agent.clone()),
            event: Event::AgentResumed(AgentResumed {
                agent: agent.clone(),
                by: operator.id.clone(),
            }),
        };
        self.lift_order(call, &operator, lift, || {
            let status = self.state.agent_status(&agent);
            (status.value.suspended, status.version)
        })
        .await
    }

    pub(in crate::broker) fn require_known_agent(
        &self,
        call: &CallContext,
        agent: &AgentId,
    ) -> Result<(), Refusal> {
        // An agent that left the bundle may still be suspended or resumed: its status outlives bundles.
        let registered = self
            .projections
            .rules()
            .is_some_and(|rules| rules.bundle.agent(agent).is_some());
        if registered || self.state.agent_status(agent).version > 0 {
            Ok(())
        } else {
            Err(self.refuse(
                call.method,
                Reason::NotFound,
                format!("no agent {agent} is registered"),
            ))
        }
    }
}
