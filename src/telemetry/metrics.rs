//! Metrics of one broker, as OpenMetrics text.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use crate::model::Timestamp;

/// The documentation of every metric: type, labels and meaning.
pub const METRICS_DOC: &str = include_str!("METRICS.md");

/// The metrics of one broker.
///
/// INVARIANT (bounded label sets): a label's value is `&'static str`, one of at most 200 rule names, or the
/// active policy version. No text of an agent becomes a label.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Held while gauges are set and encoded, so that two readers do not mix two snapshots.
    encoding: Mutex<()>,
    rules: Mutex<BTreeSet<String>>,
    rpc_requests: Family<CallLabels, Counter>,
    rpc_duration: Family<MethodLabel, Histogram, fn() -> Histogram>,
    rpc_in_flight: Gauge,
    refusals: Family<ReasonLabel, Counter>,
    rate_limited: Family<RateLimitLabels, Counter>,
    evidence_checks: Family<EvidenceLabels, Counter>,
    authentication_failures: Family<CauseLabel, Counter>,
    decisions: Family<DecisionLabels, Counter>,
    approval_wait: Family<OutcomeLabel, Histogram, fn() -> Histogram>,
    vote_signing: Family<MethodLabel, Histogram, fn() -> Histogram>,
    journal_append: Histogram,
    append_conflicts: Counter,
    revocation_delivery: Histogram,
    feed_subscribers: Gauge,
    open_streams: Family<StreamLabel, Gauge>,
    connections: Gauge,
    access_requests_pending: Gauge,
    tokens_active: Gauge,
    tasks_open: Gauge,
    policy_info: Family<PolicyLabel, Gauge>,
    operators: Gauge,
    operators_recovered: Gauge,
    journal_entries: Gauge,
    journal_bytes: Gauge,
    pending_revocations: Gauge,
    clock_skew: Gauge<f64, AtomicU64>,
}

/// The values of the gauges that are read from the broker's state.
#[derive(Debug, Clone, Default)]
pub struct GaugeSnapshot {
    /// Access requests that wait for approval.
    pub access_requests_pending: usize,
    /// Tokens that are neither revoked nor expired.
    pub tokens_active: usize,
    /// Running tasks.
    pub tasks_open: usize,
    /// Version of the active policy bundle.
    pub policy: Option<String>,
    /// Operators with a living key.
    pub operators: usize,
    /// When the operators were last recovered on the broker's host.
    pub recovered_at: Option<Timestamp>,
    /// Entries in the journal.
    pub journal_entries: u64,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    /// Revocations, suspensions and freezes that are not yet journalled.
    pub pending_revocations: usize,
    /// How far the wall clock is behind the latest time the broker acted on.
    pub clock_skew: Duration,
}

/// A gauge raised by one until this is dropped.
#[derive(Debug)]
pub struct InFlightGuard(Gauge);

