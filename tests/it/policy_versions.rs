//! The versions of the policy bundle from the command line: what is in force, what was, what differs, and the way back.

use std::collections::BTreeMap;

use dipylon::policy::BundleFiles;
use serde_json::{Value, json};

use crate::cli::setup::{CliSetup, READ, text};
use crate::support::recovery::recover;
use crate::support::*;

const GUARDS: &str = "rules/20-guardrails.cedar";
/// Closes one case to agents.
const CLOSED: &str = "\n@id(\"closed\")\nforbid (principal, action == Action::\"case.read\", resource == Case::\"INC-8841\");\n";
const OLGA: [&str; 2] = ["--key", "olga.pem"];

type Files = BTreeMap<String, String>;

fn version_of(files: &Files) -> String {
    let files = BundleFiles::new(files.clone()).expect("files");
    files.version().to_string()
}

/// Runs a command about policy bundles as olga; its JSON value.
async fn as_olga(setup: &CliSetup, args: &[&str], code: i32) -> Value {
    setup
        .json(&[&["policy"], args, &OLGA[..]].concat(), code)
        .await
}

fn write(setup: &CliSetup, dir: &str, files: &Files) {
    write_policy(&setup.path(dir), files);
}

async fn apply(setup: &CliSetup, dir: &str, files: &Files, code: i32) -> Value {
    write(setup, dir, files);
    let applied = as_olga(setup, &["apply", dir], code).await;
    assert_eq!(applied["version"], json!(version_of(files)));
    applied
}

fn read_dir(setup: &CliSetup, dir: &str) -> Files {
    let mut files = Files::new();
    for folder in ["", "rules/"] {
        for found in std::fs::read_dir(setup.path(dir).join(folder)).expect("dir") {
            let found = found.expect("entry");
            if found.file_type().expect("type").is_file() {
                let name = found.file_name().into_string().expect("UTF-8");
                let text = std::fs::read_to_string(found.path()).expect("text");
                files.insert(format!("{folder}{name}"), text);
            }
        }
    }
    files
}

/// Two operators: others agree to a change.
fn two_operators() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n");
    env.add_key("otto");
    env
}

