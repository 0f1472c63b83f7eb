//! Parameters from files, stdin and the environment; durations as they are printed; what a wrong value is told.

use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;

use super::setup::{CliSetup, DISABLE, READ, finish};
use crate::support::{CASES, IDP};

const NOTE: [&str; 8] = [
    "token",
    "request",
    "--action",
    "case.note",
    "--target",
    "Case::INC-8841",
    "--audience",
    CASES,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sensitive_values_need_not_be_on_the_command_line() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    std::fs::write(setup.path("note"), "s3cr3t 12\n").expect("file");
    std::fs::write(setup.path("note.json"), "\"s3cr3t 12\"\n").expect("file");
    // One idempotency key: another value would be another request.
    let note = |param| {
        [
            &NOTE[..],
            &["--idempotency-key", "note-1", "--param", param],
        ]
        .concat()
    };
    setup.run(&note("text=s3cr3t 12")).await.code(0);
    for param in [
        "text=@note",
        "text:=@note.json",
        "text=@env:NOTE",
        "text:=\"s3cr3t 12\"",
    ] {
        let mut program = setup.program(&note(param));
        program.env("NOTE", "s3cr3t 12");
        finish(program).await.code(0);
    }
    let mut program = setup.program(&note("text=@-"));
    program.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("runs");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"s3cr3t 12\n").await.expect("written");
    drop(stdin);
    assert!(child.wait().await.expect("ends").success());
    let other = setup.json(&note("text=other"), 15).await;
    assert_eq!(other["error"]["reason"], "IDEMPOTENCY_KEY_REUSED");

    for (param, message) in [
        ("text=@nowhere", "parameter `text`: nowhere: no such file"),
        (
            "text=@env:NO_SUCH",
            "the environment variable NO_SUCH is not set",
        ),
        ("text=@", "after '@'"),
    ] {
        let refused = setup.run(&note(param)).await;
        refused.err_contains(message);
        assert_ne!(refused.0.status.code(), Some(0));
    }
    // Stdin has one reader.
    let twice = [&note("text=@-")[..], &["--evidence", "-"]].concat();
    setup.run(&twice).await.code(2).err_contains("only once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_parameter_is_told_its_form() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    let disable = [
        "token",
        "request",
        "--action",
        "account.disable",
        "--target",
        "Account::ann",
        "--audience",
        IDP,
        "--param",
    ];
    for (param, message, form) in [
        (
            "end_sessions=yes",
            "`end_sessions`: expected true or false, got text",
            "write --param end_sessions=true",
        ),
        (
            "end_session=true",
            "`end_session` is not a parameter of this action (did you mean \"end_sessions\"?)",
            "schema.cedarschema",
        ),
    ] {
        let refused = setup.run(&[&disable[..], &[param]].concat()).await;
        refused.code(2).err_contains(message).err_contains(form);
    }
    let number = setup
        .run(&[&NOTE[..], &["--param", "text=12"]].concat())
        .await;
    number
        .code(2)
        .err_contains("`text`: expected text, got an integer")
        .err_contains("'text:=\"5\"'");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durations_are_accepted_as_they_are_printed() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    for ttl in ["4m 59s", "4m59s", "299s"] {
        let request = [&["token", "request", "--ttl", ttl], &READ[..]].concat();
        let token = setup.json(&request, 0).await;
        assert_eq!(token["ttl"]["requested"], 299, "{ttl}");
    }
    for ttl in ["5", "5m 5m", "1.5m", "0s", "5 m"] {
        let request = [&["token", "request", "--ttl", ttl], &DISABLE[..]].concat();
        setup
            .run(&request)
            .await
            .code(2)
            .err_contains("such as 90s, 15m or 1h30m");
    }
    // The same in a policy bundle.
    for (path, content) in &setup.served.env.policy {
        let content = content.replace("wait = \"15m\"", "wait = \"14m 59s\"");
        let path = setup.path("policy").join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(path, content).expect("policy");
    }
    let people = std::fs::read_to_string(setup.path("policy/people.toml")).expect("people");
    assert!(
        people.contains("14m 59s"),
        "the example has a profile that waits 15m"
    );
    setup.run(&["policy", "check", "policy"]).await.code(0);
}
