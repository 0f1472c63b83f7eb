//! Health watches, which need no credentials: how many of them one source may have.

use dipylon_sdk::model::Reason;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::support::served_broker::ServedBroker;

/// Watches of one source at once.
const WATCHES_MAX: usize = 32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_has_a_bounded_number_of_health_watches() {
    let s = ServedBroker::start().await;
    let channel = Channel::from_shared(s.url.clone()).expect("url");
    let client = HealthClient::new(channel.connect().await.expect("connects"));
    let watch = async || {
        let mut client = client.clone();
        let mut stream = client
            .watch(HealthCheckRequest::default())
            .await?
            .into_inner();
        stream.message().await?;
        Ok::<_, Status>(stream)
    };
    let mut open = Vec::new();
    for _ in 0..WATCHES_MAX {
        open.push(watch().await.expect("a watch"));
    }
    let shed = watch().await.expect_err("one more");
    assert_eq!(shed.code(), Code::ResourceExhausted);
    let reason = shed.get_details_error_info().map(|info| info.reason);
    assert_eq!(reason.as_deref(), Some(Reason::RateLimited.as_str()));
    let mut probe = client.clone();
    let checked = probe.check(HealthCheckRequest::default()).await;
    assert!(checked.is_ok(), "a check is no watch: {checked:?}");
    // The place of a watch that ended is free.
    open.pop();
    while watch().await.is_err() {
        tokio::task::yield_now().await;
    }
}
