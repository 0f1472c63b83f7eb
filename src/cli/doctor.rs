//! `doctor`: everything an operator would look at, looked at. Reads only; works beside a running broker and without one.

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
    /// The configuration of the broker on this host; without one and without --url, the development broker's
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
    let mut found = Vec::new();
    let file = match (&args.config, &common.url) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(dev::DevConfig::load(common)?.dir().join(dev::CONFIG_FILE)),
    };
    if let Some(file) = file {
        let (first, config) = config_checks::check_configuration(&file);
        found.push(first);
        if let Some(config) = config {
            found.extend(check_local(common, &config, now).await);
        }
    }
    if let (None, Some(url)) = (&args.config, &common.url) {
        found.push(check_remote(common, url, &args.key, now).await);
    }
    Ok(config_checks::print_findings(output, found))
}

/// The broker of this host: its files first, then the broker itself, if it runs.
async fn check_local(common: &Common, config: &Config, now: Timestamp) -> Vec<Finding> {
    let (journal, read) = check_journal(&config.data_dir, now);
    let mut found = vec![
        config_checks::check_files(config),
        config_checks::check_trust_domains(config),
        journal,
        check_disk(config),
        check_signing_key(config, &read, now),
    ];
    found.extend(check_active_policy(config, &read));
    found.push(config_checks::check_transport(config));
    found.extend(config_checks::check_certificate(config, now));
    found.push(check_process(common, config, &read, now).await);
    found
}

/// What a walk over the journal found.
#[derive(Default)]
struct JournalSummary {
    policy: Option<Digest>,
    bundle: Option<PolicyBundle>,
    keys: Vec<(KeyId, Timestamp)>,
}

/// The whole journal verified as 'audit verify' does, and what it says of rules and keys.
fn check_journal(dir: &Path, now: Timestamp) -> (Finding, JournalSummary) {
    let mut summary = JournalSummary::default();
    let what = format!("journal {}", dir.display());
    let opened = match JournalReader::open(dir) {
        Ok(opened) => opened,
        Err(_) if !JournalReader::exists(dir) => {
            let none = Finding::ok("none yet: the first start makes it");
            return (Finding::group(what, vec![none]), summary);
        }
        Err(error) => {
            let told = Finding::fail(error.to_string(), "run as the user the broker runs as");
            return (Finding::group(what, vec![told]), summary);
        }
    };
    let mut children = Vec::new();
    match audit::verify(dir, None) {
        Ok((report, votes)) => children.push(Finding::ok(format!(
            "whole: {} entries, {} votes, checkpoint {}",
            report.head.size,
            votes.by_key + votes.by_passkey,
            report.head
        ))),
        Err(error) => {
            let advice = error.hint.unwrap_or_else(|| {
                "'dipylon audit verify' says more; do not start the broker on it".to_owned()
            });
            children.push(Finding::fail(error.message, advice));
        }
    }
    let mut last = None;
    let read = opened.read_all(|stored| {
        let entry = Entry::parse(&stored.text).map_err(OpenError::Entry)?;
        last = Some(entry.at);
        if let Event::PolicyApplied(fact) = &entry.event {
            summary.policy = Some(fact.version);
        }
        if let Event::KeyPublished(fact) = entry.event {
            summary.keys.push((fact.kid, entry.at));
        }
        Ok(())
    });
    if let Err(error) = read {
        children.push(Finding::fail(
            error.to_string(),
            "keep a copy of this journal as it is, and compare it with a backup",
        ));
    }
    if let Some(ahead) = last
        .map(|at| seconds_between(now, at))
        .filter(|ahead| *ahead > SKEW_S)
    {
        children.push(Finding::fail(
            format!("its last entry is {} ahead of this clock", format_seconds(ahead)),
            "this clock stepped back, or an earlier one was wrong: the broker holds its clock and issues no tokens until the wall clock has caught up",
        ));
    }
    let blob = summary
        .policy
        .and_then(|hash| opened.blob(&hash).ok().flatten());
    summary.bundle = blob
        .and_then(|text| BundleFiles::parse(&text).ok())
        .and_then(|files| PolicyBundle::load(&files).ok());
    (Finding::group(what, children), summary)
}

