use std::sync::Arc;
use std::time::Duration;

use super::{ATTEMPTS, Hall, PENDING_MAX, Presented, REFUSALS_PER_MINUTE, Refusal};
use crate::approve::{self, ApproveError, Approved, Decision, Denied, Order, Pending, votes};
use crate::journal::{Append, AppendError, Blob};
use crate::mint::Place;
use crate::model::*;
use crate::rules::{ActionProblem, InForce};
use crate::state::{AccessRequest, AccessStatus, At, Fixed, Grant, Task};
use crate::verify::{self, Proven, Verified, VerifyError};

/// A parsed `RequestToken`.
#[derive(Debug)]
pub struct TokenAsk {
    /// In which task.
    pub task: TaskId,
    /// What for.
    pub action: Action,
    /// Seconds of life asked for.
    pub ttl: i64,
    /// Why, in the agent's words.
    pub reason: Option<Prose>,
    /// The client's idempotency key.
    pub request_id: RequestId,
    /// Milliseconds to wait for people.
    pub wait_ms: u64,
    /// Evidence, shown again.
    pub evidence: Option<Evidence>,
}

/// Gate 2's answer, for the agent.
#[derive(Debug)]
pub enum TokenReply {
    /// A token.
    Token(Box<TokenGiven>),
    /// People are asked.
    Pending(Box<PendingReply>),
    /// No.
    Denied(Box<DeniedReply>),
}

/// A token and how it came about.
#[derive(Debug)]
pub struct TokenGiven {
    /// The JWT.
    pub token: Secret,
    /// The grant.
    pub issued: Arc<TokenIssued>,
    /// Openings of its commitments.
    pub openings: Option<ActionSecret>,
    /// Signed anew for a retry.
    pub reissued: bool,
    /// Rules with their texts.
    pub rules: Vec<RuleShown>,
    /// What gate 1 saw in this call.
    pub facts: EvidenceFacts,
}

/// What is waited for.
#[derive(Debug)]
pub struct PendingReply {
    /// The access request.
    pub access_request: AccessRequestId,
    /// The answer that opened it.
    pub decision: DecisionId,
    /// Profiles, and how far they are.
    pub needs: Vec<ProfileState>,
    /// When waiting ends.
    pub expires_at: Timestamp,
    /// Rules that ask for it.
    pub rules: Vec<RuleShown>,
    /// The arithmetic so far.
    pub ttl: TtlSum,
    /// The evidence went stale while waiting.
    pub show_evidence: bool,
    /// What gate 1 saw in this call.
    pub facts: EvidenceFacts,
}

/// A no.
#[derive(Debug)]
pub struct DeniedReply {
    /// Why.
    pub why: DeniedReason,
    /// The answer, when rules gave it now.
    pub decision: Option<DecisionId>,
    /// Rules that say so.
    pub rules: Vec<RuleShown>,
    /// The access request that people or time decided.
    pub access_request: Option<AccessRequestId>,
    /// What gate 1 saw in this call.
    pub facts: EvidenceFacts,
}

/// A rule with what the security team says of it.
#[derive(Debug, Clone)]
pub struct RuleShown {
    /// Its `@id`.
    pub id: String,
    /// Its file.
    pub file: String,
    /// Its `@why`.
    pub why: String,
}

/// A profile and how far it is.
#[derive(Debug, Clone)]
pub struct ProfileState {
    /// Name and digest.
    pub profile: ProfileRef,
    /// Whose yes counts.
    pub group: String,
    /// How many people.
    pub quorum: u32,
    /// Who said yes so far and still counts.
    pub approvers: Vec<PersonId>,
}

/// Longest server-side wait, in milliseconds.
const WAIT_MAX_MS: u64 = 60_000;

/// What one round of both gates came to.
enum Round {
    Done(TokenReply),
    /// Something moved between decision and entry: nothing was done.
    Again,
}

