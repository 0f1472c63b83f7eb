//! Assertion evidence: the stored form of an assertion, so that an auditor can verify it later without the broker.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::Assertion;
use crate::model::json::{self, JsonError};

/// Longest evidence, in bytes: the parts at their longest, in base64url.
pub const EVIDENCE_BYTES_MAX: usize = 16 * 1024;

/// Why stored evidence is not in the form that [`Assertion::evidence`] writes.
#[derive(Debug, thiserror::Error)]
pub enum AssertionEvidenceError {
    /// Longer than [`EVIDENCE_BYTES_MAX`].
    #[error("longer than {EVIDENCE_BYTES_MAX} bytes")]
    TooLong,
    /// Not JSON with exactly its members.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member is not base64url, or the text is not canonical.
    #[error("not in its canonical form")]
    Form,
}

/// The stored form. The signature is in the journal entry beside it; the user handle is not stored, because it is not signed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AssertionRecord {
    authenticator_data: String,
    client_data_json: String,
    credential: String,
}

impl Assertion {
    /// What must be kept beside the signature, in its canonical form (RFC 8785): `{authenticator_data, client_data_json,
    /// credential}`, each base64url without padding.
    pub fn evidence(&self) -> Result<String, JsonError> {
        json::canonical_of(&AssertionRecord {
            authenticator_data: URL_SAFE_NO_PAD.encode(&self.authenticator_data),
            client_data_json: URL_SAFE_NO_PAD.encode(&self.client_data_json),
            credential: URL_SAFE_NO_PAD.encode(&self.credential),
        })
    }

    /// Reads what [`Assertion::evidence`] wrote, byte for byte, and puts the signature beside it again.
    pub fn from_evidence(text: &str, signature: Vec<u8>) -> Result<Self, AssertionEvidenceError> {
        if text.len() > EVIDENCE_BYTES_MAX {
            return Err(AssertionEvidenceError::TooLong);
        }
        let kept: AssertionRecord = json::parse_as(text.as_bytes())?;
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| AssertionEvidenceError::Form)
        };
        let assertion = Self {
            credential: decode(&kept.credential)?,
            authenticator_data: decode(&kept.authenticator_data)?,
            client_data_json: decode(&kept.client_data_json)?,
            signature,
            user: None,
        };
        if assertion.evidence()? != text {
            return Err(AssertionEvidenceError::Form);
        }
        Ok(assertion)
    }
}
