//! Simulation of a random history: each operation runs on a real broker, and a ledger keeps the acknowledged work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};

use dipylon::audit::Checkpoint;
use dipylon::broker::KeyRevocation;
use dipylon::broker::{FactOrder, RequestTokenInput, TokenReply, VoteInput};
use dipylon::journal::{CrashPoint, FaultInjection};
use dipylon_sdk::model::*;

use crate::properties::operations::{
    self, AGENTS, CONFIRMERS, FACTS, Op, POOL, PersonChange, PoolKey, RESPONDER, Registration,
    SCOPES, STEPS, VOTERS, actions, with_people,
};
use crate::support::invariants;
use crate::support::own_key::OwnKey;
use crate::support::passkey_votes::ENROL;
use crate::support::software_authenticator::{PasskeyBehaviour, SoftwareAuthenticator};
use crate::support::*;

/// Acknowledged work: none of it may ever be missing, and nothing that ended may become active again.
#[derive(Default)]
struct Ledger {
    tasks: Vec<(usize, TaskId)>,
    tokens: Vec<(TaskId, TokenId, Secret, Audience)>,
    ended: BTreeSet<TaskId>,
    /// Tokens that ended before their tasks.
    ended_tokens: BTreeSet<TokenId>,
    requests: Vec<AccessRequestId>,
    votes: usize,
    enrolled: usize,
    /// Passkeys whose revocation was acknowledged.
    revoked: BTreeSet<Thumbprint>,
    uses: BTreeMap<TokenId, UseId>,
    noted: Option<Checkpoint>,
}

type ArmedFault = Arc<Mutex<Option<(CrashPoint, u8)>>>;

/// The same for all histories, so that a bundle is parsed once.
static ENVIRONMENT: LazyLock<Arc<TestEnvironment>> =
    LazyLock::new(|| Arc::new(operations::environment()));

/// Each key of the pool, and its negative.
static KEYS: LazyLock<Vec<[OwnKey; 2]>> = LazyLock::new(|| {
    let of_bundle = [VOTERS[0], VOTERS[1], VOTERS[2], "idp"];
    let registered = of_bundle.map(|name| ENVIRONMENT.own_key(name));
    let spare = std::iter::repeat_with(OwnKey::generate);
    let all = registered.into_iter().chain(spare).take(POOL);
    all.map(|key| [key.negated(), key])
        .map(|[negated, key]| [key, negated])
        .collect()
});

fn key(of: PoolKey) -> &'static OwnKey {
    &KEYS[of.n][usize::from(of.is_negated)]
}

pub struct Simulation {
    broker: Option<TestBroker>,
    /// The agents, then each with a key of the pool.
    agents: Vec<TestAgent>,
    /// Which of [`AGENTS`] each is.
    kinds: Vec<usize>,
    /// The policy variant and the registrations in force.
    rules: usize,
    people: [Registration; 3],
    /// The passkeys of each voter, oldest first, revoked ones included.
    passkeys: [Vec<SoftwareAuthenticator>; 3],
    ledger: Ledger,
    arm: ArmedFault,
    faults: FaultInjection,
    acked_wal: u64,
    cut: u8,
}

impl Simulation {
    pub async fn new() -> Self {
        let arm: ArmedFault = Arc::default();
        let armed = arm.clone();
        let stop_at = move |step: CrashPoint| {
            let mut armed = armed.lock().expect("arm");
            match &mut *armed {
                Some((at, after)) if *at == step && *after == 0 => {
                    *armed = None;
                    true
                }
                Some((at, after)) if *at == step => {
                    *after -= 1;
                    false
                }
                _ => false,
            }
        };
        let faults = FaultInjection {
            crash_hook: Some(Arc::new(stop_at)),
            keep_wal: true,
            ..FaultInjection::default()
        };
        let broker = TestBroker::start_in(ENVIRONMENT.clone(), faults.clone()).await;
        let agents = AGENTS.iter().map(|id| broker.agent(id)).collect();
        let acked_wal = broker.wal_len();
        Self {
            broker: Some(broker),
            agents,
            kinds: (0..AGENTS.len()).collect(),
            rules: 0,
            people: [0, 1, 2].map(|n| Registration {
                is_registered: true,
                is_approver: true,
                key: PoolKey {
                    n,
                    is_negated: false,
                },
            }),
            passkeys: [const { Vec::new() }; 3],
            ledger: Ledger::default(),
            arm,
            faults,
            acked_wal,
            cut: 0,
        }
    }

