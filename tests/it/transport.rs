//! Transport: TLS, the Unix socket, HTTP/2 limits, deadlines, connection age. Every test uses real sockets, to a broker in
//! this process or to the real one. Waits are for events, up to a generous bound; no assertion depends on speed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Extension;
use axum::routing::get;
use bytes::Bytes;
use dipylon::broker::BrokerSettings;
use dipylon::config::ConnectionLimits;
use dipylon::journal::FaultInjection;
use dipylon::serve::connection_limits::ConnectionStats;
use dipylon::serve::peer::{Peer, PeerSource};
use dipylon::serve::tls::Tls;
use dipylon::serve::unix::GuardedUnixListener;
use dipylon::serve::{self, ServerConfig};
use dipylon_sdk::client::{
    AgentClient, ConnectOptions, Endpoint, Error, EvidenceSource, Identity, OpenTaskRequest,
    TaskHandle, TokenOutcome,
};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;
use dipylon_sdk::validator::{Validator, ValidatorConfig};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::invariants;
use crate::support::served_broker::order;
use crate::support::{CASES, DOMAIN, TestEnvironment, disable, open_as, read_case, settings};

/// Limit for conditions that must hold eventually.
const GENEROUS: Duration = Duration::from_secs(60);

/// Waits until a condition holds; the test fails if it never does.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..GENEROUS.as_millis() / 10 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("timed out: {what}");
}

pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(GENEROUS, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out: {what}"),
    }
}

/// A certificate authority.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "test authority");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate for this host, and its key.
    pub fn certify(&self) -> (String, String) {
        self.certify_with(|_| ())
    }

    pub fn certify_with(
        &self,
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).expect("params");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }
}

pub fn put(path: &Path, text: &str, mode: u32) {
    // Written by rename, as in a careful renewal: no reader sees half a file.
    let making = path.with_extension("new");
    std::fs::write(&making, text).expect("written");
    std::fs::set_permissions(&making, std::fs::Permissions::from_mode(mode)).expect("mode");
    std::fs::rename(&making, path).expect("renamed");
}

#[derive(Default)]
pub struct TransportSetup {
    pub tls: bool,
    pub unix: bool,
    pub limits: ConnectionLimits,
}

/// A broker in this process with configurable transport.
pub struct TestServer {
    pub env: Arc<TestEnvironment>,
    pub url: String,
    pub address: SocketAddr,
    pub root: PathBuf,
    authority: Authority,
    tls: Option<Arc<Tls>>,
    pub counts: Arc<ConnectionStats>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    temp: tempfile::TempDir,
}

impl TestServer {
    pub async fn start(setup: TransportSetup) -> Self {
        let temp = tempfile::tempdir().expect("dir");
        let root = temp.path().to_owned();
        let authority = Authority::new();
        put(&root.join("ca.pem"), &authority.pem, 0o644);
        let tls = setup.tls.then(|| {
            let (certificate, key) = authority.certify();
            put(&root.join("tls.crt"), &certificate, 0o644);
            put(&root.join("tls.key"), &key, 0o600);
            Tls::read(&root.join("tls.crt"), &root.join("tls.key")).expect("a pair")
        });
        let listener = serve::listen("127.0.0.1:0".parse().expect("address"))
            .await
            .expect("listens");
        let address = listener.local_addr().expect("address");
        let scheme = if setup.tls { "https" } else { "http" };
        let url = format!("{scheme}://{address}");
        let settings = BrokerSettings {
            external_url: url.clone(),
            issuer: url.clone(),
            evidence_audience: url.clone(),
            ..settings()
        };
        let env = Arc::new(TestEnvironment::new());
        let key = SigningKey::generate().expect("key").1.to_vec();
        let broker = open_as(
            settings,
            &env,
            &root.join("data"),
            &Clock::system(),
            &key,
            FaultInjection::default(),
        )
        .await
        .expect("starts");
        let unix = setup
            .unix
            .then(|| GuardedUnixListener::bind(&root.join("dipylon.sock")).expect("bound"));
        let peer = async |Extension(peer): Extension<Peer>| format!("{peer:?}");
        let mut config = ServerConfig::from(listener);
        config.tls = tls.clone();
        config.unix = unix;
        config.limits = setup.limits;
        config.extra = axum::Router::new().route("/peer", get(peer));
        let counts = config.stats.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = serve::serve(broker, config, async move {
            let _told = stopped.await;
        });
        let server = tokio::spawn(async move { serving.await.expect("serves") });
        Self {
            env,
            url,
            address,
            root,
            authority,
            tls,
            counts,
            stop: Some(stop),
            server,
            temp,
        }
    }

