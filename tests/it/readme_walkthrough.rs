//! The README's walkthrough: a production broker with TLS, its first operator, an agent, a validator, one action by `exec`,
//! a freeze, and the metrics. File names are the README's.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use dipylon_sdk::client::{ConnectOptions, Identity};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::Audience;
use dipylon_sdk::validator::{PresentedToken, RequiredAction, Validator, ValidatorConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::exec::setup::{CommandOutput, SH};
use crate::support::certificate_authority::{Authority, replace_file};
use crate::support::{CASES, read_case, soc};

struct Walkthrough {
    root: tempfile::TempDir,
    url: String,
    operator: String,
}

impl Walkthrough {
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

    async fn run(&self, line: &str) -> CommandOutput {
        let args: Vec<&str> = line.split_whitespace().collect();
        CommandOutput::new(self.dipylon(&args).output().await.expect("runs"))
    }

    async fn done(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert_eq!(output.code, 0, "{line}: {} {}", output.out, output.err);
        output.out
    }

    /// Starts the broker and waits until it is ready.
    async fn serve(&self) -> (Child, PathBuf) {
        let output = self.path("output.txt");
        let child = self
            .dipylon(&[
                "serve",
                "--config",
                "dipylon.toml",
                "--ready-file",
                "ready.json",
            ])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&output).expect("file"))
            .spawn()
            .expect("starts");
        for _ in 0..1_500 {
            if self.path("ready.json").exists() {
                return (child, output);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{}", std::fs::read_to_string(output).unwrap_or_default());
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

/// A resource server that validates every request.
struct CaseSystem {
    url: String,
    validator: Validator,
}

impl CaseSystem {
    async fn start(walk: &Walkthrough) -> Arc<Self> {
        let pem = std::fs::read_to_string(walk.path("cases.pem")).expect("key");
        let key = Arc::new(SigningKey::from_pem(&pem).expect("key"));
        let reach = ConnectOptions {
            ca: Some(walk.path("ca.pem")),
            ..ConnectOptions::default()
        };
        let audience = Audience::parse(CASES).expect("audience");
        let config = ValidatorConfig {
            connect: reach,
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
        let presented = PresentedToken {
            token: authorization.strip_prefix("DPoP ").unwrap_or_default(),
            dpop: Some(&proof),
            method: head.method.as_str(),
            url: &url,
            openings: &Default::default(),
        };
        let action = read_case();
        let require = RequiredAction {
            action: action.name,
            target: action.target,
            parameters: Some(action.parameters),
        };
        match at.validator.check(&presented, &require).await {
            Ok(_) => "the case".into_response(),
            Err(error) => {
                let status = StatusCode::from_u16(error.status()).expect("a status");
                (status, error.to_string()).into_response()
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readme_walkthrough() {
    let walk = Walkthrough::new().await;
    let authority = Authority::new();
    let (certificate, key) = authority.certify();
    walk.write("ca.pem", &authority.pem);
    walk.write("tls.crt", &certificate);
    replace_file(&walk.path("tls.key"), &key, 0o600);

    // Keys for the operator and the case system; their public keys go into people.toml.
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
    // Maria owns reporter, so only Lee can approve for it; triage has enough approvers.
    assert!(
        checked.contains("reporter (1)") && !checked.contains("triage ("),
        "{checked}"
    );

    // A local trust domain, in place of SPIRE.
    walk.done("dev trust-domain --out spiffe").await;
    let port = walk.url.rsplit(':').next().expect("a port");
    walk.write(
        "dipylon.toml",
        &format!(
            "realm = \"soc\"\nlisten = \"127.0.0.1:{port}\"\nexternal_url = \"{}\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n\
             admin_listen = \"{}\"\n\n[tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n\n\
             [[trust_domain]]\nname = \"soc.example\"\nbundle = \"spiffe/trust-bundle.json\"\n",
            walk.url, walk.operator
        ),
    );
    walk.done("config check dipylon.toml").await;

    // The broker starts without policy and denies everything; the printed code admits its first operator.
    let (mut broker, output) = walk.serve().await;
    let printed = std::fs::read_to_string(output).expect("output");
    let code = printed.split("one-time code ").nth(1).expect("printed");
    let code = code.split_whitespace().next().expect("a code");
    let first = format!("policy apply policy --key olga.pem --code {code}");
    walk.run("policy apply policy --key olga.pem")
        .await
        .exit_code(20);
    assert!(walk.done(&first).await.contains("in force"));
    walk.run(&first).await.exit_code(20);

    // An agent does one action, and its token ends with the command.
    let cases = CaseSystem::start(&walk).await;
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
    let run =
        async |mut command: Command| CommandOutput::new(command.output().await.expect("runs"));
    let output = run(exec("case.read", "Case::INC-8841")).await;
    output
        .exit_code(0)
        .stdout_contains("200 OK")
        .stdout_contains("the case")
        .stderr_contains("verified")
        .stderr_contains("done");
    // An action that no rule allows is denied, with its exit code.
    run(exec("case.close", "Case::INC-8841")).await.exit_code(2);

    let listed = walk.done("task list --ended --key olga.pem").await;
    assert!(
        listed.contains("triage") && listed.contains("completed"),
        "{listed}"
    );

    // A freeze: the agent gets no more tokens, and the reason is visible.
    assert!(
        walk.done("agent show triage --key olga.pem")
            .await
            .contains("in service")
    );
    let frozen = walk
        .done("freeze agent/triage --reason INC-9 --key olga.pem")
        .await;
    assert!(frozen.contains("is frozen by entry"), "{frozen}");
    run(exec("case.read", "Case::INC-8841"))
        .await
        .exit_code(120);
    assert!(
        walk.done("agent list --key olga.pem")
            .await
            .contains("frozen (agent/triage)")
    );
    assert!(walk.done("freeze --key olga.pem").await.contains("INC-9"));
    walk.done("unfreeze agent/triage --key olga.pem").await;
    run(exec("case.read", "Case::INC-8841")).await.exit_code(0);

    // Metrics and doctor.
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

    // It stops on SIGTERM, and its journal can be verified offline.
    let pid =
        rustix::process::Pid::from_raw(i32::try_from(broker.id().expect("runs")).expect("pid"));
    rustix::process::kill_process(pid.expect("pid"), rustix::process::Signal::TERM)
        .expect("output");
    let ended = tokio::time::timeout(Duration::from_secs(60), broker.wait()).await;
    assert!(ended.expect("in time").expect("ends").success());
    assert!(
        walk.done("audit verify --data-dir data")
            .await
            .contains("verified: ")
    );
}
