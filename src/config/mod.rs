//! Configuration: the TOML file of a broker, read strictly: an unknown key is an error, relative paths are relative to the
//! file.
//!
//! In: a file. Out: a [`Config`], or every problem with its key and line. Refuses secrets as values: the file names them by
//! path. Never repeats a value it refused as a secret.

mod document;
mod effective;
mod file;
mod reader;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::broker::BrokerSettings;
use crate::keys::{self, FileError};
use crate::model::TrustDomain;
use crate::telemetry::logs::LogFormat;
use document::{Document, in_order};
use file::KNOWN_KEYS;

pub use document::ConfigProblem;
pub use effective::{EffectiveSetting, SettingOrigin, to_toml};

/// The configuration of a broker: settings, listeners, and the paths of its files.
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings of the broker itself.
    pub settings: BrokerSettings,
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The journal's directory.
    pub data_dir: PathBuf,
    /// The signing key's directory.
    pub key_dir: PathBuf,
    /// Trust domains and the files of their SPIFFE trust bundles.
    pub trust_domains: Vec<(TrustDomain, PathBuf)>,
    /// The directory of the policy bundle that seeds an empty journal.
    pub policy: Option<PathBuf>,
    /// Development: loopback only, and callers learn why gate 1 refused.
    pub dev: bool,
    /// The broker's own TLS certificate.
    pub tls: Option<TlsFiles>,
    /// A proxy terminates TLS, and only the proxy can reach the address: without it a broker without TLS listens on loopback.
    pub tls_at_proxy: bool,
    /// A Unix socket to listen on beside the address.
    pub unix_socket: Option<PathBuf>,
    /// Bounds on connections.
    pub connections: ConnectionLimits,
    /// The address of metrics and probes; none unless configured.
    pub admin_listen: Option<AdminAddress>,
    /// The format of log lines.
    pub log: LogFormat,
    /// The OTLP collector that gets spans of calls.
    pub otlp_endpoint: Option<String>,
}

/// The address of metrics and probes: on this machine only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A loopback address.
    Tcp(SocketAddr),
    /// `unix:PATH`, relative to the configuration file.
    Unix(PathBuf),
}