impl Hall {
    /// Both gates; waits for people as long as asked, holding no pass while it waits.
    pub async fn request_token(&self, call: &Presented, ask: TokenAsk) -> Result<TokenReply, Refusal> {
        let now = self.clock.now();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let evidence_hash = ask.evidence.as_ref().map(verify::evidence_hash);
        let possession = self.agent_possession(call, Some(ask.action.digest()), evidence_hash, now)?;
        let task = self.own_task(call, &ask.task, &possession)?;
        if !self.runs(&task, now) {
            return Err(self.refuse(call.method, Reason::TaskEnded, "the task is over"));
        }
        let attested = match &ask.evidence {
            Some(evidence) => {
                let trust = self.views.trust();
                Arc::new(verify::attest(evidence, &trust, &self.settings.evidence_audience, now).map_err(|e| closed(&e))?)
            }
            None => self.remembered(&ask.task).ok_or_else(|| closed(&VerifyError::Stale))?,
        };
        let proven = Proven::for_task(attested, possession, &task.opened).map_err(|e| closed(&e))?;
        if ask.ttl <= 0 {
            return Err(self.refuse(call.method, Reason::InvalidTtl, "ttl must be above zero"));
        }
        let wait = Duration::from_millis(ask.wait_ms.min(WAIT_MAX_MS));
        let mut tail = self.journal.tail();
        let until = tokio::time::sleep(wait);
        tokio::pin!(until);
        let mut shown: Option<PendingReply> = None;
        loop {
            tail.borrow_and_update();
            let seen = self.waited_on(&ask, shown.as_ref());
            let reply = match self.both_gates(call, &proven, &ask).await {
                Ok(reply) => reply,
                // Evidence that went stale during the wait is asked for, not refused: the wait was honest.
                Err(refusal) if refusal.reason == Reason::EvidenceStale => match shown {
                    Some(pending) => return Ok(TokenReply::Pending(Box::new(PendingReply { show_evidence: true, ..pending }))),
                    None => return Err(refusal),
                },
                Err(refusal) => return Err(refusal),
            };
            if ask.evidence.is_some() {
                self.remember(ask.task, &proven);
            }
            let pending = match reply {
                TokenReply::Pending(pending) if !wait.is_zero() => pending,
                decided => return Ok(decided),
            };
            let expires = u64::try_from(pending.expires_at.since(self.clock.now())).unwrap_or(0);
            let seen = if shown.is_none() { self.waited_on(&ask, Some(&pending)) } else { seen };
            loop {
                tokio::select! {
                    () = &mut until => return Ok(TokenReply::Pending(pending)),
                    () = tokio::time::sleep(Duration::from_millis(expires)) => break,
                    changed = tail.changed() => {
                        if changed.is_err() {
                            return Err(self.refuse(call.method, Reason::JournalUnavailable, "the journal has stopped"));
                        }
                        if self.waited_on(&ask, Some(&pending)) != seen {
                            break;
                        }
                    }
                }
            }
            shown = Some(*pending);
        }
    }

    /// The versions a waiting call must wake for: its access request, its task, its agent, the rules.
    fn waited_on(&self, ask: &TokenAsk, pending: Option<&PendingReply>) -> [Version; 4] {
        let task = self.state.task(&ask.task);
        [
            pending.and_then(|p| self.state.access_request(&p.access_request)).map_or(0, |r| r.version),
            task.as_ref().map_or(0, |t| t.version),
            task.map_or(0, |t| self.state.standing(&t.opened.agent).version),
            self.views.rules().map_or(0, |r| r.version),
        ]
    }

    /// The caller's own task; another's and none get the same answer.
    pub(super) fn own_task(&self, call: &Presented, id: &TaskId, possession: &verify::Possession) -> Result<Arc<Task>, Refusal> {
        self.state
            .task(id)
            .filter(|task| possession.is_of(&task.opened.binding).is_ok())
            .ok_or_else(|| self.refuse(call.method, Reason::NotFound, format!("no task {id} bound to this key")))
    }

    async fn both_gates(&self, call: &Presented, proven: &Proven, ask: &TokenAsk) -> Result<TokenReply, Refusal> {
        for _ in 0..ATTEMPTS {
            match self.round(call, proven, ask).await? {
                Round::Done(reply) => return Ok(reply),
                Round::Again => {}
            }
        }
        Err(self.refuse(call.method, Reason::Conflict, "what the decision rests on keeps moving"))
    }

