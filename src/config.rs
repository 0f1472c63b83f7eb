//! The configuration file, read strictly: an unknown key is an error, relative paths are relative to the file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::broker::Settings;
use crate::model::{Malformed, Realm, TrustDomain, parse_duration};
use crate::rates::{RATE_MAX, Rates};
use crate::telemetry::logs::Format;

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
    /// Where operators read figures; nowhere unless configured.
    pub operator_listen: Option<OperatorAddress>,
    /// How log lines are written.
    pub log: Format,
    /// The OTLP collector that gets spans of calls.
    pub otlp_endpoint: Option<String>,
}

/// Where operators read figures: on this machine alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorAddress {
    /// A loopback address.
    Tcp(SocketAddr),
    /// `unix:PATH`, relative to the configuration file.
    Unix(PathBuf),
}

impl OperatorAddress {
    fn parse(text: &str, base: &Path) -> Result<Self, Malformed> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(base.join(path)));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) | Err(_) => Err(Malformed::new(
                "operator_listen",
                "must be a loopback address and port, or unix:PATH",
            )),
        }
    }
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
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{}: {source}", path.display())]
    Toml {
        /// Which.
        path: PathBuf,
        /// Why, with the line.
        source: Box<toml::de::Error>,
    },
    /// A value that is not of its form.
    #[error("{}: {source}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which value.
        source: Malformed,
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
    operator_listen: Option<String>,
    #[serde(default)]
    log: Format,
    otlp_endpoint: Option<String>,
    #[serde(default)]
    rates: Rates,
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
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io {
            path: path.to_owned(),
            source,
        })?;
        let file: File = toml::from_str(&text).map_err(|e| ConfigError::Toml {
            path: path.to_owned(),
            source: Box::new(e),
        })?;
        let base = path.parent().unwrap_or(Path::new("."));
        Self::check(file, base).map_err(|source| ConfigError::Value {
            path: path.to_owned(),
            source,
        })
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
            rates: bounded(file.rates)?,
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
            operator_listen: file
                .operator_listen
                .map(|text| OperatorAddress::parse(&text, base))
                .transpose()?,
            log: file.log,
            otlp_endpoint: file.otlp_endpoint.map(collector).transpose()?,
        })
    }
}

/// A collector that this binary can speak to.
fn collector(endpoint: String) -> Result<String, Malformed> {
    if !cfg!(feature = "otlp") {
        return Err(Malformed::new(
            "otlp_endpoint",
            "this binary was built without the feature otlp",
        ));
    }
    if !endpoint.starts_with("http://") {
        return Err(Malformed::new(
            "otlp_endpoint",
            "must be http://host:port: a collector beside the broker",
        ));
    }
    Ok(endpoint)
}

/// Rates that limit something.
fn bounded(rates: Rates) -> Result<Rates, Malformed> {
    let Rates {
        source_per_second,
        source_reserved_per_second,
        caller_per_second,
        caller_reserved_per_second,
        calls_at_once,
        reserved_at_once,
    } = rates;
    for (what, n) in [
        ("rates.source_per_second", source_per_second),
        (
            "rates.source_reserved_per_second",
            source_reserved_per_second,
        ),
        ("rates.caller_per_second", caller_per_second),
        (
            "rates.caller_reserved_per_second",
            caller_reserved_per_second,
        ),
        ("rates.calls_at_once", calls_at_once),
        ("rates.reserved_at_once", reserved_at_once),
    ] {
        if n.get() > RATE_MAX {
            return Err(Malformed::new(what, format!("must be at most {RATE_MAX}")));
        }
    }
    Ok(rates)
}

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
        assert_eq!(config.settings.rates, Rates::default());
        assert_eq!((config.operator_listen, config.log), (None, Format::Text));
        let more = "operator_listen = \"127.0.0.1:9100\"\nlog = \"json\"\n";
        let config = read(&format!("{more}{GOOD}[rates]\ncaller_per_second = 7\n")).expect("good");
        assert_eq!(config.settings.rates.caller_per_second.get(), 7);
        assert_eq!(
            config.operator_listen,
            Some(OperatorAddress::Tcp(
                "127.0.0.1:9100".parse().expect("address")
            ))
        );
        assert_eq!(config.log, Format::Json);
        for (from, to, told) in [
            ("realm", "reallm", "unknown field"),
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
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[rates]\ncalls_at_once = 0\n",
                "nonzero",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[rates]\nsource_per_second = 1000001\n",
                "rates.source_per_second",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[rates]\nper_second = 1\n",
                "unknown field",
            ),
            (
                "realm = \"r\"",
                "realm = \"r\"\noperator_listen = \"0.0.0.0:9100\"",
                "operator_listen",
            ),
            (
                "realm = \"r\"",
                "realm = \"r\"\noperator_listen = \"unix:\"",
                "operator_listen",
            ),
            (
                "realm = \"r\"",
                "realm = \"r\"\nlog = \"xml\"",
                "unknown variant",
            ),
            (
                "realm = \"r\"",
                "realm = \"r\"\notlp_endpoint = \"ftp://c\"",
                "otlp_endpoint",
            ),
        ] {
            let told_us = read(&GOOD.replacen(from, to, 1)).expect_err(to);
            assert!(told_us.contains(told), "{to}: {told_us}");
        }
    }
}
