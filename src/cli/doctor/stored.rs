//! What is stored on this host: the journal, the disk, the signing key, and the policy and trust in force.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SKEW_S;
use crate::approve::quorum;
use crate::cli::finding::Finding;
use crate::cli::{audit, config_checks};
use crate::clock::Clock;
use crate::config::Config;
use crate::journal::{JournalReader, OpenError};
use crate::keys;
use crate::model::{Digest, Entry, Event, KeyId, PersonId, Timestamp, TrustDomain, format_seconds};
use crate::policy::{BundleFiles, PolicyBundle};
use crate::state::{Passkey, Show, State};

/// What the journal holds about the policy and the signing keys.
#[derive(Default)]
pub(super) struct JournalSummary {
    policy: Option<Digest>,
    bundle: Option<PolicyBundle>,
    pub(super) keys: Vec<(KeyId, Timestamp)>,
    /// The newest trust bundle of each domain.
    trust: BTreeMap<TrustDomain, Digest>,
    /// Whether an operator can govern the realm, whether the operators were recovered lately, and the passkeys that await confirmation.
    pub(super) operators: Vec<Finding>,
}

/// Checks that an operator of the bundle in force has a living key, and warns of a recovery as long as everyone is shown it.
fn check_operators(show: Show<'_>, now: Timestamp) -> Vec<Finding> {
    if show.rules().is_none() {
        return Vec::new();
    }
    let names: Vec<String> = show.governors().iter().map(ToString::to_string).collect();
    let mut findings = vec![match names.is_empty() {
        true => Finding::fail(
            "no operator has a living key to freeze, revoke or apply a policy bundle with",
            "stop the broker, and run 'dipylon recover operators' as its user; agents work under the rules in force meanwhile",
        ),
        false => Finding::ok(format!("operators with a living key: {}", names.join(", "))),
    }];
    if !names.is_empty() && !show.change_is_possible() {
        findings.push(Finding::warn(
            "nobody could change the policy bundle: too few people who have to agree to a change have a key that counts",
            "have passkeys enrolled and confirmed ('dipylon approver invite', 'dipylon approver confirm'); where that is not enough, 'dipylon recover operators' on this host",
        ));
    }
    if let Some(known) = show.recovery().filter(|known| known.is_shown(now)) {
        let recovery = &known.recovery;
        findings.push(Finding::warn(
            format!(
                "the operators were recovered on this host at {}, by {} (unverified), entry {}: {}",
                known.at, recovery.host_user, known.index, recovery.reason
            ),
            "if you do not know of it, somebody else can write this host's files: shown for seven days",
        ));
    }
    findings
}

/// Warns of the profiles that too few people could satisfy now.
fn check_quorums(state: &Arc<State>, now: Timestamp) -> Vec<Finding> {
    let read = state.read();
    let Some(rules) = read.rules() else {
        return Vec::new();
    };
    let short = quorum::without_keys(&read, &rules.bundle, rules.bundle.asking_agents(), now);
    let warn = |sentence| Finding::warn(sentence, "requests that ask for it are denied meanwhile");
    short.into_iter().map(warn).collect()
}

/// Warns of passkeys that await confirmation, each with who could give it.
fn check_passkeys(show: Show<'_>, now: Timestamp) -> Vec<Finding> {
    let warn = |(person, passkey): (PersonId, Passkey)| {
        let age = format_seconds(seconds_between(passkey.added_at, now).max(0));
        let key = passkey.record.key;
        let confirmers = show.confirmers(&person, key);
        let names: Vec<&str> = confirmers.iter().take(5).map(PersonId::as_str).collect();
        let next = match names.is_empty() {
            true => format!(
                "no other person has a key to confirm it with: stop the broker, and run 'dipylon approver confirm-on-host {person} CODE' as its user, with the code that {person} reads out"
            ),
            false => format!(
                "{} confirms it on the console's Approvers page or with 'dipylon approver confirm {person} CODE', with the code that {person} reads out; if {person} did not enrol it, revoke it",
                names.join(" or ")
            ),
        };
        Finding::warn(
            format!(
                "the passkey {key} of {person}, enrolled {age} ago on an invitation of {}, awaits confirmation",
                passkey.invited_by
            ),
            next,
        )
    };
    show.unconfirmed_passkeys().into_iter().map(warn).collect()
}

