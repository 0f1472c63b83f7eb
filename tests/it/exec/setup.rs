//! Setup of the `exec` tests: the real program, a served broker, and a resource server that validates every request.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use dipylon_sdk::client::ApproverClient;
use dipylon_sdk::client::vote::ReviewedCard;
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::{AccessRequestId, Narrowing, ProfileName, Secret, Verdict};
use dipylon_sdk::validator::{PresentedToken, RequiredAction, Validator};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::support::served_broker::ServedBroker;
use crate::support::{CASES, DOMAIN, IDP, disable, read_case};

/// Shell functions for the commands: `ask METHOD PATH [HEADERS] [BODY]` through the proxy, `raw TEXT` verbatim.
pub const SH: &str = r#"
url=${DIPYLON_PROXY_URL#http://}; host=${url%%/*}; base=/${url#*/}
raw() { exec 3<>"/dev/tcp/${host%:*}/${host#*:}"; printf '%b' "$1" >&3; cat <&3; exec 3>&-; echo; }
ask() { raw "$1 $base$2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: ${#4}\r\n$3\r\n$4"; }
"#;

/// A request as the resource server received it.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body_bytes: usize,
}

/// A resource server on loopback that validates every request.
pub struct ResourceServer {
    pub url: String,
    pub cases: Validator,
    pub idp: Validator,
    seen: Mutex<Vec<ReceivedRequest>>,
    /// The DPoP nonce it demands, if any.
    nonce: Option<&'static str>,
}

impl ResourceServer {
    pub async fn start(served: &ServedBroker, nonce: Option<&'static str>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let resource = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().expect("address")),
            cases: served.validator("cases", CASES).await,
            idp: served.validator("idp", IDP).await,
            seen: Mutex::default(),
            nonce,
        });
        let router = Router::new()
            .fallback(any(Self::serve))
            .with_state(resource.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        resource
    }

    async fn serve(State(at): State<Arc<Self>>, request: Request<Body>) -> Response {
        let (head, body) = request.into_parts();
        let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
        at.seen.lock().expect("seen").push(ReceivedRequest {
            method: head.method.to_string(),
            path: head.uri.to_string(),
            headers: head.headers.clone(),
            body_bytes: body.len(),
        });
        let one = |name: &str| {
            let mut all = head.headers.get_all(name).iter();
            let first = all.next().and_then(|value| value.to_str().ok());
            first.filter(|_| all.next().is_none()).map(str::to_owned)
        };
        let path = head.uri.path().to_owned();
        let (validator, action) = match path.as_str() {
            "/cases/INC-8841" | "/redirect" | "/upload" => (&at.cases, read_case()),
            "/accounts/ann/disable" => (&at.idp, disable("ann")),
            _ => return StatusCode::NOT_FOUND.into_response(),
        };
        let proof = one("dpop").unwrap_or_default();
        if let Some(nonce) = at.nonce
            && claim(&proof, "nonce") != nonce
        {
            let asks = "DPoP error=\"use_dpop_nonce\"";
            let headers = [("www-authenticate", asks), ("dpop-nonce", nonce)];
            return (StatusCode::UNAUTHORIZED, headers).into_response();
        }
        // The validator checks only its own nonces: this server's nonce is checked above.
        let authorization = one("authorization").unwrap_or_default();
        let Some(token) = authorization.strip_prefix("DPoP ") else {
            return StatusCode::UNAUTHORIZED.into_response();
        };
        let url = format!("{}{path}", at.url);
        let presented = PresentedToken {
            token,
            dpop: Some(&proof),
            method: head.method.as_str(),
            url: &url,
            openings: &BTreeMap::new(),
        };
        let require = RequiredAction {
            action: action.name,
            target: action.target,
            parameters: Some(action.parameters),
        };
        let admitted = match validator.check(&presented, &require).await {
            Ok(admitted) => admitted,
            Err(error) => {
                let status = StatusCode::from_u16(error.status()).expect("a status");
                return (status, error.to_string()).into_response();
            }
        };
        let use_id = format!("use-{}", crate::support::rand_u64());
        if let Err(error) = validator.consume(admitted, &use_id).await {
            return (StatusCode::UNAUTHORIZED, error.to_string()).into_response();
        }
        match path.as_str() {
            "/redirect" => {
                let away = [("location", "http://127.0.0.1:9/away")];
                (StatusCode::FOUND, away).into_response()
            }
            "/upload" => format!("took {} bytes", body.len()).into_response(),
            _ => {
                let mut response = "done by the resource server".into_response();
                let headers = response.headers_mut();
                headers.insert("set-cookie", "session=s3cr3t".parse().expect("value"));
                headers.insert("dpop-nonce", "next-nonce".parse().expect("value"));
                response
            }
        }
    }

    pub fn seen(&self) -> Vec<ReceivedRequest> {
        self.seen.lock().expect("seen").clone()
    }

    /// The token last received.
    pub fn token(&self) -> String {
        let seen = self.seen();
        let shown = seen.last().expect("a request").headers["authorization"].clone();
        let shown = shown.to_str().expect("text").to_owned();
        shown.strip_prefix("DPoP ").expect("a token").to_owned()
    }
}

