//! The rules of entries: what each kind advances, what its decision must have read, and which counts it claims.
//!
//! One exhaustive function for the round that drafts an append, the writer before it writes, every start, and `audit verify`. The
//! transition an entry makes is checked beside it, in [`super::transitions`]. The table in `docs/invariants.md` is made from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{State, transitions};
use crate::journal::IllegalEntry;
use crate::model::*;

/// What one entry advances, rests on and claims.
#[derive(Debug, Default)]
pub(super) struct EntryRule {
    /// The streams it advances: exactly these.
    pub(super) advances: Vec<Stream>,
    /// The streams its decision has read, at least.
    pub(super) reads: Vec<Needed>,
    /// The counts it adds to, with their ceilings: exactly these.
    pub(super) claims: Vec<Claim>,
}

/// A stream that a decision must have read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Needed {
    /// This one.
    Stream(Stream),
    /// The stream of a person, or the one of all credentials.
    Keys(PersonId),
}

/// Tasks of one agent that may be open at once.
pub const OPEN_TASKS_MAX: u64 = 1_000;
/// Most streams that an entry rests on, beside those it advances.
pub(super) const READ_SET_MAX: usize = 80;

/// The rule of an event in a state.
pub(super) fn rule(event: &Event, state: &State) -> Result<EntryRule, IllegalEntry> {
    let mut rule = EntryRule::default();
    fill(&mut rule, event, state).map_err(|why| illegal(event, why))?;
    Ok(rule)
}

/// Checks an entry against the state before it: what it advances, rests on and claims, and the transition it makes.
pub(super) fn check(entry: &Entry, state: &State) -> Result<(), IllegalEntry> {
    let event = &entry.event;
    let rule = rule(event, state)?;
    let fail = |why: String| Err(illegal(event, why));
    let is_advanced = |stream: &Stream| entry.write_set.iter().any(|(s, _)| s == stream);
    let is_read = |stream: &Stream| entry.read_set.iter().any(|(s, _)| s == stream);
    if let Some(missing) = rule.advances.iter().find(|stream| !is_advanced(stream)) {
        return fail(format!("it must advance {missing}"));
    }
    if let Some((extra, _)) = entry
        .write_set
        .iter()
        .find(|(stream, _)| !rule.advances.contains(stream))
    {
        return fail(format!("it must not advance {extra}"));
    }
    for (n, (stream, _)) in entry.write_set.iter().enumerate() {
        if entry.write_set.iter().skip(n + 1).any(|(s, _)| s == stream) || is_read(stream) {
            return fail(format!("it names {stream} twice"));
        }
    }
    if entry.read_set.len() > READ_SET_MAX {
        let read = entry.read_set.len();
        return fail(format!(
            "it rests on {read} streams; at most {READ_SET_MAX} are allowed"
        ));
    }
    for needed in &rule.reads {
        let known = |stream: &Stream| is_read(stream) || is_advanced(stream);
        let (found, stream) = match needed {
            Needed::Stream(stream) => (known(stream), stream.clone()),
            Needed::Keys(person) => {
                let own = Stream::Person(person.clone());
                (known(&own) || known(&Stream::Credentials), own)
            }
        };
        if !found {
            return fail(format!("it must rest on {stream}"));
        }
    }
    if entry.claims != rule.claims {
        let (got, expected) = (&entry.claims, &rule.claims);
        return fail(format!("expected the claims {expected:?}, got {got:?}"));
    }
    transitions::check(entry, state).map_err(|why| illegal(event, why))
}

pub(super) fn illegal(event: &Event, why: impl Into<String>) -> IllegalEntry {
    IllegalEntry {
        kind: event.kind(),
        why: why.into(),
    }
}

/// The streams beside its own that end a task or change what ends it: its lease, its agent's suspension, the freezes that cover it
/// under the owner it was opened for and under today's, and the rules, which say who that is. A change of a task lies under one of
/// them or under its own stream.
pub(super) fn task_grounds(state: &State, opened: &TaskOpened) -> Vec<Stream> {
    let agent = &opened.agent;
    let freeze = Stream::Freeze;
    let mut grounds = vec![
        Stream::Policy,
        Stream::Agent(agent.clone()),
        freeze(FreezeScope::All),
        freeze(FreezeScope::Agent(agent.clone())),
        freeze(FreezeScope::Owner(opened.owner.clone())),
    ];
    if opened.heartbeat_seconds.is_some() {
        grounds.push(Stream::Lease(opened.task));
    }
    if let Some(owner) = state
        .owner_now(agent)
        .filter(|owner| *owner != opened.owner)
    {
        grounds.push(freeze(FreezeScope::Owner(owner)));
    }
    grounds
}

