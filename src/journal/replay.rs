//! Replay: verifies stored entries, checks each against the state before it, and folds it in. A start and an audit do the same.

use std::sync::Arc;

use super::{Blob, Committed, Fold, IllegalEntry, JournalReader, OpenError, StoredEntry};
use crate::audit::{AuditError, Checkpoint, JournalVerifier};
use crate::model::{Digest, Entry};

/// Replays a stored journal from one snapshot. `blobs` is a second reader of the same directory; `visit` sees every entry after it
/// was checked and before it is folded in. Returns the head and its epoch.
pub fn replay(
    journal: &JournalReader,
    blobs: &JournalReader,
    verifier: &mut JournalVerifier,
    fold: &mut dyn Fold,
    mut visit: impl FnMut(&Entry) -> Result<(), OpenError>,
) -> Result<(Checkpoint, u64), OpenError> {
    journal.read_all(|stored| {
        let blob = |hash: &Digest| Ok(blobs.blob(hash)?.map(Blob::new));
        let checked = check(&stored, verifier, fold, blob)?;
        visit(checked.entry())?;
        fold.apply(&checked);
        Ok(())
    })
}

/// Verifies one stored entry and checks it against the state before it.
pub(super) fn check(
    stored: &StoredEntry,
    verifier: &mut JournalVerifier,
    fold: &dyn Fold,
    blob: impl Fn(&Digest) -> Result<Option<Blob>, OpenError>,
) -> Result<Committed, OpenError> {
    let entry = verifier.entry(&stored.text, stored.leaf)?;
    check_entry(&entry, fold).map_err(|why| AuditError::Illegal {
        index: entry.index,
        why: why.to_string(),
    })?;
    let mut content = Vec::new();
    for hash in entry.event.blobs() {
        content.extend(blob(&hash)?);
    }
    Ok(Committed {
        entry: Arc::new(entry),
        blobs: content,
    })
}

fn check_entry(entry: &Entry, fold: &dyn Fold) -> Result<(), IllegalEntry> {
    fold.check(entry)?;
    let over = entry
        .claims
        .iter()
        .find(|claim| fold.count(&claim.counter, entry.at) >= claim.ceiling);
    match over {
        None => Ok(()),
        Some(claim) => Err(IllegalEntry {
            kind: entry.event.kind(),
            why: format!("{} was at its ceiling of {}", claim.counter, claim.ceiling),
        }),
    }
}
