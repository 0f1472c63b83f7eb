//! The hall: the only place where rooms meet. One file for each use case.
//!
//! In: parsed calls from the doors. Out: answers, or a [`Refusal`] that says no more than the caller may know.
//! Every use case reads the clock first, asks gate 1, then gate 2, and appends before it answers; it says at each step
//! what a crash there leaves.

mod ask_people;
mod callers;
mod deny;
mod end;
mod explain;
mod feed;
mod govern;
mod grant;
mod introspect;
mod once;
mod open_task;
mod readings;
mod request_token;
mod start;
mod upkeep;
mod views;
mod vote;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::approve::Bounds;
use crate::clock::Clock;
use crate::jose::Nonces;
pub use crate::journal::Tail;
use crate::journal::{AppendError, Journal};
use crate::mint::Bench;
use crate::model::*;
use crate::state::{Grant, State, Table, Task};
use crate::verify::{Attested, VerifyError};

pub use callers::{CallerKind, PersonCaller, Presented};
pub use end::{EndReport, TaskEndAsk};
pub use explain::Explained;
pub use feed::{FeedStart, Position};
pub use govern::Applied;
pub use introspect::{Consumed, Introspected};
pub use open_task::{OpenAsk, Opened};
pub use request_token::{
    DeniedReply, PendingReply, ProfileState, RuleShown, TokenAsk, TokenGiven, TokenReply,
};
pub use start::{Start, StartError};
pub use vote::{AccessView, CardView, Standing as AccessStanding, VoteBegun};

use once::Once;
use readings::Readings;
use views::Views;

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
}

/// The broker: state, journal, rules, trust, keys, and what only this process remembers.
pub struct Hall {
    settings: Settings,
    bounds: Bounds,
    clock: Clock,
    /// The latest moment anybody here has acted on.
    high_water: Arc<AtomicI64>,
    journal: Journal,
    state: Arc<State>,
    views: Arc<Views>,
    bench: Bench,
    nonces: Nonces,
    random: SystemRandom,
    once: Once,
    /// When this broker last verified the evidence of a task.
    seen: Table<TaskId, Attested>,
    /// Request ids that joined an access request opened under another.
    joined: Mutex<HashMap<TaskId, HashMap<RequestId, AccessRequestId>>>,
    /// The last denial entered for a request id: an unchanged answer writes nothing.
    denials: Table<(TaskId, RequestId), Digest>,
    /// Refusal entries of a task in a minute.
    refusals: Mutex<HashMap<TaskId, (i64, u32)>>,
    /// Statements handed out for signature.
    statements: Mutex<HashMap<String, vote::Begun>>,
    /// Ends that could not be written: refused here at once, tried again by the timer.
    doomed: Mutex<HashSet<TaskId>>,
    /// Suspensions that could not be written, with who ordered them.
    doomed_agents: Mutex<HashMap<AgentId, PersonId>>,
    /// Held while a policy bundle is put in force and what it no longer allows is ended.
    governing: tokio::sync::Mutex<()>,
    /// Version of the rules under which a sweep has come to its end.
    swept: AtomicU64,
    /// Tokens of ours that were read.
    readings: Readings,
    /// Refused calls, newest last, for `explain`.
    log: Mutex<VecDeque<Refused>>,
    uncounted: Mutex<(Option<Timestamp>, u64)>,
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

/// Refused calls that are remembered for `explain`.
const LOG_MAX: usize = 10_000;
/// Refusal entries a task may cause in a minute.
const REFUSALS_PER_MINUTE: u32 = 60;
/// Tasks of one agent that may run at once.
const TASKS_MAX: usize = 1_000;
/// Request ids that may join access requests of one task.
const JOINED_MAX: usize = 256;
/// Access requests of one agent that may wait.
const PENDING_MAX: usize = 5;
/// How often both gates run again when something moved between decision and entry.
const ATTEMPTS: usize = 3;

impl Hall {
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
    fn now(&self) -> Timestamp {
        let now = self.clock.now().millis();
        Timestamp::from_millis(self.high_water.fetch_max(now, Ordering::SeqCst).max(now))
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
            && !self.lock(&self.doomed).contains(&task.opened.task)
            && !self.standing_of(&task.opened.agent).0
    }

