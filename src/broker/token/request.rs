//! Requesting a token: both gates, the outcome of the idempotency key, and the wait for approvers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::approve::votes::VoidApproval;
use crate::approve::{self, ApproveError, GateDecision, TokenTerms};
use crate::broker::approval::progress::ProfileState;
use crate::broker::transaction::{Done, Step};
use crate::broker::{ATTACHED_MAX, Broker, CallContext, Refusal};
use crate::card::CardDelay;
use crate::journal::ReadSet;
use crate::model::*;
use crate::policy::ActivePolicy;
use crate::state::{AccessRequest, Draft, KeyOutcome, Read, Recorded, TaskRecord};
use crate::verify::{self, Authenticated, VerifyError};

/// Input of `RequestToken`.
#[derive(Debug)]
pub struct RequestTokenInput {
    /// The task.
    pub task: TaskId,
    /// The action the token is for.
    pub action: Action,
    /// Requested lifetime, in seconds.
    pub ttl: i64,
    /// The reason, in the agent's words.
    pub reason: Option<UntrustedText>,
    /// The client's idempotency key.
    pub idempotency_key: IdempotencyKey,
    /// Milliseconds to wait for approvers.
    pub wait_ms: u64,
    /// Fresh evidence, when the last is stale.
    pub evidence: Option<Evidence>,
    /// Of an advisory agent: the agent that would execute the action; absent for the only one.
    pub executor: Option<AgentId>,
    /// Of an executor: the access request in which the action is recommended to it.
    pub recommendation: Option<AccessRequestId>,
}

/// Answer of gate 2, for the agent.
#[derive(Debug)]
pub enum TokenReply {
    /// A token.
    Token(Box<IssuedReply>),
    /// An access request is pending.
    Pending(Box<PendingReply>),
    /// People approved what an advisory agent recommends.
    Recommended(Box<RecommendedReply>),
    /// Denied.
    Denied(Box<DeniedReply>),
}

/// A token and the grant it was issued for.
#[derive(Debug)]
pub struct IssuedReply {
    /// The JWT.
    pub token: Secret,
    /// The grant.
    pub issued: Arc<TokenIssued>,
    /// Openings of the commitments in its action.
    pub openings: Option<ActionSecret>,
    /// Whether it was signed again for a retry.
    pub reissued: bool,
    /// Rules that permitted it, with their texts.
    pub rules: Vec<RuleSummary>,
    /// The evidence gate 1 verified in this call.
    pub facts: EvidenceFacts,
}

/// A pending access request.
#[derive(Debug)]
pub struct PendingReply {
    /// The access request.
    pub access_request: AccessRequestId,
    /// The decision that opened it.
    pub decision: DecisionId,
    /// What time alone changes, unless somebody says no.
    pub delay: Option<CardDelay>,
    /// The profiles it needs, and the votes each has.
    pub needs: Vec<ProfileState>,
    /// Of a recommendation: the agent that would execute it.
    pub executor: Option<AgentId>,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Rules that require approval.
    pub rules: Vec<RuleSummary>,
    /// How the lifetime was computed so far.
    pub ttl: TtlBreakdown,
    /// Approvals that no longer count, because what they were given for has changed.
    pub void: Vec<VoidApproval>,
    /// The evidence went stale during the wait: the client must send new evidence.
    pub evidence_required: bool,
    /// The evidence gate 1 verified in this call.
    pub facts: EvidenceFacts,
    /// What it rests on: a waiting call is asked again when a stream of it moves.
    pub(in crate::broker) reads: ReadSet,
    /// The next moment at which time alone may change the access request. That the evidence of the call goes stale changes nothing
    /// while it waits: it is found when the call is asked again.
    pub(in crate::broker) due: Timestamp,
}

/// A recommendation that people approved.
#[derive(Debug)]
pub struct RecommendedReply {
    /// The access request, which the executor names.
    pub access_request: AccessRequestId,
    /// The decision that it requires approval by.
    pub decision: Option<DecisionId>,
    /// The agent that executes it.
    pub executor: AgentId,
    /// When the first of its approvals, or the request itself, expires.
    pub expires_at: Timestamp,
    /// The executor's token, once it has one.
    pub jti: Option<TokenId>,
    /// The evidence gate 1 verified in this call.
    pub facts: EvidenceFacts,
}

