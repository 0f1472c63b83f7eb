//! Keys at rest: private keys in files that only their owner may read; and the files the broker trusts.
//!
//! In: a path. Out: a key, or an error. Trusts root and the user of this process. Refuses modes that let others read, files
//! of other users, directories and symbolic links through which others may replace files, and a signing key inside the data
//! directory. Never logs or prints a key.

mod ownership;
mod trusted_file;

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::jose::{KeyError, SigningKey};
pub use ownership::OwnershipError;
pub use trusted_file::{
    FileAccess, FileError, check_trusted, list_trusted_dir, read_trusted_file, read_trusted_text,
};

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file or its directory cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
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
    check_trusted(key_dir)?;
    check_trusted(data_dir)?;
    make_private_dir(key_dir)?;
    // The journal's blobs hold the texts that its entries only commit to.
    make_private_dir(data_dir)?;
    let (keys, data) = (
        key_dir.canonicalize().map_err(io_error(key_dir))?,
        data_dir.canonicalize().map_err(io_error(data_dir))?,
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
        let checked = check_trusted(dir).and_then(|()| trusted_file::check_private_dir(dir));
        report.problems.extend(checked.err().map(Into::into));
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
    let access = FileAccess::PrivateOrPipe;
    let bytes = read_trusted_file(path, access, FILE_BYTES_MAX)?;
    let pem = std::str::from_utf8(&bytes).map_err(|_| FileError::NotText(path.to_owned()))?;
    SigningKey::from_pem(pem).map_err(|source| KeyFileError::Key {
        path: path.to_owned(),
        source,
    })
}

/// Creates a key and its file, mode 0600. Never replaces a file.
pub fn create(path: &Path) -> Result<SigningKey, KeyFileError> {
    let io = io_error(path);
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

/// Creates a directory with mode 0700, or checks owner and mode of an existing one; and each step to it, since another user may
/// have created it first.
pub fn make_private_dir(path: &Path) -> Result<(), KeyFileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error(path))?;
    check_trusted(path)?;
    Ok(trusted_file::check_private_dir(path)?)
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> KeyFileError + Copy + '_ {
    |source| {
        KeyFileError::File(FileError::Io {
            path: path.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

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
            matches!(create(&file), Err(KeyFileError::File(FileError::Io { .. }))),
            "never replaced"
        );
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
            assert!(
                matches!(
                    signing_key(&keys, &data),
                    Err(KeyFileError::File(FileError::TooPermissive { .. }))
                ),
                "{mode:o}"
            );
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(matches!(
            signing_key(&keys, &data),
            Err(KeyFileError::File(FileError::TooPermissive { .. }))
        ));
        assert!(matches!(
            signing_key(&data.join("keys"), &data),
            Err(KeyFileError::InsideDataDir { .. })
        ));
    }
}
