//! Metrics of the broker, rate limits of authenticated callers, and the limit on journalled refusals.

use std::time::Duration;

use super::{Broker, CallContext, REFUSALS_PER_MINUTE, Refusal};
use crate::model::*;
use crate::telemetry::{GaugeSnapshot, LimitKind, Metrics};
use crate::verify::{self, Attested, VerifyError};

/// An authenticated caller: the key of its rate limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum CallerId {
    Agent(AgentId),
    Person(PersonId),
    Service(ServiceId),
}

impl CallerId {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Person(_) => "person",
            Self::Service(_) => "service",
        }
    }
}

impl std::fmt::Display for CallerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(id) => id.fmt(f),
            Self::Person(id) => id.fmt(f),
            Self::Service(id) => id.fmt(f),
        }
    }
}

impl Broker {
    /// At most [`REFUSALS_PER_MINUTE`] refusal entries for a task: denials cannot fill the journal.
    pub(in crate::broker) fn count_refusal(
        &self,
        call: &CallContext,
        task: &TaskId,
    ) -> Result<(), Refusal> {
        let minute = self.now().secs().div_euclid(60);
        let full = {
            let mut counts = self.lock(&self.refusal_counts);
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

    /// The metrics of this broker.
    pub const fn metrics(&self) -> &std::sync::Arc<Metrics> {
        &self.metrics
    }

    /// Time since start, which no clock change affects: for rates and durations.
    pub fn uptime(&self) -> Duration {
        self.clock.uptime()
    }

    /// Time since a moment, by the wall clock; zero for one in the future.
    pub fn since(&self, moment: Timestamp) -> Duration {
        self.now().after(moment)
    }

    /// OpenMetrics text. Walks all open tasks and their grants: call it on a thread that may block.
    pub fn read_metrics(&self) -> String {
        let (clock, now) = (self.clock.now(), self.now());
        let tasks = self.show().open_tasks();
        let running: Vec<_> = tasks.iter().filter(|t| self.is_running(t, now)).collect();
        let pending = |task: &TaskId| {
            let requests = self.show().requests_of_task(task);
            requests.iter().filter(|r| r.is_pending(now)).count()
        };
        // By the record alone: the rules in force are evaluated where a token is used, not here.
        let live = |task: &TaskId| {
            let grants = self.show().grants_of_task(task);
            let live = |grant: &&crate::state::Shown<crate::state::Grant>| {
                self.show().end_cause(grant, now).is_none() && !grant.is_spent()
            };
            grants.iter().filter(live).count()
        };
        let tail = *self.journal.head().borrow();
        let snapshot = GaugeSnapshot {
            access_requests_pending: running.iter().map(|t| pending(&t.opened.task)).sum(),
            tokens_active: running.iter().map(|t| live(&t.opened.task)).sum(),
            tasks_open: running.len(),
            policy: self
                .show()
                .rules()
                .map(|rules| rules.bundle.version().to_string()),
            operators: self.show().governors().len(),
            recovered_at: self.show().recovery().map(|recovery| recovery.at),
            journal_entries: tail.checkpoint.size,
            journal_bytes: self.journal.size_bytes(),
            pending_revocations: self.pending_revocations(),
            clock_skew: now.after(clock),
        };
        self.metrics.render(&snapshot)
    }

    /// Checks evidence, and counts the result.
    pub(super) fn attest(
        &self,
        evidence: &Evidence,
        now: Timestamp,
    ) -> Result<Attested, VerifyError> {
        let kind = match evidence {
            Evidence::JwtSvid(_) => EvidenceKind::JwtSvid,
        };
        let attested = verify::attest(
            evidence,
            &self.show().trust(),
            &self.settings.evidence_audience,
            now,
        );
        let result = attested.as_ref().map_or_else(failure_label, |_| "valid");
        self.metrics.evidence_checked(kind.as_str(), result);
        attested
    }

    /// Refuses an authenticated caller that exceeds its rate. Call it before anything is done.
    pub(super) fn check_rate_limit(
        &self,
        call: &CallContext,
        caller: CallerId,
    ) -> Result<(), Refusal> {
        let class = call.permit.class();
        let span = tracing::Span::current();
        span.record("caller", caller.as_str());
        span.record("who", tracing::field::display(&caller));
        let after = match self.caller_rates.check(class, &caller, self.uptime()) {
            Ok(()) => return Ok(()),
            Err(after) => after,
        };
        self.metrics.rate_limited(class.as_str(), LimitKind::Caller);
        if let Some(count) = self.rate_limit_log_throttle.poll(self.uptime()) {
            tracing::warn!(
                count,
                class = class.as_str(),
                by = "caller",
                %caller,
                method = call.method,
                "load shed (rate limited)"
            );
        }
        // Not among the recent refusals: a flood would push out the others.
        Err(Refusal {
            reason: Reason::RateLimited,
            message: "rate limit exceeded; nothing was done, try again after the given delay"
                .to_owned(),
            correlation: CorrelationId::from_random(self.random_bytes()),
            gives_nonce: true,
            is_logged: true,
            retry_after: Some(after),
        })
    }

    /// Counts a decision of gate 2.
    pub(super) fn count_decision(&self, outcome: &'static str, rules: &[RuleRef]) {
        let first = rules.first().map(|rule| &*rule.id);
        self.metrics.decided(outcome, first);
    }

    /// Records how long an access request waited for its decision.
    pub(super) fn count_wait(&self, outcome: &'static str, opened_at: Timestamp, now: Timestamp) {
        let waited = now.after(opened_at);
        self.metrics.access_request_decided(outcome, waited);
    }
}

/// Metric label of a cause.
pub(super) const fn failure_label(error: &VerifyError) -> &'static str {
    match error {
        VerifyError::Evidence(_) => "evidence",
        VerifyError::Claim(_) => "claim",
        VerifyError::Subject(_) => "subject",
        VerifyError::UntrustedDomain(_) => "unknown_domain",
        VerifyError::WrongAudience => "wrong_audience",
        VerifyError::Expired(_) => "expired",
        VerifyError::InvalidDates => "dates",
        VerifyError::MissingProof => "no_proof",
        VerifyError::Proof(_) => "proof",
        VerifyError::InvalidNonce => "nonce",
        VerifyError::Replayed => "replayed",
        VerifyError::TooManyProofs => "too_many_proofs",
        VerifyError::ProofClaim { .. } => "proof_elsewhere",
        VerifyError::SecondCredential => "second_credential",
        VerifyError::TaskKeyMismatch => "not_of_task",
        VerifyError::WorkloadMismatch { .. } => "other_workload",
        VerifyError::Stale => "stale",
        VerifyError::TooOldForRules { .. } => "too_old_for_rules",
        VerifyError::NoRules => "no_rules",
        VerifyError::NotRegistered => "not_registered",
        VerifyError::KeyMayNotAct(_) => "key_may_not_act",
        VerifyError::AmbiguousAgent(_) => "agents",
        VerifyError::AgentMismatch(_) => "other_agent",
        VerifyError::Suspended(_) => "suspended",
        VerifyError::Frozen(_) => "frozen",
        VerifyError::PinnedKeyMismatch(_) => "other_key",
        VerifyError::OneTimeCode(_) => "code",
        VerifyError::Session(_) => "session",
        VerifyError::Passkey(_) => "passkey",
        VerifyError::UntrustedKey => "key_removed",
        VerifyError::RegisteredKey(_) => "registered_key",
        VerifyError::MayNotOperate { .. } => "may_not_operate",
    }
}