/// The same for an access request: what ends its task, and the freeze of its action.
pub(super) fn request_grounds(state: &State, opened: &AccessRequestOpened) -> Vec<Stream> {
    match &opened.requester {
        AccessRequester::Agent(by) => {
            let mut grounds = action_grounds(state, &by.task, &opened.action.action);
            if let Some(executor) = &by.executor {
                let more = executor_grounds(state, executor);
                let more = more.into_iter().filter(|stream| !grounds.contains(stream));
                let more: Vec<Stream> = more.collect();
                grounds.extend(more);
            }
            grounds
        }
        // The bundle that it would replace, or the fact that it would set, and the proposer's key.
        AccessRequester::Person(by) => {
            let grounds = [Stream::Policy, Stream::Person(by.person.clone())];
            let fact = by.proposed.fact().cloned().map(Stream::Fact);
            grounds.into_iter().chain(fact).collect()
        }
    }
}

/// The streams by which an executor is stopped: that closes what is recommended to it, and nothing more is.
fn executor_grounds(state: &State, executor: &Executor) -> BTreeSet<Stream> {
    let owners = [
        Some(executor.owner.clone()),
        state.owner_now(&executor.agent),
    ];
    let owners = owners.into_iter().flatten().map(FreezeScope::Owner);
    let scopes = owners.chain([FreezeScope::Agent(executor.agent.clone())]);
    let freezes = scopes.map(Stream::Freeze);
    freezes
        .chain([Stream::Agent(executor.agent.clone())])
        .collect()
}

/// The same for a grant, with the keys that its evidence rests on.
pub(super) fn grant_grounds(state: &State, issued: &TokenIssued) -> Vec<Stream> {
    let mut grounds = action_grounds(state, &issued.task, &issued.action.action);
    grounds.push(Stream::Trust(issued.subject.trust_domain()));
    grounds
}

fn action_grounds(state: &State, task: &TaskId, action: &ActionName) -> Vec<Stream> {
    let mut grounds = vec![
        Stream::Task(*task),
        Stream::Freeze(FreezeScope::Action(action.clone())),
    ];
    if let Some(task) = state.tasks.get(task) {
        grounds.extend(task_grounds(state, &task.opened));
    }
    grounds
}

/// The streams that an invitation lies under: its own, its person's, by which a revocation withdraws it, and the rules, which end it
/// with the registration or a role.
pub(super) fn invitation_streams(person: &PersonId) -> [Stream; 3] {
    [
        Stream::Policy,
        Stream::Person(person.clone()),
        Stream::Invitation(person.clone()),
    ]
}

