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

/// Every figure, with its type, labels and meaning.
pub const PAGE: &str = include_str!("METRICS.md");

/// The figures of one broker.
///
/// INVARIANT (bounded label sets): a label's value is `&'static str`, or one of at most [`RULES_MAX`] rule names, or the
/// one version in force. Nothing that an agent says becomes a label.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Held while gauges are set and read, so that two readers do not mix two moments.
    reading: Mutex<()>,
    rules: Mutex<BTreeSet<String>>,
    calls: Family<Call, Counter>,
    call_seconds: Family<Method, Histogram, fn() -> Histogram>,
    calls_in_flight: Gauge,
    refusals: Family<Reason, Counter>,
    rate_limited: Family<Limited, Counter>,
    attestation: Family<Attestation, Counter>,
    gate_1_refusals: Family<Cause, Counter>,
    decisions: Family<Decision, Counter>,
    approval_wait: Family<Outcome, Histogram, fn() -> Histogram>,
    approval_decide: Histogram,
    append: Histogram,
    feed_delay: Histogram,
    feed_subscribers: Gauge,
    watches: Family<What, Gauge>,
    connections: Gauge,
    requests_pending: Gauge,
    tokens_live: Gauge,
    tasks_open: Gauge,
    policy_info: Family<Policy, Gauge>,
    journal_entries: Gauge,
    journal_bytes: Gauge,
    ends_unwritten: Gauge,
    clock_behind: Gauge<f64, AtomicU64>,
}

/// What is true at the moment of reading.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// Access requests that wait for people.
    pub requests_pending: usize,
    /// Tokens that are neither ended nor expired.
    pub tokens_live: usize,
    /// Tasks that run.
    pub tasks_open: usize,
    /// Version of the policy bundle in force.
    pub policy: Option<String>,
    /// Entries in the journal.
    pub journal_entries: u64,
    /// Bytes of its files.
    pub journal_bytes: u64,
    /// Ends, suspensions and freezes that wait to be written.
    pub ends_unwritten: usize,
    /// How far the wall clock is behind a moment that was acted on.
    pub clock_behind: Duration,
}

/// One more of something, until it is dropped.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    fn up(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
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
    Call { method: &'static str, code: &'static str }
    Method { method: &'static str }
    Reason { reason: &'static str }
    Limited { class: &'static str, by: &'static str }
    Attestation { kind: &'static str, result: &'static str }
    Cause { cause: &'static str }
    Decision { outcome: &'static str, rule: String }
    Outcome { outcome: &'static str }
    What { what: &'static str }
    Policy { version: String }
}

/// Rule names that get a count of their own in the life of a process; the rest count as `other`.
const RULES_MAX: usize = 200;
/// The rule of a decision that none determined, and of those beyond [`RULES_MAX`].
const NO_RULE: &str = "none";
const OTHER_RULE: &str = "other";

/// From half a millisecond to 16 seconds.
fn work() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
}

/// From a second to 2 hours and a quarter.
fn people() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 14))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("dipylon");
        fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, metric: M) -> M {
            registry.register(name, meaning(name), metric.clone());
            metric
        }
        let r = &mut registry;
        let metrics = Self {
            calls: add(r, "calls", Family::default()),
            call_seconds: add(
                r,
                "call_seconds",
                Family::new_with_constructor(work as fn() -> _),
            ),
            calls_in_flight: add(r, "calls_in_flight", Gauge::default()),
            refusals: add(r, "refusals", Family::default()),
            rate_limited: add(r, "rate_limited", Family::default()),
            attestation: add(r, "attestation", Family::default()),
            gate_1_refusals: add(r, "gate_1_refusals", Family::default()),
            decisions: add(r, "decisions", Family::default()),
            approval_wait: add(
                r,
                "approval_wait_seconds",
                Family::new_with_constructor(people as fn() -> _),
            ),
            approval_decide: add(r, "approval_decide_seconds", people()),
            append: add(r, "audit_append_seconds", work()),
            feed_delay: add(r, "feed_delay_seconds", work()),
            feed_subscribers: add(r, "feed_subscribers", Gauge::default()),
            watches: add(r, "watches", Family::default()),
            connections: add(r, "connections", Gauge::default()),
            requests_pending: add(r, "requests_pending", Gauge::default()),
            tokens_live: add(r, "tokens_live", Gauge::default()),
            tasks_open: add(r, "tasks_open", Gauge::default()),
            policy_info: add(r, "policy_info", Family::default()),
            journal_entries: add(r, "journal_entries", Gauge::default()),
            journal_bytes: add(r, "journal_bytes", Gauge::default()),
            ends_unwritten: add(r, "ends_unwritten", Gauge::default()),
            clock_behind: add(r, "clock_behind_seconds", Gauge::default()),
            reading: Mutex::default(),
            rules: Mutex::default(),
            registry,
        };
        // There from the start, at nothing: the first one is a change that an alert sees.
        for class in ["general", "reserved"] {
            for by in ["source", "caller", "places"] {
                drop(metrics.rate_limited.get_or_create(&Limited { class, by }));
            }
        }
        for what in ["access_request", "inbox"] {
            drop(metrics.watches.get_or_create(&What { what }));
        }
        for outcome in ["approved", "denied", "expired"] {
            drop(metrics.approval_wait.get_or_create(&Outcome { outcome }));
        }
        metrics
    }
}

/// What the page says of a figure, for whoever reads the text alone.
fn meaning(name: &str) -> &'static str {
    let row = PAGE.lines().find(|line| {
        line.strip_prefix("| `dipylon_")
            .and_then(|rest| rest.split('`').next())
            .is_some_and(|full| full.trim_end_matches("_total") == name)
    });
    row.and_then(|line| line.trim_end_matches(" |").rsplit(" | ").next())
        .unwrap_or_default()
        .trim_end_matches('.')
}

