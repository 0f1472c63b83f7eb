//! The files of `examples/envoy` with a real Envoy: in front of a broker, and in front of a resource server.
//!
//! Where no Envoy is installed (`.ci/envoy-tools`) these tests print that they are skipped; with `DIPYLON_REQUIRE=envoy` they
//! fail.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dipylon_sdk::client::{
    AgentClient, ConnectOptions, Endpoint, EvidenceSource, OpenTaskRequest, TaskHandle,
    TokenOutcome,
};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::TaskOutcome;

use crate::support::certificate_authority::Authority;
use crate::support::cli_deployment::{CliDeployment, RunningBroker};
use crate::support::requirement::skip_without;
use crate::support::served_broker::token_request;
use crate::support::wait::in_time;
use crate::support::{CASES, DOMAIN, disable, read_case};

/// The binary; `None` where it is not installed, and the test is skipped.
fn envoy() -> Option<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/envoy");
    if file.exists() {
        return Some(file);
    }
    let missing = format!("no {}: .ci/envoy-tools installs it", file.display());
    skip_without("envoy", missing);
    None
}

/// A running Envoy, killed on drop.
struct Envoy {
    child: Child,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Envoy {
    /// Starts Envoy with this configuration, and waits until it listens.
    fn start(binary: &Path, site: &CliDeployment, text: &str, port: u16) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("envoy{}", NEXT.fetch_add(1, Ordering::Relaxed));
        site.write(&format!("{name}.yaml"), text);
        let log = std::fs::File::create(site.path(&format!("{name}.log"))).expect("file");
        let child = Command::new(binary)
            .arg("-c")
            .arg(site.path(&format!("{name}.yaml")))
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "-l",
                "warning",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        let mut envoy = Self { child };
        for _ in 0..3_000 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return envoy;
            }
            let ended = envoy.child.try_wait().expect("asked");
            let said = || std::fs::read_to_string(site.path(&format!("{name}.log")));
            assert!(ended.is_none(), "{:?}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("Envoy does not listen")
    }
}

fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    free.local_addr().expect("address").port()
}

/// A file of the example with other addresses.
fn example(name: &str, changes: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/envoy");
    let mut text = std::fs::read_to_string(path.join(name)).expect("example");
    for (from, to) in changes {
        assert!(text.contains(from), "{name} has no {from}");
        text = text.replace(from, to);
    }
    text
}

/// A broker whose clients reach it through Envoy at `https://localhost:PORT`.
struct Proxied {
    site: CliDeployment,
    url: String,
    port: u16,
    _running: RunningBroker,
}

impl Proxied {
    fn start() -> Self {
        let site = CliDeployment::new();
        let port = free_port();
        let url = format!("https://localhost:{port}");
        let config = site.config().replace(
            &format!("external_url = \"{}\"", site.url),
            &format!("external_url = \"{url}\""),
        );
        assert!(config.contains(&url), "{config}");
        site.write(
            "dipylon.toml",
            &format!("policy = \"policy\"\nunix_socket = \"dipylon.sock\"\n{config}"),
        );
        let authority = Authority::new();
        let (certificate, key) = authority.certify();
        site.write("ca.pem", &authority.pem);
        site.write("tls.crt", &certificate);
        site.write("tls.key", &key);
        let running = site.serve();
        Self {
            site,
            url,
            port,
            _running: running,
        }
    }

