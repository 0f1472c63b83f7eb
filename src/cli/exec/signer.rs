//! The signer: a Unix socket for commands that make their own requests, one JSON line in and one out. The command gets the
//! token; the key it is bound to never leaves this process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::token_holder::TokenHolder;
use crate::cli::error::{CliError, io_error};
use crate::jose::dpop::NONCE_BYTES_MAX;
use crate::model::json;

/// A request for the headers of one HTTP request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignRequest {
    /// The method, as it will be sent.
    htm: String,
    /// The URL, without query and fragment.
    htu: String,
    /// The latest nonce of the resource server.
    nonce: Option<String>,
}

/// Listens at a path in a private directory.
pub(super) fn listen(path: &Path) -> Result<UnixListener, CliError> {
    use std::os::unix::fs::PermissionsExt as _;
    let listener = UnixListener::bind(path).map_err(io_error(path.display()))?;
    // The directory keeps other users out already.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(io_error(path.display()))?;
    Ok(listener)
}

/// Signs until dropped.
pub(super) async fn serve(listener: UnixListener, holder: Arc<TokenHolder>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    while let Ok(slot) = slots.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            continue;
        };
        let holder = holder.clone();
        connections.spawn(async move {
            let _slot = slot;
            // The command may close the connection at any time.
            let _ignored = answer(stream, &holder).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: UnixStream, holder: &TokenHolder) -> std::io::Result<()> {
    let own_uid = rustix::process::geteuid().as_raw();
    if stream.peer_cred()?.uid() != own_uid {
        return Ok(());
    }
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(LINE_BYTES_MAX);
        let reading = bounded.read_until(b'\n', &mut line);
        let Ok(read) = tokio::time::timeout(Duration::from_secs(IDLE_S), reading).await else {
            return Ok(());
        };
        if read? == 0 {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        let reply = if complete {
            sign(&line, holder).unwrap_or_else(
                |(reason, message)| json!({ "error": { "reason": reason, "message": message } }),
            )
        } else {
            json!({ "error": { "reason": "MALFORMED", "message": "expected one line of at most 8192 bytes" } })
        };
        write.write_all(format!("{reply}\n").as_bytes()).await?;
        if !complete {
            return Ok(());
        }
    }
}

fn sign(line: &[u8], holder: &TokenHolder) -> Result<Value, (&'static str, String)> {
    let request: SignRequest = json::parse_as(line).map_err(|_| {
        (
            "MALFORMED",
            "expected {\"htm\":…,\"htu\":…} with an optional \"nonce\"".to_owned(),
        )
    })?;
    let path = holder
        .upstream
        .path_below_base(&request.htu)
        .filter(|path| !path.contains(['?', '#']));
    let path = path.ok_or_else(|| {
        (
            "OTHER_AUDIENCE",
            format!(
                "`htu` must be below {} and have no query",
                holder.upstream.base_url()
            ),
        )
    })?;
    let method = (1..=METHOD_BYTES_MAX).contains(&request.htm.len())
        && request
            .htm
            .bytes()
            .all(|b| b.is_ascii_alphabetic() || b == b'-');
    let nonce = request.nonce.as_ref().is_none_or(|nonce| {
        (1..=NONCE_BYTES_MAX).contains(&nonce.len()) && nonce.bytes().all(|b| b.is_ascii_graphic())
    });
    if !method || !nonce {
        return Err(("MALFORMED", "`htm` or `nonce` is malformed".to_owned()));
    }
    holder
        .check_available()
        .map_err(|error| (error.reason(), error.to_string()))?;
    let headers = holder
        .headers_with(&request.htm, path, request.nonce.as_deref())
        .map_err(|error| ("PROOF", error.to_string()))?;
    Ok(
        json!({ "authorization": headers.authorization.expose_secret(), "dpop": headers.dpop.expose_secret() }),
    )
}

const CONNECTIONS_MAX: usize = 16;
/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 8_192;
const METHOD_BYTES_MAX: usize = 32;
/// Idle time after which a connection is closed.
const IDLE_S: u64 = 300;
const ACCEPT_PAUSE_MS: u64 = 100;
