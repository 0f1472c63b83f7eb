//! Replay protection: used proofs and challenges, until they expire.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::model::{Thumbprint, Timestamp};
use crate::verify::VerifyError;

/// Used proofs by (key, jti), until their nonce expires. In memory only: after a restart no earlier nonce is accepted.
#[derive(Debug, Default)]
pub(in crate::broker) struct ReplayCache {
    used: Mutex<HashMap<Thumbprint, HashMap<String, Timestamp>>>,
}

/// Unexpired proofs of one key.
const PER_KEY_MAX: usize = 131_072;
/// Keys with unexpired proofs.
const KEYS_MAX: usize = 100_000;

impl ReplayCache {
    /// Marks a proof as used; refuses one that was used before.
    pub(in crate::broker) fn insert_once(
        &self,
        key: Thumbprint,
        jti: &str,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<(), VerifyError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= KEYS_MAX && !used.contains_key(&key) {
            return Err(VerifyError::TooManyProofs);
        }
        let key_proofs = used.entry(key).or_default();
        if key_proofs.len() >= PER_KEY_MAX {
            key_proofs.retain(|_, until| now < *until);
            if key_proofs.len() >= PER_KEY_MAX {
                return Err(VerifyError::TooManyProofs);
            }
        }
        match key_proofs.insert(jti.to_owned(), until) {
            None => Ok(()),
            Some(_) => Err(VerifyError::Replayed),
        }
    }

    /// Drops proofs whose nonce has expired.
    pub(in crate::broker) fn prune(&self, now: Timestamp) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, key_proofs| {
            key_proofs.retain(|_, until| now < *until);
            !key_proofs.is_empty()
        });
    }
}
