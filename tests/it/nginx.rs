//! A real nginx in front of the broker: the example's configuration carries gRPC, and `auth_request` pointed at a gRPC method
//! lets nothing through. Without nginx the tests print that they are skipped; with `DIPYLON_REQUIRE=nginx` they fail.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use dipylon_sdk::client::{ConnectOptions, Endpoint};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::certificate_authority::{Authority, replace_file};
use crate::support::raw_http::{http1, raw_http1};
use crate::support::requirement::skip_without;
use crate::support::served_broker::ServedBroker;
use crate::support::wait::until;

const NGINX: &str = "/usr/sbin/nginx";

/// Whether nginx is not installed, so that the test is skipped.
fn is_skipped() -> bool {
    if Path::new(NGINX).exists() {
        return false;
    }
    skip_without("nginx", format_args!("there is no {NGINX}"));
    true
}

/// A running nginx; killed when dropped.
struct Nginx {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts nginx with this configuration, and waits until it listens. `DIR` in it is a fresh directory.
    async fn start(dir: tempfile::TempDir, configuration: &str, listens: SocketAddr) -> Self {
        let root = dir.path().to_str().expect("text").to_owned();
        let globals = format!(
            "daemon off;\nmaster_process off;\npid {root}/pid;\nerror_log {root}/error.log;\n"
        );
        // Everything that nginx writes stays in the directory.
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("    {name}_temp_path {root}/{name};\n"))
            .concat();
        let text = configuration.replace("DIR", &root).replacen(
            "http {",
            &format!("http {{\n    access_log off;\n{paths}"),
            1,
        );
        let path = dir.path().join("nginx.conf");
        std::fs::write(&path, format!("{globals}{text}")).expect("written");
        let child = Command::new(NGINX)
            .args(["-p", &root, "-c"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        until("nginx listens", || {
            std::net::TcpStream::connect(listens).is_ok()
        })
        .await;
        Self { child, _dir: dir }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A loopback address that is free now.
fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.local_addr().expect("address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_request_at_a_method_lets_nothing_through() {
    if is_skipped() {
        return;
    }
    let s = ServedBroker::start().await;
    let broker = s.url.trim_start_matches("http://");
    let address = free_address();
    let locations: String = dipylon_sdk::proto::methods()
        .iter()
        .map(String::as_str)
        .chain([
            "grpc.health.v1.Health/Check",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ])
        .enumerate()
        .map(|(n, method)| {
            // Each way that a request can be passed on.
            let versions = ["1.0", "1.1"].map(|version| {
                let name = format!("{n}-{}", version.replace('.', ""));
                format!(
                    "location /guarded/{name} {{ auth_request /ask/{name}; return 200 \"secret\"; }}\n\
                     location = /content/{name} {{ auth_request /ask/{name}; try_files /secret =404; }}\n\
                     location = /ask/{name} {{ internal; proxy_http_version {version}; \
                     proxy_pass http://{broker}/{method}; proxy_pass_request_body off; \
                     proxy_set_header Content-Length \"\"; }}\n"
                )
            });
            versions.concat()
        })
        .collect();
    let configuration = format!(
        "events {{}}\nhttp {{\nserver {{\nlisten {address};\nroot DIR/www;\n\
         location = /open {{ try_files /secret =404; }}\n{locations}}}\n}}\n"
    );
    let dir = tempfile::tempdir().expect("dir");
    std::fs::create_dir(dir.path().join("www")).expect("made");
    std::fs::write(dir.path().join("www/secret"), "secret").expect("written");
    let _nginx = Nginx::start(dir, &configuration, address).await;
    let url = format!("http://{address}");
    let open = http1(&url, "GET", "/open", &[], &[]).await;
    assert_eq!((open.status, open.body.as_slice()), (200, &b"secret"[..]));
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    for n in 0..dipylon_sdk::proto::methods().len() + 2 {
        for version in ["10", "11"] {
            for (method, headers) in [("GET", &[][..]), ("GET", &grpc), ("POST", &grpc)] {
                let path = format!("/content/{n}-{version}");
                let answer = http1(&url, method, &path, headers, &[]).await;
                let what = format!("{method} {path} {headers:?}");
                assert_eq!(answer.status, 500, "{what}");
                assert!(!answer.body.starts_with(b"secret"), "{what}");
            }
        }
    }
}

/// The example's configuration with replacements, each of which must be of something in it.
fn example(replaced: &[(&str, String)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/nginx/nginx.conf");
    let text = std::fs::read_to_string(path).expect("readable");
    replaced.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

/// Answers each request with a status and content, and notes its head.
async fn respond_to_all(answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("address");
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            let head = String::from_utf8(head).expect("text");
            noted.lock().expect("whole").push(head);
            let answer = format!("HTTP/1.1 {answer}");
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
    });
    (address, heads)
}

/// The URL that a proof must be for is the configuration's, whatever `Host` the client sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_does_not_choose_the_url_of_its_proof() {
    if is_skipped() {
        return;
    }
    let (authorizer, asked) = respond_to_all("204 No Content\r\n\r\n").await;
    let (service, served) = respond_to_all("200 OK\r\ncontent-length: 4\r\n\r\ncase").await;
    let (broker, cases) = (free_address(), free_address());
    let dir = tempfile::tempdir().expect("dir");
    let (certificate, key) = Authority::new().certify();
    replace_file(&dir.path().join("tls.crt"), &certificate, 0o644);
    replace_file(&dir.path().join("tls.key"), &key, 0o600);
    let configuration = example(&[
        ("listen              443 ", format!("listen {broker} ")),
        // Without TLS: only the hosts matter here.
        ("listen              8443 ssl", format!("listen {cases}")),
        ("/etc/dipylon/", "DIR/".to_owned()),
        ("127.0.0.1:8081", service.to_string()),
        ("127.0.0.1:8082", authorizer.to_string()),
    ]);
    let _nginx = Nginx::start(dir, &configuration, cases).await;
    let send = async |target: &str, host: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        raw_http1(&cases.to_string(), head.as_bytes()).await
    };
    for (target, host) in [
        ("/case/1", "evil.example"),
        ("/case/1", "evil.example:443"),
        ("/case/1", "cases.soc.example.evil.example"),
        ("http://evil.example/case/1", "cases.soc.example"),
    ] {
        let answer = send(target, host).await;
        assert_eq!(answer.status, 421, "{target} {host}");
    }
    let seen = |heads: &Mutex<Vec<String>>| heads.lock().expect("whole").concat();
    assert_eq!((seen(&asked), seen(&served)), Default::default());
    for (target, host) in [
        ("/case/1?x=1", "cases.soc.example"),
        ("/case/1?x=1", "CASES.soc.example:1"),
        ("http://cases.soc.example:99/case/1?x=1", "evil.example"),
    ] {
        let answer = send(target, host).await;
        assert_eq!(answer.status, 200, "{target} {host}");
        let head = asked.lock().expect("whole").pop().expect("asked");
        let url = "X-Original-Url: https://cases.soc.example/case/1?x=1\r\n";
        assert!(head.contains(url), "{target} {host}: {head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn example_configuration_carries_grpc() {
    if is_skipped() {
        return;
    }
    let s = ServedBroker::start().await;
    let address = free_address();
    let other = free_address();
    let dir = tempfile::tempdir().expect("dir");
    let authority = Authority::new();
    let (certificate, key) = authority.certify();
    replace_file(&dir.path().join("ca.pem"), &authority.pem, 0o644);
    replace_file(&dir.path().join("tls.crt"), &certificate, 0o644);
    replace_file(&dir.path().join("tls.key"), &key, 0o600);
    let configuration = example(&[
        ("listen              443 ", format!("listen {address} ")),
        ("listen              8443 ", format!("listen {other} ")),
        // The tests reach the broker by its address.
        ("broker.soc.example;", format!("{};", address.ip())),
        ("/etc/dipylon/", "DIR/".to_owned()),
        (
            "127.0.0.1:7700",
            s.url.trim_start_matches("http://").to_owned(),
        ),
    ]);
    let reach = ConnectOptions {
        ca: Some(dir.path().join("ca.pem")),
        socket: None,
        allow_plain_http: false,
    };
    let _nginx = Nginx::start(dir, &configuration, address).await;
    // The refusal of the broker, with its details, has come through.
    let endpoint = Endpoint::connect_with(&format!("https://{address}"), &reach);
    let endpoint = endpoint.expect("endpoint").with_retry_ms(0);
    let key = Arc::new(s.env.key_of("maria"));
    let approver = dipylon_sdk::client::ApproverClient::new(endpoint, key);
    let refused = approver.access_requests().await.expect_err("another URL");
    assert!(refused.correlation().is_some(), "{refused:?}");
    // A service behind `auth_request` whose authorizer is down is closed.
    let plain = format!("GET / HTTP/1.1\r\nhost: {other}\r\nconnection: close\r\n\r\n");
    let answer = raw_http1(&other.to_string(), plain.as_bytes()).await;
    assert_eq!(answer.status, 400, "TLS alone");
}
