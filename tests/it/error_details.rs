//! Errors of gRPC calls: every one carries `ErrorInfo` with a reason of the table and a correlation id, and fits into the
//! trailers that clients accept.

use bytes::Bytes;
use dipylon_sdk::client::Error;
use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use dipylon_sdk::proto::v1::task_service_client::TaskServiceClient;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_types::StatusExt as _;

use crate::support::raw_http::Http2;
use crate::support::served_broker::ServedBroker;

const OPEN_TASK: &str = "/dipylon.v1.TaskService/OpenTask";
const EXPLAIN: &str = "/dipylon.v1.GovernanceService/Explain";

/// The reason and the correlation id of a status.
fn reason(status: &Status, what: &str) -> (Reason, String) {
    let info = status.get_details_error_info();
    let info = info.unwrap_or_else(|| panic!("{what}: no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "dipylon", "{what}");
    let correlation = info.metadata.get("correlation");
    let correlation = correlation.unwrap_or_else(|| panic!("{what}: no correlation: {status:?}"));
    CorrelationId::parse(correlation).expect("a correlation id");
    let reason = Reason::parse(&info.reason).unwrap_or_else(|| panic!("{what}: {}", info.reason));
    (reason, correlation.clone())
}

fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0][..], &length, message].concat().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_error_has_a_reason_and_a_correlation_id() {
    let s = ServedBroker::start().await;
    let mut http2 = Http2::connect(&s.url).await;
    let entries = s.broker.show().position().1;
    let (large, larger) = ("x".repeat(20_000), "x".repeat(40_000));
    let many: Vec<String> = (0..100).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
    let whole = frame(&[]);
    let explain = frame(&v1::ExplainRequest { id: String::new() }.encode_to_vec());
    let unknown_id = frame(&v1::ExplainRequest { id: "x".into() }.encode_to_vec());
    type Case<'a> = (
        &'a str,
        &'a str,
        Vec<(&'a str, &'a str)>,
        Bytes,
        Code,
        Reason,
        &'a str,
    );
    let cases: Vec<Case<'_>> = vec![
        (
            "a message over the limit",
            OPEN_TASK,
            vec![],
            Bytes::from_static(b"\0\0\x01\0\x01"),
            Code::ResourceExhausted,
            Reason::RequestTooLarge,
            "65536 bytes",
        ),
        (
            "a message that does not decode",
            OPEN_TASK,
            vec![],
            frame(&[0xff; 40]),
            Code::InvalidArgument,
            Reason::Malformed,
            "message",
        ),
        (
            "an unknown field",
            OPEN_TASK,
            vec![],
            frame(&[0xf8, 0x07, 0x01]),
            Code::InvalidArgument,
            Reason::Malformed,
            "field 127",
        ),
        (
            "a compressed message",
            OPEN_TASK,
            vec![("grpc-encoding", "gzip")],
            Bytes::from_static(b"\x01\0\0\0\x01x"),
            Code::Unimplemented,
            Reason::UnsupportedEncoding,
            "`grpc-encoding`",
        ),
        (
            "a compressed message of no encoding",
            OPEN_TASK,
            vec![],
            Bytes::from_static(b"\x01\0\0\0\x01x"),
            Code::Unimplemented,
            Reason::UnsupportedEncoding,
            "`grpc-encoding`",
        ),
        (
            "a broken frame",
            OPEN_TASK,
            vec![],
            Bytes::from_static(b"\x07\0\0\0\x01x"),
            Code::Unimplemented,
            Reason::UnsupportedEncoding,
            "",
        ),
        (
            "no message",
            OPEN_TASK,
            vec![],
            Bytes::new(),
            Code::InvalidArgument,
            Reason::Malformed,
            "missing or cut",
        ),
        (
            "half a message",
            OPEN_TASK,
            vec![],
            Bytes::from_static(b"\0\0\0\0\x05x"),
            Code::InvalidArgument,
            Reason::Malformed,
            "missing or cut",
        ),
        (
            "a large proof",
            OPEN_TASK,
            vec![("dpop", &large)],
            whole.clone(),
            Code::ResourceExhausted,
            Reason::RequestTooLarge,
            "`dpop`: expected at most 16384 bytes",
        ),
        (
            "a large bearer token",
            OPEN_TASK,
            vec![("authorization", &larger)],
            whole.clone(),
            Code::ResourceExhausted,
            Reason::RequestTooLarge,
            "`authorization`",
        ),
        (
            "many entries of metadata",
            OPEN_TASK,
            many,
            whole.clone(),
            Code::ResourceExhausted,
            Reason::RequestTooLarge,
            "expected at most 64",
        ),
        (
            "two proofs",
            OPEN_TASK,
            vec![("dpop", "a"), ("dpop", "b")],
            whole.clone(),
            Code::InvalidArgument,
            Reason::Malformed,
            "`dpop`: expected one value, got 2",
        ),
        (
            "a deadline of zero",
            OPEN_TASK,
            vec![("grpc-timeout", "0n")],
            whole.clone(),
            Code::DeadlineExceeded,
            Reason::DeadlineExceeded,
            "deadline",
        ),
        (
            "an unreadable deadline",
            OPEN_TASK,
            vec![("grpc-timeout", "soon")],
            whole.clone(),
            Code::InvalidArgument,
            Reason::Malformed,
            "`grpc-timeout`",
        ),
        (
            "an explanation of nothing",
            EXPLAIN,
            vec![],
            explain,
            Code::InvalidArgument,
            Reason::Malformed,
            "id: expected",
        ),
        (
            "an explanation of an unknown kind of id",
            EXPLAIN,
            vec![],
            unknown_id,
            Code::InvalidArgument,
            Reason::Malformed,
            "id: expected",
        ),
        (
            "no credential",
            EXPLAIN,
            vec![],
            frame(
                &v1::ExplainRequest {
                    id: TaskId::from_random([1; 16]).to_string(),
                }
                .encode_to_vec(),
            ),
            Code::Unauthenticated,
            Reason::NotAuthenticated,
            "",
        ),
    ];
    let service = HealthCheckRequest {
        service: "unknown".to_owned(),
    };
    let service = frame(&service.encode_to_vec());
    let health = |method| format!("/grpc.health.v1.Health/{method}");
    let (check, watch) = (health("Check"), health("Watch"));
    let cases = cases.into_iter().chain([&check, &watch].map(|path| {
        let what = "the health of an unknown service";
        let body = service.clone();
        let (code, reason) = (Code::NotFound, Reason::NotFound);
        (what, path.as_str(), vec![], body, code, reason, "")
    }));
    let mut correlations = Vec::new();
    for (what, path, extra, body, code, expected, text) in cases {
        let mut headers = vec![("content-type", "application/grpc"), ("te", "trailers")];
        headers.extend(extra);
        let answer = http2.send("POST", path, &headers, body).await;
        assert_eq!(answer.status, 200, "{what}");
        let status = answer.grpc_status();
        let (reason, correlation) = reason(&status, what);
        assert_eq!(
            (status.code(), reason),
            (code, expected),
            "{what}: {status:?}"
        );
        assert!(
            status.message().contains(text),
            "{what}: {}",
            status.message()
        );
        assert!(
            !status.message().contains("Request"),
            "{what}: names a type"
        );
        correlations.push(correlation);
    }
    assert_eq!(s.broker.show().position().1, entries, "no effect");
    let olga = s.operator("olga");
    for correlation in correlations {
        let explained = olga.explain(&correlation).await;
        let explained = explained.unwrap_or_else(|error| panic!("{correlation}: {error}"));
        assert!(explained.headline.contains("refused"), "{explained:?}");
    }
}

