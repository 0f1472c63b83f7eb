//! The `dipylon` program: runs the command in its arguments and exits with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    dipylon::cli::run(std::env::args_os())
}