/// The part of a rule that depends on the kind.
fn fill(rule: &mut EntryRule, event: &Event, state: &State) -> Result<(), String> {
    match event {
        Event::EpochStarted(_) | Event::RefusalsCounted(_) => {}
        Event::TrustBundleChanged(f) => rule.advance(Stream::Trust(f.domain.clone())),
        Event::KeyPublished(f) => rule.advance(Stream::Key(f.kid.clone())),
        Event::PolicyApplied(f) => {
            rule.advance(Stream::Policy);
            if state.rules().is_some() {
                // The keys of a bundle are compared with those of all people.
                rule.read(Stream::Credentials);
                rule.author(f.by.as_ref());
            }
            if let Some(id) = &f.proposal {
                rule.access_request(state, id)?;
                rule.advance(Stream::AccessRequest(*id));
                rule.voters(state, id, |_| true);
            }
        }
        Event::AgentSuspended(f) => {
            rule.advance(Stream::Agent(f.agent.clone()));
            rule.author(Some(&f.by));
        }
        Event::AgentResumed(f) => {
            rule.advance(Stream::Agent(f.agent.clone()));
            rule.author(Some(&f.by));
        }
        Event::Frozen(f) => {
            rule.advance(Stream::Freeze(f.scope.clone()));
            rule.author(Some(&f.by));
        }
        Event::Unfrozen(f) => {
            rule.advance(Stream::Freeze(f.scope.clone()));
            rule.author(Some(&f.by));
        }
        Event::FactSet(f) => {
            rule.advance(Stream::Fact(f.fact.clone()));
            rule.author(Some(&f.by));
            let rules = state.rules().ok_or("no policy bundle is in force")?;
            let declared = rules.bundle.fact(&f.fact);
            if declared.is_none_or(|declared| declared.safe != f.value) {
                // Whether others have to agree.
                rule.read(Stream::Credentials);
            }
            if let Some(id) = &f.proposal {
                rule.access_request(state, id)?;
                rule.advance(Stream::AccessRequest(*id));
                rule.voters(state, id, |_| true);
            }
        }
        Event::TaskOpened(f) => {
            let jkt = f.binding.jkt();
            rule.advance(Stream::Task(f.task));
            rule.advance(Stream::open_task(
                f.agent.clone(),
                jkt,
                f.idempotency_key.clone(),
            ));
            rule.agent_in_force(&f.agent, &f.owner);
            rule.evidence(&f.evidence);
            // The key of a task is no person's.
            rule.read(Stream::EnrolledKey(f.key_identity));
            rule.claim(Counter::OpenTasks(f.agent.clone()), OPEN_TASKS_MAX);
        }
        Event::LeasesExtended(f) => {
            for (id, _) in &f.leases {
                rule.advance(Stream::Lease(*id));
                rule.task(state, id)?;
            }
        }
        Event::TaskEnded(f) => {
            for id in &f.tasks {
                rule.advance(Stream::Task(*id));
                rule.task(state, id)?;
            }
            rule.author(f.by.as_ref());
        }
        Event::RequestDenied(f) => {
            rule.advance(Stream::TokenRequest(f.task, f.idempotency_key.clone()));
            rule.task(state, &f.task)?;
            rule.evidence(&f.evidence);
            rule.facts(f.decision.as_ref());
            let task = state.tasks.get(&f.task).ok_or("no such task")?;
            let of = (&task.opened.agent, &f.action.action);
            rule.counts(state, event, of, f.decision.as_ref());
            if let Some(id) = &f.waiting {
                rule.access_request(state, id)?;
                rule.read(Stream::AccessRequest(*id));
            }
        }
        Event::AccessRequestOpened(f) => {
            rule.advance(Stream::AccessRequest(f.access_request));
            // Whether a quorum can be reached.
            rule.read(Stream::Credentials);
            let rules = state.rules().ok_or("no policy bundle is in force")?;
            let limits = rules.bundle.approval_limits();
            match &f.requester {
                AccessRequester::Agent(by) => {
                    rule.advance(Stream::task_action(
                        by.task,
                        &f.action.action,
                        &f.action.target,
                    ));
                    rule.advance(Stream::TokenRequest(by.task, by.idempotency_key.clone()));
                    rule.task(state, &by.task)?;
                    rule.evidence(&by.evidence);
                    rule.facts(Some(&by.decision));
                    let of = (&by.agent, &f.action.action);
                    rule.counts(state, event, of, Some(&by.decision));
                    rule.action(&f.action.action);
                    if let Some(executor) = &by.executor {
                        for stream in executor_grounds(state, executor) {
                            rule.read(stream);
                        }
                    }
                    // The back-off after denials.
                    rule.read(Stream::Denials(by.agent.clone()));
                    rule.claim(
                        Counter::PendingRequests(by.agent.clone()),
                        limits.pending_per_agent.into(),
                    );
                    rule.claim(
                        Counter::OwnerPendingRequests(by.owner.clone()),
                        limits.pending_per_owner.into(),
                    );
                    // 0: no limit.
                    if limits.opens_per_minute > 0 {
                        let opened = Counter::Openings(by.agent.clone());
                        rule.claim(opened, limits.opens_per_minute.into());
                    }
                }
                AccessRequester::Person(by) => {
                    rule.advance(Stream::Proposals(by.person.clone()));
                    rule.author(Some(&by.person));
                }
            }
        }
        Event::AccessRequestReassessed(f) => {
            rule.access_request(state, &f.access_request)?;
            rule.advance(Stream::AccessRequest(f.access_request));
            rule.facts(Some(&f.decision));
        }
        Event::VoteCast(f) => {
            let opened = rule.access_request(state, &f.access_request)?;
            rule.advance(Stream::AccessRequest(f.access_request));
            rule.author(Some(&f.voter));
            if let (Verdict::Deny, Some(agent)) = (f.verdict, opened.agent()) {
                rule.advance(Stream::Denials(agent.clone()));
            }
        }
        Event::VoteRefused(f) => rule.advance(Stream::refused_vote(
            f.access_request,
            f.voter.clone(),
            &f.reason,
        )),
        Event::AccessRequestClosed(f) => {
            let opened = rule.access_request(state, &f.access_request)?;
            rule.advance(Stream::AccessRequest(f.access_request));
            if let (true, Some(agent)) = (f.voting_started, opened.agent()) {
                rule.advance(Stream::Denials(agent.clone()));
            }
        }
        Event::ApproverInvited(f) => {
            rule.advance(Stream::Invitation(f.person.clone()));
            // A revocation that came first withdraws the invitation too.
            rule.read(Stream::Person(f.person.clone()));
            rule.author(Some(&f.by));
        }
        Event::ApproverEnrolled(f) => {
            rule.advance(Stream::Person(f.person.clone()));
            rule.advance(Stream::Invitation(f.person.clone()));
            rule.advance(Stream::Credentials);
            rule.advance(Stream::EnrolledKey(f.passkey.key_identity));
            rule.advance(Stream::Credential(f.passkey.credential.as_str().into()));
            rule.read(Stream::Policy);
            // The operator who gave the invitation gives it until it is used.
            let invitation = state.credentials.invitation(&f.person);
            rule.author(invitation.as_ref().map(|invitation| &invitation.by));
        }
        Event::PasskeyConfirmed(f) => {
            rule.advance(Stream::Person(f.person.clone()));
            // The host confirms where no person could: that rests on the keys of all people.
            rule.advance(Stream::Credentials);
            rule.read(Stream::Policy);
            match &f.by {
                Confirmer::Person { id, .. } => rule.author(Some(id)),
                Confirmer::Host { .. } => {}
            }
        }
        Event::ApproverKeysRevoked(f) => {
            rule.advance(Stream::Person(f.person.clone()));
            rule.advance(Stream::Credentials);
            // What falls with a stolen key is of any number of people: whoever reads of people reads the rules, too.
            if f.cause != RevokeCause::Operator {
                rule.advance(Stream::Policy);
            }
            rule.author(f.by.as_ref());
        }
        Event::TokenIssued(f) => {
            rule.advance(Stream::TokenRequest(f.task, f.idempotency_key.clone()));
            rule.advance(Stream::Token(f.jti));
            rule.task(state, &f.task)?;
            rule.evidence(&f.evidence);
            rule.facts(Some(&f.decision));
            let of = (&f.agent, &f.action.action);
            rule.counts(state, event, of, Some(&f.decision));
            rule.recommender_counts(state, event, f);
            rule.action(&f.action.action);
            rule.read(Stream::Key(f.kid.clone()));
            // The key of a task is no person's, also after its opening.
            rule.task_key(state, &f.task)?;
            if let Some(id) = &f.consumed {
                // A recommendation rests on what its own agent rests on, too.
                rule.access_request(state, id)?;
                rule.advance(Stream::AccessRequest(*id));
                let profiles = f.approval.as_ref().map(|approval| &approval.profiles);
                rule.voters(state, id, |name| {
                    profiles.is_some_and(|all| all.contains(name))
                });
            }
        }
        Event::TokenReissued(f) => {
            let issued = rule.grant(state, &f.jti)?;
            rule.advance(Stream::Token(f.jti));
            rule.read(Stream::Key(f.kid.clone()));
            rule.task_key(state, &issued.task)?;
            // The votes that it consumed stay counted.
            if let Some(id) = issued.consumed {
                rule.read(Stream::AccessRequest(id));
            }
        }
        Event::TokenConsumed(f) => {
            rule.grant(state, &f.jti)?;
            rule.advance(Stream::Token(f.jti));
        }
        Event::GrantsEnded(f) => {
            for jti in &f.jtis {
                rule.advance(Stream::Token(*jti));
            }
            rule.author(f.by.as_ref());
        }
    }
    Ok(())
}

