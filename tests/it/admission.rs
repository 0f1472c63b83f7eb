//! Admission control: rate limits and concurrency limits keep one source, one caller or one class from starving the others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dipylon::rate_limit::RateLimitConfig;
use dipylon_sdk::client::{AgentClient, Error, OpenTaskRequest, TokenOutcome};
use dipylon_sdk::model::*;
use dipylon_sdk::proto::v1;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::wait::until;
use crate::support::{CASES, TestBroker, disable, first_inbox_page, read_case, refused};

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

/// A channel whose connection comes from this loopback address.
fn from(s: &ServedBroker, last: u8) -> Channel {
    tonic::transport::Endpoint::from_shared(s.url.clone())
        .expect("url")
        .local_address(Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))))
        .connect_lazy()
}

/// One unauthenticated call: it costs no cryptography and reaches gate 1 unless it is shed before.
async fn unauthenticated_call(channel: &Channel, method: &'static str) -> Status {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.expect("ready");
    let codec = dipylon_sdk::proto::strict::StrictCodec::<
        v1::GetAccessRequestRequest,
        v1::GetAccessRequestResponse,
    >::default();
    let request = tonic::Request::new(v1::GetAccessRequestRequest::default());
    let path = http::uri::PathAndQuery::from_static(method);
    let answer: Result<tonic::Response<v1::GetAccessRequestResponse>, Status> =
        grpc.unary(request, path, codec).await;
    answer.expect_err("a stranger")
}

const GENERAL: &str = "/dipylon.v1.TaskService/GetAccessRequest";

