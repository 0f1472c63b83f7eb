//! Metrics, the operator listener and call logs of a real broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dipylon::broker::Broker;
use dipylon::serve::{AdminListener, serve_admin};
use dipylon::telemetry::METRICS_DOC;
use dipylon_sdk::client::vote::ReviewedCard;
use dipylon_sdk::client::{AgentClient, EvidenceSource, OpenTaskRequest, TokenOutcome};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::*;

use super::admission::get;
use super::hung_disk::HungDisk;
use crate::support::broker_deployment::BrokerDeployment;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::wait::in_time;
use crate::support::{
    CASES, DOMAIN, ExpectReply as _, TestBroker, TestEnvironment, action, disable, read_case,
};

/// An operator listener for a broker, and its URL.
async fn operator_listener(
    broker: &Arc<Broker>,
) -> (String, tokio::task::JoinHandle<std::io::Result<()>>) {
    let any = "127.0.0.1:0".parse().expect("address");
    let listener = AdminListener::tcp(any).await.expect("listens");
    let place = listener.display_address();
    (place, tokio::spawn(serve_admin(broker.clone(), listener)))
}

/// All samples: name with labels → value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

async fn scrape(place: &str) -> BTreeMap<String, f64> {
    let (code, answer) = get(place, "/metrics").await;
    assert_eq!(code, 200, "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    let body = unchunked(head, body);
    assert!(body.ends_with("# EOF\n"), "complete: {body}");
    samples(&body)
}

fn unchunked(head: &str, body: &str) -> String {
    if !head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        return body.to_owned();
    }
    let (mut out, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        out.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    out
}

fn documented() -> BTreeSet<String> {
    let rows = METRICS_DOC.lines().filter_map(|l| l.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next())
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_end_to_end() {
    let s = ServedBroker::start().await;
    let (place, operator) = operator_listener(&s.broker).await;
    assert_eq!(get(&place, "/livez").await.0, 200);
    assert_eq!(get(&place, "/readyz").await.0, 200);
    assert_eq!(
        get(&s.url, "/metrics").await.0,
        404,
        "not on the public listener"
    );
    let before = scrape(&place).await;
    assert_eq!(before["dipylon_tasks_open"], 0.0);
    assert_eq!(before["dipylon_tokens_active"], 0.0);

    let validator = s.validator("cases", CASES).await;
    let task = s.task("triage").await;
    let read = task.request_token(&token_request(read_case(), "r-1")).await;
    let Ok(TokenOutcome::Token(_)) = read else {
        panic!("a token: {read:?}")
    };
    let outcome = task
        .request_token(&token_request(disable("ann"), "r-2"))
        .await;
    let Ok(TokenOutcome::Pending(pending)) = outcome else {
        panic!("pending: {outcome:?}")
    };
    let during = scrape(&place).await;
    assert_eq!(during["dipylon_tasks_open"], 1.0);
    assert_eq!(during["dipylon_tokens_active"], 1.0);
    assert_eq!(during["dipylon_access_requests_pending"], 1.0);
    assert_eq!(during["dipylon_feed_subscribers"], 1.0);
    assert!(
        during["dipylon_connections"] >= 2.0,
        "the agent's and the validator's"
    );

    let maria = s.approver("maria");
    let card = maria.card(pending.access_request_id()).await.expect("card");
    let realm = dipylon_sdk::model::Realm::parse("test").expect("realm");
    let profile = ProfileName::parse("one-security").expect("profile");
    maria
        .vote(&ReviewedCard {
            card: &card,
            realm: &realm,
            profile: &profile,
            verdict: Verdict::Approve,
            narrowing: Narrowing {
                max_ttl: None,
                max_uses: None,
            },
            comment: None,
        })
        .await
        .expect("votes");
    let granted = task
        .request_token(&token_request(disable("ann"), "r-2"))
        .await;
    assert!(matches!(granted, Ok(TokenOutcome::Token(_))), "{granted:?}");
    let closed = action("case.note", "Case", "INC-9999", CASES, &[]);
    task.request_token(&token_request(closed, "r-3"))
        .await
        .expect_err("no such target");
    task.complete(TaskOutcome::Succeeded)
        .await
        .expect("completes");
    // The counter moves once the feed has delivered the event.
    let mut after = scrape(&place).await;
    for _ in 0..500 {
        if after["dipylon_revocation_delivery_delay_seconds_count"] >= 1.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        after = scrape(&place).await;
    }
    drop(validator);

    assert_eq!(after["dipylon_tasks_open"], 0.0);
    assert_eq!(after["dipylon_tokens_active"], 0.0);
    assert_eq!(after["dipylon_access_requests_pending"], 0.0);
    assert_eq!(
        after["dipylon_revocation_delivery_delay_seconds_count"],
        1.0
    );
    assert_eq!(
        after["dipylon_evidence_checks_total{kind=\"jwt-svid\",result=\"valid\"}"], 2.0,
        "one call without a nonce, one with"
    );
    let decisions = |outcome: &str| -> f64 {
        let start = format!("dipylon_decisions_total{{outcome=\"{outcome}\",");
        let of = after.iter().filter(|(name, _)| name.starts_with(&start));
        of.map(|(_, n)| n).sum()
    };
    assert_eq!(
        (decisions("approved"), decisions("pending")),
        (2.0, 1.0),
        "{after:?}"
    );
    assert_eq!(
        after["dipylon_approval_wait_seconds_count{outcome=\"approved\"}"],
        1.0
    );
    assert_eq!(
        after["dipylon_vote_signing_duration_seconds_count{method=\"key\"}"],
        1.0
    );
    let calls = |method: &str, code: &str| {
        let name =
            format!("dipylon_rpc_requests_total{{method=\"dipylon.v1.{method}\",code=\"{code}\"}}");
        after.get(&name).copied().unwrap_or(0.0)
    };
    assert_eq!(calls("TaskService/OpenTask", "OK"), 1.0);
    assert_eq!(calls("TaskService/RequestToken", "OK"), 3.0);
    assert_eq!(calls("TaskService/RequestToken", "INVALID_ARGUMENT"), 1.0);
    assert_eq!(calls("TaskService/CompleteTask", "OK"), 1.0);
    assert_eq!(
        after["dipylon_refusals_total{reason=\"UNKNOWN_TARGET\"}"],
        1.0
    );
    let entries = s.broker.journal().head().borrow().checkpoint.size;
    assert_eq!(after["dipylon_journal_entries"], entries as f64);
    assert!(after["dipylon_journal_bytes"] > 4096.0);
    assert!(
        after["dipylon_journal_append_duration_seconds_count"]
            > before["dipylon_journal_append_duration_seconds_count"]
    );
    assert_eq!(after["dipylon_pending_revocations"], 0.0);
    assert_eq!(after["dipylon_clock_skew_seconds"], 0.0);
    let version = after
        .keys()
        .find(|k| k.starts_with("dipylon_policy_info{version=\""));
    assert!(version.is_some(), "{after:?}");
    let known = documented();
    for name in after.keys() {
        let base = name.split('{').next().expect("a name");
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| base.strip_suffix(suffix))
            .unwrap_or(base);
        assert!(known.contains(base), "{name} is not documented");
    }
    operator.abort();
}

/// Of two calls that would consume one approval, the second is decided anew, and that is counted.
#[tokio::test]
async fn append_conflicts_are_counted() {
    let (disk, faults) = HungDisk::new(None);
    let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
    let (place, operator) = operator_listener(&b.broker).await;
    let (triage, disable) = (b.agent("triage"), disable("ann"));
    let task = b.open_task(&triage).await;
    let request = |key| b.request_token(&triage, task, &disable, 300, key);
    let id = request("first").await.pending().access_request;
    b.approve("maria", id, "one-security").await;
    let before = scrape(&place).await;
    assert_eq!(before["dipylon_append_conflicts_total"], 0.0);
    disk.hang();
    // On this one thread both calls have read the approval and wait for the journal before the disk answers.
    let release = async {
        tokio::task::yield_now().await;
        drop(disk);
    };
    let (first, second, ()) = tokio::join!(request("r-1"), request("r-2"), release);
    assert_eq!(first.token().issued.consumed, Some(id));
    assert_ne!(second.pending().access_request, id, "it needs another");
    let after = scrape(&place).await;
    // At least: a round that met the first call's entry halfway is asked again too.
    assert!(after["dipylon_append_conflicts_total"] >= 1.0);
    operator.abort();
}

/// Names chosen by callers neither add samples nor appear in labels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metric_cardinality_is_bounded() {
    let s = ServedBroker::start().await;
    let (place, operator) = operator_listener(&s.broker).await;
    let task = s.task("triage").await;
    let round = async |round: usize| {
        for i in 0..5 {
            let name = format!("hostile.n{round}x{i}");
            let unknown = action(&name, "Case", &format!("HOSTILE-{round}-{i}"), CASES, &[]);
            task.request_token(&token_request(unknown, &format!("hostile-{round}-{i}")))
                .await
                .expect_err("no such action");
            let path = format!("/dipylon.v1.TaskService/Hostile{round}{i}");
            get(&s.url, &path).await;
            get(&s.url, &format!("/hostile/{round}/{i}")).await;
        }
        let id = format!("spiffe://{DOMAIN}/agent/hostile-{round}");
        let evidence = s.env.svid_for(&s.url, &id, Clock::system().now(), 60);
        let stranger = AgentClient::new(s.endpoint(), EvidenceSource::Fixed(evidence), None);
        let opening = OpenTaskRequest {
            purpose: "hostile".into(),
            max_duration_s: 60,
            idempotency_key: None,
            heartbeat_s: None,
        };
        stranger
            .open_task(&opening)
            .await
            .expect_err("no such agent");
    };
    round(1).await;
    let once = scrape(&place).await;
    for n in 2..6 {
        round(n).await;
    }
    let often = scrape(&place).await;
    assert_eq!(
        once.keys().collect::<Vec<_>>(),
        often.keys().collect::<Vec<_>>()
    );
    for name in often.keys() {
        assert!(!name.to_lowercase().contains("hostile"), "{name}");
    }
    let causes = "dipylon_authentication_failures_total{cause=\"agents\"}";
    assert_eq!(often[causes] - once[causes], 4.0, "{often:?}");
    operator.abort();
}

