//! Admission control: rate limits by source address before any cryptography, then concurrency permits and stream permits.
//! Once a caller is authenticated, the broker applies its limits by name.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tonic::Status;

use super::authorization::{self, MethodPolicy};
use super::errors::{self, ErrorForm};
use super::peer::{Peer, PeerSource};
use super::request_log::route_label;
use super::routes;
use super::status::status;
use super::timeouts::HEALTH_WATCH;
use crate::broker::{Broker, Refusal};
use crate::model::{AgentId, PersonId, Reason, ServiceId};
use crate::rate_limit::{
    Class, ConcurrencyLimiter, ConcurrencyPermit, KeyedRateLimiter, LogThrottle, PerKeyLimit,
    PerKeyPermit,
};
use crate::telemetry::{InFlightGuard, LimitKind};

/// The counters in front of one broker.
pub(super) struct AdmissionControl {
    broker: Arc<Broker>,
    sources: KeyedRateLimiter<PeerSource>,
    concurrency: ConcurrencyLimiter,
    /// Open streams of each service, each agent, each person.
    service_streams: Arc<PerKeyLimit<ServiceId>>,
    agent_streams: Arc<PerKeyLimit<AgentId>>,
    /// Apart from the streams of access requests: those must not keep a running command from hearing that its token ended.
    agent_token_streams: Arc<PerKeyLimit<AgentId>>,
    person_streams: Arc<PerKeyLimit<PersonId>>,
    /// Receipts and policy bundles, by the id of the operator or auditor who reads them.
    document_streams: Arc<PerKeyLimit<String>>,
    /// Health watches, which need no credentials.
    health_streams: Arc<PerKeyLimit<PeerSource>>,
    log_throttle: LogThrottle,
}

/// Streams of one service at once: a fleet of validators shares its registration.
const STREAMS_PER_SERVICE_MAX: usize = 1_024;
/// Access requests one agent may watch at once: a few for each that may wait, while a broken connection is not noticed yet.
const STREAMS_PER_AGENT_MAX: usize = 64;
/// Tokens that the processes of one agent watch at once.
const TOKEN_STREAMS_PER_AGENT_MAX: usize = 256;
/// Inboxes one person may watch at once: a few windows.
const STREAMS_PER_PERSON_MAX: usize = 16;
/// Receipts and policy bundles that one caller reads at once: each is up to 1 MiB in memory.
const DOCUMENT_STREAMS_PER_CALLER_MAX: usize = 4;
/// Health watches of one source at once: a proxy may have a few for each of its connections.
const HEALTH_STREAMS_PER_SOURCE_MAX: usize = 32;

/// `Retry-After` where no rate limit computes one.
const OVERLOAD_RETRY_AFTER: Duration = Duration::from_secs(1);

