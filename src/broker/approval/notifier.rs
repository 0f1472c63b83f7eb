//! Access request notifications: wakes the tasks that wait for an access request or watch inboxes.
//!
//! An answer about an access request rests on the streams that its round read. An entry that advances one of them, or that changes
//! the request itself, wakes the subscribers of the request; they read the state again. An entry that concerns many requests, such as
//! an apply, wakes them one slice after the other.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::journal::ReadSet;
use crate::model::{AccessRequestId, Entry, Stream};
use crate::state::Show;

/// One channel for each awaited access request, and one for all inboxes.
#[derive(Debug)]
pub(in crate::broker) struct Notifier {
    registry: Mutex<Registry>,
    /// Index of the last entry that changed an inbox.
    inboxes: watch::Sender<u64>,
}

/// The awaited access requests, and the streams that their answers rest on.
#[derive(Debug, Default)]
struct Registry {
    requests: HashMap<AccessRequestId, Awaited>,
    by_stream: HashMap<Stream, HashSet<AccessRequestId>>,
}

/// An access request with a subscriber.
#[derive(Debug)]
struct Awaited {
    /// How long a subscriber waits before it reads the state again.
    sender: watch::Sender<Duration>,
    /// The streams that the answers of all its subscribers rest on.
    streams: HashSet<Stream>,
}

/// Subscribers that one entry wakes at once.
const SLICE: usize = 64;
/// Time from one slice to the next.
const SLICE_INTERVAL: Duration = Duration::from_millis(2);

impl Default for Notifier {
    fn default() -> Self {
        Self {
            registry: Mutex::default(),
            inboxes: watch::Sender::new(0),
        }
    }
}

/// A subscription to changes of one access request; ends on drop.
#[derive(Debug)]
pub(in crate::broker) struct Subscription {
    notifier: Arc<Notifier>,
    id: AccessRequestId,
    changes: watch::Receiver<Duration>,
    /// When a change that was seen is reported.
    due: Option<Instant>,
}

impl Notifier {
    /// Subscribes to one access request. Earlier changes are not reported: read the state afterwards.
    pub(in crate::broker) fn subscribe(self: &Arc<Self>, id: AccessRequestId) -> Subscription {
        let mut registry = self.lock();
        let awaited = registry.requests.entry(id).or_insert_with(|| Awaited {
            sender: watch::Sender::new(Duration::ZERO),
            streams: HashSet::new(),
        });
        Subscription {
            changes: awaited.sender.subscribe(),
            notifier: self.clone(),
            id,
            due: None,
        }
    }

    /// Subscribes to changes of any inbox.
    pub(in crate::broker) fn subscribe_inboxes(&self) -> watch::Receiver<u64> {
        self.inboxes.subscribe()
    }

    /// Wakes the subscribers that an entry concerns. The entry has been applied: they see its effect.
    pub(in crate::broker) fn notify(&self, show: Show<'_>, entry: &Entry) {
        let change = show.inbox_change_at(entry.index);
        let changed = change.iter().flat_map(|change| &change.ids);
        self.lock().wake(changed, &entry.write_set);
        if change.is_some() {
            self.inboxes.send_replace(entry.index);
        }
    }

