//! Which votes count. Asked when a vote is cast and again at every mint: eligibility is never remembered.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::jose::PublicKey;
use crate::model::*;
use crate::rules::{Method, Person, PolicyBundle, Profile, Role};
use crate::state::{AccessRequest, AccessStatus, Vote};

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
}

/// Whether a person's vote for a profile would count now, and under which definition.
pub fn eligible<'a>(
    person: &PersonId,
    profile: &ProfileName,
    verdict: Verdict,
    request: &AccessRequest,
    bundle: &'a PolicyBundle,
) -> Result<&'a Profile, Ineligible> {
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
    // A yes may still be taken back by a no; nothing else is voted twice.
    match request.votes.iter().find(|v| v.cast.voter == *person) {
        Some(_) if verdict == Verdict::Approve => Err(Ineligible::HasVoted),
        _ => Ok(defined),
    }
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
    /// The shortest life that a counted vote of a satisfied profile agreed to, in seconds.
    pub max_ttl: Option<i64>,
    /// When the first of those votes stops being good.
    pub not_after: Option<Timestamp>,
    /// When the last of those votes was entered.
    pub last_at: Option<Timestamp>,
}

/// Counts the votes.
///
/// INVARIANT (a vote counts only for its statement): each counted yes has a valid signature, by a key registered *now* for
/// a person eligible *now*, over a statement of exactly this action, agent, owner, task, key, uses and profile definition.
pub fn tally(
    request: &AccessRequest,
    realm: &Realm,
    bundle: &PolicyBundle,
    now: Timestamp,
) -> Tally {
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
        // One human once, however many keys: and for one profile only.
        if counts(vote, request, realm, bundle, now) && voted.insert(vote.cast.voter.clone()) {
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
    realm: &Realm,
    bundle: &PolicyBundle,
    now: Timestamp,
) -> bool {
    let cast = &vote.cast;
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
    let stated = statement.realm == *realm
        && statement.access_request_id == request.opened.access_request
        && statement.agent == request.opened.agent
        && statement.owner == request.opened.owner
        && statement.task == request.opened.task
        && statement.action == action.to_json()
        && statement.uses == request.opened.uses
        && statement.verdict == Verdict::Approve
        && statement.profile == cast.profile
        && statement.max_ttl == cast.max_ttl
        && Timestamp::from_secs(statement.not_after) == cast.not_after;
    stated
        && cast.verdict == Verdict::Approve
        && now < cast.not_after
        && profile.digest() == cast.profile.digest
        && may_vote(person, profile, request, bundle).is_ok()
        && match profile.method {
            Method::Key => signed_by(person, cast.key, &statement, &cast.signature),
        }
}

/// Whether the signature over the statement's digest is by this registered key of the person.
pub fn signed_by(
    person: &Person,
    key: Thumbprint,
    statement: &VoteStatement,
    signature: &str,
) -> bool {
    let Ok(digest) = statement.digest() else {
        return false;
    };
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else {
        return false;
    };
    person
        .keys
        .iter()
        .filter_map(|k| PublicKey::from_jwk(&k.jwk).ok())
        .any(|k| k.thumbprint() == key && k.verify(digest.as_bytes(), &signature))
}
