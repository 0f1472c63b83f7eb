//! Admission: who gets in when more come than can be served. Before any cryptography by the address a call comes from,
//! then by places; after it the broker asks by name.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tonic::Status;

use super::call;
use super::console;
use super::deadline::is_grpc;
use super::guard;
use super::peer::{Peer, Source};
use super::status::rate_limited;
use crate::broker::Broker;
use crate::model::{AgentId, PersonId, ServiceId};
use crate::rate_limit::{Class, ConcurrencyPermit, KeyedRateLimiter, ConcurrencyLimiter, LogThrottle, PerKeyPermit, PerKeyLimit};
use crate::telemetry::InFlightGuard;

/// The counters before the doors of one broker.
pub(super) struct AdmissionControl {
    broker: Arc<Broker>,
    sources: KeyedRateLimiter<Source>,
    places: ConcurrencyLimiter,
    /// How many streams each service follows, each agent, each person.
    watches: Arc<PerKeyLimit<ServiceId>>,
    agent_watches: Arc<PerKeyLimit<AgentId>>,
    person_watches: Arc<PerKeyLimit<PersonId>>,
    shed: LogThrottle,
}

/// Streams one service may follow at once: a fleet of validators shares its registration.
const WATCHES_PER_SERVICE_MAX: usize = 1_024;
/// Access requests one agent may watch at once: a few for each that may wait, while a connection that broke is not missed yet.
const WATCHES_PER_AGENT_MAX: usize = 64;
/// Inboxes one person may watch at once: a few windows.
const WATCHES_PER_PERSON_MAX: usize = 16;

/// When to come again, where no bucket says.
const PLACES_FULL_RETRY: Duration = Duration::from_secs(1);

impl AdmissionControl {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        let rates = &broker.settings().rate_limits;
        Self {
            sources: KeyedRateLimiter::new(rates.source_per_second, rates.source_reserved_per_second),
            places: ConcurrencyLimiter::new(rates),
            watches: Arc::new(PerKeyLimit::new(WATCHES_PER_SERVICE_MAX)),
            agent_watches: Arc::new(PerKeyLimit::new(WATCHES_PER_AGENT_MAX)),
            person_watches: Arc::new(PerKeyLimit::new(WATCHES_PER_PERSON_MAX)),
            shed: LogThrottle::default(),
            broker,
        }
    }

    /// A place for a call whose message has come whole: nobody holds one by sending slowly.
    pub(super) async fn place(&self, method: &'static str) -> Result<ConcurrencyPermit, Status> {
        let class = guard::class(method);
        self.places.acquire(class).await.map_err(|_| {
            self.note(class, "concurrency");
            rate_limited(PLACES_FULL_RETRY)
        })
    }

    /// A place for a call of the console, or when to come again.
    pub(super) async fn permit(&self, class: Class) -> Result<ConcurrencyPermit, Duration> {
        self.places.acquire(class).await.map_err(|_| {
            self.note(class, "concurrency");
            PLACES_FULL_RETRY
        })
    }

    /// Counts one more stream of a service, until it ends.
    pub(super) fn watch(&self, service: &ServiceId) -> Result<Watch, Status> {
        let Some(one) = self.watches.acquire(service) else {
            self.note(Class::Reserved, "streams");
            return Err(rate_limited(PLACES_FULL_RETRY));
        };
        Ok(Watch {
            _one: one,
            _counted: self.broker.metrics().feed_subscribed(),
        })
    }

    /// Counts one more access request that an agent watches, until the watch ends.
    pub(super) fn agent_watch(&self, agent: &AgentId) -> Result<AgentWatch, Status> {
        let Some(one) = self.agent_watches.acquire(agent) else {
            self.note(Class::General, "streams");
            return Err(rate_limited(PLACES_FULL_RETRY));
        };
        Ok(AgentWatch {
            _one: one,
            _counted: self.broker.metrics().stream_opened("access_request"),
        })
    }

    /// Counts one more inbox that a person watches, until the watch ends.
    pub(super) fn person_watch(&self, person: &PersonId) -> Result<PersonWatch, Status> {
        let Some(one) = self.person_watches.acquire(person) else {
            self.note(Class::General, "streams");
            return Err(rate_limited(PLACES_FULL_RETRY));
        };
        Ok(PersonWatch {
            _one: one,
            _counted: self.broker.metrics().stream_opened("inbox"),
        })
    }

    fn note(&self, class: Class, by: &'static str) {
        self.broker.metrics().rate_limited(class.as_str(), by);
        if let Some(count) = self.shed.poll(self.broker.uptime()) {
            tracing::warn!(count, class = class.as_str(), by, "calls shed");
        }
    }
}

/// A stream that is followed.
pub(super) struct Watch {
    _one: PerKeyPermit<ServiceId>,
    _counted: InFlightGuard,
}

/// An access request that its agent watches.
pub(super) struct AgentWatch {
    _one: PerKeyPermit<AgentId>,
    _counted: InFlightGuard,
}

/// An inbox that a person watches.
pub(super) struct PersonWatch {
    _one: PerKeyPermit<PersonId>,
    _counted: InFlightGuard,
}

/// The class of a path: ours by their rows; probes and keys are answered while calls are shed.
fn class(path: &str) -> Class {
    match call::label(path) {
        "http" | "health" => Class::Reserved,
        _ if console::rows::is_ours(path) => console::rows::class(path),
        method => guard::class(method),
    }
}

/// Refuses at once what one source sends beyond its rate: before the row, the message or any key is looked at.
pub(super) async fn within_its_rate(
    State(admission): State<Arc<AdmissionControl>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(peer) = request.extensions().get::<Peer>() else {
        // A connection that nobody vouches for is none of ours.
        return StatusCode::FORBIDDEN.into_response();
    };
    let source = peer.source.party();
    let class = class(request.uri().path());
    match admission
        .sources
        .check(class, &source, admission.broker.uptime())
    {
        Ok(()) => next.run(request).await,
        Err(after) => {
            admission.note(class, "source");
            shed(&request, after)
        }
    }
}

fn shed(request: &Request, after: Duration) -> Response {
    if is_grpc(request.headers()) {
        return rate_limited(after).into_http::<Body>();
    }
    let seconds = HeaderValue::from(after.as_secs().saturating_add(1));
    (
        StatusCode::TOO_MANY_REQUESTS,
        [(header::RETRY_AFTER, seconds)],
        "too many calls\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_and_endings_are_reserved() {
        for path in [
            "/livez",
            "/readyz",
            "/.well-known/jwks.json",
            "/grpc.health.v1.Health/Check",
            "/dipylon.v1.TaskService/CompleteTask",
        ] {
            assert_eq!(class(path), Class::Reserved, "{path}");
        }
        for path in ["/", "/livez/", "/dipylon.v1.TaskService/OpenTask"] {
            assert_eq!(class(path), Class::General, "{path}");
        }
    }
}
