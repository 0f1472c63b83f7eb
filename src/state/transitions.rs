//! Transitions: whether what an entry does may follow the state before it.
//!
//! Refuses what no broker decides: a second grant from a consumed approval, an end of what has ended, a freeze of what is frozen, a
//! grant under a suspended agent, a withdrawn key or other rules. It does not judge rules, votes or evidence again.

use std::sync::Arc;

use super::key_registry::{KeyHolder, KeyNames, KeyUse};
use super::records::{AccessEvent, IdempotencyOutcome};
use super::{AccessRequest, Grant, State, StoredStatus, TaskRecord};
use crate::jose::PublicKey;
use crate::model::*;
use crate::policy::Role;

mod counts;
mod governance;

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
        Event::PolicyApplied(f) => governance::policy_applied(state, f, at),
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
        Event::FactSet(f) => governance::fact_set(state, f, at),
        Event::TaskOpened(f) => task_opened(state, f),
        Event::LeasesExtended(f) => leases_extended(state, f, at),
        Event::TaskEnded(f) => task_ended(state, f, at),
        Event::RequestDenied(f) => {
            let task = open_task(state, &f.task)?;
            let waiting = f.waiting.map(|id| access_request(state, &id)).transpose()?;
            if let Some(waiting) = &waiting {
                require(
                    waiting.is_pending(at)
                        && waiting.opened.task() == Some(f.task)
                        && is_same_action(&waiting.opened.action, &f.action),
                    || format!("{} does not wait for it", waiting.opened.access_request),
                )?;
            }
            if let Some(decision) = &f.decision {
                counts::is_no_hand_over(decision)?;
                let of = (&task.opened.agent, &f.action.action);
                counts::counts_of_then(state, of, waiting.as_deref(), (decision, at))?;
            }
            undecided(state, &f.task, &f.idempotency_key)
        }
        Event::AccessRequestOpened(f) => access_request_opened(state, f, at),
        Event::VoteCast(f) => {
            let request = access_request(state, &f.access_request)?;
            after(&request, AccessEvent::Voted(f.verdict))?;
            has_open_task(state, &request)?;
            registered(state, &f.voter)?;
            living_key(state, &f.voter, f.key)?;
            let opened = &request.opened;
            require(
                f.verdict == Verdict::Deny || request.required_profiles().contains(&f.profile),
                || format!("{} does not require {}", f.access_request, f.profile.name),
            )?;
            let of_executor = opened.executor().map(|executor| &executor.owner);
            let is_own = *opened.owner() == f.voter || of_executor == Some(&f.voter);
            require(!is_own, || {
                format!("a vote of {} on a request of their own", f.voter)
            })?;
            require(
                f.max_ttl.is_some() == opened.max_ttl.is_some()
                    && f.max_ttl <= opened.max_ttl
                    && fewer(f.uses, opened.uses),
                || "the vote allows more than was asked for".to_owned(),
            )?;
            not_expired(&request, at)
        }
        Event::AccessRequestReassessed(f) => {
            let request = access_request(state, &f.access_request)?;
            require(request.status == StoredStatus::Pending, || {
                format!("{} is not pending", f.access_request)
            })?;
            require(request.opened.by_agent().is_some(), || {
                format!("{} is a proposal", f.access_request)
            })?;
            has_open_task(state, &request)?;
            in_force(state, &f.decision.policy)?;
            let executor = request.opened.executor().map(|executor| &executor.agent);
            require(executor == f.decision.input.executor.as_ref(), || {
                format!("{} has another executor", f.access_request)
            })?;
            let same = request.decision.as_ref().is_some_and(|was| {
                was.required_profiles == f.decision.required_profiles
                    && was.delay == f.decision.delay
                    && was.rules == f.decision.rules
                    && was.input.facts == f.decision.input.facts
            });
            sound_delay(&f.decision)?;
            // With a delay the time begins anew.
            require(!same || f.decision.delay.is_some(), || {
                format!("{} requires what it required", f.access_request)
            })?;
            not_expired(&request, at)
        }
        Event::VoteRefused(f) => access_request(state, &f.access_request).map(drop),
        Event::AccessRequestClosed(f) => {
            let request = access_request(state, &f.access_request)?;
            after(&request, AccessEvent::Closed(f.cause))?;
            has_open_task(state, &request)?;
            match f.cause {
                CloseCause::Expired => require(at >= request.opened.expires_at, || {
                    format!("{} has not expired", f.access_request)
                }),
                CloseCause::Cancelled | CloseCause::Policy | CloseCause::NoEligibleApprover => {
                    Ok(())
                }
                CloseCause::Frozen => Err("a freeze closes it by its own entry".to_owned()),
            }
        }
        Event::ApproverInvited(f) => {
            registered(state, &f.person)?;
            living_key(state, &f.by, f.by_key)?;
            operator(state, &f.by)
        }
        Event::ApproverEnrolled(f) => governance::approver_enrolled(state, f, at),
        Event::PasskeyConfirmed(f) => {
            registered(state, &f.person)?;
            let checked = state.may_confirm(&f.person, f.key, &f.by);
            checked.map_err(|why| why.to_string())
        }
        Event::ApproverKeysRevoked(f) => governance::keys_revoked(state, f),
        Event::TokenIssued(f) => {
            token_issued(state, f, at)?;
            facts_of_now(state, f, at)?;
            counts::counts_of_token(state, f, at)
        }
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

