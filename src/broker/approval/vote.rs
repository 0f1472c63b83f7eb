//! Votes on access requests: the statement to sign, the signed vote, eligibility and denial limits.

mod statement;

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::approve::facts;
use crate::approve::vote_proof::{self, VoteProofError};
use crate::approve::votes::{self, Ineligible, SigningWith};
use crate::broker::auth::session::CountedAssertion;
use crate::broker::transaction::Step;
use crate::broker::{AccessView, Broker, CallContext, PersonCaller, Refusal, VoteProof};
use crate::card::{AccessRequestStatus, CardFacts};
use crate::journal::Blob;
use crate::model::*;
use crate::policy::{ActivePolicy, StepUpProfile};
use crate::state::{AccessRequest, Draft, Read, Recorded};
use crate::webauthn::WebauthnError;

/// A vote statement handed out and not yet signed.
#[derive(Clone)]
pub(in crate::broker) struct PendingStatement {
    text: String,
    /// The facts that it is for, in canonical JSON.
    facts: CardFacts,
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
    /// The person's passkeys that would count, by credential id in base64url.
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
    /// The digest of the facts that the card showed; `None` when the client compares the statement with the card itself.
    pub facts: Option<Digest>,
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
    /// The access request requires something else than what was shown.
    Reassessed,
    /// The access request can no longer be approved.
    Ended,
}

/// A vote that is recorded.
#[derive(Debug, Clone, Copy)]
struct RecordedVote {
    /// Whether this denial suspended the agent.
    suspended: bool,
    /// Whether this call recorded it, and not an earlier one with the same statement.
    is_new: bool,
}

/// A statement with the facts that it rests on.
type BegunVote = (VoteStatement, CardFacts);

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
    /// Records a signed vote. A vote issues no token. A crash before the append leaves no vote; after it, a vote that counts
    /// while its voter is eligible. The same statement again gets the answer of its recorded vote.
    pub async fn cast_vote(
        self: &Arc<Self>,
        call: &CallContext,
        id: AccessRequestId,
        text: &str,
        proof: VoteProof,
    ) -> Result<VoteOutcome, Refusal> {
        let voter = self.authenticate_person(call)?;
        // Votes on one request take turns: a repetition of this call waits for the first one.
        let deadline = self.journal.append_deadline();
        let stream = Stream::AccessRequest(id);
        let turn = self.take_turn(stream, call.method, deadline).await?;
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
        drop(turn);
        let mut view = self.view_of(call, &id)?;
        if view.request.opened.by_person().is_some() && view.status == AccessRequestStatus::Approved
        {
            // In its own task: a voter who disconnects does not cancel it. One that fails is put in force by maintenance.
            let (broker, method) = (Arc::clone(self), call.method);
            let applying = tokio::spawn(async move { broker.apply_agreed(method, id, true).await });
            if let Ok(Err(refusal)) = applying.await {
                tracing::warn!(access_request = %id, reason = %refusal.reason, "what was agreed is not in force yet");
            }
            view = self.view_of(call, &id)?;
        }
        if let (true, Some(pending)) = (recorded.is_new, &pending) {
            let now = self.now();
            let took = STATEMENT_LIFE_MS - pending.until.since(now);
            self.record_vote_metrics(before, &view, proof.method(), took, now);
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
        let denies = statement.verdict == Verdict::Deny;
        if let Some(step) = self.reassess_first(read, &request, &rules, (now, denies)) {
            return Ok(step);
        }
        // INVARIANT (a yes is for what was shown): the facts are those of the card.
        let facts = facts::card_facts(&request, &rules.bundle);
        if facts != pending.facts {
            let changed = pending.facts.changed(&facts).join(", ");
            let message = format!("what was shown has changed: {changed}: read the card again");
            return Err(self.refuse(call.method, Reason::ApprovalVoid, message));
        }
        let refuse =
            |why, is_counted| self.record_refusal(read, call, &request, &voter.id, why, is_counted);
        let vote = (&statement.profile.name, statement.verdict);
        let signed = (&voter.id, SigningWith::AnyKey);
        let defined = match self.eligible_profile(read, &rules, &request, signed, vote, now) {
            Ok(defined) => defined,
            Err(why) => return refuse(why, is_counted),
        };
        let Some(person) = rules.bundle.person(&voter.id) else {
            return refuse(Ineligible::NotApprover, is_counted);
        };
        if defined.reference() != statement.profile {
            let message = format!(
                "the profile {} has changed since the card was shown: read it again",
                defined.name
            );
            return Err(self.refuse(call.method, Reason::ApprovalVoid, message));
        }
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
            rules
                .bundle
                .vote_method(&defined, &request.opened.action.action),
            statement,
            proof,
            &self.limits.party,
        );
        let verified = match verified {
            Ok(verified) => verified,
            Err(VoteProofError::PasskeyRequired) => {
                return refuse(votes::passkey_required(&defined), is_counted);
            }
            Err(error) => return Err(self.refuse_proof(call, &error)),
        };
        let signed = (&voter.id, SigningWith::Key(key));
        if let Err(why) = self.eligible_profile(read, &rules, &request, signed, vote, now) {
            return refuse(why, is_counted);
        }
        let blob = Blob::new(text);
        let shown = facts
            .canonical()
            .map(Blob::new)
            .map_err(|e| self.refuse(call.method, Reason::DecisionUnavailable, e.to_string()))?;
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
            facts: shown.hash(),
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
            .with_blobs([blob, shown].into_iter().chain(evidence));
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
        let agent = request.opened.agent()?;
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
        method: VoteMethod,
        took_ms: i64,
        now: Timestamp,
    ) {
        let took = u64::try_from(took_ms).unwrap_or(0);
        self.metrics
            .vote_signed(method.as_str(), std::time::Duration::from_millis(took));
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
        (voter, signed): (&PersonId, SigningWith),
        (profile, verdict): (&ProfileName, Verdict),
        now: Timestamp,
    ) -> Result<Cow<'a, StepUpProfile>, Ineligible> {
        let voter_context = self.voter_context(read, rules);
        votes::eligible(voter, signed, profile, verdict, request, voter_context, now)
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
        if !std::mem::replace(is_counted, true)
            && let Some(task) = request.opened.task()
        {
            self.count_refusal(call, &task)?;
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
            VoteRefusal::Ended => {
                let message =
                    "the access request can no longer be approved; the vote has no effect";
                self.refuse(call.method, Reason::AccessRequestClosed, message)
            }
            VoteRefusal::Reassessed => {
                let message = "the approvals that it requires have changed: read the card again";
                self.refuse(call.method, Reason::ApprovalVoid, message)
            }
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
    let suspended = vote.cast.verdict == Verdict::Deny
        && request.opened.agent().is_some_and(|agent| {
            read.is_suspended(agent)
                && read.last_entry(&Stream::Agent(agent.clone())) == Some(request.version)
        });
    Some(RecordedVote {
        suspended,
        is_new: false,
    })
}
