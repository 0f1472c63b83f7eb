//! Saved tasks: the key, broker URL and source of evidence of each task opened from this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::dev::DevConfig;
use super::error::{CliError, io_error};
use super::exec::EXECS;
use super::{Common, connect, files};
use crate::client::{Endpoint, EvidenceSource, TaskHandle, TaskStatus, WorkloadApi, random_name};
use crate::clock::Clock;
use crate::jose::SigningKey;
use crate::keys;
use crate::model::text::escape_invisible;
use crate::model::{AgentId, Secret, SpiffeId, TaskId, Timestamp, json};

/// The source of evidence.
#[derive(Debug, Clone, Args)]
pub(super) struct EvidenceArgs {
    /// A file with the JWT-SVID, read again for every call that sends it; - reads it from stdin, once
    #[arg(long, value_name = "FILE", conflicts_with = "agent")]
    evidence: Option<PathBuf>,
    /// In development: sign a JWT-SVID for this registered agent
    #[arg(long, value_name = "ID", value_parser = AgentId::parse)]
    agent: Option<AgentId>,
    /// Fetch the JWT-SVID from this SPIFFE Workload API [default: SPIFFE_ENDPOINT_SOCKET, without --evidence or --agent]
    #[arg(long, value_name = "unix:///PATH", conflicts_with_all = ["evidence", "agent"])]
    workload_api: Option<String>,
    /// The SPIFFE ID to request from the Workload API, if the workload has several
    #[arg(long, value_name = "SPIFFE_ID", value_parser = SpiffeId::parse, conflicts_with_all = ["evidence", "agent"])]
    spiffe_id: Option<SpiffeId>,
    /// The audience of the JWT-SVID, if the broker's evidence audience is not its URL
    #[arg(long, value_name = "AUDIENCE", conflicts_with_all = ["evidence", "agent"])]
    evidence_audience: Option<String>,
}

/// The source of evidence as it is saved. Never the evidence itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum EvidenceOrigin {
    File(PathBuf),
    Development {
        agent: AgentId,
        dir: PathBuf,
    },
    WorkloadApi {
        address: String,
        audience: String,
        spiffe_id: Option<SpiffeId>,
    },
    Once,
}

/// A task opened from this machine. It stays for a while after its end, so that a repeated 'task complete' can say how it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedTask {
    pub(super) task: TaskId,
    pub(super) agent: AgentId,
    pub(super) url: String,
    pub(super) key: PathBuf,
    pub(super) purpose: String,
    pub(super) deadline: Timestamp,
    opened_at: Timestamp,
    /// Where 'task open' ran: the task is the agent's current one there. None for a task of 'exec'.
    directory: Option<PathBuf>,
    /// When it ended, once this machine knows.
    ended_at: Option<Timestamp>,
    evidence: EvidenceOrigin,
}

/// Lifetime of development evidence in seconds: that of a usual JWT-SVID.
const DEV_SVID_TTL_S: u32 = 300;
/// How long an ended task stays saved, in seconds.
const KEEP_ENDED_S: i64 = 3_600;
/// How long after its deadline a task stays saved whose broker does not say that it ended, in seconds: longer than a clock is
/// wrong by accident.
const KEEP_UNKNOWN_S: i64 = 7 * 86_400;
/// How the name of a key file begins whose task is being opened.
pub(super) const OPENING: &str = "opening-";
/// The variable with the address of this machine's SPIFFE agent (SPIFFE Workload Endpoint §4).
pub(super) const SPIFFE_SOCKET: &str = "SPIFFE_ENDPOINT_SOCKET";
/// The variable that selects a task, as `--task` does.
pub(super) const TASK_SELECTOR: &str = "DIPYLON_TASK";

impl EvidenceArgs {
    /// Whether a source was given.
    pub(super) fn is_given(&self) -> bool {
        self.evidence.is_some()
            || self.agent.is_some()
            || self.workload_api.is_some()
            || self.spiffe_id.is_some()
    }

