//! Readiness in gRPC's health service: the same answer as `/readyz`, for the server and for each service by its name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::broker::Broker;
use crate::proto::methods;

/// How often readiness is checked, and a failing journal tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Reports readiness as it is now.
pub(super) async fn report(broker: &Broker, health: &HealthReporter) {
    let status = match broker.readiness() {
        Ok(()) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    };
    set(health, status).await;
}

/// Reports that the broker takes no further calls.
pub(super) async fn report_not_serving(health: &HealthReporter) {
    set(health, ServingStatus::NotServing).await;
}

/// Reports readiness whenever it changes. Runs until it is aborted.
pub(super) async fn watch(broker: Arc<Broker>, health: HealthReporter) {
    let mut reported = None;
    loop {
        let ready = broker.readiness();
        if reported != Some(ready) {
            match ready {
                Ok(()) => tracing::info!("ready"),
                Err(why) => tracing::warn!(reason = %why, "not ready"),
            }
            report(&broker, &health).await;
            reported = Some(ready);
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
        broker.retry_failing_journal().await;
    }
}

/// Sets the status of the server and of each of its services.
async fn set(health: &HealthReporter, status: ServingStatus) {
    let services: BTreeSet<&str> = methods()
        .iter()
        .filter_map(|method| method.split('/').next())
        .collect();
    for service in services.into_iter().chain([""]) {
        health.set_service_status(service, status).await;
    }
}