#[tokio::test]
async fn operator_listener_is_local_only() {
    let everywhere = "0.0.0.0:0".parse().expect("address");
    AdminListener::tcp(everywhere)
        .await
        .expect_err("not loopback");
    let s = ServedBroker::start().await;
    let path = s.dir.join("operator.sock");
    // A stale socket of a broker that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("left"));
    let listener = AdminListener::unix(&path).expect("listens");
    AdminListener::unix(&path).expect_err("one at a time");
    use std::os::unix::fs::MetadataExt as _;
    let mode = std::fs::metadata(&path).expect("socket").mode();
    assert_eq!(mode & 0o777, 0o600, "owner only");
    let operator = tokio::spawn(serve_admin(s.broker.clone(), listener));
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::UnixStream::connect(&path)
        .await
        .expect("connects");
    let ask = b"GET /metrics HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n";
    stream.write_all(ask).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    assert!(answer.contains("dipylon_tasks_open 0\n"), "{answer}");
    operator.abort();
    let _aborted = operator.await;
    assert!(!path.exists(), "and unlinks its socket");
    // A socket that is not its own is left.
    let listener = AdminListener::unix(&path).expect("listens");
    std::fs::remove_file(&path).expect("removed");
    let _another = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    drop(listener);
    assert!(path.exists());
    AdminListener::unix(&path).expect_err("another listens there");
}

