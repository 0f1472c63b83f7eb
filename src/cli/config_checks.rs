//! Offline checks of a broker's configuration, files, trust domains, certificate and policy bundle.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::policy_dir;
use crate::config::{AdminAddress, Config, ConfigError, ConfigOverrides};
use crate::jose::{KeySet, Usage};
use crate::journal::{JournalReader, OpenError};
use crate::keys::{self, ownership};
use crate::model::{Entry, Event, Timestamp};
use crate::policy::{PolicyBundle, Remedy, StepUpProfile};
use crate::serve::tls::Tls;

/// Checks the configuration file with values of the command line in place of its own, and returns the configuration if it is
/// valid.
pub(super) fn check_configuration(
    file: &Path,
    overrides: &ConfigOverrides,
) -> (Finding, Option<Config>) {
    let path = file.display();
    let mut children = Vec::new();
    children.extend(check_ownership(file));
    let config = match Config::read_with(file, overrides) {
        Ok(config) => {
            children.push(Finding::ok("every key is valid"));
            Some(config)
        }
        Err(ConfigError::Invalid { problems, .. }) => {
            children.extend(problems.into_iter().map(|problem| {
                let message = match problem.line {
                    Some(line) => format!("{} at line {line}", problem.message),
                    None => problem.message,
                };
                let advice = problem.advice;
                Finding::fail(
                    message,
                    advice.unwrap_or_else(|| "correct this key".to_owned()),
                )
            }));
            None
        }
        Err(error @ ConfigError::Io { .. }) => {
            children.push(Finding::fail(
                error.to_string(),
                "give the path of the file that the broker is started with",
            ));
            None
        }
    };
    (
        Finding::group(format!("configuration {path}"), children),
        config,
    )
}

/// Every check that decides whether a broker starts with a valid configuration. `serve` starts only where none fails.
pub(super) fn check_start(config: &Config, now: Timestamp) -> Vec<Finding> {
    let mut findings = vec![
        check_files(config),
        check_trust_domains(config),
        check_transport(config),
        check_listeners(config),
    ];
    findings.extend(check_certificate(config, now));
    findings.extend(check_policy_seed(config));
    findings
}

/// A failure for a file or directory that other users could change or replace.
fn check_ownership(path: &Path) -> Option<Finding> {
    let error = ownership::check_with_parents(path).err()?;
    Some(Finding::fail(
        error.to_string(),
        "only root and the broker's user may change what the broker trusts",
    ))
}

/// Checks the locations and modes of the data directory, the key directory and the signing key.
pub(super) fn check_files(config: &Config) -> Finding {
    let inspected = keys::inspect(&config.key_dir, &config.data_dir);
    let mut children: Vec<_> = inspected
        .problems
        .iter()
        .map(|problem| {
            Finding::fail(
                problem.to_string(),
                "only the broker's user may read keys and data, and keys must stay outside the data directory so that its backups hold none",
            )
        })
        .collect();
    let (data, keys) = (config.data_dir.display(), config.key_dir.display());
    children.push(match (&inspected.key, children.is_empty()) {
        (Some(_), _) => Finding::ok(format!(
            "the signing key in {keys} is readable by its owner only"
        )),
        (None, true) => Finding::ok(format!(
            "no signing key in {keys} yet: the first start creates it"
        )),
        (None, false) => Finding::warn(
            format!("no signing key could be read in {keys}"),
            "correct the failed checks above",
        ),
    });
    if !config.data_dir.exists() {
        children.push(Finding::ok(format!(
            "no data in {data} yet: the first start creates it"
        )));
    }
    Finding::group("files", children)
}

/// Checks the trust bundles of the configured trust domains.
pub(super) fn check_trust_domains(config: &Config) -> Finding {
    if config.trust_domains.is_empty() {
        return Finding::warn(
            "no trust domain is configured: no workload can be verified",
            "add a `[[trust_domain]]` with `name` and `bundle`",
        );
    }
    let mut children = Vec::new();
    for (domain, file) in &config.trust_domains {
        let path = file.display();
        children.extend(check_ownership(file));
        children.push(match read_trust_bundle(file) {
            Err(error) => Finding::fail(
                format!("{domain}: {path}: {error}"),
                "export the bundle from the trust domain's SPIFFE server: 'spire-server bundle show -format spiffe'",
            ),
            Ok(text) => match KeySet::parse(text.as_bytes(), Usage::JwtSvid) {
                Err(error) => Finding::fail(
                    format!("{domain}: {path}: {error}"),
                    "expected a SPIFFE trust bundle (a JWK set with `use` jwt-svid): export it again",
                ),
                Ok(keys) if keys.is_empty() => Finding::warn(
                    format!("{domain}: {path} has no JWT-SVID key: no workload of this domain can be verified"),
                    "export the bundle again from the trust domain's SPIFFE server",
                ),
                Ok(keys) => Finding::ok(format!("{domain}: {} JWT-SVID keys", keys.len())),
            },
        });
    }
    Finding::group("trust domains", children)
}

