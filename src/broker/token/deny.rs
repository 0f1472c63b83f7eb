//! Denying a token: by a rule, by an approver, or because the action is unknown.

use std::collections::BTreeSet;

use crate::approve::DeniedDecision;
use crate::broker::token::request::{DeniedReply, TokenAttempt, TokenReply};
use crate::broker::transaction::{Transaction, TransactionError};
use crate::broker::{Broker, Refusal};
use crate::journal::{Append, Blob};
use crate::model::*;
use crate::policy::ActionError;
use crate::state::StoredStatus;

impl Broker {
    /// Answers a retry after an approver's denial or expiry: the outcome of the idempotency key never changes.
    pub(in crate::broker) fn replay_denial(
        &self,
        attempt: &TokenAttempt<'_>,
        id: &AccessRequestId,
    ) -> Result<TokenReply, Refusal> {
        let TokenAttempt {
            call,
            input,
            authenticated,
            ..
        } = *attempt;
        let request = self.state.access_request(id);
        let request = request.ok_or_else(|| {
            self.refuse(
                call.method,
                Reason::DecisionUnavailable,
                "the access request is no longer on record",
            )
        })?;
        if request.action.as_ref().is_some_and(|a| **a != input.action) {
            return Err(self.refuse(
                call.method,
                Reason::ApprovalOutOfScope,
                "this idempotency key was decided for another action",
            ));
        }
        let why = if request.status == StoredStatus::Denied {
            DeniedReason::DeniedByApprover
        } else if request.has_approval() {
            DeniedReason::ApprovalExpired
        } else {
            DeniedReason::Expired
        };
        Ok(TokenReply::Denied(Box::new(DeniedReply {
            why,
            decision: Some(request.opened.decision.id),
            rules: self.rules_shown(&request.opened.decision.rules),
            access_request: Some(*id),
            comment: request.comment(),
            facts: authenticated.facts().clone(),
        })))
    }

    /// Denies by a rule: one entry, unless the idempotency key got the same answer last.
    pub(in crate::broker) async fn deny(
        &self,
        attempt: &TokenAttempt<'_>,
        denied: DeniedDecision,
        transaction: Transaction<'_>,
    ) -> Result<TokenReply, TransactionError> {
        let TokenAttempt {
            input,
            rules,
            authenticated,
            ..
        } = *attempt;
        let rules_shown = self.rules_shown(&denied.decision.rules);
        let sensitive = rules
            .bundle
            .action(&input.action.name)
            .map(|a| a.sensitive())
            .unwrap_or_default();
        let id = denied.decision.id;
        let counted = denied.decision.rules.clone();
        self.record_denial(
            attempt,
            denied.why.as_str(),
            Some(denied.decision),
            &sensitive,
            transaction,
        )
        .await?;
        self.count_decision("denied", &counted);
        Ok(TokenReply::Denied(Box::new(DeniedReply {
            why: denied.why,
            decision: Some(id),
            rules: rules_shown,
            access_request: None,
            comment: None,
            facts: authenticated.facts().clone(),
        })))
    }

    /// Refuses an action that is not in the catalogue: one entry, with every parameter kept out of it.
    pub(in crate::broker) async fn refuse_action(
        &self,
        attempt: &TokenAttempt<'_>,
        problem: &ActionError,
        transaction: Transaction<'_>,
    ) -> TransactionError {
        let reason = match problem {
            ActionError::UnknownAction { .. } => Reason::UnknownAction,
            ActionError::UnknownTarget(_) | ActionError::WrongTargetType { .. } => {
                Reason::UnknownTarget
            }
            ActionError::InvalidParameters(_) => Reason::InvalidParameters,
            ActionError::UnknownAudience(_) => Reason::UnknownAudience,
        };
        let all = attempt.input.action.parameters.keys().cloned().collect();
        match self
            .record_denial(attempt, reason.as_str(), None, &all, transaction)
            .await
        {
            Ok(()) => self
                .refuse(attempt.call.method, reason, problem.to_string())
                .into(),
            Err(error) => error,
        }
    }

    async fn record_denial(
        &self,
        attempt: &TokenAttempt<'_>,
        reason: &str,
        decision: Option<DecisionRecord>,
        sensitive: &BTreeSet<String>,
        transaction: Transaction<'_>,
    ) -> Result<(), TransactionError> {
        let TokenAttempt {
            call,
            input,
            authenticated,
            rules,
            ..
        } = *attempt;
        let policy = rules.version.to_be_bytes();
        let answer = Digest::sha256_parts(&[
            reason.as_bytes(),
            &[0],
            &policy,
            input.action.digest().as_bytes(),
        ]);
        let key = (input.task, input.idempotency_key.clone());
        let version = attempt.request_version;
        // An entry whose outcome was unknown counts once it has moved the stream.
        let is_recorded = |(last, before): &(Digest, Version)| *last == answer && *before < version;
        if self
            .last_denials
            .get(&key)
            .as_deref()
            .is_some_and(is_recorded)
        {
            return Ok(());
        }
        self.count_refusal(call, &input.task)?;
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
        let event = RequestDenied {
            id,
            task: input.task,
            idempotency_key: input.idempotency_key.clone(),
            reason: reason.to_owned(),
            action,
            secret: secret.as_ref().map(Blob::hash),
            decision,
            evidence: authenticated.facts().clone(),
        };
        let append = Append {
            blobs: secret.into_iter().collect(),
            // INVARIANT (one entry for one answer): of repetitions that read the same version one conflicts.
            ..Append::one(
                Event::RequestDenied(event),
                vec![(Stream::TokenRequest(key.0, key.1.clone()), version)],
            )
        };
        // Before the append, whose answer may be lost.
        self.last_denials.insert(key.clone(), (answer, version));
        match transaction.append(append).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let may_count = match &error {
                    TransactionError::Retry => true,
                    TransactionError::Refused(refusal) => refusal.reason == Reason::OutcomeUnknown,
                };
                if !may_count {
                    self.last_denials.remove(&key);
                }
                Err(error)
            }
        }
    }
}
