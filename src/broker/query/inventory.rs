use std::sync::Arc;

use crate::broker::{ActionUse, Broker, CallContext, Refusal};
use crate::model::*;
use crate::state::{Grant, Task};

/// A task, as an operator sees it in a list.
#[derive(Debug)]
pub struct TaskView {
    /// As entered, with its lease and its end.
    pub task: Arc<Task>,
    /// How it is over, if it is: by an entry, by time, or by an end that waits to be written.
    pub ended: Option<EndCause>,
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
    pub registered: Option<Arc<Agent>>,
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
        self.authenticate_reader(call, now)?;
        let after = match &filter.after {
            None => None,
            Some(id) => Some(self.state.task(id).ok_or_else(|| {
                let told = "page_token: no such task";
                self.refuse(call.method, Reason::NotFound, told)
            })?),
        };
        let place = |task: &Task| (std::cmp::Reverse(task.opened.opened_at), task.opened.task);
        let wanted = |task: &Arc<Task>| {
            filter
                .agent
                .as_ref()
                .is_none_or(|id| task.opened.agent == *id)
                && (filter.ended || self.runs(task, now))
                && after.as_ref().is_none_or(|last| place(task) > place(last))
        };
        let all = if filter.ended {
            self.state.tasks()
        } else {
            self.state.open_tasks()
        };
        let mut tasks: Vec<Arc<Task>> = all.into_iter().filter(wanted).collect();
        tasks.sort_by_key(|task| place(task));
        tasks.truncate(filter.max);
        Ok(tasks
            .into_iter()
            .map(|task| self.task_view(task, now))
            .collect())
    }

    fn task_view(&self, task: Arc<Task>, now: Timestamp) -> TaskView {
        let id = task.opened.task;
        let waits = |r: &Arc<crate::state::AccessRequest>| r.waits(now);
        let ended = task
            .ended
            .map(|ended| ended.cause)
            .or_else(|| task.lapsed(now))
            .or_else(|| self.pending_task_end(&task));
        TaskView {
            ended,
            tokens_live: self.count_live(&self.state.grants_of(&id), now),
            access_requests_waiting: match ended {
                None => self
                    .state
                    .requests_of(&id)
                    .iter()
                    .filter(|r| waits(r))
                    .count(),
                Some(_) => 0,
            },
            task,
        }
    }

    fn count_live(&self, grants: &[Arc<Grant>], now: Timestamp) -> usize {
        let alive = |g: &&Arc<Grant>| self.dead(g, now).is_none() && !g.spent();
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
        self.authenticate_reader(call, now)?;
        let mut ids: std::collections::BTreeSet<AgentId> =
            self.state.agents_at_work().into_iter().collect();
        ids.extend(self.state.agents_with_a_standing());
        if let Some(rules) = self.views.rules() {
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
        let registered = self.views.rules().and_then(|rules| rules.bundle.agent(&id));
        let owner = registered
            .iter()
            .map(|agent| FreezeScope::Owner(agent.owner.clone()));
        let frozen = [FreezeScope::All, FreezeScope::Agent(id.clone())]
            .into_iter()
            .chain(owner)
            .filter(|scope| self.freeze_status(scope).0)
            .collect();
        let running: Vec<Arc<Task>> = self
            .state
            .open_tasks_of(&id)
            .iter()
            .filter_map(|task| self.state.task(task))
            .filter(|task| self.runs(task, now))
            .collect();
        AgentView {
            suspended: self.standing_of(&id).0,
            frozen,
            tasks_running: running.len(),
            tokens_live: running
                .iter()
                .map(|task| self.count_live(&self.state.grants_of(&task.opened.task), now))
                .sum(),
            verified_at: running
                .iter()
                .filter_map(|task| self.remembered(&task.opened.task))
                .map(|attested| attested.facts().verified_at)
                .max(),
            attested_at: self.state.figures().agent(&id).attested_at,
            activity: Vec::new(),
            registered,
            id,
        }
    }
}
