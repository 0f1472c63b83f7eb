use std::sync::Arc;

use crate::broker::metrics::CallerId;
use crate::broker::{
    ATTEMPTS, Broker, CallContext, HEARTBEAT_MAX_S, HEARTBEAT_MIN_S, Refusal, TASKS_MAX,
};
use crate::journal::{Append, Blob};
use crate::model::*;
use crate::state::Task;
use crate::verify::{
    self, AgentRecords, Attested, Authenticated, Gate1Context, Restriction, TaskSnapshot,
    VerifyError,
};

/// A parsed `OpenTask`.
#[derive(Debug)]
pub struct OpenTaskInput {
    /// What the workload is.
    pub evidence: Evidence,
    /// Why, in its words.
    pub purpose: Prose,
    /// Seconds it asks for.
    pub max_duration: i64,
    /// Its idempotency key.
    pub idempotency_key: IdempotencyKey,
    /// Seconds it may go without a sign of life; `None` for as long as the deadline lets it.
    pub heartbeat: Option<i64>,
}

/// An open task.
#[derive(Debug)]
pub struct OpenTaskReply {
    /// As entered.
    pub task: Arc<TaskOpened>,
    /// When a missed heartbeat ends it.
    pub lease_until: Option<Timestamp>,
    /// What gate 1 saw in this call.
    pub facts: EvidenceFacts,
}

impl Broker {
    /// Gate 1, then one entry. A crash before the entry leaves nothing; after it, a task that the same `idempotency_key` under
    /// the same key finds again, and that ends by itself.
    pub async fn open_task(&self, call: &CallContext, input: OpenTaskInput) -> Result<OpenTaskReply, Refusal> {
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
        self.check_rate_limit(call, CallerId::Agent(agent))?;
        // Any key will do here; one that the agent is not pinned to is refused where its standing is looked at.
        let possession =
            self.opening_possession(call, verify::evidence_hash(&input.evidence), now)?;
        if input.max_duration <= 0 {
            return Err(self.refuse(
                call.method,
                Reason::InvalidTtl,
                "max_duration must be above zero",
            ));
        }
        if let Some(seconds) = input.heartbeat
            && !(HEARTBEAT_MIN_S..=HEARTBEAT_MAX_S).contains(&seconds)
        {
            let message = format!("heartbeat must be {HEARTBEAT_MIN_S} s to {HEARTBEAT_MAX_S} s");
            return Err(self.refuse(call.method, Reason::InvalidTtl, message));
        }
        let authenticated = Authenticated::for_open_task(Arc::new(attested), possession);
        let (input, authenticated) = (&input, &authenticated);
        self.transaction(call.method, ATTEMPTS, "opening the task", |attempt| async move {
            let now = self.now();
            let rules = self.projections.rules();
            let verified = authenticated
                .verify(self.gate_1_context(authenticated, rules.as_deref(), None), now)
                .map_err(|e| closed(&e))?;
            let agent = verified.agent();
            if let Some(task) =
                self.state
                    .opened_under(&agent.id, authenticated.jkt(), &input.idempotency_key)
            {
                return Ok(self.replay_open(call, input, &task, authenticated)?);
            }
            if self.state.open_tasks_of(&agent.id).len() >= TASKS_MAX {
                let message = format!("{TASKS_MAX} tasks of this agent run; end some");
                return Err(self.refuse(call.method, Reason::TooManyTasks, message).into());
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
                asked_seconds: input.max_duration,
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
                    Stream::open(
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
        })
        .await
    }

    /// A retry: the same task for the same words, whether it still runs or not.
    fn replay_open(
        &self,
        call: &CallContext,
        input: &OpenTaskInput,
        task: &Task,
        authenticated: &Authenticated,
    ) -> Result<OpenTaskReply, Refusal> {
        let same = task.opened.asked_seconds == input.max_duration
            && task.opened.heartbeat_seconds == input.heartbeat
            && task.purpose.as_ref() == Some(&input.purpose);
        if !same {
            return Err(self.refuse(
                call.method,
                Reason::RequestIdReused,
                "this request_id opened a task with another purpose, duration or heartbeat",
            ));
        }
        if !self.is_running(task, self.now()) {
            return Err(self.refuse(
                call.method,
                Reason::TaskEnded,
                "the task this request_id opened is over",
            ));
        }
        self.cache_attestation(task.opened.task, authenticated);
        Ok(OpenTaskReply {
            lease_until: task.lease.map(|lease| lease.until),
            task: task.opened.clone(),
            facts: authenticated.facts().clone(),
        })
    }

    /// Notes when the evidence of a task was verified here.
    pub(in crate::broker) fn cache_attestation(&self, task: TaskId, authenticated: &Authenticated) {
        self.attestations.put_shared(task, authenticated.attested().clone());
    }

    /// When the evidence of a task was last verified here.
    pub(in crate::broker) fn cached_attestation(&self, task: &TaskId) -> Option<Arc<Attested>> {
        self.attestations.get(task)
    }

    /// What the journal and the rules say at this moment about whoever proved something.
    pub(in crate::broker) fn gate_1_context<'a>(
        &'a self,
        authenticated: &Authenticated,
        rules: Option<&'a crate::policy::InForce>,
        task: Option<&Task>,
    ) -> Gate1Context<'a> {
        let facts = authenticated.facts();
        let trust = self
            .state
            .trusted(&facts.subject.trust_domain())
            .filter(|keys| keys.value.kids.contains(&facts.kid))
            .map(|keys| keys.version);
        let agent = rules.and_then(|rules| {
            match rules.bundle.agents_matching(&facts.subject).as_slice() {
                [one] => Some(self.agent_records(one)),
                _ => None,
            }
        });
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

    fn agent_records(&self, agent: &Agent) -> AgentRecords {
        let restriction = |(in_force, version)| Restriction { in_force, version };
        let freeze = |scope| restriction(self.freeze_of(&scope));
        AgentRecords {
            id: agent.id.clone(),
            owner: agent.owner.clone(),
            suspension: restriction(self.agent_suspension(&agent.id)),
            freeze_all: freeze(FreezeScope::All),
            freeze_agent: freeze(FreezeScope::Agent(agent.id.clone())),
            freeze_owner: freeze(FreezeScope::Owner(agent.owner.clone())),
            owner_version: self.state.roster().of(&agent.owner).version,
        }
    }
}