#[tokio::test]
async fn operator_listener_checks_host_header() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let s = ServedBroker::start().await;
    let (place, operator) = operator_listener(&s.broker).await;
    let address = place.trim_start_matches("http://");
    for (target, hosts, status) in [
        ("/livez", "Host: localhost", 200),
        ("/livez", "Host: rebound.example", 421),
        ("/metrics", "Host: rebound.example:9100", 421),
        // The target's own host counts as well (RFC 9112 §3.2.2).
        ("http://rebound.example/metrics", "Host: localhost", 421),
        ("/metrics", "Host: localhost\r\nHost: rebound.example", 421),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connects");
        let ask = format!("GET {target} HTTP/1.1\r\n{hosts}\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        // Read to its end: one response per connection.
        in_time("an end", stream.read_to_string(&mut answer))
            .await
            .expect("read");
        let head = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&head), "{target} {hosts}: {answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(!answer.contains("dipylon_"), "{answer}");
    }
    operator.abort();
}

#[tokio::test]
async fn idle_connections_do_not_block_metrics() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let s = ServedBroker::start().await;
    let (place, operator) = operator_listener(&s.broker).await;
    let address = place.trim_start_matches("http://");
    let mut held = tokio::task::JoinSet::new();
    for n in 0..40 {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connects");
        held.spawn(async move {
            stream
                .write_all(b"GET /livez HTTP/1.1\r\nx-slow: ")
                .await
                .expect("sent");
            let mut byte = [0];
            loop {
                let wait = std::time::Duration::from_millis(500);
                match tokio::time::timeout(wait, stream.read(&mut byte)).await {
                    Ok(_closed) => return,
                    // Some never finish their request, some send nothing more.
                    Err(_) if n % 2 == 0 && stream.write_all(b"a").await.is_err() => return,
                    Err(_) => {}
                }
            }
        });
    }
    let (status, _) = in_time("an operator's answer", get(&place, "/livez")).await;
    assert_eq!(status, 200);
    in_time("all of them are closed", async {
        while held.join_next().await.is_some() {}
    })
    .await;
    operator.abort();
}

