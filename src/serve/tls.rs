//! TLS termination: a certificate and a key from files, reloaded when they change.
//!
//! In: two PEM files. Out: handshakes, and the status of the certificate in force. Only TLS 1.3; no tickets, no resumption,
//! no early data: every handshake proves that the server holds the current key. Refuses a key that other users may read, files
//! that other users could change or replace, and files that are not regular, at each reload too. A new pair that cannot be used leaves the previous one in force, is logged once, and
//! is reported in [`Tls::status`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use super::certificate_expiry;
use crate::keys::{self, FileAccess, FileError};
use crate::model::{Digest, Timestamp};

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or another user could read the key, or change or replace a file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a PEM file of certificates.
    #[error("{}: expected PEM certificates, found none that can be parsed", .0.display())]
    Certificate(PathBuf),
    /// Not a PEM file of a private key.
    #[error("{}: expected a PEM private key, found none that can be parsed", .0.display())]
    Key(PathBuf),
    /// The certificate and the key do not match, or cannot be used for TLS 1.3.
    #[error("{} with {}: {source}; check that the key belongs to the certificate", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The reason.
        source: rustls::Error,
    },
}

/// The status of the certificate in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsStatus {
    /// When it expires.
    pub not_after: Timestamp,
    /// SHA-256 of the certificate (DER).
    pub fingerprint: Digest,
    /// Reloads since the start.
    pub reloads: u64,
    /// Why the current files are not in force; `None` when they are.
    pub last_error: Option<String>,
}

/// The certificate in force, and its files.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: ArcSwap<ServerConfig>,
    status: Mutex<(TlsStatus, FileState)>,
}

/// The state of the files when they were last read, good or bad.
#[derive(PartialEq, Eq)]
enum FileState {
    Pair(Digest),
    Unreadable(String),
}

/// A certificate and key that can be put in force.
struct Pair {
    config: Arc<ServerConfig>,
    not_after: Timestamp,
    fingerprint: Digest,
}

impl Tls {
    /// Reads the files for the first time.
    pub fn read(certificate: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let files = Files::read(certificate, key)?;
        let pair = files.pair()?;
        let status = TlsStatus {
            not_after: pair.not_after,
            fingerprint: pair.fingerprint,
            reloads: 0,
            last_error: None,
        };
        Ok(Arc::new(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            config: ArcSwap::new(pair.config),
            status: Mutex::new((status, FileState::Pair(files.digest()))),
        }))
    }

    /// The certificate in force, and the error of the files if they are not.
    pub fn status(&self) -> TlsStatus {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    /// Reloads the files if they changed; new handshakes use the pair in force then.
    pub fn reload(&self) {
        let read = Files::read(&self.certificate, &self.key);
        let state = match &read {
            Ok(files) => FileState::Pair(files.digest()),
            Err(error) => FileState::Unreadable(error.to_string()),
        };
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.1 == state {
            return;
        }
        status.1 = state;
        match read.and_then(|files| files.pair()) {
            Ok(pair) => {
                let changed = status.0.fingerprint != pair.fingerprint;
                self.config.store(pair.config);
                status.0 = TlsStatus {
                    not_after: pair.not_after,
                    fingerprint: pair.fingerprint,
                    reloads: status.0.reloads.saturating_add(1),
                    last_error: None,
                };
                tracing::info!(not_after = %pair.not_after, changed, "certificate reloaded");
            }
            Err(error) => {
                tracing::warn!(%error, "certificate reload failed; keeping the previous one");
                status.0.last_error = Some(error.to_string());
            }
        }
    }

    /// Reloads the files on SIGHUP, and every few seconds.
    pub(super) async fn watch(self: Arc<Self>) {
        use tokio::signal::unix::{SignalKind, signal};
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => Some(hangup),
            Err(error) => {
                tracing::warn!(%error, "no SIGHUP handler; the certificate is still reloaded when its files change");
                None
            }
        };
        loop {
            let signalled = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = signalled => {}
                () = tokio::time::sleep(RELOAD_INTERVAL) => {}
            }
            let tls = self.clone();
            // Reading may take a while, as from a network file system.
            let _read = tokio::task::spawn_blocking(move || tls.reload()).await;
        }
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config.load_full())
            .accept(stream)
            .await
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({})", self.certificate.display())
    }
}

