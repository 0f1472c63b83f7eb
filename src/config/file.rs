//! The keys of the configuration file, and the checks of their values, alone and together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use super::document::{Document, KnownKey, optional, required};
use super::reader::{SOCKET_EXPECTED, SettingsReader, socket_path};
use super::{AdminAddress, Config, ConfigOverrides, ConfigProblem, ConnectionLimits, TlsFiles};
use crate::broker::BrokerSettings;
use crate::model::{HttpOrigin, ParseError, Realm, TrustDomain};
use crate::rate_limit::{RATE_MAX, RateLimitConfig};
use crate::telemetry::logs::LogFormat;

/// Every key, in the order of `config show`. A test holds it to [`read`].
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
    optional("tls_at_proxy"),
    optional("unix_socket"),
    optional("connections.max"),
    optional("connections.max_per_source"),
    optional("connections.first_request_timeout"),
    optional("connections.idle_timeout"),
    optional("connections.max_age"),
];

/// The configuration of a document, with values of the command line in place of the file's, or every problem. Relative paths
/// are relative to `base`.
pub(super) fn read(
    document: &Document<'_>,
    base: &Path,
    overrides: &ConfigOverrides,
) -> Result<Config, Vec<ConfigProblem>> {
    let mut reader = SettingsReader::new(document, base);
    match read_values(&mut reader, base, overrides) {
        Some(config) => {
            check_together(&mut reader, &config, overrides);
            let problems = reader.into_problems();
            if problems.is_empty() {
                Ok(config)
            } else {
                Err(problems)
            }
        }
        None => Err(reader.into_problems()),
    }
}

/// Every value by itself. `None` where a required one is missing or wrong: that was reported.
fn read_values(
    reader: &mut SettingsReader<'_, '_>,
    base: &Path,
    overrides: &ConfigOverrides,
) -> Option<Config> {
    let realm = reader.parsed("realm", "a realm", Realm::parse);
    let listen = reader.text("listen", LISTEN_EXPECTED, |text| {
        let address = text.parse::<SocketAddr>().ok()?;
        (address.port() != 0).then_some(address)
    });
    let external_url = reader.parsed("external_url", "a URL", |text| {
        HttpOrigin::parse("external_url", text)
    });
    let console_url = reader.parsed("console_url", "a URL", console_origin);
    let issuer = reader.visible("issuer");
    let evidence_audience = reader.visible("evidence_audience");
    let data_dir = reader.path("data_dir");
    let key_dir = reader.path("key_dir");
    let policy = reader.path("policy");
    let dev = reader.boolean("dev").unwrap_or(false);
    let admin_listen = admin_address(reader, base);
    let log = reader.text("log", "\"text\" or \"json\"", LogFormat::parse);
    let otlp_endpoint = reader.parsed("otlp_endpoint", "a URL", otlp_endpoint);
    let rate_limits = rate_limits(reader);
    let ttl_max = u32::try_from(crate::jose::access_token::TTL_MAX_S).unwrap_or(u32::MAX);
    let ttl_cap = reader.seconds("limits.ttl_cap", ttl_max);
    let task_cap = reader.seconds("limits.task_cap", 30 * TASK_CAP_S);
    let max_evidence_age = reader.seconds("limits.max_evidence_age", TASK_CAP_S);
    let mut trust_domains = Vec::new();
    for n in 0..reader.len("trust_domain") {
        let name = reader.parsed(
            &format!("trust_domain.{n}.name"),
            "a trust domain",
            TrustDomain::parse,
        );
        let bundle = reader.path(&format!("trust_domain.{n}.bundle"));
        trust_domains.extend(name.zip(bundle));
    }
    let tls = reader
        .path("tls.certificate")
        .zip(reader.path("tls.key"))
        .map(|(certificate, key)| TlsFiles { certificate, key });
    let tls_at_proxy = reader.boolean("tls_at_proxy").unwrap_or(false);
    let unix_socket = reader.socket_path("unix_socket");
    let connections = connections(reader);

    let external_url = external_url?;
    let issuer = issuer.unwrap_or_else(|| external_url.to_string());
    let settings = BrokerSettings {
        realm: realm?,
        evidence_audience: evidence_audience.unwrap_or_else(|| issuer.clone()),
        issuer,
        console_url: console_url.unwrap_or_else(|| browser_origin(&external_url)),
        external_url,
        ttl_cap: i64::from(ttl_cap.unwrap_or(TTL_CAP_S)),
        task_cap: i64::from(task_cap.unwrap_or(TASK_CAP_S)),
        max_evidence_age: i64::from(max_evidence_age.unwrap_or(MAX_EVIDENCE_AGE_S)),
        expose_auth_errors: dev,
        rate_limits,
    };
    Some(Config {
        settings,
        listen: overrides.listen.or(listen)?,
        data_dir: overrides.data_dir.clone().or(data_dir)?,
        key_dir: key_dir?,
        trust_domains,
        policy: overrides.policy.clone().or(policy),
        dev,
        tls,
        tls_at_proxy,
        unix_socket,
        connections,
        admin_listen,
        log: log.unwrap_or_default(),
        otlp_endpoint,
    })
}

