//! Vote eligibility and tally. Evaluated when a vote is cast and again at every token: eligibility is never cached.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::facts;
use super::hand_over;
use super::quorum::{VoteSubject, can_be_met};
use super::vote_proof::{VoteProofCache, VotingKey};
use crate::card::CardFacts;
use crate::model::*;
use crate::policy::{Person, PolicyBundle, StepUpProfile};
use crate::state::{
    AccessRequest, Passkey, PeopleCredentials, PersonCredentials, Read, Recorded, StoredStatus,
    TaskRecord, VoteRecord,
};

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
    /// The executor's task, when it asks for the token of a recommendation: who opened it never counts.
    pub executing: Option<&'a TaskRecord>,
}

/// Why a person's vote does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ineligible {
    /// Not registered, or without the role of the profile's voters.
    #[error("not registered with the role that the profile takes")]
    NotApprover,
    /// The agent's owner never approves for it.
    #[error(
        "owns an agent of the request, or owned it when its task or this access request was opened"
    )]
    Owner,
    /// The proposer of a policy bundle never agrees to it.
    #[error("proposed this: another person has to agree to it")]
    Proposer,
    /// With this approval too few people would be left for another profile.
    #[error("too few people would be left for another required profile: vote under that one")]
    NeededElsewhere,
    /// The access request has the approvals that this profile requires.
    #[error("the profile has the approvals that it requires: a further one would not count")]
    ProfileMet,
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
    /// A registered key's vote does not count for an action of this risk.
    #[error("the action's risk takes a vote by passkey alone, and not by a registered key")]
    RiskRequiresPasskey,
    /// The profile takes passkeys alone, and this person has none.
    #[error("has no passkey, and the profile takes nothing else")]
    NoPasskey,
    /// The person became an approver of the group after the access request was opened.
    #[error(
        "became an approver of this group after the access request was opened, and counts for later ones: another approver has to vote, or the agent cancels and requests it again"
    )]
    ApproverAddedLater,
    /// The key was registered or enrolled after the access request was opened.
    #[error(
        "the key was added after the access request was opened, and counts for later ones: vote with an older key, or the agent cancels and requests it again"
    )]
    KeyAddedLater,
    /// The passkey is not confirmed, and the risk of the action requires it.
    #[error(
        "the passkey is not confirmed: read its code out to an operator or approver other than the one who invited you, who runs 'dipylon approver confirm' or opens the console's Approvers page"
    )]
    NotConfirmed,
    /// The passkey counts as its inviter's hand, and the inviter may not vote.
    #[error(
        "the passkey is not confirmed, so it counts as its inviter's hand, and the inviter may not vote on this access request: have it confirmed by another person"
    )]
    InviterMayNotVote,
    /// The passkey counts as its inviter's hand, which has voted.
    #[error(
        "the passkey is not confirmed, so it counts as its inviter's hand, which has voted on this access request: have it confirmed by another person"
    )]
    InviterHasVoted,
}

/// The key that a vote is to be signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningWith {
    /// Any key of the person that the profile takes.
    AnyKey,
    /// This one.
    Key(Thumbprint),
}

