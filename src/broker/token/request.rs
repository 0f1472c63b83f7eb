use std::sync::Arc;
use std::time::Duration;

use crate::approve::{self, ApproveError, Decision, Order};
use crate::broker::{ATTEMPTS, Broker, CallContext, JOINED_MAX, Refusal};
use crate::model::*;
use crate::policy::{InForce, Method};
use crate::state::{AccessRequest, AccessStatus, Fixed, Task};
use crate::verify::{self, Authenticated, VerifyError};

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
    pub rules: Vec<RuleSummary>,
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
    pub rules: Vec<RuleSummary>,
    /// The arithmetic so far.
    pub ttl: TtlSum,
    /// The evidence went stale while waiting.
    pub show_evidence: bool,
    /// What gate 1 saw in this call.
    pub facts: EvidenceFacts,
    /// What it was decided on: a waiting call wakes when any of it moves.
    pub(in crate::broker) basis: Basis,
}

/// Versions of the access request, the task, the agent and the rules.
pub(in crate::broker) type Basis = [Version; 4];

/// A no.
#[derive(Debug)]
pub struct DeniedReply {
    /// Why.
    pub why: DeniedReason,
    /// The answer, when rules gave it now.
    pub decision: Option<DecisionId>,
    /// Rules that say so.
    pub rules: Vec<RuleSummary>,
    /// The access request that people or time decided.
    pub access_request: Option<AccessRequestId>,
    /// What the person who said no tells the agent.
    pub comment: Option<Comment>,
    /// What gate 1 saw in this call.
    pub facts: EvidenceFacts,
}

pub use crate::card::RuleSummary;

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
    /// How a yes is given; absent when the profile is defined no more.
    pub method: Option<Method>,
}

/// Longest server-side wait, in milliseconds.
const WAIT_MAX_MS: u64 = 60_000;

/// One round of both gates for one call: who asks for what, under which rules, at which moment.
pub(in crate::broker) struct Turn<'a> {
    pub(in crate::broker) call: &'a CallContext,
    pub(in crate::broker) ask: &'a TokenAsk,
    pub(in crate::broker) authenticated: &'a Authenticated,
    pub(in crate::broker) rules: &'a InForce,
    pub(in crate::broker) task: &'a Task,
    pub(in crate::broker) agent_version: Version,
    pub(in crate::broker) request_version: Version,
    pub(in crate::broker) now: Timestamp,
}

/// What one round of both gates came to.
pub(in crate::broker) enum Round {
    Done(TokenReply),
    /// Something moved between decision and entry: nothing was done.
    Again,
}

impl Broker {
    /// Both gates; waits for people as long as asked, holding no pass while it waits.
    pub async fn request_token(
        &self,
        call: &CallContext,
        ask: TokenAsk,
    ) -> Result<TokenReply, Refusal> {
        let now = self.now();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let evidence_hash = ask.evidence.as_ref().map(verify::evidence_hash);
        let (task, possession) = self.task_possession(
            call,
            &ask.task,
            Some(ask.action.digest()),
            evidence_hash,
            now,
        )?;
        if !self.runs(&task, now) {
            return Err(self.refuse(call.method, Reason::TaskEnded, "the task is over"));
        }
        let attested = match &ask.evidence {
            Some(evidence) => Arc::new(self.attest(evidence, now).map_err(|e| closed(&e))?),
            None => self
                .remembered(&ask.task)
                .ok_or_else(|| closed(&VerifyError::Stale))?,
        };
        let authenticated =
            Authenticated::for_task(attested, possession, &task.opened).map_err(|e| closed(&e))?;
        if ask.ttl <= 0 {
            return Err(self.refuse(call.method, Reason::InvalidTtl, "ttl must be above zero"));
        }
        let waiting = (ask.wait_ms > 0).then(|| self.waits.try_acquire().ok());
        let wait = match waiting {
            Some(Some(_)) => Duration::from_millis(ask.wait_ms.min(WAIT_MAX_MS)),
            Some(None) | None => Duration::ZERO,
        };
        let mut stopping = self.stopping.subscribe();
        let until = tokio::time::sleep(wait);
        tokio::pin!(until);
        let mut shown: Option<PendingReply> = None;
        loop {
            let reply = match self.both_gates(call, &authenticated, &ask).await {
                Ok(reply) => reply,
                // Evidence that went stale during the wait is asked for, not refused: the wait was honest.
                Err(refusal) if refusal.reason == Reason::EvidenceStale => match shown {
                    Some(pending) => {
                        return Ok(TokenReply::Pending(Box::new(PendingReply {
                            show_evidence: true,
                            ..pending
                        })));
                    }
                    None => return Err(refusal),
                },
                Err(refusal) => return Err(refusal),
            };
            if ask.evidence.is_some() {
                self.remember(ask.task, &authenticated);
            }
            let pending = match reply {
                TokenReply::Pending(pending) if !wait.is_zero() => pending,
                decided => return Ok(decided),
            };
            let expired = tokio::time::sleep(pending.expires_at.after(self.now()));
            tokio::pin!(expired);
            // Others are worked on while this call only waits.
            call.permit.release();
            let mut bell = self.bells.listen(pending.access_request);
            // From here on whatever concerns it rings; what came before shows in what it was decided on.
            loop {
                bell.heard();
                if self.journal.tail().borrow().failed {
                    return Err(self.refuse(
                        call.method,
                        Reason::JournalUnavailable,
                        "the journal has stopped",
                    ));
                }
                if self.basis(&ask.task, &pending.access_request) != pending.basis {
                    break;
                }
                tokio::select! {
                    () = &mut until => return Ok(TokenReply::Pending(pending)),
                    _ = stopping.wait_for(|stopping| *stopping) => return Ok(TokenReply::Pending(pending)),
                    () = &mut expired => break,
                    () = bell.rings() => {}
                }
            }
            shown = Some(*pending);
            call.permit.reacquire().await;
        }
    }

