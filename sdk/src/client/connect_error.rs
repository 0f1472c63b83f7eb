//! Why a connection to a broker failed: the cause and what to do about it, in one line.

use std::io;

use rustls::{AlertDescription, CertificateError};

/// The error of a TCP connection.
pub(super) fn tcp(host: &str, port: u16, error: &io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "nothing listens on port {port} of {host}: check that the broker runs and that its URL has this host and port"
        ),
        io::ErrorKind::TimedOut => {
            format!("{host} does not answer on port {port}: a firewall may be in between")
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            format!("there is no route to {host}")
        }
        // The resolver's errors have no kind of their own.
        _ if error.to_string().contains("lookup") => {
            format!("the name {host} cannot be resolved: check its spelling and the DNS")
        }
        _ => return io::Error::new(error.kind(), format!("{host} port {port}: {error}")),
    };
    io::Error::new(error.kind(), text)
}

/// The error of a connection to a Unix socket.
pub(super) fn unix(path: &std::path::Path, error: &io::Error) -> io::Error {
    let path = path.display();
    let text = match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no socket {path}: check the path, and `unix_socket` of the broker")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("no broker listens on the socket {path}: it was left by one that has stopped")
        }
        io::ErrorKind::PermissionDenied => {
            format!("this user may not connect to {path}: join the group of the socket")
        }
        _ => format!("socket {path}: {error}"),
    };
    io::Error::new(error.kind(), text)
}

/// The error of a TLS handshake with `host`.
pub(super) fn tls(host: &str, error: &io::Error) -> io::Error {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let text = match cause {
        Some(rustls::Error::InvalidCertificate(problem)) => certificate(host, problem),
        Some(rustls::Error::InvalidMessage(_)) => {
            "the port does not speak TLS: it may be plain http, then the URL begins with http://"
                .to_owned()
        }
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => NO_HTTP_2
            .to_owned(),
        Some(
            rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)
            | rustls::Error::PeerIncompatible(_),
        ) => "the port does not offer TLS 1.3, which this client requires".to_owned(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the port closed the connection during the TLS handshake: it may be plain http, then the URL begins with http://"
                .to_owned()
        }
        Some(other) => format!("TLS: {other}"),
        None => format!("TLS: {error}"),
    };
    io::Error::new(error.kind(), text)
}

fn certificate(host: &str, problem: &CertificateError) -> String {
    match problem {
        CertificateError::NotValidForNameContext { presented, .. } => {
            // Each as `DnsName("…")` or `IpAddress(…)`.
            let name = |text: &String| {
                let inner = text.split_once('(').map_or(text.as_str(), |(_, inner)| inner);
                inner.trim_matches(['"', ')']).to_owned()
            };
            let names: Vec<String> = presented.iter().map(name).collect();
            match names.is_empty() {
                true => format!("the certificate has no name, and {host} is expected"),
                false => format!(
                    "the certificate is for {}, not for {host}: use a name of the certificate in the URL, which must be the broker's `external_url`",
                    names.join(", ")
                ),
            }
        }
        CertificateError::UnknownIssuer => {
            "the certificate's authority is not trusted here: trust the authority (PEM) that signed it"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "the certificate was not signed by the trusted authority, though by one of that name: trust the authority (PEM) that signed it"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate has expired: the broker needs a new one".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet: check the clock of this machine".to_owned()
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the certificate is an authority's own (CA:TRUE) and cannot be a server's: sign a server certificate with it, or make a self-signed one with CA:FALSE"
                .to_owned()
        }
        other => format!("the certificate is not accepted: {other}"),
    }
}

/// What the first bytes of a server say if it does not speak HTTP/2 in plain.
pub(super) fn not_http_2(first: &[u8]) -> Option<&'static str> {
    match first {
        [0x15, 0x03, ..] => Some("the port speaks TLS: the URL begins with https://"),
        _ if first.starts_with(b"HTTP/1.") => Some(NO_HTTP_2),
        _ => None,
    }
}

const NO_HTTP_2: &str = "the port speaks HTTP/1.1 only, and gRPC needs HTTP/2: a proxy in between must pass HTTP/2 on, or another service listens there";
