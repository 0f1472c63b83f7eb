//! Verification of a token receipt, offline, with published keys alone.
//!
//! In: a receipt, the issuer's key set, and optionally the realm and a checkpoint that must be its. Out: a [`VerifiedReceipt`], or
//! the first part that fails. Trusts the key set for the broker's key; nothing that the receipt itself names.

use std::collections::BTreeMap;

use super::Checkpoint;
use super::receipt::{ReceiptError, ReceiptPart, SignedCheckpoint, TokenReceipt, signature_bytes};
use super::receipt_entries::RecordedToken;
use super::receipt_votes::{self, VerifiedVote};
use super::tree::{Inclusion, leaf_hash, verify_inclusion};
use crate::jose::{Alg, KeySet};
use crate::model::*;

/// What a receipt is checked against.
#[derive(Debug, Clone, Copy)]
pub struct ExpectedReceipt<'a> {
    /// The issuer's published keys.
    pub keys: &'a KeySet,
    /// The realm it must be of.
    pub realm: Option<&'a Realm>,
    /// A checkpoint noted elsewhere, which must be its.
    pub checkpoint: Option<Checkpoint>,
}

/// A receipt of which every part was checked. Only [`verify_receipt`] makes one.
#[derive(Debug)]
pub struct VerifiedReceipt {
    issuer: String,
    realm: Realm,
    kid: KeyId,
    checkpoint: SignedCheckpoint,
    entries: BTreeMap<u64, Entry>,
    token: RecordedToken,
    votes: Vec<VerifiedVote>,
    uses_omitted: bool,
}

/// Checks a receipt whole.
///
/// INVARIANT (a receipt says what the journal says): it passes only if a published key signed all of it, each entry is in the
/// signed tree as it stands, the entries are those of this one token, each vote's signature is of its key over this very action,
/// and enough distinct people with distinct keys agreed to at least what the token allows.
pub fn verify_receipt(
    receipt: &TokenReceipt,
    expected: &ExpectedReceipt<'_>,
) -> Result<VerifiedReceipt, ReceiptError> {
    if let Some(realm) = expected.realm
        && *realm != receipt.realm
    {
        let why = format!("expected a receipt of realm {realm}, got {}", receipt.realm);
        return Err(ReceiptError::new(ReceiptPart::Realm, why));
    }
    check_signatures(receipt, expected)?;
    let entries = check_inclusion(receipt)?;
    let token = RecordedToken::find(receipt, &entries)?;
    let votes = receipt_votes::check(receipt, &entries, &token)?;
    receipt_votes::check_token(receipt, &token, &votes)?;
    let votes = votes.into_iter().map(|(_, vote)| vote).collect();
    Ok(VerifiedReceipt {
        issuer: receipt.issuer.clone(),
        realm: receipt.realm.clone(),
        kid: receipt.kid.clone(),
        checkpoint: receipt.checkpoint.clone(),
        token,
        votes,
        entries,
        uses_omitted: receipt.uses_omitted,
    })
}

/// The signature of the whole, then the checkpoint.
fn check_signatures(
    receipt: &TokenReceipt,
    expected: &ExpectedReceipt<'_>,
) -> Result<(), ReceiptError> {
    let refuse = |part, why: &str| Err(ReceiptError::new(part, why));
    let Some(key) = expected.keys.get(&receipt.kid) else {
        let why = format!("the given keys do not have its key {}", receipt.kid);
        return refuse(ReceiptPart::Signature, &why);
    };
    let verifies = |digest: Result<Digest, json::JsonError>, signature: &str| {
        let signature = signature_bytes(signature);
        digest
            .ok()
            .zip(signature)
            .is_some_and(|(digest, signature)| {
                key.verify(Alg::Es256, digest.as_bytes(), &signature)
            })
    };
    if !verifies(receipt.digest(), &receipt.signature) {
        return refuse(
            ReceiptPart::Signature,
            "it does not verify: the receipt was changed, or another key signed it",
        );
    }
    let signed = &receipt.checkpoint;
    if !verifies(
        signed.digest(&receipt.realm, &receipt.issuer),
        &signed.signature,
    ) {
        return refuse(ReceiptPart::Checkpoint, "its signature does not verify");
    }
    let own = signed.checkpoint();
    match expected.checkpoint {
        Some(noted) if noted != own => {
            let why = format!("expected {noted}, got {own}");
            refuse(ReceiptPart::Checkpoint, &why)
        }
        Some(_) | None => Ok(()),
    }
}

