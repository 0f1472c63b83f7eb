//! Opening a task: gate 1, idempotency and the limit on running tasks.

use std::sync::Arc;

use crate::broker::governance::pending_revocation::RevocationTarget;
use crate::broker::metrics::CallerId;
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, HEARTBEAT_MAX_S, HEARTBEAT_MIN_S, Refusal};
use crate::journal::Blob;
use crate::model::*;
use crate::state::{Draft, Read, Recorded, TaskRecord};
use crate::verify::{self, Attested, Authenticated, Verified, VerifyError};

/// Input of `OpenTask`.
#[derive(Debug)]
pub struct OpenTaskInput {
    /// Evidence of the workload's identity.
    pub evidence: Evidence,
    /// The purpose, in the agent's words.
    pub purpose: UntrustedText,
    /// Longest duration, in seconds.
    pub max_duration: i64,
    /// The client's idempotency key.
    pub idempotency_key: IdempotencyKey,
    /// Seconds between heartbeats; `None` for a task without heartbeats.
    pub heartbeat: Option<i64>,
}

/// Answer of `OpenTask`.
#[derive(Debug)]
pub struct OpenTaskReply {
    /// The task, as journalled.
    pub task: Arc<TaskOpened>,
    /// When a missed heartbeat ends it.
    pub lease_until: Option<Timestamp>,
    /// The evidence gate 1 verified in this call.
    pub facts: EvidenceFacts,
}

impl Broker {
    /// Opens a task: gate 1, then one entry. A crash before the entry leaves nothing; after it, a task that a retry with the
    /// same idempotency key and the same DPoP key finds, and that ends by itself.
    pub async fn open_task(
        &self,
        call: &CallContext,
        input: OpenTaskInput,
    ) -> Result<OpenTaskReply, Refusal> {
        let now = self.now();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let attested = self.attest(&input.evidence, now).map_err(|e| closed(&e))?;
        // Who asks, for the rate limit and the turn; the round below decides.
        let rules = self
            .show()
            .rules()
            .ok_or_else(|| closed(&VerifyError::NoRules))?;
        let agent = match rules
            .bundle
            .agents_matching(&attested.facts().subject)
            .as_slice()
        {
            [one] => one.id.clone(),
            others => return Err(closed(&VerifyError::AmbiguousAgent(others.len()))),
        };
        self.check_rate_limit(call, CallerId::Agent(agent.clone()))?;
        // Any key is accepted here; one the agent is not pinned to is refused by gate 1 below.
        let possession =
            self.possession_for_open_task(call, verify::evidence_hash(&input.evidence), now)?;
        if input.max_duration <= 0 {
            return Err(self.refuse(
                call.method,
                Reason::InvalidTtl,
                "`max_duration` must be above zero",
            ));
        }
        if let Some(seconds) = input.heartbeat
            && !(HEARTBEAT_MIN_S..=HEARTBEAT_MAX_S).contains(&seconds)
        {
            let message = format!(
                "`heartbeat` must be {HEARTBEAT_MIN_S} s to {HEARTBEAT_MAX_S} s, got {seconds} s"
            );
            return Err(self.refuse(call.method, Reason::InvalidTtl, message));
        }
        let authenticated = Authenticated::new(Arc::new(attested), possession);
        let key = Stream::open_task(agent, authenticated.jkt(), input.idempotency_key.clone());
        let deadline = self.journal.append_deadline();
        let _turn = self.take_turn(key, call.method, deadline).await?;
        let opened = self
            .transaction_until(deadline, call.method)
            .run(|read| self.decide_open(read, call, &input, &authenticated))
            .await?
            .value;
        self.cache_attestation(opened.task.task, &authenticated);
        Ok(opened)
    }

