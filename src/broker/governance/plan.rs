//! Plans: what a policy bundle would change, before it is applied: what differs, what would end, and what it would have decided.
//!
//! One plan is made at a time, in threads of low priority with connections of their own to the journal: calls are served as before.
//! A plan that no client asks for any more is cancelled. The plan for the card of a proposal comes next after the one that is being
//! made, so that no operator can keep it off the card. A plan decides nothing: an apply looks at everything again.

mod ends;
mod replay;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use replay::JournalScan;

use super::policy::PeopleSummary;
use super::proposal::NOBODY_COULD_CHANGE;
use crate::approve::quorum;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::clock::Clock;
use crate::journal::OpenError;
use crate::model::*;
use crate::policy::{ActivePolicy, BundleFiles, PolicyBundle, sentences};
use crate::state::Read;

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
    /// Proposals whose cards wait for a plan, the next first.
    wanted: VecDeque<PersonRequester>,
    /// Those that operators asked for, the newest last.
    made: Vec<MadePlan>,
    /// Those for cards, one for each proposal: no operator's plan takes their places.
    of_cards: Vec<MadePlan>,
}

/// A plan that was made, or why it was not.
struct MadePlan {
    job: Arc<PlanJob>,
    plan: Result<Arc<PolicyPlan>, String>,
}

/// A plan that is or was made.
struct PlanJob {
    id: Digest,
    asked_by: AskedBy,
    began_at: Timestamp,
    since: Timestamp,
    decisions: AtomicU64,
    clock: Clock,
    /// When a client last asked for it, in milliseconds of uptime.
    asked_at: AtomicI64,
    is_cancelled: AtomicBool,
    is_stopping: tokio::sync::watch::Receiver<bool>,
}

/// Who asked for a plan.
enum AskedBy {
    Operator(PersonId),
    /// The card of a proposal.
    Card(Box<PersonRequester>),
}

/// What a plan is made from.
struct PlanInput {
    base: Arc<PolicyBundle>,
    candidate: Arc<PolicyBundle>,
    people: PlannedPeople,
}

/// What a bundle would change for people.
struct PlannedPeople {
    returning: BTreeSet<PersonId>,
    changes: Vec<String>,
    warnings: Vec<String>,
}

/// Why a plan was not made.
#[derive(Debug, thiserror::Error)]
enum PlanFailure {
    #[error(
        "it was cancelled: another took its place, no client asked for it any more, or the broker is stopping"
    )]
    Cancelled,
    #[error(transparent)]
    Journal(#[from] OpenError),
    #[error("{0}")]
    Input(String),
}

impl Plans {
    /// Begins an operator's plan. It takes the place of the operator's former one; else what is made, or comes before it.
    fn begin(&mut self, operator: &PersonId, job: &Arc<PlanJob>) -> Result<(), &'static str> {
        if !self.wanted.is_empty() {
            return Err("the plan for the card of a proposal is next");
        }
        if let Some(running) = &self.running {
            match &running.asked_by {
                AskedBy::Operator(by) if by == operator => {}
                AskedBy::Operator(_) => return Err("another operator's plan is being made"),
                AskedBy::Card(_) => {
                    return Err("the plan for the card of a proposal is being made");
                }
            }
            running.is_cancelled.store(true, Ordering::Relaxed);
        }
        self.running = Some(Arc::clone(job));
        Ok(())
    }

    /// Puts the plan for a card in the queue, unless it is being made or there already.
    fn want(&mut self, proposal: &PersonRequester) {
        let is_known = self.is_running_for_card_of(proposal) || self.wanted.contains(proposal);
        if !is_known && self.wanted.len() < WANTED_MAX {
            self.wanted.push_back(proposal.clone());
        }
    }

    /// Begins the next plan for a card, unless another is being made.
    fn begin_next(
        &mut self,
        job: impl FnOnce(PersonRequester) -> Arc<PlanJob>,
    ) -> Option<Arc<PlanJob>> {
        if self.running.is_some() {
            return None;
        }
        let job = job(self.wanted.pop_front()?);
        self.running = Some(Arc::clone(&job));
        Some(job)
    }

    fn is_running_for_card_of(&self, proposal: &PersonRequester) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|job| job.is_for_card_of(proposal))
    }

    fn end(&mut self, made: MadePlan) {
        // One whose place another took is no longer the running one.
        self.running
            .take_if(|running| Arc::ptr_eq(running, &made.job));
        let (kept, most) = match &made.job.asked_by {
            AskedBy::Operator(_) => (&mut self.made, KEPT_MAX),
            AskedBy::Card(proposal) => {
                self.of_cards
                    .retain(|other| !other.job.is_for_card_of(proposal));
                (&mut self.of_cards, WANTED_MAX)
            }
        };
        kept.push(made);
        let surplus = kept.len().saturating_sub(most);
        kept.drain(..surplus);
    }
}

