//! TLS of the broker's own: a certificate and a key from files, read again when they change.
//!
//! In: two PEM files. Out: handshakes, and what is known of the certificate in force. TLS 1.3 alone; no tickets, no
//! resumption, no early data: every connection shows that the server holds the key of today. Refuses a key that others own
//! or may read, and what is no regular file. A new pair that cannot be used leaves the one before in force, is logged once, and stands in [`Tls::status`].

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::fs::OFlags;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use super::validity;
use crate::model::{Digest, Timestamp};

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Longer than 256 KiB.
    #[error("{}: longer than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLong(PathBuf),
    /// The key's file is not its owner's alone.
    #[error("{}: mode {mode:03o} lets others read the key; it must be 600 (chmod 600)", path.display())]
    Loose {
        /// The key's file.
        path: PathBuf,
        /// As found.
        mode: u32,
    },
    /// The key's file belongs to somebody who could put another in its place.
    #[error("{}: user {owner} owns the key; it must be user {user}, who runs the broker, or root", path.display())]
    NotOurs {
        /// The key's file.
        path: PathBuf,
        /// Its owner, as found.
        owner: u32,
        /// This broker's user.
        user: u32,
    },
    /// A directory, a pipe, a device.
    #[error("{}: is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Not a PEM file of certificates.
    #[error("{}: holds no certificates that can be read", .0.display())]
    Certificate(PathBuf),
    /// Not a PEM file of a private key.
    #[error("{}: holds no private key that can be read", .0.display())]
    Key(PathBuf),
    /// They do not belong together, or cannot be used for TLS 1.3.
    #[error("{} with {}: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What is known of the certificate in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsStatus {
    /// When it ends.
    pub not_after: Timestamp,
    /// SHA-256 of the certificate (DER).
    pub fingerprint: Digest,
    /// Times another pair was put in force since the start.
    pub reloads: u64,
    /// Why the files as they are now are not in force; `None` when they are.
    pub last_error: Option<String>,
}

/// The certificate in force, and where it comes from.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: ArcSwap<ServerConfig>,
    status: Mutex<(TlsStatus, Seen)>,
}

/// What the files held when they were last read, good or bad.
#[derive(PartialEq, Eq)]
enum Seen {
    Pair(Digest),
    Unreadable(String),
}

