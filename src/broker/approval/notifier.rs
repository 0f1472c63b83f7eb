//! Access request notifications: wakes the tasks that wait for one access request or watch inboxes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::model::AccessRequestId;
use crate::state::{InboxChangeKind, State};

/// One channel for each awaited access request, and one for all inboxes.
#[derive(Debug)]
pub(in crate::broker) struct Notifier {
    requests: Mutex<HashMap<AccessRequestId, watch::Sender<()>>>,
    /// Index of the last entry that changed an inbox.
    inboxes: watch::Sender<u64>,
}

impl Default for Notifier {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            inboxes: watch::Sender::new(0),
        }
    }
}

/// A subscription to changes of one access request; ends on drop.
#[derive(Debug)]
pub(in crate::broker) struct Subscription {
    notifier: Arc<Notifier>,
    id: AccessRequestId,
    changes: watch::Receiver<()>,
}

impl Notifier {
    /// Subscribes to one access request. Earlier changes are not reported: read the state afterwards.
    pub(in crate::broker) fn subscribe(self: &Arc<Self>, id: AccessRequestId) -> Subscription {
        let mut requests = self.lock();
        let sender = requests.entry(id).or_insert_with(|| watch::Sender::new(()));
        Subscription {
            changes: sender.subscribe(),
            notifier: self.clone(),
            id,
        }
    }

    /// Subscribes to changes of any inbox.
    pub(in crate::broker) fn subscribe_inboxes(&self) -> watch::Receiver<u64> {
        self.inboxes.subscribe()
    }

    /// Wakes the subscribers an entry concerns. The entry has been applied: they see its effect.
    pub(in crate::broker) fn notify(&self, state: &State, index: u64) {
        let Some(change) = state.inbox_change_at(index) else {
            return;
        };
        match change.kind {
            InboxChangeKind::Rules => self.notify_all(),
            InboxChangeKind::Opened | InboxChangeKind::Voted | InboxChangeKind::Closed => {
                let requests = self.lock();
                for sender in change.ids.iter().filter_map(|id| requests.get(id)) {
                    sender.send_replace(());
                }
            }
        }
        self.inboxes.send_replace(index);
    }

    /// Wakes all subscribers of access requests: the rules changed, or the journal stopped.
    pub(in crate::broker) fn notify_all(&self) {
        for sender in self.lock().values() {
            sender.send_replace(());
        }
    }

    /// Access requests with a subscriber.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccessRequestId, watch::Sender<()>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Waits for a change after the last one seen.
    pub(in crate::broker) async fn changed(&mut self) {
        // INVARIANT (a channel outlives its subscribers): the sender is dropped only with the last of them, in `drop`.
        let _rang = self.changes.changed().await.is_ok();
    }

    /// Marks changes so far as seen: read the state afterwards.
    pub(in crate::broker) fn mark_seen(&mut self) {
        self.changes.mark_unchanged();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut requests = self.notifier.lock();
        // The count still includes this one.
        let last = requests
            .get(&self.id)
            .is_some_and(|sender| sender.receiver_count() <= 1);
        if last {
            requests.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn notifier_is_dropped_with_its_last_subscriber() {
        let notifier = Arc::new(Notifier::default());
        let id = AccessRequestId::from_random([1; 16]);
        let (mut one, two) = (notifier.subscribe(id), notifier.subscribe(id));
        assert_eq!(notifier.len(), 1);
        drop(two);
        assert_eq!(notifier.len(), 1, "one subscriber is left");
        notifier.notify_all();
        one.changed().await;
        let quiet = tokio::time::timeout(Duration::from_millis(20), one.changed()).await;
        assert!(quiet.is_err(), "one change is reported once");
        notifier.notify_all();
        one.mark_seen();
        let quiet = tokio::time::timeout(Duration::from_millis(20), one.changed()).await;
        assert!(quiet.is_err(), "seen already");
        drop(one);
        assert_eq!(notifier.len(), 0);
    }
}