impl PlanJob {
    fn is_for_card_of(&self, proposal: &PersonRequester) -> bool {
        matches!(&self.asked_by, AskedBy::Card(of) if **of == *proposal)
    }

    fn is_given_up(&self) -> bool {
        let is_abandoned = match &self.asked_by {
            AskedBy::Operator(_) => {
                let asked_at = self.asked_at.load(Ordering::Relaxed);
                uptime_ms(&self.clock).saturating_sub(asked_at) >= ABANDONED_MS
            }
            AskedBy::Card(_) => false,
        };
        is_abandoned || self.is_cancelled.load(Ordering::Relaxed) || *self.is_stopping.borrow()
    }
}

/// Ends a plan when its thread ends, however that is.
struct PlanEnding {
    broker: Weak<Broker>,
    job: Arc<PlanJob>,
    plan: Result<Arc<PolicyPlan>, String>,
}

impl Drop for PlanEnding {
    fn drop(&mut self) {
        let plan = std::mem::replace(&mut self.plan, Err(String::new()));
        if let Some(broker) = self.broker.upgrade() {
            broker.end_plan(&self.job, plan);
        }
    }
}

impl Broker {
    /// Begins to plan a policy bundle; [`Broker::policy_plan`] has the result by the plan's id. It takes the place of a plan that the
    /// operator asked for before. Refuses a bundle that an apply would refuse, and a plan beside another operator's or before one that
    /// a card waits for.
    pub async fn plan_policy_bundle(
        self: &Arc<Self>,
        call: &CallContext,
        operator: PersonCaller,
        files: BTreeMap<String, String>,
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
            let (input, short) = self
                .plan_input(read, Arc::new(candidate), returning)
                .map_err(|why| self.refuse(call.method, Reason::InvalidPolicyBundle, why))?;
            match short.is_empty() {
                true => Ok(input),
                false => {
                    let why = short.join("\n");
                    Err(self.refuse(call.method, Reason::InvalidPolicyBundle, why))
                }
            }
        });
        let input = looked?;
        let job = self.new_job(AskedBy::Operator(operator.id.clone()), days);
        let id = job.id;
        let begun = self.lock(&self.plans).begin(&operator.id, &job);
        if let Err(other) = begun {
            let why = format!("{other}: try again when it is ready");
            return Err(self.refuse(call.method, Reason::TooManyPending, why));
        }
        self.start_plan(job, Some(input));
        Ok(id)
    }

    /// A plan that was begun. Asking for it keeps it going.
    pub fn policy_plan(&self, call: &CallContext, id: &Digest) -> Result<PlanReply, Refusal> {
        let caller = self.authenticate_reader(call, self.now())?;
        let plans = self.lock(&self.plans);
        if let Some(job) = plans.running.as_ref().filter(|job| job.id == *id) {
            job.asked_at
                .store(uptime_ms(&self.clock), Ordering::Relaxed);
            let decisions = job.decisions.load(Ordering::Relaxed);
            let state = PlanState::Running { decisions };
            return Ok(PlanReply { caller, state });
        }
        let made = plans.made.iter().find(|made| made.job.id == *id);
        let plan = made.map(|made| made.plan.clone());
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
    /// Where there is none, it is made next. `with_names`: for an operator, who may read what is open; others get the counts.
    pub(in crate::broker) fn plan_of_proposal(
        self: &Arc<Self>,
        proposal: &PersonRequester,
        opened_at: Timestamp,
        with_names: bool,
    ) -> Vec<String> {
        let now = self.now();
        let oldest = now.plus_millis(-CARD_PLAN_MS).max(opened_at);
        let mut sentences = Vec::new();
        {
            let mut plans = self.lock(&self.plans);
            let mut of_card = plans.of_cards.iter();
            let of_card = of_card.find(|made| made.job.is_for_card_of(proposal));
            match of_card.filter(|made| made.job.began_at >= oldest) {
                Some(MadePlan { plan: Ok(plan), .. }) => return plan.sentences(with_names),
                Some(MadePlan {
                    plan: Err(why),
                    job,
                }) => {
                    sentences.push(format!("no plan was made: {why}"));
                    if now.since(job.began_at) < CARD_RETRY_MS {
                        return sentences;
                    }
                }
                None => {}
            }
            plans.want(proposal);
        }
        self.start_next_plan();
        let is_running = self.lock(&self.plans).is_running_for_card_of(proposal);
        sentences.push(match is_running {
            true => "a plan is being made: open the card again in a moment".to_owned(),
            false => "another plan is being made, and then this one: open the card again later"
                .to_owned(),
        });
        sentences
    }

    /// Starts the plan that a card waits for, unless another is being made.
    fn start_next_plan(self: &Arc<Self>) {
        if *self.stopping.borrow() {
            return;
        }
        let new = |proposal| self.new_job(AskedBy::Card(Box::new(proposal)), PLAN_DAYS);
        let next = self.lock(&self.plans).begin_next(new);
        if let Some(job) = next {
            self.start_plan(job, None);
        }
    }

    /// The files of a proposed bundle.
    fn proposed_files(&self, proposal: &PersonRequester) -> Result<BundleFiles, String> {
        let (bundle, _) = proposal.bundle().ok_or("it proposes no policy bundle")?;
        let text = self.journal.blob(bundle).map_err(|e| e.to_string())?;
        let text = text.ok_or("the bundle is no longer on record")?;
        BundleFiles::parse(&text).map_err(|e| e.to_string())
    }

    fn proposal_input(
        &self,
        proposal: &PersonRequester,
        candidate: Arc<PolicyBundle>,
    ) -> Result<PlanInput, String> {
        let (_, returning) = proposal.bundle().ok_or("it proposes no policy bundle")?;
        let returning = returning.clone();
        let input = self.preview(|read| self.plan_input(read, candidate, returning));
        let (mut input, short) = input?;
        input.people.warnings.extend(short);
        match input.base.version() == proposal.replaces {
            true => Ok(input),
            false => Err("another bundle is in force".to_owned()),
        }
    }

    /// The bundle in force, and what another one would change for people; with the profiles that too few people could satisfy then.
    fn plan_input(
        &self,
        read: &Read,
        candidate: Arc<PolicyBundle>,
        returning: BTreeSet<PersonId>,
    ) -> Result<(PlanInput, Vec<String>), String> {
        let rules = read.rules().ok_or("no policy bundle is in force")?;
        let registration = read
            .may_register(&candidate, &returning)
            .map_err(|e| e.to_string())?;
        let PeopleSummary {
            changes,
            mut warnings,
        } = self.people_summary(&registration);
        if !read.change_is_possible(&candidate, &registration.returning()) {
            warnings.insert(0, NOBODY_COULD_CHANGE.to_owned());
        }
        let of_check = candidate.warnings().iter().map(ToString::to_string);
        warnings.extend(of_check);
        let quorums = quorum::after_change(read, &candidate, &registration, self.now());
        warnings.extend(quorums.warned);
        let input = PlanInput {
            base: Arc::clone(&rules.bundle),
            candidate,
            people: PlannedPeople {
                returning,
                changes,
                warnings,
            },
        };
        Ok((input, quorums.refused))
    }

    fn new_job(&self, asked_by: AskedBy, days: u32) -> Arc<PlanJob> {
        let span_s = i64::from(days).saturating_mul(86_400);
        let began_at = self.now();
        Arc::new(PlanJob {
            id: Digest::sha256(&self.random_bytes()),
            asked_by,
            began_at,
            since: began_at.plus_secs(-span_s),
            decisions: AtomicU64::new(0),
            clock: self.clock.clone(),
            asked_at: AtomicI64::new(uptime_ms(&self.clock)),
            is_cancelled: AtomicBool::new(false),
            is_stopping: self.stopping.subscribe(),
        })
    }

    /// Starts the thread of a plan. `input`: what it is made from; of a card's plan the thread reads it.
    fn start_plan(self: &Arc<Self>, job: Arc<PlanJob>, input: Option<PlanInput>) {
        let broker = Arc::downgrade(self);
        let own = Arc::clone(&job);
        let thread = std::thread::Builder::new().name("plan".to_owned());
        let started = thread.spawn(move || run_plan(broker, own, input));
        if let Err(error) = started {
            self.end_plan(&job, Err(error.to_string()));
        }
    }

    fn end_plan(self: &Arc<Self>, job: &Arc<PlanJob>, plan: Result<Arc<PolicyPlan>, String>) {
        if let (AskedBy::Card(_), Err(why)) = (&job.asked_by, &plan) {
            tracing::warn!(%why, "no plan for the card of a proposal");
        }
        let job = Arc::clone(job);
        self.lock(&self.plans).end(MadePlan { job, plan });
        self.start_next_plan();
    }

    /// What a plan says beside its replay, and the journal to replay: the rest needs no broker.
    fn begin_to_plan(
        &self,
        job: &PlanJob,
        input: &PlanInput,
    ) -> Result<(PolicyPlan, JournalScan), PlanFailure> {
        let planned_at = self.now();
        let known = sentences::warnings(&input.candidate);
        let people = input.people.changes.iter().cloned();
        let mut changes = sentences::summary(&input.base, &input.candidate, people, &known);
        changes.extend(self.facts_under(&input.candidate, planned_at));
        changes.extend(sentences::counts(&input.base, &input.candidate));
        let mut warnings = input.people.warnings.clone();
        let active = ActivePolicy::new(Arc::clone(&input.candidate));
        warnings.extend(
            self.preview(|read| quorum::unreachable(self.voter_context(read, &active), planned_at)),
        );
        let head = self.show().position().1.saturating_add(1);
        let scan = JournalScan::new(&self.journal, head)?;
        let plan = PolicyPlan {
            base_version: input.base.version(),
            version: input.candidate.version(),
            planned_at: planned_at.to_string(),
            since: String::new(),
            returning: input.people.returning.clone(),
            changes,
            warnings,
            ends: self.planned_ends(job, input, &active, planned_at)?,
            replay: ReplaySummary::default(),
        };
        Ok((plan, scan))
    }
}

