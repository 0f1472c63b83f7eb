//! Plans: what a policy bundle would change, before it is applied: what differs, what would end, and what it would have decided.
//!
//! One plan is made at a time, in threads of low priority with a connection of their own to the journal: calls are served as before.
//! A plan that no client asks for any more is cancelled. It decides nothing: an apply looks at everything again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::disallowed::may_still_operate;
use super::policy::PeopleSummary;
use super::proposal::NOBODY_COULD_CHANGE;
use crate::approve::needs::{self, Reassessment};
use crate::approve::{quorum, votes};
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::journal::{JournalReader, OpenError};
use crate::model::*;
use crate::policy::replay::{RecordedDecision, Replay};
use crate::policy::{ActivePolicy, BundleFiles, PolicyBundle, sentences};
use crate::state::Read;

/// Most ends that a plan names of one kind.
const NAMED_MAX: usize = 50;
/// Adds one to a list.
fn add(list: &mut PlannedList, id: impl ToString, who: impl ToString, what: String) {
    list.count += 1;
    if list.named.len() < NAMED_MAX {
        let (id, who) = (id.to_string(), who.to_string());
        list.named.push(PlannedItem { id, who, what });
    }
}

/// Longest span of decisions that a plan looks at, in days.
const PLAN_DAYS_MAX: u32 = 366;
/// The span where none is asked for, in days.
const PLAN_DAYS: u32 = 7;
/// Most decisions of one plan: beyond them, older ones are left out.
const DECISIONS_MAX: u64 = 10_000_000;
/// A plan that is not asked for within this time is cancelled, in milliseconds.
const ABANDONED_MS: i64 = 30_000;
/// A plan on a card is not older than this, in milliseconds.
const CARD_PLAN_MS: i64 = 3_600_000;
/// Plans that are kept.
const KEPT_MAX: usize = 8;
/// Threads of one plan.
const THREADS: u64 = 2;
/// Entries read at once.
const READ_AT_ONCE: u32 = 512;
/// The niceness of the threads of a plan (`setpriority(2)`).
const NICENESS: i32 = 15;

/// The state of a plan, for who asked.
#[derive(Debug, Clone)]
pub struct PlanReply {
    /// The operator or auditor.
    pub caller: String,
    /// The state.
    pub state: PlanState,
}

/// The state of a plan.
#[derive(Debug, Clone)]
pub enum PlanState {
    /// It is being made.
    Running {
        /// Decisions looked at so far.
        decisions: u64,
    },
    /// It is ready: the plan in canonical JSON.
    Ready(Arc<str>),
}

/// The plans of this process.
#[derive(Default)]
pub(in crate::broker) struct Plans {
    running: Option<Arc<PlanJob>>,
    /// The bundle of a proposal is being read, for its plan.
    loading: bool,
    /// The newest last.
    made: Vec<(Arc<PlanJob>, MadePlan)>,
}

/// A plan, or why there is none.
type MadePlan = Result<Arc<PolicyPlan>, String>;

/// A plan that is or was made.
pub(in crate::broker) struct PlanJob {
    id: Digest,
    /// The operator who asked for it; `None`: it is for the card of a proposal.
    by: Option<PersonId>,
    base: Arc<PolicyBundle>,
    candidate: Arc<PolicyBundle>,
    people: PlannedPeople,
    began_at: Timestamp,
    since: Timestamp,
    decisions: AtomicU64,
    /// When a client last asked for it, in milliseconds of uptime.
    asked_at: AtomicI64,
    is_cancelled: AtomicBool,
}

/// What a bundle would change for people.
struct PlannedPeople {
    returning: BTreeSet<PersonId>,
    changes: Vec<String>,
    warnings: Vec<String>,
}

/// Ends a plan when its thread ends, however that is.
struct PlanEnding {
    broker: Arc<Broker>,
    job: Arc<PlanJob>,
    plan: MadePlan,
}

impl Drop for PlanEnding {
    fn drop(&mut self) {
        let plan = std::mem::replace(&mut self.plan, Err(String::new()));
        self.broker.end_plan(&self.job, plan);
    }
}

/// While it lives, the bundle of a proposal is being read.
struct LoadingMark(Arc<Broker>);

impl Drop for LoadingMark {
    fn drop(&mut self) {
        self.0.lock(&self.0.plans).loading = false;
    }
}

