//! Stop mark: a file in the data directory with the time until which the last broker served. It is there from a clean stop to
//! the next start, and never while a broker serves. It tells that start how long no broker served.

use std::path::{Path, PathBuf};

use crate::model::Timestamp;

/// The mark of a clean stop.
///
/// INVARIANT (no mark while a broker serves): the file is gone durably before the first call is answered, and comes back only
/// after the last answer. So serving needs no write to it, whatever the disk does; a broker that crashed has left none.
#[derive(Debug, Clone)]
pub struct StopMark {
    dir: PathBuf,
}

/// Name of the file in the data directory: milliseconds since 1970 in decimal digits, and a line feed.
const FILE: &str = "served-until";
/// Longest content of the file, in bytes.
const FILE_BYTES_MAX: usize = 20;

impl StopMark {
    /// The mark of a data directory.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The moment before which the last broker answered and from which on none did; `None` where it left no whole mark.
    pub fn read(&self) -> Option<Timestamp> {
        let content = std::fs::read(self.dir.join(FILE)).ok()?;
        let digits = content.strip_suffix(b"\n")?;
        let is_plain = content.len() <= FILE_BYTES_MAX
            && !digits.is_empty()
            && digits.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(digits).ok().filter(|_| is_plain)?;
        text.parse().ok().map(Timestamp::from_millis)
    }

    /// Removes the mark durably: calls are answered from now on. Blocks.
    pub fn remove(&self) -> std::io::Result<()> {
        match std::fs::remove_file(self.dir.join(FILE)) {
            // Also without a file: an earlier removal may not be durable yet.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => self.sync_dir(),
        }
    }

    /// Writes the mark: no call is answered from `until` on. Whole or not at all. Blocks.
    pub fn write(&self, until: Timestamp) -> std::io::Result<()> {
        use std::io::Write as _;
        let new = self.dir.join(format!("{FILE}.new"));
        let mut file = std::fs::File::create(&new)?;
        file.write_all(format!("{}\n", until.millis()).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, self.dir.join(FILE))?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> std::io::Result<()> {
        std::fs::File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn the_mark_is_there_from_a_stop_to_a_start() {
        let dir = tempfile::tempdir().expect("dir");
        let mark = StopMark::new(dir.path());
        assert_eq!(mark.read(), None, "no broker served");
        mark.remove().expect("nothing to remove");
        mark.write(NOW).expect("written");
        mark.write(NOW.plus_millis(1)).expect("written again");
        assert_eq!(mark.read(), Some(NOW.plus_millis(1)));
        mark.remove().expect("removed");
        assert_eq!(mark.read(), None);
    }

    #[test]
    fn only_a_whole_mark_is_read() {
        let dir = tempfile::tempdir().expect("dir");
        let read = |content: &str| {
            std::fs::write(dir.path().join(FILE), content).expect("file");
            StopMark::new(dir.path()).read()
        };
        assert_eq!(read("1800000000000\n"), Some(NOW));
        for bad in [
            "",
            "\n",
            "1800000000000",
            "1800000000000\n\n",
            " 1800000000000\n",
            "-1\n",
            "+1\n",
            "1.5\n",
            "18000000000000000000\n",
            "00000000000001800000000000\n",
            "now\n",
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_mark_that_cannot_be_removed_is_an_error() {
        let dir = tempfile::tempdir().expect("dir");
        // A directory in the place of the file.
        std::fs::create_dir(dir.path().join(FILE)).expect("dir");
        StopMark::new(dir.path()).remove().expect_err("no file");
    }
}
