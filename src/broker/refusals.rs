//! Refused calls: the part the caller may know, the record that `explain` finds, the log line, and the count in the journal.
//!
//! Refusals before authentication cost a caller nothing, so a flood of them must cost the broker little: they are remembered
//! apart from the others, logged a few times a second, and journalled as one count per minute. A caller is authenticated by a
//! registered key, session or identity, by the key of the task that the call names, or by an open one-time code; a key that
//! the caller made itself proves nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Broker, Refusal, metrics};
use crate::journal::{Append, AppendError};
use crate::model::*;
use crate::verify::VerifyError;

/// A refused call, as the operator sees it.
#[derive(Debug, Clone)]
pub(in crate::broker) struct RefusalRecord {
    pub(in crate::broker) correlation: CorrelationId,
    pub(in crate::broker) at: Timestamp,
    pub(in crate::broker) method: &'static str,
    pub(in crate::broker) reason: Reason,
    pub(in crate::broker) detail: String,
}

/// The latest refused calls of this process, for `explain`: before and after authentication, each bounded by itself, so that
/// no flood of unauthenticated calls pushes out the refusals of authenticated ones.
#[derive(Debug, Default)]
pub(in crate::broker) struct RecentRefusals {
    unauthenticated: Mutex<VecDeque<RefusalRecord>>,
    authenticated: Mutex<VecDeque<RefusalRecord>>,
}

/// Refused calls kept for `explain`, of each of the two kinds.
pub(in crate::broker) const REFUSALS_KEPT_MAX: usize = 5_000;

impl RecentRefusals {
    fn push(&self, is_authenticated: bool, record: RefusalRecord) {
        let mut records = lock(if is_authenticated {
            &self.authenticated
        } else {
            &self.unauthenticated
        });
        if records.len() >= REFUSALS_KEPT_MAX {
            records.pop_front();
        }
        records.push_back(record);
    }

    pub(in crate::broker) fn find(&self, id: &CorrelationId) -> Option<RefusalRecord> {
        [&self.authenticated, &self.unauthenticated]
            .into_iter()
            .find_map(|records| {
                let records = lock(records);
                records.iter().rev().find(|r| r.correlation == *id).cloned()
            })
    }
}

/// Refusals before authentication that are not yet counted in the journal.
#[derive(Debug, Clone, Default)]
pub(in crate::broker) struct RefusalTally {
    since: Option<Timestamp>,
    /// No entry is tried before: the last one failed.
    not_before: Option<Timestamp>,
    /// Bounded by the program: methods and reasons are names in its text.
    counts: BTreeMap<(&'static str, Reason), u64>,
}

impl RefusalTally {
    fn add(&mut self, method: &'static str, reason: Reason, now: Timestamp) {
        self.since.get_or_insert(now);
        let count = self.counts.entry((method, reason)).or_default();
        *count = count.saturating_add(1);
    }

    /// Whether an entry is due: a minute after the first refusal, or after an entry that failed.
    fn is_due(&self, now: Timestamp) -> bool {
        self.since
            .is_some_and(|since| now.since(since) >= REFUSAL_COUNT_INTERVAL_MS)
            && self.not_before.is_none_or(|at| now >= at)
    }

    /// Puts back what no entry has counted.
    fn restore(&mut self, uncounted: Self, now: Timestamp) {
        for (key, count) in uncounted.counts {
            let sum = self.counts.entry(key).or_default();
            *sum = sum.saturating_add(count);
        }
        self.since = uncounted.since.or(self.since);
        self.not_before = Some(now.plus_millis(REFUSAL_COUNT_INTERVAL_MS));
    }