/// The same through a gRPC client library: none of it surfaces as UNKNOWN or as a broken connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_calls_are_refused_with_a_reason_at_the_client() {
    let s = ServedBroker::start().await;
    let channel = Channel::from_shared(s.url.clone()).expect("url");
    let channel = channel.connect().await.expect("connects");
    let mut tasks = TaskServiceClient::new(channel);
    let evidence = |length: usize| v1::OpenTaskRequest {
        evidence: Some(v1::Evidence {
            kind: Some(v1::evidence::Kind::JwtSvid("x".repeat(length))),
        }),
        ..v1::OpenTaskRequest::default()
    };
    for (what, name, length, payload) in [
        ("a proof of 20 KB", "dpop", 20_000, 10),
        ("a bearer token of 40 KB", "authorization", 40_000, 10),
        ("evidence of 8 MB", "x-none", 1, 8_000_000),
    ] {
        let mut request = Request::new(evidence(payload));
        let value = "x".repeat(length).parse().expect("ascii");
        request.metadata_mut().insert(name, value);
        let status = tasks.open_task(request).await.expect_err(what);
        let (reason, _) = reason(&status, what);
        assert_eq!(
            (status.code(), reason),
            (Code::ResourceExhausted, Reason::RequestTooLarge),
            "{what}"
        );
    }
}

/// A policy bundle with far more mistakes than trailers can list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_refusals_fit_into_trailers() {
    let s = ServedBroker::start().await;
    let rules: String = (0..400)
        .map(|n| format!("@id(\"mistake-{n}\")\npermit(principal, action == Action::\"nothing.{n}\", resource);\n"))
        .collect();
    let files = s
        .env
        .policy_with("rules/90-mistakes.cedar", |_| rules.clone());
    let refused = s.operator("olga").apply_policy_bundle(&files).await;
    let error = refused.expect_err("refused");
    assert_eq!(error.reason(), Some(Reason::InvalidPolicyBundle), "{error}");
    let Error::Refused(refused) = error else {
        panic!("{error:?}")
    };
    let text = refused.to_string();
    assert!(text.contains("rules/90-mistakes.cedar"), "{text}");
    let text = text.replace("\\u{a}", "\n");
    assert!(text.contains(" more"), "{text}");
}
