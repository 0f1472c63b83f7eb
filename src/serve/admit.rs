//! Admission: who gets in when more come than can be served. Before any cryptography by the address a call comes from,
//! then by places; after it the hall asks by name.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tonic::Status;
use tonic::transport::server::TcpConnectInfo;

use super::guard;
use super::peer::{Peer, Source};
use super::status::rate_limited;
use crate::broker::Hall;
use crate::model::ServiceId;
use crate::rates::{Class, Limits, Places, Seat, Seldom, Tallied, Tally};
use crate::telemetry::Counted;

/// The counters before the doors of one broker.
pub(super) struct Porch {
    hall: Arc<Hall>,
    sources: Limits<Option<Whence>>,
    places: Places,
    /// How many streams each service follows.
    watches: Arc<Tally<ServiceId>>,
    shed: Seldom,
}

/// Streams one service may follow at once: a fleet of validators shares its registration.
const WATCHES_PER_SERVICE_MAX: usize = 1_024;

/// What counts as one source. A call whose connection nobody vouches for counts with all others of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Whence {
    V4([u8; 4]),
    /// One subscriber has a whole /64 (RFC 6177): its parts are not told apart.
    V6([u8; 8]),
    Unix(u32),
}

impl From<Source> for Whence {
    fn from(source: Source) -> Self {
        match source {
            Source::Ip(IpAddr::V4(v4)) => Self::V4(v4.octets()),
            Source::Ip(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
                Some(v4) => Self::V4(v4.octets()),
                None => {
                    let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                    Self::V6([a, b, c, d, e, f, g, h])
                }
            },
            Source::Unix { uid } => Self::Unix(uid),
        }
    }
}

/// When to come again, where no bucket says.
const PLACES_FULL_RETRY: Duration = Duration::from_secs(1);

impl Porch {
    pub(super) fn new(hall: Arc<Hall>) -> Self {
        let rates = &hall.settings().rates;
        Self {
            sources: Limits::new(rates.source_per_second, rates.source_reserved_per_second),
            places: Places::new(rates),
            watches: Arc::new(Tally::new(WATCHES_PER_SERVICE_MAX)),
            shed: Seldom::default(),
            hall,
        }
    }

    /// A place for a call whose message has come whole: nobody holds one by sending slowly.
    pub(super) async fn place(&self, method: &'static str) -> Result<Seat, Status> {
        let class = guard::class(method);
        self.places.enter(class).await.map_err(|_| {
            self.note(class, "places");
            rate_limited(PLACES_FULL_RETRY)
        })
    }

    /// Counts one more stream of a service, until it ends.
    pub(super) fn watch(&self, service: &ServiceId) -> Result<Watch, Status> {
        let Some(one) = self.watches.enter(service) else {
            self.note(Class::Reserved, "watches");
            return Err(rate_limited(PLACES_FULL_RETRY));
        };
        Ok(Watch {
            _one: one,
            _counted: self.hall.metrics().subscribed(),
        })
    }

    fn note(&self, class: Class, by: &'static str) {
        self.hall.metrics().rate_limited(class.as_str(), by);
        if let Some(count) = self.shed.due(self.hall.uptime()) {
            tracing::warn!(count, class = class.as_str(), by, "calls shed");
        }
    }
}

/// A stream that is followed.
pub(super) struct Watch {
    _one: Tallied<ServiceId>,
    _counted: Counted,
}

/// The class of a path: ours by their rows; probes and keys are answered while calls are shed.
fn class(path: &str) -> Class {
    match path {
        "/livez" | "/readyz" | "/.well-known/jwks.json" => Class::Reserved,
        path if path.starts_with("/grpc.health.v1.Health/") => Class::Reserved,
        path => guard::class(path.trim_start_matches('/')),
    }
}

/// The other end of the connection, as the transport says. No header is ever asked.
pub(super) fn peer(request: &Request) -> Option<Peer> {
    let extensions = request.extensions();
    let told = || {
        let address = extensions.get::<TcpConnectInfo>()?.remote_addr()?;
        Some(Peer {
            source: Source::Ip(address.ip()),
            tls: false,
        })
    };
    extensions.get::<Peer>().copied().or_else(told)
}

/// Refuses at once what one source sends beyond its rate: before the row, the message or any key is looked at.
pub(super) async fn within_its_rate(
    State(porch): State<Arc<Porch>>,
    request: Request,
    next: Next,
) -> Response {
    let whence = peer(&request).map(|peer| Whence::from(peer.source));
    let class = class(request.uri().path());
    match porch.sources.take(class, &whence, porch.hall.uptime()) {
        Ok(()) => next.run(request).await,
        Err(after) => {
            porch.note(class, "source");
            shed(&request, after)
        }
    }
}

fn shed(request: &Request, after: Duration) -> Response {
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
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

    fn whence(address: &str) -> Whence {
        Whence::from(Source::Ip(address.parse().expect("an address")))
    }

    #[test]
    fn a_source_is_an_address_or_a_64() {
        assert_ne!(whence("192.0.2.1"), whence("192.0.2.2"));
        assert_eq!(whence("192.0.2.1"), whence("::ffff:192.0.2.1"));
        assert_eq!(whence("2001:db8:1:2::1"), whence("2001:db8:1:2:ffff::9"));
        assert_ne!(whence("2001:db8:1:2::1"), whence("2001:db8:1:3::1"));
        assert_ne!(
            Whence::from(Source::Unix { uid: 0 }),
            Whence::from(Source::Unix { uid: 1 })
        );
    }

    #[test]
    fn no_header_says_where_a_call_comes_from() {
        let mut request = Request::new(Body::empty());
        for name in ["x-forwarded-for", "forwarded", "x-real-ip"] {
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static("192.0.2.9"));
        }
        assert_eq!(peer(&request), None);
    }

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
