//! Pending revocations: ends the journal could not record yet, enforced in memory and written when it recovers.

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

/// A revocation that is enforced here and not yet recorded.
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

impl Broker {
    /// Enforces a revocation on this broker until it is recorded; returns the refusal for the operator.
    pub(in crate::broker) fn defer_revocation(
        &self,
        method: &'static str,
        target: RevocationTarget,
        revocation: PendingRevocation,
        error: &AppendError,
    ) -> Refusal {
        self.lock(&self.pending_revocations)
            .insert(target, revocation);
        let refusal = self.refuse_append(method, error);
        match error {
            // Enforced here as well, but whether it is in the journal only the disk or the next start can tell.
            AppendError::OutcomeUnknown => refusal,
            _ => Refusal {
                message: PENDING_MESSAGE.to_owned(),
                ..refusal
            },
        }
    }

    pub(in crate::broker) fn clear_pending(&self, target: &RevocationTarget) {
        self.lock(&self.pending_revocations).remove(target);
    }

    pub(in crate::broker) fn is_revocation_pending(&self, target: &RevocationTarget) -> bool {
        self.lock(&self.pending_revocations).contains_key(target)
    }

    /// Number of revocations not yet recorded.
    pub fn pending_revocations(&self) -> usize {
        self.lock(&self.pending_revocations).len()
    }

    /// The cause of a task's pending end, if one is not yet recorded.
    pub(in crate::broker) fn pending_task_end(&self, task: &TaskRecord) -> Option<EndCause> {
        let pending_revocations = self.lock(&self.pending_revocations);
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
                .map(|revocation| revocation.cause)
        })
    }

    /// The cause of a grant's pending end, if one is not yet recorded.
    pub(in crate::broker) fn pending_grant_end(&self, grant: &Grant) -> Option<EndCause> {
        if self.lock(&self.pending_revocations).is_empty() {
            return None;
        }
        let action = FreezeScope::Action(grant.issued.action.action.clone());
        let targets = [
            RevocationTarget::Token(grant.issued.jti),
            RevocationTarget::Freeze(action),
        ];
        let own_end = targets.iter().find_map(|target| {
            self.lock(&self.pending_revocations)
                .get(target)
                .map(|revocation| revocation.cause)
        });
        own_end.or_else(|| {
            let task = self.state.task(&grant.issued.task)?;
            self.pending_task_end(&task)
        })
    }

    /// Records the pending revocations that the journal takes by now.
    pub(in crate::broker) async fn flush_pending_revocations(&self) -> Result<(), AppendError> {
        let waiting: Vec<(RevocationTarget, PendingRevocation)> = self
            .lock(&self.pending_revocations)
            .clone()
            .into_iter()
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
