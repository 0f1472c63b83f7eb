//! Quorums that people without keys cannot reach: refused at an apply, and shown to everyone until they are mended.

use std::collections::BTreeMap;

use dipylon_sdk::model::*;

use crate::cli::setup::CliSetup;
use crate::support::*;

const OLGA: [&str; 2] = ["--key", "olga.pem"];

type Files = BTreeMap<String, String>;

fn replaced(files: &Files, path: &str, from: &str, to: &str) -> Files {
    let mut files = files.clone();
    let text = files.get_mut(path).expect("a file");
    assert!(text.contains(from), "{path}: {from}");
    *text = text.replacen(from, to, 1);
    files
}

/// The profile of two people takes passkeys alone.
fn by_passkey(files: &Files) -> Files {
    let text = &files["people.toml"];
    let profile = text.find("[profile.two-security]").expect("a profile");
    let at = profile + text[profile..].find("\"key\"").expect("its method");
    let mut people = text.clone();
    people.replace_range(at..at + 5, "\"passkey\"");
    let mut files = files.clone();
    files.insert("people.toml".to_owned(), people);
    files
}

fn said(refused: &str) {
    for part in [
        "profile two-security: its quorum is 2",
        "responder (1)",
        "lee has an invitation that is no longer good",
        "dipylon approver invite PERSON",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}

/// Two people can approve for agents that dana owns: maria and lee. One of them without a key is one too few, once an invitation lapsed.
#[tokio::test]
async fn an_invitation_that_lapsed_is_one_too_few() {
    let b = TestBroker::start().await;
    let seed = b.env.policy.clone();
    let passkeys = by_passkey(&seed);
    let unreachable = |b: &TestBroker| b.broker.notices().join("\n");

    // Nobody was invited yet: they may still come by their first passkeys.
    let applied = b.apply_policy(passkeys.clone()).await.expect("in force");
    assert!(applied.changed);
    b.invite("lee").await;
    assert_eq!(unreachable(&b), "");
    b.apply_policy(seed.clone()).await.expect("in force");
    b.manual_clock.advance_millis(601_000);

    // Under keys lee still counts, under passkeys no more.
    assert_eq!(unreachable(&b), "");
    let refused = b.apply_policy(passkeys.clone()).await;
    let refused = refused.expect_err("one too few");
    assert_eq!(refused.reason, Reason::InvalidPolicyBundle);
    said(&refused.message);
    let in_force = b.broker.show().rules().expect("a bundle").bundle.version();
    assert_eq!(in_force.to_string(), version_of(&seed));

    // The bundle says that it is meant, and everyone is told as long as it stands.
    let mut meant = passkeys.clone();
    silence(&mut meant, "quorum-unreachable", "two-security");
    let applied = b.apply_policy(meant.clone()).await.expect("in force");
    let warnings = applied.warnings.join("\n");
    assert!(warnings.contains("silenced by the bundle"), "{warnings}");
    said(&unreachable(&b));
    // A change of something else is not held up by what was so before.
    let other = replaced(&passkeys, "people.toml", "Maria Moreau", "Maria M.");
    let applied = b.apply_policy(other).await.expect("in force");
    said(&applied.warnings.join("\n"));

    // A new invitation is a new chance.
    b.invite("lee").await;
    assert_eq!(unreachable(&b), "");
    b.apply_policy(seed.clone()).await.expect("in force");
    b.apply_policy(passkeys).await.expect("in force");
    b.check_invariants();
}

fn version_of(files: &Files) -> String {
    let files = dipylon::policy::BundleFiles::new(files.clone()).expect("files");
    files.version().to_string()
}

/// The command line says so: at an apply, at a plan, and in the inbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lost_every_key_is_named() {
    let setup = CliSetup::start().await;
    let seed = setup.served.env.policy.clone();
    let inbox = async || setup.run(&["request", "list", "--key", "maria.pem"]).await;
    assert_eq!(inbox().await.code(0).err(), "");
    let revoke = ["approver", "revoke", "lee"];
    setup.run(&[&revoke[..], &OLGA].concat()).await.code(0);
    let shown = inbox().await;
    let warning = shown.code(0).err();
    for part in [
        "warning: profile two-security: its quorum is 2",
        "lee has no key that is not revoked",
    ] {
        assert!(warning.contains(part), "{warning}");
    }
    let listed = setup.run(&["request", "list", "--key", "maria.pem", "--json"]);
    assert_eq!(listed.await.json(), serde_json::json!([]));

    let two = replaced(
        &seed,
        "people.toml",
        "[profile.one-security]\ngroup = \"security\"\nquorum = 1",
        "[profile.one-security]\ngroup = \"security\"\nquorum = 2",
    );
    write_policy(&setup.path("two"), &two);
    for command in ["plan", "apply"] {
        let refused = setup
            .run(&[&["policy", command, "two"], &OLGA[..]].concat())
            .await;
        let error = refused.code(1).err();
        assert!(
            error.contains("profile one-security: its quorum is 2"),
            "{error}"
        );
        assert!(
            error.contains("lee has no key that is not revoked"),
            "{error}"
        );
    }
}
