//! Token receipt: the signed statement about one token, with the journal entries that it rests on and the proof of each vote.
//!
//! One JSON object in its RFC 8785 form. Every entry is there exactly as stored, with the audit path to one checkpoint (RFC 6962
//! §2.1.1); the broker's key signs the checkpoint and the whole. What entries commit to (purposes, reasons, sensitive parameters)
//! is never in it. [`super::verify_receipt`] checks one.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Checkpoint;
use crate::model::json::{self, JsonError};
use crate::model::*;
use crate::policy::{Role, StepUpProfile};

/// The `form` of a receipt.
pub const RECEIPT_FORM: &str = "dipylon/token-receipt/v1";
/// Longest receipt, in bytes.
pub const RECEIPT_BYTES_MAX: usize = 1024 * 1024;
/// Most entries of a receipt.
pub const RECEIPT_ENTRIES_MAX: usize = 512;
/// Longest audit path: that of a tree of 2^53 leaves.
pub const PATH_MAX: usize = 53;
/// Most characters of an error about the form.
const ERROR_CHARS_MAX: usize = 300;
/// The domain tag of a checkpoint's signature.
const CHECKPOINT_TAG: &str = "dipylon/checkpoint/v1";

/// A token receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenReceipt {
    /// [`RECEIPT_FORM`].
    pub form: String,
    /// The realm of the broker.
    pub realm: Realm,
    /// The `iss` of the token.
    pub issuer: String,
    /// The token.
    pub jti: TokenId,
    /// The tree that every path leads to.
    pub checkpoint: SignedCheckpoint,
    /// The entries, by index.
    pub entries: Vec<ReceiptEntry>,
    /// The proof of each vote, by the index of its entry.
    pub votes: Vec<VoteEvidence>,
    /// The definition of each profile that was satisfied, by name.
    pub profiles: Vec<ProfileDefinition>,
    /// Whether uses and reissues of the token are left out because they are too many.
    pub uses_omitted: bool,
    /// The key of both signatures, by its name in the issuer's key set.
    pub kid: KeyId,
    /// ES256 over [`TokenReceipt::digest`], base64url.
    pub signature: String,
}

/// A signed tree head of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedCheckpoint {
    /// The incarnation of the journal.
    pub epoch: u64,
    /// Number of entries.
    pub size: u64,
    /// Root over them.
    pub root: Digest,
    /// When it was signed.
    pub at: Timestamp,
    /// ES256 over [`SignedCheckpoint::digest`], base64url.
    pub signature: String,
}

/// An entry with the proof that it is in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptEntry {
    /// Its index: its leaf in the tree.
    pub index: u64,
    /// The stored text, byte by byte.
    pub entry: String,
    /// Its audit path, from the leaf upwards.
    pub path: Vec<Digest>,
}

/// What the signature of a vote is checked with, beside its entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteEvidence {
    /// Index of its entry.
    pub index: u64,
    /// How it was signed: by a key of `people.toml`, or by passkey.
    pub method: VoteMethod,
    /// The signed statement: it has commitments in place of sensitive parameters.
    pub statement: String,
    /// The facts that the voter's card showed, whose digest the statement has.
    pub facts: String,
    /// The WebAuthn evidence of a vote by passkey. The passkey's public key is in the entry of its enrolment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assertion: Option<String>,
    /// The public key of a vote by a key of `people.toml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwk: Option<Value>,
}

/// The definition of a step-up profile: the members that its digest is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileDefinition {
    /// Its name in rules.
    pub name: ProfileName,
    /// The group of its approvers: a registered one, or that of the target, such as `owner of Service::"billing"`.
    #[serde(deserialize_with = "group_on_record")]
    pub group: GroupId,
    /// How many different people must approve.
    pub quorum: u32,
    /// Seconds an access request stays open.
    pub wait: u32,
    /// Seconds an approval holds.
    pub good_for: u32,
    /// `key` or `passkey`.
    pub method: String,
}

fn group_on_record<'de, D: serde::Deserializer<'de>>(d: D) -> Result<GroupId, D::Error> {
    GroupId::on_record(&String::deserialize(d)?).map_err(serde::de::Error::custom)
}

impl From<&StepUpProfile> for ProfileDefinition {
    fn from(profile: &StepUpProfile) -> Self {
        Self {
            name: profile.name.clone(),
            group: profile.group.clone(),
            quorum: profile.quorum,
            wait: profile.wait_s,
            good_for: profile.good_for_s,
            method: profile.method.as_str().to_owned(),
        }
    }
}

impl ProfileDefinition {
    /// The profile; `None` for an unknown method.
    pub(super) fn profile(&self) -> Option<StepUpProfile> {
        let method = VoteMethod::parse(&self.method).ok()?;
        Some(StepUpProfile {
            name: self.name.clone(),
            group: self.group.clone(),
            target_attribute: None,
            role: Role::Approver,
            quorum: self.quorum,
            wait_s: self.wait,
            good_for_s: self.good_for,
            method,
        })
    }
}

