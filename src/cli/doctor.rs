//! `doctor`: checks of the configuration, files, journal, policy and running broker, with advice. Reads only, with or without
//! a running broker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::config_checks::{self, Finding};
use super::connect::KeyArgs;
use super::error::CliError;
use super::http_client::{self, HttpResponse};
use super::{Common, Output, audit, connect, dev};
use crate::client::{ConnectOptions, Transport};
use crate::clock::Clock;
use crate::config::Config;
use crate::journal::{JournalReader, OpenError};
use crate::keys;
use crate::model::{Digest, Entry, Event, KeyId, Timestamp, format_seconds};
use crate::policy::{BundleFiles, PolicyBundle};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The configuration of the broker on this host [default: the development broker's, without --url]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    key: KeyArgs,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    args: DoctorArgs,
) -> Result<ExitCode, CliError> {
    let now = Clock::system().now();
    let mut findings = Vec::new();
    let file = match (&args.config, &common.url) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(dev::DevConfig::load(common)?.dir().join(dev::CONFIG_FILE)),
    };
    if let Some(file) = file {
        let (finding, config) = config_checks::check_configuration(&file);
        findings.push(finding);
        if let Some(config) = config {
            findings.extend(check_local(common, &config, now).await);
        }
    }
    if let (None, Some(url)) = (&args.config, &common.url) {
        findings.push(check_remote(common, url, &args.key, now).await);
    }
    Ok(config_checks::print_findings(output, findings))
}

/// Checks the broker of this host: its files first, then its process.
async fn check_local(common: &Common, config: &Config, now: Timestamp) -> Vec<Finding> {
    let (journal, read) = check_journal(&config.data_dir, now);
    let mut findings = vec![
        config_checks::check_files(config),
        config_checks::check_trust_domains(config),
        journal,
        check_disk(config),
        check_signing_key(config, &read, now),
    ];
    findings.extend(check_active_policy(config, &read));
    findings.push(config_checks::check_transport(config));
    findings.extend(config_checks::check_certificate(config, now));
    findings.push(check_process(common, config, &read, now).await);
    findings
}

/// What the journal holds about the policy and the signing keys.
#[derive(Default)]
struct JournalSummary {
    policy: Option<Digest>,
    bundle: Option<PolicyBundle>,
    keys: Vec<(KeyId, Timestamp)>,
}

/// Verifies the journal as 'audit verify' does, and collects its policy and signing keys.
fn check_journal(dir: &Path, now: Timestamp) -> (Finding, JournalSummary) {
    let mut summary = JournalSummary::default();
    let title = format!("journal {}", dir.display());
    let opened = match JournalReader::open(dir) {
        Ok(opened) => opened,
        Err(_) if !JournalReader::exists(dir) => {
            let none = Finding::ok("none yet: the first start creates it");
            return (Finding::group(title, vec![none]), summary);
        }
        Err(error) => {
            let failed = Finding::fail(error.to_string(), "run this command as the broker's user");
            return (Finding::group(title, vec![failed]), summary);
        }
    };
    let mut children = Vec::new();
    match audit::verify(dir, None) {
        Ok((report, votes)) => children.push(Finding::ok(format!(
            "verified: {} entries, {} votes, checkpoint {}",
            report.head.size,
            votes.by_key + votes.by_passkey,
            report.head
        ))),
        Err(error) => {
            let advice = error.next_step.unwrap_or_else(|| {
                "run 'dipylon audit verify' for details, and do not start the broker on this journal".to_owned()
            });
            children.push(Finding::fail(error.message, advice));
        }
    }
    let mut last = None;
    let read = opened.read_all(|stored| {
        let entry = Entry::parse(&stored.text).map_err(OpenError::Entry)?;
        last = Some(entry.at);
        if let Event::PolicyApplied(event) = &entry.event {
            summary.policy = Some(event.version);
        }
        if let Event::KeyPublished(event) = entry.event {
            summary.keys.push((event.kid, entry.at));
        }
        Ok(())
    });
    if let Err(error) = read {
        children.push(Finding::fail(
            error.to_string(),
            "keep an unchanged copy of this journal and compare it with a backup",
        ));
    }
    if let Some(ahead) = last
        .map(|at| seconds_between(now, at))
        .filter(|ahead| *ahead > SKEW_S)
    {
        children.push(Finding::fail(
            format!("the last entry is {} ahead of this host's clock", format_seconds(ahead)),
            "the clock stepped back or was wrong earlier: the broker holds its clock and issues no tokens until the wall clock has caught up",
        ));
    }
    let blob = summary
        .policy
        .and_then(|hash| opened.blob(&hash).ok().flatten());
    summary.bundle = blob
        .and_then(|text| BundleFiles::parse(&text).ok())
        .and_then(|files| PolicyBundle::load(&files).ok());
    (Finding::group(title, children), summary)
}

