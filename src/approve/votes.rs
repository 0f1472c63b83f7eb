//! Which votes count. Asked when a vote is cast and again at every mint: eligibility is never remembered.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::jose::PublicKey;
use crate::model::*;
use crate::policy::{Method, Person, PolicyBundle, Profile, Role};
use crate::state::{AccessRequest, AccessStatus, Enrolled, Roster, Vote};
use crate::webauthn::{self, Assertion, RelyingParty};

/// Who may say yes, and under which names votes must be made.
#[derive(Clone, Copy)]
pub struct Electorate<'a> {
    /// Registered people, groups and profiles.
    pub bundle: &'a PolicyBundle,
    /// Their passkeys, and keys that count no more.
    pub roster: &'a Roster,
    /// The realm votes must be for.
    pub realm: &'a Realm,
    /// The console whose passkeys count.
    pub party: &'a RelyingParty,
}

/// Why somebody's vote does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ineligible {
    /// Not registered as an approver.
    #[error("not registered as an approver")]
    NotApprover,
    /// The agent's owner never approves for it.
    #[error("owns the agent")]
    Owner,
    /// Not in the profile's group.
    #[error("not in the profile's group")]
    NotInGroup,
    /// The access request does not need this profile.
    #[error("the access request does not need this profile")]
    ProfileNotNeeded,
    /// The profile's definition changed since the access request was opened.
    #[error("the profile changed since the access request was opened")]
    ProfileChanged,
    /// This person has voted on this access request.
    #[error("has voted on this access request")]
    HasVoted,
    /// The profile takes passkeys alone.
    #[error("the profile takes a vote by passkey alone")]
    NotByPasskey,
    /// The profile takes passkeys alone, and this person has none.
    #[error("has no passkey, and the profile takes nothing else")]
    NoPasskey,
}

/// Whether a person's vote for a profile would count now, and under which definition.
pub fn eligible<'a>(
    person: &PersonId,
    profile: &ProfileName,
    verdict: Verdict,
    request: &AccessRequest,
    electorate: Electorate<'a>,
    now: Timestamp,
) -> Result<&'a Profile, Ineligible> {
    let bundle = electorate.bundle;
    let registered = bundle.person(person).ok_or(Ineligible::NotApprover)?;
    let needed = request
        .opened
        .decision
        .needs
        .iter()
        .find(|n| n.name == *profile)
        .ok_or(Ineligible::ProfileNotNeeded)?;
    let defined = bundle
        .profile(profile)
        .filter(|p| p.digest() == needed.digest)
        .ok_or(Ineligible::ProfileChanged)?;
    may_vote(registered, defined, request, bundle)?;
    let has_passkey = !electorate.roster.of(person).value.passkeys.is_empty();
    if defined.method == Method::Passkey && !has_passkey {
        return Err(Ineligible::NoPasskey);
    }
    // A yes may still be taken back by a no, and given again once it no longer counts; nothing else is voted twice.
    let enrolled = electorate.roster.of(person);
    let stands = |v: &&std::sync::Arc<Vote>| {
        v.cast.voter == *person && counts(v, request, &enrolled.value, electorate, now)
    };
    match verdict {
        Verdict::Approve if request.votes.iter().any(|v| stands(&v)) => Err(Ineligible::HasVoted),
        Verdict::Approve | Verdict::Deny => Ok(defined),
    }
}

/// How many people could ever satisfy a profile for an agent of this owner: approvers of the group who hold a key that the
/// profile takes.
pub fn could_vote(profile: &Profile, owner: &PersonId, electorate: Electorate<'_>) -> usize {
    let able = |person: &&Person| {
        let enrolled = electorate.roster.of(&person.id);
        let by_key = || live_keys(person, &enrolled.value).next().is_some();
        let by_passkey = || !enrolled.value.passkeys.is_empty();
        person.roles.contains(&Role::Approver)
            && person.groups.contains(&profile.group)
            && person.id != *owner
            && match profile.method {
                Method::Key => by_key() || by_passkey(),
                Method::Passkey => by_passkey(),
            }
    };
    electorate.bundle.people().filter(able).count()
}

/// The keys of `people.toml` that speak for a person still.
pub fn live_keys<'a>(
    person: &'a Person,
    enrolled: &'a Enrolled,
) -> impl Iterator<Item = PublicKey> + 'a {
    person
        .keys
        .iter()
        .filter_map(|k| PublicKey::from_jwk(&k.jwk).ok())
        .filter(|k| !enrolled.revoked.contains(&k.thumbprint()))
}

