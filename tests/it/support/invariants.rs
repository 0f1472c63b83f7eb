//! Journal invariants (`docs/invariants.md`), re-checked from a stored journal alone: trusts only the entries, the blobs and SHA-256.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon::approve::audit::ApprovalVerifier;
use dipylon::audit::{Checkpoint, JournalVerifier};
use dipylon::journal::{self, JournalReader};
use dipylon::policy::{
    AuthzDecision, AuthzRequest, BundleFiles, CountPer, PolicyBundle, Risk, Role, StepUpProfile,
    VoteMethod,
};
use dipylon::state::{BundleCache, State, StateFold};
use dipylon::webauthn::{self, Assertion, RelyingParty};
use dipylon_sdk::model::*;

use super::key_invariants::{Coordinate, KeyChecker};

#[derive(Default)]
struct InvariantChecker {
    policy: Option<(Digest, std::rc::Rc<PolicyBundle>)>,
    tasks: BTreeMap<TaskId, TaskOpened>,
    ended: BTreeSet<TaskId>,
    leases: BTreeMap<TaskId, Timestamp>,
    suspended: BTreeSet<AgentId>,
    frozen: BTreeSet<FreezeScope>,
    facts: BTreeMap<FactName, FactSet>,
    opened_at: BTreeMap<AccessRequestId, Timestamp>,
    /// Every event that a count may count.
    counted: Vec<Counted>,
    requests: BTreeMap<AccessRequestId, AccessRequestOpened>,
    /// Since when each waits for what it requires, and its delay.
    delays: BTreeMap<AccessRequestId, (Timestamp, Option<Delay>)>,
    votes: BTreeMap<AccessRequestId, Vec<VoteCast>>,
    consumed: BTreeSet<AccessRequestId>,
    closed: BTreeSet<AccessRequestId>,
    grants: BTreeMap<TokenId, TokenIssued>,
    ended_tokens: BTreeSet<TokenId>,
    uses: BTreeMap<TokenId, Vec<(ServiceId, UseId)>>,
    idempotency_keys: BTreeSet<(TaskId, IdempotencyKey)>,
    /// By task, proposer and action: two people may propose the same bundle.
    open_requests: BTreeMap<RequestKey, AccessRequestId>,
    invitations: BTreeSet<InvitationId>,
    passkeys: BTreeMap<Thumbprint, (PersonId, PasskeyOnRecord)>,
    revoked: BTreeSet<Thumbprint>,
    keys: KeyChecker,
    /// The operators who held a living key since the first bundle or the last recovery.
    operators_ever: BTreeSet<PersonId>,
}

/// An event that a count may count.
struct Counted {
    at: Timestamp,
    of: CountKind,
    agent: AgentId,
    owner: PersonId,
    action: ActionName,
    /// The counts that the decision's rules read.
    read: BTreeSet<CountName>,
}

type RequestKey = (Option<TaskId>, Option<PersonId>, Digest);

fn request_key(f: &AccessRequestOpened) -> RequestKey {
    let proposer = f.by_person().map(|by| by.person.clone());
    (f.task(), proposer, f.action.digest)
}

/// Findings of a check, for comparison with acknowledged work.
pub struct JournalFindings {
    pub head: Checkpoint,
    pub tokens: BTreeSet<TokenId>,
    pub tasks: BTreeSet<TaskId>,
    pub ended: BTreeSet<TaskId>,
    pub votes: usize,
    pub enrolled: usize,
    pub revoked: BTreeSet<Thumbprint>,
    pub uses: BTreeMap<TokenId, Vec<(ServiceId, UseId)>>,
    pub policies: usize,
}

/// Reads the whole journal and asserts every invariant that entries can show.
pub fn check(dir: &Path) -> JournalFindings {
    check_against(dir, None)
}

pub(super) static PARSED: LazyLock<Arc<BundleCache>> = LazyLock::new(Arc::default);

thread_local! {
    static BUNDLES: std::cell::RefCell<BTreeMap<Digest, std::rc::Rc<PolicyBundle>>> = const { std::cell::RefCell::new(BTreeMap::new()) };
}

pub fn check_against(dir: &Path, noted: Option<Checkpoint>) -> JournalFindings {
    let open = || JournalReader::open(dir).expect("journal");
    let (journal, blobs) = (open(), open());
    let mut audit = JournalVerifier::with_checkpoint(noted);
    let (mut walk, mut votes) = (InvariantChecker::default(), ApprovalVerifier::default());
    let mut policies = 0;
    let state = Arc::new(State::with_bundles(PARSED.clone()));
    let mut fold = StateFold::new(Arc::clone(&state), |_| {});
    // Laws 7 and 10: bytes, order, time, the read sets, and that each entry is legal where it stands.
    let replayed = journal::replay(&journal, &blobs, &mut audit, &mut fold, |entry| {
        policies += usize::from(matches!(entry.event, Event::PolicyApplied(_)));
        walk.entry(entry, &blobs);
        votes.entry(entry, &state, |name| blobs.blob(name))
    });
    let (head, epoch) = replayed.expect("every entry and every vote is verified");
    votes
        .finish(&state)
        .expect("what is registered is permitted");
    journal
        .blobs(|name, content| {
            audit
                .blob(name, content)
                .expect("a blob matches its digest");
            Ok(())
        })
        .expect("readable");
    audit.finish_blobs().expect("no blob is missing");
    audit
        .finish(head, epoch)
        .expect("the head matches the entries");
    JournalFindings {
        head,
        tokens: walk.grants.keys().copied().collect(),
        tasks: walk.tasks.keys().copied().collect(),
        ended: walk.ended,
        votes: walk.votes.values().map(Vec::len).sum(),
        enrolled: walk.passkeys.len(),
        revoked: walk.revoked,
        uses: walk.uses,
        policies,
    }
}

