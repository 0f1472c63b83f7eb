//! Input validation: malformed, oversized, mistyped and invisible input gets a precise code and reason, and has no effect.

use std::str::FromStr as _;

use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::support::served_broker::ServedBroker;
use crate::support::*;

/// A codec that sends raw bytes.
#[derive(Default, Clone, Copy)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(
        &mut self,
        item: Vec<u8>,
        dst: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), Status> {
        use bytes::BufMut as _;
        dst.put_slice(&item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, src: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, Status> {
        use bytes::Buf as _;
        src.advance(src.remaining());
        Ok(Some(()))
    }
}

async fn send(channel: &Channel, method: &str, bytes: Vec<u8>) -> Status {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.expect("ready");
    let path = http::uri::PathAndQuery::from_str(&format!("/dipylon.v1.{method}")).expect("path");
    grpc.unary(Request::new(bytes), path, Raw)
        .await
        .expect_err("refused")
}

fn open(change: impl FnOnce(&mut v1::OpenTaskRequest)) -> Vec<u8> {
    let mut message = v1::OpenTaskRequest {
        evidence: Some(v1::Evidence {
            kind: Some(v1::evidence::Kind::JwtSvid("a.b.c".into())),
        }),
        purpose: "x".into(),
        max_duration: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        idempotency_key: "r-1".into(),
        heartbeat: None,
    };
    change(&mut message);
    message.encode_to_vec()
}

fn ask(change: impl FnOnce(&mut v1::RequestTokenRequest)) -> Vec<u8> {
    let mut message = v1::RequestTokenRequest {
        task_id: TaskId::from_random([1; 16]).to_string(),
        action: Some(dipylon_sdk::proto::convert::action_to_wire(&disable("ann"))),
        ttl: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        reason: String::new(),
        idempotency_key: "r-1".into(),
        wait: None,
        evidence: None,
        executor: String::new(),
        recommendation: String::new(),
    };
    change(&mut message);
    message.encode_to_vec()
}

fn parameter(name: &str, kind: Option<v1::value::Kind>) -> v1::Parameter {
    v1::Parameter {
        name: name.into(),
        value: Some(v1::Value { kind }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_are_rejected() {
    use v1::value::Kind;
    let s = ServedBroker::start().await;
    let channel = Channel::from_shared(s.url.clone())
        .expect("url")
        .connect()
        .await
        .expect("connects");
    let entries = s.broker.show().position().1;
    let unknown_field = |mut bytes: Vec<u8>| {
        bytes.extend([0xf8, 0x07, 0x01]);
        bytes
    };
    let twice = |bytes: Vec<u8>| [bytes.clone(), bytes].concat();
    let action = |change: fn(&mut v1::Action)| ask(|m| change(m.action.as_mut().expect("action")));
    let deep = {
        let mut value = v1::Value {
            kind: Some(Kind::BoolValue(true)),
        };
        for _ in 0..6 {
            value = v1::Value {
                kind: Some(Kind::SetValue(v1::ValueSet {
                    elements: vec![value],
                })),
            };
        }
        ask(|m| {
            m.action.as_mut().expect("action").parameters = vec![v1::Parameter {
                name: "p".into(),
                value: Some(value),
            }]
        })
    };
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        (
            "an unknown field",
            "OpenTask",
            unknown_field(open(|_| {})),
            "field",
        ),
        (
            "every field twice",
            "OpenTask",
            twice(open(|_| {})),
            "twice",
        ),
        ("not protobuf", "OpenTask", vec![0xff; 40], ""),
        (
            "no evidence",
            "OpenTask",
            open(|m| m.evidence = None),
            "evidence",
        ),
        (
            "evidence of no kind",
            "OpenTask",
            open(|m| m.evidence = Some(v1::Evidence { kind: None })),
            "evidence",
        ),
        (
            "no purpose",
            "OpenTask",
            open(|m| m.purpose = " ".into()),
            "purpose",
        ),
        (
            "a long purpose",
            "OpenTask",
            open(|m| m.purpose = "x".repeat(2_001)),
            "purpose",
        ),
        (
            "no duration",
            "OpenTask",
            open(|m| m.max_duration = None),
            "max_duration",
        ),
        (
            "a fraction of a second",
            "OpenTask",
            open(|m| {
                m.max_duration = Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 5,
                })
            }),
            "max_duration",
        ),
        (
            "no request id",
            "OpenTask",
            open(|m| m.idempotency_key.clear()),
            "idempotency_key",
        ),
        (
            "a slash in an id",
            "OpenTask",
            open(|m| m.idempotency_key = "a/b".into()),
            "idempotency_key",
        ),
        (
            "a newline in an id",
            "OpenTask",
            open(|m| m.idempotency_key = "a\nb".into()),
            "idempotency_key",
        ),
        (
            "a bidi control in an id",
            "OpenTask",
            open(|m| m.idempotency_key = "a\u{202e}b".into()),
            "idempotency_key",
        ),
        (
            "a long id",
            "OpenTask",
            open(|m| m.idempotency_key = "x".repeat(65)),
            "idempotency_key",
        ),
        (
            "another kind of id",
            "RequestToken",
            ask(|m| m.task_id = AccessRequestId::from_random([1; 16]).to_string()),
            "task_id",
        ),
        ("no ttl", "RequestToken", ask(|m| m.ttl = None), "ttl"),
        (
            "a negative wait",
            "RequestToken",
            ask(|m| {
                m.wait = Some(prost_types::Duration {
                    seconds: -1,
                    nanos: 0,
                })
            }),
            "wait",
        ),
        (
            "no action",
            "RequestToken",
            ask(|m| m.action = None),
            "action",
        ),
        (
            "no target",
            "RequestToken",
            action(|a| a.target = None),
            "target",
        ),
        (
            "a bidi control in a target",
            "RequestToken",
            action(|a| a.target.as_mut().expect("target").id = "ann\u{202e}".into()),
            "U+202E",
        ),
        (
            "a zero-width target",
            "RequestToken",
            action(|a| a.target.as_mut().expect("target").id = "an\u{200b}n".into()),
            "U+200B",
        ),
        (
            "an escape in a target",
            "RequestToken",
            action(|a| a.target.as_mut().expect("target").id = "\u{1b}[31mann".into()),
            "U+001B",
        ),
        (
            "a newline in an audience",
            "RequestToken",
            action(|a| a.audience = "https://x\n".into()),
            "audience",
        ),
        (
            "no audience",
            "RequestToken",
            action(|a| a.audience.clear()),
            "audience",
        ),
        (
            "a parameter twice",
            "RequestToken",
            action(|a| {
                a.parameters
                    .push(parameter("end_sessions", Some(Kind::BoolValue(false))))
            }),
            "param",
        ),
        (
            "a parameter of no kind",
            "RequestToken",
            action(|a| a.parameters.push(parameter("x", None))),
            "",
        ),
        (
            "a parameter with a bad name",
            "RequestToken",
            action(|a| {
                a.parameters
                    .push(parameter("x.y", Some(Kind::BoolValue(true))))
            }),
            "parameter",
        ),
        (
            "an integer JSON cannot hold",
            "RequestToken",
            action(|a| {
                a.parameters
                    .push(parameter("x", Some(Kind::IntValue(i64::MAX))))
            }),
            "2^53",
        ),
        (
            "a set out of order",
            "RequestToken",
            action(|a| {
                let elements = ["b", "a"]
                    .map(|s| v1::Value {
                        kind: Some(Kind::StringValue(s.into())),
                    })
                    .to_vec();
                a.parameters.push(parameter(
                    "x",
                    Some(Kind::SetValue(v1::ValueSet { elements })),
                ));
            }),
            "sorted",
        ),
        ("parameters too deep", "RequestToken", deep, ""),
        (
            "an unknown outcome",
            "CompleteTask",
            v1::CompleteTaskRequest {
                task_id: TaskId::from_random([1; 16]).to_string(),
                outcome: 9,
            }
            .encode_to_vec(),
            "",
        ),
        (
            "no outcome",
            "CompleteTask",
            v1::CompleteTaskRequest {
                task_id: TaskId::from_random([1; 16]).to_string(),
                outcome: 0,
            }
            .encode_to_vec(),
            "outcome",
        ),
    ];
    for (why, method, bytes, named) in cases {
        let status = send(&channel, &format!("TaskService/{method}"), bytes).await;
        let info = status
            .get_details_error_info()
            .unwrap_or_else(|| panic!("{why}: {status:?}"));
        assert_eq!(
            (status.code(), info.reason.as_str()),
            (Code::InvalidArgument, "MALFORMED"),
            "{why}: {status:?}"
        );
        assert!(
            status.message().contains(named),
            "{why}: {}",
            status.message()
        );
        assert!(
            status.metadata().get("dpop-nonce").is_none(),
            "{why}: the caller is not authenticated yet"
        );
    }
    let large = send(
        &channel,
        "TaskService/OpenTask",
        open(|m| m.purpose = "x".repeat(70_000)),
    )
    .await;
    assert!(
        matches!(large.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{large:?}"
    );
    assert_eq!(s.broker.show().position().1, entries, "no partial effect");
}

#[tokio::test]
async fn pending_and_refusal_caps() {
    let mut env = TestEnvironment::new();
    let entities = env.policy.get_mut("entities.json").expect("entities");
    let web = entities
        .find("{ \"uid\": { \"type\": \"Host\", \"id\": \"web-1\"")
        .expect("a host");
    let next = entities[web..].find("},\n  {").expect("another") + 3;
    let another = entities[web..web + next].replace("web-1", "web-2");
    entities.insert_str(web, &another);
    let b = TestBroker::start_with(env, Default::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    // Five may be pending.
    let note = |n: i64| {
        action(
            "account.disable",
            "Account",
            if n % 2 == 0 { "ann" } else { "cara" },
            IDP,
            &[("end_sessions", Param::Bool(n < 2))],
        )
    };
    for n in 0..4 {
        b.request_token(&triage, task, &note(n), 300, &format!("p-{n}"))
            .await
            .pending();
    }
    let host = action("host.isolate", "Host", "web-1", IDP, &[]);
    b.request_token(&triage, task, &host, 300, "p-4")
        .await
        .pending();
    let other = action("host.isolate", "Host", "web-2", IDP, &[]);
    assert_eq!(
        refused(b.request_token(&triage, task, &other, 300, "p-5").await),
        Reason::TooManyPending
    );
    b.request_token(&triage, task, &note(0), 300, "p-6")
        .await
        .pending();
    // Sixty refusals a minute are journaled.
    let mut last = Reason::UnknownTarget;
    for n in 0..61 {
        last = refused(
            b.request_token(&triage, task, &disable(&format!("unknown-{n}")), 60, "r")
                .await,
        );
    }
    assert_eq!(last, Reason::TooManyRefusals);
    b.manual_clock.advance_millis(60_000);
    assert_eq!(
        refused(
            b.request_token(&triage, task, &disable("unknown"), 60, "r")
                .await
        ),
        Reason::UnknownTarget
    );
    b.check_invariants();
}

#[tokio::test]
async fn task_deadline_is_enforced_before_it_is_journaled() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let other = b
        .try_open_task(&triage, "other", "open-2")
        .await
        .expect("opens")
        .task
        .task;
    b.manual_clock.advance_millis(3_599_000);
    let shown = b.svid(&triage);
    let reply = b
        .request_token_with_evidence(&triage, task, &read_case(), 300, "r-1", Some(shown))
        .await
        .token();
    assert_eq!(
        reply.issued.exp - reply.issued.iat,
        1,
        "the task's remaining life bounds the token's"
    );
    b.manual_clock.advance_millis(1_000);
    assert_eq!(
        refused(
            b.request_token(&triage, task, &read_case(), 300, "r-2")
                .await
        ),
        Reason::TaskEnded
    );
    assert!(
        b.broker.show().task(&task).expect("there").ended.is_none(),
        "derived from the deadline, not from an entry"
    );
    let late = b.complete_task(&triage, other).await.expect("answers");
    assert_eq!(
        late.cause,
        EndCause::Deadline,
        "the deadline ended it, whichever call reports it"
    );
    b.broker.maintenance_tick().await.expect("news");
    let ended = b
        .broker
        .show()
        .task(&task)
        .expect("there")
        .ended
        .expect("written");
    assert_eq!(ended.cause, EndCause::Deadline);
    assert_eq!(
        b.complete_task(&triage, task)
            .await
            .expect("idempotent")
            .cause,
        EndCause::Deadline,
        "the first end cause stays"
    );
    b.check_invariants();
}

#[tokio::test]
async fn invalid_feed_positions() {
    let b = TestBroker::start().await;
    let watch = |after| {
        b.broker.watch_revocations(
            &b.person_call("dipylon.v1.TokenService/WatchRevocations", "cases"),
            after,
        )
    };
    let (epoch, index) = b.broker.show().position();
    let position = |epoch, index| Some(dipylon_sdk::model::JournalPosition { epoch, index });
    assert_eq!(
        refused(watch(position(epoch + 1, 0))),
        Reason::EpochMismatch
    );
    assert_eq!(
        refused(watch(position(epoch, index + 1))),
        Reason::PositionAhead
    );
    assert!(watch(None).expect("a start").resync.is_some());
}
