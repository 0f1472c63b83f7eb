//! Proofs already used: each once, in bounded memory.

use std::collections::HashSet;

use super::Rejected;
use crate::jose::dpop::CheckedProof;
use crate::model::{Digest, Timestamp};

/// Two generations, so that forgetting is dropping one of them.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    young: HashSet<Digest>,
    old: HashSet<Digest>,
    began: Option<Timestamp>,
}

impl Proofs {
    /// Takes the proof, if this key never showed one with this `jti` while it could be fresh.
    pub(super) fn once(&mut self, proof: &CheckedProof, now: Timestamp) -> Result<(), Rejected> {
        let jkt = proof.jkt();
        self.take(
            Digest::sha256_parts(&[jkt.0.as_bytes(), proof.jti().as_bytes()]),
            now,
        )
    }

    fn take(&mut self, name: Digest, now: Timestamp) -> Result<(), Rejected> {
        if now.since(*self.began.get_or_insert(now)) >= GENERATION_MS {
            self.old = std::mem::take(&mut self.young);
            self.began = Some(now);
        }
        if self.old.contains(&name) || self.young.contains(&name) {
            return Err(Rejected::ProofReplayed);
        }
        if self.young.len() >= PROOFS_MAX {
            return Err(Rejected::Busy);
        }
        self.young.insert(name);
        Ok(())
    }
}

/// A proof is fresh from a minute before its `iat` to a minute after: 120 s, and the seconds that `iat` is rounded by.
const GENERATION_MS: i64 = 125_000;
/// Proofs of one generation; above it new ones are refused.
const PROOFS_MAX: usize = 500_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_used_once_while_it_could_be_fresh() {
        let start = Timestamp::from_secs(1_800_000_000);
        for after_ms in [0, 1, 60_000, 120_000, 124_999, 125_000] {
            for first_ms in [0, 60_000, 124_000, 130_000, 249_000] {
                let mut proofs = Proofs::default();
                assert!(proofs.take(Digest::sha256(b"first"), start).is_ok());
                let at = start.plus_millis(first_ms);
                assert!(proofs.take(Digest::sha256(b"x"), at).is_ok());
                let again = proofs.take(Digest::sha256(b"x"), at.plus_millis(after_ms));
                assert!(
                    matches!(again, Err(Rejected::ProofReplayed)),
                    "{first_ms} {after_ms}"
                );
                assert!(proofs.take(Digest::sha256(b"y"), at).is_ok());
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let start = Timestamp::from_secs(1_800_000_000);
        let mut proofs = Proofs::default();
        for n in 0..PROOFS_MAX {
            assert!(proofs.take(Digest::sha256(&n.to_be_bytes()), start).is_ok());
        }
        assert!(matches!(
            proofs.take(Digest::sha256(b"one more"), start),
            Err(Rejected::Busy)
        ));
        assert!(
            proofs
                .take(Digest::sha256(b"one more"), start.plus_millis(GENERATION_MS))
                .is_ok()
        );
    }
}
