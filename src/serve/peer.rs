//! Where a call comes from: the other end of its connection, never what the call says of itself.

use std::net::IpAddr;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub source: Source,
    /// Whether the connection is encrypted by this process.
    pub tls: bool,
}

/// An address that the kernel, not the caller, vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A network address.
    Ip(IpAddr),
    /// A local process, by its user.
    Unix {
        /// The user id (`SO_PEERCRED`).
        uid: u32,
    },
}
