//! The broker: the only place where rooms meet. One file for each use case.
//!
//! In: parsed calls from the doors. Out: answers, or a [`Refusal`] that says no more than the caller may know.
//! Every use case reads the clock first, asks gate 1, then gate 2, and appends before it answers; it says at each step
//! what a crash there leaves.

mod approval;
mod auth;
mod governance;
mod maintenance;
mod metrics;
mod projections;
mod query;
mod start;
mod task;
mod token;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::approve::votes::Electorate;
pub use crate::approve::votes::{Ineligible, Proof as VoteProof};
use crate::approve::{Bounds, Ground};
pub use crate::card::AccessRequestStatus;
use crate::clock::{Clock, ClockMonitor};
use crate::jose::Nonces;
pub use crate::journal::Tail;
use crate::journal::{AppendError, Journal};
use crate::mint::TokenIssuer;
use crate::model::*;
use crate::policy::{InForce, PolicyBundle};
use crate::rate_limit::{Limits, Rates, Seldom};
use crate::state::{Grant, State, Table, Task};
use crate::telemetry::Metrics;
use crate::verify::{Attested, VerifyError};
pub use crate::webauthn::{Assertion, Registration, RelyingParty};

pub use approval::inbox::{
    INBOX_PAGE_MAX, InboxAsk, InboxCursor, InboxGroup, InboxGroupKey, InboxNews, InboxPage,
    InboxRow, InboxWatch,
};
pub use approval::vote::{AccessView, VoteAsk, VoteBegun, VoteDone};
pub use approval::vote_options::Ballot;
pub use approval::watch::{AccessMark, AccessNews, AccessWatch};
pub use auth::authentication::{CallContext, CallerRole, PersonCaller};
pub use auth::bootstrap::FirstOperator;
pub use auth::enrolment::{ApproverView, EnrolmentBegun, Invited, PasskeyView};
pub use auth::session::{Session, SignInBegun, SignedInUser};
pub use governance::freeze::FreezeDone;
pub use governance::policy::Applied;
pub use query::explain::Explained;
pub use query::inventory::{AgentView, TaskFilter, TaskView};
pub use query::revocation_feed::{FeedStart, Position};
pub use query::stats::{ActionUse, ApproverRow, RuleRow};
pub use query::timeline::{FOUND_MAX, Found, Moment, QUERY_BYTES_MAX, SCAN_MAX, Timeline};
pub use start::{Start, StartError};
pub use task::end::{EndReport, TaskEndAsk};
pub use task::open::{OpenAsk, Opened};
pub use token::introspect::{Consumed, Introspected};
pub use token::list::LiveToken;
pub use token::request::{
    DeniedReply, PendingReply, ProfileState, RuleSummary, TokenAsk, TokenGiven, TokenReply,
};
pub use token::revoke::TokenRevoked;

use approval::notifier::Bells;
use auth::replay_cache::Once;
use auth::session::SessionStore;
use governance::pending_revocation::{Doomed, Wish};
use projections::Views;
use token::verified_cache::Readings;

/// What one broker is configured to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What this broker cluster serves.
    pub realm: Realm,
    /// `iss` of every token.
    pub issuer: String,
    /// The URL callers reach this broker under, without a trailing slash: proofs are compared with it, never with what a
    /// call says of itself.
    pub external_url: String,
    /// The origin people reach the console under, without a trailing slash: passkeys belong to it.
    pub console_url: String,
    /// The one audience evidence must be for.
    pub evidence_audience: String,
    /// Longest life of a token, in seconds.
    pub ttl_cap: i64,
    /// Longest life of a task, in seconds.
    pub task_cap: i64,
    /// Longest time since this broker verified evidence, in seconds.
    pub max_evidence_age: i64,
    /// Tell callers why gate 1 refused: development only.
    pub tell_callers: bool,
    /// How many calls, from whom, and how many at once.
    pub rates: Rates,
}

impl Settings {
    /// The console whose passkeys count: its origin, and the host in it (WebAuthn L3 §4, "RP ID").
    pub fn relying_party(&self) -> RelyingParty {
        RelyingParty::from_origin(&self.console_url)
    }
}

/// Why a call was refused: what the caller may know, and a name under which the operator finds the rest.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}: {told}")]
pub struct Refusal {
    /// One of the closed set.
    pub reason: Reason,
    /// For the caller.
    pub told: String,
    /// For `explain`.
    pub correlation: CorrelationId,
    /// Whether the caller has shown a key or evidence that holds, and so gets a fresh nonce.
    pub known: bool,
    /// When to try again, where that is known better than the reason tells.
    pub retry_after: Option<std::time::Duration>,
}