    /// Wakes all subscribers of access requests at once: the journal stopped.
    pub(in crate::broker) fn notify_all(&self) {
        for awaited in self.lock().requests.values() {
            awaited.sender.send_replace(Duration::ZERO);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Wakes the subscribers of these access requests, and of those whose answers rest on these streams.
    fn wake<'a, V>(
        &'a self,
        changed: impl Iterator<Item = &'a AccessRequestId>,
        advanced: &[(Stream, V)],
    ) {
        let mut woken: HashSet<&AccessRequestId> = HashSet::new();
        let mut subscribers = 0;
        let resting = advanced.iter().filter_map(|(s, _)| self.by_stream.get(s));
        // What an entry changes by name is few, or as many as what rests on its stream.
        for id in changed.chain(resting.flatten()) {
            let Some(awaited) = self.requests.get(id).filter(|_| woken.insert(id)) else {
                continue;
            };
            let slice = u32::try_from(subscribers / SLICE).unwrap_or(u32::MAX);
            let delay = SLICE_INTERVAL.saturating_mul(slice);
            awaited.sender.send_replace(delay);
            subscribers += awaited.sender.receiver_count();
        }
    }

    fn rest_on(&mut self, id: AccessRequestId, reads: &ReadSet) {
        let Some(awaited) = self.requests.get_mut(&id) else {
            return;
        };
        for (stream, _) in reads.iter() {
            if !awaited.streams.contains(stream) {
                awaited.streams.insert(stream.clone());
                let resting = self.by_stream.entry(stream.clone()).or_default();
                resting.insert(id);
            }
        }
    }

    fn remove(&mut self, id: AccessRequestId) {
        let streams = self.requests.remove(&id).map(|awaited| awaited.streams);
        for stream in streams.into_iter().flatten() {
            if let Some(resting) = self.by_stream.get_mut(&stream) {
                resting.remove(&id);
                if resting.is_empty() {
                    self.by_stream.remove(&stream);
                }
            }
        }
    }
}

impl Subscription {
    /// Adds what an answer rests on: an entry that advances one of these streams wakes this subscription, and the others of its access
    /// request. What moved since the answer was read is not reported: compare the read set with the state afterwards.
    pub(in crate::broker) fn rest_on(&mut self, reads: &ReadSet) {
        self.notifier.lock().rest_on(self.id, reads);
    }

