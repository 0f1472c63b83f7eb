//! Transitions: whether what an entry does may follow the state before it.
//!
//! Refuses what no broker decides: a second grant from a consumed approval, an end of what has ended, a freeze of what is frozen, a
//! grant under a suspended agent, a withdrawn key or other rules. It does not judge rules, votes or evidence again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::key_registry::{KeyHolder, KeyNames, KeyRefusal, KeyStanding, KeyUse};
use super::records::{AccessEvent, IdempotencyOutcome};
use super::{AccessRequest, Grant, State, StoredStatus, TaskRecord};
use crate::jose::{AuthenticatorKey, PublicKey};
use crate::model::*;
use crate::policy::Role;

type Legal = Result<(), String>;

/// Whether the entry's transition is legal in the state before it.
pub(super) fn check(entry: &Entry, state: &State) -> Legal {
    let at = entry.at;
    let (epoch, _) = state.position();
    let is_first = matches!(entry.event, Event::EpochStarted(_));
    require(is_first == (entry.index == 0), || {
        "the first entry, and no other, starts an epoch".to_owned()
    })?;
    require(is_first || entry.epoch == epoch, || {
        format!("it is of epoch {}, in epoch {epoch}", entry.epoch)
    })?;
    match &entry.event {
        Event::EpochStarted(_) => Ok(()),
        Event::RefusalsCounted(_) => Ok(()),
        Event::TrustBundleChanged(f) => {
            let known = state.trust.get(&f.domain);
            let same = known.is_some_and(|keys| keys.bundle == Some(f.bundle));
            require(!same, || format!("{} has this trust bundle", f.domain))
        }
        Event::KeyPublished(f) => {
            require(state.keys.get(&f.kid).is_none(), || {
                format!("the key {} is published", f.kid)
            })?;
            let key = PublicKey::from_jwk(&f.jwk).map_err(|e| e.to_string())?;
            require(KeyId::from_thumbprint(key.thumbprint()) == f.kid, || {
                format!("{} is not the thumbprint of its key", f.kid)
            })
        }
        Event::PolicyApplied(f) => policy_applied(state, f),
        Event::AgentSuspended(f) => {
            require(!state.is_suspended(&f.agent), || {
                format!("{} is suspended", f.agent)
            })?;
            match f.denials {
                // By the approver whose denial reached the limit.
                Some(denials) => {
                    require(denials > 0, || "no denial reached a limit".to_owned())?;
                    registered(state, &f.by)
                }
                None => operator(state, &f.by),
            }
        }
        Event::AgentResumed(f) => {
            require(state.is_suspended(&f.agent), || {
                format!("{} is not suspended", f.agent)
            })?;
            operator(state, &f.by)
        }
        Event::Frozen(f) => {
            require(!state.is_frozen(&f.scope), || {
                format!("{} is frozen", f.scope)
            })?;
            operator(state, &f.by)
        }
        Event::Unfrozen(f) => {
            require(state.is_frozen(&f.scope), || {
                format!("{} is not frozen", f.scope)
            })?;
            operator(state, &f.by)
        }
        Event::TaskOpened(f) => task_opened(state, f),
        Event::LeasesExtended(f) => leases_extended(state, f, at),
        Event::TaskEnded(f) => task_ended(state, f, at),
        Event::RequestDenied(f) => {
            open_task(state, &f.task)?;
            undecided(state, &f.task, &f.idempotency_key)
        }
        Event::AccessRequestOpened(f) => access_request_opened(state, f, at),
        Event::VoteCast(f) => {
            let request = access_request(state, &f.access_request)?;
            after(&request, AccessEvent::Voted(f.verdict))?;
            open_task(state, &request.opened.task)?;
            registered(state, &f.voter)?;
            living_key(state, &f.voter, f.key)?;
            let opened = &request.opened;
            require(
                f.max_ttl <= opened.max_ttl && fewer(f.uses, opened.uses),
                || "the vote allows more than was asked for".to_owned(),
            )?;
            not_expired(&request, at)
        }
        Event::VoteRefused(f) => access_request(state, &f.access_request).map(drop),
        Event::AccessRequestClosed(f) => {
            let request = access_request(state, &f.access_request)?;
            after(&request, AccessEvent::Closed(f.cause))?;
            open_task(state, &request.opened.task)?;
            match f.cause {
                CloseCause::Expired => require(at >= request.opened.expires_at, || {
                    format!("{} has not expired", f.access_request)
                }),
                CloseCause::Cancelled | CloseCause::Policy => Ok(()),
                CloseCause::Frozen => Err("a freeze closes it by its own entry".to_owned()),
            }
        }
        Event::ApproverInvited(f) => {
            registered(state, &f.person)?;
            living_key(state, &f.by, f.by_key)?;
            operator(state, &f.by)
        }
        Event::ApproverEnrolled(f) => approver_enrolled(state, f, at),
        Event::ApproverKeysRevoked(f) => keys_revoked(state, f),
        Event::TokenIssued(f) => token_issued(state, f, at),
        Event::TokenReissued(f) => {
            let grant = grant(state, &f.jti)?;
            active(state, &grant, at)?;
            published(state, &f.kid)
        }
        Event::TokenConsumed(f) => {
            let grant = grant(state, &f.jti)?;
            active(state, &grant, at)?;
            require(grant.issued.uses.is_some(), || {
                format!("{} has no limit of uses", f.jti)
            })?;
            require(!grant.is_spent(), || format!("{} is spent", f.jti))?;
            let rules = state.rules().ok_or("no policy bundle is in force")?;
            let audience = &grant.issued.action.audience;
            let service = rules.bundle.service(&f.validator);
            require(
                service.is_some_and(|s| s.audiences.contains(audience)),
                || format!("{} is no validator of {audience}", f.validator),
            )?;
            let used = |u: &super::TokenUse| u.validator == f.validator && u.use_id == f.use_id;
            require(!grant.uses.iter().any(used), || {
                format!("the use {} of {} is spent", f.use_id, f.jti)
            })
        }
        Event::GrantsEnded(f) => {
            require(!f.jtis.is_empty(), || "it ends no token".to_owned())?;
            ordered_by(f.cause, f.by.as_ref())?;
            for jti in &f.jtis {
                let grant = grant(state, jti)?;
                require(grant.ended.is_none(), || format!("{jti} has ended"))?;
            }
            f.by.as_ref().map_or(Ok(()), |by| operator(state, by))
        }
    }
}

