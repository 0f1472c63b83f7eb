//! The votes of a token receipt: each proof, and whether enough people agreed to what the token allows.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::receipt::{ReceiptError, ReceiptPart, TokenReceipt, VoteEvidence};
use super::receipt_entries::{RecordedToken, enrolment};
use crate::jose::{AuthenticatorKey, PublicKey};
use crate::model::*;
use crate::policy::{StepUpProfile, VoteMethod};
use crate::webauthn::{self, Assertion};

/// A vote whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedVote {
    /// Index of its entry.
    pub index: u64,
    /// Its entry's time.
    pub at: Timestamp,
    /// The voter.
    pub voter: PersonId,
    /// The voter's key.
    pub key: Thumbprint,
    /// Whether the key is a passkey.
    pub by_passkey: bool,
    /// The web origin on which a passkey signed.
    pub origin: Option<String>,
    /// Approve or deny.
    pub verdict: Verdict,
    /// The profile it is for.
    pub profile: ProfileName,
    /// Longest token lifetime that it agrees to, in seconds.
    pub max_ttl: i64,
    /// Whether only the signed digest of its statement is in the receipt.
    pub is_withheld: bool,
}

fn refuse<T>(part: ReceiptPart, why: impl Into<String>) -> Result<T, ReceiptError> {
    Err(ReceiptError::new(part, why))
}

/// Checks the proof of every vote, and that no two people voted with one key.
pub(super) fn check<'a>(
    receipt: &TokenReceipt,
    entries: &'a BTreeMap<u64, Entry>,
    token: &RecordedToken,
) -> Result<Vec<(&'a VoteCast, VerifiedVote)>, ReceiptError> {
    let proved: Vec<u64> = receipt.votes.iter().map(|vote| vote.index).collect();
    if proved != token.vote_indexes {
        let (got, expected) = (proved, &token.vote_indexes);
        let why = format!("expected the proofs of the votes in entries {expected:?}, got {got:?}");
        return refuse(ReceiptPart::Votes, why);
    }
    let mut holders: BTreeMap<KeyIdentity, &PersonId> = BTreeMap::new();
    let mut votes = Vec::new();
    for evidence in &receipt.votes {
        let index = evidence.index;
        let (Some(entry), Some((_, opened))) = (entries.get(&index), &token.request) else {
            return refuse(ReceiptPart::Votes, format!("entry {index} is missing"));
        };
        let Event::VoteCast(cast) = &entry.event else {
            return refuse(ReceiptPart::Votes, format!("entry {index} is no vote"));
        };
        let context = VoteContext {
            realm: &receipt.realm,
            task: &token.task,
            opened,
        };
        let passkey = enrolment(entries, index, cast).map(|(_, passkey)| passkey);
        let (identity, origin) = context.proof(cast, evidence, passkey).map_err(|why| {
            let why = format!("the vote of {} in entry {index}: {why}", cast.voter);
            ReceiptError::new(ReceiptPart::Votes, why)
        })?;
        let holder = holders.entry(identity).or_insert(&cast.voter);
        if **holder != cast.voter {
            let why = format!("{holder} and {} voted with one key", cast.voter);
            return refuse(ReceiptPart::Votes, why);
        }
        let vote = VerifiedVote {
            index,
            at: entry.at,
            voter: cast.voter.clone(),
            key: cast.key,
            by_passkey: cast.assertion.is_some(),
            origin,
            verdict: cast.verdict,
            profile: cast.profile.name.clone(),
            max_ttl: cast.max_ttl,
            is_withheld: evidence.statement.is_none(),
        };
        votes.push((cast, vote));
    }
    Ok(votes)
}

/// What the statement of a vote must be about.
struct VoteContext<'a> {
    realm: &'a Realm,
    task: &'a TaskOpened,
    opened: &'a AccessRequestOpened,
}