fn may_vote(
    person: &Person,
    profile: &Profile,
    request: &AccessRequest,
    bundle: &PolicyBundle,
) -> Result<(), Ineligible> {
    if !person.roles.contains(&Role::Approver) {
        return Err(Ineligible::NotApprover);
    }
    // The owner as registered now, and as registered when it was asked: both are out.
    let owner_now = bundle.agent(&request.opened.agent).map(|a| a.owner.clone());
    if request.opened.owner == person.id || owner_now.as_ref() == Some(&person.id) {
        return Err(Ineligible::Owner);
    }
    if !person.groups.contains(&profile.group) {
        return Err(Ineligible::NotInGroup);
    }
    Ok(())
}

/// What the votes on an access request are worth at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Profiles whose quorum of distinct people said yes.
    pub satisfied: BTreeSet<ProfileName>,
    /// Who was counted, by profile.
    pub counted: BTreeMap<ProfileName, BTreeSet<PersonId>>,
    /// The version each counted person's stream had.
    pub people: BTreeMap<PersonId, Version>,
    /// The shortest life that a counted vote of a satisfied profile agreed to, in seconds.
    pub max_ttl: Option<i64>,
    /// The fewest uses that a counted vote of a satisfied profile agreed to.
    pub uses: Option<u32>,
    /// When the first of those votes stops being good.
    pub not_after: Option<Timestamp>,
    /// When the last of those votes was entered.
    pub last_at: Option<Timestamp>,
}

impl Tally {
    /// The version a counted person's stream had; of anyone else, one that no append accepts.
    pub fn version_of(&self, person: &PersonId) -> Version {
        self.people.get(person).copied().unwrap_or(Version::MAX)
    }
}

/// Counts the votes.
///
/// INVARIANT (a vote counts only for its statement): each counted yes has a valid signature, by a key or passkey that is
/// *now* one of a person eligible *now*, over a statement of exactly this action, agent, owner, task, key and profile
/// definition, and of no more than the life and the uses that were asked for.
pub fn tally(request: &AccessRequest, electorate: Electorate<'_>, now: Timestamp) -> Tally {
    let bundle = electorate.bundle;
    let mut tally = Tally::default();
    let live = matches!(
        request.status,
        AccessStatus::Waiting | AccessStatus::Consumed(_)
    );
    if !live
        || request
            .votes
            .iter()
            .any(|v| v.cast.verdict == Verdict::Deny)
    {
        return tally;
    }
    let mut voted = BTreeSet::new();
    let mut good: BTreeMap<ProfileName, Vec<&Vote>> = BTreeMap::new();
    for vote in &request.votes {
        // Read before it is judged: whatever moves it afterwards refuses the mint.
        let enrolled = electorate.roster.of(&vote.cast.voter);
        // One human once, however many keys: and for one profile only.
        if counts(vote, request, &enrolled.value, electorate, now)
            && voted.insert(vote.cast.voter.clone())
        {
            tally
                .people
                .insert(vote.cast.voter.clone(), enrolled.version);
            good.entry(vote.cast.profile.name.clone())
                .or_default()
                .push(vote);
        }
    }
    for (name, votes) in good {
        tally.counted.insert(
            name.clone(),
            votes.iter().map(|v| v.cast.voter.clone()).collect(),
        );
        let quorum = bundle.profile(&name).map_or(u32::MAX, |p| p.quorum);
        if votes.len() < usize::try_from(quorum).unwrap_or(usize::MAX) {
            continue;
        }
        for vote in votes {
            tally.max_ttl = Some(
                tally
                    .max_ttl
                    .map_or(vote.cast.max_ttl, |t| t.min(vote.cast.max_ttl)),
            );
            tally.uses = tally.uses.into_iter().chain(vote.cast.uses).min();
            tally.not_after = Some(
                tally
                    .not_after
                    .map_or(vote.cast.not_after, |t| t.min(vote.cast.not_after)),
            );
            tally.last_at = Some(tally.last_at.map_or(vote.at, |t| t.max(vote.at)));
        }
        tally.satisfied.insert(name);
    }
    tally
}

