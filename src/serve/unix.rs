//! Unix sockets: a listener for processes of this host.
//!
//! In: a path. Out: connections with the user id of the client's process. The modes of the socket and its directory decide
//! who may connect. Refuses a path on which another process listens, or which is another kind of file.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Why the Unix socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path.
    #[error("{}: {source}", path.display())]
    Io {
        /// As configured.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process accepts connections there.
    #[error("{}: another process listens on this socket; stop it or configure another path", .0.display())]
    Live(PathBuf),
    /// The path exists and is not a socket.
    #[error("{}: expected a socket or no file, got another kind of file; remove it or configure another path", .0.display())]
    NotASocket(PathBuf),
}

/// A bound Unix socket; unlinked when dropped, unless another file has replaced it.
#[derive(Debug)]
pub struct GuardedUnixListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    node: (u64, u64),
}

impl GuardedUnixListener {
    /// Binds the path, mode 0660. A stale socket of a broker that was killed is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::bind_with(path, MODE)
    }

    /// Binds the path with another mode.
    pub(super) fn bind_with(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(io)?;
                }
                // A full backlog or a mode that denies the broker belongs to a running process as well.
                Ok(_) | Err(_) => return Err(SocketError::Live(path.to_owned())),
            },
        }
        // Bound under a temporary name and given its mode there, so that it is never open to others under its own. A link,
        // unlike a rename, replaces no socket that another process bound meanwhile.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let _left_by_a_process_of_this_id = std::fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary).map_err(io)?;
        let placed = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))
            .and_then(|()| std::fs::hard_link(&temporary, path))
            .and_then(|()| std::fs::symlink_metadata(path));
        let _gone = std::fs::remove_file(&temporary);
        let placed = placed.map_err(io)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            node: (placed.dev(), placed.ino()),
        })
    }

    /// The path it is bound to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, and the user id of the client's process.
    pub(super) async fn accept(&mut self) -> io::Result<(UnixStream, u32)> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, uid))
    }
}

impl Drop for GuardedUnixListener {
    fn drop(&mut self) {
        let is_own_socket = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.node);
        if is_own_socket {
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}

/// The owner and the group may connect.
const MODE: u32 = 0o660;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stale_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("dipylon.sock");
        let listener = GuardedUnixListener::bind(&path).expect("bound");
        let mode = std::fs::metadata(&path).expect("there").mode() & 0o777;
        assert_eq!(mode, 0o660);
        assert!(matches!(
            GuardedUnixListener::bind(&path),
            Err(SocketError::Live(_))
        ));
        drop(listener);
        assert!(!path.exists());
        // As a killed process leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        let listener = GuardedUnixListener::bind(&path).expect("the stale one is replaced");
        // Replaced by another process meanwhile: not unlinked.
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "").expect("a file");
        drop(listener);
        assert!(path.exists());
        assert!(matches!(
            GuardedUnixListener::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 1);
    }
}