impl VoteContext<'_> {
    /// Verifies the proof of a vote. The identity of its key, and the origin that a passkey signed for.
    fn proof(
        &self,
        cast: &VoteCast,
        evidence: &VoteEvidence,
        passkey: Option<&PasskeyOnRecord>,
    ) -> Result<(KeyIdentity, Option<String>), String> {
        let digest = self.signed_digest(cast, evidence)?;
        let signature = URL_SAFE_NO_PAD.decode(&cast.signature);
        let signature = signature.map_err(|_| "its signature is not base64url")?;
        match (cast.assertion, &evidence.assertion, &evidence.jwk) {
            (None, None, Some(jwk)) => {
                let key = PublicKey::from_jwk(jwk).map_err(|e| format!("its key: {e}"))?;
                if cast.sign_count.is_some() || key.thumbprint() != cast.key || key.to_jwk() != *jwk
                {
                    return Err("its key is not the one of the entry".to_owned());
                }
                if !key.verify(digest.as_bytes(), &signature) {
                    return Err("its signature does not verify".to_owned());
                }
                Ok((key.identity(), None))
            }
            (Some(name), Some(text), None) => {
                if Digest::sha256(text.as_bytes()) != name {
                    return Err("its assertion is not the one of the entry".to_owned());
                }
                let passkey = passkey.ok_or("its passkey was not enrolled")?;
                let key = AuthenticatorKey::from_jwk(&passkey.jwk)
                    .map_err(|e| format!("its key: {e}"))?;
                let assertion =
                    Assertion::from_evidence(text, signature).map_err(|e| e.to_string())?;
                let credential = URL_SAFE_NO_PAD.encode(&assertion.credential);
                if key.thumbprint() != cast.key || credential != passkey.credential {
                    return Err("its key is not the one that was enrolled".to_owned());
                }
                let party = assertion.party().map_err(|e| e.to_string())?;
                let seen = webauthn::verify_assertion(
                    &party,
                    digest.as_bytes(),
                    &passkey.jwk,
                    passkey.backup_eligible,
                    &assertion,
                )
                .map_err(|e| e.to_string())?;
                if cast.sign_count != Some(seen.sign_count) {
                    return Err("its signature counter is not the one of the entry".to_owned());
                }
                Ok((key.identity(), Some(party.origin)))
            }
            (None, ..) | (Some(_), ..) => Err(
                "expected a public key, or the assertion of a passkey, as its entry says"
                    .to_owned(),
            ),
        }
    }

    /// The digest that was signed: of the statement, which must say what the entries say; or alone, where the statement would show
    /// sensitive parameters.
    fn signed_digest(&self, cast: &VoteCast, evidence: &VoteEvidence) -> Result<Digest, String> {
        let opened = self.opened;
        let is_sensitive = opened.secret.is_some();
        let text = match (&evidence.statement, evidence.statement_digest) {
            (Some(text), None) if !is_sensitive => text,
            (None, Some(digest)) if is_sensitive => return Ok(digest),
            (Some(_) | None, _) => {
                return Err(
                    "expected its statement, or the digest alone where parameters are sensitive"
                        .to_owned(),
                );
            }
        };
        if Digest::sha256(text.as_bytes()) != cast.statement {
            return Err("its statement is not the one of the entry".to_owned());
        }
        let statement = VoteStatement::parse(text).map_err(|_| "its statement cannot be read")?;
        let action = json!({
            "action": opened.action.action,
            "audience": opened.action.audience,
            "parameters": opened.action.parameters,
            "target": opened.action.target,
        });
        let same = [
            ("realm", statement.realm == *self.realm),
            (
                "access request",
                statement.access_request_id == cast.access_request,
            ),
            ("agent", statement.agent == opened.agent),
            ("owner", statement.owner == opened.owner),
            ("task", statement.task == opened.task),
            ("task key", statement.task_key == self.task.binding.jkt()),
            ("action", statement.action == action),
            ("verdict", statement.verdict == cast.verdict),
            ("profile", statement.profile == cast.profile),
            ("longest life", statement.max_ttl == cast.max_ttl),
            ("number of uses", statement.uses == cast.uses),
            (
                "end of its life",
                Timestamp::from_secs(statement.not_after) == cast.not_after,
            ),
        ];
        if let Some((what, _)) = same.iter().find(|(_, holds)| !holds) {
            return Err(format!("its statement has another {what} than the entries"));
        }
        statement
            .digest()
            .map_err(|_| "its statement cannot be read".to_owned())
    }
}