    /// Whether an agent is suspended, by an entry or by one that waits to be written, and the version of its stream.
    fn standing_of(&self, agent: &AgentId) -> (bool, Version) {
        let at = self.state.standing(agent);
        (
            at.value.suspended || self.lock(&self.doomed_agents).contains_key(agent),
            at.version,
        )
    }

    /// Why a grant is dead, rules included; `None` while it lives.
    fn dead(&self, grant: &Grant, now: Timestamp) -> Option<EndCause> {
        if self.lock(&self.doomed).contains(&grant.issued.task) {
            return Some(EndCause::Operator);
        }
        if self.standing_of(&grant.issued.agent).0 {
            return Some(EndCause::Suspended);
        }
        if let Some(cause) = self.state.dead(grant, now) {
            return Some(cause);
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
            &rules.bundle,
            &self.settings.realm,
        );
        (!allowed).then_some(EndCause::Policy)
    }

    /// Refuses a call. `detail` is for the operator; the caller learns the reason's constant text, and the detail only
    /// where it is about the caller's own input or in development.
    fn refuse(&self, method: &'static str, reason: Reason, detail: impl Into<String>) -> Refusal {
        let detail = detail.into();
        let correlation = CorrelationId::from_random(self.draw());
        let at = self.now();
        let shown = text::reveal_capped(&detail, 500);
        if reason == Reason::UseDpopNonce {
            // The first call of every client.
            tracing::debug!(%correlation, method, %reason, detail = shown, "refused");
        } else {
            tracing::info!(%correlation, method, %reason, detail = shown, "refused");
        }
        let told = match public_text(reason) {
            Some(constant) if !self.settings.tell_callers => constant.to_owned(),
            Some(constant) => format!("{constant}: {detail}"),
            None => detail.clone(),
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
        }
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
            | VerifyError::Agents(_)
            | VerifyError::OtherAgent(_)
            | VerifyError::Suspended(_)
            | VerifyError::KeyRemoved
            | VerifyError::MayNotOperate { .. } => (Reason::NotAuthenticated, false),
        };
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

/// The constant text for reasons whose cause is not the caller's to know; `None` where the detail is about the caller's
/// own words.
const fn public_text(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::NotAuthenticated => {
            Some("gate 1 did not open; an operator can explain the correlation id")
        }
        Reason::UseDpopNonce => Some("make the proof again with the nonce in dpop-nonce"),
        Reason::EvidenceStale => Some("show the evidence again in this call"),
        Reason::NotPermitted => Some("this caller may not call this method"),
        Reason::NotFound => Some("nothing of yours has this id"),
        Reason::JournalUnavailable => Some("the journal cannot take entries now; nothing was done"),
        Reason::Undecided => Some("could not decide; nothing was done"),
        Reason::TooBusy => Some("too many calls at once; try again"),
        Reason::Conflict => {
            Some("others changed the same thing at the same time; nothing was done, try again")
        }
        Reason::TokenInactive => Some("the token is not good for this caller now"),
        Reason::Malformed
        | Reason::UnknownAction
        | Reason::UnknownTarget
        | Reason::WrongParameters
        | Reason::UnknownAudience
        | Reason::InvalidTtl
        | Reason::InvalidPolicyBundle
        | Reason::RequestIdReused
        | Reason::TaskEnded
        | Reason::TokenDead
        | Reason::UseSpent
        | Reason::AccessRequestClosed
        | Reason::NotEligible
        | Reason::StatementUnknown
        | Reason::SignatureWrong
        | Reason::PositionAhead
        | Reason::OtherEpoch
        | Reason::TooManyPending
        | Reason::TooManyTasks
        | Reason::TooManyRefusals => None,
    }
}
