//! Listeners: one accept loop for each, limits on open connections, and a graceful stop.
//!
//! In: a bound socket, limits, the router. Out: requests that carry their [`Peer`], each on a connection served by
//! [`connection`]. Trusts the kernel for the client's address or user id. Refuses a source with too many connections; the
//! rest beyond the total limit wait in the kernel's backlog. Never ends because a connection, or many, failed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection::{self, FirstRequestDeadline};
use super::connection_limits::{ConnectionGuard, ConnectionStats, ListenerState, Socket};
use super::peer::{Peer, PeerSource};
use super::tls::Tls;
use super::unix::GuardedUnixListener;

/// A bound socket that accepts connections.
pub(super) enum Listener {
    Tcp {
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
    },
    Unix(GuardedUnixListener),
}

/// Accepts connections until `stopped`, then returns those still open; dropping them cuts them.
pub(super) async fn accept(
    mut listener: Listener,
    state: Arc<ListenerState>,
    mut stopped: watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut open = JoinSet::new();
    let mut failing = false;
    loop {
        while open.try_join_next().is_some() {}
        // The permit first, the connection then: connections beyond the limit wait in the kernel, in order.
        let permit = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            permit = state.permits.clone().acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            // RUSTSEC-2024-0376: an accept that fails ends one connection, never the loop.
            Err(error) => {
                if !is_of_one_connection(&error) {
                    ConnectionStats::increment(&state.stats.accept_failed);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "accept failed; retrying");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        failing = false;
        // The semaphore is never closed; if it were, no connection could be accepted.
        let Ok(permit) = permit else { break };
        let Some(source) = state.sources.try_acquire(peer.source, &state.limits) else {
            ConnectionStats::increment(&state.stats.per_source_limit);
            tracing::debug!(source = ?peer.source, "connection refused: too many from one source");
            continue;
        };
        ConnectionStats::increment(&state.stats.accepted);
        let guard = ConnectionGuard::new(state.clone(), permit, source);
        let deadline = FirstRequestDeadline::new(&state.limits);
        let (state, stopped) = (state.clone(), stopped.clone());
        open.spawn(async move {
            connection::serve(socket, peer, &state, deadline, stopped).await;
            drop(guard);
        });
    }
    open
}

impl Listener {
    async fn accept(&mut self) -> io::Result<(Socket, Peer)> {
        match self {
            Self::Tcp { listener, tls } => {
                let (stream, address) = listener.accept().await?;
                // With Nagle's algorithm a small response would wait for the acknowledgement of the one before.
                let _slower = stream.set_nodelay(true);
                let peer = Peer {
                    source: PeerSource::Ip(address.ip()),
                    tls: tls.is_some(),
                };
                Ok((Socket::Tcp(stream, tls.clone()), peer))
            }
            Self::Unix(listener) => {
                let (stream, uid) = listener.accept().await?;
                let peer = Peer {
                    source: PeerSource::Unix { uid },
                    tls: false,
                };
                Ok((Socket::Unix(stream), peer))
            }
        }
    }
}

/// Whether an error concerns only the connection that was to be accepted, so that the next accept may follow at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Pause between two tries when no connection can be accepted at all.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