impl Broker {
    /// Begins to plan a policy bundle; [`Broker::policy_plan`] has the result by the plan's id. It takes the place of a plan that the
    /// operator asked for before, and of one for a card. Refuses a bundle that an apply would refuse, and a plan beside another
    /// operator's.
    pub async fn plan_policy_bundle(
        self: &Arc<Self>,
        call: &CallContext,
        operator: PersonCaller,
        files: std::collections::BTreeMap<String, String>,
        returning: BTreeSet<PersonId>,
        days: Option<u32>,
    ) -> Result<Digest, Refusal> {
        let days = days.unwrap_or(PLAN_DAYS);
        if !(1..=PLAN_DAYS_MAX).contains(&days) {
            let why = ParseError::new("days", format!("must be from 1 to {PLAN_DAYS_MAX}"));
            return Err(self.malformed(call.method, &why));
        }
        let (_, candidate, _) = self.load_bundle(call.method, files).await?;
        let looked = self.preview(|read| {
            self.require_operator(read, call, &operator)?;
            self.planned_people(read, &candidate, returning)
                .map_err(|why| self.refuse(call.method, Reason::InvalidPolicyBundle, why))
        });
        let (base, people) = looked?;
        let by = Some(operator.id.clone());
        let job = self.new_job(by, base, Arc::new(candidate), people, days);
        let id = job.id;
        if !self.begin_plan(job) {
            let why = "another operator's plan is being made: try again when it is ready";
            return Err(self.refuse(call.method, Reason::TooManyPending, why));
        }
        Ok(id)
    }

    /// A plan that was begun. Asking for it keeps it going.
    pub fn policy_plan(&self, call: &CallContext, id: &Digest) -> Result<PlanReply, Refusal> {
        let caller = self.authenticate_reader(call, self.now())?;
        let plans = self.lock(&self.plans);
        if let Some(job) = plans.running.as_ref().filter(|job| job.id == *id) {
            job.asked_at.store(self.uptime_ms(), Ordering::Relaxed);
            let decisions = job.decisions.load(Ordering::Relaxed);
            let state = PlanState::Running { decisions };
            return Ok(PlanReply { caller, state });
        }
        let made = plans.made.iter().find(|(job, _)| job.id == *id);
        let plan = made.map(|(_, plan)| plan.clone());
        drop(plans);
        match plan {
            Some(Ok(plan)) => {
                let text = json::canonical_of(&*plan);
                let text = text.map_err(|e| {
                    self.refuse(call.method, Reason::DecisionUnavailable, e.to_string())
                })?;
                let state = PlanState::Ready(text.into());
                Ok(PlanReply { caller, state })
            }
            Some(Err(why)) => {
                let why = format!("the plan was not made: {why}");
                Err(self.refuse(call.method, Reason::DecisionUnavailable, why))
            }
            None => {
                let why = "no plan with this id is kept: plan the bundle again";
                Err(self.refuse(call.method, Reason::NotFound, why))
            }
        }
    }

    /// The plan of a waiting proposal in sentences, for its card: one made for cards, since the proposal was opened, and not long ago.
    /// Begins one where there is none and no other is being made.
    pub(in crate::broker) fn plan_of_proposal(
        self: &Arc<Self>,
        by: &PersonRequester,
        opened_at: Timestamp,
    ) -> Vec<String> {
        let oldest = self.now().plus_millis(-CARD_PLAN_MS).max(opened_at);
        let is_made_now = {
            let mut plans = self.lock(&self.plans);
            let mut made = plans.made.iter().rev().filter(|(job, plan)| {
                plan.is_ok()
                    && job.by.is_none()
                    && job.began_at >= oldest
                    && job.base.version() == by.replaces
                    && job.candidate.version() == by.bundle
                    && job.people.returning == by.returning
            });
            if let Some((_, Ok(plan))) = made.next() {
                return plan.sentences();
            }
            let is_busy = plans.running.is_some() || plans.loading;
            plans.loading |= !is_busy;
            !is_busy
        };
        if is_made_now {
            let (broker, by) = (Arc::clone(self), by.clone());
            let thread = std::thread::Builder::new().name("plan".to_owned());
            // A thread that does not start leaves the card without a plan.
            let started = thread.spawn(move || broker.begin_plan_of_proposal(&by));
            if started.is_err() {
                self.lock(&self.plans).loading = false;
            }
        }
        vec!["a plan is being made: open the card again in a moment".to_owned()]
    }