    /// Waits for a change after the last one seen. Nothing is lost when it is dropped before.
    pub(in crate::broker) async fn changed(&mut self) {
        loop {
            let changed = self.changes.changed();
            // INVARIANT (a channel outlives its subscribers): the sender is dropped only with the last of them, in `drop`.
            let _rang = match self.due {
                None => changed.await.is_ok(),
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due) => return self.due = None,
                    changed = changed => changed.is_ok(),
                },
            };
            let next = Instant::now() + *self.changes.borrow();
            self.due = Some(self.due.map_or(next, |due| due.min(next)));
        }
    }

    /// Marks changes so far as seen: read the state afterwards.
    pub(in crate::broker) fn mark_seen(&mut self) {
        self.changes.mark_unchanged();
        self.due = None;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut registry = self.notifier.lock();
        // The count still includes this one.
        let awaited = registry.requests.get(&self.id);
        if awaited.is_some_and(|awaited| awaited.sender.receiver_count() <= 1) {
            registry.remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any delay here; on the paused clock it takes no time.
    const LONG: Duration = Duration::from_secs(60);

    fn id(n: u8) -> AccessRequestId {
        AccessRequestId::from_random([n; 16])
    }

    fn reads(streams: &[Stream]) -> ReadSet {
        ReadSet::new(streams.iter().map(|stream| (stream.clone(), 1)).collect())
    }

    fn advance(notifier: &Notifier, streams: &[Stream]) {
        let advanced: Vec<(Stream, ())> = streams.iter().map(|s| (s.clone(), ())).collect();
        notifier.lock().wake(std::iter::empty(), &advanced);
    }

    async fn is_quiet(subscription: &mut Subscription) -> bool {
        let changed = tokio::time::timeout(LONG, subscription.changed());
        changed.await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn registration_ends_with_its_last_subscriber() {
        let notifier = Arc::new(Notifier::default());
        let (mut one, mut two) = (notifier.subscribe(id(1)), notifier.subscribe(id(1)));
        let agent = Stream::Denials(crate::model::AgentId::parse("a").expect("id"));
        one.rest_on(&reads(&[Stream::Policy, agent.clone()]));
        two.rest_on(&reads(&[Stream::Policy, Stream::Credentials]));
        let mut other = notifier.subscribe(id(2));
        other.rest_on(&reads(&[Stream::Policy]));
        let count = || {
            let registry = notifier.lock();
            let resting = |stream| registry.by_stream.get(stream).map_or(0, HashSet::len);
            (
                registry.requests.len(),
                resting(&Stream::Policy),
                resting(&Stream::Credentials),
                resting(&agent),
                registry.by_stream.len(),
            )
        };
        assert_eq!(count(), (2, 2, 1, 1, 3));
        drop(two);
        assert_eq!(count(), (2, 2, 1, 1, 3), "one subscriber is left");
        drop(one);
        assert_eq!(count(), (1, 1, 0, 0, 1));
        drop(other);
        assert_eq!(count(), (0, 0, 0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn change_is_reported_once() {
        let notifier = Arc::new(Notifier::default());
        let mut one = notifier.subscribe(id(1));
        notifier.notify_all();
        one.changed().await;
        assert!(is_quiet(&mut one).await, "reported already");
        notifier.notify_all();
        one.mark_seen();
        assert!(is_quiet(&mut one).await, "seen already");
    }

    #[tokio::test(start_paused = true)]
    async fn entry_wakes_what_rests_on_it() {
        let notifier = Arc::new(Notifier::default());
        let (mut one, mut two) = (notifier.subscribe(id(1)), notifier.subscribe(id(2)));
        one.rest_on(&reads(&[Stream::Policy, Stream::Credentials]));
        two.rest_on(&reads(&[Stream::Policy]));
        advance(&notifier, &[Stream::Credentials]);
        assert!(is_quiet(&mut two).await, "does not rest on it");
        one.changed().await;
        advance(&notifier, &[Stream::Policy, Stream::Credentials]);
        one.changed().await;
        two.changed().await;
        assert!(is_quiet(&mut one).await, "one entry is one change");
        let changed = [id(2), id(3)];
        notifier.lock().wake::<()>(changed.iter(), &[]);
        assert!(is_quiet(&mut one).await, "another request changed");
        two.changed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn shared_stream_wakes_one_slice_after_the_other() {
        let notifier = Arc::new(Notifier::default());
        let total = 3 * SLICE + 1;
        let mut all = Vec::new();
        for n in 0..total {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            let mut one = notifier.subscribe(AccessRequestId::from_random(bytes));
            one.rest_on(&reads(&[Stream::Policy]));
            all.push(one);
        }
        let start = Instant::now();
        advance(&notifier, &[Stream::Policy]);
        let mut woken = tokio::task::JoinSet::new();
        for mut one in all {
            woken.spawn(async move {
                one.changed().await;
                start.elapsed()
            });
        }
        let mut at: Vec<Duration> = woken.join_all().await;
        at.sort_unstable();
        let slices: Vec<usize> = at.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
        assert_eq!(slices, [SLICE, SLICE, SLICE, 1]);
        assert_eq!(at.last(), Some(&(3 * SLICE_INTERVAL)));
    }

    #[tokio::test(start_paused = true)]
    async fn own_change_is_not_held_back_by_a_delayed_one() {
        let notifier = Arc::new(Notifier::default());
        let mut one = notifier.subscribe(id(1));
        let delay = |delay| {
            let registry = notifier.lock();
            let awaited = registry.requests.get(&id(1)).expect("subscribed");
            awaited.sender.send_replace(delay);
        };
        delay(LONG);
        let start = Instant::now();
        let dropped = tokio::time::timeout(Duration::from_secs(1), one.changed()).await;
        assert!(dropped.is_err(), "delayed");
        delay(Duration::ZERO);
        one.changed().await;
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        delay(LONG);
        let dropped = tokio::time::timeout(Duration::from_secs(1), one.changed()).await;
        assert!(dropped.is_err(), "delayed");
        one.changed().await;
        assert_eq!(start.elapsed(), Duration::from_secs(1) + LONG, "not lost");
    }
}
