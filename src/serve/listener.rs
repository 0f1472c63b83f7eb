//! Where connections come in: one loop for each door, bounds on how many may be open, and a stop that loses nothing.
//!
//! In: a bound socket, limits, the router. Out: requests that carry their [`Peer`], each on a connection that `connection`
//! watches over. Trusts the kernel for who is at the other end. Refuses a source that holds too many; lets what is too many
//! in all wait in the kernel's backlog. Never ends because a connection, or many, went wrong.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::connection::{self, Opening};
use super::peer::{Peer, Source};
use super::tls::Tls;
use super::unix::GuardedUnixListener;
use crate::config::ConnectionLimits;
use crate::telemetry::{InFlightGuard, Metrics};

/// A door: where connections come in.
pub(super) enum Listener {
    Tcp {
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
    },
    Unix(GuardedUnixListener),
}

/// A connection that has just come in.
pub(super) enum Socket {
    Tcp(TcpStream, Option<Arc<Tls>>),
    Unix(UnixStream),
}

/// What the listeners have seen since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections let in.
    pub accepted: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Closed at once: their source held as many as it may.
    pub over_source: AtomicU64,
    /// TLS handshakes that failed or were given up by the other end.
    pub handshakes_failed: AtomicU64,
    /// Closed because no request came in time.
    pub silent: AtomicU64,
    /// Closed because an answer was not taken.
    pub stuck: AtomicU64,
    /// Closed because nothing was asked for a while.
    pub idle: AtomicU64,
    /// Closed because others waited for room and nobody had proved anything on them.
    pub unproved: AtomicU64,
    /// Closed because of their age.
    pub aged: AtomicU64,
    /// Times the kernel could not give a connection, for want of file descriptors and the like.
    pub accept_failed: AtomicU64,
}

impl Counts {
    pub(super) fn one(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What every connection of a door shares.
pub(super) struct Shared {
    pub(super) limits: ConnectionLimits,
    pub(super) router: Router,
    pub(super) counts: Arc<Counts>,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
    sources: Sources,
}

impl Shared {
    pub(super) fn new(
        limits: ConnectionLimits,
        router: Router,
        counts: Arc<Counts>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            room: Arc::new(Semaphore::new(limits.max)),
            sources: Sources::of(rustix::process::geteuid().as_raw()),
            limits,
            router,
            counts,
            metrics,
        })
    }

    /// Whether a connection more would have to wait.
    pub(super) fn is_full(&self) -> bool {
        self.room.available_permits() == 0
    }
}

/// Lets connections in until `stopped`, then gives back those still open; dropping them cuts them.
pub(super) async fn accept(
    mut door: Listener,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut open = JoinSet::new();
    let mut failing = false;
    loop {
        while open.try_join_next().is_some() {}
        // Room is made before a connection is taken: what is too many waits in the kernel, in order.
        let room = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            room = shared.room.clone().acquire_owned() => room,
        };
        let accepted = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            accepted = door.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            // RUSTSEC-2024-0376: an accept that fails is one connection's end, never the loop's.
            Err(error) => {
                if !of_one_connection(&error) {
                    Counts::one(&shared.counts.accept_failed);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "no connection can be accepted; trying on");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        failing = false;
        // Never closed; if it were, no connection could come in.
        let Ok(room) = room else { break };
        let Some(place) = shared.sources.enter(peer.source, &shared.limits) else {
            Counts::one(&shared.counts.over_source);
            tracing::debug!(source = ?peer.source, "too many connections of one source");
            continue;
        };
        Counts::one(&shared.counts.accepted);
        let held = Held::new(shared.clone(), room, place);
        let opening = Opening::new(&shared.limits);
        let (shared, stopped) = (shared.clone(), stopped.clone());
        open.spawn(async move {
            connection::serve(socket, peer, &shared, opening, stopped).await;
            drop(held);
        });
    }
    open
}