    fn reach(&self) -> ConnectOptions {
        ConnectOptions {
            ca: Some(self.root.join("ca.pem")),
            socket: None,
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::connect_with(&self.url, &self.reach()).expect("endpoint")
    }

    /// An endpoint without retries.
    pub fn once(&self) -> Endpoint {
        self.endpoint().with_retry_ms(0)
    }

    pub async fn task(&self, endpoint: Endpoint) -> Result<TaskHandle, Error> {
        open(&self.env, &self.url, endpoint).await
    }

    /// Stops the broker and returns its directory.
    pub async fn stop(mut self) -> tempfile::TempDir {
        drop(self.stop.take());
        in_time("the broker stops", self.server)
            .await
            .expect("stopped");
        self.temp
    }

    /// A raw HTTP/2 connection, and how it ended.
    pub async fn raw(
        &self,
    ) -> (
        h2::client::SendRequest<Bytes>,
        JoinHandle<Result<(), h2::Error>>,
    ) {
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let (sender, connection) = h2::client::handshake(stream).await.expect("h2");
        (sender, tokio::spawn(connection))
    }

    pub fn grpc(&self, method: &str) -> http::request::Builder {
        http::Request::post(format!("{}/{method}", self.url))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
    }
}

pub async fn open(
    env: &TestEnvironment,
    url: &str,
    endpoint: Endpoint,
) -> Result<TaskHandle, Error> {
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let evidence = EvidenceSource::Fixed(env.svid_for(url, &id, Clock::system().now(), 3_600));
    let opening = OpenTaskRequest {
        purpose: "contain INC-8841".into(),
        max_duration_s: 3_600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    AgentClient::new(endpoint, evidence, None)
        .open_task(&opening)
        .await
}

fn token(outcome: Result<TokenOutcome, Error>) -> TokenId {
    match outcome {
        Ok(TokenOutcome::Token(token)) => token.jti(),
        other => panic!("not a token: {other:?}"),
    }
}

/// A complete call: both gates and an entry.
pub async fn works(task: &TaskHandle, n: u64) {
    token(
        task.request_token(&order(read_case(), &format!("honest-{n}")))
            .await,
    );
}

pub async fn http1(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    request: &str,
) -> String {
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    in_time("an answer", stream.read_to_end(&mut answer))
        .await
        .expect("read");
    String::from_utf8_lossy(&answer).into_owned()
}

pub const PEER: &str = "GET /peer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// A rustls client, to observe the broker's TLS.
fn tls_client(
    ca: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.expect("pem")).expect("root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.enable_early_data = true;
    Arc::new(config)
}

async fn shake(
    address: SocketAddr,
    config: &Arc<rustls::ClientConfig>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").expect("name");
    tokio_rustls::TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
}

/// The certificate presented to a new connection.
pub async fn shown(address: SocketAddr, ca: &str) -> Option<Digest> {
    let stream = shake(address, &tls_client(ca, &[&rustls::version::TLS13]))
        .await
        .ok()?;
    let leaf = stream.get_ref().1.peer_certificates()?.first()?.clone();
    Some(Digest::sha256(&leaf))
}

pub fn digest_of(pem: &str) -> Digest {
    Digest::sha256(&CertificateDer::from_pem_slice(pem.as_bytes()).expect("pem"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_end_to_end() {
    let site = TestServer::start(TransportSetup {
        tls: true,
        ..TransportSetup::default()
    })
    .await;
    let task = site.task(site.once()).await.expect("opens");
    let Ok(TokenOutcome::Token(given)) = task.request_token(&order(read_case(), "r-1")).await
    else {
        panic!("not a token");
    };
    // The validator fetches its keys and follows its feed over TLS too.
    let mut config = ValidatorConfig::new(
        &site.url,
        &site.url,
        Audience::parse(CASES).expect("audience"),
        Identity::Key(Arc::new(site.env.key_of("cases"))),
    );
    config.connect = site.reach();
    let cases = Validator::connect(config.clone()).await.expect("connects");
    assert!(
        cases
            .introspect(given.jwt().expose_secret())
            .await
            .expect("asked")
            .active
    );

    // Another authority is not trusted, whether it comes from a file or the system.
    put(&site.root.join("other.pem"), &Authority::new().pem, 0o644);
    for ca in [Some(site.root.join("other.pem")), None] {
        let reach = ConnectOptions { ca, socket: None };
        let stranger = match Endpoint::connect_with(&site.url, &reach) {
            Ok(endpoint) => endpoint.with_retry_ms(0),
            // A system without authorities trusts no certificate.
            Err(error) => {
                assert!(
                    matches!(error, Error::Trust(_)) && reach.ca.is_none(),
                    "{error}"
                );
                continue;
            }
        };
        match site.task(stranger).await {
            Err(Error::Unreachable { cause, .. }) => {
                assert!(cause.contains("certificate"), "{cause}");
            }
            other => panic!("{other:?}"),
        }
        config.connect = reach;
        assert!(Validator::connect(config.clone()).await.is_err());
    }
    // Plain HTTP to the TLS port gets no HTTP response, and does no harm.
    let plain = site.url.replace("https://", "http://");
    let endpoint = Endpoint::connect(&plain)
        .expect("endpoint")
        .with_retry_ms(0);
    assert!(matches!(
        site.task(endpoint).await,
        Err(Error::Unreachable { .. })
    ));
    let mut stream = TcpStream::connect(site.address).await.expect("connects");
    let answer = http1(&mut stream, PEER).await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    // TLS 1.2 is refused.
    let old = tls_client(&site.authority.pem, &[&rustls::version::TLS12]);
    assert!(shake(site.address, &old).await.is_err());
    until("all of it was counted", || {
        site.counts.handshakes_failed.load(Ordering::Relaxed) >= 4
    })
    .await;
    works(&task, 1).await;

    // No session resumption: each connection is a full handshake.
    let config = tls_client(&site.authority.pem, &[&rustls::version::TLS13]);
    for _ in 0..3 {
        let mut stream = shake(site.address, &config).await.expect("shaken");
        let answer = http1(&mut stream, PEER).await;
        assert!(answer.contains("tls: true"), "{answer}");
        let seen = stream.get_ref().1;
        assert_eq!(seen.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(seen.tls13_tickets_received(), 0);
        assert_eq!(seen.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_rotation() {
    let site = TestServer::start(TransportSetup {
        tls: true,
        ..TransportSetup::default()
    })
    .await;
    let ca = site.authority.pem.clone();
    let tls = site.tls.clone().expect("tls");
    let first = shown(site.address, &ca).await.expect("shown");
    assert_eq!(tls.status().fingerprint, first);
    let task = site.task(site.once()).await.expect("opens");

    let (certificate, key) = site.authority.certify();
    put(&site.root.join("tls.key"), &key, 0o600);
    put(&site.root.join("tls.crt"), &certificate, 0o644);
    until("the new one is in force", || {
        tls.status().fingerprint == digest_of(&certificate)
    })
    .await;
    assert_eq!(
        shown(site.address, &ca).await,
        Some(digest_of(&certificate))
    );
    // Open connections continue.
    works(&task, 1).await;

    put(&site.root.join("tls.crt"), "garbage", 0o644);
    until("the broken certificate is reported", || {
        tls.status().last_error.is_some()
    })
    .await;
    assert_eq!(
        shown(site.address, &ca).await,
        Some(digest_of(&certificate))
    );
    put(&site.root.join("tls.crt"), &certificate, 0o644);
    until("the error is cleared", || tls.status().last_error.is_none()).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_listener() {
    let site = TestServer::start(TransportSetup {
        tls: true,
        unix: true,
        ..TransportSetup::default()
    })
    .await;
    let path = site.root.join("dipylon.sock");
    let reach = ConnectOptions {
        ca: None,
        socket: Some(path.clone()),
    };
    let endpoint = Endpoint::connect_with(&site.url, &reach).expect("endpoint");
    let task = site.task(endpoint.with_retry_ms(0)).await.expect("opens");
    works(&task, 1).await;
    let mut config = ValidatorConfig::new(
        &site.url,
        &site.url,
        Audience::parse(CASES).expect("audience"),
        Identity::Key(Arc::new(site.env.key_of("cases"))),
    );
    config.connect = reach;
    Validator::connect(config).await.expect("connects");

    let mut stream = tokio::net::UnixStream::connect(&path)
        .await
        .expect("connects");
    let uid = rustix::process::geteuid().as_raw();
    let peer = Peer {
        source: PeerSource::Unix { uid },
        tls: false,
    };
    let answer = http1(&mut stream, PEER).await;
    assert!(answer.ends_with(&format!("{peer:?}")), "{answer}");
    // The same callers, the same refusals: the socket gives no identity.
    let mut stream = tokio::net::UnixStream::connect(&path)
        .await
        .expect("connects");
    let answer = http1(
        &mut stream,
        "POST /dipylon.v1.GovernanceService/SuspendAgent HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/grpc\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0",
    )
    .await;
    assert!(!answer.contains("grpc-status: 0"), "{answer}");
    let left = site.stop().await;
    assert!(left.path().join("data").exists());
    assert!(!path.exists(), "unlinked at the stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_beyond_max_concurrent_streams_queue() {
    let site = TestServer::start(TransportSetup::default()).await;
    let task = Arc::new(site.task(site.once()).await.expect("opens"));
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..200 {
        let task = task.clone();
        calls.spawn(async move { works(&task, n).await });
    }
    while let Some(call) = in_time("an answer", calls.join_next()).await {
        call.expect("answered");
    }
    assert_eq!(site.counts.accepted.load(Ordering::Relaxed), 1);
    // The limit in the broker's SETTINGS.
    let (sender, _connection) = site.raw().await;
    let mut sender = sender.ready().await.expect("ready");
    let request = http::Request::get(format!("{}/livez", site.url))
        .body(())
        .expect("request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    answer.await.expect("answered");
    assert_eq!(sender.current_max_send_streams(), 64);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_requests_are_rejected() {
    let site = TestServer::start(TransportSetup::default()).await;
    let task = site.task(site.once()).await.expect("opens");
    let large = "x".repeat(20_000);
    let (mut sender, _connection) = site.raw().await;
    let request = site
        .grpc("dipylon.v1.TaskService/OpenTask")
        .header("x-large", &large)
        .body(())
        .expect("request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    match in_time("an answer", answer).await {
        Ok(answer) => assert_eq!(answer.status(), 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    let mut stream = TcpStream::connect(site.address).await.expect("connects");
    let answer = http1(
        &mut stream,
        &format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-large: {large}\r\n\r\n"),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    // A message of more than 64 KiB: refused by its length prefix, before it arrives.
    let (mut sender, _connection) = site.raw().await;
    let request = site
        .grpc("dipylon.v1.TaskService/OpenTask")
        .body(())
        .expect("request");
    let (answer, mut body) = sender.send_request(request, false).expect("sent");
    let length = u32::try_from(serve::MESSAGE_BYTES_MAX + 1).expect("small");
    let head = [&[0][..], &length.to_be_bytes()].concat();
    body.send_data(head.into(), false).expect("sent");
    let answer = in_time("an answer", answer).await.expect("answered");
    // OUT_OF_RANGE, tonic's code.
    assert_eq!(answer.headers()["grpc-status"], "11");
    works(&task, 1).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_exceeded() {
    let site = TestServer::start(TransportSetup::default()).await;
    let (sender, _connection) = site.raw().await;
    // The message never arrives in full, and the caller set a timeout.
    for method in [
        "dipylon.v1.TaskService/OpenTask",
        "dipylon.v1.TokenService/Introspect",
    ] {
        let mut sender = sender.clone().ready().await.expect("ready");
        let request = site
            .grpc(method)
            .header("grpc-timeout", "300m")
            .body(())
            .expect("request");
        let (answer, mut body) = sender.send_request(request, false).expect("sent");
        body.send_data(Bytes::from_static(b"\0\0\0"), false)
            .expect("sent");
        let answer = in_time("an answer", answer).await.expect("answered");
        assert_eq!(answer.headers()["grpc-status"], "4", "{method}");
        let message = answer.headers()["grpc-message"].to_str().expect("text");
        assert!(message.starts_with("the%20call"), "{message}");
    }
    // Without the caller's timeout the broker's own limit holds.
    let mut sender = sender.ready().await.expect("ready");
    let request = site
        .grpc("dipylon.v1.TaskService/OpenTask")
        .body(())
        .expect("request");
    let (answer, mut body) = sender.send_request(request, false).expect("sent");
    body.send_data(Bytes::from_static(b"\0\0\0"), false)
        .expect("sent");
    let answer = in_time("an answer", answer).await.expect("answered");
    assert_eq!(answer.headers()["grpc-status"], "4");
    assert_eq!(
        answer.headers()["grpc-message"],
        "the%20message%20did%20not%20arrive%20in%20time;%20send%20it%20again"
    );
    // A stream ends at the caller's deadline, too.
    let request = site
        .grpc("grpc.health.v1.Health/Watch")
        .header("grpc-timeout", "300m");
    let status = in_time("the stream ends", watch_health(sender, request)).await;
    assert_eq!(status, "4");
    site.stop().await;
}

/// Watches the health service until the stream ends; the status it ends with.
async fn watch_health(
    sender: h2::client::SendRequest<Bytes>,
    request: http::request::Builder,
) -> String {
    let mut sender = sender.ready().await.expect("ready");
    let request = request.body(()).expect("request");
    let (answer, mut body) = sender.send_request(request, false).expect("sent");
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true)
        .expect("sent");
    let mut body = answer.await.expect("answered").into_body();
    let mut said = 0;
    while let Some(data) = body.data().await {
        said += data.expect("data").len();
    }
    assert!(said > 0, "it answered first");
    let trailers = body.trailers().await.expect("read").expect("trailers");
    let status = trailers["grpc-status"].to_str().expect("text");
    status.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_lists_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let site = TestServer::start(TransportSetup::default()).await;
    let channel = tonic::transport::Endpoint::from_shared(site.url.clone())
        .expect("url")
        .connect()
        .await
        .expect("connects");
    let request = |message| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    let symbol = "dipylon.v1.TaskService".to_owned();
    let asked = tokio_stream::iter([
        request(MessageRequest::ListServices(String::new())),
        request(MessageRequest::FileContainingSymbol(symbol)),
    ]);
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(asked)
        .await
        .expect("asked")
        .into_inner();
    let first = answers.message().await.expect("answered").expect("one");
    let Some(MessageResponse::ListServicesResponse(listed)) = first.message_response else {
        panic!("{first:?}");
    };
    let names: BTreeSet<_> = listed.service.into_iter().map(|s| s.name).collect();
    let mut wanted: BTreeSet<String> = dipylon_sdk::proto::methods()
        .iter()
        .filter_map(|method| method.split('/').next().map(str::to_owned))
        .collect();
    wanted.insert("grpc.health.v1.Health".into());
    wanted.insert("grpc.reflection.v1.ServerReflection".into());
    assert_eq!(names, wanted);
    let second = answers.message().await.expect("answered").expect("another");
    let Some(MessageResponse::FileDescriptorResponse(files)) = second.message_response else {
        panic!("{second:?}");
    };
    assert!(!files.file_descriptor_proto.is_empty());
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_max_age_fails_no_call() {
    let site = TestServer::start(TransportSetup {
        limits: ConnectionLimits {
            max_age: Duration::from_secs(1),
            ..ConnectionLimits::default()
        },
        ..TransportSetup::default()
    })
    .await;
    let url = site.url.clone();
    // A validator's stream moves from one connection to the next.
    let cases = Validator::connect(ValidatorConfig::new(
        &url,
        &url,
        Audience::parse(CASES).expect("audience"),
        Identity::Key(Arc::new(site.env.key_of("cases"))),
    ))
    .await
    .expect("connects");
    let (sender, _connection) = site.raw().await;
    let stream = tokio::spawn(watch_health(
        sender,
        site.grpc("grpc.health.v1.Health/Watch"),
    ));
    let task = site.task(site.once()).await.expect("opens");
    let (mut served, mut unsent) = (0, 0);
    while site.counts.max_age.load(Ordering::Relaxed) < 6 {
        let asked = order(read_case(), &format!("r-{served}"));
        match task.request_token(&asked).await {
            Ok(TokenOutcome::Token(_)) => served += 1,
            // A call on a closing connection was not sent, or was refused by GOAWAY, and is retried under the same
            // idempotency key. A call in progress is never cut.
            Err(Error::Unreachable { cause, .. })
                if cause.starts_with("operation was canceled")
                    || cause.ends_with("not a result of an error") =>
            {
                unsent += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    eprintln!("{served} calls served, {unsent} not sent, while 6 connections aged");
    // A stream is ended, so that it does not keep its connection open for ever.
    assert_eq!(
        in_time("the stream ends", stream).await.expect("joined"),
        "14"
    );
    let report = task.complete(TaskOutcome::Succeeded).await.expect("ended");
    in_time(
        "the validator learns of the revocation",
        cases.wait_for_position(report.position),
    )
    .await;
    let found = invariants::check(&site.root.join("data"));
    assert_eq!(found.tokens.len(), served, "one grant for each idempotency_key");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_disconnect_is_atomic() {
    let site = TestServer::start(TransportSetup::default()).await;
    let task = site.task(site.once()).await.expect("opens");
    works(&task, 0).await;
    let mut gone = 0;
    for n in 1..=60 {
        let asked = order(read_case(), &format!("gone-{n}"));
        // From before the call is sent to after its reply.
        let patience = Duration::from_micros(n * 150);
        if tokio::time::timeout(patience, task.request_token(&asked))
            .await
            .is_err()
        {
            gone += 1;
        }
        let first = token(task.request_token(&asked).await);
        assert_eq!(first, token(task.request_token(&asked).await), "one grant");
    }
    eprintln!("{gone} of 60 calls were cancelled");
    assert!(gone > 0);
    assert_eq!(invariants::check(&site.root.join("data")).tokens.len(), 61);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_calls_are_answered_on_shutdown() {
    let site = TestServer::start(TransportSetup::default()).await;
    let task = site.task(site.once()).await.expect("opens");
    let mut asked = order(disable("ann"), "waits");
    asked.wait_s = 60;
    let waiting = {
        let task = task.clone();
        tokio::spawn(async move { task.request_token(&asked).await })
    };
    let journal = dipylon::journal::JournalReader::open(&site.root.join("data")).expect("journal");
    // The call waits once its request is pending.
    until("the request is pending", || {
        let mut asked = false;
        let read = journal.read_all(|entry| {
            asked |= entry.text.contains("\"kind\":\"AccessRequestOpened\"");
            Ok(())
        });
        read.expect("readable");
        asked
    })
    .await;
    site.stop().await;
    let answer = waiting.await.expect("joined");
    assert!(matches!(answer, Ok(TokenOutcome::Pending(_))), "{answer:?}");
}
