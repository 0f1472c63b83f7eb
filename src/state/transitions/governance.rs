//! Transitions of who governs: policy bundles, proposals of them, and the keys of people.

use std::collections::BTreeSet;

use super::{
    Legal, access_request, after, in_force, living_key, not_expired, operator, registered, require,
};
use crate::jose::AuthenticatorKey;
use crate::model::*;
use crate::policy::DeclaredFact;
use crate::state::State;
use crate::state::key_registry::{KeyHolder, KeyRefusal, KeyStanding, KeyUse};
use crate::state::records::AccessEvent;

/// A bundle in force by an operator, as the one before it asks, or by the owner of the broker's host.
pub(super) fn policy_applied(state: &State, f: &PolicyApplied, at: Timestamp) -> Legal {
    let Some(rules) = state.rules() else {
        // A seed, or the first operator, who is registered in the bundle itself.
        return require(f.recovery.is_none() && f.proposal.is_none(), || {
            "no bundle is in force whose operators it could recover, or that a proposal could change".to_owned()
        });
    };
    require(rules.bundle.version() != f.version, || {
        format!("the bundle {} is in force", f.version)
    })?;
    match (&f.by, &f.recovery) {
        (Some(by), None) => {
            operator(state, by)?;
            let is_of = |proposal: &PersonRequester| {
                proposal.bundle() == Some((&f.version, &f.returning)) && proposal.person == *by
            };
            agreed(state, f.proposal.as_ref(), is_of, at)
        }
        (None, None) => Err("no operator ordered it".to_owned()),
        (Some(by), Some(_)) => Err(format!(
            "a recovery of the operators is not {by}'s to order"
        )),
        (None, Some(_)) if f.proposal.is_some() => {
            Err("a recovery of the operators rests on no proposal".to_owned())
        }
        (None, Some(recovery)) => {
            let governed = state.change_is_possible(&rules.bundle, &BTreeSet::new());
            require(recovery.operators_lost || !governed, || {
                "a recovery of operators who can change the bundle".to_owned()
            })
        }
    }
}

/// A named fact set by an operator: for a bounded time to another value than its normal one, or back to that; to another value than its
/// safe one only as a change of the bundle asks.
pub(super) fn fact_set(state: &State, f: &FactSet, at: Timestamp) -> Legal {
    operator(state, &f.by)?;
    let declared = declared_fact(state, &f.fact, f.declared)?;
    let (value, stands_until) = state.fact_value(&declared, at);
    let longest = at.plus_secs(declared.max_s.into());
    let fits = match f.until {
        Some(until) => f.value != declared.normal && at < until && until <= longest,
        None => f.value == declared.normal && value != declared.normal,
    };
    require(fits, || {
        format!("{} is set without need, or for too long", f.fact)
    })?;
    if f.value == declared.safe {
        require(f.proposal.is_none(), || {
            format!("{} needs nobody else to be safe", f.fact)
        })?;
        // One hand ends no safe value earlier.
        let earlier = value == declared.safe && f.until < stands_until;
        return require(!earlier, || {
            format!("{} would be safe for a shorter time", f.fact)
        });
    }
    let is_of = |by: &PersonRequester| {
        let Proposed::Fact {
            fact,
            value,
            seconds,
            declared,
        } = &by.proposed
        else {
            return false;
        };
        let longest = seconds.map(|seconds| at.plus_secs(seconds.into()));
        (fact, *value, *declared) == (&f.fact, f.value, f.declared)
            && f.until.is_some() == longest.is_some()
            && f.until <= longest
            && f.by == by.person
    };
    agreed(state, f.proposal.as_ref(), is_of, at)
}

/// What the bundle in force declares of a fact, with this digest.
fn declared_fact(state: &State, name: &FactName, digest: Digest) -> Result<DeclaredFact, String> {
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    let declared = rules.bundle.fact(name);
    let declared = declared.filter(|declared| declared.digest() == digest);
    declared
        .cloned()
        .ok_or_else(|| format!("the bundle in force does not declare the fact {name} so"))
}

/// A proposal by an operator, under the bundle in force, where that asks others to agree.
pub(super) fn proposed(
    state: &State,
    f: &AccessRequestOpened,
    by: &PersonRequester,
    at: Timestamp,
) -> Legal {
    operator(state, &by.person)?;
    living_key(state, &by.person, by.key)?;
    in_force(state, &by.replaces)?;
    match &by.proposed {
        Proposed::Bundle { bundle, .. } => require(*bundle != by.replaces, || {
            format!("the bundle {bundle} is in force")
        })?,
        Proposed::Fact {
            fact,
            value,
            seconds,
            declared,
        } => {
            let fact = declared_fact(state, fact, *declared)?;
            let fits = match seconds {
                Some(seconds) => *value != fact.normal && (1..=fact.max_s).contains(seconds),
                None => *value == fact.normal,
            };
            require(fits && *value != fact.safe, || {
                format!("{} is proposed its safe value, or for too long", fact.name)
            })?;
        }
    }
    // What people sign is what comes in force.
    let action = proposal_action(&by.replaces, &by.proposed);
    let action = action.map_err(|e| e.to_string())?;
    let (action, _no_secret) = action.on_record(&BTreeSet::new(), &mut || [0; 16]);
    require(f.action == action, || {
        format!("{} is not the action of its proposal", f.access_request)
    })?;
    require(f.reason.is_none() || by.bundle().is_none(), || {
        "a proposal of a bundle has no reason beside its changes".to_owned()
    })?;
    require(
        f.max_ttl.is_none() && f.uses.is_none() && f.secret.is_none(),
        || "a proposal asks for no token".to_owned(),
    )?;
    let needed = state.change_profile();
    let needed = needed.filter(|profile| profile.reference() == by.needs);
    let needed = needed.ok_or("the bundle in force does not ask these people to agree")?;
    require(f.expires_at <= at.plus_secs(needed.wait_s.into()), || {
        format!("{} waits too long", f.access_request)
    })
}

