//! The configuration file, read strictly: an unknown key is an error, relative paths are relative to the file.
//!
//! In: a file. Out: a [`Config`], or all that is wrong with keys and lines. Refuses secrets that are written into it: they
//! are named by path. Never repeats a value it refused as a secret.

mod show;
mod strict;

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::broker::Settings;
use crate::model::{ParseError, Realm, TrustDomain, parse_duration};
use crate::rate_limit::{RATE_MAX, Rates};
use crate::telemetry::logs::Format;

pub use show::{Origin, Shown, to_toml};
pub use strict::Wrong;

/// What a broker is configured to be, and where its things lie.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the broker needs to know.
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
    /// TLS of the broker's own.
    pub tls: Option<TlsFiles>,
    /// A Unix socket to listen on beside the address.
    pub unix_socket: Option<PathBuf>,
    /// Bounds on connections.
    pub connections: Connections,
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
    fn parse(text: &str, base: &Path) -> Result<Self, ParseError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(base.join(path)));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) | Err(_) => Err(ParseError::new(
                "operator_listen",
                "must be a loopback address and port, or unix:PATH",
            )),
        }
    }
}

/// Where the broker's own certificate and its key lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that lead to its root, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM; its owner's alone.
    pub key: PathBuf,
}

/// Bounds on connections, for each listener by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Open at once; more wait in the kernel's backlog. 1,024 unless said, at most 65,536.
    pub max: usize,
    /// Open at once from one IPv4 address or IPv6 /64, or by one user of the Unix socket but root and the broker's own; more
    /// are closed at once. 128 unless said, at most `max`.
    pub max_per_source: usize,
    /// From the accept to the first whole request header, TLS handshake included. 5 s unless said; 1 s to a minute.
    pub first_request: Duration,
    /// A connection on which nothing was asked for this long is closed. A minute unless said; 1 s to an hour.
    pub idle: Duration,
    /// A connection is closed gracefully at this age, a fifth more or less. 30 minutes unless said; 1 s to a day.
    pub age: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            max: CONNECTIONS_MAX,
            max_per_source: CONNECTIONS_PER_SOURCE_MAX,
            first_request: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            age: Duration::from_secs(30 * 60),
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
    /// What it says: one or more things, each with its line.
    #[error("{}", found.iter().map(|one| format!("{}: {one}", path.display())).collect::<Vec<_>>().join("\n"))]
    Wrong {
        /// Which.
        path: PathBuf,
        /// At least one.
        found: Vec<Wrong>,
    },
}

/// The origin people's browsers use: passkeys belong to a name, and only where the way there cannot be tampered with
/// (WebAuthn L3 §13.4.9, "secure contexts").
fn console_origin(url: String) -> Result<String, ParseError> {
    let wrong = |rule| Err(ParseError::new("console_url", rule));
    let Some((scheme, authority)) = url.split_once("://") else {
        return wrong("must be https:// and a host name");
    };
    let host = authority
        .split_once(':')
        .map_or(authority, |(host, _)| host);
    let port = authority.split_once(':').map(|(_, port)| port);
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
    if host.is_empty() || !host.bytes().all(plain) {
        return wrong(
            "must be a scheme and a host name in lower case, without path or trailing slash",
        );
    }
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return wrong("has a port that is none");
    }
    match (scheme, host) {
        _ if host.parse::<std::net::Ipv4Addr>().is_ok() => {
            wrong("must have a host name: passkeys belong to none of the IP addresses")
        }
        ("https", _) | ("http", "localhost") => Ok(url),
        _ => wrong("must be https://, or http://localhost for this machine alone"),
    }
}

