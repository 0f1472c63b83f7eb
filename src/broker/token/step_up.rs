//! Step-up: opens an access request for approvers.

use std::collections::BTreeSet;

use crate::approve::PendingDecision;
use crate::broker::token::request::{DecisionVersions, PendingReply, TokenAttempt, TokenReply};
use crate::broker::transaction::{Transaction, TransactionError};
use crate::broker::{Broker, Refusal};
use crate::journal::{Append, Blob};
use crate::model::*;
use crate::policy::ApprovalLimits;
use crate::state::{AccessRequest, AccessRequestHistory, Versioned};

/// Longest action of an access request, in bytes of its canonical form: approvers must be able to read it.
const ACTION_BYTES_MAX: usize = 16 * 1024;

impl Broker {
    /// Opens an access request. A crash before the append leaves nothing; after it, an access request that the same action in
    /// the same task finds.
    pub(in crate::broker) async fn open_access_request(
        &self,
        attempt: &TokenAttempt<'_>,
        pending: PendingDecision,
        history: &Versioned<AccessRequestHistory>,
        transaction: Transaction<'_>,
    ) -> Result<TokenReply, TransactionError> {
        let TokenAttempt {
            input,
            authenticated,
            rules,
            task,
            now,
            ..
        } = *attempt;
        // The owner by the registration gate 1 just matched: never eligible to vote.
        let owner = rules
            .bundle
            .agent(&task.opened.agent)
            .map_or_else(|| task.opened.owner.clone(), |a| a.owner.clone());
        let owner_requests = self.state.owner_pending(&owner);
        self.check_request_limits(attempt, &history.value, &owner_requests.value)?;
        let id = AccessRequestId::from_random(self.random_bytes());
        let (action, secret) = input
            .action
            .on_record(&pending.sensitive, &mut || self.random_bytes());
        let secret = secret.map(|s| Blob::new(s.blob()));
        let reason = input
            .reason
            .as_ref()
            .map(|prose| Blob::new(prose.blob(self.random_bytes())));
        let event = AccessRequestOpened {
            access_request: id,
            task: input.task,
            agent: task.opened.agent.clone(),
            owner: owner.clone(),
            idempotency_key: input.idempotency_key.clone(),
            action,
            secret: secret.as_ref().map(Blob::hash),
            reason: reason.as_ref().map(Blob::hash),
            max_ttl: pending.max_ttl,
            uses: pending.uses,
            expires_at: now.plus_secs(pending.wait).min(task.opened.deadline),
            decision: pending.decision,
            evidence: authenticated.facts().clone(),
        };
        let append = Append {
            read_set: pending.read_set,
            not_after: Some(pending.not_after),
            blobs: secret.into_iter().chain(reason).collect(),
            // INVARIANT (one open access request for an action): of two openings by one agent that read the same request history
            // one conflicts, and so does an opening that missed a denial.
            ..Append::one(
                Event::AccessRequestOpened(event),
                vec![
                    (Stream::AccessRequest(id), 0),
                    (
                        Stream::AgentRequests(task.opened.agent.clone()),
                        history.version,
                    ),
                    (Stream::OwnerRequests(owner), owner_requests.version),
                    // One idempotency key cannot become a grant for one action and an access request for another.
                    (
                        Stream::TokenRequest(input.task, input.idempotency_key.clone()),
                        attempt.request_version,
                    ),
                ],
            )
        };
        let entry = transaction.append(append).await?;
        let request = self
            .state
            .access_request(&id)
            .ok_or(TransactionError::Retry)?;
        self.count_decision("pending", &request.opened.decision.rules);
        // At the version of its opening: a vote that was cast since then ends the wait at once.
        Ok(self.pending_reply(attempt, &request, entry.index + 1))
    }

    /// Limits on opening access requests: size, how many are pending, how many a minute, and the back-off after denials.
    fn check_request_limits(
        &self,
        attempt: &TokenAttempt<'_>,
        history: &AccessRequestHistory,
        of_owner: &BTreeSet<AccessRequestId>,
    ) -> Result<(), Refusal> {
        let TokenAttempt {
            call,
            input,
            rules,
            now,
            ..
        } = *attempt;
        let size = json::canonical(&input.action.to_json()).map_or(usize::MAX, |text| text.len());
        if size > ACTION_BYTES_MAX {
            let message = format!(
                "the action has {size} bytes; approvers are shown at most {ACTION_BYTES_MAX}"
            );
            return Err(self.refuse(call.method, Reason::InvalidParameters, message));
        }
        let bounds = rules.bundle.approval_limits();
        let counts = [
            ("agent", &history.pending, bounds.pending_per_agent),
            ("owner", of_owner, bounds.pending_per_owner),
        ];
        for (whose, waiting, max) in counts {
            let waiting = self.state.count_pending(waiting, now);
            if waiting >= usize::try_from(max).unwrap_or(usize::MAX) {
                let message = format!(
                    "{waiting} access requests of this {whose} are pending; at most {max} may be"
                );
                return Err(self.refuse(call.method, Reason::TooManyPending, message));
            }
        }
        let opens = history.openings_since(now.plus_secs(-60));
        let most = usize::try_from(bounds.opens_per_minute).unwrap_or(usize::MAX);
        if most > 0 && opens >= most {
            let message = format!(
                "the agent opened {opens} access requests in a minute; at most {} are allowed",
                bounds.opens_per_minute
            );
            return Err(self.refuse(call.method, Reason::DenialBackoff, message));
        }
        let since = now.plus_secs(-ApprovalLimits::DENIAL_WINDOW_S);
        let denials = history.denials_since(since);
        let pause = denials
            .checked_sub(1)
            .and_then(|n| bounds.back_off_s.get(n).or(bounds.back_off_s.last()));
        if let (Some(last), Some(pause)) = (history.denials.last(), pause) {
            let until = last.plus_secs(i64::from(*pause));
            if now < until {
                let message = format!(
                    "approvers denied the agent {} within the hour; ask again in {}",
                    match denials {
                        1 => "once".to_owned(),
                        n => format!("{n} times"),
                    },
                    format_seconds(until.since(now).div_euclid(1000) + 1)
                );
                return Err(Refusal {
                    retry_after: Some(until.after(now)),
                    ..self.refuse(call.method, Reason::DenialBackoff, message)
                });
            }
        }
        Ok(())
    }

    pub(in crate::broker) fn pending_reply(
        &self,
        attempt: &TokenAttempt<'_>,
        request: &AccessRequest,
        version: Version,
    ) -> TokenReply {
        TokenReply::Pending(Box::new(PendingReply {
            access_request: request.opened.access_request,
            decision: request.opened.decision.id,
            needs: self.approval_progress(request, attempt.rules, attempt.now),
            expires_at: request.opened.expires_at,
            rules: self.rules_shown(&request.opened.decision.rules),
            ttl: request.opened.decision.ttl.clone(),
            evidence_required: false,
            facts: attempt.authenticated.facts().clone(),
            versions: DecisionVersions::new(
                version,
                Some(attempt.task),
                attempt.agent_version,
                Some(attempt.rules),
            ),
        }))
    }
}