    /// One round: gate 1, the task that the idempotency key already has, the new task.
    fn decide_open(
        &self,
        read: &Read,
        call: &CallContext,
        input: &OpenTaskInput,
        authenticated: &Authenticated,
    ) -> Result<Step<OpenTaskReply>, Refusal> {
        let now = self.now();
        let verified = self
            .pass_gate_1(read, authenticated, None, now)
            .map_err(|e| self.refuse_gate_1(call.method, &e))?;
        let agent = verified.agent();
        if let Some(task) =
            read.task_by_idempotency_key(&agent.id, authenticated.jkt(), &input.idempotency_key)
        {
            return self.replay_open(call, input, &task, authenticated, now);
        }
        self.require_reliable_clock(call.method)?;
        let purpose = Blob::new(input.purpose.blob(self.random_bytes()));
        let event = TaskOpened {
            task: TaskId::from_random(self.random_bytes()),
            agent: agent.id.clone(),
            owner: agent.owner.clone(),
            binding: verified.binding(),
            key_identity: authenticated.key_identity(),
            idempotency_key: input.idempotency_key.clone(),
            requested_seconds: input.max_duration,
            opened_at: now,
            deadline: now.plus_secs(input.max_duration.min(self.settings.task_cap)),
            heartbeat_seconds: input.heartbeat,
            purpose: purpose.hash(),
            evidence: verified.facts().clone(),
            policy: verified.rules().bundle.version(),
        };
        let reply = OpenTaskReply {
            lease_until: event.heartbeat_seconds.map(|s| now.plus_secs(s)),
            task: Arc::new(event.clone()),
            facts: authenticated.facts().clone(),
        };
        let draft = Draft::one(Event::TaskOpened(event))
            .not_after(verified.not_after())
            .with_blobs([purpose]);
        Ok(Step::Append(draft, reply))
    }

    /// Answers a retry: the same task for the same input, while it runs.
    fn replay_open(
        &self,
        call: &CallContext,
        input: &OpenTaskInput,
        task: &Recorded<'_, TaskRecord>,
        authenticated: &Authenticated,
        now: Timestamp,
    ) -> Result<Step<OpenTaskReply>, Refusal> {
        let same = task.opened.requested_seconds == input.max_duration
            && task.opened.heartbeat_seconds == input.heartbeat
            && task.purpose.as_ref() == Some(&input.purpose);
        if !same {
            return Err(self.refuse(
                call.method,
                Reason::IdempotencyKeyReused,
                "this idempotency key opened a task with another purpose, duration or heartbeat",
            ));
        }
        if !self.is_running(task, now) {
            return Err(self.refuse_ended(call.method, task, now));
        }
        Ok(Step::Answer(OpenTaskReply {
            lease_until: task.lease.map(|lease| lease.until),
            task: task.opened.clone(),
            facts: authenticated.facts().clone(),
        }))
    }

    /// Gate 1 in this round, and the suspensions and freezes that this process enforces and the journal does not hold yet.
    pub(in crate::broker) fn pass_gate_1<'r>(
        &self,
        read: &'r Read,
        authenticated: &Authenticated,
        task: Option<&TaskId>,
        now: Timestamp,
    ) -> Result<Verified<'r>, VerifyError> {
        let max_age_ms = self.settings.max_evidence_age.saturating_mul(1000);
        let verified = authenticated.verify(read, task, max_age_ms, now)?;
        let agent = verified.agent();
        if self.is_revocation_pending(&RevocationTarget::Agent(agent.id.clone())) {
            return Err(VerifyError::Suspended(agent.id.clone()));
        }
        let opener = verified.task().map(|task| task.opened.owner.clone());
        let owners = opener.into_iter().chain([agent.owner.clone()]);
        let mut scopes = [FreezeScope::All, FreezeScope::Agent(agent.id.clone())]
            .into_iter()
            .chain(owners.map(FreezeScope::Owner));
        match scopes.find(|scope| self.is_freeze_held(scope)) {
            Some(scope) => Err(VerifyError::Frozen(scope)),
            None => Ok(verified),
        }
    }

    /// Whether this process enforces a freeze that the journal does not hold yet.
    pub(in crate::broker) fn is_freeze_held(&self, scope: &FreezeScope) -> bool {
        self.is_revocation_pending(&RevocationTarget::Freeze(scope.clone()))
    }

    /// Keeps the evidence of a task as it was verified in this call, unless a later call has verified evidence since.
    pub(in crate::broker) fn cache_attestation(&self, task: TaskId, authenticated: &Authenticated) {
        let attested = authenticated.attested().clone();
        let verified_at = attested.facts().verified_at;
        self.attestations.insert_arc_unless(task, attested, |kept| {
            kept.facts().verified_at > verified_at
        });
    }

    /// The evidence of a task as it was last verified here.
    pub(in crate::broker) fn cached_attestation(&self, task: &TaskId) -> Option<Arc<Attested>> {
        self.attestations.get(task)
    }
}
