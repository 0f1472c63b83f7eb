//! Token delivery: a loopback proxy, a signer socket, or the token itself in a file or pipe.
//! Never: hands over the key that the token is bound to.

use std::ffi::{OsStr, OsString};
use std::io::{PipeReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use clap::ValueEnum;
use hyper::header::HeaderName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::peer;
use super::program::PrivateDir;
use super::proxy::Proxy;
use super::signer;
use super::token_holder::TokenHolder;
use crate::cli::error::{CliError, io_error};
use crate::cli::files;
use crate::cli::task_store::{SPIFFE_SOCKET, TASK_SELECTOR};
use crate::client::random_name;
use crate::model::Secret;

/// How the command uses the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DeliveryMode {
    /// A proxy on loopback: DIPYLON_PROXY_URL. The command never sees the token
    Proxy,
    /// A signer on a unix socket: DIPYLON_SIGNER_SOCKET. The command sees the token, never its key
    Socket,
    /// The token and the signer's socket as JSON, in a pipe: DIPYLON_TOKEN_FD
    Fd,
    /// The same JSON in a file that is removed when the command ends: DIPYLON_TOKEN_FILE
    File,
    /// In the environment: refused, since every token is bound to a key
    Env,
}

/// A running delivery; dropping it withdraws the token.
pub(super) struct Delivery {
    environment: Vec<(&'static str, OsString)>,
    pipe: Option<PipeReader>,
    servers: Vec<JoinHandle<()>>,
    _dir: Option<PrivateDir>,
}

/// Variables removed from the command's environment: those of an outer `exec`, the caller's own task and key, and the address of
/// the SPIFFE agent, whose evidence would let the command act as the agent.
pub(super) const RESERVED_ENV: [&str; 9] = [
    PROXY_URL,
    SIGNER_SOCKET,
    TOKEN_FD,
    TOKEN_FILE,
    OPENINGS_FILE,
    TASK,
    TASK_SELECTOR,
    "DIPYLON_KEY",
    SPIFFE_SOCKET,
];
const PROXY_URL: &str = "DIPYLON_PROXY_URL";
const SIGNER_SOCKET: &str = "DIPYLON_SIGNER_SOCKET";
const TOKEN_FD: &str = "DIPYLON_TOKEN_FD";
const TOKEN_FILE: &str = "DIPYLON_TOKEN_FILE";
/// The salts of sensitive parameters: the resource server needs them to check the values.
const OPENINGS_FILE: &str = "DIPYLON_OPENINGS_FILE";
/// Not the variable that selects the caller's task for other commands: they would act in this one.
const TASK: &str = "DIPYLON_EXEC_TASK";
/// Hosts that are reached without the proxy of the environment: programs read one or the other.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
const LOOPBACK: [&str; 3] = ["127.0.0.1", "localhost", "::1"];

impl Delivery {
    /// Starts the proxy or signer and prepares the environment; `forward` are additional headers for the proxy to pass.
    pub(super) async fn start(
        mode: DeliveryMode,
        holder: &Arc<TokenHolder>,
        task: &str,
        forward: &[HeaderName],
    ) -> Result<Self, CliError> {
        let mut delivery = Self {
            environment: vec![(TASK, task.into())],
            pipe: None,
            servers: Vec::new(),
            _dir: None,
        };
        let openings = holder.token.openings();
        match mode {
            DeliveryMode::Proxy => {
                delivery.proxy(holder, forward).await?;
                if !openings.is_empty() {
                    let dir = PrivateDir::make()?;
                    let file = dir.join("openings.json");
                    files::write_private(&file, &json!(openings).to_string())?;
                    delivery.environment.push((OPENINGS_FILE, file.into()));
                    delivery._dir = Some(dir);
                }
            }
            DeliveryMode::Socket | DeliveryMode::Fd | DeliveryMode::File => {
                delivery.signer(mode, holder)?
            }
            DeliveryMode::Env => return Err(not_bearer()),
        }
        Ok(delivery)
    }