/// A denial.
#[derive(Debug)]
pub struct DeniedReply {
    /// The reason.
    pub why: DeniedReason,
    /// The decision; absent for an expiry without one.
    pub decision: Option<DecisionId>,
    /// Rules that deny it.
    pub rules: Vec<RuleSummary>,
    /// The access request that was denied or has expired.
    pub access_request: Option<AccessRequestId>,
    /// The comment of the approver who denied it.
    pub comment: Option<Comment>,
    /// The evidence gate 1 verified in this call.
    pub facts: EvidenceFacts,
}

pub use crate::card::RuleSummary;

/// How often one call records that what its access request requires has changed.
const REASSESSMENTS_MAX: u32 = 4;
/// Longest wait for approvers in one call, in milliseconds.
const WAIT_MAX_MS: u64 = 60_000;

/// One round of both gates: the call and what it read, at one moment.
pub(in crate::broker) struct TokenAttempt<'a, 'r> {
    pub(in crate::broker) call: &'a CallContext,
    pub(in crate::broker) input: &'a RequestTokenInput,
    pub(in crate::broker) authenticated: &'a Authenticated,
    pub(in crate::broker) read: &'r Read,
    pub(in crate::broker) rules: &'a Recorded<'r, ActivePolicy>,
    pub(in crate::broker) task: &'a Recorded<'r, TaskRecord>,
    pub(in crate::broker) now: Timestamp,
}

/// What a round decided, before its append.
pub(in crate::broker) enum Evaluation {
    /// A token was signed; its openings are read after the append.
    Issued(Box<IssuedReply>),
    /// An access request was opened.
    Opened(AccessRequestId),
    /// An access request is pending.
    Pending(AccessRequestId),
    /// People approved a recommendation.
    Recommended(AccessRequestId),
    /// It was recorded that the access request requires something else now: the round is asked again.
    Reassessed,
    /// Denied.
    Denied(Box<DeniedReply>, Option<Arc<[RuleRef]>>),
    /// Refused, after the entry about it.
    Refused(Reason, String),
}

impl Broker {
    /// Requests a token: passes both gates, and waits for approvers up to `wait_ms`, holding no gate pass during the wait.
    pub async fn request_token(
        &self,
        call: &CallContext,
        input: RequestTokenInput,
    ) -> Result<TokenReply, Refusal> {
        let now = self.now();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let evidence_hash = input.evidence.as_ref().map(verify::evidence_hash);
        let (task, possession) = self.task_possession(
            call,
            &input.task,
            Some(input.action.digest()),
            evidence_hash,
            now,
        )?;
        if !self.is_running(&task, now) {
            return Err(self.refuse_ended(call.method, &task, now));
        }
        let attested = match &input.evidence {
            Some(evidence) => Arc::new(self.attest(evidence, now).map_err(|e| closed(&e))?),
            None => self
                .cached_attestation(&input.task)
                .ok_or_else(|| closed(&VerifyError::Stale))?,
        };
        let authenticated = Authenticated::new(attested, possession);
        if input.ttl <= 0 {
            return Err(self.refuse(call.method, Reason::InvalidTtl, "`ttl` must be above zero"));
        }
        let waiting = (input.wait_ms > 0).then(|| self.wait_permits.try_acquire().ok());
        let wait = match waiting {
            Some(Some(_)) => Duration::from_millis(input.wait_ms.min(WAIT_MAX_MS)),
            Some(None) | None => Duration::ZERO,
        };
        let mut stopping = self.stopping.subscribe();
        let until = tokio::time::sleep(wait);
        tokio::pin!(until);
        let mut last: Option<PendingReply> = None;
        loop {
            let reply = match self.evaluate(call, &authenticated, &input).await {
                Ok(reply) => reply,
                // Evidence that went stale during the wait is not the client's fault: ask for new evidence.
                Err(refusal) if refusal.reason == Reason::EvidenceStale => match last {
                    Some(pending) => {
                        return Ok(TokenReply::Pending(Box::new(PendingReply {
                            evidence_required: true,
                            ..pending
                        })));
                    }
                    None => return Err(refusal),
                },
                Err(refusal) => return Err(refusal),
            };
            if input.evidence.is_some() {
                self.cache_attestation(input.task, &authenticated);
            }
            let pending = match reply {
                TokenReply::Pending(pending) if !wait.is_zero() => pending,
                decided => return Ok(decided),
            };
            if until.is_elapsed() {
                return Ok(TokenReply::Pending(pending));
            }
            let due = tokio::time::sleep(pending.due.after(self.now()));
            tokio::pin!(due);
            // A call that only waits holds no concurrency permit.
            call.permit.release();
            let mut subscription = self.notifier.subscribe(pending.access_request);
            subscription.rest_on(&pending.reads);
            // Later changes notify the subscription; earlier ones show in the versions.
            loop {
                subscription.mark_seen();
                if self.journal.head().borrow().failed {
                    return Err(self.refuse(
                        call.method,
                        Reason::JournalUnavailable,
                        "the journal has stopped",
                    ));
                }
                if !self.state.holds(&pending.reads) {
                    break;
                }
                tokio::select! {
                    () = &mut until => return Ok(TokenReply::Pending(pending)),
                    _ = stopping.wait_for(|stopping| *stopping) => return Ok(TokenReply::Pending(pending)),
                    () = &mut due => break,
                    () = subscription.changed() => {}
                }
            }
            last = Some(*pending);
            call.permit.reacquire().await;
        }
    }

