//! The keys of a journal, by its entries alone: each is one holder's over the whole journal, one that died never acts again, and what a
//! person had ends when they leave or lose a role. Its own reading of the entries, which shares nothing with the broker's registry.

use std::collections::{BTreeMap, BTreeSet};

use dipylon::policy::{PolicyBundle, Role};
use dipylon_sdk::jose::PublicKey;
use dipylon_sdk::model::*;

/// What all keys of one private key have in common: x of P-256, y of Ed25519 without its sign.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Coordinate(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Living,
    Left,
    Dead,
}

#[derive(Debug)]
struct Key {
    /// The id of a person or service: one namespace in a bundle.
    holder: String,
    is_passkey: bool,
    life: Life,
    /// An operator said so, a counter went back, or a recovery found it lost.
    is_stolen: bool,
}

#[derive(Debug, Clone, Default)]
struct Registered {
    groups: BTreeSet<GroupId>,
    target_groups: BTreeSet<GroupId>,
    roles: BTreeSet<Role>,
    keys: BTreeSet<Thumbprint>,
}

/// Walks the entries of a journal.
#[derive(Debug, Default)]
pub struct KeyChecker {
    keys: BTreeMap<Coordinate, Key>,
    named: BTreeMap<Thumbprint, Coordinate>,
    identities: BTreeMap<KeyIdentity, Coordinate>,
    task_keys: BTreeSet<KeyIdentity>,
    tasks: BTreeMap<TaskId, KeyIdentity>,
    people: Option<BTreeMap<PersonId, Registered>>,
    /// The entry by which a person last came or went.
    since: BTreeMap<PersonId, u64>,
    invitations: BTreeMap<InvitationId, (PersonId, Thumbprint, u64)>,
    /// The entry of each vote, by its statement.
    votes: BTreeMap<Digest, u64>,
    passkeys: BTreeMap<Thumbprint, Enrolled>,
    /// The entry that last gave a person something.
    added: BTreeMap<(PersonId, Added), u64>,
    /// The entry that opened each access request.
    opened: BTreeMap<AccessRequestId, u64>,
    /// The passkeys that died because a revoked key was stolen.
    pub fallen: BTreeSet<Thumbprint>,
}