/// What people are asked has waited for nothing yet, and its delay is one that rules can have.
fn sound_delay(decision: &DecisionRecord) -> Legal {
    require(decision.has_sound_delay(), || {
        format!("{} has a delay that no rule asks for", decision.id)
    })
}

fn access_request_opened(state: &State, f: &AccessRequestOpened, at: Timestamp) -> Legal {
    require(state.requests.get(&f.access_request).is_none(), || {
        format!("the access request {} is known", f.access_request)
    })?;
    let by = match &f.requester {
        AccessRequester::Agent(by) => by,
        AccessRequester::Person(by) => return governance::proposed(state, f, by, at),
    };
    let task = open_task(state, &by.task)?;
    require(task.opened.agent == by.agent, || {
        format!("{} is not of {}", by.task, by.agent)
    })?;
    require(f.max_ttl.is_some(), || {
        format!("{} asks for no token", f.access_request)
    })?;
    agent_in_force(state, &by.agent, &by.owner)?;
    recommends(state, by)?;
    in_force(state, &by.decision.policy)?;
    trusted(state, &by.evidence)?;
    action_not_frozen(state, &f.action.action)?;
    sound_delay(&by.decision)?;
    counts::is_no_hand_over(&by.decision)?;
    let of = (&by.agent, &f.action.action);
    counts::counts_of_then(state, of, None, (&by.decision, at))?;
    require(f.expires_at <= task.opened.deadline, || {
        format!("{} outlives its task", f.access_request)
    })?;
    // Salted digests of sensitive parameters do not compare.
    let same = |r: &Arc<AccessRequest>| r.is_pending(at) && r.opened.action == f.action;
    require(!state.requests_of_task(&by.task).iter().any(same), || {
        format!("an access request of {} for this action waits", by.task)
    })?;
    undecided(state, &by.task, &by.idempotency_key)
}

/// An advisory agent, and no other, names another agent that would execute the action: one that the bundle lists, with its owner.
fn recommends(state: &State, by: &AgentRequester) -> Legal {
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    let agent = rules.bundle.agent(&by.agent);
    let is_advisory = agent
        .as_ref()
        .is_some_and(|agent| agent.autonomy == Autonomy::Advisory);
    let named = by.executor.as_ref();
    require(is_advisory == named.is_some(), || {
        format!(
            "{} asks for a token and is advisory, or the reverse",
            by.agent
        )
    })?;
    require(
        named.map(|named| &named.agent) == by.decision.input.executor.as_ref(),
        || "the decision is about another executor".to_owned(),
    )?;
    let (Some(agent), Some(named)) = (agent, named) else {
        return Ok(());
    };
    let executor = rules.bundle.agent(&named.agent);
    let fits = executor.is_some_and(|executor| {
        executor.owner == named.owner && rules.bundle.may_execute(&agent, &executor)
    });
    require(fits, || {
        format!("{} is no executor of {}", named.agent, by.agent)
    })?;
    agent_in_force(state, &named.agent, &named.owner)
}