impl EntryRule {
    fn advance(&mut self, stream: Stream) {
        self.advances.push(stream);
    }

    fn read(&mut self, stream: Stream) {
        let needed = Needed::Stream(stream);
        if !self.reads.contains(&needed) {
            self.reads.push(needed);
        }
    }

    fn claim(&mut self, counter: Counter, ceiling: u64) {
        self.claims.push(Claim { counter, ceiling });
    }

    /// An order rests on the registration and the living keys of its author.
    fn author(&mut self, by: Option<&PersonId>) {
        if let Some(by) = by {
            self.read(Stream::Policy);
            self.read(Stream::Person(by.clone()));
        }
    }

    fn evidence(&mut self, facts: &EvidenceFacts) {
        self.read(Stream::Trust(facts.subject.trust_domain()));
    }

    /// A decision rests on the named facts that its rules read.
    fn facts(&mut self, decision: Option<&DecisionRecord>) {
        let facts = decision
            .iter()
            .flat_map(|decision| decision.input.facts.keys());
        for name in facts {
            self.read(Stream::Fact(name.clone()));
        }
    }

    /// A decision rests on the counts that its rules read, and moves those that its entry raises.
    fn counts(
        &mut self,
        state: &State,
        event: &Event,
        (agent, action): (&AgentId, &ActionName),
        decision: Option<&DecisionRecord>,
    ) {
        let names = decision
            .iter()
            .flat_map(|decision| decision.input.counts.keys());
        // One that is not declared is refused with the transition.
        for (declared, key) in names.filter_map(|name| state.count_key(name, agent, action)) {
            let is_raised = state.raises(event, &declared, &key);
            let stream = Stream::Count(Box::new(key));
            match is_raised {
                true => self.advance(stream),
                false => self.read(stream),
            }
        }
    }

