//! The keys of the configuration file, their defaults and bounds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::document::{KnownKey, optional, required};
use super::{AdminAddress, Config, ConnectionLimits, TlsFiles};
use crate::broker::BrokerSettings;
use crate::model::{ParseError, Realm, TrustDomain, parse_duration};
use crate::rate_limit::{RATE_MAX, RateLimitConfig};
use crate::telemetry::logs::LogFormat;

/// Every key, in the order of `config show`. A test holds it to the structs below.
pub(super) const KNOWN_KEYS: &[KnownKey] = &[
    required("realm"),
    required("listen"),
    required("external_url"),
    optional("console_url"),
    optional("issuer"),
    optional("evidence_audience"),
    required("data_dir"),
    required("key_dir"),
    optional("policy"),
    optional("dev"),
    optional("admin_listen"),
    optional("log"),
    optional("otlp_endpoint"),
    optional("rate_limits.source_per_second"),
    optional("rate_limits.source_reserved_per_second"),
    optional("rate_limits.caller_per_second"),
    optional("rate_limits.caller_reserved_per_second"),
    optional("rate_limits.max_concurrent_calls"),
    optional("rate_limits.max_concurrent_reserved"),
    optional("limits.ttl_cap"),
    optional("limits.task_cap"),
    optional("limits.max_evidence_age"),
    required("trust_domain.*.name"),
    required("trust_domain.*.bundle"),
    required("tls.certificate"),
    required("tls.key"),
    optional("unix_socket"),
    optional("connections.max"),
    optional("connections.max_per_source"),
    optional("connections.first_request_timeout"),
    optional("connections.idle_timeout"),
    optional("connections.max_age"),
];

/// The file as serde reads it.
#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
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
    admin_listen: Option<String>,
    #[serde(default)]
    log: LogFormat,
    otlp_endpoint: Option<String>,
    #[serde(default)]
    rate_limits: RateLimitConfig,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default, rename = "trust_domain")]
    trust_domains: Vec<TrustDomainTable>,
    tls: Option<TlsTable>,
    unix_socket: Option<PathBuf>,
    #[serde(default)]
    connections: ConnectionsTable,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
