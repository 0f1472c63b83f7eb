//! WebAuthn: verification of passkey registrations and assertions (W3C Web Authentication Level 3, §7.1 and §7.2).
//!
//! In: the bytes of a registration or an assertion, the relying party they must be for, the challenge they must answer, and
//! for an assertion the key on record. Out: a [`NewCredential`] or a
//! [`VerifiedAssertion`].
//! Trusts: `jose` for keys and signatures; the caller for whose credential it is, that a challenge is answered once and in
//! time, and for comparing the counter.
//! Refuses: every answer without user presence *and* user verification, another origin (byte for byte, no suffixes), frames
//! of another origin, another challenge, flags that contradict each other or the record, and bytes that two parsers could
//! read differently.
//! Never: judges an attestation (we ask for none), reads a clock, remembers a challenge, or puts a value from outside into
//! an error.

mod authenticator;
mod client;
mod evidence;
mod key;

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::jose::AuthenticatorKey;
use crate::model::{Digest, HttpOrigin, PersonId};
use authenticator::AuthenticatorData;
use client::Ceremony;

pub use evidence::{AssertionEvidenceError, EVIDENCE_BYTES_MAX};

/// The relying party: the domain that passkeys belong to, and the one origin that may use them (WebAuthn L3 §4, "RP ID").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelyingParty {
    /// The RP ID: a domain, without scheme and port.
    pub id: String,
    /// The origin: scheme, host and, where it is not the scheme's own, port; in ASCII, as browsers write it.
    pub origin: String,
}

impl RelyingParty {
    /// The relying party of an origin: its host is the RP ID.
    pub fn from_origin(origin: &HttpOrigin) -> Self {
        Self {
            id: origin.host().to_owned(),
            origin: origin.to_string(),
        }
    }
}

/// What `navigator.credentials.create()` gave (WebAuthn L3 §5.2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// `clientDataJSON`, at most [`CLIENT_DATA_BYTES_MAX`].
    pub client_data_json: Vec<u8>,
    /// `attestationObject`, at most [`ATTESTATION_BYTES_MAX`].
    pub attestation_object: Vec<u8>,
}

/// What `navigator.credentials.get()` gave (WebAuthn L3 §5.2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// `rawId`: the credential it says it is of, [`CREDENTIAL_ID_BYTES`]. Not signed: the key decides.
    pub credential: Vec<u8>,
    /// `authenticatorData`, at most [`AUTHENTICATOR_DATA_BYTES_MAX`].
    pub authenticator_data: Vec<u8>,
    /// `clientDataJSON`, at most [`CLIENT_DATA_BYTES_MAX`].
    pub client_data_json: Vec<u8>,
    /// `signature`, at most [`SIGNATURE_BYTES_MAX`].
    pub signature: Vec<u8>,
    /// `userHandle`, [`USER_HANDLE_BYTES`] where it is there; an empty one, as some browsers send, counts as absent. Not signed:
    /// the caller compares [`Assertion::user_handle`] with the credential's owner.
    pub user: Option<Vec<u8>>,
}

/// A person's user handle: opaque, the same for all their passkeys (WebAuthn L3 §14.6.1).
pub fn user_handle(person: &PersonId) -> Vec<u8> {
    let digest = Digest::tagged("dipylon/user/v1", person.as_str().as_bytes());
    digest.as_bytes().iter().take(16).copied().collect()
}

/// A passkey as registered (WebAuthn L3 §4, "credential record").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCredential {
    /// The credential ID, [`CREDENTIAL_ID_BYTES`].
    pub id: Vec<u8>,
    /// The public key: the required members of its type, as [`AuthenticatorKey::from_jwk`] reads them.
    pub jwk: Value,
    /// The signature counter, 0 where the authenticator keeps none.
    pub sign_count: u32,
    /// BE: whether it may be synchronised. Never changes.
    pub backup_eligible: bool,
    /// BS: whether it is synchronised now.
    pub backed_up: bool,
    /// The authenticator's model, all zero where it does not say. Not attested: a hint.
    pub aaguid: [u8; 16],
}

