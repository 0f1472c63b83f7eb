//! Pending revocations: ends that are ordered and not yet recorded, enforced in memory from before their append, and written
//! by maintenance when the journal could not take it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::broker::transaction::{Transaction, TransactionError};
use crate::broker::{Broker, Refusal};
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::state::{Grant, TaskRecord};

/// The message for a revocation that could not be recorded.
const PENDING_MESSAGE: &str = "the journal is unavailable; the revocation is enforced on this broker now and will be recorded when the journal recovers: \
     repeat the call until it succeeds, because a restart before then loses it";

/// The target of a revocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::broker) enum RevocationTarget {
    Task(TaskId),
    Agent(AgentId),
    Token(TokenId),
    Freeze(FreezeScope),
}

/// What a revocation records.
#[derive(Debug, Clone)]
pub(in crate::broker) struct PendingRevocation {
    pub(in crate::broker) by: Option<PersonId>,
    pub(in crate::broker) cause: EndCause,
    pub(in crate::broker) outcome: Option<TaskOutcome>,
}

impl PendingRevocation {
    pub(in crate::broker) fn new(operator: PersonId, cause: EndCause) -> Self {
        Self {
            by: Some(operator),
            cause,
            outcome: None,
        }
    }
}

/// The revocations that are enforced here and not yet recorded.
#[derive(Debug, Default)]
pub(in crate::broker) struct PendingRevocations {
    by_target: Mutex<HashMap<RevocationTarget, HeldRevocation>>,
    /// Changes when one is added.
    added: watch::Sender<()>,
}

/// A revocation that is enforced here, and the calls that record it now.
#[derive(Debug)]
struct HeldRevocation {
    revocation: PendingRevocation,
    calls: Vec<HoldingCall>,
    /// Maintenance records it once no call does: a call could not, or was dropped.
    is_deferred: bool,
}

#[derive(Debug)]
struct HoldingCall {
    id: Arc<()>,
    /// Whether its append is under way, so that its outcome is open.
    is_appending: bool,
}

impl PendingRevocations {
    fn lock(&self) -> MutexGuard<'_, HashMap<RevocationTarget, HeldRevocation>> {
        self.by_target
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when a revocation is enforced.
    pub(in crate::broker) fn subscribe(&self) -> watch::Receiver<()> {
        self.added.subscribe()
    }
}

/// One call's recording of a revocation, from [`Broker::hold_revocation`]. What it orders is enforced here from before its
/// first append, and until an append is applied or the call is refused with nothing appended. A call that is dropped during
/// its append leaves the revocation to maintenance.
pub(in crate::broker) struct RevocationHold<'a> {
    broker: &'a Broker,
    method: &'static str,
    target: RevocationTarget,
    id: Arc<()>,
}

impl RevocationHold<'_> {
    /// Enforces the revocation here, then appends it. When the journal does not take it, it stays enforced and is recorded
    /// later, and the caller is told so.
    pub(in crate::broker) async fn append(
        &self,
        attempt: Transaction<'_>,
        append: Append,
        revocation: PendingRevocation,
    ) -> Result<Arc<Entry>, TransactionError> {
        self.begin(revocation);
        let refuse = |error: &AppendError| {
            let refusal = self.broker.refuse_append(self.method, error);
            match error {
                // Enforced here as well, but whether it is in the journal only the disk or the next start can tell.
                AppendError::OutcomeUnknown => refusal,
                _ => Refusal {
                    message: PENDING_MESSAGE.to_owned(),
                    ..refusal
                },
            }
        };
        let outcome = attempt.append_or(append, refuse).await;
        match &outcome {
            Ok(_) => self.broker.clear_pending(&self.target),
            Err(TransactionError::Retry) => {
                let mut pending = self.broker.pending_revocations.lock();
                let held = pending.get_mut(&self.target);
                let mut calls = held.into_iter().flat_map(|held| &mut held.calls);
                if let Some(call) = calls.find(|call| Arc::ptr_eq(&call.id, &self.id)) {
                    call.is_appending = false;
                }
            }
            // As for a call that is dropped during its append.
            Err(TransactionError::Refused(_)) => {}
        }
        outcome
    }

    fn begin(&self, revocation: PendingRevocation) {
        let mut pending = self.broker.pending_revocations.lock();
        let held = pending
            .entry(self.target.clone())
            .or_insert_with(|| HeldRevocation {
                revocation,
                calls: Vec::new(),
                is_deferred: false,
            });
        held.calls.retain(|call| !Arc::ptr_eq(&call.id, &self.id));
        held.calls.push(HoldingCall {
            id: self.id.clone(),
            is_appending: true,
        });
        drop(pending);
        self.broker.pending_revocations.added.send_replace(());
    }
}

impl Drop for RevocationHold<'_> {
    fn drop(&mut self) {
        let mut pending = self.broker.pending_revocations.lock();
        let Some(held) = pending.get_mut(&self.target) else {
            return;
        };
        let is_own = |call: &HoldingCall| Arc::ptr_eq(&call.id, &self.id);
        let Some(own) = held.calls.iter().position(is_own) else {
            return;
        };
        held.is_deferred |= held.calls.swap_remove(own).is_appending;
        if !held.is_deferred && held.calls.is_empty() {
            pending.remove(&self.target);
        }
    }
}

