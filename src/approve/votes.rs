//! Vote eligibility and tally. Evaluated when a vote is cast and again at every token: eligibility is never cached.

use std::collections::{BTreeMap, BTreeSet};

use super::vote_proof::{VoteProofCache, VotingKey};
use crate::model::*;
use crate::policy::{Person, PolicyBundle, Role, StepUpProfile, VoteMethod};
use crate::state::{AccessRequest, PeopleCredentials, Read, Recorded, StoredStatus, VoteRecord};

/// Inputs of vote eligibility: registered people, their keys, and the names votes must be for.
#[derive(Clone, Copy)]
pub struct VoterContext<'a> {
    /// The round that reads people's passkeys and revoked keys.
    pub read: &'a Read,
    /// Registered people, groups and profiles, as the round read them.
    pub bundle: &'a PolicyBundle,
    /// The realm votes must be for.
    pub realm: &'a Realm,
    /// Votes whose proof verified before.
    pub proofs: &'a VoteProofCache,
}

/// Why a person's vote does not count.
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
    PasskeyRequired,
    /// The profile takes passkeys alone, and this person has none.
    #[error("has no passkey, and the profile takes nothing else")]
    NoPasskey,
}

/// Whether a person's vote for a profile would count now, and under which definition.
pub fn eligible<'a>(
    person: &PersonId,
    profile: &ProfileName,
    verdict: Verdict,
    request: &Recorded<'_, AccessRequest>,
    voter_context: VoterContext<'a>,
    now: Timestamp,
) -> Result<&'a StepUpProfile, Ineligible> {
    let bundle = voter_context.bundle;
    let registered = bundle.person(person).ok_or(Ineligible::NotApprover)?;
    let needed = request
        .opened
        .decision
        .required_profiles
        .iter()
        .find(|n| n.name == *profile)
        .ok_or(Ineligible::ProfileNotNeeded)?;
    let defined = bundle
        .profile(profile)
        .filter(|p| p.digest() == needed.digest)
        .ok_or(Ineligible::ProfileChanged)?;
    may_vote(registered, defined, request, voter_context)?;
    let people = voter_context.read.people(BTreeSet::from([person.clone()]));
    if defined.method == VoteMethod::Passkey && people.get(person).passkeys.is_empty() {
        return Err(Ineligible::NoPasskey);
    }
    // An approval may be withdrawn by a denial, and given again once it no longer counts; no other vote is cast twice.
    let still_counts = |v: &&std::sync::Arc<VoteRecord>| {
        v.cast.voter == *person && vote_counts(v, request, &people, voter_context, now)
    };
    match verdict {
        Verdict::Approve if request.votes.iter().any(|v| still_counts(&v)) => {
            Err(Ineligible::HasVoted)
        }
        Verdict::Approve | Verdict::Deny => Ok(defined),
    }
}

/// How many people could vote under a profile for an agent of this owner: approvers of the group with a key that the profile
/// accepts.
pub fn potential_voters(
    profile: &StepUpProfile,
    owner: &PersonId,
    voter_context: VoterContext<'_>,
) -> usize {
    let everyone = voter_context.read.everyone();
    let can_vote = |person: &&Person| {
        let able = || {
            let keys = everyone.living_keys(&person.id);
            let is_passkey = |key: &Thumbprint| person.key(*key).is_none();
            match profile.method {
                VoteMethod::Key => !keys.is_empty(),
                VoteMethod::Passkey => keys.iter().any(is_passkey),
            }
        };
        person.roles.contains(&Role::Approver)
            && person.groups.contains(&profile.group)
            && person.id != *owner
            && able()
    };
    voter_context.bundle.people().filter(can_vote).count()
}

fn may_vote(
    person: &Person,
    profile: &StepUpProfile,
    request: &AccessRequest,
    VoterContext { bundle, read, .. }: VoterContext<'_>,
) -> Result<(), Ineligible> {
    if !person.roles.contains(&Role::Approver) {
        return Err(Ineligible::NotApprover);
    }
    // Neither the owner as registered now, nor the one at the opening of the request, nor the one at that of the task may vote.
    let owner_now = bundle.agent(&request.opened.agent).map(|a| a.owner.clone());
    let task = read.task(&request.opened.task);
    let opener = task.as_ref().map(|task| &task.opened.owner);
    if opener.is_none_or(|opener| *opener == person.id)
        || request.opened.owner == person.id
        || owner_now.as_ref() == Some(&person.id)
    {
        return Err(Ineligible::Owner);
    }
    if !person.groups.contains(&profile.group) {
        return Err(Ineligible::NotInGroup);
    }
    Ok(())
}