fn policy_applied(state: &State, f: &PolicyApplied) -> Legal {
    let Some(rules) = state.rules() else {
        // A seed, or the first operator, who is registered in the bundle itself.
        return require(f.recovery.is_none(), || {
            "no bundle is in force whose operators it could recover".to_owned()
        });
    };
    require(rules.bundle.version() != f.version, || {
        format!("the bundle {} is in force", f.version)
    })?;
    match (&f.by, &f.recovery) {
        (Some(by), None) => operator(state, by),
        (None, None) => Err("no operator ordered it".to_owned()),
        (Some(by), Some(_)) => Err(format!(
            "a recovery of the operators is not {by}'s to order"
        )),
        (None, Some(recovery)) => {
            let governors = state.governors(&rules.bundle, &BTreeSet::new(), &[], false);
            require(recovery.operators_lost || governors.is_empty(), || {
                "a recovery of operators who have keys that live".to_owned()
            })
        }
    }
}

fn task_opened(state: &State, f: &TaskOpened) -> Legal {
    require(state.tasks.get(&f.task).is_none(), || {
        format!("the task {} is known", f.task)
    })?;
    let opening = (f.agent.clone(), f.binding.jkt(), f.idempotency_key.clone());
    let opened = state.tasks_by_idempotency_key.get(&opening);
    require(opened.is_none(), || {
        format!("the idempotency key {} opened a task", f.idempotency_key)
    })?;
    require(f.opened_at < f.deadline, || {
        format!("{} has no time", f.task)
    })?;
    agent_in_force(state, &f.agent, &f.owner)?;
    in_force(state, &f.policy)?;
    trusted(state, &f.evidence)?;
    agents_own_key(state, f)
}

/// Longest time without a broker after which leases are extended, in milliseconds, and the longest time until that is durable.
pub(super) const OUTAGE_MAX_MS: i64 = 300_000;
const DURABLE_MAX_MS: i64 = 10_000;

