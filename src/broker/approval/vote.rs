//! Votes on access requests: the statement to sign, the signed vote, eligibility and denial limits.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::approve::vote_proof::{self, VoteProofError};
use crate::approve::votes::{self, Ineligible};
use crate::broker::{AccessView, Broker, CallContext, PersonCaller, Refusal, VoteProof};
use crate::card::AccessRequestStatus;
use crate::journal::{Append, AppendError, Blob, NewEvent};
use crate::model::*;
use crate::policy::{ActivePolicy, StepUpProfile};
use crate::state::{AccessRequest, AccessRequestHistory, VoteRecord};
use crate::webauthn::WebauthnError;

/// A vote statement handed out and not yet signed.
#[derive(Clone)]
pub(in crate::broker) struct PendingStatement {
    text: String,
    statement: VoteStatement,
    voter: PersonId,
    until: Timestamp,
}

/// The statement to sign.
#[derive(Debug)]
pub struct VoteStatementReply {
    /// Canonical JSON.
    pub statement: String,
    /// Its digest: what is signed, or the challenge of a passkey.
    pub challenge: Digest,
    /// The person's passkeys, by credential id in base64url.
    pub credentials: Vec<String>,
}

/// An accepted vote.
#[derive(Debug)]
pub struct VoteOutcome {
    /// The access request after the vote.
    pub view: AccessView,
    /// Whether this denial reached the limit and suspended the agent.
    pub suspended: bool,
}

/// The input of a vote.
#[derive(Debug)]
pub struct VoteInput {
    /// The profile to vote under.
    pub profile: ProfileName,
    /// Approve or deny.
    pub verdict: Verdict,
    /// Limits that the approver sets below the requested ones.
    pub narrowing: Narrowing,
    /// A comment for the agent.
    pub comment: Option<Comment>,
    /// The policy bundle of the card that was read; `None` when the client compares the statement with the card itself.
    pub policy: Option<Digest>,
}

/// Lifetime of an unsigned statement, in milliseconds.
const STATEMENT_LIFE_MS: i64 = 120_000;
/// Most unsigned statements of one person.
const STATEMENTS_MAX: usize = 100;
/// Attempts to append a vote when other votes come first.
const VOTE_ATTEMPTS: usize = 128;