    /// One evaluation: both gates in one round, its append, and the answer. Calls of one idempotency key take turns.
    async fn evaluate(
        &self,
        call: &CallContext,
        authenticated: &Authenticated,
        input: &RequestTokenInput,
    ) -> Result<TokenReply, Refusal> {
        let key = Stream::TokenRequest(input.task, input.idempotency_key.clone());
        let deadline = self.journal.append_deadline();
        let _turn = self.take_turn(key, call.method, deadline).await?;
        // Decisions that rest on a count and raise it take turns: each finds what the one before it made, instead of racing it.
        let mut turns = Vec::new();
        for key in self.counts_at_stake(input) {
            let stream = Stream::Count(Box::new(key));
            turns.push(self.take_turn(stream, call.method, deadline).await?);
        }
        // An agent that retries is counted once, however often its round is asked again.
        let mut is_counted = false;
        let mut done;
        let mut left = REASSESSMENTS_MAX;
        loop {
            done = self
                .transaction_until(deadline, call.method)
                .run(|read| self.decide_token(read, call, authenticated, input, &mut is_counted))
                .await;
            left -= 1;
            let again = |done: &Done<Evaluation>| matches!(done.value, Evaluation::Reassessed);
            if left == 0 || !done.as_ref().is_ok_and(again) {
                break;
            }
        }
        let Done {
            value,
            entry,
            reads,
        } = done.inspect_err(|refusal| {
            if is_counted {
                self.forget_denial(input, refusal);
            }
        })?;
        if is_counted && !matches!(value, Evaluation::Denied(..) | Evaluation::Refused(..)) {
            // A round before it denied, and its append conflicted.
            let key = (input.task, input.idempotency_key.clone());
            self.last_denials.remove(&key);
        }
        match value {
            Evaluation::Issued(issued) => Ok(self.token_reply(issued)),
            Evaluation::Denied(denied, counted) => {
                if let Some(rules) = counted {
                    self.count_decision("denied", &rules);
                }
                Ok(TokenReply::Denied(denied))
            }
            Evaluation::Refused(reason, message) => Err(self.refuse(call.method, reason, message)),
            Evaluation::Opened(id) | Evaluation::Pending(id) => {
                let reads = match &entry {
                    Some(entry) => reads.advanced_by(entry),
                    None => reads,
                };
                let reads = reads.without_counts();
                self.pending_reply(call, authenticated, &id, reads)
            }
            Evaluation::Recommended(id) => self.recommended_reply(call, authenticated, &id),
            // Once more at the most: a second change in between is found at the next call.
            Evaluation::Reassessed => Err(self.refuse(
                call.method,
                Reason::Conflict,
                "what the access request requires changes again and again",
            )),
        }
    }

