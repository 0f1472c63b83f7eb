//! Transport: the Unix socket, HTTP/2 limits, deadlines, connection age, shutdown, over real sockets. Waits are for events,
//! up to a generous bound.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dipylon::config::ConnectionLimits;
use dipylon::serve::peer::{Peer, PeerSource};
use dipylon::serve::{self};
use dipylon_sdk::client::{ConnectOptions, Endpoint, Error, Identity, TokenOutcome};
use dipylon_sdk::model::*;
use dipylon_sdk::validator::{Validator, ValidatorConfig};
use tokio::net::TcpStream;

use crate::support::invariants;
use crate::support::served_broker::token_request;
use crate::support::transport_server::{
    PEER, TestServer, TransportSetup, http1, issue_one_token, token,
};
use crate::support::wait::{in_time, until};
use crate::support::{CASES, disable, read_case};

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
        ..ConnectOptions::default()
    };
    let endpoint = Endpoint::connect_with(&site.url, &reach).expect("endpoint");
    let task = site.task(endpoint.with_retry_ms(0)).await.expect("opens");
    issue_one_token(&task, 1).await;
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
    let task = Arc::new(
        site.task(site.endpoint_without_retries())
            .await
            .expect("opens"),
    );
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..200 {
        let task = task.clone();
        calls.spawn(async move { issue_one_token(&task, n).await });
    }
    while let Some(call) = in_time("an answer", calls.join_next()).await {
        call.expect("answered");
    }
    assert_eq!(site.counts.accepted.load(Ordering::Relaxed), 1);
    // The limit in the broker's SETTINGS.
    let (sender, _connection) = site.http2_connection().await;
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
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    let large = "x".repeat(20_000);
    let (mut sender, _connection) = site.http2_connection().await;
    let request = site
        .grpc("dipylon.v1.TaskService/OpenTask")
        .header("x-large", &large)
        .body(())
        .expect("request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    // RESOURCE_EXHAUSTED, with a reason; beyond what is read at all, the HTTP status alone.
    let answer = in_time("an answer", answer).await.expect("answered");
    assert_eq!(answer.headers()["grpc-status"], "8");
    let request = site
        .grpc("dipylon.v1.TaskService/OpenTask")
        .header("x-large", "x".repeat(70_000))
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
        &format!("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-large: {large}\r\n\r\n"),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    // A message of more than 64 KiB: refused by its length prefix, before it arrives.
    let (mut sender, _connection) = site.http2_connection().await;
    let request = site
        .grpc("dipylon.v1.TaskService/OpenTask")
        .body(())
        .expect("request");
    let (answer, mut body) = sender.send_request(request, false).expect("sent");
    let length = u32::try_from(serve::MESSAGE_BYTES_MAX + 1).expect("small");
    let head = [&[0][..], &length.to_be_bytes()].concat();
    body.send_data(head.into(), false).expect("sent");
    let answer = in_time("an answer", answer).await.expect("answered");
    // RESOURCE_EXHAUSTED.
    assert_eq!(answer.headers()["grpc-status"], "8");
    issue_one_token(&task, 1).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_exceeded() {
    let site = TestServer::start(TransportSetup::default()).await;
    let (sender, _connection) = site.http2_connection().await;
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
        assert!(message.starts_with("the%20deadline"), "{message}");
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
    let mut received = 0;
    while let Some(data) = body.data().await {
        received += data.expect("data").len();
    }
    assert!(received > 0, "it answered first");
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
    let requests = tokio_stream::iter([
        request(MessageRequest::ListServices(String::new())),
        request(MessageRequest::FileContainingSymbol(symbol)),
    ]);
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(requests)
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
async fn reflection_v1alpha_for_older_clients() {
    use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;
    let site = TestServer::start(TransportSetup::default()).await;
    let channel = tonic::transport::Endpoint::from_shared(site.url.clone())
        .expect("url")
        .connect()
        .await
        .expect("connects");
    let requests = tokio_stream::iter([ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    }]);
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(requests)
        .await
        .expect("asked")
        .into_inner();
    let answer = answers.message().await.expect("answered").expect("one");
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let lists = |name: &str| listed.service.iter().any(|service| service.name == name);
    assert!(lists("dipylon.v1.TaskService") && lists("grpc.health.v1.Health"));
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
    let (sender, _connection) = site.http2_connection().await;
    let stream = tokio::spawn(watch_health(
        sender,
        site.grpc("grpc.health.v1.Health/Watch"),
    ));
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    let (mut served, mut unsent) = (0, 0);
    while site.counts.max_age.load(Ordering::Relaxed) < 6 {
        let request = token_request(read_case(), &format!("r-{served}"));
        match task.request_token(&request).await {
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
    assert_eq!(
        found.tokens.len(),
        served,
        "one grant for each idempotency_key"
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_disconnect_is_atomic() {
    let site = TestServer::start(TransportSetup::default()).await;
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    issue_one_token(&task, 0).await;
    let mut cancelled = 0;
    for n in 1..=60 {
        let request = token_request(read_case(), &format!("cancelled-{n}"));
        // From before the call is sent to after its reply.
        let patience = Duration::from_micros(n * 150);
        if tokio::time::timeout(patience, task.request_token(&request))
            .await
            .is_err()
        {
            cancelled += 1;
        }
        let first = token(task.request_token(&request).await);
        assert_eq!(
            first,
            token(task.request_token(&request).await),
            "one grant"
        );
    }
    eprintln!("{cancelled} of 60 calls were cancelled");
    assert!(cancelled > 0);
    assert_eq!(invariants::check(&site.root.join("data")).tokens.len(), 61);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_calls_are_answered_on_shutdown() {
    let site = TestServer::start(TransportSetup::default()).await;
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    let mut request = token_request(disable("ann"), "waits");
    request.wait_s = 60;
    let waiting = {
        let task = task.clone();
        tokio::spawn(async move { task.request_token(&request).await })
    };
    let journal = dipylon::journal::JournalReader::open(&site.root.join("data")).expect("journal");
    // The call waits once its request is pending.
    until("the request is pending", || {
        let mut is_pending = false;
        let read = journal.read_all(|entry| {
            is_pending |= entry.text.contains("\"kind\":\"AccessRequestOpened\"");
            Ok(())
        });
        read.expect("readable");
        is_pending
    })
    .await;
    site.stop().await;
    let answer = waiting.await.expect("joined");
    assert!(matches!(answer, Ok(TokenOutcome::Pending(_))), "{answer:?}");
}
