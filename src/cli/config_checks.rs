//! Offline checks of a broker's configuration, files, trust domains, certificate and policy bundle.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Output, policy_dir};
use crate::config::{Config, ConfigError};
use crate::jose::{KeySet, Usage};
use crate::keys;
use crate::model::text::escape_invisible;
use crate::model::{Exit, RegisteredAgent, Timestamp};
use crate::policy::{PolicyBundle, Remedy, StepUpProfile};
use crate::serve::tls::Tls;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The result of one check, with advice and the results of its parts.
#[derive(Debug)]
pub(super) struct Finding {
    level: Level,
    message: String,
    advice: Option<String>,
    children: Vec<Finding>,
}

impl Finding {
    pub(super) fn ok(message: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            message: message.into(),
            advice: None,
            children: Vec::new(),
        }
    }

    pub(super) fn warn(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            advice: Some(advice.into()),
            ..Self::ok(message)
        }
    }

    pub(super) fn fail(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(message, advice)
        }
    }

    /// A group with the level of its worst part.
    pub(super) fn group(message: impl Into<String>, children: Vec<Self>) -> Self {
        let worst = children.iter().map(|part| part.level).max();
        Self {
            level: worst.unwrap_or(Level::Ok),
            children,
            ..Self::ok(message)
        }
    }

    pub(super) const fn is_failure(&self) -> bool {
        matches!(self.level, Level::Fail)
    }

    /// Appends one line for the finding, then its advice and its parts, indented.
    pub(super) fn lines(&self, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        let mark = format!("[{}]", self.level.as_str());
        out.push_str(&format!(
            "{indent}{mark:<6} {}\n",
            escape_invisible(&self.message)
        ));
        if let Some(advice) = &self.advice {
            out.push_str(&format!("{indent}       -> {}\n", escape_invisible(advice)));
        }
        for part in &self.children {
            part.lines(depth + 1, out);
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut value = json!({ "level": self.level.as_str(), "message": self.message });
        if let Some(members) = value.as_object_mut() {
            if let Some(advice) = &self.advice {
                members.insert("advice".to_owned(), json!(advice));
            }
            if !self.children.is_empty() {
                let children: Vec<_> = self.children.iter().map(Self::to_json).collect();
                members.insert("children".to_owned(), Value::Array(children));
            }
        }
        value
    }
}

/// Prints findings; the exit code is `Failed` if any check failed.
pub(super) fn print_findings(output: &Output, findings: Vec<Finding>) -> ExitCode {
    let failed = findings.iter().any(Finding::is_failure);
    output.print(
        || {
            let json_findings: Vec<_> = findings.iter().map(Finding::to_json).collect();
            json!({ "passed": !failed, "findings": json_findings })
        },
        || {
            let mut text = String::new();
            for finding in &findings {
                finding.lines(0, &mut text);
            }
            text
        },
    );
    let exit = if failed { Exit::Failed } else { Exit::Success };
    ExitCode::from(exit.number())
}

