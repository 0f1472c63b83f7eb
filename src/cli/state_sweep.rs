//! Removal of saved state: keys, tasks and requests that no command can use any more.

use std::path::Path;
use std::time::Duration;

use tokio::task::JoinSet;

use super::exec::SavedExec;
use super::task_store::{self, SavedTask};
use super::{Common, files};
use crate::clock::Clock;
use crate::model::Timestamp;

/// Deletes what is left of tasks that have ended. Whether a task has ended is its broker's word, not that of this machine's
/// clock; without it, state stays for days. Failures are ignored: the next command tries again.
pub(super) async fn run(common: &Common, clock: &Clock) {
    let now = clock.now();
    let execs = SavedExec::load_all();
    let tasks = task_store::load_readable();
    let mut asked = JoinSet::new();
    for saved in tasks {
        // The parameters of a request may be sensitive: its task is asked about before its deadline, too.
        let is_exec = execs.iter().any(|exec| exec.task() == saved.task);
        if saved.is_expired_by(now) || saved.is_abandoned_by(now) {
            delete(&execs, &saved);
        } else if saved.may_have_ended_by(now, is_exec) && asked.len() < ASKED_MAX {
            let common = common.clone();
            asked.spawn(async move {
                let ended = saved.has_ended(&common).await;
                (saved, ended)
            });
        }
    }
    let hearing = async {
        while let Some(answer) = asked.join_next().await {
            if let Ok((mut saved, Some(at))) = answer {
                let _ignored = saved.mark_ended(at.unwrap_or(now));
                if saved.is_expired_by(now) {
                    delete(&execs, &saved);
                }
            }
        }
    };
    // The rest is asked about next time.
    let _late = tokio::time::timeout(ANSWERS_WITHIN, hearing).await;
    for exec in execs
        .iter()
        .filter(|exec| !task_store::is_saved(exec.task()))
    {
        let _ignored = exec.delete();
    }
    for dir in task_store::directories() {
        delete_leftovers(&dir, now);
    }
}

fn delete(execs: &[SavedExec], saved: &SavedTask) {
    for exec in execs.iter().filter(|exec| exec.task() == saved.task) {
        let _ignored = exec.delete();
    }
    let _ignored = task_store::delete(saved.task);
}

/// Deletes files of commands that were killed while they wrote them.
fn delete_leftovers(dir: &Path, now: Timestamp) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_leftover = name.ends_with(".new")
            || name.starts_with(task_store::OPENING)
            || name.starts_with(files::PROBE);
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let modified = modified.ok().and_then(|at| {
            let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some(Timestamp::from_secs(i64::try_from(since.as_secs()).ok()?))
        });
        if is_leftover && modified.is_some_and(|at| now >= at.plus_secs(LEFTOVER_S)) {
            let _ignored = std::fs::remove_file(entry.path());
        }
    }
}

/// Most tasks that one command asks their brokers about.
const ASKED_MAX: usize = 16;
/// How long a command waits for those answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Age of a file that no command writes any more, in seconds.
const LEFTOVER_S: i64 = 86_400;
