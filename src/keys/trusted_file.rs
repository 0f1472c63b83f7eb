//! Trusted files: what no other user could have put there, checked and read in one go.
//!
//! In: a path. Out: the content of the file, or why the file cannot be trusted. The path is followed component by component
//! with open directories: owner and mode of each directory and the owner of each symbolic link are checked before the next
//! step is made from it, and the file that is read is the open file whose owner and mode were checked. So another user can
//! neither replace the file nor win a race between the check and the read. Never logs or prints a content.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, PROC_SUPER_MAGIC};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::ownership::{self, Facts, OwnershipError};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file or its directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Another user could change or replace it.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
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
    /// A directory, a pipe or a device.
    #[error("{}: is not a regular file; check the path", .0.display())]
    NotAFile(PathBuf),
    /// Not a directory.
    #[error("{}: expected a directory, got another kind of file; check the path", .0.display())]
    NotADirectory(PathBuf),
    /// The file is too long.
    #[error("{}: expected at most {bytes_max} bytes, got more; check the path", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The longest length, in bytes.
        bytes_max: u64,
    },
    /// The file is no text.
    #[error("{}: expected UTF-8 text, got other bytes", .0.display())]
    NotText(PathBuf),
}

/// Which files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Every user may read it, no other may write it.
    Public,
    /// Only its owner may read it: mode 0600 or less.
    Private,
    /// As `Private`, or a pipe that this process inherited, as of a shell's `<(…)`.
    PrivateOrPipe,
}

/// Reads a file of at most `bytes_max` bytes that no other user could have put there or changed.
///
/// # Errors
/// The first step on the way that another user could change, or the file's own error.
pub fn read_trusted_file(
    path: &Path,
    access: FileAccess,
    bytes_max: u64,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let io = io_error(path);
    let target = follow(path)?.ok_or_else(|| io(Errno::NOENT))?;
    // A pipe without a writer would never open.
    let (file, found) = target
        .open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
        .map_err(io)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => {}
        FileType::Fifo if access == FileAccess::PrivateOrPipe && target.is_inherited => {
            rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(io)?;
        }
        _ => return Err(FileError::NotAFile(path.to_owned())),
    }
    let facts = Facts::of(&found);
    match access {
        FileAccess::Public => ownership::check_own(path, facts, current_user())?,
        FileAccess::Private | FileAccess::PrivateOrPipe => {
            ownership::check_owner(path, facts, current_user())?;
            check_mode(path, facts, 0o600)?;
        }
    }
    // One allocation: a secret leaves no copy behind.
    let length = u64::try_from(found.st_size).unwrap_or(0).min(bytes_max);
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(length).unwrap_or(0).saturating_add(1),
    ));
    File::from(file)
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Io {
            path: path.to_owned(),
            source,
        })?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(FileError::TooLong {
            path: path.to_owned(),
            bytes_max,
        });
    }
    Ok(bytes)
}

/// Reads a text that every user may read, as [`read_trusted_file`] does.
pub fn read_trusted_text(path: &Path, bytes_max: u64) -> Result<String, FileError> {
    let bytes = read_trusted_file(path, FileAccess::Public, bytes_max)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::NotText(path.to_owned()))?;
    Ok(text.to_owned())
}

/// The names in a directory that no other user could have put there or changed, in order.
pub fn list_trusted_dir(path: &Path) -> Result<Vec<OsString>, FileError> {
    let io = io_error(path);
    let target = follow(path)?.ok_or_else(|| io(Errno::NOENT))?;
    let (dir, found) = target
        .open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
        .map_err(io)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Err(FileError::NotADirectory(path.to_owned()));
    }
    ownership::check_own(path, Facts::of(&found), current_user())?;
    let mut names = Vec::new();
    for entry in Dir::new(dir).map_err(io)? {
        let name = entry.map_err(io)?;
        let name = OsStr::from_bytes(name.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Checks a file or directory and each step to it. What does not exist is no problem: only a trusted user can create it, if
/// the directories above are trusted and not shared.
pub fn check_trusted(path: &Path) -> Result<(), FileError> {
    let Some(target) = follow(path)? else {
        return Ok(());
    };
    let (_, found) = target.open(OFlags::PATH).map_err(io_error(path))?;
    Ok(ownership::check_own(
        path,
        Facts::of(&found),
        current_user(),
    )?)
}

/// Checks that a directory is one that only its owner may use. What does not exist is no problem.
pub(super) fn check_private_dir(path: &Path) -> Result<(), FileError> {
    let found = match rustix::fs::stat(path) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(io_error(path)(errno)),
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Err(FileError::NotADirectory(path.to_owned()));
    }
    check_mode(path, Facts::of(&found), 0o700)
}

/// Checks that a mode gives no more access than `wanted`.
fn check_mode(path: &Path, facts: Facts, wanted: u32) -> Result<(), FileError> {
    let mode = facts.mode & 0o777;
    if mode & !wanted == 0 {
        Ok(())
    } else {
        Err(FileError::TooPermissive {
            path: path.to_owned(),
            mode,
            wanted,
        })
    }
}

fn current_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The end of a path: a name in an open directory.
struct Target {
    dir: OwnedFd,
    name: OsString,
    /// The name stands for a file that this process has open.
    is_inherited: bool,
}

impl Target {
    /// Opens the file, and returns its owner and mode with it.
    fn open(&self, flags: OFlags) -> Result<(OwnedFd, rustix::fs::Stat), Errno> {
        let mut flags = flags | OFlags::CLOEXEC;
        if !self.is_inherited {
            flags |= OFlags::NOFOLLOW;
        }
        let file = rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&file)?;
        Ok((file, found))
    }
}

