//! Quorums: whether enough people could still vote under the required profiles.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::votes::{VoteTally, VoterContext, inviter_stands, is_confirmed, requires_confirmation};
use crate::jose::PublicKey;
use crate::model::*;
use crate::policy::{Person, PolicyBundle, StepUpProfile, can_be_filled};
use crate::state::{AccessRequest, PeopleRegistration, PersonChangeKind, Read};

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
    profiles: &[Cow<'_, StepUpProfile>],
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
        .map(|profile| (missing(profile), profile))
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
    let seats: Vec<&[PersonId]> = open
        .iter()
        .flat_map(|(missing, able)| std::iter::repeat_n(able.as_slice(), *missing))
        .collect();
    can_be_filled(&seats)
}

/// What a person who may vote under a profile has to vote with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// A passkey, or a living key that the profile takes.
    Key,
    /// Nothing yet: they were never invited, as far as their registration goes back.
    Uninvited,
    /// Nothing yet: an invitation waits for them.
    Invited,
    /// Nothing: their invitation was not used in time.
    Lapsed,
    /// Nothing: their keys were revoked.
    Revoked,
}

impl Means {
    fn of(read: &Read, person: &Person, profile: &StepUpProfile, now: Timestamp) -> Self {
        let known = read.person(&person.id);
        let mut registered = person.keys.iter().map(PublicKey::thumbprint);
        let has_key = profile.method == VoteMethod::Key
            && registered.any(|key| !known.revoked.contains(&key));
        if has_key || !known.passkeys.is_empty() {
            return Self::Key;
        }
        match read.invitation(&person.id) {
            Some(invitation) if read.is_open_invitation(&invitation, now) => Self::Invited,
            Some(_) => Self::Lapsed,
            None if known.lost_keys => Self::Revoked,
            None => Self::Uninvited,
        }
    }

    /// The same once a bundle is in force: who comes with it, or loses a role, begins anew.
    fn after(
        read: &Read,
        person: &Person,
        profile: &StepUpProfile,
        registration: &PeopleRegistration,
        now: Timestamp,
    ) -> Self {
        let mut changes = registration.changes.iter();
        let change = changes.find(|change| change.person == person.id);
        match change.map(|change| &change.kind) {
            Some(PersonChangeKind::Came | PersonChangeKind::LostRoles(_)) => Self::Uninvited,
            Some(PersonChangeKind::Returned) => match read.person(&person.id).left.is_empty() {
                true => Self::Uninvited,
                false => Self::Key,
            },
            _ => Self::of(read, person, profile, now),
        }
    }

    /// Whether they could vote now.
    const fn can_vote(self) -> bool {
        matches!(self, Self::Key)
    }

    /// Whether they have a key, or may still come by their first.
    const fn may_vote(self) -> bool {
        matches!(self, Self::Key | Self::Uninvited | Self::Invited)
    }

    /// What is the matter with a person, in words.
    fn sentence(self, person: &PersonId) -> Option<String> {
        let what = match self {
            Self::Key => return None,
            Self::Uninvited => "was not invited yet",
            Self::Invited => "has not used the invitation yet",
            Self::Lapsed => "has an invitation that is no longer good",
            Self::Revoked => "has no key that is not revoked",
        };
        Some(format!("{person} {what}"))
    }
}

/// Profiles that requests of a bundle ask for and too few people could satisfy, in words.
#[derive(Debug, Default)]
pub struct ShortProfiles {
    /// They stand against an apply.
    pub refused: Vec<String>,
    /// They do not: the bundle says that it means them, or they are as short under the bundle in force.
    pub warned: Vec<String>,
}

/// Whether enough people could satisfy each profile of a bundle that is to come in force, for every agent whose requests may ask for it.
/// A person without a key counts until their first invitation lapses.
pub fn after_change(
    read: &Read,
    bundle: &PolicyBundle,
    registration: &PeopleRegistration,
    now: Timestamp,
) -> ShortProfiles {
    let in_force = read.rules();
    let mut short = ShortProfiles::default();
    for (name, agents) in bundle.asking_agents() {
        let Some(profile) = bundle.profile(name) else {
            continue;
        };
        let voters = Voters::of(bundle, profile, |person| {
            Means::after(read, person, profile, registration, now)
        });
        let short_of = voters.short_of(bundle, profile, agents, Means::may_vote);
        if short_of.is_empty() {
            continue;
        }
        let was_short = in_force.as_ref().is_some_and(|rules| {
            let before = &rules.bundle;
            let voters = Voters::of(before, profile, |p| Means::of(read, p, profile, now));
            let asked = before.asking_agents().get(name);
            let was_short =
                asked.map(|agents| voters.short_of(before, profile, agents, Means::may_vote));
            let was_short = was_short.unwrap_or_default();
            before.profile(name).map(StepUpProfile::reference) == Some(profile.reference())
                && short_of.iter().all(|(agent, _)| {
                    let mut was_short = was_short.iter();
                    was_short.any(|(was, _)| was.id == agent.id && was.owner == agent.owner)
                })
        });
        let message = format!("people.toml: {}", voters.sentence(profile, &short_of));
        match bundle.silenced_quorum(name) {
            Some(reason) => short.warned.push(format!(
                "silenced by the bundle ({}): {message}",
                text::quote(reason)
            )),
            None if was_short => short.warned.push(message),
            None => short.refused.push(format!(
                "{message}; a [[silence]] of quorum-unreachable in checks.toml lets it through [quorum-unreachable]"
            )),
        }
    }
    short
}

