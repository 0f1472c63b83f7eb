//! Child processes of the demo: one JSON value per line in each direction, over their pipes.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child as Process, ChildStdin, ChildStdout, Command};

use crate::cli::error::{CliError, io_error};

/// A running child. Dropping it kills it.
pub(super) struct Child {
    name: &'static str,
    process: Process,
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    /// The first line: sent when the child is ready.
    pub(super) ready: Value,
}

/// Longest time for a child to start or to reply, in seconds: more than the longest wait of an instruction.
const REPLY_S: u64 = 30;
/// Longest time for a child to end after its stdin is closed, in seconds.
const END_S: u64 = 7;

impl Child {
    /// Starts this program with these arguments and waits for its first line. Its stderr goes to a file.
    pub(super) async fn start(
        name: &'static str,
        args: &[&str],
        log: &Path,
    ) -> Result<Self, CliError> {
        let program = std::env::current_exe().map_err(io_error("own executable"))?;
        let log_file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(io_error(log.display()))?;
        let mut process = Command::new(program)
            .args(args)
            // The caller's own settings must not change the scenario.
            .env_remove("DIPYLON_URL")
            .env_remove("DIPYLON_DEV")
            .env_remove("DIPYLON_KEY")
            .env_remove("DIPYLON_REALM")
            .env_remove("DIPYLON_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            // Ctrl-C is for the parent, which ends its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(io_error(name))?;
        let stdin = process.stdin.take();
        let stdout = process
            .stdout
            .take()
            .ok_or_else(|| CliError::failed(format!("{name}: no stdout")))?;
        let mut child = Self {
            name,
            process,
            stdin,
            stdout: BufReader::new(stdout).lines(),
            ready: Value::Null,
        };
        child.ready = child.line().await.map_err(|error| {
            let stderr = std::fs::read_to_string(log).unwrap_or_default();
            CliError::failed(format!(
                "{}\n{}",
                error.message,
                crate::model::text::escape_invisible(stderr.trim()).replace("<U+000A>", "\n")
            ))
        })?;
        Ok(child)
    }

    /// The process id.
    pub(super) fn pid(&self) -> u64 {
        self.ready
            .get("pid")
            .and_then(Value::as_u64)
            .unwrap_or_default()
    }

    /// Sends an instruction and waits for the reply.
    pub(super) async fn call(
        &mut self,
        instruction: &impl Serialize,
    ) -> Result<ChildReply, CliError> {
        self.send(instruction).await?;
        self.reply().await
    }

    /// Sends an instruction; [`Child::reply`] receives the reply.
    pub(super) async fn send(&mut self, instruction: &impl Serialize) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(instruction)
            .map_err(|e| CliError::failed(format!("{}: {e}", self.name)))?;
        line.push(b'\n');
        let stdin = self
            .stdin
            .as_mut()
            .ok_or_else(|| CliError::failed(format!("{}: has no stdin", self.name)))?;
        stdin.write_all(&line).await.map_err(io_error(self.name))?;
        stdin.flush().await.map_err(io_error(self.name))
    }

    /// The reply to the oldest instruction without one.
    pub(super) async fn reply(&mut self) -> Result<ChildReply, CliError> {
        Ok(ChildReply(self.line().await?))
    }

    async fn line(&mut self) -> Result<Value, CliError> {
        let line =
            tokio::time::timeout(Duration::from_secs(REPLY_S), self.stdout.next_line()).await;
        let line = line
            .map_err(|_| CliError::failed(format!("{}: no reply within {REPLY_S} s", self.name)))?;
        let line = line
            .map_err(io_error(self.name))?
            .ok_or_else(|| CliError::failed(format!("{}: ended without a reply", self.name)))?;
        serde_json::from_str(&line).map_err(|e| CliError::failed(format!("{}: {e}", self.name)))
    }

    /// Kills the child with SIGKILL.
    pub(super) async fn kill(&mut self) -> Result<(), CliError> {
        self.process.kill().await.map_err(io_error(self.name))
    }

    /// Closes stdin and waits for the child to end; kills it if it does not.
    pub(super) async fn end(mut self) -> Result<(), CliError> {
        drop(self.stdin.take());
        match tokio::time::timeout(Duration::from_secs(END_S), self.process.wait()).await {
            Ok(ended) => ended.map(|_| ()).map_err(io_error(self.name)),
            Err(_) => {
                self.process.kill().await.map_err(io_error(self.name))?;
                Err(CliError::failed(format!(
                    "{}: did not end after its stdin was closed",
                    self.name
                )))
            }
        }
    }
}

/// The reply to an instruction.
#[derive(Debug)]
pub(super) struct ChildReply(Value);

impl ChildReply {
    /// A member of the reply as text; empty if it is missing.
    pub(super) fn text(&self, name: &str) -> String {
        match self.0.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(
                other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)),
            ) => other.to_string(),
        }
    }

    pub(super) fn number(&self, name: &str) -> u64 {
        self.0.get(name).and_then(Value::as_u64).unwrap_or(u64::MAX)
    }

    /// The error's reason, or else the outcome.
    pub(super) fn outcome(&self) -> String {
        let error = self.0.get("error");
        let reason = error.and_then(|e| e.get("reason").or_else(|| e.get("message")));
        reason
            .and_then(Value::as_str)
            .map_or_else(|| self.text("outcome"), str::to_owned)
    }

    /// The error's message; empty if there is none.
    pub(super) fn message(&self) -> String {
        self.0
            .pointer("/error/message")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }

    pub(super) fn value(&self) -> &Value {
        &self.0
    }
}

/// The child's side: prints its ready line, then one reply per instruction until stdin ends.
pub(super) async fn serve<I, F>(
    mut ready: Value,
    instructions: impl AsyncRead + Unpin,
    mut act: F,
) -> Result<ExitCode, CliError>
where
    I: DeserializeOwned,
    F: AsyncFnMut(I) -> Result<Value, CliError>,
{
    if let Some(members) = ready.as_object_mut() {
        members.insert("pid".to_owned(), json!(std::process::id()));
    }
    let mut stdout = tokio::io::stdout();
    let mut lines = BufReader::new(instructions).lines();
    let mut next = ready;
    loop {
        let text = format!("{next}\n");
        stdout
            .write_all(text.as_bytes())
            .await
            .map_err(io_error("stdout"))?;
        stdout.flush().await.map_err(io_error("stdout"))?;
        let Some(line) = lines.next_line().await.map_err(io_error("stdin"))? else {
            return Ok(ExitCode::SUCCESS);
        };
        next = match serde_json::from_str(&line) {
            Ok(instruction) => act(instruction)
                .await
                .unwrap_or_else(|error| error.to_json()),
            Err(error) => CliError::usage(error.to_string()).to_json(),
        };
    }
}