    /// The development agent, if one was given.
    pub(super) fn agent(&self) -> Option<&AgentId> {
        self.agent.as_ref()
    }

    /// The source, and its form for saving.
    pub(super) fn source(
        &self,
        common: &Common,
    ) -> Result<(EvidenceSource, SavedEvidence), CliError> {
        let (source, origin) = match (&self.evidence, &self.agent) {
            (Some(file), _) if file == Path::new("-") => (
                EvidenceSource::Fixed(Secret::new(files::read_text(file)?)),
                EvidenceOrigin::Once,
            ),
            (Some(file), _) => {
                let file = file.canonicalize().map_err(io_error(file.display()))?;
                (
                    EvidenceSource::File(file.clone()),
                    EvidenceOrigin::File(file),
                )
            }
            (None, Some(agent)) => {
                let dev_config = DevConfig::load(common)?;
                let origin = EvidenceOrigin::Development {
                    agent: agent.clone(),
                    dir: dev_config.dir().to_owned(),
                };
                (development(dev_config, agent)?, origin)
            }
            (None, None) => self.workload_api(common)?,
        };
        Ok((source, SavedEvidence(origin)))
    }

    fn workload_api(&self, common: &Common) -> Result<(EvidenceSource, EvidenceOrigin), CliError> {
        let from_env = || std::env::var(SPIFFE_SOCKET).ok().filter(|v| !v.is_empty());
        let address = self.workload_api.clone().or_else(from_env).ok_or_else(|| {
            CliError::usage(
                "no source of evidence given, and the broker must verify the workload's identity",
            )
            .with_next_step(
                "use --evidence FILE, --workload-api unix:///PATH, or --agent ID in development",
            )
        })?;
        let audience = match &self.evidence_audience {
            Some(audience) => audience.clone(),
            None => connect::endpoint(common)?.url().to_owned(),
        };
        let api = WorkloadApi::new(&address, &audience, self.spiffe_id.clone())?;
        let origin = EvidenceOrigin::WorkloadApi {
            address: api.address().to_owned(),
            audience,
            spiffe_id: self.spiffe_id.clone(),
        };
        Ok((EvidenceSource::WorkloadApi(api), origin))
    }
}

/// The source of a task's evidence, for [`SavedTask::new`].
pub(super) struct SavedEvidence(EvidenceOrigin);

fn development(dev_config: DevConfig, agent: &AgentId) -> Result<EvidenceSource, CliError> {
    let subject = dev_config.spiffe_id(agent)?;
    Ok(EvidenceSource::Fn(Arc::new(move || {
        dev_config
            .issue_svid(&subject, DEV_SVID_TTL_S, Clock::system().now())
            .map_err(|error| error.message)
    })))
}

/// `$XDG_STATE_HOME/dipylon/tasks`, or the same below `~/.local/state`.
fn dir() -> Result<PathBuf, CliError> {
    Ok(state_dir()?.join(TASKS))
}

/// Name of the directory below the state directory.
const TASKS: &str = "tasks";

