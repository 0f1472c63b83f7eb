//! Connections to a broker: TCP, TLS over TCP, or a Unix socket.
//!
//! In: a broker's external URL and [`ConnectOptions`]. Out: connections. Trusts: the certificates of the operating system, or
//! those in one file and no others. TLS 1.3 alone; the expected server name is the URL's. A Unix socket is not encrypted: the
//! permissions of its directory protect it. Never resumes a TLS session.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Error, connect_error};

/// How to connect to a broker, beside its URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// PEM file of the certificate authorities to trust, instead of the operating system's.
    pub ca: Option<PathBuf>,
    /// The broker's Unix socket on this host, instead of the host and port of its URL. Proofs name the URL all the same.
    pub socket: Option<PathBuf>,
    /// Whether an `http://` URL may name another host: evidence and tokens then cross the network unencrypted. Without it plain
    /// http is for loopback and the Unix socket alone.
    pub allow_plain_http: bool,
}

/// The application protocol of a connection (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    #[cfg_attr(
        not(any(feature = "validator", feature = "internals")),
        expect(
            dead_code,
            reason = "plain HTTP is for validators and the command line"
        )
    )]
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, which gRPC needs.
    Http2,
}

/// How to connect to one broker. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    uri: Uri,
    target: ConnectTarget,
    /// What the newest HTTP/2 connection found instead of HTTP/2. The error of the call that it failed does not say so.
    other_protocol: Arc<Mutex<Option<&'static str>>>,
}

#[derive(Clone)]
enum ConnectTarget {
    Tcp {
        host: Arc<str>,
        port: u16,
    },
    Tls {
        host: Arc<str>,
        port: u16,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
    },
    Unix(Arc<Path>),
}

/// Scheme and host of a URL.
struct Origin {
    uri: Uri,
    tls: bool,
    /// Without the brackets of an IPv6 address.
    host: Arc<str>,
    port: Option<u16>,
}

impl Origin {
    fn parse(url: &str, allow_plain_http: bool) -> Result<Self, Error> {
        let (tls, authority) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(authority), _) => (true, authority),
            (None, Some(authority)) => (false, authority),
            (None, None) => return Err(Error::Url("must begin with https:// or http://")),
        };
        let uri = Uri::from_str(url).map_err(|_| Error::Url("is not a URL"))?;
        if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
            return Err(Error::Url(
                "must be https://host or https://host:port (or http://…), and no more",
            ));
        }
        let host = uri.host().unwrap_or_default();
        let host: Arc<str> = host.trim_start_matches('[').trim_end_matches(']').into();
        let port = uri.port_u16();
        if !tls && !allow_plain_http && !is_loopback(&host) {
            return Err(Error::Url(
                "must begin with https:// for a host other than loopback: over plain http, evidence and tokens would cross the network unencrypted",
            ));
        }
        Ok(Self {
            uri,
            tls,
            host,
            port,
        })
    }
}

impl Transport {
    /// Accepts `http://host` and `https://host`, each with or without a port, and no more.
    pub fn new(url: &str, options: &ConnectOptions) -> Result<Self, Error> {
        // Nothing crosses the network to a Unix socket.
        let plain_http = options.allow_plain_http || options.socket.is_some();
        let Origin {
            uri,
            tls,
            host,
            port,
        } = Origin::parse(url, plain_http)?;
        let target = match (&options.socket, tls) {
            (Some(path), _) => ConnectTarget::Unix(path.as_path().into()),
            (None, false) => ConnectTarget::Tcp {
                host,
                port: port.unwrap_or(80),
            },
            (None, true) => ConnectTarget::Tls {
                name: ServerName::try_from(host.to_string()).map_err(|_| {
                    Error::Url("its host is not a name that a certificate can have")
                })?,
                host,
                port: port.unwrap_or(443),
                config: Arc::new(config(options.ca.as_deref())?),
            },
        };
        Ok(Self {
            uri,
            target,
            other_protocol: Arc::default(),
        })
    }

