//! `config check`, `config show`: what a configuration means, without a broker.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::checkup::{self, Finding};
use super::failure::Failure;
use super::{Common, Say, dev};
use crate::clock::Clock;
use crate::config::{Config as Read, SettingOrigin, to_toml};
use crate::model::Exit;

#[derive(Debug, Subcommand)]
pub(super) enum Config {
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

pub(super) fn run(common: &Common, say: &Say, verb: Config) -> Result<ExitCode, Failure> {
    match verb {
        Config::Check { file } => {
            let (first, config) = checkup::configuration(&file);
            let mut found = vec![first];
            if let Some(config) = &config {
                found.push(checkup::files(config));
                found.push(checkup::trust(config));
                found.push(checkup::transport(config));
                found.extend(checkup::certificate(config, Clock::system().now()));
                found.extend(config.policy.as_deref().map(checkup::policy_directory));
            }
            Ok(told(say, found))
        }
        Config::Show { file } => {
            let file = match file {
                Some(file) => file,
                None => dev::Home::of(common)?.dir().join(dev::CONFIG_FILE),
            };
            let (_, shown) = Read::read_effective(&file)?;
            say.either(
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

/// Prints findings; the exit code says whether any failed.
pub(super) fn told(say: &Say, found: Vec<Finding>) -> ExitCode {
    let failed = found.iter().any(Finding::failed);
    say.either(
        || {
            let all: Vec<_> = found.iter().map(Finding::to_json).collect();
            json!({ "good": !failed, "findings": all })
        },
        || {
            let mut text = String::new();
            for finding in &found {
                finding.lines(0, &mut text);
            }
            text
        },
    );
    let exit = if failed { Exit::Failed } else { Exit::Success };
    ExitCode::from(exit.number())
}