/// Room for entries, and for endings when there is none for anything else.
fn check_disk(config: &Config) -> Finding {
    let whole = std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let mut dir = whole.as_path();
    while !dir.exists() {
        match dir.parent() {
            Some(above) => dir = above,
            None => break,
        }
    }
    match rustix::fs::statvfs(dir) {
        Err(error) => Finding::warn(
            format!("disk of {}: {error}", dir.display()),
            "look at it by hand",
        ),
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize) / MIB;
            let what = format!("disk: {free} MiB free for {}", config.data_dir.display());
            if free < DISK_FAIL_MIB {
                Finding::fail(what, "make room: a full disk refuses every new token")
            } else if free < DISK_WARN_MIB {
                Finding::warn(what, "make room before it is needed")
            } else {
                Finding::ok(what)
            }
        }
    }
}

fn check_signing_key(config: &Config, summary: &JournalSummary, now: Timestamp) -> Finding {
    let Some(key) = keys::inspect(&config.key_dir, &config.data_dir).key else {
        return Finding::group("signing key", vec![Finding::ok("none yet")]);
    };
    let kid = KeyId::from_thumbprint(key.thumbprint());
    let published = summary.keys.iter().find(|(known, _)| *known == kid);
    match published {
        None if summary.keys.is_empty() => {
            Finding::ok(format!("signing key {kid}: not published yet"))
        }
        None => Finding::warn(
            format!("signing key {kid} is not in the journal"),
            "the next start publishes it; validators that keep keys learn it late",
        ),
        Some((_, at)) => {
            let days = seconds_between(*at, now) / DAY_S;
            let what = format!("signing key {kid}: {days} days old");
            if days >= KEY_DAYS_WARN {
                Finding::warn(
                    what,
                    "move the file away and restart while no token lives: the start makes and publishes another",
                )
            } else {
                Finding::ok(what)
            }
        }
    }
}

/// The rules in force, or those that would be.
fn check_active_policy(config: &Config, summary: &JournalSummary) -> Vec<Finding> {
    let mut found = Vec::new();
    match (&summary.policy, &summary.bundle) {
        (Some(version), Some(bundle)) => {
            found.push(config_checks::check_policy(format!("policy bundle in force {version}"), bundle));
        }
        (Some(version), None) => found.push(Finding::fail(
            format!("policy bundle in force {version}: this version of the program cannot load it"),
            "start the version that applied it, and correct the bundle there",
        )),
        (None, _) if config.policy.is_none() => found.push(Finding::warn(
            "no policy bundle: everything is denied",
            "'dipylon policy apply DIR --key KEY.pem --code' with the one-time code that the broker prints at its start",
        )),
        (None, _) => {}
    }
    if summary.policy.is_none() {
        found.extend(
            config
                .policy
                .as_deref()
                .map(config_checks::check_policy_directory),
        );
    }
    found
}

/// The broker itself: whether one runs, and whether it is this one.
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
            "{} is free: no broker runs",
            config.listen
        ))),
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            children.push(Finding::fail(
                format!("cannot listen on {}: {error}", config.listen),
                "it must be an address of this host, and a port its user may have",
            ))
        }
        Err(_taken) if listen.ip().is_loopback() => {
            let (route, ready) = probe_listeners(common, config, listen).await;
            children.extend(check_response(&listen.to_string(), ready, now));
            children.push(check_same_journal(&listen.to_string(), route.as_ref(), summary).await);
        }
        Err(_taken) => children.push(Finding::warn(
            format!("{} is taken", config.listen),
            "only loopback is contacted from here: --url asks a broker elsewhere",
        )),
    }
    Finding::group("broker", children)
}

/// The way to this broker on this host that it answers on, and its answer to a probe.
async fn probe_listeners(
    common: &Common,
    config: &Config,
    listen: SocketAddr,
) -> (Option<Transport>, Result<HttpResponse, String>) {
    let external = &config.settings.external_url;
    let authority = external.split_once("://").map_or("", |(_, rest)| rest);
    let (url, authorities) = match &config.tls {
        // Known by who it is said to come from, by itself, or by who the system trusts.
        Some(files) => (
            format!("https://{authority}"),
            vec![common.ca.clone(), Some(files.certificate.clone()), None],
        ),
        None => (format!("http://{listen}"), vec![None]),
    };
    let mut told = Err("connection failed".to_owned());
    for ca in authorities {
        let reach = ConnectOptions { ca, socket: None };
        let route = match Transport::new(&url, &reach) {
            Ok(route) => route.at(listen),
            Err(error) => {
                told = Err(error.to_string());
                continue;
            }
        };
        told = http_client::get(&route, "/readyz").await;
        if told.is_ok() {
            return (Some(route), told);
        }
    }
    (None, told)
}