/// Follows a path to its end, and checks each directory and symbolic link on the way. `None`: a component does not exist.
fn follow(path: &Path) -> Result<Option<Target>, FileError> {
    let user = current_user();
    let io = io_error(path);
    let written = std::path::absolute(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    let root = || -> Result<(PathBuf, OwnedFd), FileError> {
        let at = PathBuf::from("/");
        let dir = rustix::fs::open(&at, STEP, Mode::empty()).map_err(io)?;
        let found = rustix::fs::fstat(&dir).map_err(io)?;
        ownership::check_parent(&at, path, Facts::of(&found), user)?;
        Ok((at, dir))
    };
    let (mut at, mut dir) = root()?;
    let mut pending = Vec::new();
    push_components(&mut pending, &written);
    let mut links = 0_u32;
    while let Some(name) = pending.pop() {
        let step = match name == ".." {
            true => at.parent().unwrap_or(&at).to_owned(),
            false => at.join(&name),
        };
        let mut next = match rustix::fs::openat(&dir, &name, STEP, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(io(errno)),
        };
        let mut found = rustix::fs::fstat(&next).map_err(io)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
            if rustix::fs::fstatfs(&next).map_err(io)?.f_type == PROC_SUPER_MAGIC {
                // The kernel's own links lead to open files, which no text names: such as those of /dev/stdin.
                if pending.is_empty() {
                    return Ok(Some(Target {
                        dir,
                        name,
                        is_inherited: true,
                    }));
                }
                let followed = STEP.difference(OFlags::NOFOLLOW);
                next = rustix::fs::openat(&dir, &name, followed, Mode::empty()).map_err(io)?;
                found = rustix::fs::fstat(&next).map_err(io)?;
            } else {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io(Errno::LOOP));
                }
                ownership::check_link(&step, path, Facts::of(&found), user)?;
                let to = rustix::fs::readlinkat(&next, "", Vec::new()).map_err(io)?;
                let to = PathBuf::from(OsString::from_vec(to.into_bytes()));
                if to.is_absolute() {
                    (at, dir) = root()?;
                }
                push_components(&mut pending, &to);
                continue;
            }
        }
        if pending.is_empty() {
            return Ok(Some(Target {
                dir,
                name,
                is_inherited: false,
            }));
        }
        ownership::check_parent(&step, path, Facts::of(&found), user)?;
        (at, dir) = (step, next);
    }
    Ok(Some(Target {
        dir,
        name: ".".into(),
        is_inherited: false,
    }))
}

/// Puts the components of a path on a stack, the first on top.
fn push_components(pending: &mut Vec<OsString>, path: &Path) {
    pending.extend(path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }));
}

fn io_error(path: &Path) -> impl Fn(Errno) -> FileError + Copy + '_ {
    |errno| FileError::Io {
        path: path.to_owned(),
        source: errno.into(),
    }
}