/// A passkey as it was enrolled, and who confirmed it.
#[derive(Debug)]
struct Enrolled {
    person: PersonId,
    inviter: PersonId,
    invited_with: Thumbprint,
    index: u64,
    confirmed: Option<Confirmer>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Added {
    Person,
    Role(Role),
    Group(GroupId),
    Key(Thumbprint),
}

fn coordinate(jwk: &serde_json::Value) -> Coordinate {
    let x = jwk["x"].as_str().expect("a coordinate");
    Coordinate(format!("{} {x}", jwk["crv"]))
}

fn holder_of(person: &PersonId) -> String {
    person.to_string()
}

impl KeyChecker {
    /// The next entry; a bundle is given to [`Self::bundle`] instead.
    pub fn entry(&mut self, entry: &Entry) {
        match &entry.event {
            Event::ApproverInvited(f) => {
                self.assert_acts(&f.by, f.by_key, "an invitation");
                self.assert_operator(&f.by);
                let given = (f.by.clone(), f.by_key, entry.index);
                self.invitations.insert(f.invitation, given);
            }
            Event::ApproverEnrolled(f) => {
                let (by, key, given) = self.invitations[&f.invitation].clone();
                self.assert_acts(&by, key, "the invitation of an enrolment");
                let since = self.since.get(&by).copied().unwrap_or(0);
                assert!(
                    since <= given,
                    "an invitation from before {by} came or went"
                );
                let key = Key {
                    holder: holder_of(&f.person),
                    is_passkey: true,
                    life: Life::Living,
                    is_stolen: false,
                };
                let own = coordinate(&f.passkey.jwk);
                self.named.insert(f.passkey.key, own.clone());
                self.identities.insert(f.passkey.key_identity, own.clone());
                let enrolled = Enrolled {
                    person: f.person.clone(),
                    inviter: by,
                    invited_with: self.invitations[&f.invitation].1,
                    index: entry.index,
                    confirmed: None,
                };
                self.passkeys.insert(f.passkey.key, enrolled);
                let before = self.keys.insert(own, key);
                assert!(before.is_none(), "a key was enrolled that was {before:?}");
            }
            Event::PasskeyConfirmed(f) => {
                self.acts(&f.person, f.key)
                    .expect("a living passkey is confirmed");
                let known = &self.passkeys[&f.key];
                assert_eq!((&known.person, &known.confirmed), (&f.person, &None));
                match &f.by {
                    Confirmer::Person { id, key } => assert!(
                        self.could_confirm(known, id, *key),
                        "{id} confirmed the passkey of {} on the invitation of {}",
                        known.person,
                        known.inviter
                    ),
                    Confirmer::Host { .. } => {
                        let people = self.people.iter().flatten();
                        for (id, key) in
                            people.flat_map(|(id, _)| self.named.keys().map(move |key| (id, key)))
                        {
                            assert!(
                                !self.could_confirm(known, id, *key),
                                "{id} could confirm, not the host"
                            );
                        }
                    }
                }
                self.passkeys.get_mut(&f.key).expect("known").confirmed = Some(f.by.clone());
            }
            Event::AccessRequestOpened(f) => {
                self.opened.insert(f.access_request, entry.index);
            }
            Event::ApproverKeysRevoked(f) => {
                if let Some(by) = &f.by {
                    self.assert_operator(by);
                }
                let holder = holder_of(&f.person);
                for key in &f.keys {
                    let key = self.keys.get_mut(&self.named[key]).expect("known");
                    assert_eq!(key.holder, holder, "another's key was revoked");
                    let is_found = f.cause == RevokeCause::Compromised && !key.is_stolen;
                    assert!(
                        key.life != Life::Dead || is_found,
                        "a key was revoked twice"
                    );
                    key.life = Life::Dead;
                }
                let mut stolen: BTreeSet<Coordinate> =
                    f.keys.iter().map(|key| self.named[key].clone()).collect();
                for (own, key) in &mut self.keys {
                    if f.all && key.holder == holder {
                        key.life = Life::Dead;
                        stolen.insert(own.clone());
                    }
                }
                let (dead, again) = match f.cause {
                    RevokeCause::Compromised | RevokeCause::Counter => self.fall_with(&stolen),
                    RevokeCause::Operator => Default::default(),
                };
                let count = |n: u32| usize::try_from(n).expect("small");
                let said = (count(f.invited), count(f.unconfirmed));
                assert_eq!(said, (dead.len(), again.len()));
                self.fallen.extend(dead);
            }
            Event::VoteCast(f) => {
                self.assert_acts(&f.voter, f.key, "a vote");
                self.votes.insert(f.statement, entry.index);
            }
            Event::TaskOpened(f) => {
                let held = self.identities.get(&f.key_identity);
                assert!(held.is_none(), "a task was opened with a key of {held:?}");
                self.task_keys.insert(f.key_identity);
                self.tasks.insert(f.task, f.key_identity);
            }
            Event::TokenIssued(f) => {
                let held = self.identities.get(&self.tasks[&f.task]);
                assert!(held.is_none(), "a token for a key of {held:?}");
            }
            Event::Frozen(f) => self.assert_operator(&f.by),
            Event::Unfrozen(f) => self.assert_operator(&f.by),
            Event::AgentResumed(f) => self.assert_operator(&f.by),
            _ => {}
        }
    }

    /// The bundle that an entry puts in force.
    pub fn bundle(&mut self, index: u64, applied: &PolicyApplied, bundle: &PolicyBundle) {
        match (&self.people, &applied.by) {
            (Some(_), Some(by)) => self.assert_operator(by),
            (Some(_), None) => assert!(applied.recovery.is_some(), "a bundle by no operator"),
            (None, _) => {}
        }
        let after: BTreeMap<PersonId, Registered> = bundle
            .people()
            .map(|person| {
                let keys = person.keys.iter().map(PublicKey::thumbprint).collect();
                let registered = Registered {
                    groups: person.groups.iter().cloned().collect(),
                    target_groups: person.target_groups.iter().cloned().collect(),
                    roles: person.roles.iter().copied().collect(),
                    keys,
                };
                (person.id.clone(), registered)
            })
            .collect();
        if let Some(recovery) = &applied.recovery
            && recovery.operators_lost
        {
            self.lose_operators(&after);
        }
        let keys_of_people = bundle.people().flat_map(|person| {
            let keys = person.keys.iter();
            keys.map(|key| (holder_of(&person.id), key))
        });
        let keys_of_services = bundle.services().flat_map(|service| {
            let keys = service.keys.iter();
            keys.map(|key| (service.id.to_string(), key))
        });
        for (holder, key) in keys_of_people.chain(keys_of_services) {
            let own = coordinate(&key.to_jwk());
            self.named.insert(key.thumbprint(), own.clone());
            self.identities.insert(key.identity(), own.clone());
            let is_returning = || applied.returning.iter().any(|id| holder_of(id) == holder);
            let known = self.keys.entry(own).or_insert_with(|| Key {
                holder: holder.clone(),
                is_passkey: false,
                life: Life::Living,
                is_stolen: false,
            });
            assert_eq!(known.holder, holder, "a key was given to another holder");
            assert!(!known.is_passkey, "a passkey was registered");
            assert!(
                known.life != Life::Left || is_returning(),
                "a former person's key was registered"
            );
        }
        for agent in bundle.agents() {
            let held = agent.jkt.and_then(|key| self.named.get(&key));
            assert!(held.is_none(), "an agent was pinned to the key {held:?}");
        }
        if let Some(before) = self.people.take() {
            self.changes(index, &before, &after, &applied.returning);
        }
        self.people = Some(after);
    }