impl InvariantChecker {
    fn entry(&mut self, entry: &Entry, journal: &JournalReader) {
        self.keys.entry(entry);
        self.assert_counts(entry);
        self.assert_delays(entry);
        match &entry.event {
            Event::PolicyApplied(f) => {
                let text = journal
                    .blob(&f.version)
                    .expect("readable")
                    .expect("the bundle is there");
                let bundle = BUNDLES.with_borrow_mut(|known| {
                    let load = || {
                        PolicyBundle::load(&BundleFiles::parse(&text).expect("files"))
                            .expect("loads")
                            .into()
                    };
                    std::rc::Rc::clone(known.entry(f.version).or_insert_with(load))
                });
                if let Some(id) = f.proposal {
                    assert!(self.consumed.insert(id), "a proposal came in force twice");
                    assert!(
                        !self.closed.contains(&id),
                        "a closed proposal came in force"
                    );
                    self.close_open_request(&id);
                }
                let recovered = f.recovery.is_some();
                self.assert_agreed(f.proposal, recovered, entry, |by, in_force| {
                    let of = (f.by.as_ref(), by.bundle(), &by.replaces);
                    let proposed = (Some(&by.person), Some((&f.version, &f.returning)), in_force);
                    assert_eq!(of, proposed, "another proposal");
                });
                self.keys.bundle(entry.index, f, &bundle);
                self.facts.retain(|name, set| {
                    bundle.fact(name).is_some_and(|declared| {
                        set.value == declared.safe || set.declared == declared.digest()
                    })
                });
                self.policy = Some((f.version, bundle));
                if f.recovery.is_some() {
                    self.operators_ever.clear();
                }
                self.note_operators();
            }
            Event::AccessRequestReassessed(f) => {
                let request = &self.requests[&f.access_request];
                assert!(
                    !self.closed.contains(&f.access_request)
                        && !self.consumed.contains(&f.access_request)
                        && entry.at < request.expires_at,
                    "an access request that does not wait was reassessed"
                );
                let version = self.policy.as_ref().expect("rules in force").0;
                assert_eq!(
                    version, f.decision.policy,
                    "reassessed by a bundle that is not in force"
                );
            }
            Event::AgentSuspended(f) => {
                self.suspended.insert(f.agent.clone());
                let of_agent: Vec<_> = self
                    .tasks
                    .values()
                    .filter(|t| t.agent == f.agent)
                    .map(|t| t.task)
                    .collect();
                self.ended.extend(of_agent);
                self.stop_executors(|executor, _| executor.agent == f.agent);
            }
            Event::ApproverInvited(_) => {}
            Event::ApproverEnrolled(f) => {
                assert!(
                    self.invitations.insert(f.invitation),
                    "an invitation was used twice"
                );
                let key = f.passkey.key;
                assert!(
                    !self.revoked.contains(&key),
                    "a revoked key was enrolled again"
                );
                let before = self
                    .passkeys
                    .insert(key, (f.person.clone(), f.passkey.clone()));
                assert!(before.is_none(), "one key belongs to two people");
                self.note_operators();
            }
            Event::PasskeyConfirmed(_) => {}
            Event::ApproverKeysRevoked(f) => {
                let fallen = self.keys.fallen.iter().copied();
                self.revoked.extend(f.keys.iter().copied().chain(fallen));
            }
            Event::AgentResumed(f) => {
                self.suspended.remove(&f.agent);
            }
            Event::Frozen(f) => {
                self.frozen.insert(f.scope.clone());
                let bundle = self.bundle();
                let owner_now = |id: &AgentId| Some(bundle.agent(id)?.owner.clone());
                let hit = |t: &&TaskOpened| match &f.scope {
                    FreezeScope::All => true,
                    FreezeScope::Agent(agent) => t.agent == *agent,
                    FreezeScope::Owner(owner) => {
                        t.owner == *owner || owner_now(&t.agent).as_ref() == Some(owner)
                    }
                    FreezeScope::Action(_) => false,
                };
                let tasks: Vec<_> = self.tasks.values().filter(hit).map(|t| t.task).collect();
                self.stop_executors(|executor, owner_now| match &f.scope {
                    FreezeScope::All => true,
                    FreezeScope::Agent(agent) => executor.agent == *agent,
                    FreezeScope::Owner(owner) => {
                        executor.owner == *owner || owner_now == Some(owner)
                    }
                    FreezeScope::Action(_) => false,
                });
                self.ended.extend(tasks);
                if let FreezeScope::Owner(owner) = &f.scope {
                    let running = |t: &&TaskOpened| !self.ended.contains(&t.task);
                    assert!(
                        !self
                            .tasks
                            .values()
                            .filter(running)
                            .any(|t| t.owner == *owner),
                        "INV-7: a task of a frozen owner continued"
                    );
                }
                if let FreezeScope::Action(name) = &f.scope {
                    let of_action = |g: &&TokenIssued| g.action.action == *name;
                    let grants: Vec<_> = self
                        .grants
                        .values()
                        .filter(of_action)
                        .map(|g| g.jti)
                        .collect();
                    self.ended_tokens.extend(grants);
                    let of_action = |r: &&AccessRequestOpened| r.action.action == *name;
                    let requests: Vec<_> = self
                        .requests
                        .values()
                        .filter(of_action)
                        .map(|r| r.access_request)
                        .collect();
                    for id in requests {
                        if self.consumed.contains(&id) {
                            continue;
                        }
                        self.closed.insert(id);
                        self.close_open_request(&id);
                    }
                }
            }
            Event::Unfrozen(f) => {
                self.frozen.remove(&f.scope);
            }
            Event::FactSet(f) => self.fact_set(f, entry),
            Event::TaskOpened(f) => {
                let owner = &self.bundle().agent(&f.agent).expect("registered").owner;
                for scope in [
                    FreezeScope::All,
                    FreezeScope::Agent(f.agent.clone()),
                    FreezeScope::Owner(owner.clone()),
                ] {
                    assert!(
                        !self.frozen.contains(&scope),
                        "INV-7: a task was opened under {scope}"
                    );
                }
                assert!(
                    !self.suspended.contains(&f.agent),
                    "a suspended agent opened a task"
                );
                self.tasks.insert(f.task, f.clone());
            }
            Event::TaskEnded(f) => {
                for task in &f.tasks {
                    assert!(self.ended.insert(*task), "a task ended twice");
                }
            }
            Event::AccessRequestOpened(f) => {
                assert!(
                    !f.task().is_some_and(|task| self.ended.contains(&task)),
                    "an ended task opened an access request"
                );
                // An expired request is no longer pending, whether or not its expiry was journaled.
                let waits = |id: &AccessRequestId| entry.at < self.requests[id].expires_at;
                if let Some(executor) = f.executor() {
                    let scopes = [
                        FreezeScope::Agent(executor.agent.clone()),
                        FreezeScope::Owner(executor.owner.clone()),
                    ];
                    assert!(
                        !self.suspended.contains(&executor.agent)
                            && !scopes.iter().any(|scope| self.frozen.contains(scope)),
                        "INV-27: an action was recommended to a stopped executor"
                    );
                }
                let other = self.open_requests.insert(request_key(f), f.access_request);
                assert!(
                    !other.is_some_and(|id| waits(&id)),
                    "two open access requests for one action"
                );
                self.requests.insert(f.access_request, f.clone());
                self.opened_at.insert(f.access_request, entry.at);
            }
            Event::VoteCast(f) => self.vote(f, entry, journal),
            Event::AccessRequestClosed(f) => {
                self.closed.insert(f.access_request);
                self.close_open_request(&f.access_request);
            }
            Event::TokenIssued(f) => self.issued(f, entry, journal),
            Event::TokenReissued(f) => {
                let grant = &self.grants[&f.jti];
                assert!(
                    !self.ended.contains(&grant.task) && !self.ended_tokens.contains(&f.jti),
                    "an ended token was reissued"
                );
                assert!(entry.at.secs() < grant.exp, "an expired token was reissued");
            }
            Event::TokenConsumed(f) => {
                let grant = &self.grants[&f.jti];
                assert!(
                    !self.ended.contains(&grant.task) && !self.ended_tokens.contains(&f.jti),
                    "an ended token was used"
                );
                let uses = self.uses.entry(f.jti).or_default();
                uses.push((f.validator.clone(), f.use_id.clone()));
                let distinct: BTreeSet<_> = uses.iter().cloned().collect();
                assert_eq!(distinct.len(), uses.len(), "one use_id used twice");
                assert!(
                    uses.len() <= usize::try_from(grant.uses.expect("limited")).expect("small"),
                    "used more often than allowed"
                );
            }
            Event::GrantsEnded(f) => self.ended_tokens.extend(f.jtis.iter().copied()),
            Event::EpochStarted(_)
            | Event::TrustBundleChanged(_)
            | Event::KeyPublished(_)
            | Event::RequestDenied(_)
            | Event::VoteRefused(_)
            | Event::RefusalsCounted(_) => {}
            Event::LeasesExtended(f) => {
                for (task, until) in &f.leases {
                    let lease = self.lease(task).expect("a lease");
                    assert!(!self.ended.contains(task), "an ended task was kept alive");
                    match f.served_until {
                        None => {
                            assert!(entry.at < lease, "a lease was extended after it had ended")
                        }
                        // No broker can have said that it had ended.
                        Some(from) => assert!(
                            from <= lease && entry.at.since(from) <= 300_000,
                            "a missed heartbeat that may have been answered was undone"
                        ),
                    }
                    assert!(
                        *until <= self.tasks[task].deadline,
                        "a lease beyond the deadline"
                    );
                    self.leases.insert(*task, *until);
                }
            }
        }
    }

