//! The `dipylon` program: parses its arguments, runs the command and exits with its code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    dipylon::cli::run(dipylon::cli::Cli::parse())
}
