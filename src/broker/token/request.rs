//! Requesting a token: both gates, the outcome of the idempotency key, and the wait for approvers.

use std::sync::Arc;
use std::time::Duration;

use crate::approve::{self, ApproveError, GateDecision, TokenTerms};
use crate::broker::approval::progress::ProfileState;
use crate::broker::transaction::{Transaction, TransactionError};
use crate::broker::{ATTACHED_MAX, ATTEMPTS, Broker, CallContext, Refusal};
use crate::model::*;
use crate::policy::ActivePolicy;
use crate::state::{AccessRequest, IdempotencyOutcome, StoredStatus, TaskRecord};
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
}

/// Answer of gate 2, for the agent.
#[derive(Debug)]
pub enum TokenReply {
    /// A token.
    Token(Box<IssuedReply>),
    /// An access request is pending.
    Pending(Box<PendingReply>),
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
    /// The profiles it needs, and the votes each has.
    pub needs: Vec<ProfileState>,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Rules that require approval.
    pub rules: Vec<RuleSummary>,
    /// How the lifetime was computed so far.
    pub ttl: TtlBreakdown,
    /// The evidence went stale during the wait: the client must send new evidence.
    pub evidence_required: bool,
    /// The evidence gate 1 verified in this call.
    pub facts: EvidenceFacts,
    /// The versions it was computed from: a waiting call evaluates again when one of them changes.
    pub(in crate::broker) versions: DecisionVersions,
}

/// Versions a pending answer was computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) struct DecisionVersions {
    access_request: Version,
    task: Version,
    agent: Version,
    policy: Version,
}

