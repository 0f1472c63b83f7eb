//! Quorums: whether enough people could still vote under the required profiles.

use std::collections::{BTreeMap, BTreeSet};

use super::votes::{VoteTally, VoterContext, inviter_stands, is_confirmed, requires_confirmation};
use crate::model::*;
use crate::policy::{Person, PolicyBundle, StepUpProfile};
use crate::state::AccessRequest;

/// What votes are about, as far as it decides whose votes count.
#[derive(Debug, Clone, Copy)]
pub struct VoteSubject<'a> {
    /// The action; absent for a vote on anything.
    action: Option<&'a str>,
    /// Index of the entry that opened the access request: people and keys that a later one added do not count.
    opened: u64,
}

impl<'a> VoteSubject<'a> {
    /// An access request on record.
    pub fn of(request: &'a AccessRequest) -> Self {
        Self {
            action: Some(request.opened.action.action.as_str()),
            opened: request.index,
        }
    }

    /// An access request for this action that would be opened now.
    pub fn action(action: &'a ActionName) -> Self {
        Self {
            action: Some(action.as_str()),
            opened: u64::MAX,
        }
    }

    /// A proposal of a policy bundle that would be opened now.
    pub const fn change() -> Self {
        Self {
            action: Some(POLICY_APPLY),
            opened: u64::MAX,
        }
    }

    /// Anything that a profile may be asked for.
    pub const fn any() -> Self {
        Self {
            action: None,
            opened: u64::MAX,
        }
    }

    /// How a vote under a profile is signed.
    fn method(self, profile: &StepUpProfile, bundle: &PolicyBundle) -> VoteMethod {
        let action = self.action.and_then(|name| ActionName::parse(name).ok());
        action.map_or(profile.method, |action| {
            bundle.vote_method(profile, &action)
        })
    }
}

/// Whether these profiles can still be satisfied, each by different people: those who have not voted yet, and never one of `never`.
pub fn can_be_met(
    profiles: &[&StepUpProfile],
    subject: VoteSubject<'_>,
    tally: &VoteTally,
    never: &[&PersonId],
    voter_context: VoterContext<'_>,
) -> bool {
    let voters = tally.counted.values().flat_map(BTreeMap::keys);
    let voted: BTreeSet<&PersonId> = voters.chain(tally.hands.keys()).collect();
    let missing = |profile: &StepUpProfile| {
        let has = tally.counted.get(&profile.name).map_or(0, BTreeMap::len);
        let quorum = usize::try_from(profile.quorum).unwrap_or(usize::MAX);
        quorum.saturating_sub(has)
    };
    // Fewer people than seats: one person has one vote, whatever hands their keys are.
    let mut is_short = false;
    let open: Vec<(usize, Vec<PersonId>)> = profiles
        .iter()
        .map(|profile| (missing(profile), *profile))
        .filter(|(missing, _)| *missing > 0)
        .map(|(missing, profile)| {
            let mut hands = potential_hands(profile, subject, never, voter_context);
            let counts = |person: &PersonId| !never.contains(&person) && !voted.contains(person);
            hands.retain(|(person, hand)| counts(person) && counts(hand));
            let people: BTreeSet<&PersonId> = hands.iter().map(|(person, _)| person).collect();
            is_short |= people.len() < missing;
            let able: BTreeSet<PersonId> = hands.iter().map(|(_, hand)| hand.clone()).collect();
            let able: Vec<PersonId> = able.into_iter().collect();
            (missing, able)
        })
        .collect();
    if is_short {
        return false;
    }
    let seats: usize = open.iter().map(|(missing, _)| *missing).sum();
    // Enough people for all seats in each profile: no two profiles compete.
    if open.iter().all(|(_, able)| able.len() >= seats) {
        return true;
    }
    if open.iter().any(|(missing, able)| able.len() < *missing) {
        return false;
    }
    // One seat after the other finds a person; one who is seated moves to another seat that takes them.
    let seats: Vec<&[PersonId]> = open
        .iter()
        .flat_map(|(missing, able)| std::iter::repeat_n(able.as_slice(), *missing))
        .collect();
    let mut seated: BTreeMap<&PersonId, usize> = BTreeMap::new();
    (0..seats.len()).all(|seat| find_seat(seat, &seats, &mut seated, &mut BTreeSet::new()))
}