    /// The time at which a missed heartbeat ends a task.
    fn lease(&self, task: &TaskId) -> Option<Timestamp> {
        let opened = &self.tasks[task];
        let first = opened.opened_at.plus_secs(opened.heartbeat_seconds?);
        Some(self.leases.get(task).copied().unwrap_or(first))
    }

    fn close_open_request(&mut self, id: &AccessRequestId) {
        let request = &self.requests[id];
        let key = request_key(request);
        if self.open_requests.get(&key) == Some(id) {
            self.open_requests.remove(&key);
        }
    }

    /// What is recommended to an executor ends when it is stopped.
    fn stop_executors(&mut self, is_hit: impl Fn(&Executor, Option<&PersonId>) -> bool) {
        let bundle = self.bundle();
        let requests = &self.requests;
        self.open_requests.retain(|_, id| {
            let executor = requests.get(id).and_then(AccessRequestOpened::executor);
            executor.is_none_or(|executor| {
                let now = bundle
                    .agent(&executor.agent)
                    .map(|agent| agent.owner.clone());
                !is_hit(executor, now.as_ref())
            })
        });
    }

    fn bundle(&self) -> std::rc::Rc<PolicyBundle> {
        std::rc::Rc::clone(&self.policy.as_ref().expect("rules in force").1)
    }

