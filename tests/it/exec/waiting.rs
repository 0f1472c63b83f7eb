//! Waiting of `dipylon exec` for approvers: how long, giving up without ending the request, resuming and cancelling it, and
//! idempotency keys.

use dipylon::rate_limit::RateLimitConfig;
use dipylon_sdk::client::EvidenceSource;
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::{TaskId, Verdict};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::files_below;
use super::setup::{CommandOutput, DISABLE, ExecSetup, READ, RunningCommand};
use crate::support::TestEnvironment;
use crate::support::served_broker::ServedBroker;
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

/// A command runs as the user whose files they are: with its task's key it could make requests of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_finds_no_key_of_its_task() {
    let setup = ExecSetup::start().await;
    let program = env!("CARGO_BIN_EXE_dipylon");
    let script = format!(
        "find \"$XDG_STATE_HOME\" -type f; env | grep ^DIPYLON_TASK=; \
         {program} task keep-alive --task \"$DIPYLON_EXEC_TASK\"; {program} task complete; echo over"
    );
    let saved = || files_below(&setup.home.path().join("state"));
    // Resumed, and approved while the first process waits.
    let options = [&DISABLE[..], &["--no-wait"]].concat();
    let id = resumable(&run(setup.exec(&options, &["true"])).await);
    setup.decide(Verdict::Approve).await;
    let mut resumed = setup.dipylon();
    resumed.args(["exec", "--resume", &id, "--", "bash", "-c", &script]);
    resumed.env("DIPYLON_TASK", TaskId::from_random([1; 16]).to_string());
    let waited = [&DISABLE[..], &["--wait", "60s"]].concat();
    let first = run(resumed).await;
    let mut running = RunningCommand::start(setup.exec(&waited, &["bash", "-c", &script]));
    running.stderr_line("waiting").await;
    assert_eq!(saved().len(), 3, "the task, its key and the request");
    setup.decide(Verdict::Approve).await;
    for output in [first, running.end().await] {
        output
            .exit_code(0)
            .stderr_contains("is not saved in")
            .stderr_contains("no task was opened in")
            .stderr_contains("done      exit 0, 1 token revoked");
        assert_eq!(output.out, "over\n");
    }
    assert!(saved().is_empty(), "{:?}", saved());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_wait_can_be_resumed() {
    let setup = ExecSetup::start().await;
    // Before people are asked for a request that no process could resume.
    let file = setup.home.path().join("file");
    std::fs::write(&file, "").expect("file");
    let options = [&DISABLE[..], &["--wait", "60s", "--allow-plain-http"]].concat();
    let mut nowhere = setup.exec(&options, &["true"]);
    nowhere.env("XDG_STATE_HOME", file.join("state"));
    run(nowhere)
        .await
        .exit_code(118)
        .stderr_contains("Not a directory");
    assert_eq!(setup.entries("\"TaskOpened\""), 0);

    let mut running = RunningCommand::start(setup.exec(&options, &["true"]));
    running.stderr_line("waiting").await;
    running.signal(Signal::KILL);
    running.child.wait().await.expect("killed");
    let id = setup.decide(Verdict::Approve).await.to_string();
    run(resume(&setup, &id, &[])).await.exit_code(0);
    // The printed command connects as the first one did.
    let options = [&DISABLE[..], &["--no-wait", "--allow-plain-http"]].concat();
    let output = run(setup.exec(&options, &["true"])).await;
    let id = resumable(&output);
    output.stderr_contains(&format!("exec --resume {id} --allow-plain-http --"));
}

/// A parameter may be sensitive: it is not kept for a task that has ended, and a key is kept for one that has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saved_requests_go_when_the_broker_says_that_their_task_ended() {
    let setup = ExecSetup::start().await;
    let state = setup.home.path().join("state");
    let options = [&DISABLE[..], &["--no-wait"]].concat();
    let id = resumable(&run(setup.exec(&options, &["true"])).await);
    // By a clock that is a day ahead, its deadline is over.
    let is_task = |path: &std::path::PathBuf| path.to_string_lossy().ends_with(".json");
    let mut files = files_below(&state.join("dipylon/tasks"));
    files.retain(is_task);
    let text = std::fs::read_to_string(&files[0]).expect("saved");
    let mut saved: Value = serde_json::from_str(&text).expect("JSON");
    let past = saved["deadline"].as_i64().expect("milliseconds") - 86_400_000;
    saved["deadline"] = past.into();
    std::fs::write(&files[0], saved.to_string()).expect("file");
    let task = saved["task"].as_str().expect("an id").to_owned();
    // A file of a process that was killed while it wrote it.
    let leftover = state.join("dipylon/execs/areq_x.json.1.new");
    std::fs::write(&leftover, "secret").expect("file");
    let old = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    let file = std::fs::File::options().write(true).open(&leftover);
    file.expect("file").set_times(old).expect("times");

    run(setup.exec(&READ, &["true"])).await.exit_code(0);
    assert_eq!(files_below(&state).len(), 3, "the task runs");
    let task = TaskId::parse(&task).expect("id");
    let olga = setup.served.operator("olga");
    olga.end_task(task).await.expect("ends");
    run(setup.exec(&READ, &["true"])).await.exit_code(0);
    assert_eq!(files_below(&state), Vec::<std::path::PathBuf>::new());
    run(resume(&setup, &id, &[])).await.exit_code(2);
}

/// The client's clock is twenty minutes ahead of the broker's, which alone decides when an access request expires.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_ahead_of_the_brokers_expires_nothing() {
    let (clock, _manual) = Clock::manual(Clock::system().now().plus_secs(-1_200));
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    // An approver's machine refuses a vote that ends before its own time.
    *people = people.replace("good_for = \"10m\"", "good_for = \"1h\"");
    let served = ServedBroker::start_with_clock(env, RateLimitConfig::default(), clock).await;
    let setup = ExecSetup::start_at(served, None).await;
    let EvidenceSource::Fn(svid) = setup.served.evidence("triage") else {
        panic!("evidence of a function")
    };
    let svid = svid().expect("evidence");
    std::fs::write(setup.svid(), svid.expose_secret()).expect("evidence");
    let mut running =
        RunningCommand::start(setup.exec(&DISABLE, &["curl", "-sS", "http://127.0.0.1:1"]));
    running.stderr_line("waiting").await;
    setup.decide(Verdict::Approve).await;
    running.end().await.exit_code(7).stderr_contains("approved");
    // The same for a token request, and for the use of a token.
    let svid = setup.svid().display().to_string();
    let open = ["task", "open", "--purpose", "p", "--evidence", &svid];
    let mut opening = setup.dipylon();
    opening.args(open);
    run(opening).await.exit_code(0);
    let mut waiting = setup.dipylon();
    waiting.args(["token", "request", "--wait"]).args(DISABLE);
    let mut running = RunningCommand::start(waiting);
    running.stderr_line("waiting").await;
    setup.decide(Verdict::Approve).await;
    running.end().await.exit_code(0);
    setup
        .script(&READ, "ask GET /cases/INC-8841")
        .await
        .exit_code(0);
    assert_eq!(setup.resource.seen().len(), 1, "the audience decides");
}