impl Metrics {
    /// A call was answered, or its caller went away.
    pub fn call(&self, method: &'static str, code: &'static str, took: Duration) {
        self.calls.get_or_create(&Call { method, code }).inc();
        self.call_seconds
            .get_or_create(&Method { method })
            .observe(took.as_secs_f64());
    }

    /// A call is worked on until this is dropped.
    pub fn working(&self) -> Counted {
        Counted::up(&self.calls_in_flight)
    }

    /// A call was refused; `reason` is of the closed set.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    /// A call was shed.
    pub fn rate_limited(&self, class: &'static str, by: &'static str) {
        self.rate_limited
            .get_or_create(&Limited { class, by })
            .inc();
    }

    /// Evidence was checked.
    pub fn attested(&self, kind: &'static str, result: &'static str) {
        self.attestation
            .get_or_create(&Attestation { kind, result })
            .inc();
    }

    /// Gate 1 did not open.
    pub fn gate_1_refused(&self, cause: &'static str) {
        self.gate_1_refusals.get_or_create(&Cause { cause }).inc();
    }

    /// Gate 2 answered; `rule` is the first that determined it.
    pub fn decided(&self, outcome: &'static str, rule: Option<&str>) {
        let rule = self.capped(rule.unwrap_or(NO_RULE));
        self.decisions
            .get_or_create(&Decision { outcome, rule })
            .inc();
    }

    fn capped(&self, rule: &str) -> String {
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

    /// People, or time, decided an access request that had waited this long.
    pub fn approval_waited(&self, outcome: &'static str, waited: Duration) {
        self.approval_wait
            .get_or_create(&Outcome { outcome })
            .observe(waited.as_secs_f64());
    }

    /// A person signed a statement this long after it was handed out.
    pub fn approval_decided(&self, took: Duration) {
        self.approval_decide.observe(took.as_secs_f64());
    }

    /// An append was answered.
    pub fn appended(&self, took: Duration) {
        self.append.observe(took.as_secs_f64());
    }

    /// An end was handed to one validator's stream this long after its entry.
    pub fn fed(&self, delay: Duration) {
        self.feed_delay.observe(delay.as_secs_f64());
    }

    /// A validator follows the feed until this is dropped.
    pub fn subscribed(&self) -> Counted {
        Counted::up(&self.feed_subscribers)
    }

    /// An access request or an inbox is watched until this is dropped.
    pub fn watching(&self, what: &'static str) -> Counted {
        let gauge = self.watches.get_or_create(&What { what }).clone();
        Counted::up(&gauge)
    }

    /// A connection is open until this is dropped.
    pub fn connected(&self) -> Counted {
        Counted::up(&self.connections)
    }

    /// OpenMetrics text of this moment.
    pub fn read(&self, moment: &Moment) -> String {
        let _alone = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |gauge: &Gauge, n: usize| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        let large = |gauge: &Gauge, n: u64| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        count(&self.requests_pending, moment.requests_pending);
        count(&self.tokens_live, moment.tokens_live);
        count(&self.tasks_open, moment.tasks_open);
        count(&self.ends_unwritten, moment.ends_unwritten);
        large(&self.journal_entries, moment.journal_entries);
        large(&self.journal_bytes, moment.journal_bytes);
        self.clock_behind.set(moment.clock_behind.as_secs_f64());
        self.policy_info.clear();
        if let Some(version) = &moment.policy {
            let version = version.clone();
            self.policy_info.get_or_create(&Policy { version }).set(1);
        }
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            tracing::warn!("the figures could not be written");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// name → (type, labels), from the page.
    fn page() -> BTreeMap<String, (String, Vec<String>)> {
        let rows = PAGE.lines().filter(|line| line.starts_with("| `dipylon_"));
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

    fn everything(metrics: &Metrics) {
        let second = Duration::from_secs(1);
        metrics.call("m", "OK", second);
        metrics.refused("NOT_FOUND");
        metrics.rate_limited("general", "source");
        metrics.attested("jwt_svid", "good");
        metrics.gate_1_refused("stale");
        metrics.decided("approved", None);
        metrics.approval_waited("approved", second);
        metrics.approval_decided(second);
        metrics.appended(second);
        metrics.fed(second);
    }

    #[test]
    fn the_page_is_what_is_exposed() {
        let metrics = Metrics::default();
        everything(&metrics);
        let moment = Moment {
            policy: Some("v".to_owned()),
            ..Moment::default()
        };
        let text = metrics.read(&moment);
        assert_eq!(exposed(&text), page());
        for line in text.lines().filter(|l| l.starts_with("# HELP")) {
            assert!(line.split(' ').count() > 4, "says what it is: {line}");
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
        let text = metrics.read(&Moment::default());
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
        let text = odd.read(&Moment::default());
        assert_eq!(rows(&text), 1);
        assert!(
            !text.lines().any(|l| l.starts_with("dipylon_forged")),
            "{text}"
        );
    }

    #[test]
    fn what_is_counted_while_it_lasts() {
        let metrics = Metrics::default();
        let one = metrics.subscribed();
        let two = metrics.subscribed();
        let now = || {
            let text = metrics.read(&Moment::default());
            text.contains("dipylon_feed_subscribers 2\n")
        };
        assert!(now());
        drop(one);
        assert!(!now());
        drop(two);
        assert_eq!(metrics.feed_subscribers.get(), 0);
    }
}
