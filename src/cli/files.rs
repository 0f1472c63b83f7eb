//! Small files: private ones written atomically, bounded ones read.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::error::{CliError, io_error};

/// Writes a file with mode 0600, whole or not at all.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), CliError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    // Never through a file or link that another user put there.
    let _left = std::fs::remove_file(&beside);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(io_error(beside.display()))?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| {
        let _left = std::fs::remove_file(&beside);
        io_error(path.display())(error)
    })
}

/// Reads text from a file, or from stdin where the name is `-`.
pub(super) fn read_text(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(TEXT_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(io_error("stdin"))?;
    } else {
        let file = std::fs::File::open(path).map_err(io_error(path.display()))?;
        file.take(TEXT_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(io_error(path.display()))?;
    }
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// Longest token or evidence read, in bytes.
const TEXT_BYTES_MAX: u64 = 64 * 1024;
