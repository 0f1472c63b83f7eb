//! Readiness and liveness: a full disk, a journal that fails, and a broker without a policy bundle, by HTTP and by gRPC.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dipylon::journal::FaultInjection;
use dipylon::serve;
use dipylon_sdk::model::Reason;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::raw_http::http1;
use crate::support::wait::in_time;
use crate::support::{TestBroker, TestEnvironment, refused};

const SERVICES: [&str; 5] = [
    "",
    "dipylon.v1.TaskService",
    "dipylon.v1.TokenService",
    "dipylon.v1.ApprovalService",
    "dipylon.v1.GovernanceService",
];

/// Waits until every service has this status, as its watchers see it.
async fn until_health_is(url: &str, wanted: ServingStatus) {
    let channel = Channel::from_shared(url.to_owned()).expect("url");
    let mut health = HealthClient::new(channel.connect().await.expect("connects"));
    for service in SERVICES {
        let service = service.to_owned();
        let request = HealthCheckRequest { service };
        let watched = health.watch(request).await.expect("watches");
        let mut statuses = watched.into_inner();
        while in_time("a status", statuses.message())
            .await
            .expect("read")
            .expect("a status")
            .status()
            != wanted
        {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_not_ready_but_alive() {
    let full = Arc::new(AtomicBool::new(false));
    let faults = FaultInjection {
        disk_full: Some(full.clone()),
        ..FaultInjection::default()
    };
    let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
    let listener = serve::listen("127.0.0.1:0".parse().expect("address")).await;
    let listener = listener.expect("listens");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve::serve(b.broker.clone(), listener, async move {
        let _stopped = stopped.await;
    });
    let server = tokio::spawn(serving);
    let get = async |path: &str| http1(&url, "GET", path, &[], &[]).await;

    let ready = get("/readyz").await;
    assert_eq!(
        (ready.status, ready.body.as_slice()),
        (200, &b"ready\n"[..])
    );
    assert_eq!(ready.header("cache-control"), Some("no-store"));
    until_health_is(&url, ServingStatus::Serving).await;

    full.store(true, Ordering::SeqCst);
    let triage = b.agent("triage");
    let opened = b.try_open_task(&triage, "x", "open-1").await;
    assert_eq!(refused(opened), Reason::JournalUnavailable);
    let ready = get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.header("retry-after"), Some("1"), "the reason's delay");
    let problem = ready.json();
    assert_eq!(problem["reason"], "JOURNAL_UNAVAILABLE");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains("no space is left"), "{detail}");
    assert_eq!(get("/livez").await.status, 200, "a restart would not help");
    until_health_is(&url, ServingStatus::NotServing).await;

    // With space again the broker finds out by itself, without a call that writes.
    let entries = b.broker.show().position().1;
    full.store(false, Ordering::SeqCst);
    until_health_is(&url, ServingStatus::Serving).await;
    assert_eq!(get("/readyz").await.status, 200);
    assert_eq!(b.broker.show().position().1, entries, "it wrote no entry");
    b.try_open_task(&triage, "x", "open-2")
        .await
        .expect("opens");
    b.check_invariants();
    drop(stop);
    in_time("the stop", server)
        .await
        .expect("joined")
        .expect("served");
}