/// Values of the command line that replace those of the file.
#[derive(Debug, Clone, Default)]
pub struct ConfigOverrides {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--data-dir`, relative to the working directory.
    pub data_dir: Option<PathBuf>,
    /// `--policy`, relative to the working directory.
    pub policy: Option<PathBuf>,
}

/// The files of the broker's own TLS certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, readable by its owner alone.
    pub key: PathBuf,
}

/// Bounds on connections, for each listener by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections; further ones wait in the kernel's backlog. Default 1,024, at most 65,536.
    pub max: usize,
    /// Open connections of one IPv4 address or IPv6 /64, or of one user of the Unix socket but root and the broker's own;
    /// further ones are closed at once. Default 128, at most `max`.
    pub max_per_source: usize,
    /// From the accept to the first whole request header, TLS handshake included. Default 5 s; 1 s to a minute.
    pub first_request_timeout: Duration,
    /// A connection without a request for this long is closed. Default one minute; 1 s to an hour.
    pub idle_timeout: Duration,
    /// A connection is closed gracefully at this age, a fifth more or less. Default 30 minutes; 1 s to a day.
    pub max_age: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max: CONNECTIONS_DEFAULT,
            max_per_source: CONNECTIONS_PER_SOURCE_DEFAULT,
            first_request_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            max_age: Duration::from_secs(30 * 60),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or another user could have changed it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file's content, each problem on a line of its own.
    #[error("{}", problems.iter().map(|problem| format!("{}: {problem}", path.display())).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// At least one.
        problems: Vec<ConfigProblem>,
    },
}

impl Config {
    /// Reads a configuration file that no other user could have changed.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with(path, &ConfigOverrides::default())
    }

    /// Reads a configuration file, with values of the command line in place of the file's.
    pub fn read_with(path: &Path, overrides: &ConfigOverrides) -> Result<Self, ConfigError> {
        Self::parse(
            &keys::read_trusted_text(path, FILE_BYTES_MAX)?,
            path,
            overrides,
        )
    }

    fn parse(text: &str, path: &Path, overrides: &ConfigOverrides) -> Result<Self, ConfigError> {
        // An absolute base: the length of a socket's path is counted from the root.
        let file = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let base = file.parent().unwrap_or(Path::new("/"));
        Document::parse(text, KNOWN_KEYS)
            .and_then(|document| file::read(&document, base, overrides))
            .map_err(|problems| ConfigError::Invalid {
                path: path.to_owned(),
                problems: in_order(problems),
            })
    }
}

/// Longest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Default of [`ConnectionLimits::max`].
const CONNECTIONS_DEFAULT: usize = 1_024;
/// Default of [`ConnectionLimits::max_per_source`].
const CONNECTIONS_PER_SOURCE_DEFAULT: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::RateLimitConfig;

    const GOOD: &str = "realm = \"r\"\nlisten = \"127.0.0.1:7700\"\nexternal_url = \"http://127.0.0.1:7700\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n";

    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("dipylon.toml");
        std::fs::write(&path, text).expect("written");
        Config::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn invalid_configurations() {
        let config = read(GOOD).expect("good");
        assert_eq!(config.settings.issuer, "http://127.0.0.1:7700");
        assert_eq!(config.settings.ttl_cap, 900);
        assert!(config.data_dir.is_absolute() && !config.dev);
        assert_eq!(config.settings.rate_limits, RateLimitConfig::default());
        assert_eq!((config.admin_listen, config.log), (None, LogFormat::Text));
        let more = "admin_listen = \"127.0.0.1:9100\"\nlog = \"json\"\n";
        let config = read(&format!(
            "{more}{GOOD}[rate_limits]\ncaller_per_second = 7\n"
        ))
        .expect("good");
        assert_eq!(config.settings.rate_limits.caller_per_second.get(), 7);
        assert_eq!(
            config.admin_listen,
            Some(AdminAddress::Tcp(
                "127.0.0.1:9100".parse().expect("address")
            ))
        );
        assert_eq!(config.log, LogFormat::Json);
        for (from, to, part) in [
            (
                "realm",
                "reallm",
                "unknown key `reallm` at line 1; did you mean `realm`?",
            ),
            (
                "http://127.0.0.1:7700",
                "http://127.0.0.1:7700/x",
                "`external_url`: a URL must have no path, query or fragment: write http://127.0.0.1:7700, got \"http://127.0.0.1:7700/x\" at line 3",
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
                "from 1s to",
            ),
            (
                "listen = \"127.0.0.1:7700\"",
                "dev = true\nlisten = \"0.0.0.0:7700\"",
                "loopback",
            ),
            ("realm = \"r\"", "realm = \"a/b\"", "realm"),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[tls]\ncertificate = \"c\"\n",
                "missing key `tls.key`",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[tls]\ncertificate = \"c\"\nkey = \"k\"\nca = \"x\"\n",
                "unknown key `tls.ca`",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[connections]\nmax = 0\n",
                "connections.max",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[connections]\nmax = 8\nmax_per_source = 9\n",
                "from 1 to 8, got 9",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[connections]\nmax_age = \"48h\"\n",
                "connections.max_age",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[rate_limits]\nmax_concurrent_calls = 0\n",
                "from 1 to 1000000, got 0",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[rate_limits]\nsource_per_second = 1000001\n",
                "rate_limits.source_per_second",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[rate_limits]\nper_second = 1\n",
                "unknown key `rate_limits.per_second`",
            ),
            (
                "realm = \"r\"",
                "realm = \"r\"\nadmin_listen = \"0.0.0.0:9100\"",
                "admin_listen",
            ),
            (
                "realm = \"r\"",
                "realm = \"r\"\nadmin_listen = \"unix:\"",
                "admin_listen",
            ),
            (
                "realm = \"r\"",
                "realm = \"r\"\nlog = \"xml\"",
                "`log`: expected \"text\" or \"json\", got \"xml\" at line 2",
            ),
            (
                "realm = \"r\"",
                "realm = \"r\"\notlp_endpoint = \"ftp://c\"",
                "otlp_endpoint",
            ),
        ] {
            let error = read(&GOOD.replacen(from, to, 1)).expect_err(to);
            assert!(error.contains(part), "{to}: {error}");
        }
        let two = "[limits]\ntask_cap = \"1y\"\nttl_cap = \"2h\"\n";
        let error = read(&format!("{GOOD}{two}")).expect_err("both");
        let lines: Vec<_> = error
            .lines()
            .map(|line| line.rsplit("at line ").next())
            .collect();
        assert_eq!(lines, [Some("7"), Some("8")], "{error}");
    }

    #[test]
    fn listener_settings() {
        let plain = read(GOOD).expect("good");
        assert!(plain.tls.is_none() && plain.unix_socket.is_none());
        assert_eq!(plain.connections, ConnectionLimits::default());
        let text = format!(
            "{}unix_socket = \"run/dipylon.sock\"\n[tls]\ncertificate = \"/etc/tls.crt\"\nkey = \"tls.key\"\n\
             [connections]\nmax = 64\nmax_age = \"10m\"\n",
            GOOD.replace("http:", "https:")
        );
        let config = read(&text).expect("good");
        let tls = config.tls.expect("tls");
        assert_eq!(tls.certificate, Path::new("/etc/tls.crt"));
        assert!(tls.key.is_absolute() && tls.key.ends_with("tls.key"));
        assert!(config.unix_socket.expect("socket").is_absolute());
        let bounds = config.connections;
        assert_eq!((bounds.max, bounds.max_per_source), (64, 64));
        assert_eq!(bounds.max_age, Duration::from_secs(600));
    }
}