/// Verifies the journal as 'audit verify' does, and collects its policy and signing keys.
pub(super) fn check_journal(dir: &Path, clock: &Clock) -> (Finding, JournalSummary) {
    let mut summary = JournalSummary::default();
    let title = format!("journal {}", dir.display());
    let opened = match JournalReader::open(dir) {
        Ok(opened) => opened,
        Err(_) if !JournalReader::exists(dir) => {
            let none = Finding::ok("none yet: the first start creates it");
            return (Finding::group(title, vec![none]), summary);
        }
        Err(error) => {
            let unopened = config_checks::unopened_journal(&error);
            return (Finding::group(title, vec![unopened]), summary);
        }
    };
    let mut children = Vec::new();
    match audit::verify(dir, None) {
        Ok((report, votes, state)) => {
            children.push(Finding::ok(format!(
                "verified: {} entries, {} votes, checkpoint {}",
                report.head.size,
                votes.by_key + votes.by_passkey,
                report.head
            )));
            summary.operators = check_operators(state.show(), clock.now());
            summary
                .operators
                .extend(check_passkeys(state.show(), clock.now()));
            summary.operators.extend(check_quorums(&state, clock.now()));
        }
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
        match entry.event {
            Event::KeyPublished(event) => summary.keys.push((event.kid, entry.at)),
            Event::TrustBundleChanged(event) => {
                summary.trust.insert(event.domain, event.bundle);
            }
            _ => {}
        }
        Ok(())
    });
    if let Err(error) = read {
        children.push(Finding::fail(
            error.to_string(),
            "keep an unchanged copy of this journal and compare it with a backup",
        ));
    }
    // Read after the journal: an entry that was appended meanwhile is not ahead.
    let now = clock.now();
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
pub(super) fn check_disk(config: &Config) -> Finding {
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

pub(super) fn check_signing_key(
    config: &Config,
    summary: &JournalSummary,
    now: Timestamp,
) -> Finding {
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
pub(super) fn check_active_policy(config: &Config, summary: &JournalSummary) -> Vec<Finding> {
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
        findings.extend(config_checks::check_policy_seed(config));
    }
    findings
}

/// A warning for each trust bundle whose file differs from what the broker read at its last start.
pub(super) fn check_trust_in_force(config: &Config, summary: &JournalSummary) -> Vec<Finding> {
    let changed = |(domain, file): &(TrustDomain, PathBuf)| {
        let text = config_checks::read_trust_bundle(file).ok()?;
        let in_force = summary.trust.get(domain);
        let differs =
            !summary.trust.is_empty() && in_force != Some(&Digest::sha256(text.as_bytes()));
        differs.then(|| {
            Finding::warn(
                format!(
                    "trust bundle of {domain}: {} is not the one in force",
                    file.display()
                ),
                "the broker reads trust bundles at its start: restart it",
            )
        })
    };
    config.trust_domains.iter().filter_map(changed).collect()
}

/// Whole seconds from one timestamp to another.
fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.since(from) / 1_000
}

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
    use crate::state::StateFold;

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
            latest_seen: std::sync::Arc::default(),
            faults: FaultInjection::default(),
            observe: None,
        };
        let fold = StateFold::new(std::sync::Arc::default(), |_| {});
        let _journal = Journal::open(dir.path(), options, Box::new(fold)).expect("opens");
        for (now, failed) in [
            (now, false),
            (now.plus_secs(-SKEW_S), false),
            (now.plus_secs(-SKEW_S - 1), true),
        ] {
            let (finding, _) = check_journal(dir.path(), &Clock::manual(now).0);
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
    }
}