/// Seats a person, moving others where that helps.
fn find_seat<'p>(
    seat: usize,
    seats: &[&'p [PersonId]],
    seated: &mut BTreeMap<&'p PersonId, usize>,
    tried: &mut BTreeSet<&'p PersonId>,
) -> bool {
    for person in seats.get(seat).copied().unwrap_or_default() {
        if !tried.insert(person) {
            continue;
        }
        let is_free = match seated.get(person).copied() {
            None => true,
            Some(other) => find_seat(other, seats, seated, tried),
        };
        if is_free {
            seated.insert(person, seat);
            return true;
        }
    }
    false
}

/// Profiles whose quorum cannot be reached as registrations and keys are now, and a rule of changes that no other than some operator
/// could satisfy: warnings, in words.
pub fn unreachable(voter_context: VoterContext<'_>) -> Vec<String> {
    let VoterContext { bundle, read, .. } = voter_context;
    let short = |profile: &StepUpProfile| {
        let hands = potential_hands(profile, VoteSubject::any(), &[], voter_context);
        let people: BTreeSet<&PersonId> = hands.iter().map(|(person, _)| person).collect();
        let able = people.len();
        let quorum = usize::try_from(profile.quorum).unwrap_or(usize::MAX);
        (able < quorum).then(|| {
            format!(
                "profile {}: {able} people could vote now, fewer than the quorum {quorum}: passkeys and living keys count",
                profile.name
            )
        })
    };
    let mut warnings: Vec<String> = bundle.profiles().filter_map(short).collect();
    let Some(profile) = read.change_profile() else {
        return warnings;
    };
    let alone: Vec<String> = read
        .governors_without(&[])
        .into_iter()
        .filter(|operator| {
            !can_be_met(
                &[&profile],
                VoteSubject::change(),
                &VoteTally::default(),
                &[operator],
                voter_context,
            )
        })
        .map(|operator| operator.to_string())
        .collect();
    if !alone.is_empty() {
        warnings.push(format!(
            "changes of the policy bundle: too few people could agree to one that {} proposes: register another operator, or 'dipylon recover operators' on the broker's host",
            alone.join(" or ")
        ));
    }
    warnings
}

/// The people who could vote under a profile, each with the hands that their keys are: people of its role and group with a key that the
/// profile and the action's risk accept, and for a passkey that is not confirmed, where it counts at all, the person who invited its
/// enrolment. `never`: the people with an interest, whose late confirmations do not count.
pub fn potential_hands(
    profile: &StepUpProfile,
    subject: VoteSubject<'_>,
    never: &[&PersonId],
    voter_context: VoterContext<'_>,
) -> Vec<(PersonId, PersonId)> {
    let VoterContext { read, bundle, .. } = voter_context;
    let everyone = read.everyone();
    let method = subject.method(profile, bundle);
    let confirmed_alone = subject
        .action
        .is_some_and(|action| requires_confirmation(action, bundle));
    let hands_of = |person: &Person| -> Vec<(PersonId, PersonId)> {
        let enrolled = everyone.get(&person.id);
        if !profile.takes(person) || enrolled.voter_since(profile) > subject.opened {
            return Vec::new();
        }
        let hand = |key: Thumbprint| match enrolled.passkey(key) {
            None if method == VoteMethod::Passkey => None,
            Some(passkey) if !is_confirmed(passkey, subject.opened, |by| never.contains(&by)) => {
                let counts = !confirmed_alone && inviter_stands(passkey, bundle, &everyone);
                counts.then(|| passkey.invited_by.clone())
            }
            Some(_) | None => Some(person.id.clone()),
        };
        let keys = everyone.living_keys(&person.id).into_iter();
        let hands = keys.filter(|key| enrolled.key_since(*key) <= subject.opened);
        let hands: Vec<PersonId> = hands.filter_map(hand).collect();
        match hands.contains(&person.id) {
            // Each person votes once.
            true => vec![(person.id.clone(), person.id.clone())],
            false => hands
                .into_iter()
                .map(|hand| (person.id.clone(), hand))
                .collect(),
        }
    };
    bundle.people().flat_map(hands_of).collect()
}
