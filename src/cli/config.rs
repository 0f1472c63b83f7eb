//! `config check`, `config show`: what a configuration means, without a broker.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::config_checks;
use super::error::CliError;
use super::{Common, Output, dev};
use crate::clock::Clock;
use crate::config::{Config as Read, SettingOrigin, to_toml};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say all that is wrong with a configuration and the files it names
    Check {
        /// The configuration
        file: PathBuf,
    },
    /// Print the effective configuration: every key, its value, and where that comes from
    Show {
        /// The configuration; without one, the development broker's
        file: Option<PathBuf>,
    },
}

pub(super) fn run(
    common: &Common,
    output: &Output,
    command: ConfigCommand,
) -> Result<ExitCode, CliError> {
    match command {
        ConfigCommand::Check { file } => {
            let (first, config) = config_checks::check_configuration(&file);
            let mut found = vec![first];
            if let Some(config) = &config {
                found.push(config_checks::check_files(config));
                found.push(config_checks::check_trust_domains(config));
                found.push(config_checks::check_transport(config));
                found.extend(config_checks::check_certificate(
                    config,
                    Clock::system().now(),
                ));
                found.extend(
                    config
                        .policy
                        .as_deref()
                        .map(config_checks::check_policy_directory),
                );
            }
            Ok(config_checks::print_findings(output, found))
        }
        ConfigCommand::Show { file } => {
            let file = match file {
                Some(file) => file,
                None => dev::DevConfig::load(common)?.dir().join(dev::CONFIG_FILE),
            };
            let (_, shown) = Read::read_effective(&file)?;
            output.print(
                || {
                    let keys: Vec<Value> = shown
                        .iter()
                        .map(|one| {
                            let line = match one.origin {
                                SettingOrigin::Line(line) => Some(line),
                                SettingOrigin::Default => None,
                            };
                            json!({ "key": one.key, "value": one.value, "line": line })
                        })
                        .collect();
                    json!({ "file": file, "keys": keys })
                },
                || to_toml(&shown),
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}
