//! Connection exhaustion: slow and idle connections, a full server, per-source caps, rapid resets, stalled readers. An
//! honest client is served throughout each attack.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dipylon::config::ConnectionLimits;
use dipylon_sdk::client::{ConnectOptions, Endpoint};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::transport_server::{PEER, TestServer, TransportSetup, http1, issue_one_token};
use crate::support::wait::{in_time, until};

/// How an attacker stalls a connection.
#[derive(Debug, Clone, Copy)]
enum AttackKind {
    Silent,
    HalfHello,
    SlowHeaders,
    Preface,
    HalfHeaders,
    SlowBody,
}

impl AttackKind {
    /// The bytes sent before the connection stalls.
    fn bytes(self) -> Vec<u8> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        match self {
            Self::Silent => Vec::new(),
            // A TLS record of a ClientHello that announces more than comes.
            Self::HalfHello => b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03".to_vec(),
            Self::SlowHeaders => b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ".to_vec(),
            Self::Preface => PREFACE.to_vec(),
            // HEADERS of stream 1 without END_HEADERS: the rest would be CONTINUATION.
            Self::HalfHeaders => [PREFACE, b"\0\0\x01\x01\0\0\0\0\x01\x82"].concat(),
            Self::SlowBody => b"POST /dipylon.v1.TaskService/OpenTask HTTP/1.1\r\nhost: x\r\n\
                content-type: application/grpc\r\ncontent-length: 100\r\n\r\n\0"
                .to_vec(),
        }
    }
}

/// Holds a connection, trickling bytes where that would keep a naive server waiting; resolves when it is closed.
async fn hold(mut stream: TcpStream, attack: AttackKind) {
    let _broken = stream.write_all(&attack.bytes()).await;
    let mut buffer = [0; 1024];
    loop {
        let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut buffer)).await;
        match read {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(_)) => {}
            Err(_) if matches!(attack, AttackKind::SlowHeaders | AttackKind::SlowBody) => {
                if stream.write_all(b"a").await.is_err() {
                    return;
                }
            }
            Err(_) => {}
        }
    }
}

/// Raises the file limit to what the test needs; prints and returns false if the system gives fewer.
fn raise_file_limit(needed: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return true;
    }
    let raised = Rlimit {
        current: Some(needed),
        maximum: limit.maximum,
    };
    let raised = setrlimit(Resource::Nofile, raised).is_ok();
    if !raised {
        eprintln!("SKIPPED: {needed} open files are needed, and the system gives {limit:?}");
    }
    raised
}