impl InFlightGuard {
    fn raise(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

macro_rules! labels {
    ($($name:ident { $($label:ident: $type:ty),* })*) => {
        $(#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($label: $type),* })*
    };
}

labels! {
    CallLabels { method: &'static str, code: &'static str }
    MethodLabel { method: &'static str }
    ReasonLabel { reason: &'static str }
    RateLimitLabels { class: &'static str, by: &'static str }
    EvidenceLabels { kind: &'static str, result: &'static str }
    CauseLabel { cause: &'static str }
    DecisionLabels { outcome: &'static str, rule: String }
    OutcomeLabel { outcome: &'static str }
    StreamLabel { kind: &'static str }
    PolicyLabel { version: String }
}

/// Rule names that get a series of their own while the process runs; the rest count as `other`.
const RULES_MAX: usize = 200;
/// The label of a decision that no rule determined.
const NO_RULE: &str = "none";
/// The label of the rules beyond [`RULES_MAX`].
const OTHER_RULE: &str = "other";

/// Buckets for calls and appends, from half a millisecond to 16 seconds.
fn machine_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
}

/// Buckets for people, from a second to 2 hours and a quarter.
fn human_seconds() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 14))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("dipylon");
        fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, metric: M) -> M {
            registry.register(name, help(name), metric.clone());
            metric
        }
        let r = &mut registry;
        let metrics = Self {
            rpc_requests: add(r, "rpc_requests", Family::default()),
            rpc_duration: add(
                r,
                "rpc_duration_seconds",
                Family::new_with_constructor(machine_seconds as fn() -> _),
            ),
            rpc_in_flight: add(r, "rpc_in_flight", Gauge::default()),
            refusals: add(r, "refusals", Family::default()),
            rate_limited: add(r, "rate_limited", Family::default()),
            evidence_checks: add(r, "evidence_checks", Family::default()),
            authentication_failures: add(r, "authentication_failures", Family::default()),
            decisions: add(r, "decisions", Family::default()),
            approval_wait: add(
                r,
                "approval_wait_seconds",
                Family::new_with_constructor(human_seconds as fn() -> _),
            ),
            vote_signing: add(
                r,
                "vote_signing_duration_seconds",
                Family::new_with_constructor(human_seconds as fn() -> _),
            ),
            journal_append: add(r, "journal_append_duration_seconds", machine_seconds()),
            append_conflicts: add(r, "append_conflicts", Counter::default()),
            revocation_delivery: add(r, "revocation_delivery_delay_seconds", machine_seconds()),
            feed_subscribers: add(r, "feed_subscribers", Gauge::default()),
            open_streams: add(r, "open_streams", Family::default()),
            connections: add(r, "connections", Gauge::default()),
            access_requests_pending: add(r, "access_requests_pending", Gauge::default()),
            tokens_active: add(r, "tokens_active", Gauge::default()),
            tasks_open: add(r, "tasks_open", Gauge::default()),
            policy_info: add(r, "policy_info", Family::default()),
            operators: add(r, "operators", Gauge::default()),
            operators_recovered: add(r, "operators_recovered_timestamp_seconds", Gauge::default()),
            journal_entries: add(r, "journal_entries", Gauge::default()),
            journal_bytes: add(r, "journal_bytes", Gauge::default()),
            pending_revocations: add(r, "pending_revocations", Gauge::default()),
            clock_skew: add(r, "clock_skew_seconds", Gauge::default()),
            encoding: Mutex::default(),
            rules: Mutex::default(),
            registry,
        };
        // Present from the start with 0: an alert on a change sees the first event.
        for class in ["general", "reserved"] {
            for limit in LimitKind::ALL {
                let by = limit.as_str();
                drop(
                    metrics
                        .rate_limited
                        .get_or_create(&RateLimitLabels { class, by }),
                );
            }
        }
        for kind in [
            "access_request",
            "health",
            "inbox",
            "policy_bundle",
            "receipt",
            "token",
        ] {
            drop(metrics.open_streams.get_or_create(&StreamLabel { kind }));
        }
        for outcome in ["approved", "denied", "expired"] {
            drop(
                metrics
                    .approval_wait
                    .get_or_create(&OutcomeLabel { outcome }),
            );
        }
        for method in ["key", "passkey"] {
            drop(metrics.vote_signing.get_or_create(&MethodLabel { method }));
        }
        metrics
    }
}

/// The meaning of a metric in the documentation, for its HELP line.
fn help(name: &str) -> &'static str {
    let row = METRICS_DOC.lines().find(|line| {
        line.strip_prefix("| `dipylon_")
            .and_then(|rest| rest.split('`').next())
            .is_some_and(|full| full.trim_end_matches("_total") == name)
    });
    row.and_then(|line| line.trim_end_matches(" |").rsplit(" | ").next())
        .unwrap_or_default()
        .trim_end_matches('.')
}

impl Metrics {
    /// A call was completed, or its client disconnected.
    pub fn call_completed(&self, method: &'static str, code: &'static str, took: Duration) {
        self.rpc_requests
            .get_or_create(&CallLabels { method, code })
            .inc();
        self.rpc_duration
            .get_or_create(&MethodLabel { method })
            .observe(took.as_secs_f64());
    }

    /// A call is in flight until the guard is dropped.
    pub fn call_started(&self) -> InFlightGuard {
        InFlightGuard::raise(&self.rpc_in_flight)
    }

    /// A call was refused, for a reason of the closed set.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A call was rate limited.
    pub fn rate_limited(&self, class: &'static str, limit: LimitKind) {
        let by = limit.as_str();
        self.rate_limited
            .get_or_create(&RateLimitLabels { class, by })
            .inc();
    }

    /// Evidence was checked.
    pub fn evidence_checked(&self, kind: &'static str, result: &'static str) {
        self.evidence_checks
            .get_or_create(&EvidenceLabels { kind, result })
            .inc();
    }

    /// A call failed gate 1.
    pub fn authentication_failed(&self, cause: &'static str) {
        self.authentication_failures
            .get_or_create(&CauseLabel { cause })
            .inc();
    }

    /// Gate 2 decided; `rule` is the first that determined the decision.
    pub fn decided(&self, outcome: &'static str, rule: Option<&str>) {
        let rule = self.rule_label(rule.unwrap_or(NO_RULE));
        self.decisions
            .get_or_create(&DecisionLabels { outcome, rule })
            .inc();
    }

    fn rule_label(&self, rule: &str) -> String {
        let mut known = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(rule) || rule == NO_RULE {
            return rule.to_owned();
        }
        if known.len() >= RULES_MAX {
            return OTHER_RULE.to_owned();
        }
        known.insert(rule.to_owned());
        rule.to_owned()
    }

    /// An access request was decided, or expired, after this wait.
    pub fn access_request_decided(&self, outcome: &'static str, waited: Duration) {
        self.approval_wait
            .get_or_create(&OutcomeLabel { outcome })
            .observe(waited.as_secs_f64());
    }

    /// A person signed a vote's statement this long after it was issued.
    /// `method` is `key` or `passkey`.
    pub fn vote_signed(&self, method: &'static str, took: Duration) {
        self.vote_signing
            .get_or_create(&MethodLabel { method })
            .observe(took.as_secs_f64());
    }

    /// The journal completed an append.
    pub fn journal_appended(&self, took: Duration) {
        self.journal_append.observe(took.as_secs_f64());
    }

    /// An append wrote nothing because another one came first: its call is decided anew while it has attempts left.
    pub fn append_conflicted(&self) {
        self.append_conflicts.inc();
    }

    /// A revocation was delivered to one validator's stream this long after its entry.
    pub fn revocation_delivered(&self, delay: Duration) {
        self.revocation_delivery.observe(delay.as_secs_f64());
    }

    /// A validator follows the feed until the guard is dropped.
    pub fn feed_subscribed(&self) -> InFlightGuard {
        InFlightGuard::raise(&self.feed_subscribers)
    }

    /// A stream of this kind is open until the guard is dropped.
    pub fn stream_opened(&self, kind: &'static str) -> InFlightGuard {
        let gauge = self
            .open_streams
            .get_or_create(&StreamLabel { kind })
            .clone();
        InFlightGuard::raise(&gauge)
    }

    /// A connection is open until the guard is dropped.
    pub fn connection_opened(&self) -> InFlightGuard {
        InFlightGuard::raise(&self.connections)
    }

    /// OpenMetrics text, with the gauges of this snapshot.
    pub fn render(&self, snapshot: &GaugeSnapshot) -> String {
        let _alone = self.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |gauge: &Gauge, n: usize| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        let large = |gauge: &Gauge, n: u64| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        count(
            &self.access_requests_pending,
            snapshot.access_requests_pending,
        );
        count(&self.tokens_active, snapshot.tokens_active);
        count(&self.tasks_open, snapshot.tasks_open);
        count(&self.pending_revocations, snapshot.pending_revocations);
        count(&self.operators, snapshot.operators);
        let recovered_at = snapshot.recovered_at.map_or(0, Timestamp::secs);
        self.operators_recovered.set(recovered_at);
        large(&self.journal_entries, snapshot.journal_entries);
        large(&self.journal_bytes, snapshot.journal_bytes);
        self.clock_skew.set(snapshot.clock_skew.as_secs_f64());
        self.policy_info.clear();
        if let Some(version) = &snapshot.policy {
            let version = version.clone();
            self.policy_info
                .get_or_create(&PolicyLabel { version })
                .set(1);
        }
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            tracing::warn!("metrics encoding failed");
        }
        out
    }
}

/// The limit that shed a call: label `by` of `dipylon_rate_limited_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// The rate of the source address, before anything is verified.
    Source,
    /// The rate of the authenticated caller.
    Caller,
    /// The number of concurrent calls.
    Concurrency,
    /// The number of open streams of one caller.
    Streams,
}