    /// One round: gate 1, what the request id already stands for, gate 2, entry.
    async fn round(&self, call: &Presented, proven: &Proven, ask: &TokenAsk) -> Result<Round, Refusal> {
        let now = self.clock.now();
        // Taken before anything is read: what is decided below has folded at least this much.
        let position = self.state.position();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let task = self.state.task(&ask.task).filter(|t| self.runs(t, now));
        let task = task.ok_or_else(|| self.refuse(call.method, Reason::TaskEnded, "the task is over"))?;
        let rules = self.views.rules().ok_or_else(|| closed(&VerifyError::NoRules))?;
        let standing = self.standing(proven, Some(&rules), Some(&task));
        let verified = proven.stand(standing, now).map_err(|e| closed(&e))?;

        match self.stands_for(&ask.task, &ask.request_id, now) {
            Some(Fixed::Granted(jti)) => return self.again(call, verified, ask, &jti, &rules).await,
            Some(Fixed::Refused(id)) => return self.refused_before(call, proven, ask, &id),
            None => {}
        }
        if let Err(problem) = rules.bundle.check_action(&ask.action) {
            return Err(self.refuse_action(call, ask, &problem, proven.facts()).await);
        }
        // Before looking for one that waits: an opening that comes after this line refuses ours.
        let asks = self.state.asks(&task.opened.agent, now);
        let waiting = self.state.waiting_for(&ask.task, ask.action.digest(), now);
        self.same_question(call, ask, now)?;
        let order = Order { action: ask.action.clone(), ttl: ask.ttl };
        let id = DecisionId::from_random(self.draw());
        match approve::decide(verified, &order, waiting.as_deref(), &rules, &self.bounds, id) {
            Ok(Decision::Approved(approved)) => self.grant(call, *approved, ask, position).await,
            Ok(Decision::Pending(pending)) => match waiting {
                Some(request) => {
                    self.joined.put((ask.task, ask.request_id.clone()), request.opened.access_request);
                    Ok(Round::Done(self.pending_reply(&request, &rules, proven.facts(), now)))
                }
                None => self.open_access_request(call, *pending, ask, &task, proven, &rules, &asks).await,
            },
            Ok(Decision::Denied(denied)) => self.deny(call, denied, ask, &rules, proven.facts()).await,
            Err(ApproveError::NoTime("evidence")) => Err(closed(&VerifyError::Stale)),
            Err(ApproveError::NoTime(_)) => {
                Err(self.refuse(call.method, Reason::TaskEnded, "less than a second of the task is left"))
            }
            Err(ApproveError::RulesChanged) => Ok(Round::Again),
            Err(error @ (ApproveError::OtherAction | ApproveError::NoTask)) => {
                Err(self.refuse(call.method, Reason::Undecided, error.to_string()))
            }
        }
    }

    /// What a request id stands for: by an entry, by a time that has passed, or by what this broker remembers of joining.
    fn stands_for(&self, task: &TaskId, request_id: &RequestId, now: Timestamp) -> Option<Fixed> {
        if let Some(fixed) = self.state.fixed(task, request_id) {
            return Some(fixed);
        }
        let expired = |r: &AccessRequest| r.status == AccessStatus::Waiting && now >= r.opened.expires_at;
        if let Some(id) = self.joined.get(&(*task, request_id.clone())) {
            let joined = self.state.access_request(&id)?;
            let closed =
                matches!(joined.status, AccessStatus::Denied | AccessStatus::Closed(CloseCause::Expired)) || expired(&joined);
            return closed.then_some(Fixed::Refused(*id));
        }
        let own = self.state.requests_of(task);
        own.iter().find(|r| r.opened.request_id == *request_id && expired(r)).map(|r| Fixed::Refused(r.opened.access_request))
    }

    /// A request id that still waits for one action cannot ask for another.
    fn same_question(&self, call: &Presented, ask: &TokenAsk, now: Timestamp) -> Result<(), Refusal> {
        let other = |r: &Arc<AccessRequest>| {
            r.opened.request_id == ask.request_id && r.waits(now) && r.action.as_ref().is_some_and(|a| **a != ask.action)
        };
        if self.state.requests_of(&ask.task).iter().any(other) {
            return Err(self.refuse(call.method, Reason::RequestIdReused, "this request_id waits for another action"));
        }
        Ok(())
    }