impl Broker {
    /// Returns the statement to sign, if the caller's vote would count. It is kept in memory for two minutes.
    pub async fn begin_vote(
        &self,
        call: &CallContext,
        id: AccessRequestId,
        input: VoteInput,
    ) -> Result<VoteStatementReply, Refusal> {
        let VoteInput {
            profile,
            verdict,
            narrowing,
            comment,
            policy,
        } = input;
        let now = self.now();
        let voter = self.authenticate_person(call)?;
        let rules = self.rules(call)?;
        let request = self.open_for_votes(call, &id, now)?;
        let defined = self
            .eligible_profile(call, &rules, &request, &voter.id, (&profile, verdict), now)
            .await?;
        // INVARIANT (what the approver sees is what is signed): the catalogue's words on the card are of this bundle.
        if policy.is_some_and(|policy| policy != rules.bundle.version()) {
            let message = "other rules are in force than when the card was shown";
            return Err(self.refuse(call.method, Reason::PolicyChanged, message));
        }
        if verdict == Verdict::Approve {
            self.check_dwell(call, &voter.id, &request, &rules, now)?;
        }
        let uses = match (narrowing.max_uses, request.opened.uses) {
            (Some(0), _) => {
                return Err(self.refuse(
                    call.method,
                    Reason::Malformed,
                    "`max_uses`: expected a number above zero, got 0",
                ));
            }
            (Some(fewer), Some(uses)) if fewer > uses => {
                let message = format!("`max_uses`: expected 1 to {uses}, got {fewer}");
                return Err(self.refuse(call.method, Reason::Malformed, message));
            }
            (Some(fewer), _) => Some(fewer),
            (None, uses) => uses,
        };
        let max_ttl = match narrowing.max_ttl {
            Some(ttl) if ttl <= 0 || ttl > request.opened.max_ttl => {
                let message = format!(
                    "`max_ttl`: expected 1 to {} seconds, got {ttl}",
                    request.opened.max_ttl
                );
                return Err(self.refuse(call.method, Reason::InvalidTtl, message));
            }
            Some(ttl) => ttl,
            None => request.opened.max_ttl,
        };
        let (Some(action), Some(task)) = (&request.action, self.state.task(&request.opened.task))
        else {
            return Err(self.refuse(
                call.method,
                Reason::AccessRequestClosed,
                "the action is no longer on record",
            ));
        };
        let statement = VoteStatement {
            v: 1,
            realm: self.settings.realm.clone(),
            access_request_id: id,
            agent: request.opened.agent.clone(),
            owner: request.opened.owner.clone(),
            task: request.opened.task,
            task_key: task.opened.binding.jkt(),
            action: action.to_json(),
            max_ttl,
            uses,
            comment,
            policy: rules.bundle.version(),
            profile: defined.reference(),
            verdict,
            not_after: now.plus_secs(i64::from(defined.good_for_s)).secs(),
            nonce: URL_SAFE_NO_PAD.encode(self.random_bytes()),
        };
        let text = statement
            .canonical()
            .map_err(|e| self.refuse(call.method, Reason::DecisionUnavailable, e.to_string()))?;
        let mut statements = self.lock(&self.statements);
        statements.retain(|_, pending| now < pending.until);
        let of_voter = statements
            .values()
            .filter(|pending| pending.voter == voter.id)
            .count();
        // The person's oldest statement is dropped: one person cannot displace the statements of others.
        if of_voter >= STATEMENTS_MAX {
            let oldest = statements
                .iter()
                .filter(|(_, pending)| pending.voter == voter.id)
                .min_by_key(|(_, pending)| pending.until)
                .map(|(nonce, _)| nonce.clone());
            oldest.map(|nonce| statements.remove(&nonce));
        }
        let challenge = statement
            .digest()
            .map_err(|e| self.refuse(call.method, Reason::DecisionUnavailable, e.to_string()))?;
        let enrolled = self.state.credentials().get(&voter.id);
        let pending = PendingStatement {
            text: text.clone(),
            statement,
            voter: voter.id,
            until: now.plus_millis(STATEMENT_LIFE_MS),
        };
        statements.insert(pending.statement.nonce.clone(), pending);
        Ok(VoteStatementReply {
            statement: text,
            challenge,
            credentials: enrolled
                .value
                .passkeys
                .iter()
                .map(|p| p.record.credential.clone())
                .collect(),
        })
    }

    /// Records a signed vote. A vote issues no token. A crash before the append leaves no vote; after it, a vote that counts
    /// while its voter is eligible. The same statement again gets the answer of its recorded vote.
    pub async fn cast_vote(
        &self,
        call: &CallContext,
        id: AccessRequestId,
        text: &str,
        proof: VoteProof,
    ) -> Result<VoteOutcome, Refusal> {
        let voter = self.authenticate_person(call)?;
        // Votes on one request take turns: a repetition of this call waits for the first one.
        let deadline = self.journal.append_deadline();
        let stream = Stream::AccessRequest(id);
        let _turn = self.take_turn(stream, call.method, deadline).await?;
        if let Some(recorded) = self.recorded_vote(call, &id, &voter.id, text)? {
            return Ok(recorded);
        }
        let nonce = VoteStatement::parse(text)
            .ok()
            .map(|s| s.nonce)
            .unwrap_or_default();
        let now = self.now();
        let pending = self.lock(&self.statements).get(&nonce).cloned();
        let pending = pending.filter(|pending| {
            pending.text == text
                && pending.voter == voter.id
                && pending.statement.access_request_id == id
                && now < pending.until
        });
        let Some(pending) = pending else {
            return Err(self.refuse(
                call.method,
                Reason::VoteStatementExpired,
                "no unsigned statement of yours matches: begin the vote again",
            ));
        };
        let outcome = self
            .cast_pending(call, id, &voter, (pending, deadline), proof)
            .await;
        // After the answer: the voter can repeat a call whose connection was lost before it.
        self.lock(&self.statements).remove(&nonce);
        outcome
    }

