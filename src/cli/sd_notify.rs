//! Tells whoever supervises the broker how far it is: sd_notify(3), one datagram each, nothing without `NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Calls are answered.
pub(super) const READY: &str = "READY=1";
/// Calls in flight are finished, and no new ones taken.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Sends one state. A supervisor that does not listen is no reason to fail.
pub(super) fn send(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return;
    };
    let address = match name.as_bytes().strip_prefix(b"@") {
        // A name of Linux' own, without a file.
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::debug!(%error, state, "the supervisor was not told");
    }
}
