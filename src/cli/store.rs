//! What is kept of a task between two commands: its key, where its broker is, and where its evidence comes from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::Common;
use super::dev::{self, Home};
use super::failure::{Failure, failed};
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
enum Origin {
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
pub(super) struct Kept {
    pub(super) task: TaskId,
    pub(super) agent: AgentId,
    pub(super) url: String,
    pub(super) key: PathBuf,
    pub(super) purpose: String,
    pub(super) deadline: Timestamp,
    evidence: Origin,
}

/// How long development evidence is good, in seconds: as long as a real one usually is.
const EVIDENCE_S: u32 = 300;
const LAST: &str = "last";
/// Where the SPIFFE agent of this machine listens (SPIFFE Workload Endpoint §4).
pub(super) const SPIFFE_SOCKET: &str = "SPIFFE_ENDPOINT_SOCKET";

impl EvidenceArgs {
    /// Whether any was named.
    pub(super) fn given(&self) -> bool {
        self.evidence.is_some()
            || self.agent.is_some()
            || self.workload_api.is_some()
            || self.spiffe_id.is_some()
    }

    /// The source, and what is kept of it.
    pub(super) fn source(
        &self,
        common: &Common,
    ) -> Result<(EvidenceSource, KeptEvidence), Failure> {
        let (source, origin) = match (&self.evidence, &self.agent) {
            (Some(file), _) if file == Path::new("-") => (
                EvidenceSource::Fixed(Secret::new(dev::read_text(file)?)),
                Origin::Once,
            ),
            (Some(file), _) => {
                let file = file.canonicalize().map_err(failed(file.display()))?;
                (EvidenceSource::File(file.clone()), Origin::File(file))
            }
            (None, Some(agent)) => {
                let home = Home::of(common)?;
                let origin = Origin::Development {
                    agent: agent.clone(),
                    dir: home.dir().to_owned(),
                };
                (development(home, agent)?, origin)
            }
            (None, None) => self.workload_api(common)?,
        };
        Ok((source, KeptEvidence(origin)))
    }

