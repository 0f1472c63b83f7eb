//! Owners and modes of files: whether another user of this host could change or replace one.
//!
//! In: a path. Out: nothing, or the first file on the way whose owner or mode lets another user change it. Root and the
//! user of this process are trusted; a group is trusted where it is root's or, by the convention of private groups, has the
//! number of the owner.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Why a file cannot be trusted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OwnershipError {
    /// Another user owns it, and so can change it and its mode.
    #[error("{}: expected root or user {user} (who runs this program) as the owner, got user {owner}, who can change it; run chown {user}", path.display())]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Its mode lets other users write.
    #[error("{}: mode {mode:03o} lets other users change it, expected {:03o}; run chmod go-w", path.display(), mode & 0o755)]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A directory above has a mode that lets other users replace what is in it.
    #[error("{}: mode {mode:03o} lets other users replace {}; run chmod go-w", dir.display(), path.display())]
    ReplaceableIn {
        /// The directory.
        dir: PathBuf,
        /// Its mode.
        mode: u32,
        /// The file in question.
        path: PathBuf,
    },
    /// A directory above belongs to another user, who can replace what is in it.
    #[error("{}: expected root or user {user} (who runs this program) as the owner, got user {owner}, who can replace {}", dir.display(), path.display())]
    ReplaceableBy {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
        /// The file in question.
        path: PathBuf,
    },
}

/// Checks a file or directory and every directory above it, as the path is written and as its links lead. What does not exist
/// is no problem: only a trusted user can create it, if the directories above are trusted.
pub fn check_with_parents(path: &Path) -> Result<(), OwnershipError> {
    let user = rustix::process::geteuid().as_raw();
    if let Ok(found) = std::fs::metadata(path) {
        check_own(path, Facts::of(&found), user)?;
    }
    let written = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut ways = vec![written.clone()];
    ways.extend(written.canonicalize());
    for way in ways {
        for dir in way.ancestors().skip(1) {
            if let Ok(found) = std::fs::metadata(dir) {
                check_parent(dir, path, Facts::of(&found), user)?;
            }
        }
    }
    Ok(())
}

/// Checks a file or directory alone.
pub fn check(path: &Path, found: &Metadata) -> Result<(), OwnershipError> {
    check_own(path, Facts::of(found), rustix::process::geteuid().as_raw())
}

/// Checks the owner of a file or directory alone.
pub fn check_owner(path: &Path, found: &Metadata) -> Result<(), OwnershipError> {
    owner_is_trusted(path, Facts::of(found), rustix::process::geteuid().as_raw())
}

#[derive(Clone, Copy)]
struct Facts {
    owner: u32,
    group: u32,
    mode: u32,
}

impl Facts {
    fn of(found: &Metadata) -> Self {
        Self {
            owner: found.uid(),
            group: found.gid(),
            mode: found.mode() & 0o7777,
        }
    }

    /// Whether users other than the owner and a trusted group may write.
    const fn is_writable(self) -> bool {
        let private_group = self.group == 0 || self.group == self.owner;
        self.mode & 0o002 != 0 || (self.mode & 0o020 != 0 && !private_group)
    }

    /// Whether only owners may remove or rename what is in a directory.
    const fn is_sticky(self) -> bool {
        self.mode & 0o1000 != 0
    }
}

fn owner_is_trusted(path: &Path, facts: Facts, user: u32) -> Result<(), OwnershipError> {
    if facts.owner == 0 || facts.owner == user {
        return Ok(());
    }
    Err(OwnershipError::Owner {
        path: path.to_owned(),
        owner: facts.owner,
        user,
    })
}

fn check_own(path: &Path, facts: Facts, user: u32) -> Result<(), OwnershipError> {
    owner_is_trusted(path, facts, user)?;
    if facts.is_writable() {
        return Err(OwnershipError::Writable {
            path: path.to_owned(),
            mode: facts.mode & 0o777,
        });
    }
    Ok(())
}

fn check_parent(dir: &Path, path: &Path, facts: Facts, user: u32) -> Result<(), OwnershipError> {
    if facts.owner != 0 && facts.owner != user {
        return Err(OwnershipError::ReplaceableBy {
            dir: dir.to_owned(),
            owner: facts.owner,
            user,
            path: path.to_owned(),
        });
    }
    if facts.is_writable() && !facts.is_sticky() {
        return Err(OwnershipError::ReplaceableIn {
            dir: dir.to_owned(),
            mode: facts.mode & 0o777,
            path: path.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes() {
        const USER: u32 = 1_000;
        let path = Path::new("/x/y");
        for (owner, group, mode, own, parent) in [
            (0, 0, 0o755, true, true),
            (USER, USER, 0o700, true, true),
            (USER, USER, 0o775, true, true),
            (0, 0, 0o775, true, true),
            (USER, 50, 0o755, true, true),
            (USER, 50, 0o775, false, false),
            (USER, USER, 0o757, false, false),
            (0, 0, 0o1777, false, true),
            (0, 50, 0o1775, false, true),
            (1_001, 1_001, 0o700, false, false),
            (1_001, 0, 0o1777, false, false),
        ] {
            let facts = Facts { owner, group, mode };
            let text = format!("{owner}:{group} {mode:o}");
            assert_eq!(check_own(path, facts, USER).is_ok(), own, "{text}");
            assert_eq!(
                check_parent(Path::new("/x"), path, facts, USER).is_ok(),
                parent,
                "{text}"
            );
        }
        let other = check_own(
            path,
            Facts {
                owner: 7,
                group: 7,
                mode: 0o700,
            },
            USER,
        );
        let text = other.expect_err("refused").to_string();
        assert!(
            text.contains("got user 7") && text.contains("chown 1000"),
            "{text}"
        );
    }
}