/// The thread of a plan. It keeps no broker alive: a broker that stops waits for no plan.
fn run_plan(broker: Weak<Broker>, job: Arc<PlanJob>, input: Option<PlanInput>) {
    // Beside its own work a broker that cannot lower the priority is as it was: the plan is not worth a failure.
    let _lowered = rustix::process::setpriority_process(None, NICENESS);
    let mut ending = PlanEnding {
        broker,
        job,
        plan: Err("its thread failed".to_owned()),
    };
    let plan = make_plan(&ending.broker, &ending.job, input);
    ending.plan = plan.map(Arc::new).map_err(|error| error.to_string());
}

fn make_plan(
    broker: &Weak<Broker>,
    job: &Arc<PlanJob>,
    input: Option<PlanInput>,
) -> Result<PolicyPlan, PlanFailure> {
    // A broker that stops waits for no plan: none is held while a bundle is checked or decisions are replayed.
    let alive = || broker.upgrade().ok_or(PlanFailure::Cancelled);
    let input = match (input, &job.asked_by) {
        (Some(input), _) => input,
        (None, AskedBy::Card(proposal)) => {
            let files = alive()?.proposed_files(proposal);
            let candidate = files
                .and_then(|files| PolicyBundle::load_checked(&files).map_err(|e| e.to_string()))
                .map_err(PlanFailure::Input)?;
            let input = alive()?.proposal_input(proposal, Arc::new(candidate));
            input.map_err(PlanFailure::Input)?
        }
        (None, AskedBy::Operator(_)) => {
            return Err(PlanFailure::Input("it has no bundle".to_owned()));
        }
    };
    let (plan, scan) = alive()?.begin_to_plan(job, &input)?;
    Ok(PolicyPlan {
        since: job.since.to_string(),
        replay: scan.replay(job, &input)?,
        ..plan
    })
}