/// A pair that can be put in force.
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
            status: Mutex::new((status, Seen::Pair(files.digest()))),
        }))
    }

    /// What is in force, and what is wrong with the files if they are not.
    pub fn status(&self) -> TlsStatus {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    /// Reads the files again if they hold something else than before; new handshakes see what is then in force.
    pub fn reload(&self) {
        let read = Files::read(&self.certificate, &self.key);
        let seen = match &read {
            Ok(files) => Seen::Pair(files.digest()),
            Err(error) => Seen::Unreadable(error.to_string()),
        };
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.1 == seen {
            return;
        }
        status.1 = seen;
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
                tracing::info!(not_after = %pair.not_after, changed, "the certificate was read again");
            }
            Err(error) => {
                tracing::warn!(%error, "the certificate's files cannot be used; the one before stays in force");
                status.0.last_error = Some(error.to_string());
            }
        }
    }

    /// Reads the files again on each signal to do so, and every few seconds.
    pub(super) async fn watch(self: Arc<Self>) {
        use tokio::signal::unix::{SignalKind, signal};
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => Some(hangup),
            Err(error) => {
                tracing::warn!(%error, "SIGHUP cannot be heard; the certificate's files are looked at all the same");
                None
            }
        };
        loop {
            let told = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = told => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let tls = self.clone();
            // Files may lie where reading takes a while.
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

/// What the two files hold.
struct Files<'a> {
    certificate: (&'a Path, Vec<u8>),
    key: (&'a Path, Zeroizing<Vec<u8>>),
}

impl<'a> Files<'a> {
    fn read(certificate: &'a Path, key: &'a Path) -> Result<Self, TlsError> {
        let (_, chain) = read(certificate)?;
        let (found, private) = read(key)?;
        found.keeps(key, rustix::process::geteuid().as_raw())?;
        Ok(Self {
            certificate: (certificate, chain.to_vec()),
            key: (key, private),
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
        let not_after = validity::not_after(leaf).ok_or_else(unreadable)?;
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

/// Whose a file is, and who may do what with it.
struct Found {
    owner: u32,
    mode: u32,
}

impl Found {
    /// Whether a key's file is a secret of `user`, who runs this broker.
    fn keeps(&self, key: &Path, user: u32) -> Result<(), TlsError> {
        let path = || key.to_owned();
        if self.owner != user && self.owner != ROOT {
            return Err(TlsError::NotOurs {
                path: path(),
                owner: self.owner,
                user,
            });
        }
        if self.mode & 0o077 != 0 {
            return Err(TlsError::Loose {
                path: path(),
                mode: self.mode,
            });
        }
        Ok(())
    }
}

/// Whose a file is, and what it holds: asked of the open file, so that what is checked is what is read.
fn read(path: &Path) -> Result<(Found, Zeroizing<Vec<u8>>), TlsError> {
    let io = |source| TlsError::Io {
        path: path.to_owned(),
        source,
    };
    // A pipe without a writer would never open, and renewal would wait for it.
    let flags = OFlags::NONBLOCK.union(OFlags::NOCTTY).bits();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)
        .map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(TlsError::NotAFile(path.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(TlsError::TooLong(path.to_owned()));
    }
    let found = Found {
        owner: metadata.uid(),
        mode: metadata.mode() & 0o777,
    };
    Ok((found, bytes))
}

const ROOT: u32 = 0;
/// Longest certificate or key file, in bytes: a chain has a few KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// How often the files are looked at without being told.
const LOOK_EVERY: Duration = Duration::from_secs(5);

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
    fn a_key_is_the_brokers_or_roots() {
        let key = Path::new("tls.key");
        let found = |owner, mode| Found { owner, mode };
        assert!(found(7, 0o600).keeps(key, 7).is_ok());
        assert!(found(0, 0o400).keeps(key, 7).is_ok());
        assert!(matches!(
            found(8, 0o600).keeps(key, 7),
            Err(TlsError::NotOurs {
                owner: 8,
                user: 7,
                ..
            })
        ));
        for owner in [0, 7] {
            assert!(matches!(
                found(owner, 0o640).keeps(key, 7),
                Err(TlsError::Loose { mode: 0o640, .. })
            ));
        }
        // The owner is the one of the file that was read.
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("tls.key");
        put(&path, "", 0o600);
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(read(&path).expect("read").0.owner, own);
        if own == ROOT {
            std::os::unix::fs::chown(&path, Some(8), None).expect("given away");
            assert!(matches!(
                Files::read(&path, &path),
                Err(TlsError::NotOurs { owner: 8, .. })
            ));
        }
    }

    #[test]
    fn what_is_no_file_holds_nothing_up() {
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
            let told = tls.status().last_error.expect("told");
            assert!(told.contains("not a regular file"), "{told}");
            std::fs::remove_file(replaced).expect("removed");
            put(replaced, &String::from_utf8(kept).expect("text"), 0o600);
            tls.reload();
            assert!(tls.status().last_error.is_none(), "good again");
        }
        assert!(matches!(
            Tls::read(dir.path(), &key),
            Err(TlsError::NotAFile(_))
        ));
    }

    #[test]
    fn a_pair_is_replaced_only_by_one_that_can_be_used() {
        let dir = tempfile::tempdir().expect("dir");
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let (first, second) = (pair(), pair());
        put(&certificate, &first.0, 0o644);
        put(&key, &first.1, 0o640);
        assert!(matches!(
            Tls::read(&certificate, &key),
            Err(TlsError::Loose { mode: 0o640, .. })
        ));
        put(&key, &first.1, 0o600);
        let tls = Tls::read(&certificate, &key).expect("read");
        let at_first = tls.status();
        assert!(at_first.last_error.is_none());
        tls.reload();
        assert_eq!(tls.status(), at_first, "unchanged files change nothing");
        // One file of two replaced, as it is for a moment whenever somebody renews.
        put(&certificate, &second.0, 0o644);
        tls.reload();
        let broken = tls.status();
        assert_eq!(broken.fingerprint, at_first.fingerprint);
        assert!(broken.last_error.expect("told").contains("tls.key"));
        put(&key, &second.1, 0o644);
        tls.reload();
        assert!(tls.status().last_error.expect("told").contains("600"));
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
            assert!(kept.last_error.expect("told").contains("tls.crt"));
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
            Err(TlsError::TooLong(_))
        ));
    }
}
