//! Application layer: [`Broker`] owns state, journal and policy; each file implements one use case.
//!
//! In: parsed calls from the entry points. Out: answers, or a [`Refusal`] that says no more than the caller may know.
//! Every use case reads the clock first, passes gate 1, then gate 2, and appends before it answers; a comment at each
//! step says what a crash there leaves.

mod approval;
mod auth;
mod governance;
mod keyed_mutex;
mod maintenance;
mod metrics;
mod order_queue;
mod query;
mod readiness;
mod refusals;
mod silence;
mod start;
mod sweep;
mod task;
mod token;
mod transaction;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom as _, SystemRandom};

pub use crate::approve::vote_proof::VoteProof;
use crate::approve::vote_proof::VoteProofCache;
pub use crate::approve::votes::{Ineligible, VoidApproval};
use crate::approve::{self, DecisionContext, DecisionLimits};
pub use crate::card::AccessRequestStatus;
use crate::clock::{Clock, ClockMonitor};
use crate::jose::Nonces;
pub use crate::journal::JournalHead;
use crate::journal::{Journal, StopMark};
use crate::mint::TokenIssuer;
use crate::model::*;
use crate::rate_limit::{KeyedRateLimiter, LogThrottle, RateLimitConfig};
use crate::state::{ArcMap, Grant, Read, Recorded, Show, Shown, State, TaskRecord};
use crate::telemetry::Metrics;
use crate::verify::Attested;
pub use crate::webauthn::{Assertion, Registration, RelyingParty};

pub use approval::access_request::AccessView;
pub use approval::inbox::{
    INBOX_PAGE_MAX, InboxCursor, InboxEvent, InboxGroup, InboxGroupKey, InboxPage, InboxQuery,
    InboxRow, InboxWatch,
};
pub use approval::progress::ProfileState;
pub use approval::vote::{VoteInput, VoteOutcome, VoteStatementReply};
pub use approval::vote_options::VoteOptions;
pub use approval::watch::{AccessRequestCursor, AccessRequestEvent, AccessRequestWatch};
pub use auth::authentication::{CallContext, CallerRole, PersonCaller};
pub use auth::enrolment::{
    ApproverView, CONFIRMERS_SHOWN_MAX, EnrolledPasskey, EnrolmentOptions, IssuedInvitation,
    KeyRevocation, KeyRevocationSummary, PasskeyView,
};
pub use auth::session::{Session, SignInOptions, SignedInUser};
pub use governance::bootstrap::FirstOperator;
pub use governance::fact::{FactOrder, FactOutcome, FactStatus};
pub use governance::freeze::FreezeSummary;
pub use governance::plan::{PlanReply, PlanState};
pub use governance::policy::BundleApplied;
pub use governance::recovery::{
    HostConfirmation, HostConfirmationOptions, NO_OPERATOR, OperatorsRecovered, RecoveryError,
    RecoveryOptions, confirm_passkey_on_host, recover_operators,
};
pub use query::decision_facts::{CeilingMiss, RuleInput};
pub use query::explain::Explanation;
pub use query::inventory::{AgentView, TaskCursor, TaskFilter, TaskView};
pub use query::page_token::PageTokens;
pub use query::policy_history::{
    PolicyBundleOrigin, PolicyBundleRecord, PolicyBundleReply, PolicyBundleSelector,
    PolicyHistoryPage,
};
pub use query::receipt::TokenReceiptReply;
pub use query::revocation_feed::FeedStart;
pub use query::stats::{ActionUse, ApproverStatsRow, RuleStatsRow};
pub use query::timeline::{
    QUERY_BYTES_MAX, SEARCH_PAGE_MAX, SEARCH_SCAN_MAX, SearchPage, TaskTimeline, TimelineEvent,
};
pub use query::timeline_page::TimelineCursor;
pub use readiness::NotReady;
pub(crate) use start::changed_kid;
pub use start::{BrokerOpenError, BrokerOptions};
pub use task::end::{EndReport, EndTaskInput};
pub use task::open::{OpenTaskInput, OpenTaskReply};
pub use task::show::AgentTaskView;
pub use token::introspect::{Consumed, Introspected};
pub use token::list::{LiveToken, TokenCursor};
pub use token::request::{
    DeniedReply, IssuedReply, PendingReply, RecommendedReply, RequestTokenInput, RuleSummary,
    TokenReply,
};
pub use token::revoke::TokenRevoked;
pub use token::watch::{TokenEndCause, TokenEvent, TokenWatch};