    async fn proxy(
        &mut self,
        holder: &Arc<TokenHolder>,
        forward: &[HeaderName],
    ) -> Result<(), CliError> {
        peer::check_supported()?;
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .map_err(io_error("listen"))?;
        let port = listener.local_addr().map_err(io_error("listen"))?.port();
        // Any local user can connect to the port, and read the path if a command shows it in its arguments: connections of
        // other users are refused by uid. The secret path keeps out this user's processes that do not know it.
        let capability = Secret::new(random_name()?);
        let url = format!("http://127.0.0.1:{port}/{}", capability.expose_secret());
        let proxy = Proxy::new(&capability, holder.clone(), forward);
        self.servers.push(tokio::spawn(proxy.serve(listener)));
        self.environment.push((PROXY_URL, url.into()));
        // A proxy of the environment would get the secret path and the bodies, and could not reach this one.
        let [upper, lower] = NO_PROXY.map(std::env::var_os);
        for (name, own, other) in [(NO_PROXY[0], &upper, &lower), (NO_PROXY[1], &lower, &upper)] {
            let list = own.as_deref().or(other.as_deref()).unwrap_or_default();
            self.environment.push((name, with_loopback(list)));
        }
        Ok(())
    }

    fn signer(&mut self, mode: DeliveryMode, holder: &Arc<TokenHolder>) -> Result<(), CliError> {
        let dir = PrivateDir::make()?;
        let socket = dir.join("signer.sock");
        let listener = signer::listen(&socket)?;
        self.servers
            .push(tokio::spawn(signer::serve(listener, holder.clone())));
        let document = document(holder, &socket.to_string_lossy()).to_string();
        match mode {
            DeliveryMode::File => {
                let file = dir.join("token.json");
                files::write_private(&file, &document)?;
                self.environment.push((TOKEN_FILE, file.into()));
            }
            DeliveryMode::Fd => {
                let (reader, mut writer) = std::io::pipe().map_err(io_error("pipe"))?;
                // In a thread of its own: a document longer than the pipe's buffer waits for the command to read. It fails
                // when the command closes the pipe or ends.
                std::thread::Builder::new()
                    .name("token-pipe".to_owned())
                    .spawn(move || {
                        let _closed = writer.write_all(document.as_bytes());
                    })
                    .map_err(io_error("pipe"))?;
                // The one descriptor that the command inherits.
                rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::empty())
                    .map_err(|e| io_error("pipe")(e.into()))?;
                let number = reader.as_raw_fd().to_string();
                self.environment.push((TOKEN_FD, number.into()));
                self.pipe = Some(reader);
            }
            DeliveryMode::Socket | DeliveryMode::Proxy | DeliveryMode::Env => {}
        }
        self.environment.push((SIGNER_SOCKET, socket.into()));
        self._dir = Some(dir);
        Ok(())
    }

    /// The variables to set for the command.
    pub(super) fn environment(&self) -> &[(&'static str, OsString)] {
        &self.environment
    }

    /// The descriptor the command inherits: close it once the command runs.
    pub(super) fn pipe(&mut self) -> Option<PipeReader> {
        self.pipe.take()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

/// The error for `--deliver env`.
pub(super) fn not_bearer() -> CliError {
    CliError::usage(
        "--deliver env is not supported: every token is bound to its task's key, so a command cannot use it from the environment",
    )
    .with_next_step("use --deliver proxy (the command never sees the token) or --deliver socket (a signer for one audience)")
}

/// A `NO_PROXY` list that also names this host. `*` alone already excludes every host.
fn with_loopback(list: &OsStr) -> OsString {
    let text = list.to_string_lossy();
    let names = || text.split(',').map(str::trim);
    if text.trim() == "*" {
        return list.to_owned();
    }
    let mut merged = list.to_owned();
    for host in LOOPBACK {
        if !names().any(|name| name.eq_ignore_ascii_case(host)) {
            if !merged.is_empty() {
                merged.push(",");
            }
            merged.push(host);
        }
    }
    merged
}

/// The token and its metadata, for commands that send it themselves.
fn document(holder: &TokenHolder, socket: &str) -> Value {
    let token = &holder.token;
    let action = token.action().to_json();
    json!({
        "token": token.jwt().expose_secret(),
        "token_type": "DPoP",
        "jti": token.jti(),
        "jkt": token.jkt().to_string(),
        "expires_at": token.expires_at().to_string(),
        "uses": token.uses(),
        "action": action,
        "audience_url": holder.upstream.base_url(),
        "openings": token.openings(),
        "signer_socket": socket,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_gains_loopback_once() {
        for (list, merged) in [
            ("", "127.0.0.1,localhost,::1"),
            ("corp.example", "corp.example,127.0.0.1,localhost,::1"),
            ("LOCALHOST, ::1", "LOCALHOST, ::1,127.0.0.1"),
            ("127.0.0.1,localhost,::1", "127.0.0.1,localhost,::1"),
            ("*", "*"),
        ] {
            assert_eq!(with_loopback(OsStr::new(list)), merged, "{list}");
        }
    }
}
