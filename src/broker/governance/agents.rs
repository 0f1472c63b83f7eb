//! Agents: suspending and resuming them.

use crate::broker::governance::freeze::LiftOrder;
use crate::broker::governance::pending_revocation::{PendingRevocation, RevocationTarget};
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::{Append, AppendError, Blob};
use crate::model::*;

impl Broker {
    /// Suspends an agent: one entry ends all its tasks, tokens and access requests. Returns the number of tasks and the index
    /// of the entry.
    pub async fn suspend_agent(
        &self,
        call: &CallContext,
        agent: AgentId,
        reason: Option<Prose>,
    ) -> Result<(usize, u64), Refusal> {
        let operator = self.authenticate_person(call)?;
        self.require_known_agent(call, &agent)?;
        loop {
            let rules = self.require_operator(call, &operator)?;
            let standing = self.state.standing(&agent);
            if standing.value.suspended {
                return Ok((0, standing.version.saturating_sub(1)));
            }
            let tasks = self.state.open_tasks_of(&agent).len();
            let blob = reason
                .as_ref()
                .map(|prose| Blob::new(prose.blob(self.draw())));
            let event = Event::AgentSuspended(AgentSuspended {
                agent: agent.clone(),
                by: operator.id.clone(),
                reason: blob.as_ref().map(Blob::hash),
                denials: None,
            });
            let append = Append {
                read_set: vec![(Stream::Policy, rules.version)],
                blobs: blob.into_iter().collect(),
                ..Append::one(event, vec![(Stream::Agent(agent.clone()), standing.version)])
            };
            match self.journal.append(append).await {
                Ok(entry) => {
                    self.clear_pending(&RevocationTarget::Agent(agent));
                    return Ok((tasks, entry.index));
                }
                Err(AppendError::Conflict(_)) => {}
                Err(error) => {
                    // Enforced here from now on; recorded when the journal takes entries again.
                    let order = PendingRevocation::new(operator.id, EndCause::Suspended);
                    return Err(self.defer_revocation(call.method, RevocationTarget::Agent(agent), order, &error));
                }
            }
        }
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
            let standing = self.state.standing(&agent);
            (standing.value.suspended, standing.version)
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
            .views
            .rules()
            .is_some_and(|rules| rules.bundle.agent(agent).is_some());
        if registered || self.state.standing(agent).version > 0 {
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
