//! Opening a task: gate 1, idempotency and the limit on running tasks.

use std::sync::Arc;

use crate::broker::metrics::CallerId;
use crate::broker::{
    ATTEMPTS, Broker, CallContext, HEARTBEAT_MAX_S, HEARTBEAT_MIN_S, Refusal, TASKS_MAX,
};
use crate::journal::{Append, Blob};
use crate::model::*;
use crate::state::TaskRecord;
use crate::verify::{
    self, AgentRecords, Attested, Authenticated, Gate1Context, Restriction, TaskSnapshot,
    VerifyError,
};

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
        let rules = self
            .projections
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
        let authenticated = Authenticated::for_open_task(Arc::new(attested), possession);
        let (input, authenticated) = (&input, &authenticated);
        let key = Stream::open_task(agent, authenticated.jkt(), input.idempotency_key.clone());
        self.transaction_on(
            key,
            call.method,
            ATTEMPTS,
            "the agent's records keep changing while the task is opened",
            |attempt| async move {
                let now = self.now();
                let rules = self.projections.rules();
                let verified = authenticated
                    .verify(
                        self.gate_1_context(authenticated, rules.as_deref(), None),
                        now,
                    )
                    .map_err(|e| closed(&e))?;
                let agent = verified.agent();
                if let Some(task) = self.state.task_by_idempotency_key(
                    &agent.id,
                    authenticated.jkt(),
                    &input.idempotency_key,
                ) {
                    return Ok(self.replay_open(call, input, &task, authenticated)?);
                }
                if self.state.open_tasks_of(&agent.id).len() >= TASKS_MAX {
                    let message = format!(
                        "the agent has {TASKS_MAX} running tasks, the most it may have; end some"
                    );
                    return Err(self
                        .refuse(call.method, Reason::TooManyTasks, message)
                        .into());
                }
                self.require_reliable_clock(call.method)?;
                let task = TaskId::from_random(self.random_bytes());
                let purpose = Blob::new(input.purpose.blob(self.random_bytes()));
                let event = TaskOpened {
                    task,
                    agent: agent.id.clone(),
                    owner: agent.owner.clone(),
                    binding: verified.binding(),
                    idempotency_key: input.idempotency_key.clone(),
                    requested_seconds: input.max_duration,
                    opened_at: now,
                    deadline: now.plus_secs(input.max_duration.min(self.settings.task_cap)),
                    heartbeat_seconds: input.heartbeat,
                    purpose: purpose.hash(),
                    evidence: verified.facts().clone(),
                    policy: rules
                        .as_ref()
                        .map(|r| r.bundle.version())
                        .ok_or_else(|| closed(&VerifyError::NoRules))?,
                };
                let write_set = vec![
                    (Stream::Task(task), 0),
                    (
                        Stream::open_task(
                            agent.id.clone(),
                            authenticated.jkt(),
                            input.idempotency_key.clone(),
                        ),
                        0,
                    ),
                ];
                let append = Append {
                    read_set: verified.read_set().to_vec(),
                    not_after: Some(verified.not_after()),
                    blobs: vec![purpose],
                    ..Append::one(Event::TaskOpened(event.clone()), write_set)
                };
                attempt.append(append).await?;
                self.cache_attestation(task, authenticated);
                Ok(OpenTaskReply {
                    lease_until: event.heartbeat_seconds.map(|s| now.plus_secs(s)),
                    task: Arc::new(event),
                    facts: authenticated.facts().clone(),
                })
            },
        )
        .await
    }

    /// Answers a retry: the same task for the same input, while it runs.
    fn replay_open(
        &self,
        call: &CallContext,
        input: &OpenTaskInput,
        task: &TaskRecord,
        authenticated: &Authenticated,
    ) -> Result<OpenTaskReply, Refusal> {
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
        let now = self.now();
        if !self.is_running(task, now) {
            return Err(self.refuse_ended(call.method, task, now));
        }
        self.cache_attestation(task.opened.task, authenticated);
        Ok(OpenTaskReply {
            lease_until: task.lease.map(|lease| lease.until),
            task: task.opened.clone(),
            facts: authenticated.facts().clone(),
        })
    }

    /// Keeps the evidence of a task as it was verified in this call.
    pub(in crate::broker) fn cache_attestation(&self, task: TaskId, authenticated: &Authenticated) {
        self.attestations
            .insert_arc(task, authenticated.attested().clone());
    }

    /// The evidence of a task as it was last verified here.
    pub(in crate::broker) fn cached_attestation(&self, task: &TaskId) -> Option<Arc<Attested>> {
        self.attestations.get(task)
    }

    /// Gathers what gate 1 needs of the journal and the rules at this moment.
    pub(in crate::broker) fn gate_1_context<'a>(
        &'a self,
        authenticated: &Authenticated,
        rules: Option<&'a crate::policy::ActivePolicy>,
        task: Option<&TaskRecord>,
    ) -> Gate1Context<'a> {
        let facts = authenticated.facts();
        let trust = self
            .state
            .trusted_keys(&facts.subject.trust_domain())
            .filter(|keys| keys.value.kids.contains(&facts.kid))
            .map(|keys| keys.version);
        let agent =
            rules.and_then(
                |rules| match rules.bundle.agents_matching(&facts.subject).as_slice() {
                    [one] => Some(self.agent_records(one)),
                    _ => None,
                },
            );
        Gate1Context {
            rules,
            trust,
            agent,
            task: task.map(|t| TaskSnapshot {
                id: t.opened.task,
                agent: t.opened.agent.clone(),
                opened_at: t.opened.opened_at,
                deadline: t.opened.deadline,
                lease_until: t.lease.map(|lease| lease.until),
                version: t.version,
            }),
            max_evidence_age_ms: self.settings.max_evidence_age.saturating_mul(1000),
        }
    }

    /// What the journal says of an agent, each value read together with its version.
    fn agent_records(&self, agent: &RegisteredAgent) -> AgentRecords {
        let restriction = |(in_force, version)| Restriction { in_force, version };
        let freeze = |scope| restriction(self.freeze_status(&scope));
        AgentRecords {
            id: agent.id.clone(),
            owner: agent.owner.clone(),
            suspension: restriction(self.agent_suspension(&agent.id)),
            freeze_all: freeze(FreezeScope::All),
            freeze_agent: freeze(FreezeScope::Agent(agent.id.clone())),
            freeze_owner: freeze(FreezeScope::Owner(agent.owner.clone())),
            owner_version: self.state.credentials().get(&agent.owner).version,
        }
    }
}
