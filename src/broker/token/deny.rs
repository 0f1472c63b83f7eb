//! Denying a token: by a rule, by an approver, or because the action is unknown.

use std::collections::BTreeSet;

use crate::approve::{self, DeniedDecision};
use crate::broker::token::request::{DeniedReply, Evaluation, RequestTokenInput, TokenAttempt};
use crate::broker::transaction::Step;
use crate::broker::{Broker, Refusal};
use crate::journal::Blob;
use crate::model::*;
use crate::policy::ActionError;
use crate::state::{AccessRequest, Draft, Recorded, StoredStatus};

impl Broker {
    /// Answers a retry after an approver's denial or expiry: the outcome of the idempotency key never changes.
    pub(in crate::broker) fn replay_denial(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        request: &Recorded<'_, AccessRequest>,
    ) -> Result<Step<Evaluation>, Refusal> {
        let TokenAttempt {
            call,
            input,
            authenticated,
            ..
        } = *attempt;
        self.require_same_executor(attempt, request)?;
        if request.action.as_ref().is_some_and(|a| **a != input.action) {
            return Err(self.refuse(
                call.method,
                Reason::ApprovalOutOfScope,
                "this idempotency key was decided for another action",
            ));
        }
        let why = if request.status == StoredStatus::Denied {
            DeniedReason::DeniedByApprover
        } else if request.status == StoredStatus::Closed(CloseCause::NoEligibleApprover) {
            DeniedReason::NoEligibleApprover
        } else if request.has_approval() {
            DeniedReason::ApprovalExpired
        } else {
            DeniedReason::Expired
        };
        let denied = DeniedReply {
            why,
            decision: request.decision.as_ref().map(|decision| decision.id),
            rules: self.rules_shown(request.rules()),
            access_request: Some(request.opened.access_request),
            comment: request.comment(),
            facts: authenticated.facts().clone(),
        };
        Ok(Step::Answer(Evaluation::Denied(Box::new(denied), None)))
    }

    /// Denies by a rule: one entry, unless the idempotency key got the same answer last.
    pub(in crate::broker) fn deny(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        denied: DeniedDecision,
        waiting: Option<(AccessRequestId, Timestamp)>,
        is_counted: &mut bool,
    ) -> Result<Step<Evaluation>, Refusal> {
        let sensitive = attempt
            .rules
            .bundle
            .action(&attempt.input.action.name)
            .map(|a| a.sensitive())
            .unwrap_or_default();
        let counted = denied.decision.rules.clone();
        let reply = DeniedReply {
            why: denied.why,
            decision: Some(denied.decision.id),
            rules: self.rules_shown(&counted),
            access_request: None,
            comment: None,
            facts: attempt.authenticated.facts().clone(),
        };
        let evaluation = Evaluation::Denied(Box::new(reply), Some(counted));
        let why = denied.why.as_str();
        self.record_denial(
            attempt,
            (why, Some(denied.decision), waiting),
            &sensitive,
            evaluation,
            is_counted,
        )
    }

    /// Refuses an action that is not in the catalogue: one entry, with every parameter kept out of it.
    pub(in crate::broker) fn refuse_action(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        problem: &ActionError,
        is_counted: &mut bool,
    ) -> Result<Step<Evaluation>, Refusal> {
        let reason = match problem {
            ActionError::UnknownAction { .. } => Reason::UnknownAction,
            ActionError::UnknownTarget(_) | ActionError::WrongTargetType { .. } => {
                Reason::UnknownTarget
            }
            ActionError::InvalidParameters(_) => Reason::InvalidParameters,
            ActionError::UnknownAudience(_) => Reason::UnknownAudience,
        };
        let all = attempt.input.action.parameters.keys().cloned().collect();
        let evaluation = Evaluation::Refused(reason, problem.to_string());
        self.record_denial(
            attempt,
            (reason.as_str(), None, None),
            &all,
            evaluation,
            is_counted,
        )
    }

    fn record_denial(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        (reason, decision, waiting): (
            &str,
            Option<DecisionRecord>,
            Option<(AccessRequestId, Timestamp)>,
        ),
        sensitive: &BTreeSet<String>,
        evaluation: Evaluation,
        is_counted: &mut bool,
    ) -> Result<Step<Evaluation>, Refusal> {
        let TokenAttempt {
            call,
            input,
            authenticated,
            read,
            rules,
            ..
        } = *attempt;
        let policy = rules.bundle.version();
        // Not the counts: each answer may raise one.
        let decided = decision
            .as_ref()
            .map(|decision| (&decision.input.facts, &decision.rules));
        let decided = format!("{decided:?}");
        let answer = Digest::sha256_parts(&[
            reason.as_bytes(),
            &[0],
            policy.as_bytes(),
            input.action.digest().as_bytes(),
            decided.as_bytes(),
            &[u8::from(waiting.is_some())],
        ]);
        let key = (input.task, input.idempotency_key.clone());
        let stream = Stream::TokenRequest(key.0, key.1.clone());
        let version = read.last_entry(&stream).map_or(0, |index| index + 1);
        // An entry whose outcome was unknown counts once it has moved the stream.
        let is_recorded = |(last, before): &(Digest, Version)| *last == answer && *before < version;
        let last = self.last_denials.get(&key);
        if last.as_deref().is_some_and(is_recorded) {
            return Ok(Step::Answer(evaluation));
        }
        if !std::mem::replace(is_counted, true) {
            self.count_refusal(call, &input.task)?;
        }
        let (action, secret) = input
            .action
            .on_record(sensitive, &mut || self.random_bytes());
        // Without a decision no parameter values are stored: only commitments stay.
        let secret = secret
            .filter(|_| decision.is_some())
            .map(|s| Blob::new(s.blob()));
        let id = decision
            .as_ref()
            .map_or_else(|| DecisionId::from_random(self.random_bytes()), |d| d.id);
        let decided_at = decision.as_ref().map(|decision| decision.input.now);
        let event = RequestDenied {
            id,
            task: input.task,
            idempotency_key: input.idempotency_key.clone(),
            reason: reason.to_owned(),
            action,
            secret: secret.as_ref().map(Blob::hash),
            decision,
            waiting: waiting.map(|(id, _)| id),
            evidence: authenticated.facts().clone(),
        };
        let draft = Draft::one(Event::RequestDenied(event)).with_blobs(secret);
        // Before the append, whose answer may be lost.
        self.last_denials.insert(key, (answer, version));
        let draft = match decided_at {
            Some(at) => {
                let life = at.plus_millis(approve::DECISION_LIFE_MS);
                draft.not_after(waiting.map_or(life, |(_, expires_at)| life.min(expires_at)))
            }
            None => draft,
        };
        Ok(Step::Append(draft, evaluation))
    }

    /// Forgets the denial of a call whose entry is surely not in the journal.
    pub(in crate::broker) fn forget_denial(&self, input: &RequestTokenInput, refusal: &Refusal) {
        if refusal.reason != Reason::OutcomeUnknown {
            let key = (input.task, input.idempotency_key.clone());
            self.last_denials.remove(&key);
        }
    }
}