use approval::notifier::Notifier;
use auth::replay_cache::ReplayCache;
use auth::session::SessionStore;
use governance::pending_revocation::PendingRevocations;
use keyed_mutex::KeyedMutex;
use order_queue::OrderQueue;
use refusals::{RecentRefusals, RefusalTally};
use token::verified_cache::VerifiedTokenCache;

/// Configuration of a broker that use cases read.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// The realm this broker cluster serves.
    pub realm: Realm,
    /// `iss` of every token.
    pub issuer: String,
    /// The URL callers reach this broker under: proofs are compared with it, never with the host a call names.
    pub external_url: HttpOrigin,
    /// The origin people reach the console under: passkeys belong to it.
    pub console_url: HttpOrigin,
    /// The one audience evidence must be for.
    pub evidence_audience: String,
    /// Longest life of a token, in seconds.
    pub ttl_cap: i64,
    /// Longest life of a task, in seconds.
    pub task_cap: i64,
    /// Longest time since this broker verified evidence, in seconds.
    pub max_evidence_age: i64,
    /// Tells callers why gate 1 refused: development only.
    pub expose_auth_errors: bool,
    /// Rate and concurrency limits of calls.
    pub rate_limits: RateLimitConfig,
}

impl BrokerSettings {
    /// The console whose passkeys count: its origin, and the host in it (WebAuthn L3 §4, "RP ID").
    pub fn relying_party(&self) -> RelyingParty {
        RelyingParty::from_origin(&self.console_url)
    }
}

/// Why a call was refused: the part the caller may know, and the id under which an operator finds the rest.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// The reason, one of a closed set.
    pub reason: Reason,
    /// Text for the caller.
    pub message: String,
    /// The id `explain` finds the refusal by.
    pub correlation: CorrelationId,
    /// Whether the caller has shown a key or evidence that holds, and so gets a fresh nonce. Any key does: it need not be
    /// registered.
    pub gives_nonce: bool,
    /// Whether the log has a line for it: of refusals before authentication only a few a second have.
    pub is_logged: bool,
    /// When to try again, where more is known than the reason's default.
    pub retry_after: Option<std::time::Duration>,
}