    fn begin_plan_of_proposal(self: Arc<Self>, by: &PersonRequester) {
        let _lowered = rustix::process::setpriority_process(None, NICENESS);
        let loading = LoadingMark(Arc::clone(&self));
        let job = || -> Result<PlanJob, String> {
            let text = self.journal.blob(&by.bundle).map_err(|e| e.to_string())?;
            let text = text.ok_or("the bundle is no longer on record")?;
            let candidate = BundleFiles::parse(&text).map_err(|e| e.to_string())?;
            let candidate = PolicyBundle::load(&candidate).map_err(|e| e.to_string())?;
            let returning = by.returning.clone();
            let planned = self.preview(|read| self.planned_people(read, &candidate, returning));
            let (base, people) = planned?;
            match base.version() == by.replaces {
                true => Ok(self.new_job(None, base, Arc::new(candidate), people, PLAN_DAYS)),
                false => Err("another bundle is in force".to_owned()),
            }
        };
        let job = job();
        drop(loading);
        match job {
            Ok(job) => {
                let _begun_or_another_runs = self.begin_plan(job);
            }
            Err(why) => tracing::warn!(%why, "no plan for the card of a proposal"),
        }
    }

    /// The bundle in force, and what another one would change for people.
    fn planned_people(
        &self,
        read: &Read,
        candidate: &PolicyBundle,
        returning: BTreeSet<PersonId>,
    ) -> Result<(Arc<PolicyBundle>, PlannedPeople), String> {
        let rules = read.rules().ok_or("no policy bundle is in force")?;
        let registration = read
            .may_register(candidate, &returning)
            .map_err(|e| e.to_string())?;
        let PeopleSummary {
            changes,
            mut warnings,
        } = self.people_summary(&registration);
        if !read.change_is_possible(candidate, &registration.returning()) {
            warnings.insert(0, NOBODY_COULD_CHANGE.to_owned());
        }
        let of_check = candidate.warnings().iter().map(ToString::to_string);
        warnings.extend(of_check);
        let people = PlannedPeople {
            returning,
            changes,
            warnings,
        };
        Ok((Arc::clone(&rules.bundle), people))
    }

    fn new_job(
        &self,
        by: Option<PersonId>,
        base: Arc<PolicyBundle>,
        candidate: Arc<PolicyBundle>,
        people: PlannedPeople,
        days: u32,
    ) -> PlanJob {
        let span_s = i64::from(days).saturating_mul(86_400);
        let began_at = self.now();
        PlanJob {
            id: Digest::sha256(&self.random_bytes()),
            by,
            base,
            candidate,
            people,
            began_at,
            since: began_at.plus_secs(-span_s),
            decisions: AtomicU64::new(0),
            asked_at: AtomicI64::new(self.uptime_ms()),
            is_cancelled: AtomicBool::new(false),
        }
    }

    /// Starts the thread of a plan; false while one of another operator runs. One for a card, and one of the same operator, is cancelled.
    fn begin_plan(self: &Arc<Self>, job: PlanJob) -> bool {
        let job = Arc::new(job);
        {
            let mut plans = self.lock(&self.plans);
            if let Some(running) = &plans.running {
                let gives_way = job.by.is_some() && (running.by.is_none() || running.by == job.by);
                if !gives_way {
                    return false;
                }
                running.is_cancelled.store(true, Ordering::Relaxed);
            }
            plans.running = Some(Arc::clone(&job));
        }
        let broker = Arc::clone(self);
        let own = Arc::clone(&job);
        let thread = std::thread::Builder::new().name("plan".to_owned());
        let started = thread.spawn(move || broker.run_plan(own));
        if let Err(error) = started {
            self.end_plan(&job, Err(error.to_string()));
        }
        true
    }

    fn run_plan(self: Arc<Self>, job: Arc<PlanJob>) {
        // Beside its own work a broker that cannot lower the priority is as it was: the plan is not worth a failure.
        let _lowered = rustix::process::setpriority_process(None, NICENESS);
        let mut ending = PlanEnding {
            broker: Arc::clone(&self),
            job: Arc::clone(&job),
            plan: Err("its thread failed".to_owned()),
        };
        let plan = self.make_plan(&job);
        let was_cancelled = job.is_cancelled.load(Ordering::Relaxed);
        ending.plan = plan.map(Arc::new).map_err(|error| match was_cancelled {
            true => "it was cancelled, since no client asked for it any more".to_owned(),
            false => error.to_string(),
        });
    }

