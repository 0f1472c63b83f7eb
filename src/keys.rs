//! Keys at rest: private keys in files that nobody else may read.
//!
//! In: a path. Out: a key, or a reason not to start. Trusts the file system's owners and modes. Refuses loose modes,
//! and a signing key beside the data it protects. Never logs or prints a key.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::jose::{KeyError, SigningKey};

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file or its directory.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others may read or write it.
    #[error("{}: mode {mode:03o} lets others in; it must be {wanted:03o} (chmod {wanted:o})", path.display())]
    Loose {
        /// Which.
        path: PathBuf,
        /// As found.
        mode: u32,
        /// As it must be.
        wanted: u32,
    },
    /// The key would lie with the data, and in every backup of it.
    #[error("key directory {} must not lie in the data directory {}", keys.display(), data.display())]
    WithData {
        /// The key directory.
        keys: PathBuf,
        /// The data directory.
        data: PathBuf,
    },
    /// The file does not hold a key.
    #[error("{}: {source}", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
}

/// Longest key file, in bytes.
const FILE_BYTES_MAX: u64 = 4_096;
/// The token-signing key's file in the key directory.
pub const SIGNING_KEY_FILE: &str = "token-signing.pem";

/// The token-signing key: made at the first start, read at every later one. The directory must be 0700, the file 0600, and
/// neither may lie in the data directory.
pub fn signing_key(key_dir: &Path, data_dir: &Path) -> Result<SigningKey, KeyFileError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| KeyFileError::Io { path, source }
    };
    make_private_dir(key_dir)?;
    // The journal's blobs hold what its entries only commit to.
    make_private_dir(data_dir)?;
    let (keys, data) = (
        key_dir.canonicalize().map_err(io(key_dir))?,
        data_dir.canonicalize().map_err(io(data_dir))?,
    );
    if keys.starts_with(&data) {
        return Err(KeyFileError::WithData { keys, data });
    }
    let path = keys.join(SIGNING_KEY_FILE);
    if path.exists() {
        read(&path)
    } else {
        create(&path)
    }
}

/// What [`signing_key`] would meet, looked at without making or changing anything.
#[derive(Debug, Default)]
pub struct Looked {
    /// Why it would not start.
    pub problems: Vec<KeyFileError>,
    /// The key, if there is one that can be read.
    pub key: Option<SigningKey>,
}

/// Looks at the directories and the signing key. What is not there yet is no problem: the first start makes it.
pub fn look(key_dir: &Path, data_dir: &Path) -> Looked {
    let mut looked = Looked::default();
    for dir in [key_dir, data_dir] {
        match std::fs::metadata(dir) {
            Ok(found) => looked
                .problems
                .extend(check_mode(dir, found.mode(), 0o700).err()),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => looked.problems.push(KeyFileError::Io {
                path: dir.to_owned(),
                source,
            }),
        }
    }
    let whole = |dir: &Path| {
        dir.canonicalize()
            .or_else(|_| std::path::absolute(dir))
            .unwrap_or_else(|_| dir.to_owned())
    };
    let (keys, data) = (whole(key_dir), whole(data_dir));
    if keys.starts_with(&data) {
        looked.problems.push(KeyFileError::WithData { keys, data });
    }
    let path = key_dir.join(SIGNING_KEY_FILE);
    if path.exists() {
        match read(&path) {
            Ok(key) => looked.key = Some(key),
            Err(problem) => looked.problems.push(problem),
        }
    }
    looked
}

/// Reads a private key (PEM, PKCS#8) that only its owner may read.
pub fn read(path: &Path) -> Result<SigningKey, KeyFileError> {
    let io = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    // Asked of the open file: what is checked is what is read.
    check_mode(path, file.metadata().map_err(io)?.mode(), 0o600)?;
    let mut pem = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut pem)
        .map_err(io)?;
    SigningKey::from_pem(&pem).map_err(|source| KeyFileError::Key {
        path: path.to_owned(),
        source,
    })
}

/// Makes a key and its file, mode 0600. Never replaces a file.
pub fn create(path: &Path) -> Result<SigningKey, KeyFileError> {
    let io = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    let (key, pkcs8) = SigningKey::generate().map_err(|source| KeyFileError::Key {
        path: path.to_owned(),
        source,
    })?;
    // Written beside, then linked into place: a crash leaves either no key or a whole one.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(io)?;
    let written = file
        .write_all(SigningKey::to_pem(&pkcs8).as_bytes())
        .and_then(|()| file.sync_all());
    let linked = written.and_then(|()| std::fs::hard_link(&beside, path));
    std::fs::remove_file(&beside).map_err(io)?;
    linked.map_err(io)?;
    Ok(key)
}

/// Makes a directory that only its owner may enter, or checks that an existing one is so.
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
    check_mode(path, std::fs::metadata(path).map_err(io)?.mode(), 0o700)
}

fn check_mode(path: &Path, mode: u32, wanted: u32) -> Result<(), KeyFileError> {
    let mode = mode & 0o777;
    if mode & !wanted == 0 {
        Ok(())
    } else {
        Err(KeyFileError::Loose {
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
    fn a_key_is_made_once_and_kept_from_others() {
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
                matches!(signing_key(&keys, &data), Err(KeyFileError::Loose { .. })),
                "{mode:o}"
            );
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(matches!(
            signing_key(&keys, &data),
            Err(KeyFileError::Loose { .. })
        ));
        assert!(matches!(
            signing_key(&data.join("keys"), &data),
            Err(KeyFileError::WithData { .. })
        ));
    }
}
