//! Offline checks of a broker's configuration, files, trust domains, certificate and policy bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::policy_dir;
use crate::broker::{BrokerOpenError, changed_kid};
use crate::config::{AdminAddress, Config, ConfigError, ConfigOverrides};
use crate::jose::{KeySet, Usage};
use crate::journal::{JournalReader, OpenError, SchemaError};
use crate::keys::{self, FileError};
use crate::model::{AgentId, Entry, Event, Realm, Timestamp, TrustDomain};
use crate::policy::{PolicyBundle, StepUpProfile, VoteMethod};
use crate::serve::tls::Tls;

/// Checks the configuration file with values of the command line in place of its own, and returns the configuration if it is
/// valid.
pub(super) fn check_configuration(
    file: &Path,
    overrides: &ConfigOverrides,
) -> (Finding, Option<Config>) {
    let path = file.display();
    let mut children = Vec::new();
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
        Err(ConfigError::File(error)) => {
            let advice = "give the path of the file that the broker is started with";
            children.push(file_failure(&error, advice));
            None
        }
    };
    (
        Finding::group(format!("configuration {path}"), children),
        config,
    )
}

/// Every check of a valid configuration that needs no journal. `serve` starts only where none fails, but for those that allow it.
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

/// The failure of a file the broker reads; `advice` is for one that no other user could have changed.
fn file_failure(error: &FileError, advice: &str) -> Finding {
    let advice = match error {
        FileError::Ownership(_) => OWNERSHIP_ADVICE,
        FileError::Io { .. }
        | FileError::TooPermissive { .. }
        | FileError::NotAFile(_)
        | FileError::NotADirectory(_)
        | FileError::TooLong { .. }
        | FileError::NotText(_) => advice,
    };
    Finding::fail(error.to_string(), advice)
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
        children.push(match read_trust_bundle(file) {
            Err(error) => file_failure(
                &error,
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

/// Reads a trust bundle that no other user could have changed.
pub(super) fn read_trust_bundle(file: &Path) -> Result<String, FileError> {
    keys::read_trusted_text(file, TRUST_BYTES_MAX)
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
                    "the certificate has expired and clients reject it: replace the file, or correct this host's clock; a broker that is started nevertheless is reached over `unix_socket` alone",
                )
                .allowing_start()
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
    match policy_dir::load_trusted(dir) {
        Err(error) => {
            let failed = Finding::fail(
                error.message.replace('\n', "; "),
                "'dipylon policy check DIR' lists the problems of its files line by line; only root and the broker's user may change it",
            );
            Finding::group(message, vec![failed])
        }
        Ok((_, bundle)) => check_policy(message, &bundle),
    }
}

/// Checks that a policy bundle has an operator, and enough eligible approvers for every profile in use.
pub(super) fn check_policy(message: String, bundle: &PolicyBundle) -> Finding {
    let mut children = vec![Finding::ok(format!(
        "{} rules, {} agents, version {}",
        bundle.rules().count(),
        bundle.agents().count(),
        bundle.version()
    ))];
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
    let asked = bundle.asking_agents();
    for profile in bundle.profiles() {
        let name = &profile.name;
        let Some(agents) = asked.get(name) else {
            children.push(Finding::warn(
                format!("profile {name}: no request of any agent asks for it"),
                format!("add @step_up(\"{name}\") to a forbid rule, or remove the profile"),
            ));
            continue;
        };
        children.push(match agents_short_of_approvers(bundle, profile, agents) {
            None => Finding::ok(format!(
                "profile {name}: group {} has enough people for its quorum of {} for every agent that can ask{}",
                profile.group,
                profile.quorum,
                match profile.method {
                    VoteMethod::Passkey => "; whether they have passkeys the journal knows",
                    VoteMethod::Key => "",
                }
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
fn agents_short_of_approvers(
    bundle: &PolicyBundle,
    profile: &StepUpProfile,
    asking: &BTreeSet<AgentId>,
) -> Option<String> {
    let eligible = bundle.eligible_approvers(profile);
    let mut named = Vec::new();
    let mut more = 0_usize;
    for agent in bundle.agents().filter(|agent| asking.contains(&agent.id)) {
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

/// Checks what a configuration changed since the last start against the journal, as the start does.
pub(super) fn check_journal(config: &Config) -> Finding {
    let message = format!("journal {}", config.data_dir.display());
    if !JournalReader::exists(&config.data_dir) {
        return Finding::ok(format!("{message}: none yet: the first start creates it"));
    }
    let mut children = Vec::new();
    match read_journal_settings(&config.data_dir) {
        Err(error) => children.push(unopened_journal(&error)),
        Ok((realm, bundles)) => {
            children.extend(check_realm(config, realm));
            children.extend(check_changed_keys(config, &bundles));
        }
    }
    if children.is_empty() {
        children.push(Finding::ok("belongs to this configuration"));
    }
    Finding::group(message, children)
}

/// The finding about a journal that does not open.
pub(super) fn unopened_journal(error: &OpenError) -> Finding {
    let message = error.to_string();
    match error {
        OpenError::Schema(SchemaError::Empty) => Finding::ok(message),
        OpenError::Schema(_) => {
            Finding::fail(message, "do not start the broker on this journal as it is")
        }
        _ => Finding::fail(message, "run this command as the broker's user"),
    }
}

/// The realm of a journal, and the trust bundle in force of each trust domain.
type JournalSettings = (Option<Realm>, BTreeMap<TrustDomain, String>);

fn read_journal_settings(data_dir: &Path) -> Result<JournalSettings, OpenError> {
    let journal = JournalReader::open(data_dir)?;
    let (mut realm, mut hashes) = (None, BTreeMap::new());
    journal.read_all(|stored| {
        match Entry::parse(&stored.text).map_err(OpenError::Entry)?.event {
            Event::EpochStarted(started) => realm = Some(started.realm),
            Event::TrustBundleChanged(changed) => {
                hashes.insert(changed.domain, changed.bundle);
            }
            _ => {}
        }
        Ok(())
    })?;
    let mut bundles = BTreeMap::new();
    for (domain, hash) in hashes {
        if let Some(text) = journal.blob(&hash)? {
            bundles.insert(domain, text.to_string());
        }
    }
    Ok((realm, bundles))
}

/// A failure where the journal belongs to another realm.
pub(super) fn check_realm(config: &Config, found: Option<Realm>) -> Option<Finding> {
    let expected = config.settings.realm.clone();
    let found = found.filter(|found| *found != expected)?;
    Some(Finding::fail(
        OpenError::RealmMismatch { expected, found }.to_string(),
        "a realm is for life: restore `realm`, or give the new realm a `data_dir` of its own",
    ))
}

/// A failure for each trust bundle that has another key under a known name.
fn check_changed_keys(config: &Config, in_force: &BTreeMap<TrustDomain, String>) -> Vec<Finding> {
    let changed = |(domain, file): &(TrustDomain, PathBuf)| {
        let text = read_trust_bundle(file).ok()?;
        let kid = changed_kid(in_force.get(domain)?, &text)?;
        let domain = domain.clone();
        Some(Finding::fail(
            BrokerOpenError::KeyChanged { domain, kid }.to_string(),
            "the broker cannot start: evidence of the old key could not be told from evidence of the new key",
        ))
    };
    config.trust_domains.iter().filter_map(changed).collect()
}

/// Advice for a file that another user could change or replace.
const OWNERSHIP_ADVICE: &str = "only root and the broker's user may change what the broker trusts";
/// Most agents that one warning names.
const AGENTS_NAMED_MAX: usize = 10;
/// Days before a certificate expires at which it should be replaced.
const CERTIFICATE_DAYS_WARN: i64 = 14;
const DAY_MS: i64 = 86_400_000;
/// Longest trust bundle, in bytes.
const TRUST_BYTES_MAX: u64 = 1 << 20;