    pub fn b(&self) -> &TestBroker {
        self.broker.as_ref().expect("a broker runs")
    }

    pub async fn step(&mut self, op: &Op) {
        if let Op::StepUp {
            task,
            action,
            ttl,
            request,
            gone,
        } = op
        {
            let ask = Op::Request {
                task: *task,
                action: *action,
                ttl: *ttl,
                request: *request,
                show: true,
            };
            self.run_op(&ask).await;
            let last = self.ledger.requests.len().saturating_sub(1);
            for voter in [1, 2] {
                self.run_op(&Op::Vote {
                    request: last,
                    voter,
                    key: None,
                    approve: true,
                    max_ttl: None,
                })
                .await;
                self.run_op(&Op::PasskeyVote {
                    request: last,
                    voter,
                    approve: true,
                    max_ttl: None,
                })
                .await;
            }
            if let Some(gone) = gone {
                let (key, returning) = (self.people[2].key, gone.returning);
                let changes = match gone.is_dropped {
                    true => [PersonChange::Drop, PersonChange::Add(key)],
                    false => [PersonChange::Role(false), PersonChange::Role(true)],
                };
                for (change, returning) in changes.into_iter().zip([false, returning]) {
                    self.run_op(&Op::People {
                        voter: 2,
                        change,
                        returning,
                    })
                    .await;
                }
            }
            self.run_op(&ask).await;
        } else {
            self.run_op(op).await;
        }
    }

    async fn run_op(&mut self, op: &Op) {
        self.apply_op(op).await;
        if self.b().broker.journal().head().borrow().failed {
            self.crash().await;
        }
        self.acked_wal = self.b().wal_len();
        self.check().await;
    }

    /// Crashes the writer: acknowledged entries end before `acked_wal`; of the rest any prefix may be on the disk.
    async fn crash(&mut self) {
        let broker = self.broker.take().expect("a broker runs");
        let written = broker.wal_len();
        let beyond = written.saturating_sub(self.acked_wal);
        let keep = self.acked_wal + beyond * u64::from(self.cut) / 255;
        *self.arm.lock().expect("arm") = None;
        self.broker = Some(broker.crash(keep, self.faults.clone()).await);
    }

