//! Exit codes of `exec`: its own outcomes have a range that common tools leave free, so that a command's exit code is never
//! taken for a denial, nor a denial for the command's.

use std::ops::RangeInclusive;

use crate::cli::error::CliError;
use crate::model::{Exit, Reason};

/// The codes that only `exec` itself exits with. Shells, `timeout`, `xargs` and `env` use 124 to 165, sysexits 64 to 78, curl
/// up to 101, systemd 200 to 245.
pub(super) const RESERVED: RangeInclusive<u8> = 110..=120;
/// The task or its token was ended while the command ran.
pub(super) const ENDED: u8 = 117;
/// `exec` failed before the command ran.
const FAILED: u8 = 118;
/// From the codes of the other commands (10 to 20) to those of `exec`.
const OFFSET: u8 = 100;

/// The code of an outcome of `exec` itself. A usage error is 2, as for every program.
pub(super) const fn of_outcome(exit: Exit) -> u8 {
    match exit {
        Exit::Success | Exit::UsageError => exit.number(),
        Exit::Failed => FAILED,
        Exit::Denied
        | Exit::Pending
        | Exit::ApprovalTimeout
        | Exit::QuorumUnreachable
        | Exit::Unavailable
        | Exit::Conflict
        | Exit::LimitExceeded
        | Exit::NotAuthenticated => exit.number().saturating_add(OFFSET),
    }
}

/// The code of an error that kept the command from running.
pub(super) fn of_error(error: &CliError) -> u8 {
    match error.reason {
        Some(Reason::TaskEnded) => ENDED,
        Some(_) | None => of_outcome(error.exit),
    }
}

/// The code to exit with for the command's own: 1 if it is reserved.
pub(super) fn of_command(code: u8) -> u8 {
    match RESERVED.contains(&code) {
        true => 1,
        false => code,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn outcomes_and_command_codes_never_coincide() {
        let mut outcomes = BTreeSet::from([ENDED]);
        for exit in Exit::ALL {
            let code = of_outcome(*exit);
            let expected = *exit != Exit::Success && *exit != Exit::UsageError;
            assert_eq!(RESERVED.contains(&code), expected, "{exit:?}");
            assert!(outcomes.insert(code), "{exit:?}: {code} is used twice");
        }
        for code in 0..=u8::MAX {
            let reported = of_command(code);
            assert!(!RESERVED.contains(&reported), "{code}");
            assert_eq!(reported == code, !RESERVED.contains(&code), "{code}");
        }
        for taken in [1..=2, 64..=78, 124..=165] {
            assert!(taken.into_iter().all(|code| !RESERVED.contains(&code)));
        }
    }
}
