//! The realm always has someone to govern it: the last operator's key, bundles that nobody could govern under, and `recover operators`,
//! which the owner of the broker's host runs where no operator can act any more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use dipylon::broker::{KeyRevocation, RecoveryError};
use dipylon::journal::{CrashPoint, FaultInjection};
use dipylon_sdk::client::{Endpoint, OperatorClient};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;

use crate::support::agent_in_task::person_id;
use crate::support::cli_deployment::CliDeployment;
use crate::support::raw_http::http1;
use crate::support::recovery::{new_key, recover, recover_with, with_key};
use crate::support::*;

const REVOKE_KEYS: &str = "dipylon.v1.ApprovalService/RevokeApproverKeys";
const NO_OPERATOR: &str = "no operator has a living key";
const REASON: &str = "olga's laptop was stolen";

/// A deployment whose journal is seeded with its policy directory.
fn seeded() -> CliDeployment {
    let site = CliDeployment::new();
    let config = format!(
        "policy = \"policy\"\nadmin_listen = \"127.0.0.1:0\"\n{}",
        site.config()
    );
    site.write("dipylon.toml", &config);
    site
}

/// A policy directory, with another one's files.
fn write_policy(site: &CliDeployment, dir: &str, files: &BTreeMap<String, String>) {
    for (path, text) in files {
        site.write(&format!("{dir}/{path}"), text);
    }
}

fn write_key(site: &CliDeployment, file: &str, pkcs8: &[u8]) {
    site.write(file, SigningKey::to_pem(pkcs8).as_str());
    site.mode(file, 0o600);
}

fn recover_in(site: &CliDeployment, policy: &str, more: &[&str]) -> (i32, String, String) {
    let mut args = vec!["recover", "operators", "--config", "dipylon.toml"];
    args.extend(["--policy", policy, "--reason", REASON]);
    args.extend(more);
    site.run(&args)
}