    /// The answer to a statement whose vote is on record.
    fn recorded_vote(
        &self,
        call: &CallContext,
        id: &AccessRequestId,
        voter: &PersonId,
        text: &str,
    ) -> Result<Option<VoteOutcome>, Refusal> {
        let request = self.find_request(call, id)?;
        let statement = Digest::sha256(text.as_bytes());
        let same = |v: &&Arc<VoteRecord>| v.cast.voter == *voter && v.cast.statement == statement;
        let Some(vote) = request.votes.iter().find(same) else {
            return Ok(None);
        };
        // A denial is the last entry of its request, and the suspension that it caused is the entry after it.
        let agent = self.state.agent_status(&request.opened.agent);
        let suspended = vote.cast.verdict == Verdict::Deny
            && agent.value.suspended
            && agent.version == request.version + 1;
        let view = self.view_of(call, id)?;
        Ok(Some(VoteOutcome { view, suspended }))
    }

    async fn cast_pending(
        &self,
        call: &CallContext,
        id: AccessRequestId,
        voter: &PersonCaller,
        (pending, deadline): (PendingStatement, tokio::time::Instant),
        proof: VoteProof,
    ) -> Result<VoteOutcome, Refusal> {
        let PendingStatement {
            text,
            statement,
            until,
            ..
        } = pending;
        let key = match &proof {
            VoteProof::Signature(_) => voter.key,
            VoteProof::Passkey(assertion) => self.passkey_for(call, &voter.id, assertion)?,
        };
        let evidence = match &proof {
            VoteProof::Signature(_) => None,
            VoteProof::Passkey(assertion) => {
                let evidence = assertion.evidence().map_err(|e| {
                    self.refuse(call.method, Reason::InvalidPasskeyAssertion, e.to_string())
                })?;
                Some(Blob::new(evidence))
            }
        };
        let signature = URL_SAFE_NO_PAD.encode(match &proof {
            VoteProof::Signature(signature) => signature,
            VoteProof::Passkey(assertion) => &assertion.signature,
        });
        let (text, statement, proof) = (text.as_str(), &statement, &proof);
        let (evidence, signature) = (&evidence, &signature);
        self.transaction_until(
            deadline,
            call.method,
            VOTE_ATTEMPTS,
            "others keep voting",
            |attempt| async move {
                let now = self.now();
                let rules = self.rules(call)?;
                // Read before the check that it is open: an end after this line refuses the append.
                let opened = self.find_request(call, &id)?.opened.clone();
                let read_set = self.request_read_set(&opened);
                let enrolled = self.state.credentials().get(&voter.id);
                let history = self.state.access_request_history(&opened.agent);
                let request = self.open_for_votes(call, &id, now)?;
                let vote = (&statement.profile.name, statement.verdict);
                let defined = self
                    .eligible_profile(call, &rules, &request, &voter.id, vote, now)
                    .await?;
                let Some(person) = rules.bundle.person(&voter.id) else {
                    let why = Ineligible::NotApprover;
                    return Err(self
                        .refuse_vote(call, &request, &voter.id, why)
                        .await
                        .into());
                };
                let verified = vote_proof::verify_signature(
                    person,
                    &enrolled.value,
                    key,
                    defined.method,
                    statement,
                    proof,
                    &self.limits.party,
                );
                let verified = match verified {
                    Ok(verified) => verified,
                    Err(error) => {
                        let refusal = self.refuse_proof(call, &request, &voter.id, &error).await;
                        return Err(refusal.into());
                    }
                };
                // The counter is checked once: a retry after a conflict carries the same assertion.
                if let Some(passkey) = verified
                    && attempt.is_first()
                {
                    self.check_signature_counter(call.method, &voter.id, key, passkey.sign_count)
                        .await?;
                }
                let blob = Blob::new(text);
                let event = Event::VoteCast(VoteCast {
                    access_request: id,
                    voter: voter.id.clone(),
                    key,
                    verdict: statement.verdict,
                    profile: statement.profile.clone(),
                    max_ttl: statement.max_ttl,
                    uses: statement.uses,
                    not_after: Timestamp::from_secs(statement.not_after),
                    statement: blob.hash(),
                    signature: signature.clone(),
                    assertion: evidence.as_ref().map(Blob::hash),
                    sign_count: verified.map(|passkey| passkey.sign_count),
                });
                let mut append = Append {
                    read_set: [
                        (Stream::Policy, rules.version),
                        (Stream::Person(voter.id.clone()), enrolled.version),
                    ]
                    .into_iter()
                    .chain(read_set)
                    .collect(),
                    not_after: Some(request.opened.expires_at),
                    blobs: std::iter::once(blob).chain(evidence.clone()).collect(),
                    ..Append::one(event, vec![(Stream::AccessRequest(id), request.version)])
                };
                if statement.verdict == Verdict::Deny {
                    let suspension_after_denials = self.suspension_after_denials(
                        &opened,
                        &voter.id,
                        &history.value,
                        &rules,
                        now,
                    );
                    if let Some(vote) = append.events.first_mut() {
                        // A request that counted denials before this one conflicts.
                        let history =
                            (Stream::AgentRequests(opened.agent.clone()), history.version);
                        vote.write_set.push(history);
                    }
                    append.events.extend(suspension_after_denials);
                }
                let before = self.view(request, &rules, now).status;
                let suspended = append.events.len() > 1;
                attempt.append(append).await?;
                let view = self.view_of(call, &id)?;
                let took = STATEMENT_LIFE_MS - until.since(now);
                self.record_vote_metrics(before, &view, took, now);
                Ok(VoteOutcome { view, suspended })
            },
        )
        .await
    }

