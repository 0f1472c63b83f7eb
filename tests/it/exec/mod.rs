//! `dipylon exec`, as its users run it: how commands begin, wait, run and end.

mod delivery;
mod evidence;
pub mod stage;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dipylon::client::{Agent, OpenTask, Outcome, Person};
use dipylon::clock::Clock;
use dipylon::model::{MatchPhrase, Verdict};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;

use crate::harness::{CASES, DOMAIN, IDP, disable};
use crate::kill::Realm;
use crate::served::order;
use stage::{DISABLE, READ, Running, SH, Stage, Told, decide};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_does_its_one_thing_and_nothing_after() {
    let stage = Stage::set().await;
    let script = r#"
        ask GET /cases/INC-8841
        ask GET '/cases/INC-8841?page=2' "X-Own: kept\r\nX-Other: x\r\nX-Request-Id: r-1\r\nReferer: http://$host$base/\r\n"
        env; tr '\0' '\n' < /proc/$$/environ; tr '\0' '\n' < /proc/$PPID/environ
        exit 3"#;
    let options = [&READ[..], &["--forward-header", "X-Own"]].concat();
    let told = stage.script(&options, script).await;
    told.exit(3)
        .printed("HTTP/1.1 200 OK")
        .printed("done by the resource server")
        .printed("DIPYLON_TASK=task_")
        .said("dipylon: verified  spiffe://soc.example/agent/triage by jwt-svid, task_")
        .said("dipylon: allowed   case.read on Case::INC-8841 by rule \"soc-acts-at-home\", ttl 5m  -> running bash")
        .said("dipylon: done      exit 3, 1 token revoked, task_");
    let token = stage.resource.token();
    for part in [
        token.as_str(),
        "eyJ",
        "set-cookie",
        "s3cr3t",
        "next-nonce",
        "dpop",
    ] {
        assert!(
            !told.out.to_lowercase().contains(&part.to_lowercase()),
            "{part}: {}",
            told.out
        );
    }
    let environment = told
        .out
        .split("done by the resource server")
        .last()
        .expect("env");
    let own: Vec<_> = environment
        .lines()
        .filter(|l| l.starts_with("DIPYLON_KEY="))
        .collect();
    assert_eq!(own.len(), 1, "only where the caller's own is: {own:?}");
    let seen = stage.resource.seen();
    assert_eq!(seen[1].path, "/cases/INC-8841?page=2");
    assert_eq!(seen[1].headers["x-own"], "kept");
    assert_eq!(seen[1].headers["x-request-id"], "r-1");
    for gone in ["x-other", "referer"] {
        assert!(seen[1].headers.get(gone).is_none(), "{gone}");
    }
    assert_ne!(
        seen[0].headers["dpop"], seen[1].headers["dpop"],
        "a proof for each request"
    );
    assert!(
        !stage.good(&stage.resource.cases, &token).await,
        "dead with its task"
    );
    assert_eq!(stage.entries("\"outcome\":\"failed\""), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stepped_up_action_waits_and_runs() {
    let stage = Stage::set().await;
    let script = "ask POST /accounts/ann/disable '' '{}'; ask POST /accounts/ann/disable '' '{}'";
    let (told, id) = tokio::join!(
        stage.script(&DISABLE, script),
        stage.decide(Verdict::Approve)
    );
    let phrase = MatchPhrase::of(&id);
    told.exit(0)
        .printed("HTTP/1.1 200 OK")
        .printed("HTTP/1.1 401 Unauthorized")
        .printed("uses are spent")
        .said(&format!("dipylon: step-up   needs 1 of group security because of rule \"destructive-needs-a-yes\" and rule \"soc-acts-at-home\"  {phrase}  {id}"))
        .said("dipylon: waiting   until 2")
        .said("dipylon: approved  account.disable on Account::ann by rule")
        .said("uses 1  -> running bash")
        .said("dipylon: done      exit 0, ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_runs_nothing() {
    let stage = Stage::set().await;
    let mark = stage.home.path().join("mark");
    let touch = ["touch", mark.to_str().expect("text")];
    let run = async |options: &[&str]| {
        Told::of(stage.exec(options, &touch).output().await.expect("runs"))
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
        .exit(10)
        .said("dipylon: denied    FORBIDDEN_BY_RULE by rule \"protected-accounts-stay\"")
        .said("dipylon explain dec_")
        .said("dipylon: done      exit 10, 0 tokens revoked");
    let (told, _) = tokio::join!(run(&DISABLE), stage.decide(Verdict::Deny));
    told.exit(10).said("denied    DENIED_BY_PERSON");
    run(&[&DISABLE[..], &["--wait", "1s"]].concat())
        .await
        .exit(12)
        .said("dipylon: expired   approval of areq_");
    let unknown = [
        "--action",
        "case.read",
        "--target",
        "Case::none",
        "--audience",
        CASES,
    ];
    run(&unknown).await.exit(2).said("UNKNOWN_TARGET");
    assert!(!mark.exists(), "nothing ran");
    assert_eq!(stage.entries("\"TaskEnded\""), 4, "no task is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_wait_comes_back() {
    let mut stage = Stage::set().await;
    let script = format!("{SH}\nask POST /accounts/ann/disable '' '{{}}'");
    let own = ["--no-wait", "--json", "--forward-header", "X-Own"];
    let options = [&DISABLE[..], &own[..]].concat();
    let command = ["bash", "-c", &script];
    let told = Told::of(stage.exec(&options, &command).output().await.expect("runs"));
    told.exit(11);
    assert_eq!(told.out, "", "stdout is the command's");
    let events: Vec<Value> = told
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
    let again = async |stage: &Stage| {
        // The very line that was said, in a shell, with nothing but the same home.
        let mut shell = stage.dipylon();
        let mut command = Command::new("bash");
        for (name, value) in shell.as_std_mut().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env_remove("DIPYLON_URL").args(["-c", &resume]);
        Told::of(command.output().await.expect("runs"))
    };
    let waits = Told::of(
        stage
            .dipylon()
            .args(["exec", "--resume", &id, "--no-wait", "--", "true"])
            .output()
            .await
            .expect("runs"),
    );
    waits.exit(11).said(&format!(
        "exec --resume {id} --audience-url {} --forward-header x-own -- true",
        stage.resource.url
    ));
    assert_eq!(stage.decide(Verdict::Approve).await.to_string(), id);
    // A yes is not spent on an audience that is not there.
    let nobody = unheard().await;
    let nowhere = ["exec", "--resume", &id, "--audience-url", &nobody];
    let away = stage.dipylon().args(nowhere).args(["--", "true"]).output();
    Told::of(away.await.expect("runs"))
        .exit(14)
        .said(&format!("the audience cannot be reached at {nobody}"))
        .said("no approval was used");
    assert_eq!(stage.entries("\"TokenIssued\""), 0);
    let resource = stage.resource.clone();
    stage.served = stage.served.restart().await;
    again(&stage)
        .await
        .exit(0)
        .printed("HTTP/1.1 200 OK")
        .said("dipylon: approved  account.disable")
        .said("dipylon: done      exit 0, ");
    assert!(!stage.good(&resource.idp, &resource.token()).await);
    again(&stage).await.exit(2).said("is not saved on this machine");
    let left: Vec<_> = walk(&stage.home.path().join("state"));
    assert!(left.is_empty(), "keys and requests are forgotten: {left:?}");
}

/// A place on loopback where nobody listens.
async fn unheard() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    format!("http://{}", listener.local_addr().expect("address"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_for_what_cannot_be_used() {
    let stage = Stage::set().await;
    let nobody = unheard().await;
    let options = [&DISABLE[..], &["--wait", "20s", "--audience-url", &nobody]].concat();
    let told = stage.exec(&options, &["true"]).output().await;
    Told::of(told.expect("runs"))
        .exit(14)
        .said(&format!(
            "the audience cannot be reached at {nobody}; areq_"
        ))
        .said("was cancelled")
        .said("dipylon: done      exit 14, 0 tokens revoked");
    assert_eq!(stage.entries("\"AccessRequestClosed\""), 1);
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_and_codes_are_the_commands_own() {
    let stage = Stage::set().await;
    // Each signal, caught by the command.
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
        let mut running = Running::start(stage.exec(&READ, &["bash", "-c", &script]));
        assert_eq!(running.line().await, "ready");
        running.signal(signal);
        running
            .end()
            .await
            .exit(9)
            .printed("caught")
            .said("done      exit 9, 1 token revoked");
    }
    // Not caught: ended by it, which a shell says as 128 + n.
    let mut running =
        Running::start(stage.exec(&READ, &["bash", "-c", "echo ready; exec sleep 60"]));
    assert_eq!(running.line().await, "ready");
    running.signal(Signal::TERM);
    running
        .end()
        .await
        .exit(143)
        .said("done      exit 143, 1 token revoked");
    stage
        .script(&READ, "kill -KILL $$")
        .await
        .exit(137)
        .said("done      exit 137");
    // The whole group of the command is told.
    let script = "bash -c 'trap \"echo inner; exit\" TERM; echo ready; while :; do sleep 0.02; done' & trap '' TERM; wait; wait";
    let mut running = Running::start(stage.exec(&READ, &["bash", "-c", script]));
    assert_eq!(running.line().await, "ready");
    running.signal(Signal::TERM);
    running.end().await.printed("inner").exit(0);
    // What the caller ignores, the command ignores.
    let exec = stage.exec(&READ, &["bash", "-c", "echo ready; sleep 1; echo survived"]);
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
    let mut running = Running::start(nohup);
    assert_eq!(running.line().await, "ready");
    running.signal(Signal::HUP);
    running.end().await.printed("survived").exit(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_command_stops_and_goes_on_with_its_wrapper() {
    let stage = Stage::set().await;
    let script = "trap 'echo continued; exit 4' CONT; echo ready; while :; do sleep 0.02; done";
    let mut running = Running::start(stage.exec(&READ, &["bash", "-c", script]));
    assert_eq!(running.line().await, "ready");
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
    running.end().await.exit(4).printed("continued");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_while_people_decide_takes_it_back() {
    let stage = Stage::set().await;
    let mut running = Running::start(stage.exec(&DISABLE, &["true"]));
    running.told("waiting").await;
    running.signal(Signal::INT);
    running
        .end()
        .await
        .exit(130)
        .said("was cancelled")
        .said("done      exit 130, 0 tokens revoked");
    assert!(
        stage
            .served
            .person("maria")
            .list()
            .await
            .expect("lists")
            .is_empty()
    );
    assert_eq!(
        stage.entries("\"AccessRequestClosed\""),
        1,
        "cancelled, not only ended"
    );
    assert_eq!(stage.entries("\"TaskEnded\""), 1);
}

/// The real process, killed while the program waits for people.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_back_is_waited_for() {
    let temp = tempfile::tempdir().expect("dir");
    let realm = Realm::new(temp.path());
    let mut broker = realm.broker_telling(Stdio::null(), "error").await;
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let evidence = realm
        .world
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
    let mut running = Running::start(program);
    running.told("waiting").await;
    broker.kill().await.expect("SIGKILL");
    let mut broker = realm.broker_telling(Stdio::null(), "error").await;
    let maria = Person::new(realm.endpoint(), Arc::new(realm.world.key_of("maria")));
    decide(&maria, Verdict::Approve).await;
    running
        .end()
        .await
        .exit(0)
        .said("approved")
        .said("done      exit 0");
    broker.kill().await.expect("SIGKILL");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_is_not_asked_for() {
    let stage = Stage::set().await;
    let run =
        async |command: &str| Told::of(stage.exec(&READ, &[command]).output().await.expect("runs"));
    run("no-such-command")
        .await
        .exit(127)
        .said("no-such-command: command not found");
    let file = stage.home.path().join("plain");
    std::fs::write(&file, "x").expect("file");
    run(file.to_str().expect("text"))
        .await
        .exit(126)
        .said("not executable");
    assert_eq!(stage.entries("\"TaskOpened\""), 0, "nobody was asked");
    // Seen only when it is tried: the task is over all the same.
    let script = stage.home.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("file");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("mode");
    run(script.to_str().expect("text"))
        .await
        .exit(127)
        .said("done      exit 127, 1 token revoked");
    assert_eq!(
        (
            stage.entries("\"TaskOpened\""),
            stage.entries("\"TaskEnded\"")
        ),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_has_its_own_codes() {
    let stage = Stage::set().await;
    let away = Told::of(
        stage
            .exec(&READ, &["true"])
            .env("DIPYLON_URL", "http://127.0.0.1:1")
            .output()
            .await
            .expect("runs"),
    );
    away.exit(14).said("cannot be reached");
    std::fs::write(stage.svid(), "not-evidence").expect("evidence");
    stage
        .script(&READ, "true")
        .await
        .exit(20)
        .said("NOT_AUTHENTICATED");
    std::fs::write(stage.svid(), stage.evidence("triage").expose_secret()).expect("evidence");
    // Five wait already: no more are taken in.
    let agent = Agent::new(
        stage.served.endpoint(),
        stage.served.evidence("triage"),
        None,
    );
    let opening = OpenTask {
        purpose: "fill".into(),
        max_duration_s: 600,
        request_id: None,
        heartbeat_s: None,
    };
    for n in 0..5 {
        let task = agent.open_task(&opening).await.expect("opens");
        let outcome = task
            .request_token(&order(disable("ann"), &format!("r-{n}")))
            .await;
        assert!(matches!(outcome, Ok(Outcome::Pending(_))), "{outcome:?}");
    }
    stage
        .script(&DISABLE, "true")
        .await
        .exit(16)
        .said("TOO_MANY_PENDING");
    stage
        .script(&["--action", "case.read"], "true")
        .await
        .exit(2);
    // An audience that is no place needs one.
    let mut program = stage.dipylon();
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
    Told::of(program.output().await.expect("runs")).exit(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_wrapper_leaves_nothing_that_works() {
    let stage = Stage::set().await;
    let options = [&READ[..], &["--heartbeat", "2s"]].concat();
    // Kept alive for longer than a heartbeat, and then not any more.
    let script =
        format!("{SH}\nsleep 4; ask GET /cases/INC-8841; echo $$; exec sleep 120 >/dev/null 2>&1");
    let mut running = Running::start(stage.exec(&options, &["bash", "-c", &script]));
    while running.line().await != "done by the resource server" {}
    let command: i32 = running.line().await.parse().expect("a pid");
    let token = stage.resource.token();
    assert!(
        stage.good(&stage.resource.cases, &token).await,
        "it still works"
    );
    running.signal(Signal::KILL);
    let mut ended = 0;
    for _ in 0..3_000 {
        ended = stage.entries("\"cause\":\"lease\"");
        if ended > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The command of a killed wrapper lives on; its token does not.
    kill_process(Pid::from_raw(command).expect("a pid"), Signal::KILL).expect("it lived on");
    assert_eq!(ended, 1);
    assert!(!stage.good(&stage.resource.cases, &token).await);
}
