//! `dipylon exec` when its task or token is ended while the command runs: requests stop, the command is told, and the exit code
//! says so.

use std::process::Stdio;
use std::sync::Arc;

use dipylon_sdk::client::OperatorClient;
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::{AgentId, FreezeScope, TaskId, TokenId};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::setup::{ExecSetup, READ, RunningCommand, SH};
use crate::outages::terminate;
use crate::support::DOMAIN;
use crate::support::broker_deployment::BrokerDeployment;
use crate::support::wait::in_time;

/// A heartbeat so long that only the watch of the token can bring the news in time.
const SLOW: [&str; 2] = ["--heartbeat", "1h"];

/// A command that runs until it is told, and then tries the proxy once more.
const UNTIL_TOLD: &str = "trap 'ask GET /cases/INC-8841; exit 0' TERM; echo $DIPYLON_EXEC_TASK; while :; do sleep 0.02; done";

/// The task of a running command, as its first line of output says.
async fn task_of(running: &mut RunningCommand) -> TaskId {
    TaskId::parse(&running.stdout_line().await).expect("a task")
}

async fn token_of(olga: &OperatorClient, task: TaskId) -> TokenId {
    let tokens = olga.active_tokens(100).await.expect("lists");
    let token = tokens.iter().find(|t| t.task_id == task.to_string());
    TokenId::parse(&token.expect("active").jti).expect("an id")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_stops_the_proxy_and_tells_the_command() {
    let setup = ExecSetup::start().await;
    let olga = setup.served.operator("olga");
    let triage = AgentId::parse("triage").expect("an agent");
    let everything = FreezeScope::parse("all").expect("a scope");
    for how in ["operator", "token", "frozen", "suspended", "policy"] {
        let options = [&READ[..], &SLOW, &["--json"]].concat();
        let script = format!("{SH}\n{UNTIL_TOLD}");
        let mut running = RunningCommand::start(setup.exec(&options, &["bash", "-c", &script]));
        let task = task_of(&mut running).await;
        match how {
            "operator" => drop(olga.end_task(task).await.expect("ends")),
            "token" => {
                let jti = token_of(&olga, task).await;
                drop(olga.revoke_token(jti).await.expect("revokes"));
            }
            "frozen" => drop(olga.freeze(&everything, "drill").await.expect("freezes")),
            "suspended" => drop(olga.suspend(&triage, "odd").await.expect("suspends")),
            _ => {
                let files = setup.served.env.policy_with("agents.toml", |agents| {
                    agents.replace("\"case.read\", ", "")
                });
                drop(olga.apply_policy_bundle(&files).await.expect("applies"));
            }
        }
        let output = running.end().await;
        output
            .exit_code(117)
            .stdout_contains("HTTP/1.1 403 Forbidden")
            .stdout_contains("\"reason\":\"TOKEN_ENDED\"");
        let events: Vec<Value> = output
            .err
            .lines()
            // bash reports its own children that were signalled.
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let cause = if how == "token" { "operator" } else { how };
        let ended = events.iter().find(|event| event["event"] == "ended");
        let ended = ended.unwrap_or_else(|| panic!("{how}: {events:?}"));
        assert_eq!(
            (&ended["cause"], &ended["signal"]),
            (&cause.into(), &15.into()),
            "{how}"
        );
        let last = events.last().expect("an event");
        assert_eq!(
            (&last["exit"], &last["command_exit"], &last["ended_before"]),
            (&117.into(), &0.into(), &cause.into()),
            "{how}: {last}"
        );
        match how {
            "frozen" => drop(olga.unfreeze(&everything).await.expect("unfreezes")),
            "suspended" => drop(olga.resume(&triage).await.expect("resumes")),
            _ => {}
        }
    }
    assert!(
        setup.resource.seen().is_empty(),
        "a revoked token is not sent"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_signal_is_the_callers_choice() {
    let setup = ExecSetup::start().await;
    let olga = setup.served.operator("olga");
    // Without a signal the command goes on, and learns it from the proxy; its own exit code is still visible.
    let options = [&READ[..], &SLOW, &["--end-signal", "none"]].concat();
    let script =
        format!("{SH}\necho $DIPYLON_EXEC_TASK; read -r go; ask GET /cases/INC-8841; exit 3");
    let mut program = setup.exec(&options, &["bash", "-c", &script]);
    program.stdin(Stdio::piped());
    let mut running = RunningCommand::start(program);
    let task = task_of(&mut running).await;
    olga.end_task(task).await.expect("ends");
    let line = running.stderr_line("dipylon: ended     operator").await;
    assert!(!line.contains("signal"), "{line}");
    let mut go = running.child.stdin.take().expect("stdin");
    go.write_all(b"\n").await.expect("output");
    running
        .end()
        .await
        .exit_code(117)
        .stdout_contains("\"reason\":\"TOKEN_ENDED\"")
        .stderr_contains("done      exit 117, the command's was 3, 1 token revoked")
        .stderr_contains("(ended before: operator)");
    // A command that ignores TERM.
    let options = [&READ[..], &SLOW, &["--end-signal", "kill"]].concat();
    let script = "trap '' TERM; echo $DIPYLON_EXEC_TASK; while :; do sleep 0.02; done";
    let mut running = RunningCommand::start(setup.exec(&options, &["bash", "-c", script]));
    let task = task_of(&mut running).await;
    olga.end_task(task).await.expect("ends");
    running
        .end()
        .await
        .exit_code(117)
        .stderr_contains("the command gets signal 9")
        .stderr_contains("the command's was 137");
}

/// The next connection that carries a request: the reachability check sends none.
async fn next_request(audience: &TcpListener) -> TcpStream {
    loop {
        let (mut stream, _) = audience.accept().await.expect("accepts");
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read_buf(&mut head).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        if !head.is_empty() {
            return stream;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_are_broken_off() {
    let setup = ExecSetup::start().await;
    let olga = setup.served.operator("olga");
    let audience = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", audience.local_addr().expect("address"));
    let options = [
        &READ[..],
        &SLOW,
        &["--end-signal", "none", "--audience-url", &url],
    ]
    .concat();
    for (begins, request) in [
        // No answer yet; half an answer; half a request.
        (false, "ask GET /slow"),
        (true, "ask GET /slow"),
        (
            false,
            r#"raw "POST $base/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9000000\r\n\r\nhalf""#,
        ),
    ] {
        let script = format!("{SH}\necho $DIPYLON_EXEC_TASK; {request}; echo over");
        let mut running = RunningCommand::start(setup.exec(&options, &["bash", "-c", &script]));
        let task = task_of(&mut running).await;
        let mut stream = in_time("a request", next_request(&audience)).await;
        if begins {
            let half = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf\n";
            stream.write_all(half).await.expect("sent");
            // The half that was sent before the end is the command's; what it has not read then may be lost.
            while running.stdout_line().await != "half" {}
        }
        olga.end_task(task).await.expect("ends");
        let mut rest = Vec::new();
        // Closed or reset.
        let _closed = in_time("the end", stream.read_to_end(&mut rest)).await;
        let output = running.end().await;
        output.exit_code(117).stdout_contains("over");
        if begins {
            assert!(!output.out.contains("TOKEN_ENDED"), "{}", output.out);
        } else {
            output
                .stdout_contains("HTTP/1.1 403 Forbidden")
                .stdout_contains("\"reason\":\"TOKEN_ENDED\"");
        }
    }
}

/// A broker that is killed and restarted ends no command, and its later word is heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_survives_a_broker_restart_and_hears_its_end() {
    let temp = tempfile::tempdir().expect("dir");
    let realm = BrokerDeployment::new(temp.path());
    let mut broker = realm.broker_with_log(Stdio::null(), "error").await;
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let evidence = realm
        .env
        .svid_for(&realm.url, &id, Clock::system().now(), 3_600);
    std::fs::write(temp.path().join("svid"), evidence.expose_secret()).expect("evidence");
    let audience = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let audience_url = format!("http://{}", audience.local_addr().expect("address"));
    let mut program = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    let script = "trap 'exit 5' TERM; echo $DIPYLON_EXEC_TASK; while :; do sleep 0.02; done";
    program
        .args(["--url", &realm.url, "exec", "--evidence"])
        .arg(temp.path().join("svid"))
        .args(["--audience-url", &audience_url])
        .args(READ)
        .args(SLOW)
        .args(["--", "bash", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut running = RunningCommand::start(program);
    let task = task_of(&mut running).await;
    broker.kill().await.expect("SIGKILL");
    let mut broker = realm.broker_with_log(Stdio::null(), "error").await;
    assert!(
        running.child.try_wait().expect("a state").is_none(),
        "it runs on"
    );
    let olga = OperatorClient::new(realm.endpoint(), Arc::new(realm.env.key_of("olga")));
    olga.end_task(task).await.expect("ends");
    running
        .end()
        .await
        .exit_code(117)
        .stderr_contains("ended     operator")
        .stderr_contains("the command's was 5");
    broker.kill().await.expect("SIGKILL");
}

/// A heartbeat that no broker answers may have been missed: requests wait for its word, and go on after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapsed_lease_holds_requests_until_the_broker_answers() {
    let temp = tempfile::tempdir().expect("dir");
    let realm = BrokerDeployment::new(temp.path());
    let mut broker = realm.broker_with_log(Stdio::null(), "error").await;
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let evidence = realm
        .env
        .svid_for(&realm.url, &id, Clock::system().now(), 3_600);
    std::fs::write(temp.path().join("svid"), evidence.expose_secret()).expect("evidence");
    let audience = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let audience_url = format!("http://{}", audience.local_addr().expect("address"));
    let served = axum::Router::new().fallback(|| async { "served" });
    tokio::spawn(async move { axum::serve(audience, served).await });
    let script = format!("{SH}\nwhile read -r go; do ask GET /cases/INC-8841 | tail -1; done");
    let mut program = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    program
        .args(["--url", &realm.url, "exec", "--evidence"])
        .arg(temp.path().join("svid"))
        .args(["--audience-url", &audience_url])
        .args(READ)
        .args(["--heartbeat", "2s", "--", "bash", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut running = RunningCommand::start(program);
    let mut go = running.child.stdin.take().expect("stdin");
    let mut until_answered = async |what: &str| loop {
        go.write_all(b"\n").await.expect("runs");
        let line = running.stdout_line().await;
        if line.contains(what) {
            break line;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    in_time("an answer", until_answered("served")).await;
    // A clean stop: only after one does the next start excuse heartbeats.
    terminate(&broker);
    let stopped = in_time("the stop", broker.wait()).await.expect("waited");
    assert!(stopped.success(), "{stopped}");
    let held = in_time("a lapse", until_answered("TASK_UNCONFIRMED")).await;
    assert!(held.contains("\"status\":503"), "{held}");
    let mut broker = realm.broker_with_log(Stdio::null(), "error").await;
    in_time("an answer", until_answered("served")).await;
    drop(go);
    running.end().await.exit_code(0);
    broker.kill().await.expect("SIGKILL");
}
