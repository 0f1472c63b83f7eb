//! gRPC calls: an empty one; mints beside the same steps in process; introspection beside an empty call and one
//! signature check.

use std::hint::black_box;
use std::time::Instant;

use dipylon::broker::{RequestTokenInput, TokenReply};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::Secret;
use dipylon_sdk::proto::v1;
use dipylon_sdk::proto::v1::task_service_client::TaskServiceClient;
use dipylon_sdk::proto::v1::token_service_client::TokenServiceClient;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::Counts;
use super::closed_loop::{Slice, Tally, closed, nanos, percentile, ratio};
use super::report::{Report, ms};
use super::setup::{
    BenchSetup, INTROSPECT, REQUEST_TOKEN, TaskHolder, call_context, wire, wire_token_request,
};

/// Callers at a time.
const IN_FLIGHT: [usize; 3] = [1, 16, 64];
/// Tasks that mints are spread over.
const TASKS: usize = 64;

pub fn run(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    report.part("An empty call (health) over gRPC on the same server");
    for in_flight in IN_FLIGHT {
        let count = slice_size(counts, in_flight);
        let mut empty_calls = Tally::default();
        for _ in 0..counts.rounds {
            empty_calls.add(empty(setup, count, in_flight));
        }
        report.line(&format!("{in_flight} in flight"), &empty_calls.summary());
    }
    measure_mints(setup, counts, report);
    introspections(setup, counts, report);
}

fn slice_size(counts: &Counts, in_flight: usize) -> usize {
    match in_flight {
        1 => counts.alone,
        _ => counts.crowd,
    }
}

fn measure_mints(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    report.part("A token: both gates, bound to a key, durable");
    for in_flight in IN_FLIGHT {
        let holders = setup.tasks("triage", TASKS);
        let count = slice_size(counts, in_flight);
        let (mut wired, mut bare) = (Tally::default(), Tally::default());
        // Warm-up of caches and connections.
        over_the_wire(
            setup,
            setup.token_requests(&holders, count.min(TASKS)),
            in_flight,
        );
        for _ in 0..counts.rounds {
            bare.add(in_process(setup, &holders, count, in_flight));
            wired.add(over_the_wire(
                setup,
                setup.token_requests(&holders, count),
                in_flight,
            ));
        }
        report.line(
            &format!("over gRPC, {in_flight} in flight"),
            &wired.summary(),
        );
        report.line(
            &format!("same steps in process, {in_flight}"),
            &bare.summary(),
        );
        let goal = "at least 0.70";
        if in_flight == 1 {
            // One call waits for one fsync: only the median is free of disk outliers.
            let ratio = bare.percentile(50) as f64 / wired.percentile(50) as f64;
            report.ratio("ratio of the medians", ratio, goal);
        } else {
            report.ratio("ratio of the rates", ratio(&wired, &bare), goal);
        }
    }
}

/// Mints over gRPC.
pub fn over_the_wire(
    setup: &BenchSetup,
    asks: Vec<(RequestTokenInput, Secret)>,
    in_flight: usize,
) -> Slice {
    let requests: Vec<_> = asks
        .iter()
        .map(|(ask, proof)| wire(wire_token_request(ask), proof))
        .collect();
    let clients = setup.clients.clone();
    setup
        .load
        .block_on(closed(requests, in_flight, move |caller, request| {
            mint(clients[caller % clients.len()].clone(), request)
        }))
}

/// One RequestToken call that must return a token.
pub async fn mint(client: Channel, request: tonic::Request<v1::RequestTokenRequest>) {
    let mut client = TaskServiceClient::new(client);
    let answer = client.request_token(request).await.expect("answered");
    let outcome = answer.into_inner().outcome;
    let token = matches!(outcome, Some(v1::request_token_response::Outcome::Token(_)));
    assert!(token, "a token");
}

/// Mints by calling the broker in process, on the broker's threads.
pub fn in_process(
    setup: &BenchSetup,
    holders: &[TaskHolder],
    count: usize,
    in_flight: usize,
) -> Slice {
    let calls: Vec<_> = setup
        .token_requests(holders, count)
        .into_iter()
        .map(|(ask, proof)| (call_context(REQUEST_TOKEN, proof), ask))
        .collect();
    let broker = setup.broker();
    setup
        .broker
        .block_on(closed(calls, in_flight, move |_, (call, ask)| {
            let broker = broker.clone();
            async move {
                let reply = broker.request_token(&call, ask).await.expect("answered");
                assert!(matches!(reply, TokenReply::Token(_)), "a token");
            }
        }))
}