    /// The entry that counts them: the most frequent rows, and the total. `None` when there is nothing to count.
    fn to_event(&self) -> Option<RefusalsCounted> {
        let since = self.since?;
        let mut rows: Vec<RefusalCount> = self
            .counts
            .iter()
            .map(|((method, reason), count)| RefusalCount {
                method: (*method).to_owned(),
                reason: *reason,
                count: *count,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.count));
        let count = rows
            .iter()
            .fold(0_u64, |sum, row| sum.saturating_add(row.count));
        rows.truncate(REFUSAL_ROWS_MAX);
        Some(RefusalsCounted { since, count, rows })
    }
}

/// Time between two entries that count refusals before authentication, in milliseconds.
const REFUSAL_COUNT_INTERVAL_MS: i64 = 60_000;
/// Longest time that a stopping broker waits for its last count.
const FINAL_COUNT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest message of a refusal, in bytes: escaped and repeated in two headers of a response, it fits into them.
const MESSAGE_BYTES_MAX: usize = 2_000;
/// Longest detail of a refusal that the log shows, in characters.
const LOGGED_CHARS_MAX: usize = 500;

impl Broker {
    /// Refuses a call. `detail` is for the operator; the caller gets the reason's constant text, and the detail only
    /// where it concerns the caller's own input or in development.
    pub(in crate::broker) fn refuse(
        &self,
        method: &'static str,
        reason: Reason,
        detail: impl Into<String>,
    ) -> Refusal {
        self.refuse_as(true, method, reason, detail.into())
    }

    /// Refuses a request before its caller is authenticated: one that reached no method, or whose message never arrived whole,
    /// too.
    pub fn refuse_unauthenticated(
        &self,
        method: &'static str,
        reason: Reason,
        detail: impl Into<String>,
    ) -> Refusal {
        let now = self.now();
        lock(&self.refusal_tally).add(method, reason, now);
        self.refuse_as(false, method, reason, detail.into())
    }

    /// Refuses a call whose handler was cut short: whether its caller was authenticated is unknown. It is remembered with the
    /// refusals before authentication, because a stranger can cause it, and not counted as one.
    pub fn refuse_interrupted(&self, method: &'static str, reason: Reason) -> Refusal {
        self.refuse_as(false, method, reason, reason.text().to_owned())
    }

    /// A refusal that has a correlation id in the log but is not kept for `explain`: what comes too often must not displace
    /// the refusals that an operator looks for.
    pub fn refuse_unrecorded(&self, reason: Reason, retry_after: Option<Duration>) -> Refusal {
        let correlation = CorrelationId::from_random(self.random_bytes());
        tracing::Span::current().record("correlation", tracing::field::display(correlation));
        Refusal {
            reason,
            message: reason.text().to_owned(),
            correlation,
            gives_nonce: false,
            is_logged: true,
            retry_after,
        }
    }

    fn refuse_as(
        &self,
        is_authenticated: bool,
        method: &'static str,
        reason: Reason,
        detail: String,
    ) -> Refusal {
        let detail = cut(detail, MESSAGE_BYTES_MAX);
        let correlation = CorrelationId::from_random(self.random_bytes());
        let at = self.now();
        let printable = text::escape_invisible_capped(&detail, LOGGED_CHARS_MAX);
        let mut is_logged = true;
        if reason == Reason::UseDpopNonce {
            // The first call of every client.
            tracing::debug!(%correlation, method, %reason, detail = printable, "refused");
            is_logged = false;
        } else if is_authenticated {
            tracing::info!(%correlation, method, %reason, detail = printable, "refused");
        } else if let Some(count) = self.refusal_log_throttle.poll(self.uptime()) {
            let not_logged = count.saturating_sub(1);
            tracing::info!(%correlation, method, %reason, detail = printable, not_logged, "refused");
        } else {
            is_logged = false;
        }
        tracing::Span::current().record("correlation", tracing::field::display(correlation));
        let message = match reason.detail() {
            DetailVisibility::Operator if !self.settings.expose_auth_errors => {
                reason.text().to_owned()
            }
            DetailVisibility::Operator => {
                cut(format!("{}: {detail}", reason.text()), MESSAGE_BYTES_MAX)
            }
            DetailVisibility::Caller => detail.clone(),
        };
        self.recent_refusals.push(
            is_authenticated,
            RefusalRecord {
                correlation,
                at,
                method,
                reason,
                detail,
            },
        );
        Refusal {
            reason,
            message,
            correlation,
            gives_nonce: is_authenticated,
            is_logged,
            retry_after: None,
        }
    }

    /// A refusal of a malformed message, before the caller is authenticated.
    pub fn malformed(&self, method: &'static str, error: &ParseError) -> Refusal {
        self.refuse_unauthenticated(method, Reason::Malformed, error.to_string())
    }