/// A verified assertion: what the authenticator reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedAssertion {
    /// The signature counter: above the one on record, or both 0 (WebAuthn L3 §7.2). The caller compares.
    pub sign_count: u32,
    /// BS: whether the passkey is synchronised now.
    pub backed_up: bool,
}

/// Why a registration or an assertion was rejected. Names the check, never a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebauthnError {
    /// A part is shorter or longer than its bounds.
    #[error("{0} is too short or too long")]
    Length(&'static str),
    /// The client data are not one JSON object with the members they must have, each once.
    #[error("client data: {0}")]
    ClientData(&'static str),
    /// A registration where an assertion must be, or the reverse.
    #[error("client data: another type of ceremony")]
    Type,
    /// Of another challenge.
    #[error("client data: another challenge")]
    Challenge,
    /// Made on a page of another origin.
    #[error("client data: another origin")]
    Origin,
    /// Made in a frame inside a page of another origin.
    #[error("client data: made inside a page of another origin")]
    CrossOrigin,
    /// The attestation object is not what WebAuthn L3 §6.5.4 describes.
    #[error("attestation object: {0}")]
    AttestationObject(&'static str),
    /// The authenticator data are not what WebAuthn L3 §6.1 describes.
    #[error("authenticator data: {0}")]
    AuthenticatorData(&'static str),
    /// Made for another relying party.
    #[error("authenticator data: another relying party")]
    RelyingParty,
    /// The user was not present (UP).
    #[error("authenticator data: no user present")]
    NotPresent,
    /// The authenticator did not verify its user (by PIN or biometrics).
    #[error("authenticator data: user not verified")]
    NotVerified,
    /// Backed up without being eligible for it.
    #[error("authenticator data: backed up but not eligible for backup")]
    BackupState,
    /// Eligibility for backup is not as registered: another credential, or a broken authenticator.
    #[error("authenticator data: eligibility for backup is not as registered")]
    BackupEligibility,
    /// The key is of no algorithm in [`ALGORITHMS`].
    #[error("credential key: algorithm not accepted")]
    Algorithm,
    /// The key is not one, or not in the one form WebAuthn L3 §6.5.1.1 allows.
    #[error("credential key: {0}")]
    Key(&'static str),
    /// The signature is not the key's over these bytes.
    #[error("signature does not verify")]
    Signature,
    /// The stored key cannot be read: a fault of the broker.
    #[error("the key on record cannot be read")]
    Record,
}

/// Verifies a registration (WebAuthn L3 §7.1). The caller checks whether the credential is registered already.
pub fn verify_registration(
    rp: &RelyingParty,
    challenge: &[u8],
    made: &Registration,
) -> Result<NewCredential, WebauthnError> {
    client::check(Ceremony::Create, rp, challenge, &made.client_data_json)?;
    let data = authenticator::of_attestation(&made.attestation_object)?;
    let data = AuthenticatorData::parse(&data)?;
    data.check(rp)?;
    let (backup_eligible, backed_up) = (data.backup_eligible(), data.backed_up());
    let attested = data.attested.ok_or(WebauthnError::AuthenticatorData(
        "a registration without a credential",
    ))?;
    Ok(NewCredential {
        id: attested.credential.to_vec(),
        jwk: key::to_jwk(attested.key)?,
        sign_count: data.sign_count,
        backup_eligible,
        backed_up,
        aaguid: attested.aaguid,
    })
}

/// Verifies an assertion (WebAuthn L3 §7.2) under the stored key. The caller compares the credential's owner and the counter.
pub fn verify_assertion(
    rp: &RelyingParty,
    challenge: &[u8],
    jwk: &Value,
    backup_eligible: bool,
    assertion: &Assertion,
) -> Result<VerifiedAssertion, WebauthnError> {
    let key = AuthenticatorKey::from_jwk(jwk).map_err(|_| WebauthnError::Record)?;
    verify_assertion_by(rp, challenge, &key, backup_eligible, assertion)
}

/// Verifies an assertion (WebAuthn L3 §7.2) under a key that was read.
pub fn verify_assertion_by(
    rp: &RelyingParty,
    challenge: &[u8],
    key: &AuthenticatorKey,
    backup_eligible: bool,
    assertion: &Assertion,
) -> Result<VerifiedAssertion, WebauthnError> {
    within("credential ID", &assertion.credential, &CREDENTIAL_ID_BYTES)?;
    if let Some(user) = assertion.user_handle() {
        within("user handle", user, &USER_HANDLE_BYTES)?;
    }
    within(
        "signature",
        &assertion.signature,
        &(1..=SIGNATURE_BYTES_MAX),
    )?;
    client::check(Ceremony::Get, rp, challenge, &assertion.client_data_json)?;
    within(
        "authenticator data",
        &assertion.authenticator_data,
        &(1..=AUTHENTICATOR_DATA_BYTES_MAX),
    )?;
    let data = AuthenticatorData::parse(&assertion.authenticator_data)?;
    data.check(rp)?;
    // §6.1: a credential's data come with its registration and never with an assertion.
    if data.attested.is_some() {
        return Err(WebauthnError::AuthenticatorData(
            "an assertion with a credential",
        ));
    }
    if !key.verify(&signed_bytes(assertion), &assertion.signature) {
        return Err(WebauthnError::Signature);
    }
    // After the signature: only the key's holder learns what is on record.
    if data.backup_eligible() != backup_eligible {
        return Err(WebauthnError::BackupEligibility);
    }
    Ok(VerifiedAssertion {
        sign_count: data.sign_count,
        backed_up: data.backed_up(),
    })
}

impl Assertion {
    /// The user handle, if there is one.
    pub fn user_handle(&self) -> Option<&[u8]> {
        self.user.as_deref().filter(|user| !user.is_empty())
    }

    /// The relying party of the origin that the browser wrote. For checking a vote without the broker's configuration; whether
    /// the origin was the broker's is unknown here.
    pub fn party(&self) -> Result<RelyingParty, WebauthnError> {
        let origin = client::origin(&self.client_data_json)?;
        // Browsers write an origin in its one spelling: another one belongs to no console.
        HttpOrigin::parse("origin", &origin)
            .ok()
            .filter(|parsed| parsed.as_str() == origin)
            .map(|parsed| RelyingParty::from_origin(&parsed))
            .ok_or(WebauthnError::Origin)
    }
}

/// What an authenticator signs: its own data, then the digest of the browser's (§6.3.3).
fn signed_bytes(assertion: &Assertion) -> Vec<u8> {
    let client = Digest::sha256(&assertion.client_data_json);
    [&assertion.authenticator_data[..], client.as_bytes()].concat()
}

fn within(
    what: &'static str,
    bytes: &[u8],
    bounds: &RangeInclusive<usize>,
) -> Result<(), WebauthnError> {
    if bounds.contains(&bytes.len()) {
        Ok(())
    } else {
        Err(WebauthnError::Length(what))
    }
}

/// Accepted COSE algorithms, in order of preference: ES256, EdDSA over Ed25519, RS256 (of authenticators
/// that have nothing newer).
pub const ALGORITHMS: [i64; 3] = [-7, -8, -257];
/// Fewest bytes of a challenge (WebAuthn L3 §13.4.3). A digest has 32.
pub const CHALLENGE_BYTES_MIN: usize = 16;
/// Longest `clientDataJSON`, in bytes: browsers write about 200.
pub const CLIENT_DATA_BYTES_MAX: usize = 4 * 1024;
/// Longest attestation object, in bytes: 200 without an attestation, a few thousand with unrequested certificates.
pub const ATTESTATION_BYTES_MAX: usize = 16 * 1024;
/// Longest authenticator data of an assertion, in bytes: 37, and more only with extensions.
pub const AUTHENTICATOR_DATA_BYTES_MAX: usize = 1024;
/// Bytes of a credential ID (WebAuthn L3 §4, "credential ID"; §7.1).
pub const CREDENTIAL_ID_BYTES: RangeInclusive<usize> = 16..=1023;
/// Bytes of a user handle (WebAuthn L3 §5.4.3).
pub const USER_HANDLE_BYTES: RangeInclusive<usize> = 1..=64;
/// Longest signature, in bytes: RSA with 4096 bits.
pub const SIGNATURE_BYTES_MAX: usize = 512;
