//! Authenticator data (WebAuthn L3 §6.1), which are signed, and the attestation object of a registration (§6.5.4).

use ciborium::Value;

use super::{ATTESTATION_BYTES_MAX, CREDENTIAL_ID_BYTES, RelyingParty, WebauthnError, within};
use crate::model::Digest;

/// Authenticator data, read to the last byte.
#[derive(Debug)]
pub(super) struct AuthenticatorData<'a> {
    rp_id_hash: [u8; 32],
    flags: u8,
    pub(super) sign_count: u32,
    pub(super) attested: Option<AttestedCredential<'a>>,
}

/// Attested credential data (§6.5.1), unchecked.
#[derive(Debug)]
pub(super) struct AttestedCredential<'a> {
    pub(super) aaguid: [u8; 16],
    pub(super) credential: &'a [u8],
    pub(super) key: Value,
}

/// User present.
const UP: u8 = 1 << 0;
/// User verified.
const UV: u8 = 1 << 2;
/// Eligible for backup.
const BE: u8 = 1 << 3;
/// Backed up now.
const BS: u8 = 1 << 4;
/// Attested credential data are there.
const AT: u8 = 1 << 6;
/// Extension data are there.
const ED: u8 = 1 << 7;

impl<'a> AuthenticatorData<'a> {
    /// Reads every byte. The two reserved flags (§6.1) are ignored.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, WebauthnError> {
        let mut rest = bytes;
        let rp_id_hash = *take(&mut rest)?;
        let [flags] = *take(&mut rest)?;
        let sign_count = u32::from_be_bytes(*take(&mut rest)?);
        let attested = if flags & AT == 0 {
            None
        } else {
            let aaguid = *take(&mut rest)?;
            let length = usize::from(u16::from_be_bytes(*take(&mut rest)?));
            let (credential, after) = rest.split_at_checked(length).ok_or(SHORT)?;
            within("credential ID", credential, &CREDENTIAL_ID_BYTES)?;
            rest = after;
            let key = item(&mut rest).ok_or(WebauthnError::Key("not CBOR"))?;
            Some(AttestedCredential {
                aaguid,
                credential,
                key,
            })
        };
        if flags & ED != 0 {
            // No extension is requested, so none is used; extension data must still be well-formed.
            let extensions = item(&mut rest).as_ref().and_then(named).is_some();
            if !extensions {
                return Err(WebauthnError::AuthenticatorData(
                    "extensions are not a map from texts, each once",
                ));
            }
        }
        if !rest.is_empty() {
            return Err(WebauthnError::AuthenticatorData("bytes after the end"));
        }
        Ok(Self {
            rp_id_hash,
            flags,
            sign_count,
            attested,
        })
    }

    /// For this relying party, by a present and verified user, and with flags that can be.
    pub(super) fn check(&self, rp: &RelyingParty) -> Result<(), WebauthnError> {
        if self.rp_id_hash != *Digest::sha256(rp.id.as_bytes()).as_bytes() {
            return Err(WebauthnError::RelyingParty);
        }
        if self.flags & UP == 0 {
            return Err(WebauthnError::NotPresent);
        }
        if self.flags & UV == 0 {
            return Err(WebauthnError::NotVerified);
        }
        if self.backed_up() && !self.backup_eligible() {
            return Err(WebauthnError::BackupState);
        }
        Ok(())
    }

    pub(super) fn backup_eligible(&self) -> bool {
        self.flags & BE != 0
    }

    pub(super) fn backed_up(&self) -> bool {
        self.flags & BS != 0
    }
}

/// The authenticator data inside an attestation object. The statement beside them is parsed and not judged: we ask for none.
pub(super) fn of_attestation(bytes: &[u8]) -> Result<Vec<u8>, WebauthnError> {
    within("attestation object", bytes, &(1..=ATTESTATION_BYTES_MAX))?;
    let mut rest = bytes;
    let object = item(&mut rest).ok_or(WebauthnError::AttestationObject("not CBOR"))?;
    if !rest.is_empty() {
        return Err(WebauthnError::AttestationObject("bytes after the end"));
    }
    let members = named(&object).ok_or(WebauthnError::AttestationObject(
        "not a map from texts, each once",
    ))?;
    let (mut format, mut statement, mut data) = (false, false, None);
    for (name, value) in members {
        match (name, value) {
            ("fmt", Value::Text(_)) => format = true,
            ("attStmt", value) if named(value).is_some() => statement = true,
            ("authData", Value::Bytes(bytes)) => data = Some(bytes),
            (_, _) => {
                return Err(WebauthnError::AttestationObject(
                    "fmt must be a text, attStmt a map, authData bytes, and nothing else",
                ));
            }
        }
    }
    match data {
        Some(data) if format && statement => Ok(data.clone()),
        Some(_) | None => Err(WebauthnError::AttestationObject(
            "fmt, attStmt or authData is missing",
        )),
    }
}

/// The next so many bytes.
fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], WebauthnError> {
    let (taken, after) = rest.split_first_chunk().ok_or(SHORT)?;
    *rest = after;
    Ok(taken)
}

/// The next CBOR item, and no byte after it.
fn item(rest: &mut &[u8]) -> Option<Value> {
    ciborium::de::from_reader_with_recursion_limit(rest, CBOR_DEPTH_MAX).ok()
}

/// The entries of a map whose keys are texts, each once: the reader of CBOR would let one stand twice.
fn named(value: &Value) -> Option<Vec<(&str, &Value)>> {
    let entries = value
        .as_map()?
        .iter()
        .map(|(name, value)| Some((name.as_text()?, value)))
        .collect::<Option<Vec<_>>>()?;
    let once = entries
        .iter()
        .enumerate()
        .all(|(i, (name, _))| !entries.iter().take(i).any(|(earlier, _)| earlier == name));
    once.then_some(entries)
}

const SHORT: WebauthnError = WebauthnError::AuthenticatorData("ends too early");
/// Deepest nesting of CBOR: attestation statements have lists of certificates in maps.
const CBOR_DEPTH_MAX: usize = 8;