    /// Checks scheme and host of such a URL, and makes no connection: the same rule for every secret that is sent there.
    #[cfg(feature = "internals")]
    pub fn check_url(url: &str, allow_plain_http: bool) -> Result<(), Error> {
        Origin::parse(url, allow_plain_http).map(drop)
    }

    /// The same broker at an address of this host; the server name stays the URL's, and a Unix socket is kept.
    #[cfg(feature = "internals")]
    pub fn at(mut self, address: std::net::SocketAddr) -> Self {
        match &mut self.target {
            ConnectTarget::Tcp { host, port } | ConnectTarget::Tls { host, port, .. } => {
                *host = address.ip().to_string().into();
                *port = address.port();
            }
            ConnectTarget::Unix(_) => {}
        }
        self
    }

    /// The broker's URL.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// What the server speaks instead of HTTP/2, if its first bytes showed that.
    pub(super) fn other_protocol(&self) -> Option<&'static str> {
        *self
            .other_protocol
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection.
    pub async fn connect(&self, protocol: Protocol) -> io::Result<Connection> {
        match &self.target {
            ConnectTarget::Unix(path) => UnixStream::connect(path)
                .await
                .map(Connection::Unix)
                .map_err(|error| connect_error::unix(path, &error)),
            ConnectTarget::Tcp { host, port } => Ok(Connection::Tcp(tcp(host, *port).await?)),
            ConnectTarget::Tls {
                host,
                port,
                name,
                config,
            } => {
                let mut config = ClientConfig::clone(config);
                config.alpn_protocols = vec![match protocol {
                    Protocol::Http1 => b"http/1.1".to_vec(),
                    Protocol::Http2 => b"h2".to_vec(),
                }];
                let stream = tcp(host, *port).await?;
                let stream = TlsConnector::from(Arc::new(config))
                    .connect(name.clone(), stream)
                    .await
                    .map_err(|error| connect_error::tls(host, &error))?;
                Ok(Connection::Tls(Box::new(stream)))
            }
        }
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| connect_error::tcp(host, port, &error))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether the host is this machine alone (RFC 6761 §6.3 for `localhost`).
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn config(ca: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let bad = |why: String| Error::Trust(format!("{}: {why}", path.display()));
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?
            {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots
                    .add(certificate)
                    .map_err(|error| bad(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(bad("holds no certificate".to_owned()));
            }
        }
        None => {
            // Certificates that cannot be read are not trusted.
            let found = rustls_native_certs::load_native_certs();
            let (_added, _ignored) = roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(Error::Trust(
                    "the operating system has no certificate authorities; name a PEM file of them"
                        .to_owned(),
                ));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Trust(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A connection to a broker.
pub enum Connection {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// Delegates to the connection inside.
macro_rules! delegate {
    ($stream:expr, $inner:ident => $do:expr) => {
        match $stream.get_mut() {
            Connection::Tcp($inner) => $do,
            Connection::Tls($inner) => $do,
            Connection::Unix($inner) => $do,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, inner => Pin::new(inner).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, inner => Pin::new(inner).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, inner => Pin::new(inner).poll_shutdown(cx))
    }
}

/// A connection whose first bytes are checked, so that a server of another protocol gets an error that names it.
pub(super) struct Http2Connection {
    connection: Connection,
    is_checked: bool,
    other_protocol: Arc<Mutex<Option<&'static str>>>,
}

impl AsyncRead for Http2Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.connection).poll_read(cx, buffer))?;
        let first = buffer.filled().get(before..).unwrap_or_default();
        if !self.is_checked && !first.is_empty() {
            self.is_checked = true;
            let other = connect_error::not_http_2(first);
            *self
                .other_protocol
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = other;
            if let Some(other) = other {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, other)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

/// Makes a channel's connections; the URI of the channel is ignored.
pub(super) struct Connector(pub(super) Transport);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Http2Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Http2Connection>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let transport = self.0.clone();
        Box::pin(async move {
            let connection = transport.connect(Protocol::Http2).await?;
            Ok(TokioIo::new(Http2Connection {
                connection,
                is_checked: false,
                other_protocol: transport.other_protocol,
            }))
        })
    }
}
