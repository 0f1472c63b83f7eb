//! The votes of a token receipt: each proof, and whether enough people agreed to what the token allows.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::receipt::{ReceiptError, ReceiptPart, TokenReceipt, VoteEvidence};
use super::receipt_entries::{RecordedRequest, RecordedToken, enrolment};
use crate::card::CardFacts;
use crate::jose::{AuthenticatorKey, PublicKey};
use crate::model::*;
use crate::policy::StepUpProfile;
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
    /// How it was signed.
    pub method: VoteMethod,
    /// The web origin on which a passkey signed.
    pub origin: Option<String>,
    /// Approve or deny.
    pub verdict: Verdict,
    /// The profile it is for.
    pub profile: ProfileName,
    /// Longest token lifetime that it agrees to, in seconds.
    pub max_ttl: i64,
    /// What the voter's card showed.
    pub facts: CardFacts,
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
        let (Some(entry), Some(RecordedRequest { opened, .. })) =
            (entries.get(&index), &token.request)
        else {
            return refuse(ReceiptPart::Votes, format!("entry {index} is missing"));
        };
        let Event::VoteCast(cast) = &entry.event else {
            return refuse(ReceiptPart::Votes, format!("entry {index} is no vote"));
        };
        let context = VoteContext {
            realm: &receipt.realm,
            task: token.requested_in(),
            opened,
        };
        let passkey = enrolment(entries, index, cast).map(|(_, passkey)| passkey);
        let refused = |why: String| {
            let why = format!("the vote of {} in entry {index}: {why}", cast.voter);
            ReceiptError::new(ReceiptPart::Votes, why)
        };
        let facts = shown(cast, evidence).map_err(refused)?;
        let proof = context.proof(cast, evidence, &facts, passkey);
        let (identity, origin) = proof.map_err(refused)?;
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
            method: cast.method(),
            origin,
            verdict: cast.verdict,
            profile: cast.profile.name.clone(),
            max_ttl: cast.max_ttl.unwrap_or(0),
            facts,
        };
        votes.push((cast, vote));
    }
    Ok(votes)
}

