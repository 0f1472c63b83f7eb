//! What the broker counts, and whom it lets in by name.

use std::time::Duration;

use super::{Broker, CallContext, Refusal};
use crate::model::*;
use crate::telemetry::{Metrics, Moment};
use crate::verify::{self, Attested, VerifyError};

/// A caller by name, once it is known: each has rates of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Known {
    Agent(AgentId),
    Person(PersonId),
    Service(ServiceId),
}

impl Known {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Person(_) => "person",
            Self::Service(_) => "service",
        }
    }
}

impl std::fmt::Display for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(id) => id.fmt(f),
            Self::Person(id) => id.fmt(f),
            Self::Service(id) => id.fmt(f),
        }
    }
}

impl Broker {
    /// The figures of this broker.
    pub const fn metrics(&self) -> &std::sync::Arc<Metrics> {
        &self.metrics
    }

    /// Time since start, which nobody sets: for rates and for how long something took.
    pub fn uptime(&self) -> Duration {
        self.clock.uptime()
    }

    /// How long ago a moment was, by the wall clock; zero for one that is still to come.
    pub fn since(&self, moment: Timestamp) -> Duration {
        self.now().after(moment)
    }

    /// OpenMetrics text of this moment. Walks over the open tasks and their grants: for a thread that may take its time.
    pub fn read_metrics(&self) -> String {
        let (clock, now) = (self.clock.now(), self.now());
        let tasks = self.state.open_tasks();
        let running: Vec<_> = tasks.iter().filter(|t| self.runs(t, now)).collect();
        let pending = |task: &TaskId| {
            let requests = self.state.requests_of(task);
            requests.iter().filter(|r| r.waits(now)).count()
        };
        // What the rules of today say of each is asked where a token is used, not here.
        let live = |task: &TaskId| {
            let grants = self.state.grants_of(task);
            let live = |grant: &&std::sync::Arc<crate::state::Grant>| {
                self.state.dead(grant, now).is_none() && !grant.spent()
            };
            grants.iter().filter(live).count()
        };
        let tail = *self.journal.tail().borrow();
        let moment = Moment {
            requests_pending: running.iter().map(|t| pending(&t.opened.task)).sum(),
            tokens_live: running.iter().map(|t| live(&t.opened.task)).sum(),
            tasks_open: running.len(),
            policy: self
                .views
                .rules()
                .map(|rules| rules.bundle.version().to_string()),
            journal_entries: tail.head.size,
            journal_bytes: self.journal.bytes(),
            ends_unwritten: self.pending_revocations(),
            clock_behind: now.after(clock),
        };
        self.metrics.read(&moment)
    }

    /// Gate 1's first question, counted.
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
            &self.views.trust(),
            &self.settings.evidence_audience,
            now,
        );
        let result = attested.as_ref().map_or_else(cause, |_| "good");
        self.metrics.attested(kind.as_str(), result);
        attested
    }

    /// Lets a caller in who is known by now, unless it calls more often than its rate. Nothing was done before this.
    pub(super) fn within_its_rate(&self, call: &CallContext, who: Known) -> Result<(), Refusal> {
        let class = call.permit.class();
        let span = tracing::Span::current();
        span.record("caller", who.as_str());
        span.record("who", tracing::field::display(&who));
        let after = match self.callers.take(class, &who, self.uptime()) {
            Ok(()) => return Ok(()),
            Err(after) => after,
        };
        self.metrics.rate_limited(class.as_str(), "caller");
        if let Some(count) = self.rate_told.due(self.uptime()) {
            tracing::warn!(
                count,
                class = class.as_str(),
                by = "caller",
                caller = %who,
                method = call.method,
                "calls shed"
            );
        }
        // Not in the log for `explain`: a flood would wash out what is worth finding there.
        Err(Refusal {
            reason: Reason::RateLimited,
            told: "you call more often than your rate; nothing was done, try again when told"
                .to_owned(),
            correlation: CorrelationId::from_random(self.draw()),
            known: true,
            retry_after: Some(after),
        })
    }

    /// The answer of gate 2, as it is counted.
    pub(super) fn count_decision(&self, outcome: &'static str, rules: &[RuleRef]) {
        let first = rules.first().map(|rule| &*rule.id);
        self.metrics.decided(outcome, first);
    }

    /// How long an access request waited until it was decided.
    pub(super) fn count_wait(&self, outcome: &'static str, opened_at: Timestamp, now: Timestamp) {
        let waited = now.after(opened_at);
        self.metrics.approval_waited(outcome, waited);
    }
}

/// The word for a cause in figures.
pub(super) const fn cause(error: &VerifyError) -> &'static str {
    match error {
        VerifyError::Evidence(_) => "evidence",
        VerifyError::Claim(_) => "claim",
        VerifyError::Subject(_) => "subject",
        VerifyError::UnknownDomain(_) => "unknown_domain",
        VerifyError::WrongAudience => "wrong_audience",
        VerifyError::Expired(_) => "expired",
        VerifyError::Dates => "dates",
        VerifyError::NoProof => "no_proof",
        VerifyError::Proof(_) => "proof",
        VerifyError::Nonce => "nonce",
        VerifyError::Replayed => "replayed",
        VerifyError::TooManyProofs => "too_many_proofs",
        VerifyError::ProofElsewhere(_) => "proof_elsewhere",
        VerifyError::NotOfTask => "not_of_task",
        VerifyError::OtherWorkload { .. } => "other_workload",
        VerifyError::Stale => "stale",
        VerifyError::NoRules => "no_rules",
        VerifyError::NotRegistered => "not_registered",
        VerifyError::Agents(_) => "agents",
        VerifyError::OtherAgent(_) => "other_agent",
        VerifyError::Suspended(_) => "suspended",
        VerifyError::Frozen(_) => "frozen",
        VerifyError::OtherKey(_) => "other_key",
        VerifyError::Code(_) => "code",
        VerifyError::Session(_) => "session",
        VerifyError::Passkey(_) => "passkey",
        VerifyError::KeyRemoved => "key_removed",
        VerifyError::MayNotOperate { .. } => "may_not_operate",
    }
}