fn leases_extended(state: &State, f: &LeasesExtended, at: Timestamp) -> Legal {
    require(!f.leases.is_empty(), || "it extends no lease".to_owned())?;
    if let Some(served_until) = f.served_until {
        let outage = at.since(served_until);
        require(outage <= OUTAGE_MAX_MS + DURABLE_MAX_MS, || {
            format!("no broker had served for {outage} ms")
        })?;
    }
    for (id, until) in &f.leases {
        let task = open_task(state, id)?;
        let lease = task.lease.ok_or_else(|| format!("{id} has no heartbeat"))?;
        require(
            lease.until < *until && *until <= task.opened.deadline,
            || format!("the lease of {id} is not extended within its deadline"),
        )?;
        match f.served_until {
            // INV-16: durable before the lease ran out.
            None => require(at < lease.until, || {
                format!("the lease of {id} had run out")
            })?,
            Some(served_until) => require(served_until <= lease.until, || {
                format!("a broker served when the lease of {id} ran out")
            })?,
        }
    }
    Ok(())
}

fn task_ended(state: &State, f: &TaskEnded, at: Timestamp) -> Legal {
    require(!f.tasks.is_empty(), || "it ends no task".to_owned())?;
    ordered_by(f.cause, f.by.as_ref())?;
    for id in &f.tasks {
        let task = open_task(state, id)?;
        let expired = task.expired_cause(at);
        match f.cause {
            EndCause::Deadline | EndCause::Lease => require(expired == Some(f.cause), || {
                format!("{id} has not ended by time for this cause")
            })?,
            EndCause::Completed
            | EndCause::Operator
            | EndCause::Suspended
            | EndCause::Policy
            | EndCause::Trust
            | EndCause::Frozen => {}
        }
    }
    f.by.as_ref().map_or(Ok(()), |by| operator(state, by))
}

/// An operator's end names the operator; no other does.
fn ordered_by(cause: EndCause, by: Option<&PersonId>) -> Legal {
    require((cause == EndCause::Operator) == by.is_some(), || {
        format!("an end by {} with the wrong author", cause.as_str())
    })
}

fn keys_revoked(state: &State, f: &ApproverKeysRevoked) -> Legal {
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
        require(own.standing != KeyStanding::Dead, || {
            format!("the key {key} is dead")
        })?;
        require(f.by.is_some() || own.is_passkey, || {
            format!("the key {key} has no counter")
        })?;
    }
    let Some(by) = &f.by else {
        return Ok(());
    };
    operator(state, by)?;
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    let none = BTreeSet::new();
    let mut dead = f.keys.clone();
    if f.all {
        dead.extend(records.iter().map(|known| known.thumbprint));
    }
    let governed = |dead: &[_]| !state.governors(&rules.bundle, &none, dead, true).is_empty();
    let is_last = f.cause == RevokeCause::Operator && governed(&[]) && !governed(&dead);
    require(!is_last, || {
        "it leaves no operator with a key that lives".to_owned()
    })
}

fn access_request_opened(state: &State, f: &AccessRequestOpened, at: Timestamp) -> Legal {
    require(state.requests.get(&f.access_request).is_none(), || {
        format!("the access request {} is known", f.access_request)
    })?;
    let task = open_task(state, &f.task)?;
    require(task.opened.agent == f.agent, || {
        format!("{} is not of {}", f.task, f.agent)
    })?;
    agent_in_force(state, &f.agent, &f.owner)?;
    in_force(state, &f.decision.policy)?;
    trusted(state, &f.evidence)?;
    action_not_frozen(state, &f.action.action)?;
    require(f.expires_at <= task.opened.deadline, || {
        format!("{} outlives its task", f.access_request)
    })?;
    // Salted digests of sensitive parameters do not compare.
    let same = |r: &Arc<AccessRequest>| r.is_pending(at) && r.opened.action == f.action;
    require(!state.requests_of_task(&f.task).iter().any(same), || {
        format!("an access request of {} for this action waits", f.task)
    })?;
    undecided(state, &f.task, &f.idempotency_key)
}