impl DecisionVersions {
    /// Takes the versions of what was read; zero for what is missing.
    pub(in crate::broker) fn new(
        access_request: Version,
        task: Option<&TaskRecord>,
        agent: Version,
        rules: Option<&ActivePolicy>,
    ) -> Self {
        Self {
            access_request,
            task: task.map_or(0, |t| t.version),
            agent,
            policy: rules.map_or(0, |r| r.version),
        }
    }
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

/// Longest wait for approvers in one call, in milliseconds.
const WAIT_MAX_MS: u64 = 60_000;

/// One evaluation of both gates: the call and what it read, at one moment.
pub(in crate::broker) struct TokenAttempt<'a> {
    pub(in crate::broker) call: &'a CallContext,
    pub(in crate::broker) input: &'a RequestTokenInput,
    pub(in crate::broker) authenticated: &'a Authenticated,
    pub(in crate::broker) rules: &'a ActivePolicy,
    pub(in crate::broker) task: &'a TaskRecord,
    pub(in crate::broker) agent_version: Version,
    pub(in crate::broker) request_version: Version,
    pub(in crate::broker) now: Timestamp,
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
        let authenticated =
            Authenticated::for_task(attested, possession, &task.opened).map_err(|e| closed(&e))?;
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
            let reply = match self.evaluate_with_retry(call, &authenticated, &input).await {
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
            let expired = tokio::time::sleep(pending.expires_at.after(self.now()));
            tokio::pin!(expired);
            // A call that only waits holds no concurrency permit.
            call.permit.release();
            let mut subscription = self.notifier.subscribe(pending.access_request);
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
                if self.decision_versions(&input.task, &pending.access_request) != pending.versions
                {
                    break;
                }
                tokio::select! {
                    () = &mut until => return Ok(TokenReply::Pending(pending)),
                    _ = stopping.wait_for(|stopping| *stopping) => return Ok(TokenReply::Pending(pending)),
                    () = &mut expired => break,
                    () = subscription.changed() => {}
                }
            }
            last = Some(*pending);
            call.permit.reacquire().await;
        }
    }

    fn decision_versions(
        &self,
        task: &TaskId,
        access_request: &AccessRequestId,
    ) -> DecisionVersions {
        let request = self.state.access_request(access_request);
        let task = self.state.task(task);
        let agent = task
            .as_ref()
            .map_or(0, |t| self.state.agent_status(&t.opened.agent).version);
        DecisionVersions::new(
            request.map_or(0, |r| r.version),
            task.as_deref(),
            agent,
            self.projections.rules().as_deref(),
        )
    }

    async fn evaluate_with_retry(
        &self,
        call: &CallContext,
        authenticated: &Authenticated,
        input: &RequestTokenInput,
    ) -> Result<TokenReply, Refusal> {
        let conflict = "the state the decision was made from keeps changing";
        let key = Stream::TokenRequest(input.task, input.idempotency_key.clone());
        self.transaction_on(key, call.method, ATTEMPTS, conflict, |attempt| async move {
            self.evaluate_once(call, authenticated, input, attempt)
                .await
        })
        .await
    }

    /// One attempt: gate 1, the outcome the idempotency key already has, gate 2, append.
    async fn evaluate_once(
        &self,
        call: &CallContext,
        authenticated: &Authenticated,
        input: &RequestTokenInput,
        transaction: Transaction<'_>,
    ) -> Result<TokenReply, TransactionError> {
        let now = self.now();
        // Taken before anything is read: the decision below has seen at least the entries up to here.
        let position = self.state.position();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let task = self.running_task(call, &input.task, now)?;
        let rules = self
            .projections
            .rules()
            .ok_or_else(|| closed(&VerifyError::NoRules))?;
        let agent_version = self.state.agent_status(&task.opened.agent).version;
        let context = self.gate_1_context(authenticated, Some(&rules), Some(&task));
        let verified = authenticated.verify(context, now).map_err(|e| closed(&e))?;
        let outcome = self
            .state
            .idempotency_outcome(&input.task, &input.idempotency_key);
        let request_version = outcome.version;
        let attempt = TokenAttempt {
            call,
            input,
            authenticated,
            rules: &rules,
            task: &task,
            agent_version,
            request_version,
            now,
        };

        match outcome
            .value
            .or_else(|| self.implied_outcome(&input.task, &input.idempotency_key, now))
        {
            Some(IdempotencyOutcome::Granted(jti)) => {
                return self.reissue(&attempt, verified, &jti, transaction).await;
            }
            Some(IdempotencyOutcome::Denied(id)) => return Ok(self.replay_denial(&attempt, &id)?),
            None => {}
        }
        self.require_reliable_clock(call.method)?;
        if let Err(problem) = rules.bundle.check_action(&input.action) {
            return Err(self.refuse_action(&attempt, &problem, transaction).await);
        }
        // Read before the search for a pending one: an opening after this line makes ours conflict.
        let history = self.state.access_request_history(&task.opened.agent);
        let waiting = self
            .state
            .pending_request_for(&input.task, input.action.digest(), now);
        self.check_same_action(&attempt)?;
        let terms = TokenTerms {
            action: input.action.clone(),
            ttl: input.ttl,
        };
        let id = DecisionId::from_random(self.random_bytes());
        match approve::decide(
            verified,
            &terms,
            waiting.as_deref(),
            self.action_freeze(&input.action.name),
            self.decision_context(&rules),
            id,
        ) {
            Ok(GateDecision::Approved(approved)) => {
                self.issue(&attempt, *approved, position, transaction).await
            }
            Ok(GateDecision::Pending(pending)) => match waiting {
                Some(request) => {
                    self.attach(&attempt, &request)?;
                    self.count_decision("pending", &request.opened.decision.rules);
                    Ok(self.pending_reply(&attempt, &request, request.version))
                }
                None => {
                    self.open_access_request(&attempt, *pending, &history, transaction)
                        .await
                }
            },
            Ok(GateDecision::Denied(denied)) => self.deny(&attempt, *denied, transaction).await,
            Err(ApproveError::NoTime("evidence")) => Err(closed(&VerifyError::Stale).into()),
            Err(ApproveError::NoTime(_)) => Err(self
                .refuse(
                    call.method,
                    Reason::TaskEnded,
                    "less than a second of the task is left",
                )
                .into()),
            Err(ApproveError::RulesChanged) => Err(TransactionError::Retry),
            Err(error @ (ApproveError::OtherAction | ApproveError::NoTask)) => Err(self
                .refuse(call.method, Reason::DecisionUnavailable, error.to_string())
                .into()),
        }
    }

    /// The outcome of an idempotency key without an entry of its own: its access request expired, or the one it is
    /// attached to was decided.
    fn implied_outcome(
        &self,
        task: &TaskId,
        idempotency_key: &IdempotencyKey,
        now: Timestamp,
    ) -> Option<IdempotencyOutcome> {
        let expired =
            |r: &AccessRequest| r.status == StoredStatus::Pending && now >= r.opened.expires_at;
        if let Some(id) = self.attached_to(task, idempotency_key) {
            let attached = self.state.access_request(&id)?;
            let closed = matches!(
                attached.status,
                StoredStatus::Denied | StoredStatus::Closed(CloseCause::Expired)
            ) || expired(&attached);
            return closed.then_some(IdempotencyOutcome::Denied(id));
        }
        let requests = self.state.requests_of_task(task);
        requests
            .iter()
            .find(|r| r.opened.idempotency_key == *idempotency_key && expired(r))
            .map(|r| IdempotencyOutcome::Denied(r.opened.access_request))
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
    fn attach(&self, attempt: &TokenAttempt<'_>, request: &AccessRequest) -> Result<(), Refusal> {
        if request.opened.idempotency_key == attempt.input.idempotency_key {
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

    /// An idempotency key that waits for one action cannot be used for another: no approval of the one covers the other.
    fn check_same_action(&self, attempt: &TokenAttempt<'_>) -> Result<(), Refusal> {
        let TokenAttempt {
            call, input, now, ..
        } = *attempt;
        let attached = self.attached_to(&input.task, &input.idempotency_key);
        let differs = |r: &Arc<AccessRequest>| {
            (r.opened.idempotency_key == input.idempotency_key
                || Some(r.opened.access_request) == attached)
                && r.is_pending(now)
                && r.action.as_ref().is_some_and(|a| **a != input.action)
        };
        if self.state.requests_of_task(&input.task).iter().any(differs) {
            return Err(self.refuse(
                call.method,
                Reason::ApprovalOutOfScope,
                "this idempotency key waits for the approval of another action",
            ));
        }
        Ok(())
    }
}