    /// The example with this deployment's addresses, and more changes.
    fn envoy(&self, binary: &Path, more: &[(&str, &str)]) -> Envoy {
        let (listen, broker) = (
            format!("address: 127.0.0.1, port_value: {}", self.port),
            format!("port_value: {}", self.site.port),
        );
        let path = |name: &str| self.site.path(name).display().to_string();
        let (certificate, key, socket) = (path("tls.crt"), path("tls.key"), path("dipylon.sock"));
        let mut text = example(
            "envoy.yaml",
            &[
                ("address: 0.0.0.0, port_value: 443", &listen),
                ("port_value: 7700", &broker),
                ("/etc/envoy/tls.crt", &certificate),
                ("/etc/envoy/tls.key", &key),
                ("/run/dipylon/dipylon.sock", &socket),
            ],
        );
        for (from, to) in more {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        Envoy::start(binary, &self.site, &text, self.port)
    }

    fn agent(&self) -> AgentClient {
        let options = ConnectOptions {
            ca: Some(self.site.path("ca.pem")),
            ..ConnectOptions::default()
        };
        let endpoint = Endpoint::connect_with(&self.url, &options).expect("endpoint");
        let id = format!("spiffe://{DOMAIN}/agent/triage");
        let now = Clock::system().now();
        let svid = self.site.env.svid_for(&self.url, &id, now, 3_600);
        AgentClient::new(endpoint.with_retry_ms(0), EvidenceSource::Fixed(svid), None)
    }

    async fn task(&self) -> Result<TaskHandle, dipylon_sdk::client::Error> {
        let order = OpenTaskRequest {
            purpose: "contain INC-8841".to_owned(),
            max_duration_s: 600,
            idempotency_key: None,
            heartbeat_s: None,
        };
        in_time("a task", self.agent().open_task(&order)).await
    }

    /// `doctor`, with a stream held for this long at most.
    fn doctor(&self, stream_for: &str) -> (i32, String) {
        let args = [
            "doctor",
            "--config",
            "dipylon.toml",
            "--ca",
            "ca.pem",
            "--stream-for",
            stream_for,
        ];
        let (code, out, error) = self.site.run(&args);
        (code, format!("{out}{error}"))
    }

    fn entries(&self) -> u64 {
        let (code, out, error) =
            self.site
                .run(&["audit", "verify", "--data-dir", "data", "--json"]);
        assert_eq!(code, 0, "{error}");
        let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        json["entries"].as_u64().expect("a number")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_in_front_of_a_broker() {
    let Some(binary) = envoy() else { return };
    let proxied = Proxied::start();
    for more in [
        &[][..],
        &[("cluster: broker  ", "cluster: broker_socket  ")],
    ] {
        let _envoy = proxied.envoy(&binary, more);
        let task = proxied.task().await.expect("opens");
        let read = token_request(read_case(), "k-read");
        let outcome = in_time("a token", task.request_token(&read)).await;
        assert!(
            matches!(outcome.expect("answered"), TokenOutcome::Token(_)),
            "{more:?}"
        );
        let asked = token_request(disable("ann"), "k-disable");
        let outcome = in_time("an answer", task.request_token(&asked)).await;
        let TokenOutcome::Pending(pending) = outcome.expect("answered") else {
            panic!("expected a pending request")
        };
        let mut watch = task.watch(pending.access_request_id());
        let first = in_time("a status", watch.next()).await.expect("watches");
        assert!(first.is_some(), "{more:?}");
        in_time("the end", task.complete(TaskOutcome::Succeeded))
            .await
            .expect("completes");
    }
    let _envoy = proxied.envoy(&binary, &[]);
    let (code, out) = proxied.doctor("1s");
    assert_eq!(code, 0, "{out}");
    for expected in [
        "is served by the broker of this journal",
        "over HTTP/2",
        "lasted 1 s",
        "behind a TLS proxy",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_finds_a_route_timeout_and_an_http1_upstream() {
    let Some(binary) = envoy() else { return };
    let proxied = Proxied::start();
    {
        let _envoy = proxied.envoy(&binary, &[("timeout: 0s  ", "timeout: 1s  ")]);
        let (code, out) = proxied.doctor("60s");
        assert_eq!(code, 1, "{out}");
        assert!(out.contains("was cut: it ended after "), "{out}");
    }
    let _envoy = proxied.envoy(
        &binary,
        &[("http2_protocol_options: {}", "http_protocol_options: {}")],
    );
    let (code, out) = proxied.doctor("1s");
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("gRPC does not come through"), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_over_an_http1_upstream_is_refused_before_it_acts() {
    let Some(binary) = envoy() else { return };
    let proxied = Proxied::start();
    let _envoy = proxied.envoy(
        &binary,
        &[("http2_protocol_options: {}", "http_protocol_options: {}")],
    );
    let before = proxied.entries();
    let error = proxied.task().await.map(drop).expect_err("refused");
    assert_eq!(proxied.entries(), before, "{error}");
}

/// The status of a GET request with this `Authorization`.
fn status(port: u16, authorization: Option<&str>) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    let header = authorization.map_or(String::new(), |value| format!("authorization: {value}\r\n"));
    let request =
        format!("GET /cases/INC-8841 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_checks_tokens_for_a_resource_server() {
    let Some(binary) = envoy() else { return };
    let proxied = Proxied::start();
    let _front = proxied.envoy(&binary, &[]);
    let resource = TcpListener::bind("127.0.0.1:0").expect("a port");
    let behind = resource.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in resource.incoming() {
            let Ok(mut stream) = stream else { return };
            let _read = stream.read(&mut [0; 16_384]);
            let _sent = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    let port = free_port();
    let (listen, upstream, broker) = (
        format!("port_value: {port}"),
        format!("port_value: {behind}"),
        format!("port_value: {}", proxied.site.port),
    );
    let text = example(
        "resource-server.yaml",
        &[
            ("port_value: 8080", &listen),
            ("port_value: 9000", &upstream),
            ("port_value: 7700", &broker),
            ("https://dipylon.soc.example", &proxied.url),
            ("https://cases.soc.example", CASES),
        ],
    );
    let _envoy = Envoy::start(&binary, &proxied.site, &text, port);
    let task = proxied.task().await.expect("opens");
    let read = token_request(read_case(), "k-read");
    let outcome = in_time("a token", task.request_token(&read))
        .await
        .expect("answered");
    let TokenOutcome::Token(token) = outcome else {
        panic!("expected a token")
    };
    let token = token.jwt().expose_secret().to_owned();
    assert_eq!(status(port, None), 401);
    assert_eq!(status(port, Some(&format!("Bearer {token}"))), 401);
    let (signed, signature) = token.rsplit_once('.').expect("a signature");
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("DPoP {signed}.{other}{}", &signature[1..]);
    assert_eq!(status(port, Some(&forged)), 401);
    assert_eq!(status(port, Some(&format!("DPoP {token}"))), 200);
    // What it does not check: the token of a completed task passes.
    in_time("the end", task.complete(TaskOutcome::Succeeded))
        .await
        .expect("completes");
    assert_eq!(status(port, Some(&format!("DPoP {token}"))), 200);
}