/// The facts that the voter's card showed.
fn shown(cast: &VoteCast, evidence: &VoteEvidence) -> Result<CardFacts, String> {
    let text = &evidence.facts;
    if Digest::sha256(text.as_bytes()) != cast.facts {
        return Err("its facts are not the ones of the entry".to_owned());
    }
    let facts: Option<CardFacts> = json::parse_as(text.as_bytes()).ok();
    facts
        .filter(|facts| facts.canonical().ok().as_ref() == Some(text))
        .ok_or_else(|| "its facts cannot be read".to_owned())
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
        facts: &CardFacts,
        passkey: Option<&PasskeyOnRecord>,
    ) -> Result<(KeyIdentity, Option<String>), String> {
        if evidence.method != cast.method() {
            return Err("its method is not the one of the entry".to_owned());
        }
        let digest = self.signed_digest(cast, &evidence.statement, facts)?;
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

    /// The digest that was signed: of the statement, which must say what the entries and the card said.
    fn signed_digest(
        &self,
        cast: &VoteCast,
        text: &str,
        facts: &CardFacts,
    ) -> Result<Digest, String> {
        let opened = self.opened;
        if Digest::sha256(text.as_bytes()) != cast.statement {
            return Err("its statement is not the one of the entry".to_owned());
        }
        let statement = VoteStatement::parse(text).map_err(|_| "its statement cannot be read")?;
        let requester = match &statement.requester {
            StatementRequester::Agent {
                id,
                owner,
                task,
                task_key,
            } => {
                opened.agent() == Some(id)
                    && *owner == facts.owner.id
                    && opened.task() == Some(*task)
                    && *task_key == self.task.binding.jkt()
                    && opened.executor().is_none()
            }
            StatementRequester::Recommendation {
                id,
                owner,
                task,
                task_key,
                executor,
                executor_owner,
            } => {
                let shown = facts.executor.as_ref();
                opened.agent() == Some(id)
                    && *owner == facts.owner.id
                    && opened.task() == Some(*task)
                    && *task_key == self.task.binding.jkt()
                    && opened.executor().map(|named| &named.agent) == Some(executor)
                    && shown.is_some_and(|shown| {
                        shown.id == *executor && shown.owner.id == *executor_owner
                    })
            }
            StatementRequester::Person { .. } => false,
        };
        let same = [
            ("realm", statement.realm == *self.realm),
            (
                "access request",
                statement.access_request_id == cast.access_request,
            ),
            ("requester", requester),
            ("action", statement.action == opened.action),
            ("facts", statement.facts == cast.facts),
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
    let Some(request) = &token.request else {
        return Ok(());
    };
    if votes.iter().any(|(cast, _)| cast.verdict == Verdict::Deny) {
        return refuse(part, "a person denied its access request");
    }
    // Votes for what the access request required last, by the facts that their cards showed: those for other facts were void. A person
    // counts once for the same facts, for the latest vote: another one is cast only when those before it no longer count.
    let mut by_facts: BTreeMap<Digest, BTreeMap<&PersonId, &VoteCast>> = BTreeMap::new();
    let covering = votes
        .iter()
        .filter(|(cast, vote)| {
            // Neither the owner at the opening of the request or task nor the one at the vote counts.
            let executor = request.opened.executor();
            let shown = vote.facts.executor.as_ref();
            let owners = [
                request.opened.owner(),
                &token.task.owner,
                &token.requested_in().owner,
                &vote.facts.owner.id,
            ];
            let of_executor = executor.map(|executor| &executor.owner).into_iter();
            let of_executor = of_executor.chain(shown.map(|executor| &executor.owner.id));
            !owners
                .into_iter()
                .chain(of_executor)
                .any(|owner| *owner == cast.voter)
        })
        .filter(|(cast, _)| covers(cast, token));
    for (cast, _) in covering.filter(|(cast, _)| request.required.contains(&cast.profile)) {
        let latest = by_facts.entry(cast.facts).or_default();
        latest.insert(&cast.voter, cast);
    }
    let mut profiles = Vec::new();
    for definition in &receipt.profiles {
        let name = &definition.name;
        let profile = definition
            .profile()
            .filter(|profile| request.required.contains(&profile.reference()));
        let Some(profile) = profile else {
            return refuse(
                part,
                format!("profile {name} is not the one that its access request requires"),
            );
        };
        profiles.push(profile);
    }
    let is_satisfied = |need: &ProfileRef| satisfied.contains(&need.name);
    // A recommendation, and what waited, takes everybody whom the card asks to the end.
    let takes_all = request.opened.executor().is_some() || input.waited_ms != 0;
    if takes_all && !request.required_after_delay.iter().all(is_satisfied) {
        return refuse(part, "its access request requires other approvals, too");
    }
    let mut why = "nobody voted for what it required last".to_owned();
    if profiles.is_empty() {
        return Ok(());
    }
    for latest in by_facts.values() {
        let short = profiles.iter().find_map(|profile| {
            let people = latest.values().filter(|cast| counts_for(cast, profile));
            let (people, quorum) = (people.count(), usize::try_from(profile.quorum));
            let quorum = quorum.unwrap_or(usize::MAX);
            (quorum == 0 || people < quorum).then(|| {
                format!(
                    "expected {quorum} people for profile {}, got {people}",
                    profile.name
                )
            })
        });
        match short {
            None => return Ok(()),
            Some(short) => why = short,
        }
    }
    refuse(part, why)
}

/// Whether a vote agrees to at least what the token allows.
fn covers(cast: &VoteCast, token: &RecordedToken) -> bool {
    let issued = &token.issued;
    cast.verdict == Verdict::Approve
        && cast
            .max_ttl
            .is_some_and(|most| most >= issued.decision.ttl.granted)
        && cast.not_after > issued.decision.input.now
        && cast.not_after >= Timestamp::from_secs(issued.exp)
        && match (cast.uses, issued.uses) {
            (None, _) => true,
            (Some(agreed), Some(uses)) => uses <= agreed,
            (Some(_), None) => false,
        }
}

fn counts_for(cast: &VoteCast, profile: &StepUpProfile) -> bool {
    cast.profile == profile.reference() && profile.method.accepts(cast.method())
}
