//! Output that cannot be written is an error, before the deed where the output is its only copy; a closed pipe is none.

use std::fs::File;
use std::process::Stdio;

use super::setup::{CliSetup, DISABLE, Finished, READ};

/// Runs a command with its stdout on a device that takes nothing.
pub async fn run_full(setup: &CliSetup, args: &[&str]) -> Finished {
    let full = File::options().write(true).open("/dev/full");
    let mut program = setup.program(args);
    let child = program
        .stdout(full.expect("/dev/full"))
        .stderr(Stdio::piped())
        .spawn();
    let ended = child.expect("runs").wait_with_output().await;
    Finished(ended.expect("ends"))
}

/// Runs a command with its stdout on a pipe that nobody reads.
pub async fn run_closed(setup: &CliSetup, args: &[&str]) -> Finished {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut program = setup.program(args);
    let child = program.stdout(writer).stderr(Stdio::piped()).spawn();
    // The last writer in this process.
    drop(program);
    let ended = child.expect("runs").wait_with_output().await;
    Finished(ended.expect("ends"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_copy_is_not_made_for_a_full_disk() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    let invite = ["approver", "invite", "lee", "--key", "olga.pem"];
    let key = ["key", "new", "--out", "new.pem"];
    let token = [&["token", "request", "--show-token"], &READ[..]].concat();
    let token_json = [&["token", "request", "--json"], &READ[..]].concat();
    for args in [&invite[..], &key, &token, &token_json] {
        for finished in [run_full(&setup, args).await, run_closed(&setup, args).await] {
            finished.code(1).err_contains("stdout cannot be written");
        }
    }
    assert!(!setup.path("new.pem").exists());
    let olga = ["--key", "olga.pem"];
    let tokens = setup
        .json(&[&["token", "list"], &olga[..]].concat(), 0)
        .await;
    assert_eq!(tokens.as_array().map(Vec::len), Some(0), "{tokens}");
    let people = setup
        .json(&[&["approver", "list"], &olga[..]].concat(), 0)
        .await;
    let lee = people.as_array().expect("people").iter();
    let lee = lee.clone().find(|person| person["person"] == "lee");
    assert!(lee.expect("lee")["invited_until"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_result_is_an_error_and_a_closed_pipe_is_not() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    let request = [&["token", "request"], &DISABLE[..]].concat();
    setup.run(&request).await.code(11);
    for args in [
        &["inbox", "--key", "maria.pem"][..],
        &["inbox", "--key", "maria.pem", "--json"],
        &["task", "show"],
        &["policy", "rules", "--key", "olga.pem"],
        &["--help"],
        &["token", "--help", "--json"],
        &["key", "show", "--key", "maria.pem"],
    ] {
        let full = run_full(&setup, args).await;
        full.code(1)
            .err_contains("could not be written to stdout: no space left on device");
        let closed = run_closed(&setup, args).await;
        closed.code(0);
        assert_eq!(closed.err(), "", "{args:?}");
    }
    // An error as JSON finds its way to stderr, and a code of its own stays.
    let full = run_full(&setup, &["show", "areq_x", "--json"]).await;
    full.code(2).err_contains("could not be written to stdout");
    // A stream ends with its reader.
    let watch = ["request", "watch", "--key", "maria.pem"];
    run_closed(&setup, &watch).await.code(0);
    run_full(&setup, &watch).await.code(1);
}