/// Whether a person's vote for a profile, signed with a key, would count now, and under which definition.
pub fn eligible<'a>(
    person: &PersonId,
    signed: SigningWith,
    profile: &ProfileName,
    verdict: Verdict,
    request: &Recorded<'_, AccessRequest>,
    voter_context: VoterContext<'a>,
    now: Timestamp,
) -> Result<Cow<'a, StepUpProfile>, Ineligible> {
    let bundle = voter_context.bundle;
    let registered = bundle.person(person).ok_or(Ineligible::NotApprover)?;
    let needed = request
        .required_profiles()
        .iter()
        .find(|n| n.name == *profile)
        .ok_or(Ineligible::ProfileNotNeeded)?;
    let defined = bundle
        .profile_about(profile, &request.opened.action.target)
        .filter(|p| p.digest() == needed.digest)
        .ok_or(Ineligible::ProfileChanged)?;
    may_vote(registered, &defined, request, voter_context)?;
    let people = voter_context.read.people(BTreeSet::from([person.clone()]));
    let method = bundle.vote_method(&defined, &request.opened.action.action);
    let enrolled = people.get(person);
    if method == VoteMethod::Passkey && enrolled.passkeys.is_empty() {
        return Err(match defined.method {
            VoteMethod::Passkey => Ineligible::NoPasskey,
            VoteMethod::Key => Ineligible::RiskRequiresPasskey,
        });
    }
    let is_passkey = |key: &Thumbprint| enrolled.passkey(*key).is_some();
    let keys: Vec<Thumbprint> = match signed {
        SigningWith::Key(key) => vec![key],
        SigningWith::AnyKey => {
            let living = people.living_keys(person).into_iter();
            living
                .filter(|key| method == VoteMethod::Key || is_passkey(key))
                .collect()
        }
    };
    let mut why = None;
    let mut hands = BTreeSet::new();
    for key in keys {
        let of_key = match verdict {
            Verdict::Approve => hand(person, key, &enrolled, &defined, request, voter_context),
            // A no of somebody who came later is heard: nothing is gained by becoming an approver in order to say it.
            Verdict::Deny => confirmed_hand(person, key, &enrolled, request, voter_context),
        };
        match of_key {
            Ok(hand) => {
                hands.insert(hand);
            }
            // The newest key is last: the one that a person most likely means.
            Err(not) => why = Some(not),
        }
    }
    if let (true, Some(why)) = (hands.is_empty(), why) {
        return Err(why);
    }
    // An approval may be withdrawn by a denial, and given again once it no longer counts; no other vote is cast twice.
    if verdict == Verdict::Deny {
        return Ok(defined);
    }
    let tally = tally(request, voter_context, now);
    let own = hands
        .get(person)
        .or_else(|| hands.first())
        .unwrap_or(person);
    if is_needed_elsewhere((person, own), profile, request, &tally, voter_context) {
        return Err(Ineligible::NeededElsewhere);
    }
    if tally
        .counted
        .values()
        .any(|voters| voters.contains_key(person))
    {
        return Err(Ineligible::HasVoted);
    }
    if tally.satisfied.contains(profile) {
        return Err(Ineligible::ProfileMet);
    }
    // With a key of their own the person votes as themselves; with an unconfirmed one alone, as the person who invited them.
    if !hands.is_empty() && !hands.contains(person) {
        let voted = counted_votes(request, voter_context, now);
        if hands.iter().all(|hand| voted.contains_key(hand)) {
            return Err(Ineligible::InviterHasVoted);
        }
    }
    Ok(defined)
}

/// Whose hand a key of a person is for an access request, or why it does not count.
///
/// INVARIANT (no single hand): a person or key added after the opening does not count; a passkey that no other person confirmed does not
/// count from the bundle's risk on, and below it is the hand of the person who invited its enrolment. Asked when a vote is begun and cast,
/// at every tally, and by the audit.
fn hand(
    person: &PersonId,
    key: Thumbprint,
    enrolled: &PersonCredentials,
    profile: &StepUpProfile,
    request: &AccessRequest,
    voter_context: VoterContext<'_>,
) -> Result<PersonId, Ineligible> {
    if enrolled.voter_since(profile) > request.index {
        return Err(Ineligible::ApproverAddedLater);
    }
    if enrolled.key_since(key) > request.index {
        return Err(Ineligible::KeyAddedLater);
    }
    confirmed_hand(person, key, enrolled, request, voter_context)
}

/// The same, whenever the person and the key were added.
fn confirmed_hand(
    person: &PersonId,
    key: Thumbprint,
    enrolled: &PersonCredentials,
    request: &AccessRequest,
    voter_context: VoterContext<'_>,
) -> Result<PersonId, Ineligible> {
    let action = request.opened.action.action.as_str();
    let interested = |by: &PersonId| has_interest(by, request, voter_context);
    match enrolled.passkey(key) {
        Some(passkey) if !is_confirmed(passkey, request.index, interested) => {
            let inviter = &passkey.invited_by;
            if requires_confirmation(action, voter_context.bundle) {
                return Err(Ineligible::NotConfirmed);
            }
            let people = voter_context.read.people(BTreeSet::from([inviter.clone()]));
            match inviter_stands(passkey, voter_context.bundle, &people) && !interested(inviter) {
                true => Ok(inviter.clone()),
                false => Err(Ineligible::InviterMayNotVote),
            }
        }
        Some(_) | None => Ok(person.clone()),
    }
}

/// Whether a passkey is confirmed for what was opened with the entry of this index: whoever has an interest in it makes nobody's passkey
/// count for it by a confirmation after that.
pub(super) fn is_confirmed(
    passkey: &Passkey,
    opened: u64,
    is_interested: impl Fn(&PersonId) -> bool,
) -> bool {
    passkey
        .confirmation
        .as_ref()
        .is_some_and(|confirmation| match &confirmation.by {
            Confirmer::Person { id, .. } => confirmation.index <= opened || !is_interested(id),
            Confirmer::Host { .. } => true,
        })
}