/// Thousands of stalled connections, and one honest client that is served throughout.
async fn flood(tls: bool, kinds: &[AttackKind], each: usize) {
    let many = each * kinds.len();
    if !raise_file_limit(u64::try_from(2 * many + 500).expect("small")) {
        return;
    }
    let site = TestServer::start(TransportSetup {
        tls,
        limits: ConnectionLimits {
            max: 2 * many,
            max_per_source: 2 * many,
            idle_timeout: Duration::from_secs(2),
            ..ConnectionLimits::default()
        },
        ..TransportSetup::default()
    })
    .await;
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    let mut held = tokio::task::JoinSet::new();
    for n in 0..many {
        let kind = kinds[n % kinds.len()];
        let stream = TcpStream::connect(site.address).await.expect("connects");
        held.spawn(hold(stream, kind));
        // With an overflowing backlog the kernel lets a client believe that it is connected: the broker never sees it.
        if n % 100 == 99 {
            until("a hundred more are connected", || {
                site.counts.accepted.load(Ordering::Relaxed) > u64::try_from(n).expect("small")
            })
            .await;
        }
    }
    let mut honest = 0;
    let ends = async {
        while let Some(ended) = held.join_next().await {
            ended.expect("held");
        }
    };
    tokio::pin!(ends);
    let flooding = async {
        loop {
            tokio::select! {
                () = &mut ends => return,
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    honest += 1;
                    issue_one_token(&task, honest).await;
                }
            }
        }
    };
    in_time("every attacking connection is closed", flooding).await;
    // A new client is served, too.
    let later = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    issue_one_token(&later, 1).await;
    let accepted = site.counts.accepted.load(Ordering::Relaxed);
    eprintln!("{many} attacking connections closed, {honest} honest calls served meanwhile");
    assert!(honest > 5 && accepted >= u64::try_from(many).expect("small"));
    drop((task, later));
    until("no connection is open", || {
        site.counts.open.load(Ordering::Relaxed) == 0
    })
    .await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed() {
    flood(
        false,
        &[
            AttackKind::Silent,
            AttackKind::SlowHeaders,
            AttackKind::Preface,
            AttackKind::HalfHeaders,
            AttackKind::SlowBody,
        ],
        200,
    )
    .await;
    flood(true, &[AttackKind::Silent, AttackKind::HalfHello], 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_server_queues_new_connections() {
    let site = TestServer::start(TransportSetup {
        unix: true,
        limits: ConnectionLimits {
            max: 8,
            max_per_source: 8,
            first_request_timeout: Duration::from_secs(1),
            // Connections that made one request and went idle are evicted as well.
            idle_timeout: Duration::from_secs(3_000),
            ..ConnectionLimits::default()
        },
        ..TransportSetup::default()
    })
    .await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        let (mut sender, connection) = site.http2_connection().await;
        let request = http::Request::get(format!("{}/livez", site.url))
            .body(())
            .expect("request");
        let (answer, _) = sender.send_request(request, true).expect("sent");
        assert_eq!(
            in_time("an answer", answer)
                .await
                .expect("answered")
                .status(),
            200
        );
        idle.push((sender, connection));
    }
    let attackers: Vec<_> = (0..30)
        .map(|_| {
            let address = site.address;
            tokio::spawn(async move {
                if let Ok(stream) = TcpStream::connect(address).await {
                    hold(stream, AttackKind::Silent).await;
                }
            })
        })
        .collect();
    // The operator listener has its own limit.
    let socket = ConnectOptions {
        ca: None,
        socket: Some(site.root.join("dipylon.sock")),
        ..ConnectOptions::default()
    };
    let local = Endpoint::connect_with(&site.url, &socket).expect("endpoint");
    site.task(local.with_retry_ms(0)).await.expect("opens");
    let patient = site.endpoint().with_retry_ms(60_000);
    let task = in_time("the next client is served", site.task(patient))
        .await
        .expect("opens");
    issue_one_token(&task, 1).await;
    for attacker in attackers {
        in_time("it is closed", attacker).await.expect("held");
    }
    assert!(site.counts.unauthenticated.load(Ordering::Relaxed) > 0);
    site.stop().await;
}

/// A connection from a given loopback address.
async fn from_source(source: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, source], 0)))?;
    socket.connect(to).await
}

/// Keeps an unauthenticated stream open as long as the broker allows.
async fn watch_for_ever(stream: TcpStream, request: http::request::Builder) -> Option<()> {
    let (mut sender, connection) = h2::client::handshake(stream).await.ok()?;
    let connection = tokio::spawn(connection);
    let request = request.body(()).ok()?;
    let (answer, mut body) = sender.send_request(request, false).ok()?;
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true)
        .ok()?;
    let answer = answer.await.ok()?;
    // Never read to its end, like a client that does not close.
    let _broken = connection.await;
    drop(answer);
    Some(())
}

