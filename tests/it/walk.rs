//! A newcomer's walk, with nothing but the program and the README: a broker in earnest with TLS, its first operator, an agent
//! and a validator, one approved thing done by `exec`, the brake, and the figures. The names of files are the README's.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use dipylon::client::{Identity, Reach};
use dipylon::jose::SigningKey;
use dipylon::model::Audience;
use dipylon::validator::{Presented, Require, Validator, ValidatorConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::exec::stage::{SH, Told};
use super::harness::{CASES, read_case, soc};
use super::transport::Authority;

struct Walk {
    root: tempfile::TempDir,
    url: String,
    operator: String,
}

impl Walk {
    async fn new() -> Self {
        let mut ports = Vec::new();
        let mut held = Vec::new();
        for _ in 0..2 {
            let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            ports.push(free.local_addr().expect("address").port());
            held.push(free);
        }
        Self {
            root: tempfile::tempdir().expect("dir"),
            url: format!("https://localhost:{}", ports[0]),
            operator: format!("127.0.0.1:{}", ports[1]),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(path, text).expect("written");
    }

    fn dipylon(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
        command
            .args(args)
            .current_dir(self.root.path())
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("SPIFFE_ENDPOINT_SOCKET")
            .env("HOME", self.root.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("DIPYLON_URL", &self.url)
            .env("DIPYLON_CA", self.path("ca.pem"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str) -> Told {
        let args: Vec<&str> = line.split_whitespace().collect();
        Told::of(self.dipylon(&args).output().await.expect("runs"))
    }

    async fn done(&self, line: &str) -> String {
        let told = self.run(line).await;
        assert_eq!(told.code, 0, "{line}: {} {}", told.out, told.err);
        told.out
    }

    /// Starts the broker and waits until it says that it is ready.
    async fn serve(&self) -> (Child, PathBuf) {
        let told = self.path("told.txt");
        let child = self
            .dipylon(&[
                "serve",
                "--config",
                "dipylon.toml",
                "--ready-file",
                "ready.json",
            ])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&told).expect("file"))
            .spawn()
            .expect("starts");
        for _ in 0..1_500 {
            if self.path("ready.json").exists() {
                return (child, told);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{}", std::fs::read_to_string(told).unwrap_or_default());
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.operator).await.expect("listens");
        let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(ask.as_bytes()).await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        text
    }
}

/// The case system: it takes nobody's word.
struct Cases {
    url: String,
    validator: Validator,
}

impl Cases {
    async fn start(walk: &Walk) -> Arc<Self> {
        let pem = std::fs::read_to_string(walk.path("cases.pem")).expect("key");
        let key = Arc::new(SigningKey::from_pem(&pem).expect("key"));
        let reach = Reach {
            ca: Some(walk.path("ca.pem")),
            ..Reach::default()
        };
        let audience = Audience::parse(CASES).expect("audience");
        let config = ValidatorConfig {
            reach,
            ..ValidatorConfig::new(&walk.url, &walk.url, audience, Identity::Key(key))
        };
        let validator = Validator::connect(config).await.expect("connects");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let cases = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().expect("address")),
            validator,
        });
        let router = Router::new()
            .fallback(any(Self::serve))
            .with_state(cases.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        cases
    }

    async fn serve(State(at): State<Arc<Self>>, request: Request) -> Response {
        let (head, _) = request.into_parts();
        let one = |name: &str| {
            let value = head.headers.get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (authorization, proof) = (one("authorization"), one("dpop"));
        let url = format!("{}{}", at.url, head.uri.path());
        let presented = Presented {
            token: authorization.strip_prefix("DPoP ").unwrap_or_default(),
            dpop: Some(&proof),
            method: head.method.as_str(),
            url: &url,
            openings: &Default::default(),
        };
        let action = read_case();
        let require = Require {
            action: action.name,
            target: action.target,
            parameters: Some(action.parameters),
        };
        match at.validator.check(&presented, &require).await {
            Ok(_) => "the case".into_response(),
            Err(no) => {
                let status = StatusCode::from_u16(no.status()).expect("a status");
                (status, no.to_string()).into_response()
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_readme_alone_a_broker_is_taken_into_service() {
    let walk = Walk::new().await;
    let authority = Authority::new();
    let (certificate, key) = authority.certify();
    walk.write("ca.pem", &authority.pem);
    walk.write("tls.crt", &certificate);
    super::transport::put(&walk.path("tls.key"), &key, 0o600);

    // Keys for the operator and the case system; their public halves go into people.toml.
    let mut policy = soc();
    for who in ["olga", "cases", "maria", "lee"] {
        let printed = walk
            .done(&format!("key new --of {who} --out {who}.pem"))
            .await;
        policy
            .get_mut("people.toml")
            .expect("people")
            .push_str(&format!("\n{printed}"));
    }
    for (path, text) in &policy {
        walk.write(&format!("policy/{path}"), text);
    }
    let checked = walk.done("policy check policy").await;
    // Maria owns reporter, so only Lee could say yes for it; the others suffice for triage.
    assert!(
        checked.contains("reporter (1)") && !checked.contains("triage ("),
        "{checked}"
    );

    // A trust domain: SPIRE's in earnest, one of our own to try it.
    walk.done("dev trust-domain --out spiffe").await;
    let port = walk.url.rsplit(':').next().expect("a port");
    walk.write(
        "dipylon.toml",
        &format!(
            "realm = \"soc\"\nlisten = \"127.0.0.1:{port}\"\nexternal_url = \"{}\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n\
             operator_listen = \"{}\"\n\n[tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n\n\
             [[trust_domain]]\nname = \"soc.example\"\nbundle = \"spiffe/trust-bundle.json\"\n",
            walk.url, walk.operator
        ),
    );
    walk.done("config check dipylon.toml").await;

    // The broker starts with nothing and denies everything; its first operator comes in by the code it prints.
    let (mut broker, told) = walk.serve().await;
    let printed = std::fs::read_to_string(told).expect("told");
    let code = printed.split("one-time code ").nth(1).expect("printed");
    let code = code.split_whitespace().next().expect("a code");
    let first = format!("policy apply policy --key olga.pem --code {code}");
    walk.run("policy apply policy --key olga.pem")
        .await
        .exit(20);
    assert!(walk.done(&first).await.contains("in force"));
    walk.run(&first).await.exit(20);

    // An agent does one thing, and its token is dead when the command ends.
    let cases = Cases::start(&walk).await;
    let svid = format!(
        "dev svid --domain-key spiffe/trust-domain.pem --audience {} --spiffe-id spiffe://soc.example/agent/triage --out svid",
        walk.url
    );
    walk.done(&svid).await;
    let exec = |action: &str, target: &str| {
        let script = format!("{SH}\nask GET /cases/INC-8841");
        let mut command = walk.dipylon(&["exec", "--evidence", "svid", "--reason", "phish"]);
        command
            .args(["--action", action, "--target", target, "--audience", CASES])
            .args(["--audience-url", &cases.url, "--", "bash", "-c", &script]);
        command
    };
    let run = async |mut command: Command| Told::of(command.output().await.expect("runs"));
    let told = run(exec("case.read", "Case::INC-8841")).await;
    told.exit(0)
        .printed("200 OK")
        .printed("the case")
        .said("verified")
        .said("done");
    // What no rule allows is denied, and says so by its code.
    run(exec("case.close", "Case::INC-8841")).await.exit(2);

    let listed = walk.done("task list --ended --key olga.pem").await;
    assert!(
        listed.contains("triage") && listed.contains("completed"),
        "{listed}"
    );

    // The brake: the agent gets nothing more, and everyone can see why.
    assert!(
        walk.done("agent show triage --key olga.pem")
            .await
            .contains("in service")
    );
    let frozen = walk
        .done("freeze agent/triage --reason INC-9 --key olga.pem")
        .await;
    assert!(frozen.contains("is frozen by entry"), "{frozen}");
    run(exec("case.read", "Case::INC-8841")).await.exit(20);
    assert!(
        walk.done("agent list --key olga.pem")
            .await
            .contains("frozen (agent/triage)")
    );
    assert!(walk.done("freeze --key olga.pem").await.contains("INC-9"));
    walk.done("unfreeze agent/triage --key olga.pem").await;
    run(exec("case.read", "Case::INC-8841")).await.exit(0);

    // What happened can be read.
    let metrics = walk.metrics().await;
    for line in [
        "dipylon_decisions_total{outcome=\"approved\"",
        "dipylon_tasks_open 0",
        "dipylon_policy_info{",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let doctor = walk.run("doctor --config dipylon.toml").await;
    assert!(
        doctor.out.contains("[ok]") && !doctor.out.contains("[fail]"),
        "{}",
        doctor.out
    );

    // It stops when told, and what it wrote can be verified without it.
    let pid =
        rustix::process::Pid::from_raw(i32::try_from(broker.id().expect("runs")).expect("pid"));
    rustix::process::kill_process(pid.expect("pid"), rustix::process::Signal::TERM).expect("told");
    let ended = tokio::time::timeout(Duration::from_secs(60), broker.wait()).await;
    assert!(ended.expect("in time").expect("ends").success());
    assert!(
        walk.done("audit verify --data-dir data")
            .await
            .contains("whole")
    );
}
