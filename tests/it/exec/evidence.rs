//! Evidence of `dipylon exec` from the SPIFFE Workload API, and pinned task keys.

use std::sync::{Arc, Mutex};

use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::Verdict;
use dipylon_sdk::proto::servers::spiffe::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use dipylon_sdk::proto::spiffe::{Jwtsvid, JwtsvidRequest, JwtsvidResponse};
use tokio::process::Command;

use super::setup::{CommandOutput, DISABLE, ExecSetup, READ, SH, claim};
use crate::support::DOMAIN;

/// Audiences and a SPIFFE ID.
type JwtSvidRequest = (Vec<String>, String);

/// A fake SPIFFE agent: it issues JWT-SVIDs without attestation.
#[derive(Clone)]
struct SpiffeAgent {
    env: Arc<crate::support::TestEnvironment>,
    requests: Arc<Mutex<Vec<JwtSvidRequest>>>,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for SpiffeAgent {
    async fn fetch_jwtsvid(
        &self,
        request: tonic::Request<JwtsvidRequest>,
    ) -> Result<tonic::Response<JwtsvidResponse>, tonic::Status> {
        // SPIFFE Workload Endpoint §6.1: required in every call.
        if request
            .metadata()
            .get("workload.spiffe.io")
            .is_none_or(|v| v != "true")
        {
            return Err(tonic::Status::invalid_argument(
                "security header missing from request",
            ));
        }
        let request = request.into_inner();
        self.requests
            .lock()
            .expect("requests")
            .push((request.audience.clone(), request.spiffe_id));
        let svid = |agent: &str| {
            let id = format!("spiffe://{DOMAIN}/agent/{agent}");
            let now = Clock::system().now();
            let svid = self.env.svid_for(&request.audience[0], &id, now, 300);
            Jwtsvid {
                spiffe_id: id,
                svid: svid.expose_secret().to_owned(),
                hint: String::new(),
            }
        };
        let svids = vec![svid("triage"), svid("reporter")];
        Ok(tonic::Response::new(JwtsvidResponse { svids }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_from_workload_api() {
    let setup = ExecSetup::start().await;
    let socket = setup.home.path().join("agent.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("listens");
    let agent = SpiffeAgent {
        env: setup.served.env.clone(),
        requests: Arc::default(),
    };
    let serving = tonic::transport::Server::builder()
        .add_service(SpiffeWorkloadApiServer::new(agent.clone()))
        .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener));
    let serving = tokio::spawn(serving);
    let address = format!("unix://{}", socket.display());
    let with = |options: &[&str]| {
        let mut program = setup.dipylon();
        program
            .args(["exec", "--audience-url", &setup.resource.url])
            .args(READ)
            .args(options)
            .args(["--", "true"]);
        program
    };
    let run =
        async |mut program: Command| CommandOutput::new(program.output().await.expect("runs"));
    // By SPIFFE_ENDPOINT_SOCKET, and by option.
    let mut program = with(&[]);
    program.env("SPIFFE_ENDPOINT_SOCKET", &address);
    run(program)
        .await
        .exit_code(0)
        .stderr_contains("spiffe://soc.example/agent/triage by jwt-svid");
    // The command does not inherit the socket.
    let mut program = setup.dipylon();
    program
        .env("SPIFFE_ENDPOINT_SOCKET", &address)
        .args(["exec", "--audience-url", &setup.resource.url])
        .args(READ)
        .args(["--", "env"]);
    let output = run(program).await;
    output.exit_code(0).stdout_contains("DIPYLON_EXEC_TASK=");
    assert!(!output.out.contains("SPIFFE"), "{}", output.out);
    run(with(&["--workload-api", &address])).await.exit_code(0);
    let reporter = "spiffe://soc.example/agent/reporter";
    run(with(&["--workload-api", &address, "--spiffe-id", reporter]))
        .await
        .exit_code(0)
        .stderr_contains(reporter);
    let none = "spiffe://soc.example/agent/none";
    run(with(&["--workload-api", &address, "--spiffe-id", none]))
        .await
        .exit_code(118)
        .stderr_contains("it has no JWT-SVID for this workload");
    let requests = agent.requests.lock().expect("requests").clone();
    let ours = vec![setup.served.url.clone()];
    assert_eq!(requests[0], (ours.clone(), String::new()));
    assert_eq!(requests[3], (ours, reporter.to_owned()));
    // Evidence for another audience is rejected.
    run(with(&[
        "--workload-api",
        &address,
        "--evidence-audience",
        "https://other",
    ]))
    .await
    .exit_code(120);
    // The other verbs that need evidence use it too, and remember the source.
    let task = async |args: &[&str]| {
        let mut program = setup.dipylon();
        program.args(args);
        run(program).await
    };
    task(&["task", "open", "--purpose", "x", "--workload-api", &address])
        .await
        .exit_code(0);
    let before = agent.requests.lock().expect("requests").len();
    task(&[&["token", "request"][..], &READ].concat())
        .await
        .exit_code(0)
        .stdout_contains("tok_");
    task(&[&["token", "request", "--workload-api", &address][..], &READ].concat())
        .await
        .exit_code(0);
    assert_eq!(
        agent.requests.lock().expect("requests").len(),
        before + 1,
        "sent when named"
    );
    task(&["task", "complete"]).await.exit_code(0);
    serving.abort();
    let _gone = serving.await;
    run(with(&["--workload-api", &address]))
        .await
        .exit_code(118)
        .stderr_contains("Workload API at unix:///");
    // No source: the error says which options there are.
    run(with(&[]))
        .await
        .exit_code(2)
        .stderr_contains("no source of evidence given");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinned_agent_task_key() {
    let setup = ExecSetup::start().await;
    let (key, pkcs8) = SigningKey::generate().expect("key");
    let file = setup.home.path().join("agent.pem");
    let pem = SigningKey::to_pem(&pkcs8);
    std::fs::write(&file, pem.as_str()).expect("key file");
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&file, mode).expect("mode");
    };
    mode(0o600);
    let jkt = key.public().thumbprint().to_string();
    let files = setup.served.env.policy_with("agents.toml", |t| {
        let pinned = format!("groups = [\"soc\"]\njkt = \"{jkt}\"");
        t.replacen("groups = [\"soc\"]", &pinned, 1)
    });
    let olga = setup.served.operator("olga");
    olga.apply_policy_bundle(&files).await.expect("applies");
    let path = file.to_str().expect("text");
    let with = [&READ[..], &["--task-key", path]].concat();
    // Any other key fails gate 1.
    setup.script(&READ, "true").await.exit_code(120);
    let script = "ask GET /cases/INC-8841; env; ls -l /proc/$$/fd";
    let output = setup.script(&with, script).await;
    output.exit_code(0).stdout_contains("HTTP/1.1 200 OK");
    let token = setup.resource.token();
    assert_eq!(claim(&token, "cnf")["jkt"], jkt.as_str());
    let secret = pem.lines().nth(1).expect("a line");
    for never in [path, secret] {
        assert!(!output.out.contains(never) && !output.err.contains(never));
    }
    // From a pipe, which can be read only once.
    let pipe = format!("exec \"$0\" \"${{@:2}}\" --task-key <(cat '{path}') -- bash -c \"$1\"");
    let exec = setup.exec(&READ, &[]);
    let mut shell = setup.dipylon_in("bash");
    shell
        .args(["-c", &pipe])
        .arg(exec.as_std().get_program())
        .arg(format!("{SH} ask GET /cases/INC-8841"))
        .args(exec.as_std().get_args().filter(|word| *word != "--"));
    let run =
        async |mut program: Command| CommandOutput::new(program.output().await.expect("runs"));
    run(shell)
        .await
        .exit_code(0)
        .stdout_contains("HTTP/1.1 200 OK");
    // From a file, which is left in place.
    let later = [&DISABLE[..], &["--no-wait", "--task-key", path]].concat();
    let output = setup.script(&later, "true").await;
    output.exit_code(111);
    let id = output.err.split("--resume ").nth(1).expect("an id");
    let id = id.split(' ').next().expect("an id").to_owned();
    assert_eq!(setup.decide(Verdict::Approve).await.to_string(), id);
    let mut again = setup.dipylon();
    again.args([
        "exec",
        "--resume",
        &id,
        "--audience-url",
        &setup.resource.url,
        "--",
        "true",
    ]);
    run(again).await.exit_code(0);
    assert_eq!(
        std::fs::read_to_string(&file).expect("still there"),
        pem.as_str()
    );
    // As for every private key, the file must be private.
    mode(0o640);
    setup
        .script(&with, "true")
        .await
        .exit_code(118)
        .stderr_contains("mode 640");
}