/// Checks the configuration file, and returns the configuration if it is valid.
pub(super) fn check_configuration(file: &Path) -> (Finding, Option<Config>) {
    let path = file.display();
    let mut children = Vec::new();
    if let Ok(found) = std::fs::metadata(file) {
        let mode = found.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            children.push(Finding::warn(
                format!("mode {mode:03o}: users other than its owner can change it"),
                format!("chmod go-w {path}"),
            ));
        }
    }
    let config = match Config::read(file) {
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
    let mut seen = BTreeSet::new();
    let mut children = Vec::new();
    for (domain, file) in &config.trust_domains {
        if !seen.insert(domain) {
            children.push(Finding::fail(
                format!("trust domain {domain} is listed twice"),
                "keep one `[[trust_domain]]` per name",
            ));
        }
        let path = file.display();
        let mut bytes = Vec::new();
        let read = std::fs::File::open(file)
            .and_then(|file| file.take(TRUST_BYTES_MAX).read_to_end(&mut bytes));
        children.push(match read {
            Err(error) => Finding::fail(
                format!("{domain}: {path}: {error}"),
                "export the bundle from the trust domain's SPIFFE server: 'spire-server bundle show -format spiffe'",
            ),
            Ok(_) => match KeySet::parse(&bytes, Usage::JwtSvid) {
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

/// Checks how connections to the broker are protected.
pub(super) fn check_transport(config: &Config) -> Finding {
    let unencrypted =
        "the broker serves plain HTTP: proofs and tokens cross the network unencrypted";
    if config.tls.is_some() && !config.settings.external_url.starts_with("https://") {
        Finding::fail(
            format!(
                "transport: the broker serves TLS, but `external_url` is {}",
                config.settings.external_url
            ),
            "clients connect to `external_url`: it must begin with https://",
        )
    } else if config.tls.is_some() {
        Finding::ok("transport: TLS, terminated by the broker")
    } else if !config.listen.ip().is_loopback() {
        Finding::warn(
            format!(
                "transport: {} is not loopback, and {unencrypted}",
                config.listen
            ),
            "configure a certificate (`[tls]`), or listen on loopback behind a TLS proxy",
        )
    } else if config.settings.external_url.starts_with("https://") {
        Finding::ok(
            "transport: plain HTTP on loopback behind a TLS proxy, since `external_url` is https",
        )
    } else {
        Finding::ok("transport: plain HTTP on loopback")
    }
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

/// Checks the policy directory that seeds an empty journal.
pub(super) fn check_policy_directory(dir: &Path) -> Finding {
    let message = format!("policy directory {}", dir.display());
    match policy_dir::load(dir) {
        Err(error) => Finding::group(
            message,
            vec![Finding::fail(
                error.message.replace('\n', "; "),
                "'dipylon policy check DIR' lists the problems line by line",
            )],
        ),
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
        let short = agents_short_of_approvers(bundle, profile);
        children.push(if short.is_empty() {
            Finding::ok(format!(
                "profile {name}: a quorum of {} from group {} is reachable for every agent",
                profile.quorum, profile.group
            ))
        } else {
            Finding::warn(
                format!(
                    "profile {name}: needs {} approvers of group {}; too few are eligible for {}",
                    profile.quorum,
                    profile.group,
                    short.join(", ")
                ),
                "add approvers with keys to the group; an agent's owner is never eligible",
            )
        });
    }
    Finding::group(message, children)
}

/// Agents with fewer eligible approvers than the profile's quorum, each with that number.
fn agents_short_of_approvers(bundle: &PolicyBundle, profile: &StepUpProfile) -> Vec<String> {
    let short = |agent: &std::sync::Arc<RegisteredAgent>| {
        let n = bundle.eligible_approvers(profile, &agent.owner);
        let few = u32::try_from(n).is_ok_and(|n| n < profile.quorum);
        few.then(|| format!("{} ({n})", agent.id))
    };
    bundle.agents().filter_map(short).collect()
}

/// A warning for each profile whose quorum is unreachable for some agent.
pub(super) fn unreachable_quorums(bundle: &PolicyBundle) -> Vec<String> {
    let warning = |profile: &StepUpProfile| {
        let short = agents_short_of_approvers(bundle, profile);
        (!short.is_empty()).then(|| {
            format!(
                "profile {}: needs {} approvers of group {}; too few with a key are eligible for {}",
                profile.name,
                profile.quorum,
                profile.group,
                short.join(", ")
            )
        })
    };
    bundle.profiles().filter_map(warning).collect()
}

/// Days before a certificate expires at which it should be replaced.
const CERTIFICATE_DAYS_WARN: i64 = 14;
const DAY_MS: i64 = 86_400_000;
/// Longest trust bundle, in bytes.
const TRUST_BYTES_MAX: u64 = 1 << 20;