    /// Mints. A crash before the append leaves nothing in the world; after it, a recorded grant that a retry by
    /// `request_id` finds, and that dies with its task.
    async fn grant(&self, call: &Presented, approved: Approved, ask: &TokenAsk, position: (u64, u64)) -> Result<Round, Refusal> {
        let facts = approved.verified().facts().clone();
        let rules = self.rules_shown(&approved.decision().rules);
        let reason = ask.reason.as_ref().map(|prose| Blob::new(prose.blob(self.draw())));
        let place = Place {
            jti: TokenId::from_random(self.draw()),
            position,
            request_id: ask.request_id.clone(),
            reason: reason.as_ref().map(Blob::hash),
            key_version: self.key_version(),
        };
        let minted = match self.bench.mint(approved, place, self.clock.now(), &mut || self.draw()) {
            Ok(minted) => minted,
            Err(crate::mint::MintError::Late) => return Ok(Round::Again),
            Err(error) => return Err(self.refuse(call.method, Reason::Undecided, error.to_string())),
        };
        let issued = Arc::new(minted.issued);
        let append = Append {
            premises: minted.rests_on,
            not_after: Some(minted.not_after),
            blobs: minted.secret.as_ref().map(|s| Blob::new(s.blob())).into_iter().chain(reason).collect(),
            ..Append::one(Fact::TokenIssued((*issued).clone()), minted.moves)
        };
        // INVARIANT (durable before release): the token is dropped here unless its entry is in the journal.
        match self.journal.append(append).await {
            Ok(_) => Ok(Round::Done(TokenReply::Token(Box::new(TokenGiven {
                token: minted.token,
                issued,
                openings: minted.secret,
                reissued: false,
                rules,
                facts,
            })))),
            Err(AppendError::Conflict(_) | AppendError::Late) => Ok(Round::Again),
            Err(error) => Err(self.refuse_append(call.method, &error)),
        }
    }

    /// A retry: the same words get the same grant, signed anew, while it lives and would still be given. A crash after
    /// the append leaves an entry saying so, and no new token.
    async fn again(
        &self,
        call: &Presented,
        verified: Verified,
        ask: &TokenAsk,
        jti: &TokenId,
        rules: &InForce,
    ) -> Result<Round, Refusal> {
        let Some(recorded) = self.state.recorded(jti) else {
            return Err(self.refuse(call.method, Reason::TokenDead, "the grant is gone"));
        };
        let grant = Arc::clone(recorded.grant());
        let same = grant.action.as_ref().is_some_and(|a| **a == ask.action)
            && grant.issued.asked_ttl == ask.ttl
            && grant.reason.as_ref().map(Prose::as_str) == ask.reason.as_ref().map(Prose::as_str);
        if !same {
            return Err(self.refuse(
                call.method,
                Reason::RequestIdReused,
                "this request_id was granted with another action, ttl or reason",
            ));
        }
        let dead = |why: String| Err(self.refuse(call.method, Reason::TokenDead, why));
        if let Some(cause) = self.dead(&grant, verified.now()) {
            return dead(format!("the token of this request_id ended: {cause:?}"));
        }
        if grant.spent() {
            return dead("the token of this request_id is spent".to_owned());
        }
        let facts = verified.facts().clone();
        let consumed = grant.issued.consumed.and_then(|id| self.state.access_request(&id));
        let Ok(reapproved) = approve::reapprove(verified, recorded, consumed.as_deref(), rules, &self.settings.realm) else {
            return dead("today's rules would not give it".to_owned());
        };
        let reissued = match self.bench.reissue(reapproved, self.key_version(), self.clock.now()) {
            Ok(reissued) => reissued,
            Err(error) => return Err(self.refuse(call.method, Reason::Undecided, error.to_string())),
        };
        let append = Append {
            premises: reissued.rests_on,
            not_after: Some(reissued.not_after),
            ..Append::one(Fact::TokenReissued(reissued.fact), reissued.moves)
        };
        match self.journal.append(append).await {
            Ok(_) => Ok(Round::Done(TokenReply::Token(Box::new(TokenGiven {
                token: reissued.token,
                issued: grant.issued.clone(),
                openings: self.opened_secret(&grant),
                reissued: true,
                rules: self.rules_shown(&grant.issued.decision.rules),
                facts,
            })))),
            Err(AppendError::Conflict(_) | AppendError::Late) => Ok(Round::Again),
            Err(error) => Err(self.refuse_append(call.method, &error)),
        }
    }

    fn opened_secret(&self, grant: &Grant) -> Option<ActionSecret> {
        let text = grant.issued.secret.and_then(|hash| self.journal.blob(&hash).ok().flatten())?;
        ActionSecret::from_blob(&text)
    }

    /// A person's no, or expiry, is the answer of this request id for good.
    fn refused_before(&self, call: &Presented, proven: &Proven, ask: &TokenAsk, id: &AccessRequestId) -> Result<Round, Refusal> {
        let request = self.state.access_request(id);
        let request = request.ok_or_else(|| self.refuse(call.method, Reason::Undecided, "the access request is gone"))?;
        if request.action.as_ref().is_some_and(|a| **a != ask.action) {
            return Err(self.refuse(call.method, Reason::RequestIdReused, "this request_id was decided for another action"));
        }
        let why = if request.status == AccessStatus::Denied { DeniedReason::DeniedByPerson } else { DeniedReason::Expired };
        Ok(Round::Done(TokenReply::Denied(Box::new(DeniedReply {
            why,
            decision: Some(request.opened.decision.id),
            rules: self.rules_shown(&request.opened.decision.rules),
            access_request: Some(*id),
            facts: proven.facts().clone(),
        }))))
    }