fn approver_enrolled(state: &State, f: &ApproverEnrolled, at: Timestamp) -> Legal {
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

fn token_issued(state: &State, f: &TokenIssued, at: Timestamp) -> Legal {
    require(state.grants.get(&f.jti).is_none(), || {
        format!("the token {} is known", f.jti)
    })?;
    let task = open_task(state, &f.task)?;
    require(
        task.opened.agent == f.agent && task.opened.binding == f.cnf,
        || format!("{} is not of {} with this key", f.task, f.agent),
    )?;
    let expired = task.expired_cause(at);
    require(expired.is_none(), || {
        format!("{} has ended by time", f.task)
    })?;
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    let owner = rules
        .bundle
        .agent(&f.agent)
        .map(|agent| agent.owner.clone());
    let owner = owner.ok_or_else(|| format!("{} is not registered", f.agent))?;
    agent_in_force(state, &f.agent, &owner)?;
    let opener = FreezeScope::Owner(task.opened.owner.clone());
    require(!state.is_frozen(&opener), || format!("{opener} is frozen"))?;
    action_not_frozen(state, &f.action.action)?;
    in_force(state, &f.decision.policy)?;
    trusted(state, &f.evidence)?;
    published(state, &f.kid)?;
    agents_own_key(state, &task.opened)?;
    undecided(state, &f.task, &f.idempotency_key)?;
    require(f.subject == task.opened.evidence.subject, || {
        format!("{} is another workload", f.subject)
    })?;
    require(
        f.iat < f.exp && at.secs() < f.exp && f.iat <= at.secs(),
        || format!("{} has no lifetime", f.jti),
    )?;
    let bound = task.opened.deadline.min(f.evidence.expires_at).secs();
    require(f.exp <= bound, || {
        format!("{} outlives its task or its evidence", f.jti)
    })?;
    let Some(id) = &f.consumed else {
        return require(f.approval.is_none(), || {
            "an approval without an access request".to_owned()
        });
    };
    let request = access_request(state, id)?;
    after(&request, AccessEvent::Consumed(f.jti))?;
    let opened = &request.opened;
    require(
        opened.task == f.task && is_same_action(&opened.action, &f.action),
        || format!("{id} is for another task or action"),
    )?;
    require(
        f.exp - f.iat <= opened.max_ttl && fewer(f.uses, opened.uses),
        || format!("{} allows more than {id} asked for", f.jti),
    )?;
    if let Some(approval) = &f.approval {
        let voted = |name: &ProfileName| {
            let yes = |v: &Arc<super::VoteRecord>| {
                v.cast.verdict == Verdict::Approve && v.cast.profile.name == *name
            };
            request.votes.iter().any(yes)
        };
        require(
            approval.access_request == *id
                && !approval.profiles.is_empty()
                && approval.profiles.iter().all(voted),
            || format!("{id} has no votes for the approval of {}", f.jti),
        )?;
    }
    not_expired(&request, at)
}

/// An idempotency key with a grant stays decided; one whose access request waits, or was closed without an answer, does not.
fn undecided(state: &State, task: &TaskId, key: &IdempotencyKey) -> Legal {
    match state.idempotency_keys.get(&(*task, key.clone())) {
        Some(IdempotencyOutcome::Granted(jti)) => Err(format!(
            "the idempotency key {key} of {task} has the grant {jti}"
        )),
        Some(IdempotencyOutcome::Requested(_)) | None => Ok(()),
    }
}

/// Whether two recorded actions are one, as far as a reader without the sensitive parameters can tell.
fn is_same_action(one: &ActionOnRecord, other: &ActionOnRecord) -> bool {
    let is_open = |value: &serde_json::Value| value.get("$commitment").is_none();
    let parameters = one.parameters.iter().all(|(name, value)| {
        let same = other.parameters.get(name);
        same.is_some_and(|same| same == value || !(is_open(value) && is_open(same)))
    });
    one.action == other.action
        && one.target == other.target
        && one.audience == other.audience
        && one.parameters.len() == other.parameters.len()
        && parameters
}

/// Whether a number of uses is within a bound; without a bound every number is.
fn fewer(uses: Option<u32>, bound: Option<u32>) -> bool {
    bound.is_none_or(|bound| uses.is_some_and(|uses| uses <= bound))
}

fn require(holds: bool, why: impl FnOnce() -> String) -> Legal {
    if holds { Ok(()) } else { Err(why()) }
}

fn open_task(state: &State, id: &TaskId) -> Result<Arc<TaskRecord>, String> {
    let task = state.tasks.get(id).ok_or_else(|| format!("no task {id}"))?;
    match task.ended {
        None => Ok(task),
        Some(_) => Err(format!("{id} has ended")),
    }
}

fn access_request(state: &State, id: &AccessRequestId) -> Result<Arc<AccessRequest>, String> {
    let request = state.requests.get(id);
    request.ok_or_else(|| format!("no access request {id}"))
}

fn after(request: &AccessRequest, event: AccessEvent) -> Legal {
    let id = request.opened.access_request;
    match request.status.after(event) {
        Ok(_) => Ok(()),
        Err(_illegal) => Err(match request.status {
            StoredStatus::Pending => format!("{id} is pending"),
            StoredStatus::Denied => format!("{id} was denied"),
            StoredStatus::Consumed(jti) => format!("{id} was consumed by {jti}"),
            StoredStatus::Closed(_) => format!("{id} is closed"),
        }),
    }
}

fn not_expired(request: &AccessRequest, at: Timestamp) -> Legal {
    require(at < request.opened.expires_at, || {
        format!("{} has expired", request.opened.access_request)
    })
}

fn grant(state: &State, jti: &TokenId) -> Result<Arc<Grant>, String> {
    state
        .grants
        .get(jti)
        .ok_or_else(|| format!("no token {jti}"))
}

fn active(state: &State, grant: &Grant, at: Timestamp) -> Legal {
    match state.end_cause(grant, at) {
        None => Ok(()),
        Some(cause) => Err(format!(
            "{} has ended: {}",
            grant.issued.jti,
            cause.as_str()
        )),
    }
}

fn agent_in_force(state: &State, agent: &AgentId, owner: &PersonId) -> Legal {
    let registered = state.owner_now(agent);
    require(registered.as_ref() == Some(owner), || {
        format!("{agent} is not registered with the owner {owner}")
    })?;
    require(!state.is_suspended(agent), || {
        format!("{agent} is suspended")
    })?;
    for scope in [
        FreezeScope::All,
        FreezeScope::Agent(agent.clone()),
        FreezeScope::Owner(owner.clone()),
    ] {
        require(!state.is_frozen(&scope), || format!("{scope} is frozen"))?;
    }
    Ok(())
}

fn action_not_frozen(state: &State, action: &ActionName) -> Legal {
    let scope = FreezeScope::Action(action.clone());
    require(!state.is_frozen(&scope), || format!("{scope} is frozen"))
}

fn in_force(state: &State, policy: &Digest) -> Legal {
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    require(rules.bundle.version() == *policy, || {
        format!("the bundle {policy} is not in force")
    })
}

fn trusted(state: &State, evidence: &EvidenceFacts) -> Legal {
    require(state.is_trusted(evidence), || {
        format!("the key {} of the evidence is not trusted", evidence.kid)
    })
}

fn published(state: &State, kid: &KeyId) -> Legal {
    require(state.keys.get(kid).is_some(), || {
        format!("the key {kid} is not published")
    })
}

fn registered(state: &State, person: &PersonId) -> Legal {
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    require(rules.bundle.person(person).is_some(), || {
        format!("{person} is not registered")
    })
}

fn agents_own_key(state: &State, opened: &TaskOpened) -> Legal {
    let key = opened.binding.jkt();
    let names = KeyNames {
        identity: opened.key_identity,
        thumbprints: vec![key],
    };
    let wanted = KeyUse::Task(&opened.agent);
    let checked = state.key_registry.check(&names, wanted);
    checked.map_err(|why| format!("the key {key}: {why}"))
}

fn living_key(state: &State, person: &PersonId, key: Thumbprint) -> Legal {
    let holder = KeyHolder::Person(person.clone());
    let checked = state.may_act(&holder, key);
    checked.map_err(|why| format!("the key {key} of {person}: {why}"))
}

/// An operator of the bundle in force with a key that lives.
fn operator(state: &State, person: &PersonId) -> Legal {
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    let registered = rules.bundle.person(person);
    let is_operator = registered.is_some_and(|p| p.roles.contains(&Role::Operator));
    require(is_operator && !state.living_keys(person).is_empty(), || {
        format!("{person} is not an operator with a key that lives")
    })
}
