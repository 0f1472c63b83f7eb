use std::sync::Arc;

use crate::broker::metrics::Known;
use crate::broker::{
    ATTEMPTS, Broker, CallContext, HEARTBEAT_MAX_S, HEARTBEAT_MIN_S, Refusal, TASKS_MAX,
};
use crate::journal::{Append, AppendError, Blob};
use crate::model::*;
use crate::state::Task;
use crate::verify::{self, Attested, Authenticated, Gate1Context, TaskStanding, VerifyError};

/// A parsed `OpenTask`.
#[derive(Debug)]
pub struct OpenAsk {
    /// What the workload is.
    pub evidence: Evidence,
    /// Why, in its words.
    pub purpose: Prose,
    /// Seconds it asks for.
    pub max_duration: i64,
    /// Its idempotency key.
    pub request_id: RequestId,
    /// Seconds it may go without a sign of life; `None` for as long as the deadline lets it.
    pub heartbeat: Option<i64>,
}

/// An open task.
#[derive(Debug)]
pub struct Opened {
    /// As entered.
    pub task: Arc<TaskOpened>,
    /// When a missed heartbeat ends it.
    pub lease_until: Option<Timestamp>,
    /// What gate 1 saw in this call.
    pub facts: EvidenceFacts,
}

impl Broker {
    /// Gate 1, then one entry. A crash before the entry leaves nothing; after it, a task that the same `request_id` under
    /// the same key finds again, and that ends by itself.
    pub async fn open_task(&self, call: &CallContext, ask: OpenAsk) -> Result<Opened, Refusal> {
        let now = self.now();
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let attested = self.attest(&ask.evidence, now).map_err(|e| closed(&e))?;
        let rules = self
            .views
            .rules()
            .ok_or_else(|| closed(&VerifyError::NoRules))?;
        let agent = match rules
            .bundle
            .agents_matching(&attested.facts().subject)
            .as_slice()
        {
            [one] => one.id.clone(),
            others => return Err(closed(&VerifyError::Agents(others.len()))),
        };
        self.within_its_rate(call, Known::Agent(agent))?;
        // Any key will do here; one that the agent is not pinned to is refused where its standing is looked at.
        let possession =
            self.possession_for_open_task(call, verify::evidence_hash(&ask.evidence), now)?;
        if ask.max_duration <= 0 {
            return Err(self.refuse(
                call.method,
                Reason::InvalidTtl,
                "max_duration must be above zero",
            ));
        }
        if let Some(seconds) = ask.heartbeat
            && !(HEARTBEAT_MIN_S..=HEARTBEAT_MAX_S).contains(&seconds)
        {
            let told = format!("heartbeat must be {HEARTBEAT_MIN_S} s to {HEARTBEAT_MAX_S} s");
            return Err(self.refuse(call.method, Reason::InvalidTtl, told));
        }
        let authenticated = Authenticated::for_opening(Arc::new(attested), possession);
        for _ in 0..ATTEMPTS {
            let now = self.now();
            let rules = self.views.rules();
            let verified = authenticated
                .verify(self.standing(&authenticated, rules.as_deref(), None), now)
                .map_err(|e| closed(&e))?;
            let agent = verified.agent();
            if let Some(task) =
                self.state
                    .opened_under(&agent.id, authenticated.jkt(), &ask.request_id)
            {
                return self.opened_before(call, &ask, &task, &authenticated);
            }
            if self.state.open_tasks_of(&agent.id).len() >= TASKS_MAX {
                let told = format!("{TASKS_MAX} tasks of this agent run; end some");
                return Err(self.refuse(call.method, Reason::TooManyTasks, told));
            }
            self.clock_sure(call.method)?;
            let task = TaskId::from_random(self.draw());
            let purpose = Blob::new(ask.purpose.blob(self.draw()));
            let fact = TaskOpened {
                task,
                agent: agent.id.clone(),
                owner: agent.owner.clone(),
                binding: verified.binding(),
                request_id: ask.request_id.clone(),
                asked_seconds: ask.max_duration,
                opened_at: now,
                deadline: now.plus_secs(ask.max_duration.min(self.settings.task_cap)),
                heartbeat_seconds: ask.heartbeat,
                purpose: purpose.hash(),
                evidence: verified.facts().clone(),
                policy: rules
                    .as_ref()
                    .map(|r| r.bundle.version())
                    .ok_or_else(|| closed(&VerifyError::NoRules))?,
            };
            let moves = vec![
                (Stream::Task(task), 0),
                (
                    Stream::open(
                        agent.id.clone(),
                        authenticated.jkt(),
                        ask.request_id.clone(),
                    ),
                    0,
                ),
            ];
            let append = Append {
                read_set: verified.read_set().to_vec(),
                not_after: Some(verified.not_after()),
                blobs: vec![purpose],
                ..Append::one(Event::TaskOpened(fact.clone()), moves)
            };
            match self.journal.append(append).await {
                Ok(_) => {
                    self.remember(task, &authenticated);
                    return Ok(Opened {
                        lease_until: fact.heartbeat_seconds.map(|s| now.plus_secs(s)),
                        task: Arc::new(fact),
                        facts: authenticated.facts().clone(),
                    });
                }
                Err(AppendError::Conflict(_) | AppendError::Late) => {}
                Err(error) => return Err(self.refuse_append(call.method, &error)),
            }
        }
        Err(self.refuse(call.method, Reason::Conflict, "opening the task"))
    }

    /// A retry: the same task for the same words, whether it still runs or not.
    fn opened_before(
        &self,
        call: &CallContext,
        ask: &OpenAsk,
        task: &Task,
        authenticated: &Authenticated,
    ) -> Result<Opened, Refusal> {
        let same = task.opened.asked_seconds == ask.max_duration
            && task.opened.heartbeat_seconds == ask.heartbeat
            && task.purpose.as_ref() == Some(&ask.purpose);
        if !same {
            return Err(self.refuse(
                call.method,
                Reason::RequestIdReused,
                "this request_id opened a task with another purpose, duration or heartbeat",
            ));
        }
        if !self.runs(task, self.now()) {
            return Err(self.refuse(
                call.method,
                Reason::TaskEnded,
                "the task this request_id opened is over",
            ));
        }
        self.remember(task.opened.task, authenticated);
        Ok(Opened {
            lease_until: task.lease.map(|lease| lease.until),
            task: task.opened.clone(),
            facts: authenticated.facts().clone(),
        })
    }

    /// Notes when the evidence of a task was verified here.
    pub(in crate::broker) fn remember(&self, task: TaskId, authenticated: &Authenticated) {
        self.seen.put_shared(task, authenticated.attested().clone());
    }

    /// When the evidence of a task was last verified here.
    pub(in crate::broker) fn remembered(&self, task: &TaskId) -> Option<Arc<Attested>> {
        self.seen.get(task)
    }

    /// What the journal and the rules say at this moment about whoever proved something.
    pub(in crate::broker) fn standing<'a>(
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
        Gate1Context {
            rules,
            trust,
            agent: Box::new(|id| self.standing_of(id)),
            freeze: Box::new(|scope| self.freeze_status(scope)),
            person: Box::new(|person| self.state.roster().of(person).version),
            task: task.map(|t| TaskStanding {
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
}