/// Reads a trust bundle.
pub(super) fn read_trust_bundle(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(file)?;
    let length = file.take(TRUST_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(length).unwrap_or(u64::MAX) > TRUST_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "expected at most {TRUST_BYTES_MAX} bytes, got more"
        )));
    }
    Ok(text)
}

/// How connections to the broker are protected. Combinations that are not were refused with the configuration.
pub(super) fn check_transport(config: &Config) -> Finding {
    let https = config.settings.external_url.is_https();
    Finding::ok(if config.tls.is_some() {
        "transport: TLS, terminated by the broker".to_owned()
    } else if config.tls_at_proxy && !config.listen.ip().is_loopback() {
        format!(
            "transport: plain HTTP on {} behind a TLS proxy, as `tls_at_proxy` says: only that proxy may reach this address",
            config.listen
        )
    } else if https {
        "transport: plain HTTP on loopback behind a TLS proxy, since `external_url` is https"
            .to_owned()
    } else {
        "transport: plain HTTP on loopback".to_owned()
    })
}

/// Checks that the addresses belong to this host and that the sockets can be created. Whether a port is free is not checked:
/// a running broker has it.
pub(super) fn check_listeners(config: &Config) -> Finding {
    let (mut addresses, mut sockets) = (vec![("listen", config.listen)], Vec::new());
    sockets.extend(
        config
            .unix_socket
            .as_deref()
            .map(|path| ("unix_socket", path)),
    );
    match &config.admin_listen {
        Some(AdminAddress::Tcp(address)) => addresses.push(("admin_listen", *address)),
        Some(AdminAddress::Unix(path)) => sockets.push(("admin_listen", path)),
        None => {}
    }
    let mut children = Vec::new();
    for (key, address) in addresses {
        if let Err(error) = TcpListener::bind(SocketAddr::new(address.ip(), 0)) {
            children.push(Finding::fail(
                format!("`{key}`: cannot listen on {}: {error}", address.ip()),
                "give an address of this host",
            ));
        }
    }
    for (key, path) in sockets {
        let shown = path.display();
        let problem = match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                "expected a socket or no file, got another kind of file"
            }
            Ok(_) => continue,
            Err(_) if path.parent().is_some_and(Path::is_dir) => continue,
            Err(_) => "its directory does not exist",
        };
        children.push(Finding::fail(
            format!("`{key}`: {shown}: {problem}"),
            "create the directory, or give another path",
        ));
    }
    if children.is_empty() {
        children.push(Finding::ok(format!(
            "{} is an address of this host",
            config.listen.ip()
        )));
    }
    Finding::group("listeners", children)
}

/// Checks the broker's TLS certificate, if one is configured: its private key and its expiry.
pub(super) fn check_certificate(config: &Config, now: Timestamp) -> Option<Finding> {
    let files = config.tls.as_ref()?;
    let path = files.certificate.display();
    Some(match Tls::read(&files.certificate, &files.key) {
        Err(error) => Finding::fail(
            format!("certificate {path}: {error}"),
            "the broker cannot start: certificate and key must be PEM, belong together, and the key be readable by its owner only",
        ),
        Ok(tls) => {
            let until = tls.status().not_after;
            let days = until.since(now).div_euclid(DAY_MS);
            let message = format!("certificate {path}: matches its key, expires at {until}");
            if days < 0 {
                Finding::fail(
                    message,
                    "the certificate has expired and clients reject it: replace the file",
                )
            } else if days < CERTIFICATE_DAYS_WARN {
                Finding::warn(
                    message,
                    "replace the file before the certificate expires: the broker reloads it without a restart",
                )
            } else {
                Finding::ok(message)
            }
        }
    })
}

/// Checks the policy directory that seeds an empty journal. Where a policy bundle is in force the directory is not used: what is
/// wrong with it is a warning, since an unfinished edit must not prevent a restart.
pub(super) fn check_policy_seed(config: &Config) -> Option<Finding> {
    let finding = check_policy_directory(config.policy.as_deref()?);
    Some(if finding.is_failure() && has_policy(&config.data_dir) {
        finding.downgraded()
    } else {
        finding
    })
}

/// Whether the journal of a directory has a policy bundle.
fn has_policy(data_dir: &Path) -> bool {
    let mut found = false;
    let read = JournalReader::open(data_dir).map(|journal| {
        journal.read_all(|stored| {
            let entry = Entry::parse(&stored.text).map_err(OpenError::Entry)?;
            found |= matches!(entry.event, Event::PolicyApplied(_));
            Ok(())
        })
    });
    found && read.is_ok_and(|read| read.is_ok())
}