fn counts(
    vote: &Vote,
    request: &AccessRequest,
    enrolled: &Enrolled,
    electorate: Electorate<'_>,
    now: Timestamp,
) -> bool {
    let cast = &vote.cast;
    let bundle = electorate.bundle;
    let Some(person) = bundle.person(&cast.voter) else {
        return false;
    };
    let Some(profile) = bundle.profile(&cast.profile.name) else {
        return false;
    };
    let (Some(text), Some(action)) = (&vote.statement, &request.action) else {
        return false;
    };
    let Ok(statement) = VoteStatement::parse(text) else {
        return false;
    };
    let opened = &request.opened;
    let stated = statement.realm == *electorate.realm
        && statement.access_request_id == opened.access_request
        && statement.agent == opened.agent
        && statement.owner == opened.owner
        && statement.task == opened.task
        && statement.action == action.to_json()
        && within(statement.uses, opened.uses)
        && statement.uses == cast.uses
        && statement.verdict == Verdict::Approve
        && statement.profile == cast.profile
        && statement.max_ttl <= opened.max_ttl
        && statement.max_ttl == cast.max_ttl
        && Timestamp::from_secs(statement.not_after) == cast.not_after;
    stated
        && cast.verdict == Verdict::Approve
        && now < cast.not_after
        && profile.digest() == cast.profile.digest
        && may_vote(person, profile, request, bundle).is_ok()
        && proof_of(vote).is_some_and(|proof| {
            signed_by(
                person,
                enrolled,
                cast.key,
                profile.method,
                &statement,
                &proof,
                electorate.party,
            )
            .is_ok()
        })
}

/// Whether a number of uses is no more than another; none is without bound.
pub fn within(uses: Option<u32>, bound: Option<u32>) -> bool {
    match (uses, bound) {
        (Some(uses), Some(bound)) => uses > 0 && uses <= bound,
        (Some(uses), None) => uses > 0,
        (None, bound) => bound.is_none(),
    }
}

/// How a vote is proved.
#[derive(Debug)]
pub enum Proof {
    /// ES256, r and s, over the statement's digest, by a key of `people.toml`.
    Signature(Vec<u8>),
    /// An assertion whose challenge is the statement's digest.
    Passkey(Assertion),
}

/// The proof of an entered vote; `None` when part of it is gone.
fn proof_of(vote: &Vote) -> Option<Proof> {
    let signature = URL_SAFE_NO_PAD.decode(&vote.cast.signature).ok()?;
    match (vote.cast.assertion, &vote.assertion) {
        (None, _) => Some(Proof::Signature(signature)),
        (Some(_), Some(evidence)) => Assertion::from_evidence(evidence, signature)
            .ok()
            .map(Proof::Passkey),
        (Some(_), None) => None,
    }
}

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongProof {
    /// Not by that key, not of this statement, or the key counts no more.
    #[error("the signature is not of this statement by a key of this person")]
    Signature,
    /// The profile takes passkeys alone.
    #[error("the profile takes a vote by passkey alone")]
    NotByPasskey,
    /// The passkey is not, or no longer, this person's.
    #[error("the passkey is not, or no longer, one of this person")]
    NotEnrolled,
    /// A check of WebAuthn failed.
    #[error("passkey: {0}")]
    Passkey(#[from] webauthn::WebauthnError),
}

/// Checks that a proof is of this statement, by this key or passkey of the person. What an authenticator said beside it is
/// the answer.
pub fn signed_by(
    person: &Person,
    enrolled: &Enrolled,
    key: Thumbprint,
    method: Method,
    statement: &VoteStatement,
    proof: &Proof,
    party: &RelyingParty,
) -> Result<Option<webauthn::VerifiedAssertion>, WrongProof> {
    let digest = statement.digest().map_err(|_| WrongProof::Signature)?;
    match proof {
        Proof::Signature(_) if method == Method::Passkey => Err(WrongProof::NotByPasskey),
        Proof::Signature(signature) => live_keys(person, enrolled)
            .any(|k| k.thumbprint() == key && k.verify(digest.as_bytes(), signature))
            .then_some(None)
            .ok_or(WrongProof::Signature),
        Proof::Passkey(assertion) => {
            let credential = URL_SAFE_NO_PAD.encode(&assertion.credential);
            let passkey = enrolled
                .passkey(key)
                .filter(|p| p.record.credential == credential)
                .ok_or(WrongProof::NotEnrolled)?;
            let record = &passkey.record;
            webauthn::verify_assertion(
                party,
                digest.as_bytes(),
                &record.jwk,
                record.backup_eligible,
                assertion,
            )
            .map(Some)
            .map_err(WrongProof::from)
        }
    }
}
