//! Integration tests of the broker through its public interfaces: one binary, one file for each feature.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod admission;
mod adversarial_review;
mod approval_limits;
mod architecture;
mod audit;
mod audit_votes;
mod authorization_matrix;
mod bad_input;
#[path = "../../benches/broker/mod.rs"]
mod benchmarks;
mod browser;
mod card;
mod clock;
mod concurrency;
mod connection_exhaustion;
mod console;
mod crash_recovery;
mod demo;
mod end_to_end;
mod evidence;
mod exec;
mod fido2_crosscheck;
mod freeze;
mod golden;
mod heartbeats;
mod inbox;
mod metrics;
mod operator_setup;
#[cfg(feature = "otlp")]
mod otlp;
mod properties;
mod readme_walkthrough;
mod request_command;
mod sdk_dependencies;
mod sdk_examples;
mod secrets;
mod shutdown_and_reload;
mod stats_and_timeline;
mod step_up;
mod support;
mod token_lifecycle;
mod transport;
mod unforgeable_types;
mod vectors;
mod verified_token_cache;
mod watch_access_request;
mod webauthn;