pub fn claim(jwt: &str, name: &str) -> Value {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let payload = jwt.split('.').nth(1).unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    let claims: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    claims[name].clone()
}

pub struct ExecSetup {
    pub served: ServedBroker,
    pub resource: Arc<ResourceServer>,
    pub home: tempfile::TempDir,
}

pub const READ: [&str; 6] = [
    "--action",
    "case.read",
    "--target",
    "Case::INC-8841",
    "--audience",
    CASES,
];
pub const DISABLE: [&str; 8] = [
    "--action",
    "account.disable",
    "--target",
    "Account::ann",
    "--param",
    "end_sessions=true",
    "--audience",
    IDP,
];

impl ExecSetup {
    pub async fn start() -> Self {
        Self::start_with_nonce(None).await
    }

    pub async fn start_with_nonce(nonce: Option<&'static str>) -> Self {
        Self::start_at(ServedBroker::start().await, nonce).await
    }

    /// With another `people.toml`.
    pub async fn start_with_people(change: impl FnOnce(&str) -> String) -> Self {
        let served = ServedBroker::start_with_policy(|files| {
            let people = files.get_mut("people.toml").expect("people");
            *people = change(people);
        });
        Self::start_at(served.await, None).await
    }

    pub async fn start_at(served: ServedBroker, nonce: Option<&'static str>) -> Self {
        let resource = ResourceServer::start(&served, nonce).await;
        let setup = Self {
            served,
            resource,
            home: tempfile::tempdir().expect("dir"),
        };
        std::fs::write(setup.svid(), setup.evidence("triage").expose_secret()).expect("evidence");
        setup
    }

    pub fn evidence(&self, agent: &str) -> Secret {
        let id = format!("spiffe://{DOMAIN}/agent/{agent}");
        let now = Clock::system().now();
        self.served.env.svid_for(&self.served.url, &id, now, 3_600)
    }

    pub fn svid(&self) -> PathBuf {
        self.home.path().join("svid")
    }

    /// The program with a clean environment.
    pub fn dipylon(&self) -> Command {
        self.dipylon_in(env!("CARGO_BIN_EXE_dipylon"))
    }

    /// Another program in the same environment.
    pub fn dipylon_in(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("SPIFFE_ENDPOINT_SOCKET")
            .env("HOME", self.home.path())
            .env("XDG_STATE_HOME", self.home.path().join("state"))
            .env("TMPDIR", self.home.path())
            .env("DIPYLON_URL", &self.served.url)
            .env("DIPYLON_KEY", "/nowhere")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        let mut program = self.dipylon();
        program
            .args(["exec", "--evidence"])
            .arg(self.svid())
            .args(options);
        if !options.contains(&"--audience-url") {
            program.args(["--audience-url", &self.resource.url]);
        }
        program.arg("--").args(command);
        program
    }