    /// Law 14: as many others as the bundle before it asks for, each with a hand and a key of their own, agreed to exactly this bundle.
    fn assert_agreed(
        &self,
        proposal: Option<AccessRequestId>,
        recovered: bool,
        entry: &Entry,
        assert_of: impl Fn(&PersonRequester, &Digest),
    ) {
        let Some((version, before)) = &self.policy else {
            return;
        };
        let asked = before.change_profile().filter(|profile| {
            let is_first = profile.role == Role::Operator && self.operators_ever.len() < 2;
            !recovered && !is_first
        });
        let Some(profile) = asked else {
            assert_eq!(proposal, None, "nobody was asked");
            return;
        };
        let id = proposal.expect("a change to which others agree");
        let request = &self.requests[&id];
        let by = request.by_person().expect("a proposal");
        assert_of(by, version);
        assert!(entry.at < request.expires_at, "a late change");
        let (mut hands, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for vote in self.votes.get(&id).into_iter().flatten() {
            assert_eq!(vote.verdict, Verdict::Approve, "a change despite a no");
            let person = before.person(&vote.voter);
            let is_taken = person.is_some_and(|person| {
                person.roles.contains(&profile.role)
                    && (profile.role == Role::Operator || person.is_in(&profile.group))
            });
            let by_method = vote.assertion.is_some() || profile.method == VoteMethod::Key;
            let voters = (profile.role, &profile.group);
            let key = self.keys.counted(vote);
            let hand = self.keys.hand(vote, voters, true);
            if let (Some(key), Some(hand)) = (key, hand)
                && is_taken
                && by_method
                && entry.at < vote.not_after
                && vote.voter != by.person
                && hand != by.person
            {
                hands.insert(hand);
                keys.insert(key);
            }
        }
        let quorum = usize::try_from(profile.quorum).expect("small");
        assert!(
            hands.len().min(keys.len()) >= quorum,
            "a change by fewer hands than the bundle before it asks for"
        );
    }

    /// INV-30: what waited did so as long as it says and as its delay says, under what it required all that time, without a no.
    fn assert_delays(&mut self, entry: &Entry) {
        match &entry.event {
            Event::AccessRequestOpened(f) => {
                let delay = f.by_agent().and_then(|by| by.decision.delay.clone());
                self.delays.insert(f.access_request, (entry.at, delay));
            }
            Event::AccessRequestReassessed(f) => {
                let delay = f.decision.delay.clone();
                self.delays.insert(f.access_request, (entry.at, delay));
            }
            Event::TokenIssued(f) if f.decision.input.waited_ms != 0 => {
                let waited_ms = f.decision.input.waited_ms;
                let id = f.consumed.expect("INV-30: nothing waited");
                let (since, delay) = &self.delays[&id];
                let delay = delay.as_ref().expect("INV-30: no delay");
                assert!(
                    i64::from(delay.seconds) * 1_000 <= waited_ms
                        && waited_ms <= entry.at.since(*since),
                    "INV-30: {id} did not wait {waited_ms} ms"
                );
                let votes = self.votes.get(&id).into_iter().flatten();
                let said_no = votes.filter(|vote| vote.verdict == Verdict::Deny).count();
                assert_eq!(said_no, 0, "INV-30: somebody said no to {id}");
            }
            _ => {}
        }
    }

    /// INV-29: a decision recorded each count that a rule in its scope reads, as it was before it: no lower than what decisions whose
    /// rules read it made of it, and no higher than all that happened.
    fn assert_counts(&mut self, entry: &Entry) {
        let requested = [CountKind::Requests];
        let (agent, action, decision, own, kinds) = match &entry.event {
            Event::RequestDenied(f) => {
                let kinds = match (f.waiting, f.reason.as_str()) {
                    (Some(_), _) | (_, "FROZEN") => &[][..],
                    (None, "NO_ELIGIBLE_APPROVER") => &requested[..],
                    (None, _) => &[CountKind::Requests, CountKind::Denials][..],
                };
                let agent = &self.tasks[&f.task].agent;
                (
                    agent.clone(),
                    &f.action,
                    f.decision.as_ref(),
                    f.waiting,
                    kinds,
                )
            }
            Event::AccessRequestOpened(f) => match f.by_agent() {
                Some(by) => {
                    let decision = Some(&by.decision);
                    (by.agent.clone(), &f.action, decision, None, &requested[..])
                }
                None => return,
            },
            Event::TokenIssued(f) => {
                let is_own = |id: &AccessRequestId| self.requests[id].task() == Some(f.task);
                let own = f.consumed.filter(is_own);
                let kinds = match own {
                    Some(_) => &[CountKind::Tokens][..],
                    None => &[CountKind::Requests, CountKind::Tokens][..],
                };
                if let Some(id) = f.consumed.filter(|_| own.is_none()) {
                    let recommender = self.requests[&id].agent().expect("an agent's").clone();
                    let counts = &f.decision.input.recommender_counts;
                    self.assert_recorded(&recommender, &f.action, &f.decision, counts, Some(id));
                }
                (f.agent.clone(), &*f.action, Some(&f.decision), own, kinds)
            }
            Event::VoteCast(f) if f.verdict == Verdict::Deny => {
                let request = &self.requests[&f.access_request];
                if let Some(agent) = request.agent().cloned() {
                    let action = request.action.action.clone();
                    self.count(
                        &[CountKind::Denials],
                        &agent,
                        &action,
                        entry.at,
                        &BTreeSet::new(),
                    );
                }
                return;
            }
            Event::TokenConsumed(f) => {
                let grant = &self.grants[&f.jti];
                let (agent, action) = (grant.agent.clone(), grant.action.action.clone());
                self.count(
                    &[CountKind::Uses],
                    &agent,
                    &action,
                    entry.at,
                    &BTreeSet::new(),
                );
                return;
            }
            _ => return,
        };
        let Some(decision) = decision else {
            return;
        };
        let counts = &decision.input.counts;
        self.assert_recorded(&agent, action, decision, counts, own);
        let bundle = self.bundle();
        // A count that both agents share.
        let recommender = match &entry.event {
            Event::TokenIssued(f) if own.is_none() => f.consumed,
            _ => None,
        };
        let recommender = recommender.and_then(|id| self.requests[&id].agent());
        let is_shared = |name: &&CountName| {
            let key = |agent: &AgentId| {
                let owner = &bundle.agent(agent).expect("registered").owner;
                let declared = bundle.count(name).expect("declared");
                declared.key(agent, owner, &action.action)
            };
            recommender.is_some_and(|other| key(other) == key(&agent))
        };
        let shared = decision.input.recommender_counts.keys().filter(is_shared);
        let read = counts.keys().chain(shared).cloned().collect();
        self.count(kinds, &agent, &action.action, entry.at, &read);
    }

    fn assert_recorded(
        &self,
        agent: &AgentId,
        action: &ActionOnRecord,
        decision: &DecisionRecord,
        counts: &CountValues,
        own: Option<AccessRequestId>,
    ) {
        let (name, target) = (&action.action, &action.target);
        let bundle = self.bundle();
        let recorded: BTreeSet<&CountName> = counts.keys().collect();
        let in_scope = bundle.counts_in_scope(agent, name, target);
        assert_eq!(recorded, in_scope, "INV-29: other counts than those read");
        let owner = &bundle.agent(agent).expect("registered").owner;
        for (count, value) in counts {
            let declared = bundle.count(count).expect("declared");
            // Of the minute of an event all counts.
            let from = decision.input.now.plus_secs(-i64::from(declared.within_s));
            let from = from.millis() - from.millis().rem_euclid(60_000);
            let is_of = |event: &Counted| {
                event.of == declared.of
                    && event.at.millis() >= from
                    && match declared.per {
                        CountPer::Everyone => true,
                        CountPer::Agent => event.agent == *agent,
                        CountPer::Owner => event.owner == *owner,
                    }
                    && (!declared.per_action || event.action == *name)
                    && declared.actions.contains(&event.action)
            };
            let own = own.map(|id| &self.requests[&id]).is_some_and(|own| {
                let by = own.by_agent().expect("an agent's");
                is_of(&Counted {
                    at: self.opened_at[&own.access_request],
                    of: CountKind::Requests,
                    agent: by.agent.clone(),
                    owner: by.owner.clone(),
                    action: own.action.action.clone(),
                    read: BTreeSet::new(),
                })
            });
            let of = || self.counted.iter().filter(|event| is_of(event));
            let most = of().count() - usize::from(own);
            // Another bundle may have declared another count of this name.
            let least = of().filter(|event| event.read.contains(count)).count();
            let least = least.saturating_sub(usize::from(own));
            let value = usize::try_from(*value).expect("small");
            assert!(value <= most, "INV-29: {count} was {most}, and not {value}");
            assert!(
                least <= value,
                "INV-29: {count} was {least} at least, and not {value}"
            );
        }
    }

    fn count(
        &mut self,
        kinds: &[CountKind],
        agent: &AgentId,
        action: &ActionName,
        at: Timestamp,
        read: &BTreeSet<CountName>,
    ) {
        let Some(registered) = self.bundle().agent(agent) else {
            return;
        };
        self.counted.extend(kinds.iter().map(|of| Counted {
            at,
            of: *of,
            agent: agent.clone(),
            owner: registered.owner.clone(),
            action: action.clone(),
            read: read.clone(),
        }));
    }

    /// A fact is set within what the bundle declares; to another value than its safe one as the bundle is changed.
    fn fact_set(&mut self, f: &FactSet, entry: &Entry) {
        let bundle = self.bundle();
        let declared = bundle.fact(&f.fact).expect("declared");
        assert_eq!(f.declared, declared.digest(), "declared otherwise");
        match f.until {
            Some(until) => assert!(
                f.value != declared.normal
                    && until > entry.at
                    && until.since(entry.at) <= i64::from(declared.max_s) * 1000,
                "a fact set for longer than the bundle allows"
            ),
            None => assert_eq!(f.value, declared.normal, "a fact set without an end"),
        }
        if let Some(id) = f.proposal {
            assert!(self.consumed.insert(id), "a proposal set a fact twice");
            assert!(!self.closed.contains(&id), "a closed proposal set a fact");
            self.close_open_request(&id);
        }
        if f.value != declared.safe {
            self.assert_agreed(f.proposal, false, entry, |by, in_force| {
                assert_eq!((&by.person, &by.replaces), (&f.by, in_force), "another proposal");
                let is_of = matches!(&by.proposed, Proposed::Fact { fact, value, .. } if *fact == f.fact && *value == f.value);
                assert!(is_of, "another fact than the proposed one");
            });
        }
        // What others agreed to was for the fact as it was.
        let of_fact = |id: &AccessRequestId| {
            let by = self.requests[id].by_person();
            by.is_some_and(|by| by.proposed.fact() == Some(&f.fact))
        };
        let open = self.open_requests.values().copied();
        let void: Vec<AccessRequestId> = open.filter(of_fact).collect();
        for id in void {
            self.closed.insert(id);
            self.close_open_request(&id);
        }
        let stands = self.facts.get(&f.fact).filter(|set| {
            set.value == declared.safe && set.until.is_some_and(|until| entry.at < until)
        });
        if let Some(stands) = stands.filter(|_| f.value == declared.safe) {
            assert!(
                f.until >= stands.until,
                "one hand ended a safe value earlier"
            );
        }
        self.facts.insert(f.fact.clone(), f.clone());
    }

    /// The value of a fact at an entry.
    fn fact(&self, name: &FactName, at: Timestamp) -> bool {
        let bundle = self.bundle();
        let declared = bundle.fact(name).expect("declared");
        let set = self.facts.get(name).filter(|set| {
            let stands = set.until.is_some_and(|until| at < until);
            stands && (set.value == declared.safe || set.declared == declared.digest())
        });
        set.map_or(declared.normal, |set| set.value)
    }

    fn note_operators(&mut self) {
        let bundle = self.bundle();
        let operators = bundle.people().filter(|person| {
            person.roles.contains(&Role::Operator) && self.keys.has_living_key(&person.id)
        });
        let operators: Vec<PersonId> = operators.map(|person| person.id.clone()).collect();
        self.operators_ever.extend(operators);
    }

    /// Whose hand a vote is; `None` for a key that does not count for the request.
    fn hand(&self, vote: &VoteCast) -> Option<PersonId> {
        let bundle = self.bundle();
        let request = &self.requests[&vote.access_request];
        let action = bundle.action(&request.action.action);
        let risk = action.and_then(|action| action.risk).unwrap_or(Risk::High);
        let needs_confirmation = risk >= bundle.approval_limits().confirm_at_or_above;
        let target = &request.action.target;
        let profile = bundle.profile_about(&vote.profile.name, target)?;
        let voters = (profile.role, &profile.group);
        let hand = self.keys.hand(vote, voters, needs_confirmation)?;
        let mut owners = vec![request.owner().clone()];
        if let Some(by) = request.by_agent() {
            owners.push(bundle.agent(&by.agent)?.owner.clone());
            owners.push(self.tasks[&by.task].owner.clone());
            if let Some(executor) = &by.executor {
                owners.push(executor.owner.clone());
                owners.push(bundle.agent(&executor.agent)?.owner.clone());
            }
        }
        (!owners.contains(&hand)).then_some(hand)
    }

    /// A token rests on an access request of its own task, or on one that recommends it to this agent by another.
    fn handed_over(&self, request: &AccessRequestOpened, f: &TokenIssued, at: Timestamp) {
        let by = request.by_agent().expect("an agent's");
        let Some(executor) = &by.executor else {
            assert_eq!(by.task, f.task, "INV-4: an approval of another task");
            return;
        };
        let (bundle, task, other) = (self.bundle(), &self.tasks[&f.task], &self.tasks[&by.task]);
        let agent = |id: &AgentId| bundle.agent(id).expect("registered");
        let (recommender, acting) = (agent(&by.agent), agent(&f.agent));
        assert_eq!(executor.agent, f.agent, "INV-27: another executor");
        assert!(
            recommender.executors.contains(&f.agent),
            "INV-27: an executor that the bundle does not list"
        );
        assert!(
            !self.ended.contains(&by.task) && at < other.deadline,
            "INV-27: executed after the end of the task that recommended it"
        );
        assert!(
            other.key_identity != task.key_identity
                && other.evidence.subject != task.evidence.subject
                && by.agent != f.agent,
            "INV-27: an agent executes its own recommendation"
        );
        let owners = [&recommender.owner, &other.owner, &by.owner];
        let owned = [&acting.owner, &task.owner, &executor.owner];
        assert!(
            owned.iter().all(|owner| !owners.contains(owner)),
            "INV-27: one owner recommends and executes"
        );
        for scope in [
            FreezeScope::Agent(by.agent.clone()),
            FreezeScope::Owner(recommender.owner.clone()),
        ] {
            let is_frozen = self.frozen.contains(&scope);
            assert!(!is_frozen, "INV-27: executed under the freeze of {scope}");
        }
    }

    /// Law 4, at the vote: an eligible person, a valid signature over exactly this statement.
    fn vote(&mut self, f: &VoteCast, entry: &Entry, journal: &JournalReader) {
        let request = &self.requests[&f.access_request];
        assert!(
            !request
                .task()
                .is_some_and(|task| self.ended.contains(&task))
                && !self.closed.contains(&f.access_request),
            "a vote on a closed request"
        );
        assert!(
            !self.consumed.contains(&f.access_request),
            "a vote on a consumed request"
        );
        assert!(entry.at < request.expires_at, "a late vote");
        let bundle = self.bundle();
        let person = bundle.person(&f.voter).expect("registered");
        let target = &self.requests[&f.access_request].action.target;
        let profile = bundle
            .profile_about(&f.profile.name, target)
            .expect("profile");
        assert!(profile.takes(person), "not in the group");
        assert_ne!(f.voter, *request.owner(), "the owner voted");
        if let Some(agent) = request.agent() {
            let agent = bundle.agent(agent).expect("agent");
            assert_ne!(f.voter, agent.owner, "the owner voted");
        }
        let text = journal
            .blob(&f.statement)
            .expect("readable")
            .expect("statement");
        let statement = VoteStatement::parse(&text).expect("canonical");
        let signature = URL_SAFE_NO_PAD.decode(&f.signature).expect("base64");
        let digest = statement.digest().expect("digest");
        assert!(
            !self.revoked.contains(&f.key),
            "INV-4: a vote by a revoked key"
        );
        let signed = match f.assertion {
            None => person
                .keys
                .iter()
                .any(|key| key.thumbprint() == f.key && key.verify(digest.as_bytes(), &signature)),
            Some(evidence) => {
                let evidence = journal
                    .blob(&evidence)
                    .expect("readable")
                    .expect("evidence");
                let assertion = Assertion::from_evidence(&evidence, signature).expect("evidence");
                let (holder, passkey) = &self.passkeys[&f.key];
                assert_eq!(*holder, f.voter, "INV-4: another person's passkey");
                let client_data: serde_json::Value =
                    serde_json::from_slice(&assertion.client_data_json).expect("client data");
                let origin = client_data["origin"].as_str().expect("origin").to_owned();
                let id = origin.split("://").nth(1).and_then(|h| h.split(':').next());
                let party = RelyingParty {
                    id: id.expect("host").to_owned(),
                    origin: origin.clone(),
                };
                let be = passkey.backup_eligible;
                webauthn::verify_assertion(&party, digest.as_bytes(), &passkey.jwk, be, &assertion)
                    .is_ok()
            }
        };
        assert!(signed, "the signature does not verify");
        assert!(
            f.assertion.is_some() || takes_keys(&bundle, &profile, &request.action.action),
            "INV-4: a vote by key where profile or risk take passkeys alone"
        );
        assert_eq!((statement.uses, statement.max_ttl), (f.uses, f.max_ttl));
        assert_eq!(statement.access_request_id, f.access_request);
        let votes = self
            .votes
            .get(&f.access_request)
            .cloned()
            .unwrap_or_default();
        assert!(
            !votes.iter().any(|v| v.voter == f.voter
                && v.verdict == f.verdict
                && v.profile == f.profile
                && v.facts == f.facts
                && entry.at < v.not_after
                && self.keys.counted(v).is_some()
                && self.hand(v).is_some()),
            "one person voted twice"
        );
        assert!(
            self.hand(f).is_some(),
            "a vote by a key that does not count"
        );
        assert!(
            votes.iter().all(|v| v.verdict == Verdict::Approve),
            "a vote after a denial"
        );
        let votes = self.votes.entry(f.access_request).or_default();
        votes.push(f.clone());
        if f.verdict == Verdict::Deny {
            self.close_open_request(&f.access_request);
        }
    }

    /// Laws 1, 3, 4, 5 and 7, at mint.
    fn issued(&mut self, f: &TokenIssued, entry: &Entry, journal: &JournalReader) {
        let task = self.tasks[&f.task].clone();
        assert!(
            !self.ended.contains(&f.task),
            "INV-7: a mint in an ended task"
        );
        assert!(
            !self.suspended.contains(&f.agent),
            "INV-7: a mint for a suspended agent"
        );
        assert!(entry.at < task.deadline, "INV-7: a mint after the deadline");
        assert!(
            self.lease(&f.task).is_none_or(|until| entry.at < until),
            "INV-7: a mint after a missed heartbeat"
        );
        assert!(
            self.idempotency_keys
                .insert((f.task, f.idempotency_key.clone())),
            "one idempotency_key, two grants"
        );
        let (version, bundle) = self.policy.clone().expect("rules in force");
        assert_eq!(
            version, f.decision.policy,
            "INV-1: decided by a bundle that is not in force"
        );
        for (name, value) in &f.decision.input.facts {
            let now = self.fact(name, entry.at);
            assert_eq!(*value, now, "INV-28: a mint on another value of {name}");
        }
        let agent = bundle.agent(&f.agent).expect("registered");
        for scope in [
            FreezeScope::All,
            FreezeScope::Agent(f.agent.clone()),
            FreezeScope::Owner(agent.owner.clone()),
            FreezeScope::Action(f.action.action.clone()),
        ] {
            assert!(
                !self.frozen.contains(&scope),
                "INV-7: a mint under the freeze of {scope}"
            );
        }
        let secret = f.secret.map(|hash| {
            let text = journal.blob(&hash).expect("readable").expect("blob");
            ActionSecret::from_blob(&text).expect("secret")
        });
        let action = f
            .action
            .reopen(secret.as_ref())
            .expect("the action is whole");
        assert_eq!(agent.spiffe_id, f.subject);
        assert!(
            agent.jkt.is_none_or(|pinned| pinned == f.cnf.jkt()),
            "a mint for another key than the pinned one"
        );
        assert_ne!(
            agent.autonomy,
            Autonomy::Advisory,
            "INV-27: a token of an advisory agent"
        );

        let mut approved = BTreeSet::new();
        if let Some(id) = f.consumed {
            assert!(
                self.consumed.insert(id),
                "INV-3: an approval consumed twice"
            );
            let request = &self.requests[&id];
            assert_eq!(
                request.action.digest == f.action.digest,
                f.secret.is_none(),
                "INV-4: another action than the requested one"
            );
            assert!(
                entry.at < request.expires_at && !self.closed.contains(&id),
                "INV-4: consumed a closed request"
            );
            self.handed_over(request, f, entry.at);
            let votes = self.votes.get(&id).cloned().unwrap_or_default();
            assert!(
                votes.iter().all(|v| v.verdict == Verdict::Approve),
                "INV-4: minted despite a denial"
            );
            // Distinct hands, with distinct keys: an unconfirmed passkey is its inviter's, and none for an action of high risk.
            type Voters = (BTreeSet<PersonId>, BTreeSet<Coordinate>);
            let mut by_profile: BTreeMap<ProfileName, Voters> = BTreeMap::new();
            let mut counted = Vec::new();
            for vote in &votes {
                let target = &self.requests[&id].action.target;
                let profile = bundle.profile_about(&vote.profile.name, target);
                let person = bundle.person(&vote.voter);
                let key = self.keys.counted(vote);
                let counts = entry.at < vote.not_after
                    && profile.as_ref().is_some_and(|p| {
                        p.digest() == vote.profile.digest
                            && (vote.assertion.is_some()
                                || takes_keys(&bundle, p, &f.action.action))
                    })
                    && vote.voter != agent.owner
                    && vote.voter != task.owner
                    && person.is_some_and(|p| {
                        p.roles.contains(&Role::Approver)
                            && profile.as_ref().is_some_and(|q| p.is_in(&q.group))
                    });
                let hand = profile.and_then(|_| self.hand(vote));
                if let (true, Some(key), Some(hand)) = (counts, key, hand) {
                    let voters = by_profile.entry(vote.profile.name.clone()).or_default();
                    voters.0.insert(hand);
                    voters.1.insert(key);
                    counted.push(vote);
                }
            }
            for (name, (people, keys)) in by_profile {
                let quorum = bundle.profile(&name).expect("profile").quorum;
                if people.len().min(keys.len()) >= usize::try_from(quorum).expect("small") {
                    approved.insert(name);
                }
            }
            // A vote that does not count is void, and with it its narrowing.
            let claims = |v: &&&VoteCast| {
                let approval = f.approval.as_ref();
                approval.is_some_and(|a| a.profiles.contains(&v.profile.name))
            };
            for vote in counted.iter().filter(claims) {
                assert!(
                    vote.max_ttl.is_some_and(|most| f.exp - f.iat <= most),
                    "INV-5: beyond a voter's narrowing"
                );
                assert!(
                    f.uses.unwrap_or(u32::MAX) <= vote.uses.unwrap_or(u32::MAX),
                    "INV-5: more uses than a voter approved"
                );
                assert!(
                    f.exp <= vote.not_after.secs(),
                    "INV-5: beyond the approval's lifetime"
                );
            }
            self.close_open_request(&id);
        }
        let claimed: BTreeSet<_> = f
            .approval
            .iter()
            .flat_map(|a| a.profiles.iter().cloned())
            .collect();
        assert!(
            claimed.is_subset(&approved),
            "INV-4: {claimed:?} claimed, {approved:?} counted"
        );
        if let Some(request) = f.consumed.map(|id| &self.requests[&id])
            && request.executor().is_some()
        {
            assert!(
                !claimed.is_empty(),
                "INV-27: executed without an approval of {:?}",
                request.required_profiles()
            );
        }
        let input = &f.decision.input;
        assert!(
            input.approvals.iter().all(|p| approved.contains(p)),
            "INV-4: the policy input has approvals that do not count"
        );
        let question = AuthzRequest::recorded(input, &agent, &action, &approved);
        assert!(
            matches!(bundle.authorize(&question), AuthzDecision::Allowed { ttl_ms, .. } if ttl_ms >= (f.exp - f.iat) * 1000),
            "INV-1: the policy does not allow it"
        );

        let ttl = f.exp - f.iat;
        assert!(
            ttl > 0 && ttl <= f.requested_ttl && ttl <= 900,
            "INV-5: ttl {ttl}"
        );
        assert!(f.exp <= task.deadline.secs(), "INV-5: beyond the task");
        assert!(
            f.exp <= f.evidence.expires_at.secs(),
            "INV-5: beyond the evidence"
        );
        assert!(
            f.decision.ttl.limits.iter().all(|b| b.seconds >= ttl),
            "INV-5: beyond its own bounds"
        );
        let rests: BTreeSet<String> = entry.read_set.iter().map(|(s, _)| s.to_string()).collect();
        for stream in [
            format!("agent:{}", f.agent),
            "policy".to_owned(),
            format!("task:{}", f.task),
            format!("trust:{}", f.subject.trust_domain()),
            format!("key:{}", f.kid),
            "freeze:all".to_owned(),
            format!("freeze:agent/{}", f.agent),
            format!("freeze:owner/{}", agent.owner),
            format!("freeze:action/{}", f.action.action),
        ] {
            assert!(
                rests.contains(&stream),
                "INV-7: the mint's read set lacks {stream}"
            );
        }
        assert!(
            f.pos < entry.index,
            "decided at a later position than its entry"
        );
        self.grants.insert(f.jti, f.clone());
    }
}

/// Whether a vote by a registered key may count under a profile on an action: by the risk that the catalogue declares today.
fn takes_keys(bundle: &PolicyBundle, profile: &StepUpProfile, action: &ActionName) -> bool {
    if action.as_str().starts_with(POLICY_NAMESPACE) {
        return profile.method == VoteMethod::Key;
    }
    let risk = bundle.action(action).and_then(|known| known.risk);
    profile.method == VoteMethod::Key
        && risk.is_some_and(|risk| match bundle.approval_limits().key_votes_below {
            Risk::Low => false,
            Risk::Medium => risk == Risk::Low,
            Risk::High => risk != Risk::High,
        })
}