/// The broker: state, journal, policy, trust, keys, and the caches of this process.
pub struct Broker {
    settings: BrokerSettings,
    limits: DecisionLimits,
    /// Votes whose proof this process has verified.
    vote_proofs: VoteProofCache,
    clock: Clock,
    /// Compares the wall clock with the time since start.
    clock_watch: Mutex<ClockMonitor>,
    /// The latest time any call or entry was handled at, in milliseconds.
    latest_seen: Arc<AtomicI64>,
    journal: Journal,
    /// Until when the last broker served, if it stopped cleanly.
    stop_mark: StopMark,
    /// Places for receipts that are made at once.
    receipt_slots: Arc<tokio::sync::Semaphore>,
    /// Time of the last entry of earlier processes.
    last_entry_before_start: Timestamp,
    state: Arc<State>,
    token_issuer: Arc<TokenIssuer>,
    nonces: Nonces,
    page_tokens: PageTokens,
    random: SystemRandom,
    replay_cache: ReplayCache,
    /// Used proofs of `OpenTask`, kept apart: a flood of new keys cannot fill the cache of the other methods.
    open_task_replay_cache: ReplayCache,
    /// The evidence of each task as this broker last verified it.
    attestations: ArcMap<TaskId, Attested>,
    /// Idempotency keys attached to an access request that was opened under another key.
    attached: Mutex<HashMap<TaskId, HashMap<IdempotencyKey, AccessRequestId>>>,
    /// Digest of the last denial of an idempotency key, and the version of its stream before the entry: an unchanged answer
    /// writes nothing once the stream has moved.
    last_denials: ArcMap<(TaskId, IdempotencyKey), (Digest, Version)>,
    /// Refusal entries of each task in the current minute.
    refusal_counts: Mutex<HashMap<TaskId, (i64, u32)>>,
    /// Vote statements handed out for signature.
    statements: Mutex<HashMap<String, approval::vote::PendingStatement>>,
    /// How far the looks at what waiting access requests require have come.
    reassessed: Mutex<maintenance::ReassessProgress>,
    /// Between which moments people who could say no could be heard.
    heard: Mutex<silence::HeardTime>,
    /// Sessions of signed-in browsers.
    sessions: SessionStore,
    /// When a card was first shown to a person, and with which facts.
    card_views: Mutex<HashMap<(PersonId, AccessRequestId), (Digest, Timestamp)>>,
    /// Heartbeats that wait to be journalled together.
    pending_heartbeats: Mutex<Vec<task::keep_alive::PendingHeartbeat>>,
    /// Revocations that are not journalled yet: enforced here at once, retried by the maintenance loop.
    pending_revocations: PendingRevocations,
    /// A turn is held around one round and its append, never around a sweep.
    order_queue: OrderQueue,
    /// Called after the last read of a round and before its append, by tests.
    before_append: Option<crate::journal::BeforeAppend>,
    /// Held while a policy bundle is put in force and the tasks and tokens it no longer allows are ended.
    policy_lock: tokio::sync::Mutex<()>,
    /// What policy bundles would change, as far as it was asked for.
    plans: Mutex<governance::plan::Plans>,
    /// The first operator's code, while there is one.
    bootstrap_code: governance::bootstrap::BootstrapCode,
    /// Version of the last policy bundle under which everything disallowed has ended.
    /// What every task, token and access request on record has been judged by.
    enforced: Mutex<governance::disallowed::JudgedBy>,
    /// Tokens issued here whose signature was verified.
    verified_tokens: VerifiedTokenCache,
    /// When this process opened the journal.
    started_at: Timestamp,
    /// Refused calls, for `explain`.
    recent_refusals: RecentRefusals,
    /// Refusals before authentication that are not yet counted in the journal.
    refusal_tally: Mutex<RefusalTally>,
    refusal_log_throttle: LogThrottle,
    /// Uptime of the last probe of the journal, in milliseconds.
    last_probe_ms: AtomicU64,
    /// True once calls that wait for approvers must be answered at once: the broker is stopping.
    stopping: tokio::sync::watch::Sender<bool>,
    metrics: Arc<Metrics>,
    /// Rate limits of authenticated callers.
    caller_rates: KeyedRateLimiter<metrics::CallerId>,
    rate_limit_log_throttle: LogThrottle,
    /// Wakes calls and streams that wait for access requests.
    notifier: Arc<Notifier>,
    /// The requests that each approver's inbox has admitted.
    inbox_budgets: Mutex<HashMap<PersonId, approval::inbox::InboxBudget>>,
    /// Turns of the calls that would write one stream: see [`Broker::take_turn`].
    turns: KeyedMutex<Stream>,
    /// Permits of calls that wait for approvers.
    wait_permits: tokio::sync::Semaphore,
}

/// How far the wall clock may be behind the latest time seen, in milliseconds: the skew of evidence and proofs.
const CLOCK_BEHIND_MAX_MS: i64 = 5_000;
/// Refusal entries a task may cause in a minute.
const REFUSALS_PER_MINUTE: u32 = 60;
/// Shortest and longest heartbeat of a task, in seconds.
const HEARTBEAT_MIN_S: i64 = 2;
const HEARTBEAT_MAX_S: i64 = 3_600;
/// Idempotency keys that may be attached to access requests of one task.
const ATTACHED_MAX: usize = 256;
/// Calls that may wait for approvers at once; further ones get their pending answer without a wait.
const WAITING_CALLS_MAX: usize = 16_384;

impl Broker {
    /// The configuration.
    pub const fn settings(&self) -> &BrokerSettings {
        &self.settings
    }

