//! Tasks saved between commands: key, broker URL and source of evidence.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::dev::DevConfig;
use super::error::{CliError, io_error};
use super::{Common, files};
use crate::client::{Endpoint, EvidenceSource, TaskHandle, WorkloadApi};
use crate::clock::Clock;
use crate::jose::SigningKey;
use crate::keys;
use crate::model::{AgentId, Secret, SpiffeId, TaskId, Timestamp, json};

/// Where evidence comes from.
#[derive(Debug, Clone, Args)]
pub(super) struct EvidenceArgs {
    /// A file with the JWT-SVID, read again whenever it is shown; - reads it from stdin, once
    #[arg(long, value_name = "FILE", conflicts_with = "agent")]
    evidence: Option<PathBuf>,
    /// In development: sign evidence for this registered agent
    #[arg(long, value_name = "ID", value_parser = AgentId::parse)]
    agent: Option<AgentId>,
    /// The SPIFFE agent of this machine gives it [default: SPIFFE_ENDPOINT_SOCKET, unless the others are named]
    #[arg(long, value_name = "unix:///PATH", conflicts_with_all = ["evidence", "agent"])]
    workload_api: Option<String>,
    /// Which identity to ask the SPIFFE agent for, if the workload has several
    #[arg(long, value_name = "SPIFFE_ID", value_parser = SpiffeId::parse, conflicts_with_all = ["evidence", "agent"])]
    spiffe_id: Option<SpiffeId>,
    /// What the SPIFFE agent shall make it for, if the broker's evidence audience is not its URL
    #[arg(long, value_name = "AUDIENCE", conflicts_with_all = ["evidence", "agent"])]
    evidence_audience: Option<String>,
}

/// The same, as kept. Never the evidence itself.
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

/// A task opened from this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedTask {
    pub(super) task: TaskId,
    pub(super) agent: AgentId,
    pub(super) url: String,
    pub(super) key: PathBuf,
    pub(super) purpose: String,
    pub(super) deadline: Timestamp,
    evidence: EvidenceOrigin,
}

/// How long development evidence is good, in seconds: as long as a real one usually is.
const DEV_SVID_TTL_S: u32 = 300;
const CURRENT: &str = "last";
/// Where the SPIFFE agent of this machine listens (SPIFFE Workload Endpoint §4).
pub(super) const SPIFFE_SOCKET: &str = "SPIFFE_ENDPOINT_SOCKET";

impl EvidenceArgs {
    /// Whether any was named.
    pub(super) fn is_given(&self) -> bool {
        self.evidence.is_some()
            || self.agent.is_some()
            || self.workload_api.is_some()
            || self.spiffe_id.is_some()
    }

    /// The source, and what is kept of it.
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
                "gate 1 asks what you are: --evidence FILE, --workload-api unix:///PATH, or --agent ID in development",
            )
        })?;
        let audience = match &self.evidence_audience {
            Some(audience) => audience.clone(),
            None => super::connect::endpoint(common)?.url().to_owned(),
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

/// Where a task's evidence comes from, for [`SavedTask::new`].
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
    Ok(state_dir()?.join("tasks"))
}

/// What is kept between two commands: `$XDG_STATE_HOME/dipylon`, or the same below `~/.local/state`.
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
        state.ok_or_else(|| CliError::usage("HOME is not set; name a key file with --task-key"))?;
    Ok(state.join("dipylon"))
}

/// Keeps a key that was made for a task before anything was written, under the task's name.
pub(super) fn save_key(task: TaskId, pkcs8: &[u8]) -> Result<PathBuf, CliError> {
    let dir = dir()?;
    keys::make_private_dir(&dir)?;
    let path = dir.join(format!("{task}.pem"));
    files::write_private(&path, &SigningKey::to_pem(pkcs8))?;
    Ok(path)
}

/// A key for a task that is about to be opened: the file given, or one that [`SavedTask::keep`] names after the task.
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
            dir.join(format!("opening-{}.pem", std::process::id()))
        }
    };
    let key = keys::create(&path)?;
    Ok((
        Arc::new(key),
        path.canonicalize().map_err(io_error(path.display()))?,
    ))
}