/// Whether the person who invited the enrolment of a passkey is still the one who did, with a key that lives.
pub(super) fn inviter_stands(
    passkey: &Passkey,
    bundle: &PolicyBundle,
    people: &PeopleCredentials<'_>,
) -> bool {
    let inviter = &passkey.invited_by;
    bundle.person(inviter).is_some()
        && people.get(inviter).since < passkey.index
        && !people.living_keys(inviter).is_empty()
}

/// Whether a passkey counts for an action only once it is confirmed; a change of the policy bundle has a high risk.
pub(super) fn requires_confirmation(action: &str, bundle: &PolicyBundle) -> bool {
    let action = ActionName::parse(action).ok();
    let risk = action.and_then(|action| bundle.action(&action)?.risk);
    risk.unwrap_or(Risk::High) >= bundle.approval_limits().confirm_at_or_above
}

/// Whether a person's approval under a profile leaves the other required profiles without enough people, who would be enough if the
/// person approved under another.
fn is_needed_elsewhere(
    (person, hand): (&PersonId, &PersonId),
    profile: &ProfileName,
    request: &Recorded<'_, AccessRequest>,
    tally: &VoteTally,
    voter_context: VoterContext<'_>,
) -> bool {
    let required = request.required_profiles();
    if required.len() < 2 {
        return false;
    }
    let target = &request.opened.action.target;
    let defined: Vec<Cow<'_, StepUpProfile>> = required
        .iter()
        .filter_map(|need| voter_context.bundle.profile_about(&need.name, target))
        .collect();
    let never = hand_over::interested(request, voter_context.executing, voter_context);
    let never: Vec<&PersonId> = never.iter().collect();
    let mut with_vote = tally.clone();
    // A vote by one's own hand takes the place of one that an unconfirmed passkey gave as that hand.
    if let Some(other) = with_vote.hands.insert(hand.clone(), person.clone()) {
        for voters in with_vote.counted.values_mut() {
            voters.remove(&other);
        }
    }
    let voters = with_vote.counted.entry(profile.clone()).or_default();
    voters.insert(person.clone(), VoteMethod::Passkey);
    let subject = VoteSubject::of(request);
    can_be_met(&defined, subject, tally, &never, voter_context)
        && !can_be_met(&defined, subject, &with_vote, &never, voter_context)
}

/// Why a vote by a registered key does not count under this profile, where a vote by passkey would.
pub const fn passkey_required(profile: &StepUpProfile) -> Ineligible {
    match profile.method {
        VoteMethod::Passkey => Ineligible::PasskeyRequired,
        VoteMethod::Key => Ineligible::RiskRequiresPasskey,
    }
}

fn may_vote(
    person: &Person,
    profile: &StepUpProfile,
    request: &AccessRequest,
    voter_context: VoterContext<'_>,
) -> Result<(), Ineligible> {
    if !person.roles.contains(&profile.role) {
        return Err(Ineligible::NotApprover);
    }
    if has_interest(&person.id, request, voter_context) {
        return Err(match request.opened.by_person() {
            Some(_) => Ineligible::Proposer,
            None => Ineligible::Owner,
        });
    }
    match profile.takes(person) {
        true => Ok(()),
        false => Err(Ineligible::NotInGroup),
    }
}

/// Whether a person has an interest of their own in an access request: the proposer of a policy bundle; of an agent's the owner as
/// registered now, the one at the opening of the request, and the one at that of the task; of a recommendation those of its executor, too.
fn has_interest(person: &PersonId, request: &AccessRequest, context: VoterContext<'_>) -> bool {
    let task = request.opened.task();
    let is_on_record = task.is_none_or(|task| context.read.task(&task).is_some());
    !is_on_record || hand_over::interested(request, context.executing, context).contains(person)
}

