//! Requests to gRPC paths that are not gRPC: never a 2xx status, never an effect; and gRPC calls to paths without a method.

use std::collections::BTreeMap;
use std::process::Command;

use bytes::Bytes;
use dipylon_sdk::jose::{SigningKey, dpop};
use dipylon_sdk::model::*;
use dipylon_sdk::proto::convert::seconds_to_wire;
use dipylon_sdk::proto::v1;
use prost::Message as _;
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::DOMAIN;
use crate::support::raw_http::{Answer, Http2};
use crate::support::requirement::skip_without;
use crate::support::served_broker::ServedBroker;
use crate::support::transport_server::{TestServer, TransportSetup};

/// Every path of a gRPC method: the broker's, health checking, reflection.
fn method_paths() -> Vec<String> {
    let own = dipylon_sdk::proto::methods().iter();
    own.map(|name| format!("/{name}"))
        .chain(
            [
                "/grpc.health.v1.Health/Check",
                "/grpc.health.v1.Health/Watch",
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            ]
            .map(str::to_owned),
        )
        .collect()
}

type Headers = &'static [(&'static str, &'static str)];
const GRPC: Headers = &[("content-type", "application/grpc"), ("te", "trailers")];
/// A request that is not gRPC, and the status that refuses it.
const NOT_GRPC: [(&str, Headers, u16); 9] = [
    ("GET", GRPC, 405),
    ("HEAD", &[], 405),
    ("OPTIONS", &[], 405),
    ("PUT", GRPC, 405),
    ("POST", &[("content-type", "application/json")], 415),
    (
        "POST",
        &[("content-type", "application/x-www-form-urlencoded")],
        415,
    ),
    (
        "POST",
        &[("content-type", "application/grpc-web+proto")],
        415,
    ),
    ("POST", &[("te", "trailers")], 415),
    ("POST", &[("content-type", "application/grpc")], 400),
];

fn assert_refused(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}");
    assert_eq!(answer.header("grpc-status"), None, "{what}");
    if status == 405 {
        assert_eq!(answer.header("allow"), Some("POST"), "{what}");
    }
    if what.starts_with("HEAD") {
        return;
    }
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("application/problem+json"), "{what}");
    let problem: Value = serde_json::from_slice(&answer.body).expect("problem details");
    assert_eq!(problem["reason"], "NOT_GRPC", "{what}");
    assert_eq!(problem["status"], status, "{what}");
    assert_eq!(problem["type"], "urn:dipylon:reason:NOT_GRPC", "{what}");
    let correlation = problem["correlation_id"].as_str().expect("an id");
    CorrelationId::parse(correlation).expect("a correlation id");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_refuse_all_that_is_not_grpc() {
    let s = ServedBroker::start().await;
    let entries = s.broker.show().position().1;
    let mut http2 = Http2::connect(&s.url).await;
    let empty = Bytes::from_static(b"\0\0\0\0\0");
    for path in method_paths() {
        for (method, headers, status) in NOT_GRPC {
            let what = format!("{method} {path} {headers:?}");
            let answer = http2.send(method, &path, headers, empty.clone()).await;
            assert_refused(&answer, status, &what);
            // Over HTTP/1.1 gRPC itself is refused.
            let status = if status == 400 { 505 } else { status };
            let answer = crate::support::raw_http::http1(&s.url, method, &path, headers, &empty);
            assert_refused(&answer.await, status, &format!("{what} HTTP/1.1"));
        }
        let answer = crate::support::raw_http::http1(&s.url, "POST", &path, GRPC, &empty).await;
        assert_refused(&answer, 505, &path);
        let problem: Value = serde_json::from_slice(&answer.body).expect("problem details");
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(detail.contains("grpc_pass") && detail.contains("http2_protocol_options"));
    }
    assert_eq!(s.broker.show().position().1, entries, "no effect");
}

/// The whole valid call, over HTTP/1.1 and then over HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_over_http1_does_not_act() {
    let s = ServedBroker::start().await;
    let now = dipylon_sdk::clock::Clock::system().now();
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let evidence = s.env.svid_for(&s.url, &id, now, 300);
    let message = v1::OpenTaskRequest {
        evidence: Some(v1::Evidence {
            kind: Some(v1::evidence::Kind::JwtSvid(
                evidence.expose_secret().to_owned(),
            )),
        }),
        purpose: "contain INC-8841".into(),
        max_duration: Some(seconds_to_wire(60)),
        idempotency_key: "r-1".into(),
        heartbeat: None,
    };
    let path = "/dipylon.v1.TaskService/OpenTask";
    let proof = dpop::create(
        &SigningKey::generate().expect("key").0,
        &dpop::ProofClaims {
            htm: "POST",
            htu: &format!("{}{path}", s.url),
            iat: now,
            jti: "one",
            nonce: Some(&s.broker.nonce()),
            ath: None,
            action_digest: None,
            evidence_hash: Some(Digest::sha256(evidence.expose_secret().as_bytes())),
        },
    );
    let proof = proof.expect("proof").expose_secret().to_owned();
    let body = frame(&message.encode_to_vec());
    let headers = [GRPC[0], GRPC[1], ("dpop", proof.as_str())];
    let entries = s.broker.show().position().1;
    let answer = crate::support::raw_http::http1(&s.url, "POST", path, &headers, &body).await;
    assert_refused(&answer, 505, "OpenTask");
    assert_eq!(s.broker.show().position().1, entries, "no task is opened");
    let mut http2 = Http2::connect(&s.url).await;
    let answer = http2.send("POST", path, &headers, body).await;
    assert_eq!(answer.trailer("grpc-status"), Some("0"), "{answer:?}");
    assert_eq!(s.broker.show().position().1, entries + 1);
}

fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0][..], &length, message].concat().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_without_a_method() {
    let s = ServedBroker::start().await;
    let mut http2 = Http2::connect(&s.url).await;
    let empty = Bytes::from_static(b"\0\0\0\0\0");
    for path in [
        "/dipylon.v1.TaskService/Mint",
        "/dipylon.v1.TaskService/OpenTask/",
        "/dipylon.v1.TaskService/opentask",
        "/dipylon.v1.TaskService/OpenTask?x=1",
        "/dipylon.v1.TaskService/Open%54ask",
        "//dipylon.v1.TaskService/OpenTask",
        "/dipylon.v1.TaskService",
        "/dipylon.v2.TaskService/OpenTask",
        "/grpc.health.v1.Health/Nothing",
        "/nothing",
        "/livez",
        "/",
    ] {
        let answer = http2.send("POST", path, GRPC, empty.clone()).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/grpc"));
        let status = Status::from_header_map(&answer.headers).expect("a status");
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
        let info = status.get_details_error_info().expect("ErrorInfo");
        assert_eq!(info.reason, "UNKNOWN_METHOD", "{path}");
        CorrelationId::parse(&info.metadata["correlation"]).expect("an id");
        if path == "/livez" {
            continue;
        }
        for answer in [
            http2.send("GET", path, &[], Bytes::new()).await,
            http2.send("POST", path, NOT_GRPC[4].1, Bytes::new()).await,
            crate::support::raw_http::http1(&s.url, "POST", path, GRPC, &empty).await,
        ] {
            assert_eq!(answer.status, 404, "{path}");
            let problem: Value = serde_json::from_slice(&answer.body).expect("problem details");
            assert_eq!(problem["reason"], "NOT_FOUND", "{path}");
        }
    }
}

/// Whether curl is not installed, so that the test is skipped.
fn is_curl_missing() -> bool {
    if Command::new("curl").arg("--version").output().is_ok() {
        return false;
    }
    skip_without("curl", "there is no curl");
    true
}

/// The same through TLS and through the Unix socket, by curl.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_gets_no_2xx_from_a_method() {
    if is_curl_missing() {
        return;
    }
    let site = TestServer::start(TransportSetup {
        tls: true,
        unix: true,
        ..TransportSetup::default()
    })
    .await;
    let ca = site.root.join("ca.pem");
    let socket = site.root.join("dipylon.sock");
    let ways: [(&str, Vec<&str>); 3] = [
        (&site.url, vec!["--cacert", ca.to_str().expect("text")]),
        (
            &site.url,
            vec!["--cacert", ca.to_str().expect("text"), "--http1.1"],
        ),
        (
            "http://localhost",
            vec!["--unix-socket", socket.to_str().expect("text")],
        ),
    ];
    let requests: [(&[&str], &str); 6] = [
        (&[], "405"),
        (&["--head"], "405"),
        (&["-X", "OPTIONS"], "405"),
        (&["-d", "{}", "-H", "content-type: application/json"], "415"),
        (&["-d", "a=b"], "415"),
        (
            &["-d", "a", "-H", "content-type: application/grpc-web"],
            "415",
        ),
    ];
    for (url, way) in &ways {
        for (request, status) in requests {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--write-out", "%{http_code}\n"]);
            curl.args(way).args(request);
            for path in method_paths() {
                curl.args(["--output", "/dev/null", &format!("{url}{path}")]);
            }
            let output = tokio::task::spawn_blocking(move || curl.output().expect("curl runs"));
            let output = output.await.expect("joined");
            let text = String::from_utf8_lossy(&output.stdout);
            let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
            for line in text.lines() {
                *statuses.entry(line).or_default() += 1;
            }
            let wanted = BTreeMap::from([(status, method_paths().len())]);
            assert_eq!(statuses, wanted, "{way:?} {request:?}: {output:?}");
        }
    }
    site.stop().await;
}