/// The rules that concern several keys.
fn check_together(
    reader: &mut SettingsReader<'_, '_>,
    config: &Config,
    overrides: &ConfigOverrides,
) {
    let listen = config.listen;
    let url = &config.settings.external_url;
    // The name by which the address was given, for its problems.
    let listen_problem = |reader: &mut SettingsReader<'_, '_>, message: String, advice| {
        if overrides.listen.is_some() {
            reader.problem_without_line(format!("`--listen`: {message}"), Some(advice));
        } else {
            reader.problem("listen", message, Some(advice));
        }
    };
    if config.dev && !listen.ip().is_loopback() {
        listen_problem(
            reader,
            format!(
                "expected a loopback address, got {listen}: a development broker serves this machine only"
            ),
            "remove `dev`, or listen on 127.0.0.1",
        );
    } else if !listen.ip().is_loopback() && config.tls.is_none() && !config.tls_at_proxy {
        listen_problem(
            reader,
            format!(
                "expected a loopback address, got {listen}: without [tls] the broker serves plain HTTP, and proofs and tokens would cross the network unencrypted"
            ),
            "configure [tls], or set `tls_at_proxy = true` where a proxy terminates TLS and only the proxy can reach this address",
        );
    }
    if config.tls.is_some() && !url.is_https() {
        reader.problem(
            "external_url",
            format!("expected https://, got \"{url}\": the broker serves TLS"),
            Some("clients connect to `external_url`: write https://, or remove [tls]"),
        );
    }
    if config.tls_at_proxy {
        if config.tls.is_some() {
            let message = "expected no [tls] beside it: TLS is terminated by the broker or by a proxy, not by both";
            reader.problem("tls_at_proxy", message, Some("remove one of them"));
        } else if !url.is_https() {
            let message = format!("expected an `external_url` with https://, got \"{url}\"");
            reader.problem(
                "tls_at_proxy",
                message,
                Some("clients connect to the proxy, which terminates TLS"),
            );
        }
    }
    let mut first: BTreeMap<&TrustDomain, usize> = BTreeMap::new();
    for (n, (domain, _)) in config.trust_domains.iter().enumerate() {
        if let Some(earlier) = first.insert(domain, n) {
            let line = reader.line(&format!("trust_domain.{earlier}.name"));
            let line = line.map_or(String::new(), |line| format!(", also at line {line}"));
            reader.problem(
                &format!("trust_domain.{n}.name"),
                format!("{domain} is listed twice{line}"),
                Some("keep one [[trust_domain]] for each name, with one bundle"),
            );
        }
    }
    if let Some(AdminAddress::Tcp(admin)) = config.admin_listen
        && admin.port() == listen.port()
        && (admin.ip() == listen.ip() || listen.ip().is_unspecified())
    {
        let message = format!("expected another address than `listen`, got {admin}");
        reader.problem("admin_listen", message, Some("give it a port of its own"));
    }
    if let (Some(AdminAddress::Unix(admin)), Some(socket)) =
        (&config.admin_listen, &config.unix_socket)
        && admin == socket
    {
        let message = "expected another path than `unix_socket`, got the same";
        reader.problem("admin_listen", message, Some("give it a path of its own"));
    }
}

/// `admin_listen`: a loopback address or `unix:PATH`.
fn admin_address(reader: &mut SettingsReader<'_, '_>, base: &Path) -> Option<AdminAddress> {
    let expected = format!("a loopback address and port, or unix: and {SOCKET_EXPECTED}");
    reader.text("admin_listen", &expected, |text| {
        match text.strip_prefix("unix:") {
            Some(path) => socket_path(base, path).map(AdminAddress::Unix),
            None => {
                let address = text.parse::<SocketAddr>().ok()?;
                let loopback = address.ip().is_loopback();
                loopback.then_some(AdminAddress::Tcp(address))
            }
        }
    })
}

