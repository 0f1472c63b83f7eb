//! Votes on access requests: the statement to sign, the signed vote, eligibility and denial limits.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::approve::vote_proof::{self, VoteProofError};
use crate::approve::votes::{self, Ineligible};
use crate::broker::auth::session::CountedAssertion;
use crate::broker::transaction::Step;
use crate::broker::{AccessView, Broker, CallContext, PersonCaller, Refusal, VoteProof};
use crate::card::AccessRequestStatus;
use crate::journal::Blob;
use crate::model::*;
use crate::policy::{ActivePolicy, StepUpProfile};
use crate::state::{AccessRequest, Draft, Read, Recorded};
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
    /// False: an earlier call with the same statement recorded it.
    pub is_new: bool,
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

/// Why a vote was refused by an entry: the refusal follows the entry.
#[derive(Debug, Clone, Copy)]
enum VoteRefusal {
    /// It would not count.
    Ineligible(Ineligible),
    /// The signature counter of its passkey went back, and the passkey was revoked.
    CopiedPasskey,
}

/// A vote that is recorded.
#[derive(Debug, Clone, Copy)]
struct RecordedVote {
    /// Whether this denial suspended the agent.
    suspended: bool,
    /// Whether this call recorded it, and not an earlier one with the same statement.
    is_new: bool,
}

/// A call that casts a vote.
struct CastInput<'a> {
    id: AccessRequestId,
    voter: &'a PersonCaller,
    text: &'a str,
    /// The statement that was handed out; absent when it has expired.
    pending: Option<&'a PendingStatement>,
    proof: &'a VoteProof,
}

impl Broker {
    /// Returns the statement to sign, if the caller's vote would count. It is kept in memory for two minutes.
    pub async fn begin_vote(
        &self,
        call: &CallContext,
        id: AccessRequestId,
        input: VoteInput,
    ) -> Result<VoteStatementReply, Refusal> {
        let voter = self.authenticate_person(call)?;
        let mut is_counted = false;
        let begun = self
            .transaction(call.method)
            .run(|read| self.decide_statement(read, call, id, &voter, &input, &mut is_counted))
            .await?
            .value;
        let statement = begun.map_err(|why| self.refuse_vote(call, why))?;
        let now = self.now();
        let broken = |e: json::JsonError| {
            self.refuse(call.method, Reason::DecisionUnavailable, e.to_string())
        };
        let text = statement.canonical().map_err(broken)?;
        let challenge = statement.digest().map_err(broken)?;
        let enrolled = self.show().person(&voter.id);
        let credentials = enrolled.passkeys.iter();
        let credentials = credentials.map(|p| p.record.credential.clone()).collect();
        self.keep_statement(text.clone(), statement, voter.id, now);
        Ok(VoteStatementReply {
            statement: text,
            challenge,
            credentials,
        })
    }

    /// The statement of a vote that would count.
    fn decide_statement(
        &self,
        read: &Read,
        call: &CallContext,
        id: AccessRequestId,
        voter: &PersonCaller,
        input: &VoteInput,
        is_counted: &mut bool,
    ) -> Result<Step<Result<VoteStatement, VoteRefusal>>, Refusal> {
        let now = self.now();
        let rules = self.require_person(read, call, voter)?;
        let request = self.open_for_votes(read, call, &id, now)?;
        let vote = (&input.profile, input.verdict);
        let defined = match self.eligible_profile(read, &rules, &request, &voter.id, vote, now) {
            Ok(defined) => defined,
            Err(why) => {
                return self.record_refusal(read, call, &request, &voter.id, why, is_counted);
            }
        };
        // INVARIANT (what the approver sees is what is signed): the catalogue's words on the card are of this bundle.
        if input
            .policy
            .is_some_and(|policy| policy != rules.bundle.version())
        {
            let message = "other rules are in force than when the card was shown";
            return Err(self.refuse(call.method, Reason::PolicyChanged, message));
        }
        if input.verdict == Verdict::Approve {
            self.check_dwell(call, &voter.id, &request, &rules, now)?;
        }
        let (max_ttl, uses) = self.narrowed(call, &request.opened, &input.narrowing)?;
        let (Some(action), Some(task)) = (&request.action, read.task(&request.opened.task)) else {
            return Err(self.refuse(
                call.method,
                Reason::AccessRequestClosed,
                "the action is no longer on record",
            ));
        };
        Ok(Step::Answer(Ok(VoteStatement {
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
            comment: input.comment.clone(),
            policy: rules.bundle.version(),
            profile: defined.reference(),
            verdict: input.verdict,
            not_after: now.plus_secs(i64::from(defined.good_for_s)).secs(),
            nonce: URL_SAFE_NO_PAD.encode(self.random_bytes()),
        })))
    }