fn uptime_ms(clock: &Clock) -> i64 {
    i64::try_from(clock.uptime().as_millis()).unwrap_or(i64::MAX)
}

/// Longest span of decisions that a plan looks at, in days.
const PLAN_DAYS_MAX: u32 = 366;
/// The span where none is asked for, in days.
const PLAN_DAYS: u32 = 7;
/// A plan that is not asked for within this time is cancelled, in milliseconds.
const ABANDONED_MS: i64 = 30_000;
/// A plan on a card is not older than this, in milliseconds.
const CARD_PLAN_MS: i64 = 3_600_000;
/// A plan for a card that could not be made is tried again after this time, in milliseconds.
const CARD_RETRY_MS: i64 = 60_000;
/// Most cards that wait for a plan.
const WANTED_MAX: usize = 64;
/// Plans that are kept.
const KEPT_MAX: usize = 8;
/// The niceness of the threads of a plan (`setpriority(2)`).
const NICENESS: i32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn job(asked_by: AskedBy) -> Arc<PlanJob> {
        let now = Timestamp::from_millis(0);
        let (_, is_stopping) = tokio::sync::watch::channel(false);
        Arc::new(PlanJob {
            id: Digest::sha256(b"id"),
            asked_by,
            began_at: now,
            since: now,
            decisions: AtomicU64::new(0),
            clock: Clock::manual(now).0,
            asked_at: AtomicI64::new(0),
            is_cancelled: AtomicBool::new(false),
            is_stopping,
        })
    }

    fn proposal(bundle: &[u8]) -> PersonRequester {
        PersonRequester {
            person: PersonId::parse("olga").expect("id"),
            key: Thumbprint(Digest::sha256(b"key")),
            replaces: Digest::sha256(b"in force"),
            proposed: Proposed::Bundle {
                bundle: Digest::sha256(bundle),
                returning: BTreeSet::new(),
            },
            changes: Digest::sha256(b"changes"),
            needs: ProfileRef {
                name: ProfileName::parse("operators").expect("name"),
                digest: Digest::sha256(b"profile"),
            },
        }
    }

    /// However often an operator plans, the plans that cards wait for come next, in their order.
    #[test]
    fn no_operator_keeps_a_plan_off_a_card() {
        let olga = PersonId::parse("olga").expect("id");
        let oscar = PersonId::parse("oscar").expect("id");
        let of = |operator: &PersonId| job(AskedBy::Operator(operator.clone()));
        let card = |proposal| job(AskedBy::Card(Box::new(proposal)));
        let mut plans = Plans::default();
        let first = of(&olga);
        assert_eq!(plans.begin(&olga, &first), Ok(()));
        let second = of(&olga);
        assert_eq!(plans.begin(&olga, &second), Ok(()));
        assert!(first.is_given_up() && !second.is_given_up());
        assert!(plans.begin(&oscar, &of(&oscar)).is_err());
        // The end of the first leaves the second.
        plans.end(MadePlan {
            job: first,
            plan: Err(String::new()),
        });
        let (one, two) = (proposal(b"one"), proposal(b"two"));
        [&one, &two, &one].into_iter().for_each(|p| plans.want(p));
        assert!(plans.begin_next(card).is_none());
        assert!(plans.begin(&olga, &of(&olga)).is_err());
        assert!(!second.is_given_up());
        let ended = |job: &Arc<PlanJob>| MadePlan {
            job: Arc::clone(job),
            plan: Err(String::new()),
        };
        plans.end(ended(&second));
        let next = plans.begin_next(card).expect("the first card's");
        assert!(plans.is_running_for_card_of(&one));
        assert!(plans.begin(&olga, &of(&olga)).is_err());
        assert!(!next.is_given_up());
        plans.want(&one);
        plans.end(ended(&next));
        let next = plans.begin_next(card).expect("the second card's");
        assert!(plans.is_running_for_card_of(&two));
        plans.end(ended(&next));
        assert!(plans.begin_next(card).is_none());
        assert_eq!(plans.begin(&oscar, &of(&oscar)), Ok(()));
    }
}
