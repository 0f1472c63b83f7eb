//! Restrictions: the suspension of an agent and the freeze of a scope, as operators order and lift them.

use crate::broker::governance::pending_revocation::{PendingRevocation, RevocationTarget};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::journal::Blob;
use crate::model::*;
use crate::policy::PolicyBundle;
use crate::state::{Draft, Read};

/// What an operator imposes and lifts again.
#[derive(Debug, Clone)]
pub(in crate::broker) enum Restriction {
    /// The suspension of an agent.
    Suspension(AgentId),
    /// The freeze of a scope.
    Freeze(FreezeScope),
}

impl Restriction {
    fn target(&self) -> RevocationTarget {
        match self {
            Self::Suspension(agent) => RevocationTarget::Agent(agent.clone()),
            Self::Freeze(scope) => RevocationTarget::Freeze(scope.clone()),
        }
    }

    /// The stream that its orders and liftings advance, and nothing else does.
    fn stream(&self) -> Stream {
        match self {
            Self::Suspension(agent) => Stream::Agent(agent.clone()),
            Self::Freeze(scope) => Stream::Freeze(scope.clone()),
        }
    }

    fn is_in_force(&self, read: &Read) -> bool {
        match self {
            Self::Suspension(agent) => read.is_suspended(agent),
            Self::Freeze(scope) => read.is_frozen(scope),
        }
    }

    const fn cause(&self) -> EndCause {
        match self {
            Self::Suspension(_) => EndCause::Suspended,
            Self::Freeze(_) => EndCause::Frozen,
        }
    }

    /// The entry that imposes it, with the operator's reason.
    pub(in crate::broker) fn ordered(&self, by: PersonId, reason: Option<Blob>) -> Draft {
        let hash = reason.as_ref().map(Blob::hash);
        Draft::one(self.order(by, hash)).with_blobs(reason)
    }

    fn order(&self, by: PersonId, reason: Option<Digest>) -> Event {
        match self {
            Self::Suspension(agent) => Event::AgentSuspended(AgentSuspended {
                agent: agent.clone(),
                by,
                reason,
                denials: None,
            }),
            Self::Freeze(scope) => Event::Frozen(Frozen {
                scope: scope.clone(),
                by,
                reason,
            }),
        }
    }

    fn lifted(&self, by: PersonId) -> Event {
        match self {
            Self::Suspension(agent) => Event::AgentResumed(AgentResumed {
                agent: agent.clone(),
                by,
            }),
            Self::Freeze(scope) => Event::Unfrozen(Unfrozen {
                scope: scope.clone(),
                by,
            }),
        }
    }

    /// The message for lifting what no order has imposed.
    fn never_imposed(&self) -> String {
        match self {
            Self::Suspension(agent) => {
                format!("{agent} was never suspended; 'dipylon agent list' shows who is")
            }
            Self::Freeze(scope) => {
                format!("{scope} was never frozen; 'dipylon freeze list' shows what is")
            }
        }
    }

    /// The message while the order itself is not yet recorded.
    const fn unwritten(&self) -> &'static str {
        match self {
            Self::Suspension(_) => "the suspension is not yet in the journal: try again when it is",
            Self::Freeze(_) => "the freeze is not yet in the journal: try again when it is",
        }
    }
}

/// A restriction after its order.
#[derive(Debug, Clone, Copy)]
pub(in crate::broker) struct Imposed {
    /// False: it was in force before, and nothing was recorded.
    pub(in crate::broker) changed: bool,
    /// Index of the entry that imposed it.
    pub(in crate::broker) index: u64,
}