    fn could_confirm(&self, known: &Enrolled, id: &PersonId, key: Thumbprint) -> bool {
        let registered = self.people.as_ref().and_then(|people| people.get(id));
        *id != known.person
            && *id != known.inviter
            && registered.is_some_and(|person| !person.roles.is_empty())
            && self.acts(id, key).is_ok()
            && self
                .passkeys
                .get(&key)
                .is_none_or(|passkey| passkey.confirmed.is_some())
    }

    /// What falls with stolen keys: passkeys that die, and those that are no longer confirmed.
    fn fall_with(
        &mut self,
        stolen: &BTreeSet<Coordinate>,
    ) -> (BTreeSet<Thumbprint>, BTreeSet<Thumbprint>) {
        for own in stolen {
            self.keys.get_mut(own).expect("known").is_stolen = true;
        }
        let mut fallen = stolen.clone();
        let (mut dead, mut again) = (BTreeSet::new(), BTreeSet::new());
        // However many steps away: a passkey that falls confirms nothing.
        loop {
            let before = fallen.len();
            for (key, passkey) in &mut self.passkeys {
                let own = &self.named[key];
                let is_fallen = |key: &Thumbprint| fallen.contains(&self.named[key]);
                if self.keys[own].life == Life::Dead || is_fallen(key) {
                    continue;
                }
                let was_confirmed = passkey.confirmed.is_some();
                let stands = match &passkey.confirmed {
                    None => false,
                    Some(Confirmer::Person { key, .. }) => !is_fallen(key),
                    Some(Confirmer::Host { .. }) => true,
                };
                let on_stolen = self.keys[&self.named[&passkey.invited_with]].is_stolen;
                if !stands && on_stolen {
                    dead.insert(*key);
                } else if !stands && was_confirmed {
                    again.insert(*key);
                    passkey.confirmed = None;
                } else {
                    continue;
                }
                fallen.insert(own.clone());
            }
            if fallen.len() == before {
                break;
            }
        }
        for key in &dead {
            self.keys.get_mut(&self.named[key]).expect("known").life = Life::Dead;
        }
        (dead, again)
    }

    /// The keys of the operators before a recovery die, but for those that its bundle registers.
    fn lose_operators(&mut self, after: &BTreeMap<PersonId, Registered>) {
        let mut stolen = BTreeSet::new();
        for (id, before) in self.people.iter().flatten() {
            if !before.roles.contains(&Role::Operator) {
                continue;
            }
            let kept = after.get(id).into_iter().flat_map(|is| &is.keys);
            let kept: BTreeSet<&Coordinate> = kept.filter_map(|key| self.named.get(key)).collect();
            let holder = holder_of(id);
            for (own, key) in &mut self.keys {
                if key.holder == holder && !kept.contains(own) && key.life != Life::Dead {
                    key.life = Life::Dead;
                    stolen.insert(own.clone());
                }
            }
        }
        self.fall_with(&stolen);
    }

    fn changes(
        &mut self,
        index: u64,
        before: &BTreeMap<PersonId, Registered>,
        after: &BTreeMap<PersonId, Registered>,
        returning: &BTreeSet<PersonId>,
    ) {
        let ids: BTreeSet<&PersonId> = before.keys().chain(after.keys()).collect();
        for id in ids {
            let returns = returning.contains(id);
            let (was, is) = (before.get(id), after.get(id));
            if let Some(is) = is {
                let none = Registered::default();
                let was = was.unwrap_or(&none);
                let roles = is
                    .roles
                    .difference(&was.roles)
                    .map(|role| Added::Role(*role));
                let groups = is.groups.difference(&was.groups);
                let of_targets = is.target_groups.difference(&was.target_groups);
                let groups = groups.chain(of_targets).cloned().map(Added::Group);
                let keys = is.keys.difference(&was.keys).map(|key| Added::Key(*key));
                let person = returns.then_some(Added::Person);
                for what in roles.chain(groups).chain(keys).chain(person) {
                    self.added.insert((id.clone(), what), index);
                }
            }
            let none = BTreeSet::new();
            let roles = |of: Option<&Registered>| of.map_or(none.clone(), |of| of.roles.clone());
            let (had, has) = (roles(was), roles(is));
            match (was, is) {
                (_, None) => self.turn(id, Life::Living, Life::Left, false),
                (None, Some(_)) if returns => self.turn(id, Life::Left, Life::Living, false),
                (None, Some(_)) => self.turn(id, Life::Left, Life::Dead, false),
                (Some(_), Some(_)) if !had.is_subset(&has) => {
                    assert!(!returns, "{id} loses a role and returns");
                    self.turn(id, Life::Living, Life::Left, true);
                }
                (Some(_), Some(_)) if had != has && returns => {
                    self.turn(id, Life::Left, Life::Living, false);
                }
                (Some(was), Some(is)) => {
                    assert!(!returns, "{id} was there and returns");
                    if was.groups.is_subset(&is.groups) && was.keys.is_subset(&is.keys) {
                        continue;
                    }
                }
            }
            self.since.insert(id.clone(), index);
        }
    }

