//! Sweeps: many records ended or extended, in rounds of as many as one entry may rest on.

use super::Broker;
use super::transaction::Tried;
use crate::journal::AppendError;
use crate::state::{Draft, Read};

/// Streams that one round reads before it appends what it has: with the grounds of one more token, the keys of the sixteen people who
/// may have approved it and the eight facts of a bundle, they are no more than an entry may rest on.
pub(super) const SWEEP_READS_MAX: usize = 28;

/// What a sweep did.
#[derive(Debug)]
pub(super) struct Swept<T> {
    /// What its entries say.
    pub(super) recorded: Vec<T>,
    /// False: a candidate kept moving, and is left to the next pass.
    pub(super) is_complete: bool,
    /// Why a candidate could not be recorded: the first error. Then the sweep is not complete.
    pub(super) failed: Option<AppendError>,
}

impl<T> Swept<T> {
    /// The error of the sweep, for a caller that needs no more.
    pub(super) fn outcome(&self) -> Result<(), AppendError> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl Broker {
    /// Judges every candidate in a round, which reads it anew, and appends what it makes of them. `judge` returns `None` for a
    /// candidate that needs nothing any more. A candidate that moves makes its whole round conflict, and one that has no legal entry
    /// makes it fail: then each one of that round is tried alone. An error that is not a candidate's own, such as of a full disk,
    /// ends the sweep; what was recorded before it stays.
    pub(super) async fn sweep<C: Sync, T: Clone + Send>(
        &self,
        candidates: &[C],
        judge: impl Fn(&Read, &C) -> Option<T> + Send + Sync,
        draft: impl Fn(Vec<T>) -> Draft + Send + Sync,
    ) -> Swept<T> {
        let mut swept = Swept {
            recorded: Vec::new(),
            is_complete: true,
            failed: None,
        };
        let mut rest = candidates;
        // How many of the next candidates are tried alone.
        let mut alone = 0_usize;
        while !rest.is_empty() {
            let most = if alone > 0 { 1 } else { usize::MAX };
            let (mut taken, mut looked_at) = (Vec::new(), 0);
            let tried = self
                .try_append(|read| {
                    (taken, looked_at) = take_fitting(read, rest, most, &judge);
                    (!taken.is_empty()).then(|| draft(taken.clone()))
                })
                .await;
            if most > 1 && looked_at > 1 && is_of_one_candidate(&tried) {
                alone = looked_at;
                continue;
            }
            match tried {
                Ok(Tried::Conflict) => swept.is_complete = false,
                Ok(Tried::Appended) => swept.recorded.append(&mut taken),
                Ok(Tried::Nothing) => {}
                Err(error) => {
                    let goes_on = matches!(error, AppendError::Illegal(_) | AppendError::TooLarge);
                    swept.is_complete = false;
                    swept.failed.get_or_insert(error);
                    if !goes_on {
                        break;
                    }
                }
            }
            alone = alone.saturating_sub(looked_at);
            rest = rest.get(looked_at..).unwrap_or_default();
        }
        swept
    }
}

/// Whether one of the records of a round may be the cause that it was not appended, so that the others can be without it.
pub(super) const fn is_of_one_candidate(tried: &Result<Tried, AppendError>) -> bool {
    matches!(
        tried,
        Ok(Tried::Conflict) | Err(AppendError::Illegal(_) | AppendError::TooLarge)
    )
}

/// What a round makes of the first candidates, at most so many, and how many of them it looked at: no more than an entry may rest on.
fn take_fitting<C, T>(
    read: &Read,
    candidates: &[C],
    most: usize,
    judge: impl Fn(&Read, &C) -> Option<T>,
) -> (Vec<T>, usize) {
    let mut taken = Vec::new();
    for (n, candidate) in candidates.iter().enumerate() {
        if taken.len() >= most || read.len() > SWEEP_READS_MAX {
            return (taken, n);
        }
        taken.extend(judge(read, candidate));
    }
    (taken, candidates.len())
}