/// The broker: state, journal, rules, trust, keys, and what only this process remembers.
pub struct Broker {
    settings: Settings,
    bounds: Bounds,
    clock: Clock,
    /// Whether the wall clock goes on as steadily as the time since start.
    clock_watch: Mutex<ClockMonitor>,
    /// The latest moment anybody here has acted on.
    high_water: Arc<AtomicI64>,
    journal: Journal,
    state: Arc<State>,
    views: Arc<Views>,
    token_issuer: TokenIssuer,
    nonces: Nonces,
    random: SystemRandom,
    once: Once,
    /// Proofs that opened tasks: whoever floods these keys fills nobody else's memory.
    openings: Once,
    /// When this broker last verified the evidence of a task.
    seen: Table<TaskId, Attested>,
    /// Request ids that joined an access request opened under another.
    joined: Mutex<HashMap<TaskId, HashMap<RequestId, AccessRequestId>>>,
    /// The last denial entered for a request id: an unchanged answer writes nothing.
    denials: Table<(TaskId, RequestId), Digest>,
    /// Refusal entries of a task in a minute.
    refusals: Mutex<HashMap<TaskId, (i64, u32)>>,
    /// Statements handed out for signature.
    statements: Mutex<HashMap<String, approval::vote::Begun>>,
    /// Browsers that signed in.
    sessions: SessionStore,
    /// When a card was first shown to a person, and under which policy bundle.
    shown: Mutex<HashMap<(PersonId, AccessRequestId), (Digest, Timestamp)>>,
    /// Signs of life that wait to be entered together.
    leases: Mutex<Vec<task::keep_alive::Waiting>>,
    /// Ends that could not be written: refused here at once, tried again by the timer.
    doomed: Mutex<HashMap<Doomed, Wish>>,
    /// Held while a policy bundle is put in force and what it no longer allows is ended.
    governing: tokio::sync::Mutex<()>,
    /// The first operator's code, while there is one.
    one_time: auth::bootstrap::OneTime,
    /// Version of the rules under which a sweep has come to its end.
    swept: AtomicU64,
    /// Tokens of ours that were read.
    readings: Readings,
    /// Refused calls, newest last, for `explain`.
    log: Mutex<VecDeque<Refused>>,
    uncounted: Mutex<(Option<Timestamp>, u64)>,
    /// Whether calls that wait for people are answered at once.
    stopping: tokio::sync::watch::Sender<bool>,
    metrics: Arc<Metrics>,
    /// What each known caller may still do.
    callers: Limits<metrics::Known>,
    rate_told: Seldom,
    /// Wakes those who wait for access requests.
    bells: Arc<Bells>,
    /// Whose turn has come in the inbox of each person.
    turns: Mutex<HashMap<PersonId, approval::inbox::Turns>>,
    /// Votes that were verified for inboxes.
    judged: approval::inbox::Judged,
    /// Calls that may wait for people.
    waits: tokio::sync::Semaphore,
}

/// A refused call, as the operator sees it.
#[derive(Debug, Clone)]
struct Refused {
    correlation: CorrelationId,
    at: Timestamp,
    method: &'static str,
    reason: Reason,
    detail: String,
}

/// How far the wall clock may lie behind the latest moment acted on, in milliseconds: the skew of evidence and proofs.
const CLOCK_BEHIND_MAX_MS: i64 = 5_000;
/// Refused calls that are remembered for `explain`.
const LOG_MAX: usize = 10_000;
/// Refusal entries a task may cause in a minute.
const REFUSALS_PER_MINUTE: u32 = 60;
/// Shortest and longest heartbeat of a task, in seconds.
const HEARTBEAT_MIN_S: i64 = 2;
const HEARTBEAT_MAX_S: i64 = 3_600;
/// Tasks of one agent that may run at once.
const TASKS_MAX: usize = 1_000;
/// Request ids that may join access requests of one task.
const JOINED_MAX: usize = 256;
/// Calls that may wait for people at once; the others get their pending answer without a wait.
const WAITS_MAX: usize = 16_384;
/// How often both gates run again when something moved between decision and entry.
const ATTEMPTS: usize = 3;

impl Broker {
    /// What this broker is configured to be.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// State, for reading.
    pub const fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The journal, for its tail.
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// A nonce for the next proof (RFC 9449 §8).
    pub fn nonce(&self) -> String {
        self.nonces.issue(self.now())
    }

