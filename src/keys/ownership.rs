//! Owners and modes of files: whether another user of this host could change or replace one.
//!
//! In: the owner and mode of each step to a file. Out: nothing, or the first step whose owner or mode lets another user change
//! the file. Root and the user of this process are trusted; a group is trusted where it is root's or, by the convention of
//! private groups, has the number of the owner.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Why a file cannot be trusted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OwnershipError {
    /// Another user owns it, and so can change it and its mode.
    #[error("{}: expected {} as the owner, got {}, who can change it; {}", path.display(), Expected(*user), Owner(*owner), Advice { owner: *owner, user: *user })]
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
    /// A directory on the way has a mode that lets other users replace what is in it.
    #[error("{}: mode {mode:03o} lets other users replace {}; run chmod go-w", dir.display(), path.display())]
    ReplaceableIn {
        /// The directory.
        dir: PathBuf,
        /// Its mode.
        mode: u32,
        /// The file in question.
        path: PathBuf,
    },
    /// A directory on the way belongs to another user, who can replace what is in it.
    #[error("{}: expected {} as the owner, got {}, who can replace {}; {}", dir.display(), Expected(*user), Owner(*owner), path.display(), Advice { owner: *owner, user: *user })]
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
    /// A symbolic link on the way belongs to another user, who chose where it leads.
    #[error("{}: expected {} as the owner of this symbolic link, got {}, who decides which file {} is; {}", link.display(), Expected(*user), Owner(*owner), path.display(), Advice { owner: *owner, user: *user })]
    Link {
        /// The symbolic link.
        link: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
        /// The file in question.
        path: PathBuf,
    },
}

/// The users who may own a file.
struct Expected(u32);

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ROOT => f.write_str("root (who runs this program)"),
            user => write!(f, "root or user {user} (who runs this program)"),
        }
    }
}

/// The user who owns a file.
struct Owner(u32);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_unmapped(self.0) {
            write!(
                f,
                "a user that this user namespace does not map (shown as {})",
                self.0
            )
        } else {
            write!(f, "user {}", self.0)
        }
    }
}

/// What to do about a file of another user. Only one of the two is right: a broker's files that are given to the user who
/// checks them are lost to the broker.
struct Advice {
    owner: u32,
    user: u32,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, user } = self;
        if is_unmapped(*owner) {
            return f.write_str("run this outside the user namespace, or map the owner into it");
        }
        write!(
            f,
            "if user {owner} is the broker's user, run this as the broker's user, else run chown "
        )?;
        match *user {
            ROOT => f.write_str("root"),
            user => write!(f, "{user}"),
        }
    }
}

/// Whether a user id is the one that stands for every user outside this process's user namespace.
fn is_unmapped(user: u32) -> bool {
    static UNMAPPED: OnceLock<Option<u32>> = OnceLock::new();
    let unmapped = UNMAPPED.get_or_init(|| {
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?;
        let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
        unmapped_user(&overflow, &map)
    });
    *unmapped == Some(user)
}

/// The overflow user id, where the namespace does not map it to a user of its own (user_namespaces(7)).
fn unmapped_user(overflow: &str, map: &str) -> Option<u32> {
    let overflow: u32 = overflow.trim().parse().ok()?;
    let is_mapped = map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(overflow))
    });
    (!is_mapped).then_some(overflow)
}

/// The owner, group and mode of an open file.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    pub(super) owner: u32,
    pub(super) group: u32,
    pub(super) mode: u32,
}

impl Facts {
    pub(super) const fn of(found: &rustix::fs::Stat) -> Self {
        Self {
            owner: found.st_uid,
            group: found.st_gid,
            mode: found.st_mode & 0o7777,
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

/// Checks the owner of a file or directory.
pub(super) fn check_owner(path: &Path, facts: Facts, user: u32) -> Result<(), OwnershipError> {
    if facts.owner == ROOT || facts.owner == user {
        return Ok(());
    }
    Err(OwnershipError::Owner {
        path: path.to_owned(),
        owner: facts.owner,
        user,
    })
}

/// Checks the owner of a file or directory, and that no other user may write it.
pub(super) fn check_own(path: &Path, facts: Facts, user: u32) -> Result<(), OwnershipError> {
    check_owner(path, facts, user)?;
    if facts.is_writable() {
        return Err(OwnershipError::Writable {
            path: path.to_owned(),
            mode: facts.mode & 0o777,
        });
    }
    Ok(())
}

/// Checks a directory on the way to `path`.
pub(super) fn check_parent(
    dir: &Path,
    path: &Path,
    facts: Facts,
    user: u32,
) -> Result<(), OwnershipError> {
    if facts.owner != ROOT && facts.owner != user {
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

/// Checks a symbolic link on the way to `path`. Its mode has no meaning.
pub(super) fn check_link(
    link: &Path,
    path: &Path,
    facts: Facts,
    user: u32,
) -> Result<(), OwnershipError> {
    if facts.owner == ROOT || facts.owner == user {
        return Ok(());
    }
    Err(OwnershipError::Link {
        link: link.to_owned(),
        owner: facts.owner,
        user,
        path: path.to_owned(),
    })
}

const ROOT: u32 = 0;

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

    #[test]
    fn unmapped_users() {
        let whole = "         0          0 4294967295\n";
        assert_eq!(unmapped_user("65534\n", whole), None);
        assert_eq!(unmapped_user("65534\n", "0 0 1\n"), Some(65_534));
        assert_eq!(unmapped_user("65534\n", "0 1000 1\n1 100000 65536\n"), None);
        assert_eq!(
            unmapped_user("65534\n", "0 1000 1\n1 100000 65533\n"),
            Some(65_534)
        );
        assert_eq!(unmapped_user("", whole), None);
    }

    #[test]
    fn advice_for_root_is_to_run_as_the_owner() {
        let error = OwnershipError::Owner {
            path: "/k".into(),
            owner: 7,
            user: ROOT,
        };
        assert_eq!(
            error.to_string(),
            "/k: expected root (who runs this program) as the owner, got user 7, who can change it; \
             if user 7 is the broker's user, run this as the broker's user, else run chown root"
        );
    }
}
