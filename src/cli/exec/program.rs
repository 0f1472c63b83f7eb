//! The child process of `exec`: looked up before approval is requested, run in its own process group, with signals forwarded.

use std::ffi::{OsStr, OsString};
use std::future::poll_fn;
use std::io::IsTerminal as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::task::Poll;

use rustix::process::{Pid, Signal};
use tokio::process::Command;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::cli::error::{CliError, io_error};

/// Why the command did not run, with the exit code a shell gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpawnError {
    #[error("command not found")]
    NotFound,
    #[error("not executable")]
    NotRunnable,
}

impl SpawnError {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::NotRunnable => 126,
        }
    }
}

/// Looks the command up as `execvp` does, so that no approval is requested for a command that cannot run.
pub(super) fn find(program: &OsStr) -> Result<(), SpawnError> {
    let path = Path::new(program);
    if path.components().count() > 1 || path.is_absolute() {
        return runnable(path);
    }
    let dirs = std::env::var_os("PATH").unwrap_or_else(|| OsString::from(PATH));
    let mut found = Err(SpawnError::NotFound);
    for dir in std::env::split_paths(&dirs) {
        match runnable(&dir.join(path)) {
            Ok(()) => return Ok(()),
            Err(SpawnError::NotRunnable) => found = Err(SpawnError::NotRunnable),
            Err(SpawnError::NotFound) => {}
        }
    }
    found
}

fn runnable(path: &Path) -> Result<(), SpawnError> {
    let file = std::fs::metadata(path).map_err(|_| SpawnError::NotFound)?;
    if file.is_file() && file.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err(SpawnError::NotRunnable)
    }
}

/// The signals this process receives, once it listens.
pub(super) struct Signals {
    streams: Vec<(Signal, Stream)>,
}

impl Signals {
    /// Listens for the signals that stop a program. Signals ignored from the start (`nohup`) stay ignored, here and in the
    /// command.
    pub(super) fn listen() -> Result<Self, CliError> {
        let mut signals = Self {
            streams: Vec::new(),
        };
        signals.add(&[Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT])?;
        Ok(signals)
    }

    fn add(&mut self, which: &[Signal]) -> Result<(), CliError> {
        let ignored = ignored();
        for signal_kind in which {
            let number = signal_kind.as_raw();
            if ignored & (1_u64.wrapping_shl(number.unsigned_abs().saturating_sub(1))) == 0 {
                let stream = signal(SignalKind::from_raw(number)).map_err(io_error("signals"))?;
                self.streams.push((*signal_kind, stream));
            }
        }
        Ok(())
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|cx| {
            for (which, stream) in &mut self.streams {
                if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                    return Poll::Ready(*which);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Signals ignored from the start, one bit each (proc(5), `SigIgn`); none if that cannot be read.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// The exit code of a process ended by a signal, as shells give it.
pub(super) fn signal_code(signal: i32) -> u8 {
    u8::try_from(128_i32.saturating_add(signal)).unwrap_or(u8::MAX)
}

/// The command line and environment of the child.
pub(super) struct Spawn<'a> {
    pub(super) command: &'a [OsString],
    pub(super) environment: &'a [(&'static str, OsString)],
    /// Variables to remove.
    pub(super) without: &'a [&'static str],
}

/// Runs the command to its end and gives its exit code. `started` is called once it runs; when `stop` gives a signal, the
/// command gets it, once.
pub(super) async fn run(
    spawn: &Spawn<'_>,
    signals: &mut Signals,
    started: impl FnOnce(),
    stop: impl Future<Output = Option<Signal>>,
) -> Result<u8, SpawnError> {
    let (program, arguments) = spawn.command.split_first().ok_or(SpawnError::NotFound)?;
    let group = ProcessGroup::choose();
    let mut command = Command::new(program);
    command.args(arguments);
    for name in spawn.without {
        command.env_remove(name);
    }
    for (name, value) in spawn.environment {
        command.env(name, value);
    }
    if group == ProcessGroup::New {
        command.process_group(0);
    }
    let more: &[Signal] = match group {
        ProcessGroup::New => &[
            Signal::USR1,
            Signal::USR2,
            Signal::WINCH,
            Signal::TSTP,
            Signal::CONT,
        ],
        ProcessGroup::Inherited => &[Signal::USR1, Signal::USR2],
    };
    signals.add(more).map_err(|_| SpawnError::NotRunnable)?;
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => SpawnError::NotFound,
        _ => SpawnError::NotRunnable,
    })?;
    started();
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
        .ok_or(SpawnError::NotRunnable)?;
    tokio::pin!(stop);
    let mut stopped = false;
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map(code).map_err(|_| SpawnError::NotRunnable),
            signal = signals.next() => group.forward(pid, signal),
            signal = &mut stop, if !stopped => {
                stopped = true;
                if let Some(signal) = signal {
                    group.send(pid, signal);
                }
            }
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => signal_code(signal),
        (None, None) => u8::MAX,
    }
}