    fn end_plan(&self, job: &Arc<PlanJob>, plan: MadePlan) {
        let mut plans = self.lock(&self.plans);
        // One that gave way to another is no longer the running one.
        if plans
            .running
            .as_ref()
            .is_some_and(|running| running.id == job.id)
        {
            plans.running = None;
        }
        plans.made.push((Arc::clone(job), plan));
        let surplus = plans.made.len().saturating_sub(KEPT_MAX);
        plans.made.drain(..surplus);
    }

    fn make_plan(self: &Arc<Self>, job: &Arc<PlanJob>) -> Result<PolicyPlan, OpenError> {
        let planned_at = self.now();
        let known = sentences::warnings(&job.candidate);
        let people = job.people.changes.iter().cloned();
        let changes = sentences::summary(&job.base, &job.candidate, people, &known);
        let mut warnings = job.people.warnings.clone();
        let active = ActivePolicy::new(Arc::clone(&job.candidate));
        warnings
            .extend(self.preview(|read| quorum::unreachable(self.voter_context(read, &active))));
        let ends = self.planned_ends(job, &active, planned_at);
        let replay = self.replay(job)?;
        Ok(PolicyPlan {
            base_version: job.base.version(),
            version: job.candidate.version(),
            planned_at: planned_at.to_string(),
            since: job.since.to_string(),
            returning: job.people.returning.clone(),
            changes,
            warnings,
            ends,
            replay,
        })
    }

    /// What a bundle would end of what is open now.
    fn planned_ends(&self, job: &PlanJob, active: &ActivePolicy, now: Timestamp) -> PlannedEnds {
        let mut ends = PlannedEnds::default();
        let candidate = &job.candidate;
        // Approvers are looked at as they are registered now.
        let people_change = !job.people.changes.is_empty();
        let mut ended = BTreeSet::new();
        for task in self.show().open_tasks() {
            let opened = &task.opened;
            let owner = candidate.agent(&opened.agent).map(|a| a.owner.clone());
            let is_frozen = owner.is_some_and(|owner| {
                self.preview(|read| read.is_frozen(&FreezeScope::Owner(owner)))
            });
            let goes_on = !is_frozen && may_still_operate(opened, active);
            if !goes_on {
                ended.insert(opened.task);
                add(&mut ends.tasks, opened.task, &opened.agent, String::new());
            }
            for grant in self.show().grants_of_task(&opened.task) {
                if self.show().end_cause(&grant, now).is_some() {
                    continue;
                }
                let jti = grant.issued.jti;
                let is_allowed = self.preview(|read| {
                    let grant = read.grant(&jti);
                    grant.is_none_or(|g| crate::approve::is_allowed_by(read, &g, candidate))
                });
                if !goes_on || !is_allowed {
                    let action = &grant.issued.action;
                    add(
                        &mut ends.tokens,
                        jti,
                        &grant.issued.agent,
                        request_of(action),
                    );
                }
            }
        }
        for request in self.show().pending_requests(now) {
            let opened = &request.opened;
            let id = opened.access_request;
            let (who, what) = (
                opened
                    .agent()
                    .map_or_else(|| opened.owner().to_string(), ToString::to_string),
                request_of(&opened.action),
            );
            let is_of_ended_task = opened.task().is_some_and(|task| ended.contains(&task));
            let proposed = opened.by_person().map(|by| by.bundle);
            if proposed == Some(candidate.version()) {
                continue;
            }
            // Another bundle in force voids every proposal.
            if is_of_ended_task || proposed.is_some() {
                add(&mut ends.access_requests, id, who, what);
                continue;
            }
            let becomes = self.preview(|read| {
                let request = read.access_request(&id)?;
                let after = self.voter_context(read, active);
                let becomes = needs::reassess(&request, after, now);
                let satisfied = |context| votes::tally(&request, context, now).satisfied;
                // Approvals that would be void: what they were given for changes.
                let in_force = read.rules()?;
                let before = satisfied(self.voter_context(read, &in_force));
                let is_void = !before.is_subset(&satisfied(after));
                Some((becomes, is_void))
            });
            match becomes {
                Some((Reassessment::Ends(_), _)) => add(&mut ends.access_requests, id, who, what),
                Some((Reassessment::Changed(_), _) | (Reassessment::Same, true)) => {
                    add(&mut ends.reassessed, id, who, what);
                }
                Some((Reassessment::Same, false)) if people_change => {
                    add(&mut ends.uncertain, id, who, what);
                }
                Some((Reassessment::Same, false)) | None => {}
            }
        }
        ends
    }