    /// The counts that the rules read for a call, of the agent that recommended its action, too, and that its answer may raise: in one
    /// order for all calls.
    fn counts_at_stake(&self, input: &RequestTokenInput) -> BTreeSet<CountKey> {
        self.preview(|read| {
            let Some(rules) = read.rules() else {
                return BTreeSet::new();
            };
            let bundle = &rules.bundle;
            let Action { name, target, .. } = &input.action;
            let own = read.task(&input.task).map(|task| task.opened.agent.clone());
            let recommended = input.recommendation.and_then(|id| read.access_request(&id));
            let recommender = recommended.and_then(|request| request.opened.agent().cloned());
            let agents = own.into_iter().chain(recommender);
            let agents = agents.filter_map(|agent| bundle.agent(&agent));
            let of_agent = |agent: Arc<RegisteredAgent>| {
                let names = bundle.counts_in_scope(&agent.id, name, target).into_iter();
                let counts = names.filter_map(|count| bundle.count(count));
                counts
                    .filter(|count| count.of != CountKind::Uses && count.actions.contains(name))
                    .map(|count| count.key(&agent.id, &agent.owner, name))
                    .collect::<Vec<_>>()
            };
            agents.flat_map(of_agent).collect()
        })
    }

    /// One round: gate 1, the outcome the idempotency key already has, gate 2.
    fn decide_token(
        &self,
        read: &Read,
        call: &CallContext,
        authenticated: &Authenticated,
        input: &RequestTokenInput,
        is_counted: &mut bool,
    ) -> Result<Step<Evaluation>, Refusal> {
        let now = self.now();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let task = self.running_task(read, call, &input.task, now)?;
        let verified = self
            .pass_gate_1(read, authenticated, Some(&input.task), now)
            .map_err(|e| closed(&e))?;
        let rules = verified.rules().clone();
        let attempt = TokenAttempt {
            call,
            input,
            authenticated,
            read,
            rules: &rules,
            task: &task,
            now,
        };
        let outcome = self.token_outcome(&attempt)?;
        match &outcome {
            KeyOutcome::Granted(grant) => {
                return self.reissue(&attempt, verified, grant.clone());
            }
            KeyOutcome::Denied(request) => return self.replay_denial(&attempt, request),
            KeyOutcome::Executed(request) => return self.replay_executed(&attempt, request),
            KeyOutcome::Waiting(_) | KeyOutcome::Undecided => {}
        }
        self.require_reliable_clock(call.method)?;
        if let Err(problem) = rules.bundle.check_action(&input.action) {
            return self.refuse_action(&attempt, &problem, is_counted);
        }
        // An idempotency key that waits for one action cannot be used for another: no approval of the one covers the other.
        if let KeyOutcome::Waiting(request) = &outcome
            && request.opened.task() == Some(input.task)
            && request.action.as_ref().is_some_and(|a| **a != input.action)
        {
            return Err(self.refuse(
                call.method,
                Reason::ApprovalOutOfScope,
                "this idempotency key waits for the approval of another action",
            ));
        }
        let of_key = match &outcome {
            KeyOutcome::Waiting(request) => Some(&**request),
            _ => None,
        };
        let executor = self.named_executor(&attempt, &verified, of_key)?;
        let waiting = match outcome {
            // Another agent's: this one executes it.
            KeyOutcome::Waiting(request) if request.opened.task() != Some(input.task) => {
                self.require_running_recommendation(&attempt, &request)?;
                Some(request)
            }
            _ => read.pending_request_for(&input.task, &input.action, now),
        };
        let terms = TokenTerms {
            action: input.action.clone(),
            ttl: input.ttl,
            executor: executor.as_ref().map(|executor| executor.agent.clone()),
        };
        let scope = FreezeScope::Action(input.action.name.clone());
        match approve::decide(
            verified,
            &terms,
            waiting.as_ref(),
            self.is_freeze_held(&scope),
            self.decision_context(),
            DecisionId::from_random(self.random_bytes()),
        ) {
            Ok(GateDecision::Approved(approved)) => self.issue(&attempt, *approved),
            Ok(GateDecision::Pending(pending)) => match waiting {
                Some(request) => {
                    self.attach(&attempt, &request)?;
                    Ok(Step::Answer(Evaluation::Pending(
                        request.opened.access_request,
                    )))
                }
                None => self.open_access_request(&attempt, *pending, executor),
            },
            Ok(GateDecision::Recommended(id)) => {
                // A repetition gets the same answer after the execution, and recommends nothing twice.
                if let Some(request) = &waiting {
                    self.attach(&attempt, request)?;
                }
                Ok(Step::Answer(Evaluation::Recommended(id)))
            }
            Ok(GateDecision::Reassessed(access_request, decision)) => {
                let event = AccessRequestReassessed {
                    access_request,
                    decision: *decision,
                };
                let draft = Draft::one(Event::AccessRequestReassessed(event));
                let draft = match &waiting {
                    Some(request) => draft.not_after(request.opened.expires_at),
                    None => draft,
                };
                Ok(Step::Append(draft, Evaluation::Reassessed))
            }
            Ok(GateDecision::Denied(denied)) => {
                let own = waiting.filter(|request| request.opened.task() == Some(input.task));
                let own = own.map(|own| (own.opened.access_request, own.opened.expires_at));
                self.deny(&attempt, *denied, own, is_counted)
            }
            Err(ApproveError::NoTime("evidence")) => Err(closed(&VerifyError::Stale)),
            Err(ApproveError::StaleEvidence { ages, rules }) => {
                let issued_at = authenticated.facts().issued_at;
                Err(closed(&VerifyError::TooOldForRules {
                    issued_at,
                    ages,
                    rules,
                }))
            }
            Err(ApproveError::NoTime(_)) => Err(self.refuse(
                call.method,
                Reason::TaskEnded,
                "less than a second of the task is left",
            )),
            Err(ApproveError::HandOver(fault)) => Err(self.refuse_hand_over(call, fault)),
            Err(error @ ApproveError::OtherExecutor) => {
                Err(self.refuse(call.method, Reason::ApprovalOutOfScope, error.to_string()))
            }
            Err(error @ ApproveError::Executor) => {
                Err(self.refuse(call.method, Reason::InvalidExecutor, error.to_string()))
            }
            Err(
                error @ (ApproveError::OtherAction
                | ApproveError::NoTask
                | ApproveError::NotAllowed),
            ) => Err(self.refuse(call.method, Reason::DecisionUnavailable, error.to_string())),
        }
    }

