//! Ends that could not be written: refused here at once, written as soon as the journal takes entries again.

use crate::broker::{Broker, Refusal};
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::state::{Grant, TaskRecord};

/// What is told of an order that could not be written.
const HOLDS_HERE: &str = "the journal cannot take it now: it holds on this broker at once and is written as soon as it can be; \
     try again until it is, for a restart before that forgets it";

/// What an order that could not be written ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::broker) enum Doomed {
    Task(TaskId),
    Agent(AgentId),
    Token(TokenId),
    Freeze(FreezeScope),
}

/// How it was ordered.
#[derive(Debug, Clone)]
pub(in crate::broker) struct Wish {
    pub(in crate::broker) by: Option<PersonId>,
    pub(in crate::broker) cause: EndCause,
    pub(in crate::broker) outcome: Option<TaskOutcome>,
}

impl Wish {
    pub(in crate::broker) fn of(operator: PersonId, cause: EndCause) -> Self {
        Self {
            by: Some(operator),
            cause,
            outcome: None,
        }
    }
}

impl Broker {
    /// Refuses from now on what this ends, here, until it is written; and says so to whoever ordered it.
    pub(in crate::broker) fn doom(
        &self,
        method: &'static str,
        what: Doomed,
        wish: Wish,
        error: &AppendError,
    ) -> Refusal {
        self.lock(&self.doomed).insert(what, wish);
        Refusal {
            message: HOLDS_HERE.to_owned(),
            ..self.refuse_append(method, error)
        }
    }

    pub(in crate::broker) fn pardon(&self, what: &Doomed) {
        self.lock(&self.doomed).remove(what);
    }

    pub(in crate::broker) fn is_doomed(&self, what: &Doomed) -> bool {
        self.lock(&self.doomed).contains_key(what)
    }

    /// How many ends wait to be written.
    pub fn unwritten_ends(&self) -> usize {
        self.lock(&self.doomed).len()
    }

    /// Why a task is over here although no entry says so yet.
    pub(in crate::broker) fn task_doomed(&self, task: &TaskRecord) -> Option<EndCause> {
        let doomed = self.lock(&self.doomed);
        // Nearly always: nothing waits to be written.
        if doomed.is_empty() {
            return None;
        }
        let opened = &task.opened;
        let whose = |id: &AgentId| self.projections.rules().and_then(|r| r.bundle.agent(id));
        let owner_now = whose(&opened.agent).map(|agent| agent.owner.clone());
        let freezes = [Some(&opened.owner), owner_now.as_ref()]
            .into_iter()
            .flatten()
            .map(|owner| FreezeScope::Owner(owner.clone()))
            .chain([FreezeScope::All, FreezeScope::Agent(opened.agent.clone())])
            .map(Doomed::Freeze);
        [
            Doomed::Task(opened.task),
            Doomed::Agent(opened.agent.clone()),
        ]
        .into_iter()
        .chain(freezes)
        .find_map(|what| doomed.get(&what).map(|wish| wish.cause))
    }

    /// Why a grant is dead here although no entry says so yet.
    pub(in crate::broker) fn grant_doomed(&self, grant: &Grant) -> Option<EndCause> {
        if self.lock(&self.doomed).is_empty() {
            return None;
        }
        let action = FreezeScope::Action(grant.issued.action.action.clone());
        let own = [Doomed::Token(grant.issued.jti), Doomed::Freeze(action)];
        let of_grant = own
            .iter()
            .find_map(|what| self.lock(&self.doomed).get(what).map(|wish| wish.cause));
        of_grant.or_else(|| {
            let task = self.state.task(&grant.issued.task)?;
            self.task_doomed(&task)
        })
    }

    /// Writes what can be written by now.
    pub(in crate::broker) async fn write_doomed(&self) -> Result<(), AppendError> {
        let waiting: Vec<(Doomed, Wish)> = self.lock(&self.doomed).clone().into_iter().collect();
        for (what, wish) in waiting {
            // Written, or taken back, while the one before was written.
            if !self.is_doomed(&what) {
                continue;
            }
            let appends = match &what {
                Doomed::Task(id) => self.doomed_task(id, &wish),
                Doomed::Agent(id) => self.doomed_agent(id, &wish),
                Doomed::Token(id) => self.doomed_token(id, &wish),
                Doomed::Freeze(scope) => self.doomed_freeze(scope, &wish),
            };
            // None: somebody else has written it meanwhile.
            let written = match appends {
                Some(append) => self.append_found(append).await?,
                None => true,
            };
            if written {
                self.pardon(&what);
            }
        }
        Ok(())
    }

    fn doomed_task(&self, id: &TaskId, wish: &Wish) -> Option<Append> {
        let read_set = self.task_premises(&self.state.task(id)?.opened);
        let task = self.state.task(id).filter(|t| t.ended.is_none())?;
        let fact = Event::TaskEnded(TaskEnded {
            tasks: vec![*id],
            cause: wish.cause,
            outcome: wish.outcome,
            by: wish.by.clone(),
        });
        Some(Append {
            read_set,
            ..Append::one(fact, vec![(Stream::Task(*id), task.version)])
        })
    }

    fn doomed_agent(&self, agent: &AgentId, wish: &Wish) -> Option<Append> {
        let standing = self.state.agent_status(agent);
        let by = wish.by.clone().filter(|_| !standing.value.suspended)?;
        let fact = Event::AgentSuspended(AgentSuspended {
            agent: agent.clone(),
            by,
            reason: None,
            denials: None,
        });
        let write_set = vec![(Stream::Agent(agent.clone()), standing.version)];
        Some(Append::one(fact, write_set))
    }

    fn doomed_token(&self, jti: &TokenId, wish: &Wish) -> Option<Append> {
        let grant = self.state.grant(jti).filter(|g| g.ended.is_none())?;
        let fact = Event::GrantsEnded(GrantsEnded {
            jtis: vec![*jti],
            cause: wish.cause,
            by: wish.by.clone(),
        });
        Some(Append::one(
            fact,
            vec![(Stream::Token(*jti), grant.version)],
        ))
    }

    fn doomed_freeze(&self, scope: &FreezeScope, wish: &Wish) -> Option<Append> {
        let freeze = self.state.freeze(scope);
        let by = wish
            .by
            .clone()
            .filter(|_| freeze.value.in_force.is_none())?;
        let rules = self.projections.rules()?;
        Some(self.freezing(scope, by, None, &rules, freeze.version))
    }
}