/// The tally of votes on an access request at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VoteTally {
    /// Profiles with a quorum of distinct approving people.
    pub satisfied: BTreeSet<ProfileName>,
    /// The hands of the counted votes, each with its voter: their own, or that of the person who invited an unconfirmed passkey.
    pub hands: BTreeMap<PersonId, PersonId>,
    /// The counted people, by profile, each with how the vote is signed.
    pub counted: BTreeMap<ProfileName, BTreeMap<PersonId, VoteMethod>>,
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
/// INVARIANT (a vote counts only for its statement): each counted approval has a valid signature, by a passkey that is *now* one of
/// a person eligible *now*, or by such a key where profile and today's risk of the action accept keys, over a statement of exactly this action, agent, owner, task, key and profile
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
        StoredStatus::Pending | StoredStatus::Consumed(_) | StoredStatus::Applied
    );
    if !open
        || request.votes.is_empty()
        || request
            .votes
            .iter()
            .any(|v| v.cast.verdict == Verdict::Deny)
    {
        return tally;
    }
    let mut by_profile: BTreeMap<ProfileName, Vec<&VoteRecord>> = BTreeMap::new();
    for (hand, vote) in counted_votes(request, voter_context, now) {
        tally.hands.insert(hand, vote.cast.voter.clone());
        let profile = vote.cast.profile.name.clone();
        by_profile.entry(profile).or_default().push(vote);
    }
    for (name, votes) in by_profile {
        tally.counted.insert(
            name.clone(),
            votes
                .iter()
                .map(|v| (v.cast.voter.clone(), v.cast.method()))
                .collect(),
        );
        let quorum = bundle.profile(&name).map_or(u32::MAX, |p| p.quorum);
        if votes.len() < usize::try_from(quorum).unwrap_or(usize::MAX) {
            continue;
        }
        for vote in votes {
            tally.max_ttl = tally.max_ttl.into_iter().chain(vote.cast.max_ttl).min();
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

/// The approvals that count, by the hand that gave each. A person and a hand count once, with any number of keys, and for one profile
/// only. Votes of people's own hands come first: the hand of a person who has voted is not another's to use.
fn counted_votes<'r>(
    request: &'r AccessRequest,
    voter_context: VoterContext<'_>,
    now: Timestamp,
) -> BTreeMap<PersonId, &'r VoteRecord> {
    let voters = request.votes.iter().map(|vote| vote.cast.voter.clone());
    let people = voter_context.read.people(voters.collect());
    let facts = facts::card_facts(request, voter_context.bundle)
        .digest()
        .ok();
    let hand = |vote: &'r std::sync::Arc<VoteRecord>| {
        if facts != Some(vote.cast.facts) {
            return None;
        }
        let hand = counted_hand(vote, request, &people, voter_context, now)?;
        Some((hand, &**vote))
    };
    let mut votes: Vec<(PersonId, &VoteRecord)> = request.votes.iter().filter_map(hand).collect();
    // Stable: the first vote of a hand is the one that counts.
    votes.sort_by_key(|(hand, vote)| *hand != vote.cast.voter);
    let mut voted = BTreeSet::new();
    let mut counted = BTreeMap::new();
    for (hand, vote) in votes {
        if !counted.contains_key(&hand) && voted.insert(&vote.cast.voter) {
            counted.insert(hand, vote);
        }
    }
    counted
}

/// Whose hand an approval on record is now; `None` when it does not count by itself.
fn counted_hand(
    vote: &VoteRecord,
    request: &AccessRequest,
    people: &PeopleCredentials<'_>,
    voter_context: VoterContext<'_>,
    now: Timestamp,
) -> Option<PersonId> {
    let cast = &vote.cast;
    let bundle = voter_context.bundle;
    let person = bundle.person(&cast.voter)?;
    let target = &request.opened.action.target;
    let profile = bundle.profile_about(&cast.profile.name, target)?;
    let eligible = cast.verdict == Verdict::Approve
        && request.required_profiles().contains(&cast.profile)
        && now < cast.not_after
        && profile.digest() == cast.profile.digest
        && may_vote(person, &profile, request, voter_context).is_ok();
    let method = bundle.vote_method(&profile, &request.opened.action.action);
    let by_passkey = cast.assertion.is_some();
    let enrolled = people.get(&cast.voter);
    // A vote from before the person left, lost a role, group or key, came or returned is not theirs as they are now.
    if vote.index <= enrolled.votes_since || people.may_act(&cast.voter, cast.key).is_err() {
        return None;
    }
    let hand = hand(
        &cast.voter,
        cast.key,
        &enrolled,
        &profile,
        request,
        voter_context,
    )
    .ok()?;
    let key = VotingKey::find(person, &enrolled, cast.key, method, by_passkey);
    let (true, Ok(key)) = (eligible, key) else {
        return None;
    };
    let proofs = voter_context.proofs;
    let statement = proofs.verified_statement(vote, &key)?;
    let opened = &request.opened;
    // The owner of today: the facts, which are compared before, say the same.
    let requester = requester_of(request, voter_context);
    let says_so = statement.realm == *voter_context.realm
        && statement.access_request_id == opened.access_request
        && Some(&statement.requester) == requester.as_ref()
        && statement.action == opened.action
        && statement.facts == cast.facts
        && uses_within(statement.uses, opened.uses)
        && statement.uses == cast.uses
        && statement.verdict == Verdict::Approve
        && statement.profile == cast.profile
        && statement.max_ttl.is_some() == opened.max_ttl.is_some()
        && statement.max_ttl <= opened.max_ttl
        && statement.max_ttl == cast.max_ttl
        && Timestamp::from_secs(statement.not_after) == cast.not_after;
    says_so.then_some(hand)
}

