//! Recommendations: what advisory agents request for others to execute, and the executors' side of it.

use crate::approve::hand_over::HandOverFault;
use crate::approve::votes;
use crate::broker::approval::access_request::AccessView;
use crate::broker::token::request::{Evaluation, RecommendedReply, TokenAttempt, TokenReply};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, Refusal};
use crate::card::AccessRequestStatus;
use crate::model::*;
use crate::policy::ActivePolicy;
use crate::state::{AccessRequest, KeyOutcome, Read, Recorded, StoredStatus};
use crate::verify::{Authenticated, Verified};

/// Most recommendations in one list.
const LISTED_MAX: usize = 100;

impl Broker {
    /// The executor that an advisory agent names, else that of the request that its idempotency key waits for, or its only one; nothing
    /// for any other agent.
    pub(in crate::broker) fn named_executor(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        verified: &Verified<'_>,
        waiting: Option<&AccessRequest>,
    ) -> Result<Option<Executor>, Refusal> {
        let TokenAttempt {
            call,
            input,
            read,
            rules,
            ..
        } = *attempt;
        let agent = verified.agent();
        let invalid = |message: String| self.refuse(call.method, Reason::InvalidExecutor, message);
        if agent.autonomy != Autonomy::Advisory {
            return match &input.executor {
                None => Ok(None),
                Some(_) => Err(invalid(
                    "`executor`: expected none, since the agent is not advisory".to_owned(),
                )),
            };
        }
        let known: Vec<&str> = agent.executors.iter().map(AgentId::as_str).collect();
        let mut only = agent.executors.iter();
        let recorded = waiting.and_then(|request| request.opened.executor());
        let recorded = recorded.map(|executor| &executor.agent);
        let named = input.executor.as_ref().or(recorded);
        let named = match (named, only.next(), only.next()) {
            (Some(named), _, _) => agent.executors.get(named),
            (None, Some(only), None) => Some(only),
            (None, _, _) => None,
        };
        let registered = named.and_then(|named| rules.bundle.agent(named));
        let executor = registered.ok_or_else(|| {
            let got = match &input.executor {
                Some(named) => format!("got {named}"),
                None => "got none".to_owned(),
            };
            invalid(format!(
                "`executor`: expected one of {}, {got}",
                known.join(", ")
            ))
        })?;
        let executor = Executor {
            agent: executor.id.clone(),
            owner: executor.owner.clone(),
        };
        // What is recommended to an agent ends when it is stopped; nothing begins while it is.
        let scopes = [
            FreezeScope::Agent(executor.agent.clone()),
            FreezeScope::Owner(executor.owner.clone()),
        ];
        let is_stopped = read.is_suspended(&executor.agent)
            || scopes
                .iter()
                .any(|scope| read.is_frozen(scope) || self.is_freeze_held(scope));
        if is_stopped {
            let message = format!("the executor {} is suspended or frozen", executor.agent);
            return Err(self.refuse(call.method, Reason::ExecutorStopped, message));
        }
        Ok(Some(executor))
    }

