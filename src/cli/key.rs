//! `key`: create private keys of people and services, and print public keys.

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
    /// Create a private key in a file with mode 0600, and print the public key for people.toml
    New {
        /// The file to create; an existing file is never replaced
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The person's or service's id, for the printed [[key]] table
        #[arg(long, value_name = "ID", default_value = "…")]
        of: String,
    },
    /// Print the public key of a private key file
    Show {
        /// The private key file
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The person's or service's id, for the printed [[key]] table
        #[arg(long, value_name = "ID", default_value = "…")]
        of: String,
    },
}

pub(super) fn run(output: &Output, command: KeyCommand) -> Result<ExitCode, CliError> {
    let (key, of, path) = match command {
        KeyCommand::New { out, of } => {
            output.require_writable()?;
            (keys::create(&out)?, of, out)
        }
        KeyCommand::Show { key, of } => (keys::read(&key)?, of, key),
    };
    output.print(
        || json!({ "file": path, "thumbprint": key.thumbprint().to_string(), "jwk": key.public().to_jwk() }),
        || format!("# {}\n{}", path.display(), people_toml(&of, key.public())),
    );
    Ok(ExitCode::SUCCESS)
}

/// The `[[key]]` table that registers a key in people.toml.
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