    /// Runs a bash script as the command.
    pub async fn script(&self, options: &[&str], script: &str) -> CommandOutput {
        let script = format!("{SH}\n{script}");
        CommandOutput::new(
            self.exec(options, &["bash", "-c", &script])
                .output()
                .await
                .expect("runs"),
        )
    }

    pub async fn decide(&self, verdict: Verdict) -> AccessRequestId {
        decide(&self.served.approver("maria"), verdict).await
    }

    /// Whether introspection says that the token is active.
    pub async fn is_active(&self, audience: &Validator, token: &str) -> bool {
        audience.introspect(token).await.expect("may ask").active
    }

    /// The number of journal entries that contain this text.
    pub fn entries(&self, kind: &str) -> usize {
        let mut count = 0;
        dipylon::journal::JournalReader::open(&self.served.dir)
            .and_then(|journal| {
                journal.read_all(|stored| {
                    count += usize::from(stored.text.contains(kind));
                    Ok(())
                })
            })
            .expect("readable");
        count
    }
}

/// Votes on the first access request that is pending.
pub async fn decide(maria: &ApproverClient, verdict: Verdict) -> AccessRequestId {
    for _ in 0..1_500 {
        if let Some(request) = maria
            .access_requests()
            .await
            .unwrap_or_default()
            .into_iter()
            .next()
        {
            let id = AccessRequestId::parse(&request.access_request_id).expect("id");
            let card = maria.card(id).await.expect("card");
            let realm = dipylon_sdk::model::Realm::parse("test").expect("realm");
            let profile = ProfileName::parse("one-security").expect("profile");
            let narrowing = Narrowing::default();
            let seen = ReviewedCard {
                card: &card,
                realm: &realm,
                profile: &profile,
                verdict,
                narrowing,
                comment: None,
            };
            maria.vote(&seen).await.expect("votes");
            return id;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no access request is pending");
}

/// Output and exit code of a finished program.
pub struct CommandOutput {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl CommandOutput {
    pub fn new(output: Output) -> Self {
        let output = Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        assert!(
            !output.err.contains("eyJ"),
            "a token or proof: {}",
            output.err
        );
        output
    }

    pub fn stderr_contains(&self, what: &str) -> &Self {
        assert!(self.err.contains(what), "{what}: {}", self.err);
        self
    }

    pub fn exit_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{} {}", self.out, self.err);
        self
    }

    pub fn stdout_contains(&self, what: &str) -> &Self {
        assert!(self.out.contains(what), "{what}: {} {}", self.out, self.err);
        self
    }
}

/// A running program whose command prints when it is ready.
pub struct RunningCommand {
    pub child: Child,
    pub out: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl RunningCommand {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("runs");
        let out = BufReader::new(child.stdout.take().expect("stdout")).lines();
        Self { child, out }
    }

    pub async fn stdout_line(&mut self) -> String {
        let next = tokio::time::timeout(Duration::from_secs(60), self.out.next_line());
        next.await.expect("in time").expect("text").expect("a line")
    }

    /// The next line on stderr that contains this text.
    pub async fn stderr_line(&mut self, what: &str) -> String {
        let mut err = BufReader::new(self.child.stderr.as_mut().expect("stderr"));
        let reading = async {
            loop {
                let mut line = String::new();
                assert!(err.read_line(&mut line).await.expect("text") > 0, "{what}");
                if line.contains(what) {
                    return line;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reading)
            .await
            .expect("in time")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("runs")).expect("a pid");
        kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("signalled");
    }

    pub async fn end(mut self) -> CommandOutput {
        let mut rest = String::new();
        let reading = async {
            while let Ok(Some(line)) = self.out.next_line().await {
                rest.push_str(&line);
                rest.push('\n');
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reading)
            .await
            .expect("in time");
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait_with_output());
        let mut output = CommandOutput::new(ended.await.expect("in time").expect("ends"));
        output.out = rest;
        output
    }
}