/// Checks the free disk space for the journal.
fn check_disk(config: &Config) -> Finding {
    let absolute =
        std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let mut dir = absolute.as_path();
    while !dir.exists() {
        match dir.parent() {
            Some(parent) => dir = parent,
            None => break,
        }
    }
    match rustix::fs::statvfs(dir) {
        Err(error) => Finding::warn(
            format!("disk of {}: {error}", dir.display()),
            "check the free space by hand",
        ),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize) / MIB;
            let message = format!("disk: {free} MiB free for {}", config.data_dir.display());
            if free < DISK_FAIL_MIB {
                Finding::fail(
                    message,
                    "free disk space: the broker issues no tokens on a full disk",
                )
            } else if free < DISK_WARN_MIB {
                Finding::warn(
                    message,
                    "free disk space soon: the broker issues no tokens on a full disk",
                )
            } else {
                Finding::ok(message)
            }
        }
    }
}

fn check_signing_key(config: &Config, summary: &JournalSummary, now: Timestamp) -> Finding {
    let Some(key) = keys::inspect(&config.key_dir, &config.data_dir).key else {
        return Finding::group(
            "signing key",
            vec![Finding::ok("none yet: the first start creates it")],
        );
    };
    let kid = KeyId::from_thumbprint(key.thumbprint());
    let published = summary.keys.iter().find(|(known, _)| *known == kid);
    match published {
        None if summary.keys.is_empty() => {
            Finding::ok(format!("signing key {kid}: not published yet"))
        }
        None => Finding::warn(
            format!("signing key {kid} is not in the journal"),
            "the next start publishes it; validators that cache keys learn it with a delay",
        ),
        Some((_, at)) => {
            let days = seconds_between(*at, now) / DAY_S;
            let message = format!("signing key {kid}: {days} days old");
            if days >= KEY_DAYS_WARN {
                Finding::warn(
                    message,
                    "move the key file away and restart while no token is active: the start creates and publishes a new key",
                )
            } else {
                Finding::ok(message)
            }
        }
    }
}

/// Checks the active policy bundle, or the directory that would seed the journal.
fn check_active_policy(config: &Config, summary: &JournalSummary) -> Vec<Finding> {
    let mut findings = Vec::new();
    match (&summary.policy, &summary.bundle) {
        (Some(version), Some(bundle)) => {
            findings.push(config_checks::check_policy(format!("policy bundle in force {version}"), bundle));
        }
        (Some(version), None) => findings.push(Finding::fail(
            format!("policy bundle in force {version}: this version of the program cannot load it"),
            "start the version that applied it, and apply a corrected bundle there",
        )),
        (None, _) if config.policy.is_none() => findings.push(Finding::warn(
            "no policy bundle: every request is denied",
            "run 'dipylon policy apply DIR --key KEY.pem --code' with the one-time code that the broker prints at its start",
        )),
        (None, _) => {}
    }
    if summary.policy.is_none() {
        findings.extend(
            config
                .policy
                .as_deref()
                .map(config_checks::check_policy_directory),
        );
    }
    findings
}

/// Checks whether a broker is running, and whether it is the one of this journal.
async fn check_process(
    common: &Common,
    config: &Config,
    summary: &JournalSummary,
    now: Timestamp,
) -> Finding {
    let mut children = vec![check_external_url(config)];
    let listen = contact_address(config.listen);
    match TcpListener::bind(config.listen) {
        Ok(_free) => children.push(Finding::ok(format!(
            "{} is free: no broker is running",
            config.listen
        ))),
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            children.push(Finding::fail(
                format!("cannot listen on {}: {error}", config.listen),
                "`listen` must be an address of this host and a port that the broker's user may bind",
            ))
        }
        Err(_taken) if listen.ip().is_loopback() => {
            let (route, ready) = probe_listeners(common, config, listen).await;
            children.extend(check_response(&listen.to_string(), ready, now));
            children.push(check_same_journal(&listen.to_string(), route.as_ref(), summary).await);
        }
        Err(_taken) => children.push(Finding::warn(
            format!("{} is in use", config.listen),
            "not checked further, since only loopback is contacted: use --url to check that broker",
        )),
    }
    Finding::group("broker", children)
}

