//! Who is at the other end of a connection, as the operating system says it: never as the caller does.

use std::net::{IpAddr, Ipv6Addr};

/// The other end of a connection. Every request carries it as an extension: `request.extensions().get::<Peer>()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from.
    pub source: Source,
    /// Whether the connection is encrypted by this broker.
    pub tls: bool,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The network.
    Ip(IpAddr),
    /// A process of this host, through the Unix socket.
    Unix {
        /// Its user, as the kernel says.
        uid: u32,
    },
}

impl Source {
    /// What one party can hold many of counts as one: an IPv6 address as its /64, an IPv4 address in IPv6 form as itself.
    pub fn party(self) -> Self {
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
    fn one_party_is_one_source() {
        let party = |text: &str| Source::Ip(text.parse().expect("address")).party();
        assert_eq!(party("2001:db8:0:1::1"), party("2001:db8:0:1:ffff::2"));
        assert_ne!(party("2001:db8:0:1::1"), party("2001:db8:0:2::1"));
        assert_eq!(party("::ffff:192.0.2.1"), party("192.0.2.1"));
        assert_ne!(party("192.0.2.1"), party("192.0.2.2"));
    }
}