    /// The lifetime and the uses that a vote agrees to: the requested ones, or fewer.
    fn narrowed(
        &self,
        call: &CallContext,
        opened: &AccessRequestOpened,
        narrowing: &Narrowing,
    ) -> Result<(i64, Option<u32>), Refusal> {
        let uses = match (narrowing.max_uses, opened.uses) {
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
            Some(ttl) if ttl <= 0 || ttl > opened.max_ttl => {
                let most = opened.max_ttl;
                let message = format!("`max_ttl`: expected 1 to {most} seconds, got {ttl}");
                return Err(self.refuse(call.method, Reason::InvalidTtl, message));
            }
            Some(ttl) => ttl,
            None => opened.max_ttl,
        };
        Ok((max_ttl, uses))
    }

    /// Keeps a statement until it is signed or expires.
    fn keep_statement(
        &self,
        text: String,
        statement: VoteStatement,
        voter: PersonId,
        now: Timestamp,
    ) {
        let mut statements = self.lock(&self.statements);
        statements.retain(|_, pending| now < pending.until);
        let of_voter = statements
            .iter()
            .filter(|(_, pending)| pending.voter == voter);
        // The person's oldest statement is dropped: one person cannot displace the statements of others.
        if of_voter.clone().count() >= STATEMENTS_MAX {
            let oldest = of_voter
                .min_by_key(|(_, pending)| pending.until)
                .map(|(nonce, _)| nonce.clone());
            oldest.map(|nonce| statements.remove(&nonce));
        }
        let nonce = statement.nonce.clone();
        let pending = PendingStatement {
            text,
            statement,
            voter,
            until: now.plus_millis(STATEMENT_LIFE_MS),
        };
        statements.insert(nonce, pending);
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
        let nonce = VoteStatement::parse(text)
            .ok()
            .map(|s| s.nonce)
            .unwrap_or_default();
        let pending = self.lock(&self.statements).get(&nonce).cloned();
        let pending = pending.filter(|pending| {
            pending.text == text
                && pending.voter == voter.id
                && pending.statement.access_request_id == id
        });
        let input = CastInput {
            id,
            voter: &voter,
            text,
            pending: pending.as_ref(),
            proof: &proof,
        };
        let before = self.view_of(call, &id)?.status;
        let mut is_counted = false;
        let done = self
            .transaction_until(deadline, call.method)
            .run(|read| self.decide_vote(read, call, &input, &mut is_counted))
            .await;
        // After a final answer: the voter can repeat a call whose connection was lost before it, and one that the journal did not take.
        let is_final = done.as_ref().map_or_else(
            |refusal| refusal.reason.retry() == RetryHint::Never,
            |_| true,
        );
        if pending.is_some() && is_final {
            self.lock(&self.statements).remove(&nonce);
        }
        let recorded = done?.value.map_err(|why| self.refuse_vote(call, why))?;
        let view = self.view_of(call, &id)?;
        if let (true, Some(pending)) = (recorded.is_new, &pending) {
            let now = self.now();
            let took = STATEMENT_LIFE_MS - pending.until.since(now);
            self.record_vote_metrics(before, &view, took, now);
        }
        Ok(VoteOutcome {
            view,
            suspended: recorded.suspended,
            is_new: recorded.is_new,
        })
    }