/// The message of a refused command.
fn message(value: &Value) -> String {
    text(&value["error"]["message"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_is_listed_exported_compared_and_brought_back() {
    let setup = CliSetup::start().await;
    let seed = setup.served.env.policy.clone();
    // Longer than a message, of characters that no chunk may split; and an empty file.
    let mut documented = seed.clone();
    documented.insert("README.md".to_owned(), "王维\r\n".repeat(9_000));
    documented.insert("rules/90-empty.cedar".to_owned(), String::new());
    let mut closed = documented.clone();
    closed.get_mut(GUARDS).expect("rules").push_str(CLOSED);
    let versions = [&seed, &documented, &closed].map(version_of);

    setup.open_task("triage").await;
    let read = [&["token", "request"], &READ[..]].concat();
    setup.json(&read, 0).await;
    let none = as_olga(&setup, &["rollback"], 1).await;
    assert!(
        message(&none).contains("no policy bundle was in force before"),
        "{none}"
    );
    apply(&setup, "documented", &documented, 0).await;
    let applied = apply(&setup, "closed", &closed, 0).await;
    assert_eq!(applied["tokens_ended"], 1);
    setup.json(&read, 10).await;

    // Back to the bundle before, and with it to its decisions; what has ended stays ended.
    let back = as_olga(&setup, &["rollback"], 0).await;
    let is = (&back["version"], &back["changed"], &back["tokens_ended"]);
    assert_eq!(is, (&json!(versions[1]), &json!(true), &json!(0)));
    setup.json(&read, 0).await;
    // By its name, and it ends again what it does not allow.
    let again = as_olga(&setup, &["rollback", &versions[2][..8]], 0).await;
    let is = (&again["version"], &again["changed"], &again["tokens_ended"]);
    assert_eq!(is, (&json!(versions[2]), &json!(true), &json!(1)));
    setup.json(&read, 10).await;
    let same = as_olga(&setup, &["rollback", &versions[2]], 0).await;
    assert_eq!(same["changed"], false);

    let history = as_olga(&setup, &["history"], 0).await;
    let rows: Vec<_> = history.as_array().expect("rows").iter().collect();
    let of = |row: &Value| (text(&row["version"]), text(&row["how"]), row["by"].clone());
    let alone = |n: usize| (versions[n].clone(), "alone".to_owned(), json!("olga"));
    let seeded = (versions[0].clone(), "seed".to_owned(), Value::Null);
    let shown: Vec<_> = rows.iter().map(|row| of(row)).collect();
    assert_eq!(shown, [alone(2), alone(1), alone(2), alone(1), seeded]);
    let positions: Vec<_> = rows.iter().map(|row| row["position"].as_u64()).collect();
    assert!(
        positions.windows(2).all(|two| two[0] > two[1]),
        "{positions:?}"
    );
    let limited = as_olga(&setup, &["history", "--limit", "2"], 0).await;
    assert_eq!(limited, json!([rows[0], rows[1]]));
    let shown = setup
        .run(&[&["policy", "history"], &OLGA[..]].concat())
        .await;
    assert!(
        shown
            .code(0)
            .out()
            .contains("the configuration, as the seed"),
        "{}",
        shown.out()
    );

    let status = as_olga(&setup, &["status"], 0).await;
    assert_eq!(of(&status), alone(2));
    let size = (&status["rules"], &status["agents"], &status["people"]);
    let checked = setup.json(&["policy", "check", "closed"], 0).await;
    assert_eq!(size, (&checked["rules"], &checked["agents"], &json!(4)));
    assert_eq!(status["findings"], checked["findings"]);
    assert_eq!(status["proposals"], json!([]));

    // The files as they were, of the one in force and of any before.
    for (n, dir, files) in [
        (2, "now", &closed),
        (1, "then", &documented),
        (0, "first", &seed),
    ] {
        let mut args = vec!["export", dir];
        if n < 2 {
            args.extend(["--version", &versions[n][..8 + n]]);
        }
        if n == 1 {
            std::fs::create_dir(setup.path(dir)).expect("empty");
        }
        let exported = as_olga(&setup, &args, 0).await;
        assert_eq!(exported["version"], json!(versions[n]));
        assert_eq!(&read_dir(&setup, dir), files);
    }
    let full = as_olga(&setup, &["export", "now", "--version", &versions[0]], 1).await;
    assert!(message(&full).contains("is not empty"), "{full}");
    assert_eq!(read_dir(&setup, "now"), closed);

    let same = as_olga(&setup, &["diff", "now"], 0).await;
    assert_eq!(
        (&same["differs"], &same["files"]),
        (&json!(false), &json!([]))
    );
    let between = ["diff", "--from", &versions[1], "--to", &versions[2][..9]];
    let between = as_olga(&setup, &between, 1).await;
    let ends = (&between["from"], &between["to"]);
    assert_eq!(ends, (&json!(versions[1]), &json!(versions[2])));
    let summary = text(&between["summary"][0]);
    assert!(summary.starts_with("the rule closed comes"), "{summary}");
    assert_eq!(between["files"].as_array().map(Vec::len), Some(1));
    assert_eq!(between["files"][0]["path"], GUARDS);
    let lines = between["files"][0]["lines"].as_array().expect("lines");
    assert!(lines.contains(&json!("+@id(\"closed\")")), "{lines:?}");
    // The directory is what comes.
    let shown = setup
        .run(&[&["policy", "diff", "then"], &OLGA[..]].concat())
        .await;
    let shown = shown.code(1).out();
    assert!(shown.contains("\nthe rule closed goes\n"), "{shown}");
    assert!(shown.contains("\n-@id(\"closed\")\n"), "{shown}");

    // A document decides nothing.
    let args = [
        "policy",
        "diff",
        "--from",
        &versions[0],
        "--to",
        &versions[1],
    ];
    let shown = setup.run(&[&args[..], &OLGA[..]].concat()).await;
    let shown = shown.code(1).out();
    assert!(
        shown.contains("\nnothing that decides differs\n"),
        "{shown}"
    );

    // Versions that are none.
    let never = {
        let mut files = seed.clone();
        files.insert("README.md".to_owned(), "never applied".to_owned());
        version_of(&files)
    };
    for args in [
        &["rollback", &never][..],
        &["export", "never", "--version", &never],
        &["export", "never", "--version", "AAAAAAAA"],
    ] {
        let refused = as_olga(&setup, args, 1).await;
        assert_eq!(refused["error"]["reason"], "NOT_FOUND");
        assert!(
            message(&refused).ends_with("was ever in force"),
            "{refused}"
        );
    }
    assert!(!setup.path("never").exists());
    for short in ["AAAAAAA", "", "sha256:AAAAAAAA", &format!("{never}A")] {
        for args in [
            &["rollback", short][..],
            &["export", "never", "--version", short],
        ] {
            let refused = as_olga(&setup, args, 2).await;
            assert!(
                message(&refused).contains("8 to 43 characters"),
                "{refused}"
            );
        }
    }
    // One in 64 versions begins with a hyphen.
    let hyphen = as_olga(&setup, &["rollback", "-AAAAAAAAA"], 1).await;
    assert_eq!(hyphen["error"]["reason"], "NOT_FOUND");
    let two_hyphens = format!("--{}A", "A".repeat(40));
    let hyphens = as_olga(&setup, &["rollback", &two_hyphens], 1).await;
    assert_eq!(hyphens["error"]["reason"], "NOT_FOUND");
    let mistyped = as_olga(&setup, &["rollback", "--retruning"], 2).await;
    assert!(message(&mistyped).contains("no such option"), "{mistyped}");
    for (args, code) in [
        (&["diff", "--from", &never, "--to", &never][..], 2),
        (&["diff"], 2),
    ] {
        as_olga(&setup, args, code).await;
    }
    let after = as_olga(&setup, &["history"], 0).await;
    assert_eq!(after, history, "nothing of it came in force");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_waits_for_the_people_who_agree() {
    let setup = CliSetup::start_in(two_operators()).await;
    let seed = version_of(&setup.served.env.policy);
    let retitled = setup.served.env.policy_with("schema.cedarschema", |text| {
        text.replace("Disable an account", "Lock an account")
    });
    let agree = async |id: &str| {
        let vote = [
            "approve", id, "--yes", "--realm", "test", "--key", "otto.pem",
        ];
        setup.json(&vote, 0).await
    };
    let applied = apply(&setup, "retitled", &retitled, 11).await;
    agree(&text(&applied["access_request"])).await;

    let waits = as_olga(&setup, &["rollback"], 11).await;
    let id = text(&waits["access_request"]);
    assert_eq!(waits["version"], json!(seed));
    let status = as_olga(&setup, &["status"], 0).await;
    assert_eq!(status["version"], json!(version_of(&retitled)));
    assert_eq!(status["how"], "agreed");
    let proposal = &status["proposals"][0];
    let is = (
        &proposal["access_request"],
        &proposal["by"],
        &proposal["version"],
    );
    assert_eq!(is, (&json!(id), &json!("olga"), &json!(seed)));
    assert_eq!(proposal["expires_at"], waits["expires_at"]);
    let shown = setup
        .run(&[&["policy", "status"], &OLGA[..]].concat())
        .await;
    assert!(shown.code(0).out().contains(&id), "{}", shown.out());
    // The same again finds the proposal.
    let again = as_olga(&setup, &["rollback", &seed], 11).await;
    assert_eq!(again["access_request"], json!(id));

    agree(&id).await;
    let history = as_olga(&setup, &["history", "--limit", "1"], 0).await;
    let row = &history[0];
    let is = (
        &row["version"],
        &row["how"],
        &row["by"],
        &row["access_request"],
    );
    let expected = (&json!(seed), &json!("agreed"), &json!("olga"), &json!(id));
    assert_eq!(is, expected);
    assert_eq!(
        as_olga(&setup, &["status"], 0).await["proposals"],
        json!([])
    );

    // Nobody is left who could agree.
    let revoke = ["approver", "revoke", "otto", "--key", "olga.pem"];
    setup.json(&revoke, 0).await;
    let refused = as_olga(&setup, &["rollback"], 13).await;
    assert_eq!(refused["error"]["reason"], "CHANGE_QUORUM_UNREACHABLE");
    assert_eq!(
        as_olga(&setup, &["status"], 0).await["version"],
        json!(seed)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auditors_read_versions_and_others_do_not() {
    let setup = CliSetup::start().await;
    let version = version_of(&setup.served.env.policy);
    let reads: [&[&str]; 4] = [
        &["policy", "status"],
        &["policy", "history"],
        &["policy", "export", "audited"],
        &["policy", "diff", "audited"],
    ];
    for read in reads {
        setup
            .json(&[read, &["--key", "audit.pem"]].concat(), 0)
            .await;
    }
    assert_eq!(read_dir(&setup, "audited"), setup.served.env.policy);
    for other in ["maria.pem", "cases.pem"] {
        for read in reads {
            let refused = setup.json(&[read, &["--key", other]].concat(), 10).await;
            assert_eq!(refused["error"]["reason"], "NOT_PERMITTED", "{read:?}");
        }
    }
    let rollback = ["policy", "rollback", &version, "--key", "audit.pem"];
    let refused = setup.json(&rollback, 10).await;
    assert_eq!(refused["error"]["reason"], "NOT_PERMITTED");
}

/// A bundle that came in force under another check stays in force, and does not come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_the_check_refuses_today_does_not_come_back() {
    let CliSetup { served, home } = CliSetup::start_in(two_operators()).await;
    let otto = served.env.own_key("otto").row("otto");
    let without_otto = served
        .env
        .policy_with("people.toml", |text| text.replace(&otto, ""));
    let mut wrong = without_otto.clone();
    let guards = wrong.get_mut(GUARDS).expect("rules");
    *guards = guards.replacen("Environment::\"prod\"", "Environment::\"production\"", 1);
    let refused_by = "nothing in this bundle is Environment::\"production\"";
    let lost = wrong.clone();
    let served = served
        .restart_after(async move |dir, clock| {
            recover(dir, clock, lost, true).await.expect("recovered");
        })
        .await;
    let setup = CliSetup { served, home };

    let status = as_olga(&setup, &["status"], 0).await;
    assert_eq!(status["version"], json!(version_of(&wrong)));
    assert_eq!(
        (&status["how"], &status["by"]),
        (&json!("recovery"), &Value::Null)
    );
    let recovery = &status["recovery"];
    assert!(text(&recovery["reason"]).contains("laptop"), "{recovery}");
    assert!(text(&recovery["host_user"]).contains("ann"), "{recovery}");
    let finding = &status["findings"][0];
    assert_eq!(finding["severity"], "error");
    assert!(text(&finding["message"]).contains(refused_by), "{finding}");
    assert!(status["rules"].is_u64(), "it can be read: {status}");
    let shown = setup
        .run(&[&["policy", "status"], &OLGA[..]].concat())
        .await;
    assert!(
        shown.code(0).out().contains("would be refused today"),
        "{}",
        shown.out()
    );

    // It can be exported and compared.
    as_olga(&setup, &["export", "wrong"], 0).await;
    assert_eq!(read_dir(&setup, "wrong"), wrong);
    let compared = as_olga(&setup, &["diff", "wrong"], 0).await;
    assert_eq!(compared["differs"], false);
    apply(&setup, "right", &without_otto, 0).await;
    let compared = as_olga(&setup, &["diff", "wrong"], 1).await;
    let first = text(&compared["summary"][0]);
    assert!(
        first.starts_with("THE CHECK REFUSES THIS BUNDLE"),
        "{first}"
    );

    let before = as_olga(&setup, &["history"], 0).await;
    for args in [&["rollback"][..], &["rollback", &version_of(&wrong)]] {
        let refused = as_olga(&setup, args, 1).await;
        assert!(message(&refused).contains(refused_by), "{refused}");
        assert!(message(&refused).contains(&version_of(&wrong)), "{refused}");
    }
    assert_eq!(as_olga(&setup, &["history"], 0).await, before);
    // The broker refuses it by itself, too.
    let olga = setup.served.operator("olga");
    let refused = olga.apply_policy_bundle(&wrong).await.expect_err("refused");
    assert!(refused.to_string().contains(refused_by), "{refused}");
}