/// The profiles of the bundle in force that too few people can satisfy, in words: for those who can invite, until it is mended. A
/// person without a key counts until their first invitation lapses. `asking`: whose requests ask for each profile.
pub fn lapsed(
    read: &Read,
    bundle: &PolicyBundle,
    asking: &BTreeMap<ProfileName, BTreeSet<AgentId>>,
    now: Timestamp,
) -> Vec<String> {
    short_profiles(read, bundle, asking, now, Means::may_vote)
}

/// The same where only people with keys count: what nobody could satisfy at this moment.
pub fn without_keys(
    read: &Read,
    bundle: &PolicyBundle,
    asking: &BTreeMap<ProfileName, BTreeSet<AgentId>>,
    now: Timestamp,
) -> Vec<String> {
    short_profiles(read, bundle, asking, now, Means::can_vote)
}

fn short_profiles(
    read: &Read,
    bundle: &PolicyBundle,
    asking: &BTreeMap<ProfileName, BTreeSet<AgentId>>,
    now: Timestamp,
    counts: fn(Means) -> bool,
) -> Vec<String> {
    let sentence = |(name, agents): (&ProfileName, &BTreeSet<AgentId>)| {
        let profile = bundle.profile(name)?;
        let voters = Voters::of(bundle, profile, |p| Means::of(read, p, profile, now));
        let short_of = voters.short_of(bundle, profile, agents, counts);
        (!short_of.is_empty()).then(|| voters.sentence(profile, &short_of))
    };
    asking.iter().filter_map(sentence).collect()
}

/// Everyone whom a profile takes, with what they have to vote with.
struct Voters<'b>(Vec<(&'b PersonId, Means)>);

/// Agents, with how many people could approve for each.
type ShortOf = Vec<(Arc<RegisteredAgent>, usize)>;

impl<'b> Voters<'b> {
    fn of(
        bundle: &'b PolicyBundle,
        profile: &StepUpProfile,
        means: impl Fn(&Person) -> Means,
    ) -> Self {
        let people = bundle.people().filter(|person| profile.takes(person));
        Self(people.map(|person| (&person.id, means(person))).collect())
    }

    /// The agents among these for which too few could approve: an agent's owner never counts, and neither does its executor's.
    fn short_of(
        &self,
        bundle: &PolicyBundle,
        profile: &StepUpProfile,
        agents: &BTreeSet<AgentId>,
        counts: fn(Means) -> bool,
    ) -> ShortOf {
        let able = |never: &BTreeSet<&PersonId>| {
            let able = self.0.iter().filter(|(_, means)| counts(*means));
            able.filter(|(person, _)| !never.contains(person)).count()
        };
        let agents = agents.iter().filter_map(|agent| bundle.agent(agent));
        agents
            .map(|agent| {
                let owners = bundle.owners_of(&agent);
                let count = owners.iter().map(|owners| {
                    let owners: BTreeSet<&PersonId> = owners.iter().collect();
                    able(&owners)
                });
                let count = count.min().unwrap_or(0);
                (agent, count)
            })
            .filter(|(_, count)| is_short(*count, profile))
            .collect()
    }

    fn sentence(&self, profile: &StepUpProfile, short_of: &ShortOf) -> String {
        let agents = short_of.iter().take(NAMED_MAX);
        let agents: Vec<String> = agents
            .map(|(agent, count)| format!("{} ({count})", agent.id))
            .collect();
        let without = self.0.iter();
        let without: Vec<String> = without
            .filter_map(|(person, means)| means.sentence(person))
            .take(NAMED_MAX)
            .collect();
        format!(
            "profile {}: its quorum is {}, and fewer people of group \"{}\" could approve for {}{}: an agent's owner never counts; invite \
             people ('dipylon approver invite PERSON'), add approvers to the group, or lower the quorum",
            profile.name,
            profile.quorum,
            profile.group,
            agents.join(", "),
            match without.is_empty() {
                true => String::new(),
                false => format!(" ({})", without.join(", ")),
            },
        )
    }
}

fn is_short(able: usize, profile: &StepUpProfile) -> bool {
    u32::try_from(able).is_ok_and(|able| able < profile.quorum)
}

/// Profiles whose quorum cannot be reached as registrations and keys are now, and a rule of changes that no other than some operator
/// could satisfy: warnings, in words.
pub fn unreachable(voter_context: VoterContext<'_>, now: Timestamp) -> Vec<String> {
    let VoterContext { bundle, read, .. } = voter_context;
    let short = |profile: &StepUpProfile| {
        let hands = potential_hands(profile, VoteSubject::any(), &[], voter_context);
        let people: BTreeSet<&PersonId> = hands.iter().map(|(person, _)| person).collect();
        let able = people.len();
        let without = bundle
            .people()
            .filter(|person| profile.takes(person) && !people.contains(&person.id))
            .filter_map(|p| Means::of(read, p, profile, now).sentence(&p.id));
        let without: Vec<String> = without.take(NAMED_MAX).collect();
        is_short(able, profile).then(|| {
            let why = match without.is_empty() {
                true => "passkeys and living keys count".to_owned(),
                false => format!("{}: 'dipylon approver invite PERSON'", without.join(", ")),
            };
            format!(
                "profile {}: {able} people could vote now, fewer than the quorum {}: {why}",
                profile.name, profile.quorum
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
                &[Cow::Borrowed(&profile)],
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

/// Most people or agents that a sentence names.
const NAMED_MAX: usize = 5;
