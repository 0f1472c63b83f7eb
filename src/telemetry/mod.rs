//! Telemetry: what operators see of a broker: figures ([`Metrics`]) and lines ([`logs`]).
//!
//! In: what happened, in words of closed sets. Out: OpenMetrics text, and one log line for each event.
//! Trusts its callers to know what is secret; no token, evidence, proof or key is handed in here.
//! Refuses labels that callers could make up: rule names are capped, everything else is `&'static`.
//! Never decides anything, and never says anything to a caller.

pub mod logs;
mod metrics;

pub use metrics::{Counted, Metrics, Moment, PAGE};