struct TlsTable {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
struct ConnectionsTable {
    max: Option<usize>,
    max_per_source: Option<usize>,
    first_request_timeout: Option<String>,
    idle_timeout: Option<String>,
    max_age: Option<String>,
}

#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    ttl_cap: Option<String>,
    task_cap: Option<String>,
    max_evidence_age: Option<String>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
struct TrustDomainTable {
    name: String,
    bundle: PathBuf,
}

impl ConfigFile {
    /// Checks every value; relative paths are relative to `base`.
    pub(super) fn into_config(self, base: &Path) -> Result<Config, ParseError> {
        let external_url = self.external_url;
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
        if self.dev && !self.listen.ip().is_loopback() {
            return Err(ParseError::new(
                "listen",
                "must be a loopback address for a development broker",
            ));
        }
        let issuer = self.issuer.unwrap_or_else(|| external_url.clone());
        let console_url = match self.console_url {
            Some(url) => console_origin(url)?,
            None => browser_origin(&external_url),
        };
        let settings = BrokerSettings {
            realm: Realm::parse(&self.realm)?,
            evidence_audience: self.evidence_audience.unwrap_or_else(|| issuer.clone()),
            issuer,
            external_url,
            console_url,
            ttl_cap: seconds(
                "limits.ttl_cap",
                self.limits.ttl_cap,
                TTL_CAP_S,
                crate::jose::access_token::TTL_MAX_S,
            )?,
            task_cap: seconds(
                "limits.task_cap",
                self.limits.task_cap,
                TASK_CAP_S,
                30 * TASK_CAP_S,
            )?,
            max_evidence_age: seconds(
                "limits.max_evidence_age",
                self.limits.max_evidence_age,
                MAX_EVIDENCE_AGE_S,
                TASK_CAP_S,
            )?,
            expose_auth_errors: self.dev,
            rate_limits: check_rate_limits(self.rate_limits)?,
        };
        let trust_domain =
            |d: TrustDomainTable| Ok((TrustDomain::parse(&d.name)?, base.join(d.bundle)));
        Ok(Config {
            settings,
            listen: self.listen,
            data_dir: base.join(self.data_dir),
            key_dir: base.join(self.key_dir),
            trust_domains: self
                .trust_domains
                .into_iter()
                .map(trust_domain)
                .collect::<Result<_, ParseError>>()?,
            policy: self.policy.map(|p| base.join(p)),
            dev: self.dev,
            tls: self.tls.map(|tls| TlsFiles {
                certificate: base.join(tls.certificate),
                key: base.join(tls.key),
            }),
            unix_socket: self.unix_socket.map(|path| base.join(path)),
            connections: self.connections.into_limits()?,
            admin_listen: self
                .admin_listen
                .map(|text| AdminAddress::parse(&text, base))
                .transpose()?,
            log: self.log,
            otlp_endpoint: self.otlp_endpoint.map(otlp_endpoint).transpose()?,
        })
    }
}

impl ConnectionsTable {
    fn into_limits(self) -> Result<ConnectionLimits, ParseError> {
        let default = ConnectionLimits::default();
        let count = |what, given: Option<usize>, default: usize, most: usize| match given {
            None => Ok(default.min(most)),
            Some(n) if (1..=most).contains(&n) => Ok(n),
            Some(_) => Err(ParseError::new(what, format!("must be 1 to {most}"))),
        };
        let duration = |what, given: Option<String>, default: Duration, most: u64| match given {
            None => Ok(default),
            Some(text) => match u64::from(parse_duration(what, &text)?) {
                n if n <= most => Ok(Duration::from_secs(n)),
                _ => Err(ParseError::new(
                    what,
                    format!("must be at most {most} seconds"),
                )),
            },
        };
        let max = count("connections.max", self.max, default.max, CONNECTIONS_MAX)?;
        Ok(ConnectionLimits {
            max,
            max_per_source: count(
                "connections.max_per_source",
                self.max_per_source,
                default.max_per_source,
                max,
            )?,
            first_request_timeout: duration(
                "connections.first_request_timeout",
                self.first_request_timeout,
                default.first_request_timeout,
                60,
            )?,
            idle_timeout: duration(
                "connections.idle_timeout",
                self.idle_timeout,
                default.idle_timeout,
                3_600,
            )?,
            max_age: duration("connections.max_age", self.max_age, default.max_age, 86_400)?,
        })
    }
}

/// A duration in seconds, or its default.
fn seconds(
    what: &'static str,
    text: Option<String>,
    default: i64,
    max: i64,
) -> Result<i64, ParseError> {
    match text {
        None => Ok(default),
        Some(text) => match i64::from(parse_duration(what, &text)?) {
            n if n <= max => Ok(n),
            _ => Err(ParseError::new(
                what,
                format!("must be at most {max} seconds"),
            )),
        },
    }
}

/// The origin people's browsers use: passkeys belong to a host name, and only to a secure context (WebAuthn L3 §13.4.9).
fn console_origin(url: String) -> Result<String, ParseError> {
    let invalid = |rule| Err(ParseError::new("console_url", rule));
    let Some((scheme, authority)) = url.split_once("://") else {
        return invalid("must be https:// and a host name");
    };
    let host = authority
        .split_once(':')
        .map_or(authority, |(host, _)| host);
    let port = authority.split_once(':').map(|(_, port)| port);
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
    if host.is_empty() || !host.bytes().all(plain) {
        return invalid(
            "must be a scheme and a host name in lower case, without path or trailing slash",
        );
    }
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return invalid("must have a port from 0 to 65535, or none");
    }
    match (scheme, host) {
        _ if host.parse::<std::net::Ipv4Addr>().is_ok() => {
            invalid("must have a host name: a passkey cannot belong to an IP address")
        }
        ("https", _) | ("http", "localhost") => Ok(url),
        _ => invalid("must be https://, or http://localhost for this machine alone"),
    }
}