    fn workload_api(&self, common: &Common) -> Result<(EvidenceSource, Origin), Failure> {
        let set = || std::env::var(SPIFFE_SOCKET).ok().filter(|v| !v.is_empty());
        let address = self.workload_api.clone().or_else(set).ok_or_else(|| {
            Failure::usage(
                "gate 1 asks what you are: --evidence FILE, --workload-api unix:///PATH, or --agent ID in development",
            )
        })?;
        let audience = match &self.evidence_audience {
            Some(audience) => audience.clone(),
            None => super::net::endpoint(common)?.url().to_owned(),
        };
        let api = WorkloadApi::new(&address, &audience, self.spiffe_id.clone())?;
        let origin = Origin::WorkloadApi {
            address: api.address().to_owned(),
            audience,
            spiffe_id: self.spiffe_id.clone(),
        };
        Ok((EvidenceSource::WorkloadApi(api), origin))
    }
}

/// Where a task's evidence comes from, for [`Kept::new`].
pub(super) struct KeptEvidence(Origin);

fn development(home: Home, agent: &AgentId) -> Result<EvidenceSource, Failure> {
    let subject = home.spiffe_id(agent)?;
    Ok(EvidenceSource::Fn(Arc::new(move || {
        home.evidence(&subject, EVIDENCE_S, Clock::system().now())
            .map_err(|failure| failure.message)
    })))
}

/// `$XDG_STATE_HOME/dipylon/tasks`, or the same below `~/.local/state`.
fn dir() -> Result<PathBuf, Failure> {
    Ok(state_dir()?.join("tasks"))
}

/// What is kept between two commands: `$XDG_STATE_HOME/dipylon`, or the same below `~/.local/state`.
pub(super) fn state_dir() -> Result<PathBuf, Failure> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let state = set("XDG_STATE_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| set("HOME").map(|h| h.join(".local/state")));
    let state =
        state.ok_or_else(|| Failure::usage("HOME is not set; name a key file with --key"))?;
    Ok(state.join("dipylon"))
}

/// Keeps a key that was made for a task before anything was written, under the task's name.
pub(super) fn keep_key(task: TaskId, pkcs8: &[u8]) -> Result<PathBuf, Failure> {
    let dir = dir()?;
    keys::make_private_dir(&dir)?;
    let path = dir.join(format!("{task}.pem"));
    dev::write_private(&path, &SigningKey::to_pem(pkcs8))?;
    Ok(path)
}

/// A key for a task that is about to be opened: the file given, or one that [`Kept::keep`] names after the task.
pub(super) fn new_key(given: Option<&Path>) -> Result<(Arc<SigningKey>, PathBuf), Failure> {
    let path = match given {
        Some(path) if path.exists() => {
            return Ok((
                Arc::new(keys::read(path)?),
                path.canonicalize().map_err(failed(path.display()))?,
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
        path.canonicalize().map_err(failed(path.display()))?,
    ))
}

/// Forgets a key whose task was not opened.
pub(super) fn drop_key(given: Option<&Path>, made: &Path) {
    if given.is_none() {
        let _gone = std::fs::remove_file(made);
    }
}

impl Kept {
    /// What to keep of a task that was just opened.
    pub(super) fn new(
        task: &TaskHandle,
        url: &str,
        key: PathBuf,
        purpose: &str,
        evidence: KeptEvidence,
    ) -> Result<Self, Failure> {
        let (Some(agent), Some(deadline)) = (task.agent_id(), task.deadline()) else {
            return Err(Failure::failed("the task was not opened here"));
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
    pub(super) fn keep(mut self, key_given: bool) -> Result<Self, Failure> {
        let dir = dir()?;
        keys::make_private_dir(&dir)?;
        if !key_given {
            let named = dir.join(format!("{}.pem", self.task));
            std::fs::rename(&self.key, &named).map_err(failed(named.display()))?;
            self.key = named;
        }
        self.keep_aside()?;
        dev::write_private(&dir.join(LAST), &self.task.to_string())?;
        Ok(self)
    }

    /// Keeps it, its key being kept already, and leaves the last one the last.
    pub(super) fn keep_aside(&self) -> Result<(), Failure> {
        let dir = dir()?;
        keys::make_private_dir(&dir)?;
        let text = json::canonical_of(self).map_err(|e| Failure::failed(e.to_string()))?;
        dev::write_private(&dir.join(format!("{}.json", self.task)), &text)
    }

    /// Finds a task by its id, or the one opened last.
    pub(super) fn find(task: Option<TaskId>) -> Result<Self, Failure> {
        let dir = dir()?;
        let task = match task {
            Some(task) => task,
            None => std::fs::read_to_string(dir.join(LAST))
                .ok()
                .and_then(|text| TaskId::parse(text.trim()).ok())
                .ok_or_else(|| {
                    Failure::usage("no task was opened from here")
                        .next("'dipylon task open' opens one; --task names another")
                })?,
        };
        let path = dir.join(format!("{task}.json"));
        let text = std::fs::read(&path).map_err(|_| {
            Failure::usage(format!("{task} is not open here: it was completed, or opened elsewhere (no key of it in {})", dir.display()))
                .next("'dipylon task open' opens one, 'dipylon task show' lists those that are; --task names another")
        })?;
        json::parse_as(&text).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
    }

    /// All that are kept, by id.
    pub(super) fn all() -> Result<Vec<Self>, Failure> {
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
        ids.into_iter().map(|id| Self::find(Some(id))).collect()
    }

    /// Takes the task up again.
    pub(super) fn attach(&self, common: &Common, evidence: &EvidenceArgs) -> Result<TaskHandle, Failure> {
        let source = if evidence.given() {
            evidence.source(common)?.0
        } else {
            self.evidence.source()?
        };
        let url = common.url.as_deref().unwrap_or(&self.url);
        let key = Arc::new(keys::read(&self.key)?);
        Ok(TaskHandle::attach(
            Endpoint::connect_with(url, &super::net::reach(common))?,
            source,
            self.task,
            key,
        ))
    }

    /// Forgets it and, where it was made here, its key.
    pub(super) fn forget(&self) {
        let Ok(dir) = dir() else { return };
        let _gone = std::fs::remove_file(dir.join(format!("{}.json", self.task)));
        let named = dir.join(format!("{}.pem", self.task));
        let _gone = std::fs::remove_file(named);
    }
}

impl Origin {
    fn source(&self) -> Result<EvidenceSource, Failure> {
        Ok(match self {
            Self::File(file) => EvidenceSource::File(file.clone()),
            Self::WorkloadApi {
                address,
                audience,
                spiffe_id,
            } => {
                EvidenceSource::WorkloadApi(WorkloadApi::new(address, audience, spiffe_id.clone())?)
            }
            Self::Development { agent, dir } => development(Home::read(dir)?, agent)?,
            Self::Once => EvidenceSource::Fn(Arc::new(|| {
                Err("it came from stdin when the task was opened and was not kept; show it again with --evidence".to_owned())
            })),
        })
    }
}

/// A task by its key file, for those who keep keys themselves.
pub(super) fn attach_by_key(
    common: &Common,
    task: TaskId,
    key: &Path,
    evidence: &EvidenceArgs,
) -> Result<TaskHandle, Failure> {
    let source = if evidence.given() {
        evidence.source(common)?.0
    } else {
        Origin::Once.source()?
    };
    Ok(TaskHandle::attach(
        super::net::endpoint(common)?,
        source,
        task,
        Arc::new(keys::read(key)?),
    ))
}
