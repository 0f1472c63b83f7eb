//! Connection peers: the client's address or user id, as the operating system reports it; never as the client claims it.

use std::net::{IpAddr, Ipv6Addr};

/// The client's end of a connection. Every request carries it as an extension: `request.extensions().get::<Peer>()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The client's address or user.
    pub source: PeerSource,
    /// Whether the connection is encrypted by this broker.
    pub tls: bool,
}

/// The source of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerSource {
    /// An address of the network.
    Ip(IpAddr),
    /// A process of this host, through the Unix socket.
    Unix {
        /// Its user id, as the kernel reports it.
        uid: u32,
    },
}

impl PeerSource {
    /// The key of limits per source. One client can hold a whole IPv6 /64, so a /64 counts as one; an IPv4 address in IPv6
    /// form counts as the IPv4 address.
    pub fn rate_limit_key(self) -> Self {
        match self {
            Self::Ip(address) => Self::Ip(match address.to_canonical() {
                IpAddr::V4(v4) => IpAddr::V4(v4),
                IpAddr::V6(v6) => {
                    IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)))
                }
            }),
            Self::Unix { uid } => Self::Unix { uid },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_64_is_one_source() {
        let key = |text: &str| PeerSource::Ip(text.parse().expect("address")).rate_limit_key();
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }
}
