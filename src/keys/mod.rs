//! Keys at rest: private keys in files that only their owner may read.
//!
//! In: a path. Out: a key, or an error. Trusts root and the user of this process. Refuses modes that let others read, files
//! of other users, directories in which others may replace files, and a signing key inside the data directory. Never logs or
//! prints a key.

pub mod ownership;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::jose::{KeyError, SigningKey};
use ownership::OwnershipError;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file or its directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Other users may read or write it.
    #[error("{}: mode {mode:03o} gives other users access, expected {wanted:03o} (chmod {wanted:o})", path.display())]
    TooPermissive {
        /// The file or directory.
        path: PathBuf,
        /// The mode found.
        mode: u32,
        /// The mode expected.
        wanted: u32,
    },
    /// Another user could change or replace it.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// Not a directory.
    #[error("{}: expected a directory, got another kind of file; check the path", .0.display())]
    NotADirectory(PathBuf),
    /// The key directory is inside the data directory, and so the key would be in every backup of the data.
    #[error("key directory {} must not be inside the data directory {}", keys.display(), data.display())]
    InsideDataDir {
        /// The key directory.
        keys: PathBuf,
        /// The data directory.
        data: PathBuf,
    },
    /// The file holds no usable key.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file or directory.
        path: PathBuf,
        /// The error of the key parser.
        source: KeyError,
    },
}

/// Longest key file, in bytes.
const FILE_BYTES_MAX: u64 = 4_096;
/// The token-signing key's file in the key directory.
pub const SIGNING_KEY_FILE: &str = "token-signing.pem";

/// The token-signing key: created at the first start, read at every later one. The directory must be 0700, the file 0600,
/// and neither may be inside the data directory.
pub fn signing_key(key_dir: &Path, data_dir: &Path) -> Result<SigningKey, KeyFileError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| KeyFileError::Io { path, source }
    };
    ownership::check_with_parents(key_dir)?;
    ownership::check_with_parents(data_dir)?;
    make_private_dir(key_dir)?;
    // The journal's blobs hold the texts that its entries only commit to.
    make_private_dir(data_dir)?;
    let (keys, data) = (
        key_dir.canonicalize().map_err(io(key_dir))?,
        data_dir.canonicalize().map_err(io(data_dir))?,
    );
    if keys.starts_with(&data) {
        return Err(KeyFileError::InsideDataDir { keys, data });
    }
    let path = keys.join(SIGNING_KEY_FILE);
    if path.exists() {
        read(&path)
    } else {
        create(&path)
    }
}

/// The state of the directories and the signing key, found without creating or changing anything.
#[derive(Debug, Default)]
pub struct KeyFileReport {
    /// The errors that [`signing_key`] would return.
    pub problems: Vec<KeyFileError>,
    /// The key, if there is one that can be read.
    pub key: Option<SigningKey>,
}

/// Inspects the directories and the signing key. A missing one is no problem: the first start creates it.
pub fn inspect(key_dir: &Path, data_dir: &Path) -> KeyFileReport {
    let mut report = KeyFileReport::default();
    for dir in [key_dir, data_dir] {
        report
            .problems
            .extend(ownership::check_with_parents(dir).err().map(Into::into));
        match std::fs::metadata(dir) {
            Ok(found) if !found.is_dir() => report
                .problems
                .push(KeyFileError::NotADirectory(dir.to_owned())),
            Ok(found) => report
                .problems
                .extend(check_mode(dir, found.mode(), 0o700).err()),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => report.problems.push(KeyFileError::Io {
                path: dir.to_owned(),
                source,
            }),
        }
    }
    let absolute = |dir: &Path| {
        dir.canonicalize()
            .or_else(|_| std::path::absolute(dir))
            .unwrap_or_else(|_| dir.to_owned())
    };
    let (keys, data) = (absolute(key_dir), absolute(data_dir));
    if keys.starts_with(&data) {
        report
            .problems
            .push(KeyFileError::InsideDataDir { keys, data });
    }
    let path = key_dir.join(SIGNING_KEY_FILE);
    if path.exists() {
        match read(&path) {
            Ok(key) => report.key = Some(key),
            Err(problem) => report.problems.push(problem),
        }
    }
    report
}

/// Reads a private key (PEM, PKCS#8) that only its owner may read.
pub fn read(path: &Path) -> Result<SigningKey, KeyFileError> {
    let io = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    // Owner and mode of the open file, so that the file checked is the file read.
    let found = file.metadata().map_err(io)?;
    ownership::check_owner(path, &found)?;
    check_mode(path, found.mode(), 0o600)?;
    let mut pem = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut pem)
        .map_err(io)?;
    SigningKey::from_pem(&pem).map_err(|source| KeyFileError::Key {
        path: path.to_owned(),
        source,
    })
}

/// Creates a key and its file, mode 0600. Never replaces a file.
pub fn create(path: &Path) -> Result<SigningKey, KeyFileError> {
    let io = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    let (key, pkcs8) = SigningKey::generate().map_err(|source| KeyFileError::Key {
        path: path.to_owned(),
        source,
    })?;
    // Written to a temporary file, then linked into place: a crash leaves either no key or a whole one.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io)?;
    let written = file
        .write_all(SigningKey::to_pem(&pkcs8).as_bytes())
        .and_then(|()| file.sync_all());
    let linked = written.and_then(|()| std::fs::hard_link(&temporary, path));
    std::fs::remove_file(&temporary).map_err(io)?;
    linked.map_err(io)?;
    Ok(key)
}

/// Creates a directory with mode 0700, or checks owner and mode of an existing one.
pub fn make_private_dir(path: &Path) -> Result<(), KeyFileError> {
    let io = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io)?;
    let found = std::fs::metadata(path).map_err(io)?;
    ownership::check_owner(path, &found)?;
    check_mode(path, found.mode(), 0o700)
}

fn check_mode(path: &Path, mode: u32, wanted: u32) -> Result<(), KeyFileError> {
    let mode = mode & 0o777;
    if mode & !wanted == 0 {
        Ok(())
    } else {
        Err(KeyFileError::TooPermissive {
            path: path.to_owned(),
            mode,
            wanted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn key_file_is_created_0600_once() {
        let dir = tempfile::tempdir().expect("dir");
        let (keys, data) = (dir.path().join("keys"), dir.path().join("data"));
        let first = signing_key(&keys, &data).expect("made");
        let second = signing_key(&keys, &data).expect("read");
        assert_eq!(first.thumbprint(), second.thumbprint());
        let file = keys.join(SIGNING_KEY_FILE);
        assert_eq!(
            std::fs::metadata(&file).expect("file").mode() & 0o777,
            0o600
        );
        assert!(
            matches!(create(&file), Err(KeyFileError::Io { .. })),
            "never replaced"
        );
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
            assert!(
                matches!(
                    signing_key(&keys, &data),
                    Err(KeyFileError::TooPermissive { .. })
                ),
                "{mode:o}"
            );
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(matches!(
            signing_key(&keys, &data),
            Err(KeyFileError::TooPermissive { .. })
        ));
        assert!(matches!(
            signing_key(&data.join("keys"), &data),
            Err(KeyFileError::InsideDataDir { .. })
        ));
    }
}