/// The recovery is refused with this text, and the journal is as before.
fn refused_in(site: &CliDeployment, policy: &str, more: &[&str], why: &str) {
    let before = entries(site);
    let (code, out, stderr) = recover_in(site, policy, more);
    assert_eq!((code, out.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains(why), "{why}: {stderr}");
    assert_eq!(entries(site), before, "{why}");
}

fn entries(site: &CliDeployment) -> usize {
    let dir = site.path("data");
    match dir.exists() {
        true => entries_of(&dir),
        false => 0,
    }
}

fn entries_of(dir: &Path) -> usize {
    let mut count = 0;
    let journal = dipylon::journal::JournalReader::open(dir).expect("journal");
    let read = journal.read_all(|_| {
        count += 1;
        Ok(())
    });
    read.expect("readable");
    count
}

/// Calls the running broker as olga: exit code, stdout, stderr.
fn as_olga(site: &CliDeployment, key: &str, args: &[&str]) -> (i32, String, String) {
    let mut args = args.to_vec();
    args.extend(["--url", &site.url, "--key", key]);
    site.run(&args)
}

fn assert_stranger(answer: (i32, String, String)) {
    let (code, _, stderr) = answer;
    assert!(
        code != 0 && stderr.contains("NOT_AUTHENTICATED"),
        "{code}: {stderr}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_brings_back_an_operator_where_none_can_act() {
    let site = seeded();
    let running = site.serve();
    let revoke = ["approver", "revoke", "olga"];
    let (code, _, stderr) = as_olga(&site, "olga.pem", &revoke);
    assert!(
        code != 0 && stderr.contains("LAST_OPERATOR_KEY"),
        "{stderr}"
    );
    let compromised = ["approver", "revoke", "olga", "--compromised"];
    assert_eq!(as_olga(&site, "olga.pem", &compromised).0, 0);
    assert_stranger(as_olga(&site, "olga.pem", &["freeze", "all"]));
    let doctor = || site.run(&["doctor", "--config", "dipylon.toml"]);
    let (code, out, _) = doctor();
    assert!(
        code == 1 && out.contains("[fail] no operator has a living key"),
        "{out}"
    );

    // Nobody but the host's owner, and only while no broker runs.
    let (key, pkcs8) = new_key();
    let files = with_key(&site.env, "olga", &key);
    write_policy(&site, "new", &files);
    write_key(&site, "new.pem", &pkcs8);
    refused_in(&site, "new", &[], &format!("is running, as {}", site.url));
    drop(running);

    // It starts all the same, and says what to do.
    let running = site.serve();
    assert!(
        running.stderr().contains(NO_OPERATOR),
        "{}",
        running.stderr()
    );
    let ready = std::fs::read_to_string(site.path("ready.json")).expect("written");
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("JSON");
    // The people of the host read it; a stranger who asks the public listener does not.
    for (url, tells) in [
        (ready["admin"].as_str().expect("an address"), true),
        (&site.url, false),
    ] {
        let answer = http1(url, "GET", "/readyz", &[], b"").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = String::from_utf8(answer.body).expect("text");
        assert!(answer.starts_with("ready"), "{answer}");
        assert_eq!(answer.contains(NO_OPERATOR), tells, "{answer}");
    }
    drop(running);

    // A bundle that an apply would refuse.
    refused_in(&site, "policy", &[], "is in force already");
    let dead = site
        .env
        .policy_with("people.toml", |text| format!("{text}\n# again\n"));
    write_policy(&site, "dead", &dead);
    refused_in(&site, "dead", &[], "no operator would have a living key");
    write_policy(
        &site,
        "marias",
        &with_key(&site.env, "olga", &site.env.key_of("maria")),
    );
    refused_in(&site, "marias", &[], "people.toml");
    let more = ["--returning", "olga"];
    refused_in(&site, "new", &more, "olga does not return with this bundle");
    let (code, _, stderr) = site.run(&[
        "recover",
        "operators",
        "--config",
        "dipylon.toml",
        "--policy",
        "new",
        "--reason",
        "two\nlines",
    ]);
    assert!(code == 2 && stderr.contains("reason"), "{code}: {stderr}");

    let (code, out, stderr) = recover_in(&site, "new", &["--json"]);
    assert_eq!(code, 0, "{out}{stderr}");
    let done: serde_json::Value = serde_json::from_str(&out).expect("one value");
    assert_eq!(done["operators"], serde_json::json!(["olga"]), "{done}");
    assert_eq!(done["keys_lost"], serde_json::json!([]), "{done}");
    assert_eq!(done["position"], entries(&site) - 1, "{done}");
    refused_in(&site, "new", &[], "is in force already");

    // Everyone sees it; the new key governs, over another restart too, and the old one does not.
    for _ in 0..2 {
        let running = site.serve();
        let log = running.stderr();
        assert!(
            log.contains("the operators were recovered on this host") && log.contains(REASON),
            "{log}"
        );
        assert!(!log.contains(NO_OPERATOR), "{log}");
        assert_stranger(as_olga(&site, "olga.pem", &["freeze", "all"]));
        let (_, out, _) = doctor();
        assert!(
            out.contains("[ok]   operators with a living key: olga"),
            "{out}"
        );
        assert!(
            out.contains("[warn] the operators were recovered on this host")
                && out.contains(REASON),
            "{out}"
        );
        drop(running);
    }
    let _running = site.serve();
    assert_eq!(as_olga(&site, "new.pem", &["freeze", "all"]).0, 0);
    let endpoint = Endpoint::connect(&site.url).expect("endpoint");
    let operator = OperatorClient::new(endpoint, Arc::new(key));
    let found = operator.search("PolicyApplied", None).await.expect("found");
    let event = found.entries.first().expect("an entry");
    assert_eq!(event.what, "operators recovered on the broker's host");
    assert!(event.detail.contains(REASON), "{}", event.detail);
    let (code, out, _) = site.run(&["audit", "verify", "--config", "dipylon.toml"]);
    assert!(code == 0 && out.starts_with("verified: "), "{out}");
}

#[test]
fn operators_who_can_act_are_overruled_only_where_their_keys_are_lost() {
    let site = seeded();
    refused_in(&site, "policy", &[], "has no policy bundle");
    assert!(!site.path("data").exists(), "nothing is created");
    drop(site.serve());
    let (key, pkcs8) = new_key();
    write_policy(&site, "new", &with_key(&site.env, "olga", &key));
    write_key(&site, "new.pem", &pkcs8);
    refused_in(
        &site,
        "new",
        &[],
        "operators with living keys can act and change the policy bundle: olga",
    );
    let same = site
        .env
        .policy_with("people.toml", |text| format!("{text}\n# again\n"));
    write_policy(&site, "same", &same);
    refused_in(
        &site,
        "same",
        &["--operators-lost"],
        "it registers every living key",
    );

    let (code, out, stderr) = recover_in(&site, "new", &["--operators-lost"]);
    assert_eq!(code, 0, "{out}{stderr}");
    let old = site.env.keys["olga"].thumbprint();
    assert!(out.contains(&format!("the key {old} of olga")), "{out}");
    let running = site.serve();
    assert_stranger(as_olga(&site, "olga.pem", &["freeze", "all"]));
    // Dead for ever: a bundle that registers the lost key alone leaves nobody to govern.
    let (code, _, stderr) = as_olga(&site, "new.pem", &["policy", "apply", "same"]);
    assert!(
        code != 0 && stderr.contains("no operator would have a living key"),
        "{stderr}"
    );
    assert_eq!(as_olga(&site, "new.pem", &["freeze", "all"]).0, 0);
    drop(running);
    let (code, out, _) = site.run(&["audit", "verify", "--config", "dipylon.toml"]);
    assert!(code == 0 && out.starts_with("verified: "), "{out}");
}

#[test]
fn a_journal_without_a_bundle_has_no_operators_to_recover() {
    let site = CliDeployment::new();
    drop(site.serve());
    refused_in(&site, "policy", &[], "has no policy bundle");
    let (_, _, stderr) = recover_in(&site, "policy", &[]);
    assert!(stderr.contains("one-time code"), "{stderr}");
}

/// Revokes all keys of a person by another's order.
async fn revoke(
    b: &TestBroker,
    by: &str,
    of: &str,
    compromised: bool,
) -> Result<usize, dipylon::broker::Refusal> {
    let call = b.person_call(REVOKE_KEYS, by);
    let revocation = KeyRevocation {
        compromised,
        ..KeyRevocation::default()
    };
    b.broker
        .revoke_approver_keys(&call, person_id(of), revocation)
        .await
        .map(|revoked| revoked.keys)
}

#[tokio::test]
async fn a_rollback_to_revoked_operators_is_refused() {
    let mut env = TestEnvironment::new();
    let without_otto = env.policy.clone();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n");
    env.add_key("otto");
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    revoke(&b, "otto", "olga", false)
        .await
        .expect("otto can govern");
    let (_, head) = b.broker.show().position();
    let last = revoke(&b, "otto", "otto", false).await;
    assert_eq!(refused(last), Reason::LastOperatorKey);
    let call = b.person_call("dipylon.v1.GovernanceService/ApplyPolicyBundle", "otto");
    let otto = b.broker.authenticate_person(&call).expect("otto");
    let rollback =
        b.broker
            .apply_policy_bundle(&call, otto, without_otto, Default::default(), None);
    let refusal = rollback.await.expect_err("only olga is left in it");
    assert_eq!(refusal.reason, Reason::InvalidPolicyBundle);
    assert!(
        refusal
            .message
            .contains("no operator would have a living key"),
        "{refusal:?}"
    );
    assert_eq!(b.broker.show().position().1, head, "nothing is recorded");
    assert!(!b.broker.is_ungoverned());
    let found_copied = revoke(&b, "otto", "otto", true).await;
    assert_eq!(found_copied.expect("gone"), 1);
    assert!(b.broker.is_ungoverned());
    b.check_invariants();
}

#[tokio::test]
async fn a_recovery_ends_what_its_bundle_no_longer_allows_and_is_shown_for_seven_days() {
    let b = TestBroker::start().await;
    let (triage, reporter) = (b.agent("triage"), b.agent("reporter"));
    let kept = b.open_task(&triage).await;
    let dropped = b.open_task(&reporter).await;
    let passkey = b.enrol("olga").await;
    let maria = b.enrol("maria").await;
    let code = b.invite("lee").await;
    let mut files = with_key(&b.env, "olga", &new_key().0);
    let agents = files.get_mut("agents.toml").expect("agents");
    let blocks = agents.split("\n[[agent]]");
    let left: Vec<&str> = blocks
        .filter(|block| !block.contains("id = \"reporter\""))
        .collect();
    *agents = left.join("\n[[agent]]");

    let mut recovered = None;
    let b = b
        .restart_after(async |dir, clock| {
            let refused = recover(dir, clock, files.clone(), false).await;
            assert!(
                matches!(refused, Err(RecoveryError::Governed(_))),
                "{refused:?}"
            );
            recovered = Some(
                recover(dir, clock, files.clone(), true)
                    .await
                    .expect("recovered"),
            );
        })
        .await;
    let recovered = recovered.expect("done");
    let lost: Vec<Thumbprint> = recovered.lost_keys.iter().map(|(_, key)| *key).collect();
    assert_eq!(lost.len(), 2, "her key and her passkey: {lost:?}");
    assert!(lost.contains(&b.env.keys["olga"].thumbprint()));

    let ended = |task| {
        b.broker
            .show()
            .task(task)
            .expect("a task")
            .ended
            .map(|ended| ended.cause)
    };
    assert_eq!(ended(&dropped), Some(EndCause::Policy));
    assert_eq!(ended(&kept), None);
    b.sign_in(&passkey).await.expect_err("dead");
    b.sign_in(&maria).await.expect("no operator's");
    let enrolled = b.enrol_with(&code, &Default::default()).await;
    assert!(enrolled.is_err(), "the invitation of a dead key");

    let metrics = b.broker.read_metrics();
    let at = b.broker.show().recovery().expect("on record").at;
    for line in [
        "dipylon_operators 1\n".to_owned(),
        format!(
            "dipylon_operators_recovered_timestamp_seconds {}\n",
            at.secs()
        ),
    ] {
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    let left = at.plus_secs(7 * 86_400).since(b.now());
    b.manual_clock
        .advance_millis(u32::try_from(left - 1).expect("days"));
    assert!(b.broker.recent_recovery().is_some());
    b.manual_clock.advance_millis(1);
    assert!(b.broker.recent_recovery().is_none());
    b.check_invariants();
}

/// Whole or not at all: after a crash the bundle before the recovery is in force, or the recovery's with its entry and dead keys.
#[tokio::test]
async fn a_recovery_that_crashes_leaves_nothing_half_done() {
    for (point, is_durable) in [
        (CrashPoint::Checked, false),
        (CrashPoint::Written, false),
        (CrashPoint::Committed, true),
        (CrashPoint::Published, true),
    ] {
        let b = TestBroker::start().await;
        let old = b.env.keys["olga"].thumbprint();
        let (key, _) = new_key();
        let (key, files) = (key.thumbprint(), with_key(&b.env, "olga", &key));
        let b = b
            .restart_after(async |dir, clock| {
                let faults = FaultInjection {
                    crash_hook: Some(Arc::new(move |at| at == point)),
                    ..FaultInjection::default()
                };
                let crashed = recover_with(dir, clock, files, true, faults).await;
                assert!(
                    matches!(crashed, Err(RecoveryError::Append(_))),
                    "{point:?}: {crashed:?}"
                );
            })
            .await;
        let living = b.broker.show().living_keys(&person_id("olga"));
        let expected = if is_durable { key } else { old };
        assert_eq!(living, [expected], "{point:?}");
        let is_shown = b.broker.recent_recovery().is_some();
        assert_eq!(is_shown, is_durable, "{point:?}");
        b.check_invariants();
    }
}

/// The entry needs the host: nothing that a call reaches makes one.
#[test]
fn no_call_makes_a_recovery() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut makers, mut dirs) = (BTreeSet::new(), vec![root.clone()]);
    while let Some(dir) = dirs.pop() {
        for found in std::fs::read_dir(dir).expect("a directory") {
            let path = found.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let names = [
                "recover_operators(",
                "recovery_draft(",
                "OperatorRecovery {",
            ];
            if names.iter().any(|name| text.contains(name)) {
                let path = path.strip_prefix(&root).expect("below it");
                makers.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    let expected = [
        "broker/governance/policy.rs",
        "broker/governance/recovery.rs",
        "cli/recover.rs",
    ];
    assert_eq!(makers, expected.map(str::to_owned).into());
}