    fn basis(&self, task: &TaskId, access_request: &AccessRequestId) -> Basis {
        let task = self.state.task(task);
        [
            self.state
                .access_request(access_request)
                .map_or(0, |r| r.version),
            task.as_ref().map_or(0, |t| t.version),
            task.map_or(0, |t| self.state.standing(&t.opened.agent).version),
            self.views.rules().map_or(0, |r| r.version),
        ]
    }

    async fn both_gates(
        &self,
        call: &CallContext,
        authenticated: &Authenticated,
        ask: &TokenAsk,
    ) -> Result<TokenReply, Refusal> {
        for _ in 0..ATTEMPTS {
            match self.round(call, authenticated, ask).await? {
                Round::Done(reply) => return Ok(reply),
                Round::Again => {}
            }
        }
        Err(self.refuse(
            call.method,
            Reason::Conflict,
            "what the decision rests on keeps moving",
        ))
    }

    /// One round: gate 1, what the request id already stands for, gate 2, entry.
    async fn round(
        &self,
        call: &CallContext,
        authenticated: &Authenticated,
        ask: &TokenAsk,
    ) -> Result<Round, Refusal> {
        let now = self.now();
        // Taken before anything is read: what is decided below has folded at least this much.
        let position = self.state.position();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let task = self.state.task(&ask.task).filter(|t| self.runs(t, now));
        let task =
            task.ok_or_else(|| self.refuse(call.method, Reason::TaskEnded, "the task is over"))?;
        let rules = self
            .views
            .rules()
            .ok_or_else(|| closed(&VerifyError::NoRules))?;
        let agent_version = self.state.standing(&task.opened.agent).version;
        let standing = self.standing(authenticated, Some(&rules), Some(&task));
        let verified = authenticated
            .verify(standing, now)
            .map_err(|e| closed(&e))?;
        let request_id = self.state.request_id(&ask.task, &ask.request_id);
        let request_version = request_id.version;
        let turn = Turn {
            call,
            ask,
            authenticated,
            rules: &rules,
            task: &task,
            agent_version,
            request_version,
            now,
        };

        match request_id
            .value
            .or_else(|| self.stands_for(&ask.task, &ask.request_id, now))
        {
            Some(Fixed::Granted(jti)) => return self.grant_again(&turn, verified, &jti).await,
            Some(Fixed::Refused(id)) => return self.refused_before(&turn, &id),
            None => {}
        }
        self.clock_sure(call.method)?;
        if let Err(problem) = rules.bundle.check_action(&ask.action) {
            return Err(self.refuse_action(&turn, &problem).await);
        }
        // Before looking for one that waits: an opening that comes after this line refuses ours.
        let asks = self.state.asks(&task.opened.agent);
        let waiting = self.state.waiting_for(&ask.task, ask.action.digest(), now);
        self.same_question(&turn)?;
        let order = Order {
            action: ask.action.clone(),
            ttl: ask.ttl,
        };
        let id = DecisionId::from_random(self.draw());
        match approve::decide(
            verified,
            &order,
            waiting.as_deref(),
            self.action_freeze(&ask.action.name),
            self.ground(&rules),
            id,
        ) {
            Ok(Decision::Approved(approved)) => self.grant(&turn, *approved, position).await,
            Ok(Decision::Pending(pending)) => match waiting {
                Some(request) => {
                    self.join(&turn, &request)?;
                    self.count_decision("pending", &request.opened.decision.rules);
                    Ok(Round::Done(self.pending_reply(
                        &turn,
                        &request,
                        request.version,
                    )))
                }
                None => self.open_access_request(&turn, *pending, &asks).await,
            },
            Ok(Decision::Denied(denied)) => self.deny(&turn, *denied).await,
            Err(ApproveError::NoTime("evidence")) => Err(closed(&VerifyError::Stale)),
            Err(ApproveError::NoTime(_)) => Err(self.refuse(
                call.method,
                Reason::TaskEnded,
                "less than a second of the task is left",
            )),
            Err(ApproveError::RulesChanged) => Ok(Round::Again),
            Err(error @ (ApproveError::OtherAction | ApproveError::NoTask)) => {
                Err(self.refuse(call.method, Reason::Undecided, error.to_string()))
            }
        }
    }