impl Listener {
    async fn accept(&mut self) -> io::Result<(Socket, Peer)> {
        match self {
            Self::Tcp { listener, tls } => {
                let (stream, address) = listener.accept().await?;
                // Without it a small answer would wait for the acknowledgement of the one before.
                let _slower = stream.set_nodelay(true);
                let peer = Peer {
                    source: Source::Ip(address.ip()),
                    tls: tls.is_some(),
                };
                Ok((Socket::Tcp(stream, tls.clone()), peer))
            }
            Self::Unix(door) => {
                let (stream, uid) = door.accept().await?;
                let peer = Peer {
                    source: Source::Unix { uid },
                    tls: false,
                };
                Ok((Socket::Unix(stream), peer))
            }
        }
    }
}

/// Whether an error is the fate of the one connection that was to be accepted, so that the next may be tried at once.
fn of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// How many connections each party has open.
struct Sources {
    open: Arc<Mutex<HashMap<Source, usize>>>,
    /// This broker's user.
    own: u32,
}

/// One connection's place among those of its party; given back when dropped.
struct Place {
    party: Source,
    sources: Arc<Mutex<HashMap<Source, usize>>>,
}

impl Sources {
    fn of(own: u32) -> Self {
        Self {
            open: Arc::default(),
            own,
        }
    }

    fn enter(&self, source: Source, limits: &ConnectionLimits) -> Option<Place> {
        let party = source.party();
        let max = match party {
            Source::Ip(_) => limits.max_per_source,
            // Who may reach the socket at all is for its mode to say. Those who could stop the broker anyway are not
            // counted out of it.
            Source::Unix { uid } if uid == ROOT || uid == self.own => usize::MAX,
            Source::Unix { .. } => limits.max_per_source,
        };
        let mut sources = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let held = sources.entry(party).or_default();
        // An entry stands only while a place is held: a refused party holds at least one.
        if *held >= max {
            return None;
        }
        *held += 1;
        Some(Place {
            party,
            sources: self.open.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut held) = sources.entry(self.party) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// What a connection holds while it is open.
struct Held {
    shared: Arc<Shared>,
    _connected: InFlightGuard,
    _room: OwnedSemaphorePermit,
    _place: Place,
}

impl Held {
    fn new(shared: Arc<Shared>, room: OwnedSemaphorePermit, place: Place) -> Self {
        Counts::one(&shared.counts.open);
        Self {
            _connected: shared.metrics.connection_opened(),
            shared,
            _room: room,
            _place: place,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

const ROOT: u32 = 0;
/// Between two tries when no connection can be accepted at all.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_party_holds_what_it_may_and_gives_it_back() {
        let limits = ConnectionLimits {
            max_per_source: 2,
            ..ConnectionLimits::default()
        };
        let sources = Sources::of(7);
        let from = |text: &str| Source::Ip(text.parse().expect("address"));
        let one = sources.enter(from("2001:db8::1"), &limits);
        let two = sources.enter(from("2001:db8::2"), &limits);
        assert!(one.is_some() && two.is_some());
        assert!(sources.enter(from("2001:db8::3"), &limits).is_none());
        assert!(sources.enter(from("192.0.2.1"), &limits).is_some());
        drop(one);
        assert!(sources.enter(from("2001:db8::3"), &limits).is_some());
        drop(two);
        assert!(sources.open.lock().expect("sources").is_empty());
        // Of this host's users, root and the broker's own are not counted out.
        let held = |uid| {
            let many: Vec<_> = (0..500)
                .map_while(|_| sources.enter(Source::Unix { uid }, &limits))
                .collect();
            many.len()
        };
        assert_eq!([held(0), held(7), held(8)], [500, 500, 2]);
        let eighth = [8, 8, 9].map(|uid| sources.enter(Source::Unix { uid }, &limits));
        assert!(
            eighth.iter().all(Option::is_some),
            "given back, and each for itself"
        );
    }
}