/// The origin under which browsers reach `external_url`: loopback as `localhost`, since a passkey belongs to a host name.
fn browser_origin(external_url: &str) -> String {
    let localhost = |loopback: &str| {
        let rest = external_url.strip_prefix(loopback)?;
        let whole_host = rest.is_empty() || rest.starts_with(':');
        let scheme = loopback.split_once("://").map(|(scheme, _)| scheme)?;
        whole_host.then(|| format!("{scheme}://localhost{rest}"))
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

/// The URL of a collector that this binary can export to.
fn otlp_endpoint(endpoint: String) -> Result<String, ParseError> {
    if !cfg!(feature = "otlp") {
        return Err(ParseError::new(
            "otlp_endpoint",
            "needs a binary built with the feature otlp",
        ));
    }
    if !endpoint.starts_with("http://") {
        return Err(ParseError::new(
            "otlp_endpoint",
            "must be http://host:port: a collector on this host",
        ));
    }
    Ok(endpoint)
}

/// Refuses numbers so large that they limit nothing.
fn check_rate_limits(limits: RateLimitConfig) -> Result<RateLimitConfig, ParseError> {
    let RateLimitConfig {
        source_per_second,
        source_reserved_per_second,
        caller_per_second,
        caller_reserved_per_second,
        max_concurrent_calls,
        max_concurrent_reserved,
    } = limits;
    for (what, n) in [
        ("rate_limits.source_per_second", source_per_second),
        (
            "rate_limits.source_reserved_per_second",
            source_reserved_per_second,
        ),
        ("rate_limits.caller_per_second", caller_per_second),
        (
            "rate_limits.caller_reserved_per_second",
            caller_reserved_per_second,
        ),
        ("rate_limits.max_concurrent_calls", max_concurrent_calls),
        (
            "rate_limits.max_concurrent_reserved",
            max_concurrent_reserved,
        ),
    ] {
        if n.get() > RATE_MAX {
            return Err(ParseError::new(what, format!("must be at most {RATE_MAX}")));
        }
    }
    Ok(limits)
}

/// Default of `limits.ttl_cap`, the longest life of a token: 15 minutes.
const TTL_CAP_S: i64 = 900;
/// Default of `limits.task_cap`, the longest life of a task: a day.
const TASK_CAP_S: i64 = 86_400;
/// Default of `limits.max_evidence_age`, the longest time since evidence was verified: 5 minutes.
const MAX_EVIDENCE_AGE_S: i64 = 300;
/// Largest `connections.max`.
const CONNECTIONS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    const EVERY_TABLE: &str = "realm = \"r\"\nlisten = \"127.0.0.1:7700\"\nexternal_url = \"http://127.0.0.1:7700\"\n\
        data_dir = \"data\"\nkey_dir = \"keys\"\n[tls]\ncertificate = \"c\"\nkey = \"k\"\n\
        [[trust_domain]]\nname = \"a.example\"\nbundle = \"a.json\"\n";

    /// The paths of all members, unset ones included.
    fn paths(value: &Value, above: &str, out: &mut BTreeSet<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = format!("{above}{name}");
            match value {
                Value::Object(_) => paths(value, &format!("{path}."), out),
                Value::Array(items) => items
                    .iter()
                    .for_each(|item| paths(item, &format!("{path}.*."), out)),
                _ => drop(out.insert(path)),
            }
        }
    }

    fn without(value: &Value, path: &str) -> Value {
        let mut value = value.clone();
        let (above, name) = path.rsplit_once('.').unwrap_or(("", path));
        let above = above.split('.').filter(|part| !part.is_empty());
        let table = above.fold(&mut value, |value, part| match part {
            "*" => &mut value[0],
            name => &mut value[name],
        });
        assert!(table.as_object_mut().expect("table").remove(name).is_some());
        value
    }

    #[test]
    fn known_keys_match_the_serde_structs() {
        let file: ConfigFile = toml::from_str(EVERY_TABLE).expect("good");
        let whole = serde_json::to_value(&file).expect("JSON");
        let mut found = BTreeSet::new();
        paths(&whole, "", &mut found);
        let known: BTreeSet<_> = KNOWN_KEYS.iter().map(|key| key.path.to_owned()).collect();
        assert_eq!(found, known);
        for key in KNOWN_KEYS {
            let read = serde_json::from_value::<ConfigFile>(without(&whole, key.path));
            assert_eq!(read.is_err(), key.required, "{}", key.path);
        }
    }
}