    /// Decides the decisions on record again, in several threads: each takes some of the batches, the newest first.
    fn replay(self: &Arc<Self>, job: &Arc<PlanJob>) -> Result<ReplaySummary, OpenError> {
        let head = self.show().position().1.saturating_add(1);
        let others: Vec<_> = (1..THREADS)
            .map(|thread| {
                let (broker, job) = (Arc::clone(self), Arc::clone(job));
                let builder = std::thread::Builder::new().name("plan".to_owned());
                builder.spawn(move || {
                    let _lowered = rustix::process::setpriority_process(None, NICENESS);
                    broker.replay_share(&job, head, thread, THREADS)
                })
            })
            .collect();
        // Without the others this thread does their share. None of them runs on when the plan has ended.
        let own = self.replay_share(job, head, 0, THREADS);
        let joined: Vec<_> = others
            .into_iter()
            .map(|other| other.map(std::thread::JoinHandle::join))
            .collect();
        let mut replay = own?;
        for (other, thread) in joined.into_iter().zip(1..) {
            let share = match other {
                Ok(Ok(share)) => share?,
                Ok(Err(_)) | Err(_) => self.replay_share(job, head, thread, THREADS)?,
            };
            replay.merge(share);
        }
        let mut summary = replay.finish();
        summary.is_cut |= job.decisions.load(Ordering::Relaxed) >= DECISIONS_MAX;
        Ok(summary)
    }

    /// The share of one thread: every batch of entries whose number leaves this rest.
    fn replay_share(
        &self,
        job: &PlanJob,
        head: u64,
        rest: u64,
        threads: u64,
    ) -> Result<Replay, OpenError> {
        let reader = self.journal.new_reader()?;
        let mut replay = Replay::new(Arc::clone(&job.base), Arc::clone(&job.candidate));
        let batch = u64::from(READ_AT_ONCE);
        let mut below = head.saturating_sub(batch.saturating_mul(rest));
        while below > 0 && job.decisions.load(Ordering::Relaxed) < DECISIONS_MAX {
            if self.is_given_up(job) {
                job.is_cancelled.store(true, Ordering::Relaxed);
                return Err(OpenError::HeadUnreadable);
            }
            let mut is_over = false;
            for stored in reader.entries_below(below, READ_AT_ONCE)? {
                if !RecordedDecision::is_in(&stored.text) {
                    continue;
                }
                let entry = Entry::parse(&stored.text)?;
                is_over = entry.at < job.since;
                if is_over {
                    break;
                }
                if let Some(decision) = RecordedDecision::of(&entry) {
                    let secret = secret_of(&reader, &decision)?;
                    replay.add(&decision, secret.as_ref());
                    job.decisions.fetch_add(1, Ordering::Relaxed);
                }
            }
            if is_over {
                break;
            }
            below = below.saturating_sub(batch.saturating_mul(threads));
        }
        Ok(replay)
    }

    fn is_given_up(&self, job: &PlanJob) -> bool {
        let is_stopping = *self.stopping.borrow();
        let asked_at = job.asked_at.load(Ordering::Relaxed);
        let is_wanted =
            job.by.is_none() || self.uptime_ms().saturating_sub(asked_at) < ABANDONED_MS;
        is_stopping || job.is_cancelled.load(Ordering::Relaxed) || !is_wanted
    }

    fn uptime_ms(&self) -> i64 {
        let uptime: Duration = self.clock.uptime();
        i64::try_from(uptime.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The secret part of an action, where it has one that is still on record.
fn secret_of(
    reader: &JournalReader,
    decision: &RecordedDecision<'_>,
) -> Result<Option<ActionSecret>, OpenError> {
    let Some(hash) = &decision.secret else {
        return Ok(None);
    };
    let text = reader.blob(hash)?;
    Ok(text.and_then(|text| ActionSecret::from_blob(&text)))
}

fn request_of(action: &ActionOnRecord) -> String {
    format!("{} on {}", action.action, action.target.in_sentence())
}