/// Sends unauthenticated requests for as long as they are answered.
async fn probe_for_ever(mut stream: TcpStream) {
    let mut answer = [0; 1024];
    while stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .is_ok()
        && matches!(stream.read(&mut answer).await, Ok(1..))
    {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unauthenticated_connections_are_evicted_first() {
    let site = TestServer::start(TransportSetup {
        limits: ConnectionLimits {
            max: 8,
            max_per_source: 2,
            idle_timeout: Duration::from_secs(3_000),
            max_age: Duration::from_secs(20_000),
            ..ConnectionLimits::default()
        },
        ..TransportSetup::default()
    })
    .await;
    let mut stream = site.watch_revocations().await;
    let heard = Arc::new(AtomicU64::new(0));
    let listener = tokio::spawn({
        let heard = heard.clone();
        async move {
            while let Ok(Some(_)) = stream.message().await {
                heard.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // Twice as many as the limit, each reconnecting as soon as it is closed.
    let mut attackers = tokio::task::JoinSet::new();
    for n in 0..16_u8 {
        let address = site.address;
        let watch = format!("{}/grpc.health.v1.Health/Watch", site.url);
        attackers.spawn(async move {
            loop {
                if let Ok(stream) = from_source(2 + n / 2, address).await {
                    if n % 2 == 0 {
                        let request = http::Request::post(watch.as_str())
                            .header("content-type", "application/grpc")
                            .header("te", "trailers");
                        let _closed = watch_for_ever(stream, request).await;
                    } else {
                        probe_for_ever(stream).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    until("the server is full", || {
        site.counts.open.load(Ordering::Relaxed) == 8
    })
    .await;
    let patient = site.endpoint().with_retry_ms(60_000);
    let task = in_time("an honest client is served", site.task(patient))
        .await
        .expect("opens");
    issue_one_token(&task, 1).await;
    until("many were evicted", || {
        site.counts.unauthenticated.load(Ordering::Relaxed) > 16
    })
    .await;
    // An authenticated connection stays while a call is open, and may be evicted when idle.
    until("the idle honest connection is evicted", || {
        site.counts.idle.load(Ordering::Relaxed) > 0
    })
    .await;
    let so_far = heard.load(Ordering::Relaxed);
    until("the stream continues", || {
        heard.load(Ordering::Relaxed) > so_far
    })
    .await;
    assert!(!listener.is_finished());
    attackers.abort_all();
    listener.abort();
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn per_source_limit() {
    let site = TestServer::start(TransportSetup {
        limits: ConnectionLimits {
            max_per_source: 4,
            first_request_timeout: Duration::from_secs(60),
            ..ConnectionLimits::default()
        },
        ..TransportSetup::default()
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(TcpStream::connect(site.address).await.expect("connects"));
    }
    until("four are connected", || {
        site.counts.open.load(Ordering::Relaxed) == 4
    })
    .await;
    let mut fifth = TcpStream::connect(site.address).await.expect("connects");
    let mut byte = [0];
    let read = in_time("the fifth is closed", fifth.read(&mut byte)).await;
    assert!(matches!(read, Ok(0) | Err(_)));
    assert_eq!(site.counts.per_source_limit.load(Ordering::Relaxed), 1);
    drop(held.pop());
    until("its slot is free", || {
        site.counts.open.load(Ordering::Relaxed) == 3
    })
    .await;
    let mut next = TcpStream::connect(site.address).await.expect("connects");
    let answer = http1(&mut next, PEER).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_closes_the_connection() {
    let site = TestServer::start(TransportSetup::default()).await;
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    let (mut sender, connection) = site.http2_connection().await;
    let mut reset = 0;
    // Far fewer than could be sent, far more than may pass.
    while reset < 20_000 {
        sender = match sender.ready().await {
            Ok(sender) => sender,
            Err(_) => break,
        };
        let request = site
            .grpc("dipylon.v1.TaskService/OpenTask")
            .body(())
            .expect("request");
        let Ok((_answer, mut stream)) = sender.send_request(request, false) else {
            break;
        };
        stream.send_reset(h2::Reason::CANCEL);
        reset += 1;
    }
    let ended = in_time("the connection ends", connection)
        .await
        .expect("joined");
    let error = ended.expect_err("by the broker");
    // Later frames may reset the socket before the broker's GOAWAY is read.
    assert!(
        error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) || error.is_io(),
        "{error}"
    );
    eprintln!("ended after about {reset} resets");
    assert!(reset < 20_000);
    issue_one_token(&task, 1).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_reader_is_disconnected() {
    let site = TestServer::start(TransportSetup::default()).await;
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    let stream = TcpStream::connect(site.address).await.expect("connects");
    // A client with a zero flow-control window.
    let (mut sender, connection) = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, Bytes>(stream)
        .await
        .expect("h2");
    let connection = tokio::spawn(connection);
    let request = http::Request::get(format!("{}/.well-known/jwks.json", site.url))
        .body(())
        .expect("request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    let answer = in_time("a head", answer).await.expect("answered");
    assert_eq!(answer.status(), 200);
    // The kind of error depends on the system.
    let _broken = in_time("the connection ends", connection)
        .await
        .expect("joined");
    assert_eq!(site.counts.write_stalled.load(Ordering::Relaxed), 1);
    issue_one_token(&task, 1).await;
    site.stop().await;
}