/// Checks a policy directory.
fn check_policy_directory(dir: &Path) -> Finding {
    let message = format!("policy directory {}", dir.display());
    let mut owners: Vec<_> = check_ownership(dir).into_iter().collect();
    for file in policy_files(dir) {
        let checked = std::fs::metadata(&file).map(|found| ownership::check(&file, &found));
        owners.extend(checked.ok().and_then(Result::err).map(|error| {
            Finding::fail(
                error.to_string(),
                "only root and the broker's user may change what the broker trusts",
            )
        }));
    }
    match policy_dir::load(dir) {
        Err(error) => {
            owners.push(Finding::fail(
                error.message.replace('\n', "; "),
                "'dipylon policy check DIR' lists the problems line by line",
            ));
            Finding::group(message, owners)
        }
        Ok((_, bundle)) => check_policy_with(message, &bundle, owners),
    }
}

/// The files of a policy directory, and the directory of its rules.
fn policy_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = vec![dir.join("rules")];
    for folder in [dir.to_owned(), dir.join("rules")] {
        let found = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files.extend(found.map(|found| found.path()));
    }
    files.sort();
    files.dedup();
    files
}

/// Checks that a policy bundle has an operator, and enough eligible approvers for every profile in use.
pub(super) fn check_policy(message: String, bundle: &PolicyBundle) -> Finding {
    check_policy_with(message, bundle, Vec::new())
}

fn check_policy_with(
    message: String,
    bundle: &PolicyBundle,
    mut children: Vec<Finding>,
) -> Finding {
    children.push(Finding::ok(format!(
        "{} rules, {} agents, version {}",
        bundle.rules().count(),
        bundle.agents().count(),
        bundle.version()
    )));
    if let Err(why) = bundle.check_has_operator() {
        children.push(Finding::fail(
            why,
            "'dipylon key new --of PERSON --out FILE' prints the `[[key]]` to add",
        ));
    }
    for warning in bundle.warnings() {
        children.push(Finding::warn(
            warning.to_string(),
            "correct the bundle, or ignore this if it is intended",
        ));
    }
    let used: BTreeSet<_> = bundle
        .rules()
        .filter_map(|rule| match &rule.remedy {
            Some(Remedy::StepUp(profile)) => Some(profile),
            Some(Remedy::MaxTtl(_)) | None => None,
        })
        .collect();
    for profile in bundle.profiles() {
        let name = &profile.name;
        if !used.contains(name) {
            children.push(Finding::warn(
                format!("profile {name}: no rule uses it"),
                format!("add @step_up(\"{name}\") to a forbid rule, or remove the profile"),
            ));
            continue;
        }
        children.push(match agents_short_of_approvers(bundle, profile) {
            None => Finding::ok(format!(
                "profile {name}: a quorum of {} from group {} is reachable for every agent",
                profile.quorum, profile.group
            )),
            Some(short) => Finding::warn(
                format!(
                    "profile {name}: needs {} approvers of group {}; too few are eligible for {short}",
                    profile.quorum, profile.group,
                ),
                "add approvers with keys to the group; an agent's owner is never eligible",
            ),
        });
    }
    Finding::group(message, children)
}

/// Agents with fewer eligible approvers than the profile's quorum, each with that number; the first few by name.
fn agents_short_of_approvers(bundle: &PolicyBundle, profile: &StepUpProfile) -> Option<String> {
    let eligible = bundle.eligible_approvers(profile);
    let mut named = Vec::new();
    let mut more = 0_usize;
    for agent in bundle.agents() {
        let n = eligible.len() - usize::from(eligible.contains(&agent.owner));
        if u32::try_from(n).is_ok_and(|n| n < profile.quorum) {
            if named.len() < AGENTS_NAMED_MAX {
                named.push(format!("{} ({n})", agent.id));
            } else {
                more += 1;
            }
        }
    }
    if more > 0 {
        named.push(format!("{more} more agents"));
    }
    (!named.is_empty()).then(|| named.join(", "))
}

/// A warning for each profile whose quorum is unreachable for some agent.
pub(super) fn unreachable_quorums(bundle: &PolicyBundle) -> Vec<String> {
    let warning = |profile: &StepUpProfile| {
        let short = agents_short_of_approvers(bundle, profile)?;
        Some(format!(
            "profile {}: needs {} approvers of group {}; too few with a key are eligible for {short}",
            profile.name, profile.quorum, profile.group,
        ))
    };
    bundle.profiles().filter_map(warning).collect()
}

/// Most agents that one warning names.
const AGENTS_NAMED_MAX: usize = 10;
/// Days before a certificate expires at which it should be replaced.
const CERTIFICATE_DAYS_WARN: i64 = 14;
const DAY_MS: i64 = 86_400_000;
/// Longest trust bundle, in bytes.
const TRUST_BYTES_MAX: u64 = 1 << 20;
