//! Inbox changes: the latest changes among pending access requests, for streams of approvers' inboxes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::*;

/// The change that one entry made among pending access requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxChange {
    /// Epoch of the journal.
    pub epoch: u64,
    /// Index of the entry.
    pub index: u64,
    /// The kind of change.
    pub kind: InboxChangeKind,
    /// The access requests that changed; empty for [`InboxChangeKind::Rules`].
    pub ids: Vec<AccessRequestId>,
}

/// The kind of an [`InboxChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxChangeKind {
    /// An access request was opened.
    Opened,
    /// An approval was cast.
    Voted,
    /// Access requests were closed, for any reason.
    Closed,
    /// The policy or the set of voters changed: the status of any access request may differ.
    Rules,
}

/// The latest inbox changes, oldest first, and the access requests that the current entry has closed so far.
#[derive(Debug, Default)]
pub(super) struct InboxChangeLog(Mutex<Changes>);

#[derive(Debug, Default)]
struct Changes {
    latest: VecDeque<Arc<InboxChange>>,
    /// Index of the last change that was dropped.
    dropped: Option<u64>,
    closing: Vec<AccessRequestId>,
}

/// Most changes kept; a reader that is further behind reads the whole inbox again.
const INBOX_CHANGES_MAX: usize = 8_192;

impl InboxChangeLog {
    /// Records that the current entry closes an access request.
    pub(super) fn closed(&self, id: AccessRequestId) {
        self.lock().closing.push(id);
    }

    /// Finishes the current entry: adds its change, if it made one.
    pub(super) fn apply(&self, entry: &Entry) {
        let mut changes = self.lock();
        let closing = std::mem::take(&mut changes.closing);
        let (kind, ids) = match &entry.event {
            Event::AccessRequestOpened(f) => (InboxChangeKind::Opened, vec![f.access_request]),
            Event::VoteCast(f) if closing.is_empty() => {
                (InboxChangeKind::Voted, vec![f.access_request])
            }
            // What it needs has changed, so another person may have to vote.
            Event::AccessRequestReassessed(f) => (InboxChangeKind::Opened, vec![f.access_request]),
            Event::PolicyApplied(_)
            | Event::FactSet(_)
            | Event::ApproverEnrolled(_)
            | Event::PasskeyConfirmed(_)
            | Event::ApproverKeysRevoked(_) => (InboxChangeKind::Rules, Vec::new()),
            Event::VoteCast(_)
            | Event::EpochStarted(_)
            | Event::TrustBundleChanged(_)
            | Event::KeyPublished(_)
            | Event::AgentSuspended(_)
            | Event::AgentResumed(_)
            | Event::Frozen(_)
            | Event::Unfrozen(_)
            | Event::TaskOpened(_)
            | Event::LeasesExtended(_)
            | Event::TaskEnded(_)
            | Event::RequestDenied(_)
            | Event::VoteRefused(_)
            | Event::AccessRequestClosed(_)
            | Event::ApproverInvited(_)
            | Event::TokenIssued(_)
            | Event::TokenReissued(_)
            | Event::TokenConsumed(_)
            | Event::GrantsEnded(_)
            | Event::RefusalsCounted(_) => match closing.is_empty() {
                true => return,
                false => (InboxChangeKind::Closed, closing),
            },
        };
        changes.latest.push_back(Arc::new(InboxChange {
            epoch: entry.epoch,
            index: entry.index,
            kind,
            ids,
        }));
        if changes.latest.len() > INBOX_CHANGES_MAX {
            changes.dropped = changes.latest.pop_front().map(|change| change.index);
        }
    }

    /// At most `max` changes above an index, oldest first; `None` when some of them are no longer kept.
    pub(super) fn after(&self, index: u64, max: usize) -> Option<Vec<Arc<InboxChange>>> {
        let changes = self.lock();
        if changes.dropped.is_some_and(|dropped| dropped > index) {
            return None;
        }
        let first = changes
            .latest
            .partition_point(|change| change.index <= index);
        Some(
            changes
                .latest
                .iter()
                .skip(first)
                .take(max)
                .cloned()
                .collect(),
        )
    }

    /// The latest change, if the entry at this index made it.
    pub(super) fn at(&self, index: u64) -> Option<Arc<InboxChange>> {
        let changes = self.lock();
        let last = changes.latest.back();
        last.filter(|change| change.index == index).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