    /// One round of a vote: the voter's authority, the request, eligibility, the proof.
    fn decide_vote(
        &self,
        read: &Read,
        call: &CallContext,
        input: &CastInput<'_>,
        is_counted: &mut bool,
    ) -> Result<Step<Result<RecordedVote, VoteRefusal>>, Refusal> {
        let CastInput {
            id,
            voter,
            text,
            proof,
            ..
        } = *input;
        let now = self.now();
        let rules = self.require_person(read, call, voter)?;
        let request = self.find_request(read, call, &id)?;
        if let Some(recorded) = recorded_vote(read, &request, &voter.id, text) {
            return Ok(Step::Answer(Ok(recorded)));
        }
        let Some(pending) = input.pending.filter(|pending| now < pending.until) else {
            return Err(self.refuse(
                call.method,
                Reason::VoteStatementExpired,
                "no unsigned statement of yours matches: begin the vote again",
            ));
        };
        let statement = &pending.statement;
        let request = self.open_for_votes(read, call, &id, now)?;
        let refuse =
            |why, is_counted| self.record_refusal(read, call, &request, &voter.id, why, is_counted);
        let vote = (&statement.profile.name, statement.verdict);
        let defined = match self.eligible_profile(read, &rules, &request, &voter.id, vote, now) {
            Ok(defined) => defined,
            Err(why) => return refuse(why, is_counted),
        };
        let Some(person) = rules.bundle.person(&voter.id) else {
            return refuse(Ineligible::NotApprover, is_counted);
        };
        let (key, signature, evidence) = match proof {
            VoteProof::Signature(signature) => (voter.key, signature, None),
            VoteProof::Passkey(assertion) => {
                let key = self.passkey_for(read, call, &voter.id, assertion)?;
                let evidence = assertion.evidence().map_err(|e| {
                    self.refuse(call.method, Reason::InvalidPasskeyAssertion, e.to_string())
                })?;
                (key, &assertion.signature, Some(Blob::new(evidence)))
            }
        };
        let verified = vote_proof::verify_signature(
            person,
            &read.person(&voter.id),
            key,
            defined.method,
            statement,
            proof,
            &self.limits.party,
        );
        let verified = match verified {
            Ok(verified) => verified,
            Err(VoteProofError::PasskeyRequired) => {
                return refuse(Ineligible::PasskeyRequired, is_counted);
            }
            Err(error) => return Err(self.refuse_proof(call, &error)),
        };
        let blob = Blob::new(text);
        let hash = blob.hash();
        if let Some(passkey) = verified {
            let assertion = CountedAssertion {
                person: &voter.id,
                key,
                count: passkey.sign_count,
                challenge: hash.as_bytes(),
            };
            if let Some(revoked) = self.revocation_for_counter(read, assertion) {
                let draft = Draft::one(revoked);
                return Ok(Step::Append(draft, Err(VoteRefusal::CopiedPasskey)));
            }
        }
        let mut events = vec![Event::VoteCast(VoteCast {
            access_request: id,
            voter: voter.id.clone(),
            key,
            verdict: statement.verdict,
            profile: statement.profile.clone(),
            max_ttl: statement.max_ttl,
            uses: statement.uses,
            not_after: Timestamp::from_secs(statement.not_after),
            statement: blob.hash(),
            signature: URL_SAFE_NO_PAD.encode(signature),
            assertion: evidence.as_ref().map(Blob::hash),
            sign_count: verified.map(|passkey| passkey.sign_count),
        })];
        if statement.verdict == Verdict::Deny {
            events.extend(self.suspension_after_denial(read, &request, &voter.id, &rules, now));
        }
        let recorded = RecordedVote {
            suspended: events.len() > 1,
            is_new: true,
        };
        let draft = Draft::all(events)
            .not_after(request.opened.expires_at)
            .with_blobs(std::iter::once(blob).chain(evidence));
        Ok(Step::Append(draft, Ok(recorded)))
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
    fn suspension_after_denial(
        &self,
        read: &Read,
        request: &AccessRequest,
        voter: &PersonId,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> Option<Event> {
        let agent = &request.opened.agent;
        let approvals = rules.bundle.approval_limits();
        let since = now.plus_secs(-i64::from(approvals.quarantine_within_s));
        let before = read.denials(agent).into_iter().filter(|at| *at > since);
        let denials = u32::try_from(before.count() + 1).unwrap_or(u32::MAX);
        let due = approvals.quarantine > 0
            && denials >= approvals.quarantine
            && !read.is_suspended(agent);
        due.then(|| {
            Event::AgentSuspended(AgentSuspended {
                agent: agent.clone(),
                by: voter.clone(),
                reason: None,
                denials: Some(denials),
            })
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

    /// The definition of the profile under which this person's vote would count.
    fn eligible_profile<'a>(
        &'a self,
        read: &'a Read,
        rules: &'a ActivePolicy,
        request: &Recorded<'_, AccessRequest>,
        voter: &PersonId,
        (profile, verdict): (&ProfileName, Verdict),
        now: Timestamp,
    ) -> Result<&'a StepUpProfile, Ineligible> {
        let voter_context = self.voter_context(read, rules);
        votes::eligible(voter, profile, verdict, request, voter_context, now)
    }

    /// Refuses a vote that would not count. The refusal is on record once for its voter and reason; it changes nothing.
    fn record_refusal<T>(
        &self,
        read: &Read,
        call: &CallContext,
        request: &AccessRequest,
        voter: &PersonId,
        why: Ineligible,
        is_counted: &mut bool,
    ) -> Result<Step<Result<T, VoteRefusal>>, Refusal> {
        let (id, reason) = (request.opened.access_request, why.to_string());
        let refused = Err(VoteRefusal::Ineligible(why));
        if read.is_vote_refused(id, voter, &reason) {
            return Ok(Step::Answer(refused));
        }
        // Once for a call, however often its round is asked again.
        if !std::mem::replace(is_counted, true) {
            self.count_refusal(call, &request.opened.task)?;
        }
        let event = Event::VoteRefused(VoteRefused {
            access_request: id,
            voter: voter.clone(),
            reason,
        });
        Ok(Step::Append(Draft::one(event), refused))
    }

    fn refuse_vote(&self, call: &CallContext, why: VoteRefusal) -> Refusal {
        match why {
            VoteRefusal::Ineligible(why) => {
                let message = format!("your vote would not count: {why}");
                self.refuse(call.method, Reason::NotEligible, message)
            }
            VoteRefusal::CopiedPasskey => self.refuse_copied_passkey(call.method),
        }
    }

    /// Refuses a vote whose proof does not hold.
    fn refuse_proof(&self, call: &CallContext, error: &VoteProofError) -> Refusal {
        match error {
            VoteProofError::Signature => self.refuse(
                call.method,
                Reason::InvalidSignature,
                "the signature is not of this statement by the key of this call",
            ),
            VoteProofError::Passkey(WebauthnError::BackupEligibility) => {
                self.refuse_changed_passkey(call.method)
            }
            VoteProofError::PasskeyRequired
            | VoteProofError::NotEnrolled
            | VoteProofError::Passkey(_) => self.refuse(
                call.method,
                Reason::InvalidPasskeyAssertion,
                error.to_string(),
            ),
        }
    }

    fn open_for_votes<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        id: &AccessRequestId,
        now: Timestamp,
    ) -> Result<Recorded<'r, AccessRequest>, Refusal> {
        let request = self.find_request(read, call, id)?;
        if self.is_open_for_votes(read, &request, now) {
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

/// The vote of a statement that is on record.
fn recorded_vote(
    read: &Read,
    request: &AccessRequest,
    voter: &PersonId,
    text: &str,
) -> Option<RecordedVote> {
    let statement = Digest::sha256(text.as_bytes());
    let mut votes = request.votes.iter();
    let vote = votes.find(|v| v.cast.voter == *voter && v.cast.statement == statement)?;
    // A denial is the last entry of its request, and the suspension that it caused is the entry after it.
    let agent = &request.opened.agent;
    let suspended = vote.cast.verdict == Verdict::Deny
        && read.is_suspended(agent)
        && read.last_entry(&Stream::Agent(agent.clone())) == Some(request.version);
    Some(RecordedVote {
        suspended,
        is_new: false,
    })
}