impl Broker {
    /// Imposes a restriction by one entry, which ends every task, token and access request that it covers; they are refused here
    /// from before the entry. The order rests on its author and on the restriction's own stream alone: no task that comes or goes
    /// meanwhile delays it. A crash before the entry leaves nothing.
    pub(in crate::broker) async fn impose(
        &self,
        call: &CallContext,
        operator: &PersonCaller,
        restriction: &Restriction,
        reason: Option<UntrustedText>,
    ) -> Result<Imposed, Refusal> {
        let blob = reason.map(|text| Blob::new(text.blob(self.random_bytes())));
        let hold = self.hold_revocation(restriction.target());
        let order = self
            .transaction(call.method)
            .ordered_by(operator)
            .holding(&hold);
        let done = order
            .run(|read| {
                let rules = self.require_operator(read, call, operator)?;
                self.require_known(read, call, &rules.bundle, restriction)?;
                if restriction.is_in_force(read) {
                    return Ok(Step::Answer(read.last_entry(&restriction.stream())));
                }
                let draft = restriction.ordered(operator.id.clone(), blob.clone());
                let revocation = PendingRevocation {
                    reason: blob.clone(),
                    ..PendingRevocation::new(operator, restriction.cause())
                };
                Ok(Step::Revoke(draft, revocation, None))
            })
            .await?;
        Ok(Imposed {
            changed: done.entry.is_some(),
            index: done
                .entry
                .map_or(done.value, |entry| Some(entry.index))
                .unwrap_or(0),
        })
    }

    /// Lifts a restriction; nothing that ended comes back. Returns the index of the lifting entry; of the last one, where it was lifted
    /// before. One that was never imposed is refused: another scope may be the one that is in force.
    pub(in crate::broker) async fn lift(
        &self,
        call: &CallContext,
        restriction: &Restriction,
    ) -> Result<u64, Refusal> {
        let operator = self.authenticate_person(call)?;
        let order = self.transaction(call.method).ordered_by(&operator);
        let done = order
            .run(|read| {
                let rules = self.require_operator(read, call, &operator)?;
                self.require_known(read, call, &rules.bundle, restriction)?;
                let is_in_force = restriction.is_in_force(read);
                // A pending order must be recorded first: otherwise its entry would follow the lifting.
                if self.is_revocation_pending(&restriction.target()) {
                    let unwritten = restriction.unwritten();
                    return Err(self.refuse(call.method, Reason::JournalUnavailable, unwritten));
                }
                let Some(last) = read.last_entry(&restriction.stream()) else {
                    let never = restriction.never_imposed();
                    return Err(self.refuse(call.method, Reason::NotFound, never));
                };
                if !is_in_force {
                    return Ok(Step::Answer(last));
                }
                let event = restriction.lifted(operator.id.clone());
                Ok(Step::Append(Draft::one(event), last))
            })
            .await?;
        Ok(done.entry.map_or(done.value, |entry| entry.index))
    }

    /// Refuses an agent or a scope that nothing knows: a restriction that stops nothing would hide the mistake.
    pub(in crate::broker) fn require_known(
        &self,
        read: &Read,
        call: &CallContext,
        bundle: &PolicyBundle,
        restriction: &Restriction,
    ) -> Result<(), Refusal> {
        let is_registered = match restriction {
            Restriction::Suspension(agent) | Restriction::Freeze(FreezeScope::Agent(agent)) => {
                bundle.agent(agent).is_some()
            }
            Restriction::Freeze(FreezeScope::All) => true,
            Restriction::Freeze(FreezeScope::Owner(owner)) => bundle.person(owner).is_some(),
            Restriction::Freeze(FreezeScope::Action(action)) => bundle.action(action).is_some(),
        };
        // What left the bundle may still be restricted while it has a restriction or an open task.
        let is_on_record = || read.last_entry(&restriction.stream()).is_some();
        let is_at_work = || match restriction {
            Restriction::Suspension(agent) | Restriction::Freeze(FreezeScope::Agent(agent)) => {
                !self.show().open_tasks_of(agent).is_empty()
            }
            Restriction::Freeze(FreezeScope::Owner(owner)) => {
                let mut open = self.show().open_tasks().into_iter();
                open.any(|task| task.opened.owner == *owner)
            }
            Restriction::Freeze(FreezeScope::All | FreezeScope::Action(_)) => false,
        };
        if is_registered || is_on_record() || is_at_work() {
            return Ok(());
        }
        let message = match restriction {
            Restriction::Suspension(agent) => format!("no agent {agent} is registered"),
            Restriction::Freeze(scope) => format!("no {scope} is known"),
        };
        Err(self.refuse(call.method, Reason::NotFound, message))
    }
}
