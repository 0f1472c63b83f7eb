//! Replay cache: accepts each proof once, in bounded memory.

use std::collections::HashSet;

use super::ValidationError;
use crate::jose::dpop::CheckedProof;
use crate::model::{Digest, Timestamp};

/// Two generations: eviction drops the older.
#[derive(Debug, Default)]
pub(super) struct ProofReplayCache {
    recent: HashSet<Digest>,
    previous: HashSet<Digest>,
    began: Option<Timestamp>,
}

impl ProofReplayCache {
    /// Accepts the proof unless this key already sent one with this `jti` while it could be fresh (RFC 9449 §11.1).
    pub(super) fn insert_once(
        &mut self,
        proof: &CheckedProof,
        now: Timestamp,
    ) -> Result<(), ValidationError> {
        let jkt = proof.jkt();
        self.take(
            Digest::sha256_parts(&[jkt.0.as_bytes(), proof.jti().as_bytes()]),
            now,
        )
    }

    fn take(&mut self, name: Digest, now: Timestamp) -> Result<(), ValidationError> {
        if now.since(*self.began.get_or_insert(now)) >= GENERATION_MS {
            self.previous = std::mem::take(&mut self.recent);
            self.began = Some(now);
        }
        if self.previous.contains(&name) || self.recent.contains(&name) {
            return Err(ValidationError::ProofReplayed);
        }
        if self.recent.len() >= PROOFS_MAX {
            return Err(ValidationError::Busy);
        }
        self.recent.insert(name);
        Ok(())
    }
}

/// A proof is fresh from a minute before its `iat` to a minute after: 120 s, and the seconds that `iat` is rounded by.
const GENERATION_MS: i64 = 125_000;
/// Most proofs of one generation; above it new ones are refused.
const PROOFS_MAX: usize = 500_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_is_accepted_once_while_fresh() {
        let start = Timestamp::from_secs(1_800_000_000);
        for after_ms in [0, 1, 60_000, 120_000, 124_999, 125_000] {
            for first_ms in [0, 60_000, 124_000, 130_000, 249_000] {
                let mut proofs = ProofReplayCache::default();
                assert!(proofs.take(Digest::sha256(b"first"), start).is_ok());
                let at = start.plus_millis(first_ms);
                assert!(proofs.take(Digest::sha256(b"x"), at).is_ok());
                let again = proofs.take(Digest::sha256(b"x"), at.plus_millis(after_ms));
                assert!(
                    matches!(again, Err(ValidationError::ProofReplayed)),
                    "{first_ms} {after_ms}"
                );
                assert!(proofs.take(Digest::sha256(b"y"), at).is_ok());
            }
        }
    }

    #[test]
    fn cache_is_bounded_and_recovers() {
        let start = Timestamp::from_secs(1_800_000_000);
        let mut proofs = ProofReplayCache::default();
        for n in 0..PROOFS_MAX {
            assert!(proofs.take(Digest::sha256(&n.to_be_bytes()), start).is_ok());
        }
        assert!(matches!(
            proofs.take(Digest::sha256(b"one more"), start),
            Err(ValidationError::Busy)
        ));
        assert!(
            proofs
                .take(
                    Digest::sha256(b"one more"),
                    start.plus_millis(GENERATION_MS)
                )
                .is_ok()
        );
    }
}
