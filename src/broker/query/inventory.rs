//! Inventory: lists of tasks and agents.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::broker::governance::pending_revocation::RevocationTarget;
use crate::broker::{ActionUse, Broker, CallContext, Refusal};
use crate::model::*;
use crate::state::{AccessRequest, Grant, Shown, TaskRecord};

/// A row of the task list.
#[derive(Debug)]
pub struct TaskView {
    /// The task, with its lease and its end.
    pub task: Shown<TaskRecord>,
    /// Why it ended, if it did: by an entry, by time, or by a pending revocation.
    pub ended: Option<EndCause>,
    /// Active tokens.
    pub tokens_active: usize,
    /// Waiting access requests.
    pub access_requests_waiting: usize,
}

/// A task's place in the list, newest first. It does not change, and it stays when the task is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskCursor(std::cmp::Reverse<Timestamp>, TaskId);

impl TaskCursor {
    fn from_task(task: &TaskRecord) -> Self {
        Self(std::cmp::Reverse(task.opened.opened_at), task.opened.task)
    }
}

impl TaskView {
    /// Its place in the list.
    pub fn cursor(&self) -> TaskCursor {
        TaskCursor::from_task(&self.task)
    }
}

/// The tasks to list.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Only tasks of this agent.
    pub agent: Option<AgentId>,
    /// Include ended tasks.
    pub ended: bool,
    /// The page after this task, in the order of the list.
    pub after: Option<TaskCursor>,
    /// Most rows.
    pub max: usize,
}

/// An agent and its status.
#[derive(Debug)]
pub struct AgentView {
    /// Its registration; absent when it left the policy bundle.
    pub registered: Option<Arc<RegisteredAgent>>,
    /// Its id.
    pub id: AgentId,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Freezes in force that cover it.
    pub frozen: Vec<FreezeScope>,
    /// Running tasks.
    pub tasks_running: usize,
    /// Active tokens.
    pub tokens_active: usize,
    /// When this broker last verified its evidence; kept in memory.
    pub verified_at: Option<Timestamp>,
    /// When its evidence was last verified according to the journal, by any broker.
    pub attested_at: Option<Timestamp>,
    /// Use of each action of its ceiling, and of earlier ceilings; empty in a list.
    pub activity: Vec<ActionUse>,
}

impl Broker {
    /// Tasks, the newest first.
    pub fn list_tasks(
        &self,
        call: &CallContext,
        filter: &TaskFilter,
    ) -> Result<Vec<TaskView>, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        let is_selected = |task: &Shown<TaskRecord>| {
            filter
                .agent
                .as_ref()
                .is_none_or(|id| task.opened.agent == *id)
                && (filter.ended || self.is_running(task, now))
                && filter
                    .after
                    .is_none_or(|last| TaskCursor::from_task(task) > last)
        };
        let all = if filter.ended {
            self.show().tasks()
        } else {
            self.show().open_tasks()
        };
        let mut tasks: Vec<Shown<TaskRecord>> = all.into_iter().filter(is_selected).collect();
        tasks.sort_by_key(|task| TaskCursor::from_task(task));
        tasks.truncate(filter.max);
        Ok(tasks
            .into_iter()
            .map(|task| self.task_view(task, now))
            .collect())
    }

    fn task_view(&self, task: Shown<TaskRecord>, now: Timestamp) -> TaskView {
        let id = task.opened.task;
        let waits = |r: &Shown<AccessRequest>| r.is_pending(now);
        let ended = task
            .ended
            .map(|ended| ended.cause)
            .or_else(|| task.expired_cause(now))
            .or_else(|| self.pending_task_end(&task));
        TaskView {
            ended,
            tokens_active: self.count_live(&self.show().grants_of_task(&id), now),
            access_requests_waiting: match ended {
                None => self
                    .show()
                    .requests_of_task(&id)
                    .iter()
                    .filter(|r| waits(r))
                    .count(),
                Some(_) => 0,
            },
            task,
        }
    }

    fn count_live(&self, grants: &[Shown<Grant>], now: Timestamp) -> usize {
        let is_active = |g: &&Shown<Grant>| self.shown_end_cause(g, now).is_none() && !g.is_spent();
        grants.iter().filter(is_active).count()
    }

    /// Agents by id: those registered, and those that left the policy bundle and still have a status or tasks.
    pub fn list_agents(
        &self,
        call: &CallContext,
        after: Option<&AgentId>,
        max: usize,
    ) -> Result<Vec<AgentView>, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        let mut ids: std::collections::BTreeSet<AgentId> =
            self.show().agents_with_open_tasks().into_iter().collect();
        ids.extend(self.show().agents_with_status());
        if let Some(rules) = self.show().rules() {
            ids.extend(rules.bundle.agents().map(|agent| agent.id.clone()));
        }
        let page = ids
            .into_iter()
            .filter(|id| after.is_none_or(|last| id > last));
        Ok(page.take(max).map(|id| self.agent_view(id, now)).collect())
    }

    /// One agent.
    pub fn get_agent(&self, call: &CallContext, id: &AgentId) -> Result<AgentView, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        self.require_known_agent(call, id)?;
        let view = self.agent_view(id.clone(), now);
        Ok(AgentView {
            activity: self.activity(id, view.registered.as_deref()),
            ..view
        })
    }

    fn agent_view(&self, id: AgentId, now: Timestamp) -> AgentView {
        let registered = self
            .show()
            .rules()
            .and_then(|rules| rules.bundle.agent(&id));
        let owner = registered
            .iter()
            .map(|agent| FreezeScope::Owner(agent.owner.clone()));
        let frozen = [FreezeScope::All, FreezeScope::Agent(id.clone())]
            .into_iter()
            .chain(owner)
            .filter(|scope| {
                self.show().freeze(scope).is_some()
                    || self.is_revocation_pending(&RevocationTarget::Freeze(scope.clone()))
            })
            .collect();
        let running: Vec<Shown<TaskRecord>> = self
            .show()
            .open_tasks_of(&id)
            .iter()
            .filter_map(|task| self.show().task(task))
            .filter(|task| self.is_running(task, now))
            .collect();
        AgentView {
            suspended: self.show().is_suspended(&id)
                || self.is_revocation_pending(&RevocationTarget::Agent(id.clone())),
            frozen,
            tasks_running: running.len(),
            tokens_active: running
                .iter()
                .map(|task| self.count_live(&self.show().grants_of_task(&task.opened.task), now))
                .sum(),
            verified_at: running
                .iter()
                .filter_map(|task| self.cached_attestation(&task.opened.task))
                .map(|attested| attested.facts().verified_at)
                .max(),
            attested_at: self.show().stats().agent(&id).attested_at,
            activity: Vec::new(),
            registered,
            id,
        }
    }
}
