//! Waiting of `dipylon exec` for approvers: how long, giving up without ending the request, resuming and cancelling it, and
//! idempotency keys.

use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::Verdict;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::files_below;
use super::setup::{CommandOutput, DISABLE, ExecSetup, READ, RunningCommand};
use crate::support::wait::in_time;

async fn run(mut program: tokio::process::Command) -> CommandOutput {
    CommandOutput::new(program.output().await.expect("runs"))
}

fn resume(setup: &ExecSetup, id: &str, options: &[&str]) -> tokio::process::Command {
    let mut program = setup.dipylon();
    program.args(["exec", "--resume", id]).args(options);
    program.args(["--", "true"]);
    program
}

/// The id in the last event, which says how to resume.
fn resumable(output: &CommandOutput) -> String {
    output.exit_code(111);
    let id = output.err.split("exec --resume ").nth(1).expect("an id");
    id.split(' ').next().expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_until_the_access_request_expires() {
    let setup =
        ExecSetup::start_with_people(|people| people.replace("wait = \"15m\"", "wait = \"7m\""))
            .await;
    let options = [&DISABLE[..], &["--json"]].concat();
    let mut running = RunningCommand::start(setup.exec(&options, &["true"]));
    let stderr = running.child.stderr.take().expect("stderr");
    let mut lines = BufReader::new(stderr).lines();
    let mut event = async |name: &str| -> Value {
        loop {
            let line = in_time("an event", lines.next_line()).await;
            let line = line.expect("text").expect("a line");
            let event: Value = serde_json::from_str(&line).expect("JSON");
            if event["event"] == name {
                return event;
            }
        }
    };
    let step_up = event("step-up").await;
    let waiting = event("waiting").await;
    assert_eq!(step_up["expires_at"], waiting["until"]);
    running.signal(Signal::INT);
    running.end().await.exit_code(130);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_up_keeps_the_request_until_it_is_resumed() {
    let setup = ExecSetup::start().await;
    let options = [&DISABLE[..], &["--wait", "1s"]].concat();
    let id = resumable(&run(setup.exec(&options, &["true"])).await);
    let again = run(resume(&setup, &id, &["--wait", "1s"])).await;
    assert_eq!(resumable(&again), id);
    assert_eq!(setup.entries("\"TaskEnded\""), 0, "the request goes on");
    assert_eq!(setup.entries("\"AccessRequestClosed\""), 0);
    assert_eq!(setup.decide(Verdict::Approve).await.to_string(), id);
    run(resume(&setup, &id, &["--wait", "60s"]))
        .await
        .exit_code(0)
        .stderr_contains("dipylon: approved  account.disable")
        .stderr_contains("done      exit 0, 1 token revoked");
    // A heartbeat would end the task that another process is to resume.
    let options = [&options[..], &["--heartbeat", "30s"]].concat();
    run(setup.exec(&options, &["true"])).await.exit_code(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_withdraws_a_saved_request() {
    let setup = ExecSetup::start().await;
    let options = [&DISABLE[..], &["--no-wait"]].concat();
    let id = resumable(&run(setup.exec(&options, &["true"])).await);
    let cancel = |id: &str| {
        let mut program = setup.dipylon();
        program.args(["exec", "--cancel", id]);
        program
    };
    run(cancel(&id))
        .await
        .exit_code(0)
        .stderr_contains(&format!("dipylon: cancelled  {id}, task_"));
    assert_eq!(setup.entries("\"AccessRequestClosed\""), 1);
    assert_eq!(setup.entries("\"TaskEnded\""), 1);
    let left = files_below(&setup.home.path().join("state"));
    assert!(left.is_empty(), "keys and requests are deleted: {left:?}");
    run(cancel(&id))
        .await
        .exit_code(2)
        .stderr_contains("is not saved on this machine");
    // A denied request: its task is still open.
    let id = resumable(&run(setup.exec(&options, &["true"])).await);
    assert_eq!(setup.decide(Verdict::Deny).await.to_string(), id);
    run(cancel(&id)).await.exit_code(0);
    assert_eq!(setup.entries("\"TaskEnded\""), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_command_gets_no_second_token() {
    let setup = ExecSetup::start().await;
    let file = setup.home.path().join("task.pem");
    let (_, pkcs8) = SigningKey::generate().expect("key");
    std::fs::write(&file, SigningKey::to_pem(&pkcs8).as_str()).expect("key file");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, private).expect("mode");
    let path = file.to_str().expect("text");
    let options = [
        &READ[..],
        &["--idempotency-key", "job-7", "--task-key", path],
    ]
    .concat();
    run(setup.exec(&options, &["true"])).await.exit_code(0);
    run(setup.exec(&options, &["true"]))
        .await
        .exit_code(117)
        .stderr_contains("TASK_ENDED");
    assert_eq!(
        (
            setup.entries("\"TaskOpened\""),
            setup.entries("\"TokenIssued\"")
        ),
        (1, 1)
    );
    // The key is in the journal, for people who look for the job.
    assert_eq!(setup.entries("\"job-7\""), 2);
}
