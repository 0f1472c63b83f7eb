//! `config`: check a configuration file, or print the effective settings; needs no broker.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::config_checks;
use super::error::CliError;
use super::finding::print_findings;
use super::{Common, Output, dev};
use crate::clock::Clock;
use crate::config::{Config, ConfigOverrides, SettingOrigin, to_toml};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Report every problem of a configuration and of the files it names
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Print the effective configuration: every key with its value and origin (line or default)
    Show {
        /// The configuration file [default: the development broker's]
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
            let overrides = ConfigOverrides::default();
            let (finding, config) = config_checks::check_configuration(&file, &overrides);
            let mut findings = vec![finding];
            if let Some(config) = &config {
                findings.extend(config_checks::check_start(config, Clock::system().now()));
                findings.push(config_checks::check_journal(config));
            }
            Ok(print_findings(output, findings))
        }
        ConfigCommand::Show { file } => {
            let file = match file {
                Some(file) => file,
                None => dev::DevConfig::load(common)?.dir().join(dev::CONFIG_FILE),
            };
            let (_, settings) = Config::read_effective(&file)?;
            output.print(
                || {
                    let keys: Vec<Value> = settings
                        .iter()
                        .map(|setting| {
                            let line = match setting.origin {
                                SettingOrigin::Line(line) => Some(line),
                                SettingOrigin::Default => None,
                            };
                            json!({ "key": setting.key, "value": setting.value, "line": line })
                        })
                        .collect();
                    json!({ "file": file, "keys": keys })
                },
                || to_toml(&settings),
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}