fn rate_limits(reader: &mut SettingsReader<'_, '_>) -> RateLimitConfig {
    let default = RateLimitConfig::default();
    // A larger number would limit nothing.
    let mut rate = |name: &str, default: NonZeroU32| {
        let found = reader.integer(&format!("rate_limits.{name}"), 1..=RATE_MAX);
        found.and_then(NonZeroU32::new).unwrap_or(default)
    };
    RateLimitConfig {
        source_per_second: rate("source_per_second", default.source_per_second),
        source_reserved_per_second: rate(
            "source_reserved_per_second",
            default.source_reserved_per_second,
        ),
        caller_per_second: rate("caller_per_second", default.caller_per_second),
        caller_reserved_per_second: rate(
            "caller_reserved_per_second",
            default.caller_reserved_per_second,
        ),
        max_concurrent_calls: rate("max_concurrent_calls", default.max_concurrent_calls),
        max_concurrent_reserved: rate("max_concurrent_reserved", default.max_concurrent_reserved),
    }
}

fn connections(reader: &mut SettingsReader<'_, '_>) -> ConnectionLimits {
    let default = ConnectionLimits::default();
    let max = reader.integer("connections.max", 1..=CONNECTIONS_MAX);
    let max = max.unwrap_or_else(|| u32::try_from(default.max).unwrap_or(CONNECTIONS_MAX));
    let per_source = reader.integer("connections.max_per_source", 1..=max);
    let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let mut duration = |name: &str, default: Duration, most: u32| {
        let found = reader.seconds(&format!("connections.{name}"), most);
        found.map_or(default, |n| Duration::from_secs(u64::from(n)))
    };
    ConnectionLimits {
        max: size(max),
        max_per_source: per_source.map_or(default.max_per_source.min(size(max)), size),
        first_request_timeout: duration("first_request_timeout", default.first_request_timeout, 60),
        idle_timeout: duration("idle_timeout", default.idle_timeout, 3_600),
        max_age: duration("max_age", default.max_age, 86_400),
    }
}

/// The origin people's browsers use: passkeys belong to a host name, and only to a secure context (WebAuthn L3 §13.4.9).
fn console_origin(text: &str) -> Result<HttpOrigin, ParseError> {
    let origin = HttpOrigin::parse("console_url", text)?;
    let rule = if origin.ip().is_some() {
        "must have a host name: a passkey cannot belong to an IP address"
    } else if !origin.is_https() && origin.host() != "localhost" {
        "must be https://, or http://localhost for this machine alone"
    } else {
        return Ok(origin);
    };
    Err(ParseError::new("console_url", rule))
}

/// The origin under which browsers reach `external_url`: loopback as `localhost`, since a passkey belongs to a host name.
fn browser_origin(external_url: &HttpOrigin) -> HttpOrigin {
    if matches!(external_url.host(), "127.0.0.1" | "::1") {
        external_url.with_host_name("localhost")
    } else {
        external_url.clone()
    }
}

/// The URL of a collector that this binary can export to.
fn otlp_endpoint(text: &str) -> Result<String, ParseError> {
    let invalid = |rule| Err(ParseError::new("otlp_endpoint", rule));
    if !cfg!(feature = "otlp") {
        return invalid("needs a binary built with the feature otlp");
    }
    let endpoint = HttpOrigin::parse("otlp_endpoint", text)?;
    if endpoint.is_https() {
        return invalid("must be http://host:port: a collector on this host");
    }
    Ok(endpoint.to_string())
}

/// What `listen` accepts.
const LISTEN_EXPECTED: &str = "an IP address and a port other than 0, such as \"127.0.0.1:7700\"";
/// Default of `limits.ttl_cap`, the longest life of a token, in seconds: 15 minutes.
const TTL_CAP_S: u32 = 900;
/// Default of `limits.task_cap`, the longest life of a task, in seconds: a day.
const TASK_CAP_S: u32 = 86_400;
/// Default of `limits.max_evidence_age`, the longest time since evidence was verified, in seconds: 5 minutes.
const MAX_EVIDENCE_AGE_S: u32 = 300;
/// Largest `connections.max`.
const CONNECTIONS_MAX: u32 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_key_is_read() {
        let text = "realm = \"r\"\nlisten = \"127.0.0.1:7700\"\nexternal_url = \"http://127.0.0.1:7700\"\n\
            data_dir = \"data\"\nkey_dir = \"keys\"\n[tls]\ncertificate = \"c\"\nkey = \"k\"\n\
            [[trust_domain]]\nname = \"a.example\"\nbundle = \"a.json\"\n";
        let document = Document::parse(text, KNOWN_KEYS).expect("TOML");
        let mut reader = SettingsReader::new(&document, Path::new("/"));
        read_values(&mut reader, Path::new("/"), &ConfigOverrides::default()).expect("good");
        let asked: Vec<_> = reader
            .asked
            .iter()
            .map(|key| key.replace(".0.", ".*."))
            .collect();
        let mut known: Vec<_> = KNOWN_KEYS.iter().map(|key| key.path.to_owned()).collect();
        known.sort();
        assert_eq!(asked, known);
    }
}
