//! What can be said of a broker's surroundings without the broker: its configuration, files, trust and rules.

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

/// How bad a finding is.
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

/// One thing that was looked at, what to do about it, and what it consists of.
#[derive(Debug)]
pub(super) struct Finding {
    level: Level,
    what: String,
    advice: Option<String>,
    children: Vec<Finding>,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            what: what.into(),
            advice: None,
            children: Vec::new(),
        }
    }

    pub(super) fn warn(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            advice: Some(advice.into()),
            ..Self::ok(what)
        }
    }

    pub(super) fn fail(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(what, advice)
        }
    }

    /// As bad as the worst of its parts.
    pub(super) fn group(what: impl Into<String>, children: Vec<Self>) -> Self {
        let worst = children.iter().map(|part| part.level).max();
        Self {
            level: worst.unwrap_or(Level::Ok),
            children,
            ..Self::ok(what)
        }
    }

    pub(super) const fn is_failure(&self) -> bool {
        matches!(self.level, Level::Fail)
    }

    /// One line each, parts and advice below and further in.
    pub(super) fn lines(&self, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        let mark = format!("[{}]", self.level.as_str());
        out.push_str(&format!(
            "{indent}{mark:<6} {}\n",
            escape_invisible(&self.what)
        ));
        if let Some(advice) = &self.advice {
            out.push_str(&format!("{indent}       -> {}\n", escape_invisible(advice)));
        }
        for part in &self.children {
            part.lines(depth + 1, out);
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut value = json!({ "level": self.level.as_str(), "what": self.what });
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

/// Prints findings; the exit code says whether any failed.
pub(super) fn print_findings(output: &Output, findings: Vec<Finding>) -> ExitCode {
    let failed = findings.iter().any(Finding::is_failure);
    output.print(
        || {
            let all: Vec<_> = findings.iter().map(Finding::to_json).collect();
            json!({ "good": !failed, "findings": all })
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

/// The file, and what it says if that can be used.
pub(super) fn check_configuration(file: &Path) -> (Finding, Option<Config>) {
    let shown = file.display();
    let mut children = Vec::new();
    if let Ok(found) = std::fs::metadata(file) {
        let mode = found.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            children.push(Finding::warn(
                format!("mode {mode:03o}: others than its owner can change it"),
                format!("chmod go-w {shown}"),
            ));
        }
    }
    let config = match Config::read(file) {
        Ok(config) => {
            children.push(Finding::ok("every key is understood"));
            Some(config)
        }
        Err(ConfigError::Invalid { problems, .. }) => {
            children.extend(problems.into_iter().map(|wrong| {
                let told = match wrong.line {
                    Some(line) => format!("{} at line {line}", wrong.message),
                    None => wrong.message,
                };
                let advice = wrong.advice;
                Finding::fail(told, advice.unwrap_or_else(|| "correct it".to_owned()))
            }));
            None
        }
        Err(error @ ConfigError::Io { .. }) => {
            children.push(Finding::fail(
                error.to_string(),
                "name the file the broker is started with",
            ));
            None
        }
    };
    (
        Finding::group(format!("configuration {shown}"), children),
        config,
    )
}

/// Directories and the signing key: places and modes.
pub(super) fn check_files(config: &Config) -> Finding {
    let looked = keys::inspect(&config.key_dir, &config.data_dir);
    let mut children: Vec<_> = looked
        .problems
        .iter()
        .map(|problem| {
            Finding::fail(
                problem.to_string(),
                "keys and data are the broker's alone, and no backup of the data may hold a key",
            )
        })
        .collect();
    let (data, keys) = (config.data_dir.display(), config.key_dir.display());
    children.push(match (&looked.key, children.is_empty()) {
        (Some(_), _) => Finding::ok(format!("the signing key in {keys} is its owner's alone")),
        (None, true) => Finding::ok(format!(
            "no signing key in {keys} yet: the first start makes it"
        )),
        (None, false) => Finding::warn(
            format!("no signing key was read in {keys}"),
            "correct what is above",
        ),
    });
    if !config.data_dir.exists() {
        children.push(Finding::ok(format!(
            "no data in {data} yet: the first start makes it"
        )));
    }
    Finding::group("files", children)
}

/// The trust bundles of the configured trust domains.
pub(super) fn check_trust_domains(config: &Config) -> Finding {
    if config.trust_domains.is_empty() {
        return Finding::warn(
            "no trust domain: no workload can be verified",
            "add a [[trust_domain]] with name and bundle",
        );
    }
    let mut seen = BTreeSet::new();
    let mut children = Vec::new();
    for (domain, file) in &config.trust_domains {
        if !seen.insert(domain) {
            children.push(Finding::fail(
                format!("{domain} stands twice"),
                "one [[trust_domain]] for each name",
            ));
        }
        let shown = file.display();
        let mut bytes = Vec::new();
        let read = std::fs::File::open(file)
            .and_then(|file| file.take(TRUST_BYTES_MAX).read_to_end(&mut bytes));
        children.push(match read {
            Err(error) => Finding::fail(
                format!("{domain}: {shown}: {error}"),
                "the trust domain's SPIFFE server exports it: 'spire-server bundle show -format spiffe'",
            ),
            Ok(_) => match KeySet::parse(&bytes, Usage::JwtSvid) {
                Err(error) => Finding::fail(
                    format!("{domain}: {shown}: {error}"),
                    "it must be a SPIFFE trust bundle (JWK set with use jwt-svid)",
                ),
                Ok(keys) if keys.is_empty() => Finding::warn(
                    format!("{domain}: {shown} has no JWT-SVID key: it trusts nobody"),
                    "export it again from the trust domain",
                ),
                Ok(keys) => Finding::ok(format!("{domain}: {} JWT-SVID keys", keys.len())),
            },
        });
    }
    Finding::group("trust domains", children)
}

/// How bytes reach the broker.
pub(super) fn check_transport(config: &Config) -> Finding {
    let clear = "it speaks plain HTTP: proofs and tokens cross the wire in clear";
    if config.tls.is_some() && !config.settings.external_url.starts_with("https://") {
        Finding::fail(
            format!(
                "transport: it speaks TLS, and external_url is {}",
                config.settings.external_url
            ),
            "callers go where external_url says: begin it with https://",
        )
    } else if config.tls.is_some() {
        Finding::ok("transport: TLS of its own")
    } else if !config.listen.ip().is_loopback() {
        Finding::warn(
            format!("transport: {} is not loopback, and {clear}", config.listen),
            "give it a certificate ([tls]), or have it listen on loopback behind a TLS proxy",
        )
    } else if config.settings.external_url.starts_with("https://") {
        Finding::ok(
            "transport: external_url is https, so a TLS proxy on this host stands before the broker",
        )
    } else {
        Finding::ok("transport: plain HTTP on loopback")
    }
}

/// The broker's own certificate, if it has one: whether the key is its, and how long it holds.
pub(super) fn check_certificate(config: &Config, now: Timestamp) -> Option<Finding> {
    let files = config.tls.as_ref()?;
    let shown = files.certificate.display();
    Some(match Tls::read(&files.certificate, &files.key) {
        Err(error) => Finding::fail(
            format!("certificate {shown}: {error}"),
            "the broker does not start with it: both in PEM, the key its owner's alone and the certificate's",
        ),
        Ok(tls) => {
            let until = tls.status().not_after;
            let days = until.since(now).div_euclid(DAY_MS);
            let what = format!("certificate {shown}: its key is its own, it ends {until}");
            if days < 0 {
                Finding::fail(
                    what,
                    "it is over: clients refuse it; put another in its place",
                )
            } else if days < CERTIFICATE_DAYS_WARN {
                Finding::warn(
                    what,
                    "put another in its place: it is taken up without a restart",
                )
            } else {
                Finding::ok(what)
            }
        }
    })
}

/// The directory that seeds an empty journal.
pub(super) fn check_policy_directory(dir: &Path) -> Finding {
    let what = format!("policy directory {}", dir.display());
    match policy_dir::load(dir) {
        Err(error) => Finding::group(
            what,
            vec![Finding::fail(
                error.message.replace('\n', "; "),
                "'dipylon policy check DIR' says it line by line",
            )],
        ),
        Ok((_, bundle)) => check_policy(what, &bundle),
    }
}

/// Whether a policy bundle can be lived with: somebody governs, and whoever is asked can answer.
pub(super) fn check_policy(what: String, bundle: &PolicyBundle) -> Finding {
    let mut children = vec![Finding::ok(format!(
        "{} rules, {} agents, version {}",
        bundle.rules().count(),
        bundle.agents().count(),
        bundle.version()
    ))];
    if let Err(why) = bundle.check_has_operator() {
        children.push(Finding::fail(
            why,
            "'dipylon key new --of PERSON --out FILE' prints the [[key]] to add",
        ));
    }
    for warning in bundle.warnings() {
        children.push(Finding::warn(
            warning.to_string(),
            "correct it, or leave it if it is meant",
        ));
    }
    let asked: BTreeSet<_> = bundle
        .rules()
        .filter_map(|rule| match &rule.remedy {
            Some(Remedy::StepUp(profile)) => Some(profile),
            Some(Remedy::MaxTtl(_)) | None => None,
        })
        .collect();
    for profile in bundle.profiles() {
        let name = &profile.name;
        if !asked.contains(name) {
            children.push(Finding::warn(
                format!("profile {name}: no rule asks for it"),
                format!("a forbid with @step_up(\"{name}\") would; or take it out"),
            ));
            continue;
        }
        let short = agents_short_of_approvers(bundle, profile);
        children.push(if short.is_empty() {
            Finding::ok(format!(
                "profile {name}: {} of group {} can be had for every agent",
                profile.quorum, profile.group
            ))
        } else {
            Finding::warn(
                format!(
                    "profile {name} needs {} of group {}; fewer could ever say yes for {}",
                    profile.quorum,
                    profile.group,
                    short.join(", ")
                ),
                "add approvers with keys to the group: an agent's owner never counts",
            )
        });
    }
    Finding::group(what, children)
}

/// Agents for which fewer people could ever say yes than a profile needs, each with how many could.
fn agents_short_of_approvers(bundle: &PolicyBundle, profile: &StepUpProfile) -> Vec<String> {
    let short = |agent: &std::sync::Arc<RegisteredAgent>| {
        let n = bundle.eligible_approvers(profile, &agent.owner);
        let few = u32::try_from(n).is_ok_and(|n| n < profile.quorum);
        few.then(|| format!("{} ({n})", agent.id))
    };
    bundle.agents().filter_map(short).collect()
}

/// Profiles that nobody, or too few, could ever satisfy for some agent, in words.
pub(super) fn unreachable_quorums(bundle: &PolicyBundle) -> Vec<String> {
    let told = |profile: &StepUpProfile| {
        let short = agents_short_of_approvers(bundle, profile);
        (!short.is_empty()).then(|| {
            format!(
                "profile {}: {} of group {} must say yes, and fewer with a key ever could for {}",
                profile.name,
                profile.quorum,
                profile.group,
                short.join(", ")
            )
        })
    };
    bundle.profiles().filter_map(told).collect()
}

/// Days before a certificate's end at which another should lie there.
const CERTIFICATE_DAYS_WARN: i64 = 14;
const DAY_MS: i64 = 86_400_000;
/// Longest trust bundle, in bytes.
const TRUST_BYTES_MAX: u64 = 1 << 20;