    /// People are asked. A crash before the append leaves nothing; after it, an access request that the same action in the
    /// same task finds again.
    async fn open_access_request(
        &self,
        call: &Presented,
        pending: Pending,
        ask: &TokenAsk,
        task: &Task,
        proven: &Proven,
        rules: &InForce,
        asks: &At<usize>,
    ) -> Result<Round, Refusal> {
        let now = self.clock.now();
        if asks.value >= PENDING_MAX {
            return Err(self.refuse(
                call.method,
                Reason::TooManyPending,
                format!("{} access requests of this agent wait; at most {PENDING_MAX} may", asks.value),
            ));
        }
        let id = AccessRequestId::from_random(self.draw());
        let (action, secret) = ask.action.on_record(&pending.sensitive, &mut || self.draw());
        let secret = secret.map(|s| Blob::new(s.blob()));
        let reason = ask.reason.as_ref().map(|prose| Blob::new(prose.blob(self.draw())));
        let fact = AccessRequestOpened {
            access_request: id,
            task: ask.task,
            agent: task.opened.agent.clone(),
            // The owner by today's registration, which `stand` just matched: never eligible to vote.
            owner: rules.bundle.agent(&task.opened.agent).map_or_else(|| task.opened.owner.clone(), |a| a.owner.clone()),
            request_id: ask.request_id.clone(),
            action,
            secret: secret.as_ref().map(Blob::hash),
            reason: reason.as_ref().map(Blob::hash),
            max_ttl: pending.max_ttl,
            uses: pending.uses,
            expires_at: now.plus_secs(pending.wait).min(task.opened.deadline),
            decision: pending.decision,
            evidence: proven.facts().clone(),
        };
        let append = Append {
            premises: pending.rests_on,
            not_after: Some(pending.not_after),
            blobs: secret.into_iter().chain(reason).collect(),
            // INVARIANT (one open access request for an action): two openings of one agent cannot both have read `asks`.
            ..Append::one(
                Fact::AccessRequestOpened(fact),
                vec![(Stream::Access(id), 0), (Stream::Asks(task.opened.agent.clone()), asks.version)],
            )
        };
        match self.journal.append(append).await {
            Ok(_) => match self.state.access_request(&id) {
                Some(request) => Ok(Round::Done(self.pending_reply(&request, rules, proven.facts(), now))),
                None => Ok(Round::Again),
            },
            Err(AppendError::Conflict(_) | AppendError::Late) => Ok(Round::Again),
            Err(error) => Err(self.refuse_append(call.method, &error)),
        }
    }

    fn pending_reply(&self, request: &AccessRequest, rules: &InForce, facts: &EvidenceFacts, now: Timestamp) -> TokenReply {
        TokenReply::Pending(Box::new(PendingReply {
            access_request: request.opened.access_request,
            decision: request.opened.decision.id,
            needs: self.needs(request, rules, now),
            expires_at: request.opened.expires_at,
            rules: self.rules_shown(&request.opened.decision.rules),
            ttl: request.opened.decision.ttl.clone(),
            show_evidence: false,
            facts: facts.clone(),
        }))
    }

    /// The profiles an access request needs, and how far each is by today's roster.
    pub(super) fn needs(&self, request: &AccessRequest, rules: &InForce, now: Timestamp) -> Vec<ProfileState> {
        let tally = votes::tally(request, &self.settings.realm, &rules.bundle, now);
        let state = |need: &ProfileRef| {
            let defined = rules.bundle.profile(&need.name);
            ProfileState {
                profile: need.clone(),
                group: defined.map(|p| p.group.to_string()).unwrap_or_default(),
                quorum: defined.map_or(0, |p| p.quorum),
                approvers: tally.counted.get(&need.name).map(|set| set.iter().cloned().collect()).unwrap_or_default(),
            }
        };
        request.opened.decision.needs.iter().map(state).collect()
    }

    pub(super) fn rules_shown(&self, rules: &[RuleRef]) -> Vec<RuleShown> {
        let in_force = self.views.rules();
        let why = |id: &str| in_force.as_ref().and_then(|r| r.bundle.rule(id)).and_then(|r| r.why.clone()).unwrap_or_default();
        rules.iter().map(|r| RuleShown { id: r.id.clone(), file: r.file.clone(), why: why(&r.id) }).collect()
    }