    fn turn(&mut self, person: &PersonId, from: Life, to: Life, passkeys_alone: bool) {
        let holder = holder_of(person);
        for key in self.keys.values_mut() {
            if key.holder == holder && key.life == from && (key.is_passkey || !passkeys_alone) {
                key.life = to;
            }
        }
    }

    fn acts(&self, person: &PersonId, key: Thumbprint) -> Result<&Coordinate, String> {
        let own = self.named.get(&key).ok_or("a key that no entry names")?;
        let known = &self.keys[own];
        if known.holder != holder_of(person) {
            return Err(format!("a key of {}", known.holder));
        }
        if known.life != Life::Living {
            return Err(format!("a key that is {:?}", known.life));
        }
        let registered = self.people.as_ref().and_then(|people| people.get(person));
        let registered = registered.ok_or("a key of a person who is not registered")?;
        if !known.is_passkey && !registered.keys.contains(&key) {
            return Err("a key that is not registered now".to_owned());
        }
        let identities = self.identities.iter();
        let mut identities = identities.filter(|(_, of)| *of == own);
        if identities.any(|(identity, _)| self.task_keys.contains(identity)) {
            return Err("the key of a task".to_owned());
        }
        Ok(own)
    }

    fn assert_acts(&self, person: &PersonId, key: Thumbprint, what: &str) {
        if let Err(why) = self.acts(person, key) {
            panic!("{what} of {person} by {why}");
        }
    }

    fn assert_operator(&self, person: &PersonId) {
        let registered = self.people.as_ref().and_then(|people| people.get(person));
        let is_operator = registered.is_some_and(|p| p.roles.contains(&Role::Operator));
        assert!(is_operator, "an order of {person}, who is no operator");
        assert!(
            self.has_living_key(person),
            "an order of {person}, who has no living key"
        );
    }

    /// Whether some key may act for a person now.
    pub fn has_living_key(&self, person: &PersonId) -> bool {
        let lives = |key: &Thumbprint| self.acts(person, *key).is_ok();
        self.named.keys().any(lives)
    }

    /// Whose hand a vote for a group is, if its key was there when the request was opened: `needs_confirmation`: an unconfirmed passkey is
    /// no hand at all.
    pub fn hand(
        &self,
        vote: &VoteCast,
        (role, group): (Role, &GroupId),
        needs_confirmation: bool,
    ) -> Option<PersonId> {
        let opened = self.opened[&vote.access_request];
        let gains = [
            Added::Person,
            Added::Role(role),
            Added::Group(group.clone()),
            Added::Key(vote.key),
        ];
        // A no is heard whenever its voter and key came.
        let is_no = vote.verdict == Verdict::Deny;
        for what in gains.into_iter().filter(|_| !is_no) {
            let added = self.added.get(&(vote.voter.clone(), what));
            if added.is_some_and(|added| *added > opened) {
                return None;
            }
        }
        match self.passkeys.get(&vote.key) {
            Some(passkey) if passkey.index > opened && !is_no => None,
            Some(passkey) if passkey.confirmed.is_none() => {
                (!needs_confirmation).then(|| passkey.inviter.clone())
            }
            Some(_) | None => Some(vote.voter.clone()),
        }
    }

    /// What tells the voter's key from others, if the vote counts now: its key lives and is registered, and its voter has neither come
    /// nor gone since.
    pub fn counted(&self, vote: &VoteCast) -> Option<Coordinate> {
        let since = self.since.get(&vote.voter).copied().unwrap_or(0);
        if self.votes[&vote.statement] <= since {
            return None;
        }
        self.acts(&vote.voter, vote.key).ok().cloned()
    }
}
