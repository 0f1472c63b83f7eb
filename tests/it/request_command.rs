//! `dipylon request`: list, show, watch, approve, deny and cancel, with the real program against a served broker.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use dipylon_sdk::model::{AccessRequestId, Verdict};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Command;

use super::exec::setup::{CommandOutput, DISABLE, ExecSetup, RunningCommand};

/// A task of the agent, opened by the program, and the key file of an approver.
struct RequestSetup {
    exec: ExecSetup,
    task: String,
    maria: PathBuf,
}

impl RequestSetup {
    async fn start() -> Self {
        let exec = ExecSetup::start().await;
        let maria = exec.home.path().join("maria.pem");
        std::fs::write(&maria, exec.served.env.pem_of("maria")).expect("key");
        std::fs::set_permissions(&maria, std::fs::Permissions::from_mode(0o600)).expect("mode");
        let mut setup = Self {
            exec,
            task: String::new(),
            maria,
        };
        setup.task = setup.open_task().await;
        setup
    }

    /// The program without a key.
    fn program(&self, args: &[&str]) -> Command {
        let mut program = self.exec.dipylon();
        program
            .env_remove("DIPYLON_KEY")
            .env("DIPYLON_REALM", "test")
            .args(args);
        program
    }

    fn program_as_maria(&self, args: &[&str]) -> Command {
        let mut program = self.program(args);
        program.arg("--key").arg(&self.maria);
        program
    }

    async fn run(&self, args: &[&str]) -> CommandOutput {
        finish(self.program(args)).await
    }

    async fn run_as_maria(&self, args: &[&str]) -> CommandOutput {
        finish(self.program_as_maria(args)).await
    }

    async fn open_task(&self) -> String {
        let svid = self.exec.svid();
        let svid = svid.to_str().expect("text");
        let open = ["task", "open", "--json", "--purpose", "contain INC-8841"];
        let opened = self.run(&[&open[..], &["--evidence", svid]].concat()).await;
        text(&stdout_json(&opened, 0)["task"])
    }

    /// Requests the token to disable an account; the id of the access request, which is pending.
    async fn pending(&self) -> String {
        let request = ["token", "request", "--json"];
        let pending = self.run(&[&request[..], &DISABLE].concat()).await;
        text(&stdout_json(&pending, 11)["access_request"])
    }
}