/// The transport that reaches the broker on this host, and the response to a readiness probe.
async fn probe_listeners(
    common: &Common,
    config: &Config,
    listen: SocketAddr,
) -> (Option<Transport>, Result<HttpResponse, String>) {
    let external = &config.settings.external_url;
    let authority = external.split_once("://").map_or("", |(_, rest)| rest);
    let (url, authorities) = match &config.tls {
        // Trusted by --ca, by the certificate file itself, or by the system's authorities.
        Some(files) => (
            format!("https://{authority}"),
            vec![common.ca.clone(), Some(files.certificate.clone()), None],
        ),
        None => (format!("http://{listen}"), vec![None]),
    };
    let mut response = Err("connection failed".to_owned());
    for ca in authorities {
        let reach = ConnectOptions {
            ca,
            socket: None,
            // A probe without credentials.
            allow_plain_http: true,
        };
        let route = match Transport::new(&url, &reach) {
            Ok(route) => route.at(listen),
            Err(error) => {
                response = Err(error.to_string());
                continue;
            }
        };
        response = http_client::get(&route, "/readyz").await;
        if response.is_ok() {
            return (Some(route), response);
        }
    }
    (None, response)
}

/// Checks that the process on the listen address publishes a signing key of this journal.
async fn check_same_journal(
    authority: &str,
    route: Option<&Transport>,
    summary: &JournalSummary,
) -> Finding {
    let published = match route {
        Some(route) => http_client::get(route, "/.well-known/jwks.json").await,
        None => Err(String::new()),
    };
    let kids = |body: &str| -> Vec<String> {
        let set: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let keys = set.get("keys").and_then(|keys| keys.as_array()).cloned();
        let keys = keys.unwrap_or_default();
        keys.iter()
            .filter_map(|key| key.get("kid")?.as_str().map(str::to_owned))
            .collect()
    };
    let is_same = published.is_ok_and(|answer| {
        let kids = kids(&answer.text());
        let known = |(kid, _): &(KeyId, Timestamp)| kids.contains(&kid.to_string());
        summary.keys.iter().any(known)
    });
    if is_same {
        Finding::ok(format!(
            "{authority} is served by the broker of this journal"
        ))
    } else {
        Finding::fail(
            format!("{authority} is in use by another process"),
            "the broker cannot start there: stop that process, or change `listen`",
        )
    }
}

/// Checks that a broker responds and is ready, and that its clock agrees with this host's.
fn check_response(
    authority: &str,
    ready: Result<HttpResponse, String>,
    now: Timestamp,
) -> Vec<Finding> {
    let ready = match ready {
        Err(error) => {
            return vec![Finding::fail(
                format!("{authority} does not respond: {error}"),
                "check that a broker is running there and, with TLS, that --ca has the issuer of its certificate",
            )];
        }
        Ok(ready) => ready,
    };
    let mut findings = vec![match ready.status {
        200 => Finding::ok(format!("{authority} responds and is ready")),
        503 => Finding::fail(
            format!("{authority} responds: {}", ready.text()),
            "the broker issues no tokens until it is ready: see the checks above",
        ),
        other => Finding::fail(
            format!("{authority} responds to /readyz with status {other}"),
            "this is not a Dipylon broker: check the address",
        ),
    }];
    if let Some(broker_time) = ready.date() {
        let skew = (broker_time - now.secs()).abs();
        let message = format!("clocks: {} apart", format_seconds(skew));
        findings.push(if skew > SKEW_S {
            Finding::fail(message, "synchronize both clocks with the same time source: proofs and evidence are valid for seconds or minutes only")
        } else {
            Finding::ok("clocks agree")
        });
    }
    findings
}

/// Checks `external_url` against the listen address, without connecting to it.
fn check_external_url(config: &Config) -> Finding {
    let url = &config.settings.external_url;
    let https = url.starts_with("https://");
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let default_port = if https { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.ends_with(']') => {
            (host, port.parse().unwrap_or(0))
        }
        Some(_) | None => (authority, default_port),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ip = match host {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        other => other.parse::<IpAddr>().ok(),
    };
    let listen = config.listen;
    match ip {
        Some(ip)
            if !https && ip.is_loopback() && listen.ip().is_loopback() && port != listen.port() =>
        {
            Finding::fail(
                format!("external_url {url} does not match the listen address {listen}"),
                "correct `external_url` or `listen`: clients connect to `external_url` and make proofs for it only",
            )
        }
        Some(ip) if ip == listen.ip() && port == listen.port() => {
            Finding::ok(format!("external_url {url} matches the listen address"))
        }
        Some(_) | None => Finding::ok(format!(
            "external_url {url} must forward to {listen}: not checked from here"
        )),
    }
}

/// The address at which a broker on this host is contacted.
fn contact_address(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port()))
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::from((Ipv6Addr::LOCALHOST, listen.port()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => listen,
    }
}

