//! Proofs of votes: the signature or passkey assertion over a vote statement, and the cache of proofs that verified.
//!
//! In: a vote, a public key that is the voter's now, the relying party. Out: the statement, when the proof verifies.
//! Trusts `jose` and `webauthn` for signatures.
//! Refuses a proof with a part missing. Never judges whether the voter may vote: [`super::votes`] does, at every tally.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::cache::GenerationalCache;
use crate::jose::PublicKey;
use crate::model::*;
use crate::policy::Person;
use crate::state::{Passkey, PersonCredentials, VoteRecord};
use crate::webauthn::{self, Assertion, RelyingParty};

/// How a vote is proved.
#[derive(Debug)]
pub enum VoteProof {
    /// ES256, r and s, over the statement's digest, by a key of `people.toml`.
    Signature(Vec<u8>),
    /// An assertion whose challenge is the statement's digest.
    Passkey(Assertion),
}

impl VoteProof {
    /// How the vote is signed.
    pub const fn method(&self) -> VoteMethod {
        match self {
            Self::Signature(_) => VoteMethod::Key,
            Self::Passkey(_) => VoteMethod::Passkey,
        }
    }
}

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoteProofError {
    /// Another key, another statement, or a revoked key.
    #[error("the signature is not of this statement by a key of this person")]
    Signature,
    /// The profile takes passkeys alone.
    #[error("the profile takes a vote by passkey alone")]
    PasskeyRequired,
    /// The passkey is not, or no longer, this person's.
    #[error("the passkey is not, or no longer, one of this person")]
    NotEnrolled,
    /// A check of WebAuthn failed.
    #[error("passkey: {0}")]
    Passkey(#[from] webauthn::WebauthnError),
}

/// A public key that is a person's now and that a profile takes.
#[derive(Debug)]
pub enum VotingKey<'a> {
    /// A key of `people.toml`.
    Registered(&'a PublicKey),
    /// An enrolled passkey.
    Passkey(&'a Passkey),
}

impl<'a> VotingKey<'a> {
    /// The person's key with this thumbprint: a passkey when the vote is proved by one. Whether it may act is asked apart.
    pub fn find(
        person: &'a Person,
        enrolled: &'a PersonCredentials,
        key: Thumbprint,
        method: VoteMethod,
        by_passkey: bool,
    ) -> Result<Self, VoteProofError> {
        match (by_passkey, method) {
            (false, VoteMethod::Passkey) => Err(VoteProofError::PasskeyRequired),
            (false, VoteMethod::Key) => person
                .key(key)
                .map(Self::Registered)
                .ok_or(VoteProofError::Signature),
            (true, VoteMethod::Key | VoteMethod::Passkey) => enrolled
                .passkey(key)
                .map(Self::Passkey)
                .ok_or(VoteProofError::NotEnrolled),
        }
    }

    /// Checks that a proof is of this statement by this key, and of a passkey for this relying party; `None`, for a vote on record, takes
    /// the one that the evidence names. The authenticator's counter is the answer.
    pub fn verify(
        &self,
        statement: &VoteStatement,
        proof: &VoteProof,
        party: Option<&RelyingParty>,
    ) -> Result<Option<webauthn::VerifiedAssertion>, VoteProofError> {
        let digest = statement.digest().map_err(|_| VoteProofError::Signature)?;
        match (self, proof) {
            (Self::Registered(key), VoteProof::Signature(signature)) => key
                .verify(digest.as_bytes(), signature)
                .then_some(None)
                .ok_or(VoteProofError::Signature),
            (Self::Passkey(passkey), VoteProof::Passkey(assertion)) => {
                let record = &passkey.record;
                if URL_SAFE_NO_PAD.encode(&assertion.credential) != record.credential {
                    return Err(VoteProofError::NotEnrolled);
                }
                let of_evidence = match party {
                    Some(_) => None,
                    None => Some(assertion.party()?),
                };
                let party = party.or(of_evidence.as_ref());
                webauthn::verify_assertion(
                    party.ok_or(VoteProofError::NotEnrolled)?,
                    digest.as_bytes(),
                    &record.jwk,
                    record.backup_eligible,
                    assertion,
                )
                .map(Some)
                .map_err(VoteProofError::from)
            }
            (Self::Registered(_), VoteProof::Passkey(_))
            | (Self::Passkey(_), VoteProof::Signature(_)) => Err(VoteProofError::Signature),
        }
    }
}

/// Checks that a proof is of this statement, by this key or passkey of the person. The authenticator's counter is the answer.
pub fn verify_signature(
    person: &Person,
    enrolled: &PersonCredentials,
    key: Thumbprint,
    method: VoteMethod,
    statement: &VoteStatement,
    proof: &VoteProof,
    party: &RelyingParty,
) -> Result<Option<webauthn::VerifiedAssertion>, VoteProofError> {
    let party = Some(party);
    let by_passkey = matches!(proof, VoteProof::Passkey(_));
    VotingKey::find(person, enrolled, key, method, by_passkey)?.verify(statement, proof, party)
}

/// The proof of an entered vote; `None` when part of it is gone.
fn stored_proof(vote: &VoteRecord) -> Option<VoteProof> {
    let signature = URL_SAFE_NO_PAD.decode(&vote.cast.signature).ok()?;
    match (vote.cast.assertion, &vote.assertion) {
        (None, _) => Some(VoteProof::Signature(signature)),
        (Some(_), Some(evidence)) => Assertion::from_evidence(evidence, signature)
            .ok()
            .map(VoteProof::Passkey),
        (Some(_), None) => None,
    }
}

/// Cache of entered votes whose proof verified, so that each entry is verified once and not at every tally.
///
/// A vote on record was cast at the console of its time: its relying party is the one that its evidence names, for the broker as for
/// an audit, also after the console has moved.
///
/// INVARIANT (a cached proof is of exactly these bytes): the cache key is SHA-256 over the statement, the signature, the assertion and
/// the public key; another byte in any of them is verified anew. Failures are not kept.
/// In memory only: a restart verifies again.
#[derive(Debug)]
pub struct VoteProofCache {
    statements: Mutex<GenerationalCache<Digest, Arc<VoteStatement>>>,
    #[cfg(test)]
    verifications: std::sync::atomic::AtomicUsize,
}

impl Default for VoteProofCache {
    fn default() -> Self {
        Self {
            statements: Mutex::new(GenerationalCache::new(GENERATION_BYTES_MAX)),
            #[cfg(test)]
            verifications: std::sync::atomic::AtomicUsize::default(),
        }
    }
}

/// Bytes of statements in one generation, as signed; parsed they take a few times that.
const GENERATION_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What an entry of the cache costs beside its statement, in bytes.
const ENTRY_BYTES: usize = 256;

impl VoteProofCache {
    /// The statement of an entered vote, when its proof verifies under this key: verified now, or before from the same bytes.
    pub(super) fn verified_statement(
        &self,
        vote: &VoteRecord,
        key: &VotingKey<'_>,
    ) -> Option<Arc<VoteStatement>> {
        let text = vote.statement.as_deref()?;
        let cache_key = cache_key(vote, text, key)?;
        let cost = text.len() + ENTRY_BYTES;
        if let Some(statement) = self.lock().get_and_keep(&cache_key, cost) {
            return Some(statement);
        }
        // Not under the lock: two tallies that verify the same vote find the same.
        let statement = VoteStatement::parse(text).ok()?;
        #[cfg(test)]
        self.verifications
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        key.verify(&statement, &stored_proof(vote)?, None).ok()?;
        let statement = Arc::new(statement);
        self.lock().insert(cache_key, Arc::clone(&statement), cost);
        Some(statement)
    }

    fn lock(&self) -> MutexGuard<'_, GenerationalCache<Digest, Arc<VoteStatement>>> {
        self.statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// SHA-256 over all that the proof of a vote is verified from, each part behind its length.
fn cache_key(vote: &VoteRecord, text: &str, key: &VotingKey<'_>) -> Option<Digest> {
    let public = match key {
        VotingKey::Registered(public) => format!("key {}", public.thumbprint()),
        VotingKey::Passkey(passkey) => {
            let record = &passkey.record;
            let whole = json!([record.credential, record.backup_eligible, record.jwk]);
            format!("passkey {}", json::canonical(&whole).ok()?)
        }
    };
    let assertion_hash = vote.cast.assertion.map(|hash| hash.to_string());
    let parts = [
        text,
        &vote.cast.key.to_string(),
        &vote.cast.signature,
        assertion_hash.as_deref().unwrap_or_default(),
        vote.assertion.as_deref().unwrap_or_default(),
        &public,
    ];
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&u64::try_from(part.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    Some(Digest::tagged("dipylon/vote-proof/v1", &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::SigningKey;

    fn statement(max_ttl: i64) -> VoteStatement {
        VoteStatement {
            v: VOTE_STATEMENT_FORM,
            realm: Realm::parse("test").expect("realm"),
            access_request_id: AccessRequestId::from_random([1; 16]),
            requester: StatementRequester::Agent {
                id: AgentId::parse("triage").expect("agent"),
                owner: PersonId::parse("ann").expect("owner"),
                task: TaskId::from_random([2; 16]),
                task_key: SigningKey::generate().expect("key").0.thumbprint(),
            },
            action: crate::card::sample::action("ann", true)
                .on_record(&std::collections::BTreeSet::new(), &mut || [0; 16])
                .0,
            facts: Digest::sha256(b"facts"),
            max_ttl: Some(max_ttl),
            uses: None,
            comment: None,
            policy: Digest::sha256(b"policy"),
            profile: ProfileRef {
                name: ProfileName::parse("security").expect("profile"),
                digest: Digest::sha256(b"profile"),
            },
            verdict: Verdict::Approve,
            not_after: 1_800_000_000,
            nonce: "nonce".to_owned(),
        }
    }

    fn vote(statement: &VoteStatement, key: &SigningKey) -> VoteRecord {
        let text = statement.canonical().expect("text");
        let digest = statement.digest().expect("digest");
        let signature = key.sign(digest.as_bytes()).expect("signature");
        VoteRecord {
            index: 1,
            cast: VoteCast {
                access_request: statement.access_request_id,
                voter: PersonId::parse("maria").expect("voter"),
                key: key.thumbprint(),
                verdict: statement.verdict,
                profile: statement.profile.clone(),
                facts: statement.facts,
                max_ttl: statement.max_ttl,
                uses: statement.uses,
                not_after: Timestamp::from_secs(statement.not_after),
                statement: Digest::sha256(text.as_bytes()),
                signature: URL_SAFE_NO_PAD.encode(signature),
                assertion: None,
                sign_count: None,
            },
            statement: Some(text.into()),
            facts: None,
            assertion: None,
            at: Timestamp::from_secs(1_700_000_000),
        }
    }

    #[test]
    fn each_vote_is_verified_once_and_anew_when_a_byte_or_the_key_differs() {
        let (ours, other) = (SigningKey::generate(), SigningKey::generate());
        let (ours, other) = (ours.expect("key").0, other.expect("key").0);
        let signed = statement(300);
        let original = vote(&signed, &ours);
        let cache = VoteProofCache::default();
        fn registered(key: &SigningKey) -> VotingKey<'_> {
            VotingKey::Registered(key.public())
        }
        let verified = |vote: &VoteRecord, by: &SigningKey| {
            let found = cache.verified_statement(vote, &registered(by));
            let verifications = cache
                .verifications
                .load(std::sync::atomic::Ordering::Relaxed);
            (found.is_some(), verifications)
        };
        assert_eq!(verified(&original, &ours), (true, 1));
        assert_eq!(verified(&original, &ours), (true, 1), "cached");
        assert_eq!(verified(&original.clone(), &ours), (true, 1));

        let mut longer = original.clone();
        longer.statement = Some(statement(3_000).canonical().expect("text").into());
        assert_eq!(verified(&longer, &ours), (false, 2), "statement");
        assert_eq!(verified(&longer, &ours), (false, 3), "no failure is kept");

        let mut resigned = original.clone();
        resigned.cast.signature = vote(&signed, &other).cast.signature;
        assert_eq!(verified(&resigned, &ours), (false, 4), "signature");

        assert_eq!(verified(&original, &other), (false, 5), "key");
        let mut gone = original.clone();
        gone.statement = None;
        assert_eq!(verified(&gone, &ours), (false, 5), "no statement");
        let mut by_passkey = original.clone();
        by_passkey.cast.assertion = Some(Digest::sha256(b"assertion"));
        assert_eq!(verified(&by_passkey, &ours), (false, 6), "assertion");
        assert_eq!(verified(&original, &ours), (true, 6), "still cached");
    }
}
