use std::collections::BTreeSet;

use crate::approve::DeniedDecision;
use crate::broker::token::request::{DeniedReply, Round, TokenReply, Turn};
use crate::broker::{Broker, CallContext, REFUSALS_PER_MINUTE, Refusal};
use crate::journal::{Append, Blob};
use crate::model::*;
use crate::policy::ActionProblem;
use crate::state::AccessStatus;

impl Broker {
    /// A person's no, or expiry, is the answer of this request id for good.
    pub(in crate::broker) fn refused_before(
        &self,
        turn: &Turn<'_>,
        id: &AccessRequestId,
    ) -> Result<Round, Refusal> {
        let Turn {
            call,
            ask,
            authenticated,
            ..
        } = *turn;
        let request = self.state.access_request(id);
        let request = request.ok_or_else(|| {
            self.refuse(call.method, Reason::Undecided, "the access request is gone")
        })?;
        if request.action.as_ref().is_some_and(|a| **a != ask.action) {
            return Err(self.refuse(
                call.method,
                Reason::ApprovalOutOfScope,
                "this request_id was decided for another action",
            ));
        }
        let why = if request.status == AccessStatus::Denied {
            DeniedReason::DeniedByPerson
        } else {
            DeniedReason::Expired
        };
        Ok(Round::Done(TokenReply::Denied(Box::new(DeniedReply {
            why,
            decision: Some(request.opened.decision.id),
            rules: self.rules_shown(&request.opened.decision.rules),
            access_request: Some(*id),
            comment: request.comment(),
            facts: authenticated.facts().clone(),
        }))))
    }

    /// A rule's no: an entry, unless it is the answer this request id got last.
    pub(in crate::broker) async fn deny(
        &self,
        turn: &Turn<'_>,
        denied: DeniedDecision,
    ) -> Result<Round, Refusal> {
        let Turn {
            ask,
            rules,
            authenticated,
            ..
        } = *turn;
        let shown = self.rules_shown(&denied.decision.rules);
        let sensitive = rules
            .bundle
            .action(&ask.action.name)
            .map(|a| a.sensitive())
            .unwrap_or_default();
        let id = denied.decision.id;
        self.count_decision("denied", &denied.decision.rules);
        self.enter_denial(turn, denied.why.as_str(), Some(denied.decision), &sensitive)
            .await?;
        Ok(Round::Done(TokenReply::Denied(Box::new(DeniedReply {
            why: denied.why,
            decision: Some(id),
            rules: shown,
            access_request: None,
            comment: None,
            facts: authenticated.facts().clone(),
        }))))
    }

    /// A verified agent asked for what is not there: an entry too, with every parameter kept out of it.
    pub(in crate::broker) async fn refuse_action(
        &self,
        turn: &Turn<'_>,
        problem: &ActionProblem,
    ) -> Refusal {
        let reason = match problem {
            ActionProblem::UnknownAction => Reason::UnknownAction,
            ActionProblem::UnknownTarget => Reason::UnknownTarget,
            ActionProblem::WrongParameters(_) => Reason::WrongParameters,
            ActionProblem::UnknownAudience => Reason::UnknownAudience,
        };
        let all = turn.ask.action.parameters.keys().cloned().collect();
        match self.enter_denial(turn, reason.as_str(), None, &all).await {
            Ok(()) => self.refuse(turn.call.method, reason, problem.to_string()),
            Err(refusal) => refusal,
        }
    }

    async fn enter_denial(
        &self,
        turn: &Turn<'_>,
        reason: &str,
        decision: Option<Decision>,
        sensitive: &BTreeSet<String>,
    ) -> Result<(), Refusal> {
        let Turn {
            call,
            ask,
            authenticated,
            rules,
            ..
        } = *turn;
        let policy = rules.version.to_be_bytes();
        let answer = Digest::of_parts(&[
            reason.as_bytes(),
            &[0],
            &policy,
            ask.action.digest().as_bytes(),
        ]);
        let key = (ask.task, ask.request_id.clone());
        if self.denials.get(&key).is_some_and(|last| *last == answer) {
            return Ok(());
        }
        self.count_refusal(call, &ask.task)?;
        let (action, secret) = ask.action.on_record(sensitive, &mut || self.draw());
        // Of a malformed order nothing is kept apart: only commitments stay.
        let secret = secret
            .filter(|_| decision.is_some())
            .map(|s| Blob::new(s.blob()));
        let id = decision
            .as_ref()
            .map_or_else(|| DecisionId::from_random(self.draw()), |d| d.id);
        let fact = RequestDenied {
            id,
            task: ask.task,
            request_id: ask.request_id.clone(),
            reason: reason.to_owned(),
            action,
            secret: secret.as_ref().map(Blob::hash),
            decision,
            evidence: authenticated.facts().clone(),
        };
        let append = Append {
            blobs: secret.into_iter().collect(),
            ..Append::one(Event::RequestDenied(fact), Vec::new())
        };
        self.journal
            .append(append)
            .await
            .map_err(|e| self.refuse_append(call.method, &e))?;
        self.denials.put(key, answer);
        Ok(())
    }

    /// At most [`REFUSALS_PER_MINUTE`] refusal entries for a task: nobody fills the journal with noes.
    pub(in crate::broker) fn count_refusal(
        &self,
        call: &CallContext,
        task: &TaskId,
    ) -> Result<(), Refusal> {
        let minute = self.now().secs().div_euclid(60);
        let full = {
            let mut counts = self.lock(&self.refusals);
            counts.retain(|_, (m, _)| *m == minute);
            let count = counts.entry(*task).or_insert((minute, 0));
            count.1 = count.1.saturating_add(1);
            count.1 > REFUSALS_PER_MINUTE
        };
        if full {
            return Err(self.refuse(
                call.method,
                Reason::TooManyRefusals,
                "too many refused requests in this task; wait a minute",
            ));
        }
        Ok(())
    }
}
