// State has no reader of its own: a decision reads through a round, a page through `Show`.
use std::sync::Arc;

use dipylon::state::State;
use dipylon_sdk::model::{AgentId, TaskId};

fn read(state: &Arc<State>, task: &TaskId, agent: &AgentId) {
    let _task = state.tasks.get(task);
    let _suspended = state.is_suspended(agent);
    let _round = state.read();
}

fn main() {}