/// The process group of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProcessGroup {
    /// A new group: every received signal is forwarded to the whole group.
    New,
    /// This process's group, in the foreground of a terminal that the command may read. The terminal itself sends the signals
    /// of its keys (INT, QUIT, TSTP) to the command, so they are not forwarded.
    Inherited,
}

impl ProcessGroup {
    fn choose() -> Self {
        let stdin = std::io::stdin();
        let foreground = stdin.is_terminal()
            && rustix::termios::tcgetpgrp(&stdin)
                .is_ok_and(|group| group == rustix::process::getpgrp());
        if foreground {
            Self::Inherited
        } else {
            Self::New
        }
    }

    /// Sends a signal of this program's own.
    fn send(self, child: Pid, signal: Signal) {
        // An error means the child has exited: the next turn of the loop reaps it.
        let _ignored = match self {
            Self::New => rustix::process::kill_process_group(child, signal),
            Self::Inherited => rustix::process::kill_process(child, signal),
        };
    }

    fn forward(self, child: Pid, signal: Signal) {
        // An error means the child has exited: the next turn of the loop reaps it.
        let _ignored = match self {
            Self::New => rustix::process::kill_process_group(child, signal),
            Self::Inherited if signal == Signal::INT || signal == Signal::QUIT => Ok(()),
            Self::Inherited => rustix::process::kill_process(child, signal),
        };
        if self == Self::New && signal == Signal::TSTP {
            // Stop with it; CONT continues both. No keep-alives are sent meanwhile.
            let _stopped = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
        }
    }
}

/// The default PATH (execvp(3)).
const PATH: &str = "/bin:/usr/bin";

/// Keeps this process's memory, and the task's key in it, from the user's other processes and from core dumps (prctl(2),
/// PR_SET_DUMPABLE). False if the system cannot.
pub(super) fn forbid_memory_access() -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// A directory with mode 0700, removed on drop.
#[derive(Debug)]
pub(super) struct PrivateDir(PathBuf);

impl PrivateDir {
    pub(super) fn make() -> Result<Self, CliError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let runtime = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute() && dir.is_dir());
        let parent = runtime.unwrap_or_else(std::env::temp_dir);
        let path = parent.join(format!("dipylon-{}", crate::client::random_name()?));
        // Never an existing directory.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(io_error(path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ignored = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lookup_follows_path() {
        assert_eq!(find(OsStr::new("sh")), Ok(()));
        assert_eq!(find(OsStr::new("/bin/sh")), Ok(()));
        assert_eq!(
            find(OsStr::new("no-such-command-at-all")),
            Err(SpawnError::NotFound)
        );
        assert_eq!(find(OsStr::new("/no/such")), Err(SpawnError::NotFound));
        assert_eq!(
            find(OsStr::new("/etc/passwd")),
            Err(SpawnError::NotRunnable)
        );
        assert_eq!(find(OsStr::new("/")), Err(SpawnError::NotRunnable));
        assert_eq!(
            (SpawnError::NotFound.code(), SpawnError::NotRunnable.code()),
            (127, 126)
        );
    }

    #[test]
    fn exit_codes_follow_shell_convention() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(15)), 143);
        assert_eq!(signal_code(2), 130);
    }

    #[test]
    fn private_dir_is_removed_on_drop() {
        let dir = PrivateDir::make().expect("dir");
        let path = dir.0.clone();
        let mode = std::fs::metadata(&path)
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        std::fs::write(dir.join("x"), "x").expect("file");
        drop(dir);
        assert!(!path.exists());
    }
}