/// Browsers reach loopback as `localhost`, since passkeys belong to names.
fn as_browsers_go(external_url: &str) -> String {
    let localhost = |loopback: &str| {
        let rest = external_url.strip_prefix(loopback)?;
        let ends = rest.is_empty() || rest.starts_with(':');
        let scheme = loopback.split_once("://").map(|(scheme, _)| scheme)?;
        ends.then(|| format!("{scheme}://localhost{rest}"))
    };
    [
        "http://127.0.0.1",
        "https://127.0.0.1",
        "http://[::1]",
        "https://[::1]",
    ]
    .into_iter()
    .find_map(localhost)
    .unwrap_or_else(|| external_url.to_owned())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    realm: String,
    listen: SocketAddr,
    external_url: String,
    console_url: Option<String>,
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
    tls: Option<TlsTable>,
    unix_socket: Option<PathBuf>,
    #[serde(default)]
    connections: ConnectionsTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsTable {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ConnectionsTable {
    max: Option<usize>,
    max_per_source: Option<usize>,
    first_request: Option<String>,
    idle: Option<String>,
    age: Option<String>,
}

impl ConnectionsTable {
    fn check(self) -> Result<Connections, ParseError> {
        let usual = Connections::default();
        let count = |what, given: Option<usize>, usual: usize, most: usize| match given {
            None => Ok(usual.min(most)),
            Some(n) if (1..=most).contains(&n) => Ok(n),
            Some(_) => Err(ParseError::new(what, format!("must be 1 to {most}"))),
        };
        let seconds = |what, given: Option<String>, usual: Duration, most: u64| match given {
            None => Ok(usual),
            Some(text) => match u64::from(parse_duration(what, &text)?) {
                n if n <= most => Ok(Duration::from_secs(n)),
                _ => Err(ParseError::new(
                    what,
                    format!("must be at most {most} seconds"),
                )),
            },
        };
        let max = count("connections.max", self.max, usual.max, CONNECTIONS_MOST)?;
        Ok(Connections {
            max,
            max_per_source: count(
                "connections.max_per_source",
                self.max_per_source,
                usual.max_per_source,
                max,
            )?,
            first_request: seconds(
                "connections.first_request",
                self.first_request,
                usual.first_request,
                60,
            )?,
            idle: seconds("connections.idle", self.idle, usual.idle, 3_600)?,
            age: seconds("connections.age", self.age, usual.age, 86_400)?,
        })
    }
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

    fn check(file: File, base: &Path) -> Result<Self, ParseError> {
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
            return Err(ParseError::new(
                "external_url",
                "must be http:// or https:// and a host, without path, query or trailing slash",
            ));
        }
        if file.dev && !file.listen.ip().is_loopback() {
            return Err(ParseError::new(
                "listen",
                "a development broker listens on loopback only",
            ));
        }
        let seconds = |what, text: Option<String>, default: i64, max: i64| match text {
            None => Ok(default),
            Some(text) => match i64::from(parse_duration(what, &text)?) {
                n if n <= max => Ok(n),
                _ => Err(ParseError::new(
                    what,
                    format!("must be at most {max} seconds"),
                )),
            },
        };
        let issuer = file.issuer.unwrap_or_else(|| external_url.clone());
        let console_url = match file.console_url {
            Some(url) => console_origin(url)?,
            None => as_browsers_go(&external_url),
        };
        let settings = Settings {
            realm: Realm::parse(&file.realm)?,
            evidence_audience: file.evidence_audience.unwrap_or_else(|| issuer.clone()),
            issuer,
            external_url,
            console_url,
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
                .collect::<Result<_, ParseError>>()?,
            policy: file.policy.map(|p| base.join(p)),
            dev: file.dev,
            tls: file.tls.map(|tls| TlsFiles {
                certificate: base.join(tls.certificate),
                key: base.join(tls.key),
            }),
            unix_socket: file.unix_socket.map(|path| base.join(path)),
            connections: file.connections.check()?,
            operator_listen: file
                .operator_listen
                .map(|text| OperatorAddress::parse(&text, base))
                .transpose()?,
            log: file.log,
            otlp_endpoint: file.otlp_endpoint.map(collector).transpose()?,
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
/// A collector that this binary can speak to.
fn collector(endpoint: String) -> Result<String, ParseError> {
    if !cfg!(feature = "otlp") {
        return Err(ParseError::new(
            "otlp_endpoint",
            "this binary was built without the feature otlp",
        ));
    }
    if !endpoint.starts_with("http://") {
        return Err(ParseError::new(
            "otlp_endpoint",
            "must be http://host:port: a collector beside the broker",
        ));
    }
    Ok(endpoint)
}

/// Rates that limit something.
fn bounded(rates: Rates) -> Result<Rates, ParseError> {
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
            return Err(ParseError::new(what, format!("must be at most {RATE_MAX}")));
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
/// Connections open at once unless configured, and the most that can be.
const CONNECTIONS_MAX: usize = 1_024;
const CONNECTIONS_MOST: usize = 65_536;
/// Connections of one source open at once unless configured.
const CONNECTIONS_PER_SOURCE_MAX: usize = 128;

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
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[tls]\ncertificate = \"c\"\n",
                "missing key `key`",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[tls]\ncertificate = \"c\"\nkey = \"k\"\nca = \"x\"\n",
                "unknown key `ca`",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[connections]\nmax = 0\n",
                "connections.max",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[connections]\nmax = 8\nmax_per_source = 9\n",
                "must be 1 to 8",
            ),
            (
                "key_dir = \"keys\"\n",
                "key_dir = \"keys\"\n[connections]\nage = \"48h\"\n",
                "connections.age",
            ),
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
                "unknown key `per_second`",
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
        let two = "[limits]\ntask_cap = \"1y\"\nttl_cap = \"2h\"\n";
        let told = read(&format!("{GOOD}{two}")).expect_err("both");
        let lines: Vec<_> = told
            .lines()
            .map(|line| line.rsplit("at line ").next())
            .collect();
        assert_eq!(lines, [Some("7"), Some("8")], "{told}");
    }

    #[test]
    fn doors_are_as_configured() {
        let plain = read(GOOD).expect("good");
        assert!(plain.tls.is_none() && plain.unix_socket.is_none());
        assert_eq!(plain.connections, Connections::default());
        let text = format!(
            "{GOOD}unix_socket = \"run/dipylon.sock\"\n[tls]\ncertificate = \"/etc/tls.crt\"\nkey = \"tls.key\"\n\
             [connections]\nmax = 64\nage = \"10m\"\n"
        );
        let config = read(&text).expect("good");
        let tls = config.tls.expect("tls");
        assert_eq!(tls.certificate, Path::new("/etc/tls.crt"));
        assert!(tls.key.is_absolute() && tls.key.ends_with("tls.key"));
        assert!(config.unix_socket.expect("socket").is_absolute());
        let bounds = config.connections;
        assert_eq!((bounds.max, bounds.max_per_source), (64, 64));
        assert_eq!(bounds.age, Duration::from_secs(600));
    }
}