/// The proposal that puts a bundle in force, or sets a fact: approved by others than the proposer, for exactly this and under the bundle in
/// force.
fn agreed(
    state: &State,
    proposal: Option<&AccessRequestId>,
    is_of: impl Fn(&PersonRequester) -> bool,
    at: Timestamp,
) -> Legal {
    let Some(profile) = state.change_profile() else {
        return require(proposal.is_none(), || {
            "the bundle in force asks nobody to agree".to_owned()
        });
    };
    let id = proposal;
    let id = id.ok_or("the bundle in force asks others to agree, and no proposal is named")?;
    let request = access_request(state, id)?;
    after(&request, AccessEvent::Applied)?;
    not_expired(&request, at)?;
    let by = request.opened.by_person();
    let by = by.ok_or_else(|| format!("{id} is no proposal"))?;
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    let is_current = by.replaces == rules.bundle.version() && by.needs == profile.reference();
    require(is_current && is_of(by), || {
        format!("{id} is a proposal of something else")
    })?;
    let voters: BTreeSet<&PersonId> = request
        .votes
        .iter()
        .filter(|vote| {
            let cast = &vote.cast;
            let holder = KeyHolder::Person(cast.voter.clone());
            cast.verdict == Verdict::Approve
                && cast.voter != by.person
                && cast.profile == by.needs
                && at < cast.not_after
                && vote.index > state.credentials.get(&cast.voter).votes_since
                && state.may_act(&holder, cast.key).is_ok()
        })
        .map(|vote| &vote.cast.voter)
        .collect();
    let quorum = usize::try_from(profile.quorum).unwrap_or(usize::MAX);
    require(voters.len() >= quorum, || {
        format!("{id} has too few approvals")
    })
}

/// A revocation of living keys, or of one that is found stolen, with what falls with it.
pub(super) fn keys_revoked(state: &State, f: &ApproverKeysRevoked) -> Legal {
    let by_operator = match f.cause {
        RevokeCause::Operator | RevokeCause::Compromised => true,
        RevokeCause::Counter => false,
    };
    require(by_operator == f.by.is_some(), || {
        "a revocation of keys with the wrong author".to_owned()
    })?;
    require(f.by.is_some() || (f.keys.len() == 1 && !f.all), || {
        "a counter is of one passkey".to_owned()
    })?;
    let records = state.key_registry.records_of(&f.person);
    for key in &f.keys {
        let own = records.iter().find(|known| known.thumbprint == *key);
        let own = own.ok_or_else(|| format!("the key {key} is not one of {}", f.person))?;
        // One that died before may be found stolen later.
        let is_found = f.cause == RevokeCause::Compromised && !own.is_stolen;
        require(own.standing != KeyStanding::Dead || is_found, || {
            format!("the key {key} is dead")
        })?;
        require(f.by.is_some() || own.is_passkey, || {
            format!("the key {key} has no counter")
        })?;
    }
    let mut dead = f.keys.clone();
    if f.all {
        dead.extend(records.iter().map(|known| known.thumbprint));
    }
    let counts = state.falls_of(f).counts();
    require((f.invited, f.unconfirmed) == counts, || {
        "the passkeys that rest on the stolen keys are others".to_owned()
    })?;
    let Some(by) = &f.by else {
        return Ok(());
    };
    operator(state, by)?;
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    let none = BTreeSet::new();
    let governed = |dead: &[_]| !state.governors(&rules.bundle, &none, dead, true).is_empty();
    let is_last = f.cause == RevokeCause::Operator && governed(&[]) && !governed(&dead);
    require(!is_last, || {
        "it leaves no operator with a key that lives".to_owned()
    })
}

/// A passkey on an open invitation, with a key that is nobody's.
pub(super) fn approver_enrolled(state: &State, f: &ApproverEnrolled, at: Timestamp) -> Legal {
    registered(state, &f.person)?;
    let invitation = state.credentials.invitation(&f.person);
    let invitation = invitation.filter(|i| i.id == f.invitation && at < i.expires_at);
    let invitation = invitation
        .ok_or_else(|| format!("{} has no open invitation {}", f.person, f.invitation))?;
    operator(state, &invitation.by)?;
    living_key(state, &invitation.by, invitation.by_key)?;
    let giver = state.credentials.get(&invitation.by);
    require(giver.since < invitation.index, || {
        format!("{} was no operator in between", invitation.by)
    })?;
    let key = f.passkey.key;
    let read = AuthenticatorKey::from_jwk(&f.passkey.jwk).map_err(|e| e.to_string())?;
    require(
        read.thumbprint() == key && read.identity() == f.passkey.key_identity,
        || format!("{key} is not the thumbprint of its key"),
    )?;
    match state.key_registry.check(&(&read).into(), KeyUse::Enrol) {
        // A task may have been opened with it in the same moment: then it acts for neither.
        Ok(()) | Err(KeyRefusal::Task(_)) => {}
        Err(why) => return Err(format!("the key {key}: {why}")),
    }
    let credential = &f.passkey.credential;
    let known = state.credentials.person_of_credential(credential);
    require(known.is_none(), || {
        format!("the credential {credential} was enrolled before")
    })
}
