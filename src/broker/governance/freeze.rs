//! Freezes: stop everything, one agent, one owner's agents or one action, and lift the freeze again.

use std::collections::BTreeSet;

use crate::approve::ActionFreezeStatus;
use crate::broker::governance::pending_revocation::{PendingRevocation, RevocationTarget};
use crate::broker::transaction::UNTIL_DONE;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::journal::{Append, Blob, NewEvent};
use crate::model::*;
use crate::policy::ActivePolicy;
use crate::state::FreezeMarker;

/// Summary of a freeze: the counts of what it ended.
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

/// The lifting of a suspension or freeze.
pub(in crate::broker) struct LiftOrder {
    pub target: RevocationTarget,
    /// The message while the suspension or freeze itself is not yet recorded.
    pub unwritten: &'static str,
    pub stream: Stream,
    pub event: Event,
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
        self.require_known_scope(call, &scope)?;
        let hold = self.hold_revocation(call.method, RevocationTarget::Freeze(scope.clone()));
        let (operator, scope, reason, hold) = (&operator, &scope, &reason, &hold);
        self.transaction(
            call.method,
            UNTIL_DONE,
            "the freeze keeps changing",
            |attempt| async move {
                let rules = self.require_operator(call, operator)?;
                let freeze = self.state.freeze(scope);
                if let Some(frozen) = freeze.value.in_force {
                    return Ok(FreezeSummary {
                        index: frozen.index,
                        ..FreezeSummary::default()
                    });
                }
                let hit = self.affected_by(scope, &rules);
                let blob = reason
                    .as_ref()
                    .map(|prose| Blob::new(prose.blob(self.random_bytes())));
                let append =
                    self.freeze_append(scope, operator.id.clone(), blob, &rules, freeze.version);
                let revocation = PendingRevocation::new(operator.id.clone(), EndCause::Frozen);
                let entry = hold.append(attempt, append, revocation).await?;
                let last = self.state.freeze(scope).value.last;
                Ok(FreezeSummary {
                    index: last.unwrap_or(entry.index),
                    ..hit
                })
            },
        )
        .await
    }

    /// Lifts a freeze; nothing that ended comes back. Returns the index of the lifting entry.
    pub async fn unfreeze(&self, call: &CallContext, scope: FreezeScope) -> Result<u64, Refusal> {
        let operator = self.authenticate_person(call)?;
        self.require_known_scope(call, &scope)?;
        let lift = LiftOrder {
            target: RevocationTarget::Freeze(scope.clone()),
            unwritten: "the freeze is not yet in the journal: try again when it is",
            stream: Stream::Freeze(scope.clone()),
            event: Event::Unfrozen(Unfrozen {
                scope: scope.clone(),
                by: operator.id.clone(),
            }),
        };
        self.lift_order(call, &operator, lift, || {
            let freeze = self.state.freeze(&scope);
            (freeze.value.in_force.is_some(), freeze.version)
        })
        .await
    }

    /// Records the lifting of a suspension or freeze; `now` returns whether it is in force, and the version of its stream.
    /// Returns the index of the lifting entry.
    pub(in crate::broker) async fn lift_order(
        &self,
        call: &CallContext,
        operator: &PersonCaller,
        lift: LiftOrder,
        now: impl Fn() -> (bool, u64) + Sync,
    ) -> Result<u64, Refusal> {
        let (lift, now) = (&lift, &now);
        self.transaction(
            call.method,
            UNTIL_DONE,
            "the order keeps changing while it is lifted",
            |attempt| async move {
                let rules = self.require_operator(call, operator)?;
                let (holds, version) = now();
                // A pending suspension or freeze must be recorded first: otherwise its entry would follow the lifting.
                if self.is_revocation_pending(&lift.target) {
                    return Err(self
                        .refuse(call.method, Reason::JournalUnavailable, lift.unwritten)
                        .into());
                }
                if !holds {
                    return Ok(version.saturating_sub(1));
                }
                let append = Append {
                    read_set: vec![(Stream::Policy, rules.version)],
                    ..Append::one(lift.event.clone(), vec![(lift.stream.clone(), version)])
                };
                Ok(attempt.append(append).await?.index)
            },
        )
        .await
    }

    /// The freezes in force.
    pub fn freezes(&self, call: &CallContext) -> Result<Vec<(FreezeScope, FreezeMarker)>, Refusal> {
        self.authenticate_reader(call, self.now())?;
        Ok(self.state.freezes())
    }

    /// The append of a freeze. An owner with very many agents takes several entries, of which the last moves the stream: no
    /// reader sees a partial freeze.
    pub(in crate::broker) fn freeze_append(
        &self,
        scope: &FreezeScope,
        by: PersonId,
        reason: Option<Blob>,
        rules: &ActivePolicy,
        version: Version,
    ) -> Append {
        let agents: Vec<AgentId> = match scope {
            FreezeScope::Owner(owner) => self.agents_of(owner, rules).into_iter().collect(),
            FreezeScope::All | FreezeScope::Agent(_) | FreezeScope::Action(_) => Vec::new(),
        };
        let event = |agents: &[AgentId]| {
            Event::Frozen(Frozen {
                scope: scope.clone(),
                agents: agents.to_vec(),
                by: by.clone(),
                reason: reason.as_ref().map(Blob::hash),
            })
        };
        let mut drafts: Vec<NewEvent> = agents
            .chunks(AGENTS_PER_ENTRY)
            .map(|agents| NewEvent {
                event: event(agents),
                write_set: Vec::new(),
            })
            .collect();
        if drafts.is_empty() {
            drafts.push(NewEvent {
                event: event(&[]),
                write_set: Vec::new(),
            });
        }
        if let Some(last) = drafts.last_mut() {
            last.write_set = vec![(Stream::Freeze(scope.clone()), version)];
        }
        Append {
            events: drafts,
            read_set: vec![(Stream::Policy, rules.version)],
            not_after: None,
            blobs: reason.into_iter().collect(),
        }
    }

    /// The agents of an owner: those registered now, and those with running tasks opened under that owner.
    fn agents_of(&self, owner: &PersonId, rules: &ActivePolicy) -> BTreeSet<AgentId> {
        let registered = rules.bundle.agents().filter(|agent| agent.owner == *owner);
        let at_work = self.state.open_tasks().into_iter();
        registered
            .map(|agent| agent.id.clone())
            .chain(
                at_work
                    .filter(|task| task.opened.owner == *owner)
                    .map(|task| task.opened.agent.clone()),
            )
            .collect()
    }

    /// Counts what a freeze ends, as of now.
    fn affected_by(&self, scope: &FreezeScope, rules: &ActivePolicy) -> FreezeSummary {
        let now = self.now();
        let owned = match scope {
            FreezeScope::Owner(owner) => self.agents_of(owner, rules),
            FreezeScope::All | FreezeScope::Agent(_) | FreezeScope::Action(_) => BTreeSet::new(),
        };
        let mut summary = FreezeSummary {
            changed: true,
            ..FreezeSummary::default()
        };
        for task in self.state.open_tasks() {
            let agent = &task.opened.agent;
            let whole = match scope {
                FreezeScope::All => true,
                FreezeScope::Agent(id) => agent == id,
                FreezeScope::Owner(_) => owned.contains(agent),
                FreezeScope::Action(_) => false,
            };
            let of_action = |action: &ActionName| match scope {
                FreezeScope::Action(name) => action == name,
                FreezeScope::All | FreezeScope::Agent(_) | FreezeScope::Owner(_) => whole,
            };
            let id = task.opened.task;
            summary.tasks += usize::from(whole && task.is_running(now));
            summary.tokens += self
                .state
                .grants_of_task(&id)
                .iter()
                .filter(|g| of_action(&g.issued.action.action))
                .filter(|g| self.state.end_cause(g, now).is_none() && !g.is_spent())
                .count();
            summary.access_requests += self
                .state
                .requests_of_task(&id)
                .iter()
                .filter(|r| of_action(&r.opened.action.action) && r.is_pending(now))
                .count();
        }
        summary
    }

    /// Refuses an unknown scope: a freeze that stops nothing would hide the mistake.
    fn require_known_scope(&self, call: &CallContext, scope: &FreezeScope) -> Result<(), Refusal> {
        let rules = self.projections.rules();
        let bundle = rules.as_ref().map(|rules| &rules.bundle);
        let known = self.state.freeze(scope).version > 0
            || match scope {
                FreezeScope::All => true,
                FreezeScope::Agent(id) => {
                    bundle.is_some_and(|b| b.agent(id).is_some())
                        || self.state.agent_status(id).version > 0
                        || !self.state.open_tasks_of(id).is_empty()
                }
                FreezeScope::Owner(id) => {
                    bundle.is_some_and(|b| b.person(id).is_some())
                        || rules
                            .as_ref()
                            .is_some_and(|r| !self.agents_of(id, r).is_empty())
                }
                FreezeScope::Action(name) => bundle.is_some_and(|b| b.action(name).is_some()),
            };
        if known {
            return Ok(());
        }
        let message = format!("no {scope} is known");
        Err(self.refuse(call.method, Reason::NotFound, message))
    }

    /// Whether a scope is frozen, by an entry or a pending one, and the version of its stream.
    pub(in crate::broker) fn freeze_status(&self, scope: &FreezeScope) -> (bool, Version) {
        let at = self.state.freeze(scope);
        let frozen = at.value.in_force.is_some()
            || self.is_revocation_pending(&RevocationTarget::Freeze(scope.clone()));
        (frozen, at.version)
    }

    pub(in crate::broker) fn action_freeze(&self, action: &ActionName) -> ActionFreezeStatus {
        let (frozen, version) = self.freeze_status(&FreezeScope::Action(action.clone()));
        ActionFreezeStatus { frozen, version }
    }

    /// The streams that end a task without moving its own: its agent's suspension and the freezes that cover it. A use case that
    /// takes a task for running includes them in its read set, read before the task.
    pub(in crate::broker) fn task_read_set(&self, opened: &TaskOpened) -> Vec<(Stream, Version)> {
        let agent = &opened.agent;
        let owner = self.owner_now(agent).filter(|owner| *owner != opened.owner);
        let scopes = [
            FreezeScope::All,
            FreezeScope::Agent(agent.clone()),
            FreezeScope::Owner(opened.owner.clone()),
        ];
        let agent_version = self.state.agent_status(agent).version;
        std::iter::once((Stream::Agent(agent.clone()), agent_version))
            .chain(
                scopes
                    .into_iter()
                    .chain(owner.map(FreezeScope::Owner))
                    .map(|scope| {
                        let version = self.state.freeze(&scope).version;
                        (Stream::Freeze(scope), version)
                    }),
            )
            .collect()
    }

    /// The same for an access request: its task's streams, its action's freeze and the task itself.
    pub(in crate::broker) fn request_read_set(
        &self,
        request: &AccessRequestOpened,
    ) -> Vec<(Stream, Version)> {
        let mut read_set = match self.state.task(&request.task) {
            Some(task) => {
                let mut read_set = self.task_read_set(&task.opened);
                // Read again after the freezes above: an end in between refuses the append.
                let version = self.state.task(&request.task).map_or(0, |t| t.version);
                read_set.push((Stream::Task(request.task), version));
                read_set
            }
            // A missing task counts as ended.
            None => vec![(Stream::Task(request.task), Version::MAX)],
        };
        let scope = FreezeScope::Action(request.action.action.clone());
        let version = self.state.freeze(&scope).version;
        read_set.push((Stream::Freeze(scope), version));
        read_set
    }

    /// The owner of an agent under the policy bundle in force.
    pub(in crate::broker) fn owner_now(&self, agent: &AgentId) -> Option<PersonId> {
        let rules = self.projections.rules()?;
        rules.bundle.agent(agent).map(|agent| agent.owner.clone())
    }

    /// Whether the current owner of an agent is frozen: the agent may have changed owner.
    pub(in crate::broker) fn is_owner_frozen(&self, agent: &AgentId) -> bool {
        !self.state.freezes().is_empty()
            && self
                .owner_now(agent)
                .is_some_and(|owner| self.freeze_status(&FreezeScope::Owner(owner)).0)
    }

    /// The read set for using a grant: the freezes that would end it, with their versions.
    pub(in crate::broker) fn freeze_read_set(
        &self,
        issued: &TokenIssued,
        opened: Option<&TaskOpened>,
        rules: &ActivePolicy,
    ) -> Vec<(Stream, Version)> {
        let owners: BTreeSet<PersonId> = opened
            .map(|opened| opened.owner.clone())
            .into_iter()
            .chain(rules.bundle.agent(&issued.agent).map(|a| a.owner.clone()))
            .collect();
        [
            FreezeScope::All,
            FreezeScope::Agent(issued.agent.clone()),
            FreezeScope::Action(issued.action.action.clone()),
        ]
        .into_iter()
        .chain(owners.into_iter().map(FreezeScope::Owner))
        .map(|scope| {
            let version = self.state.freeze(&scope).version;
            (Stream::Freeze(scope), version)
        })
        .collect()
    }
}

/// Agents named by one entry: with ids of 64 bytes well below the longest entry.
const AGENTS_PER_ENTRY: usize = SELECTOR_MAX;