    /// What became of a call's idempotency key, and of the recommendation that it names. A key is for one request: its own, or the
    /// recommendation that it was used for.
    fn token_outcome<'r>(&self, attempt: &TokenAttempt<'_, 'r>) -> Result<KeyOutcome<'r>, Refusal> {
        let TokenAttempt {
            call,
            input,
            read,
            now,
            ..
        } = *attempt;
        let of_another_task = |id: &AccessRequestId| {
            let request = read.access_request(id);
            request.is_some_and(|request| request.opened.task() != Some(input.task))
        };
        let own = read.key_outcome(&input.task, &input.idempotency_key, now);
        let executed = match &own {
            KeyOutcome::Granted(grant) => grant.issued.consumed.filter(of_another_task),
            KeyOutcome::Undecided => {
                return match input.recommendation {
                    Some(id) => self.recommendation_outcome(attempt, &id),
                    None => {
                        let joined = self.attached_to(&input.task, &input.idempotency_key);
                        let joined = joined.filter(|id| !of_another_task(id));
                        Ok(joined
                            .map_or(KeyOutcome::Undecided, |id| read.request_outcome(&id, now)))
                    }
                };
            }
            KeyOutcome::Waiting(_) | KeyOutcome::Denied(_) | KeyOutcome::Executed(_) => None,
        };
        match executed == input.recommendation {
            true => Ok(own),
            false => Err(self.refuse(
                call.method,
                Reason::IdempotencyKeyReused,
                "this idempotency key was used with another recommendation, or without one",
            )),
        }
    }

    fn attached_to(
        &self,
        task: &TaskId,
        idempotency_key: &IdempotencyKey,
    ) -> Option<AccessRequestId> {
        self.lock(&self.attached)
            .get(task)
            .and_then(|ids| ids.get(idempotency_key))
            .copied()
    }

    /// Attaches an idempotency key to an access request opened under another.
    fn attach(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        request: &AccessRequest,
    ) -> Result<(), Refusal> {
        let opened_with = request.opened.by_agent().map(|by| &by.idempotency_key);
        if opened_with == Some(&attempt.input.idempotency_key) {
            return Ok(());
        }
        let full = {
            let mut attached = self.lock(&self.attached);
            let of_task = attached.entry(attempt.input.task).or_default();
            let full = of_task.len() >= ATTACHED_MAX
                && !of_task.contains_key(&attempt.input.idempotency_key);
            if !full {
                of_task.insert(
                    attempt.input.idempotency_key.clone(),
                    request.opened.access_request,
                );
            }
            full
        };
        if full {
            return Err(self.refuse(
                attempt.call.method,
                Reason::TooManyPending,
                "too many idempotency keys wait in this task",
            ));
        }
        Ok(())
    }
}
