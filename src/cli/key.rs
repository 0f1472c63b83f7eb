//! `key new`: a key for a person or a service.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::Output;
use super::error::CliError;
use crate::jose::PublicKey;
use crate::keys;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a private key in a file only you can read, and print its public half for people.toml
    New {
        /// The file; never replaced
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Whose key it will be, as people.toml calls the person or service
        #[arg(long, value_name = "ID", default_value = "…")]
        of: String,
    },
    /// Print the public half of a key
    Show {
        /// The file
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Whose key it is
        #[arg(long, value_name = "ID", default_value = "…")]
        of: String,
    },
}

pub(super) fn run(output: &Output, command: KeyCommand) -> Result<ExitCode, CliError> {
    let (key, of, path) = match command {
        KeyCommand::New { out, of } => (keys::create(&out)?, of, out),
        KeyCommand::Show { key, of } => (keys::read(&key)?, of, key),
    };
    output.print(
        || json!({ "file": path, "thumbprint": key.thumbprint().to_string(), "jwk": key.public().to_jwk() }),
        || format!("# {}\n{}", path.display(), people_toml(&of, key.public())),
    );
    Ok(ExitCode::SUCCESS)
}

/// The table that registers a key in people.toml.
pub(super) fn people_toml(of: &str, key: &PublicKey) -> String {
    let jwk = key.to_jwk();
    let member = |name: &str| {
        jwk.get(name)
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    format!(
        "[[key]]\nof = \"{of}\"\njwk = {{ kty = \"{}\", crv = \"{}\", x = \"{}\", y = \"{}\" }}\n",
        member("kty"),
        member("crv"),
        member("x"),
        member("y")
    )
}