async fn finish(mut program: Command) -> CommandOutput {
    CommandOutput::new(program.output().await.expect("runs"))
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

/// The JSON value on stdout of a program that ended with this exit code.
fn stdout_json(output: &CommandOutput, code: i32) -> Value {
    serde_json::from_str(&output.exit_code(code).out).expect("JSON on stdout")
}

/// The error of a program that was run with --json.
fn error_json(output: &CommandOutput) -> Value {
    let error: Value = serde_json::from_str(&output.out).expect("JSON on stdout");
    assert_eq!(error["error"]["exit"], output.code, "{error}");
    error["error"].clone()
}

/// The ids in a JSON array of access requests.
fn ids(rows: &Value) -> Vec<String> {
    let rows = rows.as_array().expect("rows").iter();
    rows.map(|row| text(&row["access_request"])).collect()
}

/// Lines until the event of this name.
async fn next_event(running: &mut RunningCommand, name: &str) -> Value {
    loop {
        let line = running.stdout_line().await;
        let event: Value = serde_json::from_str(&line).expect("one JSON value per line");
        if event["event"] == name {
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_and_show_match_their_short_forms() {
    let setup = RequestSetup::start().await;
    for list in [&["request", "list"][..], &["inbox"]] {
        let empty = setup.run_as_maria(list).await;
        assert_eq!(
            empty.exit_code(0).out,
            "no access request is waiting for you\n"
        );
    }
    let id = setup.pending().await;

    let list = setup.run_as_maria(&["request", "list", "--json"]).await;
    assert_eq!(ids(&stdout_json(&list, 0)), std::slice::from_ref(&id));
    let inbox = setup.run_as_maria(&["inbox", "--json"]).await;
    assert_eq!(list.out, inbox.exit_code(0).out);

    let show = setup
        .run_as_maria(&["request", "show", &id, "--json"])
        .await;
    assert_eq!(stdout_json(&show, 0)["access_request"], json!(id));
    let short = setup.run_as_maria(&["show", &id, "--json"]).await;
    assert_eq!(show.out, short.exit_code(0).out);

    // As text, both forms name the access request by its match phrase.
    let phrase = text(&stdout_json(&show, 0)["match_phrase"]);
    for command in [
        &["request", "list"][..],
        &["inbox"],
        &["request", "show", &id],
        &["show", &id],
    ] {
        let printed = setup.run_as_maria(command).await;
        printed.exit_code(0).stdout_contains(&phrase);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_as_task_ends_with_the_approval() {
    let setup = RequestSetup::start().await;
    let id = setup.pending().await;
    let watch = ["request", "watch", &id, "--task", &setup.task];
    let mut running = RunningCommand::start(setup.program(&watch));
    assert_eq!(
        running.stdout_line().await,
        format!("{id} is waiting: one-security: 0 of 1 from security")
    );
    let decided = setup.exec.decide(Verdict::Approve).await;
    assert_eq!(decided.to_string(), id);
    let ended = running.end().await;
    assert_eq!(ended.exit_code(0).out, format!("{id} is approved\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_as_task_ends_with_the_denial() {
    let setup = RequestSetup::start().await;
    let id = setup.pending().await;
    // Without --task and --key, the task opened last in this directory.
    let watch = ["request", "watch", &id, "--json"];
    let mut running = RunningCommand::start(setup.program(&watch));
    let waiting: Value = serde_json::from_str(&running.stdout_line().await).expect("JSON");
    assert_eq!(
        (&waiting["access_request"], &waiting["status"]),
        (&json!(id), &json!("waiting"))
    );
    setup.exec.decide(Verdict::Deny).await;
    let ended = running.end().await;
    let denied = stdout_json(&ended, 10);
    assert_eq!(
        (&denied["access_request"], &denied["status"]),
        (&json!(id), &json!("denied"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_inbox_prints_opened_and_closed_requests() {
    let setup = RequestSetup::start().await;
    let watch = setup.program_as_maria(&["request", "watch", "--json"]);
    let mut running = RunningCommand::start(watch);
    let snapshot = next_event(&mut running, "inbox").await;
    assert_eq!(ids(&snapshot["access_requests"]), [""; 0]);
    let id = setup.pending().await;
    let opened = next_event(&mut running, "opened").await;
    assert_eq!(ids(&opened["access_requests"]), std::slice::from_ref(&id));
    setup.run(&["request", "cancel", &id]).await.exit_code(0);
    let closed = next_event(&mut running, "closed").await;
    assert_eq!(closed["access_requests"], json!([id]));
    running.signal(Signal::INT);
    assert_eq!(running.end().await.code, -1, "watches until interrupted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_closes_the_request_once() {
    let setup = RequestSetup::start().await;
    let id = setup.pending().await;
    let cancelled = setup.run(&["request", "cancel", &id]).await;
    assert_eq!(cancelled.exit_code(0).out, format!("{id} is cancelled\n"));
    let list = setup.run_as_maria(&["request", "list", "--json"]).await;
    assert_eq!(ids(&stdout_json(&list, 0)), [""; 0]);

    let again = setup.run(&["request", "cancel", &id]).await;
    again
        .exit_code(15)
        .stderr_contains("the access request is no longer pending");
    assert_eq!(again.out, "");
    let again = setup.run(&["request", "cancel", &id, "--json"]).await;
    assert_eq!(
        error_json(again.exit_code(15))["reason"],
        "ACCESS_REQUEST_CLOSED"
    );
    // A watch of a closed request prints its final status and ends.
    let watch = setup.run(&["request", "watch", &id]).await;
    assert_eq!(watch.exit_code(15).out, format!("{id} is cancelled\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_request_is_not_found() {
    let setup = RequestSetup::start().await;
    let id = setup.pending().await;
    let other_task = setup.open_task().await;
    let unknown = AccessRequestId::from_random([7; 16]).to_string();
    let as_task = [
        &["request", "cancel", &unknown][..],
        &["request", "watch", &unknown],
        // Another task's access request gets the same answer as an unknown one.
        &["request", "cancel", &id, "--task", &other_task],
        &["request", "watch", &id, "--task", &other_task],
    ];
    for command in as_task {
        let refused = setup.run(&[command, &["--json"]].concat()).await;
        let error = error_json(refused.exit_code(1));
        assert_eq!(error["reason"], "NOT_FOUND", "{command:?}");
    }
    let as_approver = [
        &["request", "show", &unknown][..],
        &["show", &unknown],
        &["request", "watch", &unknown],
        &["request", "approve", &unknown, "--yes"],
        &["request", "deny", &unknown],
    ];
    for command in as_approver {
        let refused = setup.run_as_maria(&[command, &["--json"]].concat()).await;
        let error = error_json(refused.exit_code(1));
        assert_eq!(error["reason"], "NOT_FOUND", "{command:?}");
    }
    // A text that is no id is a usage error, before any call.
    for verb in ["show", "watch", "approve", "deny", "cancel"] {
        setup
            .run(&["request", verb, "areq_x"])
            .await
            .exit_code(2)
            .stderr_contains("ACCESS_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approve_and_deny_match_their_short_forms() {
    let setup = RequestSetup::start().await;
    let voted_before = (10, "NOT_ELIGIBLE");
    let closed = (15, "ACCESS_REQUEST_CLOSED");
    for (vote, status, (code, reason)) in [
        (&["request", "approve"][..], "approved", voted_before),
        (&["approve"], "approved", voted_before),
        (&["request", "deny"], "denied", closed),
        (&["deny"], "denied", closed),
    ] {
        // One access request per task and action.
        setup.open_task().await;
        let id = setup.pending().await;
        let voted = setup
            .run_as_maria(&[vote, &[&id, "--yes", "--json"]].concat())
            .await;
        let voted = stdout_json(&voted, 0);
        assert_eq!(voted["card"]["access_request"], json!(id), "{vote:?}");
        assert_eq!(voted["access_request"]["status"], status, "{vote:?}");
        // A second vote of the same approver is refused.
        let again = setup
            .run_as_maria(&[vote, &[&id, "--yes", "--json"]].concat())
            .await;
        let error = error_json(again.exit_code(code));
        assert_eq!(error["reason"], reason, "{vote:?}");
    }
}
