//! Telemetry: metrics ([`Metrics`]) and log lines ([`logs`]) of a broker, for its operators.
//!
//! In: events, in words of closed sets. Out: OpenMetrics text, and one log line for each event.
//! Trusts the broker to pass in no token, evidence, proof or key.
//! Refuses labels that a client could choose: rule names are capped, everything else is `&'static`.
//! Never decides anything, and never answers a caller.

pub mod logs;
mod metrics;
#[cfg(feature = "otlp")]
pub mod traces;

pub use metrics::{GaugeSnapshot, InFlightGuard, LimitKind, METRICS_DOC, Metrics};
