use std::sync::Arc;

use crate::broker::{ActionUse, Broker, CallContext, Refusal};
use crate::model::*;
use crate::state::{Grant, TaskRecord};

/// A task, as an operator sees it in a list.
#[derive(Debug)]
pub struct TaskView {
    /// As entered, with its lease and its end.
    pub task: Arc<TaskRecord>,
    /// How it is over, if it is: by an entry, by time, or by an end that waits to be written.
    pub over: Option<EndCause>,
    /// Tokens that are good now.
    pub tokens_live: usize,
    /// Access requests that wait for people.
    pub access_requests_waiting: usize,
}

/// Which tasks to list.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Of this agent only.
    pub agent: Option<AgentId>,
    /// Those that are over too.
    pub ended: bool,
    /// The page after this task, in the order of the list.
    pub after: Option<TaskId>,
    /// Most rows.
    pub max: usize,
}

/// A registered agent and how it stands.
#[derive(Debug)]
pub struct AgentView {
    /// As registered; absent when the policy bundle has it no more.
    pub registered: Option<Arc<RegisteredAgent>>,
    /// Its id.
    pub id: AgentId,
    /// Taken out of service by an operator.
    pub suspended: bool,
    /// Freezes in force that stop it.
    pub frozen: Vec<FreezeScope>,
    /// Tasks that run.
    pub tasks_running: usize,
    /// Tokens that are good now.
    pub tokens_live: usize,
    /// When this broker last verified its evidence, as far as it remembers.
    pub verified_at: Option<Timestamp>,
    /// When evidence of it was last verified, as the journal tells: what any broker remembered when it entered something.
    pub attested_at: Option<Timestamp>,
    /// What it did with each action of its ceiling, and with others it had once; empty in a list.
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
        self.reader(call, now)?;
        let after = match &filter.after {
            None => None,
            Some(id) => Some(self.state.task(id).ok_or_else(|| {
                let told = "page_token: no such task";
                self.refuse(call.method, Reason::NotFound, told)
            })?),
        };
        let place = |task: &TaskRecord| (std::cmp::Reverse(task.opened.opened_at), task.opened.task);
        let wanted = |task: &Arc<TaskRecord>| {
            filter
                .agent
                .as_ref()
                .is_none_or(|id| task.opened.agent == *id)
                && (filter.ended || self.is_running(task, now))
                && after.as_ref().is_none_or(|last| place(task) > place(last))
        };
        let all = if filter.ended {
            self.state.tasks()
        } else {
            self.state.open_tasks()
        };
        let mut tasks: Vec<Arc<TaskRecord>> = all.into_iter().filter(wanted).collect();
        tasks.sort_by_key(|task| place(task));
        tasks.truncate(filter.max);
        Ok(tasks
            .into_iter()
            .map(|task| self.task_view(task, now))
            .collect())
    }

    fn task_view(&self, task: Arc<TaskRecord>, now: Timestamp) -> TaskView {
        let id = task.opened.task;
        let waits = |r: &Arc<crate::state::AccessRequest>| r.is_pending(now);
        let over = task
            .ended
            .map(|ended| ended.cause)
            .or_else(|| task.expired_cause(now))
            .or_else(|| self.task_doomed(&task));
        TaskView {
            over,
            tokens_live: self.live(&self.state.grants_of_task(&id), now),
            access_requests_waiting: match over {
                None => self
                    .state
                    .requests_of_task(&id)
                    .iter()
                    .filter(|r| waits(r))
                    .count(),
                Some(_) => 0,
            },
            task,
        }
    }

    fn live(&self, grants: &[Arc<Grant>], now: Timestamp) -> usize {
        let alive = |g: &&Arc<Grant>| self.end_cause(g, now).is_none() && !g.is_spent();
        grants.iter().filter(alive).count()
    }

    /// Agents by id: those registered, and those that left the policy bundle and still have a standing or tasks.
    pub fn list_agents(
        &self,
        call: &CallContext,
        after: Option<&AgentId>,
        max: usize,
    ) -> Result<Vec<AgentView>, Refusal> {
        let now = self.now();
        self.reader(call, now)?;
        let mut ids: std::collections::BTreeSet<AgentId> =
            self.state.agents_with_open_tasks().into_iter().collect();
        ids.extend(self.state.agents_with_status());
        if let Some(rules) = self.projections.rules() {
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
        self.reader(call, now)?;
        self.known_agent(call, id)?;
        let view = self.agent_view(id.clone(), now);
        Ok(AgentView {
            activity: self.activity(id, view.registered.as_deref()),
            ..view
        })
    }

    fn agent_view(&self, id: AgentId, now: Timestamp) -> AgentView {
        let registered = self.projections.rules().and_then(|rules| rules.bundle.agent(&id));
        let owner = registered
            .iter()
            .map(|agent| FreezeScope::Owner(agent.owner.clone()));
        let frozen = [FreezeScope::All, FreezeScope::Agent(id.clone())]
            .into_iter()
            .chain(owner)
            .filter(|scope| self.freeze_of(scope).0)
            .collect();
        let running: Vec<Arc<TaskRecord>> = self
            .state
            .open_tasks_of(&id)
            .iter()
            .filter_map(|task| self.state.task(task))
            .filter(|task| self.is_running(task, now))
            .collect();
        AgentView {
            suspended: self.agent_suspension(&id).0,
            frozen,
            tasks_running: running.len(),
            tokens_live: running
                .iter()
                .map(|task| self.live(&self.state.grants_of_task(&task.opened.task), now))
                .sum(),
            verified_at: running
                .iter()
                .filter_map(|task| self.cached_attestation(&task.opened.task))
                .map(|attested| attested.facts().verified_at)
                .max(),
            attested_at: self.state.stats().agent(&id).attested_at,
            activity: Vec::new(),
            registered,
            id,
        }
    }
}
