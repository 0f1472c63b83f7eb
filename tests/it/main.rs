//! Dipylon's stories, told through its doors. One binary; one file for each story.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod admission;
mod audit;
mod bad_input;
mod browser;
mod card;
mod clock;
mod console;
mod crosscheck;
#[cfg(feature = "demo")]
mod demo;
mod doors;
mod drain;
mod evidence;
mod exec;
mod fatigue;
#[path = "../../benches/figures/mod.rs"]
mod figures;
mod freeze;
mod front_door;
mod gates;
mod golden;
mod harness;
mod history;
mod hostile;
mod house;
mod inbox;
mod kill;
mod laws;
mod leases;
mod metrics;
mod operators;
#[cfg(feature = "otlp")]
mod otlp;
mod parallel;
mod passkey;
mod properties;
mod proved;
mod readings;
mod second_opinion;
mod secrets;
mod served;
mod siege;
mod spine;
mod step_up;
mod transport;
mod vectors;
mod waiting;
mod walk;
mod webauthn;