/// The content of the two files.
struct Files<'a> {
    certificate: (&'a Path, Zeroizing<Vec<u8>>),
    key: (&'a Path, Zeroizing<Vec<u8>>),
}

impl<'a> Files<'a> {
    fn read(certificate: &'a Path, key: &'a Path) -> Result<Self, TlsError> {
        let read = keys::read_trusted_file;
        Ok(Self {
            certificate: (
                certificate,
                read(certificate, FileAccess::Public, FILE_BYTES_MAX)?,
            ),
            key: (key, read(key, FileAccess::Private, FILE_BYTES_MAX)?),
        })
    }

    fn digest(&self) -> Digest {
        let length = u64::try_from(self.certificate.1.len()).unwrap_or(u64::MAX);
        Digest::sha256_parts(&[&length.to_be_bytes(), &self.certificate.1, &self.key.1])
    }

    fn pair(&self) -> Result<Pair, TlsError> {
        let unreadable = || TlsError::Certificate(self.certificate.0.to_owned());
        let chain = CertificateDer::pem_slice_iter(&self.certificate.1)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| unreadable())?;
        let leaf = chain.first().ok_or_else(unreadable)?;
        let not_after = certificate_expiry::not_after(leaf).ok_or_else(unreadable)?;
        let fingerprint = Digest::sha256(leaf);
        let key = PrivateKeyDer::from_pem_slice(&self.key.1)
            .map_err(|_| TlsError::Key(self.key.0.to_owned()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|source| TlsError::Pair {
            certificate: self.certificate.0.to_owned(),
            key: self.key.0.to_owned(),
            source,
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Pair {
            config: Arc::new(config),
            not_after,
            fingerprint,
        })
    }
}

/// Longest certificate or key file, in bytes: a chain has a few KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// How often the files are checked without a signal.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn put(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
    }

    #[test]
    fn fifo_certificate_does_not_block() {
        let dir = tempfile::tempdir().expect("dir");
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let (chain, private) = pair();
        put(&certificate, &chain, 0o644);
        put(&key, &private, 0o600);
        let tls = Tls::read(&certificate, &key).expect("read");
        for replaced in [&certificate, &key] {
            let kept = std::fs::read(replaced).expect("read");
            std::fs::remove_file(replaced).expect("removed");
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                replaced,
                rustix::fs::FileType::Fifo,
                mode,
                0,
            )
            .expect("a pipe");
            let (done, read) = std::sync::mpsc::channel();
            let reloading = tls.clone();
            std::thread::spawn(move || {
                reloading.reload();
                done.send(())
            });
            read.recv_timeout(Duration::from_secs(30))
                .expect("it does not wait for a writer");
            let error = tls.status().last_error.expect("an error");
            assert!(error.contains("not a regular file"), "{error}");
            std::fs::remove_file(replaced).expect("removed");
            put(replaced, &String::from_utf8(kept).expect("text"), 0o600);
            tls.reload();
            assert!(tls.status().last_error.is_none(), "good again");
        }
        assert!(matches!(
            Tls::read(dir.path(), &key),
            Err(TlsError::File(FileError::NotAFile(_)))
        ));
    }

    #[test]
    fn reload_refuses_a_link_into_a_directory_of_another_user() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give directories away");
            return;
        }
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        let (first, second) = (pair(), pair());
        put(&at("tls.crt"), &first.0, 0o644);
        put(&at("tls.key"), &first.1, 0o600);
        let tls = Tls::read(&at("tls.crt"), &at("tls.key")).expect("read");
        std::fs::create_dir(at("theirs")).expect("dir");
        put(&at("theirs/tls.crt"), &second.0, 0o644);
        put(&at("theirs/tls.key"), &second.1, 0o600);
        std::os::unix::fs::chown(at("theirs"), Some(65_534), None).expect("given away");
        for name in ["tls.crt", "tls.key"] {
            std::fs::remove_file(at(name)).expect("removed");
            std::os::unix::fs::symlink(at("theirs").join(name), at(name)).expect("link");
            tls.reload();
            let error = tls.status().last_error.expect("an error");
            assert!(error.contains("got user 65534, who can replace"), "{error}");
        }
        assert_eq!(tls.status().reloads, 0);
    }

    #[test]
    fn bad_certificate_keeps_the_old_one() {
        let dir = tempfile::tempdir().expect("dir");
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let (first, second) = (pair(), pair());
        put(&certificate, &first.0, 0o644);
        put(&key, &first.1, 0o640);
        assert!(matches!(
            Tls::read(&certificate, &key),
            Err(TlsError::File(FileError::TooPermissive { mode: 0o640, .. }))
        ));
        put(&key, &first.1, 0o600);
        let tls = Tls::read(&certificate, &key).expect("read");
        let at_first = tls.status();
        assert!(at_first.last_error.is_none());
        tls.reload();
        assert_eq!(tls.status(), at_first, "unchanged files change nothing");
        // One file of two replaced, as during a renewal.
        put(&certificate, &second.0, 0o644);
        tls.reload();
        let broken = tls.status();
        assert_eq!(broken.fingerprint, at_first.fingerprint);
        assert!(broken.last_error.expect("an error").contains("tls.key"));
        put(&key, &second.1, 0o644);
        tls.reload();
        assert!(tls.status().last_error.expect("an error").contains("600"));
        put(&key, &second.1, 0o600);
        tls.reload();
        let renewed = tls.status();
        assert!(renewed.last_error.is_none() && renewed.reloads == 1);
        assert_ne!(renewed.fingerprint, at_first.fingerprint);
        for garbage in [
            "",
            "garbage",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            put(&certificate, garbage, 0o644);
            tls.reload();
            let kept = tls.status();
            assert_eq!(kept.fingerprint, renewed.fingerprint);
            assert!(kept.last_error.expect("an error").contains("tls.crt"));
        }
        std::fs::remove_file(&certificate).expect("removed");
        tls.reload();
        assert!(tls.status().last_error.is_some());
        put(&certificate, &second.0, 0o644);
        tls.reload();
        assert!(tls.status().last_error.is_none(), "good again");
        put(&certificate, &"x".repeat(300_000), 0o644);
        assert!(matches!(
            Tls::read(&certificate, &key),
            Err(TlsError::File(FileError::TooLong { .. }))
        ));
    }
}