impl LimitKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Source, Self::Caller, Self::Concurrency, Self::Streams];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Caller => "caller",
            Self::Concurrency => "concurrency",
            Self::Streams => "streams",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// name → (type, labels), from the documentation.
    fn documented() -> BTreeMap<String, (String, Vec<String>)> {
        let rows = METRICS_DOC
            .lines()
            .filter(|line| line.starts_with("| `dipylon_"));
        rows.map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            assert_eq!(cells.len(), 4, "{line}");
            assert!(!cells[3].is_empty(), "{line}");
            let labels = cells[2].split(", ").filter(|l| *l != "—");
            let labels = labels.map(|l| l.trim_matches('`').to_owned()).collect();
            (
                cells[0].trim_matches('`').to_owned(),
                (cells[1].to_owned(), labels),
            )
        })
        .collect()
    }

    /// The same from OpenMetrics text.
    fn exposed(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
        let mut found = BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                let name = if kind == "counter" {
                    format!("{name}_total")
                } else {
                    name.to_owned()
                };
                found.insert(name, (kind.to_owned(), Vec::new()));
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().expect("a name");
                let name = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|s| name.strip_suffix(s))
                    .unwrap_or(name);
                let labels = line
                    .split_once('{')
                    .map_or("", |(_, rest)| rest.rsplit_once('}').expect("closed").0);
                let names = labels
                    .split("\",")
                    .filter_map(|l| l.split_once("=\""))
                    .map(|(n, _)| n.to_owned())
                    .filter(|n| n != "le")
                    .collect();
                found.get_mut(name).expect("has a type").1 = names;
            }
        }
        found
    }

    fn record_everything(metrics: &Metrics) {
        let second = Duration::from_secs(1);
        metrics.call_completed("m", "OK", second);
        metrics.refused("NOT_FOUND");
        metrics.rate_limited("general", LimitKind::Source);
        metrics.evidence_checked("jwt_svid", "valid");
        metrics.authentication_failed("stale");
        metrics.decided("approved", None);
        metrics.access_request_decided("approved", second);
        metrics.vote_signed("passkey", second);
        metrics.journal_appended(second);
        metrics.append_conflicted();
        metrics.revocation_delivered(second);
    }

    #[test]
    fn metrics_doc_matches_registry() {
        let metrics = Metrics::default();
        record_everything(&metrics);
        let snapshot = GaugeSnapshot {
            policy: Some("v".to_owned()),
            ..GaugeSnapshot::default()
        };
        let text = metrics.render(&snapshot);
        assert_eq!(exposed(&text), documented());
        for limit in LimitKind::ALL {
            let (name, value) = (
                "`dipylon_rate_limited_total`",
                format!("`{}`", limit.as_str()),
            );
            let mut rows = METRICS_DOC.lines().filter(|line| line.contains(name));
            assert!(rows.any(|row| row.contains(&value)), "{limit:?}");
        }
        for line in text.lines().filter(|l| l.starts_with("# HELP")) {
            assert!(line.split(' ').count() > 4, "has a help text: {line}");
        }
    }

    #[test]
    fn rule_names_are_capped_and_escaped() {
        let metrics = Metrics::default();
        for n in 0..1_000 {
            metrics.decided("denied", Some(&format!("rule-{n}")));
        }
        metrics.decided("denied", Some("rule-0"));
        metrics.decided("denied", None);
        let text = metrics.render(&GaugeSnapshot::default());
        let rows = |text: &str| {
            text.lines()
                .filter(|l| l.starts_with("dipylon_decisions_total{"))
                .count()
        };
        assert_eq!(rows(&text), RULES_MAX + 2);
        assert!(text.contains("rule=\"other\"} 800\n"), "{text}");
        assert!(text.contains("rule=\"rule-0\"} 2\n"), "{text}");
        let odd = Metrics::default();
        odd.decided("denied", Some("a\"} 9\ndipylon_forged_total 1\n"));
        let text = odd.render(&GaugeSnapshot::default());
        assert_eq!(rows(&text), 1);
        assert!(
            !text.lines().any(|l| l.starts_with("dipylon_forged")),
            "{text}"
        );
    }

    #[test]
    fn in_flight_gauges() {
        let metrics = Metrics::default();
        let one = metrics.feed_subscribed();
        let two = metrics.feed_subscribed();
        let now = || {
            let text = metrics.render(&GaugeSnapshot::default());
            text.contains("dipylon_feed_subscribers 2\n")
        };
        assert!(now());
        drop(one);
        assert!(!now());
        drop(two);
        assert_eq!(metrics.feed_subscribers.get(), 0);
    }
}