/// A token is issued under the values that facts have, on an approval that was given for the same, and outlives none that ends tokens.
/// Which facts the rules read is not asked again: it is the gate that finds them.
fn facts_of_now(state: &State, f: &TokenIssued, at: Timestamp) -> Legal {
    let rules = state.rules().ok_or("no policy bundle is in force")?;
    let facts = &f.decision.input.facts;
    for (name, value) in facts {
        let declared = rules.bundle.fact(name);
        let declared = declared.ok_or_else(|| format!("no fact {name} is declared"))?;
        let (now, until) = state.fact_value(declared, at);
        require(now == *value, || {
            format!(
                "{} rests on another value of {name} than that of now",
                f.jti
            )
        })?;
        let outlives = declared.ends && until.is_some_and(|until| until.secs() < f.exp);
        require(!outlives, || {
            format!("{} outlives the value of {name}", f.jti)
        })?;
    }
    let request = f.consumed.and_then(|id| state.requests.get(&id));
    let asked = request
        .as_ref()
        .and_then(|request| request.decision.as_ref());
    require(
        f.approval.is_none() || asked.is_none_or(|asked| asked.input.facts == *facts),
        || format!("{} was approved under other facts", f.jti),
    )
}

/// An access request of an agent is open while its task is; a proposal has none.
fn has_open_task(state: &State, request: &AccessRequest) -> Legal {
    let task = request.opened.task();
    task.map_or(Ok(()), |task| open_task(state, &task).map(drop))
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
    let agent = rules.bundle.agent(&f.agent);
    let agent = agent.ok_or_else(|| format!("{} is not registered", f.agent))?;
    require(agent.autonomy != Autonomy::Advisory, || {
        format!("{} is advisory", f.agent)
    })?;
    agent_in_force(state, &f.agent, &agent.owner)?;
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
    let waited_ms = f.decision.input.waited_ms;
    let Some(id) = &f.consumed else {
        return require(f.approval.is_none() && waited_ms == 0, || {
            "an approval or a delay without an access request".to_owned()
        });
    };
    let request = access_request(state, id)?;
    // INVARIANT (a delay is waited for): nobody says that a request waited longer than it did, under what it required.
    let asked = request.decision.as_ref();
    let is_shown = asked.is_some_and(|asked| {
        asked.policy == f.decision.policy && asked.input.facts == f.decision.input.facts
    });
    let agent = request.opened.agent();
    let denials = agent.and_then(|agent| state.histories.get(agent));
    let is_opposed = denials.is_some_and(|history| {
        let mut denials = history.denials.iter();
        denials.any(|at| *at >= request.opened_at)
    });
    require(
        waited_ms == 0 || (is_shown && !is_opposed && request.may_have_waited(waited_ms, at)),
        || format!("{id} did not wait for {waited_ms} ms"),
    )?;
    after(&request, AccessEvent::Consumed(f.jti))?;
    let opened = &request.opened;
    require(is_same_action(&opened.action, &f.action), || {
        format!("{id} is for another action")
    })?;
    match opened.executor() {
        Some(_) => {
            if let Some(why) = state.hand_over_fault(&request, &task.opened, at) {
                return Err(format!("{} may not execute {id}: {why}", f.jti));
            }
        }
        _ => require(opened.task() == Some(f.task), || {
            format!("{id} is for another task")
        })?,
    }
    if opened.executor().is_some() || waited_ms != 0 {
        let claim = f.approval.iter().flat_map(|claim| &claim.profiles);
        let claimed: Vec<&ProfileName> = claim.collect();
        let mut required = request.required_after(waited_ms).iter();
        require(required.all(|need| claimed.contains(&&need.name)), || {
            format!("{} lacks approvals that {id} requires", f.jti)
        })?;
    }
    require(
        opened.max_ttl.is_some_and(|most| f.exp - f.iat <= most) && fewer(f.uses, opened.uses),
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
            StoredStatus::Applied => format!("{id} is in force"),
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
