//! A vote is signed for a card that was shown: not for one that could not be written.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use dipylon_sdk::card::AccessRequestStatus;
use dipylon_sdk::model::AccessRequestId;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::setup::{CliSetup, DISABLE, Finished, text};
use super::unwritable_output::{run_closed, run_full};

/// A terminal: the side of the person, and that of the program.
fn terminal() -> (OwnedFd, File) {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&person).expect("granted");
    unlockpt(&person).expect("unlocked");
    let name = ptsname(&person, Vec::new()).expect("a name");
    let program = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().expect("text"));
    (person, program.expect("opens"))
}

/// Runs a command for a person who types `yes` at once; with what the terminal showed.
async fn run_at_terminal(
    setup: &CliSetup,
    args: &[&str],
    stdout: impl Into<Stdio>,
    stderr: Option<Stdio>,
) -> (Finished, String) {
    let (person, terminal) = terminal();
    rustix::io::write(&person, b"yes\n").expect("typed");
    let mut program = setup.program(args);
    let at_terminal = terminal.try_clone().expect("a descriptor");
    program
        .stdin(terminal)
        .stdout(stdout)
        .stderr(stderr.unwrap_or(at_terminal.into()));
    let child = program.spawn().expect("runs");
    // The last descriptors of the terminal in this process.
    drop(program);
    let shown = tokio::task::spawn_blocking(move || {
        let (mut shown, mut buffer) = (Vec::new(), [0; 4_096]);
        while let Ok(read @ 1..) = rustix::io::read(&person, &mut buffer) {
            shown.extend_from_slice(&buffer[..read]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    });
    let ended = child.wait_with_output().await.expect("ends");
    (Finished(ended), shown.await.expect("reads"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_vote_for_a_card_that_was_not_shown() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    let request = [&["token", "request"], &DISABLE[..]].concat();
    let id = text(&setup.json(&request, 11).await["access_request"]);
    let key = ["--realm", "test", "--key", "maria.pem"];
    let vote = |verb, more: &[&'static str]| [&[verb, id.as_str()], &key[..], more].concat();
    let full = || File::options().write(true).open("/dev/full").expect("full");
    let closed = || std::io::pipe().expect("a pipe").1;
    let approve = vote("approve", &[]);
    for stdout in [Stdio::from(full()), closed().into()] {
        let (finished, shown) = run_at_terminal(&setup, &approve, stdout, None).await;
        finished.code(1);
        assert!(shown.contains("stdout cannot be written"), "{shown}");
        assert!(!shown.contains("Type yes"), "no prompt: {shown}");
    }
    for args in [
        vote("approve", &["--yes"]),
        vote("approve", &["--yes", "--json"]),
        vote("deny", &[]),
        vote("deny", &["--json"]),
    ] {
        for finished in [
            run_full(&setup, &args).await,
            run_closed(&setup, &args).await,
        ] {
            finished.code(1).err_contains("stdout cannot be written");
        }
    }
    // A prompt that the person does not see.
    let elsewhere = Some(Stdio::piped());
    let (finished, _) = run_at_terminal(&setup, &approve, Stdio::piped(), elsewhere).await;
    finished.code(2).err_contains("stderr is not a terminal");
    let access_request = AccessRequestId::parse(&id).expect("id");
    let maria = setup.served.approver("maria");
    let card = maria.card(access_request).await.expect("card");
    assert_eq!(card.status, AccessRequestStatus::Waiting, "nobody voted");

    // With stdout in a file, the person reads the card where the prompt is.
    let (finished, shown) = run_at_terminal(&setup, &approve, Stdio::piped(), None).await;
    finished.code(0);
    let (card, _) = shown.split_once("Type yes").expect("a prompt");
    assert!(card.contains("account.disable"), "{shown}");
    assert!(finished.out().contains("account.disable"));
    assert!(finished.out().contains("your approval is recorded"));
}
