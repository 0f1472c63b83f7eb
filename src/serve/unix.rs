//! The Unix socket: a door for processes of this host.
//!
//! In: a path. Out: connections with the user id of the process at the other end. Who may connect is for the socket's mode
//! and its directory to say. Refuses a path at which another broker listens, or something that is no socket lies.

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
        /// What the system said.
        source: io::Error,
    },
    /// Another process accepts connections there.
    #[error("{}: another process listens there", .0.display())]
    Live(PathBuf),
    /// It would have to be removed, and it is not a socket.
    #[error("{}: is not a socket, and is left alone", .0.display())]
    NotASocket(PathBuf),
}

/// A bound Unix socket; unlinked when dropped, if it is still the one that was bound.
#[derive(Debug)]
pub struct GuardedUnixListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    node: (u64, u64),
}

impl GuardedUnixListener {
    /// Binds the path, mode 0660. What a broker that is dead left there is removed.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::bind_with(path, MODE)
    }

    /// Binds the path with a mode of its own.
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
                // A full backlog or a mode that keeps us out is a living process's as well.
                Ok(_) | Err(_) => return Err(SocketError::Live(path.to_owned())),
            },
        }
        // Bound under another name and given its mode there: at its own name it never stands open to others. A link,
        // unlike a rename, replaces nothing that another process bound meanwhile.
        let mut making = path.as_os_str().to_owned();
        making.push(format!(".{}", std::process::id()));
        let making = PathBuf::from(making);
        let _left_by_a_process_of_this_id = std::fs::remove_file(&making);
        let listener = UnixListener::bind(&making).map_err(io)?;
        let placed = std::fs::set_permissions(&making, std::fs::Permissions::from_mode(mode))
            .and_then(|()| std::fs::hard_link(&making, path))
            .and_then(|()| std::fs::symlink_metadata(path));
        let _gone = std::fs::remove_file(&making);
        let placed = placed.map_err(io)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            node: (placed.dev(), placed.ino()),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, and the user id of the process that made it.
    pub(super) async fn accept(&mut self) -> io::Result<(UnixStream, u32)> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, uid))
    }
}

impl Drop for GuardedUnixListener {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.node);
        if ours {
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
    async fn a_dead_one_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("dipylon.sock");
        let door = GuardedUnixListener::bind(&path).expect("bound");
        let mode = std::fs::metadata(&path).expect("there").mode() & 0o777;
        assert_eq!(mode, 0o660);
        assert!(matches!(
            GuardedUnixListener::bind(&path),
            Err(SocketError::Live(_))
        ));
        drop(door);
        assert!(!path.exists());
        // As a process leaves it that was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        let door = GuardedUnixListener::bind(&path).expect("the dead one is replaced");
        // Somebody else's by now: not ours to unlink.
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "").expect("a file");
        drop(door);
        assert!(path.exists());
        assert!(matches!(
            GuardedUnixListener::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 1);
    }
}