    /// A refusal at gate 1: one public message for every cause, except those the caller must act on.
    pub(in crate::broker) fn refuse_gate_1(
        &self,
        method: &'static str,
        error: &VerifyError,
    ) -> Refusal {
        let (reason, gives_nonce) = match error {
            VerifyError::InvalidNonce => (Reason::UseDpopNonce, true),
            VerifyError::Stale | VerifyError::TooOldForRules { .. } => {
                (Reason::EvidenceStale, true)
            }
            VerifyError::TooManyProofs => (Reason::Overloaded, true),
            VerifyError::Evidence(_)
            | VerifyError::Claim(_)
            | VerifyError::Subject(_)
            | VerifyError::UntrustedDomain(_)
            | VerifyError::WrongAudience
            | VerifyError::Expired(_)
            | VerifyError::InvalidDates
            | VerifyError::MissingProof
            | VerifyError::Proof(_)
            | VerifyError::Replayed
            | VerifyError::ProofClaim { .. }
            | VerifyError::SecondCredential
            | VerifyError::TaskKeyMismatch
            | VerifyError::WorkloadMismatch { .. }
            | VerifyError::NoRules
            | VerifyError::NotRegistered
            | VerifyError::KeyMayNotAct(_)
            | VerifyError::OneTimeCode(_)
            | VerifyError::Session(_)
            | VerifyError::Passkey(_)
            | VerifyError::AmbiguousAgent(_)
            | VerifyError::AgentMismatch(_)
            | VerifyError::Suspended(_)
            | VerifyError::Frozen(_)
            | VerifyError::PinnedKeyMismatch(_)
            | VerifyError::RegisteredKey(_)
            | VerifyError::UntrustedKey
            | VerifyError::MayNotOperate { .. } => (Reason::NotAuthenticated, false),
        };
        self.metrics
            .authentication_failed(metrics::failure_label(error));
        if gives_nonce {
            // Any key makes a proof, so these are remembered with the refusals before authentication. They are steps of an
            // honest client too, and not counted.
            Refusal {
                gives_nonce,
                ..self.refuse_as(false, method, reason, error.to_string())
            }
        } else {
            self.refuse_unauthenticated(method, reason, error.to_string())
        }
    }

    /// A refusal because the journal did not take an append, or because its outcome is unknown.
    pub(in crate::broker) fn refuse_append(
        &self,
        method: &'static str,
        error: &AppendError,
    ) -> Refusal {
        let reason = match error {
            AppendError::TooLarge | AppendError::NotCanonical => Reason::Malformed,
            AppendError::Ceiling(claim) => return self.refuse_ceiling(method, claim),
            AppendError::Illegal(_) => Reason::DecisionUnavailable,
            // A call is asked again until its deadline.
            AppendError::Conflict(_)
            | AppendError::TooLate
            | AppendError::Busy
            | AppendError::QueueFull => Reason::Overloaded,
            AppendError::DiskFull | AppendError::WriteFailed | AppendError::Closed => {
                Reason::JournalUnavailable
            }
            AppendError::OutcomeUnknown => Reason::OutcomeUnknown,
        };
        self.refuse(method, reason, error.to_string())
    }

    /// A refusal because a count has reached its ceiling.
    fn refuse_ceiling(&self, method: &'static str, claim: &Claim) -> Refusal {
        let most = claim.ceiling;
        let (reason, message) = match &claim.counter {
            Counter::OpenTasks(_) => (
                Reason::TooManyTasks,
                format!("the agent has {most} running tasks, the most it may have; end some"),
            ),
            Counter::PendingRequests(_) => (
                Reason::TooManyPending,
                format!("{most} access requests of this agent are pending, the most it may have"),
            ),
            Counter::OwnerPendingRequests(_) => (
                Reason::TooManyPending,
                format!("{most} access requests of this owner are pending, the most there may be"),
            ),
            Counter::Openings(_) => (
                Reason::DenialBackoff,
                format!(
                    "the agent opened {most} access requests in a minute, the most it may open"
                ),
            ),
        };
        self.refuse(method, reason, message)
    }

    /// Journals the count of refusals before authentication, once a minute.
    pub(in crate::broker) async fn journal_refusal_count(
        &self,
        now: Timestamp,
    ) -> Result<(), AppendError> {
        if lock(&self.refusal_tally).is_due(now) {
            return self.append_refusal_count(now).await;
        }
        Ok(())
    }

    /// Journals what is still uncounted when the broker stops. A crash before loses at most the count of a minute.
    pub async fn record_final_counts(&self) {
        let append = self.append_refusal_count(self.now());
        let error = match tokio::time::timeout(FINAL_COUNT_TIMEOUT, append).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "the journal did not answer".to_owned(),
        };
        tracing::warn!(error, "the count of refused calls is not in the journal");
    }