impl AdmissionControl {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        let rates = &broker.settings().rate_limits;
        Self {
            sources: KeyedRateLimiter::new(
                rates.source_per_second,
                rates.source_reserved_per_second,
            ),
            concurrency: ConcurrencyLimiter::new(rates),
            service_streams: Arc::new(PerKeyLimit::new(STREAMS_PER_SERVICE_MAX)),
            agent_streams: Arc::new(PerKeyLimit::new(STREAMS_PER_AGENT_MAX)),
            agent_token_streams: Arc::new(PerKeyLimit::new(TOKEN_STREAMS_PER_AGENT_MAX)),
            person_streams: Arc::new(PerKeyLimit::new(STREAMS_PER_PERSON_MAX)),
            document_streams: Arc::new(PerKeyLimit::new(DOCUMENT_STREAMS_PER_CALLER_MAX)),
            health_streams: Arc::new(PerKeyLimit::new(HEALTH_STREAMS_PER_SOURCE_MAX)),
            log_throttle: LogThrottle::default(),
            broker,
        }
    }

    /// A permit for a call whose message has arrived whole: a slow sender holds none.
    pub(super) async fn acquire(&self, method: &MethodPolicy) -> Result<ConcurrencyPermit, Status> {
        self.acquire_console(method.rate_class)
            .await
            .map_err(|after| self.rate_limited(after))
    }

    /// A permit for a console request, or when to retry.
    pub(super) async fn acquire_console(
        &self,
        class: Class,
    ) -> Result<ConcurrencyPermit, Duration> {
        self.concurrency.acquire(class).await.map_err(|_| {
            self.record_shed(class, LimitKind::Concurrency);
            OVERLOAD_RETRY_AFTER
        })
    }

    /// Counts one more revocation stream of a service, until the permit is dropped.
    pub(super) fn service_stream(
        &self,
        service: &ServiceId,
    ) -> Result<StreamPermit<ServiceId>, Status> {
        let slot = self.stream_slot(&self.service_streams, service, Class::Reserved)?;
        Ok(StreamPermit::new(
            slot,
            self.broker.metrics().feed_subscribed(),
        ))
    }

    /// Counts one more access request that an agent watches, until the permit is dropped.
    pub(super) fn agent_stream(&self, agent: &AgentId) -> Result<StreamPermit<AgentId>, Status> {
        let slot = self.stream_slot(&self.agent_streams, agent, Class::General)?;
        let gauge = self.broker.metrics().stream_opened("access_request");
        Ok(StreamPermit::new(slot, gauge))
    }

    /// Counts one more token that an agent watches, until the permit is dropped.
    pub(super) fn agent_token_stream(
        &self,
        agent: &AgentId,
    ) -> Result<StreamPermit<AgentId>, Status> {
        let slot = self.stream_slot(&self.agent_token_streams, agent, Class::Reserved)?;
        let gauge = self.broker.metrics().stream_opened("token");
        Ok(StreamPermit::new(slot, gauge))
    }

    /// Counts one more inbox that a person watches, until the permit is dropped.
    pub(super) fn person_stream(
        &self,
        person: &PersonId,
    ) -> Result<StreamPermit<PersonId>, Status> {
        let slot = self.stream_slot(&self.person_streams, person, Class::General)?;
        let gauge = self.broker.metrics().stream_opened("inbox");
        Ok(StreamPermit::new(slot, gauge))
    }

    /// Counts one more receipt that a caller reads, until the permit is dropped.
    pub(super) fn receipt_stream(&self, caller: &String) -> Result<StreamPermit<String>, Status> {
        let slot = self.stream_slot(&self.document_streams, caller, Class::General)?;
        let gauge = self.broker.metrics().stream_opened("receipt");
        Ok(StreamPermit::new(slot, gauge))
    }

    /// Counts one more policy bundle that a caller reads, until the permit is dropped.
    pub(super) fn bundle_stream(&self, caller: &String) -> Result<StreamPermit<String>, Status> {
        let slot = self.stream_slot(&self.document_streams, caller, Class::General)?;
        let gauge = self.broker.metrics().stream_opened("policy_bundle");
        Ok(StreamPermit::new(slot, gauge))
    }

    /// Counts one more health watch of a source, until the permit is dropped.
    fn health_stream(&self, source: &PeerSource) -> Option<HealthStreamPermit> {
        let Some(slot) = self.health_streams.acquire(source) else {
            self.record_shed(Class::Reserved, LimitKind::Streams);
            return None;
        };
        let gauge = self.broker.metrics().stream_opened("health");
        Some(HealthStreamPermit(Arc::new(StreamPermit::new(slot, gauge))))
    }

    fn stream_slot<K: Hash + Eq + Clone>(
        &self,
        streams: &Arc<PerKeyLimit<K>>,
        key: &K,
        class: Class,
    ) -> Result<PerKeyPermit<K>, Status> {
        streams.acquire(key).ok_or_else(|| {
            self.record_shed(class, LimitKind::Streams);
            self.rate_limited(OVERLOAD_RETRY_AFTER)
        })
    }

    /// The status of a call that was shed: when to retry.
    fn rate_limited(&self, after: Duration) -> Status {
        status(&self.shed(after), &self.broker)
    }

    /// The refusal of a call that was shed.
    pub(super) fn shed(&self, after: Duration) -> Refusal {
        self.broker
            .refuse_unrecorded(Reason::RateLimited, Some(after))
    }

    fn record_shed(&self, class: Class, by: LimitKind) {
        self.broker.metrics().rate_limited(class.as_str(), by);
        if let Some(count) = self.log_throttle.poll(self.broker.uptime()) {
            tracing::warn!(
                count,
                class = class.as_str(),
                by = by.as_str(),
                "load shed (rate limited)"
            );
        }
    }
}

/// An open stream, counted until dropped.
pub(super) struct StreamPermit<K: Hash + Eq> {
    _slot: PerKeyPermit<K>,
    _gauge: InFlightGuard,
}

impl<K: Hash + Eq> StreamPermit<K> {
    fn new(slot: PerKeyPermit<K>, gauge: InFlightGuard) -> Self {
        Self {
            _slot: slot,
            _gauge: gauge,
        }
    }
}

/// The permit of a health watch: an extension of its request.
#[derive(Clone)]
pub(super) struct HealthStreamPermit(
    #[expect(dead_code, reason = "held")] Arc<StreamPermit<PeerSource>>,
);

/// The rate class of a path: methods and console routes by their tables; probes and keys are answered while calls are shed.
fn rate_class(path: &str) -> Class {
    match route_label(path) {
        "http" | "health" => Class::Reserved,
        _ if routes::is_console_path(path) => routes::rate_class(path),
        method => {
            authorization::method_policy(method).map_or(Class::General, |policy| policy.rate_class)
        }
    }
}

/// Refuses at once what one source sends beyond its rate: before the method, the message or any key is looked at.
pub(super) async fn check_source_rate(
    State(admission): State<Arc<AdmissionControl>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(peer) = request.extensions().get::<Peer>() else {
        // Every listener inserts its peer: a request without one came through none of them.
        return StatusCode::FORBIDDEN.into_response();
    };
    let source = peer.source.rate_limit_key();
    let class = rate_class(request.uri().path());
    let shed = |request: &Request, after| {
        let http = errors::http_status(Reason::RateLimited);
        let form = ErrorForm::of(request);
        errors::respond(&admission.broker, form, http, &admission.shed(after))
    };
    let now = admission.broker.uptime();
    if let Err(after) = admission.sources.check(class, &source, now) {
        admission.record_shed(class, LimitKind::Source);
        return shed(&request, after);
    }
    if request.uri().path() == HEALTH_WATCH {
        let Some(permit) = admission.health_stream(&source) else {
            return shed(&request, OVERLOAD_RETRY_AFTER);
        };
        request.extensions_mut().insert(permit);
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_class_methods() {
        let name = |method: &MethodPolicy| format!("/{}", method.name);
        for path in [
            "/livez",
            "/readyz",
            "/.well-known/jwks.json",
            "/grpc.health.v1.Health/Check",
            &name(authorization::COMPLETE_TASK),
        ] {
            assert_eq!(rate_class(path), Class::Reserved, "{path}");
        }
        for path in ["/", "/livez/", &name(authorization::OPEN_TASK)] {
            assert_eq!(rate_class(path), Class::General, "{path}");
        }
    }
}