/// The tally of votes on an access request at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VoteTally {
    /// Profiles with a quorum of distinct approving people.
    pub satisfied: BTreeSet<ProfileName>,
    /// The counted people, by profile.
    pub counted: BTreeMap<ProfileName, BTreeSet<PersonId>>,
    /// The shortest lifetime that a counted vote of a satisfied profile agreed to, in seconds.
    pub max_ttl: Option<i64>,
    /// The fewest uses that a counted vote of a satisfied profile agreed to.
    pub uses: Option<u32>,
    /// When the first of those votes expires.
    pub not_after: Option<Timestamp>,
    /// When the last of those votes was recorded.
    pub last_at: Option<Timestamp>,
}

/// Counts the votes.
///
/// INVARIANT (a vote counts only for its statement): each counted approval has a valid signature, by a key or passkey that is
/// *now* one of a person eligible *now*, over a statement of exactly this action, agent, owner, task, key and profile
/// definition, and of no more than the requested lifetime and uses.
pub fn tally(
    request: &Recorded<'_, AccessRequest>,
    voter_context: VoterContext<'_>,
    now: Timestamp,
) -> VoteTally {
    let bundle = voter_context.bundle;
    let mut tally = VoteTally::default();
    let open = matches!(
        request.status,
        StoredStatus::Pending | StoredStatus::Consumed(_)
    );
    if !open
        || request
            .votes
            .iter()
            .any(|v| v.cast.verdict == Verdict::Deny)
    {
        return tally;
    }
    let voters = request.votes.iter().map(|vote| vote.cast.voter.clone());
    let people = voter_context.read.people(voters.collect());
    let mut voted = BTreeSet::new();
    let mut counted_votes: BTreeMap<ProfileName, Vec<&VoteRecord>> = BTreeMap::new();
    for vote in &request.votes {
        // Each person counts once, with any number of keys, and for one profile only.
        if vote_counts(vote, request, &people, voter_context, now)
            && voted.insert(vote.cast.voter.clone())
        {
            counted_votes
                .entry(vote.cast.profile.name.clone())
                .or_default()
                .push(vote);
        }
    }
    for (name, votes) in counted_votes {
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

fn vote_counts(
    vote: &VoteRecord,
    request: &AccessRequest,
    people: &PeopleCredentials<'_>,
    voter_context: VoterContext<'_>,
    now: Timestamp,
) -> bool {
    let cast = &vote.cast;
    let bundle = voter_context.bundle;
    let Some(person) = bundle.person(&cast.voter) else {
        return false;
    };
    let Some(profile) = bundle.profile(&cast.profile.name) else {
        return false;
    };
    let Some(action) = &request.action else {
        return false;
    };
    let eligible = cast.verdict == Verdict::Approve
        && now < cast.not_after
        && profile.digest() == cast.profile.digest
        && may_vote(person, profile, request, voter_context).is_ok();
    let by_passkey = cast.assertion.is_some();
    let enrolled = people.get(&cast.voter);
    // A vote from before the person left, lost a role, group or key, came or returned is not theirs as they are now.
    if vote.index <= enrolled.votes_since || people.may_act(&cast.voter, cast.key).is_err() {
        return false;
    }
    let key = VotingKey::find(person, &enrolled, cast.key, profile.method, by_passkey);
    let (true, Ok(key)) = (eligible, key) else {
        return false;
    };
    let proofs = voter_context.proofs;
    let Some(statement) = proofs.verified_statement(vote, &key) else {
        return false;
    };
    let opened = &request.opened;
    statement.realm == *voter_context.realm
        && statement.access_request_id == opened.access_request
        && statement.agent == opened.agent
        && statement.owner == opened.owner
        && statement.task == opened.task
        && statement.action == action.to_json()
        && uses_within(statement.uses, opened.uses)
        && statement.uses == cast.uses
        && statement.verdict == Verdict::Approve
        && statement.profile == cast.profile
        && statement.max_ttl <= opened.max_ttl
        && statement.max_ttl == cast.max_ttl
        && Timestamp::from_secs(statement.not_after) == cast.not_after
}

/// Whether a number of uses is within a bound; `None` is unlimited.
pub fn uses_within(uses: Option<u32>, bound: Option<u32>) -> bool {
    match (uses, bound) {
        (Some(uses), Some(bound)) => uses > 0 && uses <= bound,
        (Some(uses), None) => uses > 0,
        (None, bound) => bound.is_none(),
    }
}