    async fn append_refusal_count(&self, now: Timestamp) -> Result<(), AppendError> {
        // Taken out before the append: a future that is dropped while it waits has handed the entry to the journal's writer,
        // and a later entry must not count the same refusals again.
        let tally = std::mem::take(&mut *lock(&self.refusal_tally));
        let Some(counted) = tally.to_event() else {
            return Ok(());
        };
        let append = Append::unread(Event::RefusalsCounted(counted));
        match self.journal.append(append).await {
            Ok(_entry) => Ok(()),
            // The entry may be in the journal.
            Err(AppendError::OutcomeUnknown) => Err(AppendError::OutcomeUnknown),
            Err(error) => {
                lock(&self.refusal_tally).restore(tally, now);
                Err(error)
            }
        }
    }
}

/// The text, cut at a character boundary when it is longer than `bytes_max` bytes.
fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max.saturating_sub(ELLIPSIS.len_utf8())));
        text.push(ELLIPSIS);
    }
    text
}

const ELLIPSIS: char = '…';

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn tally_counts_by_method_and_reason() {
        let mut tally = RefusalTally::default();
        assert_eq!(tally.to_event(), None, "nothing when zero");
        for _ in 0..3 {
            tally.add("a", Reason::Malformed, T0);
        }
        tally.add("b", Reason::NotAuthenticated, T0.plus_secs(1));
        let counted = std::mem::take(&mut tally);
        let event = counted.to_event().expect("some");
        assert_eq!((event.since, event.count), (T0, 4));
        let rows: Vec<_> = event
            .rows
            .iter()
            .map(|r| (&*r.method, r.reason, r.count))
            .collect();
        assert_eq!(
            rows,
            [
                ("a", Reason::Malformed, 3),
                ("b", Reason::NotAuthenticated, 1)
            ]
        );
        // A refusal while the entry is written is for the next one; and if that entry fails, both are.
        tally.add("a", Reason::Malformed, T0.plus_secs(2));
        let event = tally.to_event().expect("some");
        assert_eq!((event.since, event.count), (T0.plus_secs(2), 1));
        assert!(!tally.is_due(T0.plus_secs(61)) && tally.is_due(T0.plus_secs(62)));
        tally.restore(counted, T0.plus_secs(70));
        let event = tally.to_event().expect("some");
        assert_eq!((event.since, event.count), (T0, 5));
        assert!(
            !tally.is_due(T0.plus_secs(129)) && tally.is_due(T0.plus_secs(130)),
            "not again at once"
        );
    }

    #[test]
    fn rows_are_bounded_and_the_total_is_not() {
        let mut tally = RefusalTally::default();
        for n in 0..REFUSAL_ROWS_MAX + 9 {
            let method: &'static str = Box::leak(format!("method-{n}").into_boxed_str());
            tally.add(method, Reason::Malformed, T0);
        }
        tally.add("method-3", Reason::Malformed, T0);
        let event = tally.to_event().expect("some");
        assert_eq!(event.rows.len(), REFUSAL_ROWS_MAX);
        assert_eq!(usize::try_from(event.count), Ok(REFUSAL_ROWS_MAX + 10));
        assert_eq!(event.rows.first().map(|row| &*row.method), Some("method-3"));
    }

    #[test]
    fn a_flood_before_authentication_pushes_out_no_other() {
        let recent = RecentRefusals::default();
        let record = |n: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            RefusalRecord {
                correlation: CorrelationId::from_random(bytes),
                at: T0,
                method: "m",
                reason: Reason::Conflict,
                detail: String::new(),
            }
        };
        recent.push(true, record(0));
        for n in 1..=REFUSALS_KEPT_MAX + 1 {
            recent.push(false, record(n));
        }
        assert!(recent.find(&record(0).correlation).is_some());
        assert!(recent.find(&record(1).correlation).is_none());
        assert!(recent.find(&record(2).correlation).is_some());
    }

    #[test]
    fn cut_keeps_characters_whole() {
        assert_eq!(cut("abc".to_owned(), 3), "abc");
        assert_eq!(cut("abcdef".to_owned(), 5), "ab…");
        assert_eq!(cut("ééé".to_owned(), 5), "é…");
    }
}