fn is_shed(status: &Status) -> bool {
    let reason = status.get_details_error_info().map(|info| info.reason);
    reason.as_deref() == Some("RATE_LIMITED")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn per_source_rate_isolates_sources() {
    let slow = RateLimitConfig {
        source_per_second: n(1),
        ..RateLimitConfig::default()
    };
    let s = ServedBroker::start_at(slow).await;
    let flood = from(&s, 1);
    let mut shed = Vec::new();
    for _ in 0..10 {
        let status = unauthenticated_call(&flood, GENERAL).await;
        if is_shed(&status) {
            shed.push(status);
        }
    }
    assert!(
        shed.len() >= 5,
        "a bucket holds two: {} of ten were shed",
        shed.len()
    );
    for status in &shed {
        assert_eq!(status.code(), Code::ResourceExhausted);
        let wait = status.get_details_retry_info().expect("a retry delay");
        let wait = wait.retry_delay.expect("a retry delay");
        assert!(
            wait > Duration::ZERO && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
    }
    let other = from(&s, 2);
    assert!(
        !is_shed(&unauthenticated_call(&other, GENERAL).await),
        "another source has its own rate"
    );
    // The reserved class has its own rate at the same source: gate 1 answers.
    let introspect = "/dipylon.v1.TokenService/Introspect";
    let introspected = unauthenticated_call(&flood, introspect).await;
    assert!(!is_shed(&introspected), "{introspected}");
    for path in ["/livez", "/readyz", "/.well-known/jwks.json"] {
        assert_eq!(get(&s.url, path).await.0, 200, "{path}");
    }
    let text = s.broker.read_metrics();
    let limited = format!(
        "dipylon_rate_limited_total{{class=\"general\",by=\"source\"}} {}\n",
        shed.len()
    );
    assert!(text.contains(&limited), "{text}");
    let before = s.broker.journal().head().borrow().checkpoint;
    unauthenticated_call(&flood, GENERAL).await;
    assert_eq!(
        s.broker.journal().head().borrow().checkpoint,
        before,
        "a shed call writes no entry"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarded_headers_do_not_change_the_source() {
    let slow = RateLimitConfig {
        source_per_second: n(1),
        ..RateLimitConfig::default()
    };
    let s = ServedBroker::start_at(slow).await;
    let mut codes = BTreeMap::new();
    for last in 0..10 {
        let answer = get_with_header(
            &s.url,
            "/nowhere",
            &format!("X-Forwarded-For: 192.0.2.{last}"),
        )
        .await;
        *codes.entry(answer.0).or_insert(0) += 1;
        if answer.0 == 429 {
            assert!(answer.1.contains("retry-after: "), "{}", answer.1);
        }
    }
    assert!(codes.get(&429).copied().unwrap_or(0) >= 5, "{codes:?}");
}

/// The general permits are taken and their queue is full; ending, validating and following the feed still work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_classes_are_served_under_overload() {
    let few = RateLimitConfig {
        max_concurrent_calls: n(1),
        ..RateLimitConfig::default()
    };
    let s = ServedBroker::start_at(few).await;
    let task = s.task("triage").await;
    let Ok(TokenOutcome::Token(token)) =
        task.request_token(&token_request(read_case(), "r-1")).await
    else {
        panic!("a token")
    };
    let validator = s.validator("cases", CASES).await;
    let stop = Arc::new(AtomicBool::new(false));
    let shed = Arc::new(AtomicUsize::new(0));
    let flood: Vec<_> = (0..40)
        .map(|_| {
            let agent = AgentClient::new(s.endpoint().with_retry_ms(0), s.evidence("triage"), None);
            let (stop, shed) = (stop.clone(), shed.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let refused = agent.open_task(&opening()).await;
                    if reason(&refused) == Some(Reason::RateLimited) {
                        shed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    until("twenty calls are shed", || shed.load(Ordering::SeqCst) > 20).await;
    let before = shed.load(Ordering::SeqCst);
    for _ in 0..5 {
        let live = validator.introspect(token.jwt().expose_secret()).await;
        assert!(live.expect("introspected").active);
    }
    let report = task
        .complete(TaskOutcome::Succeeded)
        .await
        .expect("revocation is never shed");
    assert_eq!(report.tokens_revoked, 1);
    let introspection = validator.introspect(token.jwt().expose_secret()).await;
    assert!(!introspection.expect("introspected").active);
    s.operator("olga")
        .suspend(&AgentId::parse("triage").expect("id"), "flood")
        .await
        .expect("an operator suspends it");
    until("more calls are shed", || {
        shed.load(Ordering::SeqCst) > before
    })
    .await;
    let text = s.broker.read_metrics();
    let shed_line = "dipylon_rate_limited_total{class=\"general\",by=\"concurrency\"} ";
    assert!(text.contains(shed_line), "{text}");
    assert!(!text.contains(&format!("{shed_line}0\n")), "{text}");
    let reserved = text
        .lines()
        .filter(|line| line.contains("class=\"reserved\""));
    for line in reserved {
        assert!(line.ends_with(" 0"), "{line}");
    }
    stop.store(true, Ordering::SeqCst);
    for load in flood {
        load.await.expect("stopped");
    }
}

/// Calls that wait for an approval give their permit back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_calls_release_their_permit() {
    let few = RateLimitConfig {
        max_concurrent_calls: n(1),
        ..RateLimitConfig::default()
    };
    let s = ServedBroker::start_at(few).await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(s.task("triage").await);
    }
    let mut waiting = Vec::new();
    for task in tasks {
        let mut ask = token_request(disable("ann"), "r-1");
        ask.wait_s = 30;
        waiting.push(tokio::spawn(async move { task.request_token(&ask).await }));
    }
    let maria = s.approver("maria");
    let mut listed = Vec::new();
    for _ in 0..500 {
        listed = maria.access_requests().await.expect("a permit is free");
        if listed.len() == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(listed.len(), 4, "all are pending at once");
    assert!(waiting.iter().all(|w| !w.is_finished()));
    s.operator("olga")
        .suspend(&AgentId::parse("triage").expect("id"), "enough")
        .await
        .expect("suspended");
    for call in waiting {
        let answer = call.await.expect("ran");
        assert!(answer.is_err(), "woken, and rejected by gate 1: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_honours_retry_delay() {
    let slow = RateLimitConfig {
        caller_per_second: n(4),
        ..RateLimitConfig::default()
    };
    let s = ServedBroker::start_at(slow).await;
    let task = s.task("triage").await;
    for i in 0..12 {
        let outcome = task
            .request_token(&token_request(read_case(), &format!("r-{i}")))
            .await;
        assert!(
            matches!(outcome, Ok(TokenOutcome::Token(_))),
            "{i}: {outcome:?}"
        );
    }
    let text = s.broker.read_metrics();
    let prefix = "dipylon_rate_limited_total{class=\"general\",by=\"caller\"} ";
    let limited = text.lines().find_map(|line| line.strip_prefix(prefix));
    let limited: u32 = limited
        .expect("it was rate limited")
        .parse()
        .expect("a count");
    // A bucket holds eight of the fourteen (the first, without a nonce yet, counts too), and no client retries before the
    // retry delay.
    assert!((1..=6).contains(&limited), "{limited}");
    // A wait beyond the client's deadline is not begun.
    let impatient = AgentClient::new(s.endpoint().with_retry_ms(0), s.evidence("triage"), None);
    let mut reason = None;
    for _ in 0..20 {
        if let Err(error) = impatient.open_task(&opening()).await {
            reason = error.reason();
            break;
        }
    }
    assert_eq!(reason, Some(Reason::RateLimited));
}

/// Rates are per caller: an agent's tasks share one; other agents, people and revocations have their own.
#[tokio::test]
async fn per_agent_rate_isolates_agents() {
    let b = TestBroker::start_at(RateLimitConfig {
        caller_per_second: n(2),
        ..RateLimitConfig::default()
    })
    .await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    for i in 0..3 {
        b.request_token(&triage, task, &read_case(), 60, &format!("r-{i}"))
            .await
            .expect("within its rate");
    }
    let refusal = b
        .request_token(&triage, task, &read_case(), 60, "r-4")
        .await
        .expect_err("beyond its rate");
    assert_eq!(refusal.reason, Reason::RateLimited);
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(500)));
    let second = b.agent("triage");
    let another_key = b.try_open_task(&second, "more", "open-2").await;
    assert_eq!(
        refused(another_key),
        Reason::RateLimited,
        "by agent, not by key"
    );
    // The clock stands still: trying again does not help.
    for _ in 0..50 {
        let again = b
            .request_token(&triage, task, &read_case(), 60, "r-4")
            .await;
        assert_eq!(refused(again), Reason::RateLimited);
    }
    let head = b.broker.journal().head().borrow().checkpoint;
    b.open_task(&b.agent("reporter")).await;
    let call = b.person_call("dipylon.v1.ApprovalService/ListAccessRequests", "maria");
    b.broker
        .inbox(&call, &first_inbox_page())
        .expect("a person");
    assert_eq!(
        b.broker.journal().head().borrow().checkpoint.size,
        head.size + 1,
        "what was shed is no entry"
    );
    b.manual_clock.advance_millis(500);
    b.request_token(&triage, task, &read_case(), 60, "r-4")
        .await
        .expect("after the retry delay");
    b.complete_task(&triage, task)
        .await
        .expect("revocation has its own rate");
    b.check_invariants();
}

/// Unauthenticated calls consume no caller's rate, so a rate reveals no known key or name.
#[tokio::test]
async fn anonymous_calls_do_not_consume_caller_rates() {
    let b = TestBroker::start_at(RateLimitConfig {
        caller_per_second: n(1),
        ..RateLimitConfig::default()
    })
    .await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let stranger = b.agent("triage");
    for i in 0..20 {
        let introspected = b
            .request_token(&stranger, task, &read_case(), 60, &format!("s-{i}"))
            .await;
        assert_eq!(refused(introspected), Reason::NotFound);
    }
    b.request_token(&triage, task, &read_case(), 60, "r-1")
        .await
        .expect("the task's own rate is untouched");
}

fn opening() -> OpenTaskRequest {
    OpenTaskRequest {
        purpose: "flood".into(),
        max_duration_s: 60,
        idempotency_key: None,
        heartbeat_s: None,
    }
}

fn reason<T>(result: &Result<T, Error>) -> Option<Reason> {
    result.as_ref().err().and_then(Error::reason)
}

/// Status and text of a plain HTTP response.
pub async fn get(url: &str, path: &str) -> (u16, String) {
    get_with_header(url, path, "Accept: */*").await
}

async fn get_with_header(url: &str, path: &str, header: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connects");
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{header}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    let code = answer.split(' ').nth(1).expect("a status");
    (code.parse().expect("a number"), answer)
}
