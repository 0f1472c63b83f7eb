//! The `dipylon` program: reads its arguments, calls a verb, exits with the verb's code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    dipylon::cli::run(dipylon::cli::Cli::parse())
}
