//! `dipylon exec`: starting, waiting for approval, running, signals and exit codes.

mod connections;
mod delivery;
mod ended_early;
mod evidence;
mod exit_codes;
pub mod setup;
mod waiting;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dipylon_sdk::client::{AgentClient, ApproverClient, OpenTaskRequest, TokenOutcome};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::{MatchPhrase, Verdict};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;

use crate::support::broker_deployment::BrokerDeployment;
use crate::support::served_broker::token_request;
use crate::support::{CASES, DOMAIN, IDP, disable};
use setup::{CommandOutput, DISABLE, ExecSetup, READ, RunningCommand, SH, decide};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_ends_with_the_command() {
    let setup = ExecSetup::start().await;
    let script = r#"
        ask GET /cases/INC-8841
        ask GET '/cases/INC-8841?page=2' "X-Own: kept\r\nX-Other: x\r\nX-Request-Id: r-1\r\nReferer: http://$host$base/\r\n"
        env; tr '\0' '\n' < /proc/$$/environ; tr '\0' '\n' < /proc/$PPID/environ
        exit 3"#;
    let options = [&READ[..], &["--forward-header", "X-Own"]].concat();
    let output = setup.script(&options, script).await;
    output.exit_code(3)
        .stdout_contains("HTTP/1.1 200 OK")
        .stdout_contains("done by the resource server")
        .stdout_contains("DIPYLON_EXEC_TASK=task_")
        .stderr_contains("dipylon: verified  spiffe://soc.example/agent/triage by jwt-svid, task_")
        .stderr_contains("dipylon: allowed   case.read on Case::INC-8841 by rule \"soc-acts-at-home\", ttl 5m  -> running bash")
        .stderr_contains("dipylon: done      exit 3, 1 token revoked, task_");
    let token = setup.resource.token();
    for part in [
        token.as_str(),
        "eyJ",
        "set-cookie",
        "s3cr3t",
        "next-nonce",
        "dpop",
    ] {
        assert!(
            !output.out.to_lowercase().contains(&part.to_lowercase()),
            "{part}: {}",
            output.out
        );
    }
    let environment = output
        .out
        .split("done by the resource server")
        .last()
        .expect("env");
    let own: Vec<_> = environment
        .lines()
        .filter(|l| l.starts_with("DIPYLON_KEY="))
        .collect();
    assert_eq!(own.len(), 1, "only in its own variables: {own:?}");
    let seen = setup.resource.seen();
    assert_eq!(seen[1].path, "/cases/INC-8841?page=2");
    assert_eq!(seen[1].headers["x-own"], "kept");
    assert_eq!(seen[1].headers["x-request-id"], "r-1");
    for header in ["x-other", "referer"] {
        assert!(seen[1].headers.get(header).is_none(), "{header}");
    }
    assert_ne!(
        seen[0].headers["dpop"], seen[1].headers["dpop"],
        "a new proof for each request"
    );
    assert!(
        !setup.is_active(&setup.resource.cases, &token).await,
        "revoked with its task"
    );
    assert_eq!(setup.entries("\"outcome\":\"failed\""), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_up_waits_then_runs() {
    let setup = ExecSetup::start().await;
    let script = "ask POST /accounts/ann/disable '' '{}'; ask POST /accounts/ann/disable '' '{}'";
    let (output, id) = tokio::join!(
        setup.script(&DISABLE, script),
        setup.decide(Verdict::Approve)
    );
    let phrase = MatchPhrase::from_request(&id);
    output.exit_code(0)
        .stdout_contains("HTTP/1.1 200 OK")
        .stdout_contains("HTTP/1.1 401 Unauthorized")
        .stdout_contains("uses are spent")
        .stderr_contains(&format!("dipylon: step-up   needs 1 of group security because of rule \"destructive-needs-approval\"; allowed by rule \"soc-acts-at-home\"  {phrase}  {id}"))
        .stderr_contains("dipylon: waiting   until 2")
        .stderr_contains("dipylon: approved  account.disable on Account::ann by rule")
        .stderr_contains("uses 1  -> running bash")
        .stderr_contains("dipylon: done      exit 0, ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_runs_nothing() {
    let setup = ExecSetup::start().await;
    let mark = setup.home.path().join("mark");
    let touch = ["touch", mark.to_str().expect("text")];
    let run = async |options: &[&str]| {
        CommandOutput::new(setup.exec(options, &touch).output().await.expect("runs"))
    };
    let protected = [
        "--action",
        "account.disable",
        "--target",
        "Account::break-glass",
        "--param",
        "end_sessions=true",
        "--audience",
        IDP,
    ];
    run(&protected)
        .await
        .exit_code(110)
        .stderr_contains("dipylon: denied    FORBIDDEN_BY_RULE by rule \"protected-accounts-stay\"")
        .stderr_contains("dipylon explain dec_")
        .stderr_contains("dipylon: done      exit 110, 0 tokens revoked");
    let (output, _) = tokio::join!(run(&DISABLE), setup.decide(Verdict::Deny));
    output
        .exit_code(110)
        .stderr_contains("denied    DENIED_BY_APPROVER");
    let unknown = [
        "--action",
        "case.read",
        "--target",
        "Case::none",
        "--audience",
        CASES,
    ];
    run(&unknown)
        .await
        .exit_code(2)
        .stderr_contains("UNKNOWN_TARGET");
    assert!(!mark.exists(), "nothing ran");
    assert_eq!(setup.entries("\"TaskEnded\""), 3, "every task has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wait_and_resume() {
    let mut setup = ExecSetup::start().await;
    let script = format!("{SH}\nask POST /accounts/ann/disable '' '{{}}'");
    let own = ["--no-wait", "--json", "--forward-header", "X-Own"];
    let options = [&DISABLE[..], &own[..]].concat();
    let command = ["bash", "-c", &script];
    let output = CommandOutput::new(setup.exec(&options, &command).output().await.expect("runs"));
    output.exit_code(111);
    assert_eq!(output.out, "", "stdout is the command's");
    let events: Vec<Value> = output
        .err
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let last = events.last().expect("an event");
    assert_eq!(last["event"], "waiting");
    let id = last["access_request"].as_str().expect("an id").to_owned();
    let resume = last["resume"].as_str().expect("a command").to_owned();
    assert!(
        resume.contains(&format!(
            "exec --resume {id} --audience-url http://127.0.0.1:"
        )),
        "{resume}"
    );
    let again = async |setup: &ExecSetup| {
        // The printed resume command, run in a shell with the same home.
        let mut shell = setup.dipylon();
        let mut command = Command::new("bash");
        for (name, value) in shell.as_std_mut().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env_remove("DIPYLON_URL").args(["-c", &resume]);
        CommandOutput::new(command.output().await.expect("runs"))
    };
    let waits = CommandOutput::new(
        setup
            .dipylon()
            .args(["exec", "--resume", &id, "--no-wait", "--", "true"])
            .output()
            .await
            .expect("runs"),
    );
    waits.exit_code(111).stderr_contains(&format!(
        "exec --resume {id} --audience-url {} --forward-header x-own -- true",
        setup.resource.url
    ));
    assert_eq!(setup.decide(Verdict::Approve).await.to_string(), id);
    // An approval is not consumed when the audience is unreachable.
    let unreachable = unreachable_url().await;
    let nowhere = ["exec", "--resume", &id, "--audience-url", &unreachable];
    let away = setup.dipylon().args(nowhere).args(["--", "true"]).output();
    CommandOutput::new(away.await.expect("runs"))
        .exit_code(114)
        .stderr_contains(&format!("the audience cannot be reached at {unreachable}"))
        .stderr_contains("no approval was used");
    assert_eq!(setup.entries("\"TokenIssued\""), 0);
    let resource = setup.resource.clone();
    setup.served = setup.served.restart().await;
    again(&setup)
        .await
        .exit_code(0)
        .stdout_contains("HTTP/1.1 200 OK")
        .stderr_contains("dipylon: approved  account.disable")
        .stderr_contains("dipylon: done      exit 0, ");
    assert!(!setup.is_active(&resource.idp, &resource.token()).await);
    again(&setup)
        .await
        .exit_code(2)
        .stderr_contains("is not saved on this machine");
    let left: Vec<_> = files_below(&setup.home.path().join("state"));
    assert!(left.is_empty(), "keys and requests are deleted: {left:?}");
}

/// A loopback URL without a listener.
async fn unreachable_url() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    format!("http://{}", listener.local_addr().expect("address"))
}

/// Any request may issue a token or ask people: neither for an audience that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_audience_makes_no_request() {
    let setup = ExecSetup::start().await;
    let unreachable = unreachable_url().await;
    for (action, way) in [
        (&DISABLE[..], &[][..]),
        (&DISABLE[..], &["--no-wait"][..]),
        (&READ[..], &[][..]),
    ] {
        let options = [action, way, &["--audience-url", &unreachable]].concat();
        let output = setup.exec(&options, &["true"]).output().await;
        CommandOutput::new(output.expect("runs"))
            .exit_code(114)
            .stderr_contains(&format!("the audience cannot be reached at {unreachable}"))
            .stderr_contains("no token was requested");
    }
    assert_eq!(setup.entries("\"TaskOpened\""), 0);
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_and_exit_codes_pass_through() {
    let setup = ExecSetup::start().await;
    // Signals that the command catches.
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
    ] {
        let script =
            format!("trap 'echo caught; exit 9' {name}; echo ready; while :; do sleep 0.02; done");
        let mut running = RunningCommand::start(setup.exec(&READ, &["bash", "-c", &script]));
        assert_eq!(running.stdout_line().await, "ready");
        running.signal(signal);
        running
            .end()
            .await
            .exit_code(9)
            .stdout_contains("caught")
            .stderr_contains("done      exit 9, 1 token revoked");
    }
    // An uncaught signal: exit code 128 + n, as in a shell.
    let mut running =
        RunningCommand::start(setup.exec(&READ, &["bash", "-c", "echo ready; exec sleep 60"]));
    assert_eq!(running.stdout_line().await, "ready");
    running.signal(Signal::TERM);
    running
        .end()
        .await
        .exit_code(143)
        .stderr_contains("done      exit 143, 1 token revoked");
    setup
        .script(&READ, "kill -KILL $$")
        .await
        .exit_code(137)
        .stderr_contains("done      exit 137");
    // The command's whole process group gets the signal.
    let script = "trap : TERM; bash -c 'trap \"echo inner; exit\" TERM; echo ready; while :; do sleep 0.02; done' & wait; wait";
    let mut running = RunningCommand::start(setup.exec(&READ, &["bash", "-c", script]));
    assert_eq!(running.stdout_line().await, "ready");
    running.signal(Signal::TERM);
    running.end().await.stdout_contains("inner").exit_code(0);
    // Signals ignored by the caller are ignored by the command.
    let exec = setup.exec(&READ, &["bash", "-c", "echo ready; sleep 1; echo survived"]);
    let mut nohup = Command::new("bash");
    nohup
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(exec.as_std().get_program());
    nohup.args(exec.as_std().get_args());
    for (name, value) in exec.as_std().get_envs() {
        match value {
            Some(value) => nohup.env(name, value),
            None => nohup.env_remove(name),
        };
    }
    nohup
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = RunningCommand::start(nohup);
    assert_eq!(running.stdout_line().await, "ready");
    running.signal(Signal::HUP);
    running.end().await.stdout_contains("survived").exit_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_and_continue_are_forwarded() {
    let setup = ExecSetup::start().await;
    let script = "trap 'echo continued; exit 4' CONT; echo ready; while :; do sleep 0.02; done";
    let mut running = RunningCommand::start(setup.exec(&READ, &["bash", "-c", script]));
    assert_eq!(running.stdout_line().await, "ready");
    running.signal(Signal::TSTP);
    let pid = running.child.id().expect("runs");
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("runs");
        stat.rsplit(") ").next().expect("a state").chars().next()
    };
    for _ in 0..1_000 {
        if state() == Some('T') {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(state(), Some('T'), "the wrapper stops too");
    running.signal(Signal::CONT);
    running
        .end()
        .await
        .exit_code(4)
        .stdout_contains("continued");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signal_while_waiting_cancels_request() {
    let setup = ExecSetup::start().await;
    let mut running = RunningCommand::start(setup.exec(&DISABLE, &["true"]));
    running.stderr_line("waiting").await;
    running.signal(Signal::INT);
    running
        .end()
        .await
        .exit_code(130)
        .stderr_contains("was cancelled")
        .stderr_contains("done      exit 130, 0 tokens revoked");
    assert!(
        setup
            .served
            .approver("maria")
            .access_requests()
            .await
            .expect("lists")
            .is_empty()
    );
    assert_eq!(
        setup.entries("\"AccessRequestClosed\""),
        1,
        "the access request is cancelled"
    );
    assert_eq!(setup.entries("\"TaskEnded\""), 1);
}

/// The broker process is killed while the program waits for an approval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_out_a_broker_restart() {
    let temp = tempfile::tempdir().expect("dir");
    let realm = BrokerDeployment::new(temp.path());
    let mut broker = realm.broker_with_log(Stdio::null(), "error").await;
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let evidence = realm
        .env
        .svid_for(&realm.url, &id, Clock::system().now(), 3_600);
    std::fs::write(temp.path().join("svid"), evidence.expose_secret()).expect("evidence");
    let audience = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let audience_url = format!("http://{}", audience.local_addr().expect("address"));
    let mut program = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    program
        .args(["--url", &realm.url, "exec", "--evidence"])
        .arg(temp.path().join("svid"))
        .args(["--audience-url", &audience_url])
        .args(DISABLE)
        .args(["--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut running = RunningCommand::start(program);
    running.stderr_line("waiting").await;
    broker.kill().await.expect("SIGKILL");
    let mut broker = realm.broker_with_log(Stdio::null(), "error").await;
    let maria = ApproverClient::new(realm.endpoint(), Arc::new(realm.env.key_of("maria")));
    decide(&maria, Verdict::Approve).await;
    running
        .end()
        .await
        .exit_code(0)
        .stderr_contains("approved")
        .stderr_contains("done      exit 0");
    broker.kill().await.expect("SIGKILL");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_command_fails_before_request() {
    let setup = ExecSetup::start().await;
    let run = async |command: &str| {
        CommandOutput::new(setup.exec(&READ, &[command]).output().await.expect("runs"))
    };
    run("no-such-command")
        .await
        .exit_code(127)
        .stderr_contains("no-such-command: command not found");
    let file = setup.home.path().join("plain");
    std::fs::write(&file, "x").expect("file");
    run(file.to_str().expect("text"))
        .await
        .exit_code(126)
        .stderr_contains("not executable");
    assert_eq!(setup.entries("\"TaskOpened\""), 0, "no request was made");
    // Detected only at execution: the task still ends.
    let script = setup.home.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("file");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("mode");
    run(script.to_str().expect("text"))
        .await
        .exit_code(127)
        .stderr_contains("done      exit 127, 1 token revoked");
    assert_eq!(
        (
            setup.entries("\"TaskOpened\""),
            setup.entries("\"TaskEnded\"")
        ),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_of_broker_errors() {
    let setup = ExecSetup::start().await;
    let away = CommandOutput::new(
        setup
            .exec(&READ, &["true"])
            .env("DIPYLON_URL", "http://127.0.0.1:1")
            .output()
            .await
            .expect("runs"),
    );
    away.exit_code(114).stderr_contains("cannot be reached");
    std::fs::write(setup.svid(), "not-evidence").expect("evidence");
    setup
        .script(&READ, "true")
        .await
        .exit_code(120)
        .stderr_contains("NOT_AUTHENTICATED");
    std::fs::write(setup.svid(), setup.evidence("triage").expose_secret()).expect("evidence");
    // Five are pending: no more are accepted.
    let agent = AgentClient::new(
        setup.served.endpoint(),
        setup.served.evidence("triage"),
        None,
    );
    let opening = OpenTaskRequest {
        purpose: "fill".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    for n in 0..5 {
        let task = agent.open_task(&opening).await.expect("opens");
        let outcome = task
            .request_token(&token_request(disable("ann"), &format!("r-{n}")))
            .await;
        assert!(
            matches!(outcome, Ok(TokenOutcome::Pending(_))),
            "{outcome:?}"
        );
    }
    setup
        .script(&DISABLE, "true")
        .await
        .exit_code(116)
        .stderr_contains("TOO_MANY_PENDING");
    setup
        .script(&["--action", "case.read"], "true")
        .await
        .exit_code(2);
    // An audience that is no URL needs `--audience-url`.
    let mut program = setup.dipylon();
    program.args([
        "exec",
        "--agent",
        "triage",
        "--action",
        "case.read",
        "--target",
        "Case::INC-8841",
    ]);
    program.args([
        "--audience",
        "urn:cases",
        "--evidence-audience",
        "x",
        "--",
        "true",
    ]);
    CommandOutput::new(program.output().await.expect("runs")).exit_code(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_wrapper_ends_by_missed_heartbeat() {
    let setup = ExecSetup::start().await;
    let options = [&READ[..], &["--heartbeat", "2s"]].concat();
    // Kept alive for longer than a heartbeat, then not any more.
    let script =
        format!("{SH}\nsleep 4; ask GET /cases/INC-8841; echo $$; exec sleep 120 >/dev/null 2>&1");
    let mut running = RunningCommand::start(setup.exec(&options, &["bash", "-c", &script]));
    while running.stdout_line().await != "done by the resource server" {}
    let command: i32 = running.stdout_line().await.parse().expect("a pid");
    let token = setup.resource.token();
    assert!(
        setup.is_active(&setup.resource.cases, &token).await,
        "the token is still valid"
    );
    running.signal(Signal::KILL);
    let mut ended = 0;
    for _ in 0..3_000 {
        ended = setup.entries("\"cause\":\"lease\"");
        if ended > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The command of a killed wrapper keeps running; its token has ended.
    kill_process(Pid::from_raw(command).expect("a pid"), Signal::KILL).expect("it kept running");
    assert_eq!(ended, 1);
    assert!(!setup.is_active(&setup.resource.cases, &token).await);
}