    /// The same of the agent that recommended what a token is issued for: the token may raise a count of both.
    fn recommender_counts(&mut self, state: &State, event: &Event, f: &TokenIssued) {
        let request = f.consumed.and_then(|id| state.requests.get(&id));
        let recommender = request.as_ref().and_then(|request| request.opened.agent());
        for name in f.decision.input.recommender_counts.keys() {
            let of = recommender.and_then(|agent| state.count_key(name, agent, &f.action.action));
            let Some((declared, key)) = of else {
                continue;
            };
            let is_raised = state.raises(event, &declared, &key);
            let stream = Stream::Count(Box::new(key));
            if is_raised && !self.advances.contains(&stream) {
                self.advance(stream);
            } else {
                self.read(stream);
            }
        }
    }

    fn action(&mut self, action: &ActionName) {
        self.read(Stream::Freeze(FreezeScope::Action(action.clone())));
    }

    /// What a decision about an agent rests on before it has a task.
    fn agent_in_force(&mut self, agent: &AgentId, owner: &PersonId) {
        self.read(Stream::Policy);
        self.read(Stream::Agent(agent.clone()));
        for scope in [
            FreezeScope::All,
            FreezeScope::Agent(agent.clone()),
            FreezeScope::Owner(owner.clone()),
        ] {
            self.read(Stream::Freeze(scope));
        }
    }

    fn task(&mut self, state: &State, id: &TaskId) -> Result<(), String> {
        let task = state.tasks.get(id).ok_or_else(|| format!("no task {id}"))?;
        self.read(Stream::Task(*id));
        for stream in task_grounds(state, &task.opened) {
            self.read(stream);
        }
        Ok(())
    }

    /// The key of a task is no person's, as long as it runs.
    fn task_key(&mut self, state: &State, id: &TaskId) -> Result<(), String> {
        let task = state.tasks.get(id).ok_or_else(|| format!("no task {id}"))?;
        self.read(Stream::EnrolledKey(task.opened.key_identity));
        Ok(())
    }

    fn access_request(
        &mut self,
        state: &State,
        id: &AccessRequestId,
    ) -> Result<Arc<AccessRequestOpened>, String> {
        let request = state.requests.get(id);
        let request = request.ok_or_else(|| format!("no access request {id}"))?;
        for stream in request_grounds(state, &request.opened) {
            self.read(stream);
        }
        Ok(request.opened.clone())
    }

    fn grant(&mut self, state: &State, jti: &TokenId) -> Result<Arc<TokenIssued>, String> {
        let grant = state.grants.get(jti);
        let grant = grant.ok_or_else(|| format!("no token {jti}"))?;
        for stream in grant_grounds(state, &grant.issued) {
            self.read(stream);
        }
        Ok(grant.issued.clone())
    }

    /// The people whose votes an approval counts may have more votes than it needed: their keys are all read.
    fn voters(
        &mut self,
        state: &State,
        id: &AccessRequestId,
        counts_for: impl Fn(&ProfileName) -> bool,
    ) {
        let Some(request) = state.requests.get(id) else {
            return;
        };
        for vote in &request.votes {
            if vote.cast.verdict == Verdict::Approve && counts_for(&vote.cast.profile.name) {
                self.reads.push(Needed::Keys(vote.cast.voter.clone()));
            }
        }
    }
}