    /// A rule's no: an entry, unless it is the answer this request id got last.
    async fn deny(
        &self,
        call: &Presented,
        denied: Denied,
        ask: &TokenAsk,
        rules: &InForce,
        facts: &EvidenceFacts,
    ) -> Result<Round, Refusal> {
        let shown = self.rules_shown(&denied.decision.rules);
        let sensitive = rules.bundle.action(&ask.action.name).map(|a| a.sensitive()).unwrap_or_default();
        let id = denied.decision.id;
        self.enter_denial(call, ask, denied.why.as_str(), Some(denied.decision), &sensitive, facts).await?;
        Ok(Round::Done(TokenReply::Denied(Box::new(DeniedReply {
            why: denied.why,
            decision: Some(id),
            rules: shown,
            access_request: None,
            facts: facts.clone(),
        }))))
    }

    /// A verified agent asked for what is not there: an entry too, with every parameter kept out of it.
    async fn refuse_action(&self, call: &Presented, ask: &TokenAsk, problem: &ActionProblem, facts: &EvidenceFacts) -> Refusal {
        let reason = match problem {
            ActionProblem::UnknownAction => Reason::UnknownAction,
            ActionProblem::UnknownTarget => Reason::UnknownTarget,
            ActionProblem::WrongParameters(_) => Reason::WrongParameters,
            ActionProblem::UnknownAudience => Reason::UnknownAudience,
        };
        let all = ask.action.parameters.keys().cloned().collect();
        match self.enter_denial(call, ask, reason.as_str(), None, &all, facts).await {
            Ok(()) => self.refuse(call.method, reason, problem.to_string()),
            Err(refusal) => refusal,
        }
    }

    async fn enter_denial(
        &self,
        call: &Presented,
        ask: &TokenAsk,
        reason: &str,
        decision: Option<crate::model::Decision>,
        sensitive: &std::collections::BTreeSet<String>,
        facts: &EvidenceFacts,
    ) -> Result<(), Refusal> {
        let policy = self.views.rules().map_or(0, |r| r.version).to_be_bytes();
        let answer = Digest::of_parts(&[reason.as_bytes(), &[0], &policy, ask.action.digest().as_bytes()]);
        let key = (ask.task, ask.request_id.clone());
        if self.denials.get(&key).is_some_and(|last| *last == answer) {
            return Ok(());
        }
        self.count_refusal(call, &ask.task)?;
        let (action, secret) = ask.action.on_record(sensitive, &mut || self.draw());
        // Of a malformed order nothing is kept apart: only commitments stay.
        let secret = secret.filter(|_| decision.is_some()).map(|s| Blob::new(s.blob()));
        let id = decision.as_ref().map_or_else(|| DecisionId::from_random(self.draw()), |d| d.id);
        let fact = RequestDenied {
            id,
            task: ask.task,
            request_id: ask.request_id.clone(),
            reason: reason.to_owned(),
            action,
            secret: secret.as_ref().map(Blob::hash),
            decision,
            evidence: facts.clone(),
        };
        let append = Append { blobs: secret.into_iter().collect(), ..Append::one(Fact::RequestDenied(fact), Vec::new()) };
        self.journal.append(append).await.map_err(|e| self.refuse_append(call.method, &e))?;
        self.denials.put(key, answer);
        Ok(())
    }

    /// At most [`REFUSALS_PER_MINUTE`] refusal entries for a task: nobody fills the journal with noes.
    pub(super) fn count_refusal(&self, call: &Presented, task: &TaskId) -> Result<(), Refusal> {
        let minute = self.clock.now().secs().div_euclid(60);
        let full = {
            let mut counts = self.lock(&self.refusals);
            counts.retain(|_, (m, _)| *m == minute);
            let count = counts.entry(*task).or_insert((minute, 0));
            count.1 = count.1.saturating_add(1);
            count.1 > REFUSALS_PER_MINUTE
        };
        if full {
            return Err(self.refuse(
                call.method,
                Reason::TooManyRefusals,
                "too many refused requests in this task; wait a minute",
            ));
        }
        Ok(())
    }

    /// Version of the signing key's stream; a missing one reads as never published, which no append accepts.
    fn key_version(&self) -> Version {
        self.state.key(self.bench.kid()).map_or(Version::MAX, |at| at.version)
    }
}