/// Opens a component without reading it, and without following it.
const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Most symbolic links on a way: Linux's own limit (path_resolution(7)).
const LINKS_MAX: u32 = 40;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};

    use super::*;

    const NOBODY: u32 = 65_534;

    fn put(path: &Path, bytes: &[u8], mode: u32) {
        std::fs::write(path, bytes).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn text(path: &Path) -> Result<String, String> {
        read_trusted_text(path, 8).map_err(|error| error.to_string())
    }

    #[test]
    fn links_lead_to_trusted_files() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/b")).expect("dirs");
        put(&at("a/file"), b"x", 0o644);
        for (link, to) in [
            ("relative", "a/file"),
            ("up", "a/b/../file"),
            ("twice", "./relative"),
            ("a/b/above", "../../twice"),
            ("dir", "a/b"),
            ("loop", "loop"),
            ("nothing", "none"),
        ] {
            symlink(to, at(link)).expect("link");
        }
        symlink(at("a"), at("absolute")).expect("link");
        for name in [
            "relative",
            "up",
            "twice",
            "a/b/above",
            "dir/above",
            "dir/../file",
            "absolute/file",
            "a/./b/../../a/file",
        ] {
            assert_eq!(text(&at(name)), Ok("x".to_owned()), "{name}");
        }
        for (name, part) in [
            ("loop", "symbolic links"),
            ("nothing", "No such file"),
            ("none/x", "No such file"),
            ("a/file/x", "Not a directory"),
            ("dir", "not a regular file"),
            ("a/b/..", "not a regular file"),
        ] {
            let error = text(&at(name)).expect_err(name);
            assert!(error.contains(part), "{name}: {error}");
        }
        assert!(check_trusted(&at("none/x")).is_ok());
        assert!(check_trusted(Path::new("/")).is_ok());
        assert_eq!(
            list_trusted_dir(&at("absolute")).expect("listed"),
            ["b", "file"]
        );
        assert!(matches!(
            list_trusted_dir(&at("relative")),
            Err(FileError::NotADirectory(_))
        ));
    }

    #[test]
    fn each_step_belongs_to_root_or_this_user() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        for name in ["theirs", "shared", "ours"] {
            std::fs::create_dir(at(name)).expect("dir");
        }
        put(&at("ours/file"), b"x", 0o644);
        put(&at("theirs/file"), b"x", 0o644);
        symlink("theirs/file", at("into")).expect("link");
        symlink("theirs/back", at("through")).expect("link");
        symlink(at("ours/file"), at("theirs/back")).expect("link");
        symlink(at("ours"), at("shared/dir")).expect("link");
        symlink(at("ours"), at("shared/ours")).expect("link");
        chown(at("theirs"), Some(NOBODY), None).expect("given");
        lchown(at("shared/dir"), Some(NOBODY), None).expect("given");
        let shared = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(at("shared"), shared).expect("chmod");
        for name in ["into", "through", "theirs/../ours/file"] {
            let found = read_trusted_text(&at(name), 8);
            let is_dir = |error: &FileError| matches!(error, FileError::Ownership(OwnershipError::ReplaceableBy { dir, owner: NOBODY, .. }) if dir.ends_with("theirs"));
            assert!(found.as_ref().is_err_and(is_dir), "{name}: {found:?}");
        }
        let found = read_trusted_text(&at("shared/dir/file"), 8);
        assert!(
            matches!(&found, Err(FileError::Ownership(OwnershipError::Link { link, owner: NOBODY, .. })) if *link == at("shared/dir")),
            "{found:?}"
        );
        assert_eq!(text(&at("shared/ours/file")), Ok("x".to_owned()));
    }

    #[test]
    fn kinds_modes_and_lengths() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("file");
        let read = |access, bytes_max| read_trusted_file(&file, access, bytes_max);
        put(&file, b"12345678", 0o600);
        assert_eq!(read(FileAccess::Private, 8).expect("read").len(), 8);
        assert!(matches!(
            read(FileAccess::Private, 7),
            Err(FileError::TooLong { bytes_max: 7, .. })
        ));
        put(&file, b"\xff", 0o644);
        assert!(matches!(
            read_trusted_text(&file, 8),
            Err(FileError::NotText(_))
        ));
        assert!(read(FileAccess::Public, 8).is_ok());
        assert!(matches!(
            read(FileAccess::Private, 8),
            Err(FileError::TooPermissive { mode: 0o644, .. })
        ));
        put(&file, b"", 0o602);
        assert!(matches!(
            read(FileAccess::Public, 8),
            Err(FileError::Ownership(OwnershipError::Writable { .. }))
        ));
    }

    #[test]
    fn only_inherited_pipes_are_read() {
        let (reader, mut writer) = std::io::pipe().expect("pipe");
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        writer.write_all(b"key").expect("written");
        drop(writer);
        for access in [FileAccess::Public, FileAccess::Private] {
            assert!(matches!(
                read_trusted_file(&path, access, 8),
                Err(FileError::NotAFile(_))
            ));
        }
        let read = read_trusted_file(&path, FileAccess::PrivateOrPipe, 8).expect("read");
        assert_eq!(read.as_slice(), b"key");
        let dir = tempfile::tempdir().expect("dir");
        let fifo = dir.path().join("fifo");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).expect("a pipe");
        assert!(matches!(
            read_trusted_file(&fifo, FileAccess::PrivateOrPipe, 8),
            Err(FileError::NotAFile(_))
        ));
    }
}