/// Forgets a key whose task was not opened.
pub(super) fn delete_unused_key(given: Option<&Path>, made: &Path) {
    if given.is_none() {
        let _gone = std::fs::remove_file(made);
    }
}

impl SavedTask {
    /// What to keep of a task that was just opened.
    pub(super) fn new(
        task: &TaskHandle,
        url: &str,
        key: PathBuf,
        purpose: &str,
        evidence: SavedEvidence,
    ) -> Result<Self, CliError> {
        let (Some(agent), Some(deadline)) = (task.agent_id(), task.deadline()) else {
            return Err(CliError::failed("the task was not opened here"));
        };
        Ok(Self {
            task: task.id(),
            agent: agent.clone(),
            url: url.to_owned(),
            key,
            purpose: purpose.to_owned(),
            deadline,
            evidence: evidence.0,
        })
    }

    /// Keeps it, and as the last one. A key that was made for it gets the task's name.
    pub(super) fn save(mut self, key_given: bool) -> Result<Self, CliError> {
        let dir = dir()?;
        keys::make_private_dir(&dir)?;
        if !key_given {
            let named = dir.join(format!("{}.pem", self.task));
            std::fs::rename(&self.key, &named).map_err(io_error(named.display()))?;
            self.key = named;
        }
        self.save_without_current()?;
        files::write_private(&dir.join(CURRENT), &self.task.to_string())?;
        Ok(self)
    }

    /// Keeps it, its key being kept already, and leaves the last one the last.
    pub(super) fn save_without_current(&self) -> Result<(), CliError> {
        let dir = dir()?;
        keys::make_private_dir(&dir)?;
        let text = json::canonical_of(self).map_err(|e| CliError::failed(e.to_string()))?;
        files::write_private(&dir.join(format!("{}.json", self.task)), &text)
    }

    /// Finds a task by its id, or the one opened last.
    pub(super) fn load(task: Option<TaskId>) -> Result<Self, CliError> {
        let dir = dir()?;
        let task = match task {
            Some(task) => task,
            None => std::fs::read_to_string(dir.join(CURRENT))
                .ok()
                .and_then(|text| TaskId::parse(text.trim()).ok())
                .ok_or_else(|| {
                    CliError::usage("no task was opened from here")
                        .with_hint("'dipylon task open' opens one; --task names another")
                })?,
        };
        let path = dir.join(format!("{task}.json"));
        let text = std::fs::read(&path).map_err(|_| {
            CliError::usage(format!("{task} is not open here: it was completed, or opened elsewhere (no key of it in {})", dir.display()))
                .with_hint("'dipylon task open' opens one, 'dipylon task show' lists those that are; --task names another")
        })?;
        json::parse_as(&text).map_err(|e| CliError::failed(format!("{}: {e}", path.display())))
    }

    /// All that are kept, by id.
    pub(super) fn load_all() -> Result<Vec<Self>, CliError> {
        let dir = dir()?;
        let Ok(found) = std::fs::read_dir(&dir) else {
            return Ok(Vec::new());
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
        ids.into_iter().map(|id| Self::load(Some(id))).collect()
    }

    /// Takes the task up again.
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
            Endpoint::connect_with(url, &super::connect::connect_options(common))?,
            source,
            self.task,
            key,
        ))
    }

    /// Forgets it and, where it was made here, its key.
    pub(super) fn delete(&self) {
        let Ok(dir) = dir() else { return };
        let _gone = std::fs::remove_file(dir.join(format!("{}.json", self.task)));
        let named = dir.join(format!("{}.pem", self.task));
        let _gone = std::fs::remove_file(named);
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
                Err("it came from stdin when the task was opened and was not kept; show it again with --evidence".to_owned())
            })),
        })
    }
}

/// A task by its key file, for those who keep keys themselves.
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
        super::connect::endpoint(common)?,
        source,
        task,
        Arc::new(keys::read(key)?),
    ))
}
