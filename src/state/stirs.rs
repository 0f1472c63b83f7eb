use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::*;

/// What one entry changed among the access requests that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stir {
    /// The life of the journal.
    pub epoch: u64,
    /// Which entry.
    pub index: u64,
    /// What happened.
    pub what: Stirred,
    /// To which; empty for [`Stirred::Rules`].
    pub ids: Vec<AccessRequestId>,
}

/// What may happen to access requests that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stirred {
    /// One waits that did not.
    Opened,
    /// A yes was entered.
    Voted,
    /// These wait no longer, whatever the reason.
    Closed,
    /// The rules or who may vote changed: any of them may stand differently.
    Rules,
}

/// The latest stirs, oldest first, and what the entry that is being folded has closed so far.
#[derive(Debug, Default)]
pub(super) struct Stirs(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    latest: VecDeque<Arc<Stir>>,
    /// Index of the last stir that was dropped.
    dropped: Option<u64>,
    leaving: Vec<AccessRequestId>,
}

/// Stirs that are kept: whoever was away for longer reads the whole inbox again.
const STIRS_MAX: usize = 8_192;

impl Stirs {
    /// Notes that an access request stops waiting by the entry that is being folded.
    pub(super) fn leaves(&self, id: AccessRequestId) {
        self.lock().leaving.push(id);
    }

    /// Ends the folding of an entry.
    pub(super) fn fold(&self, entry: &Entry) {
        let mut kept = self.lock();
        let leaving = std::mem::take(&mut kept.leaving);
        let (what, ids) = match &entry.fact {
            Event::AccessRequestOpened(f) => (Stirred::Opened, vec![f.access_request]),
            Event::VoteCast(f) if leaving.is_empty() => (Stirred::Voted, vec![f.access_request]),
            Event::PolicyApplied(_)
            | Event::ApproverEnrolled(_)
            | Event::ApproverKeysRevoked(_) => (Stirred::Rules, Vec::new()),
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
            | Event::RefusalsCounted(_) => match leaving.is_empty() {
                true => return,
                false => (Stirred::Closed, leaving),
            },
        };
        kept.latest.push_back(Arc::new(Stir {
            epoch: entry.epoch,
            index: entry.index,
            what,
            ids,
        }));
        if kept.latest.len() > STIRS_MAX {
            kept.dropped = kept.latest.pop_front().map(|stir| stir.index);
        }
    }

    /// At most `max` stirs above an index; `None` when some of them are no longer kept.
    pub(super) fn after(&self, index: u64, max: usize) -> Option<Vec<Arc<Stir>>> {
        let kept = self.lock();
        if kept.dropped.is_some_and(|dropped| dropped > index) {
            return None;
        }
        let first = kept.latest.partition_point(|stir| stir.index <= index);
        Some(kept.latest.iter().skip(first).take(max).cloned().collect())
    }

    /// The last stir, if this entry made it.
    pub(super) fn of(&self, index: u64) -> Option<Arc<Stir>> {
        let kept = self.lock();
        let last = kept.latest.back();
        last.filter(|stir| stir.index == index).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