/// The requester as a statement names it now; absent when the task or agent is not on record.
pub fn requester_of(
    request: &AccessRequest,
    VoterContext { bundle, read, .. }: VoterContext<'_>,
) -> Option<StatementRequester> {
    Some(match &request.opened.requester {
        AccessRequester::Agent(by) => {
            let owner = bundle.agent(&by.agent)?.owner.clone();
            let task_key = read.task(&by.task)?.opened.binding.jkt();
            match &by.executor {
                None => StatementRequester::Agent {
                    id: by.agent.clone(),
                    owner,
                    task: by.task,
                    task_key,
                },
                Some(executor) => StatementRequester::Recommendation {
                    id: by.agent.clone(),
                    owner,
                    task: by.task,
                    task_key,
                    executor: executor.agent.clone(),
                    executor_owner: bundle.agent(&executor.agent)?.owner.clone(),
                },
            }
        }
        AccessRequester::Person(by) => StatementRequester::Person {
            id: by.person.clone(),
        },
    })
}

/// An approval whose facts are not those of today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoidApproval {
    /// The voter.
    pub voter: PersonId,
    /// What has changed since, in words.
    pub changed: Vec<String>,
}

/// The approvals of a pending access request that do not count because what they were given for has changed: for each by its place among
/// the votes, what has changed, in words.
pub fn void_votes(request: &AccessRequest, bundle: &PolicyBundle) -> BTreeMap<usize, Vec<String>> {
    if request.status != StoredStatus::Pending || request.votes.is_empty() {
        return BTreeMap::new();
    }
    let now = facts::card_facts(request, bundle);
    let digest = now.digest().ok();
    let changed = |(n, vote): (usize, &std::sync::Arc<VoteRecord>)| {
        let is_required = request.required_profiles().contains(&vote.cast.profile);
        if vote.cast.verdict != Verdict::Approve || digest == Some(vote.cast.facts) && is_required {
            return None;
        }
        let then = vote.facts.as_ref();
        let then: Option<CardFacts> = then.and_then(|text| json::parse_as(text.as_bytes()).ok());
        let mut changed = then.map_or_else(Vec::new, |then| then.changed(&now));
        if !is_required {
            changed.push("approvals that are required".to_owned());
        }
        Some((n, changed))
    };
    let votes = request.votes.iter().enumerate();
    votes.filter_map(changed).collect()
}

/// The same for people who have not approved again since.
pub fn void_approvals(request: &AccessRequest, bundle: &PolicyBundle) -> Vec<VoidApproval> {
    let void = void_votes(request, bundle);
    let again: BTreeSet<&PersonId> = request
        .votes
        .iter()
        .enumerate()
        .filter(|(n, vote)| vote.cast.verdict == Verdict::Approve && !void.contains_key(n))
        .map(|(_, vote)| &vote.cast.voter)
        .collect();
    let voter = |n: &usize| request.votes.get(*n).map(|vote| vote.cast.voter.clone());
    void.iter()
        .filter_map(|(n, changed)| Some((voter(n)?, changed)))
        .filter(|(voter, _)| !again.contains(voter))
        .map(|(voter, changed)| VoidApproval {
            voter,
            changed: changed.clone(),
        })
        .collect()
}

/// Whether a number of uses is within a bound; `None` is unlimited.
pub fn uses_within(uses: Option<u32>, bound: Option<u32>) -> bool {
    match (uses, bound) {
        (Some(uses), Some(bound)) => uses > 0 && uses <= bound,
        (Some(uses), None) => uses > 0,
        (None, bound) => bound.is_none(),
    }
}