    /// What became of the recommendation that a call names. An id that is not for the caller is as unknown as one that does not exist.
    pub(in crate::broker) fn recommendation_outcome<'r>(
        &self,
        attempt: &TokenAttempt<'_, 'r>,
        id: &AccessRequestId,
    ) -> Result<KeyOutcome<'r>, Refusal> {
        let TokenAttempt {
            call,
            read,
            rules,
            task,
            now,
            ..
        } = *attempt;
        let agent = rules.bundle.agent(&task.opened.agent);
        if agent.is_some_and(|agent| agent.autonomy == Autonomy::Advisory) {
            let message = "`recommendation`: an advisory agent executes nothing";
            return Err(self.refuse(call.method, Reason::AdvisoryAgent, message));
        }
        let is_for = |request: &Recorded<'_, AccessRequest>| {
            let executor = request.opened.executor();
            executor.is_some_and(|executor| executor.agent == task.opened.agent)
        };
        read.access_request(id)
            .filter(is_for)
            .ok_or_else(|| self.refuse_unknown_request(call, id))?;
        match read.request_outcome(id, now) {
            KeyOutcome::Undecided => Err(self.refuse(
                call.method,
                Reason::AccessRequestClosed,
                "the recommendation was closed: it was cancelled, its agent or executor was stopped, or the policy no longer allows it",
            )),
            outcome => Ok(outcome),
        }
    }

    /// Refuses an executor once the task of the recommendation has ended, by an end too that waits to be journalled.
    pub(in crate::broker) fn require_running_recommendation(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        request: &AccessRequest,
    ) -> Result<(), Refusal> {
        let TokenAttempt {
            call, read, now, ..
        } = *attempt;
        let task = request.opened.task().and_then(|task| read.task(&task));
        match task.is_some_and(|task| self.is_running(&task, now)) {
            true => Ok(()),
            false => Err(self.refuse_hand_over(call, HandOverFault::TaskEnded)),
        }
    }

    pub(in crate::broker) fn refuse_hand_over(
        &self,
        call: &CallContext,
        fault: HandOverFault,
    ) -> Refusal {
        let reason = match fault {
            HandOverFault::NotExecutor => Reason::NotFound,
            HandOverFault::OtherAction => Reason::ApprovalOutOfScope,
            HandOverFault::TaskEnded => Reason::AccessRequestClosed,
            HandOverFault::SameKey
            | HandOverFault::SameWorkload
            | HandOverFault::SameOwner
            | HandOverFault::ApprovedByOpener => Reason::NotAnotherAgent,
        };
        self.refuse(call.method, reason, fault.to_string())
    }

    /// Refuses a repeated call that names another executor than the request it repeats.
    pub(in crate::broker) fn require_same_executor(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        request: &AccessRequest,
    ) -> Result<(), Refusal> {
        let TokenAttempt { call, input, .. } = *attempt;
        let recorded = request.opened.executor().map(|executor| &executor.agent);
        match input.executor.as_ref() {
            Some(named) if Some(named) != recorded => {
                let message = "this idempotency key was used for another executor";
                Err(self.refuse(call.method, Reason::ApprovalOutOfScope, message))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Answers a repeated call about a recommendation that was executed.
    pub(in crate::broker) fn replay_executed(
        &self,
        attempt: &TokenAttempt<'_, '_>,
        request: &Recorded<'_, AccessRequest>,
    ) -> Result<Step<Evaluation>, Refusal> {
        let TokenAttempt { call, input, .. } = *attempt;
        self.require_same_executor(attempt, request)?;
        if request.action.as_deref() != Some(&input.action) {
            let message = "this idempotency key was used for another action";
            return Err(self.refuse(call.method, Reason::ApprovalOutOfScope, message));
        }
        if request.opened.task() != Some(input.task) {
            let message = "the recommendation was executed: it is for one token";
            return Err(self.refuse(call.method, Reason::AccessRequestClosed, message));
        }
        let id = request.opened.access_request;
        Ok(Step::Answer(Evaluation::Recommended(id)))
    }

    /// The reply to an advisory agent whose recommendation people approved.
    pub(in crate::broker) fn recommended_reply(
        &self,
        call: &CallContext,
        authenticated: &Authenticated,
        id: &AccessRequestId,
    ) -> Result<TokenReply, Refusal> {
        let now = self.now();
        let found = self.preview(|read| {
            let rules = read.rules()?;
            let request = read.access_request(id)?;
            let executor = request.opened.executor()?.agent.clone();
            let expires_at = self.approval_end(read, &rules, &request, now);
            Some(RecommendedReply {
                access_request: *id,
                decision: request.decision.as_ref().map(|decision| decision.id),
                executor,
                expires_at,
                jti: match request.status {
                    StoredStatus::Consumed(jti) => Some(jti),
                    _ => None,
                },
                facts: authenticated.facts().clone(),
            })
        });
        let reply = found.ok_or_else(|| {
            let message = "the recommendation is no longer on record";
            self.refuse(call.method, Reason::DecisionUnavailable, message)
        })?;
        Ok(TokenReply::Recommended(Box::new(reply)))
    }

    /// When what people agreed to ends: their votes, or the access request.
    fn approval_end(
        &self,
        read: &Read,
        rules: &ActivePolicy,
        request: &Recorded<'_, AccessRequest>,
        now: Timestamp,
    ) -> Timestamp {
        let tally = votes::tally(request, self.voter_context(read, rules), now);
        let expires_at = request.opened.expires_at;
        tally.not_after.map_or(expires_at, |at| at.min(expires_at))
    }

    /// The approved recommendations to the agent of a task, the first to expire first, each with the time until which it can be executed.
    pub fn list_recommendations(
        &self,
        call: &CallContext,
        task: TaskId,
    ) -> Result<Vec<(AccessView, Timestamp)>, Refusal> {
        let now = self.now();
        let (record, _) = self.task_possession(call, &task, None, None, now)?;
        if !self.is_running(&record, now) {
            return Err(self.refuse_ended(call.method, &record, now));
        }
        let (rules, agent) = (self.show().rules(), &record.opened.agent);
        let bundle = rules.as_ref().map(|rules| &rules.bundle);
        let mut waiting = self.show().pending_requests(now);
        waiting.retain(|request| {
            let (by, executor) = (request.opened.agent(), request.opened.executor());
            let is_named = executor.is_some_and(|executor| executor.agent == *agent);
            let both = bundle.zip(by).and_then(|(bundle, by)| {
                let both = bundle.agent(by).zip(bundle.agent(agent));
                both.filter(|(by, executor)| bundle.may_execute(by, executor))
            });
            is_named && both.is_some()
        });
        waiting.sort_by_key(|request| request.opened.expires_at);
        let mut found = Vec::new();
        for request in waiting {
            let id = &request.opened.access_request;
            let view = self.view_of(call, id)?;
            if view.status == AccessRequestStatus::Approved {
                let until = self.preview(|read| {
                    let (rules, request) = (read.rules()?, read.access_request(id)?);
                    Some(self.approval_end(read, &rules, &request, now))
                });
                found.extend(until.map(|until| (view, until)));
            }
            if found.len() == LISTED_MAX {
                break;
            }
        }
        Ok(found)
    }
}