    async fn apply_op(&mut self, op: &Op) {
        let b = self.broker.as_ref().expect("a broker runs");
        match op {
            Op::Open { agent, request } => {
                let opened = b
                    .open_task_with(
                        &self.agents[*agent],
                        "purpose",
                        &format!("open-{request}"),
                        (request % 2 == 1).then_some(100),
                    )
                    .await;
                if let Ok(opened) = opened {
                    let task = opened.task.task;
                    if !self.ledger.tasks.iter().any(|(_, t)| *t == task) {
                        self.ledger.tasks.push((*agent, task));
                    }
                }
            }
            Op::Request {
                task,
                action,
                ttl,
                request,
                show,
            } => {
                let Some((agent, task)) = pick(&self.ledger.tasks, *task) else {
                    return;
                };
                let is_executor = self.kinds[*agent] == RESPONDER && request % 2 == 0;
                let agent = &self.agents[*agent];
                let action = &actions()[*action];
                let evidence = show.then(|| b.svid(agent));
                // the newest recommendation, for any action.
                let mut newest = self.ledger.requests.iter().rev();
                let is_recommended = |id: &&AccessRequestId| {
                    let request = b.broker.show().access_request(id);
                    request.is_some_and(|request| request.opened.executor().is_some())
                };
                let recommendation = newest.find(is_recommended).filter(|_| is_executor);
                let ask = RequestTokenInput {
                    task: *task,
                    action: action.clone(),
                    ttl: *ttl,
                    reason: None,
                    idempotency_key: IdempotencyKey::parse(&format!("r-{request}")).expect("key"),
                    wait_ms: 0,
                    evidence,
                    executor: None,
                    recommendation: recommendation.copied(),
                };
                match b.request_with(agent, ask).await {
                    Ok(TokenReply::Token(reply)) => {
                        assert!(
                            !self.ledger.ended.contains(task),
                            "INV-7: a token of an ended task"
                        );
                        let jti = reply.issued.jti;
                        assert!(
                            !self.ledger.ended_tokens.contains(&jti),
                            "INV-7: an ended token returned again"
                        );
                        assert_eq!(reply.issued.action.audience, action.audience);
                        assert_eq!(reply.issued.action.target, action.target);
                        let audience = reply.issued.action.audience.clone();
                        self.ledger.tokens.push((*task, jti, reply.token, audience));
                    }
                    Ok(TokenReply::Pending(pending)) => {
                        if !self.ledger.requests.contains(&pending.access_request) {
                            self.ledger.requests.push(pending.access_request);
                        }
                    }
                    Ok(TokenReply::Recommended(_) | TokenReply::Denied(_)) | Err(_) => {}
                }
            }
            Op::Vote {
                request,
                voter,
                key: of_pool,
                approve,
                max_ttl,
            } => {
                let Some(id) = pick(&self.ledger.requests, *request) else {
                    return;
                };
                let signer = &key(of_pool.unwrap_or(self.people[*voter].key)).key;
                let verdict = if *approve {
                    Verdict::Approve
                } else {
                    Verdict::Deny
                };
                for profile in ["one-security", "two-security"] {
                    let ask = vote_input(profile, verdict, *max_ttl);
                    if b.vote_with(signer, *id, ask).await.is_ok() {
                        self.ledger.votes += 1;
                        // Acknowledged in the middle of a step: a later crash in the same step must keep it.
                        self.acked_wal = b.wal_len();
                    }
                }
            }
            Op::PasskeyVote {
                request,
                voter,
                approve,
                max_ttl,
            } => {
                let Some(id) = pick(&self.ledger.requests, *request) else {
                    return;
                };
                let Some(key) = self.passkeys[*voter].last() else {
                    return;
                };
                let Ok(session) = b.sign_in(key).await else {
                    return;
                };
                for profile in ["one-security", "two-security"] {
                    let verdict = match approve {
                        true => Verdict::Approve,
                        false => Verdict::Deny,
                    };
                    let ask = vote_input(profile, verdict, *max_ttl);
                    if b.vote_in_session(&session, key, *id, ask).await.is_ok() {
                        self.ledger.votes += 1;
                        self.acked_wal = b.wal_len();
                    }
                }
            }
            Op::Enrol {
                voter,
                key: of_pool,
            } => {
                let Some(code) = b.try_invite(VOTERS[*voter]).await else {
                    return;
                };
                self.acked_wal = b.wal_len();
                let enrolled = match of_pool {
                    Some(of_pool) => b.enrol_key_with(&code, key(*of_pool)).await,
                    None => b.enrol_with(&code, &PasskeyBehaviour::default()).await,
                };
                if let Ok(key) = enrolled {
                    self.ledger.enrolled += 1;
                    self.passkeys[*voter].push(key);
                }
            }
            Op::Confirm { voter, by } => {
                let person = PersonId::parse(VOTERS[*voter]).expect("id");
                let enrolled = b.broker.show().person(&person);
                let Some(newest) = enrolled.passkeys.last() else {
                    return;
                };
                let by = CONFIRMERS[*by];
                let confirmed = b.confirm(by, VOTERS[*voter], newest.record.key).await;
                assert!(confirmed.is_err() || ![VOTERS[*voter], "olga"].contains(&by));
            }
            Op::RevokeKeys {
                voter,
                all,
                compromised,
            } => {
                let person = PersonId::parse(VOTERS[*voter]).expect("id");
                let newest = b.broker.show().person(&person);
                let newest = newest.passkeys.last().map(|p| p.record.key);
                if newest.is_none() && !all {
                    return;
                }
                let call = b.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
                let only = newest.filter(|_| !all);
                let revocation = KeyRevocation {
                    only,
                    compromised: *compromised,
                };
                let revoked = b
                    .broker
                    .revoke_approver_keys(&call, person, revocation)
                    .await;
                if revoked.is_ok() {
                    self.ledger.revoked.extend(only);
                }
            }
            Op::CopiedPasskey { voter } => {
                let Some(passkey) = self.passkeys[*voter].last() else {
                    return;
                };
                let begun = b.broker.begin_sign_in();
                let behaviour = PasskeyBehaviour {
                    sign_count: Some(1),
                    ..PasskeyBehaviour::default()
                };
                let assertion = passkey.get_as(&begun.challenge, CONSOLE, &behaviour);
                let _answer = b.broker.finish_sign_in(ENROL, assertion).await;
            }
            Op::OpenWith {
                agent,
                key: of_pool,
            } => {
                let with_key = TestAgent {
                    key: Arc::new(OwnKey::of(&key(*of_pool).pkcs8).key),
                    ..self.agents[*agent].clone()
                };
                let name = format!("with-{}-{}", of_pool.n, of_pool.is_negated);
                if let Ok(opened) = b.open_task_with(&with_key, "purpose", &name, None).await {
                    let task = opened.task.task;
                    if !self.ledger.tasks.iter().any(|(_, t)| *t == task) {
                        self.ledger.tasks.push((self.agents.len(), task));
                        self.agents.push(with_key);
                        self.kinds.push(*agent);
                    }
                }
            }
            Op::People {
                voter,
                change,
                returning,
            } => {
                let mut people = self.people;
                people[*voter] = people[*voter].changed(*change);
                let files = bundle(self.rules, &people);
                let returning: &[&str] = match returning {
                    true => &[VOTERS[*voter]],
                    false => &[],
                };
                if b.apply_returning(files, returning).await.is_ok() {
                    self.people = people;
                }
            }
            Op::StepUp { .. } => unreachable!("expanded in `step`"),
            Op::Consume { token, use_id } => {
                let Some((task, jti, token, audience)) = pick(&self.ledger.tokens, *token) else {
                    return;
                };
                let validator = if audience.as_str() == IDP {
                    "idp"
                } else {
                    "cases"
                };
                let use_id = UseId::parse(&format!("use-{use_id}")).expect("id");
                if let Ok(consumed) = b.consume(validator, token, use_id.as_str()).await
                    && consumed.outcome == UseOutcome::Spent
                {
                    assert!(
                        !self.ledger.ended.contains(task),
                        "INV-7: a use in an ended task"
                    );
                    let first = self
                        .ledger
                        .uses
                        .entry(*jti)
                        .or_insert_with(|| use_id.clone());
                    assert_eq!(*first, use_id, "INV-3: two uses of one");
                }
            }
            Op::End { task } => {
                let Some((agent, task)) = pick(&self.ledger.tasks, *task) else {
                    return;
                };
                if b.complete_task(&self.agents[*agent], *task).await.is_ok() {
                    self.ledger.ended.insert(*task);
                }
            }
            Op::Cancel { request } => {
                let Some(id) = pick(&self.ledger.requests, *request) else {
                    return;
                };
                let Some(view) = b.broker.show().access_request(id) else {
                    return;
                };
                let by = view.opened.by_agent().expect("an agent's");
                let agent = AGENTS
                    .iter()
                    .position(|a| *a == by.agent.as_str())
                    .expect("known");
                let call = b.call(
                    "dipylon.v1.TaskService/CancelAccessRequest",
                    &self.agents[agent].key,
                    None,
                    None,
                );
                let _answer = b.broker.cancel_access_request(&call, by.task, *id).await;
            }
            Op::Suspend { agent } => {
                if b.suspend(AGENTS[*agent]).await.is_ok() {
                    let theirs = self
                        .ledger
                        .tasks
                        .iter()
                        .filter(|(a, _)| self.kinds[*a] == *agent)
                        .map(|(_, t)| *t);
                    self.ledger.ended.extend(theirs);
                }
            }
            Op::Resume { agent } => {
                let _answer = b.resume(AGENTS[*agent]).await;
            }
            Op::Freeze { scope } => {
                if b.freeze(SCOPES[*scope]).await.is_ok() {
                    let whose = |agent: usize| match *scope {
                        0 => true,
                        1 | 2 => self.kinds[agent] == 0,
                        3 => self.kinds[agent] == 1 || self.kinds[agent] == RESPONDER,
                        _ => false,
                    };
                    let tasks = self.ledger.tasks.iter().filter(|(agent, _)| whose(*agent));
                    let tasks: Vec<_> = tasks.map(|(_, task)| *task).collect();
                    self.ledger.ended.extend(tasks);
                    if *scope == 4 {
                        let of_action = self.ledger.tokens.iter().filter(|t| t.3.as_str() == IDP);
                        let disabling = |jti: &&TokenId| {
                            let grant = b.broker.show().grant(jti).expect("granted");
                            grant.issued.action.action.as_str() == "account.disable"
                        };
                        let ended_tokens: Vec<_> =
                            of_action.map(|t| &t.1).filter(disabling).copied().collect();
                        self.ledger.ended_tokens.extend(ended_tokens);
                    }
                }
            }
            Op::Unfreeze { scope } => {
                let _answer = b.unfreeze(SCOPES[*scope]).await;
            }
            Op::Fact {
                fact,
                value,
                seconds,
            } => {
                let (name, normal) = FACTS[*fact];
                let order = FactOrder {
                    fact: FactName::parse(name).expect("fact"),
                    value: *value,
                    seconds: (*value != normal).then_some(*seconds),
                    reason: None,
                };
                let call = b.person_call("dipylon.v1.GovernanceService/SetFact", "olga");
                let set = b.broker.set_fact(&call, &order).await;
                // What it disallows has ended, for good.
                if set.is_ok() && name == "lockdown" && *value {
                    let disabling = |jti: &&TokenId| {
                        let grant = b.broker.show().grant(jti).expect("granted");
                        grant.issued.action.action.as_str() == "account.disable"
                    };
                    let ended: Vec<TokenId> = self
                        .ledger
                        .tokens
                        .iter()
                        .map(|token| &token.1)
                        .filter(disabling)
                        .copied()
                        .collect();
                    self.ledger.ended_tokens.extend(ended);
                }
            }
            Op::Revoke { token } => {
                if let Some((_, jti, ..)) = pick(&self.ledger.tokens, *token)
                    && b.revoke(*jti).await.is_ok()
                {
                    self.ledger.ended_tokens.insert(*jti);
                }
            }
            Op::KeepAlive { task } => {
                if let Some((agent, task)) = pick(&self.ledger.tasks, *task) {
                    let _answer = b.keep_alive(&self.agents[*agent], *task).await;
                }
            }
            Op::Rules { which } => {
                if b.apply_policy(bundle(*which, &self.people)).await.is_ok() {
                    self.rules = *which;
                }
            }
            Op::Advance { ms } => b.manual_clock.advance_millis(*ms),
            Op::Upkeep => {
                let _answer = b.broker.maintenance_tick().await;
            }
            Op::Crash { step, after, cut } => {
                *self.arm.lock().expect("arm") = Some((STEPS[*step], *after));
                self.cut = *cut;
            }
            Op::Restart => {
                *self.arm.lock().expect("arm") = None;
                let broker = self.broker.take().expect("a broker runs");
                let before = (
                    broker.broker.show().position(),
                    broker.broker.show().canonical_snapshot(),
                );
                let broker = broker.restart(self.faults.clone()).await;
                if broker.broker.show().position() == before.0 {
                    assert_eq!(
                        broker.broker.show().canonical_snapshot(),
                        before.1,
                        "INV-9: replay gives the same state"
                    );
                }
                self.broker = Some(broker);
            }
        }
    }