impl SignedCheckpoint {
    /// The tree head.
    pub const fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            size: self.size,
            root: self.root,
        }
    }

    /// SHA-256("dipylon/checkpoint/v1" ‖ 0x00 ‖ RFC 8785 form of `{at, epoch, issuer, realm, root, size}`): the signed bytes.
    pub fn digest(&self, realm: &Realm, issuer: &str) -> Result<Digest, JsonError> {
        let signed = json!({
            "at": self.at,
            "epoch": self.epoch,
            "issuer": issuer,
            "realm": realm,
            "root": self.root,
            "size": self.size,
        });
        let text = json::canonical(&signed)?;
        Ok(Digest::tagged(CHECKPOINT_TAG, text.as_bytes()))
    }
}

impl TokenReceipt {
    /// The RFC 8785 form: the one text of a receipt.
    pub fn canonical(&self) -> Result<String, JsonError> {
        json::canonical_of(self)
    }

    /// SHA-256("dipylon/token-receipt/v1" ‖ 0x00 ‖ RFC 8785 form without `signature`): the signed bytes. Nothing can be added,
    /// changed or taken out under the same signature.
    pub fn digest(&self) -> Result<Digest, JsonError> {
        let mut value = serde_json::to_value(self)?;
        if let Value::Object(members) = &mut value {
            members.remove("signature");
        }
        let text = json::canonical(&value)?;
        Ok(Digest::tagged(RECEIPT_FORM, text.as_bytes()))
    }

    /// Parses a receipt: its RFC 8785 form, with at most a line end behind it. Refuses unknown and missing members, another
    /// encoding of the same values, and what is beyond its bounds.
    pub fn parse(text: &str) -> Result<Self, ReceiptError> {
        let refuse = |why: String| {
            // A parser's error may quote a name of the text.
            let why = text::escape_invisible_capped(&why, ERROR_CHARS_MAX);
            ReceiptError::new(ReceiptPart::Form, why)
        };
        let text = text.strip_suffix('\n').unwrap_or(text);
        if text.len() > RECEIPT_BYTES_MAX {
            let why = format!(
                "expected at most {RECEIPT_BYTES_MAX} bytes, got {}",
                text.len()
            );
            return Err(refuse(why));
        }
        let value = json::parse(text.as_bytes()).map_err(|e| refuse(e.to_string()))?;
        let form = value
            .get("form")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if form != RECEIPT_FORM {
            let got = text::escape_invisible_capped(form, 64);
            return Err(refuse(format!(
                "`form`: expected {RECEIPT_FORM}, got \"{got}\""
            )));
        }
        let receipt: Self = serde_json::from_value(value).map_err(|e| refuse(e.to_string()))?;
        if receipt.canonical().ok().as_deref() != Some(text) {
            return Err(refuse(
                "it is not in its canonical form (RFC 8785)".to_owned(),
            ));
        }
        if receipt.entries.len() > RECEIPT_ENTRIES_MAX {
            let got = receipt.entries.len();
            let why = format!("`entries`: expected at most {RECEIPT_ENTRIES_MAX}, got {got}");
            return Err(refuse(why));
        }
        for entry in &receipt.entries {
            if entry.entry.len() > ENTRY_BYTES_MAX || entry.path.len() > PATH_MAX {
                let index = entry.index;
                let why = format!("`entries`: the text or the path of entry {index} is too long");
                return Err(refuse(why));
            }
        }
        Ok(receipt)
    }
}

/// The part of a receipt that a check refuses. In the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReceiptPart {
    /// Its JSON: form, members, bounds.
    Form,
    /// The realm.
    Realm,
    /// The signature of the whole.
    Signature,
    /// The checkpoint and its signature.
    Checkpoint,
    /// The audit path of an entry.
    Inclusion,
    /// The entries, and how they belong together.
    Entries,
    /// A vote and its proof.
    Votes,
    /// The token: its profiles, lifetime and uses.
    Token,
}

impl ReceiptPart {
    /// The name in errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Realm => "realm",
            Self::Signature => "signature",
            Self::Checkpoint => "checkpoint",
            Self::Inclusion => "inclusion",
            Self::Entries => "entries",
            Self::Votes => "votes",
            Self::Token => "token",
        }
    }
}

impl fmt::Display for ReceiptPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a receipt is refused: the first part that fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {why}")]
pub struct ReceiptError {
    /// The part.
    pub part: ReceiptPart,
    /// The rule that it breaks.
    pub why: String,
}

impl ReceiptError {
    pub(super) fn new(part: ReceiptPart, why: impl Into<String>) -> Self {
        Self {
            part,
            why: why.into(),
        }
    }
}

/// A 64-byte signature in base64url.
pub(super) fn signature_bytes(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .filter(|bytes| bytes.len() == 64)
}