    /// State, for pages, lists and tests. Decisions read it in a transaction.
    pub fn show(&self) -> Show<'_> {
        self.state.show()
    }

    /// The journal, for its head.
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// A nonce for the next proof (RFC 9449 §8).
    pub fn nonce(&self) -> String {
        self.nonces.issue(self.now())
    }

    /// The console whose passkeys count.
    pub const fn relying_party(&self) -> &RelyingParty {
        &self.limits.party
    }

    /// What a decision of gate 2 takes beside the records it reads.
    fn decision_context(&self) -> DecisionContext<'_> {
        DecisionContext {
            limits: &self.limits,
            proofs: &self.vote_proofs,
            heard_since: self.heard_since(self.now()),
        }
    }

    /// The inputs of vote eligibility in a round, under the rules it read.
    fn voter_context<'a>(
        &'a self,
        read: &'a Read,
        rules: &'a crate::policy::ActivePolicy,
    ) -> crate::approve::votes::VoterContext<'a> {
        self.decision_context().voters(read, &rules.bundle)
    }

    /// The JWK set of every key that signs or signed tokens.
    pub fn jwks(&self) -> serde_json::Value {
        let keys = self.show().keys();
        let keys: Vec<_> = keys.into_iter().map(|(_, key)| (*key).clone()).collect();
        serde_json::json!({ "keys": keys })
    }

    /// The present, never before a time already acted on: a wall clock that steps back revives nothing.
    pub(crate) fn now(&self) -> Timestamp {
        let now = self.clock.now().millis();
        Timestamp::from_millis(self.latest_seen.fetch_max(now, Ordering::SeqCst).max(now))
    }

    /// Whether the wall clock runs steadily, and how many milliseconds it is behind the latest time seen.
    fn clock_status(&self) -> (bool, i64) {
        let (wall, uptime) = (self.clock.now(), self.clock.uptime());
        let steady = self.lock(&self.clock_watch).is_reliable(wall, uptime);
        let latest_seen = self.latest_seen.load(Ordering::SeqCst);
        (steady, latest_seen.saturating_sub(wall.millis()))
    }

    /// Refuses new tasks and tokens while the wall clock is unreliable: it jumped, or is behind the journal. Revocation and
    /// introspection go on, by the latest time seen.
    fn require_reliable_clock(&self, method: &'static str) -> Result<(), Refusal> {
        let (steady, behind_ms) = self.clock_status();
        if steady && behind_ms <= CLOCK_BEHIND_MAX_MS {
            return Ok(());
        }
        let message = if steady {
            format!("the wall clock is {behind_ms} ms behind the journal")
        } else {
            "the wall clock jumped; try again when it has been steady for a minute".to_owned()
        };
        Err(self.refuse(method, Reason::ClockUnreliable, message))
    }

    /// 16 random bytes.
    fn random_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // INVARIANT (no predictable id): without random bytes the process ends; the system's source does not fail once it
        // works, and it worked when the signing key was loaded.
        if self.random.fill(&mut bytes).is_err() {
            tracing::error!("the system returned no random bytes");
            std::process::abort();
        }
        bytes
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a task runs: by its record, the time, and revocations that wait to be journalled.
    fn is_running(&self, task: &TaskRecord, now: Timestamp) -> bool {
        task.is_running(now) && self.pending_task_end(task).is_none()
    }

    /// Why a grant has ended, by its record or by the rules in force; `None` while it is active.
    fn end_cause(
        &self,
        read: &Read,
        grant: &Recorded<'_, Grant>,
        now: Timestamp,
    ) -> Option<EndCause> {
        let ended = read
            .end_cause(grant, now)
            .or_else(|| self.pending_grant_end(grant));
        if ended.is_some() {
            return ended;
        }
        let Some(rules) = read.rules() else {
            return Some(EndCause::Policy);
        };
        let is_same = rules.bundle.version() == grant.issued.decision.policy;
        if is_same && !approve::has_changed_fact(read, grant, &rules.bundle) {
            return None;
        }
        // Until the sweep after a change of rules or facts has reached this grant, the rules in force are evaluated here.
        let allowed = approve::is_still_allowed(read, grant);
        (!allowed).then_some(EndCause::Policy)
    }

    /// The same for a list: rules are evaluated only where others are in force than those that granted it.
    fn shown_end_cause(&self, grant: &Shown<Grant>, now: Timestamp) -> Option<EndCause> {
        let ended = self
            .show()
            .end_cause(grant, now)
            .or_else(|| self.pending_grant_end(grant));
        let granted_under = grant.issued.decision.policy;
        // A fact that ends tokens may have had another value since.
        let has_facts = !grant.issued.decision.input.facts.is_empty();
        let same_rules = |rules: Shown<_>| {
            let rules: &crate::policy::ActivePolicy = &rules;
            rules.bundle.version() == granted_under && !has_facts
        };
        if ended.is_some() || self.show().rules().is_some_and(same_rules) {
            return ended;
        }
        self.preview(|read| match read.grant(&grant.issued.jti) {
            Some(grant) => self.end_cause(read, &grant, now),
            None => Some(EndCause::Deadline),
        })
    }

    /// Ends all waits: calls that wait for approvers are answered at once that the request is pending.
    pub fn stop_waiting(&self) {
        self.stopping.send_replace(true);
    }
}
