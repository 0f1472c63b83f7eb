//! The configuration file, read strictly: an unknown key is an error, relative paths are relative to the file.
//!
//! In: a file. Out: a [`Config`], or all that is wrong with keys and lines. Refuses secrets that are written into it: they
//! are named by path. Never repeats a value it refused as a secret.

mod show;
mod strict;

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::broker::Settings;
use crate::model::{Malformed, Realm, TrustDomain, parse_duration};

pub use show::{Origin, Shown, to_toml};
pub use strict::Wrong;

/// What a broker is configured to be, and where its things lie.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the hall needs to know.
    pub settings: Settings,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The journal's directory.
    pub data_dir: PathBuf,
    /// The signing key's directory.
    pub key_dir: PathBuf,
    /// Trust domains and the files of their SPIFFE trust bundles.
    pub trust_domains: Vec<(TrustDomain, PathBuf)>,
    /// The directory of the policy bundle that seeds an empty journal.
    pub policy: Option<PathBuf>,
    /// Development: loopback only, and callers are told why gate 1 refused.
    pub dev: bool,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What it says: one or more things, each with its line.
    #[error("{}", found.iter().map(|one| format!("{}: {one}", path.display())).collect::<Vec<_>>().join("\n"))]
    Wrong {
        /// Which.
        path: PathBuf,
        /// At least one.
        found: Vec<Wrong>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    realm: String,
    listen: SocketAddr,
    external_url: String,
    issuer: Option<String>,
    evidence_audience: Option<String>,
    data_dir: PathBuf,
    key_dir: PathBuf,
    policy: Option<PathBuf>,
    #[serde(default)]
    dev: bool,
    #[serde(default)]
    limits: Limits,
    #[serde(default, rename = "trust_domain")]
    trust_domains: Vec<Domain>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Limits {
    ttl_cap: Option<String>,
    task_cap: Option<String>,
    max_evidence_age: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Domain {
    name: String,
    bundle: PathBuf,
}

impl Config {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::understood(&read_text(path)?, path)
    }

    fn understood(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |found| ConfigError::Wrong {
            path: path.to_owned(),
            found,
        };
        let base = path.parent().unwrap_or(Path::new("."));
        let (mut rest, mut found) = (text.to_owned(), Vec::new());
        // One value is told at a time; the rest is read without it, as far as it can be left out.
        for _ in 0..strict::WRONG_MAX {
            match strict::parse(&rest).map(|file: File| Self::check(file, base)) {
                Ok(Ok(config)) if found.is_empty() => return Ok(config),
                Err(more) if found.is_empty() => return Err(wrong(more)),
                Ok(Ok(_)) | Err(_) => break,
                Ok(Err(error)) => {
                    let (told, key) = strict::value(&rest, &error);
                    found.push(told);
                    match key {
                        Some(key) => strict::blank(&mut rest, &key),
                        None => break,
                    }
                }
            }
        }
        Err(wrong(strict::in_order(found)))
    }

    fn check(file: File, base: &Path) -> Result<Self, Malformed> {
        let external_url = file.external_url;
        let http = external_url
            .strip_prefix("https://")
            .or_else(|| external_url.strip_prefix("http://"));
        let authority = http.filter(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"/?#@".contains(&b))
        });
        if authority.is_none() {
            return Err(Malformed::new(
                "external_url",
                "must be http:// or https:// and a host, without path, query or trailing slash",
            ));
        }
        if file.dev && !file.listen.ip().is_loopback() {
            return Err(Malformed::new(
                "listen",
                "a development broker listens on loopback only",
            ));
        }
        let seconds = |what, text: Option<String>, default: i64, max: i64| match text {
            None => Ok(default),
            Some(text) => match i64::from(parse_duration(what, &text)?) {
                n if n <= max => Ok(n),
                _ => Err(Malformed::new(
                    what,
                    format!("must be at most {max} seconds"),
                )),
            },
        };
        let issuer = file.issuer.unwrap_or_else(|| external_url.clone());
        let settings = Settings {
            realm: Realm::parse(&file.realm)?,
            evidence_audience: file.evidence_audience.unwrap_or_else(|| issuer.clone()),
            issuer,
            external_url,
            ttl_cap: seconds(
                "limits.ttl_cap",
                file.limits.ttl_cap,
                TTL_CAP_S,
                crate::jose::access_token::TTL_MAX_S,
            )?,
            task_cap: seconds(
                "limits.task_cap",
                file.limits.task_cap,
                TASK_CAP_S,
                30 * TASK_CAP_S,
            )?,
            max_evidence_age: seconds(
                "limits.max_evidence_age",
                file.limits.max_evidence_age,
                MAX_EVIDENCE_AGE_S,
                TASK_CAP_S,
            )?,
            tell_callers: file.dev,
        };
        let domain = |d: Domain| Ok((TrustDomain::parse(&d.name)?, base.join(d.bundle)));
        Ok(Self {
            settings,
            listen: file.listen,
            data_dir: base.join(file.data_dir),
            key_dir: base.join(file.key_dir),
            trust_domains: file
                .trust_domains
                .into_iter()
                .map(domain)
                .collect::<Result<_, Malformed>>()?,
            policy: file.policy.map(|p| base.join(p)),
            dev: file.dev,
        })
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let io = |source| ConfigError::Io {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    if read.map_err(io)? as u64 > FILE_BYTES_MAX {
        return Err(io(std::io::Error::other(format!(
            "longer than {FILE_BYTES_MAX} bytes"
        ))));
    }
    Ok(text)
}

/// Longest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Longest life of a token unless configured: 15 minutes.
const TTL_CAP_S: i64 = 900;
/// Longest life of a task unless configured: a day.
const TASK_CAP_S: i64 = 86_400;
/// Longest time since evidence was verified unless configured: 5 minutes.
const MAX_EVIDENCE_AGE_S: i64 = 300;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "realm = \"r\"\nlisten = \"127.0.0.1:7700\"\nexternal_url = \"http://127.0.0.1:7700\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n";

    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("dipylon.toml");
        std::fs::write(&path, text).expect("written");
        Config::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let config = read(GOOD).expect("good");
        assert_eq!(config.settings.issuer, "http://127.0.0.1:7700");
        assert_eq!(config.settings.ttl_cap, 900);
        assert!(config.data_dir.is_absolute() && !config.dev);
        for (from, to, told) in [
            (
                "realm",
                "reallm",
                "unknown key `reallm` at line 1; did you mean `realm`?",
            ),
            (
                "http://127.0.0.1:7700",
                "http://127.0.0.1:7700/",
                "external_url",
            ),
            ("http://127.0.0.1:7700", "ftp://x", "external_url"),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[limits]\nttl_cap = \"0s\"\n",
                "ttl_cap",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[limits]\nttl_cap = \"2h\"\n",
                "at most",
            ),
            (
                "listen = \"127.0.0.1:7700\"",
                "dev = true\nlisten = \"0.0.0.0:7700\"",
                "loopback",
            ),
            ("realm = \"r\"", "realm = \"a/b\"", "realm"),
        ] {
            let told_us = read(&GOOD.replacen(from, to, 1)).expect_err(to);
            assert!(told_us.contains(told), "{to}: {told_us}");
        }
        let two = "[limits]\ntask_cap = \"1y\"\nttl_cap = \"2h\"\n";
        let told = read(&format!("{GOOD}{two}")).expect_err("both");
        let lines: Vec<_> = told
            .lines()
            .map(|line| line.rsplit("at line ").next())
            .collect();
        assert_eq!(lines, [Some("7"), Some("8")], "{told}");
    }
}
