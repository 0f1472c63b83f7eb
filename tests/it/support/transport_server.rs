//! A broker in this process with configurable transport: TLS, a Unix socket, connection limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Extension;
use axum::routing::get;
use bytes::Bytes;
use dipylon::broker::BrokerSettings;
use dipylon::config::ConnectionLimits;
use dipylon::journal::FaultInjection;
use dipylon::serve::connection_limits::ConnectionStats;
use dipylon::serve::peer::Peer;
use dipylon::serve::tls::Tls;
use dipylon::serve::unix::GuardedUnixListener;
use dipylon::serve::{self, ServerConfig};
use dipylon_sdk::client::{
    AgentClient, ConnectOptions, Endpoint, Error, EvidenceSource, OpenTaskRequest, TaskHandle,
    TokenOutcome,
};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use dipylon_sdk::proto::v1::token_service_client::TokenServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::support::certificate_authority::{Authority, replace_file};
use crate::support::served_broker::token_request;
use crate::support::wait::in_time;
use crate::support::{DOMAIN, TestEnvironment, open_as, origin, rand_u64, read_case, settings};

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
    pub authority: Authority,
    pub tls: Option<Arc<Tls>>,
    pub counts: Arc<ConnectionStats>,
    pub stop: Option<oneshot::Sender<()>>,
    pub server: JoinHandle<()>,
    pub temp: tempfile::TempDir,
}

impl TestServer {
    /// The stream of the validator `cases` on a connection of its own, without reconnects.
    pub async fn watch_revocations(&self) -> tonic::Streaming<v1::WatchRevocationsResponse> {
        let channel = Channel::from_shared(self.url.clone()).expect("url");
        let mut tokens = TokenServiceClient::new(channel.connect().await.expect("connects"));
        let key = self.env.key_of("cases");
        let mut nonce = "none-yet".to_owned();
        for _ in 0..2 {
            let claims = dpop::ProofClaims {
                htm: "POST",
                htu: &format!("{}/dipylon.v1.TokenService/WatchRevocations", self.url),
                iat: Clock::system().now(),
                jti: &format!("{:x}{:x}", rand_u64(), rand_u64()),
                nonce: Some(&nonce),
                ath: None,
                action_digest: None,
                evidence_hash: None,
            };
            let proof = dpop::create(&key, &claims).expect("proof");
            let mut request = tonic::Request::new(v1::WatchRevocationsRequest { after: None });
            let proof = proof.expose_secret().parse().expect("ascii");
            request.metadata_mut().insert("dpop", proof);
            match tokens.watch_revocations(request).await {
                Ok(stream) => return stream.into_inner(),
                Err(refused) => {
                    let next = refused.metadata().get("dpop-nonce").expect("a nonce");
                    nonce = next.to_str().expect("text").to_owned();
                }
            }
        }
        panic!("no stream");
    }

    pub async fn start(setup: TransportSetup) -> Self {
        let temp = tempfile::tempdir().expect("dir");
        let root = temp.path().to_owned();
        let authority = Authority::new();
        replace_file(&root.join("ca.pem"), &authority.pem, 0o644);
        let tls = setup.tls.then(|| {
            let (certificate, key) = authority.certify();
            replace_file(&root.join("tls.crt"), &certificate, 0o644);
            replace_file(&root.join("tls.key"), &key, 0o600);
            Tls::read(&root.join("tls.crt"), &root.join("tls.key")).expect("a pair")
        });
        let listener = serve::listen("127.0.0.1:0".parse().expect("address"))
            .await
            .expect("listens");
        let address = listener.local_addr().expect("address");
        let scheme = if setup.tls { "https" } else { "http" };
        let url = format!("{scheme}://{address}");
        let settings = BrokerSettings {
            external_url: origin(&url),
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
            let _stopped = stopped.await;
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

    pub fn connect_options(&self) -> ConnectOptions {
        ConnectOptions {
            ca: Some(self.root.join("ca.pem")),
            socket: None,
            ..ConnectOptions::default()
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::connect_with(&self.url, &self.connect_options()).expect("endpoint")
    }

    /// An endpoint without retries.
    pub fn endpoint_without_retries(&self) -> Endpoint {
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
    pub async fn http2_connection(
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

pub fn token(outcome: Result<TokenOutcome, Error>) -> TokenId {
    match outcome {
        Ok(TokenOutcome::Token(token)) => token.jti(),
        other => panic!("not a token: {other:?}"),
    }
}

/// A complete call: both gates and an entry.
pub async fn issue_one_token(task: &TaskHandle, n: u64) {
    token(
        task.request_token(&token_request(read_case(), &format!("honest-{n}")))
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
