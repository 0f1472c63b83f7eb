//! Connection limits: how many connections a listener and one source may have open, and why connections were closed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::peer::PeerSource;
use super::tls::Tls;
use crate::config::ConnectionLimits;
use crate::telemetry::{InFlightGuard, Metrics};

/// An accepted connection.
pub(super) enum Socket {
    Tcp(TcpStream, Option<Arc<Tls>>),
    Unix(UnixStream),
}

/// Counters of the listeners since the start.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Closed at once: the source had as many open as it may.
    pub per_source_limit: AtomicU64,
    /// TLS handshakes that failed or were given up by the client.
    pub handshakes_failed: AtomicU64,
    /// Closed because no request came in time.
    pub no_request: AtomicU64,
    /// Closed because the client did not read a response.
    pub write_stalled: AtomicU64,
    /// Closed because no request came for the idle time.
    pub idle: AtomicU64,
    /// Closed under connection pressure because no call on it was ever authenticated.
    pub unauthenticated: AtomicU64,
    /// Closed because they reached the maximum age.
    pub max_age: AtomicU64,
    /// Times the kernel could not accept a connection, for want of file descriptors and the like.
    pub accept_failed: AtomicU64,
}

impl ConnectionStats {
    pub(super) fn increment(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The state that the connections of one listener share.
pub(super) struct ListenerState {
    pub(super) limits: ConnectionLimits,
    pub(super) router: Router,
    pub(super) stats: Arc<ConnectionStats>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) sources: ConnectionsPerSource,
    metrics: Arc<Metrics>,
}

impl ListenerState {
    pub(super) fn new(
        limits: ConnectionLimits,
        router: Router,
        stats: Arc<ConnectionStats>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(limits.max)),
            sources: ConnectionsPerSource::new(rustix::process::geteuid().as_raw()),
            limits,
            router,
            stats,
            metrics,
        })
    }

    /// Whether one more connection would have to wait.
    pub(super) fn is_full(&self) -> bool {
        self.permits.available_permits() == 0
    }
}

/// Open connections of each source.
pub(super) struct ConnectionsPerSource {
    open: Arc<Mutex<HashMap<PeerSource, usize>>>,
    /// The user id of this broker.
    own: u32,
}

/// One connection among those of its source; counted until dropped.
pub(super) struct SourcePermit {
    key: PeerSource,
    sources: Arc<Mutex<HashMap<PeerSource, usize>>>,
}

impl ConnectionsPerSource {
    fn new(own: u32) -> Self {
        Self {
            open: Arc::default(),
            own,
        }
    }

    pub(super) fn try_acquire(
        &self,
        source: PeerSource,
        limits: &ConnectionLimits,
    ) -> Option<SourcePermit> {
        let key = source.rate_limit_key();
        let max = match key {
            PeerSource::Ip(_) => limits.max_per_source,
            // The socket's mode says who may connect at all. No limit for users who could stop the broker anyway.
            PeerSource::Unix { uid } if uid == ROOT || uid == self.own => usize::MAX,
            PeerSource::Unix { .. } => limits.max_per_source,
        };
        let mut sources = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = sources.entry(key).or_default();
        // No entry is left behind: a source that is refused has at least one connection open.
        if *open >= max {
            return None;
        }
        *open += 1;
        Some(SourcePermit {
            key,
            sources: self.open.clone(),
        })
    }
}

impl Drop for SourcePermit {
    fn drop(&mut self) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut open) = sources.entry(self.key) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// The permits of an open connection; returned when dropped.
pub(super) struct ConnectionGuard {
    state: Arc<ListenerState>,
    _gauge: InFlightGuard,
    _permit: OwnedSemaphorePermit,
    _source: SourcePermit,
}

impl ConnectionGuard {
    pub(super) fn new(
        state: Arc<ListenerState>,
        permit: OwnedSemaphorePermit,
        source: SourcePermit,
    ) -> Self {
        ConnectionStats::increment(&state.stats.open);
        Self {
            _gauge: state.metrics.connection_opened(),
            state,
            _permit: permit,
            _source: source,
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.state.stats.open.fetch_sub(1, Ordering::Relaxed);
    }
}

const ROOT: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_source_connection_limit() {
        let limits = ConnectionLimits {
            max_per_source: 2,
            ..ConnectionLimits::default()
        };
        let sources = ConnectionsPerSource::new(7);
        let from = |text: &str| PeerSource::Ip(text.parse().expect("address"));
        let one = sources.try_acquire(from("2001:db8::1"), &limits);
        let two = sources.try_acquire(from("2001:db8::2"), &limits);
        assert!(one.is_some() && two.is_some());
        assert!(sources.try_acquire(from("2001:db8::3"), &limits).is_none());
        assert!(sources.try_acquire(from("192.0.2.1"), &limits).is_some());
        drop(one);
        assert!(sources.try_acquire(from("2001:db8::3"), &limits).is_some());
        drop(two);
        assert!(sources.open.lock().expect("sources").is_empty());
        // Of this host's users, root and the broker's own have no limit.
        let opened = |uid| {
            let many: Vec<_> = (0..500)
                .map_while(|_| sources.try_acquire(PeerSource::Unix { uid }, &limits))
                .collect();
            many.len()
        };
        assert_eq!([opened(0), opened(7), opened(8)], [500, 500, 2]);
        let again = [8, 8, 9].map(|uid| sources.try_acquire(PeerSource::Unix { uid }, &limits));
        assert!(
            again.iter().all(Option::is_some),
            "returned, and counted for each user alone"
        );
    }
}
