//! The `dipylon` program: parses its arguments, runs the command and exits with its code.

use std::process::ExitCode;

use dipylon::cli::{self, Cli};

fn main() -> ExitCode {
    match Cli::from_arguments(std::env::args_os()) {
        Ok(cli) => cli::run(cli),
        Err(error) => error.exit(),
    }
}
