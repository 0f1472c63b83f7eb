//! Evidence from the SPIFFE agent of the machine.

use std::sync::{Arc, Mutex};

use dipylon::clock::Clock;
use dipylon::jose::SigningKey;
use dipylon::model::Verdict;
use dipylon::proto::spiffe::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use dipylon::proto::spiffe::{Jwtsvid, JwtsvidRequest, JwtsvidResponse};
use tokio::process::Command;

use super::stage::{DISABLE, READ, SH, Stage, Told, claim};
use crate::harness::DOMAIN;

/// Audiences, and a SPIFFE ID.
type Asked = (Vec<String>, String);

/// A SPIFFE agent as far as JWT-SVIDs go: it attests nothing and signs what the trust domain would.
#[derive(Clone)]
struct SpiffeAgent {
    world: Arc<crate::harness::World>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for SpiffeAgent {
    async fn fetch_jwtsvid(
        &self,
        request: tonic::Request<JwtsvidRequest>,
    ) -> Result<tonic::Response<JwtsvidResponse>, tonic::Status> {
        // SPIFFE Workload Endpoint §6.1: no call without it.
        if request
            .metadata()
            .get("workload.spiffe.io")
            .is_none_or(|v| v != "true")
        {
            return Err(tonic::Status::invalid_argument(
                "security header missing from request",
            ));
        }
        let asked = request.into_inner();
        self.asked
            .lock()
            .expect("asked")
            .push((asked.audience.clone(), asked.spiffe_id));
        let svid = |agent: &str| {
            let id = format!("spiffe://{DOMAIN}/agent/{agent}");
            let now = Clock::system().now();
            let svid = self.world.svid_for(&asked.audience[0], &id, now, 300);
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
async fn evidence_comes_from_the_spiffe_agent() {
    let stage = Stage::set().await;
    let socket = stage.home.path().join("agent.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("listens");
    let agent = SpiffeAgent {
        world: stage.served.world.clone(),
        asked: Arc::default(),
    };
    let serving = tonic::transport::Server::builder()
        .add_service(SpiffeWorkloadApiServer::new(agent.clone()))
        .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener));
    let serving = tokio::spawn(serving);
    let address = format!("unix://{}", socket.display());
    let with = |options: &[&str]| {
        let mut program = stage.dipylon();
        program
            .args(["exec", "--audience-url", &stage.resource.url])
            .args(READ)
            .args(options)
            .args(["--", "true"]);
        program
    };
    let run = async |mut program: Command| Told::of(program.output().await.expect("runs"));
    // By the variable that every SPIFFE workload has, and by its name.
    let mut program = with(&[]);
    program.env("SPIFFE_ENDPOINT_SOCKET", &address);
    run(program)
        .await
        .exit(0)
        .said("spiffe://soc.example/agent/triage by jwt-svid");
    // The command is not told where evidence comes from.
    let mut program = stage.dipylon();
    program
        .env("SPIFFE_ENDPOINT_SOCKET", &address)
        .args(["exec", "--audience-url", &stage.resource.url])
        .args(READ)
        .args(["--", "env"]);
    let told = run(program).await;
    told.exit(0).printed("DIPYLON_TASK=");
    assert!(!told.out.contains("SPIFFE"), "{}", told.out);
    run(with(&["--workload-api", &address])).await.exit(0);
    let reporter = "spiffe://soc.example/agent/reporter";
    run(with(&["--workload-api", &address, "--spiffe-id", reporter]))
        .await
        .exit(0)
        .said(reporter);
    let none = "spiffe://soc.example/agent/none";
    run(with(&["--workload-api", &address, "--spiffe-id", none]))
        .await
        .exit(1)
        .said("it has no JWT-SVID for this workload");
    let asked = agent.asked.lock().expect("asked").clone();
    let ours = vec![stage.served.url.clone()];
    assert_eq!(asked[0], (ours.clone(), String::new()));
    assert_eq!(asked[3], (ours, reporter.to_owned()));
    // Evidence for another audience opens nothing.
    run(with(&[
        "--workload-api",
        &address,
        "--evidence-audience",
        "https://other",
    ]))
    .await
    .exit(20);
    // The other verbs that need evidence profit too, and remember where it came from.
    let task = async |args: &[&str]| {
        let mut program = stage.dipylon();
        program.args(args);
        run(program).await
    };
    task(&["task", "open", "--purpose", "x", "--workload-api", &address])
        .await
        .exit(0);
    let before = agent.asked.lock().expect("asked").len();
    task(&[&["token", "request"][..], &READ].concat())
        .await
        .exit(0)
        .printed("tok_");
    task(&[&["token", "request", "--workload-api", &address][..], &READ].concat())
        .await
        .exit(0);
    assert_eq!(
        agent.asked.lock().expect("asked").len(),
        before + 1,
        "shown when named"
    );
    task(&["task", "complete"]).await.exit(0);
    serving.abort();
    let _gone = serving.await;
    run(with(&["--workload-api", &address]))
        .await
        .exit(1)
        .said("Workload API at unix:///");
    // Nothing named, nothing set: said what to name.
    run(with(&[]))
        .await
        .exit(2)
        .said("gate 1 asks what you are");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_agent_brings_its_key() {
    let stage = Stage::set().await;
    let (key, pkcs8) = SigningKey::generate().expect("key");
    let file = stage.home.path().join("agent.pem");
    let pem = SigningKey::to_pem(&pkcs8);
    std::fs::write(&file, pem.as_str()).expect("key file");
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&file, mode).expect("mode");
    };
    mode(0o600);
    let jkt = key.public().thumbprint().to_string();
    let files = stage.served.world.policy_with("agents.toml", |t| {
        let pinned = format!("groups = [\"soc\"]\njkt = \"{jkt}\"");
        t.replacen("groups = [\"soc\"]", &pinned, 1)
    });
    let olga = stage.served.person("olga");
    olga.apply_policy_bundle(&files).await.expect("applies");
    let path = file.to_str().expect("text");
    let with = [&READ[..], &["--task-key", path]].concat();
    // Any other key: gate 1.
    stage.script(&READ, "true").await.exit(20);
    let script = "ask GET /cases/INC-8841; env; ls -l /proc/$$/fd";
    let told = stage.script(&with, script).await;
    told.exit(0).printed("HTTP/1.1 200 OK");
    let token = stage.resource.token();
    assert_eq!(claim(&token, "cnf")["jkt"], jkt.as_str());
    let secret = pem.lines().nth(1).expect("a line");
    for never in [path, secret] {
        assert!(!told.out.contains(never) && !told.err.contains(never));
    }
    // From a pipe, which nobody can read again.
    let pipe = format!("exec \"$0\" \"${{@:2}}\" --task-key <(cat '{path}') -- bash -c \"$1\"");
    let exec = stage.exec(&READ, &[]);
    let mut shell = stage.dipylon_in("bash");
    shell
        .args(["-c", &pipe])
        .arg(exec.as_std().get_program())
        .arg(format!("{SH} ask GET /cases/INC-8841"))
        .args(exec.as_std().get_args().filter(|word| *word != "--"));
    let run = async |mut program: Command| Told::of(program.output().await.expect("runs"));
    run(shell).await.exit(0).printed("HTTP/1.1 200 OK");
    // Kept by its place, and still there afterwards.
    let later = [&DISABLE[..], &["--no-wait", "--task-key", path]].concat();
    let told = stage.script(&later, "true").await;
    told.exit(11);
    let id = told.err.split("--resume ").nth(1).expect("an id");
    let id = id.split(' ').next().expect("an id").to_owned();
    assert_eq!(stage.decide(Verdict::Approve).await.to_string(), id);
    let mut again = stage.dipylon();
    again.args([
        "exec",
        "--resume",
        &id,
        "--audience-url",
        &stage.resource.url,
        "--",
        "true",
    ]);
    run(again).await.exit(0);
    assert_eq!(
        std::fs::read_to_string(&file).expect("still there"),
        pem.as_str()
    );
    // As every other key: its owner's alone.
    mode(0o640);
    stage.script(&with, "true").await.exit(1).said("mode 640");
}