/// The real process with a JSON log: each answered call is one object with its fields.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_log_has_one_line_per_call() {
    let temp = tempfile::tempdir().expect("dir");
    let realm = BrokerDeployment::with_config(temp.path(), "log = \"json\"\n");
    let log = temp.path().join("broker.log");
    let file = std::fs::File::create(&log).expect("file");
    let mut broker = realm.broker_with_log(file.into(), "dipylon=info").await;
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let svid = realm
        .env
        .svid_for(&realm.url, &id, Clock::system().now(), 3_600);
    let agent = AgentClient::new(realm.endpoint(), EvidenceSource::Fixed(svid), None);
    let opening = OpenTaskRequest {
        purpose: "contain".into(),
        max_duration_s: 600,
        idempotency_key: Some("open-1".into()),
        heartbeat_s: None,
    };
    let task = agent.open_task(&opening).await.expect("opens");
    let Ok(TokenOutcome::Token(token)) =
        task.request_token(&token_request(read_case(), "r-1")).await
    else {
        panic!("a token")
    };
    let unknown = action("case.read", "Case", "INC-9999", CASES, &[]);
    let denial = task
        .request_token(&token_request(unknown, "r-2"))
        .await
        .expect_err("no such target");
    // A caller that disconnects while it waits for an approval.
    let mut ask = token_request(disable("ann"), "r-3");
    ask.wait_s = 30;
    let abandoned =
        tokio::time::timeout(Duration::from_millis(500), task.request_token(&ask)).await;
    abandoned.expect_err("still waiting");
    traced(&realm.url).await;
    let mut lines: Vec<serde_json::Value> = Vec::new();
    for _ in 0..500 {
        let text = std::fs::read_to_string(&log).expect("log");
        lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("one object a line"))
            .collect();
        let went_away = |l: &serde_json::Value| l["message"] == "client disconnected";
        if lines.iter().any(went_away) && lines.iter().any(|l| !l["span"]["trace_id"].is_null()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    broker.kill().await.expect("stopped");
    let line = |message: &str, request: &str| {
        let found = lines.iter().find(|l| {
            l["message"] == message
                && l["span"]["request"] == request
                && l["code"] != "UNAUTHENTICATED"
        });
        found.unwrap_or_else(|| panic!("{message} {request}: {lines:#?}"))
    };
    let opened = line("request completed", "open-1");
    assert_eq!(opened["code"], "OK");
    assert_eq!(opened["span"]["caller"], "agent");
    assert_eq!(opened["span"]["who"], "triage");
    assert_eq!(opened["span"]["task"], task.id().to_string());
    assert_eq!(opened["span"]["method"], "dipylon.v1.TaskService/OpenTask");
    assert!(opened["ms"].is_u64());
    let issued = line("request completed", "r-1");
    assert_eq!(issued["span"]["outcome"], "token");
    assert_eq!(issued["span"]["token"], token.jti().to_string());
    let decision = issued["span"]["decision"].as_str().expect("a decision");
    DecisionId::parse(decision).expect("an id");
    let refused = line("request completed", "r-2");
    assert_eq!(refused["reason"], "UNKNOWN_TARGET");
    assert_eq!(
        refused["span"]["correlation"].as_str(),
        denial.correlation(),
        "the decision ID in the reply and in the log"
    );
    let cancelled = line("client disconnected", "r-3");
    assert_eq!(cancelled["code"], "CANCELLED");
    let traces: Vec<_> = lines
        .iter()
        .filter_map(|l| l["span"]["trace_id"].as_str())
        .collect();
    assert!(!traces.is_empty());
    assert!(traces.iter().all(|t| *t == TRACE), "{traces:?}");
}

pub const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Two calls with a `traceparent`: one that is valid, one that is not.
pub async fn traced(url: &str) {
    use dipylon_sdk::proto::v1;
    for parent in [
        format!("00-{TRACE}-00f067aa0ba902b7-01"),
        format!("00-{TRACE}-00f067aa0ba902b7-01-forged"),
    ] {
        let channel = tonic::transport::Endpoint::from_shared(url.to_owned())
            .expect("url")
            .connect_lazy();
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.expect("ready");
        let codec = dipylon_sdk::proto::strict::StrictCodec::<
            v1::GetAccessRequestRequest,
            v1::GetAccessRequestResponse,
        >::default();
        let mut request = tonic::Request::new(v1::GetAccessRequestRequest::default());
        let value = parent.parse().expect("ascii");
        request.metadata_mut().insert("traceparent", value);
        let path = http::uri::PathAndQuery::from_static("/dipylon.v1.TaskService/GetAccessRequest");
        let answer: Result<tonic::Response<v1::GetAccessRequestResponse>, _> =
            grpc.unary(request, path, codec).await;
        answer.expect_err("a stranger");
    }
}