impl Broker {
    /// Prepares the recording of a revocation; nothing is enforced before its first append.
    pub(in crate::broker) fn hold_revocation(
        &self,
        method: &'static str,
        target: RevocationTarget,
    ) -> RevocationHold<'_> {
        RevocationHold {
            broker: self,
            method,
            target,
            id: Arc::default(),
        }
    }

    fn clear_pending(&self, target: &RevocationTarget) {
        self.pending_revocations.lock().remove(target);
    }

    pub(in crate::broker) fn is_revocation_pending(&self, target: &RevocationTarget) -> bool {
        self.pending_revocations.lock().contains_key(target)
    }

    /// Number of revocations not yet recorded.
    pub fn pending_revocations(&self) -> usize {
        self.pending_revocations.lock().len()
    }

    /// The cause of a task's pending end, if one is not yet recorded.
    pub(in crate::broker) fn pending_task_end(&self, task: &TaskRecord) -> Option<EndCause> {
        let pending_revocations = self.pending_revocations.lock();
        // Nearly always empty.
        if pending_revocations.is_empty() {
            return None;
        }
        let opened = &task.opened;
        let registered = |id: &AgentId| self.projections.rules().and_then(|r| r.bundle.agent(id));
        let owner_now = registered(&opened.agent).map(|agent| agent.owner.clone());
        let freezes = [Some(&opened.owner), owner_now.as_ref()]
            .into_iter()
            .flatten()
            .map(|owner| FreezeScope::Owner(owner.clone()))
            .chain([FreezeScope::All, FreezeScope::Agent(opened.agent.clone())])
            .map(RevocationTarget::Freeze);
        [
            RevocationTarget::Task(opened.task),
            RevocationTarget::Agent(opened.agent.clone()),
        ]
        .into_iter()
        .chain(freezes)
        .find_map(|target| {
            pending_revocations
                .get(&target)
                .map(|held| held.revocation.cause)
        })
    }

    /// The cause of a grant's pending end, if one is not yet recorded.
    pub(in crate::broker) fn pending_grant_end(&self, grant: &Grant) -> Option<EndCause> {
        if self.pending_revocations.lock().is_empty() {
            return None;
        }
        let action = FreezeScope::Action(grant.issued.action.action.clone());
        let targets = [
            RevocationTarget::Token(grant.issued.jti),
            RevocationTarget::Freeze(action),
        ];
        let own_end = targets.iter().find_map(|target| {
            let pending_revocations = self.pending_revocations.lock();
            pending_revocations
                .get(target)
                .map(|held| held.revocation.cause)
        });
        own_end.or_else(|| {
            let task = self.state.task(&grant.issued.task)?;
            self.pending_task_end(&task)
        })
    }

    /// Records the pending revocations that the journal takes by now, and that no call records.
    pub(in crate::broker) async fn flush_pending_revocations(&self) -> Result<(), AppendError> {
        let waiting: Vec<(RevocationTarget, PendingRevocation)> = self
            .pending_revocations
            .lock()
            .iter()
            .filter(|(_, held)| held.calls.is_empty())
            .map(|(target, held)| (target.clone(), held.revocation.clone()))
            .collect();
        for (target, revocation) in waiting {
            // Cleared while an earlier one was written.
            if !self.is_revocation_pending(&target) {
                continue;
            }
            let appends = match &target {
                RevocationTarget::Task(id) => self.append_for_task(id, &revocation),
                RevocationTarget::Agent(id) => self.append_for_agent(id, &revocation),
                RevocationTarget::Token(id) => self.append_for_token(id, &revocation),
                RevocationTarget::Freeze(scope) => self.append_for_freeze(scope, &revocation),
            };
            // `None`: it was recorded meanwhile.
            let written = match appends {
                Some(append) => self.try_append(append).await?,
                None => true,
            };
            if written {
                self.clear_pending(&target);
            }
        }
        Ok(())
    }

    fn append_for_task(&self, id: &TaskId, revocation: &PendingRevocation) -> Option<Append> {
        let read_set = self.task_read_set(&self.state.task(id)?.opened);
        let task = self.state.task(id).filter(|t| t.ended.is_none())?;
        let event = Event::TaskEnded(TaskEnded {
            tasks: vec![*id],
            cause: revocation.cause,
            outcome: revocation.outcome,
            by: revocation.by.clone(),
        });
        Some(Append {
            read_set,
            ..Append::one(event, vec![(Stream::Task(*id), task.version)])
        })
    }

    fn append_for_agent(&self, agent: &AgentId, revocation: &PendingRevocation) -> Option<Append> {
        let status = self.state.agent_status(agent);
        let by = revocation.by.clone().filter(|_| !status.value.suspended)?;
        let event = Event::AgentSuspended(AgentSuspended {
            agent: agent.clone(),
            by,
            reason: None,
            denials: None,
        });
        let write_set = vec![(Stream::Agent(agent.clone()), status.version)];
        Some(Append::one(event, write_set))
    }

    fn append_for_token(&self, jti: &TokenId, revocation: &PendingRevocation) -> Option<Append> {
        let grant = self.state.grant(jti).filter(|g| g.ended.is_none())?;
        let event = Event::GrantsEnded(GrantsEnded {
            jtis: vec![*jti],
            cause: revocation.cause,
            by: revocation.by.clone(),
        });
        Some(Append::one(
            event,
            vec![(Stream::Token(*jti), grant.version)],
        ))
    }

    fn append_for_freeze(
        &self,
        scope: &FreezeScope,
        revocation: &PendingRevocation,
    ) -> Option<Append> {
        let freeze = self.state.freeze(scope);
        let by = revocation
            .by
            .clone()
            .filter(|_| freeze.value.in_force.is_none())?;
        let rules = self.projections.rules()?;
        Some(self.freeze_append(scope, by, None, &rules, freeze.version))
    }
}
