//! Small files: atomic writes with mode 0600, and bounded reads.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::{CliError, io_error};
use crate::client::random_name;
use crate::keys;

/// Writes a file with mode 0600 atomically.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), CliError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // A file or link that another user put there is removed, not followed.
    let _ignored = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error(temporary.display()))?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ignored = std::fs::remove_file(&temporary);
        io_error(path.display())(error)
    })
}

/// Removes a file; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<(), CliError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error(path.display())(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Refuses when no file can be written in a private directory, which is made if it is not there.
pub(super) fn require_writable(dir: &Path) -> Result<(), CliError> {
    keys::make_private_dir(dir)?;
    let probe = dir.join(format!("{PROBE}{}", random_name()?));
    write_private(&probe, "written to see whether it can be")?;
    remove(&probe)
}

/// Reads text without the blanks at its end from a file, or from stdin if the path is `-`.
pub(super) fn read_text(path: &Path) -> Result<String, CliError> {
    let mut text = read_exact_text(path)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// Reads text from a file, or from stdin if the path is `-`. Stdin is read once: a second reader would get nothing.
pub(super) fn read_exact_text(path: &Path) -> Result<String, CliError> {
    read_bounded(path, TEXT_BYTES_MAX)
}

/// The same with a bound of its own, in bytes.
pub(super) fn read_bounded(path: &Path, bytes_max: usize) -> Result<String, CliError> {
    let limit = u64::try_from(bytes_max)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut text = String::new();
    let subject = if path == Path::new("-") {
        if STDIN_IS_READ.swap(true, Ordering::Relaxed) {
            return Err(CliError::usage(
                "`-` is given twice, but stdin can be read only once",
            ));
        }
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_string(&mut text)
            .map_err(io_error("stdin"))?;
        "stdin".to_owned()
    } else {
        let file = std::fs::File::open(path).map_err(io_error(path.display()))?;
        file.take(limit)
            .read_to_string(&mut text)
            .map_err(io_error(path.display()))?;
        path.display().to_string()
    };
    if text.len() > bytes_max {
        return Err(CliError::usage(format!(
            "{subject}: expected at most {bytes_max} bytes, got more"
        )));
    }
    Ok(text)
}

/// How the name of a file begins that was written only to see whether it can be.
pub(super) const PROBE: &str = "probe-";
static STDIN_IS_READ: AtomicBool = AtomicBool::new(false);
/// Longest token, evidence or value read, in bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;
