//! Step-up: opens an access request for approvers.

use crate::approve::PendingDecision;
use crate::approve::votes;
use crate::broker::token::request::{Evaluation, PendingReply, TokenAttempt, TokenReply};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::{Blob, ReadSet};
use crate::model::*;
use crate::policy::ApprovalLimits;
use crate::state::Draft;
use crate::verify::Authenticated;

/// Longest action of an access request, in bytes of its canonical form: approvers must be able to read it.
const ACTION_BYTES_MAX: usize = 16 * 1024;

impl Broker {
    /// Opens an access request. A crash before the append leaves nothing; after it, an access request that the same action in
    /// the same task finds.
    ///
    /// INVARIANT (one open access request for an action): of two openings in a task for one action and target that read the same
    /// openings one conflicts. How many an agent and its owner may have are claims, which the journal's writer compares.
    pub(in crate::broker) fn open_access_request(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        pending: PendingDecision,
        executor: Option<Executor>,
    ) -> Result<Step<Evaluation>, Refusal> {
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
        self.check_back_off(attempt)?;
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
            requester: AccessRequester::Agent(Box::new(AgentRequester {
                task: input.task,
                agent: task.opened.agent.clone(),
                owner,
                idempotency_key: input.idempotency_key.clone(),
                decision: pending.decision,
                evidence: authenticated.facts().clone(),
                executor,
            })),
            action,
            secret: secret.as_ref().map(Blob::hash),
            reason: reason.as_ref().map(Blob::hash),
            max_ttl: Some(pending.max_ttl),
            uses: pending.uses,
            expires_at: now.plus_secs(pending.wait).min(task.opened.deadline),
        };
        let draft = Draft::one(Event::AccessRequestOpened(event))
            .not_after(pending.not_after)
            .with_blobs(secret.into_iter().chain(reason));
        Ok(Step::Append(draft, Evaluation::Opened(id)))
    }

    /// Refuses to open an access request that approvers could not read, or too soon after a denial.
    fn check_back_off(&self, attempt: &TokenAttempt<'_, '_>) -> Result<(), Refusal> {
        let TokenAttempt {
            call,
            input,
            read,
            rules,
            task,
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
        let all = read.denials(&task.opened.agent);
        let since = now.plus_secs(-ApprovalLimits::DENIAL_WINDOW_S);
        let denials = all.iter().filter(|at| **at > since).count();
        let pause = denials
            .checked_sub(1)
            .and_then(|n| bounds.back_off_s.get(n).or(bounds.back_off_s.last()));
        if let (Some(last), Some(pause)) = (all.last(), pause) {
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

    /// The reply about a pending access request, which may have been decided meanwhile: then the next round says so.
    pub(in crate::broker) fn pending_reply(
        &self,
        call: &CallContext,
        authenticated: &Authenticated,
        id: &AccessRequestId,
        reads: ReadSet,
    ) -> Result<TokenReply, Refusal> {
        let now = self.now();
        let found = self.preview(|read| {
            let rules = read.rules()?;
            let request = read.access_request(id)?;
            let opened = &request.opened;
            let decision = request.decision.as_ref()?;
            let needs = self.approval_progress(read, &request, &rules, now);
            let reply = PendingReply {
                access_request: opened.access_request,
                decision: decision.id,
                delay: self.delay_of(read, &request, &rules, &needs),
                needs,
                executor: opened.executor().map(|executor| executor.agent.clone()),
                expires_at: opened.expires_at,
                rules: self.rules_shown(&decision.rules),
                ttl: decision.ttl.clone(),
                void: votes::void_approvals(&request, &rules.bundle),
                evidence_required: false,
                facts: authenticated.facts().clone(),
                reads,
                due: self.next_change_by_time(read, &request, now),
            };
            Some((reply, decision.rules.clone()))
        });
        let (reply, asked) = found.ok_or_else(|| {
            let message = "the access request is no longer on record";
            self.refuse(call.method, Reason::DecisionUnavailable, message)
        })?;
        self.count_decision("pending", &asked);
        Ok(TokenReply::Pending(Box::new(reply)))
    }
}