    /// Whether a statement of this access request was handed out and is not yet signed.
    pub(in crate::broker) fn has_pending_statement(
        &self,
        id: &AccessRequestId,
        now: Timestamp,
    ) -> bool {
        let statements = self.lock(&self.statements);
        statements
            .values()
            .any(|pending| pending.statement.access_request_id == *id && now < pending.until)
    }

    /// The event that suspends the agent, in the vote's append, when this denial reaches the policy bundle's limit.
    fn suspension_after_denials(
        &self,
        opened: &AccessRequestOpened,
        voter: &PersonId,
        history: &AccessRequestHistory,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> Option<NewEvent> {
        let approvals = rules.bundle.approval_limits();
        let since = now.plus_secs(-i64::from(approvals.quarantine_within_s));
        let denials = u32::try_from(history.denials_since(since) + 1).unwrap_or(u32::MAX);
        let status = self.state.agent_status(&opened.agent);
        let due =
            approvals.quarantine > 0 && denials >= approvals.quarantine && !status.value.suspended;
        due.then(|| NewEvent {
            event: Event::AgentSuspended(AgentSuspended {
                agent: opened.agent.clone(),
                by: voter.clone(),
                reason: None,
                denials: Some(denials),
            }),
            write_set: vec![(Stream::Agent(opened.agent.clone()), status.version)],
        })
    }

    fn record_vote_metrics(
        &self,
        before: AccessRequestStatus,
        view: &AccessView,
        took_ms: i64,
        now: Timestamp,
    ) {
        let took = u64::try_from(took_ms).unwrap_or(0);
        self.metrics
            .vote_signed(std::time::Duration::from_millis(took));
        let outcome = match view.status {
            AccessRequestStatus::Approved => "approved",
            AccessRequestStatus::Denied => "denied",
            AccessRequestStatus::Waiting
            | AccessRequestStatus::Consumed
            | AccessRequestStatus::Cancelled
            | AccessRequestStatus::Expired
            | AccessRequestStatus::ApprovalExpired
            | AccessRequestStatus::Ended => return,
        };
        // Counted once: an approved request no longer waits for votes.
        if before != AccessRequestStatus::Waiting {
            return;
        }
        self.count_wait(outcome, view.request.opened_at, now);
    }

    /// The owner at the opening of the task never votes, even after the agent changed owner.
    pub(in crate::broker) fn reject_task_owner(
        &self,
        request: &AccessRequest,
        voter: &PersonId,
    ) -> Result<(), Ineligible> {
        let task = self.state.task(&request.opened.task);
        match task {
            Some(task) if task.opened.owner != *voter => Ok(()),
            Some(_) | None => Err(Ineligible::Owner),
        }
    }

    /// The definition of the profile under which this person's vote would count; records an ineligible vote.
    async fn eligible_profile<'a>(
        &'a self,
        call: &CallContext,
        rules: &'a ActivePolicy,
        request: &AccessRequest,
        voter: &PersonId,
        (profile, verdict): (&ProfileName, Verdict),
        now: Timestamp,
    ) -> Result<&'a StepUpProfile, Refusal> {
        let voter_context = self.voter_context(&rules.bundle);
        let eligible = votes::eligible(voter, profile, verdict, request, voter_context, now);
        match self.reject_task_owner(request, voter).and(eligible) {
            Ok(defined) => Ok(defined),
            Err(why) => Err(self.refuse_vote(call, request, voter, why).await),
        }
    }

    /// Refuses a vote whose proof does not hold.
    async fn refuse_proof(
        &self,
        call: &CallContext,
        request: &AccessRequest,
        voter: &PersonId,
        error: &VoteProofError,
    ) -> Refusal {
        match error {
            VoteProofError::PasskeyRequired => {
                self.refuse_vote(call, request, voter, Ineligible::PasskeyRequired)
                    .await
            }
            VoteProofError::Signature => self.refuse(
                call.method,
                Reason::InvalidSignature,
                "the signature is not of this statement by the key of this call",
            ),
            VoteProofError::Passkey(WebauthnError::BackupEligibility) => {
                self.refuse_changed_passkey(call.method)
            }
            VoteProofError::NotEnrolled | VoteProofError::Passkey(_) => self.refuse(
                call.method,
                Reason::InvalidPasskeyAssertion,
                error.to_string(),
            ),
        }
    }

    /// Records an ineligible vote, once for its voter and reason; it changes nothing.
    async fn refuse_vote(
        &self,
        call: &CallContext,
        request: &AccessRequest,
        voter: &PersonId,
        why: Ineligible,
    ) -> Refusal {
        if let Err(refusal) = self.count_refusal(call, &request.opened.task) {
            return refusal;
        }
        let (id, reason) = (request.opened.access_request, why.to_string());
        let stream = Stream::refused_vote(id, voter.clone(), &reason);
        let event = Event::VoteRefused(VoteRefused {
            access_request: id,
            voter: voter.clone(),
            reason,
        });
        match self
            .journal
            .append(Append::one(event, vec![(stream, 0)]))
            .await
        {
            // A conflict: an earlier call recorded it.
            Ok(_) | Err(AppendError::Conflict(_)) => self.refuse(
                call.method,
                Reason::NotEligible,
                format!("your vote would not count: {why}"),
            ),
            Err(error) => self.refuse_append(call.method, &error),
        }
    }

    fn open_for_votes(
        &self,
        call: &CallContext,
        id: &AccessRequestId,
        now: Timestamp,
    ) -> Result<Arc<AccessRequest>, Refusal> {
        let request = self.find_request(call, id)?;
        if self.is_open_for_votes(&request, now) {
            Ok(request)
        } else {
            Err(self.refuse(
                call.method,
                Reason::AccessRequestClosed,
                "the access request no longer waits; the vote has no effect",
            ))
        }
    }
}