    /// The console whose passkeys count.
    pub const fn relying_party(&self) -> &RelyingParty {
        &self.bounds.party
    }

    /// What a decision of gate 2 stands on.
    fn ground<'a>(&'a self, rules: &'a InForce) -> Ground<'a> {
        Ground {
            rules,
            roster: self.state.roster(),
            bounds: &self.bounds,
        }
    }

    /// Who may say yes, under a policy bundle.
    fn electorate<'a>(&'a self, bundle: &'a PolicyBundle) -> Electorate<'a> {
        Electorate {
            bundle,
            roster: self.state.roster(),
            realm: &self.settings.realm,
            party: &self.bounds.party,
        }
    }

    /// The JWK set of every key that signs or signed tokens.
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self
            .state
            .keys()
            .into_iter()
            .map(|(_, at)| at.value.clone())
            .collect();
        serde_json::json!({ "keys": keys })
    }

    /// Whether tokens can be minted: the journal takes entries and a policy bundle is in force.
    pub fn ready(&self) -> Result<(), &'static str> {
        if self.journal.tail().borrow().failed {
            return Err("the journal has stopped");
        }
        if self.views.rules().is_none() {
            return Err("no policy bundle is in force");
        }
        Ok(())
    }

    /// The present, never before a moment that was acted on: a wall clock that steps back revives nothing.
    pub(crate) fn now(&self) -> Timestamp {
        let now = self.clock.now().millis();
        Timestamp::from_millis(self.high_water.fetch_max(now, Ordering::SeqCst).max(now))
    }

    /// Whether the wall clock goes on steadily, and how many milliseconds it lies behind the latest moment acted on.
    fn clocks(&self) -> (bool, i64) {
        let (wall, uptime) = (self.clock.now(), self.clock.uptime());
        let steady = self.lock(&self.clock_watch).is_reliable(wall, uptime);
        let high_water = self.high_water.load(Ordering::SeqCst);
        (steady, high_water.saturating_sub(wall.millis()))
    }

    /// Refuses to begin anything while the wall clock cannot be relied on: it jumped, or lies before what the journal has
    /// seen. Ends and introspection go on, by the latest moment anybody here has acted on.
    fn clock_sure(&self, method: &'static str) -> Result<(), Refusal> {
        let (steady, behind_ms) = self.clocks();
        if steady && behind_ms <= CLOCK_BEHIND_MAX_MS {
            return Ok(());
        }
        let told = if steady {
            format!("the wall clock lies {behind_ms} ms behind the journal")
        } else {
            "the wall clock jumped; it counts again when it has been steady for a minute".to_owned()
        };
        Err(self.refuse(method, Reason::ClockUnsure, told))
    }

    /// 16 random bytes.
    fn draw(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // INVARIANT (no predictable id): without random bytes nothing may go on; the system's source does not fail once
        // it works, and it worked when the signing key was loaded.
        if self.random.fill(&mut bytes).is_err() {
            tracing::error!("the system gives no random bytes");
            std::process::abort();
        }
        bytes
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a task runs, as far as anyone here knows: by its record, the moment, and ends that wait to be written.
    fn runs(&self, task: &Task, now: Timestamp) -> bool {
        task.runs(now)
            && self.task_doomed(task).is_none()
            && !self.state.standing(&task.opened.agent).value.suspended
    }

    /// Whether an agent is suspended, by an entry or by one that waits to be written, and the version of its stream.
    fn standing_of(&self, agent: &AgentId) -> (bool, Version) {
        let at = self.state.standing(agent);
        (
            at.value.suspended || self.is_doomed(&Doomed::Agent(agent.clone())),
            at.version,
        )
    }

    /// Why a grant is dead, rules included; `None` while it lives.
    fn dead(&self, grant: &Grant, now: Timestamp) -> Option<EndCause> {
        if let Some(cause) = self
            .state
            .dead(grant, now)
            .or_else(|| self.grant_doomed(grant))
        {
            return Some(cause);
        }
        if self.owner_frozen(&grant.issued.agent) {
            return Some(EndCause::Frozen);
        }
        let Some(rules) = self.views.rules() else {
            return Some(EndCause::Policy);
        };
        if rules.bundle.version() == grant.issued.decision.policy {
            return None;
        }
        // Until the sweep after a rule change has come by, today's rules are asked here.
        let consumed = grant
            .issued
            .consumed
            .and_then(|id| self.state.access_request(&id));
        let allowed = crate::approve::still_allowed(
            grant,
            consumed.as_deref(),
            self.electorate(&rules.bundle),
        );
        (!allowed).then_some(EndCause::Policy)
    }

    /// Refuses a call. `detail` is for the operator; the caller learns the reason's constant text, and the detail only
    /// where it is about the caller's own input or in development.
    fn refuse(&self, method: &'static str, reason: Reason, detail: impl Into<String>) -> Refusal {
        let detail = detail.into();
        let correlation = CorrelationId::from_random(self.draw());
        let at = self.now();
        let shown = text::escape_invisible_capped(&detail, 500);
        if reason == Reason::UseDpopNonce {
            // The first call of every client.
            tracing::debug!(%correlation, method, %reason, detail = shown, "refused");
        } else {
            tracing::info!(%correlation, method, %reason, detail = shown, "refused");
        }
        tracing::Span::current().record("correlation", tracing::field::display(correlation));
        let told = match reason.detail() {
            Detail::Operator if !self.settings.tell_callers => reason.text().to_owned(),
            Detail::Operator => format!("{}: {detail}", reason.text()),
            Detail::Caller => detail.clone(),
        };
        let mut log = self.lock(&self.log);
        if log.len() >= LOG_MAX {
            log.pop_front();
        }
        log.push_back(Refused {
            correlation,
            at,
            method,
            reason,
            detail,
        });
        Refusal {
            reason,
            told,
            correlation,
            known: true,
            retry_after: None,
        }
    }

    /// From now on nobody waits: who waits for people is told at once that the request is pending.
    pub fn stop_waiting(&self) {
        self.stopping.send_replace(true);
    }

    /// A refusal of a message that is not of its form, before anybody is known.
    pub fn malformed(&self, method: &'static str, error: &Malformed) -> Refusal {
        Refusal {
            known: false,
            ..self.refuse(method, Reason::Malformed, error.to_string())
        }
    }

    /// A refusal at gate 1: one public message for every cause, but for the two that need an answer from the caller.
    fn refuse_gate_1(&self, method: &'static str, error: &VerifyError) -> Refusal {
        let (reason, known) = match error {
            VerifyError::Nonce => (Reason::UseDpopNonce, true),
            VerifyError::Stale => (Reason::EvidenceStale, true),
            VerifyError::TooManyProofs => (Reason::TooBusy, true),
            VerifyError::Evidence(_)
            | VerifyError::Claim(_)
            | VerifyError::Subject(_)
            | VerifyError::UnknownDomain(_)
            | VerifyError::WrongAudience
            | VerifyError::Expired(_)
            | VerifyError::Dates
            | VerifyError::NoProof
            | VerifyError::Proof(_)
            | VerifyError::Replayed
            | VerifyError::ProofElsewhere(_)
            | VerifyError::NotOfTask
            | VerifyError::OtherWorkload { .. }
            | VerifyError::NoRules
            | VerifyError::NotRegistered
            | VerifyError::Code(_)
            | VerifyError::Session(_)
            | VerifyError::Passkey(_)
            | VerifyError::Agents(_)
            | VerifyError::OtherAgent(_)
            | VerifyError::Suspended(_)
            | VerifyError::Frozen(_)
            | VerifyError::OtherKey(_)
            | VerifyError::KeyRemoved
            | VerifyError::MayNotOperate { .. } => (Reason::NotAuthenticated, false),
        };
        self.metrics.gate_1_refused(metrics::cause(error));
        if !known {
            let mut uncounted = self.lock(&self.uncounted);
            uncounted.0.get_or_insert(self.now());
            uncounted.1 += 1;
        }
        Refusal {
            known,
            ..self.refuse(method, reason, error.to_string())
        }
    }

    /// A refusal because the journal did not take an append.
    fn refuse_append(&self, method: &'static str, error: &AppendError) -> Refusal {
        match error {
            AppendError::TooLarge | AppendError::Unwritable => {
                self.refuse(method, Reason::Malformed, format!("{error}"))
            }
            AppendError::Conflict(_) | AppendError::Late => {
                self.refuse(method, Reason::Conflict, error.to_string())
            }
            AppendError::Busy => self.refuse(method, Reason::TooBusy, error.to_string()),
            AppendError::Full | AppendError::Unknown | AppendError::Closed => {
                self.refuse(method, Reason::JournalUnavailable, error.to_string())
            }
        }
    }
}
