//! Proof of possession: DPoP, checked once for each call.

use super::VerifyError;
use crate::jose::dpop::{self, Freshness};
use crate::jose::{Nonces, PublicKey};
use crate::model::{Binding, Digest, Secret, Thumbprint, Timestamp};

/// A key that was held in this call: made only by [`Possession::check`].
#[derive(Debug)]
pub struct Possession {
    key: PublicKey,
    jkt: Thumbprint,
    action_digest: Option<Digest>,
}

/// The DPoP proof of a call, and what it must be made for.
pub struct DpopInput<'a> {
    /// The DPoP proof, as the metadata carries it.
    pub proof: Option<&'a Secret>,
    /// The external URL of the method.
    pub htu: &'a str,
    /// The action digest the call is for, when it is for one.
    pub action: Option<Digest>,
    /// SHA-256 of the evidence in the call, when there is one.
    pub evidence: Option<Digest>,
    /// The broker's nonces.
    pub nonces: &'a Nonces,
    /// Marks (key, jti) as used until a moment, or says why it may not be used.
    pub insert_once: &'a dyn Fn(Thumbprint, &str, Timestamp) -> Result<(), VerifyError>,
}

impl Possession {
    /// Checks the proof (RFC 9449 §4.3, §8): signature first, then its nonce, what it is for, and that it is new.
    ///
    /// INVARIANT (a proof is used once): no `Possession` exists whose proof was not just marked as used.
    pub fn check(call: &DpopInput<'_>, now: Timestamp) -> Result<Self, VerifyError> {
        let proof = call.proof.ok_or(VerifyError::MissingProof)?;
        let expect = dpop::ExpectedProof {
            htm: "POST",
            htu: call.htu,
            freshness: Freshness::Nonce,
        };
        let checked = dpop::check(proof.expose_secret(), &expect).map_err(|error| match error {
            dpop::ProofError::NonceMissing => VerifyError::InvalidNonce,
            other => VerifyError::Proof(other),
        })?;
        let until = checked
            .nonce()
            .and_then(|nonce| call.nonces.check(nonce, now))
            .ok_or(VerifyError::InvalidNonce)?;
        expect_claim("adg", checked.action_digest(), call.action)?;
        expect_claim("evh", checked.evidence_hash(), call.evidence)?;
        if checked.ath().is_some() {
            let problem = "is for resource servers alone";
            return Err(VerifyError::ProofClaim {
                claim: "ath",
                problem,
            });
        }
        let jkt = checked.jkt();
        (call.insert_once)(jkt, checked.jti(), until)?;
        Ok(Self {
            key: checked.key().clone(),
            jkt,
            action_digest: checked.action_digest(),
        })
    }

    /// The key.
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The key's thumbprint.
    pub const fn jkt(&self) -> Thumbprint {
        self.jkt
    }

    /// The action digest the proof was made for.
    pub const fn action_digest(&self) -> Option<Digest> {
        self.action_digest
    }

    /// Checks that the key is the one of a binding.
    pub fn matches(&self, binding: &Binding) -> Result<(), VerifyError> {
        if self.jkt == binding.jkt() {
            Ok(())
        } else {
            Err(VerifyError::TaskKeyMismatch)
        }
    }
}

/// Checks a claim that a proof has exactly where the call carries what it is the digest of.
fn expect_claim(
    claim: &'static str,
    found: Option<Digest>,
    expected: Option<Digest>,
) -> Result<(), VerifyError> {
    let problem = match (found, expected) {
        (found, expected) if found == expected => return Ok(()),
        (None, _) => "is missing",
        (Some(_), None) => "is not expected in this call",
        (Some(_), Some(_)) => "is not the digest of what the call carries",
    };
    Err(VerifyError::ProofClaim { claim, problem })
}