/// The directory of state kept between commands: `$XDG_STATE_HOME/dipylon`, or the same below `~/.local/state`.
pub(super) fn state_dir() -> Result<PathBuf, CliError> {
    let from_env = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let state = from_env("XDG_STATE_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| from_env("HOME").map(|h| h.join(".local/state")));
    let state =
        state.ok_or_else(|| CliError::usage("HOME is not set: give a key file with --task-key"))?;
    Ok(state.join("dipylon"))
}

/// The directory whose current task a command means.
pub(super) fn current_dir() -> Result<PathBuf, CliError> {
    std::env::current_dir().map_err(io_error("current directory"))
}

/// The directories of saved state.
pub(super) fn directories() -> Vec<PathBuf> {
    let state = state_dir().ok();
    let below = |state: PathBuf| [TASKS, EXECS].map(|name| state.join(name));
    state.into_iter().flat_map(below).collect()
}

/// Refuses when a task could not be saved: before it is opened, which cannot be taken back.
pub(super) fn require_writable_state() -> Result<(), CliError> {
    files::require_writable(&dir()?)
}

/// Whether the task is saved, readable or not.
pub(super) fn is_saved(task: TaskId) -> bool {
    // A directory that cannot be read says nothing.
    dir().is_ok_and(|dir| {
        dir.join(format!("{task}.json"))
            .try_exists()
            .unwrap_or(true)
    })
}

/// Deletes a saved task and, if it was created here, its key.
pub(super) fn delete(task: TaskId) -> Result<(), CliError> {
    let dir = dir()?;
    files::remove(&dir.join(format!("{task}.pem")))?;
    files::remove(&dir.join(format!("{task}.json")))
}

/// The ids of all saved tasks, in their order.
fn saved_ids() -> Result<Vec<TaskId>, CliError> {
    let dir = dir()?;
    let found = match std::fs::read_dir(&dir) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(dir.display())(error)),
    };
    let mut ids: Vec<TaskId> = found
        .flatten()
        .filter_map(|f| {
            f.file_name()
                .to_str()
                .and_then(|n| n.strip_suffix(".json"))
                .and_then(|n| TaskId::parse(n).ok())
        })
        .collect();
    ids.sort();
    Ok(ids)
}

/// The saved tasks that can be read.
pub(super) fn load_readable() -> Vec<SavedTask> {
    let ids = saved_ids().unwrap_or_default().into_iter();
    ids.filter_map(|id| SavedTask::load(id).ok()).collect()
}