    /// What a request id stands for without an entry: by a time that has passed, or by what this broker remembers of
    /// joining.
    fn stands_for(&self, task: &TaskId, request_id: &RequestId, now: Timestamp) -> Option<Fixed> {
        let expired =
            |r: &AccessRequest| r.status == AccessStatus::Waiting && now >= r.opened.expires_at;
        if let Some(id) = self.joined_to(task, request_id) {
            let joined = self.state.access_request(&id)?;
            let closed = matches!(
                joined.status,
                AccessStatus::Denied | AccessStatus::Closed(CloseCause::Expired)
            ) || expired(&joined);
            return closed.then_some(Fixed::Refused(id));
        }
        let own = self.state.requests_of(task);
        own.iter()
            .find(|r| r.opened.request_id == *request_id && expired(r))
            .map(|r| Fixed::Refused(r.opened.access_request))
    }

    fn joined_to(&self, task: &TaskId, request_id: &RequestId) -> Option<AccessRequestId> {
        self.lock(&self.joined)
            .get(task)
            .and_then(|ids| ids.get(request_id))
            .copied()
    }

    /// Remembers that a request id waits with another's access request.
    fn join(&self, turn: &Turn<'_>, request: &AccessRequest) -> Result<(), Refusal> {
        if request.opened.request_id == turn.ask.request_id {
            return Ok(());
        }
        let full = {
            let mut joined = self.lock(&self.joined);
            let of_task = joined.entry(turn.ask.task).or_default();
            let full = of_task.len() >= JOINED_MAX && !of_task.contains_key(&turn.ask.request_id);
            if !full {
                of_task.insert(turn.ask.request_id.clone(), request.opened.access_request);
            }
            full
        };
        if full {
            return Err(self.refuse(
                turn.call.method,
                Reason::TooManyPending,
                "too many request ids wait in this task",
            ));
        }
        Ok(())
    }

    /// A request id that still waits for one action cannot ask for another: no yes to the one opens the gate for the other.
    fn same_question(&self, turn: &Turn<'_>) -> Result<(), Refusal> {
        let Turn { call, ask, now, .. } = *turn;
        let joined = self.joined_to(&ask.task, &ask.request_id);
        let other = |r: &Arc<AccessRequest>| {
            (r.opened.request_id == ask.request_id || Some(r.opened.access_request) == joined)
                && r.waits(now)
                && r.action.as_ref().is_some_and(|a| **a != ask.action)
        };
        if self.state.requests_of(&ask.task).iter().any(other) {
            return Err(self.refuse(
                call.method,
                Reason::ApprovalOutOfScope,
                "this request_id waits for people to decide another action",
            ));
        }
        Ok(())
    }

    pub(in crate::broker) fn rules_shown(&self, rules: &[RuleRef]) -> Vec<RuleSummary> {
        let in_force = self.views.rules();
        let why = |id: &str| {
            in_force
                .as_ref()
                .and_then(|r| r.bundle.rule(id))
                .and_then(|r| r.why.clone())
                .unwrap_or_default()
        };
        rules
            .iter()
            .map(|r| RuleSummary {
                id: r.id.to_string(),
                file: r.file.to_string(),
                why: why(&r.id),
            })
            .collect()
    }
}