/// Checks the token: its lifetime, its uses, and that each profile it names had its quorum of distinct people who agreed to at
/// least what it allows.
pub(super) fn check_token(
    receipt: &TokenReceipt,
    token: &RecordedToken,
    votes: &[(&VoteCast, VerifiedVote)],
) -> Result<(), ReceiptError> {
    let part = ReceiptPart::Token;
    let issued = &token.issued;
    let (ttl, input) = (&issued.decision.ttl, &issued.decision.input);
    let least = ttl
        .limits
        .iter()
        .map(|limit| limit.seconds)
        .chain([ttl.requested])
        .min();
    if least != Some(ttl.granted)
        || ttl.requested != issued.requested_ttl
        || issued.iat != input.now.secs()
        || issued.iat.checked_add(ttl.granted) != Some(issued.exp)
    {
        return refuse(part, "its lifetime is not the least of its limits");
    }
    let action = &issued.action;
    let form = json!({
        "action": action.action,
        "audience": action.audience,
        "parameters": action.parameters,
        "target": action.target,
    });
    let digest =
        json::canonical(&form).map(|text| Digest::tagged("dipylon/action/v1", text.as_bytes()));
    if issued.secret.is_none() && digest.ok() != Some(action.digest) {
        return refuse(part, "its action does not have its digest");
    }
    let within = issued
        .uses
        .is_none_or(|uses| usize::try_from(uses).is_ok_and(|uses| token.uses <= uses));
    if !within {
        return refuse(part, "it was used more often than it allows");
    }
    let satisfied = issued
        .approval
        .as_ref()
        .map_or(&[][..], |claim| &claim.profiles);
    let defined: Vec<&ProfileName> = receipt
        .profiles
        .iter()
        .map(|profile| &profile.name)
        .collect();
    if !defined.iter().copied().eq(satisfied) || input.approvals != satisfied {
        return refuse(
            part,
            "the profiles are not the ones that its approval names",
        );
    }
    let Some((_, opened)) = &token.request else {
        return Ok(());
    };
    if votes.iter().any(|(cast, _)| cast.verdict == Verdict::Deny) {
        return refuse(part, "a person denied its access request");
    }
    // A person counts once, for the latest vote: another one is cast only when those before it no longer count.
    let mut latest: BTreeMap<&PersonId, &VoteCast> = BTreeMap::new();
    let covering = votes
        .iter()
        .filter(|(cast, _)| cast.voter != opened.owner && cast.voter != token.task.owner)
        .filter(|(cast, _)| covers(cast, token));
    latest.extend(covering.map(|(cast, _)| (&cast.voter, *cast)));
    for definition in &receipt.profiles {
        let name = &definition.name;
        let profile = definition.profile().filter(|profile| {
            opened
                .decision
                .required_profiles
                .contains(&profile.reference())
        });
        let Some(profile) = profile else {
            return refuse(
                part,
                format!("profile {name} is not the one that its access request requires"),
            );
        };
        let people: BTreeSet<&PersonId> = latest
            .iter()
            .filter(|(_, cast)| counts_for(cast, &profile))
            .map(|(person, _)| *person)
            .collect();
        let quorum = usize::try_from(profile.quorum).unwrap_or(usize::MAX);
        if profile.quorum == 0 || people.len() < quorum {
            let why = format!(
                "expected {quorum} people for profile {name}, got {}",
                people.len()
            );
            return refuse(part, why);
        }
    }
    Ok(())
}

/// Whether a vote agrees to at least what the token allows.
fn covers(cast: &VoteCast, token: &RecordedToken) -> bool {
    let issued = &token.issued;
    cast.verdict == Verdict::Approve
        && cast.max_ttl >= issued.decision.ttl.granted
        && cast.not_after > issued.decision.input.now
        && cast.not_after >= Timestamp::from_secs(issued.exp)
        && match (cast.uses, issued.uses) {
            (None, _) => true,
            (Some(agreed), Some(uses)) => uses <= agreed,
            (Some(_), None) => false,
        }
}

fn counts_for(cast: &VoteCast, profile: &StepUpProfile) -> bool {
    let by_passkey = cast.assertion.is_some();
    cast.profile == profile.reference() && (by_passkey || profile.method == VoteMethod::Key)
}
