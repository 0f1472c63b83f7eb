//! A certificate authority, and a TLS client that observes what a server presents.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use dipylon_sdk::model::*;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

/// A certificate authority.
pub struct Authority {
    pub issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "test authority");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate for this host, and its key.
    pub fn certify(&self) -> (String, String) {
        self.certify_with(|_| ())
    }

    pub fn certify_with(
        &self,
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).expect("params");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }
}

pub fn replace_file(path: &Path, text: &str, mode: u32) {
    // Written by rename, as in a careful renewal: no reader sees half a file.
    let making = path.with_extension("new");
    std::fs::write(&making, text).expect("written");
    std::fs::set_permissions(&making, std::fs::Permissions::from_mode(mode)).expect("mode");
    std::fs::rename(&making, path).expect("renamed");
}

/// A rustls client, to observe the broker's TLS.
pub fn tls_client(
    ca: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.expect("pem")).expect("root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.enable_early_data = true;
    Arc::new(config)
}

pub async fn tls_handshake(
    address: SocketAddr,
    config: &Arc<rustls::ClientConfig>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").expect("name");
    tokio_rustls::TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
}

/// The certificate presented to a new connection.
pub async fn presented_certificate(address: SocketAddr, ca: &str) -> Option<Digest> {
    let stream = tls_handshake(address, &tls_client(ca, &[&rustls::version::TLS13]))
        .await
        .ok()?;
    let leaf = stream.get_ref().1.peer_certificates()?.first()?.clone();
    Some(Digest::sha256(&leaf))
}

pub fn certificate_digest(pem: &str) -> Digest {
    Digest::sha256(&CertificateDer::from_pem_slice(pem.as_bytes()).expect("pem"))
}
