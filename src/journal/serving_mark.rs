//! Serving mark: a time, written ahead in the data directory, before which the broker may have answered calls and from which
//! on it has answered none. It tells the next start how long no broker served.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::model::Timestamp;

/// The mark of a broker that serves. Until [`ServingMark::start`] it writes nothing.
///
/// INVARIANT (no answer beyond the mark): a broker answers a call of a moment only while the mark in its directory is later.
#[derive(Debug)]
pub struct ServingMark {
    dir: PathBuf,
    /// The mark in the directory, in milliseconds; the maximum before the start.
    until: AtomicI64,
    /// Held while the file is written; true once the broker has stopped.
    stopped: Mutex<bool>,
}

/// How far ahead the mark is written, in milliseconds.
const AHEAD_MS: i64 = 2_000;
/// The mark is written anew when less than this is left, in milliseconds.
const RENEW_MS: i64 = 1_000;
/// Name of the file in the data directory: milliseconds since 1970 in decimal digits, and a line feed.
const FILE: &str = "served-until";
/// Longest content of the file, in bytes.
const FILE_BYTES_MAX: usize = 20;

impl ServingMark {
    /// A mark for a data directory.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            until: AtomicI64::new(i64::MAX),
            stopped: Mutex::default(),
        }
    }

    /// The mark of the last broker that served this directory; `None` where it left none that can be read.
    pub fn last(&self) -> Option<Timestamp> {
        let content = std::fs::read(self.dir.join(FILE)).ok()?;
        let digits = content.strip_suffix(b"\n")?;
        let is_plain = content.len() <= FILE_BYTES_MAX
            && !digits.is_empty()
            && digits.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(digits).ok().filter(|_| is_plain)?;
        text.parse().ok().map(Timestamp::from_millis)
    }

    /// Writes the first mark: calls are answered from now on.
    pub fn start(&self, now: Timestamp) -> std::io::Result<()> {
        let _writing = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(now.plus_millis(AHEAD_MS))
    }

    /// Whether a call of this moment may be answered.
    pub fn covers(&self, now: Timestamp) -> bool {
        now.millis() < self.until.load(Ordering::SeqCst)
    }

    /// Moves the mark ahead of a moment that it does not cover. Blocks for one write to the disk: the maintenance renews the
    /// mark in time, so this happens only after a stall or a jump of the clock.
    pub fn ensure_covers(&self, now: Timestamp) -> std::io::Result<()> {
        let _writing = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if self.covers(now) {
            return Ok(());
        }
        self.write(now.plus_millis(AHEAD_MS))
    }

    /// Whether the mark should be written anew.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now.plus_millis(RENEW_MS).millis() >= self.until.load(Ordering::SeqCst)
    }

    /// Writes the mark anew when it is due, for a broker that has not stopped. Blocks.
    pub fn renew(&self, now: Timestamp) -> std::io::Result<()> {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if *stopped || !self.is_due(now) {
            return Ok(());
        }
        self.write(now.plus_millis(AHEAD_MS))
    }

    /// Moves the mark back to the moment after the last answer: the broker has stopped. Blocks.
    pub fn stop(&self, now: Timestamp) -> std::io::Result<()> {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        *stopped = true;
        self.write(now.plus_millis(1))
    }

    /// Replaces the file durably. When that fails, removes it: without a mark the next start assumes nothing.
    fn write(&self, until: Timestamp) -> std::io::Result<()> {
        let written = self.replace(until);
        if written.is_err() {
            match std::fs::remove_file(self.dir.join(FILE)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::error!(%error, "the file {FILE} can neither be written nor removed");
                }
                Ok(()) | Err(_) => {}
            }
        }
        self.until.store(until.millis(), Ordering::SeqCst);
        written
    }

    fn replace(&self, until: Timestamp) -> std::io::Result<()> {
        let (path, new) = (self.dir.join(FILE), self.dir.join(format!("{FILE}.new")));
        let mut file = std::fs::File::create(&new)?;
        file.write_all(format!("{}\n", until.millis()).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        // The new name is durable before an answer relies on it.
        std::fs::File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn the_mark_is_ahead_of_every_answer() {
        let dir = tempfile::tempdir().expect("dir");
        let mark = ServingMark::new(dir.path());
        let on_disk = || ServingMark::new(dir.path()).last();
        assert_eq!(on_disk(), None, "no broker served");
        assert!(mark.covers(NOW), "before the start nothing is written");
        mark.ensure_covers(NOW).expect("nothing to do");
        assert_eq!(on_disk(), None);

        mark.start(NOW).expect("written");
        assert_eq!(on_disk(), Some(NOW.plus_millis(2_000)));
        assert!(mark.covers(NOW.plus_millis(1_999)) && !mark.covers(NOW.plus_millis(2_000)));
        assert!(!mark.is_due(NOW.plus_millis(999)) && mark.is_due(NOW.plus_millis(1_000)));
        mark.renew(NOW.plus_millis(999)).expect("not due");
        assert_eq!(on_disk(), Some(NOW.plus_millis(2_000)));
        mark.renew(NOW.plus_millis(1_000)).expect("written");
        assert_eq!(on_disk(), Some(NOW.plus_millis(3_000)));

        let late = NOW.plus_secs(60);
        mark.ensure_covers(late).expect("written");
        assert_eq!(on_disk(), Some(late.plus_millis(2_000)));

        // Exact at a stop; only an answer after it moves the mark again.
        mark.stop(late).expect("written");
        assert_eq!(on_disk(), Some(late.plus_millis(1)));
        assert!(mark.covers(late) && !mark.covers(late.plus_millis(1)));
        mark.renew(late.plus_secs(1)).expect("it has stopped");
        assert_eq!(on_disk(), Some(late.plus_millis(1)));
        mark.ensure_covers(late.plus_millis(1)).expect("written");
        assert_eq!(on_disk(), Some(late.plus_millis(2_001)));
    }

    #[test]
    fn only_a_whole_mark_is_read() {
        let dir = tempfile::tempdir().expect("dir");
        let last = |content: &str| {
            std::fs::write(dir.path().join(FILE), content).expect("file");
            ServingMark::new(dir.path()).last()
        };
        assert_eq!(last("1800000000000\n"), Some(NOW));
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
            assert_eq!(last(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_mark_that_cannot_be_written_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let mark = ServingMark::new(dir.path());
        mark.start(NOW).expect("written");
        // A directory in the place of the new file.
        std::fs::create_dir(dir.path().join(format!("{FILE}.new"))).expect("dir");
        let late = NOW.plus_secs(60);
        assert!(mark.ensure_covers(late).is_err());
        assert_eq!(mark.last(), None, "the old mark is earlier than the answer");
        assert!(mark.covers(late), "and the answer is not held up again");
    }
}