    async fn check(&mut self) {
        let b = self.b();
        let found = invariants::check_against(&b.dir, self.ledger.noted);
        for (task, jti, token, audience) in &self.ledger.tokens {
            assert!(
                found.tokens.contains(jti),
                "INV-2 and INV-8: an issued token has no grant in the journal"
            );
            let validator = if audience.as_str() == IDP {
                "idp"
            } else {
                "cases"
            };
            if self.ledger.ended.contains(task) || self.ledger.ended_tokens.contains(jti) {
                assert!(
                    !b.introspect(validator, token).await,
                    "INV-7: an ended token is active"
                );
            }
        }
        for (_, task) in &self.ledger.tasks {
            assert!(
                found.tasks.contains(task),
                "INV-8: an acknowledged task is missing"
            );
        }
        for task in &self.ledger.ended {
            assert!(
                found.ended.contains(task),
                "INV-8: an acknowledged end is missing"
            );
        }
        for (jti, use_id) in &self.ledger.uses {
            assert!(
                found.uses[jti].iter().any(|(_, u)| u == use_id),
                "INV-8: an acknowledged use is missing"
            );
        }
        assert!(
            found.votes >= self.ledger.votes,
            "INV-8: an acknowledged vote is missing"
        );
        assert!(
            found.enrolled >= self.ledger.enrolled && self.ledger.revoked.is_subset(&found.revoked),
            "INV-8: an acknowledged enrolment or revocation is missing"
        );
        self.ledger.noted = Some(found.head);
    }
}

fn bundle(rules: usize, people: &[Registration; 3]) -> BTreeMap<String, String> {
    with_people(&ENVIRONMENT, rules, people, |of, pool| key(pool).row(of))
}

fn vote_input(profile: &str, verdict: Verdict, max_ttl: Option<i64>) -> VoteInput {
    VoteInput {
        profile: ProfileName::parse(profile).expect("profile"),
        verdict,
        narrowing: Narrowing {
            max_ttl,
            max_uses: None,
        },
        comment: None,
        policy: None,
        facts: None,
    }
}

fn pick<T>(from: &[T], n: usize) -> Option<&T> {
    if from.is_empty() {
        None
    } else {
        from.get(n % from.len())
    }
}
