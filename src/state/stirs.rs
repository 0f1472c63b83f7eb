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
            Fact::AccessRequestOpened(f) => (Stirred::Opened, vec![f.access_request]),
            Fact::VoteCast(f) if leaving.is_empty() => (Stirred::Voted, vec![f.access_request]),
            Fact::PolicyApplied(_) | Fact::ApproverEnrolled(_) | Fact::ApproverKeysRevoked(_) => {
                (Stirred::Rules, Vec::new())
            }
            Fact::VoteCast(_)
            | Fact::EpochStarted(_)
            | Fact::TrustBundleChanged(_)
            | Fact::KeyPublished(_)
            | Fact::AgentSuspended(_)
            | Fact::AgentResumed(_)
            | Fact::Frozen(_)
            | Fact::Unfrozen(_)
            | Fact::TaskOpened(_)
            | Fact::LeasesExtended(_)
            | Fact::TaskEnded(_)
            | Fact::RequestDenied(_)
            | Fact::VoteRefused(_)
            | Fact::AccessRequestClosed(_)
            | Fact::ApproverInvited(_)
            | Fact::TokenIssued(_)
            | Fact::TokenReissued(_)
            | Fact::TokenConsumed(_)
            | Fact::GrantsEnded(_)
            | Fact::RefusalsCounted(_) => match leaving.is_empty() {
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
