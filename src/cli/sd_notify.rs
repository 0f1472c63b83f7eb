//! Service manager notification: sd_notify(3), one datagram for each state, none without `NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The broker answers calls.
pub(super) const READY: &str = "READY=1";
/// The broker finishes calls in flight and accepts no new ones.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Sends one state; a failure is only logged.
pub(super) fn send(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return;
    };
    let address = match name.as_bytes().strip_prefix(b"@") {
        // An abstract socket name (Linux), without a file.
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::debug!(%error, state, "sd_notify failed");
    }
}