/// Whether what listens has published a key of this journal.
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
    let ours = published.is_ok_and(|answer| {
        let kids = kids(&answer.text());
        let known = |(kid, _): &(KeyId, Timestamp)| kids.contains(&kid.to_string());
        summary.keys.iter().any(known)
    });
    if ours {
        Finding::ok(format!("{authority} is held by the broker of this journal"))
    } else {
        Finding::fail(
            format!("{authority} is held by something else"),
            "this broker cannot start there: stop the other, or listen elsewhere",
        )
    }
}

/// Whether a broker answers, is ready, and goes by the same time.
fn check_response(
    authority: &str,
    ready: Result<HttpResponse, String>,
    now: Timestamp,
) -> Vec<Finding> {
    let ready = match ready {
        Err(error) => {
            return vec![Finding::fail(
                format!("{authority} does not answer: {error}"),
                "is it a broker, is it alive, and (over TLS) does --ca name who its certificate comes from?",
            )];
        }
        Ok(ready) => ready,
    };
    let mut found = vec![match ready.status {
        200 => Finding::ok(format!("{authority} answers and is ready")),
        503 => Finding::fail(
            format!("{authority} answers: {}", ready.text()),
            "it mints nothing until that is so: see above",
        ),
        other => Finding::fail(
            format!("{authority} answers /readyz with {other}"),
            "it is no broker of this kind",
        ),
    }];
    if let Some(theirs) = ready.date() {
        let apart = (theirs - now.secs()).abs();
        let what = format!("clocks: {} apart", format_seconds(apart));
        found.push(if apart > SKEW_S {
            Finding::fail(what, "set both by the same time source: proofs and evidence are good for seconds and minutes")
        } else {
            Finding::ok("clocks agree")
        });
    }
    found
}

/// Where callers are told to go, as far as that can be said without asking anybody.
fn check_external_url(config: &Config) -> Finding {
    let url = &config.settings.external_url;
    let https = url.starts_with("https://");
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let usual = if https { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.ends_with(']') => {
            (host, port.parse().unwrap_or(0))
        }
        Some(_) | None => (authority, usual),
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
                format!("external_url {url} is not where it listens ({listen})"),
                "callers make proofs for external_url and no other: correct it or listen",
            )
        }
        Some(ip) if ip == listen.ip() && port == listen.port() => {
            Finding::ok(format!("external_url {url} is where it listens"))
        }
        Some(_) | None => Finding::ok(format!(
            "external_url {url} has to lead to {listen}: not contacted from here"
        )),
    }
}

/// The address to ask a broker on this host by.
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

/// A broker somewhere, by its URL, and whether it knows a key.
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
            Err(error) => Finding::fail(error.message, "name a key of yours"),
            Ok(person) => match person.access_requests().await {
                Ok(waiting) => Finding::ok(format!(
                    "the key is known; {} access requests wait",
                    waiting.len()
                )),
                Err(error) => Finding::fail(
                    error.to_string(),
                    error
                        .next()
                        .unwrap_or("is the URL the broker's external_url?"),
                ),
            },
        });
    }
    Finding::group(format!("broker {url}"), children)
}

/// From one moment to another.
fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.since(from) / 1_000
}

/// Clocks further apart than this, in seconds, refuse what is good.
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

    fn told(finding: &Finding) -> String {
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
            assert_eq!(finding.is_failure(), failed, "{}", told(&finding));
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
        let ours = summary(KeyId::from_thumbprint(key.thumbprint()));
        let after = |days: i64| {
            told(&check_signing_key(
                &config,
                &ours,
                made.plus_secs(days * DAY_S),
            ))
        };
        assert!(after(179).starts_with("[ok]") && after(179).contains("179 days"));
        assert!(after(180).starts_with("[warn]"), "{}", after(180));
        let other = summary(KeyId::parse("another").expect("kid"));
        assert!(told(&check_signing_key(&config, &other, made)).starts_with("[warn]"));
        assert!(told(&check_external_url(&config)).starts_with("[fail]"));
    }
}