/// Parses each entry and checks its place in the tree.
fn check_inclusion(receipt: &TokenReceipt) -> Result<BTreeMap<u64, Entry>, ReceiptError> {
    let signed = &receipt.checkpoint;
    let mut entries = BTreeMap::new();
    for one in &receipt.entries {
        let refuse = |part, why: &str| {
            let why = format!("entry {}: {why}", one.index);
            Err(ReceiptError::new(part, why))
        };
        let proof = Inclusion {
            index: one.index,
            size: signed.size,
            path: one.path.clone(),
        };
        if !verify_inclusion(leaf_hash(one.entry.as_bytes()), &proof, signed.root) {
            return refuse(
                ReceiptPart::Inclusion,
                "its path does not lead to the root of the checkpoint",
            );
        }
        let entry = match Entry::parse(&one.entry) {
            Ok(entry) => entry,
            Err(error) => return refuse(ReceiptPart::Entries, &error.to_string()),
        };
        if entry.index != one.index || entry.epoch > signed.epoch || entry.at > signed.at {
            return refuse(
                ReceiptPart::Entries,
                "its index, epoch or time does not fit",
            );
        }
        if entries
            .last_key_value()
            .is_some_and(|(last, _)| *last >= one.index)
        {
            return refuse(
                ReceiptPart::Entries,
                "the entries are not in order, each once",
            );
        }
        entries.insert(one.index, entry);
    }
    Ok(entries)
}

impl VerifiedReceipt {
    /// The `iss` of the token.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The realm.
    pub const fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The key that signed it.
    pub const fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// The tree that it was proved in.
    pub const fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }

    /// Index and kind of each entry, in order.
    pub fn entries(&self) -> impl Iterator<Item = (u64, &'static str)> {
        self.entries
            .iter()
            .map(|(index, entry)| (*index, entry.event.kind()))
    }

    /// The token and what the journal has of it.
    pub const fn token(&self) -> &RecordedToken {
        &self.token
    }

    /// Each vote, oldest first.
    pub fn votes(&self) -> &[VerifiedVote] {
        &self.votes
    }

    /// Whether uses and reissues are left out.
    pub const fn uses_omitted(&self) -> bool {
        self.uses_omitted
    }

    /// What the receipt does not prove, in sentences.
    pub fn limits(&self) -> Vec<String> {
        let mut limits = vec![
            "that the evidence verified and that the rules allow the action is the broker's word"
                .to_owned(),
            format!(
                "that no further use, reissue or end stands in the journal up to entry {} is the broker's word, and what came after it is \
                 not in it",
                self.checkpoint.size.saturating_sub(1)
            ),
        ];
        if self.token.issued.decision.input.waited_ms > 0 {
            limits.push(
                "that people could say no all the time that it waited, and said it to nothing else that the agent requested, is the broker's word"
                    .to_owned(),
            );
        }
        if self.uses_omitted {
            limits.push("its uses and reissues are left out: they are too many".to_owned());
        }
        if !self.votes.is_empty() {
            limits.push(
                "that each voter was an approver of the profile's group, with a key not yet revoked, is the broker's word; 'dipylon \
                 audit verify' proves it from the whole journal"
                    .to_owned(),
            );
        }
        if self
            .votes
            .iter()
            .any(|vote| vote.method == VoteMethod::Passkey)
        {
            limits.push(
                "whose the origins are on which passkeys signed is not in it: compare them with the broker's console".to_owned(),
            );
        }
        if self.votes.iter().any(|vote| vote.method == VoteMethod::Key) {
            limits.push(
                "that a key of people.toml was that person's, and that the action's risk accepts a vote by key, is the broker's word: the \
                 policy bundle has both"
                    .to_owned(),
            );
        }
        limits
    }
}