/// `task_… (agent triage, /home/a)`, for a message.
fn list(tasks: &[SavedTask]) -> String {
    let one = |saved: &SavedTask| {
        let directory = saved.directory.as_deref().unwrap_or(Path::new(""));
        format!(
            "{} (agent {}, {})",
            saved.task,
            saved.agent,
            escape_invisible(&directory.display().to_string())
        )
    };
    tasks.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Saves a key that was generated in memory, under the task's id.
pub(super) fn save_key(task: TaskId, pkcs8: &[u8]) -> Result<PathBuf, CliError> {
    let dir = dir()?;
    keys::make_private_dir(&dir)?;
    let path = dir.join(format!("{task}.pem"));
    files::write_private(&path, &SigningKey::to_pem(pkcs8))?;
    Ok(path)
}

/// The key for a task that is about to be opened: the given file, or a new one that [`SavedTask::save`] renames after the task.
pub(super) fn new_key(given: Option<&Path>) -> Result<(Arc<SigningKey>, PathBuf), CliError> {
    let path = match given {
        Some(path) if path.exists() => {
            return Ok((
                Arc::new(keys::read(path)?),
                path.canonicalize().map_err(io_error(path.display()))?,
            ));
        }
        Some(path) => path.to_owned(),
        None => {
            let dir = dir()?;
            keys::make_private_dir(&dir)?;
            dir.join(format!("{OPENING}{}.pem", random_name()?))
        }
    };
    let key = keys::create(&path)?;
    Ok((
        Arc::new(key),
        path.canonicalize().map_err(io_error(path.display()))?,
    ))
}

/// Deletes a generated key whose task was not opened.
pub(super) fn delete_unused_key(given: Option<&Path>, created: &Path) {
    if given.is_none() {
        let _ignored = std::fs::remove_file(created);
    }
}

impl SavedTask {
    /// The saved form of a task that was just opened.
    pub(super) fn new(
        task: &TaskHandle,
        url: &str,
        key: PathBuf,
        purpose: &str,
        evidence: SavedEvidence,
    ) -> Result<Self, CliError> {
        let (Some(agent), Some(deadline)) = (task.agent_id(), task.deadline()) else {
            return Err(CliError::failed("the task was not opened by this command"));
        };
        Ok(Self {
            task: task.id(),
            agent: agent.clone(),
            url: url.to_owned(),
            key,
            purpose: purpose.to_owned(),
            deadline,
            opened_at: Clock::system().now(),
            directory: None,
            ended_at: None,
            evidence: evidence.0,
        })
    }

    /// Saves the task as its agent's current one in this directory. A key that was created for it is renamed after the task.
    pub(super) fn save(&mut self, key_given: bool, directory: PathBuf) -> Result<(), CliError> {
        let dir = dir()?;
        if !key_given {
            let named = dir.join(format!("{}.pem", self.task));
            std::fs::rename(&self.key, &named).map_err(io_error(named.display()))?;
            self.key = named;
        }
        self.directory = Some(directory);
        self.save_without_current()
    }

    /// Saves the task without making it a current one; its key must be saved already.
    pub(super) fn save_without_current(&self) -> Result<(), CliError> {
        let dir = dir()?;
        keys::make_private_dir(&dir)?;
        let text = json::canonical_of(self).map_err(|e| CliError::failed(e.to_string()))?;
        files::write_private(&dir.join(format!("{}.json", self.task)), &text)
    }

    /// Loads a task by its id.
    pub(super) fn load(task: TaskId) -> Result<Self, CliError> {
        let dir = dir()?;
        let path = dir.join(format!("{task}.json"));
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CliError::usage(format!(
                "{task} is not saved in {}: it ended long ago, or was opened by another user or machine",
                dir.display()
            ))
            .with_next_step("list the saved tasks with 'dipylon task show', or give the task's key with --task-key"),
            _ => io_error(path.display())(error),
        })?;
        json::parse_as(&text).map_err(|error| {
            CliError::failed(format!("{}: {error}", path.display()))
                .with_next_step("another version of this program wrote it: delete the file")
        })
    }

    /// The current task of this directory: the one that its agent opened last here, whether it runs or has ended. With running
    /// tasks of several agents (or brokers) there is none: a command must not act in the task of another agent.
    pub(super) fn current(common: &Common, agent: Option<&AgentId>) -> Result<Self, CliError> {
        let directory = current_dir()?;
        let is_meant = |saved: &Self| {
            saved.directory.is_some()
                && agent.is_none_or(|agent| *agent == saved.agent)
                && common
                    .url
                    .as_ref()
                    .is_none_or(|url| connect::is_same_url(url, &saved.url))
        };
        let (mut here, elsewhere): (Vec<Self>, Vec<Self>) = Self::load_all()?
            .into_iter()
            .filter(is_meant)
            .partition(|saved| saved.directory.as_ref() == Some(&directory));
        here.sort_by_key(|saved| (saved.opened_at, saved.task));
        let is_of = |one: &Self, other: &Self| {
            one.agent == other.agent && connect::is_same_url(&one.url, &other.url)
        };
        // A task that has ended is not in the way of another agent's.
        let running = |saved: &&Self| saved.ended_at.is_none();
        let newest = match here.iter().rfind(running) {
            Some(running) => here.iter().rfind(|saved| is_of(saved, running)).cloned(),
            None => here.last().cloned(),
        };
        let Some(newest) = newest else {
            let error = CliError::usage(format!("no task was opened in {}", directory.display()));
            return Err(error.with_next_step(match elsewhere.as_slice() {
                [] => "open one with 'dipylon task open', or give one with --task and --task-key"
                    .to_owned(),
                others => format!("give one with --task or DIPYLON_TASK: {}", list(others)),
            }));
        };
        here.retain(|saved| saved.ended_at.is_none());
        if here.iter().all(|saved| is_of(saved, &newest)) {
            return Ok(newest);
        }
        Err(CliError::usage(format!(
            "several agents opened tasks in {}: it is not clear which one is meant",
            directory.display()
        ))
        .with_next_step(format!(
            "give one with --task or DIPYLON_TASK: {}",
            list(&here)
        )))
    }

    /// All saved tasks, ordered by id.
    pub(super) fn load_all() -> Result<Vec<Self>, CliError> {
        saved_ids()?.into_iter().map(Self::load).collect()
    }

    /// Whether the task is known to have ended, so long ago that no command is repeated for it.
    pub(super) fn is_expired_by(&self, now: Timestamp) -> bool {
        // A request of `exec` is not repeated once its task has ended.
        let keep_s = self.directory.as_ref().map_or(0, |_| KEEP_ENDED_S);
        self.ended_at
            .is_some_and(|ended_at| now >= ended_at.plus_secs(keep_s))
    }

    /// Whether its deadline is so long ago that no clock is wrong by that much.
    pub(super) fn is_abandoned_by(&self, now: Timestamp) -> bool {
        now >= self.deadline.plus_secs(KEEP_UNKNOWN_S)
    }

    /// Whether the broker is to be asked for its end: after its deadline, or always for a request of `exec`.
    pub(super) fn may_have_ended_by(&self, now: Timestamp, is_exec: bool) -> bool {
        self.ended_at.is_none() && (is_exec || now >= self.deadline)
    }

    /// Whether the broker says that the task has ended, and when.
    pub(super) async fn has_ended(&self, common: &Common) -> Option<Option<Timestamp>> {
        let status = self.status(common).await.ok()?;
        (!status.end_cause.is_empty()).then_some(status.ended_at)
    }

    /// Notes that the task has ended.
    pub(super) fn mark_ended(&mut self, at: Timestamp) -> Result<(), CliError> {
        if self.ended_at.is_some() {
            return Ok(());
        }
        self.ended_at = Some(at);
        self.save_without_current()
    }

    /// Where the task is the current one.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Asks the broker about the task, once.
    pub(super) async fn status(&self, common: &Common) -> Result<TaskStatus, CliError> {
        let endpoint = Endpoint::connect_with(&self.url, &connect::connect_options(common))?;
        let key = Arc::new(keys::read(&self.key)?);
        let no_evidence = EvidenceOrigin::Once.source()?;
        let task = TaskHandle::attach(endpoint.with_retry_ms(0), no_evidence, self.task, key);
        Ok(task.status().await?)
    }

    /// A handle to the saved task.
    pub(super) fn attach(
        &self,
        common: &Common,
        evidence: &EvidenceArgs,
    ) -> Result<TaskHandle, CliError> {
        let source = if evidence.is_given() {
            evidence.source(common)?.0
        } else {
            self.evidence.source()?
        };
        let url = common.url.as_deref().unwrap_or(&self.url);
        let key = Arc::new(keys::read(&self.key)?);
        Ok(TaskHandle::attach(
            Endpoint::connect_with(url, &connect::connect_options(common))?,
            source,
            self.task,
            key,
        ))
    }
}

impl EvidenceOrigin {
    fn source(&self) -> Result<EvidenceSource, CliError> {
        Ok(match self {
            Self::File(file) => EvidenceSource::File(file.clone()),
            Self::WorkloadApi {
                address,
                audience,
                spiffe_id,
            } => {
                EvidenceSource::WorkloadApi(WorkloadApi::new(address, audience, spiffe_id.clone())?)
            }
            Self::Development { agent, dir } => development(DevConfig::read(dir)?, agent)?,
            Self::Once => EvidenceSource::Fn(Arc::new(|| {
                Err("the evidence came from stdin when the task was opened and was not saved: give it again with --evidence".to_owned())
            })),
        })
    }
}

/// A handle to a task with a given key file.
pub(super) fn attach_with_key(
    common: &Common,
    task: TaskId,
    key: &Path,
    evidence: &EvidenceArgs,
) -> Result<TaskHandle, CliError> {
    let source = if evidence.is_given() {
        evidence.source(common)?.0
    } else {
        EvidenceOrigin::Once.source()?
    };
    Ok(TaskHandle::attach(
        connect::endpoint(common)?,
        source,
        task,
        Arc::new(keys::read(key)?),
    ))
}