fn empty(setup: &BenchSetup, count: usize, in_flight: usize) -> Slice {
    let clients = setup.clients.clone();
    setup
        .load
        .block_on(closed(vec![(); count], in_flight, move |caller, ()| {
            let mut client = HealthClient::new(clients[caller % clients.len()].clone());
            async move {
                client
                    .check(HealthCheckRequest::default())
                    .await
                    .expect("answered");
            }
        }))
}

fn introspections(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    report.part("Introspection (key-bound validator) over gRPC");
    let holders = setup.tasks("triage", TASKS);
    let tokens = tokens(setup, &holders);
    let key = setup.served.env.key_of("cases");
    for in_flight in [1, 16] {
        let count = slice_size(counts, in_flight);
        let (mut introspections, mut empty_calls) = (Tally::default(), Tally::default());
        let mut verifying = Vec::new();
        for _ in 0..counts.rounds {
            empty_calls.add(empty(setup, count, in_flight));
            introspections.add(introspect(setup, &tokens, &key, count, in_flight));
            verifying.extend(verifications(&key, counts.alone));
        }
        let verify = percentile(&verifying, 50);
        report.line(
            &format!("over gRPC, {in_flight} in flight"),
            &introspections.summary(),
        );
        report.line(
            &format!("an empty call, {in_flight}"),
            &empty_calls.summary(),
        );
        report.line("one ES256 verification", &format!("p50 {}", ms(verify)));
        let goal = "at least 0.80";
        if in_flight == 1 {
            let ceiling = empty_calls.percentile(50) + verify;
            let took = introspections.percentile(50) as f64;
            report.ratio(
                "(empty + one verification) / p50",
                ceiling as f64 / took,
                goal,
            );
        } else {
            let ceiling = empty_calls.broker_us() + verify as f64 / 1e3;
            report.ratio(
                "(empty + one verification) / cpu",
                ceiling / introspections.broker_us(),
                goal,
            );
        }
    }
}

fn introspect(
    setup: &BenchSetup,
    tokens: &[String],
    key: &SigningKey,
    count: usize,
    in_flight: usize,
) -> Slice {
    let nonce = setup.served.broker.nonce();
    let requests = tokens.iter().cycle().take(count).map(|token| {
        let message = v1::IntrospectRequest {
            token: token.clone(),
        };
        wire(message, &setup.proof(INTROSPECT, key, None, &nonce))
    });
    let requests: Vec<_> = requests.collect();
    let clients = setup.clients.clone();
    setup
        .load
        .block_on(closed(requests, in_flight, move |caller, request| {
            let mut client = TokenServiceClient::new(clients[caller % clients.len()].clone());
            async move {
                let answer = client
                    .introspect(request)
                    .await
                    .expect("answered")
                    .into_inner();
                assert!(answer.active, "live");
            }
        }))
}

/// One token of each task.
pub fn tokens(setup: &BenchSetup, holders: &[TaskHolder]) -> Vec<String> {
    let broker = setup.broker();
    let calls = setup.token_requests(holders, holders.len());
    setup.broker.block_on(async move {
        let mut tokens = Vec::new();
        for (ask, proof) in calls {
            match broker
                .request_token(&call_context(REQUEST_TOKEN, proof), ask)
                .await
            {
                Ok(TokenReply::Token(issued)) => {
                    tokens.push(issued.token.expose_secret().to_owned())
                }
                other => panic!("not a token: {other:?}"),
            }
        }
        tokens
    })
}

/// Verifications of one signature over a message of a token's size.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
fn verifications(key: &SigningKey, count: usize) -> Vec<u64> {
    let message = [b'a'; 900];
    let signature = key.sign(&message).expect("signed");
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        assert!(black_box(key.public()).verify(black_box(&message), &signature));
        times.push(nanos(start.elapsed()));
    }
    times
}