/// Checks a broker by its URL and, with a key, whether the key is registered.
async fn check_remote(common: &Common, url: &str, key: &KeyArgs, now: Timestamp) -> Finding {
    let mut children = Vec::new();
    let answer = match Transport::new(url.trim_end_matches('/'), &connect::connect_options(common))
    {
        Ok(route) => http_client::get(&route, "/readyz").await,
        Err(error) => Err(error.to_string()),
    };
    children.extend(check_response(url, answer, now));
    if key.is_given() {
        children.push(match key.approver_client(common) {
            Err(error) => Finding::fail(error.message, "give your own key with --key"),
            Ok(approver) => match approver.access_requests().await {
                Ok(waiting) => Finding::ok(format!(
                    "the key is registered; {} access requests are waiting",
                    waiting.len()
                )),
                Err(error) => Finding::fail(
                    error.to_string(),
                    error
                        .next()
                        .unwrap_or("check that the URL is the broker's `external_url`"),
                ),
            },
        });
    }
    Finding::group(format!("broker {url}"), children)
}

/// Whole seconds from one timestamp to another.
fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.since(from) / 1_000
}

/// Largest difference of two clocks, in seconds, at which valid proofs are accepted reliably.
const SKEW_S: i64 = 5;
const DAY_S: i64 = 86_400;
/// Age of a signing key at which a new one should be planned, in days.
const KEY_DAYS_WARN: i64 = 180;
const MIB: u64 = 1024 * 1024;
const DISK_FAIL_MIB: u64 = 64;
const DISK_WARN_MIB: u64 = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{FaultInjection, Journal, JournalOptions};
    use crate::model::Realm;

    fn finding_text(finding: &Finding) -> String {
        let mut text = String::new();
        finding.lines(0, &mut text);
        text
    }

    #[tokio::test]
    async fn doctor_reports_clock_behind_journal() {
        let dir = tempfile::tempdir().expect("dir");
        let now = Timestamp::from_secs(1_800_000_000);
        let options = JournalOptions {
            realm: Realm::parse("r").expect("realm"),
            clock: Clock::manual(now).0,
            faults: FaultInjection::default(),
            observe: None,
        };
        let _journal = Journal::open(dir.path(), options, Box::new(|_| {})).expect("opens");
        for (now, failed) in [
            (now, false),
            (now.plus_secs(-SKEW_S), false),
            (now.plus_secs(-SKEW_S - 1), true),
        ] {
            let (finding, _) = check_journal(dir.path(), now);
            assert_eq!(finding.is_failure(), failed, "{}", finding_text(&finding));
        }
    }

    #[test]
    fn doctor_reports_old_and_unpublished_keys() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("dipylon.toml");
        let text = "realm = \"r\"\nlisten = \"127.0.0.1:1\"\nexternal_url = \"http://127.0.0.1:2\"\n\
                    data_dir = \"data\"\nkey_dir = \"keys\"\n";
        std::fs::write(&file, text).expect("written");
        let config = Config::read(&file).expect("good");
        let key = keys::signing_key(&config.key_dir, &config.data_dir).expect("made");
        let made = Timestamp::from_secs(1_800_000_000);
        let summary = |kid| JournalSummary {
            keys: vec![(kid, made)],
            ..JournalSummary::default()
        };
        let published = summary(KeyId::from_thumbprint(key.thumbprint()));
        let after = |days: i64| {
            finding_text(&check_signing_key(
                &config,
                &published,
                made.plus_secs(days * DAY_S),
            ))
        };
        assert!(after(179).starts_with("[ok]") && after(179).contains("179 days"));
        assert!(after(180).starts_with("[warn]"), "{}", after(180));
        let other = summary(KeyId::parse("another").expect("kid"));
        assert!(finding_text(&check_signing_key(&config, &other, made)).starts_with("[warn]"));
        assert!(finding_text(&check_external_url(&config)).starts_with("[fail]"));
    }
}
