//! Reading a task, for its agent.

use crate::broker::{Broker, CallContext, Refusal};
use crate::model::*;

/// A task as its agent sees it.
#[derive(Debug, Clone)]
pub struct AgentTaskView {
    /// The agent it belongs to.
    pub agent: AgentId,
    /// When it ends at the latest.
    pub deadline: Timestamp,
    /// When a missed heartbeat ends it; `None` without a heartbeat.
    pub lease_until: Option<Timestamp>,
    /// The cause of its first end; `None` while it runs.
    pub end_cause: Option<EndCause>,
    /// When it ended, as a refusal with `TASK_ENDED` says it; `None` while it runs, and while its end waits to be journalled.
    pub ended_at: Option<Timestamp>,
}

impl Broker {
    /// Whether a task runs and how it ended. Possession is enough: an agent may learn its task's end when its evidence has
    /// expired. Changes nothing.
    pub fn get_task(&self, call: &CallContext, id: TaskId) -> Result<AgentTaskView, Refusal> {
        let now = self.now();
        let (task, _possession) = self.task_possession(call, &id, None, None, now)?;
        let lease_until = task
            .lease
            .map(|lease| lease.until.min(task.opened.deadline));
        let end = self.task_end(&task, now);
        Ok(AgentTaskView {
            agent: task.opened.agent.clone(),
            deadline: task.opened.deadline,
            lease_until,
            end_cause: end.map(|(cause, _)| cause),
            ended_at: end.and_then(|(_, at)| at),
        })
    }
}
